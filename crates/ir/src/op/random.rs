//! Random numbers, and Dropout.
//!
//! The generator is counter-based: the number at linear position `i` of stream `s` is a hash of (seed, s, i), so results do
//! not depend on threads or schedules and the same model gives the same numbers every run. ONNX leaves the generator free; a
//! node without a seed has seed 0.

use super::common::*;
use super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Binary as B, Scalar, Unary as U};

gaps! {}

/// 32 hashed bits for (seed, stream, index): two rounds of multiply and xor-shift (constants of the "lowbias32" hash).
fn bits(seed: u32, stream: u32, index: Expr) -> Scalar {
    let int = |v: u32| Scalar::int(DType::U32, i64::from(v));
    let fold = |x: Scalar, by: i64| bin(B::Xor, x, bin(B::Shr, x, Scalar::int(DType::U32, by)));
    let mix = |x: Scalar| {
        let x = fold(x, 16) * int(0x7feb_352d);
        fold(fold(x, 15) * int(0x846c_a68b), 16)
    };
    let key = seed.wrapping_mul(0x9e37_79b9).wrapping_add(stream.wrapping_mul(0x85eb_ca6b)).wrapping_add(0x1656_67b1);
    let low = Scalar::index(index).cast(DType::U32);
    let high = bin(B::Shr, Scalar::index(index), Scalar::index(32)).cast(DType::U32);
    mix(mix(low + int(key)) + high * int(0xc2b2_ae35) + int(key))
}

/// Uniform in [0, 1): 24 bits, as f32.
fn uniform(seed: u32, stream: u32, index: Expr) -> Scalar {
    let mantissa = bin(B::Shr, bits(seed, stream, index), Scalar::int(DType::U32, 8));
    mantissa.cast(DType::F32) * Scalar::float(DType::F32, 1.0 / f64::from(1u32 << 24))
}

/// Normal with mean 0 and deviation 1 (Box and Muller).
fn normal(seed: u32, index: Expr) -> Scalar {
    let (u, v) = (uniform(seed, 0, index), uniform(seed, 1, index));
    let radius = un(U::Sqrt, num(u, -2.0) * un(U::Log, num(u, 1.0) - u));
    radius * un(U::Cos, v * num(v, std::f64::consts::TAU))
}

fn seed(attribute: Option<f32>) -> u32 {
    attribute.map_or(0, f32::to_bits)
}

/// A step that makes each element from its linear index.
fn fill(inputs: usize, out: &TensorType, f: impl Fn(Expr) -> Scalar) -> Meaning {
    let c = Compute::map(&out.dims, |o| f(Expr::linearise(o, &out.dims)).cast(out.dtype));
    Meaning::one(inputs, Step::Compute(c))
}

fn float_dtype(number: i64) -> Result<DType, Fault> {
    match dtype_attr("dtype", number)? {
        d if d.is_float() => Ok(d),
        d => Err(fault!("attribute 'dtype' is {d}, which is no float")),
    }
}

/// The dtype asked for, or that of operand 0.
fn dtype_or_like(cx: &Ctx, number: Option<i64>) -> Result<DType, Fault> {
    number.map_or_else(|| cx.dtype(0), |n| dtype_attr("dtype", n))
}

fn given_shape(shape: &[i64]) -> Result<Vec<Expr>, Fault> {
    match shape.iter().find(|&&d| d < 0) {
        Some(d) => Err(fault!("attribute 'shape' has the entry {d}")),
        None => Ok(shape.iter().map(|&d| Expr::int(d)).collect()),
    }
}

/// The four generators without operands of their own: value of element `index`.
macro_rules! generators {
    ($($name:ident |$op:ident, $cx:ident| $fact:expr, |$index:ident| $value:expr;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, $cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                let $op = self;
                let _ = $cx;
                Ok(vec![$fact])
            }
            fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
                let $op = self;
                Ok(fill(cx.inputs.len(), Ctx::out(outs, 0)?, |$index| $value))
            }
        }
    )* };
}

/// `low + (high - low) u`.
fn between(low: f32, high: f32, u: Scalar) -> Scalar {
    num(u, f64::from(low)) + num(u, f64::from(high) - f64::from(low)) * u
}

/// `mean + scale z`.
fn around(mean: f32, scale: f32, z: Scalar) -> Scalar {
    num(z, f64::from(mean)) + num(z, f64::from(scale)) * z
}

generators! {
    RandomNormal |op, cx| Fact::tensor(float_dtype(op.dtype)?, given_shape(&op.shape)?),
        |i| around(op.mean, op.scale, normal(seed(op.seed), i));
    RandomNormalLike |op, cx| Fact::tensor(dtype_or_like(cx, op.dtype)?, cx.dims(0)?.to_vec()),
        |i| around(op.mean, op.scale, normal(seed(op.seed), i));
    RandomUniform |op, cx| Fact::tensor(float_dtype(op.dtype)?, given_shape(&op.shape)?),
        |i| between(op.low, op.high, uniform(seed(op.seed), 0, i));
    RandomUniformLike |op, cx| Fact::tensor(dtype_or_like(cx, op.dtype)?, cx.dims(0)?.to_vec()),
        |i| between(op.low, op.high, uniform(seed(op.seed), 0, i));
}

impl OpDef for Bernoulli {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        Ok(vec![Fact::tensor(dtype_or_like(cx, self.dtype)?, x.dims.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let c = Compute::map(&out.dims, |o| {
            let p = Scalar::read_at(x.dtype, 0, o).cast(DType::F32);
            uniform(seed(self.seed), 0, Expr::linearise(o, &out.dims)).lt(p).cast(out.dtype)
        });
        Ok(Meaning::one(1, Step::Compute(c)))
    }
}

impl OpDef for Multinomial {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        expect_rank(cx, 0, 2)?;
        let dtype = dtype_attr("dtype", self.dtype)?;
        if !dtype.is_int() || self.sample_size < 1 {
            return Err(fault!("dtype {dtype} and sample_size {} must be an integer dtype and positive", self.sample_size));
        }
        Ok(vec![Fact::tensor(dtype, [x.dims[0], Expr::int(self.sample_size)])])
    }
    /// The class with the largest log-probability plus Gumbel noise is a sample of the distribution.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let c = Compute::reduce(
            &out.dims,
            &[x.dims[1]],
            Reducer::ArgMax { last: false },
            |o, class| {
                let index = Expr::linearise(&[o[0], o[1], class[0]], &[x.dims[0], out.dims[1], x.dims[1]]);
                let u = uniform(seed(self.seed), 0, index);
                // Away from 0, where the logarithm is infinite.
                let u = u + num(u, 0.5 / f64::from(1u32 << 24));
                Scalar::read_at(x.dtype, 0, &[o[0], class[0]]).cast(DType::F32) - un(U::Log, -un(U::Log, u))
            },
            |_, class| class.cast(out.dtype),
        );
        Ok(Meaning::one(1, Step::Compute(c)))
    }
}

// ---- Dropout ----

impl OpDef for Dropout {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        if cx.has(1) {
            accept(cx, 1, Accept::Float)?;
        }
        if cx.has(2) {
            accept(cx, 2, Accept::Bool)?;
        }
        Ok(vec![Fact::of(x.clone()), Fact::tensor(DType::Bool, x.dims.clone())])
    }
    /// The operand itself, and a mask of all true, unless `training_mode` says otherwise.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let n = cx.inputs.len();
        let training = cx.has(2).then(|| cx.known(2).map(|t| t.value(0) != 0));
        let scalar = |i: usize| -> Result<Scalar, Fault> {
            let t = cx.tensor(i)?;
            Ok(Scalar::read_at(t.dtype, i, &vec![Expr::int(0); t.rank()]))
        };
        if training.unwrap_or(Some(false)) == Some(false) {
            if cx.outputs < 2 {
                return Ok(Meaning::Alias(0));
            }
            let mask = Compute::map(&out.dims, |_| Scalar::always());
            return Ok(Meaning::Steps { steps: vec![Step::Compute(mask)], outputs: vec![0, n as u32] });
        }
        let ratio = if cx.has(1) { scalar(1)?.cast(DType::F32) } else { Scalar::float(DType::F32, 0.5) };
        let on = if training == Some(Some(true)) { Scalar::always() } else { scalar(2)? };
        let seed = self.seed.map_or(0, |s| (s ^ (s >> 32)) as u32);
        let mask = Compute::map(&out.dims, |o| {
            let kept = ratio.le(uniform(seed, 0, Expr::linearise(o, &out.dims)));
            Scalar::select(on, kept, Scalar::always())
        });
        let wide = x.dtype.accumulator();
        let y = Compute::map(&out.dims, |o| {
            let x = Scalar::read_at(x.dtype, 0, o).cast(wide);
            let scale = num(x, 1.0) / (num(x, 1.0) - ratio.cast(wide));
            let kept = Scalar::read_at(DType::Bool, n, o);
            let dropped = Scalar::select(kept, x * scale, num(x, 0.0));
            Scalar::select(on, dropped, x).cast(out.dtype)
        });
        let outputs = [n as u32 + 1, n as u32][..cx.outputs.max(1)].to_vec();
        Ok(Meaning::Steps { steps: vec![Step::Compute(mask), Step::Compute(y)], outputs })
    }
}
