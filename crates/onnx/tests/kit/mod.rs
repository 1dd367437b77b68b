//! Small models for tests, and equality of graphs up to ids.
#![allow(dead_code)] // each test file uses its part

use bytes::Bytes;
use infc_ir::graph::Def;
use infc_ir::{Expr, Graph, Problems, Region, Type, Value};
use infc_onnx::proto::{attribute_proto::AttributeType, *};
use prost::Message;
use std::collections::HashMap;
use std::path::PathBuf;

pub fn int(name: &str, v: i64) -> AttributeProto {
    AttributeProto { i: Some(v), r#type: Some(AttributeType::Int as i32), ..named(name) }
}
pub fn float(name: &str, v: f32) -> AttributeProto {
    AttributeProto { f: Some(v), r#type: Some(AttributeType::Float as i32), ..named(name) }
}
pub fn ints(name: &str, v: &[i64]) -> AttributeProto {
    AttributeProto { ints: v.to_vec(), r#type: Some(AttributeType::Ints as i32), ..named(name) }
}
pub fn floats(name: &str, v: &[f32]) -> AttributeProto {
    AttributeProto { floats: v.to_vec(), r#type: Some(AttributeType::Floats as i32), ..named(name) }
}
pub fn string(name: &str, v: &str) -> AttributeProto {
    AttributeProto { s: Some(Bytes::from(v.to_owned())), r#type: Some(AttributeType::String as i32), ..named(name) }
}
pub fn body(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(g), r#type: Some(AttributeType::Graph as i32), ..named(name) }
}
pub fn reference(name: &str, to: &str) -> AttributeProto {
    AttributeProto { ref_attr_name: Some(to.to_owned()), r#type: Some(AttributeType::Float as i32), ..named(name) }
}
fn named(name: &str) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() }
}

/// `node("y = Add(a, b)", [attributes])`; `domain:Op` for other domains.
pub fn node(text: &str, attribute: impl Into<Vec<AttributeProto>>) -> NodeProto {
    let (outputs, call) = text.split_once('=').expect("results");
    let (op, args) = call.trim().trim_end_matches(')').split_once('(').expect("operands");
    let list = |s: &str| if s.trim().is_empty() { vec![] } else { s.split(',').map(|s| s.trim().to_owned()).collect() };
    let (domain, op) = op.rsplit_once(':').unwrap_or(("", op));
    let name = Some(format!("n_{}", outputs.trim().replace([',', ' '], "_")));
    NodeProto {
        input: list(args),
        output: list(outputs),
        name,
        op_type: Some(op.to_owned()),
        domain: Some(domain.to_owned()),
        attribute: attribute.into(),
        ..NodeProto::default()
    }
}

/// `value("x f32[n, 3]")`.
pub fn value(text: &str) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension};
    let (name, ty) = text.split_once(' ').expect("a type");
    let (dtype, dims) = ty.trim_end_matches(']').split_once('[').expect("dims");
    let dim = |d: &str| Dimension {
        value: match d.trim() {
            "?" => None,
            d => Some(d.parse().map_or_else(|_| dimension::Value::DimParam(d.to_owned()), dimension::Value::DimValue)),
        },
        denotation: None,
    };
    let dim = if dims.is_empty() { vec![] } else { dims.split(',').map(dim).collect() };
    let dtype: infc_ir::DType = dtype.parse().expect("a dtype");
    let t = type_proto::Tensor { elem_type: Some(dtype.onnx()), shape: Some(TensorShapeProto { dim }) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(t)), denotation: None };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(ty), ..ValueInfoProto::default() }
}

pub fn constant(name: &str, t: &infc_ir::Tensor) -> TensorProto {
    TensorProto::decode(&infc_onnx::write_tensor_proto(name, t)[..]).expect("a tensor")
}

pub fn graph(inputs: &[&str], nodes: Vec<NodeProto>, outputs: &[&str], initializer: Vec<TensorProto>) -> GraphProto {
    let list = |v: &[&str]| v.iter().map(|t| value(t)).collect();
    let name = Some("g".to_owned());
    GraphProto { name, node: nodes, input: list(inputs), output: list(outputs), initializer, ..GraphProto::default() }
}

pub fn model(opset: i64, graph: GraphProto) -> ModelProto {
    let set = |d: &str, v| OperatorSetIdProto { domain: Some(d.to_owned()), version: Some(v) };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![set("", opset), set("ai.onnx.ml", 3), set("com.microsoft", 1)],
        producer_name: Some("tests".into()),
        graph: Some(graph),
        ..ModelProto::default()
    }
}

pub fn import(m: &ModelProto) -> Result<Graph, Problems> {
    infc_onnx::import_bytes(Bytes::from(m.encode_to_vec()), None)
}

/// The shared models, where the folder is there.
pub fn shared_models() -> Vec<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let around = here.ancestors().map(|a| a.join("shared/models"));
    let told = std::env::var_os("INFC_SHARED").map(|s| PathBuf::from(s).join("models"));
    let Some(folder) = told.into_iter().chain(around).find(|f| f.is_dir()) else { return vec![] };
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    let mut models: Vec<_> = entries.map(|e| e.path().join("model.onnx")).filter(|p| p.is_file()).collect();
    models.sort();
    models
}

/// Equality up to ids and the order of constants.
pub fn same(a: &Graph, b: &Graph) -> Result<(), String> {
    if a.name != b.name || a.metadata != b.metadata {
        return Err(format!("{:?} {:?} against {:?} {:?}", a.name, a.metadata, b.name, b.metadata));
    }
    same_region(a, Graph::MAIN, b, Graph::MAIN, &mut HashMap::new())
}

/// Equality but for dims that only the data tells: their symbols are named after ids.
fn same_type(a: &Type, b: &Type) -> bool {
    let new = |e: &Expr| {
        let mut new = false;
        e.leaves(&mut |l| new |= l.to_string().starts_with('_'));
        new
    };
    match (a, b) {
        (Type::Tensor(a), Type::Tensor(b)) => {
            let same = |(x, y): (&Expr, &Expr)| x == y || new(x) && new(y);
            a.dtype == b.dtype && a.rank() == b.rank() && a.dims.iter().zip(&b.dims).all(same)
        }
        (Type::Sequence(a), Type::Sequence(b)) | (Type::Optional(a), Type::Optional(b)) => same_type(a, b),
        _ => a == b,
    }
}

fn same_value(a: &Graph, v: Value, b: &Graph, w: Value, map: &mut HashMap<Value, Value>) -> Result<(), String> {
    let (x, y) = (a.value(v), b.value(w));
    let both = |what: &str| Err(format!("{what} of '{}' ({}) and '{}' ({})", x.name, x.ty, y.name, y.ty));
    if !same_type(&x.ty, &y.ty) {
        return both("types");
    }
    if x.name != y.name && !x.name.is_empty() {
        return both("names");
    }
    match (&x.def, &y.def) {
        (Def::Constant(s), Def::Constant(t)) if s == t => Ok(()),
        (Def::Constant(_), _) | (_, Def::Constant(_)) => both("constants"),
        _ if *map.entry(v).or_insert(w) == w => Ok(()),
        _ => both("definitions"),
    }
}

fn same_region(a: &Graph, r: Region, b: &Graph, s: Region, map: &mut HashMap<Value, Value>) -> Result<(), String> {
    let (x, y) = (a.region(r), b.region(s));
    if x.name != y.name || [x.params.len(), x.nodes.len(), x.results.len()] != [y.params.len(), y.nodes.len(), y.results.len()] {
        return Err(format!("region '{}' against '{}': {x:?} {y:?}", x.name, y.name));
    }
    for (&v, &w) in x.params.iter().zip(&y.params) {
        same_value(a, v, b, w, map)?;
    }
    for (&n, &m) in x.nodes.iter().zip(&y.nodes) {
        let (p, q) = (a.node(n), b.node(m));
        let at = |e: String| format!("{}: {e}", a.describe(n));
        if p.op != q.op || p.name != q.name || p.inputs.len() != q.inputs.len() || p.outputs.len() != q.outputs.len() {
            return Err(at(format!("{p:?} against {q:?}")));
        }
        for pair in p.inputs.iter().zip(&q.inputs) {
            match pair {
                (Some(v), Some(w)) => same_value(a, *v, b, *w, map).map_err(at)?,
                (None, None) => {}
                _ => return Err(at("an operand is absent in one".into())),
            }
        }
        for (&r, &s) in p.regions.iter().zip(&q.regions) {
            same_region(a, r, b, s, map).map_err(at)?;
        }
        for (&v, &w) in p.outputs.iter().zip(&q.outputs) {
            same_value(a, v, b, w, map).map_err(at)?;
        }
    }
    x.results.iter().zip(&y.results).try_for_each(|(&v, &w)| same_value(a, v, b, w, map))
}
