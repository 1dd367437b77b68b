//! Quantisation in few instructions gives the bits of the loop interpreter: ties, zero points, NaN, infinities, signed zeros.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support;

use infc_ir::scalar::{Binary, Scalar, Unary};
use infc_ir::{DType, Expr};
use infc_kernel::backend::Backend;
use infc_kernel::loops::{Access, Kernel, LoopKind, Space, interp};
use proptest::prelude::*;
use support::*;

const LANES: usize = 16;

/// A zero point: none, a constant, or one element of memory.
#[derive(Clone, Copy, Debug)]
enum Zero {
    None,
    Const(f64),
    Read(DType, i64),
}

/// `q[i] = quantise(x[i])`, and `y[i]` what it stands for, in units of the scale.
fn quantiser(zero: Zero, to: DType, hi: f64) -> Kernel {
    let (f, int) = (DType::F32, DType::I32);
    let buffers = vec![
        buffer("x", f, &[LANES.into()], Space::Global, Access::Read),
        buffer("z", if let Zero::Read(d, _) = zero { d } else { DType::U8 }, &[], Space::Global, Access::Read),
        buffer("q", to, &[LANES.into()], Space::Global, Access::Write),
        buffer("y", f, &[LANES.into()], Space::Global, Access::Write),
    ];
    let lane = Expr::var(0);
    let rounded = Scalar::unary(Unary::Round, Scalar::read_at(f, 0, &[lane]));
    let (sum, whole) = match zero {
        Zero::None => (rounded, None),
        Zero::Const(z) => (rounded + Scalar::float(f, z), Some(Scalar::int(int, z as i64))),
        Zero::Read(d, _) => {
            let z = Scalar::read_at(d, 1, &[]);
            (rounded + z.cast(f), Some(z.cast(int)))
        }
    };
    let limited = Scalar::binary(Binary::Min, sum.max(Scalar::float(f, 0.0)), Scalar::float(f, hi));
    let stored = limited.cast(to);
    let back = whole.map_or(stored.cast(int), |z| stored.cast(int) - z).cast(f);
    kernel(buffers, &[], vec![each(0, LANES, LoopKind::Vector, vec![store(2, &[lane], stored), store(3, &[lane], back)])])
}

fn number() -> impl Strategy<Value = f32> {
    let edges =
        vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, -0.3, 1e9, -1e9, 254.5, 255.5, 65535.5, f32::MIN_POSITIVE];
    prop_oneof![
        2 => prop::sample::select(edges),
        4 => (-520i32..1100).prop_map(|h| h as f32 / 2.0),
        2 => -300.0f32..300.0,
        // No signalling NaN: LLVM makes FMAXNM of a comparison and a choice, which on 64-bit Arm gives NaN for one (`docs/numerics.md`).
        1 => any::<u32>().prop_map(f32::from_bits).prop_map(|x| if x.is_nan() { f32::from_bits(x.to_bits() | 1 << 22) } else { x }),
    ]
}

fn zero() -> impl Strategy<Value = Zero> {
    prop_oneof![
        Just(Zero::None),
        prop::sample::select(vec![0.0, 1.0, 3.0, 128.0, 255.0, -7.0]).prop_map(Zero::Const),
        (0i64..256).prop_map(|z| Zero::Read(DType::U8, z)),
        (-128i64..128).prop_map(|z| Zero::Read(DType::I8, z)),
        (0i64..65536).prop_map(|z| Zero::Read(DType::U16, z)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn the_bits_of_the_interpreter(
        zero in zero(), wide in any::<bool>(), hi in prop::sample::select(vec![255.0, 6.0, 200.0]), x in prop::collection::vec(number(), LANES),
    ) {
        let to = if wide { DType::U16 } else { DType::U8 };
        let kernel = quantiser(zero, to, if wide && hi == 255.0 { 65535.0 } else { hi });
        let z = if let Zero::Read(d, z) = zero { memory(d, &[z as u64]) } else { vec![0] };
        let start = vec![floats(&x), z, vec![0xa5; LANES * to.bytes()], vec![0xa5; LANES * 4]];
        let mut want = start.clone();
        interp::run(&kernel, &[], &mut want).expect("runs");
        for llvm in hosts() {
            let mut got = start.clone();
            prop_assert_eq!(run(&llvm, &kernel, &mut got, &[]), 0);
            prop_assert_eq!(&got[2], &want[2], "{} {:?}: stored", llvm.target().name, x);
            prop_assert_eq!(&got[3], &want[3], "{} {:?}: taken back", llvm.target().name, x);
        }
    }
}

#[test]
fn needs_few_instructions() {
    for llvm in hosts().into_iter().filter(|l| l.target().vector_bytes == 64) {
        let asm = llvm.emit_text(&[quantiser(Zero::Read(DType::U8, 0), DType::U8, 255.0)], "asm").expect("text");
        let count = |word: &str| asm.lines().filter(|l| l.trim_start().starts_with(word)).count();
        assert_eq!((count("vrndscaleps"), count("vcvttps2dq"), count("vcvtdq2ps\t%zmm")), (0, 0, 0), "{asm}");
        assert!(count("vmaxps") == 1 && count("vminps") == 1, "{asm}");
    }
}
