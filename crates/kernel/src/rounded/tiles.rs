//! Factors of matrix instructions on GPUs, stored as these take them: `--math bf16`, `--math f16` and `--math tf32`.
//!
//! Kernels in tiles round factors of f32 while they bring them into shared memory ([`crate::build::tile`], [`crate::build::attention`]). Where what they read is stored
//! rounded, it has half the bytes and is copied as it is: 16 bytes at a time, or by tensor maps. This comes last, when plans are known, and
//! takes exactly the reads that would have been rounded, with the same cast: no bit of a result changes. A tensor is stored
//!
//! - rounded alone, where nobody reads it in another way;
//! - twice by the step that makes it, as f32 and rounded, where others read it too (residuals, norms);
//! - rounded by a step of its own, if it is an input;
//! - rounded when the model is compiled, if it is a constant.
//!
//! tf32 has as many bytes as f32. What is stored so, where nobody reads it in another way, is rounded once, by the step that makes it, in place of each time that a warp reads it; and
//! tensor maps can bring it to warpgroups.
//!
//! The second and the third cost bytes, and are done where these are fewer than those saved ([`pays_twice`], [`pays_step`]). A buffer is changed with all of its views, or not
//! at all. Knows no operator: it looks at who reads what. Class: exact.

use crate::attention::{Attentions, Way};
use crate::build::{attention, tile};
use crate::loops::Access;
use crate::plan::{Plan, guess};
use crate::program::{declare, prepare};
use crate::target::{Math, TargetDesc};
use crate::tf32;
use crate::work::{Arg, Id, Item, Memory, Task, Work};
use infc_ir::compute::{Compute, Step};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor, TensorType, eval};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Bytes that could be moved in the time that one more launch of a graph takes: about 1.5 us, at about 3 TB/s.
const LAUNCH: i64 = 4 << 20;

/// Stores factors rounded, in all blocks of the work list.
pub fn store(work: &mut Work, target: &TargetDesc, attentions: &mut Attentions) {
    let math = target.math;
    if math == Math::F32 || target.block_threads == 0 {
        return;
    }
    let mut items = std::mem::take(&mut work.items);
    let mut all = vec![];
    each(&mut items, &mut |item| {
        all.push(if let Item::Task(task) = item { reads(work, task, target, attentions) } else { Reads::default() });
    });
    let families = families(work, &mut items, &all);
    let (dtype, narrows) = (math.narrow().unwrap_or(DType::F32), math.narrow().is_some());
    let mut copies = Copies { math, dtype, of: HashMap::new() };
    let (mut alone, mut steps) = (BTreeSet::new(), vec![]);
    for (&root, family) in families.iter().filter(|(_, f)| f.staged > 0) {
        let data = work.tensor(root);
        match &data.memory {
            Memory::Constant(t) if narrows || !family.read => {
                let ty = TensorType::new(dtype, data.ty.dims.clone());
                let (t, name) = (rounded(t, math), data.name.clone());
                let copy = work.add(ty, Memory::Constant(t), name);
                work.tensors[copy.index()].tf32 = !narrows;
                copies.of.insert(root, copy);
            }
            Memory::Temp if !family.read && !family.fixed && !family.seen => drop(alone.insert(root)),
            Memory::Temp
                if narrows && family.writers == [root] && !family.fixed && !family.windows && pays_twice(work, root, family) =>
            {
                let copy = copies.add(work, root);
                work.twice.insert(root, copy);
                if !family.summed {
                    // The border is for products, and these read that of the copy.
                    work.tensors[root.index()].fill = None;
                }
            }
            Memory::Input(_) if narrows && pays_step(work, root, family) => {
                let copy = copies.add(work, root);
                let step = Compute::map(&data_dims(work, root), |axes| Scalar::read_at(DType::F32, 0, axes).cast(dtype));
                let (name, node) = (dtype.name().into(), String::new());
                steps.push(Item::Task(Task { step: Step::Compute(step), sources: vec![root], out: copy, name, node }));
            }
            Memory::Constant(_) | Memory::Temp | Memory::Input(_) | Memory::Alias { .. } | Memory::Window { .. } => {}
        }
    }
    narrow(work, &alone, math);
    let mut number = 0;
    each(&mut items, &mut |item| {
        if let Item::Task(task) = item {
            rewrite(work, task, &all[number], (&mut copies, &alone), attentions);
        }
        number += 1;
    });
    steps.extend(items);
    work.items = steps;
}

/// Calls `see` for each item, those of inner blocks too, always in the same order.
fn each(items: &mut [Item], see: &mut dyn FnMut(&mut Item)) {
    for item in items {
        see(item);
        match item {
            Item::If { then, otherwise, .. } => {
                each(then, see);
                each(otherwise, see);
            }
            Item::Loop { body, .. } => each(body, see),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

/// A read that a kernel rounds: which factor, of which tensor, and how many elements of it are brought into shared memory in all.
struct Staged {
    which: usize,
    tensor: Id,
    elements: i64,
    /// For matrix instructions of warpgroups, whose tiles few threads fill.
    group: bool,
}

/// What a step reads.
#[derive(Default)]
struct Reads {
    rounded: Vec<Staged>,
    /// In another way; and those of them that are factors of sums of products.
    others: Vec<Id>,
    summed: Vec<Id>,
}

/// The tensors that a scalar reads.
fn tensors(s: Scalar, sources: &[Id], out: &mut Vec<Id>) {
    s.visit(&mut |n| {
        if let Kind::Read { source, .. } = n.kind() {
            out.push(sources[*source as usize]);
        }
    });
}

fn reads(work: &Work, task: &Task, target: &TargetDesc, attentions: &Attentions) -> Reads {
    let mut all = Reads::default();
    let mut take = |s: Scalar, which: usize, rounded: Option<i64>, sources: &[Id], group: bool| match (rounded, s.kind()) {
        (Some(elements), Kind::Read { source, .. }) => {
            all.rounded.push(Staged { which, tensor: sources[*source as usize], elements, group });
        }
        _ => {
            tensors(s, sources, &mut all.others);
            tensors(s, sources, &mut all.summed);
        }
    };
    if let Some((a, way)) = attentions.get(&task.out) {
        let rounded = if let Way::Tiles(p) = way { attention::rounded(a, p, target.math) } else { [None; 3] };
        match a.product.kind() {
            Kind::Binary(Binary::Mul, x, y) => {
                [*x, *y].into_iter().enumerate().for_each(|(k, s)| take(s, k, rounded[k], &a.sources, false))
            }
            _ => take(a.product, 0, None, &a.sources, false),
        }
        take(a.values, 2, rounded[2], &a.sources, false);
        [a.score, a.value].into_iter().for_each(|s| tensors(s, &a.sources, &mut all.others));
        return all;
    }
    if let Some((c, rounded, group)) = in_tiles(work, task, target)
        && let Some(r) = &c.reduction
        && let Kind::Binary(Binary::Mul, x, y) = r.body.kind()
    {
        [*x, *y].into_iter().enumerate().for_each(|(k, s)| take(s, k, rounded[k], &task.sources, group));
        tensors(c.value, &task.sources, &mut all.others);
        return all;
    }
    let used = task.step.sources();
    all.others = used.iter().map(|&s| task.sources[s as usize]).collect();
    if matches!(&task.step, Step::Compute(c) if crate::fuse::is_contraction(c)) {
        all.summed = all.others.clone();
    }
    all
}

/// The contraction of a step that is done in tiles, and what is rounded of its factors.
fn in_tiles<'a>(work: &Work, task: &'a Task, target: &TargetDesc) -> Option<(&'a Compute, [Option<i64>; 2], bool)> {
    let Step::Compute(c) = &task.step else { return None };
    if work.on_host.contains(&task.out) || !crate::fuse::is_contraction(c) {
        return None;
    }
    let mut pruned = task.clone();
    pruned.prune();
    let mut operands: Vec<_> = pruned.sources.iter().map(|&s| declare(work, s, Access::Read)).collect();
    operands.push(declare(work, pruned.out, Access::Write));
    // Its factors keep their places.
    let (step, _, plan) = prepare(pruned.step, operands, target);
    match (step, plan) {
        (Step::Compute(prepared), Plan::Tile(p)) => {
            Some((c, tile::rounded(&prepared, &p, target.math), p.row.starts_with("wgmma")))
        }
        _ => None,
    }
}

/// A buffer with all its views.
#[derive(Default)]
struct Family {
    /// Elements that kernels round.
    staged: i64,
    group: bool,
    /// Steps read it in another way, and in sums of products.
    read: bool,
    summed: bool,
    /// The outside sees it, or the host.
    seen: bool,
    /// What steps write to, once for each of them.
    writers: Vec<Id>,
    /// Not all of them can round, or not all views are of f32.
    fixed: bool,
    windows: bool,
}

fn families(work: &Work, items: &mut [Item], all: &[Reads]) -> BTreeMap<Id, Family> {
    let mut families: BTreeMap<Id, Family> = BTreeMap::new();
    for (k, data) in work.tensors.iter().enumerate() {
        let family = families.entry(work.root(Id(k as u32))).or_default();
        family.fixed |= data.ty.dtype != DType::F32;
        family.windows |= matches!(data.memory, Memory::Window { .. });
    }
    let mut at = |id: Id, note: &dyn Fn(&mut Family)| note(families.entry(work.root(id)).or_default());
    let see = |f: &mut Family| f.seen = true;
    work.output_tensors().chain(work.shared.iter().copied()).for_each(|id| at(id, &see));
    let mut number = 0;
    each(items, &mut |item| {
        match item {
            Item::Task(task) => {
                let reads = &all[number];
                for s in &reads.rounded {
                    at(s.tensor, &|f| {
                        f.staged += s.elements;
                        f.group |= s.group;
                    });
                }
                reads.others.iter().for_each(|&id| at(id, &|f| f.read = true));
                reads.summed.iter().for_each(|&id| at(id, &|f| f.summed = true));
                let fixed = !matches!(task.step, Step::Compute(_)) || work.on_host.contains(&task.out);
                at(task.out, &|f| {
                    f.writers.push(task.out);
                    f.fixed |= fixed;
                });
            }
            Item::If { cond, .. } => at(*cond, &see),
            Item::Loop { cond, .. } => cond.iter().for_each(|&id| at(id, &see)),
            Item::Bind { from, .. } => at(*from, &see),
            Item::Host { inputs, outputs, .. } => {
                for arg in inputs.iter().flatten().chain(outputs.iter()) {
                    if let Arg::Tensor(id) = arg {
                        at(*id, &|f| (f.seen, f.fixed) = (true, true));
                    }
                }
            }
            Item::Require { .. } => {}
        }
        number += 1;
    });
    families
}

fn data_dims(work: &Work, id: Id) -> Vec<Expr> {
    work.tensor(id).ty.dims.clone()
}

fn elements(work: &Work, id: Id) -> i64 {
    data_dims(work, id).into_iter().map(guess).product()
}

/// Stored twice, two bytes more are written for each element, and two fewer are read wherever one is brought into shared memory. Where that is
/// as much, as for one read of all, warpgroups decide: a tensor map fills their tiles, in place of threads that are fewer than those that multiply.
fn pays_twice(work: &Work, root: Id, f: &Family) -> bool {
    let own = elements(work, root);
    f.staged > own || f.group && f.staged == own
}

/// A step of its own reads four bytes of each element and writes two, and it is a launch more.
fn pays_step(work: &Work, root: Id, f: &Family) -> bool {
    !f.fixed && 2 * f.staged > 6 * elements(work, root) + LAUNCH
}

fn rounded(t: &Tensor, math: Math) -> Tensor {
    let values = t.to_vec::<f32>().into_iter();
    match math {
        Math::F32 | Math::Tf32 | Math::Winograd => tf32::tensor(t),
        Math::F16 => Tensor::from_vec(t.dims.clone(), values.map(half::f16::from_f32).collect::<Vec<_>>()),
        Math::Bf16 => Tensor::from_vec(t.dims.clone(), values.map(half::bf16::from_f32).collect::<Vec<_>>()),
    }
}

/// An f32, rounded.
fn round(s: Scalar, math: Math) -> Scalar {
    math.narrow().map_or_else(|| tf32::round(s), |dtype| s.cast(dtype))
}

/// Has tensors, with all their views, stored rounded.
fn narrow(work: &mut Work, roots: &BTreeSet<Id>, math: Math) {
    for k in 0..work.tensors.len() {
        if roots.contains(&work.root(Id(k as u32))) {
            let data = &mut work.tensors[k];
            match math.narrow() {
                Some(dtype) => data.ty.dtype = dtype,
                None => data.tf32 = true,
            }
            data.fill = data.fill.map(|f| match (math.narrow(), f.as_float()) {
                (None, Some(x)) => Scalar::float(DType::F32, f64::from(tf32::number(x as f32))),
                _ => eval::fold(round(f, math)),
            });
        }
    }
}

/// Rounded copies of tensors.
struct Copies {
    math: Math,
    dtype: DType,
    /// By the tensor that is copied, or seen in another way.
    of: HashMap<Id, Id>,
}

impl Copies {
    /// A new tensor that lies as `id` does.
    fn add(&mut self, work: &mut Work, id: Id) -> Id {
        let data = work.tensor(id).clone();
        let copy = work.add(TensorType::new(self.dtype, data.ty.dims), Memory::Temp, data.name);
        let new = &mut work.tensors[copy.index()];
        (new.order, new.halo, new.gap) = (data.order, data.halo, data.gap);
        new.fill = data.fill.map(|f| eval::fold(f.cast(self.dtype)));
        self.of.insert(id, copy);
        copy
    }

    /// The copy of a tensor, or that of what it is a view of, seen as the view sees it.
    fn get(&mut self, work: &mut Work, id: Id) -> Option<Id> {
        if let Some(&copy) = self.of.get(&id) {
            return Some(copy);
        }
        let data = work.tensor(id).clone();
        let memory = match data.memory {
            Memory::Alias { of, offset } => Memory::Alias { of: self.get(work, of)?, offset },
            Memory::Window { of, start } => Memory::Window { of: self.get(work, of)?, start },
            Memory::Input(_) | Memory::Constant(_) | Memory::Temp => return None,
        };
        let copy = work.add(TensorType::new(self.dtype, data.ty.dims), memory, data.name);
        let new = &mut work.tensors[copy.index()];
        (new.order, new.tf32) = (data.order, self.math == Math::Tf32);
        self.of.insert(id, copy);
        Some(copy)
    }
}

/// Reads what is stored rounded as such, and rounds what is stored rounded alone.
fn rewrite(
    work: &mut Work,
    task: &mut Task,
    reads: &Reads,
    (copies, alone): (&mut Copies, &BTreeSet<Id>),
    attentions: &mut Attentions,
) {
    let (math, dtype) = (copies.math, copies.dtype);
    let made_alone = alone.contains(&work.root(task.out));
    let mut taken: Vec<(usize, Id)> = vec![];
    for s in &reads.rounded {
        let stored = if alone.contains(&work.root(s.tensor)) { Some(s.tensor) } else { copies.get(work, s.tensor) };
        taken.extend(stored.map(|id| (s.which, id)));
    }
    let narrowed = |s: Scalar, which: usize, sources: &mut Vec<Id>| {
        let found = taken.iter().find(|t| t.0 == which).map(|t| t.1);
        let (Some(id), Kind::Read { index, guard: None, .. }) = (found, s.kind()) else { return s };
        sources.push(id);
        Scalar::read(dtype, sources.len() - 1, index.iter().copied()).cast(DType::F32)
    };
    let product = |s: Scalar, sources: &mut Vec<Id>| match s.kind() {
        Kind::Binary(Binary::Mul, x, y) => {
            let x = narrowed(*x, 0, sources);
            x * narrowed(*y, 1, sources)
        }
        _ => s,
    };
    if let Some((a, _)) = attentions.get_mut(&task.out) {
        a.product = product(a.product, &mut a.sources);
        a.values = narrowed(a.values, 2, &mut a.sources);
        if made_alone {
            a.value = round(a.value, math);
        }
        if !taken.is_empty() {
            a.prune();
        }
        task.sources.clone_from(&a.sources);
        return;
    }
    let Step::Compute(c) = &mut task.step else { return };
    if let Some(r) = &mut c.reduction
        && !taken.is_empty()
    {
        r.body = product(r.body, &mut task.sources);
    }
    if made_alone {
        c.value = round(c.value, math);
    }
}
