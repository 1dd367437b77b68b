//! Activations in two parts: `x W = clip(x) W + (x - clip(x)) W`, both with the same stored weights.
//!
//! The part inside is what QuantizeLinear cuts off at the ends of its range anyway; the part outside, zero for almost all values, has a
//! coarse step of its own. Its products are added after the bias of the layer.

use super::params::Affine;
use super::qdq::Plan;
use super::statics::bias_of;
use crate::layers::Layer;
use infc_ir::graph::{Graph, Node, Value};
use infc_ir::op::{Add, Builder, Clip, MatMul, Sub};
use infc_ir::{Fault, Op, Problems};
use std::collections::HashMap;

/// Adds the products of the parts outside these ranges to the results of layers whose inputs have them, and their storage to the plan.
pub fn insert(g: &mut Graph, plan: &mut Plan, layers: &[&Layer], outside: &HashMap<Value, (f32, f32)>) -> Result<(), Problems> {
    let mut rests: HashMap<Value, Value> = HashMap::new();
    for l in layers {
        let (Some(&range), Some(inside)) = (outside.get(&l.x), plan.stored.get(&l.x).copied()) else { continue };
        let problem = |g: &Graph, f: Fault| Problems::one(g.describe(l.node), f.0, "");
        let rest = match rests.get(&l.x) {
            Some(&v) => v,
            None => {
                let (v, made) = beyond(g, l, inside).map_err(|f| problem(g, f))?;
                place(g, l.node, made, false);
                plan.stored.insert(v, Affine::of(range.0, range.1, false));
                rests.insert(l.x, v);
                v
            }
        };
        let second = add(g, l, rest, "inside").map_err(|f| problem(g, f))?;
        plan.layers.insert(second);
        plan.shared.insert(second, l.node);
    }
    Ok(())
}

/// `x - clip(x)`, at the ends of what is stored.
fn beyond(g: &mut Graph, l: &Layer, inside: Affine) -> Result<(Value, Vec<Node>), Fault> {
    let (origin, name) = (g.node(l.node).origin.clone(), g.value(l.x).name.clone());
    let mut b = Builder::new(g, origin);
    let ends = [0, 255].map(|q| b.number(infc_ir::DType::F32, f64::from(inside.real(q))));
    let cut = b.op(Clip {}, &[l.x, ends[0], ends[1]])?;
    let rest = b.op(Sub {}, &[l.x, cut])?;
    let made = std::mem::take(&mut b.nodes);
    for (v, kind) in [(cut, "inside"), (rest, "outside")] {
        g.values[v.index()].name = if name.is_empty() { String::new() } else { format!("{name}_{kind}") };
    }
    Ok((rest, made))
}

/// Adds the product of `rest` to the layer's result, after its bias; returns its node. What the result was before is called after `kind`.
pub(super) fn add(g: &mut Graph, l: &Layer, rest: Value, kind: &str) -> Result<Node, Fault> {
    let last = bias_of(g, l).map_or(l.node, |((n, _), _)| n);
    let (data, y) = (g.node(l.node).clone(), g.node(last).outputs[0]);
    let w = data.operand(1).expect("layers have weights");
    let mut b = Builder::new(g, data.origin.clone());
    let product = match &data.op {
        Op::Gemm(op) => b.node(op.clone(), &[Some(rest), Some(w)], vec![], 1)?[0],
        Op::Conv(op) => b.node(op.clone(), &[Some(rest), Some(w)], vec![], 1)?[0],
        _ => b.op(MatMul {}, &[rest, w])?,
    };
    let second = b.nodes[0];
    let sum = b.op(Add {}, &[y, product])?;
    let made = std::mem::take(&mut b.nodes);
    let sum_node = *made.last().expect("was added");
    // The sum is what the model knows as the layer's result, under its name and for all readers.
    g.nodes[sum_node.index()].inputs[0] = Some(sum);
    g.nodes[sum_node.index()].outputs[0] = y;
    g.nodes[last.index()].outputs[0] = sum;
    let (from, to) = (g.values[y.index()].def.clone(), g.values[sum.index()].def.clone());
    (g.values[y.index()].def, g.values[sum.index()].def) = (to, from);
    let name = &g.values[y.index()].name;
    g.values[sum.index()].name = if name.is_empty() { String::new() } else { format!("{name}_{kind}") };
    place(g, last, made, true);
    Ok(second)
}

/// Puts nodes before or after another one.
pub(super) fn place(g: &mut Graph, at: Node, made: Vec<Node>, after: bool) {
    let nodes = &mut g.regions[Graph::MAIN.index()].nodes;
    let index = nodes.iter().position(|&n| n == at).expect("stands in the main region") + usize::from(after);
    nodes.splice(index..index, made);
}
