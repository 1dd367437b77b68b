//! Estimates of hardware: formulas over formats, folding and sizes. No synthesis stands behind them; they are made to compare foldings and to
//! refuse early what cannot fit.
//!
//! - *Product* of `a` and `b` bits: on LUTs `a * b` if the narrower has at most 4 bits (with its share of the adder tree), else
//!   `ceil(a / A) * ceil(b / B)` multiplier blocks for the machine's factor widths `A`, `B` (one bit less for unsigned), over the products that share one.
//! - *Memory* of `depth` words of `width` bits: LUTs up to 64 words (`width * ceil(depth / 64)`), else 18-Kbit blocks: the least of
//!   `ceil(width / w) * ceil(depth / d)` over the block's shapes 512 x 36, 1024 x 18, 2048 x 9, 4096 x 4, 8192 x 2, 16384 x 1.
//! - *FIFO*: registers up to 2 beats, shift registers (32 bits a LUT) up to 64, else memory.
//! - *Matrix-vector unit*: `pe * simd` products, `pe` accumulators, weights in words of `pe * simd` weights, vector buffer, requantisation for `pe` lanes.
//! - *Requantisation* of a lane: one product of accumulator and factor, an adder (or six LUTs a bit for the two roundings of [`RequantForm::Float`]); or `levels` comparators of half a LUT a bit. Factors and summands are a
//!   memory of one word a fold.
//! - *Window*: the line buffer. *Rearrange*: two blocks. *Lookup*: a table a lane, 64 entries a LUT and bit.
//! - Every actor: 60 LUTs and 80 flip-flops of control, and a register of 2 bits a bit of its beats.

use crate::design::*;
use crate::machine::Machine;
use crate::report::Resources;
use crate::schedule::Schedule;

/// Cycles from the read of the last beat that a result needs to its write, in a pipeline of interval 1.
pub fn latency(d: &Design, a: &Actor) -> u64 {
    let tree = |n: usize| u64::from(n.next_power_of_two().trailing_zeros());
    let scaled = |r: &Option<Requant>| if r.is_some() { 4 } else { 0 };
    match &a.kind {
        Kind::Fork => 0,
        Kind::Source(_) | Kind::Sink(_) | Kind::Pad(_) | Kind::Width | Kind::Concat(_) | Kind::Slice(_) => 1,
        Kind::Window(_) | Kind::Rearrange(_) | Kind::Lookup(_) => 2,
        Kind::Mvu(m) => 3 + tree(m.simd) + scaled(&m.requant),
        Kind::Depthwise(m) => 3 + scaled(&m.requant),
        Kind::Pool(p) | Kind::GlobalPool(p) => 1 + scaled(&p.requant),
        Kind::Binary(Binary::Table { .. }) => 2,
        Kind::Binary(_) => 6,
        Kind::Requantise(_) => 4,
        Kind::Softmax(s) => match s.pair {
            Some(_) => 2,
            None => 24 + tree(d.input(a, 0).lanes),
        },
    }
}

/// A product of numbers of these formats, `count` of them.
fn products(m: &Machine, a: Format, b: Format, count: u64) -> Resources {
    if a.bits.min(b.bits) <= 4 {
        return Resources {
            lut: count * u64::from(a.bits * b.bits),
            ff: count * u64::from(a.bits + b.bits),
            ..Resources::default()
        };
    }
    let signed = |f: Format| f.bits + u32::from(!f.signed);
    let (wide, narrow) = (signed(a).max(signed(b)), signed(a).min(signed(b)));
    let blocks = u64::from(wide.div_ceil(m.dsp_width[0]) * narrow.div_ceil(m.dsp_width[1]));
    let shared = if wide <= 9 { u64::from(m.dsp_pack) } else { 1 };
    Resources { dsp: (blocks * count).div_ceil(shared), ..Resources::default() }
}

/// A memory.
pub fn memory(width: usize, depth: usize) -> Resources {
    let (width, depth) = (width as u64, depth as u64);
    if depth <= 64 || width * depth <= 1024 {
        return Resources { lut: width * depth.div_ceil(64), ..Resources::default() };
    }
    let shapes = [(36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384)];
    let blocks = shapes.into_iter().map(|(w, d)| width.div_ceil(w) * depth.div_ceil(d)).min().unwrap_or(0);
    Resources { bram18: blocks, ..Resources::default() }
}

/// A FIFO.
pub fn fifo(s: &Stream) -> Resources {
    let (width, depth) = (s.width() as u64, s.depth as u64);
    match depth {
        0..=2 => Resources { lut: width / 2 + 4, ff: 2 * width + 4, ..Resources::default() },
        3..=64 => Resources { lut: width * depth.div_ceil(32) + 12, ff: width + 16, ..Resources::default() },
        _ => memory(s.width(), s.depth) + Resources { lut: 40, ff: width + 40, ..Resources::default() },
    }
}

fn requant(m: &Machine, r: &Requant, acc: Format, lanes: usize, channels: usize) -> Resources {
    let lanes64 = lanes as u64;
    match &r.form {
        RequantForm::MultiplyShift { mul, add, wide, .. } => {
            let format = |v: &[i64]| Format::of(v.iter().min().copied().unwrap_or(0), v.iter().max().copied().unwrap_or(0));
            let (mul, add) = (format(mul), format(add));
            // Factors of one bit are shifts.
            let product = if mul.bits > 1 { products(m, acc, mul, lanes64) } else { Resources::default() };
            let words = if r.law.as_ref().is_some_and(|l| l.m.len() > 1) { channels / lanes } else { 1 };
            let adder =
                Resources { lut: lanes64 * u64::from(wide.bits), ff: lanes64 * u64::from(wide.bits), ..Resources::default() };
            product + adder + memory(lanes * (mul.bits + add.bits) as usize, words)
        }
        RequantForm::Float { mul, wide, .. } => {
            let words = if mul.len() > 1 { channels / lanes } else { 1 };
            let mul = Format::of(0, mul.iter().max().copied().unwrap_or(0));
            // Leading bits, two variable shifts and two sums.
            let round = Resources {
                lut: lanes64 * u64::from(6 * wide.bits),
                ff: lanes64 * u64::from(3 * wide.bits),
                ..Resources::default()
            };
            products(m, acc, mul, lanes64) + round + memory(lanes * (mul.bits + 6) as usize, words)
        }
        RequantForm::Thresholds(t) => {
            let (levels, bits) = (t.first().map_or(0, Vec::len), acc.bits as usize);
            let words = if t.len() > 1 { channels / lanes } else { 1 };
            let compare =
                Resources { lut: (lanes * levels * bits / 2) as u64, ff: (lanes * levels) as u64, ..Resources::default() };
            compare + memory(lanes * levels * bits, words)
        }
    }
}

/// An actor, without its FIFOs.
pub fn actor(m: &Machine, d: &Design, a: &Actor) -> Resources {
    let scaled = |r: &Option<Requant>, acc: Format, lanes: usize, channels: usize| match r {
        Some(r) => requant(m, r, acc, lanes, channels),
        None => Resources::default(),
    };
    let adders = |lanes: usize, f: Format| Resources {
        lut: lanes as u64 * u64::from(f.bits),
        ff: lanes as u64 * u64::from(f.bits),
        ..Resources::default()
    };
    let io: u64 = a.inputs.iter().chain(&a.outputs).map(|s| d.stream(*s).width() as u64).sum();
    let control = Resources { lut: 60, ff: 80 + 2 * io, ..Resources::default() };
    control
        + match &a.kind {
            Kind::Source(_) | Kind::Sink(_) | Kind::Fork | Kind::Slice(_) => Resources::default(),
            Kind::Concat(_) | Kind::Width => Resources { lut: io, ..Resources::default() },
            Kind::Pad(_) => Resources { lut: 60 + io, ..Resources::default() },
            Kind::Window(w) => {
                let s = d.input(a, 0);
                memory(s.width(), w.rows * s.shape[1] * s.shape[2] / s.lanes)
                    + Resources { lut: 240, ff: 160, ..Resources::default() }
            }
            Kind::Mvu(u) => {
                let x = d.input(a, 0).format;
                let (words, folds) = (u.pe * u.simd, u.groups * u.rows * u.cols / (u.pe * u.simd));
                let tree = Resources { lut: (words * u.acc.bits as usize / 2) as u64, ..Resources::default() };
                let buffer = if u.rows > u.pe { memory(u.simd * x.bits as usize, u.cols / u.simd) } else { Resources::default() };
                let tree = if u.weight.bits.min(x.bits) <= 4 { Resources::default() } else { tree };
                products(m, x, u.weight, words as u64)
                    + tree
                    + adders(u.pe, u.acc)
                    + memory(words * u.weight.bits as usize, folds)
                    + buffer
                    + scaled(&u.requant, u.acc, u.pe, u.groups * u.rows)
            }
            Kind::Depthwise(u) => {
                let x = d.input(a, 0).format;
                products(m, x, u.weight, u.pe as u64)
                    + adders(u.pe, u.acc)
                    + memory(u.pe * u.weight.bits as usize, u.channels * u.taps / u.pe)
                    + scaled(&u.requant, u.acc, u.pe, u.channels)
            }
            Kind::Pool(p) => adders(p.pe, p.acc) + scaled(&p.requant, p.acc, p.pe, 1),
            Kind::GlobalPool(p) => {
                adders(p.pe, p.acc) + memory(p.pe * p.acc.bits as usize, p.channels / p.pe) + scaled(&p.requant, p.acc, p.pe, 1)
            }
            Kind::Binary(b) => binary(m, d, a, b),
            Kind::Requantise(r) => requant(m, r, d.input(a, 0).format, d.input(a, 0).lanes, d.input(a, 0).shape[2]),
            Kind::Lookup(l) => {
                let bits = d.output(a, 0).width();
                Resources { lut: (bits * l.table.len().div_ceil(64)) as u64, ..Resources::default() }
            }
            Kind::Softmax(s) => softmax(m, d, a, s),
            Kind::Rearrange(r) => {
                let s = d.input(a, 0);
                memory(s.width(), 2 * r.block / s.lanes) + Resources { lut: 120, ff: 80, ..Resources::default() }
            }
        }
}

fn binary(m: &Machine, d: &Design, a: &Actor, b: &Binary) -> Resources {
    let (x, y) = (d.input(a, 0), d.input(a, 1));
    let lanes = x.lanes as u64;
    match b {
        Binary::Add { a_mul, b_mul, acc, requant: r, .. } => {
            let product = |f: Format, k: i64| {
                if k.count_ones() == 1 { Resources::default() } else { products(m, f, Format::of(0, k), lanes) }
            };
            let sum = Resources { lut: lanes * u64::from(acc.bits), ff: lanes * u64::from(acc.bits), ..Resources::default() };
            let scaled = r.as_ref().map_or(Resources::default(), |r| requant(m, r, *acc, x.lanes, 1));
            product(x.format, *a_mul) + product(y.format, *b_mul) + sum + scaled
        }
        Binary::Mul { acc, requant: r, .. } => products(m, x.format, y.format, lanes) + requant(m, r, *acc, x.lanes, 1),
        Binary::Table { table } => (0..lanes).map(|_| memory(d.output(a, 0).format.bits as usize, table.len())).sum(),
    }
}

fn softmax(m: &Machine, d: &Design, a: &Actor, s: &Softmax) -> Resources {
    let (x, y) = (d.input(a, 0), d.output(a, 0));
    if let Some(pair) = &s.pair {
        return Resources { lut: (y.width() * pair.len().div_ceil(64)) as u64, ..Resources::default() };
    }
    let lanes = x.lanes as u64;
    let (power, gain) = (Format { signed: false, bits: 18 }, Format::of(0, s.gain));
    // Tables, the sum, a product and a divider of some 30 bits a lane.
    let tables = Resources { lut: lanes * 18 * s.exp.len().div_ceil(64) as u64, ..Resources::default() };
    tables + products(m, power, gain, lanes) + Resources { lut: lanes * 1000, ff: lanes * 1000, ..Resources::default() }
}

/// Cycles of a frame.
pub fn cycles(d: &Design, a: &Actor) -> u64 {
    Schedule::of(d, a).iterations as u64
}

/// Multiplications with additions of a frame.
pub fn macs(d: &Design, a: &Actor) -> u64 {
    match &a.kind {
        Kind::Mvu(m) => (d.input(a, 0).elements() * m.rows) as u64,
        Kind::Depthwise(_) => d.input(a, 0).elements() as u64,
        _ => 0,
    }
}

/// The whole design.
pub fn total(m: &Machine, d: &Design) -> Resources {
    d.actors.iter().map(|a| actor(m, d, a)).chain(d.streams.iter().map(fifo)).sum()
}
