//! Targets of this build: machines by name or file, and the backend that makes code for them.

use infc_ir::Problems;
use infc_kernel::backend::Backend;
use infc_kernel::target::TargetDesc;
use std::path::Path;

/// All machines that have a name.
pub fn machines() -> Vec<TargetDesc> {
    #[cfg(feature = "llvm")]
    let mut all = infc_cpu_llvm::machines();
    #[cfg(not(feature = "llvm"))]
    let mut all = vec![];
    all.extend(infc_c::machines());
    #[cfg(feature = "ptx")]
    all.extend(infc_gpu_ptx::machines());
    all
}

/// The most capable machine that this computer is.
pub fn native() -> Result<TargetDesc, Problems> {
    #[cfg(feature = "llvm")]
    let found = infc_cpu_llvm::native();
    #[cfg(not(feature = "llvm"))]
    let found = None;
    found.ok_or_else(|| Problems::one("target 'native'", "no machine of this build fits this computer", known()))
}

/// Names of several machines, the preferred one first: an artifact for one of these has a variant for each.
#[cfg(feature = "ptx")]
const FAMILIES: &[(&str, &[&str])] = &[("nvidia", &["nvidia-sm90a", "nvidia-sm80"])];
#[cfg(not(feature = "ptx"))]
const FAMILIES: &[(&str, &[&str])] = &[];

/// The machines of a name: one, or those of a family (`nvidia`).
pub fn find_all(name: &str) -> Result<Vec<TargetDesc>, Problems> {
    match FAMILIES.iter().find(|f| f.0 == name) {
        Some((_, members)) => members.iter().map(|m| find(m)).collect(),
        None => Ok(vec![find(name)?]),
    }
}

/// A machine by name, `native`, or a machine file.
pub fn find(name: &str) -> Result<TargetDesc, Problems> {
    if name == "native" {
        return native();
    }
    if let Some(machine) = machines().into_iter().find(|m| m.name == name) {
        return Ok(machine);
    }
    if !name.ends_with(".toml") {
        return Err(Problems::one(format!("target '{name}'"), "there is no such target", known()));
    }
    let text = std::fs::read_to_string(Path::new(name)).map_err(|e| Problems::one(name, e.to_string(), "check the path"))?;
    let machine = TargetDesc::from_toml(&text)
        .map_err(|e| Problems::one(name, e, "docs/add-a-target.md lists the keys of a machine file"))?;
    let wrong = |message: String, help: &str| Err(Problems::one(name, message, help));
    if machine.backend == "llvm" && machine.arch != "x86_64" {
        return wrong(format!("the llvm backend makes no code for '{}'", machine.arch), "it makes code for x86_64");
    }
    let unknown: Vec<&str> = machine.features.iter().map(String::as_str).filter(|f| !infc_runtime::cpu::knows(f)).collect();
    if !unknown.is_empty() {
        let help = "features have LLVM's names; the runtime lists those it can check in its file cpu.rs";
        return wrong(format!("no machine has the features {}", unknown.join(", ")), help);
    }
    Ok(machine)
}

fn known() -> String {
    let mut names: Vec<_> = machines().into_iter().map(|m| m.name).collect();
    names.extend(FAMILIES.iter().map(|f| f.0.to_owned()));
    format!("known: native, {}; or a machine file: FILE.toml", names.join(", "))
}

/// The backend of a machine.
pub fn backend(target: &TargetDesc) -> Result<Box<dyn Backend>, Problems> {
    match target.backend.as_str() {
        #[cfg(feature = "llvm")]
        "llvm" => Ok(Box::new(infc_cpu_llvm::Llvm::new(target.clone()))),
        "c" => Ok(Box::new(infc_c::C::new(target.clone()))),
        #[cfg(feature = "ptx")]
        "ptx" => Ok(Box::new(infc_gpu_ptx::Ptx::new(target.clone()))),
        other => Err(Problems::one(format!("target '{}'", target.name), format!("this build has no backend '{other}'"), known())),
    }
}
