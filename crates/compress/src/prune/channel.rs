//! Pruning of channels: the units that cost the outputs least for what they save, one after another.
//!
//! What a unit costs is the error of the layers that sum over it, when the features that stay make up for it as well as they can:
//! `tr(W_s ([H^-1]_ss)^-1 W_s^T)` for the features `s` of the unit, with `H` the second moments of the features (Hassibi and Stork,
//! "Second order derivatives for network pruning: Optimal Brain Surgeon", 1993, for blocks of weights), relative to the variance of the
//! layer's outputs. `H` and the weights follow every choice. Without data `H` is 1: the squared magnitude of the weights.
//! What it saves are multiply-accumulates. Where widths are to be even, the cheapest unit of the group that has most left goes. At the end
//! the layers are fitted again, in order, to the outputs of the original for the features that the pruned layers before them give (as He,
//! Zhang and Sun, "Channel pruning", 2017).

use super::apply::{Kept, kept, shrink};
use super::axes::{Analysis, Axis, analyse};
use super::layer::{After, Bias, Layer, after, layers};
use super::linalg::{Gram, Square};
use super::size::{extent, factors, measure, symbols};
use super::{Fit, LayerReport, Options, Pruned, Rows, Widths, grams, outputs};
use crate::{Data, Executor};
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::{Problem, Problems, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// How often targets that a Relu cuts off follow the fit.
const CLIPPED_ROUNDS: usize = 4;
/// Layers with more features than this are judged by the squares of their features alone, and not fitted.
const MAX_FEATURES: usize = 3072;

/// One group of one layer while units are chosen.
#[derive(Clone)]
struct State {
    /// Inverse second moments; `None` without data.
    inverse: Option<Square>,
    /// Weights `[outputs, features]`.
    weights: Vec<f64>,
    features: usize,
    /// Variance of the outputs.
    variance: f64,
}

impl State {
    fn new(matrix: &[f32], features: usize, gram: Option<&Gram>, intercept: bool, damping: f64) -> State {
        let outputs = matrix.len() / features.max(1);
        let Some(gram) = gram else {
            let weights: Vec<f64> = matrix.iter().map(|&w| f64::from(w)).collect();
            let variance = weights.iter().map(|w| w * w).sum::<f64>().max(f64::MIN_POSITIVE);
            return State { inverse: None, weights, features, variance };
        };
        let n = if intercept { features + 1 } else { features };
        let mut h = gram.xx.select(&(0..n).collect::<Vec<_>>());
        let rows = gram.rows.max(1) as f64;
        h.at.iter_mut().for_each(|v| *v /= rows);
        let last = gram.xx.n;
        let mean: Vec<f64> = (0..features).map(|i| gram.xx.at[i * last + features] / rows).collect();
        let mut weights = vec![0.0; outputs * n];
        let mut variance = 0.0;
        for m in 0..outputs {
            let w = &matrix[m * features..(m + 1) * features];
            for i in 0..features {
                weights[m * n + i] = f64::from(w[i]);
                let row = &h.at[i * n..i * n + features];
                let dot: f64 = row.iter().zip(w).map(|(h, &w)| h * f64::from(w)).sum();
                let centre: f64 = mean.iter().zip(w).map(|(a, &w)| a * f64::from(w)).sum();
                variance += f64::from(w[i]) * (dot - mean[i] * centre);
            }
        }
        h.damp(damping);
        let inverse = h.inverse();
        State { inverse, weights, features: n, variance: variance.max(f64::MIN_POSITIVE) }
    }
    /// `[H^-1]_ss` as a factor.
    fn factor(&self, s: &[usize]) -> Option<Square> {
        let mut block = self.inverse.as_ref()?.select(s);
        block.damp(1e-9);
        block.cholesky()
    }
    fn error(&self, s: &[usize]) -> f64 {
        let n = self.features;
        let factor = self.factor(s);
        let mut sum = 0.0;
        for row in self.weights.chunks(n.max(1)) {
            let w: Vec<f64> = s.iter().map(|&i| row[i]).collect();
            let mut z = w.clone();
            if let Some(l) = &factor {
                l.solve_factored(&mut z);
            }
            sum += w.iter().zip(&z).map(|(a, b)| a * b).sum::<f64>();
        }
        sum / self.variance
    }
    /// Takes features out; the others make up for them.
    fn remove(&mut self, s: &[usize]) {
        let (n, factor) = (self.features, self.factor(s));
        if let (Some(l), Some(inverse)) = (factor, &mut self.inverse) {
            let rows: Vec<f64> = s.iter().flat_map(|&i| inverse.row(i).to_vec()).collect();
            // Columns of ([H^-1]_ss)^-1 [H^-1]_s.
            let mut solved = vec![0.0; rows.len()];
            let mut b = vec![0.0; s.len()];
            for j in 0..n {
                (0..s.len()).for_each(|k| b[k] = rows[k * n + j]);
                l.solve_factored(&mut b);
                (0..s.len()).for_each(|k| solved[k * n + j] = b[k]);
            }
            for w in self.weights.chunks_mut(n) {
                let z: Vec<f64> = s.iter().map(|&i| w[i]).collect();
                for (k, z) in z.iter().enumerate() {
                    w.iter_mut().zip(&solved[k * n..]).for_each(|(w, v)| *w -= z * v);
                }
            }
            for i in 0..n {
                for k in 0..s.len() {
                    let a = rows[k * n + i];
                    inverse.at[i * n..(i + 1) * n].iter_mut().zip(&solved[k * n..]).for_each(|(h, v)| *h -= a * v);
                }
            }
        }
        for w in self.weights.chunks_mut(n.max(1)) {
            s.iter().for_each(|&i| w[i] = 0.0);
        }
    }
}

/// A unit with what its removal touches.
struct Candidate {
    /// (layer, group, features) that sum over it.
    sums: Vec<(usize, usize, Vec<usize>)>,
    /// Axes it takes positions from, and how many.
    axes: Vec<(Axis, usize)>,
    /// Nodes whose size depends on it.
    nodes: BTreeSet<Node>,
    cost: f64,
    /// Multiply-accumulates that its removal saves now.
    saving: f64,
    /// The number of its group.
    group: usize,
    /// Of its group.
    weight: f64,
    gone: bool,
}

/// Prunes a prepared graph.
pub fn prune(mut g: Graph, options: &Options, data: Option<&Data>, executor: &dyn Executor) -> Result<Pruned, Problems> {
    if data.is_some() && options.fit != Fit::None {
        // A place for what the features that go add on average.
        for l in
            layers(&g).into_iter().filter(|l| l.bias == Bias::Operand && g.node(l.node).operand(2).is_none()).collect::<Vec<_>>()
        {
            let zeros = l.bias_values(&g);
            l.set_bias(&mut g, zeros);
        }
    }
    let analysis = analyse(&g);
    if analysis.units.is_empty() {
        return Err(nothing(&g, &analysis));
    }
    let first = data.map(|d| d.sample(0)).transpose()?;
    let symbols = first.map_or_else(BTreeMap::new, |s| symbols(&g, &s.inputs));
    let all = layers(&g);
    let summed: Vec<&Layer> = all.iter().filter(|l| analysis.contractions.iter().any(|c| c.node == l.node)).collect();
    let states = states(&g, &summed, options, data, executor)?;
    let mut best: Option<(f64, Made)> = None;
    let mut weights = vec![1.0; analysis.groups];
    // Even widths follow from the goal alone: there is no balance to look for.
    let search = data.is_some() && options.widths == Widths::Fitted;
    let plan = balances(analysis.groups, if search { options.search } else { 0 });
    for (group, factor) in plan {
        let mut tried = weights.clone();
        if let Some(group) = group {
            tried[group] *= factor;
        }
        let made = attempt(&g, &analysis, &summed, states.clone(), &tried, options, &symbols, data, executor);
        let made = match (made, &best) {
            (Ok(made), _) => made,
            (Err(_), Some(_)) => continue, // this balance cannot reach the goal
            (Err(e), None) => return Err(e),
        };
        let error = match data.filter(|_| options.search > 0) {
            Some(data) => output_error(&g, &made.small, data, executor)?,
            None => 0.0,
        };
        if best.as_ref().is_none_or(|b| error < b.0) {
            (best, weights) = (Some((error, made)), tried);
        }
    }
    let (_, Made { mut small, kept, errors }) = best.expect("at least one attempt");
    let notes = notes(&g, &analysis);
    let fitted = match data.filter(|_| matches!(options.fit, Fit::Auto | Fit::Outputs)) {
        Some(data) => together(&g, &mut small, options, &symbols, data, executor)?,
        None => None,
    };
    let report = |l: &Layer| LayerReport {
        name: g.describe(l.node),
        before: g.constant(l.weight).map_or(0, Tensor::len),
        after: small.constant(small.node(l.node).operand(1).expect("weights")).map_or(0, Tensor::len),
        error: errors.get(&l.node).copied(),
    };
    let layers = all.iter().map(report).collect();
    Ok(Pruned { before: measure(&g, &symbols), after: measure(&small, &symbols), graph: small, layers, notes, fitted, kept })
}

/// Fits all layers together to the outputs; a note that says what it gave, or why it was left out.
fn together(
    g: &Graph,
    small: &mut Graph,
    options: &Options,
    symbols: &BTreeMap<String, i64>,
    data: &Data,
    executor: &dyn Executor,
) -> Result<Option<String>, Problems> {
    let asked = options.fit == Fit::Outputs;
    if !asked && options.steps == 0 {
        return Ok(None);
    }
    // Unasked it takes as many steps as are affordable.
    let affordable = outputs::AFFORDABLE / outputs::effort(measure(small, symbols).macs);
    let steps = if asked { options.steps } else { options.steps.min(affordable as usize) };
    let least = outputs::LEAST.min(options.steps);
    if steps < least {
        let much = least as f64 / affordable;
        return Ok(Some(format!(
            "layers are fitted in order only: the fit to the outputs would take {much:.1} times the work that is done \
             unasked; --fit outputs asks for it"
        )));
    }
    let options = &Options { steps, ..*options };
    match outputs::fit(g, small, options, data, executor) {
        Ok(gain) => {
            let percent = [gain.before, gain.after].map(|e| 100.0 * e);
            Ok(Some(format!(
                "fit to the outputs: their error falls from {:.2} % to {:.2} % of their variance",
                percent[0], percent[1]
            )))
        }
        Err(p) if asked => Err(p),
        Err(p) => {
            let why: Vec<String> = p.0.iter().take(3).map(|p| format!("{} {}", p.at, p.message)).collect();
            Ok(Some(format!("layers are fitted in order only, not to the outputs: {}", why.join("; "))))
        }
    }
}

/// A pruned graph, what stayed, and the errors of its layers.
struct Made {
    small: Graph,
    kept: Kept,
    errors: BTreeMap<Node, f64>,
}

/// Weights of the groups of channels to try, one after another: each changes one group of the best found so far.
fn balances(groups: usize, trials: usize) -> Vec<(Option<usize>, f64)> {
    let factors = [4.0, 0.25, 2.0, 0.5, 1.4, 0.7];
    let all = factors.iter().flat_map(|&f| (0..groups).map(move |g| (Some(g), f)));
    [(None, 1.0)].into_iter().chain(all.cycle().take(if groups > 1 { trials } else { 0 })).collect()
}

fn attempt(
    g: &Graph,
    analysis: &Analysis,
    summed: &[&Layer],
    mut states: Vec<Vec<State>>,
    weights: &[f64],
    options: &Options,
    symbols: &BTreeMap<String, i64>,
    data: Option<&Data>,
    executor: &dyn Executor,
) -> Result<Made, Problems> {
    let removed = choose(g, analysis, summed, &mut states, weights, options, symbols)?;
    let kept = kept(g, analysis, &removed)?;
    let mut small = g.clone();
    if options.fit != Fit::None && data.is_some() {
        compensate(&mut small, summed, &states);
    }
    shrink(&mut small, &kept)?;
    let mut errors = BTreeMap::new();
    if let Some(data) = data.filter(|_| options.fit.in_order()) {
        errors = refit(g, &mut small, &kept, options, data, executor)?;
    }
    Ok(Made { small, kept, errors })
}

/// Squared error of the outputs over their squares, the mean over the outputs.
fn output_error(a: &Graph, b: &Graph, data: &Data, executor: &dyn Executor) -> Result<f64, Problems> {
    let (outputs, _) = super::report::differences(a, b, data, executor)?;
    let errors = outputs.iter().map(|d| 10f64.powf(-d.sqnr_db / 10.0));
    Ok(errors.sum::<f64>() / outputs.len().max(1) as f64)
}

fn nothing(g: &Graph, analysis: &Analysis) -> Problems {
    let mut problems = vec![Problem {
        at: format!("model '{}'", g.name),
        message: "has no channels that can be taken out".to_owned(),
        help: match super::layer::layers(g).is_empty() {
            true => "it has no layers with constant weights".to_owned(),
            false => "prune weights instead: --kind unstructured, block or 2:4".to_owned(),
        },
    }];
    for (&n, why) in analysis.pins.iter().filter(|(_, why)| !why.is_empty()).take(20) {
        problems.push(Problem { at: g.describe(n), message: format!("keeps its axes: it {why}"), help: String::new() });
    }
    Problems(problems)
}

fn notes(g: &Graph, analysis: &Analysis) -> Vec<String> {
    let held = |(&n, why): (&Node, &&'static str)| {
        let weights = g.node(n).inputs.iter().flatten().any(|&v| g.constant(v).is_some_and(|t| t.dims.len() > 1));
        (weights && !why.is_empty() && !why.starts_with("works on windows"))
            .then(|| format!("{}: keeps its axes: it {why}", g.describe(n)))
    };
    analysis.pins.iter().filter_map(held).collect()
}

fn states(
    g: &Graph,
    layers: &[&Layer],
    options: &Options,
    data: Option<&Data>,
    executor: &dyn Executor,
) -> Result<Vec<Vec<State>>, Problems> {
    let fits = |l: &Layer| l.features(g) < MAX_FEATURES;
    let mut of: BTreeMap<usize, Vec<Gram>> = BTreeMap::new();
    if let Some(data) = data {
        let known: Vec<usize> = (0..layers.len()).filter(|&k| fits(layers[k])).collect();
        let asked: Vec<_> = known.iter().map(|&k| (layers[k], vec![vec![]; layers[k].groups])).collect();
        of = known.iter().copied().zip(grams(g, g, &asked, data, executor, options, None)?).collect();
    }
    let state = |k: usize| {
        let layer = layers[k];
        let group = |j: usize| {
            let gram = of.get(&k).map(|grams| &grams[j]);
            State::new(&layer.matrix(g, j), layer.features(g), gram, layer.bias != Bias::None, options.damping)
        };
        (0..layer.groups).map(group).collect()
    };
    Ok((0..layers.len()).map(state).collect())
}

fn candidates(g: &Graph, analysis: &Analysis, layers: &[&Layer], weights: &[f64]) -> Vec<Candidate> {
    let mut uses: BTreeMap<Value, BTreeSet<Node>> = BTreeMap::new();
    for &n in &g.region(Graph::MAIN).nodes {
        for a in factors(g, n).into_iter().flatten() {
            uses.entry(a.value).or_default().insert(n);
        }
    }
    let mut by_data: BTreeMap<Axis, Vec<usize>> = BTreeMap::new();
    for (k, l) in layers.iter().enumerate() {
        let contractions = analysis.contractions.iter().filter(|c| c.node == l.node);
        contractions.for_each(|c| by_data.entry(c.data).or_default().push(k));
    }
    let candidate = |unit: &super::axes::Unit| {
        let mut sums: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        let mut axes: BTreeMap<Axis, usize> = BTreeMap::new();
        let mut nodes = BTreeSet::new();
        for &(a, i) in &unit.cells {
            *axes.entry(a).or_default() += 1;
            nodes.extend(uses.get(&a.value).into_iter().flatten());
            for &k in by_data.get(&a).into_iter().flatten() {
                let (layer, columns) = (layers[k], layers[k].columns_per_channel());
                let own = layer.features(g) / columns;
                let features = sums.entry((k, i / own)).or_default();
                features.extend((i % own) * columns..(i % own + 1) * columns);
            }
        }
        let sums = sums.into_iter().map(|((k, j), f)| (k, j, f)).collect();
        Candidate {
            sums,
            axes: axes.into_iter().collect(),
            nodes,
            cost: 0.0,
            saving: 0.0,
            group: unit.group,
            weight: weights[unit.group],
            gone: false,
        }
    };
    analysis.units.iter().map(candidate).collect()
}

/// Which units go.
fn choose(
    g: &Graph,
    analysis: &Analysis,
    layers: &[&Layer],
    states: &mut [Vec<State>],
    weights: &[f64],
    options: &Options,
    symbols: &BTreeMap<String, i64>,
) -> Result<Vec<bool>, Problems> {
    let mut list = candidates(g, analysis, layers, weights);
    let mut left: BTreeMap<Axis, f64> = BTreeMap::new();
    for c in &list {
        c.axes.iter().for_each(|&(a, _)| _ = left.entry(a).or_insert_with(|| extent(g, a, symbols)));
    }
    let full = left.clone();
    let products: BTreeMap<Node, Vec<Vec<Axis>>> = g.region(Graph::MAIN).nodes.iter().map(|&n| (n, factors(g, n))).collect();
    let macs = |n: Node, size: &dyn Fn(Axis) -> f64| -> f64 {
        products[&n].iter().map(|p| p.iter().map(|&a| size(a)).product::<f64>()).sum()
    };
    let known = |left: &BTreeMap<Axis, f64>, a: Axis| left.get(&a).copied().unwrap_or_else(|| extent(g, a, symbols));
    let total: f64 = products.keys().map(|&n| macs(n, &|a| known(&left, a))).sum();
    let goal = total * (1.0 - options.sparsity);
    let mut now = total;
    list.iter_mut().for_each(|c| c.cost = cost(g, analysis, c, states));
    let saving = |c: &Candidate, left: &BTreeMap<Axis, f64>| -> f64 {
        let less = |a: Axis| known(left, a) - c.axes.iter().find(|x| x.0 == a).map_or(0.0, |x| x.1 as f64);
        c.nodes.iter().map(|&n| macs(n, &|a| known(left, a)) - macs(n, &less)).sum()
    };
    list.iter_mut().for_each(|c| c.saving = saving(c, &left));
    let near = neighbours(&list, analysis.groups);
    let mut units = vec![(0f64, 0f64); analysis.groups]; // of each group: left, and all
    list.iter().for_each(|c| {
        units[c.group].0 += 1.0;
        units[c.group].1 += 1.0;
    });
    while now > goal {
        let can = |c: &Candidate| {
            let rest = |&(a, k): &(Axis, usize)| left[&a] - k as f64 >= (options.least * full[&a]).max(1.0);
            !c.gone && c.axes.iter().all(rest)
        };
        let score = |c: &Candidate| c.weight * c.cost / c.saving.max(1e-9);
        // What is compared first: nothing, or the share of its group that is gone.
        let gone = |c: &Candidate| match options.widths {
            Widths::Fitted => 0f64,
            Widths::Even => 1.0 - units[c.group].0 / units[c.group].1,
        };
        let able = (0..list.len()).filter(|&u| can(&list[u])).map(|u| (gone(&list[u]), score(&list[u]), u));
        let best = able.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let Some((.., u)) = best else {
            let message = format!(
                "sparsity {} (a ratio of {}) cannot be reached: with the channels that have to stay, {:.1} % of the multiply-accumulates stay",
                options.sparsity,
                ((1.0 - options.sparsity) * 1e6).round() / 1e6,
                100.0 * now / total
            );
            // Rounded down, so that it can be reached.
            let most = ((1.0 - now / total) * 100.0).floor() / 100.0;
            let help = if most > 0.0 {
                format!("ask for at most {most:.2}; for a student, a ratio of at least {:.2}", 1.0 - most)
            } else {
                "prune weights instead: --kind unstructured, block or 2:4; no student can be made of its channels".to_owned()
            };
            return Err(Problems::one(format!("model '{}'", g.name), message, help));
        };
        // The last one need not save more than is missing: of those that save enough, the one that costs least.
        let ends = |c: &Candidate| can(c) && now - c.saving <= goal;
        let price = |u: usize| list[u].weight * list[u].cost;
        let u = match ends(&list[u]) {
            true => (0..list.len()).filter(|&u| ends(&list[u])).min_by(|&a, &b| price(a).total_cmp(&price(b))).unwrap_or(u),
            false => u,
        };
        now -= list[u].saving;
        list[u].gone = true;
        for &(a, k) in &list[u].axes {
            *left.get_mut(&a).expect("known") -= k as f64;
        }
        let group = list[u].group;
        units[group].0 -= 1.0;
        for c in list.iter_mut().filter(|c| !c.gone && near[group].contains(&c.group)) {
            c.saving = saving(c, &left);
        }
        let mut changed = BTreeSet::new();
        for (k, j, features) in list[u].sums.clone() {
            states[k][j].remove(&features);
            // Without data other weights stay as they are, and so do the costs.
            if states[k][j].inverse.is_some() {
                changed.insert(k);
            }
        }
        for c in list.iter_mut().filter(|c| !c.gone && c.sums.iter().any(|s| changed.contains(&s.0))) {
            c.cost = cost(g, analysis, c, states);
        }
    }
    Ok(list.iter().map(|c| c.gone).collect())
}

/// For each group those that share a node with it: what they save changes with it.
fn neighbours(list: &[Candidate], groups: usize) -> Vec<BTreeSet<usize>> {
    let mut of: BTreeMap<Node, BTreeSet<usize>> = BTreeMap::new();
    list.iter().for_each(|c| c.nodes.iter().for_each(|&n| _ = of.entry(n).or_default().insert(c.group)));
    let mut out = vec![BTreeSet::new(); groups];
    for set in of.values() {
        set.iter().for_each(|&g| out[g].extend(set));
    }
    out
}

/// The error that removing a unit makes; for units that no layer of constant weights sums over, their share of the weights' squares.
fn cost(g: &Graph, analysis: &Analysis, c: &Candidate, states: &[Vec<State>]) -> f64 {
    if !c.sums.is_empty() {
        return c.sums.iter().map(|(k, j, f)| states[*k][*j].error(f) / states[*k].len() as f64).sum();
    }
    let mut shares = vec![];
    for &(a, _) in &c.axes {
        let Some(t) = g.constant(a.value).filter(|t| t.dims.len() > 1 && t.dtype.is_float()) else { continue };
        let unit = analysis.units.iter().find(|u| u.cells.iter().any(|x| x.0 == a) && same_axes(u, c));
        let cells: Vec<usize> = unit.map_or(vec![], |u| u.cells.iter().filter(|x| x.0 == a).map(|x| x.1).collect());
        let part = super::apply::take(t, a.axis, &cells);
        let square = |t: &Tensor| (0..t.len()).map(|i| t.float(i).powi(2)).sum::<f64>();
        shares.push(square(&part) / square(t).max(f64::MIN_POSITIVE));
    }
    shares.iter().sum::<f64>() / shares.len().max(1) as f64
}

fn same_axes(unit: &super::axes::Unit, c: &Candidate) -> bool {
    unit.cells.iter().all(|(a, _)| c.axes.iter().any(|x| x.0 == *a))
}

/// Puts the weights that make up for what goes into the graph, before it shrinks.
fn compensate(g: &mut Graph, layers: &[&Layer], states: &[Vec<State>]) {
    for (layer, states) in layers.iter().zip(states) {
        if states.iter().any(|s| s.inverse.is_none()) || shared(g, layer) {
            continue;
        }
        let features = layer.features(g);
        let matrix = |s: &State| -> Vec<f32> {
            s.weights.chunks(s.features).flat_map(|w| w[..features].iter().map(|&w| w as f32)).collect()
        };
        let tensor = layer.weights(g, &states.iter().map(matrix).collect::<Vec<_>>());
        if layer.bias != Bias::None {
            let mut bias = layer.bias_values(g);
            let extra = states.iter().flat_map(|s| s.weights.chunks(s.features).map(|w| w[features]));
            bias.iter_mut().zip(extra).for_each(|(b, e)| *b += e as f32);
            layer.set_bias(g, bias);
        }
        g.values[layer.weight.index()].def = Def::Constant(tensor);
    }
}

/// True if other nodes use the same weights.
pub(super) fn shared(g: &Graph, layer: &Layer) -> bool {
    let uses = |n: &Node| g.node(*n).inputs.iter().filter(|&&v| v == Some(layer.weight)).count();
    g.region(Graph::MAIN).nodes.iter().map(uses).sum::<usize>() > 1
}

/// Fits the layers of the pruned graph in order; gives the relative error of each.
fn refit(
    old: &Graph,
    small: &mut Graph,
    kept: &Kept,
    options: &Options,
    data: &Data,
    executor: &dyn Executor,
) -> Result<BTreeMap<Node, f64>, Problems> {
    let mut errors = BTreeMap::new();
    for layer in layers(small) {
        let upstream = cut_has(old, layer.data, kept);
        if !upstream || layer.features(small) >= MAX_FEATURES || shared(small, &layer) {
            continue;
        }
        let before = layers(old).into_iter().find(|l| l.node == layer.node).expect("the same nodes");
        let axis = match layer.contracted_axis() {
            1 if matches!(layer.kind, super::layer::Kind::Conv { .. }) => 0,
            k => 1 - k,
        };
        let rows = kept.get(&Axis { value: layer.weight, axis }).cloned();
        let rows = rows.unwrap_or_else(|| (0..before.outputs(old) * before.groups).collect());
        let own = before.outputs(old);
        if layer.groups != before.groups {
            continue; // whole groups of a depthwise convolution went: what stays sees the channels that it saw
        }
        let keep: Vec<Vec<usize>> =
            (0..layer.groups).map(|j| rows.iter().filter(|&&r| r / own == j).map(|&r| r % own).collect()).collect();
        let after = after(old, &before);
        let mut rows = Rows::default();
        let wanted = (after.relu && layer.groups == 1).then_some(&mut rows);
        let first = keep[0].clone();
        let mut grams = grams(small, old, &[(&layer, keep)], data, executor, options, wanted)?.remove(0);
        let error = fit(small, &layer, &grams, options);
        errors.insert(layer.node, error);
        if after.relu && layer.groups == 1 {
            for _ in 0..CLIPPED_ROUNDS {
                clip(small, &layer, &mut grams[0], &rows, &after, &first);
                fit(small, &layer, &grams, options);
            }
        }
    }
    Ok(errors)
}

/// Targets that a Relu cuts off only have to stay below 0: they become what the layer gives where that is so already (as Zhang, Zou,
/// He and Sun, "Accelerating very deep convolutional networks", 2015). Changes the sums of the targets.
fn clip(g: &Graph, layer: &Layer, gram: &mut Gram, rows: &Rows, after: &After, keep: &[usize]) {
    let (features, targets) = (layer.features(g), gram.targets);
    let matrix = layer.matrix(g, 0);
    let bias = if layer.bias == Bias::Operand { layer.bias_values(g) } else { vec![0.0; targets] };
    // For MatMul the bias is in the shift: that of the original, while the fitted one may differ a little.
    let mut y = rows.y.clone();
    let factor: Vec<f32> = keep.iter().map(|&m| after.factor[m] as f32).collect();
    let shift: Vec<f32> = keep.iter().map(|&m| after.shift[m] as f32).collect();
    for (r, y) in y.chunks_mut(targets.max(1)).enumerate() {
        let x = &rows.x[r * features..(r + 1) * features];
        for (t, y) in y.iter_mut().enumerate() {
            let base = shift[t] + rows.other.get(r * targets + t).copied().unwrap_or(0.0);
            if factor[t] * *y + base > 0.0 {
                continue;
            }
            let got: f32 = bias[t] + matrix[t * features..(t + 1) * features].iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
            *y = ((factor[t] * got + base).min(0.0) - base) / factor[t];
        }
    }
    gram.retarget(&rows.x, &y);
}

/// True if what a value is computed from has lost positions.
fn cut_has(g: &Graph, v: Value, kept: &Kept) -> bool {
    let part = super::cut(g, &[v]);
    let values = part.region(Graph::MAIN).nodes.iter().flat_map(|&n| g.node(n).outputs.iter());
    let touched: BTreeSet<Value> = kept.keys().map(|a| a.value).collect();
    values.into_iter().any(|v| touched.contains(v))
}

/// Fits one layer; gives the error relative to the variance of its targets.
fn fit(g: &mut Graph, layer: &Layer, grams: &[Gram], options: &Options) -> f64 {
    let features = layer.features(g);
    let intercept = layer.bias != Bias::None;
    let old_bias = layer.bias_values(g);
    let (mut matrices, mut bias) = (vec![], vec![]);
    let mut gain = vec![];
    for (j, gram) in grams.iter().enumerate() {
        let matrix = layer.matrix(g, j);
        let n = features + 1;
        let mut prior = vec![0.0; gram.targets * n];
        for t in 0..gram.targets {
            (0..features).for_each(|f| prior[t * n + f] = f64::from(matrix[t * features + f]));
            if layer.bias == Bias::Operand {
                prior[t * n + features] = f64::from(old_bias[j * gram.targets + t]);
            }
        }
        let all: Vec<usize> = (0..features).collect();
        let w = gram.fit(&all, options.damping, &prior, intercept).unwrap_or_else(|| prior.clone());
        gain.push(explained(gram, &w));
        for t in 0..gram.targets {
            matrices.push(w[t * n..t * n + features].iter().map(|&v| v as f32).collect::<Vec<_>>());
            let b = w[t * n + features] as f32;
            bias.push(if layer.bias == Bias::Operand { b } else { old_bias.get(j * gram.targets + t).unwrap_or(&0.0) + b });
        }
    }
    let per_group = matrices.len() / grams.len().max(1);
    let matrices: Vec<Vec<f32>> = matrices.chunks(per_group.max(1)).map(<[Vec<f32>]>::concat).collect();
    let tensor = layer.weights(g, &matrices);
    g.values[layer.weight.index()].def = Def::Constant(tensor);
    if intercept {
        layer.set_bias(g, bias);
    }
    gain.iter().sum::<f64>() / gain.len().max(1) as f64
}

/// The residual of a fit over the variance of the targets.
fn explained(gram: &Gram, w: &[f64]) -> f64 {
    let (n, rows) = (gram.xx.n, gram.rows.max(1) as f64);
    let (mut residual, mut variance) = (0.0, 0.0);
    for t in 0..gram.targets {
        let (w, yx, yy) = (&w[t * n..(t + 1) * n], &gram.yx[t * n..(t + 1) * n], gram.yy[t]);
        let wx: f64 = w.iter().enumerate().map(|(i, a)| a * gram.xx.row(i).iter().zip(w).map(|(h, b)| h * b).sum::<f64>()).sum();
        let wy: f64 = w.iter().zip(yx).map(|(a, b)| a * b).sum();
        residual += (yy - 2.0 * wy + wx).max(0.0);
        variance += (yy - yx[n - 1] * yx[n - 1] / rows).max(0.0);
    }
    residual / variance.max(f64::MIN_POSITIVE)
}
