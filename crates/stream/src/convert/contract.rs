//! Convolutions and matrix products.

use super::layout::{channels_last, row_major};
use super::*;
use crate::design::nest;
use infc_ir::Tensor;
use infc_ir::op::QLinearConv;

/// Windows over two axes; a one-dimensional image has height 1.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    pub(super) window: Window,
    /// Above, left, below, right.
    pub(super) border: [usize; 4],
    /// Height, width, channels of the image.
    pub(super) image: [usize; 3],
    /// Height and width of the result.
    pub(super) result: [usize; 2],
}

/// Attributes of an operator with windows.
pub(super) struct Windows<'a> {
    pub(super) kernel: &'a [usize],
    pub(super) strides: &'a [i64],
    pub(super) dilations: &'a [i64],
    pub(super) pads: &'a [i64],
    pub(super) auto_pad: &'a str,
}

impl Geometry {
    /// Padding follows from the sizes before and after, and where it begins from the attributes.
    pub(super) fn of(w: &Windows, dims: &[usize], out: &[usize]) -> Result<Geometry, Fault> {
        let n = dims.len().saturating_sub(2);
        if !(1..=2).contains(&n) || w.kernel.len() != n || out.len() != dims.len() {
            return Err(fault!("windows over {n} axes cannot stream, only over one or two"));
        }
        let at = |list: &[i64], a: usize| list.get(a).map_or(1, |&v| v.max(1) as usize);
        let mut g = Geometry {
            window: Window { kernel: [1; 2], stride: [1; 2], dilation: [1; 2], groups: 1, rows: 0 },
            border: [0; 4],
            image: [1, 1, dims[1]],
            result: [1, 1],
        };
        for a in 0..n {
            let to = a + 2 - n;
            let (kernel, stride, dilation) = (w.kernel[a], at(w.strides, a), at(w.dilations, a));
            let (size, count) = (dims[a + 2], out[a + 2]);
            if size == 0 || count == 0 {
                return Err(fault!("an image without elements cannot stream"));
            }
            let needed = (count - 1) * stride + (kernel - 1) * dilation + 1;
            let total = needed.saturating_sub(size);
            let before = match w.auto_pad {
                "SAME_UPPER" => total / 2,
                "SAME_LOWER" => total - total / 2,
                "VALID" => 0,
                _ => w.pads.get(a).map_or(0, |&p| p.max(0) as usize),
            };
            (g.window.kernel[to], g.window.stride[to], g.window.dilation[to]) = (kernel, stride, dilation);
            (g.border[to], g.border[to + 2]) = (before, needed.saturating_sub(size + before));
            (g.image[to], g.result[to]) = (size, count);
        }
        g.window.rows = g.window.reach()[0] + g.window.stride[0];
        Ok(g)
    }
    /// Elements of a window, of one channel.
    pub(super) fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }
    /// A window that is the pixel itself.
    pub(super) fn pointwise(&self) -> bool {
        self.taps() == 1 && self.window.stride == [1, 1] && self.border == [0; 4]
    }
}

/// A matrix of integers with what belongs to it, before it becomes an actor.
pub(super) struct Matrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// `[group][row][column]`.
    pub(super) weights: Vec<i32>,
    pub(super) bias: Vec<i64>,
    /// Zero point of the input.
    pub(super) x_zero: i64,
}

/// Sums of a row: what every partial sum stays in, and what the whole can be.
struct Sums {
    partial: [i64; 2],
    total: [i64; 2],
}

fn sums(weights: &[i32], bias: i64, [lo, hi]: [i64; 2]) -> Sums {
    let (mut partial, mut total) = ([bias.min(0), bias.max(0)], [bias, bias]);
    for &w in weights {
        let (a, b) = (i64::from(w) * lo, i64::from(w) * hi);
        partial = [partial[0] + a.min(b).min(0), partial[1] + a.max(b).max(0)];
        total = [total[0] + a.min(b), total[1] + a.max(b)];
    }
    Sums { partial, total }
}

impl Matrix {
    /// The bias for inputs as they are stored, the accumulator, and the range of each row's sum for inputs within `range`.
    fn finish(&mut self, range: [i64; 2]) -> (Format, Format, Vec<[i64; 2]>) {
        let cols = self.cols.max(1);
        let (mut acc, mut ranges) = ([0, 0], vec![]);
        for (row, bias) in self.weights.chunks(cols).zip(&mut self.bias) {
            *bias -= self.x_zero * row.iter().map(|&w| i64::from(w)).sum::<i64>();
            let s = sums(row, *bias, range);
            acc = [acc[0].min(s.partial[0]), acc[1].max(s.partial[1])];
            ranges.push(s.total);
        }
        let least = self.weights.iter().min().copied().unwrap_or(0);
        let most = self.weights.iter().max().copied().unwrap_or(0);
        (Format::of(least.into(), most.into()), Format::of(acc[0], acc[1]), ranges)
    }
}

impl Converter<'_> {
    pub(super) fn convolution(&mut self, n: Node, op: &QLinearConv) -> Outcome<()> {
        let x = self.operand(n, 0)?;
        let flow = self.flow(n, x)?;
        let (scales, x_zero) = (self.scales(n)?, self.zero_point(n, 2)?);
        let w = self.constant(n, 3, "weights")?.clone();
        let zeros = self.constant(n, 5, "zero point of the weights")?.to_ints();
        let y = self.graph.node(n).outputs[0];
        let out = self.dims(y).unwrap_or_default();
        let (channels, groups) = (w.dims[0], op.group as usize);
        let bias = match self.graph.node(n).operand(8) {
            None => vec![0; channels],
            Some(_) => self.constant(n, 8, "bias")?.to_ints(),
        };
        let windows = Windows {
            kernel: &w.dims[2..],
            strides: &op.strides,
            dilations: &op.dilations,
            pads: &op.pads,
            auto_pad: &op.auto_pad,
        };
        let g = Geometry::of(&windows, &flow.dims, &out).map_err(|f| self.fault(n, f))?;
        let flow = self.reordered(n, flow.clone(), &channels_last(&flow.dims))?;
        let taps = g.taps();
        let values = w.to_ints();
        let zero = |c: usize| zeros[c % zeros.len()];
        let depthwise = groups == flow.dims[1] && channels == groups;
        let ones = depthwise && bias.iter().all(|&b| b == 0) && (0..w.len()).all(|i| values[i] - zero(i / taps) == 1);
        let law = Law { m: scales, zero: self.zero_point(n, 7)? };
        let dtype = self.dtype(y);
        // Columns of the stream are tap by tap, channels innermost.
        let inner = w.dims[1];
        let column = |c: usize, k: usize| (values[(c * inner + k % inner) * taps + k / inner] - zero(c)) as i32;
        let weights: Vec<i32> =
            (0..channels).flat_map(|c| (0..inner * taps).map(move |k| (c, k))).map(|(c, k)| column(c, k)).collect();
        let mut matrix = Matrix { rows: channels / groups, cols: inner * taps, weights, bias, x_zero };
        if ones && law.m.len() == 1 {
            return self.sum_pool(n, &flow, &g, law, x_zero);
        }
        let flow = self.padded(n, &flow, &g, x_zero);
        let image = [g.image[0] + g.border[0] + g.border[2], g.image[1] + g.border[1] + g.border[3], g.image[2]];
        let (weight, acc, ranges) = matrix.finish(flow.range);
        let requant = Some(pending(dtype, law, ranges).map_err(|f| self.fault(n, f))?);
        let Matrix { rows, cols, weights, bias, .. } = matrix;
        let shape = [g.result[0], g.result[1], taps * g.image[2]];
        let kind = match depthwise {
            true => Kind::Depthwise(Depthwise { channels, taps, pe: 1, weights, weight, bias, acc, requant }),
            false => Kind::Mvu(Mvu { groups, rows, cols, pe: 1, simd: 1, weights, weight, bias, acc, requant }),
        };
        let windowed = match g.pointwise() {
            true => flow,
            false => {
                let mut window = g.window.clone();
                window.groups = if depthwise { g.image[2] } else { groups };
                let actor = self.actor(n, "window", Kind::Window(window), &[(&flow, image)]);
                Flow { actor, ..flow }
            }
        };
        let actor = self.actor(n, if depthwise { "dw" } else { "mvu" }, kind, &[(&windowed, shape)]);
        let order = channels_last(&out);
        self.made(y, actor, out, order, dtype);
        Ok(())
    }

    /// The stream of a requantised result.
    pub(super) fn made(&mut self, y: Value, actor: usize, dims: Vec<usize>, order: Loops, dtype: DType) {
        let (lo, hi) = dtype.int_range().unwrap_or((0, 0));
        let format = Format { signed: dtype.is_signed(), bits: dtype.bits() };
        let (scale, zero) = self.stored_as(y);
        self.flows.insert(y, Flow { actor, dims, order, range: [lo as i64, hi as i64], format, scale, zero });
    }

    /// Scale and zero point of a value, from the node that makes it or one that dequantises it.
    fn stored_as(&self, y: Value) -> (Option<f32>, i64) {
        let single = |n: Node, i: usize| {
            self.graph.node(n).operand(i).and_then(|v| self.graph.constant(v)).filter(|t| t.len() == 1).map(|t| t.float(0))
        };
        let pair = |n: Node, s: usize| (single(n, s).map(|s| s as f32), single(n, s + 1).unwrap_or(0.0) as i64);
        let nodes = &self.graph.region(Graph::MAIN).nodes;
        let reader = nodes.iter().find(|&&n| {
            let data = self.graph.node(n);
            matches!(data.op, Op::DequantizeLinear(_)) && data.operand(0) == Some(y)
        });
        match (reader, self.producer(y).map(|n| (n, &self.graph.node(n).op))) {
            (Some(&n), _) => pair(n, 1),
            (None, Some((n, Op::QLinearConv(_) | Op::QLinearMatMul(_)))) => pair(n, 6),
            _ => (None, 0),
        }
    }

    /// `sx * sw / sy`, as the graph computes it.
    fn scales(&self, n: Node) -> Outcome<Vec<f32>> {
        let (sx, sw, sy) = (self.constant(n, 1, "scale")?, self.constant(n, 4, "scale")?, self.constant(n, 6, "scale")?);
        if sx.len() != 1 || sy.len() != 1 {
            return Err(self.problem(
                n,
                "the scales of its operand or result differ by channel",
                "use one scale for each tensor of data",
            ));
        }
        let one = |t: &Tensor, i: usize| t.float(i) as f32;
        Ok((0..sw.len()).map(|c| one(sx, 0) * one(sw, c) / one(sy, 0)).collect())
    }

    /// The stream with its border.
    pub(super) fn padded(&mut self, n: Node, flow: &Flow, g: &Geometry, value: i64) -> Flow {
        if g.border == [0; 4] {
            return flow.clone();
        }
        let actor = self.actor(n, "pad", Kind::Pad(Pad { border: g.border, value }), &[(flow, g.image)]);
        let range = [flow.range[0].min(value), flow.range[1].max(value)];
        let wider = Format::of(range[0], range[1]);
        let holds = |f: Format| f.min() <= range[0] && range[1] <= f.max();
        let format = if holds(flow.format) { flow.format } else { wider };
        Flow { actor, range, format, ..flow.clone() }
    }

    pub(super) fn matrix_node(&mut self, n: Node) -> Outcome<()> {
        let (x, y) = (self.operand(n, 0)?, self.graph.node(n).outputs[0]);
        let scales = self.scales(n)?;
        let x_zero = self.zero_point(n, 2)?;
        let zeros = self.constant(n, 5, "zero point of the weights")?.to_ints();
        let law = Law { m: scales, zero: self.zero_point(n, 7)? };
        let w = self.constant(n, 3, "weights")?.clone();
        self.product(n, x, &w, x_zero, &zeros, None, Some(law), y)
    }

    /// `requant(x w + bias)` as stream `y`.
    pub(super) fn product(
        &mut self,
        n: Node,
        x: Value,
        w: &Tensor,
        x_zero: i64,
        zeros: &[i64],
        bias: Option<Vec<i64>>,
        law: Option<Law>,
        y: Value,
    ) -> Outcome<()> {
        let flow = self.flow(n, x)?;
        let out = self.dims(y).unwrap_or_default();
        let matrix = w.dims.len() >= 2 && w.dims[..w.dims.len() - 2].iter().all(|&d| d == 1);
        let (Some(&cols), true) = (flow.dims.last(), matrix) else {
            return Err(self.problem(
                n,
                format!("weights {:?} are no matrix", w.dims),
                "one matrix for the whole batch is supported",
            ));
        };
        let rows = w.dims[w.dims.len() - 1];
        let vectors = flow.elements() / cols;
        // One vector may come in any order, the matrix follows it; several must come one after the other.
        let flow = if vectors == 1 { flow } else { self.reordered(n, flow.clone(), &row_major(&flow.dims))? };
        let places: Vec<usize> = if vectors == 1 { nest(&flow.order) } else { (0..cols).collect() };
        let (values, zero) = (w.to_ints(), |m: usize| zeros[m % zeros.len()]);
        let weights =
            (0..rows).flat_map(|m| places.iter().map(move |&k| (m, k))).map(|(m, k)| (values[k * rows + m] - zero(m)) as i32);
        let bias = bias.unwrap_or_else(|| vec![0; rows]);
        let bias = (0..rows).map(|m| bias[m % bias.len()]).collect();
        let mut matrix = Matrix { rows, cols, weights: weights.collect(), bias, x_zero };
        let (weight, acc, ranges) = matrix.finish(flow.range);
        let dtype = self.dtype(y);
        let total = [0, 1].map(|i| ranges.iter().map(|r| r[i]).reduce(if i == 0 { i64::min } else { i64::max }).unwrap_or(0));
        let requant = law.map(|law| pending(dtype, law, ranges)).transpose().map_err(|f| self.fault(n, f))?;
        let raw = requant.is_none();
        let Matrix { weights, bias, .. } = matrix;
        let mvu = Mvu { groups: 1, rows, cols, pe: 1, simd: 1, weights, weight, bias, acc, requant };
        let actor = self.actor(n, "mvu", Kind::Mvu(mvu), &[(&flow, [1, vectors, cols])]);
        let order = row_major(&out);
        if raw {
            self.flows.insert(y, Flow { actor, dims: out, order, range: total, format: acc, scale: None, zero: 0 });
        } else {
            self.made(y, actor, out, order, dtype);
        }
        Ok(())
    }
}
