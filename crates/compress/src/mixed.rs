//! Mixed precision under a budget: which layers are taken on integers and which stay in float.
//!
//! All layers in both forms are compiled once, with a switch for each ([`crate::quantize::switched`]); so a choice costs runs, and no
//! compilation. Each layer alone is switched, which gives the noise that it puts into each output (its sensitivity). Noise of layers
//! adds up, so that an order of layers follows: those go to float first that take most noise off the worst outputs for the
//! multiply-accumulates they cost. By halving that order the largest set of quantised layers is found that meets the budget. From there on models are
//! compiled and measured on all samples, with settled biases: with fewer layers in float, and where no more may be in float with inputs in two bytes.
//! Of those that meet the budget the one with the fewest multiply-accumulates in float is taken; one that is slower than float on the machine is not.
//!
//! [`quantize`] is the road without an explicit budget: all layers on integers, and only where outputs lose too much some in float, then some with
//! inputs in two bytes.

use crate::compare::{self, Comparison};
use crate::data::Data;
use crate::executor::{Executor, Runner};
use crate::layers;
use crate::quantize::{self, Calibration, Knowledge, Quantised, Scheme, Settings};
use crate::report::Point;
use infc_ir::{DType, Graph, Problems, Tensor};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

/// Samples that sensitivities are measured on, and those that choices are compared on where there are no labels.
const SENSITIVITY: usize = 8;
const CHOICES: usize = 16;
/// Multiply-accumulates that sensitivities may take, unless one sample takes more.
const WORK: f64 = 1e12;
/// How long a model is run to time it.
const TIME: Duration = Duration::from_millis(150);

/// Of all samples together and each alike, for comparisons.
const ALIKE: Budget = Budget::MinSampleSqnr(0.0);

/// What must not be lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Share of labelled samples that may be lost, from 0 to 1.
    MaxDrop(f64),
    /// Least signal-to-noise ratio of every output, in dB.
    MinSqnr(f64),
    /// The same, and also where each sample counts alike.
    MinSampleSqnr(f64),
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
            Budget::MinSampleSqnr(_) => least(|d| d.sqnr_db.min(d.sqnr_samples_db)),
            Budget::MinCosine(_) => least(|d| d.cosine),
        }
    }
    /// Does this quality do?
    pub fn met(self, quality: f64) -> bool {
        match self {
            Budget::MaxDrop(most) => quality >= -most - 1e-12,
            Budget::MinSqnr(least) | Budget::MinSampleSqnr(least) | Budget::MinCosine(least) => quality >= least,
        }
    }
    /// A quality in words.
    pub fn words(self, quality: f64) -> String {
        match self {
            Budget::MaxDrop(_) => format!("{:.2} points of accuracy lost", -100.0 * quality),
            Budget::MinSqnr(_) => format!("SQNR {quality:.2} dB"),
            Budget::MinSampleSqnr(_) => format!("SQNR {quality:.2} dB, of all samples together and each alike"),
            Budget::MinCosine(_) => format!("cosine {quality:.6}"),
        }
    }
}

/// What quantisation without a budget is to keep, where some layers in float are enough for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aim {
    /// Least signal-to-noise ratio of every output, in dB, over all samples together and where each counts alike.
    pub sqnr_db: f64,
    /// The largest share of the multiply-accumulates that goes to float for it.
    pub float_macs: f64,
    /// The largest share of the multiply-accumulates that is taken twice for it where that is not enough, with inputs in two bytes.
    pub double_macs: f64,
}

impl Default for Aim {
    fn default() -> Aim {
        Aim { sqnr_db: 20.0, double_macs: 0.25, float_macs: 0.1 }
    }
}

/// What a search under a budget may treat otherwise than in one byte, as shares of the multiply-accumulates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The largest share that stays in float.
    pub float_macs: f64,
    /// The largest share that is taken twice, with inputs in two bytes, where that is not enough.
    pub double_macs: f64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { float_macs: 1.0, double_macs: Aim::default().double_macs }
    }
}

/// Samples that are held out of the calibration to see what was lost, where there are twice as many: weights are fitted to the others, which lose
/// less than what comes later. What is asked for beyond the aim on them, in dB. Where the aim is met, all samples
/// are calibrated on then; else what was judged is what comes out.
const HELD: usize = 4;
const MARGIN: f64 = 2.0;
/// What float for some layers, or a second byte, has to gain in dB: for less it is not worth its time.
const GAIN: f64 = 0.5;
/// What smoothing has to gain in dB, and less where outputs have many numbers on the samples, which together say more; the samples that it is judged on.
const SMOOTHER: f64 = 1.0;
const SMOOTHER_OF_MANY: f64 = 0.3;
const MANY: usize = 10_000;
const SMOOTHED: usize = 32;
/// What a layer takes with inputs in two bytes beyond what it takes in one, as a multiple of that; for predictions only.
const SECOND: f64 = 2.0;

/// Numbers of layers that are treated otherwise than others.
#[derive(Clone, Debug, Default, PartialEq)]
struct Choice {
    /// They stay in float.
    float: Vec<usize>,
    /// Their inputs are stored in two bytes.
    fine: Vec<usize>,
}

impl Choice {
    fn float(layers: &[usize]) -> Choice {
        Choice { float: layers.to_vec(), fine: vec![] }
    }
}

/// A layer by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// Its name.
    pub layer: String,
    /// Noise that it alone puts into each output, as a share of the output's signal: the mean over the samples; then the same outputs again, over
    /// all samples together, where those with a large signal count most.
    pub noise: Vec<f64>,
    /// What it costs to leave it in float: its share of the multiply-accumulates, and a little of its share of the weights.
    pub price: f64,
    /// Its share of the multiply-accumulates.
    pub macs: f64,
}

impl Sensitivity {
    /// Least SQNR of the outputs, in dB, if only it is quantised.
    pub fn sqnr_db(&self) -> f64 {
        -10.0 * self.noise.iter().copied().fold(0.0, f64::max).log10()
    }
}

/// What the search found.
pub struct Found {
    /// The quantised model.
    pub model: Quantised,
    /// What each layer does by itself; empty if that was not looked at.
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

/// A model with switches and some samples, with what the model in float answers for them.
struct Switches {
    runner: Box<dyn Runner>,
    data: Data<'static>,
    wanted: Vec<Vec<Tensor>>,
    names: Vec<String>,
    count: usize,
    /// Numbers of the samples that tell the order of layers, and of those that tell what a choice loses.
    ordering: Vec<usize>,
    judging: Vec<usize>,
}

/// Answers that are known already, in order.
struct Known(VecDeque<Vec<Tensor>>);

impl Runner for Known {
    fn run(&mut self, _: &[Tensor]) -> Result<Vec<Tensor>, Problems> {
        Ok(self.0.pop_front().expect("one for each sample"))
    }
}

/// The model with some switches on.
struct Chosen<'a>(&'a mut dyn Runner, Vec<Tensor>);

impl Runner for Chosen<'_> {
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problems> {
        self.0.run(&[inputs, &self.1].concat())
    }
}

impl Switches {
    fn new(before: &Graph, bench: &mut Bench, most: usize) -> Result<Switches, Problems> {
        let runner = bench.executor.load(&quantize::switched(bench.calibration, bench.settings)?)?;
        let read = |data: &Data| data.sample_of(most).into_iter().map(|i| data.sample(i)).collect::<Result<Vec<_>, _>>();
        let mut samples = read(bench.data)?;
        let judging: Vec<usize> = (0..samples.len()).collect();
        let mut ordering = judging.clone();
        if let Some(fitted) = bench.fitted {
            samples.extend(read(fitted)?);
            ordering = (0..samples.len()).collect();
        }
        let wanted = samples.iter().map(|s| bench.float.run(&s.inputs)).collect::<Result<_, _>>()?;
        let count = bench.calibration.layers.len();
        Ok(Switches { runner, data: Data::of(before, samples), wanted, names: bench.names.clone(), count, ordering, judging })
    }
    /// Answers with these layers quantised, on some of the samples.
    fn compare(&mut self, on: &dyn Fn(usize) -> bool, part: &[usize]) -> Result<Comparison, Problems> {
        let mut known = Known(part.iter().map(|&i| self.wanted[i].clone()).collect());
        let samples = part.iter().map(|&i| self.data.sample(i)).collect::<Result<Vec<_>, _>>()?;
        let switches = (0..self.count).map(|k| Tensor::from_values(DType::Bool, [], [u64::from(on(k))])).collect();
        let mut chosen = Chosen(&mut *self.runner, switches);
        let data = self.data.with(samples);
        compare::run(&mut known, &mut chosen, &self.names, 0, &data, false, &mut |_| {})
    }
}

/// Each layer by itself.
fn sensitivity(
    switches: &mut Switches,
    calibration: &Calibration,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Vec<Sensitivity>, Problems> {
    let (g, all) = (&calibration.graph, calibration.layers.len());
    let macs: BTreeMap<_, u64> = layers::macs(g, &switches.data.sample(0)?.inputs).into_iter().map(|m| (m.0, m.1)).collect();
    let total = macs.values().sum::<u64>().max(1) as f64;
    let size = |l: &layers::Layer| l.weights.iter().map(|w| l.weight(g, w.0).len()).sum::<usize>() as f64;
    let weights = calibration.layers.iter().map(size).sum::<f64>().max(1.0);
    // The number of samples must not depend on the time that they take: the same model is to come out again.
    let samples = (WORK / total / all.max(1) as f64).clamp(1.0, SENSITIVITY as f64) as usize;
    let mut out = vec![];
    let all_of_them = switches.ordering.len();
    let samples = samples.min(all_of_them);
    let part: Vec<usize> = (0..samples).map(|i| switches.ordering[i * all_of_them / samples]).collect();
    for (i, l) in calibration.layers.iter().enumerate() {
        let c = switches.compare(&|k| k == i, &part)?;
        // An output that is no number any more is all noise.
        let noise = |db: f64| if db.is_nan() { f64::INFINITY } else { 10f64.powf(-db / 10.0) };
        let (alike, together) = (c.outputs.iter().map(|d| d.sqnr_samples_db), c.outputs.iter().map(|d| d.sqnr_db));
        let macs = macs.get(&l.node).copied().unwrap_or(0) as f64 / total;
        let price = macs + 0.1 * size(l) / weights + 1e-4;
        out.push(Sensitivity { layer: l.name.clone(), noise: alike.chain(together).map(noise).collect(), price, macs });
        progress("sensitivity", i + 1, all);
    }
    Ok(out)
}

/// Numbers of the layers in the order in which they go to float, at most as many as cost `most` of the multiply-accumulates.
///
/// Noise adds up. Again and again a limit lies a little below the noise of the worst output; what counts is the noise above it that a
/// layer takes away, of all outputs together, for its price.
fn order(s: &[Sensitivity], most: f64) -> Vec<usize> {
    let outputs = s.iter().map(|l| l.noise.len()).max().unwrap_or(0);
    let mut total: Vec<f64> = (0..outputs).map(|o| s.iter().map(|l| l.noise[o].min(1e6)).sum()).collect();
    let (mut out, mut left, mut cost) = (vec![], (0..s.len()).collect::<Vec<usize>>(), 0.0);
    loop {
        left.retain(|&i| cost + s[i].macs <= most + 1e-12);
        if left.is_empty() {
            return out;
        }
        let limit = 0.8 * total.iter().copied().fold(0.0, f64::max);
        let relief = |i: usize| -> f64 {
            let of = |(t, n): (&f64, &f64)| if *t > limit { n.min(1e6) / t } else { 0.0 };
            total.iter().zip(&s[i].noise).map(of).sum::<f64>() / s[i].price
        };
        let best = (0..left.len()).max_by(|&a, &b| relief(left[a]).total_cmp(&relief(left[b])).then(b.cmp(&a)));
        let i = left.remove(best.expect("not empty"));
        cost += s[i].macs;
        total.iter_mut().zip(&s[i].noise).for_each(|(t, n)| *t = (*t - n.min(1e6)).max(0.0));
        out.push(i);
    }
}

/// Settings as they are best by themselves, with smoothing or without; the others, where both were tried; and what there is to say of it.
struct Smoothing {
    first: Settings,
    second: Option<Settings>,
    note: Option<String>,
}

/// Whether to smooth. All layers on integers are calibrated on one half of the samples, with smoothing and without, and judged on the other half:
/// what smoothing gains in each layer need not reach the outputs, and factors of channels that are rarely other than 0 are wrong about later samples.
/// The fewer samples there are, the more of that shows; with all of them it is less.
fn smoothing(
    g: &Graph,
    settings: &Settings,
    knowledge: &Knowledge,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Smoothing, Problems> {
    let as_asked = || Smoothing { first: settings.clone(), second: None, note: None };
    let (Scheme::Static, true, Knowledge::Data(data, runs)) = (settings.scheme, settings.smooth, knowledge) else {
        return Ok(as_asked());
    };
    // One sample alone has no halves.
    if data.len() < 2 {
        return Ok(as_asked());
    }
    let (mut judges, fitted) = data.parted(data.len() / 2);
    judges.limit(SMOOTHED, None);
    let mut float = executor.load(g)?;
    let names = output_names(g);
    let mut quality = |settings: &Settings| -> Result<Option<f64>, Problems> {
        let c = quantize::calibrate(g, settings, &Knowledge::Data(&fitted, *runs), progress)?;
        if settings.smooth && !c.smoothed {
            return Ok(None);
        }
        let mut model = quantize::quantize_layers(&c, settings)?.graph;
        if let Some(means) = quantize::wanted(&c, settings, &fitted, *runs)? {
            quantize::settle(&mut model, &c, &means, &fitted, *runs)?;
        }
        let mut runner = executor.load(&model)?;
        let c = compare::run(&mut *float, &mut *runner, &names, 0, &judges, false, &mut |_| {})?;
        Ok(Some(ALIKE.quality(&c)))
    };
    let without = Settings { smooth: false, ..settings.clone() };
    let Some(with) = quality(settings)? else {
        // What it would do with all samples nobody knows.
        let note = Some("smoothing is left out: with one half of the samples it does nothing".to_owned());
        return Ok(Smoothing { first: without, second: None, note });
    };
    let left = quality(&without)?.unwrap_or(f64::NAN);
    let numbers = float.run(&judges.sample(0)?.inputs)?.iter().map(Tensor::len).min().unwrap_or(0) * judges.len();
    let least = if numbers >= MANY { SMOOTHER_OF_MANY } else { SMOOTHER };
    let figures = format!(
        "calibrated on one half of the samples and judged on the other, outputs keep {} with smoothing, {} without",
        ALIKE.words(with),
        ALIKE.words(left)
    );
    // Outputs that are no numbers are worst.
    Ok(match with > left + least || left.is_nan() && !with.is_nan() {
        true => Smoothing { first: settings.clone(), second: Some(without), note: Some(figures) },
        false => {
            Smoothing { first: without, second: Some(settings.clone()), note: Some(format!("smoothing is left out: {figures}")) }
        }
    })
}

fn output_names(g: &Graph) -> Vec<String> {
    g.outputs().iter().map(|&v| g.value(v).name.clone()).collect()
}

/// Everything a choice is measured with.
struct Bench<'a> {
    calibration: &'a Calibration,
    settings: &'a Settings,
    budget: Budget,
    data: &'a Data<'a>,
    /// Further samples, for the order of layers alone.
    fitted: Option<&'a Data<'a>>,
    /// Samples that biases are settled on, and the means that they have in float.
    settled: Option<(&'a Data<'a>, quantize::Means)>,
    executor: &'a dyn Executor,
    float: Box<dyn Runner>,
    float_ms: Option<f64>,
    names: Vec<String>,
}

/// A choice as a model, compiled and measured on all samples.
struct Measured {
    model: Quantised,
    quality: f64,
    latency_ms: Option<f64>,
}

impl<'a> Bench<'a> {
    fn new(
        before: &Graph,
        calibration: &'a Calibration,
        settings: &'a Settings,
        budget: Budget,
        data: &'a Data<'a>,
        executor: &'a dyn Executor,
    ) -> Result<Bench<'a>, Problems> {
        let mut float = executor.load(before)?;
        let float_ms = match executor.measures() {
            true => Some(float.time(&data.sample(0)?.inputs, TIME)?.as_secs_f64() * 1e3),
            false => None,
        };
        let names = output_names(before);
        Ok(Bench { calibration, settings, budget, data, fitted: None, settled: None, executor, float, float_ms, names })
    }
    fn measure(&mut self, choice: &Choice) -> Result<Measured, Problems> {
        let mut model = chosen(self.calibration, choice, self.settings)?;
        if let Some((data, means)) = &self.settled {
            quantize::settle(&mut model.graph, self.calibration, means, data, self.executor)?;
        }
        let mut runner = self.executor.load(&model.graph)?;
        let c = compare::run(&mut *self.float, &mut *runner, &self.names, 0, self.data, false, &mut |_| {})?;
        let latency_ms = match self.executor.measures() {
            true => Some(runner.time(&self.data.sample(0)?.inputs, TIME)?.as_secs_f64() * 1e3),
            false => None,
        };
        Ok(Measured { model, quality: self.budget.quality(&c), latency_ms })
    }
}

/// The model of a choice.
fn chosen(calibration: &Calibration, choice: &Choice, settings: &Settings) -> Result<Quantised, Problems> {
    let mut settings = settings.clone();
    settings.two_bytes.extend(choice.fine.iter().map(|&i| calibration.layers[i].name.clone()));
    let mut c = calibration.clone();
    for &i in &choice.float {
        c.kept.push((c.layers[i].name.clone(), "loses more than the budget has".to_owned()));
    }
    let float: HashSet<_> = choice.float.iter().map(|&i| c.layers[i].node).collect();
    c.layers.retain(|l| !float.contains(&l.node));
    quantize::quantize_layers(&c, &settings)
}

/// The smallest number of layers in float, the first of an order, that is good by `met`; `bad` is too few, and `most` as many as may be.
/// More layers lose less, so that halving finds it.
fn least(bad: usize, most: usize, mut met: impl FnMut(usize) -> Result<bool, Problems>) -> Result<Option<usize>, Problems> {
    let (mut bad, mut good) = (bad, most + 1);
    while good - bad > 1 {
        let n = (good + bad) / 2;
        if met(n)? { good = n } else { bad = n }
    }
    Ok((good <= most).then_some(good))
}

/// What the search by switches has to say.
struct Ordered {
    sensitivity: Vec<Sensitivity>,
    /// Layers as they go to float.
    order: Vec<usize>,
    /// How many of them meet the budget by switches, if that can be.
    enough: Option<usize>,
    /// The quality of each number that was looked at.
    seen: BTreeMap<usize, f64>,
}

/// Orders the layers and finds how many of them have to stay in float, by switches.
fn ordered(
    before: &Graph,
    bench: &mut Bench,
    float_macs: f64,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Ordered, Problems> {
    // Shares of samples that are right need many of them.
    let most = if matches!(bench.budget, Budget::MaxDrop(_)) { bench.data.len() } else { CHOICES };
    let (calibration, budget) = (bench.calibration, bench.budget);
    let mut switches = Switches::new(before, bench, most)?;
    let sensitivity = sensitivity(&mut switches, calibration, progress)?;
    let order = order(&sensitivity, float_macs);
    let mut seen = BTreeMap::new();
    let judging = switches.judging.clone();
    let mut met = |n: usize| -> Result<bool, Problems> {
        let c = switches.compare(&|k| !order[..n].contains(&k), &judging)?;
        seen.insert(n, budget.quality(&c));
        progress("search", seen.len(), order.len().max(1).ilog2() as usize + 2);
        Ok(budget.met(seen[&n]))
    };
    // One layer at least is quantised.
    let last = order.len().min(calibration.layers.len().saturating_sub(1));
    let enough = if met(0)? { Some(0) } else { least(0, last, met)? };
    Ok(Ordered { sensitivity, order, enough, seen })
}

/// Finds the choice that keeps to the budget with the fewest multiply-accumulates in float, within limits, of those that are not slower than
/// the model in float. The model is a prepared one; it is calibrated by what is known, and judged on `data`.
#[expect(clippy::too_many_arguments, reason = "the road of a command: what to do, with what, and who is told")]
pub fn search(
    before: &Graph,
    settings: &Settings,
    budget: Budget,
    limits: Limits,
    knowledge: &Knowledge,
    data: &Data,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Found, Problems> {
    if let (Budget::MaxDrop(_), false) = (budget, data.labelled()) {
        let help = "give labelled data (an array 'labels'), or a budget without labels: --min-sqnr or --min-cosine";
        return Err(Problems::one(&data.source, "has no labels to measure accuracy with", help));
    }
    let smoothing = smoothing(before, settings, knowledge, executor, progress)?;
    let mut find = |settings: &Settings| searched(before, settings, budget, limits, knowledge, data, executor, progress);
    let mut found = match (find(&smoothing.first), &smoothing.second) {
        (Err(first), Some(second)) => return find(second).map_err(|_| first),
        (found, _) => found?,
    };
    found.notes.extend(smoothing.note);
    Ok(found)
}

/// As [`search`], with smoothing as it is set.
#[expect(clippy::too_many_arguments, reason = "as above")]
fn searched(
    before: &Graph,
    settings: &Settings,
    budget: Budget,
    limits: Limits,
    knowledge: &Knowledge,
    data: &Data,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Found, Problems> {
    let calibration = quantize::calibrate(before, settings, knowledge, progress)?;
    let mut bench = Bench::new(before, &calibration, settings, budget, data, executor)?;
    if let Knowledge::Data(fitted, runs) = knowledge {
        bench.settled = quantize::wanted(&calibration, settings, fitted, *runs)?.map(|means| (*fitted, means));
    }
    let found = ordered(before, &mut bench, limits.float_macs, progress)?;
    let mut tried = vec![];
    compiled(&mut bench, &found, limits, &mut tried, progress)?;
    let share = |of: &[usize]| -> f64 { of.iter().map(|&i| found.sensitivity[i].macs).sum() };
    let mut good: Vec<usize> = (0..tried.len()).filter(|&i| budget.met(tried[i].1.quality)).collect();
    // Of equals the first that was tried.
    let cost = |i: usize| (share(&tried[i].0.float), share(&tried[i].0.fine));
    good.sort_by(|&a, &b| cost(a).0.total_cmp(&cost(b).0).then(cost(a).1.total_cmp(&cost(b).1)));
    if good.is_empty() {
        let all = calibration.layers.len();
        let by_switches = found.seen.iter().map(|(n, q)| (*q, format!("{} of {all} layers quantised", all - n)));
        let by_models = tried.iter().map(|(c, m)| (m.quality, choice_words(&calibration, c, &found.sensitivity)));
        let best = by_switches.chain(by_models).filter(|b| !b.0.is_nan()).max_by(|a, b| a.0.total_cmp(&b.0));
        let words = best.map_or(String::new(), |(q, w)| format!(": the best found, {w}, has {}", budget.words(q)));
        let help =
            "give more typical data, a wider budget or a larger --float-macs or --double-macs, or leave the model in float";
        return Err(Problems::one("budget", format!("cannot be met{words}"), help));
    }
    let (float_ms, slower) = (bench.float_ms, |i: usize| bench.float_ms.zip(tried[i].1.latency_ms).filter(|(f, ms)| ms > f));
    let Some(best) = good.iter().copied().find(|&i| slower(i).is_none()) else {
        let least = good.iter().filter_map(|&i| Some((i, slower(i)?))).min_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let (i, (float, ms)) = least.expect("all are slower");
        let words = choice_words(&calibration, &tried[i].0, &found.sensitivity);
        let message = format!("{words}: takes {ms:.3} ms on {}, the model in float {float:.3} ms: refused", executor.name());
        let help = "keep the model in float on this machine, or choose another: --target";
        return Err(Problems::one("mixed precision", message, help));
    };
    if float_ms.is_some() && !tried.iter().any(|t| t.0 == Choice::default()) {
        tried.push((Choice::default(), bench.measure(&Choice::default())?));
    }
    let points = points(&bench, &found, &tried);
    let (choice, chosen) = tried.swap_remove(best);
    let words = choice_words(&calibration, &choice, &found.sensitivity);
    let notes = vec![format!("{words}: {}", budget.words(chosen.quality))];
    result(before, chosen, found.sensitivity, points, float_ms, notes)
}

/// Tries choices as compiled models, from what switches said: as few layers in float as halving finds; if as many as may be do not
/// do, as few others with inputs in two bytes. Float comes first because it takes less time.
fn compiled(
    bench: &mut Bench,
    found: &Ordered,
    limits: Limits,
    tried: &mut Vec<(Choice, Measured)>,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<(), Problems> {
    let (calibration, settings, budget) = (bench.calibration, bench.settings, bench.budget);
    let (layers, order) = (&calibration.layers, &found.order);
    let float = |n: usize| Choice::float(&order[..n]);
    // What switches said of some samples need not hold for all, nor with settled biases.
    let last = order.len().min(layers.len().saturating_sub(1));
    let n = found.enough.unwrap_or(last);
    tried.push((float(n), bench.measure(&float(n))?));
    let mut good = budget.met(tried[0].1.quality);
    if !good && bench.settled.is_some() {
        // Where other data than what they were settled on shows that it does harm, biases stay.
        let settled = bench.settled.take();
        let plain = bench.measure(&float(n))?;
        if plain.quality > tried[0].1.quality {
            good = budget.met(plain.quality);
            tried[0].1 = plain;
        } else {
            bench.settled = settled;
        }
    }
    let mut met = |choice: Choice| -> Result<bool, Problems> {
        if let Some(t) = tried.iter().find(|t| t.0 == choice) {
            return Ok(budget.met(t.1.quality));
        }
        let m = bench.measure(&choice)?;
        let good = budget.met(m.quality);
        tried.push((choice, m));
        progress("choices", tried.len(), 2 * layers.len().ilog2() as usize + 4);
        Ok(good)
    };
    let enough = match good {
        true if n == 0 || met(float(0))? => Some(0),
        true => Some(least(0, n - 1, |k| met(float(k)))?.unwrap_or(n)),
        false => least(n, last, |k| met(float(k)))?,
    };
    if enough.is_some() {
        return Ok(());
    }
    let first = order[..last].to_vec();
    let fine = doubled(calibration, settings, &found.sensitivity, &first, limits.double_macs);
    let both = |k: usize| Choice { float: first.clone(), fine: fine[..k].to_vec() };
    if !fine.is_empty() && met(both(fine.len()))? {
        least(0, fine.len() - 1, |k| met(both(k)))?;
    }
    Ok(())
}

/// Layers whose inputs may be in two bytes besides those in float, in the order in which they are, within a share of the multiply-accumulates.
fn doubled(c: &Calibration, settings: &Settings, sensitivity: &[Sensitivity], float: &[usize], most: f64) -> Vec<usize> {
    let can: Vec<usize> = (0..c.layers.len()).filter(|i| !float.contains(i) && c.can_be_fine(&c.layers[*i], settings)).collect();
    // A second byte costs time and no weights.
    let costs: Vec<Sensitivity> =
        can.iter().map(|&i| Sensitivity { price: sensitivity[i].macs + 1e-4, ..sensitivity[i].clone() }).collect();
    order(&costs, most).into_iter().map(|i| can[i]).collect()
}

/// Quantises all layers of a prepared model. Where outputs lose more than the aim allows, some layers stay in float, and if that is not enough others get their inputs
/// in two bytes, within the shares of the multiply-accumulates that it allows and if it makes it better. Without an aim, or in other schemes than static int8 with data, as
/// [`quantize::quantize`].
pub fn quantize(
    g: &Graph,
    settings: &Settings,
    aim: Option<Aim>,
    knowledge: &Knowledge,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Found, Problems> {
    quantize::check(g, settings)?;
    let Smoothing { first, second, note } = smoothing(g, settings, knowledge, executor, progress)?;
    let (Knowledge::Data(data, runs), Some(aim), Scheme::Static) = (knowledge, aim, settings.scheme) else {
        let model = quantize::quantize(g, &first, knowledge, progress)?;
        let notes = note.into_iter().collect();
        return Ok(Found { model, sensitivity: vec![], points: vec![], quality: f64::NAN, latency_ms: None, notes });
    };
    let mut found = aimed_at(g, &first, aim, (data, *runs), executor, progress)?;
    found.notes.extend(note);
    let Some(other) = second else { return Ok(found) };
    if Budget::MinSampleSqnr(aim.sqnr_db + MARGIN).met(found.quality) {
        return Ok(found);
    }
    // What is better with all layers in one byte need not be with layers in float: what comes out is compared. Few samples say little of less.
    let mut better = aimed_at(g, &other, aim, (data, *runs), executor, progress)?;
    if better.quality <= found.quality + SMOOTHER || better.quality.is_nan() {
        return Ok(found);
    }
    let (smoothed, left) = if other.smooth { (better.quality, found.quality) } else { (found.quality, better.quality) };
    better.notes.push(format!(
        "smoothing is {}: with it the choice of layers ends at {}, without at {}",
        if other.smooth { "on" } else { "left out" },
        ALIKE.words(smoothed),
        ALIKE.words(left)
    ));
    Ok(better)
}

/// Quantises with an aim, with smoothing as it is set.
fn aimed_at(
    g: &Graph,
    settings: &Settings,
    aim: Aim,
    (data, runs): (&Data, &dyn Executor),
    executor: &dyn Executor,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Found, Problems> {
    let (judges, fitted) = match data.len() >= 2 * HELD {
        true => data.parted(HELD),
        false => (data.clone(), data.clone()),
    };
    let held = data.len() >= 2 * HELD;
    let calibration = quantize::calibrate(g, settings, &Knowledge::Data(&fitted, runs), progress)?;
    let samples = judges.sample_of(CHOICES).into_iter().map(|i| judges.sample(i)).collect::<Result<Vec<_>, _>>()?;
    let part = judges.with(samples);
    let budget = Budget::MinSampleSqnr(aim.sqnr_db + MARGIN);
    let mut bench = Bench::new(g, &calibration, settings, budget, &part, executor)?;
    // The order of layers takes many samples; what the fitted ones are wrong about is the same for all layers.
    bench.fitted = held.then_some(&fitted);
    bench.settled = quantize::wanted(&calibration, settings, &fitted, runs)?.map(|means| (&fitted, means));
    let all = bench.measure(&Choice::default())?;
    let float_ms = bench.float_ms;
    if budget.met(all.quality) || calibration.layers.len() < 2 {
        // Nothing has to be chosen: all samples are calibrated on.
        let model = match held {
            true => {
                let mut model = quantize::quantize(g, settings, &Knowledge::Data(data, runs), progress)?;
                // What is kept is listed below.
                model.kept.clone_from(&all.model.kept);
                model
            }
            false => all.model,
        };
        return result(g, Measured { model, ..all }, vec![], vec![], float_ms, vec![]);
    }
    let sensitivity = sensitivity(&mut Switches::new(g, &mut bench, CHOICES)?, &calibration, progress)?;
    let mut tried = vec![(Choice::default(), all)];
    aimed(&mut bench, aim, &sensitivity, &mut tried, progress)?;
    let points = tried_points(&bench, &tried, &sensitivity);
    let before = tried[0].1.quality;
    // Of those that do, the last one that was looked at costs least.
    let best = (0..tried.len())
        .rev()
        .find(|&i| budget.met(tried[i].1.quality))
        .or_else(|| (0..tried.len()).max_by(|&a, &b| tried[a].1.quality.total_cmp(&tried[b].1.quality).then(b.cmp(&a))))
        .filter(|&i| tried[i].1.quality > before + GAIN)
        .unwrap_or(0);
    let (choice, measured) = tried.swap_remove(best);
    let note = match best {
        0 => format!("no choice of layers in two bytes or in float keeps more than {}", budget.words(before)),
        _ => format!(
            "with all layers in one byte outputs keep {} on samples that are held out; {}: {}",
            budget.words(before),
            choice_words(&calibration, &choice, &sensitivity),
            budget.words(measured.quality)
        ),
    };
    result(g, measured, sensitivity, points, float_ms, vec![note])
}

/// Tries choices until the budget is met with as few layers treated otherwise as halving finds, or nothing more may be: first in float, then
/// with inputs in two bytes besides. If some choice meets it, the last one that was tried and does is the smallest.
fn aimed(
    bench: &mut Bench,
    aim: Aim,
    sensitivity: &[Sensitivity],
    tried: &mut Vec<(Choice, Measured)>,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<(), Problems> {
    let (calibration, settings, budget) = (bench.calibration, bench.settings, bench.budget);
    let layers = &calibration.layers;
    let mut met = |choice: Choice| -> Result<bool, Problems> {
        let m = bench.measure(&choice)?;
        let good = budget.met(m.quality);
        tried.push((choice, m));
        progress("choices", tried.len(), layers.len().ilog2() as usize + 3);
        Ok(good)
    };
    // Float takes more noise off for its time, so that it comes first.
    let float = order(sensitivity, aim.float_macs);
    // One layer at least is quantised.
    let most = float.len().min(layers.len() - 1);
    if most > 0 && met(Choice::float(&float[..most]))? {
        least(0, most - 1, |n| met(Choice::float(&float[..n])))?;
        return Ok(());
    }
    let fine = doubled(calibration, settings, sensitivity, &float[..most], aim.double_macs);
    let both = |n: usize| Choice { float: float[..most].to_vec(), fine: fine[..n].to_vec() };
    if !fine.is_empty() && met(both(fine.len()))? {
        least(0, fine.len() - 1, |n| met(both(n)))?;
    }
    Ok(())
}

/// What is done for which layers, and the shares of the multiply-accumulates.
fn choice_words(c: &Calibration, choice: &Choice, sensitivity: &[Sensitivity]) -> String {
    let share = |of: &[usize]| 100.0 * of.iter().fold(0.0, |sum, &i| sum + sensitivity[i].macs);
    let (all, fine, float) = (c.layers.len(), &choice.fine, &choice.float);
    let twice = format!(
        "the inputs of {} of {all} layers are in two bytes, {:.1} % of the multiply-accumulates are taken twice",
        fine.len(),
        share(fine)
    );
    let single = format!("{} layers with {:.1} % of them stay in float", float.len(), share(float));
    match (fine.is_empty(), float.is_empty()) {
        (false, true) => twice,
        (false, false) => format!("{twice}; {single}"),
        (true, _) => format!(
            "{} of {all} layers are quantised, {:.1} % of the multiply-accumulates stay in float",
            all - float.len(),
            share(float)
        ),
    }
}

/// Latency and quality of all choices that were tried.
fn tried_points(bench: &Bench, tried: &[(Choice, Measured)], sensitivity: &[Sensitivity]) -> Vec<Point> {
    let Some(float) = bench.float_ms else { return vec![] };
    let mut out = vec![Point { name: "float".to_owned(), latency_ms: float, quality: f64::INFINITY, measured: true }];
    for (choice, m) in tried {
        let share = |of: &[usize]| 100.0 * of.iter().map(|&i| sensitivity[i].macs).sum::<f64>();
        let name = format!("{:.0} % twice, {:.0} % in float", share(&choice.fine), share(&choice.float));
        out.extend(m.latency_ms.map(|latency_ms| Point { name, latency_ms, quality: m.quality, measured: true }));
    }
    out
}

fn result(
    g: &Graph,
    chosen: Measured,
    sensitivity: Vec<Sensitivity>,
    points: Vec<Point>,
    float_ms: Option<f64>,
    notes: Vec<String>,
) -> Result<Found, Problems> {
    let mut model = chosen.model;
    quantize::finish(g, &mut model)?;
    Ok(Found { model, sensitivity, points, quality: chosen.quality, latency_ms: float_ms.zip(chosen.latency_ms), notes })
}

/// Latency and quality of all choices that were looked at, those by switches too; with the latency that their shares of the arithmetic predict, which
/// is all that there is of a choice that was not compiled.
fn points(bench: &Bench, found: &Ordered, tried: &[(Choice, Measured)]) -> Vec<Point> {
    let plain = tried.iter().find(|t| t.0 == Choice::default()).and_then(|t| t.1.latency_ms);
    let (Some(float), Some(all)) = (bench.float_ms, plain) else { return vec![] };
    let quality = match bench.budget {
        Budget::MaxDrop(_) => 0.0,
        Budget::MinCosine(_) => 1.0,
        Budget::MinSqnr(_) | Budget::MinSampleSqnr(_) => f64::INFINITY,
    };
    let layers = bench.calibration.layers.len();
    let share = |of: &[usize]| -> f64 { of.iter().map(|&i| found.sensitivity[i].macs).sum() };
    let predicted = |c: &Choice| all + (float - all) * share(&c.float) + SECOND * all * share(&c.fine);
    let name = |c: &Choice| {
        let quantised = format!("{} of {layers} layers", layers - c.float.len());
        if c.fine.is_empty() { quantised } else { format!("{quantised}, {} in two bytes", c.fine.len()) }
    };
    let mut out = vec![Point { name: "float".to_owned(), latency_ms: float, quality, measured: true }];
    for (&n, &quality) in &found.seen {
        let choice = Choice::float(&found.order[..n]);
        if !tried.iter().any(|t| t.0 == choice) {
            let name = format!("{}, predicted", name(&choice));
            out.push(Point { name, latency_ms: predicted(&choice), quality, measured: false });
        }
    }
    for (choice, m) in tried {
        let name = format!("{} (predicted {:.3} ms)", name(choice), predicted(choice));
        out.extend(m.latency_ms.map(|latency_ms| Point { name, latency_ms, quality: m.quality, measured: true }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(noise: &[f64], macs: f64) -> Sensitivity {
        Sensitivity { layer: String::new(), noise: noise.to_vec(), price: macs + 1e-4, macs }
    }

    #[test]
    fn layers_go_to_float_by_the_noise_of_the_worst_output_for_their_price() {
        // Output 1 is worst; the third layer takes most off it, the second as much for less.
        let s = [layer(&[0.001, 0.0], 0.1), layer(&[0.0, 0.01], 0.1), layer(&[0.0, 0.015], 0.5), layer(&[0.002, 0.0], 0.3)];
        assert_eq!(order(&s, 1.0), [1, 2, 0, 3]);
        // What costs too much is left out, also later.
        assert_eq!(order(&s, 0.45), [1, 0]);
        assert_eq!(order(&s, 0.0), [0usize; 0]);
        let broken = [layer(&[f64::INFINITY], 0.9), layer(&[0.1], 0.1)];
        assert_eq!(order(&broken, 1.0), [0, 1]);
    }

    #[test]
    fn the_least_number_is_found_by_halving() {
        for (want, most) in [(1, 1), (3, 9), (9, 9), (7, 8)] {
            assert_eq!(least(0, most, |n| Ok(n >= want)).unwrap(), Some(want));
        }
        assert_eq!(least(0, 5, |_| Ok(false)).unwrap(), None);
        assert_eq!(least(3, 3, |_| Ok(true)).unwrap(), None);
    }

    #[test]
    fn budgets_say_what_does() {
        assert!(Budget::MaxDrop(0.005).met(-0.005) && !Budget::MaxDrop(0.005).met(-0.0051));
        assert!(Budget::MinSqnr(30.0).met(30.0) && !Budget::MinSqnr(30.0).met(29.9));
        assert!(!Budget::MinCosine(0.999).met(f64::NAN));
    }
}
