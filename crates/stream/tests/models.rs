//! Real models end to end: the golden model equals the graph.

use infc_ir::{Graph, Tensor, interp};
use infc_stream::sim::{self, Pressure};
use infc_stream::{Design, Goal, InputFormat, Machine, Options, convert, fold, golden, prepare};
use std::path::{Path, PathBuf};

fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models").join(name).join("model.onnx");
    path.exists().then_some(path)
}

/// Seeded numbers below 1, or below 256.
fn noise(dims: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values = (0..dims.iter().product::<usize>()).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    });
    Tensor::from_vec(dims, values.collect::<Vec<f32>>())
}

fn design(path: &Path, options: &Options) -> (Graph, Design) {
    let graph = infc_onnx::import(path).unwrap();
    let graph = prepare(graph, options).unwrap_or_else(|p| panic!("{p}"));
    let design = convert(&graph).unwrap_or_else(|p| panic!("{p}"));
    (graph, design)
}

fn golden_is_the_graph(graph: &Graph, design: &Design, inputs: &[Tensor]) {
    let want = interp::run_tensors(graph, inputs).unwrap_or_else(|p| panic!("{p}"));
    let got = golden::run_tensors(design, inputs).unwrap_or_else(|p| panic!("{p}"));
    assert_eq!(want.len(), got.len());
    for (w, g) in want.iter().zip(&got) {
        assert_eq!((w.dtype, &w.dims), (g.dtype, &g.dims));
        let differ = (0..w.len()).filter(|&i| w.float(i) != g.float(i)).count();
        assert_eq!(differ, 0, "of {}", w.len());
    }
}

#[test]
fn ultraface() {
    let Some(path) = shared("ultraface_slim_qdq_u8s8") else { return };
    let (graph, design) = design(&path, &Options::default());
    let image = noise(&design.inputs[0].dims, 3);
    golden_is_the_graph(&graph, &design, std::slice::from_ref(&image));
    // The passes for a CPU lead to the same bits.
    let mut cpu = infc_onnx::import(&path).unwrap();
    infc_passes::run(&mut cpu, &infc_passes::Options::default()).unwrap();
    golden_is_the_graph(&cpu, &design, &[image]);
}

#[test]
#[ignore = "slow: a billion products by interpreter, golden model and simulation"]
fn espcn() {
    let Some(path) = shared("espcn_qonnx") else { return };
    let image = InputFormat { signed: false, bits: 8, scale: 1.0 / 255.0 };
    let options = Options { inputs: vec![("x.7".into(), image)], ..Options::default() };
    let (graph, design) = design(&path, &options);
    let image = noise(&design.inputs[0].dims, 5);
    golden_is_the_graph(&graph, &design, std::slice::from_ref(&image));
    let goal = Goal { target_fps: Some(100.0), ..Goal::default() };
    simulated(&design, "zu7ev", &goal, &[vec![image]]);
}

/// Folded for a machine and simulated with random back-pressure, the design gives what the golden model gives.
fn simulated(design: &Design, machine: &str, goal: &Goal, frames: &[Vec<Tensor>]) {
    let machine = Machine::find(machine).unwrap();
    let folded = fold(design, &machine, goal).unwrap_or_else(|p| panic!("{p}"));
    let frames: Vec<Vec<Vec<i64>>> =
        frames.iter().map(|f| folded.design.inputs.iter().zip(f).map(|(p, t)| p.frame(t).unwrap()).collect()).collect();
    for pressure in [Pressure::NONE, Pressure { seed: 7, source: 60, sink: 60 }] {
        let run = sim::run(&folded.design, &frames, pressure).unwrap_or_else(|d| panic!("{d}"));
        for (frame, out) in frames.iter().zip(&run.frames) {
            assert!(golden::run(design, frame) == *out, "the simulation differs from the golden model");
        }
        let r = &folded.report;
        println!(
            "{}: {} cycles estimated, {} simulated, {:?}, limited by {}",
            r.design,
            r.interval,
            run.interval(),
            r.total,
            r.limiting
        );
    }
}

#[test]
fn ultraface_in_cycles() {
    let Some(path) = shared("ultraface_slim_qdq_u8s8") else { return };
    let (_, design) = design(&path, &Options::default());
    simulated(
        &design,
        "zu7ev",
        &Goal::default(),
        &[vec![noise(&design.inputs[0].dims, 3)], vec![noise(&design.inputs[0].dims, 4)]],
    );
}

/// A detector in ONNX's and ONNX Runtime's operators on quantised tensors.
#[test]
#[ignore = "slow: 500 actors"]
fn fastestdet() {
    let Some(path) = shared("fastestdet_qoperator") else { return };
    let (graph, design) = design(&path, &Options::default());
    let image = noise(&design.inputs[0].dims, 6);
    golden_is_the_graph(&graph, &design, &[image]);
    // It has a folding; a frame through 500 actors is too long for a test.
    let goal = Goal { target_fps: Some(100.0), ..Goal::default() };
    fold(&design, &Machine::find("vu9p").unwrap(), &goal).unwrap_or_else(|p| panic!("{p}"));
}
