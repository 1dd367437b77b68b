//! Attributes: typed fields of operator structs, and their generic form for import, export and text.

use crate::fault;
use crate::fault::Fault;
use crate::tensor::Tensor;
use crate::types::Type;

/// An attribute in its generic form.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// `i`
    Int(i64),
    /// `f`
    Float(f32),
    /// `s`
    Str(String),
    /// `ints`
    Ints(Vec<i64>),
    /// `floats`
    Floats(Vec<f32>),
    /// `strings`
    Strs(Vec<String>),
    /// `t`
    Tensor(Tensor),
}

/// Attributes by name, consumed as they are read so that left-overs can be reported.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(pub Vec<(String, Attr)>);

impl Attrs {
    /// Takes an attribute out.
    pub fn take(&mut self, name: &str) -> Option<Attr> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.remove(at).1)
    }
    /// Looks at an attribute.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, a)| a)
    }
    /// Sets an attribute.
    pub fn set(&mut self, name: impl Into<String>, value: Attr) {
        let name = name.into();
        self.take(&name);
        self.0.push((name, value));
    }
}

/// A field type of an operator struct.
pub trait AttrValue: Sized + Clone + PartialEq {
    /// From the generic form; the error says what kind is needed.
    fn from_attr(attr: Attr) -> Result<Self, &'static str>;
    /// To the generic form; `None` for an absent optional attribute.
    fn to_attr(&self) -> Option<Attr>;
}

macro_rules! attr_values {
    ($($t:ty, $variant:ident, $kind:literal;)*) => { $(
        impl AttrValue for $t {
            fn from_attr(attr: Attr) -> Result<Self, &'static str> {
                match attr { Attr::$variant(v) => Ok(v), _ => Err($kind) }
            }
            fn to_attr(&self) -> Option<Attr> { Some(Attr::$variant(self.clone())) }
        }
    )* };
}
attr_values! {
    i64, Int, "an integer";
    f32, Float, "a float";
    String, Str, "a string";
    Vec<f32>, Floats, "a list of floats";
    Vec<String>, Strs, "a list of strings";
    Tensor, Tensor, "a tensor";
}
impl AttrValue for Vec<i64> {
    fn from_attr(attr: Attr) -> Result<Self, &'static str> {
        match attr {
            Attr::Ints(v) => Ok(v),
            // Protobuf cannot tell an empty list of one kind from another.
            Attr::Floats(v) if v.is_empty() => Ok(vec![]),
            Attr::Strs(v) if v.is_empty() => Ok(vec![]),
            _ => Err("a list of integers"),
        }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Ints(self.clone()))
    }
}
impl AttrValue for bool {
    fn from_attr(attr: Attr) -> Result<Self, &'static str> {
        match attr {
            Attr::Int(v) => Ok(v != 0),
            _ => Err("an integer (0 or 1)"),
        }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Int(i64::from(*self)))
    }
}
impl<T: AttrValue> AttrValue for Option<T> {
    fn from_attr(attr: Attr) -> Result<Self, &'static str> {
        T::from_attr(attr).map(Some)
    }
    fn to_attr(&self) -> Option<Attr> {
        self.as_ref().and_then(T::to_attr)
    }
}

/// A type is written as its text form.
impl AttrValue for Type {
    fn from_attr(attr: Attr) -> Result<Self, &'static str> {
        match attr {
            Attr::Str(s) => s.parse().map_err(|_| "a type"),
            _ => Err("a type"),
        }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Str(self.to_string()))
    }
}

/// Reads one attribute for the table's `from_attrs`.
pub fn read<T: AttrValue>(attrs: &mut Attrs, name: &str, default: Option<T>) -> Result<T, Fault> {
    match (attrs.take(name), default) {
        (Some(a), _) => T::from_attr(a).map_err(|kind| fault!("attribute '{name}' must be {kind}")),
        (None, Some(d)) => Ok(d),
        (None, None) => Err(fault!("attribute '{name}' is required")),
    }
}

/// Writes one attribute for the table's `attrs`; defaults are left out.
pub fn write<T: AttrValue>(attrs: &mut Attrs, name: &str, value: &T, default: Option<T>) {
    if default.as_ref() != Some(value)
        && let Some(a) = value.to_attr()
    {
        attrs.0.push((name.to_owned(), a));
    }
}

impl AttrValue for Vec<crate::expr::Expr> {
    fn from_attr(attr: Attr) -> Result<Self, &'static str> {
        match attr {
            Attr::Strs(v) => v.iter().map(|s| s.parse().map_err(|_| "a list of index expressions")).collect(),
            _ => Err("a list of index expressions"),
        }
    }
    fn to_attr(&self) -> Option<Attr> {
        Some(Attr::Strs(self.iter().map(ToString::to_string).collect()))
    }
}
