//! Pruning: weights or whole channels that matter least are taken out, and what stays is fitted to the outputs of the original.
//!
//! - [`axes`] finds which channels go together, [`apply`] takes them out; [`channel`] chooses them.
//! - [`weights`] sets single weights, blocks or two of four to 0.
//! - [`layer`] sees layers as matrices, [`linalg`] solves for them, [`size`] counts.
//! - [`outputs`] fits all weights together to the outputs of the original, with the gradients of [`tape`].

pub mod apply;
pub mod axes;
pub mod channel;
pub mod layer;
pub mod linalg;
mod outputs;
pub mod report;
pub mod size;
mod tape;
pub mod weights;

use crate::data::Random;
use crate::{Data, Executor};
use infc_ir::graph::{Def, Graph, Value};
use infc_ir::{Problem, Problems, Tensor};
use layer::Layer;
use linalg::Gram;
use std::collections::BTreeMap;

/// What is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Single weights.
    Unstructured,
    /// Blocks of 16 outputs of one input: what the sparse kernels work on.
    Block,
    /// Two of each four neighbours along the inputs.
    TwoOfFour,
    /// Whole channels, heads and features: the graph becomes smaller.
    Channel,
}

impl Kind {
    /// All of them, with their names on the command line.
    pub const ALL: [(&'static str, Kind); 4] =
        [("unstructured", Kind::Unstructured), ("block", Kind::Block), ("2:4", Kind::TwoOfFour), ("channel", Kind::Channel)];
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        Kind::ALL.iter().find(|k| k.1 == self).expect("listed").0
    }
    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.iter().find(|k| k.0 == name).map(|k| k.1)
    }
}

/// How what stays is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// As `Outputs` where channels go, all operators are followed and the work is affordable; else as `Sequential`, with a note that says why.
    Auto,
    /// Not at all.
    None,
    /// Each layer by itself, for the inputs that it had in the original.
    Layer,
    /// Layer after layer, for the inputs that it gets from the pruned layers before it.
    Sequential,
    /// For channels: as `Sequential`, then all layers together to the outputs of the original.
    Outputs,
}

impl Fit {
    /// True if layers are fitted one after another.
    pub(crate) fn in_order(self) -> bool {
        matches!(self, Fit::Auto | Fit::Sequential | Fit::Outputs)
    }
    /// All of them, with their names on the command line.
    pub const ALL: [(&'static str, Fit); 5] = [
        ("auto", Fit::Auto),
        ("outputs", Fit::Outputs),
        ("sequential", Fit::Sequential),
        ("layer", Fit::Layer),
        ("none", Fit::None),
    ];
    /// The fit of that name.
    pub fn parse(name: &str) -> Option<Fit> {
        Fit::ALL.iter().find(|f| f.0 == name).map(|f| f.1)
    }
}

/// How many channels each layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Widths {
    /// The channels that cost the outputs least for what they save go first, wherever they are: best for what is not trained again.
    Fitted,
    /// Every group of channels keeps the same share, as the architecture had it: for a network that is trained again, where it matters less what others
    /// can make up for.
    Even,
}

impl Widths {
    /// All of them, with their names on the command line.
    pub const ALL: [(&'static str, Widths); 2] = [("fitted", Widths::Fitted), ("even", Widths::Even)];
    /// The choice of that name.
    pub fn parse(name: &str) -> Option<Widths> {
        Widths::ALL.iter().find(|w| w.0 == name).map(|w| w.1)
    }
}

/// How to prune.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For channels the share of multiply-accumulates to save, else the share of weights to set to 0; above 0 and below 1.
    pub sparsity: f64,
    /// What to take out.
    pub kind: Kind,
    /// How to fit what stays; needs data.
    pub fit: Fit,
    /// At most this many rows of features are looked at for each layer.
    pub rows: usize,
    /// Chooses the rows.
    pub seed: u64,
    /// Regularisation of least squares, as a share of the mean square of the features.
    pub damping: f64,
    /// The least share of an axis that stays.
    pub least: f64,
    /// For channels: how many each layer keeps.
    pub widths: Widths,
    /// For channels: try this many other balances between the groups of channels, and keep what gives the least error of the outputs.
    pub search: usize,
    /// Steps of the fit to the outputs; where it was not asked for, as many of them as are affordable.
    pub steps: usize,
}

impl Default for Options {
    fn default() -> Options {
        let (sparsity, kind, fit, widths) = (0.5, Kind::Channel, Fit::Auto, Widths::Fitted);
        Options { sparsity, kind, fit, rows: 20_000, seed: 0, damping: 1e-3, least: 0.1, widths, search: 0, steps: 2000 }
    }
}

/// What pruning did to one layer.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LayerReport {
    /// The node.
    pub name: String,
    /// Weights before.
    pub before: usize,
    /// Weights after: those that are there and not 0.
    pub after: usize,
    /// Error of its outputs over calibration data, relative to their variance; `None` without data.
    pub error: Option<f64>,
}

/// A pruned model.
pub struct Pruned {
    /// The model.
    pub graph: Graph,
    /// Size before.
    pub before: size::Size,
    /// Size after.
    pub after: size::Size,
    /// Its layers.
    pub layers: Vec<LayerReport>,
    /// What was left as it is, and why.
    pub notes: Vec<String>,
    /// What the fit to the outputs gave, or why it was left out.
    pub fitted: Option<String>,
    /// The positions that stayed, of axes that lost some; values are those of the prepared graph, which keep their numbers.
    pub kept: apply::Kept,
}

/// Prunes a model. Without data weights are judged by their magnitude and nothing is fitted.
pub fn prune(graph: &Graph, options: &Options, data: Option<&Data>, executor: &dyn Executor) -> Result<Pruned, Problems> {
    check(options, data)?;
    let graph = prepare(graph)?;
    match options.kind {
        Kind::Channel => channel::prune(graph, options, data, executor),
        Kind::Unstructured | Kind::Block | Kind::TwoOfFour => weights::prune(graph, options, data, executor),
    }
}

fn check(options: &Options, data: Option<&Data>) -> Result<(), Problems> {
    check_options(options, data.is_some())?;
    match data.is_some_and(Data::is_empty) {
        true => Err(Problems::one("prune", "the calibration data is empty", "some tens of typical inputs are enough")),
        false => Ok(()),
    }
}

/// Can this be done, with data or without?
pub fn check_options(options: &Options, data: bool) -> Result<(), Problems> {
    let mut problems = vec![];
    let mut problem = |message: String, help: &str| {
        problems.push(Problem { at: "prune".to_owned(), message, help: help.to_owned() });
    };
    if !(options.sparsity > 0.0 && options.sparsity < 1.0) {
        let help = "give a share above 0 and below 1: 0.5 takes out half";
        problem(format!("sparsity {} leaves nothing, or nothing to do", options.sparsity), help);
    }
    if options.kind == Kind::TwoOfFour && options.sparsity != 0.5 {
        problem(format!("2:4 has sparsity 0.5, not {}", options.sparsity), "leave --sparsity out, or give 0.5");
    }
    if options.fit == Fit::Outputs && options.kind != Kind::Channel {
        let help = "leave --fit out, or prune channels";
        problem(format!("the outputs are fitted where channels go, not for kind {}", options.kind.name()), help);
    }
    if options.fit == Fit::Outputs && !data {
        problem("the fit to the outputs needs data".to_owned(), "some hundreds of typical inputs, without labels: --data");
    }
    if options.fit == Fit::Outputs && options.steps == 0 {
        problem("the fit to the outputs has no steps".to_owned(), "2000 is usual; --fit sequential does without");
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// Simplified, and every small constant used once: equal vectors that an exporter shared belong to different channels.
pub fn prepare(graph: &Graph) -> Result<Graph, Problems> {
    let mut g = graph.clone();
    let pipeline = infc_passes::simplify().into_iter().map(str::to_owned).collect();
    infc_passes::run(&mut g, &infc_passes::Options { pipeline, portable: true, ..Default::default() })?;
    let mut seen = vec![false; g.values.len()];
    for n in g.region(Graph::MAIN).nodes.clone() {
        for k in 0..g.node(n).inputs.len() {
            let Some(v) = g.node(n).inputs[k] else { continue };
            if let Some(t) = g.constant(v).filter(|t| t.dims.len() <= 1).cloned() {
                if std::mem::replace(&mut seen[v.index()], true) {
                    let name = g.value(v).name.clone();
                    g.nodes[n.index()].inputs[k] = Some(g.add_constant(t, name));
                }
                seen.resize(g.values.len(), true);
            }
        }
    }
    Ok(g)
}

/// Gives every constant in use a name of its own.
pub fn name_constants(g: &mut Graph) {
    let uses = g.use_counts();
    let constant = |g: &Graph, i: usize| g.constant(Value(i as u32)).is_some();
    let others = (0..uses.len()).filter(|&i| !constant(g, i)).map(|i| g.values[i].name.clone());
    let mut taken: std::collections::BTreeSet<String> = others.collect();
    for i in (0..uses.len()).filter(|&i| uses[i] > 0 && constant(g, i)).collect::<Vec<_>>() {
        let base = if g.values[i].name.is_empty() { format!("constant_{i}") } else { g.values[i].name.clone() };
        let mut names = (0..).map(|k| if k == 0 { base.clone() } else { format!("{base}_{k}") });
        let name = names.find(|n| !taken.contains(n)).expect("endless");
        taken.insert(name.clone());
        g.values[i].name = name;
    }
}

/// The graph that computes only `values`.
pub(crate) fn cut(g: &Graph, values: &[Value]) -> Graph {
    let mut out = g.clone();
    let mut live = vec![false; g.values.len()];
    values.iter().for_each(|v| live[v.index()] = true);
    let mut nodes = vec![];
    for &n in g.region(Graph::MAIN).nodes.iter().rev() {
        let node = g.node(n);
        if node.outputs.iter().any(|v| live[v.index()]) {
            node.inputs.iter().flatten().for_each(|v| live[v.index()] = true);
            nodes.push(n);
        }
    }
    nodes.reverse();
    out.regions[Graph::MAIN.index()].nodes = nodes;
    out.regions[Graph::MAIN.index()].results = values.to_vec();
    for &v in values {
        if out.value(v).name.is_empty() {
            out.values[v.index()].name = format!("infc.tap.{}", v.0);
        }
    }
    out
}

/// Calls `see` with the values (inputs of the model or results of nodes) of each sample.
pub(crate) fn observe(
    g: &Graph,
    values: &[Value],
    data: &Data,
    executor: &dyn Executor,
    see: &mut dyn FnMut(usize, &[Tensor]) -> Result<(), Problems>,
) -> Result<(), Problems> {
    let mut computed: Vec<Value> = values.iter().copied().filter(|&v| matches!(g.value(v).def, Def::Output(..))).collect();
    computed.sort();
    computed.dedup();
    let mut runner = if computed.is_empty() { None } else { Some(executor.load(&cut(g, &computed))?) };
    for i in 0..data.len() {
        let inputs = data.sample(i)?.inputs;
        finite(i, g, &inputs)?;
        let outputs = match &mut runner {
            Some(r) => r.run(&inputs)?,
            None => vec![],
        };
        let pick = |v: &Value| match g.inputs().iter().position(|p| p == v) {
            Some(k) => inputs[k].clone(),
            None => outputs[computed.binary_search(v).expect("computed")].clone(),
        };
        see(i, &values.iter().map(pick).collect::<Vec<_>>())?;
    }
    Ok(())
}

fn finite(sample: usize, g: &Graph, inputs: &[Tensor]) -> Result<(), Problems> {
    for (&v, t) in g.inputs().iter().zip(inputs) {
        if t.dtype.is_float() && (0..t.len()).any(|i| !t.float(i).is_finite()) {
            let at = format!("calibration data: sample {sample}, input '{}'", g.value(v).name);
            return Err(Problems::one(at, "holds NaN or infinity", "take such samples out"));
        }
    }
    Ok(())
}

/// Rows of a layer's result that are looked at in sample `i`, at most `rows` over all samples.
pub(crate) fn pick_rows(total: usize, samples: usize, i: usize, options: &Options) -> Vec<usize> {
    let most = (options.rows / samples.max(1)).max(1);
    if total <= most {
        return (0..total).collect();
    }
    let mut random = Random(options.seed ^ (i as u64).wrapping_mul(0x9e37_79b9));
    // One row of each of `most` equal parts.
    (0..most)
        .map(|k| (k * total / most) + (random.unit() * (total as f64 / most as f64)) as usize)
        .map(|r| r.min(total - 1))
        .collect()
}

/// Rows of features, targets, and what is added to the results (empty if nothing is).
#[derive(Default)]
pub(crate) struct Rows {
    pub x: Vec<f32>,
    pub y: Vec<f32>,
    pub other: Vec<f32>,
}

/// Sums over the features and results of layers, one list a layer with one Gram matrix a group. Data values are of `inner`, targets
/// of `outer` (the original), only the outputs in `keep`.
/// A layer whose result is added to another value makes up for that value's error, too. `rows` gets the rows of the first group of
/// the first layer.
pub(crate) fn grams(
    inner: &Graph,
    outer: &Graph,
    layers: &[(&Layer, Vec<Vec<usize>>)],
    data: &Data,
    executor: &dyn Executor,
    options: &Options,
    mut rows_of_first: Option<&mut Rows>,
) -> Result<Vec<Vec<Gram>>, Problems> {
    let mut out: Vec<Vec<Gram>> =
        layers.iter().map(|(l, keep)| keep.iter().map(|k| Gram::new(l.features(inner), k.len())).collect()).collect();
    let xs: Vec<Value> = layers.iter().map(|(l, _)| l.data).collect();
    let ys: Vec<Value> = layers.iter().map(|(l, _)| outer.node(l.node).outputs[0]).collect();
    let mut targets: BTreeMap<usize, Vec<(Vec<usize>, Vec<usize>, Vec<Vec<f32>>)>> = BTreeMap::new();
    let samples = data.len();
    let others: Vec<Option<(Value, Vec<f64>)>> = match std::ptr::eq(inner, outer) {
        true => vec![None; layers.len()],
        false => layers.iter().map(|(l, _)| layer::after(outer, l)).map(|a| a.other.map(|v| (v, a.factor))).collect(),
    };
    let beside: Vec<Value> = others.iter().flatten().map(|o| o.0).collect();
    let place = |k: usize| others[..k].iter().flatten().count();
    let add = |out: &mut Vec<Vec<Gram>>, k: usize, x: &Tensor, dims: &[usize], picked: &[usize], y: &[Vec<f32>]| {
        let layer = layers[k].0;
        for (group, gram) in out[k].iter_mut().enumerate() {
            gram.add(&layer.read(x, dims, group, picked), &y[group]);
        }
    };
    let rows = |k: usize, i: usize, y: &Tensor| {
        let (layer, keep) = &layers[k];
        let picked = pick_rows(layer.rows(y), samples, i, options);
        let values: Vec<Vec<f32>> = keep.iter().enumerate().map(|(g, kept)| layer.read_out(y, g, kept, &picked)).collect();
        (y.dims.clone(), picked, values)
    };
    if std::ptr::eq(inner, outer) {
        let both: Vec<Value> = xs.iter().chain(&ys).copied().collect();
        observe(inner, &both, data, executor, &mut |i, values| {
            for k in 0..layers.len() {
                let (dims, picked, y) = rows(k, i, &values[layers.len() + k]);
                add(&mut out, k, &values[k], &dims, &picked, &y);
            }
            Ok(())
        })?;
    } else {
        let wanted: Vec<Value> = ys.iter().chain(&beside).copied().collect();
        observe(outer, &wanted, data, executor, &mut |i, values| {
            let one = |k: usize| {
                let (dims, picked, mut y) = rows(k, i, &values[k]);
                if let Some((_, factor)) = &others[k] {
                    let (layer, keep) = &layers[k];
                    for (group, kept) in keep.iter().enumerate() {
                        let other = layer.read_out(&values[layers.len() + place(k)], group, kept, &picked);
                        let own = factor.len() / keep.len();
                        let factors = kept.iter().map(|&m| factor[group * own + m] as f32).collect::<Vec<_>>();
                        y[group].iter_mut().zip(other).enumerate().for_each(|(j, (y, o))| *y += o / factors[j % factors.len()]);
                    }
                }
                (dims, picked, y)
            };
            targets.insert(i, (0..layers.len()).map(one).collect());
            Ok(())
        })?;
        let given: Vec<Value> = xs.iter().chain(&beside).copied().collect();
        observe(inner, &given, data, executor, &mut |i, values| {
            let mut beside_first: Vec<f32> = vec![];
            for (k, (dims, picked, y)) in targets.remove(&i).unwrap_or_default().iter_mut().enumerate() {
                if let Some((_, factor)) = &others[k] {
                    let (layer, keep) = &layers[k];
                    for (group, kept) in keep.iter().enumerate() {
                        let all: Vec<usize> = (0..kept.len()).collect();
                        let other = layer.read_out(&values[layers.len() + place(k)], group, &all, picked);
                        if (k, group) == (0, 0) {
                            beside_first.clone_from(&other);
                        }
                        let own = factor.len() / keep.len();
                        let factors = kept.iter().map(|&m| factor[group * own + m] as f32).collect::<Vec<_>>();
                        y[group].iter_mut().zip(other).enumerate().for_each(|(j, (y, o))| *y -= o / factors[j % factors.len()]);
                    }
                }
                add(&mut out, k, &values[k], dims, picked, y);
                if let Some(rows) = rows_of_first.as_deref_mut().filter(|_| k == 0) {
                    rows.x.extend(layers[0].0.read(&values[0], dims, 0, picked));
                    rows.y.extend(&y[0]);
                    rows.other.extend(std::mem::take(&mut beside_first));
                }
            }
            Ok(())
        })?;
    }
    out.iter_mut().flatten().for_each(Gram::finish);
    for (k, grams) in out.iter().enumerate() {
        if grams.iter().any(|g| g.xx.at.iter().chain(&g.yx).any(|v| !v.is_finite())) {
            let help = "the model gives NaN or infinity for some of the samples: take them out";
            return Err(Problems::one(inner.describe(layers[k].0.node), "sees NaN or infinity in the calibration data", help));
        }
    }
    Ok(out)
}
