//! `infc prune`, `distill` and `optimize` from outside: what they write, and what they refuse.

mod tool;

use std::fs;
use tool::*;

#[test]
fn a_recipe_gives_the_same_bytes_again() {
    let dir = Folder::new();
    let examples = examples().join("digits_mlp");
    let data = examples.join("eval.npz").display().to_string();
    let recipe = dir.write(
        "recipe.toml",
        format!(
            "[[step]]\ncommand = \"prune\"\nsparsity = 0.4\ndata = {data:?}\nsamples = 64\n\n[[step]]\ncommand = \"quantize\"\n\
             data = {data:?}\nsamples = 32\n"
        )
        .as_bytes(),
    );
    let model = examples.join("model.onnx").display().to_string();
    let run = |name: &str| {
        let (out, report) = (dir.path(&format!("{name}.onnx")), dir.path(&format!("{name}.json")));
        check(
            &["optimize", &model, "--recipe", &recipe, "-o", &out, "--report", &report],
            0,
            &["step 2 of 2 done", "all steps: ", "smaller than"],
        );
        (fs::read(&out).unwrap(), fs::read_to_string(&report).unwrap())
    };
    let ((a, report), (b, _)) = (run("a"), run("b"));
    assert!(a == b, "the same recipe gave other bytes");
    assert!(report.contains("\"prune\"") && report.contains("\"quantize\""));
}

#[test]
fn recipes_that_make_no_sense() {
    let dir = Folder::new();
    let model = examples().join("digits_mlp/model.onnx").display().to_string();
    let ask = |text: &str, want: &[&str]| {
        let recipe = dir.write("recipe.toml", text.as_bytes());
        check(&["optimize", &model, "--recipe", &recipe, "-o", &dir.path("out.onnx")], 3, want);
    };
    ask("", &["has no steps"]);
    ask("[[step]]\nsparsity = 0.5\n", &["step 1", "has no command"]);
    ask("[[step]]\ncommand = \"prune\"\n\n[[step]]\ncommand = \"melt\"\n", &["step 2", "melt"]);
    ask("[[step]]\ncommand = \"prune\"\nsparsty = 0.5\n", &["step 1: prune has no option 'sparsty'", "options are sparsity"]);
    ask("[[step]\n", &["recipe.toml"]);
    ask("[[step]]\ncommand = \"quantize\"\nscheme = \"foo\"\n", &["step 1: invalid value 'foo'", "static, dynamic, int8"]);
    // All steps are checked before the first runs.
    let second = |more: &str| format!("[[step]]\ncommand = \"quantize\"\n\n[[step]]\ncommand = \"prune\"\n{more}\n");
    ask(&second("sparsity = 1.5"), &["step 2: prune: sparsity 1.5"]);
    let recipe = dir.write("gone.toml", second("data = \"gone.npz\"").as_bytes());
    check(&["optimize", &model, "--recipe", &recipe, "-o", &dir.path("out.onnx")], 4, &["step 2", "gone.npz"]);
    check(&["optimize", &model, "--recipe", &recipe, "-o", &dir.path("gone/out.onnx")], 4, &["out.onnx"]);
    assert!(!dir.files().contains(&"out.onnx".to_owned()));
}

#[test]
fn pruning_and_distilling_a_trained_model() {
    let dir = Folder::new();
    let examples = examples().join("digits_mlp");
    let (model, data) = (examples.join("model.onnx").display().to_string(), examples.join("eval.npz").display().to_string());
    let (out, folder) = (dir.path("out.onnx"), dir.path("student"));
    check(
        &["prune", &model, "--sparsity", "0.5", "--data", &data, "--samples", "64", "-o", &out],
        0,
        &["multiply-accumulates", "latency", "SQNR", "accuracy"],
    );
    check(&["prune", &model, "--sparsity", "0.9999", "-o", &dir.path("none.onnx")], 3, &["cannot be reached", "ask for at most"]);
    check(&["prune", &model, "--sparsity", "2", "-o", &dir.path("none.onnx")], 3, &["sparsity 2"]);
    check(&["prune", &model, "--kind", "knots", "-o", &dir.path("none.onnx")], 2, &["unstructured, block, 2:4, channel"]);
    check(&["distill", &model, "--ratio", "0.25", "-o", &folder], 0, &["student with"]);
    for file in ["teacher.onnx", "student.onnx", "teacher.py", "student.py", "distill.json"] {
        assert!(fs::metadata(format!("{folder}/{file}")).is_ok_and(|m| m.len() > 500), "{file}");
    }
    check(&["distill", &model, "--ratio", "1", "-o", &folder], 3, &["ratio 1"]);
    check(&["distill", &model, "--widths", "odd", "-o", &folder], 2, &["fitted, even"]);
    assert!(!dir.files().contains(&"none.onnx".to_owned()));
}
