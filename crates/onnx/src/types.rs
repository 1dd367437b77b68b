//! Types: `TypeProto` to and from [`Type`]. Dims without a name get a symbol named after the value and the axis.

use crate::proto::{TensorShapeProto, TypeProto, tensor_shape_proto::Dimension, tensor_shape_proto::dimension, type_proto};
use crate::tensor::dtype;
use infc_ir::{Expr, Fault, Type, fault};
use std::collections::HashSet;

/// How a declared dim is read: `(dim as declared, axis)` to an expression.
pub type DimReader<'a> = dyn FnMut(&dimension::Value, usize) -> Result<Expr, Fault> + 'a;

/// The type declared by `p`. `dim` reads the dims that say something; `unknown` names those that do not.
pub fn from_proto(p: &TypeProto, name: &str, dim: &mut DimReader) -> Result<Type, Fault> {
    use type_proto::Value::*;
    match p.value.as_ref().ok_or_else(|| fault!("no type is declared"))? {
        TensorType(t) => {
            let dtype = dtype(t.elem_type.unwrap_or(0))?;
            let shape = t.shape.as_ref().ok_or_else(|| fault!("no shape is declared; the number of dims must be known"))?;
            Ok(Type::tensor(dtype, dims(shape, name, dim)?))
        }
        SequenceType(s) => Ok(Type::Sequence(Box::new(element(s.elem_type.as_deref(), name, dim)?))),
        OptionalType(o) => Ok(Type::Optional(Box::new(element(o.elem_type.as_deref(), name, dim)?))),
        MapType(m) => {
            let value = element(m.value_type.as_deref(), name, dim)?;
            Ok(Type::Map(dtype(m.key_type.unwrap_or(0))?, Box::new(value)))
        }
        SparseTensorType(_) => Err(fault!("sparse tensors as values are not supported")),
        OpaqueType(o) => Err(fault!("opaque type '{}' is not supported", o.name.as_deref().unwrap_or(""))),
    }
}

fn element(p: Option<&TypeProto>, name: &str, dim: &mut DimReader) -> Result<Type, Fault> {
    let p = p.ok_or_else(|| fault!("the element type is missing"))?;
    match &p.value {
        Some(type_proto::Value::TensorType(t)) if t.shape.is_none() => Ok(Type::Any(dtype(t.elem_type.unwrap_or(0))?)),
        _ => from_proto(p, name, dim),
    }
}

fn dims(shape: &TensorShapeProto, name: &str, dim: &mut DimReader) -> Result<Vec<Expr>, Fault> {
    let read = |(axis, d): (usize, &Dimension)| match &d.value {
        None => Ok(Expr::sym(&format!("{name}.{axis}"))),
        Some(dimension::Value::DimParam(p)) if p.is_empty() => Ok(Expr::sym(&format!("{name}.{axis}"))),
        Some(value) => dim(value, axis),
    };
    shape.dim.iter().enumerate().map(read).collect()
}

/// The declaration of `ty`. Dims with symbols other than `symbols` (new ones, that only the data tells) are left open.
pub fn to_proto(ty: &Type, symbols: &HashSet<&str>) -> TypeProto {
    use type_proto::Value;
    let boxed = |t: &Type| Some(Box::new(to_proto(t, symbols)));
    let value = match ty {
        Type::Tensor(t) => {
            let value = |d: &Expr| match d.known() {
                Some(n) => Some(dimension::Value::DimValue(n)),
                None => symbols_of(*d).iter().all(|s| symbols.contains(s)).then(|| dimension::Value::DimParam(dim_text(*d))),
            };
            let dim = |d: &Expr| Dimension { value: value(d), denotation: None };
            let shape = TensorShapeProto { dim: t.dims.iter().map(dim).collect() };
            Value::TensorType(type_proto::Tensor { elem_type: Some(t.dtype.onnx()), shape: Some(shape) })
        }
        Type::Any(d) | Type::Nothing(d) => Value::TensorType(type_proto::Tensor { elem_type: Some(d.onnx()), shape: None }),
        Type::Sequence(t) => Value::SequenceType(Box::new(type_proto::Sequence { elem_type: boxed(t) })),
        Type::Optional(t) => Value::OptionalType(Box::new(type_proto::Optional { elem_type: boxed(t) })),
        Type::Map(k, v) => Value::MapType(Box::new(type_proto::Map { key_type: Some(k.onnx()), value_type: boxed(v) })),
    };
    TypeProto { value: Some(value), denotation: None }
}

/// The name of a symbol as it is, anything else as an expression.
pub fn dim_text(d: Expr) -> String {
    match d.node() {
        infc_ir::expr::Node::Sym(name) => (*name).to_owned(),
        _ => d.to_string(),
    }
}

/// The symbols of an expression.
pub fn symbols_of(d: Expr) -> Vec<&'static str> {
    let mut found = vec![];
    d.leaves(&mut |e| {
        if let infc_ir::expr::Node::Sym(name) = e.node() {
            found.push(*name);
        }
    });
    found
}
