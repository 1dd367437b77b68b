//! Transposed convolutions as convolutions, which run in register tiles.
//!
//! With stride `s`, the results at positions of one remainder modulo `s` are a convolution with every `s`-th row and column of the kernel
//! (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016). Each remainder is a convolution of its own, with just
//! its part of the kernel; Concat and DepthToSpace interleave the results, and a Slice takes off the padding.
//!
//! Class: reassociated. Each result is the sum of the same products.

use crate::rewrite::{Context, Replacement, Site, each_node};
use infc_ir::graph::Graph;
use infc_ir::op::{Concat, Conv, ConvTranspose, DepthToSpace, Slice};
use infc_ir::{DType, Op, Problems, Tensor};

/// Runs the pass; counts rewrites.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    each_node(g, cx, "transposed", &mut rule)
}

/// Largest stride that is rewritten: there are as many convolutions as its square.
const MAX_STRIDE: i64 = 4;

/// What a transposed convolution of two dims, one group and equal strides is made of.
pub struct Form {
    /// The stride of both dims.
    pub stride: usize,
    /// Rows and columns of the largest kernel of a remainder.
    pub taps: [usize; 2],
    /// Rows and columns that are cut off before the result.
    pub begin: [i64; 2],
    /// Those after it.
    pub tail: [i64; 2],
}

impl Form {
    /// The form with weights of these dims; `None` if it is another kind of transposed convolution or a stride above `most`.
    pub fn of(op: &ConvTranspose, dims: &[usize], most: i64) -> Option<Form> {
        let at = |v: &[i64], i: usize, none: i64| v.get(i).copied().unwrap_or(none);
        let stride = at(&op.strides, 0, 1);
        let plain = dims.len() == 4
            && op.group == 1
            && op.auto_pad == "NOTSET"
            && op.output_shape.is_empty()
            && op.dilations.iter().all(|&d| d == 1)
            && stride == at(&op.strides, 1, 1)
            && (1..=most).contains(&stride);
        if !plain {
            return None;
        }
        let taps = [2, 3].map(|a| dims[a].div_ceil(stride as usize));
        let begin = [at(&op.pads, 0, 0), at(&op.pads, 1, 0)];
        let end = |a: usize| taps[a] as i64 * stride - dims[a + 2] as i64 + at(&op.pads, a + 2, 0) - at(&op.output_padding, a, 0);
        let tail = [end(0), end(1)];
        begin.iter().chain(&tail).all(|&p| p >= 0).then_some(Form { stride: stride as usize, taps, begin, tail })
    }
}

fn rule(site: &mut Site) -> Replacement {
    let Op::ConvTranspose(op) = site.op().clone() else { return Ok(None) };
    let (Some(x), Some(w)) = (site.input(0), site.constant(1).cloned()) else { return Ok(None) };
    // Each remainder must have a part of the kernel.
    let whole = |f: &Form| w.dims[..2].iter().all(|&d| d > 0) && w.dims[2..].iter().all(|&d| d >= f.stride);
    let Some(f) = Form::of(&op, &w.dims, MAX_STRIDE).filter(|f| w.dtype == DType::F32 && whole(f)) else { return Ok(None) };
    let bias = site.input(2);
    let s = f.stride;
    let parts: Vec<(usize, usize)> = (0..s).flat_map(|ry| (0..s).map(move |rx| (ry, rx))).collect();
    let kernels: Vec<Tensor> = parts.iter().map(|&part| small(&w, s, part)).collect();
    let y = site.build(|b| {
        let mut results = vec![];
        for kernel in kernels {
            // Before: as far as the small kernel reaches back. After: so that all have the length of the largest.
            let before = [2, 3].map(|a| kernel.dims[a] as i64 - 1);
            let after = f.taps.map(|t| t as i64 - 1);
            let conv = Conv {
                auto_pad: "NOTSET".into(),
                dilations: vec![],
                group: 1,
                kernel_shape: vec![],
                pads: [before, after].concat(),
                strides: vec![],
            };
            let kernel = b.constant(kernel);
            let mut operands = vec![Some(x), Some(kernel)];
            operands.extend(bias.map(Some));
            results.push(b.node(conv, &operands, vec![], 1)?[0]);
        }
        let mut y = results[0];
        if s > 1 {
            y = b.op(Concat { axis: 1 }, &results)?;
            y = b.op(DepthToSpace { blocksize: s as i64, mode: "DCR".into() }, &[y])?;
        }
        if f.begin != [0, 0] || f.tail != [0, 0] {
            let starts = b.ints(&f.begin);
            let ends = b.ints(&f.tail.map(|t| if t == 0 { i64::MAX } else { -t }));
            let axes = b.ints(&[2, 3]);
            y = b.op(Slice {}, &[y, starts, ends, axes])?;
        }
        Ok(y)
    })?;
    Ok(Some(vec![y]))
}

/// The part of a kernel `[in, out, h, w]` for one remainder, turned round: `[out, in, rows, columns]`.
fn small(w: &Tensor, s: usize, (ry, rx): (usize, usize)) -> Tensor {
    let values = w.to_vec::<f32>();
    let [inputs, outputs, h, width] = [0, 1, 2, 3].map(|a| w.dims[a]);
    let taps = |extent: usize, r: usize| (extent - r).div_ceil(s);
    let (rows, columns) = (taps(h, ry), taps(width, rx));
    let mut out = Vec::with_capacity(inputs * outputs * rows * columns);
    for m in 0..outputs {
        for c in 0..inputs {
            for y in (0..rows).rev() {
                out.extend((0..columns).rev().map(|x| values[((c * outputs + m) * h + ry + s * y) * width + rx + s * x]));
            }
        }
    }
    Tensor::from_vec([outputs, inputs, rows, columns], out)
}
