//! The links of the chain as things that run a model: each gives the same outputs for the same inputs, by its class.

use crate::c_engine::CEngine;
use crate::compile::{self, Options};
use crate::loops_engine::Loops;
use infc_artifact::program::HostType;
use infc_ir::graph::Graph;
use infc_ir::interp::{self, Item};
use infc_ir::{DType, Expr, Problems, Tensor, Type, host};
use infc_kernel::target::TargetDesc;
use infc_runtime::{Dim, Model, PortInfo, Session, TensorRef};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A way to run a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The graph interpreter: every operator as it is defined, nothing optimised.
    Interp,
    /// The graph interpreter after all passes.
    Passes,
    /// The loop interpreter on the lowered program.
    Loops,
    /// Machine code by LLVM, loaded from the bytes of the artifact.
    #[cfg(feature = "llvm")]
    Llvm,
    /// Machine code by Cranelift, loaded in the same way. Where the target is none of the Cranelift backend's, the best one that this computer is is taken.
    #[cfg(feature = "cranelift")]
    Cranelift,
    /// Code by a plugin, loaded in the same way. The target is a machine file that names one.
    Plugin,
    /// C code, compiled by the system's C compiler. Where the target is none of the C backend's, its first machine is taken.
    C,
    /// WebAssembly by LLVM, run by Node.js. Where the target is no machine of WebAssembly, the one with vectors is taken.
    #[cfg(feature = "llvm")]
    Wasm,
    /// PTX, run by an interpreter of PTX. Where the target is none of the PTX backend's, its first machine is taken.
    #[cfg(feature = "ptx")]
    Ptx,
    /// PTX in an artifact, run on a GPU by the runtime.
    #[cfg(feature = "ptx")]
    Gpu,
}

impl Backend {
    /// All of this build that need nothing but a computer, in the order of the chain.
    pub const ALL: &'static [Backend] = &[
        Backend::Interp,
        Backend::Passes,
        Backend::Loops,
        #[cfg(feature = "llvm")]
        Backend::Llvm,
        #[cfg(feature = "cranelift")]
        Backend::Cranelift,
        Backend::C,
        #[cfg(feature = "llvm")]
        Backend::Wasm,
        #[cfg(feature = "ptx")]
        Backend::Ptx,
    ];
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Interp => "interp",
            Backend::Passes => "passes",
            Backend::Loops => "loops",
            #[cfg(feature = "llvm")]
            Backend::Llvm => "llvm",
            #[cfg(feature = "cranelift")]
            Backend::Cranelift => "cranelift",
            Backend::Plugin => "plugin",
            Backend::C => "c",
            #[cfg(feature = "llvm")]
            Backend::Wasm => "wasm",
            #[cfg(feature = "ptx")]
            Backend::Ptx => "ptx",
            #[cfg(feature = "ptx")]
            Backend::Gpu => "gpu",
        }
    }
    /// What it is, in a sentence.
    pub fn doc(self) -> &'static str {
        match self {
            Backend::Interp => "the graph interpreter: every operator as it is defined, nothing optimised",
            Backend::Passes => "the graph interpreter after all passes",
            Backend::Loops => "the loop interpreter on the lowered program (slow)",
            #[cfg(feature = "llvm")]
            Backend::Llvm => "machine code by LLVM, loaded from the bytes of the artifact",
            #[cfg(feature = "cranelift")]
            Backend::Cranelift => "machine code by Cranelift, for which nothing has to be installed, loaded in the same way",
            Backend::Plugin => "code by the plugin that the machine file names, loaded from the bytes of the artifact",
            Backend::C => "C code, compiled by the system's C compiler (CC, CFLAGS), called through its header",
            #[cfg(feature = "llvm")]
            Backend::Wasm => "WebAssembly by LLVM, run by Node.js (NODE) through the script that loads it",
            #[cfg(feature = "ptx")]
            Backend::Ptx => "PTX for NVIDIA GPUs, run by an interpreter that checks every access (slow)",
            #[cfg(feature = "ptx")]
            Backend::Gpu => "code for NVIDIA GPUs, loaded from the bytes of the artifact and run on the device",
        }
    }
    /// The machine that its code is made for where none is named; `None` where it has no code, or any machine's will do.
    pub fn machine(self) -> Option<TargetDesc> {
        match self {
            Backend::Interp | Backend::Passes | Backend::Loops | Backend::Plugin => None,
            #[cfg(feature = "llvm")]
            Backend::Llvm => crate::target::default_of("llvm"),
            #[cfg(feature = "cranelift")]
            Backend::Cranelift => crate::target::default_of("cranelift"),
            Backend::C => Some(infc_c::default_machine()),
            #[cfg(feature = "llvm")]
            Backend::Wasm => infc_cpu_llvm::machine("wasm32-simd"),
            #[cfg(feature = "ptx")]
            Backend::Ptx | Backend::Gpu => Some(infc_gpu_ptx::default_machine()),
        }
    }
    /// Does it run code for a machine?
    pub fn takes(self, machine: &TargetDesc) -> bool {
        #[cfg(feature = "llvm")]
        if machine.backend == "llvm" && crate::native::is_web(machine) != (self == Backend::Wasm) {
            return self.machine().is_none();
        }
        self.machine().is_none_or(|own| own.backend == machine.backend)
    }
    /// Are there routines of the host for strings, sequences and the like? Code without the runtime has none.
    pub fn has_host(self) -> bool {
        #[cfg(feature = "llvm")]
        if self == Backend::Wasm {
            return false;
        }
        self != Backend::C
    }
    /// What runs the code of a code generator; the loops where this build has none of it.
    pub fn of_generator(name: &str) -> Backend {
        let made = |b: &Backend| b.machine().is_some_and(|m| m.backend == name);
        Backend::ALL.iter().copied().find(made).unwrap_or(Backend::Loops)
    }
    /// The one of that name.
    pub fn named(name: &str) -> Option<Backend> {
        #[cfg(feature = "ptx")]
        if name == Backend::Gpu.name() {
            return Some(Backend::Gpu);
        }
        if name == Backend::Plugin.name() {
            return Some(Backend::Plugin);
        }
        Backend::ALL.iter().copied().find(|b| b.name() == name)
    }
    /// What runs code for a machine.
    pub fn of_machine(machine: &TargetDesc) -> Backend {
        #[cfg(feature = "llvm")]
        if crate::native::is_web(machine) {
            return Backend::Wasm;
        }
        if machine.plugin.is_some() { Backend::Plugin } else { Backend::of_generator(&machine.backend) }
    }
}

/// A model made ready to run.
pub trait Engine {
    /// Runs it. The inputs are in the model's order, the outputs too.
    fn run(&mut self, inputs: &[Item]) -> Result<Vec<Item>, Problems>;
    /// The nodes that run on the host, if it is compiled code.
    fn host_nodes(&self) -> Vec<String> {
        vec![]
    }
}

/// Makes an imported model ready.
pub fn prepare(graph: Graph, backend: Backend, options: &Options) -> Result<Box<dyn Engine>, Problems> {
    Ok(match backend {
        Backend::Interp => Box::new(Interp(graph)),
        Backend::Passes => Box::new(Interp(compile::optimise(graph, options)?)),
        Backend::Loops => Box::new(Loops::new(compile::lower(graph, options)?)),
        #[cfg(feature = "llvm")]
        Backend::Llvm => native(graph, &options_of(backend, options))?,
        #[cfg(feature = "cranelift")]
        Backend::Cranelift => native(graph, &options_of(backend, options))?,
        Backend::Plugin => native(graph, options)?,
        Backend::C => {
            let options = options_of(backend, options);
            Box::new(CEngine::new(compile::lower(graph, &options)?, &options.target))
        }
        #[cfg(feature = "llvm")]
        Backend::Wasm => {
            let options = options_of(backend, options);
            Box::new(crate::web_engine::WebEngine::new(compile::lower(graph, &options)?, &options))
        }
        #[cfg(feature = "ptx")]
        Backend::Ptx => {
            let options = options_of(backend, options);
            crate::ptx_engine::prepare(compile::lower(graph, &options)?, &options.target)?
        }
        #[cfg(feature = "ptx")]
        Backend::Gpu => native(graph, &options_of(backend, options))?,
    })
}

/// Compiled and loaded as the runtime does it.
fn native(graph: Graph, options: &Options) -> Result<Box<dyn Engine>, Problems> {
    let compiled = compile::compile(graph, options)?;
    loaded(&compiled.artifact.to_bytes(), options)
}

/// An artifact, loaded where compiled code is to run.
pub(crate) fn loaded(artifact: &[u8], options: &Options) -> Result<Box<dyn Engine>, Problems> {
    if let Some(there) = &options.on {
        return Ok(Box::new(there.load(artifact)?));
    }
    let model = Model::from_bytes(artifact).map_err(|e| {
        let other = options.target.arch != infc_runtime::cpu::ARCH && e.kind() == infc_runtime::ErrorKind::Machine;
        let help =
            if other { "`infc verify --on COMMAND` runs it on another computer: --on 'ssh board infc-worker'" } else { "" };
        Problems::one("the artifact just made", e.to_string(), help)
    })?;
    Ok(Box::new(Native::new(model, infc_runtime::Options::default())?))
}

/// The options with a machine that the link can use: links whose code is of one backend take a machine of that where the target is of
/// another one.
pub fn options_of(backend: Backend, options: &Options) -> Options {
    let target = match backend.machine() {
        Some(machine) if !backend.takes(&options.target) => machine,
        _ => options.target.clone(),
    };
    Options { target, ..options.clone() }
}

struct Interp(Graph);

impl Engine for Interp {
    fn run(&mut self, inputs: &[Item]) -> Result<Vec<Item>, Problems> {
        interp::run(&self.0, inputs)
    }
}

/// Compiled code in a session of the runtime.
pub struct Native(Session);

impl Native {
    /// Ready to run.
    pub fn new(model: Arc<Model>, options: infc_runtime::Options) -> Result<Native, Problems> {
        Session::new(model, options).map(Native).map_err(problem)
    }
    /// Names and types of the inputs.
    pub fn inputs(&self) -> Vec<(String, Type)> {
        self.0.model().inputs().iter().map(port).collect()
    }
    /// Names and types of the outputs.
    pub fn outputs(&self) -> Vec<(String, Type)> {
        self.0.model().outputs().iter().map(port).collect()
    }
    /// The session.
    pub fn session(&mut self) -> &mut Session {
        &mut self.0
    }
    /// Sets an input. It stays for all further runs, unless the output of a run takes its place.
    pub fn set(&mut self, i: usize, item: &Item) -> Result<(), Problems> {
        let Some(t) = item.as_tensor().filter(|t| t.dtype != DType::String) else {
            let value = host::to_host(item).map_err(|f| Problems::one(format!("input {i}"), f.0, ""))?;
            return self.0.set_value(i, value).map_err(problem);
        };
        let dims: Vec<i64> = t.dims.iter().map(|&d| d as i64).collect();
        let dtype = infc_runtime::DType(t.dtype.onnx() as u8);
        self.0.set_input(i, TensorRef { dtype, dims: &dims, bytes: t.bytes() }).map_err(problem)
    }
    /// Runs on the inputs that were set; the outputs stay in the session.
    pub fn run_set(&mut self) -> Result<(), Problems> {
        self.0.run().map_err(problem)
    }
    /// From now on the GPU takes the time of each run, or no longer.
    pub fn time_device(&mut self, on: bool) -> Result<(), Problems> {
        self.0.time_device(on).map_err(problem)
    }
    /// Bytes of memory of the GPU that nobody uses, if the model runs on one.
    pub fn device_free(&self) -> Result<Option<u64>, Problems> {
        self.0.device_free().map_err(problem)
    }
}

impl Engine for Native {
    fn run(&mut self, inputs: &[Item]) -> Result<Vec<Item>, Problems> {
        inputs.iter().enumerate().try_for_each(|(i, item)| self.set(i, item))?;
        self.run_set()?;
        let outputs = 0..self.0.model().outputs().len();
        outputs
            .map(|i| {
                if self.0.model().outputs()[i].host.is_some() {
                    let value = self.0.value(i).map_err(problem)?;
                    return host::from_host(value).map_err(|f| Problems::one(format!("output {i}"), f.0, ""));
                }
                let t = self.0.output(i).map_err(problem)?;
                let dims: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
                Ok(Item::Tensor(Tensor::from_bytes(dtype(t.dtype), dims, t.bytes.to_vec())))
            })
            .collect()
    }

    fn host_nodes(&self) -> Vec<String> {
        self.0.model().program().host_nodes().into_iter().map(str::to_owned).collect()
    }
}

fn problem(e: infc_runtime::Error) -> Problems {
    Problems::one("run", e.to_string(), "")
}

fn dtype(code: infc_runtime::DType) -> DType {
    DType::from_onnx(i32::from(code.0)).expect("the runtime loads no artifact with another dtype")
}

fn port(port: &PortInfo) -> (String, Type) {
    let dim = |d: &Dim| match d {
        Dim::Fixed(n) => Expr::int(*n),
        Dim::Symbol(name) => Expr::sym(name),
        Dim::Expr(text) => text.parse().unwrap_or_else(|_| Expr::sym(text)),
    };
    let ty = match &port.host {
        Some(ty) if port.dtype.0 == 0 => host_type(ty),
        _ => Type::tensor(dtype(port.dtype), port.dims.iter().map(dim)),
    };
    (port.name.clone(), ty)
}

/// The type of a value of the host; dims that are not known are symbols that stand for any.
fn host_type(ty: &HostType) -> Type {
    let code = |d: u8| dtype(infc_runtime::DType(d));
    match ty {
        HostType::Tensor(d, dims) => {
            let dim = |(k, d): (usize, &Option<u64>)| d.map_or_else(|| Expr::sym(&format!("any{k}")), |n| Expr::int(n as i64));
            Type::tensor(code(*d), dims.iter().enumerate().map(dim))
        }
        HostType::Any(d) => Type::Any(code(*d)),
        HostType::Sequence(of) => Type::Sequence(Box::new(host_type(of))),
        HostType::Optional(of) => Type::Optional(Box::new(host_type(of))),
        HostType::Map(key, of) => Type::Map(code(*key), Box::new(host_type(of))),
    }
}

/// The values of the model's symbols that inputs of these shapes give.
pub fn symbols_of(graph: &Graph, inputs: &[Item]) -> BTreeMap<&'static str, i64> {
    let mut symbols = BTreeMap::new();
    for (&v, item) in graph.inputs().iter().zip(inputs) {
        if let (Some(ty), Some(t)) = (graph.ty(v).as_tensor(), item.as_tensor()) {
            for (d, &size) in ty.dims.iter().zip(&t.dims) {
                symbols.extend(symbol(*d).map(|s| (s, size as i64)));
            }
        }
    }
    symbols
}

/// The symbol that a dim is, if it is nothing else.
pub fn symbol(dim: Expr) -> Option<&'static str> {
    match dim.node() {
        infc_ir::expr::Node::Sym(s) => Some(s),
        _ => None,
    }
}
