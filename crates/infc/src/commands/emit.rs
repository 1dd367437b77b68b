//! `infc emit`: the backends of this build as a plugin for another infc.

use crate::term::{Exit, Failure, Result};
use infc::target;
use infc_kernel::target::TargetDesc;
use std::path::Path;

/// Make code for another infc, as a plugin does: a request on standard input, the answer on standard output
///
/// A machine file with `[plugin]` and `command = ["infc", "emit", "--backend", "llvm"]` names it: so an infc without LLVM has the code of one with it, and the authors of
/// plugins have one to look at (docs/add-a-target.md).
#[derive(clap::Args)]
pub struct Args {
    /// The code generator: llvm, cranelift, ...
    #[arg(long, value_name = "NAME")]
    backend: String,
}

/// Answers the request.
pub fn run(args: &Args) -> Result {
    let backend = |machine: TargetDesc| target::backend(&TargetDesc { backend: args.backend.clone(), plugin: None, ..machine });
    infc_plugin::answer(&mut std::io::stdin().lock(), &mut std::io::stdout().lock(), backend)
        .map_err(|e| Failure::io(Path::new("standard input or output"), &e))?;
    Ok(Exit::Ok)
}
