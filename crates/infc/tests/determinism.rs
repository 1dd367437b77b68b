//! The same model gives the same bytes, and an artifact the same outputs with any number of threads: bit for bit, for the example
//! models (in processes of their own) and for real ones, where there are any.
#![cfg(feature = "llvm")]

mod tool;

use infc::cases::{self, Case};
use infc::engine::{Engine, Native};
use infc_ir::interp::Item;
use infc_runtime::Model;
use std::fs;
use tool::kit::shared_models;
use tool::*;

/// The outputs of the first data set (or of made-up inputs) with each number of threads.
fn outputs(case: &Case, artifact: &[u8]) -> Vec<Vec<Item>> {
    let graph = infc_onnx::import(&case.model).expect("imports");
    let inputs: Vec<Item> = match case.sets.first() {
        Some(set) => set.read_inputs(&graph).expect("readable"),
        None => {
            let random = infc::inputs::Source::Random(1);
            let made = |&v: &infc_ir::Value| {
                infc::inputs::make(&random, &graph.value(v).name, graph.ty(v), &Default::default()).expect("a tensor")
            };
            graph.inputs().iter().map(made).collect()
        }
    };
    let model = Model::from_bytes(artifact).expect("loads");
    let run = |threads: usize| {
        let options = infc_runtime::Options { threads: Some(threads), ..infc_runtime::Options::default() };
        Native::new(model.clone(), options).expect("a session").run(&inputs).expect("runs")
    };
    [1, 2, 3].map(run).into()
}

fn bits(items: &[Item]) -> Vec<(Vec<usize>, Vec<u8>)> {
    items.iter().filter_map(Item::as_tensor).map(|t| (t.dims.clone(), t.bytes().to_vec())).collect()
}

#[track_caller]
fn same(case: &Case, artifacts: [&[u8]; 2]) {
    assert!(artifacts[0] == artifacts[1], "{}: two compilations differ", case.name);
    let runs: Vec<_> = outputs(case, artifacts[0]).iter().map(|o| bits(o)).collect();
    assert!(!runs[0].is_empty(), "{}: no outputs", case.name);
    assert!(runs[0] == runs[1] && runs[0] == runs[2], "{}: threads change the outputs", case.name);
}

#[test]
fn example_models() {
    let dir = Folder::new();
    let found = cases::find(&examples()).expect("models");
    assert_eq!(found.len(), 4);
    for case in &found {
        let model = case.model.display().to_string();
        let compiled = ["a.infc", "b.infc"].map(|name| {
            check(&["compile", &model, "-o", &dir.path(name)], 0, &[]);
            fs::read(dir.path(name)).expect("written")
        });
        same(case, [&compiled[0], &compiled[1]]);
    }
}

#[test]
fn real_models() {
    let options = infc::Options::native().expect("this machine is supported");
    let compile =
        |path: &std::path::Path| infc::compile_file(path, &options).unwrap_or_else(|p| panic!("{p}")).artifact.to_bytes();
    for path in shared_models() {
        let folder = path.parent().expect("a folder");
        let case = cases::find(folder).expect("a model").remove(0);
        let compiled = [compile(&path), compile(&path)];
        same(&case, [&compiled[0], &compiled[1]]);
    }
}
