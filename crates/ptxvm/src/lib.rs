//! A PTX interpreter for tests: what a GPU does with the text that `infc-gpu-ptx` emits, one warp after another.
//!
//! [`Module::parse`] reads the text (`parse`) and decodes it once to instructions over a register file (`inst`); [`launch`] runs a grid:
//! blocks (or the blocks of a cluster together) one by one, the warps of a block in turns from barrier to barrier, the lanes of a warp together (`exec`). Lanes that part
//! meet again because those that are behind in the text go first. [`Memory`] is the device's memory; every access is checked, and so are
//! accesses to shared memory by two threads between barriers (`shared`).
//!
//! It knows the subset of PTX ISA 8.0 that is emitted, no more: an unknown instruction is an error when the text is read.

#![forbid(unsafe_code)]

mod arith;
mod convert;
mod exec;
mod inst;
mod matrix;
mod memory;
mod parse;
mod shared;
mod tensor;
#[cfg(test)]
mod tests;

pub use exec::{Grid, launch};
pub use inst::{Kernel, Module};
pub use memory::Memory;
pub use tensor::{MAP_BYTES, TensorMap};

impl Kernel {
    /// Parameters laid out as the kernel has them: numbers of 64 bits, then tensor maps.
    pub fn lay_out(&self, numbers: &[u64], maps: &[[u8; MAP_BYTES]]) -> Vec<u8> {
        let mut out = vec![0; self.parameters_len()];
        let all = numbers.iter().map(|n| n.to_le_bytes().to_vec()).chain(maps.iter().map(|m| m.to_vec()));
        for (bytes, at) in all.zip(self.parameter_offsets()) {
            if let Some(place) = out.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(&bytes);
            }
        }
        out
    }
}

/// Something that a kernel must not do, or text that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: kernel, block and thread, as far as that is known.
    pub at: String,
    /// Line of the text, from 1; 0 where there is none.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (line {}): {}", self.at, self.line, self.what)
    }
}
impl std::error::Error for Fault {}
