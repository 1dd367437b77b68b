//! A fault put into one link of the chain is found there: by node, pass and rewrite, or kernel.
#![cfg(feature = "llvm")]

#[path = "../../onnx/tests/kit/mod.rs"]
mod kit;

use infc::bisect::{self, Chain, Finding};
use infc::compare::Tolerance;
use infc::engine::Backend;
use infc_ir::graph::Graph;
use infc_ir::interp::{self, Item};
use infc_ir::{Op, Problems, Tensor, op};
use infc_kernel::loops::{Kernel, text};
use infc_kernel::program::{self, Lowered};
use infc_passes::{Class, Context, Pass};
use kit::*;

/// Two contractions, each with some elementwise work after it.
fn sample() -> Graph {
    let nodes = vec![
        node("a = MatMul(x, w)", []),
        node("b = Mul(a, c)", []),
        node("d = Relu(b)", []),
        node("e = Mul(d, g)", []),
        node("f = Sqrt(e)", []),
        node("y = MatMul(f, w)", []),
    ];
    let numbers = |n: usize| (0..n).map(|i| (i % 5) as f32 + 0.25).collect::<Vec<_>>();
    let constants = vec![
        constant("w", &Tensor::from_vec([4, 4], numbers(16))),
        constant("c", &Tensor::from_vec([1], vec![1f32])),
        constant("g", &Tensor::from_vec([1], vec![6.5f32])),
    ];
    let m = model(17, graph(&["x f32[n, 4]"], nodes, &["y f32[n, 4]"], constants));
    import(&m).unwrap_or_else(|p| panic!("{p}"))
}

fn inputs() -> Vec<Item> {
    vec![Tensor::from_vec([3, 4], (0..12).map(|i| i as f32).collect()).into()]
}

type Change<'a> = &'a dyn Fn(&mut [Kernel]);

/// Bisects the sample with changes put in.
fn check(backend: Backend, stored: bool, wrong_pass: bool, lowering: Change, code: Change) -> Option<Finding> {
    let graph = sample();
    let mut options = infc::Options::native().expect("this machine is supported");
    if wrong_pass {
        options.passes.more = WRONG;
        options.passes.pipeline.insert(1, "worsen".to_owned());
    }
    let lower = |g: &Graph| -> Result<Lowered, Problems> {
        let mut lowered = program::lower(g, &options.target, &vec![])?;
        lowering(&mut lowered.kernels);
        Ok(lowered)
    };
    let emit = |kernels: &[Kernel]| {
        let mut kernels = kernels.to_vec();
        code(&mut kernels);
        infc::target::backend(&options.target)?.emit(&kernels)
    };
    let mut want = interp::run(&graph, &inputs()).expect("runs");
    if stored {
        want = vec![Tensor::zeros(infc_ir::DType::F32, [3, 4]).into()];
    }
    let chain = Chain { options: &options, lower: &lower, emit: &emit, allowed: Tolerance::default() };
    bisect::find_with(&graph, &inputs(), Some(&want), backend, &chain).unwrap_or_else(|p| panic!("{p}"))
}

/// Makes every product a quotient, one rewrite each. By 1 that changes nothing, so only the second is wrong.
static WRONG: &[Pass] = &[Pass { name: "worsen", doc: "Wrong on purpose", class: Class::Exact, run: worsen }];

fn worsen(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    let mut count = 0;
    for n in g.region(Graph::MAIN).nodes.clone() {
        if matches!(g.node(n).op, Op::Mul(_)) && cx.spend() {
            g.nodes[n.index()].op = op::Div {}.into();
            count += 1;
        }
    }
    Ok(count)
}

/// Replaces text in the kernels that have it.
fn replace(kernels: &mut [Kernel], find: &str, with: &str) {
    for k in kernels {
        let printed = k.to_string();
        *k = text::parse(&printed.replace(find, with)).unwrap_or_else(|p| panic!("{printed}: {p}"));
    }
}

fn keep(_: &mut [Kernel]) {}

#[test]
fn a_sound_chain_has_no_finding() {
    for &backend in Backend::ALL {
        assert_eq!(check(backend, false, false, &keep, &keep), None, "{}", backend.name());
    }
}

#[test]
fn stored_outputs_that_are_wrong_name_the_output() {
    let f = check(Backend::Llvm, true, false, &keep, &keep).expect("a finding");
    assert_eq!(f.links, ("stored", "interp"));
    assert!(f.place.contains("'y'") && f.place.contains("MatMul 'n_y' (opset 17)"), "{f}");
}

#[test]
fn a_wrong_pass_is_named_with_its_rewrite_and_node() {
    for backend in [Backend::Passes, Backend::Llvm] {
        let f = check(backend, false, true, &keep, &keep).expect("a finding");
        assert_eq!(f.links, ("interp", "passes"));
        let parts = ["pass 'worsen' (number 2 of", "rewrite 2 of", "'n_e'"];
        assert!(parts.iter().all(|p| f.place.contains(p)), "{f}");
    }
}

#[test]
fn wrong_loops_are_named_by_the_node() {
    let wrong = |kernels: &mut [Kernel]| replace(kernels, "sqrt(", "abs(");
    for backend in [Backend::Loops, Backend::Llvm] {
        let f = check(backend, false, false, &wrong, &keep).expect("a finding");
        assert_eq!(f.links, ("passes", "loops"), "{f}");
        assert!(f.place.contains("Sqrt"), "{f}");
    }
}

#[test]
fn wrong_machine_code_is_named_by_node_and_kernel() {
    let wrong = |kernels: &mut [Kernel]| replace(kernels, "sqrt(", "abs(");
    let f = check(Backend::Llvm, false, false, &keep, &wrong).expect("a finding");
    assert_eq!(f.links, ("loops", "llvm"), "{f}");
    assert!(f.place.contains("Sqrt") && f.place.contains("in kernel '"), "{f}");
}
