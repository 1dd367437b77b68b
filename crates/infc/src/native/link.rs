//! Shared libraries and programs: what the C compiler of the computer makes of an object file.

use super::{Native, given};
use crate::outputs::file_names;
use infc_artifact::dtype;
use infc_artifact::program::Port;
use infc_ir::Problems;
use infc_kernel::bounded::changes;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::fs;
use std::process::Command;

/// The program around a model: reads inputs, runs, prints.
const MAIN: &str = include_str!("main.c");

/// A shared library that exports the functions of the model and nothing else; `soname` is its name for the loader.
pub fn shared_library(native: &Native, soname: &str) -> Result<Vec<u8>, Problems> {
    let files = [(format!("{}.o", native.name), native.object.bytes.as_slice())];
    link(&native.arch, &files, &["-shared", "-nostartfiles", &format!("-Wl,-soname,{soname}"), &format!("{}.o", native.name)])
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
    link(&native.arch, &files, &["-std=c99", "-O1", "main.c", &object])
}

/// The C compiler for an architecture where CC names none: under the name that Linux distributions give to those for others.
fn compiler(arch: &str) -> OsString {
    if let Some(named) = std::env::var_os("CC").filter(|c| !c.is_empty()) {
        return named;
    }
    if arch == std::env::consts::ARCH { "cc".into() } else { format!("{arch}-linux-gnu-gcc").into() }
}

/// Runs the C compiler in a folder with these files; what it makes.
fn link(arch: &str, files: &[(String, &[u8])], arguments: &[&str]) -> Result<Vec<u8>, Problems> {
    let trouble = |e: std::io::Error| Problems::one("temporary files", e.to_string(), "is there space in the temporary folder?");
    let folder = tempfile::tempdir().map_err(trouble)?;
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).map_err(trouble)?;
    }
    let compiler = compiler(arch);
    let flags = std::env::var("CFLAGS").unwrap_or_default();
    let name = compiler.to_string_lossy().into_owned();
    let mut command = Command::new(&compiler);
    command
        .current_dir(folder.path())
        .args(flags.split_whitespace())
        .args(arguments)
        .args([OsStr::new("-o"), OsStr::new("result")]);
    let output = command.output().map_err(|e| {
        let package = if arch == std::env::consts::ARCH { "gcc libc6-dev".to_owned() } else { format!("gcc-{arch}-linux-gnu") };
        let help = format!(
            "install one (Debian, Ubuntu: apt-get install {package}), set CC, or use --emit obj or staticlib, which need none"
        );
        Problems::one(format!("C compiler '{name}'"), format!("cannot be started: {e}"), help)
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let message = format!("failed ({}): {}", output.status, text.trim());
        return Err(Problems::one(format!("C compiler '{name}'"), message, "CC and CFLAGS choose the compiler and its options"));
    }
    fs::read(folder.path().join("result")).map_err(trouble)
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
