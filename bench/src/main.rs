//! Times models in infc and its peers, alternately in one process on the same cores, after checking that they agree; writes JSON and
//! the tables of `docs/performance.md`.

mod engines;
mod picture;
mod report;
mod sessions;

use anyhow::{Context, Result, bail};
use clap::Parser;
use engines::Loaded;
use infc::compare::{self, Tolerance};
use infc::inputs::{self, Source};
use infc_ir::interp::Item;
use infc_kernel::plan::Plan;
use infc_kernel::target::Math;
use report::{Engine, Filtered, Row, Short};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Time models in infc, ONNX Runtime and OpenVINO side by side
#[derive(Parser)]
struct Args {
    /// ONNX files.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Threads of each engine.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How long to time each engine with each model.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// ONNX Runtime's library (libonnxruntime.so).
    #[arg(long)]
    ort: PathBuf,
    /// OpenVINO's library (libopenvino_c.so).
    #[arg(long)]
    openvino: Option<PathBuf>,
    /// Value of a symbolic dim [default: 1]
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = dim)]
    dims: Vec<(String, i64)>,
    /// Runs an artifact once; for cold starts.
    #[arg(long)]
    cold: Option<PathBuf>,
    /// How many processes to start for cold starts, at most.
    #[arg(long, default_value_t = 50)]
    processes: usize,
    /// Also time so many sessions of each engine side by side, each a process on a core of its own.
    #[arg(long, default_value_t = 0)]
    sessions: usize,
    /// The artifact that such a session of infc runs.
    #[arg(long, hide = true)]
    artifact: Option<PathBuf>,
    /// Be one of these sessions, of the engine with this name.
    #[arg(long, hide = true, value_name = "ENGINE")]
    session_of: Option<String>,
    /// Where to write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The page to write.
    #[arg(long)]
    page: Option<PathBuf>,
}

fn dim(text: &str) -> Result<(String, i64), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=SIZE")?;
    Ok((name.to_owned(), value.parse().map_err(|_| format!("'{value}' is no size"))?))
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(engine) = &args.session_of {
        return sessions::one(engine, &args);
    }
    let env = engines::ort_environment(&args.ort)?;
    let mut rows = vec![];
    for model in &args.models {
        let row = bench(model, &args, &env).with_context(|| model.display().to_string())?;
        println!("{row}");
        rows.push(row);
    }
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report::json(&rows, args.threads))?)?;
    }
    if let Some(path) = &args.page {
        write_page(path, &rows, args.threads)?;
    }
    Ok(())
}

/// Writes the page. One that is there of another kind of machine stays, under the name of its target: `performance-x86-64-v3.md`.
fn write_page(path: &Path, rows: &[Row], threads: usize) -> Result<()> {
    let name =
        |target: &str| path.with_file_name(format!("{}-{target}.md", path.file_stem().unwrap_or_default().to_string_lossy()));
    let target = infc::Options::native()?.target.name;
    if let Ok(before) = std::fs::read_to_string(path)
        && let Some(other) = report::target_of(&before).filter(|&t| t != target)
    {
        std::fs::write(name(other), before)?;
    }
    // This page takes the place of an earlier one of the same kind of machine.
    if name(&target).exists() {
        std::fs::remove_file(name(&target))?;
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let prefix = name("").file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut others: Vec<String> = std::fs::read_dir(folder)?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.starts_with(&prefix) && n.ends_with(".md"))
        // Not those of other benchmarks.
        .filter(|n| std::fs::read_to_string(folder.join(n)).is_ok_and(|text| report::target_of(&text).is_some()))
        .collect();
    others.sort();
    let picture = folder.join(report::PICTURE);
    std::fs::create_dir_all(picture.parent().unwrap_or(folder))?;
    std::fs::write(picture, picture::picture(rows))?;
    std::fs::write(path, report::page(rows, threads, &others))?;
    Ok(())
}

fn bench(model: &Path, args: &Args, env: &ort::environment::Environment) -> Result<Row> {
    let name = name_of(model);
    let graph = infc_onnx::import(model)?;
    let dims: BTreeMap<String, i64> = args.dims.iter().cloned().collect();
    let given = random_inputs(&graph, &dims)?;
    let known = infc::compile::symbols(&graph);
    let mut options = infc::Options::native()?;
    options.dims = known
        .into_iter()
        .map(|s| {
            let size = dims.get(&s).copied().unwrap_or(1);
            (s, size)
        })
        .collect();
    let start = Instant::now();
    let compiled = infc::compile::compile_file(model, &options)?;
    let compile = start.elapsed();
    let (_folder, artifact) = stored(&compiled.artifact.to_bytes())?;

    let mut loaded = all_engines(&artifact, model, &given, args, env)?;
    let mut first = vec![];
    for l in &mut loaded {
        let start = Instant::now();
        l.engine.run()?;
        first.push(start.elapsed());
    }
    let (difference, wrong) = agree(&graph, &mut loaded)?;
    let exact = loaded[0].engine.outputs()?;
    let times = alternate(&mut loaded, args.seconds)?;
    let engine = |(i, l): (usize, &Loaded)| Engine {
        name: l.name,
        load: l.load,
        first: first[i],
        times: times[i].clone(),
        wrong: wrong.contains(&l.name),
    };
    let engines: Vec<_> = loaded.iter().enumerate().map(engine).collect();
    let cold = match &args.cold {
        Some(program) => Some(cold_start(program, &artifact, args.processes)?.saturating_sub(engines[0].median())),
        None => None,
    };
    drop(loaded);
    let bf16 = match &args.openvino {
        Some(library) => in_bf16(model, &options, (&graph, &given, &exact), library, args)?,
        None => None,
    };
    let filtered = by_filtering(model, &options, (&graph, &given, &exact), args, env)?;
    let sessions = sessions::side_by_side(model, &artifact, args)?;
    let size = compiled.artifact.to_bytes().len() as u64;
    Ok(Row {
        name,
        sessions,
        compile,
        size,
        code: compiled.report.code_bytes,
        kernels: compiled.report.kernels,
        difference,
        engines,
        cold,
        bf16,
        filtered,
    })
}

/// An artifact in a folder of its own, which is there as long as it is held.
fn stored(artifact: &[u8]) -> Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.infc");
    std::fs::write(&path, artifact)?;
    Ok((folder, path))
}

/// infc with the artifact, and its peers with the model in f32.
fn all_engines(
    artifact: &Path,
    model: &Path,
    given: &engines::Inputs,
    args: &Args,
    env: &ort::environment::Environment,
) -> Result<Vec<Loaded>> {
    let mut loaded = vec![engines::infc(artifact, given, args.threads)?, engines::onnx_runtime(env, model, given, args.threads)?];
    if let Some(library) = &args.openvino {
        loaded.push(engines::openvino(library, model, given, args.threads, Some("f32"))?);
    }
    Ok(loaded)
}

/// The model with products in bf16, beside OpenVINO as it runs by itself: `None` for models in integers, and where this machine has no products of bf16.
fn in_bf16(
    model: &Path,
    options: &infc::Options,
    (graph, given, exact): (&infc_ir::Graph, &engines::Inputs, &[infc_ir::Tensor]),
    library: &Path,
    args: &Args,
) -> Result<Option<Short>> {
    let kinds = compare::output_kinds(graph);
    let integers = kinds.iter().any(|k| matches!(k, compare::Kind::Downstream | compare::Kind::Quantised));
    if integers || !options.target.takes(Math::Bf16) {
        return Ok(None);
    }
    let mut options = options.clone();
    options.target.math = Math::Bf16;
    let compiled = infc::compile::compile_file(model, &options)?;
    let (_folder, artifact) = stored(&compiled.artifact.to_bytes())?;
    let mut loaded =
        [engines::infc(&artifact, given, args.threads)?, engines::openvino(library, model, given, args.threads, None)?];
    loaded.iter_mut().try_for_each(|l| l.engine.run())?;
    let signal = |l: &mut Loaded| Ok::<_, anyhow::Error>(sqnr(exact, &l.engine.outputs()?));
    let [ours, theirs] = &mut loaded;
    let sqnr = [signal(ours)?, signal(theirs)?];
    let times = alternate(&mut loaded, args.seconds / 2.0)?;
    let median = |t: &[Duration]| t[t.len() / 2];
    Ok(Some(Short { medians: [median(&times[0]), median(&times[1])], sqnr }))
}

/// The model with its convolutions by minimal filtering, beside all peers: `None` where it has none that this is for.
fn by_filtering(
    model: &Path,
    options: &infc::Options,
    (graph, given, exact): (&infc_ir::Graph, &engines::Inputs, &[infc_ir::Tensor]),
    args: &Args,
    env: &ort::environment::Environment,
) -> Result<Option<Filtered>> {
    let mut options = options.clone();
    options.target.math = Math::Winograd;
    let plans = infc::compile::lower(graph.clone(), &options)?.plans;
    if !plans.iter().any(|p| matches!(p, Some(Plan::Winograd(_)))) {
        return Ok(None);
    }
    let compiled = infc::compile::compile_file(model, &options)?;
    let (_folder, artifact) = stored(&compiled.artifact.to_bytes())?;
    let mut loaded = all_engines(&artifact, model, given, args, env)?;
    loaded.iter_mut().try_for_each(|l| l.engine.run())?;
    let sqnr = sqnr(exact, &loaded[0].engine.outputs()?);
    let times = alternate(&mut loaded, args.seconds / 2.0)?;
    let medians = times.iter().map(|t| t[t.len() / 2]).collect();
    Ok(Some(Filtered { medians, sqnr, size: compiled.artifact.to_bytes().len() as u64 }))
}

/// The least signal-to-noise ratio of outputs in f32, in dB, against those of f32 arithmetic; infinite where all are the same.
fn sqnr(exact: &[infc_ir::Tensor], got: &[infc_ir::Tensor]) -> f64 {
    let numbers = |t: &infc_ir::Tensor| -> Vec<f64> {
        t.bytes().chunks_exact(4).map(|c| f64::from(f32::from_ne_bytes(c.try_into().expect("chunks of 4")))).collect()
    };
    let floats = exact.iter().zip(got).filter(|(t, _)| t.dtype == infc_ir::DType::F32);
    let of = floats.map(|(e, g)| {
        let (e, g) = (numbers(e), numbers(g));
        let signal: f64 = e.iter().map(|x| x * x).sum();
        let noise: f64 = e.iter().zip(&g).map(|(x, y)| (x - y) * (x - y)).sum();
        10.0 * (signal / noise).log10()
    });
    of.filter(|db| !db.is_nan()).fold(f64::INFINITY, f64::min)
}

/// The same random inputs for all engines.
fn random_inputs(graph: &infc_ir::Graph, dims: &BTreeMap<String, i64>) -> Result<Vec<(String, infc_ir::Tensor)>> {
    let mut given = vec![];
    for &v in graph.inputs() {
        let name = &graph.value(v).name;
        let item = inputs::make(&Source::Random(0), name, graph.ty(v), dims)?;
        given.push((name.clone(), item.as_tensor().context("only tensors can be inputs")?.clone()));
    }
    Ok(given)
}

/// `resnet50` of `zoo/resnet50.onnx`, and of `models/resnet50/model.onnx`.
fn name_of(model: &Path) -> String {
    let stem = model.file_stem().unwrap_or_default();
    let parent = model.parent().and_then(Path::file_name).unwrap_or_default();
    if stem == "model" { parent } else { stem }.to_string_lossy().into_owned()
}

/// The largest difference of infc's outputs to those of ONNX Runtime, which must be within tolerance, and the other peers whose outputs are not: they compute something else than both.
fn agree(graph: &infc_ir::Graph, loaded: &mut [Loaded]) -> Result<(f64, Vec<&'static str>)> {
    let kinds = compare::output_kinds(graph);
    // Engines round int8 networks at different places, OpenVINO at places of its own choice, and a step more or less moves all that follows.
    let integers = kinds.iter().any(|k| matches!(k, compare::Kind::Downstream | compare::Kind::Quantised));
    let ours = loaded[0].engine.outputs()?;
    let (mut worst, mut wrong): (f64, Vec<&'static str>) = (0.0, vec![]);
    for l in &mut loaded[1..] {
        let theirs = l.engine.outputs()?;
        let needed = if l.name == "ONNX Runtime" { 30.0 } else { 10.0 };
        let allowed = Tolerance { sqnr: integers.then_some(needed), ..Tolerance::default() };
        if ours.len() != theirs.len() {
            bail!("{} gives {} outputs, infc {}", l.name, theirs.len(), ours.len());
        }
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            let name = &graph.value(graph.outputs()[i]).name;
            let outcome = compare::compare(name, &Item::Tensor(a.clone()), &Item::Tensor(b.clone()), kinds[i], allowed);
            if let Some(fault) = outcome.fault {
                if l.name != "ONNX Runtime" {
                    eprintln!("{} gives something else than infc and ONNX Runtime: {fault}", l.name);
                    wrong.push(l.name);
                    break;
                }
                bail!("infc and {} differ: {fault}", l.name);
            }
            if l.name == "ONNX Runtime" {
                worst = worst.max(outcome.error);
            }
        }
    }
    Ok((worst, wrong))
}

/// Times of runs, sorted; the engines take turns of at least ten milliseconds.
fn alternate(loaded: &mut [Loaded], seconds: f64) -> Result<Vec<Vec<Duration>>> {
    let turn = Duration::from_millis(10);
    let mut times = vec![vec![]; loaded.len()];
    let start = Instant::now();
    let all = Duration::from_secs_f64(seconds * loaded.len() as f64);
    while start.elapsed() < all || times[0].len() < 5 {
        for (l, times) in loaded.iter_mut().zip(&mut times) {
            l.engine.run()?; // what the engine before left in the caches is not this one's doing
            let begin = Instant::now();
            loop {
                let start = Instant::now();
                l.engine.run()?;
                times.push(start.elapsed());
                if begin.elapsed() >= turn {
                    break;
                }
            }
        }
    }
    times.iter_mut().for_each(|t| t.sort());
    Ok(times)
}

/// The median time of a process that loads the artifact and runs it once.
fn cold_start(program: &Path, artifact: &Path, processes: usize) -> Result<Duration> {
    let mut times = vec![];
    let begin = Instant::now();
    for number in 0..processes.max(1) {
        // Large networks: fewer are enough, what is measured takes long.
        if number >= 11 && begin.elapsed() > Duration::from_secs(10) {
            break;
        }
        let start = Instant::now();
        let status = Command::new(program).arg(artifact).status()?;
        times.push(start.elapsed());
        if !status.success() {
            bail!("{} failed on {}", program.display(), artifact.display());
        }
    }
    times.sort();
    Ok(times[times.len() / 2])
}
