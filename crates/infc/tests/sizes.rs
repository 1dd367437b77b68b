//! Sizes that only a run tells to be equal, and loops that never run: compiled code does what the interpreter does.

use infc::Options;
use infc::engine::{Backend, prepare};
use infc_ir::interp::Item;
use infc_ir::{Tensor, text};

/// All backends give what the interpreter gives, to some digits.
fn agree(body: &str, inputs: &[Tensor]) {
    let text = format!("graph \"g\" {{ source 0 \"node\" \"Op\" 13 region ({body} }} }}");
    let graph = text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let inputs: Vec<Item> = inputs.iter().cloned().map(Item::Tensor).collect();
    let options = Options::native().expect("a known machine");
    let run = |b: Backend| {
        prepare(graph.clone(), b, &options).and_then(|mut e| e.run(&inputs)).unwrap_or_else(|e| panic!("{e}\n{body}"))
    };
    let want = run(Backend::Interp);
    for &backend in Backend::ALL {
        for (got, want) in run(backend).iter().zip(&want) {
            let (got, want) = (got.as_tensor().expect("a tensor"), want.as_tensor().expect("a tensor"));
            assert_eq!(got.dims, want.dims, "{} of {body}", backend.name());
            let close = (0..want.len()).all(|i| (got.float(i) - want.float(i)).abs() <= 1e-6);
            assert!(close, "{} of {body}: {got:?} instead of {want:?}", backend.name());
        }
    }
}

fn floats(dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    Tensor::from_vec(dims, (0..n).map(|i| (i * 5 % 7) as f32 / 8.0 - 0.4).collect::<Vec<f32>>())
}

#[test]
fn recurrent_layers_of_symbols() {
    let rnn = "%0: f32[t, b, i] \"x\", %1: f32[d, g, k] \"w\", %2: f32[e, h, j] \"r\", %3: f32[f, c, m] \"h0\") {
        %4: f32[t, 1, b, 2] \"y\" = RNN(%0, %1, %2, _, _, %3) {hidden_size = 2} from [0] yield %4";
    agree(rnn, &[floats(&[3, 2, 4]), floats(&[1, 2, 4]), floats(&[1, 2, 2]), floats(&[1, 2, 2])]);
    let attention = "%0: f32[b, t, d] \"q\", %1: f32[c, s, e] \"k\", %2: f32[a, r, f] \"v\", %3: f32[1, 1, 2, 2] \"past\") {
        %4: f32[b, t, f] \"y\", %5: f32[b, 1, d, f] \"state\" =
            LinearAttention(%0, %1, %2, %3) {kv_num_heads = 1, q_num_heads = 1, update_rule = \"linear\"} from [0] yield %4, %5";
    agree(attention, &[floats(&[1, 3, 2]), floats(&[1, 3, 2]), floats(&[1, 3, 2]), floats(&[1, 1, 2, 2])]);
}

#[test]
fn loops_that_never_run() {
    let body = "%0: i64[] \"n\", %1: f32[m] \"x\") {
        %2: f32[m] \"last\", %3: f32[k, m] \"all\" = Loop(%0, _, %1) from [0]
            region \"body\" (%4: i64[], %5: bool[], %6: f32[m]) { %7: f32[m] = Neg(%6) from [0] yield %5, %7, %7 }
        yield %2, %3";
    for trips in [0, 2] {
        agree(body, &[Tensor::from_vec([], vec![trips as i64]), floats(&[3])]);
    }
}
