//! Dot products as instructions: the row `byte_dot` as VPDPBUSD (on Arm USDOT), `byte_dot_signed` as SDOT, `byte_pairs` as PMADDWD (SMULL and ADDP; where bytes are small, PMADDUBSW before it), the row `bf16_dot` as VDPBF16PS.
//!
//! The first one writes a step as `sum + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3` in i32, where `a0..` are unsigned bytes, side by side and the same for
//! all lanes, or each in a vector of its own, and `b0..` signed bytes side by side in each lane, four to a lane even where fewer are used; or where `a0..` are
//! signed bytes, side by side and the same for all lanes, and `b0..` unsigned ones, side by side in each lane, or the four bytes of a word that is computed. With `byte_dot_signed` both are signed.
//! That is found again here; anything else is emitted as written.
//! Bytes of the other sign with their top bits flipped may stand for either: all four are flipped at once.
//! Intel's manual: VPDPBUSD adds the four products without saturating them or the sum.
//!
//! Steps of `bf16_dot` are found by [`infc_kernel::rows::pair_of`], their factors side by side or as halves of words; they are what VDPBF16PS does, bit by bit but for the payloads of NaN.
//! Where numbers are rounded for it, with subnormal ones as zeros, VCVTNEPS2BF16 does that.

use crate::access::Shape;
use crate::arch::Arch;
use crate::emit::Emit;
use crate::ir::{Elem, Fun, Operand, Ty, Val};
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar};
use infc_kernel::recognised::{Kinds, Products};
use infc_kernel::rows::{pair_of, unflushed};

/// Products of a lane.
const GROUP: usize = 4;

/// The words on the right.
#[derive(Clone, Copy)]
enum Right {
    /// From here on.
    At(Val),
    /// One in each lane.
    Lanes(Val),
}

/// Lanes of the instruction's widest form.
const WIDEST: u32 = 16;

impl Emit<'_> {
    /// The value of a sum if it is a step of a dot product, else nothing.
    pub fn dot(&mut self, s: Scalar) -> Result<Option<Val>, Fault> {
        if self.lanes.unwrap_or(1) < 4 {
            return Ok(None);
        }
        // Without the instruction a single product is cheaper as it is.
        let least = if self.byte_pairs { 2 } else { 1 };
        for count in (least..=GROUP).rev() {
            let Some(step) = Products::of(s, count).filter(|p| self.adds(p.kinds) || p.small() && self.byte_dots.1) else {
                continue;
            };
            if let Some(word) = step.word {
                let Some(left) = self.word(&step)? else { continue };
                let lanes = self.lanes.unwrap_or(1);
                let right = self.scalar(word)?;
                let right = self.f.cast("bitcast", right, Elem::I32);
                let right = Right::Lanes(self.f.splat(right, lanes));
                return self.dot_of(&step, left, right).map(Some);
            }
            let Some(right) = self.side_by_side(&step.b) else { continue };
            if count == 1 && !self.begins_group(right) {
                continue;
            }
            let Shape::Step(right, 4) = self.place(right)? else { continue };
            let left = if step.kinds == Kinds::SignedUnsigned { self.word(&step)? } else { self.bytes(&step)? };
            if let Some(left) = left {
                return self.dot_of(&step, left, Right::At(right)).map(Some);
            }
        }
        Ok(None)
    }

    /// Has the machine an instruction for them, or a stand-in?
    fn adds(&self, kinds: Kinds) -> bool {
        let (mixed, signed) = self.byte_dots;
        if kinds == Kinds::Signed { signed } else { mixed || self.byte_pairs }
    }

    /// The bytes on the left as a word, if they lie so and are the same for all lanes.
    fn word(&mut self, step: &Products) -> Result<Option<Val>, Fault> {
        if step.a.len() == GROUP
            && let Some(first) = self.side_by_side(&step.a)
            && let Shape::One(at) = self.place(first)?
        {
            return Ok(Some(self.f.load(Ty::new(Elem::I32, 1), at, 1)));
        }
        Ok(None)
    }

    /// The bytes on the left in words, the same for all lanes or one for each.
    fn bytes(&mut self, step: &Products) -> Result<Option<Val>, Fault> {
        let lanes = self.lanes.unwrap_or(1);
        let mut word = self.word(step)?;
        if word.is_none() {
            for (k, &read) in step.a.iter().enumerate() {
                if !matches!(self.place(read)?, Shape::Step(_, 1)) {
                    return Ok(None);
                }
                let byte = self.scalar(read)?;
                let byte = self.f.splat(byte, lanes);
                let wide = self.f.cast("zext", byte, Elem::I32);
                let moved = self.f.bin("shl", wide, Val::int(Elem::I32, 8 * k as i64));
                word = Some(word.map_or(moved, |w| self.f.bin("or", w, moved)));
            }
        }
        Ok(word.map(|w| if step.flips[0] { self.f.bin("xor", w, Val::int(Elem::I32, i64::from(step.top_bits()))) } else { w }))
    }

    fn dot_of(&mut self, step: &Products, left: Val, right: Right) -> Result<Val, Fault> {
        let name = |bits: u32| format!("llvm.x86.avx512.vpdpbusd.{bits}");
        let (pairs, small) = (self.byte_pairs, step.small());
        let signed_bytes = step.kinds == Kinds::Signed || small && !self.adds(step.kinds);
        self.in_pieces(step.sum, left, right, &mut |f, acc, factor, vector| {
            let vector =
                if step.flips[1] { f.bin("xor", vector, Val::int(Elem::I32, i64::from(step.top_bits()))) } else { vector };
            let (unsigned, signed) = match step.kinds {
                Kinds::UnsignedSigned | Kinds::Signed => (factor, vector),
                Kinds::SignedUnsigned => (vector, factor),
            };
            match (pairs, f.arch) {
                _ if signed_bytes => {
                    let [a, b] = [unsigned, signed].map(|v| as_bytes(f, v));
                    f.intrinsic("llvm.aarch64.neon.sdot", &[acc.ty, a.ty], acc.ty, &[acc, a, b])
                }
                (true, Arch::X86) if small => pairs_of_bytes(f, acc, unsigned, signed),
                (true, _) => pairs_of_words(f, acc, unsigned, signed),
                (false, Arch::Arm) => {
                    let [unsigned, signed] = [unsigned, signed].map(|v| as_bytes(f, v));
                    f.intrinsic("llvm.aarch64.neon.usdot", &[acc.ty, unsigned.ty], acc.ty, &[acc, unsigned, signed])
                }
                (false, Arch::X86) => f.intrinsic(&name(acc.ty.lanes * 32), &[], acc.ty, &[acc, unsigned, signed]),
                (false, Arch::Riscv | Arch::Wasm) => unreachable!("no machine of it is said to have one, by `Arch::of`"),
            }
        })
    }

    /// The value of a sum if it is a step of pairs of bf16, else nothing.
    pub fn pair(&mut self, s: Scalar) -> Result<Option<Val>, Fault> {
        if self.lanes.unwrap_or(1) < 4 {
            return Ok(None);
        }
        let Some(step) = pair_of(s) else { return Ok(None) };
        let short = |s: Scalar| match s.kind() {
            Kind::Cast(read) if read.dtype() == DType::BF16 => Some(*read),
            _ => None,
        };
        let (left, right) = match (step.a.map(short), step.b.map(short), word_of(&step.a), word_of(&step.b)) {
            ([Some(a0), Some(a1)], [Some(b0), Some(b1)], ..) => {
                match (self.side_by_side(&[a0, a1]), self.side_by_side(&[b0, b1])) {
                    (Some(left), Some(right)) => (self.place(left)?, self.place(right)?),
                    _ => return Ok(None),
                }
            }
            (.., Some(left), Some(right)) => match (self.place(left)?, self.place(right)?) {
                (left, Shape::Step(right, 1)) => (left, Shape::Step(right, 2)),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        let (Shape::One(left), Shape::Step(right, 2)) = (left, right) else { return Ok(None) };
        let left = self.f.load(Ty::new(Elem::I32, 1), left, 2);
        let name = |bits: u32| format!("llvm.x86.avx512bf16.dpbf16ps.{bits}");
        let sum = self.in_pieces(step.sum, left, Right::At(right), &mut |f, acc, factor, vector| {
            let [factor, vector] = [factor, vector].map(|v| as_pairs(f, v));
            f.intrinsic(&name(acc.ty.lanes * 32), &[], acc.ty, &[acc, factor, vector])
        });
        sum.map(Some)
    }

    /// The bits of numbers that are rounded to bf16, subnormal ones to zeros, if that is what the scalar is; else nothing.
    pub fn rounded(&mut self, s: Scalar) -> Result<Option<Val>, Fault> {
        let lanes = self.lanes.unwrap_or(1);
        let piece = lanes.min(WIDEST);
        let Kind::Cast(x) = s.kind() else { return Ok(None) };
        let Some(x) = unflushed(*x).filter(|_| s.dtype() == DType::BF16 && piece >= 8) else { return Ok(None) };
        let x = self.scalar(x)?;
        let x = self.f.splat(x, lanes);
        let parts = (0..lanes / piece).map(|k| {
            let part = self.lanes_of(x, k * piece, piece);
            let name = format!("llvm.x86.avx512bf16.cvtneps2bf16.{}", piece * 32);
            let short = self.f.intrinsic(&name, &[], part.ty.with(Elem::Brain), &[part]);
            self.f.cast("bitcast", short, Elem::I16)
        });
        let parts = parts.collect();
        Ok(Some(self.joined(parts)))
    }

    /// `step` of the sums before, the factors on the left (one word, or one for each lane) and the words on the right, as wide as registers are.
    fn in_pieces(
        &mut self,
        sum: Scalar,
        left: Val,
        right: Right,
        step: &mut dyn FnMut(&mut Fun, Val, Val, Val) -> Val,
    ) -> Result<Val, Fault> {
        let lanes = self.lanes.unwrap_or(1);
        let acc = self.scalar(sum)?;
        let acc = self.f.splat(acc, lanes);
        let piece = lanes.min(WIDEST).min(self.width as u32);
        let ty = Ty::new(Elem::I32, piece);
        let parts: Vec<Val> = (0..lanes / piece)
            .map(|k| {
                let vector = match (right, self.mask) {
                    (Right::Lanes(words), _) => self.lanes_of(words, k * piece, piece),
                    (Right::At(first), Some(mask)) => {
                        let at = self.f.gep(first, Elem::I32, Val::i64(i64::from(k * piece)));
                        let mask = self.f.splat(mask, lanes);
                        let mask = self.lanes_of(mask, k * piece, piece);
                        self.masked_load(ty, at, mask, 1)
                    }
                    (Right::At(first), None) => {
                        let at = self.f.gep(first, Elem::I32, Val::i64(i64::from(k * piece)));
                        self.f.load(ty, at, 1)
                    }
                };
                let factor = if left.uniform() { self.f.splat(left, piece) } else { self.lanes_of(left, k * piece, piece) };
                let acc = self.lanes_of(acc, k * piece, piece);
                step(&mut self.f, acc, factor, vector)
            })
            .collect();
        Ok(self.joined(parts))
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

/// Four products a lane without an instruction for them: even and odd bytes are widened to 16 bits, and PMADDWD adds the products of pairs. No
/// product or sum of two saturates or wraps.
fn pairs_of_words(f: &mut Fun, acc: Val, factor: Val, vector: Val) -> Val {
    let halves = |f: &mut Fun, v: Val| {
        let (ty, v) = (Ty::new(Elem::I16, 2 * v.ty.lanes), f.t(v));
        f.inst(ty, format_args!("bitcast {v} to {ty}"))
    };
    let (a, b) = (halves(f, factor), halves(f, vector));
    let eight = Val::int(Elem::I16, 8);
    let even = (f.bin("and", a, Val::int(Elem::I16, 0xff)), f.bin("shl", b, eight));
    let even = (even.0, f.bin("ashr", even.1, eight));
    let odd = (f.bin("lshr", a, eight), f.bin("ashr", b, eight));
    let name = match acc.ty.lanes {
        16 => "llvm.x86.avx512.pmaddw.d.512",
        8 => "llvm.x86.avx2.pmadd.wd",
        _ => "llvm.x86.sse2.pmadd.wd",
    };
    let [x, y] = [even, odd].map(|(a, b)| match f.arch {
        Arch::X86 => f.intrinsic(name, &[], acc.ty, &[a, b]),
        Arch::Wasm => f.intrinsic("llvm.wasm.dot", &[], acc.ty, &[a, b]),
        Arch::Arm | Arch::Riscv => added_pairs(f, a, b, acc.ty),
    });
    let both = f.bin("add", x, y);
    f.bin("add", acc, both)
}

/// Four products a lane where those of neighbouring bytes and their sums have 16 bits: PMADDUBSW makes them, and PMADDWD with ones adds both up.
fn pairs_of_bytes(f: &mut Fun, acc: Val, unsigned: Val, signed: Val) -> Val {
    let [unsigned, signed] = [unsigned, signed].map(|v| as_bytes(f, v));
    let (bytes, words) = match acc.ty.lanes {
        16 => ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
        8 => ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
        _ => ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
    };
    let pairs = f.intrinsic(bytes, &[], Ty::new(Elem::I16, 2 * acc.ty.lanes), &[unsigned, signed]);
    let ones = f.splat(Val::int(Elem::I16, 1), 2 * acc.ty.lanes);
    let sums = f.intrinsic(words, &[], acc.ty, &[pairs, ones]);
    f.bin("add", acc, sums)
}

/// What PMADDWD does, by SMULL, SMULL2 and ADDP: products of 16 bits, and the sums of neighbouring two.
fn added_pairs(f: &mut Fun, a: Val, b: Val, sums: Ty) -> Val {
    let wide = a.ty.with(Elem::I32);
    let [a, b] = [a, b].map(|v| f.cast("sext", v, Elem::I32));
    let products = f.bin("mul", a, b);
    let half = |f: &mut Fun, first: i64| {
        let order = Val { ty: Ty::new(Elem::I32, sums.lanes), op: Operand::Lanes(first, 2) };
        let (x, order) = (f.t(products), f.t(order));
        f.inst(sums, format_args!("shufflevector {x}, {wide} poison, {order}"))
    };
    let (even, odd) = (half(f, 0), half(f, 1));
    f.bin("add", even, odd)
}

/// Words as bytes.
fn as_bytes(f: &mut Fun, words: Val) -> Val {
    let (ty, v) = (Ty::new(Elem::I8, 4 * words.ty.lanes), f.t(words));
    f.inst(ty, format_args!("bitcast {v} to {ty}"))
}

/// The read of a word of two bf16, if the factors are its low and its high half.
fn word_of(factors: &[Scalar; 2]) -> Option<Scalar> {
    let half = |s: Scalar, op: Binary, by: f64| match s.kind() {
        Kind::Bitcast(bits) => match bits.kind() {
            Kind::Binary(o, word, n) if *o == op && *n == Scalar::number(DType::U32, by) => Some(*word),
            _ => None,
        },
        _ => None,
    };
    let low = half(factors[0], Binary::Shl, 16.0)?;
    let high = half(factors[1], Binary::And, f64::from(0xffff_0000u32))?;
    (low == high && matches!(low.kind(), Kind::Read { guard: None, .. })).then_some(low)
}

/// Words as pairs of bf16.
fn as_pairs(f: &mut Fun, words: Val) -> Val {
    let (ty, v) = (Ty::new(Elem::Brain, 2 * words.ty.lanes), f.t(words));
    f.inst(ty, format_args!("bitcast {v} to {ty}"))
}
