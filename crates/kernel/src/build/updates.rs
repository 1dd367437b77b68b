//! Scatter for GPUs: a step of its own has made the base, and many threads bring the updates in, each element in the order of the updates.
//!
//! Updates that differ along an axis whose variable alone moves an index of the result never meet: these axes are tasks. Where the others meet for certain or
//! perhaps, elements of the result have owners, each of which looks at all updates in order and takes those of its own. So duplicates give the bits that they give one after
//! another, whatever joins them.

use super::{Cx, Operand, for_each};
use crate::loops::{LoopKind, Stmt};
use infc_ir::compute::{Compute, Scatter, Step};
use infc_ir::expr::Node;
use infc_ir::interp::run_step;
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr};
use std::collections::HashSet;

/// Who brings updates in.
#[derive(Clone, Debug, PartialEq)]
pub struct Updates {
    /// Axes of the updates that are tasks.
    pub apart: Vec<usize>,
    /// Owners of the elements that the others may meet in, a power of two.
    pub owners: usize,
}

/// Tasks from which on there need be no owners.
const TASKS: i64 = 1024;
/// The fewest updates one after another that owners are for.
const FEW: i64 = 8;
/// The most updates at known places that are looked at.
const MOST: i64 = 1 << 20;

/// The plan of the updates.
pub fn plan(s: &Scatter, operands: &[Operand]) -> Updates {
    let rank = s.updates.len();
    if never_meet(s, operands) {
        return Updates { apart: (0..rank).collect(), owners: 1 };
    }
    let mut apart: HashSet<u32> = HashSet::new();
    while let Some(axis) = (0..rank as u32).find(|a| !apart.contains(a) && s.index.iter().any(|&i| moves_alone(i, *a, &apart))) {
        apart.insert(axis);
    }
    let size = |of: &dyn Fn(u32) -> bool| -> i64 {
        let all = (0..rank).filter(|&a| of(a as u32)).map(|a| crate::plan::guess(s.updates[a]).max(1));
        all.fold(1, i64::saturating_mul)
    };
    let (tasks, others) = (size(&|a| apart.contains(&a)), size(&|a| !apart.contains(&a)));
    let power = |n: i64| 1i64 << n.max(1).ilog2();
    let owners = if others < FEW { 1 } else { power(TASKS / tasks.max(1)).min(power(others)) };
    let mut apart: Vec<usize> = apart.into_iter().map(|a| a as usize).collect();
    apart.sort_unstable();
    Updates { apart, owners: owners.max(1) as usize }
}

/// Does an index change with an axis, and else only with axes along which updates never meet?
fn moves_alone(index: Scalar, axis: u32, apart: &HashSet<u32>) -> bool {
    let others_apart = |s: Scalar| variables(s).iter().all(|v| apart.contains(v));
    let linear = |s: Scalar| {
        let (step, rest) = s.as_index()?.affine_in(axis)?;
        (step != 0 && others_apart(Scalar::index(rest))).then_some(())
    };
    match index.kind() {
        Kind::Binary(Binary::Add, a, b) if index.as_index().is_none() => {
            [(a, b), (b, a)].iter().any(|(moving, other)| linear(**moving).is_some() && others_apart(**other))
        }
        _ => linear(index).is_some(),
    }
}

fn variables(s: Scalar) -> HashSet<u32> {
    let mut all = HashSet::new();
    s.visit(&mut |n| {
        if let Kind::Index(e) = n.kind() {
            e.leaves(&mut |l| {
                if let Node::Var(v) = l.node() {
                    all.insert(*v);
                }
            });
        }
    });
    all
}

/// Are all places known, and different?
fn never_meet(s: &Scatter, operands: &[Operand]) -> bool {
    let sizes: Option<Vec<i64>> = s.dims.iter().chain(&s.updates).map(|d| d.known()).collect();
    let count = s.updates.iter().map(|d| d.known()).product::<Option<i64>>();
    if sizes.is_none() || count.is_none_or(|n| n > MOST) {
        return false;
    }
    let place = s.index.iter().zip(&s.dims).fold(Scalar::index(0), |sum, (&i, &d)| sum * Scalar::index(d) + i);
    let step = Step::Compute(Compute { dims: s.updates.clone(), reduction: None, value: place });
    let sources: Vec<_> = operands.iter().map(|o| o.constant.clone()).collect();
    if step.sources().iter().any(|&k| sources[k as usize].is_none()) {
        return false;
    }
    let mut seen = HashSet::new();
    run_step(&step, &sources).is_ok_and(|t| t.to_ints().iter().all(|&at| seen.insert(at)))
}

/// The updates, into a result that is there.
pub fn build(cx: &mut Cx, s: &Scatter, p: &Updates) {
    let tasks: Vec<Expr> = [Expr::from(p.owners)].into_iter().chain(p.apart.iter().map(|&a| s.updates[a])).collect();
    // Neighbouring tasks are neighbours along the last axis.
    let chunk = cx.chunked(&tasks, 1);
    let owner = chunk.values[0];
    let mut axes = cx.vars(&["update"], s.updates.len());
    let mut body = vec![];
    let mut index: Vec<Scalar> = vec![];
    let inner = axes.clone();
    p.apart.iter().zip(&chunk.values[1..]).for_each(|(&a, &v)| axes[a] = v);
    for i in s.index.iter().map(|i| i.subst(&axes)) {
        index.push(if i.as_index().is_some() { i } else { super::online::name(cx, i, &mut body) });
    }
    let value = s.value.subst(&axes);
    let value = match s.combine {
        None => value,
        Some(op) => Scalar::binary(op, Scalar::read(value.dtype(), cx.out() as usize, index.iter().copied()), value),
    };
    let mut update = vec![Stmt::Store { buffer: cx.out(), index: index.clone(), value }];
    if p.owners > 1 {
        let place = index.iter().zip(&s.dims).filter(|(i, _)| i.as_index().is_none_or(|e| e.has_var()));
        let place = place.fold(Scalar::index(0), |sum, (&i, &d)| sum * Scalar::index(d) + i);
        let low = Scalar::binary(Binary::And, place, Scalar::int(DType::I64, p.owners as i64 - 1));
        update = vec![Stmt::If { cond: low.eq_to(Scalar::index(owner)), then: update, otherwise: vec![] }];
    }
    body.extend(update);
    for a in (0..s.updates.len()).rev().filter(|a| !p.apart.contains(a)) {
        body = vec![for_each(inner[a], s.updates[a], LoopKind::Serial, body)];
    }
    cx.body = chunk.wrap(body);
}
