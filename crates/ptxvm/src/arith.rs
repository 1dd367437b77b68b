//! Arithmetic of all lanes of a warp: raw bits in, raw bits out.

use crate::inst::{Bin, Cmp, Ty, Un};

/// A register of all lanes.
pub(crate) type Lanes = [u64; 32];

macro_rules! each {
    (|$($x:ident),+| $body:expr) => {{
        let mut out = [0u64; 32];
        for l in 0..32 {
            $(let $x = $x[l];)+
            out[l] = $body;
        }
        out
    }};
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}
fn d(x: u64) -> f64 {
    f64::from_bits(x)
}
fn rf(x: f32) -> u64 {
    u64::from(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() })
}
fn rd(x: f64) -> u64 {
    if x.is_nan() { 0x7fff_ffff_ffff_ffff } else { x.to_bits() }
}
fn mask(x: u64, ty: Ty) -> u64 {
    match ty.bytes() {
        1 if ty == Ty::Pred => x & 1,
        1 => x & 0xff,
        2 => x & 0xffff,
        4 => x & 0xffff_ffff,
        _ => x,
    }
}
/// The value of an integer, extended by its sign.
pub(crate) fn int(x: u64, ty: Ty) -> i128 {
    match ty {
        Ty::S8 => i128::from(x as i8),
        Ty::S16 => i128::from(x as i16),
        Ty::S32 => i128::from(x as i32),
        Ty::S64 => i128::from(x as i64),
        _ => i128::from(mask(x, ty)),
    }
}

/// The smaller or larger of two floats; -0 is less than +0. With `nan`, NaN if either is.
fn pick(x: f64, y: f64, less: bool, nan: bool) -> f64 {
    if x.is_nan() || y.is_nan() {
        return if nan || x.is_nan() && y.is_nan() {
            f64::NAN
        } else if x.is_nan() {
            y
        } else {
            x
        };
    }
    let x_first = if x == y { x.is_sign_negative() } else { x < y };
    if x_first == less { x } else { y }
}

/// Two operands; `None` if there is no such instruction.
pub(crate) fn binary(op: Bin, ty: Ty, a: &Lanes, b: &Lanes) -> Option<Lanes> {
    Some(match (op, ty) {
        (Bin::Add, Ty::F32) => each!(|a, b| rf(f(a) + f(b))),
        (Bin::Sub, Ty::F32) => each!(|a, b| rf(f(a) - f(b))),
        (Bin::Mul, Ty::F32) => each!(|a, b| rf(f(a) * f(b))),
        (Bin::Div, Ty::F32) => each!(|a, b| rf(f(a) / f(b))),
        (Bin::Add, Ty::F64) => each!(|a, b| rd(d(a) + d(b))),
        (Bin::Sub, Ty::F64) => each!(|a, b| rd(d(a) - d(b))),
        (Bin::Mul, Ty::F64) => each!(|a, b| rd(d(a) * d(b))),
        (Bin::Div, Ty::F64) => each!(|a, b| rd(d(a) / d(b))),
        (Bin::Min | Bin::MinNan, Ty::F32) => each!(|a, b| rf(pick(f(a).into(), f(b).into(), true, op == Bin::MinNan) as f32)),
        (Bin::Max | Bin::MaxNan, Ty::F32) => each!(|a, b| rf(pick(f(a).into(), f(b).into(), false, op == Bin::MaxNan) as f32)),
        (Bin::Min, Ty::F64) => each!(|a, b| rd(pick(d(a), d(b), true, false))),
        (Bin::Max, Ty::F64) => each!(|a, b| rd(pick(d(a), d(b), false, false))),
        (Bin::CopySign, Ty::F32) => each!(|a, b| (b & 0x7fff_ffff) | (a & 0x8000_0000)),
        (Bin::CopySign, Ty::F64) => each!(|a, b| (b & !(1 << 63)) | (a & (1 << 63))),
        (_, t) if t.is_float() || t == Ty::F16x2 => return None,
        (Bin::Add, Ty::S32 | Ty::U32 | Ty::B32) => each!(|a, b| u64::from((a as u32).wrapping_add(b as u32))),
        (Bin::Add, Ty::S64 | Ty::U64) => each!(|a, b| a.wrapping_add(b)),
        (Bin::Sub, Ty::S64 | Ty::U64) => each!(|a, b| a.wrapping_sub(b)),
        (Bin::Mul, Ty::S64 | Ty::U64) => each!(|a, b| a.wrapping_mul(b)),
        (Bin::And, _) => each!(|a, b| mask(a & b, ty)),
        (Bin::Or, _) => each!(|a, b| mask(a | b, ty)),
        (Bin::Xor, _) => each!(|a, b| mask(a ^ b, ty)),
        (_, Ty::Pred) => return None,
        (Bin::Add, _) => each!(|a, b| mask(a.wrapping_add(b), ty)),
        (Bin::Sub, _) => each!(|a, b| mask(a.wrapping_sub(b), ty)),
        (Bin::Mul, _) => each!(|a, b| mask(a.wrapping_mul(b), ty)),
        (Bin::MulHi, Ty::S64) => each!(|a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
        (Bin::MulHi, Ty::U64) => each!(|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        (Bin::MulHi, Ty::U32) => each!(|a, b| (u64::from(a as u32) * u64::from(b as u32)) >> 32),
        (Bin::MulHi, Ty::S32) => each!(|a, b| u64::from(((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32)),
        (Bin::MulHi, _) => return None,
        (Bin::MulWide, Ty::S32) => each!(|a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64),
        (Bin::MulWide, Ty::U32) => each!(|a, b| u64::from(a as u32) * u64::from(b as u32)),
        (Bin::MulWide, _) => return None,
        // What a machine gives for these is not defined; kernels must not ask, and get something that shows.
        (Bin::Div | Bin::Rem, Ty::U32) => {
            let rem = op == Bin::Rem;
            each!(|a, b| {
                let (a, b) = (a as u32, b as u32);
                u64::from(if b == 0 {
                    0xdead_beef
                } else if rem {
                    a % b
                } else {
                    a / b
                })
            })
        }
        (Bin::Div | Bin::Rem, Ty::U64) => {
            let rem = op == Bin::Rem;
            each!(|a, b| if b == 0 {
                0xdead_beef_dead_beef
            } else if rem {
                a % b
            } else {
                a / b
            })
        }
        (Bin::Div | Bin::Rem, _) => each!(|a, b| {
            let (x, y) = (int(a, ty), int(b, ty));
            let bad = y == 0 || y == -1 && x == -(1i128 << (8 * ty.bytes() - 1));
            mask(if bad { 0xdead_beef_dead_beef } else { (if op == Bin::Div { x / y } else { x % y }) as u64 }, ty)
        }),
        (Bin::Min, _) => each!(|a, b| mask(int(a, ty).min(int(b, ty)) as u64, ty)),
        (Bin::Max, _) => each!(|a, b| mask(int(a, ty).max(int(b, ty)) as u64, ty)),
        // Shifts beyond the width give 0, or the sign.
        (Bin::Shl, _) => each!(|a, b| if (b as u32) >= 8 * ty.bytes() as u32 { 0 } else { mask(a << (b as u32), ty) }),
        (Bin::Shr, _) => each!(|a, b| mask((int(a, ty) >> (b as u32).min(100)) as u64, ty)),
        (Bin::MinNan | Bin::MaxNan | Bin::CopySign, _) => return None,
    })
}

/// One operand.
pub(crate) fn unary(op: Un, ty: Ty, a: &Lanes) -> Option<Lanes> {
    Some(match (op, ty) {
        (Un::Neg, Ty::F32) => each!(|a| (a & 0xffff_ffff) ^ 0x8000_0000),
        (Un::Neg, Ty::F64) => each!(|a| a ^ (1 << 63)),
        (Un::Abs, Ty::F32) => each!(|a| a & 0x7fff_ffff),
        (Un::Abs, Ty::F64) => each!(|a| a & !(1 << 63)),
        (Un::Sqrt, Ty::F32) => each!(|a| rf(f(a).sqrt())),
        (Un::Sqrt, Ty::F64) => each!(|a| rd(d(a).sqrt())),
        (_, t) if t.is_float() => return None,
        (Un::Not, Ty::Pred) => each!(|a| a ^ 1),
        (Un::Not, _) => each!(|a| mask(!a, ty)),
        (Un::Neg, _) => each!(|a| mask(a.wrapping_neg(), ty)),
        (Un::Abs, _) => each!(|a| mask(int(a, ty).unsigned_abs() as u64, ty)),
        (Un::Clz, Ty::B64) => each!(|a| u64::from(a.leading_zeros())),
        (Un::Clz, _) => each!(|a| u64::from((a as u32).leading_zeros())),
        (Un::Sqrt, _) => return None,
    })
}

/// `a * b + c` with one rounding.
pub(crate) fn fma(ty: Ty, a: &Lanes, b: &Lanes, c: &Lanes) -> Option<Lanes> {
    Some(match ty {
        Ty::F32 => each!(|a, b, c| rf(f(a).mul_add(f(b), f(c)))),
        Ty::F64 => each!(|a, b, c| rd(d(a).mul_add(d(b), d(c)))),
        _ => return None,
    })
}

/// `a * b + c` of integers.
pub(crate) fn mad(ty: Ty, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    each!(|a, b, c| mask(a.wrapping_mul(b).wrapping_add(c), ty))
}

/// Four products of bytes added to c.
pub(crate) fn dp4a(signed: (bool, bool), a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    let byte = |x: u64, k: usize, signed: bool| {
        let v = (x >> (8 * k)) as u8;
        if signed { i64::from(v as i8) } else { i64::from(v) }
    };
    each!(|a, b, c| {
        let sum = (0..4).map(|k| byte(a, k, signed.0) * byte(b, k, signed.1)).sum::<i64>();
        u64::from((c as u32).wrapping_add(sum as u32))
    })
}

/// A field of bits, extended by its sign.
pub(crate) fn bfe(ty: Ty, a: &Lanes, start: &Lanes, len: &Lanes) -> Lanes {
    each!(|a, start, len| {
        let (start, len) = (start as u32 & 0xff, len as u32 & 0xff);
        if len == 0 || start > 63 {
            0
        } else {
            let x = int(a, ty) >> start;
            let shift = 128 - len.min(64);
            mask(if ty.is_signed() { ((x << shift) >> shift) as u64 } else { (((x as u128) << shift) >> shift) as u64 }, ty)
        }
    })
}

/// A comparison.
pub(crate) fn compare(cmp: Cmp, ty: Ty, a: &Lanes, b: &Lanes) -> Lanes {
    fn ordered<T: PartialOrd>(cmp: Cmp, x: &T, y: &T, nan: bool) -> bool {
        match cmp {
            Cmp::Eq => x == y,
            Cmp::Ne => x != y && !nan,
            Cmp::Lt => x < y,
            Cmp::Le => x <= y,
            Cmp::Gt => x > y,
            Cmp::Ge => x >= y,
            Cmp::Neu => x != y,
            Cmp::Nan => nan,
            Cmp::Num => !nan,
        }
    }
    match ty {
        Ty::F32 => each!(|a, b| u64::from(ordered(cmp, &f(a), &f(b), f(a).is_nan() || f(b).is_nan()))),
        Ty::F64 => each!(|a, b| u64::from(ordered(cmp, &d(a), &d(b), d(a).is_nan() || d(b).is_nan()))),
        Ty::S64 => each!(|a, b| u64::from(ordered(cmp, &(a as i64), &(b as i64), false))),
        Ty::S32 => each!(|a, b| u64::from(ordered(cmp, &(a as i32), &(b as i32), false))),
        _ => each!(|a, b| u64::from(ordered(cmp, &int(a, ty), &int(b, ty), false))),
    }
}
