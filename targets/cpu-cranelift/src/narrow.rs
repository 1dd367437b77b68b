//! Narrow floats: f16, bf16 and the 8- and 4-bit formats travel as f32 in registers and are rounded after each operation.
//!
//! [`pack`] gives the bits in memory, [`unpack`] the value, [`round`] the nearest value. All of it is integer arithmetic, never a library call
//! (Cranelift has no instruction for it). That f32 arithmetic followed by one rounding is right for + - * / and sqrt follows from 24
//! bits being at least twice those of the narrow format plus two.

use crate::function::Fun;
use crate::values::{Bin, Cast, Elem, Un, Val};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use infc_ir::DType;
use infc_ir::float8::Small;

/// Is the dtype held as f32 in registers though it is none?
pub fn is_narrow(dtype: DType) -> bool {
    dtype.is_float() && !matches!(dtype, DType::F32 | DType::F64)
}

/// `v` (f32) rounded to the nearest value of the narrow `dtype`; 8- and 4-bit formats saturate.
pub fn round(f: &mut Fun, dtype: DType, v: Val) -> Val {
    let bits = nearest(f, dtype, v);
    unpack(f, dtype, bits)
}

/// The bits in memory (`i16` or `i8`) of an f32 that is a value of the narrow `dtype`.
pub fn pack(f: &mut Fun, dtype: DType, v: Val) -> Val {
    let bits = nearest(f, dtype, v);
    if dtype != DType::F8E5M2 {
        return bits;
    }
    // The one small format with infinities: they are no overflow here.
    let abs = f.unary(Un::Abs, v);
    let infinite = f.fcmp(FloatCC::Equal, abs, Val::float(Elem::F32, f64::INFINITY));
    let one = f.cast(Cast::Zext, infinite, Elem::I8);
    f.bin(Bin::Add, bits, one) // the infinity's code follows the largest finite value's
}

/// `v` (f64) as f32, rounded to odd: a later rounding to fewer bits is then as good as rounding once.
pub fn odd_f32(f: &mut Fun, v: Val) -> Val {
    let near = f.cast(Cast::FpTrunc, v, Elem::F32);
    let back = f.cast(Cast::FpExt, near, Elem::F64);
    let (abs, abs_back) = (f.unary(Un::Abs, v), f.unary(Un::Abs, back));
    let up = f.fcmp(FloatCC::GreaterThan, abs_back, abs);
    let inexact = f.fcmp(FloatCC::OrderedNotEqual, back, v);
    let bits = f.cast(Cast::Bitcast, near, Elem::I32);
    let (up, inexact) = (f.cast(Cast::Zext, up, Elem::I32), f.cast(Cast::Zext, inexact, Elem::I32));
    let bits = f.bin(Bin::Sub, bits, up);
    let bits = f.bin(Bin::Or, bits, inexact);
    f.cast(Cast::Bitcast, bits, Elem::F32)
}

fn i32c(v: u32) -> Val {
    Val::int(Elem::I32, i64::from(v as i32))
}

fn power(exponent: i32) -> Val {
    Val::float(Elem::F32, f64::from(exponent).exp2())
}

/// Shifts the top bits down to `drop` fewer, to nearest even.
fn round_bits(f: &mut Fun, bits: Val, drop: u32, rebias: u32) -> Val {
    let odd = f.bin(Bin::LShr, bits, i32c(drop));
    let odd = f.bin(Bin::And, odd, i32c(1));
    let sum = f.bin(Bin::Add, bits, i32c(rebias.wrapping_add((1 << (drop - 1)) - 1)));
    let sum = f.bin(Bin::Add, sum, odd);
    f.bin(Bin::LShr, sum, i32c(drop))
}

/// The bits of the value of `dtype` that is nearest to an f32, ties to even; 8- and 4-bit formats saturate.
fn nearest(f: &mut Fun, dtype: DType, v: Val) -> Val {
    match dtype {
        DType::F16 => pack_half(f, v),
        DType::BF16 => {
            let bits = f.cast(Cast::Bitcast, v, Elem::I32);
            let rounded = round_bits(f, bits, 16, 0);
            let nan = f.fcmp(FloatCC::Unordered, v, v);
            let r = f.select(nan, i32c(0x7fc0), rounded);
            f.cast(Cast::Trunc, r, Elem::I16)
        }
        DType::F8E8M0 => pack_e8m0(f, v),
        _ => pack_small(f, Small::of(dtype), v),
    }
}

fn pack_half(f: &mut Fun, v: Val) -> Val {
    let bits = f.cast(Cast::Bitcast, v, Elem::I32);
    let a = f.bin(Bin::And, bits, i32c(0x7fff_ffff));
    let value = f.cast(Cast::Bitcast, a, Elem::F32);
    let small = f.bin(Bin::FAdd, value, power(-1));
    let small = f.cast(Cast::Bitcast, small, Elem::I32);
    let small = f.bin(Bin::Sub, small, i32c(0x3f00_0000));
    let normal = round_bits(f, a, 13, (112u32 << 23).wrapping_neg());
    let subnormal = f.icmp(IntCC::UnsignedLessThan, a, i32c(113 << 23));
    let r = f.select(subnormal, small, normal);
    let large = f.icmp(IntCC::UnsignedGreaterThanOrEqual, a, i32c(143 << 23));
    let r = f.select(large, i32c(0x7c00), r);
    let nan = f.icmp(IntCC::UnsignedGreaterThan, a, i32c(0x7f80_0000));
    let r = f.select(nan, i32c(0x7e00), r);
    let sign = f.bin(Bin::LShr, bits, i32c(16));
    let sign = f.bin(Bin::And, sign, i32c(0x8000));
    let r = f.bin(Bin::Or, r, sign);
    f.cast(Cast::Trunc, r, Elem::I16)
}

fn pack_e8m0(f: &mut Fun, v: Val) -> Val {
    let bits = f.cast(Cast::Bitcast, v, Elem::I32);
    // Nearest in the exponent: up from sqrt(2); below 2^-126 the f32 is subnormal and 2^-126.5 decides between codes 0 and 1.
    let e = f.bin(Bin::LShr, bits, i32c(23));
    let mantissa = f.bin(Bin::And, bits, i32c(0x7f_ffff));
    let up = f.icmp(IntCC::UnsignedGreaterThan, mantissa, i32c(0x3504f3));
    let up = f.cast(Cast::Zext, up, Elem::I32);
    let code = f.bin(Bin::Add, e, up);
    let code = f.bin(Bin::UMin, code, i32c(254));
    let tiny = f.icmp(IntCC::UnsignedLessThan, bits, i32c(0x80_0000));
    let low = f.icmp(IntCC::UnsignedGreaterThanOrEqual, bits, i32c(5_931_642));
    let low = f.cast(Cast::Zext, low, Elem::I32);
    let code = f.select(tiny, low, code);
    let zero = f.fcmp(FloatCC::Equal, v, Val::float(Elem::F32, 0.0));
    let code = f.select(zero, i32c(0), code);
    let bad = f.fcmp(FloatCC::UnorderedOrLessThan, v, Val::float(Elem::F32, 0.0));
    let code = f.select(bad, i32c(255), code);
    f.cast(Cast::Trunc, code, Elem::I8)
}

fn pack_small(f: &mut Fun, s: Small, v: Val) -> Val {
    let bits = f.cast(Cast::Bitcast, v, Elem::I32);
    let a = f.bin(Bin::And, bits, i32c(0x7fff_ffff));
    let nan = f.icmp(IntCC::UnsignedGreaterThan, a, i32c(0x7f80_0000));
    let a = f.bin(Bin::UMin, a, i32c((s.largest as f32).to_bits()));
    let lowest = 1 - s.bias;
    let magic = power(lowest - s.mantissa as i32 + 23);
    let value = f.cast(Cast::Bitcast, a, Elem::F32);
    let small = f.bin(Bin::FAdd, value, magic);
    let small = f.cast(Cast::Bitcast, small, Elem::I32);
    let magic_bits = f.cast(Cast::Bitcast, magic, Elem::I32);
    let small = f.bin(Bin::Sub, small, magic_bits);
    let normal = round_bits(f, a, 23 - s.mantissa, (((127 - s.bias) as u32) << 23).wrapping_neg());
    let subnormal = f.icmp(IntCC::UnsignedLessThan, a, i32c(((lowest + 127) as u32) << 23));
    let code = f.select(subnormal, small, normal);
    let sign = f.bin(Bin::LShr, bits, i32c(31 - s.bits));
    let sign = f.bin(Bin::And, sign, i32c(1 << s.bits));
    let mut signed = f.bin(Bin::Or, code, sign);
    if s.fnuz {
        let zero = f.icmp(IntCC::Equal, code, i32c(0));
        signed = f.select(zero, i32c(0), signed);
    }
    let code = f.select(nan, i32c(s.nan), signed);
    f.cast(Cast::Trunc, code, Elem::I8)
}

/// The f32 value of the memory bits `v` (`i16` or `i8`) of the narrow `dtype`.
pub fn unpack(f: &mut Fun, dtype: DType, v: Val) -> Val {
    match dtype {
        DType::F16 => {
            let wide = f.cast(Cast::Zext, v, Elem::I32);
            let magnitude = f.bin(Bin::And, wide, i32c(0x7fff));
            let value = scaled(f, magnitude, 13, 112);
            let special = f.bin(Bin::Shl, magnitude, i32c(13));
            let special = f.bin(Bin::Or, special, i32c(0x7f80_0000));
            let special = f.cast(Cast::Bitcast, special, Elem::F32);
            let is_special = f.icmp(IntCC::UnsignedGreaterThanOrEqual, magnitude, i32c(0x7c00));
            let value = f.select(is_special, special, value);
            with_sign(f, value, wide, 16)
        }
        DType::BF16 => {
            let wide = f.cast(Cast::Zext, v, Elem::I32);
            let bits = f.bin(Bin::Shl, wide, i32c(16));
            f.cast(Cast::Bitcast, bits, Elem::F32)
        }
        DType::F8E8M0 => {
            let wide = f.cast(Cast::Zext, v, Elem::I32);
            let bits = f.bin(Bin::Shl, wide, i32c(23));
            let zero = f.icmp(IntCC::Equal, wide, i32c(0));
            let bits = f.select(zero, i32c(0x40_0000), bits);
            let nan = f.icmp(IntCC::Equal, wide, i32c(255));
            let bits = f.select(nan, i32c(0x7fc0_0000), bits);
            f.cast(Cast::Bitcast, bits, Elem::F32)
        }
        _ => {
            let s = Small::of(dtype);
            let wide = f.cast(Cast::Zext, v, Elem::I32);
            let magnitude = f.bin(Bin::And, wide, i32c((1 << s.bits) - 1));
            let mut value = scaled(f, magnitude, 23 - s.mantissa, 127 - s.bias);
            let nan = Val::float(Elem::F32, f64::NAN);
            if s.infinities {
                let top = i32c(((1 << (s.bits - s.mantissa)) - 1) << s.mantissa);
                let inf = f.icmp(IntCC::Equal, magnitude, top);
                value = f.select(inf, Val::float(Elem::F32, f64::INFINITY), value);
                let is_nan = f.icmp(IntCC::UnsignedGreaterThan, magnitude, top);
                value = f.select(is_nan, nan, value);
            } else if dtype != DType::F4E2M1 {
                let code = if s.fnuz { wide } else { magnitude };
                let is_nan = f.icmp(IntCC::Equal, code, i32c(s.nan));
                value = f.select(is_nan, nan, value);
            }
            with_sign(f, value, wide, 31 - s.bits)
        }
    }
}

/// Exponent and mantissa moved to their place in an f32 and scaled by a power of two: right for subnormals as well.
fn scaled(f: &mut Fun, magnitude: Val, shift: u32, exponent: i32) -> Val {
    let bits = f.bin(Bin::Shl, magnitude, i32c(shift));
    let value = f.cast(Cast::Bitcast, bits, Elem::F32);
    f.bin(Bin::FMul, value, power(exponent))
}

fn with_sign(f: &mut Fun, value: Val, wide: Val, shift: u32) -> Val {
    let sign = f.bin(Bin::Shl, wide, i32c(shift));
    let sign = f.bin(Bin::And, sign, i32c(0x8000_0000));
    let bits = f.cast(Cast::Bitcast, value, Elem::I32);
    let bits = f.bin(Bin::Or, bits, sign);
    f.cast(Cast::Bitcast, bits, Elem::F32)
}
