//! Which operator set a node's form needs. The newest *form* of an operator is often older than its newest version, which may
//! only accept more dtypes: files are stamped with what they need, so that older runtimes load them too.

use crate::versions::{self, ALWAYS};
use infc_ir::graph::Node;
use infc_ir::{DType, Graph, Type};

/// The oldest operator set written.
pub const OLDEST: i64 = 13;

/// Forms and attributes that need more than the steps in `versions` tell.
const ATTRIBUTES: &[(&str, &str, i64)] = &[
    ("ArgMax", "select_last_index", 12),
    ("ArgMin", "select_last_index", 12),
    ("Attention", "left_window_size", 25),
    ("Attention", "right_window_size", 25),
    ("AveragePool", "dilations", 19),
    ("AveragePool", "ceil_mode", 10),
    ("BatchNormalization", "training_mode", 14),
    ("Cast", "saturate", 19),
    ("Cast", "round_mode", 24),
    ("CastLike", "saturate", 19),
    ("CastLike", "round_mode", 24),
    ("DepthToSpace", "mode", 11),
    ("DequantizeLinear", "axis", 13),
    ("DequantizeLinear", "block_size", 21),
    ("DequantizeLinear", "output_dtype", 23),
    ("GatherND", "batch_dims", 12),
    ("GRU", "layout", 14),
    ("GroupNormalization", "stash_type", 21),
    ("LSTM", "layout", 14),
    ("LabelEncoder", "keys_tensor", 4),
    ("LabelEncoder", "values_tensor", 4),
    ("LabelEncoder", "default_tensor", 4),
    ("LpPool", "ceil_mode", 18),
    ("LpPool", "dilations", 18),
    ("MaxPool", "ceil_mode", 10),
    ("MaxPool", "dilations", 10),
    ("QuantizeLinear", "axis", 13),
    ("QuantizeLinear", "saturate", 19),
    ("QuantizeLinear", "block_size", 21),
    ("QuantizeLinear", "output_dtype", 21),
    ("QuantizeLinear", "precision", 23),
    ("RNN", "layout", 14),
    ("Range", "stash_type", 27),
    ("Reshape", "allowzero", 14),
    ("Resize", "antialias", 18),
    ("Resize", "axes", 18),
    ("Resize", "keep_aspect_ratio_policy", 18),
    ("ScatterElements", "reduction", 18),
    ("ScatterND", "reduction", 18),
    ("Shape", "end", 15),
    ("Shape", "start", 15),
    ("SpaceToDepth", "mode", 28),
    ("TopK", "largest", 11),
    ("TopK", "sorted", 11),
    ("TreeEnsembleClassifier", "base_values_as_tensor", 3),
    ("TreeEnsembleClassifier", "class_weights_as_tensor", 3),
    ("TreeEnsembleClassifier", "nodes_hitrates_as_tensor", 3),
    ("TreeEnsembleClassifier", "nodes_values_as_tensor", 3),
    ("TreeEnsembleRegressor", "base_values_as_tensor", 3),
    ("TreeEnsembleRegressor", "target_weights_as_tensor", 3),
    ("TreeEnsembleRegressor", "nodes_hitrates_as_tensor", 3),
    ("TreeEnsembleRegressor", "nodes_values_as_tensor", 3),
];

/// Forms that came with fewer operands needed (or more allowed): operator, operand, version.
const OPERANDS: &[(&str, usize, i64)] = &[("Pad", 3, 18), ("Attention", 6, 24)];

/// The operator set that a node's form needs, in the operator's own domain.
pub fn needed(graph: &Graph, n: Node) -> i64 {
    let node = graph.node(n);
    let info = node.op.info();
    let steps = versions::all().filter(|s| s.domain == info.domain && s.below != ALWAYS && s.ops.contains(&info.name));
    let steps = steps.filter(|s| s.what != versions::NARROW || narrows(graph, n));
    let form = steps.map(|s| s.below).max().unwrap_or(1);
    let attrs = node.op.attrs();
    let attributes = ATTRIBUTES.iter().filter(|(op, a, _)| *op == info.name && attrs.get(a).is_some()).map(|a| a.2);
    let operands = OPERANDS.iter().filter(|(op, i, _)| *op == info.name && node.inputs.get(*i).is_some_and(Option::is_some));
    let most = form.max(attributes.max().unwrap_or(1)).max(operands.map(|o| o.2).max().unwrap_or(1));
    if info.domain == "ai.onnx.ml" {
        return most.max(if info.name == "TreeEnsemble" { 5 } else { 1 });
    }
    if !info.domain.is_empty() {
        return 1;
    }
    let own = match info.name {
        "Resize" => 13, // roi and scales may be absent
        "Gemm" => 11,   // C may be absent
        "LayerNormalization" => 17,
        name => versions::introduced(name),
    };
    let values = node.inputs.iter().flatten().chain(&node.outputs);
    let dtypes = values.map(|&v| dtype(graph.ty(v), info.since)).max().unwrap_or(1);
    OLDEST.max(most).max(own).max(dtypes)
}

/// Does it make 4-bit integers of floats?
fn narrows(graph: &Graph, n: Node) -> bool {
    let node = graph.node(n);
    let of = |v: Option<infc_ir::Value>| v.and_then(|v| graph.ty(v).dtype());
    let (from, to) = (of(node.inputs.first().copied().flatten()), of(node.outputs.first().copied()));
    from.is_some_and(DType::is_float) && matches!(to, Some(DType::I4 | DType::U4))
}

/// The operator set from which a dtype is accepted by most operators; not beyond the newest version of this one.
fn dtype(ty: &Type, since: i64) -> i64 {
    match ty {
        Type::Tensor(_) | Type::Any(_) | Type::Nothing(_) => match ty.dtype().unwrap_or(DType::F32) {
            DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => 19.min(since),
            DType::U4 | DType::I4 => 21.min(since),
            DType::F4E2M1 => 23.min(since),
            DType::F8E8M0 => 24.min(since),
            DType::U2 | DType::I2 => 25.min(since),
            // Many operators got bf16 (and some others more dtypes) with operator set 22.
            DType::BF16 => 22.min(since),
            _ => 1,
        },
        Type::Sequence(t) | Type::Optional(t) | Type::Map(_, t) => dtype(t, since),
    }
}

/// The IR version that came with the operator sets.
pub fn ir_version(opsets: &[(String, i64)]) -> i64 {
    const DEFAULT: &[(i64, i64)] =
        &[(9, 4), (10, 5), (11, 6), (12, 7), (15, 8), (19, 9), (21, 10), (23, 11), (24, 12), (25, 13), (28, 14)];
    const ML: &[(i64, i64)] = &[(2, 6), (3, 8), (4, 9), (5, 10)];
    let of = |(domain, version): &(String, i64)| {
        let table = match domain.as_str() {
            "" => DEFAULT,
            "ai.onnx.ml" => ML,
            _ => &[],
        };
        table.iter().filter(|(opset, _)| opset <= version).map(|(_, ir)| *ir).max().unwrap_or(3)
    };
    opsets.iter().map(of).max().unwrap_or(3)
}
