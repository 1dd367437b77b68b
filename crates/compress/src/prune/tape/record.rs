//! Making a tape: each node of a graph as steps, and where they read.

use super::{Binary, KNOWN, MOST, OUTSIDE, Parameters, Step, Tape, Unary, follows, moves};
use crate::prune::layer::{Bias, Kind, Layer, layers, producer};
use infc_ir::graph::{Graph, Node, Value};
use infc_ir::interp::{self, Item};
use infc_ir::op::{Add, normal_axis};
use infc_ir::{DType, Op, Problems, Tensor};
use std::collections::BTreeMap;

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
        for &n in &crate::prune::cut(g, g.outputs()).region(Graph::MAIN).nodes {
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
