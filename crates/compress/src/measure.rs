//! What a change did to a model: size, arithmetic, time, answers. Everything in it is measured, not predicted.

use crate::compare::{self, Comparison};
use crate::data::Data;
use crate::executor::{Executor, Runner};
use crate::layers;
use crate::mixed::Sensitivity;
use crate::quantize::{Form, bias_of};
use crate::report::{Cost, Difference, Histogram, Layer, Step};
use infc_ir::{Graph, Problems, Tensor};
use std::collections::HashMap;
use std::time::Duration;

/// How long a model is run to time it.
const BUDGET: Duration = Duration::from_millis(700);
/// Samples that inner values are compared on.
const INNER: usize = 16;

/// Time, size and arithmetic of a model on these inputs. `bytes` is the size of its file; `runner` runs it, where its times mean something.
pub fn cost(g: &Graph, bytes: u64, runner: Option<&mut dyn Runner>, inputs: &[Tensor]) -> Result<Cost, Problems> {
    let mut out = Cost { bytes, ..Cost::default() };
    for (_, macs, integer) in layers::macs(g, inputs) {
        out.macs += macs;
        out.float_macs += if integer { 0 } else { macs };
    }
    if let Some(runner) = runner {
        out.artifact_bytes = runner.bytes();
        out.latency_ms = Some(runner.time(inputs, BUDGET)?.as_secs_f64() * 1e3);
    }
    Ok(out)
}

/// A change of a model, for [`step`].
pub struct Change<'a> {
    /// The model before.
    pub before: &'a Graph,
    /// The model after.
    pub after: &'a Graph,
    /// Sizes of both files.
    pub bytes: (u64, u64),
    /// The model whose inner values those of `after` approximate.
    pub reference: &'a Graph,
    /// What became of its layers.
    pub forms: &'a [Form],
    /// Pool output 0 to embeddings.
    pub pool: bool,
}

/// Measures a change on samples; without any, only sizes are known.
pub fn step(
    change: &Change,
    executor: &dyn Executor,
    data: Option<&Data>,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<(Step, Option<Comparison>), Problems> {
    let first = data.map(|d| d.sample(0)).transpose()?;
    let inputs = first.as_ref().map(|s| &s.inputs[..]);
    let mut step = Step::default();
    (step.before.bytes, step.after.bytes) = change.bytes;
    let mut inner: HashMap<String, Difference> = HashMap::new();
    let mut comparison = None;
    if let (Some(data), Some(inputs)) = (data, inputs) {
        let names: Vec<String> = change.before.outputs().iter().map(|&v| change.before.value(v).name.clone()).collect();
        let (mut a, mut b) = (executor.load(change.before)?, executor.load(change.after)?);
        step.before = cost(change.before, change.bytes.0, timed(&mut a, executor), inputs)?;
        step.after = cost(change.after, change.bytes.1, timed(&mut b, executor), inputs)?;
        let all = data.len();
        let c = compare::run(&mut *a, &mut *b, &names, 0, data, change.pool, &mut |i| progress("evaluation", i, all))?;
        (step.outputs, step.accuracy) = (c.outputs.clone(), c.accuracy);
        if let Some(e) = &c.embeddings {
            step.notes.push(format!(
                "Embeddings (mean-pooled, normalised): cosine {:.5} in the mean, {:.5} at least; the nearest neighbour is the same for {:.1} %.",
                e.cosine,
                e.cosine_min,
                100.0 * e.neighbours
            ));
        }
        comparison = Some(c);
        let (a, b, names, count) = compare::aligned(change.reference, change.after);
        let part = data.sample_of(INNER).into_iter().map(|i| data.sample(i)).collect::<Result<Vec<_>, _>>()?;
        let part = Data::of(change.before, part);
        let (mut a, mut b) = (executor.load(&a)?, executor.load(&b)?);
        let c = compare::run(&mut *a, &mut *b, &names, count, &part, false, &mut |i| progress("layers", i, part.len()))?;
        inner = c.inner.into_iter().chain(c.outputs).map(|d| (d.name.clone(), d)).collect();
    }
    step.layers = layers_of(change, inputs, &inner);
    Ok((step, comparison))
}

/// Puts the sensitivity of layers into a step: those that stay as they were, in float, join the others in the order of the model.
pub fn with_sensitivity(step: &mut Step, reference: &Graph, all: &[Sensitivity]) {
    let mut changed = std::mem::take(&mut step.layers);
    for s in all {
        let sensitivity_db = Some(s.sqnr_db());
        if let Some(at) = changed.iter().position(|l| l.name == s.layer) {
            let layer = changed.remove(at);
            step.layers.push(Layer { sensitivity_db, ..layer });
            continue;
        }
        let node = reference.region(Graph::MAIN).nodes.iter().find(|&&n| layers::name(reference, n) == s.layer);
        step.layers.push(Layer {
            name: s.layer.clone(),
            op: node.map_or(String::new(), |&n| reference.node(n).op.name().to_owned()),
            form: "float".to_owned(),
            macs: (s.macs * step.before.macs as f64).round() as u64,
            sqnr_db: None,
            sensitivity_db,
            weights: None,
        });
    }
    step.layers.extend(changed);
}

fn timed<'a>(runner: &'a mut Box<dyn Runner>, executor: &dyn Executor) -> Option<&'a mut dyn Runner> {
    if executor.measures() { Some(&mut **runner) } else { None }
}

/// The layers with their figures.
fn layers_of(change: &Change, inputs: Option<&[Tensor]>, inner: &HashMap<String, Difference>) -> Vec<Layer> {
    let g = change.reference;
    let macs = inputs.map(|i| layers::macs(g, i)).unwrap_or_default();
    let mut out: Vec<Layer> = vec![];
    for form in change.forms {
        let node = g.region(Graph::MAIN).nodes.iter().copied().find(|&n| layers::name(g, n) == form.layer);
        // With its bias: smoothing moves parts of the sums there.
        let bias = node.and_then(|n| layers::layer(g, n)).and_then(|l| bias_of(g, &l)).map(|b| b.0.0);
        let last = bias.or(node).and_then(|n| g.node(n).outputs.first());
        let result = last.map(|&v| g.value(v).name.clone()).unwrap_or_default();
        let (before, after) = &form.weights;
        let ends = before.iter().fold((0.0f32, 0.0f32), |r, &v| (r.0.min(v), r.1.max(v)));
        let range = (f64::from(ends.0), f64::from(ends.1));
        out.push(Layer {
            name: form.layer.clone(),
            op: form.op.clone(),
            form: form.form.clone(),
            macs: macs.iter().find(|m| Some(m.0) == node).map_or(0, |m| m.1),
            sqnr_db: inner.get(&result).map(|d| d.sqnr_db),
            sensitivity_db: None,
            weights: Some((Histogram::of(before, range, 64), Histogram::of(after, range, 64))),
        });
    }
    out
}
