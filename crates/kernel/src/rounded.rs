//! Products of f32 in fewer bits: `--math bf16` and `--math f16` on CPUs with instructions for them.
//!
//! `sum x * w` with constant weights becomes `sum f32(x') * f32(w')`, where `x'` and `w'` are rounded: the weights here, the data
//! by a step of its own, which fusion puts into the end of the step that makes the data, so that it is stored rounded. Others that read what a convolution has
//! rounded later (residuals) read what is stored. Sums stay f32, and so does all that follows them up to there. Weights lie in 16 bits, half as many bytes.
//!
//! A convolution that no row takes (depthwise, grouped) reads what such convolutions have made, and what follows them element by element, rounded too: its weights and its arithmetic stay f32, but what lies
//! between two convolutions takes half the bytes. So does a sum of what two of them have made; the later one's is not stored, since the sum becomes its end.
//!
//! Where instructions take pairs (the rows `bf16_dot`, `amx_bf16`, `amx_f16`), the k axis gets whole ones. Where a few products are summed up in f16
//! (`f16_blocks`), each column of weights is multiplied by a power of two that makes its largest one as large as it may be, so that no such sum
//! leaves the range of f16; the sum is multiplied by the inverse. Both are exact. So are products of tensors that are f16 from the beginning.
//!
//! This is the one place that decides which sums are taken so on CPUs (on GPUs the rows do, and [`tiles`] stores what they read): those whose factors are read side by side along k as the row wants them. Others
//! stay as they are: both factors from data (attention in strips rounds its own), depthwise and grouped convolutions, data that lies across, an odd row of taps over one channel.
//! Knows no operator: it looks at computes only. Class: factors rounded to 8 or 11 bits, sums reassociated; in blocks of f16, each step of a block rounded to 11 bits.

pub mod tiles;

use crate::byte_groups::{filled, index_of, neighbours, source_of};
use crate::fuse::{Facts, is_contraction};
use crate::place::{channels_last, is_convolution};
use crate::rows::{SMALL, flushed};
use crate::target::{Math, TargetDesc};
use crate::work::{Id, Item, Memory, Task, Work};
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor, TensorType};
use std::collections::HashMap;

/// How factors are rounded.
#[derive(Clone, Copy)]
struct Form {
    dtype: DType,
    /// Neighbours along k that an instruction takes.
    group: i64,
    /// So many there must be: with fewer in f16, widening the sums takes as long as f32 products.
    fewest: i64,
    /// Subnormal numbers are zeros, as the instruction takes them.
    flush: bool,
    /// Weights are as large as sums in f16 allow.
    scaled: bool,
}

const BF16: Form = Form { dtype: DType::BF16, group: 2, fewest: 2, flush: true, scaled: false };
const F16_PAIRS: Form = Form { dtype: DType::F16, flush: false, ..BF16 };
const F16_BLOCKS: Form = Form { group: 1, fewest: 8, scaled: true, ..F16_PAIRS };

impl Form {
    fn of(target: &TargetDesc) -> Option<Form> {
        match target.math {
            _ if target.block_threads > 0 => None,
            Math::Bf16 => target.bf16_dot.then_some(BF16),
            Math::F16 if target.tile_f16 => Some(F16_PAIRS),
            Math::F16 => target.f16_fma.then_some(F16_BLOCKS),
            Math::F32 | Math::Tf32 | Math::Winograd => None,
        }
    }
    /// An f32, rounded.
    fn round(self, x: Scalar) -> Scalar {
        if self.flush { flushed(x) } else { x }.cast(self.dtype)
    }
}

/// Rounds factors in all blocks of the work list, if the machine's products of f32 are taken in fewer bits.
pub fn round(work: &mut Work, target: &TargetDesc) {
    let Some(form) = Form::of(target) else { return };
    let mut items = std::mem::take(&mut work.items);
    walk(work, form, &mut items, &mut HashMap::new());
    let facts = Facts::of(work, &items);
    parts(work, form, &facts, &mut items);
    work.items = items;
}

/// What only a rounding step reads, and others have put together from parts (a concatenation), is rounded part by part: each is stored once, in fewer bits.
fn parts(work: &mut Work, form: Form, facts: &Facts, items: &mut Vec<Item>) {
    for item in items.iter_mut() {
        match item {
            Item::If { then, otherwise, .. } => {
                parts(work, form, facts, then);
                parts(work, form, facts, otherwise);
            }
            Item::Loop { body, .. } => parts(work, form, facts, body),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
    let mut at = 0;
    while at < items.len() {
        match makers_of_parts(work, form, facts, &items[..=at]) {
            Some(makers) => {
                let Item::Task(rounding) = items.remove(at) else { unreachable!("it is a step") };
                let Step::Compute(c) = &rounding.step else { unreachable!("it is a rounding step") };
                let whole = c.value;
                for maker in makers {
                    let Item::Task(task) = &mut items[maker] else { unreachable!("it is a step") };
                    let Step::Compute(c) = &mut task.step else { unreachable!("checked before") };
                    let value = c.value;
                    c.value = whole.rewrite(&mut |n| if matches!(n.kind(), Kind::Read { .. }) { value } else { n });
                    let part = &mut work.tensors[task.out.index()];
                    part.ty.dtype = form.dtype;
                    if let Memory::Window { of, .. } = &mut part.memory {
                        *of = rounding.out;
                    }
                }
            }
            None => at += 1,
        }
    }
}

/// The places of the steps that make the parts of what the last one rounds, if nothing else sees it or them.
fn makers_of_parts(work: &Work, form: Form, facts: &Facts, items: &[Item]) -> Option<Vec<usize>> {
    let (Item::Task(last), before) = items.split_last()? else { return None };
    let (Step::Compute(c), [x]) = (&last.step, last.sources.as_slice()) else { return None };
    let read = Scalar::read_at(DType::F32, 0, &(0..c.dims.len()).map(Expr::var).collect::<Vec<_>>());
    let rounds = c.reduction.is_none() && (c.value == form.round(read) || c.value == read.cast(form.dtype));
    let inside = matches!(work.tensor(*x).memory, Memory::Temp) && matches!(work.tensor(last.out).memory, Memory::Temp);
    let alone = facts.readers(*x) == 1 && facts.makers(*x) == 0 && facts.makers(last.out) == 1;
    let seen = work.shared.contains(x) || work.output_tensors().any(|id| id == *x);
    let others = work.tensors.iter().any(|t| matches!(t.memory, Memory::Alias { of, .. } if of == *x));
    if !rounds || !inside || !alone || seen || others {
        return None;
    }
    let of = |t: &Id| matches!(work.tensor(*t).memory, Memory::Window { of, .. } if of == *x);
    let all: Vec<Id> = (0..work.tensors.len() as u32).map(Id).filter(of).collect();
    let maker = |part: &Id| {
        let plain = |item: &Item| matches!(item, Item::Task(t) if t.out == *part && matches!(t.step, Step::Compute(_)));
        let once = facts.makers(*part) == 1 && facts.readers(*part) == 0 && !facts.pinned(*part);
        before.iter().position(plain).filter(|_| once)
    };
    all.iter().map(maker).collect::<Option<Vec<_>>>().filter(|makers| !makers.is_empty())
}

/// What is rounded already, by the tensor that was rounded.
type Rounded = HashMap<Id, Id>;

/// Data that is rounded already and was not written since: all of it, and what convolutions have rounded, which others read so too. Elsewhere they read f32: sums of a transformer's layers are few beside
/// its weights, and lose 5 dB if they are rounded (bert_base_s128: 47 to 42 dB).
#[derive(Default)]
struct Data {
    all: Rounded,
    pictures: Rounded,
    /// What convolutions in fewer bits have made, and what was made of nothing else, element by element; with a number that grows.
    made: HashMap<Id, usize>,
}

/// Weights that are rounded already, by the tensor and, where columns are scaled, its axis of columns; with the factors of columns.
type Weights = HashMap<(Id, Option<usize>), (Id, Option<Id>)>;

fn walk(work: &mut Work, form: Form, items: &mut Vec<Item>, weights: &mut Weights) {
    let mut out = Vec::with_capacity(items.len());
    let mut data = Data::default();
    for mut item in std::mem::take(items) {
        match &mut item {
            Item::Task(task) => {
                let convolution = is_convolution(work, task);
                let made = match rounded(work, form, task, convolution, weights, &mut data, &mut out) {
                    Some(better) => {
                        *task = better;
                        convolution
                    }
                    None => {
                        let follows = follows(work, task, &data.made);
                        if convolution || follows {
                            round_between(work, form, task, convolution, &mut data, &mut out);
                        }
                        follows
                    }
                };
                read_rounded(work, form, task, &data.pictures);
                let written = work.root(task.out);
                data.all.retain(|&x, _| work.root(x) != written);
                data.pictures.retain(|&x, _| work.root(x) != written);
                data.made.retain(|&x, _| work.root(x) != written);
                if made {
                    data.made.insert(task.out, out.len());
                }
            }
            Item::If { then, otherwise, .. } => {
                walk(work, form, then, weights);
                walk(work, form, otherwise, weights);
                data = Data::default();
            }
            Item::Loop { body, .. } => {
                walk(work, form, body, weights);
                data = Data::default();
            }
            Item::Host { .. } => data = Data::default(),
            Item::Bind { .. } | Item::Require { .. } => {}
        }
        out.push(item);
    }
    *items = out;
}

/// A product that is taken in fewer bits.
struct Product {
    /// The factors, data and weights, with what widens them; and what they read.
    factors: [Scalar; 2],
    reads: [Scalar; 2],
    /// The axis of columns in the result, and in the weights where these have no other that goes with it.
    n: usize,
    column: Option<usize>,
}

/// `sum x * w` of data and constant weights, if the row can take it.
fn product(work: &Work, form: Form, task: &Task) -> Option<Product> {
    let Step::Compute(c) = &task.step else { return None };
    let r = c.reduction.as_ref().filter(|r| is_contraction(c) && r.body.dtype() == DType::F32)?;
    let Kind::Binary(Binary::Mul, a, b) = r.body.kind() else { return None };
    // f16 from the beginning is as good as rounded where it must be scaled; elsewhere the row takes it as it is.
    let read = |s: Scalar| match s.kind() {
        Kind::Read { .. } if s.dtype() == DType::F32 => Some(s),
        Kind::Cast(x) if form.scaled && x.dtype() == DType::F16 && matches!(x.kind(), Kind::Read { .. }) => Some(*x),
        _ => None,
    };
    let (a_read, b_read) = (read(*a)?, read(*b)?);
    if source_of(a_read) == source_of(b_read) {
        return None;
    }
    let constant = |s: Scalar| matches!(work.tensor(task.sources[source_of(s)]).memory, Memory::Constant(_));
    let (factors, [x, w]) = match (constant(a_read), constant(b_read)) {
        (false, true) => ([*a, *b], [a_read, b_read]),
        (true, false) => ([*b, *a], [b_read, a_read]),
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
    let groups = r.axes[k].known().is_some_and(|e| e >= form.fewest && (e % form.group == 0 || beyond));
    let good = known && groups && c.dims[n].known().is_some() && !uses(&at, n);
    let column = along.iter().position(|&e| e == Expr::var(n));
    (good && (column.is_some() || !form.scaled)).then_some(Product { factors, reads: [x, w], n, column })
}

/// The task with factors rounded; the steps that round its data go before it.
fn rounded(
    work: &mut Work,
    form: Form,
    task: &Task,
    convolution: bool,
    weights: &mut Weights,
    data: &mut Data,
    before: &mut Vec<Item>,
) -> Option<Task> {
    let p = product(work, form, task)?;
    let [x, w] = p.reads;
    let (x_id, w_id) = (task.sources[source_of(x)], task.sources[source_of(w)]);
    let (new_w, scales) = narrow_weights(work, form, w_id, p.column, weights)?;
    let new_x = match x.dtype() == form.dtype {
        true => x_id,
        false => {
            let id = match data.all.get(&x_id) {
                Some(&id) => id,
                None => {
                    let below = below_maximum(work, form, x_id, &data.all, before);
                    if let Some((below, id)) = below {
                        data.all.insert(below, id);
                        if convolution {
                            data.pictures.insert(below, id);
                        }
                    }
                    let narrow = |x: Scalar| if below.is_some() { x.cast(form.dtype) } else { form.round(x) };
                    let (id, task) = rounding_task(work, form, x_id, &task.node, &narrow);
                    before.push(Item::Task(task));
                    data.all.insert(x_id, id);
                    id
                }
            };
            if convolution {
                data.pictures.insert(x_id, id);
            }
            id
        }
    };
    if convolution && new_x != x_id {
        let rank = work.tensor(new_x).ty.rank();
        work.tensors[new_x.index()].order = channels_last(rank);
    }
    let mut out = task.clone();
    out.sources.extend([new_x, new_w]);
    let place = out.sources.len();
    let short = |read: Scalar, source: usize| match read.kind() {
        Kind::Read { index, guard: None, .. } => Scalar::read(form.dtype, source, index.iter().copied()),
        Kind::Read { index, guard: Some((cond, fill)), .. } => {
            let fill = if fill.dtype() == form.dtype { *fill } else { form.round(*fill) };
            Scalar::read_if(source, index.iter().copied(), *cond, fill)
        }
        _ => unreachable!("a read"),
    };
    let (x_read, w_read) = (short(x, place - 2), short(w, place - 1));
    let Step::Compute(c) = &task.step else { return None };
    let mut reduction = c.reduction.clone()?;
    let [old_x, old_w] = p.factors;
    reduction.body = reduction.body.rewrite(&mut |n| {
        if n == old_x {
            x_read.cast(DType::F32)
        } else if n == old_w {
            w_read.cast(DType::F32)
        } else {
            n
        }
    });
    let value = match scales {
        None => c.value,
        Some(id) => {
            out.sources.push(id);
            let scale = Scalar::read_at(DType::F32, place, &[Expr::var(p.n)]);
            c.value.rewrite(&mut |n| if matches!(n.kind(), Kind::Local(0)) { n * scale } else { n })
        }
    };
    out.step = Step::Compute(Compute { dims: c.dims.clone(), reduction: Some(reduction), value });
    // Filling drops what is no longer read, and so must what needs none.
    let whole = filled(work, &out, (x_read, w_read), form.group, Scalar::float(form.dtype, 0.0));
    Some(whole.unwrap_or_else(|| {
        out.prune();
        out
    }))
}

/// Is it made element by element of what convolutions in fewer bits have made, and of constants?
fn follows(work: &Work, task: &Task, made: &HashMap<Id, usize>) -> bool {
    let Step::Compute(c) = &task.step else { return false };
    let constant = |id: &Id| matches!(work.tensor(*id).memory, Memory::Constant(_));
    c.reduction.is_none()
        && task.sources.iter().any(|id| made.contains_key(id))
        && task.sources.iter().all(|id| made.contains_key(id) || constant(id))
}

/// Rounds what convolutions in fewer bits have made for a convolution that no row takes, and all but the latest of that for another step; steps before the task do that.
fn round_between(work: &mut Work, form: Form, task: &Task, convolution: bool, data: &mut Data, before: &mut Vec<Item>) {
    let inside = |x: &Id| matches!(work.tensor(*x).memory, Memory::Temp);
    let made: Vec<(usize, Id)> =
        task.sources.iter().copied().filter(inside).filter_map(|x| Some((*data.made.get(&x)?, x))).collect();
    let latest = made.iter().max().copied();
    for (number, x) in made {
        if !convolution && Some((number, x)) == latest || data.pictures.contains_key(&x) {
            continue;
        }
        let id = *data.all.entry(x).or_insert_with(|| {
            let (id, rounding) = rounding_task(work, form, x, &task.node, &|x| form.round(x));
            before.push(Item::Task(rounding));
            id
        });
        work.tensors[id.index()].order = channels_last(work.tensor(id).ty.rank());
        data.pictures.insert(x, id);
    }
}

/// Where a tensor that is to be rounded is the largest of some elements of another one (a pooling), that one is rounded: rounding keeps the order, so the largest is the same, and is read and stored in
/// half the bytes.
fn below_maximum(work: &mut Work, form: Form, x: Id, data: &Rounded, before: &mut Vec<Item>) -> Option<(Id, Id)> {
    let at = before.iter().rposition(|item| matches!(item, Item::Task(t) if t.out == x))?;
    let Item::Task(task) = &before[at] else { return None };
    let Step::Compute(c) = &task.step else { return None };
    let r = c.reduction.as_ref().filter(|r| r.kind == Reducer::Max && matches!(c.value.kind(), Kind::Local(0)))?;
    let Kind::Read { source, guard, .. } = r.body.kind() else { return None };
    let y = task.sources[*source as usize];
    let fill = guard.is_none_or(|(_, fill)| matches!(fill.kind(), Kind::Const(_)));
    if r.body.dtype() != DType::F32 || !fill || !matches!(work.tensor(y).memory, Memory::Temp) || data.contains_key(&y) {
        return None;
    }
    let (mut pooling, node) = (task.clone(), task.node.clone());
    let (id, rounding) = rounding_task(work, form, y, &node, &|x| form.round(x));
    read_rounded(work, form, &mut pooling, &Rounded::from([(y, id)]));
    before[at] = Item::Task(pooling);
    before.insert(at, Item::Task(rounding));
    Some((y, id))
}

/// Has the task read values that a product before it has rounded as that one reads them (residuals, scales), so that they are stored once and take half the bytes. Only values inside the model:
/// inputs and outputs are there in f32 in any case.
fn read_rounded(work: &Work, form: Form, task: &mut Task, data: &Rounded) {
    let Step::Compute(c) = &task.step else { return };
    let found: Vec<(usize, Id)> = (task.sources.iter().enumerate())
        .filter(|(_, id)| matches!(work.tensor(**id).memory, Memory::Temp))
        .filter_map(|(k, id)| Some((k, *data.get(id)?)))
        .collect();
    let mut sources = task.sources.clone();
    let mut c = c.clone();
    for (k, narrow) in found {
        let place = sources.len();
        let good = |fill: Scalar| matches!(fill.kind(), Kind::Const(_));
        let mut all = true;
        for s in Step::Compute(c.clone()).scalars() {
            s.visit(&mut |n| {
                if let Kind::Read { source, guard, .. } = n.kind()
                    && *source as usize == k
                {
                    all &= guard.is_none_or(|(_, fill)| good(fill)) && n.dtype() == DType::F32;
                }
            });
        }
        if !all {
            continue;
        }
        sources.push(narrow);
        let mut change = |n: Scalar| match n.kind() {
            Kind::Read { source, index, guard } if *source as usize == k => match guard {
                None => Scalar::read(form.dtype, place, index.iter().copied()).cast(DType::F32),
                Some((cond, fill)) => Scalar::read_if(place, index.iter().copied(), *cond, form.round(*fill)).cast(DType::F32),
            },
            _ => n,
        };
        if let Some(r) = &mut c.reduction {
            r.body = r.body.rewrite(&mut change);
        }
        c.value = c.value.rewrite(&mut change);
    }
    if sources.len() > task.sources.len() {
        (task.sources, task.step) = (sources, Step::Compute(c));
        task.prune();
    }
}

/// A new tensor that is `x` rounded, by `round`, and the task that makes it. (What is rounded already is only stored in fewer bits.)
fn rounding_task(work: &mut Work, form: Form, x: Id, node: &str, round: &dyn Fn(Scalar) -> Scalar) -> (Id, Task) {
    let dims = work.tensor(x).ty.dims.clone();
    let step = Step::Compute(Compute::map(&dims, |axes| round(Scalar::read_at(DType::F32, 0, axes))));
    let id = work.add(TensorType::new(form.dtype, dims), Memory::Temp, "");
    (id, Task { step, sources: vec![x], out: id, name: form.dtype.name().into(), node: node.to_owned() })
}

/// The constant rounded, and what sums of its columns are multiplied by, if they are scaled; `None` if they cannot be.
fn narrow_weights(work: &mut Work, form: Form, w: Id, column: Option<usize>, weights: &mut Weights) -> Option<(Id, Option<Id>)> {
    let column = column.filter(|_| form.scaled);
    if let Some(&found) = weights.get(&(w, column)) {
        return Some(found);
    }
    let Memory::Constant(t) = &work.tensor(w).memory else { return None };
    let (narrow, scales) = match column {
        Some(column) => {
            let exponents = exponents(t, column)?;
            let inverse = exponents.iter().map(|&e| (-f64::from(e)).exp2() as f32).collect();
            let scale = |i: usize| f64::from(exponents[along(t, column, i)]).exp2();
            (narrow(t, form, &scale), Some(Tensor::from_vec([exponents.len()], inverse)))
        }
        None => (narrow(t, form, &|_| 1.0), None),
    };
    let mut add = |t: Tensor, name: &str| {
        let ty = TensorType::new(t.dtype, t.dims.iter().map(|&d| Expr::from(d)));
        work.add(ty, Memory::Constant(t), name)
    };
    let found = (add(narrow, &format!("weights in {}", form.dtype)), scales.map(|s| add(s, "factors of columns")));
    weights.insert((w, column), found);
    Some(found)
}

/// Where element `i` of a tensor is along an axis.
fn along(t: &Tensor, axis: usize, i: usize) -> usize {
    let inner: usize = t.dims[axis + 1..].iter().product();
    i / inner.max(1) % t.dims[axis]
}

/// For each column the largest power of two that leaves it [`SMALL`]. `None` where that is beyond reason: numbers near the ends of f32, infinities, NaN.
fn exponents(t: &Tensor, column: usize) -> Option<Vec<i32>> {
    let mut largest = vec![0f64; t.dims[column]];
    for i in 0..t.len() {
        let v = t.float(i).abs();
        if !v.is_finite() {
            return None;
        }
        let most = &mut largest[along(t, column, i)];
        *most = most.max(v);
    }
    // Rounding to f16 may bring a number up to the next power of two, never beyond.
    let exponent = |v: f64| match v {
        0.0 => Some(0),
        _ => Some((SMALL / v).log2().floor() as i32).filter(|e| e.abs() < 100),
    };
    let all: Option<Vec<i32>> = largest.iter().map(|&v| exponent(v)).collect();
    let fits = |(&v, &e): (&f64, &i32)| v * f64::from(e).exp2() <= SMALL;
    all.filter(|all| largest.iter().zip(all).all(fits))
}

/// Multiplied and rounded to nearest even; NaN stays NaN.
fn narrow(t: &Tensor, form: Form, scale: &dyn Fn(usize) -> f64) -> Tensor {
    let values = (0..t.len()).map(|i| t.float(i) * scale(i));
    match form.dtype {
        // Times a power of two it is still an f32, or so small that it becomes a zero.
        DType::F16 => Tensor::from_vec(t.dims.clone(), values.map(|v| half::f16::from_f32(v as f32)).collect::<Vec<_>>()),
        _ => {
            let flushed = |v: f32| if v.abs() < f32::MIN_POSITIVE { v * 0.0 } else { v };
            Tensor::from_vec(t.dims.clone(), values.map(|v| half::bf16::from_f32(flushed(v as f32))).collect::<Vec<_>>())
        }
    }
}
