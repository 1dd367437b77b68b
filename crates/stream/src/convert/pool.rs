//! Pooling.

use super::contract::{Geometry, Windows};
use super::layout::channels_last;
use super::*;
use infc_ir::op::MaxPool;

impl Converter<'_> {
    pub(super) fn max_pool(&mut self, n: Node, op: &MaxPool) -> Outcome<()> {
        let (x, y) = (self.operand(n, 0)?, self.graph.node(n).outputs[0]);
        let flow = self.flow(n, x)?;
        let out = self.dims(y).unwrap_or_default();
        if self.graph.node(n).outputs.iter().skip(1).any(|v| self.uses[v.index()] > 0) {
            return Err(self.problem(n, "cannot stream: positions of the largest elements are used", "use the elements only"));
        }
        let kernel: Vec<usize> = op.kernel_shape.iter().map(|&k| k as usize).collect();
        let windows =
            Windows { kernel: &kernel, strides: &op.strides, dilations: &op.dilations, pads: &op.pads, auto_pad: &op.auto_pad };
        let g = Geometry::of(&windows, &flow.dims, &out).map_err(|f| self.fault(n, f))?;
        let flow = self.reordered(n, flow.clone(), &channels_last(&flow.dims))?;
        // A window that lies on the border alone gives the least value of the dtype, as the graph does.
        let covered =
            g.border.iter().zip([0, 1, 0, 1]).all(|(&b, a)| b < g.window.kernel[a].max(1)) && g.window.dilation == [1, 1];
        let least = self.dtype(x).int_range().map_or(0, |r| r.0 as i64);
        let padded = self.padded(n, &flow, &g, if covered { flow.range[0] } else { least });
        let made = self.windowed_pool(n, &padded, &g, PoolOp::Max, 0, None);
        let range = if covered { flow.range } else { padded.range };
        self.flows.insert(y, Flow { dims: out.clone(), order: channels_last(&out), range, ..made });
        Ok(())
    }

    /// Window and pool over an image that has its border.
    fn windowed_pool(&mut self, n: Node, flow: &Flow, g: &Geometry, op: PoolOp, bias: i64, requant: Option<Requant>) -> Flow {
        let (channels, taps) = (g.image[2], g.taps());
        let acc = match op {
            PoolOp::Max => flow.format,
            PoolOp::Sum => sum_format(flow.range, taps, bias),
        };
        let pool = Pool { op, channels, taps, pe: 1, bias, acc, requant };
        let image = [g.image[0] + g.border[0] + g.border[2], g.image[1] + g.border[1] + g.border[3], channels];
        let whole = g.result == [1, 1] && [0, 1].iter().all(|&a| g.window.kernel[a] == image[a]) && g.window.dilation == [1, 1];
        let actor = if whole {
            self.actor(n, "gpool", Kind::GlobalPool(pool), &[(flow, image)])
        } else {
            let window = Window { groups: channels, ..g.window.clone() };
            let actor = self.actor(n, "window", Kind::Window(window), &[(flow, image)]);
            let windows = Flow { actor, ..flow.clone() };
            self.actor(n, "pool", Kind::Pool(pool), &[(&windows, [g.result[0], g.result[1], taps * channels])])
        };
        Flow { actor, format: acc, ..flow.clone() }
    }

    /// The sum of each window, requantised.
    pub(super) fn sum_pool(&mut self, n: Node, flow: &Flow, g: &Geometry, law: Law, x_zero: i64) -> Outcome<()> {
        let y = self.graph.node(n).outputs[0];
        let (dims, dtype) = (self.dims(y).unwrap_or_default(), self.dtype(y));
        let flow = self.padded(n, flow, g, x_zero);
        let taps = g.taps() as i64;
        let bias = -x_zero * taps;
        let total = flow.range.map(|v| v * taps + bias);
        let requant = pending(dtype, law, vec![total]).map_err(|f| self.fault(n, f))?;
        let made = self.windowed_pool(n, &flow, g, PoolOp::Sum, bias, Some(requant));
        let order = channels_last(&dims);
        self.made(y, made.actor, dims, order, dtype);
        Ok(())
    }

    /// The largest element of each channel of the whole image.
    pub(super) fn global_max(&mut self, n: Node, flow: &Flow) -> Outcome<Flow> {
        let flow = self.reordered(n, flow.clone(), &channels_last(&flow.dims))?;
        let channels = flow.dims[1];
        let taps = flow.elements() / channels;
        let pool = Pool { op: PoolOp::Max, channels, taps, pe: 1, bias: 0, acc: flow.format, requant: None };
        let actor = self.actor(n, "gpool", Kind::GlobalPool(pool), &[(&flow, [1, taps, channels])]);
        let mut dims = flow.dims.clone();
        dims[2..].fill(1);
        Ok(Flow { actor, order: channels_last(&dims), dims, ..flow })
    }
}

fn sum_format([lo, hi]: [i64; 2], taps: usize, bias: i64) -> Format {
    let taps = taps as i64;
    Format::of(bias.min(0) + (lo * taps).min(0), bias.max(0) + (hi * taps).max(0))
}
