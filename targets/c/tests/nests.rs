//! Random loop nests and every scalar operation, printed as C and compiled: bit by bit what the loop interpreter does. Many kernels are one
//! call of the compiler, with undefined behaviour as an error.

use infc_c::Style;
use infc_c::load::{self, Library};
use infc_kernel::loops::Kernel;
use infc_test_kernels::nests::{Nest, buffers, build, difference, interpreted, nest};
use infc_test_kernels::operations;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

/// What the code has to compile with, and what shows undefined behaviour.
const FLAGS: &str =
    "-std=c99 -ffp-contract=off -O1 -Wall -Wextra -pedantic -Werror -fsanitize=undefined -fno-sanitize-recover=all";

/// The usual code, code for microcontrollers, and code with vector types, of two widths.
const STYLES: [Style; 4] = [
    Style { own_math: false, narrow_index: false, vector_bytes: 0 },
    Style { own_math: true, narrow_index: true, vector_bytes: 0 },
    Style { own_math: false, narrow_index: false, vector_bytes: 16 },
    Style { own_math: true, narrow_index: true, vector_bytes: 32 },
];

fn compiled(kernels: &[Kernel], style: Style) -> (Library, Vec<u64>) {
    let text = infc_c::kernels(kernels, "entry", style).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(text.contains("math.h"), !style.own_math);
    let scratch = vec![0; infc_c::scratch(kernels).div_ceil(8) as usize + 1];
    (load::compile(&[("kernels.c", &text)], FLAGS).unwrap_or_else(|e| panic!("{e}")), scratch)
}

/// `PROPTEST_CASES` asks for another number.
fn cases() -> usize {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

#[test]
fn nests_do_what_the_interpreter_does() {
    let mut runner = TestRunner::deterministic();
    let nests: Vec<Nest> = (0..cases()).map(|_| nest().new_tree(&mut runner).expect("a nest").current()).collect();
    for nests in nests.chunks(150) {
        let kernels: Vec<Kernel> = nests.iter().map(build).collect();
        for style in STYLES {
            let (library, mut scratch) = compiled(&kernels, style);
            for (k, (nest, kernel)) in nests.iter().zip(&kernels).enumerate() {
                let (status, want) = interpreted(nest, kernel);
                let mut got = buffers(nest);
                // Safety: an entry of this library, with the memory that the interpreter has run on.
                let found = unsafe { library.kernel(&format!("entry{k}"), &mut got, &[nest.serial], &mut scratch) };
                assert_eq!(found.unwrap(), status, "{kernel}");
                if status == 0 {
                    assert_eq!(difference(&got, &want), None, "{kernel} as {style:?}");
                }
            }
        }
    }
}

#[test]
fn operations_on_edge_values() {
    let cases = operations::cases();
    let kernels: Vec<Kernel> = cases.iter().flat_map(|c| c.kernels()).collect();
    for style in STYLES.into_iter().filter(|s| s.vector_bytes != 32) {
        let (library, mut scratch) = compiled(&kernels, style);
        for (k, kernel) in kernels.iter().enumerate() {
            let case = &cases[k / 2];
            let mut memories = case.buffers();
            // Safety: an entry of this library, with the memory of its case.
            let status = unsafe { library.kernel(&format!("entry{k}"), &mut memories, &[], &mut scratch) };
            assert_eq!(status.unwrap(), 0);
            assert_eq!(case.difference(&memories), None, "{kernel} as {style:?}");
        }
    }
}
