//! Zero points out of the sums: integer contractions become plain products of 8-bit operands.
//!
//! `sum (x - z) * (w - v)` over constant weights is `sum x * u - z * sum u` with `u = w - v`, exactly, because i32 wraps. `u` and its
//! sums are made here. Padding that reads as `z` stays padding: of the value `z`. What remains is a product of two reads, which the
//! contraction builder, borders and instructions for bytes can take. Where those want unsigned data, signed data `x` becomes
//! `x + 128`, which is its top bit flipped, and `z` becomes `z + 128`; where they want signed data, unsigned data becomes `x - 128` in the same way. Tiles take signed data as it is, so sums that will be made in tiles keep it. Knows no operator: it looks at computes only.

use crate::byte_groups;
use crate::plan::guess;
use crate::target::TargetDesc;
use crate::work::{Id, Item, Memory, Task, Work};
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::expr::Node;
use infc_ir::interp::run_step;
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor, TensorType};

/// Rewrites every task of the work list for which the law holds.
pub fn lift(work: &mut Work, target: &TargetDesc) {
    let mut items = std::mem::take(&mut work.items);
    walk(work, &mut items, target);
    work.items = items;
}

fn walk(work: &mut Work, items: &mut [Item], target: &TargetDesc) {
    for item in items {
        match item {
            Item::Task(task) => {
                let zero = lifted(work, task, target).map(|(better, zero)| {
                    *task = better;
                    zero
                });
                if target.groups_bytes() {
                    byte_groups::fill(work, task, zero.flatten().unwrap_or(0), target.tile_bytes || target.byte_dot_signed);
                }
            }
            Item::If { then, otherwise, .. } => {
                walk(work, then, target);
                walk(work, otherwise, target);
            }
            Item::Loop { body, .. } => walk(work, body, target),
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

/// `i32(read) - zero`.
struct Factor {
    read: Scalar,
    source: Id,
    zero: Option<Scalar>,
}

fn factor(s: Scalar, task: &Task) -> Option<Factor> {
    let (element, zero) = match s.kind() {
        Kind::Binary(Binary::Sub, a, z) => (*a, Some(*z)),
        _ => (s, None),
    };
    let Kind::Cast(read) = element.kind() else { return None };
    let Kind::Read { source, .. } = read.kind() else { return None };
    let byte = matches!(read.dtype(), DType::I8 | DType::U8);
    byte.then(|| Factor { read: *read, source: task.sources[*source as usize], zero })
}

/// The constant that the source of a task is.
fn constant(work: &Work, id: Id) -> Option<&Tensor> {
    match &work.tensor(id).memory {
        Memory::Constant(t) => Some(t),
        _ => None,
    }
}

/// The variable that indexes each dim of the weights, none for dims of one element; `None` if the index is anything else.
fn variables(read: Scalar, dims: &[usize]) -> Option<Vec<Option<u32>>> {
    let Kind::Read { index, guard: None, .. } = read.kind() else { return None };
    let var = |(s, &d): (&Scalar, &usize)| match s.as_index()?.node() {
        Node::Var(v) => Some(Some(*v)),
        _ if d == 1 => Some(None),
        _ => None,
    };
    let vars: Vec<Option<u32>> = index.iter().zip(dims).map(var).collect::<Option<_>>()?;
    (1..vars.len()).all(|k| vars[k].is_none() || !vars[..k].contains(&vars[k])).then_some(vars)
}

/// The data with its top bit flipped, as a byte of the other kind: `x + 128` as an unsigned one, or `x - 128` as a signed one.
fn flipped(x: Scalar) -> Scalar {
    let (dtype, bit) = if x.dtype() == DType::I8 { (DType::U8, 128) } else { (DType::I8, -128) };
    Scalar::binary(Binary::Xor, x.bitcast(dtype), Scalar::int(dtype, bit))
}

/// The byte that is read in a factor under its casts, and whether its top bit is flipped.
pub fn byte_read(s: Scalar) -> Option<(Scalar, bool)> {
    match s.kind() {
        Kind::Read { .. } => Some((s, false)),
        Kind::Binary(Binary::Xor, inner, bit)
            if matches!((s.dtype(), bit.as_int()), (DType::U8, Some(128)) | (DType::I8, Some(-128))) =>
        {
            match inner.kind() {
                Kind::Bitcast(read) if matches!(read.kind(), Kind::Read { .. }) => Some((*read, true)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Will the sum be made in tiles of signed bytes? Layouts are not known yet: it is said only where tiles win by far, with data and weights in
/// neighbours enough along k.
fn in_tiles(work: &Work, c: &Compute, x: &Factor, weights: &Factor, vars: &[Option<u32>]) -> bool {
    let (Some(at), Some(along)) = (byte_groups::index_of(x.read), byte_groups::index_of(weights.read)) else { return false };
    let axes = &c.reduction.as_ref().expect("a sum").axes;
    let Some((k, _)) = byte_groups::neighbours(c, &at, &along, work, x.source) else { return false };
    let Some(neighbours) = axes[k].known() else { return false };
    let whole = (neighbours + byte_groups::GROUP - 1) / byte_groups::GROUP * byte_groups::GROUP;
    let step = (1..=64).rev().find(|d| d % byte_groups::GROUP == 0 && whole % d == 0);
    let (mut rows, mut columns) = (1i64, 1i64);
    for (axis, &extent) in c.dims.iter().enumerate() {
        match (at.iter().any(|e| e.uses_var(axis as u32)), vars.contains(&Some(axis as u32))) {
            (true, true) => return false, // a convolution of each channel by itself, or of groups
            (true, false) => rows = rows.saturating_mul(guess(extent)),
            (false, true) => columns = columns.saturating_mul(guess(extent)),
            (false, false) => {}
        }
    }
    neighbours > 1 && step.is_some_and(|d| d >= 16) && rows >= 16 && columns >= 16
}

/// The task without zero points, and that of the data if it is known. Data of one sign is made that of the other where the machine's instructions want that.
fn lifted(work: &mut Work, task: &Task, target: &TargetDesc) -> Option<(Task, Option<i64>)> {
    let Step::Compute(c) = &task.step else { return None };
    let r = c.reduction.as_ref().filter(|r| r.kind == Reducer::Sum && r.body.dtype() == DType::I32)?;
    let Kind::Binary(Binary::Mul, a, b) = r.body.kind() else { return None };
    let sides = [factor(*a, task)?, factor(*b, task)?];
    let indexed = |f: &Factor| variables(f.read, &constant(work, f.source)?.dims);
    let (weights, vars) = (0..2).rev().find_map(|k| Some((k, indexed(&sides[k])?)))?;
    let (w, x) = (&sides[weights], &sides[1 - weights]);
    // What the machine's instructions for four products take beside signed weights.
    let (unsigned, signed) = (target.byte_dot || target.byte_pairs, target.byte_dot_signed);
    let flip = match x.read.dtype() {
        DType::I8 => unsigned && !signed && !(target.tile_bytes && in_tiles(work, c, x, w, &vars)),
        _ => signed && !unsigned,
    };
    if w.zero.is_none() && x.zero.is_none() && !flip {
        return None;
    }
    // The sums of the weights run over all that the sum of products runs over.
    let rank = c.dims.len() as u32;
    if !r.axes.iter().zip(rank..).all(|(e, v)| e.is(1) || vars.contains(&Some(v))) {
        return None;
    }
    let zero = match x.zero {
        None if flip => Some(Zero { scalar: Scalar::int(DType::I32, 0), known: Some(0) }),
        None => None,
        Some(z) => Some(zero_of(work, task, x, z)?),
    };
    let own = x.zero.is_some();
    let u = centred_weights(work, task, w, &vars)?;
    let mut out = task.clone();
    let mut source = |work: &mut Work, t: Tensor, name: &str| {
        let ty = TensorType::new(t.dtype, t.dims.iter().map(|&d| Expr::from(d)));
        out.sources.push(work.add(ty, Memory::Constant(t), name));
        out.sources.len() - 1
    };
    let index: Vec<Expr> = vars.iter().map(|v| v.map_or(Expr::int(0), |v| Expr::var(v as usize))).collect();
    let (dtype, number) = (u.dtype, source(work, u.clone(), "weights"));
    let plain = Scalar::read_at(dtype, number, &index).cast(DType::I32);
    let flip = flip && u.dtype == DType::I8;
    let data = match (x.read.kind(), zero.as_ref().filter(|_| own)) {
        (Kind::Read { source, index, guard: Some((cond, _)) }, Some(Zero { known: Some(z), .. })) => {
            Scalar::read_if(*source as usize, index.iter().copied(), *cond, Scalar::int(x.read.dtype(), *z))
        }
        (Kind::Read { guard: Some(_), .. }, Some(_)) => return None, // the border's value is not known now
        _ => x.read,
    };
    let data = if flip { flipped(data) } else { data }.cast(DType::I32);
    let body = if weights == 0 { plain * data } else { data * plain };
    let mut value = c.value;
    let known = zero.as_ref().and_then(|z| z.known);
    let moved = if x.read.dtype() == DType::I8 { 128 } else { -128 };
    let zero = zero.map(|z| if flip { z.plus(moved) } else { z });
    if let Some(zero) = zero.filter(|z| z.known != Some(0)) {
        let kept: Vec<usize> = (0..vars.len()).filter(|&k| vars[k].is_some_and(|v| v < rank)).collect();
        let sums = weight_sums(&u, &kept)?;
        let at: Vec<Expr> = kept.iter().map(|&k| index[k]).collect();
        let sum = Scalar::read_at(DType::I32, source(work, sums, "sums of weights"), &at);
        let local = Scalar::local(DType::I32, 0);
        let less = local - zero.scalar * sum;
        value = value.rewrite(&mut |n| if n == local { less } else { n });
    }
    let mut reduction = r.clone();
    reduction.body = body;
    out.step = Step::Compute(Compute { dims: c.dims.clone(), reduction: Some(reduction), value });
    out.prune();
    Some((out, known))
}

/// The zero point of the data.
struct Zero {
    scalar: Scalar,
    /// Its value, if it is a constant.
    known: Option<i64>,
}

impl Zero {
    fn plus(self, more: i64) -> Zero {
        let scalar = match self.known {
            Some(v) => Scalar::int(DType::I32, v + more),
            None => self.scalar + Scalar::int(DType::I32, more),
        };
        Zero { scalar, known: self.known.map(|v| v + more) }
    }
}

/// The zero point if it is one value for all of the data; with it all padding must read as that value.
fn zero_of(work: &Work, task: &Task, x: &Factor, z: Scalar) -> Option<Zero> {
    if !crate::fuse::moving_reads(z).is_empty() {
        return None;
    }
    if let Kind::Read { guard: Some((_, fill)), .. } = x.read.kind()
        && fill.cast(DType::I32) != z
    {
        return None;
    }
    let known = match z.kind() {
        Kind::Cast(inner) => match inner.kind() {
            Kind::Read { source, .. } => {
                let t = constant(work, task.sources[*source as usize]).filter(|t| t.len() == 1);
                t.map(|t| t.to_ints()[0])
            }
            _ => inner.as_int(),
        },
        _ => z.as_int(),
    };
    Some(Zero { scalar: known.map_or(z, |v| Scalar::int(DType::I32, v)), known })
}

/// The weights less their zero points, as bytes; `None` if they do not fit.
fn centred_weights(work: &Work, task: &Task, w: &Factor, vars: &[Option<u32>]) -> Option<Tensor> {
    let t = constant(work, w.source)?;
    let Some(zero) = w.zero else { return Some(t.clone()) };
    let all: Vec<Option<Tensor>> = task.sources.iter().map(|&id| constant(work, id).cloned()).collect();
    // Zero points follow the weights' own dims, and are constants too.
    let mut good = true;
    zero.visit(&mut |n| {
        if let Kind::Read { source, index, guard } = n.kind() {
            good &= guard.is_none() && all[*source as usize].is_some();
            for i in index {
                let Some(e) = i.as_index() else {
                    good = false;
                    continue;
                };
                e.leaves(&mut |leaf| good &= !matches!(leaf.node(), Node::Var(v) if !vars.contains(&Some(*v))));
            }
        }
    });
    if !good {
        return None;
    }
    let highest = vars.iter().flatten().max().map_or(0, |&v| v as usize);
    let mut own = vec![Expr::int(0); highest + 1];
    vars.iter().enumerate().for_each(|(k, v)| v.iter().for_each(|&v| own[v as usize] = Expr::var(k)));
    let axes: Vec<Expr> = (0..vars.len()).map(Expr::var).collect();
    let Kind::Read { source, .. } = w.read.kind() else { return None };
    let element = Scalar::read_at(t.dtype, *source as usize, &axes).cast(DType::I32);
    let dims: Vec<Expr> = t.dims.iter().map(|&d| Expr::from(d)).collect();
    let step = Step::Compute(Compute::map(&dims, |_| element - zero.subst(&own)));
    let values = run_step(&step, &all).ok()?.to_ints();
    let range = |lo: i64, hi: i64| values.iter().all(|v| (lo..=hi).contains(v));
    if range(-128, 127) {
        Some(Tensor::from_vec(t.dims.clone(), values.iter().map(|&v| v as i8).collect()))
    } else if range(0, 255) {
        Some(Tensor::from_vec(t.dims.clone(), values.iter().map(|&v| v as u8).collect()))
    } else {
        None
    }
}

/// Sums of the weights over all dims but `kept`.
fn weight_sums(u: &Tensor, kept: &[usize]) -> Option<Tensor> {
    let dim = |k: usize| Expr::from(u.dims[k]);
    let others: Vec<usize> = (0..u.dims.len()).filter(|k| !kept.contains(k)).collect();
    let dims: Vec<Expr> = kept.iter().map(|&k| dim(k)).collect();
    let axes: Vec<Expr> = others.iter().map(|&k| dim(k)).collect();
    let body = |o: &[Expr], r: &[Expr]| {
        let mut at = vec![Expr::int(0); u.dims.len()];
        kept.iter().zip(o).chain(others.iter().zip(r)).for_each(|(&k, &e)| at[k] = e);
        Scalar::read_at(u.dtype, 0, &at).cast(DType::I32)
    };
    let step = Step::Compute(Compute::reduce(&dims, &axes, Reducer::Sum, body, |_, acc| acc));
    run_step(&step, &[Some(u.clone())]).ok()
}
