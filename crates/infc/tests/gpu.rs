//! Models for NVIDIA GPUs in the runtime, whose driver is the fake one over the PTX interpreter: the runtime's own code, without a GPU.

#![cfg(feature = "ptx")]

mod tool;

use infc_ir::Tensor;
use tool::fake::infc;
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
    assert!(code == 2 && text.contains("has no instructions for such products"), "{text}");
    let (code, text) = infc(&["compile", &model, "--target", "nvidia", "--math", "f8"], &[]);
    assert!(code == 2 && text.contains("f32, tf32, bf16, f16"), "{text}");
    let (code, text) = infc(&["verify", &model, "--backend", "ptx", "--target", "c99"], &[]);
    assert!(code == 2 && text.contains("ptx backend"), "{text}");
    let (code, text) = infc(&["compile", &model, "--emit", "obj", "--dim", "batch=1", "--target", "nvidia-sm80"], &[]);
    assert!(code != 0 && text.contains("no object files"), "{text}");
    let (code, text) = infc(&["verify", &model, "--backend", "ptx", "--target", "nvidia"], &[]);
    assert!(code != 0 && text.contains("name one of them: nvidia-sm90a, nvidia-sm80"), "{text}");
}

#[test]
fn products_of_warpgroups_get_the_shared_memory_that_they_ask_for() {
    // The first product has a constant, which lies in tiles; the second one has not.
    let weights = Tensor::from_vec([64, 136], (0..64 * 136).map(|k| (k * 37 % 23) as f32 / 16.0 - 0.6).collect());
    let nodes =
        vec![node("h = MatMul(x, w)", []), node("r = Relu(h)", []), node("t = Transpose(r)", []), node("y = MatMul(t, r)", [])];
    let m = model(17, graph(&["x f32[130, 64]"], nodes, &["y f32[136, 136]"], vec![constant("w", &weights)]));
    let dir = Folder::new();
    let (path, log) = (dir.model(&m), dir.path("log"));
    for math in ["bf16", "f16", "tf32"] {
        let hopper = [("INFC_FAKE_CUDA_CAPABILITY", "9.0"), ("INFC_FAKE_CUDA_LOG", log.as_str())];
        let args = ["verify", path.as_str(), "--math", math];
        for backend in ["gpu", "ptx"] {
            let (code, text) = infc(&[&args[..], &["--backend", backend, "--target", "nvidia-sm90a"]].concat(), &hopper);
            assert!(code == 0 && text.contains("1 passed"), "{math} {backend}: {text}");
        }
        let (code, text) = infc(&["compile", &path, "--emit", "ptx", "--target", "nvidia-sm90a", "--math", math], &[]);
        assert!(code == 0 && text.contains("wgmma.mma_async") && text.contains(" shared "), "{math}: {text}");
        assert_eq!(text.contains("cp.async.bulk"), math != "tf32", "{math}: {text}");
    }
    let log = std::fs::read_to_string(log).expect("the log");
    assert!(log.lines().any(|l| l == "function_attribute"), "{log}");
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
    let path = dir.model(&m);
    for math in ["bf16", "f16", "f32"] {
        let log = dir.path(&format!("log of {math}"));
        let hopper = [("INFC_FAKE_CUDA_CAPABILITY", "9.0"), ("INFC_FAKE_CUDA_LOG", log.as_str())];
        let args = ["verify", path.as_str(), "--math", math, "--backend", "gpu", "--target", "nvidia-sm90a"];
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
    let (path, log) = (dir.model(&m), dir.path("log"));
    let hopper = [("INFC_FAKE_CUDA_CAPABILITY", "9.0"), ("INFC_FAKE_CUDA_LOG", log.as_str())];
    for backend in ["gpu", "ptx"] {
        let (code, text) = infc(&["verify", &path, "--backend", backend, "--target", "nvidia-sm90a"], &hopper);
        assert!(code == 0 && text.contains("1 passed"), "{backend}: {text}");
    }
    let (code, text) = infc(&["compile", &path, "--emit", "ptx", "--target", "nvidia-sm90a"], &[]);
    assert!(code == 0 && text.matches(" map ").count() == 2, "{text}");
    let log = std::fs::read_to_string(log).expect("the log");
    assert!(log.lines().filter(|l| *l == "tensor_map").count() >= 2, "{log}");
}
