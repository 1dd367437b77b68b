//! One relocatable ELF object: the image of the kernels, the constants, and the driver.
//!
//! Kernels and constants are local symbols, so that the objects of several models can be linked together. What the driver names
//! becomes a symbol, and where it does a relocation of the linker's.

use crate::codegen::{Generated, Isa};
use crate::driver::Driver;
use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::ir::UserExternalName;
use infc_ir::{Fault, fault};
use infc_kernel::backend::Code;
use object::write::{Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind, SymbolScope, elf};
use std::collections::HashMap;

/// What 32-bit distances reach, with room for the program that it is linked to.
const REACH: usize = (1 << 31) - (64 << 20);

/// What a driver names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// Kernel number `k`.
    Kernel(u32),
    /// The constants of the model.
    Constants,
    /// What statuses mean.
    Texts,
    /// A function that stores the floating-point environment, and one that takes it from there.
    SaveMode,
    SetMode,
    /// Functions of the C library.
    Memcpy,
    Memset,
}

impl Name {
    /// The namespace of these names among those of Cranelift; kernels have the next one.
    pub const NAMESPACE: u32 = 2;
    const OTHERS: [Name; 6] = [Name::Constants, Name::Texts, Name::SaveMode, Name::SetMode, Name::Memcpy, Name::Memset];

    /// The name as Cranelift has it.
    pub fn external(self) -> UserExternalName {
        match self {
            Name::Kernel(k) => UserExternalName::new(Name::NAMESPACE + 1, k),
            other => {
                let at = Name::OTHERS.iter().position(|n| *n == other).expect("all but kernels are there");
                UserExternalName::new(Name::NAMESPACE, at as u32)
            }
        }
    }

    fn of(name: &UserExternalName) -> Option<Name> {
        match name.namespace.checked_sub(Name::NAMESPACE) {
            Some(0) => Name::OTHERS.get(name.index as usize).copied(),
            Some(1) => Some(Name::Kernel(name.index)),
            _ => None,
        }
    }
}

/// What an architecture has of its own.
struct Arch {
    architecture: Architecture,
    /// The default floating-point environment: to nearest, with subnormal numbers, no exceptions.
    mode: i64,
    /// Functions that store the floating-point environment to an address, and that take it from there: Cranelift has no instruction for it.
    save: &'static [u8],
    set: &'static [u8],
}

/// `stmxcsr (%rdi)`, `ldmxcsr (%rdi)`, each with `ret`.
const X86: Arch =
    Arch { architecture: Architecture::X86_64, mode: 0x1f80, save: &[0x0f, 0xae, 0x1f, 0xc3], set: &[0x0f, 0xae, 0x17, 0xc3] };

/// `mrs x1, fpcr; str x1, [x0]; ret`, `ldr x1, [x0]; msr fpcr, x1; ret`.
const ARM: Arch = Arch {
    architecture: Architecture::Aarch64,
    mode: 0,
    save: &[0x01, 0x44, 0x3b, 0xd5, 0x01, 0x00, 0x00, 0xf9, 0xc0, 0x03, 0x5f, 0xd6],
    set: &[0x01, 0x00, 0x40, 0xf9, 0x01, 0x44, 0x1b, 0xd5, 0xc0, 0x03, 0x5f, 0xd6],
};

fn arch(isa: &Isa) -> &'static Arch {
    if isa.is_arm() { &ARM } else { &X86 }
}

/// The default floating-point environment.
pub fn default_mode(isa: &Isa) -> i64 {
    arch(isa).mode
}

/// Puts an object together; `names` are those of the kernels, `name` begins the names of the driver's functions.
pub fn object(
    code: &Code,
    names: &[&str],
    constants: &[u8],
    (name, driver): (&str, &Driver),
    isa: &Isa,
) -> Result<Vec<u8>, Fault> {
    if code.image.len() + constants.len() > REACH {
        return Err(fault!(
            "code and constants take {} bytes, an object file at most {REACH}",
            code.image.len() + constants.len()
        ));
    }
    let arch = arch(isa);
    let mut out = Object::new(BinaryFormat::Elf, arch.architecture, Endianness::Little);
    let mut known: HashMap<Name, SymbolId> = HashMap::new();
    let text = out.add_section(vec![], b".text.infc".to_vec(), SectionKind::Text);
    out.append_section_data(text, &code.image, 64);
    for (k, (name, &entry)) in names.iter().zip(&code.entries).enumerate() {
        let end = code.entries.iter().copied().filter(|&e| e > entry).min().unwrap_or(code.image.len() as u64);
        let symbol = local(&format!("infc.{k}.{}", plain(name)), text, (entry, end - entry), SymbolKind::Text);
        known.insert(Name::Kernel(k as u32), out.add_symbol(symbol));
    }
    let data = out.add_section(vec![], b".rodata.infc".to_vec(), SectionKind::ReadOnlyData);
    for (name, label, bytes) in [(Name::Constants, "infc.constants", constants), (Name::Texts, "infc.texts", &driver.texts)] {
        let at = out.append_section_data(data, bytes, 64);
        let symbol = local(label, data, (at, bytes.len() as u64), SymbolKind::Data);
        known.insert(name, out.add_symbol(symbol));
    }
    for (name, label, bytes) in [(Name::SaveMode, "infc.save_mode", arch.save), (Name::SetMode, "infc.set_mode", arch.set)] {
        let at = out.append_section_data(text, bytes, 16);
        let symbol = local(label, text, (at, bytes.len() as u64), SymbolKind::Text);
        known.insert(name, out.add_symbol(symbol));
    }
    for (end, function) in &driver.functions {
        let made = crate::codegen::generated(function.clone(), isa, false)?;
        let at = out.append_section_data(text, &made.bytes, 64);
        let symbol = local(&format!("{name}{end}"), text, (at, made.bytes.len() as u64), SymbolKind::Text);
        out.add_symbol(Symbol { scope: SymbolScope::Dynamic, ..symbol });
        relocate(&mut out, text, at, &made, &mut known)?;
    }
    // Without it linkers make the stack executable.
    out.add_section(vec![], b".note.GNU-stack".to_vec(), SectionKind::Other);
    out.write().map_err(|e| fault!("the object file: {e}"))
}

/// The relocations of a function of the driver that begins at a place of the section.
fn relocate(
    out: &mut Object<'_>,
    section: SectionId,
    at: u64,
    made: &Generated,
    known: &mut HashMap<Name, SymbolId>,
) -> Result<(), Fault> {
    for r in &made.relocations {
        let name = Name::of(&r.to).ok_or_else(|| fault!("the driver needs '{}', which is not in the object", r.to))?;
        let library = match name {
            Name::Memcpy => Some("memcpy"),
            Name::Memset => Some("memset"),
            _ => None,
        };
        let symbol = match (known.get(&name), library) {
            (Some(&symbol), _) => symbol,
            (None, Some(library)) => {
                let undefined = local(library, section, (0, 0), SymbolKind::Text);
                let symbol =
                    out.add_symbol(Symbol { scope: SymbolScope::Unknown, section: SymbolSection::Undefined, ..undefined });
                known.insert(name, symbol);
                symbol
            }
            (None, None) => return Err(fault!("the driver needs {name:?}, which is not in the object")),
        };
        let r_type = match r.kind {
            Reloc::X86CallPCRel4 | Reloc::X86CallPLTRel4 => elf::R_X86_64_PLT32,
            Reloc::X86PCRel4 => elf::R_X86_64_PC32,
            Reloc::Arm64Call => elf::R_AARCH64_CALL26,
            Reloc::Aarch64AdrPrelPgHi21 => elf::R_AARCH64_ADR_PREL_PG_HI21,
            Reloc::Aarch64AddAbsLo12Nc => elf::R_AARCH64_ADD_ABS_LO12_NC,
            kind => return Err(fault!("relocation {kind:?} of {name:?} has no form in an object file here")),
        };
        let flags = RelocationFlags::Elf { r_type };
        let relocation = Relocation { offset: at + u64::from(r.at), symbol, addend: r.addend, flags };
        out.add_relocation(section, relocation).map_err(|e| fault!("{e}"))?;
    }
    Ok(())
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
