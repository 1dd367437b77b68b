//! Plans of products that small models do not get, end to end: minimal filtering (`--math winograd`) and blocks along k.

mod tool;

use infc::engine::{Backend, prepare};
use infc::{Options, compile};
use infc_ir::interp::Item;
use infc_ir::{Graph, Tensor};
use infc_kernel::plan::Plan;
use infc_kernel::target::Math;
use tool::kit::*;
use tool::{Folder, check};

/// Numbers from -1 to 1 that look random.
fn numbers(dims: &[usize], seed: u32) -> Tensor {
    let n: usize = dims.iter().product();
    let value = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    Tensor::from_vec(dims, (0..n).map(value).collect::<Vec<f32>>())
}

fn options(math: Math) -> Options {
    let mut options = Options::native().expect("a known machine");
    options.target.math = math;
    options
}

fn run(graph: &Graph, backend: Backend, options: &Options, x: &Tensor) -> Tensor {
    let mut engine = prepare(graph.clone(), backend, options).unwrap_or_else(|e| panic!("{} {e}", backend.name()));
    let outputs = engine.run(&[Item::Tensor(x.clone())]).unwrap_or_else(|e| panic!("{} {e}", backend.name()));
    outputs[0].as_tensor().expect("a tensor").clone()
}

/// What makes code here, and the loop interpreter.
fn engines() -> impl Iterator<Item = Backend> {
    Backend::ALL.iter().copied().filter(|b| !matches!(b, Backend::Interp | Backend::Passes | Backend::Plugin))
}

/// The plans of a model.
fn plans(graph: &Graph, options: &Options) -> Vec<Plan> {
    compile::lower(graph.clone(), options).expect("lowers").plans.into_iter().flatten().collect()
}

/// Along two axes and along one, with what comes behind; sizes of pictures are known or told by a run alone.
fn network(shape: &str, result: &str) -> Graph {
    let weights = [("w1", vec![32, 32, 3, 3]), ("w2", vec![48, 32, 3, 3]), ("w3", vec![32, 48, 1, 3])];
    let mut all: Vec<_> =
        weights.iter().enumerate().map(|(k, (name, dims))| constant(name, &numbers(dims, k as u32 * 77))).collect();
    all.push(constant("b", &numbers(&[32], 9)));
    let nodes = vec![
        node("a = Conv(x, w1, b)", [ints("pads", &[1, 1, 1, 1])]),
        node("c = Relu(a)", []),
        node("d = Add(c, x)", []),
        node("f = Conv(d, w2)", []),
        node("g = Sigmoid(f)", []),
        node("y = Conv(g, w3)", [ints("pads", &[0, 1, 0, 1])]),
    ];
    import(&model(17, graph(&[shape], nodes, &[result], all))).expect("a good model")
}

fn windows(plans: &[Plan]) -> usize {
    plans.iter().filter(|p| matches!(p, Plan::Winograd(_))).count()
}

/// Two layers and what is made of them: the noise of sums in f32 grows at most eight times (`docs/numerics.md` has what it is for one).
#[test]
fn minimal_filtering_is_as_good_as_plain_sums() {
    let filtered = options(Math::Winograd);
    for (shape, result, sizes) in [
        ("x f32[2, 32, 19, 30]", "y f32[2, 32, 17, 28]", vec![[2, 19, 30]]),
        ("x f32[n, 32, h, w]", "y f32[n, 32, i, j]", vec![[1, 16, 16], [2, 7, 33], [1, 3, 3]]),
    ] {
        let graph = network(shape, result);
        assert_eq!(windows(&plans(&graph, &filtered)), 3, "{shape}");
        assert_eq!(windows(&plans(&graph, &options(Math::F32))), 0, "{shape}");
        for [n, h, w] in sizes {
            let x = numbers(&[n, 32, h, w], 5);
            let want = run(&graph, Backend::Interp, &filtered, &x);
            let noise = |t: &Tensor| (0..want.len()).map(|i| (t.float(i) - want.float(i)).powi(2)).sum::<f64>().sqrt();
            for backend in engines() {
                let (plain, got) = (run(&graph, backend, &options(Math::F32), &x), run(&graph, backend, &filtered, &x));
                assert_eq!(got.dims, want.dims, "{}", backend.name());
                let [before, now] = [&plain, &got].map(noise);
                assert!(
                    before > 0.0 && now < 8.0 * before,
                    "{} of {n} x {h} x {w}: noise {now}, {before} before",
                    backend.name()
                );
            }
        }
    }
}

/// A number that is none spoils the results of its tiles, and those of no others.
#[test]
fn infinities_stay_near() {
    let w = constant("w", &numbers(&[32, 32, 3, 3], 3));
    let nodes = vec![node("y = Conv(x, w)", [ints("pads", &[1, 1, 1, 1])])];
    let graph =
        import(&model(17, graph(&["x f32[1, 32, 24, 24]"], nodes, &["y f32[1, 32, 24, 24]"], vec![w]))).expect("a good model");
    let filtered = options(Math::Winograd);
    assert_eq!(windows(&plans(&graph, &filtered)), 1);
    let mut values = numbers(&[1, 32, 24, 24], 8).to_vec::<f32>();
    values[5 * 576 + 9 * 24 + 13] = f32::INFINITY;
    let x = Tensor::from_vec([1, 32, 24, 24], values);
    let want = run(&graph, Backend::Interp, &filtered, &x);
    for backend in engines() {
        let got = run(&graph, backend, &filtered, &x);
        for i in 0..want.len() {
            let (y, z) = (i / 24 % 24, i % 24);
            let near = y.abs_diff(9) <= 4 && z.abs_diff(13) <= 4;
            let good = (got.float(i) - want.float(i)).abs() < 1e-4;
            assert!(good || near, "{} at {y}, {z}: {}, not {}", backend.name(), got.float(i), want.float(i));
            assert!(
                want.float(i).is_finite() || !got.float(i).is_finite(),
                "{} at {y}, {z}: an infinity is lost",
                backend.name()
            );
        }
    }
}

/// An artifact says that it has them; a GPU is refused, and leaves nothing behind.
#[test]
fn the_command_line_tells_of_minimal_filtering() {
    let dir = Folder::new();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/models/glyphs_cnn/model.onnx");
    let out = dir.path("a.infc");
    check(&["compile", file, "--math", "winograd", "-o", &out], 0, &["a.infc"]);
    check(&["inspect", &out], 0, &["convolutions with windows of 3 by minimal filtering"]);
    check(&["verify", file, "--math", "winograd"], 0, &["1 passed"]);
    check(&["compile", file, "--math", "wino", "-o", &dir.path("no.infc")], 2, &["f32, tf32, bf16, f16, winograd"]);
    #[cfg(feature = "ptx")]
    check(
        &["compile", file, "--target", "nvidia-sm80", "--math", "winograd", "-o", &dir.path("no.infc")],
        2,
        &["'nvidia-sm80' takes no products in that way", "x86-64-v2"],
    );
    assert_eq!(dir.files(), ["a.infc"]);
}

/// Sums so long that panels leave no room in L2 are made in blocks along k, in the order in which they are.
#[test]
fn long_sums_are_made_in_blocks() {
    let plain = options(Math::F32);
    // Panels of one vector take more than two fifths of L2.
    let lanes = plain.target.lanes(4) as u64;
    let k = (plain.target.l2_bytes / 4 / lanes).next_multiple_of(64) as usize;
    let small = |dims: &[usize], seed| {
        let values = numbers(dims, seed).to_vec::<f32>();
        Tensor::from_vec(dims, values.iter().map(|v| (v * 4.0).round()).collect::<Vec<f32>>())
    };
    let columns = 2 * lanes as usize + 3;
    let w = constant("w", &small(&[k, columns], 3));
    let (shape, result) = (format!("x f32[60, {k}]"), format!("y f32[60, {columns}]"));
    let graph =
        import(&model(17, graph(&[&shape], vec![node("y = MatMul(x, w)", [])], &[&result], vec![w]))).expect("a good model");
    let blocks = |p: &Plan| matches!(p, Plan::Brgemm(p) if p.kc.is_some());
    assert!(plans(&graph, &plain).iter().any(blocks), "{:?}", plans(&graph, &plain));
    let x = small(&[60, k], 7);
    let want = run(&graph, Backend::Interp, &plain, &x).to_vec::<f32>();
    for backend in engines() {
        assert_eq!(run(&graph, backend, &plain, &x).to_vec::<f32>(), want, "{}", backend.name());
    }
}
