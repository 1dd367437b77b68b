//! Products of bf16 in pairs: machine code, the loop interpreter and an obvious loop give the same bits, for all kinds of numbers.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_cpu_llvm::{Llvm, machine, supported};
use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::{DType, Expr, Scalar, Tensor};
use infc_kernel::backend::Backend;
use infc_kernel::build::{self, Nest, Operand};
use infc_kernel::loops::{Access, Buffer, Space, interp};
use infc_kernel::plan::{self, Plan};
use infc_kernel::rows::flushed;
use infc_kernel::target::{Math, TargetDesc};
use proptest::prelude::*;
use support::*;

fn target() -> TargetDesc {
    TargetDesc { math: Math::Bf16, ..machine("x86-64-v4-bf16").expect("a machine of this backend") }
}

fn operand(dtype: DType, dims: &[usize], constant: Option<Tensor>) -> Operand {
    let dims: Vec<Expr> = dims.iter().map(|&d| Expr::from(d)).collect();
    let strides = Buffer::row_major(&dims);
    let shift = vec![0; dims.len()];
    Operand {
        buffer: Buffer { name: String::new(), dtype, dims, strides, space: Space::Global, access: Access::Read },
        shift,
        zeros: vec![],
        constant,
        tf32: false,
        narrow: None,
    }
}

/// `out[m, n] = sum over k of x[m, k] * w[k, n]` of bf16.
fn product(m: usize, k: usize, n: usize, w: &[u16]) -> Nest {
    let step = Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let x = Scalar::read_at(DType::BF16, 0, &[o[0], r[0]]).cast(DType::F32);
            x * Scalar::read_at(DType::BF16, 1, &[r[0], o[1]]).cast(DType::F32)
        },
        |_, acc| acc,
    );
    let weights = Tensor::from_bytes(DType::BF16, [k, n], shorts(w));
    let operands =
        [operand(DType::BF16, &[m, k], None), operand(DType::BF16, &[k, n], Some(weights)), operand(DType::F32, &[m, n], None)];
    let (step, target) = (Step::Compute(step), target());
    let plan = plan::choose(&step, &operands, &target);
    assert!(matches!(&plan, Plan::Brgemm(p) if p.row == "bf16_dot"), "{plan}");
    build::build("product", &step, &plan, &operands, &target)
}

fn shorts(v: &[u16]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Intel's manual on VDPBF16PS: the odd product first; subnormal numbers are zeros.
fn step(sum: f32, a: [f32; 2], b: [f32; 2]) -> f32 {
    let flush = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x };
    let add = |sum: f32, k: usize| flush(flush(a[k]).mul_add(flush(b[k]), sum));
    add(add(flush(sum), 1), 0)
}

/// Numbers near one, of any size, and special ones.
fn short() -> impl Strategy<Value = u16> {
    prop_oneof![
        6 => (0u16..0x400).prop_map(|v| 0x3e00 + (v & 0x1ff) + ((v >> 9) << 15)),
        2 => any::<u16>(),
        1 => prop::sample::select(vec![0, 0x8000, 1, 0x7f, 0x8001, 0x80, 0x7f80, 0xff80, 0x7fc0, 0x7f7f, 0xff7f, 0x0100, 0x2000]),
    ]
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

/// The backend, where this computer can run its code.
fn host() -> Option<Llvm> {
    Some(target()).filter(supported).map(Llvm::new)
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases: 32, ..default } }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn sums_are_the_same_bits(
        m in 1usize..9, pairs in 1usize..6, n in 2usize..40, xs in prop::collection::vec(short(), 96), ws in prop::collection::vec(short(), 400),
    ) {
        let k = 2 * pairs;
        let (x, w) = (&xs[..m * k], &ws[..k * n]);
        let nest = product(m, k, n, w);
        let float = |v: u16| f32::from_bits(u32::from(v) << 16);
        let mut want = vec![0.0f32; m * n];
        for (at, sum) in want.iter_mut().enumerate() {
            let (i, j) = (at / n, at % n);
            for q in (0..k).step_by(2) {
                let pair = |f: &dyn Fn(usize) -> u16| [float(f(q)), float(f(q + 1))];
                *sum = step(*sum, pair(&|q| x[i * k + q]), pair(&|q| w[q * n + j]));
            }
        }
        let (x, w) = (shorts(x), shorts(w));
        for llvm in [None, host()].iter().take(if host().is_some() { 2 } else { 1 }) {
            let got = to_floats(&ran(&nest, &[&x, &w], m * n * 4, llvm.as_ref()));
            for (at, (g, w)) in got.iter().zip(&want).enumerate() {
                prop_assert!(g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan(), "{at}: {g:e} instead of {w:e}");
            }
        }
    }
}

#[test]
fn pairs_and_rounding_are_instructions() {
    let llvm = Llvm::new(target());
    let nest = product(28, 64, 64, &vec![0x3f80; 64 * 64]);
    let asm = llvm.emit_text(std::slice::from_ref(&nest.kernel), "asm").expect("text");
    let count = |word: &str| asm.lines().filter(|l| l.trim_start().starts_with(word)).count();
    assert!(count("vdpbf16ps") >= 8 && count("vfmadd") == 0, "{asm}");
    let asm = llvm.emit_text(&[rounding(64).kernel], "asm").expect("text");
    assert!(asm.contains("vcvtneps2bf16"), "{asm}");
}

/// Rounds `n` numbers, as factors are.
fn rounding(n: usize) -> Nest {
    let step = Step::Compute(Compute::map(&[Expr::from(n)], |o| flushed(Scalar::read_at(DType::F32, 0, o)).cast(DType::BF16)));
    let operands = [operand(DType::F32, &[n], None), operand(DType::BF16, &[n], None)];
    build::build("round", &step, &plan::choose(&step, &operands, &target()), &operands, &target())
}

#[test]
fn rounding_is_to_nearest_even_and_keeps_nan() {
    let Some(llvm) = host() else { return };
    // Every exponent with mantissas around ties, and NaN of all kinds.
    let mantissas = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_8000, 0x1_7fff, 0x40_0000, 0x7f_7fff, 0x7f_8000, 0x7f_ffff];
    let values: Vec<u32> = (0..512).flat_map(|e: u32| mantissas.map(|m| e << 23 | m)).collect();
    let x: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let nest = rounding(values.len());
    let [got, want] = [Some(&llvm), None].map(|l| ran(&nest, &[&x], 2 * values.len(), l));
    for (i, (g, w)) in got.chunks(2).zip(want.chunks(2)).enumerate() {
        let [g, w] = [g, w].map(|b| u16::from_le_bytes([b[0], b[1]]));
        let nan = |v: u16| v & 0x7fff > 0x7f80;
        assert!(g == w || nan(g) && nan(w), "{:08x}: {g:04x} instead of {w:04x}", values[i]);
    }
}
