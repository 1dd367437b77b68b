//! Narrow floats: f16, bf16 and the 8- and 4-bit formats are f32 in registers. [`pack`] gives the bits in memory, [`unpack`] the value,
//! [`round`] the nearest value. f16 and bf16 have instructions, the others integer arithmetic.

use crate::asm::{Asm, Val};
use infc_ir::float8::Small;
use infc_ir::{DType, Fault};

/// Is the dtype f32 in registers though it is none?
pub fn is_narrow(dtype: DType) -> bool {
    dtype.is_float() && !matches!(dtype, DType::F32 | DType::F64)
}

/// `v` rounded to the nearest value of the dtype; 8- and 4-bit formats saturate.
pub fn round(a: &mut Asm, dtype: DType, v: Val) -> Result<Val, Fault> {
    if dtype == DType::BF16 {
        return a.row("round_bf16", "f32", &[v]);
    }
    let bits = nearest(a, dtype, v)?;
    unpack(a, dtype, bits)
}

/// The bits of a value of the dtype.
pub fn pack(a: &mut Asm, dtype: DType, v: Val) -> Result<Val, Fault> {
    let bits = nearest(a, dtype, v)?;
    if dtype != DType::F8E5M2 {
        return Ok(bits);
    }
    // The one small format with infinities: they are no overflow here, and their code follows the largest finite one.
    let infinite = a.row("isinf", "f32", &[v])?;
    let one = a.row("number", "pred", &[infinite])?;
    a.row("add", "u32", &[bits, one])
}

fn nearest(a: &mut Asm, dtype: DType, v: Val) -> Result<Val, Fault> {
    match dtype {
        DType::F16 => a.row("pack_f16", "f32", &[v]),
        DType::BF16 => a.row("pack_bf16", "f32", &[v]),
        DType::F8E8M0 => pack_e8m0(a, v),
        _ => pack_small(a, Small::of(dtype), v),
    }
}

/// Short for operations on 32-bit registers.
struct Short<'a>(&'a mut Asm);

impl Short<'_> {
    fn op(&mut self, op: &str, x: Val, y: u32) -> Result<Val, Fault> {
        let y = self.0.r(y);
        self.two(op, x, y)
    }
    fn two(&mut self, op: &str, x: Val, y: Val) -> Result<Val, Fault> {
        self.0.row(op, "u32", &[x, y])
    }
    fn float(&mut self, op: &str, x: Val, y: f32) -> Result<Val, Fault> {
        let y = self.0.r(y.to_bits());
        self.0.row(op, "f32", &[x, y])
    }
    fn pick(&mut self, cond: Val, x: Val, y: Val) -> Result<Val, Fault> {
        self.0.row("select", "u32", &[cond, x, y])
    }
    fn pick_const(&mut self, cond: Val, x: u32, y: Val) -> Result<Val, Fault> {
        let x = self.0.r(x);
        self.pick(cond, x, y)
    }
    fn number(&mut self, cond: Val) -> Result<Val, Fault> {
        self.0.row("number", "pred", &[cond])
    }
}

fn power(exponent: i32) -> f32 {
    f64::from(exponent).exp2() as f32
}

fn pack_e8m0(a: &mut Asm, v: Val) -> Result<Val, Fault> {
    let mut s = Short(a);
    // Nearest in the exponent: up from sqrt(2); below 2^-126 the f32 is subnormal and 2^-126.5 decides between codes 0 and 1.
    let e = s.op("shr", v, 23)?;
    let mantissa = s.op("and", v, 0x7f_ffff)?;
    let up = s.op("gt", mantissa, 0x35_04f3)?;
    let up = s.number(up)?;
    let code = s.two("add", e, up)?;
    let code = s.op("min", code, 254)?;
    let tiny = s.op("lt", v, 0x80_0000)?;
    let low = s.op("ge", v, 5_931_642)?;
    let low = s.number(low)?;
    let code = s.pick(tiny, low, code)?;
    let zero = s.float("eq", v, 0.0)?;
    let code = s.pick_const(zero, 0, code)?;
    let fine = s.float("ge", v, 0.0)?;
    let bad = s.0.r(255);
    s.pick(fine, code, bad)
}

fn pack_small(a: &mut Asm, f: Small, v: Val) -> Result<Val, Fault> {
    let mut s = Short(a);
    let magnitude = s.op("and", v, 0x7fff_ffff)?;
    let nan = s.op("gt", magnitude, 0x7f80_0000)?;
    let limited = s.op("min", magnitude, (f.largest as f32).to_bits())?;
    let lowest = 1 - f.bias;
    let magic = power(lowest - f.mantissa as i32 + 23);
    let small = s.float("add", limited, magic)?;
    let small = s.op("sub", small, magic.to_bits())?;
    let drop = 23 - f.mantissa;
    let odd = s.op("shr", limited, drop)?;
    let odd = s.op("and", odd, 1)?;
    let rebias = (((127 - f.bias) as u32) << 23).wrapping_neg();
    let sum = s.op("add", limited, rebias.wrapping_add((1 << (drop - 1)) - 1))?;
    let sum = s.two("add", sum, odd)?;
    let normal = s.op("shr", sum, drop)?;
    let subnormal = s.op("lt", limited, ((lowest + 127) as u32) << 23)?;
    let code = s.pick(subnormal, small, normal)?;
    let sign = s.op("shr", v, 31 - f.bits)?;
    let sign = s.op("and", sign, 1 << f.bits)?;
    let mut signed = s.two("or", code, sign)?;
    if f.fnuz {
        let zero = s.op("eq", code, 0)?;
        signed = s.pick_const(zero, 0, signed)?;
    }
    s.pick_const(nan, f.nan, signed)
}

/// The value of the bits in memory.
pub fn unpack(a: &mut Asm, dtype: DType, v: Val) -> Result<Val, Fault> {
    match dtype {
        DType::F16 => a.row("unpack_f16", "f32", &[v]),
        DType::BF16 => a.row("unpack_bf16", "f32", &[v]),
        DType::F8E8M0 => {
            let mut s = Short(a);
            let bits = s.op("shl", v, 23)?;
            let zero = s.op("eq", v, 0)?;
            let bits = s.pick_const(zero, 0x40_0000, bits)?;
            let nan = s.op("eq", v, 255)?;
            s.pick_const(nan, 0x7fc0_0000, bits)
        }
        _ => unpack_small(a, dtype, Small::of(dtype), v),
    }
}

fn unpack_small(a: &mut Asm, dtype: DType, f: Small, v: Val) -> Result<Val, Fault> {
    let mut s = Short(a);
    let magnitude = s.op("and", v, (1 << f.bits) - 1)?;
    let bits = s.op("shl", magnitude, 23 - f.mantissa)?;
    // Scaled by a power of two: right for subnormals as well.
    let mut value = s.float("mul", bits, power(127 - f.bias))?;
    if f.infinities {
        let top = ((1 << (f.bits - f.mantissa)) - 1) << f.mantissa;
        let infinite = s.op("eq", magnitude, top)?;
        value = s.pick_const(infinite, 0x7f80_0000, value)?;
        let nan = s.op("gt", magnitude, top)?;
        value = s.pick_const(nan, 0x7fc0_0000, value)?;
    } else if dtype != DType::F4E2M1 {
        let nan = s.op("eq", if f.fnuz { v } else { magnitude }, f.nan)?;
        value = s.pick_const(nan, 0x7fc0_0000, value)?;
    }
    let sign = s.op("shl", v, 31 - f.bits)?;
    let sign = s.op("and", sign, 0x8000_0000)?;
    s.two("or", value, sign)
}
