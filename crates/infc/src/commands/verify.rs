//! `infc verify`: a backend's outputs against stored ones.

use super::compile::{Beside, How};
use super::model;
use crate::say;
use crate::term::{Exit, Failure, Result, Style, progress};
use infc::cases::{self, Case};
use infc::compare;
use infc::engine::Backend;
use infc::gaps::Gaps;
use infc::remote::Elsewhere;
use infc::target;
use infc::verify::{self, Options, Report, Verdict};
use infc_ir::Problems;
use infc_kernel::target::Math;
use std::path::PathBuf;

/// Run models on stored inputs and compare the outputs with the stored ones
///
/// A model file by itself is compared with the interpreter on made-up inputs. Each link of the way from the model to code can be asked for: --backend interp,
/// passes, loops, llvm, cranelift, c, ptx.
///
/// Equal means: dtype and shape exact, NaN equals NaN, infinities by sign, |got - want| <= atol + rtol * |want|. Where that does not
/// hold, an output that a quantiser produced may be one step off in at most 1 % of its elements, and a float output downstream
/// of integer arithmetic must have an SQNR of at least 40 dB and the same top-1; one of random numbers the same statistics. With --math, float
/// outputs need an SQNR of at least 20 dB (bf16) or 38 dB (tf32, f16), and a top-1 that is the same but for numbers closer than the noise; with
/// --math winograd numbers are compared as without.
#[derive(clap::Args)]
pub struct Args {
    /// Folders with model.onnx and test_data_set_*/{input,output}_*.pb, folders of such folders, or ONNX files.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// What runs the models; `infc targets` lists them [default: what runs code for the target]
    #[arg(long, value_parser = backend)]
    backend: Option<Backend>,
    /// Allowed relative difference [default: tol.json of the folder, else 1e-3]
    #[arg(long, value_parser = tolerance)]
    rtol: Option<f64>,
    /// Allowed absolute difference [default: tol.json of the folder, else 1e-4]
    #[arg(long, value_parser = tolerance)]
    atol: Option<f64>,
    /// Tolerances alone decide: nothing is excused because of quantisers.
    #[arg(long)]
    strict: bool,
    /// Compile anew for the shapes of each data set, instead of once with symbolic dims.
    #[arg(long = "static")]
    fixed: bool,
    /// The machine to compile for [default: native]
    #[arg(long, value_name = "NAME|FILE.toml")]
    target: Option<String>,
    /// Short for --target with a CPU. With --artifact, the variant to run instead of the best one for this computer.
    #[arg(long, value_name = "NAME", conflicts_with = "target")]
    cpu: Option<String>,
    /// Run this artifact instead of compiling the model, of which there must be one.
    #[arg(long, value_name = "FILE.infc", conflicts_with_all = ["backend", "target", "fixed", "bisect"])]
    artifact: Option<PathBuf>,
    /// Run the code on another computer: the words that start infc-worker there, of the same version: 'ssh board infc-worker', 'qemu-aarch64 ./infc-worker'
    #[arg(long, value_name = "COMMAND", conflicts_with = "artifact")]
    on: Option<String>,
    /// Take products of f32 in fewer bits, or fewer of them, as `infc compile --math` does: bf16, tf32, f16 or winograd [default: f32]. With --artifact, what it was
    /// compiled with: it decides how close outputs have to be.
    #[arg(long, value_name = "KIND", value_parser = super::compile::math)]
    math: Option<Math>,
    #[command(flatten)]
    beside: Beside,
    /// Value of a symbolic dim for made-up inputs [default: 1]
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = super::compile::dim)]
    dims: Vec<(String, i64)>,
    /// Where outputs differ, name the first node, pass or kernel where two links of the chain part: stored outputs, interpreter,
    /// passes, loops, machine code
    #[arg(long)]
    bisect: bool,
    /// Leave out models that take more than so many million operations for their first data set; they are listed and not counted.
    #[arg(long, value_name = "MFLOP", value_parser = tolerance)]
    max_mflop: Option<f64>,
    /// A list of models that are known to fail, a line `NAME: REASON` each. They may fail; one that passes, or that is not there, is an
    /// error.
    #[arg(long, value_name = "FILE")]
    gaps: Option<PathBuf>,
    /// Models at a time.
    #[arg(long, short, default_value_t = 2)]
    jobs: usize,
    /// Print only failures and the closing line.
    #[arg(long, short)]
    quiet: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// A backend by its name.
pub fn backend(name: &str) -> std::result::Result<Backend, String> {
    Backend::named(name).ok_or_else(|| {
        let known: Vec<_> = Backend::ALL.iter().map(|b| b.name()).collect();
        format!("this build has {}", known.join(", "))
    })
}

fn tolerance(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|n: &f64| *n >= 0.0).ok_or_else(|| "must be a number that is at least 0".to_owned())
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    let mut found: Vec<Case> = vec![];
    for path in &args.paths {
        if !path.exists() {
            return Err(Failure::io(path, &std::io::ErrorKind::NotFound.into()));
        }
        found.extend(cases::find(path)?);
    }
    let backend = args.backend.unwrap_or_else(|| chosen(args));
    let Args { rtol, atol, strict, fixed, bisect, max_mflop, jobs, .. } = *args;
    if let Some(path) = &args.gaps {
        std::fs::File::open(path).map_err(|e| Failure::io(path, &e))?;
    }
    let mut gaps = args.gaps.as_deref().map(Gaps::read).transpose()?.unwrap_or_default();
    let how = How::of(args.target.as_deref(), args.cpu.as_deref());
    let artifact = args.artifact.as_deref().map(|path| model::open(path, &how)).transpose()?;
    if artifact.is_some() && found.len() != 1 {
        let message = format!("--artifact runs one model, {} were found", found.len());
        return Err(Failure::usage(message, "name the folder or file of the model that it was compiled from"));
    }
    let machine = backend.machine();
    let default = machine.as_ref().map_or("native", |m| &m.name);
    let mut target = match (&args.cpu, &artifact) {
        (Some(_), None) => how.options()?.target,
        _ => {
            let name = args.target.as_deref().unwrap_or(default);
            target::find(name).map_err(|problems| Failure::target(name, problems))?
        }
    };
    if let Some(machine) = machine.filter(|_| !backend.takes(&target)) {
        let message = format!("target '{}' is of the {} backend, for {}", target.name, target.backend, target.arch);
        let help = format!(
            "leave out --target, or name one that --backend {} runs, as {}; `infc targets` lists them",
            backend.name(),
            machine.name
        );
        return Err(Failure::usage(message, help));
    }
    if backend == Backend::Plugin && target.plugin.is_none() {
        let message = format!("target '{}' has no plugin", target.name);
        return Err(Failure::usage(message, "name a machine file with a table [plugin]: --target FILE.toml"));
    }
    if let Some(math) = args.math {
        if matches!(backend, Backend::Interp | Backend::Passes) && math != Math::F32 {
            let message =
                format!("--math is for compiled code; backend '{}' computes as the operators are defined", backend.name());
            return Err(Failure::usage(message, "leave it out, or name another one: --backend llvm"));
        }
        super::compile::set_math(&mut target, math)?;
    }
    if let Some(option) = args.beside.given()
        && (artifact.is_some() || matches!(backend, Backend::Interp | Backend::Passes))
    {
        let help = "leave it out, or name code that is compiled for a GPU: --backend ptx";
        return Err(Failure::usage(format!("{option} is for models that are compiled for a GPU"), help));
    }
    if let Some(option) = args.beside.given().filter(|_| bisect) {
        let help = "leave one of them out: nodes are told apart in code for the GPU alone";
        return Err(Failure::usage(format!("{option} and --bisect do not go together"), help));
    }
    let host = args.beside.options(&[&target])?;
    let math = target.math;
    let runs = matches!(backend, Backend::Interp | Backend::Passes | Backend::Loops | Backend::C)
        || ["ptx", "wasm"].contains(&backend.name());
    if args.on.is_some() && runs {
        let message = format!("--on is for compiled code that a runtime loads; backend '{}' runs here", backend.name());
        return Err(Failure::usage(message, "leave it out, or name a target of machine code: --target aarch64"));
    }
    let on = args.on.as_deref().map(Elsewhere::new).transpose()?;
    // Interpreters have no steps to tell apart.
    let compiled = artifact.is_some() || !matches!(backend, Backend::Interp | Backend::Passes);
    let options = Options {
        backend,
        rtol,
        atol,
        strict,
        fixed,
        bisect,
        max_mflop,
        jobs,
        dims: args.dims.iter().cloned().collect(),
        artifact,
        compile: infc::Options { host, on, ..infc::Options::for_target(target) },
    };
    let (style, width) = (Style::stdout(), found.iter().map(|c| c.name.len()).max().unwrap_or(0));
    let bar = progress(found.len());
    let reports = verify::all(&found, &options, &mut |report| {
        gaps.judge(report);
        if !args.json && (!args.quiet || matches!(report.verdict, Verdict::Failed(_))) {
            bar.suspend(|| say!("{}", line(report, width, style, math)));
        }
        bar.inc(1);
    });
    bar.finish_and_clear();
    gaps.all_met()?;
    let count = |f: fn(&Verdict) -> bool| reports.iter().filter(|r| f(&r.verdict)).count();
    let (passed, failed) = (count(|v| *v == Verdict::Passed), count(|v| matches!(v, Verdict::Failed(_))));
    let known = count(|v| matches!(v, Verdict::Gap(_)));
    let native = reports.iter().filter(|r| r.verdict == Verdict::Passed && r.host.is_empty()).count();
    let native = compiled.then_some(native);
    if args.json {
        let models: Vec<_> = reports.iter().map(as_json).collect();
        say!(
            "{}",
            serde_json::json!({ "models": models, "passed": passed, "failed": failed, "gaps": known, "no_host_step": native })
        );
    } else {
        let known = if known > 0 { format!(", {known} known gaps") } else { String::new() };
        let host = native.filter(|&n| n < passed).map(|n| format!(" ({n} with no host step)")).unwrap_or_default();
        say!("{passed} passed{host}, {failed} failed{known}");
    }
    if !reports.is_empty() && reports.iter().all(|r| r.verdict == Verdict::NoOutputs) {
        let help = "put test_data_set_0/{input,output}_0.pb beside model.onnx; or name the model file itself, which is compared with the interpreter";
        let problems = Problems::one("nothing was compared", "no model that was found has stored outputs", help);
        return Err(Failure { exit: Exit::Failed, problems });
    }
    Ok(if failed == 0 { Exit::Ok } else { Exit::Failed })
}

/// What runs code for the target that is asked for, or for this computer.
fn chosen(args: &Args) -> Backend {
    let machine = match (&args.target, &args.cpu) {
        (Some(name), _) => target::find(name),
        (None, Some(_)) => How::of(None, args.cpu.as_deref()).options().map_err(|f| f.problems).map(|o| o.target),
        (None, None) => target::native(),
    };
    machine.map_or(Backend::Loops, |m| Backend::of_machine(&m))
}

fn line(r: &Report, width: usize, style: Style, math: Math) -> String {
    let name = &r.name;
    let time = format!("{:>7.1} ms", r.time.as_secs_f64() * 1e3);
    match &r.verdict {
        Verdict::Passed => {
            let sets = format!("{} set{}", r.sets, if r.sets == 1 { " " } else { "s" });
            let worst = match r.worst.at.as_str() {
                "" => "exact".to_owned(),
                at => format!("largest error {:.2e} at {at}", r.worst.error),
            };
            let sqnr = match (r.worst.signal, compare::signal_needed(math)) {
                (Some(s), Some(needed)) if s.decides => format!("  SQNR {:.1} dB ({} needs {needed:.0})", s.sqnr, math.name()),
                (Some(s), _) => format!("  SQNR {:.1} dB", s.sqnr),
                _ => String::new(),
            };
            let host = if r.host.is_empty() { String::new() } else { format!("  on the host: {}", r.host.join(", ")) };
            format!("{}    {name:width$}  {}  {sets}  {worst}{sqnr}{host}", style.green("ok"), style.dim(&time))
        }
        Verdict::Failed(why) => {
            let indent = " ".repeat(width + 20);
            format!("{}  {name:width$}  {}  {}", style.red("FAIL"), style.dim(&time), why.replace('\n', &format!("\n{indent}")))
        }
        Verdict::TooLarge(mflop) => {
            format!("{}     {name:width$}  left out: a run takes {mflop:.0} million operations", style.dim("-"))
        }
        Verdict::Gap(reason) => format!("{}   {name:width$}  {}  {reason}", style.dim("gap"), style.dim(&time)),
        Verdict::NoOutputs => format!("{}     {name:width$}  no stored outputs to compare with", style.dim("-")),
    }
}

fn as_json(r: &Report) -> serde_json::Value {
    let (status, message) = match &r.verdict {
        Verdict::Passed => ("passed", None),
        Verdict::Failed(why) => ("failed", Some(why)),
        Verdict::Gap(reason) => ("gap", Some(reason)),
        Verdict::NoOutputs => ("no_outputs", None),
        Verdict::TooLarge(_) => ("too_large", None),
    };
    // JSON has no infinity: a difference that is no number is null.
    let error = Some(r.worst.error).filter(|e| e.is_finite());
    let sqnr = r.worst.signal.map(|s| s.sqnr).filter(|e| e.is_finite());
    serde_json::json!({
        "sqnr_db": sqnr, "name": r.name, "status": status, "sets": r.sets, "max_error": error, "at": r.worst.at, "message": message, "host": r.host,
        "ms": r.time.as_secs_f64() * 1e3,
    })
}
