//! Biases of the layers nearest to the outputs, so that the means of their results are those of the model in float.
//!
//! What rounding the weights adds to a mean is taken off each bias before; what activations lose at the ends of their ranges, and what all that
//! becomes behind a Relu, is not known before the quantised model runs. A shift there is the same for all positions: behind a Sigmoid of
//! very negative numbers it is most of what is lost.

use super::{Settings, statics};
use crate::calibrate::{self, Tap};
use crate::data::Data;
use crate::executor::Executor;
use crate::layers::{Kind, Layer};
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::{DType, Op, Problems, Tensor};
use std::collections::BTreeSet;

/// The mean of each channel of some values over all samples.
#[derive(Clone, Debug)]
pub struct Means(Vec<Vec<f64>>);

/// A result whose mean can be moved: of which layer, the value, its channels' axis, and the node and operand that are the bias.
#[derive(Clone, Copy, Debug, PartialEq)]
struct End {
    y: Value,
    axis: usize,
    at: (Node, usize),
}

/// Results of layers with a bias that reach an output and pass no other layer on the way.
fn ends(g: &Graph, layers: &[Layer]) -> Vec<End> {
    let of = |n: Node| layers.iter().find(|l| l.node == n);
    let mut out = vec![];
    let mut seen: BTreeSet<Value> = g.outputs().iter().copied().collect();
    let mut queue: Vec<Value> = seen.iter().copied().collect();
    let owners: Vec<(Node, &Layer, usize)> =
        layers.iter().filter_map(|l| statics::bias_of(g, l).map(|((n, slot), _)| (n, l, slot))).collect();
    while let Some(v) = queue.pop() {
        let Def::Output(n, _) = g.value(v).def else { continue };
        let rank = g.ty(v).as_tensor().map_or(0, |t| t.rank());
        let owner = owners.iter().find(|o| o.0 == n);
        if let Some((_, l, slot)) = owner.filter(|_| rank > 1) {
            let axis = if l.kind == Kind::Conv { 1 } else { rank - 1 };
            out.push(End { y: v, axis, at: (n, *slot) });
        }
        if owner.is_none() && of(n).is_none() {
            queue.extend(g.node(n).inputs.iter().flatten().filter(|&&u| seen.insert(u)));
        }
    }
    out.sort_by_key(|e| e.y);
    out
}

/// The means of these results.
fn means(g: &Graph, ends: &[End], data: &Data, executor: &dyn Executor) -> Result<Means, Problems> {
    let taps: Vec<Tap> = ends.iter().map(|e| Tap { value: e.y, axis: None }).collect();
    let mut sums: Vec<(Vec<f64>, u64)> = vec![(vec![], 0); ends.len()];
    calibrate::observe(g, &taps, data, executor, &mut |_| {}, &mut |k, dims, x| {
        let (channels, inner) = (dims[ends[k].axis], dims[ends[k].axis + 1..].iter().product::<usize>().max(1));
        let (sum, rows) = &mut sums[k];
        sum.resize(channels, 0.0);
        x.chunks_exact(inner).enumerate().for_each(|(i, run)| {
            sum[i % channels] += run.iter().map(|&v| f64::from(v)).sum::<f64>();
        });
        *rows += (x.len() / channels.max(1)) as u64;
        Ok(())
    })?;
    Ok(Means(sums.into_iter().map(|(s, rows)| s.into_iter().map(|v| v / rows.max(1) as f64).collect()).collect()))
}

/// The means in the model in float; `None` if there is nothing that could be moved.
pub fn wanted(
    c: &statics::Calibration,
    settings: &Settings,
    data: &Data,
    executor: &dyn Executor,
) -> Result<Option<Means>, Problems> {
    let ends = ends(&c.graph, &c.layers);
    if !settings.bias_correction || ends.is_empty() {
        return Ok(None);
    }
    means(&c.graph, &ends, data, executor).map(Some)
}

/// Moves the biases in a quantised model by what the means differ from those wanted.
pub fn settle(
    g: &mut Graph,
    c: &statics::Calibration,
    wanted: &Means,
    data: &Data,
    executor: &dyn Executor,
) -> Result<(), Problems> {
    let ends = ends(&c.graph, &c.layers);
    let got = means(g, &ends, data, executor)?;
    for ((end, want), got) in ends.iter().zip(&wanted.0).zip(&got.0) {
        let shift: Vec<f64> = want.iter().zip(got).map(|(w, g)| w - g).collect();
        if shift.iter().all(|s| s.is_finite()) {
            move_bias(g, end.at, &shift);
        }
    }
    Ok(())
}

/// Adds to the bias of a node, which is a constant, or one that is dequantised.
fn move_bias(g: &mut Graph, (n, slot): (Node, usize), shift: &[f64]) {
    let Some(v) = g.node(n).operand(slot) else { return };
    if let Some(t) = g.constant(v).filter(|t| t.dtype == DType::F32 && t.len() == shift.len()) {
        let moved: Vec<f32> = t.to_vec::<f32>().iter().enumerate().map(|(k, b)| (f64::from(*b) + shift[k]) as f32).collect();
        let (moved, name) = (Tensor::from_vec(t.dims.clone(), moved), g.value(v).name.clone());
        let new = g.add_constant(moved, name);
        g.nodes[n.index()].inputs[slot] = Some(new);
        return;
    }
    let Def::Output(d, _) = g.value(v).def else { return };
    let (units, scales) = match (&g.node(d).op, g.node(d).operand(0), g.node(d).operand(1)) {
        (Op::DequantizeLinear(_), Some(u), Some(s)) => (u, s),
        _ => return,
    };
    let (Some(u), Some(s)) = (g.constant(units), g.constant(scales)) else { return };
    if u.dtype != DType::I32 || u.len() != shift.len() || s.len() != u.len() {
        return;
    }
    let most = (1u32 << 30) as f64;
    let scales = s.to_vec::<f32>();
    let moved: Vec<i32> = (u.to_ints().iter().zip(&scales).enumerate())
        .map(|(k, (&b, &s))| (b as f64 + shift[k] / f64::from(s)).round_ties_even().clamp(-most, most) as i32)
        .collect();
    let (moved, name) = (Tensor::from_vec(u.dims.clone(), moved), g.value(units).name.clone());
    let new = g.add_constant(moved, name);
    g.nodes[d.index()].inputs[0] = Some(new);
}
