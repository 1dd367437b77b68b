//! The builder for tensors that are turned on the way: what is read lies along another axis than the result. Squares of what is read come into scratch memory, in vectors as they lie,
//! and are read there across. Without them each vector of the result would touch as many lines of the cache as it has elements, of which the next ones do not stay.

use super::{Cx, Operand, for_each, pack};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::{TASK_WORK, guess, in_memory_order, widest};
use crate::target::TargetDesc;
use infc_ir::Expr;
use infc_ir::compute::Compute;
use infc_ir::scalar::{Kind, Scalar};

/// Sizes of a compute over tensors that lie along two axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Turned {
    /// Output axes, outermost first: the last one is that along which the result lies.
    pub order: Vec<usize>,
    /// The axis along which lies what is turned.
    pub along: usize,
    /// Elements of a square along the result's axis, and along the other one.
    pub size: [usize; 2],
    /// Lanes of the vectors that come into scratch memory.
    pub lanes: usize,
    /// The axis along which a task has all squares, the shorter one: what lies along it is read or written whole.
    pub whole: usize,
    /// Rows of such squares of a task.
    pub chunk: usize,
}

/// Most tensors that are turned together.
const MOST: usize = 4;
/// The shortest axis along which it pays.
const SHORT: i64 = 8;
/// Bytes of a square's row.
const ROW: usize = 256;

/// The reads of a value that lie along `along` and not along `inner`, in the order in which they are met; `None` if there is one that cannot be turned.
fn turned(c: &Compute, operands: &[Operand], inner: usize) -> Option<(usize, Vec<Scalar>)> {
    let mut found: Option<(usize, Vec<Scalar>)> = None;
    let mut good = true;
    c.value.visit(&mut |n| {
        let Kind::Read { source, index, guard } = n.kind() else { return };
        let operand = &operands[*source as usize];
        let Some(offset) = operand.offset(index).filter(|_| operand.constant.is_none()) else { return };
        let step = |axis: usize| step(offset, axis as u32);
        if matches!(step(inner), Some(0 | 1)) {
            return;
        }
        let axis = (0..c.dims.len()).find(|&a| a != inner && step(a) == Some(1) && guess(c.dims[a]) >= SHORT);
        match (axis, &mut found) {
            (Some(a), None) => found = Some((a, vec![n])),
            (Some(a), Some((same, reads))) if a == *same => reads.push(n),
            _ => good = false,
        }
        good &= guard.is_none() && step(inner).is_some();
    });
    found.filter(|(_, reads)| good && reads.len() <= MOST)
}

/// Elements between neighbours along an axis; where only a run tells how many, [`FAR`]. `None` if it is not the same everywhere.
fn step(offset: Expr, axis: u32) -> Option<i64> {
    if let Some((step, _)) = offset.affine_in(axis) {
        return Some(step);
    }
    let next = offset.map(&|leaf| if leaf == Expr::var(axis as usize) { leaf + 1 } else { leaf });
    (!(next - offset).has_var()).then_some(FAR)
}

/// Stands for a step of which nothing is known.
const FAR: i64 = i64::MAX;

/// The plan, if something is turned and both axes are long enough.
pub fn plan(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<Turned> {
    if c.reduction.is_some() || target.block_threads > 0 {
        return None;
    }
    let mut order = in_memory_order(c, operands);
    let inner = *order.last()?;
    let beside = operands[operands.len() - 1].buffer.strides[inner].is(1);
    let (along, reads) = turned(c, operands, inner).filter(|_| beside && guess(c.dims[inner]) >= SHORT)?;
    order.retain(|&a| a != along);
    let power = |most: usize, axis: usize| {
        let fits = |l: &usize| l.is_power_of_two() && *l as i64 <= guess(c.dims[axis]);
        (1..=most).rev().find(fits).unwrap_or(1)
    };
    let bytes = reads.iter().map(|r| r.dtype().bytes()).max().unwrap_or(1);
    let lanes = power(target.lanes(bytes).max(1), along);
    let down = power(target.lanes(widest(c)).max(1), inner);
    let across = lanes * (power(ROW / bytes, along) / lanes).max(1);
    let whole = if guess(c.dims[inner]) < guess(c.dims[along]) { inner } else { along };
    let row = guess(c.dims[whole]) * if whole == along { down } else { across } as i64;
    let all: i64 = c.dims.iter().map(|&d| guess(d)).product();
    let chunk = (TASK_WORK / row.max(1)).clamp(1, (all / row.max(1)).max(1)) as usize;
    Some(Turned { order, along, size: [down, across], lanes, whole, chunk })
}

/// A task for so many rows of squares.
pub fn build(cx: &mut Cx, c: &Compute, p: &Turned) {
    let (&inner, outer) = p.order.split_last().expect("a plan has an axis");
    let c = &pack::constants_along(cx, c, inner);
    let (_, reads) = turned(c, cx.operands, inner).expect("checked by the plan");
    let [down, across] = p.size;
    let extents = [inner, p.along].map(|a| c.dims[a]);
    let mut dims: Vec<Expr> = outer.iter().map(|&a| c.dims[a]).collect();
    let blocks = [0, 1].map(|k| extents[k].div_ceil(Expr::from(p.size[k])));
    let (by_task, inside) = if p.whole == p.along { (0, 1) } else { (1, 0) };
    dims.push(blocks[by_task]);
    let chunk = cx.chunked(&dims, p.chunk);
    let mut axes = vec![Expr::int(0); c.dims.len()];
    outer.iter().zip(&chunk.values).for_each(|(&a, &v)| axes[a] = v);
    let next = cx.var("square");
    let mut first = [next; 2];
    first[by_task] = *chunk.values.last().expect("blocks of an axis");
    let first = [first[0] * down as i64, first[1] * across as i64];
    let squares: Vec<u32> = reads.iter().map(|r| cx.scratch("square", r.dtype(), &[down, across], Space::Tile)).collect();
    let place = |row: Expr, at: Expr| {
        let mut axes = axes.clone();
        (axes[inner], axes[p.along]) = (first[0] + row, first[1] + at);
        axes
    };
    let square = |cx: &mut Cx, whole: bool| {
        let bounded = |which: usize, at: Expr, body: Vec<Stmt>| match whole {
            true => body,
            false => {
                let cond = Scalar::index(first[which] + at).lt(Scalar::index(extents[which]));
                vec![Stmt::If { cond, then: body, otherwise: vec![] }]
            }
        };
        let (row, part, lane) = (cx.var("row"), cx.var("part"), cx.var("lane"));
        let at = part * p.lanes as i64 + lane;
        let put = reads.iter().zip(&squares).map(|(r, &to)| cx.put(to, &[row, at], r.subst(&place(row, at))));
        let vectors = for_each(lane, Expr::from(p.lanes), LoopKind::Vector, bounded(1, at, put.collect()));
        let parts = for_each(part, Expr::from(across / p.lanes), LoopKind::Unroll, vec![vectors]);
        let fill = for_each(row, Expr::from(down), LoopKind::Serial, bounded(0, row, vec![parts]));
        let lane = cx.var("lane");
        // Whole squares as rounds of as many as a vector has lanes, which a backend may turn in registers.
        let rounds = whole && across % down == 0 && reads.iter().all(|r| r.dtype().bytes() == 4);
        let (block, round) = (cx.var("block"), cx.var("at"));
        let at = if rounds { block * down as i64 + round } else { round };
        let to = place(lane, at);
        // A read that was turned comes from its square.
        let value = c.value.rewrite(&mut |n| match reads.iter().position(|r| *r == n) {
            Some(k) => Scalar::local(n.dtype(), MARK + k as u32),
            None => n,
        });
        let value = value.subst(&to).rewrite(&mut |n| match n.kind() {
            Kind::Local(k) if *k >= MARK => cx.at(squares[(k - MARK) as usize], &[lane, at]),
            _ => n,
        });
        let store = bounded(0, lane, vec![cx.store_out(&to, value)]);
        let vector = for_each(lane, Expr::from(down), LoopKind::Vector, store);
        let out = match rounds {
            true => {
                let inner = for_each(round, Expr::from(down), LoopKind::Unroll, vec![vector]);
                for_each(block, Expr::from(across / down), LoopKind::Serial, vec![inner])
            }
            false => for_each(round, Expr::from(across), LoopKind::Serial, bounded(1, at, vec![vector])),
        };
        vec![fill, out]
    };
    let fits = |extent: Expr, size: usize| extent.known().is_some_and(|e| e % size as i64 == 0);
    let body = if fits(extents[0], down) && fits(extents[1], across) {
        square(cx, true)
    } else {
        let ends = |k: usize, size: usize| Scalar::index(first[k] + size as i64).le(Scalar::index(extents[k]));
        let (then, otherwise) = (square(cx, true), square(cx, false));
        vec![Stmt::If { cond: ends(0, down).and(ends(1, across)), then, otherwise }]
    };
    let squares_of_row = for_each(next, blocks[inside], LoopKind::Serial, body);
    let mut all: Vec<Stmt> = squares.iter().map(|&buffer| Stmt::Alloc { buffer }).collect();
    all.push(squares_of_row);
    cx.body = chunk.wrap(all);
}

/// Numbers of locals that stand for what comes from squares, while axes are put in.
const MARK: u32 = u32::MAX - MOST as u32;
