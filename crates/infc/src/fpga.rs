//! A model as a streaming design in HLS C++: conversion, folding, golden vectors, files.

use crate::compile::Report as Times;
use infc_c::hls::{self, File, Io, Vectors};
use infc_ir::{DType, Graph, Problems, Tensor};
use infc_stream::design::Port;
use infc_stream::{Design, Folded, Goal, Machine, golden};
use std::time::Instant;

/// How a design is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The part.
    pub machine: Machine,
    /// What it is folded for.
    pub goal: Goal,
    /// Inputs and outputs.
    pub io: Io,
    /// Dims and formats of inputs.
    pub stream: infc_stream::Options,
    /// Frames of golden vectors.
    pub vectors: usize,
}

/// A design in files.
#[derive(Clone, Debug)]
pub struct Made {
    /// The files.
    pub files: Vec<File>,
    /// The design and its report.
    pub folded: Folded,
    /// Numbers about making it.
    pub times: Times,
}

/// Makes a design from an imported model. `name` is that of the top function, `data` are inputs for golden vectors: for each frame a tensor
/// for each input of the model. What is missing is made up.
///
/// # Errors
/// All operators that cannot stream; a design that does not fit, with the nearest folding that does; inputs that do not fit the model.
pub fn make(graph: Graph, options: &Options, name: &str, data: &[Vec<Tensor>]) -> Result<Made, Problems> {
    let mut times = Times { target: format!("fpga-hls ({})", options.machine.name), ..Times::default() };
    let start = Instant::now();
    let graph = infc_stream::prepare(graph, &options.stream)?;
    times.stages.push(("passes", start.elapsed()));
    let start = Instant::now();
    let mut design = infc_stream::convert(&graph)?;
    design.name = name.to_owned();
    times.stages.push(("convert", start.elapsed()));
    let start = Instant::now();
    let folded = infc_stream::fold(&design, &options.machine, &options.goal)?;
    times.stages.push(("fold", start.elapsed()));
    let start = Instant::now();
    let vectors = vectors(&folded.design, data, options.vectors)?;
    times.stages.push(("golden", start.elapsed()));
    let start = Instant::now();
    let print = hls::Options { io: options.io, clock_ns: folded.report.clock_ns, machine: &options.machine };
    let files = hls::project(&folded.design, &folded.report, &print, &vectors)?;
    times.stages.push(("code", start.elapsed()));
    times.kernels = folded.design.actors.len();
    times.code_bytes = files.iter().map(|f| f.bytes.len() as u64).sum();
    Ok(Made { files, folded, times })
}

/// Inputs from data, then random ones, and what the golden model makes of them.
fn vectors(design: &Design, data: &[Vec<Tensor>], count: usize) -> Result<Vectors, Problems> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let mut all = Vectors::default();
    for k in 0..count.max(data.len()) {
        let mut frame = vec![];
        for (i, port) in design.inputs.iter().enumerate() {
            frame.push(match data.get(k) {
                Some(tensors) => given(port, tensors.get(i))?,
                None => (0..design.stream(port.stream).elements()).map(|_| within(port.limits, draw())).collect(),
            });
        }
        all.outputs.push(golden::run(design, &frame));
        all.inputs.push(frame);
    }
    Ok(all)
}

fn within([least, most]: [i64; 2], random: u64) -> i64 {
    let span = (i128::from(most) - i128::from(least) + 1) as u128;
    (i128::from(least) + (u128::from(random) % span) as i128) as i64
}

/// A tensor as a frame. Its batch is 1, or left out.
fn given(port: &Port, tensor: Option<&Tensor>) -> Result<Vec<i64>, Problems> {
    let at = || format!("data of input '{}'", port.name);
    let help = || format!("give {} of {:?} for each frame", port.dtype, port.dims);
    let t = tensor.ok_or_else(|| Problems::one(at(), "is missing", help()))?;
    let elements: usize = port.dims.iter().product();
    if t.len() != elements || t.dtype != port.dtype && !(t.dtype.is_float() && port.dtype == DType::F32) {
        return Err(Problems::one(at(), format!("is {}{:?}", t.dtype, t.dims), help()));
    }
    let shaped = Tensor::from_bytes(t.dtype, port.dims.clone(), t.bytes().to_vec());
    port.frame(&shaped).map_err(|f| Problems::one(at(), f.0, help()))
}
