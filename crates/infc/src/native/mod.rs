//! Models for programs that link them: an object file with its header and what is made from these two, or C code.

mod archive;
mod c;
mod link;

pub use c::{CCode, Print, c_code};
pub use infc_c::names::identifier;
pub use link::{executable, shared_library};

use archive::archive;
use infc_c::header::{Interface, given};

use crate::compile::{self, Options, Report};
use crate::target;
use infc_artifact::program::{Port, Program};
use infc_ir::{DType, Expr, Graph, Problem, Problems, Value};
use infc_kernel::backend::Object;
use infc_kernel::target::TargetDesc;
use std::collections::BTreeSet;
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
    program: Program,
}

impl Native {
    /// The functions that the object file defines for others.
    pub fn functions(&self) -> Vec<String> {
        let reset = if self.program.states.is_empty() { None } else { Some("reset") };
        ["run", "message"].into_iter().chain(reset).map(|f| format!("{}_{f}", self.name)).collect()
    }
    /// A static library of the object file.
    pub fn archive(&self) -> Vec<u8> {
        archive(&self.object.bytes, &self.name, &self.functions())
    }
}

/// Compiles an imported model to an object file whose functions are called `NAME_run` and the like; [`identifier`] makes names.
pub fn compile(graph: Graph, options: &Options, name: &str) -> Result<Native, Problems> {
    shapes_are_given(&graph, options)?;
    let mut report = Report { target: options.target.name.clone(), ..Report::default() };
    let start = Instant::now();
    let model = graph.name.clone();
    let graph = compile::optimise(graph, options)?;
    nothing_runs_on_the_host(&graph)?;
    sizes_are_known(&graph)?;
    report.stages.push(("passes", start.elapsed()));
    let start = Instant::now();
    let lowered = infc_kernel::program::lower_with(&graph, &options.target, &options.states, &options.choices)?;
    report.stages.push(("lower", start.elapsed()));
    let start = Instant::now();
    let backend = target::backend(&options.target)?;
    let object = backend.emit_object(&lowered.program, &lowered.kernels, &lowered.constants.to_vec(), name)?;
    report.stages.push(("code", start.elapsed()));
    report.kernels = lowered.kernels.len();
    report.launches = compile::launches(&lowered.program.steps);
    report.code_bytes = object.code_bytes;
    report.constant_bytes = lowered.constants.len() as u64;
    report.arena_bytes = Some(object.arena_bytes);
    let header = header(&lowered.program, &object, name, &model, &options.target);
    Ok(Native { name: name.to_owned(), object, header, report, arch: options.target.arch.clone(), program: lowered.program })
}

/// All symbolic dims must have a value, since no memory is taken while an object runs.
fn shapes_are_given(graph: &Graph, options: &Options) -> Result<(), Problems> {
    let open: Vec<String> =
        compile::symbols(graph).into_iter().filter(|s| !options.dims.iter().any(|(name, _)| name == s)).collect();
    if open.is_empty() {
        return Ok(());
    }
    let message =
        format!("an object file needs a size for each symbolic dim; {} of them have none: {}", open.len(), open.join(", "));
    let help: Vec<String> = open.iter().map(|name| format!("--dim {name}=SIZE")).collect();
    Err(Problems::one("the model", message, format!("add {}, or make an artifact with --emit infc", help.join(" "))))
}

/// Strings, sequences, optionals and maps need routines that an object file does not have. Names every node that needs one, and every
/// input and output that is such a value.
fn nothing_runs_on_the_host(graph: &Graph) -> Result<(), Problems> {
    let flat = |v: Value| graph.ty(v).as_tensor().is_some_and(|t| t.dtype != DType::String);
    let mut problems = vec![];
    let mut tell = |at: String, value: Option<Value>| {
        if let Some(v) = value {
            let message = format!("works on a value of type {}, but an object file has no host routines", graph.ty(v));
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

/// No size may depend on values. Names every node that makes one that does.
fn sizes_are_known(graph: &Graph) -> Result<(), Problems> {
    let symbols = |v| {
        let mut found = BTreeSet::new();
        for d in graph.ty(v).as_tensor().into_iter().flat_map(|t| &t.dims) {
            d.leaves(&mut |leaf: Expr| _ = found.insert(leaf.to_string()));
        }
        found
    };
    let mut problems = vec![];
    for node in graph.live_regions().iter().flat_map(|&r| graph.region(r).nodes.clone()) {
        let data = graph.node(node);
        let known: BTreeSet<String> = data.inputs.iter().flatten().flat_map(|&v| symbols(v)).collect();
        let made: BTreeSet<String> = data.outputs.iter().flat_map(|&v| symbols(v)).filter(|s| !known.contains(s)).collect();
        if !made.is_empty() {
            let names: Vec<String> = made.into_iter().collect();
            let message = format!(
                "sizes of its output depend on values ({}), but an object file has memory of fixed size",
                names.join(", ")
            );
            let help = "make an artifact with --emit infc: the runtime takes memory while it runs".to_owned();
            problems.push(Problem { at: graph.describe(node), message, help });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// The header of an object file.
fn header(program: &Program, object: &Object, name: &str, model: &str, target: &TargetDesc) -> String {
    let about = vec![
        format!("For {}: {} with {}.", target.name, target.arch, target.features.join(", ")),
        "Takes no memory by itself, keeps nothing outside of what it is given, needs memcpy, memmove and memset of the C"
            .to_owned(),
        "library. Any number of threads may run it at once, each with its own arena and outputs.".to_owned(),
    ];
    let interface = Interface {
        name,
        model,
        program,
        ranges: &vec![(0, 0); program.symbols.len()],
        about,
        align: infc_artifact::abi::ALIGN as u64,
        arena_bytes: object.arena_bytes,
        state_bytes: object.state_bytes,
        weights_bytes: None,
        dims: vec![],
        messages: &object.messages,
    };
    interface.header()
}

/// The dims of a port, which are known.
fn dims(port: &Port) -> Vec<i64> {
    port.dims.iter().map(|d| d.eval(&[]).unwrap_or(0)).collect()
}

/// Elements of a port.
fn count(port: &Port) -> i64 {
    dims(port).iter().product()
}
