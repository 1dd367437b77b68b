//! Quantisation in few instructions: `cast(u8, min(max(round(x) + zero, 0), hi))`, and the float that this stands for.
//!
//! With bounds that are integers, limiting and rounding may change places, and the zero point may be taken off the bounds:
//! `round(min(max(x, 0 - zero), hi - zero))` is the stored value less its zero point. It is rounded, ties to even, by adding a number at whose
//! size floats are one apart; the low bits of the sum are the integer then. NaN takes the lower bound, which stands for the stored 0.

use crate::emit::{Emit, clamped};
use crate::ops;
use crate::values::{Cast, Elem, Val};
use cranelift_codegen::ir::condcodes::FloatCC;
use infc_ir::scalar::{Binary, Kind, Scalar, Unary};
use infc_ir::{DType, Fault};

/// At this size neighbouring f32 are one apart, below and above: 3/2 * 2^23. Its low 16 bits are zero.
const UNIT: f64 = 12_582_912.0;

/// A value that is quantised to unsigned integers of 16 bits at most.
pub(crate) struct Quantised {
    /// In units of the scale.
    x: Scalar,
    /// The zero point, an integer as f32; `None` if it is 0.
    zero: Option<Scalar>,
    /// The largest stored value.
    hi: f64,
}

impl Quantised {
    /// The quantisation that `cast(to, limited)` is.
    pub fn of(limited: Scalar, to: DType) -> Option<Quantised> {
        let (inner, hi) = clamped(limited, to)?;
        let rounded = |s: Scalar| match s.kind() {
            Kind::Unary(Unary::Round, x) => Some(*x),
            _ => None,
        };
        if hi.fract() != 0.0 {
            return None;
        }
        if let Some(x) = rounded(inner) {
            return Some(Quantised { x, zero: None, hi });
        }
        let Kind::Binary(Binary::Add, a, b) = inner.kind() else { return None };
        let (x, zero) = rounded(*a).map(|x| (x, *b)).or_else(|| rounded(*b).map(|x| (x, *a)))?;
        let small = |d: DType| matches!(d, DType::U8 | DType::I8 | DType::U16 | DType::I16);
        match zero.kind() {
            Kind::Cast(z) if small(z.dtype()) => Some(Quantised { x, zero: Some(zero), hi }),
            Kind::Const(_) if zero.as_float()?.fract() == 0.0 && zero.as_float()?.abs() <= 65535.0 => {
                Some(Quantised { x, zero: (zero.as_float() != Some(0.0)).then_some(zero), hi })
            }
            _ => None,
        }
    }

    /// The quantisation whose result `cast(f32, whole)` takes back, less the same zero point.
    pub fn back(whole: Scalar, to: DType) -> Option<Quantised> {
        if to != DType::F32 || whole.dtype() != DType::I32 {
            return None;
        }
        let wide = |s: Scalar| match s.kind() {
            Kind::Cast(a) => Some(*a),
            _ => None,
        };
        let stored = |s: Scalar| {
            let narrow = wide(s)?;
            Quantised::of(wide(narrow)?, narrow.dtype())
        };
        let Kind::Binary(Binary::Sub, a, b) = whole.kind() else {
            return stored(whole).filter(|q| q.zero.is_none());
        };
        let q = stored(*a)?;
        let same = match (q.zero?.kind(), b.kind()) {
            (Kind::Cast(x), Kind::Cast(y)) => x == y,
            (Kind::Const(_), Kind::Const(_)) => q.zero?.as_float() == b.as_int().map(|z| z as f64),
            _ => false,
        };
        same.then_some(q)
    }
}

impl Emit<'_, '_> {
    /// The stored value less its zero point, plus [`UNIT`].
    fn in_units(&mut self, q: &Quantised) -> Result<Val, Fault> {
        let x = self.scalar(q.x)?;
        let (mut lo, mut hi) = (Val::float(Elem::F32, 0.0), Val::float(Elem::F32, q.hi));
        if let Some(z) = q.zero {
            let z = self.scalar(z)?;
            lo = ops::binary(&mut self.f, Binary::Sub, DType::F32, lo, z)?;
            hi = ops::binary(&mut self.f, Binary::Sub, DType::F32, hi, z)?;
        }
        let above = self.f.fcmp(FloatCC::LessThan, lo, x);
        let x = self.f.select(above, x, lo);
        let below = self.f.fcmp(FloatCC::LessThan, x, hi);
        let x = self.f.select(below, x, hi);
        ops::binary(&mut self.f, Binary::Add, DType::F32, x, Val::float(Elem::F32, UNIT))
    }

    /// The stored value.
    pub fn quantise(&mut self, q: &Quantised, to: DType) -> Result<Val, Fault> {
        let sum = self.in_units(q)?;
        let mut bits = self.f.cast(Cast::Bitcast, sum, Elem::I32);
        if let Some(z) = q.zero {
            let z = match z.kind() {
                Kind::Cast(stored) => stored.cast(DType::I32),
                _ => z.cast(DType::I32),
            };
            let z = self.scalar(z)?;
            bits = ops::binary(&mut self.f, Binary::Add, DType::I32, bits, z)?;
        }
        Ok(self.f.cast(Cast::Trunc, bits, ops::value_elem(to)?))
    }

    /// The stored value less its zero point, as a float.
    pub fn quantise_and_back(&mut self, q: &Quantised) -> Result<Val, Fault> {
        let sum = self.in_units(q)?;
        ops::binary(&mut self.f, Binary::Sub, DType::F32, sum, Val::float(Elem::F32, UNIT))
    }
}
