//! `infc compare`: how far the answers of one model are from another's.

use super::compile::{self, How};
use super::compress::{self, Samples};
use super::model;
use crate::say;
use crate::term::{Exit, Failure, Result};
use infc::executor::Running;
use infc_compress::compare::{self, Comparison};
use infc_compress::report::Difference;
use infc_compress::{Executor, Runner};
use infc_ir::Graph;
use std::path::{Path, PathBuf};

/// Compare the outputs, and the inner values of the same names, of two models on samples
///
/// Each may be an ONNX file or an artifact; inner values are compared for two ONNX files.
#[derive(clap::Args)]
pub struct Args {
    /// The model that is right: an ONNX file or an artifact.
    a: PathBuf,
    /// The model that is judged.
    b: PathBuf,
    #[command(flatten)]
    samples: Samples,
    /// Judge output 0 as embeddings: mean-pooled over axis 1 and normalised.
    #[arg(long)]
    embeddings: bool,
    /// Compare inner values, too.
    #[arg(long)]
    layers: bool,
    /// Fail if an output has a smaller signal-to-noise ratio, in dB.
    #[arg(long, value_name = "DB")]
    min_sqnr: Option<f64>,
    /// Fail if the mean cosine of an output is smaller.
    #[arg(long, value_name = "COSINE", value_parser = compress::cosine, allow_negative_numbers = true)]
    min_cosine: Option<f64>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    how: How,
}

#[allow(clippy::large_enum_variant, reason = "two of them in a run")]
enum Side {
    Graph(Graph),
    Artifact(Running, Vec<String>),
}

fn open(path: &Path, how: &How) -> Result<Side> {
    if !model::is_artifact(path)? {
        let bind = how.dims().into_iter().collect();
        let mut graph = compile::import(path)?;
        let options = infc_passes::Options { pipeline: vec!["shape".to_owned()], bind, portable: true, ..Default::default() };
        infc_passes::run(&mut graph, &options)?;
        return Ok(Side::Graph(graph));
    }
    let artifact = model::open(path, how)?;
    let native = infc::engine::Native::new(artifact, infc_runtime::Options::default())?;
    let names = native.outputs().into_iter().map(|o| o.0).collect();
    Ok(Side::Artifact(Running { native, bytes: compress::file_size(path)? }, names))
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    args.samples.check_drawn()?;
    let (a, b) = (open(&args.a, &args.how)?, open(&args.b, &args.how)?);
    let executor = compress::executor(&How::default())?;
    let executor = infc::executor::Compiler { options: infc::Options { dims: vec![], ..executor.options } };
    let typed = match (&a, &b) {
        (Side::Graph(g), _) | (_, Side::Graph(g)) => g.clone(),
        (Side::Artifact(r, _), _) => inputs_of(r),
    };
    let data = args.samples.needed(&typed, "comparison")?;
    let names = |s: &Side| match s {
        Side::Graph(g) => g.outputs().iter().map(|&v| g.value(v).name.clone()).collect(),
        Side::Artifact(_, names) => names.clone(),
    };
    let (ours, theirs): (Vec<String>, Vec<String>) = (names(&a), names(&b));
    if ours.len() != theirs.len() {
        let help = format!("{} has {}; {} has {}", args.a.display(), ours.join(", "), args.b.display(), theirs.join(", "));
        return Err(infc_ir::Problems::one("comparison", "the models differ in their number of outputs", help).into());
    }
    let (mut inner, mut all) = (0, ours);
    let (mut a, mut b): (Box<dyn Runner>, Box<dyn Runner>) = match (a, b) {
        (Side::Graph(a), Side::Graph(b)) if args.layers => {
            let (a, b, names, count) = compare::aligned(&a, &b);
            (all, inner) = (names, count);
            (executor.load(&a)?, executor.load(&b)?)
        }
        (a, b) => {
            if args.layers {
                return Err(Failure::usage("--layers is for two ONNX files", "an artifact has no inner values to see"));
            }
            let load = |s: Side| -> Result<Box<dyn Runner>> {
                Ok(match s {
                    Side::Graph(g) => executor.load(&g)?,
                    Side::Artifact(r, _) => Box::new(r),
                })
            };
            (load(a)?, load(b)?)
        }
    };
    let mut progress = compress::Progress::default();
    let n = data.len();
    let result = compare::run(&mut *a, &mut *b, &all, inner, &data, args.embeddings, &mut |i| progress.show("samples", i, n));
    progress.end();
    let c = result?;
    if args.json {
        print_json(&c)
    } else {
        print(&c)
    }
    let low = |d: &&Difference| {
        args.min_sqnr.is_some_and(|m| d.sqnr_db < m || d.sqnr_db.is_nan())
            || args.min_cosine.is_some_and(|m| d.cosine < m || d.cosine.is_nan())
    };
    match c.outputs.iter().find(low) {
        Some(d) => {
            say!("output '{}' is below the limit: SQNR {:.2} dB, cosine {:.6}", d.name, d.sqnr_db, d.cosine);
            Ok(Exit::Failed)
        }
        None => Ok(Exit::Ok),
    }
}

/// A graph with the inputs of an artifact, for reading data.
fn inputs_of(r: &Running) -> Graph {
    let mut g = Graph::new("artifact");
    for (name, ty) in r.native.inputs() {
        g.add_param(Graph::MAIN, ty, name);
    }
    g
}

fn print(c: &Comparison) {
    say!("{:>12}  {:>9}  {:>9}  {:>9}  {:>7}  output", "max |diff|", "SQNR dB", "cosine", "least", "top-1 %");
    for d in &c.outputs {
        line(d);
    }
    if !c.inner.is_empty() {
        say!("inner values:");
        c.inner.iter().for_each(line);
    }
    if let Some((a, b)) = c.accuracy {
        say!("accuracy: {:.2} % and {:.2} %", 100.0 * a, 100.0 * b);
    }
    if let Some(e) = c.embeddings {
        say!(
            "embeddings: cosine {:.5}, least {:.5}; same nearest neighbour {:.1} %",
            e.cosine,
            e.cosine_min,
            100.0 * e.neighbours
        );
    }
}

fn line(d: &Difference) {
    let Difference { name, max_abs, sqnr_db, cosine, cosine_min, top1, .. } = d;
    say!("{max_abs:12.4e}  {sqnr_db:9.2}  {cosine:9.6}  {cosine_min:9.6}  {:7.2}  {name}", 100.0 * top1);
}

fn print_json(c: &Comparison) {
    let embeddings =
        c.embeddings.map(|e| serde_json::json!({ "cosine": e.cosine, "cosine_min": e.cosine_min, "neighbours": e.neighbours }));
    let json = serde_json::json!({
        "outputs": c.outputs, "inner": c.inner, "accuracy": c.accuracy, "embeddings": embeddings,
    });
    say!("{json}");
}
