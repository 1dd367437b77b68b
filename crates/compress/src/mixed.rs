//! Mixed precision under a budget: which layers are taken on integers and which stay in float.
//!
//! Each layer alone is quantised and the loss at the outputs measured (its sensitivity), and how much faster the model gets by it. Layers
//! are then ordered by loss for time gained, and by halving that order the largest set of them is found that meets the budget; every set
//! looked at is measured as a whole. A set that is slower than float on the machine is refused.

use crate::compare::{self, Comparison};
use crate::data::Data;
use crate::executor::Executor;
use crate::quantize::{self, Calibration, Quantised, Settings};
use crate::report::Point;
use infc_ir::{Graph, Problems};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What must not be lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Share of labelled samples that may be lost, from 0 to 1.
    MaxDrop(f64),
    /// Least signal-to-noise ratio of every output, in dB.
    MinSqnr(f64),
    /// Least mean cosine of every output.
    MinCosine(f64),
}

impl Budget {
    /// How good a model is in the budget's terms: larger is better.
    pub fn quality(self, c: &Comparison) -> f64 {
        let least = |of: fn(&crate::report::Difference) -> f64| c.outputs.iter().map(of).fold(f64::INFINITY, f64::min);
        match self {
            Budget::MaxDrop(_) => c.accuracy.map_or(f64::NEG_INFINITY, |(before, after)| after - before),
            Budget::MinSqnr(_) => least(|d| d.sqnr_db),
            Budget::MinCosine(_) => least(|d| d.cosine),
        }
    }
    /// Does this quality do?
    pub fn met(self, quality: f64) -> bool {
        match self {
            Budget::MaxDrop(most) => quality >= -most - 1e-12,
            Budget::MinSqnr(least) | Budget::MinCosine(least) => quality >= least,
        }
    }
    /// A quality in words.
    pub fn words(self, quality: f64) -> String {
        match self {
            Budget::MaxDrop(_) => format!("{:.2} points of accuracy lost", -100.0 * quality),
            Budget::MinSqnr(_) => format!("SQNR {quality:.2} dB"),
            Budget::MinCosine(_) => format!("cosine {quality:.6}"),
        }
    }
}

/// A layer by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// Its name.
    pub layer: String,
    /// Least SQNR of the outputs, in dB, if only it is quantised.
    pub sqnr_db: f64,
    /// Milliseconds that the model gets faster by it; negative if it gets slower.
    pub gain_ms: f64,
}

/// What the search found.
pub struct Found {
    /// The quantised model.
    pub model: Quantised,
    /// What each layer does by itself.
    pub sensitivity: Vec<Sensitivity>,
    /// All choices that were measured, and those that were only predicted.
    pub points: Vec<Point>,
    /// The quality of the choice.
    pub quality: f64,
    /// Latency of the model in float and of the choice, in milliseconds.
    pub latency_ms: Option<(f64, f64)>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// Everything a choice is measured with.
struct Bench<'a> {
    before: &'a Graph,
    calibration: &'a Calibration,
    settings: &'a Settings,
    budget: Budget,
    data: &'a Data<'a>,
    executor: &'a dyn Executor,
    time: Duration,
}

/// Quality and latency of a choice.
#[derive(Clone, Copy, Debug)]
struct Measured {
    quality: f64,
    sqnr_db: f64,
    latency_ms: Option<f64>,
}

impl Bench<'_> {
    fn model(&self, chosen: &BTreeSet<String>) -> Result<Quantised, Problems> {
        let keep = self.calibration.layers.iter().map(|l| l.name.clone()).filter(|n| !chosen.contains(n)).collect();
        quantize::quantize_layers(self.calibration, &Settings { keep, ..self.settings.clone() })
    }
    fn latency(&self, g: &Graph) -> Result<Option<f64>, Problems> {
        if !self.executor.measures() {
            return Ok(None);
        }
        let inputs = self.data.sample(0)?.inputs;
        Ok(Some(self.executor.load(g)?.time(&inputs, self.time)?.as_secs_f64() * 1e3))
    }
    fn measure(&self, g: &Graph, data: &Data) -> Result<Measured, Problems> {
        let c = compare::graphs(self.before, g, self.executor, data, false)?;
        let sqnr_db = Budget::MinSqnr(0.0).quality(&c);
        Ok(Measured { quality: self.budget.quality(&c), sqnr_db, latency_ms: self.latency(g)? })
    }
}

/// Finds the fastest set of layers that keeps to the budget.
pub fn search(
    before: &Graph,
    calibration: &Calibration,
    settings: &Settings,
    budget: Budget,
    data: &Data,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Found, Problems> {
    if let (Budget::MaxDrop(_), false) = (budget, data.labelled()) {
        let help = "give labelled data (an array 'labels'), or a budget without labels: --min-sqnr or --min-cosine";
        return Err(Problems::one(&data.source, "has no labels to measure accuracy with", help));
    }
    let bench = Bench { before, calibration, settings, budget, data, executor, time: Duration::from_millis(150) };
    let (sensitivity, float_ms) = sensitivity(&bench, progress)?;
    let order = order(&sensitivity, float_ms.is_some());
    let mut points = vec![];
    let point =
        |name: String, m: &Measured| Point { name, latency_ms: m.latency_ms.unwrap_or(0.0), quality: m.quality, measured: true };
    if let Some(ms) = float_ms {
        let quality = match budget {
            Budget::MaxDrop(_) => 0.0,
            Budget::MinCosine(_) => 1.0,
            Budget::MinSqnr(_) => f64::INFINITY,
        };
        points.push(Point { name: "float".to_owned(), latency_ms: ms, quality, measured: true });
    }
    // The first `n` of the order are quantised. More layers lose more, so that halving finds the largest number that does.
    let set = |n: usize| order[..n].iter().cloned().collect::<BTreeSet<String>>();
    let mut seen: BTreeMap<usize, Measured> = BTreeMap::new();
    let (mut good, mut bad) = (0, order.len() + 1);
    while good + 1 < bad {
        let n = if seen.is_empty() { order.len() } else { (good + bad) / 2 };
        let m = bench.measure(&bench.model(&set(n))?.graph, data)?;
        points.push(point(format!("{n} of {} layers", order.len()), &m));
        if let Some(ms) = float_ms {
            let gain: f64 = order[..n].iter().filter_map(|l| sensitivity.iter().find(|s| s.layer == *l)).map(|s| s.gain_ms).sum();
            points.push(Point {
                name: format!("{n} layers, predicted"),
                latency_ms: ms - gain,
                quality: m.quality,
                measured: false,
            });
        }
        seen.insert(n, m);
        if budget.met(m.quality) {
            good = n
        } else {
            bad = n
        }
        progress("search", seen.len(), seen.len() + (bad - good).ilog2() as usize);
    }
    choose(&bench, &set, good, &seen, sensitivity, float_ms, points)
}

/// The choice, unless nothing does or it is no gain.
fn choose(
    bench: &Bench,
    set: &dyn Fn(usize) -> BTreeSet<String>,
    good: usize,
    seen: &BTreeMap<usize, Measured>,
    sensitivity: Vec<Sensitivity>,
    float_ms: Option<f64>,
    points: Vec<Point>,
) -> Result<Found, Problems> {
    let Some(m) = seen.get(&good) else {
        let best = seen.iter().max_by(|a, b| a.1.quality.total_cmp(&b.1.quality));
        let found = best.map_or(String::new(), |(n, m)| {
            format!(
                ": the best found, {n} of {} layers quantised, has {}",
                bench.calibration.layers.len(),
                bench.budget.words(m.quality)
            )
        });
        let help = "give more typical data, a wider budget, or leave the model in float";
        return Err(Problems::one("budget", format!("cannot be met{found}"), help));
    };
    if let (Some(float), Some(ms)) = (float_ms, m.latency_ms)
        && ms > float
    {
        let slow: Vec<String> = sensitivity.iter().filter(|s| s.gain_ms < 0.0).map(|s| format!("'{}'", s.layer)).collect();
        let why = if slow.is_empty() { String::new() } else { format!(" (slower by themselves: {})", slow.join(", ")) };
        let message = format!(
            "{good} layers on integers take {ms:.3} ms on {}, the model in float {float:.3} ms: refused{why}",
            bench.executor.name()
        );
        return Err(Problems::one(
            "mixed precision",
            message,
            "keep the model in float on this machine, or choose another: --target",
        ));
    }
    Ok(Found {
        model: bench.model(&set(good))?,
        sensitivity,
        points,
        quality: m.quality,
        latency_ms: float_ms.zip(m.latency_ms),
        notes: vec![format!(
            "{good} of {} layers are quantised: {}",
            bench.calibration.layers.len(),
            bench.budget.words(m.quality)
        )],
    })
}

/// Each layer by itself, and the latency in float.
fn sensitivity(bench: &Bench, progress: &mut dyn FnMut(&str, usize, usize)) -> Result<(Vec<Sensitivity>, Option<f64>), Problems> {
    let float_ms = bench.latency(bench.before)?;
    let part = bench.data.sample_of(8).into_iter().map(|i| bench.data.sample(i)).collect::<Result<Vec<_>, _>>()?;
    let part = Data::of(bench.before, part);
    let mut out = vec![];
    let all = bench.calibration.layers.len();
    for (i, l) in bench.calibration.layers.iter().enumerate() {
        let model = bench.model(&BTreeSet::from([l.name.clone()]))?;
        let m = bench.measure(&model.graph, &part)?;
        let gain_ms = float_ms.zip(m.latency_ms).map_or(0.0, |(a, b)| a - b);
        out.push(Sensitivity { layer: l.name.clone(), sqnr_db: m.sqnr_db, gain_ms });
        progress("sensitivity", i + 1, all);
    }
    Ok((out, float_ms))
}

/// Layers in the order in which they are quantised: first those that lose little for what they gain. Layers that gain nothing come last.
fn order(sensitivity: &[Sensitivity], timed: bool) -> Vec<String> {
    let loss = |s: &Sensitivity| 10f64.powf(-s.sqnr_db / 10.0);
    let price = |s: &Sensitivity| match timed {
        true if s.gain_ms <= 0.0 => f64::INFINITY,
        true => loss(s) / s.gain_ms,
        false => loss(s),
    };
    let mut order: Vec<&Sensitivity> = sensitivity.iter().collect();
    order.sort_by(|a, b| price(a).total_cmp(&price(b)).then(loss(a).total_cmp(&loss(b))));
    order.into_iter().map(|s| s.layer.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(layer: &str, sqnr_db: f64, gain_ms: f64) -> Sensitivity {
        Sensitivity { layer: layer.to_owned(), sqnr_db, gain_ms }
    }

    #[test]
    fn cheap_losses_for_large_gains_come_first() {
        let s = [layer("slow", 60.0, -1.0), layer("sensitive", 10.0, 1.0), layer("small", 40.0, 0.01), layer("large", 40.0, 1.0)];
        assert_eq!(order(&s, true), ["large", "small", "sensitive", "slow"]);
        assert_eq!(order(&s, false), ["slow", "small", "large", "sensitive"]);
    }

    #[test]
    fn budgets_say_what_does() {
        assert!(Budget::MaxDrop(0.005).met(-0.005) && !Budget::MaxDrop(0.005).met(-0.0051));
        assert!(Budget::MinSqnr(30.0).met(30.0) && !Budget::MinSqnr(30.0).met(29.9));
        assert!(!Budget::MinCosine(0.999).met(f64::NAN));
    }
}
