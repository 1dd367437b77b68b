//! Constant factors of f32 that have few values, kept as narrow as they are and widened where they are read: integers of 2, 4 or 8 bits and floats
//! of 8 bits with scales, f16, bf16.
//!
//! Weights that were stored narrow (DequantizeLinear or Cast of a constant, `infc quantize --scheme int4|int8|f16|bf16|f8e4m3fn|f8e5m2`) come as f32. Here
//! it is found again that each is `(u - z) * s` in f32 for a small integer `u`, or `u * s` for a small float, with `s` and `z` of its column or
//! of its column's block along k, or that it is an f16 or a bf16. It
//! looks at values, not at where they come from. Class: exact: each weight is the number that it was, and sums are those of f32.
//!
//! Words of 32 bits hold neighbours along k of a column, so that one load serves several steps. A table has for each tile of columns and
//! each block a row of scales, one of zero points where they differ, and the rows of words. Floats that an instruction or a cast of the backend widens
//! lie one by one.

use crate::build::{Cx, pack};
use crate::target::TargetDesc;
use infc_ir::compute::Compute;
use infc_ir::scalar::{Binary, Scalar};
use infc_ir::{DType, Expr, Tensor, eval};
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
    /// A float with the exponent of f32, two in a word.
    Bf16,
    /// A float of 8 bits with so many of mantissa and a scale. All codes are numbers, those of exponent 0 subnormal: of the formats
    /// with 4 and 5 bits of exponent it has the finite numbers, whatever their bias.
    Float8(u32),
    /// A number of a float dtype, by itself.
    Plain(DType),
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.form {
            Form::Int(bits) => write!(f, "u{bits}")?,
            Form::Bf16 => f.write_str("bf16")?,
            Form::Float8(mantissa) => write!(f, "e{}m{mantissa}", 7 - mantissa)?,
            Form::Plain(dtype) => write!(f, "{dtype}")?,
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
    fn float(form: Form) -> Stored {
        Stored { form, block: 0, zeros: Zeros::Middle }
    }
    /// Bits of a weight.
    pub fn bits(self) -> usize {
        match self.form {
            Form::Int(bits) => bits,
            Form::Bf16 => 16,
            Form::Float8(_) => 8,
            Form::Plain(dtype) => 8 * dtype.bytes(),
        }
    }
    /// Weights of a word: neighbours along k.
    pub fn members(self) -> usize {
        if matches!(self.form, Form::Plain(_)) { 1 } else { 32 / self.bits() }
    }
    /// Rows of a block that are no words.
    pub fn head(self) -> usize {
        match self.form {
            Form::Int(_) => 1 + usize::from(self.zeros == Zeros::Row),
            Form::Float8(_) => 1,
            Form::Bf16 | Form::Plain(_) => 0,
        }
    }
    /// What stands for 0, where that is the middle: a power of two.
    pub fn middle(self) -> Option<f64> {
        match self.form {
            Form::Int(bits) if self.zeros == Zeros::Middle => Some(f64::from(1 << (bits - 1))),
            _ => None,
        }
    }
    /// Vectors that stay in registers beside the sums, for each vector of columns; and those on the way to a weight.
    pub fn registers(self) -> [usize; 2] {
        [1 + self.head() + usize::from(self.head() == 1), if self.head() == 0 { 4 } else { 8 }]
    }
    /// Is a vector of weights an instruction or two, which units other than those for products take? Then weights are widened in the loop over k for any number of rows.
    pub fn cheap(self, target: &TargetDesc) -> bool {
        self.work(target) <= 2.0
    }
    /// Instructions that make a vector of weights.
    fn work(self, target: &TargetDesc) -> f64 {
        match self.form {
            Form::Int(8) => 3.0,
            Form::Int(_) | Form::Float8(_) => 4.0,
            Form::Bf16 => 1.0,
            Form::Plain(DType::BF16) => 2.0,
            Form::Plain(DType::F16) if target.widens_f16 => 2.0,
            Form::Plain(_) => 10.0,
        }
    }
}

/// A column or block of one: its scale, and the least and greatest multiple of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    scale: f32,
    least: i32,
    most: i32,
}

/// Multiples that are looked for.
const MOST: i32 = 255;

/// The low byte of a scale.
pub(super) const LOW: u32 = 255;

/// 1.5 * 2^23: floats of this size are whole numbers.
const WHOLE: f32 = 12_582_912.0;

/// The nearest whole number to a multiple of `scale`, without a sign where that is 0. Beyond 2^22 it is another large one.
fn multiple(v: f32, scale: f32) -> f32 {
    (v / scale + WHOLE) - WHOLE
}

/// The least and the greatest multiple of `scale`, if all values are small ones.
fn multiples(values: &[f32], scale: f32) -> Option<Range> {
    let (mut least, mut most) = (i32::MAX, i32::MIN);
    // No way out within a piece, so that it is done in vectors; the first is short, since most scales fail there.
    let (first, rest) = values.split_at(values.len().min(4));
    for piece in std::iter::once(first).chain(rest.chunks(32)) {
        let mut wrong = 0u32;
        for &v in piece {
            // The sum's low bits are the whole number, where that is small.
            let sum = v / scale + WHOLE;
            let (m, whole) = (sum - WHOLE, sum.to_bits().wrapping_sub(WHOLE.to_bits()) as i32);
            wrong |= u32::from(m.abs() > MOST as f32) | u32::from(m.is_nan()) | ((m * scale).to_bits() ^ v.to_bits());
            (least, most) = (least.min(whole), most.max(whole));
        }
        if wrong != 0 || most.wrapping_sub(least) > MOST {
            return None;
        }
    }
    Some(Range { scale, least, most })
}

/// Is 1 the greatest common divisor of the multiples?
fn has_no_divisor(values: &[f32], scale: f32) -> bool {
    let mut all = 0;
    values.iter().any(|&v| {
        all = gcd(all, multiple(v, scale) as i32);
        all == 1
    })
}

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
            // A finer scale than needed, which can only be that of the hint, has multiples with a common divisor.
            if let Some(found) = multiples(values, scale)
                && has_no_divisor(values, scale)
            {
                *hint = q;
                return Some(found);
            }
        }
    }
    None
}

/// The greatest exponent of a float of 8 bits.
fn top(mantissa: u32) -> i32 {
    (1 << (7 - mantissa)) - 1
}

/// The code of a multiple of `unit` as a float of 8 bits; `unit` is the least one.
fn code(v: f32, unit: f32, mantissa: u32) -> Option<u32> {
    let ratio = f64::from(v.abs()) / f64::from(unit);
    let mut exponent = if ratio < 1.0 { 0 } else { (ratio.log2().floor() as i32 - mantissa as i32).max(0) };
    let mut digits = (ratio / f64::from(exponent).exp2()).round() as u32;
    if digits >> (mantissa + 1) > 0 {
        (digits, exponent) = (digits / 2, exponent + 1);
    }
    let same = (f64::from(digits) * f64::from(exponent).exp2() * f64::from(unit)) as f32;
    if exponent >= top(mantissa) || same != v.abs() {
        return None;
    }
    // A number with the leading digit, or a subnormal one.
    let place = if digits >> mantissa > 0 { ((exponent as u32) << mantissa) + digits } else { digits };
    Some(place | (u32::from(v.is_sign_negative()) << 7))
}

/// The least number of which all values are multiples as floats of 8 bits, if there is one. `hint`: the digits of the greatest in a block before.
fn unit(values: &[f32], mantissa: u32, hint: &mut u32) -> Option<f32> {
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    if largest == 0.0 {
        return Some(1e-20);
    }
    // Their scale must be a number, and so must what it is a multiple of.
    if !(1e-20..=1e4).contains(&largest) {
        return None;
    }
    for digits in std::iter::once(*hint).chain(1 << mantissa..2 << mantissa).filter(|d| *d > 0) {
        let near = largest / digits as f32 / f64::from(top(mantissa) - 1).exp2() as f32;
        let short = near.to_bits().saturating_add(LOW / 2) & !LOW;
        let others = [0i32, 1, -1, 2, -2].map(|d| near.to_bits().wrapping_add_signed(d));
        for unit in std::iter::once(short).chain(others).map(f32::from_bits) {
            if unit.is_normal() && values.iter().all(|&v| code(v, unit, mantissa).is_some()) {
                *hint = digits;
                return Some(unit);
            }
        }
    }
    None
}

/// What a float of 8 bits has to be multiplied with, once exponent and mantissa are at the end of those of an f32.
fn float8_scale(unit: f32, mantissa: u32) -> f32 {
    (f64::from(unit) * f64::from(126 + mantissa).exp2()) as f32
}

/// The memory of a number in a float dtype, if it is one there.
pub(crate) fn plain(v: f32, dtype: DType) -> Option<u64> {
    let bits = match dtype {
        DType::F16 => u64::from(half::f16::from_f32(v).to_bits()),
        _ => eval::to_memory(dtype, f64::from(v).to_bits()),
    };
    let back = match dtype {
        DType::F16 => half::f16::from_bits(bits as u16).to_f32(),
        _ => f64::from_bits(eval::from_memory(dtype, bits)) as f32,
    };
    (back.to_bits() == v.to_bits()).then_some(bits)
}

/// Float dtypes that are tried, those with less bits first. What they stand for as NaN has its sign, so that all backends agree on it.
pub(crate) const FLOATS: [DType; 4] = [DType::F8E4M3FN, DType::F8E5M2, DType::BF16, DType::F16];

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
    pub(super) columns: Tensor,
    pub(super) depth: usize,
    ranges: Vec<Range>,
}

/// Blocks that are tried, if not all of a column has one scale.
const BLOCKS: [usize; 7] = [1024, 512, 256, 128, 64, 32, 16];

/// Scales of the blocks of some columns, one after another.
fn scales(columns: &[f32], depth: usize, form: Form, block: usize) -> Option<Vec<Range>> {
    let size = if block == 0 { depth } else { block };
    let of = |column: &[f32]| -> Option<Vec<Range>> {
        let (mut most, mut digits) = (0, 0);
        let one = |values: &[f32]| match form {
            Form::Float8(mantissa) => Some(Range { scale: unit(values, mantissa, &mut digits)?, least: 0, most: 0 }),
            _ => range(values, &mut most),
        };
        column.chunks(size).map(one).collect()
    };
    let some = |columns: &[f32]| Some(columns.chunks(depth).map(of).collect::<Option<Vec<_>>>()?.concat());
    // Columns know nothing of each other. Large models have very many.
    let threads = pack::threads(columns.len());
    if threads < 2 {
        return some(columns);
    }
    let each = (columns.len() / depth).div_ceil(threads) * depth;
    let found: Vec<Option<Vec<Range>>> = std::thread::scope(|scope| {
        let running: Vec<_> = columns.chunks(each).map(|part| scope.spawn(move || some(part))).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or(None)).collect()
    });
    Some(found.into_iter().collect::<Option<Vec<_>>>()?.concat())
}

/// The form of some columns that was thought of from the first one, with the scales of their blocks.
fn as_form(columns: &[f32], depth: usize, form: Form, block: usize) -> Option<(Stored, Vec<Range>)> {
    match form {
        Form::Int(_) => {
            let mut ranges = scales(columns, depth, form, block)?;
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
        }
        Form::Float8(_) => Some((Stored { block, ..Stored::float(form) }, scales(columns, depth, form, block)?)),
        Form::Plain(dtype) => columns.iter().all(|&v| plain(v, dtype).is_some()).then_some((Stored::float(form), vec![])),
        Form::Bf16 => columns.iter().all(|v| v.to_bits() & 0xffff == 0).then_some((Stored::float(form), vec![])),
    }
}

/// Looks for a narrow form of a constant factor, whose words are `whole` along k. `index` is that of [`pack::panels`]: variable 0 is n, the others are k.
pub fn find(t: &Tensor, index: &[Expr], n: usize, k: &[usize], whole: bool) -> Option<Found> {
    let depth: usize = k.iter().product();
    if t.dtype != DType::F32 || n * depth < LEAST {
        return None;
    }
    // Floats as they come from training fail in the first column.
    let first = pack::panels(t, index, 1, k, 1)?.to_vec::<f32>();
    let inner = *k.last()?;
    let blocks: Vec<usize> =
        std::iter::once(0).chain(BLOCKS.into_iter().filter(|b| depth == inner && depth % b == 0 && depth > *b)).collect();
    let scaled = [Form::Int(8), Form::Float8(3), Form::Float8(2)];
    let scaled = scaled.into_iter().flat_map(|form| blocks.iter().map(move |&block| (form, block)));
    let mut likely: Vec<(usize, Form, usize)> = scaled
        .filter_map(|(form, block)| {
            let (stored, ranges) = as_form(&first, depth, form, block)?;
            Some((stored.bits() * depth + 32 * ranges.len(), form, block))
        })
        .collect();
    // Plain 8-bit floats take more time than those with a scale, and are for infinities and what is no number.
    let floats = FLOATS.into_iter().map(Form::Plain).filter(|&form| as_form(&first, depth, form, 0).is_some());
    likely.extend(floats.map(|form| (Stored::float(form).bits() * depth + 64, form, 0)));
    likely.sort_by_key(|l| l.0);
    if likely.is_empty() {
        return None;
    }
    let columns = pack::panels(t, index, n, k, 1)?;
    let values = columns.to_vec::<f32>();
    // The first that fits all columns, of those that have the fewest bits in the first one.
    likely.into_iter().find_map(|(_, form, block)| {
        let pairs = form == Form::Plain(DType::BF16) && inner.is_multiple_of(2);
        let (stored, ranges) = as_form(&values, depth, if pairs { Form::Bf16 } else { form }, block)?;
        let fits = !whole || if stored.block == 0 { inner } else { stored.block }.is_multiple_of(stored.members());
        fits.then(|| Found { stored, columns: columns.clone(), depth, ranges })
    })
}

/// A constant factor in the form that [`find`] has found for it.
pub fn in_form(t: &Tensor, index: &[Expr], n: usize, k: &[usize], stored: Stored) -> Option<Found> {
    let depth: usize = k.iter().product();
    let columns = pack::panels(t, index, n, k, 1)?;
    let (same, ranges) = as_form(&columns.to_vec::<f32>(), depth, stored.form, stored.block)?;
    (same == stored).then_some(Found { stored, columns, depth, ranges })
}

/// A constant factor as integers of 8 bits at most with a scale for each block of so many neighbours along k, the last axis of `k`; zero points that are not the middle lie in rows of their own.
pub fn in_blocks(t: &Tensor, index: &[Expr], n: usize, k: &[usize]) -> Option<Found> {
    let (&block, depth) = (k.last()?, k.iter().product());
    if t.dtype != DType::F32 || n * depth < LEAST {
        return None;
    }
    let form = |columns: &[f32]| {
        let (stored, ranges) = as_form(columns, depth, Form::Int(8), block)?;
        let zeros = if stored.zeros == Zeros::Middle { Zeros::Middle } else { Zeros::Row };
        Some((Stored { zeros, ..stored }, ranges))
    };
    form(&pack::panels(t, index, 1, k, 1)?.to_vec::<f32>())?;
    let columns = pack::panels(t, index, n, k, 1)?;
    let (stored, ranges) = form(&columns.to_vec::<f32>())?;
    block.is_multiple_of(stored.members()).then_some(Found { stored, columns, depth, ranges })
}

/// Fewer weights than this are not worth a look.
const LEAST: usize = 1024;

/// Bytes a cycle that come from the second level of cache, from the third, and from memory (AMD's Zen 4, one core).
const RATES: [f64; 3] = [32.0, 27.0, 10.0];

/// Is a product of `rows` rows faster with such weights than with f32? Where the number of rows is open, it may be one as well as many: then one row has to
/// gain much, since many lose a little.
pub fn gains(stored: Stored, weights: usize, rows: Option<i64>, per_cycle: f64, target: &TargetDesc) -> bool {
    const MUCH: f64 = 1.5;
    let lanes = target.lanes(4) as f64;
    let (rows, least) = rows.map_or((1, MUCH), |rows| (rows, 1.0));
    let time = |bits: usize, widen: f64| {
        let bytes = weights as u64 * bits as u64 / 8;
        let rate = match bytes {
            b if b <= target.l2_bytes => RATES[0],
            b if b <= target.l3_bytes => RATES[1],
            _ => RATES[2],
        };
        (lanes * bits as f64 / 8.0 / rate).max((rows as f64 + widen) / per_cycle)
    };
    let moved = if few(rows) || stored.cheap(target) { 0.0 } else { 2.0 };
    target.small || time(stored.bits(), stored.work(target) + moved) * least < time(32, 1.0)
}

/// Most rows that are few.
pub const FEW: usize = 8;

/// So few rows that all are in one tile: weights are widened in the loop over k. Else a task widens a panel, and all its rows read that. Where the number of
/// rows is open, a task does the one or the other.
pub fn few(rows: i64) -> bool {
    rows <= FEW as i64
}

impl Found {
    /// The table for tiles of `nr` columns: `[tile, row, column]`.
    pub fn table(&self, nr: usize) -> Tensor {
        let bits = self.stored.bits();
        self.words(nr, &|member| member * bits)
    }

    /// The same table for integers, with other places in words: the bytes of a word hold four neighbours in their low bits, the next four in the bits above, and so on.
    pub fn bytes(&self, nr: usize) -> Tensor {
        let bits = self.stored.bits();
        self.words(nr, &|member| member % 4 * 8 + member / 4 * bits)
    }

    /// `place`: the lowest bit of each member of a word.
    fn words(&self, nr: usize, place: &dyn Fn(usize) -> usize) -> Tensor {
        let Stored { form, block, .. } = self.stored;
        let values = self.columns.to_vec::<f32>();
        let (members, head) = (self.stored.members(), self.stored.head());
        let block = if block == 0 { self.depth } else { block };
        let (blocks, rows) = (self.depth / block, head + block / members);
        let columns = values.len() / self.depth.max(1);
        let tiles = columns.div_ceil(nr);
        if let Form::Plain(dtype) = form {
            return plain_table(&values, [tiles, self.depth, nr], dtype);
        }
        let mut words = vec![0u32; tiles * blocks * rows * nr];
        for (c, column) in values.chunks(self.depth).enumerate() {
            for (b, part) in column.chunks(block).enumerate() {
                let start = ((c / nr * blocks + b) * rows) * nr + c % nr;
                let range = self.range(c * blocks + b);
                let head_of = self.head(range);
                (0..head).for_each(|row| words[start + row * nr] = head_of[row]);
                for (k, &v) in part.iter().enumerate() {
                    let narrow = self.code(v, range);
                    words[start + (head + k / members) * nr] |= narrow << place(k % members);
                }
            }
        }
        Tensor::from_vec([tiles, blocks * rows, nr], words)
    }

    /// A block by its number, those of a column one after another; none where blocks have nothing of their own.
    pub(super) fn range(&self, block: usize) -> Option<&Range> {
        self.ranges.get(block)
    }

    /// What stands before the words of a block, in as many rows as [`Stored::head`] says: its scale and its zero point.
    pub(super) fn head(&self, range: Option<&Range>) -> [u32; 2] {
        let Some(range) = range else { return [0; 2] };
        let zero = self.zero(*range);
        match (self.stored.form, self.stored.zeros) {
            (Form::Float8(mantissa), _) => [float8_scale(range.scale, mantissa).to_bits(), 0],
            (_, Zeros::Middle) => [range.scale.to_bits(), 0],
            (_, Zeros::WithScales) => [range.scale.to_bits() | zero as u32, 0],
            (_, Zeros::Row) => [range.scale.to_bits(), (zero as f32).to_bits()],
        }
    }

    /// A weight of a block in its bits.
    pub(super) fn code(&self, v: f32, range: Option<&Range>) -> u32 {
        match (self.stored.form, range) {
            (Form::Int(_), Some(range)) => (multiple(v, range.scale) as i32 + self.zero(*range)) as u32,
            (Form::Float8(mantissa), Some(range)) => code(v, range.scale, mantissa).expect("it was found"),
            (Form::Plain(dtype), _) => plain(v, dtype).expect("it was found") as u32,
            _ => v.to_bits() >> 16,
        }
    }

    /// What stands for 0.
    fn zero(&self, range: Range) -> i32 {
        match self.stored.form {
            Form::Int(_) => self.stored.middle().map_or(-range.least, |m| m as i32),
            Form::Bf16 | Form::Float8(_) | Form::Plain(_) => 0,
        }
    }
}

/// Numbers that are all of a float dtype in that.
pub(crate) fn as_floats(values: &[f32], dims: Vec<usize>, dtype: DType) -> Tensor {
    let width = dtype.bytes();
    let mut bytes = vec![0u8; values.len() * width];
    for (&v, place) in values.iter().zip(bytes.chunks_exact_mut(width)) {
        let narrow = plain(v, dtype).expect("it was found").to_le_bytes();
        place.copy_from_slice(&narrow[..width]);
    }
    Tensor::from_bytes(dtype, dims, bytes)
}

/// Columns one after another as a table of tiles of a float dtype.
fn plain_table(columns: &[f32], [tiles, depth, nr]: [usize; 3], dtype: DType) -> Tensor {
    let mut values = vec![0f32; tiles * depth * nr];
    for (c, column) in columns.chunks(depth).enumerate() {
        for (k, &v) in column.iter().enumerate() {
            values[(c / nr * depth + k) * nr + c % nr] = v;
        }
    }
    as_floats(&values, vec![tiles, depth, nr], dtype)
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
        let read = |dtype: DType, row: Expr| Scalar::read_at(dtype, self.source, &[tile, block * rows + row, v]);
        let at = |row: Expr| read(DType::U32, row);
        let word = at(flat + s.head() as i64);
        let number = |n: u32| Scalar::number(DType::U32, f64::from(n));
        match s.form {
            Form::Bf16 if j == 0 => Scalar::binary(Binary::Shl, word, number(16)).bitcast(DType::F32),
            Form::Bf16 => Scalar::binary(Binary::And, word, number(0xffff_0000)).bitcast(DType::F32),
            Form::Plain(dtype) => read(dtype, flat).cast(DType::F32),
            Form::Float8(mantissa) => {
                // The sign at its place, exponent and mantissa behind the places that only larger exponents need.
                let high = 24 - 8 * j as u32;
                let high = if high == 0 { word } else { Scalar::binary(Binary::Shl, word, number(high)) };
                let apart =
                    Scalar::binary(Binary::Shr, high.bitcast(DType::I32), Scalar::number(DType::I32, f64::from(mantissa + 1)));
                let field = Scalar::binary(Binary::And, apart.bitcast(DType::U32), number(0x8000_0000 | 0x7f << (23 - mantissa)));
                field.bitcast(DType::F32) * at(Expr::int(0)).bitcast(DType::F32)
            }
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
        find(t, &[Expr::var(1), Expr::var(0)], n, &[k], true).map(|f| f.stored)
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
        // Floats of 8 bits, with scales of columns and of blocks.
        let small = |dtype: DType, n: usize, k: usize| {
            let bits = integer(n, k, 8) as u64 & 0xff;
            let v = f64::from_bits(eval::from_memory(dtype, bits)) as f32;
            if v.is_finite() { v } else { 1.0 }
        };
        for (dtype, mantissa) in [(DType::F8E4M3FN, 3), (DType::F8E4M3FNUZ, 3), (DType::F8E5M2, 2), (DType::F8E5M2FNUZ, 2)] {
            let form = Form::Float8(mantissa);
            let whole = columns(48, 512, |n, k| small(dtype, n, k) * scale(n));
            assert_eq!(stored(&whole), Some(Stored::float(form)), "{dtype}");
            let blocks = columns(48, 512, |n, k| small(dtype, n, k) * scale(n + 7 * (k / 256)));
            assert_eq!(stored(&blocks), Some(Stored { block: 256, ..Stored::float(form) }), "{dtype}");
        }
        // What is no number, infinities and the smallest numbers need the formats themselves.
        for (dtype, odd) in [(DType::F8E4M3FN, f32::NAN), (DType::F8E5M2, f32::NEG_INFINITY), (DType::F16, f32::NAN)] {
            let make = |n: usize, k: usize| match dtype {
                _ if n % 5 == 0 && k == 7 => odd,
                DType::F16 => {
                    half::f16::from_f32(((n * 13 + k * 7 + 1) as f32).sin() * if k % 3 == 0 { 1e-6 } else { 1.0 }).to_f32()
                }
                _ => small(dtype, n, k),
            };
            assert_eq!(stored(&columns(48, 77, make)), Some(Stored::float(Form::Plain(dtype))), "{dtype}");
        }
        let odd = columns(48, 65, |n, k| f32::from_bits((0.3f32 / (1 + n * k) as f32).to_bits() & 0xffff_0000));
        assert_eq!(stored(&odd), Some(Stored::float(Form::Plain(DType::BF16))));
        let float = |n: usize, k: usize| ((n * 13 + k * 7 + 1) as f32).sin();
        assert_eq!(stored(&columns(48, 64, float)), None);
        // One weight that is none of them; something that is no number. A zero with a sign is a float, of 8 bits where the others are.
        for odd in [0.0131f32, f32::NAN, f32::INFINITY] {
            let t = columns(48, 64, |n, k| if (n, k) == (40, 33) { odd } else { integer(n, k, 4) as f32 * scale(n) });
            assert_eq!(stored(&t), None, "{odd}");
        }
        let t = columns(48, 64, |n, k| if (n, k) == (40, 33) { -0.0 } else { integer(n, k, 4) as f32 * scale(n) });
        assert_eq!(stored(&t), Some(Stored::float(Form::Float8(3))));
    }
}
