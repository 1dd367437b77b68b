//! Products of the same factor with different constants, on machines with many threads: they become one product with more columns.
//!
//! Queries, keys and values of attention are such products, as are the gates of a recurrent cell. Each for itself is too small for a GPU: it has few
//! tiles, is cut in parts for that, and costs two launches. The constants, and those that are added to the columns, are put side by side when the model
//! is compiled; what the products make becomes parts of one tensor, side by side in each row.
//!
//! Knows no operator: the steps are the same but for constants. Class: exact.

use crate::attention::Attentions;
use crate::build::contract::factors;
use crate::build::tile;
use crate::fuse::is_contraction;
use crate::plan::guess;
use crate::target::TargetDesc;
use crate::work::{Id, Item, Memory, Task, Work};
use infc_ir::compute::{Compute, Step};
use infc_ir::scalar::{Kind, Scalar};
use infc_ir::{Expr, Tensor, TensorType};
use std::collections::HashMap;

/// Makes one product of each set of them, in all blocks of the work list.
pub fn merge(work: &mut Work, target: &TargetDesc, attentions: &Attentions) {
    if target.block_threads > 0 {
        let mut items = std::mem::take(&mut work.items);
        let views = views(work, &items, attentions);
        walk(work, &mut items, attentions, &views);
        work.items = items;
    }
}

/// Roots that somebody touches in another way than as the tensor itself: a view of them, a model's output, a value of the host.
fn views(work: &Work, items: &[Item], attentions: &Attentions) -> HashMap<Id, usize> {
    let all = crate::batch::touch_counts(work, items, attentions);
    let mut plain: HashMap<Id, usize> = HashMap::new();
    fn tasks(items: &[Item], see: &mut dyn FnMut(&Task)) {
        for item in items {
            match item {
                Item::Task(t) => see(t),
                Item::If { then, otherwise, .. } => {
                    tasks(then, see);
                    tasks(otherwise, see);
                }
                Item::Loop { body, .. } => tasks(body, see),
                Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
            }
        }
    }
    let mut count = |id: Id| {
        if work.root(id) == id {
            *plain.entry(id).or_default() += 1;
        }
    };
    tasks(items, &mut |t| t.sources.iter().chain([&t.out]).for_each(|&id| count(id)));
    attentions.values().flat_map(|(a, _)| &a.sources).for_each(|&id| count(id));
    all.into_iter().map(|(id, n)| (id, n - plain.get(&id).copied().unwrap_or(0))).filter(|(_, n)| *n > 0).collect()
}

fn walk(work: &mut Work, items: &mut Vec<Item>, attentions: &Attentions, views: &HashMap<Id, usize>) {
    for item in items.iter_mut() {
        match item {
            Item::If { then, otherwise, .. } => {
                walk(work, then, attentions, views);
                walk(work, otherwise, attentions, views);
            }
            Item::Loop { body, .. } => walk(work, body, attentions, views),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
    // Products by what they are but for their constants, where the first of them stands.
    let mut sets: Vec<(Task, usize, Vec<usize>)> = vec![];
    for (k, item) in items.iter().enumerate() {
        let Item::Task(task) = item else { continue };
        let mut task = task.clone();
        let free = !attentions.contains_key(&task.out) && !work.on_host.contains(&task.out) && !views.contains_key(&task.out);
        let column = if free { column(work, &mut task) } else { None };
        let Some(column) = column else { continue };
        let same = sets.iter_mut().find(|(first, c, at)| {
            *c == column && is_sibling(work, first, &task, column) && !writes(work, &items[at[0]..k], &task)
        });
        match same {
            Some((_, _, at)) => at.push(k),
            None => sets.push((task, column, vec![k])),
        }
    }
    let mut gone = vec![false; items.len()];
    for (_, column, at) in sets.into_iter().filter(|(_, _, at)| at.len() > 1) {
        let of: Vec<Task> =
            at.iter().filter_map(|&k| if let Item::Task(t) = &items[k] { Some(t.clone()) } else { None }).collect();
        items[at[0]] = Item::Task(together(work, of, column));
        at[1..].iter().for_each(|&k| gone[k] = true);
    }
    let mut at = 0;
    items.retain(|_| {
        at += 1;
        !gone[at - 1]
    });
}

/// Do steps write what the task reads, but for its constants?
fn writes(work: &Work, items: &[Item], task: &Task) -> bool {
    items.iter().any(|item| match item {
        Item::Task(t) => task.sources.iter().any(|&s| work.root(s) == work.root(t.out)),
        _ => true,
    })
}

/// The axis of the columns of a product with a constant that could be one with others: the last axis of the result, which lies in memory as it is
/// written down; each constant that moves along it does so along one of its own axes alone.
fn column(work: &Work, task: &mut Task) -> Option<usize> {
    task.prune();
    let Step::Compute(c) = &task.step else { return None };
    let f = factors(c).filter(|_| is_contraction(c))?;
    let (data, column) = (work.tensor(task.out), c.dims.len().checked_sub(1)?);
    let plain =
        data.memory == Memory::Temp && data.halo.is_empty() && data.gap == 0 && data.order.iter().copied().eq(0..c.dims.len());
    let uses = |k: usize, axis: usize| f[k].index.iter().any(|e| e.uses_var(axis as u32));
    let constant = |k: usize| matches!(work.tensor(task.sources[f[k].source]).memory, Memory::Constant(_));
    let which = (0..2).find(|&k| constant(k) && uses(k, column) && !uses(1 - k, column) && !constant(1 - k))?;
    let size = |of: &dyn Fn(usize) -> bool| (0..c.dims.len()).filter(|&a| of(a)).map(|a| guess(c.dims[a])).product::<i64>();
    let (rows, columns) = (size(&|a| uses(1 - which, a)), size(&|a| uses(which, a)));
    let depth = c.reduction.as_ref()?.axes.iter().map(|&e| guess(e)).product();
    if !plain || c.dims[column].known().is_none() || !tile::fits(rows, columns, depth) {
        return None;
    }
    let mut good = true;
    for s in task.step.scalars() {
        s.visit(&mut |n| {
            let Kind::Read { source, index, guard } = n.kind() else { return };
            let moves = index.iter().filter(|i| i.as_index().is_none_or(|e| e.uses_var(column as u32))).count();
            let exact = index.iter().filter(|i| i.as_index() == Some(Expr::var(column))).count();
            let id = task.sources[*source as usize];
            let constant = matches!(work.tensor(id).memory, Memory::Constant(_));
            good &= moves == 0 || constant && guard.is_none() && (moves, exact) == (1, 1);
        });
        // The number of the column itself, outside of places.
        let rest = s.rewrite(&mut |n| if matches!(n.kind(), Kind::Read { .. }) { Scalar::number(n.dtype(), 0.0) } else { n });
        rest.visit(&mut |n| good &= n.as_index().is_none_or(|e| !e.uses_var(column as u32)));
    }
    good.then_some(column)
}

/// The axis of a constant along which columns lie, of each source of a step.
fn axes(task: &Task, column: usize) -> Vec<Option<usize>> {
    let mut out = vec![None; task.sources.len()];
    for s in task.step.scalars() {
        s.visit(&mut |n| {
            if let Kind::Read { source, index, .. } = n.kind() {
                let at = index.iter().position(|i| i.as_index() == Some(Expr::var(column)));
                out[*source as usize] = out[*source as usize].or(at);
            }
        });
    }
    out
}

/// Are the steps the same but for constants along the columns and how many these are? All that does not move along the columns is the same.
fn is_sibling(work: &Work, first: &Task, other: &Task, column: usize) -> bool {
    let (Step::Compute(a), Step::Compute(b)) = (&first.step, &other.step) else { return false };
    let ([a_out, b_out], along) = ([first, other].map(|t| &work.tensor(t.out).ty), axes(first, column));
    let sources = first.sources.len() == other.sources.len() && axes(other, column) == along;
    let same = |k: usize| match along[k] {
        None => first.sources[k] == other.sources[k],
        Some(axis) => {
            let [x, y] = [first, other].map(|t| &work.tensor(t.sources[k]).ty);
            let rest = |t: &TensorType| t.dims.iter().enumerate().filter(|(d, _)| *d != axis).map(|d| *d.1).collect::<Vec<_>>();
            x.dtype == y.dtype && rest(x) == rest(y)
        }
    };
    a.dims[..column] == b.dims[..column]
        && (&a.reduction, a.value) == (&b.reduction, b.value)
        && a_out.dtype == b_out.dtype
        && sources
        && (0..along.len()).all(same)
}

/// One product for all; what they made are parts of what it makes.
fn together(work: &mut Work, mut of: Vec<Task>, column: usize) -> Task {
    of.iter_mut().for_each(Task::prune);
    let along = axes(&of[0], column);
    let widths: Vec<Expr> = of.iter().map(|t| work.tensor(t.out).ty.dims[column]).collect();
    let all = widths.iter().fold(Expr::int(0), |sum, &w| sum + w);
    let mut sources = of[0].sources.clone();
    for (k, axis) in along.iter().enumerate() {
        let Some(axis) = *axis else { continue };
        let parts: Vec<&Tensor> = (of.iter())
            .map(|t| match &work.tensor(t.sources[k]).memory {
                Memory::Constant(t) => t,
                _ => unreachable!("what moves along the columns is constant"),
            })
            .collect();
        let tensor = side_by_side(&parts, axis);
        let dims: Vec<Expr> = tensor.dims.iter().map(|&d| Expr::from(d)).collect();
        let (ty, name) = (TensorType::new(tensor.dtype, dims), work.tensor(sources[k]).name.clone());
        sources[k] = work.add(ty, Memory::Constant(tensor), name);
    }
    let first = work.tensor(of[0].out).clone();
    let mut dims = first.ty.dims.clone();
    dims[column] = all;
    let out = work.add(TensorType::new(first.ty.dtype, dims.clone()), Memory::Temp, first.name.clone());
    let mut start = vec![Expr::int(0); dims.len()];
    for (task, width) in of.iter().zip(widths) {
        work.tensors[task.out.index()].memory = Memory::Window { of: out, start: start.clone() };
        start[column] = start[column] + width;
    }
    let Step::Compute(c) = &of[0].step else { unreachable!("products are computes") };
    let step = Step::Compute(Compute { dims, ..c.clone() });
    Task { step, sources, out, ..of[0].clone() }
}

/// Tensors one behind the other along an axis.
fn side_by_side(parts: &[&Tensor], axis: usize) -> Tensor {
    let mut dims = parts[0].dims.clone();
    dims[axis] = parts.iter().map(|t| t.dims[axis]).sum();
    let outer: usize = dims[..axis].iter().product();
    let width = parts[0].dtype.bytes();
    let row = |t: &Tensor| t.dims[axis..].iter().product::<usize>() * width;
    let mut data = Vec::with_capacity(dims.iter().product::<usize>() * width);
    for k in 0..outer {
        for t in parts {
            data.extend_from_slice(&t.bytes()[k * row(t)..(k + 1) * row(t)]);
        }
    }
    Tensor::from_bytes(parts[0].dtype, dims, data)
}
