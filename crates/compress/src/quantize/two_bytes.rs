//! Activations in two bytes: `x W = q W + (x - q) W`, where `q` is what the first byte stands for and the second byte has what rounding
//! to it lost. Both read the same stored weights, and both products are taken on integers.
//!
//! What is left of such a layer's noise is that of its weights. It costs its multiply-accumulates a second time.

use super::params::Affine;
use super::qdq::Plan;
use super::split;
use crate::layers::Layer;
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::op::{Builder, DequantizeLinear, QuantizeLinear, Sub};
use infc_ir::{Fault, Problems};
use std::collections::HashMap;

/// How far the range of the first byte goes beyond what was seen, as a share of its width: steps are cheap here, and the second byte has no room
/// for what is cut off.
const ROOM: f32 = 0.5;

/// The range of the first byte for values that were seen between these. Signs that were not seen get no room: they do not come.
fn range((low, high): (f32, f32)) -> (f32, f32) {
    let room = ROOM * (high.max(0.0) - low.min(0.0));
    (if low < 0.0 { low - room } else { 0.0 }, if high > 0.0 { high + room } else { 0.0 })
}

/// Lets these layers read the first byte of their inputs, adds the products of the second bytes to their results and the storage of these to the plan. `seen` has
/// the least and the largest of the inputs.
pub fn insert(g: &mut Graph, plan: &mut Plan, layers: &[&Layer], seen: &HashMap<Value, (f32, f32)>) -> Result<(), Problems> {
    let mut bytes: HashMap<Value, [Value; 2]> = HashMap::new();
    for l in layers {
        let (low, high) = range(seen[&l.x]);
        let affine = Affine::of(low, high, false);
        let problem = |g: &Graph, f: Fault| Problems::one(g.describe(l.node), f.0, "");
        let [first, rest] = match bytes.get(&l.x) {
            Some(&both) => both,
            None => {
                let (both, made) = parts(g, l, affine).map_err(|f| problem(g, f))?;
                behind(g, l.x, made);
                let half = affine.scale / 2.0;
                plan.stored.insert(both[1], Affine::of(-half, half, false));
                bytes.insert(l.x, both);
                both
            }
        };
        g.nodes[l.node.index()].inputs[0] = Some(first);
        plan.first_bytes.insert(l.node, affine.scale);
        let second = split::add(g, l, rest, "first_byte").map_err(|f| problem(g, f))?;
        plan.layers.insert(second);
        plan.shared.insert(second, l.node);
    }
    Ok(())
}

/// What the first byte stands for, and `x` without it.
fn parts(g: &mut Graph, l: &Layer, a: Affine) -> Result<([Value; 2], Vec<Node>), Fault> {
    let (origin, name) = (g.node(l.node).origin.clone(), g.value(l.x).name.clone());
    let mut b = Builder::new(g, origin);
    let (scale, zero) = (b.constant(a.scale_tensor()), b.constant(a.zero_tensor()));
    let quantise = QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 };
    let q = b.op(quantise, &[l.x, scale, zero])?;
    let d = b.op(DequantizeLinear { axis: 1, block_size: 0, output_dtype: 0 }, &[q, scale, zero])?;
    let rest = b.op(Sub {}, &[l.x, d])?;
    let made = std::mem::take(&mut b.nodes);
    for (v, kind) in [(d, "first_byte"), (rest, "second_byte")] {
        g.values[v.index()].name = if name.is_empty() { String::new() } else { format!("{name}_{kind}") };
    }
    Ok(([d, rest], made))
}

/// Puts nodes right behind where a value comes from.
fn behind(g: &mut Graph, v: Value, made: Vec<Node>) {
    match g.value(v).def {
        Def::Output(n, _) => split::place(g, n, made, true),
        Def::Param(..) | Def::Constant(_) => _ = g.regions[Graph::MAIN.index()].nodes.splice(0..0, made),
    }
}
