//! `infc bench`: how long loading and running take, and how much memory.

use super::compile::{How, write_file};
use super::model;
use super::run;
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use infc::inputs::Source;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time an artifact or a model: load, first run, steady runs, peak memory
#[derive(clap::Args)]
pub struct Args {
    /// An artifact (.infc), or an ONNX file that is compiled first.
    model: PathBuf,
    /// Threads that work; 0 is one for each CPU [default: what the artifact was compiled for, or 1]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// How long to run.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// One JSON object: load_ms first_ms min_ms median_ms p99_ms peak_mib runs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    how: How,
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    if !(args.seconds >= 0.0 && args.seconds.is_finite()) {
        return Err(Failure::usage("--seconds must be a number that is at least 0", ""));
    }
    if !model::is_artifact(&args.model)? {
        return compile_then_bench(args);
    }
    let start = Instant::now();
    let mut loaded = model::load(&args.model, &args.how, args.threads)?;
    let load = start.elapsed();
    let random: Vec<_> = loaded.inputs.iter().map(|(n, _)| (n.clone(), Source::Random(0))).collect();
    let inputs = run::values(&loaded, &random, &args.how)?;
    let mut times = vec![];
    let begin = Instant::now();
    while times.len() < 2 || begin.elapsed() < Duration::from_secs_f64(args.seconds) {
        let start = Instant::now();
        loaded.engine.run(&inputs)?;
        times.push(start.elapsed());
    }
    let first = times.remove(0);
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    let (min, median, p99) = (times[0], at(0.5), at(0.99));
    let peak = peak_mib();
    if args.json {
        let ms = |t: Duration| t.as_secs_f64() * 1e3;
        say!(
            "{}",
            serde_json::json!({
                "load_ms": ms(load), "first_ms": ms(first), "min_ms": ms(min), "median_ms": ms(median), "p99_ms": ms(p99),
                "peak_mib": peak, "runs": times.len() + 1, "threads": loaded.threads,
            })
        );
        return Ok(Exit::Ok);
    }
    let (load, first, min, median, p99) =
        (term::time(load), term::time(first), term::time(min), term::time(median), term::time(p99));
    let peak = peak.map_or("?".to_owned(), |p| format!("{p:.1} MiB"));
    say!("load {load}, first run {first}, then {} runs: min {min}, median {median}, p99 {p99}; peak memory {peak}", times.len());
    Ok(Exit::Ok)
}

/// Compiles to a temporary file and times that in a process of its own, so that the compiler's memory is not counted.
fn compile_then_bench(args: &Args) -> Result {
    let compiled = super::compile::compile(&args.model, &args.how.options()?)?;
    let here = |e: std::io::Error| Failure::io(&args.model, &e);
    let folder = tempfile::tempdir().map_err(here)?;
    let artifact = folder.path().join("model.infc");
    write_file(&artifact, &compiled.artifact)?;
    let mut command = Command::new(std::env::current_exe().map_err(here)?);
    command.arg("bench").arg(&artifact).arg(format!("--seconds={}", args.seconds));
    command.args(args.threads.map(|n| format!("--threads={n}")));
    command.args(args.how.dims().iter().map(|(name, size)| format!("--dim={name}={size}")));
    if args.json {
        command.arg("--json");
    }
    let status = command.stdin(Stdio::null()).status().map_err(here)?;
    Ok(match status.code() {
        Some(0) => Exit::Ok,
        Some(4) => Exit::Io,
        _ => Exit::Rejected,
    })
}

/// The most memory this process ever had in RAM.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}
