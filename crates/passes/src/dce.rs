//! Dead code: removes nodes none of whose results are needed, unneeded captured values, and nothing else.
//!
//! Parameters of the model stay, as do carried values of loops.

use crate::rewrite::Context;
use infc_ir::graph::{Graph, Node, Region, Value};
use infc_ir::{Op, Problems};

/// Runs the pass; counts removed nodes.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    let mut count = 0;
    loop {
        let removed = sweep(g, cx, Graph::MAIN);
        // A captured value that the body no longer uses keeps its producer alive: drop it and sweep again.
        let dropped = drop_captures(g, cx);
        count += removed + dropped;
        if dropped == 0 || cx.left == Some(0) {
            return Ok(count);
        }
    }
}

fn sweep(g: &mut Graph, cx: &mut Context, r: Region) -> usize {
    let mut live = vec![false; g.values.len()];
    g.region(r).results.iter().for_each(|v| live[v.index()] = true);
    let nodes = std::mem::take(&mut g.regions[r.index()].nodes);
    let (mut kept, mut removed) = (vec![], 0);
    for &n in nodes.iter().rev() {
        let node = g.node(n);
        let needed = node.outputs.iter().any(|v| live[v.index()]);
        if !needed && cx.spend() {
            removed += 1;
            continue;
        }
        node.inputs.iter().flatten().for_each(|v| live[v.index()] = true);
        kept.push(n);
    }
    kept.reverse();
    for &n in &kept {
        for inner in g.node(n).regions.clone() {
            removed += sweep(g, cx, inner);
        }
    }
    g.regions[r.index()].nodes = kept;
    removed
}

/// The number of captured operands of a node with bodies, which are the last ones.
pub fn captures(g: &Graph, n: Node) -> usize {
    let node = g.node(n);
    match &node.op {
        Op::If(_) => node.inputs.len().saturating_sub(1),
        Op::Loop(op) => usize::try_from(op.captures).unwrap_or(0),
        Op::Scan(op) => usize::try_from(op.captures).unwrap_or(0),
        Op::SequenceMap(op) => usize::try_from(op.captures).unwrap_or(0),
        _ => 0,
    }
}

/// Takes captured operand `k` (counted from the first captured one) and its parameters out of a node.
pub fn remove_capture(g: &mut Graph, n: Node, k: usize) {
    let count = captures(g, n);
    let node = &mut g.nodes[n.index()];
    let at = node.inputs.len() - count + k;
    node.inputs.remove(at);
    match &mut node.op {
        Op::Loop(op) => op.captures -= 1,
        Op::Scan(op) => op.captures -= 1,
        Op::SequenceMap(op) => op.captures -= 1,
        _ => {}
    }
    for r in node.regions.clone() {
        let params = &mut g.regions[r.index()].params;
        let at = params.len() - count + k;
        params.remove(at);
        renumber_params(g, r);
    }
}

fn renumber_params(g: &mut Graph, r: Region) {
    for (i, v) in g.region(r).params.clone().into_iter().enumerate() {
        g.values[v.index()].def = infc_ir::graph::Def::Param(r, i as u32);
    }
}

fn drop_captures(g: &mut Graph, cx: &mut Context) -> usize {
    let uses = g.use_counts();
    let mut dropped = 0;
    for r in g.live_regions() {
        for n in g.region(r).nodes.clone() {
            for k in (0..captures(g, n)).rev() {
                if capture_params(g, n, k).iter().all(|v| uses[v.index()] == 0) && cx.spend() {
                    remove_capture(g, n, k);
                    dropped += 1;
                }
            }
        }
    }
    dropped
}

/// The parameters, one for each body, of captured operand `k` of a node.
pub fn capture_params(g: &Graph, n: Node, k: usize) -> Vec<Value> {
    let count = captures(g, n);
    let param = |r: &Region| {
        let params = &g.region(*r).params;
        params[params.len() - count + k]
    };
    g.node(n).regions.iter().map(param).collect()
}
