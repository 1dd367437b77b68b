//! Loads an artifact, runs it once on zeros and ends: what a process on a device does before its first answer.

use infc_runtime::{Dim, Model, Options, Session};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cold: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let artifact = std::env::args_os().nth(1).ok_or("usage: cold ARTIFACT")?;
    let mut session = Session::new(Model::open(artifact)?, Options { threads: Some(1), ..Options::default() })?;
    for i in 0..session.model().inputs().len() {
        let size = |d: &Dim| if let Dim::Fixed(n) = d { *n } else { 1 };
        let dims: Vec<i64> = session.model().inputs()[i].dims.iter().map(size).collect();
        session.input_mut(i, &dims)?.fill(0);
    }
    session.run()?;
    let first = session.output(0)?.bytes.iter().fold(0u8, |a, b| a ^ b);
    std::hint::black_box(first);
    Ok(())
}
