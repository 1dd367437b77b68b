//! The command line in a folder of its own, and small models for it.
#![allow(dead_code)] // each test file uses its part

pub mod fake;
#[path = "../../../onnx/tests/kit/mod.rs"]
pub mod kit;
#[cfg(feature = "llvm")]
pub mod net;

use infc_ir::Tensor;
use infc_onnx::proto::{ModelProto, StringStringEntryProto, TensorProto};
use kit::*;
use prost::Message;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models")
}

pub fn infc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_infc")).args(args).output().expect("the command line runs")
}

/// The same with a variable of the environment.
pub fn infc_where((name, value): (&str, &str), args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_infc")).args(args).env(name, value).output().expect("the command line runs")
}

/// Runs, checks the exit code and that the output (both streams) has all parts.
#[track_caller]
pub fn check(args: &[&str], exit: i32, parts: &[&str]) -> String {
    let out = infc(args);
    let text = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert_eq!(out.status.code(), Some(exit), "{args:?}\n{text}");
    parts.iter().for_each(|p| assert!(text.contains(p), "{args:?}: '{p}' is not in:\n{text}"));
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// A folder for one test, with a model in it.
pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), bytes).expect("writable");
        self.path(name)
    }
    pub fn model(&self, m: &ModelProto) -> String {
        self.write("model.onnx", m.encode_to_vec())
    }
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("readable").flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Compiling this model is refused with these words, and leaves nothing behind.
#[track_caller]
pub fn refused(m: &ModelProto, parts: &[&str]) {
    let dir = Folder::new();
    let model = dir.model(m);
    check(&["compile", &model, "-o", &dir.path("out.infc")], 3, &[&["error"], parts].concat());
    assert_eq!(dir.files(), ["model.onnx"]);
}

pub fn add() -> ModelProto {
    let w = constant("w", &Tensor::from_vec([3], vec![1f32, 2.0, 3.0]));
    model(17, graph(&["x f32[n, 3]"], vec![node("y = Add(x, w)", [])], &["y f32[n, 3]"], vec![w]))
}

/// An external tensor `w` in `location`.
pub fn external(location: &str) -> ModelProto {
    let entry = StringStringEntryProto { key: Some("location".into()), value: Some(location.into()) };
    let w = TensorProto {
        name: Some("w".into()),
        dims: vec![3],
        data_type: Some(1),
        data_location: Some(1),
        external_data: vec![entry],
        ..TensorProto::default()
    };
    model(17, graph(&["x f32[n, 3]"], vec![node("y = Add(x, w)", [])], &["y f32[n, 3]"], vec![w]))
}

pub fn npy(t: &Tensor) -> Vec<u8> {
    infc::npy::write(t).expect("NumPy has this dtype")
}
