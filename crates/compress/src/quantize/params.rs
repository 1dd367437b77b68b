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

/// Scales of weights: one for each output channel and run of `group` terms of its sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Terms that share a scale; the depth of the sum if all of a channel do.
    pub group: usize,
    /// By channel, then by group.
    pub values: Vec<f32>,
    /// Largest stored integer; the least is `-most`, or one less for 4 bits.
    pub most: i64,
}

impl Scales {
    /// The scale of a weight.
    pub fn of(&self, depth: usize, c: usize, k: usize) -> f32 {
        self.values[c * depth.div_ceil(self.group) + k / self.group]
    }
    /// The least stored integer.
    pub fn least(&self) -> i64 {
        if self.most == 7 { -8 } else { -self.most }
    }
    /// What a weight is stored as.
    pub fn store(&self, w: f32, scale: f32) -> i64 {
        (w / scale).round_ties_even().clamp(self.least() as f32, self.most as f32) as i64
    }

    /// For weights as a matrix. 8 bits: the largest weight is stored as 127. 4 bits: the scale with the least squared error, weighted by
    /// `importance` of the terms if it is given.
    pub fn fit(w: &[f32], grid: Grid, group: usize, most: i64, importance: Option<&dyn Fn(usize, usize) -> f32>) -> Scales {
        let depth = grid.depth();
        let group = group.clamp(1, depth.max(1));
        let mut values = Vec::with_capacity(grid.channels * depth.div_ceil(group));
        let mut s = Scales { group, values: vec![], most };
        for c in 0..grid.channels {
            for from in (0..depth).step_by(group) {
                let terms = from..(from + group).min(depth);
                let most_abs = terms.clone().map(|k| w[grid.at(c, k)].abs()).fold(0.0f32, f32::max);
                let full = usable(most_abs / most as f32);
                values.push(if most >= 127 { full } else { s.search(w, grid, c, terms, full, importance) });
            }
        }
        s.values = values;
        s
    }

    /// The best of scales around the one that takes in the largest weight.
    fn search(
        &self,
        w: &[f32],
        grid: Grid,
        c: usize,
        terms: std::ops::Range<usize>,
        full: f32,
        importance: Option<&dyn Fn(usize, usize) -> f32>,
    ) -> f32 {
        let error = |scale: f32| -> f64 {
            let one = |k: usize| {
                let v = w[grid.at(c, k)];
                let d = f64::from(v - self.store(v, scale) as f32 * scale);
                d * d * f64::from(importance.map_or(1.0, |f| f(c, k)))
            };
            terms.clone().map(one).sum()
        };
        let mut best = (full, error(full));
        for s in (0..24).map(|i| full * (0.64 + 0.02 * i as f32)) {
            let e = error(s);
            if e < best.1 {
                best = (s, e);
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
            for (most, group) in [(127, usize::MAX), (7, group)] {
                let s = Scales::fit(&w, grid, group, most, None);
                for c in 0..grid.channels {
                    for k in 0..grid.depth() {
                        let (v, scale) = (w[grid.at(c, k)], s.of(grid.depth(), c, k));
                        let error = (s.store(v, scale) as f32 * scale - v).abs();
                        // Scales for 4 bits may cut the largest weights.
                        let bound = if most == 127 { 0.5001 * scale } else { 0.36 * 7.0 * scale / 0.64 + scale };
                        prop_assert!(error <= bound, "{v} with scale {scale}: {error}");
                    }
                }
            }
        }
    }
}
