//! `infc convert`: an ONNX model read and written again.

use super::compile::import;
use super::files;
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use std::path::PathBuf;

/// Read an ONNX model and write it again, in the newest form or simplified
#[derive(clap::Args)]
pub struct Args {
    /// The model to read.
    input: PathBuf,
    /// The model to write.
    output: PathBuf,
    /// Fold what is known at compile time and remove what no output needs.
    #[arg(long)]
    simplify: bool,
    /// Give a symbolic dim a value.
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = super::compile::dim)]
    dims: Vec<(String, i64)>,
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    files::not_the_model(&args.output, &args.input)?;
    files::writable(&args.output)?;
    let mut graph = import(&args.input)?;
    let before = nodes(&graph);
    if args.simplify || !args.dims.is_empty() {
        let pipeline = if args.simplify { infc_passes::simplify() } else { vec!["shape"] };
        let pipeline = pipeline.into_iter().map(str::to_owned).collect();
        // Every node stays an ONNX operator.
        let options = infc_passes::Options { pipeline, bind: args.dims.clone(), portable: true, ..Default::default() };
        infc_passes::run(&mut graph, &options)?;
    }
    infc_onnx::write(&graph, &args.output).map_err(|problems| {
        let io = problems.0.iter().any(|p| p.message.starts_with("cannot be written"));
        Failure { exit: if io { Exit::Io } else { Exit::Rejected }, problems }
    })?;
    let bytes = std::fs::metadata(&args.output).map_err(|e| Failure::io(&args.output, &e))?.len();
    let (after, output, input) = (nodes(&graph), args.output.display(), args.input.display());
    say!("{output}: {}, {after} nodes ({before} in {input})", term::bytes(bytes));
    Ok(Exit::Ok)
}

fn nodes(graph: &infc_ir::Graph) -> usize {
    graph.live_regions().iter().map(|&r| graph.region(r).nodes.len()).sum()
}
