//! Prints loop IR through Cranelift as x86-64 and AArch64 machine code. Nothing has to be installed for it.
//!
//! A kernel becomes Cranelift's IR (`emit`, `access`, `registers`, `index`, `ops`, `dot`, `quantised`, `narrow`, over the writer in `function`, `arithmetic`, `convert` and `values`), Cranelift makes machine
//! code of it (with loops of products in the order that `schedule` says), and all functions become one position-independent image (`codegen`). An object file for other
//! linkers has that image, the constants and a driver made from the program's steps (`driver`, `object`). Knows loops, no graph and no ONNX. The emitted code calls
//! no library: everything without an instruction is expanded here or in `helpers`.

#![deny(unsafe_code)]

mod access;
mod arithmetic;
mod codegen;
mod convert;
mod dot;
mod driver;
mod emit;
mod function;
mod helpers;
mod index;
mod invariant;
mod machines;
mod narrow;
mod object;
mod ops;
mod quantised;
mod registers;
mod schedule;
mod values;

pub use machines::{machine, machines, supported};

use infc_artifact::program::Program;
use infc_ir::{Fault, Problems, fault};
use infc_kernel::backend::{Backend, Code, Object, Os};
use infc_kernel::bounded::Layout;
use infc_kernel::loops::Kernel;
use infc_kernel::target::TargetDesc;

/// The backend for one machine.
#[derive(Clone, Debug)]
pub struct Cranelift {
    target: TargetDesc,
}

impl Cranelift {
    /// Code for `target`, one of [`machines`] or a machine file of the same backend.
    pub fn new(target: TargetDesc) -> Cranelift {
        Cranelift { target }
    }
    /// Code for the machine called `name`; an unknown name is an error that lists the known ones.
    pub fn named(name: &str) -> Result<Cranelift, Problems> {
        machine(name).map(Cranelift::new).ok_or_else(|| {
            let known: Vec<String> = machines().into_iter().map(|m| m.name).collect();
            Problems::one(format!("machine '{name}'"), "unknown", format!("known machines: {}", known.join(", ")))
        })
    }
}

impl Backend for Cranelift {
    fn target(&self) -> &TargetDesc {
        &self.target
    }

    fn emit(&self, kernels: &[Kernel]) -> Result<Code, Problems> {
        codegen::compile(kernels, &self.target)
    }

    fn emit_object(
        &self,
        program: &Program,
        layout: &Layout,
        kernels: &[Kernel],
        constants: &[u8],
        name: &str,
        os: Os,
    ) -> Result<Object, Problems> {
        let code = self.emit(kernels)?;
        let make = || -> Result<Object, Fault> {
            let mut placed = program.clone();
            for (kernel, &entry) in placed.kernels.iter_mut().zip(&code.entries) {
                kernel.entry = entry;
            }
            placed.validate(code.image.len() as u64, constants.len() as u64).map_err(|e| fault!("{e}"))?;
            let isa = codegen::isa(&self.target)?;
            let driver = driver::driver(program, layout, object::default_mode(&isa), object::convention(&isa, os), isa.config())?;
            let names: Vec<&str> = kernels.iter().map(|k| k.name.as_str()).collect();
            Ok(Object {
                bytes: object::object(&code, &names, constants, (name, &driver), (&isa, os))?,
                arena_bytes: driver::scratch(layout) + code.scratch.iter().copied().max().unwrap_or(0),
                state_bytes: driver.state_bytes,
                messages: driver.messages,
                code_bytes: code.image.len() as u64,
            })
        };
        make().map_err(|e| {
            Problems::one(format!("object file '{name}'"), e.0, "`--emit infc` makes an artifact for the runtime instead")
        })
    }

    fn emit_text(&self, kernels: &[Kernel], kind: &str) -> Result<String, Problems> {
        match kind {
            "clif" => codegen::clif(kernels, &self.target),
            "asm" => codegen::assembly(kernels, &self.target),
            _ => Err(Problems::one(format!("text '{kind}'"), "the cranelift backend cannot write it", "known kinds: clif, asm")),
        }
    }
}
