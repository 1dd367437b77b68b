//! Rules of data movement: views become one Reshape, permutations one Transpose.

use crate::rewrite::{Replacement, Site};
use infc_ir::expr::{Expr, Node as ExprNode};
use infc_ir::op::{DimVector, Reshape, Transpose, broadcast, fact};
use infc_ir::{DType, Fault, Node, Op, Value};
use std::collections::BTreeSet;

pub(super) fn rule(site: &mut Site, symbols: &BTreeSet<&'static str>) -> Replacement {
    match site.op() {
        Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) if !by_data(site, site.node) => {
            let x = site.input(0).expect("checked by inference");
            reshape(site, x, symbols)
        }
        Op::Reshape(_) => chain(site, symbols),
        Op::Transpose(_) => transpose(site, symbols),
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) | Op::Where(_) | Op::Equal(_) | Op::And(_) | Op::Less(_) => {
            expanded(site)
        }
        _ => Ok(None),
    }
}

/// Is the view told by data? Then it may be wrong, which is found where it is run.
fn by_data(site: &Site, n: Node) -> bool {
    let told = site.graph.node(n).inputs.get(1).copied().flatten();
    told.is_some_and(|v| fact(site.graph, v).ints.is_none())
}

/// A Reshape of `x` to the dims of the node's result, as [`view`] makes it.
fn reshape(site: &mut Site, x: Value, symbols: &BTreeSet<&'static str>) -> Replacement {
    let Some(ty) = site.graph.ty(site.output()).as_tensor().cloned() else { return Ok(None) };
    Ok(view(site, x, &ty.dims, symbols)?.map(|v| vec![v]))
}

/// A Reshape of `x` to these dims, if they are known, but for one, or follow from the inputs.
fn view(site: &mut Site, x: Value, dims: &[Expr], symbols: &BTreeSet<&'static str>) -> Result<Option<Value>, Fault> {
    let known: Option<Vec<i64>> = dims.iter().map(|d| d.known()).collect();
    let follows = |d: &Expr| {
        let mut good = true;
        d.leaves(&mut |l| good &= matches!(l.node(), ExprNode::Sym(s) if symbols.contains(s)));
        good
    };
    // One unknown dim is what is left over: that needs no computed target.
    let unknown = dims.iter().filter(|d| d.known().is_none()).count();
    let left_over = unknown == 1 && !dims.iter().any(|d| d.is(0));
    if known.is_none() && !left_over && !dims.iter().all(follows) {
        return Ok(None);
    }
    site.build(|b| {
        let target = match known {
            Some(dims) => b.ints(&dims),
            None if left_over => b.ints(&dims.iter().map(|d| d.known().unwrap_or(-1)).collect::<Vec<_>>()),
            None => b.op(DimVector { exprs: dims.to_vec(), dtype: i64::from(DType::I64.onnx()), scalar: false }, &[])?,
        };
        // A dim that is 0 stands for itself; only with -1 that is not allowed.
        b.op(Reshape { allowzero: !left_over && dims.iter().any(|d| d.known().is_none_or(|n| n == 0)) }, &[x, target])
    })
    .map(Some)
}

/// Reshape of a view of x: Reshape of x.
fn chain(site: &mut Site, symbols: &BTreeSet<&'static str>) -> Replacement {
    let Some(inner) = site.input(0).and_then(|v| site.producer(v)) else { return Ok(None) };
    let node = site.graph.node(inner);
    if let Op::Transpose(_) = node.op {
        return split(site, inner, symbols);
    }
    let (Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_), Some(x)) = (&node.op, node.operand(0)) else {
        return Ok(None);
    };
    if by_data(site, inner) {
        return Ok(None);
    }
    site.absorb(inner);
    reshape(site, x, symbols)
}

/// The permutation of a Transpose of `rank` dims; absent means reversed.
pub fn permutation(op: &Transpose, rank: usize) -> Vec<usize> {
    if op.perm.is_empty() { (0..rank).rev().collect() } else { op.perm.iter().map(|&p| p as usize).collect() }
}

/// Transpose of a Transpose: one. A Transpose that only moves dims of extent 1: a Reshape.
fn transpose(site: &mut Site, symbols: &BTreeSet<&'static str>) -> Replacement {
    let (Op::Transpose(op), Some(x)) = (site.op(), site.input(0)) else { return Ok(None) };
    let Some(ty) = site.graph.ty(x).as_tensor() else { return Ok(None) };
    let perm = permutation(op, ty.rank());
    let kept: Vec<usize> = perm.iter().copied().filter(|&p| !ty.dims[p].is(1)).collect();
    if kept.is_sorted() {
        return reshape(site, x, symbols);
    }
    let Some(inner) = site.producer(x) else { return Ok(None) };
    let node = site.graph.node(inner);
    let (Op::Transpose(first), Some(source)) = (&node.op, node.operand(0)) else { return merged(site, inner, &perm, symbols) };
    let first = permutation(first, perm.len());
    let perm = perm.iter().map(|&p| first[p] as i64).collect();
    site.absorb(inner);
    site.replace(Transpose { perm }, &[source])
}

/// Transpose of a Reshape that merges neighbouring dims: a Reshape of a Transpose, as where pictures become tokens. What made the picture can then write it so.
fn merged(site: &mut Site, inner: Node, perm: &[usize], symbols: &BTreeSet<&'static str>) -> Replacement {
    let node = site.graph.node(inner);
    let (Op::Reshape(_), Some(x)) = (&node.op, node.operand(0)) else { return Ok(None) };
    let dims_of = |v: Value| site.graph.ty(v).as_tensor().map(|t| t.dims.clone());
    let (Some(from), Some(to)) = (dims_of(x), dims_of(node.outputs[0])) else { return Ok(None) };
    if by_data(site, inner) || !site.used_once(node.outputs[0]) {
        return Ok(None);
    }
    let Some(groups) = groups(&from, &to) else { return Ok(None) };
    if groups.iter().all(|g| g.iter().filter(|&&a| !from[a].is(1)).count() < 2) {
        return Ok(None);
    }
    let perm = perm.iter().flat_map(|&p| groups[p].iter().map(|&a| a as i64)).collect();
    site.absorb(inner);
    let moved = site.build(|b| b.op(Transpose { perm }, &[x]))?;
    reshape(site, moved, symbols)
}

/// Reshape that splits dims of a Transpose's result: a Transpose of a Reshape, as where tokens become a picture, which is then read as the tokens lie.
fn split(site: &mut Site, inner: Node, symbols: &BTreeSet<&'static str>) -> Replacement {
    let node = site.graph.node(inner);
    let (Op::Transpose(op), Some(x)) = (&node.op, node.operand(0)) else { return Ok(None) };
    let dims_of = |v: Value| site.graph.ty(v).as_tensor().map(|t| t.dims.clone());
    let (Some(moved), Some(to)) = (dims_of(node.outputs[0]), dims_of(site.output())) else { return Ok(None) };
    let perm = permutation(op, moved.len());
    if by_data(site, site.node) || !site.used_once(node.outputs[0]) {
        return Ok(None);
    }
    let Some(groups) = groups(&to, &moved) else { return Ok(None) };
    if groups.iter().all(|g| g.iter().filter(|&&a| !to[a].is(1)).count() < 2) {
        return Ok(None);
    }
    // The parts of the operand's dims in its own order, and where each of them goes.
    let place = |dim: usize| perm.iter().position(|&p| p == dim).unwrap_or(dim);
    let parts: Vec<usize> = (0..perm.len()).flat_map(|dim| groups[place(dim)].iter().copied()).collect();
    let dims: Vec<Expr> = parts.iter().map(|&a| to[a]).collect();
    let back = (0..to.len()).map(|a| parts.iter().position(|&p| p == a).unwrap_or(a) as i64).collect();
    site.absorb(inner);
    let Some(x) = view(site, x, &dims, symbols)? else { return Ok(None) };
    site.replace(Transpose { perm: back }, &[x])
}

/// For each dim of `to` the neighbouring dims of `from` that it is the product of, all in order; `None` if it is not so.
fn groups(from: &[Expr], to: &[Expr]) -> Option<Vec<Vec<usize>>> {
    let mut next = 0;
    let mut all: Vec<Vec<usize>> = vec![];
    for &dim in to {
        let (mut product, mut group) = (Expr::int(1), vec![]);
        while group.is_empty() || product != dim {
            product = product * *from.get(next)?;
            group.push(next);
            next += 1;
        }
        all.push(group);
    }
    // Dims of one element at the end belong to the last one.
    let rest = next..from.len();
    if !rest.clone().all(|a| from[a].is(1)) {
        return None;
    }
    all.last_mut()?.extend(rest);
    Some(all)
}

/// op(Expand(x), y): op(x, y), if the operator broadcasts to the same dims by itself.
fn expanded(site: &mut Site) -> Replacement {
    let inputs: Vec<Value> = site.data().inputs.iter().flatten().copied().collect();
    let Some(out) = site.graph.ty(site.output()).as_tensor().map(|t| t.dims.clone()) else { return Ok(None) };
    for k in 0..inputs.len() {
        let Some(inner) = site.producer(inputs[k]) else { continue };
        let node = site.graph.node(inner);
        let (Op::Expand(_), Some(x)) = (&node.op, node.operand(0)) else { continue };
        let mut changed = inputs.clone();
        changed[k] = x;
        let dims: Vec<_> = changed.iter().filter_map(|&v| Some(site.graph.ty(v).as_tensor()?.dims.as_slice())).collect();
        if broadcast(&dims).is_ok_and(|d| d == out) {
            site.absorb(inner);
            let op = site.op().clone();
            return site.replace(op, &changed);
        }
    }
    Ok(None)
}
