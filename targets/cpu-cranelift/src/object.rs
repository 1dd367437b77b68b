//! One relocatable object: the image of the kernels, the constants, and the driver. What the driver names becomes a symbol, and where it does a relocation of the linker's.

use crate::codegen::{Generated, Isa};
use crate::driver::Driver;
use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::ir::UserExternalName;
use cranelift_codegen::isa::CallConv;
use infc_ir::{Fault, fault};
use infc_kernel::backend::{Code, Os};
use infc_objfile::{Builder, Place, Seen};
use object::write::SymbolId;
use object::{Architecture, SymbolKind, elf};
use std::collections::HashMap;

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

/// How programs of an operating system call functions.
pub fn convention(isa: &Isa, os: Os) -> CallConv {
    if os == Os::Windows && !isa.is_arm() { CallConv::WindowsFastcall } else { CallConv::SystemV }
}

/// Puts an object together; `names` are those of the kernels, `name` begins the names of the driver's functions.
pub fn object(
    code: &Code,
    names: &[&str],
    constants: &[u8],
    (name, driver): (&str, &Driver),
    (isa, os): (&Isa, Os),
) -> Result<Vec<u8>, Fault> {
    let arch = arch(isa);
    let mut out = Builder::new(os, arch.architecture, None)?;
    let kernels = out.kernels(code, names, constants.len() + driver.texts.len())?;
    let mut known: HashMap<Name, SymbolId> = kernels.into_iter().enumerate().map(|(k, s)| (Name::Kernel(k as u32), s)).collect();
    for (name, label, bytes) in [(Name::Constants, "infc.constants", constants), (Name::Texts, "infc.texts", &driver.texts)] {
        let place = out.data(bytes, 64);
        known.insert(name, out.symbol(label, place, bytes.len() as u64, SymbolKind::Data, Seen::Here));
    }
    for (name, label, bytes) in [(Name::SaveMode, "infc.save_mode", arch.save), (Name::SetMode, "infc.set_mode", arch.set)] {
        let place = out.code(bytes, 16);
        known.insert(name, out.symbol(label, place, bytes.len() as u64, SymbolKind::Text, Seen::Here));
    }
    for (end, function) in &driver.functions {
        let made = crate::codegen::generated(function.clone(), isa, false)?;
        let place = out.code(&made.bytes, 64);
        out.symbol(&format!("{name}{end}"), place, made.bytes.len() as u64, SymbolKind::Text, Seen::Everywhere);
        relocate(&mut out, place, &made, &known)?;
    }
    out.finish()
}

/// The relocations of a function of the driver that begins at a place.
fn relocate(out: &mut Builder<'_>, place: Place, made: &Generated, known: &HashMap<Name, SymbolId>) -> Result<(), Fault> {
    for r in &made.relocations {
        let name = Name::of(&r.to).ok_or_else(|| fault!("the driver needs '{}', which is not in the object", r.to))?;
        let symbol = match (known.get(&name), name) {
            (Some(&symbol), _) => symbol,
            (None, Name::Memcpy) => out.library("memcpy"),
            (None, Name::Memset) => out.library("memset"),
            (None, _) => return Err(fault!("the driver needs {name:?}, which is not in the object")),
        };
        let r_type = match r.kind {
            Reloc::X86CallPCRel4 | Reloc::X86CallPLTRel4 => elf::R_X86_64_PLT32,
            Reloc::X86PCRel4 => elf::R_X86_64_PC32,
            Reloc::Arm64Call => elf::R_AARCH64_CALL26,
            Reloc::Aarch64AdrPrelPgHi21 => elf::R_AARCH64_ADR_PREL_PG_HI21,
            Reloc::Aarch64AddAbsLo12Nc => elf::R_AARCH64_ADD_ABS_LO12_NC,
            kind => return Err(fault!("relocation {kind:?} of {name:?} has no form in an object file here")),
        };
        out.relocate(Place { offset: place.offset + u64::from(r.at), ..place }, symbol, r.addend, r_type)?;
    }
    Ok(())
}
