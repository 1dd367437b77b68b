//! The straight road: model, graph, passes, program, code, artifact.

use crate::remote::Elsewhere;
use crate::{beside, target};
use infc_artifact::container::{Artifact, MAGIC, Variant};
use infc_artifact::encode::encode;
use infc_artifact::program::{Kernel, Place, Program, SlotPlace, Step, each_step};
use infc_ir::{Graph, Problem, Problems};
use infc_kernel::backend::Code;
use infc_kernel::plan::Plan;
use infc_kernel::program::{self, Constants, HostSide, Launch, Lowered, key};
use infc_kernel::target::{Math, TargetDesc};
use infc_kernel::tuning::Choices;
use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What to compile for, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The machine.
    pub target: TargetDesc,
    /// Further machines, for which an artifact has variants too.
    pub more: Vec<TargetDesc>,
    /// Values of symbolic dims.
    pub dims: Vec<(String, i64)>,
    /// The largest values of symbolic dims that stay open, for containers with memory of fixed size.
    pub bounds: Vec<(String, i64)>,
    /// Pairs (output, input) of which the output of one run is the input of the next.
    pub states: Vec<(String, String)>,
    /// Threads of a session that is not told how many; 0 is one for each CPU. Without it, one.
    pub threads: Option<u32>,
    /// Sizes of plans that were measured for the machine.
    pub choices: Choices,
    /// For a device: the CPU beside it.
    pub host: Option<Host>,
    /// Store what each launch is for in the artifact, see [`Note`].
    pub notes: bool,
    /// Where compiled code runs, if not on this computer.
    pub on: Option<Arc<Elsewhere>>,
    /// The passes and what to watch of them. Its `bind` is set from `dims`.
    pub passes: infc_passes::Options,
}

/// The CPU beside a device: steps that cannot run there run on it, and those that are named.
#[derive(Clone, Debug)]
pub struct Host {
    /// What it is.
    pub target: TargetDesc,
    /// Nodes, or operators, all whose steps shall run on it.
    pub named: Vec<String>,
}

impl Options {
    /// For the machine that this process runs on.
    pub fn native() -> Result<Options, Problems> {
        Ok(Options::for_target(target::native()?))
    }
    /// For a machine.
    pub fn for_target(target: TargetDesc) -> Options {
        Options {
            target,
            more: vec![],
            dims: vec![],
            bounds: vec![],
            states: vec![],
            threads: None,
            choices: Choices::default(),
            host: None,
            notes: false,
            on: None,
            passes: infc_passes::Options::default(),
        }
    }
}

/// What a compilation made and what it took.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The artifact file, in its parts.
    pub artifact: Parts,
    /// Numbers about it.
    pub report: Report,
    /// What was lowered: steps, loop nests, plans. Its constants are in the artifact only.
    pub lowered: Lowered,
}

/// An artifact before it is written: weights that are stored as the model has them are still where they are there.
#[derive(Clone, Debug)]
pub struct Parts {
    manifest: Vec<u8>,
    variants: Vec<Variant>,
    constants: Constants,
    debug: Vec<u8>,
}

impl Parts {
    /// Writes the file in pieces.
    pub fn write<E>(&self, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let Parts { manifest, variants, constants, debug } = self;
        Artifact { manifest, variants, constants: &constants.pieces(), debug }.write(sink)
    }
    /// The whole file in memory.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Parts { manifest, variants, constants, debug } = self;
        Artifact { manifest, variants, constants: &constants.pieces(), debug }.to_bytes()
    }
}

/// Numbers about a compilation.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Name of the machine.
    pub target: String,
    /// Stages with their times, in order.
    pub stages: Vec<(&'static str, Duration)>,
    /// Different kernels.
    pub kernels: usize,
    /// Launches in the program.
    pub launches: usize,
    /// Bytes of machine code.
    pub code_bytes: u64,
    /// Bytes of constants.
    pub constant_bytes: u64,
    /// Bytes of memory for values inside the model; `None` if that depends on the shapes of a run.
    pub arena_bytes: Option<u64>,
    /// What of a program for a device runs on the host, see [`beside::lines`].
    pub host: Vec<String>,
}

/// How an artifact was made; stored in it as a protobuf message.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Manifest {
    /// Version of the compiler.
    #[prost(string, tag = "1")]
    pub compiler: String,
    /// The model's name.
    #[prost(string, tag = "2")]
    pub model: String,
    /// Name of the machine.
    #[prost(string, tag = "3")]
    pub target: String,
    /// Symbolic dims that were given a value, as `name=value`.
    #[prost(string, repeated, tag = "4")]
    pub dims: Vec<String>,
    /// Outputs kept for the next run, as `output=input`.
    #[prost(string, repeated, tag = "5")]
    pub states: Vec<String>,
    /// Passes in the order they ran.
    #[prost(string, repeated, tag = "6")]
    pub passes: Vec<String>,
    /// Threads that it is to run on.
    #[prost(uint32, optional, tag = "7")]
    pub threads: Option<u32>,
    /// In what products of f32 are taken, if not in f32: `tf32`.
    #[prost(string, optional, tag = "8")]
    pub math: Option<String>,
    /// The CPU beside a device.
    #[prost(string, optional, tag = "9")]
    pub host: Option<String>,
    /// Nodes and operators that were asked for to run on it.
    #[prost(string, repeated, tag = "10")]
    pub on_host: Vec<String>,
    /// What made the machine code, where it is no part of the compiler: `LLVM 22.1.8`.
    #[prost(string, optional, tag = "11")]
    pub generator: Option<String>,
}

/// What a launch is for, for people: the debug text of an artifact is JSON, a list of these for each variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// The node in the model's words, empty for a border.
    pub node: String,
    /// How it is computed, empty for a border.
    pub plan: String,
    /// Arithmetic of a call, an expression over the model's symbols.
    pub operations: String,
    /// Bytes that a call has to read and write, an expression too.
    pub bytes: String,
}

/// Notes on the launches of a program, in depth-first order.
pub fn notes(lowered: &Lowered) -> Vec<Note> {
    let mut plans = vec![];
    each_step(&lowered.program.steps, &mut |step| match step {
        Step::Launch { kernel, .. } => plans.push(&lowered.plans[*kernel as usize]),
        Step::HostLaunch { kernel, .. } => plans.push(&lowered.host_plans[*kernel as usize]),
        _ => {}
    });
    let note = |(launch, plan): (&Launch, &Option<Plan>)| Note {
        node: launch.node.clone(),
        plan: plan.as_ref().map_or_else(String::new, |p| p.to_string()),
        operations: launch.operations.to_string(),
        bytes: launch.bytes.to_string(),
    };
    lowered.launches.iter().zip(plans).map(note).collect()
}

/// Reads a model file.
pub fn import(path: &Path) -> Result<Graph, Problems> {
    let mut start = [0; MAGIC.len()];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut start));
    if read.is_ok() && start == MAGIC {
        let help = "give the ONNX file that it was made of; `infc run`, `bench`, `profile` and `inspect` take artifacts";
        return Err(Problems::one(path.display().to_string(), "is an artifact of infc, and a model is needed", help));
    }
    infc_onnx::import(path)
}

/// Compiles a model file.
pub fn compile_file(path: &Path, options: &Options) -> Result<Compiled, Problems> {
    let start = Instant::now();
    let graph = import(path)?;
    let imported = start.elapsed();
    let mut compiled = compile(graph, options)?;
    compiled.report.stages.insert(0, ("import", imported));
    Ok(compiled)
}

/// Compiles an imported model.
pub fn compile(graph: Graph, options: &Options) -> Result<Compiled, Problems> {
    let mut clock = Clock::default();
    let graph = optimise(graph, options)?;
    clock.stage("passes");
    compile_from(&graph, options, clock)
}

/// Compiles a graph that [`optimise`] has made with the same options.
pub fn compile_optimised(graph: &Graph, options: &Options) -> Result<Compiled, Problems> {
    compile_from(graph, options, Clock::default())
}

fn compile_from(graph: &Graph, options: &Options, mut clock: Clock) -> Result<Compiled, Problems> {
    let (mut lowered, variant) = variant(graph, &options.target, options, &mut clock)?;
    let mut variants = vec![variant];
    let mut all_notes = vec![notes(&lowered)];
    let mut constants = Shared::of(&lowered.program, std::mem::take(&mut lowered.constants));
    for target in &options.more {
        let (mut other, mut variant) = self::variant(graph, target, options, &mut clock)?;
        constants.add(&mut other.program, &other.constants);
        variant.program = encode(&other.program);
        variants.push(variant);
        all_notes.push(notes(&other));
    }
    let debug = if options.notes { serde_json::to_vec(&all_notes).expect("plain data") } else { vec![] };
    let manifest = manifest(&graph.name, options).encode_to_vec();
    let report = Report {
        target: target_names(options),
        kernels: lowered.kernels.len() + lowered.host_kernels.len(),
        launches: launches(&lowered.program.steps),
        code_bytes: variants.iter().map(|v| (v.code.len() + v.host_code.len()) as u64).sum(),
        constant_bytes: constants.all.len() as u64,
        arena_bytes: lowered.program.arena,
        host: beside::lines(&lowered.program),
        stages: clock.stages,
    };
    let artifact = Parts { manifest, variants, constants: constants.all, debug };
    Ok(Compiled { artifact, report, lowered })
}

/// The program for a machine, with its code.
fn variant(graph: &Graph, target: &TargetDesc, options: &Options, clock: &mut Clock) -> Result<(Lowered, Variant), Problems> {
    let mut lowered = lower_for(graph, target, options)?;
    clock.stage("lower");
    lowered.program.threads = options.threads;
    let code = target::backend(target)?.emit(&lowered.kernels).map_err(|mut problems| {
        if lowered.device && options.host.is_none() {
            let help = "add --host x86-64-v3, or another CPU: what the GPU cannot have runs on it then";
            problems.0.iter_mut().filter(|p| p.help.is_empty()).for_each(|p| p.help = help.to_owned());
        }
        problems
    })?;
    set_entries(&mut lowered.program.kernels, &code);
    let mut requirements = target::requirements(target);
    let mut host_code = vec![];
    if let Some(host) = options.host.as_ref().filter(|_| !lowered.host_kernels.is_empty()) {
        let code = target::backend(&host.target)?.emit(&lowered.host_kernels)?;
        set_entries(&mut lowered.program.host_kernels, &code);
        requirements.host = Some(Box::new(target::requirements(&host.target)));
        host_code = code.image;
    }
    clock.stage("code");
    let variant = Variant { requirements, program: encode(&lowered.program), code: code.image, host_code };
    Ok((lowered, variant))
}

/// Tells a program where its kernels are.
fn set_entries(kernels: &mut [Kernel], code: &Code) {
    for ((kernel, &entry), &scratch) in kernels.iter_mut().zip(&code.entries).zip(&code.scratch) {
        (kernel.entry, kernel.scratch) = (entry, scratch);
    }
}

/// The program for a machine, with loop nests as kernels.
fn lower_for(graph: &Graph, target: &TargetDesc, options: &Options) -> Result<Lowered, Problems> {
    let Some(host) = &options.host else { return program::lower_with(graph, target, &options.states, &options.choices) };
    if target.block_threads == 0 {
        let message = format!("the target '{}' is itself a CPU, or C code for one", target.name);
        return Err(Problems::one(format!("host '{}'", host.target.name), message, "it is for GPUs: --target nvidia"));
    }
    let backend = target::backend(target)?;
    let refuses = |kernel: &infc_kernel::loops::Kernel| backend.refuses(kernel);
    let beside = HostSide { target: &host.target, named: &host.named, refuses: &refuses };
    program::lower_beside(graph, target, Some(beside), &options.states, &options.choices)
}

/// The constants of all variants of an artifact, equal ones stored once.
struct Shared {
    all: Constants,
    /// Where constants of this key are.
    known: HashMap<(u64, usize), Vec<u64>>,
}

impl Shared {
    /// Those of the first variant, where they are.
    fn of(program: &Program, all: Constants) -> Shared {
        let mut known: HashMap<(u64, usize), Vec<u64>> = HashMap::new();
        each_constant(&mut program.clone(), &mut |offset, length| {
            known.entry(key(all.bytes(*offset, length))).or_default().push(*offset);
        });
        Shared { all, known }
    }
    /// Adds those of a further variant, and tells its program where they are now.
    fn add(&mut self, program: &mut Program, constants: &Constants) {
        each_constant(program, &mut |offset, length| {
            let constant = constants.bytes(*offset, length);
            let known = self.known.entry(key(constant)).or_default();
            *offset = match known.iter().find(|&&at| self.all.bytes(at, length) == constant) {
                Some(&at) => at,
                None => {
                    let at = if length == 0 { self.all.len() as u64 } else { self.all.push(constants.at(*offset)) };
                    known.push(at);
                    at
                }
            };
        });
    }
}

/// The offset of each constant of a program, with its length.
fn each_constant(program: &mut Program, see: &mut dyn FnMut(&mut u64, usize)) {
    for buffer in &mut program.buffers {
        if let Place::Constant(offset) = &mut buffer.place {
            let bytes = buffer.bytes.known().expect("constants have known sizes");
            see(offset, bytes as usize);
        }
    }
    for slot in &mut program.slots {
        if let SlotPlace::Constant { offset, bytes } = &mut slot.place {
            see(offset, *bytes as usize);
        }
    }
}

/// Names of all machines, the preferred one first.
fn target_names(options: &Options) -> String {
    let names: Vec<&str> = [&options.target].into_iter().chain(&options.more).map(|t| t.name.as_str()).collect();
    names.join(", ")
}

/// The graph after the passes, with dims bound.
pub fn optimise(mut graph: Graph, options: &Options) -> Result<Graph, Problems> {
    check_names(&graph, options)?;
    let passes = infc_passes::Options { bind: options.dims.clone(), ..options.passes.clone() };
    infc_passes::run(&mut graph, &passes)?;
    Ok(graph)
}

/// The program with loop nests as kernels.
pub fn lower(graph: Graph, options: &Options) -> Result<Lowered, Problems> {
    lower_for(&optimise(graph, options)?, &options.target, options)
}

/// Dims and states must name what the model has.
pub(crate) fn check_names(graph: &Graph, options: &Options) -> Result<(), Problems> {
    let mut problems = vec![];
    let symbols = symbols(graph);
    for (name, value) in &options.dims {
        if !symbols.iter().any(|s| s == name) {
            let message = "the model has no such symbolic dim".to_owned();
            let help = if symbols.is_empty() { "it has none".to_owned() } else { format!("it has {}", symbols.join(", ")) };
            problems.push(Problem { at: format!("dim '{name}'"), message, help });
        }
        if *value < 0 {
            let message = format!("{value} is negative");
            problems.push(Problem { at: format!("dim '{name}'"), message, help: "give a size".to_owned() });
        }
    }
    let names = |values: &[infc_ir::Value]| values.iter().map(|&v| graph.value(v).name.clone()).collect::<Vec<_>>();
    let (inputs, outputs) = (names(graph.inputs()), names(graph.outputs()));
    for (output, input) in &options.states {
        for (kind, name, known) in [("output", output, &outputs), ("input", input, &inputs)] {
            if !known.contains(name) {
                let (at, message) = (format!("state '{output}={input}'"), format!("the model has no {kind} '{name}'"));
                problems.push(Problem { at, message, help: format!("its {kind}s are {}", known.join(", ")) });
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// The symbolic dims of the model's inputs, in order of appearance.
pub fn symbols(graph: &Graph) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    for dims in graph.inputs().iter().filter_map(|&v| Some(&graph.ty(v).as_tensor()?.dims)) {
        for name in dims.iter().filter_map(|&d| crate::engine::symbol(d)) {
            if !out.iter().any(|o| o == name) {
                out.push(name.to_owned());
            }
        }
    }
    out
}

fn manifest(model: &str, options: &Options) -> Manifest {
    Manifest {
        compiler: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.to_owned(),
        target: target_names(options),
        dims: options.dims.iter().map(|(n, v)| format!("{n}={v}")).collect(),
        states: options.states.iter().map(|(o, i)| format!("{o}={i}")).collect(),
        passes: options.passes.pipeline.clone(),
        threads: options.threads,
        host: options.host.as_ref().map(|h| h.target.name.clone()),
        on_host: options.host.as_ref().map_or(vec![], |h| h.named.clone()),
        math: Some(options.target.math).filter(|&m| m != Math::F32).map(|m| m.name().to_owned()),
        generator: generator(options),
    }
}

/// Another LLVM makes other bytes of the same model.
#[cfg(feature = "llvm")]
fn generator(options: &Options) -> Option<String> {
    let mut targets = [&options.target].into_iter().chain(&options.more).chain(options.host.as_ref().map(|h| &h.target));
    let used = targets.any(|t| t.backend == "llvm" && t.plugin.is_none());
    infc_cpu_llvm::llvm().ok().filter(|_| used).map(|found| found.version)
}

#[cfg(not(feature = "llvm"))]
fn generator(_: &Options) -> Option<String> {
    None
}

/// Launches in a list of steps and in the lists of its steps.
pub fn launches(steps: &[Step]) -> usize {
    let mut count = 0;
    each_step(steps, &mut |step| count += usize::from(matches!(step, Step::Launch { .. } | Step::HostLaunch { .. })));
    count
}

struct Clock {
    last: Instant,
    stages: Vec<(&'static str, Duration)>,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { last: Instant::now(), stages: vec![] }
    }
}

impl Clock {
    /// Ends the stage of this name.
    fn stage(&mut self, name: &'static str) {
        let now = Instant::now();
        self.stages.push((name, now - self.last));
        self.last = now;
    }
}
