//! Dot products of bytes: the row `byte_dot` as VPDPBUSD.
//!
//! The row writes a step as `sum + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3` in i32, where `a0..` are unsigned bytes side by side, the same for
//! all lanes, and `b0..` signed bytes side by side in each lane. That is found again here; anything else is emitted as written.
//! Intel's manual: VPDPBUSD adds the four products without saturating them or the sum.

use crate::access::Shape;
use crate::emit::Emit;
use crate::ir::{Elem, Ty, Val};
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar};

/// Lanes of the instruction's widest form.
const WIDEST: u32 = 16;

impl Emit<'_> {
    /// The value of a sum if it is a step of a dot product, else nothing.
    pub fn dot(&mut self, s: Scalar) -> Result<Option<Val>, Fault> {
        let lanes = self.lanes.unwrap_or(1);
        let Some((sum, a, b)) = step(s).filter(|_| lanes >= 4 && self.mask.is_none()) else { return Ok(None) };
        let (Some(left), Some(right)) = (self.side_by_side(a), self.side_by_side(b)) else { return Ok(None) };
        let (Shape::One(left), Shape::Step(right, 4)) = (self.place(left)?, self.place(right)?) else { return Ok(None) };
        let acc = self.scalar(sum)?;
        let acc = self.f.splat(acc, lanes);
        let word = self.f.load(Ty::new(Elem::I32, 1), left, 1);
        let piece = lanes.min(WIDEST).min(self.width as u32);
        let ty = Ty::new(Elem::I32, piece);
        let factor = self.f.splat(word, piece);
        let name = format!("llvm.x86.avx512.vpdpbusd.{}", piece * 32);
        let parts: Vec<Val> = (0..lanes / piece)
            .map(|k| {
                let at = self.f.gep(right, Elem::I32, Val::i64(i64::from(k * piece)));
                let vector = self.f.load(ty, at, 1);
                let acc = self.lanes_of(acc, k * piece, piece);
                self.f.intrinsic(&name, &[], ty, &[acc, factor, vector])
            })
            .collect();
        Ok(Some(self.joined(parts)))
    }

    /// The first of four reads if the others follow it in memory.
    fn side_by_side(&mut self, reads: [Scalar; 4]) -> Option<Scalar> {
        let part = |s: Scalar| match s.kind() {
            Kind::Read { source, index, guard: None } => Some((*source as usize, index)),
            _ => None,
        };
        let (source, first) = part(reads[0])?;
        let strides = self.kernel.buffers[source].strides.clone();
        for (k, &read) in reads.iter().enumerate() {
            let (same, index) = part(read)?;
            let mut distance = Expr::int(0);
            for ((i, f), &stride) in index.iter().zip(first).zip(&strides) {
                distance = distance + self.resolve((i.as_index()? - f.as_index()?) * stride);
            }
            if same != source || distance.known() != Some(k as i64) {
                return None;
            }
        }
        Some(reads[0])
    }

    fn place(&mut self, read: Scalar) -> Result<Shape, Fault> {
        match read.kind() {
            Kind::Read { source, index, .. } => self.shape(*source as usize, index),
            _ => unreachable!("a read, by `side_by_side`"),
        }
    }
}

/// The sum before, the unsigned and the signed bytes.
fn step(s: Scalar) -> Option<(Scalar, [Scalar; 4], [Scalar; 4])> {
    let byte = |s: Scalar, dtype: DType| match s.kind() {
        Kind::Cast(read) if read.dtype() == dtype => Some(*read),
        _ => None,
    };
    let (mut at, mut a, mut b) = (s, [s; 4], [s; 4]);
    for k in (0..4).rev() {
        let Kind::Binary(Binary::Add, before, product) = at.kind() else { return None };
        let Kind::Binary(Binary::Mul, x, y) = product.kind() else { return None };
        (a[k], b[k]) = (byte(*x, DType::U8)?, byte(*y, DType::I8)?);
        at = *before;
    }
    Some((at, a, b))
}
