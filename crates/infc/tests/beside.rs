//! Models for GPUs some of whose steps run on the CPU beside them, with the fake driver over the PTX interpreter.

#![cfg(all(feature = "ptx", feature = "llvm", target_arch = "x86_64"))]

mod tool;

use infc::engine::{Backend, Engine, prepare};
use infc::loops_engine::Loops;
use infc::{Options, compile, target};
use infc_artifact::container::{Artifact, Kind, Reader, Requirements, Variant};
use infc_artifact::program::Step;
use infc_ir::Tensor;
use infc_ir::interp::Item;
use infc_kernel::program::{HostSide, lower_beside};
use infc_kernel::tuning::Choices;
use infc_onnx::proto::ModelProto;
use infc_runtime::{Model, Session, TensorRef};
use tool::fake::{again_with_driver, infc};
use tool::kit::*;
use tool::*;

fn weights(name: &str, dims: [usize; 2]) -> infc_onnx::proto::TensorProto {
    let values = (0..dims[0] * dims[1]).map(|i| (i * 37 % 101) as f32 / 80.0 - 0.6).collect::<Vec<f32>>();
    constant(name, &Tensor::from_vec(dims, values))
}

/// Products on the GPU; softmax and tanh between them may go to the host.
fn mixed() -> ModelProto {
    let nodes = vec![
        node("a = MatMul(x, v)", []),
        node("b = Softmax(a)", []),
        node("c = MatMul(b, w)", []),
        node("d = Tanh(c)", []),
        node("e = Add(d, a)", []),
        node("y = MatMul(e, w)", []),
    ];
    let weights = vec![weights("v", [24, 32]), weights("w", [32, 32])];
    model(17, graph(&["x f32[n, 24]"], nodes, &["y f32[n, 32]"], weights))
}

/// A branch, and a loop that ends early; what is in their bodies may go to the host.
fn control() -> ModelProto {
    let one = constant("one", &Tensor::from_vec([1], vec![1f32]));
    let limit = constant("limit", &Tensor::from_vec([1], vec![6f32]));
    let rounds = constant("rounds", &Tensor::from_vec([], vec![9i64]));
    let shape = constant("scalar", &Tensor::from_vec([0], Vec::<i64>::new()));
    let nodes = vec![
        node("t = Tanh(v)", []),
        node("u = Sub(v, t)", []),
        node("s = Exp(t)", []),
        node("r = Add(u, s)", []),
        node("next = Add(r, one)", []),
        node("less = Less(next, limit)", []),
        node("go = Reshape(less, scalar)", []),
    ];
    let step = graph(&["i i64[]", "c bool[]", "v f32[1]"], nodes, &["go bool[]", "next f32[1]"], vec![]);
    let add = graph(&[], vec![node("p = Add(x, x)", [])], &["p f32[1]"], vec![]);
    let neg = graph(&[], vec![node("q = Neg(x)", [])], &["q f32[1]"], vec![]);
    let nodes = vec![
        node("start = If(flag)", [body("then_branch", add), body("else_branch", neg)]),
        node("z = Loop(rounds, , start)", [body("body", step)]),
        node("y = Sqrt(z)", []),
    ];
    model(17, graph(&["flag bool[]", "x f32[1]"], nodes, &["y f32[1]"], vec![one, limit, rounds, shape]))
}

/// All backends give the interpreter's outputs with these on the host.
#[track_caller]
fn verified(path: &str, more: &[&str]) {
    for backend in ["loops", "ptx", "gpu"] {
        let args = [&["verify", path, "--backend", backend, "--target", "nvidia-sm80"], more].concat();
        let (code, text) = infc(&args, &[]);
        assert!(code == 0 && text.contains("1 passed"), "{args:?}: {text}");
    }
}

#[test]
fn a_model_on_both_sides_gives_the_outputs_of_the_interpreter() {
    let dir = Folder::new();
    let path = dir.model(&mixed());
    for named in [&["Softmax"][..], &["Tanh"], &["Softmax", "Tanh"], &["MatMul"], &["Add", "Softmax"], &["n_a", "n_e", "n_y"]] {
        let hosts = ["--host", "x86-64-v2", "--dim", "n=5"];
        verified(&path, &[&hosts[..], &named.iter().flat_map(|n| ["--on-host", n]).collect::<Vec<_>>()].concat());
    }
    // Products on the GPU with rounded factors, the rest as it is.
    verified(&path, &["--on-host", "Softmax", "--math", "bf16", "--dim", "n=5"]);
    // With nothing that needs it, nothing is there.
    verified(&path, &["--host", "native"]);
}

#[test]
fn layers_with_borders_and_bytes_run_on_the_host() {
    for (name, named) in [("glyphs_cnn", "Conv"), ("glyphs_cnn", "Relu"), ("language_gru", "GRU")] {
        let folder = examples().join(name).display().to_string();
        for backend in ["loops", "gpu"] {
            let args = ["verify", &folder, "--backend", backend, "--target", "nvidia-sm90a", "--on-host", named];
            let (code, text) = infc(&args, &[]);
            assert!(code == 0 && text.contains("1 passed"), "{args:?}: {text}");
        }
    }
}

#[test]
fn bodies_of_branches_and_loops_may_have_steps_of_the_host() {
    let dir = Folder::new();
    let path = dir.model(&control());
    for named in [&["Tanh"][..], &["Exp"], &["Less"], &["Add", "Neg"], &["Sub", "Tanh"], &["Sqrt"]] {
        verified(&path, &named.iter().flat_map(|n| ["--on-host", n]).collect::<Vec<_>>());
    }
    // The interpreter alone chooses the branch by random data: both are looked at.
    let graph = import(&control()).expect("a good model");
    for flag in [true, false] {
        let inputs = [Item::Tensor(Tensor::from_bools([], &[flag])), Item::Tensor(Tensor::from_vec([1], vec![0.5f32]))];
        let want = prepare(graph.clone(), Backend::Interp, &options(&[])).expect("ready").run(&inputs).expect("runs");
        for named in [&["Add"][..], &["Neg", "Tanh"], &["Exp", "Less"]] {
            for backend in [Backend::Loops, Backend::Ptx] {
                let mut engine = prepare(graph.clone(), backend, &options(named)).expect("ready");
                close(&engine.run(&inputs).expect("runs"), &want);
            }
        }
    }
}

fn options(named: &[&str]) -> Options {
    let mut options = Options::for_target(target::find("nvidia-sm80").expect("a machine"));
    let target = target::find_host(target::DEFAULT_HOST).expect("a machine");
    options.host = Some(compile::Host { target, named: named.iter().map(|n| (*n).to_owned()).collect() });
    options
}

#[track_caller]
fn close(got: &[Item], want: &[Item]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        let values = |item: &Item| -> Vec<f32> {
            let bytes = item.as_tensor().expect("a tensor").bytes();
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
        };
        let (got, want) = (values(got), values(want));
        assert!(got.len() == want.len() && got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} {want:?}");
    }
}

/// What a device has no code for goes to the host; here a machine refuses what it is told to.
#[test]
fn steps_without_code_for_the_device_run_on_the_host() {
    let graph = import(&mixed()).expect("a good model");
    let options = options(&[]);
    let inputs = [Item::Tensor(Tensor::from_vec([3, 24], (0..72).map(|i| (i % 7) as f32 - 3.0).collect()))];
    let want = prepare(graph.clone(), Backend::Interp, &options).expect("ready").run(&inputs).expect("runs");
    let optimised = compile::optimise(graph, &options).expect("optimises");
    let refuses = |kernel: &infc_kernel::loops::Kernel| {
        let product = kernel.name.contains("MatMul");
        (!product).then(|| format!("it has no instruction for {}", kernel.name))
    };
    let cpu = options.host.expect("one").target;
    let side = HostSide { target: &cpu, named: &[], refuses: &refuses };
    let lowered = lower_beside(&optimised, &options.target, Some(side), &vec![], &Choices::default()).expect("lowers");
    let on_host: Vec<&str> = lowered.program.host_kernels.iter().map(|k| k.name.as_str()).collect();
    assert!(!on_host.is_empty() && on_host.iter().all(|name| !name.contains("MatMul")), "{on_host:?}");
    assert!(!lowered.program.kernels.is_empty() && lowered.program.kernels.iter().all(|k| k.name.contains("MatMul")));
    let lines = infc::beside::lines(&lowered.program).join("\n");
    assert!(lines.contains("no code for the device: it has no instruction for"), "{lines}");
    assert!(lines.contains("copies to the host: buffer") && lines.contains("copies to the GPU: buffer"), "{lines}");
    let got = Loops::new(lowered).run(&inputs).expect("runs");
    close(&got, &want);
}

/// Without the copies the outputs would differ: the interpreter has memory for each side.
#[test]
fn a_copy_that_is_missing_shows() {
    let graph = import(&mixed()).expect("a good model");
    let options = options(&["Softmax"]);
    let inputs = [Item::Tensor(Tensor::from_vec([3, 24], (0..72).map(|i| (i % 7) as f32 - 3.0).collect()))];
    let lowered = compile::lower(graph, &options).expect("lowers");
    let copies = lowered.program.steps.iter().filter(|s| matches!(s, Step::ToHost { .. } | Step::ToDevice { .. })).count();
    assert_eq!(copies, 2);
    let want = Loops::new(lowered.clone()).run(&inputs).expect("runs");
    for gone in 0..copies {
        let mut other = lowered.clone();
        let mut seen = 0;
        other.program.steps.retain(|s| {
            let copy = matches!(s, Step::ToHost { .. } | Step::ToDevice { .. });
            seen += usize::from(copy);
            !copy || seen - 1 != gone
        });
        assert_ne!(Loops::new(other).run(&inputs).expect("runs"), want, "copy {gone}");
    }
}

#[test]
fn what_runs_on_the_host_is_listed() {
    let dir = Folder::new();
    let (path, out) = (dir.model(&mixed()), dir.path("m.infc"));
    let args = ["compile", &path, "--target", "nvidia", "--on-host", "Softmax", "-o", &out];
    let (code, compiled) = infc(&args, &[]);
    assert_eq!(code, 0, "{compiled}");
    let (code, inspected) = infc(&["inspect", &out, "--check"], &[]);
    assert_eq!(code, 0, "{inspected}");
    for text in [&compiled, &inspected] {
        let copy = text.find("copies to the host: buffer").unwrap_or_else(|| panic!("{text}"));
        let softmax = text.find("(Softmax, opset 17) (asked for)").unwrap_or_else(|| panic!("{text}"));
        let back = text.find("copies to the GPU: buffer").unwrap_or_else(|| panic!("{text}"));
        assert!(copy < softmax && softmax < back, "{text}");
    }
    assert!(inspected.contains("and beside it x86_64") && inspected.contains("(x86-64-v3)"), "{inspected}");
    assert!(inspected.contains("code for the CPU beside the GPU"), "{inspected}");
    let (code, text) = infc(&["profile", &out, "--dim", "n=2", "--seconds", "0"], &[]);
    assert_eq!(code, 0, "{text}");
    for words in ["on the host: ", "copy to the host: buffer", "copy to the GPU: buffer", "was waited for"] {
        assert!(text.contains(words), "no '{words}' in: {text}");
    }
    let (code, text) = infc(&["profile", &out, "--dim", "n=2", "--seconds", "0", "--html", &dir.path("p.html")], &[]);
    assert!(code == 2 && text.contains("--html"), "{text}");
}

#[test]
fn graphs_are_cut_around_steps_of_the_host_and_nothing_is_allocated_later() {
    let dir = Folder::new();
    let (path, out) = (dir.model(&mixed()), dir.path("m.infc"));
    let args = ["compile", &path, "--target", "nvidia-sm80", "--on-host", "Softmax", "--on-host", "Tanh", "-o", &out];
    let (code, text) = infc(&args, &[]);
    assert_eq!(code, 0, "{text}");
    let calls = |runs: &str| {
        let log = dir.path(&format!("log{runs}"));
        let args = ["bench", &out, "--dim", "n=3", "--seconds", "0", "--runs", runs];
        let (code, text) = infc(&args, &[("INFC_FAKE_CUDA_LOG", &log)]);
        assert_eq!(code, 0, "{text}");
        let log = std::fs::read_to_string(log).expect("the log");
        move |call: &str| log.lines().filter(|l| *l == call).count()
    };
    let (few, many) = (calls("2"), calls("12"));
    // Product, softmax, product, tanh, sum and product.
    assert_eq!((few("capture"), many("capture")), (3, 3));
    assert_eq!(many("graph_launch") - few("graph_launch"), 3 * 10);
    for call in ["alloc", "alloc_host", "free", "free_host"] {
        assert_eq!(few(call), many(call), "{call}");
    }
    assert_eq!((many("alloc"), many("alloc_host")), (many("free"), many("free_host")));
}

#[test]
fn sessions_run_side_by_side() {
    if again_with_driver("sessions_run_side_by_side") {
        return;
    }
    let graph = import(&mixed()).expect("a good model");
    let made = compile::compile(graph.clone(), &options(&["Softmax", "Tanh"])).expect("compiles");
    let model = Model::from_bytes(&made.artifact.to_bytes()).expect("loads");
    std::thread::scope(|scope| {
        for t in 0..3usize {
            let (model, graph) = (model.clone(), graph.clone());
            scope.spawn(move || {
                let mut session = Session::new(model, infc_runtime::Options::default()).expect("a session");
                for round in 0..4 {
                    // Other shapes too: what was captured and placed before does not fit them.
                    let n = 1 + (t + round / 2) % 3;
                    let x = Tensor::from_vec([n, 24], (0..n * 24).map(|i| ((i + t + round) % 7) as f32 - 3.0).collect());
                    let inputs = [Item::Tensor(x.clone())];
                    let want = prepare(graph.clone(), Backend::Interp, &options(&[])).expect("ready").run(&inputs).expect("runs");
                    let dims = [n as i64, 24];
                    session
                        .set_input(0, TensorRef { dtype: infc_runtime::DType(1), dims: &dims, bytes: x.bytes() })
                        .expect("fits");
                    session.run().expect("runs");
                    let y = session.output(0).expect("an output");
                    let got = Item::Tensor(Tensor::from_bytes(infc_ir::DType::F32, [n, 32], y.bytes.to_vec()));
                    close(&[got], &want);
                }
            });
        }
    });
}

#[test]
fn an_error_of_a_step_of_the_host_names_its_node() {
    let table = constant("table", &Tensor::from_vec([4], vec![1f32, 2.0, 3.0, 4.0]));
    let nodes = vec![node("j = Add(i, i)", []), node("g = Gather(table, j)", []), node("y = Exp(g)", [])];
    let m = model(17, graph(&["i i64[2]"], nodes, &["y f32[2]"], vec![table]));
    let dir = Folder::new();
    let (path, out) = (dir.model(&m), dir.path("m.infc"));
    let (code, text) = infc(&["compile", &path, "--target", "nvidia-sm80", "--on-host", "Gather", "-o", &out], &[]);
    assert!(code == 0 && text.contains("on the host: Gather"), "{text}");
    let run = |values: Vec<i64>| {
        let file = dir.path("i.npy");
        std::fs::write(&file, npy(&Tensor::from_vec([2], values))).expect("writable");
        infc(&["run", &out, "--input", &format!("i={file}")], &[])
    };
    let (code, text) = run(vec![0, 1]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = run(vec![0, 7]);
    assert!(code != 0 && text.contains("Gather 'n_g'") && text.contains("outside of the data"), "{text}");
}

#[test]
fn wrong_options_are_told() {
    let dir = Folder::new();
    let (path, out) = (dir.model(&mixed()), dir.path("m.infc"));
    let told = |args: &[&str], exit: i32, words: &[&str]| {
        let (code, text) = infc(&[&["compile", path.as_str(), "-o", out.as_str()], args].concat(), &[]);
        assert_eq!(code, exit, "{args:?}: {text}");
        words.iter().for_each(|w| assert!(text.contains(w), "{args:?}: no '{w}' in: {text}"));
    };
    told(&["--host", "x86-64-v3"], 2, &["--host is for a CPU beside a GPU", "--target nvidia"]);
    told(&["--on-host", "Softmax", "--cpu", "x86-64-v3"], 2, &["--on-host is for a CPU beside a GPU", "'x86-64-v3'"]);
    told(&["--host", "x86-64-v3", "--target", "c99"], 2, &["--host is for a CPU beside a GPU", "'c99'"]);
    told(&["--target", "nvidia", "--host", "pentium"], 2, &["--host pentium", "no such target"]);
    told(&["--target", "nvidia", "--host", "nvidia-sm80"], 2, &["--host nvidia-sm80", "is no CPU"]);
    told(&["--target", "nvidia", "--host", "x86-64-v3,x86-64-v4"], 2, &["2 CPUs are named", "name one"]);
    told(&["--target", "nvidia", "--on-host", "Conv"], 3, &["'Conv' for the host", "no node", "its operators are", "MatMul"]);
    assert!(!std::path::Path::new(&out).exists());
    told(
        &["--target", "nvidia", "--on-host", "Softmax"],
        0,
        &["on the host: ReduceMax of 'n_b' (Softmax, opset 17) (asked for)"],
    );
    let (code, text) = infc(&["bench", &out, "--host", "x86-64-v3"], &[]);
    assert!(code == 2 && text.contains("--host is for models that are compiled"), "{text}");
    let (code, text) = infc(&["verify", &path, "--host", "x86-64-v3"], &[]);
    assert!(code == 2 && text.contains("--host is for a CPU beside a GPU"), "{text}");
    let (code, text) = infc(&["verify", &path, "--backend", "interp", "--host", "x86-64-v3"], &[]);
    assert!(code == 2 && text.contains("--host is for models that are compiled for a GPU"), "{text}");
    let args = ["verify", &path, "--backend", "ptx", "--host", "x86-64-v3", "--bisect"];
    let (code, text) = infc(&args, &[]);
    assert!(code == 2 && text.contains("--host and --bisect do not go together"), "{text}");
}

/// The artifact of a model with softmax on the host, written anew with other parts.
fn changed(change: impl Fn(&mut Variant)) -> Vec<u8> {
    let made =
        compile::compile(import(&mixed()).expect("a good model"), &options(&["Softmax"])).expect("compiles").artifact.to_bytes();
    let reader = Reader::open(&made).expect("an artifact just made");
    let bytes = |kind| reader.bytes(reader.section(kind, 0).expect("complete"));
    let requirements = reader.requirements()[0].clone();
    let (program, code) = (bytes(Kind::Program).to_vec(), bytes(Kind::Code).to_vec());
    let mut variant = Variant { requirements, program, code, host_code: bytes(Kind::HostCode).to_vec() };
    change(&mut variant);
    Artifact { manifest: bytes(Kind::Manifest), variants: &[variant], constants: &[bytes(Kind::Constants)], debug: &[] }
        .to_bytes()
}

#[test]
fn loading_checks_both_sides() {
    if again_with_driver("loading_checks_both_sides") {
        return;
    }
    let load = |bytes: &[u8]| Model::from_bytes(bytes).map(|_| ()).map_err(|e| e.to_string());
    assert_eq!(load(&changed(|_| ())), Ok(()));
    fn host(v: &mut Variant) -> &mut Requirements {
        v.requirements.host.as_mut().expect("one")
    }
    let error = load(&changed(|v| host(v).features.push("avx2048".into()))).unwrap_err();
    for words in ["steps beside the GPU are for the CPU 'x86-64-v3'", "lacks avx2048", "--host"] {
        assert!(error.contains(words), "{error}");
    }
    let error = load(&changed(|v| host(v).arch = "mips".into())).unwrap_err();
    assert!(error.contains("steps beside the GPU") && error.contains("mips"), "{error}");
    let error = load(&changed(|v| v.host_code.clear())).unwrap_err();
    assert!(error.contains("kernel of the host 0") && error.contains("0 bytes of code"), "{error}");
    let error = load(&changed(|v| v.requirements.host = None)).unwrap_err();
    assert!(error.contains("kernel of the host 0"), "{error}");
    let as_cpu =
        |v: &mut Variant| v.requirements = Requirements { name: "cpu".into(), arch: "x86_64".into(), ..Default::default() };
    let error = load(&changed(as_cpu)).unwrap_err();
    assert!(error.contains("steps beside a device, in code that is for none"), "{error}");
    let without = |v: &mut Variant| {
        let mut program = infc_artifact::decode::decode(&v.program).expect("well-formed");
        program.steps.iter_mut().for_each(|s| {
            if let Step::ToHost { .. } | Step::ToDevice { .. } = s {
                let nothing = infc_artifact::program::Size::constant(0);
                *s = Step::Require { left: nothing.clone(), right: nothing, or_one: false, code: 0 };
            }
        });
        v.program = infc_artifact::encode::encode(&program);
    };
    let error = load(&changed(without)).unwrap_err();
    assert!(error.contains("never copied; compile the model again"), "{error}");
    // Any damage of the program is an error or a model, never a crash.
    for at in 0..200 {
        let _ = load(&changed(|v| {
            let at = at * v.program.len() / 200;
            v.program[at] ^= 1 << (at % 7);
        }));
    }
}

#[test]
fn sizes_that_only_data_tells_may_come_from_the_host() {
    let nodes = vec![
        node("e = Exp(x)", []),
        node("p = NonZero(x)", []),
        node("q = Transpose(p)", []),
        node("g = GatherND(e, q)", []),
        node("y = Neg(g)", []),
    ];
    let m = model(17, graph(&["x f32[4, 5]"], nodes, &["y f32[k]"], vec![]));
    let dir = Folder::new();
    let path = dir.model(&m);
    for named in ["NonZero", "GatherND", "Exp"] {
        verified(&path, &["--on-host", named]);
    }
    // No zero, some, and nothing else, one after another in one session.
    let graph = import(&m).expect("a good model");
    let mut interp = prepare(graph.clone(), Backend::Interp, &options(&[])).expect("ready");
    let mut engine = prepare(graph, Backend::Ptx, &options(&["NonZero"])).expect("ready");
    for every in [1, 3, 21] {
        let inputs = [Item::Tensor(Tensor::from_vec(
            [4, 5],
            (1..=20).map(|i| if i % every == 0 { i as f32 / 8.0 } else { 0.0 }).collect(),
        ))];
        close(&engine.run(&inputs).expect("runs"), &interp.run(&inputs).expect("runs"));
    }
}

#[test]
fn routines_of_the_host_have_their_copies_listed() {
    let nodes = vec![
        node("e = Exp(x)", []),
        node("s = Cast(e)", [int("to", 8)]),
        node("n = Cast(s)", [int("to", 1)]),
        node("y = Neg(n)", []),
    ];
    let m = model(21, graph(&["x f32[3]"], nodes, &["y f32[3]"], vec![]));
    let dir = Folder::new();
    let (path, out) = (dir.model(&m), dir.path("m.infc"));
    verified(&path, &[]);
    let (code, text) = infc(&["compile", &path, "--target", "nvidia-sm80", "-o", &out], &[]);
    assert_eq!(code, 0, "{text}");
    for words in ["copies to the host", "on the host: Cast", "routine Cast", "copies to the GPU"] {
        assert!(text.contains(words), "no '{words}' in: {text}");
    }
    let (code, text) = infc(&["inspect", &out], &[]);
    assert!(code == 0 && !text.contains("code for the CPU beside"), "{text}");
}
