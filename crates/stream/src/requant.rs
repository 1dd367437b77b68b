//! From the definition of a requantisation to hardware: a multiplication and a shift, or thresholds, shown to be equal.
//!
//! `F(acc) = clamp(saturate(rint_half_even(f32(acc) * m) + zero), min, max)` never falls as `acc` grows (`m > 0`), and so do the forms here. Two
//! such functions are equal on `low..=high` if they are equal at its ends and step at the same places. So: the *breakpoints* of `F` (the
//! least `acc` that gives `k` or more, for each `k`) are found by search, and a form is taken only if it steps exactly there.
//!
//! For `(acc * mul + add) >> shift` with given `mul` and `shift`, each breakpoint `b` of level `k` asks for
//! `k * 2^shift - b * mul <= add < k * 2^shift - (b - 1) * mul`: an interval for `add`. The slope with which the intervals have the most in
//! common is found first; then the least shift whose nearest `mul` leaves a common `add`, for all channels. Where a scale is a power of two, ties occur, and only rounding half to even is equal.
//! Rounding to f32 before rounding to an integer moves some steps (a product just below a tie becomes one), so that with wide accumulators no
//! line steps as `F` does. Then the two roundings are done in integers. Where accumulators are too wide for that too, or
//! where there are few levels, there are thresholds: the breakpoints themselves.

use crate::design::{Format, Law, Requant, RequantForm};

/// Up to so many levels above the least, thresholds are taken: comparators are smaller than a multiplier then.
const FEW: i64 = 15;
/// Largest shift that is tried.
const SHIFTS: u32 = 40;
/// Widest factor.
const FACTOR: i64 = 1 << 26;

impl Law {
    /// What an accumulator becomes; channels in the order of the stream.
    pub fn apply(&self, channel: usize, acc: i64, min: i64, max: i64) -> i64 {
        // As the graph computes it: one rounding to f32, one product, one rounding to an integer.
        let rounded = f64::from((acc as f32 * self.m[channel % self.m.len()]).round_ties_even());
        (rounded + self.zero as f64).clamp(min as f64, max as f64) as i64
    }
}

impl RequantForm {
    /// What an accumulator becomes, computed as the hardware does.
    pub fn apply(&self, channel: usize, acc: i64, min: i64, max: i64) -> i64 {
        match self {
            RequantForm::MultiplyShift { mul, add, shift, half_even, .. } => {
                let (product, add) = (acc * mul[channel % mul.len()], add[channel % add.len()]);
                multiplied(product, add, *shift, *half_even).clamp(min, max)
            }
            RequantForm::Float { mul, shift, add, .. } => {
                let c = channel % mul.len();
                (rounded_product(acc * mul[c], shift[c]) + add).clamp(min, max)
            }
            RequantForm::Thresholds(lists) => min + lists[channel % lists.len()].partition_point(|&t| t <= acc) as i64,
        }
    }
    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            RequantForm::MultiplyShift { .. } => "multiply-shift",
            RequantForm::Float { .. } => "float",
            RequantForm::Thresholds(_) => "thresholds",
        }
    }
}

impl Requant {
    /// What an accumulator becomes, computed as the hardware does.
    pub fn apply(&self, channel: usize, acc: i64) -> i64 {
        self.form.apply(channel, acc, self.min, self.max)
    }
    /// What an accumulator becomes by definition; where there is none, by the form.
    pub fn define(&self, channel: usize, acc: i64) -> i64 {
        match &self.law {
            Some(law) => law.apply(channel, acc, self.min, self.max),
            None => self.apply(channel, acc),
        }
    }
}

/// `(product + add) >> shift`; with `half_even` the product is rounded to nearest, ties to even, before the summand.
pub fn multiplied(product: i64, add: i64, shift: u32, half_even: bool) -> i64 {
    if half_even { round(product, shift) + add } else { (product + add) >> shift }
}

/// `v / 2^shift` to nearest, ties to even.
fn round(v: i64, shift: u32) -> i64 {
    if shift == 0 {
        return v;
    }
    (v + (1i64 << (shift - 1)) - 1 + ((v >> shift) & 1)) >> shift
}

/// `product / 2^shift` rounded to the 24 bits of a f32, then to an integer.
fn rounded_product(product: i64, shift: u32) -> i64 {
    let drop = (64 - product.unsigned_abs().leading_zeros()).saturating_sub(24);
    round(round(product, drop) << drop, shift)
}

/// A function that never falls, on a range of accumulators: where it starts and where it steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Least accumulator.
    pub low: i64,
    /// Greatest accumulator.
    pub high: i64,
    /// The value at `low`.
    pub first: i64,
    /// For each level above `first` that is reached, in order: the least accumulator that gives it or more.
    pub at: Vec<i64>,
}

impl Steps {
    /// The value at `high`.
    pub fn last(&self) -> i64 {
        self.first + self.at.len() as i64
    }

    /// Finds the steps of `f`. `guess(k)` is about where level `k` begins.
    pub fn find(low: i64, high: i64, f: impl Fn(i64) -> i64, guess: impl Fn(i64) -> f64) -> Steps {
        let (first, last) = (f(low), f(high));
        let mut at = vec![];
        let mut from = low;
        for k in first + 1..=last {
            from = first_with(from, high, k, &f, guess(k));
            at.push(from);
        }
        Steps { low, high, first, at }
    }

    /// Whether a function that never falls is equal, given as its value clamped to `min..=max`.
    pub fn equal(&self, f: impl Fn(i64) -> i64) -> bool {
        let stepped = |i: usize, b: i64| {
            let k = self.first + 1 + i as i64;
            f(b) >= k && f(b - 1) < k
        };
        f(self.low) == self.first && f(self.high) == self.last() && self.at.iter().enumerate().all(|(i, &b)| stepped(i, b))
    }
}

/// The least accumulator from `low` on with `f >= k`; `f(high) >= k`.
fn first_with(low: i64, high: i64, k: i64, f: &impl Fn(i64) -> i64, guess: f64) -> i64 {
    let (mut below, mut above) = (low - 1, high);
    // The guess, if it is good, narrows the range to a few numbers.
    let near = if guess.is_finite() { (guess as i64).clamp(low, high) } else { low };
    for probe in [near - 2, near - 1, near, near + 1, near + 2] {
        if probe > below && probe < above {
            if f(probe) >= k { above = probe } else { below = probe }
        }
    }
    while above - below > 1 {
        let middle = below + (above - below) / 2;
        if f(middle) >= k { above = middle } else { below = middle }
    }
    above
}

/// The steps of a law for one channel.
pub fn steps_of(law: &Law, channel: usize, [low, high]: [i64; 2], min: i64, max: i64) -> Steps {
    let m = f64::from(law.m[channel % law.m.len()]);
    let guess = |k: i64| ((k - law.zero) as f64 - 0.5) / m;
    Steps::find(low, high, |acc| law.apply(channel, acc, min, max), guess)
}

/// The requantisation by a law, with hardware that is equal to it for all accumulators in `range` (one entry a channel, or one for all).
pub fn requantise(out: Format, min: i64, max: i64, law: Law, range: Vec<[i64; 2]>) -> Requant {
    let channels = law.m.len().max(range.len());
    let steps: Vec<Steps> = (0..channels).map(|c| steps_of(&law, c, range[c % range.len()], min, max)).collect();
    let slopes: Vec<f64> = law.m.iter().map(|&m| f64::from(m)).collect();
    let form = if max - min > FEW {
        multiply_shift(&steps, &slopes, law.zero, min, max).or_else(|| float(&steps, &law, min, max))
    } else {
        None
    };
    let form = form.unwrap_or_else(|| RequantForm::Thresholds(steps.iter().map(|s| thresholds(s, min, max)).collect()));
    Requant { out, min, max, form, law: Some(law), range }
}

/// The roundings of the definition in integers; `None` where accumulators are too wide for it.
fn float(steps: &[Steps], law: &Law, min: i64, max: i64) -> Option<RequantForm> {
    let (mut muls, mut shifts) = (vec![], vec![]);
    for &m in &law.m {
        // m = mul / 2^shift, exactly.
        let bits = m.to_bits();
        let (mut mul, mut shift) = (i64::from(bits & 0x7f_ffff | 0x80_0000), 150 - i64::from(bits >> 23));
        while mul % 2 == 0 && shift > 0 {
            (mul, shift) = (mul / 2, shift - 1);
        }
        // With more than 60 bits every product of the accumulators that are allowed is less than a half.
        let (mul, shift) = if shift > 60 { (0, 0) } else { (mul, u32::try_from(shift).ok()?) };
        muls.push(mul);
        shifts.push(shift);
    }
    let mut most = 0i64;
    for (c, s) in steps.iter().enumerate() {
        let (mul, shift) = (muls[c % muls.len()], shifts[c % shifts.len()]);
        let reach = s.low.unsigned_abs().max(s.high.unsigned_abs() + 1);
        // Integers of up to 24 bits are floats as they are; of wider ones the proof tells.
        if reach > 1 << 31 || !s.equal(|acc| (rounded_product(acc * mul, shift) + law.zero).clamp(min, max)) {
            return None;
        }
        most = most.max(reach as i64 * mul + (1i64 << shift.saturating_sub(1)));
    }
    Some(RequantForm::Float { mul: muls, shift: shifts, add: law.zero, wide: Format::of(-most, most) })
}

fn thresholds(s: &Steps, min: i64, max: i64) -> Vec<i64> {
    let level = |k: i64| match k {
        k if k <= s.first => s.low,
        k if k > s.last() => s.high + 1,
        k => s.at[(k - s.first - 1) as usize],
    };
    (min + 1..=max).map(level).collect()
}

/// A multiplication and a shift, equal for all channels; `None` if there is none.
pub fn multiply_shift(steps: &[Steps], slopes: &[f64], zero: i64, min: i64, max: i64) -> Option<RequantForm> {
    let mut order: Vec<usize> = (0..steps.len()).collect();
    let borders: Vec<Borders> = steps.iter().map(|s| Borders::of(s, min, max)).collect();
    let lines: Vec<f64> = borders.iter().enumerate().map(|(c, b)| b.best(slopes[c % slopes.len()])).collect();
    for shift in 0..=SHIFTS {
        for half_even in [false, true] {
            let mut found = vec![(0, 0); steps.len()];
            let failed = order.iter().position(|&c| {
                let pair = match half_even {
                    false => rounding_down(&borders[c], lines[c], shift),
                    true => rounding_even(&steps[c], slopes[c % slopes.len()], shift, zero, min, max),
                };
                found[c] = pair.unwrap_or_default();
                pair.is_none()
            });
            if let Some(i) = failed {
                // The channel that fails is asked first next time.
                order[..=i].rotate_right(1);
                continue;
            }
            let Some(wide) = wide(steps, &found, shift, half_even) else { continue };
            let (mut mul, mut add): (Vec<i64>, Vec<i64>) = found.into_iter().unzip();
            if mul.iter().all(|&m| m == mul[0]) && add.iter().all(|&a| a == add[0]) {
                (mul, add) = (vec![mul[0]], vec![add[0]]);
            }
            return Some(RequantForm::MultiplyShift { mul, add, shift, wide, half_even });
        }
    }
    None
}

/// What holds all products with their summands.
fn wide(steps: &[Steps], found: &[(i64, i64)], shift: u32, half_even: bool) -> Option<Format> {
    let (mut least, mut most) = (0i128, 0i128);
    for (s, &(mul, add)) in steps.iter().zip(found) {
        let half = if shift > 0 { 1i128 << (shift - 1) } else { 0 };
        let more = if half_even { half } else { i128::from(add) };
        let [low, high] = [s.low, s.high].map(|acc| i128::from(acc) * i128::from(mul));
        (least, most) = (least.min(low).min(low + more), most.max(high).max(high + more));
    }
    let limit = 1i128 << 62;
    (least > -limit && most < limit).then(|| Format::of(least as i64, most as i64))
}

/// What each accumulator at the border of a step asks of a line: `at[i]` is `(acc, level)`, the line must be at the level or above it, or below.
struct Borders {
    reach: Vec<(i64, i64)>,
    stay: Vec<(i64, i64)>,
}

impl Borders {
    fn of(s: &Steps, min: i64, max: i64) -> Borders {
        let (mut reach, mut stay) = (vec![], vec![]);
        for (i, &b) in s.at.iter().enumerate() {
            let k = s.first + 1 + i as i64;
            reach.push((b, k));
            stay.push((b - 1, k));
        }
        // At the ends a limit may do it.
        if s.first > min {
            reach.push((s.low, s.first));
        }
        if s.last() < max {
            stay.push((s.high, s.last() + 1));
        }
        Borders { reach, stay }
    }
    /// The room for the summand, in levels, of a line with this slope; the larger the better, none below 0.
    fn room(&self, slope: f64) -> f64 {
        let need = |&(b, k): &(i64, i64)| k as f64 - b as f64 * slope;
        let least = self.reach.iter().map(need).fold(f64::NEG_INFINITY, f64::max);
        let most = self.stay.iter().map(need).fold(f64::INFINITY, f64::min);
        most - least
    }
    /// The slope with the most room. Room is a concave function of the slope: it is found by narrowing an interval.
    fn best(&self, near: f64) -> f64 {
        let (mut low, mut high) = (near * (1.0 - 1e-3), near * (1.0 + 1e-3));
        for _ in 0..80 {
            let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
            if self.room(a) < self.room(b) { low = a } else { high = b }
        }
        (low + high) / 2.0
    }
    /// The summand for a factor and a shift.
    fn summand(&self, mul: i64, shift: u32) -> Option<i64> {
        let need = |&(b, k): &(i64, i64)| (i128::from(k) << shift) - i128::from(b) * i128::from(mul);
        let (mut least, mut most) = (i128::MIN, i128::MAX);
        for border in &self.reach {
            least = least.max(need(border));
        }
        for border in &self.stay {
            most = most.min(need(border) - 1);
            if least > most {
                return None;
            }
        }
        let add = match (least, most) {
            (i128::MIN, i128::MAX) => 0,
            (i128::MIN, most) => most,
            (least, i128::MAX) => least,
            (least, most) => least + (most - least) / 2,
        };
        i64::try_from(add).ok()
    }
}

/// Factor and summand with which rounding down is equal.
fn rounding_down(borders: &Borders, slope: f64, shift: u32) -> Option<(i64, i64)> {
    let near = (slope * (1i64 << shift) as f64).round();
    if near > FACTOR as f64 {
        return None;
    }
    let near = near as i64;
    [near, near - 1, near + 1].into_iter().filter(|&mul| mul >= 0).find_map(|mul| Some((mul, borders.summand(mul, shift)?)))
}

/// Factor and summand with which rounding half to even is equal: for slopes that are a small number over a power of two.
fn rounding_even(s: &Steps, slope: f64, shift: u32, zero: i64, min: i64, max: i64) -> Option<(i64, i64)> {
    let mul = slope * (1i64 << shift) as f64;
    if mul.fract() != 0.0 || !(1.0..=FACTOR as f64).contains(&mul) {
        return None;
    }
    let mul = mul as i64;
    let reach = i128::from(s.low).abs().max(i128::from(s.high).abs() + 1);
    if reach * i128::from(mul) > 1 << 61 {
        return None;
    }
    s.equal(|acc| multiplied(acc * mul, zero, shift, true).clamp(min, max)).then_some((mul, zero))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn law(m: f32, zero: i64) -> Law {
        Law { m: vec![m], zero }
    }

    /// Every accumulator, not only the breakpoints.
    fn exhaustive(r: &Requant) {
        let [low, high] = r.range[0];
        for acc in low..=high {
            assert_eq!(r.apply(0, acc), r.define(0, acc), "{acc} of {:?}", r.form);
        }
    }

    #[test]
    fn powers_of_two_round_half_to_even() {
        let r = requantise(Format { signed: true, bits: 8 }, -128, 127, law(0.0625, 3), vec![[-5000, 5000]]);
        let RequantForm::MultiplyShift { half_even, shift, .. } = r.form else { panic!("{:?}", r.form) };
        assert!(half_even && shift == 4);
        exhaustive(&r);
    }

    #[test]
    fn few_levels_are_thresholds_and_unreached_levels_have_none_to_meet() {
        let r = requantise(Format { signed: false, bits: 2 }, 0, 3, law(0.01, 0), vec![[-100, 200]]);
        assert_eq!(r.form, RequantForm::Thresholds(vec![vec![51, 150, 201]]));
        exhaustive(&r);
    }

    /// Steps of irregular length: no line has them.
    #[test]
    fn a_line_is_refused_where_steps_are_irregular() {
        let s = Steps { low: 0, high: 100, first: 0, at: vec![3, 4, 9, 10, 30, 31, 80] };
        assert!(multiply_shift(std::slice::from_ref(&s), &[0.07], 0, 0, 255).is_none());
        let t = thresholds(&s, 0, 255);
        assert_eq!((t.len(), &t[..7]), (255, &s.at[..]));
        assert!(t[7..].iter().all(|&t| t == 101));
    }

    /// A multiplier and a range for which rounding to f32 first moves steps: found in a quantised network.
    #[test]
    fn two_roundings_where_no_line_is_equal() {
        let r = requantise(Format { signed: false, bits: 8 }, 0, 255, law(0.0001819064, 0), vec![[-990_750, 1_116_315]]);
        let r2 = requantise(Format { signed: false, bits: 8 }, 0, 255, law(6.374418e-5, 128), vec![[-7_281_938, 6_000_000]]);
        assert!([&r, &r2].iter().any(|r| r.form.name() == "float"), "{:?}", r.form);
        exhaustive(&r);
        exhaustive(&r2);
    }

    /// A form that is off by one at a single breakpoint is not accepted.
    #[test]
    fn the_proof_sees_a_single_wrong_step() {
        let l = law(0.0123, -5);
        let s = steps_of(&l, 0, [-9000, 9000], -128, 127);
        assert!(s.equal(|acc| l.apply(0, acc, -128, 127)));
        let b = s.at[100];
        assert!(!s.equal(|acc| if acc == b { l.apply(0, b - 1, -128, 127) } else { l.apply(0, acc, -128, 127) }));
        assert!(!s.equal(|acc| if acc == b - 1 { l.apply(0, b, -128, 127) } else { l.apply(0, acc, -128, 127) }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn forms_equal_the_law_for_every_accumulator(
            m in prop_oneof![1e-4f32..0.5, prop::sample::select(vec![0.5f32, 0.25, 0.75, 0.0078125, 1.0, 3.0])],
            zero in -128i64..=127, low in -40_000i64..1000, size in 0i64..60_000, bits in 1u32..=8, signed in any::<bool>(), cut in 0i64..20,
        ) {
            let out = Format { signed, bits };
            let (min, max) = (out.min() + cut.min(out.max() - out.min()), out.max());
            exhaustive(&requantise(out, min, max, law(m, zero), vec![[low, low + size]]));
        }

        /// Large accumulators, which f32 rounds: all breakpoints and random places.
        #[test]
        fn wide_accumulators_are_equal_too(m in 1e-8f32..1e-5, zero in 0i64..=255, probes in prop::collection::vec(-2_000_000_000i64..2_000_000_000, 50)) {
            let out = Format { signed: false, bits: 8 };
            let r = requantise(out, 0, 255, law(m, zero), vec![[-2_000_000_000, 2_000_000_000]]);
            let s = steps_of(r.law.as_ref().unwrap(), 0, r.range[0], 0, 255);
            let near = s.at.iter().flat_map(|&b| [b - 1, b, b + 1]);
            for acc in near.chain(probes) {
                prop_assert_eq!(r.apply(0, acc), r.define(0, acc));
            }
        }

        #[test]
        fn channels_share_a_shift(ms in prop::collection::vec(1e-3f32..0.1, 1..12)) {
            let range: Vec<[i64; 2]> = ms.iter().enumerate().map(|(i, _)| [-3000 - 10 * i as i64, 2000 + 7 * i as i64]).collect();
            let r = requantise(Format { signed: true, bits: 8 }, -128, 127, Law { m: ms.clone(), zero: 1 }, range.clone());
            for (c, [low, high]) in range.into_iter().enumerate() {
                for acc in low..=high {
                    prop_assert_eq!(r.apply(c, acc), r.define(c, acc));
                }
            }
        }
    }
}
