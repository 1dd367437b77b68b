//! From the definition of a requantisation to hardware: a multiplication and a shift, or thresholds, shown to be equal.
//!
//! `F(acc) = clamp(saturate(rint_half_even(f32(acc) * m) + zero), min, max)` never falls as `acc` grows (`m > 0`), and so do the forms here. Two
//! such functions are equal on `low..=high` if they are equal at its ends and step at the same places. So: the *breakpoints* of `F` (the
//! least `acc` that gives `k` or more, for each `k`) are found by search, and a form is taken only if it steps exactly there.
//!
//! For `(acc * mul + add) >> shift` with given `mul` and `shift`, each breakpoint `b` of level `k` asks for
//! `k * 2^shift - b * mul <= add < k * 2^shift - (b - 1) * mul`: an interval for `add`. The least shift with a `mul` near `m * 2^shift` whose
//! intervals meet, for all channels, is taken. Where a scale is a power of two, ties occur, and only rounding half to even is equal.
//! Where nothing is found, or where there are few levels, there are thresholds: the breakpoints themselves.

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
            RequantForm::Thresholds(lists) => min + lists[channel % lists.len()].partition_point(|&t| t <= acc) as i64,
        }
    }
    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            RequantForm::MultiplyShift { .. } => "multiply-shift",
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
    if !half_even {
        return (product + add) >> shift;
    }
    if shift == 0 {
        return product + add;
    }
    let half = 1i64 << (shift - 1);
    ((product + half - 1 + ((product >> shift) & 1)) >> shift) + add
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
    let form = form(&steps, &slopes, law.zero, min, max);
    Requant { out, min, max, form, law: Some(law), range }
}

/// Hardware for step functions, one a channel, whose slopes are about `slopes`.
pub fn form(steps: &[Steps], slopes: &[f64], zero: i64, min: i64, max: i64) -> RequantForm {
    if max - min > FEW
        && let Some(form) = multiply_shift(steps, slopes, zero, min, max)
    {
        return form;
    }
    RequantForm::Thresholds(steps.iter().map(|s| thresholds(s, min, max)).collect())
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
    for shift in 0..=SHIFTS {
        for half_even in [false, true] {
            let mut found = vec![(0, 0); steps.len()];
            let failed = order.iter().position(|&c| {
                let pair = match half_even {
                    false => rounding_down(&steps[c], slopes[c % slopes.len()], shift, min, max),
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

/// Factor and summand with which rounding down is equal.
fn rounding_down(s: &Steps, slope: f64, shift: u32, min: i64, max: i64) -> Option<(i64, i64)> {
    let near = (slope * (1i64 << shift) as f64).round();
    if near > FACTOR as f64 {
        return None;
    }
    (near as i64 - 1..=near as i64 + 1).filter(|&mul| mul > 0).find_map(|mul| {
        let wide = |k: i64| i128::from(k) << shift;
        let times = |b: i64| i128::from(b) * i128::from(mul);
        let (mut least, mut most) = (i128::MIN, i128::MAX);
        let mut reach = |k: i64, b: i64| least = least.max(wide(k) - times(b));
        let mut stay = |k: i64, b: i64| most = most.min(wide(k) - 1 - times(b));
        for (i, &b) in s.at.iter().enumerate() {
            let k = s.first + 1 + i as i64;
            reach(k, b);
            stay(k, b - 1);
        }
        // At the ends a limit may do it.
        if s.first > min {
            reach(s.first, s.low);
        }
        if s.last() < max {
            stay(s.last() + 1, s.high);
        }
        if least > most {
            return None;
        }
        let add = match (least, most) {
            (i128::MIN, i128::MAX) => 0,
            (i128::MIN, most) => most,
            (least, i128::MAX) => least,
            (least, most) => least + (most - least) / 2,
        };
        i64::try_from(add).ok().map(|add| (mul, add))
    })
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

    /// Where no factor up to the limit steps at the right places, thresholds are taken, and are equal too.
    #[test]
    fn what_no_factor_can_do_thresholds_do() {
        // Steps of irregular length: no line has them.
        let s =
            Steps { low: 0, high: 100, first: 0, at: (1..=20).map(|k| k + if k % 7 < 3 { 2 * k } else { k * k % 5 }).collect() };
        let mut at = s.at.clone();
        at.sort_unstable();
        at.dedup();
        let s = Steps { at, ..s };
        let last = s.last();
        assert!(multiply_shift(std::slice::from_ref(&s), &[last as f64 / 100.0], 0, 0, 255).is_none());
        let RequantForm::Thresholds(t) = form(std::slice::from_ref(&s), &[0.2], 0, 0, 255) else { panic!() };
        assert_eq!(t[0].len(), 255);
        assert_eq!(t[0][..s.at.len()], s.at[..]);
        assert!(t[0][s.at.len()..].iter().all(|&t| t == 101));
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
