//! Outliers of activations go into weights: `x W = (x / s) (s W)` for a factor `s` for each channel of `x`.
//!
//! Where `x` comes from a layer through operators that commute with positive factors (Relu, pooling), `1 / s` goes into the weights of
//! that layer (cross-layer equalisation: Nagel et al., "Data-Free Quantization", 2019). Elsewhere a matrix product gets one
//! multiplication before it (Xiao et al., "SmoothQuant", 2022), which joins the quantisation that follows, and a subtraction where channels
//! lie away from 0: `x W = (x - z) W + z W`, with `z W` in the bias (Wei et al., "Outlier Suppression+", 2023). Factors are
//! `max|x - z|^a / max|w|^(1 - a)`. The power `a`, whether to shift, and for matrix products how much of the range is cut off are what leaves
//! the least noise in the sums, by trying them on rows of the data; nothing is done where that gains little. Each row counts by what it
//! loses of its own sums: few tokens with large values must not decide for all others.
//!
//! Where a few values of few rows are far larger than all others, in no channel that factors could reach (results of Gelu), and the sums
//! would keep less than [`SPLIT_ABOVE`] allows, the activation is split: `x W = clip(x) W + (x - clip(x)) W`, each part with a step of its
//! own. Both parts are continuous in `x`, so that every runtime stores the same values but for one step.

use super::params::Affine;
use super::qdq;
use super::statics::bias_of;
use crate::calibrate::Channels;
use crate::layers::{Kind, Layer, layer};
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::op::{Builder, Mul, Sub};
use infc_ir::{Op, Problems, Tensor};
use std::collections::{BTreeMap, HashMap};

/// Noise must fall below this share for a factor that goes into other weights, and for one that is a node of its own.
const FOLDED: f64 = 0.95;
const EXPLICIT: f64 = 0.8;

/// The noise of the sums above which an activation may be split (36 dB below them), and the share that must be left then.
const SPLIT_ABOVE: f64 = 2.5e-4;
const SPLIT: f64 = 0.5;
/// Shares of the range that the part inside may have, and how far the part outside reaches beyond what was seen.
const INSIDE: [f32; 8] = [0.5, 0.35, 0.25, 0.18, 0.13, 0.09, 0.06, 0.04];
pub const REACH: f32 = 1.2;

/// Rows that are kept of each value, and those of one sample.
const ROWS: usize = 640;
const ROWS_OF_SAMPLE: usize = 16;

/// Some rows of a value along its last axis.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    width: usize,
    values: Vec<f32>,
}

impl Rows {
    /// Takes some rows of a tensor, evenly spread.
    pub fn add(&mut self, dims: &[usize], x: &[f32]) {
        let width = dims.last().copied().unwrap_or(1).max(1);
        let rows = x.len() / width;
        let step = rows.div_ceil(ROWS_OF_SAMPLE).max(1);
        self.width = width;
        for row in x.chunks_exact(width).step_by(step) {
            if self.values.len() < ROWS * width {
                self.values.extend_from_slice(row);
            }
        }
    }
}

impl Rows {
    /// Channels whose extremes are those of the first half of the rows, which are in the order of the samples, and the other rows.
    fn halves(&self, c: &Channels) -> (Channels, Rows) {
        let mut fitted =
            Channels { low: vec![f32::INFINITY; self.width], high: vec![f32::NEG_INFINITY; self.width], ..c.clone() };
        let mut test = Rows { width: self.width, values: vec![] };
        let half = self.values.len() / self.width / 2;
        for (i, row) in self.values.chunks_exact(self.width).enumerate() {
            if i >= half {
                test.values.extend_from_slice(row);
                continue;
            }
            for (j, &v) in row.iter().enumerate() {
                (fitted.low[j], fitted.high[j]) = (fitted.low[j].min(v), fitted.high[j].max(v));
            }
        }
        (fitted, test)
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// The share of the range of a value that is worth storing.
    pub clip: HashMap<Value, f32>,
    /// Values that are better stored in two parts: the share of the range that is the part inside.
    pub split: HashMap<Value, f32>,
    /// Inputs of layers whose factors went into the layer before.
    pub folded: usize,
    /// Inputs of layers that got a multiplication.
    pub explicit: usize,
}

/// Smooths the inputs of these layers, by statistics of the values that they read.
pub fn run(
    g: &mut Graph,
    layers: &[Layer],
    channels: &HashMap<Value, Channels>,
    rows: &HashMap<Value, Rows>,
    choice: Choice,
) -> Result<Done, Problems> {
    let mut by_input: BTreeMap<Value, Vec<Layer>> = BTreeMap::new();
    for l in layers.iter().filter(|l| matches!(l.kind, Kind::Conv | Kind::MatMul | Kind::Gemm)) {
        by_input.entry(l.x).or_default().push(l.clone());
    }
    let mut done = Done::default();
    let mut changed: HashMap<Value, Change> = HashMap::new();
    for (x, group) in by_input {
        let Some(c) = channels.get(&x) else { continue };
        let before = before(g, x, group.len());
        let matrix = group.iter().all(|l| l.kind != Kind::Conv && l.sum_axis == g.ty(x).as_tensor().map(|t| t.rank() - 1));
        if before.is_none() && !matrix {
            continue;
        }
        let shift = before.is_none() && group.iter().all(|l| bias_of(g, l).is_some());
        let may = Choice { split: choice.split && before.is_none() && matrix, ..choice };
        let (change, left) = best(g, &group, c, shift, rows.get(&x).filter(|_| matrix), may);
        let moved = change.factor.iter().any(|&f| f != 1.0);
        if left > if before.is_some() { FOLDED } else { EXPLICIT } || !moved {
            // Without a node before it the value itself would be split, and what it is moved from stored as finely.
            if let Some(inside) = change.split.filter(|_| !moved && qdq::is_computed(g, x)) {
                done.split.insert(x, inside);
            }
            continue;
        }
        let clip = change.clip;
        for l in &group {
            if change.shift.iter().any(|&z| z != 0.0) {
                shift_bias(g, l, &change.shift);
            }
            scale_terms(g, l, &change.factor);
        }
        match before {
            Some(p) => {
                let inverse: Vec<f32> = change.factor.iter().map(|f| 1.0 / f).collect();
                scale_channels(g, &p, &inverse);
                if rows.contains_key(&x) && matrix {
                    done.clip.insert(x, clip);
                }
                done.folded += 1;
            }
            None => {
                changed.insert(x, change);
                done.explicit += 1;
            }
        }
    }
    for (x, v) in apply(g, layers, &changed)? {
        done.clip.insert(v, changed[&x].clip);
        done.split.extend(changed[&x].split.map(|inside| (v, inside)));
    }
    Ok(done)
}

/// `(x - shift) / factor`, by channel.
#[derive(Clone, Debug)]
struct Change {
    factor: Vec<f32>,
    shift: Vec<f32>,
    /// The share of the range that is stored.
    clip: f32,
    /// The share of it that the part inside has, if it is split.
    split: Option<f32>,
}

/// What may be done, and what happens to weights.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Activations may be split.
    pub split: bool,
    /// Weights are rounded by reconstruction, which leaves about half of the noise.
    pub reconstruct: bool,
}

/// The layer whose channels are those of `x`, if `users` layers are all that sees them.
fn before(g: &Graph, x: Value, users: usize) -> Option<(Layer, Option<Node>)> {
    let counts = g.use_counts();
    if counts[x.index()] as usize != users {
        return None;
    }
    let mut v = x;
    loop {
        let Def::Output(n, 0) = g.value(v).def else { return None };
        let data = g.node(n);
        let next = data.operand(0)?;
        match &data.op {
            Op::Relu(_)
            | Op::LeakyRelu(_)
            | Op::MaxPool(_)
            | Op::AveragePool(_)
            | Op::GlobalAveragePool(_)
            | Op::GlobalMaxPool(_)
                if data.outputs.len() == 1 =>
            {
                v = next;
            }
            Op::Add(_) => {
                // The bias of a matrix product.
                let other = data.operand(1)?;
                let (of, bias) = if g.constant(other).is_some() { (next, other) } else { (other, next) };
                let width = g.constant(bias)?.dims.last().copied()?;
                let Def::Output(m, 0) = g.value(of).def else { return None };
                let l = layer(g, m).filter(|l| l.kind == Kind::MatMul && counts[of.index()] == 1)?;
                return (g.constant(bias)?.len() == width && l.grid(g, l.weights[0]).channels == width).then_some((l, Some(n)));
            }
            _ => return layer(g, n).filter(|l| matches!(l.kind, Kind::Conv | Kind::MatMul | Kind::Gemm)).map(|l| (l, None)),
        }
        if counts[v.index()] != 1 {
            return None;
        }
    }
}

/// What a channel is shifted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shift {
    None,
    Centre,
    Mean,
}

/// The change of that kind and power for channels with these extremes.
fn fit(c: &Channels, weight: &[f64], shift: Shift, a: f64) -> Option<Change> {
    let n = weight.len();
    let shift: Vec<f32> = match shift {
        Shift::None => vec![0.0; n],
        Shift::Centre => (0..n).map(|j| (c.low[j] + c.high[j]) / 2.0).collect(),
        Shift::Mean => c.mean.clone(),
    };
    let reach: Vec<f64> = (0..n).map(|j| f64::from((c.high[j] - shift[j]).abs().max((c.low[j] - shift[j]).abs()))).collect();
    let (most_x, most_w) = (max(&reach), max(weight));
    if most_x == 0.0 || most_w == 0.0 {
        return None;
    }
    let one = |j: usize| reach[j].max(1e-4 * most_x).powf(a) / weight[j].max(1e-4 * most_w).powf(1.0 - a);
    let f: Vec<f64> = (0..n).map(one).collect();
    // The mean of the logarithms is 0: products stay in range.
    let mean = (f.iter().map(|v| v.ln()).sum::<f64>() / n as f64).exp();
    let factor = f.iter().map(|v| (v / mean).clamp(1e-3, 1e3) as f32).collect();
    Some(Change { factor, shift, clip: 1.0, split: None })
}

/// Rows of a value and how much each of them counts.
struct Judged<'a> {
    rows: &'a Rows,
    /// For each row, 1 over its sums, in the units of the importance of channels.
    counts: Vec<f64>,
}

impl<'a> Judged<'a> {
    fn of(rows: &'a Rows, importance: &[f64], typical: f64) -> Judged<'a> {
        let sums = |row: &[f32]| row.iter().zip(importance).map(|(&v, i)| f64::from(v).powi(2) * i).sum::<f64>();
        // Rows of almost nothing may lose all of it.
        let counts = rows.values.chunks_exact(rows.width).map(|r| 1.0 / (sums(r) + 0.1 * typical).max(1e-30)).collect();
        Judged { rows, counts }
    }
}

/// Means over the rows, as each of them counts: of 1, of each channel, and of its square.
struct Moments {
    one: f64,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl Moments {
    fn of(c: &Channels, rows: Option<&Judged>) -> Moments {
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let Some(judged) = rows else { return Moments { one: 1.0, mean: wide(&c.mean), square: wide(&c.square) } };
        let n = judged.rows.width;
        let mut m = Moments { one: 0.0, mean: vec![0.0; n], square: vec![0.0; n] };
        let share = 1.0 / judged.counts.len().max(1) as f64;
        for (row, count) in judged.rows.values.chunks_exact(n).zip(&judged.counts) {
            m.one += count * share;
            for (j, &v) in row.iter().enumerate() {
                m.mean[j] += count * share * f64::from(v);
                m.square[j] += count * share * f64::from(v).powi(2);
            }
        }
        m
    }
}

/// The best change, and the noise that is left with it as a share of the noise without. Where there are rows, candidates are fitted to
/// one half of them and judged on the other: extremes of few samples are exceeded later.
fn best(g: &Graph, group: &[Layer], c: &Channels, may_shift: bool, rows: Option<&Rows>, may: Choice) -> (Change, f64) {
    let n = c.low.len();
    let terms: Vec<Terms> = group.iter().map(|l| Terms::of(g, l, n)).collect();
    let mut weight = vec![0.0f64; n];
    terms.iter().flat_map(|t| &t.weights).for_each(|&(_, j, w)| weight[j] = weight[j].max(w.abs()));
    // What an error of an input channel adds to the sums: the squares of its weights, relative to the sums.
    let mut importance = vec![0.0f64; n];
    for t in &terms {
        let signal: f64 = t.weights.iter().map(|&(_, j, w)| w * w * f64::from(c.square[j])).sum::<f64>() + 1e-30;
        t.weights.iter().for_each(|&(_, j, w)| importance[j] += w * w / signal);
    }
    let typical = group.len() as f64;
    let rows = rows.filter(|r| r.width == n && r.values.len() >= 8 * n);
    let all = rows.map(|r| Judged::of(r, &importance, typical));
    let moments = Moments::of(c, all.as_ref());
    let halves = rows.map(|r| r.halves(c));
    let (fitted, test) =
        halves.as_ref().map_or((c, None), |(fitted, test)| (fitted, Some(Judged::of(test, &importance, typical))));
    let clips: &[f32] = if test.is_some() { &[1.4, 1.2, 1.0, 0.9, 0.8, 0.7, 0.6] } else { &[1.0] };
    let insides: &[f32] = if test.is_some() && may.split { &INSIDE } else { &[] };
    let none = Change { factor: vec![1.0; n], shift: vec![0.0; n], clip: 1.0, split: None };
    let rounding = if may.reconstruct { 0.5 } else { 1.0 };
    // The least noise of a change in one part, and in two.
    let judge = |change: &Change| -> [(f64, Change); 2] {
        let fixed = rounding * weight_noise(&terms, c, &moments, change);
        let with = |change: Change| (fixed + activation_noise(&importance, fitted, &change, test.as_ref()), change);
        let least = |a: (f64, Change), b: (f64, Change)| if b.0 < a.0 { b } else { a };
        let nothing = || (f64::INFINITY, change.clone());
        let one = clips.iter().map(|&clip| with(Change { clip, ..change.clone() })).fold(nothing(), least);
        let two = insides.iter().map(|&i| with(Change { split: Some(i), ..change.clone() })).fold(nothing(), least);
        [one, two]
    };
    let mut found = judge(&none).map(|f| (f, Shift::None, None));
    let without = found[0].0.0.max(1e-30);
    let shifts: &[Shift] = if may_shift { &[Shift::None, Shift::Centre, Shift::Mean] } else { &[Shift::None] };
    for &shift in shifts {
        for a in [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9] {
            let Some(change) = fit(fitted, &weight, shift, a) else { continue };
            for (best, got) in found.iter_mut().zip(judge(&change)) {
                if got.0 < best.0.0 {
                    *best = (got, shift, Some(a));
                }
            }
        }
    }
    let [one, two] = found;
    // Rows count by their own sums, so that noise is relative to them already; without rows it is a sum over the layers.
    let split = one.0.0 > SPLIT_ABOVE && two.0.0 < SPLIT * one.0.0;
    let ((noise, chosen), shift, power) = if split { two } else { one };
    let change = power.and_then(|a| fit(c, &weight, shift, a)).unwrap_or(none);
    (Change { clip: chosen.clip, split: chosen.split, ..change }, noise / without)
}

fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// The weights of a layer with their output and input channels.
struct Terms {
    channels: usize,
    weights: Vec<(usize, usize, f64)>,
}

impl Terms {
    fn of(g: &Graph, l: &Layer, inputs: usize) -> Terms {
        let (w, grid) = (l.weight(g, 1).to_vec::<f32>(), l.grid(g, l.weights[0]));
        let mut weights = Vec::with_capacity(w.len());
        for c in 0..grid.channels {
            for k in 0..grid.depth() {
                weights.push((c, l.input_channel(g, c, k).min(inputs - 1), f64::from(w[grid.at(c, k)])));
            }
        }
        Terms { channels: grid.channels, weights }
    }
}

/// The noise that 8-bit activations put into the sums, relative to them: on rows of the data, or as steps of that size predict.
fn activation_noise(importance: &[f64], c: &Channels, change: &Change, rows: Option<&Judged>) -> f64 {
    let n = change.factor.len();
    let end = |v: f32, j: usize| f64::from((v - change.shift[j]) / change.factor[j]);
    let (low, high) =
        (0..n).map(|j| (end(c.low[j], j), end(c.high[j], j))).fold((0.0f64, 0.0f64), |a, b| (a.0.min(b.0), a.1.max(b.1)));
    let Some(judged) = rows else {
        let step = ((high - low) / 255.0).powi(2) / 12.0;
        return (0..n).map(|j| step * f64::from(change.factor[j]).powi(2) * importance[j]).sum();
    };
    let range = ((low * f64::from(change.clip)) as f32, (high * f64::from(change.clip)) as f32);
    let (inside, outside) = match change.split {
        Some(share) => {
            let (inside, outside) = halves(range, share);
            (Affine::of(inside.0, inside.1, false), Some(Affine::of(outside.0, outside.1, false)))
        }
        None => (Affine::of(range.0, range.1, false), None),
    };
    let (least, most) = (inside.real(0), inside.real(255));
    let mut errors = vec![0.0f64; n];
    let (inverse, per_step): (Vec<f32>, f32) = (change.factor.iter().map(|f| 1.0 / f).collect(), 1.0 / inside.scale);
    for (row, count) in judged.rows.values.chunks_exact(n).zip(&judged.counts) {
        for j in 0..n {
            let v = (row[j] - change.shift[j]) * inverse[j];
            let cut = v.clamp(least, most);
            let mut d = v - (cut * per_step).round_ties_even() * inside.scale;
            if let Some(rest) = outside.as_ref().filter(|_| cut != v) {
                d -= rest.real(rest.store(v - cut));
            }
            errors[j] += f64::from(d * d) * count;
        }
    }
    let count = judged.counts.len().max(1) as f64;
    (0..n).map(|j| errors[j] / count * f64::from(change.factor[j]).powi(2) * importance[j]).sum()
}

/// The ranges of both parts of a value that is split: that inside has this share of the whole range, that outside what is beyond it.
pub fn halves(range: (f32, f32), share: f32) -> ((f32, f32), (f32, f32)) {
    // A side of the range that is short already stays whole: results of Gelu go little below 0.
    let reach = range.1.max(-range.0) * share;
    let inside = (range.0.max(-reach), range.1.min(reach));
    (inside, ((range.0 - inside.0) * REACH, (range.1 - inside.1) * REACH))
}

/// The noise that 8-bit weights put into the sums, relative to them.
fn weight_noise(layers: &[Terms], c: &Channels, moments: &Moments, change: &Change) -> f64 {
    let power: Vec<f64> = (0..change.factor.len())
        .map(|j| {
            let (z, f) = (f64::from(change.shift[j]), f64::from(change.factor[j]));
            ((moments.square[j] - 2.0 * z * moments.mean[j] + z * z * moments.one) / (f * f)).max(0.0)
        })
        .collect();
    let mut total = 0.0;
    for t in layers {
        let mut signal = 1e-30;
        let (mut most, mut powers) = (vec![0.0f64; t.channels], vec![0.0f64; t.channels]);
        for &(ch, j, w) in &t.weights {
            most[ch] = most[ch].max((w * f64::from(change.factor[j])).abs());
            powers[ch] += power[j];
            signal += w * w * f64::from(c.square[j]);
        }
        total += most.iter().zip(&powers).map(|(m, p)| (m / 127.0).powi(2) / 12.0 * p).sum::<f64>() / signal;
    }
    total
}

/// Adds what the shifts take off the sums to the bias.
fn shift_bias(g: &mut Graph, l: &Layer, shift: &[f32]) {
    let ((node, slot), bias) = bias_of(g, l).expect("asked before");
    let (grid, w) = (l.grid(g, l.weights[0]), l.weight(g, 1).to_vec::<f32>());
    let lost = |c: usize| -> f64 {
        (0..grid.depth()).map(|k| f64::from(w[grid.at(c, k)]) * f64::from(shift[l.input_channel(g, c, k)])).sum()
    };
    let moved: Vec<f32> = (0..grid.channels).map(|c| (f64::from(bias[c % bias.len()]) + lost(c)) as f32).collect();
    let dims = vec![grid.channels];
    let v = g.add_constant(Tensor::from_vec(dims, moved), "");
    g.nodes[node.index()].inputs[slot] = Some(v);
}

/// Multiplies the weights of each term by the factor of its input channel.
fn scale_terms(g: &mut Graph, l: &Layer, factors: &[f32]) {
    let (grid, mut w) = (l.grid(g, l.weights[0]), l.weight(g, 1).to_vec::<f32>());
    for c in 0..grid.channels {
        for k in 0..grid.depth() {
            w[grid.at(c, k)] *= factors[l.input_channel(g, c, k).min(factors.len() - 1)];
        }
    }
    replace(g, l.node, 1, w);
}

/// Multiplies output channels with their biases.
fn scale_channels(g: &mut Graph, (l, add): &(Layer, Option<Node>), factors: &[f32]) {
    let (grid, mut w) = (l.grid(g, l.weights[0]), l.weight(g, 1).to_vec::<f32>());
    for c in 0..grid.channels {
        for k in 0..grid.depth() {
            w[grid.at(c, k)] *= factors[c % factors.len()];
        }
    }
    replace(g, l.node, 1, w);
    let (node, slots) = add.map_or((l.node, vec![2]), |n| (n, vec![0, 1]));
    for slot in slots {
        if let Some(t) = g.node(node).operand(slot).and_then(|v| g.constant(v)).cloned() {
            let values = t.to_vec::<f32>();
            // A bias of one number for all channels becomes one for each.
            let many = if values.len() == 1 { grid.channels } else { values.len() };
            let scaled = (0..many).map(|i| values[i % values.len()] * factors[i % factors.len()]).collect();
            let dims = if values.len() == 1 && many > 1 { vec![many] } else { t.dims.clone() };
            let v = g.add_constant(Tensor::from_vec::<f32>(dims, scaled), "");
            g.nodes[node.index()].inputs[slot] = Some(v);
        }
    }
}

/// Gives a node other weights; other users of the old ones keep them.
fn replace(g: &mut Graph, n: Node, slot: usize, w: Vec<f32>) {
    let old = g.node(n).operand(slot).expect("has weights");
    let (dims, name) = (g.constant(old).expect("has constant weights").dims.clone(), g.value(old).name.clone());
    let v = g.add_constant(Tensor::from_vec(dims, w), name);
    g.nodes[n.index()].inputs[slot] = Some(v);
}

/// Puts subtractions and multiplications before layers.
fn apply(g: &mut Graph, layers: &[Layer], changed: &HashMap<Value, Change>) -> Result<HashMap<Value, Value>, Problems> {
    let mut made: HashMap<Value, Value> = HashMap::new();
    let mut nodes = vec![];
    for n in g.region(Graph::MAIN).nodes.clone() {
        if let Some(l) = layers.iter().find(|l| l.node == n && changed.contains_key(&l.x)) {
            if let std::collections::hash_map::Entry::Vacant(place) = made.entry(l.x) {
                let Change { factor, shift, .. } = &changed[&l.x];
                let origin = g.node(n).origin.clone();
                let mut b = Builder::new(g, origin);
                let problem = |f: infc_ir::Fault| Problems::one(format!("layer '{}'", l.name), f.0, "");
                let mut v = l.x;
                if shift.iter().any(|&z| z != 0.0) {
                    let z = b.constant(Tensor::from_vec([shift.len()], shift.clone()));
                    v = b.op(Sub {}, &[v, z]).map_err(problem)?;
                }
                let inverse = b.constant(Tensor::from_vec([factor.len()], factor.iter().map(|f| 1.0 / f).collect::<Vec<f32>>()));
                v = b.op(Mul {}, &[v, inverse]).map_err(problem)?;
                nodes.append(&mut b.nodes);
                let name = &g.value(l.x).name;
                g.values[v.index()].name = if name.is_empty() { String::new() } else { format!("{name}_smooth") };
                place.insert(v);
            }
            g.nodes[n.index()].inputs[0] = Some(made[&l.x]);
        }
        nodes.push(n);
    }
    g.regions[Graph::MAIN.index()].nodes = nodes;
    Ok(made)
}
