//! Small graphs in which steps meet in a way that one of them alone does not: each link of the chain against the graph interpreter.

#![cfg(feature = "llvm")]

mod tool;

use infc_ir::Tensor;
use infc_onnx::proto::{GraphProto, NodeProto};
use tool::kit::*;
use tool::*;

/// All links give what the interpreter gives.
fn agrees(graph: GraphProto) {
    let dir = Folder::new();
    let path = dir.model(&model(21, graph));
    for backend in ["passes", "loops", "llvm", "c", "ptx"] {
        if cfg!(not(feature = "ptx")) && backend == "ptx" {
            continue;
        }
        check(&["verify", &path, "--backend", backend], 0, &["1 passed, 0 failed"]);
    }
}

fn random(dims: &[usize], seed: usize) -> Tensor {
    let count = dims.iter().product::<usize>();
    Tensor::from_vec(dims.to_vec(), (0..count).map(|k| ((k * 37 + seed * 11) % 23) as f32 / 11.5 - 1.0).collect())
}

#[test]
fn what_reads_the_weights_twice_is_no_attention() {
    // A residual of the weights, and weights as values: the steps between are read by the last one in two ways.
    for last in ["y = MatMul(p, t)", "y = MatMul(p, q)"] {
        let nodes = vec![
            node("s = MatMul(x, w)", []),
            node("p = Softmax(s)", []),
            node("t = Transpose(p)", []),
            node("q = Mul(p, c)", []),
            node(last, []),
        ];
        let consts = vec![constant("w", &random(&[16, 16], 1)), constant("c", &Tensor::from_vec(vec![1], vec![2f32]))];
        agrees(graph(&["x f32[16, 16]"], nodes, &["y f32[16, 16]"], consts));
    }
    let nodes =
        vec![node("s = MatMul(x, w)", []), node("p = Softmax(s)", []), node("m = MatMul(p, v)", []), node("y = Add(m, p)", [])];
    let consts = vec![constant("w", &random(&[16, 16], 2)), constant("v", &random(&[16, 16], 3))];
    agrees(graph(&["x f32[16, 16]"], nodes, &["y f32[16, 16]"], consts));
}

#[test]
fn heads_that_products_broadcast_are_no_shared_heads() {
    // Batch and heads of queries, keys and values; MatMul broadcasts each pair by itself.
    let cases: [[[usize; 2]; 3]; 8] = [
        [[1, 2], [1, 1], [1, 2]],
        [[1, 2], [1, 2], [1, 1]],
        [[2, 2], [2, 2], [1, 2]],
        [[2, 2], [1, 2], [2, 2]],
        [[1, 1], [1, 2], [1, 2]],
        [[1, 1], [1, 1], [1, 2]],
        [[1, 2], [2, 2], [2, 2]],
        // All heads share one: this is attention.
        [[1, 2], [1, 1], [1, 1]],
    ];
    for [q, k, v] in cases {
        let nodes: Vec<NodeProto> = vec![
            node("kt = Transpose(k)", [ints("perm", &[0, 1, 3, 2])]),
            node("s = MatMul(q, kt)", []),
            node("n = Mul(s, c)", []),
            node("p = Softmax(n)", [int("axis", -1)]),
            node("y = MatMul(p, v)", []),
        ];
        let port = |name: &str, [b, h]: [usize; 2], rows: usize| format!("{name} f32[{b}, {h}, {rows}, 4]");
        let inputs = [port("q", q, 3), port("k", k, 5), port("v", v, 5)];
        let outer = |i: usize| q[i].max(k[i]).max(v[i]);
        let out = format!("y f32[{}, {}, 3, 4]", outer(0), outer(1));
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        agrees(graph(&inputs, nodes, &[&out], vec![constant("c", &Tensor::from_vec(vec![1], vec![0.5f32]))]));
    }
}

#[test]
fn a_choice_between_a_value_and_itself() {
    let nodes =
        vec![node("a = Softmax(x)", []), node("w = Where(c, a, a)", []), node("b = Neg(w)", []), node("y = Add(b, a)", [])];
    agrees(graph(&["x f32[3, 5]", "c bool[3, 5]"], nodes, &["y f32[3, 5]"], vec![]));
}

#[test]
fn parts_of_what_has_no_elements() {
    let nodes = vec![
        node("a = Slice(x, zero, zero, zero)", []),
        node("b = Neg(a)", []),
        node("y = Concat(b, w, a)", [int("axis", -1)]),
        node("z = Slice(y, one, five, one)", []),
    ];
    let number = |name: &str, n: i64| constant(name, &Tensor::from_vec(vec![1], vec![n]));
    let empty = constant("w", &Tensor::from_vec(vec![0, 2], Vec::<f32>::new()));
    let consts = vec![empty, number("zero", 0), number("one", 1), number("five", 5)];
    agrees(graph(&["x f32[3, 2]"], nodes, &["y f32[0, 6]", "z f32[0, 4]"], consts));
}

#[test]
fn rows_that_end_behind_whole_vectors_overwrite_nothing() {
    // The last vector of a row has one element, of 8 or 16 bits, made of a truncated integer: one byte (or two) is stored, not four.
    for (width, channels, dtype) in [(9, 8, "i8"), (17, 17, "u8"), (33, 5, "u8"), (9, 17, "u16"), (17, 4, "i16")] {
        let zero = match dtype {
            "i8" => Tensor::from_vec(vec![], vec![3i8]),
            "u8" => Tensor::from_vec(vec![], vec![3u8]),
            "i16" => Tensor::from_vec(vec![], vec![3i16]),
            _ => Tensor::from_vec(vec![], vec![3u16]),
        };
        let consts = vec![
            constant("w", &random(&[channels, 2, 3, 3], channels)),
            constant("scale", &Tensor::from_vec(vec![], vec![0.04f32])),
            constant("zero", &zero),
        ];
        let nodes = vec![node("c = Conv(x, w)", [ints("pads", &[1, 1, 1, 1])]), node("y = QuantizeLinear(c, scale, zero)", [])];
        let (x, y) = (format!("x f32[1, 2, 7, {width}]"), format!("y {dtype}[1, {channels}, 7, {width}]"));
        agrees(graph(&[&x], nodes, &[&y], consts));
    }
}

#[test]
fn sizes_that_nobody_can_address_are_refused() {
    let dir = Folder::new();
    let huge = 1i64 << 62;
    let nodes = || vec![node("y = Relu(x)", [])];
    let large = format!("f32[1, {huge}, 24]");
    let path = dir.model(&model(17, graph(&[&format!("x {large}")], nodes(), &[&format!("y {large}")], vec![])));
    check(&["compile", &path, "-o", &dir.path("o.infc")], 3, &["input 'x'", "more elements than can be addressed"]);
    let path = dir.model(&model(17, graph(&["x f32[n, 24]"], nodes(), &["y f32[n, 24]"], vec![])));
    check(
        &["compile", &path, "-o", &dir.path("o.infc"), "--dim", &format!("n={huge}")],
        3,
        &["more elements than can be addressed"],
    );
    let turned = vec![node("y = Transpose(x)", [ints("perm", &[-1, 0])])];
    let path = dir.model(&model(17, graph(&["x f32[2, 3]"], turned, &["y f32[3, 2]"], vec![])));
    check(&["compile", &path, "-o", &dir.path("o.infc")], 3, &["perm [-1, 0] is no permutation of 2 axes"]);
    assert_eq!(dir.files(), ["model.onnx"]);
}
