//! Conversions of all lanes.

use crate::arith::{Lanes, int};
use crate::inst::{IntRound, Round, Ty};

/// A float of any type as f64.
pub(crate) fn float(x: u64, ty: Ty) -> f64 {
    match ty {
        Ty::F64 => f64::from_bits(x),
        Ty::F16 => half::f16::from_bits(x as u16).to_f64(),
        Ty::BF16 => half::bf16::from_bits(x as u16).to_f64(),
        _ => f64::from(f32::from_bits(x as u32)),
    }
}

/// f64 rounded to the nearest float of a type.
pub(crate) fn bits(x: f64, ty: Ty) -> u64 {
    match ty {
        Ty::F64 => {
            if x.is_nan() {
                0x7fff_ffff_ffff_ffff
            } else {
                x.to_bits()
            }
        }
        _ if x.is_nan() => match ty {
            Ty::F16 | Ty::BF16 => 0x7fff,
            _ => 0x7fff_ffff,
        },
        Ty::F16 => u64::from(half::f16::from_f32(odd(x)).to_bits()),
        Ty::BF16 => u64::from(half::bf16::from_f32(odd(x)).to_bits()),
        // `rna`: ties away from zero.
        Ty::TF32 => u64::from((odd(x).to_bits() + 0x1000) & !0x1fff),
        _ => u64::from((x as f32).to_bits()),
    }
}

/// f32 rounded to odd, so that a further rounding is as good as one.
fn odd(x: f64) -> f32 {
    let near = x as f32;
    let back = f64::from(near);
    if back == x || x.is_nan() {
        return near;
    }
    f32::from_bits((near.to_bits() - u32::from(back.abs() > x.abs())) | 1)
}

fn to_int(x: f64, round: IntRound) -> f64 {
    match round {
        IntRound::Nearest => x.round_ties_even(),
        IntRound::Zero => x.trunc(),
        IntRound::Down => x.floor(),
        IntRound::Up => x.ceil(),
    }
}

/// `cvt`; `None` if there is no such instruction.
pub(crate) fn convert(to: Ty, from: Ty, round: Round, a: &Lanes) -> Option<Lanes> {
    let one: &dyn Fn(u64) -> u64 = match (from.is_float(), to.is_float(), round) {
        (true, true, Round::ToInt(r)) => &move |x| bits(to_int(float(x, from), r), to),
        // Narrowing needs a rounding, widening must have none.
        (true, true, Round::Nearest) if to.bytes() < from.bytes() || to == Ty::TF32 => &move |x| bits(float(x, from), to),
        (true, true, Round::None) if to.bytes() > from.bytes() => &move |x| bits(float(x, from), to),
        (true, false, Round::ToInt(r)) => {
            let bits = 8 * to.bytes() as u32;
            let (lo, hi) = match to.is_signed() {
                true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
                false => (0, (1i128 << bits) - 1),
            };
            &move |x| {
                let v = float(x, from);
                // What NaN becomes depends on the types; kernels must not ask.
                let v = if v.is_nan() { hi / 3 } else { (to_int(v, r) as i128).clamp(lo, hi) };
                if bits == 64 { v as u64 } else { v as u64 & ((1 << bits) - 1) }
            }
        }
        (false, true, Round::Nearest) if to == Ty::F32 => &move |x| u64::from((int(x, from) as f32).to_bits()),
        (false, true, Round::Nearest) if to == Ty::F64 => &move |x| (int(x, from) as f64).to_bits(),
        (false, false, Round::None) => {
            let keep = if to.bytes() == 8 { u64::MAX } else { (1u64 << (8 * to.bytes())) - 1 };
            &move |x| int(x, from) as u64 & keep
        }
        _ => return None,
    };
    let mut out = [0; 32];
    for l in 0..32 {
        out[l] = one(a[l]);
    }
    Some(out)
}
