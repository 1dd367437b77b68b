//! Quantisation in few instructions: `cast(u8, min(max(round(x) + zero, 0), hi))`, and the float that this stands for.
//!
//! With bounds that are integers, limiting and rounding may change places, and the zero point may be taken off the bounds:
//! `round(min(max(x, 0 - zero), hi - zero))` is the stored value less its zero point. It is rounded, ties to even, by adding a number at whose
//! size floats are one apart; the low bits of the sum are the integer then. NaN takes the lower bound, which stands for the stored 0.

use crate::emit::Emit;
use crate::ops;
use crate::values::{Cast, Elem, Val};
use cranelift_codegen::ir::condcodes::FloatCC;
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Fault};
use infc_kernel::recognised::Quantised;

/// At this size neighbouring f32 are one apart, below and above: 3/2 * 2^23. Its low 16 bits are zero.
const UNIT: f64 = 12_582_912.0;

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
