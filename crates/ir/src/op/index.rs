//! Gather and scatter: elements read or written at places that are data.
//!
//! An index counts from the end if it is negative. Whether it then lies in the tensor is checked where the loops are made.

use super::shape::constant;
use super::*;
use crate::compute::{Compute, Scatter};
use crate::expr::Ranges;
use crate::scalar::{Binary, Scalar};

gaps! {}

/// `index` of any integer dtype as `i64`, counted from the end of `dim` if negative.
fn wrapped(index: Scalar, dim: Expr) -> Scalar {
    let i = index.cast(DType::I64);
    match index.dtype().is_signed() {
        true => Scalar::select(i.lt(Scalar::index(0)), i + Scalar::index(dim), i),
        false => i,
    }
}

/// As [`wrapped`], for an index that is known as an expression.
fn wrapped_expr(index: Expr, dim: Expr) -> Option<Expr> {
    let r = index.range(&super::shape::not_empty(&[index]));
    if r.lo >= 0 { Some(index) } else { (r.hi < 0).then(|| index + dim) }
}

fn indices(axes: &[Expr]) -> Vec<Scalar> {
    axes.iter().map(|&a| Scalar::index(a)).collect()
}

/// Checks that operand `i` holds `i32` or `i64` indices.
fn index_operand<'a>(cx: &Ctx<'a>, i: usize) -> Result<&'a TensorType, Fault> {
    match cx.tensor(i)? {
        t if matches!(t.dtype, DType::I32 | DType::I64) => Ok(t),
        t => Err(fault!("operand {i} is {t}, indices must be i32 or i64")),
    }
}

impl OpDef for Gather {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (data, index) = (cx.tensor(0)?, index_operand(cx, 1)?);
        let axis = normal_axis(self.axis, data.rank())?;
        let dims = [&data.dims[..axis], &index.dims, &data.dims[axis + 1..]].concat();
        let places = cx.fact(1)?.ints.as_ref();
        if let (Some(n), Some(places)) = (data.dims[axis].known(), places)
            && let Some(bad) = places.iter().filter_map(|p| p.known()).find(|p| !(-n..n).contains(p))
        {
            return Err(fault!("index {bad} is outside the {n} elements of axis {axis}"));
        }
        if let Some(&[place]) = places.map(Vec::as_slice)
            && place.range(&Ranges::default()).lo < 0
            && wrapped_expr(place, data.dims[axis]) == Some(place)
        {
            let text = || format!("the index {place} needs sizes that are not 0");
            sizes::must_equal(place.min(0.into()), 0.into(), &text);
        }
        let all = cx.fact(0)?.ints.as_ref().filter(|_| data.rank() == 1);
        let ints = all.zip(places).and_then(|(all, places)| {
            let at = |p: &Expr| {
                let p = p.known()?;
                all.get(usize::try_from(if p < 0 { p + all.len() as i64 } else { p }).ok()?).copied()
            };
            places.iter().map(at).collect::<Option<Vec<_>>>()
        });
        Ok(vec![Fact::tensor(data.dtype, dims).with_ints(ints)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (data, index, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let axis = normal_axis(self.axis, data.rank())?;
        // One known index is a slice.
        let one = cx.fact(1)?.ints.as_ref().filter(|v| v.len() == 1).and_then(|v| wrapped_expr(v[0], data.dims[axis]));
        let c = Compute::map(&out.dims, |axes| {
            let (before, rest) = axes.split_at(axis);
            let (at, after) = rest.split_at(index.rank());
            let place = match one {
                Some(e) => Scalar::index(e),
                None => wrapped(Scalar::read_at(index.dtype, 1, at), data.dims[axis]),
            };
            Scalar::read(data.dtype, 0, [indices(before), vec![place], indices(after)].concat())
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

impl OpDef for GatherElements {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (data, index) = (cx.tensor(0)?, index_operand(cx, 1)?);
        normal_axis(self.axis, data.rank())?;
        if data.rank() != index.rank() {
            return Err(fault!("data {data} and indices {index} differ in rank"));
        }
        Ok(vec![Fact::tensor(data.dtype, index.dims.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (data, index, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let axis = normal_axis(self.axis, data.rank())?;
        let c = Compute::map(&out.dims, |axes| {
            let mut at = indices(axes);
            at[axis] = wrapped(Scalar::read_at(index.dtype, 1, axes), data.dims[axis]);
            Scalar::read(data.dtype, 0, at)
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

/// The length of the index tuples in the last dim of operand 1, for data of `rank` with `batch` leading dims in common.
fn tuple_len(cx: &Ctx, rank: usize, batch: usize) -> Result<usize, Fault> {
    let index = cx.tensor(1)?;
    let last = index.dims.last().ok_or_else(|| fault!("indices {index} must have rank 1 or more"))?;
    let len = last.known().ok_or_else(|| fault!("the last dim of indices {index} must be known"))?;
    match usize::try_from(len) {
        Ok(n) if batch + n <= rank && batch < index.rank() => Ok(n),
        _ => Err(fault!("index tuples of length {len} (and {batch} batch dims) do not fit data of rank {rank}")),
    }
}

impl GatherND {
    fn batch(&self) -> Result<usize, Fault> {
        usize::try_from(self.batch_dims).map_err(|_| fault!("batch_dims {} is negative", self.batch_dims))
    }
}

impl OpDef for GatherND {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (data, index) = (cx.tensor(0)?, index_operand(cx, 1)?);
        let batch = self.batch()?;
        let len = tuple_len(cx, data.rank(), batch)?;
        let dims = [&index.dims[..index.rank() - 1], &data.dims[batch + len..]].concat();
        Ok(vec![Fact::tensor(data.dtype, dims)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (data, index, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let batch = self.batch()?;
        let len = tuple_len(cx, data.rank(), batch)?;
        let c = Compute::map(&out.dims, |axes| {
            let (outer, inner) = axes.split_at(index.rank() - 1);
            let place = |k: usize| {
                let at = [outer, &[Expr::int(k as i64)]].concat();
                wrapped(Scalar::read_at(index.dtype, 1, &at), data.dims[batch + k])
            };
            Scalar::read(data.dtype, 0, [indices(&outer[..batch]), (0..len).map(place).collect(), indices(inner)].concat())
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

/// The operator of a `reduction` attribute.
fn reduction(name: &str) -> Result<Option<Binary>, Fault> {
    Ok(Some(match name {
        "none" => return Ok(None),
        "add" => Binary::Add,
        "mul" => Binary::Mul,
        "max" => Binary::Max,
        "min" => Binary::Min,
        _ => return Err(fault!("reduction '{name}' is none of none, add, mul, max, min")),
    }))
}

/// A scatter over the elements of operand 2 at `index(update axes)` into a copy of operand 0.
fn scatter(
    cx: &Ctx,
    outs: &[Type],
    combine: Option<Binary>,
    index: impl FnOnce(&[Expr]) -> Vec<Scalar>,
) -> Result<Meaning, Fault> {
    let (updates, out) = (cx.tensor(2)?, Ctx::out(outs, 0)?);
    let axes = |n: usize| (0..n).map(Expr::var).collect::<Vec<_>>();
    let at = axes(updates.rank());
    let step = Scatter {
        dims: out.dims.clone(),
        base: Scalar::read_at(out.dtype, 0, &axes(out.rank())),
        updates: updates.dims.clone(),
        index: index(&at),
        value: Scalar::read_at(out.dtype, 2, &at),
        combine,
    };
    Ok(Meaning::one(cx.inputs.len(), Step::Scatter(step)))
}

impl OpDef for ScatterElements {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (data, index, updates) = (cx.tensor(0)?, index_operand(cx, 1)?, cx.tensor(2)?);
        normal_axis(self.axis, data.rank())?;
        reduction(&self.reduction)?;
        if data.rank() != index.rank() || index.rank() != updates.rank() || data.dtype != updates.dtype {
            return Err(fault!("data {data}, indices {index} and updates {updates} do not fit"));
        }
        Ok(vec![Fact::of(data.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (data, index) = (cx.tensor(0)?, cx.tensor(1)?);
        let axis = normal_axis(self.axis, data.rank())?;
        scatter(cx, outs, reduction(&self.reduction)?, |at| {
            let mut place = indices(at);
            place[axis] = wrapped(Scalar::read_at(index.dtype, 1, at), data.dims[axis]);
            place
        })
    }
}

impl OpDef for ScatterND {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (data, index, updates) = (cx.tensor(0)?, index_operand(cx, 1)?, cx.tensor(2)?);
        let len = tuple_len(cx, data.rank(), 0)?;
        reduction(&self.reduction)?;
        if updates.rank() != index.rank() - 1 + data.rank() - len || data.dtype != updates.dtype {
            return Err(fault!("data {data}, indices {index} and updates {updates} do not fit"));
        }
        Ok(vec![Fact::of(data.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (data, index) = (cx.tensor(0)?, cx.tensor(1)?);
        let len = tuple_len(cx, data.rank(), 0)?;
        let tuples = cx.known(1);
        scatter(cx, outs, reduction(&self.reduction)?, |at| {
            let (outer, inner) = at.split_at(index.rank() - 1);
            let place = |k: usize| {
                let known = tuples.and_then(|t| affine_tuple(t, outer, k));
                known.map(Scalar::index).unwrap_or_else(|| {
                    let at = [outer, &[Expr::int(k as i64)]].concat();
                    wrapped(Scalar::read_at(index.dtype, 1, &at), data.dims[k])
                })
            };
            (0..len).map(place).chain(indices(inner)).collect()
        })
    }
}

/// Component `k` of constant index tuples as `constant + sum(coefficient * axis)`, if it is of that form without negative values:
/// exporters write the assignment to a slice this way.
fn affine_tuple(tuples: &Tensor, axes: &[Expr], k: usize) -> Option<Expr> {
    let (&len, outer) = tuples.dims.split_last()?;
    if tuples.is_empty() {
        return None;
    }
    let values = tuples.to_ints();
    let at = |n: usize| values[n * len + k];
    let mut stride = 1usize;
    let mut place = Expr::int(at(0));
    let mut slopes = vec![(0i64, 1usize, 1usize); outer.len()];
    for (a, &d) in outer.iter().enumerate().rev() {
        let slope = if d > 1 { at(stride) - at(0) } else { 0 };
        slopes[a] = (slope, stride, d);
        place = place + axes[a] * slope;
        stride *= d;
    }
    let value = |n: usize| at(0) + slopes.iter().map(|&(slope, stride, d)| slope * (n / stride % d) as i64).sum::<i64>();
    (0..stride).all(|n| at(n) >= 0 && at(n) == value(n)).then_some(place)
}

impl OpDef for OneHot {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (index, values) = (cx.tensor(0)?, cx.tensor(2)?);
        let axis = normal_axis(self.axis, index.rank() + 1)?;
        let mut dims = index.dims.clone();
        let unknown = cx.known(1).is_none() && super::shape::depends_on_data(cx, 1);
        dims.insert(axis, if unknown { new_dim("OneHot", 0) } else { depth(cx)? });
        if values.rank() != 1 || values.dims[0].known().is_some_and(|n| n != 2) {
            return Err(fault!("values is {values}, it must be two elements"));
        }
        Ok(vec![Fact::tensor(values.dtype, dims)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (index, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let axis = normal_axis(self.axis, out.rank())?;
        let depth = out.dims[axis];
        let c = Compute::map(&out.dims, |axes| {
            let mut at = axes.to_vec();
            let position = at.remove(axis);
            let hot = Scalar::read_at(index.dtype, 0, &at).cast(DType::I64);
            let hot = Scalar::select(hot.lt(Scalar::index(0)), hot + Scalar::index(depth), hot);
            let value = |k: i64| Scalar::read_at(out.dtype, 2, &[Expr::int(k)]);
            Scalar::select(hot.eq_to(Scalar::index(position)), value(1), value(0))
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
    fn data_dims(&self, cx: &Ctx) -> Result<DataDims, Fault> {
        let axis = normal_axis(self.axis, cx.dims(0)?.len() + 1)?;
        let depth = super::shape::read_scalar(cx.tensor(1)?, 1).cast(DType::I64);
        Ok(DataDims { dims: vec![(0, axis, depth)], checks: vec![] })
    }
}

/// The depth of a OneHot, which may be given as a float.
fn depth(cx: &Ctx) -> Result<Expr, Fault> {
    let depth = match cx.known(1).filter(|t| t.len() == 1) {
        Some(t) => constant(t, 0).cast(DType::I64).as_index(),
        None => cx.ints(1)?.first().copied(),
    };
    depth.ok_or_else(|| fault!("depth must be one number"))
}

impl TensorScatter {
    fn axis(&self, rank: usize) -> Result<usize, Fault> {
        match normal_axis(self.axis, rank)? {
            0 => Err(fault!("axis 0 is the batch, it cannot be the sequence")),
            a => Ok(a),
        }
    }
}

impl OpDef for TensorScatter {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (cache, update) = (cx.tensor(0)?, cx.tensor(1)?);
        self.axis(cache.rank())?;
        if !matches!(&*self.mode, "linear" | "circular") {
            return Err(fault!("mode '{}' is neither linear nor circular", self.mode));
        }
        if (cache.rank(), cache.dtype) != (update.rank(), update.dtype) {
            return Err(fault!("cache {cache} and update {update} do not fit"));
        }
        if cx.has(2) && index_operand(cx, 2)?.rank() != 1 {
            return Err(fault!("write_indices is {}, it must have rank 1", cx.tensor(2)?));
        }
        Ok(vec![Fact::of(cache.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (update, out) = (cx.tensor(1)?, Ctx::out(outs, 0)?);
        let axis = self.axis(out.rank())?;
        let axes: Vec<Expr> = (0..out.rank()).map(Expr::var).collect();
        let mut index = indices(&axes);
        if cx.has(2) {
            index[axis] = Scalar::read_at(cx.dtype(2)?, 2, &axes[..1]).cast(DType::I64) + index[axis];
        }
        if self.mode == "circular" {
            index[axis] = Scalar::binary(Binary::Mod, index[axis], Scalar::index(out.dims[axis]));
        }
        let step = Scatter {
            dims: out.dims.clone(),
            base: Scalar::read_at(out.dtype, 0, &axes),
            updates: update.dims.clone(),
            index,
            value: Scalar::read_at(out.dtype, 1, &axes),
            combine: None,
        };
        Ok(Meaning::one(cx.inputs.len(), Step::Scatter(step)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_assignments_are_affine() {
        let axes = [Expr::var(0), Expr::var(1)];
        let grid = Tensor::from_vec([2, 3, 2], vec![0i64, 4, 0, 6, 0, 8, 1, 4, 1, 6, 1, 8]);
        assert_eq!(affine_tuple(&grid, &axes, 0), Some(axes[0]));
        assert_eq!(affine_tuple(&grid, &axes, 1), Some(axes[1] * 2 + 4));
        let other = Tensor::from_vec([3, 1], vec![0i64, 1, 3]);
        assert_eq!(affine_tuple(&other, &axes, 0), None);
    }

    #[test]
    fn shape_arithmetic_follows_gather() {
        let shape = Fact::tensor(DType::I64, [Expr::int(3)]).with_ints(Some(vec![Expr::sym("n"), 3.into(), Expr::sym("h")]));
        let facts = [Some(shape), Some(Fact::constant(Tensor::from_vec([], vec![-1i64])))];
        let cx = Ctx { inputs: &facts, regions: &[], outputs: 1 };
        assert_eq!(Gather { axis: 0 }.infer(&cx).unwrap()[0].ints, Some(vec![Expr::sym("h")]));
    }
}
