//! Test folders in ONNX's layout: `model.onnx`, `test_data_set_<i>/input_<j>.pb` and `output_<j>.pb`, perhaps `tol.json`.

use crate::compare::Tolerance;
use infc_ir::graph::{Graph, Value};
use infc_ir::interp::Item;
use infc_ir::{Problem, Problems};
use std::fs;
use std::path::{Path, PathBuf};

/// A model with its data sets.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Its folder, relative to the one that was searched.
    pub name: String,
    /// The model file.
    pub model: PathBuf,
    /// Data sets, by number.
    pub sets: Vec<DataSet>,
    /// What `tol.json` allows, if there is one.
    pub tolerance: Option<Tolerance>,
    /// A model by itself: the interpreter on made-up inputs is what it is compared with.
    pub alone: bool,
}

/// Inputs and expected outputs of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSet {
    /// Name of its folder.
    pub name: String,
    /// Files of the inputs, by number.
    pub inputs: Vec<PathBuf>,
    /// Files of the expected outputs, by number.
    pub outputs: Vec<PathBuf>,
}

/// All cases in `root` and below, sorted by name; of a file, that model alone. A folder without any is an error.
pub fn find(root: &Path) -> Result<Vec<Case>, Problems> {
    if root.is_file() {
        let name = root.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        return Ok(vec![Case { name, model: root.to_owned(), sets: vec![], tolerance: None, alone: true }]);
    }
    let mut cases = vec![];
    let own_name = root.canonicalize().ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    search(root, &own_name.unwrap_or_default(), true, &mut cases)?;
    if cases.is_empty() {
        let help = "give a folder with model.onnx and test_data_set_*/, a folder of such folders, or a .onnx file";
        return Err(Problems::one(root.display().to_string(), "has no model.onnx in it or below", help));
    }
    Ok(cases)
}

fn search(dir: &Path, name: &str, is_root: bool, cases: &mut Vec<Case>) -> Result<(), Problems> {
    let model = dir.join("model.onnx");
    if model.is_file() {
        cases.push(case(dir, name, model)?);
        return Ok(());
    }
    for folder in entries(dir)?.into_iter().filter(|p| p.is_dir()) {
        let child = file_name(&folder);
        search(&folder, &if is_root { child } else { format!("{name}/{child}") }, false, cases)?;
    }
    Ok(())
}

fn case(dir: &Path, name: &str, model: PathBuf) -> Result<Case, Problems> {
    let mut sets: Vec<(usize, DataSet)> = vec![];
    for folder in entries(dir)?.into_iter().filter(|p| p.is_dir()) {
        if let Some(number) = number(&file_name(&folder), "test_data_set_", "") {
            let (inputs, outputs) = (numbered(&folder, "input_")?, numbered(&folder, "output_")?);
            sets.push((number, DataSet { name: file_name(&folder), inputs, outputs }));
        }
    }
    sets.sort_by_key(|(number, _)| *number);
    let tolerance = dir.join("tol.json");
    let tolerance = if tolerance.is_file() { Some(read_tolerance(&tolerance)?) } else { None };
    let sets = sets.into_iter().map(|(_, s)| s).collect();
    Ok(Case { name: name.to_owned(), model, sets, tolerance, alone: false })
}

impl Case {
    /// True if any data set has expected outputs.
    pub fn has_outputs(&self) -> bool {
        self.sets.iter().any(|s| !s.outputs.is_empty())
    }
}

impl DataSet {
    /// The inputs as values of the model's inputs.
    pub fn read_inputs(&self, graph: &Graph) -> Result<Vec<Item>, Problems> {
        self.read(graph, "input", &self.inputs, graph.inputs())
    }
    /// The expected outputs. There may be fewer than the model has.
    pub fn read_outputs(&self, graph: &Graph) -> Result<Vec<Item>, Problems> {
        self.read(graph, "output", &self.outputs, &graph.outputs()[..self.outputs.len().min(graph.outputs().len())])
    }
    fn read(&self, graph: &Graph, what: &str, files: &[PathBuf], values: &[Value]) -> Result<Vec<Item>, Problems> {
        if files.len() != values.len() {
            let names: Vec<_> = values.iter().map(|&v| graph.value(v).name.as_str()).collect();
            let message = format!("holds {} {what}s, the model has {}", files.len(), values.len());
            return Err(Problems::one(&self.name, message, format!("the model's {what}s are {}", names.join(", "))));
        }
        files.iter().zip(values).map(|(file, &v)| read_pb(file, graph.ty(v))).collect()
    }
}

/// Reads a `.pb` file with a value of type `ty`.
pub fn read_pb(file: &Path, ty: &infc_ir::Type) -> Result<Item, Problems> {
    let bytes = fs::read(file).map_err(|e| io_problem(file, &e))?;
    match infc_onnx::read_test_value(bytes, ty) {
        Ok((_, value)) => Ok(value),
        Err(fault) => Err(Problems::one(file.display().to_string(), fault.0, format!("a value of type {ty} is expected"))),
    }
}

/// A problem with a file that could not be read or written.
pub fn io_problem(path: &Path, error: &std::io::Error) -> Problems {
    Problems(vec![Problem { at: path.display().to_string(), message: error.to_string(), help: String::new() }])
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Problems> {
    let read = fs::read_dir(dir).and_then(|d| d.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>());
    let mut paths = read.map_err(|e| io_problem(dir, &e))?;
    paths.sort();
    Ok(paths)
}

fn numbered(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>, Problems> {
    let mut files: Vec<(usize, PathBuf)> = vec![];
    for path in entries(dir)? {
        files.extend(number(&file_name(&path), prefix, ".pb").map(|n| (n, path)));
    }
    files.sort();
    Ok(files.into_iter().map(|(_, p)| p).collect())
}

fn number(name: &str, prefix: &str, suffix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read_tolerance(path: &Path) -> Result<Tolerance, Problems> {
    let text = fs::read_to_string(path).map_err(|e| io_problem(path, &e))?;
    let bad = |m: String| Problems::one(path.display().to_string(), m, "write {\"rtol\": 0.001, \"atol\": 0.0001}");
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let default = Tolerance::default();
    let number = |key: &str, default: f64| match json.get(key) {
        None => Ok(default),
        Some(v) => v.as_f64().filter(|n| *n >= 0.0).ok_or_else(|| bad(format!("'{key}' is not a number that is at least 0"))),
    };
    Ok(Tolerance { rtol: number("rtol", default.rtol)?, atol: number("atol", default.atol)?, ..default })
}
