//! Operators of `com.microsoft` on quantised weights and tensors, embeddings, and pooling with channels last.

use super::*;

pub(super) fn cast(r: &mut Raise, v: Value, to: DType) -> Result<Value, Fault> {
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

/// The first `wanted` of the columns of a matrix that has `have` of them.
fn columns_up_to(r: &mut Raise, v: Value, have: usize, wanted: usize) -> Result<Value, Fault> {
    if have == wanted {
        return Ok(v);
    }
    let [start, end, axis] = [0, wanted as i64, 1].map(|v| r.builder.ints(&[v]));
    r.node("Slice", &[], &[v, start, end, axis])
}

/// The first `wanted` elements of a vector.
fn rows_up_to(r: &mut Raise, v: Value, wanted: usize) -> Result<Value, Fault> {
    let t = r.builder.tensor(v)?;
    if t.rank() != 1 || t.dims[0].known().is_some_and(|d| d < wanted as i64) {
        return Err(fault!("operand 4 (g_idx) is {t}; a number for each of {wanted} rows is needed"));
    }
    if t.dims[0].is(wanted as i64) {
        return Ok(v);
    }
    let [start, end] = [0, wanted as i64].map(|v| r.builder.ints(&[v]));
    r.node("Slice", &[], &[v, start, end])
}

/// Rows of f32 rounded to whole multiples of a scale, from -127 to 127: that of each block is a 127th of its largest number.
fn rounded_rows(r: &mut Raise, a: Value, blocks: usize, block: usize) -> Result<Value, Fault> {
    let rank = r.builder.tensor(a)?.rank();
    let by_block: Vec<i64> = vec![0; rank.saturating_sub(1)].into_iter().chain([blocks as i64, block as i64]).collect();
    let a = r.reshape(a, &by_block)?;
    let (axis, most) = (r.builder.ints(&[-1]), r.builder.number(DType::F32, 127.0));
    let size = r.node("Abs", &[], &[a])?;
    let largest = r.node("ReduceMax", &[("keepdims", Attr::Int(1))], &[size, axis])?;
    let scale = r.node("Div", &[], &[largest, most])?;
    // Blocks of zeros are multiples of anything.
    let least = r.builder.number(DType::F32, f64::from(f32::MIN_POSITIVE));
    let scale = r.node("Max", &[], &[scale, least])?;
    let in_blocks = [("axis", Attr::Int(rank as i64)), ("block_size", Attr::Int(block as i64))];
    let bytes = ("output_dtype", Attr::Int(i64::from(DType::I8.onnx())));
    let multiple = r.node("QuantizeLinear", &[in_blocks.as_slice(), &[bytes]].concat(), &[a, scale])?;
    let rounded = r.node("DequantizeLinear", &in_blocks, &[multiple, scale])?;
    let rows: Vec<i64> = vec![0; rank.saturating_sub(1)].into_iter().chain([(blocks * block) as i64]).collect();
    r.reshape(rounded, &rows)
}

/// A, B by blocks of rows `[N, blocks, bytes]`, scales and zero points of blocks, group indices, bias.
pub fn matmul_nbits(r: &mut Raise) -> Result<(), Fault> {
    let size = |r: &mut Raise, name: &str| match r.take::<i64>(name)? {
        Some(n) if n > 0 => Ok(n as usize),
        other => Err(fault!("attribute '{name}' is {other:?}; a positive number is needed")),
    };
    let (depth, columns, block) = (size(r, "K")?, size(r, "N")?, size(r, "block_size")?);
    let bits = r.take::<i64>("bits")?.unwrap_or(4);
    let packed = unsigned(bits)?;
    let accuracy = r.take::<i64>("accuracy_level")?.unwrap_or(0);
    if let Some(way) = r.take::<i64>("weight_prepacked")?.filter(|&way| way != 0) {
        return Err(fault!("attribute 'weight_prepacked' is {way}, only 0 is supported"));
    }
    let (a, dtype) = (r.input(0)?, r.tensor(0)?.dtype);
    let blocks = depth.div_ceil(block);
    let all = [columns, blocks, block, bits as usize].into_iter().try_fold(1usize, usize::checked_mul);
    if all.is_none_or(|n| n > isize::MAX as usize) {
        return Err(fault!("attributes K ({depth}), N ({columns}) and block_size ({block}) make more weights than memory holds"));
    }
    // How exact a runtime has to be: from 4 on, data may have 8 bits, with a scale for each block. Floats are exact enough for all the others.
    let in_bytes = accuracy >= 4 && depth == blocks * block && dtype == DType::F32 && r.optional(4).is_none();
    let a = if in_bytes { rounded_rows(r, a, blocks, block)? } else { a };
    let weights = match scaled(r, (depth, columns), block, bits as usize) {
        Some(weights) => r.builder.constant(weights),
        None => unscaled(r, (depth, columns), block, packed)?,
    };
    let mut y = r.node("MatMul", &[], &[a, weights])?;
    if let Some(bias) = r.optional(5) {
        y = r.node("Add", &[], &[y, bias])?;
    }
    r.results = Some(vec![y]);
    Ok(())
}

/// The weights of MatMulNBits as f32 in their order `[K, N]`, if all that they are made of is known. Large models have more of them than fits memory several times, which the steps of
/// [`unscaled`] take.
fn scaled(r: &Raise, (depth, columns): (usize, usize), block: usize, bits: usize) -> Option<Tensor> {
    let (blocks, members) = (depth.div_ceil(block), 8 / bits);
    let (packed, scales) = (r.constant(1)?, r.constant(2)?);
    let row = blocks * block * bits / 8;
    let fits = packed.dtype == DType::U8 && packed.len() == columns * row && (block * bits).is_multiple_of(8);
    if !fits || scales.dtype != DType::F32 || scales.len() != columns * blocks || r.optional(4).is_some() {
        return None;
    }
    let number = |bytes: &[u8], i: usize| (bytes[i / members] >> (i % members * bits)) & ((1u16 << bits) - 1) as u8;
    let zeros: Vec<f32> = match (r.optional(3), r.constant(3)) {
        (None, _) => vec![f32::from(1u8 << (bits - 1)); columns * blocks],
        (Some(_), Some(t)) if t.dtype == DType::F32 && t.len() == columns * blocks => t.to_vec(),
        (Some(_), Some(t)) if t.dtype == DType::U8 && t.len() == columns * (blocks * bits).div_ceil(8) => {
            let rows = t.bytes().chunks((blocks * bits).div_ceil(8));
            rows.flat_map(|row| (0..blocks).map(|b| f32::from(number(row, b)))).collect()
        }
        _ => return None,
    };
    let scales = scales.to_vec::<f32>();
    let mut bytes = vec![0u8; 4 * depth * columns];
    // A few columns at a time, whose rows of packed numbers are read one after another while neighbours are written side by side.
    const SIDE: usize = 16;
    for first in (0..columns).step_by(SIDE) {
        let last = columns.min(first + SIDE);
        for k in 0..depth {
            let to = &mut bytes[4 * (k * columns + first)..4 * (k * columns + last)];
            for (n, place) in (first..last).zip(to.chunks_exact_mut(4)) {
                let of_block = n * blocks + k / block;
                let u = number(&packed.bytes()[n * row..(n + 1) * row], k);
                let v = (f32::from(u) - zeros[of_block]) * scales[of_block];
                place.copy_from_slice(&v.to_le_bytes());
            }
        }
    }
    Some(Tensor::from_bytes(DType::F32, vec![depth, columns], bytes))
}

/// The same as steps.
fn unscaled(r: &mut Raise, (depth, columns): (usize, usize), block: usize, packed: DType) -> Result<Value, Fault> {
    let (dtype, bits, blocks) = (r.tensor(0)?.dtype, i64::from(packed.bits()), depth.div_ceil(block));
    let weights = unpacked(r, 1, packed, &[columns, blocks, block])?;
    let mut weights = cast(r, weights, dtype)?;
    let by_block = [columns as i64, blocks as i64];
    let zeros = match r.optional(3) {
        None => {
            let middle = r.builder.number(dtype, (1i64 << (bits - 1)) as f64);
            r.reshape(middle, &[1, 1])?
        }
        Some(_) if r.tensor(3)?.dtype == DType::U8 => {
            let row = (blocks * bits as usize).div_ceil(8) * 8 / bits as usize;
            let zeros = unpacked(r, 3, packed, &[columns, row])?;
            let zeros = cast(r, zeros, dtype)?;
            columns_up_to(r, zeros, row, blocks)?
        }
        Some(zeros) => {
            let zeros = cast(r, zeros, dtype)?;
            r.reshape(zeros, &by_block)?
        }
    };
    let scales = r.reshape(r.input(2)?, &by_block)?;
    let weights = match r.optional(4) {
        // Each row of K says which of the scales is its own.
        Some(groups) => {
            weights = r.reshape(weights, &[columns as i64, (blocks * block) as i64])?;
            weights = columns_up_to(r, weights, blocks * block, depth)?;
            let groups = rows_up_to(r, groups, depth)?;
            let own = |r: &mut Raise, v: Value| match r.builder.dims(v)?[1].is(1) {
                true => Ok(v),
                false => r.node("Gather", &[("axis", Attr::Int(1))], &[v, groups]),
            };
            let (zeros, scales) = (own(r, zeros)?, own(r, scales)?);
            weights = r.node("Sub", &[], &[weights, zeros])?;
            r.node("Mul", &[], &[weights, scales])?
        }
        None => {
            let axis = r.builder.ints(&[2]);
            let (zeros, scales) = (r.node("Unsqueeze", &[], &[zeros, axis])?, r.node("Unsqueeze", &[], &[scales, axis])?);
            weights = r.node("Sub", &[], &[weights, zeros])?;
            weights = r.node("Mul", &[], &[weights, scales])?;
            weights = r.reshape(weights, &[columns as i64, (blocks * block) as i64])?;
            columns_up_to(r, weights, blocks * block, depth)?
        }
    };
    r.node("Transpose", &[("perm", Attr::Ints(vec![1, 0]))], &[weights])
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
