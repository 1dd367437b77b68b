//! `infc calibrate`: which values the inner tensors of a model take.

use super::compile::{self, How};
use super::compress::{self, MethodName, Samples};
use crate::say;
use crate::term::{self, Exit, Result};
use infc_compress::calibrate::{self, Ranges};
use infc_compress::layers;
use infc_compress::quantize::{self, Settings};
use std::path::PathBuf;

/// Run a model on samples and write the ranges of its inner values, for `infc quantize --ranges`
#[derive(clap::Args)]
pub struct Args {
    /// An ONNX file.
    model: PathBuf,
    #[command(flatten)]
    samples: Samples,
    /// Where to put the ranges.
    #[arg(short, long, value_name = "FILE.json")]
    output: PathBuf,
    #[command(flatten)]
    method: MethodName,
    #[command(flatten)]
    how: How,
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    let method = args.method.method()?;
    args.samples.check_drawn()?;
    super::files::writable(&args.output)?;
    let graph = quantize::for_integers(&layers::prepare(&compile::import(&args.model)?)?)?;
    let data = args.samples.needed(&graph, "calibration")?;
    let taps = quantize::taps(&graph, &Settings::default());
    let executor = compress::executor(&args.how)?;
    let bar = term::progress(data.len());
    let stats = calibrate::collect(&graph, &taps, &data, &executor, &mut |i| bar.set_position(i as u64))?;
    bar.finish_and_clear();
    let ranges = Ranges::of(&graph, &taps, &stats, method, args.method.symmetric);
    compile::write_file(&args.output, ranges.to_json().as_bytes())?;
    say!("{}: ranges of {} values over {} samples", args.output.display(), ranges.values.len(), ranges.samples);
    Ok(Exit::Ok)
}
