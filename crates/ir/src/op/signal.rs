//! Windows and Fourier transforms.
//!
//! A transform is a contraction with a table of one turn of sine and cosine, read at `(k n) mod length`.

use super::axes::Named;
use super::common::*;
use super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Binary as B, Scalar, Unary as U};

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
    /// For each axis 1 if it is transformed, else 0.
    along: Vec<Expr>,
    length: Expr,
}

impl Transform {
    /// What `of` is of the axis that is transformed.
    fn pick(&self, of: &[Expr]) -> Expr {
        self.along.iter().zip(of).fold(Expr::int(0), |sum, (&a, &e)| sum + a * e)
    }
    /// `of`, with `value` in the place of that axis.
    fn put(&self, of: &[Expr], value: Expr) -> Vec<Expr> {
        self.along.iter().zip(of).map(|(&a, &e)| a * value + (Expr::int(1) - a) * e).collect()
    }
}

impl DFT {
    fn plan(&self, cx: &Ctx) -> Result<Transform, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        let rank = x.rank();
        let parts = x.dims.last().copied().unwrap_or(Expr::int(0));
        if rank < 2 || parts.known().is_some_and(|p| p != 1 && p != 2) {
            return Err(fault!("operand 0 is {x}; the last dim must be 1 (real) or 2 (complex)"));
        }
        let axis = if cx.has(2) { scalar_int(cx, 2)? } else { Expr::int(-2) };
        let axes = Named::new(&[axis], rank)?;
        let along: Vec<Expr> = (0..rank).map(|a| axes.has(a)).collect();
        let last = "the last axis holds real and imaginary parts, it cannot be transformed";
        if along[rank - 1].is(1) {
            return Err(fault!("{last}"));
        }
        sizes::must_equal(along[rank - 1], 0.into(), &|| last.to_owned());
        let mut t = Transform { along, length: Expr::int(0) };
        let extent = t.pick(&x.dims);
        t.length = if cx.has(1) {
            scalar_int(cx, 1)?
        } else if self.inverse != 0 && self.onesided != 0 {
            (extent - 1) * 2
        } else {
            extent
        };
        if t.length.known().is_some_and(|n| n < 1) {
            return Err(fault!("the length of the transform is {}, it must be positive", t.length));
        }
        if t.length.has_datum() {
            let text = || "the length of the transform must be positive".to_owned();
            sizes::must_equal(t.length.max(0.into()).min(1.into()), 1.into(), &text);
        }
        Ok(t)
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
        let extent = if self.onesided != 0 && self.inverse == 0 { t.length.div(Expr::int(2)) + 1 } else { t.length };
        let mut dims = t.put(&x.dims, extent);
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
        let (there, parts) = (t.pick(&x.dims), x.dims[last]);
        let body = |o: &[Expr], r: &[Expr]| {
            let mut at = t.put(o, r[0]);
            at[last] = r[1];
            let inside = if extent == there { Scalar::always() } else { Scalar::index(r[0]).lt(Scalar::index(there)) };
            let v = Scalar::read_if(0, at.into_iter().map(Scalar::index), inside, Scalar::number(x.dtype, 0.0)).cast(wide);
            let turned = v * Scalar::read_at(wide, n, &[(r[0] * t.pick(o)).rem(t.length), r[1], o[last]]);
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
        let sum = Compute::reduce(&out.dims, &[extent, parts], Reducer::Sum, body, finish);
        let steps = vec![Step::Compute(turn(t.length, self.inverse != 0, wide)), Step::Compute(sum)];
        Ok(Meaning::Steps { steps, outputs: vec![n as u32 + 1] })
    }
}

impl STFT {
    /// The signal, and the parts of its elements. ONNX has an axis for them; exporters leave it out where the signal is real, and
    /// ONNX Runtime takes that.
    fn signal<'a>(&self, cx: &Ctx<'a>) -> Result<(&'a TensorType, Expr), Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        match x.dims[..] {
            [_, _] => Ok((x, Expr::int(1))),
            [_, _, parts] if parts.known().is_none_or(|p| p == 1 || p == 2) => Ok((x, parts)),
            _ => Err(fault!("operand 0 is {x}; it must be [batch, length, 1] (real) or [batch, length, 2] (complex)")),
        }
    }
    /// Step between frames and their length.
    fn frames(&self, cx: &Ctx) -> Result<(Expr, Expr), Fault> {
        let (x, _) = self.signal(cx)?;
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
        let (x, _) = self.signal(cx)?;
        if is_data(cx, 1) || is_data(cx, 3) {
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
        let ((x, parts), out, n) = (self.signal(cx)?, Ctx::out(outs, 0)?, cx.inputs.len());
        let wide = x.dtype.accumulator();
        let framed = Compute::map(&[x.dims[0], out.dims[1], length, parts], |o| {
            let v = Scalar::read_at(x.dtype, 0, &[o[0], o[1] * step + o[2], o[3]][..x.rank()]).cast(wide);
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
    /// Number of bands and DFT length.
    fn sizes(&self, cx: &Ctx) -> Result<(Expr, Expr), Fault> {
        let positive = |i: usize, what: &str| {
            let e = scalar_int(cx, i)?;
            match e.known() {
                Some(n) if n < 1 => Err(fault!("{what} is {n}, it must be positive")),
                Some(_) => Ok(e),
                None => {
                    sizes::must_equal(e.max(0.into()).min(1.into()), 1.into(), &|| format!("{what} must be positive"));
                    Ok(e)
                }
            }
        };
        positive(2, "sample_rate")?;
        Ok((positive(0, "num_mel_bins")?, positive(1, "dft_length")?))
    }
}

impl OpDef for MelWeightMatrix {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dtype = dtype_attr("output_datatype", self.output_datatype)?;
        for i in 0..5 {
            accept(cx, i, if i < 3 { Accept::Int } else { Accept::Float })?;
        }
        if (0..3).any(|i| is_data(cx, i)) {
            return Ok(vec![Fact::tensor(dtype, [0, 1].map(|i| new_dim("MelWeightMatrix", i)))]);
        }
        let (bands, length) = self.sizes(cx)?;
        Ok(vec![Fact::tensor(dtype, [length.div(2.into()) + 1, bands])])
    }
    /// Triangles between neighbouring edges, which lie evenly on the mel scale.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (bands, length) = self.sizes(cx)?;
        let (out, n) = (Ctx::out(outs, 0)?, cx.inputs.len());
        let number = |v: f64| Scalar::float(DType::F64, v);
        let wide = |e: Expr| Scalar::index(e).cast(DType::F64);
        let operand = |i: usize| cx.tensor(i).map(|t| super::shape::read_scalar(t, i).cast(DType::F64));
        let (rate, low, high) = (operand(2)?, operand(3)?, operand(4)?);
        let mel = |hertz: Scalar| number(2595.0 / std::f64::consts::LN_10) * un(U::Log, number(1.0) + hertz / number(700.0));
        let step = (mel(high) - mel(low)) / wide(bands + 2);
        // The bin of each edge.
        let edges = Compute::map(&[bands + 2], |o| {
            let power = bin(B::Pow, number(10.0), (wide(o[0]) * step + mel(low)) / number(2595.0));
            un(U::Floor, wide(length + 1) * (number(700.0) * (power - number(1.0))) / rate).cast(DType::I64)
        });
        let matrix = Compute::map(&out.dims, |o| {
            let [left, centre, right] = [0, 1, 2].map(|k| Scalar::read_at(DType::I64, n, &[o[1] + k]));
            let j = Scalar::index(o[0]);
            let share = |a: Scalar, b: Scalar| a.cast(DType::F64) / b.cast(DType::F64);
            let rise = Scalar::select(left.eq_to(centre), number(1.0), share(j - left, centre - left));
            let rise = Scalar::select(left.le(j).and(j.le(centre)), rise, number(0.0));
            let falls = centre.le(j).and(j.lt(right));
            Scalar::select(falls, share(right - j, right - centre), rise).cast(out.dtype)
        });
        let steps = [edges, matrix].map(Step::Compute).to_vec();
        Ok(Meaning::Steps { steps, outputs: vec![n as u32 + 1] })
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::testing::*;
    use super::*;

    #[test]
    fn a_signal_without_an_axis_of_parts_is_real() {
        // Frames 1 2 3 4 and 3 4 5 6: sums, and what goes round once and twice.
        let ones = f32s(&[4], &[1.0; 4]);
        let want = [10.0, 0.0, -2.0, 2.0, -2.0, 0.0, 18.0, 0.0, -2.0, 2.0, -2.0, 0.0];
        for dims in [&[1, 6][..], &[1, 6, 1]] {
            let signal = f32s(dims, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            check(STFT { onesided: 1 }, &[signal, Tensor::from_vec([], vec![2i64]), ones.clone()], &[1, 2, 3, 2], &want);
        }
    }
}
