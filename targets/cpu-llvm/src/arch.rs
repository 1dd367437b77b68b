//! The instruction set architectures that this backend makes code for, and what differs between them outside of single instructions.

use infc_ir::{Fault, fault};
use infc_kernel::target::TargetDesc;

/// An architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    #[default]
    X86,
    /// 64-bit Arm with NEON.
    Arm,
}

impl Arch {
    /// That of a machine.
    pub fn of(target: &TargetDesc) -> Result<Arch, Fault> {
        Arch::named(&target.arch)
            .ok_or_else(|| fault!("the llvm backend makes no code for '{}', but for {}", target.arch, Arch::names().join(", ")))
    }
    /// The one that a machine file calls so.
    pub fn named(name: &str) -> Option<Arch> {
        [Arch::X86, Arch::Arm].into_iter().find(|a| a.name() == name)
    }
    /// The names of all of them.
    pub fn names() -> Vec<&'static str> {
        vec![Arch::X86.name(), Arch::Arm.name()]
    }
    fn name(self) -> &'static str {
        match self {
            Arch::X86 => "x86_64",
            Arch::Arm => "aarch64",
        }
    }
    /// LLVM's triple.
    pub fn triple(self) -> &'static str {
        match self {
            Arch::X86 => "x86_64-unknown-linux-gnu",
            Arch::Arm => "aarch64-unknown-linux-gnu",
        }
    }
    /// The CPU that LLVM tunes for. A machine of one's own gets the general tuning; its features say what there is beyond a level.
    pub fn cpu(self, machine: &str) -> &'static str {
        let levels: &[&str] = match self {
            Arch::X86 => &["x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64"],
            Arch::Arm => &["generic"],
        };
        levels.iter().find(|level| machine.starts_with(**level)).unwrap_or(&levels[levels.len() - 1])
    }
    /// The class of vector registers in inline assembly.
    pub fn vector_class(self) -> char {
        match self {
            Arch::X86 => 'x',
            Arch::Arm => 'w',
        }
    }
    /// Does every machine of it convert vectors between f16 and f32?
    pub fn converts_halves(self) -> bool {
        self == Arch::Arm
    }
}
