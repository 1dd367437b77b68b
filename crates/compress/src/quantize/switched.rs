//! One model with every layer in both forms, in float and quantised, and an input for each that says which one counts.
//!
//! Compiled once, it answers for any choice of layers; a model made for a choice needs a compilation each. Sums, scales and rounding are
//! those of the quantised model. Only movement between layers (MaxPool, Reshape) is not on integers here: where others than layers read
//! moved values, they get them as they are.

use super::Settings;
use super::statics::{self, Calibration, bias_of, summed};
use infc_ir::graph::{Graph, Node, Value};
use infc_ir::op::{Builder, Where};
use infc_ir::{DType, Fault, Problems, Type};
use std::collections::HashMap;

/// The model with one more input, a bool, for each layer of `c.layers`, in that order: true takes it quantised.
pub fn switched(c: &Calibration, settings: &Settings) -> Result<Graph, Problems> {
    let mut s = c.clone();
    // Values that switches took the place of.
    let mut placed: HashMap<Value, Value> = HashMap::new();
    for i in 0..s.layers.len() {
        let problem = |g: &Graph, f: Fault| Problems::one(g.describe(c.layers[i].node), f.0, "");
        let on = s.graph.add_param(Graph::MAIN, Type::tensor(DType::Bool, []), format!("infc.switch.{i}"));
        let layer = &mut s.layers[i];
        let last = bias_of(&s.graph, layer).map(|b| b.0.0).filter(|&n| n != layer.node);
        let copy = double(&mut s.graph, layer.node, &[]);
        let pair = match last {
            // The addition of the bias is doubled with the product.
            Some(n) => {
                let (y, z) = (s.graph.node(layer.node).outputs[0], s.graph.node(copy).outputs[0]);
                (n, double(&mut s.graph, n, &[(y, z)]))
            }
            None => (layer.node, copy),
        };
        select(&mut s.graph, pair, on, &mut placed).map_err(|f| problem(&s.graph, f))?;
        if let Some(stored) = s.rounded.remove(&layer.node) {
            s.rounded.insert(copy, stored);
        }
        layer.node = copy;
    }
    for l in s.layers.iter_mut().filter(|l| summed(l)) {
        l.x = s.graph.node(l.node).operand(0).unwrap_or(l.x);
    }
    for (from, to) in placed {
        s.ranges.get(&from).copied().map(|r| s.ranges.insert(to, r));
        s.outside.get(&from).copied().map(|r| s.outside.insert(to, r));
        s.seen.get(&from).copied().map(|r| s.seen.insert(to, r));
        s.channels.get(&from).cloned().map(|r| s.channels.insert(to, r));
    }
    let out = statics::build(&s, settings, true)?.graph;
    infc_ir::verify::verify(&out)?;
    Ok(out)
}

/// A copy of a node, right behind it, with some operands replaced.
fn double(g: &mut Graph, n: Node, with: &[(Value, Value)]) -> Node {
    let data = g.node(n).clone();
    let facts = data.outputs.iter().map(|&v| g.fact(v)).collect();
    let other = |v: Value| with.iter().find(|w| w.0 == v).map_or(v, |w| w.1);
    let inputs = data.inputs.iter().map(|v| v.map(other)).collect();
    let copy = g.make_node(data.op, inputs, data.regions, facts, "", data.origin);
    after(g, n, vec![copy]);
    copy
}

/// Readers of the results of the first node get those of the second where the switch is on.
fn select(g: &mut Graph, (plain, copy): (Node, Node), on: Value, placed: &mut HashMap<Value, Value>) -> Result<(), Fault> {
    for (y, z) in g.node(plain).outputs.clone().into_iter().zip(g.node(copy).outputs.clone()) {
        let origin = g.node(plain).origin.clone();
        let mut b = Builder::new(g, origin);
        let chosen = b.op(Where {}, &[on, z, y])?;
        let made = std::mem::take(&mut b.nodes);
        g.replace_uses(&|v| if v == y { chosen } else { v });
        g.nodes[made[0].index()].inputs[2] = Some(y);
        g.values[chosen.index()].name = std::mem::take(&mut g.values[y.index()].name);
        after(g, copy, made);
        placed.insert(y, chosen);
    }
    Ok(())
}

/// Puts nodes behind another one.
fn after(g: &mut Graph, at: Node, made: Vec<Node>) {
    let nodes = &mut g.regions[Graph::MAIN.index()].nodes;
    let index = nodes.iter().position(|&n| n == at).expect("stands in the main region") + 1;
    nodes.splice(index..index, made);
}
