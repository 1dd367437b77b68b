//! Faults and problems: what is wrong with a model, told in the model's words.

use std::fmt;

/// What an operator says when it does not accept its operands; the caller adds which node it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Fault {}

impl From<String> for Fault {
    fn from(s: String) -> Fault {
        Fault(s)
    }
}

/// `return Err(fault!("..."))`, as `format!`.
#[macro_export]
macro_rules! fault {
    ($($arg:tt)*) => { $crate::fault::Fault(format!($($arg)*)) };
}

/// One problem of a model or file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `Conv 'layer1.0.conv1' (opset 13)`, or a file with an offset.
    pub at: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
}

/// All problems found, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// One problem.
    pub fn one(at: impl Into<String>, message: impl Into<String>, help: impl Into<String>) -> Problems {
        Problems(vec![Problem { at: at.into(), message: message.into(), help: help.into() }])
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)?;
        if !self.help.is_empty() {
            write!(f, "\n  help: {}", self.help)?;
        }
        Ok(())
    }
}
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, p) in self.0.iter().enumerate() {
            write!(f, "{}{p}", if i > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}
impl std::error::Error for Problems {}

/// Edit distance, for messages that name what may have been meant.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
