//! Takes units out of a graph: constants lose positions, attributes and shape operands follow, types are inferred anew. And the
//! masked twin, in which the same positions are multiplied by 0 where they are summed over.

use super::axes::{Analysis, Axis, slice_plan};
use infc_ir::graph::{Graph, Node, Value};
use infc_ir::op::{Mul, infer, normal_axis};
use infc_ir::{Expr, Fact, Fault, Op, Problem, Problems, Tensor, fault};
use std::collections::BTreeMap;

/// The positions of axes that stay; axes that lose none are not in it.
pub type Kept = BTreeMap<Axis, Vec<usize>>;

/// The positions that stay when the units for which `removed` holds go. An error if an axis would be left without any.
pub fn kept(g: &Graph, analysis: &Analysis, removed: &[bool]) -> Result<Kept, Problems> {
    let mut gone: BTreeMap<Axis, Vec<usize>> = BTreeMap::new();
    for (unit, _) in analysis.units.iter().zip(removed).filter(|(_, r)| **r) {
        unit.cells.iter().for_each(|&(a, i)| gone.entry(a).or_default().push(i));
    }
    let mut out = Kept::new();
    for (a, mut gone) in gone {
        gone.sort_unstable();
        let n = extent(g, a);
        let keep: Vec<usize> = (0..n).filter(|i| gone.binary_search(i).is_err()).collect();
        if keep.is_empty() {
            let name = &g.value(a.value).name;
            let message = format!("axis {} of {} would be left without a channel", a.axis, g.ty(a.value));
            return Err(Problems::one(format!("value '{name}'"), message, "prune less"));
        }
        out.insert(a, keep);
    }
    Ok(out)
}

fn extent(g: &Graph, a: Axis) -> usize {
    g.ty(a.value).as_tensor().and_then(|t| t.dims[a.axis].known()).map_or(0, |n| n as usize)
}

/// Makes the graph smaller.
pub fn shrink(g: &mut Graph, kept: &Kept) -> Result<(), Problems> {
    let old = g.clone();
    for (a, keep) in kept {
        if let Some(t) = g.constant(a.value) {
            let small = take(t, a.axis, keep);
            let data = &mut g.values[a.value.index()];
            let fact = Fact::constant(small.clone());
            (data.def, data.ty, data.ints) = (infc_ir::graph::Def::Constant(small), fact.ty, fact.ints);
        }
    }
    let mut problems = vec![];
    for n in g.region(Graph::MAIN).nodes.clone() {
        if let Err(f) = follow(&old, g, n, kept).and_then(|()| reinfer(g, n)) {
            problems.push(Problem { at: g.describe(n), message: f.0, help: "this is a bug of structured pruning".into() });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// Attributes and shape operands of a node.
fn follow(old: &Graph, g: &mut Graph, n: Node, kept: &Kept) -> Result<(), Fault> {
    let node = old.node(n);
    let y = node.outputs.first().copied();
    let count = |a: Axis| kept.get(&a).map_or_else(|| extent(old, a), Vec::len);
    let touched = |v: Value| kept.range(Axis { value: v, axis: 0 }..=Axis { value: v, axis: usize::MAX }).next().is_some();
    match &node.op {
        Op::Conv(op) if op.group > 1 => {
            let (Some(x), Some(w)) = (node.operand(0), node.operand(1)) else { return Ok(()) };
            // One channel a group: groups went with their channels.
            if extent(old, Axis { value: w, axis: 1 }) == 1 {
                set_group(g, n, count(Axis { value: x, axis: 1 }));
            }
        }
        Op::ConvTranspose(op) if op.group > 1 => {
            let Some(x) = node.operand(0) else { return Ok(()) };
            let x = Axis { value: x, axis: 1 };
            if extent(old, x) == op.group as usize {
                set_group(g, n, count(x));
            }
        }
        Op::Reshape(_) if y.is_some_and(touched) => {
            let y = y.expect("it has a result");
            let ty = old.ty(y).as_tensor().ok_or_else(|| fault!("is no tensor"))?;
            let dims: Vec<Option<usize>> =
                ty.dims.iter().enumerate().map(|(axis, d)| d.known().map(|_| count(Axis { value: y, axis }))).collect();
            let dims = super::axes::reshape_dims(old, n, &dims).ok_or_else(|| fault!("its dims cannot be written anew"))?;
            operand(g, n, 1, Tensor::from_ints(&dims));
        }
        Op::Split(op) => {
            let x = node.operand(0).ok_or_else(|| fault!("has no operand"))?;
            let rank = old.ty(x).as_tensor().map_or(0, |t| t.dims.len());
            let axis = normal_axis(op.axis, rank)?;
            if kept.contains_key(&Axis { value: x, axis }) {
                let sizes: Vec<i64> = node.outputs.iter().map(|&v| count(Axis { value: v, axis }) as i64).collect();
                operand(g, n, 1, Tensor::from_ints(&sizes));
                if let Op::Split(op) = &mut g.nodes[n.index()].op {
                    op.num_outputs = None;
                }
            }
        }
        Op::Slice(_) => slice(old, g, n, kept)?,
        Op::Resize(_) => {
            let (Some(sizes), Some(y)) = (node.operand(3), y) else { return Ok(()) };
            if !touched(y) {
                return Ok(());
            }
            let Op::Resize(op) = &node.op else { return Ok(()) };
            let t = old.constant(sizes).ok_or_else(|| fault!("its sizes are data"))?;
            let axes: Vec<i64> = if op.axes.is_empty() { (0..t.len() as i64).collect() } else { op.axes.clone() };
            let sizes: Vec<i64> = axes.iter().map(|&axis| count(Axis { value: y, axis: axis as usize }) as i64).collect();
            operand(g, n, 3, Tensor::from_ints(&sizes));
        }
        _ => {}
    }
    Ok(())
}

fn set_group(g: &mut Graph, n: Node, group: usize) {
    match &mut g.nodes[n.index()].op {
        Op::Conv(op) => op.group = group as i64,
        Op::ConvTranspose(op) => op.group = group as i64,
        _ => {}
    }
}

/// Replaces an operand by a constant.
fn operand(g: &mut Graph, n: Node, k: usize, t: Tensor) {
    let name = g.node(n).operand(k).map_or_else(|| format!("{}_dims", g.node(n).name), |v| g.value(v).name.clone());
    let v = g.add_constant(t, name);
    let inputs = &mut g.nodes[n.index()].inputs;
    inputs.resize(inputs.len().max(k + 1), None);
    inputs[k] = Some(v);
}

/// Bounds of a slice along axes that lost positions.
fn slice(old: &Graph, g: &mut Graph, n: Node, kept: &Kept) -> Result<(), Fault> {
    let node = old.node(n);
    let Some(x) = node.operand(0).filter(|&x| kept.keys().any(|a| a.value == x)) else { return Ok(()) };
    let plan = slice_plan(old, n).ok_or_else(|| fault!("cuts by data"))?;
    let (mut starts, mut ends, mut axes, mut steps) = (vec![], vec![], vec![], vec![]);
    let ints = |k: usize| node.operand(k).and_then(|v| old.constant(v)).map(|t| t.to_ints());
    let (s, e) = (ints(1).unwrap_or_default(), ints(2).unwrap_or_default());
    let all: Vec<i64> = ints(3).unwrap_or_else(|| (0..s.len() as i64).collect());
    let by = ints(4).unwrap_or_else(|| vec![1; s.len()]);
    for k in 0..s.len() {
        let axis = normal_axis(all[k], plan.len())?;
        let (mut start, mut end) = (s[k], e[k]);
        if let (Some((from, 1)), Some(keep)) = (plan[axis], kept.get(&Axis { value: x, axis })) {
            let to = from + extent(old, Axis { value: node.outputs[0], axis });
            start = keep.iter().filter(|&&i| i < from).count() as i64;
            end = start + keep.iter().filter(|&&i| (from..to).contains(&i)).count() as i64;
        } else if plan[axis].is_none() && kept.contains_key(&Axis { value: x, axis }) {
            (start, end) = (0, i64::MAX);
        }
        starts.push(start);
        ends.push(end);
        axes.push(axis as i64);
        steps.push(by[k]);
    }
    for (k, list) in [starts, ends, axes, steps].iter().enumerate() {
        operand(g, n, k + 1, Tensor::from_ints(list));
    }
    Ok(())
}

/// Infers the results of a node from its operands, whatever was known before. Names of symbolic dims stay.
fn reinfer(g: &mut Graph, n: Node) -> Result<(), Fault> {
    let node = g.node(n);
    let facts = infer(g, &node.op, &node.inputs, &node.regions, node.outputs.len())?;
    for (v, fact) in g.node(n).outputs.clone().into_iter().zip(facts) {
        let data = &mut g.values[v.index()];
        let ty = match (data.ty.as_tensor(), fact.ty.as_tensor()) {
            (Some(old), Some(new)) if old.dims.len() == new.dims.len() => {
                let pick = |(o, n): (&Expr, &Expr)| if o.known().is_none() && n.known().is_none() { *o } else { *n };
                infc_ir::Type::tensor(new.dtype, old.dims.iter().zip(&new.dims).map(pick))
            }
            _ => fact.ty,
        };
        (data.ty, data.ints) = (ty, fact.ints);
    }
    Ok(())
}

/// The positions `keep` of an axis.
pub fn take(t: &Tensor, axis: usize, keep: &[usize]) -> Tensor {
    let inner: usize = t.dims[axis + 1..].iter().product::<usize>() * t.dtype.bytes();
    let (n, outer): (usize, usize) = (t.dims[axis], t.dims[..axis].iter().product());
    let bytes = t.bytes();
    let mut out = Vec::with_capacity(outer * keep.len() * inner);
    for o in 0..outer {
        keep.iter().for_each(|&i| out.extend_from_slice(&bytes[(o * n + i) * inner..(o * n + i + 1) * inner]));
    }
    let mut dims = t.dims.clone();
    dims[axis] = keep.len();
    Tensor::from_bytes(t.dtype, dims, out)
}

/// The graph at its full size, with the data of removed positions multiplied by 0 wherever they are summed over.
pub fn masked(g: &Graph, analysis: &Analysis, kept: &Kept) -> Result<Graph, Problems> {
    let mut out = g.clone();
    let mut nodes = vec![];
    for n in g.region(Graph::MAIN).nodes.clone() {
        for c in analysis.contractions.iter().filter(|c| c.node == n) {
            let Some(keep) = kept.get(&c.data) else { continue };
            let ty = g.ty(c.data.value).as_tensor().expect("a tensor");
            let (rank, size) = (ty.dims.len(), extent(g, c.data));
            let mut dims = vec![1; rank];
            dims[c.data.axis] = size;
            let ones = (0..size).map(|i| infc_ir::eval::cast(infc_ir::DType::Bool, ty.dtype, u64::from(keep.contains(&i))));
            let mask = out.add_constant(Tensor::from_values(ty.dtype, dims, ones), "");
            let op: Op = Mul {}.into();
            let data = out.node(n).operand(c.operand).expect("the contraction's data");
            let inputs = vec![Some(data), Some(mask)];
            let at = g.describe(n);
            let facts = infer(&out, &op, &inputs, &[], 1).map_err(|f| Problems::one(at, f.0, ""))?;
            let product = out.make_node(op, inputs, vec![], facts, "", g.node(n).origin.clone());
            nodes.push(product);
            out.nodes[n.index()].inputs[c.operand] = Some(out.node(product).outputs[0]);
        }
        nodes.push(n);
    }
    out.regions[0].nodes = nodes;
    Ok(out)
}
