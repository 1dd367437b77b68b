//! Reads of a short row, one element for each lane: the row is loaded, and an instruction picks from registers.
//!
//! A read `b[.., i]` is one where all indices but the last are the same for all lanes, the last one comes from data, and the row is 1, 2, 4
//! or 8 registers of contiguous f32. An index is within its dim and no row leaves its buffer, so that the whole row may be loaded, and bits of the index beyond
//! it need not be looked at. VPERMPS picks from one register, VPERMT2PS from two (`TargetDesc::lookup`); of more the right one is selected. Integers of four bits become floats in
//! the same way.

use crate::access::Shape;
use crate::emit::Emit;
use crate::ir::{Elem, Ty, Val};
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Fault, Scalar};

/// Registers of the longest row.
const MOST: i64 = 8;

impl Emit<'_> {
    /// The elements of `buffer` at `index`, if it is such a read; else nothing.
    pub(crate) fn lookup(&mut self, buffer: usize, index: &[Scalar]) -> Result<Option<Val>, Fault> {
        let b = &self.kernel.buffers[buffer];
        let (Some(lanes), Some((&at, row))) = (self.lanes, index.split_last()) else { return Ok(None) };
        let full = self.tables > 0 && i64::from(lanes) == self.width && (lanes == 8 || lanes == 16);
        if !full || b.dtype != DType::F32 || at.as_index().is_some() || index.len() != b.dims.len() {
            return Ok(None);
        }
        let (dim, stride) = (b.dims[row.len()].known().unwrap_or(0), b.strides[row.len()]);
        let registers = dim / self.width;
        if dim % self.width != 0 || !(1..=MOST).contains(&registers) || registers.count_ones() != 1 || !stride.is(1) {
            return Ok(None);
        }
        let at = self.scalar(picker(at, dim))?;
        let start: Vec<Scalar> = row.iter().copied().chain([Scalar::index(0)]).collect();
        if at.uniform() || at.ty.elem.bits() < 32 {
            return Ok(None);
        }
        let Shape::One(start) = self.shape(buffer, &start)? else { return Ok(None) };
        let at = if at.ty.elem == Elem::I32 { at } else { self.f.cast("trunc", at, Elem::I32) };
        let ty = Ty::new(Elem::F32, lanes);
        let registers: Vec<Val> = (0..registers)
            .map(|r| {
                let p = self.f.gep(start, Elem::F32, Val::i64(r * self.width));
                self.f.load(ty, p, 4)
            })
            .collect();
        Ok(Some(self.pick(&registers, at)))
    }

    /// The low four bits of a word as a float, for each lane of a register of 16: picked from the numbers 0 to 15 in a register, which looks at no other bits, so
    /// that they need neither be cut off nor converted.
    pub(crate) fn nibble(&mut self, s: Scalar, to: DType) -> Result<Option<Val>, Fault> {
        let Some(word) = low_four(s).filter(|_| to == DType::F32 && self.tables > 0 && self.width == 16) else { return Ok(None) };
        let word = self.scalar(word)?;
        if word.ty.lanes % 16 != 0 {
            return Ok(None);
        }
        let numbers: Vec<String> = (0..16).map(|n| format!("float {n}.0")).collect();
        let numbers = self.f.named(Ty::new(Elem::F32, 16), &format!("<{}>", numbers.join(", ")));
        let pieces = (0..word.ty.lanes / 16).map(|k| {
            let at = self.lanes_of(word, 16 * k, 16);
            self.pick(&[numbers], at)
        });
        let pieces = pieces.collect();
        Ok(Some(self.joined(pieces)))
    }

    /// Element `at` of the registers in a row, for each lane.
    fn pick(&mut self, registers: &[Val], at: Val) -> Val {
        let bits = at.ty.lanes * 32;
        match registers {
            &[one] if at.ty.lanes == 8 => self.f.intrinsic("llvm.x86.avx2.permps", &[], one.ty, &[one, at]),
            &[one] => self.f.intrinsic("llvm.x86.avx512.permvar.sf.512", &[], one.ty, &[one, at]),
            &[low, high] if self.tables == 2 => {
                self.f.intrinsic(&format!("llvm.x86.avx512.vpermi2var.ps.{bits}"), &[], low.ty, &[low, at, high])
            }
            more => {
                let (low, high) = more.split_at(more.len() / 2);
                let bit = low.len() as i64 * self.width;
                let (low, high) = (self.pick(low, at), self.pick(high, at));
                let bit = self.f.bin("and", at, Val::int(Elem::I32, bit));
                let upper = self.f.cmp("icmp ne", bit, Val::int(Elem::I32, 0));
                self.f.select(upper, high, low)
            }
        }
    }
}

/// The word of which a scalar is the low four bits.
fn low_four(s: Scalar) -> Option<Scalar> {
    match s.kind() {
        Kind::Cast(narrow) if s.dtype() == DType::I32 && narrow.dtype() == DType::U32 => low_four(*narrow),
        Kind::Binary(Binary::And, word, mask) if s.dtype() == DType::U32 && mask.as_int() == Some(15) => Some(*word),
        _ => None,
    }
}

/// An index below `dim` (a power of two), without widening and masks that only clear bits beyond `dim`.
fn picker(index: Scalar, dim: i64) -> Scalar {
    match index.kind() {
        Kind::Cast(narrow) if matches!(narrow.dtype(), DType::U32 | DType::I32) => picker(*narrow, dim),
        Kind::Binary(Binary::And, wide, mask) if mask.as_int().is_some_and(|m| m & (dim - 1) == dim - 1) => picker(*wide, dim),
        _ => index,
    }
}
