//! Runs kernels of architectures that this computer is not: a small program (`runner.c`) under QEMU, a script (`runner.mjs`) in Node.js for WebAssembly, one for each thread of the tests.

use infc_kernel::backend::Code;
use infc_kernel::target::TargetDesc;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

const RUNNER: &str = include_str!("runner.c");

const SCRIPT: &str = include_str!("runner.mjs");

/// What runs programs of an architecture here, and compiles them.
struct Tools {
    arch: &'static str,
    emulator: &'static str,
    /// Nothing where the program is the script.
    compiler: Option<&'static str>,
    /// The emulator's first major version that runs all code without fault.
    version: u32,
    /// What has it, for Debian and Ubuntu.
    package: &'static str,
    /// What the emulator is told of a machine with these features.
    arguments: fn(&[String]) -> Vec<String>,
}

/// QEMU 7 ends at VFCVT.RTZ where it is the first instruction on floats of a block. Node.js has vectors of WebAssembly from 16.4 on.
const TOOLS: &[Tools] = &[
    Tools {
        arch: "aarch64",
        emulator: "qemu-aarch64",
        compiler: Some("aarch64-linux-gnu-gcc"),
        version: 5,
        package: "qemu-user",
        arguments: |_| vec![],
    },
    Tools {
        arch: "riscv64",
        emulator: "qemu-riscv64",
        compiler: Some("riscv64-linux-gnu-gcc"),
        version: 8,
        package: "qemu-user",
        arguments: riscv,
    },
    Tools { arch: "wasm32", emulator: "node", compiler: None, version: 17, package: "nodejs", arguments: |_| vec![] },
];

/// A CPU that has what the machine has, and nothing else of what machines may have.
fn riscv(features: &[String]) -> Vec<String> {
    const OPTIONAL: [&str; 8] = ["v", "zba", "zbb", "zbs", "zicond", "zfa", "zfhmin", "zvfhmin"];
    let has = |name: &str| features.iter().any(|f| f == name);
    let bits = features.iter().filter_map(|f| f.strip_prefix("zvl")?.strip_suffix('b')?.parse().ok()).max().unwrap_or(128);
    let parts = OPTIONAL.iter().map(|name| format!(",{name}={}", has(name)));
    vec!["-cpu".to_owned(), format!("rv64{},vlen={bits}", parts.collect::<String>())]
}

/// Is this architecture emulated in tests? RISC-V is not where the environment says so, for want of an emulator (`./x test` tells of it).
pub fn covers(arch: &str) -> bool {
    let left_out = arch == "riscv64" && std::env::var_os("INFC_WITHOUT_RISCV").is_some();
    arch != std::env::consts::ARCH && TOOLS.iter().any(|t| t.arch == arch) && !left_out
}

impl Tools {
    /// The variable of the environment that may name the emulator: `QEMU_RISCV64`, `NODE`.
    fn variable(&self) -> String {
        self.emulator.to_uppercase().replace('-', "_")
    }

    /// The emulator's program.
    fn program(&self) -> String {
        std::env::var(self.variable()).unwrap_or_else(|_| self.emulator.to_owned())
    }

    /// Panics where the emulator is missing or too old.
    fn check(&self) {
        let program = self.program();
        let output = Command::new(&program).arg("--version").output();
        let output = output.unwrap_or_else(|e| panic!("{program}: {e} (Debian, Ubuntu: apt-get install {})", self.package));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // `qemu-aarch64 version 8.2.1`, and `v20.1.0` alone.
        let version = text.split_whitespace().skip_while(|w| *w != "version").nth(1).or_else(|| text.trim().strip_prefix('v'));
        let major: Option<u32> = version.and_then(|v| v.split('.').next()?.parse().ok());
        let least = self.version;
        let variable = self.variable();
        assert!(
            major.is_some_and(|m| m >= least),
            "{program} is too old, {least} is needed: {text}\n{variable} names another one; `./x test` gets one, if need be"
        );
    }
}

struct Process {
    child: Child,
    requests: ChildStdin,
    answers: ChildStdout,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

thread_local! {
    static PROCESSES: RefCell<HashMap<(&'static str, Vec<String>), Process>> = RefCell::default();
}

/// Runs kernel `index` of the code for all its tasks; a panic says what is missing.
pub fn call(target: &TargetDesc, code: &Code, index: usize, buffers: &mut [Vec<u8>], extents: &[i64], tasks: i64) -> u64 {
    let tools = TOOLS.iter().find(|t| t.arch == target.arch).unwrap_or_else(|| panic!("no emulator for {}", target.arch));
    let arguments = (tools.arguments)(&target.features);
    PROCESSES.with_borrow_mut(|all| {
        let process = all.entry((tools.arch, arguments.clone())).or_insert_with(|| start(tools, &arguments));
        match ask(process, code, index, buffers, extents, tasks) {
            Ok(status) => status,
            Err(e) => {
                let ended = process.child.wait();
                panic!("the emulated kernel ended the program: {e} ({ended:?})")
            }
        }
    })
}

fn ask(
    process: &mut Process,
    code: &Code,
    index: usize,
    buffers: &mut [Vec<u8>],
    extents: &[i64],
    tasks: i64,
) -> std::io::Result<u64> {
    let (entry, scratch) = (code.entries[index], code.scratch[index]);
    let counts = [code.image.len() as u64, entry, scratch, tasks as u64, buffers.len() as u64, extents.len() as u64];
    let sizes = buffers.iter().map(|b| b.len() as u64);
    let numbers = counts.into_iter().chain(sizes).chain(extents.iter().map(|&e| e as u64));
    let mut request: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
    request.extend(&code.image);
    buffers.iter().for_each(|b| request.extend(b));
    process.requests.write_all(&request)?;
    process.requests.flush()?;
    let mut status = [0; 8];
    process.answers.read_exact(&mut status)?;
    for b in buffers {
        process.answers.read_exact(b)?;
    }
    Ok(u64::from_le_bytes(status))
}

fn start(tools: &Tools, arguments: &[String]) -> Process {
    tools.check();
    let emulator = tools.program();
    let mut command = Command::new(&emulator);
    command.args(arguments);
    match tools.compiler {
        Some(compiler) => command.arg(compiled(tools, compiler)),
        None => command.args(["--input-type=module", "--eval", SCRIPT]),
    };
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|e| panic!("{emulator}: {e}"));
    let (requests, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    Process { child, requests, answers }
}

/// The runner as a program beside the tests, made when it is first needed.
fn compiled(tools: &Tools, with: &str) -> PathBuf {
    static LOCK: Mutex<()> = Mutex::new(());
    let _one = LOCK.lock().unwrap_or_else(|e| e.into_inner());
    let hash = RUNNER.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let folder = std::env::current_exe().expect("tests are a program").parent().expect("in a folder").to_owned();
    let program = folder.join(format!("infc-runner-{}-{hash:016x}", tools.arch));
    if program.exists() {
        return program;
    }
    // Tests of several programs may come here at once.
    let own = folder.join(format!("infc-runner-{}-{}", tools.arch, std::process::id()));
    let mut compiler = Command::new(with);
    compiler.args(["-std=gnu99", "-O1", "-static", "-x", "c", "-", "-o"]).arg(&own).stdin(Stdio::piped());
    let mut child =
        compiler.spawn().unwrap_or_else(|e| panic!("{with}: {e} (Debian, Ubuntu: apt-get install gcc-{}-linux-gnu)", tools.arch));
    child.stdin.take().expect("piped").write_all(RUNNER.as_bytes()).expect("the compiler reads");
    assert!(child.wait().expect("it was started").success(), "{with} cannot compile the runner");
    std::fs::rename(&own, &program).expect("the folder of the tests can be written");
    program
}
