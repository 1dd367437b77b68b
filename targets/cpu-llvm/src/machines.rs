//! The machines this backend makes code for: one TOML file each, and which of them this computer is.

use infc_kernel::target::TargetDesc;

/// The machine files, for each architecture from the least to the most capable.
const FILES: [&str; 18] = [
    include_str!("../machines/x86-64-v2.toml"),
    include_str!("../machines/x86-64-v3.toml"),
    include_str!("../machines/x86-64-v3-vnni.toml"),
    include_str!("../machines/x86-64-v4.toml"),
    include_str!("../machines/x86-64-v4-vnni.toml"),
    include_str!("../machines/x86-64-v4-bf16.toml"),
    include_str!("../machines/x86-64-v4-fp16.toml"),
    include_str!("../machines/x86-64-v4-amx.toml"),
    include_str!("../machines/x86-64-v4-amx-fp16.toml"),
    include_str!("../machines/aarch64.toml"),
    include_str!("../machines/aarch64-dotprod.toml"),
    include_str!("../machines/aarch64-i8mm.toml"),
    include_str!("../machines/riscv64.toml"),
    include_str!("../machines/riscv64-v.toml"),
    include_str!("../machines/riscv64-v256.toml"),
    include_str!("../machines/riscv64-rva23.toml"),
    include_str!("../machines/wasm32.toml"),
    include_str!("../machines/wasm32-simd.toml"),
];

/// All machines, for each architecture from the least to the most capable.
pub fn machines() -> Vec<TargetDesc> {
    FILES.iter().map(|text| TargetDesc::from_toml(text).unwrap_or_else(|e| panic!("machine file: {e}"))).collect()
}

/// The machine called `name`.
pub fn machine(name: &str) -> Option<TargetDesc> {
    machines().into_iter().find(|m| m.name == name)
}

/// Does this computer have every feature of the machine? By cpuid: LLVM's name of the host can be wrong. Whether the operating system lets a program
/// use AMX is another question, which the runtime asks.
pub fn supported(machine: &TargetDesc) -> bool {
    machine.arch == std::env::consts::ARCH && machine.features.iter().all(|f| has(f))
}

#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    macro_rules! table {
        ($($llvm:literal $rust:tt,)*) => { match feature { $($llvm => std::arch::is_x86_feature_detected!($rust),)* _ => false } };
    }
    match feature {
        // No detection macro in std; every CPU with the other features of these machines has it.
        "sahf" => true,
        // None in stable std either: bits of leaf 7.
        "amx-bf16" => tiles(0, 22),
        "amx-tile" => tiles(0, 24),
        "amx-int8" => tiles(0, 25),
        "amx-fp16" => tiles(1, 21),
        _ => table! {
            "cx16" "cmpxchg16b", "popcnt" "popcnt", "sse3" "sse3", "ssse3" "ssse3", "sse4.1" "sse4.1", "sse4.2" "sse4.2",
            "avx" "avx", "avx2" "avx2", "bmi" "bmi1", "bmi2" "bmi2", "f16c" "f16c", "fma" "fma", "lzcnt" "lzcnt", "movbe" "movbe",
            "avx512f" "avx512f", "avx512bw" "avx512bw", "avx512cd" "avx512cd", "avx512dq" "avx512dq", "avx512vl" "avx512vl",
            "avx512vnni" "avx512vnni", "avx512bf16" "avx512bf16", "avx512fp16" "avx512fp16", "avxvnni" "avxvnni",
        },
    }
}

/// Has the CPU this feature of AMX (a bit of EDX of subleaf 0 of leaf 7, or of EAX of subleaf 1), and does the operating system save tiles?
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "there is no safe way to read XCR0")]
fn tiles(subleaf: u32, bit: u32) -> bool {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // Safety: the caller has seen that XGETBV may be used.
        unsafe { _xgetbv(0) }
    }
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u64 = 3 << 17;
    if __cpuid_count(0, 0).eax < 7 || __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return false;
    }
    let first = __cpuid_count(7, 0);
    let word = match subleaf {
        0 => first.edx,
        _ if first.eax >= 1 => __cpuid_count(7, 1).eax,
        _ => 0,
    };
    // Safety: with OSXSAVE there is XSAVE.
    word >> bit & 1 == 1 && unsafe { saved() } & TILES == TILES
}

#[cfg(target_arch = "aarch64")]
fn has(feature: &str) -> bool {
    use std::arch::is_aarch64_feature_detected as detected;
    match feature {
        "neon" | "fp-armv8" => true,
        "dotprod" => detected!("dotprod"),
        "fullfp16" => detected!("fp16"),
        "i8mm" => detected!("i8mm"),
        _ => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has(_: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    #[test]
    fn machine_files_parse_and_name_themselves() {
        let names: Vec<_> = super::machines().into_iter().map(|m| m.name).collect();
        assert_eq!(
            names,
            [
                "x86-64-v2",
                "x86-64-v3",
                "x86-64-v3-vnni",
                "x86-64-v4",
                "x86-64-v4-vnni",
                "x86-64-v4-bf16",
                "x86-64-v4-fp16",
                "x86-64-v4-amx",
                "x86-64-v4-amx-fp16",
                "aarch64",
                "aarch64-dotprod",
                "aarch64-i8mm",
                "riscv64",
                "riscv64-v",
                "riscv64-v256",
                "riscv64-rva23",
                "wasm32",
                "wasm32-simd"
            ]
        );
        assert_eq!(super::machine("x86-64-v3").unwrap().lanes(4), 8);
    }
}
