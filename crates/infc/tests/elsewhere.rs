//! Code for 64-bit Arm and 64-bit RISC-V on a computer of another architecture: programs run in an emulator, and what goes wrong on the way to another computer is told.
#![cfg(all(feature = "llvm", target_arch = "x86_64", target_os = "linux"))]

#[path = "../../onnx/tests/kit/mod.rs"]
mod kit;

use infc::npy;
use infc_ir::Tensor;
use kit::*;
use prost::Message as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    /// Runs a program in this folder; its output.
    #[track_caller]
    fn run(&self, program: &str, args: &[&str], exit: i32) -> String {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.0.path())
            .env_remove("CC")
            .env("CFLAGS", "-std=c99 -Wall -Wextra -pedantic -Werror -static");
        let output = command.output().unwrap_or_else(|e| panic!("{program}: {e}; `./x test` installs it"));
        let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
        assert_eq!(output.status.code(), Some(exit), "{program} {args:?}\n{text}");
        text
    }
    #[track_caller]
    fn infc(&self, args: &[&str], exit: i32) -> String {
        self.run(env!("CARGO_BIN_EXE_infc"), args, exit)
    }
}

fn example(name: &str) -> String {
    Path::new(ROOT).join("examples/models").join(name).join("model.onnx").to_string_lossy().into_owned()
}

/// Machines of an architecture, and what runs programs for them here.
struct Elsewhere {
    compiler: &'static str,
    emulator: String,
    arguments: &'static [&'static str],
    machines: &'static [&'static str],
    /// C code that sets the control register of floats from `flush`, and reads it to `after`; a value that changes results, and the one that does not.
    set: &'static str,
    get: &'static str,
    modes: [u64; 2],
}

/// RISC-V is left out where the environment says so, for want of an emulator that runs its vectors (`./x test` tells of it).
fn elsewhere() -> Vec<Elsewhere> {
    let riscv = std::env::var("QEMU_RISCV64").unwrap_or("qemu-riscv64".to_owned());
    let arm = Elsewhere {
        compiler: "aarch64-linux-gnu-gcc",
        emulator: "qemu-aarch64".to_owned(),
        arguments: &[],
        machines: if cfg!(feature = "cranelift") {
            &["aarch64", "aarch64-dotprod", "aarch64-i8mm", "cranelift-aarch64"]
        } else {
            &["aarch64", "aarch64-dotprod", "aarch64-i8mm"]
        },
        // Subnormal numbers are zeros.
        set: "msr fpcr, %0",
        get: "mrs %0, fpcr",
        modes: [1 << 24, 0],
    };
    let of_riscv = |arguments, machines| Elsewhere {
        compiler: "riscv64-linux-gnu-gcc",
        emulator: riscv.clone(),
        arguments,
        machines,
        // Results are rounded up.
        set: "fsrm %0",
        get: "frrm %0",
        modes: [3, 0],
    };
    let mut all = vec![arm];
    if std::env::var_os("INFC_WITHOUT_RISCV").is_none() {
        all.push(of_riscv(&["-cpu", "rv64,v=false,zba=false,zbb=false,zbs=false,zfa=false"], &["riscv64"]));
        all.push(of_riscv(&["-cpu", "rv64,v=true,vlen=128,zba=false,zbb=false,zbs=false,zfa=false"], &["riscv64-v"]));
        all.push(of_riscv(&["-cpu", "max,vlen=256"], &["riscv64-v256", "riscv64-rva23"]));
    }
    all
}

impl Elsewhere {
    /// Runs a program of the folder in the emulator; its output.
    fn emulated(&self, dir: &Folder, program: &str, args: &[&str]) -> String {
        dir.run(&self.emulator, &[self.arguments, &[program], args].concat(), 0)
    }
}

/// Programs of several machines give what an artifact gives here, but for the order of sums.
#[test]
fn programs_of_the_example_models() {
    for (name, length) in
        [("digits_mlp", None), ("glyphs_cnn", None), ("language_gru", Some(7)), ("snippets_transformer", Some(7))]
    {
        let (dir, model) = (Folder::new(), example(name));
        let length = length.map(|n| format!("length={n}"));
        let dims: Vec<&str> = ["--dim", "batch=3"].into_iter().chain(length.iter().flat_map(|l| ["--dim", l.as_str()])).collect();
        let compiled = |more: &[&str]| dir.infc(&[&["compile", model.as_str()], more, &dims].concat(), 0);
        let folder = |name: &str| fs::create_dir(dir.path(name)).expect("writable");
        folder("here");
        compiled(&["-o", "m.infc"]);
        dir.infc(&["run", "m.infc", "--output-dir", "here", "--input", "input=random:7"], 0);
        let all = elsewhere();
        for (there, machine) in all.iter().flat_map(|e| e.machines.iter().map(move |m| (e, *m))) {
            folder(machine);
            let text = compiled(&["--emit", "exe", "--target", machine, "-o", "program"]);
            assert!(text.contains(machine), "{text}");
            there.emulated(&dir, "./program", &["--output-dir", machine, "input=random:7"]);
            let mut compared = 0;
            for file in fs::read_dir(dir.path("here")).expect("readable").flatten() {
                let read =
                    |p: PathBuf| npy::read(&fs::read(&p).expect("every output is stored")).expect("NumPy's").to_vec::<f32>();
                let (want, got) = (read(file.path()), read(dir.path(machine).join(file.file_name())));
                assert_eq!(want.len(), got.len());
                for (w, g) in want.iter().zip(&got) {
                    assert!((w - g).abs() <= 1e-5 + 1e-4 * w.abs(), "{name} on {machine}: {g} instead of {w}");
                }
                compared += want.len();
            }
            assert!(compared > 0);
        }
    }
}

/// A caller that has chosen another mode for floats finds that set afterwards, and it does not matter between.
const MODES: &str = r#"
#include "fifths.h"
#include <stdio.h>
#include <string.h>
static unsigned char arena[FIFTHS_ARENA_BYTES + 64] __attribute__((aligned(64)));
int main(void) {
    unsigned long mode = MODE, after;
    float x[4] = {1e-38f, 2e-38f, -4e-39f, 1.1f}, y[4] = {9, 9, 9, 9};
    unsigned bits[4];
    const void *in[1] = {x};
    void *out[1] = {y};
    int status;
    __asm__ volatile(SET : : "r"(mode));
    status = fifths_run((const fifths_inputs *)(const void *)in, (const fifths_outputs *)(void *)out, arena);
    __asm__ volatile(GET : "=r"(after));
    mode = USUAL;
    __asm__ volatile(SET : : "r"(mode));
    memcpy(bits, y, sizeof bits);
    printf("%d %lx %x %x %x %x", status, after, bits[0], bits[1], bits[2], bits[3]);
    return 0;
}
"#;

#[test]
fn the_float_environment_of_the_caller_is_kept() {
    let dir = Folder::new();
    // By a fifth: there is something to round, up or to the nearest, among normal and among subnormal numbers.
    let fifth = constant("fifth", &Tensor::from_vec([1], vec![0.2f32]));
    let model = model(17, graph(&["x f32[4]"], vec![node("y = Mul(x, fifth)", [])], &["y f32[4]"], vec![fifth]));
    fs::write(dir.path("fifths.onnx"), model.encode_to_vec()).expect("writable");
    fs::write(dir.path("main.c"), MODES).expect("writable");
    let want: Vec<String> = [1e-38f32, 2e-38, -4e-39, 1.1].iter().map(|x| format!("{:x}", (x * 0.2).to_bits())).collect();
    for there in elsewhere() {
        let quoted = |name: &str, text: &str| format!("-D{name}=\"{text}\"");
        let [mode, usual] = there.modes;
        let defined =
            [quoted("SET", there.set), quoted("GET", there.get), format!("-DMODE={mode}ul"), format!("-DUSUAL={usual}ul")];
        for machine in there.machines {
            dir.infc(&["compile", "fifths.onnx", "--emit", "staticlib", "--target", machine, "-o", "libfifths.a"], 0);
            let flags = ["-std=gnu99", "-static", "-O1", "main.c", "-L.", "-lfifths", "-o", "main"];
            dir.run(there.compiler, &[&flags, &defined.each_ref().map(String::as_str)[..]].concat(), 0);
            assert_eq!(there.emulated(&dir, "./main", &[]), format!("0 {mode:x} {}", want.join(" ")), "{machine}");
        }
    }
}

#[test]
fn what_goes_wrong_on_the_way_to_another_computer() {
    let (dir, model) = (Folder::new(), example("digits_mlp"));
    let told = |args: &[&str], exit: i32, words: &[&str]| {
        let text = dir.infc(&[&["verify", model.as_str()], args].concat(), exit);
        assert!(words.iter().all(|w| text.contains(w)), "{args:?}: {text}");
    };
    let on = |command: &'static str, words: &[&str]| told(&["--target", "aarch64", "--on", command], 3, words);
    on("", &["no command is given", "infc-worker"]);
    on("/nowhere/infc-worker", &["'/nowhere/infc-worker' cannot be started", "--on 'ssh board infc-worker'"]);
    on("false", &["the program there ended", "exit status: 1"]);
    // It says nothing, and what it is asked is no end for it.
    let script = dir.path("mute");
    fs::write(&script, "exec 1>&-\nexec sleep 100\n").expect("writable");
    let mute = format!("sh {}", script.display());
    told(&["--target", "aarch64", "--on", &mute], 3, &["the program there ended", "it is still there, and was ended"]);
    on("echo something else than a worker that answers", &["is no infc-worker", "something else"]);
    told(&["--backend", "interp", "--on", "true"], 2, &["--on is for compiled code", "'interp' runs here"]);
    // Without another computer its code cannot run.
    told(&["--target", "aarch64"], 1, &["for aarch64, this machine is x86_64", "--on"]);
    // An artifact may hold code for both; the one for this computer is taken.
    dir.infc(&["compile", &model, "--cpu", "aarch64,x86-64-v2", "-o", "both.infc"], 0);
    told(&["--artifact", "both.infc"], 0, &["1 passed"]);
    let text = dir.infc(&["inspect", "both.infc"], 0);
    assert!(text.contains("aarch64") && text.contains("x86-64-v2"), "{text}");
    // A linker of this architecture is not asked for the other one.
    let text = dir.run(
        "env",
        &[
            "PATH=/nowhere",
            env!("CARGO_BIN_EXE_infc"),
            "compile",
            &model,
            "--emit",
            "exe",
            "--target",
            "aarch64",
            "--dim",
            "batch=1",
            "-o",
            "p",
        ],
        3,
    );
    assert!(text.contains("'aarch64-linux-gnu-gcc'") && text.contains("gcc-aarch64-linux-gnu"), "{text}");
}
