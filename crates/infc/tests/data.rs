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

/// As [`agree`], where sums may be added up in another order: to 1e-5 of the largest element.
fn nearly_agree(body: &str, inputs: &[Tensor]) {
    let of = |backend| match &run(body, backend, inputs).unwrap_or_else(|e| panic!("{e}\n{body}"))[..] {
        [Item::Tensor(t)] => (t.dims.clone(), (0..t.len()).map(|i| t.float(i)).collect::<Vec<f64>>()),
        other => panic!("one tensor is expected, not {other:?}"),
    };
    let (dims, want) = of(Backend::Interp);
    let largest = want.iter().filter(|v| !v.is_nan()).fold(0.0, |m: f64, v| m.max(v.abs()));
    for &backend in Backend::ALL {
        let (got_dims, got) = of(backend);
        let near = got.iter().zip(&want).all(|(a, b)| a.is_nan() && b.is_nan() || (a - b).abs() <= 1e-5 * largest);
        assert!(dims == got_dims && near, "{} of {body}: {got:?} instead of {want:?}", backend.name());
    }
}

/// Compiled code stops with an error that says this.
fn fails(body: &str, inputs: &[Tensor], message: &str) {
    run(body, Backend::Interp, inputs).expect_err("an error of the model");
    for &backend in Backend::ALL.iter().filter(|b| !matches!(b, Backend::Interp | Backend::Passes)) {
        let error = run(body, backend, inputs).expect_err("an error of the model");
        // The texts of code without the runtime are fixed: they tell no numbers.
        let message = if !backend.has_host() { message.split(" (").next().unwrap_or(message) } else { message };
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

#[test]
fn axes_from_data() {
    let ints = Tensor::from_ints;
    let squeeze = "%0: f32[n, 1, m, 1] \"x\", %1: i64[2] \"axes\") {
        %2: f32[a, b] \"y\" = Squeeze(%0, %1) from [0]
        yield %2";
    for axes in [[1, 3], [-1, 1], [3, -3]] {
        agree(squeeze, &[floats(&[2, 1, 3, 1]), ints(&axes)]);
    }
    agree(squeeze, &[floats(&[1, 1, 3, 1]), ints(&[0, 1])]);
    fails(squeeze, &[floats(&[2, 1, 3, 1]), ints(&[0, 1])], "dim 0 is taken out, so it must be 1");
    fails(squeeze, &[floats(&[2, 1, 3, 1]), ints(&[1, 4])], "its 2 axes must be different ones of 4");
    fails(squeeze, &[floats(&[2, 1, 3, 1]), ints(&[1, -3])], "must be different ones");
    // No dim is open here, and still the axis has to be right.
    let scalar = "%0: f32[1] \"x\", %1: i64[1] \"axes\") { %2: f32[] \"y\" = Squeeze(%0, %1) from [0] yield %2";
    agree(scalar, &[floats(&[1]), ints(&[-1])]);
    fails(scalar, &[floats(&[1]), ints(&[1])], "must be different ones of 1");
    let unsqueeze = "%0: f32[n, m] \"x\", %1: i64[2] \"axes\") {
        %2: f32[a, b, c, d] \"y\" = Unsqueeze(%0, %1) from [0]
        yield %2";
    for axes in [[0, 1], [3, 1], [-1, -4], [2, -1]] {
        agree(unsqueeze, &[floats(&[2, 3]), ints(&axes)]);
    }
    fails(unsqueeze, &[floats(&[2, 3]), ints(&[4, 0])], "its 2 axes must be different ones of 4");
    fails(unsqueeze, &[floats(&[2, 3]), ints(&[0, -4])], "must be different ones");
    let reduce = "%0: f32[n, m] \"x\", %1: i64[1] \"axes\") {
        %2: f32[a] \"y\" = ReduceSum(%0, %1) {keepdims = 0} from [0]
        yield %2";
    for axis in [0, 1, -1, -2] {
        agree(reduce, &[floats(&[2, 3]), ints(&[axis])]);
    }
    fails(reduce, &[floats(&[2, 3]), ints(&[2])], "its 1 axes must be different ones of 2");
    let running = "%0: f32[n, m] \"x\", %1: i64[] \"axis\") { %2: f32[n, m] \"y\" = CumSum(%0, %1) from [0] yield %2";
    agree(running, &[floats(&[2, 3]), Tensor::from_vec([], vec![-2i64])]);
    fails(running, &[floats(&[2, 3]), Tensor::from_vec([], vec![5i64])], "must be different ones of 2");
}

#[test]
fn cuts_and_frames_from_data() {
    let ints = Tensor::from_ints;
    let slice = "%0: f32[n, m] \"x\", %1: i64[2] \"starts\", %2: i64[2] \"ends\", %3: i64[2] \"axes\", %4: i64[2] \"steps\") {
        %5: f32[a, b] \"y\" = Slice(%0, %1, %2, %3, %4) from [0]
        yield %5";
    let cases = [
        ([0, 0], [4, 5], [0, 1], [1, 1]),
        ([1, -3], [100, -1], [1, 0], [2, 1]),
        ([-1, 3], [-100, 0], [0, 1], [-1, -2]),
        ([5, 2], [2, 2], [0, -1], [1, 1]),
        ([i64::MAX, i64::MIN], [i64::MIN, i64::MAX], [-2, -1], [-1, i64::MAX]),
        ([i64::MIN, i64::MAX], [i64::MAX, i64::MIN], [1, 0], [3, i64::MIN]),
    ];
    for (starts, ends, axes, steps) in cases {
        for dims in [[4, 5], [1, 2], [0, 3]] {
            agree(slice, &[floats(&dims), ints(&starts), ints(&ends), ints(&axes), ints(&steps)]);
        }
    }
    let wrong = |axes: [i64; 2], steps: [i64; 2], message: &str| {
        fails(slice, &[floats(&[4, 5]), ints(&[0, 0]), ints(&[2, 2]), ints(&axes), ints(&steps)], message);
    };
    wrong([0, 1], [1, 0], "no step may be 0");
    wrong([0, 0], [1, 1], "its 2 axes must be different ones of 2");
    wrong([0, 2], [1, 1], "its 2 axes must be different ones of 2");
    for mode in ["constant", "edge", "reflect", "wrap"] {
        let pad = format!(
            "%0: f32[n, m] \"x\", %1: i64[2] \"pads\", %2: i64[1] \"axes\") {{
            %3: f32[a, b] \"y\" = Pad(%0, %1, _, %2) {{mode = \"{mode}\"}} from [0]
            yield %3"
        );
        for (pads, axis) in [([1, 2], 0), ([2, 0], -1), ([-1, 1], 1), ([-2, -1], 0)] {
            agree(&pad, &[floats(&[3, 4]), ints(&pads), ints(&[axis])]);
        }
        fails(&pad, &[floats(&[3, 4]), ints(&[1, 1]), ints(&[-3])], "its 1 axes must be different ones of 2");
        fails(&pad, &[floats(&[3, 4]), ints(&[-2, -2]), ints(&[0])], "must not take more elements than there are");
    }
}

#[test]
fn scales_and_sizes_from_data() {
    let scale = |v: &[f32]| Tensor::from_vec([v.len()], v.to_vec());
    for attributes in [
        "mode = \"nearest\"",
        "mode = \"nearest\", coordinate_transformation_mode = \"asymmetric\", nearest_mode = \"floor\"",
        "mode = \"linear\"",
        "mode = \"linear\", coordinate_transformation_mode = \"half_pixel_symmetric\"",
        "mode = \"linear\", antialias = 1",
        "mode = \"cubic\", antialias = 1",
        "mode = \"cubic\", exclude_outside = 1, coordinate_transformation_mode = \"align_corners\"",
    ] {
        let by_scales = format!(
            "%0: f32[n, m] \"x\", %1: f32[2] \"scales\") {{
            %2: f32[a, b] \"y\" = Resize(%0, _, %1) {{{attributes}}} from [0]
            yield %2"
        );
        for scales in [[1.0, 1.0], [2.0, 0.5], [0.6, 1.7], [0.25, 3.0]] {
            nearly_agree(&by_scales, &[floats(&[4, 5]), scale(&scales)]);
        }
        fails(&by_scales, &[floats(&[4, 5]), scale(&[1.0, -1.0])], "scale");
        for policy in ["stretch", "not_larger", "not_smaller"] {
            let by_sizes = format!(
                "%0: f32[n, m] \"x\", %1: i64[2] \"sizes\") {{
                %2: f32[a, b] \"y\" = Resize(%0, _, _, %1) {{{attributes}, keep_aspect_ratio_policy = \"{policy}\"}} from [0]
                yield %2"
            );
            for sizes in [[4, 5], [3, 9], [1, 2], [8, 3]] {
                nearly_agree(&by_sizes, &[floats(&[4, 5]), Tensor::from_ints(&sizes)]);
            }
        }
    }
}

#[test]
fn transforms_from_data() {
    let number = |v: i64| Tensor::from_vec([], vec![v]);
    for attributes in ["inverse = 0", "onesided = 1", "inverse = 1", "inverse = 1, onesided = 1"] {
        let parts = if attributes == "onesided = 1" { 1 } else { 2 };
        let last = if attributes == "inverse = 1, onesided = 1" { 1 } else { 2 };
        let dft = format!(
            "%0: f32[n, m, {parts}] \"x\", %1: i64[] \"length\", %2: i64[] \"axis\") {{
            %3: f32[a, b, {last}] \"y\" = DFT(%0, %1, %2) {{{attributes}}} from [0]
            yield %3"
        );
        for (length, axis) in [(4, 0), (5, 1), (3, -2), (7, -3)] {
            nearly_agree(&dft, &[floats(&[3, 4, parts]), number(length), number(axis)]);
        }
        fails(&dft, &[floats(&[3, 4, parts]), number(4), number(2)], "the last axis holds real and imaginary parts");
        fails(&dft, &[floats(&[3, 4, parts]), number(4), number(-4)], "its 1 axes must be different ones of 3");
        fails(&dft, &[floats(&[3, 4, parts]), number(0), number(0)], "must be positive");
    }
}

#[test]
fn what_is_expected_of_data() {
    let expect = "%0: f32[n] \"x\", %1: i64[] \"c\") {
        %2: f32[n] \"y\" = infc:Expect(%0, %1) {text = \"c must be 3\", value = 3} from [0]
        yield %2";
    agree(expect, &[floats(&[2]), Tensor::from_vec([], vec![3i64])]);
    fails(expect, &[floats(&[2]), Tensor::from_vec([], vec![4i64])], "c must be 3");
}
