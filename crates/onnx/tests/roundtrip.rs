//! Import, export, import: the same graph. And an independent decoder sees what we see.

mod kit;
use bytes::Bytes;
use infc_ir::graph::Def;
use infc_ir::{DType, Graph, Tensor, interp};
use infc_onnx::proto::{FunctionProto, OperatorSetIdProto};
use kit::*;

/// Names of the operators of a region and its bodies, in order.
fn ops(g: &Graph) -> String {
    let regions = g.live_regions();
    let list = |r| g.region(r).nodes.iter().map(|&n| g.node(n).op.name()).collect::<Vec<_>>().join(" ");
    regions.into_iter().map(list).collect::<Vec<_>>().join(" | ")
}

fn round(name: &str, g: &Graph) -> Graph {
    let bytes = infc_onnx::export(g).unwrap_or_else(|p| panic!("{name}: export: {p}"));
    let again = infc_onnx::import_bytes(Bytes::from(bytes.clone()), None).unwrap_or_else(|p| panic!("{name}: import: {p}"));
    same(g, &again).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(infc_onnx::export(&again).expect(name) == bytes, "{name}: the second export differs");
    again
}

fn check(name: &str, m: &infc_onnx::proto::ModelProto, expected: &str) -> Graph {
    let g = import(m).unwrap_or_else(|p| panic!("{name}: {p}"));
    assert_eq!(ops(&g), expected, "{name}");
    round(name, &g)
}

#[test]
fn plain_models() {
    let w = constant("w", &Tensor::from_vec([3, 2], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let g = graph(
        &["x f32[n, 3]"],
        vec![node("h = MatMul(x, w)", []), node("y = Relu(h)", []), node("m,i = TopK(y, k)", [])],
        &["y f32[n, 2]", "m f32[?, ?]", "i i64[?, ?]"],
        vec![w, constant("k", &Tensor::from_ints(&[1]))],
    );
    let mut m = model(13, g);
    m.metadata_props.push(infc_onnx::proto::StringStringEntryProto { key: Some("a".into()), value: Some("b".into()) });
    let g = check("plain", &m, "MatMul Relu TopK");
    assert_eq!(g.ty(g.inputs()[0]).to_string(), "f32[n, 3]");
    assert_eq!(g.ty(g.outputs()[0]).to_string(), "f32[n, 2]");
    assert!(g.metadata.contains(&("onnx:producer_name".into(), "tests".into())));
    // Dims nobody knows are named after the input; 0 in an input says the same.
    let g = graph(&["x f32[?, 0, 4]"], vec![node("y = Relu(x)", [])], &["y f32[?, ?, 4]"], vec![]);
    let g = check("unknown dims", &model(13, g), "Relu");
    assert_eq!(g.ty(g.outputs()[0]).to_string(), "f32[\"x.0\", \"x.1\", 4]");
    // Expressions of dims that other inputs give.
    let g = graph(&["x f32[n]", "z f32[2*n]"], vec![node("y = Concat(x, z)", [int("axis", 0)])], &["y f32[?]"], vec![]);
    let g = check("expressions", &model(13, g), "Concat");
    assert_eq!(g.ty(g.outputs()[0]).to_string(), "f32[3*n]");
}

#[test]
fn constants_of_every_dtype() {
    let mut tensors = vec![];
    for &d in DType::ALL {
        let name = format!("c_{d}");
        let t = match d.bytes() {
            0 => Tensor::from_strings([2], [Bytes::from_static(b"a"), Bytes::from_static(b"\xff")]),
            // i4 and the like must be sign-extended: 7, -1, 1
            1 if d.bits() < 8 && d.is_signed() => Tensor::from_bytes(d, [3], vec![1u8, 0xff, 1]),
            1 => Tensor::from_bytes(d, [3], vec![1u8, 0, 1]),
            n => Tensor::from_bytes(d, [3], (0..3 * n as u8).collect::<Vec<u8>>()),
        };
        let bytes = infc_onnx::write_tensor_proto(&name, &t);
        assert_eq!(infc_onnx::read_tensor_proto(bytes).expect("a tensor"), (name.clone(), t.clone()));
        tensors.push((name, t));
    }
    let outputs: Vec<String> = tensors.iter().map(|(n, t)| format!("{n} {}{:?}", t.dtype, t.dims)).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let g = graph(&[], vec![], &outputs, tensors.iter().map(|(n, t)| constant(n, t)).collect());
    let g = check("constants", &model(13, g), "");
    for (&v, (name, t)) in g.outputs().iter().zip(&tensors) {
        assert_eq!((g.constant(v), &g.value(v).name), (Some(t), name));
    }
}

#[test]
fn bodies_capture_values() {
    let then = graph(&[], vec![node("t = Add(x, k)", [])], &["t f32[3]"], vec![constant("k", &Tensor::from_vec([], vec![1f32]))]);
    let other = graph(&[], vec![node("e = Mul(z, x)", [])], &["e f32[3]"], vec![]);
    let branch = node("y = If(c)", [body("then_branch", then), body("else_branch", other)]);
    let g = graph(
        &["c bool[]", "a f32[3]"],
        vec![node("x = Relu(a)", []), node("z = Neg(a)", []), branch.clone()],
        &["y f32[3]"],
        vec![],
    );
    let g = check("if", &model(16, g), "Relu Neg If | Add | Mul");
    let node_if = g.node(g.region(Graph::MAIN).nodes[2]);
    assert_eq!((node_if.inputs.len(), g.region(node_if.regions[0]).params.len()), (3, 2));
    // A Loop around an If: the If's captures go through the Loop's body.
    let inner = graph(
        &["i i64[]", "go bool[]", "s f32[3]"],
        vec![node("go2 = Identity(go)", []), node("x = Relu(s)", []), branch],
        &["go2 bool[]", "y f32[3]", "x f32[3]"],
        vec![],
    );
    let looped = node("last, all = Loop(m, , s0)", [body("body", inner)]);
    let g = graph(&["c bool[]", "s0 f32[3]", "z f32[3]", "m i64[]"], vec![looped], &["last f32[3]", "all f32[?, 3]"], vec![]);
    let g = check("loop", &model(16, g), "Loop | Identity Relu If | Add | Mul");
    let n = g.node(g.region(Graph::MAIN).nodes[0]);
    assert_eq!(n.inputs.len(), 5, "count, no condition, state, and the captured c and z");
    assert!(matches!(&n.op, infc_ir::Op::Loop(l) if l.captures == 2));
}

#[test]
fn loops_may_grow_what_they_carry() {
    let inner = graph(
        &["i i64[]", "go bool[]", "s f32[1]"],
        vec![node("go2 = Identity(go)", []), node("t = Concat(s, s0)", [int("axis", 0)])],
        &["go2 bool[]", "t f32[?]"],
        vec![],
    );
    let g = graph(&["s0 f32[1]", "m i64[]"], vec![node("r = Loop(m, , s0)", [body("body", inner)])], &["r f32[?]"], vec![]);
    let g = check("growing", &model(16, g), "Loop | Identity Concat");
    let n = g.node(g.region(Graph::MAIN).nodes[0]);
    let state = g.region(n.regions[0]).params[2];
    assert_eq!(g.ty(state).as_tensor().expect("a tensor").dims[0].known(), None);
}

#[test]
fn a_dead_branch_may_be_wrong() {
    let then = graph(&[], vec![node("t = Relu(x)", [])], &["t f32[2, 3]"], vec![]);
    let other = graph(&[], vec![node("e = MatMul(x, x)", [])], &["e f32[2, 3]"], vec![]);
    let c = constant("c", &Tensor::from_bools([], &[true]));
    let branch = node("y = If(c)", [body("then_branch", then), body("else_branch", other)]);
    let g = graph(&["x f32[2, 3]"], vec![branch], &["y f32[2, 3]"], vec![c]);
    check("dead branch", &model(16, g), "Relu");
}

#[test]
fn functions_are_inlined() {
    let set = OperatorSetIdProto { domain: Some(String::new()), version: Some(16) };
    let function = |name: &str, nodes, attribute: &[&str]| FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("mine".into()),
        input: vec!["a".into(), "b".into()],
        output: vec!["r".into()],
        attribute: attribute.iter().map(|s| (*s).to_owned()).collect(),
        attribute_proto: vec![float("beta", 0.5)],
        node: nodes,
        opset_import: vec![set.clone(), OperatorSetIdProto { domain: Some("mine".into()), version: Some(1) }],
        ..FunctionProto::default()
    };
    let inner = vec![node("t = LeakyRelu(a)", [reference("alpha", "slope")]), node("r = Elu(t)", [reference("alpha", "beta")])];
    let outer = vec![node("t = mine:Inner(a)", [reference("slope", "slope")]), node("r = Add(t, b)", [])];
    let g = graph(&["x f32[2]"], vec![node("y = mine:Outer(x, x)", [float("slope", 0.25)])], &["y f32[2]"], vec![]);
    let mut m = model(16, g);
    m.opset_import.push(OperatorSetIdProto { domain: Some("mine".into()), version: Some(1) });
    m.functions = vec![function("Inner", inner, &["slope"]), function("Outer", outer, &["slope"])];
    let g = check("functions", &m, "LeakyRelu Elu Add");
    let attrs: Vec<_> = g.region(Graph::MAIN).nodes.iter().map(|&n| g.node(n).op.attrs().get("alpha").cloned()).collect();
    use infc_ir::op::Attr::Float;
    assert_eq!(attrs, [Some(Float(0.25)), Some(Float(0.5)), None]);
    m.functions[0].node.push(node("again = mine:Outer(a, a)", [float("slope", 1.0)]));
    assert!(import(&m).expect_err("recursion").to_string().contains("calls itself"));
}

#[test]
fn external_data_is_mapped_and_stays_inside() {
    let w = Tensor::from_vec([1000], (0..1000).map(|i| i as f32).collect());
    let nodes = vec![node("y = Add(x, w)", [])];
    let m = model(13, graph(&["x f32[1000]"], nodes, &["y f32[1000]"], vec![constant("w", &w)]));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    let g = import(&m).expect("a model");
    infc_onnx::write_with(&g, &path, 1000).expect("a written model");
    let mut files: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    files.sort();
    assert_eq!(files, ["m.onnx", "m.onnx.data"], "no temporary files stay");
    same(&g, &infc_onnx::import(&path).expect("a read model")).expect("equal");
    // Wrong places.
    let mut broken = m.clone();
    for (location, length, message) in [
        ("gone.data", "4000", "gone.data"),
        ("/etc/passwd", "4000", "relative path inside"),
        ("../m.onnx.data", "4000", "relative path inside"),
        ("link", "4000", "out of the model's folder"),
        ("m.onnx.data", "4001", "length says 4001"),
        ("short.data", "4000", "outside the file"),
    ] {
        let t = &mut broken.graph.as_mut().expect("a graph").initializer[0];
        t.raw_data = None;
        t.data_location = Some(1);
        let entry = |k: &str, v: &str| infc_onnx::proto::StringStringEntryProto { key: Some(k.into()), value: Some(v.into()) };
        t.external_data = vec![entry("location", location), entry("length", length)];
        std::fs::write(folder.path().join("short.data"), [0; 8]).expect("a file");
        // Made in the first round; there already in the others.
        let _ = std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link"));
        let bytes = Bytes::from(prost::Message::encode_to_vec(&broken));
        let e = infc_onnx::import_bytes(bytes, Some(folder.path())).expect_err(location).to_string();
        assert!(e.contains("initializer 'w'") && e.contains(message), "{location}: {e}");
    }
}

#[test]
fn shared_models_round_trip_and_an_independent_decoder_agrees() {
    for path in shared_models() {
        let name = path.display().to_string();
        let g = infc_onnx::import(&path).unwrap_or_else(|p| panic!("{name}: {p}"));
        let again = round(&name, &g);
        let bytes = infc_onnx::export(&again).expect("export");
        let other = <onnx_protobuf::ModelProto as protobuf::Message>::parse_from_bytes(&bytes).expect("a model");
        let (theirs, main) = (&other.graph, g.region(Graph::MAIN));
        assert_eq!(theirs.node.len(), main.nodes.len(), "{name}");
        for (n, &m) in theirs.node.iter().zip(&main.nodes) {
            assert_eq!((n.op_type.as_str(), n.name.as_str()), (g.node(m).op.name(), g.node(m).name.as_str()), "{name}");
        }
        for t in &theirs.initializer {
            let found = g.values.iter().find(|v| v.name == t.name && matches!(v.def, Def::Constant(_)));
            let Some(Def::Constant(ours)) = found.map(|v| &v.def) else { continue }; // one that a version step made
            assert_eq!((t.data_type, t.raw_data.len()), (ours.dtype.onnx(), ours.bytes().len()), "{name}: {}", t.name);
            assert!(t.raw_data == ours.bytes()[..], "{name}: bytes of {}", t.name);
        }
    }
}

#[test]
fn the_rest_of_the_model_decides_an_if() {
    // x.squeeze(-1) as exporters write it, of a dim that is symbolic: what follows wants a matrix.
    let then =
        graph(&[], vec![node("t = Squeeze(x, last)", [])], &["t f32[?, 3]"], vec![constant("last", &Tensor::from_ints(&[-1]))]);
    let other = graph(&[], vec![node("e = Identity(x)", [])], &["e f32[?, 3, ?]"], vec![]);
    let head = [
        node("d = Shape(x)", [int("start", 2)]),
        node("c = Equal(d, one)", []),
        node("s = If(c)", [body("then_branch", then), body("else_branch", other)]),
    ];
    let gemm = [&head[..], &[node("y = Gemm(s, w)", [])]].concat();
    let one = || constant("one", &Tensor::from_ints(&[1]));
    let w = constant("w", &Tensor::zeros(DType::F32, [3, 2]));
    let g = graph(&["x f32[n, 3, m]"], gemm, &["y f32[?, 2]"], vec![one(), w]);
    let g = check("decided", &model(16, g), "Shape Equal Squeeze Gemm");
    assert_eq!(g.ty(g.outputs()[0]).to_string(), "f32[n, 2]");
    let requires: Vec<String> = g.requires.iter().map(ToString::to_string).collect();
    assert_eq!(requires, ["m == 1"]);
    let run = |m: usize| interp::run_tensors(&g, &[Tensor::zeros(DType::F32, [2, 3, m])]);
    run(1).expect("m is 1");
    let e = run(2).expect_err("m is not 1").to_string();
    assert!(e.contains("Squeeze 'n_t' (opset 16)") && e.contains("must be 1"), "{e}");
    let either = [&head[..], &[node("y = Relu(s)", [])]].concat();
    let g = graph(&["x f32[n, 3, m]"], either, &["y f32[?, ?]"], vec![one()]);
    let e = import(&model(16, g)).expect_err("both fit").to_string();
    assert!(e.contains("If 'n_s' (opset 16)") && e.contains("fits both"), "{e}");
}

#[test]
fn an_if_in_a_branch_is_decided_by_what_follows_there() {
    // Two networks by sample rate, and in each of them x.squeeze(-1) of a dim that is symbolic.
    let network = |out: &str, weights: &str| {
        let last = constant(&format!("{out}_last"), &Tensor::from_ints(&[-1]));
        let one = constant(&format!("{out}_one"), &Tensor::from_ints(&[1]));
        let squeeze = node(&format!("{out}_t = Squeeze(x, {out}_last)"), []);
        let then = graph(&[], vec![squeeze], &[&format!("{out}_t f32[?, 3]")], vec![last]);
        let identity = node(&format!("{out}_e = Identity(x)"), []);
        let other = graph(&[], vec![identity], &[&format!("{out}_e f32[?, 3, ?]")], vec![]);
        let nodes = vec![
            node(&format!("{out}_d = Shape(x)"), [int("start", 2)]),
            node(&format!("{out}_c = Equal({out}_d, {out}_one)"), []),
            node(&format!("{out}_s = If({out}_c)"), [body("then_branch", then), body("else_branch", other)]),
            node(&format!("{out} = Gemm({out}_s, {weights})"), []),
        ];
        graph(&[], nodes, &[&format!("{out} f32[?, 2]")], vec![one])
    };
    let branches = [body("then_branch", network("fast", "w")), body("else_branch", network("slow", "v"))];
    let nodes = vec![node("f = Equal(rate, sixteen)", []), node("y = If(f)", branches)];
    let weights = |name: &str, v: f32| constant(name, &Tensor::from_vec([3, 2], vec![v; 6]));
    let sixteen = constant("sixteen", &Tensor::from_vec([], vec![16000i64]));
    let g =
        graph(&["x f32[n, 3, m]", "rate i64[]"], nodes, &["y f32[?, 2]"], vec![sixteen, weights("w", 1.0), weights("v", 2.0)]);
    let g = import(&model(16, g)).unwrap_or_else(|p| panic!("{p}"));
    assert_eq!(g.ty(g.outputs()[0]).to_string(), "f32[n, 2]");
    let run = |m: usize, rate: i64| {
        let x = Tensor::from_vec([1, 3, m], vec![1.0f32; 3 * m]);
        interp::run_tensors(&g, &[x, Tensor::from_vec([], vec![rate])])
    };
    assert_eq!(run(1, 16000).expect("runs")[0].to_vec::<f32>(), [3.0, 3.0]);
    assert_eq!(run(1, 8000).expect("runs")[0].to_vec::<f32>(), [6.0, 6.0]);
    for (rate, name) in [(16000, "fast"), (8000, "slow")] {
        let e = run(2, rate).expect_err("the dim is not 1").to_string();
        assert!(e.contains(&format!("n_{name}_")), "{e}");
    }
}

#[test]
fn data_decides_an_if_between_ranks() {
    let branches = |then: &str, other: &str| {
        let branch = |name: &str, text: &str, out: &str| body(name, graph(&[], vec![node(text, [])], &[out], vec![]));
        [branch("then_branch", then, "t f32[?]"), branch("else_branch", other, "e f32[?]")]
    };
    let import_with = |branches: [infc_onnx::proto::AttributeProto; 2], after: Vec<infc_onnx::proto::NodeProto>, output: &str| {
        let nodes = [vec![node("s = If(c)", branches)], after].concat();
        let one = constant("z", &Tensor::from_vec([], vec![3.0f32]));
        let last = constant("last", &Tensor::from_ints(&[-1]));
        let w = constant("w", &Tensor::zeros(DType::F32, [3, 2]));
        let inputs = ["c bool[]", "x f32[n, 3, 1]", "y f32[1]", "v f32[n, 4]"];
        import(&model(16, graph(&inputs, nodes, &[output], vec![one, last, w])))
    };
    let inputs = |c: bool| {
        let x = Tensor::zeros(DType::F32, [2, 3, 1]);
        let ones = |dims: [usize; 2]| Tensor::from_vec(dims, vec![1.0f32; dims[0] * dims[1]]);
        [Tensor::from_bools([], &[c]), x, Tensor::from_vec([1], vec![5.0f32]), ones([2, 4])]
    };
    // A scalar or a vector of one: nobody can tell, as it is broadcast.
    let scalar = || branches("t = Identity(z)", "e = Identity(y)");
    let g = import_with(scalar(), vec![node("p = Neg(s)", []), node("o = Mul(p, v)", [])], "o f32[?, 4]").expect("lifted");
    for (c, want) in [(true, -3.0), (false, -5.0)] {
        assert_eq!(interp::run_tensors(&g, &inputs(c)).expect("runs")[0].to_vec::<f32>(), [want; 8]);
    }
    // Here the rank can be told.
    for (after, output, place) in [
        (node("o = Neg(s)", []), "o f32[?]", "output 'o'"),
        (node("o = Shape(s)", []), "o i64[?]", "Shape 'n_o'"),
        (node("o = Add(s, s)", []), "o f32[?]", "output 'o'"),
    ] {
        let e = import_with(scalar(), vec![after], output).expect_err("its rank matters").to_string();
        assert!(e.contains("If 'n_s' (opset 16)") && e.contains(place), "{e}");
    }
    // The rest of the model wants one of the branches: that is checked when it runs.
    let squeeze = branches("t = Squeeze(x, last)", "e = Identity(x)");
    let g = import_with(squeeze, vec![node("o = Gemm(s, w)", [])], "o f32[?, 2]").expect("decided");
    interp::run_tensors(&g, &inputs(true)).expect("as expected");
    let e = interp::run_tensors(&g, &inputs(false)).expect_err("the other branch").to_string();
    assert!(e.contains("'n_s' (If, opset 16)") && e.contains("its condition is false"), "{e}");
}
