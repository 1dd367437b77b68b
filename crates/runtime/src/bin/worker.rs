//! `infc-worker`: runs artifacts for `infc verify --on` of another computer, through standard input and output.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().len() > 1 {
        eprintln!(
            "{}: takes no arguments; infc on another computer starts it: infc verify MODEL --target NAME --on 'ssh board infc-worker'",
            infc_runtime::worker::HELLO
        );
        return ExitCode::from(2);
    }
    match infc_runtime::worker::serve(&mut std::io::stdin().lock(), &mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("infc-worker: {e}");
            ExitCode::from(4)
        }
    }
}
