//! Long reductions with few results, on machines with many threads: the reduction axis is cut in parts, a first step reduces each part for itself
//! (one more parallel axis), a second one reduces the parts, in order, and ends as the step did. Both are plain steps with plans of their
//! own, so this is split-K of products, two-stage sums, and what makes a product with a vector wide enough.
//!
//! How many parts follows from shapes and layouts alone: same artifact, same bits. Parts divide the axis, so no part has a tail.
//! Class: float sums reassociated, all else exact.

use crate::attention::Attentions;
use crate::build::contract::factors;
use crate::build::gemv;
use crate::narrow;
use crate::plan::guess;
use crate::target::TargetDesc;
use crate::work::{Id, Item, Memory, Task, Work};
use infc_ir::compute::{Compute, Reduction, Step};
use infc_ir::scalar::{Kind, Scalar};
use infc_ir::{Expr, TensorType};

/// Blocks that fill a GPU: two for each of 132 multiprocessors. With half a block for each it is worth while to cut.
const BLOCKS: i64 = 264;
/// The fewest products of a part, in tiles of blocks.
const PART_OF_TILES: i64 = 256;
/// The same for what threads take, one element each: threads that fill a GPU, and products of a part.
const THREADS: i64 = 1 << 16;
const PART_OF_THREAD: i64 = 32;
/// The same for what warps take, one row each.
const WARPS: i64 = 1 << 10;
const PART_OF_WARP: i64 = 1 << 10;

/// Splits long reductions in all blocks of the work list, where tasks are threads; not those that stand for an attention.
pub fn split(work: &mut Work, target: &TargetDesc, attentions: &Attentions) {
    if target.block_threads > 0 {
        let mut items = std::mem::take(&mut work.items);
        walk(work, &mut items, attentions);
        work.items = items;
    }
}

fn walk(work: &mut Work, items: &mut Vec<Item>, attentions: &Attentions) {
    let mut out = Vec::with_capacity(items.len());
    for mut item in std::mem::take(items) {
        match &mut item {
            Item::Task(task) if !attentions.contains_key(&task.out) && !work.on_host.contains(&task.out) => {
                if let Some((k, parts)) = parts(work, task) {
                    let [first, second] = cut(work, task, k, parts);
                    out.push(Item::Task(first));
                    *task = second;
                }
            }
            Item::If { then, otherwise, .. } => {
                walk(work, then, attentions);
                walk(work, otherwise, attentions);
            }
            Item::Loop { body, .. } => walk(work, body, attentions),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
        out.push(item);
    }
    *items = out;
}

/// Which reduction axis is cut in how many parts, if one is.
fn parts(work: &Work, task: &Task) -> Option<(usize, i64)> {
    let Step::Compute(c) = &task.step else { return None };
    let r = c.reduction.as_ref()?;
    r.kind.combine()?;
    let extents: Vec<i64> = r.axes.iter().map(|e| e.known()).collect::<Option<_>>()?;
    let depth: i64 = extents.iter().product();
    let results: i64 = c.dims.iter().map(|&d| guess(d).max(1)).product();
    // A block takes all products of few rows with a narrow matrix; parts of many begin where its vectors do.
    let matrix = narrow::factor(work, task);
    if matrix.is_some_and(|(which, _)| rows(c, which).is_some_and(|n| n <= gemv::MOST as i64)) {
        return None;
    }
    let unit = matrix.map_or(1, |(_, matrix)| matrix.stored.per_vector() as i64);
    // How many take part, how many are wanted, and the least length of a part.
    let (now, wanted, least) = match tiles(c, depth) {
        Some(tiles) => (tiles, BLOCKS, PART_OF_TILES),
        None if by_warps(work, task, c) => (results, WARPS, PART_OF_WARP),
        None => (results, THREADS, PART_OF_THREAD),
    };
    let most = (wanted / now.max(1)).min(depth / least);
    if now > wanted / 4 || most < 2 {
        return None;
    }
    // The outermost axis that has enough parts; parts of the inner ones stay short ways in memory.
    let divisor = |n: i64| (2..=most.min(n)).rev().find(|p| n % p == 0 && n / p % unit == 0);
    let cuts = extents.iter().enumerate().filter_map(|(k, &n)| Some((k, divisor(n)?)));
    cuts.max_by_key(|&(k, parts)| (parts, std::cmp::Reverse(k)))
}

/// Rows of a product, which are the axes that the other factor than `matrix` has alone, if their number is known.
fn rows(c: &Compute, matrix: usize) -> Option<i64> {
    let f = factors(c)?;
    let uses = |k: usize, axis: usize| f[k].index.iter().any(|e| e.uses_var(axis as u32));
    let of = (0..c.dims.len()).filter(|&a| uses(1 - matrix, a) && !uses(matrix, a));
    of.map(|a| c.dims[a].known()).product()
}

/// Blocks of the plan `tile`, if the step gets it.
fn tiles(c: &Compute, depth: i64) -> Option<i64> {
    let f = factors(c).filter(|_| crate::fuse::is_contraction(c))?;
    let uses = |k: usize, axis: usize| f[k].index.iter().any(|e| e.uses_var(axis as u32));
    let size = |of: &dyn Fn(usize) -> bool| (0..c.dims.len()).filter(|&a| of(a)).map(|a| guess(c.dims[a])).product::<i64>();
    let rows = size(&|a| uses(0, a) && !uses(1, a));
    let columns = size(&|a| uses(1, a) && !uses(0, a));
    let batch = size(&|a| uses(0, a) == uses(1, a));
    crate::build::tile::fits(rows, columns, depth).then(|| batch * crate::build::tile::blocks(rows, columns))
}

/// Does a warp take a row: does what is read lie side by side along the last axis that is reduced?
fn by_warps(work: &Work, task: &Task, c: &Compute) -> bool {
    let Some(r) = &c.reduction else { return false };
    let Some(last) = (c.dims.len() + r.axes.len()).checked_sub(1) else { return false };
    let last = last as u32;
    let (mut side_by_side, mut across) = (false, false);
    r.body.visit(&mut |n| {
        let Kind::Read { source, index, .. } = n.kind() else { return };
        let data = work.tensor(work.whole(task.sources[*source as usize]));
        let inner = data.order.iter().rev().find(|&&d| !data.ty.dims[d].is(1)).copied();
        for (d, i) in index.iter().enumerate() {
            let Some(e) = i.as_index() else {
                across = true;
                continue;
            };
            if e.uses_var(last) {
                let next = Some(d) == inner && e.affine_in(last).is_some_and(|(step, _)| step == 1);
                side_by_side |= next;
                across |= !next;
            }
        }
    });
    side_by_side && !across
}

/// Both steps; the first one makes a new tensor.
fn cut(work: &mut Work, task: &Task, k: usize, parts: i64) -> [Task; 2] {
    let Step::Compute(c) = &task.step else { unreachable!("only computes are cut") };
    let r = c.reduction.as_ref().expect("only reductions are cut");
    let rank = c.dims.len();
    let mut axes = r.axes.clone();
    let part = Expr::int(axes[k].known().expect("a known extent") / parts);
    axes[k] = part;
    // The part is the first axis; all others are one further.
    let mut map: Vec<Expr> = (1..=rank + axes.len()).map(Expr::var).collect();
    map[rank + k] = Expr::var(0) * part + map[rank + k];
    let dims: Vec<Expr> = [Expr::int(parts)].into_iter().chain(c.dims.iter().copied()).collect();
    let dtype = r.kind.result(r.body.dtype());
    let reduction = Some(Reduction { axes, kind: r.kind, body: r.body.subst(&map) });
    let first = Compute { dims: dims.clone(), reduction, value: Scalar::local(dtype, 0) };
    let sums = work.add(TensorType::new(dtype, dims), Memory::Temp, "parts");
    // As the result lies, which follows the same axes.
    let like = work.whole(task.out);
    if work.tensor(like).order.len() == rank {
        let order = [0].into_iter().chain(work.tensor(like).order.iter().map(|a| a + 1)).collect();
        work.tensors[sums.index()].order = order;
    }
    let at: Vec<Expr> = [Expr::var(rank)].into_iter().chain((0..rank).map(Expr::var)).collect();
    let body = Scalar::read_at(dtype, task.sources.len(), &at);
    let reduction = Some(Reduction { axes: vec![Expr::int(parts)], kind: r.kind, body });
    let second = Compute { dims: c.dims.clone(), reduction, value: c.value };
    let mut first = Task { step: Step::Compute(first.simplify()), sources: task.sources.clone(), out: sums, ..task.clone() };
    let sources: Vec<Id> = task.sources.iter().copied().chain([sums]).collect();
    let mut second =
        Task { step: Step::Compute(second.simplify()), sources, name: format!("{}_parts", task.name), ..task.clone() };
    first.prune();
    second.prune();
    [first, second]
}
