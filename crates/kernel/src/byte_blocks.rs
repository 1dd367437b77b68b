//! Products of rows that are whole multiples of a scale for each block along k, with weights that are so too: a sum of integers for each block.
//!
//! A model that rounds data to 8 bits, with a scale for each block, multiplies what it has rounded by weights in f32 (`MatMulNBits` whose accuracy level allows 8 bits). Here the product reads the integers and
//! the scales themselves, so that its plan ([`crate::build::byte_blocks`]) sums up products of bytes. Where the weights are no small multiples of a scale
//! for each of these blocks, or the machine adds up no products of bytes, the step stays as it was.
//! Knows no operator: it looks at computes only. Class: sums reassociated.

use crate::build::byte_blocks;
use crate::byte_groups::index_of;
use crate::fuse::{Facts, is_contraction};
use crate::target::TargetDesc;
use crate::work::{Arg, Id, Item, Memory, Task, Work};
use infc_ir::compute::{Compute, Reducer, Reduction, Step};
use infc_ir::expr::Node;
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr};
use std::collections::{HashMap, HashSet};

/// Rewrites such products in all blocks of the work list.
pub fn read(work: &mut Work, target: &TargetDesc) {
    if target.block_threads > 0 || !target.groups_bytes() {
        return;
    }
    let mut items = std::mem::take(&mut work.items);
    let facts = Facts::of(work, &items);
    let mut made = HashMap::new();
    if walk(work, &facts, &mut items, &mut made, target) {
        // What nobody reads any more.
        while drop_unread(work, &mut items) {}
    }
    work.items = items;
}

/// True if a step was rewritten. `made`: elementwise steps before, by what they make.
fn walk(work: &Work, facts: &Facts, items: &mut [Item], made: &mut HashMap<Id, Task>, target: &TargetDesc) -> bool {
    let mut changed = false;
    for item in items {
        match item {
            Item::Task(task) => {
                if let Some(better) = in_blocks(work, facts, task, made, target) {
                    *task = better;
                    changed = true;
                }
                if matches!(&task.step, Step::Compute(c) if c.reduction.is_none()) {
                    made.insert(task.out, task.clone());
                }
            }
            Item::If { then, otherwise, .. } => {
                changed |= walk(work, facts, then, &mut made.clone(), target);
                changed |= walk(work, facts, otherwise, &mut made.clone(), target);
            }
            Item::Loop { body, .. } => changed |= walk(work, facts, body, &mut made.clone(), target),
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
    changed
}

/// Drops steps that fill a tensor that nobody reads, under any name; true if there were some.
fn drop_unread(work: &Work, items: &mut Vec<Item>) -> bool {
    let mut read: HashSet<Id> = work.output_tensors().chain(work.shared.iter().copied()).map(|id| work.root(id)).collect();
    uses(items, &mut |id| _ = read.insert(work.root(id)));
    let mut found = false;
    retain(items, &mut |task| {
        let root = work.root(task.out);
        let kept = read.contains(&root) || !matches!(work.tensor(root).memory, Memory::Temp);
        found |= !kept;
        kept
    });
    found
}

/// Every tensor that an item reads.
fn uses(items: &[Item], see: &mut dyn FnMut(Id)) {
    for item in items {
        match item {
            Item::Task(task) => task.sources.iter().for_each(|&id| see(id)),
            Item::If { cond, then, otherwise } => {
                see(*cond);
                uses(then, see);
                uses(otherwise, see);
            }
            Item::Loop { cond, body, .. } => {
                cond.iter().for_each(|&id| see(id));
                uses(body, see);
            }
            Item::Bind { from, .. } => see(*from),
            Item::Host { inputs, .. } => {
                inputs.iter().flatten().for_each(|a| {
                    if let Arg::Tensor(id) = a {
                        see(*id)
                    }
                });
            }
            Item::Require { .. } => {}
        }
    }
}

fn retain(items: &mut Vec<Item>, keep: &mut dyn FnMut(&Task) -> bool) {
    items.retain_mut(|item| match item {
        Item::Task(task) => keep(task),
        Item::If { then, otherwise, .. } => {
            retain(then, keep);
            retain(otherwise, keep);
            true
        }
        Item::Loop { body, .. } => {
            retain(body, keep);
            true
        }
        Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => true,
    });
}

/// The product with what its data was made of, if that is integers with a scale for each block, and its weights can be read in such blocks.
fn in_blocks(work: &Work, facts: &Facts, task: &Task, made: &HashMap<Id, Task>, target: &TargetDesc) -> Option<Task> {
    let Step::Compute(c) = &task.step else { return None };
    let r = c.reduction.as_ref().filter(|r| is_contraction(c) && r.kind == Reducer::Sum && r.body.dtype() == DType::F32)?;
    let (&[depth], rank) = (r.axes.as_slice(), c.dims.len()) else { return None };
    let Kind::Binary(Binary::Mul, a, b) = r.body.kind() else { return None };
    let source = |s: Scalar| match s.kind() {
        Kind::Read { source, guard: None, .. } => Some(task.sources[*source as usize]),
        _ => None,
    };
    let is_constant = |id: &Id| matches!(work.tensor(*id).memory, Memory::Constant(_));
    let (x, w) = match (source(*a)?, source(*b)?) {
        (x, w) if is_constant(&w) && !is_constant(&x) => (*a, *b),
        (w, x) if is_constant(&w) && !is_constant(&x) => (*b, *a),
        _ => return None,
    };
    let data = source(x)?;
    let rows = rows_of(work, facts, data, made)?;
    // The last axis of the data is that of the sum, and is what the blocks together are.
    let (index, block) = (index_of(x)?, rows.block);
    let (last, outer) = index.split_last()?;
    let k = Expr::var(rank);
    if *last != k || outer.iter().any(|e| e.uses_var(rank as u32)) || depth.known()? % block != 0 {
        return None;
    }
    let (number, inner) = (Expr::var(rank), Expr::var(rank + 1));
    let mut map: Vec<Expr> = (0..rank).map(Expr::var).collect();
    map.push(number * block + inner);
    let at: Vec<Expr> = outer.iter().copied().chain([number, inner]).collect();
    let mut out = task.clone();
    let mut put = |part: &Part| {
        out.sources.push(part.source);
        let index: Vec<Expr> = part.index.iter().map(|e| e.subst(&at)).collect();
        Scalar::read_at(part.dtype, out.sources.len() - 1, &index)
    };
    let whole = put(&rows.whole).cast(DType::F32);
    let scale = put(&rows.scale);
    let body = whole * scale * w.subst(&map);
    let axes = vec![depth.div(Expr::int(block)), Expr::int(block)];
    let step = Compute { dims: c.dims.clone(), reduction: Some(Reduction { axes, kind: r.kind, body }), value: c.value };
    let constant = |source: usize| match &work.tensor(out.sources[source]).memory {
        Memory::Constant(t) => Some(t),
        _ => None,
    };
    byte_blocks::weights(&step, &constant, target)?;
    out.step = Step::Compute(step);
    out.prune();
    Some(out)
}

/// A read of a tensor, by the axes of what was made of it.
struct Part {
    source: Id,
    dtype: DType,
    index: Vec<Expr>,
}

/// Data that is whole numbers times scales.
struct Rows {
    whole: Part,
    scale: Part,
    /// Neighbours along the last axis that have one scale.
    block: i64,
}

/// What the tensor was made of, if that is signed bytes and scales of blocks along a last axis of theirs, which lie behind each other in the tensor's.
fn rows_of(work: &Work, facts: &Facts, data: Id, made: &HashMap<Id, Task>) -> Option<Rows> {
    let Memory::Alias { of, offset } = work.tensor(data).memory else { return None };
    let (flat, blocks) = (&work.tensor(data).ty.dims, &work.tensor(of).ty.dims);
    let (&[ref before @ .., count, block], &[ref same @ .., all]) = (blocks.as_slice(), flat.as_slice()) else { return None };
    if !offset.is(0) || before != same || count * block != all {
        return None;
    }
    let task = made.get(&of).filter(|_| facts.made_once(work, of))?;
    let Step::Compute(c) = &task.step else { return None };
    // With the ranges of its axes: neighbours in a block have the same scale.
    let value = c.simplify().value;
    let Kind::Binary(Binary::Mul, a, b) = value.kind() else { return None };
    let part = |task: &Task, s: Scalar| match s.kind() {
        Kind::Read { source, guard: None, .. } => {
            Some(Part { source: task.sources[*source as usize], dtype: s.dtype(), index: index_of(s)? })
        }
        _ => None,
    };
    // A factor that is a cast of signed bytes, in this step or in one of its own.
    let whole = |s: Scalar| {
        let bytes = |task: &Task, s: Scalar| match s.kind() {
            Kind::Cast(byte) if byte.dtype() == DType::I8 => part(task, *byte),
            _ => None,
        };
        if let Some(found) = bytes(task, s) {
            return Some(found);
        }
        let cast = part(task, s)?;
        let before = made.get(&cast.source).filter(|_| facts.made_once(work, cast.source))?;
        let Step::Compute(c) = &before.step else { return None };
        let inner = bytes(before, c.value)?;
        Some(Part { index: inner.index.iter().map(|e| e.subst(&cast.index)).collect(), ..inner })
    };
    let (whole, scale) = match (whole(*a), whole(*b)) {
        (Some(whole), None) => (whole, part(task, *b)?),
        (None, Some(whole)) => (whole, part(task, *a)?),
        _ => return None,
    };
    let rank = blocks.len();
    let inner = Expr::var(rank - 1);
    let as_made =
        whole.index.iter().enumerate().all(|(axis, e)| matches!(e.node(), Node::Var(v) if *v as usize == axis) || e.is(0));
    let moves = scale.index.iter().any(|e| e.uses_var(rank as u32 - 1));
    let kept = [&whole, &scale].iter().all(|p| facts.made_once(work, p.source));
    (kept && as_made && whole.index.last() == Some(&inner) && !moves && scale.dtype == DType::F32)
        .then_some(())
        .and_then(|()| Some(Rows { whole, scale, block: block.known()? }))
}
