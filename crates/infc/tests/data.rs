//! Sizes and errors that only data tells: compiled code does what the interpreter does, and says which node is wrong.

use infc::Options;
use infc::engine::{Backend, prepare};
use infc_ir::interp::Item;
use infc_ir::{Tensor, text};

/// Results of a graph of one or two inputs by a backend, or the error.
fn run(body: &str, backend: Backend, inputs: &[Tensor]) -> Result<Vec<Item>, String> {
    let text = format!("graph \"g\" {{ source 0 \"node\" \"Op\" 13 region ({body} }} }}");
    let graph = text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let inputs: Vec<Item> = inputs.iter().cloned().map(Item::Tensor).collect();
    let options = Options::native().expect("a known machine");
    prepare(graph, backend, &options).and_then(|mut e| e.run(&inputs)).map_err(|p| p.to_string())
}

/// All backends agree with the interpreter.
fn agree(body: &str, inputs: &[Tensor]) {
    let want = run(body, Backend::Interp, inputs).unwrap_or_else(|e| panic!("{e}\n{body}"));
    for &backend in Backend::ALL {
        assert_eq!(run(body, backend, inputs).as_ref(), Ok(&want), "{} of {body}", backend.name());
    }
}

/// Compiled code stops with an error that says this.
fn fails(body: &str, inputs: &[Tensor], message: &str) {
    run(body, Backend::Interp, inputs).expect_err("an error of the model");
    for &backend in Backend::ALL.iter().filter(|b| !matches!(b, Backend::Interp | Backend::Passes)) {
        let error = run(body, backend, inputs).expect_err("an error of the model");
        assert!(error.contains(message) && error.contains("'node'"), "{}: {error}", backend.name());
    }
}

fn floats(dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    Tensor::from_vec(dims, (0..n).map(|i| (i * 5 % 7) as f32).collect::<Vec<f32>>())
}

#[test]
fn indices_outside_of_the_data() {
    let gather = "%0: f32[n, 2] \"x\", %1: i64[m] \"i\") { %2: f32[m, 2] \"y\" = Gather(%0, %1) from [0] yield %2";
    agree(gather, &[floats(&[3, 2]), Tensor::from_ints(&[0, -3, 2])]);
    fails(
        gather,
        &[floats(&[3, 2]), Tensor::from_ints(&[0, 3])],
        "the number of indices that lie outside of the data must be 0 (1 and 0)",
    );
    fails(gather, &[floats(&[3, 2]), Tensor::from_ints(&[-4])], "outside of the data");
}

#[test]
fn shapes_from_data() {
    let reshape = "%0: f32[n, 6] \"x\", %1: i64[2] \"shape\") {
        %2: f32[a, b] \"y\" = Reshape(%0, %1) from [0]
        %3: f32[b, a] \"z\" = Transpose(%2) {perm = [1, 0]} from [0]
        yield %3";
    for shape in [[3, 4], [-1, 2], [0, -1], [12, 1]] {
        agree(reshape, &[floats(&[2, 6]), Tensor::from_ints(&shape)]);
    }
    fails(reshape, &[floats(&[2, 6]), Tensor::from_ints(&[5, 2])], "another number of elements");
    let range = "%0: i64[] \"start\", %1: i64[] \"limit\") { %2: i64[r] \"y\" = Range(%0, %1, %0) from [0] yield %2";
    let number = |v: i64| Tensor::from_vec([], vec![v]);
    for (start, limit) in [(2, 9), (3, 3), (-2, -9), (5, 1)] {
        agree(range, &[number(start), number(limit)]);
    }
}

#[test]
fn selection_and_what_follows_it() {
    let top = "%0: f32[n, 5] \"x\", %1: i64[1] \"k\") {
        %2: f32[n, k] \"values\", %3: i64[n, k] \"indices\" = TopK(%0, %1) {axis = 1} from [0]
        %4: f32[n, k] \"y\" = Neg(%2) from [0]
        yield %4, %3";
    for k in [0, 1, 5] {
        agree(top, &[floats(&[3, 5]), Tensor::from_ints(&[k])]);
    }
    let found = "%0: f32[n, m] \"x\") {
        %1: i64[2, c] \"at\" = NonZero(%0) from [0]
        %2: i64[c, 2] \"rows\" = Transpose(%1) {perm = [1, 0]} from [0]
        %3: f32[c] \"y\" = GatherND(%0, %2) from [0]
        yield %2, %3";
    agree(found, &[floats(&[4, 5])]);
    agree(found, &[Tensor::zeros(infc_ir::DType::F32, [2, 3])]);
}
