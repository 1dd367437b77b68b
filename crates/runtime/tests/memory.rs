//! How much memory a run takes, as the operating system counts it: the weights that it uses, the arena, and little more.
#![cfg(target_os = "linux")]

mod kit;

use infc_artifact::container::{Artifact, Requirements, Variant};
use infc_artifact::encode::encode;
use infc_artifact::program::*;
use infc_runtime::{Model, Options, Session, TensorRef};
use kit::*;
use std::path::Path;
use std::process::Command;

/// Elements of the weights and of the arena.
const COUNT: usize = 4 << 20;
/// What a run may take beside weights and arena: program, libraries, stacks, inputs and outputs.
const MORE: u64 = 6_000_000;
const CHILD: &str = "INFC_TEST_MEMORY_OF";

/// `y = (w + 1) + x` in its first element, with all of `w + 1` in the arena; `w` is at this offset of the constants.
fn program(weights: u64) -> Program {
    let bytes = 4 * COUNT as i64;
    Program {
        inputs: vec![port("x", vec![c(1)], 0)],
        outputs: vec![port("y", vec![c(1)], 1)],
        buffers: vec![
            buffer(c(4), Place::Input(0)),
            buffer(c(4), Place::Output(0)),
            buffer(c(bytes), Place::Constant(weights)),
            buffer(c(bytes), Place::Arena { first: 0, last: 1, offset: Some(0) }),
        ],
        kernels: code().1.clone(),
        steps: vec![launch("plus", &[2, 3], vec![c(1)], c(COUNT as i64)), launch("add", &[3, 0, 1], vec![], c(1))],
        arena: Some(bytes as u64),
        ..Program::default()
    }
}

/// In a process of its own: runs the artifact, and prints weights, arena, and the most memory that the process ever had.
fn child(path: &Path) {
    let model = Model::open(path).unwrap();
    assert_eq!(model.requirements().name, "here");
    let mut session = Session::new(model, Options::default()).unwrap();
    session.set_input(0, TensorRef::of(&[1], &[0.5f32])).unwrap();
    (0..3).for_each(|_| session.run().unwrap());
    assert_eq!(session.output(0).unwrap().values::<f32>().unwrap(), [3.5]);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    println!("\nmemory {} {} {}", session.memory().constants, session.memory().arena, 1024 * peak);
}

#[test]
fn a_run_takes_weights_arena_and_little_more() {
    if let Some(path) = std::env::var_os(CHILD) {
        return child(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.infc");
    let variant = |name: &str, feature: &str, weights: u64| Variant {
        requirements: Requirements { name: name.into(), arch: ARCH.into(), features: vec![feature.into()], host: None },
        program: encode(&program(weights)),
        code: code().0.clone(),
        host_code: vec![],
    };
    // The variant for another machine has weights and code of its own, which are not read here.
    let other = Variant { code: vec![0x90; 8 << 20], ..variant("other", "avx2048", 4 * COUNT as u64) };
    let weights: Vec<u8> = 2f32.to_le_bytes().repeat(2 * COUNT);
    let variants = [other, variant("here", FEATURE, 0)];
    std::fs::write(&path, Artifact { variants: &variants, constants: &[&weights], ..Artifact::default() }.to_bytes()).unwrap();
    drop(weights);

    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", "a_run_takes_weights_arena_and_little_more", "--nocapture"]).env(CHILD, &path).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let figures = text.lines().find_map(|l| l.strip_prefix("memory ")).unwrap_or_else(|| panic!("{text}"));
    let figures: Vec<u64> = figures.split(' ').map(|n| n.parse().unwrap()).collect();
    let [weights, arena, peak] = figures[..] else { panic!("{text}") };
    assert_eq!((weights, arena), (4 * COUNT as u64, 4 * COUNT as u64));
    assert!(peak > weights + arena, "{peak} bytes are less than what was touched");
    assert!(peak <= weights + arena + MORE, "{peak} bytes, {} more than weights and arena", peak - weights - arena);
}
