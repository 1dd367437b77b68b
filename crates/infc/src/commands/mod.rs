//! One file a command.

pub mod completions;
pub mod ops;

/// The version and what this build can make code for.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nbackends: interp");

/// Prints to standard output; a closed pipe ends the process quietly, as `head` expects.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        if writeln!(std::io::stdout(), $($arg)*).is_err() {
            std::process::exit(0);
        }
    }};
}
