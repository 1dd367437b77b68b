//! Tensors made from a shape alone, and triangles.

use super::*;
use crate::expr::Ranges;
use crate::scalar::{Binary, Unary};

impl ConstantOfShape {
    /// The repeated value; f32 zero if none is given.
    fn value(&self) -> Result<Scalar, Fault> {
        match &self.value {
            None => Ok(Scalar::float(DType::F32, 0.0)),
            Some(t) if t.len() == 1 && t.dtype != DType::String => Ok(constant(t, 0)),
            Some(t) => Err(fault!("the value must be one number, it is {}{:?}", t.dtype, t.dims)),
        }
    }
}

impl OpDef for ConstantOfShape {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let value = self.value()?;
        if depends_on_data(cx, 0) {
            return Ok(any_dims("ConstantOfShape", value.dtype(), length(cx, 0)?));
        }
        let dims = cx.ints(0)?;
        if dims.iter().any(|d| d.known().is_some_and(|d| d < 0)) {
            return Err(fault!("the shape {dims:?} has a negative dim"));
        }
        let ints = value.as_int().filter(|_| value.dtype().is_int());
        let ints = ints.zip(small(&dims)).map(|(v, n)| vec![Expr::int(v); n]);
        Ok(moved(value.dtype(), dims, ints))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let value = self.value()?;
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(Compute::map(&Ctx::out(outs, 0)?.dims, |_| value))))
    }
}

/// The elements of an integer operand with one element, as an expression.
fn one_int(cx: &Ctx, i: usize) -> Option<Expr> {
    cx.fact(i).ok()?.ints.as_ref().filter(|v| v.len() == 1).map(|v| v[0])
}

impl Range {
    fn len(&self, cx: &Ctx) -> Result<Expr, Fault> {
        if let (Some(start), Some(limit), Some(delta)) = (one_int(cx, 0), one_int(cx, 1), one_int(cx, 2)) {
            if delta.is(0) {
                return Err(fault!("delta is 0"));
            }
            if delta.known().is_none() && delta.has_datum() {
                sizes::must_equal(delta.max(-delta).min(1.into()), 1.into(), &|| "delta must not be 0".to_owned());
            }
            let len = |env: &Ranges| {
                let n = match delta.known() {
                    None if delta.has_datum() => Expr::int(0) - (start - limit).div(delta),
                    Some(d) if d < 0 => (start - limit).div_ceil(Expr::int(-d)),
                    _ if delta.range(env).lo < 1 => Expr::int(0) - (start - limit).div(delta),
                    _ => (limit - start).div_ceil(delta),
                };
                n.max(0.into()).simplify(env)
            };
            let text = || format!("a range from {start} to {limit} needs sizes that are not 0");
            return Ok(unless_empty(&[start, limit, delta], len, |&n| n, &text));
        }
        let [start, limit, delta] = [0, 1, 2].map(|i| {
            cx.known(i).filter(|t| t.len() == 1 && t.dtype.is_float()).map(|t| t.float(0)).ok_or_else(|| {
                fault!("operand {i} must be known at compile time or follow from the input shapes, but it depends on input data")
            })
        });
        let n = ((limit? - start?) / delta?).ceil().max(0.0);
        if n.is_finite() { Ok(Expr::int(n as i64)) } else { Err(fault!("the number of elements is not finite")) }
    }
}

impl OpDef for Range {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dtype = cx.dtype(0)?;
        for i in 0..3 {
            let t = cx.tensor(i)?;
            if t.dtype != dtype || t.rank() > 1 || t.dims.iter().any(|d| d.known().is_some_and(|n| n != 1)) {
                return Err(fault!("operand {i} is {t}, it must be one {dtype}"));
            }
        }
        if (0..3).any(|i| cx.fact(i).is_ok_and(|f| f.ints.is_none() && f.known.is_none())) {
            return Ok(any_dims("Range", dtype, 1));
        }
        let dims = vec![self.len(cx)?];
        let ints = one_int(cx, 0).zip(one_int(cx, 2)).zip(small(&dims));
        let ints = ints.map(|((start, delta), n)| (0..n).map(|i| start + delta * i).collect());
        Ok(moved(dtype, dims, ints))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let out = Ctx::out(outs, 0)?;
        let (start, delta) = (cx.tensor(0)?, cx.tensor(2)?);
        let wide = if self.stash_type == 1 { out.dtype.accumulator() } else { out.dtype };
        let c = Compute::map(&out.dims, |axes| {
            if let (Some(start), Some(delta)) = (one_int(cx, 0), one_int(cx, 2)) {
                return Scalar::index(start + delta * axes[0]).cast(out.dtype);
            }
            let [start, delta] = [read_scalar(start, 0), read_scalar(delta, 2)].map(|s| s.cast(wide));
            (start + Scalar::index(axes[0]).cast(wide) * delta).cast(out.dtype)
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
    /// The number of floats is the rounded-up quotient.
    fn data_dims(&self, cx: &Ctx) -> Result<DataDims, Fault> {
        if !cx.dtype(0)?.is_float() {
            return Ok(DataDims::default());
        }
        let operand = |i: usize| cx.tensor(i).map(|t| read_scalar(t, i).cast(DType::F64));
        let (start, limit, delta) = (operand(0)?, operand(1)?, operand(2)?);
        let zero = Scalar::float(DType::F64, 0.0);
        let n = Scalar::unary(Unary::Ceil, (limit - start) / delta).max(zero);
        let checks = vec![(Scalar::unary(Unary::Not, delta.eq_to(zero)), "delta must not be 0".to_owned())];
        Ok(DataDims { dims: vec![(0, 0, n.cast(DType::I64))], checks })
    }
}

impl OpDef for EyeLike {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        if t.rank() != 2 {
            return Err(fault!("operand 0 is {t}, it must have rank 2"));
        }
        let dtype = self.dtype.map_or(Ok(t.dtype), |d| attr_dtype(d, "dtype"))?;
        Ok(vec![Fact::tensor(dtype, t.dims.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let out = Ctx::out(outs, 0)?;
        let c = Compute::map(&out.dims, |i| {
            let on = Scalar::index(i[1] - i[0]).eq_to(Scalar::index(self.k));
            Scalar::select(on, Scalar::number(out.dtype, 1.0), Scalar::number(out.dtype, 0.0))
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

impl OpDef for Trilu {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        if t.rank() < 2 {
            return Err(fault!("operand 0 is {t}, it must have rank 2 or more"));
        }
        if cx.has(1) && (cx.dtype(1)? != DType::I64 || small(cx.dims(1)?) != Some(1)) {
            return Err(fault!("k is {}, it must be one i64", cx.tensor(1)?));
        }
        Ok(vec![Fact::of(t.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let out = Ctx::out(outs, 0)?;
        let k = match (cx.has(1), one_int(cx, 1)) {
            (false, _) => Scalar::index(0),
            (true, Some(k)) => Scalar::index(k),
            (true, None) => read_scalar(cx.tensor(1)?, 1),
        };
        let keep = if self.upper != 0 { Binary::Ge } else { Binary::Le };
        let c = Compute::map(&out.dims, |axes| {
            let [row, column] = [axes[axes.len() - 2], axes[axes.len() - 1]];
            let kept = Scalar::binary(keep, Scalar::index(column - row), k);
            Scalar::select(kept, Scalar::read_at(out.dtype, 0, axes), Scalar::number(out.dtype, 0.0))
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}
