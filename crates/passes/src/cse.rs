//! Common subexpressions: equal constants become one, and so do equal nodes of a region.
//!
//! Law: operators are functions of their operands and attributes, except those that draw random numbers.

use crate::rewrite::{Context, Replacement, Site, each_node};
use infc_ir::graph::{Graph, Node, Region, Value};
use infc_ir::tensor::Data;
use infc_ir::{DType, Op, Problems};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Runs the pass; counts constants and nodes that went.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    let constants = merge_constants(g, cx);
    let mut seen: HashMap<Key, Vec<Node>> = HashMap::new();
    Ok(constants + each_node(g, cx, "cse", &mut |site| rule(site, &mut seen))?)
}

/// Constants that are read, in order of first use. Results of the model are left out: each carries the name of an output.
fn merge_constants(g: &mut Graph, cx: &mut Context) -> usize {
    let mut by_type: HashMap<(DType, Vec<usize>), Vec<Value>> = HashMap::new();
    let mut known = vec![false; g.values.len()];
    for r in g.live_regions() {
        for &n in &g.region(r).nodes {
            for &v in g.node(n).inputs.iter().flatten() {
                if let Some(t) = g.constant(v)
                    && !std::mem::replace(&mut known[v.index()], true)
                {
                    by_type.entry((t.dtype, t.dims.clone())).or_default().push(v);
                }
            }
        }
    }
    let mut first: HashMap<Value, Value> = HashMap::new();
    for group in by_type.into_values().filter(|g| g.len() > 1) {
        let mut by_hash: HashMap<u64, Vec<Value>> = HashMap::new();
        for v in group {
            let tensor = g.constant(v).expect("collected above");
            let mut hasher = DefaultHasher::new();
            match &tensor.data {
                Data::Bytes(b) => b.hash(&mut hasher),
                Data::Strings(s) => s.hash(&mut hasher),
            }
            let same = by_hash.entry(hasher.finish()).or_default();
            match same.iter().find(|&&o| g.constant(o) == Some(tensor)) {
                Some(&o) => drop(first.insert(v, o)),
                None => same.push(v),
            }
        }
    }
    let mut replaced: Vec<Value> = first.keys().copied().collect();
    replaced.sort_unstable();
    for v in &replaced {
        if !cx.spend() {
            first.remove(v);
        }
    }
    if !first.is_empty() {
        let outputs = g.outputs().to_vec();
        g.replace_uses(&|v| first.get(&v).copied().unwrap_or(v));
        g.regions[Graph::MAIN.index()].results = outputs;
    }
    first.len()
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    region: Region,
    op: &'static str,
    inputs: Vec<Option<Value>>,
}

fn rule(site: &mut Site, seen: &mut HashMap<Key, Vec<Node>>) -> Replacement {
    let node = site.data();
    let random = node.op.info().family == "random";
    if random || !node.regions.is_empty() {
        return Ok(None);
    }
    let mut inputs = node.inputs.clone();
    if matches!(node.op, Op::Add(_) | Op::Mul(_) | Op::And(_) | Op::Or(_) | Op::Xor(_) | Op::Equal(_)) {
        inputs.sort_unstable();
    }
    let alike = seen.entry(Key { region: site.region, op: node.op.name(), inputs }).or_default();
    let same = |&&n: &&Node| {
        let other = site.graph.node(n);
        other.op == node.op && other.outputs.len() >= node.outputs.len()
    };
    let Some(n) = alike.iter().find(same).copied() else {
        alike.push(site.node);
        return Ok(None);
    };
    // A node is visited again when it is new; it is not its own copy.
    if n == site.node {
        return Ok(None);
    }
    let values = site.graph.node(n).outputs[..node.outputs.len()].to_vec();
    site.merge_origin(n, site.node);
    Ok(Some(values))
}
