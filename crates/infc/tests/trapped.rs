//! Whole models for machines whose instructions this computer may lack: they are executed when they trap.
#![cfg(all(feature = "llvm", target_arch = "x86_64", target_os = "linux"))]

use infc::engine::{Backend, symbols_of};
use infc::verify::{self, Verdict};
use infc::{Options, cases, compile, target};
use infc_artifact::container::{Artifact, Kind, Reader, Variant};
use infc_kernel::target::{Math, TargetDesc};
use infc_runtime::Model;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let examples =
        ["digits_mlp", "glyphs_cnn", "language_gru", "snippets_transformer"].map(|m| root.join("examples/models").join(m));
    let real = real.iter().map(|m| root.join("../shared/models").join(m)).filter(|f| f.is_dir());
    examples.into_iter().chain(real).collect()
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
