//! Rewrites: a walk over all nodes in order, where a rule may replace a node's results by other values.
//!
//! What the walk takes care of, so that rules need not: the origin of new nodes, names of model outputs, the limit on rewrites,
//! use counts, and facts of nodes whose operands changed. New nodes are visited by the rule, too.

use crate::shape::{learn, outer_symbols, substitute};
use infc_ir::fault;
use infc_ir::graph::{Def, Graph, Node, NodeData, Region, Source, Value};
use infc_ir::op::{Builder, Identity, infer};
use infc_ir::{Fact, Fault, Op, Problem, Problems};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

/// What passes share in one run of the manager.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Rewrites that may still be made; `None` for any number.
    pub left: Option<usize>,
    /// Values of symbolic dims.
    pub bind: Vec<(String, i64)>,
    /// Make only operators that ONNX has.
    pub portable: bool,
}

impl Context {
    /// Asks for one rewrite; false if the limit is reached.
    pub fn spend(&mut self) -> bool {
        match &mut self.left {
            None => true,
            Some(0) => false,
            Some(n) => {
                *n -= 1;
                true
            }
        }
    }
}

/// One node, as a rule sees it.
pub struct Site<'a> {
    /// The graph.
    pub graph: &'a mut Graph,
    /// The node.
    pub node: Node,
    /// The region it stands in.
    pub region: Region,
    uses: &'a mut Vec<u32>,
    results: &'a HashSet<Value>,
    built: Vec<Node>,
    origin: BTreeSet<Source>,
    inlined: Vec<Node>,
    forward: Vec<(Value, Value)>,
}

/// The values that take the place of a node's results; `None` if the rule does not apply.
pub type Replacement = Result<Option<Vec<Value>>, Fault>;

impl Site<'_> {
    /// The node's data.
    pub fn data(&self) -> &NodeData {
        self.graph.node(self.node)
    }
    /// The node's operator.
    pub fn op(&self) -> &Op {
        &self.data().op
    }
    /// Operand `i`, if it is there.
    pub fn input(&self, i: usize) -> Option<Value> {
        self.data().inputs.get(i).copied().flatten()
    }
    /// The only result of a node that has one.
    pub fn output(&self) -> Value {
        self.data().outputs[0]
    }
    /// The node that makes a value, if one does.
    pub fn producer(&self, v: Value) -> Option<Node> {
        match self.graph.value(v).def {
            Def::Output(n, _) => Some(n),
            Def::Param(..) | Def::Constant(_) => None,
        }
    }
    /// How often a value is used.
    pub fn uses(&self, v: Value) -> u32 {
        self.uses.get(v.index()).copied().unwrap_or(0)
    }
    /// True if the value has one use, so that replacing its user makes it dead.
    pub fn used_once(&self, v: Value) -> bool {
        self.uses(v) <= 1
    }
    /// Adds the origin of another node that the new ones also stand for.
    pub fn absorb(&mut self, n: Node) {
        self.origin.extend(&self.graph.node(n).origin);
    }
    /// Node `n` also stands for what `other` stands for.
    pub fn merge_origin(&mut self, n: Node, other: Node) {
        let origin = self.graph.node(other).origin.clone();
        self.graph.nodes[n.index()].origin.extend(origin);
    }
    /// True if uses of `old` can become uses of `new` without losing the name of a model output.
    pub fn can_forward(&self, old: Value, new: Value) -> bool {
        !self.results.contains(&old)
            || match self.graph.value(new).def {
                Def::Constant(_) => true,
                Def::Param(..) => false,
                Def::Output(..) => !self.results.contains(&new),
            }
    }
    /// Builds nodes with the origin of the node and of all absorbed ones; they come before the node.
    pub fn build<T>(&mut self, f: impl FnOnce(&mut Builder) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut b = Builder::new(self.graph, self.origin.clone());
        let out = f(&mut b);
        self.built.append(&mut b.nodes);
        out
    }
    /// Puts the nodes of a region, in order, before the node, with other values in place of the region's parameters.
    pub fn inline(&mut self, nodes: Vec<Node>, params: impl IntoIterator<Item = (Value, Value)>) {
        self.inlined = nodes;
        self.forward.extend(params);
    }
    /// Sizes that only the node's results have are called everywhere what they are in the values that take their place: these may come
    /// from a body, where other values have the same sizes.
    pub fn take_sizes(&mut self, values: &[Value]) {
        let outer = outer_symbols(self.graph, self.node);
        let outputs = self.data().outputs.clone();
        let mut sizes = HashMap::new();
        for (&old, &new) in outputs.iter().zip(values) {
            learn(&mut sizes, &outer, self.graph.ty(old), self.graph.ty(new));
        }
        if !sizes.is_empty() {
            substitute(self.graph, &sizes);
        }
        for (old, &new) in outputs.into_iter().zip(values) {
            // Elements of sequences have no sizes of their own to keep.
            if self.graph.ty(new).as_tensor().is_none() {
                self.graph.values[old.index()].ty = self.graph.ty(new).clone();
            }
        }
    }
    /// Replaces the node by one operator with one result.
    pub fn replace(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Replacement {
        let op = op.into();
        self.build(|b| b.op(op, inputs)).map(|v| Some(vec![v]))
    }
}

/// Visits every node of every region in order and replaces what `rule` replaces; counts the replacements.
pub fn each_node(
    g: &mut Graph,
    cx: &mut Context,
    pass: &str,
    rule: &mut dyn FnMut(&mut Site) -> Replacement,
) -> Result<usize, Problems> {
    let mut walk = Walk {
        uses: g.use_counts(),
        results: g.outputs().iter().copied().collect(),
        replaced: HashMap::new(),
        changed: HashSet::new(),
        count: 0,
        limit: 200 * g.nodes.len() + 100_000,
        pass,
    };
    walk.region(g, cx, Graph::MAIN, rule)?;
    Ok(walk.count)
}

struct Walk<'a> {
    uses: Vec<u32>,
    /// Results of the model: their names are the names of its outputs.
    results: HashSet<Value>,
    replaced: HashMap<Value, Value>,
    /// Values whose facts changed.
    changed: HashSet<Value>,
    count: usize,
    limit: usize,
    pass: &'a str,
}

impl Walk<'_> {
    fn find(&self, mut v: Value) -> Value {
        while let Some(&next) = self.replaced.get(&v) {
            v = next;
        }
        v
    }

    fn region(
        &mut self,
        g: &mut Graph,
        cx: &mut Context,
        r: Region,
        rule: &mut dyn FnMut(&mut Site) -> Replacement,
    ) -> Result<(), Problems> {
        let mut queue: VecDeque<Node> = std::mem::take(&mut g.regions[r.index()].nodes).into();
        let mut done = vec![];
        while let Some(n) = queue.pop_front() {
            self.update_operands(g, n)?;
            let before = self.count;
            for inner in g.node(n).regions.clone() {
                self.region(g, cx, inner, rule)?;
            }
            if self.count > before {
                let changed = crate::shape::refresh(g, n).map_err(|f| self.problem(g, n, f))?;
                self.changed.extend(changed);
            }
            let dead = g.node(n).outputs.iter().all(|v| self.uses.get(v.index()).is_none_or(|&u| u == 0));
            if dead || cx.left == Some(0) {
                done.push(n);
                continue;
            }
            let origin = g.node(n).origin.clone();
            let mut site = Site {
                graph: g,
                node: n,
                region: r,
                uses: &mut self.uses,
                results: &self.results,
                built: vec![],
                origin,
                inlined: vec![],
                forward: vec![],
            };
            let outcome = rule(&mut site);
            let Site { built, inlined, forward, .. } = site;
            match outcome {
                // What a rule built before it gave up is dead.
                Ok(None) => done.push(n),
                Ok(Some(values)) => {
                    cx.spend();
                    self.count += 1;
                    assert!(self.count < self.limit, "pass '{}' does not come to an end", self.pass);
                    if g.node(n).outputs.iter().any(|v| values.contains(v)) {
                        done.push(n); // some results stay
                    }
                    for (param, value) in forward {
                        let value = self.find(value);
                        self.redirect(g, param, value);
                    }
                    self.count_uses(g, &built);
                    let extra = self.replace(g, n, &values);
                    self.count_uses(g, &extra);
                    if !g.node(n).outputs.iter().any(|v| values.contains(v)) {
                        self.release(g, n);
                    }
                    built.into_iter().chain(inlined).chain(extra).rev().for_each(|n| queue.push_front(n));
                }
                Err(f) => return Err(self.problem(g, n, f)),
            }
        }
        let region = &mut g.regions[r.index()];
        region.nodes = done;
        for i in 0..region.results.len() {
            let v = self.find(g.region(r).results[i]);
            g.regions[r.index()].results[i] = v;
        }
        Ok(())
    }

    fn problem(&self, g: &Graph, n: Node, f: Fault) -> Problems {
        Problems(vec![Problem { at: g.describe(n), message: format!("{} (in pass '{}')", f.0, self.pass), help: String::new() }])
    }

    /// Operands are replaced, and facts inferred again where operands changed.
    fn update_operands(&mut self, g: &mut Graph, n: Node) -> Result<(), Problems> {
        let mut stale = false;
        for i in 0..g.node(n).inputs.len() {
            let Some(old) = g.node(n).inputs[i] else { continue };
            let new = self.find(old);
            stale |= new != old || self.changed.contains(&new);
            g.nodes[n.index()].inputs[i] = Some(new);
        }
        if stale {
            let changed = crate::shape::refresh(g, n).map_err(|f| self.problem(g, n, f))?;
            self.changed.extend(changed);
        }
        Ok(())
    }

    fn count_uses(&mut self, g: &Graph, built: &[Node]) {
        self.uses.resize(g.values.len(), 0);
        for &n in built {
            g.node(n).inputs.iter().flatten().for_each(|v| self.uses[v.index()] += 1);
            for &r in &g.node(n).regions {
                g.region(r).results.iter().for_each(|v| self.uses[v.index()] += 1);
                self.count_uses(g, &g.region(r).nodes);
            }
        }
    }

    /// A node is gone: its operands are used less, and nodes that only it needed are as good as gone, too.
    fn release(&mut self, g: &Graph, n: Node) {
        for &v in g.node(n).inputs.iter().flatten() {
            let uses = &mut self.uses[v.index()];
            if *uses == 0 {
                continue;
            }
            *uses -= 1;
            if let (0, Def::Output(producer, _)) = (*uses, &g.value(v).def)
                && g.node(*producer).outputs.iter().all(|o| self.uses[o.index()] == 0)
            {
                self.release(g, *producer);
            }
        }
    }

    /// Uses of `old` become uses of `new`.
    fn redirect(&mut self, g: &mut Graph, old: Value, new: Value) {
        self.uses.resize(g.values.len(), 0);
        self.uses[new.index()] += std::mem::take(&mut self.uses[old.index()]);
        self.replaced.insert(old, new);
        // They are the same value: what is known of one is known of the other.
        let fact = g.fact(old);
        let mut changed = vec![];
        crate::shape::improve(g, new, &fact, true, &mut changed);
        self.changed.extend(changed);
        if g.fact(new) != fact {
            self.changed.insert(new);
        }
    }

    /// Makes `values` the results in place of those of `n`. Gives nodes to put after what was built.
    fn replace(&mut self, g: &mut Graph, n: Node, values: &[Value]) -> Vec<Node> {
        let mut extra = vec![];
        let outputs = g.node(n).outputs.clone();
        assert_eq!(outputs.len(), values.len(), "pass '{}' replaced {} by another number of values", self.pass, g.describe(n));
        for (&old, &new) in outputs.iter().zip(values) {
            let mut new = self.find(new);
            if old == new {
                continue;
            }
            if self.results.contains(&old) {
                new = self.keep_name(g, n, old, new, &mut extra);
            } else if matches!(g.value(new).def, Def::Output(..)) && g.value(new).name.is_empty() {
                // They are the same value: who looks for the name of one finds the other.
                g.values[new.index()].name = std::mem::take(&mut g.values[old.index()].name);
            }
            self.redirect(g, old, new);
        }
        extra
    }

    /// A result of the model carries the model's name for it: `new` takes it over, or a copy of `new` does.
    fn keep_name(&mut self, g: &mut Graph, n: Node, old: Value, new: Value, extra: &mut Vec<Node>) -> Value {
        let name = g.value(old).name.clone();
        let new = match g.value(new).def.clone() {
            Def::Constant(t) => g.add_constant(t, ""),
            Def::Output(..) if !self.results.contains(&new) => new,
            Def::Param(..) | Def::Output(..) => {
                let fact = Fact { known: None, ..g.fact(new) };
                let origin = g.node(n).origin.clone();
                let copy = g.make_node(Identity {}.into(), vec![Some(new)], vec![], vec![fact], "", origin);
                extra.push(copy);
                g.node(copy).outputs[0]
            }
        };
        g.values[new.index()].name = name;
        self.results.remove(&old);
        self.results.insert(new);
        new
    }
}

/// Infers the facts of a node's results anew, from its operands. `same_ranks`: other ranks than before are a bug.
pub fn infer_node(g: &Graph, n: Node, same_ranks: bool) -> Result<Vec<Fact>, Fault> {
    let node = g.node(n);
    let facts = infer(g, &node.op, &node.inputs, &node.regions, node.outputs.len())?;
    for (&v, f) in node.outputs.iter().zip(&facts) {
        let (Some(old), Some(new)) = (g.ty(v).as_tensor(), f.ty.as_tensor()) else { continue };
        let other = same_ranks && old.rank() != new.rank();
        // The one operator whose rank follows from sizes: those that were not known are taken as other than 1.
        if other && matches!(node.op, Op::Squeeze(_)) && node.operand(1).is_none() {
            return Err(fault!("a dim of {old} is 1 once values are known, and the result has another rank; tell it the axes"));
        }
        if old.dtype != new.dtype || other {
            return Err(fault!("internal error: the type of a result changed from {old} to {new}"));
        }
    }
    Ok(facts)
}
