//! Quantisers of other forms and in other places, brought to QuantizeLinear and DequantizeLinear around contractions.
//!
//! - QONNX `Quant` of a constant is the stored integers, dequantised: the same numbers. `Quant` of data is limits, QuantizeLinear and
//!   DequantizeLinear: `Q(min(max(x, lo), hi))`. Both for up to 8 bits. `BipolarQuant` of a constant likewise.
//! - `(conv(x, DQ(w)) + b) * k + s` for constants `k`, `s` by channel: the scale of `w` takes `k`, the bias the rest.
//! - `Q`, Relu and Clip before data movement, concatenation and the largest of a window, instead of behind: they are monotone, element by
//!   element.
//! - `Q(min(max(v, lo), hi)) = min(max(Q(v), Q(lo)), Q(hi))`: limits are those of integers.
//! - DequantizeLinear behind data movement and the largest of a window, instead of before; Relu behind it is a limit of integers.
//! - ONNX Runtime's operators on quantised tensors, as the float operator between DQ and Q.
//! - `Q(average(DQ(x)))` is the integer sum, requantised: a convolution by channel whose weights are 1.
//!
//! For targets that compute in integers only; `integer` comes after it. Class: one rounding.

use crate::batchnorm::{Affine, affine};
use crate::rewrite::{Context, Replacement, Site, each_node};
use infc_ir::graph::{Graph, Node};
use infc_ir::interp::eval_op;
use infc_ir::op::{AveragePool, Clip, DequantizeLinear, QLinearConv, QuantizeLinear, Reshape};
use infc_ir::{DType, Op, Problems, Tensor, Value};

/// Runs the pass; counts rewrites.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    each_node(g, cx, "quantisers", &mut rule)
}

const RULES: [fn(&mut Site) -> Replacement; 10] =
    [levels, bipolar, limits, scale, hoist, limited, sink, rectify, contrib, average];

fn rule(site: &mut Site) -> Replacement {
    for rule in RULES {
        if let Some(values) = rule(site)? {
            return Ok(Some(values));
        }
    }
    Ok(None)
}

fn q_op() -> QuantizeLinear {
    QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 }
}

fn dq_op(axis: i64) -> DequantizeLinear {
    DequantizeLinear { axis, block_size: 0, output_dtype: 0 }
}

/// The only element of a constant operand.
fn single(site: &Site, i: usize) -> Option<f64> {
    site.constant(i).filter(|t| t.len() == 1).map(|t| t.float(0))
}

/// A scale for tensors of `rank` dims: its elements and the axis along which it differs.
fn scale_axis(scale: &Tensor, rank: usize) -> Option<(usize, Tensor)> {
    if scale.len() == 1 {
        return Some((0, scale.reshape([])));
    }
    let skip = rank.checked_sub(scale.dims.len())?;
    let mut wide = scale.dims.iter().enumerate().filter(|(_, d)| **d != 1);
    let (axis, _) = wide.next()?;
    wide.next().is_none().then(|| (axis + skip, scale.reshape([scale.len()])))
}

/// What `Quant` can store: dtype, least and greatest integer.
fn storage(bits: f64, signed: bool, narrow: bool) -> Option<(DType, i64, i64)> {
    let least = if signed { 2.0 } else { 1.0 };
    if bits.fract() != 0.0 || !(least..=8.0).contains(&bits) {
        return None;
    }
    let (size, narrow) = (1i64 << (bits as u32 - u32::from(signed)), i64::from(narrow));
    Some(if signed { (DType::I8, narrow - size, size - 1) } else { (DType::U8, 0, size - 1 - narrow) })
}

/// `DQ(integers)` that is `real`, bit for bit, for this scale and zero point; `None` if there is none.
fn stored(real: &Tensor, scale: &Tensor, zero: f64, dtype: DType) -> Option<(Tensor, Tensor, i64)> {
    let (axis, scales) = scale_axis(scale, real.dims.len())?;
    let inner: usize = real.dims[(axis + 1).min(real.dims.len())..].iter().product();
    let (least, most) = dtype.int_range()?;
    let mut integers = vec![];
    for i in 0..real.len() {
        let s = scales.float(i / inner % scales.len());
        let level = (real.float(i) / s + zero).round_ties_even();
        if !(least as f64..=most as f64).contains(&level) {
            return None;
        }
        integers.push(level as i64 as u64);
    }
    let integers = Tensor::from_values(dtype, real.dims.clone(), integers);
    let zeros = Tensor::from_values(dtype, scales.dims.clone(), vec![zero as i64 as u64; scales.len()]);
    let inputs = [integers.clone(), scales.clone(), zeros].map(Some);
    let back = eval_op(&dq_op(axis as i64).into(), &inputs, 1).ok()?.pop()?;
    let same = (0..real.len()).all(|i| back.float(i) == real.float(i));
    same.then_some((integers, scales, axis as i64))
}

/// The constant as stored integers and their dequantisation.
fn build_stored(site: &mut Site, found: Option<(Tensor, Tensor, i64)>, zero: f64) -> Replacement {
    let Some((integers, scales, axis)) = found else { return Ok(None) };
    let zeros = Tensor::from_values(integers.dtype, scales.dims.clone(), vec![zero as i64 as u64; scales.len()]);
    site.build(|b| {
        let inputs = [integers, scales, zeros].map(|t| b.constant(t));
        b.op(dq_op(axis), &inputs)
    })
    .map(|v| Some(vec![v]))
}

/// Quant of a constant.
fn levels(site: &mut Site) -> Replacement {
    let Op::Quant(op) = site.op().clone() else { return Ok(None) };
    let constants: Option<Vec<Tensor>> = (0..4).map(|i| site.constant(i).cloned()).collect();
    let Some(constants) = constants else { return Ok(None) };
    let (Some(zero), Some(bits)) = (single(site, 2), single(site, 3)) else { return Ok(None) };
    let (signed, narrow) = (op.signed != 0, op.narrow != 0);
    // One bit with a sign is -1 and 1.
    let storage = if signed && bits == 1.0 { Some((DType::I8, -1, 1)) } else { storage(bits, signed, narrow) };
    let Some((dtype, ..)) = storage else { return Ok(None) };
    let real = eval_op(&op.into(), &constants.iter().cloned().map(Some).collect::<Vec<_>>(), 1)?.remove(0);
    build_stored(site, stored(&real, &constants[1], zero, dtype), zero)
}

/// BipolarQuant of a constant.
fn bipolar(site: &mut Site) -> Replacement {
    let Op::BipolarQuant(op) = site.op().clone() else { return Ok(None) };
    let (Some(x), Some(scale)) = (site.constant(0).cloned(), site.constant(1).cloned()) else { return Ok(None) };
    let real = eval_op(&op.into(), &[Some(x), Some(scale.clone())], 1)?.remove(0);
    build_stored(site, stored(&real, &scale, 0.0, DType::I8), 0.0)
}

/// Quant of data: limits, QuantizeLinear, DequantizeLinear.
fn limits(site: &mut Site) -> Replacement {
    let Op::Quant(op) = site.op().clone() else { return Ok(None) };
    let (Some(scale), Some(zero), Some(bits)) = (single(site, 1), single(site, 2), single(site, 3)) else { return Ok(None) };
    let rounds = matches!(op.rounding_mode.to_uppercase().as_str(), "ROUND" | "HALF_EVEN");
    let Some((dtype, least, most)) = storage(bits, op.signed != 0, op.narrow != 0) else { return Ok(None) };
    let Some(x) = site.input(0).filter(|&v| site.graph.constant(v).is_none()) else { return Ok(None) };
    let (low, high) = dtype.int_range().unwrap_or((0, 0));
    let fits = zero.fract() == 0.0 && (low as f64..=high as f64).contains(&zero);
    if !rounds || !fits || scale <= 0.0 || site.graph.ty(x).dtype() != Some(DType::F32) {
        return Ok(None);
    }
    let real = |q: i64| Tensor::from_vec([], vec![((q as f64 - zero) * scale) as f32]);
    site.build(|b| {
        let bounds = [(least as i128 > low, least), ((most as i128) < high, most)];
        let mut v = x;
        if bounds.iter().any(|&(needed, _)| needed) {
            let inputs = bounds.map(|(needed, q)| needed.then(|| b.constant(real(q))));
            v = b.node(Clip {}, &[Some(x), inputs[0], inputs[1]], vec![], 1)?[0];
        }
        let s = b.constant(Tensor::from_vec([], vec![scale as f32]));
        let z = b.constant(Tensor::from_values(dtype, [], [zero as i64 as u64]));
        let q = b.op(q_op(), &[v, s, z])?;
        b.op(dq_op(1), &[q, s, z])
    })
    .map(|v| Some(vec![v]))
}

/// A contraction whose weights are stored integers, times and plus constants by channel.
fn scale(site: &mut Site) -> Replacement {
    let Some(map) = affine(site) else { return Ok(None) };
    let Some(linear) = site.producer(map.of).filter(|_| site.used_once(map.of)) else { return Ok(None) };
    let data = site.graph.node(linear).clone();
    let axis = match &data.op {
        Op::Conv(_) => 0,
        Op::Gemm(op) if op.transB != 0 => 0,
        Op::Gemm(_) | Op::MatMul(_) => 1,
        _ => return Ok(None),
    };
    let Some(weights) = data.operand(1).and_then(|v| site.producer(v)) else { return Ok(None) };
    let Op::DequantizeLinear(dq) = site.graph.node(weights).op.clone() else { return Ok(None) };
    let constants: Vec<Option<Tensor>> =
        (0..3).map(|i| site.graph.node(weights).operand(i).and_then(|v| site.graph.constant(v).cloned())).collect();
    let [Some(w), Some(s), Some(z)] = &constants[..] else { return Ok(None) };
    let bias = match data.operand(2) {
        None => None,
        Some(v) => match site.graph.constant(v) {
            Some(t) if t.dims.len() <= 1 => Some(t.clone()),
            _ => return Ok(None),
        },
    };
    // A plain addition behind a MatMul is its bias already.
    let useless = matches!(data.op, Op::MatMul(_)) && (!map.scales() || matches!(site.op(), Op::BatchNormalization(_)));
    let plain = w.dtype == DType::I8 && w.dims.len() >= 2 && z.to_ints().iter().all(|&z| z == 0);
    if useless || !plain || s.len() > 1 && dq.axis != axis as i64 || w.dims.len() != 2 && axis != 0 {
        return Ok(None);
    }
    let (channels, beta) = (w.dims[axis], if let Op::Gemm(op) = &data.op { f64::from(op.beta) } else { 1.0 });
    let shift: Vec<f32> = (0..channels)
        .map(|c| bias.as_ref().map_or(0.0, |b| b.float(c % b.len()) * beta * map.factor(c)) + map.shift(c))
        .map(|v| v as f32)
        .collect();
    let Some(sx) = data.operand(0).and_then(|v| site.producer(v)).and_then(|n| site.graph.node(n).operand(1)) else {
        return Ok(None);
    };
    let Some(sx) = site.graph.constant(sx).filter(|t| t.len() == 1).map(|t| t.float(0)) else { return Ok(None) };
    let least = |c: usize| f64::from(shift[c].abs()) / (BIAS * sx);
    let Some((w, s)) = scaled(w, s, axis, &map, &least) else { return Ok(None) };
    site.absorb(linear);
    site.absorb(weights);
    site.build(|b| {
        let z = Tensor::from_values(DType::I8, [channels], vec![0; channels]);
        let [w, s, z] = [w, s, z].map(|t| b.constant(t));
        let w = b.op(dq_op(axis as i64), &[w, s, z])?;
        let mut inputs = vec![data.operand(0), Some(w)];
        let mut op = data.op;
        match &mut op {
            Op::MatMul(_) => {}
            Op::Gemm(gemm) => {
                gemm.beta = 1.0;
                inputs.push(Some(b.constant(Tensor::from_vec([channels], shift))));
            }
            _ => inputs.push(Some(b.constant(Tensor::from_vec([channels], shift)))),
        }
        b.node(op, &inputs, vec![], 1)
    })
    .map(Some)
}

/// The largest bias, in units of the products: it shares i32 with their sum.
const BIAS: f64 = (1u32 << 30) as f64;

/// Integers and scales (one a channel) of `w * factor`: the sign goes to the integers.
///
/// Where a factor is so small that the channel's bias would be more than [`BIAS`] units, the unit is `least` and the integers are rounded: the
/// products are that small beside the bias.
fn scaled(w: &Tensor, s: &Tensor, axis: usize, map: &Affine, least: &dyn Fn(usize) -> f64) -> Option<(Tensor, Tensor)> {
    let (channels, inner) = (w.dims[axis], w.dims[axis + 1..].iter().product::<usize>());
    let scale = |c: usize| s.float(c % s.len()) * map.factor(c).abs();
    let mut integers = w.to_ints();
    for (i, q) in integers.iter_mut().enumerate() {
        let c = i / inner % channels;
        let k = map.factor(c);
        let signed = if k == 0.0 { 0 } else { *q * k.signum() as i64 };
        *q = if scale(c) < least(c) { (signed as f64 * scale(c) / least(c)).round_ties_even() as i64 } else { signed };
    }
    // -128 has no counterpart.
    if integers.iter().any(|&q| q > 127) || (0..channels).any(|c| !map.factor(c).is_finite()) {
        return None;
    }
    let scales = (0..channels).map(|c| match scale(c).max(least(c)) as f32 {
        s if s > 0.0 => s,
        _ => 1.0,
    });
    let scales = Tensor::from_vec([channels], scales.collect::<Vec<f32>>());
    Some((Tensor::from_values(w.dtype, w.dims.clone(), integers.into_iter().map(|q| q as u64)), scales))
}

/// f(move(x)) = move(f(x)), for f that is monotone and works element by element.
fn hoist(site: &mut Site) -> Replacement {
    let single_scale = |site: &Site| [1, 2].iter().all(|&i| site.input(i).is_none() || single(site, i).is_some());
    let good = match site.op() {
        Op::Relu(_) => true,
        Op::Clip(_) => single_scale(site),
        Op::QuantizeLinear(op) => op.block_size == 0 && single_scale(site),
        _ => false,
    };
    let Some(v) = site.input(0).filter(|&v| good && site.used_once(v)) else { return Ok(None) };
    let Some(n) = site.producer(v).filter(|&n| site.graph.node(n).outputs.len() == 1) else { return Ok(None) };
    let data = site.graph.node(n).clone();
    let moved = match &data.op {
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Transpose(_) | Op::Slice(_) => 1,
        Op::DepthToSpace(_) | Op::SpaceToDepth(_) => 1,
        // Padding is below every element, and so is what it is stored as; the integer operator has its own.
        Op::MaxPool(op) if op.storage_order == 0 => 1,
        Op::GlobalMaxPool(_) if !matches!(site.op(), Op::QuantizeLinear(_)) => 1,
        Op::Concat(_) => data.inputs.len(),
        _ => return Ok(None),
    };
    // Where all that is moved is stored already as wanted, `integer` moves the integers themselves.
    let (op, rest) = (site.op().clone(), site.data().inputs[1..].to_vec());
    if matches!(op, Op::QuantizeLinear(_)) && moved_storage(site, &data.inputs[..moved], &rest) {
        return Ok(None);
    }
    site.absorb(n);
    site.build(|b| {
        let mut inputs = data.inputs.clone();
        for x in &mut inputs[..moved] {
            let operands: Vec<Option<Value>> = std::iter::once(*x).chain(rest.iter().copied()).collect();
            *x = Some(b.node(op.clone(), &operands, vec![], 1)?[0]);
        }
        b.node(data.op, &inputs, vec![], 1)
    })
    .map(Some)
}

/// What is stored, of a value that is dequantised with one scale; and that node.
fn dequantised(site: &Site, v: Option<Value>) -> Option<(Node, Value)> {
    let n = v.and_then(|v| site.producer(v))?;
    let data = site.graph.node(n);
    let one = |i: usize| data.operand(i).is_none_or(|v| site.graph.constant(v).is_some_and(|t| t.len() == 1));
    (matches!(data.op, Op::DequantizeLinear(_)) && one(1) && one(2)).then_some(())?;
    let stored = data.operand(0)?;
    // Weights stay behind their dequantisation, where contractions look for it.
    site.graph.constant(stored).is_none().then_some((n, stored))
}

/// move(DQ(x)) = DQ(move(x)).
fn sink(site: &mut Site) -> Replacement {
    let data = site.data().clone();
    match &data.op {
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Transpose(_) | Op::Slice(_) => {}
        Op::DepthToSpace(_) | Op::SpaceToDepth(_) | Op::Gather(_) | Op::Expand(_) | Op::Tile(_) => {}
        Op::MaxPool(op) if op.storage_order == 0 => {}
        Op::Resize(op) if op.mode == "nearest" && op.coordinate_transformation_mode != "tf_crop_and_resize" => {}
        _ => return Ok(None),
    }
    let Some((dq, stored)) = dequantised(site, data.operand(0)).filter(|_| data.outputs.len() == 1) else { return Ok(None) };
    let scales = site.graph.node(dq).inputs[1..].to_vec();
    site.absorb(dq);
    site.build(|b| {
        let mut inputs = data.inputs.clone();
        inputs[0] = Some(stored);
        let moved = b.node(data.op, &inputs, vec![], 1)?[0];
        let operands: Vec<Option<Value>> = std::iter::once(Some(moved)).chain(scales).collect();
        b.node(dq_op(1), &operands, vec![], 1)
    })
    .map(Some)
}

/// Relu(DQ(x)) = DQ(max(x, zero)).
fn rectify(site: &mut Site) -> Replacement {
    let Op::Relu(_) = site.op() else { return Ok(None) };
    let Some((dq, stored)) = dequantised(site, site.input(0)) else { return Ok(None) };
    let Some(dtype) = site.graph.ty(stored).dtype().filter(|d| d.is_int() && d.bits() <= 8) else { return Ok(None) };
    let scales = site.graph.node(dq).inputs[1..].to_vec();
    let zero = scales.get(1).copied().flatten().and_then(|v| site.graph.constant(v)).map_or(0, |t| t.to_ints()[0]);
    site.absorb(dq);
    site.build(|b| {
        let zero = b.constant(Tensor::from_values(dtype, [], [zero as u64]));
        let limited = b.op(infc_ir::op::Max {}, &[stored, zero])?;
        let operands: Vec<Option<Value>> = std::iter::once(Some(limited)).chain(scales).collect();
        b.node(dq_op(1), &operands, vec![], 1)
    })
    .map(Some)
}

/// Q(min(max(v, lo), hi)) = min(max(Q(v), Q(lo)), Q(hi)).
fn limited(site: &mut Site) -> Replacement {
    let good = matches!(site.op(), Op::QuantizeLinear(op) if op.block_size == 0) && single(site, 1).is_some();
    let Some(v) = site.input(0).filter(|&v| good && site.used_once(v)) else { return Ok(None) };
    let Some(n) = site.producer(v) else { return Ok(None) };
    let data = site.graph.node(n).clone();
    let constant = |i: usize| data.operand(i).map(|v| site.graph.constant(v).filter(|t| t.len() == 1).map(|t| t.reshape([])));
    let limits = match data.op {
        Op::Relu(_) => [Some(Tensor::from_vec([], vec![0.0f32])), None],
        Op::Clip(_) => match [constant(1), constant(2)] {
            [Some(None), _] | [_, Some(None)] => return Ok(None),
            [lo, hi] => [lo.flatten(), hi.flatten()],
        },
        _ => return Ok(None),
    };
    let Some(x) = data.operand(0) else { return Ok(None) };
    // Who quantises an input of the model does its limits, too.
    if site.producer(x).is_none() || limits.iter().flatten().any(|t| t.float(0).is_nan()) {
        return Ok(None);
    }
    let (op, scales) = (site.op().clone(), site.data().inputs[1..].to_vec());
    let constants: Vec<Option<Tensor>> =
        scales.iter().map(|v| v.and_then(|v| site.graph.constant(v)).map(|t| t.reshape([]))).collect();
    if constants.iter().zip(&scales).any(|(t, v)| t.is_none() && v.is_some()) {
        return Ok(None);
    }
    let mut ends = [None, None];
    for (end, limit) in ends.iter_mut().zip(limits) {
        let Some(limit) = limit else { continue };
        let inputs: Vec<Option<Tensor>> = std::iter::once(Some(limit)).chain(constants.iter().cloned()).collect();
        *end = Some(eval_op(&op, &inputs, 1)?.remove(0));
    }
    site.absorb(n);
    site.build(|b| {
        let operands: Vec<Option<Value>> = std::iter::once(Some(x)).chain(scales).collect();
        let mut y = b.node(op, &operands, vec![], 1)?[0];
        let range = b.tensor(y)?.dtype.int_range().map_or([0, 0], |(lo, hi)| [lo as i64, hi as i64]);
        let [lo, hi] = ends;
        if let Some(lo) = lo.filter(|t| t.to_ints()[0] > range[0]) {
            let lo = b.constant(lo);
            y = b.op(infc_ir::op::Max {}, &[y, lo])?;
        }
        if let Some(hi) = hi.filter(|t| t.to_ints()[0] < range[1]) {
            let hi = b.constant(hi);
            y = b.op(infc_ir::op::Min {}, &[y, hi])?;
        }
        Ok(Some(vec![y]))
    })
}

/// All values are dequantised with the scale and zero point of a quantiser.
fn moved_storage(site: &Site, values: &[Option<Value>], scale: &[Option<Value>]) -> bool {
    values.iter().all(|v| {
        let node = v.and_then(|v| site.producer(v)).map(|n| site.graph.node(n));
        node.is_some_and(|data| {
            let same = |i: usize, to: Option<Value>| {
                let [a, b] = [data.operand(i), to].map(|v| v.and_then(|v| site.graph.constant(v)));
                a.is_some() && a.map(|t| (t.dtype, t.float(0))) == b.map(|t| (t.dtype, t.float(0)))
            };
            let ends = [0, 1].map(|i| scale.get(i).copied().flatten());
            matches!(data.op, Op::DequantizeLinear(_)) && same(1, ends[0]) && same(2, ends[1])
        })
    })
}

/// ONNX Runtime's operators on quantised tensors, except contractions.
fn contrib(site: &mut Site) -> Replacement {
    match site.op() {
        Op::QLinearAdd(_) | Op::QLinearMul(_) | Op::QLinearSigmoid(_) | Op::QLinearLeakyRelu(_) | Op::QLinearConcat(_) => {}
        Op::QLinearSoftmax(_) | Op::QLinearAveragePool(_) | Op::QLinearGlobalAveragePool(_) => {}
        _ => return Ok(None),
    }
    crate::decompose::expand(site)
}

/// Q(average(DQ(x))).
fn average(site: &mut Site) -> Replacement {
    let (Op::QuantizeLinear(q), true) = (site.op(), single(site, 1).is_some()) else { return Ok(None) };
    let Some(v) = site.input(0).filter(|&v| q.block_size == 0 && site.used_once(v)) else { return Ok(None) };
    let Some(n) = site.producer(v) else { return Ok(None) };
    let Some(x) = site.graph.node(n).operand(0) else { return Ok(None) };
    let Some(ty) = site.graph.ty(x).as_tensor().cloned() else { return Ok(None) };
    let Some(spatial) = ty.dims.get(2..).map(|d| d.iter().map(|d| d.known()).collect::<Option<Vec<i64>>>()) else {
        return Ok(None);
    };
    let (Some(spatial), Some(channels)) = (spatial.filter(|d| !d.is_empty()), ty.dims[1].known()) else { return Ok(None) };
    let Some(pool) = window(site, n, &spatial) else { return Ok(None) };
    let Some(dq) = site.producer(x) else { return Ok(None) };
    let source = site.graph.node(dq).clone();
    let constant = |i: usize| source.operand(i).and_then(|v| site.graph.constant(v)).filter(|t| t.len() == 1);
    let (Op::DequantizeLinear(_), Some(sx), Some(zx)) = (&source.op, constant(1), constant(2)) else { return Ok(None) };
    let count: i64 = pool.kernel_shape.iter().product();
    let (Some(sy), Some(zy)) = (site.constant(1).cloned(), site.constant(2).cloned()) else { return Ok(None) };
    if !zx.dtype.is_int() || zx.dtype.bits() > 8 || sx.dtype != DType::F32 || sy.dtype != DType::F32 || count > 1 << 22 {
        return Ok(None);
    }
    let (sx, zx, dims) = (sx.clone(), zx.clone(), site.graph.ty(site.output()).as_tensor().cloned());
    let mut shape = vec![channels as usize, 1];
    shape.extend(pool.kernel_shape.iter().map(|&k| k as usize));
    let ones = Tensor::from_values(DType::I8, shape.clone(), vec![1; shape.iter().product()]);
    site.absorb(n);
    site.absorb(dq);
    site.build(|b| {
        let op = QLinearConv {
            auto_pad: pool.auto_pad,
            dilations: vec![1; spatial.len()],
            group: channels,
            kernel_shape: pool.kernel_shape,
            pads: pool.pads,
            strides: pool.strides,
        };
        let share = Tensor::from_vec([], vec![(1.0 / count as f64) as f32]);
        let none = Tensor::zeros(DType::I8, []);
        let rest = [sx, zx, ones, share, none, sy, zy].map(|t| if t.len() == 1 && t.dims.len() == 1 { t.reshape([]) } else { t });
        let mut inputs = vec![source.operand(0).expect("dequantises something")];
        inputs.extend(rest.map(|t| b.constant(t)));
        let y = b.op(op, &inputs)?;
        // A mean may leave its dims out.
        let Some(out) = dims.filter(|t| b.dims(y).is_ok_and(|d| d != t.dims)) else { return Ok(y) };
        let sizes: Vec<i64> =
            out.dims.iter().enumerate().map(|(i, d)| d.known().unwrap_or(if i == 0 { -1 } else { 0 })).collect();
        let sizes = b.ints(&sizes);
        b.op(Reshape { allowzero: false }, &[y, sizes])
    })
    .map(|v| Some(vec![v]))
}

/// An average over windows in which every element counts the same, as an AveragePool.
fn window(site: &Site, n: Node, spatial: &[i64]) -> Option<AveragePool> {
    let data = site.graph.node(n);
    let global = || AveragePool {
        auto_pad: "NOTSET".into(),
        ceil_mode: 0,
        count_include_pad: false,
        dilations: vec![],
        kernel_shape: spatial.to_vec(),
        pads: vec![0; 2 * spatial.len()],
        strides: vec![1; spatial.len()],
    };
    match &data.op {
        Op::GlobalAveragePool(_) => Some(global()),
        Op::AveragePool(op) => {
            let padded = op.auto_pad != "NOTSET" && op.auto_pad != "VALID" || op.pads.iter().any(|&p| p != 0);
            let plain = op.dilations.iter().all(|&d| d == 1) && op.ceil_mode == 0 && (!padded || op.count_include_pad);
            plain.then(|| op.clone())
        }
        Op::ReduceMean(op) => {
            let rank = spatial.len() as i64 + 2;
            let mut axes: Vec<i64> = match data.operand(1) {
                Some(v) => site.graph.constant(v)?.to_ints(),
                None if op.noop_with_empty_axes => return None,
                None => vec![],
            };
            axes.iter_mut().filter(|a| **a < 0).for_each(|a| *a += rank);
            axes.sort_unstable();
            (axes == (2..rank).collect::<Vec<_>>()).then(global)
        }
        _ => None,
    }
}
