//! The machines this backend makes code for: one TOML file each, and which of them this computer is.

use infc_kernel::target::TargetDesc;

/// The machine files, of each architecture from the least to the most capable.
const FILES: [&str; 5] = [
    include_str!("../machines/cranelift-x86-64.toml"),
    include_str!("../machines/cranelift-x86-64-v3.toml"),
    include_str!("../machines/cranelift-x86-64-v3-vnni.toml"),
    include_str!("../machines/cranelift-aarch64.toml"),
    include_str!("../machines/cranelift-aarch64-i8mm.toml"),
];

/// All machines, of each architecture from the least to the most capable.
pub fn machines() -> Vec<TargetDesc> {
    FILES.iter().map(|text| TargetDesc::from_toml(text).unwrap_or_else(|e| panic!("machine file: {e}"))).collect()
}

/// The machine called `name`.
pub fn machine(name: &str) -> Option<TargetDesc> {
    machines().into_iter().find(|m| m.name == name)
}

/// Does this computer have every feature of the machine? Of those that this backend's machines name; another one is none that it has.
pub fn supported(machine: &TargetDesc) -> bool {
    machine.arch == std::env::consts::ARCH && machine.features.iter().all(|f| has(f))
}

#[cfg(target_arch = "x86_64")]
fn has(feature: &str) -> bool {
    macro_rules! table {
        ($($name:literal $rust:tt,)*) => { match feature { $($name => std::arch::is_x86_feature_detected!($rust),)* _ => false } };
    }
    table! {
        "popcnt" "popcnt", "sse3" "sse3", "ssse3" "ssse3", "sse4.1" "sse4.1", "sse4.2" "sse4.2", "avx" "avx", "avx2" "avx2",
        "bmi" "bmi1", "bmi2" "bmi2", "fma" "fma", "lzcnt" "lzcnt", "avxvnni" "avxvnni",
    }
}

#[cfg(target_arch = "aarch64")]
fn has(feature: &str) -> bool {
    match feature {
        "neon" => true, // every CPU with this architecture's operating systems
        "i8mm" => std::arch::is_aarch64_feature_detected!("i8mm"),
        "dotprod" => std::arch::is_aarch64_feature_detected!("dotprod"),
        "lse" => std::arch::is_aarch64_feature_detected!("lse"),
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
    fn machine_files_parse_and_have_code_generators() {
        let names: Vec<_> = super::machines().into_iter().map(|m| m.name).collect();
        assert_eq!(
            names,
            [
                "cranelift-x86-64",
                "cranelift-x86-64-v3",
                "cranelift-x86-64-v3-vnni",
                "cranelift-aarch64",
                "cranelift-aarch64-i8mm"
            ]
        );
        for machine in super::machines() {
            assert_eq!(machine.lanes(4), 4);
            crate::codegen::isa(&machine).unwrap();
        }
    }
}
