//! `infc run`: one run of an artifact or model, from inputs given to outputs printed or stored.

use super::compile::{How, write_files};
use super::model;
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use infc::engine::{self, Engine};
use infc::inputs::{self, Source};
use infc::npy;
use infc::outputs::file_names;
use infc_ir::interp::Item;
use infc_ir::{Tensor, Type};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Run an artifact or a model once
#[derive(clap::Args)]
pub struct Args {
    /// An artifact (.infc), or an ONNX file that is compiled first.
    model: PathBuf,
    /// The value of an input: a .npy file, a .pb file (TensorProto), random:SEED, zeros or ones. Inputs that are not given are random:0.
    #[arg(short, long = "input", value_name = "NAME=VALUE", value_parser = input)]
    inputs: Vec<(String, Source)>,
    /// Store the outputs here, each as NAME.npy (.pb where NumPy has no such dtype).
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// A file with a class in each line: say which one the first output means.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Threads that work; 0 is one for each CPU [default: what the artifact was compiled for, or 1]
    #[arg(long, value_name = "N", value_parser = super::compile::threads())]
    threads: Option<u32>,
    #[command(flatten)]
    how: How,
}

/// `NAME=VALUE`.
pub fn input(text: &str) -> std::result::Result<(String, Source), String> {
    // Names may hold '=' and paths too: the last one that leaves a valid source wins, which for paths without '=' is the only one.
    let (name, source) = text.rsplit_once('=').ok_or("write NAME=FILE.npy, NAME=random:SEED, NAME=zeros or NAME=ones")?;
    Ok((name.to_owned(), Source::parse(source)?))
}

/// Runs it.
pub fn run(args: &Args) -> Result {
    let labels = args.labels.as_ref().map(|path| std::fs::read_to_string(path).map_err(|e| Failure::io(path, &e))).transpose()?;
    if let Some(dir) = &args.output_dir {
        std::fs::create_dir_all(dir).map_err(|e| Failure::io(dir, &e))?;
    }
    let mut loaded = model::load(&args.model, &args.how, args.threads)?;
    let values = values(&loaded.inputs, &args.inputs, &args.how)?;
    let start = Instant::now();
    let outputs = loaded.engine.run(&values)?;
    let time = start.elapsed();
    for (port, item) in loaded.outputs.iter().zip(&outputs) {
        say!("{}: {}", port.0, describe(item));
    }
    eprintln!("ran in {}", term::time(time));
    if let Some(text) = labels {
        answers(&outputs, &text.lines().collect::<Vec<_>>())?.iter().for_each(|answer| say!("{answer}"));
    }
    if let Some(dir) = &args.output_dir {
        let files = file_names(loaded.outputs.iter().map(|(name, _)| name.as_str()));
        let stored =
            files.iter().zip(&loaded.outputs).zip(&outputs).map(|((file, (name, _)), item)| stored(dir, file, name, item));
        write_files(&stored.collect::<Vec<_>>())?;
    }
    Ok(Exit::Ok)
}

/// The values of all inputs.
pub fn values(inputs: &[(String, Type)], given: &[(String, Source)], how: &How) -> std::result::Result<Vec<Item>, Failure> {
    if let Some((name, _)) = given.iter().find(|(n, _)| !inputs.iter().any(|(i, _)| i == n)) {
        let known: Vec<_> = inputs.iter().map(|(n, ty)| format!("'{n}': {ty}")).collect();
        return Err(Failure::usage(format!("there is no input '{name}'"), format!("the inputs are {}", known.join(", "))));
    }
    let twice = (1..given.len()).find(|&k| given[..k].iter().any(|(n, _)| *n == given[k].0));
    if let Some((name, _)) = twice.map(|k| &given[k]) {
        return Err(Failure::usage(format!("input '{name}' is given twice"), "give it one value"));
    }
    for (_, source) in given {
        if let Source::File(path) = source {
            std::fs::File::open(path).map_err(|e| Failure::io(path, &e))?;
        }
    }
    let dims = how.dims();
    let value = |(name, ty): &(String, Type)| {
        let source = given.iter().find(|(n, _)| n == name).map_or(&Source::Random(0), |(_, s)| s);
        inputs::make(source, name, ty, &dims)
    };
    let items = inputs.iter().map(value).collect::<std::result::Result<Vec<_>, _>>()?;
    // Sizes of values from files are those of the values.
    for ((name, ty), item) in inputs.iter().zip(&items) {
        let (Some(ty), Some(t)) = (ty.as_tensor(), item.as_tensor()) else { continue };
        for (dim, &size) in ty.dims.iter().zip(&t.dims) {
            if let Some((symbol, wanted)) = engine::symbol(*dim).and_then(|s| Some((s, *dims.get(s)?)))
                && wanted != size as i64
            {
                let message = format!("--dim {symbol}={wanted}: input '{name}' has {size} there");
                return Err(Failure::usage(message, "leave out --dim where inputs are files: their sizes count"));
            }
        }
    }
    Ok(items)
}

/// Type and first elements.
fn describe(item: &Item) -> String {
    match item {
        Item::Tensor(t) => {
            let shown = 8.min(t.len());
            let mut elements: Vec<String> = (0..shown).map(|i| element(t, i)).collect();
            if shown < t.len() {
                elements.push("...".to_owned());
            }
            format!("{}{:?} = {}", t.dtype, t.dims, elements.join(" "))
        }
        Item::Sequence(items) => format!("{} items: {}", items.len(), items.iter().map(describe).collect::<Vec<_>>().join("; ")),
        Item::Optional(None) => "nothing".to_owned(),
        Item::Optional(Some(item)) => describe(item),
        Item::Map(entries) => format!("{} entries: {entries:?}", entries.len()),
    }
}

fn element(t: &Tensor, i: usize) -> String {
    use infc_ir::dtype::Class;
    match t.dtype.class() {
        Class::Text => format!("{:?}", String::from_utf8_lossy(&t.strings()[i])),
        Class::Float if t.dtype == infc_ir::DType::F64 => t.float(i).to_string(),
        Class::Float => (t.float(i) as f32).to_string(),
        Class::Bool => (t.value(i) != 0).to_string(),
        Class::Signed => (t.value(i) as i64).to_string(),
        Class::Unsigned => t.value(i).to_string(),
        Class::Complex => {
            let part = if t.dtype == infc_ir::DType::C64 { infc_ir::DType::F32 } else { infc_ir::DType::F64 };
            let parts = Tensor::from_bytes(part, [t.len() * 2], t.bytes().clone());
            format!("{}{:+}i", parts.float(2 * i), parts.float(2 * i + 1))
        }
    }
}

/// What the first output says of the classes, for each element of a batch.
fn answers(outputs: &[Item], labels: &[&str]) -> std::result::Result<Vec<String>, Failure> {
    let count = labels.len().max(1);
    let last = |t: &Tensor| t.len() == count || t.dims.last() == Some(&count);
    let Some(t) = outputs.first().and_then(Item::as_tensor).filter(|t| t.dtype.is_float() && last(t) && !labels.is_empty())
    else {
        let shape = outputs.first().map_or("missing".to_owned(), |item| match item {
            Item::Tensor(t) => format!("{}{:?}", t.dtype, t.dims),
            _ => "no tensor".to_owned(),
        });
        let help = "labels go with a first output that has one float score for each line of the file, perhaps for each element of a batch";
        return Err(Failure::usage(format!("the file has {} labels, and the first output is {shape}", labels.len()), help));
    };
    let scores: Vec<f64> = (0..t.len()).map(|i| t.float(i)).collect();
    Ok(scores.chunks(count).map(|scores| answer(scores, labels)).collect())
}

/// The likeliest class with its probability (softmax, unless these are probabilities already).
fn answer(scores: &[f64], labels: &[&str]) -> String {
    let top = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0);
    let sum: f64 = scores.iter().sum();
    let are_probabilities = (sum - 1.0).abs() < 1e-3 && scores.iter().all(|s| *s >= 0.0);
    let share = if are_probabilities { scores[top] } else { 1.0 / scores.iter().map(|s| (s - scores[top]).exp()).sum::<f64>() };
    let label = labels.get(top).copied().unwrap_or_default();
    let article = if label.starts_with(['A', 'E', 'F', 'H', 'I', 'L', 'M', 'N', 'O', 'R', 'S', 'X', '8']) { "an" } else { "a" };
    match label.chars().count() {
        1 => format!("it is {article} '{label}' ({:.1} %)", share * 100.0),
        _ => format!("it is '{label}' ({:.1} %)", share * 100.0),
    }
}

/// Where an output is stored, and as what.
fn stored(dir: &Path, file: &str, name: &str, item: &Item) -> (PathBuf, Vec<u8>, u32) {
    let (ending, bytes) = match item.as_tensor().and_then(npy::write) {
        Some(bytes) => ("npy", bytes),
        None => ("pb", infc_onnx::write_test_value(name, item)),
    };
    (dir.join(format!("{file}.{ending}")), bytes, 0o644)
}
