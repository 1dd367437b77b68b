//! Intrinsic rows: a step of a sum of products as a machine does it, as data. A row says what it computes in our own terms, which
//! is also its generic form: a backend that has no instruction for it computes just that, with the same bits.
//!
//! The contraction builder asks here for the step of its inner loop, and its tile follows from the row's cost. A new instruction is a
//! row here and, where the generic form does not already become it, an emitter in the target's crate.

use crate::target::{Math, TargetDesc};
use infc_ir::DType;
use infc_ir::scalar::{Binary, Kind, Scalar, Unary};

/// One way to add products to a sum.
#[derive(Debug)]
pub struct Row {
    /// Its name in plans.
    pub name: &'static str,
    /// How many products a step adds: neighbours along k, of both factors. With more than one, the vector factor lies in groups of
    /// as many for each column.
    pub depth: usize,
    /// How many steps make a sum of its own, from zero on, of the factors' own dtype as they lie in memory; it is then widened and added to the sum. With 1, steps
    /// add to the sum itself.
    pub block: usize,
    /// The sum after a step, of the sum before and `depth` pairs of factors of its dtype.
    pub step: fn(sum: Scalar, a: &[Scalar], b: &[Scalar]) -> Scalar,
    /// May it make these sums on this machine?
    pub legal: fn(&Sums, &TargetDesc) -> bool,
    /// Steps on whole vectors that begin in a cycle.
    pub per_cycle: f64,
    /// Cycles from one step of a sum to its next.
    pub latency: f64,
    /// Registers that a step takes beside the sums: for each vector of the one factor, and for the other factor and what lies between.
    pub registers: [usize; 2],
    /// Cycles of the same units that it takes to bring an element to all lanes, where reading it from memory does not do that by itself.
    pub broadcast: f64,
}

/// What is to be added up.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// The sums.
    pub dtype: DType,
    /// The factor that is broadcast, as it lies in memory.
    pub broadcast: DType,
    /// The factor that is read in vectors, as it lies in memory.
    pub vector: DType,
    /// Groups of so many neighbours along k can be read: their places follow each other, and k is a multiple of it.
    pub groups: usize,
    /// The factor in vectors is constant, in panels, and none of its numbers is beyond [`SMALL`].
    pub small: bool,
}

/// With factors of this size at most, no sum of 16 products with numbers of f16 leaves its range, rounding included: it stays below half of the largest one.
pub const SMALL: f64 = 1.0 / 32.0;

impl Row {
    /// [`Row::registers`] on a machine, for tiles of so many rows.
    pub fn registers_on(&self, target: &TargetDesc, mr: usize) -> [usize; 2] {
        let elements = if target.eager_broadcast { mr + 1 } else { target.broadcast_registers as usize };
        [self.registers[0], self.registers[1].max(elements)]
    }
    /// Lanes of a vector of its steps on a machine, for sums of so many bytes.
    pub fn lanes(&self, target: &TargetDesc, bytes: usize) -> usize {
        target.lanes(if self.block > 1 { bytes / 2 } else { bytes })
    }
}

fn products(sum: Scalar, a: &[Scalar], b: &[Scalar]) -> Scalar {
    a.iter().zip(b).fold(sum, |sum, (&a, &b)| sum + a * b)
}

/// Sums in f32 of such factors, on a GPU.
fn tensor_core(s: &Sums, t: &TargetDesc, factors: DType) -> bool {
    t.block_threads > 0 && (s.dtype, s.broadcast, s.vector) == (DType::F32, factors, factors)
}

/// Factors of f32 that may be rounded, on a GPU. What one of them was made of may have been rounded when it was stored.
fn rounded(s: &Sums, t: &TargetDesc, math: Math) -> bool {
    let rounded = |d: DType| d == DType::F32 || Some(d) == math.narrow();
    t.math == math && t.block_threads > 0 && s.dtype == DType::F32 && rounded(s.broadcast) && rounded(s.vector)
}

/// Sums in f32 of products of f16.
fn halves(s: &Sums) -> bool {
    (s.dtype, s.broadcast, s.vector) == (DType::F32, DType::F16, DType::F16)
}

/// The number, or a zero of its sign where it is subnormal.
pub fn flushed(x: Scalar) -> Scalar {
    let (least, zero) = (Scalar::float(DType::F32, f64::from(f32::MIN_POSITIVE)), Scalar::float(DType::F32, 0.0));
    Scalar::select(Scalar::unary(Unary::Abs, x).lt(least), x * zero, x)
}

/// What [`flushed`] was made of.
pub fn unflushed(s: Scalar) -> Option<Scalar> {
    match s.kind() {
        Kind::Select(_, _, x) if x.dtype() == DType::F32 && flushed(*x) == s => Some(*x),
        _ => None,
    }
}

/// The step of `bf16_dot`, as Intel's manual has VDPBF16PS: the odd product first, each added with one rounding to nearest even; subnormal
/// numbers count as zeros, and so do subnormal sums.
fn pair(sum: Scalar, a: &[Scalar], b: &[Scalar]) -> Scalar {
    let add = |sum, k: usize| flushed(Scalar::fma(flushed(a[k]), flushed(b[k]), sum));
    add(add(flushed(sum), 1), 0)
}

/// A step of `bf16_dot`: the sum before, and both pairs of factors.
pub struct Pair {
    /// The sum before.
    pub sum: Scalar,
    /// The factors that are broadcast.
    pub a: [Scalar; 2],
    /// Those in vectors.
    pub b: [Scalar; 2],
}

/// The step of `bf16_dot` that a sum is.
pub fn pair_of(s: Scalar) -> Option<Pair> {
    let product = |s: Scalar| match unflushed(s)?.kind() {
        Kind::Fma(a, b, sum) => Some((unflushed(*a)?, unflushed(*b)?, *sum)),
        _ => None,
    };
    let (a0, b0, sum) = product(s)?;
    let (a1, b1, sum) = product(sum)?;
    Some(Pair { sum: unflushed(sum)?, a: [a0, a1], b: [b0, b1] })
}

/// The step of `amx_bf16` and `amx_f16`, as Intel's manual has TDPBF16PS and TDPFP16PS: products of even members and of odd ones are summed up apart, from zero on, each added
/// with one rounding to nearest even; then both sums are added, and then that to the sum before. Subnormal numbers count as zeros, and so
/// do subnormal results.
fn apart(sum: Scalar, a: &[Scalar], b: &[Scalar]) -> Scalar {
    let chain = |j: usize| {
        let members = a.iter().zip(b).skip(j).step_by(2);
        let zero = Scalar::float(DType::F32, 0.0);
        members.fold(zero, |sum, (&a, &b)| flushed(Scalar::fma(flushed(a), flushed(b), sum)))
    };
    let both = flushed(Scalar::binary(Binary::Add, chain(0), chain(1)));
    flushed(Scalar::binary(Binary::Add, flushed(sum), both))
}

/// A step of a tile of sums: the sum before, and all pairs of factors.
pub struct TileStep {
    /// The row.
    pub row: &'static Row,
    /// The sum before.
    pub sum: Scalar,
    /// The factors that are broadcast.
    pub a: Vec<Scalar>,
    /// Those in vectors.
    pub b: Vec<Scalar>,
}

/// The step of a row for tiles that a sum is: of bf16, f16 or bytes, as the factors' casts from memory say.
pub fn tile_step_of(s: Scalar) -> Option<TileStep> {
    let (sum, a, b) = if s.dtype() == DType::F32 { parts_of_apart(s)? } else { parts_of_products(s)? };
    let narrow = |s: &Scalar| match s.kind() {
        Kind::Cast(x) => Some(x.dtype()),
        _ => None,
    };
    let (broadcast, vector) = (narrow(a.first()?)?, narrow(b.first()?)?);
    let row = ROWS.iter().find(|r| r.name == tile_row(broadcast, vector))?;
    ((row.step)(sum, &a, &b) == s).then_some(TileStep { row, sum, a, b })
}

/// What [`apart`] was made of, if it was.
fn parts_of_apart(s: Scalar) -> Option<(Scalar, Vec<Scalar>, Vec<Scalar>)> {
    let added = |s: Scalar| match unflushed(s)?.kind() {
        Kind::Binary(Binary::Add, x, y) => Some((*x, *y)),
        _ => None,
    };
    let (before, both) = added(s)?;
    let (even, odd) = added(both)?;
    let mut pairs = vec![];
    let mut chains = [even, odd];
    while chains[0].as_float() != Some(0.0) {
        for c in [1, 0] {
            let Kind::Fma(a, b, sum) = unflushed(chains[c])?.kind() else { return None };
            pairs.push((unflushed(*a)?, unflushed(*b)?));
            chains[c] = *sum;
        }
    }
    let (a, b) = pairs.into_iter().rev().unzip();
    Some((unflushed(before)?, a, b))
}

/// What [`products`] was made of.
fn parts_of_products(s: Scalar) -> Option<(Scalar, Vec<Scalar>, Vec<Scalar>)> {
    let (mut sum, mut pairs) = (s, vec![]);
    while let Kind::Binary(Binary::Add, before, product) = sum.kind()
        && let Kind::Binary(Binary::Mul, a, b) = product.kind()
    {
        pairs.push((*a, *b));
        sum = *before;
    }
    let (a, b) = pairs.into_iter().rev().unzip();
    Some((sum, a, b))
}

/// The name of the row of tiles for factors of these dtypes; there may be none.
fn tile_row(broadcast: DType, vector: DType) -> &'static str {
    match (broadcast, vector) {
        (DType::BF16, DType::BF16) => "amx_bf16",
        (DType::F16, DType::F16) => "amx_f16",
        (DType::U8, DType::I8) => "amx_u8s8",
        (DType::I8, DType::I8) => "amx_s8s8",
        (DType::U8, DType::U8) => "amx_u8u8",
        (DType::I8, DType::U8) => "amx_s8u8",
        _ => "",
    }
}

/// Sums of bytes in tiles; groups of more neighbours than vectors take are those of tiles.
fn tile_bytes(s: &Sums, t: &TargetDesc, row: &str) -> bool {
    t.tile_bytes && t.block_threads == 0 && s.dtype == DType::I32 && s.groups > 4 && tile_row(s.broadcast, s.vector) == row
}

/// Sums of groups of four bytes in vectors: one factor is unsigned, the other signed.
fn four_bytes(s: &Sums) -> bool {
    let mixed = matches!((s.broadcast, s.vector), (DType::U8, DType::I8) | (DType::I8, DType::U8));
    s.dtype == DType::I32 && s.groups == 4 && mixed
}

fn is_byte(d: DType) -> bool {
    matches!(d, DType::I8 | DType::U8)
}

/// Sums of bytes in i32, on a GPU.
fn tensor_bytes(s: &Sums, t: &TargetDesc) -> bool {
    t.block_threads > 0 && s.dtype == DType::I32 && is_byte(s.broadcast) && is_byte(s.vector)
}

/// All rows, the best ones first. Those of a warp's matrix instruction (`mma`) make tiles of 16 rows and 8 columns, those of four warps
/// (`wgmma`) of 64 rows and up to 256 columns, at four times the products in a cycle; the order of their sums is the machine's.
pub static ROWS: &[Row] = &[
    Row {
        name: "wgmma_f16",
        depth: 16,
        block: 1,
        step: products,
        legal: |s, t| t.warpgroups && (tensor_core(s, t, DType::F16) || rounded(s, t, Math::F16)),
        per_cycle: 4.0,
        latency: 32.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "wgmma_bf16",
        depth: 16,
        block: 1,
        step: products,
        legal: |s, t| t.warpgroups && (tensor_core(s, t, DType::BF16) || rounded(s, t, Math::Bf16)),
        per_cycle: 4.0,
        latency: 32.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "wgmma_tf32",
        depth: 8,
        block: 1,
        step: products,
        legal: |s, t| t.warpgroups && rounded(s, t, Math::Tf32),
        per_cycle: 4.0,
        latency: 32.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "wgmma_i8",
        depth: 32,
        block: 1,
        step: products,
        legal: |s, t| t.warpgroups && tensor_bytes(s, t),
        per_cycle: 4.0,
        latency: 32.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "mma_f16",
        depth: 16,
        block: 1,
        step: products,
        legal: |s, t| tensor_core(s, t, DType::F16) || rounded(s, t, Math::F16),
        per_cycle: 1.0,
        latency: 18.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "mma_bf16",
        depth: 16,
        block: 1,
        step: products,
        legal: |s, t| tensor_core(s, t, DType::BF16) || rounded(s, t, Math::Bf16),
        per_cycle: 1.0,
        latency: 18.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "mma_tf32",
        depth: 8,
        block: 1,
        step: products,
        legal: |s, t| rounded(s, t, Math::Tf32),
        per_cycle: 1.0,
        latency: 18.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "mma_i8",
        depth: 32,
        block: 1,
        step: products,
        legal: tensor_bytes,
        per_cycle: 1.0,
        latency: 18.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    // Tiles of AMX: 16 rows of sums in 16 columns, and up to 64 bytes along k. The figures are those of Intel's optimisation manual (chapter 20): a
    // product of tiles begins every 16 cycles and takes 52. They were not measured.
    Row {
        name: "amx_bf16",
        depth: 32,
        block: 1,
        step: apart,
        legal: |s, t| {
            let factors = (s.dtype, s.broadcast, s.vector) == (DType::F32, DType::BF16, DType::BF16);
            t.tile_bf16 && t.math == Math::Bf16 && t.block_threads == 0 && factors && s.groups > 4
        },
        per_cycle: 1.0 / 16.0,
        latency: 52.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "amx_f16",
        depth: 32,
        block: 1,
        step: apart,
        legal: |s, t| t.tile_f16 && t.block_threads == 0 && halves(s) && s.groups > 4,
        per_cycle: 1.0 / 16.0,
        latency: 52.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "amx_u8s8",
        depth: 64,
        block: 1,
        step: products,
        legal: |s, t| tile_bytes(s, t, "amx_u8s8"),
        per_cycle: 1.0 / 16.0,
        latency: 52.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "amx_s8s8",
        depth: 64,
        block: 1,
        step: products,
        legal: |s, t| tile_bytes(s, t, "amx_s8s8"),
        per_cycle: 1.0 / 16.0,
        latency: 52.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "amx_u8u8",
        depth: 64,
        block: 1,
        step: products,
        legal: |s, t| tile_bytes(s, t, "amx_u8u8"),
        per_cycle: 1.0 / 16.0,
        latency: 52.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "amx_s8u8",
        depth: 64,
        block: 1,
        step: products,
        legal: |s, t| tile_bytes(s, t, "amx_s8u8"),
        per_cycle: 1.0 / 16.0,
        latency: 52.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "byte_dot",
        depth: 4,
        block: 1,
        step: |sum, a, b| a.iter().zip(b).fold(sum, |sum, (&a, &b)| sum + a * b),
        legal: |sums, target| target.byte_dot && four_bytes(sums),
        per_cycle: 2.0,
        latency: 4.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    // Arm's SDOT: a word is brought to all lanes by one of the units that multiply.
    Row {
        name: "byte_dot_signed",
        depth: 4,
        block: 1,
        step: products,
        legal: |s, t| {
            t.byte_dot_signed && s.dtype == DType::I32 && s.groups == 4 && (s.broadcast, s.vector) == (DType::I8, DType::I8)
        },
        per_cycle: 2.0,
        latency: 4.0,
        registers: [1, 1],
        broadcast: 0.5,
    },
    // Bytes widened to 16 bits, even and odd ones apart: two products of pairs.
    Row {
        name: "byte_pairs",
        depth: 4,
        block: 1,
        step: products,
        legal: |sums, target| !target.byte_dot && target.byte_pairs && four_bytes(sums),
        per_cycle: 0.5,
        latency: 2.0,
        registers: [2, 3],
        broadcast: 0.0,
    },
    Row {
        name: "bf16_dot",
        depth: 2,
        block: 1,
        step: pair,
        legal: |s, t| {
            let factors = (s.dtype, s.broadcast, s.vector) == (DType::F32, DType::BF16, DType::BF16);
            t.bf16_dot && t.math == Math::Bf16 && t.block_threads == 0 && factors && s.groups % 2 == 0
        },
        per_cycle: 2.0, // of Zen 5; half of it before
        latency: 6.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
    // Sums in f16 of a few products each, from zero on, that are added to the f32 before they lose more. A step takes half a cycle, and for each block
    // both halves of a vector are widened and added, in seven instructions of the same units, as is the one that brings 16 bits to all lanes. Machines with
    // tiles for f16 need none of it.
    Row {
        name: "f16_blocks",
        depth: 1,
        block: 16,
        step: |sum, a, b| Scalar::fma(a[0], b[0], sum),
        legal: |s, t| t.f16_fma && !t.tile_f16 && t.math == Math::F16 && t.block_threads == 0 && halves(s) && s.small,
        per_cycle: 1.0 / (0.5 + 3.5 / 16.0),
        latency: 4.0,
        registers: [1, 1],
        broadcast: 0.5,
    },
    Row {
        name: "fma",
        depth: 1,
        block: 1,
        step: |sum, a, b| Scalar::fma(a[0], b[0], sum),
        legal: |sums, target| target.fma && sums.dtype.is_float(),
        per_cycle: 2.0,
        latency: 6.0, // four by the books, but eight sums of Zen 5 reach 85 % of its peak, ten 90 %, twelve 96 %
        registers: [1, 1],
        broadcast: 0.0,
    },
    Row {
        name: "mul_add",
        depth: 1,
        block: 1,
        step: |sum, a, b| Scalar::binary(Binary::Add, sum, a[0] * b[0]),
        legal: |_, _| true,
        per_cycle: 1.0, // two instructions, of which only the sum is in the chain
        latency: 4.0,
        registers: [1, 1],
        broadcast: 0.0,
    },
];

/// The best row for sums on a machine.
pub fn choose(sums: &Sums, target: &TargetDesc) -> &'static Row {
    ROWS.iter().find(|r| (r.legal)(sums, target)).expect("the last row is always legal")
}

/// The row of that name.
pub fn named(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|r| r.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use infc_ir::{Expr, eval};

    #[test]
    fn rows_compute_sums_of_products_and_fit_their_machines() {
        // On small integers every order and rounding gives the same.
        for dtype in [DType::F32, DType::F64, DType::I32, DType::I64] {
            let takes = |r: &&Row| match r.name {
                "fma" => dtype.is_float(),
                "bf16_dot" | "amx_bf16" | "amx_f16" => dtype == DType::F32,
                _ => true,
            };
            for row in ROWS.iter().filter(takes) {
                let number = |v: i64| Scalar::number(dtype, v as f64);
                let (a, b): (Vec<_>, Vec<_>) = (0..row.depth as i64).map(|k| (number(3 + k), number(5 - 2 * k))).unzip();
                let sum = (row.step)(number(-7), &a, &b);
                let want = (0..row.depth as i64).map(|k| (3 + k) * (5 - 2 * k)).sum::<i64>() - 7;
                assert_eq!(sum.dtype(), dtype, "{}", row.name);
                assert_eq!(eval::fold(sum), number(want), "{} of {dtype}", row.name);
            }
        }
        let mut target = TargetDesc::from_toml(
            "name = \"t\"\nbackend = \"b\"\ndoc = \"\"\narch = \"x86_64\"\nfeatures = []\nvector_bytes = 32\nvector_registers = 16\n\
             fma = true\nl1_bytes = 32768\nl2_bytes = 524288\nl3_bytes = 2097152\n",
        )
        .expect("a machine file");
        let sums = |dtype, broadcast, vector| Sums { dtype, broadcast, vector, groups: 4, small: false };
        let (floats, bytes) = (sums(DType::F32, DType::F32, DType::F32), sums(DType::I32, DType::U8, DType::I8));
        let signed = sums(DType::I32, DType::I8, DType::I8);
        assert_eq!([floats, bytes, signed].map(|s| choose(&s, &target).name), ["fma", "mul_add", "mul_add"]);
        target.byte_pairs = true;
        assert_eq!([floats, bytes, signed].map(|s| choose(&s, &target).name), ["fma", "byte_pairs", "mul_add"]);
        target.byte_dot_signed = true;
        assert_eq!([bytes, signed].map(|s| choose(&s, &target).name), ["byte_pairs", "byte_dot_signed"]);
        target.byte_dot_signed = false;
        (target.fma, target.byte_dot) = (false, true);
        assert_eq!([floats, bytes, signed].map(|s| choose(&s, &target).name), ["mul_add", "byte_dot", "mul_add"]);
        assert_eq!(choose(&Sums { groups: 1, ..bytes }, &target).name, "mul_add");
        assert_eq!(choose(&sums(DType::I32, DType::I8, DType::U8), &target).name, "byte_dot");
        (target.fma, target.bf16_dot) = (true, true);
        let shorts = Sums { groups: 2, ..sums(DType::F32, DType::BF16, DType::BF16) };
        assert_eq!(choose(&shorts, &target).name, "fma");
        target.math = Math::Bf16;
        assert_eq!([shorts, Sums { groups: 4, ..shorts }].map(|s| choose(&s, &target).name), ["bf16_dot"; 2]);
        assert_eq!([floats, Sums { groups: 1, ..shorts }].map(|s| choose(&s, &target).name), ["fma"; 2]);
        // Tiles take groups that are longer than those of vectors.
        (target.tile_bf16, target.tile_bytes) = (true, true);
        let long = |dtype, broadcast, vector| Sums { groups: 16, ..sums(dtype, broadcast, vector) };
        let [s8, u8] = [DType::I8, DType::U8];
        let all = [(u8, s8), (s8, s8), (u8, u8), (s8, u8)].map(|(a, b)| choose(&long(DType::I32, a, b), &target).name);
        assert_eq!(all, ["amx_u8s8", "amx_s8s8", "amx_u8u8", "amx_s8u8"]);
        assert_eq!(choose(&Sums { groups: 16, ..shorts }, &target).name, "amx_bf16");
        assert_eq!(
            [bytes, shorts, long(DType::F32, DType::F32, DType::F32)].map(|s| choose(&s, &target).name),
            ["byte_dot", "bf16_dot", "fma"]
        );
        (target.tile_bf16, target.tile_bytes) = (false, false);
        // f16: in tiles whatever the mode, in blocks where the mode allows it and no sum can leave the range.
        let halves = Sums { groups: 16, small: true, ..sums(DType::F32, DType::F16, DType::F16) };
        (target.f16_fma, target.tile_f16) = (true, true);
        for math in [Math::F32, Math::F16] {
            target.math = math;
            assert_eq!([halves, Sums { groups: 4, ..halves }].map(|s| choose(&s, &target).name), ["amx_f16", "fma"]);
        }
        target.tile_f16 = false;
        assert_eq!(
            [halves, Sums { small: false, ..halves }, floats].map(|s| choose(&s, &target).name),
            ["f16_blocks", "fma", "fma"]
        );
        target.math = Math::F32;
        assert_eq!(choose(&halves, &target).name, "fma");
        target.f16_fma = false;
        // GPUs: those with warpgroups take their instructions first.
        (target.block_threads, target.math) = (128, Math::F32);
        let of = |d| sums(DType::F32, d, d);
        let all = [of(DType::F16), of(DType::BF16), of(DType::F32), bytes, signed];
        let names = |t: &TargetDesc| all.map(|s| choose(&s, t).name);
        target.byte_dot = false;
        assert_eq!(names(&target), ["mma_f16", "mma_bf16", "fma", "mma_i8", "mma_i8"]);
        target.warpgroups = true;
        assert_eq!(names(&target), ["wgmma_f16", "wgmma_bf16", "fma", "wgmma_i8", "wgmma_i8"]);
        for (math, row) in [(Math::Tf32, "wgmma_tf32"), (Math::Bf16, "wgmma_bf16"), (Math::F16, "wgmma_f16")] {
            target.math = math;
            assert_eq!(choose(&floats, &target).name, row);
            // One factor that was stored rounded goes with one that is rounded on the way; another dtype does not.
            for other in [DType::BF16, DType::F16] {
                let mixed = [sums(DType::F32, other, DType::F32), sums(DType::F32, DType::F32, other)];
                let want = if math.narrow() == Some(other) { row } else { "fma" };
                assert_eq!(mixed.map(|s| choose(&s, &target).name), [want; 2], "{other}");
            }
        }
        assert!(ROWS.iter().all(|r| std::ptr::eq(named(r.name).expect("listed"), r)));
    }

    /// Steps of the instruction on a Zen 4, in bits: sum, a0, a1, b0, b1, result.
    const STEPS: [[u32; 6]; 8] = [
        // The odd product is added first, and rounded: 2^24 + 1 is 2^24.
        [0x4b80_0000, 0x3f80, 0x3f80, 0x3f80, 0x3f80, 0x4b80_0000],
        [0x3f80_0000, 0xcb80, 0x4b80, 0x3f80, 0x3f80, 0x0000_0000],
        [0x3f80_0000, 0x4b80, 0xcb80, 0x3f80, 0x3f80, 0x3f80_0000],
        // Subnormal factors, sums before and results are zeros of their sign.
        [0x0000_0000, 0x0001, 0x0000, 0x7f00, 0x0000, 0x0000_0000],
        [0x0000_0001, 0x3f80, 0x0000, 0x0000, 0x0000, 0x0000_0000],
        [0x0080_0000, 0x8080, 0x0000, 0x3f00, 0x0000, 0x0000_0000],
        // A product beyond all floats meets a sum that brings it back.
        [0xff00_0000, 0x7f00, 0x0000, 0x4000, 0x0000, 0x7f00_0000],
        [0x7f80_0000, 0x7f80, 0x0000, 0xbf80, 0x0000, 0x7fc0_0000],
    ];

    #[test]
    fn pairs_are_added_as_the_instruction_does() {
        for step in STEPS {
            let word = |bits: u32| Scalar::float(DType::F32, f64::from(f32::from_bits(bits)));
            let half = |bits: u32| word(bits << 16);
            let [sum, a0, a1, b0, b1, want] = step;
            let got = eval::fold(pair(word(sum), &[half(a0), half(a1)], &[half(b0), half(b1)]));
            let (got, want) = (got.as_float().expect("a number") as f32, f32::from_bits(want));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{step:x?}: {got:e}");
        }
    }

    #[test]
    fn tiles_of_bf16_sum_even_and_odd_members_apart() {
        let word = |v: f32| Scalar::float(DType::F32, f64::from(v));
        let sum = |before: f32, a: &[f32], b: &[f32]| {
            let of = |v: &[f32]| v.iter().map(|&x| word(x)).collect::<Vec<_>>();
            eval::fold(apart(word(before), &of(a), &of(b))).as_float().expect("a number") as f32
        };
        let big = (1 << 24) as f32;
        // As Intel's manual has it: each chain begins at zero, the sum before comes last.
        assert_eq!(sum(0.0, &[big, 1.0, -big, 1.0], &[1.0; 4]), 2.0);
        assert_eq!(sum(0.0, &[big, 1.0, 1.0, 1.0], &[1.0; 4]), big + 2.0);
        assert_eq!(sum(big, &[1.0, 1.0, 1.0, 0.0], &[1.0; 4]), big + 4.0);
        let tiny = f32::from_bits(1);
        assert_eq!([sum(tiny, &[1.0, 0.0], &[0.0; 2]), sum(0.0, &[tiny, 0.0], &[1e30, 0.0])].map(f32::to_bits), [0, 0]);
        assert!(sum(1.0, &[f32::INFINITY, f32::NEG_INFINITY], &[1.0; 2]).is_nan());
    }

    #[test]
    fn a_step_of_tiles_is_found_again() {
        for row in ROWS.iter().filter(|r| r.name.starts_with("amx_")) {
            let [a, b] = match row.name {
                "amx_bf16" => [DType::BF16; 2],
                "amx_f16" => [DType::F16; 2],
                "amx_u8s8" => [DType::U8, DType::I8],
                "amx_s8s8" => [DType::I8; 2],
                "amx_u8u8" => [DType::U8; 2],
                _ => [DType::I8, DType::U8],
            };
            let dtype = if a.is_float() { DType::F32 } else { DType::I32 };
            for count in [4, 6, row.depth] {
                let reads = |source: usize, of: DType| {
                    (0..count as i64).map(|k| Scalar::read_at(of, source, &[Expr::int(k)]).cast(dtype)).collect::<Vec<_>>()
                };
                let (sum, a, b) = (Scalar::read_at(dtype, 2, &[]), reads(0, a), reads(1, b));
                let found = tile_step_of((row.step)(sum, &a, &b)).expect("a step");
                assert!(
                    found.row.name == row.name && found.sum == sum && found.a == a && found.b == b,
                    "{} of {count}",
                    row.name
                );
            }
        }
        let plain = Scalar::read_at(DType::F32, 0, &[]);
        assert!(tile_step_of(plain).is_none() && tile_step_of(flushed(plain)).is_none());
        assert!(tile_step_of(pair(plain, &[plain; 2], &[plain; 2])).is_none());
    }

    #[test]
    fn a_step_of_pairs_is_found_again() {
        let read = |k: usize| Scalar::read_at(DType::BF16, k, &[]).cast(DType::F32);
        let sum = Scalar::read_at(DType::F32, 4, &[]);
        let found = pair_of(pair(sum, &[read(0), read(1)], &[read(2), read(3)])).expect("a step");
        assert!(found.sum == sum && found.a == [read(0), read(1)] && found.b == [read(2), read(3)]);
        assert!(pair_of(sum).is_none() && pair_of(flushed(sum)).is_none());
    }
}
