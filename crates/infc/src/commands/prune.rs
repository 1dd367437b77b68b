//! `infc prune`: an ONNX model with weights or channels taken out.

use super::compile::{How, import};
use super::compress::{self, Progress, Reports, Samples, executor, file_size, write_model};
use super::files;
use crate::say;
use crate::term::{self, Exit, Result};
use infc_compress::prune::{Fit, Kind, Options, Pruned, check_options, prune, report};
use infc_compress::{Executor, Report, Runner};
use infc_ir::Problems;
use infc_ir::graph::Graph;
use std::cell::RefCell;
use std::path::PathBuf;

/// Take weights or whole channels out of an ONNX model
#[derive(clap::Args)]
pub struct Args {
    /// The model to read.
    model: PathBuf,
    /// The model to write.
    #[arg(short = 'o', long, value_name = "OUT.onnx")]
    output: PathBuf,
    /// For channels the share of multiply-accumulates to save, else the share of weights to set to 0. 2:4 is always 0.5.
    #[arg(long, value_name = "S", default_value_t = 0.5)]
    sparsity: f64,
    /// What to take out: whole channels (the graph becomes smaller), single weights, blocks of 16 outputs of one input, or two of each
    /// four neighbours.
    #[arg(long, value_name = "KIND", default_value = "channel", value_parser = kind)]
    kind: Kind,
    /// How to fit what stays to the original: `sequential` each layer for the inputs that the pruned layers before it give, `outputs`
    /// then all together to the outputs, `layer` each by itself, `none` not; `auto` is `outputs` where that is possible and affordable.
    /// Needs data.
    #[arg(long, value_name = "FIT", default_value = "auto", value_parser = fit)]
    fit: Fit,
    /// Steps of the fit to the outputs; with `--fit auto` as many of them as are affordable.
    #[arg(long, value_name = "N", default_value_t = Options::default().steps)]
    steps: usize,
    /// Look at this many rows of features of each layer at most.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    rows: usize,
    /// For channels: try this many other balances between the groups of channels, and keep the one with the least error of the outputs on
    /// the data.
    #[arg(long, value_name = "N", default_value_t = 0)]
    search: usize,
    #[command(flatten)]
    pub samples: Samples,
    #[command(flatten)]
    reports: Reports,
    #[command(flatten)]
    pub how: How,
}

fn kind(text: &str) -> std::result::Result<Kind, String> {
    let names: Vec<_> = Kind::ALL.iter().map(|k| k.0).collect();
    Kind::parse(text).ok_or_else(|| format!("one of {} is needed", names.join(", ")))
}

fn fit(text: &str) -> std::result::Result<Fit, String> {
    let names: Vec<_> = Fit::ALL.iter().map(|f| f.0).collect();
    Fit::parse(text).ok_or_else(|| format!("one of {} is needed", names.join(", ")))
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    args.check()?;
    args.reports.write(&perform(args, None)?)?;
    Ok(Exit::Ok)
}

impl Args {
    fn options(&self) -> Options {
        Options {
            sparsity: self.sparsity,
            kind: self.kind,
            fit: self.fit,
            rows: self.rows,
            seed: self.samples.seed.unwrap_or(0),
            search: self.search,
            steps: self.steps,
            ..Options::default()
        }
    }
    /// All that can be said without the model.
    pub fn check(&self) -> Result<()> {
        files::not_the_model(&self.output, &self.model)?;
        files::writable(&self.output)?;
        self.samples.check()?;
        self.reports.check()?;
        check_options(&self.options(), self.samples.data.is_some())?;
        self.how.options().map(|_| ())
    }
}

/// Prunes, writes the model and says what was done; `name` is what the result is called if it is not kept.
pub fn perform(args: &Args, name: Option<&str>) -> Result<Report> {
    let graph = import(&args.model)?;
    let data = args.samples.read(&graph)?;
    let options = args.options();
    let executor = executor(&args.how)?;
    let shown = Shown { executor: &executor, bar: RefCell::default() };
    let pruned = prune(&graph, &options, data.as_ref(), &shown);
    shown.bar.into_inner().end();
    let pruned = pruned?;
    write_model(&pruned.graph, &args.output)?;
    tell(&pruned, &args.output, name)?;
    let mut report = report::report(&graph, &pruned, &options, data.as_ref(), &executor)?;
    for step in &mut report.steps {
        (step.before.bytes, step.after.bytes) = (file_size(&args.model)?, file_size(&args.output)?);
        compress::figures(step);
    }
    Ok(report)
}

/// An executor whose progress is shown.
struct Shown<'a> {
    executor: &'a dyn Executor,
    bar: RefCell<Progress>,
}

impl Executor for Shown<'_> {
    fn load(&self, graph: &Graph) -> std::result::Result<Box<dyn Runner>, Problems> {
        self.executor.load(graph)
    }
    fn name(&self) -> String {
        self.executor.name()
    }
    fn measures(&self) -> bool {
        self.executor.measures()
    }
    fn progress(&self, stage: &str, done: usize, of: usize) {
        self.bar.borrow_mut().show(stage, done, of);
    }
}

/// What was done, in some lines.
fn tell(pruned: &Pruned, output: &std::path::Path, name: Option<&str>) -> Result<()> {
    for l in &pruned.layers {
        let error = l.error.map_or(String::new(), |e| format!(", error {:.2} %", 100.0 * e));
        say!("  {}: {} of {} weights{error}", l.name, l.after, l.before);
    }
    pruned.notes.iter().chain(&pruned.fitted).for_each(|n| say!("  {n}"));
    let (a, b) = (pruned.before, pruned.after);
    let share = |x: f64, y: f64| 100.0 * x / y.max(1.0);
    let bytes = file_size(output)?;
    say!(
        "{}: {}, {:.0} multiply-accumulates ({:.1} % of {:.0}), {} parameters not 0 ({:.1} % of {})",
        name.map_or(output.display().to_string(), str::to_owned),
        term::bytes(bytes),
        b.macs,
        share(b.macs, a.macs),
        a.macs,
        b.nonzero,
        share(b.nonzero as f64, a.parameters as f64),
        a.parameters
    );
    Ok(())
}
