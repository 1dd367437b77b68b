//! `--tune` and `--tuning`: the tuning file of a compilation, and what tuning did as a table.

use super::compile::{import, readable, write_file};
use crate::say;
use crate::term::{self, Failure, Result};
use infc::compile::{self, Options};
use infc::machine;
use infc::target;
use infc::tune::{self, Stopwatch, Summary, Tuning};
use infc_ir::Problems;
use infc_runtime::variant;
use std::fs;
use std::path::Path;

/// The one machine that a tuning file can be for.
fn one_machine(option: &str, options: &Options) -> Result<()> {
    let names: Vec<&str> = [&options.target].into_iter().chain(&options.more).map(|t| t.name.as_str()).collect();
    if names.len() > 1 {
        let message = format!("{option}: a tuning file is for one machine, {} were named: {}", names.len(), names.join(", "));
        return Err(Failure::usage(message, "name one of them, or leave the option out"));
    }
    if !infc::target::is_cpu(&options.target) {
        let message =
            format!("{option} is for machine code of CPUs; '{}' is of the {} backend", names[0], options.target.backend);
        return Err(Failure::usage(message, "leave it out"));
    }
    Ok(())
}

/// Reads a tuning file into the options.
pub fn read(path: &Path, options: &mut Options) -> Result<()> {
    one_machine("--tuning", options)?;
    options.choices = load(path, options)?.choices();
    Ok(())
}

fn load(path: &Path, options: &Options) -> Result<Tuning> {
    readable(path)?;
    let text = fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => {
            Problems::one(path.display().to_string(), "is no tuning file: it is no text", "").into()
        }
        _ => Failure::io(path, &e),
    })?;
    let at = path.display().to_string();
    let tuning = Tuning::parse(&text, &at)?;
    tuning.check(&at, &options.target)?;
    Ok(tuning)
}

/// Times what the file lacks, writes it back, and puts all of it into the options.
pub fn tune(model: &Path, path: &Path, options: &mut Options) -> Result<Summary> {
    one_machine("--tune", options)?;
    let cpu = machine::cpu_model();
    let mut tuning = match path.exists() {
        true => load(path, options)?,
        false => Tuning::new(&options.target.name, &cpu),
    };
    let graph = compile::optimise(import(model)?, options)?;
    tune::sizes_are_known(&graph)?;
    // What the file has must fit before anything is timed.
    let (tunable, missing) = tune::missing(&graph, options, &tuning)?;
    let mut summary = Summary { tunable, ..Summary::default() };
    if missing > 0 {
        if tuning.cpu != cpu {
            let message =
                format!("was measured on '{}', this is '{cpu}', and {missing} steps of the model are not in it", tuning.cpu);
            let help = "measure into a file of its own; --tuning FILE only reads, and leaves such steps as they are";
            return Err(Problems::one(path.display().to_string(), message, help).into());
        }
        if let Err(e) = variant::check(&target::requirements(&options.target)) {
            let help = "measure on a computer that can, and give its file with --tuning";
            return Err(Problems::one(
                format!("target '{}'", options.target.name),
                format!("plans cannot be timed here: {e}"),
                help,
            )
            .into());
        }
        let bar = term::progress(0);
        let mut timer = Stopwatch::new(&graph)?;
        let measured = tune::measure(&graph, options, &mut tuning, &mut timer, &mut |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        summary = measured?;
        write_file(path, tuning.to_toml().as_bytes())?;
    }
    options.choices = tuning.choices();
    Ok(summary)
}

/// What was timed, as an aligned table.
pub fn table(summary: &Summary, path: &Path) -> Vec<String> {
    let path = path.display();
    if summary.timed.is_empty() {
        return vec![format!("{path}: has all {} steps of this model that have a choice; nothing was timed", summary.tunable)];
    }
    let head = ["analytic us", "best us", "gain", "times", "tried", "step, plan"].map(str::to_owned);
    let rows = summary.timed.iter().map(|line| {
        let step = &line.step;
        let gain = if step.analytic_us > 0.0 { 100.0 * (1.0 - step.best_us / step.analytic_us) } else { 0.0 };
        let kept = step.plan == step.analytic;
        let plan =
            if kept { format!("{} | {}, as it was", step.what, step.plan) } else { format!("{} | {}", step.what, step.plan) };
        let gain = if kept { String::new() } else { format!("{gain:.1} %") };
        [
            format!("{:.1}", step.analytic_us),
            format!("{:.1}", step.best_us),
            gain,
            line.launches.to_string(),
            line.candidates.to_string(),
            plan,
        ]
    });
    let all: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
    let width = |k: usize| all.iter().map(|row| row[k].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &w)| format!("{cell:>w$}")).collect();
        format!("{}  {}", cells.join("  "), row[5])
    };
    let mut out: Vec<String> = all.iter().map(line).collect();
    let changed = summary.timed.iter().filter(|l| l.step.plan != l.step.analytic).count();
    out.push(format!(
        "{path}: {changed} of {} steps have a faster plan; all steps of a run: {:.1} us before, {:.1} us with all that were tried",
        summary.timed.len(),
        summary.before_us,
        summary.after_us
    ));
    out
}

/// Prints the table; to standard error where standard output is the result.
pub fn print(summary: &Summary, path: &Path, to_error: bool) {
    for line in table(summary, path) {
        if to_error { eprintln!("{line}") } else { say!("{line}") }
    }
}
