//! Batch normalisation, and multiplication and addition by constants per channel, into the weights of what comes before.
//!
//! `(conv(x, w) + b) * k + s = conv(x, w * k) + (b * k + s)` for constants `k` and `s` per output channel; the same for ConvTranspose,
//! Gemm and MatMul. The products are taken in f64 and rounded once. A batch normalisation that finds no weights becomes one
//! multiplication and one addition. Class: reassociated.

use crate::rewrite::{Context, Replacement, Site, each_node};
use infc_ir::graph::{Graph, Node};
use infc_ir::op::{Add, Gemm, Mul};
use infc_ir::{DType, Op, Problems, Tensor, Value};

/// Runs the pass; counts rewrites.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    each_node(g, cx, "batchnorm", &mut rule)
}

/// `x * factor + shift` per channel, for the value `of`. A list of one is the same for all channels.
pub(crate) struct Affine {
    pub(crate) of: Value,
    factor: Vec<f64>,
    shift: Vec<f64>,
}

impl Affine {
    pub(crate) fn factor(&self, channel: usize) -> f64 {
        self.factor[channel % self.factor.len()]
    }
    pub(crate) fn shift(&self, channel: usize) -> f64 {
        self.shift[channel % self.shift.len()]
    }
    pub(crate) fn scales(&self) -> bool {
        self.factor.iter().any(|&k| k != 1.0)
    }
}

fn rule(site: &mut Site) -> Replacement {
    let Some(affine) = affine(site) else { return Ok(None) };
    if let Some(linear) = site.producer(affine.of)
        && site.used_once(affine.of)
        && site.graph.node(linear).outputs.len() == 1
    {
        let folded = match site.graph.node(linear).op.clone() {
            Op::Conv(op) => convolution(site, linear, &affine, 0, op.group as usize)?,
            Op::ConvTranspose(op) => convolution(site, linear, &affine, 1, op.group as usize)?,
            Op::Gemm(op) => gemm(site, linear, &affine, op)?,
            Op::MatMul(_) => matmul(site, linear, &affine)?,
            _ => None,
        };
        if folded.is_some() {
            return Ok(folded);
        }
    }
    if matches!(site.op(), Op::BatchNormalization(_)) { alone(site, &affine) } else { Ok(None) }
}

/// The node as an affine map of one operand, if it is one with constants per channel.
pub(crate) fn affine(site: &Site) -> Option<Affine> {
    let rank = site.graph.ty(site.output()).as_tensor()?.rank();
    if let Op::BatchNormalization(op) = site.op() {
        if op.training_mode || site.data().outputs.len() != 1 {
            return None;
        }
        let [scale, bias, mean, var] = [1, 2, 3, 4].map(|i| site.constant(i));
        let (scale, bias, mean, var) = (scale?, bias?, mean?, var?);
        let n = scale.len();
        let factor: Vec<f64> = (0..n).map(|i| scale.float(i) / (var.float(i) + f64::from(op.epsilon)).sqrt()).collect();
        let shift = (0..n).map(|i| bias.float(i) - mean.float(i) * factor[i]).collect();
        return Some(Affine { of: site.input(0)?, factor, shift });
    }
    let commutes = matches!(site.op(), Op::Add(_) | Op::Mul(_));
    if !commutes && !matches!(site.op(), Op::Sub(_) | Op::Div(_)) {
        return None;
    }
    let (of, c) = match (site.constant(0), site.constant(1)) {
        (None, Some(c)) => (site.input(0)?, c),
        (Some(c), None) if commutes => (site.input(1)?, c),
        _ => return None,
    };
    if !site.same_type(of, site.output()) {
        return None;
    }
    let axis = channel_axis(site, of, rank)?;
    let values = per_channel(c, rank, axis)?;
    let one = vec![1.0];
    Some(match site.op() {
        Op::Mul(_) => Affine { of, factor: values, shift: vec![0.0] },
        Op::Div(_) if values.iter().all(|&v| v != 0.0) => {
            Affine { of, factor: values.iter().map(|v| 1.0 / v).collect(), shift: vec![0.0] }
        }
        Op::Add(_) => Affine { of, factor: one, shift: values },
        Op::Sub(_) => Affine { of, factor: one, shift: values.iter().map(|v| -v).collect() },
        _ => return None,
    })
}

/// Where the channels of what makes a value are.
fn channel_axis(site: &Site, v: Value, rank: usize) -> Option<usize> {
    match site.graph.node(site.producer(v)?).op {
        Op::Conv(_) | Op::ConvTranspose(_) => Some(1),
        Op::Gemm(_) | Op::MatMul(_) => rank.checked_sub(1),
        _ => None,
    }
}

/// The elements of a constant that broadcasts to `rank` dims and differs only along `axis`.
fn per_channel(t: &Tensor, rank: usize, axis: usize) -> Option<Vec<f64>> {
    if !t.dtype.is_float() {
        return None;
    }
    let skip = rank.checked_sub(t.dims.len())?;
    let flat = t.dims.iter().enumerate().all(|(i, &d)| d == 1 || i + skip == axis);
    (flat && !t.is_empty()).then(|| (0..t.len()).map(|i| t.float(i)).collect())
}

fn is_plain(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
}

/// `w` with the elements of each channel along `axis` multiplied. For `groups` > 1 channels go on from group to group of axis 0.
fn scaled(w: &Tensor, axis: usize, groups: usize, affine: &Affine) -> Tensor {
    let inner: usize = w.dims[axis + 1..].iter().product();
    let here = w.dims[axis];
    let per_group = if axis == 0 { usize::MAX } else { (w.dims[0] / groups).max(1) };
    let values = (0..w.len()).map(|i| {
        let group = if axis == 0 { 0 } else { i / (inner * here) / per_group };
        let channel = group * here + i / inner % here;
        infc_ir::eval::round_float(w.dtype, w.float(i) * affine.factor(channel)).to_bits()
    });
    Tensor::from_values(w.dtype, w.dims.clone(), values)
}

/// `bias * factor + shift` for `count` channels.
fn moved(dtype: DType, bias: Option<&Tensor>, count: usize, affine: &Affine) -> Tensor {
    let value = |i: usize| bias.map_or(0.0, |b| b.float(i % b.len())) * affine.factor(i) + affine.shift(i);
    Tensor::from_values(dtype, [count], (0..count).map(|i| infc_ir::eval::round_float(dtype, value(i)).to_bits()))
}

/// Operand `i` of a node, if it is there, must be a constant: `Err(())` if it is not.
fn optional_constant(site: &Site, n: Node, i: usize) -> Result<Option<Tensor>, ()> {
    match site.graph.node(n).inputs.get(i).copied().flatten() {
        None => Ok(None),
        Some(v) => site.graph.constant(v).cloned().map(Some).ok_or(()),
    }
}

fn convolution(site: &mut Site, linear: Node, affine: &Affine, axis: usize, groups: usize) -> Replacement {
    let (Ok(Some(w)), Ok(bias)) = (optional_constant(site, linear, 1), optional_constant(site, linear, 2)) else {
        return Ok(None);
    };
    if !is_plain(w.dtype) {
        return Ok(None);
    }
    let count = if axis == 0 { w.dims[0] } else { w.dims[1] * groups };
    let new_w = affine.scales().then(|| scaled(&w, axis, groups, affine));
    let new_b = moved(w.dtype, bias.as_ref(), count, affine);
    let (op, mut inputs) = (site.graph.node(linear).op.clone(), site.graph.node(linear).inputs.clone());
    site.absorb(linear);
    site.build(|b| {
        if let Some(w) = new_w {
            inputs[1] = Some(b.constant(w));
        }
        inputs.resize(3, None);
        inputs[2] = Some(b.constant(new_b));
        b.node(op, &inputs, vec![], 1)
    })
    .map(Some)
}

fn gemm(site: &mut Site, linear: Node, affine: &Affine, op: Gemm) -> Replacement {
    let (Ok(Some(w)), Ok(bias)) = (optional_constant(site, linear, 1), optional_constant(site, linear, 2)) else {
        return Ok(None);
    };
    let axis = if op.transB != 0 { 0 } else { 1 };
    let per_column = bias.as_ref().is_none_or(|c| per_channel(c, 2, 1).is_some());
    if !is_plain(w.dtype) || !per_column {
        return Ok(None);
    }
    let count = w.dims[axis];
    let bias = bias.map(|c| {
        let values = (0..c.len()).map(|i| (c.float(i) * f64::from(op.beta)).to_bits()).collect::<Vec<_>>();
        Tensor::from_values(DType::F64, [c.len()], values)
    });
    let new_w = affine.scales().then(|| scaled(&w, axis, 1, affine));
    let new_b = moved(w.dtype, bias.as_ref(), count, affine);
    let mut inputs = site.graph.node(linear).inputs.clone();
    site.absorb(linear);
    site.build(|b| {
        if let Some(w) = new_w {
            inputs[1] = Some(b.constant(w));
        }
        inputs.resize(3, None);
        inputs[2] = Some(b.constant(new_b));
        b.node(Gemm { beta: 1.0, ..op }, &inputs, vec![], 1)
    })
    .map(Some)
}

/// A product with a constant matrix takes the factor; the shift stays an addition.
fn matmul(site: &mut Site, linear: Node, affine: &Affine) -> Replacement {
    let Ok(Some(w)) = optional_constant(site, linear, 1) else { return Ok(None) };
    let Some(x) = site.graph.node(linear).operand(0) else { return Ok(None) };
    // Channels of a batch normalisation are axis 1, those of the product are the last one.
    let last = site.graph.ty(affine.of).as_tensor().is_some_and(|t| t.rank() == 2);
    let batchnorm = matches!(site.op(), Op::BatchNormalization(_));
    if w.dims.len() != 2 || !is_plain(w.dtype) || !affine.scales() || batchnorm && !last {
        return Ok(None);
    }
    let new_w = scaled(&w, 1, 1, affine);
    let shifted = affine.shift.iter().any(|&s| s != 0.0);
    let shift = moved(w.dtype, None, w.dims[1], affine);
    site.absorb(linear);
    site.build(|b| {
        let w = b.constant(new_w);
        let y = b.op(infc_ir::op::MatMul {}, &[x, w])?;
        if !shifted {
            return Ok(y);
        }
        let shift = b.constant(shift);
        b.op(Add {}, &[y, shift])
    })
    .map(|v| Some(vec![v]))
}

/// A batch normalisation by itself: x * factor + shift.
fn alone(site: &mut Site, affine: &Affine) -> Replacement {
    let Some(ty) = site.graph.ty(affine.of).as_tensor() else { return Ok(None) };
    if !is_plain(ty.dtype) || ty.rank() < 2 {
        return Ok(None);
    }
    let (dtype, x) = (ty.dtype, affine.of);
    let mut dims = vec![affine.factor.len()];
    dims.resize(ty.rank() - 1, 1);
    let round = |values: &[f64]| {
        let values = values.iter().map(|&v| infc_ir::eval::round_float(dtype, v).to_bits());
        Tensor::from_values(dtype, dims.clone(), values.collect::<Vec<_>>())
    };
    let (factor, shift) = (round(&affine.factor), round(&affine.shift));
    site.build(|b| {
        let (factor, shift) = (b.constant(factor), b.constant(shift));
        let y = b.op(Mul {}, &[x, factor])?;
        b.op(Add {}, &[y, shift])
    })
    .map(|v| Some(vec![v]))
}
