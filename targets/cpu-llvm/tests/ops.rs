//! Every scalar operation on edge values of every dtype, as scalar and as vector code, against `infc_ir::eval` bit by bit.

mod support;

use infc_kernel::backend::Backend;
use infc_test_kernels::operations::{Case, cases};
use support::*;

fn check(case: &Case) {
    for llvm in hosts() {
        let code = llvm.emit(&case.kernels()).unwrap_or_else(|e| panic!("{e}"));
        for (k, form) in ["scalar", "vector"].iter().enumerate() {
            let mut memories = case.buffers();
            assert_eq!(call(&llvm, &code, k, &mut memories, &[], 1), 0);
            assert_eq!(case.difference(&memories), None, "{} {form}", llvm.target().name);
        }
    }
}

#[test]
fn operations_on_edge_values() {
    let cases = cases();
    // Two threads: each case is compiled for three machines.
    let (even, odd): (Vec<_>, Vec<_>) = cases.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    std::thread::scope(|scope| {
        scope.spawn(|| even.iter().for_each(|(_, c)| check(c)));
        odd.iter().for_each(|(_, c)| check(c));
    });
}
