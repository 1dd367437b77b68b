//! DynamicQuantizeLSTM of `com.microsoft`: an LSTM whose products are of bytes, quantised on the way.

use super::contrib_quant::cast;
use super::*;
use infc_ir::Type;

/// What a step looks at beside its parameters.
struct Step {
    /// The width of the state.
    hidden: i64,
    /// Does the step know whether its sequence has ended?
    lengths: bool,
    /// Do gates look at the state of the cell?
    peepholes: bool,
}

/// Input, weights `[directions, input, 4 hidden]`, those of the state, bias, lengths, states, peepholes, scales and zero points of both
/// weights. What is multiplied with them is quantised on the way, the state in each step.
pub fn dynamic_lstm(r: &mut Raise) -> Result<(), Fault> {
    let direction = r.take::<String>("direction")?.unwrap_or_else(|| "forward".into());
    let directions: &[bool] = match direction.as_str() {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return Err(fault!("attribute 'direction' is '{other}'; forward, reverse or bidirectional is needed")),
    };
    r.take::<i64>("hidden_size")?;
    if r.take::<i64>("input_forget")?.unwrap_or(0) != 0 || r.take::<f32>("clip")?.is_some_and(|c| c < f32::MAX) {
        return Err(fault!("attributes 'input_forget' and 'clip' are not supported"));
    }
    let activations = r.take::<Vec<String>>("activations")?.unwrap_or_default();
    if activations.iter().enumerate().any(|(k, a)| a.to_lowercase() != ["sigmoid", "tanh", "tanh"][k % 3]) {
        return Err(fault!("activations {activations:?} are not supported, only Sigmoid, Tanh, Tanh"));
    }
    // Of the activations that there are, none has these.
    for name in ["activation_alpha", "activation_beta"] {
        r.take::<Vec<f32>>(name)?;
    }
    let quantised = r.node_with("DynamicQuantizeLinear", &[], &[Some(r.input(0)?)], 3)?;
    let mut made: Vec<Vec<Value>> = vec![vec![]; 3];
    for (d, &reverse) in directions.iter().enumerate() {
        for (k, v) in one_direction(r, d, reverse, &quantised)?.into_iter().enumerate() {
            let axis = r.builder.ints(&[if k == 0 { 1 } else { 0 }]);
            made[k].push(r.node("Unsqueeze", &[], &[v, axis])?);
        }
    }
    let mut results = vec![];
    for (k, parts) in made.into_iter().enumerate().take(r.outputs.max(1)) {
        results.push(r.node("Concat", &[("axis", Attr::Int(if k == 0 { 1 } else { 0 }))], &parts)?);
    }
    r.results = Some(results);
    Ok(())
}

/// Sequences turned around, each up to its own length.
fn turned(r: &mut Raise, v: Value, lengths: Option<Value>) -> Result<Value, Fault> {
    match lengths {
        None => Ok(v),
        Some(n) => r.node("ReverseSequence", &[("time_axis", Attr::Int(0)), ("batch_axis", Attr::Int(1))], &[v, n]),
    }
}

/// All outputs of one direction, and its last states.
fn one_direction(r: &mut Raise, d: usize, reverse: bool, x: &[Value]) -> Result<[Value; 3], Fault> {
    let at = r.builder.constant(Tensor::from_vec([], vec![d as i64]));
    let mut part = |i: usize| match r.optional(i) {
        Some(v) => r.node("Gather", &[], &[v, at]).map(Some),
        None => Ok(None),
    };
    let need = |v: Option<Value>, what: &str| v.ok_or_else(|| fault!("{what} are missing"));
    let (w, u) = (need(part(1)?, "the weights")?, need(part(2)?, "the weights of the state")?);
    let (bias, states, peepholes) = (part(3)?, [part(5)?, part(6)?], part(7)?);
    let (w_scale, w_zero) = (need(part(8)?, "scales of the weights")?, need(part(9)?, "zero points of the weights")?);
    let (u_scale, u_zero) =
        (need(part(10)?, "scales of the state's weights")?, need(part(11)?, "zero points of the state's weights")?);
    let hidden = known_dim(r.builder.dims(u)?[0], "the hidden size")?;
    let lengths = r.optional(4).map(|v| cast(r, v, DType::I64)).transpose()?;
    // [sequence, batch, 4 hidden]: the part of the input, and the bias.
    let mut gates = product(r, x, w, w_scale, w_zero)?;
    if let Some(bias) = bias {
        let split = r.builder.ints(&[4 * hidden, 4 * hidden]);
        let halves = r.node_with("Split", &[("axis", Attr::Int(0))], &[Some(bias), Some(split)], 2)?;
        let bias = r.node("Add", &[], &halves)?;
        gates = r.node("Add", &[], &[gates, bias])?;
    }
    // With lengths the ends of sequences differ: they are turned before and after, instead of going backwards.
    let around = if reverse { lengths } else { None };
    gates = turned(r, gates, around)?;
    let [h, c] = states.map(|given| given.map_or_else(|| zero_state(r, gates, hidden), Ok));
    let (h, c) = (h?, c?);
    let mut scanned = vec![gates];
    if let Some(n) = lengths {
        scanned.push(running(r, gates, n)?);
    }
    let captured: Vec<Value> = [u, u_scale, u_zero].into_iter().chain(peepholes).collect();
    let gates_type = r.builder.tensor(gates)?.clone();
    let state: Type = TensorType::new(DType::F32, [gates_type.dims[1], Expr::int(hidden)]).into();
    let mut params = vec![state.clone(), state];
    for &v in &scanned {
        let t = r.builder.tensor(v)?;
        params.push(TensorType::new(t.dtype, t.dims[1..].iter().copied()).into());
    }
    params.extend(captured.iter().map(|&v| r.builder.graph.ty(v).clone()));
    let step = Step { hidden, lengths: lengths.is_some(), peepholes: peepholes.is_some() };
    let body = r.builder.region("step", &params, |b, p| one_step(b, p, &step))?;
    let backwards = i64::from(reverse && around.is_none());
    let scan = infc_ir::op::Scan {
        captures: captured.len() as i64,
        num_scan_inputs: scanned.len() as i64,
        scan_input_axes: vec![],
        scan_input_directions: vec![backwards; scanned.len()],
        scan_output_axes: vec![],
        scan_output_directions: vec![backwards],
    };
    let operands: Vec<_> = [h, c].into_iter().chain(scanned).chain(captured).map(Some).collect();
    let out = r.builder.node(scan, &operands, vec![body], 3)?;
    Ok([turned(r, out[2], around)?, out[0], out[1]])
}

/// Zeros for each sequence of `[steps, batch, ...]`.
fn zero_state(r: &mut Raise, gates: Value, hidden: i64) -> Result<Value, Fault> {
    let batch = r.node("Shape", &[("start", Attr::Int(1)), ("end", Attr::Int(2))], &[gates])?;
    let width = r.builder.ints(&[hidden]);
    let shape = r.node("Concat", &[("axis", Attr::Int(0))], &[batch, width])?;
    let zero = r.builder.number(DType::F32, 0.0);
    r.node("Expand", &[], &[zero, shape])
}

/// `[steps, batch, 1]`: is step `t` before the end of sequence `b`?
fn running(r: &mut Raise, gates: Value, lengths: Value) -> Result<Value, Fault> {
    let count = r.node("Shape", &[("start", Attr::Int(0)), ("end", Attr::Int(1))], &[gates])?;
    let count = r.node("Squeeze", &[], &[count])?;
    let [zero, one] = [0i64, 1].map(|v| r.builder.constant(Tensor::from_vec([], vec![v])));
    let steps = r.node("Range", &[], &[zero, count, one])?;
    let [rows, column] = [vec![1, 2], vec![1]].map(|axes| r.builder.ints(&axes));
    let steps = r.node("Unsqueeze", &[], &[steps, rows])?;
    let lengths = r.node("Unsqueeze", &[], &[lengths, column])?;
    r.node("Less", &[], &[steps, lengths])
}

/// A quantised tensor (with its scale and zero point) times quantised weights, as a float.
fn product(r: &mut Raise, x: &[Value], w: Value, scale: Value, zero: Value) -> Result<Value, Fault> {
    let sum = r.node_with("MatMulInteger", &[], &[Some(x[0]), Some(w), Some(x[2]), Some(zero)], 1)?[0];
    let sum = cast(r, sum, DType::F32)?;
    let scale = r.node("Mul", &[], &[x[1], scale])?;
    r.node("Mul", &[], &[sum, scale])
}

/// One step: states h and c, the input's part of the gates, (whether the sequence still runs,) then weights, scales, zero points, (the three
/// weights of the cell's state in gates i, o, f). Gates stand in the order i, o, f, c.
fn one_step(b: &mut Builder, p: &[Value], step: &Step) -> Result<Vec<Value>, Fault> {
    use infc_ir::op::*;
    let (before, c, gates) = (p[0], p[1], p[2]);
    let runs = step.lengths.then(|| p[3]);
    let rest = &p[3 + usize::from(step.lengths)..];
    let (u, scale, zero) = (rest[0], rest[1], rest[2]);
    let q = b.node(DynamicQuantizeLinear {}, &[Some(before)], vec![], 3)?;
    let sum = b.node(MatMulInteger {}, &[Some(q[0]), Some(u), Some(q[2]), Some(zero)], vec![], 1)?[0];
    let sum = b.op(Cast { round_mode: "up".into(), saturate: 1, to: DType::F32.onnx().into() }, &[sum])?;
    let factor = b.op(Mul {}, &[q[1], scale])?;
    let sum = b.op(Mul {}, &[sum, factor])?;
    let gates = b.op(Add {}, &[gates, sum])?;
    let sizes = b.ints(&[step.hidden; 4]);
    let parts = b.node(Split { axis: -1, num_outputs: None }, &[Some(gates), Some(sizes)], vec![], 4)?;
    let cell_weights = if step.peepholes {
        let sizes = b.ints(&[step.hidden; 3]);
        b.node(Split { axis: 0, num_outputs: None }, &[Some(rest[3]), Some(sizes)], vec![], 3)?
    } else {
        vec![]
    };
    // The gate's number among i, o, f; the cell's state that it may look at.
    let gate = |b: &mut Builder, k: usize, state: Value| {
        let mut v = parts[k];
        if let Some(&weights) = cell_weights.get(k) {
            let seen = b.op(Mul {}, &[weights, state])?;
            v = b.op(Add {}, &[v, seen])?;
        }
        b.op(Sigmoid {}, &[v])
    };
    let (i, f, g) = (gate(b, 0, c)?, gate(b, 2, c)?, b.op(Tanh {}, &[parts[3]])?);
    let (kept, new) = (b.op(Mul {}, &[f, c])?, b.op(Mul {}, &[i, g])?);
    let next = b.op(Add {}, &[kept, new])?;
    let o = gate(b, 1, next)?;
    let t = b.op(Tanh {}, &[next])?;
    let h = b.op(Mul {}, &[o, t])?;
    let Some(runs) = runs else { return Ok(vec![h, next, h]) };
    // After the end of a sequence its states stay, and its outputs are 0.
    let nothing = b.number(DType::F32, 0.0);
    let shown = b.op(Where {}, &[runs, h, nothing])?;
    Ok(vec![b.op(Where {}, &[runs, h, before])?, b.op(Where {}, &[runs, next, c])?, shown])
}
