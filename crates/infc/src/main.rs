//! The command line of the compiler. Each command is a file under `commands/`: its options, then what it does.

#![forbid(unsafe_code)]

mod commands;
mod term;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Compiles ONNX models to native code, runs and checks the result.
#[derive(Parser)]
#[command(name = "infc", version = &**commands::VERSION, after_help = term::EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Compile(commands::compile::Args),
    Run(commands::run::Args),
    Verify(commands::verify::Args),
    Bench(commands::bench::Args),
    Convert(commands::convert::Args),
    Prune(commands::prune::Args),
    Distill(commands::distill::Args),
    Optimize(commands::optimize::Args),
    Profile(commands::profile::Args),
    Machine(commands::machine::Args),
    Calibrate(commands::calibrate::Args),
    Quantize(commands::quantize::Args),
    Compare(commands::compare::Args),
    Inspect(commands::inspect::Args),
    Ops(commands::ops::Args),
    Passes(commands::passes::Args),
    Targets(commands::targets::Args),
    Emit(commands::emit::Args),
    Completions(commands::completions::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Compile(args) => commands::compile::run(&args),
        Command::Run(args) => commands::run::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Prune(args) => commands::prune::run(&args),
        Command::Optimize(args) => commands::optimize::run(&args),
        Command::Distill(args) => commands::distill::run(&args),
        Command::Profile(args) => commands::profile::run(&args),
        Command::Machine(args) => commands::machine::run(&args),
        Command::Calibrate(args) => commands::calibrate::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Ops(args) => commands::ops::run(&args),
        Command::Passes(args) => commands::passes::run(&args),
        Command::Targets(args) => commands::targets::run(&args),
        Command::Emit(args) => commands::emit::run(&args),
        Command::Completions(args) => commands::completions::run::<Cli>(&args),
    };
    let exit = result.unwrap_or_else(|failure| {
        eprint!("{}", term::render(&failure.problems, term::Style::stderr()));
        failure.exit
    });
    ExitCode::from(exit as u8)
}
