//! An If between results of different ranks, chosen by data: where the ranks differ by leading dims of 1 only, the smaller result gets
//! these dims, provided that nothing in the model can tell: all that uses the value broadcasts it against something of at least the
//! larger rank, or gives it a shape.

use crate::import::Importer;
use infc_ir::graph::{Def, Node, SourceNode};
use infc_ir::op::{self, Reshape, Unsqueeze};
use infc_ir::{Graph, Op, Problem, Region, Type, Value};
use std::collections::{BTreeSet, HashMap, HashSet};

/// A result of an If that has another rank in the model.
pub struct Lifted {
    value: Value,
    /// The If, in the model's words.
    at: String,
}

impl Importer<'_> {
    /// Gives results of two branches the same rank, if leading dims of 1 do that. Says which results have been changed.
    pub fn lift(&mut self, branches: [Region; 2], at: &str) -> Option<Vec<usize>> {
        let results = branches.map(|r| self.graph.region(r).results.clone());
        let mut changes = vec![];
        for (k, (&a, &b)) in results[0].iter().zip(&results[1]).enumerate() {
            let (Type::Tensor(a), Type::Tensor(b)) = (self.graph.ty(a), self.graph.ty(b)) else {
                self.graph.ty(a).join(self.graph.ty(b), &mut |_, x, _| x)?;
                continue;
            };
            let (small, large, branch) = if a.rank() < b.rank() { (a, b, 0) } else { (b, a, 1) };
            let more = large.rank() - small.rank();
            if a.dtype != b.dtype || !large.dims[..more].iter().all(|d| d.is(1)) {
                return None;
            }
            if more > 0 {
                changes.push((k, branch, more));
            }
        }
        for &(k, branch, more) in &changes {
            let op = "Unsqueeze".to_owned();
            let source = self.graph.add_source(SourceNode { name: at.to_owned(), op, opset: crate::import::NEWEST_OPSET });
            let mut b = op::Builder::new(&mut self.graph, BTreeSet::from([source]));
            let axes = b.ints(&(0..more as i64).collect::<Vec<_>>());
            let lifted = b.op(Unsqueeze {}, &[results[branch][k], axes]).ok()?;
            let nodes = b.nodes;
            let region = &mut self.graph.regions[branches[branch].index()];
            region.nodes.extend(nodes);
            region.results[k] = lifted;
        }
        Some(changes.into_iter().map(|c| c.0).collect())
    }

    /// Notes results of an If that [`Importer::lift`] has changed.
    pub fn lifted(&mut self, values: &[Value], which: &[usize], at: &str) {
        let new = which.iter().filter_map(|&k| Some(Lifted { value: *values.get(k)?, at: at.to_owned() }));
        self.lifted.extend(new);
    }
}

/// What is wrong with lifted values: somewhere their rank can be told.
pub fn problems(graph: &Graph, lifted: &[Lifted]) -> Vec<Problem> {
    let uses = Uses::of(graph);
    // All values whose rank follows from a lifted one, with the If that it comes from. What a value is broadcast against counts only if its
    // own rank is certain, so this grows until nothing is new.
    let mut open: Vec<(Value, &Lifted)> = lifted.iter().map(|l| (l.value, l)).collect();
    let mut at = 0;
    while at < open.len() {
        let known: HashSet<Value> = open.iter().map(|o| o.0).collect();
        let found = open.iter().map(|&(v, l)| uses.after(graph, v, &known).map(|next| (next, l)).map_err(|place| (place, l)));
        match found.collect::<Result<Vec<_>, _>>() {
            Ok(next) => {
                at = open.len();
                for (values, l) in next {
                    for v in values {
                        if !open.iter().any(|o| o.0 == v) {
                            open.push((v, l));
                        }
                    }
                }
            }
            Err((place, l)) => {
                let message =
                    format!("its branches differ in rank, its condition is data, and the rank decides what {place} does");
                let help = "export the model so that both branches have results of the same rank".to_owned();
                return vec![Problem { at: l.at.clone(), message, help }];
            }
        }
    }
    vec![]
}

/// Who uses a value, in all regions that are reached.
#[derive(Default)]
struct Uses {
    nodes: HashMap<Value, Vec<Node>>,
    /// The node that a region belongs to, for each result of the region.
    results: HashMap<Value, Vec<(Node, usize)>>,
}

impl Uses {
    fn of(graph: &Graph) -> Uses {
        let mut uses = Uses::default();
        let mut regions = vec![Graph::MAIN];
        while let Some(r) = regions.pop() {
            for &n in &graph.region(r).nodes {
                let node = graph.node(n);
                node.inputs.iter().flatten().for_each(|v| uses.nodes.entry(*v).or_default().push(n));
                for &inner in &node.regions {
                    regions.push(inner);
                    for (k, &v) in graph.region(inner).results.iter().enumerate() {
                        uses.results.entry(v).or_default().push((n, k));
                    }
                }
            }
        }
        uses
    }

    /// Values whose rank may follow from that of `v`, given all others of which that is known; or the place that tells the rank.
    fn after(&self, graph: &Graph, v: Value, known: &HashSet<Value>) -> Result<Vec<Value>, String> {
        if graph.outputs().contains(&v) {
            return Err(format!("output '{}'", graph.value(v).name));
        }
        let mut next = vec![];
        for &(n, k) in self.results.get(&v).into_iter().flatten() {
            match &graph.node(n).op {
                Op::If(_) => next.extend(graph.node(n).outputs.get(k)),
                _ => return Err(graph.describe(n)),
            }
        }
        for &n in self.nodes.get(&v).into_iter().flatten() {
            next.extend(after(graph, n, v, known).ok_or_else(|| graph.describe(n))?);
        }
        Ok(next)
    }
}

/// Values whose rank may follow from that of operand `v` of a node; `None` if the node does something else with it.
fn after(graph: &Graph, n: Node, v: Value, known: &HashSet<Value>) -> Option<Vec<Value>> {
    let node = graph.node(n);
    let rank = |v: Value| graph.ty(v).as_tensor().map_or(0, |t| t.rank());
    match &node.op {
        // Captured values of an If follow its condition.
        Op::If(_) => {
            let places = node.inputs.iter().enumerate().filter(|(k, i)| *k > 0 && **i == Some(v)).map(|(k, _)| k - 1);
            let params = |k: usize| node.regions.iter().filter_map(move |&r| graph.region(r).params.get(k).copied());
            (node.inputs[0] != Some(v)).then(|| places.flat_map(params).collect())
        }
        Op::Reshape(Reshape { allowzero }) if node.inputs[0] == Some(v) => {
            let shape = node.inputs.get(1).copied().flatten()?;
            let Def::Constant(t) = &graph.value(shape).def else { return None };
            (*allowzero || !t.to_ints().contains(&0)).then(Vec::new)
        }
        Op::BitCast(_) => None,
        op if op.info().family == "elementwise" => {
            let fixed = node.inputs.iter().flatten().filter(|i| !known.contains(i)).map(|&i| rank(i)).max();
            // A second operand that says nothing but a dtype does not count.
            let fixed = if matches!(op, Op::CastLike(_)) { None } else { fixed };
            let settled = fixed.is_some_and(|r| r >= rank(v)) || matches!(op, Op::CastLike(_)) && node.inputs[0] != Some(v);
            Some(if settled { vec![] } else { node.outputs.clone() })
        }
        _ => None,
    }
}
