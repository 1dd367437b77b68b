//! Gradient against central differences, for every operator whose derivative is known.

mod kit;

use infc_ir::interp::{self, Item};
use infc_ir::{Graph, Tensor};
use infc_onnx::proto::{AttributeProto, ModelProto, NodeProto, OperatorSetIdProto, attribute_proto::AttributeType};
use kit::*;

const TRAINING: &str = "ai.onnx.preview.training";

fn strings(name: &str, v: &[&str]) -> AttributeProto {
    let strings = v.iter().map(|s| bytes::Bytes::from((*s).to_owned())).collect();
    AttributeProto {
        name: Some(name.to_owned()),
        strings,
        r#type: Some(AttributeType::Strings as i32),
        ..AttributeProto::default()
    }
}

/// A model of `y` with the derivatives of it by the inputs, taken at these tensors of the model.
fn with_gradient(inputs: &[&str], mut nodes: Vec<NodeProto>, outputs: &[&str], xs: &[&str], at: &[&str]) -> ModelProto {
    let results: Vec<String> = (0..xs.len()).map(|i| format!("d{i}")).collect();
    let call = format!("{} = {TRAINING}:Gradient({})", results.join(", "), at.join(", "));
    nodes.push(node(&call, [strings("xs", xs), string("y", "y")]));
    let constants = vec![
        constant("two", &Tensor::from_vec([], vec![2.0f64])),
        constant("flat", &Tensor::from_ints(&[6])),
        constant("one", &Tensor::from_ints(&[1])),
    ];
    let mut m = model(21, graph(inputs, nodes, outputs, constants));
    m.opset_import.push(OperatorSetIdProto { domain: Some(TRAINING.to_owned()), version: Some(1) });
    m
}

fn run(g: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let items: Vec<Item> = inputs.iter().cloned().map(Item::Tensor).collect();
    let out = interp::run(g, &items).unwrap_or_else(|e| panic!("{e}"));
    out.into_iter().map(|i| i.as_tensor().expect("a tensor").clone()).collect()
}

/// Values from 0.3 to 1.7, none of them twice.
fn values(dims: &[usize], seed: usize) -> Tensor {
    let n: usize = dims.iter().product();
    Tensor::from_vec(dims, (0..n).map(|i| 0.3 + ((i * 7 + seed * 3) % 13) as f64 / 10.0 + i as f64 / 100.0).collect::<Vec<f64>>())
}

fn sum(t: &Tensor) -> f64 {
    (0..t.len()).map(|i| t.float(i)).sum()
}

/// Derivatives of the sum of `y` by each input are the differences of that sum.
fn check(name: &str, nodes: &[&str], attributes: &[(usize, AttributeProto)], dims: [&[usize]; 2]) {
    let shape = |d: &[usize]| d.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let inputs = [format!("a f64[{}]", shape(dims[0])), format!("b f64[{}]", shape(dims[1]))];
    let of = |i: usize| attributes.iter().filter(|a| a.0 == i).map(|a| a.1.clone()).collect::<Vec<_>>();
    let made: Vec<NodeProto> = nodes.iter().enumerate().map(|(i, text)| node(text, of(i))).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let outputs = ["d0", "d1"].iter().zip(dims).map(|(d, dims)| format!("{d} f64[{}]", shape(dims))).collect::<Vec<_>>();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let m = with_gradient(&inputs, made.clone(), &outputs, &["a", "b"], &["a", "b"]);
    let g = import(&m).unwrap_or_else(|e| panic!("{name}: {e}"));
    let x = [values(dims[0], 1), values(dims[1], 2)];
    let got = run(&g, &x);

    let total = [made, vec![node("s = ReduceSum(y)", [int("keepdims", 0)])]].concat();
    let plain = with_gradient(&inputs, total, &["s f64[]"], &["a"], &["a"]);
    let plain = import(&plain).unwrap_or_else(|e| panic!("{name}: {e}"));
    for k in 0..2 {
        assert_eq!(got[k].dims, x[k].dims, "{name}");
        for i in 0..x[k].len() {
            let moved = |by: f64| {
                let mut v = x[k].to_vec::<f64>();
                v[i] += by;
                let mut x = x.clone();
                x[k] = Tensor::from_vec(x[k].dims.clone(), v);
                sum(&run(&plain, &x)[0])
            };
            let h = 1e-5;
            let want = (moved(h) - moved(-h)) / (2.0 * h);
            assert!(
                (got[k].float(i) - want).abs() <= 1e-7 * (1.0 + want.abs()),
                "{name}: d{k}[{i}] is {}, differences give {want}",
                got[k].float(i)
            );
        }
    }
}

#[test]
fn derivatives_are_the_differences() {
    let same: [&[usize]; 2] = [&[2, 3], &[2, 3]];
    for op in ["Add", "Sub", "Mul", "Div", "Pow"] {
        check(op, &[&format!("y = {op}(a, b)")], &[], same);
        // Operands that are repeated, on either side.
        check(op, &[&format!("y = {op}(a, b)")], &[], [&[2, 3], &[3]]);
        check(op, &[&format!("y = {op}(a, b)")], &[], [&[2, 1], &[4, 1, 3]]);
    }
    for op in ["Abs", "Cos", "Exp", "Identity", "Log", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sin", "Softplus", "Sqrt", "Tanh"]
    {
        check(op, &["p = Sub(a, b)", "q = Mul(p, p)", &format!("r = {op}(q)"), "y = Mul(r, a)"], &[], same);
    }
    check("Relu below", &["n = Neg(a)", "p = Add(n, b)", "y = Relu(p)"], &[], same);
    check("Sum", &["y = Sum(a, b, a)"], &[], same);
    check("a value that is used twice", &["c = Add(a, b)", "d = Mul(c, a)", "y = Mul(d, c)"], &[], same);
    check("Where", &["c = Less(a, b)", "p = Mul(a, a)", "y = Where(c, p, b)"], &[], same);
    check("MatMul", &["p = MatMul(a, b)", "y = Mul(p, p)"], &[], [&[2, 3], &[3, 4]]);
    check("MatMul in batches", &["p = MatMul(a, b)", "y = Exp(p)"], &[], [&[2, 2, 3], &[3, 2]]);
    check("Transpose", &["t = Transpose(a)", "y = Mul(t, b)"], &[(0, ints("perm", &[2, 0, 1]))], [&[2, 3, 4], &[4, 2, 3]]);
    check("Reshape", &["t = Reshape(a, flat)", "y = Mul(t, b)"], &[], [&[2, 3], &[6]]);
    check("Unsqueeze", &["u = Unsqueeze(a, one)", "v = Squeeze(u, one)", "y = Mul(v, b)"], &[], same);
    for op in ["ReduceSum", "ReduceMean"] {
        for keep in [0, 1] {
            let keeps = (0, int("keepdims", keep));
            check(op, &[&format!("r = {op}(a, one)"), "y = Mul(r, b)"], std::slice::from_ref(&keeps), [&[2, 3, 4], &[4]]);
            check(op, &[&format!("r = {op}(a)"), "y = Mul(r, b)"], &[keeps], [&[2, 3], &[1]]);
        }
    }
}

#[test]
fn at_other_values_the_graph_is_taken_there() {
    // y = a * b, its derivative by a at (b, a): a.
    let inputs = ["a f64[2]", "b f64[2]"];
    let nodes = vec![node("c = Mul(a, a)", []), node("y = Mul(c, b)", [])];
    let m = with_gradient(&inputs, nodes, &["d0 f64[2]", "d1 f64[2]"], &["a", "b"], &["b", "a"]);
    let x = [Tensor::from_vec([2], vec![2.0f64, 3.0]), Tensor::from_vec([2], vec![5.0f64, 7.0])];
    let got = run(&import(&m).unwrap(), &x);
    assert_eq!(got[0].to_vec::<f64>(), [2.0 * 5.0 * 2.0, 2.0 * 7.0 * 3.0]);
    assert_eq!(got[1].to_vec::<f64>(), [25.0, 49.0]);
    // What y does not depend on has the derivative 0.
    let m = with_gradient(&inputs, vec![node("y = Exp(a)", [])], &["d0 f64[2]", "d1 f64[2]"], &["a", "b"], &["a", "b"]);
    assert_eq!(run(&import(&m).unwrap(), &x)[1].to_vec::<f64>(), [0.0, 0.0]);
}

#[test]
fn what_has_no_derivative_is_told() {
    let told = |nodes: Vec<NodeProto>, xs: &[&str], at: &[&str], parts: &[&str]| {
        let m = with_gradient(&["a f64[2,2]", "b f64[2,2]"], nodes, &["d0 f64[2,2]"], xs, at);
        let text = import(&m).expect_err("a problem").to_string();
        parts.iter().for_each(|p| assert!(text.contains(p), "{text} does not say '{p}'"));
    };
    told(vec![node("y = Det(a)", [])], &["a"], &["a"], &["Gradient", "Det lies between", "MatMul"]);
    told(vec![node("y = Exp(a)", [])], &["nothing"], &["a"], &["'nothing' is no tensor of the graph"]);
    told(vec![node("y = Exp(a)", [])], &["a", "b"], &["a"], &["has 1 operands"]);
    told(vec![node("y = Exp(a)", [])], &["a"], &["a", "b"], &["has 2 operands"]);
}
