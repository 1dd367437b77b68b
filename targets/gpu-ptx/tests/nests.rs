//! Random loop nests and every scalar operation, printed as PTX and run by the interpreter: bit by bit what the loop interpreter does.

use infc_kernel::loops::Kernel;
use infc_ptxvm::{Grid, Memory, Module, launch};
use infc_test_kernels::nests::{Nest, buffers, build, difference, interpreted, nest};
use infc_test_kernels::operations;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

/// Runs entry `k<number>`; gives the error slot.
fn run(module: &Module, number: usize, scratch: u64, memories: &mut [Vec<u8>], symbols: &[i64], tasks: i64) -> u64 {
    let mut memory = Memory::default();
    let mut parameters = vec![];
    let places: Vec<u64> = memories.iter_mut().map(|m| memory.insert(std::mem::take(m))).collect();
    let error = memory.insert(vec![0; 4]);
    let own = memory.insert(vec![0xa5; scratch as usize * 64]);
    let all = places.iter().copied().chain(symbols.iter().map(|&s| s as u64)).chain([tasks as u64, error, own]);
    all.for_each(|v| parameters.extend(v.to_le_bytes()));
    let grid = Grid { blocks: [1, 1, 1], threads: [64, 1, 1], shared: 0 };
    let kernel = module.kernel(&format!("k{number}")).expect("an entry for each kernel");
    launch(kernel, grid, &parameters, &mut memory).unwrap_or_else(|f| panic!("{f}"));
    for (m, &p) in memories.iter_mut().zip(&places) {
        *m = memory.remove(p).expect("a buffer");
    }
    u64::from(u32::from_le_bytes(memory.remove(error).expect("the slot").try_into().unwrap()))
}

/// `PROPTEST_CASES` asks for another number.
fn cases() -> usize {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

#[test]
fn nests_do_what_the_interpreter_does() {
    let mut runner = TestRunner::deterministic();
    let nests: Vec<Nest> = (0..cases()).map(|_| nest().new_tree(&mut runner).expect("a nest").current()).collect();
    let kernels: Vec<Kernel> = nests.iter().map(build).collect();
    let text = infc_gpu_ptx::module(&kernels, &infc_gpu_ptx::default_machine()).unwrap_or_else(|e| panic!("{e}"));
    let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
    for (k, (nest, kernel)) in nests.iter().zip(&kernels).enumerate() {
        let (status, want) = interpreted(nest, kernel);
        let mut got = buffers(nest);
        let found = run(&module, k, text.scratch[k], &mut got, &[nest.serial], nest.tasks);
        assert_eq!(found, status, "{kernel}");
        if status == 0 {
            assert_eq!(difference(&got, &want), None, "{kernel}");
        }
    }
}

#[test]
fn operations_on_edge_values() {
    let cases = operations::cases();
    let kernels: Vec<Kernel> = cases.iter().flat_map(|c| c.kernels()).collect();
    let text = infc_gpu_ptx::module(&kernels, &infc_gpu_ptx::default_machine()).unwrap_or_else(|e| panic!("{e}"));
    let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
    let mut wrong = vec![];
    for (k, kernel) in kernels.iter().enumerate() {
        let case = &cases[k / 2];
        let mut memories = case.buffers();
        assert_eq!(run(&module, k, text.scratch[k], &mut memories, &[], 1), 0, "{kernel}");
        wrong.extend(case.difference(&memories));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
