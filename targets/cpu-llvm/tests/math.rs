//! Mathematical functions, lowered and compiled, against libm in f64: bounds in units in the last place, limits exactly.

mod support;

use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Expr, Scalar, eval};
use infc_kernel::backend::Backend;
use infc_kernel::loops::{Access, LoopKind, Space};
use infc_kernel::math;
use support::*;

/// Values spread over all bit patterns, and edges.
fn spread_f32(step: usize) -> Vec<f64> {
    let edges = [0.0, 1.0, 0.5, 1.5, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, f32::NAN, 1e-45, 88.72, 88.73, 103.9, 17.3];
    let all = (0..=u32::MAX).step_by(step).map(f32::from_bits);
    let near_one = (-2000..2000).map(|i| 1.0 + i as f32 * f32::EPSILON);
    let small = (-4000..4000).map(|i| i as f32 * 0.0051);
    edges.iter().flat_map(|&e| [e, -e]).chain(all).chain(near_one).chain(small).map(f64::from).collect()
}

fn spread_f64() -> Vec<f64> {
    let edges = [0.0, 1.0, 0.5, 1.5, f64::MIN_POSITIVE, f64::MAX, f64::INFINITY, f64::NAN, 5e-324, 709.7, 709.8, 745.1, 746.0];
    let all = (0..=u64::MAX).step_by(0x0003_1415_9265_3589).map(f64::from_bits);
    let near_one = (-2000..2000).map(|i| 1.0 + f64::from(i) * 1.7e-14);
    let small = (-9000..9000).map(|i| f64::from(i) * 0.002_137);
    edges.iter().flat_map(|&e| [e, -e]).chain(all).chain(near_one).chain(small).collect()
}

/// The distance of `got` from `want` in units in the last place of `dtype` at `want`; limits must be met exactly.
fn ulps(dtype: DType, got: f64, want: f64) -> f64 {
    let rounded = eval::round_float(dtype, want);
    if rounded.is_nan() || rounded.is_infinite() || rounded == 0.0 {
        let limit = match dtype {
            DType::F32 => f64::from(f32::MAX),
            _ => f64::MAX,
        };
        let equal = got.is_nan() && rounded.is_nan() || got == rounded && got.is_sign_negative() == rounded.is_sign_negative();
        // Next to the limit a unit more or less is allowed.
        let near = rounded.is_infinite() && !want.is_infinite() && got.abs() == limit || rounded == 0.0 && want != 0.0;
        return if equal {
            0.0
        } else if near {
            1.0
        } else {
            f64::INFINITY
        };
    }
    let overflow = got.is_infinite() && rounded.abs() > 0.999 * if dtype == DType::F32 { 3.4e38 } else { 1.79e308 };
    if !(got.is_finite() || overflow) {
        return f64::INFINITY;
    }
    let (bits, least) = if dtype == DType::F32 { (24, -149) } else { (53, -1074) };
    let exponent = (libm::ilogb(rounded) + 1 - bits).max(least);
    (got - want).abs() / libm::exp2(f64::from(exponent))
}

/// The worst error of `body` (of sources 0 and 1) over rows.
fn worst(
    dtype: DType,
    body: &dyn Fn(&[Scalar]) -> Scalar,
    rows: &[Vec<f64>],
    want: &dyn Fn(&[f64]) -> f64,
) -> Vec<(String, f64, String)> {
    let (n, arity) = (rows.len(), rows[0].len());
    let padded = n.next_multiple_of(16);
    let dims = [Expr::from(padded)];
    let mut buffers: Vec<_> = (0..arity).map(|_| buffer("x", dtype, &dims, Space::Global, Access::Read)).collect();
    buffers.push(buffer("y", dtype, &dims, Space::Global, Access::Write));
    let at = Expr::var(0) * 16 + Expr::var(1);
    let reads: Vec<Scalar> = (0..arity).map(|s| Scalar::read_at(dtype, s, &[at])).collect();
    hosts()
        .iter()
        .map(|llvm| {
            let value = math::lower(body(&reads), llvm.target().fma);
            let lanes = each(1, 16, LoopKind::Vector, vec![store(arity as u32, &[at], value)]);
            let k = kernel(buffers.clone(), &[], vec![each(0, padded / 16, LoopKind::Serial, vec![lanes])]);
            let column = |s: usize| -> Vec<u64> { (0..padded).map(|i| rows[i.min(n - 1)][s].to_bits()).collect() };
            let mut memories: Vec<Vec<u8>> = (0..arity).map(|s| memory(dtype, &column(s))).collect();
            memories.push(vec![0; padded * dtype.bytes()]);
            assert_eq!(run(llvm, &k, &mut memories, &[]), 0);
            let got = values(dtype, &memories[arity]);
            let mut worst = (0.0, String::new());
            for (row, &g) in rows.iter().zip(&got) {
                let (g, w) = (f64::from_bits(g), want(row));
                let error = ulps(dtype, g, w);
                if error > worst.0 || error.is_nan() {
                    worst = (error, format!("{row:?} gives {g:e}, want {w:e}"));
                }
            }
            (llvm.target().name.clone(), worst.0, worst.1)
        })
        .collect()
}

fn check(name: &str, bound: f64, results: Vec<(String, f64, String)>) {
    for (machine, error, at) in results {
        println!("{name} {machine}: {error:.2} ulp, {at}");
        assert!(error <= bound, "{name} on {machine}: {error} units in the last place, the bound is {bound}: {at}");
    }
}

/// Operator, bounds for f32 and f64, the largest |argument| for which they hold.
fn table() -> Vec<(Unary, f64, f64, f64, f64)> {
    use Unary::*;
    let all = f64::INFINITY;
    let mut t = vec![(Sin, 1.0, 3.0, 2.6e8, 1e6), (Cos, 1.0, 3.0, 2.6e8, 1e6), (Tan, 1.0, 4.0, 1e6, 1e6)];
    t.extend([Exp, Log, Log1p, Expm1, Erf].map(|op| (op, 1.5, 3.0, all, all)));
    t.extend([Sigmoid, Tanh].map(|op| (op, 2.5, 3.0, all, all)));
    t.extend([Asin, Acos, Atan, Sinh, Cosh].map(|op| (op, 1.0, 4.0, all, all)));
    t.extend([Asinh, Acosh, Atanh].map(|op| (op, 1.0, 5.0, all, all)));
    t
}

fn reference(op: Unary) -> impl Fn(&[f64]) -> f64 {
    move |row| match op {
        // As infc_ir::eval, but without its overflow of e^-x.
        Unary::Sigmoid if row[0] < 0.0 => libm::exp(row[0]) / (1.0 + libm::exp(row[0])),
        _ => f64::from_bits(eval::unary(op, DType::F64, row[0].to_bits())),
    }
}

#[test]
fn functions_of_f32() {
    for (op, bound, _, limit, _) in table() {
        let rows: Vec<Vec<f64>> =
            spread_f32(65_521).into_iter().filter(|x| !(x.abs() > limit && x.is_finite())).map(|x| vec![x]).collect();
        check(op.name(), bound, worst(DType::F32, &|x| Scalar::unary(op, x[0]), &rows, &reference(op)));
    }
}

#[test]
fn functions_of_f64() {
    for (op, _, bound, _, limit) in table() {
        let rows: Vec<Vec<f64>> =
            spread_f64().into_iter().filter(|x| !(x.abs() > limit && x.is_finite())).map(|x| vec![x]).collect();
        check(op.name(), bound, worst(DType::F64, &|x| Scalar::unary(op, x[0]), &rows, &reference(op)));
    }
}

#[test]
fn functions_of_two() {
    let some = |all: Vec<f64>, step: usize| -> Vec<f64> { all.into_iter().step_by(step).collect() };
    let edges = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 1e9, -1e9, 1e30, f64::INFINITY, -f64::INFINITY, f64::NAN];
    for (dtype, xs) in [(DType::F32, some(spread_f32(3_000_017), 29)), (DType::F64, some(spread_f64(), 97))] {
        let ys: Vec<f64> = edges.iter().copied().chain((-30..30).map(|i| f64::from(i) * 0.37)).collect();
        let all: Vec<f64> = edges.iter().copied().chain(xs).map(|x| eval::round_float(dtype, x)).collect();
        let rows: Vec<Vec<f64>> =
            all.iter().flat_map(|&x| ys.iter().map(move |&y| vec![x, eval::round_float(dtype, y)])).collect();
        for (op, single, double) in [(Binary::Pow, 1.0, 16.0), (Binary::Atan2, 1.0, 4.0)] {
            let want = |row: &[f64]| f64::from_bits(eval::binary(op, DType::F64, row[0].to_bits(), row[1].to_bits()));
            let bound = if dtype == DType::F32 { single } else { double };
            check(&format!("{} {dtype}", op.name()), bound, worst(dtype, &|x| Scalar::binary(op, x[0], x[1]), &rows, &want));
        }
    }
}

#[test]
fn powers_with_constant_exponents() {
    let rows: Vec<Vec<f64>> = spread_f32(3_000_017).into_iter().map(|x| vec![x]).collect();
    for y in [0.0, 1.0, 2.0, 3.0, -1.0, 0.5, -2.0, 0.3] {
        let body = |x: &[Scalar]| Scalar::binary(Binary::Pow, x[0], Scalar::float(DType::F32, y));
        let y = eval::round_float(DType::F32, y);
        check(&format!("pow {y}"), 1.6, worst(DType::F32, &body, &rows, &|row| libm::pow(row[0], y)));
    }
}

/// All 2^32 arguments of the functions that stay in f32; minutes.
#[test]
#[ignore = "long: run it after changing infc_kernel::math"]
fn every_f32() {
    use Unary::*;
    for op in [Exp, Sigmoid, Log, Log1p, Expm1, Tanh, Erf] {
        for part in 0..64u32 {
            let rows: Vec<Vec<f64>> =
                (0..1 << 26).step_by(1).map(|i: u32| vec![f64::from(f32::from_bits(part << 26 | i))]).collect();
            check(op.name(), 2.5, worst(DType::F32, &|x| Scalar::unary(op, x[0]), &rows, &reference(op)));
        }
    }
}
