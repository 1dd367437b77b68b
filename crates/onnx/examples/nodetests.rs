//! Runs tests in ONNX's layout (`model.onnx`, `test_data_set_*/{input,output}_*.pb`, optional `tol.json`) in the interpreter.
//!
//! `cargo run -p infc-onnx --example nodetests -- FOLDER... [--filter TEXT] [--verbose]`: folders are searched for tests; one line a
//! failure, then `N passed, N failed`.

use infc_ir::interp::{self, Item};
use infc_ir::{DType, Graph, Tensor};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

fn main() {
    let (mut folders, mut filter, mut verbose) = (vec![], String::new(), false);
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        match a.as_str() {
            "--filter" => filter = args.next().unwrap_or_default(),
            "--verbose" => verbose = true,
            _ => folders.push(PathBuf::from(a)),
        }
    }
    let mut tests = vec![];
    folders.iter().for_each(|f| find(f, &mut tests));
    tests.retain(|t| t.to_string_lossy().contains(&filter));
    tests.sort();
    let (next, lines) = (AtomicUsize::new(0), Mutex::new(vec![]));
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|s| {
        for _ in 0..2 {
            let worker = || {
                while let Some(t) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let got = std::panic::catch_unwind(|| run(t)).unwrap_or_else(|e| {
                        let text = e.downcast_ref::<String>().cloned().or(e.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                        Err(format!("PANIC: {}", text.unwrap_or_default()))
                    });
                    lines.lock().expect("no panic here").push((t, got));
                }
            };
            std::thread::Builder::new().stack_size(64 << 20).spawn_scoped(s, worker).expect("a thread");
        }
    });
    let mut lines = lines.into_inner().expect("no panic here");
    lines.sort();
    let name = |t: &Path| t.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = lines.iter().filter(|(_, r)| r.is_err()).count();
    for (t, r) in &lines {
        match r {
            Err(e) => println!("FAIL {}: {}", name(t), e.replace('\n', "\n     ")),
            Ok(sets) if verbose => println!("ok   {} ({sets} data sets)", name(t)),
            Ok(_) => {}
        }
    }
    println!("{} passed, {failed} failed", lines.len() - failed);
    std::process::exit(i32::from(failed > 0));
}

fn find(folder: &Path, tests: &mut Vec<PathBuf>) {
    if folder.join("model.onnx").is_file() {
        tests.push(folder.to_owned());
        return;
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_dir()).for_each(|p| find(&p, tests));
}

struct Tolerance {
    rtol: f64,
    atol: f64,
}

fn tolerance(folder: &Path) -> Tolerance {
    let text = std::fs::read_to_string(folder.join("tol.json")).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let number = |key: &str, default| json.get(key).and_then(serde_json::Value::as_f64).unwrap_or(default);
    Tolerance { rtol: number("rtol", 1e-3), atol: number("atol", 1e-4) }
}

fn run(folder: &Path) -> Result<usize, String> {
    let graph = infc_onnx::import(&folder.join("model.onnx")).map_err(|p| p.to_string())?;
    let tol = tolerance(folder);
    let mut sets = 0;
    for set in 0.. {
        let data = folder.join(format!("test_data_set_{set}"));
        if !data.is_dir() {
            break;
        }
        let inputs = read(&data, "input", &graph, graph.inputs())?;
        let want = read(&data, "output", &graph, graph.outputs())?;
        let got = interp::run(&graph, &inputs).map_err(|p| p.to_string())?;
        for (i, w) in want.iter().enumerate() {
            let g = got.get(i).ok_or_else(|| format!("output {i} is missing"))?;
            compare(g, w, &tol).map_err(|e| format!("set {set}, output {i}: {e}"))?;
        }
        sets += 1;
    }
    if sets == 0 { Err("no data sets".into()) } else { Ok(sets) }
}

/// The values of a data set in the order of `values`: by name where a file has the name of one, else by number.
fn read(data: &Path, kind: &str, graph: &Graph, values: &[infc_ir::Value]) -> Result<Vec<Item>, String> {
    let mut items: Vec<Option<Item>> = vec![None; values.len()];
    let mut extra = vec![];
    for i in 0.. {
        let path = data.join(format!("{kind}_{i}.pb"));
        let Ok(bytes) = std::fs::read(&path) else { break };
        let fail = |e: infc_ir::Fault| format!("{}: {e}", path.display());
        let bytes = bytes::Bytes::from(bytes);
        let name = infc_onnx::value_name(&bytes);
        let at = values.iter().position(|&v| graph.value(v).name == name && !name.is_empty()).unwrap_or(i);
        match values.get(at) {
            Some(&v) => items[at] = Some(infc_onnx::read_test_value(bytes, graph.ty(v)).map_err(fail)?.1),
            None => extra.push(name),
        }
    }
    if !extra.is_empty() && kind == "output" {
        return Err(format!("the model has no outputs {extra:?}"));
    }
    if kind == "output" {
        return Ok(items.into_iter().flatten().collect());
    }
    items.into_iter().enumerate().map(|(i, v)| v.ok_or_else(|| format!("{kind} {i} has no file"))).collect()
}

fn compare(got: &Item, want: &Item, tol: &Tolerance) -> Result<(), String> {
    match (got, want) {
        (Item::Tensor(g), Item::Tensor(w)) => compare_tensors(g, w, tol),
        (Item::Sequence(g), Item::Sequence(w)) => {
            if g.len() != w.len() {
                return Err(format!("a sequence of {}, expected {}", g.len(), w.len()));
            }
            g.iter().zip(w).enumerate().try_for_each(|(i, (g, w))| compare(g, w, tol).map_err(|e| format!("element {i}: {e}")))
        }
        (Item::Optional(g), Item::Optional(w)) => match (g, w) {
            (Some(g), Some(w)) => compare(g, w, tol),
            (None, None) => Ok(()),
            (g, w) => Err(format!("optional is there: {}, expected {}", g.is_some(), w.is_some())),
        },
        (Item::Map(g), Item::Map(w)) => {
            let same = g.len() == w.len() && g.iter().zip(w).all(|(g, w)| g.0 == w.0 && compare(&g.1, &w.1, tol).is_ok());
            if same { Ok(()) } else { Err(format!("map {g:?}, expected {w:?}")) }
        }
        _ => Err(format!("another kind of value: {got:?}")),
    }
}

fn compare_tensors(g: &Tensor, w: &Tensor, tol: &Tolerance) -> Result<(), String> {
    if g.dtype != w.dtype || g.dims != w.dims {
        return Err(format!("{}{:?}, expected {}{:?}", g.dtype, g.dims, w.dtype, w.dims));
    }
    if g.dtype == DType::String {
        return if g == w { Ok(()) } else { Err(format!("{:?}, expected {:?}", g.strings(), w.strings())) };
    }
    let (mut bad, mut worst, mut first) = (0, 0.0f64, None);
    let floats = |t: &Tensor| -> Arc<[f64]> {
        match t.dtype {
            DType::C64 => t.bytes().chunks(4).map(|c| f32::from_le_bytes(c.try_into().expect("4")).into()).collect(),
            DType::C128 => t.bytes().chunks(8).map(|c| f64::from_le_bytes(c.try_into().expect("8"))).collect(),
            _ => (0..t.len()).map(|i| t.float(i)).collect(),
        }
    };
    let exact = g.dtype.is_int() || g.dtype == DType::Bool;
    if exact && g.bytes() == w.bytes() {
        return Ok(());
    }
    for (i, (&a, &b)) in floats(g).iter().zip(floats(w).iter()).enumerate() {
        let difference = (a - b).abs();
        let same = a == b || a.is_nan() && b.is_nan() || b.is_finite() && difference <= tol.atol + tol.rtol * b.abs();
        if !same {
            bad += 1;
            worst = worst.max(if difference.is_nan() { f64::INFINITY } else { difference });
            first.get_or_insert((i, a, b));
        }
    }
    match first {
        None => Ok(()),
        Some((i, a, b)) => Err(format!(
            "{bad} of {} {} elements differ, by up to {worst:.3e}; first at {i}: {a}, expected {b}",
            g.len(),
            g.dtype
        )),
    }
}
