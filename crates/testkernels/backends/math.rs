//! Mathematical functions, lowered and compiled, against the C library in f64: the largest error in units in the last place, limits
//! exactly. The bounds stand in `docs/numerics.md` and nowhere else: these tests read them there.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support {
    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs"));
}

use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Expr, Scalar, eval};
use infc_kernel::backend::{Backend, Code};
use infc_kernel::loops::{Access, LoopKind, Space};
use infc_kernel::math;
use std::sync::atomic::{AtomicU64, Ordering};
use support::*;

const DOC: &str = include_str!("../../../docs/numerics.md");

/// A row of the table: what holds for results of f32 and f64, and the largest arguments for which it does.
#[derive(Clone, Debug)]
struct Bound {
    name: String,
    single: f64,
    double: f64,
    limits: [f64; 2],
}

/// The rows between the table's head and the next empty line.
fn bounds() -> Vec<Bound> {
    let rows = DOC.lines().skip_while(|l| !l.starts_with("| function |")).skip(2).take_while(|l| l.starts_with('|'));
    let number = |s: &str| s.parse::<f64>().unwrap_or_else(|_| panic!("'{s}' in docs/numerics.md is no number"));
    let limit = |s: &str| if s == "all" { f64::INFINITY } else { number(s) };
    let row = |l: &str| {
        let cells: Vec<&str> = l.split('|').map(str::trim).collect();
        let [_, names, single, double, below_single, below_double, _] = cells[..] else { panic!("'{l}' has not five cells") };
        let bound = |name: &str| Bound {
            name: name.to_owned(),
            single: number(single),
            double: number(double),
            limits: [limit(below_single), limit(below_double)],
        };
        names.split(", ").map(bound).collect::<Vec<_>>()
    };
    rows.flat_map(row).collect()
}

fn bound(name: &str) -> Bound {
    bounds().into_iter().find(|b| b.name == name).unwrap_or_else(|| panic!("docs/numerics.md says nothing of {name}"))
}

/// Every function of one argument that has a lowering or must round correctly.
const FUNCTIONS: &[Unary] = {
    use Unary::*;
    &[Exp, Log, Log1p, Expm1, Erf, Sigmoid, Tanh, Sin, Cos, Tan, Asin, Acos, Atan, Sinh, Cosh, Asinh, Acosh, Atanh, Sqrt]
};

/// The function in f64, by the C library where Rust has it.
fn reference(op: Unary, x: f64) -> f64 {
    match op {
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Log1p => x.ln_1p(),
        Unary::Expm1 => x.exp_m1(),
        Unary::Erf => libm::erf(x),
        Unary::Sigmoid if x < 0.0 => x.exp() / (1.0 + x.exp()),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Tanh => x.tanh(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Asin => x.asin(),
        Unary::Acos => x.acos(),
        Unary::Atan => x.atan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        // Not those of Rust, which lose digits near 0 or 1.
        Unary::Asinh => libm::asinh(x),
        // That of the library gives numbers far below its range.
        Unary::Acosh if x < 1.0 => f64::NAN,
        Unary::Acosh => libm::acosh(x),
        Unary::Atanh => libm::atanh(x),
        Unary::Sqrt => x.sqrt(),
        other => f64::from_bits(eval::unary(other, DType::F64, x.to_bits())),
    }
}

/// The distance of `got` from `want` in units in the last place of `dtype` at `want`; limits must be met exactly.
fn ulps(dtype: DType, got: f64, want: f64) -> f64 {
    let rounded = eval::round_float(dtype, want);
    let (bits, least, largest) = match dtype {
        DType::F32 => (24, -149, f64::from(f32::MAX)),
        DType::F16 => (11, -24, 65504.0),
        DType::BF16 => (8, -133, 3.389_531_389_251_535_5e38),
        _ => (53, -1074, f64::MAX),
    };
    if rounded.is_nan() || rounded.is_infinite() || rounded == 0.0 {
        if got.is_nan() && rounded.is_nan() || got == rounded && got.is_sign_negative() == rounded.is_sign_negative() {
            return 0.0;
        }
        // Next to the limit a unit more or less is allowed.
        let near = rounded.is_infinite() && !want.is_infinite() && got.abs() == largest || rounded == 0.0 && want != 0.0;
        if !near {
            return f64::INFINITY;
        }
        let unit = libm::exp2(f64::from(least));
        return if rounded == 0.0 { (got - want).abs() / unit } else { 1.0 };
    }
    if got.is_infinite() && got.signum() == rounded.signum() && rounded.abs() == largest {
        return 1.0;
    }
    if !got.is_finite() {
        return f64::INFINITY;
    }
    // Where the result is 0 its sign is that of the exact value.
    if got == 0.0 && got.is_sign_negative() != want.is_sign_negative() {
        return f64::INFINITY;
    }
    let exponent = (libm::ilogb(rounded) + 1 - bits).max(least);
    (got - want).abs() / libm::exp2(f64::from(exponent))
}

/// A function compiled for one machine, over blocks of elements.
struct Function {
    machine: Machine,
    code: Code,
    dtype: DType,
    arity: usize,
}

/// Elements of a block.
const BLOCK: usize = 1 << 14;

impl Function {
    fn new(machine: &Machine, dtype: DType, arity: usize, body: &dyn Fn(&[Scalar]) -> Scalar) -> Function {
        let dims = [Expr::from(BLOCK)];
        let mut buffers: Vec<_> = (0..arity).map(|_| buffer("x", dtype, &dims, Space::Global, Access::Read)).collect();
        buffers.push(buffer("y", dtype, &dims, Space::Global, Access::Write));
        let at = Expr::var(0) * 16 + Expr::var(1);
        let reads: Vec<Scalar> = (0..arity).map(|s| Scalar::read_at(dtype, s, &[at])).collect();
        let value = math::lower(body(&reads), machine.target().fma);
        let lanes = each(1, 16, LoopKind::Vector, vec![store(arity as u32, &[at], value)]);
        let k = kernel(buffers, &[], vec![each(0, BLOCK / 16, LoopKind::Serial, vec![lanes])]);
        let code = machine.emit(std::slice::from_ref(&k)).unwrap_or_else(|e| panic!("{e}"));
        Function { machine: machine.clone(), code, dtype, arity }
    }

    fn machine(&self) -> String {
        self.machine.target().name.clone()
    }

    /// The results for a block; the last argument is repeated to fill it.
    fn call(&self, columns: &[Vec<f64>]) -> Vec<f64> {
        let n = columns[0].len();
        let padded = |c: &[f64]| -> Vec<f64> { c.iter().copied().chain(std::iter::repeat_n(c[n - 1], BLOCK - n)).collect() };
        let column = |c: &Vec<f64>| match self.dtype {
            // The fast way for many.
            DType::F32 => floats(&padded(c).into_iter().map(|v| v as f32).collect::<Vec<_>>()),
            d => memory(d, &padded(c).into_iter().map(f64::to_bits).collect::<Vec<_>>()),
        };
        let mut memories: Vec<Vec<u8>> = columns.iter().map(column).collect();
        assert_eq!(memories.len(), self.arity);
        memories.push(vec![0; BLOCK * self.dtype.bytes()]);
        assert_eq!(call(&self.machine, &self.code, 0, &mut memories, &[], 1), 0);
        match self.dtype {
            DType::F32 => to_floats(&memories[self.arity][..4 * n]).into_iter().map(f64::from).collect(),
            d => values(d, &memories[self.arity]).into_iter().take(n).map(f64::from_bits).collect(),
        }
    }
}

/// The largest error of a function, and where.
#[derive(Clone, Debug, Default)]
struct Worst {
    error: f64,
    at: String,
}

impl Worst {
    fn see(&mut self, dtype: DType, arguments: &[f64], got: f64, want: f64) {
        let error = ulps(dtype, got, want);
        if error > self.error || error.is_nan() {
            *self = Worst { error, at: format!("{arguments:?} gives {got:e}, exactly {want:e}") };
        }
    }
}

/// The largest error over rows of arguments, on each machine that runs here.
fn worst(
    dtype: DType,
    body: &dyn Fn(&[Scalar]) -> Scalar,
    rows: &[Vec<f64>],
    want: &dyn Fn(&[f64]) -> f64,
) -> Vec<(String, Worst)> {
    let functions = different(hosts().iter().map(|h| Function::new(h, dtype, rows[0].len(), body)));
    let mut worst = vec![Worst::default(); functions.len()];
    for block in rows.chunks(BLOCK) {
        let exact: Vec<f64> = block.iter().map(|r| want(r)).collect();
        let columns: Vec<Vec<f64>> = (0..rows[0].len()).map(|c| block.iter().map(|r| r[c]).collect()).collect();
        for ((f, _), w) in functions.iter().zip(&mut worst) {
            for ((row, got), &exact) in block.iter().zip(f.call(&columns)).zip(&exact) {
                w.see(dtype, row, got, exact);
            }
        }
    }
    functions.into_iter().map(|f| f.1).zip(worst).collect()
}

/// Those whose code is not the same as that of an earlier one, byte by byte; each with the names of all machines that have its code.
fn different(all: impl Iterator<Item = Function>) -> Vec<(Function, String)> {
    let mut kept: Vec<(Function, String)> = vec![];
    for f in all {
        let name = f.machine();
        match kept.iter_mut().find(|(k, _)| k.machine.target().arch == f.machine.target().arch && k.code == f.code) {
            Some((_, names)) => *names += &format!(", {name}"),
            None => kept.push((f, name)),
        }
    }
    kept
}

fn hold(name: &str, dtype: DType, bound: f64, found: &[(String, Worst)]) {
    for (machine, w) in found {
        println!("{name} {dtype} {machine}: {:.3} ulp, {}", w.error, w.at);
        assert!(w.error <= bound, "{name} {dtype} on {machine}: {:.3} units, docs/numerics.md says {bound}: {}", w.error, w.at);
    }
}

/// Where functions turn: limits, ends of ranges, overflow, underflow.
fn edges(dtype: DType) -> Vec<f64> {
    let single = [
        0.0,
        1.0,
        0.5,
        1.5,
        2.0,
        1.175_494_4e-38,
        3.402_823_5e38,
        f64::INFINITY,
        f64::NAN,
        1e-45,
        1e-40,
        88.722_84,
        88.722_83,
        88.73,
        103.972_08,
        103.279,
        104.0,
        17.328_68,
        18.0,
        9.01,
        8.66,
        3.95,
        0.93,
        0.55,
        0.346_573_6,
        89.415_985,
        268_435_456.0,
        1e5,
        33.3,
    ];
    let double = [
        5e-324,
        1e-310,
        2.225_073_858_507_201_4e-308,
        f64::MAX,
        709.782_712_893_384,
        709.79,
        710.475_860_073_944,
        745.133,
        745.14,
        746.0,
        36.7,
        19.1,
        5.92,
    ];
    let around = |e: f64| {
        let step = |by: i64| match dtype {
            DType::F64 => f64::from_bits((e.to_bits() as i64 + by) as u64),
            _ => f64::from(f32::from_bits(((e as f32).to_bits() as i32 + by as i32) as u32)),
        };
        (-8..=8).map(step).collect::<Vec<f64>>()
    };
    let base: Vec<f64> = if dtype == DType::F64 { [&single[..], &double].concat() } else { single.to_vec() };
    let all = base.into_iter().flat_map(|e| if e.is_finite() && e != 0.0 { around(e) } else { vec![e] });
    all.flat_map(|e| [e, -e]).map(|e| eval::round_float(dtype, e)).collect()
}

fn spread_f64(step: usize) -> Vec<f64> {
    let all = (0..=u64::MAX).step_by(0x0000_0314_1592_6535 * step).map(f64::from_bits);
    let near_one = (-2000..2000).map(|i| 1.0 + f64::from(i) * 1.7e-14);
    let small = (-9000..9000).map(|i| f64::from(i) * 0.002_137);
    edges(DType::F64).into_iter().chain(all).chain(near_one).chain(small).collect()
}

fn within(x: f64, limit: f64) -> bool {
    x.abs() <= limit || !x.is_finite()
}

/// Measures functions side by side, on as many threads as there are processors.
fn side_by_side<T: Sync>(of: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(item) = of.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    work(item);
                }
            });
        }
    });
}

/// f32 bit patterns `first`, `first + step`, ...: `count` of them.
fn sweep(op: Unary, functions: &[Function], first: u64, step: u64, count: u64, limit: f64) -> Vec<Worst> {
    let mut worst = vec![Worst::default(); functions.len()];
    let (mut xs, mut exact): (Vec<f32>, Vec<f64>) = (vec![], vec![]);
    for begin in (0..count).step_by(BLOCK) {
        let bits = (begin..count.min(begin + BLOCK as u64)).map(|i| f32::from_bits((first + i * step) as u32));
        xs.clear();
        xs.extend(bits.filter(|&x| within(x.into(), limit)));
        let Some(&last) = xs.last() else { continue };
        exact.clear();
        exact.extend(xs.iter().map(|&x| reference(op, x.into())));
        let (n, mut input) = (xs.len(), floats(&xs));
        input.extend(std::iter::repeat_n(last.to_le_bytes(), BLOCK - n).flatten());
        for (f, w) in functions.iter().zip(&mut worst) {
            let mut memories = [std::mem::take(&mut input), vec![0; BLOCK * 4]];
            assert_eq!(call(&f.machine, &f.code, 0, &mut memories, &[], 1), 0);
            for ((&x, got), &exact) in xs.iter().zip(memories[1].chunks_exact(4)).zip(&exact) {
                let got = f32::from_le_bytes([got[0], got[1], got[2], got[3]]);
                // The nearest f32 is half a unit off at most; only others can be worse than what was seen.
                if got.to_bits() != (exact as f32).to_bits() || w.error < 0.5 {
                    w.see(DType::F32, &[x.into()], got.into(), exact);
                }
            }
            input = std::mem::take(&mut memories[0]);
        }
    }
    worst
}

/// 2^24 bit patterns of f32 all over (2^19 in an emulator), and all edges. All 2^32: `every_f32`.
#[test]
fn functions_of_f32() {
    side_by_side(FUNCTIONS, |&op| {
        let b = bound(op.name());
        let body = |x: &[Scalar]| Scalar::unary(op, x[0]);
        let rows: Vec<Vec<f64>> = edges(DType::F32).into_iter().filter(|&x| within(x, b.limits[0])).map(|x| vec![x]).collect();
        hold(op.name(), DType::F32, b.single, &worst(DType::F32, &body, &rows, &|r| reference(op, r[0])));
        // An emulator is slow: of another architecture one machine, on fewer of them.
        let other = hosts().into_iter().find(|h| here().iter().all(|l| l.target().arch != h.target().arch));
        for (machines, step) in [(here(), 256), (other.into_iter().collect(), 1 << 13)] {
            let functions: Vec<Function> = machines.iter().map(|h| Function::new(h, DType::F32, 1, &body)).collect();
            let found = sweep(op, &functions, 77, step, (1 << 32) / step, b.limits[0]);
            let found: Vec<_> = functions.into_iter().map(|f| f.machine()).zip(found).collect();
            hold(op.name(), DType::F32, b.single, &found);
        }
    });
}

#[test]
fn functions_of_f64() {
    side_by_side(FUNCTIONS, |&op| {
        let b = bound(op.name());
        let rows: Vec<Vec<f64>> = spread_f64(32).into_iter().filter(|&x| within(x, b.limits[1])).map(|x| vec![x]).collect();
        let found = worst(DType::F64, &|x| Scalar::unary(op, x[0]), &rows, &|r| reference(op, r[0]));
        hold(op.name(), DType::F64, b.double, &found);
    });
}

/// All values of the 16-bit formats: results are those of f32, rounded once more.
#[test]
fn functions_of_16_bits() {
    side_by_side(FUNCTIONS, |&op| {
        for dtype in [DType::F16, DType::BF16] {
            let all = (0..=u16::MAX).map(|bits| f64::from_bits(eval::from_memory(dtype, bits.into())));
            let rows: Vec<Vec<f64>> = all.filter(|&x| within(x, bound(op.name()).limits[0])).map(|x| vec![x]).collect();
            let found = worst(dtype, &|x| Scalar::unary(op, x[0]), &rows, &|r| reference(op, r[0]));
            hold(op.name(), dtype, bound("16-bit").single, &found);
        }
    });
}

#[test]
fn functions_of_two() {
    let some = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 1e9, -1e9, 1e30, f64::INFINITY, -f64::INFINITY, f64::NAN];
    for dtype in [DType::F32, DType::F64] {
        let xs: Vec<f64> = match dtype {
            DType::F32 => (0..=u32::MAX).step_by(3_000_017).map(|b| f64::from(f32::from_bits(b))).collect(),
            _ => spread_f64(1 << 14),
        };
        let ys: Vec<f64> = some.iter().copied().chain((-30..30).map(|i| f64::from(i) * 0.37)).collect();
        let near_one = (-300..300).map(|i| 1.0 + f64::from(i) * 0.003);
        let all: Vec<f64> = some.iter().copied().chain(xs).chain(near_one).map(|x| eval::round_float(dtype, x)).collect();
        let rows: Vec<Vec<f64>> =
            all.iter().flat_map(|&x| ys.iter().map(move |&y| vec![x, eval::round_float(dtype, y)])).collect();
        for op in [Binary::Pow, Binary::Atan2] {
            let want = |row: &[f64]| f64::from_bits(eval::binary(op, DType::F64, row[0].to_bits(), row[1].to_bits()));
            let b = bound(op.name());
            let found = worst(dtype, &|x| Scalar::binary(op, x[0], x[1]), &rows, &want);
            hold(op.name(), dtype, if dtype == DType::F32 { b.single } else { b.double }, &found);
        }
    }
}

#[test]
fn powers_with_constant_exponents() {
    let xs = (0..=u32::MAX).step_by(30_017).map(|b| f64::from(f32::from_bits(b)));
    let rows: Vec<Vec<f64>> = edges(DType::F32).into_iter().chain(xs).map(|x| vec![x]).collect();
    for y in [0.0, 1.0, 2.0, 3.0, -1.0, 0.5, -2.0, 0.3] {
        let body = |x: &[Scalar]| Scalar::binary(Binary::Pow, x[0], Scalar::float(DType::F32, y));
        let y = eval::round_float(DType::F32, y);
        let found = worst(DType::F32, &body, &rows, &|row| libm::pow(row[0], y));
        hold("pow of a constant", DType::F32, bound("pow of a constant").single, &found);
    }
}

/// All 2^32 arguments; `INFC_F32="exp log"` takes these functions only.
#[test]
#[ignore = "long: `./x exhaustive` runs it; after changing infc_kernel::math run it by hand"]
fn every_f32() {
    let asked = std::env::var("INFC_F32").unwrap_or_default();
    let asked: Vec<&str> = asked.split_whitespace().collect();
    let unknown: Vec<&&str> = asked.iter().filter(|a| FUNCTIONS.iter().all(|op| op.name() != **a)).collect();
    assert!(
        unknown.is_empty(),
        "INFC_F32 asks for {unknown:?}; there are {:?}",
        FUNCTIONS.iter().map(|op| op.name()).collect::<Vec<_>>()
    );
    let taken = FUNCTIONS.iter().filter(|op| asked.is_empty() || asked.contains(&op.name()));
    let parts: Vec<(Unary, u64)> = taken.flat_map(|&op| (0..16).map(move |k| (op, k << 28))).collect();
    side_by_side(&parts, |&(op, first)| {
        let b = bound(op.name());
        let body = |x: &[Scalar]| Scalar::unary(op, x[0]);
        // The newest machine: others differ in whether they fuse products and sums, which the samples cover.
        let newest = here().pop().expect("this machine is one of them");
        let functions = [Function::new(&newest, DType::F32, 1, &body)];
        let found = sweep(op, &functions, first, 1, 1 << 28, b.limits[0]);
        hold(op.name(), DType::F32, b.single, &[(functions[0].machine(), found[0].clone())]);
    });
}
