//! Attributes: `AttributeProto` to and from [`Attr`]; graphs are left to the caller.

use crate::files::Files;
use crate::proto::{AttributeProto, attribute_proto::AttributeType as Kind};
use crate::tensor;
use bytes::Bytes;
use infc_ir::op::Attr;
use infc_ir::{Fault, fault};

/// The kind of an attribute; files of IR version 1 leave it out, then the field that is set tells.
pub fn kind(a: &AttributeProto) -> Result<Kind, Fault> {
    let name = a.name.as_deref().unwrap_or("");
    let told = a.r#type.unwrap_or(0);
    let kind = Kind::try_from(told).map_err(|_| fault!("attribute '{name}' is of unknown kind {told}"))?;
    if kind != Kind::Undefined {
        return Ok(kind);
    }
    let set = [
        (a.f.is_some(), Kind::Float),
        (a.i.is_some(), Kind::Int),
        (a.s.is_some(), Kind::String),
        (a.t.is_some(), Kind::Tensor),
        (a.g.is_some(), Kind::Graph),
        (!a.floats.is_empty(), Kind::Floats),
        (!a.ints.is_empty(), Kind::Ints),
        (!a.strings.is_empty(), Kind::Strings),
        (!a.tensors.is_empty(), Kind::Tensors),
        (!a.graphs.is_empty(), Kind::Graphs),
    ];
    let found = set.iter().find(|(set, _)| *set).map(|(_, kind)| *kind);
    found.ok_or_else(|| fault!("attribute '{name}' has no value"))
}

fn text(name: &str, s: &Bytes) -> Result<String, Fault> {
    std::str::from_utf8(s).map(str::to_owned).map_err(|_| fault!("attribute '{name}' is not UTF-8"))
}

/// The generic form of an attribute that is not a graph.
pub fn from_proto(a: &AttributeProto, files: &mut Files) -> Result<Attr, Fault> {
    let name = a.name.as_deref().unwrap_or("");
    let missing = || fault!("attribute '{name}' has no value");
    match kind(a)? {
        // Writers by the proto3 definition leave zeros out.
        Kind::Float => Ok(Attr::Float(a.f.unwrap_or(0.0))),
        Kind::Int => Ok(Attr::Int(a.i.unwrap_or(0))),
        Kind::String => Ok(Attr::Str(text(name, &a.s.clone().unwrap_or_default())?)),
        Kind::Floats => Ok(Attr::Floats(a.floats.clone())),
        Kind::Ints => Ok(Attr::Ints(a.ints.clone())),
        Kind::Strings => Ok(Attr::Strs(a.strings.iter().map(|s| text(name, s)).collect::<Result<_, _>>()?)),
        Kind::Tensor => {
            let t = a.t.as_ref().ok_or_else(missing)?;
            tensor::tensor(t, files).map(Attr::Tensor).map_err(|e| fault!("attribute '{name}': {e}"))
        }
        Kind::SparseTensor => {
            let t = a.sparse_tensor.as_ref().ok_or_else(missing)?;
            tensor::sparse(t, files).map(Attr::Tensor).map_err(|e| fault!("attribute '{name}': {e}"))
        }
        Kind::Graph
        | Kind::Graphs
        | Kind::Tensors
        | Kind::SparseTensors
        | Kind::TypeProto
        | Kind::TypeProtos
        | Kind::Undefined => Err(fault!("attribute '{name}' is of a kind that this operator cannot have")),
    }
}

/// The proto of an attribute.
pub fn to_proto(name: &str, attr: &Attr) -> AttributeProto {
    let mut a = AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    let kind = match attr {
        Attr::Int(v) => {
            a.i = Some(*v);
            Kind::Int
        }
        Attr::Float(v) => {
            a.f = Some(*v);
            Kind::Float
        }
        Attr::Str(v) => {
            a.s = Some(Bytes::from(v.clone().into_bytes()));
            Kind::String
        }
        Attr::Ints(v) => {
            a.ints = v.clone();
            Kind::Ints
        }
        Attr::Floats(v) => {
            a.floats = v.clone();
            Kind::Floats
        }
        Attr::Strs(v) => {
            a.strings = v.iter().map(|s| Bytes::from(s.clone().into_bytes())).collect();
            Kind::Strings
        }
        Attr::Tensor(t) => {
            a.t = Some(tensor::to_proto("", t));
            Kind::Tensor
        }
    };
    a.r#type = Some(kind as i32);
    a
}
