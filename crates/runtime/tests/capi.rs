//! The C ABI from outside: the libraries are built as they are shipped, C programs are compiled against the header and run.

mod kit;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// What the stripped shared library may take.
const LIMIT: u64 = 500_000;

/// The folder of `libinfc_runtime.so` and `.a`, built with the profile they are shipped with.
fn libraries() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
        let args = "rustc --offline -q -p infc-runtime --lib --features capi --profile runtime --crate-type cdylib,staticlib";
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(args.split(' ')).current_dir(ROOT).env("CARGO_TARGET_DIR", &target);
        assert!(cargo.status().unwrap().success());
        target.join("runtime")
    })
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{text}");
    text
}

/// A C program linked with the shared (or static) library.
fn build(compiler: &str, source: &str, to: &Path, shared: bool) {
    let mut cc = Command::new(compiler);
    cc.args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-O1"]).arg(Path::new(ROOT).join(source)).arg("-o").arg(to);
    cc.arg("-I").arg(Path::new(ROOT).join("crates/runtime/include"));
    if shared {
        cc.arg("-L").arg(libraries()).arg("-linfc_runtime").arg(format!("-Wl,-rpath,{}", libraries().display()));
    } else {
        cc.arg(libraries().join("libinfc_runtime.a")).args(["-lpthread", "-ldl", "-lm"]);
    }
    succeed(&mut cc);
}

#[test]
fn the_example_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("model.infc"), kit::file(&kit::affine())).unwrap();
    let x: Vec<u8> = (0..24).flat_map(|i| (i as f32).to_le_bytes()).collect();
    std::fs::write(path("x.bin"), x).unwrap();
    for shared in [true, false] {
        build("cc", "examples/c/run_model.c", &path("run"), shared);
        let mut run = Command::new(path("run"));
        run.arg(path("model.infc")).arg("n=3").arg(format!("x={}", path("x.bin").display()));
        let expected = "input x: type 1, dims n 8\ninput bias: type 1, dims n\noutput y: type 1, dims 3, values 154 410 666\n";
        assert_eq!(succeed(&mut run), expected);
    }
    let failed = Command::new(path("run")).arg(path("x.bin")).output().unwrap();
    let text = String::from_utf8(failed.stderr).unwrap();
    assert!(text.starts_with("error 2: ") && text.contains("x.bin: not an infc artifact"), "{text}");
}

#[test]
fn misuse_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (model, program) = (dir.path().join("model.infc"), dir.path().join("misuse"));
    std::fs::write(&model, kit::file(&kit::affine())).unwrap();
    build("cc", "crates/runtime/tests/c/misuse.c", &program, true);
    assert_eq!(succeed(Command::new(program).arg(model)), "0 failures\n");
}

#[test]
fn the_header_is_cpp_too_and_complete() {
    let header = std::fs::read_to_string(Path::new(ROOT).join("crates/runtime/include/infc.h")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let names: std::collections::BTreeSet<&str> = header
        .lines()
        .filter(|l| !l.starts_with(['/', ' ', '}']))
        .filter_map(|l| l.split('(').next().filter(|_| l.contains('('))?.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("infc_"))
        .collect();
    assert!(names.len() >= 28, "{names:?}");
    // A C++ program that takes the address of every function links.
    let takes: String = names.iter().map(|n| format!("  p = (void *)&{n}; if (!p) return 1;\n")).collect();
    let source = dir.path().join("all.cpp");
    std::fs::write(&source, format!("#include \"infc.h\"\nint main() {{\n  void *volatile p;\n{takes}  return 0;\n}}\n"))
        .unwrap();
    build("c++", source.to_str().unwrap(), &dir.path().join("all"), true);
    succeed(&mut Command::new(dir.path().join("all")));
}

#[test]
fn the_shared_library_is_small() {
    let bytes = std::fs::metadata(libraries().join("libinfc_runtime.so")).unwrap().len();
    println!("libinfc_runtime.so: {bytes} bytes, at most {LIMIT}");
    assert!(bytes <= LIMIT, "libinfc_runtime.so has {bytes} bytes, at most {LIMIT} are allowed");
}
