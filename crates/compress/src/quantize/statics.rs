//! Static int8: weights by output channel, activations with ranges from calibration, the sums on integers.

use super::params::Affine;
use super::qdq::{self, Plan};
use super::reconstruct::{self, Gram};
use super::smooth::{self, Rows};
use super::split;
use super::two_bytes;
use super::weights::{self, Stored};
use super::{Form, Knowledge, Quantised, Rounding, Settings};
use crate::calibrate::{self, Channels, Method, Stats, Tap};
use crate::layers::{Kind, Layer, layers};
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::{DType, Op, Problems, Tensor};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Positions of a sample that reconstruction looks at in each layer, and the longest sums that it takes.
const ROWS: usize = 512;
const DEPTH: usize = 2304;

/// All that quantisation needs to know of a model; from it, any choice of layers is made without running the model again.
#[derive(Clone)]
pub struct Calibration {
    /// The model, smoothed.
    pub graph: Graph,
    /// Layers that can be quantised.
    pub layers: Vec<Layer>,
    /// Ranges of values that may be stored.
    pub ranges: HashMap<Value, (f32, f32)>,
    /// Values that are stored in two parts: the range of what lies outside their own.
    pub outside: HashMap<Value, (f32, f32)>,
    /// The least and the largest that was seen of each value, where there was data.
    pub seen: HashMap<Value, (f32, f32)>,
    pub(super) channels: HashMap<Value, Channels>,
    pub(super) rounded: HashMap<Node, Vec<Stored>>,
    /// Layers that cannot be, and why.
    pub kept: Vec<(String, String)>,
    /// Was anything moved into weights, or put in two parts?
    pub smoothed: bool,
    /// What was done.
    pub notes: Vec<String>,
}

impl Calibration {
    /// Can the input of this layer be stored in two bytes? Not where it is in two parts already, or nothing is known but ranges.
    pub fn can_be_fine(&self, l: &Layer, settings: &Settings) -> bool {
        settings.sums(l) && !settings.symmetric && self.seen.contains_key(&l.x) && !self.outside.contains_key(&l.x)
    }
}

/// Can this layer be taken on integers?
fn integral(g: &Graph, l: &Layer) -> Result<(), String> {
    match (&g.node(l.node).op, l.kind) {
        (_, Kind::Table | Kind::Recurrent | Kind::ConvTranspose) => Ok(()),
        (Op::Gemm(op), _) if op.transA != 0 || op.alpha != 1.0 || op.beta != 1.0 => {
            Err("Gemm with transA, alpha or beta has no form on integers".to_owned())
        }
        (_, Kind::MatMul) if g.ty(l.x).as_tensor().is_none_or(|t| t.rank() < 2) => {
            Err("a product with a vector has no form on integers".to_owned())
        }
        _ => Ok(()),
    }
}

/// Are the sums of this layer taken on integers (or are only its weights stored as such)?
pub fn summed(l: &Layer) -> bool {
    matches!(l.kind, Kind::Conv | Kind::MatMul | Kind::Gemm)
}

/// The values whose ranges matter: inputs of layers, and what they are moved from.
pub fn taps(g: &Graph, settings: &Settings) -> Vec<Tap> {
    let wanted: Vec<Layer> =
        layers(g).into_iter().filter(|l| settings.sums(l) && settings.wants(l) && integral(g, l).is_ok()).collect();
    let axis: BTreeMap<Value, usize> = wanted.iter().map(|l| (l.x, l.sum_axis.expect("sums have an axis"))).collect();
    let inputs: BTreeSet<Value> = wanted.iter().map(|l| l.x).collect();
    qdq::sources(g, &inputs)
        .into_iter()
        // Values that are only moved have no channels that matter.
        .map(|v| Tap { value: v, axis: axis.get(&v).copied() })
        .filter(|t| g.ty(t.value).as_tensor().is_some_and(|ty| ty.rank() > 0))
        .collect()
}

/// Looks at the model and the data.
pub fn calibrate(
    g: &Graph,
    settings: &Settings,
    knowledge: &Knowledge,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Calibration, Problems> {
    let mut graph = super::for_integers(g)?;
    let mut notes = vec![];
    let all =
        |g: &Graph| -> Vec<Layer> { layers(g).into_iter().filter(|l| settings.wants(l) && integral(g, l).is_ok()).collect() };
    let kept = layers(g)
        .iter()
        .filter_map(|l| match integral(g, l) {
            _ if !settings.wants(l) => Some((l.name.clone(), "is not asked for".to_owned())),
            Ok(()) => None,
            Err(why) => Some((l.name.clone(), why)),
        })
        .collect();
    let (mut ranges, mut outside, mut channels) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut seen = HashMap::new();
    let mut smoothed = false;
    match knowledge {
        Knowledge::Nothing => {
            let help = "--data DIR|FILE.npz, or --ranges FILE.json from `infc calibrate`; or a scheme without: --scheme dynamic";
            return Err(Problems::one("static quantisation", "needs to know the ranges of activations", help));
        }
        Knowledge::Ranges(file) => {
            for tap in taps(&graph, settings) {
                let found = file.get(&graph, tap.value).ok_or_else(|| {
                    let at = format!("value '{}'", graph.value(tap.value).name);
                    Problems::one(at, "has no range in the file", "calibrate the model again with this version")
                })?;
                ranges.insert(tap.value, (found.low, found.high));
                channels.insert(tap.value, found.channels.clone());
            }
            notes.push("ranges from a file: no smoothing and no reconstruction, which need the data".to_owned());
        }
        Knowledge::Data(data, executor) => {
            let (mut clip, mut split) = (HashMap::new(), HashMap::new());
            if settings.smooth {
                let (of, rows) = look(&graph, settings, data, *executor, &mut |i| progress("statistics", i, data.len()))?;
                let wanted: Vec<Layer> = all(&graph).into_iter().filter(|l| settings.sums(l)).collect();
                let choice = smooth::Choice {
                    split: settings.split && !settings.symmetric && settings.method == Method::Mse,
                    reconstruct: settings.rounding != Some(Rounding::Nearest),
                };
                let done = smooth::run(&mut graph, &wanted, &of, &rows, choice)?;
                notes.push(format!(
                    "smoothing: factors for the inputs of {} layers went into the layers before, {} got a multiplication",
                    done.folded, done.explicit
                ));
                smoothed = done.folded + done.explicit + done.split.len() > 0;
                (clip, split) = (done.clip, done.split);
                let names: Vec<String> =
                    wanted.iter().filter(|l| split.contains_key(&input(&graph, l))).map(|l| format!("'{}'", l.name)).collect();
                if !names.is_empty() {
                    notes.push(format!(
                        "few values far larger than all others: the inputs of {} are stored in two parts",
                        names.join(", ")
                    ));
                }
            }
            let taps = taps(&graph, settings);
            let stats = calibrate::collect(&graph, &taps, data, *executor, &mut |i| progress("ranges", i, data.len()))?;
            for (t, s) in taps.iter().zip(&stats) {
                let range = match clip.get(&t.value).filter(|_| settings.method == Method::Mse && t.axis.is_some()) {
                    Some(share) => {
                        let all = s.range_by(Method::MinMax, settings.symmetric);
                        (all.0 * share, all.1 * share)
                    }
                    None => s.range_by(settings.method, settings.symmetric),
                };
                let range = match split.get(&t.value) {
                    Some(&share) => {
                        let (inside, rest) = smooth::halves(s.range_by(Method::MinMax, false), share);
                        outside.insert(t.value, rest);
                        inside
                    }
                    None => range,
                };
                ranges.insert(t.value, range);
                seen.insert(t.value, s.range_by(Method::MinMax, false));
                channels.insert(t.value, s.channels());
            }
        }
    }
    let layers = all(&graph);
    let grams = match (settings.rounding, knowledge) {
        (None | Some(Rounding::Reconstruct), Knowledge::Data(data, executor)) => {
            grams(&graph, &layers, data, *executor, &mut |i| progress("reconstruction", i, data.len()))?
        }
        _ => HashMap::new(),
    };
    let mut rounded = HashMap::new();
    for (i, l) in layers.iter().enumerate() {
        rounded.insert(l.node, round(&graph, l, &ranges, settings, grams.get(&l.node).map(Vec::as_slice)));
        progress("rounding", i + 1, layers.len());
    }
    Ok(Calibration { graph, layers, ranges, outside, seen, channels, rounded, kept, smoothed, notes })
}

/// What a layer reads now: smoothing may have put nodes before it.
fn input(g: &Graph, l: &Layer) -> Value {
    g.node(l.node).operand(0).unwrap_or(l.x)
}

/// Statistics of the inputs of layers, and rows of those of matrix products.
fn look(
    g: &Graph,
    settings: &Settings,
    data: &crate::Data,
    executor: &dyn crate::Executor,
    progress: &mut dyn FnMut(usize),
) -> Result<(HashMap<Value, Channels>, HashMap<Value, Rows>), Problems> {
    let taps = taps(g, settings);
    let mut stats: Vec<Stats> = taps.iter().map(|_| Stats::default()).collect();
    let mut rows: HashMap<Value, Rows> = HashMap::new();
    calibrate::observe(g, &taps, data, executor, progress, &mut |k, dims, x| {
        if taps[k].axis == Some(dims.len() - 1) {
            rows.entry(taps[k].value).or_default().add(dims, x);
        }
        calibrate::add(g, &taps[k], &mut stats[k], dims, x)
    })?;
    Ok((taps.iter().zip(&stats).map(|(t, s)| (t.value, s.channels())).collect(), rows))
}

/// Gram matrices of the inputs of all layers that are not too large for it.
pub fn grams(
    g: &Graph,
    layers: &[Layer],
    data: &crate::Data,
    executor: &dyn crate::Executor,
    progress: &mut dyn FnMut(usize),
) -> Result<HashMap<Node, Vec<Gram>>, Problems> {
    let good: Vec<&Layer> = layers.iter().filter(|l| summed(l) && l.grid(g, l.weights[0]).depth() <= DEPTH).collect();
    let taps: Vec<Tap> = good.iter().map(|l| Tap { value: l.x, axis: None }).collect();
    let mut grams: Vec<Vec<Gram>> = good.iter().map(|l| vec![Gram::new(l.grid(g, l.weights[0]).depth()); l.group]).collect();
    calibrate::observe(g, &taps, data, executor, progress, &mut |k, dims, x| {
        reconstruct::add_rows(g, good[k], &mut grams[k], dims, x, ROWS);
        Ok(())
    })?;
    Ok(good.iter().map(|l| l.node).zip(grams).filter(|(_, g)| g[0].rows > 0).collect())
}

fn round(g: &Graph, l: &Layer, ranges: &HashMap<Value, (f32, f32)>, settings: &Settings, grams: Option<&[Gram]>) -> Vec<Stored> {
    let one = |&(slot, axis): &(usize, usize)| {
        let (w, grid) = (l.weight(g, slot).to_vec::<f32>(), l.grid(g, (slot, axis)));
        let bias = bias_of(g, l);
        let step = ranges.get(&l.x).map(|r| Affine::of(r.0, r.1, settings.symmetric).scale);
        // The bias is stored in units of both scales and must leave room for the sum in 32 bits.
        let least = |c: usize| match (&bias, step) {
            (Some((_, b)), Some(s)) if !b.is_empty() => b[c % b.len()].abs() / s / (1u32 << 29) as f32,
            _ => 0.0,
        };
        weights::round(&w, grid, weights::group(l.kind), (127, false), &least, grams)
    };
    l.weights.iter().map(one).collect()
}

/// The constant bias of a layer, and the node and operand that it is.
pub fn bias_of(g: &Graph, l: &Layer) -> Option<((Node, usize), Vec<f32>)> {
    let constant = |n: Node, slot: usize| {
        let t = g.node(n).operand(slot).and_then(|v| g.constant(v)).filter(|t| t.dtype == DType::F32)?;
        Some(((n, slot), t.to_vec::<f32>()))
    };
    match l.kind {
        Kind::Conv | Kind::Gemm => constant(l.node, 2),
        Kind::MatMul => {
            let y = g.node(l.node).outputs[0];
            let users: Vec<Node> =
                g.region(Graph::MAIN).nodes.iter().copied().filter(|&n| g.node(n).inputs.contains(&Some(y))).collect();
            let [n] = users[..] else { return None };
            let width = l.grid(g, l.weights[0]).channels;
            let fits = matches!(g.node(n).op, Op::Add(_)) && !g.outputs().contains(&y);
            let slot = if g.node(n).operand(0) == Some(y) { 1 } else { 0 };
            constant(n, slot).filter(|(_, b)| fits && b.len() == width)
        }
        Kind::ConvTranspose | Kind::Table | Kind::Recurrent => None,
    }
}

/// The quantised model, for the layers that `settings` wants.
pub fn quantize(c: &Calibration, settings: &Settings) -> Result<Quantised, Problems> {
    build(c, settings, false)
}

/// The quantised model; `only_layers`: movement between layers is left in float.
pub(super) fn build(c: &Calibration, settings: &Settings, only_layers: bool) -> Result<Quantised, Problems> {
    let mut g = c.graph.clone();
    let chosen: Vec<&Layer> = c.layers.iter().filter(|l| settings.wants(l)).collect();
    let summed: Vec<&Layer> = chosen.iter().copied().filter(|l| settings.sums(l)).collect();
    let fine: Vec<&Layer> = summed.iter().copied().filter(|l| settings.fine(l) && c.can_be_fine(l, settings)).collect();
    let apart: BTreeSet<Value> = fine.iter().map(|l| l.x).collect();
    let single: Vec<&Layer> = summed.iter().copied().filter(|l| !fine.iter().any(|f| f.node == l.node)).collect();
    let inputs: BTreeSet<Value> = single.iter().map(|l| l.x).collect();
    let stored = qdq::storage(&g, &inputs, &apart, &c.ranges, settings.symmetric);
    let mut plan = Plan { stored, apart, only_layers, ..Plan::default() };
    split::insert(&mut g, &mut plan, &summed, &c.outside)?;
    two_bytes::insert(&mut g, &mut plan, &fine, &c.seen)?;
    let mut forms = vec![];
    for l in &chosen {
        let stored = &c.rounded[&l.node];
        for (&(slot, axis), s) in l.weights.iter().zip(stored) {
            let w = l.weight(&g, slot).to_vec::<f32>();
            let form = match settings.sums(l) {
                true if plan.first_bytes.contains_key(&l.node) => "int8, input in two bytes",
                true => "int8",
                false => "int8 weights",
            };
            let op = g.node(l.node).op.name().to_owned();
            forms.push(Form { layer: l.name.clone(), op, form: form.to_owned(), weights: (w.clone(), s.real()) });
            plan.weights.insert((l.node, slot), qdq::Weights::of(s, &l.weight(&g, slot).dims, axis));
            if settings.sums(l) {
                biases(&mut g, &mut plan, c, l, s, &w, settings);
            }
        }
    }
    let mut kept = c.kept.clone();
    let left = c.layers.iter().filter(|l| !settings.wants(l));
    kept.extend(left.map(|l| (l.name.clone(), "is kept, as asked for".to_owned())));
    plan.layers.extend(single.iter().map(|l| l.node));
    qdq::insert(&mut g, &plan)?;
    Ok(Quantised { graph: g, forms, kept, reference: c.graph.clone(), notes: c.notes.clone() })
}

/// Corrected biases; those that are operands of the layer itself are stored as integers, in units of both scales.
fn biases(g: &mut Graph, plan: &mut Plan, c: &Calibration, l: &Layer, s: &Stored, w: &[f32], settings: &Settings) {
    let mean = c.channels.get(&l.x).map(|ch| ch.mean.clone()).filter(|_| settings.bias_correction);
    let lost = mean.map(|m| weights::lost_mean(&c.graph, l, w, s, &m));
    let old = bias_of(&c.graph, l);
    let (channels, own) = (s.grid.channels, matches!(l.kind, Kind::Conv | Kind::Gemm));
    if old.is_none() && (lost.is_none() || !own || g.node(l.node).operand(2).is_some()) {
        return;
    }
    let corrected: Vec<f32> = (0..channels)
        .map(|k| {
            let b = old.as_ref().map_or(0.0, |(_, b)| f64::from(b[k % b.len()]));
            (b + lost.as_ref().map_or(0.0, |l| l[k])) as f32
        })
        .collect();
    let (node, slot) = old.map_or((l.node, 2), |o| o.0);
    if !own {
        let dims = g.constant(g.node(node).operand(slot).expect("a bias")).expect("a constant").dims.clone();
        let v = g.add_constant(Tensor::from_vec(dims, corrected), "");
        g.nodes[node.index()].inputs[slot] = Some(v);
        return;
    }
    // A bias of a Gemm may be spread over the rows: only one per channel has a form on integers.
    let rows =
        g.node(node).operand(slot).and_then(|v| g.constant(v)).is_some_and(|t| t.dims.iter().rev().skip(1).any(|&d| d != 1));
    let step = plan.first_bytes.get(&l.node).copied().or(plan.stored.get(&l.x).map(|a| a.scale));
    let Some(step) = step.filter(|_| !rows) else { return };
    let scales: Vec<f32> = (0..channels).map(|k| step * s.scales.of(s.grid.depth(), k, 0)).collect();
    let units = corrected.iter().zip(&scales).map(|(b, s)| {
        let most = (1u32 << 30) as f64;
        (f64::from(*b) / f64::from(*s)).round_ties_even().clamp(-most, most) as i32
    });
    plan.biases.insert(l.node, (Tensor::from_vec([channels], units.collect::<Vec<i32>>()), Tensor::from_vec([channels], scales)));
}

/// Where a value comes from.
pub fn producer(g: &Graph, v: Value) -> Option<Node> {
    match g.value(v).def {
        Def::Output(n, _) => Some(n),
        Def::Param(..) | Def::Constant(_) => None,
    }
}
