//! What compression did to a model, as a record, as JSON, and as one HTML page that needs no other file.

pub mod html;
mod plot;

use serde::Serialize;

/// A road of steps from one model to another.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// The machine that times were taken on.
    pub machine: String,
    /// In order.
    pub steps: Vec<Step>,
}

/// What one step did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Step {
    /// The command: `quantize`, `prune`, ...
    pub name: String,
    /// Its settings, in words.
    pub settings: Vec<(String, String)>,
    /// The model before.
    pub before: Cost,
    /// The model after.
    pub after: Cost,
    /// Differences of the outputs from those of the model before.
    pub outputs: Vec<Difference>,
    /// Share of labelled samples that the models before and after get right.
    pub accuracy: Option<(f64, f64)>,
    /// Layer by layer.
    pub layers: Vec<Layer>,
    /// What was left as it was, and why.
    pub kept: Vec<(String, String)>,
    /// Choices that were looked at, for the plot of latency and loss.
    pub points: Vec<Point>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// What a model costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Bytes of the ONNX file.
    pub bytes: u64,
    /// Bytes of the compiled artifact, where one was made.
    pub artifact_bytes: Option<u64>,
    /// Multiplications with additions of one run.
    pub macs: u64,
    /// Those of them that are not taken on integers.
    pub float_macs: u64,
    /// Least time of a run, in milliseconds.
    pub latency_ms: Option<f64>,
}

/// How far one tensor is from another, over all samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Signal to noise: 10 log10(sum of squares / sum of squared differences), in dB; infinite (`null` in JSON) if nothing differs.
    pub sqnr_db: f64,
    /// The same where each sample counts alike: of the mean over the samples of noise over signal. One with large outputs, such as the only
    /// one in which something is detected, decides nothing here.
    pub sqnr_samples_db: f64,
    /// Mean over the samples of the cosine between both.
    pub cosine: f64,
    /// Least over the samples of the cosine between both.
    pub cosine_min: f64,
    /// Share of rows along the last axis whose largest element is at the same place.
    pub top1: f64,
}

/// One layer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Layer {
    /// The model's name for it.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// How it is computed: `int8`, `f32`, `int4 weights`, `50 % sparse`, ...
    pub form: String,
    /// Its multiplications with additions.
    pub macs: u64,
    /// Signal to noise of its result in the whole changed model, in dB.
    pub sqnr_db: Option<f64>,
    /// Signal to noise of the model's outputs if only this layer is changed, in dB.
    pub sensitivity_db: Option<f64>,
    /// Weights before and after.
    pub weights: Option<(Histogram, Histogram)>,
}

/// Counts of values in equal bins.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Histogram {
    /// Where the first bin begins.
    pub low: f64,
    /// Where the last one ends.
    pub high: f64,
    /// Values in each.
    pub counts: Vec<u64>,
}

/// A choice: what it takes and what it loses.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// What it is.
    pub name: String,
    /// Time of a run in milliseconds.
    pub latency_ms: f64,
    /// The loss, larger is better: SQNR in dB, cosine, or accuracy.
    pub quality: f64,
    /// Measured, or predicted.
    pub measured: bool,
}

impl Histogram {
    /// Of these values, in `bins` bins between the extremes of `range`.
    pub fn of(values: &[f32], range: (f64, f64), bins: usize) -> Histogram {
        let (low, high) = range;
        let mut counts = vec![0; bins.max(1)];
        let step = (high - low).max(f64::MIN_POSITIVE) / counts.len() as f64;
        for &v in values {
            let k = ((f64::from(v) - low) / step).floor().clamp(0.0, counts.len() as f64 - 1.0);
            counts[k as usize] += 1;
        }
        Histogram { low, high, counts }
    }
}

impl Report {
    /// As JSON. Numbers that JSON has no form for are `null`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a record of numbers and text")
    }
    /// As one HTML page.
    pub fn to_html(&self) -> String {
        html::page(self)
    }
}
