//! Prints loop IR through LLVM as machine code for x86-64 and 64-bit Arm.
//!
//! A kernel becomes LLVM assembly text (`emit`, `access`, `index`, `interleave`, `ops`, `dot`, `narrow`, over the writer in `ir`), LLVM optimises it
//! and writes an object (`codegen`), and the object becomes one position-independent image (`image`). An object file for other
//! linkers has that image, the constants and a driver made from the program's steps (`driver`, `object`). Knows loops, no graph and no
//! ONNX. LLVM's library is loaded when it is first needed (`library`). The emitted code calls no library: everything without an
//! instruction is expanded here or in `helpers`.

#![deny(unsafe_code)]

mod access;
mod arch;
mod codegen;
mod dot;
mod driver;
mod emit;
mod helpers;
mod image;
mod index;
mod interleave;
mod ir;
#[allow(unsafe_code, reason = "calls functions that are found at run time")]
mod library;
mod lookup;
mod machines;
mod matrix;
mod narrow;
mod object;
mod ops;
mod quantised;
mod turn;
mod wasm;

pub use arch::Arch;
pub use library::{Found, found as llvm};
pub use machines::{machine, machines, supported};

use infc_artifact::abi::ALIGN;
use infc_artifact::program::Program;
use infc_ir::{Fault, Problems, fault};
use infc_kernel::backend::{Backend, Code, Object, Os};
use infc_kernel::bounded::Layout;
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

/// Whether LLVM reads and accepts assembly text, as that of [`Backend::emit_text`]; the error is LLVM's.
pub fn check_text(text: &str) -> Result<(), String> {
    library::load()?;
    codegen::check_text(text)
}

/// LLVM must be there before any code is generated.
fn library() -> Result<(), Problems> {
    let help = "install LLVM's library, version 19 to 22 (Debian, Ubuntu: apt-get install libllvm22, or libllvm19), name its file in INFC_LLVM, or \
                take a --target of another backend: `infc targets`";
    library::load().map_err(|e| Problems::one("LLVM", e, help))
}

/// Objects of kernels as a module of WebAssembly.
fn module(kernels: &[Kernel], objects: &[(Vec<u8>, usize)], whole: Option<wasm::Whole<'_>>) -> Result<wasm::Module, Fault> {
    let objects: Vec<wasm::Kernels<'_>> = objects.iter().map(|(bytes, count)| (bytes.as_slice(), *count)).collect();
    let names: Vec<&str> = kernels.iter().map(|k| k.name.as_str()).collect();
    wasm::link(&objects, &names, whole)
}

/// Where the weights of a module of WebAssembly are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// In the module.
    Inside,
    /// Elsewhere: who makes an instance of the module puts them where its global `constants` says.
    Apart,
}

impl Llvm {
    /// A whole model as a module of WebAssembly, with its own memory, for a machine of that, in memory laid out so.
    ///
    /// It exports the functions of an [`Object`] as `run`, `message` and `reset`, whose pointers are numbers of 32 bits, the memory as `memory`, and as `heap` the first byte of it that is the
    /// caller's.
    pub fn emit_module(
        &self,
        program: &Program,
        layout: &Layout,
        kernels: &[Kernel],
        constants: &[u8],
        weights: Weights,
    ) -> Result<Object, Problems> {
        library()?;
        let (objects, scratches) = codegen::compile(kernels, &self.target)?;
        let make = || -> Result<Object, Fault> {
            let driver = driver::driver(program, layout, "model", (Arch::Wasm, Os::Linux), constants.len() as u64)?;
            let mut functions = vec![("model_run", "run"), ("model_message", "message")];
            if !program.states.is_empty() {
                functions.push(("model_reset", "reset"));
            }
            let object = codegen::plain_object(&driver.text, &self.target)?;
            let whole = wasm::Whole { driver: &object, constants, weights, functions: &functions };
            let module = module(kernels, &objects, Some(whole))?;
            let arena_bytes = driver::scratch(layout) + scratches.iter().copied().max().unwrap_or(0);
            let ports = program.inputs.iter().chain(&program.outputs).map(|p| layout.bytes[p.buffer as usize]);
            let needed = module.heap + ports.sum::<u64>() + driver.state_bytes + arena_bytes;
            if needed > wasm::REACH {
                let most = wasm::REACH;
                return Err(fault!(
                    "it needs {needed} bytes of memory, {} of them for constants, and addresses of 32 bits reach {most}",
                    constants.len()
                ));
            }
            Ok(Object {
                bytes: module.bytes,
                arena_bytes,
                state_bytes: driver.state_bytes,
                messages: driver.messages,
                code_bytes: module.code_bytes,
            })
        };
        make().map_err(|e| Problems::one("the module of WebAssembly", e.0, "other targets may take it: `infc targets`"))
    }
}

impl Backend for Llvm {
    fn target(&self) -> &TargetDesc {
        &self.target
    }

    fn emit(&self, kernels: &[Kernel]) -> Result<Code, Problems> {
        library()?;
        let (modules, scratch) = codegen::compile(kernels, &self.target)?;
        if self.target.arch == Arch::Wasm.name() {
            let module = module(kernels, &modules, None).map_err(|e| codegen::internal(kernels, e))?;
            return Ok(Code { image: module.bytes, entries: (0..kernels.len() as u64).collect(), scratch });
        }
        let (mut bytes, mut entries) = (vec![], vec![]);
        for (object, count) in modules {
            bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
            let base = bytes.len() as u64;
            let here = &kernels[entries.len()..entries.len() + count];
            let module = image::link(&object, base).map_err(|e| codegen::internal(here, e))?;
            bytes.extend(module.bytes);
            entries.extend((0..count).map(|i| base + module.entries[&format!("kernel.{i}")]));
        }
        Ok(Code { image: bytes, entries, scratch })
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
        if self.target.arch == Arch::Wasm.name() {
            let message = format!("code for {} is no object file, but a module of WebAssembly", self.target.name);
            return Err(Problems::one(format!("object file '{name}'"), message, "--emit wasm"));
        }
        let code = self.emit(kernels)?;
        let make = || -> Result<Object, Fault> {
            let mut placed = program.clone();
            for (kernel, &entry) in placed.kernels.iter_mut().zip(&code.entries) {
                kernel.entry = entry;
            }
            placed.validate(code.image.len() as u64, constants.len() as u64).map_err(|e| fault!("{e}"))?;
            let arch = Arch::of(&self.target)?;
            let driver = driver::driver(program, layout, name, (arch, os), constants.len() as u64)?;
            let names: Vec<&str> = kernels.iter().map(|k| k.name.as_str()).collect();
            Ok(Object {
                bytes: object::object(&code, &names, constants, (arch, os), &codegen::plain_object(&driver.text, &self.target)?)?,
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
        library()?;
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
