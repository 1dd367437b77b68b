//! Sliding windows: the geometry that convolution and pooling share.

use super::common::*;
use super::*;
use crate::scalar::Scalar;

/// The window attributes as they stand in the node.
#[derive(Clone, Copy)]
pub(super) struct WindowAttrs<'a> {
    pub(super) auto_pad: &'a str,
    pub(super) dilations: &'a [i64],
    pub(super) pads: &'a [i64],
    pub(super) strides: &'a [i64],
    pub(super) ceil: bool,
}

/// Windows over spatial dims: tap `k` of output `o` lies at input position `o * stride + k * dilation - begin`.
#[derive(Clone, Debug)]
pub(super) struct Windows {
    pub(super) input: Vec<Expr>,
    pub(super) kernel: Vec<Expr>,
    pub(super) strides: Vec<i64>,
    pub(super) dilations: Vec<i64>,
    /// Padding before and behind.
    pub(super) begin: Vec<Expr>,
    pub(super) end: Vec<Expr>,
    pub(super) out: Vec<Expr>,
    ceil: bool,
}

/// A list attribute with one positive entry for each spatial axis; `default` if it is absent.
pub(super) fn per_axis(name: &str, list: &[i64], n: usize, default: i64) -> Result<Vec<i64>, Fault> {
    match list.len() {
        0 => Ok(vec![default; n]),
        l if l != n => Err(fault!("attribute '{name}' has {l} entries for {n} spatial axes")),
        _ => match list.iter().find(|&&v| v < default.min(1)) {
            Some(v) => Err(fault!("attribute '{name}' has the entry {v}")),
            None => Ok(list.to_vec()),
        },
    }
}

/// Explicit pads, split into those before and those behind.
pub(super) fn split_pads(pads: &[i64], n: usize) -> Result<(Vec<Expr>, Vec<Expr>), Fault> {
    let all: Vec<Expr> = match pads.len() {
        0 => vec![Expr::int(0); 2 * n],
        l if l == 2 * n => pads.iter().map(|&p| Expr::int(p)).collect(),
        l => return Err(fault!("attribute 'pads' has {l} entries, {} are needed", 2 * n)),
    };
    Ok((all[..n].to_vec(), all[n..].to_vec()))
}

impl Windows {
    pub(super) fn new(input: &[Expr], kernel: &[Expr], a: WindowAttrs) -> Result<Windows, Fault> {
        let n = input.len();
        if kernel.len() != n {
            return Err(fault!("the kernel has {} dims for {n} spatial axes", kernel.len()));
        }
        if let Some(k) = kernel.iter().find(|k| k.known().is_some_and(|k| k < 1)) {
            return Err(fault!("a kernel dim is {k}"));
        }
        let strides = per_axis("strides", a.strides, n, 1)?;
        let dilations = per_axis("dilations", a.dilations, n, 1)?;
        let (mut begin, mut end) = split_pads(a.pads, n)?;
        let mut out = vec![];
        for i in 0..n {
            let (d, s) = (input[i], strides[i]);
            let extent = (kernel[i] - 1) * dilations[i] + 1;
            match a.auto_pad {
                "" | "NOTSET" => {}
                "VALID" => (begin[i], end[i]) = (Expr::int(0), Expr::int(0)),
                "SAME_UPPER" | "SAME_LOWER" => {
                    let total = ((d.div_ceil(Expr::int(s)) - 1) * s + extent - d).max(Expr::int(0));
                    let half = total.div(Expr::int(2));
                    (begin[i], end[i]) = if a.auto_pad == "SAME_UPPER" { (half, total - half) } else { (total - half, half) };
                    out.push(d.div_ceil(Expr::int(s)));
                    continue;
                }
                other => {
                    return Err(fault!("attribute 'auto_pad' is '{other}'; NOTSET, SAME_UPPER, SAME_LOWER or VALID is needed"));
                }
            }
            let room = d + begin[i] + end[i] - extent;
            let (before, behind) = (begin[i], end[i]);
            let text =
                || format!("a window of extent {extent} does not fit into {d} elements with padding {before} and {behind}");
            if room.known().is_some_and(|r| r < 0) {
                return Err(fault!("{}", text()));
            }
            sizes::must_equal(room.min(Expr::int(0)), Expr::int(0), &text);
            let stride = Expr::int(s);
            out.push(if a.ceil {
                // No window starts in the padding behind.
                (room.div_ceil(stride) + 1).min((d + begin[i]).div_ceil(stride))
            } else {
                room.div(stride) + 1
            });
        }
        Ok(Windows { input: input.to_vec(), kernel: kernel.to_vec(), strides, dilations, begin, end, out, ceil: a.ceil })
    }

    /// Where the windows at `outer` begin, padding counted as negative positions.
    pub(super) fn start(&self, outer: &[Expr]) -> Vec<Expr> {
        (0..self.out.len()).map(|i| outer[i] * self.strides[i] - self.begin[i]).collect()
    }

    /// Input positions of the taps at `taps`, and whether they lie inside.
    pub(super) fn at(&self, outer: &[Expr], taps: &[Expr]) -> (Vec<Expr>, Scalar) {
        let mut inside = Scalar::always();
        let mut position = self.start(outer);
        for i in 0..position.len() {
            position[i] = position[i] + taps[i] * self.dilations[i];
            let p = Scalar::index(position[i]);
            if !self.begin[i].is(0) {
                inside = inside.and(Scalar::index(0).le(p));
            }
            if !self.end[i].is(0) || self.ceil {
                inside = inside.and(p.lt(Scalar::index(self.input[i])));
            }
        }
        (position, inside)
    }

    /// True if every window lies inside the input.
    pub(super) fn unpadded(&self) -> bool {
        !self.ceil && self.begin.iter().chain(&self.end).all(|p| p.is(0))
    }

    /// How many taps of the windows at `outer` lie inside the input or, if `padded`, inside input and padding.
    pub(super) fn count(&self, outer: &[Expr], padded: bool) -> Expr {
        let start = self.start(outer);
        Expr::product((0..start.len()).map(|i| {
            let dilation = Expr::int(self.dilations[i]);
            let (low, high) = if padded { (-self.begin[i], self.input[i] + self.end[i]) } else { (Expr::int(0), self.input[i]) };
            let first = (low - start[i]).div_ceil(dilation).max(Expr::int(0));
            let behind = (high - start[i]).div_ceil(dilation).min(self.kernel[i]);
            behind - first
        }))
    }
}

/// The kernel dims from the attribute, checked against those of the weights if there are weights.
pub(super) fn kernel_dims(attribute: &[i64], weights: Option<&[Expr]>) -> Result<Vec<Expr>, Fault> {
    let given: Vec<Expr> = attribute.iter().map(|&k| Expr::int(k)).collect();
    match weights {
        None => Ok(given),
        Some(w) if given.is_empty() => Ok(w.to_vec()),
        Some(w) if w.len() != given.len() => {
            Err(fault!("attribute 'kernel_shape' {attribute:?} differs from the weights' {w:?}"))
        }
        Some(w) => {
            for (&k, &d) in given.iter().zip(w) {
                expect_dim("a kernel dim of the weights", d, k)?;
            }
            Ok(given)
        }
    }
}
