//! The file of ranges: what `infc calibrate` writes and `infc quantize --ranges` reads.

use super::{Channels, Method, Stats, Tap};
use infc_ir::graph::{Graph, Value};
use infc_ir::{Problems, text};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Ranges of the inner values of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranges {
    /// The model that they belong to: a digest of its operators, names and weights.
    pub model: String,
    /// How they were made.
    pub method: Method,
    /// Whether ranges reach as far below 0 as above.
    pub symmetric: bool,
    /// Samples that were seen.
    pub samples: u64,
    /// By name of the value.
    pub values: BTreeMap<String, Range>,
}

/// What is known of one value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// Where the stored integers begin.
    pub low: f32,
    /// Where they end.
    pub high: f32,
    /// All that was seen.
    pub seen: (f32, f32),
    /// Statistics of its channels.
    pub channels: Channels,
}

/// A digest of a model: equal for equal operators, names and constants.
pub fn fingerprint(g: &Graph) -> String {
    let text = text::print_with(g, text::Options { elide: true });
    let fnv = |seed: u64| text.bytes().fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{:016x}{:016x}", fnv(0xcbf2_9ce4_8422_2325), fnv(0x6c62_272e_07bb_0142))
}

/// The name of a value in the file.
fn key(g: &Graph, v: Value) -> String {
    let name = &g.value(v).name;
    if name.is_empty() { format!("%{}", v.0) } else { name.clone() }
}

impl Ranges {
    /// Of statistics of a prepared model.
    pub fn of(g: &Graph, taps: &[Tap], stats: &[Stats], method: Method, symmetric: bool) -> Ranges {
        let range = |s: &Stats| {
            let (low, high) = s.range_by(method, symmetric);
            Range { low, high, seen: s.range, channels: s.channels() }
        };
        let values = taps.iter().zip(stats).map(|(t, s)| (key(g, t.value), range(s))).collect();
        let samples = stats.iter().map(|s| s.samples).max().unwrap_or(0);
        Ranges { model: fingerprint(g), method, symmetric, samples, values }
    }

    /// The range of a value.
    pub fn get(&self, g: &Graph, v: Value) -> Option<&Range> {
        self.values.get(&key(g, v))
    }

    /// As text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a record of numbers and text")
    }

    /// From text, for this prepared model.
    pub fn from_json(json: &str, source: &str, g: &Graph) -> Result<Ranges, Problems> {
        let help = "make one with `infc calibrate MODEL --data ... -o ranges.json`";
        let ranges: Ranges =
            serde_json::from_str(json).map_err(|e| Problems::one(source, format!("is no file of ranges: {e}"), help))?;
        if ranges.model != fingerprint(g) {
            let message = "belongs to another model (or to another version of this one)";
            return Err(Problems::one(source, message, help));
        }
        let bad = |r: &&Range| !(r.low.is_finite() && r.high.is_finite() && r.low <= 0.0 && r.high >= 0.0);
        if let Some((name, r)) = ranges.values.iter().find(|(_, r)| bad(r)) {
            let message = format!("the range of '{name}', {} to {}, does not hold 0 between finite numbers", r.low, r.high);
            return Err(Problems::one(source, message, help));
        }
        Ok(ranges)
    }
}
