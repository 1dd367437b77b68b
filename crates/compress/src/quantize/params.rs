//! Scales and zero points, and what is stored with them: `real = (stored - zero) * scale`.

use crate::layers::Grid;
use infc_ir::{DType, Tensor};

/// How a whole tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Step between neighbouring integers.
    pub scale: f32,
    /// What 0 is stored as.
    pub zero: i64,
    /// The dtype: `u8` or `i8`.
    pub dtype: DType,
}

impl Affine {
    /// For values between `low` and `high`; 0 is always stored exactly.
    pub fn of(low: f32, high: f32, symmetric: bool) -> Affine {
        let (low, high) = (low.min(0.0), high.max(0.0));
        if symmetric {
            return Affine { scale: usable(high.max(-low) / 127.0), zero: 0, dtype: DType::I8 };
        }
        let scale = usable((high - low) / 255.0);
        let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0) as i64;
        Affine { scale, zero, dtype: DType::U8 }
    }
    /// What a number is stored as, by the definition of QuantizeLinear.
    pub fn store(&self, v: f32) -> i64 {
        let (low, high) = if self.dtype == DType::I8 { (-128.0, 127.0) } else { (0.0, 255.0) };
        ((v / self.scale).round_ties_even() + self.zero as f32).clamp(low, high) as i64
    }
    /// The number that a stored integer stands for.
    pub fn real(&self, q: i64) -> f32 {
        (q - self.zero) as f32 * self.scale
    }
    /// The scale as a scalar tensor.
    pub fn scale_tensor(&self) -> Tensor {
        Tensor::from_vec([], vec![self.scale])
    }
    /// The zero point as a scalar tensor.
    pub fn zero_tensor(&self) -> Tensor {
        Tensor::from_values(self.dtype, [], [self.zero as u64])
    }
}

/// A scale that divides: neither 0 nor subnormal.
pub fn usable(scale: f32) -> f32 {
    if scale.is_finite() && scale >= f32::MIN_POSITIVE { scale } else { 1.0 }
}

/// The number in f16 nearest to this one, if that is a normal one there; else the number itself.
pub fn as_half(v: f32) -> f32 {
    let half = half::f16::from_f32(v);
    if half.is_normal() { half.to_f32() } else { v }
}

/// Scales of weights: one for each output channel and run of `group` terms of its sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Terms that share a scale; the depth of the sum if all of a channel do.
    pub group: usize,
    /// By channel, then by group.
    pub values: Vec<f32>,
    /// What 0 is stored as, in the same order; empty if it is 0 everywhere.
    pub zeros: Vec<i64>,
    /// Largest stored integer; the least is `-most`, or one less for 4 bits.
    pub most: i64,
}

impl Scales {
    /// The scale of a weight.
    pub fn of(&self, depth: usize, c: usize, k: usize) -> f32 {
        self.values[c * depth.div_ceil(self.group) + k / self.group]
    }
    /// The scale of a weight, and what 0 is stored as there.
    pub fn step(&self, depth: usize, c: usize, k: usize) -> (f32, i64) {
        let at = c * depth.div_ceil(self.group) + k / self.group;
        (self.values[at], self.zeros.get(at).copied().unwrap_or(0))
    }
    /// The least stored integer.
    pub fn least(&self) -> i64 {
        if self.most == 7 { -8 } else { -self.most }
    }
    /// What a weight is stored as.
    pub fn store(&self, w: f32, (scale, zero): (f32, i64)) -> i64 {
        ((w / scale).round_ties_even() + zero as f32).clamp(self.least() as f32, self.most as f32) as i64
    }
    /// The number that a stored integer stands for.
    pub fn real(q: i64, (scale, zero): (f32, i64)) -> f32 {
        (q - zero) as f32 * scale
    }

    /// For weights as a matrix. 8 bits: the largest weight is stored as 127. 4 bits: the scale, and with `zeros` the zero point, with the
    /// least squared error, weighted by `importance` of the terms if it is given. Scales of groups are such that f16 has them, where it can.
    pub fn fit(
        w: &[f32],
        grid: Grid,
        group: usize,
        most: i64,
        zeros: bool,
        importance: Option<&dyn Fn(usize, usize) -> f32>,
    ) -> Scales {
        let depth = grid.depth();
        let group = group.clamp(1, depth.max(1));
        let mut values = Vec::with_capacity(grid.channels * depth.div_ceil(group));
        let mut points = vec![];
        let mut s = Scales { group, values: vec![], zeros: vec![], most };
        for c in 0..grid.channels {
            for from in (0..depth).step_by(group) {
                let terms = from..(from + group).min(depth);
                let most_abs = terms.clone().map(|k| w[grid.at(c, k)].abs()).fold(0.0f32, f32::max);
                let full = usable(most_abs / most as f32);
                let (scale, zero) = if most >= 127 { (full, 0) } else { s.search(w, grid, c, terms, full, zeros, importance) };
                values.push(scale);
                points.push(zero);
            }
        }
        s.values = values;
        if points.iter().any(|&z| z != 0) {
            s.zeros = points;
        }
        s
    }

    /// The best of scales around the one that takes in the largest weight, or of those with zero points that take in both ends.
    fn search(
        &self,
        w: &[f32],
        grid: Grid,
        c: usize,
        terms: std::ops::Range<usize>,
        full: f32,
        zeros: bool,
        importance: Option<&dyn Fn(usize, usize) -> f32>,
    ) -> (f32, i64) {
        let grouped = self.group < grid.depth();
        let error = |step: (f32, i64)| -> f64 {
            let one = |k: usize| {
                let v = w[grid.at(c, k)];
                let d = f64::from(v - Scales::real(self.store(v, step), step));
                d * d * f64::from(importance.map_or(1.0, |f| f(c, k)))
            };
            terms.clone().map(one).sum()
        };
        let around = (0..24).map(|i| (full * (0.64 + 0.02 * i as f32), 0));
        let ends = terms.clone().map(|k| w[grid.at(c, k)]).fold((0.0f32, 0.0f32), |e, v| (e.0.min(v), e.1.max(v)));
        let levels = (self.most - self.least()) as f32;
        let whole = usable((ends.1 - ends.0) / levels);
        let shifted = (0..if zeros { 16 } else { 0 }).map(|i| {
            let share = 0.7 + 0.02 * i as f32;
            let scale = whole * share;
            let zero = (-ends.0 * share / scale).round_ties_even() as i64 + self.least();
            (scale, zero.clamp(self.least(), self.most))
        });
        let rounded = |(scale, zero): (f32, i64)| (if grouped { as_half(scale) } else { scale }, zero);
        let first = rounded((full, 0));
        let mut best = (first, error(first));
        for step in around.chain(shifted).map(rounded) {
            let e = error(step);
            if e < best.1 {
                best = (step, e);
            }
        }
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn stored_values_are_within_half_a_step(low in -1e3f32..1e3, width in 1e-3f32..1e4, at in 0.0f32..1.0, symmetric: bool) {
            let high = low + width;
            let a = Affine::of(low, high, symmetric);
            let v = (low + at * width).clamp(low.min(0.0), high.max(0.0));
            let error = (a.real(a.store(v)) - v).abs();
            // A value at the end may be cut by the rounding of the zero point: half a step more.
            prop_assert!(error <= a.scale * 1.001 + v.abs() * 1e-6, "{v} became {}", a.real(a.store(v)));
            if v > low + a.scale && v < high - a.scale {
                prop_assert!(error <= a.scale * 0.5001 + v.abs() * 1e-6, "{v} became {}", a.real(a.store(v)));
            }
            prop_assert_eq!(a.real(a.store(0.0)), 0.0);
        }

        #[test]
        fn weights_are_within_half_a_step(w in prop::collection::vec(-10.0f32..10.0, 24), axis in 0usize..2, group in 1usize..9) {
            let grid = Grid::new(&[4, 6], axis);
            for (most, group, zeros) in [(127, usize::MAX, false), (7, group, false), (7, group, true)] {
                let s = Scales::fit(&w, grid, group, most, zeros, None);
                for c in 0..grid.channels {
                    for k in 0..grid.depth() {
                        let (v, step) = (w[grid.at(c, k)], s.step(grid.depth(), c, k));
                        let (error, scale) = ((Scales::real(s.store(v, step), step) - v).abs(), step.0);
                        // Scales for 4 bits may cut the largest weights.
                        let cut = if zeros { 0.3 * 15.0 / 0.7 } else { 0.36 * 7.0 / 0.64 };
                        let bound = if most == 127 { 0.5001 * scale } else { cut * scale + 1.01 * scale };
                        prop_assert!(error <= bound, "{v} with scale {scale}: {error}");
                    }
                }
            }
        }
    }
}
