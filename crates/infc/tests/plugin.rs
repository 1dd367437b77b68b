//! Backends outside of infc: the same code as by one inside, and what a program does wrong is told.
#![cfg(all(feature = "llvm", unix, target_arch = "x86_64"))]

mod tool;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tool::check;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const MACHINE: &str = include_str!("../../../targets/cpu-llvm/machines/x86-64-v2.toml");

fn example(name: &str) -> PathBuf {
    Path::new(ROOT).join("examples/models").join(name)
}

/// Runs infc; what it prints.
#[track_caller]
fn infc(args: &[&str], exit: i32) -> String {
    check(args, exit, &[])
}

/// A machine file like that of x86-64-v2, with a plugin.
fn machine(dir: &tempfile::TempDir, command: &[&str], more: &str) -> String {
    let text =
        MACHINE.replace("name = \"x86-64-v2\"", "name = \"x86-64-v2-acme\"").replace("backend = \"llvm\"", "backend = \"acme\"");
    let words: Vec<String> = command.iter().map(|w| format!("{w:?}")).collect();
    let path = dir.path().join("acme.toml");
    fs::write(&path, format!("{text}[plugin]\ncommand = [{}]\n{more}", words.join(", "))).expect("writable");
    path.to_string_lossy().into_owned()
}

#[test]
fn code_by_a_plugin_is_that_of_its_backend() {
    let dir = tempfile::tempdir().expect("a folder");
    for backend in ["llvm", "cranelift"] {
        let file = machine(&dir, &[env!("CARGO_BIN_EXE_infc"), "emit", "--backend", backend], "");
        let inside = if backend == "llvm" { "x86-64-v2" } else { "cranelift-x86-64" };
        for name in ["digits_mlp", "glyphs_cnn", "language_gru", "snippets_transformer"] {
            let folder = example(name).to_string_lossy().into_owned();
            let text = infc(&["verify", &folder, "--target", &file], 0);
            assert!(text.contains("1 passed"), "{text}");
            let bisected = infc(&["verify", &folder, "--target", &file, "--bisect"], 0);
            assert!(bisected.contains("1 passed"), "{bisected}");
            let asm = |target: &str| {
                let out = dir.path().join("x.s").to_string_lossy().into_owned();
                infc(&["compile", &format!("{folder}/model.onnx"), "--emit", "asm", "--target", target, "-o", &out], 0);
                fs::read_to_string(out).expect("written")
            };
            // The machine file is that of LLVM.
            if backend == "llvm" {
                assert_eq!(asm(&file), asm(inside), "{name}");
            }
        }
    }
    // A variant beside those of infc itself.
    let file = machine(&dir, &[env!("CARGO_BIN_EXE_infc"), "emit", "--backend", "llvm"], "");
    let (model, out) = (example("digits_mlp").join("model.onnx"), dir.path().join("both.infc"));
    let (model, out) = (model.to_string_lossy().into_owned(), out.to_string_lossy().into_owned());
    infc(&["compile", &model, "--cpu", &format!("{file},x86-64-v3"), "-o", &out], 0);
    assert!(infc(&["inspect", &out], 0).contains("x86-64-v2-acme"));
    assert!(infc(&["run", &out, "--cpu", "x86-64-v2-acme"], 0).contains("logits"));
}

#[test]
fn a_plugin_beside_its_machine_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a folder");
    let script = dir.path().join("codegen");
    fs::write(&script, format!("#!/bin/sh\nexec {} emit --backend llvm\n", env!("CARGO_BIN_EXE_infc"))).expect("writable");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("ours");
    let file = machine(&dir, &["./codegen"], "seconds = 60\n");
    assert!(infc(&["verify", &example("digits_mlp").to_string_lossy(), "--target", &file], 0).contains("1 passed"));
}

#[test]
fn what_a_plugin_does_wrong_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = example("digits_mlp").join("model.onnx").to_string_lossy().into_owned();
    let out = dir.path().join("out.infc").to_string_lossy().into_owned();
    let told = |command: &[&str], more: &str, words: &[&str]| {
        let file = machine(&dir, command, more);
        let text = infc(&["compile", &model, "--target", &file, "-o", &out], 3);
        assert!(text.contains("target 'x86-64-v2-acme'"), "{command:?}: {text}");
        assert!(words.iter().all(|w| text.contains(w)), "{command:?}: {text}");
        assert!(!Path::new(&out).exists(), "nothing half-written");
    };
    told(&[], "", &["the command is empty", "[plugin]"]);
    told(&["/nowhere/codegen"], "", &["cannot be started"]);
    told(&["./codegen"], "", &["cannot be started", &dir.path().join("codegen").to_string_lossy()]);
    told(&["false"], "", &["ended with exit status: 1"]);
    told(&["true"], "", &["is no JSON object"]);
    told(&["echo", "{}"], "", &["missing field `version`"]);
    told(&["echo", r#"{"version": 7}"#], "", &["answers with version 7, this compiler knows 1"]);
    told(&["echo", r#"{"version": 1}"#], "", &["neither problems nor all of image", "a fault of the plugin"]);
    told(&["echo", r#"{"version": 1, "image": "00", "entries": [0], "scratch": [0]}"#], "", &["kernels were asked for"]);
    let problem = r#"{"version": 1, "problems": [{"at": "kernel 'Gemm'", "message": "no loops here", "help": "ask acme"}]}"#;
    told(&["echo", problem], "", &["kernel 'Gemm'", "no loops here", "ask acme"]);
    told(&[env!("CARGO_BIN_EXE_infc"), "emit", "--backend", "pdp11"], "", &["no backend 'pdp11'"]);
    let begin = Instant::now();
    told(&["sleep", "100"], "seconds = 1\n", &["gave no answer in 1 s", "`seconds`"]);
    told(&["sh", "-c", "echo; exec 1>&-; exec sleep 100"], "seconds = 1\n", &["gave no answer in 1 s"]);
    assert!(begin.elapsed().as_secs() < 60, "it is not waited for");
    // Keys that there are not.
    let file = machine(&dir, &["true"], "second = 1\n");
    assert!(infc(&["compile", &model, "--target", &file], 3).contains("second"));
    let text = infc(&["verify", &model, "--backend", "plugin"], 2);
    assert!(text.contains("has no plugin") && text.contains("--target FILE.toml"), "{text}");
    let file = machine(&dir, &["true"], "");
    let text = infc(&["compile", &model, "--target", &file, "--emit", "obj", "--dim", "batch=1", "-o", &out], 3);
    assert!(text.contains("plugins make code for artifacts"), "{text}");
}
