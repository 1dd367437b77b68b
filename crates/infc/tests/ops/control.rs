//! Control flow: bodies that carry, stack and capture values.

use crate::elementwise::rows;
use crate::kit::*;
use infc_ir::graph::{Graph, SourceNode};
use infc_ir::op::{Attr, Attrs, Builder, Op};
use infc_ir::{DType, Expr, Fault, Tensor, Type, Value};
use std::collections::BTreeSet;

fn node(b: &mut Builder, name: &str, inputs: &[Value]) -> Result<Value, Fault> {
    b.op(Op::from_attrs("", name, &mut Attrs::default()).expect("in the table")?, inputs)
}

/// A case whose graph is built by `build` from parameters of these types.
fn whole(
    name: &'static str,
    inputs: Vec<Tensor>,
    symbolic: bool,
    build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, Fault>,
) -> Case {
    let mut g = Graph::new("case");
    let source = g.add_source(SourceNode { name: "node".into(), op: name.into(), opset: 28 });
    let mut params = vec![];
    for (k, t) in inputs.iter().enumerate() {
        let dim = |&d: &usize| if symbolic { Expr::sym(&format!("n{d}")) } else { Expr::from(d) };
        params.push(g.add_param(Graph::MAIN, Type::tensor(t.dtype, t.dims.iter().map(dim)), format!("x{k}")));
    }
    let mut b = Builder::new(&mut g, BTreeSet::from([source]));
    let results = build(&mut b, &params).expect("is accepted");
    let nodes = b.nodes;
    for (k, v) in results.iter().enumerate() {
        g.values[v.index()].name = format!("y{k}");
    }
    (g.regions[0].nodes, g.regions[0].results) = (nodes, results);
    let case = inputs.into_iter().fold(op(name), Case::data);
    Case { graph: Some(g), ..case }
}

fn types(b: &Builder, values: &[Value]) -> Vec<Type> {
    values.iter().map(|&v| b.graph.ty(v).clone()).collect()
}

/// A chain of elementwise operators on one or two values of a type.
fn chain(b: &mut Builder, names: &[&str], values: &[Value]) -> Result<Value, Fault> {
    let mut v = values[0];
    for name in names {
        v = if matches!(*name, "Add" | "Sub" | "Mul" | "Max") {
            node(b, name, &[v, values[values.len() - 1]])?
        } else {
            node(b, name, &[v])?
        };
    }
    Ok(v)
}

const NAMES: &[&str] = &["Add", "Sub", "Mul", "Max", "Neg", "Abs", "Relu", "Floor"];

fn some_names(r: &mut Random) -> Vec<&'static str> {
    (0..r.size(1, 3)).map(|_| r.pick(NAMES)).collect()
}

fn if_case(r: &mut Random) -> Case {
    let (dims, symbolic) = (r.dims(0..=3), r.chance(40));
    let (then, other) = (some_names(r), some_names(r));
    let (x, y) = (r.tensor(DType::F32, &dims, SMALL), r.tensor(DType::F32, &dims, SMALL));
    let flag = Tensor::from_bools([], &[r.chance(50)]);
    whole("If", vec![flag, x, y], symbolic, |b, v| {
        let captured = types(b, &v[1..]);
        let yes = b.region("then_branch", &captured, |b, p| Ok(vec![chain(b, &then, p)?]))?;
        let no = b.region("else_branch", &captured, |b, p| Ok(vec![chain(b, &other, p)?]))?;
        let inputs: Vec<_> = v.iter().copied().map(Some).collect();
        b.node(Op::from_attrs("", "If", &mut Attrs::default()).expect("in the table")?, &inputs, vec![yes, no], 1)
    })
}

/// A Loop that carries one value, stacks another and ends by count or by condition.
fn loop_case(r: &mut Random) -> Case {
    let (dims, symbolic) = (r.dims(0..=2), r.chance(40));
    let (carry, stack) = (some_names(r), some_names(r));
    let trips = Tensor::from_vec([], vec![r.within(0, 5)]);
    // The condition ends it when the iteration reaches a number.
    let stop = Tensor::from_vec([], vec![r.within(0, 6)]);
    let start = Tensor::from_bools([], &[r.chance(90)]);
    // Small enough that products stay finite.
    let (x, y) = (r.tensor(DType::F32, &dims, Fill::Within(-1, 1)), r.tensor(DType::F32, &dims, SMALL));
    let early = r.chance(50);
    whole("Loop", vec![trips, start, x, y, stop], symbolic, |b, v| {
        let mut params = vec![Type::tensor(DType::I64, []), Type::tensor(DType::Bool, [])];
        params.extend(types(b, &v[2..]));
        let body = b.region("body", &params, |b, p| {
            let goes_on = if early { node(b, "Less", &[p[0], p[4]])? } else { node(b, "Identity", &[p[1]])? };
            let next = chain(b, &carry, &p[2..4])?;
            let shown = chain(b, &stack, &[next, p[3]])?;
            Ok(vec![goes_on, next, shown])
        })?;
        let mut attrs = Attrs::default();
        attrs.set("captures", Attr::Int(2));
        let inputs: Vec<_> = v.iter().copied().map(Some).collect();
        b.node(Op::from_attrs("", "Loop", &mut attrs).expect("in the table")?, &inputs, vec![body], 2)
    })
}

/// A Scan over one or two sequences, in either direction and along any axis.
fn scan_case(r: &mut Random) -> Case {
    // A dim that is written as 0 is an unknown one to the importer.
    let rest: Vec<usize> = r.dims(0..=2).into_iter().map(|d| d.max(1)).collect();
    let length = r.size(1, 5);
    let (carry, stack) = (some_names(r), some_names(r));
    let count = r.size(1, 2);
    let axis = r.size(0, rest.len());
    let mut dims = rest.clone();
    dims.insert(axis, length);
    let mut inputs = vec![r.tensor(DType::F32, &rest, Fill::Within(-1, 1))];
    inputs.extend((0..count).map(|_| r.tensor(DType::F32, &dims, Fill::Within(-1, 1))));
    let back: Vec<i64> = (0..count).map(|_| r.within(0, 1)).collect();
    let out = (r.within(0, 1), r.within(0, rest.len() as i64));
    whole("Scan", inputs, false, |b, v| {
        let slice = Type::tensor(DType::F32, rest.iter().map(|&d| Expr::from(d)));
        let body = b.region("body", &vec![slice; 1 + count], |b, p| {
            let next = chain(b, &carry, &[p[0], p[1]])?;
            let shown = chain(b, &stack, &[next, p[p.len() - 1]])?;
            Ok(vec![next, shown])
        })?;
        let mut attrs = Attrs::default();
        attrs.set("num_scan_inputs", Attr::Int(count as i64));
        attrs.set("scan_input_axes", Attr::Ints(vec![axis as i64; count]));
        attrs.set("scan_input_directions", Attr::Ints(back));
        attrs.set("scan_output_directions", Attr::Ints(vec![out.0]));
        attrs.set("scan_output_axes", Attr::Ints(vec![out.1]));
        let inputs: Vec<_> = v.iter().copied().map(Some).collect();
        b.node(Op::from_attrs("", "Scan", &mut attrs).expect("in the table")?, &inputs, vec![body], 2)
    })
}

pub const CONTROL: &[Row] = rows! {
    "If" => |r| if_case(r);
    "Loop" => |r| loop_case(r);
    "Scan" => |r| scan_case(r);
};

#[test]
fn control() {
    family("control", CONTROL);
}
