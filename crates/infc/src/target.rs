//! Targets of this build: machines by name or file, and the backend that makes code for them.

use infc_artifact::container::Requirements;
use infc_ir::fault::distance;
use infc_ir::{Problem, Problems};
use infc_kernel::backend::Backend;
use infc_kernel::target::TargetDesc;
use std::path::Path;

/// All machines that have a name.
pub fn machines() -> Vec<TargetDesc> {
    let mut all = vec![];
    #[cfg(feature = "llvm")]
    all.extend(infc_cpu_llvm::machines());
    #[cfg(feature = "cranelift")]
    all.extend(infc_cpu_cranelift::machines());
    all.extend(infc_c::machines());
    #[cfg(feature = "ptx")]
    all.extend(infc_gpu_ptx::machines());
    all
}

/// The code generators whose machine code a CPU runs, the one with the faster code first.
pub const GENERATORS: [&str; 2] = ["llvm", "cranelift"];

/// Is it a CPU that machine code is made for?
pub fn is_cpu(machine: &TargetDesc) -> bool {
    #[cfg(feature = "llvm")]
    if crate::native::is_web(machine) {
        return false;
    }
    GENERATORS.contains(&machine.backend.as_str()) || machine.plugin.is_some()
}

/// The most capable machine that this computer is, of those whose instructions the operating system lets programs use; one of LLVM's if there is one.
pub fn native() -> Result<TargetDesc, Problems> {
    let found = GENERATORS.into_iter().find_map(native_of);
    found.ok_or_else(|| Problems::one("target 'native'", "no machine of this build fits this computer", known()))
}

/// The most capable one of a code generator's machines that this computer is.
fn native_of(generator: &str) -> Option<TargetDesc> {
    // As the runtime sees it, which has to load the code.
    #[cfg(feature = "cpu")]
    let allowed = |m: &TargetDesc| infc_runtime::variant::check(&requirements(m)).is_ok();
    match generator {
        #[cfg(feature = "llvm")]
        "llvm" => infc_cpu_llvm::machines().into_iter().rev().find(allowed),
        #[cfg(feature = "cranelift")]
        "cranelift" => infc_cpu_cranelift::machines().into_iter().rev().find(allowed),
        _ => None,
    }
}

/// The machine that a code generator's code is made for where none is named: the best one that this computer is, else its first one.
pub fn default_of(generator: &str) -> Option<TargetDesc> {
    native_of(generator).or_else(|| machines().into_iter().find(|m| m.backend == generator))
}

/// What a machine must have to run code for this one; such a variant of an artifact has the machine's name.
pub fn requirements(target: &TargetDesc) -> Requirements {
    Requirements { name: target.name.clone(), arch: target.arch.clone(), features: target.features.clone(), host: None }
}

/// Names of several machines, the preferred one first: an artifact for one of these has a variant for each.
#[cfg(feature = "ptx")]
const FAMILIES: &[(&str, &[&str])] = &[("nvidia", &["nvidia-sm90a", "nvidia-sm80"])];
#[cfg(not(feature = "ptx"))]
const FAMILIES: &[(&str, &[&str])] = &[];

/// Short names of machines.
const ALIASES: &[(&str, &str)] = &[("amx", "x86-64-v4-amx")];

/// The machine's own name, for one of [`ALIASES`].
pub fn full_name(name: &str) -> &str {
    ALIASES.iter().find(|a| a.0 == name).map_or(name, |a| a.1)
}

/// The machines of a name: one, or those of a family (`nvidia`).
pub fn find_all(name: &str) -> Result<Vec<TargetDesc>, Problems> {
    match FAMILIES.iter().find(|f| f.0 == name) {
        Some((_, members)) => members.iter().map(|m| find(m)).collect(),
        None => Ok(vec![find(name)?]),
    }
}

/// The CPUs of a list of names and machine files (`x86-64-v3,x86-64-v4`), as `--cpu` takes it. Those with more features come first: that is the
/// order in which a computer looks for the first one that it is.
pub fn find_cpus(names: &str) -> Result<Vec<TargetDesc>, Problems> {
    let (mut found, mut problems): (Vec<TargetDesc>, _) = (vec![], vec![]);
    for name in names.split(',') {
        let mut wrong = |message: String, help: String| problems.push(Problem { at: format!("--cpu {names}"), message, help });
        if name.is_empty() {
            wrong("a name is empty".to_owned(), known_cpus());
            continue;
        }
        match find(name) {
            Ok(machine) if !is_cpu(&machine) => {
                let message =
                    format!("'{name}' is no CPU that machine code is made for: it is of the {} backend", machine.backend);
                wrong(message, format!("--target {name}, or name CPUs; {}", known_cpus()));
            }
            Ok(machine) if found.iter().any(|f| f.name == machine.name) => {
                let also = if machine.name == name { String::new() } else { format!(" (which is '{}' here)", machine.name) };
                wrong(format!("'{name}'{also} is given twice"), "name each CPU once".to_owned());
            }
            Ok(machine) => found.push(machine),
            Err(p) => problems.extend(p.0),
        }
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    found.sort_by_key(|machine| std::cmp::Reverse(machine.features.len()));
    Ok(found)
}

/// The CPU that runs beside a GPU where none is named.
pub const DEFAULT_HOST: &str = if cfg!(feature = "llvm") { "x86-64-v3" } else { "cranelift-x86-64-v3" };

/// The CPU of this name or machine file, as `--host` takes it.
pub fn find_host(name: &str) -> Result<TargetDesc, Problems> {
    let at = format!("--host {name}");
    if !machines().iter().any(is_cpu) {
        let help = "take an infc that was built with one (feature `cranelift` or `llvm`), or leave all steps to the GPU";
        return Err(Problems::one(at, "this infc was built without a code generator for CPUs", help));
    }
    let mut found = find_cpus(name).map_err(|mut problems| {
        problems.0.iter_mut().for_each(|p| p.at = at.clone());
        problems
    })?;
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        n => Err(Problems::one(at, format!("{n} CPUs are named"), "name one, the oldest that the artifact shall run on")),
    }
}

fn known_cpus() -> String {
    let names: Vec<_> = machines().into_iter().filter(is_cpu).map(|m| m.name).collect();
    let short: Vec<_> = ALIASES.iter().map(|(short, full)| format!("{short} for {full}")).collect();
    format!("known: native, {}; {}", names.join(", "), short.join(", "))
}

/// A machine by name, `native`, or a machine file.
pub fn find(name: &str) -> Result<TargetDesc, Problems> {
    if name == "native" {
        return native();
    }
    if let Some(machine) = machines().into_iter().find(|m| m.name == full_name(name)) {
        return Ok(machine);
    }
    if let Some((_, members)) = FAMILIES.iter().find(|f| f.0 == name) {
        let help = format!("name one of them: {}", members.join(", "));
        return Err(Problems::one(format!("target '{name}'"), "it stands for several machines, and one is needed here", help));
    }
    if !name.ends_with(".toml") {
        let near = nearest(name).map_or(String::new(), |n| format!("did you mean '{n}'? "));
        return Err(Problems::one(format!("target '{name}'"), "there is no such target", near + &known()));
    }
    let text = std::fs::read_to_string(Path::new(name)).map_err(|e| Problems::one(name, e.to_string(), "check the path"))?;
    let mut machine = TargetDesc::from_toml(&text)
        .map_err(|e| Problems::one(name, e, "docs/add-a-target.md lists the keys of a machine file"))?;
    if let Some(first) = machine.plugin.as_mut().and_then(|p| p.command.first_mut()).filter(|f| f.starts_with('.')) {
        let beside = Path::new(name).parent().unwrap_or(Path::new("")).join(&*first);
        let absolute = std::path::absolute(&beside).unwrap_or(beside);
        *first = absolute.to_string_lossy().into_owned();
    }
    let wrong = |message: String, help: &str| Err(Problems::one(name, message, help));
    #[cfg(feature = "llvm")]
    if machine.plugin.is_none()
        && machine.backend == "llvm"
        && let Err(e) = infc_cpu_llvm::Arch::of(&machine)
    {
        return wrong(e.0, "docs/add-a-target.md lists what is known of machines");
    }
    if machine.plugin.is_none() && machine.backend == "cranelift" && !["x86_64", "aarch64"].contains(&machine.arch.as_str()) {
        return wrong(
            format!("the cranelift backend makes no code for '{}'", machine.arch),
            "it makes code for x86_64 and aarch64",
        );
    }
    let known = |f: &&str| infc_runtime::cpu::knows(&machine.arch, f);
    let unknown: Vec<&str> = machine.features.iter().map(String::as_str).filter(|f| !known(f)).collect();
    if !unknown.is_empty() {
        let help = "features have LLVM's names; the runtime lists those it can check in its file cpu.rs";
        return wrong(format!("no machine has the features {}", unknown.join(", ")), help);
    }
    Ok(machine)
}

/// The name that this one may have been meant to be.
fn nearest(name: &str) -> Option<String> {
    let names = machines().into_iter().map(|m| m.name).chain(FAMILIES.iter().map(|f| f.0.to_owned()));
    let lower = name.to_lowercase();
    let near = names.map(|n| (distance(&lower, &n), n)).filter(|(d, n)| *d <= 1 + n.len() / 4);
    near.min_by_key(|(d, _)| *d).map(|(_, n)| n)
}

/// Names that stand for several machines, and these.
pub fn families() -> &'static [(&'static str, &'static [&'static str])] {
    FAMILIES
}

fn known() -> String {
    let mut names: Vec<_> = machines().into_iter().map(|m| m.name).collect();
    names.extend(FAMILIES.iter().map(|f| f.0.to_owned()));
    format!("known: native, {}; a machine file: FILE.toml; and to compile streaming designs fpga-hls", names.join(", "))
}

/// The backend of a machine.
pub fn backend(target: &TargetDesc) -> Result<Box<dyn Backend>, Problems> {
    if let Some(plugin) = infc_plugin::Plugin::of(target) {
        return Ok(Box::new(plugin));
    }
    match target.backend.as_str() {
        #[cfg(feature = "llvm")]
        "llvm" => Ok(Box::new(infc_cpu_llvm::Llvm::new(target.clone()))),
        #[cfg(feature = "cranelift")]
        "cranelift" => Ok(Box::new(infc_cpu_cranelift::Cranelift::new(target.clone()))),
        "c" => Ok(Box::new(infc_c::C::new(target.clone()))),
        #[cfg(feature = "ptx")]
        "ptx" => Ok(Box::new(infc_gpu_ptx::Ptx::new(target.clone()))),
        other => Err(Problems::one(format!("target '{}'", target.name), format!("this build has no backend '{other}'"), known())),
    }
}
