//! The loop interpreter on small kernels, and its two engines against each other.

use super::{Stop, run};
use crate::loops::{Access, Axes, Boxes, Buffer, Kernel, LoopKind, Space, Stmt};
use infc_ir::scalar::Binary;
use infc_ir::{DType, Expr, Scalar};

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn buffer(name: &str, n: i64, access: Access) -> Buffer {
    let dims = vec![Expr::int(n)];
    Buffer { name: name.into(), dtype: DType::F32, strides: Buffer::row_major(&dims), dims, space: Space::Global, access }
}

/// y[i] = x[i] * 2 in lanes of 4 where i < n, of two tasks.
fn doubled(n: i64) -> Kernel {
    let (task, lane) = (Expr::var(0), Expr::var(1));
    let i = Scalar::index(task * 4 + lane);
    let read = Scalar::read(DType::F32, 0, [i]);
    let store = Stmt::Store { buffer: 1, index: vec![i], value: read * Scalar::float(DType::F32, 2.0) };
    let mask = Stmt::If { cond: Scalar::binary(Binary::Lt, i, Scalar::index(n)), then: vec![store], otherwise: vec![] };
    Kernel {
        name: "double".into(),
        buffers: vec![buffer("x", 7, Access::Read), buffer("y", 7, Access::Write)],
        symbols: vec![],
        tasks: Expr::int(2),
        task: 0,
        body: vec![Stmt::For { var: 1, extent: Expr::int(4), kind: LoopKind::Vector, body: vec![mask] }],
        axes: Axes::default(),
        boxes: Boxes::default(),
    }
}

#[test]
fn masked_lanes() {
    let mut buffers = [f32s(&[1., 2., 3., 4., 5., 6., 7.]), f32s(&[0.; 7])];
    run(&doubled(7), &[], &mut buffers).unwrap();
    assert_eq!(buffers[1], f32s(&[2., 4., 6., 8., 10., 12., 14.]));
}

#[test]
fn an_access_outside_is_named() {
    let mut buffers = [f32s(&[0.; 7]), f32s(&[0.; 7])];
    let Err(Stop::Internal(what)) = run(&doubled(8), &[], &mut buffers) else { panic!("no error") };
    assert!(what.contains("index [7] is outside buffer 'x'"), "{what}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(1000))]

    #[test]
    fn the_fast_engine_equals_the_walker(k in crate::loops::arbitrary::any_kernel()) {
        let k = super::bind(&k, &[3]);
        let ints: Vec<u8> = [4i64, -1, 0, 2, 7].iter().flat_map(|v| v.to_le_bytes()).collect();
        let floats = |n: usize| f32s(&(0..n).map(|i| [0.5, -2.0, 3.0, 0.0, 1e9][i % 5]).collect::<Vec<f32>>());
        let run = |engine: fn(&Kernel, &mut super::Memory) -> Result<(), Stop>| {
            let mut memory = super::Memory::new(&k.buffers, &mut [floats(14), floats(12), ints.clone()]).unwrap();
            engine(&k, &mut memory)?;
            // All NaNs are one.
            for (b, bytes) in k.buffers.iter().zip(&mut memory.bytes).filter(|(b, _)| b.dtype == DType::F32) {
                assert_eq!(b.dtype.bytes(), 4);
                let nan = |v: &[u8]| f32::from_le_bytes(v.try_into().unwrap()).is_nan();
                bytes.chunks_exact_mut(4).filter(|v| nan(v)).for_each(|v| v.copy_from_slice(&f32::NAN.to_le_bytes()));
            }
            Ok::<_, Stop>(memory.bytes)
        };
        match (run(super::fast::run), run(super::walk::run)) {
            (Ok(a), Ok(b)) => proptest::prop_assert_eq!(a, b, "{}", k),
            // The walker looks at one arm of a select, where both must be defined.
            (Err(Stop::Internal(_)), _) if k.to_string().contains("select(") => {}
            (Err(Stop::Check(a)), Err(Stop::Check(b))) => proptest::prop_assert_eq!(a, b),
            (Err(Stop::Internal(_)), Err(Stop::Internal(_))) => {}
            (a, b) => proptest::prop_assert!(false, "{}\n{:?}\n{:?}", k, a, b),
        }
    }
}
