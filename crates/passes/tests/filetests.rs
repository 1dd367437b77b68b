//! Filetests: each `filetests/*.ir` is a graph whose first lines say which passes to run.
//!
//! ```text
//! // pass: fold, dce
//! // bind: batch=1
//! // sizes: n=1
//! ```
//!
//! `sizes` are those of the runs, where not any will do.
//! The graph is verified, run by the interpreter on random inputs, rewritten, verified again, and run again: outputs must agree by
//! the class of the passes. The printed result is a snapshot. `INSTA_UPDATE=always cargo test` writes new snapshots.

mod common;

use common::{agree, inputs};
use infc_ir::graph::Graph;
use infc_ir::{interp, text, verify};
use infc_passes::{Class, Options, pass, run};
use std::collections::HashMap;
use std::path::Path;

/// What the header of a file says.
#[derive(Default)]
struct Header {
    passes: Vec<String>,
    bind: Vec<(String, i64)>,
    sizes: Vec<(String, i64)>,
    limit: Option<usize>,
    small: bool,
}

fn header(source: &str) -> Header {
    let mut h = Header::default();
    for line in source.lines().map_while(|l| l.strip_prefix("//")) {
        let Some((key, value)) = line.split_once(':') else { continue };
        let items = value.split(',').map(|s| s.trim().to_owned());
        let pairs = || items.clone().filter_map(|i| i.split_once('=').map(|(n, v)| (n.to_owned(), v.parse().unwrap()))).collect();
        match key.trim() {
            "pass" => h.passes = items.collect(),
            "bind" => h.bind = pairs(),
            "sizes" => h.sizes = pairs(),
            "limit" => h.limit = Some(value.trim().parse().unwrap()),
            "inputs" => h.small = value.trim() == "integers",
            _ => {}
        }
    }
    h
}

fn check(path: &Path) -> Result<String, String> {
    let source = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let h = header(&source);
    let before = text::parse(&source).map_err(|e| e.to_string())?;
    verify::verify(&before).map_err(|p| format!("before: {p}"))?;
    let mut after = before.clone();
    let options =
        Options { pipeline: h.passes.clone(), bind: h.bind.clone(), rewrite_limit: h.limit, verify: true, ..Options::default() };
    run(&mut after, &options).map_err(|p| p.to_string())?;
    let printed = text::print(&after);
    let back = text::parse(&printed).map_err(|e| e.to_string())?;
    if back != after.compact() {
        return Err("the printed result does not parse to itself".into());
    }
    let class = h.passes.iter().filter_map(|p| pass(p)).map(|p| p.class).max().unwrap_or(Class::Exact);
    for seed in 0..3 {
        let mut sizes: HashMap<String, i64> = h.bind.iter().chain(&h.sizes).cloned().collect();
        let given = inputs(&before, &mut sizes, h.small, seed);
        let want = interp::run_tensors(&before, &given).map_err(|p| format!("running the original: {p}"))?;
        let got = interp::run_tensors(&after, &given).map_err(|p| format!("running the result: {p}\n{printed}"))?;
        for (k, (w, g)) in want.iter().zip(&got).enumerate() {
            agree(class, w, g).map_err(|e| format!("output {k}: {e}\n{printed}"))?;
        }
        let names = |g: &Graph| g.outputs().iter().map(|&v| g.value(v).name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&before), names(&after), "names of outputs");
    }
    Ok(printed)
}

#[test]
fn filetests() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "ir"));
    paths.sort();
    assert!(!paths.is_empty());
    let mut failures = vec![];
    for path in paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match check(&path) {
            Ok(printed) => insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
                insta::assert_snapshot!(name.as_str(), printed);
            }),
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
