//! `infc convert`: an ONNX model read and written again.

use super::compile::{import, write_file};
use crate::say;
use crate::term::{self, Exit, Result};
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
    let mut graph = import(&args.input)?;
    let before = nodes(&graph);
    if args.simplify || !args.dims.is_empty() {
        // No decomposition: every node stays an ONNX operator.
        let pipeline = if args.simplify { vec!["shape", "fold", "dce"] } else { vec!["shape"] };
        let pipeline = pipeline.into_iter().map(str::to_owned).collect();
        let options = infc_passes::Options { pipeline, bind: args.dims.clone(), ..infc_passes::Options::default() };
        infc_passes::run(&mut graph, &options)?;
    }
    let bytes = infc_onnx::export(&graph)?;
    write_file(&args.output, &bytes)?;
    let after = nodes(&graph);
    say!("{}: {}, {after} nodes ({before} in {})", args.output.display(), term::bytes(bytes.len() as u64), args.input.display());
    Ok(Exit::Ok)
}

fn nodes(graph: &infc_ir::Graph) -> usize {
    graph.live_regions().iter().map(|&r| graph.region(r).nodes.len()).sum()
}
