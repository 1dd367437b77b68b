//! The door between the kernel level and a code generator.

use crate::bounded::Layout;
use crate::loops::Kernel;
use crate::target::TargetDesc;
use infc_artifact::program::Program;
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

/// An operating system whose linkers take an object file. Artifacts run on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Os {
    /// Linux, and other systems with ELF and the conventions of System V.
    Linux,
    /// macOS.
    Macos,
    /// Windows.
    Windows,
}

impl Os {
    /// All of them.
    pub const ALL: [Os; 3] = [Os::Linux, Os::Macos, Os::Windows];

    /// The one that this program runs on.
    pub fn here() -> Os {
        if cfg!(windows) {
            Os::Windows
        } else if cfg!(target_vendor = "apple") {
            Os::Macos
        } else {
            Os::Linux
        }
    }
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Os::Linux => "Linux",
            Os::Macos => "macOS",
            Os::Windows => "Windows",
        }
    }
}

/// A relocatable object file with a whole model in it: kernels, constants, and functions of C linkage that run the steps with
/// memory of the caller.
///
/// ```c
/// int32_t NAME_run(const void *const *inputs, void *const *outputs, int64_t DIM..., void *state, void *arena); /* no `state` without states */
/// const char *NAME_message(int32_t status);
/// void NAME_reset(void *state);                                                               /* only with states */
/// ```
/// `inputs` holds those that are no state; behind each output whose size changes, `outputs` has a place for its dims, or NULL. The dims are those that the model's inputs tell, in the order of its symbols. A run
/// gives 0, or 1 + the index of a message; -1 if arena or state is not aligned to 64 bytes, -2 if a dim is below 0 or above its bound. After a run that gave 0 the outputs that are state have been copied to `state`. It needs `memcpy`, `memmove` and
/// `memset` of the C library, nothing else, and keeps nothing outside of `state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The file.
    pub bytes: Vec<u8>,
    /// Bytes of the arena: intermediate values and scratch memory.
    pub arena_bytes: u64,
    /// Bytes of state from run to run.
    pub state_bytes: u64,
    /// What can go wrong in a run.
    pub messages: Vec<String>,
    /// Bytes of machine code of the kernels.
    pub code_bytes: u64,
}

/// A code generator. It knows loops, not graphs.
pub trait Backend: Send + Sync {
    /// What it makes code for.
    fn target(&self) -> &TargetDesc;
    /// Machine code of the kernels. The functions follow the kernel ABI of `infc_artifact::abi`.
    fn emit(&self, kernels: &[Kernel]) -> Result<Code, Problems>;
    /// Why a kernel can have no code, if that is so.
    fn refuses(&self, _: &Kernel) -> Option<String> {
        None
    }
    /// An object file for the linkers of an operating system, that runs the program in memory laid out so; its functions begin with `name`, an identifier of C.
    fn emit_object(
        &self,
        program: &Program,
        layout: &Layout,
        kernels: &[Kernel],
        constants: &[u8],
        name: &str,
        os: Os,
    ) -> Result<Object, Problems>;
    /// Text for people: `llvm-ir`, `asm` and the like. An unknown kind is an error that lists the known ones.
    fn emit_text(&self, kernels: &[Kernel], kind: &str) -> Result<String, Problems>;
}
