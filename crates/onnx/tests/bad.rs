//! Wrong files: always an error that tells where and what, never a panic, all problems in one go.

mod kit;
use bytes::Bytes;
use infc_ir::Tensor;
use infc_onnx::proto::{GraphProto, ModelProto};
use kit::*;
use proptest::prelude::*;
use prost::Message;

fn small() -> ModelProto {
    let then = graph(&[], vec![node("t = Add(x, w)", [])], &["t f32[2, 3]"], vec![]);
    let other = graph(&[], vec![node("e = Neg(x)", [])], &["e f32[2, 3]"], vec![]);
    let nodes = vec![
        node("h = MatMul(x, q)", []),
        node("a, b = Split(h)", [int("axis", 1), int("num_outputs", 2)]),
        node("z = If(c)", [body("then_branch", then), body("else_branch", other)]),
        node("s = Softmax(a)", [int("axis", 1)]),
    ];
    let q = constant("q", &Tensor::from_vec([3, 4], (0..12).map(|i| i as f32).collect()));
    let w = constant("w", &Tensor::from_vec([3], vec![1f32, 2.0, 3.0]));
    model(18, graph(&["x f32[2, 3]", "c bool[]"], nodes, &["s f32[2, 2]", "z f32[2, 3]", "b f32[2, 2]"], vec![q, w]))
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small().encode_to_vec();
    import(&small()).expect("the whole model is fine");
    for n in 0..bytes.len() {
        let got = infc_onnx::import_bytes(Bytes::copy_from_slice(&bytes[..n]), None);
        // Only what comes after the operator sets of the default domain may be cut off.
        if let Ok(g) = got {
            assert!(g.opsets.iter().any(|(d, v)| d.is_empty() && *v == 18) && n + 40 > bytes.len(), "{n} of {}", bytes.len());
        }
    }
}

fn fails(g: GraphProto, parts: &[&str]) {
    let e = import(&model(16, g)).expect_err(parts[0]).to_string();
    for p in parts {
        assert!(e.contains(p), "'{p}' is not in: {e}");
    }
}

#[test]
fn problems_are_told_with_their_place() {
    let add = |text: &str| vec![node(text, [])];
    fails(
        graph(&["x f32[2]"], add("y = Add(x, gone)"), &["y f32[2]"], vec![]),
        &["Add 'n_y' (opset 16)", "'gone' is not defined"],
    );
    fails(
        graph(&["x f32[2]"], vec![node("a = Add(x, b)", []), node("b = Neg(a)", [])], &["b f32[2]"], vec![]),
        &["cycle", "Add 'n_a'", "Neg 'n_b'"],
    );
    fails(
        graph(&["x f32[2]"], vec![node("y = Neg(x)", []), node("y = Abs(x)", [])], &["y f32[2]"], vec![]),
        &["'y' is defined twice"],
    );
    fails(graph(&["x f32[2]", "x f32[2]"], add("y = Neg(x)"), &["y f32[2]"], vec![]), &["'x' is defined twice"]);
    fails(graph(&["x f32[2]"], add("y = Neg(x)"), &["y i32[2]"], vec![]), &["is f32, but is declared as i32"]);
    fails(graph(&["x f32[2]"], add("y = Neg(x)"), &["q f32[2]"], vec![]), &["output 'q'", "not computed"]);
    fails(graph(&["x f32[2]"], add("y = Sofmax(x)"), &["y f32[2]"], vec![]), &["Sofmax is not known", "nearest: Softmax"]);
    fails(graph(&["x f32[2]"], add("y = my.ops:Relu(x)"), &["y f32[2]"], vec![]), &["my.ops:Relu", "no operator set", "Relu"]);
    fails(graph(&["x f32[2]"], add("y = Add(x)"), &["y f32[2]"], vec![]), &["takes 2", "got 1"]);
    fails(graph(&["x f32[2]"], add("y = Mish(x)"), &["y f32[2]"], vec![]), &["came with operator set 18, the model imports 16"]);
    fails(
        graph(&["x f32[2]"], vec![node("y = Relu(x)", [int("zeal", 1)])], &["y f32[2]"], vec![]),
        &["attribute 'zeal' is not known"],
    );
    fails(
        graph(&["x f32[2]"], vec![node("y = Concat(x)", [float("axis", 1.0)])], &["y f32[2]"], vec![]),
        &["must be an integer"],
    );
    fails(graph(&["x f32[2, 3]"], add("y = MatMul(x, x)"), &["y f32[2, 3]"], vec![]), &["MatMul 'n_y' (opset 16)"]);
    fails(
        graph(&["x f32[2]"], vec![node("y = Concat(x)", [float("axis", 1.0)])], &["y f32[2]"], vec![]),
        &["must be an integer", "help: ONNX's Concat-13 is (inputs*: T) -> (concat_result: T)", "axis:int!"],
    );
    fails(graph(&["x f32[2]"], add("y = Mish(x)"), &["y f32[2]"], vec![]), &["export with 18 or newer", "ONNX's Mish-18 is"]);
    fails(
        graph(&["x i32[2]"], add("y = Sin(x)"), &["y i32[2]"], vec![]),
        &["Sin 'n_y' (opset 16): operand 0 ('input') is i32, it must be f16, f32, f64", "help: ONNX's Sin-7 is"],
    );
    fails(
        graph(&["x i4[2]"], add("y = Add(x, x)"), &["y i4[2]"], vec![]),
        &["operand 0 ('A') is i4", "the nearest is i8", "help: ONNX's Add-14"],
    );
    fails(
        graph(&["x f32[2]"], vec![node("y = Foldout(x)", [])], &["y f32[2]"], vec![]),
        &["Foldout is not known", "help: `infc ops` lists"],
    );
    let mut short = constant("w", &Tensor::from_vec([2], vec![1f32, 2.0]));
    short.dims = vec![3];
    fails(
        graph(&["x f32[3]"], add("y = Add(x, w)"), &["y f32[3]"], vec![short.clone()]),
        &["initializer 'w'", "takes 12 bytes, raw_data has 8"],
    );
    short.dims = vec![-1];
    fails(graph(&["x f32[3]"], add("y = Add(x, w)"), &["y f32[3]"], vec![short.clone()]), &["dims [-1] are not valid"]);
    short.dims = vec![i64::MAX, i64::MAX];
    fails(graph(&["x f32[3]"], add("y = Add(x, w)"), &["y f32[3]"], vec![short.clone()]), &["too large"]);
    short.data_type = Some(99);
    fails(graph(&["x f32[3]"], add("y = Add(x, w)"), &["y f32[3]"], vec![short]), &["unknown dtype number 99"]);
    let e = import(&model(29, graph(&["x f32[2]"], add("y = Neg(x)"), &["y f32[2]"], vec![]))).expect_err("opset").to_string();
    assert!(e.contains("operator set 29 is not supported") && e.contains("up to 28"), "{e}");
}

#[test]
fn operators_of_others_are_held_to_their_owners_rule() {
    let ms = |text: &str, attributes: Vec<infc_onnx::proto::AttributeProto>, parts: &[&str]| {
        let inputs = ["x f32[2, 3]", "n i32[2]", "z f32[2, 4, 2, 3, 5]"];
        fails(graph(&inputs, vec![node(text, attributes)], &["y f32[?, ?]"], vec![]), parts);
    };
    let rule = "help: ONNX Runtime's com.microsoft:FastGelu-1 is (X: T, bias?: T) -> (Y: T)";
    let gelu = "y = com.microsoft:FastGelu(x)";
    ms(
        gelu,
        vec![int("zeal", 1)],
        &["com.microsoft:FastGelu 'n_y'", "attribute 'zeal' is not known; its attributes are: none", rule],
    );
    ms("y = com.microsoft:FastGelu(n)", vec![], &["operand 0 ('X') is i32, it must be bf16, f16, f32, f64", rule]);
    ms("y = com.microsoft:FastGelu(x, x, x)", vec![], &["has 3 operands, it can have 2", rule]);
    ms("y = com.microsoft:FastGelo(x)", vec![], &["com.microsoft:FastGelo is not known", "nearest: com.microsoft:FastGelu"]);
    ms("y = com.microsoft:Attention(x, x)", vec![], &["attribute 'num_heads' is required", "num_heads:int!"]);
    let heads = || vec![int("num_heads", 2)];
    let packed = ["query, key and value are f32[2, 3], none, none", "[batch, sequence, heads, 3, size]"];
    ms("y = com.microsoft:MultiHeadAttention(x)", heads(), &packed);
    let kept = vec![int("num_heads", 1), int("kv_num_heads", 1), string("k_quant_type", "PER_TENSOR")];
    ms(
        "y = com.microsoft:GroupQueryAttention(x, x, x, , , n, n)",
        kept,
        &["'k_quant_type' is 'PER_TENSOR', only NONE is supported"],
    );
}

#[test]
fn all_problems_in_one_go_and_each_once() {
    let nodes = vec![
        node("a = Foo(x)", []),
        node("b = Relu(a)", []), // depends on a: not told
        node("c = Add(x, gone)", []),
        node("d = MatMul(x, x)", []),
        node("y = Sum(b, c, d)", []),
    ];
    let e = import(&model(16, graph(&["x f32[2, 3]"], nodes, &["y f32[2, 3]"], vec![]))).expect_err("three problems");
    assert_eq!(
        e.0.iter().map(|p| p.at.as_str()).collect::<Vec<_>>(),
        ["Foo 'n_a' (opset 16)", "Add 'n_c' (opset 16)", "MatMul 'n_d' (opset 16)"]
    );
}

#[test]
fn unsorted_nodes_are_sorted() {
    let nodes = vec![node("y = Neg(a)", []), node("a = Relu(x)", [])];
    import(&model(16, graph(&["x f32[2]"], nodes, &["y f32[2]"], vec![]))).expect("a model");
}

#[test]
fn files() {
    let e = infc_onnx::import(std::path::Path::new("/no/such/model.onnx")).expect_err("no file").to_string();
    assert!(e.contains("/no/such/model.onnx") && e.contains("cannot be read"), "{e}");
    for text in ["", "hello, this is no model", "\x08\x08"] {
        infc_onnx::import_bytes(Bytes::from_static(text.as_bytes()), None).expect_err(text);
    }
    let g = import(&small()).expect("a model");
    infc_onnx::write(&g, std::path::Path::new("/no/such/folder/m.onnx")).expect_err("no folder");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn damaged_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = small().encode_to_vec();
        for (at, b) in changes {
            let at = at.index(bytes.len());
            bytes[at] = b;
        }
        if let Ok(g) = infc_onnx::import_bytes(Bytes::from(bytes), None) {
            _ = infc_onnx::export(&g);
        }
    }
}
