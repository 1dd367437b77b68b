//! An object file as one position-independent image: text and read-only data, every relocation resolved.

use infc_ir::{Fault, fault};
use object::elf;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex, SectionKind};
use std::collections::HashMap;

/// A laid out object.
pub struct Image {
    /// Its bytes; the first is to be aligned to 64.
    pub bytes: Vec<u8>,
    /// Offsets of its exported functions by name.
    pub entries: HashMap<String, u64>,
}

/// Lays out text and read-only data and resolves the relocations between them. Any other relocation, writable data and undefined
/// symbols are errors: they would mean that the code calls a library.
pub fn link(object: &[u8]) -> Result<Image, Fault> {
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
            if !matches!(kind, RelocationFlags::Elf { r_type: elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 }) {
                return Err(fault!("relocation {kind:?} of '{name}' cannot be resolved in an image"));
            }
            let place = base + offset;
            let value = (target + symbol.address()) as i64 + relocation.addend() - place as i64;
            let value = i32::try_from(value).map_err(|_| fault!("the image is larger than 2 GiB"))?;
            bytes[place as usize..place as usize + 4].copy_from_slice(&value.to_le_bytes());
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
