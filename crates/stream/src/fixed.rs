//! Fixed-point formats for a float model, chosen by range analysis and calibration, with the error that they make.
//!
//! The range of each tensor is what calibration shows, cut by what interval arithmetic through the graph proves (and that alone where there is
//! no calibration). Weights get one scale a channel, every other tensor one scale and no zero point: with powers of two
//! a plain fixed-point number of so many integer and fraction bits. Of the scales from "nothing saturates" to three steps finer the one with the
//! least squared error on the calibration values is taken. The result is the model with QuantizeLinear and DequantizeLinear, as a quantiser
//! would have written it, for [`crate::prepare`].

use infc_ir::graph::{Def, Graph, Node};
use infc_ir::interp::{Item, run_with};
use infc_ir::op::{Builder, Clip, DequantizeLinear, QuantizeLinear};
use infc_ir::{DType, Fault, Op, Problem, Problems, Tensor, Value, fault};
use serde::Serialize;
use std::collections::HashMap;

/// What is chosen for.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Bits of weights, 2 to 8.
    pub weight_bits: u32,
    /// Bits of every other tensor, 2 to 8.
    pub bits: u32,
    /// Scales are powers of two.
    pub power_of_two: bool,
    /// Sizes of symbolic dims besides the batch.
    pub dims: Vec<(String, i64)>,
    /// Least and greatest element of inputs, where no calibration tells.
    pub ranges: Vec<(String, [f64; 2])>,
}

impl Default for Selection {
    fn default() -> Selection {
        Selection { weight_bits: 8, bits: 8, power_of_two: true, dims: vec![], ranges: vec![] }
    }
}

/// The format of a tensor, and the error at it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorFormat {
    /// The node that makes it, or the input.
    pub name: String,
    /// Two's complement.
    pub signed: bool,
    /// Width.
    pub bits: u32,
    /// Bits before the point, without the sign; negative if the first bits behind it are not needed. Of a scale that is no power of two: of
    /// the next larger one.
    pub integer_bits: i32,
    /// Bits behind the point.
    pub fraction_bits: i32,
    /// What one step is.
    pub scale: f32,
    /// What interval arithmetic says.
    pub interval: [f64; 2],
    /// What calibration shows.
    pub seen: Option<[f64; 2]>,
    /// Signal to quantisation noise of the quantised model against the float model at this tensor, in dB, over the calibration data.
    pub sqnr_db: Option<f64>,
}

/// A float model with formats.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// With QuantizeLinear and DequantizeLinear.
    pub graph: Graph,
    /// In order of computation.
    pub formats: Vec<TensorFormat>,
}

/// Values that are kept of a tensor, to choose its scale.
const SAMPLES: usize = 1 << 14;

/// Chooses formats. `calibration`: inputs of some runs, each with a batch of 1.
pub fn select(mut graph: Graph, calibration: &[Vec<Tensor>], s: &Selection) -> Result<Chosen, Problems> {
    for (what, bits) in [("weights", s.weight_bits), ("tensors", s.bits)] {
        if !(2..=8).contains(&bits) {
            return Err(Problems::one(format!("bits of {what}"), format!("{bits} is not supported"), "2 to 8 bits are"));
        }
    }
    let mut bind = s.dims.clone();
    bind.extend(crate::prepare::batch(&graph).map(|b| (b, 1)));
    let names = ["shape", "fold", "cse", "dce", "canon", "fold", "recognise", "batchnorm", "fold", "dce"];
    let pipeline = names.map(str::to_owned).to_vec();
    infc_passes::run(&mut graph, &infc_passes::Options { pipeline, bind, ..infc_passes::Options::default() })?;
    let points = points(&graph);
    let seen = observe(&graph, &points, calibration)?;
    let intervals = intervals(&graph, s, &seen);
    let mut formats = vec![];
    let mut scales = HashMap::new();
    let mut problems = vec![];
    for &v in &points {
        match format(&graph, v, s, intervals[v.index()], seen.get(&v)) {
            Ok(f) => {
                scales.insert(v, (f.signed, f.scale));
                formats.push(f);
            }
            Err(f) => problems.push(Problem {
                at: title(&graph, v),
                message: f.0,
                help: "give calibration data, or the ranges of the inputs".into(),
            }),
        }
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let float = graph.clone();
    let made = insert(&mut graph, &points, &scales, s).map_err(|f| Problems::one("fixed-point selection", f.0, ""))?;
    for (f, error) in formats.iter_mut().zip(errors(&float, &graph, &points, &made, calibration)?) {
        f.sqnr_db = error;
    }
    Ok(Chosen { graph, formats })
}

/// A value in the model's words.
fn title(g: &Graph, v: Value) -> String {
    match g.value(v).def {
        Def::Output(n, _) => g.describe(n),
        Def::Param(..) | Def::Constant(_) => format!("input '{}'", g.value(v).name),
    }
}

/// Takes the format of its operand.
fn inherits(op: &Op) -> bool {
    match op {
        Op::Reshape(_)
        | Op::Flatten(_)
        | Op::Squeeze(_)
        | Op::Unsqueeze(_)
        | Op::Transpose(_)
        | Op::Identity(_)
        | Op::Slice(_) => true,
        Op::DepthToSpace(_) | Op::SpaceToDepth(_) | Op::MaxPool(_) | Op::Split(_) => true,
        Op::Resize(op) => op.mode == "nearest",
        _ => false,
    }
}

/// Tensors that get a format: inputs, and what each operator makes, behind its activation.
fn points(g: &Graph) -> Vec<Value> {
    let uses = g.use_counts();
    let real = |v: &Value| g.ty(*v).dtype() == Some(DType::F32);
    let nodes = &g.region(Graph::MAIN).nodes;
    let mut out: Vec<Value> = g.inputs().iter().copied().filter(real).collect();
    for &n in nodes {
        let data = g.node(n);
        for &v in data.outputs.iter().filter(|v| real(v) && uses[v.index()] > 0) {
            let limited = uses[v.index()] == 1
                && nodes.iter().any(|&m| g.node(m).operand(0) == Some(v) && matches!(g.node(m).op, Op::Relu(_) | Op::Clip(_)));
            if !limited && !inherits(&data.op) {
                out.push(v);
            }
        }
    }
    out
}

/// What calibration shows of a tensor.
struct Seen {
    range: [f64; 2],
    samples: Vec<f32>,
}

fn observe(g: &Graph, points: &[Value], calibration: &[Vec<Tensor>]) -> Result<HashMap<Value, Seen>, Problems> {
    let mut out: HashMap<Value, Seen> = HashMap::new();
    let share = (SAMPLES / calibration.len().max(1)).max(16);
    let mut take = |v: Value, t: &Tensor| {
        let values = t.to_vec::<f32>();
        let seen = out.entry(v).or_insert(Seen { range: [0.0, 0.0], samples: vec![] });
        for &x in &values {
            seen.range = [seen.range[0].min(x.into()), seen.range[1].max(x.into())];
        }
        let step = values.len().div_ceil(share).max(1);
        seen.samples.extend(values.iter().step_by(step));
    };
    for inputs in calibration {
        let items: Vec<Item> = inputs.iter().cloned().map(Item::Tensor).collect();
        for (&v, t) in g.inputs().iter().zip(inputs).filter(|(v, _)| points.contains(v)) {
            take(v, t);
        }
        run_with(g, &items, &mut |n, results| {
            for (&v, item) in g.node(n).outputs.iter().zip(results) {
                if let (true, Some(t)) = (points.contains(&v), item.as_tensor()) {
                    take(v, t);
                }
            }
        })?;
    }
    Ok(out)
}

const ALL: [f64; 2] = [f64::NEG_INFINITY, f64::INFINITY];

/// For each value, an interval that its elements cannot leave when the inputs stay in theirs.
fn intervals(g: &Graph, s: &Selection, seen: &HashMap<Value, Seen>) -> Vec<[f64; 2]> {
    let mut out = vec![ALL; g.values.len()];
    for &v in g.inputs() {
        let given = s.ranges.iter().find(|(n, _)| *n == g.value(v).name).map(|r| r.1);
        out[v.index()] = given.or(seen.get(&v).map(|s| s.range)).unwrap_or(ALL);
    }
    for (i, v) in g.values.iter().enumerate() {
        if let Def::Constant(t) = &v.def
            && t.dtype.is_float()
        {
            let values = (0..t.len()).map(|k| t.float(k));
            out[i] = values.fold([f64::INFINITY, f64::NEG_INFINITY], |r, x| [r[0].min(x), r[1].max(x)]);
        }
    }
    for &n in &g.region(Graph::MAIN).nodes {
        let r = interval(g, n, &out);
        for v in &g.node(n).outputs {
            out[v.index()] = r;
        }
    }
    out
}

fn interval(g: &Graph, n: Node, known: &[[f64; 2]]) -> [f64; 2] {
    let data = g.node(n);
    let of = |i: usize| data.operand(i).map_or(ALL, |v| known[v.index()]);
    let limit = |i: usize, none: f64| match data.operand(i) {
        None => none,
        Some(v) => g.constant(v).map_or(f64::NAN, |t| t.float(0)),
    };
    let x = of(0);
    let r = match &data.op {
        Op::Conv(op) => sums(g, n, x, 0, !op.pads.iter().all(|&p| p == 0) || op.auto_pad != "NOTSET"),
        Op::Gemm(op) if op.alpha == 1.0 && op.beta == 1.0 && op.transA == 0 => {
            sums(g, n, x, if op.transB != 0 { 0 } else { 1 }, false)
        }
        Op::MatMul(_) => sums(g, n, x, 1, false),
        Op::Relu(_) => x.map(|v| v.max(0.0)),
        Op::Clip(_) => {
            let (lo, hi) = (limit(1, f64::NEG_INFINITY), limit(2, f64::INFINITY));
            if lo.is_nan() || hi.is_nan() { ALL } else { x.map(|v| v.max(lo).min(hi)) }
        }
        Op::Add(_) => [x[0] + of(1)[0], x[1] + of(1)[1]],
        Op::Sub(_) => [x[0] - of(1)[1], x[1] - of(1)[0]],
        Op::Mul(_) => {
            let all = [0, 1].map(|i| [0, 1].map(|j| x[i] * of(1)[j])).concat();
            [all.iter().copied().fold(f64::INFINITY, f64::min), all.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
        }
        Op::Sigmoid(_) | Op::Softmax(_) | Op::HardSigmoid(_) => [0.0, 1.0],
        Op::Tanh(_) => [-1.0, 1.0],
        Op::AveragePool(_) => [x[0].min(0.0), x[1].max(0.0)],
        Op::GlobalAveragePool(_) | Op::GlobalMaxPool(_) | Op::ReduceMean(_) | Op::ReduceMax(_) => x,
        Op::Concat(_) => {
            (0..data.inputs.len()).map(of).fold([f64::INFINITY, f64::NEG_INFINITY], |r, x| [r[0].min(x[0]), r[1].max(x[1])])
        }
        op if inherits(op) => x,
        _ => ALL,
    };
    if r.iter().any(|v| v.is_nan()) { ALL } else { r }
}

/// The interval of `w x + b` with constant `w`, whose channels are axis `axis`.
fn sums(g: &Graph, n: Node, [lo, hi]: [f64; 2], axis: usize, padded: bool) -> [f64; 2] {
    let data = g.node(n);
    let Some(w) = data.operand(1).and_then(|v| g.constant(v)).filter(|w| w.dims.len() >= 2) else { return ALL };
    let bias = match data.operand(2) {
        None => None,
        Some(v) => match g.constant(v) {
            Some(b) => Some(b),
            None => return ALL,
        },
    };
    let (lo, hi) = if padded { (lo.min(0.0), hi.max(0.0)) } else { (lo, hi) };
    if !lo.is_finite() || !hi.is_finite() {
        return ALL;
    }
    let (channels, inner) = (w.dims[axis], w.dims[axis + 1..].iter().product::<usize>());
    let mut out = vec![[0.0; 2]; channels];
    for i in 0..w.len() {
        let (k, r) = (w.float(i), &mut out[i / inner % channels]);
        *r = [r[0] + (k * lo).min(k * hi), r[1] + (k * lo).max(k * hi)];
    }
    let shift = |c: usize| bias.map_or(0.0, |b| b.float(c % b.len()));
    out.iter()
        .enumerate()
        .fold([f64::INFINITY, f64::NEG_INFINITY], |all, (c, r)| [all[0].min(r[0] + shift(c)), all[1].max(r[1] + shift(c))])
}

/// The scale of a tensor in this range: nothing saturates.
fn safe_scale([lo, hi]: [f64; 2], signed: bool, bits: u32, power_of_two: bool) -> f64 {
    let (least, most) = if signed {
        (f64::from(1u32 << (bits - 1)), f64::from((1u32 << (bits - 1)) - 1))
    } else {
        (1.0, f64::from((1u32 << bits) - 1))
    };
    let scale = (hi / most).max(if signed { -lo / least } else { 0.0 });
    let scale = if scale > 0.0 { scale } else { 1.0 / most };
    if power_of_two { scale.log2().ceil().exp2() } else { scale }
}

fn format(g: &Graph, v: Value, s: &Selection, interval: [f64; 2], seen: Option<&Seen>) -> Result<TensorFormat, Fault> {
    let range = match seen {
        Some(seen) => [seen.range[0].max(interval[0]), seen.range[1].min(interval[1])],
        None => [interval[0].min(0.0), interval[1].max(0.0)],
    };
    if range.iter().any(|r| !r.is_finite()) {
        return Err(fault!("its range is not bounded ({} to {}), so it has no fixed-point format", range[0], range[1]));
    }
    let signed = range[0] < 0.0;
    let safe = safe_scale(range, signed, s.bits, s.power_of_two);
    let (least, most) = if signed { (-(1i64 << (s.bits - 1)), (1i64 << (s.bits - 1)) - 1) } else { (0, (1i64 << s.bits) - 1) };
    let noise = |scale: f64| -> f64 {
        let stored = |x: f32| (f64::from(x) / scale).round_ties_even().clamp(least as f64, most as f64) * scale;
        seen.map_or(0.0, |seen| seen.samples.iter().map(|&x| (stored(x) - f64::from(x)).powi(2)).sum())
    };
    // Finer steps with some saturation, if that is less error.
    let finer = if s.power_of_two { [1.0, 0.5, 0.25, 0.125] } else { [1.0, 0.9, 0.8, 0.7] };
    let scale = finer.map(|f| safe * f).into_iter().min_by(|&a, &b| noise(a).total_cmp(&noise(b))).unwrap_or(safe);
    let fraction_bits = -(scale.log2().ceil() as i32);
    Ok(TensorFormat {
        name: title(g, v),
        signed,
        bits: s.bits,
        integer_bits: s.bits as i32 - i32::from(signed) - fraction_bits,
        fraction_bits,
        scale: scale as f32,
        interval,
        seen: seen.map(|s| s.range),
        sqnr_db: None,
    })
}

/// Puts quantisers behind the points and before weights. For each point, the value that stands for it now.
fn insert(g: &mut Graph, points: &[Value], scales: &HashMap<Value, (bool, f32)>, s: &Selection) -> Result<Vec<Value>, Fault> {
    let nodes = g.region(Graph::MAIN).nodes.clone();
    let mut with: HashMap<Value, Value> = HashMap::new();
    let mut order = vec![];
    let mut at_inputs = points.iter().filter(|v| g.inputs().contains(v)).copied().collect::<Vec<_>>();
    let mut made = vec![];
    let first = nodes.first().map(|&n| g.node(n).origin.clone()).unwrap_or_default();
    for v in at_inputs.drain(..) {
        let new = quantised(g, v, scales[&v], s, first.clone(), &mut order)?;
        with.insert(v, new);
        made.push(new);
    }
    for n in nodes {
        let inputs = g.node(n).inputs.iter().map(|v| v.map(|v| with.get(&v).copied().unwrap_or(v))).collect();
        g.nodes[n.index()].inputs = inputs;
        weights(g, n, s, &mut order)?;
        order.push(n);
        for v in g.node(n).outputs.clone() {
            if let (true, Some(&f)) = (points.contains(&v), scales.get(&v)) {
                let origin = g.node(n).origin.clone();
                let new = quantised(g, v, f, s, origin, &mut order)?;
                with.insert(v, new);
                made.push(new);
            }
        }
    }
    let region = &mut g.regions[Graph::MAIN.index()];
    region.nodes = order;
    let results = region.results.clone();
    for (i, old) in results.into_iter().enumerate() {
        if let Some(&new) = with.get(&old) {
            g.values[new.index()].name = std::mem::take(&mut g.values[old.index()].name);
            g.regions[Graph::MAIN.index()].results[i] = new;
        }
    }
    Ok(made)
}

/// `DQ(Q(limited v))`.
fn quantised(
    g: &mut Graph,
    v: Value,
    (signed, scale): (bool, f32),
    s: &Selection,
    origin: std::collections::BTreeSet<infc_ir::graph::Source>,
    order: &mut Vec<Node>,
) -> Result<Value, Fault> {
    let (dtype, least) = if signed { (DType::I8, -(1i64 << (s.bits - 1))) } else { (DType::U8, 0) };
    let most = least + (1i64 << s.bits) - 1;
    let mut b = Builder::new(g, origin);
    let mut x = v;
    if s.bits < 8 {
        let limits = [least, most].map(|q| b.constant(Tensor::from_vec([], vec![q as f32 * scale])));
        x = b.op(Clip {}, &[v, limits[0], limits[1]])?;
    }
    let (scale, zero) = (b.constant(Tensor::from_vec([], vec![scale])), b.constant(Tensor::zeros(dtype, [])));
    let q = b.op(QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 }, &[x, scale, zero])?;
    let out = b.op(DequantizeLinear { axis: 1, block_size: 0, output_dtype: 0 }, &[q, scale, zero])?;
    order.append(&mut b.nodes);
    Ok(out)
}

/// The constant weights of a contraction, as stored integers with one scale a channel.
fn weights(g: &mut Graph, n: Node, s: &Selection, order: &mut Vec<Node>) -> Result<(), Fault> {
    let axis = match &g.node(n).op {
        Op::Conv(_) => 0,
        Op::Gemm(op) if op.transB != 0 => 0,
        Op::Gemm(_) | Op::MatMul(_) => 1,
        _ => return Ok(()),
    };
    let Some(w) =
        g.node(n).operand(1).and_then(|v| g.constant(v)).filter(|w| w.dims.len() >= 2 && w.dtype == DType::F32).cloned()
    else {
        return Ok(());
    };
    let (channels, inner) = (w.dims[axis], w.dims[axis + 1..].iter().product::<usize>());
    let most = f64::from((1u32 << (s.weight_bits - 1)) - 1);
    let mut reach = vec![0f64; channels];
    (0..w.len()).for_each(|i| reach[i / inner % channels] = reach[i / inner % channels].max(w.float(i).abs()));
    let scale = |c: usize| match reach[c] / most {
        0.0 => 1.0,
        r if s.power_of_two => r.log2().ceil().exp2(),
        r => r,
    };
    let scales: Vec<f32> = (0..channels).map(|c| scale(c) as f32).collect();
    let stored =
        |i: usize| (w.float(i) / f64::from(scales[i / inner % channels])).round_ties_even().clamp(-most, most) as i64 as u64;
    let integers = Tensor::from_values(DType::I8, w.dims.clone(), (0..w.len()).map(stored));
    let origin = g.node(n).origin.clone();
    let mut b = Builder::new(g, origin);
    let inputs = [integers, Tensor::from_vec([channels], scales), Tensor::zeros(DType::I8, [channels])].map(|t| b.constant(t));
    let real = b.op(DequantizeLinear { axis: axis as i64, block_size: 0, output_dtype: 0 }, &inputs)?;
    order.append(&mut b.nodes);
    g.nodes[n.index()].inputs[1] = Some(real);
    Ok(())
}

/// Signal to noise at each point, in dB.
fn errors(
    float: &Graph,
    quantised: &Graph,
    points: &[Value],
    made: &[Value],
    calibration: &[Vec<Tensor>],
) -> Result<Vec<Option<f64>>, Problems> {
    let mut sums = vec![[0f64; 2]; points.len()];
    for inputs in calibration {
        let want = values(float, points, inputs)?;
        let got = values(quantised, made, inputs)?;
        for (sum, (w, q)) in sums.iter_mut().zip(want.iter().zip(&got)) {
            for (x, y) in w.iter().zip(q) {
                sum[0] += f64::from(*x).powi(2);
                sum[1] += (f64::from(*x) - f64::from(*y)).powi(2);
            }
        }
    }
    let db = |[signal, noise]: [f64; 2]| if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() };
    Ok(sums.into_iter().map(|s| (!calibration.is_empty()).then(|| db(s))).collect())
}

/// The elements of some values in one run.
fn values(g: &Graph, of: &[Value], inputs: &[Tensor]) -> Result<Vec<Vec<f32>>, Problems> {
    let mut out = vec![vec![]; of.len()];
    let mut keep = |v: Value, t: &Tensor| {
        if let Some(i) = of.iter().position(|&o| o == v) {
            out[i] = t.to_vec::<f32>();
        }
    };
    g.inputs().iter().zip(inputs).filter(|(_, t)| t.dtype == DType::F32).for_each(|(&v, t)| keep(v, t));
    let items: Vec<Item> = inputs.iter().cloned().map(Item::Tensor).collect();
    run_with(g, &items, &mut |n, results| {
        for (&v, item) in g.node(n).outputs.iter().zip(results) {
            if let Some(t) = item.as_tensor().filter(|t| t.dtype == DType::F32) {
                keep(v, t);
            }
        }
    })?;
    Ok(out)
}
