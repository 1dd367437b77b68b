//! The C text of kernels that everybody knows, for people to review.

use infc_c::{Options, Style, Weights, machines, source};
use infc_kernel::program::lower;

/// Compares the kernels of a graph with a snapshot, as the usual code.
fn check(name: &str, graph: &str) {
    check_for("c99", name, graph);
}

/// Compares the kernels of a graph with a snapshot, for a machine.
fn check_for(machine: &str, name: &str, graph: &str) {
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, kernels(machine, graph));
    });
}

/// The kernels of a graph as C, without what stands before and after them.
fn kernels(machine: &str, graph: &str) -> String {
    let mut graph = infc_ir::text::parse(graph).unwrap_or_else(|e| panic!("{e}"));
    infc_passes::run(&mut graph, &infc_passes::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let machine = machines().into_iter().find(|m| m.name == machine).expect("a machine");
    let lowered = lower(&graph, &machine, &vec![]).unwrap_or_else(|e| panic!("{e}"));
    let options = Options {
        name: "model".into(),
        model: "model".into(),
        weights: Weights::Apart,
        openmp: false,
        style: Style::of(&machine),
        bounds: [("n".to_owned(), 64)].into_iter().filter(|_| !lowered.program.symbols.is_empty()).collect(),
    };
    let c = source(&lowered, &options).unwrap_or_else(|e| panic!("{e}")).c;
    let (start, end) = (c.find("#endif\n\n").expect("a preamble"), c.find("\nconst char *model_message").expect("a message"));
    let (_, text) = c[..end].split_at(start);
    let text = text.split_once("\"-Wpsabi\"\n").map_or(text, |(_, rest)| rest);
    text.trim_start_matches("#endif\n").trim_start_matches("#if defined(__clang__) || !defined(__GNUC__)\n").to_owned()
}

const MATMUL: &str = "graph \"matmul\" {
           source 0 \"product\" \"MatMul\" 13
           region (%0: f32[n, 64] \"a\", %1: f32[64, 48] \"b\") {
             %2: f32[n, 48] \"y\" = MatMul(%0, %1) from [0]
             yield %2
           }
         }";

#[test]
fn matmul() {
    check("matmul", MATMUL);
}

#[test]
fn matmul_with_vector_types() {
    check_for("c99-vector", "matmul_vector", MATMUL);
}

#[test]
fn conv_relu() {
    check(
        "conv_relu",
        "graph \"conv\" {
           source 0 \"conv\" \"Conv\" 13
           source 1 \"relu\" \"Relu\" 13
           region (%0: f32[1, 8, 16, 16] \"x\", %1: f32[16, 8, 3, 3] \"w\", %2: f32[16] \"bias\") {
             %3: f32[1, 16, 14, 14] = Conv(%0, %1, %2) from [0]
             %4: f32[1, 16, 14, 14] \"y\" = Relu(%3) from [1]
             yield %4
           }
         }",
    );
}

#[test]
fn softmax() {
    check(
        "softmax",
        "graph \"softmax\" {
           source 0 \"softmax\" \"Softmax\" 13
           region (%0: f32[n, 10] \"x\") {
             %1: f32[n, 10] \"y\" = Softmax(%0) from [0]
             yield %1
           }
         }",
    );
}
