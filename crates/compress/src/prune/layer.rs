//! Layers with constant weights as linear maps: the rows of features that they multiply, their weights as a matrix, their bias.
//!
//! A convolution is a matrix over windows (channel of the group, then kernel position); a grouped one is a matrix a group.

use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::{DType, Op, Tensor};

/// A layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its node.
    pub node: Node,
    /// Its data operand.
    pub data: Value,
    /// Its weights, a constant of f32.
    pub weight: Value,
    /// Where its bias is.
    pub bias: Bias,
    /// How it reads.
    pub kind: Kind,
    /// Number of groups.
    pub groups: usize,
}

/// Where a bias can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// Operand 2 of the node, there or not.
    Operand,
    /// A constant vector (its operand number) of the addition that alone uses the result.
    Added(Node, usize),
    /// Nowhere.
    None,
}

/// How a layer reads its data.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Windows of `[N, C, ...]`.
    Conv {
        /// Extents of the kernel.
        kernel: Vec<usize>,
        /// Strides.
        strides: Vec<usize>,
        /// Dilations.
        dilations: Vec<usize>,
        /// Padding at the beginning of each axis; `None` where `auto_pad` says.
        pads: Option<Vec<i64>>,
        /// `SAME_LOWER`: the odd element is at the beginning.
        lower: bool,
    },
    /// Rows `[..., K]` by `[K, N]`, or `[N, K]` if `transposed`.
    Matrix {
        /// The weights are `[N, K]`.
        transposed: bool,
    },
}

/// The layers of the model's main region, in order. `f32` only; transposed convolutions and batched weights are not among them.
pub fn layers(g: &Graph) -> Vec<Layer> {
    g.region(Graph::MAIN).nodes.iter().filter_map(|&n| layer(g, n)).collect()
}

fn layer(g: &Graph, n: Node) -> Option<Layer> {
    let node = g.node(n);
    let (data, weight) = (node.operand(0)?, node.operand(1)?);
    let w = g.constant(weight).filter(|w| w.dtype == DType::F32 && !w.is_empty())?;
    g.constant(data).is_none().then_some(())?;
    let (kind, groups) = match &node.op {
        Op::Conv(op) => {
            let axes = w.dims.len() - 2;
            let list = |l: &[i64], default: usize| -> Vec<usize> {
                if l.is_empty() { vec![default; axes] } else { l.iter().map(|&v| v as usize).collect() }
            };
            let pads = match op.auto_pad.as_str() {
                "SAME_UPPER" | "SAME_LOWER" => None,
                "VALID" => Some(vec![0; axes]),
                _ if op.pads.is_empty() => Some(vec![0; axes]),
                _ => Some(op.pads[..axes].to_vec()),
            };
            let kind = Kind::Conv {
                kernel: w.dims[2..].to_vec(),
                strides: list(&op.strides, 1),
                dilations: list(&op.dilations, 1),
                pads,
                lower: op.auto_pad == "SAME_LOWER",
            };
            (kind, op.group as usize)
        }
        Op::Gemm(op) if op.transA == 0 && op.alpha == 1.0 && op.beta == 1.0 => (Kind::Matrix { transposed: op.transB != 0 }, 1),
        Op::MatMul(_) if w.dims.len() == 2 && g.ty(data).as_tensor()?.rank() >= 2 => (Kind::Matrix { transposed: false }, 1),
        _ => return None,
    };
    let bias = bias(g, n);
    Some(Layer { node: n, data, weight, bias, kind, groups })
}

fn bias(g: &Graph, n: Node) -> Bias {
    let node = g.node(n);
    if !matches!(node.op, Op::MatMul(_)) {
        let vector = |v: Value| g.constant(v).is_some_and(|t| t.dims.len() == 1 && t.dtype == DType::F32);
        let width = g.ty(node.outputs[0]).as_tensor().and_then(|t| t.dims.get(1)?.known());
        let fits = |v: Value| vector(v) && g.constant(v).map(|t| t.len() as i64) == width;
        return if node.operand(2).is_none_or(fits) { Bias::Operand } else { Bias::None };
    }
    let y = node.outputs[0];
    let mut users = g.region(Graph::MAIN).nodes.iter().filter(|&&u| g.node(u).inputs.contains(&Some(y)));
    let (Some(&user), None) = (users.next(), users.next()) else { return Bias::None };
    let width = g.ty(y).as_tensor().and_then(|t| t.dims.last()?.known());
    let fits = |k: usize| {
        let c = g.node(user).operand(k).and_then(|v| g.constant(v));
        c.is_some_and(|t| t.dtype == DType::F32 && t.dims.len() == 1 && Some(t.len() as i64) == width)
    };
    match g.node(user).op {
        Op::Add(_) if !g.outputs().contains(&y) => (0..2).find(|&k| fits(k)).map_or(Bias::None, |k| Bias::Added(user, k)),
        _ => Bias::None,
    }
}

impl Layer {
    /// Rows of the matrix of each group.
    pub fn outputs(&self, g: &Graph) -> usize {
        let dims = &g.constant(self.weight).expect("a constant").dims;
        match self.kind {
            Kind::Conv { .. } => dims[0] / self.groups,
            Kind::Matrix { transposed } => dims[usize::from(!transposed)],
        }
    }
    /// Columns of the matrix of each group.
    pub fn features(&self, g: &Graph) -> usize {
        let w = g.constant(self.weight).expect("a constant");
        match self.kind {
            Kind::Conv { .. } => w.len() / w.dims[0],
            Kind::Matrix { transposed } => w.dims[usize::from(transposed)],
        }
    }
    /// Columns that one position of the data's contracted axis stands for.
    pub fn columns_per_channel(&self) -> usize {
        match &self.kind {
            Kind::Conv { kernel, .. } => kernel.iter().product(),
            Kind::Matrix { .. } => 1,
        }
    }
    /// The axis of the weights that is contracted.
    pub fn contracted_axis(&self) -> usize {
        match self.kind {
            Kind::Conv { .. } => 1,
            Kind::Matrix { transposed } => usize::from(transposed),
        }
    }
    /// The matrix of a group, `[outputs, features]`.
    pub fn matrix(&self, g: &Graph, group: usize) -> Vec<f32> {
        let w = g.constant(self.weight).expect("a constant");
        let (m, f, all) = (self.outputs(g), self.features(g), w.to_vec::<f32>());
        match self.kind {
            Kind::Conv { .. } => all[group * m * f..(group + 1) * m * f].to_vec(),
            Kind::Matrix { transposed: true } => all,
            Kind::Matrix { transposed: false } => (0..m * f).map(|i| all[(i % f) * m + i / f]).collect(),
        }
    }
    /// The weights with these matrices, one a group.
    pub fn weights(&self, g: &Graph, matrices: &[Vec<f32>]) -> Tensor {
        let w = g.constant(self.weight).expect("a constant");
        let (m, f) = (self.outputs(g), self.features(g));
        let values = match self.kind {
            Kind::Conv { .. } | Kind::Matrix { transposed: true } => matrices.concat(),
            Kind::Matrix { transposed: false } => (0..m * f).map(|i| matrices[0][(i % m) * f + i / m]).collect(),
        };
        Tensor::from_vec(w.dims.clone(), values)
    }
    /// The bias as the layer adds it; zeros if it has none.
    pub fn bias_values(&self, g: &Graph) -> Vec<f32> {
        let v = match self.bias {
            Bias::Operand => g.node(self.node).operand(2),
            Bias::Added(node, k) => g.node(node).operand(k),
            Bias::None => None,
        };
        v.and_then(|v| g.constant(v)).map_or_else(|| vec![0.0; self.outputs(g) * self.groups], |t| t.to_vec())
    }
    /// Gives the layer another bias of the same length; the vector must have no other user.
    pub fn set_bias(&self, g: &mut Graph, values: Vec<f32>) {
        let (node, k) = match self.bias {
            Bias::Operand => (self.node, 2),
            Bias::Added(node, k) => (node, k),
            Bias::None => return,
        };
        let tensor = Tensor::from_vec([values.len()], values);
        match g.node(node).operand(k) {
            Some(v) => g.values[v.index()].def = Def::Constant(tensor),
            None => {
                let v = g.add_constant(tensor, format!("{}_bias", g.value(self.weight).name));
                let inputs = &mut g.nodes[node.index()].inputs;
                inputs.resize(inputs.len().max(k + 1), None);
                inputs[k] = Some(v);
            }
        }
    }
    /// Extents of the windows' positions for data of these dims (`[N, ...]`), and the padding before each axis.
    fn windows(&self, dims: &[usize]) -> (Vec<usize>, Vec<i64>) {
        let Kind::Conv { kernel, strides, dilations, pads, lower } = &self.kind else { return (vec![], vec![]) };
        let mut out = vec![];
        let mut before = vec![];
        for i in 0..kernel.len() {
            let (size, reach) = (dims[2 + i] as i64, (dilations[i] * (kernel[i] - 1) + 1) as i64);
            if let Some(p) = pads {
                before.push(p[i]);
                out.push(0); // the result's dims are read off the result
            } else {
                let n = (size + strides[i] as i64 - 1) / strides[i] as i64;
                let total = ((n - 1) * strides[i] as i64 + reach - size).max(0);
                before.push(if *lower { total - total / 2 } else { total / 2 });
                out.push(n as usize);
            }
        }
        (out, before)
    }
    /// Number of rows in a result.
    pub fn rows(&self, y: &Tensor) -> usize {
        match self.kind {
            Kind::Conv { .. } => y.len() / y.dims[1].max(1),
            Kind::Matrix { .. } => y.len() / y.dims.last().copied().unwrap_or(1).max(1),
        }
    }
    /// The features of chosen rows of a group, `[picked, features]`; `out` has the dims of the result.
    pub fn read(&self, x: &Tensor, out: &[usize], group: usize, picked: &[usize]) -> Vec<f32> {
        let data: Vec<f32> = x.to_vec();
        let Kind::Conv { kernel, strides, dilations, .. } = &self.kind else {
            let k = x.dims.last().copied().unwrap_or(1);
            return picked.iter().flat_map(|&r| data[r * k..(r + 1) * k].iter().copied()).collect();
        };
        let channels = x.dims[1] / self.groups;
        let (_, before) = self.windows(&x.dims);
        let (space, positions): (usize, usize) = (x.dims[2..].iter().product(), out[2..].iter().product());
        let taps: usize = kernel.iter().product();
        let mut rows = Vec::with_capacity(picked.len() * channels * taps);
        let mut offsets = vec![None; taps];
        for &r in picked {
            let (n, mut p) = (r / positions, r % positions);
            let mut at = vec![0; kernel.len()];
            for i in (0..kernel.len()).rev() {
                at[i] = p % out[2 + i];
                p /= out[2 + i];
            }
            for (t, offset) in offsets.iter_mut().enumerate() {
                let (mut t, mut place, mut scale, mut inside) = (t, 0usize, 1usize, true);
                for i in (0..kernel.len()).rev() {
                    let (k, size) = (t % kernel[i], x.dims[2 + i]);
                    t /= kernel[i];
                    let pos = (at[i] * strides[i] + k * dilations[i]) as i64 - before[i];
                    inside &= (0..size as i64).contains(&pos);
                    place += pos.clamp(0, size as i64 - 1) as usize * scale;
                    scale *= size;
                }
                *offset = inside.then_some(place);
            }
            for c in 0..channels {
                let base = (n * x.dims[1] + group * channels + c) * space;
                rows.extend(offsets.iter().map(|o| o.map_or(0.0, |o| data[base + o])));
            }
        }
        rows
    }
    /// The results of chosen rows of a group, `[picked, outputs]`, only the outputs in `keep`.
    pub fn read_out(&self, y: &Tensor, group: usize, keep: &[usize], picked: &[usize]) -> Vec<f32> {
        let data: Vec<f32> = y.to_vec();
        match self.kind {
            Kind::Conv { .. } => {
                let (channels, space): (usize, usize) = (y.dims[1], y.dims[2..].iter().product());
                let own = channels / self.groups;
                let at = |r: usize, m: usize| data[((r / space) * channels + group * own + m) * space + r % space];
                picked.iter().flat_map(|&r| keep.iter().map(move |&m| at(r, m))).collect()
            }
            Kind::Matrix { .. } => {
                let width = y.dims.last().copied().unwrap_or(1);
                picked.iter().flat_map(|&r| keep.iter().map(move |&m| (r, m))).map(|(r, m)| data[r * width + m]).collect()
            }
        }
    }
}

/// The node that makes a value.
pub fn producer(g: &Graph, v: Value) -> Option<Node> {
    match g.value(v).def {
        Def::Output(n, _) => Some(n),
        Def::Param(..) | Def::Constant(_) => None,
    }
}

/// What happens to a layer's result before it is used elsewhere: `relu(factor * y + shift + other)`.
#[derive(Clone, Debug)]
pub struct After {
    /// Of each output.
    pub factor: Vec<f64>,
    /// Of each output.
    pub shift: Vec<f64>,
    /// A computed value that is added.
    pub other: Option<Value>,
    /// A Relu ends it.
    pub relu: bool,
}

/// Follows a result through its bias, batch normalisation, an addition and a Relu, as far as each is the only use.
pub fn after(g: &Graph, l: &Layer) -> After {
    let outputs = l.outputs(g) * l.groups;
    let mut out = After { factor: vec![1.0; outputs], shift: vec![0.0; outputs], other: None, relu: false };
    let mut v = g.node(l.node).outputs[0];
    while !g.outputs().contains(&v) {
        let mut users = g.region(Graph::MAIN).nodes.iter().filter(|&&u| g.node(u).inputs.contains(&Some(v)));
        let (Some(&user), None) = (users.next(), users.next()) else { break };
        let node = g.node(user);
        let constant = |k: usize| node.operand(k).and_then(|v| g.constant(v));
        match &node.op {
            Op::BatchNormalization(op) if node.operand(0) == Some(v) && out.other.is_none() => {
                let (Some(scale), Some(bias), Some(mean), Some(variance)) = (constant(1), constant(2), constant(3), constant(4))
                else {
                    break;
                };
                for m in 0..outputs {
                    let f = scale.float(m) / (variance.float(m) + f64::from(op.epsilon)).sqrt();
                    out.factor[m] *= f;
                    out.shift[m] = (out.shift[m] - mean.float(m)) * f + bias.float(m);
                }
            }
            Op::Add(_) => {
                let Some(&other) = node.inputs.iter().flatten().find(|&&o| o != v) else { break };
                match g.constant(other) {
                    Some(t) if t.dims.len() == 1 && t.len() == outputs => {
                        (0..outputs).for_each(|m| out.shift[m] += t.float(m));
                    }
                    None if out.other.is_none() && g.ty(other) == g.ty(v) && matches!(g.value(other).def, Def::Output(..)) => {
                        out.other = Some(other);
                    }
                    _ => break,
                }
            }
            Op::Relu(_) => {
                out.relu = true;
                break;
            }
            _ => break,
        }
        v = node.outputs[0];
    }
    if out.factor.iter().any(|f| f.abs() < 1e-3) {
        (out.other, out.relu) = (None, false); // what is multiplied by nearly 0 cannot make up for anything
    }
    out
}
