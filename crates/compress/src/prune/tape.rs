//! A graph as a list of differentiable steps over f32 buffers, for inputs of fixed dims: its outputs, and by reverse accumulation the gradient
//! of a loss of the outputs by the weights of its layers.
//!
//! What a step reads where is worked out once. Windows of convolutions and pooling come from [`Layer::read`], broadcasts and movements
//! from the operator itself, run on the numbers of the elements. Steps that depend on no input are run once.

use super::layer::{Bias, Kind, Layer, layers, producer};
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::interp::{self, Item};
use infc_ir::op::{Add, normal_axis};
use infc_ir::{DType, Op, Problem, Problems, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// Operators that are followed, for people.
const KNOWN: &str = "Conv, Gemm and MatMul with constant weights, BatchNormalization, Add, Sub, Mul, Relu, LeakyRelu, Clip, Sigmoid, Tanh, MaxPool, \
                     AveragePool, GlobalAveragePool, ReduceMean, Concat, Split, Slice, Transpose and reshapes";
/// Stands for an element of the padding.
const OUTSIDE: u32 = u32::MAX;
/// The most elements of a value: their numbers have to be exact in f32.
const MOST: usize = 1 << 24;

/// A function of one element.
#[derive(Clone, Copy, Debug)]
enum Unary {
    /// `x`, and this times `x` below 0.
    Leaky(f32),
    Clip(f32, f32),
    Sigmoid,
    Tanh,
}

#[derive(Clone, Copy, Debug)]
enum Binary {
    Add,
    Sub,
    Mul,
}

#[derive(Debug)]
enum Step {
    /// Groups of matrices `[m, k]` times columns `[k, p]`, gathered from `x`, scattered to `y`.
    Product {
        x: usize,
        w: usize,
        bias: Option<usize>,
        y: usize,
        size: [usize; 4],
        columns: Vec<u32>,
        places: Vec<u32>,
    },
    /// A factor and a shift for each channel.
    Channels {
        x: usize,
        y: usize,
        factor: Vec<f32>,
        shift: Vec<f32>,
        inner: usize,
    },
    Unary {
        x: usize,
        y: usize,
        f: Unary,
    },
    Binary {
        f: Binary,
        of: [usize; 2],
        y: usize,
        at: [Vec<u32>; 2],
    },
    /// Elements of others.
    Move {
        from: Vec<(usize, u32)>,
        y: usize,
    },
    /// The first largest of each window.
    Largest {
        x: usize,
        y: usize,
        windows: Vec<u32>,
        taps: usize,
    },
    /// The sum of each window, times a factor.
    Sums {
        x: usize,
        y: usize,
        windows: Vec<u32>,
        taps: usize,
        factor: Vec<f32>,
    },
}

/// The steps.
pub(crate) struct Tape {
    steps: Vec<Step>,
    /// Elements of each slot.
    sizes: Vec<usize>,
    /// Slots of the inputs; `None` where an input is not of f32 or not used.
    inputs: Vec<Option<usize>>,
    /// Slots of the outputs; `None` where an output is not of f32.
    pub outputs: Vec<Option<usize>>,
    /// Slots of constants, with their values where they are not to be fitted.
    constants: Vec<(usize, Option<Vec<f32>>)>,
    /// Slots of what is fitted, in the order of [`Parameters`].
    pub fitted: Vec<usize>,
    /// The slot that each parameter's sums go to: how large these are says how large a step is.
    pub results: Vec<usize>,
    /// Whether a slot depends on what is fitted.
    needs: Vec<bool>,
}

/// Weights and biases that can be fitted: of layers whose weights no other shares.
pub(crate) struct Parameters {
    list: Vec<(Layer, bool)>,
}

impl Parameters {
    /// Those of a graph.
    pub fn of(g: &Graph) -> Parameters {
        let mut list = vec![];
        for l in layers(g).into_iter().filter(|l| !super::channel::shared(g, l)) {
            let has_bias = match l.bias {
                Bias::Operand => g.node(l.node).operand(2).is_some(),
                Bias::Added(..) => true,
                Bias::None => false,
            };
            list.push((l.clone(), false));
            if has_bias && bias_value(g, &l).is_some_and(|v| g.use_counts()[v.index()] == 1) {
                list.push((l, true));
            }
        }
        Parameters { list }
    }
    /// Their values.
    pub fn read(&self, g: &Graph) -> Vec<Vec<f32>> {
        let one = |(l, bias): &(Layer, bool)| match bias {
            true => l.bias_values(g),
            false => (0..l.groups).flat_map(|j| l.matrix(g, j)).collect(),
        };
        self.list.iter().map(one).collect()
    }
    /// Which of them are biases.
    pub fn biases(&self) -> Vec<bool> {
        self.list.iter().map(|x| x.1).collect()
    }
    /// Puts values into the graph.
    pub fn write(&self, g: &mut Graph, values: &[Vec<f32>]) {
        for ((l, bias), values) in self.list.iter().zip(values) {
            if *bias {
                l.set_bias(g, values.clone());
            } else {
                let each = values.len() / l.groups;
                let tensor = l.weights(g, &values.chunks(each).map(<[f32]>::to_vec).collect::<Vec<_>>());
                g.values[l.weight.index()].def = Def::Constant(tensor);
            }
        }
    }
    fn find(&self, node: Node, bias: bool) -> Option<usize> {
        self.list.iter().position(|(l, b)| l.node == node && *b == bias)
    }
}

fn bias_value(g: &Graph, l: &Layer) -> Option<Value> {
    match l.bias {
        Bias::Operand => g.node(l.node).operand(2),
        Bias::Added(node, k) => g.node(node).operand(k),
        Bias::None => None,
    }
}

/// The buffers of one run.
#[derive(Default)]
pub(crate) struct Buffers {
    values: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
    columns: Vec<f32>,
    sums: Vec<f32>,
    back: Vec<f32>,
}

impl Buffers {
    /// What the last run gave in a slot.
    pub fn value(&self, slot: usize) -> &[f32] {
        &self.values[slot]
    }
    /// The sums of gradients of a slot.
    pub fn gradient(&self, slot: usize) -> &[f32] {
        &self.gradients[slot]
    }
    /// Sets those of all that is fitted to 0.
    pub fn clear(&mut self, tape: &Tape) {
        tape.fitted.iter().for_each(|&s| self.gradients[s].fill(0.0));
    }
}

/// Kernel, strides, dilations, pads and `auto_pad` of windows.
type Windows<'a> = (&'a [i64], &'a [i64], &'a [i64], &'a [i64], &'a str);

/// While a tape is made.
struct Maker<'a> {
    g: &'a Graph,
    tape: Tape,
    slots: BTreeMap<Value, usize>,
    /// Values that are the same for all inputs of these dims.
    fixed: BTreeMap<Value, Tensor>,
    /// Dims of what nodes give.
    seen: BTreeMap<Value, Tensor>,
    layers: BTreeMap<Node, Layer>,
    parameters: &'a Parameters,
}

impl Tape {
    /// The steps of a graph for inputs of the dims of `inputs`. Operators that are not followed are an error.
    pub fn new(g: &Graph, inputs: &[Tensor], parameters: &Parameters) -> Result<Tape, Problems> {
        follows(g)?;
        let mut seen = BTreeMap::new();
        let items: Vec<Item> = inputs.iter().cloned().map(Item::Tensor).collect();
        interp::run_with(g, &items, &mut |n, items| {
            for (&v, item) in g.node(n).outputs.iter().zip(items) {
                item.as_tensor().into_iter().for_each(|t| _ = seen.insert(v, t.clone()));
            }
        })?;
        let tape = Tape {
            steps: vec![],
            sizes: vec![],
            inputs: vec![],
            outputs: vec![],
            constants: vec![],
            fitted: vec![usize::MAX; parameters.list.len()],
            results: vec![usize::MAX; parameters.list.len()],
            needs: vec![],
        };
        let layers = layers(g).into_iter().map(|l| (l.node, l)).collect();
        let mut m = Maker { g, tape, slots: BTreeMap::new(), fixed: BTreeMap::new(), seen, layers, parameters };
        for (&v, t) in g.inputs().iter().zip(inputs) {
            let slot = (t.dtype == DType::F32).then(|| m.slot(v, t.len(), false));
            m.tape.inputs.push(slot);
            m.seen.insert(v, t.clone());
        }
        for &n in &super::cut(g, g.outputs()).region(Graph::MAIN).nodes {
            m.node(n).map_err(|why| Problems::one(g.describe(n), why, format!("the fit of the outputs follows {KNOWN}")))?;
        }
        m.tape.outputs = g.outputs().iter().map(|v| m.slots.get(v).copied()).collect();
        for k in 0..parameters.list.len() {
            if m.tape.fitted[k] == usize::MAX {
                // A layer that no output depends on.
                let slot = m.tape.sizes.len();
                m.tape.sizes.push(0);
                m.tape.needs.push(false);
                (m.tape.fitted[k], m.tape.results[k]) = (slot, slot);
            }
        }
        Ok(m.tape)
    }
    /// Slots with the constants that are not fitted.
    pub fn constants(&self) -> Vec<Vec<f32>> {
        let mut out = vec![vec![]; self.sizes.len()];
        for (slot, values) in &self.constants {
            out[*slot].clone_from(values.as_ref().unwrap_or(&vec![]));
        }
        out
    }
    /// Buffers for runs.
    pub fn buffers(&self) -> Buffers {
        let empty = |of: &dyn Fn(usize) -> bool| {
            (0..self.sizes.len()).map(|s| vec![0.0; if of(s) { self.sizes[s] } else { 0 }]).collect()
        };
        let constant: BTreeSet<usize> = self.constants.iter().map(|c| c.0).collect();
        Buffers { values: empty(&|s| !constant.contains(&s)), gradients: empty(&|s| self.needs[s]), ..Buffers::default() }
    }
}

/// An error that names all nodes whose operator is not followed.
pub(crate) fn follows(g: &Graph) -> Result<(), Problems> {
    let layers: BTreeSet<Node> = layers(g).into_iter().map(|l| l.node).collect();
    let mut live: BTreeSet<Value> = g.inputs().iter().copied().collect();
    let mut problems = vec![];
    for &n in &super::cut(g, g.outputs()).region(Graph::MAIN).nodes {
        let node = g.node(n);
        if !node.inputs.iter().flatten().any(|v| live.contains(v)) || matches!(node.op, Op::Shape(_) | Op::Size(_)) {
            continue;
        }
        live.extend(&node.outputs);
        let known = match &node.op {
            Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_) => layers.contains(&n),
            Op::BatchNormalization(op) => !op.training_mode,
            Op::MaxPool(_) => node.outputs.len() == 1,
            Op::Add(_)
            | Op::Sub(_)
            | Op::Mul(_)
            | Op::Relu(_)
            | Op::LeakyRelu(_)
            | Op::Clip(_)
            | Op::Sigmoid(_)
            | Op::Tanh(_) => true,
            Op::AveragePool(_) | Op::GlobalAveragePool(_) | Op::ReduceMean(_) => true,
            op => moves(op),
        };
        if !known {
            let help = if problems.is_empty() { format!("the fit of the outputs follows {KNOWN}") } else { String::new() };
            problems.push(Problem { at: g.describe(n), message: "is an operator without a derivative here".into(), help });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

fn moves(op: &Op) -> bool {
    matches!(
        op,
        Op::Concat(_)
            | Op::Split(_)
            | Op::Slice(_)
            | Op::Transpose(_)
            | Op::Reshape(_)
            | Op::Flatten(_)
            | Op::Squeeze(_)
            | Op::Unsqueeze(_)
    ) || matches!(op, Op::Identity(_) | Op::Expand(_))
}

impl Maker<'_> {
    fn slot(&mut self, v: Value, size: usize, needs: bool) -> usize {
        let slot = self.tape.sizes.len();
        self.tape.sizes.push(size);
        self.tape.needs.push(needs);
        self.slots.insert(v, slot);
        slot
    }
    fn constant(&mut self, size: usize, values: Option<Vec<f32>>) -> usize {
        let slot = self.tape.sizes.len();
        self.tape.sizes.push(size);
        self.tape.needs.push(values.is_none());
        self.tape.constants.push((slot, values));
        slot
    }
    /// What a value holds on every run, if it does.
    fn known(&self, v: Value) -> Option<&Tensor> {
        self.g.constant(v).or_else(|| self.fixed.get(&v))
    }
    fn dims(&self, v: Value) -> Vec<usize> {
        self.known(v).or_else(|| self.seen.get(&v)).map_or(vec![], |t| t.dims.clone())
    }
    fn parameter(&mut self, node: Node, bias: bool, values: Vec<f32>, result: usize) -> usize {
        let found = self.parameters.find(node, bias);
        let size = values.len();
        let slot = self.constant(size, if found.is_some() { None } else { Some(values) });
        if let Some(k) = found {
            (self.tape.fitted[k], self.tape.results[k]) = (slot, result);
        }
        slot
    }
    /// The slot of an operand of f32.
    fn operand(&mut self, v: Value) -> Result<usize, String> {
        if let Some(&slot) = self.slots.get(&v) {
            return Ok(slot);
        }
        let t = self.known(v).filter(|t| t.dtype == DType::F32).ok_or("has an operand that is not f32")?.to_vec::<f32>();
        let slot = self.constant(t.len(), Some(t));
        self.slots.insert(v, slot);
        Ok(slot)
    }
    fn node(&mut self, n: Node) -> Result<(), String> {
        let node = self.g.node(n).clone();
        let results: Vec<Tensor> = node.outputs.iter().filter_map(|v| self.seen.get(v).cloned()).collect();
        let dims_alone = matches!(node.op, Op::Shape(_) | Op::Size(_));
        if dims_alone || node.inputs.iter().flatten().all(|&v| self.known(v).is_some()) {
            self.fixed.extend(node.outputs.iter().copied().zip(results));
            return Ok(());
        }
        let y = results
            .first()
            .filter(|_| results.iter().all(|t| t.dtype == DType::F32))
            .ok_or("gives values that are not f32")?
            .clone();
        let inputs: Vec<Value> = node.inputs.iter().flatten().copied().collect();
        if inputs.iter().map(|&v| self.dims(v).iter().product::<usize>()).chain([y.len()]).any(|n| n >= MOST) {
            return Err(format!("works on a value of {MOST} elements or more"));
        }
        let x = inputs[0];
        if let Some(layer) = self.layers.get(&n).cloned() {
            return self.product(n, &layer, &y);
        }
        let before = self.tape.steps.len();
        match &node.op {
            Op::BatchNormalization(op) => {
                let of = |k: usize| self.known(inputs[k]).map(|t| (0..t.len()).map(|i| t.float(i)).collect::<Vec<f64>>());
                let (Some(scale), Some(bias), Some(mean), Some(variance)) = (of(1), of(2), of(3), of(4)) else {
                    return Err("is computed with statistics that are not constant".into());
                };
                let factor: Vec<f64> =
                    (0..scale.len()).map(|i| scale[i] / (variance[i] + f64::from(op.epsilon)).sqrt()).collect();
                let shift = (0..scale.len()).map(|i| (bias[i] - mean[i] * factor[i]) as f32).collect();
                let factor = factor.into_iter().map(|f| f as f32).collect();
                let (x, out) = (self.operand(x)?, self.result(node.outputs[0], y.len(), &inputs));
                self.tape.steps.push(Step::Channels { x, y: out, factor, shift, inner: y.dims[2..].iter().product() });
            }
            Op::Add(_) | Op::Sub(_) | Op::Mul(_) => {
                let f = match node.op {
                    Op::Add(_) => Binary::Add,
                    Op::Sub(_) => Binary::Sub,
                    _ => Binary::Mul,
                };
                let bias = self.layers.values().find(|l| matches!(l.bias, Bias::Added(m, _) if m == n)).cloned();
                let mut of = [0; 2];
                for k in 0..2 {
                    of[k] = match &bias {
                        Some(l) if l.bias == Bias::Added(n, k) => {
                            let sums = self.operand(self.g.node(l.node).outputs[0])?;
                            self.parameter(l.node, true, l.bias_values(self.g), sums)
                        }
                        _ => self.operand(inputs[k])?,
                    };
                }
                let at = [self.broadcast(inputs[0], inputs[1])?, self.broadcast(inputs[1], inputs[0])?];
                let out = self.result(node.outputs[0], y.len(), &inputs);
                self.tape.needs[out] |= self.tape.needs[of[0]] || self.tape.needs[of[1]];
                self.tape.steps.push(Step::Binary { f, of, y: out, at });
            }
            Op::Relu(_) => self.unary(x, node.outputs[0], y.len(), Unary::Leaky(0.0))?,
            Op::LeakyRelu(op) => self.unary(x, node.outputs[0], y.len(), Unary::Leaky(op.alpha))?,
            Op::Sigmoid(_) => self.unary(x, node.outputs[0], y.len(), Unary::Sigmoid)?,
            Op::Tanh(_) => self.unary(x, node.outputs[0], y.len(), Unary::Tanh)?,
            Op::Clip(_) => {
                let bound = |k: usize, default: f32| match node.operand(k) {
                    None => Ok(default),
                    Some(v) => self.known(v).map(|t| t.float(0) as f32).ok_or("has bounds that are computed"),
                };
                let f = Unary::Clip(bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?);
                self.unary(x, node.outputs[0], y.len(), f)?;
            }
            Op::MaxPool(op) => {
                let kernel: Windows = (&op.kernel_shape, &op.strides, &op.dilations, &op.pads, &op.auto_pad);
                let (windows, taps) = self.windows(x, &y, kernel)?;
                let (x, out) = (self.operand(x)?, self.result(node.outputs[0], y.len(), &inputs));
                self.tape.steps.push(Step::Largest { x, y: out, windows, taps });
            }
            Op::AveragePool(op) => {
                let kernel: Windows = (&op.kernel_shape, &op.strides, &op.dilations, &op.pads, &op.auto_pad);
                let (windows, taps) = self.windows(x, &y, kernel)?;
                self.sums(&node.op, x, node.outputs[0], windows, taps)?;
            }
            Op::GlobalAveragePool(_) | Op::ReduceMean(_) => {
                let (windows, taps) = self.reduced(&node.op, &inputs, y.len())?;
                self.sums(&node.op, x, node.outputs[0], windows, taps)?;
            }
            op if moves(op) => self.movement(&node.op, &node.inputs, &node.outputs)?,
            _ => return Err("is an operator without a derivative here".into()),
        }
        debug_assert!(self.tape.steps.len() > before);
        Ok(())
    }
    /// The slot of what a step computes from these.
    fn result(&mut self, v: Value, size: usize, from: &[Value]) -> usize {
        let needs = from.iter().any(|v| self.slots.get(v).is_some_and(|&s| self.tape.needs[s]));
        self.slot(v, size, needs)
    }
    fn unary(&mut self, x: Value, y: Value, size: usize, f: Unary) -> Result<(), String> {
        let (from, out) = (self.operand(x)?, self.result(y, size, &[x]));
        self.tape.steps.push(Step::Unary { x: from, y: out, f });
        Ok(())
    }
    fn product(&mut self, n: Node, l: &Layer, y: &Tensor) -> Result<(), String> {
        let dims = self.dims(l.data);
        let (m, k, p) = (l.outputs(self.g), l.features(self.g), l.rows(y));
        if l.bias == Bias::None && self.g.node(n).operand(2).is_some() {
            return Err("adds a bias that is no constant vector".into());
        }
        let numbers = numbers(&dims);
        let picked: Vec<usize> = (0..p).collect();
        let places = Tensor::from_vec(y.dims.clone(), (0..y.len()).map(|i| i as f32).collect::<Vec<_>>());
        let (mut columns, mut at) = (vec![OUTSIDE; l.groups * k * p], vec![0; l.groups * m * p]);
        let outputs: Vec<usize> = (0..m).collect();
        for j in 0..l.groups {
            let rows = l.read(&numbers, &y.dims, j, &picked);
            for (r, row) in rows.chunks(k).enumerate() {
                // Numbers begin at 1; the padding is 0.
                row.iter().enumerate().for_each(|(f, &v)| columns[(j * k + f) * p + r] = (v as u32).wrapping_sub(1));
            }
            for (r, row) in l.read_out(&places, j, &outputs, &picked).chunks(m).enumerate() {
                row.iter().enumerate().for_each(|(o, &v)| at[(j * m + o) * p + r] = v as u32);
            }
        }
        let x = self.operand(l.data)?;
        let out = self.result(self.g.node(n).outputs[0], y.len(), &[l.data]);
        let weights = (0..l.groups).flat_map(|j| l.matrix(self.g, j)).collect();
        let w = self.parameter(n, false, weights, out);
        let bias = (l.bias == Bias::Operand && self.g.node(n).operand(2).is_some())
            .then(|| self.parameter(n, true, l.bias_values(self.g), out));
        self.tape.needs[out] |= self.tape.needs[w] || bias.is_some_and(|b| self.tape.needs[b]);
        self.tape.steps.push(Step::Product { x, w, bias, y: out, size: [l.groups, m, k, p], columns, places: at });
        Ok(())
    }
    /// Which element of `a` an operator on `a` and `b` reads for each of its results.
    fn broadcast(&self, a: Value, b: Value) -> Result<Vec<u32>, String> {
        let (a, b) = (self.dims(a), self.dims(b));
        let zeros = Tensor::zeros(DType::I64, b);
        let sum = interp::eval_op(&Add {}.into(), &[Some(counted(&a, 0)), Some(zeros)], 1).map_err(|f| f.0)?;
        Ok(sum[0].to_ints().into_iter().map(|i| i as u32).collect())
    }
    /// The elements of each window, for each output.
    fn windows(
        &self,
        x: Value,
        y: &Tensor,
        (kernel, strides, dilations, pads, auto): Windows,
    ) -> Result<(Vec<u32>, usize), String> {
        let dims = self.dims(x);
        let axes = kernel.len();
        let list =
            |l: &[i64]| -> Vec<usize> { if l.is_empty() { vec![1; axes] } else { l.iter().map(|&v| v as usize).collect() } };
        let pads = match auto {
            "SAME_UPPER" | "SAME_LOWER" => None,
            "VALID" => Some(vec![0; axes]),
            _ if pads.is_empty() => Some(vec![0; axes]),
            _ => Some(pads[..axes].to_vec()),
        };
        let taps: usize = kernel.iter().map(|&k| k as usize).product();
        let kind = Kind::Conv {
            kernel: kernel.iter().map(|&k| k as usize).collect(),
            strides: list(strides),
            dilations: list(dilations),
            pads,
            lower: auto == "SAME_LOWER",
        };
        let node = producer(self.g, x).or_else(|| self.g.region(Graph::MAIN).nodes.first().copied()).ok_or("has no node")?;
        let groups = dims[1];
        let layer = Layer { node, data: x, weight: x, bias: Bias::None, kind, groups };
        let rows = layer.rows(y);
        let positions: usize = y.dims[2..].iter().product();
        let (picked, numbers) = ((0..rows).collect::<Vec<_>>(), numbers(&dims));
        let mut windows = vec![OUTSIDE; y.len() * taps];
        for c in 0..groups {
            for (r, row) in layer.read(&numbers, &y.dims, c, &picked).chunks(taps).enumerate() {
                let o = (r / positions * groups + c) * positions + r % positions;
                row.iter().enumerate().for_each(|(t, &v)| windows[o * taps + t] = (v as u32).wrapping_sub(1));
            }
        }
        Ok((windows, taps))
    }
    /// The elements that each output of a mean over axes is taken of.
    fn reduced(&self, op: &Op, inputs: &[Value], outputs: usize) -> Result<(Vec<u32>, usize), String> {
        let dims = self.dims(inputs[0]);
        let axes: Vec<usize> = match (op, inputs.get(1)) {
            (Op::GlobalAveragePool(_), _) => (2..dims.len()).collect(),
            (Op::ReduceMean(op), None) if op.noop_with_empty_axes => vec![],
            (_, None) => (0..dims.len()).collect(),
            (Op::ReduceMean(op), Some(&v)) => {
                let list = self.known(v).ok_or("has axes that are computed")?.to_ints();
                match list.is_empty() && !op.noop_with_empty_axes {
                    true => (0..dims.len()).collect(),
                    false => list.iter().map(|&a| normal_axis(a, dims.len())).collect::<Result<_, _>>().map_err(|f| f.0)?,
                }
            }
            _ => return Err("is no mean".into()),
        };
        let mut of = vec![vec![]; outputs];
        for i in 0..dims.iter().product() {
            let (mut rest, mut o, mut scale) = (i, 0, 1);
            for a in (0..dims.len()).rev() {
                if !axes.contains(&a) {
                    o += rest % dims[a] * scale;
                    scale *= dims[a];
                }
                rest /= dims[a];
            }
            of[o].push(i as u32);
        }
        let taps = of.first().map_or(0, Vec::len);
        Ok((of.concat(), taps))
    }
    /// A mean of each window: how much an element counts is what the operator gives for ones.
    fn sums(&mut self, op: &Op, x: Value, y: Value, windows: Vec<u32>, taps: usize) -> Result<(), String> {
        let dims = self.dims(x);
        let size: usize = dims.iter().product();
        let factor: Vec<f32> = match op {
            Op::AveragePool(_) => {
                let ones = Tensor::from_vec(dims, vec![1f32; size]);
                let means = interp::eval_op(op, &[Some(ones)], 1).map_err(|f| f.0)?[0].to_vec::<f32>();
                let inside = windows.chunks(taps).map(|w| w.iter().filter(|&&i| i != OUTSIDE).count().max(1));
                means.iter().zip(inside).map(|(m, n)| m / n as f32).collect()
            }
            _ => vec![1.0 / taps.max(1) as f32; windows.len() / taps.max(1)],
        };
        let (from, out) = (self.operand(x)?, self.result(y, factor.len(), &[x]));
        self.tape.steps.push(Step::Sums { x: from, y: out, windows, taps, factor });
        Ok(())
    }
    /// Runs a movement on the numbers of the elements.
    fn movement(&mut self, op: &Op, inputs: &[Option<Value>], outputs: &[Value]) -> Result<(), String> {
        let (mut operands, mut sources, mut count) = (vec![], vec![], 0);
        for v in inputs {
            let Some(v) = *v else {
                operands.push(None);
                continue;
            };
            let float = self.slots.contains_key(&v) || self.known(v).is_some_and(|t| t.dtype == DType::F32);
            if float {
                let dims = self.dims(v);
                let (slot, size) = (self.operand(v)?, dims.iter().product::<usize>());
                operands.push(Some(counted(&dims, count)));
                sources.push((count, slot));
                count += size;
            } else {
                operands.push(Some(self.known(v).ok_or("moves by positions that are computed")?.clone()));
            }
        }
        let made = interp::eval_op(op, &operands, outputs.len()).map_err(|f| f.0)?;
        let live: Vec<Value> = inputs.iter().flatten().copied().collect();
        for (t, &v) in made.iter().zip(outputs) {
            let find = |i: i64| {
                let k = sources.partition_point(|s| s.0 as i64 <= i) - 1;
                (sources[k].1, (i - sources[k].0 as i64) as u32)
            };
            let from = t.to_ints().into_iter().map(find).collect();
            let y = self.result(v, t.len(), &live);
            self.tape.steps.push(Step::Move { from, y });
        }
        Ok(())
    }
}

/// The numbers of elements from 1, as f32.
fn numbers(dims: &[usize]) -> Tensor {
    Tensor::from_vec(dims.to_vec(), (1..=dims.iter().product::<usize>()).map(|i| i as f32).collect::<Vec<_>>())
}

/// The numbers of elements from `first`, as i64.
fn counted(dims: &[usize], first: usize) -> Tensor {
    Tensor::from_vec(dims.to_vec(), (0..dims.iter().product::<usize>()).map(|i| (first + i) as i64).collect::<Vec<_>>())
}

/// `y[i] += sum of w[k] x_k[i]` for rows `x_k` of `rows`.
fn add_rows(y: &mut [f32], weights: impl Fn(usize) -> f32, count: usize, rows: &[f32]) {
    let p = y.len();
    let mut k = 0;
    while k + 4 <= count {
        let w = [weights(k), weights(k + 1), weights(k + 2), weights(k + 3)];
        let (a, rest) = rows[k * p..(k + 4) * p].split_at(p);
        let (b, rest) = rest.split_at(p);
        let (c, d) = rest.split_at(p);
        for i in 0..p {
            y[i] += w[0] * a[i] + w[1] * b[i] + w[2] * c[i] + w[3] * d[i];
        }
        k += 4;
    }
    for k in k..count {
        let w = weights(k);
        y.iter_mut().zip(&rows[k * p..(k + 1) * p]).for_each(|(y, x)| *y += w * x);
    }
}

/// The sum of products, in eight parts.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut parts = [0f32; 8];
    let (whole, rest) = a.as_chunks::<8>();
    let (other, tail) = b.as_chunks::<8>();
    for (x, y) in whole.iter().zip(other) {
        (0..8).for_each(|i| parts[i] += x[i] * y[i]);
    }
    parts.iter().sum::<f32>() + rest.iter().zip(tail).map(|(x, y)| x * y).sum::<f32>()
}

impl Tape {
    /// Runs the steps. `constants` has a list for each slot of a constant, those that are fitted included.
    pub fn run(&self, inputs: &[Tensor], constants: &[Vec<f32>], b: &mut Buffers) {
        for (slot, t) in self.inputs.iter().zip(inputs) {
            slot.iter().for_each(|&s| b.values[s] = t.to_vec());
        }
        for step in &self.steps {
            self.forward(step, constants, b);
        }
    }
    fn forward(&self, step: &Step, constants: &[Vec<f32>], b: &mut Buffers) {
        let slot = step.result();
        let mut out = std::mem::take(&mut b.values[slot]);
        let get = |s: usize| if constants[s].is_empty() { &b.values[s] } else { &constants[s] };
        match step {
            Step::Product { x, w, bias, size: [groups, m, k, p], columns, places, .. } => {
                let (w, bias) = (&constants[*w], bias.map(|s| &constants[s]));
                b.columns.clear();
                let x = if constants[*x].is_empty() { &b.values[*x] } else { &constants[*x] };
                b.columns.extend(columns.iter().map(|&i| if i == OUTSIDE { 0.0 } else { x[i as usize] }));
                b.sums.resize(*p, 0.0);
                for row in 0..groups * m {
                    b.sums.fill(bias.map_or(0.0, |v| v[row]));
                    let j = row / m;
                    add_rows(&mut b.sums, |i| w[row * k + i], *k, &b.columns[j * k * p..(j + 1) * k * p]);
                    places[row * p..(row + 1) * p].iter().zip(&b.sums).for_each(|(&i, &v)| out[i as usize] = v);
                }
            }
            Step::Channels { x, factor, shift, inner, .. } => {
                let channels = factor.len();
                for (i, (y, x)) in out.chunks_mut((*inner).max(1)).zip(get(*x).chunks((*inner).max(1))).enumerate() {
                    let (f, s) = (factor[i % channels], shift[i % channels]);
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = f * x + s);
                }
            }
            Step::Unary { x, f, .. } => {
                let x = get(*x);
                match *f {
                    Unary::Leaky(a) => out.iter_mut().zip(x).for_each(|(y, &x)| *y = if x < 0.0 { a * x } else { x }),
                    Unary::Clip(low, high) => out.iter_mut().zip(x).for_each(|(y, &x)| *y = x.max(low).min(high)),
                    Unary::Sigmoid => out.iter_mut().zip(x).for_each(|(y, &x)| *y = 1.0 / (1.0 + (-x).exp())),
                    Unary::Tanh => out.iter_mut().zip(x).for_each(|(y, &x)| *y = x.tanh()),
                }
            }
            Step::Binary { f, of, at, .. } => {
                let (a, c) = (get(of[0]), get(of[1]));
                for (i, y) in out.iter_mut().enumerate() {
                    let (a, c) = (a[at[0][i] as usize], c[at[1][i] as usize]);
                    *y = match f {
                        Binary::Add => a + c,
                        Binary::Sub => a - c,
                        Binary::Mul => a * c,
                    };
                }
            }
            Step::Move { from, .. } => out.iter_mut().zip(from).for_each(|(y, &(s, i))| *y = get(s)[i as usize]),
            Step::Largest { x, windows, taps, .. } => {
                let x = get(*x);
                out.iter_mut().zip(windows.chunks(*taps)).for_each(|(y, w)| *y = x[largest(x, w)]);
            }
            Step::Sums { x, windows, taps, factor, .. } => {
                let x = get(*x);
                for ((y, w), f) in out.iter_mut().zip(windows.chunks((*taps).max(1))).zip(factor) {
                    *y = f * w.iter().filter(|&&i| i != OUTSIDE).map(|&i| x[i as usize]).sum::<f32>();
                }
            }
        }
        b.values[slot] = out;
    }
    /// After a run: adds the gradient by all that is fitted, for the gradient by the outputs that `seed` puts into zeros.
    pub fn back(&self, constants: &[Vec<f32>], b: &mut Buffers, seed: &mut dyn FnMut(usize, &[f32], &mut [f32])) {
        let mut fitted = vec![false; self.sizes.len()];
        self.fitted.iter().for_each(|&s| fitted[s] = true);
        (0..self.sizes.len()).filter(|&s| !fitted[s]).for_each(|s| b.gradients[s].fill(0.0));
        for (k, slot) in self.outputs.iter().enumerate() {
            if let Some(s) = slot.filter(|&s| self.needs[s]) {
                seed(k, &b.values[s], &mut b.gradients[s]);
            }
        }
        for step in self.steps.iter().rev().filter(|s| self.needs[s.result()]) {
            self.reverse(step, constants, b);
        }
    }
    fn reverse(&self, step: &Step, constants: &[Vec<f32>], b: &mut Buffers) {
        let slot = step.result();
        let dy = std::mem::take(&mut b.gradients[slot]);
        let (values, gradients) = (&b.values, &mut b.gradients);
        let get = |s: usize| if constants[s].is_empty() { &values[s] } else { &constants[s] };
        match step {
            Step::Product { x, w, bias, size: [groups, m, k, p], columns, places, .. } => {
                let from = get(*x);
                b.columns.clear();
                b.columns.extend(columns.iter().map(|&i| if i == OUTSIDE { 0.0 } else { from[i as usize] }));
                b.sums.clear();
                b.sums.extend(places.iter().map(|&i| dy[i as usize]));
                if let Some(bias) = bias.filter(|&s| self.needs[s]) {
                    let to = gradients[bias].iter_mut().zip(b.sums.chunks((*p).max(1)));
                    to.for_each(|(d, row)| *d += row.iter().sum::<f32>());
                }
                if self.needs[*w] {
                    for (row, d) in gradients[*w].chunks_mut(*k).enumerate() {
                        let (j, sums) = (row / m, &b.sums[row * p..(row + 1) * p]);
                        d.iter_mut()
                            .enumerate()
                            .for_each(|(i, d)| *d += dot(sums, &b.columns[(j * k + i) * p..(j * k + i + 1) * p]));
                    }
                }
                if self.needs[*x] {
                    let (w, to) = (&constants[*w], &mut gradients[*x]);
                    b.back.resize(*p, 0.0);
                    for j in 0..*groups {
                        for i in 0..*k {
                            b.back.fill(0.0);
                            add_rows(&mut b.back, |o| w[(j * m + o) * k + i], *m, &b.sums[j * m * p..(j + 1) * m * p]);
                            let at = &columns[(j * k + i) * p..(j * k + i + 1) * p];
                            at.iter().zip(&b.back).filter(|x| *x.0 != OUTSIDE).for_each(|(&i, v)| to[i as usize] += v);
                        }
                    }
                }
            }
            Step::Channels { x, factor, inner, .. } => {
                let channels = factor.len();
                for (i, (d, dy)) in gradients[*x].chunks_mut((*inner).max(1)).zip(dy.chunks((*inner).max(1))).enumerate() {
                    d.iter_mut().zip(dy).for_each(|(d, y)| *d += factor[i % channels] * y);
                }
            }
            Step::Unary { x, f, y } => {
                let (from, result) = (get(*x), &values[*y]);
                for (i, d) in gradients[*x].iter_mut().enumerate() {
                    *d += dy[i]
                        * match *f {
                            Unary::Leaky(a) => {
                                if from[i] > 0.0 {
                                    1.0
                                } else {
                                    a
                                }
                            }
                            Unary::Clip(low, high) => {
                                if from[i] > low && from[i] < high {
                                    1.0
                                } else {
                                    0.0
                                }
                            }
                            Unary::Sigmoid => result[i] * (1.0 - result[i]),
                            Unary::Tanh => 1.0 - result[i] * result[i],
                        };
                }
            }
            Step::Binary { f, of, at, .. } => {
                for k in (0..2).filter(|&k| self.needs[of[k]]) {
                    let other = get(of[1 - k]);
                    for (i, dy) in dy.iter().enumerate() {
                        let factor = match (f, k) {
                            (Binary::Add, _) | (Binary::Sub, 0) => 1.0,
                            (Binary::Sub, _) => -1.0,
                            (Binary::Mul, _) => other[at[1 - k][i] as usize],
                        };
                        gradients[of[k]][at[k][i] as usize] += factor * dy;
                    }
                }
            }
            Step::Move { from, .. } => {
                for (&(s, i), dy) in from.iter().zip(&dy).filter(|x| self.needs[x.0.0]) {
                    gradients[s][i as usize] += dy;
                }
            }
            Step::Largest { x, windows, taps, .. } => {
                let from = get(*x);
                windows.chunks(*taps).zip(&dy).for_each(|(w, dy)| gradients[*x][largest(from, w)] += dy);
            }
            Step::Sums { x, windows, taps, factor, .. } => {
                for ((w, f), dy) in windows.chunks((*taps).max(1)).zip(factor).zip(&dy) {
                    w.iter().filter(|&&i| i != OUTSIDE).for_each(|&i| gradients[*x][i as usize] += f * dy);
                }
            }
        }
        b.gradients[slot] = dy;
    }
}

/// The first largest element of a window.
fn largest(x: &[f32], window: &[u32]) -> usize {
    let inside = window.iter().filter(|&&i| i != OUTSIDE).map(|&i| i as usize);
    inside.reduce(|a, b| if x[b] > x[a] { b } else { a }).unwrap_or(0)
}

impl Step {
    /// The slot that it fills.
    fn result(&self) -> usize {
        match self {
            Step::Product { y, .. }
            | Step::Channels { y, .. }
            | Step::Unary { y, .. }
            | Step::Binary { y, .. }
            | Step::Move { y, .. }
            | Step::Largest { y, .. }
            | Step::Sums { y, .. } => *y,
        }
    }
}

#[cfg(test)]
#[path = "../../tests/nets/mod.rs"]
mod nets;

#[cfg(test)]
mod tests {
    use super::nets::{self, Net};
    use super::*;
    use crate::data::Random;
    use infc_ir::op::*;

    fn window(stride: i64, pads: &[i64]) -> (Vec<i64>, Vec<i64>, Vec<i64>) {
        (vec![3, 2], vec![stride, 1], pads.to_vec())
    }

    /// Images through all that is followed.
    fn image(seed: u64) -> Graph {
        let mut n = Net::new(&[2, 3, 7, 6], seed);
        let x = n.input();
        let w = n.weights(&[8, 3, 3, 2], "strided");
        let (kernel_shape, strides, pads) = window(2, &[1, 0, 2, 1]);
        let conv = Conv { auto_pad: "NOTSET".into(), dilations: vec![1, 2], group: 1, kernel_shape, pads, strides };
        let x = n.op(conv, &[x, w]);
        let x = n.batch_norm(x, "bn");
        let a = n.relu(x);
        let a = n.conv(a, 8, 3, 8, "depthwise");
        let a = n.op(LeakyRelu { alpha: 0.1 }, &[a]);
        let b = n.conv(x, 8, 1, 2, "grouped");
        let b = n.op(Tanh {}, &[b]);
        let both = n.op(Mul {}, &[a, b]);
        let rest = n.op(Sub {}, &[a, b]);
        let x = n.concat(&[both, rest, x], 1);
        let (kernel_shape, strides, pads) = window(1, &[1, 0, 1, 1]);
        let pool =
            MaxPool { auto_pad: "NOTSET".into(), ceil_mode: 0, dilations: vec![], kernel_shape, pads, storage_order: 0, strides };
        let x = n.op(pool, &[x]);
        let (kernel_shape, strides, pads) = window(1, &[1, 0, 0, 1]);
        let mean = AveragePool {
            auto_pad: "NOTSET".into(),
            ceil_mode: 0,
            count_include_pad: false,
            dilations: vec![],
            kernel_shape,
            pads,
            strides,
        };
        let x = n.op(mean, &[x]);
        let x = n.slice(x, 1, 1, 23);
        let (global, axes) = (n.op(GlobalAveragePool {}, &[x]), n.ints(&[2, 3]));
        let mean = n.op(ReduceMean { keepdims: true, noop_with_empty_axes: false }, &[x, axes]);
        let x = n.op(Sigmoid {}, &[global]);
        let x = n.add(x, mean);
        let x = n.op(Flatten { axis: 1 }, &[x]);
        let y = n.gemm(x, 5, "head");
        n.finish(&[y])
    }

    /// Rows, with a bias that is added.
    fn rows(seed: u64) -> Graph {
        let mut n = Net::new(&[2, 3, 6], seed);
        let x = n.input();
        let a = n.linear(x, 8, "a");
        let (low, high) = (n.weights(&[], "low"), n.weights(&[], "high"));
        n.g.values[low.index()].def = Def::Constant(Tensor::from_vec([0usize; 0], vec![-0.5f32]));
        n.g.values[high.index()].def = Def::Constant(Tensor::from_vec([0usize; 0], vec![0.7f32]));
        let b = n.op(Clip {}, &[a, low, high]);
        let t = n.op(Transpose { perm: vec![0, 2, 1] }, &[b]);
        let t = n.reshape(t, &[2, 3, 8]);
        let y = n.linear(t, 4, "b");
        n.finish(&[y, a])
    }

    /// Steps, constants with the fitted values, and buffers.
    fn tape(g: &Graph, inputs: &[Tensor], parameters: &Parameters) -> (Tape, Vec<Vec<f32>>, Buffers) {
        let tape = Tape::new(g, inputs, parameters).unwrap();
        let mut constants = tape.constants();
        tape.fitted.iter().zip(parameters.read(g)).for_each(|(&s, v)| constants[s] = v);
        let buffers = tape.buffers();
        (tape, constants, buffers)
    }

    #[test]
    fn steps_give_what_the_interpreter_gives() {
        for seed in 0..4 {
            for mut g in [image(seed), rows(seed)] {
                let inputs = nets::inputs(&g, &mut Random(seed + 1));
                let parameters = Parameters::of(&g);
                // Other weights than those that the tape was made with, through the graph and through the constants.
                let mut values = parameters.read(&g);
                let (tape, mut constants, mut b) = tape(&g, &inputs, &parameters);
                values.iter_mut().flatten().enumerate().for_each(|(i, v)| *v += 0.1 * ((i % 5) as f32 - 2.0));
                tape.fitted.iter().zip(&values).for_each(|(&s, v)| constants[s].clone_from(v));
                parameters.write(&mut g, &values);
                tape.run(&inputs, &constants, &mut b);
                let want = interp::run_tensors(&g, &inputs).unwrap();
                for (slot, want) in tape.outputs.iter().zip(&want) {
                    let got = b.value(slot.unwrap());
                    let want = want.to_vec::<f32>();
                    assert_eq!(got.len(), want.len());
                    got.iter().zip(&want).for_each(|(a, b)| assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{a} is not {b}"));
                }
            }
        }
    }

    #[test]
    fn gradients_are_the_slopes() {
        for seed in 0..4 {
            for g in [image(seed), rows(seed)] {
                let inputs = nets::inputs(&g, &mut Random(seed + 1));
                let parameters = Parameters::of(&g);
                let (tape, constants, mut b) = tape(&g, &inputs, &parameters);
                let mut random = Random(seed);
                let mut number = || (random.unit() * 2.0 - 1.0) as f32;
                // The loss is a sum of the outputs with these factors.
                let sizes = tape.outputs.iter().map(|s| tape.sizes[s.unwrap()]);
                let factors: Vec<Vec<f32>> = sizes.map(|n| (0..n).map(|_| number()).collect()).collect();
                tape.run(&inputs, &constants, &mut b);
                b.clear(&tape);
                tape.back(&constants, &mut b, &mut |k, _, d| d.iter_mut().zip(&factors[k]).for_each(|(d, f)| *d += f));
                for &slot in &tape.fitted {
                    let direction: Vec<f32> = (0..tape.sizes[slot]).map(|_| number()).collect();
                    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                    let slope = dot(b.gradient(slot), &direction);
                    let at = |h: f32| {
                        let mut moved = constants.clone();
                        moved[slot].iter_mut().zip(&direction).for_each(|(v, d)| *v += h * d);
                        let mut other = tape.buffers();
                        tape.run(&inputs, &moved, &mut other);
                        (0..factors.len()).map(|k| dot(other.value(tape.outputs[k].unwrap()), &factors[k])).sum::<f64>()
                    };
                    let h = 2e-3;
                    let measured = (at(h) - at(-h)) / f64::from(2.0 * h);
                    let size = dot(b.gradient(slot), b.gradient(slot)).sqrt() * dot(&direction, &direction).sqrt();
                    assert!(size > 0.0, "seed {seed}: nothing comes back");
                    assert!((slope - measured).abs() < 0.02 * size + 1e-3, "seed {seed}: {slope} is not {measured}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_followed_is_named() {
        let mut n = Net::new(&[2, 3, 6], 0);
        let x = n.input();
        let x = n.linear(x, 8, "a");
        let x = n.norm(x);
        let y = n.linear(x, 4, "b");
        let g = n.finish(&[y]);
        let problem = follows(&g).unwrap_err().to_string();
        assert!(problem.contains("LayerNormalization") && problem.contains("without a derivative"), "{problem}");
    }
}
