//! Windows and Fourier transforms.
//!
//! A transform is a contraction with a table of one turn of sine and cosine, read at `(k n) mod length`.

use super::common::*;
use super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Scalar, Unary as U};

gaps! {}

// ---- windows ----

/// The single element of the integer operand `i`.
fn scalar_int(cx: &Ctx, i: usize) -> Result<Expr, Fault> {
    match cx.ints(i)?[..] {
        [e] => Ok(e),
        _ => Err(fault!("operand {i} is {}; a scalar is needed", cx.tensor(i)?)),
    }
}

/// `coefficients[0] + coefficients[1] cos(t) + coefficients[2] cos(2 t)` over one period.
fn cosine_window(out: &TensorType, periodic: i64, coefficients: &[f64]) -> Meaning {
    let c = Compute::map(&out.dims, |o| {
        let f64 = |v: f64| Scalar::float(DType::F64, v);
        let period = Scalar::index(if periodic != 0 { out.dims[0] } else { out.dims[0] - 1 }).cast(DType::F64);
        let t = Scalar::index(o[0]).cast(DType::F64) * f64(std::f64::consts::TAU) / period;
        let term = |(k, &c): (usize, &f64)| if k == 0 { f64(c) } else { f64(c) * un(U::Cos, f64(k as f64) * t) };
        coefficients.iter().enumerate().map(term).reduce(|a, b| a + b).expect("a coefficient").cast(out.dtype)
    });
    Meaning::one(1, Step::Compute(c))
}

macro_rules! windows {
    ($($name:ident $coefficients:expr;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                let size = if is_data(cx, 0) { new_dim(stringify!($name), 0) } else { scalar_int(cx, 0)? };
                Ok(vec![Fact::tensor(dtype_attr("output_datatype", self.output_datatype)?, [size])])
            }
            fn meaning(&self, _: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
                Ok(cosine_window(Ctx::out(outs, 0)?, self.periodic, &$coefficients))
            }
        }
    )* };
}

windows! {
    BlackmanWindow [0.42, -0.5, 0.08];
    HammingWindow [25.0 / 46.0, -21.0 / 46.0];
    HannWindow [0.5, -0.5];
}

// ---- Fourier transforms ----

/// The table `[length, from, to]`: what part `from` (real, imaginary) of an element adds to part `to` of the result at the
/// given fraction of a turn.
fn turn(length: Expr, inverse: bool, dtype: DType) -> Compute {
    Compute::map(&[length, Expr::int(2), Expr::int(2)], |o| {
        let f64 = |e: Expr| Scalar::index(e).cast(DType::F64);
        let angle = f64(o[0]) * Scalar::float(DType::F64, std::f64::consts::TAU) / f64(length);
        // Forward e^-it: real to imaginary is -sin, imaginary to real is sin.
        let sign = if inverse { -1.0 } else { 1.0 };
        let sine = un(U::Sin, angle) * Scalar::float(DType::F64, sign);
        let (from, to) = (Scalar::index(o[1]), Scalar::index(o[2]));
        let cross = Scalar::select(from.lt(to), -sine, sine);
        Scalar::select(from.eq_to(to), un(U::Cos, angle), cross).cast(dtype)
    })
}

struct Transform {
    axis: usize,
    length: Expr,
}

impl DFT {
    fn plan(&self, cx: &Ctx) -> Result<Transform, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        let rank = x.rank();
        let parts = x.dims.last().copied().unwrap_or(Expr::int(0));
        if rank < 2 || parts.known().is_some_and(|p| p != 1 && p != 2) {
            return Err(fault!("operand 0 is {x}; the last dim must be 1 (real) or 2 (complex)"));
        }
        let axis = if cx.has(2) { cx.known_ints(2)?.first().copied().unwrap_or(-2) } else { -2 };
        let axis = normal_axis(axis, rank)?;
        if axis == rank - 1 {
            return Err(fault!("the last axis holds real and imaginary parts, it cannot be transformed"));
        }
        let length = if cx.has(1) {
            scalar_int(cx, 1)?
        } else if self.inverse != 0 && self.onesided != 0 {
            (x.dims[axis] - 1) * 2
        } else {
            x.dims[axis]
        };
        Ok(Transform { axis, length })
    }
}

impl OpDef for DFT {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        if is_data(cx, 1) || is_data(cx, 2) {
            let parts = Expr::int(if self.onesided != 0 && self.inverse != 0 { 1 } else { 2 });
            let dims = (1..x.rank()).map(|i| new_dim("DFT", i - 1)).chain([parts]);
            return Ok(vec![Fact::tensor(x.dtype, dims)]);
        }
        let t = self.plan(cx)?;
        let mut dims = x.dims.clone();
        dims[t.axis] = if self.onesided != 0 && self.inverse == 0 { t.length.div(Expr::int(2)) + 1 } else { t.length };
        dims[x.rank() - 1] = Expr::int(if self.onesided != 0 && self.inverse != 0 { 1 } else { 2 });
        Ok(vec![Fact::tensor(x.dtype, dims)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (t, x, out) = (self.plan(cx)?, cx.tensor(0)?, Ctx::out(outs, 0)?);
        let (wide, n) = (x.dtype.accumulator(), cx.inputs.len());
        let last = x.rank() - 1;
        let half = self.onesided != 0 && self.inverse != 0;
        // A one-sided spectrum stands for its mirror image too.
        let extent = if half { t.length.div(Expr::int(2)) + 1 } else { t.length };
        let body = |o: &[Expr], r: &[Expr]| {
            let mut at = o.to_vec();
            at[t.axis] = r[0];
            at[last] = r[1];
            let inside =
                if extent == x.dims[t.axis] { Scalar::always() } else { Scalar::index(r[0]).lt(Scalar::index(x.dims[t.axis])) };
            let v = Scalar::read_if(0, at.into_iter().map(Scalar::index), inside, Scalar::number(x.dtype, 0.0)).cast(wide);
            let turned = v * Scalar::read_at(wide, n, &[(r[0] * o[t.axis]).rem(t.length), r[1], o[last]]);
            if !half {
                return turned;
            }
            let k = Scalar::index(r[0]);
            let edge = k.eq_to(Scalar::index(0));
            let middle = Scalar::index(r[0] * 2).eq_to(Scalar::index(t.length));
            Scalar::select(edge, turned, Scalar::select(middle, turned, turned * num(turned, 2.0)))
        };
        let finish = |_: &[Expr], acc: Scalar| {
            let scaled = if self.inverse != 0 { acc / Scalar::index(t.length).cast(wide) } else { acc };
            scaled.cast(x.dtype)
        };
        let sum = Compute::reduce(&out.dims, &[extent, x.dims[last]], Reducer::Sum, body, finish);
        let steps = vec![Step::Compute(turn(t.length, self.inverse != 0, wide)), Step::Compute(sum)];
        Ok(Meaning::Steps { steps, outputs: vec![n as u32 + 1] })
    }
}

impl STFT {
    /// Step between frames and their length.
    fn frames(&self, cx: &Ctx) -> Result<(Expr, Expr), Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        expect_rank(cx, 0, 3)?;
        let step = scalar_int(cx, 1)?;
        if step.known().is_some_and(|s| s < 1) {
            return Err(fault!("frame_step is {step}"));
        }
        if cx.has(2) {
            expect_rank(cx, 2, 1)?;
        }
        let length = match (cx.has(3), cx.has(2)) {
            (true, _) => scalar_int(cx, 3)?,
            (false, true) => cx.dims(2)?[0],
            (false, false) => x.dims[1],
        };
        if cx.has(2) {
            expect_dim("the length of the window", cx.dims(2)?[0], length)?;
        }
        Ok((step, length))
    }
}

impl OpDef for STFT {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        if is_data(cx, 1) || is_data(cx, 3) {
            expect_rank(cx, 0, 3)?;
            let dims = [x.dims[0], new_dim("STFT", 0), new_dim("STFT", 1), Expr::int(2)];
            return Ok(vec![Fact::tensor(x.dtype, dims)]);
        }
        let (step, length) = self.frames(cx)?;
        let bins = if self.onesided != 0 { length.div(Expr::int(2)) + 1 } else { length };
        let frames = (x.dims[1] - length).div(step) + 1;
        Ok(vec![Fact::tensor(x.dtype, [x.dims[0], frames, bins, Expr::int(2)])])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (step, length) = self.frames(cx)?;
        let (x, out, n) = (cx.tensor(0)?, Ctx::out(outs, 0)?, cx.inputs.len());
        let wide = x.dtype.accumulator();
        let parts = x.dims[2];
        let framed = Compute::map(&[x.dims[0], out.dims[1], length, parts], |o| {
            let v = Scalar::read_at(x.dtype, 0, &[o[0], o[1] * step + o[2], o[3]]).cast(wide);
            match cx.dtype(2) {
                Ok(d) => v * Scalar::read_at(d, 2, &[o[2]]).cast(wide),
                Err(_) => v,
            }
        });
        let sum = Compute::reduce(
            &out.dims,
            &[length, parts],
            Reducer::Sum,
            |o, r| {
                let v = Scalar::read_at(wide, n + 1, &[o[0], o[1], r[0], r[1]]);
                v * Scalar::read_at(wide, n, &[(r[0] * o[2]).rem(length), r[1], o[3]])
            },
            |_, acc| acc.cast(x.dtype),
        );
        let steps = [turn(length, false, wide), framed, sum].map(Step::Compute).to_vec();
        Ok(Meaning::Steps { steps, outputs: vec![n as u32 + 2] })
    }
}

// ---- MelWeightMatrix ----

impl MelWeightMatrix {
    /// Number of bands, DFT length, sample rate, and edges in hertz.
    fn parameters(&self, cx: &Ctx) -> Result<(usize, usize, f64, f64, f64), Fault> {
        let number = |i: usize| {
            let t = cx.known(i).filter(|t| t.len() == 1);
            t.map(|t| t.float(0)).ok_or_else(|| fault!("operand {i} must be a scalar known at compile time"))
        };
        let (bands, length) = (number(0)?, number(1)?);
        if bands < 1.0 || length < 1.0 || number(2)? <= 0.0 {
            return Err(fault!("num_mel_bins, dft_length and sample_rate must be positive"));
        }
        Ok((bands as usize, length as usize, number(2)?, number(3)?, number(4)?))
    }
}

impl OpDef for MelWeightMatrix {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dtype = dtype_attr("output_datatype", self.output_datatype)?;
        if (0..5).any(|i| cx.known(i).is_none()) {
            return Ok(vec![Fact::tensor(dtype, [0, 1].map(|i| new_dim("MelWeightMatrix", i)))]);
        }
        let (bands, length, ..) = self.parameters(cx)?;
        Ok(vec![Fact::tensor(dtype, [Expr::from(length / 2 + 1), Expr::from(bands)])])
    }
    /// Triangles between neighbouring edges, which lie evenly on the mel scale; made at compile time.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (bands, length, rate, low, high) = self.parameters(cx)?;
        let dtype = Ctx::out(outs, 0)?.dtype;
        let mel = |hertz: f64| 2595.0 * libm::log10(1.0 + hertz / 700.0);
        let step = (mel(high) - mel(low)) / (bands + 2) as f64;
        let edge = |i: usize| {
            let hertz = 700.0 * (libm::pow(10.0, (i as f64 * step + mel(low)) / 2595.0) - 1.0);
            ((length + 1) as f64 * hertz / rate).floor() as i64
        };
        let bins = length / 2 + 1;
        let mut matrix = vec![0f64; bins * bands];
        for band in 0..bands {
            let [left, centre, right] = [band, band + 1, band + 2].map(edge);
            let mut put = |bin: i64, v: f64| {
                if (0..bins as i64).contains(&bin) {
                    matrix[bin as usize * bands + band] = v;
                }
            };
            if left == centre {
                put(centre, 1.0);
            } else {
                (left..=centre).for_each(|j| put(j, (j - left) as f64 / (centre - left) as f64));
            }
            (centre..right).for_each(|j| put(j, (right - j) as f64 / (right - centre) as f64));
        }
        let values = matrix.iter().map(|v| crate::eval::cast(DType::F64, dtype, v.to_bits()));
        let table = Tensor::from_values(dtype, [bins, bands], values);
        Ok(Meaning::decompose(move |b, _| {
            let table = b.constant(table.clone());
            Ok(vec![b.op(Identity {}, &[table])?])
        }))
    }
}
