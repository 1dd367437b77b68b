//! Steady runs of compiled models allocate nothing: after two runs, neither the calling thread nor a worker asks for memory.
#![cfg(feature = "llvm")]

#[path = "../../runtime/tests/kit/counting.rs"]
mod counting;
mod tool;

use infc::cases;
use infc::inputs::{self, Source};
use infc_ir::{Graph, Tensor, Value};
use infc_runtime::{DType, Model, Options, Session, TensorRef};
use tool::kit::shared_models;
use tool::*;

/// Real models up to so many bytes are run too, where there are any.
const SMALL: u64 = 200_000;
const RUNS: usize = 20;

/// Memory of the caller, aligned for any element.
fn room(bytes: usize) -> Vec<u8> {
    vec![0; bytes + 64]
}

fn aligned(memory: &mut [u8], bytes: usize) -> &mut [u8] {
    let start = memory.as_ptr().align_offset(64);
    &mut memory[start..start + bytes]
}

/// The inputs of the first data set, or made-up ones.
fn values(graph: &Graph, case: &cases::Case) -> Vec<Tensor> {
    let made = |&v: &Value| inputs::make(&Source::Random(0), &graph.value(v).name, graph.ty(v), &Default::default());
    let items = match case.sets.first() {
        Some(set) => set.read_inputs(graph).expect("readable"),
        None => graph.inputs().iter().map(|v| made(v).expect("a tensor")).collect(),
    };
    items.iter().map(|i| i.as_tensor().expect("a tensor").clone()).collect()
}

/// Calls of the allocator in `RUNS` runs after two, with inputs and outputs in memory of the caller.
fn calls(session: &mut Session, values: &[Tensor], name: &str) -> usize {
    let dims: Vec<Vec<i64>> = values.iter().map(|t| t.dims.iter().map(|&d| d as i64).collect()).collect();
    let mut copies: Vec<Vec<u8>> = values.iter().map(|t| room(t.bytes().len())).collect();
    for (copy, t) in copies.iter_mut().zip(values) {
        aligned(copy, t.bytes().len()).copy_from_slice(t.bytes());
    }
    let mut given = vec![];
    for (i, copy) in copies.iter_mut().enumerate() {
        let dtype = DType(values[i].dtype.onnx() as u8);
        given.push((i, TensorRef { dtype, dims: &dims[i], bytes: aligned(copy, values[i].bytes().len()) }));
    }
    session.run_with(&given, &mut []).unwrap_or_else(|e| panic!("{name}: {e}"));
    let count = session.model().outputs().len();
    let first: Vec<Vec<u8>> = (0..count).map(|i| session.output(i).expect("an output").bytes.to_vec()).collect();
    let mut rooms: Vec<Vec<u8>> = first.iter().map(|b| room(b.len())).collect();
    let mut outputs: Vec<(usize, &mut [u8])> =
        rooms.iter_mut().enumerate().map(|(i, r)| (i, aligned(r, first[i].len()))).collect();
    let mut run = || session.run_with(&given, &mut outputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    run();
    run();
    let before = counting::calls();
    (0..RUNS).for_each(|_| run());
    let calls = counting::calls() - before;
    for ((i, memory), first) in outputs.iter().zip(&first) {
        assert!(**memory == first[..], "{name}: output {i} differs from that of the first run");
    }
    calls
}

/// One test, so that no other one allocates meanwhile.
#[test]
fn steady_runs_of_models_allocate_nothing() {
    let options = infc::Options::native().expect("this machine is supported");
    let mut found = cases::find(&examples()).expect("models");
    assert_eq!(found.len(), 4);
    let small = |p: &std::path::PathBuf| p.metadata().is_ok_and(|m| m.len() <= SMALL);
    for path in shared_models().into_iter().filter(small) {
        found.extend(cases::find(path.parent().expect("a folder")).expect("a model"));
    }
    for case in &found {
        let graph = infc_onnx::import(&case.model).expect("imports");
        let values = values(&graph, case);
        let artifact = infc::compile::compile(graph, &options).unwrap_or_else(|p| panic!("{p}")).artifact.to_bytes();
        let model = Model::from_bytes(&artifact).expect("loads");
        // Routines of the host make values.
        if !model.program().host_nodes().is_empty() {
            continue;
        }
        for (threads, spin_us) in [(1, 1000), (2, 1000), (2, 20), (2, 0)] {
            let options = Options { threads: Some(threads), spin_us, profile: false };
            let mut session = Session::new(model.clone(), options).expect("a session");
            let calls = calls(&mut session, &values, &case.name);
            assert_eq!(calls, 0, "{} with {threads} threads, spin {spin_us} us", case.name);
        }
    }
}
