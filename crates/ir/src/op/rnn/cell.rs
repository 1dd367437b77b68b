//! One step of each recurrent network, and the activations it may use.

use super::*;

/// An activation function with its parameters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Activation {
    name: String,
    alpha: f32,
    beta: f32,
}

/// Name in lower case, default alpha and beta (if it takes them).
const ACTIVATIONS: &[(&str, Option<f32>, Option<f32>)] = &[
    ("relu", None, None),
    ("tanh", None, None),
    ("sigmoid", None, None),
    ("affine", Some(1.0), Some(0.0)),
    ("leakyrelu", Some(0.01), None),
    ("thresholdedrelu", Some(1.0), None),
    ("scaledtanh", Some(1.0), Some(1.0)),
    ("hardsigmoid", Some(0.2), Some(0.5)),
    ("elu", Some(1.0), None),
    ("softsign", None, None),
    ("softplus", None, None),
];

/// The activations of each direction. The lists of parameters hold entries only for those that take them, in order.
pub(super) fn activations(
    directions: usize,
    names: &[String],
    alpha: &[f32],
    beta: &[f32],
    defaults: &[&str],
) -> Result<Vec<Vec<Activation>>, Fault> {
    let names: Vec<String> = match names.len() {
        0 => (0..directions).flat_map(|_| defaults.iter().map(|s| s.to_string())).collect(),
        n if n == directions * defaults.len() => names.to_vec(),
        n => return Err(fault!("{n} activations are given, {} are needed", directions * defaults.len())),
    };
    let (mut alpha, mut beta) = (alpha.iter().copied(), beta.iter().copied());
    let mut all = vec![];
    for given in names {
        let name = given.to_lowercase();
        let row = ACTIVATIONS.iter().find(|r| r.0 == name).ok_or_else(|| fault!("activation '{given}' is not known"))?;
        let take = |default: Option<f32>, list: &mut dyn Iterator<Item = f32>| {
            default.map_or(0.0, |default| list.next().unwrap_or(default))
        };
        all.push(Activation { alpha: take(row.1, &mut alpha), beta: take(row.2, &mut beta), name });
    }
    Ok(all.chunks(defaults.len()).map(<[_]>::to_vec).collect())
}

impl Activation {
    /// The function of `x`, which is first limited to `-clip..=clip`.
    fn apply(&self, b: &mut Builder, clip: Option<f32>, mut x: Value) -> Result<Value, Fault> {
        let (alpha, beta) = (self.alpha, self.beta);
        let dtype = b.tensor(x)?.dtype;
        let times = |b: &mut Builder, x: Value, by: f32| {
            let by = b.number(dtype, by.into());
            b.op(Mul {}, &[x, by])
        };
        if let Some(c) = clip {
            let [low, high] = [-c, c].map(|v| b.number(dtype, v.into()));
            x = b.op(Clip {}, &[x, low, high])?;
        }
        match &*self.name {
            "relu" => b.op(Relu {}, &[x]),
            "sigmoid" => b.op(Sigmoid {}, &[x]),
            "affine" => {
                let scaled = times(b, x, alpha)?;
                let offset = b.number(dtype, beta.into());
                b.op(Add {}, &[scaled, offset])
            }
            "leakyrelu" => b.op(LeakyRelu { alpha }, &[x]),
            "thresholdedrelu" => b.op(ThresholdedRelu { alpha }, &[x]),
            "scaledtanh" => {
                let inner = times(b, x, beta)?;
                let t = b.op(Tanh {}, &[inner])?;
                times(b, t, alpha)
            }
            "hardsigmoid" => b.op(HardSigmoid { alpha, beta }, &[x]),
            "elu" => b.op(Elu { alpha }, &[x]),
            "softsign" => b.op(Softsign {}, &[x]),
            "softplus" => b.op(Softplus {}, &[x]),
            _ => b.op(Tanh {}, &[x]),
        }
    }
}

/// Both biases as one, if there are any.
fn whole_bias(b: &mut Builder, w: &Weights) -> Result<Option<Value>, Fault> {
    w.bias.map(|pair| folded(b, Add {}, &pair)).transpose()
}

/// `v` cut into `count` pieces along its last axis.
fn gates(b: &mut Builder, v: Value, count: usize) -> Result<Vec<Value>, Fault> {
    b.node(Split { axis: -1, num_outputs: Some(count as i64) }, &[Some(v)], vec![], count)
}

/// One minus `v`.
fn rest(b: &mut Builder, v: Value) -> Result<Value, Fault> {
    let one = b.tensor(v)?.dtype;
    let one = b.number(one, 1.0);
    b.op(Sub {}, &[one, v])
}

/// `H' = f(x W^T + H R^T + biases)`.
pub(super) fn rnn(b: &mut Builder, d: Direction, net: &Net) -> Result<Vec<Value>, Fault> {
    let bias = whole_bias(b, &d.weights)?;
    let input = d.input(b, bias)?;
    d.scan(b, input, &[d.weights.recurrent], |b, states, x, outer| {
        let product = b.op(MatMul {}, &[states[0], outer[0]])?;
        let sum = b.op(Add {}, &[x, product])?;
        Ok(vec![net.activations[d.index][0].apply(b, net.clip, sum)?])
    })
}

/// Gates in the order update, reset, hidden: `H' = (1 - z) h + z H`, where the reset gate applies to `H` or, if `reset_after`,
/// to its product with the weights.
pub(super) fn gru(b: &mut Builder, d: Direction, net: &Net, reset_after: bool) -> Result<Vec<Value>, Fault> {
    let hidden = b.dims(d.weights.recurrent)?[0].known().ok_or_else(|| fault!("the hidden size must be known"))?;
    let recurrent = d.weights.recurrent;
    let columns = |b: &mut Builder, start: i64, end: i64| {
        let [start, end, axes] = [start, end, 1].map(|v| b.ints(&[v]));
        folded(b, Slice {}, &[recurrent, start, end, axes])
    };
    let mut bias = whole_bias(b, &d.weights)?;
    let mut outer = vec![recurrent];
    if !reset_after {
        outer = vec![columns(b, 0, 2 * hidden)?, columns(b, 2 * hidden, 3 * hidden)?];
    } else if let Some([input, recurrent]) = d.weights.bias {
        // The recurrent bias of the hidden gate is inside the reset.
        let zero = b.tensor(recurrent)?.dtype;
        let zero = b.constant(Tensor::zeros(zero, [hidden as usize]));
        let front = slice(b, recurrent, 0, 2 * hidden)?;
        let front = folded(b, Concat { axis: 0 }, &[front, zero])?;
        bias = Some(folded(b, Add {}, &[input, front])?);
        outer.push(slice(b, recurrent, 2 * hidden, 3 * hidden)?);
    }
    let input = d.input(b, bias)?;
    let [f, g] = [0, 1].map(|k| net.activations[d.index][k].clone());
    d.scan(b, input, &outer, |b, states, x, outer| {
        let h = states[0];
        let x = gates(b, x, 3)?;
        let product = b.op(MatMul {}, &[h, outer[0]])?;
        let parts = gates(b, product, if reset_after { 3 } else { 2 })?;
        let gate = |b: &mut Builder, k: usize| {
            let sum = b.op(Add {}, &[x[k], parts[k]])?;
            f.apply(b, net.clip, sum)
        };
        let (z, r) = (gate(b, 0)?, gate(b, 1)?);
        let inner = if reset_after {
            let inner = outer.get(1).map_or(Ok(parts[2]), |&bias| b.op(Add {}, &[parts[2], bias]))?;
            b.op(Mul {}, &[r, inner])?
        } else {
            let kept = b.op(Mul {}, &[r, h])?;
            b.op(MatMul {}, &[kept, outer[1]])?
        };
        let sum = b.op(Add {}, &[x[2], inner])?;
        let new = g.apply(b, net.clip, sum)?;
        let share = rest(b, z)?;
        let (fresh, old) = (b.op(Mul {}, &[share, new])?, b.op(Mul {}, &[z, h])?);
        Ok(vec![b.op(Add {}, &[fresh, old])?])
    })
}

/// Gates in the order input, output, forget, cell: `C' = f C + i c`, `H' = o h(C')`, with peepholes from `C` to the gates.
/// `coupled`: the forget gate is one minus the input gate.
pub(super) fn lstm(b: &mut Builder, d: Direction, net: &Net, coupled: bool) -> Result<Vec<Value>, Fault> {
    let bias = whole_bias(b, &d.weights)?;
    let input = d.input(b, bias)?;
    let mut outer = vec![d.weights.recurrent];
    if let Some(p) = d.weights.peephole {
        let hidden = b.dims(d.weights.recurrent)?[0].known().ok_or_else(|| fault!("the hidden size must be known"))?;
        for k in 0..3 {
            outer.push(slice(b, p, k * hidden, (k + 1) * hidden)?);
        }
    }
    let [f, g, h] = [0, 1, 2].map(|k| net.activations[d.index][k].clone());
    d.scan(b, input, &outer, |b, states, x, outer| {
        let cell = states[1];
        let product = b.op(MatMul {}, &[states[0], outer[0]])?;
        let sums = b.op(Add {}, &[x, product])?;
        let sums = gates(b, sums, 4)?;
        // Gate `k` of i, o, f; its peephole looks at `seen`.
        let gate = |b: &mut Builder, k: usize, seen: Value| {
            let mut sum = sums[k];
            if let Some(&p) = outer.get(k + 1) {
                let look = b.op(Mul {}, &[p, seen])?;
                sum = b.op(Add {}, &[sum, look])?;
            }
            f.apply(b, net.clip, sum)
        };
        let i = gate(b, 0, cell)?;
        let forget = if coupled { rest(b, i)? } else { gate(b, 2, cell)? };
        let fresh = g.apply(b, net.clip, sums[3])?;
        let (kept, added) = (b.op(Mul {}, &[forget, cell])?, b.op(Mul {}, &[i, fresh])?);
        let new = b.op(Add {}, &[kept, added])?;
        let o = gate(b, 1, new)?;
        // The limit is for gates: the cell state is not clipped (as in ONNX Runtime).
        let shown = h.apply(b, None, new)?;
        Ok(vec![b.op(Mul {}, &[o, shown])?, new])
    })
}
