//! One launch of a kernel by itself, as machine code, on what the loop interpreter has in memory.
//!
//! It is a program of its own: each buffer that the launch sees is an input of bytes, copied to the arena; the kernel runs there;
//! what it may write is copied out. So the runtime does it, with all its checks.

use crate::compare::{self, Kind, Tolerance};
use crate::compile::Options;
use crate::engine::loaded;
use crate::loops_engine::Launch;
use infc_artifact::container::{Artifact, Variant};
use infc_artifact::encode::encode;
use infc_artifact::program::{Buffer, Place, Port, Program, Size, Step, View};
use infc_ir::interp::Item;
use infc_ir::{DType, Problems, Tensor};
use infc_kernel::backend::Code;
use infc_kernel::loops::{Access, Kernel};
use infc_runtime::Model;
use std::sync::Arc;

/// Tells a program where its kernels are.
pub fn place(program: &mut Program, code: &Code) {
    for ((kernel, &entry), &scratch) in program.kernels.iter_mut().zip(&code.entries).zip(&code.scratch) {
        (kernel.entry, kernel.scratch) = (entry, scratch);
    }
}

/// An artifact of a program with its code.
pub fn artifact(program: &Program, code: &Code, constants: &[u8], options: &Options) -> Vec<u8> {
    let requirements = crate::target::requirements(&options.target);
    let variants = [Variant { requirements, program: encode(program), code: code.image.clone(), host_code: vec![] }];
    Artifact { manifest: &[], variants: &variants, constants: &[constants], debug: &[] }.to_bytes()
}

/// Loads a program with its code, by way of the bytes of an artifact.
pub fn load(program: &Program, code: &Code, constants: &[u8], options: &Options) -> Result<Arc<Model>, Problems> {
    let bytes = artifact(program, code, constants, options);
    Model::from_bytes(&bytes).map_err(|e| Problems::one("the artifact just made", e.to_string(), ""))
}

/// Runs the launch; the bytes of each buffer it may write.
pub fn launch(launch: &Launch, whole: &Program, code: &Code, options: &Options) -> Result<Vec<(u32, Vec<u8>)>, Problems> {
    let (program, written) = program(launch, whole);
    let mut engine = loaded(&artifact(&program, code, &[], options), options)?;
    let bytes = |(_, b): &(u32, Vec<u8>)| Item::Tensor(Tensor::from_bytes(DType::U8, [b.len()], b.clone()));
    let inputs: Vec<Item> = launch.before.iter().map(bytes).collect();
    let outputs = engine.run(&inputs)?;
    let bytes = |item: Item| item.as_tensor().map_or(vec![], |t| t.bytes().to_vec());
    Ok(written.into_iter().zip(outputs.into_iter().map(bytes)).collect())
}

/// The program of one launch, and which buffers are its outputs.
fn program(launch: &Launch, whole: &Program) -> (Program, Vec<u32>) {
    let mut out = Program { kernels: whole.kernels.clone(), messages: whole.messages.clone(), ..Program::default() };
    let written: Vec<u32> = launch.before.iter().map(|b| b.0).filter(|b| launch.written.contains(b)).collect();
    let count = launch.before.len() as u32;
    let last = count + written.len() as u32;
    let start = |buffer: u32| View { buffer, offset: Size::constant(0) };
    let port = |name: String, bytes: &Size, buffer: u32| Port {
        name,
        dtype: DType::U8.onnx() as u8,
        element: 1,
        dims: vec![bytes.clone()],
        buffer,
    };
    let sizes: Vec<Size> = launch.before.iter().map(|b| Size::constant(b.1.len() as i64)).collect();
    for (k, bytes) in sizes.iter().enumerate() {
        let k = k as u32;
        out.inputs.push(port(format!("input {k}"), bytes, k));
        out.buffers.push(Buffer { bytes: bytes.clone(), place: Place::Input(k) });
        out.steps.push(Step::Copy { from: start(k), to: start(count + k), bytes: bytes.clone() });
    }
    for (k, bytes) in sizes.iter().enumerate() {
        let place = Place::Arena { first: k as u32, last, offset: None };
        out.buffers.push(Buffer { bytes: bytes.clone(), place });
    }
    let position = |buffer: u32| launch.before.iter().position(|b| b.0 == buffer).expect("all buffers are listed") as u32;
    let views = launch.views.iter().map(|&(b, at)| View { buffer: count + position(b), offset: Size::constant(at) });
    let extents = launch.extents.iter().map(|&e| Size::constant(e)).collect();
    let tasks = Size::constant(launch.tasks);
    out.steps.push(Step::Launch { kernel: launch.kernel, buffers: views.collect(), extents, tasks });
    for (k, &b) in written.iter().enumerate() {
        let (k, from, buffer) = (k as u32, count + position(b), out.buffers.len() as u32);
        let bytes = sizes[position(b) as usize].clone();
        out.buffers.push(Buffer { bytes: bytes.clone(), place: Place::Output(k) });
        out.outputs.push(port(format!("output {k}"), &bytes, buffer));
        out.steps.push(Step::Copy { from: start(from), to: start(buffer), bytes });
    }
    (out, written)
}

/// How the contents of a buffer differ, seen through each view that the kernel writes.
pub fn differ(kernel: &Kernel, launch: &Launch, buffer: u32, got: &[u8], want: &[u8], allowed: Tolerance) -> Option<String> {
    let views = launch.views.iter().zip(&kernel.buffers).filter(|((b, _), decl)| *b == buffer && decl.access != Access::Read);
    for (&(_, at), decl) in views {
        let tensor = |bytes: &[u8]| {
            let bytes = bytes.get(at as usize..).unwrap_or_default();
            let n = bytes.len() / decl.dtype.bytes().max(1);
            Item::Tensor(Tensor::from_bytes(decl.dtype, [n], bytes[..n * decl.dtype.bytes()].to_vec()))
        };
        let outcome = compare::compare(&decl.name, &tensor(got), &tensor(want), Kind::Plain, allowed);
        if outcome.fault.is_some() {
            return outcome.fault;
        }
    }
    None
}
