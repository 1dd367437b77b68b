//! What people see on the terminal: diagnostics, colours, exit codes.

use infc_ir::Problems;
use std::io::IsTerminal;

/// Why the process ends, as its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It ran, but a comparison or check failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// A model, artifact, machine file or input is wrong, or is not supported.
    Rejected = 3,
    /// A file cannot be read or written.
    Io = 4,
}

/// The exit codes, for `--help`.
pub const EXIT_CODES: &str = "Exit codes: 0 done; 1 a comparison or check failed; 2 wrong usage; 3 a model, artifact, machine file \
or input was rejected; 4 a file could not be read or written; 101 a bug in infc.";

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What to say.
    pub problems: Problems,
}

/// What a command gives.
pub type Result<T = Exit> = std::result::Result<T, Failure>;

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Failure {
        Failure { exit: Exit::Rejected, problems }
    }
}

impl Failure {
    /// A wrong command line.
    pub fn usage(message: impl Into<String>, help: impl Into<String>) -> Failure {
        Failure { exit: Exit::Usage, problems: Problems::one("command line", message, help) }
    }
    /// A target that is not known: a name that there is not, a machine file that cannot be read, or one that is wrong.
    pub fn target(name: &str, problems: Problems) -> Failure {
        let exit = match name.ends_with(".toml") {
            true if !std::path::Path::new(name).is_file() => Exit::Io,
            true => Exit::Rejected,
            false => Exit::Usage,
        };
        Failure { exit, problems }
    }
    /// A file that cannot be read or written.
    pub fn io(path: &std::path::Path, error: &std::io::Error) -> Failure {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check the permissions",
            _ => "",
        };
        Failure { exit: Exit::Io, problems: Problems::one(path.display().to_string(), error.to_string(), help) }
    }
}

/// Escape codes, or nothing where the stream is no terminal or `NO_COLOR` is set.
#[derive(Clone, Copy)]
pub struct Style {
    on: bool,
}

impl Style {
    /// For standard output.
    pub fn stdout() -> Style {
        Style { on: std::io::stdout().is_terminal() && colours_allowed() }
    }
    /// For standard error.
    pub fn stderr() -> Style {
        Style { on: std::io::stderr().is_terminal() && colours_allowed() }
    }
    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    /// For failures.
    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }
    /// For success.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }
    /// For what matters less.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
    /// For what matters more.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }
}

fn colours_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// All problems, each as `error: where: what` with its help below.
pub fn render(problems: &Problems, style: Style) -> String {
    let mut out = String::new();
    for p in &problems.0 {
        let at = if p.at.is_empty() { String::new() } else { format!("{}: ", p.at) };
        out.push_str(&format!("{}: {}{}\n", style.red("error"), style.bold(&at), p.message));
        if !p.help.is_empty() {
            out.push_str(&format!("  {}: {}\n", style.green("help"), p.help));
        }
    }
    if problems.0.len() > 1 {
        out.push_str(&format!("{}: {} problems\n", style.red("error"), problems.0.len()));
    }
    out
}

/// A sign of life on standard error while something takes long, if that is a terminal. Goes away when dropped.
pub struct Spinner(indicatif::ProgressBar);

/// Shows `what` is going on.
pub fn spinner(what: String) -> Spinner {
    let bar =
        if std::io::stderr().is_terminal() { indicatif::ProgressBar::new_spinner() } else { indicatif::ProgressBar::hidden() };
    bar.set_message(what);
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    Spinner(bar)
}

/// Progress over a number of things, as [`spinner`].
pub fn progress(total: usize) -> indicatif::ProgressBar {
    if std::io::stderr().is_terminal() { indicatif::ProgressBar::new(total as u64) } else { indicatif::ProgressBar::hidden() }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Ends the process after output that could not be written.
pub fn unprinted(error: &std::io::Error) -> ! {
    // Windows has several words for it, of which Rust knows two.
    const NOT_CONNECTED: i32 = 233;
    let unknown = cfg!(windows) && error.raw_os_error() == Some(NOT_CONNECTED);
    if error.kind() == std::io::ErrorKind::BrokenPipe || unknown {
        std::process::exit(Exit::Ok as i32);
    }
    eprint!("{}", render(&Problems::one("standard output", error.to_string(), ""), Style::stderr()));
    std::process::exit(Exit::Io as i32);
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..10_240 => format!("{n} B"),
        10_240..10_485_760 => format!("{:.1} KiB", n as f64 / 1024.0),
        _ => format!("{:.1} MiB", n as f64 / 1_048_576.0),
    }
}

/// A time for people.
pub fn time(t: std::time::Duration) -> String {
    match t.as_secs_f64() {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}
