//! Prints loop IR and the steps of a program as C99 that any compiler accepts: no allocation, nothing kept, nothing of the C library
//! but a few functions of `<math.h>` and `<string.h>`.
//!
//! A kernel becomes a function (`kernel`, with expressions from `scalars`, `index` and `ops`, arrays from `place`, functions of its own
//! from `helpers` and `narrow`; vector loops from `lanes` and `vectors` where the machine has vector types), the program one that calls them (`driver`), with memory of fixed size (`layout`) and a header
//! (`header`). Knows loops and steps, no graph and no ONNX. `load` compiles and runs what was printed, for tests and `infc verify`.

#![deny(unsafe_code)]

mod driver;
pub mod header;
mod helpers;
pub mod hls;
mod index;
mod kernel;
mod lanes;
mod libm;
#[allow(unsafe_code, reason = "calls functions that a C compiler has just made")]
pub mod load;
pub mod names;
mod narrow;
mod ops;
mod place;
mod scalars;
mod sizes;
mod source;
mod text;
mod types;
mod vectors;

pub use helpers::Style;
pub use source::{ALIGN, Options, Source, Weights, scratch, source};

use infc_artifact::program::Program;
use infc_ir::{Fault, Problems};
use infc_kernel::backend::{Backend, Code, Object, Os};
use infc_kernel::bounded::Layout;
use infc_kernel::loops::Kernel;
use infc_kernel::target::TargetDesc;

/// The machine files.
const FILES: [&str; 3] = [
    include_str!("../machines/c99.toml"),
    include_str!("../machines/c99-simd.toml"),
    include_str!("../machines/c99-vector.toml"),
];

/// All machines.
pub fn machines() -> Vec<TargetDesc> {
    FILES.iter().map(|text| TargetDesc::from_toml(text).unwrap_or_else(|e| panic!("machine file: {e}"))).collect()
}

/// The machine that is meant where none is named.
pub fn default_machine() -> TargetDesc {
    machines().swap_remove(0)
}

/// The backend for one machine.
#[derive(Clone, Debug)]
pub struct C {
    target: TargetDesc,
}

impl C {
    /// C code for `target`, one of [`machines`] or a machine file of the same backend.
    pub fn new(target: TargetDesc) -> C {
        C { target }
    }
}

/// Kernels as C functions, in one source file. Each has an entry, `PREFIX0`, `PREFIX1` and so on, that runs all its tasks:
/// `uint64_t PREFIX0(void *const *buffers, const int64_t *extents, void *scratch)`, with the result of the kernel ABI.
pub fn kernels(kernels: &[Kernel], prefix: &str, style: Style) -> Result<String, Problems> {
    source::kernels(kernels, prefix, style)
}

fn no_machine_code(what: &str) -> Problems {
    Problems::one(what, "the c backend prints C code, no machine code", "use --emit c, or a target of another backend")
}

impl Backend for C {
    fn target(&self) -> &TargetDesc {
        &self.target
    }
    fn emit(&self, _: &[Kernel]) -> Result<Code, Problems> {
        Err(no_machine_code(&format!("target '{}'", self.target.name)))
    }
    fn emit_object(&self, _: &Program, _: &Layout, _: &[Kernel], _: &[u8], name: &str, _: Os) -> Result<Object, Problems> {
        Err(no_machine_code(&format!("object file '{name}'")))
    }
    fn emit_text(&self, list: &[Kernel], kind: &str) -> Result<String, Problems> {
        match kind {
            "c" => kernels(list, "kernel", Style::of(&self.target)),
            _ => Err(Problems::one(format!("text '{kind}'"), "the c backend cannot write it", "known kinds: c")),
        }
    }
}

/// A fault of a model's kernel or driver as problems.
fn problem(at: String, fault: &Fault) -> Problems {
    Problems::one(at, fault.0.clone(), "")
}

#[cfg(test)]
mod tests {
    #[test]
    fn machine_files_parse_and_name_themselves() {
        let names: Vec<_> = super::machines().into_iter().map(|m| (m.name, m.backend)).collect();
        assert_eq!(names, ["c99", "c99-simd", "c99-vector"].map(|n| (n.to_owned(), "c".to_owned())));
    }
}
