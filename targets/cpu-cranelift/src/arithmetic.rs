//! Operations on values: one instruction for each piece, or for each lane where vectors have none.

use crate::function::Fun;
use crate::values::{Bin, Cast, Elem, Operand, Ty, Un, Val, compare, fold, narrow, signed};
use cranelift_codegen::ir::condcodes::{CondCode, FloatCC, IntCC};
use cranelift_codegen::ir::types;
use cranelift_codegen::ir::{InstBuilder, Opcode, Value, ValueDef};

impl Fun<'_> {
    /// An operation on two operands.
    pub fn bin(&mut self, op: Bin, a: Val, b: Val) -> Val {
        debug_assert_eq!(a.ty.elem, b.ty.elem, "{op:?}");
        let ty = Ty::new(a.ty.elem, a.ty.lanes.max(b.ty.lanes));
        if let (Some(x), Some(y)) = (a.known(), b.known())
            && let Some(folded) = fold(op, x, y)
        {
            return Val { ty, op: Operand::Int(narrow(ty.elem, folded)) };
        }
        let ones = |k: i64| k == -1 || ty.elem == Elem::I1 && k == 1;
        match (op, a.known(), b.known()) {
            (Bin::Add | Bin::Or | Bin::Xor, Some(0), _) | (Bin::Mul, Some(1), _) => return self.splat(b, ty.lanes),
            (Bin::Add | Bin::Sub | Bin::Or | Bin::Xor | Bin::Shl | Bin::LShr | Bin::AShr, _, Some(0))
            | (Bin::Mul, _, Some(1)) => {
                return self.splat(a, ty.lanes);
            }
            (Bin::And, Some(k), _) if ones(k) => return self.splat(b, ty.lanes),
            (Bin::And, _, Some(k)) if ones(k) => return self.splat(a, ty.lanes),
            (Bin::And | Bin::Mul, Some(0), _) | (Bin::And | Bin::Mul, _, Some(0)) => return Val { ty, op: Operand::Int(0) },
            _ => {}
        }
        // Lane numbers stay what they are.
        match (op, a.op, b.op) {
            (Bin::Add, Operand::Lanes(f, s), Operand::Int(k)) | (Bin::Add, Operand::Int(k), Operand::Lanes(f, s)) => {
                return Val { ty, op: Operand::Lanes(f.wrapping_add(k), s) };
            }
            (Bin::Mul, Operand::Lanes(f, s), Operand::Int(k)) | (Bin::Mul, Operand::Int(k), Operand::Lanes(f, s)) => {
                return Val { ty, op: Operand::Lanes(f.wrapping_mul(k), s.wrapping_mul(k)) };
            }
            _ => {}
        }
        if ty.lanes == 1 {
            let (x, y) = (self.value(a), self.value(b));
            let r = self.scalar_bin(op, x, y);
            return Val::one(ty.elem, r);
        }
        if ty.elem == Elem::I1 {
            let [a, b] = self.join([a, b]);
            let bits = self.mask_width(a).max(self.mask_width(b)).unwrap_or(32);
            let (x, y) = (self.mask(a, bits), self.mask(b, bits));
            let pieces = x.into_iter().zip(y).map(|(x, y)| self.scalar_bin(op, x, y)).collect();
            return self.many(ty, pieces);
        }
        match op {
            Bin::Shl | Bin::LShr | Bin::AShr if b.uniform() || b.known().is_some() => {
                let amount = match b.known() {
                    Some(k) => self.b.ins().iconst(types::I32, k & 63),
                    None => self.value(b),
                };
                let x = self.pieces(a);
                let pieces = x.into_iter().map(|x| self.scalar_bin(op, x, amount)).collect();
                self.many(ty, pieces)
            }
            Bin::Shl | Bin::LShr | Bin::AShr | Bin::UMulHi | Bin::SDiv | Bin::UDiv | Bin::SRem | Bin::URem => {
                self.by_lane(a, b, |f, x, y| f.scalar_bin(op, x, y))
            }
            Bin::Mul if ty.elem == Elem::I8 => {
                let (x, y) = (self.cast(Cast::Zext, a, Elem::I16), self.cast(Cast::Zext, b, Elem::I16));
                let r = self.bin(Bin::Mul, x, y);
                self.cast(Cast::Trunc, r, Elem::I8)
            }
            Bin::SMin | Bin::SMax | Bin::UMin | Bin::UMax if ty.elem == Elem::I64 => {
                let cc = match op {
                    Bin::SMin => IntCC::SignedLessThan,
                    Bin::SMax => IntCC::SignedGreaterThan,
                    Bin::UMin => IntCC::UnsignedLessThan,
                    _ => IntCC::UnsignedGreaterThan,
                };
                let better = self.icmp(cc, a, b);
                self.select(better, a, b)
            }
            _ => {
                let [a, b] = self.join([a, b]);
                let (x, y) = (self.pieces(a), self.pieces(b));
                let pieces = x.into_iter().zip(y).map(|(x, y)| self.scalar_bin(op, x, y)).collect();
                self.many(ty, pieces)
            }
        }
    }
    pub fn scalar_bin(&mut self, op: Bin, x: Value, y: Value) -> Value {
        let ins = self.b.ins();
        match op {
            Bin::Add => ins.iadd(x, y),
            Bin::Sub => ins.isub(x, y),
            Bin::Mul => ins.imul(x, y),
            Bin::UMulHi => ins.umulhi(x, y),
            Bin::SDiv => ins.sdiv(x, y),
            Bin::UDiv => ins.udiv(x, y),
            Bin::SRem => ins.srem(x, y),
            Bin::URem => ins.urem(x, y),
            Bin::And => ins.band(x, y),
            Bin::Or => ins.bor(x, y),
            Bin::Xor => ins.bxor(x, y),
            Bin::Shl => ins.ishl(x, y),
            Bin::LShr => ins.ushr(x, y),
            Bin::AShr => ins.sshr(x, y),
            Bin::SMin => ins.smin(x, y),
            Bin::SMax => ins.smax(x, y),
            Bin::UMin => ins.umin(x, y),
            Bin::UMax => ins.umax(x, y),
            Bin::FAdd => ins.fadd(x, y),
            Bin::FSub => ins.fsub(x, y),
            Bin::FMul => ins.fmul(x, y),
            Bin::FDiv => ins.fdiv(x, y),
            Bin::FMin => ins.fmin(x, y),
            Bin::FMax => ins.fmax(x, y),
        }
    }
    /// One lane after another.
    pub fn by_lane(&mut self, a: Val, b: Val, op: impl Fn(&mut Self, Value, Value) -> Value) -> Val {
        let [a, b] = self.join([a, b]);
        let (x, y) = (self.lanes(a), self.lanes(b));
        let r: Vec<Value> = x.into_iter().zip(y).map(|(x, y)| op(self, x, y)).collect();
        self.build(a.ty.elem, &r)
    }
    /// An operation on a float.
    pub fn unary(&mut self, op: Un, v: Val) -> Val {
        self.map(v, |f, x| {
            let ins = f.b.ins();
            match op {
                Un::Neg => ins.fneg(x),
                Un::Abs => ins.fabs(x),
                Un::Floor => ins.floor(x),
                Un::Ceil => ins.ceil(x),
                Un::Trunc => ins.trunc(x),
                Un::Nearest => ins.nearest(x),
                Un::Sqrt => ins.sqrt(x),
            }
        })
    }
    /// The same instruction on each piece.
    fn map(&mut self, v: Val, op: impl Fn(&mut Self, Value) -> Value) -> Val {
        if v.uniform() {
            let x = self.value(v);
            let r = op(self, x);
            return Val::one(v.ty.elem, r);
        }
        let x = self.pieces(v);
        let pieces = x.into_iter().map(|x| op(self, x)).collect();
        self.many(v.ty, pieces)
    }
    /// `a * b + c`, rounded once; only where it is an instruction.
    pub fn fused(&mut self, a: Val, b: Val, c: Val) -> Val {
        // The result takes the register of the first factor where that has no other use, else that of a copy: fewer of the one with fewer uses.
        let swapped = if self.shared_first { b.uniform() && !a.uniform() } else { a.uniform() && !b.uniform() };
        let (a, b) = if swapped { (b, a) } else { (a, b) };
        let [a, b, c] = self.join([a, b, c]);
        if a.uniform() {
            let (x, y, z) = (self.value(a), self.value(b), self.value(c));
            let r = self.b.ins().fma(x, y, z);
            return Val::one(a.ty.elem, r);
        }
        let (x, y, z) = (self.pieces(a), self.pieces(b), self.pieces(c));
        let pieces = (0..x.len()).map(|i| self.b.ins().fma(x[i], y[i], z[i])).collect();
        self.many(a.ty, pieces)
    }

    /// A comparison of integers.
    pub fn icmp(&mut self, cc: IntCC, a: Val, b: Val) -> Val {
        let ty = Ty::new(Elem::I1, a.ty.lanes.max(b.ty.lanes));
        if let (Some(x), Some(y)) = (a.known(), b.known()) {
            return Val { ty, op: Operand::Int(i64::from(compare(cc, x, y))) };
        }
        let [mut a, mut b] = self.join([a, b]);
        if a.uniform() {
            let (x, y) = (self.value(a), self.value(b));
            let r = self.b.ins().icmp(cc, x, y);
            return Val::one(Elem::I1, r);
        }
        let mut cc = cc;
        if a.ty.elem == Elem::I64 && signed(cc) != cc && !self.arm {
            // x86-64 has no such comparison: with the sign flipped the order is that of signed numbers.
            let sign = Val::int(Elem::I64, i64::MIN);
            (a, b, cc) = (self.bin(Bin::Xor, a, sign), self.bin(Bin::Xor, b, sign), signed(cc));
        }
        let (x, y) = (self.pieces(a), self.pieces(b));
        let pieces = x.into_iter().zip(y).map(|(x, y)| self.b.ins().icmp(cc, x, y)).collect();
        self.many(ty, pieces)
    }
    /// A comparison of floats.
    pub fn fcmp(&mut self, cc: FloatCC, a: Val, b: Val) -> Val {
        let [a, b] = self.join([a, b]);
        if a.uniform() {
            let (x, y) = (self.value(a), self.value(b));
            let r = self.b.ins().fcmp(cc, x, y);
            return Val::one(Elem::I1, r);
        }
        // Vectors have no comparisons that hold for what is no number, but for `!=`; nor the other half of that.
        match cc {
            FloatCC::OrderedNotEqual => {
                let (less, greater) = (self.fcmp(FloatCC::LessThan, a, b), self.fcmp(FloatCC::GreaterThan, a, b));
                return self.bin(Bin::Or, less, greater);
            }
            FloatCC::UnorderedOrEqual
            | FloatCC::UnorderedOrLessThan
            | FloatCC::UnorderedOrLessThanOrEqual
            | FloatCC::UnorderedOrGreaterThan
            | FloatCC::UnorderedOrGreaterThanOrEqual => {
                let opposite = self.fcmp(cc.complement(), a, b);
                return self.not(opposite);
            }
            _ => {}
        }
        let (x, y) = (self.pieces(a), self.pieces(b));
        let pieces: Vec<Value> = x.into_iter().zip(y).map(|(x, y)| self.b.ins().fcmp(cc, x, y)).collect();
        self.many(a.ty.with(Elem::I1), pieces)
    }
    /// `c ? a : b`; a condition of one lane may choose between vectors.
    pub fn select(&mut self, c: Val, a: Val, b: Val) -> Val {
        match c.known() {
            Some(k) => {
                let lanes = c.ty.lanes.max(a.ty.lanes).max(b.ty.lanes);
                let taken = if k == 0 { b } else { a };
                return self.splat(taken, lanes);
            }
            None if a == b => return a,
            None => {}
        }
        let lanes = c.ty.lanes.max(a.ty.lanes).max(b.ty.lanes);
        let (a, b) = (self.splat(a, lanes), self.splat(b, lanes));
        let ty = a.ty;
        if lanes == 1 {
            let (c, x, y) = (self.value(c), self.value(a), self.value(b));
            let r = self.b.ins().select(c, x, y);
            return Val::one(ty.elem, r);
        }
        let bits = match ty.elem {
            Elem::I1 => self.mask_width(a).max(self.mask_width(b)).max(self.mask_width(c)).unwrap_or(32),
            e => e.bits(),
        };
        let (x, y) = match ty.elem {
            Elem::I1 => (self.mask(a, bits), self.mask(b, bits)),
            _ => (self.pieces(a), self.pieces(b)),
        };
        let pieces = if c.uniform() {
            let c = self.value(c);
            x.into_iter().zip(y).map(|(x, y)| self.b.ins().select(c, x, y)).collect()
        } else {
            let c = self.mask(c, bits);
            (0..x.len()).map(|i| self.choose(c[i], x[i], y[i])).collect()
        };
        self.many(ty, pieces)
    }
    /// Bits of `x` where the mask has ones, else of `y`. In the form from which Cranelift makes one instruction: the type is that of a float where
    /// the mask is a comparison of floats, else that of the mask.
    fn choose(&mut self, mask: Value, x: Value, y: Value) -> Value {
        let ty = self.b.func.dfg.value_type(x);
        let floats = match self.b.func.dfg.value_def(mask) {
            ValueDef::Result(inst, _) => self.b.func.dfg.insts[inst].opcode() == Opcode::Fcmp,
            _ => false,
        };
        let form = if floats { ty } else { self.b.func.dfg.value_type(mask) };
        let (c, x, y) = (self.cast_vector(form, mask), self.cast_vector(form, x), self.cast_vector(form, y));
        let r = self.b.ins().bitselect(c, x, y);
        self.cast_vector(ty, r)
    }
    /// Logical not of bools.
    pub fn not(&mut self, v: Val) -> Val {
        if let Some(k) = v.known() {
            return Val { op: Operand::Int(i64::from(k == 0)), ..v };
        }
        if v.uniform() {
            let x = self.value(v);
            let r = self.b.ins().bxor_imm_u(x, 1);
            return Val::one(Elem::I1, r);
        }
        let bits = self.mask_width(v).unwrap_or(32);
        let x = self.mask(v, bits);
        let pieces = x.into_iter().map(|x| self.b.ins().bnot(x)).collect();
        self.many(v.ty, pieces)
    }
    /// Does it hold in any lane?
    pub fn any(&mut self, v: Val) -> Val {
        self.reduced(v, Bin::Or)
    }
    /// Does it hold in all lanes?
    pub fn all(&mut self, v: Val) -> Val {
        self.reduced(v, Bin::And)
    }
    fn reduced(&mut self, v: Val, op: Bin) -> Val {
        if v.uniform() || v.known().is_some() {
            return Val { ty: Ty::new(Elem::I1, 1), op: v.op };
        }
        let bits = self.mask_width(v).unwrap_or(32);
        let pieces = self.mask(v, bits);
        let mut whole = pieces[0];
        for &p in &pieces[1..] {
            whole = self.scalar_bin(op, whole, p);
        }
        // Lanes beyond the last one are anything.
        let each = 128 / bits;
        if v.ty.lanes < each {
            let inside = i64::from(v.ty.lanes);
            let neutral = |lane: i64| if (lane < inside) == (op == Bin::Or) { u64::MAX } else { 0 };
            let limit = self.vector_of(Elem::int(bits), neutral);
            whole = if op == Bin::Or { self.b.ins().band(whole, limit) } else { self.b.ins().bor(whole, limit) };
        }
        let r = if op == Bin::Or { self.b.ins().vany_true(whole) } else { self.b.ins().vall_true(whole) };
        Val::one(Elem::I1, r)
    }
}
