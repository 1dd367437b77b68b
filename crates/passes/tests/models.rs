//! The pipeline on trained models: those of the project, and those of the folder in `INFC_MODELS`, if it is set.
//!
//! Each model goes through all passes with verification between them; afterwards no node is composite. The project's own models are
//! also run by the interpreter, before and after.

mod common;

use common::{agree, inputs};
use infc_ir::graph::Graph;
use infc_ir::op::{Ctx, Meaning, signature};
use infc_ir::{Type, interp};
use infc_passes::{Class, Options, run};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

fn models(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|e| e.path().join("model.onnx")).filter(|p| p.is_file()).collect();
    found.sort();
    found
}

fn is_composite(g: &Graph, n: infc_ir::Node) -> bool {
    let node = g.node(n);
    let facts: Vec<_> = node.inputs.iter().map(|v| v.map(|v| g.fact(v))).collect();
    let regions: Vec<_> = node.regions.iter().map(|&r| signature(g, r)).collect();
    let outs: Vec<Type> = node.outputs.iter().map(|&v| g.ty(v).clone()).collect();
    let cx = Ctx { inputs: &facts, regions: &regions, outputs: outs.len() };
    matches!(node.op.meaning(&cx, &outs), Ok(Meaning::Decompose(_)) | Err(_))
}

fn operators(g: &Graph) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for r in g.live_regions() {
        g.region(r).nodes.iter().for_each(|&n| *counts.entry(g.node(n).op.name()).or_default() += 1);
    }
    counts
}

fn check(path: &Path, run_it: bool) -> Result<(), String> {
    let before = infc_onnx::import(path).map_err(|p| format!("import: {p}"))?;
    let mut after = before.clone();
    let report = run(&mut after, &Options { verify: true, ..Options::default() }).map_err(|p| p.to_string())?;
    let composite: Vec<_> = after.live_regions().iter().flat_map(|&r| after.region(r).nodes.clone()).collect();
    if let Some(&n) = composite.iter().find(|&&n| is_composite(&after, n)) {
        return Err(format!("{} is still composite", after.describe(n)));
    }
    println!("{}: {:?}", path.display(), operators(&after));
    for p in &report.passes {
        println!("    {:<12} {:>6} rewrites {:>8.1} ms", p.name, p.rewrites, p.time.as_secs_f64() * 1e3);
    }
    if !run_it {
        return Ok(());
    }
    let given = inputs(&before, &mut HashMap::new(), false, 1);
    let want = interp::run_tensors(&before, &given).map_err(|p| p.to_string())?;
    let got = interp::run_tensors(&after, &given).map_err(|p| p.to_string())?;
    want.iter().zip(&got).try_for_each(|(w, g)| agree(Class::Reassociated, w, g))
}

#[test]
fn models_pass_the_pipeline() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models");
    let mut all: Vec<_> = models(&own).into_iter().map(|p| (p, true)).collect();
    assert!(!all.is_empty());
    if let Ok(dir) = std::env::var("INFC_MODELS") {
        all.extend(models(Path::new(&dir)).into_iter().map(|p| (p, false)));
    }
    let failures: Vec<_> =
        all.iter().filter_map(|(p, run_it)| check(p, *run_it).err().map(|e| format!("{}: {e}", p.display()))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
