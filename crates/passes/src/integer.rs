//! Integer arithmetic: operators between DequantizeLinear and QuantizeLinear work on the stored integers.
//!
//! - `Q(contraction(DQ(x), DQ(w)) + bias)` accumulates `x - zx` times `w - zw` and the bias exactly in i32, then rounds once:
//!   `saturate(rint(f32(acc) * m) + zy)`, `m = f32(sx sw / sy)`. Only where no sum can leave i32, `m` is a normal number, and the bias is a
//!   multiple of `sx sw`, or so near to one that it moves the result by at most 1/128 of `sy`.
//! - `Q(DQ(a) + DQ(b))` rounds `(a - za) * (sa / sy) + (b - zb) * (sb / sy)`, without a division by `sy`, as ONNX Runtime's QLinearAdd does.
//! - `Q(max(v, c)) = max(Q(v), Q(c))` and the same for min, because Q is monotone: activations become limits of integers.
//! - Data movement between DQ and Q of the same scale works on the stored integers, and `Q(DQ(x)) = x`: both exact.
//! - `contraction(DQ(x), DQ(w)) + bias` whose result is not quantised (or is in finer steps than its bias has in units of `sx sw`) accumulates
//!   exactly, too, and becomes `f32(acc) * f32(sx sw)`; a bias that is no multiple of `sx sw` is added to that.
//! - Rows that are looked up in a dequantised table are looked up in the stored one: exact.
//! - Constants that are still dequantised afterwards are dequantised now.
//!
//! Class: one rounding.

use crate::rewrite::{Context, Replacement, Site, each_node};
use infc_ir::graph::{Graph, Node};
use infc_ir::interp::eval_op;
use infc_ir::op::{Add, Cast, Concat, ConvInteger, DequantizeLinear, Max, Min, Mul, QLinearConv, QuantizeLinear};
use infc_ir::{DType, Fault, Op, Problems, Tensor, Value};

/// Runs the pass; counts rewrites.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    rounded(g, cx, BIAS_ERROR)
}

/// For targets that have no other arithmetic: biases are rounded to units of the sums, whatever they lose by it.
pub fn run_always(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    rounded(g, cx, f64::INFINITY)
}

/// How much of a step of the result a bias may lose by becoming an integer.
const BIAS_ERROR: f64 = 1.0 / 128.0;

fn rounded(g: &mut Graph, cx: &mut Context, bias_error: f64) -> Result<usize, Problems> {
    let integer = each_node(g, cx, "integer", &mut |site| rule(site, bias_error))?;
    // Contractions that no quantiser follows, when those with one have gone.
    let float = each_node(g, cx, "integer", &mut |site| match site.op() {
        Op::Gather(_) => lookup(site),
        _ => unquantised(site),
    })?;
    Ok(integer + float + each_node(g, cx, "integer", &mut dequantise)?)
}

/// A dequantised value: what is stored, and how.
struct Stored {
    node: Node,
    value: Value,
    dtype: DType,
    scale: Tensor,
    zero: Option<Tensor>,
    axis: i64,
}

impl Stored {
    fn single(&self) -> bool {
        self.scale.len() == 1 && self.zero.as_ref().is_none_or(|z| z.len() == 1)
    }
    fn zero(&self, i: usize) -> i64 {
        self.zero.as_ref().map_or(0, |z| z.to_ints()[i % z.len()])
    }
    fn scale(&self, i: usize) -> f64 {
        self.scale.float(i % self.scale.len())
    }
    /// The largest `|stored - zero point|`.
    fn reach(&self) -> i128 {
        let (lo, hi) = self.dtype.int_range().unwrap_or((0, 0));
        let zeros = self.zero.as_ref().map_or(vec![0], Tensor::to_ints);
        zeros.iter().map(|&z| (hi - i128::from(z)).max(i128::from(z) - lo)).max().unwrap_or(hi)
    }
    /// The zero points as a tensor of the scales' shape.
    fn zeros(&self) -> Tensor {
        let values = (0..self.scale.len()).map(|i| self.zero(i) as u64);
        Tensor::from_values(self.dtype, self.scale.dims.clone(), values)
    }
}

/// How the result of a QuantizeLinear is stored: one scale, one zero point.
struct Target {
    scale: Tensor,
    zero: Tensor,
}

impl Target {
    /// What a real number is stored as.
    fn store(&self, v: f32) -> Result<i64, Fault> {
        let op = QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 };
        let inputs = [Tensor::from_vec([], vec![v]), self.scale.reshape([]), self.zero.reshape([])];
        Ok(eval_op(&op.into(), &inputs.map(Some), 1)?[0].to_ints()[0])
    }
}

fn stored(site: &Site, v: Value) -> Option<Stored> {
    let node = site.producer(v)?;
    let data = site.graph.node(node);
    let Op::DequantizeLinear(op) = &data.op else { return None };
    let constant = |i: usize| data.inputs.get(i).copied().flatten().map(|v| site.graph.constant(v).cloned());
    let value = data.operand(0)?;
    let ty = site.graph.ty(value).as_tensor()?;
    let (scale, zero) = (constant(1)??, constant(2));
    let zero = match zero {
        None => None,
        Some(z) => Some(z?),
    };
    let plain = scale.dtype == DType::F32 && matches!(op.output_dtype, 0 | 1) && op.block_size == 0 && scale.dims.len() <= 1;
    let good = ty.dtype.is_int() && plain && (0..scale.len()).all(|i| scale.float(i) > 0.0);
    good.then_some(Stored { node, value, dtype: ty.dtype, scale, zero, axis: op.axis })
}

fn target(site: &Site) -> Option<Target> {
    let Op::QuantizeLinear(op) = site.op() else { return None };
    let scale = site.constant(1)?.clone();
    let dtype = site.graph.ty(site.output()).as_tensor()?.dtype;
    let zero = match site.input(2) {
        Some(_) => site.constant(2)?.clone(),
        None => Tensor::zeros(dtype, []),
    };
    let plain = scale.dtype == DType::F32 && scale.len() == 1 && zero.len() == 1 && op.block_size == 0 && op.precision == 0;
    (plain && dtype.is_int() && scale.float(0) > 0.0).then_some(Target { scale, zero })
}

fn same_storage(s: &Stored, t: &Target) -> bool {
    s.single() && s.dtype == t.zero.dtype && s.scale.float(0) == t.scale.float(0) && s.zero(0) == t.zero.to_ints()[0]
}

fn rule(site: &mut Site, bias_error: f64) -> Replacement {
    let Some(to) = target(site) else { return Ok(None) };
    let Some(v) = site.input(0) else { return Ok(None) };
    if let Some(s) = stored(site, v).filter(|s| same_storage(s, &to)) {
        return Ok(Some(vec![s.value]));
    }
    if let Some(values) = movement(site, v, &to)? {
        return Ok(Some(values));
    }
    if let Some(values) = sum(site, v, &to)? {
        return Ok(Some(values));
    }
    contraction(site, v, &to, bias_error)
}

/// Q(move(DQ(x))): move(x).
fn movement(site: &mut Site, v: Value, to: &Target) -> Replacement {
    let Some(n) = site.producer(v) else { return Ok(None) };
    let data = site.graph.node(n);
    if !site.used_once(v) || data.outputs.len() != 1 {
        return Ok(None);
    }
    let operands = match &data.op {
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Transpose(_) | Op::Slice(_) => 1,
        Op::Expand(_) | Op::Tile(_) | Op::Gather(_) | Op::DepthToSpace(_) | Op::SpaceToDepth(_) => 1,
        // The largest of the stored integers stands for the largest number; padding is below both.
        Op::MaxPool(op) if op.storage_order == 0 => 1,
        Op::Concat(Concat { .. }) => data.inputs.len(),
        _ => return Ok(None),
    };
    let (op, mut inputs) = (data.op.clone(), data.inputs.clone());
    let mut nodes = vec![n];
    for input in &mut inputs[..operands] {
        let Some(s) = input.and_then(|v| stored(site, v)).filter(|s| same_storage(s, to)) else { return Ok(None) };
        *input = Some(s.value);
        nodes.push(s.node);
    }
    nodes.into_iter().for_each(|n| site.absorb(n));
    site.build(|b| b.node(op, &inputs, vec![], 1)).map(Some)
}

/// A contraction of two stored operands, before it is built.
struct Product {
    node: Node,
    x: Stored,
    w: Stored,
    /// The weights in the order that the integer operator wants.
    weights: Option<Tensor>,
    bias: Option<Vec<f64>>,
    /// Products in one sum.
    terms: i128,
    /// Output channels; 1 if all share a scale.
    channels: usize,
}

impl Product {
    /// What one unit of the sums of channel `i` stands for.
    fn unit(&self, i: usize) -> f32 {
        self.x.scale(0) as f32 * self.w.scale(i) as f32
    }
}

/// Activations between a value and its quantisation: the nodes, what they are applied to, and the range that they limit it to.
struct Activations {
    nodes: Vec<Node>,
    of: Value,
    lo: f32,
    hi: f32,
}

fn activations(site: &Site, v: Value) -> Activations {
    let mut a = Activations { nodes: vec![], of: v, lo: f32::NEG_INFINITY, hi: f32::INFINITY };
    while let Some(n) = site.producer(a.of).filter(|_| site.used_once(a.of)) {
        let Some((least, most)) = limits(site, n) else { break };
        // The innermost is applied first: an outer limit is applied to what it gives.
        (a.lo, a.hi) = (least.max(a.lo).min(a.hi), most.max(a.lo).min(a.hi));
        a.nodes.push(n);
        a.of = site.graph.node(n).operand(0).expect("has a data operand");
    }
    a
}

/// A quantised value with the limits of activations.
fn limited(site: &mut Site, mut y: Value, a: &Activations, to: &Target) -> Result<Value, Fault> {
    let dtype = to.zero.dtype;
    let (least, most) = dtype.int_range().unwrap_or((0, 0));
    let bounds = [to.store(a.lo)?, to.store(a.hi)?];
    site.build(|b| {
        let limit = |q: i64| Tensor::from_values(dtype, [], [q as u64]);
        if i128::from(bounds[0]) > least {
            let c = b.constant(limit(bounds[0]));
            y = b.op(Max {}, &[y, c])?;
        }
        if i128::from(bounds[1]) < most {
            let c = b.constant(limit(bounds[1]));
            y = b.op(Min {}, &[y, c])?;
        }
        Ok(y)
    })
}

/// Q(act(DQ(a) + DQ(b))): both in units of the result.
fn sum(site: &mut Site, v: Value, to: &Target) -> Replacement {
    let a = activations(site, v);
    let Some(n) = site.producer(a.of).filter(|_| site.used_once(a.of)) else { return Ok(None) };
    let data = site.graph.node(n);
    let op @ (Op::Add(_) | Op::Sub(_)) = data.op.clone() else { return Ok(None) };
    let one = Tensor::from_vec([], vec![1.0f32]);
    let terms: Option<Vec<Stored>> = data.inputs.iter().map(|&i| stored(site, i?).filter(Stored::single)).collect();
    let Some(terms) = terms.filter(|_| to.scale.float(0) != 1.0) else { return Ok(None) };
    let ratio = |s: &Stored| s.scale.float(0) as f32 / to.scale.float(0) as f32;
    if !terms.iter().all(|s| ratio(s).is_normal()) {
        return Ok(None);
    }
    a.nodes.iter().chain([&n]).for_each(|&n| site.absorb(n));
    terms.iter().for_each(|s| site.absorb(s.node));
    let y = site.build(|b| {
        let mut values = vec![];
        for s in &terms {
            let [scale, zero] = [Tensor::from_vec([], vec![ratio(s)]), s.zeros().reshape([])].map(|t| b.constant(t));
            let dequantise = DequantizeLinear { axis: 1, block_size: 0, output_dtype: 0 };
            values.push(b.op(dequantise, &[s.value, scale, zero])?);
        }
        let sum = b.op(op, &values)?;
        let [one, zero] = [one, to.zero.reshape([])].map(|t| b.constant(t));
        b.op(QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 }, &[sum, one, zero])
    })?;
    Ok(Some(vec![limited(site, y, &a, to)?]))
}

/// Q(act(contraction)): the integer contraction.
fn contraction(site: &mut Site, v: Value, to: &Target, bias_error: f64) -> Replacement {
    let a = activations(site, v);
    let mut nodes = a.nodes.clone();
    let at = a.of;
    let Some(p) = product(site, at) else { return Ok(None) };
    let step = to.scale.float(0) as f32;
    if !(0..p.w.scale.len()).all(|i| (p.unit(i) / step).is_normal()) {
        return Ok(None);
    }
    let Some((bias, _)) = integer_bias(&p).filter(|(_, lost)| lost / f64::from(step) <= bias_error) else { return Ok(None) };
    nodes.extend([p.node, p.x.node, p.w.node]);
    nodes.into_iter().for_each(|n| site.absorb(n));
    let y = match site.graph.node(p.node).op.clone() {
        Op::Conv(op) => {
            let op = QLinearConv {
                auto_pad: op.auto_pad,
                dilations: op.dilations,
                group: op.group,
                kernel_shape: op.kernel_shape,
                pads: op.pads,
                strides: op.strides,
            };
            site.build(|b| {
                let [sx, zx] = [p.x.scale.reshape([]), p.x.zeros().reshape([])].map(|t| b.constant(t));
                let [sw, zw] = [p.w.scale.clone(), p.w.zeros()].map(|t| b.constant(t));
                let [sy, zy] = [to.scale.reshape([]), to.zero.reshape([])].map(|t| b.constant(t));
                let bias = bias.map(|t| b.constant(t));
                let mut inputs = [p.x.value, sx, zx, p.w.value, sw, zw, sy, zy].map(Some).to_vec();
                inputs.extend(bias.map(Some));
                Ok(b.node(op, &inputs, vec![], 1)?[0])
            })?
        }
        _ => matrix(site, &p, bias, to)?,
    };
    Ok(Some(vec![limited(site, y, &a, to)?]))
}

/// The range that an activation limits its operand to.
fn limits(site: &Site, n: Node) -> Option<(f32, f32)> {
    let data = site.graph.node(n);
    let bound = |i: usize, none: f32| match data.inputs.get(i).copied().flatten() {
        None => Some(none),
        Some(v) => site.graph.constant(v).filter(|t| t.len() == 1).map(|t| t.float(0) as f32).filter(|v| !v.is_nan()),
    };
    match &data.op {
        Op::Relu(_) => Some((0.0, f32::INFINITY)),
        Op::Clip(_) => Some((bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?)).filter(|(lo, hi)| lo <= hi),
        _ => None,
    }
}

/// The contraction that makes `v`, if its operands are stored integers.
fn product(site: &Site, v: Value) -> Option<Product> {
    let mut node = site.producer(v).filter(|_| site.used_once(v))?;
    let mut bias = None;
    if let Op::Add(_) = site.graph.node(node).op {
        // The bias of a matrix product.
        let (a, b) = (site.graph.node(node).operand(0)?, site.graph.node(node).operand(1)?);
        let (inner, c) = [(a, b), (b, a)].into_iter().find(|&(x, _)| {
            site.used_once(x) && site.producer(x).is_some_and(|n| matches!(site.graph.node(n).op, Op::MatMul(_)))
        })?;
        let (c, width) = (real_constant(site, c)?, site.graph.ty(v).as_tensor()?.dims.last()?.known()?);
        if c.0.iter().rev().skip(1).any(|&d| d != 1) || site.graph.ty(inner) != site.graph.ty(v) {
            return None;
        }
        let values = c.1;
        bias = Some((0..width as usize).map(|i| values[i % values.len()]).collect());
        node = site.producer(inner)?;
    }
    factors(site, node, bias)
}

/// The factors of a contraction, if they are stored integers.
fn factors(site: &Site, node: Node, mut bias: Option<Vec<f64>>) -> Option<Product> {
    let data = site.graph.node(node);
    let operand = |k: usize| data.inputs.get(k).copied().flatten().and_then(|v| stored(site, v));
    let (x, mut w) = (operand(0)?, operand(1)?);
    if !x.single() || x.dtype.bits() > 8 || w.dtype.bits() > 8 {
        return None;
    }
    let dims = site.graph.ty(w.value).as_tensor()?.known_dims()?;
    let weights = site.graph.constant(w.value).cloned();
    let rank = dims.len();
    let along = |w: &Stored, axis: i64| w.single() || w.axis == axis || w.axis == axis - rank as i64;
    match &data.op {
        Op::Conv(_) => {
            if let Some(&Some(b)) = data.inputs.get(2) {
                bias = Some(real_constant(site, b)?.1);
            }
            let good = along(&w, 0) && weights.is_some();
            let terms = dims[1..].iter().map(|&d| d as i128).product();
            good.then_some(Product { node, x, w, weights, bias, terms, channels: dims[0] })
        }
        Op::MatMul(_) => {
            let good = rank >= 2 && along(&w, rank as i64 - 1) && (w.single() || rank == 2);
            good.then(|| Product { node, x, w, weights, bias, terms: dims[rank - 2] as i128, channels: dims[rank - 1] })
        }
        Op::Gemm(op) => {
            if let Some(&Some(b)) = data.inputs.get(2) {
                let (shape, values) = real_constant(site, b)?;
                if shape.iter().rev().skip(1).any(|&d| d != 1) {
                    return None;
                }
                bias = Some(values.iter().map(|v| v * f64::from(op.beta)).collect());
            }
            let channel = if op.transB != 0 { 0 } else { 1 };
            if op.alpha != 1.0 || op.transA != 0 || rank != 2 || !along(&w, channel as i64) {
                return None;
            }
            let mut weights = weights?;
            if op.transB != 0 {
                weights = transposed(&weights)?;
            }
            w.axis = 1;
            let (terms, channels) = (dims[1 - channel] as i128, dims[channel]);
            Some(Product { node, x, w, weights: Some(weights), bias, terms, channels })
        }
        _ => None,
    }
}

fn transposed(t: &Tensor) -> Option<Tensor> {
    let op = infc_ir::op::Transpose { perm: vec![1, 0] };
    eval_op(&op.into(), &[Some(t.clone())], 1).ok()?.pop()
}

/// A constant as real numbers, also one that is stored as integers.
fn real_constant(site: &Site, v: Value) -> Option<(Vec<usize>, Vec<f64>)> {
    if let Some(t) = site.graph.constant(v) {
        return Some((t.dims.clone(), (0..t.len()).map(|i| t.float(i)).collect()));
    }
    let s = stored(site, v)?;
    let t = site.graph.constant(s.value).filter(|t| t.dims.len() <= 1)?;
    let values = (0..t.len()).map(|i| (t.float(i) - s.zero(i) as f64) * s.scale(i));
    Some((t.dims.clone(), values.collect()))
}

/// The bias in units of `sx sw`, if sums with it stay in i32, and what it loses by that at most. The tensor is `None` without a bias, all
/// is `None` if sums may leave i32.
fn integer_bias(p: &Product) -> Option<(Option<Tensor>, f64)> {
    let most = p.terms * p.x.reach() * p.w.reach();
    let limit = i128::from(i32::MAX);
    if most > limit || !(0..p.w.scale.len()).all(|i| p.unit(i).is_normal()) {
        return None;
    }
    let Some(bias) = &p.bias else { return Some((None, 0.0)) };
    let (mut units, mut lost) = (vec![], 0.0f64);
    for c in 0..p.channels {
        let (unit, real) = (p.x.scale(0) * p.w.scale(c), bias[c % bias.len()]);
        let value = (real / unit).round_ties_even();
        if value.is_nan() || value.abs() + most as f64 > limit as f64 {
            return None;
        }
        // The last bit of an f32 is none that counts.
        let error = (value * unit - real).abs() - real.abs() * f64::from(f32::EPSILON);
        lost = lost.max(error);
        units.push(value as i32);
    }
    Some((Some(Tensor::from_vec([units.len()], units)), lost))
}

/// contraction(DQ(x), DQ(w)) + bias as f32: the integer contraction, scaled.
fn unquantised(site: &mut Site) -> Replacement {
    let op = site.op().clone();
    if !matches!(op, Op::Conv(_) | Op::MatMul(_) | Op::Gemm(_)) || !is_f32(site, site.output()) {
        return Ok(None);
    }
    let Some(p) = factors(site, site.node, None) else { return Ok(None) };
    let zero_weights = (0..p.w.scale.len()).all(|i| p.w.zero(i) == 0);
    if p.weights.is_none() || matches!(op, Op::Conv(_)) && !zero_weights {
        return Ok(None);
    }
    let Some((bias, lost)) = integer_bias(&p) else { return Ok(None) };
    let integer = lost <= 0.0;
    [p.x.node, p.w.node].into_iter().for_each(|n| site.absorb(n));
    let rank = site.graph.ty(site.output()).as_tensor().map_or(2, |t| t.rank());
    let made = site.build(|b| {
        let w = b.constant(p.weights.clone().expect("checked above"));
        let zx = b.constant(p.x.zeros().reshape([]));
        // Channels of a convolution are on axis 1, those of a matrix product on the last one.
        let per_channel = |n: usize| match &op {
            Op::Conv(_) if n > 1 => [vec![n], vec![1; rank - 2]].concat(),
            _ if n > 1 => vec![n],
            _ => vec![],
        };
        let mut acc = match &op {
            Op::Conv(op) => {
                let op = ConvInteger {
                    auto_pad: op.auto_pad.clone(),
                    dilations: op.dilations.clone(),
                    group: op.group,
                    kernel_shape: op.kernel_shape.clone(),
                    pads: op.pads.clone(),
                    strides: op.strides.clone(),
                };
                b.op(op, &[p.x.value, w, zx])?
            }
            _ => {
                let zeros = p.w.zeros();
                let zw = b.constant(if p.w.single() { zeros.reshape([]) } else { zeros });
                b.op(infc_ir::op::MatMulInteger {}, &[p.x.value, w, zx, zw])?
            }
        };
        if let Some(t) = bias.as_ref().filter(|_| integer) {
            let bias = b.constant(t.reshape(per_channel(t.len())));
            acc = b.op(Add {}, &[acc, bias])?;
        }
        let acc = b.op(Cast { round_mode: "up".into(), saturate: 1, to: i64::from(DType::F32.onnx()) }, &[acc])?;
        let n = p.w.scale.len();
        let m = b.constant(Tensor::from_vec(per_channel(n), (0..n).map(|i| p.unit(i)).collect::<Vec<f32>>()));
        let scaled = b.op(Mul {}, &[acc, m])?;
        match &p.bias {
            Some(bias) if !integer => {
                let all: Vec<f32> = (0..p.channels).map(|c| bias[c % bias.len()] as f32).collect();
                let bias = b.constant(Tensor::from_vec(per_channel(all.len()), all));
                b.op(Add {}, &[scaled, bias])
            }
            _ => Ok(scaled),
        }
    })?;
    Ok(Some(vec![made]))
}

fn is_f32(site: &Site, v: Value) -> bool {
    site.graph.ty(v).dtype() == Some(DType::F32)
}

/// Gather(DQ(table), i): DQ(Gather(table, i)), so that the table stays as it is stored.
fn lookup(site: &mut Site) -> Replacement {
    let Op::Gather(gather) = site.op().clone() else { return Ok(None) };
    let (Some(table), Some(index)) = (site.input(0), site.input(1)) else { return Ok(None) };
    let Some(n) = site.producer(table).filter(|_| gather.axis == 0) else { return Ok(None) };
    let data = site.graph.node(n);
    let Op::DequantizeLinear(dq) = data.op.clone() else { return Ok(None) };
    let constants: Vec<Option<Tensor>> = data.inputs.iter().map(|v| v.and_then(|v| site.graph.constant(v).cloned())).collect();
    let absent = data.inputs.iter().filter(|v| v.is_none()).count();
    let (Some(Some(q)), Some(Some(scale))) = (constants.first(), constants.get(1)) else { return Ok(None) };
    let known = constants.iter().filter(|t| t.is_some()).count() + absent == constants.len();
    if !known || q.dims.len() != 2 || site.graph.constant(index).is_some() {
        return Ok(None);
    }
    let (columns, axis) = (q.dims[1], if dq.axis < 0 { dq.axis + 2 } else { dq.axis });
    let last = site.graph.ty(site.output()).as_tensor().map_or(1, |t| t.rank()) as i64 - 1;
    let (single, rows) = (scale.len() == 1 && scale.dims.len() <= 1, dq.block_size == 0 && scale.dims.len() == 1 && axis == 0);
    let blocks = scale.dims.len() == 2 && axis == 1 && dq.block_size > 0;
    let by_column = dq.block_size == 0 && scale.dims.len() == 1 && axis == 1;
    if !single && !rows && !blocks && !by_column {
        return Ok(None);
    }
    site.absorb(n);
    let [q, scale, zero] = [0, 1, 2].map(|i| constants.get(i).cloned().flatten());
    let made = site.build(|b| {
        let mut parameter = |t: Option<Tensor>| -> Result<Option<Value>, Fault> {
            let Some(t) = t else { return Ok(None) };
            if single || by_column {
                return Ok(Some(b.constant(t)));
            }
            // A row's scales go with it.
            let t = if rows { t.reshape([t.len(), 1]) } else { t };
            let c = b.constant(t);
            b.op(gather.clone(), &[c, index]).map(Some)
        };
        let (scale, zero) = (parameter(scale)?, parameter(zero)?);
        let q = b.constant(q.expect("checked above"));
        let looked_up = b.op(gather.clone(), &[q, index])?;
        let block = if single || by_column {
            0
        } else if rows {
            columns as i64
        } else {
            dq.block_size
        };
        let op = DequantizeLinear { axis: last, block_size: block, output_dtype: dq.output_dtype };
        let mut inputs = vec![Some(looked_up), scale];
        inputs.extend(zero.map(Some));
        Ok(b.node(op, &inputs, vec![], 1)?[0])
    })?;
    Ok(Some(vec![made]))
}

/// A matrix product: integer product, bias, one rounding.
fn matrix(site: &mut Site, p: &Product, bias: Option<Tensor>, to: &Target) -> Result<Value, Fault> {
    let original = site.graph.constant(p.w.value).cloned();
    site.build(|b| {
        let w = match &p.weights {
            Some(t) if original.as_ref() != Some(t) => b.constant(t.clone()),
            _ => p.w.value,
        };
        let zeros = p.w.zeros();
        let [zx, zw] = [p.x.zeros().reshape([]), if p.w.single() { zeros.reshape([]) } else { zeros }].map(|t| b.constant(t));
        let mut acc = b.op(infc_ir::op::MatMulInteger {}, &[p.x.value, w, zx, zw])?;
        if let Some(t) = bias {
            let bias = b.constant(t);
            acc = b.op(Add {}, &[acc, bias])?;
        }
        let f32 = i64::from(DType::F32.onnx());
        let acc = b.op(Cast { round_mode: "up".into(), saturate: 1, to: f32 }, &[acc])?;
        // As everywhere: m = f32(sx sw) / sy in f32.
        let m = |i: usize| p.unit(i) / to.scale.float(0) as f32;
        let m: Vec<f32> = (0..p.w.scale.len()).map(m).collect();
        let m = b.constant(if p.w.single() { Tensor::from_vec([], m) } else { Tensor::from_vec([m.len()], m) });
        let scaled = b.op(Mul {}, &[acc, m])?;
        let [one, zero] = [Tensor::from_vec([], vec![1.0f32]), to.zero.reshape([])].map(|t| b.constant(t));
        let quantise = QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 };
        b.op(quantise, &[scaled, one, zero])
    })
}

/// Constants that float operators still need, dequantised.
fn dequantise(site: &mut Site) -> Replacement {
    if !matches!(site.op(), Op::DequantizeLinear(_)) {
        return Ok(None);
    }
    let constants: Vec<Option<Tensor>> =
        site.data().inputs.iter().map(|v| v.and_then(|v| site.graph.constant(v).cloned())).collect();
    let all = constants.iter().zip(&site.data().inputs).all(|(t, v)| t.is_some() || v.is_none());
    if !all {
        return Ok(None);
    }
    let op = site.op().clone();
    let made = eval_op(&op, &constants, 1)?.remove(0);
    Ok(Some(vec![site.graph.add_constant(made, "")]))
}
