//! `--math bf16` (and what the command line says of `--math f16`) on CPUs, end to end: what is rounded, what stays, what is told.

#![cfg(feature = "llvm")]

mod tool;

use infc::engine::{Backend, prepare};
use infc::{Options, compile, target};
use infc_ir::interp::Item;
use infc_ir::{DType, Graph, Tensor};
use infc_kernel::loops::{Access, Buffer, Space};
use infc_kernel::plan::Plan;
use infc_kernel::target::Math;
use tool::kit::*;
use tool::*;

const MACHINE: &str = "x86-64-v4-bf16";

fn options() -> Options {
    options_for(MACHINE)
}

fn options_for(machine: &str) -> Options {
    let mut machine = target::find(machine).expect("a known machine");
    machine.math = Math::Bf16;
    Options::for_target(machine)
}

/// The engines that can run the machine's code here: always the loop interpreter.
fn engines() -> Vec<Backend> {
    let here = infc_cpu_llvm::supported(&options().target);
    [Backend::Loops].into_iter().chain(here.then_some(Backend::Llvm)).collect()
}

/// Numbers from -1 to 1 that look random.
fn numbers(dims: &[usize], seed: u32) -> Tensor {
    let n: usize = dims.iter().product();
    let value = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    Tensor::from_vec(dims, (0..n).map(value).collect::<Vec<f32>>())
}

fn run(graph: &Graph, backend: Backend, inputs: &[Tensor]) -> Tensor {
    let items: Vec<Item> = inputs.iter().cloned().map(Item::Tensor).collect();
    let mut engine = prepare(graph.clone(), backend, &options()).unwrap_or_else(|e| panic!("{e}"));
    let outputs = engine.run(&items).unwrap_or_else(|e| panic!("{} {e}", backend.name()));
    outputs[0].as_tensor().expect("a tensor").clone()
}

/// Signal to noise in dB.
fn sqnr(want: &Tensor, got: &Tensor) -> f64 {
    let power = |f: &dyn Fn(usize) -> f64| (0..want.len()).map(|i| f(i).powi(2)).sum::<f64>();
    10.0 * (power(&|i| want.float(i)) / power(&|i| want.float(i) - got.float(i))).log10()
}

/// All engines give the same bits, which keep as much of the signal as products in bf16 do.
fn agree(graph: &Graph, x: &[Tensor]) {
    let want = run(graph, Backend::Interp, x);
    let got: Vec<Tensor> = engines().into_iter().map(|b| run(graph, b, x)).collect();
    got.iter().for_each(|g| assert_eq!(g.bytes(), got[0].bytes(), "links differ"));
    let sqnr = sqnr(&want, &got[0]);
    assert!((35.0..80.0).contains(&sqnr), "SQNR {sqnr} dB");
}

/// Convolutions of three kinds, a residual, and a product with an odd depth.
fn network() -> Graph {
    let weights = [
        ("w1", vec![8, 3, 3, 3]),
        ("w2", vec![8, 8, 1, 1]),
        ("w3", vec![8, 1, 3, 3]),
        ("w4", vec![7, 8, 2, 2]),
        ("w5", vec![7, 10]),
    ];
    let weights = weights.iter().enumerate().map(|(k, (name, dims))| constant(name, &numbers(dims, k as u32 * 77))).collect();
    let nodes = vec![
        node("a = Conv(x, w1)", [ints("pads", &[1, 1, 1, 1]), ints("strides", &[2, 2])]),
        node("b = Relu(a)", []),
        node("c = Conv(b, w2)", []),
        node("d = Add(c, b)", []),
        node("e = Conv(d, w3)", [ints("pads", &[1, 1, 1, 1]), int("group", 8)]),
        node("f = Conv(e, w4)", [ints("strides", &[2, 2])]),
        node("g = GlobalAveragePool(f)", []),
        node("h = Flatten(g)", []),
        node("y = MatMul(h, w5)", []),
    ];
    import(&model(17, graph(&["x f32[2, 3, 9, 9]"], nodes, &["y f32[2, 10]"], weights))).expect("a good model")
}

/// The rows of all contractions in register tiles.
fn rows(graph: &Graph) -> Vec<&'static str> {
    let lowered = compile::lower(graph.clone(), &options()).expect("lowers");
    let row = |p: &Option<Plan>| match p {
        Some(Plan::Brgemm(p)) => Some(p.row),
        _ => None,
    };
    lowered.plans.iter().filter_map(row).collect()
}

#[test]
fn a_network_is_rounded_where_it_should_be() {
    let graph = network();
    let lowered = compile::lower(graph.clone(), &options()).expect("lowers");
    assert_eq!(rows(&graph), ["bf16_dot"; 4], "{:#?}", lowered.plans);
    let plain = compile::lower(graph.clone(), &Options::for_target(target::find(MACHINE).expect("known"))).expect("lowers");
    assert!(plain.plans.iter().flatten().all(|p| !p.to_string().contains("bf16")));
    assert!(lowered.constants.len() < plain.constants.len(), "{} {}", lowered.constants.len(), plain.constants.len());

    let x = [numbers(&[2, 3, 9, 9], 5)];
    agree(&graph, &x);
}

/// What a depthwise convolution reads, and the earlier one of two that are added up, are stored in 16 bits too: only the result is f32.
#[test]
fn between_convolutions_all_is_stored_rounded() {
    let weights = [
        ("w1", vec![16, 8, 1, 1]),
        ("w2", vec![16, 1, 3, 3]),
        ("w3", vec![24, 16, 1, 1]),
        ("w4", vec![24, 8, 1, 1]),
        ("w5", vec![8, 24, 1, 1]),
    ];
    let mut all: Vec<_> =
        weights.iter().enumerate().map(|(k, (name, dims))| constant(name, &numbers(dims, k as u32 * 91))).collect();
    all.extend([("low", 0.0f32), ("high", 0.75)].map(|(name, v)| constant(name, &Tensor::from_vec([], vec![v]))));
    let nodes = vec![
        node("a = Conv(x, w1)", []),
        node("b = Clip(a, low, high)", []),
        node("c = Conv(b, w2)", [ints("pads", &[1, 1, 1, 1]), int("group", 16)]),
        node("d = Conv(c, w3)", []),
        node("e = Conv(x, w4)", []),
        node("f = Add(d, e)", []),
        node("g = Relu(f)", []),
        node("y = Conv(g, w5)", []),
    ];
    let m = model(17, graph(&["x f32[1, 8, 10, 12]"], nodes, &["y f32[1, 8, 10, 12]"], all));
    let graph = import(&m).expect("a good model");
    let stored = |options: &Options| {
        let lowered = compile::lower(graph.clone(), options).expect("lowers");
        let written = |b: &&Buffer| b.space == Space::Global && b.access != Access::Read && b.dtype == DType::F32;
        lowered.kernels.iter().flat_map(|k| &k.buffers).filter(written).count()
    };
    assert_eq!(stored(&options()), 1);
    assert!(stored(&Options::for_target(target::find(MACHINE).expect("known"))) > 1);
    let x = [numbers(&[1, 8, 10, 12], 8)];
    agree(&graph, &x);
}

/// Parts of a concatenation that only a convolution reads are stored rounded; where others see it too, it is there in f32.
#[test]
fn parts_are_stored_rounded() {
    let shapes = [("w1", vec![16, 8, 3, 3]), ("w2", vec![24, 8, 1, 1]), ("w3", vec![8, 40, 3, 3])];
    let weights = || shapes.iter().enumerate().map(|(k, (name, dims))| constant(name, &numbers(dims, k as u32 * 91))).collect();
    let nodes = vec![
        node("a = Conv(x, w1)", [ints("pads", &[1, 1, 1, 1])]),
        node("b = Relu(a)", []),
        node("c = Conv(x, w2)", []),
        node("d = Concat(b, c)", [int("axis", 1)]),
        node("y = Conv(d, w3)", [ints("pads", &[1, 1, 1, 1])]),
    ];
    let build = |nodes: Vec<_>, outputs: &[&str]| {
        import(&model(17, graph(&["x f32[1, 8, 10, 12]"], nodes, outputs, weights()))).expect("a good model")
    };
    let alone = build(nodes.clone(), &["y f32[1, 8, 10, 12]"]);
    let seen = build(nodes, &["y f32[1, 8, 10, 12]", "d f32[1, 40, 10, 12]"]);
    let whole = |graph: &Graph| {
        let lowered = compile::lower(graph.clone(), &options()).expect("lowers");
        let written = |b: &&Buffer| b.space == Space::Global && b.access != Access::Read && b.dtype == DType::F32;
        let elements = |b: &Buffer| b.span().known().unwrap_or(0);
        lowered.kernels.iter().flat_map(|k| &k.buffers).filter(written).map(elements).max().unwrap_or(0)
    };
    assert_eq!(whole(&alone), 8 * 10 * 12, "only the result is stored in f32");
    assert!(whole(&seen) > 16 * 10 * 12, "an output is f32");
    for graph in [alone, seen] {
        let x = [numbers(&[1, 8, 10, 12], 8)];
        agree(&graph, &x);
    }
}

#[test]
fn layouts_that_others_see_do_not_matter() {
    // The result of a convolution is an output with its channels apart; small integers give exact sums.
    let small = |dims: &[usize], seed| {
        let values = numbers(dims, seed).to_vec::<f32>();
        Tensor::from_vec(dims, values.iter().map(|v| (v * 8.0).round()).collect::<Vec<f32>>())
    };
    let w = constant("w", &small(&[6, 5, 3, 3], 9));
    let nodes = vec![node("y = Conv(x, w)", [ints("pads", &[1, 1, 1, 1])])];
    let g = import(&model(17, graph(&["x f32[n, 5, 7, 20]"], nodes, &["y f32[n, 6, 7, 20]"], vec![w]))).expect("a good model");
    assert_eq!(rows(&g), ["bf16_dot"]);
    let x = [small(&[2, 5, 7, 20], 3)];
    let want = run(&g, Backend::Interp, &x).to_vec::<f32>();
    engines().into_iter().for_each(|b| assert_eq!(run(&g, b, &x).to_vec::<f32>(), want, "{}", b.name()));
}

/// Tiles of a 7 x 7 map that leaves out every second pixel take its rows side by side; those of a map that does not, where they lie. Small integers give exact sums.
#[test]
fn strided_rows_lie_side_by_side_for_tiles() {
    let small = |dims: &[usize], seed| {
        let values = numbers(dims, seed).to_vec::<f32>();
        Tensor::from_vec(dims, values.iter().map(|v| (v * 4.0).round()).collect::<Vec<f32>>())
    };
    let options = options_for("x86-64-v4-amx");
    let here = infc_cpu_llvm::supported(&options.target);
    for (stride, kernel, copied) in [(2, 3, true), (2, 1, true), (1, 3, false)] {
        let (pad, size) = (kernel / 2, 7 * stride);
        let w = constant("w", &small(&[512, 32, kernel, kernel], 9));
        let attributes = [ints("pads", &[pad as i64; 4]), ints("strides", &[stride as i64; 2])];
        let shape = format!("x f32[2, 32, {size}, {size}]");
        // Two, so that what the second one reads is inside the model.
        let first = constant("v", &small(&[32, 32, 1, 1], 5));
        let nodes = vec![node("a = Conv(x, v)", []), node("y = Conv(a, w)", attributes)];
        let g = import(&model(17, graph(&[&shape], nodes, &["y f32[2, 512, 7, 7]"], vec![first, w]))).expect("a good model");
        let lowered = compile::lower(g.clone(), &options).expect("lowers");
        assert_eq!(lowered.kernels.iter().any(|k| k.name.starts_with("rows")), copied, "{kernel} x {kernel}, stride {stride}");
        let x = [small(&[2, 32, size, size], 3)];
        let want = run(&g, Backend::Interp, &x).to_vec::<f32>();
        for backend in [Backend::Loops].into_iter().chain(here.then_some(Backend::Llvm)) {
            let mut engine = prepare(g.clone(), backend, &options).unwrap_or_else(|e| panic!("{e}"));
            let outputs = engine.run(&[Item::Tensor(x[0].clone())]).unwrap_or_else(|e| panic!("{} {e}", backend.name()));
            assert_eq!(outputs[0].as_tensor().expect("a tensor").to_vec::<f32>(), want, "{}", backend.name());
        }
    }
}

/// A residual that is too large for L2 is fetched while sums are made, a smaller one is not.
#[test]
fn large_residuals_are_fetched_ahead() {
    let options = options_for("x86-64-v4-amx");
    for (size, ahead) in [(56, true), (14, false)] {
        let shape = |channels: usize| format!("f32[1, {channels}, {size}, {size}]");
        let weights =
            [("u", vec![256, 64, 1, 1]), ("v", vec![64, 256, 1, 1]), ("w", vec![256, 64, 1, 1]), ("z", vec![8, 256, 1, 1])];
        let weights = weights.iter().map(|(name, dims)| constant(name, &numbers(dims, 3))).collect();
        let nodes = vec![
            node("a = Conv(x, u)", []),
            node("b = Conv(a, v)", []),
            node("c = Conv(b, w)", []),
            node("d = Add(c, a)", []),
            node("y = Conv(d, z)", []),
        ];
        let m = model(17, graph(&[&format!("x {}", shape(64))], nodes, &[&format!("y {}", shape(8))], weights));
        let lowered = compile::lower(import(&m).expect("a good model"), &options).expect("lowers");
        let sums: Vec<_> = lowered.kernels.iter().filter(|k| k.name.contains("Add")).collect();
        assert!(!sums.is_empty());
        sums.iter().for_each(|k| assert_eq!(k.to_string().contains("prefetch"), ahead, "{size}: {k}"));
    }
}

#[test]
fn nan_and_infinities_go_where_they_go_in_f32() {
    let w = constant(
        "w",
        &Tensor::from_vec([5, 3], (0..15).map(|k| if k == 4 { 1e-40 } else { k as f32 - 6.0 }).collect::<Vec<f32>>()),
    );
    let m = model(17, graph(&["x f32[n, 5]"], vec![node("y = MatMul(x, w)", [])], &["y f32[n, 3]"], vec![w]));
    let graph = import(&m).expect("a good model");
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows = [
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [nan, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, inf],
        [0.0, 0.0, -inf, 0.0, 0.0],
        [f32::MAX, 0.0, 0.0, 0.0, 0.0], // rounds to infinity
        [1e-40, -1e-40, 0.0, 0.0, 0.0], // rounds to zeros
        [257.0, 0.0, 0.0, 0.0, 0.0],    // a tie, to even: 256
        [259.0, 0.0, 0.0, 0.0, 0.0],    // a tie, to even: 260
    ];
    let x = Tensor::from_vec([rows.len(), 5], rows.concat());
    for backend in engines() {
        let y = run(&graph, backend, std::slice::from_ref(&x)).to_vec::<f32>();
        let row = |i: usize| &y[3 * i..3 * i + 3];
        let weight = |k: usize, j: usize| if 3 * k + j == 4 { 0.0 } else { (3 * k + j) as f32 - 6.0 };
        let first: Vec<f32> = (0..3).map(|j| (0..5).map(|k| (k + 1) as f32 * weight(k, j)).sum()).collect();
        assert_eq!(row(0), first, "{}", backend.name());
        assert!(row(1).iter().all(|v| v.is_nan()) && row(2) == [inf; 3], "{y:?}");
        // The weight of 0 makes a NaN of an infinity.
        assert!(row(3)[0].is_nan() && row(3)[1..] == [-inf; 2], "{y:?}");
        assert_eq!(row(4), [-inf; 3]);
        assert_eq!(row(5), [0.0; 3]);
        assert_eq!(
            (row(6), row(7)),
            (&[256.0 * -6.0, 256.0 * -5.0, 256.0 * -4.0][..], &[260.0 * -6.0, 260.0 * -5.0, 260.0 * -4.0][..])
        );
    }
}

#[test]
fn the_command_line_tells_what_it_does() {
    let dir = Folder::new();
    let folder = examples().join("digits_mlp").display().to_string();
    let (file, out) = (format!("{folder}/model.onnx"), dir.path("model.infc"));
    check(&["compile", &file, "--cpu", MACHINE, "--math", "bf16", "-o", &out], 0, &[MACHINE]);
    check(&["inspect", &out], 0, &["factors rounded to bf16"]);
    check(&["inspect", &out, "--json"], 0, &["\"math\":\"bf16\""]);
    check(
        &["verify", &folder, "--backend", "loops", "--target", MACHINE, "--math", "bf16"],
        0,
        &["1 passed", "SQNR", "bf16 needs 20"],
    );
    // Without the rounding's tolerance it is not the same.
    check(&["verify", &folder, "--backend", "loops", "--target", MACHINE, "--math", "bf16", "--strict"], 1, &["differ too much"]);
    check(&["verify", &folder, "--math", "bf16", "--backend", "interp"], 2, &["--math is for compiled code"]);
    let out16 = dir.path("f16.infc");
    check(&["compile", &file, "--cpu", "x86-64-v4-fp16", "--math", "f16", "-o", &out16], 0, &["x86-64-v4-fp16"]);
    check(&["inspect", &out16], 0, &["factors rounded to f16"]);
    if !infc_runtime::cpu::has("avx512fp16") {
        check(&["run", &out16], 3, &["this CPU lacks avx512fp16"]);
    }
    let f16 = ["verify", &folder, "--backend", "loops", "--target", "x86-64-v4-fp16", "--math", "f16"];
    check(&f16, 0, &["1 passed"]);
    for (machine, math) in [("x86-64-v4-vnni", "bf16"), ("c99", "bf16"), (MACHINE, "f16")] {
        check(
            &["compile", &file, "--target", machine, "--math", math, "-o", &dir.path("no.infc")],
            2,
            &[machine, "takes no products in that way", "nvidia-sm80"],
        );
    }
    check(&["compile", &file, "--target", "x86-64-v3", "--math", "bf16"], 2, &["x86-64-v4-bf16"]);
    check(&["compile", &file, "--target", "x86-64-v3", "--math", "f16"], 2, &["x86-64-v4-fp16", "x86-64-v4-amx-fp16"]);
    // A machine file is held to the same.
    let text = include_str!("../../../targets/cpu-llvm/machines/x86-64-v4.toml").to_owned() + "math = \"bf16\"\n";
    check(
        &["compile", &file, "--target", &dir.write("own.toml", text), "-o", &dir.path("no.infc")],
        3,
        &["takes no products in that way: bf16"],
    );
    assert_eq!(dir.files(), ["f16.infc", "model.infc", "own.toml"]);
}
