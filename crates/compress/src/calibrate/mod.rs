//! Calibration: which values the inner tensors of a model take.
//!
//! The values that shall be stored as integers become outputs of the model (taps), it runs on all samples, and [`Stats`] sum up what is
//! seen; nothing else is kept, so that samples may be many and differ in shape. A [`Method`] makes a range of that.

mod ranges;
mod stats;

pub use ranges::{Ranges, fingerprint};
pub use stats::{Channels, Method, Stats};

use crate::data::Data;
use crate::executor::{Executor, tapped};
use infc_ir::graph::{Def, Graph, Value};
use infc_ir::{DType, Problems};
use std::collections::HashMap;

/// A value to look at, and the axis of its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The value: of dtype f32, an input or computed by a node of the main region.
    pub value: Value,
    /// Axis of the channels of which statistics are kept apart; `None` if there is nothing to keep apart.
    pub axis: Option<usize>,
}

/// Runs the model on all samples; `progress` is told after each. `see` gets every tapped tensor, with the number of its tap.
pub fn observe(
    g: &Graph,
    taps: &[Tap],
    data: &Data,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(usize),
    see: &mut dyn FnMut(usize, &[usize], &[f32]) -> Result<(), Problems>,
) -> Result<(), Problems> {
    let computed: Vec<Value> = taps.iter().map(|t| t.value).filter(|&v| matches!(g.value(v).def, Def::Output(..))).collect();
    let (graph, at) = tapped(g, &computed);
    let place: HashMap<Value, usize> = computed.into_iter().zip(at).collect();
    let mut runner = executor.load(&graph)?;
    for i in 0..data.len() {
        let sample = data.sample(i)?;
        let outputs = runner.run(&sample.inputs)?;
        for (k, tap) in taps.iter().enumerate() {
            let tensor = match (place.get(&tap.value), &g.value(tap.value).def) {
                (Some(&at), _) => &outputs[at],
                (None, Def::Param(_, number)) => &sample.inputs[*number as usize],
                (None, _) => continue,
            };
            if tensor.dtype == DType::F32 {
                see(k, &tensor.dims, &tensor.to_vec::<f32>())?;
            }
        }
        progress(i + 1);
    }
    Ok(())
}

/// Statistics of each tap over all samples.
pub fn collect(
    g: &Graph,
    taps: &[Tap],
    data: &Data,
    executor: &dyn Executor,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Stats>, Problems> {
    let mut stats: Vec<Stats> = taps.iter().map(|_| Stats::default()).collect();
    observe(g, taps, data, executor, progress, &mut |k, dims, values| add(g, &taps[k], &mut stats[k], dims, values))?;
    Ok(stats)
}

/// Adds a tensor to the statistics of a tap.
pub fn add(g: &Graph, tap: &Tap, stats: &mut Stats, dims: &[usize], values: &[f32]) -> Result<(), Problems> {
    stats.add(dims, tap.axis, values).map_err(|m| {
        let help = "look for divisions by zero or overflow in the model, or for samples out of the range that it was trained on";
        Problems::one(format!("value '{}'", g.value(tap.value).name), m, help)
    })
}
