//! Attention and what belongs to it in `com.microsoft`: projections, masks and caches around the operator of ai.onnx.

use super::*;

/// What masked positions get unless the node says otherwise.
const FILTER: f32 = -10000.0;

/// The axis as a scalar `i64`.
fn length_of(r: &mut Raise, v: Value, axis: i64) -> Result<Value, Fault> {
    let size = r.node("Shape", &[("start", Attr::Int(axis)), ("end", Attr::Int(axis + 1))], &[v])?;
    r.node("Squeeze", &[], &[size])
}

/// A vector of `i64` with the positions from 0 to a scalar.
fn positions(r: &mut Raise, count: Value) -> Result<Value, Fault> {
    let [zero, one] = [0i64, 1].map(|v| r.builder.constant(Tensor::from_vec([], vec![v])));
    r.node("Range", &[], &[zero, count, one])
}

fn unsqueeze(r: &mut Raise, v: Value, axes: &[i64]) -> Result<Value, Fault> {
    let axes = r.builder.ints(axes);
    r.node("Unsqueeze", &[], &[v, axes])
}

fn cast(r: &mut Raise, v: Value, to: DType) -> Result<Value, Fault> {
    if r.builder.tensor(v)?.dtype == to {
        return Ok(v);
    }
    r.node("Cast", &[("to", Attr::Int(i64::from(to.onnx())))], &[v])
}

/// `[batch, sequence, heads * size]` to `[batch, heads, sequence, size]`.
fn split_heads(r: &mut Raise, v: Value, heads: i64) -> Result<Value, Fault> {
    let shape = r.builder.ints(&[0, 0, heads, -1]);
    let v = r.node("Reshape", &[], &[v, shape])?;
    r.node("Transpose", &[("perm", Attr::Ints(vec![0, 2, 1, 3]))], &[v])
}

fn join_heads(r: &mut Raise, v: Value) -> Result<Value, Fault> {
    let v = r.node("Transpose", &[("perm", Attr::Ints(vec![0, 2, 1, 3]))], &[v])?;
    let shape = r.builder.ints(&[0, 0, -1]);
    r.node("Reshape", &[], &[v, shape])
}

/// Parts of `v` along its last axis.
fn parts(r: &mut Raise, v: Value, sizes: &[i64], axis: i64) -> Result<Vec<Value>, Fault> {
    let split = r.builder.ints(sizes);
    r.node_with("Split", &[("axis", Attr::Int(axis))], &[Some(v), Some(split)], sizes.len())
}

/// An error for operands that have no form here.
fn refuse(r: &Raise, operands: &[(usize, &str)]) -> Result<(), Fault> {
    match operands.iter().find(|(i, _)| r.optional(*i).is_some()) {
        Some((i, what)) => Err(fault!("operand {i} ({what}) is not supported")),
        None => Ok(()),
    }
}

/// An error for attributes whose value is another than the one that has a form here.
fn only(r: &mut Raise, name: &str, value: i64) -> Result<(), Fault> {
    match r.take::<i64>(name)? {
        Some(v) if v != value => Err(fault!("attribute '{name}' is {v}, only {value} is supported")),
        _ => Ok(()),
    }
}

/// The number of heads, positive.
fn heads(r: &mut Raise, name: &str) -> Result<i64, Fault> {
    match r.take::<i64>(name)? {
        Some(n) if n > 0 => Ok(n),
        other => Err(fault!("attribute '{name}' is {other:?}; a positive number is needed")),
    }
}

/// The additive mask that operand `i` means for keys `[batch, heads, total, size]`: lengths, ends and starts, or 1 where a key counts.
fn padding_mask(r: &mut Raise, i: usize, key: (Value, Option<Value>), dtype: DType, filter: f32) -> Result<Option<Value>, Fault> {
    let Some(mask) = r.optional(i) else { return Ok(None) };
    let (t, batch) = (r.tensor(i)?, r.tensor(0)?.dims[0]);
    let zero = r.builder.number(t.dtype, 0.0);
    let counts = match t.rank() {
        1 => {
            let mut total = length_of(r, key.0, 2)?;
            if let Some(past) = key.1 {
                let past = length_of(r, past, 2)?;
                total = r.node("Add", &[], &[total, past])?;
            }
            let at = positions(r, total)?;
            let mask = cast(r, mask, DType::I64)?;
            let below = |r: &mut Raise, ends: Value| {
                let ends = unsqueeze(r, ends, &[1])?;
                r.node("Less", &[], &[at, ends])
            };
            let inside = if t.dims[0] == batch {
                below(r, mask)?
            } else if t.dims[0] == batch * 2 {
                let halves = r.node_with("Split", &[("axis", Attr::Int(0)), ("num_outputs", Attr::Int(2))], &[Some(mask)], 2)?;
                let (before, start) = (below(r, halves[0])?, below(r, halves[1])?);
                let from = r.node("Not", &[], &[start])?;
                r.node("And", &[], &[before, from])?
            } else {
                return Err(fault!("the mask is {t}; for a batch of {batch} it can be lengths, or ends and starts"));
            };
            unsqueeze(r, inside, &[1, 2])?
        }
        2 | 3 => {
            let counts = r.node("Greater", &[], &[mask, zero])?;
            let axes: &[i64] = if t.rank() == 2 { &[1, 2] } else { &[1] };
            unsqueeze(r, counts, axes)?
        }
        _ => return Err(fault!("the mask is {t}; rank 1, 2 or 3 is supported")),
    };
    let (nothing, filter) = (r.builder.number(dtype, 0.0), r.builder.number(dtype, f64::from(filter)));
    Ok(Some(r.node("Where", &[], &[counts, nothing, filter])?))
}

/// The sum of two masks that may be absent, with a row for each of the queries `[batch, heads, queries, size]`.
fn both(r: &mut Raise, a: Option<Value>, b: Option<Value>, query: Value) -> Result<Option<Value>, Fault> {
    let sum = match (a, b) {
        (Some(a), Some(b)) => Some(r.node("Add", &[], &[a, b])?),
        (a, b) => a.or(b),
    };
    let Some(mask) = sum else { return Ok(None) };
    if !r.builder.dims(mask)?.get(2).is_some_and(|d| d.is(1)) || r.builder.dims(query)?[2].is(1) {
        return Ok(Some(mask));
    }
    let queries = length_of(r, query, 2)?;
    let (queries, one) = (unsqueeze(r, queries, &[0])?, r.builder.ints(&[1]));
    let shape = r.node("Concat", &[("axis", Attr::Int(0))], &[queries, one])?;
    Ok(Some(r.node("Expand", &[], &[mask, shape])?))
}

/// The scale as an attribute of Attention; 0 and absent mean its default.
fn scale(r: &mut Raise) -> Result<Vec<(&'static str, Attr)>, Fault> {
    Ok(r.take::<f32>("scale")?.filter(|&s| s != 0.0).map(|s| ("scale", Attr::Float(s))).into_iter().collect())
}

/// One product for query, key and value, then attention: input, weights, bias, mask, past, attention bias.
pub fn attention(r: &mut Raise) -> Result<(), Fault> {
    let n = heads(r, "num_heads")?;
    let filter = r.take::<f32>("mask_filter_value")?.unwrap_or(FILTER);
    let causal = r.take::<i64>("unidirectional")?.unwrap_or(0);
    let sizes = r.take::<Vec<i64>>("qkv_hidden_sizes")?.unwrap_or_default();
    for (name, value) in [("do_rotary", 0), ("past_present_share_buffer", 0)] {
        only(r, name, value)?;
    }
    r.take::<i64>("rotary_embedding_dim")?;
    refuse(r, &[(6, "past_sequence_length")])?;
    let (dtype, weights) = (r.tensor(0)?.dtype, r.tensor(1)?);
    let width = known_dim(*weights.dims.last().ok_or_else(|| fault!("the weights are {weights}"))?, "the width of the weights")?;
    let sizes = if sizes.is_empty() { vec![width / 3; 3] } else { sizes };
    if sizes.len() != 3 || sizes.iter().sum::<i64>() != width || sizes.iter().any(|s| s % n != 0) {
        return Err(fault!("query, key and value of {sizes:?} do not fit weights {weights} and {n} heads"));
    }
    let mut all = r.node("MatMul", &[], &[r.input(0)?, r.input(1)?])?;
    if let Some(bias) = r.optional(2) {
        all = r.node("Add", &[], &[all, bias])?;
    }
    let split = parts(r, all, &sizes, -1)?;
    let mut qkv = vec![];
    for v in split {
        qkv.push(split_heads(r, v, n)?);
    }
    let mut past = [None; 2];
    if let Some(v) = r.optional(4) {
        for (k, part) in parts(r, v, &[1, 1], 0)?.into_iter().enumerate() {
            let axes = r.builder.ints(&[0]);
            past[k] = Some(r.node("Squeeze", &[], &[part, axes])?);
        }
    }
    let mask = padding_mask(r, 3, (qkv[1], past[0]), dtype, filter)?;
    let mask = both(r, mask, r.optional(5), qkv[0])?;
    let mut attrs = scale(r)?;
    attrs.push(("is_causal", Attr::Int(causal)));
    let operands = [Some(qkv[0]), Some(qkv[1]), Some(qkv[2]), mask, past[0], past[1]];
    let made = r.node_with("Attention", &attrs, &operands, if r.outputs > 1 { 3 } else { 1 })?;
    let mut results = vec![join_heads(r, made[0])?];
    if r.outputs > 1 {
        let (key, value) = (unsqueeze(r, made[1], &[0])?, unsqueeze(r, made[2], &[0])?);
        results.push(r.node("Concat", &[("axis", Attr::Int(0))], &[key, value])?);
    }
    r.results = Some(results);
    Ok(())
}

/// Query, key and value that are packed, one by one: all three in operand 0 `[batch, sequence, heads, 3, size]`, or key and value in operand 1
/// `[batch, sequence, heads, 2, size]`.
fn taken_apart(r: &mut Raise) -> Result<(), Fault> {
    let rank = |r: &Raise, i: usize| r.tensor(i).map(|t| t.rank());
    let (from, count) = match (r.optional(1), r.optional(2)) {
        (None, None) if rank(r, 0)? == 5 => (0, 3),
        (Some(_), None) if rank(r, 0)? == 3 && rank(r, 1)? == 5 => (1, 2),
        (Some(_), Some(_)) if rank(r, 0)? == 3 => return Ok(()),
        (key, value) => {
            let given = [r.optional(0), key, value].map(|v| match v.map(|v| r.builder.tensor(v)) {
                Some(Ok(t)) => t.to_string(),
                _ => "none".to_owned(),
            });
            return Err(fault!(
                "query, key and value are {}; supported are [batch, sequence, hidden] with key and value, [batch, sequence, hidden] with \
                 both in a key [batch, sequence, heads, 2, size], and all in a query [batch, sequence, heads, 3, size]",
                given.join(", ")
            ));
        }
    };
    let (packed, hidden) = (r.input(from)?, r.builder.ints(&[0, 0, -1]));
    for (k, part) in parts(r, packed, &vec![1; count], 3)?.into_iter().enumerate() {
        let part = r.node("Reshape", &[], &[part, hidden])?;
        r.set_input(from + k, Some(part));
    }
    Ok(())
}

/// Query, key, value, bias, key padding mask, attention bias, past key and value.
pub fn multi_head(r: &mut Raise) -> Result<(), Fault> {
    let n = heads(r, "num_heads")?;
    let filter = r.take::<f32>("mask_filter_value")?.unwrap_or(FILTER);
    let causal = r.take::<i64>("unidirectional")?.unwrap_or(0);
    refuse(r, &[(8, "past_sequence_length"), (9, "cache_indirection")])?;
    taken_apart(r)?;
    let dtype = r.tensor(0)?.dtype;
    let mut biases = vec![None; 3];
    if let Some(bias) = r.optional(3) {
        let mut sizes = vec![];
        for i in 0..3 {
            let t = r.tensor(i)?;
            sizes.push(if t.rank() == 3 {
                known_dim(t.dims[2], "the hidden size")?
            } else {
                n * known_dim(t.dims[3], "the head size")?
            });
        }
        biases = parts(r, bias, &sizes, 0)?.into_iter().map(Some).collect();
    }
    let mut qkv = vec![];
    for (i, bias) in biases.iter().enumerate() {
        let mut v = r.input(i)?;
        match (r.tensor(i)?.rank(), bias) {
            (3, Some(bias)) => v = r.node("Add", &[], &[v, *bias])?,
            (3, None) | (4, None) => {}
            // Key and value with heads of their own have got their bias before.
            (4, Some(_)) => {}
            (rank, _) => return Err(fault!("operand {i} has rank {rank}; 3 or 4 is supported")),
        }
        qkv.push(if r.tensor(i)?.rank() == 3 { split_heads(r, v, n)? } else { v });
    }
    let past = [r.optional(6), r.optional(7)];
    let mask = padding_mask(r, 4, (qkv[1], past[0]), dtype, filter)?;
    let mask = both(r, mask, r.optional(5), qkv[0])?;
    let mut attrs = scale(r)?;
    attrs.push(("is_causal", Attr::Int(causal)));
    let operands = [Some(qkv[0]), Some(qkv[1]), Some(qkv[2]), mask, past[0], past[1]];
    let outputs = r.outputs;
    let mut made = r.node_with("Attention", &attrs, &operands, outputs)?;
    made[0] = join_heads(r, made[0])?;
    r.results = Some(made);
    Ok(())
}

/// The operands of a GroupQueryAttention that say where it stands in the sequence, all `i64`.
struct Place {
    /// `[batch, 1]`: keys before this call.
    past: Value,
    /// `[batch, 1]`: keys after it.
    total: Value,
    /// Scalar: queries of this call.
    queries: Value,
    /// Scalar: length of the caches that come out.
    keys: Value,
}

/// Query, key, value (or all in the first), past key and value, lengths less 1, total length, cosines, sines, positions, attention bias,
/// sinks of heads. Caches are buffers: new keys go behind the past ones of each sequence, what is behind them is 0.
pub fn group_query(r: &mut Raise) -> Result<(), Fault> {
    let (n, kv) = (heads(r, "num_heads")?, heads(r, "kv_num_heads")?);
    let rotary = r.take::<i64>("do_rotary")?.unwrap_or(0) != 0;
    let interleaved = r.take::<i64>("rotary_interleaved")?.unwrap_or(0);
    let window = r.take::<i64>("local_window_size")?.unwrap_or(-1);
    let softcap = r.take::<f32>("softcap")?.unwrap_or(0.0);
    let smooth = r.take::<i64>("smooth_softmax")?.unwrap_or(0) > 0;
    for name in ["qk_output", "kv_cache_bit_width"] {
        only(r, name, 0)?;
    }
    for name in ["k_quant_type", "v_quant_type"] {
        match r.take::<String>(name)? {
            Some(kind) if kind != "NONE" => return Err(fault!("attribute '{name}' is '{kind}', only NONE is supported")),
            _ => {}
        }
    }
    refuse(r, &[(12, "k_scale"), (13, "v_scale")])?;
    let dtype = r.tensor(0)?.dtype;
    let mut attrs = scale(r)?;
    attrs.extend([("softcap", Attr::Float(softcap))]);
    let (query, key, value) = match (r.optional(1), r.optional(2)) {
        (Some(k), Some(v)) => (r.input(0)?, k, v),
        (None, None) => {
            let t = r.tensor(0)?;
            let width = known_dim(*t.dims.last().ok_or_else(|| fault!("operand 0 is {t}"))?, "the width of operand 0")?;
            let size = width / (n + 2 * kv);
            let v = parts(r, r.input(0)?, &[n * size, kv * size, kv * size], -1)?;
            (v[0], v[1], v[2])
        }
        _ => return Err(fault!("key and value must be given together")),
    };
    let [mut query, mut key, value] = [split_heads(r, query, n)?, split_heads(r, key, kv)?, split_heads(r, value, kv)?];
    let place = place(r, query)?;
    if rotary {
        let at = match r.optional(9) {
            Some(given) => cast(r, given, DType::I64)?,
            None => {
                let steps = positions(r, place.queries)?;
                r.node("Add", &[], &[place.past, steps])?
            }
        };
        query = turned(r, query, at, interleaved)?;
        key = turned(r, key, at, interleaved)?;
    }
    let keys = cache(r, 3, key, &place)?;
    let values = cache(r, 4, value, &place)?;
    let mask = group_mask(r, &place, window, dtype)?;
    let [seen_keys, seen_values, mask] = match r.optional(11) {
        None if !smooth => [keys, values, mask],
        sink => with_sink(r, sink, query, [keys, values, mask], n)?,
    };
    let made = r.node_with("Attention", &attrs, &[Some(query), Some(seen_keys), Some(seen_values), Some(mask)], 1)?;
    r.results = Some(vec![join_heads(r, made[0])?, keys, values][..r.outputs.clamp(1, 3)].to_vec());
    Ok(())
}

fn place(r: &mut Raise, query: Value) -> Result<Place, Fault> {
    let queries = length_of(r, query, 2)?;
    let lengths = cast(r, r.input(5)?, DType::I64)?;
    let column = r.builder.ints(&[-1, 1]);
    let lengths = r.node("Reshape", &[], &[lengths, column])?;
    let [zero, one] = [0i64, 1].map(|v| r.builder.constant(Tensor::from_vec([], vec![v])));
    let total = r.node("Add", &[], &[lengths, one])?;
    let past = r.node("Sub", &[], &[total, queries])?;
    let past = r.node("Max", &[], &[past, zero])?;
    let asked = cast(r, r.input(6)?, DType::I64)?;
    let none = r.builder.ints(&[]);
    let asked = r.node("Reshape", &[], &[asked, none])?;
    let keys = match r.optional(3) {
        Some(buffer) => {
            let size = length_of(r, buffer, 2)?;
            r.node("Max", &[], &[size, asked])?
        }
        None => asked,
    };
    Ok(Place { past, total, queries, keys })
}

/// `x` rotated at positions `[batch, sequence]`.
fn turned(r: &mut Raise, x: Value, at: Value, interleaved: i64) -> Result<Value, Fault> {
    let (cos, sin) = (r.input(7)?, r.input(8)?);
    let half = known_dim(r.builder.dims(cos)?[1], "the width of the cosines")?;
    let size = r.builder.dims(x)?[3];
    let part = if size.is(2 * half) { 0 } else { 2 * half };
    let attrs = [("interleaved", Attr::Int(interleaved)), ("rotary_embedding_dim", Attr::Int(part))];
    r.node("RotaryEmbedding", &attrs, &[x, cos, sin, at])
}

/// The cache in operand `i` with new entries behind the past ones of each sequence.
fn cache(r: &mut Raise, i: usize, new: Value, place: &Place) -> Result<Value, Fault> {
    let dtype = r.builder.tensor(new)?.dtype;
    let nothing = r.builder.number(dtype, 0.0);
    let scalar = |r: &mut Raise, v: Value| unsqueeze(r, v, &[0]);
    let buffer = match r.optional(i) {
        Some(buffer) => {
            let size = length_of(r, buffer, 2)?;
            let at = positions(r, size)?;
            let kept = r.node("Less", &[], &[at, place.past])?;
            let kept = unsqueeze(r, kept, &[1, 3])?;
            let buffer = r.node("Where", &[], &[kept, buffer, nothing])?;
            let more = r.node("Sub", &[], &[place.keys, size])?;
            let more = scalar(r, more)?;
            let (none, axis) = (r.builder.ints(&[0]), r.builder.ints(&[2]));
            let pads = r.node("Concat", &[("axis", Attr::Int(0))], &[none, more])?;
            r.node("Pad", &[], &[buffer, pads, nothing, axis])?
        }
        None => {
            let shape = r.node("Shape", &[], &[new])?;
            let front = r.builder.ints(&[0, 1]);
            let (front, back) = (r.node("Gather", &[], &[shape, front])?, r.node("Shape", &[("start", Attr::Int(3))], &[new])?);
            let keys = scalar(r, place.keys)?;
            let shape = r.node("Concat", &[("axis", Attr::Int(0))], &[front, keys, back])?;
            r.node("Expand", &[], &[nothing, shape])?
        }
    };
    let flat = r.builder.ints(&[-1]);
    let past = r.node("Reshape", &[], &[place.past, flat])?;
    r.node("TensorScatter", &[("axis", Attr::Int(2))], &[buffer, new, past])
}

/// Query `i` of a sequence looks at its keys up to its own position, at most `window` of them; operand 10 is added.
fn group_mask(r: &mut Raise, place: &Place, window: i64, dtype: DType) -> Result<Value, Fault> {
    let (at, steps) = (positions(r, place.keys)?, positions(r, place.queries)?);
    let now = r.node("Add", &[], &[place.past, steps])?;
    let now = unsqueeze(r, now, &[2])?;
    let seen = r.node("LessOrEqual", &[], &[at, now])?;
    let total = unsqueeze(r, place.total, &[2])?;
    let there = r.node("Less", &[], &[at, total])?;
    let mut allowed = r.node("And", &[], &[seen, there])?;
    if window > 0 {
        let window = r.builder.constant(Tensor::from_vec([], vec![window]));
        let before = r.node("Sub", &[], &[now, window])?;
        let near = r.node("Less", &[], &[before, at])?;
        allowed = r.node("And", &[], &[allowed, near])?;
    }
    let allowed = unsqueeze(r, allowed, &[1])?;
    match r.optional(10) {
        None => Ok(allowed),
        Some(bias) => {
            let low = r.builder.number(dtype, f64::NEG_INFINITY);
            r.node("Where", &[], &[allowed, bias, low])
        }
    }
}

/// Keys, values and mask with one more key, of zeros, that takes a share of each softmax: `exp(sink)` of its head, `exp(0)` without a sink.
fn with_sink(
    r: &mut Raise,
    sink: Option<Value>,
    query: Value,
    [keys, values, mask]: [Value; 3],
    heads: i64,
) -> Result<[Value; 3], Fault> {
    let dtype = r.builder.tensor(query)?.dtype;
    let (zero, low) = (r.builder.number(dtype, 0.0), r.builder.number(dtype, f64::NEG_INFINITY));
    let (pads, axis) = (r.builder.ints(&[0, 1]), r.builder.ints(&[2]));
    let wider = |r: &mut Raise, v: Value| r.node("Pad", &[], &[v, pads, zero, axis]);
    let mask = match r.builder.tensor(mask)?.dtype {
        DType::Bool => r.node("Where", &[], &[mask, zero, low])?,
        _ => mask,
    };
    let rows = r.node("Shape", &[("end", Attr::Int(3))], &[query])?;
    let columns = r.node("Shape", &[("start", Attr::Int(2)), ("end", Attr::Int(3))], &[keys])?;
    let one = r.builder.ints(&[1]);
    let all = |r: &mut Raise, v: Value, columns: Value| {
        let shape = r.node("Concat", &[("axis", Attr::Int(0))], &[rows, columns])?;
        r.node("Expand", &[], &[v, shape])
    };
    let sink = match sink {
        Some(v) => r.reshape(v, &[1, heads, 1, 1])?,
        None => zero,
    };
    let (mask, sink) = (all(r, mask, columns)?, all(r, sink, one)?);
    let mask = r.node("Concat", &[("axis", Attr::Int(3))], &[mask, sink])?;
    Ok([wider(r, keys)?, wider(r, values)?, mask])
}

/// Input, positions (one for the first, or one each), cosines, sines.
pub fn rotary(r: &mut Raise) -> Result<(), Fault> {
    only(r, "is_packed_batching", 0)?;
    if let Some(scale) = r.take::<f32>("scale")?.filter(|&s| s != 1.0) {
        return Err(fault!("attribute 'scale' is {scale}, only 1 is supported"));
    }
    let (x, t) = (r.input(0)?, r.tensor(0)?);
    let mut at = cast(r, r.input(1)?, DType::I64)?;
    if r.tensor(1)?.rank() < 2 {
        let (batch, sequence) = (length_of(r, x, 0)?, length_of(r, x, if t.rank() == 4 { 2 } else { 1 })?);
        let steps = positions(r, sequence)?;
        at = r.node("Add", &[], &[at, steps])?;
        let (batch, sequence) = (unsqueeze(r, batch, &[0])?, unsqueeze(r, sequence, &[0])?);
        let shape = r.node("Concat", &[("axis", Attr::Int(0))], &[batch, sequence])?;
        at = r.node("Expand", &[], &[at, shape])?;
    }
    let half = known_dim(r.tensor(2)?.dims[1], "the width of the cosines")?;
    let given = r.take::<i64>("num_heads")?.filter(|&n| n > 0);
    if t.rank() == 3 {
        let width = known_dim(t.dims[2], "the hidden size")?;
        r.attrs.set("num_heads", Attr::Int(given.unwrap_or(width / (2 * half))));
    }
    r.inputs = vec![Some(x), Some(r.input(2)?), Some(r.input(3)?), Some(at)];
    r.rename("RotaryEmbedding");
    Ok(())
}
