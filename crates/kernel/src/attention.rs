//! Attention by its structure: `softmax(f(Q K)) V` among the steps of a block, whatever operators they came from.
//!
//! Five or six steps that follow each other - a contraction, its largest element along an axis, `exp` of the difference, the sum of that, the quotient, and a
//! contraction with it - are told as one [`Attention`], in the axes of the last step. Scales, masks, biases, transposes and casts are whatever the scalars
//! say. A machine that has a plan for it gets one kernel, in which scores live tile by tile ([`crate::build::attention`]), or two for few queries, the
//! first of which takes parts of the keys ([`crate::build::decode`]); the steps as they stood are the slow twin, and what all other machines run.
//!
//! Class: sums reassociated; weights are not rounded to a narrow dtype before the sum, and divided by their sum after it.

use crate::build::attention::{self, Flash};
use crate::build::contract::{Factor, factor, factors};
use crate::build::decode::{self, Decode};
use crate::build::strips::{self, Strips};
use crate::cost;
use crate::fuse::{Facts, Overwrites, at, cheap, is_contraction, moving_reads};
use crate::target::TargetDesc;
use crate::work::{Id, Item, Memory, Task, Work};
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind, Scalar, Unary};
use infc_ir::{DType, Expr};
use std::collections::{HashMap, HashSet};
use std::fmt;

/// `result = value(sum over keys of softmax(score) * values)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Dims of the result; axis `i` is variable `i`.
    pub dims: Vec<Expr>,
    /// How many keys there are; the key is the variable after the axes.
    pub keys: Expr,
    /// Extents of the axes that a query and a key are multiplied along, the next variables.
    pub depth: Vec<Expr>,
    /// The product of an element of a query and one of a key.
    pub product: Scalar,
    /// The score, of the sum of products, which is `Local(0)`.
    pub score: Scalar,
    /// An element of the values, which a weight is multiplied with.
    pub values: Scalar,
    /// The dtype in which weights are rounded when they are kept.
    pub weights: DType,
    /// The result, of the sum over keys, which is `Local(0)`.
    pub value: Scalar,
    /// Rows without any key (all scores are -inf) give 0; else NaN.
    pub empty_is_zero: bool,
    /// Weights that are NaN give 0, those of all keys of a row: its sum is NaN.
    pub nan_is_zero: bool,
    /// Tensors read.
    pub sources: Vec<Id>,
    /// Arithmetic of the steps.
    pub operations: Expr,
}

/// How an attention, or a part of it, is computed.
#[derive(Clone, Debug, PartialEq)]
pub enum Way {
    /// In tiles of many queries.
    Tiles(Flash),
    /// In strips of queries, on CPUs.
    Strips(Strips),
    /// Few queries, in parts of the keys.
    Parts(Decode),
    /// What the parts gave, which is the last source, put together.
    Join(Decode),
}

impl Way {
    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Way::Tiles(_) | Way::Strips(_) => "attention",
            Way::Parts(_) => "attention_few",
            Way::Join(_) => "attention_join",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Tiles(p) => write!(f, "{p}"),
            Way::Strips(p) => write!(f, "{p}"),
            Way::Parts(p) => write!(f, "{p}"),
            Way::Join(p) => write!(f, "decode_join parts={}", p.parts),
        }
    }
}

/// Attentions with their plans, by the tensor that they make.
pub type Attentions = HashMap<Id, (Attention, Way)>;

/// Takes the steps of each attention that has a plan on the machine out of the work list, but for the last one, which stands for all. One in
/// several parts has a step before it, which makes the parts.
pub fn take(work: &mut Work, target: &TargetDesc) -> Attentions {
    let mut all = Attentions::new();
    let mut items = std::mem::take(&mut work.items);
    let facts = Facts::of(work, &items);
    let mut moved = HashSet::new();
    walk(work, &facts, &mut items, &mut |a| plan(work, a, target), &mut moved, &mut all);
    while !moved.is_empty() && drop_unread(&seen(work, &items), &mut items, &moved) {}
    part(work, &mut items, &mut all);
    work.items = items;
    all
}

/// Tensors whose memory somebody reads.
fn seen(work: &Work, items: &[Item]) -> HashSet<Id> {
    fn walk(items: &[Item], out: &mut Vec<Id>) {
        for item in items {
            match item {
                Item::Task(t) => out.extend(&t.sources),
                Item::If { cond, then, otherwise } => {
                    out.push(*cond);
                    walk(then, out);
                    walk(otherwise, out);
                }
                Item::Loop { cond, body, .. } => {
                    out.extend(cond);
                    walk(body, out);
                }
                Item::Bind { from, .. } => out.push(*from),
                // What host steps read is shared.
                Item::Require { .. } | Item::Host { .. } => {}
            }
        }
    }
    let mut todo: Vec<Id> = work.output_tensors().chain(work.shared.iter().copied()).collect();
    walk(items, &mut todo);
    let mut seen = HashSet::new();
    while let Some(id) = todo.pop() {
        if seen.insert(id)
            && let Memory::Alias { of, .. } | Memory::Window { of, .. } = work.tensor(id).memory
        {
            todo.push(of);
        }
    }
    seen
}

/// Takes steps out whose tensors nobody reads any more; were there some?
fn drop_unread(seen: &HashSet<Id>, items: &mut Vec<Item>, of: &HashSet<Id>) -> bool {
    let before = items.len();
    items.retain(|item| !matches!(item, Item::Task(t) if of.contains(&t.out) && !seen.contains(&t.out)));
    let mut some = items.len() < before;
    for item in items {
        match item {
            Item::If { then, otherwise, .. } => {
                some |= drop_unread(seen, then, of);
                some |= drop_unread(seen, otherwise, of);
            }
            Item::Loop { body, .. } => some |= drop_unread(seen, body, of),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
    some
}

/// The plan of the machine.
fn plan(work: &Work, a: &Attention, target: &TargetDesc) -> Option<Way> {
    if target.block_threads > 0 {
        return match (attention::plan(a, target), decode::plan(a)) {
            (Some(tiles), Some(parts)) if !parts.is_wider(a, &tiles) => Some(Way::Tiles(tiles)),
            (_, Some(parts)) => Some(Way::Parts(parts)),
            (tiles, None) => tiles.map(Way::Tiles),
        };
    }
    let offset = |source: usize, index: &[Expr]| {
        let strides = work.strides(a.sources[source]);
        Some(index.iter().zip(strides).fold(Expr::int(0), |sum, (&i, stride)| sum + i * stride))
    };
    strips::plan(a, &offset, target).map(Way::Strips)
}

/// Puts the steps that make parts before those that put them together.
fn part(work: &mut Work, items: &mut Vec<Item>, all: &mut Attentions) {
    let mut out = Vec::with_capacity(items.len());
    for mut item in std::mem::take(items) {
        match &mut item {
            Item::If { then, otherwise, .. } => {
                part(work, then, all);
                part(work, otherwise, all);
            }
            Item::Loop { body, .. } => part(work, body, all),
            Item::Task(task) => {
                if let Some((a, Way::Parts(p))) = all.get(&task.out)
                    && p.parts > 1
                {
                    let (a, p) = (a.clone(), p.clone());
                    let parts = work.add(p.sums(&a), Memory::Temp, "parts");
                    out.push(Item::Task(Task { out: parts, ..task.clone() }));
                    all.insert(task.out, (a.joined(parts), Way::Join(p.clone())));
                    all.insert(parts, (a, Way::Parts(p)));
                }
            }
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
        out.push(item);
    }
    *items = out;
}

fn walk(
    work: &Work,
    facts: &Facts,
    items: &mut Vec<Item>,
    plan: &mut dyn FnMut(&Attention) -> Option<Way>,
    moved: &mut HashSet<Id>,
    all: &mut Attentions,
) {
    for item in items.iter_mut() {
        match item {
            Item::If { then, otherwise, .. } => {
                walk(work, facts, then, plan, moved, all);
                walk(work, facts, otherwise, plan, moved, all);
            }
            Item::Loop { body, .. } => walk(work, facts, body, plan, moved, all),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
    let overwrites = Overwrites::of(work, items);
    let mut gone = HashSet::new();
    for (last, item) in items.iter().enumerate() {
        let Item::Task(task) = item else { continue };
        let block = Block { work, facts, items, last, taken: all };
        let Some((mut found, members)) = block.find(task) else { continue };
        let elsewhere = |k: usize| matches!(&items[k], Item::Task(t) if work.on_host.contains(&t.out));
        if elsewhere(last) || members.iter().any(|&m| gone.contains(&m) || overwrites.between(m, last) || elsewhere(m)) {
            continue;
        }
        let passed = block.without_moves(&mut found, &|m| overwrites.between(m, last));
        found.number_sources();
        if let Some(way) = plan(&found) {
            all.insert(task.out, (found, way));
            gone.extend(members);
            moved.extend(passed);
        }
    }
    for item in items.iter_mut() {
        if let Item::Task(t) = item
            && let Some((a, _)) = all.get(&t.out)
        {
            t.sources.clone_from(&a.sources);
        }
    }
    let mut at = 0;
    items.retain(|_| {
        at += 1;
        !gone.contains(&(at - 1))
    });
}

/// The steps before one that may be the last of an attention.
struct Block<'a> {
    work: &'a Work,
    facts: &'a Facts,
    items: &'a [Item],
    last: usize,
    /// Steps that stand for an attention are none of another one's.
    taken: &'a Attentions,
}

/// A step that only others of the attention read, its sources numbered by their ids.
struct Member {
    position: usize,
    out: Id,
    c: Compute,
    readers: usize,
}

fn by_ids(task: &Task) -> Option<Compute> {
    match task.step.map_sources(&|k| task.sources[k as usize].0) {
        Step::Compute(c) => Some(c),
        _ => None,
    }
}

impl Block<'_> {
    /// The private step that makes a tensor.
    fn member(&self, id: Id) -> Option<Member> {
        self.maker(id).filter(|_| self.facts.private(self.work, id))
    }

    /// The step that makes a tensor, whoever else reads it.
    fn maker(&self, id: Id) -> Option<Member> {
        let earlier = self.items[..self.last].iter().enumerate();
        let (position, task) = earlier.rev().find_map(|(k, item)| match item {
            Item::Task(t) if t.out == id => Some((k, t)),
            _ => None,
        })?;
        let readers = self.facts.readers(id);
        let free = !self.taken.contains_key(&id) && self.facts.made_once(self.work, id);
        free.then_some(Member { position, out: id, c: by_ids(task)?, readers })
    }

    /// The step that makes what a read reads, with the index of the read.
    fn made(&self, read: Scalar) -> Option<(Member, Vec<Expr>)> {
        let Kind::Read { source, index, guard: None } = read.kind() else { return None };
        let index = index.iter().map(|i| i.as_index()).collect::<Option<Vec<_>>>()?;
        Some((self.member(Id(*source))?, index))
    }

    /// The attention that a step ends, and the positions of its other steps.
    fn find(&self, task: &Task) -> Option<(Attention, Vec<usize>)> {
        let c = by_ids(task).filter(is_contraction)?;
        let r = c.reduction.as_ref()?;
        let [keys] = r.axes[..] else { return None };
        let f = factors(&c)?;
        (0..2).find_map(|k| self.with_weights(task, &c, keys, &f[k], &f[1 - k]))
    }

    fn with_weights(&self, task: &Task, c: &Compute, keys: Expr, w: &Factor, v: &Factor) -> Option<(Attention, Vec<usize>)> {
        let rank = c.dims.len();
        if uncast(w.scalar) != w.read {
            return None;
        }
        let (weights, place) = self.made(w.read).filter(|(m, _)| m.c.reduction.is_none() && m.readers == 1)?;
        // One axis of the weights is the key, no other one has to do with it.
        let mut moves = (0..place.len()).filter(|&a| place[a].uses_var(rank as u32));
        let (key, None) = (moves.next()?, moves.next()) else { return None };
        if place[key] != Expr::var(rank) || weights.c.dims[key] != keys {
            return None;
        }
        let value = weights.c.value;
        let mut parts = Parts { block: self, key, members: vec![weights] };
        // Exporters put 0 where a row without any key gives NaN.
        let (quotient, nan_is_zero) = without_nan(parts.spelled_out(value)?);
        let Kind::Binary(Binary::Div, e, sum) = parts.spelled_out(quotient)?.kind() else { return None };
        let (sum, sum_guarded) = guarded(*sum, 0.0, 1.0);
        let exp = parts.spelled_out(*e)?;
        let Kind::Unary(Unary::Exp, shifted) = exp.kind() else { return None };
        let Kind::Binary(Binary::Sub, score, most) = shifted.kind() else { return None };
        if score.dtype() != DType::F32 {
            return None;
        }
        parts.reduction(sum, Reducer::Sum, exp)?;
        let (most, most_guarded) = guarded(*most, f64::NEG_INFINITY, 0.0);
        parts.reduction(most, Reducer::Max, *score)?;
        // The scores: what the score is made of that is a sum of products.
        let (read, scores, index) = moving_reads(*score).into_iter().find_map(|read| {
            let (m, index) = self.made(read)?;
            is_contraction(&m.c).then_some((read, m, index))
        })?;
        let products = scores.c.reduction.clone()?;
        let whole = score.rewrite(&mut |n| if n == read { scores.c.value.subst(&index) } else { n });
        // From the axes of the weights to those of the result.
        let depth: Vec<Expr> = (0..products.axes.len()).map(|k| Expr::var(rank + 1 + k)).collect();
        let moved = |e: Expr| {
            e.map(&|l| match l.node() {
                Node::Var(v) => place[*v as usize],
                _ => l,
            })
        };
        let at_product: Vec<Expr> = index.iter().map(|&e| moved(e)).chain(depth).collect();
        let product = products.body.subst(&at_product);
        let score = whole.subst(&place);
        parts.members.push(scores);
        let members = parts.complete()?;
        // What the steps make is not there any more: the last one must not read it in another way too, as a residual or as values.
        let out = |m: &usize| if let Item::Task(t) = &self.items[*m] { Some(self.work.root(t.out)) } else { None };
        let gone: HashSet<Id> = members.iter().filter_map(out).collect();
        let mut missed = false;
        for s in [product, score, v.scalar, c.value] {
            s.visit(&mut |n| {
                missed |= matches!(n.kind(), Kind::Read { source, .. } if gone.contains(&self.work.root(Id(*source))));
            });
        }
        if missed {
            return None;
        }
        let steps = members.iter().filter_map(|m| if let Item::Task(t) = &self.items[*m] { Some(&t.step) } else { None });
        let operations = steps.chain([&task.step]).fold(Expr::int(0), |sum, s| sum + cost::operations(s));
        let found = Attention {
            dims: c.dims.clone(),
            keys,
            depth: products.axes,
            product,
            score,
            values: v.scalar,
            weights: w.read.dtype(),
            value: c.value,
            empty_is_zero: sum_guarded && most_guarded || nan_is_zero,
            nan_is_zero,
            sources: vec![],
            operations,
        };
        Some((found, members))
    }

    /// Reads queries, keys and values where they were before steps that only move or scale them, if those along whose neighbours are read stay neighbours,
    /// and scales queries instead of keys, the result instead of values. Gives what these steps make. `late`: what a step reads has been overwritten.
    fn without_moves(&self, a: &mut Attention, late: &dyn Fn(usize) -> bool) -> Vec<Id> {
        let Kind::Binary(Binary::Mul, x, y) = a.product.kind() else { return vec![] };
        let (rank, mut passed) = (a.dims.len(), vec![]);
        let extents: Vec<Expr> = a.dims.iter().chain([&a.keys]).chain(&a.depth).copied().collect();
        let ranges = Ranges::of_axes(&extents);
        let depth = (rank + a.depth.len()) as u32;
        let column = factor(a.values).and_then(|v| (0..rank as u32).rev().find(|&axis| self.step(&v, axis) == Some(1)));
        let mut nearer = |s: Scalar, inner: Option<u32>| {
            let mut s = s;
            while let Some(now) = factor(s) {
                let (value, made) = match self.unaliased(&now, &ranges) {
                    Some(read) => (read, None),
                    None => match self.maker(Id(now.source as u32)).filter(|m| m.c.reduction.is_none() && cheap(m.c.value)) {
                        Some(m) if !late(m.position) => (m.c.value.subst(&now.index), Some(m.out)),
                        _ => break,
                    },
                };
                let next = s.rewrite(&mut |n| if n == now.read { value } else { n });
                let side_by_side = |f: &Factor| inner.is_some_and(|inner| self.step(f, inner) == Some(1));
                let plain = |f: &Factor| f.index.iter().all(|e| (0..extents.len() as u32).all(|v| e.affine_in(v).is_some()));
                match factor(next) {
                    Some(f) if plain(&f) && (side_by_side(&f) || !side_by_side(&now)) => s = next,
                    _ => break,
                }
                passed.extend(made);
            }
            s
        };
        let (mut x, mut y) = (nearer(*x, Some(depth)), nearer(*y, Some(depth)));
        let of_key = |s: Scalar| factor(s).is_some_and(|f| f.index.iter().any(|e| e.uses_var(rank as u32)));
        let (query, key) = if of_key(x) { (&mut y, &mut x) } else { (&mut x, &mut y) };
        if let Some((read, scale)) = scaled(*key) {
            (*query, *key) = (*query * scale, read);
        }
        a.product = x * y;
        a.values = nearer(a.values, column);
        if let Some((read, scale)) = scaled(a.values) {
            a.values = read;
            a.value = a.value.rewrite(&mut |n| if matches!(n.kind(), Kind::Local(0)) { n * scale } else { n });
        }
        passed
    }

    /// A read of another view of some memory, as one of the tensor that lies there.
    fn unaliased(&self, f: &Factor, ranges: &Ranges) -> Option<Scalar> {
        let id = Id(f.source as u32);
        let Memory::Alias { of, offset } = self.work.tensor(id).memory else { return None };
        let (from, to) = (&self.work.tensor(id).ty, &self.work.tensor(of).ty);
        let flat = Expr::linearise(&f.index, &from.dims) + offset;
        let index: Vec<Expr> = Expr::delinearise(flat, &to.dims).into_iter().map(|e| e.simplify(ranges)).collect();
        (from.dtype == to.dtype).then(|| Scalar::read_at(to.dtype, of.index(), &index))
    }

    /// The distance in memory between neighbours along an axis.
    fn step(&self, f: &Factor, axis: u32) -> Option<i64> {
        let strides = self.work.strides(Id(f.source as u32));
        let offset = f.index.iter().zip(strides).fold(Expr::int(0), |sum, (&i, stride)| sum + i * stride);
        offset.affine_in(axis).map(|(step, _)| step)
    }
}

/// Without widenings and roundings.
pub(crate) fn uncast(s: Scalar) -> Scalar {
    match s.kind() {
        Kind::Cast(inner) if inner.dtype().is_float() && s.dtype().is_float() => uncast(*inner),
        _ => s,
    }
}

/// A read times what is the same for all elements.
fn scaled(s: Scalar) -> Option<(Scalar, Scalar)> {
    let Kind::Binary(Binary::Mul, a, b) = s.kind() else { return None };
    let fixed = |s: Scalar| {
        let mut moves = !moving_reads(s).is_empty();
        s.visit(&mut |n| moves |= matches!(n.kind(), Kind::Index(e) if e.has_var()));
        !moves
    };
    let read = |s: Scalar| s.dtype() == DType::F32 && factor(s).is_some_and(|f| f.scalar == f.read);
    match (read(*a) && fixed(*b), read(*b) && fixed(*a)) {
        (true, _) => Some((*a, *b)),
        (_, true) => Some((*b, *a)),
        _ => None,
    }
}

/// `select(x == from, to, x)` is `x`, guarded.
fn guarded(s: Scalar, from: f64, to: f64) -> (Scalar, bool) {
    if let Kind::Select(cond, then, x) = s.kind()
        && then.as_float() == Some(to)
        && *cond == x.eq_to(Scalar::float(x.dtype(), from))
    {
        return (*x, true);
    }
    (s, false)
}

/// `x` of a value that is 0 where `x` is NaN, else `x`.
fn without_nan(s: Scalar) -> (Scalar, bool) {
    match s.kind() {
        Kind::Select(cond, then, x) if then.as_float() == Some(0.0) && *cond == Scalar::unary(Unary::IsNan, *x) => (*x, true),
        _ => (s, false),
    }
}

/// What is known of the steps while they are put together, in the axes of the weights.
struct Parts<'a> {
    block: &'a Block<'a>,
    key: usize,
    members: Vec<Member>,
}

impl Parts<'_> {
    fn add(&mut self, m: Member) {
        if self.members.iter().all(|have| have.out != m.out) {
            self.members.push(m);
        }
    }

    /// The value without widenings and roundings, that of an elementwise step in the place of a read of it.
    fn spelled_out(&mut self, s: Scalar) -> Option<Scalar> {
        let s = uncast(s);
        if !matches!(s.kind(), Kind::Read { .. }) {
            return Some(s);
        }
        let (m, index) = self.block.made(s).filter(|(m, _)| m.c.reduction.is_none())?;
        let index: Vec<Scalar> = index.into_iter().map(Scalar::index).collect();
        let value = at(m.c.value, &index)?;
        self.add(m);
        self.spelled_out(value)
    }

    /// Is the read one of a reduction of this value along the key?
    fn reduction(&mut self, read: Scalar, kind: Reducer, value: Scalar) -> Option<()> {
        let (m, index) = self.block.made(read)?;
        let r = m.c.reduction.as_ref().filter(|r| r.kind == kind && r.axes.len() == 1)?;
        if m.c.value != Scalar::local(kind.result(r.body.dtype()), 0) || index.iter().any(|e| e.uses_var(self.key as u32)) {
            return None;
        }
        let place: Vec<Expr> = index.iter().copied().chain([Expr::var(self.key)]).collect();
        let body = r.body.subst(&place);
        if r.axes[0] != self.members[0].c.dims[self.key] || body != value && self.spelled_out(body)? != value {
            return None;
        }
        self.add(m);
        Some(())
    }

    /// Positions of all members, if nobody else reads what they make.
    fn complete(self) -> Option<Vec<usize>> {
        let reads = |id: Id| {
            let inside = self.members.iter().filter(|m| Step::Compute(m.c.clone()).sources().contains(&id.0)).count();
            // The weights are read by the step that is the last.
            inside + usize::from(id == self.members[0].out)
        };
        self.members.iter().all(|m| reads(m.out) == m.readers).then(|| self.members.iter().map(|m| m.position).collect())
    }
}

impl Attention {
    /// What is left of it once sums over parts of the keys are made: sources that only these read are gone, the parts are the last one.
    fn joined(&self, parts: Id) -> Attention {
        let nothing = Scalar::float(DType::F32, 0.0);
        let mut left = self.clone();
        left.value = self.value.rewrite(&mut |n| match n.kind() {
            Kind::Read { source, index, guard } => {
                let source = self.sources[*source as usize].0;
                Scalar::raw(n.dtype(), Kind::Read { source, index: index.clone(), guard: *guard })
            }
            _ => n,
        });
        (left.product, left.score, left.values) = (nothing, nothing, nothing);
        left.number_sources();
        left.sources.push(parts);
        // A scale, a product and a sum for each part.
        left.operations = Expr::product(self.dims.iter().copied()) * 3;
        left
    }

    /// Drops tensors that it does not read, and numbers the others anew.
    pub(crate) fn prune(&mut self) {
        let ids = std::mem::take(&mut self.sources);
        for s in [&mut self.product, &mut self.score, &mut self.values, &mut self.value] {
            *s = s.rewrite(&mut |n| match n.kind() {
                Kind::Read { source, index, guard } => {
                    let source = ids[*source as usize].0;
                    Scalar::raw(n.dtype(), Kind::Read { source, index: index.clone(), guard: *guard })
                }
                _ => n,
            });
        }
        self.number_sources();
    }

    /// Sources as places in the list of tensors instead of ids.
    fn number_sources(&mut self) {
        let mut list: Vec<Id> = vec![];
        for s in [self.product, self.score, self.values, self.value] {
            s.visit(&mut |n| {
                if let Kind::Read { source, .. } = n.kind()
                    && !list.contains(&Id(*source))
                {
                    list.push(Id(*source));
                }
            });
        }
        let place = |id: u32| list.iter().position(|l| l.0 == id).expect("listed above") as u32;
        for s in [&mut self.product, &mut self.score, &mut self.values, &mut self.value] {
            *s = s.rewrite(&mut |n| match n.kind() {
                Kind::Read { source, index, guard } => {
                    Scalar::raw(n.dtype(), Kind::Read { source: place(*source), index: index.clone(), guard: *guard })
                }
                _ => n,
            });
        }
        self.sources = list;
    }
}
