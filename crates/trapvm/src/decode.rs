//! From bytes to instructions: those of AMX and the VEX form of VNNI, all in opcode map 0F38 behind a VEX prefix of three bytes. What has an EVEX prefix is
//! for [`crate::evex`].

use crate::evex::{self, Half};

/// An instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inst {
    /// LDTILECFG.
    LoadConfig(Place),
    /// STTILECFG.
    StoreConfig(Place),
    /// TILERELEASE.
    Release,
    /// TILEZERO.
    Zero(u8),
    /// TILELOADD, TILELOADDT1: the index register is the distance of rows.
    Load(u8, Place),
    /// TILESTORED, with the same kind of place.
    Store(u8, Place),
    /// TDPBF16PS, TDPFP16PS and the products of bytes.
    Matrix {
        /// What is multiplied.
        kind: Matrix,
        /// The tile of sums.
        sums: u8,
        /// The tile of rows.
        left: u8,
        /// The tile of columns.
        right: u8,
    },
    /// VPDPBUSD and its relatives.
    Vector {
        /// What is multiplied.
        kind: Vector,
        /// Registers have 32 bytes instead of 16.
        wide: bool,
        /// The register of sums.
        sums: u8,
        /// The first factor: the unsigned bytes.
        left: u8,
        /// The second factor.
        right: Right,
    },
    /// One of AVX-512 FP16.
    Half(Half),
}

/// Factors of a product of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// Pairs of bf16.
    Bf16,
    /// Pairs of f16.
    F16,
    /// Groups of four bytes; are those of the first factor signed, and those of the second?
    Bytes(bool, bool),
}

/// Factors of a product in lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vector {
    /// Four unsigned bytes with four signed ones; with sums that stay in their range?
    Bytes(bool),
    /// Two signed numbers of 16 bits with two.
    Words(bool),
}

/// The second factor of a product in lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// A register.
    Register(u8),
    /// Memory.
    Memory(Place),
}

/// A place in memory: `base + index * scale + displacement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the base register.
    pub base: Base,
    /// Number of the index register, and what it is multiplied by.
    pub index: Option<(u8, u8)>,
    /// Added to it.
    pub displacement: i32,
}

/// What a place counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Zero.
    None,
    /// A general register by its number in the encoding (0 is RAX, 4 RSP, 8 R8).
    Register(u8),
    /// The end of the instruction.
    Next,
}

/// The bytes of an instruction, fetched one after another: none is touched before the ones before it say that it is there.
pub(crate) struct Bytes<'a> {
    fetch: &'a mut dyn FnMut(usize) -> u8,
    at: usize,
}

impl Bytes<'_> {
    pub fn next(&mut self) -> u8 {
        self.at += 1;
        (self.fetch)(self.at - 1)
    }
    fn word(&mut self) -> i32 {
        i32::from_le_bytes([self.next(), self.next(), self.next(), self.next()])
    }
}

/// The instruction whose bytes `fetch` gives by their number, and how many they are; `None` if it is none of these.
pub fn decode(fetch: &mut dyn FnMut(usize) -> u8) -> Option<(Inst, usize)> {
    let mut bytes = Bytes { fetch, at: 0 };
    match bytes.next() {
        0xc4 => {}
        0x62 => return evex::decode(&mut bytes).map(|half| (Inst::Half(half), bytes.at)),
        _ => return None,
    }
    let second = bytes.next();
    // The bits that extend register numbers are stored inverted.
    let [reg_high, index_high, rm_high] = [7, 6, 5].map(|bit| (!second >> bit & 1) << 3);
    if second & 0x1f != 2 {
        return None;
    }
    let third = bytes.next();
    let (w, third_register, wide, prefix) = (third >> 7, !third >> 3 & 0xf, third & 4 != 0, third & 3);
    let opcode = bytes.next();
    if w != 0 || !matches!(opcode, 0x49 | 0x4b | 0x50..=0x53 | 0x5c | 0x5e) {
        return None;
    }
    let modrm = bytes.next();
    let (mode, reg, rm) = (modrm >> 6, (modrm >> 3 & 7) | reg_high, modrm & 7);
    let in_register = mode == 3;
    let (place, with_sib) = match in_register {
        true => (None, false),
        false => (Some(place(&mut bytes, mode, rm, index_high, rm_high)), rm == 4),
    };
    let rm = rm | rm_high;
    let inst = if (0x50..=0x53).contains(&opcode) {
        if prefix != 1 {
            return None;
        }
        let saturated = opcode & 1 == 1;
        let kind = if opcode < 0x52 { Vector::Bytes(saturated) } else { Vector::Words(saturated) };
        let right = place.map_or(Right::Register(rm), Right::Memory);
        Inst::Vector { kind, wide, sums: reg, left: third_register, right }
    } else {
        // There are eight tiles, and instructions with two operands leave the third register's bits set (stored inverted).
        let free = third_register == 0;
        if wide || reg > 7 {
            return None;
        }
        match (opcode, prefix, place) {
            (0x49, 0, Some(place)) if reg == 0 && free => Inst::LoadConfig(place),
            (0x49, 1, Some(place)) if reg == 0 && free => Inst::StoreConfig(place),
            (0x49, 0, None) if modrm == 0xc0 && free => Inst::Release,
            (0x49, 3, None) if rm == 0 && free => Inst::Zero(reg),
            (0x4b, 1 | 3, Some(place)) if with_sib && free => Inst::Load(reg, place),
            (0x4b, 2, Some(place)) if with_sib && free => Inst::Store(reg, place),
            (0x5c | 0x5e, _, None) if rm < 8 && third_register < 8 => {
                let kind = match (opcode, prefix) {
                    (0x5c, 2) => Matrix::Bf16,
                    (0x5c, 3) => Matrix::F16,
                    (0x5e, 0) => Matrix::Bytes(false, false),
                    (0x5e, 1) => Matrix::Bytes(false, true),
                    (0x5e, 2) => Matrix::Bytes(true, false),
                    (0x5e, 3) => Matrix::Bytes(true, true),
                    _ => return None,
                };
                Inst::Matrix { kind, sums: reg, left: rm, right: third_register }
            }
            _ => return None,
        }
    };
    Some((inst, bytes.at))
}

/// The place that ModRM, SIB and displacement name.
pub(crate) fn place(bytes: &mut Bytes, mode: u8, rm: u8, index_high: u8, rm_high: u8) -> Place {
    let (mut base, mut index) = (Base::Register(rm | rm_high), None);
    let mut far = mode == 2;
    if rm == 4 {
        let sib = bytes.next();
        let (number, low) = ((sib >> 3 & 7) | index_high, sib & 7);
        index = (number != 4).then_some((number, 1 << (sib >> 6)));
        base = Base::Register(low | rm_high);
        if low == 5 && mode == 0 {
            (base, far) = (Base::None, true);
        }
    } else if rm == 5 && mode == 0 {
        (base, far) = (Base::Next, true);
    }
    let displacement = match mode {
        1 => i32::from(bytes.next() as i8),
        _ if far => bytes.word(),
        _ => 0,
    };
    Place { base, index, displacement }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(base: Base, index: Option<(u8, u8)>, displacement: i32) -> Place {
        Place { base, index, displacement }
    }

    const fn reg(n: u8) -> Base {
        Base::Register(n)
    }

    /// Text, bytes as LLVM's assembler makes them (`llvm-mc -show-encoding`), and meaning.
    #[rustfmt::skip]
    const CODED: &[(&str, &[u8], Inst)] = &[
        ("ldtilecfg (%rdi)", &[0xc4,0xe2,0x78,0x49,0x07], Inst::LoadConfig(at(reg(7), None, 0))),
        ("ldtilecfg 64(%r12,%rcx,4)", &[0xc4,0xc2,0x78,0x49,0x44,0x8c,0x40], Inst::LoadConfig(at(reg(12), Some((1, 4)), 64))),
        ("ldtilecfg 128(%rip)", &[0xc4,0xe2,0x78,0x49,0x05,0x80,0,0,0], Inst::LoadConfig(at(Base::Next, None, 128))),
        ("sttilecfg -64(%rsp)", &[0xc4,0xe2,0x79,0x49,0x44,0x24,0xc0], Inst::StoreConfig(at(reg(4), None, -64))),
        ("sttilecfg (%r13)", &[0xc4,0xc2,0x79,0x49,0x45,0], Inst::StoreConfig(at(reg(13), None, 0))),
        ("tilerelease", &[0xc4,0xe2,0x78,0x49,0xc0], Inst::Release),
        ("tilezero %tmm0", &[0xc4,0xe2,0x7b,0x49,0xc0], Inst::Zero(0)),
        ("tilezero %tmm7", &[0xc4,0xe2,0x7b,0x49,0xf8], Inst::Zero(7)),
        ("tileloadd (%rsi,%rdx), %tmm3", &[0xc4,0xe2,0x7b,0x4b,0x1c,0x16], Inst::Load(3, at(reg(6), Some((2, 1)), 0))),
        ("tileloadd 4096(%r9,%r10,2), %tmm6", &[0xc4,0x82,0x7b,0x4b,0xb4,0x51,0,0x10,0,0], Inst::Load(6, at(reg(9), Some((10, 2)), 4096))),
        ("tileloadd 8(,%rbx,8), %tmm1", &[0xc4,0xe2,0x7b,0x4b,0x0c,0xdd,8,0,0,0], Inst::Load(1, at(Base::None, Some((3, 8)), 8))),
        ("tileloaddt1 (%rbp,%rax), %tmm5", &[0xc4,0xe2,0x79,0x4b,0x6c,5,0], Inst::Load(5, at(reg(5), Some((0, 1)), 0))),
        ("tilestored %tmm2, 64(%rsp,%rdx)", &[0xc4,0xe2,0x7a,0x4b,0x54,0x14,0x40], Inst::Store(2, at(reg(4), Some((2, 1)), 64))),
        ("tilestored %tmm4, (%r13,%r15)", &[0xc4,0x82,0x7a,0x4b,0x64,0x3d,0], Inst::Store(4, at(reg(13), Some((15, 1)), 0))),
        ("tdpbf16ps %tmm7, %tmm5, %tmm1", &[0xc4,0xe2,0x42,0x5c,0xcd], Inst::Matrix { kind: Matrix::Bf16, sums: 1, left: 5, right: 7 }),
        ("tdpfp16ps %tmm1, %tmm2, %tmm3", &[0xc4,0xe2,0x73,0x5c,0xda], Inst::Matrix { kind: Matrix::F16, sums: 3, left: 2, right: 1 }),
        ("tdpbssd %tmm6, %tmm4, %tmm0", &[0xc4,0xe2,0x4b,0x5e,0xc4], Inst::Matrix { kind: Matrix::Bytes(true, true), sums: 0, left: 4, right: 6 }),
        ("tdpbsud %tmm3, %tmm2, %tmm1", &[0xc4,0xe2,0x62,0x5e,0xca], Inst::Matrix { kind: Matrix::Bytes(true, false), sums: 1, left: 2, right: 3 }),
        ("tdpbusd %tmm1, %tmm2, %tmm3", &[0xc4,0xe2,0x71,0x5e,0xda], Inst::Matrix { kind: Matrix::Bytes(false, true), sums: 3, left: 2, right: 1 }),
        ("tdpbuud %tmm7, %tmm6, %tmm5", &[0xc4,0xe2,0x40,0x5e,0xee], Inst::Matrix { kind: Matrix::Bytes(false, false), sums: 5, left: 6, right: 7 }),
        ("{vex} vpdpbusd %ymm3, %ymm2, %ymm1", &[0xc4,0xe2,0x6d,0x50,0xcb],
            Inst::Vector { kind: Vector::Bytes(false), wide: true, sums: 1, left: 2, right: Right::Register(3) }),
        ("{vex} vpdpbusd %xmm13, %xmm12, %xmm11", &[0xc4,0x42,0x19,0x50,0xdd],
            Inst::Vector { kind: Vector::Bytes(false), wide: false, sums: 11, left: 12, right: Right::Register(13) }),
        ("{vex} vpdpbusd 32(%rax,%r9), %ymm15, %ymm8", &[0xc4,0x22,0x05,0x50,0x44,0x08,0x20],
            Inst::Vector { kind: Vector::Bytes(false), wide: true, sums: 8, left: 15, right: Right::Memory(at(reg(0), Some((9, 1)), 32)) }),
        ("{vex} vpdpbusd 256(%r14), %ymm0, %ymm9", &[0xc4,0x42,0x7d,0x50,0x8e,0,1,0,0],
            Inst::Vector { kind: Vector::Bytes(false), wide: true, sums: 9, left: 0, right: Right::Memory(at(reg(14), None, 256)) }),
        ("{vex} vpdpbusds (%rdi), %xmm2, %xmm1", &[0xc4,0xe2,0x69,0x51,0x0f],
            Inst::Vector { kind: Vector::Bytes(true), wide: false, sums: 1, left: 2, right: Right::Memory(at(reg(7), None, 0)) }),
        ("{vex} vpdpwssd %ymm7, %ymm8, %ymm9", &[0xc4,0x62,0x3d,0x52,0xcf],
            Inst::Vector { kind: Vector::Words(false), wide: true, sums: 9, left: 8, right: Right::Register(7) }),
        ("{vex} vpdpwssds -8(%rip), %ymm8, %ymm9", &[0xc4,0x62,0x3d,0x53,0x0d,0xf8,0xff,0xff,0xff],
            Inst::Vector { kind: Vector::Words(true), wide: true, sums: 9, left: 8, right: Right::Memory(at(Base::Next, None, -8)) }),
    ];

    /// What these bytes are, with nothing fetched beyond their end.
    fn of(bytes: &[u8]) -> Option<(Inst, usize)> {
        decode(&mut |k| bytes[k])
    }

    #[test]
    fn instructions_are_what_the_assembler_made_them_of() {
        for &(text, bytes, want) in CODED {
            assert_eq!(of(bytes), Some((want, bytes.len())), "{text}");
        }
    }

    #[test]
    fn others_are_left_alone() {
        for (text, bytes) in [
            ("vpdpbusd %zmm3, %zmm2, %zmm1", &[0x62u8, 0xf2, 0x6d, 0x48, 0x50, 0xcb][..]),
            ("vfmadd231ps %ymm3, %ymm2, %ymm1", &[0xc4, 0xe2, 0x6d, 0xb8, 0xcb]),
            ("ud2", &[0x0f, 0x0b]),
            ("vpermq $0, %ymm0, %ymm0", &[0xc4, 0xe3, 0xfd, 0x00, 0xc0, 0]),
            ("tileloadd without an index byte", &[0xc4, 0xe2, 0x7b, 0x4b, 0x1e]),
            ("tilezero with W", &[0xc4, 0xe2, 0xfb, 0x49, 0xc0]),
            ("tdpbf16ps with L", &[0xc4, 0xe2, 0x46, 0x5c, 0xcd]),
            ("tdpbf16ps with a ninth tile", &[0xc4, 0xe2, 0x02, 0x5c, 0xcd]),
            ("ldtilecfg with a third register", &[0xc4, 0xe2, 0x70, 0x49, 0x07]),
        ] {
            assert_eq!(of(bytes), None, "{text}");
        }
    }
}
