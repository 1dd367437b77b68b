//! Random loop nests: compiled code does what the loop interpreter does, bit by bit.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support {
    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs"));
}

use infc_ir::scalar::Unary;
use infc_ir::{DType, Expr, Scalar};
use infc_kernel::backend::Backend;
use infc_kernel::loops::{Access, Kernel, LoopKind, Space};
use infc_test_kernels::nests::{buffers, build, difference, interpreted, nest};
use proptest::prelude::*;
use support::*;

/// Each case is compiled for all machines; `PROPTEST_CASES` asks for another number.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases: 24, ..default } }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn compiled_is_interpreted(nest in nest()) {
        let kernel = build(&nest);
        let (status, want) = interpreted(&nest, &kernel);
        for machine in hosts() {
            let mut got = buffers(&nest);
            let code = machine.emit(std::slice::from_ref(&kernel)).unwrap_or_else(|e| panic!("{e}"));
            prop_assert_eq!(call(&machine, &code, 0, &mut got, &[nest.serial], nest.tasks), status, "status on {}", machine.target().name);
            if status != 0 {
                continue;
            }
            prop_assert_eq!(difference(&got, &want), None, "on {}", machine.target().name);
        }
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    // More kernels than one module of LLVM holds.
    let kernels: Vec<Kernel> = (1..40i64)
        .map(|n| {
            let dims = [Expr::int(n)];
            let (read, write) = (Access::Read, Access::Write);
            let buffers =
                vec![buffer("x", DType::F32, &dims, Space::Global, read), buffer("y", DType::F32, &dims, Space::Global, write)];
            let i = Expr::var(0);
            let value = Scalar::read_at(DType::F32, 0, &[i]) * Scalar::float(DType::F32, n as f64);
            kernel(buffers, &[], vec![each(0, n, LoopKind::Serial, vec![store(1, &[i], value)])])
        })
        .collect();
    for machine in hosts() {
        let code = machine.emit(&kernels).unwrap();
        assert_eq!(code, machine.emit(&kernels).unwrap());
        for (k, n) in (1..40usize).enumerate() {
            let mut memories = vec![floats(&vec![2.0; n]), vec![0; 4 * n]];
            assert_eq!(call(&machine, &code, k, &mut memories, &[], 1), 0);
            assert_eq!(to_floats(&memories[1]), vec![2.0 * n as f32; n]);
        }
    }
}

#[test]
fn what_cannot_be_emitted_is_told() {
    let dims = [Expr::int(4)];
    let x = Scalar::read_at(DType::F32, 0, &[Expr::var(0)]);
    let message = |buffer_access: Access, value: Scalar, extent: Expr, kind: LoopKind| {
        let buffers = vec![
            buffer("x", DType::F32, &dims, Space::Global, Access::Read),
            buffer("y", DType::F32, &dims, Space::Global, buffer_access),
        ];
        let body = vec![each(0, extent, kind, vec![store(1, &[Expr::var(0)], value)])];
        hosts()[0].emit(&[kernel(buffers, &["n"], body)]).unwrap_err().to_string()
    };
    let four = Expr::int(4);
    let exp = message(Access::Write, Scalar::unary(Unary::Exp, x), four, LoopKind::Serial);
    assert!(exp.contains("kernel 'test': 'exp' was not lowered"), "{exp}");
    let stored = message(Access::Read, x, four, LoopKind::Serial);
    assert!(stored.contains("buffer 'y', which is only read"), "{stored}");
    let symbolic = message(Access::Write, x, Expr::sym("n"), LoopKind::Vector);
    assert!(symbolic.contains("the extent of i0 is not constant: n"), "{symbolic}");
    let unbound = message(Access::Write, Scalar::local(DType::F32, 3), four, LoopKind::Serial);
    assert!(unbound.contains("t3 is used before its Let"), "{unbound}");
}
