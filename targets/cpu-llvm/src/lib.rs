//! Prints loop IR through LLVM as x86-64 machine code.
//!
//! A kernel becomes LLVM assembly text (`emit`, `access`, `index`, `ops`, `narrow`, over the writer in `ir`), LLVM optimises it
//! and writes an object (`codegen`), and the object becomes one position-independent image (`image`). Knows loops, no graph and no
//! ONNX. The emitted code calls no library: everything without an instruction is expanded here or in `helpers`.

#![forbid(unsafe_code)]

mod access;
mod codegen;
mod emit;
mod helpers;
mod image;
mod index;
mod ir;
mod machines;
mod narrow;
mod ops;

pub use machines::{machine, machines, native, supported};

use infc_artifact::abi::ALIGN;
use infc_ir::Problems;
use infc_kernel::backend::{Backend, Code};
use infc_kernel::loops::Kernel;
use infc_kernel::target::TargetDesc;

/// The backend for one machine.
#[derive(Clone, Debug)]
pub struct Llvm {
    target: TargetDesc,
}

impl Llvm {
    /// Code for `target`, one of [`machines`] or a machine file of the same backend.
    pub fn new(target: TargetDesc) -> Llvm {
        Llvm { target }
    }
    /// Code for the machine called `name`; an unknown name is an error that lists the known ones.
    pub fn named(name: &str) -> Result<Llvm, Problems> {
        machine(name).map(Llvm::new).ok_or_else(|| {
            let known: Vec<String> = machines().into_iter().map(|m| m.name).collect();
            Problems::one(format!("machine '{name}'"), "unknown", format!("known machines: {}", known.join(", ")))
        })
    }
}

impl Backend for Llvm {
    fn target(&self) -> &TargetDesc {
        &self.target
    }

    fn emit(&self, kernels: &[Kernel]) -> Result<Code, Problems> {
        let (modules, scratch) = codegen::compile(kernels, &self.target)?;
        let (mut bytes, mut entries) = (vec![], vec![]);
        for module in modules {
            bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
            let base = bytes.len() as u64;
            bytes.extend(module.bytes);
            let count = module.entries.len();
            entries.extend((0..count).map(|i| base + module.entries[&format!("kernel.{i}")]));
        }
        Ok(Code { image: bytes, entries, scratch })
    }

    fn emit_text(&self, kernels: &[Kernel], kind: &str) -> Result<String, Problems> {
        match kind {
            "llvm-ir" => codegen::llvm_ir(kernels, &self.target, false),
            "llvm-ir-opt" => codegen::llvm_ir(kernels, &self.target, true),
            "asm" => codegen::assembly(kernels, &self.target),
            _ => Err(Problems::one(
                format!("text '{kind}'"),
                "the llvm backend cannot write it",
                "known kinds: llvm-ir, llvm-ir-opt, asm",
            )),
        }
    }
}
