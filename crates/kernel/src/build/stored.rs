//! Constant factors of f32 that have few values, kept as narrow as they are: integers of 2, 4 or 8 bits with scales, or bf16, widened where they are read.
//!
//! Weights that were quantised (DequantizeLinear of a constant, `infc quantize --scheme int4|int8|bf16`) come as f32. Here it is found again that
//! each is `(u - z) * s` in f32 for a small integer `u`, with `s` and `z` of its column or of its column's block along k, or that it is a bf16. It
//! looks at values, not at where they come from. Class: exact: each weight is the number that it was, and sums are those of f32.
//!
//! Words of 32 bits hold neighbours along k of a column, so that one load serves several steps. A table has for each tile of columns and
//! each block a row of scales, one of zero points where they differ, and the rows of words.

use crate::build::{Cx, pack};
use crate::target::TargetDesc;
use infc_ir::compute::Compute;
use infc_ir::scalar::{Binary, Scalar};
use infc_ir::{DType, Expr, Tensor};
use std::fmt;

/// How a constant is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// What a weight is.
    pub form: Form,
    /// Neighbours along k that have one scale; 0 for all of a column.
    pub block: usize,
    /// What stands for 0.
    pub zeros: Zeros,
}

/// Zero points of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// The middle of what the integers can be.
    Middle,
    /// One for each scale, in the low byte of that, which is 0 in all scales.
    WithScales,
    /// One for each scale, in a row of their own.
    Row,
}

/// A narrow number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An integer of so many bits.
    Int(usize),
    /// A float with the exponent of f32.
    Bf16,
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.form {
            Form::Int(bits) => write!(f, "u{bits}")?,
            Form::Bf16 => f.write_str("bf16")?,
        }
        if self.block > 0 {
            write!(f, "/{}", self.block)?;
        }
        f.write_str(match self.zeros {
            Zeros::Middle => "",
            Zeros::WithScales => "+zeros",
            Zeros::Row => "+row",
        })
    }
}

impl Stored {
    fn bits(self) -> usize {
        match self.form {
            Form::Int(bits) => bits,
            Form::Bf16 => 16,
        }
    }
    /// Weights of a word: neighbours along k.
    pub fn members(self) -> usize {
        32 / self.bits()
    }
    /// Rows of a block that are no words.
    fn head(self) -> usize {
        match self.form {
            Form::Int(_) => 1 + usize::from(self.zeros == Zeros::Row),
            Form::Bf16 => 0,
        }
    }
    /// What stands for 0, where that is the middle: a power of two.
    fn middle(self) -> Option<f64> {
        match self.form {
            Form::Int(bits) if self.zeros == Zeros::Middle => Some(f64::from(1 << (bits - 1))),
            _ => None,
        }
    }
    /// Vectors that stay in registers beside the sums, for each vector of columns; and those on the way to a weight.
    pub fn registers(self) -> [usize; 2] {
        [1 + self.head() + usize::from(self.head() == 1), 8]
    }
    /// Instructions that make a vector of weights.
    fn work(self) -> f64 {
        match self.form {
            Form::Int(8) => 3.0,
            Form::Int(_) => 4.0,
            Form::Bf16 => 1.0,
        }
    }
}

/// A column or block of one: its scale, and the least and greatest multiple of it.
#[derive(Clone, Copy, Debug)]
struct Range {
    scale: f32,
    least: i32,
    most: i32,
}

/// Multiples that are looked for.
const MOST: i32 = 255;

/// The low byte of a scale.
const LOW: u32 = 255;

/// The scale of which all values are small multiples, if there is one. `hint`: what the greatest was in a block before.
fn range(values: &[f32], hint: &mut i32) -> Option<Range> {
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return values.iter().all(|v| v.to_bits() == 0).then_some(Range { scale: 1.0, least: 0, most: 0 });
    }
    for q in std::iter::once(*hint).chain(1..=MOST).filter(|q| *q > 0) {
        let near = largest / q as f32;
        if !near.is_normal() || near > 1e30 {
            return None;
        }
        // A multiple is rounded, so that the scale may be a neighbour of the quotient.
        // A short one is preferred.
        let short = near.to_bits().saturating_add(LOW / 2) & !LOW;
        let others = [0i32, 1, -1, 2, -2].map(|d| near.to_bits().wrapping_add_signed(d));
        for scale in std::iter::once(short).chain(others).map(f32::from_bits) {
            let mut found = Range { scale, least: i32::MAX, most: i32::MIN };
            let fits = values.iter().all(|&v| {
                let multiple = (v / scale).round() + 0.0; // no zero with a sign
                let same = multiple.abs() <= MOST as f32 && (multiple * scale).to_bits() == v.to_bits();
                found.least = found.least.min(multiple as i32);
                found.most = found.most.max(multiple as i32);
                same && i64::from(found.most) - i64::from(found.least) <= i64::from(MOST)
            });
            // A finer scale than needed, which can only be that of the hint.
            let common = || values.iter().fold(0, |d, &v| gcd(d, (v / scale).round() as i32));
            if fits && common() == 1 {
                *hint = q;
                return Some(found);
            }
        }
    }
    None
}

/// Bits of the integers in these ranges.
fn bits_of(ranges: &[Range]) -> Option<usize> {
    [2, 4, 8].into_iter().find(|&bits| ranges.iter().all(|r| r.most - r.least < 1 << bits))
}

fn gcd(a: i32, b: i32) -> i32 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

/// A factor that can be stored narrow: how, its columns one after another, and the scales of their blocks.
pub struct Found {
    /// How.
    pub stored: Stored,
    columns: Tensor,
    depth: usize,
    ranges: Vec<Range>,
}

/// Blocks that are tried, if not all of a column has one scale.
const BLOCKS: [usize; 7] = [1024, 512, 256, 128, 64, 32, 16];

/// Looks for a narrow form of a constant factor. `index` is that of [`pack::panels`]: variable 0 is n, the others are k.
pub fn find(t: &Tensor, index: &[Expr], n: usize, k: &[usize]) -> Option<Found> {
    let depth: usize = k.iter().product();
    if t.dtype != DType::F32 || n * depth < LEAST {
        return None;
    }
    // Floats as they come from training fail in the first column.
    let first = pack::panels(t, index, 1, k, 1)?.to_vec::<f32>();
    let bf16 = |values: &[f32]| values.iter().all(|v| v.to_bits() & 0xffff == 0);
    let inner = *k.last()?;
    let blocks = std::iter::once(0).chain(BLOCKS.into_iter().filter(|b| depth == inner && depth % b == 0 && depth > *b));
    let of = |values: &[f32], block: usize| {
        let mut hint = 0;
        let size = if block == 0 { depth } else { block };
        values.chunks(size).map(|c| range(c, &mut hint)).collect::<Option<Vec<_>>>()
    };
    // The block with the fewest bits.
    let block = blocks
        .filter_map(|b| {
            let ranges = of(&first, b)?;
            Some((bits_of(&ranges)? * depth + 32 * ranges.len(), b))
        })
        .min()
        .map(|(_, b)| b);
    if block.is_none() && !bf16(&first) {
        return None;
    }
    let columns = pack::panels(t, index, n, k, 1)?;
    let values = columns.to_vec::<f32>();
    let integers = block.and_then(|block| {
        let mut ranges = values.chunks(depth).map(|c| of(c, block)).collect::<Option<Vec<_>>>()?.concat();
        let bits = bits_of(&ranges)?;
        // Zero itself is among the integers where there is room.
        ranges.iter_mut().filter(|r| r.most < 1 << bits).for_each(|r| r.least = r.least.min(0));
        let half = 1 << (bits - 1);
        let middle = ranges.iter().all(|r| r.least >= -half && r.most < half);
        let short = ranges.iter().all(|r| r.scale.to_bits() & LOW == 0 && (-(LOW as i32)..=0).contains(&r.least));
        let zeros = if middle {
            Zeros::Middle
        } else if short {
            Zeros::WithScales
        } else {
            Zeros::Row
        };
        Some((Stored { form: Form::Int(bits), block, zeros }, ranges))
    });
    let shorts = || bf16(&values).then_some((Stored { form: Form::Bf16, block: 0, zeros: Zeros::Middle }, vec![]));
    let (stored, ranges) = integers.or_else(shorts)?;
    let whole = if stored.block == 0 { inner } else { stored.block } % stored.members() == 0;
    whole.then_some(Found { stored, columns, depth, ranges })
}

/// Fewer weights than this are not worth a look.
const LEAST: usize = 1024;

/// Bytes a cycle that come from the second level of cache, from the third, and from memory (AMD's Zen 4, one core).
const RATES: [f64; 3] = [32.0, 27.0, 10.0];

/// Is a product of `rows` rows faster with such weights than with f32? `each`: they are widened for each use, and not once for all rows.
pub fn gains(stored: Stored, weights: usize, rows: i64, per_cycle: f64, target: &TargetDesc) -> bool {
    let lanes = target.lanes(4) as f64;
    let time = |bits: usize, widen: f64| {
        let bytes = weights as u64 * bits as u64 / 8;
        let rate = match bytes {
            b if b <= target.l2_bytes => RATES[0],
            b if b <= target.l3_bytes => RATES[1],
            _ => RATES[2],
        };
        (lanes * bits as f64 / 8.0 / rate).max((rows as f64 + widen) / per_cycle)
    };
    let moved = if few(rows) { 0.0 } else { 2.0 };
    target.small || time(stored.bits(), stored.work() + moved) < time(32, 1.0)
}

/// So few rows that all are in one tile: weights are widened in the loop over k. Else a task widens a panel, and all its rows read that.
pub fn few(rows: i64) -> bool {
    rows <= 4
}

impl Found {
    /// The table for tiles of `nr` columns: `[tile, row, column]`.
    pub fn table(&self, nr: usize) -> Tensor {
        let Stored { form, block, zeros } = self.stored;
        let values = self.columns.to_vec::<f32>();
        let (members, head) = (self.stored.members(), self.stored.head());
        let block = if block == 0 { self.depth } else { block };
        let (blocks, rows) = (self.depth / block, head + block / members);
        let columns = values.len() / self.depth.max(1);
        let tiles = columns.div_ceil(nr);
        let mut words = vec![0u32; tiles * blocks * rows * nr];
        for (c, column) in values.chunks(self.depth).enumerate() {
            for (b, part) in column.chunks(block).enumerate() {
                let start = ((c / nr * blocks + b) * rows) * nr + c % nr;
                let range = self.ranges.get(c * blocks + b);
                let zero = range.map_or(0, |r| self.zero(*r));
                if let (Form::Int(_), Some(range)) = (form, range) {
                    words[start] = range.scale.to_bits();
                    match zeros {
                        Zeros::Middle => {}
                        Zeros::WithScales => words[start] |= zero as u32,
                        Zeros::Row => words[start + nr] = (zero as f32).to_bits(),
                    }
                }
                for (k, &v) in part.iter().enumerate() {
                    let narrow = match (form, range) {
                        (Form::Int(_), Some(range)) => ((v / range.scale).round() as i32 + zero) as u32,
                        _ => v.to_bits() >> 16,
                    };
                    words[start + (head + k / members) * nr] |= narrow << (k % members * self.stored.bits());
                }
            }
        }
        Tensor::from_vec([tiles, blocks * rows, nr], words)
    }

    /// What stands for 0.
    fn zero(&self, range: Range) -> i32 {
        match self.stored.form {
            Form::Int(_) => self.stored.middle().map_or(-range.least, |m| m as i32),
            Form::Bf16 => 0,
        }
    }
}

/// The step with its only k axis of more than one element cut into blocks with one scale.
pub fn cut(c: &Compute, stored: Stored) -> Compute {
    let mut c = c.clone();
    let rank = c.dims.len();
    let (Some(r), true) = (&mut c.reduction, stored.block > 0) else { return c };
    let last = r.axes.len() - 1;
    let block = stored.block as i64;
    let map: Vec<Expr> = (0..=rank + last)
        .map(|a| if a == rank + last { Expr::var(a) * block + Expr::var(a + 1) } else { Expr::var(a) })
        .collect();
    r.body = r.body.subst(&map);
    r.axes[last] = r.axes[last].div(Expr::int(block));
    r.axes.push(Expr::int(block));
    c
}

/// A table in the place of its constant.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The source.
    pub source: usize,
    /// How it is stored.
    pub stored: Stored,
}

impl Table {
    /// Packs the factor into its place.
    pub fn pack(cx: &mut Cx, source: usize, found: &Found, nr: usize) -> Table {
        cx.pack(source, found.table(nr));
        Table { source, stored: found.stored }
    }

    /// Member `j` of the word at `k`, whose last axis counts words, in column `v` of tile `tile`. `axes`: those of k, in weights.
    pub fn weight(&self, tile: Expr, k: &[Expr], axes: &[Expr], v: Expr, j: usize, fma: bool) -> Scalar {
        let s = self.stored;
        let members = Expr::from(s.members());
        // Blocks are the last axis but one if there are some; else all axes together are one block.
        let (outer, inner) = if s.block > 0 { (k.len() - 1, k.len() - 1) } else { (0, 0) };
        let words = |axis: usize| if axis + 1 == k.len() { axes[axis].div(members) } else { axes[axis] };
        let flat = (inner..k.len()).fold(Expr::int(0), |flat, a| flat * words(a) + k[a]);
        let rows = (inner..k.len()).map(words).fold(Expr::int(1), |a, b| a * b) + s.head() as i64;
        let block = (0..outer).fold(Expr::int(0), |flat, a| flat * axes[a] + k[a]);
        let at = |row: Expr| Scalar::read_at(DType::U32, self.source, &[tile, block * rows + row, v]);
        let word = at(flat + s.head() as i64);
        let number = |n: u32| Scalar::number(DType::U32, f64::from(n));
        match s.form {
            Form::Bf16 if j == 0 => Scalar::binary(Binary::Shl, word, number(16)).bitcast(DType::F32),
            Form::Bf16 => Scalar::binary(Binary::And, word, number(0xffff_0000)).bitcast(DType::F32),
            Form::Int(bits) => {
                let moved = if j == 0 { word } else { Scalar::binary(Binary::Shr, word, number((bits * j) as u32)) };
                let last = j + 1 == s.members();
                let u = if last { moved } else { Scalar::binary(Binary::And, moved, number((1 << bits) - 1)) };
                let float = |u: Scalar| u.cast(DType::I32).cast(DType::F32);
                let constant = |z: f64| Scalar::float(DType::F32, z);
                let (u, head) = (float(u), at(Expr::int(0)));
                let (scale, zero, exact) = match s.zeros {
                    Zeros::Middle => (head, constant(s.middle().unwrap_or(0.0)), true),
                    Zeros::WithScales => {
                        let [scale, zero] = [!LOW, LOW].map(|bits| Scalar::binary(Binary::And, head, number(bits)));
                        (scale, float(zero), true)
                    }
                    Zeros::Row => (head, at(Expr::int(1)).bitcast(DType::F32), false),
                };
                let scale = scale.bitcast(DType::F32);
                // Where the product of scale and zero point is exact, both forms are rounded once, to the same.
                if fma && exact { Scalar::fma(u, scale, constant(0.0) - scale * zero) } else { (u - zero) * scale }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(n: usize, k: usize, make: impl Fn(usize, usize) -> f32) -> Tensor {
        Tensor::from_vec([k, n], (0..k * n).map(|i| make(i % n, i / n)).collect())
    }

    fn stored(t: &Tensor) -> Option<Stored> {
        let [k, n] = t.dims[..] else { unreachable!("a matrix") };
        find(t, &[Expr::var(1), Expr::var(0)], n, &[k]).map(|f| f.stored)
    }

    /// An integer of so many bits.
    fn integer(n: usize, k: usize, bits: u32) -> i32 {
        ((n * 31 + k * 7919 + n * k * 13) as u32).wrapping_mul(0x9e37_79b9) as i32 >> (32 - bits)
    }

    #[test]
    fn quantised_weights_are_found_and_floats_are_not() {
        let scale = |n: usize| 0.013 / (1.0 + n as f32 * 0.37);
        for bits in [2, 4, 8] {
            let whole = columns(48, 64, |n, k| integer(n, k, bits) as f32 * scale(n));
            assert_eq!(stored(&whole), Some(Stored { form: Form::Int(bits as usize), block: 0, zeros: Zeros::Middle }), "{bits}");
            let blocks = columns(48, 128, |n, k| integer(n, k, bits) as f32 * scale(n + 7 * (k / 32)));
            assert_eq!(
                stored(&blocks),
                Some(Stored { form: Form::Int(bits as usize), block: 32, zeros: Zeros::Middle }),
                "{bits}"
            );
            let shifted = columns(48, 64, |n, k| (integer(n, k, bits) - (n % 3) as i32) as f32 * scale(n));
            assert_eq!(stored(&shifted), Some(Stored { form: Form::Int(bits as usize), block: 0, zeros: Zeros::Row }), "{bits}");
        }
        // A shift of numbers whose scales are short goes with these.
        let shifted = columns(48, 64, |n, k| (integer(n, k, 4) - (n % 3) as i32) as f32 * (1.0 + n as f32 / 256.0));
        assert_eq!(stored(&shifted), Some(Stored { form: Form::Int(4), block: 0, zeros: Zeros::WithScales }));
        let shorts = columns(48, 64, |n, k| f32::from_bits((0.3f32 / (1 + n * k) as f32).to_bits() & 0xffff_0000));
        assert_eq!(stored(&shorts), Some(Stored { form: Form::Bf16, block: 0, zeros: Zeros::Middle }));
        let float = |n: usize, k: usize| ((n * 13 + k * 7 + 1) as f32).sin();
        assert_eq!(stored(&columns(48, 64, float)), None);
        // One weight that is none of them; a zero with a sign; something that is no number.
        for odd in [0.0131f32, -0.0, f32::NAN, f32::INFINITY] {
            let t = columns(48, 64, |n, k| if (n, k) == (40, 33) { odd } else { integer(n, k, 4) as f32 * scale(n) });
            assert_eq!(stored(&t), None, "{odd}");
        }
    }
}
