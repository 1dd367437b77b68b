//! Transposed convolutions as convolutions, which run in register tiles.
//!
//! With stride `s`, the results at positions of one remainder modulo `s` are a convolution with every `s`-th row and column of the kernel
//! (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016). Remainders whose parts of the kernel are of one size, side by
//! side, are one convolution with the channels of all of them; what is left is a convolution of its own, with just its part of the kernel. Concat joins
//! them, DepthToSpace (or, where that has no form for it, Reshape and Transpose) interleaves, and a Slice takes off the padding.
//!
//! Class: reassociated. Each result is the sum of the same products.

use crate::rewrite::{Context, Replacement, Site, each_node};
use infc_ir::expr::Expr;
use infc_ir::graph::Graph;
use infc_ir::op::{Builder, Concat, Conv, ConvTranspose, DepthToSpace, Reshape, Slice, Transpose};
use infc_ir::{DType, Fault, Op, Problems, Tensor, Value};

/// Runs the pass; counts rewrites.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    each_node(g, cx, "transposed", &mut rule)
}

/// Most convolutions that take the place of one.
const MOST: usize = 16;

/// What a transposed convolution without dilation is made of, by spatial axes.
pub struct Form {
    /// The strides.
    pub strides: Vec<i64>,
    /// Extents of the largest kernel of a remainder.
    pub taps: Vec<usize>,
    /// What is cut off before the result.
    pub begin: Vec<i64>,
    /// What is cut off after it.
    pub tail: Vec<i64>,
}

impl Form {
    /// The form for data and weights of these dims; `None` if it has dilation, or padding that only the input tells.
    pub fn of(op: &ConvTranspose, x: &[Expr], w: &[usize]) -> Option<Form> {
        let n = w.len().checked_sub(2).filter(|&n| n > 0 && x.len() == n + 2)?;
        let at = |v: &[i64], i: usize, none: i64| v.get(i).copied().unwrap_or(none);
        let mut f = Form { strides: vec![], taps: vec![], begin: vec![], tail: vec![] };
        for i in 0..n {
            let (s, kernel, extra) = (at(&op.strides, i, 1), w[i + 2] as i64, at(&op.output_padding, i, 0));
            if at(&op.dilations, i, 1) != 1 || s < 1 {
                return None;
            }
            let taps = (kernel + s - 1) / s;
            // What the windows reach beyond as many strides as there are elements.
            let over = kernel + extra - s;
            // The first of the output's shape may be left out, or not.
            let asked = op.output_shape.len().checked_sub(n).map(|skip| op.output_shape[skip + i]);
            let total = match (asked, op.auto_pad.as_str()) {
                (Some(d), _) => Some(x[i + 2].known()? * s + over - d),
                (None, "SAME_UPPER" | "SAME_LOWER") => Some(over),
                _ => None,
            };
            let (begin, end) = match (total, op.auto_pad.as_str()) {
                (Some(total), way) if total >= 0 => {
                    let half = total / 2;
                    if way == "SAME_UPPER" { (half, total - half) } else { (total - half, half) }
                }
                (None, "VALID") => (0, 0),
                (None, _) => (at(&op.pads, i, 0), at(&op.pads, n + i, 0)),
                (Some(_), _) => return None,
            };
            let tail = (taps - 1) * s - over + end;
            if begin < 0 || tail < 0 {
                return None;
            }
            f.strides.push(s);
            f.taps.push(taps as usize);
            f.begin.push(begin);
            f.tail.push(tail);
        }
        Some(f)
    }

    /// The result without what is cut off.
    pub fn cut(&self, b: &mut Builder, y: Value) -> Result<Value, Fault> {
        if self.begin.iter().chain(&self.tail).all(|&cut| cut == 0) {
            return Ok(y);
        }
        let starts = b.ints(&self.begin);
        let ends = b.ints(&self.tail.iter().map(|&t| if t == 0 { i64::MAX } else { -t }).collect::<Vec<_>>());
        let axes = b.ints(&(2..2 + self.begin.len() as i64).collect::<Vec<_>>());
        b.op(Slice {}, &[y, starts, ends, axes])
    }

    /// The remainders, in the order of their axes.
    fn remainders(&self) -> Vec<Vec<usize>> {
        let mut all = vec![vec![]];
        for &s in &self.strides {
            all = all.iter().flat_map(|r| (0..s as usize).map(|i| [r.as_slice(), &[i]].concat())).collect();
        }
        all
    }
}

fn rule(site: &mut Site) -> Replacement {
    let Op::ConvTranspose(op) = site.op().clone() else { return Ok(None) };
    let (Some(x), Some(w)) = (site.input(0), site.constant(1).cloned()) else { return Ok(None) };
    let Some(dims) = site.graph.ty(x).as_tensor().map(|t| t.dims.clone()) else { return Ok(None) };
    // Each remainder must have a part of the kernel.
    let whole = |f: &Form| w.dims.iter().all(|&d| d > 0) && w.dims[2..].iter().zip(&f.strides).all(|(&d, &s)| d as i64 >= s);
    let Some(f) = Form::of(&op, &dims, &w.dims).filter(|f| w.dtype == DType::F32 && whole(f)) else { return Ok(None) };
    let same = f.strides.len() == 2 && f.strides[0] == f.strides[1];
    if !same && dims[2..].iter().filter(|d| d.known().is_none()).count() > 1 {
        return Ok(None);
    }
    let bias = site.input(2);
    let values = site.constant(2).map(|b| b.to_vec::<f32>());
    let extents =
        |r: &[usize]| -> Vec<usize> { (0..r.len()).map(|i| (w.dims[i + 2] - r[i]).div_ceil(f.strides[i] as usize)).collect() };
    let mut runs: Vec<Vec<Vec<usize>>> = vec![];
    for r in f.remainders() {
        match runs.last_mut() {
            Some(run) if op.group == 1 && bias.is_some() == values.is_some() && extents(&run[0]) == extents(&r) => run.push(r),
            _ => runs.push(vec![r]),
        }
    }
    if runs.len() > MOST {
        return Ok(None);
    }
    let y = site.build(|b| {
        let mut results = vec![];
        for run in &runs {
            let taps = extents(&run[0]);
            // Before: as far as the small kernel reaches back. After: so that all have the length of the largest.
            let before = taps.iter().map(|&t| t as i64 - 1);
            let after = f.taps.iter().map(|&t| t as i64 - 1);
            let conv = Conv {
                auto_pad: "NOTSET".into(),
                dilations: vec![],
                group: op.group,
                kernel_shape: vec![],
                pads: before.chain(after).collect(),
                strides: vec![],
            };
            let mut operands = vec![Some(x), Some(b.constant(small(&w, op.group as usize, &f.strides, run, &taps)))];
            operands.extend(match &values {
                Some(v) if run.len() > 1 => Some(Some(b.constant(Tensor::from_vec([v.len() * run.len()], v.repeat(run.len()))))),
                _ => bias.map(Some),
            });
            results.push(b.node(conv, &operands, vec![], 1)?[0]);
        }
        let mut y = if results.len() > 1 { b.op(Concat { axis: 1 }, &results)? } else { results[0] };
        if f.strides.iter().any(|&s| s > 1) {
            y = match same {
                true => b.op(DepthToSpace { blocksize: f.strides[0], mode: "DCR".into() }, &[y])?,
                false => interleave(b, y, &f.strides, (w.dims[1] as i64) * op.group)?,
            };
        }
        f.cut(b, y)
    })?;
    Ok(Some(vec![y]))
}

/// `[n, strides.., channels, extents..]`, with all but the extents in one axis, as `[n, channels, extents * strides..]`. At most one extent is unknown.
fn interleave(b: &mut Builder, y: Value, strides: &[i64], channels: i64) -> Result<Value, Fault> {
    let extents: Vec<Expr> = b.graph.ty(y).as_tensor().expect("of a convolution").dims[2..].to_vec();
    let n = strides.len() as i64;
    let apart: Vec<i64> =
        [0].iter().chain(strides).chain(&[channels]).copied().chain(extents.iter().map(|e| e.known().unwrap_or(-1))).collect();
    let apart = b.ints(&apart);
    let y = b.op(Reshape { allowzero: false }, &[y, apart])?;
    let perm = [0, n + 1].into_iter().chain((0..n).flat_map(|i| [n + 2 + i, 1 + i])).collect();
    let y = b.op(Transpose { perm }, &[y])?;
    let joined: Vec<i64> =
        [0, channels].into_iter().chain(extents.iter().zip(strides).map(|(e, s)| e.known().map_or(-1, |e| e * s))).collect();
    let joined = b.ints(&joined);
    b.op(Reshape { allowzero: false }, &[y, joined])
}

/// The parts of a kernel `[in, out of a group, extents..]` for some remainders, turned round: `[remainders * out, in of a group, taps..]`.
fn small(w: &Tensor, group: usize, strides: &[i64], remainders: &[Vec<usize>], taps: &[usize]) -> Tensor {
    let values = w.to_vec::<f32>();
    let (inputs, outputs) = (w.dims[0] / group, w.dims[1]);
    let count: usize = taps.iter().product();
    let mut out = Vec::with_capacity(remainders.len() * inputs * outputs * group * count);
    for r in remainders {
        for (g, m) in (0..group).flat_map(|g| (0..outputs).map(move |m| (g, m))) {
            for c in 0..inputs {
                let first = (g * inputs + c) * outputs + m;
                out.extend((0..count).rev().map(|t| {
                    let (mut rest, mut at, mut step) = (t, 0, 1);
                    for i in (0..taps.len()).rev() {
                        at += (r[i] + strides[i] as usize * (rest % taps[i])) * step;
                        step *= w.dims[i + 2];
                        rest /= taps[i];
                    }
                    values[first * step + at]
                }));
            }
        }
    }
    let dims: Vec<usize> = [remainders.len() * outputs * group, inputs].into_iter().chain(taps.iter().copied()).collect();
    Tensor::from_vec(dims, out)
}
