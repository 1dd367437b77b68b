//! What `run` and `bench` have in common: an artifact or an ONNX file, made ready to run.

use super::compile::{self, How};
use crate::term::Failure;
use infc::engine::{Engine, Native};
use infc_artifact::container::MAGIC;
use infc_ir::{Problems, Type};
use infc_runtime::Model;
use std::io::Read;
use std::path::Path;

/// A model ready to run.
pub struct Loaded {
    /// Names and types of the inputs.
    pub inputs: Vec<(String, Type)>,
    /// Names and types of the outputs.
    pub outputs: Vec<(String, Type)>,
    /// Threads that run it.
    pub threads: usize,
    /// Runs it.
    pub engine: Box<dyn Engine>,
}

/// True for an artifact, by its first bytes.
pub fn is_artifact(path: &Path) -> std::result::Result<bool, Failure> {
    compile::readable(path)?;
    let mut start = [0; MAGIC.len()];
    let mut file = std::fs::File::open(path).map_err(|e| Failure::io(path, &e))?;
    let read = file.read_exact(&mut start);
    Ok(read.is_ok() && start == MAGIC || path.extension().is_some_and(|e| e == "infc"))
}

/// Loads an artifact, or compiles and loads an ONNX file.
pub fn load(path: &Path, how: &How, threads: Option<usize>) -> std::result::Result<Loaded, Failure> {
    let options = infc_runtime::Options { threads, ..infc_runtime::Options::default() };
    let model = if is_artifact(path)? {
        Model::open(path).map_err(|e| runtime_problem(path, &e))?
    } else {
        let compiled = compile::compile(path, &how.options()?)?;
        Model::from_bytes(&compiled.artifact).map_err(|e| runtime_problem(path, &e))?
    };
    let mut engine = Native::new(model, options)?;
    let (inputs, outputs) = (engine.inputs(), engine.outputs());
    Ok(Loaded { inputs, outputs, threads: engine.session().threads(), engine: Box::new(engine) })
}

/// What the runtime says, as a problem of this file.
pub fn runtime_problem(path: &Path, e: &infc_runtime::Error) -> Problems {
    let text = e.to_string();
    let at = path.display().to_string();
    let text = text.strip_prefix(&format!("{at}: ")).unwrap_or(&text);
    let help = match e.kind() {
        infc_runtime::ErrorKind::Artifact => "compile the model again with this version",
        infc_runtime::ErrorKind::Machine => "compile the model for this machine: infc compile --cpu native",
        _ => "",
    };
    Problems::one(at, text, help)
}
