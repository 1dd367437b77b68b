//! What is kept of a tensor over all samples, and the ranges that methods make of it.
//!
//! Histograms are symmetric around 0 and double their width when a value does not fit, by merging bins: no second walk over the data
//! is needed, and the result does not depend on the order of the samples by more than the width of a bin.
//!
//! Entropy: the clipping range whose quantised distribution has the least Kullback-Leibler divergence from the clipped one (Migacz,
//! "8-bit inference with TensorRT", 2017). MSE: the range with the least mean squared error.

use serde::{Deserialize, Serialize};

const BINS: usize = 4096;

/// How a range is made of what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// All values that were seen.
    MinMax,
    /// The mean over the samples of their extremes.
    Average,
    /// All but a share of the values: the percentage that is kept.
    Percentile(f64),
    /// Least divergence of the distribution.
    Entropy,
    /// Least mean squared error.
    Mse,
}

/// Statistics of one channel each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Channels {
    /// Least values.
    pub low: Vec<f32>,
    /// Largest values.
    pub high: Vec<f32>,
    /// Means.
    pub mean: Vec<f32>,
    /// Means of the squares.
    pub square: Vec<f32>,
}

/// What is known of a tensor after some samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Samples seen.
    pub samples: u64,
    /// Extremes of all values.
    pub range: (f32, f32),
    average: (f64, f64),
    width: f64,
    bins: Vec<u64>,
    low: Vec<f32>,
    high: Vec<f32>,
    sum: Vec<f64>,
    square: Vec<f64>,
    per_channel: u64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            samples: 0,
            range: (0.0, 0.0),
            average: (0.0, 0.0),
            width: 0.0,
            bins: vec![0; BINS],
            low: vec![],
            high: vec![],
            sum: vec![],
            square: vec![],
            per_channel: 0,
        }
    }
}

impl Stats {
    /// Adds a tensor whose channels are on `axis`.
    pub fn add(&mut self, dims: &[usize], axis: Option<usize>, values: &[f32]) -> Result<(), String> {
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            return Err(format!("element {bad} of its tensor {dims:?} is {} in sample {}", values[bad], self.samples));
        }
        if values.is_empty() {
            return Ok(());
        }
        let (channels, inner) = axis.map_or((1, values.len()), |a| (dims[a], dims[a + 1..].iter().product::<usize>()));
        if self.low.is_empty() {
            self.low = vec![f32::INFINITY; channels];
            self.high = vec![f32::NEG_INFINITY; channels];
            self.sum = vec![0.0; channels];
            self.square = vec![0.0; channels];
        }
        if self.low.len() != channels {
            return Err(format!("has {channels} channels in sample {}, {} before", self.samples, self.low.len()));
        }
        for (i, run) in values.chunks_exact(inner).enumerate() {
            let c = i % channels;
            let (mut low, mut high, mut sum, mut square) = (self.low[c], self.high[c], 0.0f64, 0.0f64);
            for &v in run {
                low = low.min(v);
                high = high.max(v);
                sum += f64::from(v);
                square += f64::from(v) * f64::from(v);
            }
            (self.low[c], self.high[c]) = (low, high);
            self.sum[c] += sum;
            self.square[c] += square;
        }
        self.per_channel += (values.len() / channels) as u64;
        let (low, high) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
        self.range = if self.samples == 0 { (low, high) } else { (self.range.0.min(low), self.range.1.max(high)) };
        self.samples += 1;
        let share = 1.0 / self.samples as f64;
        self.average.0 += (f64::from(low) - self.average.0) * share;
        self.average.1 += (f64::from(high) - self.average.1) * share;
        self.count(values, f64::from(low.abs().max(high.abs())));
        Ok(())
    }

    fn count(&mut self, values: &[f32], most: f64) {
        if most == 0.0 && self.width == 0.0 {
            self.width = f64::from(f32::MIN_POSITIVE);
        }
        if self.width == 0.0 {
            self.width = most;
        }
        while most > self.width {
            let mut wider = vec![0; BINS];
            for (i, n) in self.bins.iter().enumerate() {
                wider[BINS / 4 + i / 2] += n;
            }
            self.bins = wider;
            self.width *= 2.0;
        }
        let scale = BINS as f64 / 2.0 / self.width;
        for &v in values {
            let k = ((f64::from(v) + self.width) * scale) as usize;
            self.bins[k.min(BINS - 1)] += 1;
        }
    }

    /// What is known of each channel.
    pub fn channels(&self) -> Channels {
        let mean = |sums: &[f64]| sums.iter().map(|s| (s / self.per_channel.max(1) as f64) as f32).collect();
        Channels { low: self.low.clone(), high: self.high.clone(), mean: mean(&self.sum), square: mean(&self.square) }
    }

    /// The value in the middle of a bin.
    fn middle(&self, bin: usize) -> f64 {
        ((bin as f64 + 0.5) / BINS as f64 * 2.0 - 1.0) * self.width
    }

    /// The range that a method makes of it for 256 levels, always with 0 in it. `symmetric`: as far below 0 as above.
    pub fn range_by(&self, method: Method, symmetric: bool) -> (f32, f32) {
        let with_zero = |(low, high): (f64, f64)| {
            let (low, high) = (low.min(0.0), high.max(0.0));
            if symmetric { (-high.max(-low), high.max(-low)) } else { (low, high) }
        };
        let all = with_zero((f64::from(self.range.0), f64::from(self.range.1)));
        let (low, high) = match method {
            Method::MinMax => all,
            Method::Average => with_zero(self.average),
            Method::Percentile(p) => with_zero(self.percentile(p)),
            // Less than a quarter of the range is no clipping of outliers any more.
            Method::Entropy => self
                .best(all, symmetric, &|s, r| if (r.1 - r.0) < 0.25 * (all.1 - all.0) { f64::INFINITY } else { s.divergence(r) }),
            Method::Mse => self.best(all, symmetric, &|s, r| s.squared_error(r)),
        };
        (low.max(all.0) as f32, high.min(all.1) as f32)
    }

    /// The range without the outer values, half of them on each side (on one side only, if all are of one sign).
    fn percentile(&self, percent: f64) -> (f64, f64) {
        let total: u64 = self.bins.iter().sum();
        let one_sided = self.range.0 >= 0.0 || self.range.1 <= 0.0;
        let drop = total as f64 * (1.0 - percent / 100.0).clamp(0.0, 1.0) / if one_sided { 1.0 } else { 2.0 };
        // The outermost bin that stays.
        let edge = |order: &[usize]| {
            let mut seen = 0.0;
            order.iter().copied().find(|&k| {
                seen += self.bins[k] as f64;
                seen > drop
            })
        };
        let (upwards, downwards): (Vec<usize>, Vec<usize>) = ((0..BINS).collect(), (0..BINS).rev().collect());
        let half = self.width / BINS as f64;
        let high = edge(&downwards).map_or(0.0, |k| self.middle(k) + half);
        let low = edge(&upwards).map_or(0.0, |k| self.middle(k) - half);
        let (least, most) = (f64::from(self.range.0), f64::from(self.range.1));
        (
            if one_sided && least >= 0.0 { least } else { low.max(least) },
            if one_sided && most <= 0.0 { most } else { high.min(most) },
        )
    }

    /// The best of ranges within `all`, by a loss: first both ends together, then each by itself.
    fn best(&self, all: (f64, f64), symmetric: bool, loss: &dyn Fn(&Stats, (f64, f64)) -> f64) -> (f64, f64) {
        let steps = || (1..=40).map(|k| f64::from(k) / 40.0);
        let mut best = all;
        let mut least = loss(self, all);
        let mut look = |range: (f64, f64), best: &mut (f64, f64)| {
            if range.1 - range.0 > 0.0 {
                let l = loss(self, range);
                if l < least {
                    (least, *best) = (l, range);
                }
            }
        };
        steps().for_each(|s| look((all.0 * s, all.1 * s), &mut best));
        if !symmetric && all.0 < 0.0 && all.1 > 0.0 {
            let high = best.1;
            steps().for_each(|s| look((all.0 * s, high), &mut best));
            let low = best.0;
            steps().for_each(|s| look((low, all.1 * s), &mut best));
        }
        best
    }

    /// Sum of the squared differences after storing with 256 levels of a range.
    fn squared_error(&self, (low, high): (f64, f64)) -> f64 {
        let step = (high - low) / 255.0;
        let within = step * step / 12.0;
        let error = |(k, &n): (usize, &u64)| {
            let v = self.middle(k);
            let outside = if v < low { low - v } else { (v - high).max(0.0) };
            // Inside: the mean of a uniform error. Values of exactly 0, of which activations have many, are stored without one.
            let zero = n > 0 && v.abs() < self.width / BINS as f64 * 1.5;
            n as f64
                * if outside > 0.0 {
                    outside * outside
                } else if zero {
                    0.0
                } else {
                    within
                }
        };
        self.bins.iter().enumerate().filter(|(_, n)| **n > 0).map(error).sum()
    }

    /// Kullback-Leibler divergence of what 256 levels of a range can tell apart from the distribution clipped to it.
    fn divergence(&self, (low, high): (f64, f64)) -> f64 {
        let bin = |v: f64| (((v + self.width) / self.width / 2.0 * BINS as f64) as usize).min(BINS - 1);
        let (first, last) = (bin(low), bin(high));
        if last < first + 256 {
            return f64::INFINITY;
        }
        // Zeros, of which activations have many, are stored exactly: their bin would outweigh all others. It counts as its neighbours do.
        let middle = BINS / 2;
        let around = (self.bins[middle + 1] + self.bins[middle - 2]) / 2;
        let count = |k: usize| if k == middle || k == middle - 1 { self.bins[k].min(around) } else { self.bins[k] } as f64;
        let mut p: Vec<f64> = (first..=last).map(count).collect();
        let end = p.len() - 1;
        let inside = p.clone();
        p[0] += self.bins[..first].iter().sum::<u64>() as f64;
        p[end] += self.bins[last + 1..].iter().sum::<u64>() as f64;
        let mut q = vec![0.0; p.len()];
        for level in 0..256 {
            let (a, b) = (level * p.len() / 256, (level + 1) * p.len() / 256);
            let filled = (a..b).filter(|&k| p[k] > 0.0).count();
            let mass: f64 = inside[a..b].iter().sum();
            (a..b).filter(|&k| p[k] > 0.0).for_each(|k| q[k] = mass / filled as f64);
        }
        let (sp, sq): (f64, f64) = (p.iter().sum(), q.iter().sum());
        if sq == 0.0 {
            return f64::INFINITY;
        }
        let term = |(p, q): (&f64, &f64)| {
            let (p, q) = (p / sp, q / sq);
            if p == 0.0 { 0.0 } else { p * (p / q.max(1e-12)).ln() }
        };
        p.iter().zip(&q).map(term).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normal numbers with one far outlier.
    fn outlier() -> Stats {
        let mut random = crate::data::Random(7);
        let mut values: Vec<f32> = (0..20_000).map(|_| (0..12).map(|_| random.unit()).sum::<f64>() as f32 - 6.0).collect();
        values[17] = 60.0;
        let mut s = Stats::default();
        s.add(&[1, 2, 10_000], Some(1), &values).unwrap();
        s
    }

    #[test]
    fn methods_cut_outliers_as_they_say() {
        let s = outlier();
        let high = |m| s.range_by(m, false).1;
        assert_eq!(high(Method::MinMax), 60.0);
        assert!((2.0..5.0).contains(&high(Method::Percentile(99.9))), "{}", high(Method::Percentile(99.9)));
        // Where the loss of the outlier, (60 - c)^2, grows as fast as the noise of all others shrinks.
        assert!((57.0..59.5).contains(&high(Method::Mse)), "{}", high(Method::Mse));
        assert!((3.0..40.0).contains(&high(Method::Entropy)), "{}", high(Method::Entropy));
        let (low, high) = s.range_by(Method::Mse, true);
        assert_eq!(low, -high);
    }

    #[test]
    fn bins_grow_without_losing_values() {
        let mut s = Stats::default();
        for width in [0.5f32, 3.0, 1000.0] {
            s.add(&[4], Some(0), &[-width, 0.0, width / 3.0, width]).unwrap();
        }
        assert_eq!(s.bins.iter().sum::<u64>(), 12);
        assert_eq!(s.range, (-1000.0, 1000.0));
        assert_eq!(s.range_by(Method::Average, false).1, (0.5 + 3.0 + 1000.0) / 3.0);
        assert!(s.add(&[1], Some(0), &[1.0]).unwrap_err().contains("channels"));
        assert!(s.add(&[4], Some(0), &[1.0, f32::NAN, 0.0, 0.0]).unwrap_err().contains("element 1"));
    }

    #[test]
    fn positive_values_keep_zero_at_the_end() {
        let mut s = Stats::default();
        s.add(&[3], Some(0), &[1.0, 2.0, 3.0]).unwrap();
        for m in [Method::MinMax, Method::Average, Method::Percentile(100.0), Method::Mse] {
            let (low, high) = s.range_by(m, false);
            assert_eq!(low, 0.0, "{m:?}");
            assert!(high > 2.5 && high <= 3.0, "{m:?} {high}");
        }
    }
}
