//! Relocatable object files of compiled models: the image of the kernels, the constants and a driver, as ELF, Mach-O or COFF.
//!
//! Backends generate code as for Linux, with relocations of ELF; only the functions that programs call, and calls of the C library, follow the conventions
//! of the operating system. So there is one generator of code, and what differs between the formats is here. Kernels and constants are local symbols, so
//! that the objects of several models can be linked together.

mod archive;

pub use archive::archive;

use infc_ir::{Fault, fault};
use infc_kernel::backend::{Code, Os};
use object::write::{MachOBuildVersion, Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, FileFlags, RelocationEncoding, RelocationFlags, RelocationKind, SectionKind,
    SymbolFlags, SymbolKind, SymbolScope, elf, macho, pe,
};
use std::collections::HashMap;

/// What 32-bit distances reach, with room for the program that it is linked to.
const REACH: usize = (1 << 31) - (64 << 20);

/// What code of 64-bit Arm is aligned to: it knows the low bits of addresses by their place in a page.
const ARM_PAGE: u64 = 4096;

/// The first macOS that objects are for: the one that runs on 64-bit Arm.
const MACOS: (u16, u8) = (11, 0);

/// Where bytes were put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The section.
    pub section: SectionId,
    /// From its beginning.
    pub offset: u64,
}

/// Whom a symbol is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// This object alone.
    Here,
    /// The program that it is linked to, and those that load that.
    Everywhere,
}

/// An object file that is being put together.
pub struct Builder<'a> {
    out: Object<'a>,
    os: Os,
    architecture: Architecture,
    text: SectionId,
    data: SectionId,
    library: HashMap<&'static str, SymbolId>,
    /// Symbols of places that only relocations name.
    labels: HashMap<(SectionId, u64), SymbolId>,
}

impl<'a> Builder<'a> {
    /// Begins one. `flags` are those of the header, where the architecture has some.
    pub fn new(os: Os, architecture: Architecture, flags: Option<FileFlags>) -> Result<Builder<'a>, Fault> {
        let format = match os {
            Os::Linux => BinaryFormat::Elf,
            Os::Macos => BinaryFormat::MachO,
            Os::Windows => BinaryFormat::Coff,
        };
        if os != Os::Linux && !matches!(architecture, Architecture::X86_64 | Architecture::Aarch64) {
            return Err(fault!("{} runs on no machine of {architecture:?}", os.name()));
        }
        let mut out = Object::new(format, architecture, Endianness::Little);
        if let Some(flags) = flags {
            out.flags = flags;
        }
        if os == Os::Macos {
            let mut version = MachOBuildVersion::default();
            let first = macho::Version::new(MACOS.0, MACOS.1, 0);
            (version.platform, version.minos, version.sdk) = (macho::PLATFORM_MACOS, first, first);
            out.set_macho_build_version(version);
        }
        let section = |out: &mut Object, names: (&str, &str, &str), kind| match os {
            Os::Linux => out.add_section(vec![], names.0.into(), kind),
            Os::Macos => out.add_section(b"__TEXT".to_vec(), names.1.into(), kind),
            Os::Windows => out.add_section(vec![], names.2.into(), kind),
        };
        let text = section(&mut out, (".text.infc", "__text", ".text"), SectionKind::Text);
        let data = section(&mut out, (".rodata.infc", "__const", ".rdata"), SectionKind::ReadOnlyData);
        Ok(Builder { out, os, architecture, text, data, library: HashMap::new(), labels: HashMap::new() })
    }

    /// Adds the kernels; their symbols. There will be as many bytes of `constants`, which they must reach.
    pub fn kernels(&mut self, code: &Code, names: &[&str], constants: usize) -> Result<Vec<SymbolId>, Fault> {
        let bytes = code.image.len() + constants;
        if bytes > REACH {
            return Err(fault!("code and constants take {bytes} bytes, an object file at most {REACH}"));
        }
        let align = if self.architecture == Architecture::Aarch64 { ARM_PAGE } else { 64 };
        let place = self.code(&code.image, align);
        let symbols = names.iter().zip(&code.entries).enumerate().map(|(k, (name, &entry))| {
            let end = code.entries.iter().copied().filter(|&e| e > entry).min().unwrap_or(code.image.len() as u64);
            let at = Place { offset: place.offset + entry, ..place };
            self.symbol(&format!("infc.{k}.{}", plain(name)), at, end - entry, SymbolKind::Text, Seen::Here)
        });
        Ok(symbols.collect())
    }

    /// Adds code.
    pub fn code(&mut self, bytes: &[u8], align: u64) -> Place {
        Place { section: self.text, offset: self.out.append_section_data(self.text, bytes, align) }
    }

    /// Adds data that is only read.
    pub fn data(&mut self, bytes: &[u8], align: u64) -> Place {
        Place { section: self.data, offset: self.out.append_section_data(self.data, bytes, align) }
    }

    /// Adds what another object of ELF has in a section.
    pub fn section(&mut self, name: &[u8], kind: SectionKind, bytes: &[u8], align: u64) -> Place {
        match (self.os, kind) {
            (Os::Linux, _) => {
                let section = self.out.add_section(vec![], name.to_vec(), kind);
                Place { section, offset: self.out.append_section_data(section, bytes, align) }
            }
            (_, SectionKind::Text) => self.code(bytes, align),
            _ => self.data(bytes, align),
        }
    }

    /// Names a place of so many bytes.
    pub fn symbol(&mut self, name: &str, place: Place, size: u64, kind: SymbolKind, seen: Seen) -> SymbolId {
        let scope = if seen == Seen::Here { SymbolScope::Compilation } else { SymbolScope::Dynamic };
        self.add(name, SymbolSection::Section(place.section), (place.offset, size), kind, scope)
    }

    /// A function of the C library.
    pub fn library(&mut self, name: &'static str) -> SymbolId {
        match self.library.get(name) {
            Some(&symbol) => symbol,
            None => {
                let symbol = self.add(name, SymbolSection::Undefined, (0, 0), SymbolKind::Text, SymbolScope::Unknown);
                self.library.insert(name, symbol);
                symbol
            }
        }
    }

    /// A symbol of a place that has no name. In ELF it is that of the section, if the place is its beginning.
    pub fn label(&mut self, place: Place) -> SymbolId {
        if self.os == Os::Linux && place.offset == 0 {
            return self.out.section_symbol(place.section);
        }
        if let Some(&symbol) = self.labels.get(&(place.section, place.offset)) {
            return symbol;
        }
        let name = format!("infc.at.{}", self.labels.len());
        // Mach-O has no labels.
        let kind = if self.os == Os::Macos { SymbolKind::Data } else { SymbolKind::Label };
        let symbol = self.symbol(&name, place, 0, kind, Seen::Here);
        self.labels.insert((place.section, place.offset), symbol);
        symbol
    }

    /// Has the linker put the address of a symbol plus `addend` at a place, in the way that a relocation of ELF means.
    pub fn relocate(&mut self, at: Place, symbol: SymbolId, addend: i64, r_type: elf::RelocationType) -> Result<(), Fault> {
        let (mut symbol, mut addend) = (symbol, addend);
        if self.os != Os::Linux && self.architecture == Architecture::Aarch64 && addend != 0 {
            // These formats have no room for it, or keep it in the instruction.
            let target = self.out.symbol(symbol);
            let SymbolSection::Section(section) = target.section else {
                return Err(fault!("a relocation has an addend to a function of the C library"));
            };
            let offset = target.value.wrapping_add_signed(addend);
            (symbol, addend) = (self.label(Place { section, offset }), 0);
        }
        let flags = match (self.os, self.architecture) {
            (Os::Linux, _) => Some(RelocationFlags::Elf { r_type }),
            (_, Architecture::X86_64) => x86(r_type),
            (Os::Macos, _) => arm_macho(r_type),
            (Os::Windows, _) => arm_coff(r_type),
        };
        let Some(flags) = flags else {
            return Err(fault!("the relocation with number {r_type:?} of ELF has no form in objects for {}", self.os.name()));
        };
        let relocation = Relocation { offset: at.offset, symbol, addend, flags };
        self.out.add_relocation(at.section, relocation).map_err(|e| fault!("{e}"))
    }

    /// The file.
    pub fn finish(mut self) -> Result<Vec<u8>, Fault> {
        if self.os == Os::Linux {
            // Without it linkers make the stack executable.
            self.out.add_section(vec![], b".note.GNU-stack".to_vec(), SectionKind::Other);
        }
        self.out.write().map_err(|e| fault!("the object file: {e}"))
    }

    fn add(
        &mut self,
        name: &str,
        section: SymbolSection,
        (value, size): (u64, u64),
        kind: SymbolKind,
        scope: SymbolScope,
    ) -> SymbolId {
        self.out.add_symbol(Symbol {
            name: name.into(),
            value,
            size,
            kind,
            scope,
            weak: false,
            section,
            flags: SymbolFlags::None,
        })
    }
}

/// Distances of 32 bits.
fn x86(r_type: elf::RelocationType) -> Option<RelocationFlags> {
    let encoding = match r_type {
        elf::R_X86_64_PC32 => RelocationEncoding::X86RipRelative,
        elf::R_X86_64_PLT32 => RelocationEncoding::X86Branch,
        _ => return None,
    };
    Some(RelocationFlags::Generic { kind: RelocationKind::Relative, encoding, size: 32 })
}

fn arm_macho(r_type: elf::RelocationType) -> Option<RelocationFlags> {
    let (r_type, r_pcrel) = match r_type {
        elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26 => (macho::ARM64_RELOC_BRANCH26, true),
        elf::R_AARCH64_ADR_PREL_PG_HI21 => (macho::ARM64_RELOC_PAGE21, true),
        elf::R_AARCH64_ADD_ABS_LO12_NC => (macho::ARM64_RELOC_PAGEOFF12, false),
        _ if low_bits(r_type) => (macho::ARM64_RELOC_PAGEOFF12, false),
        _ => return None,
    };
    Some(RelocationFlags::MachO { r_type, r_pcrel, r_length: 2 })
}

fn arm_coff(r_type: elf::RelocationType) -> Option<RelocationFlags> {
    let typ = match r_type {
        elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26 => pe::IMAGE_REL_ARM64_BRANCH26,
        elf::R_AARCH64_ADR_PREL_PG_HI21 => pe::IMAGE_REL_ARM64_PAGEBASE_REL21,
        elf::R_AARCH64_ADD_ABS_LO12_NC => pe::IMAGE_REL_ARM64_PAGEOFFSET_12A,
        _ if low_bits(r_type) => pe::IMAGE_REL_ARM64_PAGEOFFSET_12L,
        _ => return None,
    };
    Some(RelocationFlags::Coff { typ })
}

/// Is it the low 12 bits of an address in a load or a store? The other formats tell the size of the access from the instruction.
fn low_bits(r_type: elf::RelocationType) -> bool {
    matches!(
        r_type,
        elf::R_AARCH64_LDST8_ABS_LO12_NC
            | elf::R_AARCH64_LDST16_ABS_LO12_NC
            | elf::R_AARCH64_LDST32_ABS_LO12_NC
            | elf::R_AARCH64_LDST64_ABS_LO12_NC
            | elf::R_AARCH64_LDST128_ABS_LO12_NC
    )
}

/// A kernel's name as a symbol that every tool shows.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}
