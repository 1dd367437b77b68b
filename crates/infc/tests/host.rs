//! Strings, sequences and optionals: all engines agree, what only moves strings is native, errors name the node.

mod tool;

use infc::Options;
use infc::engine::{Backend, prepare};
use infc_ir::interp::Item;
use infc_ir::{Graph, Tensor, text};
use tool::*;

fn graph(body: &str) -> Graph {
    let text = format!("graph \"g\" {{ opset \"\" 23 source 0 \"node\" \"Op\" 13 region ({body} }} }}");
    text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Results by a backend with the operators on the host, or the error.
fn run(body: &str, backend: Backend, inputs: &[Item]) -> Result<(Vec<Item>, Vec<String>), String> {
    let mut engine = prepare(graph(body), backend, &Options::native().expect("a known machine")).map_err(|p| p.to_string())?;
    // Twice: nothing of the first run is left.
    engine.run(inputs).map_err(|p| p.to_string())?;
    let outputs = engine.run(inputs).map_err(|p| p.to_string())?;
    Ok((outputs, engine.host_nodes()))
}

fn compiled() -> impl Iterator<Item = Backend> {
    Backend::ALL.iter().copied().filter(|b| b.has_host() && !matches!(b, Backend::Interp | Backend::Passes))
}

/// C code and WebAssembly have no host: it is refused.
fn refused(body: &str, inputs: &[Item]) {
    for (backend, what) in [(Backend::C, "C code"), (Backend::Wasm, "code without the runtime")] {
        let error = run(body, backend, inputs).expect_err("needs a host");
        assert!(error.contains("'node'") && error.contains(&format!("{what} does not have")), "{error}");
    }
}

/// All backends agree with the interpreter, and compiled code runs these operators on the host.
#[track_caller]
fn agree(body: &str, inputs: &[Item], host: &[&str]) {
    let want = run(body, Backend::Interp, inputs).unwrap_or_else(|e| panic!("{e}\n{body}")).0;
    refused(body, inputs);
    for &backend in Backend::ALL.iter().filter(|b| b.has_host()) {
        let (got, nodes) = run(body, backend, inputs).unwrap_or_else(|e| panic!("{} of {body}: {e}", backend.name()));
        assert_eq!(got, want, "{} of {body}", backend.name());
        if compiled().any(|b| b == backend) {
            let mut names: Vec<&str> = nodes.iter().filter_map(|n| n.split(' ').next()).collect();
            names.dedup();
            assert_eq!(names, host, "{} of {body}", backend.name());
        }
    }
}

/// Compiled code stops with an error that says this and names the node.
#[track_caller]
fn fails(body: &str, inputs: &[Item], message: &str) {
    run(body, Backend::Interp, inputs).expect_err("an error of the model");
    for backend in compiled() {
        let error = run(body, backend, inputs).expect_err("an error of the model");
        assert!(error.contains(message) && error.contains("'node'"), "{}: {error}", backend.name());
    }
}

fn words(dims: &[usize], list: &[&str]) -> Item {
    Item::Tensor(Tensor::from_strings(dims, list.iter().map(|s| s.as_bytes().to_vec().into())))
}

fn ints(values: &[i64]) -> Item {
    Item::Tensor(Tensor::from_ints(values))
}

fn floats(values: &[f32]) -> Item {
    Item::Tensor(Tensor::from_vec([values.len()], values.to_vec()))
}

fn scalar(value: i64) -> Item {
    Item::Tensor(Tensor::from_vec([], vec![value]))
}

fn flag(value: bool) -> Item {
    Item::Tensor(Tensor::from_bools([], &[value]))
}

#[test]
fn models_of_numbers_need_no_host() {
    let own = ["digits_mlp", "glyphs_cnn"].map(|m| examples().join(m).join("model.onnx"));
    let options = Options::native().expect("a known machine");
    for path in own.into_iter().chain(kit::shared_models()) {
        let name = path.display();
        let graph = infc_onnx::import(&path).unwrap_or_else(|p| panic!("{name}: {p}"));
        // The steps are those of every backend; no machine code is needed to see them.
        let engine = prepare(graph, Backend::Loops, &options).unwrap_or_else(|p| panic!("{name}: {p}"));
        assert_eq!(engine.host_nodes(), [""; 0], "{name}");
    }
}

#[test]
fn strings_are_moved_by_their_positions() {
    let six = words(&[2, 3], &["a", "b", "c", "d", "e", "f"]);
    let one = |node: &str, dims: &str| {
        format!("%0: string[n, m] \"x\", %1: i64[k] \"i\") {{ %2: string[{dims}] \"y\" = {node} from [0] yield %2")
    };
    agree(&one("Transpose(%0) {perm = [1, 0]}", "m, n"), &[six.clone(), ints(&[])], &["Transpose"]);
    let gather = one("Gather(%0, %1) {axis = 1}", "n, k");
    agree(&gather, &[six.clone(), ints(&[2, 0, -1])], &["Gather"]);
    agree(&gather, &[six.clone(), ints(&[])], &["Gather"]);
    fails(&gather, &[six.clone(), ints(&[3])], "the number of indices that lie outside of the data must be 0");
    agree(&one("Concat(%0, %0) {axis = -1}", "n, 2*m"), &[six.clone(), ints(&[])], &["Concat"]);
    agree(&one("Identity(%0)", "n, m"), &[six.clone(), ints(&[])], &["Identity"]);
    let flat = "%0: string[2, 3] \"x\", %1: bool[2, 1] \"c\", %2: string[3] \"z\") {
        %3: string[2, 3] \"w\" = Where(%1, %0, %2) from [0]
        %4: i64[1] = infc:DimVector() {exprs = [\"-1\"]} from [0]
        %5: string[6] \"y\" = Reshape(%3, %4) from [0]
        yield %3, %5";
    let cond = Item::Tensor(Tensor::from_bools([2, 1], &[true, false]));
    agree(flat, &[six, cond, words(&[3], &["x", "", "z"])], &["Where", "Reshape"]);
}

#[test]
fn strings_that_native_steps_follow() {
    let body = "%0: string[n] \"x\") {
        %1: string[n, p], %2: i64[n] = StringSplit(%0) {delimiter = \",\"} from [0]
        %3: bool[n, p] = RegexFullMatch(%1) {pattern = \"a+\"} from [0]
        %4: f32[n, p] \"y\" = Cast(%3) {to = 1} from [0]
        %5: i64[n] \"z\" = Add(%2, %2) from [0]
        yield %4, %5";
    agree(body, &[words(&[3], &["a,b", "aa", ",,a"])], &["StringSplit", "RegexFullMatch"]);
    agree(body, &[words(&[0], &[])], &["StringSplit", "RegexFullMatch"]);
    let cast = "%0: string[n] \"x\") {
        %1: i32[n] \"y\" = Cast(%0) {to = 6} @\"node\" from [0]
        %2: f16[n] = Cast(%0) {to = 10} from [0]
        %3: string[n] \"z\" = Cast(%2) {to = 8} from [0]
        yield %1, %3";
    agree(cast, &[words(&[3], &["7", "-2", "3.9"])], &["Cast"]);
    fails(cast, &[words(&[1], &["seven"])], "'seven' is no number");
}

#[test]
fn elements_of_a_sequence_differ_in_size() {
    let body = "%0: seq(f32[n]) \"s\", %1: i64[] \"i\", %2: i64[] \"j\") {
        %3: f32[a] = SequenceAt(%0, %1) from [0]
        %4: f32[b] = SequenceAt(%0, %2) from [0]
        %5: f32[a] \"y\" = Neg(%3) from [0]
        %6: f32[b] \"z\" = Neg(%4) from [0]
        %7: seq(f32[n]) = SequenceInsert(%0, %5, %1) from [0]
        %8: f32[c] \"all\" = ConcatFromSequence(%7) {axis = 0} from [0]
        yield %5, %6, %8, %7";
    let list = Item::Sequence(vec![floats(&[1.0]), floats(&[2.0, 3.0, 4.0]), floats(&[])]);
    agree(body, &[list.clone(), scalar(1), scalar(0)], &["SequenceAt", "SequenceInsert", "ConcatFromSequence"]);
    agree(body, &[list.clone(), scalar(-1), scalar(1)], &["SequenceAt", "SequenceInsert", "ConcatFromSequence"]);
    fails(body, &[list, scalar(3), scalar(0)], "position 3 is outside the sequence of 3");
}

#[test]
fn bodies_carry_sequences() {
    let squares = "%0: i64[] \"n\", %1: f32[m] \"x\") {
        %2: seq(nothing(f32)) = SequenceEmpty() from [0]
        %4: seq(f32[m]) \"s\", %5: f32[m] \"last\" = Loop(%0, _, %2, %1) from [0]
          region (%6: i64[], %7: bool[], %8: seq(nothing(f32)), %9: f32[m]) {
            %10: f32[m] = Mul(%9, %9) from [0]
            %11: seq(f32[m]) = SequenceInsert(%8, %10) from [0]
            yield %7, %11, %10
          }
        yield %4, %5";
    for n in [0, 1, 3] {
        agree(squares, &[scalar(n), floats(&[2.0, -0.5])], &["SequenceEmpty", "Loop", "SequenceInsert"]);
    }
    let map = "%0: seq(f32[n]) \"s\", %1: f32[] \"t\") {
        %2: seq(f32[n]) \"y\" = SequenceMap(%0, %1) from [0]
          region (%3: f32[n], %4: f32[]) {
            %5: f32[n] = Add(%3, %4) from [0]
            yield %5
          }
        yield %2";
    let t = Item::Tensor(Tensor::from_vec([], vec![0.5f32]));
    agree(map, &[Item::Sequence(vec![floats(&[1.0]), floats(&[]), floats(&[2.0, 3.0])]), t.clone()], &["SequenceMap"]);
    agree(map, &[Item::Sequence(vec![]), t], &["SequenceMap"]);
}

#[test]
fn optionals_from_branches() {
    let body = "%0: bool[] \"c\", %1: f32[n] \"x\") {
        %2: optional(f32[n]) \"o\" = If(%0, %1) from [0]
          region (%3: f32[n]) {
            %4: f32[n] = Neg(%3) from [0]
            %5: optional(f32[n]) = Optional(%4) from [0]
            yield %5
          }
          region (%6: f32[n]) {
            %7: optional(f32[n]) = Optional() {type = \"f32[n]\"} from [0]
            yield %7
          }
        %8: bool[] \"has\" = OptionalHasElement(%2) from [0]
        yield %2, %8";
    for c in [true, false] {
        agree(body, &[flag(c), floats(&[1.0, 2.0])], &["Optional", "If", "OptionalHasElement"]);
    }
    let get = "%0: optional(f32[n]) \"o\") {
        %1: f32[m] = OptionalGetElement(%0) from [0]
        %2: f32[m] \"y\" = Neg(%1) from [0]
        yield %2";
    agree(get, &[Item::Optional(Some(Box::new(floats(&[1.0, 2.0]))))], &["OptionalGetElement"]);
    fails(get, &[Item::Optional(None)], "the optional is empty");
}

#[test]
fn what_has_no_host_refuses_with_the_nodes() {
    let folder = Folder::new();
    let text = "graph \"g\" { ir_version 10 opset \"\" 20 source 0 \"join\" \"StringConcat\" 20
        region (%0: string[2] \"x\") { %1: string[2] \"y\" = StringConcat(%0, %0) @\"join\" from [0] yield %1 } }";
    let model = folder.write("model.onnx", infc_onnx::export(&text::parse(text).unwrap()).expect("exports"));
    for emit in ["obj", "staticlib"] {
        let out = folder.path("out");
        let args = ["compile", &model, "--emit", emit, "-o", &out];
        check(&args, 3, &["StringConcat 'join'", "input 'x'", "an object file has no host routines", "--emit infc"]);
    }
    let artifact = folder.path("model.infc");
    check(&["compile", &model, "-o", &artifact], 0, &[]);
    check(&["inspect", &artifact], 0, &["on the host: StringConcat 'join' (opset 20)", "input 'x': string[2]"]);
    check(&["inspect", &artifact, "--json"], 0, &["\"host\":[\"StringConcat 'join' (opset 20)\""]);
}
