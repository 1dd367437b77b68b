//! Normalisations.

use super::common::*;
use super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Binary as B, Scalar, Unary as U};

gaps! {}

/// The dtype of statistics that attribute `stash_type` asks for.
fn stash(number: i64) -> Result<DType, Fault> {
    match dtype_attr("stash_type", number)? {
        d if d.is_float() => Ok(d),
        d => Err(fault!("attribute 'stash_type' is {d}, which is no float")),
    }
}

/// The axes from `first` to the last, as attributes name them.
fn trailing(first: i64, rank: usize) -> Result<Vec<i64>, Fault> {
    Ok((normal_axis(first, rank)? as i64..rank as i64).collect())
}

/// x less its mean over `axes`, and the variance (population) of it; both keep the axes.
fn centred(b: &mut Builder, x: Value, axes: &[i64]) -> Result<(Value, Value, Value), Fault> {
    let mean = reduce_mean(b, x, axes)?;
    let d = b.op(Sub {}, &[x, mean])?;
    let dd = b.op(Mul {}, &[d, d])?;
    let variance = reduce_mean(b, dd, axes)?;
    Ok((mean, d, variance))
}

/// 1 / sqrt(x + epsilon).
fn inverse_root(b: &mut Builder, x: Value, epsilon: f32) -> Result<Value, Fault> {
    let dtype = b.tensor(x)?.dtype;
    let epsilon = b.number(dtype, f64::from(epsilon));
    let sum = b.op(Add {}, &[x, epsilon])?;
    let root = b.op(Sqrt {}, &[sum])?;
    b.op(Reciprocal {}, &[root])
}

/// A vector with one element a channel, in the shape that broadcasts along axis 1 of a tensor of `rank`.
fn per_channel(b: &mut Builder, v: Value, rank: usize) -> Result<Value, Fault> {
    let mut shape = vec![1; rank.saturating_sub(1)];
    shape[0] = -1;
    reshape(b, v, &shape)
}

/// An error unless operand `i` is a vector with one element for each of `channels`.
fn check_channels(cx: &Ctx, i: usize, channels: Expr) -> Result<(), Fault> {
    expect_rank(cx, i, 1)?;
    expect_dim(&format!("the length of operand {i}"), cx.dims(i)?[0], channels)
}

// ---- BatchNormalization ----

impl OpDef for BatchNormalization {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        let channels = x.dims.get(1).copied().unwrap_or(Expr::int(1));
        for i in 1..5 {
            accept(cx, i, Accept::Float)?;
            check_channels(cx, i, channels)?;
        }
        if !self.training_mode && cx.outputs > 1 {
            return Err(fault!("has running statistics as results only in training mode"));
        }
        let running = Fact::tensor(cx.dtype(3)?, [channels]);
        Ok(vec![Fact::of(x.clone()), running.clone(), running])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        if self.training_mode {
            return Ok(self.training(cx.outputs, cx.tensor(0)?.rank()));
        }
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let wide = x.dtype.accumulator();
        let c = Compute::map(&out.dims, |axes| {
            let channel = axes.get(1).copied().unwrap_or(Expr::int(0));
            let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|i| {
                let dtype = cx.dtype(i).expect("checked by infer");
                Scalar::read_at(dtype, i, &[channel]).cast(wide)
            });
            let x = Scalar::read_at(x.dtype, 0, axes).cast(wide);
            let factor = scale / un(U::Sqrt, variance + num(x, f64::from(self.epsilon)));
            ((x - mean) * factor + bias).cast(out.dtype)
        });
        Ok(Meaning::one(5, Step::Compute(c)))
    }
}

impl BatchNormalization {
    fn training(&self, outputs: usize, rank: usize) -> Meaning {
        let (epsilon, momentum) = (self.epsilon, self.momentum);
        Meaning::decompose(move |b, v| {
            let [x, scale, bias, mean, variance] = [0, 1, 2, 3, 4].map(|i| v[i].expect("arity"));
            let (dtype, running) = (b.tensor(x)?.dtype, b.tensor(mean)?.dtype);
            let wide = cast_to(b, x, dtype.accumulator())?;
            let axes: Vec<i64> = (0..rank as i64).filter(|&i| i != 1).collect();
            let (now_mean, d, now_variance) = centred(b, wide, &axes)?;
            let inverse = inverse_root(b, now_variance, epsilon)?;
            let mut y = b.op(Mul {}, &[d, inverse])?;
            for (op, operand) in [(Op::from(Mul {}), scale), (Op::from(Add {}), bias)] {
                let operand = cast_to(b, operand, dtype.accumulator())?;
                let operand = per_channel(b, operand, rank)?;
                y = b.op(op, &[y, operand])?;
            }
            let mut out = vec![cast_to(b, y, dtype)?];
            for (old, now) in [(mean, now_mean), (variance, now_variance)] {
                if out.len() == outputs {
                    break;
                }
                // running = old * momentum + now * (1 - momentum)
                let now = reshape(b, now, &[-1])?;
                let old = cast_to(b, old, dtype.accumulator())?;
                let keep = b.number(dtype.accumulator(), f64::from(momentum));
                let take = b.number(dtype.accumulator(), 1.0 - f64::from(momentum));
                let (old, now) = (b.op(Mul {}, &[old, keep])?, b.op(Mul {}, &[now, take])?);
                let sum = b.op(Add {}, &[old, now])?;
                out.push(cast_to(b, sum, running)?);
            }
            Ok(out)
        })
    }
}

// ---- statistics per sample ----

impl OpDef for InstanceNormalization {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        same_dtype(cx)?;
        if x.rank() < 3 {
            return Err(fault!("operand 0 is {x}; it needs rank 3 or more"));
        }
        check_channels(cx, 1, x.dims[1])?;
        check_channels(cx, 2, x.dims[1])?;
        Ok(vec![Fact::of(x.clone())])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (epsilon, rank) = (self.epsilon, cx.tensor(0)?.rank());
        Ok(Meaning::decompose(move |b, v| {
            let [x, scale, bias] = [0, 1, 2].map(|i| v[i].expect("arity"));
            let dtype = b.tensor(x)?.dtype;
            let wide = cast_to(b, x, dtype.accumulator())?;
            let axes = trailing(2, rank)?;
            let (_, d, variance) = centred(b, wide, &axes)?;
            let inverse = inverse_root(b, variance, epsilon)?;
            let mut y = b.op(Mul {}, &[d, inverse])?;
            for (op, operand) in [(Op::from(Mul {}), scale), (Op::from(Add {}), bias)] {
                let operand = cast_to(b, operand, dtype.accumulator())?;
                let operand = per_channel(b, operand, rank)?;
                y = b.op(op, &[y, operand])?;
            }
            Ok(vec![cast_to(b, y, dtype)?])
        }))
    }
}

impl OpDef for GroupNormalization {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        same_dtype(cx)?;
        stash(self.stash_type)?;
        if x.rank() < 2 {
            return Err(fault!("operand 0 is {x}; it needs rank 2 or more"));
        }
        if self.num_groups < 1 || x.dims[1].known().is_some_and(|c| c % self.num_groups != 0) {
            return Err(fault!("num_groups {} does not divide {} channels", self.num_groups, x.dims[1]));
        }
        check_channels(cx, 1, x.dims[1])?;
        check_channels(cx, 2, x.dims[1])?;
        Ok(vec![Fact::of(x.clone())])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (epsilon, groups, stash, rank) = (self.epsilon, self.num_groups, stash(self.stash_type)?, cx.tensor(0)?.rank());
        Ok(Meaning::decompose(move |b, v| {
            let [x, scale, bias] = [0, 1, 2].map(|i| v[i].expect("arity"));
            let dtype = b.tensor(x)?.dtype;
            // By channels first, and then by groups: large tensors keep their axes, and so whatever order they lie in.
            let wide = cast_to(b, x, stash)?;
            let mean = mean_of_groups(b, wide, groups, rank)?;
            let mean = each_channel(b, mean, x, groups, rank)?;
            let d = b.op(Sub {}, &[wide, mean])?;
            let squares = b.op(Mul {}, &[d, d])?;
            let variance = mean_of_groups(b, squares, groups, rank)?;
            let inverse = inverse_root(b, variance, epsilon)?;
            let inverse = each_channel(b, inverse, x, groups, rank)?;
            let y = b.op(Mul {}, &[d, inverse])?;
            let mut y = cast_to(b, y, dtype)?;
            for (op, operand) in [(Op::from(Mul {}), scale), (Op::from(Add {}), bias)] {
                let operand = per_channel(b, operand, rank)?;
                y = b.op(op, &[y, operand])?;
            }
            Ok(vec![y])
        }))
    }
}

/// The mean of each group of channels, `[N, groups, 1]`.
fn mean_of_groups(b: &mut Builder, x: Value, groups: i64, rank: usize) -> Result<Value, Fault> {
    let of_channels = if rank > 2 { reduce_mean(b, x, &trailing(2, rank)?)? } else { x };
    let by_group = reshape(b, of_channels, &[0, groups, -1])?;
    reduce_mean(b, by_group, &[2])
}

/// A value of each group, `[N, groups, 1]`, for each channel of `x`, as it broadcasts to `x`.
fn each_channel(b: &mut Builder, v: Value, x: Value, groups: i64, rank: usize) -> Result<Value, Fault> {
    let dims = b.tensor(x)?.dims.clone();
    let size = sizes_of(b, &[dims[0], Expr::int(groups), dims[1].div(Expr::int(groups))])?;
    let all = b.op(Expand {}, &[v, size])?;
    let mut shape = vec![1; rank];
    (shape[0], shape[1]) = (0, -1);
    reshape(b, all, &shape)
}

// ---- statistics over trailing axes ----

/// Checks that operand `i` broadcasts to operand 0.
fn check_scale(cx: &Ctx, i: usize) -> Result<(), Fault> {
    let (x, s) = (cx.tensor(0)?, cx.tensor(i)?);
    if s.rank() > x.rank() {
        return Err(fault!("operand {i}, {s}, does not broadcast to {x}"));
    }
    for (&d, &need) in s.dims.iter().rev().zip(x.dims.iter().rev()).filter(|(d, _)| !d.is(1)) {
        expect_dim(&format!("a dim of operand {i}"), d, need)?;
    }
    Ok(())
}

impl OpDef for LayerNormalization {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        same_dtype(cx)?;
        let first = normal_axis(self.axis, x.rank())?;
        for i in 1..cx.inputs.len() {
            if cx.has(i) {
                check_scale(cx, i)?;
            }
        }
        let dims = x.dims.iter().enumerate().map(|(i, &d)| if i < first { d } else { Expr::int(1) });
        let statistic = Fact::tensor(stash(self.stash_type)?, dims);
        Ok(vec![Fact::of(x.clone()), statistic.clone(), statistic])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (epsilon, stash) = (self.epsilon, stash(self.stash_type)?);
        let axes = trailing(self.axis, cx.tensor(0)?.rank())?;
        Ok(Meaning::decompose(move |b, v| {
            let x = v[0].expect("arity");
            let dtype = b.tensor(x)?.dtype;
            let wide = cast_to(b, x, stash)?;
            let (mean, d, variance) = centred(b, wide, &axes)?;
            let inverse = inverse_root(b, variance, epsilon)?;
            let y = b.op(Mul {}, &[d, inverse])?;
            let mut y = cast_to(b, y, dtype)?;
            y = b.op(Mul {}, &[y, v[1].expect("arity")])?;
            if let Some(bias) = v.get(2).copied().flatten() {
                y = b.op(Add {}, &[y, bias])?;
            }
            Ok(vec![y, mean, inverse])
        }))
    }
}

impl OpDef for RMSNormalization {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        accept(cx, 1, Accept::Float)?;
        normal_axis(self.axis, x.rank())?;
        stash(self.stash_type)?;
        check_scale(cx, 1)?;
        Ok(vec![Fact::tensor(cx.dtype(1)?, x.dims.clone())])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (epsilon, stash) = (self.epsilon, stash(self.stash_type)?);
        let axes = trailing(self.axis, cx.tensor(0)?.rank())?;
        Ok(Meaning::decompose(move |b, v| {
            let [x, scale] = [0, 1].map(|i| v[i].expect("arity"));
            let wide = cast_to(b, x, stash)?;
            let squares = b.op(Mul {}, &[wide, wide])?;
            let mean = reduce_mean(b, squares, &axes)?;
            let epsilon = b.number(stash, f64::from(epsilon));
            let sum = b.op(Add {}, &[mean, epsilon])?;
            let root = b.op(Sqrt {}, &[sum])?;
            let y = b.op(Div {}, &[wide, root])?;
            let dtype = b.tensor(scale)?.dtype;
            let y = cast_to(b, y, dtype)?;
            Ok(vec![b.op(Mul {}, &[y, scale])?])
        }))
    }
}

impl OpDef for MeanVarianceNormalization {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        self.axes.iter().try_for_each(|&a| normal_axis(a, x.rank()).map(drop))?;
        Ok(vec![Fact::of(x.clone())])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let axes = self.axes.clone();
        Ok(Meaning::decompose(move |b, v| {
            let x = v[0].expect("arity");
            let dtype = b.tensor(x)?.dtype;
            let wide = cast_to(b, x, dtype.accumulator())?;
            let (_, d, variance) = centred(b, wide, &axes)?;
            let root = b.op(Sqrt {}, &[variance])?;
            // ONNX's function body adds this to the deviation.
            let epsilon = b.number(dtype.accumulator(), 1e-9);
            let root = b.op(Add {}, &[root, epsilon])?;
            let y = b.op(Div {}, &[d, root])?;
            Ok(vec![cast_to(b, y, dtype)?])
        }))
    }
}

// ---- norms ----

impl OpDef for LpNormalization {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        normal_axis(self.axis, x.rank())?;
        if !matches!(self.p, 1 | 2) {
            return Err(fault!("attribute 'p' is {}; 1 or 2 is needed", self.p));
        }
        Ok(vec![Fact::of(x.clone())])
    }
    /// Zero where the norm is zero.
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let x = cx.tensor(0)?;
        let (axis, wide) = (normal_axis(self.axis, x.rank())?, x.dtype.accumulator());
        let dims: Vec<Expr> = x.dims.iter().enumerate().map(|(i, &d)| if i == axis { Expr::int(1) } else { d }).collect();
        let put =
            |o: &[Expr], at: Expr| -> Vec<Expr> { o.iter().enumerate().map(|(i, &e)| if i == axis { at } else { e }).collect() };
        let norm = Compute::reduce(
            &dims,
            &[x.dims[axis]],
            Reducer::Sum,
            |o, r| {
                let v = Scalar::read_at(x.dtype, 0, &put(o, r[0])).cast(wide);
                if self.p == 1 { un(U::Abs, v) } else { v * v }
            },
            |_, acc| if self.p == 1 { acc } else { un(U::Sqrt, acc) },
        );
        let y = Compute::map(&x.dims, |o| {
            let norm = Scalar::read_at(wide, 1, &put(o, Expr::int(0)));
            let v = Scalar::read_at(x.dtype, 0, o).cast(wide);
            Scalar::select(norm.eq_to(num(norm, 0.0)), num(norm, 0.0), v / norm).cast(x.dtype)
        });
        Ok(Meaning::Steps { steps: vec![Step::Compute(norm), Step::Compute(y)], outputs: vec![2] })
    }
}

impl OpDef for LRN {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        if x.rank() < 2 || self.size < 1 {
            return Err(fault!("operand 0 is {x} and size is {}; rank 2 or more and a positive size are needed", self.size));
        }
        Ok(vec![Fact::of(x.clone())])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let x = cx.tensor(0)?;
        let wide = x.dtype.accumulator();
        let c = Compute::reduce(
            &x.dims,
            &[Expr::int(self.size)],
            Reducer::Sum,
            |o, r| {
                let channel = Scalar::index(o[1] + r[0] - (self.size - 1) / 2);
                let at = o.iter().enumerate().map(|(i, &e)| if i == 1 { channel } else { Scalar::index(e) });
                let v = Scalar::read_if(0, at, channel.within(0, x.dims[1]), Scalar::number(x.dtype, 0.0)).cast(wide);
                v * v
            },
            |o, acc| {
                let factor = f64::from(self.alpha) / self.size as f64;
                let base = num(acc, f64::from(self.bias)) + num(acc, factor) * acc;
                (Scalar::read_at(x.dtype, 0, o).cast(wide) / bin(B::Pow, base, num(acc, f64::from(self.beta)))).cast(x.dtype)
            },
        );
        Ok(Meaning::one(1, Step::Compute(c)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::testing::*;
    use super::*;

    #[test]
    fn values() {
        let x = f32s(&[1, 2, 2], &[1.0, 3.0, 2.0, 6.0]);
        let [one, zero] = [1.0, 0.0].map(|v| f32s(&[2], &[v, v]));
        let unit = [-1.0, 1.0, -1.0, 1.0];
        let batch = BatchNormalization { epsilon: 0.0, momentum: 0.9, training_mode: false };
        let statistics = [f32s(&[2], &[2.0, 4.0]), f32s(&[2], &[1.0, 4.0])];
        check(batch, &[x.clone(), one.clone(), zero.clone(), statistics[0].clone(), statistics[1].clone()], &[1, 2, 2], &unit);
        check(InstanceNormalization { epsilon: 0.0 }, &[x.clone(), one.clone(), zero.clone()], &[1, 2, 2], &unit);
        let layer = LayerNormalization { axis: -1, epsilon: 0.0, stash_type: 1 };
        check(layer, &[x.clone(), one.clone(), f32s(&[2], &[1.0, 1.0])], &[1, 2, 2], &[0.0, 2.0, 0.0, 2.0]);
        let group = GroupNormalization { epsilon: 0.0, num_groups: 2, stash_type: 1 };
        check(group, &[x.clone(), one.clone(), zero], &[1, 2, 2], &unit);
        let root = RMSNormalization { axis: -1, epsilon: 0.0, stash_type: 1 };
        check(root, &[f32s(&[2], &[3.0, 4.0]), one], &[2], &[0.8485281, 1.1313708]);
        check(LpNormalization { axis: -1, p: 2 }, &[f32s(&[2, 2], &[3.0, 4.0, 0.0, 0.0])], &[2, 2], &[0.6, 0.8, 0.0, 0.0]);
        let lrn = LRN { alpha: 2.0, beta: 1.0, bias: 1.0, size: 2 };
        check(lrn, &[f32s(&[1, 2, 1], &[1.0, 2.0])], &[1, 2, 1], &[1.0 / 6.0, 2.0 / 5.0]);
    }
}
