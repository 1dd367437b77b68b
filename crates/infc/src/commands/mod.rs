//! One file a command.

pub mod bench;
pub mod calibrate;
pub mod compare;
pub mod compile;
pub mod completions;
pub mod compress;
pub mod convert;
pub mod distill;
pub mod emit;
pub mod files;
pub mod fpga;
pub mod inspect;
pub mod machine;
pub mod model;
pub mod ops;
pub mod optimize;
pub mod passes;
pub mod profile;
mod profile_page;
pub mod prune;
pub mod quantize;
pub mod run;
pub mod targets;
mod tune;
pub mod verify;

/// The version and what this build can run models by.
pub static VERSION: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    let backends: Vec<_> = infc::engine::Backend::ALL.iter().map(|b| b.name()).collect();
    format!("{}\nbackends: {}", env!("CARGO_PKG_VERSION"), backends.join(", "))
});

/// Prints to standard output; a closed pipe ends the process quietly, as `head` expects, and what else keeps it from being written is told.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        if let Err(e) = writeln!(std::io::stdout(), $($arg)*) {
            $crate::term::unprinted(&e);
        }
    }};
}
