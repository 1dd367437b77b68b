//! Whole models for machines whose instructions this computer may lack: they are executed when they trap.
#![cfg(all(feature = "llvm", target_arch = "x86_64", target_os = "linux"))]

mod tool;

use infc::engine::{Backend, Engine, Native, prepare, symbols_of};
use infc::verify::{self, Verdict};
use infc::{Options, cases, compile, target};
use infc_artifact::container::{Artifact, Kind, Reader, Variant};
use infc_ir::interp::Item;
use infc_ir::{Graph, Tensor};
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
            Variant { requirements, program: section(Kind::Program, v).to_vec(), code: section(Kind::Code, v).to_vec() }
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
                artifact: Some(loaded(&compiled.artifact)),
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
        let mut native =
            Native::new(loaded(&compiled.artifact), infc_runtime::Options::default()).unwrap_or_else(|e| panic!("{e}"));
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
    assert_eq!(loaded(&compiled.artifact).requirements().name, "x86-64-v4-amx");
    if !infc_runtime::cpu::has("amx-tile") {
        let model = Model::from_bytes(&compiled.artifact).expect("another variant runs here");
        assert_ne!(model.requirements().name, "x86-64-v4-amx");
        let Err(e) = Model::from_bytes_variant(&compiled.artifact, Some("x86-64-v4-amx")) else { panic!("no tiles here") };
        assert!(e.to_string().contains("this CPU lacks amx-tile"), "{e}");
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
    for (name, math) in [("amx", Math::Bf16), ("amx", Math::F32), ("x86-64-v3-vnni", Math::F32)] {
        let Some(machine) = machine(name, math) else { continue };
        for folder in &folders(&names)[EXAMPLES.len()..] {
            let tiles: usize =
                verified(&machine, std::slice::from_ref(folder)).iter().map(|(_, p)| p.matches("row=amx_").count()).sum();
            println!("{} for {name} in {}: {tiles} kernels in tiles", folder.display(), math.name());
        }
    }
}
