//! Tiles of factors as boxes of tensors, which a machine copies with one instruction.
//!
//! A factor's element lies at an offset that is linear in the axes of rows (columns), products and the batch. Rows and products are flattened:
//! their axes are joined where they lie one behind the other, and what is left must be cut by a tile into a box. A convolution's window moves along
//! the same axis of the tensor as the rows where both step as far.

use super::contract::Factor;
use super::{Cx, Operand};
use crate::loops::{BoxAxis, BoxCopy};
use infc_ir::compute::Compute;
use infc_ir::scalar::Scalar;
use infc_ir::{DType, Expr};

/// The most axes of such a tensor, the largest extent of a box, and the alignment of rows in bytes.
const MOST_AXES: usize = 5;
const MOST_PART: i64 = 256;
const ALIGNED: i64 = 16;
/// Bytes of a row of the tile in shared memory.
const ROW: i64 = 128;

/// A tile: so many lines (rows or columns) of the flattened `axes` from `first` on, and so many products from `product` on.
pub(super) struct Wanted<'a> {
    pub lines: (&'a [usize], Expr, i64),
    pub products: (Expr, i64),
    /// Values of the batch axes.
    pub batch: &'a [Expr],
    /// Products are neighbours in shared memory; else blocks of lines of 128 bytes are.
    pub k_last: bool,
    pub dtype: DType,
    /// The buffer in shared memory.
    pub to: u32,
}

/// The copy that brings the tile of a factor, if it is one of boxes.
pub(super) fn copy(cx: &Cx, c: &Compute, f: &Factor, wanted: &Wanted) -> Option<BoxCopy> {
    let operand: &Operand = cx.operand(f.source);
    let r = c.reduction.as_ref()?;
    let (rank, width) = (c.dims.len(), wanted.dtype.bytes() as i64);
    let index: Vec<Scalar> = f.index.iter().map(|&e| Scalar::index(e)).collect();
    let mut rest = operand.offset(&index)?;
    let mut steps = vec![];
    for a in 0..rank + r.axes.len() {
        let (step, other) = rest.affine_in(a as u32)?;
        steps.push(step);
        rest = other;
    }
    let offset = rest.known().filter(|&o| o >= 0 && o * width % ALIGNED == 0)?;
    let axis = |a: usize| Some((if a < rank { c.dims[a] } else { r.axes[a - rank] }.known()?, steps[a]));
    let lines = joined(wanted.lines.0.iter().map(|&a| axis(a)).collect::<Option<Vec<_>>>()?);
    let products = joined((rank..rank + r.axes.len()).map(axis).collect::<Option<Vec<_>>>()?);
    let per = ROW / width;
    let (first, second, count) = match wanted.k_last {
        true => (cut(&products, wanted.products)?, cut(&lines, (wanted.lines.1, wanted.lines.2))?, 1),
        // The last block of columns may end beyond the tensor, which one axis tells.
        false if lines.len() == 1 => {
            (cut(&lines, (wanted.lines.1, per))?, cut(&products, wanted.products)?, wanted.lines.2 / per)
        }
        false => return None,
    };
    let mut axes: Vec<BoxAxis> = first.into_iter().chain(second).collect();
    for (a, &at) in wanted.batch.iter().enumerate() {
        let listed = wanted.lines.0.contains(&a);
        if !listed && steps[a] != 0 && !c.dims[a].is(1) {
            axes.push(BoxAxis { size: c.dims[a].known()?, stride: steps[a], part: 1, at });
        }
    }
    // A window moves along the axis of the rows.
    let mut k = 1;
    while k < axes.len() {
        let axis = axes[k];
        match (1..k).find(|&j| axes[j].stride == axis.stride && (axes[j].part == 1 || axis.part == 1)) {
            Some(j) => {
                let other = axes[j];
                axes[j] = BoxAxis {
                    size: other.size + axis.size - 1,
                    stride: axis.stride,
                    part: other.part.max(axis.part),
                    at: other.at + axis.at,
                };
                // What shared memory has one behind the other stays in order: those of one element are anywhere.
                if other.part == 1 && axis.part > 1 {
                    let moved = axes.remove(j);
                    axes[k - 1] = moved;
                } else {
                    axes.remove(k);
                }
            }
            None => k += 1,
        }
    }
    let inner = axes.first()?;
    let fits = |a: &BoxAxis| a.stride > 0 && a.stride * width % ALIGNED == 0 && a.stride * width < 1 << 40;
    let sized = |a: &BoxAxis| (1..=MOST_PART).contains(&a.part) && (1..1 << 31).contains(&a.size);
    let good = inner.stride == 1 && inner.part * width == ROW && axes[1..].iter().all(fits) && axes.iter().all(sized);
    // One axis alone has a second one of one element.
    (good && axes.len() <= MOST_AXES).then_some(BoxCopy { from: f.source as u32, to: wanted.to, offset, axes, count })
}

/// Flattened axes, the outermost first, each joined with the one before where that goes on behind its end. Those of one element are left out.
fn joined(axes: Vec<(i64, i64)>) -> Vec<(i64, i64)> {
    let mut out: Vec<(i64, i64)> = vec![];
    for (size, step) in axes.into_iter().filter(|a| a.0 != 1) {
        match out.last_mut() {
            Some(last) if last.1 == size * step => *last = (last.0 * size, step),
            _ => out.push((size, step)),
        }
    }
    out
}

/// The box, innermost axis first, that `many` flattened elements are from `start` on, which is a multiple of `many`.
fn cut(axes: &[(i64, i64)], (start, many): (Expr, i64)) -> Option<Vec<BoxAxis>> {
    let (mut left, mut inner, mut out) = (many, 1, vec![]);
    for (k, &(size, stride)) in axes.iter().enumerate().rev() {
        let place = start.div(Expr::int(inner));
        let (part, at) = match k {
            // The outermost one may end within the box, or before it.
            0 => (left, place),
            _ if left == 1 || size % left == 0 => (left, place.rem(Expr::int(size))),
            _ if left % size == 0 => (size, Expr::int(0)),
            _ => return None,
        };
        left /= part.min(left);
        inner *= size;
        out.push(BoxAxis { size, stride, part, at });
    }
    (left == 1).then_some(out)
}
