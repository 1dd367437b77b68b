//! One relocatable ELF object: the image of the kernels, the constants, and the driver.
//!
//! Kernels and constants are local symbols, so that the objects of several models can be linked together.

use crate::arch::Arch;
use crate::driver::{CONSTANTS, kernel_symbol};
use infc_ir::{Fault, fault};
use infc_kernel::backend::Code;
use object::read::elf::ElfFile64;
use object::write::{Object, Relocation, SectionId, Symbol, SymbolFlags, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, FileFlags, LittleEndian, SectionIndex, SectionKind, SymbolKind, SymbolScope,
};
use object::{Object as _, ObjectSection, ObjectSymbol, RelocationTarget};
use std::collections::HashMap;

/// Functions of the C library that an object may need.
const LIBRARY: [&str; 3] = ["memcpy", "memmove", "memset"];

/// What 32-bit distances reach, with room for the program that it is linked to.
const REACH: usize = (1 << 31) - (64 << 20);

/// Puts an object together. `driver` is LLVM's object of the driver, `names` are those of the kernels.
pub fn object(code: &Code, names: &[&str], constants: &[u8], arch: Arch, driver: &[u8]) -> Result<Vec<u8>, Fault> {
    if code.image.len() + constants.len() > REACH {
        return Err(fault!(
            "code and constants take {} bytes, an object file at most {REACH}",
            code.image.len() + constants.len()
        ));
    }
    let (architecture, page) = match arch {
        Arch::X86 => (Architecture::X86_64, 64),
        // Its code knows the low bits of addresses by their place in a page.
        Arch::Arm => (Architecture::Aarch64, 4096),
        Arch::Riscv => (Architecture::Riscv64, 64),
        Arch::Wasm => return Err(fault!("a module of WebAssembly is no object of ELF")),
    };
    let mut out = Object::new(BinaryFormat::Elf, architecture, Endianness::Little);
    if arch == Arch::Riscv {
        // Linkers refuse to mix calling conventions. As LLVM does.
        out.flags = driver_flags(driver)?;
    }
    let mut known = HashMap::new();
    let text = out.add_section(vec![], b".text.infc".to_vec(), SectionKind::Text);
    out.append_section_data(text, &code.image, page);
    for (k, (name, &entry)) in names.iter().zip(&code.entries).enumerate() {
        let end = code.entries.iter().copied().filter(|&e| e > entry).min().unwrap_or(code.image.len() as u64);
        let symbol = local(&format!("infc.{k}.{}", plain(name)), text, (entry, end - entry), SymbolKind::Text);
        known.insert(kernel_symbol(k), out.add_symbol(symbol));
    }
    let data = out.add_section(vec![], b".rodata.infc".to_vec(), SectionKind::ReadOnlyData);
    out.append_section_data(data, constants, 64);
    let symbol = local(CONSTANTS, data, (0, constants.len() as u64), SymbolKind::Data);
    known.insert(CONSTANTS.to_owned(), out.add_symbol(symbol));
    let driver = ElfFile64::<LittleEndian>::parse(driver).map_err(|e| fault!("LLVM's object file: {e}"))?;
    add(&mut out, &driver, &mut known)?;
    // Without it linkers make the stack executable.
    out.add_section(vec![], b".note.GNU-stack".to_vec(), SectionKind::Other);
    out.write().map_err(|e| fault!("the object file: {e}"))
}

/// What the header of LLVM's object says of its code.
fn driver_flags(driver: &[u8]) -> Result<FileFlags, Fault> {
    Ok(ElfFile64::<LittleEndian>::parse(driver).map_err(|e| fault!("LLVM's object file: {e}"))?.flags())
}

fn local(name: &str, section: SectionId, (value, size): (u64, u64), kind: SymbolKind) -> Symbol {
    Symbol {
        name: name.into(),
        value,
        size,
        kind,
        scope: SymbolScope::Compilation,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    }
}

/// A kernel's name as a symbol that every tool shows.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// Adds the sections, symbols and relocations of the driver.
fn add(out: &mut Object<'_>, driver: &ElfFile64<'_, LittleEndian>, known: &mut HashMap<String, SymbolId>) -> Result<(), Fault> {
    let mut at: HashMap<SectionIndex, SectionId> = HashMap::new();
    for section in driver.sections() {
        let kind = section.kind();
        match kind {
            SectionKind::Text | SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => {}
            SectionKind::Data | SectionKind::UninitializedData | SectionKind::ReadOnlyDataWithRel if section.size() > 0 => {
                return Err(fault!("the driver has a writable section {}", section.name().unwrap_or("?")));
            }
            _ => continue,
        }
        let data = section.data().map_err(|e| fault!("{e}"))?;
        if data.is_empty() {
            continue;
        }
        // Strings are not merged with those of others: relocations point into the section.
        let kind = if kind == SectionKind::Text { kind } else { SectionKind::ReadOnlyData };
        let name = section.name_bytes().map_err(|e| fault!("{e}"))?.to_vec();
        let id = out.add_section(vec![], name, kind);
        out.append_section_data(id, data, section.align());
        at.insert(section.index(), id);
    }
    let mut symbols = HashMap::new();
    for symbol in driver.symbols() {
        let name = symbol.name().map_err(|e| fault!("{e}"))?;
        // Marks of Arm and RISC-V of where code and data begin: nobody refers to them.
        if name.starts_with('$') {
            continue;
        }
        let section = symbol.section_index().and_then(|s| at.get(&s).copied());
        let id = match (known.get(name), section) {
            (Some(&id), None) => id,
            (_, Some(id)) if symbol.kind() == SymbolKind::Section => out.section_symbol(id),
            (_, Some(id)) => {
                let scope = if symbol.is_global() { SymbolScope::Dynamic } else { SymbolScope::Compilation };
                // Places in code that relocations of RISC-V name have no kind.
                let kind = if symbol.kind() == SymbolKind::Unknown { SymbolKind::Label } else { symbol.kind() };
                let symbol = Symbol { scope, ..local(name, id, (symbol.address(), symbol.size()), kind) };
                out.add_symbol(symbol)
            }
            (None, None) if LIBRARY.contains(&name) => out.add_symbol(Symbol {
                name: name.into(),
                value: 0,
                size: 0,
                kind: SymbolKind::Text,
                scope: SymbolScope::Unknown,
                weak: false,
                section: SymbolSection::Undefined,
                flags: SymbolFlags::None,
            }),
            (None, None) if symbol.is_undefined() && !name.is_empty() => {
                return Err(fault!("the driver needs '{name}', which is not in the object"));
            }
            (None, None) => continue,
        };
        symbols.insert(symbol.index(), id);
    }
    for section in driver.sections() {
        let Some(&id) = at.get(&section.index()) else { continue };
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                return Err(fault!("a relocation without a symbol"));
            };
            let Some(&symbol) = symbols.get(&index) else { return Err(fault!("a relocation of an unknown symbol")) };
            let relocation = Relocation { offset, symbol, addend: relocation.addend(), flags: relocation.flags() };
            out.add_relocation(id, relocation).map_err(|e| fault!("{e}"))?;
        }
    }
    Ok(())
}
