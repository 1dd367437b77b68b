//! What the runtime depends on: the artifact format, and nothing of the compiler.

use std::process::Command;

/// Names of the packages that `cargo tree` shows for this crate with these flags.
fn tree(flags: &[&str]) -> Vec<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--offline", "-p", "infc-runtime", "-e", "normal,build", "--prefix", "none", "-f", "{p}"]).args(flags);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<String> = text.lines().filter_map(|l| l.split(' ').next()).map(Into::into).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn no_compiler_in_the_tree() {
    assert_eq!(tree(&["--features", "capi"]), ["infc-artifact", "infc-runtime", "libc", "memmap2"]);
    assert_eq!(tree(&["--no-default-features"]), ["infc-artifact", "infc-runtime"]);
}

/// Routines of the host are a feature of its own, and bring no compiler either.
#[test]
fn no_compiler_with_the_host_routines() {
    let names = tree(&["--features", "host"]);
    assert!(names.contains(&"infc-host".to_owned()), "{names:?}");
    let ours: Vec<&String> = names.iter().filter(|n| n.starts_with("infc-")).collect();
    assert_eq!(ours, ["infc-artifact", "infc-host", "infc-runtime"]);
}
