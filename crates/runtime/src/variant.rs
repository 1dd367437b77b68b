//! Which variant of an artifact this machine runs: the one asked for, else the first that it can.
//!
//! All loading goes through [`choose`], and tools that tell which variant would run here ask it too.

use crate::cpu;
use crate::error::{Error, ErrorKind, fail};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use infc_artifact::container::Requirements;

/// Is this the architecture of a GPU?
#[cfg(feature = "gpu")]
pub(crate) use crate::gpu::is_gpu;

/// No architecture is that of a GPU: an artifact for one is for another machine.
#[cfg(not(feature = "gpu"))]
pub(crate) fn is_gpu(_: &str) -> bool {
    false
}

/// Whether this machine can run what has these requirements, and the operating system lets it; the error says what is missing.
pub fn check(required: &Requirements) -> Result<(), Error> {
    #[cfg(feature = "gpu")]
    if is_gpu(&required.arch) {
        crate::gpu::check(&required.arch)?;
        return required.host.as_deref().map_or(Ok(()), beside);
    }
    #[cfg(not(feature = "gpu"))]
    if required.arch.starts_with("sm_") {
        fail!(Machine, "the artifact is for {}, and this runtime is built without feature `gpu`", required.arch);
    }
    cpu::check(required)?;
    cpu::enable(required)
}

/// Whether this CPU can run the steps beside a GPU.
#[cfg(feature = "gpu")]
fn beside(host: &Requirements) -> Result<(), Error> {
    cpu::check(host).and_then(|()| cpu::enable(host)).map_err(|e| {
        let help = "compile with --host and a CPU that it is";
        Error::new(e.kind(), format!("steps beside the GPU are for the CPU '{}': {e}; {help}", host.name))
    })
}

/// The number of the variant to run: the one called `name`, or the first that this machine can run, since the preferred ones come first.
/// The error says what each variant needs, what is missing and what this CPU has.
pub fn choose(variants: &[Requirements], name: Option<&str>) -> Result<usize, Error> {
    choose_by(variants, name, &check)
}

fn choose_by(
    variants: &[Requirements],
    name: Option<&str>,
    check: &dyn Fn(&Requirements) -> Result<(), Error>,
) -> Result<usize, Error> {
    if variants.is_empty() {
        fail!(Artifact, "malformed: the artifact has no program");
    }
    if let Some(name) = name {
        let Some(i) = variants.iter().position(|v| v.name == name) else {
            let known: Vec<String> = variants.iter().map(|v| format!("'{}'", v.name)).collect();
            fail!(Usage, "there is no variant '{name}'; the artifact has {}", known.join(", "));
        };
        return match check(&variants[i]) {
            Ok(()) => Ok(i),
            Err(e) => fail_as(e.kind(), format!("variant '{name}': {e}")),
        };
    }
    let mut refusals = Vec::new();
    for (i, variant) in variants.iter().enumerate() {
        match check(variant) {
            Ok(()) => return Ok(i),
            Err(e) => refusals.push(e),
        }
    }
    let for_cpus = variants.iter().any(|v| v.arch == cpu::ARCH);
    // Without a GPU there is one reason for all of them.
    if let [first, others @ ..] = &refusals[..]
        && (others.is_empty() || !for_cpus && others.iter().all(|e| e == first))
    {
        return Err(first.clone());
    }
    let each: Vec<String> = variants.iter().zip(&refusals).map(|(v, e)| format!("'{}': {e}", v.name)).collect();
    let for_cpus = variants.iter().any(|v| v.arch == cpu::ARCH);
    let has =
        if for_cpus { alloc::format!("; this CPU is {} with {}", cpu::ARCH, cpu::features().join(", ")) } else { String::new() };
    fail!(Machine, "this machine can run none of the {} variants; {}{has}", variants.len(), each.join("; "))
}

fn fail_as<T>(kind: ErrorKind, text: String) -> Result<T, Error> {
    Err(Error::new(kind, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    /// Three machines, each with what the ones before it lack.
    fn variants() -> [Requirements; 3] {
        let needs = |name: &str, features: &[&str]| Requirements {
            name: name.into(),
            arch: cpu::ARCH.into(),
            features: features.iter().map(|f| f.to_string()).collect(),
            host: None,
        };
        [needs("vnni", &["avx2", "avx512f", "avx512vnni"]), needs("v4", &["avx2", "avx512f"]), needs("v3", &["avx2"])]
    }

    /// What is chosen on a CPU with these features.
    fn on(has: &[&str], name: Option<&str>) -> Result<usize, String> {
        let check = |r: &Requirements| -> Result<(), Error> {
            let missing: Vec<&str> = r.features.iter().map(String::as_str).filter(|f| !has.contains(f)).collect();
            if missing.is_empty() { Ok(()) } else { fail!(Machine, "lacks {}", missing.join(" ")) }
        };
        choose_by(&variants(), name, &check).map_err(|e| e.to_string())
    }

    #[test]
    fn the_best_one_that_the_cpu_can_run() {
        assert_eq!(on(&["avx2", "avx512f", "avx512vnni"], None), Ok(0));
        assert_eq!(on(&["avx2", "avx512f"], None), Ok(1));
        assert_eq!(on(&["avx2", "avx512vnni"], None), Ok(2));
        let none = on(&["sse2"], None).unwrap_err();
        let each = "'vnni': lacks avx2 avx512f avx512vnni; 'v4': lacks avx2 avx512f; 'v3': lacks avx2; this CPU is ";
        assert!(none.starts_with(&format!("this machine can run none of the 3 variants; {each}")), "{none}");
        assert!(cpu::features().iter().all(|f| none.contains(f)), "{none}");
    }

    #[test]
    fn the_one_that_is_asked_for() {
        assert_eq!(on(&["avx2", "avx512f"], Some("v3")), Ok(2));
        assert_eq!(on(&["avx2", "avx512f"], Some("vnni")), Err("variant 'vnni': lacks avx512vnni".into()));
        assert_eq!(on(&["avx2"], Some("v5")), Err("there is no variant 'v5'; the artifact has 'vnni', 'v4', 'v3'".into()));
        assert_eq!(choose(&[], None).unwrap_err().to_string(), "malformed: the artifact has no program");
    }

    #[cfg(all(feature = "std", target_os = "linux", target_arch = "x86_64"))]
    #[test]
    fn tiles_that_the_system_refuses_give_the_next_variant() {
        let [_, _, mut v3] = variants();
        v3.features.clear();
        let amx = Requirements { name: "amx".into(), features: alloc::vec!["amx-tile".to_string()], ..v3.clone() };
        // What the system says, whatever the CPU has: without AMX it refuses.
        let asked = |r: &Requirements| cpu::enable(r);
        let refused = asked(&amx).is_err();
        assert!(refused || cpu::has("amx-tile"), "tiles are allowed where there are none");
        let both = [amx.clone(), v3];
        assert_eq!(choose_by(&both, None, &asked).map_err(|e| e.to_string()), Ok(usize::from(refused)));
        if refused {
            let text = choose_by(&both, Some("amx"), &asked).unwrap_err().to_string();
            assert!(text.starts_with("variant 'amx': the operating system refuses the use of AMX tiles"), "{text}");
            assert!(text.contains("compile for a CPU without AMX"), "{text}");
            assert_eq!(choose_by(&[amx], None, &asked).unwrap_err().kind(), ErrorKind::Machine);
        }
    }
}
