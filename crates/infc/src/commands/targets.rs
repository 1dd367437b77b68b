//! `infc targets`: what this build can make code for.

use crate::say;
use crate::term::{Exit, Result};
use infc::engine::Backend;
use infc::target;
use infc_kernel::target::TargetDesc;

/// List the machines that code can be made for, and the backends of this build
#[derive(clap::Args)]
pub struct Args {
    /// Only the names of the backends, as `infc verify --backend` takes them.
    #[arg(long)]
    backends: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// The LLVM that the backend of this name uses, or why it has none.
#[cfg(feature = "llvm")]
fn llvm() -> Option<std::result::Result<String, String>> {
    Some(infc_cpu_llvm::llvm().map(|found| format!("{} ({})", found.version, found.file)))
}

/// This build has no such backend.
#[cfg(not(feature = "llvm"))]
fn llvm() -> Option<std::result::Result<String, String>> {
    None
}

/// Prints them.
pub fn run(args: &Args) -> Result {
    let native = target::native().ok().map(|t| t.name);
    if args.backends {
        Backend::ALL.iter().for_each(|b| say!("{}", b.name()));
        return Ok(Exit::Ok);
    }
    if args.json {
        let targets: Vec<_> = target::machines()
            .iter()
            .map(|m| serde_json::json!({"name": m.name, "backend": m.backend, "arch": m.arch, "features": m.features, "doc": m.doc}))
            .collect();
        let parts = infc_stream::machine::machines();
        let backends: Vec<_> = Backend::ALL.iter().map(|b| b.name()).collect();
        let llvm = llvm().and_then(|found| found.ok());
        say!(
            "{}",
            serde_json::json!({ "targets": targets, "native": native, "backends": backends, "parts": parts, "llvm": llvm })
        );
        return Ok(Exit::Ok);
    }
    let machines = target::machines();
    let width = |of: fn(&TargetDesc) -> &str| machines.iter().map(|m| of(m).len()).max().unwrap_or(0);
    let (names, backends) = (width(|m| &m.name), width(|m| &m.backend));
    for m in &machines {
        let mark = if Some(&m.name) == native.as_ref() { " (native: this computer)" } else { "" };
        say!("{:names$}  {:backends$}  {}{mark}", m.name, m.backend, m.doc);
    }
    for (name, members) in target::families() {
        say!("{name:names$}  {:backends$}  Code for {} in one artifact", "", members.join(" and "));
    }
    say!("streaming designs in HLS C++, --target fpga-hls --machine PART:");
    for m in infc_stream::machine::machines() {
        say!("  {:10} {}", m.name, m.doc);
    }
    match llvm() {
        Some(Ok(found)) => say!("code of the llvm backend is made by {found}"),
        Some(Err(e)) => say!("the llvm backend makes no code here: {e}"),
        None => {}
    }
    say!("backends of `infc verify`:");
    Backend::ALL.iter().for_each(|b| say!("  {:9} {}", b.name(), b.doc()));
    Ok(Exit::Ok)
}
