//! Older forms of operators mean what they meant: which operators they become, and what those compute.

mod kit;
use infc_ir::{DType, Graph, Tensor, interp};
use infc_onnx::proto::{AttributeProto, TensorProto};
use kit::*;

type Attributes = Vec<AttributeProto>;

/// One node of an older operator set on `f32` data counting from 1, with constants; what it becomes and what comes out.
fn check(opset: i64, call: &str, attrs: Attributes, x: &str, constants: Vec<TensorProto>, becomes: &str, expected: &[f32]) {
    let g = graph(&[x], vec![node(call, attrs)], &["y f32[?]"], constants);
    let g = import(&model(opset, g)).unwrap_or_else(|p| panic!("{call} ({opset}): {p}"));
    let names: Vec<_> = g.region(Graph::MAIN).nodes.iter().map(|&n| g.node(n).op.name()).collect();
    assert_eq!(names.join(" "), becomes, "{call} ({opset})");
    let dims = g.ty(g.inputs()[0]).as_tensor().and_then(|t| t.known_dims()).expect("known dims");
    let count: usize = dims.iter().product();
    let input = Tensor::from_vec(dims, (1..=count).map(|i| i as f32).collect());
    let got = interp::run_tensors(&g, &[input]).unwrap_or_else(|p| panic!("{call} ({opset}): {p}"));
    let got: Vec<f64> = (0..got[0].len()).map(|i| got[0].float(i)).collect();
    let close = got.len() == expected.len() && got.iter().zip(expected).all(|(a, &b)| (a - f64::from(b)).abs() < 1e-4);
    assert!(close, "{call} ({opset}): {got:?}, expected {expected:?}");
    // What was raised leaves and comes back unchanged.
    let bytes = infc_onnx::export(&g).unwrap_or_else(|p| panic!("{call} ({opset}): {p}"));
    let again = infc_onnx::import_bytes(bytes.into(), None).unwrap_or_else(|p| panic!("{call} ({opset}): {p}"));
    same(&g, &again).unwrap_or_else(|e| panic!("{call} ({opset}): {e}"));
}

fn f(name: &str, dims: &[usize], v: &[f32]) -> TensorProto {
    constant(name, &Tensor::from_vec(dims, v.to_vec()))
}

#[test]
fn attributes_became_operands() {
    check(11, "y = Squeeze(x)", vec![ints("axes", &[0])], "x f32[1, 2]", vec![], "Squeeze", &[1.0, 2.0]);
    check(11, "y = Unsqueeze(x)", vec![ints("axes", &[0])], "x f32[2]", vec![], "Unsqueeze", &[1.0, 2.0]);
    check(11, "y = ReduceSum(x)", vec![ints("axes", &[1])], "x f32[2, 2]", vec![], "ReduceSum", &[3.0, 7.0]);
    check(17, "y = ReduceMean(x)", vec![ints("axes", &[-1])], "x f32[2, 2]", vec![], "ReduceMean", &[1.5, 3.5]);
    check(17, "y = ReduceMean(x)", vec![], "x f32[2, 2]", vec![], "ReduceMean", &[2.5]);
    check(6, "y = Clip(x)", vec![float("min", 1.5), float("max", 2.5)], "x f32[3]", vec![], "Clip", &[1.5, 2.0, 2.5]);
    check(10, "y = Clip(x)", vec![float("max", 2.5)], "x f32[3]", vec![], "Clip", &[1.0, 2.0, 2.5]);
    let pads = vec![ints("pads", &[1, 0]), float("value", 9.0)];
    check(10, "y = Pad(x)", pads, "x f32[2]", vec![], "Pad", &[9.0, 1.0, 2.0]);
    let slice = vec![ints("starts", &[1]), ints("ends", &[-1]), ints("axes", &[0])];
    check(9, "y = Slice(x)", slice, "x f32[4]", vec![], "Slice", &[2.0, 3.0]);
    check(9, "y, i = TopK(x)", vec![int("k", 2)], "x f32[3]", vec![], "TopK", &[3.0, 2.0]);
    check(7, "y = Dropout(x)", vec![float("ratio", 0.5)], "x f32[2]", vec![], "Dropout", &[1.0, 2.0]);
    check(12, "y, z = Split(x)", vec![ints("split", &[1, 2])], "x f32[3]", vec![], "Split", &[1.0]);
    check(13, "y, z = Split(x)", vec![], "x f32[4]", vec![], "Split", &[1.0, 2.0]);
    check(4, "y = Reshape(x)", vec![ints("shape", &[2, -1])], "x f32[4]", vec![], "Reshape", &[1.0, 2.0, 3.0, 4.0]);
    let (tiles, axis) = (f("t", &[], &[2.0]), f("a", &[], &[1.0]));
    check(5, "y = Tile(x, t, a)", vec![], "x f32[1, 2]", vec![tiles, axis], "Tile", &[1.0, 2.0, 1.0, 2.0]);
}

#[test]
fn meanings_changed() {
    check(12, "y = Softmax(x)", vec![], "x f32[1, 2, 1]", vec![], "Softmax", &[0.26894, 0.73106]);
    let flat: Vec<f32> = vec![0.0320586, 0.0871443, 0.2368828, 0.6439143];
    check(12, "y = Softmax(x)", vec![], "x f32[1, 2, 2]", vec![], "Flatten Softmax Reshape", &flat);
    check(12, "y = Hardmax(x)", vec![int("axis", 0)], "x f32[2, 2]", vec![], "Flatten Hardmax Reshape", &[0.0, 0.0, 0.0, 1.0]);
    let b = || f("b", &[2], &[10.0, 20.0]);
    let legacy = vec![int("broadcast", 1), int("axis", 0)];
    check(6, "y = Add(x, b)", legacy, "x f32[2, 2]", vec![b()], "Add", &[11.0, 12.0, 23.0, 24.0]);
    check(6, "y = Add(x, b)", vec![int("broadcast", 1)], "x f32[2, 2]", vec![b()], "Add", &[11.0, 22.0, 13.0, 24.0]);
    check(5, "y = Cast(x)", vec![string("to", "FLOAT")], "x f32[2]", vec![], "Cast", &[1.0, 2.0]);
    let slope = f("s", &[2], &[0.5, 2.0]);
    check(6, "y = PRelu(x, s)", vec![], "x f32[1, 2, 1]", vec![slope], "PRelu", &[1.0, 2.0]);
    // Each element of a sample has its own statistics.
    let (ones, zeros) = (|n: &str| f(n, &[1, 2], &[1.0, 1.0]), |n: &str| f(n, &[1, 2], &[0.0, 0.0]));
    let mean = f("m", &[1, 2], &[1.0, 0.0]);
    let norm = vec![int("spatial", 0), float("epsilon", 0.0)];
    let parts = vec![ones("s"), zeros("b"), mean, ones("v")];
    check(7, "y = BatchNormalization(x, s, b, m, v)", norm, "x f32[1, 1, 2]", parts, "Add Sqrt Div Sub Mul Add", &[0.0, 2.0]);
    let parts = vec![f("s", &[1], &[2.0]), f("b", &[1], &[1.0])];
    let becomes = "Expand Reshape Expand Reshape GroupNormalization";
    check(18, "y = GroupNormalization(x, s, b)", vec![int("num_groups", 1)], "x f32[1, 2, 1]", parts, becomes, &[-1.0, 3.0]);
}

#[test]
fn resampling_came_in_four_forms() {
    let twice = || f("s", &[3], &[1.0, 1.0, 2.0]);
    let wide = [1.0, 1.0, 2.0, 2.0];
    check(8, "y = Upsample(x)", vec![floats("scales", &[1.0, 1.0, 2.0])], "x f32[1, 1, 2]", vec![], "Resize", &wide);
    check(9, "y = Upsample(x, s)", vec![], "x f32[1, 1, 2]", vec![twice()], "Resize", &wide);
    check(10, "y = Resize(x, s)", vec![], "x f32[1, 1, 2]", vec![twice()], "Resize", &wide);
    let linear = || vec![string("mode", "linear")];
    check(10, "y = Resize(x, s)", linear(), "x f32[1, 1, 2]", vec![twice()], "Resize", &[1.0, 1.5, 2.0, 2.0]);
    let empty = f("r", &[0], &[]);
    check(11, "y = Resize(x, r, s)", linear(), "x f32[1, 1, 2]", vec![empty, twice()], "Resize", &[1.0, 1.25, 1.75, 2.0]);
    // floor((i + 0.5) / 1.5) of operator sets 11 and 12.
    let half = vec![string("coordinate_transformation_mode", "tf_half_pixel_for_nn"), string("nearest_mode", "floor")];
    let (empty, more) = (f("r", &[0], &[]), f("s", &[3], &[1.0, 1.0, 1.5]));
    check(11, "y = Resize(x, r, s)", half, "x f32[1, 1, 4]", vec![empty, more], "Resize", &[1.0, 2.0, 2.0, 3.0, 4.0, 4.0]);
}

#[test]
fn what_is_out_of_range_of_4_bits_depends_on_the_version() {
    let to = |d: DType| vec![int("to", d.onnx().into())];
    let back = |opset: i64, d: DType, becomes: &str, expected: &[f32]| {
        let nodes = vec![node("i = Cast(x)", to(d)), node("y = Cast(i)", to(DType::F32))];
        let g = import(&model(opset, graph(&["x f32[4]"], nodes, &["y f32[?]"], vec![]))).expect("imports");
        let names: Vec<_> = g.region(Graph::MAIN).nodes.iter().map(|&n| g.node(n).op.name()).collect();
        assert_eq!(names.join(" "), becomes, "{d} ({opset})");
        let got = interp::run_tensors(&g, &[Tensor::from_vec([4], vec![-20.0f32, 5.0, 9.0, 100.0])]).expect("runs");
        assert_eq!(got[0].to_vec::<f32>(), expected, "{d} ({opset})");
    };
    back(21, DType::I4, "Clip Cast Cast", &[-8.0, 5.0, 7.0, 7.0]);
    back(22, DType::U4, "Clip Cast Cast", &[0.0, 5.0, 9.0, 15.0]);
    back(23, DType::I4, "Cast Cast", &[-4.0, 5.0, -7.0, 4.0]);
    back(21, DType::I8, "Cast Cast", &[-20.0, 5.0, 9.0, 100.0]);
}

#[test]
fn operators_of_onnx_runtime() {
    let b = || f("b", &[2, 2], &[1.0, 0.0, 0.0, 2.0]);
    let attrs = vec![float("alpha", 2.0), int("transB", 1), int("transA", 1)];
    check(
        13,
        "y = com.microsoft:FusedMatMul(x, b)",
        attrs,
        "x f32[2, 2]",
        vec![b()],
        "Transpose Mul Transpose MatMul",
        &[2.0, 12.0, 4.0, 16.0],
    );
    let attrs = vec![string("activation", "Relu")];
    check(13, "y = com.microsoft:FusedGemm(x, b)", attrs, "x f32[1, 2]", vec![b()], "Gemm Relu", &[1.0, 4.0]);
    let w = f("w", &[1, 1, 1], &[-1.0]);
    let attrs = vec![string("activation", "LeakyRelu"), floats("activation_params", &[0.5])];
    check(13, "y = com.microsoft:FusedConv(x, w)", attrs, "x f32[1, 1, 2]", vec![w], "Conv LeakyRelu", &[-0.5, -1.0]);
    let bias = f("b", &[2], &[-1.0, -2.0]);
    check(13, "y = com.microsoft:BiasGelu(x, b)", vec![], "x f32[2]", vec![bias], "Add Gelu", &[0.0, 0.0]);
    check(13, "y = com.microsoft:QuickGelu(x)", vec![float("alpha", 0.0)], "x f32[2]", vec![], "Swish", &[0.5, 1.0]);
    let (skip, gamma) = (f("k", &[1, 2], &[0.0, 1.0]), f("g", &[2], &[1.0, 1.0]));
    let call = "y = com.microsoft:SkipLayerNormalization(x, k, g)";
    check(13, call, vec![], "x f32[1, 2]", vec![skip, gamma], "Add LayerNormalization", &[-1.0, 1.0]);
}
