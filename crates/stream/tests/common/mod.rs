//! What tests of this crate share: float graphs from a list of choices, seeded numbers, and the whole road.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use infc_ir::graph::{Graph, SourceNode};
use infc_ir::op::*;
use infc_ir::{DType, Op, Tensor, Type, Value, interp};
use infc_stream::{Design, Options, convert, golden, prepare};
use std::collections::BTreeSet;

/// Seeded numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// -1 to 1.
    pub fn real(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    pub fn tensor(&mut self, dims: &[usize], size: f32) -> Tensor {
        let values = (0..dims.iter().product::<usize>()).map(|_| self.real() * size).collect::<Vec<f32>>();
        Tensor::from_vec(dims, values)
    }
}

/// A float graph that grows by layers.
pub struct Net {
    pub graph: Graph,
    pub random: Random,
    count: usize,
}

impl Net {
    pub fn new(dims: &[usize], seed: u64) -> (Net, Value) {
        let mut graph = Graph::new("net");
        let ty = Type::tensor(DType::F32, dims.iter().map(|&d| infc_ir::Expr::from(d)));
        let x = graph.add_param(Graph::MAIN, ty, "x");
        (Net { graph, random: Random(seed), count: 0 }, x)
    }
    pub fn node(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Value {
        let op = op.into();
        let name = format!("{}{}", op.name().to_lowercase(), self.count);
        self.count += 1;
        let source = self.graph.add_source(SourceNode { name: name.clone(), op: op.name().into(), opset: 20 });
        let mut b = Builder::new(&mut self.graph, BTreeSet::from([source]));
        let v = b.op(op, inputs).unwrap();
        let nodes = b.nodes;
        self.graph.nodes[nodes[0].index()].name = name;
        self.graph.regions[0].nodes.extend(nodes);
        v
    }
    pub fn constant(&mut self, t: Tensor) -> Value {
        self.graph.add_constant(t, "")
    }
    pub fn weights(&mut self, dims: &[usize]) -> Value {
        let fan: usize = dims[1..].iter().product();
        let t = self.random.tensor(dims, 1.5 / (fan as f32).sqrt());
        self.constant(t)
    }
    pub fn dims(&self, v: Value) -> Vec<usize> {
        self.graph.ty(v).as_tensor().unwrap().known_dims().unwrap()
    }
    pub fn conv(&mut self, x: Value, out: usize, k: [usize; 2], stride: i64, pad: i64, group: usize) -> Value {
        let c = self.dims(x)[1];
        let w = self.weights(&[out, c / group, k[0], k[1]]);
        let b = self.random.tensor(&[out], 0.3);
        let b = self.constant(b);
        let op = Conv {
            auto_pad: "NOTSET".into(),
            dilations: vec![1, 1],
            group: group as i64,
            kernel_shape: k.map(|k| k as i64).to_vec(),
            pads: vec![pad; 4],
            strides: vec![stride; 2],
        };
        self.node(op, &[x, w, b])
    }
    pub fn relu(&mut self, x: Value) -> Value {
        self.node(Relu {}, &[x])
    }
    pub fn gemm(&mut self, x: Value, out: usize) -> Value {
        let k = self.dims(x)[1];
        let w = self.weights(&[out, k]);
        let b = self.random.tensor(&[out], 0.3);
        let b = self.constant(b);
        self.node(Gemm { alpha: 1.0, beta: 1.0, transA: 0, transB: 1 }, &[x, w, b])
    }
    pub fn flatten(&mut self, x: Value) -> Value {
        self.node(Flatten { axis: 1 }, &[x])
    }
    pub fn output(&mut self, v: Value) {
        let name = format!("y{}", self.graph.regions[0].results.len());
        self.graph.values[v.index()].name = name;
        self.graph.regions[0].results.push(v);
    }
    /// Inputs of `n` runs.
    pub fn inputs(&mut self, n: usize) -> Vec<Vec<Tensor>> {
        let dims: Vec<Vec<usize>> = self.graph.inputs().to_vec().iter().map(|&v| self.dims(v)).collect();
        (0..n).map(|_| dims.iter().map(|d| self.random.tensor(d, 1.0)).collect()).collect()
    }
}

/// The graph of integer operators and its design.
pub fn road(graph: Graph, options: &Options) -> (Graph, Design) {
    let graph = prepare(graph, options).unwrap_or_else(|p| panic!("{p}"));
    let design = convert(&graph).unwrap_or_else(|p| panic!("{p}\n{}", infc_ir::text::print(&graph)));
    (graph, design)
}

/// The golden model gives what the graph gives, bit for bit.
pub fn golden_is_the_graph(graph: &Graph, design: &Design, inputs: &[Tensor]) {
    let want = interp::run_tensors(graph, inputs).unwrap_or_else(|p| panic!("{p}"));
    let got = golden::run_tensors(design, inputs).unwrap_or_else(|p| panic!("{p}"));
    assert_eq!(want.len(), got.len());
    for (w, g) in want.iter().zip(&got) {
        assert_eq!((w.dtype, &w.dims), (g.dtype, &g.dims));
        let differ = (0..w.len()).filter(|&i| w.float(i) != g.float(i)).count();
        assert_eq!(differ, 0, "of {} in\n{}", w.len(), infc_ir::text::print(graph));
    }
}
