//! Models as modules of WebAssembly, through the script that is made with them, in Node.js: what a page would do.
#![cfg(feature = "llvm")]

mod tool;

use infc_ir::Tensor;
use std::fs;
use std::process::Command;
use tool::kit::*;
use tool::*;

/// Runs a script as a module in the folder; what it prints.
#[track_caller]
fn node_js(dir: &Folder, script: &str) -> String {
    dir.write("main.mjs", script);
    let program = std::env::var("NODE").unwrap_or_else(|_| "node".to_owned());
    let output = Command::new(&program).arg(dir.path("main.mjs")).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e} (Debian, Ubuntu: apt-get install nodejs)"));
    let text = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned()).concat();
    assert!(output.status.success(), "{text}");
    text.trim_end().to_owned()
}

fn example(name: &str) -> String {
    examples().join(name).join("model.onnx").display().to_string()
}

/// The machines of WebAssembly.
const MACHINES: [&str; 2] = ["wasm32", "wasm32-simd"];

#[test]
fn the_letter_of_an_image_is_read() {
    let dir = Folder::new();
    let folder = examples().join("glyphs_cnn");
    let script = format!(
        r#"import {{ readFileSync }} from "node:fs";
import {{ load, info }} from "./glyphs.mjs";
const file = readFileSync("{0}/sample.npy");
const model = await load();
const [input] = info.inputs;
const image = new Float32Array(file.buffer.slice(file.byteOffset + file.length - 4 * 28 * 28, file.byteOffset + file.length));
const {{ logits }} = model.run({{ [input.name]: image }});
const labels = readFileSync("{0}/labels.txt", "utf8").split("\n");
// In place: nothing is copied, the same result.
model.inputs.input.set(image);
model.outputs.logits.fill(NaN);
model.execute();
console.log(input.dims.join(), labels[logits.indexOf(Math.max(...logits))], model.outputs.logits.every((v, i) => v === logits[i]), model.dims.logits.join());
"#,
        folder.display()
    );
    let label = fs::read_to_string(folder.join("sample_label.txt")).expect("an example");
    let mut modules = vec![];
    for machine in MACHINES {
        for weights in ["inside", "bin"] {
            let args =
                ["compile", &example("glyphs_cnn"), "--target", machine, "--dim", "batch=1", "-o", &dir.path("glyphs.wasm")];
            check(&[&args[..], &["--weights", weights]].concat(), 0, &["glyphs.mjs: what loads it", "glyphs.d.mts: types"]);
            assert_eq!(node_js(&dir, &script), format!("1,1,28,28 {} true 1,47", label.trim()), "{machine} {weights}");
            modules.push(fs::read(dir.path("glyphs.wasm")).expect("written"));
        }
    }
    assert!(modules.iter().all(|m| m.starts_with(b"\0asm")));
    assert!(modules[1].len() < 40_000 && modules[0].len() > 240_000, "the weights are in one of them alone");
    // The same again: the same bytes, of the module and of the rest.
    let parts = || ["wasm", "mjs", "d.mts", "bin"].map(|e| fs::read(dir.path(&format!("glyphs.{e}"))).expect("written"));
    let before = parts();
    let args = [
        "compile",
        &example("glyphs_cnn"),
        "--emit",
        "wasm",
        "--dim",
        "batch=1",
        "--weights",
        "bin",
        "-o",
        &dir.path("glyphs.wasm"),
    ];
    check(&args, 0, &["for wasm32-simd"]);
    assert_eq!(parts(), before);
}

#[test]
fn the_example_page_reads_a_letter() {
    let dir = Folder::new();
    let folder = examples().join("../web").canonicalize().expect("an example");
    dir.write("letters.mjs", fs::read(folder.join("letters.mjs")).expect("readable"));
    check(&["compile", &example("glyphs_cnn"), "--emit", "wasm", "--dim", "batch=1", "-o", &dir.path("glyphs.wasm")], 0, &[]);
    // The sample as somebody would have drawn it: ten times as large, in RGBA.
    let script = format!(
        r#"import {{ readFileSync }} from "node:fs";
import {{ reader }} from "./letters.mjs";
const file = readFileSync("{}/sample.npy");
const image = new Float32Array(file.buffer.slice(file.byteOffset + file.length - 4 * 28 * 28, file.byteOffset + file.length));
const [width, height] = [280, 280];
const data = new Uint8ClampedArray(4 * width * height);
for (let y = 0; y < height; y++) {{
  for (let x = 0; x < width; x++) {{
    const v = 255 * image[28 * Math.floor(y / 10) + Math.floor(x / 10)];
    data.set([v, v, v, 255], 4 * (width * y + x));
  }}
}}
const read = await reader();
const {{ letters, time }} = read({{ width, height, data }});
console.log(letters[0].letter, letters.length, letters[0].probability > 0.5, time > 0);
"#,
        examples().join("glyphs_cnn").display()
    );
    assert_eq!(node_js(&dir, &script), "R 3 true true");
    // The labels that the page has are those of the model.
    let labels = fs::read_to_string(examples().join("glyphs_cnn/labels.txt")).expect("an example");
    let own = fs::read_to_string(folder.join("letters.mjs")).expect("readable");
    assert!(own.contains(&format!("[...\"{}\"]", labels.split_whitespace().collect::<String>())));
}

#[test]
fn open_dims_follow_from_inputs_or_are_given() {
    let dir = Folder::new();
    let out = dir.path("net.wasm");
    check(
        &["compile", &example("language_gru"), "--emit", "wasm", "-o", &out, "--dim", "batch<=3", "--dim", "length<=9"],
        0,
        &[],
    );
    check(&["compile", &example("language_gru"), "--cpu", "x86-64-v2", "-o", &dir.path("net.infc")], 0, &[]);
    let letters: Vec<i64> = (0..10).map(|k| (k * 7 + 3) % 20).collect();
    let t = Tensor::from_vec([2, 5], letters);
    fs::write(dir.path("in.npy"), infc::npy::write(&t).expect("NumPy has it")).expect("writable");
    check(
        &["run", &dir.path("net.infc"), "--input", &format!("input={}", dir.path("in.npy")), "--output-dir", &dir.path("")],
        0,
        &[],
    );
    let script = r#"import { readFileSync } from "node:fs";
import { load, info, ModelError } from "./net.mjs";
const file = readFileSync(new URL("./logits.npy", import.meta.url));
const want = new Float32Array(file.buffer.slice(file.byteOffset + file.length - 160, file.byteOffset + file.length));
const letters = Array.from({ length: 10 }, (_, k) => BigInt((k * 7 + 3) % 20));
const model = await load();
const { logits } = model.run({ input: letters }, { batch: 2, length: 5 });
console.log(logits.length, model.dims.logits.join(), logits.every((v, i) => Math.abs(v - want[i]) < 1e-4));
const one = model.run({ input: letters.slice(0, 5) }, { batch: 1, length: 5 });
console.log(one.logits.length, one.logits.every((v, i) => v === logits[i]), JSON.stringify(info.dims), info.inputs[0].dims.join());
const fail = (act) => {
  try {
    act();
    console.log("no error");
  } catch (e) {
    console.log(e instanceof ModelError, e.message);
  }
};
fail(() => model.run({ input: letters }));
fail(() => model.run({ input: letters }, { batch: 2 }));
fail(() => model.run({ input: letters }, { batch: 4, length: 2 }));
fail(() => model.run({ input: letters }, { batch: 2, length: 4 }));
fail(() => model.run({ input: new Float32Array(10) }, { batch: 2, length: 5 }));
fail(() => model.run({ letters }, { batch: 2, length: 5 }));
fail(() => model.run({}, { rows: 2 }));
fail(() => model.run({ input: letters }, { batch: 2.5, length: 4 }));
"#;
    let expected = r#"40 2,20 true
20 true [{"most":3,"name":"batch"},{"most":9,"name":"length"}] batch,length
true dim 'batch' is not known: give it to the run, { "batch": SIZE }
true dim 'length' is not known: give it to the run, { "length": SIZE }
true dim 'batch' is 4, and there is memory for 3
true input 'input' is i64[batch, length], 8 numbers, and 10 are given
true input 'input' is i64, a BigInt64Array, and a Float32Array is given
true there is no input 'letters', but 'input'
true there is no dim 'rows', but 'batch', 'length'
true dim 'batch' is 2.5, and there is memory for 3"#;
    assert_eq!(node_js(&dir, script), expected);
    // One open dim follows from the number of elements.
    check(&["compile", &example("digits_mlp"), "--emit", "wasm", "-o", &out, "--dim", "batch<=4"], 0, &[]);
    let script = r#"import { load } from "./net.mjs";
const model = await load();
const name = Object.keys(model.inputs)[0];
const size = model.inputs[name].length / 4;
console.log(Object.values(model.run({ [name]: new Float32Array(3 * size) }))[0].length, Object.values(model.dims)[0].join());
"#;
    assert_eq!(node_js(&dir, script), "30 3,10");
}

#[test]
fn states_are_kept_checks_tell_their_node_and_sizes_of_data_are_bounded() {
    let dir = Folder::new();
    let sum = graph(&["x f32[3]", "s f32[3]"], vec![node("y = Add(x, s)", [])], &["y f32[3]"], vec![]);
    let path = dir.model(&model(17, sum));
    check(&["compile", &path, "--emit", "wasm", "--state", "y=s", "-o", &dir.path("sum.wasm")], 0, &[]);
    let gather = graph(&["x f32[3]", "i i64[2]"], vec![node("y = Gather(x, i)", [])], &["y f32[2]"], vec![]);
    let path = dir.model(&model(17, gather));
    check(&["compile", &path, "--emit", "wasm", "-o", &dir.path("pick.wasm")], 0, &[]);
    let scalar = |name, v: i64| constant(name, &Tensor::from_vec([], vec![v]));
    let nodes = vec![node("k = NonZero(x)", []), node("r = Range(zero, n, one)", [])];
    let outputs = ["k i64[2, found]", "r i64[count]"];
    let data = graph(&["x f32[2, 3]", "n i64[]"], nodes, &outputs, vec![scalar("zero", 0), scalar("one", 1)]);
    let path = dir.model(&model(17, data));
    let text = check(&["compile", &path, "--emit", "wasm", "-o", &dir.path("data.wasm")], 3, &["only the run itself tells"]);
    let symbol = text.split("--dim '").nth(1).and_then(|t| t.split("<=").next()).expect("the help names it").to_owned();
    check(&["compile", &path, "--emit", "wasm", "-o", &dir.path("data.wasm"), "--dim", &format!("{symbol}<=6")], 0, &[]);
    let script = r#"import * as sum from "./sum.mjs";
import * as pick from "./pick.mjs";
import * as data from "./data.mjs";
const fail = (act) => {
  try {
    act();
    console.log("no error");
  } catch (e) {
    console.log(e.message);
  }
};
const adds = await sum.load();
const x = Float32Array.of(1, 2, 4);
for (let k = 0; k < 3; k++) adds.run({ x });
console.log(Object.keys(adds.inputs).join(), adds.run({ x }).y.join());
adds.reset();
console.log(adds.run({ x }).y.join());
const picks = await pick.load();
console.log(picks.run({ x, i: [2n, 0n] }).y.join());
fail(() => picks.run({ x, i: [2n, 3n] }));
console.log(picks.run({ x, i: [1n, 0n] }).y.join());
const finds = await data.load();
const found = finds.run({ x: [0, 1, 0, 2, 0, 3], n: [5n] });
console.log(found.k.join(), finds.dims.k.join(), found.r.join(), finds.dims.r.join());
fail(() => finds.run({ x: [0, 1, 0, 2, 0, 3], n: [7n] }));
"#;
    let text = node_js(&dir, script);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["x 4,8,16", "1,2,4", "4,1"]);
    assert!(lines[3].starts_with("Gather 'n_y' (opset 17)"), "{text}");
    let told = format!("the size '{symbol}' is out of its range");
    assert_eq!(lines[4..], ["2,1", "0,1,1,1,0,2 2,3 0,1,2,3,4 5", told.as_str()]);
}

#[test]
fn every_dtype_has_its_array() {
    let dir = Folder::new();
    let list = [
        ("f16", "Uint16Array"),
        ("bf16", "Uint16Array"),
        ("f32", "Float32Array"),
        ("f64", "Float64Array"),
        ("i8", "Int8Array"),
        ("i16", "Int16Array"),
        ("i32", "Int32Array"),
        ("i64", "BigInt64Array"),
        ("u8", "Uint8Array"),
        ("u16", "Uint16Array"),
        ("u32", "Uint32Array"),
        ("u64", "BigUint64Array"),
        ("bool", "Uint8Array"),
    ];
    let nodes: Vec<_> = list.iter().map(|(d, _)| node(&format!("y_{d} = Reshape(x_{d}, two)"), [])).collect();
    let inputs: Vec<String> = list.iter().map(|(d, _)| format!("x_{d} {d}[2, 1]")).collect();
    let outputs: Vec<String> = list.iter().map(|(d, _)| format!("y_{d} {d}[2]")).collect();
    let [inputs, outputs] = [&inputs, &outputs].map(|l| l.iter().map(String::as_str).collect::<Vec<_>>());
    let two = constant("two", &Tensor::from_vec([1], vec![2i64]));
    let path = dir.model(&model(17, graph(&inputs, nodes, &outputs, vec![two])));
    check(&["compile", &path, "--emit", "wasm", "-o", &dir.path("all.wasm")], 0, &[]);
    let script = r#"import { load } from "./all.mjs";
const model = await load();
const given = Object.fromEntries(Object.entries(model.inputs).map(([name, v]) => [name, v.constructor.from([1, 0], (n) => (name.endsWith("64") && !name.endsWith("f64") ? BigInt(n) : n))]));
const out = model.run(given);
console.log(Object.entries(out).map(([name, v]) => `${name} ${v.constructor.name} ${v.join()}`).join("\n"));
"#;
    let want: Vec<String> = list.iter().map(|(d, array)| format!("y_{d} {array} 1,0")).collect();
    assert_eq!(node_js(&dir, script), want.join("\n"));
    let types = fs::read_to_string(dir.path("all.d.mts")).expect("written");
    for (d, array) in list {
        assert!(types.contains(&format!("  /** {d}[2, 1] */\n  \"x_{d}\": {array};")), "{types}");
    }
}

#[test]
fn what_a_module_cannot_be_is_told() {
    let dir = Folder::new();
    let good = example("digits_mlp");
    let out = dir.path("m.wasm");
    let refused = |args: &[&str], exit: i32, parts: &[&str]| {
        check(&[&["compile", &good, "-o", &out], args].concat(), exit, parts);
        assert!(dir.files().is_empty(), "{:?}", dir.files());
    };
    refused(&["--emit", "wasm"], 3, &["dim 'batch'", "--dim 'batch<=SIZE'"]);
    refused(
        &["--emit", "wasm", "--target", "x86-64-v2", "--dim", "batch=1"],
        2,
        &["is no machine of WebAssembly", "wasm32, wasm32-simd"],
    );
    for kind in ["infc", "obj", "staticlib", "sharedlib", "exe"] {
        refused(
            &["--emit", kind, "--target", "wasm32-simd", "--dim", "batch=1"],
            2,
            &["is a module with the script", "--emit wasm"],
        );
    }
    refused(&["--cpu", "wasm32-simd"], 2, &["is no CPU that machine code is made for"]);
    refused(&["--emit", "wasm", "--dim", "batch=1", "--threads", "2"], 2, &["--threads is for artifacts"]);
    refused(&["--emit", "wasm", "--dim", "batch=1", "--math", "bf16"], 2, &["takes no products in that way"]);
    refused(&["--emit", "wasm", "--dim", "batch=200000000"], 3, &["memory"]);
    let strings = graph(&["x string[2]"], vec![node("y = StringConcat(x, x)", [])], &["y string[2]"], vec![]);
    let path = dir.model(&model(20, strings));
    check(
        &["compile", &path, "--emit", "wasm", "-o", &out],
        3,
        &["StringConcat", "a module of WebAssembly has no host routines"],
    );
    assert_eq!(dir.files(), ["model.onnx"]);
}
