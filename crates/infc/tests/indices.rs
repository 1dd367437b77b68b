//! Indices outside of the data at run time: interpreter and compiled code stop with an error that names the node.

use infc::Options;
use infc::engine::{Backend, prepare};
use infc_ir::interp::Item;
use infc_ir::{Tensor, text};

/// The error of every backend for these inputs; the same graph runs with `good` instead of the last input.
fn fails(op: &str, body: &str, inputs: &[Tensor], good: Tensor) {
    let text = format!("graph \"g\" {{ source 0 \"node\" \"{op}\" 13 region ({body} }} }}");
    let graph = text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let options = Options::native().expect("a known machine");
    let items = |inputs: &[Tensor]| -> Vec<Item> { inputs.iter().cloned().map(Item::Tensor).collect() };
    let mut right = inputs.to_vec();
    *right.last_mut().expect("an input") = good;
    for &backend in Backend::ALL {
        let mut engine = prepare(graph.clone(), backend, &options).unwrap_or_else(|e| panic!("{op}: {e}"));
        let error = engine.run(&items(inputs)).expect_err(op).to_string();
        assert!(error.contains("'node'"), "{op} by {}: {error}", backend.name());
        engine.run(&items(&right)).unwrap_or_else(|e| panic!("{op} by {}: {e}", backend.name()));
    }
}

fn floats(dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    Tensor::from_vec(dims, (0..n).map(|i| i as f32).collect::<Vec<f32>>())
}

fn index(dims: &[usize], values: &[i64]) -> Tensor {
    Tensor::from_vec(dims, values.to_vec())
}

#[test]
fn gathers() {
    let gather = "%0: f32[n, 2] \"x\", %1: i64[m] \"i\") { %2: f32[m, 2] \"y\" = Gather(%0, %1) from [0] yield %2";
    for bad in [3, -4, i64::MAX, i64::MIN] {
        fails("Gather", gather, &[floats(&[3, 2]), index(&[2], &[0, bad])], index(&[2], &[0, -3]));
    }
    let elements = "%0: f32[n, 2] \"x\", %1: i64[m, 2] \"i\") { %2: f32[m, 2] \"y\" = GatherElements(%0, %1) from [0] yield %2";
    for bad in [3, -4] {
        fails("GatherElements", elements, &[floats(&[3, 2]), index(&[1, 2], &[0, bad])], index(&[1, 2], &[0, 2]));
    }
    let nd = "%0: f32[n, 2] \"x\", %1: i64[m, 2] \"i\") { %2: f32[m] \"y\" = GatherND(%0, %1) from [0] yield %2";
    for bad in [2, -3] {
        fails("GatherND", nd, &[floats(&[3, 2]), index(&[1, 2], &[0, bad])], index(&[1, 2], &[2, 1]));
    }
}

#[test]
fn scatters() {
    let elements = "%0: f32[n] \"x\", %1: f32[m] \"u\", %2: i64[m] \"i\") {
        %3: f32[n] \"y\" = ScatterElements(%0, %2, %1) from [0] yield %3";
    let nd = "%0: f32[n] \"x\", %1: f32[m] \"u\", %2: i64[m, 1] \"i\") {
        %3: f32[n] \"y\" = ScatterND(%0, %2, %1) from [0] yield %3";
    for bad in [4, -5, i64::MAX] {
        let given = [floats(&[4]), floats(&[2])];
        fails("ScatterElements", elements, &[given.to_vec(), vec![index(&[2], &[1, bad])]].concat(), index(&[2], &[1, 3]));
        fails("ScatterND", nd, &[given.to_vec(), vec![index(&[2, 1], &[1, bad])]].concat(), index(&[2, 1], &[1, 3]));
    }
    let cache = "%0: f32[1, 4, 2] \"x\", %1: f32[1, 2, 2] \"u\", %2: i64[1] \"i\") {
        %3: f32[1, 4, 2] \"y\" = TensorScatter(%0, %1, %2) from [0] yield %3";
    for bad in [3, -1] {
        fails("TensorScatter", cache, &[floats(&[1, 4, 2]), floats(&[1, 2, 2]), index(&[1], &[bad])], index(&[1], &[2]));
    }
    let unpool = "%0: f32[1, 1, 1, 2] \"x\", %1: i64[1, 1, 1, 2] \"i\") {
        %2: f32[1, 1, 2, 4] \"y\" = MaxUnpool(%0, %1) {kernel_shape = [2, 2], strides = [2, 2]} from [0] yield %2";
    for bad in [8, -1] {
        let wrong = index(&[1, 1, 1, 2], &[0, bad]);
        fails("MaxUnpool", unpool, &[floats(&[1, 1, 1, 2]), wrong], index(&[1, 1, 1, 2], &[0, 7]));
    }
}

#[test]
fn classes_and_batches() {
    for reduction in ["none", "sum", "mean"] {
        for op in ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"] {
            let dims = if reduction == "none" { "[n]" } else { "[]" };
            let loss = format!(
                "%0: f32[n, 3] \"x\", %1: i64[n] \"t\") {{
                %2: f32{dims} \"y\" = {op}(%0, %1) {{ignore_index = -7, reduction = \"{reduction}\"}} from [0] yield %2"
            );
            for bad in [3, -1, i64::MAX] {
                fails(op, &loss, &[floats(&[2, 3]), index(&[2], &[2, bad])], index(&[2], &[-7, 2]));
            }
        }
    }
    let align = "%0: f32[n, 1, 4, 4] \"x\", %1: f32[m, 4] \"r\", %2: i64[m] \"i\") {
        %3: f32[m, 1, 1, 1] \"y\" = RoiAlign(%0, %1, %2) {sampling_ratio = 2} from [0] yield %3";
    for bad in [2, -1] {
        let regions = Tensor::from_vec([2, 4], vec![0.0f32, 0.0, 3.0, 3.0, 1.0, 1.0, 2.0, 2.0]);
        fails("RoiAlign", align, &[floats(&[2, 1, 4, 4]), regions, index(&[2], &[1, bad])], index(&[2], &[1, 0]));
    }
}

#[test]
fn lengths_and_conditions() {
    let reverse = "%0: f32[t, b] \"x\", %1: i64[b] \"lens\") { %2: f32[t, b] \"y\" = ReverseSequence(%0, %1) from [0] yield %2";
    fails("ReverseSequence", reverse, &[floats(&[3, 2]), index(&[2], &[3, 4])], index(&[2], &[3, 1]));
    let compress = "%0: f32[n] \"x\", %1: bool[m] \"c\") { %2: f32[k] \"y\" = Compress(%0, %1) {axis = 0} from [0] yield %2";
    let graph =
        text::parse(&format!("graph \"g\" {{ source 0 \"node\" \"Compress\" 11 region ({compress} }} }}")).expect("a graph");
    let bytes = infc_onnx::export(&graph).expect("a model");
    let graph = infc_onnx::import_bytes(bytes.into(), None).expect("the same model");
    let options = Options::native().expect("a known machine");
    for &backend in Backend::ALL {
        let run = |condition: &[bool]| {
            let inputs = [floats(&[2]), Tensor::from_bools([condition.len()], condition)].map(Item::Tensor);
            prepare(graph.clone(), backend, &options).and_then(|mut e| e.run(&inputs)).map_err(|e| e.to_string())
        };
        run(&[true]).expect("a shorter condition");
        let error = run(&[true, false, true]).expect_err("a longer condition");
        assert!(error.contains("must not be longer"), "{}: {error}", backend.name());
    }
}

#[test]
fn columns_of_features() {
    let columns = "%0: f32[n, 3] \"x\", %1: i64[1, m] \"i\") {
        %2: f32[n, m] \"y\" = ai.onnx.ml:ArrayFeatureExtractor(%0, %1) from [0] yield %2";
    for bad in [3, -1] {
        fails("ArrayFeatureExtractor", columns, &[floats(&[2, 3]), index(&[1, 2], &[0, bad])], index(&[1, 2], &[0, 2]));
    }
}
