//! What the compression commands have in common: the model, its data, the report.

use super::compile::{self, How};
use super::files;
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use infc::cases;
use infc::executor::Compiler;
use infc_compress::calibrate::Method;
use infc_compress::data::ReadPb;
use infc_compress::report::Step;
use infc_compress::{Data, Report};
use infc_ir::interp::Item;
use infc_ir::{Graph, Problems, Tensor, Type};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where samples come from.
#[derive(clap::Args, Clone, Debug)]
pub struct Samples {
    /// Samples of the inputs: a folder in ONNX's test layout or of .npy files, or an .npz file whose rows are samples.
    #[arg(long, value_name = "DIR|FILE.npz")]
    pub data: Option<PathBuf>,
    /// Use at most this many samples, evenly spread.
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// Draw the samples at random with this seed instead; `prune` and `distill` mix the samples that they fit to with it, too.
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u64>,
}

/// Where the report goes.
#[derive(clap::Args, Clone, Debug)]
pub struct Reports {
    /// Write a report: .html is a page that needs no other file, .json has the figures. May be given twice.
    #[arg(long, value_name = "FILE.html|FILE.json")]
    pub report: Vec<PathBuf>,
}

fn read_pb(path: &Path, ty: &Type) -> std::result::Result<Tensor, Problems> {
    match cases::read_pb(path, ty)? {
        Item::Tensor(t) => Ok(t),
        _ => Err(Problems::one(path.display().to_string(), "is no tensor", "only tensors can be calibrated on")),
    }
}

/// Reads `.pb` files for [`Data`].
pub const READ_PB: ReadPb = &read_pb;

impl Samples {
    /// The samples for this model; `None` if no data is given.
    pub fn read(&self, graph: &Graph) -> Result<Option<Data<'static>>> {
        self.check()?;
        let Some(path) = &self.data else { return Ok(None) };
        let mut data = Data::read(path, graph, READ_PB)?;
        if let Some(n) = self.samples {
            data.limit(n, self.seed);
        }
        Ok(Some(data))
    }
    /// What can be said before the samples are read.
    pub fn check(&self) -> Result<()> {
        if self.samples == Some(0) {
            return Err(Failure::usage("--samples 0 leaves no data", "give at least one"));
        }
        self.data.as_deref().map_or(Ok(()), files::readable)
    }
    /// A seed that is there to draw samples alone must have some to draw.
    pub fn check_drawn(&self) -> Result<()> {
        match self.seed.filter(|_| self.samples.is_none()) {
            Some(seed) => Err(Failure::usage(format!("--seed {seed} draws samples, and all are taken"), "add --samples N")),
            None => self.check(),
        }
    }
    /// The samples, which are needed.
    pub fn needed(&self, graph: &Graph, what: &str) -> Result<Data<'static>> {
        let help = "--data DIR|FILE.npz: a folder in ONNX's test layout or of .npy files, or an .npz file";
        self.read(graph)?.ok_or_else(|| Failure::usage(format!("{what} needs data"), help))
    }
}

impl Reports {
    /// Can they be written?
    pub fn check(&self) -> Result<()> {
        for path in &self.report {
            if !matches!(path.extension().and_then(|e| e.to_str()), Some("html" | "htm" | "json")) {
                return Err(Failure::usage(format!("--report {}: .html or .json is needed", path.display()), ""));
            }
            files::writable(path)?;
        }
        Ok(())
    }
    /// Writes the report to all files asked for.
    pub fn write(&self, report: &Report) -> Result<()> {
        for path in &self.report {
            let text = match path.extension().and_then(|e| e.to_str()) {
                Some("json") => report.to_json(),
                _ => report.to_html(),
            };
            compile::write_file(path, text.as_bytes())?;
            say!("{}: report", path.display());
        }
        Ok(())
    }
}

/// The executor for this machine.
pub fn executor(how: &How) -> Result<Compiler> {
    Ok(Compiler { options: how.options()? })
}

/// How ranges are made.
#[derive(clap::Args, Clone, Debug)]
pub struct MethodName {
    /// How ranges of activations are made: min-max, average, percentile[:99.99], entropy, mse [default: mse]
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// Activations as signed integers around 0; otherwise unsigned with a zero point, which run fastest.
    #[arg(long)]
    pub symmetric: bool,
}

impl MethodName {
    /// The method of that name.
    pub fn method(&self) -> Result<Method> {
        let given = self.method.as_deref().unwrap_or("mse");
        let (name, argument) = given.split_once(':').map_or((given, None), |(n, a)| (n, Some(a)));
        let bad = |m: String| Failure::usage(m, "methods are min-max, average, percentile[:99.99], entropy, mse");
        match (name, argument) {
            ("min-max", None) => Ok(Method::MinMax),
            ("average", None) => Ok(Method::Average),
            ("entropy", None) => Ok(Method::Entropy),
            ("mse", None) => Ok(Method::Mse),
            ("percentile", a) => match a.unwrap_or("99.99").parse::<f64>() {
                Ok(p) if p > 50.0 && p <= 100.0 => Ok(Method::Percentile(p)),
                _ => Err(bad(format!("--method {given}: the percentage is a number above 50, at most 100"))),
            },
            _ => Err(bad(format!("--method {given}: there is no such method"))),
        }
    }
}

/// A cosine as a limit.
pub fn cosine(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|c| (-1.0..=1.0).contains(c));
    number.ok_or_else(|| format!("'{text}' is no cosine from -1 to 1, such as 0.999"))
}

/// A bar for each stage of something long.
#[derive(Default)]
pub struct Progress {
    stage: String,
    bar: Option<indicatif::ProgressBar>,
}

impl Progress {
    /// `i` of `n` things of a stage are done.
    pub fn show(&mut self, stage: &str, i: usize, n: usize) {
        if self.stage != stage || self.bar.is_none() {
            self.end();
            let bar = term::progress(n);
            if let Ok(style) = indicatif::ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
                bar.set_style(style);
            }
            bar.set_message(stage.to_owned());
            (self.stage, self.bar) = (stage.to_owned(), Some(bar));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(i as u64);
        }
    }
    /// Takes the bar away.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Writes a model.
pub fn write_model(graph: &Graph, path: &Path) -> Result<()> {
    infc_onnx::write(graph, path).map_err(|problems| {
        let io = problems.0.iter().any(|p| p.message.starts_with("cannot be written"));
        Failure { exit: if io { Exit::Io } else { Exit::Rejected }, problems }
    })
}

/// Bytes of a model file with the constants that lie beside it.
pub fn file_size(path: &Path) -> Result<u64> {
    let size = |p: &Path| std::fs::metadata(p).map(|m| m.len());
    let beside = path.with_file_name(format!("{}.data", path.file_name().unwrap_or_default().to_string_lossy()));
    Ok(size(path).map_err(|e| Failure::io(path, &e))? + size(&beside).unwrap_or(0))
}

/// Prints what a step did.
pub fn summary(s: &Step) {
    let share = 100.0 * s.after.float_macs as f64 / s.after.macs.max(1) as f64;
    if s.after.macs > 0 {
        say!("MACs: {:.1} million, {share:.1} % of them in float", s.after.macs as f64 / 1e6);
    }
    figures(s);
    for note in &s.notes {
        say!("{note}");
    }
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (layer, why) in &s.kept {
        by_reason.entry(why).or_default().push(layer);
    }
    for (why, layers) in by_reason {
        let more = if layers.len() > 4 { format!(" and {} more", layers.len() - 4) } else { String::new() };
        let names: Vec<String> = layers.iter().take(4).map(|l| format!("'{l}'")).collect();
        say!("kept {}{more}: {why}", names.join(", "));
    }
}

/// Prints what was measured: size, time, answers.
pub fn figures(s: &Step) {
    if let (Some(a), Some(b)) = (s.before.artifact_bytes, s.after.artifact_bytes) {
        let ratio = a as f64 / b.max(1) as f64;
        say!("artifact: {}, {ratio:.2}x smaller", term::bytes(b));
    }
    if let (Some(a), Some(b)) = (s.before.latency_ms, s.after.latency_ms) {
        say!("latency: {b:.3} ms, {:.2}x as fast as before ({a:.3} ms)", a / b);
    }
    for d in &s.outputs {
        say!(
            "output '{}': SQNR {:.2} dB (each sample alike: {:.2}), cosine {:.6} (least {:.6}), max difference {:.3e}, top-1 {:.2} %",
            d.name,
            d.sqnr_db,
            d.sqnr_samples_db,
            d.cosine,
            d.cosine_min,
            d.max_abs,
            100.0 * d.top1
        );
    }
    if let Some((a, b)) = s.accuracy {
        say!("accuracy: {:.2} % before, {:.2} % after", 100.0 * a, 100.0 * b);
    }
}
