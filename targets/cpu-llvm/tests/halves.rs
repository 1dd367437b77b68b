//! Arithmetic on f16: machine code, the loop interpreter and an obvious loop give the same bits, for all kinds of numbers.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_cpu_llvm::{Llvm, machine};
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Expr, Scalar, Tensor};
use infc_kernel::backend::Backend;
use infc_kernel::build::{self, Nest, Operand};
use infc_kernel::loops::{Buffer, interp};
use infc_kernel::plan::{self, Plan};
use infc_kernel::rows::SMALL;
use infc_kernel::target::{Math, TargetDesc};
use infc_trapvm::half::nearest;
use proptest::prelude::*;
use support::*;

fn target() -> TargetDesc {
    TargetDesc { math: Math::F16, ..machine("x86-64-v4-fp16").expect("a machine of this backend") }
}

/// Machines of both architectures that have it.
fn targets() -> [TargetDesc; 2] {
    let arm = machine("aarch64-dotprod").expect("a machine of this backend");
    [target(), TargetDesc { math: Math::F16, ..arm }]
}

/// The backend, where this computer can run its code, perhaps with traps or in an emulator.
fn host(target: &TargetDesc) -> Option<Llvm> {
    Some(target.clone()).filter(runs).map(Llvm::new)
}

fn operand(dtype: DType, dims: &[usize], constant: Option<Tensor>) -> Operand {
    Operand { buffer: Buffer { dtype, ..support::operand(dims, None).buffer }, constant, ..support::operand(dims, None) }
}

/// `out[m, n] = sum over k of x[m, k] * w[k, n]` of f16.
fn product(target: &TargetDesc, [m, k, n]: [usize; 3], w: &[u16]) -> (Plan, Nest) {
    let step = Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let x = Scalar::read_at(DType::F16, 0, &[o[0], r[0]]).cast(DType::F32);
            x * Scalar::read_at(DType::F16, 1, &[r[0], o[1]]).cast(DType::F32)
        },
        |_, acc| acc,
    );
    let weights = Tensor::from_bytes(DType::F16, [k, n], shorts(w));
    let operands =
        [operand(DType::F16, &[m, k], None), operand(DType::F16, &[k, n], Some(weights)), operand(DType::F32, &[m, n], None)];
    let step = Step::Compute(step);
    let plan = plan::choose(&step, &operands, target);
    let nest = build::build("product", &step, &plan, &operands, target);
    (plan, nest)
}

fn shorts(v: &[u16]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn float(v: u16) -> f64 {
    half::f16::from_bits(v).to_f64()
}

/// Sums of 16 products in f16, each with one rounding, and the sum of those in f32.
fn sum_of_blocks(products: &[(u16, u16)]) -> f32 {
    products.chunks(16).fold(0f32, |sum, block| {
        let part = block.iter().fold(0, |part, &(a, b)| nearest(float(a) * float(b) + float(part)));
        sum + float(part) as f32
    })
}

/// Numbers near one, of any size, and special ones.
fn number() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => (0u16..0x1000).prop_map(|v| 0x3800 + (v & 0x7ff) + ((v >> 11) << 15)),
        2 => any::<u16>(),
        1 => prop::sample::select(vec![0, 0x8000, 1, 0x3ff, 0x8001, 0x400, 0x7c00, 0xfc00, 0x7e00, 0x7bff, 0xfbff]),
    ]
}

/// Weights as they are after scaling: up to 2^-5, subnormal ones too.
fn weight() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => (0u16..0x1801).prop_map(|v| 0x1000 + v),
        1 => 0u16..0x2801,
        1 => Just(half::f16::from_f64(SMALL).to_bits()),
    ]
    .prop_flat_map(|v| any::<bool>().prop_map(move |minus| v | u16::from(minus) << 15))
}

/// The nest's memory after it ran, compiled or interpreted.
fn ran(nest: &Nest, sources: &[&[u8]], out: usize, llvm: Option<&Llvm>) -> Vec<u8> {
    let packed = |s: usize| nest.packed.iter().find(|p| p.source == s).map(|p| p.tensor.bytes().to_vec());
    let mut buffers: Vec<Vec<u8>> = nest.sources.iter().map(|&s| packed(s).unwrap_or_else(|| sources[s].to_vec())).collect();
    buffers.push(vec![0; out]);
    match llvm {
        Some(llvm) => assert_eq!(run(llvm, &nest.kernel, &mut buffers, &[]), 0),
        None => interp::run(&nest.kernel, &[], &mut buffers).unwrap_or_else(|e| panic!("{e:?}")),
    }
    buffers.pop().expect("the result")
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases: 24, ..default } }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn sums_in_blocks_are_the_same_bits(
        m in 1usize..20, k in 1usize..70, n in 2usize..140, xs in prop::collection::vec(number(), 1400), ws in prop::collection::vec(weight(), 9800),
    ) {
        let (x, w) = (&xs[..m * k], &ws[..k * n]);
        let want: Vec<f32> = (0..m * n).map(|at| {
            let (i, j) = (at / n, at % n);
            sum_of_blocks(&(0..k).map(|q| (x[i * k + q], w[q * n + j])).collect::<Vec<_>>())
        }).collect();
        let bytes = (shorts(x), shorts(w));
        for target in targets() {
            let (plan, nest) = product(&target, [m, k, n], w);
            let Plan::Brgemm(p) = &plan else { return Err(TestCaseError::fail(plan.to_string())) };
            prop_assert_eq!(p.row, "f16_blocks");
            let native = host(&target);
            for llvm in [None, native.as_ref()].into_iter().take(if native.is_some() { 2 } else { 1 }) {
                let got = to_floats(&ran(&nest, &[&bytes.0, &bytes.1], m * n * 4, llvm));
                for (at, (g, w)) in got.iter().zip(&want).enumerate() {
                    let same = g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
                    prop_assert!(same, "{}, {plan} on {}: {g:e} instead of {w:e}", at, target.name);
                }
            }
        }
    }

    /// Steps of a model in f16: each operation rounds once, natively or through f32.
    #[test]
    fn operations_on_f16_round_once(xs in prop::collection::vec(number(), 64), ys in prop::collection::vec(number(), 64), n in 1usize..65) {
        let read = |source: usize, at: &[Expr]| Scalar::read_at(DType::F16, source, at);
        let two = |op: Binary| move |x: Scalar, y: Scalar| Scalar::binary(op, x, y);
        type Of = Box<dyn Fn(Scalar, Scalar) -> Scalar>;
        let all: Vec<(&str, Of)> = vec![
            ("add", Box::new(two(Binary::Add))), ("sub", Box::new(two(Binary::Sub))), ("mul", Box::new(two(Binary::Mul))),
            ("div", Box::new(two(Binary::Div))), ("min", Box::new(two(Binary::Min))), ("max", Box::new(two(Binary::Max))),
            ("sqrt", Box::new(|x, _| Scalar::unary(Unary::Sqrt, x))), ("floor", Box::new(|x, _| Scalar::unary(Unary::Floor, x))),
            ("round", Box::new(|x, _| Scalar::unary(Unary::Round, x))), ("abs", Box::new(|x, y| Scalar::unary(Unary::Abs, x) + y)),
            ("neg", Box::new(|x, y| Scalar::unary(Unary::Neg, x) * y)), ("sign", Box::new(|x, y| Scalar::unary(Unary::Sign, x) * y)),
            ("fma", Box::new(|x, y| Scalar::fma(x, y, y))), ("chain", Box::new(|x, y| (x + y) * (x - y) / (y + x * x))),
            ("select", Box::new(|x, y| Scalar::select(x.lt(y), x * y, y - x))), ("i32", Box::new(|x, y| (x * y).cast(DType::I32).cast(DType::F16))),
            ("u8", Box::new(|x, y| (x + y).cast(DType::U8).cast(DType::F16))), ("f32", Box::new(|x, y| (x.cast(DType::F32) * y.cast(DType::F32)).cast(DType::F16))),
            ("f64", Box::new(|x, y| (x.cast(DType::F64) / y.cast(DType::F64)).cast(DType::F16))), ("nan", Box::new(|x, y| Scalar::select(Scalar::unary(Unary::IsNan, x), y, x))),
        ];
        let (x, y) = (shorts(&xs[..n]), shorts(&ys[..n]));
        for ((name, of), target) in all.iter().flat_map(|all| targets().map(|t| (all, t))) {
            let step = Step::Compute(Compute::map(&[Expr::from(n)], |o| of(read(0, o), read(1, o))));
            let operands = [operand(DType::F16, &[n], None), operand(DType::F16, &[n], None), operand(DType::F16, &[n], None)];
            let nest = build::build(name, &step, &plan::choose(&step, &operands, &target), &operands, &target);
            let want = ran(&nest, &[&x, &y], 2 * n, None);
            let Some(llvm) = host(&target) else { continue };
            let got = ran(&nest, &[&x, &y], 2 * n, Some(&llvm));
            for (i, (g, w)) in got.chunks(2).zip(want.chunks(2)).enumerate() {
                let [g, w] = [g, w].map(|b| u16::from_le_bytes([b[0], b[1]]));
                let nan = |v: u16| v & 0x7fff > 0x7c00;
                prop_assert!(g == w || nan(g) && nan(w), "{name} of {:04x} and {:04x}: {g:04x} instead of {w:04x}", xs[i], ys[i]);
            }
        }
    }
}

#[test]
fn weights_that_could_leave_the_range_are_added_up_in_f32() {
    let row = |target: &TargetDesc, w: u16| match product(target, [8, 64, 64], &vec![w; 64 * 64]).0 {
        Plan::Brgemm(p) => p.row,
        other => panic!("{other}"),
    };
    let largest = half::f16::from_f64(SMALL).to_bits();
    assert_eq!([largest, largest + 1, 0x7c00, 0x7e00].map(|w| row(&target(), w)), ["f16_blocks", "fma", "fma", "fma"]);
    // The worst that there is: the largest data, the largest weights.
    let worst = sum_of_blocks(&[(0x7bff, largest); 16]);
    assert!(worst.is_finite() && worst <= 65504.0 / 2.0, "{worst}");
    // Where the mode does not say so, sums are f32.
    assert_eq!(row(&TargetDesc { math: Math::F32, ..target() }, largest), "fma");
}

#[test]
fn blocks_are_multiply_adds_of_f16_in_registers() {
    let llvm = Llvm::new(target());
    let (plan, nest) = product(&target(), [84, 256, 192], &vec![0x1c00; 256 * 192]);
    let Plan::Brgemm(p) = &plan else { panic!("{plan}") };
    let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
    let lines: Vec<&str> = asm.lines().map(str::trim_start).collect();
    let is = |l: &str| l.starts_with("vfmadd") && l.contains("ph");
    let (first, last) = (lines.iter().position(|l| is(l)).expect("some"), lines.iter().rposition(|l| is(l)).expect("some"));
    // One loop of 16 rounds has them all: no sum leaves its register in it.
    let hot = &lines[first..=last];
    assert_eq!(hot.iter().filter(|l| is(l)).count(), p.mr * p.nr / 32, "{plan}\n{asm}");
    assert!(hot.iter().all(|l| !l.contains("rsp") && !l.ends_with(':')), "{plan}\n{asm}");
    assert!(!asm.contains("vfmadd231ps"), "{asm}");
    // Models in f16 add, multiply and divide without conversions.
    let step = Step::Compute(Compute::map(&[Expr::from(256)], |o| {
        let [x, y] = [0, 1].map(|s| Scalar::read_at(DType::F16, s, o));
        (x + y) * x / y
    }));
    let operands = [(); 3].map(|()| operand(DType::F16, &[256], None));
    let nest = build::build("steps", &step, &plan::choose(&step, &operands, &target()), &operands, &target());
    let asm = llvm.emit_text(&[nest.kernel], "asm").expect("text");
    assert!(["vaddph", "vmulph", "vdivph"].iter().all(|i| asm.contains(i)) && !asm.contains("vcvt"), "{asm}");
}
