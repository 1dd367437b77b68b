//! Loops whose rounds are known, written out: Loop with a trip count or a condition that follows from constants, and Scan over a
//! known length.
//!
//! In a round of its own the iteration number is a constant, and so are counters that are carried: sizes that depend on data in
//! the body become known, branches are decided, sequences have known parts. A loop is written out if each round has fewer sizes that only data tells than
//! the body, or if there is one round or none. Other loops are as good as their bodies, once: they stay. A budget of nodes bounds
//! what all loops of a model may become.
//!
//! Law: the rounds are ONNX's, in their order. What draws random numbers stays a loop, as do values that are optional at the start.

use crate::dce::{capture_params, captures};
use crate::rewrite::{Context, Replacement, Site, each_node};
use crate::shape::{improve, learn, outer_symbols, refresh, symbol};
use infc_ir::expr::Expr;
use infc_ir::fault;
use infc_ir::graph::{Graph, Node, Region, Value};
use infc_ir::interp::eval_op;
use infc_ir::op::{Builder, Concat, Gather, Unsqueeze, infer, normal_axis};
use infc_ir::tensor::count;
use infc_ir::{Fact, Fault, Op, Problems, Tensor, Type};
use std::collections::{BTreeSet, HashMap};

/// All loops of a model become at most this many nodes, those in bodies counted.
const NODES: usize = 4096;
/// No loop of more rounds is written out, however little is left of a round.
const ROUNDS: usize = 1024;
/// Integers that are computed while a round is written out have at most this many elements.
const SMALL: usize = 1024;

/// Runs the pass; counts loops.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    let mut left = NODES;
    each_node(g, cx, "unroll", &mut |site| rule(site, &mut left))
}

/// A Loop or Scan, read from its node.
struct Repeat {
    body: Region,
    /// It ends after this many rounds at the latest.
    most: i64,
    /// False if the condition before the first round is false.
    go: bool,
    /// The body's first result says if there is another round.
    conditional: bool,
    carried: Vec<Value>,
    /// What rounds get slices of: value, axis, and if the last slice comes first.
    scanned: Vec<(Value, usize, bool)>,
    captured: Vec<Value>,
    /// How results are stacked: axis, and if the last one comes first.
    stacks: Vec<(i64, bool)>,
}

fn rule(site: &mut Site, left: &mut usize) -> Replacement {
    let Some(repeat) = read(site) else { return Ok(None) };
    let symbols = outer_symbols(site.graph, site.node);
    let open = open_sizes(site.graph, &site.graph.region(repeat.body).nodes, &symbols);
    let few = repeat.most <= 1 || !repeat.go || ends(site.graph, &repeat);
    if open == 0 && !few || draws(site.graph, repeat.body) {
        return Ok(None);
    }
    let budget = *left;
    // A round that inference does not accept would fail when it is run, if it is run: such a loop stays.
    let made = site.build(|b| write_out(b, &repeat, symbols, open, budget)).ok().flatten();
    let Some((mut values, nodes)) = made else { return Ok(None) };
    *left -= nodes;
    let outputs = site.data().outputs.clone();
    values.truncate(outputs.len());
    site.take_sizes(&values);
    Ok(Some(values))
}

/// What the node says, if its rounds can be known.
fn read(site: &Site) -> Option<Repeat> {
    let (g, node) = (&*site.graph, site.data());
    let (Op::Loop(_) | Op::Scan(_)) = &node.op else { return None };
    let body = node.regions[0];
    let results = g.region(body).results.len();
    let inputs = |from: usize, to: usize| node.inputs.get(from..to)?.iter().copied().collect::<Option<Vec<Value>>>();
    let end = node.inputs.len().checked_sub(captures(g, site.node))?;
    let captured = inputs(end, node.inputs.len())?;
    let repeat = match &node.op {
        Op::Loop(_) => {
            let carried = inputs(2, end)?;
            let stacks = results.checked_sub(1 + carried.len())?;
            let known = |i: usize, absent: i64| match node.operand(i) {
                None => Some(absent),
                Some(v) => known_ints(g, v).filter(|t| t.len() == 1).map(|t| t.to_ints()[0]),
            };
            let (most, go) = (known(0, i64::MAX)?, known(1, 1)? != 0);
            let (scanned, stacks) = (vec![], vec![(0, false); stacks]);
            Repeat { body, most, go, conditional: true, carried, scanned, captured, stacks }
        }
        Op::Scan(op) => {
            let scans = usize::try_from(op.num_scan_inputs).ok()?;
            let states = end.checked_sub(scans)?;
            let (mut scanned, mut most) = (vec![], None);
            for (j, v) in inputs(states, end)?.into_iter().enumerate() {
                let t = g.ty(v).as_tensor()?;
                let axis = normal_axis(op.scan_input_axes.get(j).copied().unwrap_or(0), t.rank()).ok()?;
                let length = t.dims[axis].known()?;
                if most.is_some_and(|m| m != length) {
                    return None;
                }
                most = Some(length);
                scanned.push((v, axis, op.scan_input_directions.get(j) == Some(&1)));
            }
            let stack =
                |j: usize| (op.scan_output_axes.get(j).copied().unwrap_or(0), op.scan_output_directions.get(j) == Some(&1));
            let stacks = (0..results.checked_sub(states)?).map(stack).collect();
            Repeat { body, most: most?, go: true, conditional: false, carried: inputs(0, states)?, scanned, captured, stacks }
        }
        _ => return None,
    };
    let optional = repeat.carried.iter().any(|&v| matches!(g.ty(v), Type::Optional(_)));
    (!optional).then_some(repeat)
}

/// The elements of a small integer or bool tensor, if they are known.
fn known_ints(g: &Graph, v: Value) -> Option<Tensor> {
    let fact = g.fact(v);
    let t = fact.known.or_else(|| Fact::of(fact.ty).with_ints(fact.ints).known)?;
    (t.dtype.int_range().is_some() && t.len() <= SMALL).then_some(t)
}

/// How many values have a size that is not known before the loop.
fn open_sizes(g: &Graph, nodes: &[Node], outer: &BTreeSet<&'static str>) -> usize {
    let is_open = |&v: &Value| {
        let mut open = false;
        let mut leaf = |l: Expr| open |= !symbol(l).is_some_and(|s| outer.contains(s));
        g.ty(v).each_dim(&mut |d| d.leaves(&mut leaf));
        open
    };
    let of = |n: &Node| {
        let node = g.node(*n);
        let inner: usize = node.regions.iter().map(|r| open_sizes(g, &g.region(*r).nodes, outer)).sum();
        node.outputs.iter().filter(|v| is_open(v)).count() + inner
    };
    nodes.iter().map(of).sum()
}

/// Is the condition after any round false?
fn ends(g: &Graph, repeat: &Repeat) -> bool {
    let cond = repeat.conditional.then(|| g.region(repeat.body).results[0]);
    cond.and_then(|v| known_ints(g, v)).is_some_and(|t| t.to_ints() == [0])
}

fn draws(g: &Graph, r: Region) -> bool {
    g.region(r).nodes.iter().any(|&n| {
        let node = g.node(n);
        node.op.info().family == "random" || node.regions.iter().any(|&inner| draws(g, inner))
    })
}

fn nodes_in(g: &Graph, nodes: &[Node]) -> usize {
    let inner = |n: &Node| g.node(*n).regions.iter().map(|r| nodes_in(g, &g.region(*r).nodes)).sum::<usize>();
    nodes.iter().map(|n| 1 + inner(n)).sum()
}

/// Builds all rounds; gives the loop's results and the number of nodes. `None` if it is better left a loop.
#[allow(clippy::type_complexity, reason = "values and their cost")]
fn write_out(
    b: &mut Builder,
    repeat: &Repeat,
    outer: BTreeSet<&'static str>,
    open: usize,
    budget: usize,
) -> Result<Option<(Vec<Value>, usize)>, Fault> {
    let Repeat { body, most, conditional, ref captured, .. } = *repeat;
    let (mut carried, mut go, mut nodes) = (repeat.carried.clone(), repeat.go, 0);
    let mut rounds: Vec<Vec<Value>> = vec![];
    while go && (rounds.len() as i64) < most {
        let before = b.nodes.len();
        let mut args = vec![];
        if conditional {
            args.push(b.constant(Tensor::from_vec([], vec![rounds.len() as i64])));
            args.push(b.constant(Tensor::from_bools([], &[true])));
        }
        args.extend(&carried);
        for &(v, axis, back) in &repeat.scanned {
            let at = if back { most - 1 - rounds.len() as i64 } else { rounds.len() as i64 };
            let at = b.constant(Tensor::from_vec([], vec![at]));
            args.push(b.op(Gather { axis: axis as i64 }, &[v, at])?);
        }
        args.extend(captured);
        let own = b.nodes.len();
        let mut results = Copy::new(b, &outer, rounds.len()).body(body, &args)?.into_iter();
        if conditional {
            let cond = results.next().and_then(|v| known_ints(b.graph, v)).filter(|t| t.len() == 1);
            match cond {
                Some(t) => go = t.to_ints()[0] != 0,
                // After the last round it does not matter.
                None if rounds.len() as i64 + 1 < most => return Ok(None),
                None => {}
            }
        }
        carried = results.by_ref().take(carried.len()).collect();
        rounds.push(results.collect());
        nodes += nodes_in(b.graph, &b.nodes[before..]);
        let better = open_sizes(b.graph, &b.nodes[own..], &outer) < open;
        let only = rounds.len() == 1 && (most == 1 || !go);
        if nodes > budget || rounds.len() > ROUNDS || !(better || only) {
            return Ok(None);
        }
    }
    let slices = &b.graph.region(body).results;
    let slices = slices[slices.len() - repeat.stacks.len()..].to_vec();
    for (k, (&(axis, back), slice)) in repeat.stacks.iter().zip(slices).enumerate() {
        let Some(stack) = stacked(b, rounds.iter().map(|r| r[k]).collect(), axis, back, slice)? else { return Ok(None) };
        carried.push(stack);
    }
    Ok(Some((carried, nodes)))
}

/// The results of all rounds along a new axis. Of no rounds, the type of the body's result says what they would look like.
fn stacked(b: &mut Builder, mut parts: Vec<Value>, axis: i64, back: bool, slice: Value) -> Result<Option<Value>, Fault> {
    let ty = b.tensor(slice)?.clone();
    let axis = normal_axis(axis, ty.rank() + 1)?;
    if parts.is_empty() {
        let Some(mut dims) = ty.known_dims() else { return Ok(None) };
        dims.insert(axis, 0);
        let empty = match ty.dtype {
            infc_ir::DType::String => Tensor::from_strings(dims, []),
            _ => Tensor::zeros(ty.dtype, dims),
        };
        return Ok(Some(b.constant(empty)));
    }
    if back {
        parts.reverse();
    }
    let axes = b.ints(&[axis as i64]);
    for part in &mut parts {
        *part = b.op(Unsqueeze {}, &[*part, axes])?;
    }
    Ok(Some(if parts.len() == 1 { parts[0] } else { b.op(Concat { axis: axis as i64 }, &parts)? }))
}

/// Writes one round of a body out.
struct Copy<'a, 'g> {
    b: &'a mut Builder<'g>,
    outer: &'a BTreeSet<&'static str>,
    round: usize,
    /// What the body's values are in this round.
    values: HashMap<Value, Value>,
    /// What the body's own sizes are in this round.
    sizes: HashMap<&'static str, Expr>,
}

impl<'a, 'g> Copy<'a, 'g> {
    fn new(b: &'a mut Builder<'g>, outer: &'a BTreeSet<&'static str>, round: usize) -> Self {
        Copy { b, outer, round, values: HashMap::new(), sizes: HashMap::new() }
    }

    /// The results of a region for these arguments.
    fn body(&mut self, r: Region, args: &[Value]) -> Result<Vec<Value>, Fault> {
        let params = self.b.graph.region(r).params.clone();
        if params.len() != args.len() {
            return Err(fault!("a body of {} parameters gets {} values", params.len(), args.len()));
        }
        for (param, &arg) in params.into_iter().zip(args) {
            self.stands_for(param, arg);
        }
        for n in self.b.graph.region(r).nodes.clone() {
            self.node(n)?;
        }
        Ok(self.b.graph.region(r).results.iter().map(|&v| self.find(v)).collect())
    }

    fn find(&self, v: Value) -> Value {
        self.values.get(&v).copied().unwrap_or(v)
    }

    fn stands_for(&mut self, old: Value, new: Value) {
        self.values.insert(old, new);
        learn(&mut self.sizes, self.outer, self.b.graph.ty(old), self.b.graph.ty(new));
    }

    fn node(&mut self, n: Node) -> Result<(), Fault> {
        let node = self.b.graph.node(n).clone();
        let inputs: Vec<Option<Value>> = node.inputs.iter().map(|v| v.map(|v| self.find(v))).collect();
        if let (Op::If(_), Some(cond)) = (&node.op, inputs[0].and_then(|v| known_ints(self.b.graph, v)))
            && let Some(args) = inputs[1..].iter().copied().collect::<Option<Vec<Value>>>()
        {
            let taken = node.regions[usize::from(cond.len() != 1 || cond.to_ints()[0] == 0)];
            let results = self.body(taken, &args)?;
            node.outputs.iter().zip(results).for_each(|(&old, new)| self.stands_for(old, new));
            return Ok(());
        }
        if let Some(constants) = self.computed(&node.op, &inputs, node.outputs.len()) {
            for (&old, t) in node.outputs.iter().zip(constants) {
                let new = self.b.constant(t);
                self.stands_for(old, new);
            }
            return Ok(());
        }
        let mut regions = vec![];
        for (k, &r) in node.regions.iter().enumerate() {
            regions.push(self.region(n, k, r, &inputs)?);
        }
        let g = &mut *self.b.graph;
        let facts = infer(g, &node.op, &inputs, &regions, node.outputs.len())?;
        let copy = g.make_node(node.op, inputs, regions, facts, node.name, node.origin);
        self.b.nodes.push(copy);
        if !node.regions.is_empty() {
            refresh(self.b.graph, copy)?;
        }
        for (&old, new) in node.outputs.iter().zip(self.b.graph.node(copy).outputs.clone()) {
            self.stands_for(old, new);
            let better = self.known_before(old, new);
            improve(self.b.graph, new, &better, false, &mut vec![]);
            // Integers that are known are constants: a counter that is carried from round to round is one.
            if let Some(t) = known_ints(self.b.graph, new) {
                let new = self.b.constant(t);
                self.values.insert(old, new);
            }
        }
        Ok(())
    }

    /// Small integers computed from constants.
    fn computed(&self, op: &Op, inputs: &[Option<Value>], outputs: usize) -> Option<Vec<Tensor>> {
        let g = &*self.b.graph;
        let small = |t: &Tensor| t.dtype.int_range().is_some() && t.len() <= SMALL;
        if inputs.is_empty() || matches!(op, Op::If(_) | Op::Loop(_) | Op::Scan(_) | Op::SequenceMap(_)) {
            return None;
        }
        let operand = |v: &Option<Value>| match v {
            None => Some(None),
            Some(v) => g.constant(*v).filter(|t| t.len() <= SMALL).cloned().map(Some),
        };
        let operands: Vec<Option<Tensor>> = inputs.iter().map(operand).collect::<Option<_>>()?;
        let facts = infer(g, op, inputs, &[], outputs).ok()?;
        let fits = facts.iter().all(|f| {
            f.ty.as_tensor().is_some_and(|t| t.dtype.int_range().is_some() && t.known_dims().is_some_and(|d| count(&d) <= SMALL))
        });
        // An error here is one at run time.
        let results = fits.then(|| eval_op(op, &operands, outputs).ok())??;
        results.iter().all(small).then_some(results)
    }

    /// What is known of a value of the body, in terms of this round; where that has sizes which are not, as inference says.
    fn known_before(&self, old: Value, new: Value) -> Fact {
        let g = &*self.b.graph;
        let (was, is) = (g.fact(old), g.fact(new));
        let ty = match (&was.ty, &is.ty) {
            (Type::Tensor(o), Type::Tensor(n)) if o.rank() == n.rank() => {
                let dims = o.dims.iter().zip(&n.dims).map(|(&o, &n)| self.size(o).unwrap_or(n));
                Type::tensor(n.dtype, dims)
            }
            _ => is.ty.clone(),
        };
        let ints = was.ints.and_then(|ints| ints.into_iter().map(|e| self.size(e)).collect());
        Fact { ty, known: None, ints }
    }

    /// An expression of the body's sizes in this round, if they are known by now.
    fn size(&self, e: Expr) -> Option<Expr> {
        let mut all = true;
        e.leaves(&mut |l| all &= symbol(l).is_some_and(|s| self.outer.contains(s) || self.sizes.contains_key(s)));
        all.then(|| e.map(&|l| symbol(l).and_then(|s| self.sizes.get(s)).copied().unwrap_or(l)))
    }

    /// The same, with new symbols for sizes that an inner body is the first to have.
    fn size_or_new(&mut self, e: Expr) -> Expr {
        let mut open = vec![];
        e.leaves(&mut |l| open.extend(symbol(l).filter(|s| !self.outer.contains(s) && !self.sizes.contains_key(s))));
        for s in open {
            let name = format!("_{s}_{}_{}", self.b.graph.nodes.len(), self.round);
            self.sizes.insert(s, Expr::sym(&name));
        }
        self.size(e).unwrap_or(e)
    }

    /// A body of a node in the body, for new operands.
    fn region(&mut self, n: Node, k: usize, r: Region, inputs: &[Option<Value>]) -> Result<Region, Fault> {
        let data = self.b.graph.region(r).clone();
        let copy = self.b.graph.add_region(data.name);
        let count = captures(self.b.graph, n);
        let captured: HashMap<Value, usize> =
            (0..count).map(|c| (capture_params(self.b.graph, n, c)[k], inputs.len() - count + c)).collect();
        for &p in &data.params {
            let operand = captured.get(&p).and_then(|&at| inputs[at]);
            let (ty, ints) = match operand {
                Some(v) => (self.b.graph.ty(v).clone(), self.b.graph.value(v).ints.clone()),
                None => {
                    let mut dims = vec![];
                    self.b.graph.ty(p).each_dim(&mut |d| dims.push(d));
                    dims.into_iter().for_each(|d| _ = self.size_or_new(d));
                    (self.b.graph.ty(p).map_dims(&|d| self.size(d).unwrap_or(d)), None)
                }
            };
            let param = self.b.graph.add_param(copy, ty, "");
            self.b.graph.values[param.index()].ints = ints;
            self.stands_for(p, param);
        }
        let outside = std::mem::take(&mut self.b.nodes);
        let done: Result<(), Fault> = data.nodes.iter().try_for_each(|&n| self.node(n));
        let nodes = std::mem::replace(&mut self.b.nodes, outside);
        done?;
        let results = data.results.iter().map(|&v| self.find(v)).collect();
        let region = &mut self.b.graph.regions[copy.index()];
        (region.nodes, region.results) = (nodes, results);
        Ok(copy)
    }
}
