//! Chains: steps in a row that work on the same rows, on machines where a warp can take a row. They become one kernel.
//!
//! A norm is such a chain: the mean of a row, the mean of its squares, what is made of both and each element; so is a softmax. So are the sum of parts of
//! a product and the residual that is added to it, where a norm comes next. As kernels of their own they are launched, and wait for memory, one after
//! another, and have little to do each. In one, a warp goes through the steps for its row; what rows are reduced to and elements that later steps of the chain read
//! stay in registers. Only what others read is stored.
//!
//! This is about steps and what they read of each other, and knows no operator. It comes last, when dtypes and places are decided. Class: exact; each step
//! is computed as it is by the plans `row_reduce` and `threads`.

use crate::attention::Attentions;
use crate::batch::touch_counts;
use crate::build::chain::{KEPT, LONGEST};
use crate::loops::Access;
use crate::plan::Plan;
use crate::program::{declare, prepare};
use crate::target::TargetDesc;
use crate::work::{Id, Item, Memory, Task, Work};
use infc_ir::Expr;
use infc_ir::compute::{Compute, Step};
use infc_ir::scalar::{Kind, Scalar};
use std::collections::{HashMap, HashSet};

/// Steps of chains before the last one, by the tensor that the last one makes.
pub type Chains = HashMap<Id, Vec<Link>>;

/// A step of a chain before its last one.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// The step.
    pub task: Task,
    /// Somebody else reads what it makes.
    pub stored: bool,
}

/// The most terms of a sum within an element.
const TERMS: i64 = 32;

/// Takes the steps of each chain out of the work list, but for the last one, which stands for all.
pub fn take(work: &mut Work, target: &TargetDesc, attentions: &Attentions) -> Chains {
    let mut all = Chains::new();
    if target.block_threads > 0 {
        let mut items = std::mem::take(&mut work.items);
        let touched = touch_counts(work, &items, attentions);
        walk(&Cx { work, target, attentions, touched }, &mut items, &mut all);
        work.items = items;
    }
    all
}

struct Cx<'a> {
    work: &'a Work,
    target: &'a TargetDesc,
    attentions: &'a Attentions,
    /// How often each root is touched.
    touched: HashMap<Id, usize>,
}

/// A step that could be of a chain.
struct Member {
    task: Task,
    /// Its axes: rows, then the elements of one, or what it is reduced to.
    dims: Vec<Expr>,
    /// Elements of a row.
    length: i64,
    reduces: bool,
}

impl Member {
    /// Extents of the rows, without those of 1.
    fn rows(&self) -> Vec<Expr> {
        self.dims[..self.dims.len() - 1].iter().copied().filter(|d| !d.is(1)).collect()
    }
}

/// Is it the tensor itself, or the same elements with other axes of one element?
pub(crate) fn is_view(work: &Work, id: Id, of: Id) -> bool {
    let many = |id: Id| work.tensor(id).ty.dims.iter().copied().filter(|d| !d.is(1)).collect::<Vec<_>>();
    match work.tensor(id).memory {
        _ if id == of => true,
        Memory::Alias { of: next, offset } => offset.is(0) && many(id) == many(next) && is_view(work, next, of),
        _ => false,
    }
}

fn walk(cx: &Cx, items: &mut Vec<Item>, all: &mut Chains) {
    let mut out = Vec::with_capacity(items.len());
    let mut run: Vec<Member> = vec![];
    for mut item in std::mem::take(items) {
        match &mut item {
            Item::Task(task) => {
                match cx.member(task) {
                    Some(m) => {
                        if !run.is_empty() && !cx.follows(&run, &m) {
                            cx.end(std::mem::take(&mut run), &mut out, all);
                        }
                        run.push(m);
                    }
                    None => {
                        cx.end(std::mem::take(&mut run), &mut out, all);
                        out.push(item);
                    }
                }
                continue;
            }
            Item::If { then, otherwise, .. } => {
                walk(cx, then, all);
                walk(cx, otherwise, all);
            }
            Item::Loop { body, .. } => walk(cx, body, all),
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
        cx.end(std::mem::take(&mut run), &mut out, all);
        out.push(item);
    }
    cx.end(run, &mut out, all);
    *items = out;
}

impl Cx<'_> {
    /// Is it a step on rows, as a warp takes them: a reduction of rows whose elements lie side by side, or elements of rows that do?
    fn member(&self, task: &Task) -> Option<Member> {
        let Step::Compute(c) = &task.step else { return None };
        let work = self.work;
        if self.attentions.contains_key(&task.out) || work.on_host.contains(&task.out) || c.dims.is_empty() {
            return None;
        }
        let mut pruned = task.clone();
        pruned.prune();
        let mut operands: Vec<_> = pruned.sources.iter().map(|&s| declare(work, s, Access::Read)).collect();
        operands.push(declare(work, task.out, Access::Write));
        let (_, _, plan) = prepare(pruned.step.clone(), operands.clone(), self.target);
        let Step::Compute(c) = &pruned.step else { return None };
        let last = *c.dims.last()?;
        let (length, reduces) = match (&c.reduction, &plan) {
            (Some(r), Plan::RowReduce(_)) if r.axes.len() == 1 && last.is(1) => (r.axes[0].known()?, true),
            (reduction, Plan::Threads(_)) => {
                let terms = reduction.as_ref().map_or(Some(1), |r| r.axes.iter().map(|e| e.known()).product::<Option<i64>>())?;
                let plain = reduction.as_ref().is_none_or(|r| r.kind.combine().is_some());
                if terms > TERMS || !plain || !self.side_by_side(c, &operands) {
                    return None;
                }
                (last.known()?, false)
            }
            _ => return None,
        };
        (1 < length && length <= LONGEST).then(|| Member { task: pruned.clone(), dims: c.dims.clone(), length, reduces })
    }

    /// Do neighbours in a row lie side by side in the result, and side by side or all at one place in what is read?
    fn side_by_side(&self, c: &Compute, operands: &[crate::build::Operand]) -> bool {
        let (out, last) = (&operands[operands.len() - 1], c.dims.len() - 1);
        let mut good = out.buffer.strides[last].is(1);
        for s in Step::Compute(c.clone()).scalars() {
            s.visit(&mut |n| {
                if let Kind::Read { source, index, .. } = n.kind() {
                    let step = operands[*source as usize].offset(index).and_then(|o| o.affine_in(last as u32));
                    good &= matches!(step, Some((0 | 1, _)));
                }
            });
        }
        good
    }

    /// May the step be the next one of a chain: it has the same rows, and reads its own row alone of what the chain makes, and something of it?
    fn follows(&self, run: &[Member], m: &Member) -> bool {
        let work = self.work;
        if run[0].rows() != m.rows() {
            return false;
        }
        let roots: HashMap<Id, &Member> = run.iter().map(|r| (work.root(r.task.out), r)).collect();
        if roots.contains_key(&work.root(m.task.out)) {
            return false;
        }
        let (mut good, mut some) = (true, false);
        for s in m.task.step.scalars() {
            s.visit(&mut |n| {
                let Kind::Read { source, index, guard } = n.kind() else { return };
                let id = m.task.sources[*source as usize];
                if let Some(made) = roots.get(&work.root(id)) {
                    some = true;
                    good &= guard.is_none() && is_view(work, id, made.task.out) && self.own_row(made, m, (id, index));
                }
            });
        }
        // What they read must not change under them: nothing that they read is made here.
        let reads_it = |r: &Member| r.task.sources.iter().any(|&s| work.root(s) == work.root(m.task.out));
        good && some && !run.iter().any(reads_it)
    }

    /// Is it the place of the element itself, or that of what its row was reduced to?
    fn own_row(&self, made: &Member, m: &Member, (id, index): (Id, &[Scalar])) -> bool {
        let rank = m.dims.len();
        // Axes of one element are at 0.
        let dims = &self.work.tensor(id).ty.dims;
        let at: Vec<Option<Expr>> = index.iter().zip(dims).filter(|(_, d)| !d.is(1)).map(|(i, _)| i.as_index()).collect();
        let own = (0..rank - 1).filter(|&a| !m.dims[a].is(1)).map(Expr::var);
        let last = if m.reduces { Expr::var(rank) } else { Expr::var(rank - 1) };
        let wanted: Vec<Option<Expr>> = own.chain((!made.reduces).then_some(last)).map(Some).collect();
        at == wanted && (made.reduces || made.length == m.length && made.length <= KEPT)
    }

    /// A chain ends: its steps become one where there are several and one of them reduces rows.
    fn end(&self, run: Vec<Member>, out: &mut Vec<Item>, all: &mut Chains) {
        let one_by_one = |run: Vec<Member>, out: &mut Vec<Item>| out.extend(run.into_iter().map(|m| Item::Task(m.task)));
        // Steps that no later one of the chain reads were in vain: it begins behind them.
        let work = self.work;
        let read: Vec<HashSet<Id>> = run.iter().map(|m| m.task.sources.iter().map(|&s| work.root(s)).collect()).collect();
        let used = |k: usize| read[k + 1..].iter().any(|r| r.contains(&work.root(run[k].task.out)));
        let first = (0..run.len().saturating_sub(1)).rev().find(|&k| !used(k)).map_or(0, |k| k + 1);
        let (mut before, chain) = (run, vec![]);
        let mut chain: Vec<Member> = {
            let mut c = chain;
            c.extend(before.drain(first..));
            c
        };
        one_by_one(before, out);
        if chain.len() < 2 || !chain.iter().any(|m| m.reduces) {
            one_by_one(chain, out);
            return;
        }
        let last = chain.pop().expect("two or more");
        let roots: Vec<Id> = chain.iter().chain([&last]).map(|m| work.root(m.task.out)).collect();
        let within = |id: Id| {
            let reads: usize =
                chain.iter().chain([&last]).map(|m| m.task.sources.iter().filter(|&&s| work.root(s) == id).count()).sum();
            reads + roots.iter().filter(|&&r| r == id).count()
        };
        let links = chain.iter().map(|m| {
            let root = work.root(m.task.out);
            let plain = root == m.task.out && matches!(work.tensor(root).memory, Memory::Temp);
            let others = self.touched.get(&root).copied().unwrap_or(0) > within(root) || work.twice.contains_key(&m.task.out);
            Link { task: m.task.clone(), stored: others || !plain }
        });
        all.insert(last.task.out, links.collect());
        out.push(Item::Task(last.task));
    }
}
