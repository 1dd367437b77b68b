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
}

fn products(sum: Scalar, a: &[Scalar], b: &[Scalar]) -> Scalar {
    a.iter().zip(b).fold(sum, |sum, (&a, &b)| sum + a * b)
}

/// Sums in f32 of such factors, on a GPU.
fn tensor_core(s: &Sums, t: &TargetDesc, factors: DType) -> bool {
    t.block_threads > 0 && (s.dtype, s.broadcast, s.vector) == (DType::F32, factors, factors)
}

/// Factors of f32 that may be rounded, on a GPU.
fn rounded(s: &Sums, t: &TargetDesc, math: Math) -> bool {
    t.math == math && tensor_core(s, t, DType::F32)
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
        step: products,
        legal: |s, t| t.warpgroups && (tensor_core(s, t, DType::F16) || rounded(s, t, Math::F16)),
        per_cycle: 4.0,
        latency: 32.0,
        registers: [1, 1],
    },
    Row {
        name: "wgmma_bf16",
        depth: 16,
        step: products,
        legal: |s, t| t.warpgroups && (tensor_core(s, t, DType::BF16) || rounded(s, t, Math::Bf16)),
        per_cycle: 4.0,
        latency: 32.0,
        registers: [1, 1],
    },
    Row {
        name: "wgmma_tf32",
        depth: 8,
        step: products,
        legal: |s, t| t.warpgroups && rounded(s, t, Math::Tf32),
        per_cycle: 4.0,
        latency: 32.0,
        registers: [1, 1],
    },
    Row {
        name: "wgmma_i8",
        depth: 32,
        step: products,
        legal: |s, t| t.warpgroups && tensor_bytes(s, t),
        per_cycle: 4.0,
        latency: 32.0,
        registers: [1, 1],
    },
    Row {
        name: "mma_f16",
        depth: 16,
        step: products,
        legal: |s, t| tensor_core(s, t, DType::F16) || rounded(s, t, Math::F16),
        per_cycle: 1.0,
        latency: 18.0,
        registers: [1, 1],
    },
    Row {
        name: "mma_bf16",
        depth: 16,
        step: products,
        legal: |s, t| tensor_core(s, t, DType::BF16) || rounded(s, t, Math::Bf16),
        per_cycle: 1.0,
        latency: 18.0,
        registers: [1, 1],
    },
    Row {
        name: "mma_tf32",
        depth: 8,
        step: products,
        legal: |s, t| rounded(s, t, Math::Tf32),
        per_cycle: 1.0,
        latency: 18.0,
        registers: [1, 1],
    },
    Row { name: "mma_i8", depth: 32, step: products, legal: tensor_bytes, per_cycle: 1.0, latency: 18.0, registers: [1, 1] },
    Row {
        name: "byte_dot",
        depth: 4,
        step: |sum, a, b| a.iter().zip(b).fold(sum, |sum, (&a, &b)| sum + a * b),
        legal: |sums, target| {
            target.byte_dot && sums.groups == 4 && (sums.dtype, sums.broadcast, sums.vector) == (DType::I32, DType::U8, DType::I8)
        },
        per_cycle: 2.0,
        latency: 4.0,
        registers: [1, 1],
    },
    // Bytes widened to 16 bits, even and odd ones apart: two products of pairs.
    Row {
        name: "byte_pairs",
        depth: 4,
        step: products,
        legal: |sums, target| {
            let factors = (sums.dtype, sums.broadcast, sums.vector) == (DType::I32, DType::U8, DType::I8);
            !target.byte_dot && target.byte_pairs && sums.groups == 4 && factors
        },
        per_cycle: 0.5,
        latency: 2.0,
        registers: [2, 3],
    },
    Row {
        name: "bf16_dot",
        depth: 2,
        step: pair,
        legal: |s, t| {
            let factors = (s.dtype, s.broadcast, s.vector) == (DType::F32, DType::BF16, DType::BF16);
            t.bf16_dot && t.math == Math::Bf16 && t.block_threads == 0 && factors && s.groups % 2 == 0
        },
        per_cycle: 1.0,
        latency: 6.0,
        registers: [1, 1],
    },
    Row {
        name: "fma",
        depth: 1,
        step: |sum, a, b| Scalar::fma(a[0], b[0], sum),
        legal: |sums, target| target.fma && sums.dtype.is_float(),
        per_cycle: 2.0,
        latency: 4.0,
        registers: [1, 1],
    },
    Row {
        name: "mul_add",
        depth: 1,
        step: |sum, a, b| Scalar::binary(Binary::Add, sum, a[0] * b[0]),
        legal: |_, _| true,
        per_cycle: 1.0, // two instructions, of which only the sum is in the chain
        latency: 4.0,
        registers: [1, 1],
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
    use infc_ir::eval;

    #[test]
    fn rows_compute_sums_of_products_and_fit_their_machines() {
        // On small integers every order and rounding gives the same.
        for dtype in [DType::F32, DType::F64, DType::I32, DType::I64] {
            let takes = |r: &&Row| match r.name {
                "fma" => dtype.is_float(),
                "bf16_dot" => dtype == DType::F32,
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
        let sums = |dtype, broadcast, vector| Sums { dtype, broadcast, vector, groups: 4 };
        let (floats, bytes) = (sums(DType::F32, DType::F32, DType::F32), sums(DType::I32, DType::U8, DType::I8));
        let signed = sums(DType::I32, DType::I8, DType::I8);
        assert_eq!([floats, bytes, signed].map(|s| choose(&s, &target).name), ["fma", "mul_add", "mul_add"]);
        target.byte_pairs = true;
        assert_eq!([floats, bytes, signed].map(|s| choose(&s, &target).name), ["fma", "byte_pairs", "mul_add"]);
        (target.fma, target.byte_dot) = (false, true);
        assert_eq!([floats, bytes, signed].map(|s| choose(&s, &target).name), ["mul_add", "byte_dot", "mul_add"]);
        assert_eq!(choose(&Sums { groups: 1, ..bytes }, &target).name, "mul_add");
        (target.fma, target.bf16_dot) = (true, true);
        let shorts = Sums { groups: 2, ..sums(DType::F32, DType::BF16, DType::BF16) };
        assert_eq!(choose(&shorts, &target).name, "fma");
        target.math = Math::Bf16;
        assert_eq!([shorts, Sums { groups: 4, ..shorts }].map(|s| choose(&s, &target).name), ["bf16_dot"; 2]);
        assert_eq!([floats, Sums { groups: 1, ..shorts }].map(|s| choose(&s, &target).name), ["fma"; 2]);
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
    fn a_step_of_pairs_is_found_again() {
        let read = |k: usize| Scalar::read_at(DType::BF16, k, &[]).cast(DType::F32);
        let sum = Scalar::read_at(DType::F32, 4, &[]);
        let found = pair_of(pair(sum, &[read(0), read(1)], &[read(2), read(3)])).expect("a step");
        assert!(found.sum == sum && found.a == [read(0), read(1)] && found.b == [read(2), read(3)]);
        assert!(pair_of(sum).is_none() && pair_of(flushed(sum)).is_none());
    }
}
