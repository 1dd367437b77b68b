//! Builders for what runs in a fixed order: scatter and running reductions.

use super::{Cx, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use infc_ir::Expr;
use infc_ir::compute::{Prefix, Scatter};
use infc_ir::scalar::Scalar;

/// Loops over all `dims` around `body`.
pub fn nest(vars: &[Expr], dims: &[Expr], mut body: Vec<Stmt>) -> Vec<Stmt> {
    for (&v, &d) in vars.iter().zip(dims).rev() {
        body = vec![for_each(v, d, LoopKind::Serial, body)];
    }
    body
}

/// One task: the base everywhere, then the updates in order.
pub fn scatter(cx: &mut Cx, s: &Scatter) {
    let axes = cx.vars(&["i", "j"], s.dims.len());
    let base = vec![cx.store_out(&axes, s.base.subst(&axes))];
    let mut body = nest(&axes, &s.dims, base);
    let axes = cx.vars(&["update", "i"], s.updates.len());
    let index: Vec<Scalar> = s.index.iter().map(|i| i.subst(&axes)).collect();
    let value = s.value.subst(&axes);
    let value = match s.combine {
        None => value,
        Some(op) => Scalar::binary(op, Scalar::read(value.dtype(), cx.out() as usize, index.iter().copied()), value),
    };
    let update = vec![Stmt::Store { buffer: cx.out(), index, value }];
    body.extend(nest(&axes, &s.updates, update));
    cx.body = body;
}

/// A task for each line along the axis.
pub fn prefix(cx: &mut Cx, p: &Prefix) {
    let others: Vec<usize> = (0..p.dims.len()).filter(|&a| a != p.axis).collect();
    let dims: Vec<Expr> = others.iter().map(|&a| p.dims[a]).collect();
    let chunk = cx.chunked(&dims, 1);
    let acc = cx.scratch("acc", p.body.dtype(), &[1], Space::Reg);
    let zero = [Expr::int(0)];
    let step = cx.var("step");
    let mut axes = vec![Expr::int(0); p.dims.len()];
    for (&a, &v) in others.iter().zip(&chunk.values) {
        axes[a] = v;
    }
    axes[p.axis] = if p.reverse { p.dims[p.axis] - 1 - step } else { step };
    let next = Scalar::binary(p.combine, cx.at(acc, &zero), p.body.subst(&axes));
    let update = cx.put(acc, &zero, next);
    let emit = cx.store_out(&axes, cx.at(acc, &zero));
    let body = if p.exclusive { vec![emit, update] } else { vec![update, emit] };
    let line = for_each(step, p.dims[p.axis], LoopKind::Serial, body);
    cx.body = chunk.wrap(vec![Stmt::Alloc { buffer: acc }, cx.put(acc, &zero, p.init.subst(&axes)), line]);
}
