//! Filetests: each `filetests/*.ir` is a graph whose first lines say which passes to run.
//!
//! ```text
//! // pass: fold, dce
//! // bind: batch=1
//! ```
//!
//! The graph is verified, run by the interpreter on random inputs, rewritten, verified again, and run again: outputs must agree by
//! the class of the passes. The printed result is a snapshot. `INSTA_UPDATE=always cargo test` writes new snapshots.

use infc_ir::expr::Node as ExprNode;
use infc_ir::graph::Graph;
use infc_ir::{DType, Tensor, interp, text, verify};
use infc_passes::{Class, Options, pass, run};
use std::collections::HashMap;
use std::path::Path;

/// What the header of a file says.
#[derive(Default)]
struct Header {
    passes: Vec<String>,
    bind: Vec<(String, i64)>,
    limit: Option<usize>,
    small: bool,
}

fn header(source: &str) -> Header {
    let mut h = Header::default();
    for line in source.lines().map_while(|l| l.strip_prefix("//")) {
        let Some((key, value)) = line.split_once(':') else { continue };
        let items = value.split(',').map(|s| s.trim().to_owned());
        match key.trim() {
            "pass" => h.passes = items.collect(),
            "bind" => h.bind = items.filter_map(|i| i.split_once('=').map(|(n, v)| (n.to_owned(), v.parse().unwrap()))).collect(),
            "limit" => h.limit = Some(value.trim().parse().unwrap()),
            "inputs" => h.small = value.trim() == "integers",
            _ => {}
        }
    }
    h
}

struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
}

/// Inputs for a model: symbols take small sizes, elements are small numbers.
fn inputs(g: &Graph, sizes: &mut HashMap<String, i64>, small: bool, seed: u64) -> Vec<Tensor> {
    let mut random = Random(seed);
    let tensor = |&v| {
        let ty = g.ty(v).as_tensor().expect("inputs are tensors");
        let mut dims = vec![];
        for d in &ty.dims {
            let size = d.eval(&|leaf| match leaf.node() {
                ExprNode::Sym(s) => sizes.get(*s).copied(),
                _ => None,
            });
            dims.push(size.unwrap_or_else(|| {
                let size = 2 + sizes.len() as i64;
                sizes.insert(d.to_string(), size);
                size
            }) as usize);
        }
        let values = (0..dims.iter().product::<usize>()).map(|_| match ty.dtype {
            d if d.is_float() && small => (random.next() as f64 % 7.0 - 3.0).to_bits(),
            d if d.is_float() => (random.next() as f64 / f64::from(1u32 << 29) - 2.0).to_bits(),
            DType::Bool => random.next() % 2,
            DType::I64 | DType::I32 => random.next() % 3,
            d => infc_ir::eval::wrap_int(d, random.next() as i64) as u64,
        });
        let values: Vec<u64> = values.collect();
        Tensor::from_values(ty.dtype, dims, values)
    };
    g.inputs().iter().map(tensor).collect()
}

/// Do two results agree as the class of the passes promises?
fn agree(class: Class, a: &Tensor, b: &Tensor) -> Result<(), String> {
    if (a.dtype, &a.dims) != (b.dtype, &b.dims) {
        return Err(format!("{}{:?} became {}{:?}", a.dtype, a.dims, b.dtype, b.dims));
    }
    let largest = (0..a.len()).map(|i| a.float(i).abs()).filter(|x| x.is_finite()).fold(0.0, f64::max);
    for i in 0..a.len() {
        let (x, y) = (a.float(i), b.float(i));
        let close = match class {
            Class::Exact => x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(),
            Class::SameOrder => x == y || (x - y).abs() <= 1e-6 * x.abs().max(1e-3),
            Class::Reassociated => x == y || (x - y).abs() <= 1e-5 * x.abs().max(largest),
            Class::OneRounding => (x - y).abs() <= 1.0,
        };
        if !close {
            return Err(format!("element {i}: {x} became {y}"));
        }
    }
    Ok(())
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
        let mut sizes: HashMap<String, i64> = h.bind.iter().cloned().collect();
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
