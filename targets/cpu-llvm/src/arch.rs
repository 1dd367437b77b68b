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
    /// 64-bit RISC-V with the standard extensions of general-purpose processors (RV64GC).
    Riscv,
    /// WebAssembly with addresses of 32 bits.
    Wasm,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 4] = [Arch::X86, Arch::Arm, Arch::Riscv, Arch::Wasm];

    /// That of a machine, if this backend has instructions for all that the machine is said to have.
    pub fn of(target: &TargetDesc) -> Result<Arch, Fault> {
        let Some(arch) = Arch::named(&target.arch) else {
            return Err(fault!("the llvm backend makes no code for '{}', but for {}", target.arch, Arch::names().join(", ")));
        };
        let lacks = arch.lacks(target);
        if lacks.is_empty() {
            Ok(arch)
        } else {
            Err(fault!("the llvm backend has no instructions of {} for {}", target.arch, lacks.join(", ")))
        }
    }
    /// The one that a machine file calls so.
    fn named(name: &str) -> Option<Arch> {
        Arch::ALL.into_iter().find(|a| a.name() == name)
    }
    /// The names of all of them.
    pub fn names() -> Vec<&'static str> {
        Arch::ALL.iter().map(|a| a.name()).collect()
    }
    /// Its name in machine files.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86 => "x86_64",
            Arch::Arm => "aarch64",
            Arch::Riscv => "riscv64",
            Arch::Wasm => "wasm32",
        }
    }
    /// LLVM's triple.
    pub fn triple(self) -> &'static str {
        match self {
            Arch::X86 => "x86_64-unknown-linux-gnu",
            Arch::Arm => "aarch64-unknown-linux-gnu",
            Arch::Riscv => "riscv64-unknown-linux-gnu",
            Arch::Wasm => "wasm32-unknown-unknown",
        }
    }
    /// Bytes of a pointer.
    pub fn pointer_bytes(self) -> u32 {
        if self == Arch::Wasm { 4 } else { 8 }
    }
    /// The CPU that LLVM tunes for. A machine of one's own gets the general tuning; its features say what there is beyond a level.
    pub fn cpu(self, machine: &str) -> &'static str {
        let levels: &[&str] = match self {
            Arch::X86 => &["x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64"],
            Arch::Arm => &["generic"],
            Arch::Riscv => &["generic-rv64"],
            Arch::Wasm => &["mvp"],
        };
        levels.iter().find(|level| machine.starts_with(**level)).unwrap_or(&levels[levels.len() - 1])
    }
    /// The class of vector registers in inline assembly, where masked stores have to be hidden from LLVM (`access.rs`). It is an optimisation for x86 that goes wrong; for RISC-V,
    /// where LLVM 19 takes no vectors of known size in inline assembly, and for WebAssembly, which has no masked stores, there is none like it.
    pub fn vector_class(self) -> Option<&'static str> {
        match self {
            Arch::X86 => Some("x"),
            Arch::Arm => Some("w"),
            Arch::Riscv | Arch::Wasm => None,
        }
    }
    /// What LLVM is told beside a machine's features. Linkers of RISC-V move code to make it shorter, unless it says that it does not count on that; nothing here does. macOS and Windows
    /// have a use of their own for a register of Arm, and code is to run on them too.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Arch::X86 | Arch::Wasm => &[],
            Arch::Arm => &["+reserve-x18"],
            Arch::Riscv => &["-relax"],
        }
    }
    /// Attributes of all functions for which code would run on Linux alone without them: nothing lies below the stack pointer, where Windows may write, and frames larger than a page are
    /// touched page by page, as Windows gives memory to stacks.
    pub fn stack(self) -> &'static str {
        match self {
            Arch::X86 => "noredzone \"probe-stack\"=\"inline-asm\"",
            Arch::Arm => "\"probe-stack\"=\"inline-asm\"",
            Arch::Riscv | Arch::Wasm => "\"no-stack-arg-probe\"",
        }
    }
    /// Lines of a module that name the calling convention, where LLVM's own choice is not that of Linux.
    pub fn convention(self) -> &'static str {
        match self {
            Arch::X86 | Arch::Arm | Arch::Wasm => "",
            Arch::Riscv => "!llvm.module.flags = !{!0}\n!0 = !{i32 1, !\"target-abi\", !\"lp64d\"}\n",
        }
    }
    /// Do its conversions from floats to integers saturate, with zero or a limit for NaN?
    pub fn saturates(self) -> bool {
        self != Arch::X86
    }
    /// Does the machine convert vectors between f16 and f32?
    pub fn converts_halves(self, target: &TargetDesc) -> bool {
        let has = |names: &[&str]| names.iter().all(|n| target.features.iter().any(|f| f == n));
        match self {
            Arch::X86 => has(&["f16c"]),
            Arch::Arm => true,
            Arch::Riscv => has(&["zfhmin", "zvfhmin"]),
            Arch::Wasm => false,
        }
    }
    /// What the machine is said to have and this backend has no instruction for on this architecture, by the keys of machine files.
    fn lacks(self, target: &TargetDesc) -> Vec<&'static str> {
        let x86 = self == Arch::X86;
        let arm = self == Arch::Arm;
        let all = [
            ("byte_dot", target.byte_dot, x86 || arm),
            ("byte_dot_signed", target.byte_dot_signed, arm),
            ("byte_pairs", target.byte_pairs, x86 || arm || self == Arch::Wasm),
            ("bf16_dot", target.bf16_dot, x86),
            ("f16_fma", target.f16_fma, x86 || arm),
            ("tile_bf16", target.tile_bf16, x86),
            ("tile_f16", target.tile_f16, x86),
            ("tile_bytes", target.tile_bytes, x86),
            ("widens_f16", target.widens_f16, self.converts_halves(target)),
            ("lookup", target.lookup > 0, x86),
        ];
        all.into_iter().filter(|(_, said, has)| *said && !has).map(|(key, ..)| key).collect()
    }
}
