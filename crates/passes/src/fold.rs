//! Folding: what is known at compile time is computed at compile time.
//!
//! - A node whose operands are all constants becomes constants, by the interpreter, unless the result is large and larger than
//!   what it comes from.
//! - A small integer result that inference knows as numbers becomes a constant; one that it knows as expressions of the inputs'
//!   dims becomes a `DimVector`. So shape arithmetic loses its users and vanishes.
//! - An If with a known condition becomes the branch taken; a captured constant is used directly in the body.
//! - Operators that give back their operand are replaced by it.

use crate::dce::{capture_params, captures, remove_capture};
use crate::rewrite::{Context, Replacement, Site, each_node};
use crate::shape::bound_symbols;
use infc_ir::expr::{Expr, Node as ExprNode};
use infc_ir::graph::{Graph, Value};
use infc_ir::interp::eval_op;
use infc_ir::op::DimVector;
use infc_ir::{Fact, Op, Problems, Tensor};
use std::collections::BTreeSet;

/// Results of more bytes than this are not computed ahead if they are larger than what they come from.
const LARGE: usize = 16 << 20;
/// The same for operators that repeat what they get.
const REPEATED: usize = 16 << 10;

/// Runs the pass; counts replaced nodes and operands.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    let mut count = 0;
    loop {
        let symbols = bound_symbols(g);
        let portable = cx.portable;
        let replaced = each_node(g, cx, "fold", &mut |site| rule(site, &symbols, portable))?;
        let captured = constant_captures(g, cx);
        count += replaced + captured;
        if captured == 0 {
            return Ok(count);
        }
    }
}

fn rule(site: &mut Site, symbols: &BTreeSet<&'static str>, portable: bool) -> Replacement {
    if let Some(values) = branch(site)? {
        return Ok(Some(values));
    }
    if let Some(values) = known_ints(site, symbols, portable)? {
        return Ok(Some(values));
    }
    if let Some(values) = evaluate(site) {
        return Ok(Some(values));
    }
    match same(site) {
        Some(v) if !matches!(site.op(), Op::Identity(_)) || site.can_forward(site.output(), v) => Ok(Some(vec![v])),
        _ => Ok(None),
    }
}

/// If with a known condition: the nodes of the branch taken.
fn branch(site: &mut Site) -> Replacement {
    if !matches!(site.op(), Op::If(_)) {
        return Ok(None);
    }
    let Some(cond) = site.input(0) else { return Ok(None) };
    let fact = site.graph.fact(cond);
    let known = fact.known.map(|t| t.value(0) != 0).or_else(|| Some(fact.ints?.first()?.known()? != 0));
    let Some(taken) = known else { return Ok(None) };
    let region = site.data().regions[usize::from(!taken)];
    let operands: Vec<Value> = site.data().inputs[1..].iter().flatten().copied().collect();
    let body = std::mem::take(&mut site.graph.regions[region.index()].nodes);
    let params = site.graph.region(region).params.clone();
    let results = site.graph.region(region).results.clone();
    site.take_sizes(&results);
    site.inline(body, params.into_iter().zip(operands));
    Ok(Some(results))
}

/// Results whose elements inference knows.
fn known_ints(site: &mut Site, symbols: &BTreeSet<&'static str>, portable: bool) -> Replacement {
    if matches!(site.op(), Op::DimVector(_)) && site.graph.value(site.output()).ints.is_none() {
        return Ok(None);
    }
    let outputs = site.data().outputs.clone();
    let mut values = outputs.clone();
    for value in &mut values {
        let old = *value;
        if site.uses(old) == 0 {
            continue;
        }
        let fact = site.graph.fact(old);
        let (Some(ints), Some(ty)) = (fact.ints.clone(), fact.ty.as_tensor().cloned()) else { continue };
        if let Some(t) = Fact::of(ty.clone()).with_ints(Some(ints.clone())).known {
            *value = site.graph.add_constant(t, "");
        } else if !portable && !matches!(site.op(), Op::DimVector(_)) && ints.iter().all(|&e| follows(e, symbols)) {
            let op = DimVector { exprs: ints, dtype: i64::from(ty.dtype.onnx()), scalar: ty.rank() == 0 };
            *value = site.build(|b| b.op(op, &[]))?;
        }
    }
    Ok((values != outputs).then_some(values))
}

/// True if an expression is made of the inputs' symbols, so that it is known as soon as the inputs are.
fn follows(e: Expr, symbols: &BTreeSet<&'static str>) -> bool {
    let mut good = true;
    e.leaves(&mut |leaf| good &= matches!(leaf.node(), ExprNode::Sym(s) if symbols.contains(s)));
    good
}

/// A node of constants, computed. Operators that draw random numbers are never computed, nor dequantisation: weights stay small
/// for passes that work on integers.
fn evaluate(site: &mut Site) -> Option<Vec<Value>> {
    let node = site.data();
    let random = node.op.info().family == "random" && !matches!(node.op, Op::Dropout(_));
    if node.inputs.is_empty() || !node.regions.is_empty() || random || matches!(node.op, Op::DequantizeLinear(_)) {
        return None;
    }
    let mut inputs = vec![];
    for v in &node.inputs {
        inputs.push(match v {
            None => None,
            Some(v) => Some(site.graph.constant(*v)?.clone()),
        });
    }
    let from: usize = inputs.iter().flatten().map(size).sum();
    // A size that depends on the data (NonZero) is found by computing, if that is little work.
    let mut to = Some(0usize);
    for &v in &node.outputs {
        let t = site.graph.ty(v).as_tensor()?;
        let bytes = t.known_dims().map(|dims| dims.iter().fold(t.dtype.bytes(), |a, &d| a.saturating_mul(d)));
        to = to.zip(bytes).map(|(a, b)| a.saturating_add(b));
    }
    let limit = match node.op {
        // A narrow constant that is used wide is widened in each run otherwise.
        Op::Cast(_) => usize::MAX,
        Op::ConstantOfShape(_) | Op::Expand(_) | Op::Tile(_) | Op::EyeLike(_) | Op::OneHot(_) | Op::Range(_) => REPEATED,
        _ => LARGE,
    };
    let too_large = match to {
        Some(to) => to > from && to > limit,
        None => from > REPEATED,
    };
    if too_large {
        return None;
    }
    // An error here is one at run time, if the node is run at all: it stays where it is.
    let results = eval_op(&node.op, &inputs, node.outputs.len()).ok()?;
    Some(results.into_iter().map(|t| site.graph.add_constant(t, "")).collect())
}

fn size(t: &Tensor) -> usize {
    t.bytes().len() + t.strings().iter().map(|s| s.len()).sum::<usize>()
}

/// The operand that a node gives back unchanged.
fn same(site: &Site) -> Option<Value> {
    let node = site.data();
    if node.outputs.len() != 1 {
        return None;
    }
    let x = site.input(0)?;
    let (from, to) = (site.graph.ty(x), site.graph.ty(site.output()));
    let known = |i: usize| site.input(i).map(|v| site.graph.fact(v).ints?.iter().map(|e| e.known()).collect::<Option<Vec<_>>>());
    let all = |i: usize, value: i64, absent: bool| match known(i) {
        None => absent,
        Some(ints) => ints.is_some_and(|v| v.iter().all(|&k| k == value)),
    };
    let alone = node.inputs.iter().flatten().count() == 1;
    let unchanged = match &node.op {
        Op::Identity(_) => true,
        Op::Cast(_) | Op::CastLike(_) | Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Expand(_) => {
            from == to
        }
        Op::Tile(_) => all(1, 1, false),
        Op::Pad(_) => all(1, 0, false) && from == to,
        Op::Slice(_) => from == to && all(4, 1, true),
        Op::Transpose(op) => {
            let rank = from.as_tensor()?.rank();
            rank < 2 || op.perm.iter().enumerate().all(|(i, &p)| p == i as i64) && op.perm.len() == rank
        }
        Op::Concat(_) | Op::Max(_) | Op::Min(_) | Op::Sum(_) => alone,
        Op::Split(_) => from == to,
        Op::Clip(_) => alone,
        Op::Floor(_) | Op::Ceil(_) | Op::Round(_) => from.as_tensor()?.dtype.is_int(),
        _ => false,
    };
    unchanged.then_some(x)
}

/// Constants captured by bodies are used there directly.
fn constant_captures(g: &mut Graph, cx: &mut Context) -> usize {
    let mut moved = vec![];
    let mut count = 0;
    for r in g.live_regions() {
        for n in g.region(r).nodes.clone() {
            for k in (0..captures(g, n)).rev() {
                let node = g.node(n);
                let operand = node.inputs[node.inputs.len() - captures(g, n) + k];
                let Some(constant) = operand.filter(|&v| g.constant(v).is_some()) else { continue };
                if !cx.spend() {
                    continue;
                }
                moved.extend(capture_params(g, n, k).into_iter().map(|p| (p, constant)));
                remove_capture(g, n, k);
                count += 1;
            }
        }
    }
    let map: std::collections::HashMap<Value, Value> = moved.into_iter().collect();
    if !map.is_empty() {
        g.replace_uses(&|v| map.get(&v).copied().unwrap_or(v));
    }
    count
}
