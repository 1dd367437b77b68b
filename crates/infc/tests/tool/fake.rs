//! The fake driver of GPUs, and the compiler with it.

use std::path::PathBuf;
use std::process::Command;

/// The fake driver, which cargo has built beside this test.
pub fn driver() -> PathBuf {
    let exe = std::env::current_exe().expect("this test's path");
    let path = exe.parent().expect("a folder").join("libinfc_fake_cuda.so");
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// Runs `infc` with the fake driver and these settings of it.
pub fn infc(args: &[&str], settings: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infc"));
    command.args(args).env("INFC_CUDA_DRIVER", driver()).envs(settings.iter().copied());
    let out = command.output().expect("infc runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), text)
}

/// Runs a test again, in a process that has the fake driver; false in that process.
pub fn again_with_driver(test: &str) -> bool {
    if std::env::var_os("INFC_CUDA_DRIVER").is_some() {
        return false;
    }
    let exe = std::env::current_exe().expect("this test's path");
    let out = Command::new(exe).args(["--exact", test, "--nocapture"]).env("INFC_CUDA_DRIVER", driver()).output().expect("runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    true
}
