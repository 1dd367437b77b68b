//! The row-reduce builder: vectors along the last reduction axis, joined across lanes at the end of a row.

use super::elementwise::with_accumulator;
use super::{Cx, accumulate, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::RowReduce;
use infc_ir::Expr;
use infc_ir::compute::{Compute, Reducer};
use infc_ir::scalar::Scalar;

/// Each row has `lanes` partial results; element `j` of a row goes to lane `j mod lanes`, and lanes are joined pairwise.
pub fn build(cx: &mut Cx, c: &Compute, plan: &RowReduce) {
    let r = c.reduction.as_ref().expect("a row reduction reduces");
    let lanes = plan.lanes;
    let chunk = cx.chunked(&c.dims, plan.chunk);
    let dtype = r.body.dtype();
    let acc = cx.scratch("acc", dtype, &[lanes], Space::Reg);
    let extent = *r.axes.last().expect("a reduction has axes");
    let outer = cx.vars(&["k"], r.axes.len() - 1);
    let block = cx.var("block");
    let update = |cx: &mut Cx, masked: bool| {
        let lane = cx.var("lane");
        let position = block * lanes as i64 + lane;
        let all: Vec<Expr> = chunk.values.iter().chain(&outer).copied().chain([position]).collect();
        let next = accumulate(r.kind, cx.at(acc, &[lane]), r.body.subst(&all), cx.target.fma);
        let store = vec![cx.put(acc, &[lane], next)];
        let body = match masked {
            false => store,
            true => {
                let cond = Scalar::index(position).lt(Scalar::index(extent));
                vec![Stmt::If { cond, then: store, otherwise: vec![] }]
            }
        };
        for_each(lane, Expr::from(lanes), LoopKind::Vector, body)
    };
    let full = update(cx, false);
    let step = if extent.known().is_some_and(|e| e % lanes as i64 == 0) {
        full
    } else {
        let tail = update(cx, true);
        let fits = Scalar::index(block * lanes as i64 + lanes as i64).le(Scalar::index(extent));
        Stmt::If { cond: fits, then: vec![full], otherwise: vec![tail] }
    };
    let mut nest = for_each(block, extent.div_ceil(Expr::from(lanes)), LoopKind::Serial, vec![step]);
    for (&v, &e) in outer.iter().zip(&r.axes).rev() {
        nest = for_each(v, e, LoopKind::Serial, vec![nest]);
    }
    let lane = cx.var("lane");
    let clear = vec![cx.put(acc, &[lane], r.kind.identity(dtype))];
    let mut body = vec![Stmt::Alloc { buffer: acc }, for_each(lane, Expr::from(lanes), LoopKind::Vector, clear), nest];
    if cx.target.block_threads > 0 {
        body.extend(join(cx, r.kind, acc, lanes));
        let first = cx.at(acc, &[Expr::int(0)]);
        body.push(cx.store_out(&chunk.values, with_accumulator(c.value.subst(&chunk.values), first)));
        cx.body = chunk.wrap(body);
        return;
    }
    let mut partial: Vec<Scalar> = (0..lanes).map(|l| cx.at(acc, &[Expr::from(l)])).collect();
    while partial.len() > 1 {
        let half = partial.len() / 2;
        partial = (0..half).map(|k| accumulate(r.kind, partial[k], partial[k + half], false)).collect();
    }
    body.push(cx.store_out(&chunk.values, with_accumulator(c.value.subst(&chunk.values), partial[0])));
    cx.body = chunk.wrap(body);
}

/// Joins what lanes have in `acc`: each takes that of another one, and after five steps of 32 lanes all have that of the row, the first one in the order of
/// the others.
pub(super) fn join(cx: &mut Cx, kind: Reducer, acc: u32, lanes: usize) -> Vec<Stmt> {
    let mut out = vec![];
    let mut step = lanes / 2;
    while step > 0 {
        let lane = cx.var("lane");
        let other = (lane + step as i64).rem(Expr::from(lanes));
        let sum = accumulate(kind, cx.at(acc, &[lane]), cx.at(acc, &[other]), false);
        out.push(for_each(lane, Expr::from(lanes), LoopKind::Vector, vec![cx.put(acc, &[lane], sum)]));
        step /= 2;
    }
    out
}
