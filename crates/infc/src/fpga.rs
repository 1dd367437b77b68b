//! A model as a streaming design in HLS C++: conversion, folding, golden vectors, files.

use crate::compile::Report as Times;
use infc_c::hls::{self, File, Io, Vectors};
use infc_ir::{DType, Graph, Problems, Tensor};
use infc_stream::design::Port;
use infc_stream::fixed::{self, Selection, TensorFormat};
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
    /// Fixed-point formats of a float model; without, models that are not quantised get the default.
    pub selection: Option<Selection>,
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
    /// The formats that were chosen for a float model.
    pub formats: Vec<TensorFormat>,
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
    let (graph, formats) = formats(graph, options, data)?;
    times.stages.push(("formats", start.elapsed()));
    let start = Instant::now();
    let graph = infc_stream::prepare(graph, &options.stream)?;
    times.stages.push(("passes", start.elapsed()));
    let start = Instant::now();
    let mut design = infc_stream::convert(&graph)?;
    design.name = name.to_owned();
    times.stages.push(("convert", start.elapsed()));
    let start = Instant::now();
    let mut folded = infc_stream::fold(&design, &options.machine, &options.goal)?;
    times.stages.push(("fold", start.elapsed()));
    folded.report.notes.extend(chosen(&formats, data.len()));
    let start = Instant::now();
    let vectors = vectors(&folded.design, data, options.vectors)?;
    times.stages.push(("golden", start.elapsed()));
    let start = Instant::now();
    let print = hls::Options { io: options.io, clock_ns: folded.report.clock_ns, machine: &options.machine };
    let mut files = hls::project(&folded.design, &folded.report, &print, &vectors)?;
    if !formats.is_empty() {
        let text = serde_json::to_string_pretty(&formats).expect("plain data") + "\n";
        files.push(File { path: "formats.json".to_owned(), bytes: text.into_bytes() });
    }
    times.stages.push(("code", start.elapsed()));
    times.kernels = folded.design.actors.len();
    times.code_bytes = files.iter().map(|f| f.bytes.len() as u64).sum();
    Ok(Made { files, folded, formats, times })
}

/// A float model gets fixed-point formats, with the error that they make.
fn formats(graph: Graph, options: &Options, data: &[Vec<Tensor>]) -> Result<(Graph, Vec<TensorFormat>), Problems> {
    if options.selection.is_none() && is_quantised(&graph) {
        return Ok((graph, vec![]));
    }
    let mut selection = options.selection.clone().unwrap_or_default();
    selection.dims.clone_from(&options.stream.dims);
    let chosen = fixed::select(graph, &data[..data.len().min(CALIBRATION)], &selection)?;
    Ok((chosen.graph, chosen.formats))
}

/// Samples that formats are chosen by.
pub const CALIBRATION: usize = 128;

/// Has the model operators that say how numbers are stored?
fn is_quantised(graph: &Graph) -> bool {
    let names = ["QuantizeLinear", "DequantizeLinear", "Quant", "BipolarQuant", "Trunc", "MatMulInteger", "ConvInteger"];
    let nodes = &graph.region(Graph::MAIN).nodes;
    nodes.iter().map(|&n| graph.node(n).op.name()).any(|op| names.contains(&op) || op.starts_with("QLinear"))
}

/// What a report says of formats.
fn chosen(formats: &[TensorFormat], samples: usize) -> Option<String> {
    let measured = formats.iter().filter_map(|f| f.sqnr_db.map(|db| (db, f.name.as_str())));
    let worst = measured.min_by(|a, b| a.0.total_cmp(&b.0));
    let samples = samples.min(CALIBRATION);
    (!formats.is_empty()).then(|| match worst {
        Some((db, name)) => {
            format!("fixed-point formats were chosen on {samples} inputs; the least signal to noise is {db:.1} dB, at {name}")
        }
        None => {
            "fixed-point formats were chosen by interval arithmetic alone; their error was not measured: give --data".to_owned()
        }
    })
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
    for k in 0..count {
        let mut frame = vec![];
        for (i, port) in design.inputs.iter().enumerate() {
            frame.push(match data.get(k).filter(|_| k < count) {
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
