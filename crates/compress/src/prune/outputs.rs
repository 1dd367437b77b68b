//! The last fit: all weights that stay, together, by least squares on the outputs of the original over the calibration data. No labels.
//!
//! Steps are Adam's (Kingma and Ba, "Adam: a method for stochastic optimization", 2015) on the gradient that [`Tape`] computes, each in
//! proportion to the size of the weights, or for a bias of the sums that it is added to; their length rises, then falls to 0 as a cosine. Some
//! of the samples are held out: the weights become those that answer them best of all that were looked at on the way, which are never worse
//! than those before. The same data gives the same weights, whatever the number of threads.
//!
//! Few samples would be learned by heart. Between two samples the original answers as well, so that most of what a step sees is mixed anew
//! from a pair, for which the original is asked again (Zhang et al., "mixup", 2018; for answers of the original as Beyer et al., "Knowledge
//! distillation: a good teacher is patient and consistent", 2022), where all inputs are of f32.

use super::tape::{Buffers, Parameters, Tape};
use super::{Options, finite};
use crate::data::Random;
use crate::{Data, Executor, Runner};
use infc_ir::graph::Graph;
use infc_ir::{DType, Problems, Tensor};
use std::collections::BTreeMap;

/// Samples of a step.
const BATCH: usize = 32;
/// A step is computed in this many parts, whose gradients are added in order.
const PARTS: usize = 4;
/// One in this many samples is held out, where there are at least [`ENOUGH`], but no more than [`HELD_MOST`].
const HELD: usize = 10;
const HELD_MOST: usize = 128;
const ENOUGH: usize = 20;
/// The longest step, relative to the weights.
const RATE: f64 = 0.04;
/// Share of the steps in which their length rises.
const RISE: f64 = 0.1;
/// The samples that are held out are looked at this often.
const LOOKS: usize = 40;
/// Adam's means of gradients and of their squares forget this fast.
const FORGET: (f64, f64) = (0.9, 0.999);
/// The most multiply-accumulates that are spent where the fit was not asked for, and the least steps that are worth them.
pub(crate) const AFFORDABLE: f64 = 3e11;
pub(crate) const LEAST: usize = 600;
/// This share of what steps see is mixed, of which up to this share is another sample.
const MIXED: f64 = 0.75;
const SHARE: f64 = 0.5;
/// The most values of the outputs over the samples that are held out.
const TARGETS: usize = 1 << 28;

/// Relative squared error of the outputs for samples that were held out (for all, where there are few), before and after.
pub(crate) struct Gain {
    pub before: f64,
    pub after: f64,
}

/// Multiply-accumulates of a step of the fit of a model that takes `macs` a sample.
pub(crate) fn effort(macs: f64) -> f64 {
    3.0 * macs * BATCH as f64
}

/// The model whose answers are wanted.
struct Original {
    runner: Box<dyn Runner>,
}

impl Original {
    /// Its outputs for what was made of a sample; empty where they are not of f32.
    fn answer(&mut self, inputs: &[Tensor], sample: usize) -> Result<Vec<Vec<f32>>, Problems> {
        let float = |t: &Tensor| t.dtype == DType::F32 && !t.is_empty();
        let list: Vec<Vec<f32>> = self.runner.run(inputs)?.iter().map(|t| if float(t) { t.to_vec() } else { vec![] }).collect();
        if list.iter().flatten().any(|v| !v.is_finite()) {
            let help = "the model gives NaN or infinity: take such samples out";
            let message = format!("sample {sample} has outputs that are not finite");
            return Err(Problems::one("fit of the outputs", message, help));
        }
        Ok(list)
    }
}

/// A tape for each set of dims of the inputs.
struct Tapes<'a> {
    g: &'a Graph,
    parameters: &'a Parameters,
    made: BTreeMap<Vec<Vec<usize>>, Made>,
}

struct Made {
    tape: Tape,
    constants: Vec<Vec<f32>>,
    buffers: Vec<Buffers>,
}

fn dims(inputs: &[Tensor]) -> Vec<Vec<usize>> {
    inputs.iter().map(|t| t.dims.clone()).collect()
}

impl Tapes<'_> {
    fn prepare(&mut self, inputs: &[Tensor]) -> Result<(), Problems> {
        if !self.made.contains_key(&dims(inputs)) {
            let tape = Tape::new(self.g, inputs, self.parameters)?;
            let buffers = (0..PARTS).map(|_| tape.buffers()).collect();
            self.made.insert(dims(inputs), Made { constants: tape.constants(), buffers, tape });
        }
        Ok(())
    }
    fn set(&mut self, values: &[Vec<f32>]) {
        for m in self.made.values_mut() {
            m.tape.fitted.iter().zip(values).for_each(|(&s, v)| m.constants[s].clone_from(v));
        }
    }
}

/// Fits a pruned graph to the outputs of the original.
pub(crate) fn fit(
    old: &Graph,
    small: &mut Graph,
    options: &Options,
    data: &Data,
    executor: &dyn Executor,
) -> Result<Gain, Problems> {
    let at = |message: &str, help: &str| Problems::one("fit of the outputs", message, help);
    super::tape::follows(small)?;
    let parameters = Parameters::of(small);
    let mut inputs: Vec<Vec<Tensor>> = vec![];
    for i in 0..data.len() {
        let sample = data.sample(i)?.inputs;
        finite(i, old, &sample)?;
        inputs.push(sample);
    }
    let given = inputs.len();
    let stride = HELD.max(given.div_ceil(HELD_MOST));
    let is_held = |i: usize| given >= ENOUGH && i % stride == stride / 2;
    let learned: Vec<usize> = (0..given).filter(|&i| !is_held(i)).collect();
    let held: Vec<usize> = (0..given).filter(|&i| is_held(i) || given < ENOUGH).collect();
    let mut random = Random(options.seed ^ 0x6f75_7470_7574);
    let mut original = Original { runner: executor.load(old)? };
    // Targets of what is held out, and the variance of each output over the samples that are given.
    let mut targets: Vec<Vec<Vec<f32>>> = vec![];
    let mut sums: Vec<(f64, f64, f64)> = vec![(0.0, 0.0, 0.0); old.outputs().len()];
    let mut total = 0;
    for (i, sample) in inputs.iter().enumerate() {
        let list = original.answer(sample, i)?;
        for (s, v) in sums.iter_mut().zip(&list) {
            v.iter().map(|&v| f64::from(v)).for_each(|v| *s = (s.0 + 1.0, s.1 + v, s.2 + v * v));
        }
        let list = if held.binary_search(&i).is_ok() { list } else { vec![] };
        total += list.iter().map(Vec::len).sum::<usize>();
        if total > TARGETS {
            return Err(at("the outputs of all samples are too many to be held", "give fewer samples, or --fit sequential"));
        }
        targets.push(list);
    }
    let outputs = sums.iter().filter(|s| s.0 > 0.0).count();
    if outputs == 0 {
        return Err(at("the model has no output of f32", "--fit sequential"));
    }
    // What a squared difference counts.
    let variance = |s: &(f64, f64, f64)| (s.2 / s.0 - (s.1 / s.0).powi(2)).max(1e-12 * s.2 / s.0).max(f64::MIN_POSITIVE);
    let factors: Vec<f64> = sums.iter().map(|s| if s.0 > 0.0 { 1.0 / (variance(s) * outputs as f64) } else { 0.0 }).collect();
    let mut values = parameters.read(small);
    let mut tapes = Tapes { g: small, parameters: &parameters, made: BTreeMap::new() };
    for x in &inputs {
        tapes.prepare(x)?;
    }
    tapes.set(&values);

    let scales = scales(&mut tapes, &parameters, &values, &inputs, &learned);
    let before = error(&mut tapes, &inputs, &targets, &factors, &held);
    let mut best = (before, values.clone());
    let mut state: Vec<Vec<(f64, f64)>> = values.iter().map(|v| vec![(0.0, 0.0); v.len()]).collect();
    let mut order: Vec<usize> = vec![];
    for step in 0..options.steps {
        let mut chosen = vec![];
        while chosen.len() < BATCH {
            if order.is_empty() {
                order = learned.clone();
                (1..order.len()).rev().for_each(|i| order.swap(i, (random.bits() % (i as u64 + 1)) as usize));
            }
            chosen.extend(order.pop());
        }
        let seen: Vec<Vec<Tensor>> = chosen.iter().map(|&i| view(&inputs, &learned, i, &mut random)).collect();
        let wanted: Vec<_> = seen.iter().zip(&chosen).map(|(x, &i)| original.answer(x, i)).collect::<Result<_, _>>()?;
        let gradient = gradient(&mut tapes, &values, &seen, &wanted, &factors);
        let rate = rate(step, options.steps);
        let correct = (1.0 - FORGET.0.powi(step as i32 + 1), 1.0 - FORGET.1.powi(step as i32 + 1));
        for k in 0..values.len() {
            for (i, (m, v)) in state[k].iter_mut().enumerate() {
                let d = gradient[k][i];
                *m = FORGET.0 * *m + (1.0 - FORGET.0) * d;
                *v = FORGET.1 * *v + (1.0 - FORGET.1) * d * d;
                if *v > 0.0 {
                    values[k][i] -= (rate * scales[k] * (*m / correct.0) / ((*v / correct.1).sqrt() + 1e-30)) as f32;
                }
            }
        }
        tapes.set(&values);
        executor.progress("fit to the outputs", step + 1, options.steps);
        let last = step + 1 == options.steps;
        if (last || (step + 1) % options.steps.div_ceil(LOOKS) == 0) && values.iter().flatten().all(|v| v.is_finite()) {
            let now = error(&mut tapes, &inputs, &targets, &factors, &held);
            if now < best.0 {
                best = (now, values.clone());
            }
        }
    }
    drop(tapes);
    parameters.write(small, &best.1);
    Ok(Gain { before, after: best.0 })
}

/// What a step sees of sample `i`: the sample, or a mixture with one of `of` that has the same dims, where all inputs are of f32.
fn view(inputs: &[Vec<Tensor>], of: &[usize], i: usize, random: &mut Random) -> Vec<Tensor> {
    let (mixed, share) = (random.unit() < MIXED, (random.unit() * SHARE) as f32);
    let (a, b) = (&inputs[i], &inputs[of[(random.bits() % of.len() as u64) as usize]]);
    if !mixed || dims(a) != dims(b) || a.iter().any(|t| t.dtype != DType::F32) {
        return a.clone();
    }
    let one = |(a, b): (&Tensor, &Tensor)| {
        let both = a.to_vec::<f32>().into_iter().zip(b.to_vec::<f32>());
        Tensor::from_vec(a.dims.clone(), both.map(|(a, b)| a + share * (b - a)).collect())
    };
    a.iter().zip(b).map(one).collect()
}

/// Length of a step, relative to the weights.
fn rate(step: usize, steps: usize) -> f64 {
    let at = (step as f64 + 0.5) / steps as f64;
    if at < RISE { RATE * at / RISE } else { RATE * 0.5 * (1.0 + (std::f64::consts::PI * (at - RISE) / (1.0 - RISE)).cos()) }
}

/// By what steps are measured: the root mean square of the weights; for biases that of the sums that they are added to.
fn scales(
    tapes: &mut Tapes,
    parameters: &Parameters,
    values: &[Vec<f32>],
    inputs: &[Vec<Tensor>],
    learned: &[usize],
) -> Vec<f64> {
    let square = |v: &[f32]| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let mut sums = vec![(0.0, 0usize); values.len()];
    for &i in learned.iter().take(BATCH) {
        let m = tapes.made.get_mut(&dims(&inputs[i])).expect("prepared");
        m.tape.run(&inputs[i], &m.constants, &mut m.buffers[0]);
        for (sum, &slot) in sums.iter_mut().zip(&m.tape.results) {
            let y = m.buffers[0].value(slot);
            *sum = (sum.0 + square(y), sum.1 + y.len());
        }
    }
    let mean = |s: f64, n: usize| (s / n.max(1) as f64).sqrt();
    let biases = parameters.biases();
    let scale = |k: usize| if biases[k] { mean(sums[k].0, sums[k].1) } else { mean(square(&values[k]), values[k].len()) };
    (0..values.len()).map(scale).collect()
}

/// Squared error of the outputs over their variance, the mean over the outputs.
fn error(tapes: &mut Tapes, inputs: &[Vec<Tensor>], targets: &[Vec<Vec<f32>>], factors: &[f64], chosen: &[usize]) -> f64 {
    let mut sums: Vec<(f64, usize)> = vec![(0.0, 0); factors.len()];
    for &i in chosen {
        let m = tapes.made.get_mut(&dims(&inputs[i])).expect("prepared");
        m.tape.run(&inputs[i], &m.constants, &mut m.buffers[0]);
        for (k, slot) in m.tape.outputs.iter().enumerate() {
            let Some(slot) = slot.filter(|_| factors[k] > 0.0) else { continue };
            let y = m.buffers[0].value(slot).iter().zip(&targets[i][k]);
            sums[k].0 += y.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            sums[k].1 += targets[i][k].len();
        }
    }
    sums.iter().zip(factors).map(|(s, f)| f * s.0 / s.1.max(1) as f64).sum()
}

/// The mean gradient over samples.
fn gradient(
    tapes: &mut Tapes,
    values: &[Vec<f32>],
    inputs: &[Vec<Tensor>],
    targets: &[Vec<Vec<f32>>],
    factors: &[f64],
) -> Vec<Vec<f64>> {
    let mut sum: Vec<Vec<f64>> = values.iter().map(|v| vec![0.0; v.len()]).collect();
    let mut by_dims: BTreeMap<Vec<Vec<usize>>, Vec<usize>> = BTreeMap::new();
    (0..inputs.len()).for_each(|i| by_dims.entry(dims(&inputs[i])).or_default().push(i));
    for (key, list) in by_dims {
        let Made { tape, constants, buffers } = tapes.made.get_mut(&key).expect("prepared");
        let (tape, constants) = (&*tape, &*constants);
        let part = |list: &[usize], b: &mut Buffers| {
            b.clear(tape);
            for &i in list {
                tape.run(&inputs[i], constants, b);
                tape.back(constants, b, &mut |k, y, d| {
                    let factor = 2.0 * factors[k] / (targets[i][k].len().max(1) * inputs.len()) as f64;
                    if factors[k] > 0.0 {
                        (0..y.len()).for_each(|j| d[j] += factor as f32 * (y[j] - targets[i][k][j]));
                    }
                });
            }
        };
        let parts: Vec<&[usize]> = list.chunks(list.len().div_ceil(PARTS)).collect();
        let used = parts.len();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(used);
        let mut work: Vec<(&[usize], &mut Buffers)> = parts.into_iter().zip(buffers.iter_mut()).collect();
        std::thread::scope(|scope| {
            for some in work.chunks_mut(used.div_ceil(threads)) {
                scope.spawn(move || some.iter_mut().for_each(|(list, b)| part(list, b)));
            }
        });
        for b in &buffers[..used] {
            for (sum, &slot) in sum.iter_mut().zip(&tape.fitted) {
                sum.iter_mut().zip(b.gradient(slot)).for_each(|(s, &d)| *s += f64::from(d));
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Views lie between two samples, nearer to the first; some are the sample itself, as are those of other dims and what is not f32.
    #[test]
    fn views_lie_between_samples() {
        let row = |v: f32| vec![Tensor::from_vec(vec![1, 3], vec![v, 2.0 * v, 3.0 * v])];
        let (inputs, mut random) = (vec![row(1.0), row(2.0)], Random(1));
        let (mut same, mut far) = (0, 0);
        for _ in 0..400 {
            let v = view(&inputs, &[0, 1], 0, &mut random)[0].to_vec::<f32>();
            assert!((1.0..=1.5).contains(&v[0]) && (v[2] - 3.0 * v[0]).abs() < 1e-5, "{v:?}");
            same += usize::from(v[0] == 1.0);
            far += usize::from(v[0] > 1.25);
        }
        // One in four is not mixed, half of the others are mixed with themselves; a quarter of the rest has more than a quarter.
        assert!((200..300).contains(&same) && far > 40, "{same} are the sample, {far} are far from it");
        let whole = vec![vec![Tensor::from_vec(vec![2], vec![3i64, 4])], vec![Tensor::from_vec(vec![2], vec![5i64, 6])]];
        let other = vec![row(1.0), vec![Tensor::from_vec(vec![1, 2], vec![5f32, 6.0])]];
        for inputs in [whole, other] {
            (0..20).for_each(|_| assert_eq!(view(&inputs, &[0, 1], 0, &mut random), inputs[0]));
        }
    }
}
