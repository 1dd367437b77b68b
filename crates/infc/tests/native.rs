//! What `infc compile --emit` makes beside artifacts: linked by the C compiler and run, or read again. Equal to what artifacts give.
#![cfg(feature = "llvm")]

#[path = "../../onnx/tests/kit/mod.rs"]
mod kit;

use infc_artifact::container::{Artifact, Variant};
use infc_artifact::encode::encode;
use infc_artifact::program::{self as art, *};
use infc_ir::Tensor;
use infc_kernel::backend::Os;
use infc_kernel::program::Lowered;
use infc_onnx::proto::ModelProto;
use infc_runtime::{Model, Session, TensorRef};
use kit::*;
use object::{Object, ObjectSection, ObjectSymbol};
use prost::Message as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// What all C code has to compile with.
const STRICT: &str = "-std=c99 -Wall -Wextra -pedantic -Werror";
/// What an object may need of the C library.
const LIBRARY: [&str; 3] = ["memcpy", "memmove", "memset"];

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn model(&self, m: &ModelProto) -> PathBuf {
        fs::write(self.path("model.onnx"), m.encode_to_vec()).expect("writable");
        self.path("model.onnx")
    }
    fn npy(&self, name: &str, t: &Tensor) {
        fs::write(self.path(name), infc::npy::write(t).expect("NumPy has it")).expect("writable");
    }
    /// Runs a program in this folder; its output.
    #[track_caller]
    fn run(&self, program: impl AsRef<Path>, args: &str, exit: i32) -> String {
        let Output { status, stdout, stderr } =
            Command::new(program.as_ref()).args(args.split_whitespace()).current_dir(self.0.path()).output().expect("it starts");
        let text = [stdout, stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
        assert_eq!(status.code(), Some(exit), "{} {args}\n{text}", program.as_ref().display());
        text
    }
    #[track_caller]
    fn infc(&self, args: &str, exit: i32) -> String {
        self.run(env!("CARGO_BIN_EXE_infc"), args, exit)
    }
    /// Compiles to a program, with a C compiler that accepts no warning.
    #[track_caller]
    fn program(&self, model: &Path, name: &str, more: &str) {
        let mut infc = Command::new(env!("CARGO_BIN_EXE_infc"));
        infc.args(["compile", "--emit", "exe", "-o", name]).arg(model).args(more.split_whitespace());
        let output = infc.current_dir(self.0.path()).env("CFLAGS", STRICT).output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("readable").flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(ROOT).join("examples/models").join(name).join("model.onnx")
}

/// Options for code of each generator that this computer runs.
fn cpus() -> Vec<String> {
    let machines = infc::target::GENERATORS.into_iter().filter_map(infc::target::default_of);
    machines.map(|m| format!("--cpu {}", m.name)).collect()
}

/// A program and an artifact of a model give the same bytes for the same inputs.
#[track_caller]
fn same_as_artifact(dir: &Folder, model: &Path, dims: &str, inputs: &str) {
    for cpu in cpus() {
        same_on(dir, model, &format!("{dims} {cpu}"), inputs);
    }
}

#[track_caller]
fn same_on(dir: &Folder, model: &Path, dims: &str, inputs: &str) {
    let options: String = inputs.split_whitespace().map(|i| format!(" --input {i}")).collect();
    for out in ["artifact", "program"] {
        fs::create_dir_all(dir.path(out)).expect("writable");
    }
    dir.infc(&format!("compile {} -o model.infc {dims}", model.display()), 0);
    dir.infc(&format!("run model.infc --output-dir artifact {options}"), 0);
    dir.program(model, "prog", dims);
    dir.run(dir.path("prog"), &format!("--output-dir program {inputs}"), 0);
    let mut compared = 0;
    for file in fs::read_dir(dir.path("artifact")).expect("readable").flatten() {
        let ours = fs::read(dir.path("program").join(file.file_name())).expect("the program stores all outputs");
        assert_eq!(ours, fs::read(file.path()).expect("readable"), "{:?}", file.file_name());
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn programs_of_the_example_models_give_what_artifacts_give() {
    let dims = "--dim batch=3 --dim length=7";
    for (name, dims) in
        [("digits_mlp", "--dim batch=3"), ("glyphs_cnn", "--dim batch=3"), ("language_gru", dims), ("snippets_transformer", dims)]
    {
        same_as_artifact(&Folder::new(), &example(name), dims, "input=random:7");
    }
}

/// Layers over a batch of pictures that are large enough for a loop over the batch.
fn pictures() -> ModelProto {
    let weights = [("a", [16usize, 3, 3, 3]), ("b", [16, 1, 3, 3]), ("c", [16, 16, 1, 1])];
    let weight = |(name, dims): (&str, [usize; 4])| {
        let n: usize = dims.iter().product();
        constant(name, &Tensor::from_vec(dims, (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect::<Vec<f32>>()))
    };
    let pads = [ints("pads", &[1, 1, 1, 1])];
    let depthwise = [ints("pads", &[1, 1, 1, 1]), int("group", 16)];
    let nodes = vec![
        node("v = Conv(x, a)", pads),
        node("w = Conv(v, b)", depthwise),
        node("u = Conv(w, c)", []),
        node("s = Add(u, v)", []),
        node("y = GlobalAveragePool(s)", []),
    ];
    let inputs = ["x f32[8, 3, 128, 128]"];
    model(18, graph(&inputs, nodes, &["y f32[8, 16, 1, 1]"], weights.into_iter().map(weight).collect()))
}

#[test]
fn loops_over_the_batch_are_those_of_artifacts() {
    let dir = Folder::new();
    let model = dir.model(&pictures());
    same_as_artifact(&dir, &model, "", "x=random:3");
    let options = infc::Options::native().expect("this machine is supported");
    let lowered = infc::compile::lower(import(&pictures()).expect("a good model"), &options).expect("lowers");
    assert!(lowered.program.steps.iter().any(|s| matches!(s, Step::Loop { apart: true, .. })), "{}", lowered.program.steps.len());
}

/// A branch, and a loop that ends early.
fn control() -> ModelProto {
    let one = constant("one", &Tensor::from_vec([1], vec![1f32]));
    let limit = constant("limit", &Tensor::from_vec([1], vec![6f32]));
    let rounds = constant("rounds", &Tensor::from_vec([], vec![9i64]));
    let shape = constant("scalar", &Tensor::from_vec([0], Vec::<i64>::new()));
    let nodes =
        vec![node("next = Add(v, one)", []), node("less = Less(next, limit)", []), node("go = Reshape(less, scalar)", [])];
    let step = graph(&["i i64[]", "c bool[]", "v f32[1]"], nodes, &["go bool[]", "next f32[1]"], vec![]);
    let add = graph(&[], vec![node("p = Add(x, x)", [])], &["p f32[1]"], vec![]);
    let neg = graph(&[], vec![node("q = Neg(x)", [])], &["q f32[1]"], vec![]);
    let nodes = vec![
        node("start = If(flag)", [body("then_branch", add), body("else_branch", neg)]),
        node("y = Loop(rounds, , start)", [body("body", step)]),
    ];
    model(17, graph(&["flag bool[]", "x f32[1]"], nodes, &["y f32[1]"], vec![one, limit, rounds, shape]))
}

#[test]
fn control_flow_is_that_of_artifacts() {
    let dir = Folder::new();
    let model = dir.model(&control());
    dir.npy("x.npy", &Tensor::from_vec([1], vec![1.5f32]));
    dir.npy("t.npy", &Tensor::from_bools([], &[true]));
    dir.npy("f.npy", &Tensor::from_bools([], &[false]));
    for (flag, expected) in [("t", "y: f32[1] = 6\n"), ("f", "y: f32[1] = 6.5\n")] {
        let inputs = format!("x=x.npy flag={flag}.npy");
        same_as_artifact(&dir, &model, "", &inputs);
        assert_eq!(dir.run(dir.path("prog"), &inputs, 0), expected);
    }
}

/// A program of every kind of step but launches, with every operation of sizes over a value read at run time.
fn steps() -> Program {
    use SizeOp::*;
    let view = |buffer: u32, offset: &[SizeOp]| View { buffer, offset: Size(offset.to_vec()) };
    let c = Size::constant;
    let port = |name: &str, dtype, element, n, buffer| Port { name: name.into(), dtype, element, dims: vec![c(n)], buffer };
    let buffer = |bytes, place| Buffer { bytes: c(bytes), place };
    let symbol = |name: &str| art::Symbol { name: name.into(), source: SymbolSource::Step };
    let copy = |from: View, to: View| Step::Copy { from, to, bytes: c(1) };
    // Byte k * 8 + i of the output is byte 128 + (n - 4) op (i - 3) of the data, which is its own number.
    let one = |(k, op): (usize, SizeOp)| {
        let from = [Const(128), Symbol(0), Const(-4), Add, Symbol(1), Const(-3), Add, op, Add];
        copy(view(1, &from), view(2, &[Const(k as i64 * 8), Symbol(1), Add]))
    };
    let rounds = Step::Loop {
        counter: 1,
        count: Size(vec![Symbol(0), Const(8), Min]),
        cond: Some(view(0, &[Const(16)])),
        body: [Add, Mul, Div, Mod, Min, Max].into_iter().enumerate().map(one).collect(),
        apart: false,
    };
    let otherwise = vec![copy(view(1, &[Symbol(0), Const(29), Mul]), view(2, &[Const(0)]))];
    Program {
        inputs: vec![port("n", 7, 8, 3, 0), port("data", 2, 1, 256, 1)],
        outputs: vec![port("out", 2, 1, 48, 2)],
        symbols: vec![symbol("n"), symbol("i")],
        buffers: vec![buffer(24, Place::Input(0)), buffer(256, Place::Input(1)), buffer(48, Place::Output(0))],
        steps: vec![
            Step::Bind { symbol: 0, from: view(0, &[Const(0)]), bound: c(9) },
            Step::If { cond: view(0, &[Const(8)]), then: vec![rounds], otherwise },
            Step::Require { left: Size::symbol(0), right: c(7), or_one: true, code: 0 },
        ],
        messages: vec![art::Message { node: "Node 'x'".into(), text: "must be equal".into() }],
        arena: Some(0),
        ..Program::default()
    }
}

/// Runs `steps()`: three numbers in, 48 bytes or a message out.
const STEPS_MAIN: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
int32_t p_run(const void *const *, void *const *, void *);
const char *p_message(int32_t);
int main(int count, char **a) {
    uint8_t data[256], out[48] = {0};
    int64_t n[3];
    const void *in[2];
    void *to[1];
    int32_t status;
    int i;
    for (i = 0; i < 256; i++) data[i] = (uint8_t)i;
    for (i = 0; i < 3; i++) n[i] = atoll(a[i + 1]);
    in[0] = n;
    in[1] = data;
    to[0] = out;
    status = p_run(in, to, NULL);
    if (status) printf("%s", p_message(status));
    else for (i = 0; i < 48; i++) printf("%d ", out[i]);
    return count != 4;
}
"#;

#[test]
fn the_driver_does_what_the_runtime_does() {
    let dir = Folder::new();
    fs::write(dir.path("main.c"), STEPS_MAIN).expect("writable");
    let mut done = 0;
    let targets = ["x86-64-v2", "cranelift-x86-64"].into_iter().filter_map(|name| infc::target::find(name).ok());
    let targets: Vec<_> = targets.flat_map(|t| [(t.clone(), true), (t, false)]).collect();
    for (target, required) in &targets {
        let mut program = steps();
        if !required {
            program.steps.pop();
        }
        let layout = infc_kernel::bounded::layout(&program, &Default::default()).expect("all sizes are known");
        let backend = infc::target::backend(target).expect("a backend");
        let object = backend.emit_object(&program, &layout, &[], &[], "p", Os::Linux).expect("an object");
        fs::write(dir.path("p.o"), object.bytes).expect("writable");
        dir.run("cc", &format!("{STRICT} main.c p.o -o main"), 0);
        // The driver in C is another one for the same steps.
        let lowered = Lowered {
            program: program.clone(),
            kernels: vec![],
            plans: vec![],
            constants: Default::default(),
            launches: vec![],
            tunables: vec![],
            host_kernels: vec![],
            host_plans: vec![],
            device: false,
        };
        let options = infc_c::Options {
            name: "p".into(),
            model: "steps".into(),
            weights: infc_c::Weights::Arrays,
            openmp: false,
            style: infc_c::Style::default(),
            bounds: Default::default(),
        };
        let source = infc_c::source(&lowered, &options).expect("C code");
        fs::write(dir.path("p.c"), source.c).expect("writable");
        fs::write(dir.path("p.h"), source.h).expect("writable");
        dir.run("cc", &format!("{STRICT} -fsanitize=undefined -fno-sanitize-recover=all main.c p.c -o main_c"), 0);
        let variant = Variant { program: encode(&program), ..Variant::default() };
        let artifact = Artifact { variants: &[variant], ..Artifact::default() }.to_bytes();
        let mut session = Session::new(Model::from_bytes(&artifact).expect("loads"), Default::default()).expect("a session");
        let data: Vec<u8> = (0..=255).collect();
        session.set_input("data", TensorRef::of(&[256], &data)).expect("fits");
        for (n, then, go) in (-1..=10).flat_map(|n| [(n, 1, 1), (n, 1, 0), (n, 0, 0)]) {
            session.set_input("n", TensorRef::of(&[3], &[n as i64, then, go])).expect("fits");
            let out = &mut [0u8; 48][..];
            let expected = session.run_with(&[], &mut [(0, out)]).map_err(|e| e.to_string());
            let got = dir.run(dir.path("main"), &format!("{n} {then} {go}"), 0);
            assert_eq!(dir.run(dir.path("main_c"), &format!("{n} {then} {go}"), 0), got, "{n} {then} {go} in C");
            let same = match &expected {
                Ok(()) => got == out.iter().map(|v| format!("{v} ")).collect::<String>(),
                Err(e) if e.contains("the size 'n' is") => got == "the size 'n' is out of its range",
                Err(e) if e.contains("of buffer 1") => got == "a step leaves the memory of a value",
                Err(e) => got == "Node 'x': must be equal" && e.contains(&got),
            };
            assert!(same, "{n} {then} {go}: '{got}' is not {expected:?} {out:?}");
            done += usize::from(expected.is_ok());
        }
    }
    assert_eq!(done, 35 * targets.len() / 2, "runs without an error");
}

#[test]
fn states_are_kept_and_reset() {
    for cpu in cpus() {
        states_on(&cpu);
    }
}

fn states_on(cpu: &str) {
    let dir = Folder::new();
    let g = graph(&["x f32[3]", "s f32[3]"], vec![node("y = Add(x, s)", [])], &["y f32[3]"], vec![]);
    let model = dir.model(&model(17, g));
    dir.npy("x.npy", &Tensor::from_vec([3], vec![1f32, 2.0, 4.0]));
    dir.program(&model, "sum", &format!("--state y=s {cpu}"));
    assert_eq!(dir.run(dir.path("sum"), "x=x.npy --runs 3", 0), "y: f32[3] = 3 6 12\n");
    let c = "#include <stdio.h>\n#include \"sum.h\"\nint main(void) {\n    static double memory[8 + SUM_ARENA_BYTES / 8 + 8 + \
             SUM_STATE_BYTES / 8];\n    char *at = (char *)memory;\n    char *arena = at + (64 - (uintptr_t)at % 64) % 64;\n    \
             char *state = arena + (SUM_ARENA_BYTES + 63) / 64 * 64;\n    float x[] = SUM_IN_X_DIMS, y[SUM_OUT_Y_COUNT];\n    \
             sum_inputs in;\n    sum_outputs out;\n    in.x = x;\n    out.y = y;\n    state[0] = 1;\n    sum_reset(state);\n    \
             printf(\"%d %d %d\", sum_run(&in, &out, state, arena), sum_run(&in, &out, state, arena), sum_run(&in, &out, state + 1, \
             arena));\n    printf(\" %g %s; %s\", y[0], sum_message(-1), sum_message(99));\n    return 0;\n}\n";
    fs::write(dir.path("main.c"), c).expect("writable");
    dir.infc(&format!("compile model.onnx --state y=s --emit obj -o sum.o {cpu}"), 0);
    dir.run("cc", &format!("{STRICT} main.c sum.o -o main"), 0);
    let expected = " 6 the arena or the state is not aligned to 64 bytes; no such status";
    let text = dir.run(dir.path("main"), "", 0);
    assert!(text.ends_with(expected) && text.contains("-1") && text.matches('0').count() == 2, "{text}");
}

/// A caller that flushes subnormal numbers to zero finds that set afterwards, and it does not matter between.
#[cfg(target_arch = "x86_64")]
const MODES: &str = r#"
#include "halves.h"
#include <stdio.h>
#include <string.h>
#include <xmmintrin.h>
static unsigned char arena[HALVES_ARENA_BYTES + 64] __attribute__((aligned(64)));
int main(void) {
    float x[4] = {1e-38f, 2e-38f, -4e-39f, 1.0f}, y[4] = {9, 9, 9, 9};
    unsigned bits[4], after;
    const void *in[1] = {x};
    void *out[1] = {y};
    int status;
    _mm_setcsr(0x9f80);
    status = halves_run((const halves_inputs *)(const void *)in, (const halves_outputs *)(void *)out, arena);
    after = _mm_getcsr() & 0xffc0;
    _mm_setcsr(0x1f80);
    memcpy(bits, y, sizeof bits);
    printf("%d %x %x %x %x %x", status, after, bits[0], bits[1], bits[2], bits[3]);
    return 0;
}
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn the_float_environment_of_the_caller_is_kept() {
    let dir = Folder::new();
    let quarter = constant("quarter", &Tensor::from_vec([1], vec![0.25f32]));
    let g = graph(&["x f32[4]"], vec![node("y = Mul(x, quarter)", [])], &["y f32[4]"], vec![quarter]);
    let model = dir.model(&model(17, g));
    fs::write(dir.path("main.c"), MODES).expect("writable");
    let want: Vec<String> = [1e-38f32, 2e-38, -4e-39, 1.0].iter().map(|x| format!("{:x}", (x * 0.25).to_bits())).collect();
    for cpu in cpus() {
        dir.infc(&format!("compile {} --emit staticlib -o libhalves.a {cpu}", model.display()), 0);
        dir.run("cc", "-std=gnu99 -O1 main.c -L. -lhalves -o main", 0);
        assert_eq!(dir.run(dir.path("main"), "", 0), format!("0 9f80 {}", want.join(" ")), "{cpu}");
    }
}

#[test]
fn programs_say_what_is_wrong_with_their_arguments() {
    let dir = Folder::new();
    let g = graph(&["x f32[3]", "i i64[2]"], vec![node("y = Gather(x, i)", [])], &["y f32[2]"], vec![]);
    let model = dir.model(&model(17, g));
    dir.npy("i.npy", &Tensor::from_vec([2], vec![1i64, 2]));
    dir.program(&model, "prog", "");
    dir.run(dir.path("prog"), "i=i.npy", 0);
    let text = dir.run(dir.path("prog"), "x=i.npy", 3);
    assert!(text.contains("input 'x' is <f4 (3,) in C order") && text.contains("'<i8'"), "{text}");
    for (args, exit, part) in [
        ("z=zeros", 2, "no such input"),
        ("x", 2, "NAME=FILE.npy"),
        ("x=gone.npy", 4, "cannot be opened"),
        ("x=model.onnx", 3, "no .npy file"),
        ("i=zeros --output-dir gone", 4, "does the folder exist"),
        ("--help", 0, "input x: f32, 12 bytes"),
    ] {
        let text = dir.run(dir.path("prog"), args, exit);
        assert!(text.contains(part), "{args}: {text}");
    }
}

/// The first block of C in the documentation.
fn documented() -> String {
    let text = fs::read_to_string(Path::new(ROOT).join("docs/containers.md")).expect("the documentation");
    let (_, rest) = text.split_once("```c\n").expect("a block of C");
    rest.split_once("```").expect("its end").0.to_owned()
}

#[test]
fn the_documented_program_runs_with_object_and_libraries() {
    let dir = Folder::new();
    let model = example("digits_mlp").display().to_string();
    fs::write(dir.path("main.c"), documented()).expect("writable");
    let compile = |emit: &str, out: &str| dir.infc(&format!("compile {model} --dim batch=1 --emit {emit} -o {out}"), 0);
    compile("infc", "model.infc");
    let expected = dir.infc("run model.infc --input input=zeros", 0);
    let expected: Vec<f32> = expected.split("= ").nth(1).expect("values").split(' ').map_while(|v| v.parse().ok()).collect();
    assert_eq!(expected.len(), 8);
    for (emit, out, link) in [
        ("obj", "digits.o", "digits.o"),
        ("staticlib", "libdigits.a", "-L. -ldigits"),
        ("sharedlib", "libdigits.so", "-L. -ldigits -Wl,-rpath,."),
    ] {
        compile(emit, out);
        let files = dir.files();
        assert!(files.len() == 4 && files.iter().any(|f| f == out) && files.iter().any(|f| f == "digits.h"), "{emit}: {files:?}");
        dir.run("cc", &format!("{STRICT} main.c -o main {link}"), 0);
        let text = dir.run(dir.path("main"), "", 0);
        let got: Vec<f32> = text.lines().map(|l| l.parse().expect("a number")).collect();
        assert_eq!((got.len(), &got[..8]), (10, &expected[..]), "{emit}");
        if emit != "sharedlib" {
            let first = fs::read(dir.path(out)).expect("written");
            compile(emit, out);
            assert_eq!(fs::read(dir.path(out)).expect("written"), first, "the same compile gives the same bytes");
        }
        for file in [out, "digits.h", "main"] {
            fs::remove_file(dir.path(file)).expect("there");
        }
    }
}

#[test]
fn only_the_public_functions_are_seen_and_nothing_else_is_needed() {
    let dir = Folder::new();
    for (emit, out) in [("obj", "gru.o"), ("sharedlib", "libgru.so")] {
        let model = example("language_gru");
        dir.infc(&format!("compile {} --dim batch=1 --dim length=4 --emit {emit} -o {out}", model.display()), 0);
        let bytes = fs::read(dir.path(out)).expect("written");
        let file = object::File::parse(&*bytes).expect("an object file");
        let symbols = || if emit == "obj" { file.symbols() } else { file.dynamic_symbols() };
        let names = |undefined: bool| {
            let seen = symbols().filter(|s| s.is_global() && s.is_undefined() == undefined);
            let mut names: Vec<_> = seen.map(|s| s.name().expect("a name").to_owned()).filter(|n| !n.is_empty()).collect();
            names.sort();
            names
        };
        assert_eq!(names(false), ["gru_message", "gru_run"], "{emit}");
        assert!(names(true).iter().all(|n| LIBRARY.contains(&n.as_str())), "{emit}: {:?}", names(true));
    }
    // Objects of several models go together.
    dir.infc(&format!("compile {} --dim batch=1 --emit obj -o mlp.o", example("digits_mlp").display()), 0);
    let c = "#include \"gru.h\"\n#include \"mlp.h\"\nint main(void) { return mlp_message(0) == gru_message(0); }\n";
    fs::write(dir.path("main.c"), c).expect("writable");
    dir.run("cc", &format!("{STRICT} main.c gru.o mlp.o -o main"), 0);
    dir.run(dir.path("main"), "", 0);
}

#[test]
fn running_an_artifact_needs_no_llvm() {
    let bytes = fs::read(env!("CARGO_BIN_EXE_infc")).expect("the command line");
    let file = object::File::parse(&*bytes).expect("an executable");
    let names = file.section_by_name(".dynstr").expect("names of libraries").data().expect("readable");
    let has = |text: &[u8]| names.windows(text.len()).any(|w| w == text);
    assert!(has(b"libc.so") && !has(b"libLLVM"), "LLVM is to be loaded when code is first generated");
}

#[test]
fn printed_levels_read_back() {
    let dir = Folder::new();
    let model = example("language_gru").display().to_string();
    let print = |emit: &str, cpu: &str| {
        dir.infc(&format!("compile {model} --emit {emit} --cpu {cpu} -o text"), 0);
        fs::read_to_string(dir.path("text")).expect("written")
    };
    let ir = print("ir", "x86-64-v3");
    assert_eq!(infc_ir::text::print(&infc_ir::text::parse(&ir).expect("the graph reads back")), ir);
    let loops = print("loops", "x86-64-v3");
    let kernels = infc_kernel::loops::text::parse_all(&loops).expect("the kernels read back");
    assert_eq!(kernels.iter().map(|k| format!("{k}\n")).collect::<String>(), loops);
    for cpu in ["x86-64-v2", "x86-64-v4"] {
        let text = print("llvm-ir", cpu);
        infc_cpu_llvm::check_text(&text).expect("LLVM reads it back");
        infc_cpu_llvm::check_text(&text.replacen("define", "defined", 1)).expect_err("LLVM looks at it");
        fs::write(dir.path("text.s"), print("asm", cpu)).expect("writable");
        dir.run("cc", "-c text.s -o text.o", 0);
        let bytes = fs::read(dir.path("text.o")).expect("assembled");
        let file = object::File::parse(&*bytes).expect("an object file");
        let entries = file.symbols().filter(|s| s.name().is_ok_and(|n| n.starts_with("kernel.")));
        assert_eq!(entries.count(), kernels.len());
    }
}

/// Reads `in.bin`, runs with the dims of the command line, and writes `out.bin`; prints the status, its text, and the dims of the output.
const OPEN_MAIN: &str = r#"#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "open.h"
static unsigned char memory[OPEN_ARENA_BYTES + OPEN_ALIGN];
int main(int count, char **a) {
    static OPEN_IN_INPUT_TYPE in[OPEN_IN_INPUT_COUNT];
    static OPEN_OUT_LOGITS_TYPE out[OPEN_OUT_LOGITS_COUNT];
    void *arena = memory + (OPEN_ALIGN - (uintptr_t)memory % OPEN_ALIGN);
    int64_t dims[OPEN_OUT_LOGITS_RANK] = {-1, -1};
    open_inputs inputs;
    open_outputs outputs;
    int32_t status;
    FILE *file = fopen("in.bin", "rb");
    size_t bytes = file ? fread(in, 1, sizeof in, file) : 0;
    if (!file || count != 4) return 9;
    fclose(file);
    memset(memory, 0xa5, sizeof memory);
    inputs.input = in;
    outputs.logits = out;
    outputs.logits_dims = atoi(a[3]) ? dims : NULL;
    status = open_run(&inputs, &outputs, atoll(a[1]), atoll(a[2]), arena);
    printf("%d %s %d %d", (int)status, open_message(status), (int)dims[0], (int)dims[1]);
    file = fopen("out.bin", "wb");
    if (!file || fwrite(out, 1, sizeof out, file) != sizeof out || fclose(file)) return 9;
    return bytes == 0;
}
"#;

#[test]
fn open_dims_are_parameters_of_objects() {
    let dir = Folder::new();
    fs::write(dir.path("main.c"), OPEN_MAIN).expect("writable");
    let model = example("language_gru");
    for cpu in cpus() {
        dir.infc(&format!("compile {} -o open.infc {cpu}", model.display()), 0);
        dir.infc(&format!("compile {} --emit obj -o open.o {cpu} --dim batch<=3 --dim length<=9", model.display()), 0);
        dir.run("cc", &format!("{STRICT} main.c open.o -o main"), 0);
        for (batch, length) in [(2, 5), (3, 9), (1, 1), (3, 2)] {
            let letters: Vec<i64> = (0..batch * length).map(|k| (k * 7 + 3) % 20).collect();
            let t = Tensor::from_vec([batch as usize, length as usize], letters);
            dir.npy("in.npy", &t);
            fs::write(dir.path("in.bin"), t.bytes()).expect("writable");
            let text = dir.run(dir.path("main"), &format!("{batch} {length} 1"), 0);
            assert_eq!(text, format!("0 done {batch} 20"), "{cpu}");
            dir.infc("run open.infc --input input=in.npy --output-dir .", 0);
            let want = fs::read(dir.path("logits.npy")).expect("stored");
            let got = fs::read(dir.path("out.bin")).expect("written");
            let bytes = batch as usize * 20 * 4;
            assert_eq!(got[..bytes], want[want.len() - bytes..], "{cpu} {batch} {length}");
        }
        // Nobody has to take the dims, and too many elements are told.
        assert_eq!(dir.run(dir.path("main"), "2 3 0", 0), "0 done -1 -1");
        for dims in ["4 2", "1 10", "-1 2"] {
            let text = dir.run(dir.path("main"), &format!("{dims} 1"), 0);
            assert_eq!(text, "-2 a dim is below 0 or more than there is memory for -1 -1", "{cpu} {dims}");
        }
    }
}

#[test]
fn sizes_that_only_data_tells_are_bounded_in_programs() {
    let dir = Folder::new();
    let nodes = vec![node("k = NonZero(x)", []), node("u = Unique(x)", []), node("y = Cast(k)", [int("to", 1)])];
    let path = dir.model(&model(17, graph(&["x f32[a, 3]"], nodes, &["y f32[2, found]", "u f32[m]"], vec![])));
    dir.npy("x.npy", &Tensor::from_vec([2, 3], vec![0f32, 1.0, 0.0, 2.0, 0.0, 2.0]));
    same_as_artifact(&dir, &path, "--dim a=2", "x=x.npy");
    let text = dir.run(dir.path("prog"), "x=x.npy", 0);
    assert!(text.contains("y: f32[2, 3] = 0 1 1 1 0 2") && text.contains("u: f32[3] = 0 1 2"), "{text}");
}

#[test]
fn what_an_object_cannot_be_is_told_in_full() {
    let dir = Folder::new();
    let nodes = vec![node("n = NonZero(x)", []), node("u = Unique(x)", []), node("y = Cast(n)", [int("to", 1)])];
    let model = dir.model(&model(17, graph(&["x f32[a, b]"], nodes, &["y f32[2, k]", "u f32[m]"], vec![])));
    let model = model.display();
    let refused = |args: &str, exit: i32, parts: &[&str]| {
        let text = dir.infc(&format!("compile {model} {args}"), exit);
        parts.iter().for_each(|p| assert!(text.contains(p), "{args}: '{p}' is not in:\n{text}"));
        assert_eq!(dir.files(), ["model.onnx"]);
    };
    refused("--emit obj -o m.o", 3, &["dim 'a'", "dim 0 of input 'x'", "--dim 'b<=SIZE', or --dim b=SIZE"]);
    refused("--emit exe -o m", 3, &["2 of them have none: a, b", "--dim a=SIZE --dim b=SIZE", "--emit infc"]);
    refused("--emit exe -o m --dim a=2", 3, &["none: b"]);
    refused("--emit exe -o m --dim a<=2", 2, &["bounds are for code whose memory is of fixed size", "--dim a=2"]);
    refused("--emit obj -o m.o --dim c<=2 --dim a=2 --dim b=2", 3, &["bound 'c'", "the model has no such dim"]);
    refused("--emit obj -o model.onnx --dim a=2 --dim b=3", 2, &["is the model itself"]);
    let good = example("digits_mlp").display().to_string();
    let text = dir.infc(&format!("compile {good} --dim batch=1 --emit obj -o no/such/folder/x.o"), 4);
    assert!(text.contains("no/such/folder"), "{text}");
    for (compiler, part) in [("/no/such/cc", "cannot be started"), ("false", "failed")] {
        let mut infc = Command::new(env!("CARGO_BIN_EXE_infc"));
        infc.args(["compile", &good, "--dim", "batch=1", "--emit", "sharedlib", "-o", "libx.so"]).env("CC", compiler);
        let output = infc.current_dir(dir.0.path()).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(3) && text.contains(part) && text.contains("help"), "{text}");
    }
    assert_eq!(dir.files(), ["model.onnx"]);
}
