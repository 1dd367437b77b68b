//! Names of values in the file: the model's own where they are unique, made-up ones elsewhere; and where constants go.

use crate::bodies::declared_params;
use infc_ir::graph::Def;
use infc_ir::{Graph, Region, Value};
use std::collections::{HashMap, HashSet};

/// What the file calls the values.
pub struct Names {
    /// The names; values that are nowhere to be seen have none.
    pub of: HashMap<Value, String>,
    /// The constants of each region, in the order of their ids.
    pub constants: HashMap<Region, Vec<Value>>,
    /// How often each value is used.
    pub uses: Vec<u32>,
    taken: HashSet<String>,
}

/// Names everything in a graph.
pub fn assign(graph: &Graph) -> Names {
    let mut names = Names { of: HashMap::new(), constants: HashMap::new(), uses: graph.use_counts(), taken: HashSet::new() };
    for (v, r) in homes(graph) {
        names.constants.entry(r).or_default().push(v);
    }
    names.constants.values_mut().for_each(|c| c.sort_unstable());
    let mut taken = HashSet::new();
    region(graph, Graph::MAIN, &mut names, &mut taken);
    names
}

impl Names {
    /// A name that nothing has yet, for a node that only the file needs.
    pub fn fresh(&mut self, base: &str) -> String {
        unique(base, &mut self.taken)
    }
    /// The name of an operand.
    pub fn get(&self, v: Value) -> String {
        self.of.get(&v).cloned().unwrap_or_default()
    }
}

/// The region of each used constant: the one that uses it, or the main region if several do.
fn homes(graph: &Graph) -> HashMap<Value, Region> {
    let mut homes: HashMap<Value, Region> = HashMap::new();
    for r in graph.live_regions() {
        let region = graph.region(r);
        let operands = region.nodes.iter().flat_map(|&n| graph.node(n).inputs.iter().flatten());
        for &v in operands.chain(&region.results).filter(|v| graph.constant(**v).is_some()) {
            homes.entry(v).and_modify(|home| *home = if *home == r { r } else { Graph::MAIN }).or_insert(r);
        }
    }
    homes
}

fn unique(base: &str, taken: &mut HashSet<String>) -> String {
    let tries = (0..).map(|k| if k == 0 { base.to_owned() } else { format!("{base}_{k}") });
    let name = tries.into_iter().find(|n| !n.is_empty() && !taken.contains(n)).expect("endless");
    taken.insert(name.clone());
    name
}

/// Names the values of a region and of the bodies in it. Inputs and outputs of the model come first, so that they keep their
/// names in any case. A body's names are unique against all outer ones; two bodies beside each other may share some.
fn region(graph: &Graph, r: Region, names: &mut Names, taken: &mut HashSet<String>) {
    let data = graph.region(r);
    let outputs = data.nodes.iter().flat_map(|&n| graph.node(n).outputs.iter().copied());
    let constants = names.constants.get(&r).cloned().unwrap_or_default();
    let first = data.params.iter().copied().chain(data.results.iter().copied().filter(|&v| inside(graph, v, r)));
    for v in first.chain(constants).chain(outputs).collect::<Vec<_>>() {
        if names.of.contains_key(&v) {
            continue;
        }
        let own = &graph.value(v).name;
        if own.is_empty() && names.uses[v.index()] == 0 && matches!(graph.value(v).def, Def::Output(..)) {
            continue; // a result that nobody wants
        }
        let base = if own.is_empty() { format!("v{}", v.0) } else { own.clone() };
        let name = unique(&base, taken);
        names.taken.insert(name.clone());
        names.of.insert(v, name);
    }
    for &n in &data.nodes {
        let node = graph.node(n);
        for &body in &node.regions {
            let params = &graph.region(body).params;
            let declared = declared_params(&node.op, params, node.inputs.len());
            let captured = &node.inputs[node.inputs.len() - (params.len() - declared)..];
            for (&p, outer) in params[declared..].iter().zip(captured) {
                let name = outer.map(|v| names.get(v)).unwrap_or_default();
                names.of.insert(p, name);
            }
            region(graph, body, names, &mut taken.clone());
        }
    }
}

fn inside(graph: &Graph, v: Value, r: Region) -> bool {
    match graph.value(v).def {
        Def::Output(..) => true,
        Def::Param(home, _) => home == r,
        Def::Constant(_) => false,
    }
}
