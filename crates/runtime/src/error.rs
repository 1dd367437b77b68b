//! Errors: a kind for programs, a sentence for people.

use alloc::string::String;
use core::fmt;

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum ErrorKind {
    /// A file could not be read.
    Io = 1,
    /// The bytes are no artifact, damaged, or newer than this runtime.
    Artifact = 2,
    /// The machine lacks what the artifact requires.
    Machine = 3,
    /// An input is missing, or has the wrong name, dtype or shape.
    Input = 4,
    /// An output does not exist (yet), or the memory given for it is too small.
    Output = 5,
    /// A check of the model failed while it ran.
    Run = 6,
    /// Memory or threads could not be had.
    Memory = 7,
    /// A null pointer or another misuse of the C ABI.
    Usage = 8,
}

/// An error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    text: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Error {
        Error { kind, text: text.into() }
    }
    /// What it is about.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl core::error::Error for Error {}

/// `fail!(Kind, "format", ...)`: returns an error.
macro_rules! fail {
    ($kind:ident, $($text:tt)*) => {
        return Err($crate::Error::new($crate::ErrorKind::$kind, alloc::format!($($text)*)))
    };
}
pub(crate) use fail;
