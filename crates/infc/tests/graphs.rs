//! Small graphs in which steps meet in a way that one of them alone does not: each link of the chain against the graph interpreter.

#![cfg(feature = "llvm")]

mod tool;

use infc_ir::Tensor;
use infc_onnx::proto::{GraphProto, NodeProto, TensorProto, TypeProto, type_proto};
use tool::kit::*;
use tool::*;

/// All links give what the interpreter gives.
fn agrees(graph: GraphProto) {
    agrees_for(graph, &[""], true);
}

/// The same for each of these sizes; C code takes no models with sequences and optionals.
fn agrees_for(graph: GraphProto, dims: &[&str], c: bool) {
    let dir = Folder::new();
    let path = dir.model(&model(21, graph));
    for backend in ["passes", "loops", "llvm", "cranelift", "c", "ptx"] {
        let missing =
            cfg!(not(feature = "ptx")) && backend == "ptx" || cfg!(not(feature = "cranelift")) && backend == "cranelift";
        if missing || !c && backend == "c" {
            continue;
        }
        for dim in dims {
            let given: &[&str] = if dim.is_empty() { &[] } else { &["--dim", dim] };
            check(&[&["verify", &path, "--backend", backend], given].concat(), 0, &["1 passed", "0 failed"]);
        }
    }
}

fn number(name: &str, n: i64) -> TensorProto {
    constant(name, &Tensor::from_vec(vec![1], vec![n]))
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

#[test]
fn sizes_that_data_tells_may_be_nothing() {
    // The first of what is found, all of it backwards, and what broadcasts with it; nothing is found where n is 0.
    let nodes = vec![
        node("found = NonZero(x)", []),
        node("f = Squeeze(found, zero)", []),
        node("y = Slice(f, zero, one)", []),
        node("z = Slice(f, last, far, zero, last)", []),
        node("w = Expand(f, two)", []),
    ];
    let two = constant("two", &Tensor::from_vec(vec![2], vec![2i64, 1]));
    let consts = vec![number("zero", 0), number("one", 1), number("last", -1), number("far", i64::MIN), two];
    let outs = ["y i64[a]", "z i64[b]", "w i64[2, c]"];
    agrees_for(graph(&["x f32[n]"], nodes, &outs, consts), &["n=0", "n=1", "n=3", "n=70"], true);
}

#[test]
fn sums_of_one_number_and_rows_of_nothing() {
    agrees(graph(&["x f32[]"], vec![node("y = ReduceSum(x)", [])], &["y f32[]"], vec![]));
    let nodes = vec![node("y = Concat(x, x, z)", [int("axis", 1)])];
    agrees_for(graph(&["x f32[n, 1, 2]", "z f32[n, 3, 2]"], nodes, &["y f32[n, 5, 2]"], vec![]), &["n=0", "n=2"], true);
}

#[test]
fn a_size_that_folding_makes_known() {
    // The range has three elements, which inference knows only when its ends are folded; the other part stays as long as data says.
    let nodes = vec![
        node("from = Cast(low)", [int("to", 1)]),
        node("r = Range(from, end, step)", []),
        node("found = NonZero(x)", []),
        node("f = Squeeze(found, zero)", []),
        node("g = Cast(f)", [int("to", 1)]),
        node("y = Concat(g, r, x)", [int("axis", 0)]),
    ];
    let scalar = |name: &str, v: f32| constant(name, &Tensor::from_vec(vec![], vec![v]));
    let low = constant("low", &Tensor::from_vec(vec![], vec![1i64]));
    let consts = vec![low, scalar("end", 2.5), scalar("step", 0.5), number("zero", 0)];
    agrees_for(graph(&["x f32[n]"], nodes, &["y f32[m]"], consts), &["n=0", "n=4"], true);
}

#[test]
fn slices_have_the_sizes_of_the_branch_that_is_taken() {
    // The condition is known when it is folded; the branches differ in their sizes.
    let nodes = vec![
        node("cond = Cast(low)", [int("to", 9)]),
        node(
            "s = If(cond)",
            [
                body("then_branch", graph(&[], vec![node("p = Neg(w)", [])], &["p f32[3, 4]"], vec![])),
                body("else_branch", graph(&[], vec![node("q = Neg(x)", [])], &["q f32[n, 2]"], vec![])),
            ],
        ),
        node(
            "y = Scan(s)",
            [
                int("num_scan_inputs", 1),
                body("body", graph(&["e f32[p]"], vec![node("l = Shape(e)", [])], &["l i64[1]"], vec![])),
            ],
        ),
    ];
    let consts = vec![constant("low", &Tensor::from_vec(vec![], vec![1i64])), constant("w", &random(&[3, 4], 1))];
    agrees_for(graph(&["x f32[n, 2]"], nodes, &["y i64[a, 1]"], consts), &["n=2"], true);
}

#[test]
fn a_condition_is_of_the_sizes_before_a_turn() {
    // The value has no elements after the first turn; that the sum is not 0 is said of what it was before.
    let nodes = vec![
        node("s2 = Slice(s, zero, zero)", []),
        node("sum = ReduceSum(s)", [int("keepdims", 0)]),
        node("go = Less(none, sum)", []),
        node("out = Identity(sum)", []),
    ];
    let step = graph(&["i i64[]", "c bool[]", "s f32[p]"], nodes, &["go bool[]", "s2 f32[q]", "out f32[]"], vec![]);
    let nodes = vec![node("a = Abs(x)", []), node("b = Add(a, a)", []), node("u, v = Loop(rounds, , b)", [body("body", step)])];
    let rounds = constant("rounds", &Tensor::from_vec(vec![], vec![4i64]));
    let none = constant("none", &Tensor::from_vec(vec![], vec![0f32]));
    agrees_for(
        graph(&["x f32[n]"], nodes, &["u f32[a]", "v f32[b]"], vec![rounds, none, number("zero", 0)]),
        &["n=0", "n=5"],
        false,
    );
}

#[test]
fn sizes_of_inputs_that_may_not_be_nothing_are_told() {
    let dir = Folder::new();
    let consts = || vec![number("zero", 0), number("one", 1)];
    let first = graph(&["x f32[n]"], vec![node("y = Slice(x, zero, one)", [])], &["y f32[m]"], consts());
    let path = dir.model(&model(21, first));
    check(&["verify", &path, "--dim", "n=0"], 1, &["Slice", "needs an axis that is not empty"]);
    check(&["verify", &path, "--dim", "n=2"], 0, &["1 passed"]);
}

#[test]
fn an_axis_of_one_may_be_broadcast_to_nothing() {
    let dir = Folder::new();
    let nodes = vec![
        node("a = Add(x, z)", []),
        node("b = Mul(a, x)", []),
        node("c = Where(f, b, z)", []),
        node("y = MatMul(c, w)", []),
        node("s = ReduceSum(c, zero)", []),
    ];
    let inputs = ["x f32[n, 3]", "z f32[m, 3]", "f bool[k, 1]", "w f32[3, 2]"];
    let path = dir.model(&model(21, graph(&inputs, nodes, &["y f32[i, 2]", "s f32[1, 3]"], vec![number("zero", 0)])));
    for [n, m, k] in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 1], [4, 1, 4], [1, 4, 1]] {
        let dims = [format!("n={n}"), format!("m={m}"), format!("k={k}")];
        check(&["verify", &path, "--dim", &dims[0], "--dim", &dims[1], "--dim", &dims[2]], 0, &["1 passed"]);
    }
    check(&["verify", &path, "--dim", "n=0", "--dim", "m=2", "--dim", "k=1"], 1, &["Add", "must broadcast"]);
}

#[test]
fn what_is_a_part_of_something_without_a_bound_has_none() {
    // Four numbers a box, of as many as data says: their count is a quarter of what nothing bounds.
    let nodes = vec![
        node("t = Abs(k)", []),
        node("r = Mod(t, three)", []),
        node("m = Mul(r, four)", []),
        node("s = Slice(x, zero, m)", []),
        node("b = Reshape(s, boxes)", []),
        node("a = ReduceSum(b, two)", [int("keepdims", 0)]),
        node("p = Unsqueeze(a, one)", []),
        node("y = NonMaxSuppression(b, p, four, half)", []),
    ];
    let boxes = constant("boxes", &Tensor::from_vec(vec![3], vec![1i64, -1, 4]));
    let half = constant("half", &Tensor::from_vec(vec![1], vec![0.5f32]));
    let numbers = [("zero", 0), ("one", 1), ("two", 2), ("three", 3), ("four", 4)].map(|(name, n)| number(name, n));
    let consts = numbers.into_iter().chain([boxes, half]).collect();
    agrees_for(graph(&["x f32[16]", "k i64[1]"], nodes, &["y i64[c, 3]"], consts), &[""], false);
}

#[test]
fn carried_values_that_change_their_sizes_together() {
    let nodes = vec![node("go = Identity(c)", []), node("s2 = Identity(t)", []), node("t2 = Concat(s, s)", [int("axis", 0)])];
    let step = graph(&["i i64[]", "c bool[]", "s f32[p]", "t f32[q]"], nodes, &["go bool[]", "s2 f32[p2]", "t2 f32[q2]"], vec![]);
    for rounds in 0..4i64 {
        let rounds = constant("rounds", &Tensor::from_vec(vec![], vec![rounds]));
        let nodes = vec![node("u, v = Loop(rounds, , x, z)", [body("body", step.clone())])];
        agrees_for(
            graph(&["x f32[n]", "z f32[2]"], nodes, &["u f32[a]", "v f32[b]"], vec![rounds]),
            &["n=0", "n=1", "n=3"],
            false,
        );
    }
}

#[test]
fn states_of_a_scan_whose_sizes_only_a_run_tells() {
    // What comes out of an optional has a size of its own, and so have the states that it becomes.
    let nodes = vec![
        node("s2 = Identity(t)", []),
        node("o = Optional(s)", []),
        node("t2 = OptionalGetElement(o)", []),
        node("r = Neg(t2)", []),
    ];
    let step = graph(&["s f32[p]", "t f32[q]", "e f32[]"], nodes, &["s2 f32[p]", "t2 f32[q]", "r f32[q]"], vec![]);
    for axis in [0, 1] {
        let attributes = [int("num_scan_inputs", 1), ints("scan_output_axes", &[axis]), body("body", step.clone())];
        let nodes = vec![node("u, v, w = Scan(x, z, y)", attributes)];
        let outs = ["u f32[a]", "v f32[b]", "w f32[c, d]"];
        agrees_for(graph(&["x f32[n]", "z f32[n]", "y f32[3]"], nodes, &outs, vec![]), &["n=0", "n=1", "n=5"], false);
    }
}

#[test]
fn a_loop_reads_the_sequence_that_it_fills() {
    // The sequence is empty at first: of what rank its elements are only the body says.
    let read = graph(&[], vec![node("e = SequenceAt(q, end)", []), node("a = Add(e, x)", [])], &["a f32[n, 2]"], vec![]);
    let none = graph(&[], vec![node("b = Neg(x)", [])], &["b f32[n, 2]"], vec![]);
    let nodes = vec![
        node("go = Identity(c)", []),
        node("q1 = SequenceInsert(q, x)", []),
        node("l = SequenceLength(q)", []),
        node("some = Cast(l)", [int("to", 9)]),
        node("y = If(some)", [body("then_branch", read), body("else_branch", none)]),
        node("q2 = SequenceInsert(q1, y)", []),
    ];
    let mut step = graph(&["i i64[]", "c bool[]", "q f32[]"], nodes, &["go bool[]", "q2 f32[]", "y f32[n, 2]"], vec![]);
    let list = || {
        let mut v = value("q f32[]");
        let element = v.r#type.take().map(Box::new);
        let sequence = type_proto::Sequence { elem_type: element };
        v.r#type = Some(TypeProto { value: Some(type_proto::Value::SequenceType(Box::new(sequence))), denotation: None });
        v
    };
    step.input[2].r#type = list().r#type;
    step.output[1].r#type = list().r#type;
    let rounds = constant("rounds", &Tensor::from_vec(vec![], vec![3i64]));
    let end = constant("end", &Tensor::from_vec(vec![], vec![-1i64]));
    let nodes = vec![node("none = SequenceEmpty()", []), node("list, y = Loop(rounds, , none)", [body("body", step)])];
    agrees_for(graph(&["x f32[n, 2]"], nodes, &["y f32[k, n, 2]"], vec![rounds, end]), &["n=1", "n=3"], false);
}

#[test]
fn biases_between_the_units_of_sums_keep_their_value() {
    // Units of the sums are 0.5 * 0.25: a bias of 0.06 is none of them, and results are stored in finer steps than they are, or in float.
    let scalar = |name: &str, v: f32| constant(name, &Tensor::from_vec(vec![], vec![v]));
    let zero = |name: &str, t: Tensor| constant(name, &t);
    let weights = Tensor::from_vec(vec![3, 3], (0..9).map(|k| (k * 7 % 5) as i8 - 2).collect::<Vec<i8>>());
    let consts = || {
        vec![
            scalar("sx", 0.5),
            zero("zx", Tensor::from_vec(vec![], vec![128u8])),
            constant("wq", &weights),
            constant("kq", &Tensor::from_vec(vec![3, 3, 1], weights.to_ints().iter().map(|&v| v as i8).collect::<Vec<i8>>())),
            scalar("sw", 0.25),
            constant("b", &Tensor::from_vec(vec![3], vec![0.06f32, -0.05, 1.31])),
            scalar("sy", 0.001),
            zero("zy", Tensor::from_vec(vec![], vec![7i16])),
        ]
    };
    let layers: [&[NodeProto]; 3] = [
        &[node("w = DequantizeLinear(wq, sw)", []), node("f = MatMul(v, w)", []), node("l = Add(f, b)", [])],
        &[node("w = DequantizeLinear(wq, sw)", []), node("l = Gemm(v, w, b)", [int("transB", 1)])],
        &[
            node("k = DequantizeLinear(kq, sw)", []),
            node("t = Reshape(v, to)", []),
            node("c = Conv(t, k, b)", []),
            node("l = Reshape(c, back)", []),
        ],
    ];
    for layer in layers {
        for last in ["y = QuantizeLinear(l, sy, zy)", "y = Sigmoid(l)"] {
            let mut nodes = vec![node("q = QuantizeLinear(x, sx, zx)", []), node("v = DequantizeLinear(q, sx, zx)", [])];
            nodes.extend(layer.iter().cloned());
            nodes.push(node(last, []));
            let mut consts = consts();
            consts.push(constant("to", &Tensor::from_vec(vec![3], vec![17i64, 3, 1])));
            consts.push(constant("back", &Tensor::from_vec(vec![2], vec![17i64, 3])));
            agrees(graph(
                &["x f32[17, 3]"],
                nodes,
                &[if last.contains("Quant") { "y i16[17, 3]" } else { "y f32[17, 3]" }],
                consts,
            ));
        }
    }
}

#[test]
fn scales_whose_product_is_no_number_stay_apart() {
    for (x, w) in [(3e38f32, 8f32), (1e-30, 1e-30)] {
        let consts = vec![
            constant("sx", &Tensor::from_vec(vec![], vec![x])),
            constant("zx", &Tensor::from_vec(vec![], vec![1u8])),
            constant("wq", &Tensor::from_vec(vec![3, 2], vec![1i8, -2, 3, 4, 5, -6])),
            constant("sw", &Tensor::from_vec(vec![], vec![w])),
        ];
        let nodes = vec![
            node("q = QuantizeLinear(x, sx, zx)", []),
            node("v = DequantizeLinear(q, sx, zx)", []),
            node("w = DequantizeLinear(wq, sw)", []),
            node("f = MatMul(v, w)", []),
            node("y = QuantizeLinear(f, sx, zx)", []),
        ];
        agrees(graph(&["x f32[5, 3]"], nodes, &["y u8[5, 2]"], consts));
    }
}

#[test]
fn constants_wrap_as_data_does() {
    let signed = Tensor::from_vec(vec![4], vec![i64::MAX, i64::MIN, -7, 3]);
    let more = Tensor::from_vec(vec![4], vec![i64::MAX, -1, 2, i64::MIN]);
    let unsigned = Tensor::from_vec(vec![4], vec![u64::MAX, 1 << 63, 7, 3]);
    let others = Tensor::from_vec(vec![4], vec![5u64, u64::MAX - 1, 9, 1 << 63]);
    let axis = || constant("axis", &Tensor::from_vec(vec![], vec![0i64]));
    let of = |ops: &[&str], dtype: &str, consts: [Tensor; 2]| {
        let mut nodes = vec![node("x1 = Relu(x)", [])];
        let mut outputs = vec!["x1 f32[n]".to_owned()];
        for (k, op) in ops.iter().enumerate() {
            nodes.push(node(&format!("y{k} = {op}"), []));
            let dtype = if op.starts_with("Less") || op.starts_with("Equal") { "bool" } else { dtype };
            outputs.push(format!("y{k} {dtype}[{}]", if op.starts_with("Reduce") { 1 } else { 4 }));
        }
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let [a, b] = consts;
        agrees(graph(&["x f32[n]"], nodes, &outputs, vec![constant("a", &a), constant("b", &b), axis()]));
    };
    let sums = ["Add(a, b)", "Sub(b, a)", "Mul(a, b)", "Abs(a)", "ReduceSum(a)", "ReduceProd(b)", "CumSum(a, axis)"];
    let orders = [
        "Max(a, b)",
        "Min(a, b)",
        "Div(a, b)",
        "Mod(a, b)",
        "Less(a, b)",
        "Equal(a, b)",
        "Sign(a)",
        "ReduceMax(a)",
        "ReduceMin(b)",
    ];
    of(&[&sums[..], &orders[..], &["Neg(a)"]].concat(), "i64", [signed, more]);
    of(&[&sums[..], &orders[..]].concat(), "u64", [unsigned, others]);
}
