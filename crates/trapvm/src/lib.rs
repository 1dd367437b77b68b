//! Executes instructions that the CPU lacks, for tests: AMX tiles, the VEX form of VNNI, and AVX-512 FP16.
//!
//! Such an instruction ends in an invalid-opcode trap, which Linux tells as SIGILL. [`install`] handles that: it decodes the instruction ([`decode`]),
//! does what Intel's manual ("Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2) says on tiles of the thread ([`tiles`]) or
//! on the vector registers of the interrupted code ([`dots`], [`half`]), and goes on behind it. Where the manual has a fault for a wrong use, the process
//! ends with a text that says what was wrong. A CPU that has the instructions never traps, so the same tests run there on the real ones; where it has some of those of tiles, the others
//! find and leave its tiles in the state that the system saves for the handler. What
//! is no instruction of these is handled as if this crate were not there. Linux on x86-64 only; elsewhere nothing is [`covered`](covers).

pub mod decode;
pub mod dots;
pub mod evex;
pub mod half;
pub mod tiles;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod trap;

/// Features, by LLVM's names, whose instructions are executed here.
const FEATURES: [&str; 6] = ["avxvnni", "amx-tile", "amx-bf16", "amx-fp16", "amx-int8", "avx512fp16"];

/// Whether code that needs this feature runs once [`install`] was called, though the CPU may lack it.
pub fn covers(feature: &str) -> bool {
    cfg!(all(target_arch = "x86_64", target_os = "linux")) && FEATURES.contains(&feature)
}

/// Begins to execute such instructions, in all threads of the process. Needs AVX, and AVX-512 for what is part of it; may be called any number of times.
pub fn install() {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    trap::install();
}
