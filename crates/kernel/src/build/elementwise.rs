//! The elementwise builder: any compute, one output element to a lane. Reductions run inside, in their own order.
//!
//! Windows over bytes (depthwise convolutions) add the products along one axis of the window four at a time where the machine can, by
//! the rows `byte_dot` and `byte_pairs`: weights lie in groups of four for each channel, the data is read in a vector of channels for each product.

use super::{Cx, Operand, accumulate, for_each};
use crate::build::pack;
use crate::byte_groups::{GROUP, byte_factors};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::Elementwise;
use crate::target::TargetDesc;
use infc_ir::compute::{Compute, Reducer, Reduction, Step};
use infc_ir::scalar::{Binary, Kind, Scalar, Unary};
use infc_ir::{DType, Expr};

/// Outer axes are flattened and cut into tasks; the innermost runs in vectors with a masked tail; `jam` neighbours along the
/// last but one axis are computed together.
pub fn build(cx: &mut Cx, c: &Compute, plan: &Elementwise) {
    let (&inner, outer) = match plan.order.split_last() {
        Some(split) => split,
        None => return scalar(cx, c),
    };
    let c = &pack::constants_along(cx, c, inner);
    let c = &match plan.taps {
        Some(axis) => grouped(cx, c, axis),
        None => c.clone(),
    };
    let (jammed, outer) = match outer.split_last() {
        Some((&j, rest)) if plan.jam > 1 => (Some(j), rest),
        _ => (None, outer),
    };
    let dims: Vec<Expr> = outer.iter().map(|&a| c.dims[a]).collect();
    let chunk = cx.chunked(&dims, plan.chunk);
    let mut axes = vec![Expr::int(0); c.dims.len()];
    for (&a, &v) in outer.iter().zip(&chunk.values) {
        axes[a] = v;
    }
    let together = c.reduction.is_none();
    let (row_block, block) = (cx.var("rows"), cx.var(if plan.lanes == 1 { "column" } else { "block" }));
    let rows = jammed.map(|axis| Rows { axis, start: row_block * plan.jam as i64, count: plan.jam });
    let extent = c.dims[inner];
    let lanes = plan.lanes as i64;
    // Where windows have results apart from each other along the axis of vectors, the last vector begins early: masks would cost more.
    let apart = |cx: &Cx| !cx.operand(cx.out() as usize).buffer.strides[inner].is(1);
    let early = c.reduction.is_some() && rows.is_some() && extent.known().is_some_and(|e| e >= lanes) && apart(cx);
    let start = if early { (block * lanes).min(extent - lanes) } else { block * lanes };
    let tile = |cx: &mut Cx, masked: bool| match &rows {
        Some(rows) if together => vec![side_by_side(cx, c, &axes, (inner, start), rows, plan.lanes, masked)],
        Some(rows) => jammed_tile(cx, c, &axes, (inner, start), rows, (plan.lanes, plan.taps.is_some()), masked),
        None => vec![vector(cx, c, &axes, (inner, start), plan.lanes, masked)],
    };
    let whole = lanes == 1 || early || extent.known().is_some_and(|e| e % lanes == 0);
    let body = if whole {
        tile(cx, false)
    } else {
        let fits = Scalar::index(block * lanes + lanes).le(Scalar::index(extent));
        let (then, otherwise) = (tile(cx, false), tile(cx, true));
        vec![Stmt::If { cond: fits, then, otherwise }]
    };
    let mut nest = vec![for_each(block, extent.div_ceil(Expr::from(lanes)), LoopKind::Serial, body)];
    if let Some(rows) = &rows {
        let count = c.dims[rows.axis].div_ceil(Expr::from(rows.count));
        nest = vec![for_each(row_block, count, LoopKind::Serial, nest)];
    }
    cx.body = chunk.wrap(nest);
}

/// The reduction axis whose products the row `byte_dot` can add up: constant weights for each channel, channels side by side in the data.
pub fn taps(c: &Compute, operands: &[Operand], inner: usize, target: &TargetDesc) -> Option<usize> {
    let r = c.reduction.as_ref().filter(|r| target.groups_bytes() && r.kind == Reducer::Sum)?;
    let (x, w) = byte_factors(r.body, target.byte_dot_signed, &|s| operands[s].constant.is_some())?;
    let (Kind::Read { source: data, index: at, guard: None }, Kind::Read { source: weights, index: along, guard: None }) =
        (x.kind(), w.kind())
    else {
        return None;
    };
    let step = operands[*data as usize].offset(at)?.affine_in(inner as u32)?.0;
    operands[*weights as usize].constant.as_ref().filter(|_| step == 1)?;
    let var = |v: usize| along.iter().filter(|i| i.as_index() == Some(Expr::var(v))).count() == 1;
    let elsewhere = Step::Compute(Compute { reduction: None, ..c.clone() }).sources().contains(weights);
    let fits = |k: &usize| r.axes[*k].known().is_some_and(|e| (2..=8).contains(&e)) && var(c.dims.len() + k);
    if elsewhere || !var(inner) { None } else { (0..r.axes.len()).find(fits) }
}

/// The compute with its products along reduction axis `k` written out, and weights in groups of four of them.
fn grouped(cx: &mut Cx, c: &Compute, k: usize) -> Compute {
    let r = c.reduction.as_ref().expect("taps are those of a reduction");
    let constant = |s: usize| cx.operands[s].constant.is_some();
    let (x, w) = byte_factors(r.body, cx.target.byte_dot_signed, &constant).expect("checked by the plan");
    let Kind::Read { source, index, .. } = w.kind() else { unreachable!("checked by the plan") };
    let (axis, count) = (c.dims.len() + k, r.axes[k].known().expect("checked by the plan"));
    let dim = index.iter().position(|i| i.as_index() == Some(Expr::var(axis))).expect("checked by the plan");
    cx.group_constant(*source as usize, |t| pack::taps(t, dim, GROUP as usize));
    let product = |tap: i64| {
        let mut at = index.clone();
        at[dim] = Scalar::index(tap / GROUP);
        at.push(Scalar::index(tap % GROUP));
        let mut map: Vec<Expr> = (0..c.dims.len() + r.axes.len()).map(Expr::var).collect();
        map[axis] = Expr::int(tap);
        let (data, weight) = (x.subst(&map), Scalar::read(w.dtype(), *source as usize, at));
        r.body.rewrite(&mut |n| {
            if n == x {
                data
            } else if n == w {
                weight
            } else {
                n
            }
        })
    };
    let body = (1..count).fold(product(0), |sum, tap| sum + product(tap));
    let mut axes = r.axes.clone();
    axes[k] = Expr::int(1);
    Compute { dims: c.dims.clone(), reduction: Some(Reduction { axes, kind: r.kind, body }), value: c.value }
}

/// `acc` with the terms of a value added one after another, in their order.
fn add_up(kind: Reducer, acc: Scalar, value: Scalar, fma: bool) -> Scalar {
    match value.kind() {
        Kind::Binary(Binary::Add, a, b) if kind == Reducer::Sum && value.dtype() == DType::I32 => {
            let acc = add_up(kind, acc, *a, fma);
            accumulate(kind, acc, *b, fma)
        }
        _ => accumulate(kind, acc, value, fma),
    }
}

/// Neighbours along an axis that share a tile.
struct Rows {
    axis: usize,
    start: Expr,
    count: usize,
}

/// `body` for the lanes that are inside.
fn mask(masked: bool, position: Expr, extent: Expr, body: Vec<Stmt>) -> Vec<Stmt> {
    match masked {
        false => body,
        true => vec![Stmt::If { cond: Scalar::index(position).lt(Scalar::index(extent)), then: body, otherwise: vec![] }],
    }
}

/// One vector of elements.
fn vector(cx: &mut Cx, c: &Compute, axes: &[Expr], (inner, start): (usize, Expr), lanes: usize, masked: bool) -> Stmt {
    let lane = cx.var("lane");
    let mut axes = axes.to_vec();
    axes[inner] = start + lane;
    let body = element(cx, c, &axes, lanes, lane);
    for_each(lane, Expr::from(lanes), LoopKind::Vector, mask(masked, axes[inner], c.dims[inner], body))
}

/// A vector of elements for each position of an axis, in one loop: each lane stores neighbours.
fn side_by_side(
    cx: &mut Cx,
    c: &Compute,
    axes: &[Expr],
    (inner, start): (usize, Expr),
    rows: &Rows,
    lanes: usize,
    masked: bool,
) -> Stmt {
    let lane = cx.var("lane");
    let mut axes = axes.to_vec();
    axes[inner] = start + lane;
    let mut body = vec![];
    for row in 0..rows.count as i64 {
        axes[rows.axis] = rows.start + row;
        body.push(cx.store_out(&axes, c.value.subst(&axes)));
    }
    for_each(lane, Expr::from(lanes), LoopKind::Vector, mask(masked, axes[inner], c.dims[inner], body))
}

/// The vectors of several neighbours, with their reduction steps interleaved. Neighbours beyond the last are the last again, and not stored.
fn jammed_tile(
    cx: &mut Cx,
    c: &Compute,
    axes: &[Expr],
    (inner, start): (usize, Expr),
    rows: &Rows,
    (lanes, taps): (usize, bool),
    masked: bool,
) -> Vec<Stmt> {
    let r = c.reduction.as_ref().expect("only reductions are jammed");
    let acc = cx.scratch("acc", r.body.dtype(), &[rows.count, lanes], Space::Reg);
    let extent = c.dims[rows.axis];
    let whole = extent.known().is_some_and(|e| e % rows.count as i64 == 0);
    let each = |cx: &mut Cx, stored: bool, make: &dyn Fn(&mut Cx, Expr, Expr, &[Expr]) -> Vec<Stmt>| {
        let (row, lane) = (cx.var("row"), cx.var("lane"));
        let mut axes = axes.to_vec();
        axes[inner] = start + lane;
        let position = rows.start + row;
        axes[rows.axis] = if whole { position } else { position.min(extent - 1) };
        let body = make(cx, row, lane, &axes);
        let vectors = for_each(lane, Expr::from(lanes), LoopKind::Vector, mask(masked, axes[inner], c.dims[inner], body));
        for_each(row, Expr::from(rows.count), LoopKind::Unroll, mask(stored && !whole, position, extent, vec![vectors]))
    };
    let clear = each(cx, false, &|cx, row, lane, _| vec![cx.put(acc, &[row, lane], r.kind.identity(r.body.dtype()))]);
    let steps = cx.vars(&["k"], r.axes.len());
    let mut sum = each(cx, false, &|cx, row, lane, axes| {
        let all: Vec<Expr> = axes.iter().chain(&steps).copied().collect();
        let next = add_up(r.kind, cx.at(acc, &[row, lane]), r.body.subst(&all), cx.target.fma);
        vec![cx.put(acc, &[row, lane], next)]
    });
    let mut guarded = false;
    r.body.visit(&mut |n| guarded |= matches!(n.kind(), Kind::Read { guard: Some(_), .. }));
    for (k, (&v, &e)) in steps.iter().zip(&r.axes).enumerate().rev() {
        // Written out, neighbours share what they read and widen; where registers hold the line of a window that all of them read.
        let line = |e: i64| 2 * rows.count as i64 + e < i64::from(cx.target.vector_registers);
        let written = if taps {
            e.known().is_some_and(|e| e <= 8)
        } else {
            !guarded && k + 1 == r.axes.len() && e.known().is_some_and(line)
        };
        let kind = if written { LoopKind::Unroll } else { LoopKind::Serial };
        sum = for_each(v, e, kind, vec![sum]);
    }
    let finish = each(cx, true, &|cx, row, lane, axes| {
        vec![cx.store_out(axes, with_accumulator(c.value.subst(axes), cx.at(acc, &[row, lane])))]
    });
    vec![Stmt::Alloc { buffer: acc }, clear, sum, finish]
}

/// A tensor without axes.
fn scalar(cx: &mut Cx, c: &Compute) {
    let lane = cx.var("lane");
    let body = element(cx, c, &[], 1, lane);
    cx.body = vec![for_each(lane, Expr::int(1), LoopKind::Serial, body)];
}

/// The statements that compute and store the element at `axes`; `lane` distinguishes the accumulators of the vector.
pub fn element(cx: &mut Cx, c: &Compute, axes: &[Expr], lanes: usize, lane: Expr) -> Vec<Stmt> {
    let Some(r) = &c.reduction else {
        return vec![cx.store_out(axes, c.value.subst(axes))];
    };
    let inner = cx.vars(&["k"], r.axes.len());
    let all: Vec<Expr> = axes.iter().chain(&inner).copied().collect();
    let value = r.body.subst(&all);
    let nest = |mut body: Vec<Stmt>| {
        for (&v, &e) in inner.iter().zip(&r.axes).rev() {
            body = vec![for_each(v, e, LoopKind::Serial, body)];
        }
        body
    };
    let mut out = vec![];
    let result = if let (Reducer::ArgMax { last } | Reducer::ArgMin { last }, [position]) = (r.kind, inner.as_slice()) {
        let max = matches!(r.kind, Reducer::ArgMax { .. });
        let best = cx.scratch("best", value.dtype(), &[lanes], Space::Reg);
        let at = cx.scratch("at", infc_ir::DType::I64, &[lanes], Space::Reg);
        out.extend([Stmt::Alloc { buffer: best }, Stmt::Alloc { buffer: at }]);
        out.push(cx.put(best, &[lane], r.kind.identity(value.dtype())));
        out.push(cx.put(at, &[lane], Scalar::index(0)));
        let (now, index) = (cx.at(best, &[lane]), cx.at(at, &[lane]));
        let first = Scalar::index(*position).eq_to(Scalar::index(0));
        let better = first.or(beats(value, now, max, last));
        let store_at = cx.put(at, &[lane], Scalar::select(better, Scalar::index(*position), index));
        let store_best = cx.put(best, &[lane], Scalar::select(better, value, now));
        out.extend(nest(vec![store_at, store_best]));
        cx.at(at, &[lane])
    } else {
        let acc = cx.scratch("acc", value.dtype(), &[lanes], Space::Reg);
        out.push(Stmt::Alloc { buffer: acc });
        out.push(cx.put(acc, &[lane], r.kind.identity(value.dtype())));
        let next = accumulate(r.kind, cx.at(acc, &[lane]), value, cx.target.fma);
        out.extend(nest(vec![cx.put(acc, &[lane], next)]));
        cx.at(acc, &[lane])
    };
    out.push(cx.store_out(axes, with_accumulator(c.value.subst(axes), result)));
    out
}

/// Does `value` take the place of `now`? NaN beats all but an earlier NaN.
fn beats(value: Scalar, now: Scalar, max: bool, last: bool) -> Scalar {
    let op = match (max, last) {
        (true, false) => Binary::Gt,
        (true, true) => Binary::Ge,
        (false, false) => Binary::Lt,
        (false, true) => Binary::Le,
    };
    let plain = Scalar::binary(op, value, now);
    if !value.dtype().is_float() {
        return plain;
    }
    let (new, old) = (Scalar::unary(Unary::IsNan, value), Scalar::unary(Unary::IsNan, now));
    let first_nan = if last { new } else { new.and(Scalar::unary(Unary::Not, old)) };
    first_nan.or(plain)
}

/// `value` with the accumulator in the place of `Local(0)`.
pub fn with_accumulator(value: Scalar, acc: Scalar) -> Scalar {
    value.rewrite(&mut |n| if matches!(n.kind(), Kind::Local(0)) { acc } else { n })
}
