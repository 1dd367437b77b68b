//! What `run` and `bench` have in common: an artifact or an ONNX file, made ready to run.

use super::compile::{self, How};
use crate::term::{Exit, Failure};
use infc::compile::Manifest;
use infc::engine::{self, Native};
use infc_artifact::container::MAGIC;
use infc_ir::{Problems, Type};
use infc_runtime::Model;
use prost::Message;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// A model ready to run.
pub struct Loaded {
    /// Names and types of the inputs.
    pub inputs: Vec<(String, Type)>,
    /// Names and types of the outputs.
    pub outputs: Vec<(String, Type)>,
    /// Threads that run it.
    pub threads: usize,
    /// Runs it.
    pub engine: Native,
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
pub fn load(path: &Path, how: &How, threads: Option<u32>) -> std::result::Result<Loaded, Failure> {
    let options = infc_runtime::Options { threads: threads.map(|n| n as usize), ..infc_runtime::Options::default() };
    let model = if is_artifact(path)? {
        open(path, how)?
    } else {
        let compiled = compile::compile(path, &how.options()?)?;
        Model::from_bytes(&compiled.artifact.to_bytes()).map_err(|e| runtime_problem(path, &e))?
    };
    let mut engine = Native::new(model, options)?;
    if is_artifact(path)? {
        known_dims(path, &mut engine, how)?;
    }
    let (inputs, outputs) = (engine.inputs(), engine.outputs());
    let threads = engine.session().threads();
    say_if_too_many(threads);
    Ok(Loaded { inputs, outputs, threads, engine })
}

/// Sizes are given to dims that an artifact has open, each one once; to those that it was compiled with, what they have.
pub fn known_dims(path: &Path, engine: &mut Native, how: &How) -> std::result::Result<(), Failure> {
    let (given, _) = how.given_dims();
    if given.is_empty() {
        return Ok(());
    }
    let inputs = engine.inputs();
    let mut open: Vec<&str> = vec![];
    for dim in inputs.iter().filter_map(|(_, ty)| ty.as_tensor()).flat_map(|t| t.dims.iter()) {
        open.extend(engine::symbol(*dim).filter(|s| !open.contains(s)));
    }
    let made = Manifest::decode(engine.session().model().manifest()).unwrap_or_default();
    for (k, (name, size)) in given.iter().enumerate() {
        let fixed = made.dims.iter().find_map(|d| d.strip_prefix(&format!("{name}=")));
        let message = match fixed {
            _ if given[..k].iter().any(|g| g.0 == *name) => format!("--dim {name} is given twice"),
            _ if open.contains(&name.as_str()) => continue,
            Some(there) if there == size.to_string() => continue,
            Some(there) => format!("--dim {name}={size}: {} was compiled with {name}={there}", path.display()),
            None => format!("--dim {name}={size}: {} has no such symbolic dim", path.display()),
        };
        let help =
            if open.is_empty() { "all its dims have sizes".to_owned() } else { format!("its open dims are {}", open.join(", ")) };
        return Err(Failure::usage(message, help));
    }
    Ok(())
}

/// Loads an artifact: the variant that is named, or the best one for this computer.
pub fn open(path: &Path, how: &How) -> std::result::Result<Arc<Model>, Failure> {
    Model::open_variant(path, how.variant()?).map_err(|e| runtime_problem(path, &e))
}

/// More threads than CPUs give the same results, later.
pub fn say_if_too_many(threads: usize) {
    // The number of CPUs is read from files, which takes as long as loading a small model.
    if threads == 1 {
        return;
    }
    let cpus = std::thread::available_parallelism().map_or(threads, usize::from);
    if threads > cpus {
        eprintln!("note: {threads} threads take turns on {cpus} CPUs; --threads 0 is one for each CPU");
    }
}

/// What the runtime says, as a problem of this file.
pub fn runtime_problem(path: &Path, e: &infc_runtime::Error) -> Failure {
    let text = e.to_string();
    let at = path.display().to_string();
    let text = text.strip_prefix(&format!("{at}: ")).unwrap_or(&text);
    let (exit, help) = match e.kind() {
        infc_runtime::ErrorKind::Artifact if text.contains("not an infc artifact") => {
            (Exit::Rejected, "give an artifact, which `infc compile` makes of a model")
        }
        infc_runtime::ErrorKind::Artifact => (Exit::Rejected, "compile the model again with this version"),
        infc_runtime::ErrorKind::Machine => {
            (Exit::Rejected, "compile the model for this machine: infc compile --cpu native; `infc inspect` shows all variants")
        }
        infc_runtime::ErrorKind::Usage => (Exit::Usage, "`infc inspect` shows all variants; leave out --cpu for the best one"),
        _ => (Exit::Rejected, ""),
    };
    Failure { exit, problems: Problems::one(at, text, help) }
}
