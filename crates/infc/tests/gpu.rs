//! Models for NVIDIA GPUs in the runtime, whose driver is the fake one over the PTX interpreter: the runtime's own code, without a GPU.

#![cfg(feature = "ptx")]

mod tool;

use infc::engine::{Backend, Engine, prepare};
use infc::{Options, compile, target};
use infc_ir::interp::Item;
use infc_ir::{DType, Tensor};
use infc_onnx::proto::ModelProto;
use infc_runtime::{Model, Session, TensorRef};
use tool::fake::{again_with_driver, infc};
use tool::kit::*;
use tool::*;

fn artifact(dir: &Folder, target: &str) -> String {
    let (model, out) = (examples().join("digits_mlp/model.onnx").display().to_string(), dir.path("model.infc"));
    let (code, text) = infc(&["compile", &model, "--target", target, "-o", &out], &[]);
    assert_eq!(code, 0, "{text}");
    out
}

#[test]
fn models_run_in_graphs_that_are_captured_once_and_leave_no_memory() {
    let dir = Folder::new();
    let (artifact, log) = (artifact(&dir, "nvidia"), dir.path("log"));
    let (code, text) = infc(&["bench", &artifact, "--dim", "batch=3", "--seconds", "0.2"], &[("INFC_FAKE_CUDA_LOG", &log)]);
    assert_eq!(code, 0, "{text}");
    let log = std::fs::read_to_string(log).expect("the log");
    let count = |call: &str| log.lines().filter(|l| *l == call).count();
    assert_eq!(count("capture"), 1, "{log}");
    assert!(count("graph_launch") > 1, "{log}");
    assert_eq!(count("alloc"), count("free"), "{log}");
    assert_eq!(count("alloc_host"), count("free_host"), "{log}");
    assert_eq!(count("module_load"), count("module_unload"), "{log}");
}

#[test]
fn runs_leave_the_memory_of_the_device_as_it_was() {
    let dir = Folder::new();
    let artifact = artifact(&dir, "nvidia");
    let (code, text) = infc(&["bench", &artifact, "--dim", "batch=3", "--seconds", "0", "--runs", "200", "--json"], &[]);
    assert_eq!(code, 0, "{text}");
    let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let free = |when: &str| said[format!("device_free_{when}")].as_u64().unwrap_or_else(|| panic!("{text}"));
    assert_eq!(free("first"), free("last"));
    assert_eq!(said["runs"], 201);
}

#[test]
fn the_device_takes_the_time_of_its_steps() {
    let dir = Folder::new();
    let one_graph = artifact(&dir, "nvidia");
    // Steps of one that are in several graphs, and of one that has none.
    let compiled = |name: &str, m: &ModelProto| {
        let (path, out) = (dir.model(m), dir.path(name));
        let (code, text) = infc(&["compile", &path, "--target", "nvidia-sm90a", "-o", &out], &[]);
        assert_eq!(code, 0, "{text}");
        out
    };
    let nodes =
        vec![node("e = Neg(x)", []), node("z = NonZero(e)", []), node("t = Transpose(z)", []), node("y = GatherND(e, t)", [])];
    let graphs = compiled("graphs", &model(17, graph(&["x f32[batch, 5]"], nodes, &["y f32[k]"], vec![])));
    let nothing =
        compiled("nothing", &model(17, graph(&["x f32[batch]"], vec![node("y = Identity(x)", [])], &["y f32[batch]"], vec![])));
    for artifact in [&one_graph, &graphs, &nothing] {
        let log = format!("{artifact}.log");
        let args = ["bench", artifact, "--dim", "batch=3", "--seconds", "0", "--runs", "5", "--json"];
        let (code, text) = infc(&args, &[("INFC_FAKE_CUDA_LOG", &log)]);
        assert_eq!(code, 0, "{text}");
        let said: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let ms = |name: &str| said[name].as_f64().unwrap_or_else(|| panic!("no {name} in {text}"));
        assert!(ms("device_median_ms") > 0.0, "{text}");
        let log = std::fs::read_to_string(log).expect("the log");
        let count = |call: &str| log.lines().filter(|l| *l == call).count();
        assert_eq!((count("event"), count("event_destroy")), (2, 2), "{log}");
    }
    if cfg!(feature = "llvm") {
        let model = examples().join("digits_mlp/model.onnx").display().to_string();
        let (_, text) = infc(&["bench", &model, "--dim", "batch=3", "--seconds", "0", "--json"], &[]);
        assert!(text.contains("\"device_median_ms\":null"), "{text}");
    }
}

#[test]
fn trained_models_give_the_outputs_of_the_interpreter() {
    for model in ["digits_mlp", "glyphs_cnn"] {
        let folder = examples().join(model).join("model.onnx").display().to_string();
        for backend in ["ptx", "gpu"] {
            let (code, text) = infc(&["verify", &folder, "--backend", backend], &[]);
            assert!(code == 0 && text.contains("1 passed"), "{model} {backend}: {text}");
        }
    }
}

#[test]
fn what_the_machine_lacks_is_told() {
    let dir = Folder::new();
    let model = examples().join("digits_mlp/model.onnx").display().to_string();
    let (both, hopper) = (artifact(&dir, "nvidia"), Folder::new());
    let only = artifact(&hopper, "nvidia-sm90a");
    let run =
        |artifact: &str, settings: &[(&str, &str)]| infc(&["bench", artifact, "--dim", "batch=1", "--seconds", "0"], settings);
    let told = |artifact: &str, settings: &[(&str, &str)], words: &[&str]| {
        let (code, text) = run(artifact, settings);
        assert_ne!(code, 0, "{text}");
        words.iter().for_each(|w| assert!(text.contains(w), "no '{w}' in: {text}"));
    };
    assert_eq!(run(&both, &[("INFC_FAKE_CUDA_CAPABILITY", "8.6")]).0, 0);
    assert_eq!(run(&both, &[("INFC_FAKE_CUDA_CAPABILITY", "9.0")]).0, 0);
    assert_eq!(run(&both, &[("INFC_FAKE_CUDA_CAPABILITY", "10.0")]).0, 0);
    told(&both, &[("INFC_CUDA_DRIVER", "/nonexistent.so")], &["no driver", "/nonexistent.so", "install the driver"]);
    told(&both, &[("INFC_FAKE_CUDA_DEVICES", "0")], &["CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"]);
    told(&both, &[("INFC_FAKE_CUDA_CAPABILITY", "7.5")], &["sm_80", "7.5", "nvidia-sm80"]);
    told(&only, &[("INFC_FAKE_CUDA_CAPABILITY", "10.0")], &["sm_90a", "10.0"]);
    told(&both, &[("INFC_FAKE_CUDA_MEMORY", "1000")], &["the weights take", "1000 free"]);
    // Steps are timed with a wait after each, and there is nothing to compare them with.
    let (code, text) = infc(&["profile", &model, "--target", "nvidia-sm80", "--dim", "batch=1", "--seconds", "0"], &[]);
    assert!(code == 0 && text.contains("Gemm") && text.contains("was waited for"), "{text}");
    // The weights fit, the values of a large batch do not.
    let large = infc(&["bench", &both, "--dim", "batch=100000", "--seconds", "0"], &[("INFC_FAKE_CUDA_MEMORY", "20000000")]);
    assert!(large.0 != 0 && large.1.contains("these shapes need") && large.1.contains("free"), "{}", large.1);
}

#[test]
fn ptx_is_text_and_targets_are_checked() {
    let model = examples().join("digits_mlp/model.onnx").display().to_string();
    let (code, text) = infc(&["compile", &model, "--emit", "ptx", "--target", "nvidia-sm90a"], &[]);
    assert!(code == 0 && text.contains(".target sm_90a") && text.contains(".visible .entry k0("), "{text}");
    let (code, text) = infc(&["compile", &model, "--emit", "ptx", "--target", "c99"], &[]);
    assert!(code != 0 && text.contains("ptx"), "{text}");
    let (code, text) = infc(&["compile", &model, "--emit", "ptx", "--math", "bf16"], &[]);
    assert!(code == 0 && text.contains("mma.sync") && text.contains("f32.bf16.bf16.f32"), "{text}");
    let (code, text) = infc(&["compile", &model, "--target", "c99", "--math", "tf32"], &[]);
    assert!(code == 2 && text.contains("takes no products in that way"), "{text}");
    let (code, text) = infc(&["compile", &model, "--target", "nvidia", "--math", "f8"], &[]);
    assert!(code == 2 && text.contains("f32, tf32, bf16, f16"), "{text}");
    let (code, text) = infc(&["verify", &model, "--backend", "ptx", "--target", "c99"], &[]);
    assert!(code == 2 && text.contains("--backend ptx runs"), "{text}");
    let (code, text) = infc(&["compile", &model, "--emit", "obj", "--dim", "batch=1", "--target", "nvidia-sm80"], &[]);
    assert!(code != 0 && text.contains("no object files"), "{text}");
    let (code, text) = infc(&["verify", &model, "--backend", "ptx", "--target", "nvidia"], &[]);
    assert!(code != 0 && text.contains("name one of them: nvidia-sm90a, nvidia-sm80"), "{text}");
}

/// A machine file of Hopper GPUs on which warpgroups take products of few tiles too.
fn hopper(dir: &Folder) -> String {
    let machine = include_str!("../../../targets/gpu-ptx/machines/nvidia-sm90a.toml");
    assert!(machine.contains("warpgroup_tiles = 100"));
    let path = dir.path("hopper.toml");
    std::fs::write(&path, machine.replace("warpgroup_tiles = 100", "warpgroup_tiles = 1")).expect("a file");
    path
}

#[test]
fn products_of_warpgroups_get_the_shared_memory_that_they_ask_for() {
    // The first product has a constant, which lies in tiles; the second one has not.
    let weights = Tensor::from_vec([64, 136], (0..64 * 136).map(|k| (k * 37 % 23) as f32 / 16.0 - 0.6).collect());
    let nodes =
        vec![node("h = MatMul(x, w)", []), node("r = Relu(h)", []), node("t = Transpose(r)", []), node("y = MatMul(t, r)", [])];
    let m = model(17, graph(&["x f32[130, 64]"], nodes, &["y f32[136, 136]"], vec![constant("w", &weights)]));
    let dir = Folder::new();
    let machine = hopper(&dir);
    let (path, log) = (dir.model(&m), dir.path("log"));
    for math in ["bf16", "f16", "tf32"] {
        let hopper = [("INFC_FAKE_CUDA_CAPABILITY", "9.0"), ("INFC_FAKE_CUDA_LOG", log.as_str())];
        let args = ["verify", path.as_str(), "--math", math];
        for backend in ["gpu", "ptx"] {
            let (code, text) = infc(&[&args[..], &["--backend", backend, "--target", &machine]].concat(), &hopper);
            assert!(code == 0 && text.contains("1 passed"), "{math} {backend}: {text}");
        }
        let (code, text) = infc(&["compile", &path, "--emit", "ptx", "--target", &machine, "--math", math], &[]);
        assert!(code == 0 && text.contains("wgmma.mma_async") && text.contains(" shared "), "{math}: {text}");
        assert!(text.contains("cp.async.bulk"), "{math}: {text}");
    }
    let log = std::fs::read_to_string(log).expect("the log");
    assert!(log.lines().any(|l| l == "function_attribute"), "{log}");
}

#[test]
fn long_tiles_of_warps_get_the_shared_memory_that_they_ask_for() {
    // Products of many elements with few rows: tiles of warps, four of 128 bytes a line.
    let weights = Tensor::from_vec([512, 72], (0..512 * 72).map(|k| (k * 37 % 23) as f32 / 16.0 - 0.6).collect());
    let nodes = vec![node("h = MatMul(x, w)", []), node("y = Relu(h)", [])];
    let m = model(17, graph(&["x f32[40, 512]"], nodes, &["y f32[40, 72]"], vec![constant("w", &weights)]));
    let dir = Folder::new();
    let (path, log) = (dir.model(&m), dir.path("log"));
    let hopper = [("INFC_FAKE_CUDA_CAPABILITY", "9.0"), ("INFC_FAKE_CUDA_LOG", log.as_str())];
    for math in ["bf16", "tf32"] {
        for target in ["nvidia-sm80", "nvidia-sm90a"] {
            let _ = std::fs::remove_file(&log);
            let (code, text) = infc(&["verify", path.as_str(), "--math", math, "--backend", "gpu", "--target", target], &hopper);
            assert!(code == 0 && text.contains("1 passed"), "{math} {target}: {text}");
            let asked = std::fs::read_to_string(&log).expect("the log").lines().any(|l| l == "function_attribute");
            assert_eq!(asked, target == "nvidia-sm90a", "{math} {target}");
        }
    }
}

#[test]
fn what_is_stored_rounded_comes_through_tensor_maps() {
    // The first product's result is read by a product and by a sum: it is stored twice, and the second product has a map of what is rounded.
    let weights = |k: usize| Tensor::from_vec([k, 136], (0..k * 136).map(|i| (i * 37 % 23) as f32 / 16.0 - 0.6).collect());
    let nodes =
        vec![node("h = MatMul(x, w)", []), node("r = Relu(h)", []), node("p = MatMul(r, v)", []), node("y = Add(p, r)", [])];
    let constants = vec![constant("w", &weights(64)), constant("v", &weights(136))];
    let m = model(17, graph(&["x f32[130, 64]"], nodes, &["y f32[130, 136]"], constants));
    let dir = Folder::new();
    let machine = hopper(&dir);
    let path = dir.model(&m);
    for math in ["bf16", "f16", "f32"] {
        let log = dir.path(&format!("log of {math}"));
        let hopper = [("INFC_FAKE_CUDA_CAPABILITY", "9.0"), ("INFC_FAKE_CUDA_LOG", log.as_str())];
        let args = ["verify", path.as_str(), "--math", math, "--backend", "gpu", "--target", &machine];
        let (code, text) = infc(&args, &hopper);
        assert!(code == 0 && text.contains("1 passed"), "{math}: {text}");
        let log = std::fs::read_to_string(log).expect("the log");
        assert_eq!(log.lines().any(|l| l == "tensor_map"), math != "f32", "{math}: {log}");
    }
}

#[test]
fn boxes_of_tensors_get_their_maps_from_the_driver() {
    let nodes = vec![node("h = MatMul(x, w)", []), node("y = Relu(h)", [])];
    let m = model(17, graph(&["x f16[140, 72]", "w f16[72, 136]"], nodes, &["y f16[140, 136]"], vec![]));
    let dir = Folder::new();
    let machine = hopper(&dir);
    let (path, log) = (dir.model(&m), dir.path("log"));
    let hopper = [("INFC_FAKE_CUDA_CAPABILITY", "9.0"), ("INFC_FAKE_CUDA_LOG", log.as_str())];
    for backend in ["gpu", "ptx"] {
        let (code, text) = infc(&["verify", &path, "--backend", backend, "--target", &machine], &hopper);
        assert!(code == 0 && text.contains("1 passed"), "{backend}: {text}");
    }
    let (code, text) = infc(&["compile", &path, "--emit", "ptx", "--target", &machine], &[]);
    // Two blocks are a cluster.
    assert!(code == 0 && text.matches(" map ").count() == 2 && text.contains(" cluster 2 map "), "{text}");
    let log = std::fs::read_to_string(log).expect("the log");
    assert!(log.lines().filter(|l| *l == "tensor_map").count() >= 2, "{log}");
}

fn options() -> Options {
    Options::for_target(target::find("nvidia-sm90a").expect("a machine"))
}

/// The model on the fake device, which runs it as often as is asked, and by the interpreter.
fn both(m: &ModelProto) -> [Box<dyn Engine>; 2] {
    [Backend::Gpu, Backend::Interp].map(|b| prepare(import(m).expect("a good model"), b, &options()).expect("ready"))
}

fn item<T: infc_ir::tensor::Element>(dims: &[usize], values: impl Fn(usize) -> T) -> Item {
    Item::Tensor(Tensor::from_vec(dims.to_vec(), (0..dims.iter().product()).map(values).collect()))
}

#[track_caller]
fn same(got: &[Item], want: &[Item]) {
    let parts = |items: &[Item]| -> Vec<(DType, Vec<usize>, Vec<u8>)> {
        items.iter().filter_map(Item::as_tensor).map(|t| (t.dtype, t.dims.to_vec(), t.bytes().to_vec())).collect()
    };
    assert_eq!(parts(got), parts(want));
}

/// Pointwise things of many inputs and outputs, of sizes that are no multiples of anything; bits are those of the interpreter.
fn many_ports() -> ModelProto {
    let names = |name: &str, dims: &str| (0..9).map(|k| format!("{name}{k} {dims}")).collect::<Vec<_>>();
    let nodes = (0..9).map(|k| node(&format!("y{k} = Add(x{k}, x{})", (k + 1) % 9), [])).collect();
    let (inputs, outputs) = (names("x", "f32[n, 3]"), names("y", "f32[n, 3]"));
    let list = |all: &[String]| all.iter().map(|s| &*s.clone().leak()).collect::<Vec<&str>>();
    model(17, graph(&list(&inputs), nodes, &list(&outputs), vec![]))
}

#[test]
fn a_run_is_one_graph_with_its_copies_and_one_wait() {
    let dir = Folder::new();
    let (path, out) = (dir.model(&many_ports()), dir.path("m.infc"));
    let (code, text) = infc(&["compile", &path, "--target", "nvidia-sm90a", "-o", &out], &[]);
    assert_eq!(code, 0, "{text}");
    let calls = |runs: &str| {
        let log = dir.path(&format!("log{runs}"));
        let args = ["bench", &out, "--dim", "n=5", "--seconds", "0", "--runs", runs];
        let (code, text) = infc(&args, &[("INFC_FAKE_CUDA_LOG", &log)]);
        assert_eq!(code, 0, "{text}");
        let log = std::fs::read_to_string(log).expect("the log");
        move |call: &str| log.lines().filter(|l| *l == call).count()
    };
    let (few, many) = (calls("2"), calls("12"));
    assert_eq!((few("capture"), many("capture")), (1, 1));
    assert_eq!((many("graph_launch") - few("graph_launch"), many("wait") - few("wait")), (10, 10));
    // What was captured: nine inputs by one copy, and nine outputs with the word for errors. Before that, once, what lies behind each output and the word.
    assert_eq!((few("to_device"), few("to_host")), (1 + 10, 1));
    for call in ["to_device", "to_host", "launch", "alloc", "alloc_host", "free", "free_host"] {
        assert_eq!(few(call), many(call), "{call}");
    }
}

#[test]
fn shapes_grow_shrink_and_vanish() {
    if again_with_driver("shapes_grow_shrink_and_vanish") {
        return;
    }
    let [mut gpu, mut interp] = both(&many_ports());
    // From 10,923 rows on they are large.
    for (round, n) in [2, 2, 100, 1, 0, 12000, 7, 1000, 11000, 12000, 20000, 3].into_iter().enumerate() {
        let inputs: Vec<Item> = (0..9).map(|k| item(&[n, 3], |i| (i * 7 + k * 13 + round) as f32)).collect();
        same(&gpu.run(&inputs).expect("runs"), &interp.run(&inputs).expect("runs"));
    }
}

/// Kernels for one row, for few and for more stand behind each other, and one of them is launched.
#[test]
fn narrow_weights_are_read_by_the_kernel_for_the_number_of_rows() {
    if again_with_driver("narrow_weights_are_read_by_the_kernel_for_the_number_of_rows") {
        return;
    }
    let [k, n] = [128usize, 136];
    let t = Tensor::from_bytes(DType::I8, vec![k, n], (0..k * n).map(|i| (i * 89 % 256) as u8).collect::<Vec<u8>>());
    let scales = Tensor::from_vec([n], (0..n).map(|c| 0.25 + (c % 7) as f32 * 0.125).collect::<Vec<f32>>());
    let nodes = vec![node("w = DequantizeLinear(t, s)", [int("axis", 1)]), node("y = MatMul(x, w)", [])];
    let held = vec![constant("t", &t), constant("s", &scales)];
    let m = model(21, graph(&["x f32[rows, 128]"], nodes, &["y f32[rows, 136]"], held));
    let [mut device, mut interp] = both(&m);
    for rows in [1usize, 3, 70, 4, 5, 0, 1] {
        let x = item(&[rows, k], |i| (i * 37 % 17) as f32 - 8.0);
        same(&device.run(std::slice::from_ref(&x)).expect("runs"), &interp.run(&[x]).expect("runs"));
    }
}

#[test]
fn a_run_that_fails_gives_no_output_and_leaves_no_error() {
    if again_with_driver("a_run_that_fails_gives_no_output_and_leaves_no_error") {
        return;
    }
    // Before the failing step and behind it are others, and the model with NonZero runs in several graphs.
    let nodes = vec![node("e = Neg(x)", []), node("g = Gather(e, i)", []), node("y = Add(g, g)", [])];
    let plain = model(17, graph(&["x f32[4]", "i i64[n]"], nodes.clone(), &["y f32[n]", "e f32[4]"], vec![]));
    let more = [nodes, vec![node("z = NonZero(y)", [])]].concat();
    let grows = model(17, graph(&["x f32[4]", "i i64[n]"], more, &["y f32[n]", "z i64[1, k]", "e f32[4]"], vec![]));
    for m in [plain, grows] {
        let graph = import(&m).expect("a good model");
        let [_, mut interp] = both(&m);
        let made = compile::compile(graph, &options()).expect("compiles");
        let mut session =
            Session::new(Model::from_bytes(&made.artifact.to_bytes()).expect("loads"), infc_runtime::Options::default())
                .expect("a session");
        let outputs = session.model().outputs().len();
        for (round, indices) in
            [vec![1i64, 3], vec![2, 9], vec![0, 1], vec![4], vec![-5, 0, 0], vec![-4, 3, 2]].into_iter().enumerate()
        {
            let (x, i) = (item(&[4], |k| ((k + round) % 3) as f32), item(&[indices.len()], |k| indices[k]));
            for (port, value) in [&x, &i].into_iter().enumerate() {
                let t = value.as_tensor().expect("a tensor");
                let dims: Vec<i64> = t.dims.iter().map(|&d| d as i64).collect();
                let value = TensorRef { dtype: infc_runtime::DType(t.dtype.onnx() as u8), dims: &dims, bytes: t.bytes() };
                session.set_input(port, value).expect("fits");
            }
            let done = session.run();
            if indices.iter().any(|i| !(-4..4).contains(i)) {
                let error = done.expect_err("an index outside").to_string();
                assert!(error.contains("Gather 'n_g'") && error.contains("outside of the data"), "{error}");
                assert!((0..outputs).all(|o| session.output(o).is_err()));
                continue;
            }
            done.expect("runs");
            let want = interp.run(&[x, i]).expect("runs");
            for (o, want) in want.iter().enumerate() {
                let (got, want) = (session.output(o).expect("an output"), want.as_tensor().expect("a tensor"));
                assert_eq!(got.bytes, want.bytes(), "output {o} of round {round}");
            }
        }
    }
}

#[test]
fn outputs_that_grow_stand_beside_others() {
    if again_with_driver("outputs_that_grow_stand_beside_others") {
        return;
    }
    let nodes =
        vec![node("e = Neg(x)", []), node("z = NonZero(e)", []), node("t = Transpose(z)", []), node("g = GatherND(e, t)", [])];
    let m = model(17, graph(&["x f32[n, 5]"], nodes, &["e f32[n, 5]", "z i64[2, k]", "g f32[k]"], vec![]));
    let [mut gpu, mut interp] = both(&m);
    for (n, every) in [(4, 1), (4, 3), (40, 2), (40, 1), (4, 100), (0, 1), (9, 2)] {
        let x = [item(&[n, 5], |i| if (i + 1) % every == 0 { i as f32 + 0.5 } else { 0.0 })];
        same(&gpu.run(&x).expect("runs"), &interp.run(&x).expect("runs"));
    }
}

#[test]
fn states_go_from_run_to_run() {
    if again_with_driver("states_go_from_run_to_run") {
        return;
    }
    let m = model(17, graph(&["x f32[3]", "s f32[3]"], vec![node("y = Add(x, s)", [])], &["y f32[3]"], vec![]));
    let options = Options { states: vec![("y".into(), "s".into())], ..options() };
    let made = compile::compile(import(&m).expect("a good model"), &options).expect("compiles");
    let mut session =
        Session::new(Model::from_bytes(&made.artifact.to_bytes()).expect("loads"), infc_runtime::Options::default())
            .expect("a session");
    let x: Vec<u8> = [1f32, 2.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    session.set_input("x", TensorRef { dtype: infc_runtime::DType(1), dims: &[3], bytes: &x }).expect("fits");
    for round in [1, 2, 3, 4, 1, 2] {
        if round == 1 {
            session.reset();
        }
        session.run().expect("runs");
        let want: Vec<u8> = [1f32, 2.0, 4.0].iter().flat_map(|v| (v * round as f32).to_le_bytes()).collect();
        assert_eq!(session.output("y").expect("an output").bytes, want);
    }
}

#[test]
fn large_inputs_and_outputs_are_copied_from_and_to_where_they_are() {
    let dir = Folder::new();
    let nodes = vec![node("y = Add(x, b)", []), node("z = Neg(b)", [])];
    let m = model(17, graph(&["x f32[n, 8]", "b f32[8]"], nodes, &["y f32[n, 8]", "z f32[8]"], vec![]));
    let (path, out) = (dir.model(&m), dir.path("m.infc"));
    let (code, text) = infc(&["compile", &path, "--target", "nvidia-sm90a", "-o", &out], &[]);
    assert_eq!(code, 0, "{text}");
    let calls = |name: &str, n: &str, more: &[(&str, &str)]| {
        let log = dir.path(name);
        let settings = [more, &[("INFC_FAKE_CUDA_LOG", log.as_str())]].concat();
        let (code, text) = infc(&["bench", &out, "--dim", n, "--seconds", "0", "--runs", "4"], &settings);
        assert_eq!(code, 0, "{text}");
        let log = std::fs::read_to_string(log).expect("the log");
        ["host_register", "host_unregister", "to_device", "to_host", "capture"]
            .map(|call| log.lines().filter(|l| *l == call).count())
    };
    // The first run and four others; small ones are in the graph. Before that, once, what lies behind small outputs and the word for errors.
    assert_eq!(calls("large", "n=5000", &[]), [2, 2, 1 + 5 + 2, 1 + 5, 1]);
    assert_eq!(calls("small", "n=50", &[]), [0, 0, 1 + 3, 1, 1]);
    // A driver that refuses is asked once for each.
    assert_eq!(calls("refused", "n=5000", &[("INFC_FAKE_CUDA_REGISTERS", "0")]), [2, 0, 1 + 5 + 2, 1 + 5, 1]);
}

#[test]
fn memory_of_callers_and_of_the_session_give_the_same() {
    if again_with_driver("memory_of_callers_and_of_the_session_give_the_same") {
        return;
    }
    // The state is large: what was an output is the next run's input.
    let m = model(
        17,
        graph(
            &["x f32[n]", "s f32[n]"],
            vec![node("y = Add(x, s)", []), node("z = Neg(x)", [])],
            &["y f32[n]", "z f32[n]"],
            vec![],
        ),
    );
    let options = Options { states: vec![("y".into(), "s".into())], ..options() };
    let made = compile::compile(import(&m).expect("a good model"), &options).expect("compiles");
    let model = Model::from_bytes(&made.artifact.to_bytes()).expect("loads");
    let mut session = Session::new(model, infc_runtime::Options::default()).expect("a session");
    let floats = |n: usize, factor: usize| -> Vec<f32> { (0..n).map(|i| (i % 97 * factor) as f32).collect() };
    let bytes = |v: &[f32]| -> Vec<u8> { v.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let mut sum = vec![];
    for (round, n) in [40000, 40000, 40000, 100, 100, 40000, 50000, 50000].into_iter().enumerate() {
        let dims = [n as i64];
        if sum.len() != n {
            session.reset();
            sum = vec![0f32; n];
        }
        let x = floats(n, round + 1);
        let raw = bytes(&x);
        sum.iter_mut().zip(&x).for_each(|(s, x)| *s += x);
        let negative: Vec<f32> = x.iter().map(|x| -x).collect();
        let value = TensorRef { dtype: infc_runtime::DType(1), dims: &dims, bytes: &raw };
        let mut given = vec![0f32; n];
        match round % 3 {
            0 => {
                session.set_input("x", value).expect("fits");
                session.run().expect("runs");
            }
            1 => session.run_with(&[(0, value)], &mut []).expect("runs"),
            _ => {
                let (_, memory, _) = unsafe { given.align_to_mut::<u8>() };
                session.run_with(&[(0, value)], &mut [(1, memory)]).expect("runs");
                assert!(given == negative, "round {round}");
            }
        }
        assert!(session.output("y").expect("an output").bytes == bytes(&sum), "round {round}");
        assert!(round % 3 == 2 || session.output("z").expect("an output").bytes == bytes(&negative), "round {round}");
    }
}
