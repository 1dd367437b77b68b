//! Resize: nearest, linear and cubic resampling along any axes.
//!
//! Coordinates are computed in f32, as ONNX Runtime does. A nearest index that is a quotient for every position becomes an
//! index expression, so that later stages see a plain strided read. Scales and sizes may be data: then extents are new dims that
//! the program computes as [`OpDef::data_dims`] says, and scales are reads of the operand.

use super::super::common::*;
use super::super::*;
use super::sample::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Scalar, Unary as U};

/// One axis that is resized.
struct Axis {
    axis: usize,
    /// Extent before and after.
    from: Expr,
    to: Expr,
    /// The scale as f32.
    scale: Scalar,
    /// The scale as a number, if it is known.
    known_scale: Option<f32>,
    /// The scale, if the node gives one and no size.
    given_scale: Option<Scalar>,
    /// For tf_crop_and_resize: start and end of the region.
    region: Option<(Scalar, Scalar)>,
}

/// What the operands say of one axis.
struct Told {
    /// The extent; a scalar over the operands where it follows from data.
    to: Result<Expr, Scalar>,
    /// The scale, unless it is the quotient of the extents.
    scale: Option<Scale>,
}

#[derive(Clone, Copy)]
enum Scale {
    Known(f32),
    /// A scalar over the operands.
    Data(Scalar),
}

/// Operand `i` if it is there and not empty.
fn present(cx: &Ctx, i: usize) -> bool {
    cx.has(i) && cx.dims(i).is_ok_and(|d| !d.first().is_some_and(|d| d.is(0)))
}

/// `scale` as a fraction: the simplest that is the same f32.
fn fraction(scale: f32) -> (i64, i64) {
    for q in 1..=4096i64 {
        let p = (f64::from(scale) * q as f64).round();
        if (p / q as f64) as f32 == scale {
            return (p as i64, q);
        }
    }
    ((f64::from(scale) * f64::from(1u32 << 24)).round() as i64, 1 << 24)
}

/// floor(extent * scale), in f32 as ONNX Runtime does.
fn scaled(extent: Expr, scale: f32) -> Expr {
    match extent.known() {
        Some(d) => Expr::int((d as f32 * scale).floor() as i64),
        None => {
            let (p, q) = fraction(scale);
            (extent * p).div(Expr::int(q))
        }
    }
}

impl Resize {
    /// The axes that the operands speak of.
    fn axes(&self, rank: usize) -> Result<Vec<usize>, Fault> {
        match self.axes[..] {
            [] => Ok((0..rank).collect()),
            ref list => list.iter().map(|&a| normal_axis(a, rank)).collect(),
        }
    }

    /// All axes named by the node (also those that keep their extent). `out`: the dims of the result, as far as only data tells them.
    fn plan(&self, cx: &Ctx, out: &[Expr]) -> Result<Vec<Axis>, Fault> {
        let x = accept(cx, 0, Accept::Number)?;
        let axes = self.axes(x.rank())?;
        let crop = self.coordinate_transformation_mode == "tf_crop_and_resize";
        let told = self.told(cx, &axes)?;
        let region = |i: usize| -> Result<_, Fault> {
            let t = cx.tensor(1)?;
            let at = |k: usize| Scalar::read_at(t.dtype, 1, &[Expr::from(k)]).cast(DType::F32);
            Ok((at(i), at(axes.len() + i)))
        };
        let mut plan = vec![];
        for (i, &axis) in axes.iter().enumerate() {
            let (from, Told { to, scale: given }) = (x.dims[axis], &told[i]);
            // Sizes that are data are known to the program as dims of the result.
            let to = to.unwrap_or_else(|_| out[axis]);
            let known_scale = match (to.known(), from.known(), given) {
                (Some(t), Some(f), None) => Some(t as f32 / f as f32),
                (_, _, Some(Scale::Known(s))) => Some(*s),
                _ => None,
            };
            let given_scale = given.map(|s| match s {
                Scale::Known(s) => f32(f64::from(s)),
                Scale::Data(s) => s,
            });
            let region = if crop { Some(region(i)?) } else { None };
            let known = known_scale.map(|s| f32(f64::from(s)));
            let scale = known.or(given_scale).unwrap_or_else(|| float(to) / float(from));
            plan.push(Axis { axis, from, to, scale, known_scale, given_scale, region });
        }
        Ok(plan)
    }

    /// Extent and scale (if it does not follow from the extents) of each axis.
    fn told(&self, cx: &Ctx, axes: &[usize]) -> Result<Vec<Told>, Fault> {
        let dims = cx.dims(0)?;
        if self.coordinate_transformation_mode == "tf_crop_and_resize" && !present(cx, 1) {
            return Err(fault!("tf_crop_and_resize needs the operand 'roi'"));
        }
        if present(cx, 2) == present(cx, 3) {
            return Err(fault!("exactly one of the operands 'scales' and 'sizes' is needed"));
        }
        let (i, what) = if present(cx, 2) { (2, "scales") } else { (3, "sizes") };
        let entries = cx.tensor(i)?;
        if entries.rank() != 1 || entries.dims[0].known().is_some_and(|n| n != axes.len() as i64) {
            return Err(fault!("operand '{what}' is {entries}, {} entries are needed", axes.len()));
        }
        let entry = |k: usize| Scalar::read_at(entries.dtype, i, &[Expr::from(k)]);
        if i == 2 {
            let each = axes.iter().enumerate().map(|(k, &a)| match cx.known(2).map(|t| t.float(k) as f32) {
                Some(s) if s > 0.0 => Ok(Told { to: Ok(scaled(dims[a], s)), scale: Some(Scale::Known(s)) }),
                Some(s) => Err(fault!("operand 'scales' has the entry {s}")),
                None => {
                    let s = entry(k).cast(DType::F32);
                    let to = un(U::Floor, float(dims[a]) * s).cast(DType::I64);
                    Ok(Told { to: Err(to), scale: Some(Scale::Data(s)) })
                }
            });
            return each.collect();
        }
        let known = cx.ints(3).unwrap_or_default();
        let size = |k: usize| known.get(k).copied().filter(|s| !s.has_datum()).ok_or_else(|| entry(k).cast(DType::I64));
        let sizes: Vec<Result<Expr, Scalar>> = (0..axes.len()).map(size).collect();
        if self.keep_aspect_ratio_policy == "stretch" {
            return Ok(sizes.into_iter().map(|to| Told { to, scale: None }).collect());
        }
        self.keep_aspect(dims, axes, &sizes)
    }

    /// One scale for all axes, so that none (or every one) exceeds its size.
    fn keep_aspect(&self, dims: &[Expr], axes: &[usize], sizes: &[Result<Expr, Scalar>]) -> Result<Vec<Told>, Fault> {
        let larger = match self.keep_aspect_ratio_policy.as_str() {
            "not_larger" => false,
            "not_smaller" => true,
            p => {
                return Err(fault!(
                    "attribute 'keep_aspect_ratio_policy' is '{p}'; stretch, not_larger or not_smaller is needed"
                ));
            }
        };
        let known = |(&a, s): (&usize, &Result<Expr, Scalar>)| Some(s.ok()?.known()? as f32 / dims[a].known()? as f32);
        if let Some(ratios) = axes.iter().zip(sizes).map(known).collect::<Option<Vec<f32>>>() {
            let scale = ratios.into_iter().reduce(if larger { f32::max } else { f32::min }).unwrap_or(1.0);
            let extent = |a: usize| Expr::int((scale * dims[a].known().unwrap_or(0) as f32 + 0.5).floor() as i64);
            return Ok(axes.iter().map(|&a| Told { to: Ok(extent(a)), scale: Some(Scale::Known(scale)) }).collect());
        }
        let ratio = |(&a, s): (&usize, &Result<Expr, Scalar>)| {
            s.map_or_else(|data| data, Scalar::index).cast(DType::F32) / float(dims[a])
        };
        let ratios = axes.iter().zip(sizes).map(ratio);
        let scale = ratios.reduce(if larger { Scalar::max } else { Scalar::min }).unwrap_or(f32(1.0));
        let to = |a: usize| un(U::Floor, scale * float(dims[a]) + f32(0.5)).cast(DType::I64);
        Ok(axes.iter().map(|&a| Told { to: Err(to(a)), scale: Some(Scale::Data(scale)) }).collect())
    }

    /// The position in the operand that result position `i` samples.
    fn position(&self, a: &Axis, i: Expr) -> Scalar {
        let (i, from) = (float(i), float(a.from));
        // The exact target length: a given scale may leave a fraction.
        let to = match a.given_scale {
            Some(s) => s * from,
            None => float(a.to),
        };
        let (half, one) = (f32(0.5), f32(1.0));
        // Length 1 is a case of its own where the general formula divides by zero.
        let unless_single = |single: Scalar, general: Scalar| Scalar::select(to.eq_to(one), single, general);
        match self.coordinate_transformation_mode.as_str() {
            "asymmetric" => i / a.scale,
            "tf_half_pixel_for_nn" => (i + half) / a.scale,
            "align_corners" => unless_single(f32(0.0), i * (from - one) / (to - one)),
            "pytorch_half_pixel" => unless_single(f32(0.0), (i + half) / a.scale - half),
            "half_pixel_symmetric" => {
                let adjustment = float(a.to) / (a.scale * from);
                from / f32(2.0) * (one - adjustment) + (i + half) / a.scale - half
            }
            "tf_crop_and_resize" => {
                let (start, end) = a.region.expect("made for this mode");
                let general = start * (from - one) + i * (end - start) * (from - one) / (to - one);
                unless_single(half * (start + end) * (from - one), general)
            }
            _ => (i + half) / a.scale - half,
        }
    }

    /// The neighbour that `nearest` takes, before it is brought into bounds.
    fn nearest(&self, p: Scalar) -> Scalar {
        let half = f32(0.5);
        let r = match self.nearest_mode.as_str() {
            "round_prefer_ceil" => un(U::Floor, p + half),
            "floor" => un(U::Floor, p),
            "ceil" => un(U::Ceil, p),
            _ => un(U::Ceil, p - half),
        };
        r.cast(DType::I64)
    }

    fn check(&self) -> Result<(), Fault> {
        let one_of = |name: &str, value: &str, all: &[&str]| match all.contains(&value) {
            true => Ok(()),
            false => Err(fault!("attribute '{name}' is '{value}'; one of {} is needed", all.join(", "))),
        };
        let modes = [
            "half_pixel",
            "asymmetric",
            "align_corners",
            "pytorch_half_pixel",
            "half_pixel_symmetric",
            "tf_crop_and_resize",
            // Of operator sets 11 and 12.
            "tf_half_pixel_for_nn",
        ];
        one_of("coordinate_transformation_mode", &self.coordinate_transformation_mode, &modes)?;
        one_of("mode", &self.mode, &["nearest", "linear", "cubic"])?;
        one_of("nearest_mode", &self.nearest_mode, &["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
    }
}

/// True if resampling along the axis changes nothing.
fn is_identity(a: &Axis) -> bool {
    let kept = if a.given_scale.is_some() { a.known_scale == Some(1.0) } else { a.known_scale.is_none_or(|s| s == 1.0) };
    a.region.is_none() && a.from == a.to && kept
}

/// `(i * a + b) / c` (floor) that equals `values[i]` everywhere, with the given slope `a / c`.
fn quotient(values: &[i64], slope: (i64, i64)) -> Option<(i64, i64, i64)> {
    let (a, c) = slope;
    (1..=4096).contains(&c).then_some(())?;
    // b is bounded by each value: v c <= i a + b < (v + 1) c.
    let (mut low, mut high) = (i64::MIN, i64::MAX);
    for (i, &v) in values.iter().enumerate() {
        let at = i as i64 * a;
        low = low.max(v * c - at);
        high = high.min((v + 1) * c - 1 - at);
    }
    (low <= high).then_some((a, low.max(0).min(high), c))
}

impl Resize {
    /// The index that `nearest` reads for result position `i`, in bounds.
    fn nearest_index(&self, a: &Axis, i: Expr) -> Scalar {
        let Some((p, b, q)) = self.fit(a) else { return clamp(self.nearest(self.position(a, i)), a.from) };
        let index = Scalar::index((i * p + b).div(Expr::int(q)));
        // The last position i = floor(from q / p) - 1 stays inside when 0 <= b < p; known extents were checked one by one.
        let known = a.from.known().is_some() && a.to.known().is_some();
        if known || (0..p).contains(&b) { index } else { clamp(index, a.from) }
    }

    /// The nearest index as a quotient, checked for every position (or, if extents are open, for the first thousands of a
    /// mode that looks at the scale only).
    fn fit(&self, a: &Axis) -> Option<(i64, i64, i64)> {
        if a.region.is_some() {
            return None;
        }
        let var = Expr::var(0);
        let raw = self.nearest(self.position(a, var));
        let evaluate = |s: Scalar, i: i64| crate::eval::scalar(s, &|_| Some(i), &mut |_, _, _| 0, &|_| 0) as i64;
        if let (Some(from), Some(to)) = (a.from.known(), a.to.known()) {
            if to > 1 << 16 {
                return None;
            }
            let values: Vec<i64> = (0..to).map(|i| evaluate(raw, i).clamp(0, from - 1)).collect();
            return quotient(&values, (from, to));
        }
        if !matches!(self.coordinate_transformation_mode.as_str(), "half_pixel" | "asymmetric") {
            return None;
        }
        let (p, q) = fraction(a.known_scale?);
        if p < q {
            return None;
        }
        let values: Vec<i64> = (0..4096).map(|i| evaluate(raw, i).max(0)).collect();
        quotient(&values, (q, p))
    }

    /// Where a sample lies outside for tf_crop_and_resize.
    fn outside(&self, a: &Axis, p: Scalar) -> Option<Scalar> {
        a.region.map(|_| {
            let beyond = Scalar::binary(crate::scalar::Binary::Gt, p, float(a.from - 1));
            Scalar::binary(crate::scalar::Binary::Or, p.lt(f32(0.0)), beyond)
        })
    }

    /// `value`, or the extrapolation value where one of the axes samples outside.
    fn extrapolate(&self, plan: &[&Axis], o: &[Expr], value: Scalar) -> Scalar {
        plan.iter().fold(value, |v, a| match self.outside(a, self.position(a, o[a.axis])) {
            Some(outside) => Scalar::select(outside, num(v, f64::from(self.extrapolation_value)), v),
            None => v,
        })
    }
}

impl OpDef for Resize {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        self.check()?;
        let x = accept(cx, 0, Accept::Number)?;
        let axes = self.axes(x.rank())?;
        let mut dims = x.dims.clone();
        for (told, &axis) in self.told(cx, &axes)?.into_iter().zip(&axes) {
            dims[axis] = told.to.unwrap_or_else(|_| new_dim("Resize", axis));
        }
        Ok(vec![Fact::tensor(x.dtype, dims)])
    }
    fn data_dims(&self, cx: &Ctx) -> Result<DataDims, Fault> {
        let axes = self.axes(cx.dims(0)?.len())?;
        let mut found = DataDims::default();
        for (told, &axis) in self.told(cx, &axes)?.into_iter().zip(&axes) {
            found.dims.extend(told.to.err().map(|to| (0, axis, to)));
            if let (Some(Scale::Data(s)), true) = (told.scale, present(cx, 2)) {
                found.checks.push((f32(0.0).lt(s), "every scale must be greater than 0".to_owned()));
            }
        }
        Ok(found)
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let plan = self.plan(cx, &out.dims)?;
        let plan: Vec<&Axis> = plan.iter().filter(|a| !is_identity(a)).collect();
        if plan.is_empty() {
            return Ok(Meaning::Alias(0));
        }
        if self.mode == "nearest" {
            let c = Compute::map(&out.dims, |o| {
                let mut at: Vec<Scalar> = o.iter().map(|&e| Scalar::index(e)).collect();
                plan.iter().for_each(|a| at[a.axis] = self.nearest_index(a, o[a.axis]));
                self.extrapolate(&plan, o, Scalar::read(x.dtype, 0, at))
            });
            return Ok(Meaning::one(cx.inputs.len(), Step::Compute(c.simplify())));
        }
        if self.mode == "linear" && self.antialias == 0 {
            return Ok(self.linear(cx.inputs.len(), x, out, &plan));
        }
        Ok(self.convolved(cx.inputs.len(), x, &plan))
    }
}

/// Rounds to the dtype of the result; integers to nearest even, saturating.
fn finish(v: Scalar, dtype: DType) -> Scalar {
    if dtype.is_float() { v.cast(dtype) } else { un(U::Round, v).cast(dtype) }
}

/// The float dtype that samples of `dtype` are weighted in.
fn weighted(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

impl Resize {
    /// Where it grows, one axis after the other, the last one first: two neighbours in each step. Else all axes in one step, 2^n neighbours, which
    /// reads no more than the result needs. The numbers are the same.
    fn linear(&self, inputs: usize, x: &TensorType, out: &TensorType, plan: &[&Axis]) -> Meaning {
        let grows = |a: &&Axis| match a.known_scale {
            Some(s) => s >= 1.0,
            None => a.from.known().zip(a.to.known()).is_some_and(|(from, to)| from <= to),
        };
        let groups: Vec<Vec<&Axis>> = match plan.iter().all(grows) {
            true => plan.iter().rev().map(|&a| vec![a]).collect(),
            false => vec![plan.to_vec()],
        };
        let wide = weighted(x.dtype);
        let (mut steps, mut dims, mut source, mut dtype) = (vec![], x.dims.clone(), 0, x.dtype);
        for (k, group) in groups.iter().enumerate() {
            let last = k + 1 == groups.len();
            group.iter().for_each(|a| dims[a.axis] = a.to);
            let c = Compute::map(&dims, |o| {
                let v = self.between(group, o, &|at| Scalar::read(dtype, source, at).cast(wide));
                if last { finish(self.extrapolate(plan, o, v), out.dtype) } else { v }
            });
            steps.push(Step::Compute(c.simplify()));
            (source, dtype) = (inputs + k, wide);
        }
        Meaning::Steps { steps, outputs: vec![source as u32] }
    }

    /// The value between the neighbours of `o` along some axes; `read` gives an element.
    fn between(&self, axes: &[&Axis], o: &[Expr], read: &dyn Fn(Vec<Scalar>) -> Scalar) -> Scalar {
        let taps: Vec<Vec<Tap>> = axes
            .iter()
            .map(|a| {
                let p = self.position(a, o[a.axis]).max(f32(0.0)).min(float(a.from - 1));
                let base = un(U::Floor, p);
                let t = p - base;
                let low = clamp(base.cast(DType::I64), a.from);
                let high = clamp(low + Scalar::index(1), a.from);
                let inside = Scalar::always();
                vec![Tap { index: low, inside, weight: f32(1.0) - t }, Tap { index: high, inside, weight: t }]
            })
            .collect();
        interpolate(&taps, &|index, _| {
            let mut at: Vec<Scalar> = o.iter().map(|&e| Scalar::index(e)).collect();
            axes.iter().zip(index).for_each(|(a, &i)| at[a.axis] = i);
            read(at)
        })
    }

    /// Number of taps, the first one's distance from floor(position), and the scale of distances: the filter's support, stretched when
    /// antialiased. Taps beyond the support weigh nothing.
    fn support(&self, a: &Axis) -> (Expr, Expr, Scalar) {
        let radius = if self.mode == "cubic" { 2 } else { 1 };
        let (reach, scale) = match a.known_scale {
            _ if self.antialias == 0 => (Expr::int(radius), f32(1.0)),
            Some(s) => {
                let s = f64::from(s).min(1.0);
                (Expr::int((radius as f64 / s).ceil() as i64), f32(s))
            }
            // The extent is the scaled one, rounded: the scale is at least (to - 1/2) / from.
            None => ((a.from * (2 * radius)).div_ceil(a.to * 2 - 1).max(radius.into()), a.scale.min(f32(1.0))),
        };
        (reach * 2, Expr::int(1) - reach, scale)
    }

    /// The filter at distance `d`.
    fn filter(&self, d: Scalar) -> Scalar {
        let d = un(U::Abs, d);
        if self.mode == "linear" {
            return (f32(1.0) - d).max(f32(0.0));
        }
        let a = f64::from(self.cubic_coeff_a);
        let inner = ((f32(a + 2.0) * d - f32(a + 3.0)) * d) * d + f32(1.0);
        let outer = ((f32(a) * d - f32(5.0 * a)) * d + f32(8.0 * a)) * d - f32(4.0 * a);
        Scalar::select(d.le(f32(1.0)), inner, Scalar::select(d.lt(f32(2.0)), outer, f32(0.0)))
    }

    /// One axis after the other: a weighted sum over the filter's support, divided by the sum of the weights where that is
    /// not 1 by construction.
    fn convolved(&self, inputs: usize, x: &TensorType, plan: &[&Axis]) -> Meaning {
        let mut steps = vec![];
        let (mut dims, mut source, mut dtype) = (x.dims.clone(), 0, x.dtype);
        for (k, a) in plan.iter().enumerate() {
            let (taps, first, stretch) = self.support(a);
            let neighbour = |o: Expr, j: Expr| {
                let p = self.position(a, o);
                let base = un(U::Floor, p);
                let at = base + float(j + first);
                let weight = self.filter((at - p) * stretch);
                let index = at.cast(DType::I64);
                let counts = if self.exclude_outside != 0 { index.within(0, a.from) } else { Scalar::always() };
                (clamp(index, a.from), Scalar::select(counts, weight, f32(0.0)))
            };
            let normalise = self.exclude_outside != 0 || self.antialias != 0;
            if normalise {
                let sum = Compute::reduce(&[a.to], &[taps], Reducer::Sum, |o, j| neighbour(o[0], j[0]).1, |_, s| s);
                steps.push(Step::Compute(sum));
            }
            let total = inputs + steps.len() - 1;
            dims[a.axis] = a.to;
            let wide = weighted(x.dtype);
            let c = Compute::reduce(
                &dims,
                &[taps],
                Reducer::Sum,
                |o, j| {
                    let (index, weight) = neighbour(o[a.axis], j[0]);
                    let at = o.iter().enumerate().map(|(i, &e)| if i == a.axis { index } else { Scalar::index(e) });
                    weight.cast(wide) * Scalar::read(dtype, source, at).cast(wide)
                },
                |o, acc| {
                    let v = if normalise { acc / Scalar::read_at(DType::F32, total, &[o[a.axis]]).cast(wide) } else { acc };
                    let v = self.extrapolate(&[a], o, v);
                    if k + 1 == plan.len() { finish(v, x.dtype) } else { v }
                },
            );
            steps.push(Step::Compute(c.simplify()));
            source = inputs + steps.len() - 1;
            dtype = wide;
        }
        Meaning::Steps { steps, outputs: vec![source as u32] }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::common::testing::*;
    use super::*;

    fn resize(mode: &str, coordinates: &str, nearest: &str) -> Resize {
        Resize {
            antialias: 0,
            axes: vec![1],
            coordinate_transformation_mode: coordinates.into(),
            cubic_coeff_a: -0.75,
            exclude_outside: 0,
            extrapolation_value: 0.0,
            keep_aspect_ratio_policy: "stretch".into(),
            mode: mode.into(),
            nearest_mode: nearest.into(),
        }
    }

    #[test]
    fn values() {
        let operands = |scale: f32| [f32s(&[1, 3], &[1.0, 2.0, 4.0]), f32s(&[0], &[]), f32s(&[1], &[scale])];
        let nearest = |c: &str, n: &str| resize("nearest", c, n);
        check(nearest("asymmetric", "floor"), &operands(2.0), &[1, 6], &[1.0, 1.0, 2.0, 2.0, 4.0, 4.0]);
        check(nearest("asymmetric", "ceil"), &operands(2.0), &[1, 6], &[1.0, 2.0, 2.0, 4.0, 4.0, 4.0]);
        check(nearest("half_pixel", "round_prefer_floor"), &operands(0.7), &[1, 2], &[1.0, 4.0]);
        let linear = |c: &str| resize("linear", c, "floor");
        check(linear("half_pixel"), &operands(2.0), &[1, 6], &[1.0, 1.25, 1.75, 2.5, 3.5, 4.0]);
        check(linear("align_corners"), &operands(5.0 / 3.0), &[1, 5], &[1.0, 1.5, 2.0, 3.0, 4.0]);
        check(resize("cubic", "asymmetric", "floor"), &operands(2.0), &[1, 6], &[1.0, 1.3125, 2.0, 3.09375, 4.0, 4.1875]);
    }

    #[test]
    fn nearest_by_a_whole_scale_is_a_plain_quotient() {
        for (coordinates, nearest) in [("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")] {
            let facts =
                [Some(Fact::tensor(DType::F32, [Expr::int(1), Expr::sym("w")])), None, Some(Fact::constant(f32s(&[1], &[2.0])))];
            let cx = Ctx { inputs: &facts, regions: &[], outputs: 1 };
            let op = resize("nearest", coordinates, nearest);
            let outs: Vec<Type> = op.infer(&cx).unwrap().into_iter().map(|f| f.ty).collect();
            assert_eq!(outs[0].to_string(), "f32[1, 2*w]");
            let Meaning::Steps { steps, .. } = op.meaning(&cx, &outs).unwrap() else { panic!("no steps") };
            assert_eq!(steps[0].scalars()[0].to_string(), "b0:f32[0, div(i1, 2)]");
        }
    }
}
