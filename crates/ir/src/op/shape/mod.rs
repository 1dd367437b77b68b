//! Operators that move, cut, repeat or describe elements without computing with them.
//!
//! Integer vectors stay symbolic through all of them ([`Fact::ints`]): the shape arithmetic that exporters write around a
//! Reshape or an Expand is known when inference is done, whatever the sizes are.

use super::axes::Named;
use super::*;
use crate::compute::Compute;
use crate::expr::{Node, Ranges};
use crate::scalar::Scalar;

mod extend;
mod fill;
mod rearrange;
mod view;

gaps! {}

/// The most elements for which integer vectors are followed symbolically.
const FOLLOWED: usize = 1024;

/// The only element of operand `source`, which has rank 0 or is `[1]`.
pub(super) fn read_scalar(t: &TensorType, source: usize) -> Scalar {
    Scalar::read_at(t.dtype, source, &vec![Expr::int(0); t.rank()])
}

/// `Fact` of a moved tensor, with its elements as expressions if they are known and few.
fn moved(dtype: DType, dims: Vec<Expr>, ints: Option<Vec<Expr>>) -> Vec<Fact> {
    let fits = dims.len() <= 1 && ints.as_ref().is_some_and(|v| v.len() <= FOLLOWED);
    vec![Fact::tensor(dtype, dims).with_ints(ints.filter(|_| fits))]
}

/// Is operand `i` there, but its elements depend on data? Then only its length tells something about the result.
pub(super) fn depends_on_data(cx: &Ctx, i: usize) -> bool {
    cx.has(i) && cx.fact(i).is_ok_and(|f| f.ints.is_none())
}

/// The length of the vector operand `i`.
fn length(cx: &Ctx, i: usize) -> Result<usize, Fault> {
    let t = cx.tensor(i)?;
    let known = |d: &Expr| d.known().and_then(|n| usize::try_from(n).ok());
    match &t.dims[..] {
        [d] => known(d).ok_or_else(|| fault!("the length of operand {i} ({t}) must be known")),
        _ => Err(fault!("operand {i} is {t}, it must be a vector")),
    }
}

/// A result of which only data tells the dims.
fn any_dims(op: &str, dtype: DType, rank: usize) -> Vec<Fact> {
    vec![Fact::tensor(dtype, (0..rank).map(|k| new_dim(op, k)))]
}

/// The dims of operand 0, those at `axes` replaced by such that only data tells.
fn any_at(cx: &Ctx, op: &str, axes: &[usize]) -> Result<Vec<Fact>, Fault> {
    let t = cx.tensor(0)?;
    let dims = t.dims.iter().enumerate().map(|(a, &d)| if axes.contains(&a) { new_dim(op, a) } else { d });
    Ok(vec![Fact::tensor(t.dtype, dims)])
}

/// The number of elements if `dims` have rank 0 or 1 and few elements.
fn small(dims: &[Expr]) -> Option<usize> {
    match dims {
        [] => Some(1),
        [d] => d.known().and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= FOLLOWED),
        _ => None,
    }
}

/// Ranges under which sizes are compared: every size in `exprs` is at least 1, or almost every comparison would stay open. What is then
/// wrong of empty tensors has to be noted as a condition.
pub(super) fn not_empty(exprs: &[Expr]) -> Ranges {
    let mut env = Ranges::default();
    for e in exprs {
        e.leaves(&mut |leaf| {
            if let Node::Sym(s) = leaf.node() {
                env.syms.insert(s, crate::expr::Range::new(1, crate::expr::Range::MAX));
            }
        });
    }
    env
}

/// What `of` says of sizes. Where they may be 0, lengths are often another expression than where they are at least 1. Of sizes of inputs the
/// latter is taken where it is a plain one, which other sizes are compared with, and that it is right is noted as a condition of the run. Where
/// data tells a size (nothing found, nothing chosen), 0 is as likely as any other, and the answer is the one for all.
fn unless_empty<T>(exprs: &[Expr], of: impl Fn(&Ranges) -> T, len: impl Fn(&T) -> Expr, text: &dyn Fn() -> String) -> T {
    let (all, usual) = (of(&Ranges::default()), of(&not_empty(exprs)));
    if len(&all) == len(&usual) {
        return usual;
    }
    if !plain(len(&usual)) || exprs.iter().any(|&e| super::told_by_data(e)) {
        return all;
    }
    super::sizes::must_equal(len(&all), len(&usual), text);
    usual
}

/// Sums and products of symbols and numbers.
fn plain(e: Expr) -> bool {
    match e.node() {
        Node::Const(_) | Node::Sym(_) => true,
        Node::Sum { terms, .. } => terms.iter().all(|t| plain(t.0)),
        Node::Product(factors) => factors.iter().all(|&f| plain(f)),
        Node::Var(_) | Node::Div(..) | Node::Mod(..) | Node::Min(..) | Node::Max(..) => false,
    }
}

/// One step whose element at `axes` is operand 0 at `index(axes)`.
fn read_moved(cx: &Ctx, outs: &[Type], index: impl FnOnce(&[Expr]) -> Vec<Expr>) -> Result<Meaning, Fault> {
    let out = Ctx::out(outs, 0)?;
    let c = Compute::map(&out.dims, |axes| Scalar::read_at(out.dtype, 0, &index(axes)));
    Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
}

/// The vector (or scalar) of `values`, as a compute.
pub(super) fn spelled_out(out: &TensorType, values: &[Expr]) -> Step {
    Step::Compute(Compute::map(&out.dims, |axes| {
        let last = values.last().copied().unwrap_or(Expr::int(0));
        let rest = values.len().saturating_sub(1);
        values[..rest].iter().enumerate().rfold(Scalar::index(last), |other, (k, &v)| {
            Scalar::select(Scalar::index(axes[0]).eq_to(Scalar::index(k)), Scalar::index(v), other)
        })
    }))
    .map(&mut |s| s.cast(out.dtype))
}

/// The dtype of an ONNX number in an attribute.
pub(super) fn attr_dtype(number: i64, attribute: &str) -> Result<DType, Fault> {
    i32::try_from(number).ok().and_then(DType::from_onnx).ok_or_else(|| fault!("attribute '{attribute}' {number} is no dtype"))
}

/// Element `i` of a tensor of numbers as a scalar.
pub(super) fn constant(t: &Tensor, i: usize) -> Scalar {
    Scalar::raw(t.dtype, crate::scalar::Kind::Const(t.value(i)))
}
