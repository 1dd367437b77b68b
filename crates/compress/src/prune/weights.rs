//! Pruning of single weights, blocks and two of four: layers are pruned one after another, and what stays of each is fitted.
//!
//! Columns (inputs of the layer) go from left to right; what a weight that is set to 0 would have added is taken over by the columns
//! on its right, by the inverse second moments of the features that the pruned layers before give (Frantar and Alistarh,
//! "SparseGPT", 2023). A weight's score is `w^2 / [H^-1]_ii`; without fitting `|w| |x|` (Sun et al., "Wanda", 2023); without data `|w|`.

use super::channel::shared;
use super::layer::{Layer, layers};
use super::linalg::{Gram, Square};
use super::size::{measure, symbols};
use super::{Fit, Kind, LayerReport, Options, Pruned, grams};
use crate::{Data, Executor};
use infc_ir::Problems;
use infc_ir::graph::{Def, Graph};
use std::collections::BTreeMap;

/// Outputs that share their zeros in blocks.
pub const BLOCK: usize = 16;
/// Columns that are decided together.
const COLUMNS: usize = 128;
/// Layers with fewer features than this stay as they are: there is nothing to gain.
const LEAST_FEATURES: usize = 32;
/// With more, the layer is not fitted.
const MAX_FEATURES: usize = 4096;

/// Prunes a prepared graph.
pub fn prune(mut g: Graph, options: &Options, data: Option<&Data>, executor: &dyn Executor) -> Result<Pruned, Problems> {
    let first = data.map(|d| d.sample(0)).transpose()?;
    let symbols = first.map_or_else(BTreeMap::new, |s| symbols(&g, &s.inputs));
    let before = measure(&g, &symbols);
    let (mut reports, mut notes) = (vec![], vec![]);
    let all = layers(&g);
    let mut chosen = vec![];
    for layer in &all {
        let (name, features, outputs) = (g.describe(layer.node), layer.features(&g), layer.outputs(&g));
        let why = if layer.groups > 1 {
            Some("is a grouped convolution")
        } else if features < LEAST_FEATURES {
            Some("has few inputs")
        } else if options.kind == Kind::Block && outputs < BLOCK {
            Some("has fewer outputs than a block")
        } else if options.kind == Kind::TwoOfFour && features % 4 != 0 {
            Some("has a number of inputs that 4 does not divide")
        } else if shared(&g, layer) {
            Some("shares its weights with another")
        } else {
            None
        };
        match why {
            Some(why) => notes.push(format!("{name}: stays as it is: it {why}")),
            None => chosen.push(layer.clone()),
        }
    }
    if chosen.is_empty() {
        let help = if all.is_empty() { "it has no layers with constant weights".to_owned() } else { notes.join("; ") };
        return Err(Problems::one(format!("model '{}'", g.name), "has no layer whose weights can be pruned", help));
    }
    let at_once = match data.filter(|_| !options.fit.in_order()) {
        Some(data) => {
            let asked: Vec<_> = chosen.iter().filter(|l| fits(&g, l)).map(|l| (l, vec![vec![]])).collect();
            let sums = grams(&g, &g, &asked, data, executor, options, None)?;
            asked.iter().map(|(l, _)| l.node).zip(sums).collect()
        }
        None => BTreeMap::new(),
    };
    for layer in &chosen {
        let gram = match data {
            Some(data) if options.fit.in_order() && fits(&g, layer) => {
                let keep: Vec<usize> = vec![];
                Some(grams(&g, &g, &[(layer, vec![keep])], data, executor, options, None)?.remove(0).remove(0))
            }
            _ => at_once.get(&layer.node).map(|v: &Vec<Gram>| v[0].clone()),
        };
        let features = layer.features(&g);
        let old = layer.matrix(&g, 0);
        let mut new = old.clone();
        let inverse = gram.as_ref().filter(|_| options.fit != Fit::None).and_then(|gram| factor(gram, features, options.damping));
        match &inverse {
            Some(upper) => sweep(&mut new, features, upper, options),
            None => by_score(&mut new, features, gram.as_ref(), options),
        }
        let tensor = layer.weights(&g, std::slice::from_ref(&new));
        g.values[layer.weight.index()].def = Def::Constant(tensor);
        reports.push(LayerReport {
            name: g.describe(layer.node),
            before: old.len(),
            after: new.iter().filter(|&&w| w != 0.0).count(),
            error: gram.as_ref().map(|gram| error(gram, &old, &new, features)),
        });
    }
    Ok(Pruned { before, after: measure(&g, &symbols), graph: g, layers: reports, notes, fitted: None, kept: BTreeMap::new() })
}

fn fits(g: &Graph, layer: &Layer) -> bool {
    layer.features(g) <= MAX_FEATURES
}

/// The upper factor `U` with `U^T U` the inverse of the damped second moments.
fn factor(gram: &Gram, features: usize, damping: f64) -> Option<Square> {
    let mut h = gram.xx.select(&(0..features).collect::<Vec<_>>());
    h.damp(damping.max(1e-6));
    let lower = h.inverse()?.cholesky()?;
    let mut upper = Square::zeros(features);
    for i in 0..features {
        for j in 0..=i {
            upper.at[j * features + i] = lower.at[i * features + j];
        }
    }
    Some(upper)
}

/// Prunes the columns of `w` from left to right, with compensation.
fn sweep(w: &mut [f32], features: usize, upper: &Square, options: &Options) {
    let outputs = w.len() / features;
    let mut rows: Vec<f64> = w.iter().map(|&v| f64::from(v)).collect();
    for from in (0..features).step_by(COLUMNS) {
        let to = (from + COLUMNS).min(features);
        let score = |rows: &[f64], m: usize, j: usize| (rows[m * features + j] / upper.at[j * features + j]).powi(2);
        let mut gone = vec![false; outputs * (to - from)];
        if options.kind != Kind::TwoOfFour {
            choose(&mut gone, outputs, to - from, options, &|m, j| score(&rows, m, from + j));
        }
        for j in from..to {
            if options.kind == Kind::TwoOfFour && j % 4 == 0 {
                // Scores of the four as they are now, with what the columns before left them.
                for m in 0..outputs {
                    let mut four: Vec<usize> = (j..j + 4).collect();
                    four.sort_by(|&a, &b| score(&rows, m, a).total_cmp(&score(&rows, m, b)));
                    four[..2].iter().for_each(|&k| gone[m * (to - from) + k - from] = true);
                }
            }
            for m in 0..outputs {
                if gone[m * (to - from) + j - from] {
                    let row = &mut rows[m * features..(m + 1) * features];
                    let error = row[j] / upper.at[j * features + j];
                    row[j] = 0.0;
                    row[j + 1..].iter_mut().zip(&upper.row(j)[j + 1..]).for_each(|(w, u)| *w -= error * u);
                }
            }
        }
    }
    w.iter_mut().zip(rows).for_each(|(w, v)| *w = v as f32);
}

/// Sets the weights with the least scores to 0, and changes no other.
fn by_score(w: &mut [f32], features: usize, gram: Option<&Gram>, options: &Options) {
    let outputs = w.len() / features;
    let norm = |j: usize| gram.map_or(1.0, |g| g.xx.at[j * g.xx.n + j]);
    let values = w.to_vec();
    let score = |m: usize, j: usize| f64::from(values[m * features + j]).powi(2) * norm(j);
    let mut gone = vec![false; w.len()];
    if options.kind == Kind::TwoOfFour {
        for m in 0..outputs {
            for j in (0..features).step_by(4) {
                let mut four: Vec<usize> = (j..j + 4).collect();
                four.sort_by(|&a, &b| score(m, a).total_cmp(&score(m, b)));
                four[..2].iter().for_each(|&k| gone[m * features + k] = true);
            }
        }
    } else {
        choose(&mut gone, outputs, features, options, &score);
    }
    w.iter_mut().zip(gone).filter(|x| x.1).for_each(|(w, _)| *w = 0.0);
}

/// Marks the share with the least scores: weights of the whole part, or blocks of outputs that share an input.
fn choose(gone: &mut [bool], outputs: usize, columns: usize, options: &Options, score: &dyn Fn(usize, usize) -> f64) {
    let height = if options.kind == Kind::Block { BLOCK } else { 1 };
    let mut list: Vec<(f64, usize, usize)> = vec![];
    for top in (0..outputs).step_by(height) {
        let rows = top..(top + height).min(outputs);
        list.extend((0..columns).map(|j| (rows.clone().map(|m| score(m, j)).sum(), top, j)));
    }
    let count = (list.len() as f64 * options.sparsity).round() as usize;
    list.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    for &(_, top, j) in &list[..count] {
        (top..(top + height).min(outputs)).for_each(|m| gone[m * columns + j] = true);
    }
}

/// Squared error of the outputs over their squares.
fn error(gram: &Gram, old: &[f32], new: &[f32], features: usize) -> f64 {
    let quadratic = |w: &dyn Fn(usize) -> f64| -> f64 {
        (0..features)
            .map(|i| {
                let wi = w(i);
                if wi == 0.0 {
                    0.0
                } else {
                    wi * gram.xx.row(i)[..features].iter().enumerate().map(|(j, h)| h * w(j)).sum::<f64>()
                }
            })
            .sum()
    };
    let (mut lost, mut all) = (0.0, 0.0);
    for (o, n) in old.chunks(features).zip(new.chunks(features)) {
        lost += quadratic(&|i| f64::from(o[i]) - f64::from(n[i]));
        all += quadratic(&|i| f64::from(o[i]));
    }
    lost / all.max(f64::MIN_POSITIVE)
}
