//! `infc compile`: from a model to an artifact, or to what lies between them.

use super::{fpga, tune};
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use clap::ValueEnum;
use infc::compile::{self, Compiled, Options, Parts, Report};
use infc::tune::Summary;
use infc::{native, target};
use infc_ir::{Graph, Problems};
use infc_kernel::backend::Os;
use infc_kernel::target::{Math, TargetDesc};
use infc_runtime::variant;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Compile a model
#[derive(clap::Args)]
pub struct Args {
    /// The model: an ONNX file.
    model: PathBuf,
    /// Where to put the result [default: the model's name with the ending of the kind, here; text goes to standard output]. C code goes
    /// to a folder, which is made if it is missing, or to FILE.c
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    how: How,
    /// Threads that the artifact is to run on where a session is not told how many; 0 is one for each CPU [default: 1]
    #[arg(long, value_name = "N", value_parser = threads())]
    threads: Option<u32>,
    /// Time other plans of the model's steps on this computer and take the fastest. FILE keeps what was measured: only steps that it lacks are
    /// timed, and with all of them in it the same file gives the same artifact anywhere
    #[arg(long, value_name = "FILE.toml", conflicts_with = "tuning")]
    tune: Option<PathBuf>,
    /// Also store the plan and the node of each step, for `infc profile` of the artifact
    #[arg(long)]
    notes: bool,
    /// What to make [default: infc; c for a target of the c backend, wasm for one of WebAssembly]
    #[arg(long, value_enum)]
    emit: Option<Emit>,
    /// The operating system of object files, libraries and programs [default: this one]. Artifacts and C code are for any
    #[arg(long, value_enum, value_name = "NAME")]
    os: Option<System>,
    /// Where weights go with --emit c or wasm
    #[arg(long, value_enum, value_name = "WHERE")]
    weights: Option<WeightsIn>,
    /// With --emit c: tasks of large kernels run on several threads if the C compiler has OpenMP
    #[arg(long)]
    openmp: bool,
    /// With --emit c: nothing of <math.h>; sqrtf, floorf and the like are functions of the code itself
    #[arg(long)]
    no_libm: bool,
    /// With --emit c: bits of indices and loop counters. With 32, what is not certain to fit keeps 64
    #[arg(long, value_name = "BITS", value_parser = ["32", "64"])]
    index: Option<String>,
    /// Print the graph to standard error after this pass, or after each one: all.
    #[arg(long, value_name = "PASS")]
    print_after: Vec<String>,
    /// Stop after this pass (with --emit ir).
    #[arg(long, value_name = "PASS")]
    stop_after: Option<String>,
    /// Do at most this many rewrites, to find the one that goes wrong.
    #[arg(long, value_name = "N")]
    rewrite_limit: Option<usize>,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    fpga: fpga::Streaming,
}

/// What a model is compiled for; shared by all commands that compile.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct How {
    /// The machine: a name of `infc targets` or a machine file [default: native, which is this computer]
    #[arg(long, value_name = "NAME|FILE.toml")]
    target: Option<String>,
    /// Short for --target with CPUs (x86-64 and 64-bit Arm). An artifact for several ones, NAME,NAME, has code for each, and a computer runs the best that
    /// it can; to run an artifact, this names the one to take instead.
    #[arg(long, value_name = "NAME[,NAME]", conflicts_with = "target")]
    cpu: Option<String>,
    /// Give a symbolic dim a value; NAME<=SIZE leaves it open up to a size, for C code, object files, libraries and WebAssembly.
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = dim_or_bound)]
    dims: Vec<Dim>,
    /// Take products of f32 in fewer bits, with sums in f32: bf16 on x86-64-v4-bf16 and what has more, f16 on x86-64-v4-fp16 and what has more and on aarch64-dotprod and -i8mm, tf32, bf16 or f16 on GPUs. Or take fewer of them: winograd, on CPUs, makes convolutions with windows of 3 by minimal filtering, all in f32 [default: f32]
    #[arg(long, value_name = "KIND", value_parser = math)]
    math: Option<Math>,
    /// For CPUs: keep quantised weights in as few bits as they have, also where widening them in each run costs time
    #[arg(long)]
    small: bool,
    /// Take plans from this file, which `infc compile --tune` has made; steps that it lacks have the plan they have without it
    #[arg(long, value_name = "FILE.toml")]
    tuning: Option<PathBuf>,
    #[command(flatten)]
    beside: Beside,
    /// The output of one run is the input of the next, which starts from zeros.
    #[arg(long = "state", value_name = "OUT=IN", value_parser = state)]
    states: Vec<(String, String)>,
}

/// The CPU beside a GPU; shared by all commands that compile.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Beside {
    /// With a GPU: the CPU beside it, a name of those for --cpu. Steps that the GPU cannot have run on it, and those of --on-host
    #[arg(long, value_name = "NAME|FILE.toml")]
    host: Option<String>,
    /// With a GPU: run the steps of this node, or of all nodes of this operator, on the CPU beside it, which is x86-64-v3 if --host names none
    #[arg(long, value_name = "NODE|OP")]
    on_host: Vec<String>,
}

impl Beside {
    /// The option that is given, if one is.
    pub fn given(&self) -> Option<&'static str> {
        match (&self.host, self.on_host.as_slice()) {
            (Some(_), _) => Some("--host"),
            (None, []) => None,
            (None, _) => Some("--on-host"),
        }
    }
    /// What they say, of code for these machines.
    pub fn options(&self, targets: &[&TargetDesc]) -> std::result::Result<Option<compile::Host>, Failure> {
        let Some(option) = self.given() else { return Ok(None) };
        if let Some(cpu) = targets.iter().find(|t| t.block_threads == 0) {
            let message = format!("{option} is for a CPU beside a GPU, and the target '{}' is none", cpu.name);
            return Err(Failure::usage(message, "name a GPU: --target nvidia; or leave it out"));
        }
        let name = self.host.as_deref().unwrap_or(target::DEFAULT_HOST);
        let target = target::find_host(name).map_err(|problems| Failure::target(name, problems))?;
        Ok(Some(compile::Host { target, named: self.on_host.clone() }))
    }
}

/// What `--dim` says.
#[derive(Clone, Debug)]
pub enum Dim {
    /// `NAME=SIZE`.
    Is(String, i64),
    /// `NAME<=SIZE`.
    AtMost(String, i64),
}

/// Where the weights of C code and of modules of WebAssembly go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WeightsIn {
    /// Into the C file, as arrays, or into the module.
    #[value(alias = "arrays")]
    Inside,
    /// Into a file NAME.bin, whose bytes the caller gives to each run, or the module's script loads.
    Bin,
}

/// What `--emit` can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// An artifact for the runtime.
    Infc,
    /// An object file with a C header; symbolic dims need a size or a bound.
    Obj,
    /// A static library with a C header.
    Staticlib,
    /// A shared library with a C header, linked by the C compiler (CC, CFLAGS).
    Sharedlib,
    /// A program that runs the model on .npy files, linked by the C compiler; all --dim must be given.
    Exe,
    /// C99 with a header, for any C compiler; symbolic dims need a size or a bound.
    C,
    /// A module of WebAssembly with the JavaScript that loads it; symbolic dims need a size or a bound.
    #[cfg(feature = "llvm")]
    Wasm,
    /// A streaming design in HLS C++, for --target fpga-hls.
    Hls,
    /// The kernels as LLVM IR.
    LlvmIr,
    /// The kernels as Cranelift's IR, for a machine of its backend.
    Clif,
    /// The kernels as assembly.
    Asm,
    /// The kernels as PTX.
    #[cfg(feature = "ptx")]
    Ptx,
    /// The graph after all passes.
    Ir,
    /// The kernels as loop nests.
    Loops,
}

/// Operating systems as the command line has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum System {
    Linux,
    Macos,
    Windows,
}

impl System {
    fn os(self) -> Os {
        match self {
            System::Linux => Os::Linux,
            System::Macos => Os::Macos,
            System::Windows => Os::Windows,
        }
    }
}

/// Numbers of threads that sessions take.
pub fn threads() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(0..=i64::from(infc_artifact::program::MAX_THREADS))
}

impl How {
    /// For these machines, and nothing else said.
    pub fn of(target: Option<&str>, cpu: Option<&str>) -> How {
        How { target: target.map(str::to_owned), cpu: cpu.map(str::to_owned), ..How::default() }
    }
    /// Options of the compiler, for a model that takes any size and is run here: of several CPUs, the one that an artifact for all of them
    /// would be run for. A CPU that this computer is not is an error.
    pub fn options(&self) -> std::result::Result<Options, Failure> {
        let options = self.options_for("native")?;
        let all = || [&options.target].into_iter().chain(&options.more);
        if all().any(|t| !target::is_cpu(t)) {
            return Ok(options);
        }
        let requirements: Vec<_> = all().map(target::requirements).collect();
        match variant::choose(&requirements, None) {
            Ok(chosen) => {
                let target = all().nth(chosen).expect("one of them").clone();
                Ok(Options { target, more: vec![], ..options })
            }
            Err(e) => {
                let at = format!("--cpu {}", self.cpu.as_deref().or(self.target.as_deref()).unwrap_or("native"));
                let help = "leave it out to run code for this computer; `infc compile` makes code for others";
                Err(Problems::one(at, e.to_string(), help).into())
            }
        }
    }
    /// The variant of an artifact that is to be run, if one is named. An artifact has been compiled: it takes no other option that says how.
    pub fn variant(&self) -> std::result::Result<Option<&str>, Failure> {
        if let Some(option) = self.beside.given() {
            let help = "give it to `infc compile`; `infc inspect` says what of an artifact runs on the CPU";
            return Err(Failure::usage(format!("{option} is for models that are compiled, this is an artifact"), help));
        }
        if self.has_states() || self.math.is_some() || self.small || self.tuning.is_some() {
            let help = "give them to `infc compile`; `infc inspect` says what an artifact was compiled with";
            return Err(Failure::usage(
                "--state, --math, --small and --tuning are for models that are compiled, this is an artifact",
                help,
            ));
        }
        match self.target.as_deref().or(self.cpu.as_deref()) {
            Some(names) if names.contains(',') => {
                let help = "leave out --cpu to run the best variant that this computer can, or name one";
                Err(Failure::usage(format!("--cpu {names}: an artifact runs one variant at a time"), help))
            }
            Some("native") | None => Ok(None),
            Some(name) => Ok(Some(target::full_name(name))),
        }
    }
    /// The same, for this target if none is named.
    fn options_for(&self, target: &str) -> std::result::Result<Options, Failure> {
        let options = self.bounded_options(target)?;
        match options.bounds.first() {
            None => Ok(options),
            Some((name, most)) => {
                let help = format!(
                    "give it a size: --dim {name}={most}, or make code with memory of fixed size: --emit c, obj, wasm and others"
                );
                Err(Failure::usage(format!("--dim '{name}<={most}': bounds are for code whose memory is of fixed size"), &help))
            }
        }
    }
    /// Options of the compiler, for this target if none is named.
    fn bounded_options(&self, target: &str) -> std::result::Result<Options, Failure> {
        let name = self.cpu.as_deref().or(self.target.as_deref()).unwrap_or(target);
        let found = if self.cpu.is_some() { target::find_cpus(name) } else { target::find_all(name) };
        let mut more = found.map_err(|problems| Failure::target(name, problems))?;
        if let Some(math) = self.math {
            more.iter_mut().try_for_each(|machine| set_math(machine, math))?;
        }
        if self.small {
            more.iter_mut().try_for_each(set_small)?;
        }
        let target = more.remove(0);
        let (dims, bounds) = self.given_dims();
        let mut options = Options { more, dims, bounds, states: self.states.clone(), ..Options::for_target(target) };
        let targets: Vec<&TargetDesc> = [&options.target].into_iter().chain(&options.more).collect();
        options.host = self.beside.options(&targets)?;
        if let Some(path) = &self.tuning {
            tune::read(path, &mut options)?;
        }
        Ok(options)
    }
    /// Is an output the input of the next run?
    pub fn has_states(&self) -> bool {
        !self.states.is_empty()
    }
    /// The name of the target, if one is given.
    pub fn target_name(&self) -> Option<&str> {
        self.target.as_deref()
    }
    /// What `--dim` says: sizes, and bounds.
    pub fn given_dims(&self) -> (Vec<(String, i64)>, Vec<(String, i64)>) {
        let bounds = self.dims.iter().filter_map(|d| match d {
            Dim::AtMost(name, most) => Some((name.clone(), *most)),
            Dim::Is(..) => None,
        });
        (self.fixed().collect(), bounds.collect())
    }
    /// Values of dims, for made-up inputs.
    pub fn dims(&self) -> std::collections::BTreeMap<String, i64> {
        self.fixed().collect()
    }
    fn fixed(&self) -> impl Iterator<Item = (String, i64)> {
        self.dims.iter().filter_map(|d| match d {
            Dim::Is(name, size) => Some((name.clone(), *size)),
            Dim::AtMost(..) => None,
        })
    }
}

/// `NAME=SIZE`.
pub fn dim(text: &str) -> std::result::Result<(String, i64), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=SIZE")?;
    let value = value.parse().ok().filter(|v: &i64| *v >= 0).ok_or_else(|| format!("'{value}' is no size"))?;
    Ok((name.to_owned(), value))
}

/// `NAME=SIZE` or `NAME<=SIZE`.
fn dim_or_bound(text: &str) -> std::result::Result<Dim, String> {
    match text.split_once("<=") {
        Some((name, most)) => dim(&format!("{name}={most}")).map(|(name, most)| Dim::AtMost(name, most)),
        None => dim(text).map(|(name, size)| Dim::Is(name, size)),
    }
}

/// Tells a machine how to take products of f32; an error if it cannot take them so.
pub fn set_math(machine: &mut TargetDesc, math: Math) -> std::result::Result<(), Failure> {
    if !machine.takes(math) {
        let message = format!("--math {}: target '{}' takes no products in that way", math.name(), machine.name);
        let all = target::machines();
        let able: Vec<&str> = all.iter().filter(|m| m.takes(math)).map(|m| m.name.as_str()).collect();
        return Err(Failure::usage(message, format!("leave it out, or name a target that does: {}", able.join(", "))));
    }
    machine.math = math;
    Ok(())
}

/// Tells a machine to keep weights narrow wherever they can be; an error if its kernels do so anyway.
fn set_small(machine: &mut TargetDesc) -> std::result::Result<(), Failure> {
    if machine.block_threads > 0 {
        let message = format!("--small: kernels for target '{}' read narrow weights as they are without it", machine.name);
        return Err(Failure::usage(message, small_help()));
    }
    machine.small = true;
    Ok(())
}

/// What to do where weights cannot be narrow.
fn small_help() -> String {
    let all = target::machines();
    let able: Vec<&str> = all.iter().filter(|m| m.block_threads == 0).map(|m| m.name.as_str()).collect();
    format!("leave it out, or name a target where that may take time: {}", able.join(", "))
}

/// A way to take products by its name.
pub fn math(text: &str) -> std::result::Result<Math, String> {
    let known = || Math::ALL.map(|m| m.1).join(", ");
    Math::ALL.iter().find(|m| m.1 == text).map(|m| m.0).ok_or_else(|| format!("write one of {}", known()))
}

fn state(text: &str) -> std::result::Result<(String, String), String> {
    let (output, input) = text.split_once('=').ok_or("write OUTPUT=INPUT")?;
    Ok((output.to_owned(), input.to_owned()))
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    if args.how.target_name() == Some(fpga::TARGET) || args.emit == Some(Emit::Hls) {
        return streaming(args);
    }
    if let Some(option) = args.fpga.given() {
        return Err(Failure::usage(format!("{option} is for streaming designs"), "add --target fpga-hls"));
    }
    let default = match args.emit {
        Some(Emit::C) => "c99",
        #[cfg(feature = "llvm")]
        Some(Emit::Wasm) => "wasm32-simd",
        #[cfg(feature = "ptx")]
        Some(Emit::Ptx) => "nvidia-sm80",
        _ => "native",
    };
    let mut options = args.how.bounded_options(default)?;
    let emit = args.emit.unwrap_or(match &options.target {
        t if t.backend == "c" => Emit::C,
        #[cfg(feature = "llvm")]
        t if native::is_web(t) => Emit::Wasm,
        _ => Emit::Infc,
    });
    #[cfg(feature = "llvm")]
    let web = emit == Emit::Wasm;
    #[cfg(not(feature = "llvm"))]
    let web = false;
    // Where nothing takes memory in a run, dims may be bounded.
    let bounded = web || matches!(emit, Emit::C | Emit::Obj | Emit::Staticlib | Emit::Sharedlib);
    if !bounded {
        options = args.how.options_for(default)?;
    }
    if emit != Emit::C && (args.openmp || args.no_libm || args.index.is_some()) {
        return Err(Failure::usage("--openmp, --no-libm and --index are for C code", "add --emit c"));
    }
    if args.os.is_some() && !matches!(emit, Emit::Obj | Emit::Staticlib | Emit::Sharedlib | Emit::Exe) {
        let message = "--os is for object files, libraries and programs";
        return Err(Failure::usage(
            message,
            "leave it out: what is made otherwise is for any system; or add --emit obj, staticlib, sharedlib or exe",
        ));
    }
    if args.weights.is_some() && emit != Emit::C && !web {
        return Err(Failure::usage("--weights is for C code and modules of WebAssembly", "add --emit c, or --emit wasm"));
    }
    #[cfg(feature = "llvm")]
    fits_the_web(emit, &options)?;
    if !options.more.is_empty() && !matches!(emit, Emit::Infc | Emit::Ir) {
        let names: Vec<_> = [&options.target].into_iter().chain(&options.more).map(|t| t.name.as_str()).collect();
        let kind = emit.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned());
        let message = format!("--emit {kind} is code for one machine, {} were named: {}", names.len(), names.join(", "));
        let help = format!(
            "name one, or make an artifact, which has code for all of them and chooses: --emit infc; for the oldest: --target {}",
            names[names.len() - 1]
        );
        return Err(Failure::usage(message, help));
    }
    options.passes.print_after.clone_from(&args.print_after);
    options.passes.stop_after.clone_from(&args.stop_after);
    options.passes.rewrite_limit = args.rewrite_limit;
    for name in args.print_after.iter().filter(|n| *n != "all").chain(&args.stop_after) {
        if infc_passes::pass(name).is_none() {
            return Err(Failure::usage(format!("there is no pass '{name}'"), "`infc passes` lists them"));
        }
    }
    if args.stop_after.is_some() && emit != Emit::Ir {
        return Err(Failure::usage("--stop-after gives no complete program", "add --emit ir"));
    }
    options.threads = args.threads;
    options.notes = args.notes;
    if args.notes && emit != Emit::Infc {
        return Err(Failure::usage("--notes are stored in artifacts", "leave it out, or make an artifact: --emit infc"));
    }
    if args.threads.is_some_and(|n| n != 1) && emit != Emit::Infc {
        let help = "leave it out, or make an artifact: --emit infc (C code: --openmp)";
        return Err(Failure::usage("--threads is for artifacts; object files, C code and programs run on one thread", help));
    }
    let tuned = match &args.tune {
        Some(_) if matches!(emit, Emit::C | Emit::Ir) => {
            return Err(Failure::usage("--tune is for machine code", "leave it out, or make an artifact: --emit infc"));
        }
        Some(path) => {
            let summary = tune::tune(&args.model, path, &mut options)?;
            let text = matches!(emit, Emit::Loops | Emit::LlvmIr | Emit::Clif | Emit::Asm) && args.output.is_none();
            if !args.json {
                tune::print(&summary, path, text);
            }
            Some(summary)
        }
        None => None,
    };
    let tuned = tuned.as_ref();
    match emit {
        Emit::Infc => artifact(args, &options, tuned),
        Emit::Ir => text(args, infc_ir::text::print(&compile::optimise(import(&args.model)?, &options)?)),
        Emit::Loops => {
            let lowered = compile::lower(import(&args.model)?, &options)?;
            text(args, lowered.kernels.iter().chain(&lowered.host_kernels).map(|k| format!("{k}\n")).collect())
        }
        Emit::LlvmIr | Emit::Clif | Emit::Asm => {
            let kind = match emit {
                Emit::LlvmIr => "llvm-ir",
                Emit::Clif => "clif",
                _ => "asm",
            };
            let lowered = compile::lower(import(&args.model)?, &options)?;
            text(args, target::backend(&options.target)?.emit_text(&lowered.kernels, kind)?)
        }
        #[cfg(feature = "ptx")]
        Emit::Ptx => {
            let lowered = compile::lower(import(&args.model)?, &options)?;
            text(args, target::backend(&options.target)?.emit_text(&lowered.kernels, "ptx")?)
        }
        Emit::Obj | Emit::Staticlib | Emit::Sharedlib | Emit::Exe => native(args, emit, &options, tuned),
        Emit::C => c_code(args, &options),
        #[cfg(feature = "llvm")]
        Emit::Wasm => module(args, &options, tuned),
        Emit::Hls => streaming(args),
    }
}

/// Code for machines of WebAssembly is a module or a text, and only theirs is.
#[cfg(feature = "llvm")]
fn fits_the_web(emit: Emit, options: &Options) -> std::result::Result<(), Failure> {
    let machine = native::is_web(&options.target);
    match emit {
        Emit::Wasm if !machine => {
            let known: Vec<_> = target::machines().into_iter().filter(native::is_web).map(|m| m.name).collect();
            let message = format!("--emit wasm: target '{}' is no machine of WebAssembly", options.target.name);
            Err(Failure::usage(message, format!("leave out --target, or name one of {}", known.join(", "))))
        }
        Emit::Infc | Emit::Obj | Emit::Staticlib | Emit::Sharedlib | Emit::Exe if machine => {
            let message = format!("code for target '{}' is a module with the script that loads it", options.target.name);
            Err(Failure::usage(message, "leave out --emit, or say --emit wasm"))
        }
        _ => Ok(()),
    }
}

/// A streaming design.
fn streaming(args: &Args) -> Result {
    if args.how.target_name().is_some_and(|t| t != fpga::TARGET) || args.emit.is_some_and(|e| e != Emit::Hls) {
        let help = "--target fpga-hls and --emit hls go together; leave the other out";
        return Err(Failure::usage("HLS C++ is what the target fpga-hls is printed as, and nothing else", help));
    }
    if args.how.small {
        let message = "--small: a streaming design has weights of the model's own integers or of formats of its own";
        return Err(Failure::usage(message, small_help()));
    }
    let other = args.weights.is_some()
        || args.os.is_some()
        || args.openmp
        || args.no_libm
        || args.index.is_some()
        || args.threads.is_some()
        || args.tune.is_some()
        || args.notes;
    if other || args.stop_after.is_some() || !args.print_after.is_empty() || args.rewrite_limit.is_some() || args.how.has_states()
    {
        let help = "of the general options it takes -o, --dim and --json";
        return Err(Failure::usage("an option is not for streaming designs", help));
    }
    fpga::run(&args.fpga, &args.model, &args.how, args.output.as_deref(), args.json)
}

/// Reads a model.
pub fn import(path: &Path) -> std::result::Result<Graph, Failure> {
    readable(path)?;
    Ok(compile::import(path)?)
}

/// A file that is missing or cannot be opened is told apart from a bad model.
pub fn readable(path: &Path) -> std::result::Result<(), Failure> {
    match fs::File::open(path).and_then(|f| f.metadata()) {
        Ok(m) if m.is_dir() => Err(Failure {
            exit: Exit::Io,
            problems: Problems::one(path.display().to_string(), "is a folder", "give a file: FOLDER/model.onnx"),
        }),
        Ok(_) => Ok(()),
        Err(e) => Err(Failure::io(path, &e)),
    }
}

/// Compiles a model file, showing that it goes on.
pub fn compile(model: &Path, options: &Options) -> std::result::Result<Compiled, Failure> {
    readable(model)?;
    let _spinner = term::spinner(format!("compiling {}", model.display()));
    Ok(compile::compile_file(model, options)?)
}

fn artifact(args: &Args, options: &Options, tuned: Option<&Summary>) -> Result {
    let out = args.output.clone().unwrap_or_else(|| beside(&args.model, "", ".infc"));
    super::files::not_the_model(&out, &args.model)?;
    let mut compiled = compile(&args.model, options)?;
    let start = Instant::now();
    let size = write_artifact(&out, &compiled.artifact)?;
    compiled.report.stages.push(("write", start.elapsed()));
    report(args, &compiled.report, &[(out, size)], tuned);
    Ok(Exit::Ok)
}

/// The file of a model's name in the current folder.
fn beside(model: &Path, prefix: &str, ending: &str) -> PathBuf {
    format!("{prefix}{}{ending}", model.file_stem().unwrap_or_default().to_string_lossy()).into()
}

/// Object files and what is made from them. The functions are named after the file.
fn native(args: &Args, emit: Emit, options: &Options, tuned: Option<&Summary>) -> Result {
    let os = args.os.map_or(Os::here(), System::os);
    let (prefix, ending) = match (emit, os) {
        (Emit::Obj, Os::Windows) => ("", ".obj"),
        (Emit::Obj, _) => ("", ".o"),
        (Emit::Staticlib, Os::Windows) => ("", ".lib"),
        (Emit::Staticlib, _) => ("lib", ".a"),
        (Emit::Sharedlib, Os::Linux) => ("lib", ".so"),
        (Emit::Sharedlib, Os::Macos) => ("lib", ".dylib"),
        (Emit::Sharedlib, Os::Windows) => ("", ".dll"),
        (_, Os::Windows) => ("", ".exe"),
        _ => ("", ""),
    };
    let out = args.output.clone().unwrap_or_else(|| beside(&args.model, prefix, ending));
    let file = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Functions are called alike whichever system's ending the file has.
    let endings: &[&str] = match emit {
        Emit::Obj => &[".o", ".obj"],
        Emit::Staticlib => &[".a", ".lib"],
        Emit::Sharedlib => &[".so", ".dylib", ".dll"],
        _ => &[".exe"],
    };
    let stem = endings.iter().find_map(|e| file.strip_suffix(e)).unwrap_or(&file);
    // Libraries of Unix are `lib` and the name, and MinGW's on Windows too.
    let unix = matches!(emit, Emit::Staticlib | Emit::Sharedlib) && ![".lib", ".dll"].iter().any(|e| file.ends_with(e));
    let name = native::identifier(stem.strip_prefix("lib").filter(|_| unix).unwrap_or(stem));
    super::files::not_the_model(&out, &args.model)?;
    let graph = import(&args.model)?;
    let spinner = term::spinner(format!("compiling {}", args.model.display()));
    let native = native::compile(graph, options, &name, os, emit == Emit::Exe)?;
    let mut import = None;
    let (bytes, mode) = match emit {
        Emit::Obj => (native.object.bytes.clone(), 0o644),
        Emit::Staticlib => (native.archive(), 0o644),
        Emit::Sharedlib => {
            let shared = native::shared_library(&native, &file)?;
            import = shared.import;
            (shared.library, 0o755)
        }
        _ => (native::executable(&native)?, 0o755),
    };
    drop(spinner);
    let mut files = vec![(out.clone(), bytes, mode)];
    if emit != Emit::Exe {
        files.push((out.with_file_name(format!("{name}.h")), native.header.clone().into_bytes(), 0o644));
    }
    files.extend(import.map(|bytes| (out.with_extension("lib"), bytes, 0o644)));
    write_files(&files)?;
    let sizes: Vec<(PathBuf, usize)> = files.iter().map(|f| (f.0.clone(), f.1.len())).collect();
    report(args, &native.report, &sizes, tuned);
    Ok(Exit::Ok)
}

/// A module of WebAssembly, its script with types, and perhaps the weights. They are named after the file, in a folder after the model.
#[cfg(feature = "llvm")]
fn module(args: &Args, options: &Options, tuned: Option<&Summary>) -> Result {
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (out, name) = match &args.output {
        Some(file) if file.extension().is_some_and(|e| e == "wasm") => (file.clone(), stem(file)),
        folder => {
            let name = stem(&args.model);
            (folder.clone().unwrap_or_default().join(format!("{name}.wasm")), name)
        }
    };
    super::files::not_the_model(&out, &args.model)?;
    let graph = import(&args.model)?;
    let spinner = term::spinner(format!("compiling {}", args.model.display()));
    let weights = if args.weights == Some(WeightsIn::Bin) { native::Weights::Apart } else { native::Weights::Inside };
    let web = native::web(graph, options, &name, weights)?;
    drop(spinner);
    let beside = |ending: &str| out.with_file_name(format!("{name}.{ending}"));
    let (script, types, weights) = (beside("mjs"), beside("d.mts"), beside("bin"));
    let mut files =
        vec![(out, web.wasm, 0o644), (script, web.script.into_bytes(), 0o644), (types, web.types.into_bytes(), 0o644)];
    files.extend(web.weights.map(|w| (weights, w, 0o644)));
    written(args, &files, &web.report, tuned)
}

/// Writes files, the first of which may be in a new folder, and says what was made.
fn written(args: &Args, files: &[(PathBuf, Vec<u8>, u32)], r: &Report, tuned: Option<&Summary>) -> Result {
    if let Some(folder) = files[0].0.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|e| Failure::io(folder, &e))?;
    }
    write_files(files)?;
    let sizes: Vec<(PathBuf, usize)> = files.iter().map(|f| (f.0.clone(), f.1.len())).collect();
    report(args, r, &sizes, tuned);
    Ok(Exit::Ok)
}

/// C code: a source file, a header, and perhaps the weights. The functions are named after the file, in a folder after the model.
fn c_code(args: &Args, options: &Options) -> Result {
    if options.target.backend != "c" {
        let known: Vec<_> = target::machines().into_iter().filter(|m| m.backend == "c").map(|m| m.name).collect();
        let message = format!("the {} backend of target '{}' prints no C", options.target.backend, options.target.name);
        return Err(Failure::usage(message, format!("leave out --target, or name one of {}", known.join(", "))));
    }
    let stem = |path: &Path| native::identifier(&path.file_stem().unwrap_or_default().to_string_lossy());
    let (out, name) = match &args.output {
        Some(file) if file.extension().is_some_and(|e| e == "c") => (file.clone(), stem(file)),
        folder => {
            let name = stem(&args.model);
            (folder.clone().unwrap_or_default().join(format!("{name}.c")), name)
        }
    };
    let graph = import(&args.model)?;
    let spinner = term::spinner(format!("compiling {}", args.model.display()));
    let weights = if args.weights == Some(WeightsIn::Bin) { infc_c::Weights::Apart } else { infc_c::Weights::Arrays };
    let style = infc_c::Style { own_math: args.no_libm, narrow_index: args.index.as_deref() == Some("32"), ..Default::default() };
    let code = native::c_code(graph, options, &name, native::Print { weights, openmp: args.openmp, style })?;
    drop(spinner);
    let beside = |ending: &str| out.with_file_name(format!("{name}.{ending}"));
    let (header, weights) = (beside("h"), beside("bin"));
    let mut files = vec![(out, code.source.c.into_bytes(), 0o644), (header, code.source.h.into_bytes(), 0o644)];
    files.extend(code.source.weights.map(|w| (weights, w, 0o644)));
    written(args, &files, &code.report, None)
}

/// Says what was made: the result first, then files that belong to it.
fn report(args: &Args, r: &Report, files: &[(PathBuf, usize)], tuned: Option<&Summary>) {
    let time: Duration = r.stages.iter().map(|s| s.1).sum();
    let (out, bytes) = &files[0];
    if args.json {
        let stages: serde_json::Map<_, _> =
            r.stages.iter().map(|(n, t)| (format!("{n}_ms"), (t.as_secs_f64() * 1e3).into())).collect();
        let all: Vec<&PathBuf> = files.iter().map(|f| &f.0).collect();
        let header = all.iter().find(|f| f.extension().is_some_and(|e| e == "h"));
        let mut report = serde_json::json!({
                "output": out, "header": header, "files": all, "target": r.target, "bytes": bytes, "code_bytes": r.code_bytes,
                "constant_bytes": r.constant_bytes, "arena_bytes": r.arena_bytes, "kernels": r.kernels, "launches": r.launches, "host": r.host,
                "compile_ms": time.as_secs_f64() * 1e3, "stages": stages,
        });
        if let Some(summary) = tuned {
            report["tuning"] = serde_json::to_value(summary).expect("plain data");
        }
        say!("{report}");
        return;
    }
    let arena = r.arena_bytes.map_or("depends on shapes".to_owned(), term::bytes);
    say!(
        "{}: {} for {} in {}: code {}, constants {}, {} kernels, {} launches, memory {arena}",
        out.display(),
        term::bytes(*bytes as u64),
        r.target,
        term::time(time),
        term::bytes(r.code_bytes),
        term::bytes(r.constant_bytes),
        r.kernels,
        r.launches
    );
    r.host.iter().for_each(|line| say!("{line}"));
    for (path, _) in &files[1..] {
        let what = match path.extension().and_then(|e| e.to_str()) {
            Some("bin") => "its weights",
            Some("mjs") => "what loads it, in JavaScript",
            Some("mts") => "types of that",
            Some("lib") => "what programs link",
            _ => "its C interface",
        };
        say!("{}: {what}", path.display());
    }
}

fn text(args: &Args, text: String) -> Result {
    match &args.output {
        Some(path) => write_file(path, text.as_bytes())?,
        None => say!("{}", text.trim_end()),
    }
    Ok(Exit::Ok)
}

/// Writes a file whole or not at all: to a temporary one beside it, then renamed.
pub fn write_file(path: &Path, bytes: &[u8]) -> std::result::Result<(), Failure> {
    write_files(&[(path.to_owned(), bytes, 0o644)])
}

/// Writes files (path, bytes, rights) whole or none of them: to temporary ones beside them, which are renamed when all are written.
pub fn write_files<B: AsRef<[u8]>>(files: &[(PathBuf, B, u32)]) -> std::result::Result<(), Failure> {
    let put = |bytes: &B, file: &mut fs::File| file.write_all(bytes.as_ref());
    write_each(&files.iter().map(|(path, bytes, mode)| (path.as_path(), bytes, *mode)).collect::<Vec<_>>(), &put)
}

/// Writes an artifact, whole or not at all; how large it is.
pub fn write_artifact(path: &Path, artifact: &Parts) -> std::result::Result<usize, Failure> {
    let size = std::cell::Cell::new(0);
    let put = |artifact: &Parts, file: &mut fs::File| {
        let mut file = std::io::BufWriter::with_capacity(1 << 16, file);
        artifact.write(&mut |piece| {
            size.set(size.get() + piece.len());
            file.write_all(piece)
        })?;
        file.flush()
    };
    write_each(&[(path, artifact, 0o644)], &put)?;
    Ok(size.get())
}

/// Writes files of which `put` puts in what is to be in them.
fn write_each<C: ?Sized>(
    files: &[(&Path, &C, u32)],
    put: &dyn Fn(&C, &mut fs::File) -> std::io::Result<()>,
) -> std::result::Result<(), Failure> {
    let mut written = vec![];
    // A pipe or a device is written to; a file that was renamed to it would replace it.
    let special = |path: &Path| fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir());
    for (path, content, _) in files.iter().filter(|f| special(f.0)) {
        fs::File::create(path).and_then(|mut file| put(content, &mut file)).map_err(|e| Failure::io(path, &e))?;
    }
    let files: Vec<_> = files.iter().filter(|f| !special(f.0)).collect();
    for (path, content, mode) in &files {
        if path.is_dir() {
            return Err(Failure::io(path, &std::io::ErrorKind::IsADirectory.into()));
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            let help = format!("make the folder {} first", folder.display());
            let problems = Problems::one(path.display().to_string(), "its folder does not exist", help);
            return Err(Failure { exit: Exit::Io, problems });
        }
        let write = || -> std::io::Result<tempfile::NamedTempFile> {
            let mut file = tempfile::Builder::new().prefix(".infc-").tempfile_in(folder)?;
            put(content, file.as_file_mut())?;
            // A temporary file is private; the result gets the rights that a new file would have.
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                file.as_file().set_permissions(fs::Permissions::from_mode(*mode))?;
            }
            let _ = mode;
            Ok(file)
        };
        written.push(write().map_err(|e| Failure::io(path, &e))?);
    }
    for (file, (path, _, _)) in written.into_iter().zip(files) {
        file.persist(path).map_err(|e| Failure::io(path, &e.error))?;
    }
    Ok(())
}
