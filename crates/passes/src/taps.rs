//! Rows and columns of kernels that only ever meet padding, taken off. Networks whose dilation grows beyond their picture (atrous pyramids) have
//! such: of a 3x3 kernel that is dilated by 36, one tap is left over a picture of 28 x 28, and no padding.
//!
//! Class: exact, for weights that are numbers: what is left out are products of zeros.

use crate::rewrite::{Context, Replacement, Site, each_node};
use infc_ir::graph::Graph;
use infc_ir::op::Conv;
use infc_ir::{DType, Op, Problems, Tensor};

/// Runs the pass; counts rewrites.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    each_node(g, cx, "taps", &mut rule)
}

/// What is left of an axis of the kernel.
struct Axis {
    first: usize,
    taps: usize,
    pads: [i64; 2],
}

/// The taps of an axis that meet data: `size` elements, `taps` of the kernel, `out` results. `None` if all of them do, or if what is left would
/// need a smaller picture.
fn alive(size: i64, taps: usize, out: i64, stride: i64, dilation: i64, before: i64) -> Option<Axis> {
    let meets = |k: usize| {
        let least = dilation * k as i64 - before;
        least < size && least + stride * (out - 1) >= 0
    };
    let first = (0..taps).find(|&k| meets(k))?;
    let last = (0..taps).rev().find(|&k| meets(k))?;
    let left = last - first + 1;
    let begin = before - dilation * first as i64;
    let end = (out - 1) * stride + dilation * (left as i64 - 1) + 1 - size - begin;
    (left < taps && begin >= 0 && end >= 0).then_some(Axis { first, taps: left, pads: [begin, end] })
}

fn rule(site: &mut Site) -> Replacement {
    let Op::Conv(op) = site.op().clone() else { return Ok(None) };
    let (Some(x), Some(w)) = (site.input(0), site.constant(1).cloned()) else { return Ok(None) };
    let spatial = w.dims.len().saturating_sub(2);
    if w.dtype != DType::F32 || op.auto_pad != "NOTSET" || spatial == 0 {
        return Ok(None);
    }
    let dims = |v| site.graph.ty(v).as_tensor().map(|t| t.dims.clone());
    let (Some(data), Some(result)) = (dims(x), dims(site.output())) else { return Ok(None) };
    let at = |v: &[i64], i: usize, none: i64| v.get(i).copied().unwrap_or(none);
    let mut axes = vec![];
    for a in 0..spatial {
        let taps = w.dims[a + 2];
        let pads = [at(&op.pads, a, 0), at(&op.pads, a + spatial, 0)];
        let sizes = data[a + 2].known().zip(result[a + 2].known()).filter(|&(size, out)| size > 0 && out > 0);
        let fewer = sizes.and_then(|(size, out)| alive(size, taps, out, at(&op.strides, a, 1), at(&op.dilations, a, 1), pads[0]));
        axes.push(fewer.unwrap_or(Axis { first: 0, taps, pads }));
    }
    if axes.iter().zip(&w.dims[2..]).all(|(a, &taps)| a.taps == taps) {
        return Ok(None);
    }
    let values = w.to_vec::<f32>();
    if !values.iter().all(|v| v.is_finite()) {
        return Ok(None);
    }
    let small = cut(&w.dims, &values, &axes);
    let conv =
        Conv { kernel_shape: vec![], pads: axes.iter().map(|a| a.pads[0]).chain(axes.iter().map(|a| a.pads[1])).collect(), ..op };
    let bias = site.input(2);
    let y = site.build(|b| {
        let kernel = b.constant(small);
        let mut operands = vec![Some(x), Some(kernel)];
        operands.extend(bias.map(Some));
        Ok(b.node(conv, &operands, vec![], 1)?[0])
    })?;
    Ok(Some(vec![y]))
}

/// The part of a kernel `[m, c, taps...]` that is left.
fn cut(dims: &[usize], values: &[f32], axes: &[Axis]) -> Tensor {
    let left: Vec<usize> = dims[..2].iter().copied().chain(axes.iter().map(|a| a.taps)).collect();
    let count = left.iter().product();
    let mut out = Vec::with_capacity(count);
    for flat in 0..count {
        let (mut rest, mut from, mut stride) = (flat, 0, 1);
        for axis in (0..dims.len()).rev() {
            let first = if axis < 2 { 0 } else { axes[axis - 2].first };
            from += (rest % left[axis] + first) * stride;
            rest /= left[axis];
            stride *= dims[axis];
        }
        out.push(values[from]);
    }
    Tensor::from_vec(left, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_that_meet_data_stay() {
        let of = |size, taps, stride, dilation, before, after| {
            let out = (size + before + after - dilation * (taps as i64 - 1) - 1) / stride + 1;
            alive(size, taps, out, stride, dilation, before).map(|a| (a.first, a.taps, a.pads))
        };
        assert_eq!(of(28, 3, 1, 36, 36, 36), Some((1, 1, [0, 0])));
        assert_eq!(of(28, 3, 1, 28, 28, 28), Some((1, 1, [0, 0])));
        assert_eq!(of(28, 3, 1, 27, 27, 27), None);
        assert_eq!(of(5, 5, 1, 2, 4, 4), None);
        assert_eq!(of(4, 5, 1, 2, 4, 4), Some((1, 3, [2, 2])));
        assert_eq!(of(4, 5, 1, 3, 6, 6), Some((1, 3, [3, 3])));
        assert_eq!(of(1, 3, 1, 1, 1, 1), Some((1, 1, [0, 0])));
        assert_eq!(of(1, 3, 2, 1, 1, 1), Some((1, 1, [0, 0])));
        // Results beyond the data on one side only.
        assert_eq!(of(2, 3, 1, 4, 0, 8), Some((0, 1, [0, 0])));
        assert_eq!(of(3, 1, 1, 1, 5, 5), None);
    }
}
