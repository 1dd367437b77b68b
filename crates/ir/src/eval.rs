//! The meaning of every scalar operation, one element at a time: the slow twin of all faster paths.
//!
//! A value travels as 64 bits: for float dtypes the bits of an `f64` holding it, else the integer, sign- or zero-extended.
//! Floats of at most 32 bits are computed in `f64` and rounded once, which is exact for + - * / and sqrt.

use crate::dtype::{Class, DType};
use crate::expr::{Expr, Node};
use crate::scalar::{Binary, Kind, Scalar, Unary};

/// `value` rounded to the nearest value of the float `dtype`, ties to even.
pub fn round_float(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F64 => value,
        DType::F32 => f64::from(value as f32),
        DType::F16 => f64::from(half::f16::from_f32(odd_f32(value)).to_f32()),
        DType::BF16 => f64::from(half::bf16::from_f32(odd_f32(value)).to_f32()),
        _ => crate::float8::decode(dtype, crate::float8::encode(dtype, value, true)),
    }
}

/// `value` as f32, rounded to odd: rounding that to fewer bits equals rounding `value` once (`half` drops the low bits of an f64).
fn odd_f32(value: f64) -> f32 {
    let near = value as f32;
    let back = f64::from(near);
    if back == value || value.is_nan() {
        return near;
    }
    let towards_zero = near.to_bits() - u32::from(back.abs() > value.abs());
    f32::from_bits(towards_zero | 1)
}

/// The low bits of `value` as an integer of `dtype` (bool: `value != 0`).
pub fn wrap_int(dtype: DType, value: i64) -> i64 {
    let bits = dtype.bits();
    match dtype.class() {
        Class::Bool => i64::from(value != 0),
        Class::Signed if bits < 64 => (value << (64 - bits)) >> (64 - bits),
        Class::Unsigned if bits < 64 => value & ((1i64 << bits) - 1),
        _ => value,
    }
}

fn wide(dtype: DType, bits: u64) -> i128 {
    if dtype.is_signed() { i128::from(bits as i64) } else { i128::from(bits) }
}

fn narrow(dtype: DType, value: i128) -> u64 {
    wrap_int(dtype, value as i64) as u64
}

/// One-operand operators on a value of `dtype`.
pub fn unary(op: Unary, dtype: DType, a: u64) -> u64 {
    if !dtype.is_float() {
        let x = wide(dtype, a);
        return match op {
            Unary::Neg => narrow(dtype, -x),
            Unary::Abs => narrow(dtype, x.abs()),
            Unary::Sign => narrow(dtype, x.signum()),
            Unary::Not if dtype == DType::Bool => u64::from(x == 0),
            Unary::Not => narrow(dtype, !x),
            Unary::IsNan | Unary::IsInf => 0,
            Unary::Floor | Unary::Ceil | Unary::Trunc | Unary::Round => a,
            // Real functions of integers: computed in f64, converted back.
            _ => cast(DType::F64, dtype, unary(op, DType::F64, cast(dtype, DType::F64, a))),
        };
    }
    let x = f64::from_bits(a);
    let r = match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sign if x.is_nan() || x == 0.0 => x,
        Unary::Sign => x.signum(),
        Unary::Not => f64::from(u8::from(x == 0.0)),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Trunc => x.trunc(),
        Unary::Round => x.round_ties_even(),
        Unary::Sqrt => x.sqrt(),
        Unary::Exp => libm::exp(x),
        Unary::Log => libm::log(x),
        Unary::Sin => libm::sin(x),
        Unary::Cos => libm::cos(x),
        Unary::Tan => libm::tan(x),
        Unary::Asin => libm::asin(x),
        Unary::Acos => libm::acos(x),
        Unary::Atan => libm::atan(x),
        Unary::Sinh => libm::sinh(x),
        Unary::Cosh => libm::cosh(x),
        Unary::Tanh => libm::tanh(x),
        Unary::Asinh => libm::asinh(x),
        Unary::Acosh if x < 1.0 => f64::NAN, // libm gives numbers for large negative ones
        Unary::Acosh => libm::acosh(x),
        Unary::Atanh => libm::atanh(x),
        Unary::Erf => libm::erf(x),
        Unary::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
        Unary::Log1p => libm::log1p(x),
        Unary::Expm1 => libm::expm1(x),
        Unary::IsNan => return u64::from(x.is_nan()),
        Unary::IsInf => return u64::from(x.is_infinite()),
    };
    round_float(dtype, r).to_bits()
}

/// Two-operand operators on values of `dtype`.
pub fn binary(op: Binary, dtype: DType, a: u64, b: u64) -> u64 {
    if dtype.is_float() {
        let (x, y) = (f64::from_bits(a), f64::from_bits(b));
        let r = match op {
            Binary::Add => x + y,
            Binary::Sub => x - y,
            Binary::Mul => x * y,
            Binary::Div => x / y,
            Binary::Rem => libm::fmod(x, y),
            Binary::Mod => {
                let r = libm::fmod(x, y);
                if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }
            }
            Binary::Min if x.is_nan() || y.is_nan() => f64::NAN,
            Binary::Max if x.is_nan() || y.is_nan() => f64::NAN,
            Binary::Min if x == y => {
                if x.is_sign_negative() {
                    x
                } else {
                    y
                }
            }
            Binary::Max if x == y => {
                if x.is_sign_negative() {
                    y
                } else {
                    x
                }
            }
            Binary::Min => x.min(y),
            Binary::Max => x.max(y),
            Binary::Pow => libm::pow(x, y),
            Binary::Atan2 => libm::atan2(x, y),
            Binary::Eq => return u64::from(x == y),
            Binary::Ne => return u64::from(x != y),
            Binary::Lt => return u64::from(x < y),
            Binary::Le => return u64::from(x <= y),
            Binary::Gt => return u64::from(x > y),
            Binary::Ge => return u64::from(x >= y),
            Binary::And | Binary::Or | Binary::Xor | Binary::Shl | Binary::Shr => {
                unreachable!("bitwise {} on {dtype}: rejected by the verifier", op.name())
            }
        };
        return round_float(dtype, r).to_bits();
    }
    let (x, y) = (wide(dtype, a), wide(dtype, b));
    let bits = i128::from(dtype.bits());
    let r = match op {
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x.wrapping_mul(y),
        Binary::Div => {
            if y == 0 {
                0
            } else {
                x / y
            }
        }
        Binary::Rem => {
            if y == 0 {
                0
            } else {
                x % y
            }
        }
        Binary::Mod if y == 0 => 0,
        Binary::Mod => {
            let r = x % y;
            if r != 0 && (r < 0) != (y < 0) { r + y } else { r }
        }
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
        Binary::Pow => int_pow(dtype, x, y),
        Binary::Atan2 => libm::atan2(x as f64, y as f64) as i128,
        Binary::And => x & y,
        Binary::Or => x | y,
        Binary::Xor => x ^ y,
        Binary::Shl => {
            if (0..bits).contains(&y) {
                x << y
            } else {
                0
            }
        }
        Binary::Shr => {
            if (0..bits).contains(&y) {
                x >> y
            } else if x < 0 {
                -1
            } else {
                0
            }
        }
        Binary::Eq => i128::from(x == y),
        Binary::Ne => i128::from(x != y),
        Binary::Lt => i128::from(x < y),
        Binary::Le => i128::from(x <= y),
        Binary::Gt => i128::from(x > y),
        Binary::Ge => i128::from(x >= y),
    };
    if op.is_comparison() { r as u64 } else { narrow(dtype, r) }
}

fn int_pow(dtype: DType, base: i128, exponent: i128) -> i128 {
    if exponent < 0 {
        return match base {
            1 => 1,
            -1 => {
                if exponent % 2 == 0 {
                    1
                } else {
                    -1
                }
            }
            _ => 0,
        };
    }
    let (mut result, mut square, mut e) = (1i128, base, exponent);
    while e > 0 {
        if e & 1 == 1 {
            result = i128::from(wrap_int(dtype, result.wrapping_mul(square) as i64));
        }
        square = i128::from(wrap_int(dtype, square.wrapping_mul(square) as i64));
        e >>= 1;
    }
    result
}

/// `a * b + c` rounded once to `dtype`.
pub fn fma(dtype: DType, a: u64, b: u64, c: u64) -> u64 {
    let [x, y, z] = [a, b, c].map(f64::from_bits);
    match dtype {
        DType::F32 => f64::from(libm::fmaf(x as f32, y as f32, z as f32)).to_bits(),
        d if d.is_float() => round_float(d, libm::fma(x, y, z)).to_bits(),
        d => binary(Binary::Add, d, binary(Binary::Mul, d, a, b), c),
    }
}

/// Conversion of a value. Float to integer truncates and saturates, NaN gives 0; integer to integer wraps; anything to bool is
/// `!= 0`; float to float rounds to nearest even (fp8: saturating).
pub fn cast(from: DType, to: DType, a: u64) -> u64 {
    match (from.is_float(), to.is_float()) {
        (true, true) => round_float(to, f64::from_bits(a)).to_bits(),
        (false, true) => {
            // u64 and i64 to f32 round once: straight from the integer.
            let x = wide(from, a);
            let y = if to == DType::F32 { f64::from(x as f32) } else { round_float(to, x as f64) };
            y.to_bits()
        }
        (true, false) => {
            let x = f64::from_bits(a);
            match to.int_range() {
                Some(_) if to == DType::Bool => u64::from(x != 0.0),
                Some(_) if x.is_nan() => 0,
                Some((lo, hi)) => narrow(to, (x.trunc() as i128).clamp(lo, hi)),
                None => 0,
            }
        }
        (false, false) => narrow(to, wide(from, a)),
    }
}

/// The raw memory bits of a value, in the low bytes.
pub fn to_memory(dtype: DType, a: u64) -> u64 {
    match dtype {
        DType::F64 => a,
        DType::F32 => u64::from((f64::from_bits(a) as f32).to_bits()),
        DType::F16 => u64::from(half::f16::from_f32(odd_f32(f64::from_bits(a))).to_bits()),
        DType::BF16 => u64::from(half::bf16::from_f32(odd_f32(f64::from_bits(a))).to_bits()),
        // Already a value of the dtype: an infinity stays one.
        d if d.is_float() => u64::from(crate::float8::encode(d, f64::from_bits(a), false)),
        d if d.bytes() < 8 => a & ((1u64 << (8 * d.bytes())) - 1),
        _ => a,
    }
}

/// The value of raw memory bits.
pub fn from_memory(dtype: DType, raw: u64) -> u64 {
    match dtype {
        DType::F64 => raw,
        DType::F32 => f64::from(f32::from_bits(raw as u32)).to_bits(),
        DType::F16 => f64::from(half::f16::from_bits(raw as u16).to_f32()).to_bits(),
        DType::BF16 => f64::from(half::bf16::from_bits(raw as u16).to_f32()).to_bits(),
        d if d.is_float() => crate::float8::decode(d, raw as u8).to_bits(),
        d => wrap_int(d, raw as i64) as u64,
    }
}

/// Evaluates a scalar: `index` gives the values of symbols and axes, `read(source, index)` elements, `local` locals.
pub fn scalar(
    s: Scalar,
    leaf: &dyn Fn(Expr) -> Option<i64>,
    read: &mut dyn FnMut(u32, &[i64], DType) -> u64,
    local: &dyn Fn(u32) -> u64,
) -> u64 {
    match s.kind() {
        Kind::Const(c) => *c,
        Kind::Index(e) => e.eval(leaf).unwrap_or_else(|| panic!("index {e} has an unbound leaf")) as u64,
        Kind::Read { source, index, guard } => {
            if let Some((cond, fallback)) = guard
                && scalar(*cond, leaf, read, local) == 0
            {
                return scalar(*fallback, leaf, read, local);
            }
            let at: Vec<i64> = index.iter().map(|&i| scalar(i, leaf, read, local) as i64).collect();
            read(*source, &at, s.dtype())
        }
        Kind::Local(n) => local(*n),
        Kind::Unary(op, a) => unary(*op, a.dtype(), scalar(*a, leaf, read, local)),
        Kind::Binary(op, a, b) => {
            let x = scalar(*a, leaf, read, local);
            binary(*op, a.dtype(), x, scalar(*b, leaf, read, local))
        }
        Kind::Fma(a, b, c) => {
            let [x, y, z] = [a, b, c].map(|&v| scalar(v, leaf, read, local));
            fma(s.dtype(), x, y, z)
        }
        Kind::Select(c, a, b) => scalar(if scalar(*c, leaf, read, local) != 0 { *a } else { *b }, leaf, read, local),
        Kind::Cast(a) => cast(a.dtype(), s.dtype(), scalar(*a, leaf, read, local)),
        Kind::Bitcast(a) => from_memory(s.dtype(), to_memory(a.dtype(), scalar(*a, leaf, read, local))),
    }
}

/// Folds a node whose operands are all constants; anything else comes back as it is.
pub fn fold(s: Scalar) -> Scalar {
    let constant =
        |s: Scalar| matches!(s.kind(), Kind::Const(_)) || s.as_index().is_some_and(|e| matches!(e.node(), Node::Const(_)));
    let foldable = match s.kind() {
        Kind::Const(_) | Kind::Index(_) | Kind::Local(_) | Kind::Read { .. } | Kind::Select(..) => false,
        _ => s.operands().into_iter().all(constant),
    };
    if !foldable {
        return s;
    }
    let bits = scalar(s, &|_| None, &mut |_, _, _| 0, &|_| 0);
    Scalar::raw(s.dtype(), Kind::Const(bits))
}
