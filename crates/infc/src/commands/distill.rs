//! `infc distill`: teacher, student and their PyTorch modules for distillation.

use super::compile::{How, import, write_file};
use super::compress::{Samples, executor, write_model};
use crate::say;
use crate::term::{Exit, Failure, Result};
use infc_compress::distill::{Settings, distill};
use infc_compress::prune::{Options, Widths};
use std::path::PathBuf;

/// Export a model ready for distillation: teacher, smaller student, PyTorch modules
#[derive(clap::Args)]
pub struct Args {
    /// The model to read.
    model: PathBuf,
    /// The student's share of the model's multiply-accumulates.
    #[arg(long, value_name = "R", default_value_t = 0.25)]
    ratio: f64,
    /// The folder to write teacher.onnx, student.onnx, teacher.py, student.py and distill.json to.
    #[arg(short = 'o', long, value_name = "DIR")]
    output: PathBuf,
    /// Compare this many features between teacher and student.
    #[arg(long, value_name = "N", default_value_t = 3)]
    features: usize,
    /// Divide outputs by this before the softmax of the soft targets.
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f64,
    /// How many channels each layer keeps: "fitted", those that the teacher's outputs need most, wherever they are; "even", the same share of every layer.
    #[arg(long, value_name = "HOW", default_value = "fitted", value_parser = widths)]
    widths: Widths,
    #[command(flatten)]
    samples: Samples,
    #[command(flatten)]
    how: How,
}

fn widths(text: &str) -> std::result::Result<Widths, String> {
    let names = Widths::ALL.map(|w| w.0);
    Widths::parse(text).ok_or_else(|| format!("one of {} is needed", names.join(", ")))
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    let graph = import(&args.model)?;
    let data = args.samples.read(&graph)?;
    let prune = Options { seed: args.samples.seed.unwrap_or(0), widths: args.widths, ..Options::default() };
    let settings = Settings { ratio: args.ratio, features: args.features, temperature: args.temperature, prune };
    let made = distill(&graph, &settings, data.as_ref(), &executor(&args.how)?)?;
    std::fs::create_dir_all(&args.output).map_err(|e| Failure::io(&args.output, &e))?;
    write_model(&made.teacher, &args.output.join("teacher.onnx"))?;
    write_model(&made.student, &args.output.join("student.onnx"))?;
    write_file(&args.output.join("student.py"), made.module.as_bytes())?;
    write_file(&args.output.join("teacher.py"), made.teacher_module.as_bytes())?;
    write_file(&args.output.join("distill.json"), made.description.as_bytes())?;
    made.notes.iter().for_each(|n| say!("  {n}"));
    let (a, b) = (made.before, made.after);
    say!(
        "{}: teacher with {:.0} multiply-accumulates, student with {:.0} ({:.1} %), {} of {} parameters",
        args.output.display(),
        a.macs,
        b.macs,
        100.0 * b.macs / a.macs.max(1.0),
        b.parameters,
        a.parameters
    );
    Ok(Exit::Ok)
}
