//! Decomposition: every operator whose meaning is other operators is replaced by them, again and again, in all regions.
//!
//! Afterwards each node is steps, a view, control flow, a routine or host work. The law of each decomposition stands with its
//! operator in `infc_ir::op`.

use crate::rewrite::{Context, Replacement, Site, each_node};
use infc_ir::fault;
use infc_ir::graph::Graph;
use infc_ir::op::{Ctx, Meaning, signature};
use infc_ir::{Problems, Type};

/// Runs the pass; counts expanded nodes.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    each_node(g, cx, "decompose", &mut expand)
}

/// A node as its meaning says, if that is other operators.
pub(crate) fn expand(site: &mut Site) -> Replacement {
    let node = site.data();
    let inputs = node.inputs.clone();
    let count = node.outputs.len();
    let facts: Vec<_> = inputs.iter().map(|v| v.map(|v| site.graph.fact(v))).collect();
    let regions: Vec<_> = node.regions.iter().map(|&r| signature(site.graph, r)).collect();
    let outs: Vec<Type> = node.outputs.iter().map(|&v| site.graph.ty(v).clone()).collect();
    let cx = Ctx { inputs: &facts, regions: &regions, outputs: count };
    // A meaning that depends on data is no decomposition; who lowers the node says what is missing.
    let Ok(Meaning::Decompose(build)) = node.op.meaning(&cx, &outs) else { return Ok(None) };
    let mut values = site.build(|b| build(b, &inputs))?;
    if values.len() < count {
        return Err(fault!("internal error: its decomposition has {} results, {count} are needed", values.len()));
    }
    values.truncate(count);
    Ok(Some(values))
}
