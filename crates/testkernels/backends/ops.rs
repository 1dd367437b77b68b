//! Every scalar operation on edge values of every dtype, as scalar and as vector code, against `infc_ir::eval` bit by bit.

#[allow(dead_code, unused_imports, reason = "each test file uses a part")]
mod support {
    include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mod.rs"));
}

use infc_kernel::backend::Backend;
use infc_test_kernels::operations::{Case, cases};
use support::*;

fn check(case: &Case) {
    for machine in hosts() {
        let code = machine.emit(&case.kernels()).unwrap_or_else(|e| panic!("{e}"));
        for (k, form) in ["scalar", "vector"].iter().enumerate() {
            let mut memories = case.buffers();
            assert_eq!(call(&machine, &code, k, &mut memories, &[], 1), 0);
            assert_eq!(case.difference(&memories), None, "{} {form}", machine.target().name);
        }
    }
}

#[test]
fn operations_on_edge_values() {
    let cases = cases();
    // Two threads: each case is compiled for all machines.
    let (even, odd): (Vec<_>, Vec<_>) = cases.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    std::thread::scope(|scope| {
        scope.spawn(|| even.iter().for_each(|(_, c)| check(c)));
        odd.iter().for_each(|(_, c)| check(c));
    });
}
