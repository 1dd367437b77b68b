//! Models for programs that link them: an object file with its header and what is made from these two, C code, or a module of WebAssembly.

mod c;
mod link;
#[cfg(feature = "llvm")]
mod web;

#[cfg(feature = "llvm")]
pub use infc_cpu_llvm::Weights;
#[cfg(feature = "llvm")]
pub use web::{Web, is_web, module, web};

pub use c::{CCode, Print, c_code};
pub use infc_c::names::identifier;
pub use link::{executable, shared_library};

use infc_c::header::{Interface, given};

use crate::compile::{self, Options, Report};
use crate::target;
use infc_artifact::program::Program;
use infc_ir::{DType, Graph, Problem, Problems, Value};
use infc_kernel::backend::{Object, Os};
use infc_kernel::bounded::Layout;
use infc_kernel::program::Lowered;
use infc_kernel::target::TargetDesc;
use std::time::Instant;

/// A model as an object file with a C interface.
#[derive(Clone, Debug)]
pub struct Native {
    /// The prefix of its functions.
    pub name: String,
    /// The object file.
    pub object: Object,
    /// Its header.
    pub header: String,
    /// Numbers about it.
    pub report: Report,
    /// The architecture it is for.
    arch: String,
    /// The operating system whose linkers take it.
    os: Os,
    program: Program,
    layout: Layout,
}

impl Native {
    /// The functions that the object file defines for others.
    pub fn functions(&self) -> Vec<String> {
        let reset = if self.program.states.is_empty() { None } else { Some("reset") };
        ["run", "message"].into_iter().chain(reset).map(|f| format!("{}_{f}", self.name)).collect()
    }
    /// A static library of the object file.
    pub fn archive(&self) -> Vec<u8> {
        infc_objfile::archive(&self.object.bytes, &self.name, &self.functions(), self.os)
    }
}

/// Compiles an imported model to an object file whose functions are called `NAME_run` and the like; [`identifier`] makes names. One that is `closed` has no open dims.
pub fn compile(graph: Graph, options: &Options, name: &str, os: Os, closed: bool) -> Result<Native, Problems> {
    let mut report = Report { target: options.target.name.clone(), ..Report::default() };
    let model = graph.name.clone();
    let what = if closed { "a program" } else { "an object file" };
    let (lowered, layout) = bounded(graph, options, what, closed, &mut report)?;
    let start = Instant::now();
    let backend = target::backend(&options.target)?;
    let object = backend.emit_object(&lowered.program, &layout, &lowered.kernels, &lowered.constants.to_vec(), name, os)?;
    report.stages.push(("code", start.elapsed()));
    report.kernels = lowered.kernels.len();
    report.launches = compile::launches(&lowered.program.steps);
    report.code_bytes = object.code_bytes;
    report.constant_bytes = lowered.constants.len() as u64;
    report.arena_bytes = Some(object.arena_bytes);
    let header = header(&lowered.program, &layout, &object, name, &model, (&options.target, os));
    let arch = options.target.arch.clone();
    Ok(Native { name: name.to_owned(), object, header, report, arch, os, program: lowered.program, layout })
}

/// The program of a graph whose values are all flat, and its memory, which nothing enlarges in a run. `what` it is for, as in `an object file`; a program that is `closed` has no open dims.
fn bounded(
    graph: Graph,
    options: &Options,
    what: &str,
    closed: bool,
    report: &mut Report,
) -> Result<(Lowered, Layout), Problems> {
    let start = Instant::now();
    if closed {
        shapes_are_given(&graph, options, what)?;
    }
    let graph = compile::optimise(graph, options)?;
    nothing_runs_on_the_host(&graph, what)?;
    report.stages.push(("passes", start.elapsed()));
    let start = Instant::now();
    let lowered = infc_kernel::program::lower_with(&graph, &options.target, &options.states, &options.choices)?;
    let bounds = options.bounds.iter().cloned().collect();
    let layout = infc_kernel::bounded::layout(&lowered.program, &bounds)?;
    report.stages.push(("lower", start.elapsed()));
    Ok((lowered, layout))
}

/// All symbolic dims must have a value, for a program that takes files of one shape.
fn shapes_are_given(graph: &Graph, options: &Options, what: &str) -> Result<(), Problems> {
    let open: Vec<String> =
        compile::symbols(graph).into_iter().filter(|s| !options.dims.iter().any(|(name, _)| name == s)).collect();
    if open.is_empty() {
        return Ok(());
    }
    let message = format!("{what} needs a size for each symbolic dim; {} of them have none: {}", open.len(), open.join(", "));
    let help: Vec<String> = open.iter().map(|name| format!("--dim {name}=SIZE")).collect();
    Err(Problems::one("the model", message, format!("add {}, or make an artifact with --emit infc", help.join(" "))))
}

/// Strings, sequences, optionals and maps need routines that an object file does not have. Names every node that needs one, and every
/// input and output that is such a value.
fn nothing_runs_on_the_host(graph: &Graph, what: &str) -> Result<(), Problems> {
    let flat = |v: Value| graph.ty(v).as_tensor().is_some_and(|t| t.dtype != DType::String);
    let mut problems = vec![];
    let mut tell = |at: String, value: Option<Value>| {
        if let Some(v) = value {
            let message = format!("works on a value of type {}, but {what} has no host routines", graph.ty(v));
            let help = "make an artifact with --emit infc: the Rust runtime has them".to_owned();
            problems.push(Problem { at, message, help });
        }
    };
    for (kind, values) in [("input", graph.inputs()), ("output", graph.outputs())] {
        for &v in values {
            tell(format!("{kind} '{}'", graph.value(v).name), Some(v).filter(|&v| !flat(v)));
        }
    }
    for node in graph.live_regions().iter().flat_map(|&r| graph.region(r).nodes.clone()) {
        let data = graph.node(node);
        tell(graph.describe(node), data.inputs.iter().flatten().chain(&data.outputs).copied().find(|&v| !flat(v)));
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// The header of an object file.
fn header(
    program: &Program,
    layout: &Layout,
    object: &Object,
    name: &str,
    model: &str,
    (target, os): (&TargetDesc, Os),
) -> String {
    let about = vec![
        format!("For {} on {}: {} with {}.", target.name, os.name(), target.arch, target.features.join(", ")),
        "Takes no memory by itself, keeps nothing outside of what it is given, needs memcpy, memmove and memset of the C"
            .to_owned(),
        "library. Any number of threads may run it at once, each with its own arena and outputs.".to_owned(),
    ];
    let interface = Interface {
        name,
        model,
        program,
        ranges: &layout.ranges,
        about,
        align: infc_artifact::abi::ALIGN as u64,
        arena_bytes: object.arena_bytes,
        state_bytes: object.state_bytes,
        weights_bytes: None,
        dims: infc_c::header::dims(program, &layout.ranges),
        messages: &object.messages,
    };
    interface.header()
}
