//! `infc machine`: what this computer can do at most.

use crate::say;
use crate::term::{Exit, Failure, Result};
use infc::machine::Limits;
use infc::target;
use std::time::Duration;

/// Measure what this computer can do at most: arithmetic, reading, threads
///
/// These are the limits that `infc profile` compares kernels with.
#[derive(clap::Args)]
pub struct Args {
    /// A machine to make the code for, with less than this computer has: `x86-64-v3` [default: native]
    #[arg(long, value_name = "NAME|FILE.toml", default_value = "native")]
    target: String,
    /// Threads to compare with one; 0 is one for each CPU.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = super::compile::threads())]
    threads: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result {
    if !(args.seconds >= 0.0 && args.seconds.is_finite()) {
        return Err(Failure::usage("--seconds must be a number that is at least 0", ""));
    }
    let machine = target::find(&args.target)?;
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n as usize,
    };
    super::model::say_if_too_many(threads);
    let limits = Limits::measure(&machine, threads, Duration::from_secs_f64(args.seconds))?;
    if args.json {
        say!("{}", serde_json::to_value(&limits).expect("plain data"));
        return Ok(Exit::Ok);
    }
    say!("one thread, code for {}:", limits.target);
    say!("  {:34} {:8.1} GFLOP/s", "f32 multiply-add", limits.f32_gflops);
    match limits.int8_gops {
        Some(g) => say!("  {:34} {g:8.1} GOP/s", "int8 products added to i32"),
        None => say!("  {:34} {:>8}", "int8 products added to i32", "no instruction"),
    }
    match limits.bf16_gflops {
        Some(g) => say!("  {:34} {g:8.1} GFLOP/s", "bf16 products added to f32"),
        None => say!("  {:34} {:>8}", "bf16 products added to f32", "no instruction"),
    }
    if let Some(g) = limits.tile_int8_gops {
        say!("  {:34} {g:8.1} GOP/s", "int8 products in tiles");
    }
    if let Some(g) = limits.tile_bf16_gflops {
        say!("  {:34} {g:8.1} GFLOP/s", "bf16 products in tiles");
    }
    for r in &limits.read {
        let name = format!("reading from {} ({} KiB)", r.level, r.bytes >> 10);
        say!("  {name:34} {:8.1} GB/s", r.gbs);
    }
    if let Some(s) = &limits.scaling {
        say!("{} threads beside one: {:.2}x arithmetic, {:.2}x reading from memory", s.threads, s.arithmetic, s.memory);
        say!("  {:34} {:8.0} ns", "a cache line there and back", s.line_ns);
    }
    Ok(Exit::Ok)
}
