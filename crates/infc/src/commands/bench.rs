//! `infc bench`: how long loading and running take, and how much memory.

use super::compile::{How, write_artifact};
use super::model;
use super::run;
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use infc::engine::Native;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time an artifact or a model: load, first run, steady runs, peak memory
#[derive(clap::Args)]
pub struct Args {
    /// An artifact (.infc), or an ONNX file that is compiled first.
    model: PathBuf,
    /// Threads that work; 0 is one for each CPU [default: what the artifact was compiled for, or 1]
    #[arg(long, value_name = "N", value_parser = super::compile::threads())]
    threads: Option<u32>,
    /// The value of an input: a .npy file, a .pb file (TensorProto), random:SEED, zeros or ones. Inputs that are not given are random:0.
    #[arg(short, long = "input", value_name = "NAME=VALUE")]
    inputs: Vec<String>,
    /// How long to run.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How often to run at least.
    #[arg(long, default_value_t = 1, value_name = "N")]
    runs: u64,
    /// One JSON object: load_ms first_ms min_ms median_ms p99_ms runs threads variant, and bytes of memory: peak_rss, the most that this
    /// process ever had in RAM, base_rss, that of before the model was loaded, weights, arena, scratch, and held (inputs and outputs); rss_first and rss_last, that of after the
    /// first runs and the last one, and the same of memory free on a GPU, device_free_first and device_free_last. device_median_ms is the time of the steps on a GPU by its own clock, without
    /// the copies of inputs and outputs, of up to 100 further runs.
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
    let given = args.inputs.iter().map(|text| run::input(text)).collect::<std::result::Result<Vec<_>, _>>();
    let given = given.map_err(|e| Failure::usage(format!("--input: {e}"), "as for `infc run`"))?;
    if !model::is_artifact(&args.model)? {
        return compile_then_bench(args);
    }
    let base = peak_rss();
    let start = Instant::now();
    let mut loaded = model::load(&args.model, &args.how, args.threads)?;
    let load = start.elapsed();
    let inputs = run::values(&loaded.inputs, &given, &args.how)?;
    let engine = &mut loaded.engine;
    inputs.iter().enumerate().try_for_each(|(i, item)| engine.set(i, item))?;
    // Inputs that outputs take the place of are set for each run, so that all do the same.
    let model = engine.session().model().clone();
    let states: Vec<_> = inputs.into_iter().enumerate().filter(|(i, _)| model.inputs()[*i].state.is_some()).collect();
    let one = |engine: &mut Native| -> std::result::Result<Duration, infc_ir::Problems> {
        states.iter().try_for_each(|(i, item)| engine.set(*i, item))?;
        let start = Instant::now();
        engine.run_set()?;
        Ok(start.elapsed())
    };
    let begin = Instant::now();
    let first = one(engine)?;
    let mut times = Times::default();
    // What is kept from run to run is there after a few.
    let settled = (args.runs / 10).min(100);
    let mut before = held(engine)?;
    while times.runs < args.runs.max(1) || begin.elapsed() < Duration::from_secs_f64(args.seconds) {
        times.push(one(engine)?);
        if times.runs == settled {
            before = held(engine)?;
        }
    }
    let after = held(engine)?;
    let device = if args.json { device_times(engine, one, times.runs.min(100))? } else { vec![] };
    times.kept.sort();
    let at = |share: f64| times.kept[((times.kept.len() - 1) as f64 * share).round() as usize];
    let (min, median, p99) = (times.min, at(0.5), at(0.99));
    let (peak, memory) = (peak_rss(), engine.session().memory());
    if args.json {
        let ms = |t: Duration| t.as_secs_f64() * 1e3;
        say!(
            "{}",
            serde_json::json!({
                "load_ms": ms(load), "first_ms": ms(first), "min_ms": ms(min), "median_ms": ms(median), "p99_ms": ms(p99),
                "peak_mib": peak.map(|p| p as f64 / 1_048_576.0), "peak_rss": peak, "base_rss": base, "weights": memory.constants,
                "arena": memory.arena, "scratch": memory.scratch, "held": memory.held, "runs": times.runs + 1,
                "rss_first": before[0], "rss_last": after[0], "device_free_first": before[1], "device_free_last": after[1],
                "device_median_ms": device.get(device.len() / 2), "variant": model.requirements().name, "threads": loaded.threads,
            })
        );
        return Ok(Exit::Ok);
    }
    let (load, first, min, median, p99) =
        (term::time(load), term::time(first), term::time(min), term::time(median), term::time(p99));
    say!("load {load}, first run {first}, then {} runs: min {min}, median {median}, p99 {p99}", times.runs);
    let known = |bytes: Option<u64>| bytes.map_or("?".to_owned(), term::bytes);
    say!(
        "peak memory {}: weights {}, arena {}, scratch {}, inputs and outputs {}, the program before loading {}",
        known(peak),
        term::bytes(memory.constants),
        term::bytes(memory.arena),
        term::bytes(memory.scratch),
        term::bytes(memory.held),
        known(base)
    );
    Ok(Exit::Ok)
}

/// Milliseconds that runs take by the clock of the GPU, in order; none if the model runs on the CPU.
fn device_times(
    engine: &mut Native,
    one: impl Fn(&mut Native) -> std::result::Result<Duration, infc_ir::Problems>,
    runs: u64,
) -> std::result::Result<Vec<f32>, infc_ir::Problems> {
    if engine.device_free()?.is_none() {
        return Ok(vec![]);
    }
    engine.time_device(true)?;
    // What the first one captures is replayed by the others.
    one(engine)?;
    let mut times = vec![];
    for _ in 0..runs {
        one(engine)?;
        times.extend(engine.session().device_time());
    }
    engine.time_device(false)?;
    times.sort_by(f32::total_cmp);
    Ok(times)
}

/// Times of runs. Of very many an even choice is kept, so that they take little memory.
struct Times {
    kept: Vec<Duration>,
    /// One of so many is kept.
    every: u64,
    runs: u64,
    min: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times { kept: vec![], every: 1, runs: 0, min: Duration::MAX }
    }
}

impl Times {
    const MOST: usize = 1 << 14;

    fn push(&mut self, time: Duration) {
        self.min = self.min.min(time);
        if self.runs % self.every == 0 {
            self.kept.push(time);
        }
        self.runs += 1;
        if self.kept.len() == Times::MOST {
            let mut odd = false;
            self.kept.retain(|_| {
                odd = !odd;
                odd
            });
            self.every *= 2;
        }
    }
}

/// Compiles to a temporary file and times that in a process of its own, so that the compiler's memory is not counted.
fn compile_then_bench(args: &Args) -> Result {
    let compiled = super::compile::compile(&args.model, &args.how.options()?)?;
    let here = |e: std::io::Error| Failure::io(&args.model, &e);
    let folder = tempfile::tempdir().map_err(here)?;
    let artifact = folder.path().join("model.infc");
    write_artifact(&artifact, &compiled.artifact)?;
    let mut command = Command::new(std::env::current_exe().map_err(here)?);
    command.arg("bench").arg(&artifact).arg(format!("--seconds={}", args.seconds)).arg(format!("--runs={}", args.runs));
    command.args(args.threads.map(|n| format!("--threads={n}")));
    command.args(args.how.dims().iter().map(|(name, size)| format!("--dim={name}={size}")));
    command.args(args.inputs.iter().map(|text| format!("--input={text}")));
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

/// The most bytes that this process ever had in RAM, where the operating system tells.
fn peak_rss() -> Option<u64> {
    process_memory("VmHWM:")
}

/// What this process has in RAM, and what is free on the GPU.
fn held(engine: &Native) -> std::result::Result<[Option<u64>; 2], infc_ir::Problems> {
    Ok([process_memory("VmRSS:"), engine.device_free()?])
}

fn process_memory(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_times_an_even_choice_is_kept() {
        let mut times = Times::default();
        let runs = 5 * Times::MOST as u64;
        (0..runs).rev().for_each(|n| times.push(Duration::from_nanos(n)));
        assert_eq!((times.runs, times.min), (runs, Duration::ZERO));
        assert!(times.kept.len() < Times::MOST && times.kept.len() > Times::MOST / 4);
        let gap = times.kept[0] - times.kept[1];
        assert!(times.kept.windows(2).all(|w| w[0] - w[1] == gap), "{gap:?}");
    }
}
