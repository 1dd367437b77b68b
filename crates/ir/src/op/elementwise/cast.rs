//! Conversions between dtypes.

use super::super::common::*;
use super::super::*;
use crate::compute::Compute;
use crate::float8;
use crate::scalar::{Binary as B, Scalar, Unary as U};

impl OpDef for Cast {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        cast_fact(cx, dtype_attr("to", self.to)?, &self.round_mode)
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        cast_meaning(cx, outs, self.saturate != 0, &self.round_mode)
    }
}

impl OpDef for CastLike {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        cast_fact(cx, cx.dtype(1)?, &self.round_mode)
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        cast_meaning(cx, outs, self.saturate != 0, &self.round_mode)
    }
}

fn cast_fact(cx: &Ctx, to: DType, round_mode: &str) -> Result<Vec<Fact>, Fault> {
    let x = cx.tensor(0)?;
    if matches!(x.dtype, DType::C64 | DType::C128) || matches!(to, DType::C64 | DType::C128) {
        return Err(fault!("conversion from {} to {to} is not defined", x.dtype));
    }
    if !matches!(round_mode, "up" | "down" | "nearest") {
        return Err(fault!("attribute 'round_mode' is '{round_mode}'; up, down or nearest is needed"));
    }
    // A narrow result may wrap: only known elements stay known.
    let ints = cx.fact(0)?.ints.as_ref().and_then(|ints| {
        let convert = |e: &Expr| match e.known() {
            _ if to == DType::Bool => equal(*e, Expr::int(0)).map(|zero| Expr::int((!zero).into())),
            Some(v) => Some(Expr::int(crate::eval::wrap_int(to, v))),
            None => (to.bits() >= 32).then_some(*e),
        };
        if to.is_int() || to == DType::Bool { ints.iter().map(convert).collect() } else { None }
    });
    Ok(vec![Fact::tensor(to, x.dims.clone()).with_ints(ints)])
}

fn cast_meaning(cx: &Ctx, outs: &[Type], saturate: bool, round_mode: &str) -> Result<Meaning, Fault> {
    let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
    if x.dtype == out.dtype {
        return Ok(Meaning::Alias(0));
    }
    if x.dtype == DType::String || out.dtype == DType::String {
        return Ok(text_meaning(x.dtype, out.dtype));
    }
    let c = Compute::map(&out.dims, |axes| convert(Scalar::read_at(x.dtype, 0, axes), out.dtype, saturate, round_mode));
    Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
}

/// Numbers have text in a few dtypes; the others go through one of these that holds all their values.
fn text_meaning(from: DType, to: DType) -> Meaning {
    let number = if from == DType::String { to } else { from };
    let by = match number {
        DType::F32 | DType::F64 | DType::I64 | DType::U64 => return Meaning::Host,
        // Printing finds the shortest text in f32.
        d if d.is_float() && to == DType::String => DType::F32,
        d if d.is_float() || to == DType::Bool => DType::F64,
        _ => DType::I64,
    };
    Meaning::decompose(move |b, inputs| {
        let x = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
        let x = cast_to(b, x, by)?;
        Ok(vec![cast_to(b, x, to)?])
    })
}

/// `x` as `to` by the rules of ONNX's Cast. `saturate` is for the 8-bit floats, `round_mode` for `f8e8m0`.
pub(crate) fn convert(x: Scalar, to: DType, saturate: bool, round_mode: &str) -> Scalar {
    match to {
        DType::F8E8M0 => to_e8m0(x, saturate, round_mode),
        DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ if !saturate => to_float8(x, to),
        // This format has no NaN; like other implementations Cast gives -0.
        DType::F4E2M1 if x.dtype().is_float() => Scalar::select(un(U::IsNan, x), Scalar::float(to, -0.0), x.cast(to)),
        // Out of range is undefined in ONNX; like its reference (and ONNX Runtime) narrow integers take the low bits.
        _ if x.dtype().is_float() && to.is_int() && to.bits() <= 16 => x.cast(DType::I32).cast(to),
        _ => x.cast(to),
    }
}

/// Too large values become infinity, or NaN where `to` has none.
fn to_float8(x: Scalar, to: DType) -> Scalar {
    let largest = float8::encode(to, 1e30, true);
    let [below, top] = [largest - 1, largest].map(|code| float8::decode(to, code));
    // Halfway to the value that would come next; the tie rounds to the even code.
    let limit = top + (top - below) / 2.0;
    let x = if x.dtype().is_float() { x } else { x.cast(DType::F32) };
    let a = un(U::Abs, x);
    let over = |code: u8| Scalar::int(DType::U8, i64::from(code)).bitcast(to);
    let beyond =
        if float8::encode(to, limit, false) == largest { bin(B::Gt, a, num(x, limit)) } else { bin(B::Ge, a, num(x, limit)) };
    let [plus, minus] = [1e30, -1e30].map(|v| over(float8::encode(to, v, false)));
    Scalar::select(beyond, Scalar::select(x.lt(num(x, 0.0)), minus, plus), x.cast(to))
}

/// Powers of two: the exponent of the f32, rounded by the mantissa.
fn to_e8m0(x: Scalar, saturate: bool, round_mode: &str) -> Scalar {
    let x = x.cast(DType::F32);
    let int = |v: i64| Scalar::int(DType::U32, v);
    let bits = x.bitcast(DType::U32);
    let exponent = bin(B::Shr, bits, int(23)).and(int(0xff));
    let mantissa = bits.and(int(0x7f_ffff));
    // f32 numbers below 2^-126 have exponent field 0 and count 2^-149 in the mantissa; 2^-127 is mantissa 2^22.
    let tiny = exponent.eq_to(int(0));
    let (normal_from, tiny_from) = match round_mode {
        "up" => (1, 0x40_0001),
        "nearest" => (0x40_0000, 0x60_0000),
        _ => (0x80_0000, 0x80_0000),
    };
    let up = bin(B::Ge, mantissa, Scalar::select(tiny, int(tiny_from), int(normal_from)));
    let code = exponent + up.cast(DType::U32);
    let too_large = bin(B::Gt, code, int(254));
    let mut code = Scalar::select(too_large, int(if saturate { 254 } else { 255 }), code);
    if !saturate {
        // Below half of 2^-127 there is nothing to round to.
        code = Scalar::select(tiny.and(mantissa.lt(int(0x20_0000))), int(255), code);
    }
    let nan = bin(B::Or, un(U::IsNan, x), x.lt(num(x, 0.0)));
    Scalar::select(nan, int(255), code).cast(DType::U8).bitcast(DType::F8E8M0)
}

/// Width for the purpose of [`BitCast`]: bool is stored in 8 bits.
fn storage_bits(d: DType) -> u32 {
    if d == DType::Bool { 8 } else { d.bits() }
}

impl OpDef for BitCast {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (x, to) = (accept(cx, 0, Accept::Plain)?, dtype_attr("to", self.to)?);
        if to == DType::String || storage_bits(x.dtype) != storage_bits(to) {
            return Err(fault!("{} and {to} differ in width", x.dtype));
        }
        Ok(vec![Fact::tensor(to, x.dims.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let c = Compute::map(&out.dims, |axes| Scalar::read_at(x.dtype, 0, axes).bitcast(out.dtype));
        Ok(Meaning::one(1, Step::Compute(c)))
    }
}
