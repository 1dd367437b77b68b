//! `infc profile`: where the time of a run goes, step by step, beside what the machine can do.

use super::compile::{self, How};
use super::model::{is_artifact, runtime_problem, say_if_too_many};
use super::profile_page;
use crate::say;
use crate::term::{Exit, Failure, Result};
use infc::engine::{self, Engine, Native};
use infc::inputs::{self, Source};
use infc::machine::Limits;
use infc_artifact::program::Step;
use infc_ir::Expr;
use infc_ir::expr::Node;
use infc_kernel::plan::Plan;
use infc_runtime::Model;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Compile a model and time each step of its runs
///
/// Shows for each launch its median time, its arithmetic and memory traffic at least needed, how much of the machine's measured peak that is, the kernel, its
/// plan, and the node it computes.
#[derive(clap::Args)]
pub struct Args {
    /// An ONNX file.
    model: PathBuf,
    /// Threads that work; 0 is one for each CPU [default: what the artifact was compiled for, or 1]
    #[arg(long, value_name = "N", value_parser = compile::threads())]
    threads: Option<u32>,
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

/// A step with its figures for one run.
pub struct Line {
    /// The kernel's name: the operators in it.
    pub kernel: String,
    /// How it is computed, in words.
    pub plan: String,
    /// The node in the model's words.
    pub node: String,
    /// Median time in a run.
    pub nanoseconds: f64,
    /// Arithmetic in a run.
    pub operations: f64,
    /// Bytes that it has to read and write in a run.
    pub bytes: f64,
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
    /// bf16 in tiles.
    TilesOfBf16,
}

impl Line {
    /// Its speed as a share of what the machine can do: of arithmetic, or of reading from memory, whichever bounds it.
    pub fn share(&self, limits: &Limits) -> f64 {
        let arithmetic = self.operations / self.peak(limits);
        let memory = self.bytes / limits.memory_gbs();
        if self.nanoseconds > 0.0 { arithmetic.max(memory) / self.nanoseconds } else { 0.0 }
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
    if is_artifact(&args.model)? {
        let help =
            "give the ONNX file that it was made from, with --cpu NAME for one of its variants; `infc bench` times artifacts";
        return Err(Failure::usage("an artifact does not say what its kernels were made from", help));
    }
    let how = args.how.options()?;
    let graph = compile::import(&args.model)?;
    let dims = args.how.dims();
    let make = |&v: &infc_ir::Value| inputs::make(&Source::Random(0), &graph.value(v).name, graph.ty(v), &dims);
    let inputs = graph.inputs().iter().map(make).collect::<std::result::Result<Vec<_>, _>>()?;
    let symbols: BTreeMap<&str, i64> = engine::symbols_of(&graph, &inputs);
    let compiled = compile::compile(&args.model, &how)?;
    let model = Model::from_bytes(&compiled.artifact).map_err(|e| runtime_problem(&args.model, &e))?;
    let options =
        infc_runtime::Options { threads: args.threads.map(|n| n as usize), profile: true, ..infc_runtime::Options::default() };
    let mut native = Native::new(model, options)?;
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
    let limits = Limits::measure(&how.target, 1, MEASURE)?;
    let mut lines = lines(&compiled, &times, &symbols);
    let total: f64 = lines.iter().map(|l| l.nanoseconds).sum();
    if let Some(path) = &args.html {
        compile::write_file(path, profile_page::page(&args.model.display().to_string(), &lines, &limits).as_bytes())?;
    }
    if args.json {
        say!(
            "{}",
            serde_json::json!({
                "runs": runs, "total_ms": total / 1e6, "limits": limits,
                "steps": lines.iter().map(|l| as_json(l, &limits)).collect::<Vec<_>>(),
            })
        );
        return Ok(Exit::Ok);
    }
    say!("{:>10}  {:>5}  {:>8}  {:>7}  {:>6}  {:>5}  kernel, plan, node", "us", "%", "GFLOP/s", "GB/s", "% peak", "calls");
    lines.sort_by(|a, b| b.nanoseconds.total_cmp(&a.nanoseconds));
    for l in lines.iter().take(args.top) {
        let Line { kernel, plan, node, nanoseconds: ns, .. } = l;
        let (share, flops, bytes) = (100.0 * ns / total, rate(l.operations, *ns), rate(l.bytes, *ns));
        let of_peak = 100.0 * l.share(&limits);
        say!(
            "{:10.1}  {share:5.1}  {flops:8.1}  {bytes:7.1}  {of_peak:6.0}  {:5.0}  {kernel} | {plan} | {node}",
            ns / 1e3,
            l.calls
        );
    }
    let all: f64 = lines.iter().map(|l| l.operations).sum();
    say!("{} steps in {:.3} ms, {:.2} GFLOP, {:.1} GFLOP/s", lines.len(), total / 1e6, all / 1e9, rate(all, total));
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

fn as_json(l: &Line, limits: &Limits) -> serde_json::Value {
    serde_json::json!({
        "kernel": l.kernel, "plan": l.plan, "node": l.node, "us": l.nanoseconds / 1e3, "calls": l.calls, "operations": l.operations,
        "bytes": l.bytes, "of_peak": l.share(limits),
    })
}

/// The launches with their figures; other steps take no time worth showing.
fn lines(compiled: &infc::Compiled, times: &[(f64, f64)], symbols: &BTreeMap<&str, i64>) -> Vec<Line> {
    let mut out = vec![];
    let mut notes = compiled.lowered.launches.iter();
    let mut number = 0;
    visit(&compiled.lowered.program.steps, &mut |step| {
        let (ns, calls) = times.get(number).copied().unwrap_or_default();
        number += 1;
        let Step::Launch { kernel, .. } = step else { return };
        let (Some(note), k) = (notes.next(), *kernel as usize) else { return };
        // Symbols that only steps set have no value here: such amounts are left out.
        let value = |e: Expr| match e.node() {
            Node::Sym(s) => symbols.get(*s).copied(),
            _ => None,
        };
        let amount = |e: Expr| e.eval(&value).unwrap_or(0) as f64;
        out.push(Line {
            kernel: compiled.lowered.kernels[k].name.clone(),
            plan: compiled.lowered.plans[k].as_ref().map_or_else(String::new, |p| p.to_string()),
            node: note.node.clone(),
            nanoseconds: ns,
            operations: amount(note.operations) * calls,
            bytes: amount(note.bytes) * calls,
            calls,
            products: match &compiled.lowered.plans[k] {
                Some(Plan::Brgemm(p)) if p.row == "byte_dot" => Products::Bytes,
                Some(Plan::Brgemm(p)) if p.row == "bf16_dot" => Products::Bf16,
                Some(Plan::Matrix(p)) if p.row == "amx_bf16" => Products::TilesOfBf16,
                Some(Plan::Matrix(_)) => Products::TilesOfBytes,
                Some(Plan::Elementwise(p)) if p.taps.is_some() => Products::Bytes,
                _ => Products::Plain,
            },
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
