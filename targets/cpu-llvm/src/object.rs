//! One relocatable object: the image of the kernels, the constants, and the driver, which LLVM gives as an object of its own.

use crate::arch::Arch;
use crate::driver::{CONSTANTS, kernel_symbol};
use infc_ir::{Fault, fault};
use infc_kernel::backend::{Code, Os};
use infc_objfile::{Builder, Place, Seen};
use object::read::elf::ElfFile64;
use object::write::SymbolId;
use object::{Architecture, LittleEndian, RelocationFlags, SectionIndex, SectionKind, SymbolKind};
use object::{Object as _, ObjectSection, ObjectSymbol, RelocationTarget};
use std::collections::HashMap;

/// Functions of the C library that an object may need.
const LIBRARY: [&str; 3] = ["memcpy", "memmove", "memset"];

/// Puts an object together. `driver` is LLVM's object of the driver, `names` are those of the kernels.
pub fn object(code: &Code, names: &[&str], constants: &[u8], (arch, os): (Arch, Os), driver: &[u8]) -> Result<Vec<u8>, Fault> {
    let architecture = match arch {
        Arch::X86 => Architecture::X86_64,
        Arch::Arm => Architecture::Aarch64,
        Arch::Riscv => Architecture::Riscv64,
        Arch::Wasm => return Err(fault!("a module of WebAssembly is no object file")),
    };
    let driver = ElfFile64::<LittleEndian>::parse(driver).map_err(|e| fault!("LLVM's object file: {e}"))?;
    // Linkers of RISC-V refuse to mix calling conventions, of which its header tells.
    let flags = (arch == Arch::Riscv).then(|| driver.flags());
    let mut out = Builder::new(os, architecture, flags)?;
    let mut known = HashMap::new();
    for (k, symbol) in out.kernels(code, names, constants.len())?.into_iter().enumerate() {
        known.insert(kernel_symbol(k), symbol);
    }
    let place = out.data(constants, 64);
    known.insert(CONSTANTS.to_owned(), out.symbol(CONSTANTS, place, constants.len() as u64, SymbolKind::Data, Seen::Here));
    add(&mut out, &driver, &known)?;
    out.finish()
}

/// Adds the sections, symbols and relocations of the driver.
fn add(out: &mut Builder<'_>, driver: &ElfFile64<'_, LittleEndian>, known: &HashMap<String, SymbolId>) -> Result<(), Fault> {
    let mut at: HashMap<SectionIndex, Place> = HashMap::new();
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
        let name = section.name_bytes().map_err(|e| fault!("{e}"))?;
        at.insert(section.index(), out.section(name, kind, data, section.align()));
    }
    let mut symbols = HashMap::new();
    for symbol in driver.symbols() {
        let name = symbol.name().map_err(|e| fault!("{e}"))?;
        // Marks of Arm and RISC-V of where code and data begin: nobody refers to them.
        if name.starts_with('$') {
            continue;
        }
        let place = symbol.section_index().and_then(|s| at.get(&s).copied());
        let id = match (known.get(name), place) {
            (Some(&id), None) => id,
            (_, Some(place)) if symbol.kind() == SymbolKind::Section => out.label(place),
            (_, Some(place)) => {
                let place = Place { offset: place.offset + symbol.address(), ..place };
                let seen = if symbol.is_global() { Seen::Everywhere } else { Seen::Here };
                // Places in code that relocations of RISC-V name have no kind.
                let kind = if symbol.kind() == SymbolKind::Unknown { SymbolKind::Label } else { symbol.kind() };
                out.symbol(name, place, symbol.size(), kind, seen)
            }
            (None, None) => match LIBRARY.iter().find(|n| **n == name) {
                Some(library) => out.library(library),
                None if symbol.is_undefined() && !name.is_empty() => {
                    return Err(fault!("the driver needs '{name}', which is not in the object"));
                }
                None => continue,
            },
        };
        symbols.insert(symbol.index(), id);
    }
    for section in driver.sections() {
        let Some(&place) = at.get(&section.index()) else { continue };
        for (offset, relocation) in section.relocations() {
            let (RelocationTarget::Symbol(index), RelocationFlags::Elf { r_type }) = (relocation.target(), relocation.flags())
            else {
                return Err(fault!("a relocation without a symbol"));
            };
            let Some(&symbol) = symbols.get(&index) else { return Err(fault!("a relocation of an unknown symbol")) };
            out.relocate(Place { offset: place.offset + offset, ..place }, symbol, relocation.addend(), r_type)?;
        }
    }
    Ok(())
}
