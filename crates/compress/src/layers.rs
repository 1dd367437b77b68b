//! The layers of a model: nodes with constant weights, as compression sees them, and what they cost.

use infc_ir::expr::Node as ExprNode;
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::{DType, Expr, Op, Problems, Tensor};
use std::collections::HashMap;

/// What a layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A convolution.
    Conv,
    /// A transposed convolution.
    ConvTranspose,
    /// A matrix product with constants on the right.
    MatMul,
    /// A matrix product with bias.
    Gemm,
    /// A table that is looked up (an embedding).
    Table,
    /// LSTM, GRU or RNN.
    Recurrent,
}

/// A node with constant weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The node.
    pub node: Node,
    /// The model's name of it, or of its result.
    pub name: String,
    /// What it computes.
    pub kind: Kind,
    /// The operand that it transforms.
    pub x: Value,
    /// Operands that are weights: which, and the axis of their output channels.
    pub weights: Vec<(usize, usize)>,
    /// Axis of `x` along which the sum is taken; `None` for tables.
    pub sum_axis: Option<usize>,
    /// Groups of a convolution.
    pub group: usize,
}

/// A weight tensor as a matrix: output channels by what is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    outer: usize,
    /// Output channels.
    pub channels: usize,
    inner: usize,
}

impl Grid {
    /// Of a tensor whose output channels are on `axis`.
    pub fn new(dims: &[usize], axis: usize) -> Grid {
        Grid { outer: dims[..axis].iter().product(), channels: dims[axis], inner: dims[axis + 1..].iter().product() }
    }
    /// Terms of a sum.
    pub fn depth(self) -> usize {
        self.outer * self.inner
    }
    /// Where the weight of channel `c` and term `k` lies.
    pub fn at(self, c: usize, k: usize) -> usize {
        (k / self.inner * self.channels + c) * self.inner + k % self.inner
    }
}

/// All layers of the main region with weights in f32.
pub fn layers(g: &Graph) -> Vec<Layer> {
    g.region(Graph::MAIN).nodes.iter().filter_map(|&n| layer(g, n)).collect()
}

/// The node as a layer.
pub fn layer(g: &Graph, n: Node) -> Option<Layer> {
    let data = g.node(n);
    let dims = |i: usize| {
        let t = data.operand(i).and_then(|v| g.constant(v))?;
        (t.dtype == DType::F32 && !t.is_empty()).then_some(t.dims.clone())
    };
    let rank = |i: usize| data.operand(i).and_then(|v| g.ty(v).as_tensor()).map(|t| t.rank());
    let is_f32 = |v: Value| g.ty(v).dtype() == Some(DType::F32);
    let activation = data.operand(0).filter(|&v| g.constant(v).is_none() && is_f32(v));
    let (kind, x, weights, sum_axis, group) = match &data.op {
        Op::Conv(op) => (Kind::Conv, activation?, vec![(1, dims(1).map(|_| 0)?)], Some(1), op.group),
        Op::ConvTranspose(op) => (Kind::ConvTranspose, activation?, vec![(1, dims(1).map(|_| 1)?)], Some(1), op.group),
        Op::MatMul(_) => {
            let axis = dims(1).filter(|d| d.len() == 2).map(|_| 1)?;
            (Kind::MatMul, activation?, vec![(1, axis)], Some(rank(0)?.checked_sub(1)?), 1)
        }
        Op::Gemm(op) => {
            let axis = dims(1).map(|_| usize::from(op.transB == 0))?;
            (Kind::Gemm, activation?, vec![(1, axis)], Some(usize::from(op.transA == 0)), 1)
        }
        // Small tables are not worth a scale for each row.
        Op::Gather(op) if op.axis == 0 => {
            let big = dims(0).is_some_and(|d| d.len() == 2 && d[0] * d[1] >= 1024);
            let index = data.operand(1).filter(|&v| big && g.constant(v).is_none())?;
            (Kind::Table, index, vec![(0, 0)], None, 1)
        }
        Op::GRU(_) | Op::LSTM(_) | Op::RNN(_) => {
            let slots = [1, 2].into_iter().filter(|&i| dims(i).is_some()).map(|i| (i, 1)).collect::<Vec<_>>();
            (Kind::Recurrent, activation.filter(|_| slots.len() == 2)?, slots, Some(2), 1)
        }
        _ => return None,
    };
    Some(Layer { node: n, name: name(g, n), kind, x, weights, sum_axis, group: group.max(1) as usize })
}

/// The model's name for a node, else for its first result, else its origin.
pub fn name(g: &Graph, n: Node) -> String {
    let data = g.node(n);
    let result = data.outputs.first().map_or("", |&v| &g.value(v).name);
    let source = || data.origin.iter().next().map_or(String::new(), |s| g.sources[s.index()].name.clone());
    // A pass may have built the node: who reads reports knows the model's.
    let names = [data.name.clone(), source(), result.to_owned()];
    names.into_iter().find(|name| !name.is_empty()).unwrap_or_default()
}

impl Layer {
    /// The weights of slot `slot`.
    pub fn weight<'a>(&self, g: &'a Graph, slot: usize) -> &'a Tensor {
        g.node(self.node).operand(slot).and_then(|v| g.constant(v)).expect("weights are constants: checked by `layer`")
    }
    /// Its weights as a matrix.
    pub fn grid(&self, g: &Graph, (slot, axis): (usize, usize)) -> Grid {
        Grid::new(&self.weight(g, slot).dims, axis)
    }
    /// The input channel (position along `sum_axis`) that term `k` of output channel `c` reads.
    pub fn input_channel(&self, g: &Graph, c: usize, k: usize) -> usize {
        let (slot, axis) = self.weights[0];
        let dims = &self.weight(g, slot).dims;
        match self.kind {
            Kind::Conv => {
                let window: usize = dims[2..].iter().product();
                c / (dims[0] / self.group).max(1) * dims[1] + k / window
            }
            Kind::ConvTranspose => k / dims[2..].iter().product::<usize>(),
            Kind::MatMul | Kind::Gemm | Kind::Table => k,
            Kind::Recurrent => k % dims[axis + 1..].iter().product::<usize>(),
        }
    }
}

/// Values of the symbols in the dims of the inputs, for inputs of these shapes.
pub fn symbols(g: &Graph, inputs: &[Tensor]) -> HashMap<&'static str, i64> {
    let mut out = HashMap::new();
    for (&v, t) in g.inputs().iter().zip(inputs) {
        for (d, &n) in g.ty(v).as_tensor().map_or(&[][..], |t| &t.dims).iter().zip(&t.dims) {
            if let ExprNode::Sym(s) = d.node() {
                out.insert(*s, n as i64);
            }
        }
    }
    out
}

/// Multiplications with additions of each contraction for inputs of these shapes, and whether they are taken on integers. What
/// depends on data counts as 0.
pub fn macs(g: &Graph, inputs: &[Tensor]) -> Vec<(Node, u64, bool)> {
    let symbols = symbols(g, inputs);
    let leaf = |e: Expr| match e.node() {
        ExprNode::Sym(s) => symbols.get(s).copied(),
        _ => None,
    };
    let mut out = vec![];
    for r in g.live_regions() {
        for &n in &g.region(r).nodes {
            let data = g.node(n);
            let sizes = |v: Option<Value>| -> Option<Vec<u64>> {
                let t = g.ty(v?).as_tensor()?;
                t.dims.iter().map(|d| d.eval(&leaf).and_then(|n| u64::try_from(n).ok())).collect()
            };
            let (x, w, y) = (sizes(data.operand(0)), sizes(data.operand(1)), sizes(data.outputs.first().copied()));
            let count = |v: &Option<Vec<u64>>| v.as_ref().map_or(0, |d| d.iter().product::<u64>());
            let after_first = |v: &Option<Vec<u64>>| v.as_ref().map_or(0, |d| d.iter().skip(1).product::<u64>());
            let amount = match &data.op {
                Op::Conv(_) | Op::ConvInteger(_) => count(&y) * after_first(&w),
                Op::QLinearConv(_) => count(&y) * after_first(&sizes(data.operand(3))),
                Op::ConvTranspose(_) => count(&x) * after_first(&w),
                Op::MatMul(_) | Op::MatMulInteger(_) | Op::QLinearMatMul(_) => {
                    count(&y) * x.as_ref().and_then(|d| d.last().copied()).unwrap_or(0)
                }
                Op::Gemm(op) => {
                    let axis = usize::from(op.transA == 0);
                    count(&y) * x.as_ref().and_then(|d| d.get(axis).copied()).unwrap_or(0)
                }
                Op::GRU(_) | Op::LSTM(_) | Op::RNN(_) => {
                    let steps = x.as_ref().map_or(0, |d| d.iter().take(2).product::<u64>());
                    steps * (count(&w) + count(&sizes(data.operand(2))))
                }
                _ => continue,
            };
            out.push((n, amount, on_integers(g, n)));
        }
    }
    out
}

/// Both factors come from stored integers.
fn on_integers(g: &Graph, n: Node) -> bool {
    let data = g.node(n);
    let stored = |i: usize| {
        data.operand(i).is_some_and(|v| match g.value(v).def {
            Def::Output(p, _) => {
                let p = g.node(p);
                let int = p.operand(0).and_then(|v| g.ty(v).dtype()).is_some_and(|d| d.is_int() && d.bits() <= 8);
                let block = matches!(&p.op, Op::DequantizeLinear(op) if op.block_size == 0);
                int && block
            }
            Def::Param(..) | Def::Constant(_) => false,
        })
    };
    let activation = data.operand(0).is_some_and(|v| match g.value(v).def {
        Def::Output(p, _) => g.node(p).operand(0).is_some_and(|q| g.constant(q).is_none()),
        Def::Param(..) | Def::Constant(_) => false,
    });
    match &data.op {
        Op::QLinearConv(_) | Op::QLinearMatMul(_) | Op::ConvInteger(_) | Op::MatMulInteger(_) => true,
        Op::Conv(_) | Op::MatMul(_) | Op::Gemm(_) => activation && stored(0) && stored(1),
        _ => false,
    }
}

/// The model as it is compressed: constants folded, batch normalisation in the weights, every node still an ONNX operator.
pub fn prepare(g: &Graph) -> Result<Graph, Problems> {
    let mut g = g.clone();
    let names = ["shape", "fold", "cse", "dce", "canon", "fold", "batchnorm", "fold", "cse", "dce"];
    let pipeline = names.map(str::to_owned).to_vec();
    let options = infc_passes::Options { pipeline, portable: true, ..infc_passes::Options::default() };
    infc_passes::run(&mut g, &options)?;
    // Passes leave dead entries behind.
    Ok(g.compact())
}
