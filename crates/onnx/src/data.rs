//! The `.pb` files of test data sets: tensors, sequences, optionals and maps to and from values of the interpreter.

use crate::files::Files;
use crate::proto::{MapProto, OptionalProto, SequenceProto, TensorProto};
use crate::tensor::{read_tensor_proto, sparse, tensor, to_proto, write_tensor_proto};
use bytes::Bytes;
use infc_ir::interp::{Item, Key};
use infc_ir::{DType, Fault, Tensor, Type, fault};
use prost::Message;

/// Reads a value of the kind that the type of a model's input or output asks for.
pub fn read_test_value(bytes: impl Into<Bytes>, ty: &Type) -> Result<(String, Item), Fault> {
    let bytes = bytes.into();
    let name = |n: &Option<String>| n.clone().unwrap_or_default();
    match ty {
        Type::Tensor(declared) => read_tensor_proto(bytes).map(|(n, t)| (n, Item::Tensor(of_type(t, declared.dtype)))),
        Type::Any(_) | Type::Nothing(_) => read_tensor_proto(bytes).map(|(n, t)| (n, Item::Tensor(t))),
        Type::Sequence(_) => {
            let p = SequenceProto::decode(bytes).map_err(|e| fault!("not a SequenceProto: {e}"))?;
            Ok((name(&p.name), from_sequence(&p)?))
        }
        Type::Optional(_) => {
            let p = OptionalProto::decode(bytes).map_err(|e| fault!("not an OptionalProto: {e}"))?;
            Ok((name(&p.name), from_optional(&p)?))
        }
        Type::Map(..) => {
            let p = MapProto::decode(bytes).map_err(|e| fault!("not a MapProto: {e}"))?;
            Ok((name(&p.name), from_map(&p)?))
        }
    }
}

/// Test data of `onnx` before 1.17, which had no bf16 of its own, holds the bits of bf16 as u16: no operator gives u16 where bf16 is declared.
fn of_type(t: Tensor, declared: DType) -> Tensor {
    match (t.dtype, declared) {
        (DType::U16, DType::BF16) => Tensor::from_bytes(declared, t.dims.clone(), t.bytes().clone()),
        _ => t,
    }
}

fn from_sequence(p: &SequenceProto) -> Result<Item, Fault> {
    let mut files = Files::default();
    let items: Result<Vec<Item>, Fault> = match p.elem_type.unwrap_or(0) {
        1 => p.tensor_values.iter().map(|t| tensor(t, &mut files).map(Item::Tensor)).collect(),
        2 => p.sparse_tensor_values.iter().map(|t| sparse(t, &mut files).map(Item::Tensor)).collect(),
        3 => p.sequence_values.iter().map(from_sequence).collect(),
        4 => p.map_values.iter().map(from_map).collect(),
        5 => p.optional_values.iter().map(from_optional).collect(),
        0 => Ok(vec![]),
        n => Err(fault!("sequence elements of kind {n} are not supported")),
    };
    Ok(Item::Sequence(items?))
}

fn from_optional(p: &OptionalProto) -> Result<Item, Fault> {
    let mut files = Files::default();
    let value = match p.elem_type.unwrap_or(0) {
        1 => p.tensor_value.as_ref().map(|t| tensor(t, &mut files).map(Item::Tensor)),
        2 => p.sparse_tensor_value.as_ref().map(|t| sparse(t, &mut files).map(Item::Tensor)),
        3 => p.sequence_value.as_ref().map(from_sequence),
        4 => p.map_value.as_ref().map(from_map),
        5 => p.optional_value.as_deref().map(from_optional),
        0 => None,
        n => return Err(fault!("optional elements of kind {n} are not supported")),
    };
    Ok(Item::Optional(value.transpose()?.map(Box::new)))
}

/// Serialises a value of a test data set.
pub fn write_test_value(name: &str, value: &Item) -> Vec<u8> {
    match value {
        Item::Tensor(t) => write_tensor_proto(name, t),
        Item::Sequence(items) => to_sequence(name, items).encode_to_vec(),
        Item::Optional(v) => to_optional(name, v.as_deref()).encode_to_vec(),
        Item::Map(entries) => to_map(name, entries).encode_to_vec(),
    }
}

fn to_sequence(name: &str, items: &[Item]) -> SequenceProto {
    let mut p = SequenceProto { name: Some(name.to_owned()), elem_type: Some(1), ..SequenceProto::default() };
    for item in items {
        match item {
            Item::Tensor(t) => p.tensor_values.push(to_proto("", t)),
            Item::Sequence(v) => {
                p.elem_type = Some(3);
                p.sequence_values.push(to_sequence("", v));
            }
            Item::Optional(v) => {
                p.elem_type = Some(5);
                p.optional_values.push(to_optional("", v.as_deref()));
            }
            Item::Map(entries) => {
                p.elem_type = Some(4);
                p.map_values.push(to_map("", entries));
            }
        }
    }
    p
}

fn to_optional(name: &str, value: Option<&Item>) -> OptionalProto {
    let mut p = OptionalProto { name: Some(name.to_owned()), elem_type: Some(0), ..OptionalProto::default() };
    match value {
        Some(Item::Tensor(t)) => (p.elem_type, p.tensor_value) = (Some(1), Some(to_proto("", t))),
        Some(Item::Sequence(v)) => (p.elem_type, p.sequence_value) = (Some(3), Some(to_sequence("", v))),
        Some(Item::Optional(v)) => (p.elem_type, p.optional_value) = (Some(5), Some(Box::new(to_optional("", v.as_deref())))),
        Some(Item::Map(entries)) => (p.elem_type, p.map_value) = (Some(4), Some(to_map("", entries))),
        None => {}
    }
    p
}

fn from_map(p: &MapProto) -> Result<Item, Fault> {
    let Some(Item::Sequence(values)) = p.values.as_ref().map(from_sequence).transpose()? else {
        return Err(fault!("a map without values"));
    };
    let ints = p.keys.iter().map(|&k| Key::Int(k));
    let keys: Vec<Key> = ints.chain(p.string_keys.iter().map(|k| Key::Text(k.clone()))).collect();
    if keys.len() != values.len() {
        return Err(fault!("a map of {} keys and {} values", keys.len(), values.len()));
    }
    Ok(Item::Map(keys.into_iter().zip(values).collect()))
}

fn to_map(name: &str, entries: &[(Key, Item)]) -> MapProto {
    let mut p = MapProto { name: Some(name.to_owned()), key_type: Some(DType::I64.onnx()), ..MapProto::default() };
    for (key, _) in entries {
        match key {
            Key::Int(k) => p.keys.push(*k),
            Key::Text(k) => {
                p.key_type = Some(DType::String.onnx());
                p.string_keys.push(k.clone());
            }
        }
    }
    let values: Vec<Item> = entries.iter().map(|(_, v)| v.clone()).collect();
    p.values = Some(to_sequence("", &values));
    p
}

/// The name in a serialised value of any kind (it has another field number in tensors); empty if there is none.
pub fn value_name(bytes: &Bytes) -> String {
    let tensor = TensorProto::decode(bytes.clone()).ok().and_then(|p| p.name);
    let other = || SequenceProto::decode(bytes.clone()).ok().and_then(|p| p.name);
    tensor.or_else(other).unwrap_or_default()
}
