//! What this machine can do, by LLVM's feature names, so that an artifact for another one is refused before any code runs.

use crate::error::{Error, fail};
use alloc::vec::Vec;
use infc_artifact::container::Requirements;

/// The instruction set architecture that this runtime was built for.
pub const ARCH: &str = if cfg!(target_arch = "x86_64") {
    "x86_64"
} else if cfg!(target_arch = "aarch64") {
    "aarch64"
} else if cfg!(target_arch = "riscv64") {
    "riscv64"
} else {
    "unknown"
};

/// Whether this machine can run what has these requirements; the error names what it lacks.
pub fn check(required: &Requirements) -> Result<(), Error> {
    if !required.arch.is_empty() && required.arch != ARCH {
        fail!(Machine, "the artifact is for {}, this machine is {ARCH}", required.arch);
    }
    let missing = imp::missing(required.features.iter().map(|f| f.as_str()));
    if !missing.is_empty() {
        let all = required.features.join(", ");
        fail!(Machine, "this CPU lacks {} (the artifact requires {all})", missing.join(", "));
    }
    Ok(())
}

/// Whether the CPU has a feature and the operating system lets programs use it. Unknown features are absent.
pub fn has(feature: &str) -> bool {
    imp::missing([feature].into_iter()).is_empty()
}

/// Whether [`has`] knows what the feature of an architecture is, on a machine of it; no artifact that requires another one can ever be loaded.
pub fn knows(arch: &str, feature: &str) -> bool {
    match arch {
        "aarch64" => arm::NAMES.contains(&feature),
        "riscv64" => riscv::names().any(|f| f == feature),
        _ if arch == ARCH => imp::known().any(|f| f == feature),
        // Features of other architectures are not listed here.
        _ => true,
    }
}

/// The features that [`knows`] knows and [`has`] has.
pub fn features() -> Vec<&'static str> {
    let missing = imp::missing(imp::known());
    imp::known().filter(|f| !missing.contains(f)).collect()
}

/// Asks the operating system for what needs its permission (AMX on Linux).
pub(crate) fn enable(required: &Requirements) -> Result<(), Error> {
    #[cfg(all(feature = "std", target_os = "linux", target_arch = "x86_64"))]
    if required.features.iter().any(|f| f.starts_with("amx")) {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        // Safety: this system call changes no memory of ours.
        let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) };
        if answer != 0 {
            let without = "compile for a CPU without AMX, or for several, of which the best that may run is taken";
            fail!(Machine, "the operating system refuses the use of AMX tiles (Linux allows it from 5.16 on); {without}");
        }
    }
    let _ = required;
    Ok(())
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use alloc::vec::Vec;
    use core::arch::x86_64::{__cpuid_count, CpuidResult};

    #[derive(Clone, Copy)]
    enum Reg {
        Eax,
        Ebx,
        Ecx,
        Edx,
    }
    use Reg::*;

    /// Register state that the operating system must save: bits of XCR0.
    #[derive(Clone, Copy, PartialEq)]
    #[repr(u64)]
    enum Os {
        No = 0,
        Avx = 0x6,
        Avx512 = 0xe6,
        Amx = 0x6_0000,
    }
    use Os::*;

    /// `(name, leaf, subleaf, register, bit, state)` from Intel's and AMD's manuals.
    #[rustfmt::skip]
    const FEATURES: &[(&str, u32, u32, Reg, u32, Os)] = &[
        ("x87", 1, 0, Edx, 0, No), ("cx8", 1, 0, Edx, 8, No), ("cmov", 1, 0, Edx, 15, No), ("mmx", 1, 0, Edx, 23, No),
        ("fxsr", 1, 0, Edx, 24, No), ("sse", 1, 0, Edx, 25, No), ("sse2", 1, 0, Edx, 26, No), ("sse3", 1, 0, Ecx, 0, No),
        ("pclmul", 1, 0, Ecx, 1, No), ("ssse3", 1, 0, Ecx, 9, No), ("fma", 1, 0, Ecx, 12, Avx), ("cx16", 1, 0, Ecx, 13, No),
        ("sse4.1", 1, 0, Ecx, 19, No), ("sse4.2", 1, 0, Ecx, 20, No), ("crc32", 1, 0, Ecx, 20, No), ("movbe", 1, 0, Ecx, 22, No),
        ("popcnt", 1, 0, Ecx, 23, No), ("aes", 1, 0, Ecx, 25, No), ("xsave", 1, 0, Ecx, 26, No), ("avx", 1, 0, Ecx, 28, Avx),
        ("f16c", 1, 0, Ecx, 29, Avx), ("rdrnd", 1, 0, Ecx, 30, No),
        ("fsgsbase", 7, 0, Ebx, 0, No), ("bmi", 7, 0, Ebx, 3, No), ("avx2", 7, 0, Ebx, 5, Avx), ("bmi2", 7, 0, Ebx, 8, No),
        ("avx512f", 7, 0, Ebx, 16, Avx512), ("avx512dq", 7, 0, Ebx, 17, Avx512), ("rdseed", 7, 0, Ebx, 18, No),
        ("adx", 7, 0, Ebx, 19, No), ("avx512ifma", 7, 0, Ebx, 21, Avx512), ("avx512cd", 7, 0, Ebx, 28, Avx512),
        ("sha", 7, 0, Ebx, 29, No), ("avx512bw", 7, 0, Ebx, 30, Avx512), ("avx512vl", 7, 0, Ebx, 31, Avx512),
        ("avx512vbmi", 7, 0, Ecx, 1, Avx512), ("avx512vbmi2", 7, 0, Ecx, 6, Avx512), ("gfni", 7, 0, Ecx, 8, No),
        ("vaes", 7, 0, Ecx, 9, Avx), ("vpclmulqdq", 7, 0, Ecx, 10, Avx), ("avx512vnni", 7, 0, Ecx, 11, Avx512),
        ("avx512bitalg", 7, 0, Ecx, 12, Avx512), ("avx512vpopcntdq", 7, 0, Ecx, 14, Avx512),
        ("avx512vp2intersect", 7, 0, Edx, 8, Avx512), ("amx-bf16", 7, 0, Edx, 22, Amx), ("avx512fp16", 7, 0, Edx, 23, Avx512),
        ("amx-tile", 7, 0, Edx, 24, Amx), ("amx-int8", 7, 0, Edx, 25, Amx),
        ("avxvnni", 7, 1, Eax, 4, Avx), ("avx512bf16", 7, 1, Eax, 5, Avx512), ("amx-fp16", 7, 1, Eax, 21, Amx),
        ("avxifma", 7, 1, Eax, 23, Avx), ("avxvnniint8", 7, 1, Edx, 4, Avx), ("avxneconvert", 7, 1, Edx, 5, Avx),
        ("avxvnniint16", 7, 1, Edx, 10, Avx),
        ("sahf", 0x8000_0001, 0, Ecx, 0, No), ("lzcnt", 0x8000_0001, 0, Ecx, 5, No), ("sse4a", 0x8000_0001, 0, Ecx, 6, No),
        ("prfchw", 0x8000_0001, 0, Ecx, 8, No), ("64bit", 0x8000_0001, 0, Edx, 29, No),
    ];

    /// What one CPU says of itself. `cpuid` traps in virtual machines, where each takes microseconds, so each leaf is read once.
    struct Leaves([(u32, u32, CpuidResult); 4], u64);

    fn read() -> Leaves {
        let zero = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        let (most, most_extended) = (__cpuid_count(0, 0).eax, __cpuid_count(0x8000_0000, 0).eax);
        let leaf = |known: bool, leaf: u32, subleaf: u32| if known { __cpuid_count(leaf, subleaf) } else { zero };
        let (first, seventh) = (leaf(most >= 1, 1, 0), leaf(most >= 7, 7, 0));
        let more = leaf(most >= 7 && seventh.eax >= 1, 7, 1);
        let extended = leaf(most_extended >= 0x8000_0001, 0x8000_0001, 0);
        Leaves([(1, 0, first), (7, 0, seventh), (7, 1, more), (0x8000_0001, 0, extended)], saved(first.ecx))
    }

    /// XCR0: which register state the operating system saves.
    fn saved(ecx: u32) -> u64 {
        const OSXSAVE: u32 = 1 << 27;
        if ecx & OSXSAVE == 0 {
            return 0;
        }
        let (low, high): (u32, u32);
        // Safety: `xgetbv` exists when OSXSAVE is set; it only writes these registers.
        unsafe { core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
        // Windows saves tiles for processes alone that ask for it, by a function that not every Windows has; this runtime does not ask.
        let kept = if cfg!(windows) { !(Amx as u64) } else { !0 };
        (u64::from(high) << 32 | u64::from(low)) & kept
    }

    /// Those of the features that the CPU lacks or the operating system does not support, and those that are not known.
    pub(super) fn missing<'a>(features: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let Leaves(leaves, saved) = read();
        let has = |feature: &str| {
            FEATURES.iter().find(|f| f.0 == feature).is_some_and(|&(_, number, subleaf, reg, bit, os)| {
                let leaf = leaves.iter().find(|l| (l.0, l.1) == (number, subleaf));
                let value = leaf.map_or(0, |(_, _, r)| match reg {
                    Eax => r.eax,
                    Ebx => r.ebx,
                    Ecx => r.ecx,
                    Edx => r.edx,
                });
                value >> bit & 1 == 1 && (os == No || saved & os as u64 == os as u64)
            })
        };
        features.filter(|f| !has(f)).collect()
    }

    pub(super) fn known() -> impl Iterator<Item = &'static str> {
        FEATURES.iter().map(|f| f.0)
    }
}

/// Features of 64-bit Arm.
mod arm {
    /// LLVM's names, those that every machine has first.
    pub(super) const NAMES: &[&str] = &[
        "neon", "fp-armv8", "aes", "bf16", "crc", "dotprod", "fp16fml", "fullfp16", "i8mm", "lse", "rdm", "sha2", "sve", "sve2",
    ];

    /// By the standard library, which asks the operating system.
    #[cfg(all(target_arch = "aarch64", feature = "std"))]
    pub(super) fn has(feature: &str) -> bool {
        macro_rules! table {
            ($($llvm:literal $rust:tt,)*) => { match feature { $($llvm => std::arch::is_aarch64_feature_detected!($rust),)* _ => false } };
        }
        table! {
            "neon" "neon", "fp-armv8" "neon", "aes" "aes", "bf16" "bf16", "crc" "crc", "dotprod" "dotprod", "fp16fml" "fhm", "fullfp16" "fp16",
            "i8mm" "i8mm", "lse" "lse", "rdm" "rdm", "sha2" "sha2", "sve" "sve", "sve2" "sve2",
        }
    }

    /// Without an operating system to ask: what every machine has.
    #[cfg(all(target_arch = "aarch64", not(feature = "std")))]
    pub(super) fn has(feature: &str) -> bool {
        NAMES[..2].contains(&feature)
    }
}

#[cfg(target_arch = "aarch64")]
mod imp {
    use super::arm;
    use alloc::vec::Vec;

    pub(super) fn missing<'a>(features: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        features.filter(|f| !arm::has(f)).collect()
    }
    pub(super) fn known() -> impl Iterator<Item = &'static str> {
        arm::NAMES.iter().copied()
    }
}

/// Extensions of 64-bit RISC-V.
mod riscv {
    /// LLVM's names, each with its bit in the answer of Linux's `riscv_hwprobe` for the key `IMA_EXT_0`. Those without one are there on every machine that this runtime
    /// can be built for, or tell how long vectors are.
    const EXTENSIONS: &[(&str, Option<u32>)] = &[
        ("m", None),
        ("a", None),
        ("f", None),
        ("d", None),
        ("c", None),
        ("v", Some(2)),
        ("zvl128b", None),
        ("zvl256b", None),
        ("zvl512b", None),
        ("zvl1024b", None),
        ("zba", Some(3)),
        ("zbb", Some(4)),
        ("zbs", Some(5)),
        ("zfh", Some(27)),
        ("zfhmin", Some(28)),
        ("zvfh", Some(30)),
        ("zvfhmin", Some(31)),
        ("zfa", Some(32)),
        ("zicond", Some(35)),
    ];

    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        EXTENSIONS.iter().map(|e| e.0)
    }

    #[cfg(target_arch = "riscv64")]
    pub(super) fn has(feature: &str) -> bool {
        let Some((name, bit)) = EXTENSIONS.iter().find(|e| e.0 == feature) else { return false };
        match (bit, name.strip_prefix("zvl").and_then(|n| n.strip_suffix('b'))) {
            (Some(bit), _) => probed() >> bit & 1 == 1,
            (None, Some(bits)) => has("v") && bits.parse().is_ok_and(|bits: usize| 8 * vector_bytes() >= bits),
            (None, None) => true,
        }
    }

    /// What the kernel says of all CPUs. One from before Linux 6.4 tells of vectors alone, by the letter V in its auxiliary vector.
    #[cfg(all(target_arch = "riscv64", feature = "std"))]
    fn probed() -> u64 {
        #[repr(C)]
        struct Pair {
            key: i64,
            value: u64,
        }
        const SYS_RISCV_HWPROBE: libc::c_long = 258;
        const IMA_EXT_0: i64 = 4;
        let mut pair = Pair { key: IMA_EXT_0, value: 0 };
        // Safety: the kernel writes to the one pair that it is told of.
        let answer = unsafe { libc::syscall(SYS_RISCV_HWPROBE, &raw mut pair, 1usize, 0usize, core::ptr::null::<u8>(), 0u32) };
        if answer == 0 && pair.key == IMA_EXT_0 {
            return pair.value;
        }
        // Safety: reads what the kernel gave the process when it began.
        let letters = unsafe { libc::getauxval(libc::AT_HWCAP) } as u64;
        (letters >> (b'V' - b'A') & 1) << 2
    }

    /// Without an operating system to ask.
    #[cfg(all(target_arch = "riscv64", not(feature = "std")))]
    fn probed() -> u64 {
        0
    }

    /// Bytes of a vector register of a machine with vectors.
    #[cfg(target_arch = "riscv64")]
    fn vector_bytes() -> usize {
        let bytes: usize;
        // Safety: reads the register `vlenb`, which there is with vectors; by its number, since the assembler may not know the extension.
        unsafe { core::arch::asm!("csrr {}, 0xc22", out(reg) bytes, options(nomem, nostack, preserves_flags)) };
        bytes
    }
}

#[cfg(target_arch = "riscv64")]
mod imp {
    use super::riscv;
    use alloc::vec::Vec;

    pub(super) fn missing<'a>(features: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        features.filter(|f| !riscv::has(f)).collect()
    }
    pub(super) fn known() -> impl Iterator<Item = &'static str> {
        riscv::names()
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
mod imp {
    use alloc::vec::Vec;

    pub(super) fn missing<'a>(features: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        features.collect()
    }
    pub(super) fn known() -> impl Iterator<Item = &'static str> {
        core::iter::empty()
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_standard_library() {
        macro_rules! check {
            ($($ours:literal $theirs:tt)*) => { $(assert_eq!(has($ours), std::is_x86_feature_detected!($theirs), $ours);)* };
        }
        check! {
            "sse3" "sse3" "ssse3" "ssse3" "sse4.1" "sse4.1" "sse4.2" "sse4.2" "popcnt" "popcnt" "avx" "avx" "fma" "fma" "f16c" "f16c"
            "avx2" "avx2" "bmi" "bmi1" "bmi2" "bmi2" "lzcnt" "lzcnt" "movbe" "movbe" "aes" "aes" "pclmul" "pclmulqdq" "sha" "sha"
            "avx512f" "avx512f" "avx512dq" "avx512dq" "avx512cd" "avx512cd" "avx512bw" "avx512bw" "avx512vl" "avx512vl"
            "avx512ifma" "avx512ifma" "avx512vbmi" "avx512vbmi" "avx512vbmi2" "avx512vbmi2" "avx512vnni" "avx512vnni"
            "avx512bitalg" "avx512bitalg" "avx512vpopcntdq" "avx512vpopcntdq" "avx512bf16" "avx512bf16" "avx512fp16" "avx512fp16"
            "gfni" "gfni" "vaes" "vaes" "vpclmulqdq" "vpclmulqdq" "avxvnni" "avxvnni" "adx" "adx" "rdseed" "rdseed"
            "rdrnd" "rdrand" "cx16" "cmpxchg16b" "sse4a" "sse4a" "xsave" "xsave" "fxsr" "fxsr" "sse2" "sse2"
        }
        assert!(!has("avx1024") && !knows(ARCH, "avx1024") && knows(ARCH, "avx2"));
        assert!(features().contains(&"sse2") && features().iter().all(|f| has(f) && knows(ARCH, f)));
        assert!(knows("aarch64", "i8mm") && !knows("aarch64", "avx2") && !has("i8mm"));
        assert!(knows("riscv64", "zvl256b") && !knows("riscv64", "zvl300b") && !has("v"));
    }

    #[test]
    fn the_error_names_what_is_missing() {
        let required = |arch: &str, features: &[&str]| {
            let features = features.iter().map(|f| (*f).into()).collect();
            check(&Requirements { name: "it".into(), arch: arch.into(), features, host: None }).map_err(|e| e.to_string())
        };
        assert_eq!(required("x86_64", &["sse2"]), Ok(()));
        let text = required("x86_64", &["sse2", "avx1024", "warp"]).unwrap_err();
        assert!(text.starts_with("this CPU lacks avx1024, warp (the artifact requires sse2, avx1024, warp)"), "{text}");
        assert!(required("aarch64", &[]).unwrap_err().contains("for aarch64, this machine is x86_64"));
    }
}
