//! The command line of the compiler. Each command is a file under `commands/`: its options, then what it does.

#![forbid(unsafe_code)]

mod commands;
mod term;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Compiles ONNX models to native code, runs and checks the result.
#[derive(Parser)]
#[command(name = "infc", version = commands::VERSION, after_help = term::EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Ops(commands::ops::Args),
    Completions(commands::completions::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Ops(args) => commands::ops::run(&args),
        Command::Completions(args) => commands::completions::run::<Cli>(&args),
    };
    let exit = result.unwrap_or_else(|failure| {
        eprint!("{}", term::render(&failure.problems, term::Style::stderr()));
        failure.exit
    });
    ExitCode::from(exit as u8)
}
