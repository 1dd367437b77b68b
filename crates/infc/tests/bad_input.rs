//! Bad files and options on the command line: each is a clear error with its own exit code, and nothing half-written stays.
//! More of them, one for each kind, are in `cli.rs`.

mod tool;

use infc_artifact::container::{Artifact, Requirements, Variant};
use infc_artifact::encode::encode;
use infc_artifact::program::Program;
use infc_ir::Tensor;
use infc_onnx::proto::StringStringEntryProto;
use prost::Message;
use std::fs;
use tool::kit::*;
use tool::*;

/// The commands that read a model, with what they add to their arguments.
const READERS: [(&str, &[&str]); 6] = [
    ("compile", &["-o", "out.infc"]),
    ("run", &[]),
    ("bench", &[]),
    ("inspect", &[]),
    ("convert", &["out.onnx"]),
    ("verify", &[]),
];

#[test]
fn every_command_refuses_a_damaged_model_and_says_where() {
    let dir = Folder::new();
    let bytes = fs::read(examples().join("digits_mlp/model.onnx")).expect("readable");
    let cut = dir.write("cut.onnx", &bytes[..5000]);
    for (command, more) in READERS {
        let more: Vec<String> = more.iter().map(|m| if m.starts_with("out") { dir.path(m) } else { (*m).to_owned() }).collect();
        let args: Vec<&str> = [command, &cut].into_iter().chain(more.iter().map(String::as_str)).collect();
        let exit = if command == "verify" { 1 } else { 3 };
        check(&args, exit, &["cut.onnx", "5000 bytes: at offset 25: a field takes", "truncated"]);
    }
    assert_eq!(dir.files(), ["cut.onnx"]);
}

#[test]
fn all_problems_of_a_model_at_once() {
    let nodes = vec![
        node("a = Frobnicate(x)", []),
        node("b = MatMul(x, x)", []),
        node("c = Exp(i)", []),
        node("d = Add(x, gone)", []),
        node("y = Sum(a, b, c, d)", []),
    ];
    let m = model(17, graph(&["x f32[2, 3]", "i i32[3]"], nodes, &["y f32[2, 3]"], vec![]));
    let parts = ["Frobnicate 'n_a' (opset 17)", "MatMul 'n_b'", "Exp 'n_c'", "i32", "Add 'n_d'", "'gone'", "4 problems"];
    refused(&m, &parts);
    let dir = Folder::new();
    check(&["convert", &dir.model(&m), &dir.path("out.onnx")], 3, &parts);
    assert_eq!(dir.files(), ["model.onnx"]);
}

#[test]
fn external_data_that_is_too_short_or_leads_out() {
    let mut m = external("weights.bin");
    let dir = Folder::new();
    let (model, out) = (dir.model(&m), dir.path("out.infc"));
    dir.write("weights.bin", [0u8; 8]);
    check(&["compile", &model, "-o", &out], 3, &["initializer 'w'", "weights.bin", "12"]);
    let entry = StringStringEntryProto { key: Some("offset".into()), value: Some("-4".into()) };
    m.graph.as_mut().expect("there").initializer[0].external_data.push(entry);
    dir.model(&m);
    check(&["compile", &model, "-o", &out], 3, &["initializer 'w'", "offset"]);
    fs::remove_file(dir.path("weights.bin")).expect("there");
    fs::create_dir(dir.path("weights.bin")).expect("writable");
    check(&["compile", &dir.model(&external("weights.bin")), "-o", &out], 3, &["initializer 'w'", "weights.bin"]);
    #[cfg(unix)]
    {
        let (elsewhere, here) = (Folder::new(), Folder::new());
        let secret = elsewhere.write("secret.bin", [0u8; 12]);
        std::os::unix::fs::symlink(secret, here.path("weights.bin")).expect("a link");
        check(&["compile", &here.model(&external("weights.bin")), "-o", &out], 3, &["weights.bin", "folder"]);
    }
    assert_eq!(dir.files(), ["model.onnx", "weights.bin"]);
}

#[test]
#[cfg(feature = "llvm")]
fn results_are_whole_or_as_they_were() {
    let dir = Folder::new();
    let (good, out) = (dir.model(&add()), dir.path("out.infc"));
    check(&["compile", &good, "-o", &out], 0, &[]);
    let before = fs::read(&out).expect("written");
    let bad = dir.write("bad.onnx", b"\x08\x08");
    check(&["compile", &bad, "-o", &out], 3, &["bad.onnx"]);
    check(&["compile", &good, "-o", &good], 2, &["is the model itself"]);
    assert_eq!(fs::read(&out).expect("still there"), before);
    check(&["compile", &good, "-o", &dir.path("")], 4, &["directory"]);
    check(&["run", &out, "--output-dir", &good], 4, &["model.onnx"]);
    assert_eq!(dir.files(), ["bad.onnx", "model.onnx", "out.infc"]);
    // A device is written to, not replaced.
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        check(&["compile", &good, "-o", "/dev/null"], 0, &[]);
        check(&["convert", &good, "/dev/null"], 0, &[]);
        assert!(fs::metadata("/dev/null").expect("there").file_type().is_char_device());
    }
}

#[test]
fn artifacts_for_other_machines_are_refused() {
    let dir = Folder::new();
    let artifact = |arch: &str, features: &[&str]| {
        let features = features.iter().map(|f| (*f).to_owned()).collect();
        let requirements = Requirements { name: "it".to_owned(), arch: arch.to_owned(), features, host: None };
        let variants = [Variant { requirements, program: encode(&Program::default()), code: vec![], host_code: vec![] }];
        Artifact { manifest: &[], variants: &variants, constants: &[], debug: &[] }.to_bytes()
    };
    let other = dir.write("other.infc", artifact("s390x", &[]));
    let newer = dir.write("newer.infc", artifact(std::env::consts::ARCH, &["hyper512"]));
    for command in ["run", "bench"] {
        check(&[command, &other], 3, &["other.infc", "for s390x", "compile the model for this machine"]);
        check(&[command, &newer], 3, &["newer.infc", "this CPU lacks hyper512"]);
    }
}

#[test]
#[cfg(feature = "llvm")]
fn inputs_that_do_not_fit_are_refused() {
    let dir = Folder::new();
    let g = graph(&["x f32[n, 3]", "i i64[n]"], vec![node("y = Gather(x, i)", [])], &["y f32[n, 3]"], vec![]);
    let (model, out) = (dir.model(&model(17, g)), dir.path("out.infc"));
    check(&["compile", &model, "-o", &out], 0, &[]);
    let x = format!("x={}", dir.write("x.npy", npy(&Tensor::from_vec([2, 3], vec![1f32; 6]))));
    let i = |t: &Tensor| format!("i={}", dir.write("i.npy", npy(t)));
    let run = |i: &str, exit: i32, parts: &[&str]| {
        check(&["run", &out, "--input", &x, "--input", i], exit, parts);
    };
    run(&i(&Tensor::from_ints(&[0, 1])), 0, &["y: f32[2, 3]"]);
    run(&i(&Tensor::from_ints(&[0, 1, 1])), 3, &["'i'", "dim 0 is 3", "2"]);
    run(&i(&Tensor::from_vec([2], vec![0i32, 1])), 3, &["'i'", "i32", "i64"]);
    let proto = infc_onnx::write_tensor_proto("i", &Tensor::from_ints(&[0, 1]));
    run(&format!("i={}", dir.write("i.pb", &proto)), 0, &["y: f32[2, 3]"]);
    run(&format!("i={}", dir.write("i.pb", &proto[..proto.len() / 2])), 3, &["i.pb"]);
    run(&format!("i={}", dir.write("i.txt", "0 1")), 3, &["i.txt"]);
}

#[test]
fn damaged_artifacts_name_the_offset() {
    let dir = Folder::new();
    let program = encode(&Program::default());
    let variants = [Variant { program, ..Variant::default() }];
    let good = Artifact { manifest: &[], variants: &variants, constants: &[&[7; 100]], debug: &[] }.to_bytes();
    check(&["inspect", &dir.write("good.infc", &good), "--check"], 0, &["all digests match"]);
    for n in [0, 10, 64, good.len() - 1] {
        check(
            &["run", &dir.write("cut.infc", &good[..n])],
            3,
            &["cut.infc", "truncated", "at offset", "compile the model again"],
        );
    }
    let at = good.windows(100).position(|w| w == [7; 100]).expect("constants");
    let mut changed = good;
    changed[at] = 8;
    check(&["inspect", &dir.write("changed.infc", &changed), "--check"], 1, &["changed.infc", "constants at offset"]);
}

#[test]
fn unknown_names_are_told_with_what_there_is() {
    let dir = Folder::new();
    let model = dir.write("model.onnx", add().encode_to_vec());
    check(&["compile", &model, "--dim", "n=-1"], 2, &["n=-1"]);
    check(&["compile", &model, "--dim", "n=1", "--dim", "m=2", "-o", &dir.path("o")], 3, &["dim 'm'", "it has n"]);
    check(&["convert", &model, &dir.path("o.onnx"), "--dim", "m=2"], 3, &["dim 'm'"]);
    assert_eq!(dir.files(), ["model.onnx"]);
}
