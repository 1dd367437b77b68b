//! How far one model's answers are from another's: output by output and layer by layer.

use crate::data::Data;
use crate::executor::{Executor, Runner, tapped};
use crate::report::Difference;
use infc_ir::graph::{Def, Graph, Value};
use infc_ir::{Problems, Tensor};
use std::collections::HashMap;

/// Adds up the differences of one tensor over samples.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    max_abs: f64,
    signal: f64,
    noise: f64,
    shares: f64,
    cosines: f64,
    least: Option<f64>,
    samples: u64,
    rows: u64,
    same: u64,
}

impl Sums {
    /// Adds one pair of tensors; the error says how their types differ.
    pub fn add(&mut self, want: &Tensor, got: &Tensor) -> Result<(), String> {
        if want.dims != got.dims {
            return Err(format!("is {}{:?} in one and {}{:?} in the other", want.dtype, want.dims, got.dtype, got.dims));
        }
        let (a, b) = (numbers(want), numbers(got));
        let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
        let noise = self.noise;
        for (&x, &y) in a.iter().zip(&b) {
            let d = x - y;
            self.max_abs = if d.is_nan() { f64::INFINITY } else { self.max_abs.max(d.abs()) };
            self.noise += d * d;
            dot += x * y;
            aa += x * x;
            bb += y * y;
        }
        self.signal += aa;
        let noise = self.noise - noise;
        self.shares += if noise == 0.0 { 0.0 } else { (noise / aa.max(f64::MIN_POSITIVE)).min(1e6) };
        let cosine = if aa == 0.0 && bb == 0.0 { 1.0 } else { dot / (aa.sqrt() * bb.sqrt()).max(f64::MIN_POSITIVE) };
        self.cosines += cosine;
        self.least = Some(self.least.map_or(cosine, |l| l.min(cosine)));
        self.samples += 1;
        let width = want.dims.last().copied().unwrap_or(1).max(1);
        for (x, y) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
            self.rows += 1;
            self.same += u64::from(largest(x) == largest(y));
        }
        Ok(())
    }

    /// What it comes to.
    pub fn difference(&self, name: &str) -> Difference {
        let sqnr = if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() };
        let share = self.shares / self.samples.max(1) as f64;
        Difference {
            name: name.to_owned(),
            max_abs: self.max_abs,
            sqnr_db: sqnr,
            sqnr_samples_db: if share == 0.0 { f64::INFINITY } else { -10.0 * share.log10() },
            cosine: self.cosines / self.samples.max(1) as f64,
            cosine_min: self.least.unwrap_or(1.0),
            top1: self.same as f64 / self.rows.max(1) as f64,
        }
    }
}

fn numbers(t: &Tensor) -> Vec<f64> {
    if t.dtype == infc_ir::DType::F32 {
        return t.to_vec::<f32>().into_iter().map(f64::from).collect();
    }
    (0..t.len()).map(|i| t.float(i)).collect()
}

/// Position of the largest number, the first of equal ones.
pub fn largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

/// Two models on the same samples.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// One entry an output.
    pub outputs: Vec<Difference>,
    /// One entry an inner value that both have.
    pub inner: Vec<Difference>,
    /// Share of labelled samples that both get right.
    pub accuracy: Option<(f64, f64)>,
    /// Of mean-pooled, normalised embeddings: mean and least cosine, share of samples with the same nearest neighbour.
    pub embeddings: Option<Embeddings>,
}

/// How far embeddings moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Embeddings {
    /// Mean over the samples of the cosine.
    pub cosine: f64,
    /// The least one.
    pub cosine_min: f64,
    /// Share of samples whose nearest neighbour among the others is the same.
    pub neighbours: f64,
}

/// Runs both models on all samples. `pool`: output 0 is pooled along axis 1 to embeddings. `inner` names the outputs that are taps.
pub fn run(
    want: &mut dyn Runner,
    got: &mut dyn Runner,
    names: &[String],
    inner: usize,
    data: &Data,
    pool: bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Comparison, Problems> {
    let mut sums = vec![Sums::default(); names.len()];
    let mut right = (0u64, 0u64);
    let (mut a, mut b) = (vec![], vec![]);
    for i in 0..data.len() {
        let sample = data.sample(i)?;
        let (x, y) = (want.run(&sample.inputs)?, got.run(&sample.inputs)?);
        for (((s, x), y), name) in sums.iter_mut().zip(&x).zip(&y).zip(names) {
            s.add(x, y).map_err(|m| Problems::one(format!("output '{name}'"), m, "compare models of the same task"))?;
        }
        if let (Some(label), Some(x), Some(y)) = (sample.label, x.first(), y.first()) {
            right.0 += u64::from(largest(&numbers(x)) as i64 == label);
            right.1 += u64::from(largest(&numbers(y)) as i64 == label);
        }
        if pool {
            a.push(pooled(&x[0])?);
            b.push(pooled(&y[0])?);
        }
        progress(i + 1);
    }
    let differences: Vec<Difference> = sums.iter().zip(names).map(|(s, n)| s.difference(n)).collect();
    let outputs = names.len() - inner;
    let share = |n: u64| n as f64 / data.len().max(1) as f64;
    Ok(Comparison {
        outputs: differences[..outputs].to_vec(),
        inner: differences[outputs..].to_vec(),
        accuracy: data.labelled().then(|| (share(right.0), share(right.1))),
        embeddings: pool.then(|| embeddings(&a, &b)),
    })
}

/// The share of labelled samples that a model gets right: its first output has its largest element at the label.
pub fn accuracy(runner: &mut dyn Runner, data: &Data) -> Result<f64, Problems> {
    let mut right = 0u64;
    for i in 0..data.len() {
        let sample = data.sample(i)?;
        let Some(label) = sample.label else {
            return Err(Problems::one(&data.source, "has no labels", "add an array 'labels' with the class of each row"));
        };
        let outputs = runner.run(&sample.inputs)?;
        right += u64::from(outputs.first().is_some_and(|t| largest(&numbers(t)) as i64 == label));
    }
    Ok(right as f64 / data.len().max(1) as f64)
}

/// The mean over axis 1 (of one row), with length 1.
fn pooled(t: &Tensor) -> Result<Vec<f64>, Problems> {
    let (rows, width) = match t.dims[..] {
        [1, rows, width] => (rows, width),
        [1, width] => (1, width),
        _ => {
            let message = format!("is {}{:?}: embeddings are 1 x tokens x features or 1 x features", t.dtype, t.dims);
            return Err(Problems::one("output 0", message, "leave out --embeddings"));
        }
    };
    let values = numbers(t);
    let mean: Vec<f64> = (0..width).map(|j| (0..rows).map(|i| values[i * width + j]).sum::<f64>() / rows as f64).collect();
    let length = mean.iter().map(|v| v * v).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    Ok(mean.iter().map(|v| v / length).collect())
}

fn embeddings(a: &[Vec<f64>], b: &[Vec<f64>]) -> Embeddings {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(p, q)| p * q).sum::<f64>();
    let cosines: Vec<f64> = a.iter().zip(b).map(|(x, y)| dot(x, y)).collect();
    let nearest = |all: &[Vec<f64>], i: usize| {
        let others = (0..all.len()).filter(|&j| j != i);
        others.max_by(|&j, &k| dot(&all[i], &all[j]).total_cmp(&dot(&all[i], &all[k])))
    };
    let same = (0..a.len()).filter(|&i| nearest(a, i) == nearest(b, i)).count();
    let n = a.len().max(1) as f64;
    Embeddings {
        cosine: cosines.iter().sum::<f64>() / n,
        cosine_min: cosines.iter().copied().fold(f64::INFINITY, f64::min),
        neighbours: same as f64 / n,
    }
}

/// Two graphs, with all inner float values of the same name in both as further outputs; names of all outputs, and how many are inner.
pub fn aligned(want: &Graph, got: &Graph) -> (Graph, Graph, Vec<String>, usize) {
    let named = |g: &Graph| -> HashMap<String, Value> {
        let nodes = &g.region(Graph::MAIN).nodes;
        let outputs = nodes.iter().flat_map(|&n| g.node(n).outputs.iter().copied());
        let good = |v: &Value| {
            let t = g.ty(*v).as_tensor();
            t.is_some_and(|t| t.dtype.is_float()) && matches!(g.value(*v).def, Def::Output(..)) && !g.outputs().contains(v)
        };
        outputs.filter(good).map(|v| (g.value(v).name.clone(), v)).filter(|(n, _)| !n.is_empty()).collect()
    };
    let (ours, theirs, mut taps) = (named(want), named(got), vec![]);
    let mut seen = std::collections::BTreeSet::new();
    for &n in &want.region(Graph::MAIN).nodes {
        for &v in &want.node(n).outputs {
            let name = &want.value(v).name;
            if let Some(&other) = theirs.get(name).filter(|_| ours.get(name) == Some(&v))
                && seen.insert(other)
            {
                taps.push((v, other, name.clone()));
            }
        }
    }
    let (a, b): (Vec<Value>, Vec<Value>) = taps.iter().map(|t| (t.0, t.1)).unzip();
    let ((a, _), (b, _)) = (tapped(want, &a), tapped(got, &b));
    let names = want.outputs().iter().map(|&v| want.value(v).name.clone()).chain(taps.into_iter().map(|t| t.2));
    (a, b, names.collect(), seen.len())
}

/// Compares two graphs by an executor, outputs only.
pub fn graphs(want: &Graph, got: &Graph, executor: &dyn Executor, data: &Data, pool: bool) -> Result<Comparison, Problems> {
    let names: Vec<String> = want.outputs().iter().map(|&v| want.value(v).name.clone()).collect();
    let (mut a, mut b) = (executor.load(want)?, executor.load(got)?);
    run(&mut *a, &mut *b, &names, 0, data, pool, &mut |_| {})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_add_up_over_samples() {
        let mut s = Sums::default();
        let t = |v: Vec<f32>| Tensor::from_vec([2, 2], v);
        s.add(&t(vec![3.0, 4.0, 0.0, 1.0]), &t(vec![3.0, 4.0, 0.0, 1.0])).unwrap();
        assert_eq!(s.difference("y").sqnr_db, f64::INFINITY);
        s.add(&t(vec![1.0, 0.0, 0.0, 2.0]), &t(vec![1.0, 0.0, 2.1, 2.0])).unwrap();
        let d = s.difference("y");
        assert!((d.max_abs - 2.1).abs() < 1e-6);
        assert!((d.sqnr_db - 10.0 * (31.0f64 / 4.41).log10()).abs() < 1e-5);
        // Each sample by itself: no noise in the first, 4.41 of 5 in the second.
        assert!((d.sqnr_samples_db + 10.0 * (4.41f64 / 5.0 / 2.0).log10()).abs() < 1e-5);
        assert_eq!(d.top1, 0.75);
        assert!(d.cosine_min < d.cosine && d.cosine < 1.0);
        assert!(s.add(&t(vec![0.0; 4]), &Tensor::from_vec([4], vec![0.0f32; 4])).is_err());
    }

    #[test]
    fn neighbours_are_those_of_the_pooled_rows() {
        let v = |x: f64, y: f64| vec![x, y];
        let a = [v(1.0, 0.0), v(0.8, 0.6), v(0.0, 1.0)];
        let same = embeddings(&a, &a);
        assert_eq!((same.cosine, same.neighbours), (1.0, 1.0));
        // The middle one moves from the first to the last.
        let b = [v(1.0, 0.0), v(0.6, 0.8), v(0.0, 1.0)];
        assert_eq!(embeddings(&a, &b).neighbours, 2.0 / 3.0);
    }
}
