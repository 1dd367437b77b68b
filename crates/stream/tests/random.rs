//! Random small networks down the whole road: golden model = graph, simulation = golden model, no deadlock, least FIFOs.

mod common;

use common::{Net, golden_is_the_graph, road};
use infc_ir::Value;
use infc_ir::op::*;
use infc_stream::fixed::{Selection, select};
use infc_stream::machine::machines;
use infc_stream::sim::{self, Pressure};
use infc_stream::{Design, Goal, Machine, Options, fold, golden};
use proptest::prelude::*;

/// One layer on an image, by a choice and its parameters.
fn layer(net: &mut Net, x: Value, choice: usize, p: [usize; 4]) -> Value {
    let dims = net.dims(x);
    let (c, least) = (dims[1], dims[2].min(dims[3]));
    let outs = [1, 2, 3, 4, 6];
    let (out, pad, stride) = (outs[p[0] % 5], (p[1] % 2) as i64, 1 + (p[2] % 2) as i64);
    let k = [1 + p[3] % 3, 1 + p[3] / 3 % 3].map(|k| k.min(least));
    match choice % 9 {
        0 => {
            let y = net.conv(x, out, k, stride, pad.min(k[0] as i64 - 1).min(k[1] as i64 - 1), 1);
            if p[0] % 2 == 0 { net.relu(y) } else { y }
        }
        1 => {
            let y = net.conv(x, c, [least.min(3); 2], stride, i64::from(least >= 3), c);
            net.relu(y)
        }
        2 => {
            let k = 2.min(least) as i64;
            let pads = vec![if k > 1 { pad } else { 0 }; 4];
            let op = MaxPool {
                auto_pad: "NOTSET".into(),
                ceil_mode: (p[0] % 2) as i64,
                dilations: vec![1, 1],
                kernel_shape: vec![k, k],
                pads,
                storage_order: 0,
                strides: vec![stride; 2],
            };
            net.node(op, &[x])
        }
        3 => {
            let k = 2.min(least) as i64;
            let op = AveragePool {
                auto_pad: "NOTSET".into(),
                ceil_mode: 0,
                count_include_pad: false,
                dilations: vec![1, 1],
                kernel_shape: vec![k, k],
                pads: vec![0; 4],
                strides: vec![stride; 2],
            };
            net.node(op, &[x])
        }
        4 => {
            let (k, pad) = if least >= 3 { (3, 1) } else { (1, 0) };
            let y = net.conv(x, c, [k, k], 1, pad, 1);
            let y = net.relu(y);
            let z = net.node(Add {}, &[x, y]);
            if p[0] % 2 == 0 { net.relu(z) } else { z }
        }
        5 => {
            let y = net.conv(x, out, [1, 1], 1, 0, 1);
            net.node(Concat { axis: 1 }, &[x, y])
        }
        6 => net.node(Sigmoid {}, &[x]),
        7 if c % 4 == 0 => {
            let mode = if p[0] % 2 == 0 { "DCR" } else { "CRD" };
            net.node(DepthToSpace { blocksize: 2, mode: mode.into() }, &[x])
        }
        7 => {
            let y = net.conv(x, 2 * c, [1, 1], 1, 0, c);
            net.node(Mul {}, &[y, y])
        }
        _ => net.conv(x, 2 * c, [1, 1], 1, 0, if p[1] % 2 == 0 { 1 } else { c }),
    }
}

fn network(seed: u64, size: [usize; 3], layers: &[(usize, [usize; 4])], end: usize) -> Net {
    let [c, h, w] = size;
    let (mut net, mut x) = Net::new(&[1, c, h, w], seed);
    for &(choice, p) in layers {
        x = layer(&mut net, x, choice, p);
    }
    match end % 4 {
        0 => {
            let x = net.flatten(x);
            let x = net.gemm(x, 5);
            net.output(x);
        }
        1 => {
            let x = net.node(GlobalAveragePool {}, &[x]);
            let x = net.flatten(x);
            let x = net.gemm(x, 3);
            let x = net.node(Softmax { axis: 1 }, &[x]);
            net.output(x);
        }
        2 => {
            let x = net.node(Transpose { perm: vec![0, 2, 3, 1] }, &[x]);
            net.output(x);
        }
        _ => net.output(x),
    }
    net
}

/// A softmax over more than two channels is within a step of the real one; everything else is equal.
fn has_soft(design: &Design) -> bool {
    design.actors.iter().any(|a| matches!(&a.kind, infc_stream::Kind::Softmax(s) if s.pair.is_none()))
}

fn within_a_step(graph: &infc_ir::Graph, design: &Design, inputs: &[infc_ir::Tensor]) {
    let want = infc_ir::interp::run_tensors(graph, inputs).unwrap();
    let got = golden::run_tensors(design, inputs).unwrap();
    for ((w, g), port) in want.iter().zip(&got).zip(&design.outputs) {
        let step = f64::from(port.scale.unwrap_or(1.0)) * 1.001;
        assert!((0..w.len()).all(|i| (w.float(i) - g.float(i)).abs() <= step));
    }
}

/// Folded and simulated.
fn simulate(design: &Design, machine: &Machine, goal: &Goal, frames: &[Vec<Vec<i64>>], seed: u64) {
    let folded = fold(design, machine, goal).unwrap_or_else(|p| panic!("{p}"));
    let want: Vec<Vec<Vec<i64>>> = frames.iter().map(|f| golden::run(design, f)).collect();
    for (f, w) in frames.iter().zip(&want) {
        assert!(golden::run(&folded.design, f) == *w, "folding changes the golden model");
    }
    let pressures = [
        Pressure::NONE,
        Pressure { seed, source: 100, sink: 0 },
        Pressure { seed, source: 0, sink: 150 },
        Pressure { seed, source: 80, sink: 80 },
    ];
    for p in pressures {
        let run = sim::run(&folded.design, frames, p).unwrap_or_else(|d| panic!("{d}"));
        assert!(run.frames == want, "the simulation differs from the golden model");
        if p.source == 0 && p.sink == 0 {
            let (got, said) = (run.interval(), folded.report.interval);
            assert!(got <= said + said / 5 + 64, "{got} cycles a frame, {said} estimated");
        }
    }
    // The depths that only deadlock asks for are enough, too.
    let mut least = folded.design.clone();
    least.streams.iter_mut().for_each(|s| s.depth = s.bound.max(1));
    let run =
        sim::run(&least, frames, Pressure { seed, source: 50, sink: 50 }).unwrap_or_else(|d| panic!("with the least FIFOs: {d}"));
    assert!(run.frames == want);
}

fn check(seed: u64, size: [usize; 3], layers: &[(usize, [usize; 4])], end: usize, s: &Selection, fps: Option<f64>) {
    let mut net = network(seed, size, layers, end);
    let calibration = net.inputs(3);
    let chosen = select(net.graph, &calibration, s).unwrap_or_else(|p| panic!("{p}"));
    let options = Options { power_of_two: s.power_of_two, ..Options::default() };
    let (graph, design) = road(chosen.graph, &options);
    for inputs in &calibration {
        if has_soft(&design) { within_a_step(&graph, &design, inputs) } else { golden_is_the_graph(&graph, &design, inputs) }
    }
    let frames: Vec<Vec<Vec<i64>>> =
        calibration.iter().map(|t| design.inputs.iter().zip(t).map(|(p, t)| p.frame(t).unwrap()).collect()).collect();
    let machine = Machine { lut: 10_000_000, ff: 10_000_000, dsp: 100_000, bram: 10_000, ..machines().remove(0) };
    // As parallel as it can be, or as little as a rate asks for.
    let goal = Goal { target_fps: fps, ..Goal::default() };
    simulate(&design, &machine, &goal, &frames, seed);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn networks_are_equal_on_the_whole_road(
        seed in any::<u64>(), size in (1usize..5, 3usize..9, 3usize..9),
        layers in prop::collection::vec((0usize..9, prop::array::uniform4(0usize..100)), 1..6),
        end in 0usize..4, bits in 2u32..=8, weight_bits in 2u32..=8, power_of_two in any::<bool>(), slow in any::<bool>(),
    ) {
        let s = Selection { bits, weight_bits, power_of_two, ..Selection::default() };
        check(seed, [size.0, size.1, size.2], &layers, end, &s, slow.then_some(20.0));
    }

    #[test]
    fn perceptrons_are_equal_on_the_whole_road(
        seed in any::<u64>(), widths in prop::collection::vec(1usize..40, 2..5), bits in 2u32..=8, power_of_two in any::<bool>(), slow in any::<bool>(),
    ) {
        let (mut net, mut x) = Net::new(&[1, widths[0]], seed);
        for &w in &widths[1..] {
            x = net.gemm(x, w);
            x = net.relu(x);
        }
        net.output(x);
        let calibration = net.inputs(4);
        let s = Selection { bits, power_of_two, ..Selection::default() };
        let chosen = select(net.graph, &calibration, &s).unwrap();
        let (graph, design) = road(chosen.graph, &Options { power_of_two, ..Options::default() });
        calibration.iter().for_each(|inputs| golden_is_the_graph(&graph, &design, inputs));
        let frames: Vec<Vec<Vec<i64>>> = calibration.iter().map(|t| vec![design.inputs[0].frame(&t[0]).unwrap()]).collect();
        let machine = Machine::find("vu9p").unwrap();
        simulate(&design, &machine, &Goal { target_fps: slow.then_some(1000.0), ..Goal::default() }, &frames, seed);
    }
}
