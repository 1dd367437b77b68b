//! `infc quantize`: weights and activations in few bits, with the loss measured.

use super::compile::{self, How};
use super::compress::{self, MethodName, Reports, Samples};
use super::files;
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use clap::ValueEnum;
use infc_compress::calibrate::Ranges;
use infc_compress::layers;
use infc_compress::measure::{self, Change};
use infc_compress::mixed::{self, Aim, Budget, Limits};
use infc_compress::quantize::{self, Knowledge, Rounding, Scheme, Settings};
use infc_compress::report::{Report, Step};
use infc_ir::DType;
use std::path::PathBuf;

/// Store weights and activations of a model in few bits
///
/// With data, the default is static int8: weights by output channel, activations with ranges from calibration, outliers moved into
/// weights, biases corrected. Without data, weights alone become int8. The result is standard ONNX (QDQ).
#[derive(clap::Args)]
pub struct Args {
    /// An ONNX file.
    model: PathBuf,
    /// The quantised model to write.
    #[arg(short, long, value_name = "OUT.onnx")]
    output: PathBuf,
    #[command(flatten)]
    samples: Samples,
    /// Ranges from `infc calibrate` instead of data.
    #[arg(long, value_name = "FILE.json", conflicts_with = "data")]
    ranges: Option<PathBuf>,
    /// Other samples, to measure what was lost [default: those of --data]
    #[arg(long, value_name = "DIR|FILE.npz")]
    evaluate: Option<PathBuf>,
    /// What is stored how [default: static with data or ranges, int8 weights without]
    #[arg(long, value_enum)]
    scheme: Option<SchemeName>,
    #[command(flatten)]
    method: MethodName,
    /// Leave activations as they are distributed: no factors move into weights.
    #[arg(long)]
    no_smooth: bool,
    /// Store no activation in two parts, each with a step of its own.
    #[arg(long)]
    no_split: bool,
    /// Leave biases as they are.
    #[arg(long)]
    no_bias_correction: bool,
    /// How weights are rounded: each to the nearest, or so that sums over the data change least [default: reconstruct with data]
    #[arg(long, value_enum)]
    rounding: Option<RoundingName>,
    /// Weights that share a scale, with int4 weights [default: 16]
    #[arg(long, value_name = "N")]
    group: Option<usize>,
    /// A layer that stays as it is, `*` stands for any part of a name; may be given several times.
    #[arg(long, value_name = "LAYER")]
    keep: Vec<String>,
    /// A layer of which only the weights are stored, with static int8: its sums are taken in float. As --keep.
    #[arg(long, value_name = "LAYER")]
    float_sums: Vec<String>,
    /// A layer whose input is stored in two bytes, with static int8: it takes its products twice, on integers. As --keep.
    #[arg(long, value_name = "LAYER")]
    two_bytes: Vec<String>,
    /// Embedding tables stay as they are.
    #[arg(long)]
    keep_tables: bool,
    /// Quantise as many layers as lose no more than this share of labelled samples, such as 0.5%
    #[arg(long, value_name = "PERCENT", value_parser = percent, group = "budget")]
    max_drop: Option<f64>,
    /// Quantise as many layers as keep this signal-to-noise ratio, in dB, of every output.
    #[arg(long, value_name = "DB", group = "budget")]
    min_sqnr: Option<f64>,
    /// Quantise as many layers as keep this mean cosine of every output.
    #[arg(long, value_name = "COSINE", group = "budget", value_parser = compress::cosine, allow_negative_numbers = true)]
    min_cosine: Option<f64>,
    /// The largest share of the multiply-accumulates that is taken twice, for inputs in two bytes, where an output keeps less than 20 dB, or
    /// what may stay in float does not do for a budget [default: 25%]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    double_macs: Option<f64>,
    /// The largest share of the multiply-accumulates that stays in float where outputs lose too much [default: 100% with a budget, else
    /// 10% to keep 20 dB of every output]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    float_macs: Option<f64>,
    /// Judge output 0 as embeddings: mean-pooled over axis 1 and normalised.
    #[arg(long)]
    embeddings: bool,
    #[command(flatten)]
    reports: Reports,
    #[command(flatten)]
    pub how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SchemeName {
    /// Weights and activations as 8-bit integers, ranges from calibration.
    Static,
    /// 8-bit integers, ranges of activations from each run.
    Dynamic,
    /// Weights alone as 8-bit integers.
    Int8,
    /// Weights alone as 4-bit integers, in groups.
    Int4,
    /// Weights alone as IEEE half precision.
    F16,
    /// Weights alone as bfloat16.
    Bf16,
    /// Weights alone as 8-bit floats with 4 bits of exponent.
    F8e4m3fn,
    /// Weights alone as 8-bit floats with 5 bits of exponent.
    F8e5m2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoundingName {
    Nearest,
    Reconstruct,
}

/// `0.5%` or `0.5`: half a point in a hundred.
fn percent(text: &str) -> std::result::Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
    let good = number.ok().filter(|p| (0.0..=100.0).contains(p));
    good.map(|p| p / 100.0).ok_or_else(|| format!("'{text}' is no percentage from 0 to 100, such as 0.5%"))
}

impl Args {
    fn budget(&self) -> Option<Budget> {
        let drop = self.max_drop.map(Budget::MaxDrop);
        drop.or(self.min_sqnr.map(Budget::MinSqnr)).or(self.min_cosine.map(Budget::MinCosine))
    }
    fn scheme(&self) -> SchemeName {
        let known = self.samples.data.is_some() || self.ranges.is_some();
        self.scheme.unwrap_or(if known { SchemeName::Static } else { SchemeName::Int8 })
    }
    /// Options of another scheme than the one that is asked for are mistakes.
    fn no_idle_options(&self) -> Result<()> {
        use SchemeName::{Int4, Int8, Static};
        let options: [(&str, bool, &[SchemeName]); 12] = [
            ("--ranges", self.ranges.is_some(), &[Static]),
            ("--method", self.method.method.is_some(), &[Static]),
            ("--symmetric", self.method.symmetric, &[Static]),
            ("--no-smooth", self.no_smooth, &[Static]),
            ("--no-split", self.no_split, &[Static]),
            ("--no-bias-correction", self.no_bias_correction, &[Static]),
            ("--float-sums", !self.float_sums.is_empty(), &[Static]),
            ("--two-bytes", !self.two_bytes.is_empty(), &[Static]),
            ("--float-macs", self.float_macs.is_some(), &[Static]),
            ("--double-macs", self.double_macs.is_some(), &[Static]),
            ("--rounding", self.rounding.is_some(), &[Static, Int8, Int4]),
            ("--group", self.group.is_some(), &[Int4]),
        ];
        let name = |s: SchemeName| s.to_possible_value().map_or(String::new(), |v| v.get_name().to_owned());
        let scheme = self.scheme();
        match options.iter().find(|(_, given, of)| *given && !of.contains(&scheme)) {
            Some((option, _, of)) => {
                let of: Vec<String> = of.iter().map(|&s| name(s)).collect();
                let chosen = if self.scheme.is_some() { "" } else { ", the default here" };
                let message = format!("{option} has no effect with --scheme {}{chosen}", name(scheme));
                Err(Failure::usage(message, format!("it belongs to --scheme {}", of.join(", "))))
            }
            None => Ok(()),
        }
    }
    /// All that can be said without the model.
    pub fn check(&self) -> Result<()> {
        self.settings()?;
        files::not_the_model(&self.output, &self.model)?;
        files::writable(&self.output)?;
        self.samples.check_drawn()?;
        [&self.evaluate, &self.ranges].into_iter().flatten().try_for_each(|p| files::readable(p))?;
        self.reports.check()?;
        self.how.options().map(|_| ())
    }
    /// Where samples to judge on come from.
    pub fn judged_on(&self) -> Samples {
        match &self.evaluate {
            Some(path) => Samples { data: Some(path.clone()), samples: None, seed: None },
            None => self.samples.clone(),
        }
    }
    fn settings(&self) -> Result<Settings> {
        self.no_idle_options()?;
        let scheme = match self.scheme() {
            SchemeName::Static => Scheme::Static,
            SchemeName::Dynamic => Scheme::Dynamic,
            SchemeName::Int8 => Scheme::Int8Weights,
            SchemeName::Int4 => Scheme::Int4Weights,
            SchemeName::F16 => Scheme::Float(DType::F16),
            SchemeName::Bf16 => Scheme::Float(DType::BF16),
            SchemeName::F8e4m3fn => Scheme::Float(DType::F8E4M3FN),
            SchemeName::F8e5m2 => Scheme::Float(DType::F8E5M2),
        };
        let group = self.group.unwrap_or(16);
        if group < 2 {
            return Err(Failure::usage(format!("--group {group}: at least 2 weights share a scale"), "16 is usual"));
        }
        let rounding = self.rounding.map(|r| match r {
            RoundingName::Nearest => Rounding::Nearest,
            RoundingName::Reconstruct => Rounding::Reconstruct,
        });
        if rounding == Some(Rounding::Reconstruct) && self.samples.data.is_none() {
            return Err(Failure::usage("--rounding reconstruct needs data", "add --data DIR|FILE.npz"));
        }
        Ok(Settings {
            scheme,
            method: self.method.method()?,
            symmetric: self.method.symmetric,
            smooth: !self.no_smooth,
            split: !self.no_split,
            bias_correction: !self.no_bias_correction,
            rounding,
            group,
            keep: self.keep.iter().cloned().collect(),
            float_sums: self.float_sums.iter().cloned().collect(),
            two_bytes: self.two_bytes.iter().cloned().collect(),
            tables: !self.keep_tables,
            ..Settings::default()
        })
    }
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    args.check()?;
    args.reports.write(&perform(args, None)?)?;
    Ok(Exit::Ok)
}

/// Quantises, writes the model and says what was done; `names` are what the result and the model are called if they are not files of the user's.
pub fn perform(args: &Args, names: Option<(&str, &str)>) -> Result<Report> {
    let settings = args.settings()?;
    let graph = layers::prepare(&compile::import(&args.model)?)?;
    let data = args.samples.read(&graph)?;
    let executor = compress::executor(&args.how)?;
    let ranges = match &args.ranges {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Failure::io(path, &e))?;
            Some(Ranges::from_json(&text, &path.display().to_string(), &quantize::for_integers(&graph)?)?)
        }
        None => None,
    };
    let knowledge = match (&data, &ranges) {
        (Some(d), _) => Knowledge::Data(d, &executor),
        (None, Some(r)) => Knowledge::Ranges(r),
        (None, None) => Knowledge::Nothing,
    };
    let evaluation = if args.evaluate.is_some() { args.judged_on().read(&graph)? } else { None };
    let evaluation = evaluation.as_ref().or(data.as_ref());
    let mut progress = compress::Progress::default();
    let mut show = |what: &str, i: usize, n: usize| progress.show(what, i, n);
    let aim = Aim {
        double_macs: args.double_macs.unwrap_or(Aim::default().double_macs),
        float_macs: args.float_macs.unwrap_or(Aim::default().float_macs),
        ..Aim::default()
    };
    let found = match (args.budget(), evaluation) {
        (None, _) => {
            let aim = Some(aim).filter(|a| a.float_macs > 0.0 || a.double_macs > 0.0);
            mixed::quantize(&graph, &settings, aim, &knowledge, &executor, &mut show)?
        }
        (Some(budget), Some(samples)) if settings.scheme == Scheme::Static => {
            let limits = Limits { float_macs: args.float_macs.unwrap_or(1.0), double_macs: aim.double_macs };
            mixed::search(&graph, &settings, budget, limits, &knowledge, samples, &executor, &mut show)?
        }
        (Some(_), _) => {
            let help = "add --data DIR|FILE.npz (or --evaluate with --ranges), and leave out --scheme";
            return Err(Failure::usage("a budget is for static quantisation and needs data to measure on", help));
        }
    };
    progress.end();
    let done = found.model;
    compress::write_model(&done.graph, &args.output)?;
    // What is measured is the file, read again.
    let after = compile::import(&args.output)?;
    let bytes = (compress::file_size(&args.model)?, compress::file_size(&args.output)?);
    let (reference, forms) = (&done.reference, &done.forms[..]);
    let change = Change { before: &graph, after: &after, bytes, reference, forms, pool: args.embeddings };
    let (mut step, _) = measure::step(&change, &executor, evaluation, &mut |what, i, n| progress.show(what, i, n))?;
    progress.end();
    step.name = "quantize".to_owned();
    step.settings = settings.words();
    step.kept = done.kept;
    step.notes.extend(done.notes);
    step.notes.extend(found.notes);
    measure::with_sensitivity(&mut step, reference, &found.sensitivity);
    step.points = found.points;
    let files = (args.output.display().to_string(), args.model.display().to_string());
    print(&step, names.unwrap_or((&files.0, &files.1)));
    let report = Report { model: graph.name.clone(), machine: infc_compress::Executor::name(&executor), steps: vec![step] };
    Ok(report)
}

fn print(s: &Step, (output, model): (&str, &str)) {
    let ratio = s.before.bytes as f64 / s.after.bytes.max(1) as f64;
    say!("{output}: {}, {ratio:.2}x smaller than {model}", term::bytes(s.after.bytes));
    compress::summary(s);
}
