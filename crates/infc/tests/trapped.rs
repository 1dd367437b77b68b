//! Whole models for machines whose instructions this computer may lack: they are executed when they trap.
#![cfg(all(feature = "llvm", target_arch = "x86_64", target_os = "linux"))]

mod tool;

use infc::engine::{Backend, Engine, Native, prepare, symbols_of};
use infc::verify::{self, Verdict};
use infc::{Options, cases, compile, target};
use infc_artifact::container::{Artifact, Kind, Reader, Variant};
use infc_ir::interp::Item;
use infc_ir::{DType, Graph, Tensor};
use infc_kernel::target::{Math, TargetDesc};
use infc_runtime::Model;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tool::kit::*;

/// The artifact without the requirements that traps stand in for, loaded. Everything else is what would be shipped.
fn loaded(artifact: &[u8]) -> Arc<Model> {
    let reader = Reader::open(artifact).expect("an artifact just made");
    let section = |kind: Kind, variant: u32| reader.bytes(reader.section(kind, variant).expect("complete"));
    let variants: Vec<Variant> = reader
        .requirements()
        .iter()
        .zip(0..)
        .map(|(r, v)| {
            let mut requirements = r.clone();
            requirements.features.retain(|f| !infc_trapvm::covers(f));
            Variant {
                requirements,
                program: section(Kind::Program, v).to_vec(),
                code: section(Kind::Code, v).to_vec(),
                host_code: vec![],
            }
        })
        .collect();
    let whole = Artifact {
        manifest: section(Kind::Manifest, 0),
        variants: &variants,
        constants: &[section(Kind::Constants, 0)],
        debug: &[],
    };
    Model::from_bytes(&whole.to_bytes()).unwrap_or_else(|e| panic!("{e}"))
}

/// The machine, if all that it needs is here or trapped.
fn machine(name: &str, math: Math) -> Option<TargetDesc> {
    infc_trapvm::install();
    let machine = TargetDesc { math, ..target::find(name).expect("a machine") };
    let here = machine.features.iter().all(|f| infc_trapvm::covers(f) || infc_runtime::cpu::has(f));
    here.then_some(machine)
}

/// Models in folders of their own, with stored outputs: those of the examples, and small real ones where there are any.
fn folders(real: &[&str]) -> Vec<PathBuf> {
    let examples = EXAMPLES.map(|m| tool::examples().join(m));
    let real = real.iter().map(|m| beside().join(m)).filter(|f| f.is_dir());
    examples.into_iter().chain(real).collect()
}

const EXAMPLES: [&str; 4] = ["digits_mlp", "glyphs_cnn", "language_gru", "snippets_transformer"];

/// The folder of real models beside the repository, which need not be there.
fn beside() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models")
}

/// Every model, with symbols for its dims and with those of its first data set, against stored outputs; text of the plans of each.
fn verified(machine: &TargetDesc, folders: &[PathBuf]) -> Vec<(String, String)> {
    let mut plans = vec![];
    for folder in folders {
        let case = cases::find(folder).expect("a model").remove(0);
        let graph = infc_onnx::import(&case.model).expect("a good model");
        let inputs = case.sets[0].read_inputs(&graph).expect("inputs");
        let dims: Vec<(String, i64)> = symbols_of(&graph, &inputs).into_iter().map(|(s, n)| (s.to_owned(), n)).collect();
        // Real models take long where every instruction traps: once is enough.
        let example = folder.parent().is_some_and(|p| p.ends_with("examples/models"));
        for dims in [vec![], dims].into_iter().skip(usize::from(!example)) {
            let options = Options { dims: dims.clone(), ..Options::for_target(machine.clone()) };
            let compiled = compile::compile(graph.clone(), &options).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let text: Vec<String> = compiled.lowered.plans.iter().flatten().map(|p| p.to_string()).collect();
            plans.push((case.name.clone(), text.join("\n")));
            let options = verify::Options {
                backend: Backend::Llvm,
                rtol: None,
                atol: None,
                strict: false,
                fixed: false,
                bisect: false,
                max_mflop: None,
                jobs: 1,
                dims: BTreeMap::new(),
                artifact: Some(loaded(&compiled.artifact.to_bytes())),
                compile: options,
            };
            // With its own dims only the sets that have them.
            let mut case = case.clone();
            case.sets.retain(|s| {
                dims.is_empty() || s.read_inputs(&graph).is_ok_and(|i| symbols_of(&graph, &i) == symbols_of(&graph, &inputs))
            });
            let report = verify::one(&case, &options);
            assert!(
                report.verdict == Verdict::Passed && report.sets > 0,
                "{} for {}, {dims:?}: {report:?}",
                case.name,
                machine.name
            );
        }
    }
    plans
}

#[test]
fn models_of_bytes_without_avx512() {
    let Some(machine) = machine("x86-64-v3-vnni", Math::F32) else { return };
    let plans = verified(&machine, &folders(&["mnist_cntk", "ultraface_slim_qdq_u8s8"]));
    let takes = |name: &str| plans.iter().any(|(n, p)| n == name && p.contains("byte_dot"));
    assert!(plans.iter().all(|(n, _)| n != "ultraface_slim_qdq_u8s8") || takes("ultraface_slim_qdq_u8s8"));
}

/// Are there plans in tiles by that row for the model, if it is there?
fn in_tiles(plans: &[(String, String)], name: &str, row: &str) -> bool {
    let of: Vec<&String> = plans.iter().filter(|(n, _)| n == name).map(|(_, p)| p).collect();
    of.is_empty() || of.iter().any(|p| p.contains(&format!("row={row}")))
}

#[test]
fn models_in_tiles_of_bf16() {
    let Some(machine) = machine("amx", Math::Bf16) else { return };
    let plans = verified(&machine, &folders(&["mnist_cntk", "mnist_burn"]));
    for name in ["digits_mlp", "glyphs_cnn", "snippets_transformer", "mnist_burn"] {
        assert!(in_tiles(&plans, name, "amx_bf16"), "{name}: {plans:#?}");
    }
}

#[test]
fn models_in_tiles_of_f16() {
    let Some(machine) = machine("x86-64-v4-amx-fp16", Math::F16) else { return };
    let plans = verified(&machine, &folders(&["mnist_cntk", "mnist_burn"]));
    for name in ["digits_mlp", "glyphs_cnn", "snippets_transformer", "mnist_burn"] {
        assert!(in_tiles(&plans, name, "amx_f16"), "{name}: {plans:#?}");
    }
}

#[test]
fn models_in_blocks_of_f16() {
    let Some(machine) = machine("x86-64-v4-fp16", Math::F16) else { return };
    let plans = verified(&machine, &folders(&["mnist_cntk", "mnist_burn"]));
    for name in ["digits_mlp", "glyphs_cnn", "snippets_transformer", "mnist_burn"] {
        assert!(in_tiles(&plans, name, "f16_blocks"), "{name}: {plans:#?}");
    }
}

/// Numbers from -1 to 1 that look random.
fn numbers(dims: &[usize], seed: u32, dtype: DType) -> Tensor {
    let n: usize = dims.iter().product();
    let value = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let values: Vec<f32> = (0..n).map(value).collect();
    match dtype {
        DType::F16 => Tensor::from_vec(dims, values.into_iter().map(half::f16::from_f32).collect::<Vec<_>>()),
        _ => Tensor::from_vec(dims, values),
    }
}

/// Convolutions with a border, a residual, products and steps between them, in f16 or f32.
fn network(dtype: DType) -> Graph {
    let of = |name: &str, dims: &[usize], seed: u32| constant(name, &numbers(dims, seed, dtype));
    let weights = vec![
        of("w1", &[32, 3, 3, 3], 1),
        of("w2", &[32, 32, 1, 1], 2),
        of("w3", &[40, 32, 3, 3], 3),
        of("w4", &[40, 48], 4),
        of("bias", &[48], 5),
        of("scale", &[48], 6),
    ];
    let nodes = vec![
        node("a = Conv(x, w1)", [ints("pads", &[1, 1, 1, 1]), ints("strides", &[2, 2])]),
        node("b = Relu(a)", []),
        node("c = Conv(b, w2)", []),
        node("d = Add(c, b)", []),
        node("e = Conv(d, w3)", [ints("pads", &[1, 1, 1, 1])]),
        node("f = GlobalAveragePool(e)", []),
        node("g = Flatten(f)", []),
        node("h = MatMul(g, w4)", []),
        node("i = Add(h, bias)", []),
        node("j = LayerNormalization(i, scale)", []),
        node("k = Sigmoid(j)", []),
        node("l = Mul(k, j)", []),
        node("y = Softmax(l)", []),
    ];
    let [x, y] = ["x", "y"].map(|v| format!("{v} {dtype}[n, {}]", if v == "x" { "3, 19, 19" } else { "48" }));
    import(&model(17, graph(&[&x], nodes, &[&y], weights))).expect("a good model")
}

/// What machine code, with traps, and the loop interpreter make of an input: the same bits. The plans as text, too.
fn both(graph: &Graph, machine: &TargetDesc, x: Tensor) -> (Tensor, String) {
    let options = Options::for_target(machine.clone());
    let compiled = compile::compile(graph.clone(), &options).unwrap_or_else(|e| panic!("{e}"));
    let plans: Vec<String> = compiled.lowered.plans.iter().flatten().map(|p| p.to_string()).collect();
    let x = [Item::Tensor(x)];
    let mut native =
        Native::new(loaded(&compiled.artifact.to_bytes()), infc_runtime::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let got = native.run(&x).unwrap_or_else(|e| panic!("{e}"));
    let loops = prepare(graph.clone(), Backend::Loops, &options).and_then(|mut e| e.run(&x)).unwrap_or_else(|e| panic!("{e}"));
    let [got, loops] = [got, loops].map(|v| v[0].as_tensor().expect("a tensor").clone());
    let same = (0..got.len()).all(|i| got.float(i) == loops.float(i) || got.float(i).is_nan() && loops.float(i).is_nan());
    assert!(same, "{} differs from loops", machine.name);
    (got, plans.join("\n"))
}

/// Signal to noise in dB, of what the interpreter makes of the model.
fn sqnr(graph: &Graph, machine: &TargetDesc, x: Tensor, got: &Tensor) -> f64 {
    let options = Options::for_target(machine.clone());
    let x = [Item::Tensor(x)];
    let want = prepare(graph.clone(), Backend::Interp, &options).and_then(|mut e| e.run(&x)).unwrap_or_else(|e| panic!("{e}"));
    let want = want[0].as_tensor().expect("a tensor");
    let power = |f: &dyn Fn(usize) -> f64| (0..want.len()).map(|i| f(i).powi(2)).sum::<f64>();
    let (signal, noise) = (power(&|i| want.float(i)), power(&|i| want.float(i) - got.float(i)));
    10.0 * (signal / noise).log10()
}

/// Tensors of f16 are rounded after each operation, by arithmetic on f16 or through f32; products add up in f32, but for blocks where the mode says so.
#[test]
fn networks_of_f16_and_networks_rounded_to_it() {
    for (name, dtype, math, row, least) in [
        ("x86-64-v4-fp16", DType::F16, Math::F32, "row=fma", 50.0),
        ("x86-64-v4-fp16", DType::F16, Math::F16, "row=f16_blocks", 45.0),
        ("x86-64-v4-fp16", DType::F32, Math::F16, "row=f16_blocks", 45.0),
        ("amx", DType::F32, Math::F16, "row=f16_blocks", 45.0),
        ("x86-64-v4-amx-fp16", DType::F16, Math::F32, "row=amx_f16", 50.0),
        ("x86-64-v4-amx-fp16", DType::F32, Math::F16, "row=amx_f16", 50.0),
    ] {
        let Some(machine) = machine(name, math) else { return };
        let (graph, x) = (network(dtype), numbers(&[4, 3, 19, 19], 11, dtype));
        let (got, plans) = both(&graph, &machine, x.clone());
        assert!(plans.contains(row), "{name}: {plans}");
        let sqnr = sqnr(&graph, &machine, x, &got);
        println!("{dtype} for {name} in {}: {sqnr:.1} dB", math.name());
        assert!((least..90.0).contains(&sqnr), "{dtype} for {name}: {sqnr} dB");
    }
}

/// Numbers that f16 does not have, in data and in weights.
#[test]
fn numbers_beyond_f16() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let depth = 32;
    // Columns of any size: for blocks each is scaled by itself.
    let weight = |k: usize, j: usize| (k as f32 - 15.5) * [1.0, 1e20, 1e-20, 0.0][j];
    let w = Tensor::from_vec([depth, 4], (0..depth * 4).map(|i| weight(i / 4, i % 4)).collect::<Vec<f32>>());
    let m = model(17, graph(&["x f32[n, 32]"], vec![node("y = MatMul(x, w)", [])], &["y f32[n, 4]"], vec![constant("w", &w)]));
    let graph = import(&m).expect("a good model");
    let one = |k: usize, v: f32| (0..depth).map(|i| if i == k { v } else { 0.0 }).collect::<Vec<f32>>();
    let rows = [
        vec![1.0; depth],
        vec![65504.0; depth], // the largest: no sum of a block leaves the range
        one(3, nan),
        one(3, inf),
        one(20, 65519.0),        // rounds to the largest
        one(20, 65520.0),        // rounds to infinity
        one(20, 2f32.powi(-24)), // the least
        one(20, 2049.0),         // a tie, to even
    ];
    let x = Tensor::from_vec([rows.len(), depth], rows.concat());
    for (name, scaled) in [("x86-64-v4-fp16", true), ("x86-64-v4-amx-fp16", false)] {
        let Some(machine) = machine(name, Math::F16) else { return };
        let (y, _) = both(&graph, &machine, x.clone());
        let y = |i: usize, j: usize| y.float(4 * i + j);
        for j in 0..if scaled { 3 } else { 1 } {
            let size = [1.0, 1e20, 1e-20][j];
            // Sums of both signs leave nothing, or what rounding left of it.
            assert!(y(0, j).abs() <= 0.25 * size && y(1, j).abs() <= 65504.0 * 0.25 * size, "{name}: {} {}", y(0, j), y(1, j));
            assert!(y(2, j).is_nan() && y(3, j) == -f64::INFINITY && y(5, j) == f64::INFINITY);
            let near = |got: f64, want: f64| (got - want).abs() <= want.abs() / 256.0;
            assert!(near(y(4, j), 4.5 * 65504.0 * size) && near(y(7, j), 4.5 * 2048.0 * size), "{name}: {} {}", y(4, j), y(7, j));
        }
        // Times 4.5 the least number is a sum in f32, and nothing in a block of f16, where the weight is 4.5 / 496.
        assert_eq!(y(6, 0), if scaled { 0.0 } else { 4.5 * 2f64.powi(-24) }, "{name}");
        // A column of zeros, and infinity times zero.
        assert!([0, 1, 4, 6].iter().all(|&i| y(i, 3) == 0.0) && y(3, 3).is_nan());
    }
}

/// Sums of single numbers of the model's plans for a machine.
fn single(graph: &Graph, machine: &TargetDesc) -> usize {
    let lowered = compile::lower(graph.clone(), &Options::for_target(machine.clone())).unwrap_or_else(|e| panic!("{e}"));
    let plans = lowered.plans.iter().flatten().map(|p| p.to_string());
    plans.filter(|p| p.contains("brgemm") && p.contains("row=mul_add")).count()
}

#[test]
fn models_in_tiles_of_bytes() {
    let Some(machine) = machine("amx", Math::F32) else { return };
    let folders = folders(&["ultraface_slim_qdq_u8s8", "magika_dynamic_int8"]);
    let plans = verified(&machine, &folders);
    for name in ["ultraface_slim_qdq_u8s8", "magika_dynamic_int8"] {
        assert!(in_tiles(&plans, name, "amx_u8s8"), "{name}: {plans:#?}");
    }
    // No sum of bytes is left to instructions for single numbers because it was meant for tiles.
    let before = target::find("x86-64-v4-bf16").expect("a machine");
    for folder in &folders {
        let graph = infc_onnx::import(&folder.join("model.onnx")).expect("a good model");
        assert!(single(&graph, &machine) <= single(&graph, &before), "{}", folder.display());
    }
}

/// Signed data stays signed where tiles take it, with zero points and borders; elsewhere it becomes unsigned. The numbers are those of the interpreter.
#[test]
fn signed_bytes_in_tiles() {
    let Some(machine) = machine("amx", Math::F32) else { return };
    let bytes = |dims: &[usize], seed: u32| {
        let n = dims.iter().product::<usize>();
        let value = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 24) as i8;
        Tensor::from_vec(dims, (0..n).map(value).collect::<Vec<i8>>())
    };
    let zero = |v: i8| constant("z", &Tensor::from_vec([], vec![v]));
    let conv = |channels: usize, v: i8| {
        let w = constant("w", &bytes(&[40, channels, 3, 3], 7));
        let node = node("y = ConvInteger(x, w, z)", [ints("pads", &[1, 1, 1, 1])]);
        let x = format!("x i8[n, {channels}, 9, 21]");
        (model(10, graph(&[&x], vec![node], &["y i32[n, 40, 9, 21]"], vec![w, zero(v)])), bytes(&[2, channels, 9, 21], 3))
    };
    let product = |depth: usize, rows: usize, v: i8| {
        let w = constant("w", &bytes(&[depth, 40], 5));
        let node = node("y = MatMulInteger(x, w, z)", []);
        let x = format!("x i8[n, {depth}]");
        (model(10, graph(&[&x], vec![node], &["y i32[n, 40]"], vec![w, zero(v)])), bytes(&[rows, depth], 9))
    };
    let cases = [
        (conv(24, -3), "amx_s8s8"),
        (conv(18, -128), "amx_s8s8"), // neighbours that are no whole groups
        (product(96, 50, 11), "amx_s8s8"),
        (product(96, 5, -7), "amx_s8s8"), // fewer rows than a tile, which only the run tells
        (product(6, 50, 0), "byte_dot"),
    ];
    for (k, ((m, x), row)) in cases.into_iter().enumerate() {
        let graph = import(&m).expect("a good model");
        let options = Options::for_target(machine.clone());
        let compiled = compile::compile(graph.clone(), &options).unwrap_or_else(|e| panic!("{e}"));
        let plans: Vec<String> = compiled.lowered.plans.iter().flatten().map(|p| p.to_string()).collect();
        assert!(plans.iter().any(|p| p.ends_with(&format!("row={row}"))), "{k}: {plans:#?}");
        let x = [Item::Tensor(x)];
        let want = prepare(graph, Backend::Interp, &options).and_then(|mut e| e.run(&x)).unwrap_or_else(|e| panic!("{e}"));
        let mut native = Native::new(loaded(&compiled.artifact.to_bytes()), infc_runtime::Options::default())
            .unwrap_or_else(|e| panic!("{e}"));
        let got = native.run(&x).unwrap_or_else(|e| panic!("{e}"));
        let values = |items: &[Item]| items[0].as_tensor().expect("a tensor").to_ints();
        assert_eq!(values(&got), values(&want), "{k}");
    }
}

/// One artifact for several machines, by the short name too: its variant for tiles runs where traps stand in, and the others are still chosen where
/// nothing does.
#[test]
fn an_artifact_has_tiles_beside_other_variants() {
    let Some(_) = machine("amx", Math::F32) else { return };
    let mut all = target::find_cpus("x86-64-v3,x86-64-v4,amx").expect("names");
    let names: Vec<&str> = all.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["x86-64-v4-amx", "x86-64-v4", "x86-64-v3"]);
    let folder = &folders(&[])[0];
    let graph = infc_onnx::import(&folder.join("model.onnx")).expect("a good model");
    let options = Options { more: all.split_off(1), ..Options::for_target(all.remove(0)) };
    let compiled = compile::compile(graph, &options).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(loaded(&compiled.artifact.to_bytes()).requirements().name, "x86-64-v4-amx");
    if !infc_runtime::cpu::has("amx-tile") {
        let model = Model::from_bytes(&compiled.artifact.to_bytes()).expect("another variant runs here");
        assert_ne!(model.requirements().name, "x86-64-v4-amx");
        let Err(e) = Model::from_bytes_variant(&compiled.artifact.to_bytes(), Some("x86-64-v4-amx")) else {
            panic!("no tiles here")
        };
        assert!(["this CPU lacks ", "amx-tile"].iter().all(|w| e.to_string().contains(w)), "{e}");
    }
}

/// All real models that are at hand, or those that `INFC_MODELS` names, for both machines.
#[test]
#[ignore = "takes minutes: every instruction of a machine that is not here traps"]
fn real_models() {
    let names = std::env::var("INFC_MODELS").unwrap_or_else(|_| {
        let entries = std::fs::read_dir(beside()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.join(" ")
    });
    let names: Vec<&str> = names.split_whitespace().collect();
    for (name, math) in [
        ("amx", Math::Bf16),
        ("amx", Math::F32),
        ("x86-64-v3-vnni", Math::F32),
        ("x86-64-v4-fp16", Math::F16),
        ("x86-64-v4-amx-fp16", Math::F16),
    ] {
        let Some(machine) = machine(name, math) else { continue };
        for folder in &folders(&names)[EXAMPLES.len()..] {
            let tiles: usize = verified(&machine, std::slice::from_ref(folder))
                .iter()
                .map(|(_, p)| p.matches("row=amx_").count() + p.matches("row=f16_blocks").count())
                .sum();
            println!("{} for {name} in {}: {tiles} kernels in tiles or blocks", folder.display(), math.name());
        }
    }
}
