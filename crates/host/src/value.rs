//! Values of the host.

use crate::Fault;
use crate::fault::fault;
use crate::tensor::Tensor;
use bytes::Bytes;
use std::fmt;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A dense tensor.
    Tensor(Tensor),
    /// A list.
    Sequence(Vec<Value>),
    /// A value or nothing.
    Optional(Option<Box<Value>>),
    /// A dictionary, in the order of insertion.
    Map(Vec<(Key, Value)>),
}

/// A key of a dictionary.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// An integer of any dtype.
    Int(i64),
    /// A string.
    Text(Bytes),
}

impl Value {
    /// The tensor it is.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Value::Tensor(t) => Some(t),
            Value::Sequence(_) | Value::Optional(_) | Value::Map(_) => None,
        }
    }
}

/// How deep values may nest: far deeper than types of models do, and no danger to what walks them.
pub(crate) const NESTING: usize = 16;

impl Value {
    /// True if it nests at most so many levels.
    fn within(&self, levels: usize) -> bool {
        match self {
            Value::Tensor(_) | Value::Optional(None) => true,
            _ if levels == 0 => false,
            Value::Sequence(items) => items.iter().all(|v| v.within(levels - 1)),
            Value::Optional(Some(v)) => v.within(levels - 1),
            Value::Map(entries) => entries.iter().all(|(_, v)| v.within(levels - 1)),
        }
    }
    /// It as a part of another value.
    pub(crate) fn inner(&self) -> Result<Value, Fault> {
        if self.within(NESTING - 1) { Ok(self.clone()) } else { Err(fault!("a value nests too deeply")) }
    }
}

impl From<Tensor> for Value {
    fn from(t: Tensor) -> Value {
        Value::Tensor(t)
    }
}

/// What it is, in a few words.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Tensor(t) => write!(f, "{t}"),
            Value::Sequence(s) => write!(f, "a sequence of {}", s.len()),
            Value::Optional(None) => f.write_str("an empty optional"),
            Value::Optional(Some(v)) => write!(f, "an optional with {v}"),
            Value::Map(m) => write!(f, "a map of {}", m.len()),
        }
    }
}

/// Operands of a routine.
pub(crate) type Inputs<'a> = &'a [Option<&'a Value>];

/// Operand `i`, which must be there.
pub(crate) fn operand<'a>(inputs: Inputs<'a>, i: usize) -> Result<&'a Value, Fault> {
    optional(inputs, i).ok_or_else(|| fault!("operand {i} is missing"))
}

/// Operand `i`.
pub(crate) fn optional<'a>(inputs: Inputs<'a>, i: usize) -> Option<&'a Value> {
    inputs.get(i).copied().flatten()
}

pub(crate) fn tensor<'a>(inputs: Inputs<'a>, i: usize) -> Result<&'a Tensor, Fault> {
    let value = operand(inputs, i)?;
    value.as_tensor().ok_or_else(|| fault!("operand {i} is {value}, a tensor is needed"))
}

pub(crate) fn sequence<'a>(inputs: Inputs<'a>, i: usize) -> Result<&'a [Value], Fault> {
    match operand(inputs, i)? {
        Value::Sequence(items) => Ok(items),
        other => Err(fault!("operand {i} is {other}, a sequence is needed")),
    }
}

pub(crate) fn entries<'a>(inputs: Inputs<'a>, i: usize) -> Result<&'a [(Key, Value)], Fault> {
    match operand(inputs, i)? {
        Value::Map(entries) => Ok(entries),
        other => Err(fault!("operand {i} is {other}, a map is needed")),
    }
}

/// UTF-8 of a string element.
pub(crate) fn utf8(b: &Bytes) -> Result<&str, Fault> {
    std::str::from_utf8(b).map_err(|_| fault!("a string is no UTF-8"))
}
