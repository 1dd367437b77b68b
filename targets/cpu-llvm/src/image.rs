//! An object file as one position-independent image: text and read-only data, every relocation resolved.

use infc_ir::{Fault, fault};
use object::elf;
use object::read::elf::ElfFile64;
use object::{
    Architecture, LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex, SectionKind,
};
use std::collections::HashMap;

/// A laid out object.
pub struct Image {
    /// Its bytes; the first is to be aligned to 64.
    pub bytes: Vec<u8>,
    /// Offsets of its exported functions by name.
    pub entries: HashMap<String, u64>,
}

/// Lays out text and read-only data for byte `start` of an image that begins on a page, and resolves the relocations between them. Any other relocation, writable data and undefined
/// symbols are errors: they would mean that the code calls a library.
pub fn link(object: &[u8], start: u64) -> Result<Image, Fault> {
    let file = ElfFile64::<LittleEndian>::parse(object).map_err(|e| fault!("LLVM's object file: {e}"))?;
    let mut bytes = vec![];
    let mut at: HashMap<SectionIndex, u64> = HashMap::new();
    for section in file.sections() {
        match section.kind() {
            SectionKind::Text | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => {}
            SectionKind::Data | SectionKind::UninitializedData | SectionKind::ReadOnlyDataWithRel if section.size() > 0 => {
                return Err(fault!("the object has a writable section {}", section.name().unwrap_or("?")));
            }
            _ => continue,
        }
        let data = section.data().map_err(|e| fault!("{e}"))?;
        if data.is_empty() {
            continue;
        }
        bytes.resize(bytes.len().next_multiple_of(section.align().max(1) as usize), 0);
        at.insert(section.index(), bytes.len() as u64);
        bytes.extend_from_slice(data);
    }
    let architecture = object::Object::architecture(&file);
    let highs = if architecture == Architecture::Riscv64 { high_parts(&file, &at) } else { HashMap::new() };
    for section in file.sections() {
        let Some(&base) = at.get(&section.index()) else { continue };
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                return Err(fault!("a relocation without a symbol"));
            };
            let symbol = file.symbol_by_index(index).map_err(|e| fault!("{e}"))?;
            let name = symbol.name().unwrap_or("?");
            let target = symbol.section_index().and_then(|s| at.get(&s));
            let Some(&target) = target else { return Err(fault!("the code needs '{name}', which is not in the image")) };
            let kind = relocation.flags();
            let RelocationFlags::Elf { r_type } = kind else {
                return Err(fault!("relocation {kind:?} of '{name}' is none of ELF"));
            };
            let place = base + offset;
            let [to, from] = [target + symbol.address(), place].map(|p| (start + p) as i64);
            let to = to + relocation.addend();
            let (new, size) = match (architecture, word_at(&bytes, place)) {
                (_, None) => return Err(fault!("relocation {kind:?} of '{name}' lies behind its section")),
                (Architecture::X86_64, _) => (x86(r_type, to - from).map(u64::from), 4),
                (Architecture::Aarch64, Some(old)) => (arm(r_type, old, to, from).map(u64::from), 4),
                (Architecture::Riscv64, _) if r_type == elf::R_RISCV_CALL_PLT => (call(word_pair(&bytes, place), to - from), 8),
                (Architecture::Riscv64, Some(old)) => {
                    // The low part of a distance is told by the place of the instruction that has its high part.
                    let high = highs.get(&(target + symbol.address())).copied();
                    (riscv(r_type, old, to - from, high).map(u64::from), 4)
                }
                _ => (None, 4),
            };
            let new = new.ok_or_else(|| {
                fault!("relocation {kind:?} of '{name}' cannot be resolved in an image of {} bytes", start + place)
            })?;
            bytes[place as usize..place as usize + size].copy_from_slice(&new.to_le_bytes()[..size]);
        }
    }
    let mut entries = HashMap::new();
    for symbol in file.symbols().filter(|s| s.is_global()) {
        let name = symbol.name().map_err(|e| fault!("{e}"))?;
        match symbol.section_index().and_then(|s| at.get(&s)) {
            Some(base) => _ = entries.insert(name.to_string(), base + symbol.address()),
            None => return Err(fault!("the code needs '{name}', which is not in the image")),
        }
    }
    Ok(Image { bytes, entries })
}

fn word_at(bytes: &[u8], place: u64) -> Option<u32> {
    let word = bytes.get(place as usize..place as usize + 4)?;
    Some(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

/// Two instructions that follow each other.
fn word_pair(bytes: &[u8], place: u64) -> Option<[u32; 2]> {
    Some([word_at(bytes, place)?, word_at(bytes, place + 4)?])
}

/// RISC-V: the distances whose high parts are in instructions of the image, by the places of those.
fn high_parts(file: &ElfFile64<'_, LittleEndian>, at: &HashMap<SectionIndex, u64>) -> HashMap<u64, i64> {
    let mut highs = HashMap::new();
    for section in file.sections() {
        let Some(&base) = at.get(&section.index()) else { continue };
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type: elf::R_RISCV_PCREL_HI20 } = relocation.flags() else { continue };
            let RelocationTarget::Symbol(index) = relocation.target() else { continue };
            let Ok(symbol) = file.symbol_by_index(index) else { continue };
            let Some(&target) = symbol.section_index().and_then(|s| at.get(&s)) else { continue };
            let to = (target + symbol.address()) as i64 + relocation.addend();
            highs.insert(base + offset, to - (base + offset) as i64);
        }
    }
    highs
}

/// The word of a relocation of x86-64 by a distance; nothing if the kind is no distance, or it is too far.
fn x86(kind: elf::RelocationType, distance: i64) -> Option<u32> {
    let near = matches!(kind, elf::R_X86_64_PC32 | elf::R_X86_64_PLT32);
    i32::try_from(distance).ok().filter(|_| near).map(|d| d as u32)
}

/// The instruction (or word of data) `old` at `from` with the address `to` in it, by Arm's "ELF for the Arm 64-bit Architecture"; addresses count from the start of a page.
fn arm(kind: elf::RelocationType, old: u32, to: i64, from: i64) -> Option<u32> {
    /// Bits of a number from `first` on, `count` of them.
    fn bits(value: i64, first: u32, count: u32) -> u32 {
        (value >> first) as u32 & ((1 << count) - 1)
    }
    let fits = |value: i64, bits: u32| value >> (bits - 1) == 0 || value >> (bits - 1) == -1;
    // Bits 10 to 21 of loads and stores count elements.
    let low = |shift: u32| (to & ((1 << shift) - 1) == 0).then(|| old | bits(to, shift, 12 - shift) << 10);
    match kind {
        elf::R_AARCH64_ADR_PREL_PG_HI21 => {
            let pages = (to >> 12) - (from >> 12);
            fits(pages, 21).then(|| old | bits(pages, 0, 2) << 29 | bits(pages, 2, 19) << 5)
        }
        elf::R_AARCH64_ADD_ABS_LO12_NC | elf::R_AARCH64_LDST8_ABS_LO12_NC => low(0),
        elf::R_AARCH64_LDST16_ABS_LO12_NC => low(1),
        elf::R_AARCH64_LDST32_ABS_LO12_NC => low(2),
        elf::R_AARCH64_LDST64_ABS_LO12_NC => low(3),
        elf::R_AARCH64_LDST128_ABS_LO12_NC => low(4),
        elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26 => {
            let words = (to - from) >> 2;
            ((to - from) & 3 == 0 && fits(words, 26)).then(|| old | bits(words, 0, 26))
        }
        elf::R_AARCH64_PREL32 => i32::try_from(to - from).ok().map(|d| d as u32),
        _ => None,
    }
}

/// AUIPC's 20 bits of a distance; the 12 bits that an instruction after it adds are signed.
fn upper(distance: i64) -> Option<u32> {
    i32::try_from(distance + 0x800).ok().map(|d| d as u32 & !0xfff)
}

/// The instruction (or word of data) `old` with a distance in it, by the "RISC-V ELF Specification"; `high` is the distance whose high part is in the instruction that the symbol names.
fn riscv(kind: elf::RelocationType, old: u32, distance: i64, high: Option<i64>) -> Option<u32> {
    match kind {
        elf::R_RISCV_PCREL_HI20 => Some(old | upper(distance)?),
        elf::R_RISCV_PCREL_LO12_I => Some(old | (high? as u32) << 20),
        elf::R_RISCV_PCREL_LO12_S => {
            let low = high? as u32;
            Some(old | (low >> 5 & 0x7f) << 25 | (low & 0x1f) << 7)
        }
        elf::R_RISCV_32_PCREL => i32::try_from(distance).ok().map(|d| d as u32),
        _ => None,
    }
}

/// AUIPC and JALR to a function so far away.
fn call(old: Option<[u32; 2]>, distance: i64) -> Option<u64> {
    let [auipc, jalr] = old?;
    let (first, second) = (auipc | upper(distance)?, jalr | (distance as u32) << 20);
    Some(u64::from(second) << 32 | u64::from(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relocations_of_arm_by_hand() {
        // adrp x0, page: from page 1 to page 3; immlo is bits 29 and 30, immhi bits 5 to 23.
        assert_eq!(arm(elf::R_AARCH64_ADR_PREL_PG_HI21, 0x9000_0000, 0x3abc, 0x1010), Some(0xd000_0000));
        // Back by one page: all bits of the distance are ones.
        assert_eq!(arm(elf::R_AARCH64_ADR_PREL_PG_HI21, 0x9000_0000, 0x0abc, 0x1010), Some(0xf0ff_ffe0));
        assert_eq!(arm(elf::R_AARCH64_ADR_PREL_PG_HI21, 0x9000_0000, 1 << 40, 0), None);
        // add x0, x0, #0xabc; ldr q0, [x0, #0xab0], which is not on a multiple of 16 with 0xabc.
        assert_eq!(arm(elf::R_AARCH64_ADD_ABS_LO12_NC, 0x9100_0000, 0x3abc, 0), Some(0x912a_f000));
        assert_eq!(arm(elf::R_AARCH64_LDST128_ABS_LO12_NC, 0x3dc0_0000, 0x3ab0, 0), Some(0x3dc2_ac00));
        assert_eq!(arm(elf::R_AARCH64_LDST128_ABS_LO12_NC, 0x3dc0_0000, 0x3abc, 0), None);
        // bl, forwards and back.
        assert_eq!(arm(elf::R_AARCH64_CALL26, 0x9400_0000, 0x2000, 0x1000), Some(0x9400_0400));
        assert_eq!(arm(elf::R_AARCH64_CALL26, 0x9400_0000, 0x1000, 0x1004), Some(0x97ff_ffff));
        assert_eq!(arm(elf::R_AARCH64_CALL26, 0x9400_0000, 1 << 30, 0), None);
        assert_eq!(
            (x86(elf::R_X86_64_PC32, -4), x86(elf::R_X86_64_PC32, 1 << 32), x86(elf::R_X86_64_64, 0)),
            (Some(u32::MAX - 3), None, None)
        );
    }

    #[test]
    fn relocations_of_riscv_by_hand() {
        let kind = |kind, old, distance, high| riscv(kind, old, distance, high);
        // auipc a0, 0: 0x1800 is two pages less 0x800, which the next instruction takes away again.
        assert_eq!(kind(elf::R_RISCV_PCREL_HI20, 0x0000_0517, 0x1800, None), Some(0x0000_2517));
        assert_eq!(kind(elf::R_RISCV_PCREL_HI20, 0x0000_0517, -0x1000, None), Some(0xffff_f517));
        assert_eq!(kind(elf::R_RISCV_PCREL_HI20, 0x0000_0517, 1 << 31, None), None);
        // addi a0, a0, -0x800; sw a1, 0x123(a0).
        assert_eq!(kind(elf::R_RISCV_PCREL_LO12_I, 0x0005_0513, 0, Some(0x1800)), Some(0x8005_0513));
        assert_eq!(kind(elf::R_RISCV_PCREL_LO12_S, 0x00b5_2023, 0, Some(0x5123)), Some(0x12b5_21a3));
        assert_eq!(kind(elf::R_RISCV_PCREL_LO12_I, 0x0005_0513, 0, None), None);
        // auipc ra, 0; jalr ra, ra.
        let there = |distance| call(Some([0x0000_0097, 0x0000_80e7]), distance);
        assert_eq!(there(0x1234), Some(0x2340_80e7_0000_1097));
        assert_eq!((there(-4), there(1 << 31)), (Some(0xffc0_80e7_0000_0097), None));
    }
}
