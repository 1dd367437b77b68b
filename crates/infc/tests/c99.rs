//! Models as C code: compiled without a warning, run with sanitizers on memory of exactly the sizes that the header names, and equal to
//! the interpreter. The command line around it.

mod tool;

use infc::compare::{self, Tolerance};
use infc::native::Print;
use infc::{Options, native};
use infc_c::{Source, Style, Weights};
use infc_ir::Tensor;
use infc_ir::interp::{self, Item};
use std::fs;
use std::path::Path;
use std::process::Command;
use tool::kit::*;
use tool::*;

/// What all C code has to compile with.
const STRICT: &str = "-std=c99 -Wall -Wextra -pedantic -Werror -ffp-contract=off";
const SANITIZERS: &str = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all";

/// Reads the inputs and dims, runs the model twice on memory of exact size, and writes the outputs and their dims.
const MAIN: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sizes.h"
int32_t infc_call(const void *const *in, void *const *out, int64_t *const *sizes, const int64_t *dims, const void *weights, void *state, void *arena);
const char *model_message(int32_t status);
static void *load(const char *kind, int number, size_t bytes) {
    char name[64];
    FILE *file;
    void *memory = malloc(bytes);
    sprintf(name, "%s%d.raw", kind, number);
    file = fopen(name, "rb");
    if (file == NULL || fread(memory, 1, bytes, file) != bytes) exit(9);
    fclose(file);
    return memory;
}
static void store(const char *kind, int number, const void *memory, size_t bytes) {
    char name[64];
    FILE *file;
    sprintf(name, "%s%d.raw", kind, number);
    file = fopen(name, "wb");
    if (file == NULL || fwrite(memory, 1, bytes, file) != bytes) exit(9);
    fclose(file);
}
int main(void) {
    const void *in[INPUTS + 1];
    void *out[OUTPUTS + 1];
    int64_t *sizes[OUTPUTS + 1];
    void *arena = malloc(ARENA), *state = malloc(STATE), *weights = load("weights", 0, WEIGHTS);
    int i, run;
    for (i = 0; i < INPUTS; i++) in[i] = load("in", i, input_bytes[i]);
    for (i = 0; i < OUTPUTS; i++) out[i] = malloc(output_bytes[i]);
    for (i = 0; i < OUTPUTS; i++) sizes[i] = malloc((size_t)output_ranks[i] * 8);
    for (run = 0; run < 2; run++) {
        int32_t status;
        memset(arena, 0xa5 ^ run, ARENA);
        status = infc_call(in, out, sizes, dims, weights, state, arena);
        if (status != 0) {
            printf("%s", model_message(status));
            return 1;
        }
    }
    for (i = 0; i < OUTPUTS; i++) store("out", i, out[i], output_bytes[i]);
    for (i = 0; i < OUTPUTS; i++) store("dims", i, sizes[i], (size_t)output_ranks[i] * 8);
    return 0;
}
"#;

/// Compiles and runs a printed model in a folder; the bytes of outputs and dims, or its message.
fn run(dir: &Folder, source: &Source, inputs: &[Tensor], dims: &[i64], flags: &str) -> Result<Vec<(Vec<u8>, Vec<i64>)>, String> {
    let list = |v: &[u64]| v.iter().map(u64::to_string).chain(["0".into()]).collect::<Vec<_>>().join(", ");
    let mut symbols = vec![0; source.symbols];
    source.dims.iter().zip(dims).for_each(|(d, &n)| symbols[d.symbol] = n);
    let bytes: Vec<u64> = source.input_bytes.iter().map(|b| b.eval(&symbols).expect("a size") as u64).collect();
    let ranks: Vec<u64> = source.output_ranks.iter().map(|&r| r as u64).collect();
    let weights = source.weights.clone().unwrap_or_default();
    let dims: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
    let sizes = format!(
        "#define INPUTS {}\n#define OUTPUTS {}\n#define ARENA {}\n#define STATE {}\n#define WEIGHTS {}\nstatic const size_t input_bytes[] = {{{}}}, \
         output_bytes[] = {{{}}}, output_ranks[] = {{{}}};\nstatic const int64_t dims[] = {{{}}};\n",
        bytes.len(),
        ranks.len(),
        source.arena_bytes,
        source.state_bytes,
        weights.len(),
        list(&bytes),
        list(&source.output_bytes),
        list(&ranks),
        list(&dims)
    );
    for (name, text) in [("model.c", &source.c), ("model.h", &source.h), ("call.c", &source.call), ("sizes.h", &sizes)] {
        dir.write(name, text);
    }
    dir.write("main.c", MAIN);
    dir.write("weights0.raw", weights);
    inputs.iter().enumerate().for_each(|(i, t)| drop(dir.write(&format!("in{i}.raw"), t.bytes())));
    cc(dir, &format!("{STRICT} {flags} model.c call.c main.c -o main -lm"));
    // The program around the model leaves its memory to the system.
    let mut program = Command::new(dir.path("main"));
    let out = program.current_dir(dir.0.path()).env("ASAN_OPTIONS", "detect_leaks=0").output().expect("it starts");
    match out.status.code() {
        Some(0) => {}
        Some(1) if !out.stdout.is_empty() => return Err(String::from_utf8_lossy(&out.stdout).into_owned()),
        code => panic!("{code:?}: {}", String::from_utf8_lossy(&out.stderr)),
    }
    let read = |name: String| fs::read(dir.path(&name)).expect("written");
    let one = |i| {
        let dims = read(format!("dims{i}.raw")).chunks(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes"))).collect();
        (read(format!("out{i}.raw")), dims)
    };
    Ok((0..ranks.len()).map(one).collect())
}

#[track_caller]
fn cc(dir: &Folder, args: &str) {
    let out = Command::new("cc").args(args.split_whitespace()).current_dir(dir.0.path()).output().expect("a C compiler");
    assert!(out.status.success() && out.stderr.is_empty(), "cc {args}\n{}", String::from_utf8_lossy(&out.stderr));
}

/// A model's C code gives what the interpreter gives, for dims below their bounds.
fn agrees(model: &Path, dims: &[(&str, i64, i64)], print: Print, target: &str, flags: &str) {
    let graph = infc_onnx::import(model).expect("a model");
    let values = dims.iter().map(|d| (d.0.to_owned(), d.1)).collect();
    let make = |&v| {
        let source = infc::inputs::Source::Random(5);
        infc::inputs::make(&source, &graph.value(v).name, graph.ty(v), &values).expect("inputs")
    };
    let items: Vec<Item> = graph.inputs().iter().map(make).collect();
    let want = interp::run(&graph, &items).expect("it runs");
    let inputs: Vec<Tensor> = items.iter().map(|i| i.as_tensor().expect("a tensor").clone()).collect();
    let bounds = dims.iter().map(|d| (d.0.to_owned(), d.2)).collect();
    let options = Options { bounds, ..Options::for_target(infc::target::find(target).expect("a machine")) };
    let code = native::c_code(graph.clone(), &options, "model", print).expect("C code");
    let given: Vec<i64> =
        code.source.dims.iter().map(|d| dims.iter().find(|(name, ..)| *name == d.name).expect("a dim").1).collect();
    let dir = Folder::new();
    let got = run(&dir, &code.source, &inputs, &given, flags).expect("no check fails");
    let kinds = compare::output_kinds(&graph);
    for (k, ((bytes, dims), want)) in got.into_iter().zip(&want).enumerate() {
        let want_tensor = want.as_tensor().expect("a tensor");
        let shape: Vec<usize> = match infc_c_changes(&code.source, k) {
            true => dims.iter().map(|&d| d as usize).collect(),
            false => want_tensor.dims.to_vec(),
        };
        let bytes = bytes[..shape.iter().product::<usize>() * want_tensor.dtype.bytes()].to_vec();
        let got = Item::Tensor(Tensor::from_bytes(want_tensor.dtype, shape, bytes));
        let outcome = compare::compare("output", &got, want, kinds[k], Tolerance::default());
        assert_eq!(outcome.fault, None, "{} for {target}", model.display());
    }
}

/// Does the header have dims to write for output `k`?
fn infc_c_changes(source: &Source, k: usize) -> bool {
    source.call.contains(&format!("= sizes[{k}];"))
}

#[test]
fn example_models_run_clean_and_right() {
    let example = |name: &str| examples().join(name).join("model.onnx");
    let two = [("batch", 2, 3), ("length", 5, 9)];
    let (arrays, apart) = (Print::default(), Print { weights: Weights::Apart, ..Print::default() });
    let threads = Print { openmp: true, ..apart };
    let small = Print { style: Style { own_math: true, narrow_index: true, ..Style::default() }, ..apart };
    agrees(&example("digits_mlp"), &two[..1], arrays, "c99", SANITIZERS);
    agrees(&example("glyphs_cnn"), &two[..1], apart, "c99-simd", SANITIZERS);
    agrees(&example("glyphs_cnn"), &two[..1], threads, "c99", "-O2 -fopenmp");
    agrees(&example("language_gru"), &two, apart, "c99", SANITIZERS);
    agrees(&example("glyphs_cnn"), &two[..1], apart, "c99-vector", SANITIZERS);
    agrees(&example("snippets_transformer"), &two, small, "c99-vector", SANITIZERS);
    agrees(&example("snippets_transformer"), &two, apart, "c99", SANITIZERS);
    agrees(&example("language_gru"), &two, small, "c99", SANITIZERS);
    agrees(&example("snippets_transformer"), &two, small, "c99", SANITIZERS);
}

#[test]
fn sizes_that_only_data_tells_have_bounds() {
    let dir = Folder::new();
    let nodes = vec![node("k = NonZero(x)", []), node("r = Range(zero, n, one)", [])];
    let scalar = |name, v: i64| constant(name, &Tensor::from_vec([], vec![v]));
    let outputs = ["k i64[2, found]", "r i64[count]"];
    let inputs = ["x f32[a, 3]", "n i64[]"];
    let model = dir.model(&model(17, graph(&inputs, nodes, &outputs, vec![scalar("zero", 0), scalar("one", 1)])));
    let text = check(&["compare"], 2, &[]);
    assert!(text.contains("Usage"), "{text}");
    let out = dir.path("out");
    let unbounded =
        check(&["compile", &model, "--emit", "c", "-o", &out], 3, &["dim 'a'", "dim 0 of input 'x'", "--dim 'a<=SIZE'"]);
    assert!(!unbounded.contains("panicked"));
    let text =
        check(&["compile", &model, "--emit", "c", "-o", &out, "--dim", "a<=4"], 3, &["only the run itself tells", "<=SIZE'"]);
    assert_eq!(dir.files(), ["model.onnx"], "nothing half-written");
    let symbol = text.split("--dim '").nth(1).and_then(|t| t.split("<=").next()).expect("the help names it").to_owned();
    check(&["compile", &model, "--emit", "c", "-o", &out, "--dim", "a<=4", "--dim", &format!("{symbol}<=6")], 0, &["model.h"]);

    let graph = infc_onnx::import(Path::new(&model)).expect("a model");
    let bounds = vec![("a".to_owned(), 4), (symbol.clone(), 6)];
    let options = Options { bounds, ..Options::for_target(infc_c::default_machine()) };
    let source = native::c_code(graph, &options, "model", Print::default()).expect("C code").source;
    let x = Tensor::from_vec([2, 3], vec![0f32, 1.0, 0.0, 2.0, 0.0, 3.0]);
    let count = |n: i64| Tensor::from_vec([], vec![n]);
    let got = run(&dir, &source, &[x.clone(), count(5)], &[2], SANITIZERS).expect("it fits");
    assert_eq!((&got[0].1[..], &got[1].1[..]), (&[2, 3][..], &[5][..]));
    let numbers = |bytes: &[u8], n: usize| -> Vec<i64> {
        bytes.chunks(8).take(n).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes"))).collect()
    };
    assert_eq!(numbers(&got[0].0, 6), [0, 1, 1, 1, 0, 2]);
    assert_eq!(numbers(&got[1].0, 5), [0, 1, 2, 3, 4]);
    let error = run(&dir, &source, &[x.clone(), count(7)], &[2], SANITIZERS).expect_err("more than the bound");
    assert_eq!(error, format!("the size '{symbol}' is out of its range"));
    let large = Tensor::from_vec([5, 3], vec![0f32; 15]);
    let error = run(&dir, &source, &[large, count(1)], &[5], SANITIZERS).expect_err("more than the bound");
    assert_eq!(error, "a dim is below 0 or more than there is memory for");
}

#[test]
fn checks_name_their_node_and_states_are_kept() {
    let dir = Folder::new();
    let g = graph(&["x f32[3]", "i i64[2]"], vec![node("y = Gather(x, i)", [])], &["y f32[2]"], vec![]);
    let path = dir.model(&model(17, g));
    let options = Options::for_target(infc_c::default_machine());
    let code = |path: &str, options: &Options| {
        native::c_code(infc_onnx::import(Path::new(path)).expect("a model"), options, "model", Print::default())
            .expect("C code")
            .source
    };
    let inputs = [Tensor::from_vec([3], vec![1f32, 2.0, 4.0]), Tensor::from_vec([2], vec![1i64, 3])];
    let error = run(&dir, &code(&path, &options), &inputs, &[], SANITIZERS).expect_err("an index out of range");
    assert!(error.contains("Gather 'n_y' (opset 17)"), "{error}");

    let g = graph(&["x f32[3]", "s f32[3]"], vec![node("y = Add(x, s)", [])], &["y f32[3]"], vec![]);
    let path = dir.model(&model(17, g));
    let options = Options { states: vec![("y".into(), "s".into())], ..options };
    let source = code(&path, &options);
    for (name, text) in [("model.c", &source.c), ("model.h", &source.h)] {
        dir.write(name, text);
    }
    let main = "#include <stdio.h>\n#include \"model.h\"\nint main(void) {\n    static uint64_t arena[MODEL_ARENA_BYTES / 8 + 1], \
                state[MODEL_STATE_BYTES / 8];\n    float x[] = {1, 2, 4}, y[MODEL_OUT_Y_COUNT];\n    model_inputs in;\n    model_outputs out;\n    \
                int i;\n    in.x = x;\n    out.y = y;\n    state[0] = 1;\n    model_reset(state);\n    for (i = 0; i < 3; i++) printf(\"%d \", \
                (int)model_run(&in, &out, state, arena));\n    printf(\"%g %d\", y[2], (int)model_run(&in, &out, (char *)state + 1, arena));\n    \
                return 0;\n}\n";
    dir.write("main.c", main);
    cc(&dir, &format!("{STRICT} {SANITIZERS} model.c main.c -o main -lm"));
    let out = Command::new(dir.path("main")).output().expect("it starts");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "0 0 0 12 -1", "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn what_c_code_cannot_be_is_told() {
    let dir = Folder::new();
    let model_file = examples().join("digits_mlp/model.onnx").display().to_string();
    let out = dir.path("new/folder");
    let refused = |args: &[&str], exit: i32, parts: &[&str]| {
        check(&[&["compile", &model_file], args].concat(), exit, parts);
        assert!(dir.files().is_empty(), "{:?}", dir.files());
    };
    refused(&["--emit", "c", "-o", &out], 3, &["dim 'batch'", "--dim 'batch<=SIZE'"]);
    refused(&["--emit", "c", "-o", &out, "--dim", "rows<=3", "--dim", "batch<=3"], 3, &["bound 'rows'", "it has batch"]);
    refused(&["--emit", "c", "-o", &out, "--target", "x86-64-v2"], 2, &["the llvm backend", "c99, c99-simd, c99-vector"]);
    refused(&["--emit", "obj", "--target", "c99", "--dim", "batch=1"], 3, &["prints C code, no machine code", "--emit c"]);
    refused(&["--emit", "infc", "--target", "c99"], 3, &["prints C code, no machine code"]);
    refused(&["--dim", "batch<=3"], 2, &["bounds are for code whose memory is of fixed size", "--dim batch=3"]);
    refused(&["--dim", "batch<="], 2, &["is no size"]);
    refused(&["--weights", "bin"], 2, &["--weights is for C code and modules of WebAssembly"]);
    refused(&["--emit", "c", "--dim", "batch=1", "-o", "/proc/no/folder"], 4, &["/proc/no/folder"]);
    let strings = graph(
        &["x string[2]"],
        vec![node("y = StringConcat(x, x)", []), node("z = StringNormalizer(y)", [])],
        &["z string[k]"],
        vec![],
    );
    let path = dir.model(&model(20, strings));
    check(&["compile", &path, "--emit", "c", "-o", &out], 3, &["StringConcat", "StringNormalizer"]);
    assert_eq!(dir.files(), ["model.onnx"]);
    check(&["verify", &model_file, "--backend", "c", "--target", "x86-64-v2"], 2, &["is of the llvm backend"]);
}

#[test]
fn the_command_line_makes_folders_and_files() {
    let dir = Folder::new();
    let model = examples().join("digits_mlp/model.onnx").display().to_string();
    let out = dir.path("a/b");
    let text = check(&["compile", &model, "--target", "c99", "--dim", "batch<=4", "-o", &out], 0, &["model.h: its C interface"]);
    assert!(text.contains("for c99"), "{text}");
    let file = dir.path("net.c");
    check(
        &["compile", &model, "--emit", "c", "--weights", "bin", "--openmp", "--dim", "batch=1", "-o", &file],
        0,
        &["net.bin: its weights"],
    );
    assert_eq!(dir.files(), ["a", "net.bin", "net.c", "net.h"]);
    let header = fs::read_to_string(dir.path("net.h")).expect("written");
    let run = "int32_t net_run(const net_inputs *inputs, const net_outputs *outputs, const void *weights, void *arena);";
    assert!(header.contains(run) && header.contains("NET_WEIGHTS_BYTES"), "{header}");
    let header = fs::read_to_string(dir.path("a/b/model.h")).expect("written");
    assert!(header.contains("int64_t batch, void *arena);") && header.contains("#define MODEL_MOST_BATCH 4"), "{header}");
    let first = fs::read(dir.path("a/b/model.c")).expect("written");
    check(&["compile", &model, "--target", "c99", "--dim", "batch<=4", "-o", &out], 0, &[]);
    assert_eq!(fs::read(dir.path("a/b/model.c")).expect("written"), first, "the same compile gives the same bytes");
}

#[test]
fn the_example_program_reads_a_letter() {
    let dir = Folder::new();
    let folder = examples().join("glyphs_cnn");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let main = fs::read_to_string(root.join("examples/c99/main.c")).expect("the example");
    let documented = fs::read_to_string(root.join("docs/c.md")).expect("the documentation");
    assert!(documented.contains(main.trim_end()), "docs/c.md shows another program than examples/c99/main.c");
    dir.write("main.c", main);
    let model = folder.join("model.onnx").display().to_string();
    check(&["compile", &model, "--emit", "c", "--dim", "batch=1", "-o", &dir.path("glyphs.c")], 0, &[]);
    cc(&dir, &format!("{STRICT} -O2 main.c glyphs.c -o glyphs -lm"));
    let file = |name: &str| folder.join(name).display().to_string();
    let out = Command::new(dir.path("glyphs")).args([file("sample.npy"), file("labels.txt")]).output().expect("it starts");
    let label = fs::read_to_string(file("sample_label.txt")).expect("a label");
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), label.trim());
}
