//! Networks for pictures made layer by layer, and runs of them on machines with large and with small caches: for tests of loops around layers.

use super::kit::*;
use infc::engine::{Backend, Engine, Native, prepare};
use infc::{Options, compile, target};
use infc_artifact::program::Step;
use infc_ir::interp::Item;
use infc_ir::{Graph, Tensor};
use infc_kernel::target::{Math, TargetDesc};
use infc_onnx::proto::{NodeProto, TensorProto};
use infc_runtime::Model;

pub fn numbers(dims: &[usize], seed: u32) -> Tensor {
    let n: usize = dims.iter().product();
    let value = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    Tensor::from_vec(dims, (0..n).map(value).collect::<Vec<f32>>())
}

/// A machine with caches so small and slow that loops pay for the tests' models.
pub fn small(machine: TargetDesc) -> TargetDesc {
    TargetDesc { l2_bytes: 16 << 10, l3_bytes: 1 << 20, l3_rate: 1, ..machine }
}

/// One that holds all in its caches.
pub fn large(machine: TargetDesc) -> TargetDesc {
    TargetDesc { l2_bytes: 1 << 40, l3_bytes: 1 << 40, ..machine }
}

pub fn native() -> TargetDesc {
    target::find("native").expect("this computer")
}

/// All machines of this kind of code, those with products of bf16 also in that mode.
pub fn machines_of_llvm() -> Vec<TargetDesc> {
    let narrow = |m: &TargetDesc| m.bf16_dot.then(|| TargetDesc { math: Math::Bf16, ..m.clone() });
    target::machines().into_iter().filter(|m| m.backend == "llvm").flat_map(|m| [narrow(&m), Some(m)]).flatten().collect()
}

/// A graph under construction: `v0` is the input, each node makes the next value.
pub struct Net {
    nodes: Vec<NodeProto>,
    pub weights: Vec<TensorProto>,
    pub dims: Vec<Vec<usize>>,
}

impl Net {
    pub fn new(dims: &[usize]) -> Net {
        Net { nodes: vec![], weights: vec![], dims: vec![dims.to_vec()] }
    }
    pub fn last(&self) -> usize {
        self.dims.len() - 1
    }
    pub fn weight(&mut self, dims: &[usize]) -> String {
        let name = format!("w{}", self.weights.len());
        self.weights.push(constant(&name, &numbers(dims, 91 * self.weights.len() as u32 + 7)));
        name
    }
    pub fn index(&mut self, values: Vec<i64>) -> String {
        let name = format!("w{}", self.weights.len());
        self.weights.push(constant(&name, &Tensor::from_vec([values.len()], values)));
        name
    }
    /// Adds `call`, in which `@` is the last value, with a result of these dims.
    pub fn add(&mut self, call: &str, attributes: &[infc_onnx::proto::AttributeProto], dims: Vec<usize>) -> usize {
        let call = call.replace('@', &format!("v{}", self.last()));
        self.nodes.push(node(&format!("v{} = {call}", self.dims.len()), attributes));
        self.dims.push(dims);
        self.last()
    }
    pub fn conv(&mut self, channels: usize, kernel: usize, groups: usize, stride: usize) {
        let d = self.dims[self.last()].clone();
        let w = self.weight(&[channels, d[1] / groups, kernel, kernel]);
        let b = self.weight(&[channels]);
        let (pad, stride_i) = (kernel as i64 / 2, stride as i64);
        let attributes = [ints("pads", &[pad; 4]), ints("strides", &[stride_i; 2]), int("group", groups as i64)];
        let after = |x: usize| (x + 2 * (kernel / 2) - kernel) / stride + 1;
        self.add(&format!("Conv(@, {w}, {b})"), &attributes, vec![d[0], channels, after(d[2]), after(d[3])]);
    }
    pub fn same(&mut self, call: &str, attributes: &[infc_onnx::proto::AttributeProto]) -> usize {
        let dims = self.dims[self.last()].clone();
        self.add(call, attributes, dims)
    }
    pub fn graph_of(&self, batch: &str) -> Graph {
        let text = |d: &[usize]| d.iter().map(|d| format!(", {d}")).collect::<String>();
        let input = format!("v0 f32[{batch}{}]", text(&self.dims[0][1..]));
        let last = self.last();
        let rank = self.dims[last].len();
        let output = format!("v{last} f32[{}]", vec!["?"; rank].join(", "));
        let g = graph(&[&input], self.nodes.clone(), &[&output], self.weights.clone());
        import(&model(18, g)).unwrap_or_else(|e| panic!("{e}"))
    }
    pub fn graph(&self) -> Graph {
        self.graph_of(&self.dims[0][0].to_string())
    }
    pub fn input(&self) -> Item {
        Item::Tensor(numbers(&self.dims[0], 3))
    }
}

/// Rounds and launches of each loop that the compiler puts around layers, whose counter's name begins so.
pub fn loops(graph: &Graph, machine: TargetDesc, counter: &str) -> Vec<(i64, usize)> {
    fn walk(steps: &[Step], out: &mut Vec<(u32, i64, usize)>) {
        for step in steps {
            match step {
                Step::Loop { counter, count, body, apart: true, cond: None } => {
                    out.push((*counter, count.known().unwrap_or(-1), body.len()));
                }
                Step::Loop { body, .. } => walk(body, out),
                Step::If { then, otherwise, .. } => {
                    walk(then, out);
                    walk(otherwise, out);
                }
                Step::Launch { .. }
                | Step::Copy { .. }
                | Step::Bind { .. }
                | Step::Require { .. }
                | Step::Host { .. }
                | Step::HostLaunch { .. }
                | Step::ToHost { .. }
                | Step::ToDevice { .. } => {}
            }
        }
    }
    let lowered = compile::lower(graph.clone(), &Options::for_target(machine)).unwrap_or_else(|e| panic!("{e}"));
    lowered.program.validate(u64::MAX, lowered.constants.len() as u64).unwrap_or_else(|e| panic!("{e}"));
    let mut out = vec![];
    walk(&lowered.program.steps, &mut out);
    let named = out.into_iter().filter(|l| lowered.program.symbols[l.0 as usize].name.starts_with(counter));
    named.map(|(_, count, launches)| (count, launches)).collect()
}

pub fn bits(items: &[Item]) -> Vec<(Vec<usize>, Vec<u8>)> {
    items.iter().filter_map(Item::as_tensor).map(|t| (t.dims.clone(), t.bytes().to_vec())).collect()
}

pub fn run(graph: &Graph, backend: Backend, machine: TargetDesc, input: &Item) -> Vec<(Vec<usize>, Vec<u8>)> {
    let mut engine = prepare(graph.clone(), backend, &Options::for_target(machine)).unwrap_or_else(|e| panic!("{e}"));
    bits(&engine.run(std::slice::from_ref(input)).unwrap_or_else(|e| panic!("{} {e}", backend.name())))
}

/// From the bytes of an artifact, twice in one session.
pub fn run_threads(graph: &Graph, machine: TargetDesc, input: &Item, threads: usize) -> Vec<(Vec<usize>, Vec<u8>)> {
    let compiled = infc::compile(graph.clone(), &Options::for_target(machine)).unwrap_or_else(|e| panic!("{e}"));
    let options = infc_runtime::Options { threads: Some(threads), profile: true, ..infc_runtime::Options::default() };
    let mut engine = Native::new(Model::from_bytes(&compiled.artifact.to_bytes()).expect("loads"), options).expect("a session");
    let mut out = || bits(&engine.run(std::slice::from_ref(input)).unwrap_or_else(|e| panic!("{e}")));
    let first = out();
    assert_eq!(first, out(), "the second run differs");
    let calls: Vec<u64> = engine.session().times().iter().map(|t| t.calls).collect();
    assert!(calls.iter().all(|&c| c > 0 && c % 2 == 0), "all steps ran in both runs: {calls:?}");
    first
}

/// Numbers that follow from a seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % n as u64) as usize
    }
}
