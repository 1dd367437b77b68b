//! `infc profile`: where the time of a run goes, step by step, beside what the machine can do.

use super::compile::{self, How};
use super::model::{is_artifact, known_dims, open, runtime_problem, say_if_too_many};
use super::profile_page;
use super::run;
use crate::say;
use crate::term::{Exit, Failure, Result};
use infc::compile::Note;
use infc::engine::{self, Engine, Native};
use infc::inputs::Source;
use infc::machine::Limits;
use infc::target;
use infc_artifact::container::{Kind, Reader};
use infc_artifact::program::{Program, Step};
use infc_ir::expr::Node;
use infc_ir::interp::Item;
use infc_ir::{Expr, Problems};
use infc_kernel::target::TargetDesc;
use infc_runtime::Model;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time each step of a model's or an artifact's runs
///
/// Shows for each launch its median time, its arithmetic and memory traffic at least needed, how much of the machine's measured peak that is (of
/// arithmetic, or of reading from the nearest memory that holds all its data), the kernel, its plan, and the node it computes. An artifact has plans and
/// nodes if it was compiled with --notes.
#[derive(clap::Args)]
pub struct Args {
    /// An ONNX file, which is compiled, or an artifact (.infc).
    model: PathBuf,
    /// Threads that work; 0 is one for each CPU [default: what the artifact was compiled for, or 1]
    #[arg(long, value_name = "N", value_parser = compile::threads())]
    threads: Option<u32>,
    /// The value of an input: a .npy file, a .pb file (TensorProto), random:SEED, zeros or ones. Inputs that are not given are random:0.
    #[arg(short, long = "input", value_name = "NAME=VALUE")]
    inputs: Vec<String>,
    /// How long to run.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Show only the slowest steps.
    #[arg(long, default_value_t = 30)]
    top: usize,
    /// Report all steps as one JSON object.
    #[arg(long)]
    json: bool,
    /// Also write a page with a timeline and a roofline plot.
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

/// How long the limits of the machine are measured.
const MEASURE: Duration = Duration::from_millis(400);

/// A step with its figures for one run. `None` is what an artifact does not say.
pub struct Line {
    /// The kernel's name: the operators in it.
    pub kernel: String,
    /// How it is computed, in words.
    pub plan: Option<String>,
    /// The node in the model's words.
    pub node: Option<String>,
    /// Median time in a run.
    pub nanoseconds: f64,
    /// Arithmetic in a run.
    pub operations: Option<f64>,
    /// Bytes that it has to read and write in a run.
    pub bytes: Option<f64>,
    /// How often it runs.
    pub calls: f64,
    /// What its arithmetic is made of.
    pub products: Products,
}

/// What a step multiplies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Products {
    /// Numbers as they are.
    Plain,
    /// Bytes, by an instruction for several at once.
    Bytes,
    /// bf16, by an instruction for several at once.
    Bf16,
    /// Bytes in tiles.
    TilesOfBytes,
    /// bf16 in tiles, or f16, of which they take as many.
    TilesOfBf16,
}

impl Line {
    /// A step of which nothing but its time is known.
    fn bare(kernel: String, node: Option<String>, (nanoseconds, calls): (f64, f64)) -> Line {
        let (plan, operations, bytes) = (None, None, None);
        Line { kernel, plan, node, nanoseconds, operations, bytes, calls, products: Products::Plain }
    }
    /// Its speed as a share of what the machine can do: of arithmetic, or of reading from the nearest memory that holds what a call reads and
    /// writes, whichever bounds it.
    pub fn share(&self, limits: &Limits) -> Option<f64> {
        let arithmetic = self.operations? / self.peak(limits);
        let memory = self.bytes? / limits.gbs_of(self.bytes? / self.calls.max(1.0));
        Some(if self.nanoseconds > 0.0 { arithmetic.max(memory) / self.nanoseconds } else { 0.0 })
    }
    /// The peak of its arithmetic, in billions of operations a second.
    pub fn peak(&self, limits: &Limits) -> f64 {
        let peak = match self.products {
            Products::Plain => None,
            Products::Bytes => limits.int8_gops,
            Products::Bf16 => limits.bf16_gflops,
            Products::TilesOfBytes => limits.tile_int8_gops,
            Products::TilesOfBf16 => limits.tile_bf16_gflops,
        };
        peak.unwrap_or(limits.f32_gflops)
    }
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    if !(args.seconds >= 0.0 && args.seconds.is_finite()) {
        return Err(Failure::usage("--seconds must be a number that is at least 0", ""));
    }
    let given = args.inputs.iter().map(|text| run::input(text)).collect::<std::result::Result<Vec<_>, _>>();
    let given = given.map_err(|e| Failure::usage(format!("--input: {e}"), "as for `infc run`"))?;
    let Loaded { mut native, inputs, symbols, program, notes, target } =
        if is_artifact(&args.model)? { artifact(args, &given)? } else { compiled(args, &given)? };
    if args.html.is_some() && target.block_threads > 0 {
        return Err(Failure::usage("--html shows steps beside the limits of a CPU, and this runs on a GPU", "leave it out"));
    }
    say_if_too_many(native.session().threads());
    native.run(&inputs)?;
    let mut before = native.session().times().to_vec();
    let mut samples: Vec<Vec<u64>> = vec![vec![]; before.len()];
    let begin = Instant::now();
    let mut calls = vec![0; before.len()];
    let mut runs = 0;
    while runs == 0 || begin.elapsed() < Duration::from_secs_f64(args.seconds) {
        native.run(&inputs)?;
        let now = native.session().times();
        for (step, (now, before)) in now.iter().zip(&before).enumerate() {
            samples[step].push(now.nanoseconds - before.nanoseconds);
            calls[step] += now.calls - before.calls;
        }
        before = now.to_vec();
        runs += 1;
    }
    let median = |s: &mut Vec<u64>| {
        s.sort_unstable();
        s[s.len() / 2] as f64
    };
    let times: Vec<(f64, f64)> =
        samples.iter_mut().zip(&calls).map(|(s, &calls)| (median(s), calls as f64 / f64::from(runs))).collect();
    // What a GPU could do is not measured.
    let limits = if target.block_threads > 0 { None } else { Some(Limits::measure(&target, 1, MEASURE)?) };
    let mut lines = lines(&program, notes.as_deref(), &times, &symbols);
    let missing = notes.is_none();
    let total: f64 = lines.iter().map(|l| l.nanoseconds).sum();
    if let (Some(path), Some(limits)) = (&args.html, &limits) {
        let page = profile_page::page(&args.model.display().to_string(), &lines, limits, missing.then_some(MISSING));
        compile::write_file(path, page.as_bytes())?;
    }
    if args.json {
        say!(
            "{}",
            serde_json::json!({
                "runs": runs, "total_ms": total / 1e6, "limits": limits,
                "missing": missing.then_some(MISSING),
                "steps": lines.iter().map(|l| as_json(l, limits.as_ref())).collect::<Vec<_>>(),
            })
        );
        return Ok(Exit::Ok);
    }
    say!("{:>10}  {:>5}  {:>8}  {:>7}  {:>6}  {:>5}  kernel, plan, node", "us", "%", "GFLOP/s", "GB/s", "% peak", "calls");
    lines.sort_by(|a, b| b.nanoseconds.total_cmp(&a.nanoseconds));
    for l in lines.iter().take(args.top) {
        let ns = l.nanoseconds;
        let number = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        let flops = number(l.operations.map(|n| rate(n, ns)), 1);
        let bytes = number(l.bytes.map(|n| rate(n, ns)), 1);
        let of_peak = number(limits.as_ref().and_then(|limits| l.share(limits)).map(|s| 100.0 * s), 0);
        let how: Vec<&str> =
            [Some(&l.kernel), l.plan.as_ref(), l.node.as_ref()].into_iter().flatten().map(String::as_str).collect();
        let (us, share, calls, how) = (ns / 1e3, 100.0 * ns / total, l.calls, how.join(" | "));
        say!("{us:10.1}  {share:5.1}  {flops:>8}  {bytes:>7}  {of_peak:>6}  {calls:5.0}  {how}");
    }
    let all: Option<f64> = lines.iter().map(|l| l.operations).sum();
    let work = all.map_or(String::new(), |all| format!(", {:.2} GFLOP, {:.1} GFLOP/s", all / 1e9, rate(all, total)));
    say!("{} steps in {:.3} ms{work}", lines.len(), total / 1e6);
    if missing {
        say!("note: {MISSING}");
    }
    let Some(limits) = limits else {
        say!("note: each step on the GPU was waited for, so that its time has some microseconds of a launch in it");
        return Ok(Exit::Ok);
    };
    let int8 = limits.int8_gops.map_or(String::new(), |g| format!(", {g:.0} GOP/s of bytes"));
    let bf16 = limits.bf16_gflops.map_or(String::new(), |g| format!(", {g:.0} GFLOP/s in bf16"));
    say!(
        "one thread of this machine: {:.0} GFLOP/s in f32{int8}{bf16}, reads {:.1} GB/s from memory",
        limits.f32_gflops,
        limits.memory_gbs()
    );
    Ok(Exit::Ok)
}

/// Something by nanoseconds; 0 where no time was measured.
fn rate(amount: f64, nanoseconds: f64) -> f64 {
    if nanoseconds > 0.0 { amount / nanoseconds } else { 0.0 }
}

fn as_json(l: &Line, limits: Option<&Limits>) -> serde_json::Value {
    serde_json::json!({
        "kernel": l.kernel, "plan": l.plan, "node": l.node, "us": l.nanoseconds / 1e3, "calls": l.calls, "operations": l.operations,
        "bytes": l.bytes, "of_peak": limits.and_then(|limits| l.share(limits)),
    })
}

/// What is said where an artifact has no notes.
const MISSING: &str =
    "this artifact says neither nodes nor plans, nor how much its steps compute; `infc compile --notes` stores that";

/// What is to be timed.
struct Loaded {
    native: Native,
    inputs: Vec<Item>,
    symbols: BTreeMap<String, i64>,
    program: Program,
    /// On each launch, if they are known.
    notes: Option<Vec<Note>>,
    target: TargetDesc,
}

fn session_options(args: &Args) -> infc_runtime::Options {
    infc_runtime::Options { threads: args.threads.map(|n| n as usize), profile: true, ..infc_runtime::Options::default() }
}

/// Of an ONNX file.
fn compiled(args: &Args, given: &[(String, Source)]) -> std::result::Result<Loaded, Failure> {
    let how = args.how.options()?;
    let graph = compile::import(&args.model)?;
    let ports: Vec<_> = graph.inputs().iter().map(|&v| (graph.value(v).name.clone(), graph.ty(v).clone())).collect();
    let inputs = run::values(&ports, given, &args.how)?;
    let symbols = engine::symbols_of(&graph, &inputs).into_iter().map(|(name, size)| (name.to_owned(), size)).collect();
    let compiled = compile::compile(&args.model, &how)?;
    let model = Model::from_bytes(&compiled.artifact.to_bytes()).map_err(|e| runtime_problem(&args.model, &e))?;
    let native = Native::new(model, session_options(args))?;
    let notes = Some(infc::compile::notes(&compiled.lowered));
    Ok(Loaded { native, inputs, symbols, program: compiled.lowered.program, notes, target: how.target })
}

/// Of an artifact.
fn artifact(args: &Args, given: &[(String, Source)]) -> std::result::Result<Loaded, Failure> {
    let model = open(&args.model, &args.how)?;
    let name = model.requirements().name.clone();
    // The limits are those of the machine that the variant is for, or of this computer if it is unknown by that name.
    let target = target::find(&name).or_else(|_| target::native())?;
    let notes = stored_notes(&args.model, &name)?;
    let program = model.program().clone();
    if let Some(notes) = notes.as_ref().filter(|n| n.len() != infc::compile::launches(&program.steps)) {
        let message = format!("its debug text has notes on {} launches, and it has others", notes.len());
        return Err(Problems::one(args.model.display().to_string(), message, "compile the model again with --notes").into());
    }
    let mut native = Native::new(model, session_options(args))?;
    known_dims(&args.model, &mut native, &args.how)?;
    let mut symbols = BTreeMap::new();
    let ports = native.inputs();
    let inputs = run::values(&ports, given, &args.how)?;
    for ((_, ty), item) in ports.iter().zip(&inputs) {
        if let (Some(ty), Some(t)) = (ty.as_tensor(), item.as_tensor()) {
            let known = ty.dims.iter().zip(&t.dims).filter_map(|(&d, &size)| Some((engine::symbol(d)?.to_owned(), size as i64)));
            symbols.extend(known);
        }
    }
    Ok(Loaded { native, inputs, symbols, program, notes, target })
}

/// The notes of an artifact on this variant, if it has any.
fn stored_notes(path: &Path, variant: &str) -> std::result::Result<Option<Vec<Note>>, Failure> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io(path, &e))?;
    let wrong = |message: String| Problems::one(path.display().to_string(), message, "compile the model again with --notes");
    let reader = Reader::open(&bytes).map_err(|e| wrong(e.to_string()))?;
    let Some(section) = reader.find(Kind::Debug, 0).filter(|s| s.length > 0) else { return Ok(None) };
    reader.check(section).map_err(|e| wrong(e.to_string()))?;
    let all: Vec<Vec<Note>> =
        serde_json::from_slice(reader.bytes(section)).map_err(|e| wrong(format!("its debug text is no list of notes: {e}")))?;
    let number = reader.requirements().iter().position(|r| r.name == variant);
    Ok(number.and_then(|k| all.into_iter().nth(k)))
}

/// What a plan multiplies, by its text.
fn products(plan: &str) -> Products {
    let has = |word: &str| plan.split(' ').any(|w| w.starts_with(word));
    match () {
        () if has("row=byte_dot") || has("taps=") || has("byte_blocks") => Products::Bytes,
        () if has("row=bf16_dot") => Products::Bf16,
        () if has("row=amx_bf16") || has("row=amx_f16") => Products::TilesOfBf16,
        () if has("row=amx_") => Products::TilesOfBytes,
        () => Products::Plain,
    }
}

/// The launches with their figures; other steps take no time worth showing.
fn lines(program: &Program, notes: Option<&[Note]>, times: &[(f64, f64)], symbols: &BTreeMap<String, i64>) -> Vec<Line> {
    let mut out = vec![];
    let (mut number, mut launch) = (0, 0);
    visit(&program.steps, &mut |step| {
        let (ns, calls) = times.get(number).copied().unwrap_or_default();
        number += 1;
        let kernel = match step {
            Step::Launch { kernel, .. } => program.kernels[*kernel as usize].name.clone(),
            Step::HostLaunch { kernel, .. } => format!("on the host: {}", program.host_kernels[*kernel as usize].name),
            Step::Host { routine, code, .. } if program.two_sided() => {
                let node = program.messages.get(*code as usize).map(|m| m.node.clone());
                out.push(Line::bare(format!("on the host: routine {routine}"), node, (ns, calls)));
                return;
            }
            Step::ToHost { buffer } | Step::ToDevice { buffer } => {
                let to = if matches!(step, Step::ToHost { .. }) { "to the host" } else { "to the GPU" };
                out.push(Line::bare(format!("copy {to}: buffer {buffer}"), None, (ns, calls)));
                return;
            }
            _ => return,
        };
        let note = notes.and_then(|n| n.get(launch));
        launch += 1;
        // Symbols that only steps set have no value here: such amounts are left out.
        let value = |e: Expr| match e.node() {
            Node::Sym(s) => symbols.get(*s).copied(),
            _ => None,
        };
        let amount = |text: &String| text.parse::<Expr>().ok().and_then(|e| e.eval(&value)).unwrap_or(0) as f64 * calls;
        out.push(Line {
            kernel,
            plan: note.map(|n| n.plan.clone()),
            node: note.map(|n| n.node.clone()),
            nanoseconds: ns,
            operations: note.map(|n| amount(&n.operations)),
            bytes: note.map(|n| amount(&n.bytes)),
            calls,
            products: note.map_or(Products::Plain, |n| products(&n.plan)),
        });
    });
    out
}

/// Steps in depth-first order, as the runtime numbers them.
fn visit(steps: &[Step], see: &mut dyn FnMut(&Step)) {
    for step in steps {
        see(step);
        match step {
            Step::If { then, otherwise, .. } => [then, otherwise].into_iter().for_each(|s| visit(s, see)),
            Step::Loop { body, .. } => visit(body, see),
            _ => {}
        }
    }
}
