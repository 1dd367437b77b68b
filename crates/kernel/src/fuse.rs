//! Grouping: which steps become one kernel. Fusing is substitution of bodies, so a group is again one step.
//!
//! Two rules, applied within a block until nothing changes:
//! - *prologue*: a producer without a reduction moves into its reader, if no element is then computed more often than before, or
//!   if it only moves elements (a transpose, slice or broadcast is nothing but another index map of the reader);
//! - *epilogue*: an elementwise reader of a reduction, at the same (or permuted) index, moves into the end of the reduction.
//!
//! A step never moves past a write to something that it reads, and never writes what it reads. Rounding is untouched: values keep
//! their dtype at every operator, so both rules are exact.

use crate::work::{Arg, Id, Item, Memory, Task, Work};
use crate::zero_point::byte_read;
use infc_ir::compute::{Compute, Reducer, Reduction, Step, simplify_scalar};
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind, Scalar, Unary};
use infc_ir::{DType, Expr};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{HashMap, HashSet};

/// Largest number of distinct scalar nodes in a fused body.
const MAX_NODES: usize = 256;
/// Most tensors that a fused step reads.
const MAX_SOURCES: usize = 12;

/// Fuses the steps of all blocks.
pub fn fuse(work: &mut Work) {
    let mut items = std::mem::take(&mut work.items);
    let facts = Facts::of(work, &items);
    block(work, &facts, &mut items);
    work.items = items;
}

/// What holds for tensors over the whole work list.
pub(crate) struct Facts {
    uses: HashMap<Id, usize>,
    defs: HashMap<Id, usize>,
    /// Tensors whose memory is seen by others: outputs, conditions, what aliases and windows lie in.
    pinned: HashSet<Id>,
}

impl Facts {
    pub(crate) fn of(work: &Work, items: &[Item]) -> Facts {
        let mut facts = Facts { uses: HashMap::new(), defs: HashMap::new(), pinned: HashSet::new() };
        for t in &work.tensors {
            if let Memory::Alias { of, .. } | Memory::Window { of, .. } = t.memory {
                facts.pinned.insert(of);
            }
        }
        facts.pinned.extend(work.output_tensors());
        facts.pinned.extend(&work.shared);
        facts.walk(items);
        facts
    }

    fn walk(&mut self, items: &[Item]) {
        for item in items {
            match item {
                Item::Task(t) => {
                    t.sources.iter().for_each(|&s| *self.uses.entry(s).or_default() += 1);
                    *self.defs.entry(t.out).or_default() += 1;
                }
                Item::If { cond, then, otherwise } => {
                    self.pinned.insert(*cond);
                    self.walk(then);
                    self.walk(otherwise);
                }
                Item::Loop { cond, body, .. } => {
                    self.pinned.extend(cond);
                    self.walk(body);
                }
                Item::Bind { from, .. } => {
                    self.pinned.insert(*from);
                }
                Item::Require { .. } | Item::Host { .. } => {}
            }
        }
    }

    /// How many steps read it.
    pub(crate) fn readers(&self, t: Id) -> usize {
        self.uses.get(&t).copied().unwrap_or(0)
    }

    /// Do others see its memory?
    pub(crate) fn pinned(&self, t: Id) -> bool {
        self.pinned.contains(&t)
    }

    /// How many steps write it.
    pub(crate) fn makers(&self, t: Id) -> usize {
        self.defs.get(&t).copied().unwrap_or(0)
    }

    /// Made once, by a step, and seen only by reads of steps.
    pub(crate) fn private(&self, work: &Work, t: Id) -> bool {
        self.made_once(work, t) && !self.pinned.contains(&t)
    }

    /// Made by one step as a whole.
    pub(crate) fn made_once(&self, work: &Work, t: Id) -> bool {
        matches!(work.tensor(t).memory, Memory::Temp) && self.defs.get(&t) == Some(&1)
    }
}

/// Roots written by an item, nested blocks included.
fn written(work: &Work, item: &Item, out: &mut HashSet<Id>) {
    match item {
        Item::Task(t) => {
            out.insert(work.root(t.out));
        }
        Item::If { then, otherwise, .. } => then.iter().chain(otherwise).for_each(|i| written(work, i, out)),
        Item::Loop { body, .. } => body.iter().for_each(|i| written(work, i, out)),
        Item::Host { outputs, .. } => {
            out.extend(outputs.iter().filter_map(|a| if let Arg::Tensor(id) = a { Some(work.root(*id)) } else { None }));
        }
        Item::Bind { .. } | Item::Require { .. } => {}
    }
}

fn block(work: &Work, facts: &Facts, items: &mut Vec<Item>) {
    for item in items.iter_mut() {
        match item {
            Item::If { then, otherwise, .. } => {
                block(work, facts, then);
                block(work, facts, otherwise);
            }
            Item::Loop { body, .. } => block(work, facts, body),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
    let mut overwrites = Overwrites::of(work, items);
    let mut slots: Vec<Option<Item>> = std::mem::take(items).into_iter().map(Some).collect();
    let mut producer: HashMap<Id, usize> = HashMap::new();
    // Readers of each private tensor in this block, to know when the last one has taken it in.
    let mut local: HashMap<Id, usize> = HashMap::new();
    for slot in slots.iter().flatten() {
        if let Item::Task(t) = slot {
            t.sources.iter().for_each(|&s| *local.entry(s).or_default() += 1);
        }
    }
    // Tensors that no nested block reads.
    let here: HashSet<Id> = local.iter().filter(|(t, n)| facts.uses.get(t) == Some(n)).map(|(&t, _)| t).collect();
    for c in 0..slots.len() {
        let mut consumer = match slots[c].take() {
            Some(Item::Task(task)) => task,
            other => {
                slots[c] = other;
                continue;
            }
        };
        loop {
            let fused = consumer.sources.iter().enumerate().find_map(|(slot, &t)| {
                let &p = producer.get(&t)?;
                let Some(Some(Item::Task(source))) = slots.get(p) else { return None };
                if !facts.private(work, t)
                    || !here.contains(&t)
                    || overwrites.between(p, c)
                    || work.on_host.contains(&source.out) != work.on_host.contains(&consumer.out)
                    || hides_border(work, source, &consumer, slot)
                {
                    return None;
                }
                let single = local[&t] == 1;
                let joined = join(source, &consumer, slot as u32, single)?;
                Some((p, t, single, joined))
            });
            let Some((p, t, single, joined)) = fused else { break };
            // The reader now reads what the producer read, and no longer the producer's tensor.
            overwrites.absorb(p, c);
            for s in &consumer.sources {
                *local.get_mut(s).expect("counted") -= 1;
            }
            for s in &joined.sources {
                *local.entry(*s).or_default() += 1;
            }
            debug_assert!(!single || local[&t] == 0);
            if local[&t] == 0 {
                if let Some(Item::Task(gone)) = slots[p].take() {
                    gone.sources.iter().for_each(|s| *local.get_mut(s).expect("counted") -= 1);
                }
                producer.remove(&t);
            }
            consumer = joined;
        }
        producer.insert(consumer.out, c);
        slots[c] = Some(Item::Task(consumer));
    }
    *items = slots.into_iter().flatten().collect();
}

/// Symbols that an item sets, nested blocks included.
fn sets(item: &Item, out: &mut HashSet<Expr>) {
    match item {
        Item::Bind { symbol, .. } => _ = out.insert(*symbol),
        Item::If { then, otherwise, .. } => then.iter().chain(otherwise).for_each(|i| sets(i, out)),
        Item::Loop { body, .. } => body.iter().for_each(|i| sets(i, out)),
        Item::Task(_) | Item::Require { .. } | Item::Host { .. } => {}
    }
}

/// Symbols that a step computes with.
fn symbols_of(work: &Work, task: &Task) -> HashSet<Expr> {
    let mut found = HashSet::new();
    let mut look = |e: Expr| {
        e.leaves(&mut |l| {
            if matches!(l.node(), Node::Sym(_)) {
                found.insert(l);
            }
        });
    };
    if let Step::Compute(c) = &task.step {
        c.dims.iter().chain(c.reduction.iter().flat_map(|r| &r.axes)).for_each(|&e| look(e));
    }
    for scalar in task.step.scalars() {
        scalar.visit(&mut |s| s.as_index().into_iter().for_each(&mut look));
    }
    for &id in task.sources.iter().chain([&task.out]) {
        let mut at = Some(id);
        while let Some(tensor) = at.map(|id| work.tensor(id)) {
            tensor.ty.dims.iter().for_each(|&e| look(e));
            at = match tensor.memory {
                Memory::Alias { of, offset } => {
                    look(offset);
                    Some(of)
                }
                _ => None,
            };
        }
    }
    found
}

/// Dependences of a block that keep a step from moving down: an edge leads from an item to each later one that writes what it reads, or sets
/// a symbol that it computes with (in a loop, sizes of carried values).
pub(crate) struct Overwrites(DiGraph<(), ()>);

impl Overwrites {
    pub(crate) fn of(work: &Work, items: &[Item]) -> Overwrites {
        let mut graph = DiGraph::new();
        let mut readers: HashMap<Id, Vec<NodeIndex>> = HashMap::new();
        let mut all_set = HashSet::new();
        items.iter().for_each(|i| sets(i, &mut all_set));
        let mut users: HashMap<Expr, Vec<NodeIndex>> = HashMap::new();
        for item in items {
            let node = graph.add_node(());
            if !all_set.is_empty() {
                let mut set = HashSet::new();
                sets(item, &mut set);
                for &user in set.iter().filter_map(|s| users.get(s)).flatten() {
                    graph.update_edge(user, node, ());
                }
                if let Item::Task(t) = item {
                    for symbol in symbols_of(work, t).into_iter().filter(|s| all_set.contains(s)) {
                        users.entry(symbol).or_default().push(node);
                    }
                }
            }
            if let Item::Task(t) = item {
                t.sources.iter().for_each(|&s| readers.entry(work.root(s)).or_default().push(node));
            }
            let mut roots = HashSet::new();
            written(work, item, &mut roots);
            for &reader in roots.iter().filter_map(|r| readers.get(r)).flatten() {
                graph.update_edge(reader, node, ());
            }
        }
        Overwrites(graph)
    }

    /// Does anything after item `p`, up to and with item `c`, write what `p` reads?
    pub(crate) fn between(&self, p: usize, c: usize) -> bool {
        self.0.neighbors(NodeIndex::new(p)).any(|k| (p + 1..=c).contains(&k.index()))
    }

    /// Item `c` reads from now on what `p` reads.
    fn absorb(&mut self, p: usize, c: usize) {
        let later: Vec<NodeIndex> = self.0.neighbors(NodeIndex::new(p)).collect();
        later.into_iter().for_each(|k| {
            self.0.update_edge(NodeIndex::new(c), k, ());
        });
    }
}

/// Does `c` sum over windows of what `p` takes out of a tensor, with padding around? In the tensor itself there is no place for a border, so that
/// every read would be tested; what `p` makes can have one.
fn hides_border(work: &Work, p: &Task, c: &Task, slot: usize) -> bool {
    let (Step::Compute(pc), Step::Compute(cc)) = (&p.step, &c.step) else { return false };
    let Some(r) = cc.reduction.as_ref().filter(|_| is_contraction(cc) && is_move(pc)) else { return false };
    let mut padded = false;
    r.body.visit(&mut |n| padded |= matches!(n.kind(), Kind::Read { source, guard: Some(_), .. } if *source as usize == slot));
    let Kind::Read { source, index, guard: None, .. } = pc.value.kind() else { return padded };
    let dims = &work.tensor(p.sources[*source as usize]).ty.dims;
    let whole = index.iter().zip(dims).all(|(i, &d)| match i.as_index().map(|e| e.node()) {
        Some(Node::Var(v)) => pc.dims.get(*v as usize) == Some(&d),
        Some(Node::Const(0)) => d.is(1),
        _ => false,
    });
    padded && !whole
}

/// The one step that does the work of `p` and `c`, of which `c` reads `p` as source `slot`; `None` if they stay apart.
fn join(p: &Task, c: &Task, slot: u32, single: bool) -> Option<Task> {
    let (Step::Compute(pc), Step::Compute(cc)) = (&p.step, &c.step) else { return None };
    // Sources of the joined step: those of the reader without the producer, then those of the producer.
    let mut sources: Vec<Id> = c.sources.iter().enumerate().filter(|&(k, _)| k != slot as usize).map(|(_, &s)| s).collect();
    let mut place = |s: Id| {
        let at = sources.iter().position(|&x| x == s);
        at.unwrap_or_else(|| {
            sources.push(s);
            sources.len() - 1
        }) as u32
    };
    let from_p: Vec<u32> = p.sources.iter().map(|&s| place(s)).collect();
    let from_c: Vec<u32> =
        (0..c.sources.len() as u32).map(|k| if k == slot { u32::MAX } else { k - u32::from(k > slot) }).collect();
    let Step::Compute(pc) = Step::Compute(pc.clone()).map_sources(&|s| from_p[s as usize]) else { return None };
    let Step::Compute(cc) = Step::Compute(cc.clone()).map_sources(&|s| from_c[s as usize]) else { return None };
    if sources.len() > MAX_SOURCES {
        return None;
    }
    let joined = if pc.reduction.is_some() { epilogue(&pc, &cc, single)? } else { prologue(&pc, &cc, single)? };
    let joined = joined.simplify();
    let nodes: usize = Step::Compute(joined.clone()).scalars().iter().map(|s| count_nodes(*s)).sum();
    if nodes > MAX_NODES {
        return None;
    }
    // The simplifier may have dropped reads; sources stay as they are, the builders look at what is read.
    let name = if is_move(&pc) {
        c.name.clone()
    } else if is_move(&cc) {
        p.name.clone()
    } else {
        format!("{}+{}", p.name, c.name)
    };
    let node = if pc.reduction.is_some() || is_move(&cc) { p.node.clone() } else { c.node.clone() };
    Some(Task { step: Step::Compute(joined), sources, out: c.out, name, node })
}

/// The source number that stands for the producer while two steps are joined.
const HOLE: u32 = u32::MAX;

fn count_nodes(s: Scalar) -> usize {
    let mut n = 0;
    s.visit(&mut |_| n += 1);
    n
}

/// A step that computes nothing: each element is one element of a source, or a constant.
pub fn is_move(c: &Compute) -> bool {
    c.reduction.is_none()
        && match c.value.kind() {
            Kind::Read { index, guard, .. } => {
                index.iter().all(|i| i.as_index().is_some()) && guard.is_none_or(|(_, f)| matches!(f.kind(), Kind::Const(_)))
            }
            Kind::Const(_) => true,
            _ => false,
        }
}

/// Sum over a product of two reads, casts allowed: a matrix product or convolution.
pub fn is_contraction(c: &Compute) -> bool {
    let factor = |mut s: Scalar| loop {
        match s.kind() {
            Kind::Cast(a) => s = *a,
            // Less a zero point, which is one for the whole tensor.
            Kind::Binary(Binary::Sub, a, b) if moving_reads(*b).is_empty() => s = *a,
            Kind::Binary(Binary::Xor, ..) => return byte_read(s).is_some(),
            Kind::Read { .. } => return true,
            _ => return false,
        }
    };
    c.reduction.as_ref().is_some_and(|r| {
        r.kind == Reducer::Sum && matches!(r.body.kind(), Kind::Binary(Binary::Mul, a, b) if factor(*a) && factor(*b))
    })
}

/// The reads in a scalar whose place depends on an axis.
pub fn moving_reads(s: Scalar) -> Vec<Scalar> {
    let mut reads = vec![];
    s.visit(&mut |n| {
        if let Kind::Read { index, .. } = n.kind()
            && !index.iter().all(|i| i.as_index().is_some_and(|e| e.known().is_some()))
        {
            reads.push(n);
        }
    });
    reads
}

/// The reads of the producer in a scalar.
fn holes(s: Scalar) -> Vec<Scalar> {
    let mut out = vec![];
    s.visit(&mut |n| {
        if matches!(n.kind(), Kind::Read { source: HOLE, .. }) {
            out.push(n);
        }
    });
    out
}

/// True if different values of the axes give different elements: each dim is indexed by an axis of its own, or a constant. Axes of one
/// element need no dim.
fn injective(read: Scalar, axes: &[Expr]) -> bool {
    let Kind::Read { index, .. } = read.kind() else { return false };
    let mut seen = HashSet::new();
    let distinct = index.iter().all(|i| match i.as_index() {
        Some(e) => match e.node() {
            Node::Const(_) => true,
            _ => {
                let mut vars = HashSet::new();
                e.leaves(&mut |l| {
                    if let Node::Var(v) = l.node() {
                        vars.insert(*v);
                    }
                });
                let linear = vars.iter().all(|&v| e.affine_in(v).is_some_and(|(k, _)| k != 0));
                vars.len() == 1 && linear && vars.iter().all(|&v| seen.insert(v))
            }
        },
        None => false,
    });
    distinct && (0..axes.len() as u32).all(|v| seen.contains(&v) || axes[v as usize].is(1))
}

pub(crate) fn cheap(s: Scalar) -> bool {
    let mut cost = 0;
    s.visit(&mut |n| {
        cost += match n.kind() {
            Kind::Const(_) | Kind::Index(_) | Kind::Local(_) => 0,
            // What is the same for all elements is read once.
            Kind::Read { index, .. } if index.iter().all(|i| i.as_index().is_some_and(|e| e.known().is_some())) => 0,
            Kind::Unary(Unary::Neg | Unary::Abs | Unary::Not, _) | Kind::Read { .. } | Kind::Cast(_) | Kind::Bitcast(_) => 1,
            Kind::Unary(Unary::Floor | Unary::Ceil | Unary::Sqrt | Unary::Round | Unary::Trunc, _) => 4,
            Kind::Unary(..) => 100,
            Kind::Binary(Binary::Pow | Binary::Atan2 | Binary::Rem | Binary::Mod, ..) => 100,
            Kind::Binary(Binary::Div, ..) => 4,
            Kind::Binary(..) | Kind::Fma(..) | Kind::Select(..) => 1,
        }
    });
    cost <= 4
}

fn prologue(p: &Compute, c: &Compute, single: bool) -> Option<Compute> {
    let moves = is_move(p);
    let plain_move = moves && matches!(p.value.kind(), Kind::Const(_) | Kind::Read { guard: None, .. });
    let axes: Vec<Expr> = c.dims.iter().chain(c.reduction.iter().flat_map(|r| &r.axes)).copied().collect();
    let in_body = c.reduction.as_ref().map_or(vec![], |r| holes(r.body));
    let in_value = holes(c.value);
    let again = plain_move || cheap(p.value) && in_body.is_empty();
    if !(single || again) {
        return None;
    }
    if is_contraction(c) && !in_body.is_empty() && !moves {
        return None;
    }
    // An argument reduction reads its value once; a window reads it several times.
    let read_once = in_body.len() == 1 && in_body.iter().all(|&r| injective(r, &axes));
    if !(in_body.is_empty() || moves || read_once) {
        return None;
    }
    let once = |r: &Scalar| injective(*r, &c.dims) || cheap(p.value);
    let few = in_value.len() <= 1 || cheap(p.value);
    if !(plain_move || few && in_value.iter().all(once)) {
        return None;
    }
    // A guarded copy (padding) costs a test for each read: not for values read many times.
    if moves && !plain_move && c.reduction.is_some() && !is_contraction(c) && !in_body.iter().all(|&r| injective(r, &axes)) {
        return None;
    }
    let mut ok = true;
    let mut put = |s: Scalar| {
        s.rewrite(&mut |n| match n.kind() {
            Kind::Read { source: HOLE, index, guard } => match at(p.value, index) {
                Some(v) => guarded(v, *guard),
                None => {
                    ok = false;
                    n
                }
            },
            _ => n,
        })
    };
    let value = put(c.value);
    let reduction = c.reduction.as_ref().map(|r| Reduction { axes: r.axes.clone(), kind: r.kind, body: put(r.body) });
    let joined = Compute { dims: c.dims.clone(), reduction, value };
    (ok && Step::Compute(joined.clone()).sources().iter().all(|&s| s != HOLE)).then_some(joined)
}

/// `value` with its axes replaced by index scalars; `None` if an index expression is not linear in one that depends on data.
pub(crate) fn at(value: Scalar, index: &[Scalar]) -> Option<Scalar> {
    let exprs: Option<Vec<Expr>> = index.iter().map(|i| i.as_index()).collect();
    if let Some(exprs) = exprs {
        return Some(value.subst(&exprs));
    }
    let mut ok = true;
    let out = value.rewrite(&mut |n| match n.kind() {
        Kind::Index(e) => {
            if let Node::Var(v) = e.node() {
                return index[*v as usize];
            }
            let (terms, constant) = e.linear();
            let mut sum = Scalar::index(constant);
            for (t, c) in terms {
                let term = match t.node() {
                    Node::Var(v) => index[*v as usize],
                    Node::Sym(_) => Scalar::index(t),
                    _ => {
                        ok = false;
                        Scalar::index(0)
                    }
                };
                sum = sum + term * Scalar::index(c);
            }
            sum
        }
        _ => n,
    });
    ok.then_some(out)
}

/// `value` where the guard holds, else its fallback; the reads inside are guarded too, as their index may be out of bounds elsewhere.
fn guarded(value: Scalar, guard: Option<(Scalar, Scalar)>) -> Scalar {
    let Some((cond, fallback)) = guard else { return value };
    if let Kind::Read { source, index, guard: inner } = value.kind() {
        match inner {
            None => return Scalar::read_if(*source as usize, index.iter().copied(), cond, fallback),
            Some((c, f)) if *f == fallback => {
                return Scalar::read_if(*source as usize, index.iter().copied(), cond.and(*c), fallback);
            }
            Some(_) => {}
        }
    }
    let safe = value.rewrite(&mut |n| match n.kind() {
        Kind::Read { source, index, guard } => {
            let (c, f) = guard.map_or((cond, zero(n.dtype())), |(c, f)| (cond.and(c), f));
            Scalar::read_if(*source as usize, index.iter().copied(), c, f)
        }
        _ => n,
    });
    Scalar::select(cond, safe, fallback)
}

fn zero(dtype: DType) -> Scalar {
    Scalar::number(dtype, 0.0)
}

fn epilogue(p: &Compute, c: &Compute, single: bool) -> Option<Compute> {
    if !single || c.reduction.is_some() || c.dims.len() != p.dims.len() {
        return None;
    }
    let reads = holes(c.value);
    let [read] = reads.as_slice() else { return None };
    let Kind::Read { index, guard: None, .. } = read.kind() else { return None };
    // The index must be a permutation of the axes, over equal extents.
    let mut seen = HashSet::new();
    let map: Option<Vec<Expr>> = index
        .iter()
        .zip(&p.dims)
        .map(|(i, &d)| {
            let e = i.as_index()?;
            match e.node() {
                Node::Var(v) if c.dims.get(*v as usize) == Some(&d) && seen.insert(*v) => Some(e),
                _ => None,
            }
        })
        .collect();
    // An axis of extent 1 is indexed by the constant 0; it keeps its own number if that is free.
    let map = map.or_else(|| unit_axes(index, &p.dims, &c.dims))?;
    let r = p.reduction.as_ref()?;
    let inner = p.value.subst(&map);
    let value = c.value.rewrite(&mut |n| if n == *read { inner } else { n });
    Some(Compute {
        dims: c.dims.clone(),
        reduction: Some(Reduction { axes: r.axes.clone(), kind: r.kind, body: r.body.subst(&map) }),
        value,
    })
}

/// The map of axes when some have extent 1 on both sides, where the index is simplified to 0.
fn unit_axes(index: &[Scalar], from: &[Expr], to: &[Expr]) -> Option<Vec<Expr>> {
    let mut used: HashSet<usize> = HashSet::new();
    let mut map = vec![None; from.len()];
    for (k, (i, d)) in index.iter().zip(from).enumerate() {
        match i.as_index()?.node() {
            Node::Var(v) if to.get(*v as usize) == Some(d) && used.insert(*v as usize) => map[k] = Some(Expr::var(*v as usize)),
            Node::Const(0) if d.is(1) => {}
            _ => return None,
        }
    }
    for slot in map.iter_mut().filter(|m| m.is_none()) {
        let free = (0..to.len()).find(|v| to[*v].is(1) && !used.contains(v))?;
        used.insert(free);
        *slot = Some(Expr::var(free));
    }
    map.into_iter().collect()
}

/// Simplifies all steps with the ranges of their axes, so that reads, guards and axes are in their plainest form.
pub fn simplify(work: &mut Work) {
    fn go(items: &mut [Item]) {
        for item in items {
            match item {
                Item::Task(t) => match &t.step {
                    Step::Compute(c) => t.step = Step::Compute(c.simplify()),
                    Step::Scatter(s) => {
                        let (base, updates) = (Ranges::of_axes(&s.dims), Ranges::of_axes(&s.updates));
                        let mut s = s.clone();
                        s.base = simplify_scalar(s.base, &base);
                        s.value = simplify_scalar(s.value, &updates);
                        s.index = s.index.iter().map(|&i| simplify_scalar(i, &updates)).collect();
                        t.step = Step::Scatter(s);
                    }
                    Step::Prefix(_) | Step::Sort(_) | Step::Filter(_) | Step::Choice(_) => {}
                },
                Item::If { then, otherwise, .. } => {
                    go(then);
                    go(otherwise);
                }
                Item::Loop { body, .. } => go(body),
                Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
            }
        }
    }
    let mut items = std::mem::take(&mut work.items);
    go(&mut items);
    work.items = items;
}
