//! From bytes to instructions of AVX-512 FP16: an EVEX prefix and opcode map 5 or 6, or map 0F3A without a prefix of its own or with F3.
//!
//! Left out are those that no compiler makes of plain arithmetic: complex products, reciprocals, exponents and mantissas, rounding said in the instruction.

use crate::decode::{Bytes, Right, place};

/// An instruction on f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    /// What it does.
    pub op: Op,
    /// Of the lowest element only; the rest of 16 bytes comes from `first`.
    pub scalar: bool,
    /// Bytes of a vector: of the wider ones, where a conversion has two kinds.
    pub bytes: usize,
    /// Number of the register that is written: a vector, for comparisons a mask, for [`Op::ToGeneral`] and scalar conversions to integers a general one.
    pub out: u8,
    /// The first operand's register.
    pub first: u8,
    /// The second operand.
    pub second: Right,
    /// It is one element of memory for all lanes.
    pub broadcast: bool,
    /// Number of the mask; 0 is none.
    pub mask: u8,
    /// Elements without a bit in the mask become zero, instead of staying as they are.
    pub zeroing: bool,
}

/// What is done with elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product.
    Mul,
    /// Quotient.
    Div,
    /// The lesser one; the second one where that says nothing.
    Min,
    /// The greater one; the second one where that says nothing.
    Max,
    /// Square root of the second operand.
    Sqrt,
    /// Product and sum with one rounding. Operands are numbered 1 (the one that is written), 2 and 3, as in the name: `[1, 3, 2]` is x1 * x3 + x2.
    Fma {
        /// Numbers of both factors and of what is added.
        order: [u8; 3],
        /// The product changes its sign.
        minus_product: bool,
        /// What is added changes its sign.
        minus_sum: bool,
    },
    /// Elements of one kind to another.
    Convert {
        /// Kind of the second operand's.
        from: Elem,
        /// Kind of the result's.
        to: Elem,
        /// Towards zero, instead of to nearest even.
        truncate: bool,
    },
    /// Numbers to mask bits by a predicate.
    Compare(u8),
    /// Kinds of numbers to mask bits.
    Class(u8),
    /// To a whole number, or one of fewer binary places.
    Round(u8),
    /// The second operand's element.
    Move,
    /// Into memory.
    Store,
    /// 16 bits of a general register or of memory to a vector.
    FromGeneral,
    /// Back, into the second operand.
    ToGeneral,
    /// Tells flags how the first operand compares with the second one.
    Flags,
}

/// Kinds of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    /// Floats of so many bytes.
    Float(usize),
    /// Signed integers of so many bytes.
    Int(usize),
    /// Unsigned ones.
    Word(usize),
}

impl Elem {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Elem::Float(n) | Elem::Int(n) | Elem::Word(n) => n,
        }
    }
}

const F16: Elem = Elem::Float(2);

/// The instruction behind the first byte of its prefix (62), which was fetched.
pub(crate) fn decode(bytes: &mut Bytes) -> Option<Half> {
    let (p0, p1, p2) = (bytes.next(), bytes.next(), bytes.next());
    let map = p0 & 7;
    if !matches!(map, 3 | 5 | 6) || p0 & 8 != 0 || p1 & 4 == 0 {
        return None;
    }
    // The bits that extend register numbers are stored inverted.
    let inverted = |byte: u8, bit: u8, to: u8| (!byte >> bit & 1) << to;
    let (wide, prefix) = (p1 >> 7 == 1, p1 & 3);
    let first = (!p1 >> 3 & 0xf) | inverted(p2, 3, 4);
    let (zeroing, b, mask) = (p2 >> 7 == 1, p2 >> 4 & 1 == 1, p2 & 7);
    let length = p2 >> 5 & 3;
    let opcode = bytes.next();
    let (op, scalar) = operation(map, prefix, wide, opcode)?;
    if length == 3 && !scalar {
        return None;
    }
    let modrm = bytes.next();
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let out = (modrm >> 3 & 7) | inverted(p0, 7, 3) | inverted(p0, 4, 4);
    let size = if scalar { 16 } else { 16usize << length };
    let (read, made) = op.elements();
    let bytes_of = size / if scalar { 1 } else { read.bytes().max(made.bytes()) / read.bytes() };
    let second = if mode == 3 {
        // With a register the bit asks for a rounding of its own.
        if b {
            return None;
        }
        Right::Register(rm | inverted(p0, 5, 3) | inverted(p0, 6, 4))
    } else {
        let mut place = place(bytes, mode, rm, inverted(p0, 6, 3), inverted(p0, 5, 3));
        if mode == 1 {
            // Short displacements count what the instruction reads.
            place.displacement *= if b || scalar { read.bytes() } else { bytes_of } as i32;
        }
        Right::Memory(place)
    };
    let immediate = if map == 3 { bytes.next() } else { 0 };
    let op = match op {
        Op::Compare(_) => Op::Compare(immediate & 31),
        Op::Class(_) => Op::Class(immediate),
        Op::Round(_) => Op::Round(immediate),
        Op::Move if opcode == 0x11 && mode != 3 => Op::Store,
        _ => op,
    };
    // Between registers both forms of VMOVSH do the same, but name the operands the other way round.
    let (out, second) = match second {
        Right::Register(rm) if op == Op::Move && opcode == 0x11 => (rm, Right::Register(out)),
        _ => (out, second),
    };
    Some(Half { op, scalar, bytes: size, out, first, second, broadcast: b, mask, zeroing })
}

/// What an opcode does, and whether to one element only; immediate operands are 0.
fn operation(map: u8, prefix: u8, wide: bool, opcode: u8) -> Option<(Op, bool)> {
    let convert = |from: Elem, to: Elem, truncate: bool| Op::Convert { from, to, truncate };
    let (none, x66, xf3, xf2) = (prefix == 0, prefix == 1, prefix == 2, prefix == 3);
    let word = if wide { 8 } else { 4 };
    let op = match (map, opcode) {
        (3, 0xc2) if !wide && (none || xf3) => (Op::Compare(0), xf3),
        (3, 0x08) if !wide && none => (Op::Round(0), false),
        (3, 0x0a) if !wide && none => (Op::Round(0), true),
        (3, 0x66) if !wide && none => (Op::Class(0), false),
        (3, 0x67) if !wide && none => (Op::Class(0), true),
        (5, 0x10 | 0x11) if xf3 && !wide => (Op::Move, true),
        (5, 0x6e) if x66 => (Op::FromGeneral, true),
        (5, 0x7e) if x66 => (Op::ToGeneral, true),
        (5, 0x2e | 0x2f) if none && !wide => (Op::Flags, true),
        (5, 0x51 | 0x58 | 0x59 | 0x5c..=0x5f) if !wide && (none || xf3) => {
            let op = match opcode {
                0x51 => Op::Sqrt,
                0x58 => Op::Add,
                0x59 => Op::Mul,
                0x5c => Op::Sub,
                0x5d => Op::Min,
                0x5e => Op::Div,
                _ => Op::Max,
            };
            (op, xf3)
        }
        (5, 0x1d) if !wide && (none || x66) => (convert(Elem::Float(4), F16, false), none),
        (6, 0x13) if !wide && (none || x66) => (convert(F16, Elem::Float(4), false), none),
        (5, 0x5a) if none && !wide => (convert(F16, Elem::Float(8), false), false),
        (5, 0x5a) if xf3 && !wide => (convert(F16, Elem::Float(8), false), true),
        (5, 0x5a) if wide && (x66 || xf2) => (convert(Elem::Float(8), F16, false), xf2),
        (5, 0x5b) if none => (convert(Elem::Int(word), F16, false), false),
        (5, 0x7a) if xf2 => (convert(Elem::Word(word), F16, false), false),
        (5, 0x7d) if !wide && xf3 => (convert(Elem::Int(2), F16, false), false),
        (5, 0x7d) if !wide && xf2 => (convert(Elem::Word(2), F16, false), false),
        (5, 0x5b) if !wide && (x66 || xf3) => (convert(F16, Elem::Int(4), xf3), false),
        (5, 0x78 | 0x79) if !wide && none => (convert(F16, Elem::Word(4), opcode == 0x78), false),
        (5, 0x7a | 0x7b) if !wide && x66 => (convert(F16, Elem::Int(8), opcode == 0x7a), false),
        (5, 0x78 | 0x79) if !wide && x66 => (convert(F16, Elem::Word(8), opcode == 0x78), false),
        (5, 0x7c | 0x7d) if !wide && x66 => (convert(F16, Elem::Int(2), opcode == 0x7c), false),
        (5, 0x7c | 0x7d) if !wide && none => (convert(F16, Elem::Word(2), opcode == 0x7c), false),
        (5, 0x2a) if xf3 => (convert(Elem::Int(word), F16, false), true),
        (5, 0x7b) if xf3 => (convert(Elem::Word(word), F16, false), true),
        (5, 0x2c | 0x2d) if xf3 => (convert(F16, Elem::Int(word), opcode == 0x2c), true),
        (5, 0x78 | 0x79) if xf3 => (convert(F16, Elem::Word(word), opcode == 0x78), true),
        (6, 0x98..=0x9f | 0xa8..=0xaf | 0xb8..=0xbf) if x66 && !wide => {
            let order = match opcode >> 4 {
                0x9 => [1, 3, 2],
                0xa => [2, 1, 3],
                _ => [2, 3, 1],
            };
            let (minus_product, minus_sum) = (opcode & 4 != 0, opcode & 2 != 0);
            (Op::Fma { order, minus_product, minus_sum }, opcode & 1 == 1)
        }
        _ => return None,
    };
    Some(op)
}

impl Op {
    /// Kinds of the elements that are read and made.
    pub fn elements(self) -> (Elem, Elem) {
        match self {
            Op::Convert { from, to, .. } => (from, to),
            _ => (F16, F16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Base, Inst, Place, decode};

    /// Text, bytes as LLVM's assembler makes them (`llvm-mc -show-encoding`), and meaning.
    #[rustfmt::skip]
    const CODED: &[(&str, &[u8], Half)] = &[
        ("vaddph %zmm3, %zmm2, %zmm1", &[0x62, 0xf5, 0x6c, 0x48, 0x58, 0xcb],
            Half { op: Op::Add, scalar: false, bytes: 64, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vaddph 64(%rdi), %zmm30, %zmm17", &[0x62, 0xe5, 0x0c, 0x40, 0x58, 0x4f, 0x01],
            Half { op: Op::Add, scalar: false, bytes: 64, out: 17, first: 30, second: Right::Memory(Place { base: Base::Register(7), index: None, displacement: 64 }), broadcast: false, mask: 0, zeroing: false }),
        ("vmulph 6(%rax,%r9,2){1to32}, %zmm2, %zmm1", &[0x62, 0xb5, 0x6c, 0x58, 0x59, 0x4c, 0x48, 0x03],
            Half { op: Op::Mul, scalar: false, bytes: 64, out: 1, first: 2, second: Right::Memory(Place { base: Base::Register(0), index: Some((9, 2)), displacement: 6 }), broadcast: true, mask: 0, zeroing: false }),
        ("vsubph %ymm18, %ymm9, %ymm8 {%k3}", &[0x62, 0x35, 0x34, 0x2b, 0x5c, 0xc2],
            Half { op: Op::Sub, scalar: false, bytes: 32, out: 8, first: 9, second: Right::Register(18), broadcast: false, mask: 3, zeroing: false }),
        ("vdivph (%r13), %xmm2, %xmm1 {%k1} {z}", &[0x62, 0xd5, 0x6c, 0x89, 0x5e, 0x4d, 0x00],
            Half { op: Op::Div, scalar: false, bytes: 16, out: 1, first: 2, second: Right::Memory(Place { base: Base::Register(13), index: None, displacement: 0 }), broadcast: false, mask: 1, zeroing: true }),
        ("vminsh %xmm3, %xmm2, %xmm1", &[0x62, 0xf5, 0x6e, 0x08, 0x5d, 0xcb],
            Half { op: Op::Min, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vmaxsh 4(%rsp), %xmm2, %xmm20", &[0x62, 0xe5, 0x6e, 0x08, 0x5f, 0x64, 0x24, 0x02],
            Half { op: Op::Max, scalar: true, bytes: 16, out: 20, first: 2, second: Right::Memory(Place { base: Base::Register(4), index: None, displacement: 4 }), broadcast: false, mask: 0, zeroing: false }),
        ("vsqrtph %ymm2, %ymm1", &[0x62, 0xf5, 0x7c, 0x28, 0x51, 0xca],
            Half { op: Op::Sqrt, scalar: false, bytes: 32, out: 1, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vsqrtsh %xmm3, %xmm2, %xmm1", &[0x62, 0xf5, 0x6e, 0x08, 0x51, 0xcb],
            Half { op: Op::Sqrt, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vfmadd231ph 30(%rdi){1to32}, %zmm25, %zmm6", &[0x62, 0xf6, 0x35, 0x50, 0xb8, 0x77, 0x0f],
            Half { op: Op::Fma { order: [2, 3, 1], minus_product: false, minus_sum: false }, scalar: false, bytes: 64, out: 6, first: 25, second: Right::Memory(Place { base: Base::Register(7), index: None, displacement: 30 }), broadcast: true, mask: 0, zeroing: false }),
        ("vfmadd213ph %ymm3, %ymm2, %ymm1", &[0x62, 0xf6, 0x6d, 0x28, 0xa8, 0xcb],
            Half { op: Op::Fma { order: [2, 1, 3], minus_product: false, minus_sum: false }, scalar: false, bytes: 32, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vfmadd132sh 2(%rip), %xmm2, %xmm1", &[0x62, 0xf6, 0x6d, 0x08, 0x99, 0x0d, 0x02, 0x00, 0x00, 0x00],
            Half { op: Op::Fma { order: [1, 3, 2], minus_product: false, minus_sum: false }, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Memory(Place { base: Base::Next, index: None, displacement: 2 }), broadcast: false, mask: 0, zeroing: false }),
        ("vfmsub231ph %zmm3, %zmm2, %zmm1", &[0x62, 0xf6, 0x6d, 0x48, 0xba, 0xcb],
            Half { op: Op::Fma { order: [2, 3, 1], minus_product: false, minus_sum: true }, scalar: false, bytes: 64, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vfnmadd213sh %xmm31, %xmm2, %xmm1", &[0x62, 0x96, 0x6d, 0x08, 0xad, 0xcf],
            Half { op: Op::Fma { order: [2, 1, 3], minus_product: true, minus_sum: false }, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Register(31), broadcast: false, mask: 0, zeroing: false }),
        ("vfnmsub132ph %xmm3, %xmm2, %xmm1", &[0x62, 0xf6, 0x6d, 0x08, 0x9e, 0xcb],
            Half { op: Op::Fma { order: [1, 3, 2], minus_product: true, minus_sum: true }, scalar: false, bytes: 16, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtph2psx 32(%rdi), %zmm1", &[0x62, 0xf6, 0x7d, 0x48, 0x13, 0x4f, 0x01],
            Half { op: Op::Convert { from: Elem::Float(2), to: Elem::Float(4), truncate: false }, scalar: false, bytes: 64, out: 1, first: 0, second: Right::Memory(Place { base: Base::Register(7), index: None, displacement: 32 }), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtph2psx -2(%r14){1to16}, %zmm21", &[0x62, 0xc6, 0x7d, 0x58, 0x13, 0x6e, 0xff],
            Half { op: Op::Convert { from: Elem::Float(2), to: Elem::Float(4), truncate: false }, scalar: false, bytes: 64, out: 21, first: 0, second: Right::Memory(Place { base: Base::Register(14), index: None, displacement: -2 }), broadcast: true, mask: 0, zeroing: false }),
        ("vcvtps2phx %zmm16, %ymm9", &[0x62, 0x35, 0x7d, 0x48, 0x1d, 0xc8],
            Half { op: Op::Convert { from: Elem::Float(4), to: Elem::Float(2), truncate: false }, scalar: false, bytes: 64, out: 9, first: 0, second: Right::Register(16), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtps2phx 128(%rbx), %ymm9", &[0x62, 0x75, 0x7d, 0x48, 0x1d, 0x4b, 0x02],
            Half { op: Op::Convert { from: Elem::Float(4), to: Elem::Float(2), truncate: false }, scalar: false, bytes: 64, out: 9, first: 0, second: Right::Memory(Place { base: Base::Register(3), index: None, displacement: 128 }), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtsh2ss 2(%rax), %xmm2, %xmm1", &[0x62, 0xf6, 0x6c, 0x08, 0x13, 0x48, 0x01],
            Half { op: Op::Convert { from: Elem::Float(2), to: Elem::Float(4), truncate: false }, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Memory(Place { base: Base::Register(0), index: None, displacement: 2 }), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtss2sh %xmm3, %xmm2, %xmm1", &[0x62, 0xf5, 0x6c, 0x08, 0x1d, 0xcb],
            Half { op: Op::Convert { from: Elem::Float(4), to: Elem::Float(2), truncate: false }, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtph2pd 16(%rdi), %zmm1", &[0x62, 0xf5, 0x7c, 0x48, 0x5a, 0x4f, 0x01],
            Half { op: Op::Convert { from: Elem::Float(2), to: Elem::Float(8), truncate: false }, scalar: false, bytes: 64, out: 1, first: 0, second: Right::Memory(Place { base: Base::Register(7), index: None, displacement: 16 }), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtpd2ph %zmm3, %xmm1", &[0x62, 0xf5, 0xfd, 0x48, 0x5a, 0xcb],
            Half { op: Op::Convert { from: Elem::Float(8), to: Elem::Float(2), truncate: false }, scalar: false, bytes: 64, out: 1, first: 0, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtsh2sd %xmm3, %xmm2, %xmm1", &[0x62, 0xf5, 0x6e, 0x08, 0x5a, 0xcb],
            Half { op: Op::Convert { from: Elem::Float(2), to: Elem::Float(8), truncate: false }, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtsd2sh 8(%rdi), %xmm2, %xmm1", &[0x62, 0xf5, 0xef, 0x08, 0x5a, 0x4f, 0x01],
            Half { op: Op::Convert { from: Elem::Float(8), to: Elem::Float(2), truncate: false }, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Memory(Place { base: Base::Register(7), index: None, displacement: 8 }), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtdq2ph %zmm2, %ymm1", &[0x62, 0xf5, 0x7c, 0x48, 0x5b, 0xca],
            Half { op: Op::Convert { from: Elem::Int(4), to: Elem::Float(2), truncate: false }, scalar: false, bytes: 64, out: 1, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtuw2ph %zmm2, %zmm1", &[0x62, 0xf5, 0x7f, 0x48, 0x7d, 0xca],
            Half { op: Op::Convert { from: Elem::Word(2), to: Elem::Float(2), truncate: false }, scalar: false, bytes: 64, out: 1, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vcvttph2dq %ymm2, %zmm1", &[0x62, 0xf5, 0x7e, 0x48, 0x5b, 0xca],
            Half { op: Op::Convert { from: Elem::Float(2), to: Elem::Int(4), truncate: true }, scalar: false, bytes: 64, out: 1, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vcvttph2uw %zmm2, %zmm1", &[0x62, 0xf5, 0x7c, 0x48, 0x7c, 0xca],
            Half { op: Op::Convert { from: Elem::Float(2), to: Elem::Word(2), truncate: true }, scalar: false, bytes: 64, out: 1, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtph2qq %xmm2, %zmm1", &[0x62, 0xf5, 0x7d, 0x48, 0x7b, 0xca],
            Half { op: Op::Convert { from: Elem::Float(2), to: Elem::Int(8), truncate: false }, scalar: false, bytes: 64, out: 1, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vcvtsi2sh %rax, %xmm2, %xmm1", &[0x62, 0xf5, 0xee, 0x08, 0x2a, 0xc8],
            Half { op: Op::Convert { from: Elem::Int(8), to: Elem::Float(2), truncate: false }, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Register(0), broadcast: false, mask: 0, zeroing: false }),
        ("vcvttsh2si %xmm2, %r9d", &[0x62, 0x75, 0x7e, 0x08, 0x2c, 0xca],
            Half { op: Op::Convert { from: Elem::Float(2), to: Elem::Int(4), truncate: true }, scalar: true, bytes: 16, out: 9, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vcmpltph %zmm3, %zmm2, %k5", &[0x62, 0xf3, 0x6c, 0x48, 0xc2, 0xeb, 0x01],
            Half { op: Op::Compare(1), scalar: false, bytes: 64, out: 5, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vcmpunordsh (%rdi), %xmm2, %k1 {%k2}", &[0x62, 0xf3, 0x6e, 0x0a, 0xc2, 0x0f, 0x03],
            Half { op: Op::Compare(3), scalar: true, bytes: 16, out: 1, first: 2, second: Right::Memory(Place { base: Base::Register(7), index: None, displacement: 0 }), broadcast: false, mask: 2, zeroing: false }),
        ("vrndscaleph $3, %zmm2, %zmm1", &[0x62, 0xf3, 0x7c, 0x48, 0x08, 0xca, 0x03],
            Half { op: Op::Round(3), scalar: false, bytes: 64, out: 1, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vrndscalesh $9, %xmm3, %xmm2, %xmm1", &[0x62, 0xf3, 0x6c, 0x08, 0x0a, 0xcb, 0x09],
            Half { op: Op::Round(9), scalar: true, bytes: 16, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vfpclassph $129, %zmm2, %k1", &[0x62, 0xf3, 0x7c, 0x48, 0x66, 0xca, 0x81],
            Half { op: Op::Class(129), scalar: false, bytes: 64, out: 1, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vfpclasssh $24, %xmm2, %k6", &[0x62, 0xf3, 0x7c, 0x08, 0x67, 0xf2, 0x18],
            Half { op: Op::Class(24), scalar: true, bytes: 16, out: 6, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vmovsh 10(%rdi), %xmm17", &[0x62, 0xe5, 0x7e, 0x08, 0x10, 0x4f, 0x05],
            Half { op: Op::Move, scalar: true, bytes: 16, out: 17, first: 0, second: Right::Memory(Place { base: Base::Register(7), index: None, displacement: 10 }), broadcast: false, mask: 0, zeroing: false }),
        ("vmovsh %xmm17, -4(%rdi,%rcx)", &[0x62, 0xe5, 0x7e, 0x08, 0x11, 0x4c, 0x0f, 0xfe],
            Half { op: Op::Store, scalar: true, bytes: 16, out: 17, first: 0, second: Right::Memory(Place { base: Base::Register(7), index: Some((1, 1)), displacement: -4 }), broadcast: false, mask: 0, zeroing: false }),
        ("vmovsh %xmm3, %xmm2, %xmm1", &[0x62, 0xf5, 0x6e, 0x08, 0x10, 0xcb],
            Half { op: Op::Move, scalar: true, bytes: 16, out: 1, first: 2, second: Right::Register(3), broadcast: false, mask: 0, zeroing: false }),
        ("vmovw %r10d, %xmm19", &[0x62, 0xc5, 0x7d, 0x08, 0x6e, 0xda],
            Half { op: Op::FromGeneral, scalar: true, bytes: 16, out: 19, first: 0, second: Right::Register(10), broadcast: false, mask: 0, zeroing: false }),
        ("vmovw %xmm19, %eax", &[0x62, 0xe5, 0x7d, 0x08, 0x7e, 0xd8],
            Half { op: Op::ToGeneral, scalar: true, bytes: 16, out: 19, first: 0, second: Right::Register(0), broadcast: false, mask: 0, zeroing: false }),
        ("vmovw 2(%rdi), %xmm1", &[0x62, 0xf5, 0x7d, 0x08, 0x6e, 0x4f, 0x01],
            Half { op: Op::FromGeneral, scalar: true, bytes: 16, out: 1, first: 0, second: Right::Memory(Place { base: Base::Register(7), index: None, displacement: 2 }), broadcast: false, mask: 0, zeroing: false }),
        ("vucomish %xmm2, %xmm17", &[0x62, 0xe5, 0x7c, 0x08, 0x2e, 0xca],
            Half { op: Op::Flags, scalar: true, bytes: 16, out: 17, first: 0, second: Right::Register(2), broadcast: false, mask: 0, zeroing: false }),
        ("vcomish 2(%rdi), %xmm1", &[0x62, 0xf5, 0x7c, 0x08, 0x2f, 0x4f, 0x01],
            Half { op: Op::Flags, scalar: true, bytes: 16, out: 1, first: 0, second: Right::Memory(Place { base: Base::Register(7), index: None, displacement: 2 }), broadcast: false, mask: 0, zeroing: false }),
    ];

    /// What these bytes are, with nothing fetched beyond their end.
    fn of(bytes: &[u8]) -> Option<(Inst, usize)> {
        decode(&mut |k| bytes[k])
    }

    #[test]
    fn instructions_are_what_the_assembler_made_them_of() {
        for &(text, bytes, want) in CODED {
            assert_eq!(of(bytes), Some((Inst::Half(want), bytes.len())), "{text}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn others_are_left_alone() {
        const OTHERS: &[(&str, &[u8])] = &[
            ("vfmaddcph %zmm3, %zmm2, %zmm1", &[0x62, 0xf6, 0x6e, 0x48, 0x56, 0xcb]),
            ("vaddph {rn-sae}, %zmm3, %zmm2, %zmm1", &[0x62, 0xf5, 0x6c, 0x18, 0x58, 0xcb]),
            ("vrcpph %zmm2, %zmm1", &[0x62, 0xf6, 0x7d, 0x48, 0x4c, 0xca]),
            ("vaddps %zmm3, %zmm2, %zmm1", &[0x62, 0xf1, 0x6c, 0x48, 0x58, 0xcb]),
            ("vcmpltps %zmm3, %zmm2, %k5", &[0x62, 0xf1, 0x6c, 0x48, 0xc2, 0xeb, 0x01]),
            ("vrndscaleps $3, %zmm2, %zmm1", &[0x62, 0xf3, 0x7d, 0x48, 0x08, 0xca, 0x03]),
            ("vdpbf16ps %zmm3, %zmm2, %zmm1", &[0x62, 0xf2, 0x6e, 0x48, 0x52, 0xcb]),
        ];
        for &(text, bytes) in OTHERS {
            assert_eq!(of(bytes), None, "{text}");
        }
    }
}
