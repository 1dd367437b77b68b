//! Dot products of bytes as instructions: the row `byte_dot` as VPDPBUSD or USDOT, `byte_pairs` as PMADDWD.
//!
//! A step is written as `sum + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3` in i32, where `a0..` are unsigned bytes, side by side and the same for
//! all lanes, or each in a vector of its own, and `b0..` signed bytes side by side in each lane, four to a lane even where fewer are used; or where `a0..` are
//! signed bytes, side by side and the same for all lanes, and `b0..` unsigned ones, side by side in each lane, or the four bytes of a word that is computed.
//! That is found again here; anything else is emitted as written.
//! Bytes of the other sign with their top bits flipped may stand for either: all four are flipped at once.
//! Cranelift has no such instructions of its own. It makes them from a tree of widenings, products and sums of neighbours, and without the instruction what the tree says:
//! the result is the same.

use crate::access::{At, Shape};
use crate::emit::Emit;
use crate::values::{Bin, Cast, Elem, Ty, Val};
use cranelift_codegen::ir::{InstBuilder, Value, types};
use infc_ir::scalar::Kind;
use infc_ir::{Expr, Fault, Scalar};
use infc_kernel::recognised::{Kinds, Products};

/// Products of a lane.
const GROUP: usize = 4;

impl Emit<'_, '_> {
    /// The value of a sum if it is a step of a dot product, else nothing.
    pub fn dot(&mut self, s: Scalar) -> Result<Option<Val>, Fault> {
        if self.lanes.unwrap_or(1) < 4 {
            return Ok(None);
        }
        // Without the instruction a single product is cheaper as it is.
        let least = if self.byte_pairs { 2 } else { 1 };
        for count in (least..=GROUP).rev() {
            let Some(step) = Products::of(s, count).filter(|p| p.kinds != Kinds::Signed) else { continue };
            if let Some(word) = step.word {
                let Some(left) = self.word(&step)? else { continue };
                let right = self.scalar(word)?;
                return self.products_of(&step, left, right).map(Some);
            }
            let Some(right) = self.side_by_side(&step.b) else { continue };
            if count == 1 && !self.begins_group(right) {
                continue;
            }
            let (Shape::Step(right, 4), source) = (self.place(right)?, source(right)) else { continue };
            let left = if step.kinds == Kinds::SignedUnsigned { self.word(&step)? } else { self.unsigned(&step)? };
            if let Some(left) = left {
                return self.dot_of(&step, left, right, source).map(Some);
            }
        }
        Ok(None)
    }

    /// The bytes on the left as a word, if they lie so and are the same for all lanes.
    fn word(&mut self, step: &Products) -> Result<Option<Val>, Fault> {
        if step.a.len() == GROUP
            && let Some(first) = self.side_by_side(&step.a)
            && let Shape::One(at) = self.place(first)?
        {
            return Ok(Some(self.load_at(source(first), Ty::new(Elem::I32, 1), at)));
        }
        Ok(None)
    }

    /// The unsigned bytes in words, the same for all lanes or one for each.
    fn unsigned(&mut self, step: &Products) -> Result<Option<Val>, Fault> {
        let lanes = self.lanes.unwrap_or(1);
        let mut word = self.word(step)?;
        if word.is_none() {
            for (k, &read) in step.a.iter().enumerate() {
                if !matches!(self.place(read)?, Shape::Step(_, 1)) {
                    return Ok(None);
                }
                let byte = self.scalar(read)?;
                let byte = self.f.splat(byte, lanes);
                let wide = self.f.cast(Cast::Zext, byte, Elem::I32);
                let moved = self.f.bin(Bin::Shl, wide, Val::int(Elem::I32, 8 * k as i64));
                word = Some(word.map_or(moved, |w| self.f.bin(Bin::Or, w, moved)));
            }
        }
        Ok(word)
    }

    fn dot_of(&mut self, step: &Products, left: Val, right: At, source: usize) -> Result<Val, Fault> {
        let lanes = self.lanes.unwrap_or(1);
        let ty = Ty::new(Elem::I32, lanes);
        let vector = match self.mask {
            Some(mask) => {
                let mask = self.f.splat(mask, lanes);
                self.masked_load(source, ty, right, mask)
            }
            None => self.load_at(source, ty, right),
        };
        self.products_of(step, left, vector)
    }

    /// The sum before and the products of the words on both sides.
    fn products_of(&mut self, step: &Products, left: Val, vector: Val) -> Result<Val, Fault> {
        let lanes = self.lanes.unwrap_or(1);
        let ty = Ty::new(Elem::I32, lanes);
        let acc = self.scalar(step.sum)?;
        let acc = self.f.splat(acc, lanes);
        let [left, vector] = [(left, step.flips[0]), (vector, step.flips[1])].map(|(v, flip)| {
            let v = if flip { self.f.bin(Bin::Xor, v, Val::int(Elem::I32, i64::from(step.top_bits()))) } else { v };
            self.f.splat(v, lanes)
        });
        let (unsigned, signed) = if step.kinds == Kinds::SignedUnsigned { (vector, left) } else { (left, vector) };
        if self.byte_pairs {
            return Ok(self.pairs_of_words(acc, unsigned, signed));
        }
        let (acc, unsigned, signed) = (self.f.pieces(acc), self.f.pieces(unsigned), self.f.pieces(signed));
        let pieces = (0..acc.len()).map(|i| self.four_products(acc[i], unsigned[i], signed[i])).collect();
        Ok(self.f.many(ty, pieces))
    }

    /// `acc` and four products of bytes in each lane, as the tree that Cranelift knows.
    fn four_products(&mut self, acc: Value, unsigned: Value, signed: Value) -> Value {
        let (u, s) = (self.f.cast_vector(types::I8X16, unsigned), self.f.cast_vector(types::I8X16, signed));
        let (s_low, u_low) = (self.f.b.ins().swiden_low(s), self.f.b.ins().uwiden_low(u));
        let (s_high, u_high) = (self.f.b.ins().swiden_high(s), self.f.b.ins().uwiden_high(u));
        // Which factor comes first is part of what each machine's rule knows.
        let [low, high] = [(s_low, u_low), (s_high, u_high)].map(|(s, u)| {
            let (x, y) = if self.f.arm { (u, s) } else { (s, u) };
            self.f.b.ins().imul(x, y)
        });
        let [low, high] = [low, high].map(|products| {
            let (a, b) = (self.f.b.ins().swiden_low(products), self.f.b.ins().swiden_high(products));
            self.f.b.ins().iadd_pairwise(a, b)
        });
        let sum = self.f.b.ins().iadd_pairwise(low, high);
        self.f.b.ins().iadd(sum, acc)
    }

    /// Four products a lane without an instruction for them: even and odd bytes are widened to 16 bits, and PMADDWD adds the products of pairs. No
    /// product or sum of two saturates or wraps.
    fn pairs_of_words(&mut self, acc: Val, unsigned: Val, signed: Val) -> Val {
        let words = acc.ty.lanes * 2;
        let [a, b] = [unsigned, signed].map(|v| {
            let pieces = self.f.pieces(v).into_iter().map(|p| self.f.cast_vector(types::I16X8, p)).collect();
            self.f.many(Ty::new(Elem::I16, words), pieces)
        });
        let eight = Val::int(Elem::I16, 8);
        let even = (self.f.bin(Bin::And, a, Val::int(Elem::I16, 0xff)), self.f.bin(Bin::Shl, b, eight));
        let even = (even.0, self.f.bin(Bin::AShr, even.1, eight));
        let odd = (self.f.bin(Bin::LShr, a, eight), self.f.bin(Bin::AShr, b, eight));
        let [x, y] = [even, odd].map(|(a, b)| {
            let (a, b) = (self.f.pieces(a), self.f.pieces(b));
            let pieces = (0..a.len()).map(|i| self.pairs(a[i], b[i])).collect();
            self.f.many(acc.ty, pieces)
        });
        let both = self.f.bin(Bin::Add, x, y);
        self.f.bin(Bin::Add, acc, both)
    }

    /// Sums of two neighbouring products of 16 bits, as the tree that Cranelift knows.
    fn pairs(&mut self, a: Value, b: Value) -> Value {
        let (a_low, b_low) = (self.f.b.ins().swiden_low(a), self.f.b.ins().swiden_low(b));
        let (a_high, b_high) = (self.f.b.ins().swiden_high(a), self.f.b.ins().swiden_high(b));
        let low = self.f.b.ins().imul(a_low, b_low);
        let high = self.f.b.ins().imul(a_high, b_high);
        self.f.b.ins().iadd_pairwise(low, high)
    }

    /// The first of some reads if the others follow it in memory.
    fn side_by_side(&mut self, reads: &[Scalar]) -> Option<Scalar> {
        let part = |s: Scalar| match s.kind() {
            Kind::Read { source, index, guard: None } => Some((*source as usize, index)),
            _ => None,
        };
        let (source, first) = part(reads[0])?;
        for (k, &read) in reads.iter().enumerate() {
            let (same, index) = part(read)?;
            if same != source || self.distance(source, first, index)? != k as i64 {
                return None;
            }
        }
        Some(reads[0])
    }

    /// Is it the first of the four of a group? What is no group may end with it.
    fn begins_group(&self, read: Scalar) -> bool {
        let Kind::Read { source, index, .. } = read.kind() else { return false };
        let b = &self.kernel.buffers[*source as usize];
        let groups = b.dims.last().zip(b.strides.last()).is_some_and(|(d, s)| d.is(GROUP as i64) && s.is(1));
        groups && index.last().and_then(|i| i.as_index()).is_some_and(|e| self.resolve(e).is(0))
    }

    /// How far the element at one index lies behind that at another, if it is as far for all lanes and in each round of all loops.
    pub(crate) fn distance(&self, buffer: usize, from: &[Scalar], to: &[Scalar]) -> Option<i64> {
        let mut distance = Expr::int(0);
        for ((i, f), &stride) in to.iter().zip(from).zip(&self.kernel.buffers[buffer].strides) {
            distance = distance + self.resolve((i.as_index()? - f.as_index()?) * stride);
        }
        distance.known()
    }

    fn place(&mut self, read: Scalar) -> Result<Shape, Fault> {
        match read.kind() {
            Kind::Read { source, index, .. } => self.shape(*source as usize, index),
            _ => unreachable!("a read, by `side_by_side`"),
        }
    }
}

/// The buffer of a read.
fn source(read: Scalar) -> usize {
    match read.kind() {
        Kind::Read { source, .. } => *source as usize,
        _ => unreachable!("a read, by `side_by_side`"),
    }
}
