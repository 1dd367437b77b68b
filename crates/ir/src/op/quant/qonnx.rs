//! QONNX: floats that stand for integers of any bit width.

use super::*;

/// `v` rounded as QONNX's attribute `rounding_mode` says.
fn round(v: Scalar, mode: &str) -> Result<Scalar, Fault> {
    let un = Scalar::unary;
    let by_sign = |magnitude: Scalar| {
        let negative = v.lt(Scalar::float(v.dtype(), 0.0));
        Scalar::select(negative, -magnitude, magnitude)
    };
    let (size, half) = (un(Unary::Abs, v), Scalar::float(v.dtype(), 0.5));
    Ok(match mode.to_uppercase().as_str() {
        "ROUND" | "HALF_EVEN" => un(Unary::Round, v),
        "CEIL" => un(Unary::Ceil, v),
        "FLOOR" => un(Unary::Floor, v),
        "UP" => by_sign(un(Unary::Ceil, size)),
        "DOWN" | "ROUND_TO_ZERO" => un(Unary::Trunc, v),
        "HALF_UP" => by_sign(un(Unary::Floor, size + half)),
        "HALF_DOWN" => by_sign(un(Unary::Ceil, size - half)),
        mode => return Err(fault!("rounding_mode '{mode}' is not known")),
    })
}

/// Least and largest integer of `bits` bits.
fn limits(bits: Scalar, signed: i64, narrow: i64) -> [Scalar; 2] {
    let f = |v: f64| Scalar::float(bits.dtype(), v);
    let power = |e: Scalar| Scalar::binary(Binary::Pow, f(2.0), e);
    let narrow = f(if narrow != 0 { 1.0 } else { 0.0 });
    match signed {
        0 => [f(0.0), power(bits) - f(1.0) - narrow],
        _ => [narrow - power(bits - f(1.0)), power(bits - f(1.0)) - f(1.0)],
    }
}

/// A result of the dtype of operand 0; all operands are floats that broadcast.
fn infer_floats(cx: &Ctx) -> Result<Vec<Fact>, Fault> {
    let mut shapes = vec![];
    for i in 0..cx.inputs.len() {
        if !cx.dtype(i)?.is_float() {
            return Err(fault!("operand {i} is {}, it must be a float", cx.tensor(i)?));
        }
        shapes.push(cx.dims(i)?);
    }
    Ok(vec![Fact::tensor(cx.dtype(0)?, broadcast(&shapes)?)])
}

/// One step over the result; `f` gets the operands, broadcast and in the dtype that is computed in.
fn step(cx: &Ctx, outs: &[Type], f: impl FnOnce(&[Scalar]) -> Result<Scalar, Fault>) -> Result<Meaning, Fault> {
    let out = Ctx::out(outs, 0)?;
    let axes = axes_of(out);
    let wide = out.dtype.accumulator();
    let read = |i: usize| -> Result<Scalar, Fault> {
        let t = cx.tensor(i)?;
        Ok(match cx.known(i).filter(|t| t.len() == 1) {
            Some(t) => super::super::shape::constant(t, 0),
            None => Scalar::read_at(t.dtype, i, &broadcast_index(&t.dims, &out.dims, &axes)),
        }
        .cast(wide))
    };
    let operands = (0..cx.inputs.len()).map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(elementwise(cx, &out.dims, f(&operands)?.cast(out.dtype)))
}

impl OpDef for Quant {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        round(Scalar::float(DType::F32, 0.0), &self.rounding_mode)?;
        infer_floats(cx)
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        step(cx, outs, |x| {
            let (scale, zero, [low, high]) = (x[1], x[2], limits(x[3], self.signed, self.narrow));
            let v = x[0] / scale + zero;
            let f = |n: f64| Scalar::number(v.dtype(), n);
            let mut level = round(v.max(low).min(high), &self.rounding_mode)?;
            if self.signed != 0 {
                // One bit with a sign is the sign.
                let sign = Scalar::select(v.lt(f(0.0)), f(-1.0), f(1.0));
                level = Scalar::select(x[3].eq_to(f(1.0)), sign, level);
            }
            Ok((level - zero) * scale)
        })
    }
}

impl OpDef for BipolarQuant {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        infer_floats(cx)
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        step(cx, outs, |x| Ok(Scalar::select(x[0].lt(Scalar::number(x[0].dtype(), 0.0)), -x[1], x[1])))
    }
}

impl OpDef for Trunc {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        round(Scalar::float(DType::F32, 0.0), &self.rounding_mode)?;
        infer_floats(cx)
    }
    /// Operands: data, scale, zero point, bits, then the bits (and before them the scale) of the result.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        step(cx, outs, |x| {
            let two = Scalar::number(x[0].dtype(), 2.0);
            let power = |e: Scalar| Scalar::binary(Binary::Pow, two, e);
            let level = Scalar::unary(Unary::Round, x[0] / x[1] + x[2]);
            if let [_, scale, zero, bits, bits_out] = x[..] {
                let level = round(level / power(bits - bits_out), &self.rounding_mode)?;
                return Ok((level - zero) * scale);
            }
            let (scale_out, [low, high]) = (x[4], limits(x[5], self.signed, self.narrow));
            // The scales differ by a power of two.
            let log2 = Scalar::unary(Unary::Log, scale_out / x[1]) / Scalar::unary(Unary::Log, two);
            let factor = power(Scalar::unary(Unary::Round, log2));
            let level = round((level / factor).min(high).max(low), &self.rounding_mode)?;
            Ok((level - x[2] / factor) * scale_out)
        })
    }
}
