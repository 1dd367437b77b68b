//! Placement: in which physical order the axes of a tensor lie, and which tensors keep a border for their readers.
//!
//! - Results of convolutions lie channels-last, so that a pixel's channels are contiguous: vectors run over output channels, and the
//!   k axis of the next contraction is contiguous. Elementwise readers follow the order of what they read.
//! - Products of matrices for each channel, of factors that are both data, read rows and give them: what lies channels-last is copied for them.
//! - Rows that a contraction reads and that lie a multiple of the size of a way of the L1 cache apart would all compete for the same
//!   few lines of it. They are kept one line further apart.
//! - A convolution that pads its input would test every read. Instead the input keeps a border of the padding's value around
//!   it, written once in a run, and reads need no test.
//!
//! Model inputs and outputs, what host steps see, and whatever is seen under other dims (aliases), stay row-major.

use crate::build::contract::{Factor, factors};
use crate::fuse::{is_contraction, simplify};
use crate::plan::guess;
use crate::target::{LINE, TargetDesc};
use crate::work::{Id, Item, Memory, Task, Work, copy_of};
use infc_ir::Expr;
use infc_ir::compute::{Compute, Step};
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind, Scalar};
use std::collections::{HashMap, HashSet};

/// Decides order, border and gap of every tensor.
pub fn place(work: &mut Work, target: &TargetDesc) {
    borders(work);
    simplify(work);
    let fixed = fixed(work);
    let mut decided: HashSet<Id> = HashSet::new();
    let mut items = std::mem::take(&mut work.items);
    orders(work, &items, &fixed, &mut decided);
    let (mut once, mut twice) = (HashSet::new(), HashSet::new());
    made_twice(&items, &mut once, &mut twice);
    products_by_channel(work, &mut items, &twice, &mut HashMap::new());
    work.items = items;
    // Windows lie in the order of what they are part of.
    for k in 0..work.tensors.len() {
        if let Memory::Window { of, .. } = work.tensors[k].memory {
            let order = work.tensor(work.whole(of)).order.clone();
            work.tensors[k].order = order;
        }
    }
    gaps(work, &fixed, target);
}

/// Keeps rows of contractions apart that would fall into the same lines of L1.
fn gaps(work: &mut Work, fixed: &HashSet<Id>, target: &TargetDesc) {
    let mut read = HashSet::new();
    rows_read(work, &work.items, &mut read);
    for (id, step) in read {
        let data = &mut work.tensors[id.index()];
        let own = matches!(data.memory, Memory::Temp) && !fixed.contains(&id);
        let (Some(&inner), true) = (data.order.last(), own) else { continue };
        let border = data.halo.get(inner).map_or(0, |h| h.0 + h.1);
        let bytes = data.ty.dtype.bytes() as i64;
        let row = data.ty.dims[inner].known().map_or(0, |d| (d + border) * bytes);
        let rows = data.ty.dims.iter().enumerate().any(|(a, d)| a != inner && !d.is(1));
        if rows && target.rows_collide(row * step) {
            data.gap = LINE / bytes;
        }
    }
}

/// What contractions read, with the step from one row that they read to the next.
fn rows_read(work: &Work, items: &[Item], out: &mut HashSet<(Id, i64)>) {
    for item in items {
        match item {
            Item::Task(task) => {
                let Step::Compute(c) = &task.step else { continue };
                let Some(r) = c.reduction.as_ref().filter(|_| is_contraction(c)) else { continue };
                r.body.visit(&mut |n| {
                    let Kind::Read { source, index, .. } = n.kind() else { return };
                    let id = work.whole(task.sources[*source as usize]);
                    let index = index.iter().filter_map(|i| i.as_index());
                    let steps = index.flat_map(|e| (0..c.dims.len() as u32).filter_map(move |v| Some(e.affine_in(v)?.0)));
                    out.extend(steps.filter(|&k| k > 0).map(|k| (id, k)));
                });
            }
            Item::If { then, otherwise, .. } => {
                rows_read(work, then, out);
                rows_read(work, otherwise, out);
            }
            Item::Loop { body, .. } => rows_read(work, body, out),
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

/// Tensors that stay row-major: inputs, outputs, constants, and both sides of every alias.
fn fixed(work: &Work) -> HashSet<Id> {
    let mut fixed: HashSet<Id> = work.output_tensors().collect();
    fixed.extend(work.shared.iter().map(|&id| work.whole(id)));
    for (k, t) in work.tensors.iter().enumerate() {
        match t.memory {
            Memory::Input(_) | Memory::Constant(_) => {
                fixed.insert(Id(k as u32));
            }
            Memory::Alias { of, .. } => {
                fixed.insert(Id(k as u32));
                fixed.insert(work.whole(of));
            }
            Memory::Temp | Memory::Window { .. } => {}
        }
    }
    fixed
}

pub(crate) fn channels_last(rank: usize) -> Vec<usize> {
    std::iter::once(0).chain(2..rank).chain([1]).collect()
}

/// A contraction with a constant factor of the result's rank, whose first dim is indexed by the result's axis 1.
pub(crate) fn is_convolution(work: &Work, task: &Task) -> bool {
    let Step::Compute(c) = &task.step else { return false };
    let Some(r) = c.reduction.as_ref().filter(|_| is_contraction(c) && c.dims.len() >= 3) else { return false };
    let mut found = false;
    r.body.visit(&mut |n| {
        if let Kind::Read { source, index, .. } = n.kind() {
            let weights = matches!(work.tensor(task.sources[*source as usize]).memory, Memory::Constant(_));
            let by_channel = index.first().and_then(|i| i.as_index()) == Some(Expr::var(1));
            found |= weights && by_channel && index.len() == c.dims.len();
        }
    });
    found
}

fn orders(work: &mut Work, items: &[Item], fixed: &HashSet<Id>, decided: &mut HashSet<Id>) {
    for item in items {
        match item {
            Item::Task(task) => {
                let root = work.whole(task.out);
                if fixed.contains(&root) || !decided.insert(root) {
                    continue;
                }
                let rank = work.tensor(root).ty.rank();
                let order = match &task.step {
                    _ if is_convolution(work, task) => Some(channels_last(rank)),
                    _ if by_channel(work, task).is_some() => None,
                    Step::Compute(c) => followed(work, task, c, rank),
                    Step::Scatter(_) | Step::Prefix(_) | Step::Sort(_) | Step::Filter(_) | Step::Choice(_) => None,
                };
                if let Some(order) = order {
                    work.tensors[root.index()].order = order;
                }
            }
            Item::If { then, otherwise, .. } => {
                orders(work, then, fixed, decided);
                orders(work, otherwise, fixed, decided);
            }
            Item::Loop { body, .. } => orders(work, body, fixed, decided),
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

/// Elements along the axes that only one factor has, from which on a product reads each element of the other so often that a copy is little.
const OFTEN: i64 = 16;

/// The sources of a product of matrices for each channel, of factors that are both data. With channels last each element would be read from a line of the cache of its own.
fn by_channel(work: &Work, task: &Task) -> Option<[usize; 2]> {
    let Step::Compute(c) = &task.step else { return None };
    let factors = factors(c).filter(|_| is_contraction(c) && c.dims.len() >= 3 && !c.dims[1].is(1))?;
    let own = |k: usize| {
        let uses = |f: &Factor, a: usize| f.index.iter().any(|e| e.uses_var(a as u32));
        (0..c.dims.len())
            .filter(|&a| uses(&factors[k], a) && !uses(&factors[1 - k], a))
            .map(|a| guess(c.dims[a]))
            .product::<i64>()
    };
    let data = |f: &Factor| {
        let constant = matches!(work.tensor(task.sources[f.source]).memory, Memory::Constant(_));
        !constant && f.index.get(1) == Some(&Expr::var(1)) && f.index.len() == c.dims.len()
    };
    (factors.iter().all(data) && own(0) >= OFTEN && own(1) >= OFTEN).then(|| [factors[0].source, factors[1].source])
}

/// Gives such products copies of what lies with channels last, but for `twice`: what more than one step makes could change behind its copy.
fn products_by_channel(work: &mut Work, items: &mut Vec<Item>, twice: &HashSet<Id>, copies: &mut HashMap<Id, Id>) {
    let mut out = vec![];
    for mut item in std::mem::take(items) {
        match &mut item {
            Item::Task(task) => {
                for source in by_channel(work, task).into_iter().flatten() {
                    let id = task.sources[source];
                    let ty = work.tensor(id).ty.clone();
                    let data = work.tensor(id);
                    let own = matches!(data.memory, Memory::Temp) && !twice.contains(&id);
                    if !own || data.order != channels_last(ty.rank()) {
                        continue;
                    }
                    let copy = copies.get(&id).copied().unwrap_or_else(|| {
                        let copy = work.add(ty.clone(), Memory::Temp, "");
                        let (step, node) = (copy_of(&ty), task.node.clone());
                        out.push(Item::Task(Task { step, sources: vec![id], out: copy, name: "rows".into(), node }));
                        copies.insert(id, copy);
                        copy
                    });
                    task.sources[source] = copy;
                }
            }
            Item::If { then, otherwise, .. } => {
                products_by_channel(work, then, twice, &mut copies.clone());
                products_by_channel(work, otherwise, twice, &mut copies.clone());
            }
            Item::Loop { body, .. } => products_by_channel(work, body, twice, &mut HashMap::new()),
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
        out.push(item);
    }
    *items = out;
}

/// Channels-last, if a source that is read with the result's own channels lies so; or if it does when its axes are named as the result's
/// are, as behind a transpose of what a matrix product wrote row by row.
fn followed(work: &Work, task: &Task, c: &Compute, rank: usize) -> Option<Vec<usize>> {
    let mut best: Option<Vec<usize>> = None;
    for s in Step::Compute(c.clone()).scalars() {
        s.visit(&mut |n| {
            if let Kind::Read { source, index, .. } = n.kind() {
                let t = work.tensor(task.sources[*source as usize]);
                let order = match t.memory {
                    Memory::Window { of, .. } => &work.tensor(work.whole(of)).order,
                    _ => &t.order,
                };
                // The same channel, or so many further on, as in a concatenation.
                let distance = index.get(1).and_then(|i| i.as_index()).map(|e| e - Expr::var(1));
                let same_channel = index.len() == rank && rank >= 3 && distance.is_some_and(|d| d.known().is_some());
                let constant = matches!(t.memory, Memory::Constant(_));
                if same_channel && *order == channels_last(rank) || !constant && renamed_channels_last(index, order, &c.dims) {
                    best = Some(channels_last(rank));
                }
            }
        });
    }
    best
}

/// Is a source that is read with a permutation of the result's axes channels-last in the result's names, with more than a few channels?
fn renamed_channels_last(index: &[Scalar], order: &[usize], dims: &[Expr]) -> bool {
    let rank = dims.len();
    let few = dims.get(1).is_none_or(|d| d.known().is_some_and(|d| d <= FEW_CHANNELS));
    if rank < 4 || index.len() != rank || few {
        return false;
    }
    // The result's axis that each axis of the source follows, in steps or as a picture that is resized; axes of one element follow none.
    let follows: Option<Vec<Option<usize>>> = index.iter().map(|&i| followed_axis(i, rank)).collect();
    let Some(follows) = follows else { return false };
    let lies: Vec<usize> = order.iter().filter_map(|&j| follows[j]).collect();
    let wanted: Vec<usize> = channels_last(rank).into_iter().filter(|&a| !dims[a].is(1)).collect();
    lies == wanted && !lies.is_sorted()
}

/// The only axis of a result of so many that an index depends on, if it depends on one; `None` if it depends on several, or on what is summed up.
fn followed_axis(index: Scalar, rank: usize) -> Option<Option<usize>> {
    let mut axes = HashSet::new();
    index.visit(&mut |n| {
        if let Some(e) = n.as_index() {
            e.leaves(&mut |leaf| {
                if let Node::Var(v) = leaf.node() {
                    axes.insert(*v as usize);
                }
            });
        }
    });
    let mut axes = axes.into_iter();
    match (axes.next(), axes.next()) {
        (None, _) => Some(None),
        (Some(a), None) if a < rank => Some(Some(a)),
        _ => None,
    }
}

/// A guarded read of a contraction that a border can replace: which tensor, the border, its value.
struct Wish {
    tensor: Id,
    halo: Vec<(i64, i64)>,
    fill: Scalar,
    /// Channels shall lie side by side: there are many, or they are bytes that an instruction takes in groups.
    channels_last: bool,
}

fn borders(work: &mut Work) {
    let mut items = std::mem::take(&mut work.items);
    let mut copies: HashMap<(Id, Scalar), Id> = HashMap::new();
    let mut seen = fixed(work);
    let mut once = HashSet::new();
    made_twice(&items, &mut once, &mut seen);
    walk_borders(work, &mut items, &seen, &mut copies);
    work.items = items;
}

/// Adds tensors that more than one step makes: a border would have to be written, and a copy made, at each.
fn made_twice(items: &[Item], once: &mut HashSet<Id>, twice: &mut HashSet<Id>) {
    for item in items {
        match item {
            Item::Task(t) => {
                if !once.insert(t.out) {
                    twice.insert(t.out);
                }
            }
            Item::If { then, otherwise, .. } => {
                made_twice(then, once, twice);
                made_twice(otherwise, once, twice);
            }
            Item::Loop { body, .. } => made_twice(body, once, twice),
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

fn walk_borders(work: &mut Work, items: &mut Vec<Item>, seen: &HashSet<Id>, copies: &mut HashMap<(Id, Scalar), Id>) {
    let mut out = vec![];
    for mut item in std::mem::take(items) {
        match &mut item {
            Item::Task(task) => {
                if let Some(wish) = wish(work, task) {
                    let id = bordered(work, &wish, seen, copies, &task.node, &mut out);
                    grant(task, &wish, id);
                }
            }
            Item::If { then, otherwise, .. } => {
                // Copies made in one branch are unknown to the other and to what follows.
                let mut inner = copies.clone();
                walk_borders(work, then, seen, &mut inner);
                let mut inner = copies.clone();
                walk_borders(work, otherwise, seen, &mut inner);
            }
            Item::Loop { body, .. } => {
                let mut inner = HashMap::new();
                walk_borders(work, body, seen, &mut inner);
            }
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
        out.push(item);
    }
    *items = out;
}

/// So few channels are read as they lie: one after another, as in pictures, they would make vectors that are mostly empty.
const FEW_CHANNELS: i64 = 4;

/// The guarded read of a contraction, if its guard only keeps the index inside the tensor.
fn wish(work: &Work, task: &Task) -> Option<Wish> {
    let Step::Compute(c) = &task.step else { return None };
    let r = c.reduction.as_ref().filter(|_| is_contraction(c))?;
    let mut reads = vec![];
    r.body.visit(&mut |n| {
        if matches!(n.kind(), Kind::Read { guard: Some(_), .. }) {
            reads.push(n);
        }
    });
    let [read] = reads.as_slice() else { return None };
    let Kind::Read { source, index, guard: Some((cond, fill)) } = read.kind() else { return None };
    let tensor = task.sources[*source as usize];
    let dims = &work.tensor(tensor).ty.dims;
    let index: Vec<Expr> = index.iter().map(|i| i.as_index()).collect::<Option<_>>()?;
    if !matches!(fill.kind(), Kind::Const(_)) || !keeps_inside(*cond, &index, dims) {
        return None;
    }
    let env = c.ranges();
    let extents: Vec<Expr> = c.dims.iter().chain(&r.axes).copied().collect();
    let mut halo = vec![];
    for (&e, &d) in index.iter().zip(dims) {
        let low = e.range(&env).lo;
        // The largest index is at the last value of every axis (their coefficients are positive), less the last element.
        let last: Vec<Expr> = extents.iter().map(|&x| x - 1).collect();
        let high = without_division(e.subst(&last) - (d - 1)).range(&Ranges::default()).hi;
        let rising = (0..extents.len() as u32).all(|v| rises(e, v));
        if !rising || low < -64 || high > 64 {
            return None;
        }
        halo.push(((-low).max(0), high.max(0)));
    }
    let (ty, convolution) = (&work.tensor(tensor).ty, is_convolution(work, task));
    let few = ty.rank() >= 2 && ty.dims[1].known().is_some_and(|d| d <= FEW_CHANNELS);
    // Behind a transpose the channels may be its last dim already.
    let channels = index.iter().position(|e| e.uses_var(1) || e.uses_var(c.dims.len() as u32));
    let channels_last = convolution && channels == Some(1) && (ty.dtype.bytes() == 1 || !few);
    Some(Wish { tensor, halo, fill: *fill, channels_last })
}

/// Does it never fall where a variable rises? So it is with one that counts, and with the group of a channel.
fn rises(e: Expr, v: u32) -> bool {
    if let Some((step, _)) = e.affine_in(v) {
        return step >= 0;
    }
    let (terms, _) = e.linear();
    terms.into_iter().all(|(term, times)| match term.node() {
        _ if !term.uses_var(v) => true,
        Node::Var(_) => times >= 0,
        Node::Div(x, d) => times >= 0 && d.known().is_some_and(|d| d > 0) && rises(*x, v),
        _ => false,
    })
}

/// An upper bound without `d * (x div d)`, which is at most `x`.
fn without_division(e: Expr) -> Expr {
    let (terms, constant) = e.linear();
    terms.into_iter().fold(Expr::int(constant), |sum, (t, c)| {
        let bound = match t.node() {
            Node::Div(x, d) => d.known().filter(|&d| d > 0 && c > 0 && c % d == 0).map(|d| *x * (c / d)),
            _ => None,
        };
        sum + bound.unwrap_or(t * c)
    })
}

fn keeps_inside(cond: Scalar, index: &[Expr], dims: &[Expr]) -> bool {
    match cond.kind() {
        Kind::Binary(Binary::And, a, b) => keeps_inside(*a, index, dims) && keeps_inside(*b, index, dims),
        Kind::Binary(op, a, b) => {
            let (Some(x), Some(y)) = (a.as_index(), b.as_index()) else { return false };
            index.iter().zip(dims).any(|(&e, &d)| match op {
                Binary::Le => x.is(0) && y == e || x == e && y == d - 1,
                Binary::Lt => x == e && y == d || x.is(-1) && y == e,
                Binary::Ge => y.is(0) && x == e,
                Binary::Gt => y == e && x == d,
                _ => false,
            })
        }
        Kind::Const(1) => true,
        _ => false,
    }
}

/// The tensor with a border that serves the wish: the tensor itself if it can have one, else a copy.
fn bordered(
    work: &mut Work,
    wish: &Wish,
    seen: &HashSet<Id>,
    copies: &mut HashMap<(Id, Scalar), Id>,
    node: &str,
    out: &mut Vec<Item>,
) -> Id {
    let data = work.tensor(wish.tensor);
    let own = matches!(data.memory, Memory::Temp) && !seen.contains(&wish.tensor) && data.fill.is_none_or(|f| f == wish.fill);
    let id = if own {
        if wish.channels_last && wish.halo.get(1).is_some_and(|h| h.1 > 0) {
            work.tensors[wish.tensor.index()].order = channels_last(wish.halo.len());
        }
        wish.tensor
    } else if let Some(&copy) = copies.get(&(wish.tensor, wish.fill)) {
        copy
    } else {
        let ty = work.tensor(wish.tensor).ty.clone();
        let step = copy_of(&ty);
        let id = work.add(ty, Memory::Temp, "");
        out.push(Item::Task(Task { step, sources: vec![wish.tensor], out: id, name: "pad".into(), node: node.to_owned() }));
        copies.insert((wish.tensor, wish.fill), id);
        if wish.channels_last {
            work.tensors[id.index()].order = channels_last(wish.halo.len());
        }
        id
    };
    let data = &mut work.tensors[id.index()];
    if data.halo.is_empty() {
        data.halo = vec![(0, 0); wish.halo.len()];
    }
    for (have, want) in data.halo.iter_mut().zip(&wish.halo) {
        *have = (have.0.max(want.0), have.1.max(want.1));
    }
    data.fill = Some(wish.fill);
    id
}

/// The task reads the bordered tensor without a guard.
fn grant(task: &mut Task, wish: &Wish, id: Id) {
    let number = match task.sources.iter().position(|&s| s == id) {
        Some(k) => k,
        None => {
            task.sources.push(id);
            task.sources.len() - 1
        }
    };
    let old = task.sources.iter().position(|&s| s == wish.tensor).expect("the wish came from this task") as u32;
    let Step::Compute(c) = &mut task.step else { return };
    if let Some(r) = c.reduction.as_mut() {
        r.body = r.body.rewrite(&mut |n| match n.kind() {
            Kind::Read { source, index, guard: Some((_, f)) } if *source == old && *f == wish.fill => {
                Scalar::read(n.dtype(), number, index.iter().copied())
            }
            _ => n,
        });
    }
}
