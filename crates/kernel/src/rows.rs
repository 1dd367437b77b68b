//! Intrinsic rows: a step of a sum of products as a machine does it, as data. A row says what it computes in our own terms, which
//! is also its generic form: a backend that has no instruction for it computes just that, with the same bits.
//!
//! The contraction builder asks here for the step of its inner loop, and its tile follows from the row's cost. A new instruction is a
//! row here and, where the generic form does not already become it, an emitter in the target's crate.

use crate::target::{Math, TargetDesc};
use infc_ir::DType;
use infc_ir::scalar::{Binary, Scalar};

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

fn is_byte(d: DType) -> bool {
    matches!(d, DType::I8 | DType::U8)
}

/// All rows, the best ones first. Those of a warp's matrix instruction (`mma`) make tiles of 16 rows and 8 columns; the order of its sums is
/// the machine's.
pub static ROWS: &[Row] = &[
    Row {
        name: "mma_f16",
        depth: 16,
        step: products,
        legal: |s, t| tensor_core(s, t, DType::F16) || rounded(s, t, Math::F16),
        per_cycle: 1.0,
        latency: 18.0,
    },
    Row {
        name: "mma_bf16",
        depth: 16,
        step: products,
        legal: |s, t| tensor_core(s, t, DType::BF16) || rounded(s, t, Math::Bf16),
        per_cycle: 1.0,
        latency: 18.0,
    },
    Row { name: "mma_tf32", depth: 8, step: products, legal: |s, t| rounded(s, t, Math::Tf32), per_cycle: 1.0, latency: 18.0 },
    Row {
        name: "mma_i8",
        depth: 32,
        step: products,
        legal: |s, t| t.block_threads > 0 && s.dtype == DType::I32 && is_byte(s.broadcast) && is_byte(s.vector),
        per_cycle: 1.0,
        latency: 18.0,
    },
    Row {
        name: "byte_dot",
        depth: 4,
        step: |sum, a, b| a.iter().zip(b).fold(sum, |sum, (&a, &b)| sum + a * b),
        legal: |sums, target| {
            target.byte_dot && sums.groups == 4 && (sums.dtype, sums.broadcast, sums.vector) == (DType::I32, DType::U8, DType::I8)
        },
        per_cycle: 2.0,
        latency: 4.0,
    },
    Row {
        name: "fma",
        depth: 1,
        step: |sum, a, b| Scalar::fma(a[0], b[0], sum),
        legal: |sums, target| target.fma && sums.dtype.is_float(),
        per_cycle: 2.0,
        latency: 4.0,
    },
    Row {
        name: "mul_add",
        depth: 1,
        step: |sum, a, b| Scalar::binary(Binary::Add, sum, a[0] * b[0]),
        legal: |_, _| true,
        per_cycle: 1.0, // two instructions, of which only the sum is in the chain
        latency: 4.0,
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
            for row in ROWS.iter().filter(|r| r.name != "fma" || dtype.is_float()) {
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
        (target.fma, target.byte_dot) = (false, true);
        assert_eq!([floats, bytes, signed].map(|s| choose(&s, &target).name), ["mul_add", "byte_dot", "mul_add"]);
        assert_eq!(choose(&Sums { groups: 1, ..bytes }, &target).name, "mul_add");
        assert!(ROWS.iter().all(|r| std::ptr::eq(named(r.name).expect("listed"), r)));
    }
}
