//! Conversions between types of values, and of masks between widths.

use crate::function::{Fun, count};
use crate::values::{Cast, Elem, Operand, Val, narrow};
use cranelift_codegen::ir::types;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value};

/// How the lanes of a vector become wider or narrower.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    Signed,
    Unsigned,
    /// Only all ones and zero.
    Mask,
}

impl Fun<'_> {
    /// Integer lanes of `from` bits as lanes of `to` bits.
    pub fn resize(&mut self, mut pieces: Vec<Value>, lanes: u32, from: u32, to: u32, how: Resize) -> Vec<Value> {
        let mut bits = from;
        while bits < to {
            let n = count(lanes, 2 * bits);
            let mut wide = vec![];
            for p in pieces {
                wide.push(match how {
                    Resize::Unsigned => self.b.ins().uwiden_low(p),
                    Resize::Signed | Resize::Mask => self.b.ins().swiden_low(p),
                });
                if wide.len() < n {
                    wide.push(match how {
                        Resize::Unsigned => self.b.ins().uwiden_high(p),
                        Resize::Signed | Resize::Mask => self.b.ins().swiden_high(p),
                    });
                }
            }
            pieces = wide;
            bits *= 2;
        }
        while bits > to {
            let pairs: Vec<(Value, Value)> = pieces.chunks(2).map(|c| (c[0], *c.last().unwrap_or(&c[0]))).collect();
            pieces = pairs.into_iter().map(|(a, b)| self.halved(a, b, bits, how)).collect();
            bits /= 2;
        }
        pieces
    }
    /// The low halves of the lanes of two vectors.
    pub fn halved(&mut self, a: Value, b: Value, bits: u32, how: Resize) -> Value {
        if bits == 64 {
            let r = self.shuffle(a, b, [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27]);
            return self.cast_vector(types::I32X4, r);
        }
        if how == Resize::Mask {
            return self.b.ins().snarrow(a, b);
        }
        // No sum of saturation is needed: the upper half is cleared before.
        let low = self.vector_of(Elem::int(bits), |_| (1 << (bits / 2)) - 1);
        let (a, b) = (self.b.ins().band(a, low), self.b.ins().band(b, low));
        self.b.ins().unarrow(a, b)
    }

    /// A conversion, or nothing if the type is the same.
    pub fn cast(&mut self, op: Cast, v: Val, elem: Elem) -> Val {
        let ty = v.ty.with(elem);
        if v.ty == ty {
            return v;
        }
        if let (Some(k), Cast::Zext | Cast::Sext | Cast::Trunc) = (v.known(), op) {
            let unsigned = op == Cast::Zext && v.ty.elem.bits() < 64;
            let k = if unsigned { k & ((1 << v.ty.elem.bits()) - 1) } else { k };
            return Val { ty, op: Operand::Int(narrow(elem, k)) };
        }
        if v.uniform() {
            let x = self.value(v);
            let r = self.scalar_cast(op, x, elem);
            return Val::one(elem, r);
        }
        let (from, to) = (v.ty.elem.bits(), elem.bits());
        let pieces = match op {
            Cast::Zext if v.ty.elem == Elem::I1 => {
                let mask = self.mask(v, to);
                let one = self.vector_of(elem, |_| 1);
                mask.into_iter().map(|m| self.b.ins().band(m, one)).collect()
            }
            Cast::Zext | Cast::Sext | Cast::Trunc => {
                let how = if op == Cast::Zext { Resize::Unsigned } else { Resize::Signed };
                let pieces = self.pieces(v);
                self.resize(pieces, ty.lanes, from, to, how)
            }
            Cast::Bitcast => {
                let pieces = self.pieces(v);
                pieces.into_iter().map(|p| self.cast_vector(elem.vector(), p)).collect()
            }
            Cast::FpExt => {
                let n = count(ty.lanes, 64);
                let mut wide = vec![];
                for p in self.pieces(v) {
                    wide.push(self.b.ins().fvpromote_low(p));
                    if wide.len() < n {
                        let high = self.upper(p);
                        wide.push(self.b.ins().fvpromote_low(high));
                    }
                }
                wide
            }
            Cast::FpTrunc => {
                let narrow: Vec<Value> = self.pieces(v).into_iter().map(|p| self.b.ins().fvdemote(p)).collect();
                self.low_halves(&narrow)
            }
            Cast::SiToFp | Cast::UiToFp if from == 32 && to == 32 => {
                let pieces = self.pieces(v);
                pieces.into_iter().map(|p| self.vector_from_int(op, p, elem)).collect()
            }
            Cast::SiToFp | Cast::UiToFp if from == 32 => {
                let n = count(ty.lanes, 64);
                let mut wide = vec![];
                for p in self.pieces(v) {
                    wide.push(self.widened_from_int(op, p));
                    if wide.len() < n {
                        let high = self.upper(p);
                        wide.push(self.widened_from_int(op, high));
                    }
                }
                wide
            }
            Cast::FpToSi | Cast::FpToUi if from == 32 && to == 32 => {
                let pieces = self.pieces(v);
                let ty = elem.vector();
                let signed = op == Cast::FpToSi;
                let one =
                    |f: &mut Self, p| if signed { f.b.ins().fcvt_to_sint_sat(ty, p) } else { f.b.ins().fcvt_to_uint_sat(ty, p) };
                pieces.into_iter().map(|p| one(self, p)).collect()
            }
            Cast::FpToSiWithin if from == 32 && to == 32 => {
                let (pieces, ty) = (self.pieces(v), elem.vector());
                let arm = self.arm;
                let one = |f: &mut Self, p| if arm { f.b.ins().fcvt_to_sint_sat(ty, p) } else { f.b.ins().x86_cvtt2dq(ty, p) };
                pieces.into_iter().map(|p| one(self, p)).collect()
            }
            Cast::SiToFp | Cast::UiToFp | Cast::FpToSi | Cast::FpToUi | Cast::FpToSiWithin => {
                let lanes: Vec<Value> = self.lanes(v).into_iter().map(|x| self.scalar_cast(op, x, elem)).collect();
                return self.build(elem, &lanes);
            }
        };
        self.many(ty, pieces)
    }
    fn vector_from_int(&mut self, op: Cast, p: Value, elem: Elem) -> Value {
        let ty = elem.vector();
        if op == Cast::SiToFp { self.b.ins().fcvt_from_sint(ty, p) } else { self.b.ins().fcvt_from_uint(ty, p) }
    }
    /// The two lower integers of 32 bits as f64.
    fn widened_from_int(&mut self, op: Cast, p: Value) -> Value {
        let wide = if op == Cast::SiToFp { self.b.ins().swiden_low(p) } else { self.b.ins().uwiden_low(p) };
        self.vector_from_int(op, wide, Elem::F64)
    }
    /// The low halves of vectors, two of them in each.
    pub fn low_halves(&mut self, parts: &[Value]) -> Vec<Value> {
        let order = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
        parts.chunks(2).map(|c| if c.len() == 2 { self.shuffle(c[0], c[1], order) } else { c[0] }).collect()
    }
    fn scalar_cast(&mut self, op: Cast, x: Value, elem: Elem) -> Value {
        let ty = elem.scalar();
        let from = self.b.func.dfg.value_type(x);
        let ins = self.b.ins();
        match op {
            Cast::Zext | Cast::Sext | Cast::Trunc if from == ty => x,
            Cast::Trunc => ins.ireduce(ty, x),
            Cast::Zext => ins.uextend(ty, x),
            Cast::Sext => ins.sextend(ty, x),
            Cast::FpTrunc => ins.fdemote(ty, x),
            Cast::FpExt => ins.fpromote(ty, x),
            Cast::Bitcast => ins.bitcast(ty, MemFlagsData::new(), x),
            Cast::SiToFp => ins.fcvt_from_sint(ty, x),
            Cast::UiToFp => ins.fcvt_from_uint(ty, x),
            Cast::FpToSi | Cast::FpToSiWithin => ins.fcvt_to_sint_sat(ty, x),
            Cast::FpToUi => ins.fcvt_to_uint_sat(ty, x),
        }
    }
}
