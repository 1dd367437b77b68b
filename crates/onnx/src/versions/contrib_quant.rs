//! Operators of `com.microsoft` on quantised weights and tensors, embeddings, and pooling with channels last.

use super::*;

fn cast(r: &mut Raise, v: Value, to: DType) -> Result<Value, Fault> {
    if r.builder.tensor(v)?.dtype == to {
        return Ok(v);
    }
    r.node("Cast", &[("to", Attr::Int(i64::from(to.onnx())))], &[v])
}

/// The unsigned dtype of so many bits.
fn unsigned(bits: i64) -> Result<DType, Fault> {
    match bits {
        2 => Ok(DType::U2),
        4 => Ok(DType::U4),
        8 => Ok(DType::U8),
        _ => Err(fault!("attribute 'bits' is {bits}; 2, 4 or 8 is supported")),
    }
}

/// Bytes that hold small numbers, the first one in the low bits, as these numbers.
fn unpacked(r: &mut Raise, i: usize, dtype: DType, dims: &[usize]) -> Result<Value, Fault> {
    let t = r.constant(i).ok_or_else(|| fault!("operand {i} must be an initializer"))?;
    if t.dtype != DType::U8 || t.len() * 8 != dims.iter().product::<usize>() * dtype.bits() as usize {
        return Err(fault!("operand {i} is {}{:?}; u8 for {dims:?} numbers of {} bits is needed", t.dtype, t.dims, dtype.bits()));
    }
    let bits = dtype.bits();
    let of = |byte: &u8| (0..8 / bits).map(move |k| u64::from(byte >> (k * bits)) & ((1 << bits) - 1)).collect::<Vec<_>>();
    let t = Tensor::from_values(dtype, dims, t.bytes().iter().flat_map(of));
    Ok(r.builder.constant(t))
}

/// A, B by blocks of rows `[N, blocks, bytes]`, scales and zero points of blocks, (group indices), bias.
pub fn matmul_nbits(r: &mut Raise) -> Result<(), Fault> {
    let size = |r: &mut Raise, name: &str| match r.take::<i64>(name)? {
        Some(n) if n > 0 => Ok(n as usize),
        other => Err(fault!("attribute '{name}' is {other:?}; a positive number is needed")),
    };
    let (depth, columns, block) = (size(r, "K")?, size(r, "N")?, size(r, "block_size")?);
    let bits = r.take::<i64>("bits")?.unwrap_or(4);
    let packed = unsigned(bits)?;
    // Says how exact a runtime has to be: the float product is exact enough for all.
    r.take::<i64>("accuracy_level")?;
    if r.optional(4).is_some() {
        return Err(fault!("operand 4 (g_idx) is not supported"));
    }
    let (a, dtype) = (r.input(0)?, r.tensor(0)?.dtype);
    let blocks = depth.div_ceil(block);
    let weights = unpacked(r, 1, packed, &[columns, blocks, block])?;
    let mut weights = cast(r, weights, dtype)?;
    let by_block = [columns as i64, blocks as i64, 1];
    let zeros = match r.optional(3) {
        None => r.builder.number(dtype, (1i64 << (bits - 1)) as f64),
        Some(_) if r.tensor(3)?.dtype == DType::U8 => {
            let row = (blocks * bits as usize).div_ceil(8) * 8 / bits as usize;
            let zeros = unpacked(r, 3, packed, &[columns, row])?;
            let zeros = cast(r, zeros, dtype)?;
            let [start, end, axis] = [0, blocks as i64, 1].map(|v| r.builder.ints(&[v]));
            let zeros = r.node("Slice", &[], &[zeros, start, end, axis])?;
            r.reshape(zeros, &by_block)?
        }
        Some(zeros) => {
            let zeros = cast(r, zeros, dtype)?;
            r.reshape(zeros, &by_block)?
        }
    };
    let scales = r.reshape(r.input(2)?, &by_block)?;
    weights = r.node("Sub", &[], &[weights, zeros])?;
    weights = r.node("Mul", &[], &[weights, scales])?;
    weights = r.reshape(weights, &[columns as i64, (blocks * block) as i64])?;
    if blocks * block > depth {
        let [start, end, axis] = [0, depth as i64, 1].map(|v| r.builder.ints(&[v]));
        weights = r.node("Slice", &[], &[weights, start, end, axis])?;
    }
    let weights = r.node("Transpose", &[("perm", Attr::Ints(vec![1, 0]))], &[weights])?;
    let mut y = r.node("MatMul", &[], &[a, weights])?;
    if let Some(bias) = r.optional(5) {
        y = r.node("Add", &[], &[y, bias])?;
    }
    r.results = Some(vec![y]);
    Ok(())
}

/// A, its scale and zero point, B with the same, C in products of the scales; scale and zero point of a quantised result.
pub fn qgemm(r: &mut Raise) -> Result<(), Fault> {
    let alpha = r.take::<f32>("alpha")?.unwrap_or(1.0);
    let mut operands = vec![];
    for (name, i) in [("transA", 0), ("transB", 3)] {
        let v = r.input(i)?;
        let turned = r.take::<i64>(name)?.unwrap_or(0) != 0;
        operands.push(Some(if turned { r.node("Transpose", &[("perm", Attr::Ints(vec![1, 0]))], &[v])? } else { v }));
    }
    operands.extend([Some(r.input(2)?), Some(r.input(5)?)]);
    let mut sum = r.node_with("MatMulInteger", &[], &operands, 1)?[0];
    if let Some(c) = r.optional(6) {
        sum = r.node("Add", &[], &[sum, c])?;
    }
    let sum = cast(r, sum, DType::F32)?;
    let alpha = r.builder.number(DType::F32, f64::from(alpha));
    let scale = r.node("Mul", &[], &[r.input(1)?, r.input(4)?])?;
    let mut scale = r.node("Mul", &[], &[alpha, scale])?;
    let quantised = r.optional(7).zip(r.optional(8));
    if let Some((out, _)) = quantised {
        scale = r.node("Div", &[], &[scale, out])?;
    }
    let mut y = r.node("Mul", &[], &[sum, scale])?;
    if let Some((_, zero)) = quantised {
        let one = r.builder.number(DType::F32, 1.0);
        y = r.node("QuantizeLinear", &[], &[y, one, zero])?;
    }
    r.results = Some(vec![y]);
    Ok(())
}

/// MaxPool of `[batch, height, width, channels]`.
pub fn nhwc_max_pool(r: &mut Raise) -> Result<(), Fault> {
    let rank = r.tensor(0)?.rank() as i64;
    let first: Vec<i64> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let last: Vec<i64> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let attrs: Vec<(String, Attr)> = std::mem::take(&mut r.attrs.0);
    let attrs: Vec<(&str, Attr)> = attrs.iter().map(|(n, a)| (n.as_str(), a.clone())).collect();
    let x = r.node("Transpose", &[("perm", Attr::Ints(first))], &[r.input(0)?])?;
    let y = r.node("MaxPool", &attrs, &[x])?;
    r.results = Some(vec![r.node("Transpose", &[("perm", Attr::Ints(last))], &[y])?]);
    Ok(())
}

/// Words, segments, tables of words, positions and segments, scale, bias, mask, positions.
pub fn embed(r: &mut Raise) -> Result<(), Fault> {
    let epsilon = r.take::<f32>("epsilon")?.unwrap_or(1e-12);
    r.take::<i64>("mask_index_type")?;
    let words = r.input(0)?;
    let mut sum = r.node("Gather", &[], &[r.input(2)?, words])?;
    let at = match r.optional(8) {
        Some(given) => given,
        None => {
            let size = r.node("Shape", &[("start", Attr::Int(1)), ("end", Attr::Int(2))], &[words])?;
            let size = r.node("Squeeze", &[], &[size])?;
            let [zero, one] = [0i64, 1].map(|v| r.builder.constant(Tensor::from_vec([], vec![v])));
            r.node("Range", &[], &[zero, size, one])?
        }
    };
    let positions = r.node("Gather", &[], &[r.input(3)?, at])?;
    sum = r.node("Add", &[], &[sum, positions])?;
    if let Some(segments) = r.optional(1) {
        let segments = r.node("Gather", &[], &[r.input(4)?, segments])?;
        sum = r.node("Add", &[], &[sum, segments])?;
    }
    let attrs = [("axis", Attr::Int(-1)), ("epsilon", Attr::Float(epsilon))];
    let y = r.node("LayerNormalization", &attrs, &[sum, r.input(5)?, r.input(6)?])?;
    let mut results = vec![y];
    if r.outputs > 1 {
        // How many words count; 0 without a mask.
        let counted = match r.optional(7) {
            Some(mask) => mask,
            None => {
                let words = cast(r, words, DType::I32)?;
                r.node("Sub", &[], &[words, words])?
            }
        };
        let axes = r.builder.ints(&[1]);
        results.push(r.node("ReduceSum", &[("keepdims", Attr::Int(0))], &[counted, axes])?);
        results.push(sum);
    }
    results.truncate(r.outputs.max(1));
    r.results = Some(results);
    Ok(())
}

/// Input, weights `[directions, input, 4 hidden]`, those of the state, bias, (lengths), states, (peepholes), scales and zero points of both
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
    for (i, what) in [(4, "sequence_lens"), (7, "P")] {
        if r.optional(i).is_some() {
            return Err(fault!("operand {i} ({what}) is not supported"));
        }
    }
    let quantised = r.node_with("DynamicQuantizeLinear", &[], &[Some(r.input(0)?)], 3)?;
    let mut made: Vec<Vec<Value>> = vec![vec![]; 3];
    for (d, &reverse) in directions.iter().enumerate() {
        for (k, v) in lstm_direction(r, d, reverse, &quantised)?.into_iter().enumerate() {
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

/// All outputs of one direction, and its last states.
fn lstm_direction(r: &mut Raise, d: usize, reverse: bool, x: &[Value]) -> Result<[Value; 3], Fault> {
    let at = r.builder.constant(Tensor::from_vec([], vec![d as i64]));
    let mut part = |i: usize| match r.optional(i) {
        Some(v) => r.node("Gather", &[], &[v, at]).map(Some),
        None => Ok(None),
    };
    let need = |v: Option<Value>, what: &str| v.ok_or_else(|| fault!("{what} are missing"));
    let (w, u) = (need(part(1)?, "the weights")?, need(part(2)?, "the weights of the state")?);
    let (bias, states) = (part(3)?, [part(5)?, part(6)?]);
    let (w_scale, w_zero) = (need(part(8)?, "scales of the weights")?, need(part(9)?, "zero points of the weights")?);
    let (u_scale, u_zero) =
        (need(part(10)?, "scales of the state's weights")?, need(part(11)?, "zero points of the state's weights")?);
    let hidden = known_dim(r.builder.dims(u)?[0], "the hidden size")?;
    // [sequence, batch, 4 hidden]: the part of the input, and the bias.
    let mut gates = product(r, x, w, w_scale, w_zero)?;
    if let Some(bias) = bias {
        let split = r.builder.ints(&[4 * hidden, 4 * hidden]);
        let halves = r.node_with("Split", &[("axis", Attr::Int(0))], &[Some(bias), Some(split)], 2)?;
        let bias = r.node("Add", &[], &halves)?;
        gates = r.node("Add", &[], &[gates, bias])?;
    }
    let gates_type = r.builder.tensor(gates)?.clone();
    let state = TensorType::new(DType::F32, [gates_type.dims[1], Expr::int(hidden)]);
    let initial = states.map(|given| match given {
        Some(v) => Ok(v),
        None => {
            let batch = r.node("Shape", &[("start", Attr::Int(1)), ("end", Attr::Int(2))], &[gates])?;
            let width = r.builder.ints(&[hidden]);
            let shape = r.node("Concat", &[("axis", Attr::Int(0))], &[batch, width])?;
            let zero = r.builder.number(DType::F32, 0.0);
            r.node("Expand", &[], &[zero, shape])
        }
    });
    let [h, c] = initial;
    let (h, c) = (h?, c?);
    let captured = [u, u_scale, u_zero];
    let mut params: Vec<infc_ir::Type> = vec![state.clone().into(), state.into()];
    params.push(TensorType::new(DType::F32, gates_type.dims[1..].iter().copied()).into());
    params.extend(captured.iter().map(|&v| r.builder.graph.ty(v).clone()));
    let body = r.builder.region("step", &params, |b, p| lstm_step(b, p, hidden))?;
    let direction = vec![i64::from(reverse)];
    let scan = infc_ir::op::Scan {
        captures: captured.len() as i64,
        num_scan_inputs: 1,
        scan_input_axes: vec![],
        scan_input_directions: direction.clone(),
        scan_output_axes: vec![],
        scan_output_directions: direction,
    };
    let operands: Vec<_> = [h, c, gates].into_iter().chain(captured).map(Some).collect();
    let out = r.builder.node(scan, &operands, vec![body], 3)?;
    Ok([out[2], out[0], out[1]])
}

/// A quantised tensor (with its scale and zero point) times quantised weights, as a float.
fn product(r: &mut Raise, x: &[Value], w: Value, scale: Value, zero: Value) -> Result<Value, Fault> {
    let sum = r.node_with("MatMulInteger", &[], &[Some(x[0]), Some(w), Some(x[2]), Some(zero)], 1)?[0];
    let sum = cast(r, sum, DType::F32)?;
    let scale = r.node("Mul", &[], &[x[1], scale])?;
    r.node("Mul", &[], &[sum, scale])
}

/// One step: states h and c, the input's part of the gates, then weights, scales, zero points. Gates stand in the order i, o, f, c.
fn lstm_step(b: &mut Builder, p: &[Value], hidden: i64) -> Result<Vec<Value>, Fault> {
    use infc_ir::op::*;
    let (c, gates, [u, scale, zero]) = (p[1], p[2], [p[3], p[4], p[5]]);
    let q = b.node(DynamicQuantizeLinear {}, &[Some(p[0])], vec![], 3)?;
    let sum = b.node(MatMulInteger {}, &[Some(q[0]), Some(u), Some(q[2]), Some(zero)], vec![], 1)?[0];
    let sum = b.op(Cast { round_mode: "up".into(), saturate: 1, to: DType::F32.onnx().into() }, &[sum])?;
    let factor = b.op(Mul {}, &[q[1], scale])?;
    let sum = b.op(Mul {}, &[sum, factor])?;
    let gates = b.op(Add {}, &[gates, sum])?;
    let sizes = b.ints(&[hidden; 4]);
    let parts = b.node(infc_ir::op::Split { axis: -1, num_outputs: None }, &[Some(gates), Some(sizes)], vec![], 4)?;
    let [i, o, f] = [0, 1, 2].map(|k| b.op(Sigmoid {}, &[parts[k]]));
    let (i, o, f) = (i?, o?, f?);
    let g = b.op(Tanh {}, &[parts[3]])?;
    let (kept, new) = (b.op(Mul {}, &[f, c])?, b.op(Mul {}, &[i, g])?);
    let c = b.op(Add {}, &[kept, new])?;
    let t = b.op(Tanh {}, &[c])?;
    let h = b.op(Mul {}, &[o, t])?;
    Ok(vec![h, c, h])
}
