//! Machine code by Cranelift from the command line: what is compiled and run, what is printed, and what is refused.
#![cfg(feature = "cranelift")]

mod tool;

use infc::target;
use infc_runtime::variant;
use tool::*;

fn model(name: &str) -> String {
    examples().join(name).join("model.onnx").display().to_string()
}

/// The best of the backend's machines that this computer is.
fn machine() -> String {
    target::default_of("cranelift").expect("a machine").name
}

/// Can this computer run code for it?
fn runs_here(name: &str) -> bool {
    variant::check(&target::requirements(&target::find(name).expect("a machine"))).is_ok()
}

#[test]
fn trained_models_give_the_outputs_of_the_interpreter() {
    check(&["--version"], 0, &["cranelift"]);
    check(&["targets"], 0, &["cranelift-x86-64 ", "cranelift-x86-64-v3", "cranelift-aarch64"]);
    for name in ["digits_mlp", "glyphs_cnn", "snippets_transformer"] {
        check(&["verify", &model(name), "--backend", "cranelift"], 0, &["1 passed, 0 failed"]);
    }
    for name in ["cranelift-x86-64", "cranelift-x86-64-v3"].into_iter().filter(|name| runs_here(name)) {
        check(&["verify", &model("glyphs_cnn"), "--cpu", name], 0, &["1 passed, 0 failed"]);
        check(&["verify", &model("digits_mlp"), "--backend", "cranelift", "--cpu", name, "--bisect"], 0, &["1 passed, 0 failed"]);
    }
}

#[test]
fn artifacts_for_several_cpus_have_code_of_both_generators() {
    let (dir, name) = (Folder::new(), machine());
    let out = dir.path("out.infc");
    let mut cpus = vec!["cranelift-aarch64".to_owned(), name.clone()];
    if cfg!(feature = "llvm") {
        cpus.push("x86-64-v2".to_owned());
    }
    check(&["compile", &model("digits_mlp"), "--cpu", &cpus.join(","), "-o", &out], 0, &["cranelift-aarch64", &name]);
    if runs_here(&name) {
        check(&["verify", &model("digits_mlp"), "--artifact", &out, "--cpu", &name], 0, &["1 passed"]);
    }
}

#[test]
fn kernels_are_printed() {
    let (model, name) = (model("digits_mlp"), machine());
    check(
        &["compile", &model, "--cpu", &name, "--emit", "clif"],
        0,
        &["function u0:0(i64, i64, i64, i64, i64) -> i64", "return"],
    );
    check(&["compile", &model, "--cpu", "cranelift-x86-64-v3", "--emit", "asm"], 0, &["vfmadd213ps"]);
    check(&["compile", &model, "--cpu", "cranelift-aarch64", "--emit", "asm"], 0, &["fmla"]);
    check(&["compile", &model, "--cpu", &name, "--emit", "llvm-ir"], 3, &["known kinds: clif, asm"]);
}

#[test]
fn what_there_is_not_is_told() {
    let (dir, model) = (Folder::new(), model("digits_mlp"));
    let out = dir.path("out.o");
    check(&["compile", &model, "--cpu", &machine(), "--emit", "obj", "-o", &out], 3, &["--dim batch="]);
    let words = ["is of the c backend", "--backend cranelift runs"];
    check(&["verify", &model, "--backend", "cranelift", "--target", "c99"], 2, &words);
    let board = "name = \"board\"\nbackend = \"cranelift\"\ndoc = \"\"\narch = \"riscv64\"\nfeatures = []\nvector_bytes = 16\n\
                 vector_registers = 32\nfma = true\nl1_bytes = 32768\nl2_bytes = 1\nl3_bytes = 1\n";
    let machine = dir.write("board.toml", board);
    check(&["compile", &model, "--target", &machine], 3, &["riscv64", "x86_64 and aarch64"]);
}
