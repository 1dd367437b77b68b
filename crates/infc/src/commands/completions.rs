//! `infc completions`: a completion script for a shell.

use crate::term::{Exit, Result};

/// Print a shell's completion script: `infc completions bash > /etc/bash_completion.d/infc`
#[derive(clap::Args)]
pub struct Args {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Prints it.
pub fn run<C: clap::CommandFactory>(args: &Args) -> Result {
    clap_complete::generate(args.shell, &mut C::command(), "infc", &mut std::io::stdout());
    Ok(Exit::Ok)
}
