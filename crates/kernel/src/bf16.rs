//! Products of f32 in bf16: `--math bf16` on machines with an instruction for pairs of them (the row `bf16_dot`).
//!
//! `sum x * w` with constant weights becomes `sum f32(x') * f32(w')`, where `x'` and `w'` are rounded to bf16: the weights here, the data
//! by a step of its own, which fusion puts into the end of the step that makes the data, so that it is stored rounded. Sums
//! stay f32, and so does all that follows them. The k axis gets whole pairs. Weights lie in bf16, half as many bytes.
//!
//! This is the one place that decides which sums are taken so: those whose factors are read side by side along k as the row wants them. Others
//! stay as they are: both factors from data, depthwise and grouped convolutions, data that lies across, an odd row of taps over one channel.
//! Knows no operator: it looks at computes only. Class: factors rounded to 8 bits, sums reassociated.

use crate::byte_groups::{filled, index_of, neighbours, source_of};
use crate::fuse::is_contraction;
use crate::place::{channels_last, is_convolution};
use crate::rows::flushed;
use crate::target::{Math, TargetDesc};
use crate::work::{Id, Item, Memory, Task, Work};
use infc_ir::compute::{Compute, Step};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor, TensorType};
use std::collections::HashMap;

/// Neighbours that the instruction takes.
const PAIR: i64 = 2;

/// Rounds factors in all blocks of the work list, if the machine's products of f32 are taken in bf16 by pairs.
pub fn round(work: &mut Work, target: &TargetDesc) {
    if target.math != Math::Bf16 || !target.bf16_dot || target.block_threads > 0 {
        return;
    }
    let mut items = std::mem::take(&mut work.items);
    walk(work, &mut items, &mut HashMap::new());
    work.items = items;
}

/// Weights that are rounded already, by the tensor that was rounded.
type Rounded = HashMap<Id, Id>;

fn walk(work: &mut Work, items: &mut Vec<Item>, weights: &mut Rounded) {
    let mut out = Vec::with_capacity(items.len());
    // Data that is rounded already and was not written since.
    let mut data = Rounded::new();
    for mut item in std::mem::take(items) {
        match &mut item {
            Item::Task(task) => {
                if let Some(better) = rounded(work, task, weights, &mut data, &mut out) {
                    *task = better;
                }
                let written = work.root(task.out);
                data.retain(|&x, _| work.root(x) != written);
            }
            Item::If { then, otherwise, .. } => {
                walk(work, then, weights);
                walk(work, otherwise, weights);
                data.clear();
            }
            Item::Loop { body, .. } => {
                walk(work, body, weights);
                data.clear();
            }
            Item::Host { .. } => data.clear(),
            Item::Bind { .. } | Item::Require { .. } => {}
        }
        out.push(item);
    }
    *items = out;
}

/// `sum x * w` with the reads of data and of constant weights, both f32, if the row can take it.
fn factors(work: &Work, task: &Task) -> Option<(Scalar, Scalar)> {
    let Step::Compute(c) = &task.step else { return None };
    let r = c.reduction.as_ref().filter(|r| is_contraction(c) && r.body.dtype() == DType::F32)?;
    let Kind::Binary(Binary::Mul, a, b) = r.body.kind() else { return None };
    let constant = |s: Scalar| matches!(work.tensor(task.sources[source_of(s)]).memory, Memory::Constant(_));
    let plain = |s: &Scalar| matches!(s.kind(), Kind::Read { .. }) && s.dtype() == DType::F32;
    if !plain(a) || !plain(b) || source_of(*a) == source_of(*b) {
        return None;
    }
    let (x, w) = match (constant(*a), constant(*b)) {
        (false, true) => (*a, *b),
        (true, false) => (*b, *a),
        _ => return None,
    };
    let (Kind::Read { guard: x_guard, .. }, Kind::Read { guard: None, .. }) = (x.kind(), w.kind()) else { return None };
    if x_guard.is_some_and(|(_, fill)| !matches!(fill.kind(), Kind::Const(_))) {
        return None;
    }
    let (at, along) = (index_of(x)?, index_of(w)?);
    let data = task.sources[source_of(x)];
    let (k, dim) = neighbours(c, &at, &along, work, data)?;
    let known = r.axes.iter().all(|e| e.known().is_some());
    // The weights move along one axis of the result, the data does not.
    let uses = |index: &[Expr], axis: usize| index.iter().any(|e| e.uses_var(axis as u32));
    let mut columns = (0..c.dims.len()).filter(|&axis| uses(&along, axis));
    let (n, None) = (columns.next()?, columns.next()) else { return None };
    // What an odd axis would read further on must be beyond the data: a number there, times zero, may be NaN.
    let beyond = at[dim] == Expr::var(c.dims.len() + k) && work.tensor(data).ty.dims[dim] == r.axes[k];
    let pairs = r.axes[k].known().is_some_and(|e| e >= PAIR && (e % PAIR == 0 || beyond));
    let good = known && pairs && c.dims[n].known().is_some() && !uses(&at, n);
    good.then_some((x, w))
}

/// The task with factors rounded; the steps that round its data go before it.
fn rounded(work: &mut Work, task: &Task, weights: &mut Rounded, data: &mut Rounded, before: &mut Vec<Item>) -> Option<Task> {
    let (x, w) = factors(work, task)?;
    let (x_id, w_id) = (task.sources[source_of(x)], task.sources[source_of(w)]);
    let convolution = is_convolution(work, task);
    let new_x = *data.entry(x_id).or_insert_with(|| {
        let (id, step) = rounding(work, x_id);
        let (name, node) = ("bf16".into(), task.node.clone());
        before.push(Item::Task(Task { step, sources: vec![x_id], out: id, name, node }));
        id
    });
    if convolution {
        let rank = work.tensor(new_x).ty.rank();
        work.tensors[new_x.index()].order = channels_last(rank);
    }
    let new_w = match weights.get(&w_id) {
        Some(&id) => id,
        None => {
            let Memory::Constant(t) = &work.tensor(w_id).memory else { return None };
            let t = narrow(t);
            let ty = TensorType::new(t.dtype, t.dims.iter().map(|&d| Expr::from(d)));
            let id = work.add(ty, Memory::Constant(t), "weights in bf16");
            weights.insert(w_id, id);
            id
        }
    };
    let mut out = task.clone();
    out.sources.extend([new_x, new_w]);
    let place = out.sources.len();
    let short = |read: Scalar, source: usize| match read.kind() {
        Kind::Read { index, guard: None, .. } => Scalar::read(DType::BF16, source, index.iter().copied()),
        Kind::Read { index, guard: Some((cond, fill)), .. } => {
            Scalar::read_if(source, index.iter().copied(), *cond, flushed(*fill).cast(DType::BF16))
        }
        _ => unreachable!("a read"),
    };
    let (x_read, w_read) = (short(x, place - 2), short(w, place - 1));
    let Step::Compute(c) = &task.step else { return None };
    let mut reduction = c.reduction.clone()?;
    reduction.body = reduction.body.rewrite(&mut |n| {
        if n == x {
            x_read.cast(DType::F32)
        } else if n == w {
            w_read.cast(DType::F32)
        } else {
            n
        }
    });
    out.step = Step::Compute(Compute { dims: c.dims.clone(), reduction: Some(reduction), value: c.value });
    // Filling drops what is no longer read, and so must what needs none.
    let whole = filled(work, &out, (x_read, w_read), PAIR, Scalar::float(DType::BF16, 0.0));
    Some(whole.unwrap_or_else(|| {
        out.prune();
        out
    }))
}

/// A new tensor that is `x` rounded, and the step that makes it.
fn rounding(work: &mut Work, x: Id) -> (Id, Step) {
    let dims = work.tensor(x).ty.dims.clone();
    let step = Compute::map(&dims, |axes| flushed(Scalar::read_at(DType::F32, 0, axes)).cast(DType::BF16));
    (work.add(TensorType::new(DType::BF16, dims), Memory::Temp, ""), Step::Compute(step))
}

/// Rounded to nearest even; NaN stays NaN, subnormal numbers are zeros of their sign, as the instruction takes them.
fn narrow(t: &Tensor) -> Tensor {
    let values = (0..t.len()).map(|i| {
        let v = t.float(i) as f32;
        half::bf16::from_f32(if v.abs() < f32::MIN_POSITIVE { v * 0.0 } else { v })
    });
    Tensor::from_vec(t.dims.clone(), values.collect())
}
