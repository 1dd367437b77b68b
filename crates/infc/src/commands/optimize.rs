//! `infc optimize`: a recipe of compression steps, one after another, with one report.
//!
//! A recipe is TOML: a list of `[[step]]` tables, each with `command` (`prune` or `quantize`) and the options of that command by their
//! names on the command line. Paths are relative to the recipe.

use super::compile::import;
use super::compress::{self, Reports, Samples};
use super::{files, prune, quantize};
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use clap::{CommandFactory, Parser};
use infc_compress::report::Step;
use infc_compress::{Executor, Report, compare, layers, measure};
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
#[allow(clippy::large_enum_variant, reason = "a few of them in a run")]
enum Command {
    Prune(prune::Args),
    Quantize(quantize::Args),
}

/// Options that are not a step's: the recipe as a whole has them.
const OURS: [&str; 2] = ["output", "report"];

/// Options whose values are paths.
const PATHS: [&str; 3] = ["data", "evaluate", "ranges"];

/// Runs it.
pub fn run(args: &Args) -> Result {
    files::not_the_model(&args.output, &args.model)?;
    files::writable(&args.output)?;
    args.reports.check()?;
    let text = std::fs::read_to_string(&args.recipe).map_err(|e| Failure::io(&args.recipe, &e))?;
    let at = args.recipe.display().to_string();
    let help = "write [[step]] tables with command = \"prune\" or \"quantize\"";
    let recipe: Recipe = toml::from_str(&text).map_err(|e| Problems::one(at.clone(), e.to_string(), help))?;
    if recipe.step.is_empty() {
        return Err(Problems::one(at, "has no steps", help).into());
    }
    let folder = args.recipe.parent().unwrap_or(Path::new("."));
    let work = tempfile::tempdir().map_err(|e| Failure::io(&std::env::temp_dir(), &e))?;
    // All steps are read and checked before the first runs.
    let mut commands = vec![];
    let mut model = args.model.clone();
    for (i, step) in recipe.step.iter().enumerate() {
        let last = i + 1 == recipe.step.len();
        let out = if last { args.output.clone() } else { work.path().join(format!("{i}.onnx")) };
        let at = format!("{at}: step {}", i + 1);
        let command = parse(step, folder, &model, &out, &at)?;
        let checked = match &command {
            Command::Prune(a) => a.check(),
            Command::Quantize(a) => a.check(),
        };
        checked.map_err(|mut f| {
            f.problems.0.iter_mut().for_each(|p| p.at = format!("{at}: {}", p.at));
            f
        })?;
        commands.push(command);
        model = out;
    }
    let mut report = Report { model: import(&args.model)?.name, ..Report::default() };
    for (i, command) in commands.iter().enumerate() {
        let called = |n: usize| format!("the model of step {n}");
        let (from, to) = match (i, i + 1 == commands.len()) {
            (0, false) => (args.model.display().to_string(), called(1)),
            (0, true) => (args.model.display().to_string(), args.output.display().to_string()),
            (_, false) => (called(i), called(i + 1)),
            (_, true) => (called(i), args.output.display().to_string()),
        };
        let done = match command {
            Command::Prune(a) => prune::perform(a, Some(&to))?,
            Command::Quantize(a) => quantize::perform(a, Some((&to, &from)))?,
        };
        say!("step {} of {} done", i + 1, commands.len());
        report.machine = done.machine;
        report.steps.extend(done.steps);
    }
    if commands.len() > 1 {
        report.steps.push(whole(args, &commands)?);
    }
    args.reports.write(&report)?;
    Ok(Exit::Ok)
}

/// The result beside the model that the first step began with, on the data of the last step that has some.
fn whole(args: &Args, commands: &[Command]) -> Result<Step> {
    let (before, after) = (layers::prepare(&import(&args.model)?)?, import(&args.output)?);
    let samples = |c: &Command| -> Samples {
        match c {
            Command::Prune(a) => a.samples.clone(),
            Command::Quantize(a) => a.judged_on(),
        }
    };
    let found = commands.iter().rev().map(samples).find(|s| s.data.is_some());
    let data = found.map(|s| s.read(&before)).transpose()?.flatten();
    let executor = compress::executor(match &commands[commands.len() - 1] {
        Command::Prune(a) => &a.how,
        Command::Quantize(a) => &a.how,
    })?;
    let bytes = (compress::file_size(&args.model)?, compress::file_size(&args.output)?);
    let mut step = Step { name: "all steps together".to_owned(), ..Step::default() };
    (step.before.bytes, step.after.bytes) = bytes;
    if let Some(data) = data {
        let names: Vec<String> = before.outputs().iter().map(|&v| before.value(v).name.clone()).collect();
        let (mut a, mut b, inputs) = (executor.load(&before)?, executor.load(&after)?, data.sample(0)?.inputs);
        step.before = measure::cost(&before, bytes.0, Some(&mut *a), &inputs)?;
        step.after = measure::cost(&after, bytes.1, Some(&mut *b), &inputs)?;
        let c = compare::run(&mut *a, &mut *b, &names, 0, &data, false, &mut |_| {})?;
        (step.outputs, step.accuracy) = (c.outputs, c.accuracy);
    }
    let ratio = bytes.0 as f64 / bytes.1.max(1) as f64;
    say!("all steps: {}: {}, {ratio:.2}x smaller than {}", args.output.display(), term::bytes(bytes.1), args.model.display());
    compress::figures(&step);
    Ok(step)
}

/// A step as the command that it is; `at` is where it stands.
fn parse(step: &toml::Table, folder: &Path, model: &Path, out: &Path, at: &str) -> std::result::Result<Command, Problems> {
    let help = "write command = \"prune\" or \"quantize\" and its options";
    let name = step.get("command").and_then(|c| c.as_str()).ok_or_else(|| Problems::one(at, "has no command", help))?;
    let line = Line::command();
    if let Some(command) = line.find_subcommand(name) {
        let known: Vec<String> = command
            .get_arguments()
            .filter_map(|a| a.get_long())
            .filter(|l| !OURS.contains(l))
            .map(|l| l.replace('-', "_"))
            .collect();
        let unknown = |k: &&String| *k != "command" && !known.contains(&k.replace('-', "_"));
        if let Some(key) = step.keys().find(unknown) {
            return Err(Problems::one(at, format!("{name} has no option '{key}'"), format!("options are {}", known.join(", "))));
        }
    }
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
    Line::try_parse_from(words).map(|l| l.command).map_err(|e| {
        // What is wrong, and the values that would do; how the command is used is for its own help.
        let text = e.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim).take_while(|l| !l.is_empty()).collect();
        let words = lines.join(" ");
        Problems::one(at, words.strip_prefix("error: ").unwrap_or(&words), help)
    })
}
