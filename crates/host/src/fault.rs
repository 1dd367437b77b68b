//! What goes wrong in a routine: a sentence; the caller adds which node it was.

use std::fmt;

/// Why a routine has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

/// `fault!("format", ...)`: a [`Fault`].
macro_rules! fault { ($($text:tt)*) => { $crate::Fault(format!($($text)*)) } }
pub(crate) use fault;
