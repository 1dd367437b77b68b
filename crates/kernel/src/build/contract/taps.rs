//! Windows over borders of zeros: which of a convolution's taps a tile leaves out, since none of its rows meets data with them.

use super::{Factor, as_read};
use crate::build::Operand;
use infc_ir::Expr;
use infc_ir::compute::Compute;

/// A k axis over an axis with a border of zeros: the place there is `step * k + rest`.
pub(super) struct Tap {
    /// Which of the k axes, and its extent.
    pub(super) k: usize,
    count: i64,
    pub(super) step: i64,
    /// `stride * m + offset`, of this axis of the result.
    pub(super) rest: Expr,
    m: usize,
    stride: i64,
    offset: i64,
    /// Elements between the borders.
    pub(super) size: i64,
}

impl Tap {
    /// Number of values of k with which some place of the axis of the result meets data.
    fn met(&self, first: i64, last: i64) -> i64 {
        let at = |o: i64, k: i64| o * self.stride + k * self.step + self.offset;
        (0..self.count).filter(|&k| at(last, k) >= 0 && at(first, k) < self.size).count() as i64
    }
}

/// Does a tile of `mr` rows lie in one line of the last m axis?
pub(super) fn in_line(mr: i64, line: Option<i64>) -> bool {
    line.is_some_and(|d| d % mr == 0)
}

/// The share of the k loop that tiles of `mr` rows take, on the whole; `lines` are the extents of the m axes.
pub(super) fn share(taps: &[Tap], m: &[usize], lines: &[i64], mr: i64) -> f64 {
    let rows: i64 = lines.iter().product();
    let starts = (0..rows).step_by(mr as usize);
    let all = ((rows.max(1) + mr - 1) / mr) as f64;
    let of = |start: i64| {
        let (mut inner, mut part) = (rows, 1.0);
        for (i, (&axis, &extent)) in m.iter().zip(lines).enumerate() {
            inner /= extent.max(1);
            let end = (start + mr - 1).min(rows - 1);
            let (first, last) = match in_line(mr, lines.last().copied()) {
                true => (start / inner.max(1) % extent, (end / inner.max(1)) % extent),
                false if i == 0 => (start / inner.max(1), end / inner.max(1)),
                false => (0, extent - 1),
            };
            let met = taps.iter().filter(|t| t.m == axis).map(|t| t.met(first, last) as f64 / t.count as f64);
            part *= met.product::<f64>();
        }
        part
    };
    if taps.is_empty() { 1.0 } else { starts.map(of).sum::<f64>() / all }
}

/// Share of the products that must not meet the border, above which leaving them out is not worth its loops.
const WHOLE: f64 = 0.8;

/// The taps of a window that are far apart, as in dilated convolutions: most of the products may be of the border's zeros. A tile leaves out
/// those taps with which none of its rows meets data. Not where a weight is no number: it would make something of zeros.
pub(super) fn taps(c: &Compute, (broadcast, rows): (usize, &[usize]), f: &[Factor; 2], operands: &[Operand]) -> Vec<Tap> {
    let (a, b) = (&f[broadcast], &f[1 - broadcast]);
    let operand = &operands[a.source];
    let axes = &c.reduction.as_ref().expect("a contraction reduces").axes;
    let rank = c.dims.len();
    // Zero stays zero where it is widened.
    let plain = |f: &Factor| as_read(f.scalar) == f.read && f.scalar.dtype().is_float() && f.read.dtype().is_float();
    let weights = operands[b.source].constant.as_ref().filter(|_| plain(a) && plain(b));
    if operand.zeros.is_empty() || weights.is_none() {
        return vec![];
    }
    let (mut found, mut met) = (vec![], 1.0);
    for (k, extent) in axes.iter().enumerate() {
        let tap = || {
            let axis = a.index.iter().position(|e| e.uses_var((rank + k) as u32))?;
            let (before, behind) = (operand.shift[axis], operand.zeros[axis]);
            let size = operand.buffer.dims[axis].known()? - before - behind;
            let (step, rest) = a.index[axis].affine_in((rank + k) as u32)?;
            let &m = rows.iter().find(|&&m| rest.uses_var(m as u32))?;
            let (stride, offset) = rest.affine_in(m as u32)?;
            let (offset, out, count) = (offset.known()?, c.dims[m].known()?, extent.known()?);
            if step < 1 || stride < 1 || before + behind == 0 || out * count == 0 {
                return None;
            }
            let tap = Tap { k, count, step, rest, m, stride, offset, size };
            let share = (0..out).map(|o| tap.met(o, o)).sum::<i64>() as f64 / (out * count) as f64;
            Some((tap, share))
        };
        if let Some((tap, share)) = tap() {
            found.push(tap);
            met *= share;
        }
    }
    let numbers = || weights.is_some_and(|t| (0..t.len()).all(|i| t.float(i).is_finite()));
    if met < WHOLE && numbers() { found } else { vec![] }
}
