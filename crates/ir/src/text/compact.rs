//! The numbering of the text form, and graphs renumbered by it.

use crate::graph::{Def, Graph, Node, NodeData, Region, RegionData, Value, ValueData};
use crate::types::Fact;
use std::collections::HashMap;

/// What is live, in the order in which the text form shows it.
#[derive(Default)]
pub(super) struct Numbering {
    /// Constants by first use, then parameters and outputs in order of appearance.
    pub values: HashMap<Value, u32>,
    /// Constants by first use.
    pub constants: Vec<Value>,
    /// Nodes in order of appearance.
    pub nodes: HashMap<Node, u32>,
    /// Regions in order of appearance.
    pub regions: HashMap<Region, u32>,
}

impl Numbering {
    pub(super) fn of(g: &Graph) -> Numbering {
        let mut n = Numbering::default();
        let mut values = vec![];
        n.region(g, Graph::MAIN, &mut values);
        for v in n.constants.iter().copied().chain(values) {
            let next = n.values.len() as u32;
            n.values.entry(v).or_insert(next);
        }
        n
    }

    fn region(&mut self, g: &Graph, r: Region, values: &mut Vec<Value>) {
        if self.regions.contains_key(&r) {
            return; // shared by two nodes: not valid, but printable
        }
        self.regions.insert(r, self.regions.len() as u32);
        let region = g.region(r);
        values.extend(&region.params);
        for &node in &region.nodes {
            let next = self.nodes.len() as u32;
            self.nodes.entry(node).or_insert(next);
            let data = g.node(node);
            data.inputs.iter().flatten().for_each(|&v| self.constant(g, v));
            values.extend(&data.outputs);
            data.regions.iter().for_each(|&r| self.region(g, r, values));
        }
        region.results.iter().for_each(|&v| self.constant(g, v));
    }

    fn constant(&mut self, g: &Graph, v: Value) {
        if g.constant(v).is_some() && !self.values.contains_key(&v) {
            self.values.insert(v, self.constants.len() as u32);
            self.constants.push(v);
        }
    }
}

impl Graph {
    /// The same graph without dead arena entries, numbered in the order of the text form: two graphs that print alike are equal
    /// after it. Sources are kept as they are.
    ///
    /// Panics if a live node uses a value that is not live (the verifier reports it).
    pub fn compact(&self) -> Graph {
        let n = Numbering::of(self);
        let value = |v: Value| Value(*n.values.get(&v).unwrap_or_else(|| panic!("value {} is used but not live", v.0)));
        let by_number = |map: &HashMap<Value, u32>| {
            let mut all: Vec<_> = map.iter().map(|(&v, &i)| (i, v)).collect();
            all.sort_unstable();
            all
        };
        let mut values = vec![];
        for (_, v) in by_number(&n.values) {
            let ValueData { ty, name, def, ints } = self.value(v).clone();
            let (def, ints) = match def {
                Def::Constant(t) => {
                    let ints = Fact::constant(t.clone()).ints;
                    (Def::Constant(t), ints)
                }
                Def::Param(r, i) => (Def::Param(Region(n.regions[&r]), i), ints),
                Def::Output(node, i) => (Def::Output(Node(n.nodes[&node]), i), ints),
            };
            values.push(ValueData { ty, name, def, ints });
        }
        let mut nodes: Vec<_> = n.nodes.iter().map(|(&node, &i)| (i, node)).collect();
        nodes.sort_unstable();
        let nodes = nodes.into_iter().map(|(_, node)| {
            let d = self.node(node).clone();
            NodeData {
                inputs: d.inputs.iter().map(|v| v.map(value)).collect(),
                outputs: d.outputs.iter().map(|&v| value(v)).collect(),
                regions: d.regions.iter().map(|r| Region(n.regions[r])).collect(),
                ..d
            }
        });
        let mut regions: Vec<_> = n.regions.iter().map(|(&r, &i)| (i, r)).collect();
        regions.sort_unstable();
        let regions = regions.into_iter().map(|(_, r)| {
            let d = self.region(r);
            RegionData {
                params: d.params.iter().map(|&v| value(v)).collect(),
                nodes: d.nodes.iter().map(|node| Node(n.nodes[node])).collect(),
                results: d.results.iter().map(|&v| value(v)).collect(),
                name: d.name.clone(),
            }
        });
        Graph {
            name: self.name.clone(),
            nodes: nodes.collect(),
            regions: regions.collect(),
            values,
            sources: self.sources.clone(),
            opsets: self.opsets.clone(),
            metadata: self.metadata.clone(),
            requires: self.requires.clone(),
            ir_version: self.ir_version,
        }
    }
}
