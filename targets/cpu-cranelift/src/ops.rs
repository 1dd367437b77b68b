//! Scalar operations as Cranelift's instructions: total, no library calls, the same result as [`infc_ir::eval`] in every lane.

use crate::function::Fun;
use crate::helpers::{self, Helper};
use crate::narrow::{is_narrow, odd_f32, pack, round, unpack};
use crate::values::{Bin, Cast, Elem, Un, Val};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use infc_ir::dtype::Class;
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Fault, fault};

/// The element in which values of `dtype` travel.
pub fn value_elem(dtype: DType) -> Result<Elem, Fault> {
    Ok(match dtype.class() {
        Class::Bool => Elem::I1,
        Class::Float if dtype == DType::F64 => Elem::F64,
        Class::Float => Elem::F32,
        Class::Signed | Class::Unsigned => memory_elem(dtype)?,
        Class::Complex | Class::Text => return Err(fault!("machine code has no arithmetic on {dtype}")),
    })
}

/// The element in which values of `dtype` lie in memory.
pub fn memory_elem(dtype: DType) -> Result<Elem, Fault> {
    Ok(match (dtype, dtype.bytes()) {
        (DType::F32, _) => Elem::F32,
        (DType::F64, _) => Elem::F64,
        (DType::C64 | DType::C128 | DType::String, _) => return Err(fault!("machine code has no memory access of {dtype}")),
        (_, 1) => Elem::I8,
        (_, 2) => Elem::I16,
        (_, 4) => Elem::I32,
        _ => Elem::I64,
    })
}

/// A constant of the scalar language.
pub fn constant(dtype: DType, bits: u64) -> Result<Val, Fault> {
    let elem = value_elem(dtype)?;
    Ok(if elem.is_float() { Val::float(elem, f64::from_bits(bits)) } else { Val::int(elem, bits as i64) })
}

/// A value as it lies in memory.
pub fn to_memory(f: &mut Fun, dtype: DType, v: Val) -> Val {
    match dtype {
        DType::Bool => f.cast(Cast::Zext, v, Elem::I8),
        d if is_narrow(d) => pack(f, d, v),
        _ => v,
    }
}

/// The value of what lies in memory.
pub fn from_memory(f: &mut Fun, dtype: DType, v: Val) -> Val {
    match dtype {
        DType::Bool => f.icmp(IntCC::NotEqual, v, Val::int(Elem::I8, 0)),
        d if is_narrow(d) => unpack(f, d, v),
        d => wrap(f, d, v),
    }
}

/// The low bits of a 4- or 2-bit integer, extended over its byte.
fn wrap(f: &mut Fun, dtype: DType, v: Val) -> Val {
    if dtype.bits() as usize == 8 * dtype.bytes() || !dtype.is_int() {
        return v;
    }
    let shift = Val::int(Elem::I8, i64::from(8 - dtype.bits()));
    let up = f.bin(Bin::Shl, v, shift);
    f.bin(if dtype.is_signed() { Bin::AShr } else { Bin::LShr }, up, shift)
}

/// Rounds the result of an f32 operation on a narrow dtype.
fn finish(f: &mut Fun, dtype: DType, v: Val) -> Val {
    if is_narrow(dtype) { round(f, dtype, v) } else { v }
}

fn zero(v: Val) -> Val {
    if v.ty.elem.is_float() { Val::float(v.ty.elem, 0.0) } else { Val::int(v.ty.elem, 0) }
}

/// One operand.
pub fn unary(f: &mut Fun, op: Unary, dtype: DType, x: Val) -> Result<Val, Fault> {
    if !dtype.is_float() {
        return unary_int(f, op, dtype, x);
    }
    let one = Val::float(x.ty.elem, 1.0);
    let r = match op {
        Unary::Neg => f.unary(Un::Neg, x),
        Unary::Abs => f.unary(Un::Abs, x),
        Unary::Sign => {
            let nonzero = f.fcmp(FloatCC::OrderedNotEqual, x, zero(x));
            let positive = f.fcmp(FloatCC::GreaterThan, x, zero(x));
            let sign = f.select(positive, one, Val::float(x.ty.elem, -1.0));
            f.select(nonzero, sign, x)
        }
        Unary::Not => {
            let is = f.fcmp(FloatCC::Equal, x, zero(x));
            f.select(is, one, zero(x))
        }
        Unary::Floor => f.unary(Un::Floor, x),
        Unary::Ceil => f.unary(Un::Ceil, x),
        Unary::Trunc => f.unary(Un::Trunc, x),
        Unary::Round => f.unary(Un::Nearest, x),
        Unary::Sqrt => f.unary(Un::Sqrt, x),
        Unary::IsNan => return Ok(f.fcmp(FloatCC::Unordered, x, zero(x))),
        Unary::IsInf => {
            let a = f.unary(Un::Abs, x);
            return Ok(f.fcmp(FloatCC::Equal, a, Val::float(x.ty.elem, f64::INFINITY)));
        }
        _ => return Err(fault!("'{}' was not lowered to arithmetic (infc_kernel::math::lower)", op.name())),
    };
    Ok(finish(f, dtype, r))
}

fn unary_int(f: &mut Fun, op: Unary, dtype: DType, x: Val) -> Result<Val, Fault> {
    let signed = dtype.is_signed();
    let bool = dtype == DType::Bool;
    let r = match op {
        Unary::Neg | Unary::Abs | Unary::Sign if bool => x,
        Unary::Not if bool => f.not(x),
        Unary::Neg => f.bin(Bin::Sub, zero(x), x),
        Unary::Not => f.bin(Bin::Xor, x, Val::int(x.ty.elem, -1)),
        Unary::Abs if signed => {
            let minus = f.bin(Bin::Sub, zero(x), x);
            f.bin(Bin::SMax, x, minus)
        }
        Unary::Abs => x,
        Unary::Sign => {
            let (one, minus) = (Val::int(x.ty.elem, 1), Val::int(x.ty.elem, -1));
            let up = if signed { f.bin(Bin::SMin, x, one) } else { f.bin(Bin::UMin, x, one) };
            if signed { f.bin(Bin::SMax, up, minus) } else { up }
        }
        Unary::Floor | Unary::Ceil | Unary::Trunc | Unary::Round => x,
        Unary::IsNan | Unary::IsInf => Val { ty: x.ty.with(Elem::I1), op: Val::bool(false).op },
        // Real functions of integers: in f64 and back.
        _ => {
            let real = cast(f, dtype, DType::F64, x)?;
            let r = unary(f, op, DType::F64, real)?;
            cast(f, DType::F64, dtype, r)?
        }
    };
    Ok(if matches!(op, Unary::IsNan | Unary::IsInf) { r } else { wrap(f, dtype, r) })
}

/// Two operands of `dtype`.
pub fn binary(f: &mut Fun, op: Binary, dtype: DType, a: Val, b: Val) -> Result<Val, Fault> {
    match dtype {
        DType::Bool => binary_bool(f, op, a, b),
        d if d.is_float() => binary_float(f, op, d, a, b),
        d => binary_int(f, op, d, a, b),
    }
}

fn binary_bool(f: &mut Fun, op: Binary, a: Val, b: Val) -> Result<Val, Fault> {
    Ok(match op {
        Binary::Add | Binary::Or | Binary::Max => f.bin(Bin::Or, a, b),
        Binary::Sub | Binary::Xor | Binary::Ne => f.bin(Bin::Xor, a, b),
        Binary::Mul | Binary::And | Binary::Min | Binary::Div => f.bin(Bin::And, a, b),
        Binary::Rem | Binary::Mod => f.bin(Bin::And, a, Val::bool(false)),
        Binary::Eq => {
            let r = f.bin(Bin::Xor, a, b);
            f.not(r)
        }
        Binary::Gt | Binary::Shl | Binary::Shr => {
            let not = f.not(b);
            f.bin(Bin::And, a, not)
        }
        Binary::Lt => {
            let not = f.not(a);
            f.bin(Bin::And, not, b)
        }
        Binary::Ge | Binary::Pow => {
            let not = f.not(b);
            f.bin(Bin::Or, a, not)
        }
        Binary::Le => {
            let not = f.not(a);
            f.bin(Bin::Or, not, b)
        }
        Binary::Atan2 => return Err(fault!("'atan2' on bool")),
    })
}

fn binary_float(f: &mut Fun, op: Binary, dtype: DType, a: Val, b: Val) -> Result<Val, Fault> {
    let compare = match op {
        Binary::Eq => Some(FloatCC::Equal),
        Binary::Ne => Some(FloatCC::NotEqual),
        Binary::Lt => Some(FloatCC::LessThan),
        Binary::Le => Some(FloatCC::LessThanOrEqual),
        Binary::Gt => Some(FloatCC::GreaterThan),
        Binary::Ge => Some(FloatCC::GreaterThanOrEqual),
        _ => None,
    };
    if let Some(cc) = compare {
        return Ok(f.fcmp(cc, a, b));
    }
    let r = match op {
        Binary::Add => f.bin(Bin::FAdd, a, b),
        Binary::Sub => f.bin(Bin::FSub, a, b),
        Binary::Mul => f.bin(Bin::FMul, a, b),
        Binary::Div => f.bin(Bin::FDiv, a, b),
        Binary::Min => extreme(f, true, a, b),
        Binary::Max => extreme(f, false, a, b),
        Binary::Rem => fmod(f, a, b),
        Binary::Mod => {
            let r = fmod(f, a, b);
            let nonzero = f.fcmp(FloatCC::OrderedNotEqual, r, zero(r));
            let (rn, bn) = (f.fcmp(FloatCC::LessThan, r, zero(r)), f.fcmp(FloatCC::LessThan, b, zero(b)));
            let differ = f.bin(Bin::Xor, rn, bn);
            let fix = f.bin(Bin::And, nonzero, differ);
            let sum = f.bin(Bin::FAdd, r, b);
            f.select(fix, sum, r)
        }
        Binary::Pow | Binary::Atan2 => {
            return Err(fault!("'{}' was not lowered to arithmetic (infc_kernel::math::lower)", op.name()));
        }
        _ => return Err(fault!("'{}' on {dtype}", op.name())),
    };
    Ok(finish(f, dtype, r))
}

/// Minimum or maximum: NaN wins, -0 < +0. Against a constant one or two instructions do.
fn extreme(f: &mut Fun, min: bool, a: Val, b: Val) -> Val {
    let (x, c) = if a.known_float().is_some() { (b, a) } else { (a, b) };
    // `c < x ? c : x` is one MINPS: x if it is NaN or equal to c. Where c is the zero that must win, one addition repairs it.
    match c.known_float() {
        Some(k) if !(k.is_nan() || k == 0.0 && k.is_sign_negative() && min) => {
            let better = if min { f.fcmp(FloatCC::LessThan, c, x) } else { f.fcmp(FloatCC::LessThan, x, c) };
            let r = f.select(better, c, x);
            if !min && k == 0.0 && k.is_sign_positive() { f.bin(Bin::FAdd, r, c) } else { r }
        }
        _ => f.bin(if min { Bin::FMin } else { Bin::FMax }, a, b),
    }
}

/// Calls a helper of two operands for each lane.
fn by_lane(f: &mut Fun, helper: Helper, a: Val, b: Val) -> Val {
    f.by_lane(a, b, |f, x, y| helpers::call(f, helper, x, y))
}

fn fmod(f: &mut Fun, a: Val, b: Val) -> Val {
    by_lane(f, if a.ty.elem == Elem::F64 { Helper::FmodF64 } else { Helper::FmodF32 }, a, b)
}

fn pick<T>(signed: bool, s: T, u: T) -> T {
    if signed { s } else { u }
}

fn binary_int(f: &mut Fun, op: Binary, dtype: DType, a: Val, b: Val) -> Result<Val, Fault> {
    let signed = dtype.is_signed();
    let elem = a.ty.elem;
    let compare = match op {
        Binary::Eq => Some(IntCC::Equal),
        Binary::Ne => Some(IntCC::NotEqual),
        Binary::Lt => Some(pick(signed, IntCC::SignedLessThan, IntCC::UnsignedLessThan)),
        Binary::Le => Some(pick(signed, IntCC::SignedLessThanOrEqual, IntCC::UnsignedLessThanOrEqual)),
        Binary::Gt => Some(pick(signed, IntCC::SignedGreaterThan, IntCC::UnsignedGreaterThan)),
        Binary::Ge => Some(pick(signed, IntCC::SignedGreaterThanOrEqual, IntCC::UnsignedGreaterThanOrEqual)),
        _ => None,
    };
    if let Some(cc) = compare {
        return Ok(f.icmp(cc, a, b));
    }
    let r = match op {
        Binary::Add => f.bin(Bin::Add, a, b),
        Binary::Sub => f.bin(Bin::Sub, a, b),
        Binary::Mul => f.bin(Bin::Mul, a, b),
        Binary::Div => divide(f, pick(signed, Bin::SDiv, Bin::UDiv), signed, a, b),
        Binary::Rem => divide(f, pick(signed, Bin::SRem, Bin::URem), signed, a, b),
        Binary::Mod => {
            let r = divide(f, pick(signed, Bin::SRem, Bin::URem), signed, a, b);
            if !signed {
                return Ok(r);
            }
            let nonzero = f.icmp(IntCC::NotEqual, r, zero(r));
            let signs = f.bin(Bin::Xor, r, b);
            let differ = f.icmp(IntCC::SignedLessThan, signs, zero(r));
            let fix = f.bin(Bin::And, nonzero, differ);
            let sum = f.bin(Bin::Add, r, b);
            // By zero the result is zero: then r is 0 and nothing is added.
            f.select(fix, sum, r)
        }
        Binary::Min => f.bin(pick(signed, Bin::SMin, Bin::UMin), a, b),
        Binary::Max => f.bin(pick(signed, Bin::SMax, Bin::UMax), a, b),
        Binary::And => f.bin(Bin::And, a, b),
        Binary::Or => f.bin(Bin::Or, a, b),
        Binary::Xor => f.bin(Bin::Xor, a, b),
        Binary::Shl | Binary::Shr => shift(f, op, dtype, a, b),
        Binary::Pow => {
            let extend = pick(signed, Cast::Sext, Cast::Zext);
            let (x, y) = (f.cast(extend, a, Elem::I64), f.cast(extend, b, Elem::I64));
            let r = by_lane(f, if signed { Helper::PowSigned } else { Helper::PowUnsigned }, x, y);
            f.cast(Cast::Trunc, r, elem)
        }
        _ => return Err(fault!("'{}' on {dtype}", op.name())),
    };
    Ok(wrap(f, dtype, r))
}

/// Division or remainder that is defined for all operands: by zero 0; the least by -1 wraps.
fn divide(f: &mut Fun, op: Bin, signed: bool, a: Val, b: Val) -> Val {
    let one = Val::int(b.ty.elem, 1);
    let zero_divisor = f.icmp(IntCC::Equal, b, zero(b));
    let mut unsafe_divisor = zero_divisor;
    if signed {
        let least = Val::int(a.ty.elem, i64::MIN >> (64 - a.ty.elem.bits()));
        let (is_least, is_minus) = (f.icmp(IntCC::Equal, a, least), f.icmp(IntCC::Equal, b, Val::int(b.ty.elem, -1)));
        let wraps = f.bin(Bin::And, is_least, is_minus);
        unsafe_divisor = f.bin(Bin::Or, unsafe_divisor, wraps);
    }
    // The least divided by one is what wrapping gives; its remainder is 0 either way.
    let divisor = f.select(unsafe_divisor, one, b);
    let q = f.bin(op, a, divisor);
    f.select(zero_divisor, zero(q), q)
}

fn shift(f: &mut Fun, op: Binary, dtype: DType, a: Val, b: Val) -> Val {
    let signed = dtype.is_signed();
    let width = Val::int(b.ty.elem, i64::from(dtype.bits()));
    let inside = f.icmp(IntCC::UnsignedLessThan, b, width);
    let arithmetic = op == Binary::Shr && signed;
    let beyond = if arithmetic { Val::int(b.ty.elem, i64::from(dtype.bits()) - 1) } else { Val::int(b.ty.elem, 0) };
    let amount = f.select(inside, b, beyond);
    let name = match op {
        Binary::Shl => Bin::Shl,
        _ if signed => Bin::AShr,
        _ => Bin::LShr,
    };
    let r = f.bin(name, a, amount);
    if arithmetic { r } else { f.select(inside, r, zero(r)) }
}

/// `a * b + c` with one rounding.
pub fn fma(f: &mut Fun, dtype: DType, a: Val, b: Val, c: Val) -> Result<Val, Fault> {
    if !dtype.is_float() {
        let p = binary(f, Binary::Mul, dtype, a, b)?;
        return binary(f, Binary::Add, dtype, p, c);
    }
    if is_narrow(dtype) {
        // The product of narrow values is exact in f64, so this is one rounding to f64 and one to the dtype, as eval does it.
        let [a, b, c] = [a, b, c].map(|v| f.cast(Cast::FpExt, v, Elem::F64));
        let p = f.bin(Bin::FMul, a, b);
        let s = f.bin(Bin::FAdd, p, c);
        let odd = odd_f32(f, s);
        return Ok(round(f, dtype, odd));
    }
    if f.fma {
        return Ok(f.fused(a, b, c));
    }
    if dtype == DType::F64 {
        return Err(fault!("fma on f64 needs a machine with fused multiply-add"));
    }
    let [a, b, c] = [a, b, c].map(|v| f.cast(Cast::FpExt, v, Elem::F64));
    let p = f.bin(Bin::FMul, a, b);
    let s = f.bin(Bin::FAdd, p, c);
    // Two-sum gives the error of the addition; rounding `s` to odd makes the rounding to f32 the only one.
    let bb = f.bin(Bin::FSub, s, p);
    let aa = f.bin(Bin::FSub, s, bb);
    let (da, db) = (f.bin(Bin::FSub, p, aa), f.bin(Bin::FSub, c, bb));
    let error = f.bin(Bin::FAdd, da, db);
    let inexact = f.fcmp(FloatCC::OrderedNotEqual, error, Val::float(Elem::F64, 0.0));
    let bits = f.cast(Cast::Bitcast, s, Elem::I64);
    let low = f.bin(Bin::And, bits, Val::i64(1));
    let even = f.icmp(IntCC::Equal, low, Val::i64(0));
    let fix = f.bin(Bin::And, inexact, even);
    let (up, positive) = (
        f.fcmp(FloatCC::GreaterThan, error, Val::float(Elem::F64, 0.0)),
        f.fcmp(FloatCC::GreaterThan, s, Val::float(Elem::F64, 0.0)),
    );
    let away = f.bin(Bin::Xor, up, positive);
    let step = f.select(away, Val::i64(-1), Val::i64(1));
    let step = f.select(fix, step, Val::i64(0));
    let bits = f.bin(Bin::Add, bits, step);
    let odd = f.cast(Cast::Bitcast, bits, Elem::F64);
    Ok(f.cast(Cast::FpTrunc, odd, Elem::F32))
}

/// Conversion of a value.
pub fn cast(f: &mut Fun, from: DType, to: DType, v: Val) -> Result<Val, Fault> {
    if from == to {
        return Ok(v);
    }
    match (from.is_float(), to.is_float()) {
        (true, true) => Ok(match to {
            DType::F64 => f.cast(Cast::FpExt, v, Elem::F64),
            DType::F32 if from == DType::F64 => f.cast(Cast::FpTrunc, v, Elem::F32),
            DType::F32 => v,
            _ if from == DType::F64 => {
                let odd = odd_f32(f, v);
                round(f, to, odd)
            }
            _ => round(f, to, v),
        }),
        (false, true) => from_int(f, from, to, v),
        (true, false) => to_int(f, to, v),
        (false, false) if to == DType::Bool => Ok(f.icmp(IntCC::NotEqual, v, zero(v))),
        (false, false) => {
            let elem = value_elem(to)?;
            let r = match elem.bits().cmp(&v.ty.elem.bits()) {
                std::cmp::Ordering::Less => f.cast(Cast::Trunc, v, elem),
                std::cmp::Ordering::Equal => v,
                std::cmp::Ordering::Greater => f.cast(if from.is_signed() { Cast::Sext } else { Cast::Zext }, v, elem),
            };
            Ok(wrap(f, to, r))
        }
    }
}

fn from_int(f: &mut Fun, from: DType, to: DType, v: Val) -> Result<Val, Fault> {
    value_elem(from)?;
    let signed = from.is_signed();
    let (v, signed) = match v.ty.elem {
        Elem::I1 | Elem::I8 | Elem::I16 => (f.cast(if signed { Cast::Sext } else { Cast::Zext }, v, Elem::I32), true),
        _ => (v, signed),
    };
    let op = if signed { Cast::SiToFp } else { Cast::UiToFp };
    Ok(match to {
        DType::F32 | DType::F64 => f.cast(op, v, value_elem(to)?),
        _ => {
            let wide = f.cast(op, v, Elem::F64);
            let odd = odd_f32(f, wide);
            round(f, to, odd)
        }
    })
}

/// Truncates and saturates; NaN gives 0.
fn to_int(f: &mut Fun, to: DType, v: Val) -> Result<Val, Fault> {
    if to == DType::Bool {
        return Ok(f.fcmp(FloatCC::NotEqual, v, zero(v)));
    }
    let elem = value_elem(to)?;
    if to.bits() >= 32 {
        return Ok(f.cast(if to.is_signed() { Cast::FpToSi } else { Cast::FpToUi }, v, elem));
    }
    // Through 32 bits, which hold all values: there is no narrower conversion.
    let (lo, hi) = to.int_range().expect("an integer");
    let wide = f.cast(Cast::FpToSi, v, Elem::I32);
    let wide = f.bin(Bin::SMax, wide, Val::int(Elem::I32, lo as i64));
    let wide = f.bin(Bin::SMin, wide, Val::int(Elem::I32, hi as i64));
    Ok(f.cast(Cast::Trunc, wide, elem))
}

/// [`to_int`] of `min(max(v, 0), hi)` to unsigned integers of 16 bits at most: NaN becomes 0 by the maximum already.
pub fn clamped_to_int(f: &mut Fun, to: DType, v: Val, hi: f64) -> Result<Val, Fault> {
    let (zero, hi) = (zero(v), Val::float(v.ty.elem, hi));
    let positive = f.fcmp(FloatCC::LessThan, zero, v);
    let v = f.select(positive, v, zero);
    let below = f.fcmp(FloatCC::LessThan, v, hi);
    let v = f.select(below, v, hi);
    let r = f.cast(Cast::FpToSiWithin, v, Elem::I32);
    Ok(f.cast(Cast::Trunc, r, value_elem(to)?))
}

/// The same bits as another dtype.
pub fn bitcast(f: &mut Fun, from: DType, to: DType, v: Val) -> Result<Val, Fault> {
    let raw = to_memory(f, from, v);
    let elem = memory_elem(to)?;
    let raw = f.cast(Cast::Bitcast, raw, elem);
    Ok(from_memory(f, to, raw))
}
