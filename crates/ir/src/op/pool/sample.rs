//! Sampling at computed positions: interpolation between neighbours, GridSample, AffineGrid, regions of interest.

use super::super::common::*;
use super::super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Binary as B, Scalar, Unary as U};

/// One neighbour along one axis: its index (always in bounds), whether it counts, and its weight (f32).
#[derive(Clone, Copy)]
pub(in super::super) struct Tap {
    pub(in super::super) index: Scalar,
    pub(in super::super) inside: Scalar,
    pub(in super::super) weight: Scalar,
}

/// The weighted sum over the product of the taps of all axes; `read(index, inside)` reads one neighbour.
pub(in super::super) fn interpolate(axes: &[Vec<Tap>], read: &dyn Fn(&[Scalar], Scalar) -> Scalar) -> Scalar {
    fn go(axes: &[Vec<Tap>], index: &mut Vec<Scalar>, inside: Scalar, read: &dyn Fn(&[Scalar], Scalar) -> Scalar) -> Scalar {
        let Some((first, rest)) = axes.split_first() else { return read(index, inside) };
        let mut sum: Option<Scalar> = None;
        for tap in first {
            index.push(tap.index);
            let v = go(rest, index, inside.and(tap.inside), read);
            index.pop();
            let term = tap.weight.cast(v.dtype()) * v;
            sum = Some(sum.map_or(term, |s| s + term));
        }
        sum.expect("at least one tap")
    }
    go(axes, &mut vec![], Scalar::always(), read)
}

/// An f32 constant.
pub(in super::super) fn f32(v: f64) -> Scalar {
    Scalar::float(DType::F32, v)
}

/// An index as f32.
pub(in super::super) fn float(e: Expr) -> Scalar {
    Scalar::index(e).cast(DType::F32)
}

/// An index brought into `0..extent`.
pub(in super::super) fn clamp(i: Scalar, extent: Expr) -> Scalar {
    i.min(Scalar::index(extent - 1)).max(Scalar::index(0))
}

fn inside(i: Scalar, extent: Expr) -> Scalar {
    i.within(0, extent)
}

/// Weights of the four neighbours of cubic convolution with parameter `a` at distance `t` behind the second.
pub(in super::super) fn cubic_weights(t: Scalar, a: f64) -> [Scalar; 4] {
    let c = f32;
    let outer = |x: Scalar| ((c(a) * x - c(5.0 * a)) * x + c(8.0 * a)) * x - c(4.0 * a);
    let inner = |x: Scalar| ((c(a + 2.0) * x - c(a + 3.0)) * x) * x + c(1.0);
    let back = c(1.0) - t;
    [outer(t + c(1.0)), inner(t), inner(back), outer(back + c(1.0))]
}

// ---- GridSample ----

#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

impl GridSample {
    fn padding(&self) -> Result<Padding, Fault> {
        match self.padding_mode.as_str() {
            "zeros" => Ok(Padding::Zeros),
            "border" => Ok(Padding::Border),
            "reflection" => Ok(Padding::Reflection),
            m => Err(fault!("attribute 'padding_mode' is '{m}'; zeros, border or reflection is needed")),
        }
    }
}

/// `x` reflected at `low` and `high` until it lies between them.
fn reflect(x: Scalar, low: Scalar, high: Scalar) -> Scalar {
    let range = high - low;
    let fold = |distance: Scalar, from: Scalar, sign: f64| {
        let n = un(U::Floor, distance / range);
        let r = distance - n * range;
        let even = bin(B::Mod, n, f32(2.0)).eq_to(f32(0.0));
        let s = f32(sign);
        Scalar::select(even, from + s * r, from + s * (range - r))
    };
    let below = fold(low - x, low, 1.0);
    let above = fold(x - high, high, -1.0);
    Scalar::select(x.lt(low), below, Scalar::select(high.lt(x), above, x))
}

impl OpDef for GridSample {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (x, grid) = (accept(cx, 0, Accept::Plain)?, accept(cx, 1, Accept::Float)?);
        let space = x.rank().saturating_sub(2);
        if space == 0 || grid.rank() != x.rank() {
            return Err(fault!("data {x} and grid {grid} must have the same rank, at least 3"));
        }
        expect_dim("the last dim of the grid", grid.dims[x.rank() - 1], Expr::from(space))?;
        self.padding()?;
        if !matches!(self.mode.as_str(), "linear" | "nearest" | "cubic") {
            return Err(fault!("attribute 'mode' is '{}'; linear, nearest or cubic is needed", self.mode));
        }
        Ok(vec![Fact::tensor(x.dtype, x.dims[..2].iter().chain(&grid.dims[1..x.rank() - 1]).copied())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, grid, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let padding = self.padding()?;
        let space = x.rank() - 2;
        let wide = x.dtype.accumulator();
        let c = Compute::map(&out.dims, |o| {
            let taps: Vec<Vec<Tap>> = (0..space)
                .map(|i| {
                    // The grid names coordinates from the innermost axis outwards.
                    let at: Vec<Expr> = [&o[..1], &o[2..], &[Expr::from(space - 1 - i)]].concat();
                    let normalised = Scalar::read_at(grid.dtype, 1, &at).cast(DType::F32);
                    self.taps(normalised, x.dims[2 + i], padding)
                })
                .collect();
            let read = |at: &[Scalar], inside: Scalar| {
                let index = o[..2].iter().map(|&e| Scalar::index(e)).chain(at.iter().copied());
                Scalar::read_if(0, index, inside, Scalar::number(x.dtype, 0.0)).cast(wide)
            };
            if self.mode == "nearest" {
                let at: Vec<Scalar> = taps.iter().map(|t| t[0].index).collect();
                let inside = taps.iter().fold(Scalar::always(), |c, t| c.and(t[0].inside));
                return read(&at, inside).cast(x.dtype);
            }
            let float_wide = if wide.is_float() { wide } else { DType::F32 };
            let v = interpolate(&taps, &|at, inside| read(at, inside).cast(float_wide));
            (if wide.is_float() { v } else { un(U::Round, v) }).cast(x.dtype)
        });
        Ok(Meaning::one(2, Step::Compute(c)))
    }
}

impl GridSample {
    /// The neighbours along an axis of `extent` for a coordinate in -1..1.
    fn taps(&self, normalised: Scalar, extent: Expr, padding: Padding) -> Vec<Tap> {
        let n = float(extent);
        let (one, half) = (f32(1.0), f32(0.5));
        let corners = self.align_corners != 0;
        let mut p = if corners { (normalised + one) * half * (n - one) } else { ((normalised + one) * n - one) * half };
        if self.mode == "nearest" {
            p = un(U::Round, p);
        }
        let (low, high) = if corners { (f32(0.0), n - one) } else { (f32(-0.5), n - half) };
        match padding {
            Padding::Zeros => {}
            Padding::Border => p = p.max(f32(0.0)).min(n - one),
            Padding::Reflection => p = reflect(p, low, high),
        }
        let tap = |at: Scalar, weight: Scalar| {
            let at = if padding == Padding::Reflection { un(U::Trunc, reflect(at, low, high)) } else { at };
            let index = at.cast(DType::I64);
            let counts = if padding == Padding::Zeros { inside(index, extent) } else { Scalar::always() };
            let index = if padding == Padding::Zeros { index } else { clamp(index, extent) };
            Tap { index, inside: counts, weight }
        };
        let base = un(U::Floor, p);
        let t = p - base;
        match self.mode.as_str() {
            "nearest" => vec![tap(p, one)],
            "linear" => vec![tap(base, one - t), tap(base + one, t)],
            _ => {
                let weights = cubic_weights(t, -0.75);
                (0..4).map(|i| tap(base + f32(i as f64 - 1.0), weights[i])).collect()
            }
        }
    }
}

// ---- AffineGrid ----

impl OpDef for AffineGrid {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let theta = accept(cx, 0, Accept::Float)?;
        expect_rank(cx, 0, 3)?;
        let size = match cx.dims(1)?.first().and_then(|d| d.known()) {
            Some(n) if is_data(cx, 1) => (0..n as usize).map(|i| new_dim("AffineGrid", i)).collect(),
            _ => cx.ints(1)?,
        };
        if !matches!(size.len(), 4 | 5) {
            return Err(fault!("size {size:?} must have 4 or 5 entries"));
        }
        let space = size.len() - 2;
        expect_dim("dim 1 of theta", theta.dims[1], Expr::from(space))?;
        expect_dim("dim 2 of theta", theta.dims[2], Expr::from(space + 1))?;
        let dims = [size[0]].into_iter().chain(size[2..].iter().copied()).chain([Expr::from(space)]);
        Ok(vec![Fact::tensor(theta.dtype, dims)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (theta, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let space = out.rank() - 2;
        let wide = theta.dtype.accumulator();
        let c = Compute::map(&out.dims, |o| {
            let part = |j: usize| Scalar::read_at(theta.dtype, 0, &[o[0], o[space + 1], Expr::from(j)]).cast(wide);
            let mut sum = part(space);
            for j in 0..space {
                // Coordinate j runs along axis (space - 1 - j), x innermost.
                let axis = 1 + space - 1 - j;
                let (i, n) = (Scalar::index(o[axis]).cast(wide), Scalar::index(out.dims[axis]).cast(wide));
                let position = if self.align_corners != 0 {
                    i * num(i, 2.0) / (n - num(n, 1.0)) - num(i, 1.0)
                } else {
                    (i * num(i, 2.0) + num(i, 1.0)) / n - num(i, 1.0)
                };
                sum = sum + part(j) * position;
            }
            sum.cast(theta.dtype)
        });
        Ok(Meaning::one(2, Step::Compute(c)))
    }
}

// ---- regions of interest ----

fn check_rois(cx: &Ctx, columns: i64) -> Result<(), Fault> {
    accept(cx, 0, Accept::Float)?;
    expect_rank(cx, 0, 4)?;
    expect_rank(cx, 1, 2)?;
    if cx.dtype(1)? != cx.dtype(0)? {
        return Err(fault!("operands 0 and 1 differ in dtype: {} and {}", cx.tensor(0)?, cx.tensor(1)?));
    }
    expect_dim("dim 1 of the regions", cx.dims(1)?[1], Expr::int(columns))
}

impl OpDef for MaxRoiPool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        check_rois(cx, 5)?;
        let [h, w] = self.pooled_shape[..] else {
            return Err(fault!("attribute 'pooled_shape' is {:?}; height and width are needed", self.pooled_shape));
        };
        Ok(vec![Fact::tensor(cx.dtype(0)?, [cx.dims(1)?[0], cx.dims(0)?[1], Expr::int(h), Expr::int(w)])])
    }
    /// A maximum over the whole image of which only the cell counts; empty cells give 0.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, rois, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let wide = x.dtype.accumulator();
        // First and last element of the cell along an image axis.
        let cell = |o: &[Expr], axis: usize| {
            let column = |c: usize| {
                let v = Scalar::read_at(rois.dtype, 1, &[o[0], Expr::from(c)]).cast(DType::F32);
                round_half_up(v * f32(f64::from(self.spatial_scale)))
            };
            let (start, end) = (column(2 - axis), column(4 - axis));
            let extent = (end - start + f32(1.0)).max(f32(1.0));
            let size = extent / float(out.dims[2 + axis]);
            let at = float(o[2 + axis]);
            let bound = |v: Scalar| (v + start).max(f32(0.0)).min(float(x.dims[2 + axis])).cast(DType::I64);
            (bound(un(U::Floor, at * size)), bound(un(U::Ceil, (at + f32(1.0)) * size)))
        };
        let c = Compute::reduce(
            &out.dims,
            &x.dims[2..],
            Reducer::Max,
            |o, r| {
                let counts = (0..2).fold(Scalar::always(), |c, axis| {
                    let (first, behind) = cell(o, axis);
                    let i = Scalar::index(r[axis]);
                    c.and(first.le(i)).and(i.lt(behind))
                });
                let batch = Scalar::read_at(rois.dtype, 1, &[o[0], Expr::int(0)]).cast(DType::I64);
                let index = [clamp(batch, x.dims[0]), Scalar::index(o[1]), Scalar::index(r[0]), Scalar::index(r[1])];
                Scalar::read_if(0, index, counts, Reducer::Max.identity(x.dtype)).cast(wide)
            },
            |o, acc| {
                let empty = (0..2).fold(Scalar::int(DType::Bool, 0), |c, axis| {
                    let (first, behind) = cell(o, axis);
                    bin(B::Or, c, behind.le(first))
                });
                Scalar::select(empty, num(acc, 0.0), acc).cast(x.dtype)
            },
        );
        Ok(Meaning::one(2, Step::Compute(c)))
    }
}

fn round_half_up(x: Scalar) -> Scalar {
    un(U::Floor, x + f32(0.5))
}

impl RoiAlign {
    /// Extents of the sampling grid, and whether cells may have fewer points than that.
    fn grid(&self, cx: &Ctx) -> Result<([Expr; 2], bool), Fault> {
        if self.sampling_ratio > 0 {
            return Ok(([Expr::int(self.sampling_ratio); 2], false));
        }
        let Some(rois) = cx.known(1) else {
            return Err(fault!("sampling_ratio 0 takes a number of samples that depends on the regions; they must be constant"));
        };
        let mut most = [1i64; 2];
        for r in 0..rois.dims[0] {
            for (axis, most) in most.iter_mut().enumerate() {
                let [start, end] = [1 - axis, 3 - axis].map(|c| rois.float(r * 4 + c) * f64::from(self.spatial_scale));
                let cells = [self.output_height, self.output_width][axis] as f64;
                let extent = if self.half_pixel() { end - start } else { (end - start).max(1.0) };
                *most = (*most).max((extent / cells).ceil() as i64 + 1);
            }
        }
        Ok((most.map(Expr::int), true))
    }
    fn half_pixel(&self) -> bool {
        self.coordinate_transformation_mode == "half_pixel"
    }
}

impl OpDef for RoiAlign {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        check_rois(cx, 4)?;
        expect_rank(cx, 2, 1)?;
        if !matches!(self.mode.as_str(), "avg" | "max") {
            return Err(fault!("attribute 'mode' is '{}'; avg or max is needed", self.mode));
        }
        if !matches!(self.coordinate_transformation_mode.as_str(), "half_pixel" | "output_half_pixel") {
            let m = &self.coordinate_transformation_mode;
            return Err(fault!("attribute 'coordinate_transformation_mode' is '{m}'; half_pixel or output_half_pixel is needed"));
        }
        if self.output_height < 1 || self.output_width < 1 || self.sampling_ratio < 0 {
            return Err(fault!("output_height, output_width and sampling_ratio must not be negative or zero"));
        }
        if !is_data(cx, 1) {
            self.grid(cx)?;
        }
        let dims = [cx.dims(1)?[0], cx.dims(0)?[1], Expr::int(self.output_height), Expr::int(self.output_width)];
        Ok(vec![Fact::tensor(cx.dtype(0)?, dims)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, rois, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let (extents, varies) = self.grid(cx)?;
        let wide = x.dtype.accumulator();
        let max = self.mode == "max";
        // Start of the region, extent of a cell, and points in a cell, along image axis 0 or 1.
        let cell = |o: &[Expr], axis: usize| {
            let offset = if self.half_pixel() { 0.5 } else { 0.0 };
            let column = |c: usize| {
                let v = Scalar::read_at(rois.dtype, 1, &[o[0], Expr::from(c)]).cast(DType::F32);
                v * f32(f64::from(self.spatial_scale)) - f32(offset)
            };
            let (start, end) = (column(1 - axis), column(3 - axis));
            let extent = if self.half_pixel() { end - start } else { (end - start).max(f32(1.0)) };
            let size = extent / float(out.dims[2 + axis]);
            let points = if varies { un(U::Ceil, size) } else { float(extents[axis]) };
            (start, size, points)
        };
        let c = Compute::reduce(
            &out.dims,
            &extents,
            if max { Reducer::Max } else { Reducer::Sum },
            |o, r| {
                let mut taps = vec![];
                let mut counts = Scalar::always();
                let mut near = Scalar::always();
                for axis in 0..2 {
                    let (start, size, points) = cell(o, axis);
                    let d = x.dims[2 + axis];
                    let p = start + float(o[2 + axis]) * size + (float(r[axis]) + f32(0.5)) * size / points;
                    near = near.and(f32(-1.0).le(p)).and(p.le(float(d)));
                    if varies {
                        counts = counts.and(float(r[axis]).lt(points));
                    }
                    let p = p.max(f32(0.0)).min(float(d - 1));
                    let base = un(U::Floor, p);
                    let t = p - base;
                    let low = clamp(base.cast(DType::I64), d);
                    let high = clamp(low + Scalar::index(1), d);
                    let always = Scalar::always();
                    taps.push(vec![
                        Tap { index: low, inside: always, weight: f32(1.0) - t },
                        Tap { index: high, inside: always, weight: t },
                    ]);
                }
                let batch = Scalar::read_at(cx.dtype(2).expect("checked by infer"), 2, &[o[0]]).cast(DType::I64);
                let read = |at: &[Scalar]| {
                    let index = [batch, Scalar::index(o[1]), at[0], at[1]];
                    Scalar::read(x.dtype, 0, index).cast(wide)
                };
                let value = if max {
                    // The largest weighted neighbour, as in ONNX's definition.
                    let pairs = taps[0].iter().flat_map(|a| taps[1].iter().map(move |b| (a, b)));
                    pairs
                        .map(|(a, b)| (a.weight * b.weight).cast(wide) * read(&[a.index, b.index]))
                        .reduce(Scalar::max)
                        .expect("four neighbours")
                } else {
                    interpolate(&taps, &|at, _| read(at))
                };
                let value = Scalar::select(near, value, num(value, 0.0));
                let absent = if max { Reducer::Max.identity(wide) } else { num(value, 0.0) };
                Scalar::select(counts, value, absent)
            },
            |o, acc| {
                let points = (0..2).map(|axis| cell(o, axis).2).reduce(|a, b| a * b).expect("two axes");
                let none = points.le(f32(0.0));
                let value = if max { acc } else { acc / points.max(f32(1.0)).cast(wide) };
                Scalar::select(none, num(acc, 0.0), value).cast(x.dtype)
            },
        );
        Ok(Meaning::one(3, Step::Compute(c)))
    }
}
