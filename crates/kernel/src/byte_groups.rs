//! Whole groups of neighbours: sums of products get a k axis that instructions for several products at once can take.
//!
//! Such an instruction adds the products of four neighbours of bytes (the row `byte_dot`), or of two of bf16 (`bf16_dot`). Where the neighbours
//! are no multiple of that, as in the three colours of a picture, constant weights get zeros to the next multiple, and the data is read as
//! far, behind a guard that placement turns into a border. What is read there counts nothing. Knows no operator: it looks at computes only.

use crate::fuse::is_contraction;
use crate::work::{Id, Memory, Task, Work};
use crate::zero_point::byte_read;
use infc_ir::compute::{Compute, Step};
use infc_ir::expr::Node;
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor, TensorType};

/// Neighbours that an instruction for bytes takes.
pub const GROUP: i64 = 4;

/// A factor: the read under its casts.
fn factor(s: Scalar, dtype: DType) -> Option<Scalar> {
    let Kind::Cast(byte) = s.kind() else { return None };
    let (read, _) = byte_read(*byte).filter(|_| byte.dtype() == dtype)?;
    Some(read)
}

/// The reads of data and weights in a product of bytes that an instruction of vectors takes: unsigned and signed ones, and with `signed`, signed ones
/// of which `constant` says that one is.
pub fn byte_factors(product: Scalar, signed: bool, constant: &dyn Fn(usize) -> bool) -> Option<(Scalar, Scalar)> {
    let Kind::Binary(Binary::Mul, a, b) = product.kind() else { return None };
    if signed && let Some((a, b)) = factor(*a, DType::I8).zip(factor(*b, DType::I8)) {
        return match (constant(source_of(a)), constant(source_of(b))) {
            (false, true) => Some((a, b)),
            (true, false) => Some((b, a)),
            _ => None,
        };
    }
    match (factor(*a, DType::U8), factor(*b, DType::I8)) {
        (Some(x), Some(w)) => Some((x, w)),
        _ => Some((factor(*b, DType::U8)?, factor(*a, DType::I8)?)),
    }
}

pub(crate) fn index_of(read: Scalar) -> Option<Vec<Expr>> {
    let Kind::Read { index, .. } = read.kind() else { return None };
    index.iter().map(|i| i.as_index()).collect()
}

pub(crate) fn source_of(read: Scalar) -> usize {
    match read.kind() {
        Kind::Read { source, .. } => *source as usize,
        _ => unreachable!("a read"),
    }
}

/// Fills the groups of a task's sum, if it is one of products of bytes that needs it. `fill` is what the data reads as beyond its end, if no
/// padding of its own says so. With `signed`, products of signed bytes count too.
pub fn fill(work: &mut Work, task: &mut Task, fill: i64, signed: bool) {
    let Step::Compute(c) = &task.step else { return };
    let Some(r) = c.reduction.as_ref().filter(|r| is_contraction(c) && r.body.dtype() == DType::I32) else { return };
    let constant = |source: usize| matches!(work.tensor(task.sources[source]).memory, Memory::Constant(_));
    let found = byte_factors(r.body, signed, &constant);
    let Some((x, w)) = found else { return };
    if let Some(better) = filled(work, task, (x, w), GROUP, Scalar::int(x.dtype(), fill)) {
        *task = better;
    }
}

/// The task with whole groups of `group` neighbours in the sum of products of data `x` with weights `w`; `None` if they are whole, or the weights
/// are no constant.
pub(crate) fn filled(work: &mut Work, task: &Task, (x, w): (Scalar, Scalar), group: i64, fill: Scalar) -> Option<Task> {
    let Step::Compute(c) = &task.step else { return None };
    let r = c.reduction.as_ref()?;
    let weights = match &work.tensor(task.sources[source_of(w)]).memory {
        Memory::Constant(t) => t.clone(),
        _ => return None,
    };
    let (at, along) = (index_of(x)?, index_of(w)?);
    let data = task.sources[source_of(x)];
    let (k, dim) = neighbours(c, &at, &along, work, data)?;
    let extent = r.axes[k].known()?;
    let whole = (extent.checked_add(group - 1)? / group) * group;
    if extent < 2 || extent == whole {
        return None;
    }
    let axis = Expr::var(c.dims.len() + k);
    let weight_dim = along.iter().position(|&e| e == axis)?;
    let mut out = task.clone();
    out.sources.push(longer(work, &weights, weight_dim, whole as usize));
    let (new, old) = (out.sources.len() - 1, w);
    let Kind::Read { source, index, guard } = x.kind() else { return None };
    let inside = Scalar::index(at[dim]).lt(Scalar::index(work.tensor(data).ty.dims[dim]));
    let guarded = match guard {
        Some((cond, value)) => Scalar::read_if(*source as usize, index.iter().copied(), cond.and(inside), *value),
        None => Scalar::read_if(*source as usize, index.iter().copied(), inside, fill),
    };
    let w = Scalar::read_at(w.dtype(), new, &along);
    let mut reduction = r.clone();
    reduction.axes[k] = Expr::int(whole);
    reduction.body = r.body.rewrite(&mut |n| {
        if n == x {
            guarded
        } else if n == old {
            w
        } else {
            n
        }
    });
    out.step = Step::Compute(Compute { dims: c.dims.clone(), reduction: Some(reduction), value: c.value });
    out.prune();
    Some(out)
}

/// The reduction axis along which neighbours of the data will lie side by side, and the data's dim that it moves along: the channels of a
/// convolution, else the last dim.
pub(crate) fn neighbours(c: &Compute, at: &[Expr], along: &[Expr], work: &Work, data: Id) -> Option<(usize, usize)> {
    let rank = c.dims.len();
    let by_channel = along.len() == at.len() && at.len() >= 3 && along.first() == Some(&Expr::var(1));
    let channels = by_channel && !work.tensor(data).ty.dims[1].is(1);
    let dim = if channels { 1 } else { at.len().checked_sub(1)? };
    let axes = &c.reduction.as_ref()?.axes;
    let moves = |k: usize| {
        let v = (rank + k) as u32;
        along.iter().any(|e| matches!(e.node(), Node::Var(u) if *u == v))
            && at.iter().enumerate().all(|(d, e)| e.affine_in(v).is_some_and(|(step, _)| step == i64::from(d == dim)))
    };
    Some(((0..axes.len()).find(|&k| moves(k))?, dim))
}

/// The weights with zeros along `dim` up to `whole` elements, as a new constant.
fn longer(work: &mut Work, t: &Tensor, dim: usize, whole: usize) -> Id {
    let inner = t.dims[dim + 1..].iter().product::<usize>() * t.dtype.bytes();
    let (from, to) = (t.dims[dim] * inner, whole * inner);
    let mut dims = t.dims.clone();
    dims[dim] = whole;
    let mut bytes = vec![0; dims.iter().product::<usize>() * t.dtype.bytes()];
    if from > 0 {
        for (old, new) in t.bytes().chunks_exact(from).zip(bytes.chunks_exact_mut(to)) {
            new[..from].copy_from_slice(old);
        }
    }
    let ty = TensorType::new(t.dtype, dims.iter().map(|&d| Expr::from(d)));
    work.add(ty, Memory::Constant(Tensor::from_bytes(t.dtype, dims, bytes)), "weights in whole groups")
}
