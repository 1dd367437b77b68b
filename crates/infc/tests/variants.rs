//! Artifacts with code for several CPUs: what they hold, which variant runs, and what is told where none can.
#![cfg(feature = "llvm")]

mod tool;

use infc::target;
use infc_artifact::container::{Artifact, Requirements, Variant};
use infc_artifact::encode::encode;
use infc_artifact::program::Program;
use infc_runtime::variant;
use serde_json::Value;
use std::fs;
use tool::*;

const ALL: &str = "x86-64-v3,x86-64-v4-vnni,x86-64-v2,x86-64-v4";
/// The order in which a computer tries them.
const ORDER: [&str; 4] = ["x86-64-v4-vnni", "x86-64-v4", "x86-64-v3", "x86-64-v2"];

fn json(args: &[&str]) -> Value {
    let out = infc(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

fn model(name: &str) -> String {
    examples().join(name).join("model.onnx").display().to_string()
}

/// Can this computer run code for a machine?
fn runs_here(name: &str) -> bool {
    variant::check(&target::requirements(&target::find(name).expect("a machine"))).is_ok()
}

/// The one of all that this computer runs.
fn best() -> &'static str {
    ORDER.into_iter().find(|name| runs_here(name)).expect("this machine is supported")
}

/// A machine that no computer is: one maker's CPUs have one feature, another maker's the other.
fn nobody(dir: &Folder, name: &str) -> String {
    let text = format!(
        "name = \"{name}\"\nbackend = \"llvm\"\ndoc = \"\"\narch = \"x86_64\"\nfeatures = [\"sse2\", \"sse4a\", \"amx-tile\"]\nvector_bytes = 16\n\
         vector_registers = 16\nfma = false\nl1_bytes = 32768\nl2_bytes = 262144\nl3_bytes = 1048576\n"
    );
    dir.write(&format!("{name}.toml"), text)
}

#[test]
fn one_artifact_has_code_for_all_and_weights_once() {
    let dir = Folder::new();
    let (model, out) = (model("glyphs_cnn"), dir.path("all.infc"));
    check(&["compile", &model, "--cpu", ALL, "-o", &out], 0, &[&ORDER.join(", ")]);
    let told = json(&["inspect", &out, "--check", "--json"]);
    let variants = told["variants"].as_array().expect("a list");
    let names: Vec<&str> = variants.iter().map(|v| v["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ORDER);
    for v in variants {
        let name = v["name"].as_str().expect("a name");
        assert_eq!(v["chosen"], name == best(), "{name}");
        assert_eq!(v["refused"].is_null(), runs_here(name), "{name}");
        assert!(v["code_bytes"].as_u64() > Some(0) && v["constant_bytes"].as_u64() > Some(0), "{v}");
    }
    let sum = |key: &str| variants.iter().map(|v| v[key].as_u64().expect("a number")).sum::<u64>();
    let stored = told["constant_bytes"].as_u64().expect("a number");
    let slack = 64 * 100; // each constant begins at a multiple of 64
    assert!(stored < sum("constant_bytes") * 3 / 4 + slack && stored > sum("own_constant_bytes"), "{told}");
    // Without integers these two have the same kernels.
    assert_eq!((&variants[0]["own_constant_bytes"], &variants[1]["own_constant_bytes"]), (&0.into(), &0.into()));
    let chosen = format!("variant '{}': runs here", best());
    check(&["inspect", &out], 0, &[&chosen, "uses", "of them alone"]);
}

#[test]
fn the_order_of_names_does_not_matter() {
    let (dir, model) = (Folder::new(), model("digits_mlp"));
    let bytes = [ALL.to_owned(), ORDER.join(",")].map(|cpus| {
        check(&["compile", &model, "--cpu", &cpus, "-o", &dir.path("o.infc")], 0, &[]);
        fs::read(dir.path("o.infc")).expect("written")
    });
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn each_variant_gives_what_the_model_means() {
    let dir = Folder::new();
    for name in ["digits_mlp", "glyphs_cnn"] {
        let (model, folder, out) = (model(name), examples().join(name).display().to_string(), dir.path("all.infc"));
        check(&["compile", &model, "--cpu", ALL, "-o", &out], 0, &[]);
        // Stored outputs, and the interpreter on made-up inputs.
        for path in [&folder, &model] {
            check(&["verify", path, "--artifact", &out], 0, &["1 passed, 0 failed"]);
            for cpu in ORDER {
                let args = ["verify", path, "--artifact", &out, "--cpu", cpu];
                let (exit, parts) = if runs_here(cpu) { (0, "1 passed, 0 failed") } else { (3, "this CPU lacks") };
                check(&args, exit, &[parts]);
            }
        }
    }
    let out = dir.path("all.infc");
    for cpu in ORDER.into_iter().filter(|c| runs_here(c)) {
        assert_eq!(json(&["bench", &out, "--seconds", "0", "--json", "--cpu", cpu])["variant"], cpu);
        check(&["run", &out, "--cpu", cpu], 0, &["f32[1, "]);
    }
    for more in [&[][..], &["--cpu", "native"]] {
        let args = [&["bench", &out, "--seconds", "0", "--json"], more].concat();
        assert_eq!(json(&args)["variant"], best());
    }
    // Another model's artifact.
    let other = model("digits_mlp");
    check(&["verify", &other, "--artifact", &out], 1, &["expected f32[batch, 1, 28, 28], given f32[1, 64]"]);
    let sum = dir.model(&add());
    check(&["verify", &sum, "--artifact", &out], 1, &["the artifact: its inputs are input, those of the model x"]);
    check(&["verify", &examples().display().to_string(), "--artifact", &out], 2, &["runs one model, 4 were found"]);
    check(&["verify", &other, "--artifact", &out, "--backend", "llvm"], 2, &["cannot be used with"]);
}

#[test]
fn models_are_run_for_the_best_of_the_named_cpus() {
    let (dir, model) = (Folder::new(), model("digits_mlp"));
    let list = format!("x86-64-v2,{}", nobody(&dir, "nobody"));
    check(&["run", &model, "--cpu", &list], 0, &["logits"]);
    assert_eq!(json(&["bench", &model, "--seconds", "0", "--json", "--cpu", &list])["variant"], "x86-64-v2");
    let limits = json(&["profile", &model, "--seconds", "0", "--json", "--cpu", &list]);
    assert_eq!(limits["limits"]["target"], "x86-64-v2");
    check(&["verify", &model, "--backend", "llvm", "--cpu", &list], 0, &["1 passed"]);
}

#[test]
fn cpus_that_cannot_be_named_together() {
    let (dir, model) = (Folder::new(), model("digits_mlp"));
    let told = |cpus: &str, parts: &[&str]| {
        let args = ["compile", &model, "--cpu", cpus, "-o", &dir.path("o.infc")];
        check(&args, 2, parts)
    };
    told("x86-64-v3,x86-64-v3", &["'x86-64-v3' is given twice", "name each CPU once"]);
    told("x86-64-v3,,x86-64-v4", &["a name is empty", "known: native, x86-64-v2"]);
    told("x86-64-v3,x86-64-v5", &["'x86-64-v5'", "no such target", "did you mean 'x86-64-v", "known: native"]);
    told("X86-64-V3", &["did you mean 'x86-64-v3'?"]);
    let text = told("avx9,pdp11", &["'avx9'", "'pdp11'", "2 problems"]);
    assert!(!text.contains("did you mean"), "{text}");
    told("c99,x86-64-v3", &["'c99' is no CPU", "--target c99"]);
    let native = target::native().expect("this machine is supported").name;
    told(&format!("{native},native"), &[&format!("'native' (which is '{native}' here) is given twice")]);
    check(&["compile", &model, "--target", "x86-64-v3,x86-64-v4"], 2, &["no such target"]);
    for emit in ["obj", "staticlib", "sharedlib", "exe", "asm", "loops"] {
        let args = ["compile", &model, "--cpu", "x86-64-v3,x86-64-v4", "--emit", emit, "--dim", "batch=1"];
        check(
            &args,
            2,
            &[&format!("--emit {emit} is code for one machine"), "2 were named", "--emit infc", "--target x86-64-v3"],
        );
    }
    assert_eq!(dir.files(), Vec::<String>::new());
}

#[test]
fn what_a_cpu_lacks_is_told_before_code_runs() {
    let (dir, model, out) = (Folder::new(), model("digits_mlp"), Folder::new());
    let (nobody, noone) = (nobody(&dir, "nobody"), nobody(&dir, "noone"));
    let out = out.path("out.infc");
    // Compiled for others, which is allowed; run here, which is not.
    check(&["compile", &model, "--cpu", &format!("x86-64-v2,{nobody}"), "-o", &out], 0, &["x86-64-v2, nobody"]);
    check(&["run", &out], 0, &["logits"]);
    check(&["run", &out, "--cpu", "x86-64-v2"], 0, &["logits"]);
    for command in ["run", "bench"] {
        check(&[command, &out, "--cpu", "nobody"], 3, &["variant 'nobody': this CPU lacks", "requires sse2, sse4a, amx-tile"]);
        check(&[command, &out, "--cpu", "x86-64-v3"], 2, &["no variant 'x86-64-v3'; the artifact has 'x86-64-v2', 'nobody'"]);
        check(&[command, &out, "--cpu", "x86-64-v2,nobody"], 2, &["one variant at a time"]);
        check(&[command, &out, "--math", "bf16"], 2, &["this is an artifact"]);
        check(&[command, &model, "--cpu", &nobody], 3, &[&format!("--cpu {nobody}"), "this CPU lacks", "leave it out"]);
    }
    check(&["inspect", &out], 0, &["variant 'nobody': cannot run here: this CPU lacks", "variant 'x86-64-v2': runs here"]);
    check(&["profile", &out, "--seconds", "0"], 0, &["steps in", "says neither nodes nor plans"]);

    check(&["compile", &model, "--cpu", &format!("{nobody},{noone}"), "-o", &out], 0, &[]);
    let parts =
        ["none of the 2 variants", "'nobody': this CPU lacks", "'noone': this CPU lacks", "this CPU is x86_64 with", "sse2"];
    check(&["run", &out], 3, &parts);
    check(&["run", &model, "--cpu", &format!("{nobody},{noone}")], 3, &parts);
    check(&["compile", &model, "--cpu", &nobody, "-o", &out], 0, &[]);
    check(&["run", &out], 3, &["this CPU lacks", "requires sse2, sse4a, amx-tile", "--cpu native"]);
    check(&["inspect", &out], 0, &["cannot run here"]);
}

#[test]
fn damaged_variants_are_refused() {
    let dir = Folder::new();
    let variant = |name: &str, program: Vec<u8>| Variant {
        requirements: Requirements {
            name: name.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            features: vec![],
            host: None,
        },
        program,
        code: vec![],
        host_code: vec![],
    };
    let file = |name: &str, variants: &[Variant]| dir.write(name, Artifact { variants, ..Artifact::default() }.to_bytes());
    let good = encode(&Program::default());
    let twice = file("twice.infc", &[variant("a", good.clone()), variant("a", good.clone())]);
    for command in ["run", "bench", "inspect"] {
        check(&[command, &twice], 3, &["twice.infc", "two variants have the same name"]);
    }
    // The one that runs is whole, the other one is not.
    let wrong = Program { arena: Some(1), threads: Some(u32::MAX), ..Program::default() };
    let half = file("half.infc", &[variant("a", good.clone()), variant("b", encode(&wrong))]);
    check(&["inspect", &half], 0, &["variant 'b'"]);
    check(&["inspect", &half, "--check"], 1, &["the program of variant 'b' is malformed", "threads"]);
    check(&["bench", &half, "--seconds", "0", "--cpu", "b"], 3, &["malformed", "threads"]);
    let cut = file("cut.infc", &[variant("a", good.clone()), variant("b", good[..good.len() - 1].to_vec())]);
    check(&["inspect", &cut], 3, &["the program is damaged"]);
    check(&["run", &cut, "--cpu", "b"], 3, &["malformed"]);
}

#[test]
fn numbers_of_threads_have_a_limit_and_no_other_meaning() {
    let dir = Folder::new();
    let (model, out) = (model("digits_mlp"), dir.path("out.infc"));
    check(&["compile", &model, "-o", &out, "--threads", "0"], 0, &[]);
    check(&["inspect", &out], 0, &["threads: one for each CPU"]);
    let cpus = std::thread::available_parallelism().expect("a number").get();
    let threads = |args: &[&str]| json(&[&["bench", &out, "--seconds", "0", "--json"], args].concat())["threads"].as_u64();
    assert_eq!(threads(&[]), Some(cpus as u64));
    assert_eq!(threads(&["--threads", "0"]), Some(cpus as u64));
    let many = (cpus + 3).to_string();
    check(&["compile", &model, "-o", &out, "--threads", &many], 0, &[]);
    assert_eq!(threads(&[]), Some(cpus as u64 + 3));
    let outputs = [["--threads", "1"], ["--threads", &many]].map(|more| infc(&[&["run", &out][..], &more].concat()));
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    let told = String::from_utf8_lossy(&outputs[1].stderr);
    assert!(told.contains(&format!("note: {many} threads take turns on {cpus} CPUs")), "{told}");
    for command in ["run", "bench", "profile"] {
        check(&[command, &model, "--threads", "1025"], 2, &["1025", "0..=1024"]);
        check(&[command, &model, "--threads=-1"], 2, &["--threads", "0..=1024"]);
    }
}

#[test]
fn bench_tells_where_memory_goes() {
    let dir = Folder::new();
    let (model, out) = (model("digits_mlp"), dir.path("out.infc"));
    check(&["compile", &model, "-o", &out, "--cpu", ALL], 0, &[]);
    let told = json(&["bench", &out, "--seconds", "0", "--json"]);
    let bytes = |key: &str| told[key].as_u64().unwrap_or_else(|| panic!("no {key} in {told}"));
    let inspected = json(&["inspect", &out, "--json"]);
    let chosen = inspected["variants"].as_array().expect("a list").iter().find(|v| v["chosen"] == true).expect("one of them");
    assert_eq!(chosen["constant_bytes"].as_u64(), Some(bytes("weights")));
    assert!(bytes("arena") > 0 && bytes("held") > 0);
    // The process, what the model needs, and code that is called for the first time.
    let needed = bytes("weights") + bytes("arena") + bytes("scratch") + bytes("held");
    assert!(bytes("peak_rss") > bytes("base_rss"), "{told}");
    assert!(bytes("peak_rss") <= bytes("base_rss") + needed + 6_000_000, "{told}");
    check(&["bench", &out, "--seconds", "0"], 0, &["peak memory", "weights", "arena"]);
}
