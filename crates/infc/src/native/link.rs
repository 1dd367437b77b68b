//! Shared libraries and programs: what the C compiler of the computer makes of an object file.

use super::{Native, given};
use crate::outputs::file_names;
use infc_artifact::dtype;
use infc_artifact::program::Port;
use infc_ir::Problems;
use infc_kernel::backend::Os;
use infc_kernel::bounded::changes;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// The program around a model: reads inputs, runs, prints.
const MAIN: &str = include_str!("main.c");

/// A shared library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The library.
    pub library: Vec<u8>,
    /// Windows: what programs link to use it.
    pub import: Option<Vec<u8>>,
}

/// A shared library that exports the functions of the model and nothing else; `file` is its name for the loader.
pub fn shared_library(native: &Native, file: &str) -> Result<Shared, Problems> {
    let object = format!("{}.o", native.name);
    let soname = format!("-Wl,-soname,{file}");
    let install = format!("@rpath/{file}");
    let arguments: Vec<&str> = match native.os {
        Os::Linux => vec!["-shared", "-nostartfiles", &soname, &object],
        Os::Macos => vec!["-dynamiclib", "-install_name", &install, &object],
        Os::Windows => vec!["-shared", "-s", "-static-libgcc", "-Wl,--out-implib,import", &object],
    };
    // A library for Windows has the name in it that it was linked under.
    let result = format!("made/{file}");
    let folder = link(native, &[(object.clone(), native.object.bytes.as_slice())], &arguments, &result)?;
    let import = match native.os {
        Os::Windows => Some(read(&folder, "import")?),
        Os::Linux | Os::Macos => None,
    };
    Ok(Shared { library: read(&folder, &result)?, import })
}

/// A program that runs the model.
pub fn executable(native: &Native) -> Result<Vec<u8>, Problems> {
    let (object, header, ports) = (format!("{}.o", native.name), format!("{}.h", native.name), ports(native));
    let files = [
        (object.clone(), native.object.bytes.as_slice()),
        (header, native.header.as_bytes()),
        ("ports.h".to_owned(), ports.as_bytes()),
        ("main.c".to_owned(), MAIN.as_bytes()),
    ];
    let mut arguments = vec!["-std=c99", "-O1", "main.c", &object];
    if native.os == Os::Windows {
        // MinGW's part of a program has many times the size of the rest, most of it for debuggers.
        arguments.push("-s");
    }
    read(&link(native, &files, &arguments, RESULT)?, RESULT)
}

/// What the C compiler makes. Compilers for Windows leave a name alone that has an ending.
const RESULT: &str = "made/result.out";

/// A C compiler: the words that start it, and how to come by it.
fn compiler(arch: &str, os: Os) -> Result<(Vec<String>, String), Problems> {
    if let Some(named) = std::env::var_os("CC").filter(|c| !c.is_empty()) {
        let named = named.to_string_lossy().into_owned();
        // A path may have spaces; words that are no path are a command with its arguments.
        let words = if Path::new(&named).exists() { vec![named] } else { named.split_whitespace().map(str::to_owned).collect() };
        return Ok((words, "CC names it; set another one".to_owned()));
    }
    let here = arch == std::env::consts::ARCH && os == Os::here();
    let debian = |package: &str| format!("install one (Debian, Ubuntu: apt-get install {package}), set CC");
    Ok(match os {
        Os::Linux if here => (vec!["cc".to_owned()], debian("gcc libc6-dev")),
        Os::Linux => (vec![format!("{arch}-linux-gnu-gcc")], debian(&format!("gcc-{arch}-linux-gnu"))),
        Os::Windows if here => (vec!["gcc".to_owned()], "install MinGW-w64's, or set CC".to_owned()),
        Os::Windows => (vec![format!("{arch}-w64-mingw32-gcc")], debian("gcc-mingw-w64")),
        Os::Macos if Os::here() == Os::Macos => {
            let arch = if arch == "aarch64" { "arm64" } else { arch };
            (
                ["cc", "-arch", arch].map(str::to_owned).to_vec(),
                "install Xcode's command line tools (xcode-select --install), or set CC".to_owned(),
            )
        }
        Os::Macos => {
            let message = "no C compiler for macOS is known on this system";
            let help = format!(
                "set CC to one, such as CC='python3 -m ziglang cc -target {arch}-macos' (pip install ziglang), or use --emit obj or staticlib, which need none"
            );
            return Err(Problems::one("linking for macOS", message, help));
        }
    })
}

/// Runs the C compiler in a folder with these files; the folder, with the result under its name.
fn link(native: &Native, files: &[(String, &[u8])], arguments: &[&str], result: &str) -> Result<TempDir, Problems> {
    let folder = tempfile::tempdir().map_err(|e| trouble(&e))?;
    fs::create_dir(folder.path().join("made")).map_err(|e| trouble(&e))?;
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).map_err(|e| trouble(&e))?;
    }
    let (words, install) = compiler(&native.arch, native.os)?;
    let flags = std::env::var("CFLAGS").unwrap_or_default();
    let name = words.join(" ");
    let mut command = Command::new(&words[0]);
    command.current_dir(folder.path()).args(&words[1..]).args(flags.split_whitespace()).args(arguments).args(["-o", result]);
    let output = command.output().map_err(|e| {
        let help = format!("{install}, or use --emit obj or staticlib, which need none");
        Problems::one(format!("C compiler '{name}'"), format!("cannot be started: {e}"), help)
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let message = format!("failed ({}): {}", output.status, text.trim());
        return Err(Problems::one(format!("C compiler '{name}'"), message, "CC and CFLAGS choose the compiler and its options"));
    }
    Ok(folder)
}

fn read(folder: &TempDir, name: &str) -> Result<Vec<u8>, Problems> {
    fs::read(folder.path().join(name)).map_err(|e| trouble(&e))
}

fn trouble(e: &std::io::Error) -> Problems {
    Problems::one("temporary files", e.to_string(), "is there space in the temporary folder?")
}

/// What `main.c` needs to know of the model.
fn ports(native: &Native) -> String {
    let (name, upper) = (&native.name, native.name.to_uppercase());
    let inputs: Vec<&Port> = given(&native.program).collect();
    let outputs: Vec<&Port> = native.program.outputs.iter().collect();
    let state = if native.program.states.is_empty() { ("0", "") } else { ("STATE", ", state") };
    let mut out = format!("#include \"{name}.h\"\n#define MODEL {}\n", literal(name));
    let _ = writeln!(out, "#define INPUTS {}\n#define OUTPUTS {}", inputs.len(), outputs.len());
    let _ = writeln!(out, "#define ARENA_BYTES {upper}_ARENA_BYTES");
    let _ = writeln!(out, "#define STATE_BYTES {}", if state.0 == "0" { "0".to_owned() } else { format!("{upper}_STATE_BYTES") });
    let _ = writeln!(out, "#define MESSAGE {name}_message");
    let reset = if native.program.states.is_empty() { "((void)(state))".to_owned() } else { format!("{name}_reset(state)") };
    let _ = writeln!(out, "#define RESET(state) {reset}");
    let _ = writeln!(
        out,
        "#define RUN(in, out, state, arena) \\\n    ((void)(state), {name}_run((const {name}_inputs *)(const void *)(in), \
         (const {name}_outputs *)(const void *)(out){}, arena))",
        state.1
    );
    for (kind, ports) in [("inputs", inputs), ("outputs", outputs)] {
        for (i, port) in ports.iter().enumerate() {
            let most = port.dims.iter().map(|d| d.range(&native.layout.ranges).map_or(0, |r| r.1));
            let dims: Vec<String> = most.map(|d| d.to_string()).chain(["0".to_owned()]).collect();
            let _ = writeln!(out, "static int64_t {kind}_{i}[] = {{{}}};", dims.join(", "));
        }
        let _ = writeln!(out, "static {} port {kind}[] = {{", if kind == "outputs" { "struct" } else { "const struct" });
        let files = file_names(ports.iter().map(|p| p.name.as_str()));
        for ((i, port), file) in ports.iter().enumerate().zip(files) {
            let dtype = dtype::name(port.dtype).unwrap_or("?");
            let numpy = numpy(dtype);
            let (text, file, count, rank) = (literal(&port.name), literal(&file), native.layout.most(port), port.dims.len());
            let changes = i32::from(changes(port));
            let _ = writeln!(
                out,
                "    {{{text}, {file}, \"{dtype}\", \"{numpy}\", {}, {count}, {rank}, {kind}_{i}, {changes}}},",
                port.element
            );
        }
        // C has no empty arrays.
        out += "    {\"\", \"\", \"\", \"\", 0, 0, 0, 0, 0},\n};\n";
    }
    out
}

/// NumPy's name of a dtype, or nothing.
fn numpy(dtype: &str) -> &'static str {
    match dtype {
        "f16" => "<f2",
        "f32" => "<f4",
        "f64" => "<f8",
        "i8" => "|i1",
        "i16" => "<i2",
        "i32" => "<i4",
        "i64" => "<i8",
        "u8" => "|u1",
        "u16" => "<u2",
        "u32" => "<u4",
        "u64" => "<u8",
        "bool" => "|b1",
        "c64" => "<c8",
        "c128" => "<c16",
        _ => "",
    }
}

/// A C string with these bytes.
fn literal(text: &str) -> String {
    let escaped = text.bytes().map(|b| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b' ' | b'_' | b'.' | b'/' | b':' | b'-' => char::from(b).to_string(),
        _ => format!("\\{b:03o}"),
    });
    format!("\"{}\"", escaped.collect::<String>())
}
