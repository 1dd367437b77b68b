//! Recurrent networks over a sequence.
//!
//! Each direction is a Scan. The product of the whole sequence with the input weights (and every bias that can be added there)
//! stands before it; the body holds the recurrent product, the gates and the new state.

use super::common::with_dims;
use super::*;

mod cell;

use cell::{Activation, activations};

gaps! {}

/// What the three operators have in common.
struct Net {
    gates: i64,
    /// ONNX attribute `hidden_size`.
    hidden: Option<i64>,
    direction: String,
    layout: i64,
    clip: Option<f32>,
    /// Activations of one direction after another.
    activations: Vec<Vec<Activation>>,
}

/// Parameters of one direction: input weights `[I, G H]`, recurrent weights `[H, G H]`, biases `[G H]` each, peepholes `[3 H]`.
struct Weights {
    input: Value,
    recurrent: Value,
    bias: Option<[Value; 2]>,
    peephole: Option<Value>,
}

impl Net {
    fn new(
        gates: i64,
        hidden: Option<i64>,
        (direction, layout, clip): (&str, i64, Option<f32>),
        (names, alpha, beta): (&[String], &[f32], &[f32]),
        defaults: &[&str],
    ) -> Result<Net, Fault> {
        let directions = match direction {
            "forward" | "reverse" => 1,
            "bidirectional" => 2,
            _ => return Err(fault!("direction '{direction}' is none of forward, reverse, bidirectional")),
        };
        if !matches!(layout, 0 | 1) {
            return Err(fault!("layout {layout} is neither 0 nor 1"));
        }
        let activations = activations(directions, names, alpha, beta, defaults)?;
        Ok(Net { gates, hidden, direction: direction.to_owned(), layout, clip, activations })
    }

    fn directions(&self) -> usize {
        self.activations.len()
    }

    /// The hidden size: that of the weights, else what the attribute says.
    fn hidden(&self, w: &TensorType, r: &TensorType) -> Result<i64, Fault> {
        let of_weights = r.dims[2].known().or_else(|| Some(w.dims[1].known()? / self.gates));
        of_weights.or(self.hidden).ok_or_else(|| {
            fault!("the hidden size must be known: neither the weights {w} and {r} nor the attribute 'hidden_size' tell it")
        })
    }

    /// Facts of `Y` and of `states` final states.
    fn infer(&self, cx: &Ctx, states: usize) -> Result<Vec<Fact>, Fault> {
        let [x, w, r] = [cx.tensor(0)?, cx.tensor(1)?, cx.tensor(2)?];
        for (i, t) in [x, w, r].into_iter().enumerate() {
            if t.rank() != 3 || t.dtype != x.dtype || !t.dtype.is_float() {
                return Err(fault!("operand {i} is {t}, it must be a float tensor of rank 3 like the others"));
            }
        }
        let hidden = Expr::int(self.hidden(w, r)?);
        let directions = Expr::int(self.directions() as i64);
        let want = |t: &TensorType, dims: [Expr; 3], what: &str| {
            let off = t.dims.iter().zip(dims).any(|(&d, e)| (d - e).known().is_some_and(|n| n != 0));
            for (&d, e) in t.dims.iter().zip(dims) {
                sizes::must_equal(d, e, &|| format!("the {what} are {t}, they must have dims {dims:?}"));
            }
            if off { Err(fault!("the {what} are {t}, they must have dims {dims:?}")) } else { Ok(()) }
        };
        want(w, [directions, hidden * self.gates, x.dims[2]], "input weights W")?;
        want(r, [directions, hidden * self.gates, hidden], "recurrent weights R")?;
        let batch = x.dims[1 - self.layout as usize];
        for (i, what) in [(5, "initial states"), (6, "initial cells")].into_iter().take(states) {
            if cx.has(i) {
                let state = match self.layout {
                    0 => [directions, batch, hidden],
                    _ => [batch, directions, hidden],
                };
                want(cx.tensor(i)?, state, what)?;
            }
        }
        let (y, last) = match self.layout {
            0 => ([x.dims[0], directions, x.dims[1], hidden], [directions, x.dims[1], hidden]),
            _ => ([x.dims[0], x.dims[1], directions, hidden], [x.dims[0], directions, hidden]),
        };
        let mut facts = vec![Fact::tensor(x.dtype, y)];
        facts.extend((0..states).map(|_| Fact::tensor(x.dtype, last)));
        Ok(facts)
    }

    /// Builds all directions. `step` makes one direction: given weights, initial states, `x W^T` and the mask it calls [`scan`].
    fn build(
        &self,
        b: &mut Builder,
        inputs: &[Option<Value>],
        states: usize,
        peephole: Option<usize>,
        step: &dyn Fn(&mut Builder, Direction) -> Result<Vec<Value>, Fault>,
    ) -> Result<Vec<Value>, Fault> {
        let at = |i: usize| inputs.get(i).copied().flatten();
        let need = |i: usize| at(i).ok_or_else(|| fault!("operand {i} is missing"));
        let mut x = need(0)?;
        if self.layout == 1 {
            x = b.op(Transpose { perm: vec![1, 0, 2] }, &[x])?;
        }
        let [weights, recurrent] = [need(1)?, need(2)?];
        let hidden = Expr::int(self.hidden(b.tensor(weights)?, b.tensor(recurrent)?)?);
        let (directions, gates) = (Expr::int(self.directions() as i64), hidden * self.gates);
        let [_, batch, width] = *b.dims(x)? else { return Err(fault!("operand 0 must have rank 3")) };
        // Dims that only a run tells to be equal are written in one way.
        let known = |b: &mut Builder, i: usize, dims: &[Expr]| at(i).map(|v| with_dims(b, v, dims)).transpose();
        let weights = with_dims(b, weights, &[directions, gates, width])?;
        let recurrent = with_dims(b, recurrent, &[directions, gates, hidden])?;
        let bias = known(b, 3, &[directions, gates * 2])?;
        let lens = known(b, 4, &[batch])?;
        let start = if self.layout == 0 { [directions, batch, hidden] } else { [batch, directions, hidden] };
        let starts: Vec<Option<Value>> = (0..states).map(|s| known(b, 5 + s, &start)).collect::<Result<_, _>>()?;
        let peepholes = peephole.map(|i| known(b, i, &[directions, hidden * 3])).transpose()?.flatten();
        let mask = lens.map(|lens| mask(b, x, lens)).transpose()?.flatten();
        let mut results: Vec<Vec<Value>> = vec![vec![]; states + 1];
        for d in 0..self.directions() {
            let weights = self.weights(b, [weights, recurrent], bias, peepholes, d)?;
            let mut initial = vec![];
            for &start in &starts {
                initial.push(match start {
                    Some(v) => part(b, v, self.layout, d)?,
                    None => zeros(b, x, weights.recurrent)?,
                });
            }
            let reverse = d == 1 || self.direction == "reverse";
            let made = step(b, Direction { index: d, x, weights, initial, mask, reverse })?;
            // Scan gives the final states, then the stacked outputs.
            let (last, stacked) = made.split_at(states);
            results[0].push(stacked[0]);
            results[1..].iter_mut().zip(last).for_each(|(r, &v)| r.push(v));
        }
        let axis = if self.layout == 0 { [1, 0] } else { [2, 1] };
        let mut out = vec![];
        for (k, parts) in results.into_iter().enumerate() {
            let mut joined = vec![];
            for mut v in parts {
                if k == 0 && self.layout == 1 {
                    v = b.op(Transpose { perm: vec![1, 0, 2] }, &[v])?;
                }
                let axes = b.ints(&[axis[k.min(1)]]);
                joined.push(b.op(Unsqueeze {}, &[v, axes])?);
            }
            out.push(if joined.len() == 1 { joined[0] } else { b.op(Concat { axis: axis[k.min(1)] }, &joined)? });
        }
        Ok(out)
    }

    fn weights(
        &self,
        b: &mut Builder,
        [w, r]: [Value; 2],
        bias: Option<Value>,
        peephole: Option<Value>,
        d: usize,
    ) -> Result<Weights, Fault> {
        let turned = |b: &mut Builder, v: Value| {
            let v = part(b, v, 0, d)?;
            folded(b, Transpose { perm: vec![1, 0] }, &[v])
        };
        let (input, recurrent) = (turned(b, w)?, turned(b, r)?);
        let bias = match bias {
            None => None,
            Some(v) => {
                let v = part(b, v, 0, d)?;
                let half = b.dims(recurrent)?[1].known().ok_or_else(|| fault!("the hidden size must be known"))?;
                Some([slice(b, v, 0, half)?, slice(b, v, half, 2 * half)?])
            }
        };
        let peephole = peephole.map(|v| part(b, v, 0, d)).transpose()?;
        Ok(Weights { input, recurrent, bias, peephole })
    }
}

/// One direction to build.
struct Direction {
    index: usize,
    /// The sequence `[T, B, I]`.
    x: Value,
    weights: Weights,
    /// Initial states `[B, H]`.
    initial: Vec<Value>,
    /// `[T, B, 1]`: does the step belong to the sequence?
    mask: Option<Value>,
    reverse: bool,
}

impl Direction {
    /// `x W^T + bias` for the whole sequence, `[T, B, G H]`.
    fn input(&self, b: &mut Builder, bias: Option<Value>) -> Result<Value, Fault> {
        let product = b.op(MatMul {}, &[self.x, self.weights.input])?;
        bias.map_or(Ok(product), |v| b.op(Add {}, &[product, v]))
    }

    /// The scan of this direction over `input`. `body` gets the states, the slice of `input` and `outer`, and gives new states.
    /// Where the mask is false the states stay and the output is 0.
    fn scan(
        &self,
        b: &mut Builder,
        input: Value,
        outer: &[Value],
        body: impl FnOnce(&mut Builder, &[Value], Value, &[Value]) -> Result<Vec<Value>, Fault>,
    ) -> Result<Vec<Value>, Fault> {
        let scanned: Vec<Value> = [Some(input), self.mask].into_iter().flatten().collect();
        scan(b, &self.initial, &scanned, outer, self.reverse, |b, states, slices, outer| {
            let mut new = body(b, states, slices[0], outer)?;
            let mut output = new[0];
            if let [_, mask] = *slices {
                let zero = b.tensor(output)?.dtype;
                let zero = b.number(zero, 0.0);
                output = b.op(Where {}, &[mask, new[0], zero])?;
                for (n, &old) in new.iter_mut().zip(states) {
                    *n = b.op(Where {}, &[mask, *n, old])?;
                }
            }
            new.push(output);
            Ok(new)
        })
    }
}

/// A Scan over axis 0 of `scanned`: `body(states, slices, outer)` gives the new states, then the outputs to stack. Of `outer`,
/// constants are used as they are and the rest is captured.
fn scan(
    b: &mut Builder,
    states: &[Value],
    scanned: &[Value],
    outer: &[Value],
    reverse: bool,
    body: impl FnOnce(&mut Builder, &[Value], &[Value], &[Value]) -> Result<Vec<Value>, Fault>,
) -> Result<Vec<Value>, Fault> {
    let captured: Vec<Value> = outer.iter().copied().filter(|&v| b.graph.constant(v).is_none()).collect();
    let mut types: Vec<Type> = states.iter().map(|&v| b.graph.ty(v).clone()).collect();
    for &v in scanned {
        let t = b.tensor(v)?;
        types.push(Type::tensor(t.dtype, t.dims[1..].to_vec()));
    }
    types.extend(captured.iter().map(|&v| b.graph.ty(v).clone()));
    let mut results = 0;
    let region = b.region("step", &types, |b, params| {
        let (state_params, rest) = params.split_at(states.len());
        let (slices, mut inner) = rest.split_at(scanned.len());
        let bound: Vec<Value> = outer
            .iter()
            .map(|&v| match (b.graph.constant(v), inner) {
                (None, [first, rest @ ..]) => {
                    inner = rest;
                    *first
                }
                _ => v,
            })
            .collect();
        let made = body(b, state_params, slices, &bound)?;
        results = made.len();
        Ok(made)
    })?;
    let direction = i64::from(reverse);
    let op = Scan {
        captures: captured.len() as i64,
        num_scan_inputs: scanned.len() as i64,
        scan_input_axes: vec![],
        scan_input_directions: vec![direction; scanned.len()],
        scan_output_axes: vec![],
        scan_output_directions: vec![direction; results - states.len()],
    };
    let operands: Vec<_> = [states, scanned, &captured].concat().into_iter().map(Some).collect();
    b.node(op, &operands, vec![region], results)
}

/// `op` applied now if its operands are constants, as a node otherwise. Weights stay constants, visible in the body.
fn folded(b: &mut Builder, op: impl Into<Op>, operands: &[Value]) -> Result<Value, Fault> {
    let op = op.into();
    let known: Option<Vec<_>> = operands.iter().map(|&v| b.graph.constant(v).cloned().map(Some)).collect();
    match known {
        Some(tensors) => {
            let made = crate::interp::eval_op(&op, &tensors, 1)?;
            let first = made.into_iter().next().ok_or_else(|| fault!("has no result"))?;
            Ok(b.constant(first))
        }
        None => b.op(op, operands),
    }
}

/// Slice `d` along `axis`, without that axis.
fn part(b: &mut Builder, v: Value, axis: i64, d: usize) -> Result<Value, Fault> {
    let single = b.dims(v)?.get(axis as usize).is_some_and(|n| n.is(1));
    match single {
        true => {
            let axes = b.ints(&[axis]);
            folded(b, Squeeze {}, &[v, axes])
        }
        false => {
            let at = b.constant(Tensor::from_vec([], vec![d as i64]));
            folded(b, Gather { axis }, &[v, at])
        }
    }
}

/// Elements `start..end` of a vector.
fn slice(b: &mut Builder, v: Value, start: i64, end: i64) -> Result<Value, Fault> {
    let (start, end) = (b.ints(&[start]), b.ints(&[end]));
    folded(b, Slice {}, &[v, start, end])
}

/// `[B, H]` for a sequence `[T, B, I]` and recurrent weights `[H, G H]`.
fn state_dims(b: &mut Builder, x: Value, recurrent: Value) -> Result<Value, Fault> {
    let batch = b.op(Shape { start: 1, end: Some(2) }, &[x])?;
    let hidden = b.op(Shape { start: 0, end: Some(1) }, &[recurrent])?;
    b.op(Concat { axis: 0 }, &[batch, hidden])
}

/// Zeros `[B, H]` for a sequence `[T, B, I]` and recurrent weights `[H, G H]`.
fn zeros(b: &mut Builder, x: Value, recurrent: Value) -> Result<Value, Fault> {
    let dims = state_dims(b, x, recurrent)?;
    let zero = Tensor::zeros(b.tensor(x)?.dtype, [1]);
    b.op(ConstantOfShape { value: Some(zero) }, &[dims])
}

/// `[T, B, 1]`, true where step `t` is before the end of sequence `b`; none if all sequences are known to have full length.
fn mask(b: &mut Builder, x: Value, lens: Value) -> Result<Option<Value>, Fault> {
    let steps = b.dims(x)?[0];
    if b.graph.constant(lens).is_some_and(|t| t.to_ints().iter().all(|&n| steps.is(n))) {
        return Ok(None);
    }
    let count = b.op(Shape { start: 0, end: Some(1) }, &[x])?;
    let axes = b.ints(&[0]);
    let count = b.op(Squeeze {}, &[count, axes])?;
    let [zero, one] = [0, 1].map(|v| b.constant(Tensor::from_vec([], vec![v as i64])));
    let t = b.op(Range { stash_type: 1 }, &[zero, count, one])?;
    let axes = b.ints(&[1, 2]);
    let t = b.op(Unsqueeze {}, &[t, axes])?;
    let lens = b.op(Cast { round_mode: "up".into(), saturate: 1, to: DType::I64.onnx().into() }, &[lens])?;
    let axes = b.ints(&[1]);
    let lens = b.op(Unsqueeze {}, &[lens, axes])?;
    Ok(Some(b.op(Less {}, &[t, lens])?))
}

impl LSTM {
    fn net(&self) -> Result<Net, Fault> {
        let common = (&*self.direction, self.layout, self.clip);
        let names = (&self.activations[..], &self.activation_alpha[..], &self.activation_beta[..]);
        Net::new(4, self.hidden_size, common, names, &["Sigmoid", "Tanh", "Tanh"])
    }
}

impl OpDef for LSTM {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        self.net()?.infer(cx, 2)
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (net, coupled) = (self.net()?, self.input_forget != 0);
        Ok(Meaning::decompose(move |b, inputs| net.build(b, inputs, 2, Some(7), &|b, d| cell::lstm(b, d, &net, coupled))))
    }
}

impl GRU {
    fn net(&self) -> Result<Net, Fault> {
        let common = (&*self.direction, self.layout, self.clip);
        let names = (&self.activations[..], &self.activation_alpha[..], &self.activation_beta[..]);
        Net::new(3, self.hidden_size, common, names, &["Sigmoid", "Tanh"])
    }
}

impl OpDef for GRU {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        self.net()?.infer(cx, 1)
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (net, reset_after) = (self.net()?, self.linear_before_reset);
        Ok(Meaning::decompose(move |b, inputs| net.build(b, inputs, 1, None, &|b, d| cell::gru(b, d, &net, reset_after))))
    }
}

impl RNN {
    fn net(&self) -> Result<Net, Fault> {
        let common = (&*self.direction, self.layout, self.clip);
        let count = if self.direction == "bidirectional" { 2 } else { 1 };
        let names = &self.activations[..self.activations.len().min(count)];
        Net::new(1, self.hidden_size, common, (names, &self.activation_alpha, &self.activation_beta), &["Tanh"])
    }
}

impl OpDef for RNN {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        self.net()?.infer(cx, 1)
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let net = self.net()?;
        Ok(Meaning::decompose(move |b, inputs| net.build(b, inputs, 1, None, &|b, d| cell::rnn(b, d, &net))))
    }
}
