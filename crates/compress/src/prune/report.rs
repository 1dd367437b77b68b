//! What pruning did, as a step of a report.

use super::layer::layers;
use super::size::{factors, symbols};
use super::{Options, Pruned};
use crate::report::{Cost, Difference, Histogram, Layer, Report, Step};
use crate::{Data, Executor};
use infc_ir::graph::{Graph, Value};
use infc_ir::{Problems, Tensor};
use std::time::Duration;

/// A report of this step alone.
pub fn report(
    before: &Graph,
    pruned: &Pruned,
    options: &Options,
    data: Option<&Data>,
    executor: &dyn Executor,
) -> Result<Report, Problems> {
    let step = step(before, pruned, options, data, executor)?;
    Ok(Report { model: before.name.clone(), machine: executor.name(), steps: vec![step] })
}

/// The step. Outputs and accuracy are those on the calibration data.
pub fn step(
    before: &Graph,
    pruned: &Pruned,
    options: &Options,
    data: Option<&Data>,
    executor: &dyn Executor,
) -> Result<Step, Problems> {
    let settings = [
        ("kind", options.kind.name().to_owned()),
        ("sparsity", options.sparsity.to_string()),
        ("fit", format!("{:?}", options.fit).to_lowercase()),
        ("data", data.map_or("none".to_owned(), |d| format!("{}, {} samples", d.source, d.len()))),
    ];
    let mut step = Step {
        name: "prune".to_owned(),
        settings: settings.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        notes: vec![format!(
            "{} of {} parameters are not 0; {} are left.",
            pruned.after.nonzero, pruned.before.parameters, pruned.after.parameters
        )],
        kept: pruned.notes.iter().filter_map(|n| n.split_once(": ")).map(|(a, b)| (a.to_owned(), b.to_owned())).collect(),
        ..Step::default()
    };
    step.notes.extend(pruned.fitted.clone());
    let sample = data.map(|d| d.sample(0)).transpose()?.map(|s| s.inputs);
    step.before = cost(before, pruned.before.macs, sample.as_deref(), executor)?;
    step.after = cost(&pruned.graph, pruned.after.macs, sample.as_deref(), executor)?;
    if let Some(data) = data {
        (step.outputs, step.accuracy) = differences(before, &pruned.graph, data, executor)?;
    }
    step.layers = layer_rows(before, pruned, sample.as_deref());
    Ok(step)
}

/// Size and speed of a model. Its bytes are those of its constants.
pub fn cost(g: &Graph, macs: f64, sample: Option<&[Tensor]>, executor: &dyn Executor) -> Result<Cost, Problems> {
    let mut runner = executor.load(g)?;
    let uses = g.use_counts();
    let constants = (0..g.values.len()).filter(|&i| uses[i] > 0).filter_map(|i| g.constant(Value(i as u32)));
    let latency_ms = match sample.filter(|_| executor.measures()) {
        Some(inputs) => Some(runner.time(inputs, Duration::from_millis(300))?.as_secs_f64() * 1e3),
        None => None,
    };
    Ok(Cost {
        bytes: constants.map(|t| t.bytes().len() as u64).sum(),
        artifact_bytes: runner.bytes(),
        macs: macs as u64,
        float_macs: macs as u64,
        latency_ms,
    })
}

/// The outputs of two models beside each other, and the share of labels that each gets right.
pub fn differences(
    a: &Graph,
    b: &Graph,
    data: &Data,
    executor: &dyn Executor,
) -> Result<(Vec<Difference>, Option<(f64, f64)>), Problems> {
    let (mut first, mut second) = (executor.load(a)?, executor.load(b)?);
    let names = a.outputs().iter().map(|&v| a.value(v).name.clone());
    let mut rows: Vec<Sums> = names.map(|name| Sums { name, least: 1.0, ..Sums::default() }).collect();
    let mut right = (0, 0, 0);
    for i in 0..data.len() {
        let sample = data.sample(i)?;
        let (x, y) = (first.run(&sample.inputs)?, second.run(&sample.inputs)?);
        rows.iter_mut().zip(x.iter().zip(&y)).for_each(|(r, (x, y))| r.add(x, y));
        if let (Some(label), Some(x), Some(y)) = (sample.label, x.first(), y.first()) {
            let hit = |t: &Tensor| usize::from(best(t, 0, t.len()) as i64 == label);
            right = (right.0 + hit(x), right.1 + hit(y), right.2 + 1);
        }
    }
    let accuracy = (right.2 > 0).then(|| (right.0 as f64 / right.2 as f64, right.1 as f64 / right.2 as f64));
    Ok((rows.into_iter().filter(|r| r.tensors > 0).map(Sums::difference).collect(), accuracy))
}

fn best(t: &Tensor, from: usize, n: usize) -> usize {
    (0..n).max_by(|&i, &j| t.float(from + i).total_cmp(&t.float(from + j)).then(j.cmp(&i))).unwrap_or(0)
}

#[derive(Default)]
struct Sums {
    name: String,
    largest: f64,
    signal: f64,
    noise: f64,
    shares: f64,
    cosine: f64,
    least: f64,
    tensors: usize,
    rows: usize,
    agree: usize,
}

impl Sums {
    fn add(&mut self, x: &Tensor, y: &Tensor) {
        if !x.dtype.is_float() || x.dims != y.dims || x.is_empty() {
            return;
        }
        let (mut xx, mut xy, mut yy, noise) = (0.0, 0.0, 0.0, self.noise);
        for i in 0..x.len() {
            let (a, b) = (x.float(i), y.float(i));
            self.largest = self.largest.max((a - b).abs());
            self.noise += (a - b).powi(2);
            (xx, xy, yy) = (xx + a * a, xy + a * b, yy + b * b);
        }
        self.signal += xx;
        let noise = self.noise - noise;
        self.shares += if noise == 0.0 { 0.0 } else { (noise / xx.max(f64::MIN_POSITIVE)).min(1e6) };
        let cosine = if xx * yy > 0.0 { xy / (xx * yy).sqrt() } else { f64::from(u8::from(xx == yy)) };
        self.cosine += cosine;
        self.least = self.least.min(cosine);
        self.tensors += 1;
        let width = x.dims.last().copied().unwrap_or(1).max(1);
        for r in (0..x.len()).step_by(width) {
            self.rows += 1;
            self.agree += usize::from(best(x, r, width) == best(y, r, width));
        }
    }
    fn difference(self) -> Difference {
        Difference {
            name: self.name,
            max_abs: self.largest,
            sqnr_db: 10.0 * (self.signal / self.noise).log10(),
            sqnr_samples_db: -10.0 * (self.shares / self.tensors as f64).log10(),
            cosine: self.cosine / self.tensors as f64,
            cosine_min: self.least,
            top1: self.agree as f64 / self.rows.max(1) as f64,
        }
    }
}

fn layer_rows(before: &Graph, pruned: &Pruned, sample: Option<&[Tensor]>) -> Vec<Layer> {
    let after = &pruned.graph;
    let symbols = sample.map(|s| symbols(after, s)).unwrap_or_default();
    let old = layers(before);
    let row = |l: super::layer::Layer| {
        let name = after.describe(l.node);
        let report = pruned.layers.iter().find(|r| r.name == name)?;
        let macs: f64 = factors(after, l.node)
            .iter()
            .map(|p| p.iter().map(|&a| super::size::extent(after, a, &symbols)).product::<f64>())
            .sum();
        let now = after.constant(after.node(l.node).operand(1)?)?.to_vec::<f32>();
        let then = old.iter().find(|o| before.describe(o.node) == name).and_then(|o| before.constant(o.weight));
        let range = |v: &[f32]| v.iter().fold((0.0f64, 0.0f64), |(a, b), &w| (a.min(f64::from(w)), b.max(f64::from(w))));
        let weights = then.map(|t| t.to_vec::<f32>()).map(|then| {
            let (a, b) = (range(&then), range(&now));
            let both = (a.0.min(b.0), a.1.max(b.1));
            (Histogram::of(&then, both, 48), Histogram::of(&now, both, 48))
        });
        Some(Layer {
            name,
            op: after.node(l.node).op.name().to_owned(),
            form: format!("{} of {} weights", report.after, report.before),
            macs: macs as u64,
            sqnr_db: report.error.filter(|e| *e > 0.0).map(|e| -10.0 * e.log10()),
            sensitivity_db: None,
            weights,
        })
    };
    layers(after).into_iter().filter_map(row).collect()
}
