//! The door between the kernel level and a code generator.

use crate::loops::Kernel;
use crate::target::TargetDesc;
use infc_ir::Problems;

/// Machine code of a set of kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// One position-independent image: text and read-only data, PC-relative only, no relocations left.
    pub image: Vec<u8>,
    /// Offset in the image of each kernel's function, in the order given to [`Backend::emit`].
    pub entries: Vec<u64>,
    /// Bytes of scratch that a task of each kernel needs.
    pub scratch: Vec<u64>,
}

/// A code generator. It knows loops, not graphs.
pub trait Backend: Send + Sync {
    /// What it makes code for.
    fn target(&self) -> &TargetDesc;
    /// Machine code of the kernels. The functions follow the kernel ABI of `infc_artifact::abi`.
    fn emit(&self, kernels: &[Kernel]) -> Result<Code, Problems>;
    /// Text for people: `llvm-ir`, `asm` and the like. An unknown kind is an error that lists the known ones.
    fn emit_text(&self, kernels: &[Kernel], kind: &str) -> Result<String, Problems>;
}
