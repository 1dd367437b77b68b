//! Constant matrices of products that stay narrow, on machines with many threads.
//!
//! Their weights are integers of few bits with scales of columns or blocks, or narrow floats, as far as their values tell ([`crate::build::stored`]). It is found out once for each constant; plans that can read it narrow
//! ([`crate::build::gemv`] for few rows, [`crate::build::tile`] for many) do so, all others have the constant as it was. Knows no operator. Class: exact.

use crate::attention::Attentions;
use crate::build::contract::factors;
use crate::build::narrow::{Narrow, taken};
use crate::build::stored;
use crate::fuse::is_contraction;
use crate::target::TargetDesc;
use crate::work::{Id, Item, Memory, Task, Work};
use infc_ir::Expr;
use infc_ir::compute::{Compute, Reducer, Step};
use std::collections::HashSet;
use std::sync::Arc;

/// Weights from which on it is worth while: kernels that widen them are longer, by as much as fewer would save.
const LEAST: usize = 1 << 14;

/// Finds them, in all blocks of the work list.
pub fn find(work: &mut Work, target: &TargetDesc, attentions: &Attentions) {
    if target.block_threads > 0 {
        let items = std::mem::take(&mut work.items);
        walk(work, &items, attentions, &mut HashSet::new());
        work.items = items;
    }
}

/// `seen`: constants that were looked at.
fn walk(work: &mut Work, items: &[Item], attentions: &Attentions, seen: &mut HashSet<(Id, [usize; 2])>) {
    for item in items {
        match item {
            Item::Task(task) if !attentions.contains_key(&task.out) && !work.on_host.contains(&task.out) => {
                look(work, task, seen);
            }
            Item::If { then, otherwise, .. } => {
                walk(work, then, attentions, seen);
                walk(work, otherwise, attentions, seen);
            }
            Item::Loop { body, .. } => walk(work, body, attentions, seen),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

/// The products of a step that sums them up.
fn products(task: &Task) -> Option<&Compute> {
    let Step::Compute(c) = &task.step else { return None };
    c.reduction.as_ref().filter(|r| is_contraction(c) && r.kind == Reducer::Sum).map(|_| c)
}

fn look(work: &mut Work, task: &Task, seen: &mut HashSet<(Id, [usize; 2])>) {
    let Some(c) = products(task) else { return };
    let Some(f) = factors(c) else { return };
    for k in 0..2 {
        let id = task.sources[f[k].source];
        let Memory::Constant(t) = &work.tensor(id).memory else { continue };
        let long: Vec<usize> = (0..t.dims.len()).filter(|&d| t.dims[d] > 1).collect();
        let &[x, y] = &long[..] else { continue };
        if t.dims[x] * t.dims[y] < LEAST {
            continue;
        }
        let Some(dims) = [[x, y], [y, x]].into_iter().find(|&dims| taken(c, &f, k, dims).is_some()) else { continue };
        if work.narrow.contains_key(&id) || !seen.insert((id, dims)) {
            continue;
        }
        let place = |d: usize| dims.iter().position(|&x| x == d).map_or(Expr::int(0), Expr::var);
        let index: Vec<Expr> = (0..t.dims.len()).map(place).collect();
        let [columns, depth] = dims.map(|d| t.dims[d]);
        let made = stored::find(t, &index, columns, &[depth], false).map(|found| Arc::new(Narrow::new(&found, dims)));
        if let Some(made) = made {
            work.narrow.insert(id, made);
        }
    }
}

/// The narrow factor of a step's products: which one it is, and of which matrix.
pub fn factor<'a>(work: &'a Work, task: &Task) -> Option<(usize, &'a Narrow)> {
    let c = products(task)?;
    let f = factors(c)?;
    (0..2).find_map(|k| {
        let narrow = work.narrow.get(&task.sources[f[k].source])?;
        taken(c, &f, k, narrow.dims).map(|_| (k, &**narrow))
    })
}
