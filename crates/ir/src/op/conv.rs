//! Convolutions.

use super::common::*;
use super::pool::sample::{Tap, interpolate};
use super::window::*;
use super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Scalar, Unary as U};

gaps! {}

// ---- Conv ----

/// Checks the operands of a convolution, `x` and weights `w`, and gives the result's dims with the windows.
pub(super) fn conv_windows(
    x: &TensorType,
    w: &TensorType,
    group: i64,
    kernel_shape: &[i64],
    attrs: WindowAttrs,
) -> Result<(Vec<Expr>, Windows), Fault> {
    if x.rank() < 2 || w.rank() != x.rank() {
        return Err(fault!("data {x} and weights {w} must have the same rank, at least 2"));
    }
    if group < 1 {
        return Err(fault!("attribute 'group' is {group}"));
    }
    if let Some(channels) = x.dims[1].known().filter(|c| c % group != 0) {
        return Err(fault!("group {group} does not divide {channels} input channels"));
    }
    if let Some(channels) = w.dims[0].known().filter(|c| c % group != 0) {
        return Err(fault!("group {group} does not divide {channels} output channels"));
    }
    expect_dim("the number of input channels", x.dims[1], w.dims[1] * group)?;
    let windows = Windows::new(&x.dims[2..], &kernel_dims(kernel_shape, Some(&w.dims[2..]))?, attrs)?;
    Ok(([x.dims[0], w.dims[0]].into_iter().chain(windows.out.iter().copied()).collect(), windows))
}

/// The step of a convolution: axes `[n, m, o...]`, reduction axes `[c of the group, k...]`. `read_x(index, inside)` and
/// `read_w(index)` give the two factors; `finish(axes, sum)` the element.
pub(super) fn conv_step(
    w: &TensorType,
    group: i64,
    out: &[Expr],
    windows: &Windows,
    read_x: impl Fn(&[Expr], Scalar) -> Scalar,
    read_w: impl Fn(&[Expr]) -> Scalar,
    finish: impl FnOnce(&[Expr], Scalar) -> Scalar,
) -> Step {
    let extents: Vec<Expr> = [w.dims[1]].into_iter().chain(windows.kernel.iter().copied()).collect();
    let body = |o: &[Expr], r: &[Expr]| {
        let (position, inside) = windows.at(&o[2..], &r[1..]);
        // Channel m belongs to group m / (M / group); no division where it can be told otherwise.
        let channel = if group == 1 {
            r[0]
        } else if out[1].is(group) {
            o[1] * w.dims[1] + r[0]
        } else {
            o[1].div(out[1].div(Expr::int(group))) * w.dims[1] + r[0]
        };
        let x: Vec<Expr> = [o[0], channel].into_iter().chain(position).collect();
        let weight: Vec<Expr> = [o[1]].into_iter().chain(r.iter().copied()).collect();
        read_x(&x, inside) * read_w(&weight)
    };
    Step::Compute(Compute::reduce(out, &extents, Reducer::Sum, body, finish).simplify())
}

/// A read of operand `source`, zero outside.
fn read_padded(t: &TensorType, source: usize, index: &[Expr], inside: Scalar) -> Scalar {
    Scalar::read_if(source, index.iter().map(|&e| Scalar::index(e)), inside, Scalar::number(t.dtype, 0.0))
        .cast(t.dtype.accumulator())
}

/// Checks the bias (operand 2) against the number of output channels.
fn check_bias(cx: &Ctx, channels: Expr) -> Result<(), Fault> {
    if cx.has(2) {
        expect_rank(cx, 2, 1)?;
        expect_dim("the length of the bias", cx.dims(2)?[0], channels)?;
    }
    Ok(())
}

/// The sum plus the bias of its channel, rounded to the result's dtype.
fn add_bias(cx: &Ctx, dtype: DType, axes: &[Expr], acc: Scalar) -> Scalar {
    let sum = if cx.has(2) { acc + Scalar::read_at(dtype, 2, &[axes[1]]).cast(acc.dtype()) } else { acc };
    sum.cast(dtype)
}

impl Conv {
    fn windows(&self, cx: &Ctx) -> Result<(Vec<Expr>, Windows), Fault> {
        let attrs = WindowAttrs {
            auto_pad: &self.auto_pad,
            dilations: &self.dilations,
            pads: &self.pads,
            strides: &self.strides,
            ceil: false,
        };
        conv_windows(cx.tensor(0)?, cx.tensor(1)?, self.group, &self.kernel_shape, attrs)
    }
}

impl OpDef for Conv {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        accept(cx, 0, Accept::Float)?;
        let dtype = same_dtype(cx)?;
        let (dims, _) = self.windows(cx)?;
        check_bias(cx, dims[1])?;
        Ok(vec![Fact::tensor(dtype, dims)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (_, windows) = self.windows(cx)?;
        let (x, w, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let step = conv_step(
            w,
            self.group,
            &out.dims,
            &windows,
            |index, inside| read_padded(x, 0, index, inside),
            |index| Scalar::read_at(w.dtype, 1, index).cast(w.dtype.accumulator()),
            |axes, acc| add_bias(cx, out.dtype, axes, acc),
        );
        Ok(Meaning::one(cx.inputs.len(), step))
    }
}

// ---- ConvTranspose and Col2Im: the sum of all taps that fall on an output position ----

/// Along one axis: which taps fall on output position `o`, as a reduction over `extent` candidates `j`.
struct Taps {
    extent: Expr,
    /// Tap number and window number of candidate `j`.
    tap: Expr,
    window: Expr,
    /// Which of them exist.
    tap_inside: Scalar,
    window_inside: Scalar,
}

/// The taps `k` with `window * stride + k * dilation - begin == o`. Without dilation only those of the right phase are
/// candidates: `k = stride * j + (o + begin) mod stride`, `window = (o + begin) div stride - j`.
fn taps(o: Expr, j: Expr, kernel: Expr, windows: Expr, stride: i64, dilation: i64, begin: Expr) -> Taps {
    let s = Expr::int(stride);
    let at = o + begin;
    let inside = |e: Expr, n: Expr| Scalar::index(e).within(0, n);
    if dilation == 1 {
        let tap = j * stride + at.rem(s);
        let window = at.div(s) - j;
        let tap_inside = match kernel.known() {
            Some(k) if k % stride == 0 => Scalar::always(),
            _ => Scalar::index(tap).lt(Scalar::index(kernel)),
        };
        return Taps { extent: kernel.div_ceil(s), tap, window, tap_inside, window_inside: inside(window, windows) };
    }
    let from = at - j * dilation;
    let window = from.div(s);
    let in_phase = Scalar::index(from.rem(s)).eq_to(Scalar::index(0));
    Taps { extent: kernel, tap: j, window, tap_inside: Scalar::always(), window_inside: in_phase.and(inside(window, windows)) }
}

struct Transposed {
    kernel: Vec<Expr>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    begin: Vec<Expr>,
    out: Vec<Expr>,
}

impl ConvTranspose {
    fn geometry(&self, cx: &Ctx) -> Result<Transposed, Fault> {
        let (x, w) = (cx.tensor(0)?, cx.tensor(1)?);
        if x.rank() < 2 || w.rank() != x.rank() {
            return Err(fault!("data {x} and weights {w} must have the same rank, at least 2"));
        }
        if self.group < 1 || x.dims[1].known().is_some_and(|c| c % self.group != 0) {
            return Err(fault!("group {} does not divide {} input channels", self.group, x.dims[1]));
        }
        expect_dim("the first dim of the weights", w.dims[0], x.dims[1])?;
        let n = x.rank() - 2;
        let kernel = kernel_dims(&self.kernel_shape, Some(&w.dims[2..]))?;
        let strides = per_axis("strides", &self.strides, n, 1)?;
        let dilations = per_axis("dilations", &self.dilations, n, 1)?;
        let extra = per_axis("output_padding", &self.output_padding, n, 0)?;
        let (mut begin, end) = split_pads(&self.pads, n)?;
        // Some exporters write all dims of the shape.
        let asked = &self.output_shape[self.output_shape.len().saturating_sub(n)..];
        let mut out = vec![x.dims[0], w.dims[1] * self.group];
        for i in 0..n {
            let full = (x.dims[2 + i] - 1) * strides[i] + extra[i] + (kernel[i] - 1) * dilations[i] + 1;
            let wanted = match (asked.get(i), self.auto_pad.as_str()) {
                (Some(&d), _) => Some(Expr::int(d)),
                (None, "SAME_UPPER" | "SAME_LOWER") => Some(x.dims[2 + i] * strides[i]),
                (None, "VALID") => {
                    begin[i] = Expr::int(0);
                    Some(full)
                }
                (None, "" | "NOTSET") => None,
                (None, a) => {
                    return Err(fault!("attribute 'auto_pad' is '{a}'; NOTSET, SAME_UPPER, SAME_LOWER or VALID is needed"));
                }
            };
            match wanted {
                Some(d) => {
                    if self.auto_pad != "VALID" {
                        let total = (full - d).max(Expr::int(0));
                        let half = total.div(Expr::int(2));
                        begin[i] = if self.auto_pad == "SAME_UPPER" { half } else { total - half };
                    }
                    out.push(d);
                }
                None => out.push(full - begin[i] - end[i]),
            }
            if out[2 + i].known().is_some_and(|d| d < 0) {
                return Err(fault!("padding leaves {} elements of spatial axis {i}", out[2 + i]));
            }
        }
        Ok(Transposed { kernel, strides, dilations, begin, out })
    }
}

impl OpDef for ConvTranspose {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        accept(cx, 0, Accept::Float)?;
        let dtype = same_dtype(cx)?;
        let out = self.geometry(cx)?.out;
        check_bias(cx, out[1])?;
        Ok(vec![Fact::tensor(dtype, out)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let g = self.geometry(cx)?;
        let (x, w, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let n = x.rank() - 2;
        let per_group = x.dims[1].div(Expr::int(self.group));
        let along = |o: &[Expr], r: &[Expr], i: usize| {
            taps(o[2 + i], r[1 + i], g.kernel[i], x.dims[2 + i], g.strides[i], g.dilations[i], g.begin[i])
        };
        let zeros = axes(out.rank() + 1 + n);
        let (o0, r0) = zeros.split_at(out.rank());
        let extents: Vec<Expr> = [per_group].into_iter().chain((0..n).map(|i| along(o0, r0, i).extent)).collect();
        let body = |o: &[Expr], r: &[Expr]| {
            let channel = if self.group == 1 { r[0] } else { o[1].div(w.dims[1]) * per_group + r[0] };
            let within = if self.group == 1 { o[1] } else { o[1].rem(w.dims[1]) };
            let (mut at_x, mut at_w) = (vec![o[0], channel], vec![channel, within]);
            let (mut x_inside, mut w_inside) = (Scalar::always(), Scalar::always());
            for i in 0..n {
                let t = along(o, r, i);
                at_x.push(t.window);
                at_w.push(t.tap);
                x_inside = x_inside.and(t.window_inside);
                w_inside = w_inside.and(t.tap_inside);
            }
            read_padded(x, 0, &at_x, x_inside) * read_padded(w, 1, &at_w, w_inside)
        };
        let finish = |axes: &[Expr], acc| add_bias(cx, out.dtype, axes, acc);
        let c = Compute::reduce(&out.dims, &extents, Reducer::Sum, body, finish).simplify();
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

impl Col2Im {
    fn windows(&self, cx: &Ctx) -> Result<Windows, Fault> {
        let (image, block) = (cx.ints(1)?, cx.ints(2)?);
        let attrs =
            WindowAttrs { auto_pad: "", dilations: &self.dilations, pads: &self.pads, strides: &self.strides, ceil: false };
        Windows::new(&image, &block, attrs)
    }
}

impl OpDef for Col2Im {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Plain)?;
        expect_rank(cx, 0, 3)?;
        if is_data(cx, 1) || is_data(cx, 2) {
            let Some(space) = cx.dims(1)?.first().and_then(|d| d.known()) else {
                return Err(fault!("operand 1 is {}; its length must be known at compile time", cx.tensor(1)?));
            };
            let dims = [x.dims[0]].into_iter().chain((0..1 + space as usize).map(|i| new_dim("Col2Im", i)));
            return Ok(vec![Fact::tensor(x.dtype, dims)]);
        }
        let win = self.windows(cx)?;
        let block = Expr::product(win.kernel.iter().copied());
        expect_dim("the number of blocks", x.dims[2], Expr::product(win.out.iter().copied()))?;
        if x.dims[1].rem(block).known().is_some_and(|r| r != 0) {
            return Err(fault!("dim 1 of {x} is no multiple of the block's {block} elements"));
        }
        Ok(vec![Fact::tensor(x.dtype, [x.dims[0], x.dims[1].div(block)].into_iter().chain(win.input))])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let win = self.windows(cx)?;
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let n = win.kernel.len();
        let along = |o: &[Expr], r: &[Expr], i: usize| {
            taps(o[2 + i], r[i], win.kernel[i], win.out[i], win.strides[i], win.dilations[i], win.begin[i])
        };
        let all = axes(out.rank() + n);
        let (o0, r0) = all.split_at(out.rank());
        let extents: Vec<Expr> = (0..n).map(|i| along(o0, r0, i).extent).collect();
        let body = |o: &[Expr], r: &[Expr]| {
            let taps: Vec<Taps> = (0..n).map(|i| along(o, r, i)).collect();
            let inside = taps.iter().fold(Scalar::always(), |c, t| c.and(t.tap_inside).and(t.window_inside));
            let tap: Vec<Expr> = taps.iter().map(|t| t.tap).collect();
            let block: Vec<Expr> = taps.iter().map(|t| t.window).collect();
            let row = o[1] * Expr::product(win.kernel.iter().copied()) + Expr::linearise(&tap, &win.kernel);
            read_padded(x, 0, &[o[0], row, Expr::linearise(&block, &win.out)], inside)
        };
        let c = Compute::reduce(&out.dims, &extents, Reducer::Sum, body, |_, acc| acc.cast(out.dtype)).simplify();
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

// ---- CausalConvWithState ----

impl OpDef for CausalConvWithState {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        let dtype = same_dtype(cx)?;
        expect_rank(cx, 0, 3)?;
        expect_rank(cx, 1, 3)?;
        let w = cx.tensor(1)?;
        expect_dim("the number of channels of the weights", w.dims[0], x.dims[1])?;
        expect_dim("dim 1 of the weights", w.dims[1], Expr::int(1))?;
        check_bias(cx, x.dims[1])?;
        let state = [x.dims[0], x.dims[1], w.dims[2] - 1];
        if cx.has(3) {
            expect_rank(cx, 3, 3)?;
            for (&got, need) in cx.dims(3)?.iter().zip(state) {
                expect_dim("a dim of the past state", got, need)?;
            }
        }
        if !matches!(self.activation.as_str(), "none" | "silu" | "swish") {
            return Err(fault!("attribute 'activation' is '{}'; none, silu or swish is needed", self.activation));
        }
        Ok(vec![Fact::of(x.clone()), Fact::tensor(dtype, state)])
    }
    /// Two steps over the sequence of past state and input.
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (x, w) = (cx.tensor(0)?, cx.tensor(1)?);
        let wide = x.dtype.accumulator();
        let past = w.dims[2] - 1;
        // Element `t` of the sequence, state first.
        let sequence = |n: Expr, c: Expr, t: Expr| {
            let now = t - past;
            let before = if cx.has(3) {
                let at = [n, c, t].map(Scalar::index);
                Scalar::read_if(3, at, Scalar::index(t).lt(Scalar::index(past)), Scalar::number(x.dtype, 0.0))
            } else {
                Scalar::number(x.dtype, 0.0)
            };
            Scalar::read_if(0, [n, c, now].map(Scalar::index), Scalar::index(0).le(Scalar::index(now)), before)
        };
        let out = Compute::reduce(
            &x.dims,
            &[w.dims[2]],
            Reducer::Sum,
            |o, k| sequence(o[0], o[1], o[2] + k[0]).cast(wide) * Scalar::read_at(w.dtype, 1, &[o[1], 0.into(), k[0]]).cast(wide),
            |o, acc| {
                let sum = if cx.has(2) { acc + Scalar::read_at(x.dtype, 2, &[o[1]]).cast(wide) } else { acc };
                (if self.activation == "none" { sum } else { sum * un(U::Sigmoid, sum) }).cast(x.dtype)
            },
        );
        let state = Compute::map(&[x.dims[0], x.dims[1], past], |o| sequence(o[0], o[1], o[2] + x.dims[2]));
        let n = cx.inputs.len() as u32;
        Ok(Meaning::Steps { steps: vec![Step::Compute(out), Step::Compute(state)], outputs: vec![n, n + 1] })
    }
}

// ---- DeformConv ----

impl DeformConv {
    fn windows(&self, cx: &Ctx) -> Result<(Vec<Expr>, Windows), Fault> {
        let attrs =
            WindowAttrs { auto_pad: "", dilations: &self.dilations, pads: &self.pads, strides: &self.strides, ceil: false };
        conv_windows(cx.tensor(0)?, cx.tensor(1)?, self.group, &self.kernel_shape, attrs)
    }
}

impl OpDef for DeformConv {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        accept(cx, 0, Accept::Float)?;
        let dtype = same_dtype(cx)?;
        let (dims, win) = self.windows(cx)?;
        let rank = dims.len();
        if self.offset_group < 1 || cx.dims(0)?[1].rem(Expr::int(self.offset_group)).known().is_some_and(|r| r != 0) {
            return Err(fault!("offset_group {} does not divide {} channels", self.offset_group, cx.dims(0)?[1]));
        }
        let taps = Expr::product(win.kernel.iter().copied()) * self.offset_group;
        for (i, per_tap) in [(2, rank - 2), (4, 1)] {
            if cx.has(i) {
                expect_rank(cx, i, rank)?;
                expect_dim(&format!("dim 1 of operand {i}"), cx.dims(i)?[1], taps * per_tap)?;
                for (&got, &need) in cx.dims(i)?[2..].iter().zip(&win.out) {
                    expect_dim(&format!("a spatial dim of operand {i}"), got, need)?;
                }
            }
        }
        if cx.has(3) {
            expect_rank(cx, 3, 1)?;
            expect_dim("the length of the bias", cx.dims(3)?[0], dims[1])?;
        }
        Ok(vec![Fact::tensor(dtype, dims)])
    }
    /// As Conv, with each tap moved by its offset and read by linear interpolation.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (_, win) = self.windows(cx)?;
        let (x, w, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let (wide, space) = (x.dtype.accumulator(), x.rank() - 2);
        let extents: Vec<Expr> = [w.dims[1]].into_iter().chain(win.kernel.iter().copied()).collect();
        let body = |o: &[Expr], r: &[Expr]| {
            let channel =
                if self.group == 1 { r[0] } else { o[1].div(out.dims[1].div(Expr::int(self.group))) * w.dims[1] + r[0] };
            let offset_group = channel.div(x.dims[1].div(Expr::int(self.offset_group)));
            let tap = offset_group * Expr::product(win.kernel.iter().copied()) + Expr::linearise(&r[1..], &win.kernel);
            let place = |c: Expr| [&[o[0], c], &o[2..]].concat();
            let start = win.start(&o[2..]);
            let taps: Vec<Vec<Tap>> = (0..space)
                .map(|i| {
                    let moved = Scalar::read_at(x.dtype, 2, &place(tap * space + i)).cast(DType::F32);
                    let p = Scalar::index(start[i] + r[1 + i] * win.dilations[i]).cast(DType::F32) + moved;
                    let base = un(U::Floor, p);
                    let t = p - base;
                    let neighbour = |at: Scalar, weight: Scalar| {
                        let index = at.cast(DType::I64);
                        Tap { index, inside: index.within(0, x.dims[2 + i]), weight }
                    };
                    vec![neighbour(base, num(t, 1.0) - t), neighbour(base + num(t, 1.0), t)]
                })
                .collect();
            let v = interpolate(&taps, &|at, inside| {
                let index = [o[0], channel].map(Scalar::index).into_iter().chain(at.iter().copied());
                Scalar::read_if(0, index, inside, Scalar::number(x.dtype, 0.0)).cast(wide)
            });
            let v = if cx.has(4) { v * Scalar::read_at(x.dtype, 4, &place(tap)).cast(wide) } else { v };
            let weight: Vec<Expr> = [o[1]].into_iter().chain(r.iter().copied()).collect();
            v * Scalar::read_at(w.dtype, 1, &weight).cast(wide)
        };
        let c = Compute::reduce(&out.dims, &extents, Reducer::Sum, body, |o, acc| {
            let sum = if cx.has(3) { acc + Scalar::read_at(x.dtype, 3, &[o[1]]).cast(wide) } else { acc };
            sum.cast(x.dtype)
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c.simplify())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::testing::*;
    use super::*;
    use DType::F32;

    fn conv(group: i64, pads: &[i64], strides: &[i64], auto_pad: &str) -> Conv {
        let (pads, strides) = (pads.to_vec(), strides.to_vec());
        Conv { auto_pad: auto_pad.into(), dilations: vec![], group, kernel_shape: vec![], pads, strides }
    }

    fn transposed(pads: &[i64], strides: &[i64], dilations: &[i64]) -> ConvTranspose {
        ConvTranspose {
            auto_pad: "NOTSET".into(),
            dilations: dilations.to_vec(),
            group: 1,
            kernel_shape: vec![],
            output_padding: vec![],
            output_shape: vec![],
            pads: pads.to_vec(),
            strides: strides.to_vec(),
        }
    }

    #[test]
    fn values() {
        let x = f32s(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0]);
        let w = f32s(&[1, 1, 3], &[1.0, 10.0, 100.0]);
        check(conv(1, &[1, 1], &[], ""), &[x.clone(), w.clone()], &[1, 1, 4], &[210.0, 321.0, 432.0, 43.0]);
        check(conv(1, &[], &[2], "SAME_UPPER"), &[x.clone(), w.clone(), f32s(&[1], &[0.5])], &[1, 1, 2], &[321.5, 43.5]);
        check(transposed(&[], &[], &[]), &[x.clone(), w.clone()], &[1, 1, 6], &[1.0, 12.0, 123.0, 234.0, 340.0, 400.0]);
        let spread = [1.0, 10.0, 102.0, 20.0, 203.0, 30.0, 304.0, 40.0, 400.0];
        check(transposed(&[], &[2], &[]), &[x.clone(), w.clone()], &[1, 1, 9], &spread);
        check(transposed(&[1, 1], &[2], &[]), &[x.clone(), w.clone()], &[1, 1, 7], &spread[1..8]);
        let apart = [1.0, 0.0, 12.0, 0.0, 123.0, 0.0, 234.0, 0.0, 340.0, 0.0, 400.0];
        check(transposed(&[], &[2], &[2]), &[x, w], &[1, 1, 11], &apart);
        let two = f32s(&[1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
        check(conv(2, &[], &[], ""), &[two, f32s(&[2, 1, 1], &[10.0, 100.0])], &[1, 2, 2], &[10.0, 20.0, 300.0, 400.0]);
    }

    #[test]
    fn bodies_are_products_of_reads() {
        let x: (DType, &[&str]) = (F32, &["n", "8", "h", "32"]);
        let dense = body(conv(1, &[], &[], ""), &[x, (F32, &["4", "8", "3", "3"])]);
        assert_eq!(dense, "mul(b0:f32[i0, i4, i2 + i5, i3 + i6], b1:f32[i1, i4, i5, i6])");
        let depthwise = body(conv(8, &[], &[2, 2], ""), &[x, (F32, &["8", "1", "3", "3"])]);
        assert_eq!(depthwise, "mul(b0:f32[i0, i1, 2*i2 + i5, 2*i3 + i6], b1:f32[i1, 0, i5, i6])");
        let grouped = body(conv(2, &[], &[], ""), &[x, (F32, &["4", "4", "1", "1"])]);
        assert_eq!(grouped, "mul(b0:f32[i0, i4 + 4*div(i1, 2), i2, i3], b1:f32[i1, i4, 0, 0])");
    }

    #[test]
    fn types() {
        let x: (DType, &[&str]) = (F32, &["n", "64", "h", "w"]);
        check_type(conv(1, &[1; 4], &[2, 2], ""), &[x, (F32, &["8", "64", "3", "3"])], "f32[n, 8, div(h + 1, 2), div(w + 1, 2)]");
        check_type(conv(3, &[], &[], ""), &[x, (F32, &["8", "64", "3", "3"])], "group 3 does not divide 64 input channels");
        check_type(
            conv(1, &[], &[], ""),
            &[x, (F32, &["8", "32", "3", "3"])],
            "the number of input channels is 64, but must be 32",
        );
        check_type(conv(1, &[1], &[], ""), &[x, (F32, &["8", "64", "3", "3"])], "attribute 'pads' has 1 entries, 4 are needed");
        check_type(transposed(&[0; 4], &[2, 2], &[]), &[x, (F32, &["64", "8", "2", "2"])], "f32[n, 8, 2*h, 2*w]");
    }
}
