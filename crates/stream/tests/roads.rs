//! Networks of the size that FPGAs are used for: a jet tagger from QONNX, the example models with chosen formats, branches and their FIFOs,
//! and what is refused.

mod common;

use common::{Net, Random, golden_is_the_graph, road};
use infc_ir::op::*;
use infc_ir::{DType, Expr, Graph, Tensor, Type, Value, interp};
use infc_stream::fixed::{Selection, select};
use infc_stream::sim::{self, Pressure};
use infc_stream::{Design, Folded, Goal, Kind, Machine, Options, convert, fold, golden, prepare};
use std::path::Path;

fn frames(design: &Design, inputs: &[Vec<Tensor>]) -> Vec<Vec<Vec<i64>>> {
    inputs.iter().map(|t| design.inputs.iter().zip(t).map(|(p, t)| p.frame(t).unwrap()).collect()).collect()
}

/// The simulation gives what the golden model gives, with and without back-pressure, and as fast as was said.
fn simulated(folded: &Folded, inputs: &[Vec<Tensor>]) {
    let frames = frames(&folded.design, inputs);
    let want: Vec<_> = frames.iter().map(|f| golden::run(&folded.design, f)).collect();
    for p in [Pressure::NONE, Pressure { seed: 5, source: 90, sink: 90 }] {
        let run = sim::run(&folded.design, &frames, p).unwrap_or_else(|d| panic!("{d}"));
        assert!(run.frames == want);
        let (got, said) = (run.interval(), folded.report.interval);
        assert!(p.source > 0 || got <= said + said / 10 + 16, "{got} cycles a frame, {said} estimated");
    }
}

// ---- a jet tagger, 16-64-32-32-5 ----

fn quant(net: &mut Net, x: Value, scale: f32, bits: u32, signed: bool) -> Value {
    let operands = [scale, 0.0, bits as f32].map(|v| net.constant(Tensor::from_vec([], vec![v])));
    let op = Quant { signed: i64::from(signed), narrow: 0, rounding_mode: "ROUND".into() };
    net.node(op, &[x, operands[0], operands[1], operands[2]])
}

fn jet_tagger(bits: u32, seed: u64, step: f32) -> Net {
    let (mut net, mut x) = Net::new(&[1, 16], seed);
    let size = (1u32 << (bits - 1)) as f32;
    x = quant(&mut net, x, step / size, bits, true);
    for (i, [k, n]) in [[16usize, 64], [64, 32], [32, 32], [32, 5]].into_iter().enumerate() {
        let w = net.random.tensor(&[k, n], 1.0);
        let w = net.constant(w);
        let w = quant(&mut net, w, step / size, bits, true);
        let b = net.random.tensor(&[n], 0.2);
        let b = net.constant(b);
        x = net.node(MatMul {}, &[x, w]);
        x = net.node(Add {}, &[x, b]);
        if i < 3 {
            x = net.relu(x);
        }
        x = quant(&mut net, x, 4.0 * step / size, bits, i == 3);
    }
    net.output(x);
    net
}

#[test]
fn jet_taggers_of_8_and_6_bits() {
    for (bits, step, power_of_two) in [(8, 1.0, true), (6, 1.0, true), (8, 0.9, false), (6, 1.1, false)] {
        let mut net = jet_tagger(bits, 11, step);
        let inputs = net.inputs(100);
        let (graph, design) = road(net.graph, &Options { power_of_two, ..Options::default() });
        inputs.iter().for_each(|i| golden_is_the_graph(&graph, &design, i));
        let widths: Vec<u32> =
            design.actors.iter().filter_map(|a| if let Kind::Mvu(m) = &a.kind { Some(m.weight.bits) } else { None }).collect();
        assert_eq!(widths, [bits; 4]);
        let machine = Machine::find("xc7z020").unwrap();
        for goal in
            [Goal::default(), Goal { target_fps: Some(50_000.0), ..Goal::default() }, Goal { dsp: Some(40), ..Goal::default() }]
        {
            let folded = fold(&design, &machine, &goal).unwrap_or_else(|p| panic!("{p}"));
            simulated(&folded, &inputs[..20]);
            let r = &folded.report;
            println!(
                "{bits} bits, step {step}: {:?} {} cycles, {:.0} frames a second, limited by {}",
                r.total, r.interval, r.fps, r.limiting
            );
            assert!(r.total.dsp <= r.budget.dsp && goal.target_fps.is_none_or(|t| r.fps >= t));
        }
    }
}

/// More budget is never slower, and a larger rate never smaller.
#[test]
fn budgets_and_rates_order_foldings() {
    let (_, design) = road(jet_tagger(8, 3, 0.9).graph, &Options::default());
    let machine = Machine::find("zu7ev").unwrap();
    let with = |dsp| fold(&design, &machine, &Goal { dsp: Some(dsp), ..Goal::default() }).unwrap().report;
    let sweep: Vec<(u64, u64)> = [30, 60, 120, 300, 1000].map(with).iter().map(|r| (r.total.dsp, r.interval)).collect();
    assert!(sweep.windows(2).all(|w| w[1].1 <= w[0].1), "{sweep:?}");
    assert!(sweep[4].1 < sweep[0].1, "{sweep:?}");
    let at = |fps| fold(&design, &machine, &Goal { target_fps: Some(fps), ..Goal::default() }).unwrap().report;
    let rates: Vec<u64> = [1e4, 1e5, 1e6].map(|f| at(f).total.dsp).to_vec();
    assert!(rates.windows(2).all(|w| w[0] <= w[1]), "{rates:?}");
}

// ---- the example models ----

/// The arrays of an evaluation set: a .npz, which is a zip archive of .npy files.
fn npz(path: &Path, name: &str) -> (Vec<usize>, Vec<u8>) {
    let file = std::fs::read(path).unwrap();
    let u = |at: usize, n: usize| file[at..at + n].iter().rev().fold(0usize, |v, &b| v << 8 | usize::from(b));
    let end = (0..file.len() - 21).rev().find(|&i| file[i..].starts_with(b"PK\x05\x06")).unwrap();
    let mut at = u(end + 16, 4);
    loop {
        let (size, length) = (u(at + 20, 4), u(at + 28, 2));
        let (extra, comment, local) = (u(at + 30, 2), u(at + 32, 2), u(at + 42, 4));
        if &file[at + 46..at + 46 + length] == format!("{name}.npy").as_bytes() {
            let start = local + 30 + u(local + 26, 2) + u(local + 28, 2);
            let npy = miniz_oxide::inflate::decompress_to_vec(&file[start..start + size]).unwrap();
            let header = 10 + usize::from(npy[8]) + 256 * usize::from(npy[9]);
            let text = String::from_utf8_lossy(&npy[10..header]).into_owned();
            let shape = text.split("'shape': (").nth(1).unwrap().split(')').next().unwrap();
            let dims = shape.split(',').filter_map(|d| d.trim().parse().ok()).collect();
            return (dims, npy[header..].to_vec());
        }
        at += 46 + length + extra + comment;
    }
}

/// Samples of an example model, each a batch of 1, with labels.
fn samples(model: &Path, count: usize) -> Vec<(Tensor, usize)> {
    let file = model.join("eval.npz");
    let ((dims, inputs), (_, labels), (_, scale)) = (npz(&file, "inputs"), npz(&file, "labels"), npz(&file, "scale"));
    let one: usize = dims[1..].iter().product();
    let label_width = labels.len() / dims[0];
    let scale = f32::from_le_bytes(scale.try_into().expect("one f32"));
    assert!(inputs.len() == dims[0] * one, "samples are bytes");
    let shape: Vec<usize> = std::iter::once(1).chain(dims[1..].iter().copied()).collect();
    (0..count)
        .map(|i| {
            let k = i * (dims[0] / count);
            let values = inputs[k * one..(k + 1) * one].iter().map(|&b| f32::from(b) * scale).collect::<Vec<f32>>();
            (Tensor::from_vec(shape.clone(), values), usize::from(labels[k * label_width]))
        })
        .collect()
}

fn best(t: &Tensor) -> usize {
    (0..t.len()).fold(0, |b, i| if t.float(i) > t.float(b) { i } else { b })
}

/// An example model in int8 with chosen formats: golden = graph, simulation = golden, and as many samples right as in f32, within a few.
fn example(name: &str, power_of_two: bool, evaluated: usize, lost: usize, fps: f64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models").join(name);
    let float = infc_onnx::import(&folder.join("model.onnx")).unwrap();
    let all = samples(&folder, evaluated + 16);
    let (calibration, test) = all.split_at(16);
    let calibration: Vec<Vec<Tensor>> = calibration.iter().map(|(t, _)| vec![t.clone()]).collect();
    let chosen = select(float.clone(), &calibration, &Selection { power_of_two, ..Selection::default() })
        .unwrap_or_else(|p| panic!("{p}"));
    for f in &chosen.formats {
        assert!(f.sqnr_db.is_some_and(|db| db > 15.0), "{f:?}");
    }
    let (graph, design) = road(chosen.graph, &Options { power_of_two, ..Options::default() });
    let mut right = [0, 0];
    for (i, (x, label)) in test.iter().enumerate() {
        let inputs = std::slice::from_ref(x);
        let got = golden::run_tensors(&design, inputs).unwrap();
        if i < 4 {
            golden_is_the_graph(&graph, &design, inputs);
        }
        right[0] += usize::from(best(&interp::run_tensors(&float, inputs).unwrap()[0]) == *label);
        right[1] += usize::from(best(&got[0]) == *label);
    }
    println!("{name}: {right:?} of {} right (f32, int8)", test.len());
    assert!(right[1] + lost >= right[0], "{right:?}");
    let folded = fold(&design, &Machine::find("xc7z020").unwrap(), &Goal { target_fps: Some(fps), ..Goal::default() })
        .unwrap_or_else(|p| panic!("{p}"));
    simulated(&folded, &calibration[..3]);
    let r = &folded.report;
    println!("{name}: {:?}, {} cycles, {:.0} frames a second, limited by {}", r.total, r.interval, r.fps, r.limiting);
}

#[test]
fn digits_mlp() {
    example("digits_mlp", false, 100, 2, 100_000.0);
    example("digits_mlp", true, 100, 3, 100_000.0);
}

#[test]
fn glyphs_cnn() {
    example("glyphs_cnn", false, 60, 3, 500.0);
    example("glyphs_cnn", true, 60, 4, 500.0);
}

// ---- branches ----

/// An image that goes around two convolutions and is added, then concatenated with a branch.
fn branches() -> (Design, Vec<Vec<Tensor>>) {
    let (mut net, x) = Net::new(&[1, 4, 9, 7], 5);
    let a = net.conv(x, 4, [3, 3], 1, 1, 1);
    let a = net.relu(a);
    let b = net.conv(a, 4, [3, 3], 1, 1, 1);
    let b = net.relu(b);
    let b = net.conv(b, 4, [3, 3], 1, 1, 4);
    let sum = net.node(Add {}, &[a, b]);
    let c = net.conv(sum, 2, [3, 3], 1, 1, 1);
    let both = net.node(Concat { axis: 1 }, &[sum, c]);
    net.output(both);
    let inputs = net.inputs(3);
    let chosen = select(net.graph, &inputs, &Selection { power_of_two: false, ..Selection::default() }).unwrap();
    (road(chosen.graph, &Options::default()).1, inputs)
}

#[test]
fn a_branch_with_one_beat_less_than_its_bound_stops() {
    let (design, inputs) = branches();
    for fps in [2_000.0, 20_000.0] {
        let goal = Goal { target_fps: Some(fps), ..Goal::default() };
        let folded = fold(&design, &Machine::find("zu7ev").unwrap(), &goal).unwrap_or_else(|p| panic!("{p}"));
        simulated(&folded, &inputs);
        let frames = frames(&folded.design, &inputs);
        let straight = |s: &infc_stream::Stream| s.bound > 1 && matches!(folded.design.actor(s.from).kind, Kind::Fork);
        let branches: Vec<usize> = (0..folded.design.streams.len()).filter(|&i| straight(&folded.design.streams[i])).collect();
        assert!(branches.len() >= 2, "{branches:?}");
        for &i in &branches {
            let mut d = folded.design.clone();
            d.streams[i].depth = d.streams[i].bound;
            sim::run(&d, &frames, Pressure::NONE).unwrap_or_else(|e| panic!("with its bound: {e}"));
            d.streams[i].depth -= 1;
            let stopped = sim::run(&d, &frames, Pressure::NONE).expect_err("one beat less");
            assert!(stopped.full.contains(&d.streams[i].name), "{stopped}");
        }
    }
}

// ---- what is refused ----

fn refused(graph: Graph, words: &[&str]) {
    let told = match prepare(graph, &Options::default()) {
        Err(p) => p.to_string(),
        Ok(g) => convert(&g).expect_err("cannot stream").to_string(),
    };
    for w in words {
        assert!(told.contains(w), "'{w}' is not in:\n{told}");
    }
}

#[test]
fn all_operators_that_cannot_stream_are_listed_with_reason_and_alternative() {
    let (mut net, x) = Net::new(&[1, 4, 8, 8], 1);
    let q = quant(&mut net, x, 0.1, 8, true);
    let scale = net.random.tensor(&[8], 1.0);
    let scale = net.constant(scale);
    let a = net.node(LayerNormalization { axis: -1, epsilon: 1e-5, stash_type: 1 }, &[q, scale]);
    let w = net.weights(&[4, 2, 3, 3]);
    let op = ConvTranspose {
        auto_pad: "NOTSET".into(),
        dilations: vec![1, 1],
        group: 1,
        kernel_shape: vec![3, 3],
        output_padding: vec![],
        output_shape: vec![],
        pads: vec![0; 4],
        strides: vec![2, 2],
    };
    let b = net.node(op, &[q, w]);
    net.output(a);
    net.output(b);
    refused(net.graph, &["layernormalization", "BatchNormalization", "convtranspose", "Resize (nearest)"]);
}

#[test]
fn real_numbers_and_open_dims_are_refused() {
    let (mut net, x) = Net::new(&[1, 8], 1);
    let y = net.gemm(x, 4);
    net.output(y);
    refused(net.graph, &["gemm", "works on real numbers", "quantise"]);
    let mut graph = Graph::new("open");
    let ty = Type::tensor(DType::F32, [Expr::from(1), Expr::from(3), Expr::sym("h"), Expr::from(8)]);
    let x = graph.add_param(Graph::MAIN, ty, "image");
    graph.regions[0].results.push(x);
    refused(graph, &["input 'image'", "h is open", "--dim"]);
    let mut graph = Graph::new("batch");
    let x = graph.add_param(Graph::MAIN, Type::tensor(DType::F32, [Expr::from(4), Expr::from(3)]), "x");
    graph.regions[0].results.push(x);
    refused(graph, &["batch of 1"]);
}

#[test]
fn scales_that_are_no_powers_of_two_are_refused_in_that_mode() {
    let options = Options { power_of_two: true, ..Options::default() };
    let error = prepare(jet_tagger(8, 1, 0.9).graph, &options).unwrap_err().to_string();
    assert!(error.contains("non-integer scales") && error.contains("powers of two"), "{error}");
    assert!(prepare(jet_tagger(8, 1, 0.5).graph, &options).is_ok());
}

#[test]
fn what_does_not_fit_is_refused_with_the_nearest_folding() {
    let (_, design) = road(jet_tagger(8, 1, 0.9).graph, &Options::default());
    let machine = Machine::find("xc7z020").unwrap();
    let told = |goal: Goal| fold(&design, &machine, &goal).unwrap_err().to_string();
    let error = told(Goal { target_fps: Some(5e6), dsp: Some(60), ..Goal::default() });
    assert!(
        error.contains("does not fit")
            && error.contains("the nearest folding that fits makes")
            && error.contains("of 60 (too many)"),
        "{error}"
    );
    let error = told(Goal { target_fps: Some(1e9), ..Goal::default() });
    assert!(error.contains("in its fastest folding"), "{error}");
    let error = told(Goal { lut: Some(100), ..Goal::default() });
    assert!(error.contains("even with one lane"), "{error}");
    let error = told(Goal { dsp: Some(1000), ..Goal::default() });
    assert!(error.contains("more than the 220 of xc7z020"), "{error}");
    let error = told(Goal { clock_ns: Some(0.0), ..Goal::default() });
    assert!(error.contains("must be positive"), "{error}");
}

#[test]
fn a_range_that_nothing_bounds_asks_for_calibration() {
    let (mut net, x) = Net::new(&[1, 8], 1);
    let y = net.gemm(x, 4);
    net.output(y);
    let error = select(net.graph.clone(), &[], &Selection::default()).unwrap_err().to_string();
    assert!(error.contains("calibration") && error.contains("input 'x'"), "{error}");
    // With the range of the input, intervals bound everything: nothing saturates.
    let s = Selection { ranges: vec![("x".into(), [-1.0, 1.0])], ..Selection::default() };
    let chosen = select(net.graph.clone(), &[], &s).unwrap();
    let (graph, design) = road(chosen.graph, &Options { power_of_two: true, ..Options::default() });
    let mut random = Random(4);
    for _ in 0..20 {
        let x = [random.tensor(&[1, 8], 1.0)];
        golden_is_the_graph(&graph, &design, &x);
        let (real, fixed) = (interp::run_tensors(&net.graph, &x).unwrap(), golden::run_tensors(&design, &x).unwrap());
        let step = f64::from(design.outputs[0].scale.unwrap());
        assert!((0..4).all(|i| (real[0].float(i) - fixed[0].float(i)).abs() < 4.0 * step));
    }
}
