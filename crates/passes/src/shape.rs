//! Shapes: types and small integer values inferred again, in order, through all regions; and symbols bound to numbers.
//!
//! Types only become better: where inference knows less than what is already known of a value, that is kept.

use crate::dce::{capture_params, captures};
use crate::rewrite::{Context, infer_node};
use infc_ir::expr::{Expr, Node as ExprNode, Range, Ranges};
use infc_ir::graph::{Def, Graph, Node, Region, Requirement, Value};
use infc_ir::op::{normal_axis, sizes};
use infc_ir::{Fact, Fault, Op, Problem, Problems, Type};
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

/// Runs the pass; counts values of which more is known than before.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    let mut dims = std::mem::take(&mut cx.bind);
    let mut count = 0;
    loop {
        let mut changed = vec![];
        let bound = bind(g, &dims)?;
        infer_region(g, Graph::MAIN, &mut changed)?;
        for _ in 0..ROUNDS {
            let simpler = simplify(g);
            if simpler == 0 {
                break;
            }
            count += simpler;
            infer_region(g, Graph::MAIN, &mut changed)?;
        }
        if bound > 0 {
            // With these sizes some types have other ranks, and less is taken for granted.
            g.requires.extend(sizes::requirements(g).into_iter().filter(|r| r.assumed));
        }
        count += bound + changed.len();
        dims = decided(g);
        if dims.is_empty() {
            return Ok(count);
        }
    }
}

/// Symbols that can only have one value in a run, because some operator requires that they are equal to a number, where ranks may
/// depend on it. Otherwise they stay symbols: a wrong size is then told in that operator's words.
fn decided(g: &Graph) -> Vec<(String, i64)> {
    if !g.requires.iter().any(|r| r.assumed) {
        return vec![];
    }
    let symbols = bound_symbols(g);
    let pair = |a: Expr, b: Expr| match (a.node(), b.known()) {
        (ExprNode::Sym(s), Some(n)) if n >= 0 && symbols.contains(s) => Some(((*s).to_owned(), n)),
        _ => None,
    };
    let certain = g.requires.iter().filter(|r| !r.or_one && !r.assumed);
    let mut dims: Vec<(String, i64)> = certain.filter_map(|r| pair(r.left, r.right).or_else(|| pair(r.right, r.left))).collect();
    // Of two values one cannot be met: the other requirement says so when the first is bound.
    dims.sort();
    dims.dedup_by(|a, b| a.0 == b.0);
    dims
}

/// Most rounds of inference with what was simplified.
const ROUNDS: usize = 8;
/// How far the least size is looked for that a requirement allows.
const LEAST: i64 = 4096;

/// The least sizes that the graph's requirements allow, of symbols that stand in one alone. Found by trying: all smaller ones fail.
fn least_sizes(g: &Graph) -> Ranges {
    let mut ranges = Ranges::default();
    let symbols = bound_symbols(g);
    for r in g.requires.iter().filter(|r| !r.assumed) {
        let mut found = BTreeSet::new();
        [r.left, r.right].iter().for_each(|e| e.leaves(&mut |leaf| found.extend(symbol(leaf))));
        let [s] = found.iter().copied().collect::<Vec<_>>()[..] else { continue };
        let fails = |n: &i64| r.holds(&|_| Some(*n)) == Some(false);
        let least = (0..LEAST).take_while(fails).count() as i64;
        if symbols.contains(s) && least > ranges.syms.get(s).map_or(0, |r| r.lo) {
            ranges.syms.insert(s, Range::new(least, Range::MAX));
        }
    }
    ranges
}

/// Simplifies sizes and small integers for the least sizes that a run may have; counts the values with simpler ones.
fn simplify(g: &mut Graph) -> usize {
    let ranges = least_sizes(g);
    if ranges.syms.is_empty() {
        return 0;
    }
    let mut count = 0;
    for v in &mut g.values {
        let ty = v.ty.map_dims(&|e| e.simplify(&ranges));
        let ints = v.ints.as_ref().map(|i| i.iter().map(|e| e.simplify(&ranges)).collect());
        count += usize::from(ty != v.ty || ints != v.ints);
        (v.ty, v.ints) = (ty, ints);
    }
    for n in &mut g.nodes {
        if let Op::DimVector(op) = &mut n.op {
            op.exprs.iter_mut().for_each(|e| *e = e.simplify(&ranges));
        }
    }
    count
}

/// The symbols in the types of the model's inputs.
pub fn input_symbols(g: &Graph) -> BTreeSet<&'static str> {
    let mut symbols = BTreeSet::new();
    for &v in g.inputs() {
        g.ty(v).each_dim(&mut |d| {
            d.leaves(&mut |leaf| {
                if let ExprNode::Sym(s) = leaf.node() {
                    symbols.insert(*s);
                }
            });
        });
    }
    symbols
}

/// The symbols that are a dim of an input by themselves: known as soon as the inputs are.
pub fn bound_symbols(g: &Graph) -> BTreeSet<&'static str> {
    let mut symbols = BTreeSet::new();
    for &v in g.inputs() {
        if let Some(t) = g.ty(v).as_tensor() {
            symbols.extend(t.dims.iter().filter_map(|d| if let ExprNode::Sym(s) = d.node() { Some(*s) } else { None }));
        }
    }
    symbols
}

/// Symbols that mean the same before a node, in its bodies and after it: those of the inputs and of its operands.
pub fn outer_symbols(g: &Graph, n: Node) -> BTreeSet<&'static str> {
    let mut symbols = input_symbols(g);
    for &v in g.node(n).inputs.iter().flatten() {
        let mut see = |d: Expr| d.leaves(&mut |leaf| symbols.extend(symbol(leaf)));
        g.ty(v).each_dim(&mut see);
        g.value(v).ints.iter().flatten().for_each(|&e| see(e));
    }
    symbols
}

/// The symbol that an expression is.
pub fn symbol(e: Expr) -> Option<&'static str> {
    if let ExprNode::Sym(s) = e.node() { Some(*s) } else { None }
}

/// Two types of one value: a dim that is a symbol, and not one of `outer`, stands for what the dim is in the other type.
pub fn learn(sizes: &mut HashMap<&'static str, Expr>, outer: &BTreeSet<&'static str>, old: &Type, new: &Type) {
    let (Type::Tensor(old), Type::Tensor(new)) = (old, new) else { return };
    for (&o, &n) in old.dims.iter().zip(&new.dims) {
        let Some(s) = symbol(o).filter(|s| !outer.contains(s) && o != n) else { continue };
        if sizes.get(s).is_none_or(|e| e.known().is_none() && n.known().is_some()) {
            sizes.insert(s, n);
        }
    }
}

/// Puts expressions in place of symbols, in all types and integers that are known.
pub fn substitute(g: &mut Graph, sizes: &HashMap<&'static str, Expr>) {
    let leaf = |l: Expr| symbol(l).and_then(|s| sizes.get(s)).copied().unwrap_or(l);
    for v in &mut g.values {
        v.ty = v.ty.map_dims(&|d| d.map(&leaf));
        v.ints.iter_mut().flatten().for_each(|e| *e = e.map(&leaf));
    }
    for r in &mut g.requires {
        (r.left, r.right) = (r.left.map(&leaf), r.right.map(&leaf));
    }
}

/// Replaces symbols of the inputs' dims by numbers everywhere; counts the values that mention them. Inference is not run again.
pub fn bind(g: &mut Graph, dims: &[(String, i64)]) -> Result<usize, Problems> {
    let known = input_symbols(g);
    let mut problems = vec![];
    let mut numbers: HashMap<&str, i64> = HashMap::new();
    for (name, value) in dims {
        let mut problem = |message: String, help: String| problems.push(Problem { at: format!("dim '{name}'"), message, help });
        let names = || known.iter().copied().collect::<Vec<_>>().join(", ");
        if !known.contains(name.as_str()) {
            let help = if known.is_empty() { "all its dims are known".to_owned() } else { format!("it has {}", names()) };
            problem("the model has no symbolic dim of this name".to_owned(), help);
        } else if *value < 0 {
            problem(format!("{value} is negative"), "a dim is at least 0".to_owned());
        } else if numbers.insert(name, *value).is_some_and(|before| before != *value) {
            problem("is given two different values".to_owned(), String::new());
        }
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    if numbers.is_empty() {
        return Ok(0);
    }
    let leaf = |e: Expr| match e.node() {
        ExprNode::Sym(s) => numbers.get(s).map_or(e, |&n| Expr::int(n)),
        _ => e,
    };
    let mut count = 0;
    for v in &mut g.values {
        let (ty, ints) = (v.ty.map_dims(&|e| e.map(&leaf)), v.ints.as_ref().map(|i| i.iter().map(|e| e.map(&leaf)).collect()));
        count += usize::from(ty != v.ty || ints != v.ints);
        (v.ty, v.ints) = (ty, ints);
    }
    for n in &mut g.nodes {
        if let Op::DimVector(op) = &mut n.op {
            op.exprs.iter_mut().for_each(|e| *e = e.map(&leaf));
        }
    }
    for r in &mut g.requires {
        (r.left, r.right) = (r.left.map(&leaf), r.right.map(&leaf));
    }
    g.requires.retain(|r| !r.assumed);
    let broken: Vec<_> = g.requires.iter().filter(|r| r.holds(&|_| None) == Some(false)).map(Requirement::problem).collect();
    g.requires.retain(|r| r.left != r.right && r.holds(&|_| None).is_none());
    if broken.is_empty() { Ok(count) } else { Err(Problems(broken)) }
}

fn infer_region(g: &mut Graph, r: Region, changed: &mut Vec<Value>) -> Result<(), Problems> {
    let mut problems = vec![];
    for n in g.region(r).nodes.clone() {
        match update(g, n, false) {
            Ok(values) => changed.extend(values),
            Err(f) => problems.push(Problem { at: g.describe(n), message: f.0, help: String::new() }),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// Infers the results of one node (and its bodies) again; gives the values of which something new is known.
pub fn refresh(g: &mut Graph, n: Node) -> Result<Vec<Value>, Fault> {
    update(g, n, true)
}

/// As [`refresh`]; ranks may change where symbols were bound.
fn update(g: &mut Graph, n: Node, same_ranks: bool) -> Result<Vec<Value>, Fault> {
    let mut changed = vec![];
    let regions = g.node(n).regions.clone();
    if !regions.is_empty() {
        let count = captures(g, n);
        let first = g.node(n).inputs.len() - count;
        for k in 0..count {
            let Some(operand) = g.node(n).inputs[first + k] else { continue };
            let fact = g.fact(operand);
            for param in capture_params(g, n, k) {
                improve(g, param, &fact, false, &mut changed);
            }
        }
        for (param, slice) in slices(g, n) {
            improve(g, param, &Fact::of(slice), false, &mut changed);
        }
        for r in regions {
            infer_region(g, r, &mut changed).map_err(|p| Fault(p.to_string()))?;
        }
    }
    let facts = infer_node(g, n, same_ranks)?;
    for (v, fact) in g.node(n).outputs.clone().into_iter().zip(facts) {
        improve(g, v, &fact, false, &mut changed);
    }
    Ok(changed)
}

/// The parameters of a Scan's body that are slices, with the types that the operands give them now.
fn slices(g: &Graph, n: Node) -> Vec<(Value, Type)> {
    let node = g.node(n);
    let Op::Scan(op) = &node.op else { return vec![] };
    let params = &g.region(node.regions[0]).params;
    let count = usize::try_from(op.num_scan_inputs).unwrap_or(0);
    let first = (node.inputs.len() - captures(g, n)).saturating_sub(count);
    let slice = |j: usize| {
        let mut t = g.ty((*node.inputs.get(first + j)?)?).as_tensor()?.clone();
        t.dims.remove(normal_axis(op.scan_input_axes.get(j).copied().unwrap_or(0), t.rank()).ok()?);
        Some((*params.get(first + j)?, Type::Tensor(t)))
    };
    (0..count).filter_map(slice).collect()
}

/// Joins what inference says with what is known of a value. Of two expressions for a dim the better one is kept: a number before
/// an expression of the inputs' dims before others, of these the one with fewer symbols that only data tells (a node that set one may be
/// folded away), and if they are equally good the old one (so that names stay stable), or the new one if `prefer_new`.
pub fn improve(g: &mut Graph, v: Value, new: &Fact, prefer_new: bool, changed: &mut Vec<Value>) {
    let old = g.value(v);
    if matches!(old.def, Def::Constant(_)) || (old.ty == new.ty && (new.ints.is_none() || old.ints == new.ints)) {
        return;
    }
    let symbols = input_symbols(g);
    let rank = |e: Expr| {
        let mut open = BTreeSet::new();
        e.leaves(&mut |leaf| match leaf.node() {
            ExprNode::Sym(s) if symbols.contains(s) => {}
            _ => _ = open.insert(leaf),
        });
        (e.known().is_some(), Reverse(open.len()))
    };
    let pick = |old: Expr, new: Expr| if old != new && (rank(new), prefer_new) > (rank(old), false) { new } else { old };
    let ty = match (&old.ty, &new.ty) {
        (Type::Tensor(o), Type::Tensor(n)) if o.rank() == n.rank() => {
            Type::tensor(n.dtype, o.dims.iter().zip(&n.dims).map(|(&o, &n)| pick(o, n)))
        }
        _ => new.ty.clone(),
    };
    let ints = match (&old.ints, &new.ints) {
        (Some(o), Some(n)) if n.len() == o.len() => Some(o.iter().zip(n).map(|(&o, &n)| pick(o, n)).collect()),
        (old, new) => new.clone().or(old.clone()),
    };
    if ty != old.ty || ints != old.ints {
        let data = &mut g.values[v.index()];
        (data.ty, data.ints) = (ty, ints);
        changed.push(v);
    }
}
