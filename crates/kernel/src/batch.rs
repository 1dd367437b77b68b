//! The batch outside of layers: regions of steps that treat every element of the batch by itself run as a loop over a few elements at a time.
//!
//! Run whole, each step goes over all pictures before the next one begins, so that results go through memory. In a loop, what one picture's
//! steps hand on stays in the caches; but constants are read again in each round, and products have fewer rows. Which regions win
//! follows from an account of the bytes that move ([`account`]), for the caches of the machine.
//!
//! The loop is the program's: its steps are those of before on slices of tensors, and tensors that only it touches have the size of a slice.
//! Class: exact. A step whose sums would be added up in another order for fewer elements stays outside. A batch that only a run knows is taken one element at a
//! time; where other sizes are symbols too, steps stay whole.

use self::account::{Member, PASSES, Touch};
use crate::attention::Attentions;
use crate::build::{self, Operand};
use crate::loops::Access;
use crate::plan::{Plan, guess};
use crate::program::{declare, prepare};
use crate::target::TargetDesc;
use crate::work::{Arg, Id, Item, Memory, Task, Work};
use infc_ir::Expr;
use infc_ir::compute::{Compute, Step};
use infc_ir::expr::Node as ExprNode;
use infc_ir::scalar::{Kind, Scalar};
use std::collections::{HashMap, HashSet};

pub(crate) mod account;

/// Puts loops over the batch around regions of steps, in all blocks of the work list.
pub fn loops(work: &mut Work, target: &TargetDesc, attentions: &Attentions) {
    if target.block_threads > 0 {
        return;
    }
    let inputs = work.inputs.iter().filter_map(|(_, a)| if let Arg::Tensor(id) = a { Some(*id) } else { None });
    let batches = inputs.filter_map(|id| work.tensor(id).ty.dims.first().copied());
    let batches: HashSet<Expr> =
        batches.filter(|b| matches!(b.node(), ExprNode::Sym(_)) || b.known().is_some_and(|b| b > 1)).collect();
    if batches.is_empty() {
        return;
    }
    let mut items = std::mem::take(&mut work.items);
    let touched = touch_counts(work, &items, attentions);
    Cx { batches, touched, target, attentions, loops: 0 }.walk(work, &mut items);
    work.items = items;
}

/// How often each root is touched by anything.
pub(crate) fn touch_counts(work: &Work, items: &[Item], attentions: &Attentions) -> HashMap<Id, usize> {
    let mut touched = HashMap::new();
    touches(work, items, &mut touched);
    work.output_tensors().chain(work.shared.iter().copied()).for_each(|id| *touched.entry(work.root(id)).or_default() += 1);
    // An attention reads more than its last step, which stands for it.
    attentions.values().flat_map(|(a, _)| &a.sources).for_each(|&id| *touched.entry(work.root(id)).or_default() += 1);
    touched
}

/// How often each root is touched.
fn touches(work: &Work, items: &[Item], out: &mut HashMap<Id, usize>) {
    let mut touch = |id: Id| *out.entry(work.root(id)).or_default() += 1;
    for item in items {
        match item {
            Item::Task(t) => t.sources.iter().chain([&t.out]).for_each(|&id| touch(id)),
            Item::If { cond, .. } => touch(*cond),
            Item::Loop { cond, .. } => cond.iter().for_each(|&c| touch(c)),
            Item::Bind { from, .. } => touch(*from),
            Item::Host { inputs, outputs, .. } => {
                let all = inputs.iter().flatten().chain(outputs);
                all.filter_map(|a| if let Arg::Tensor(id) = a { Some(*id) } else { None }).for_each(&mut touch);
            }
            Item::Require { .. } => {}
        }
    }
    for item in items {
        match item {
            Item::If { then, otherwise, .. } => {
                touches(work, then, out);
                touches(work, otherwise, out);
            }
            Item::Loop { body, .. } => touches(work, body, out),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

/// A run of steps that treat a batch element by element, one after another.
#[derive(Default)]
struct Run {
    batch: Option<Expr>,
    steps: Vec<Task>,
    /// Roots that they make, and those that they read whole.
    made: HashSet<Id>,
    whole: HashSet<Id>,
}

impl Run {
    /// Takes in a step, if it does so too and may be in one loop with those before: it reads nothing whole that they make, and makes nothing
    /// that they read whole.
    fn take(&mut self, work: &Work, task: &Task, batch: Expr) -> bool {
        let Some(by) = batched(work, task, batch) else { return false };
        let whole = task.sources.iter().zip(by).filter(|s| !s.1).map(|s| work.root(*s.0));
        let (whole, made): (HashSet<Id>, Id) = (whole.collect(), work.root(task.out));
        let fits = self.batch == Some(batch) && self.made.is_disjoint(&whole) && !self.whole.contains(&made);
        if self.steps.is_empty() || fits {
            self.batch = Some(batch);
            self.made.insert(made);
            self.whole.extend(whole);
            self.steps.push(task.clone());
            return true;
        }
        false
    }
}

/// What a walk over all blocks knows.
struct Cx<'a> {
    /// Sizes of batches.
    batches: HashSet<Expr>,
    /// How often each root is touched.
    touched: HashMap<Id, usize>,
    target: &'a TargetDesc,
    /// Steps that stay as they are.
    attentions: &'a Attentions,
    /// Loops made.
    loops: usize,
}

impl Cx<'_> {
    fn walk(&mut self, work: &mut Work, items: &mut Vec<Item>) {
        let mut out = vec![];
        let mut run = Run::default();
        for mut item in std::mem::take(items) {
            match &mut item {
                Item::Task(t) => {
                    let batch = work.tensor(t.out).ty.dims.first().copied();
                    let batch = batch.filter(|b| self.batches.contains(b) && !self.attentions.contains_key(&t.out));
                    if batch.is_some_and(|b| run.take(work, t, b)) {
                        continue;
                    }
                    self.region(work, std::mem::take(&mut run), &mut out);
                    if batch.is_some_and(|b| run.take(work, t, b)) {
                        continue;
                    }
                }
                other => {
                    self.region(work, std::mem::take(&mut run), &mut out);
                    match other {
                        Item::If { then, otherwise, .. } => {
                            self.walk(work, then);
                            self.walk(work, otherwise);
                        }
                        Item::Loop { body, .. } => self.walk(work, body),
                        Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
                    }
                }
            }
            out.push(item);
        }
        self.region(work, run, &mut out);
        *items = out;
    }

    /// Puts out a run, in loops where that pays.
    fn region(&mut self, work: &mut Work, run: Run, out: &mut Vec<Item>) {
        let (steps, Some(b)) = (run.steps, run.batch) else { return };
        let groups: Vec<i64> = match b.known() {
            Some(b) => (1..b.min(MOST_TOGETHER + 1)).filter(|g| b % g == 0).collect(),
            None => vec![1],
        };
        let members: Vec<Member> = steps.iter().map(|t| member(work, t, b, &groups, self.target)).collect();
        let mut at = 0;
        for part in account::parts(&members, guess(b), &groups, self.target) {
            out.extend(steps[at..part.first].iter().cloned().map(Item::Task));
            let counter = Expr::sym(&format!("%batch{}", self.loops));
            self.loops += 1;
            out.push(looped(work, &steps[part.first..part.end], (b, part.group), counter, &self.touched));
            at = part.end;
        }
        out.extend(steps[at..].iter().cloned().map(Item::Task));
    }
}

/// Which sources a step reads at its own element of the batch alone; `None` if it does anything else with the batch. The others it
/// reads whole, the same for each element.
fn batched(work: &Work, task: &Task, b: Expr) -> Option<Vec<bool>> {
    let Step::Compute(c) = &task.step else { return None };
    if *c.dims.first()? != b || !outermost(work, task.out, b) {
        return None;
    }
    let mut by: Vec<Option<bool>> = vec![None; task.sources.len()];
    let batch = Expr::var(0);
    for s in (Step::Compute(c.clone())).scalars() {
        let mut good = true;
        let rest = s.rewrite(&mut |n| {
            let Kind::Read { source, index, guard } = n.kind() else { return n };
            let uses = |s: &Scalar| s.as_index().is_some_and(|e| e.uses_var(0)) || deep(*s);
            let own = index.first().and_then(|i| i.as_index()) == Some(batch);
            let others = index.iter().skip(usize::from(own)).any(uses) || guard.iter().any(|(c, f)| uses(c) || uses(f));
            let k = *source as usize;
            good &= !others && by[k].is_none_or(|was| was == own) && (!own || outermost(work, task.sources[k], b));
            by[k] = Some(own);
            // What has been looked at no longer mentions the axis.
            Scalar::number(n.dtype(), 0.0)
        });
        if !good || deep(rest) {
            return None;
        }
    }
    Some(by.into_iter().map(|b| b.unwrap_or(false)).collect())
}

/// Does the axis of the batch stand anywhere in it?
fn deep(s: Scalar) -> bool {
    let mut found = false;
    s.visit(&mut |n| found |= matches!(n.kind(), Kind::Index(e) if e.uses_var(0)));
    found
}

/// Is the first axis of the tensor the batch, and the outermost one in memory?
fn outermost(work: &Work, id: Id, b: Expr) -> bool {
    let t = work.tensor(id);
    let first = t.ty.dims.first() == Some(&b) && t.order.first() == Some(&0);
    let plain = t.halo.first().is_none_or(|h| *h == (0, 0)) && (t.gap == 0 || t.order.len() > 1);
    first
        && plain
        && t.ty.dims[1..].iter().all(|d| d.known().is_some())
        && match &t.memory {
            Memory::Temp | Memory::Input(_) => true,
            Memory::Constant(_) => false,
            Memory::Alias { of, offset } => {
                let all = |id: Id| Expr::product(work.tensor(id).ty.dims.iter().copied());
                offset.is(0) && all(id) == all(*of) && outermost(work, *of, b)
            }
            Memory::Window { of, start } => start[0].is(0) && outermost(work, *of, b),
        }
}

/// The step for `g` elements of the batch.
fn narrowed(c: &Compute, g: i64) -> Compute {
    let mut c = c.clone();
    c.dims[0] = Expr::int(g);
    c.simplify()
}

/// Does the plan add up in the same order?
pub(crate) fn same_sums(a: &Plan, b: &Plan) -> bool {
    match (a, b) {
        (Plan::Brgemm(a), Plan::Brgemm(b)) => a.row == b.row,
        (Plan::Matrix(a), Plan::Matrix(b)) => (a.row, a.products) == (b.row, b.products),
        (Plan::Winograd(a), Plan::Winograd(b)) => (a.row, a.outputs) == (b.row, b.outputs),
        (Plan::Sparse(a), Plan::Sparse(b)) => (a.form, a.lanes, a.window) == (b.form, b.lanes, b.window),
        (Plan::Dots(a), Plan::Dots(b)) => a.lanes == b.lanes,
        (Plan::RowReduce(a), Plan::RowReduce(b)) => a.lanes == b.lanes,
        (Plan::Elementwise(_) | Plan::Turned(_), Plan::Elementwise(_) | Plan::Turned(_)) => true,
        _ => false,
    }
}

/// What one step costs and moves, for the account.
fn member(work: &Work, task: &Task, b: Expr, groups: &[i64], target: &TargetDesc) -> Member {
    let by = batched(work, task, b).expect("checked before");
    let b = guess(b);
    let Step::Compute(c) = &task.step else { unreachable!("checked before") };
    let used = task.step.sources();
    let mut operands: Vec<_> = task.sources.iter().map(|&s| declare(work, s, Access::Read)).collect();
    operands.push(declare(work, task.out, Access::Write));
    let cycles = |step: &Step, operands: &[Operand], plan: &Plan| match step {
        Step::Compute(c) => build::product_cycles(c, operands, plan, target).unwrap_or(0.0),
        _ => 0.0,
    };
    let (step, own, whole) = prepare(task.step.clone(), operands.clone(), target);
    let all = cycles(&step, &own, &whole);
    let more = groups.iter().map(|&g| {
        let mut few = operands.clone();
        let last = few.len() - 1;
        for (k, o) in few.iter_mut().enumerate() {
            if k == last || by[k] {
                o.buffer.dims[0] = Expr::int(g);
            }
        }
        let (step, own, plan) = prepare(Step::Compute(narrowed(c, g)), few, target);
        same_sums(&whole, &plan).then(|| cycles(&step, &own, &plan) * (b / g) as f64 - all)
    });
    let more = more.collect();
    let bytes = |id: Id| {
        let t = work.tensor(id);
        let elements: i64 = t.ty.dims.iter().map(|&d| guess(d)).product();
        (elements * t.ty.dtype.bytes() as i64) as f64
    };
    let points = c.dims.iter().chain(c.reduction.iter().flat_map(|r| &r.axes)).map(|&d| guess(d) as f64);
    let points: f64 = points.product::<f64>() / b as f64;
    let touch = |k: usize| {
        let id = task.sources[k];
        let elements = bytes(id) / work.tensor(id).ty.dtype.bytes() as f64;
        // Tiles take a pass in less time, and count as so many fewer.
        let passes = match whole {
            Plan::Matrix(_) => PASSES * all / b as f64 / bytes(id).max(1.0),
            _ => points / elements.max(1.0),
        };
        Touch { root: work.root(id), bytes: bytes(id), batched: by[k], written: false, passes }
    };
    let mut touches: Vec<Touch> = (0..task.sources.len()).filter(|k| used.contains(&(*k as u32))).map(touch).collect();
    touches.push(Touch { root: work.root(task.out), bytes: bytes(task.out), batched: true, written: true, passes: 1.0 });
    Member { touches, more }
}

/// The steps as a loop over groups of `g` elements of the batch.
fn looped(work: &mut Work, steps: &[Task], (b, g): (Expr, i64), counter: Expr, touched: &HashMap<Id, usize>) -> Item {
    // Tensors that only the loop touches, and first of all writes.
    let (mut inside, mut written) = (HashMap::<Id, usize>::new(), HashMap::<Id, bool>::new());
    for t in steps {
        for (&id, write) in t.sources.iter().map(|s| (s, false)).chain([(&t.out, true)]) {
            let root = work.root(id);
            *inside.entry(root).or_default() += 1;
            written.entry(root).or_insert(write);
        }
    }
    let own = |work: &Work, id: Id| {
        let root = work.root(id);
        matches!(work.tensor(root).memory, Memory::Temp) && touched.get(&root) == inside.get(&root) && written[&root]
    };
    let own: HashSet<Id> = inside.keys().copied().filter(|&id| own(work, id)).collect();
    let mut slices = Slices { work, own, map: HashMap::new(), group: g, counter };
    let mut body = vec![];
    for t in steps {
        let by = batched(slices.work, t, b).expect("checked before");
        let sources = t.sources.iter().zip(&by).map(|(&s, &by)| if by { slices.slice(s) } else { s }).collect();
        let Step::Compute(c) = &t.step else { unreachable!("checked before") };
        let out = slices.slice(t.out);
        let step = Step::Compute(narrowed(c, g));
        body.push(Item::Task(Task { step, sources, out, name: t.name.clone(), node: t.node.clone() }));
    }
    Item::Loop { counter, count: b.div(Expr::int(g)), cond: None, body, apart: true }
}

/// Most elements of the batch that a round takes.
const MOST_TOGETHER: i64 = 16;

/// Slices of tensors, made when first asked for.
struct Slices<'a> {
    work: &'a mut Work,
    /// Roots that the loop has for itself.
    own: HashSet<Id>,
    map: HashMap<Id, Id>,
    group: i64,
    counter: Expr,
}

impl Slices<'_> {
    /// The tensor of one round: memory of a slice if the loop has it for itself, else a part of the tensor.
    fn slice(&mut self, id: Id) -> Id {
        if let Some(&done) = self.map.get(&id) {
            return done;
        }
        let own = self.own.contains(&self.work.root(id));
        let mut data = self.work.tensor(id).clone();
        let first = self.counter * self.group;
        data.ty.dims[0] = Expr::int(self.group);
        data.memory = match data.memory {
            Memory::Temp if own => Memory::Temp,
            Memory::Alias { of, offset } if own => Memory::Alias { of: self.slice(of), offset },
            Memory::Window { of, start } if own => Memory::Window { of: self.slice(of), start },
            Memory::Alias { of, offset } => {
                let each = Expr::product(data.ty.dims[1..].iter().copied());
                Memory::Alias { of, offset: offset + first * each }
            }
            Memory::Window { of, mut start } => {
                start[0] = first;
                Memory::Window { of, start }
            }
            Memory::Temp | Memory::Input(_) | Memory::Constant(_) => {
                let start = [first].into_iter().chain(data.ty.dims[1..].iter().map(|_| Expr::int(0))).collect();
                Memory::Window { of: id, start }
            }
        };
        self.work.tensors.push(data);
        let made = Id(self.work.tensors.len() as u32 - 1);
        self.map.insert(id, made);
        made
    }
}
