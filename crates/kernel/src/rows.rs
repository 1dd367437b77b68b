//! Intrinsic rows: one step of a sum of products as a machine does it, as data. A row says what it computes in our own terms, which
//! is also its generic form: a backend that has no instruction for it computes just that, with the same bits.
//!
//! The contraction builder asks here for the step of its inner loop, and its tile follows from the row's cost. A new instruction is a
//! row here and, where the generic form does not already become it, an emitter in the target's crate.

use crate::target::TargetDesc;
use infc_ir::DType;
use infc_ir::scalar::{Binary, Scalar};

/// One way to add a product to a sum.
#[derive(Debug)]
pub struct Row {
    /// Its name in plans.
    pub name: &'static str,
    /// The sum after a step, of the sum before and two factors of its dtype.
    pub step: fn(sum: Scalar, a: Scalar, b: Scalar) -> Scalar,
    /// May sums of this dtype be made by it on this machine?
    pub legal: fn(DType, &TargetDesc) -> bool,
    /// Steps on whole vectors that begin in a cycle.
    pub per_cycle: f64,
    /// Cycles from one step of a sum to its next.
    pub latency: f64,
}

/// All rows, the best ones first.
pub static ROWS: &[Row] = &[
    Row {
        name: "fma",
        step: |sum, a, b| Scalar::fma(a, b, sum),
        legal: |dtype, target| target.fma && dtype.is_float(),
        per_cycle: 2.0,
        latency: 4.0,
    },
    Row {
        name: "mul_add",
        step: |sum, a, b| Scalar::binary(Binary::Add, sum, a * b),
        legal: |_, _| true,
        per_cycle: 1.0, // two instructions, of which only the sum is in the chain
        latency: 4.0,
    },
];

/// The best row for sums of a dtype on a machine.
pub fn choose(dtype: DType, target: &TargetDesc) -> &'static Row {
    ROWS.iter().find(|r| (r.legal)(dtype, target)).expect("the last row is always legal")
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
                let sum = (row.step)(number(-7), number(3), number(5));
                assert_eq!(sum.dtype(), dtype, "{}", row.name);
                assert_eq!(eval::fold(sum), number(8), "{} of {dtype}", row.name);
            }
        }
        let mut target = TargetDesc::from_toml(
            "name = \"t\"\nbackend = \"b\"\ndoc = \"\"\narch = \"x86_64\"\nfeatures = []\nvector_bytes = 32\nvector_registers = 16\n\
             fma = true\nl1_bytes = 32768\nl2_bytes = 524288\nl3_bytes = 2097152\n",
        )
        .expect("a machine file");
        assert_eq!([DType::F32, DType::I32].map(|d| choose(d, &target).name), ["fma", "mul_add"]);
        target.fma = false;
        assert_eq!(choose(DType::F32, &target).name, "mul_add");
        assert!(ROWS.iter().all(|r| std::ptr::eq(named(r.name).expect("listed"), r)));
    }
}
