//! `infc optimize`: a recipe of compression steps, one after another, with one report.
//!
//! A recipe is TOML: a list of `[[step]]` tables, each with `command` (`prune` or `quantize`) and the options of that command by their
//! names on the command line. Paths are relative to the recipe.

use super::compile::import;
use super::compress::Reports;
use super::{prune, quantize};
use crate::say;
use crate::term::{Exit, Failure, Result};
use clap::Parser;
use infc_compress::Report;
use infc_ir::Problems;
use std::path::{Path, PathBuf};

/// Run a recipe of pruning and quantisation steps and write one report
#[derive(clap::Args)]
pub struct Args {
    /// The model to read.
    model: PathBuf,
    /// The recipe: [[step]] tables with command = "prune" or "quantize" and its options.
    #[arg(long, value_name = "RECIPE.toml")]
    recipe: PathBuf,
    /// The model to write.
    #[arg(short = 'o', long, value_name = "OUT.onnx")]
    output: PathBuf,
    #[command(flatten)]
    reports: Reports,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    #[serde(default)]
    step: Vec<toml::Table>,
}

/// A step's options as a command line.
#[derive(Parser)]
#[command(name = "step", no_binary_name = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Prune(prune::Args),
    Quantize(quantize::Args),
}

/// Options whose values are paths.
const PATHS: [&str; 3] = ["data", "evaluate", "ranges"];

/// Runs it.
pub fn run(args: &Args) -> Result {
    let text = std::fs::read_to_string(&args.recipe).map_err(|e| Failure::io(&args.recipe, &e))?;
    let at = args.recipe.display().to_string();
    let help = "write [[step]] tables with command = \"prune\" or \"quantize\"";
    let recipe: Recipe = toml::from_str(&text).map_err(|e| Problems::one(at.clone(), e.to_string(), help))?;
    if recipe.step.is_empty() {
        return Err(Problems::one(at, "has no steps", help).into());
    }
    let folder = args.recipe.parent().unwrap_or(Path::new("."));
    let work = tempfile::tempdir().map_err(|e| Failure::io(&std::env::temp_dir(), &e))?;
    // All steps are read before the first runs.
    let mut commands = vec![];
    let mut model = args.model.clone();
    for (i, step) in recipe.step.iter().enumerate() {
        let last = i + 1 == recipe.step.len();
        let out = if last { args.output.clone() } else { work.path().join(format!("{i}.onnx")) };
        commands.push(parse(step, folder, &model, &out).map_err(|m| Problems::one(format!("{at}: step {}", i + 1), m, help))?);
        model = out;
    }
    let mut report = Report { model: import(&args.model)?.name, ..Report::default() };
    for (i, command) in commands.iter().enumerate() {
        let done = match command {
            Command::Prune(a) => prune::perform(a)?,
            Command::Quantize(a) => quantize::perform(a)?,
        };
        say!("step {} of {} done", i + 1, commands.len());
        report.machine = done.machine;
        report.steps.extend(done.steps);
    }
    args.reports.write(&report)?;
    Ok(Exit::Ok)
}

fn parse(step: &toml::Table, folder: &Path, model: &Path, out: &Path) -> std::result::Result<Command, String> {
    let name = step.get("command").and_then(|c| c.as_str()).ok_or("has no command")?;
    let mut words = vec![name.to_owned(), model.display().to_string(), "-o".to_owned(), out.display().to_string()];
    for (key, value) in step.iter().filter(|(k, _)| *k != "command") {
        let option = format!("--{}", key.replace('_', "-"));
        let mut push = |v: &toml::Value| {
            let text = match v {
                toml::Value::String(s) if PATHS.contains(&key.as_str()) => folder.join(s).display().to_string(),
                toml::Value::String(s) => s.clone(),
                toml::Value::Integer(i) => i.to_string(),
                toml::Value::Float(f) => f.to_string(),
                toml::Value::Boolean(true) => return words.push(option.clone()),
                toml::Value::Boolean(false) => return,
                other => other.to_string(),
            };
            words.push(format!("{option}={text}"));
        };
        match value {
            toml::Value::Array(list) => list.iter().for_each(&mut push),
            one => push(one),
        }
    }
    Line::try_parse_from(words).map(|l| l.command).map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
}
