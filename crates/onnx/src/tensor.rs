//! Tensors: `TensorProto` (inline, typed fields, external, sparse) to and from [`Tensor`].

use crate::files::Files;
use crate::proto::{SparseTensorProto, TensorProto, tensor_proto::DataLocation};
use bytes::Bytes;
use infc_ir::tensor::Data;
use infc_ir::{DType, Fault, Tensor, fault};
use prost::Message;

/// The dtype of a `TensorProto.DataType` number.
pub fn dtype(number: i32) -> Result<DType, Fault> {
    DType::from_onnx(number).ok_or_else(|| match number {
        0 => fault!("the dtype is missing"),
        27 => fault!("dtype FLOAT6E2M3 is not supported"),
        28 => fault!("dtype FLOAT6E3M2 is not supported"),
        n => fault!("unknown dtype number {n}"),
    })
}

/// The elements of a proto; raw bytes are shared, not copied.
pub fn tensor(p: &TensorProto, files: &mut Files) -> Result<Tensor, Fault> {
    let dtype = dtype(p.data_type.unwrap_or(0))?;
    if p.segment.is_some() {
        return Err(fault!("segmented tensors are not supported"));
    }
    let (dims, count) = dims(&p.dims)?;
    let external = p.data_location == Some(DataLocation::External as i32);
    if dtype == DType::String {
        if external || p.raw_data.as_ref().is_some_and(|r| !r.is_empty()) {
            return Err(fault!("a string tensor must have its elements in 'string_data'"));
        }
        check_count(p.string_data.len(), count, "string_data")?;
        return Ok(Tensor::from_strings(dims, p.string_data.iter().cloned()));
    }
    let packed = packed_len(dtype, count).ok_or_else(|| fault!("dims {dims:?} are too large"))?;
    let raw = if external {
        Some(external_bytes(p, packed, files)?)
    } else {
        p.raw_data.clone().filter(|r| !r.is_empty() || typed_len(p) == 0)
    };
    let bytes = match raw {
        Some(raw) => {
            if raw.len() != packed {
                return Err(fault!("{dtype}{dims:?} takes {packed} bytes, raw_data has {}", raw.len()));
            }
            from_raw(dtype, count, raw)
        }
        None => from_typed(p, dtype, count)?,
    };
    Ok(Tensor::from_bytes(dtype, dims, bytes))
}

/// Dims as sizes, with their product.
fn dims(dims: &[i64]) -> Result<(Vec<usize>, usize), Fault> {
    let sizes: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let sizes = sizes.ok_or_else(|| fault!("dims {dims:?} are not valid"))?;
    // Zero extents make every product small; bound the others too, so that strides cannot overflow.
    let volume = sizes.iter().filter(|&&d| d > 0).try_fold(1usize, |a, &d| a.checked_mul(d)).filter(|&v| v <= 1 << 48);
    match volume {
        Some(v) => Ok((sizes.clone(), if sizes.contains(&0) { 0 } else { v })),
        None => Err(fault!("dims {dims:?} are too large")),
    }
}

fn packed_len(dtype: DType, count: usize) -> Option<usize> {
    match dtype.bits() {
        bits @ (2 | 4) => Some(count.checked_mul(bits as usize)?.div_ceil(8)),
        _ => count.checked_mul(dtype.bytes()),
    }
}

fn check_count(got: usize, needed: usize, field: &str) -> Result<(), Fault> {
    if got == needed { Ok(()) } else { Err(fault!("{needed} elements are needed, {field} has {got}")) }
}

fn typed_len(p: &TensorProto) -> usize {
    p.float_data.len() + p.int32_data.len() + p.int64_data.len() + p.double_data.len() + p.uint64_data.len()
}

fn external_bytes(p: &TensorProto, needed: usize, files: &mut Files) -> Result<Bytes, Fault> {
    let entry = |key: &str| p.external_data.iter().find(|e| e.key.as_deref() == Some(key)).and_then(|e| e.value.as_deref());
    let number = |key: &str| match entry(key) {
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| fault!("external data: {key} '{text}' is not a number")),
        None => Ok(None),
    };
    let location = entry("location").ok_or_else(|| fault!("external data without a location"))?;
    files.read(location, number("offset")?.unwrap_or(0), number("length")?, needed)
}

/// Elements packed below a byte, lowest bits first, to one a byte (sign-extended for signed dtypes).
fn unpack(dtype: DType, count: usize, packed: impl Iterator<Item = u8>) -> Vec<u8> {
    let bits = dtype.bits();
    let spread = packed.flat_map(|b| (0..8 / bits).map(move |k| b << (8 - bits * (k + 1)))); // the element in the top bits
    let element = |top: u8| if dtype.is_signed() { ((top as i8) >> (8 - bits)) as u8 } else { top >> (8 - bits) };
    spread.take(count).map(element).collect()
}

fn from_raw(dtype: DType, count: usize, raw: Bytes) -> Bytes {
    match dtype {
        DType::Bool if raw.iter().any(|&b| b > 1) => raw.iter().map(|&b| u8::from(b != 0)).collect::<Vec<_>>().into(),
        d if matches!(d.bits(), 2 | 4) => unpack(dtype, count, raw.iter().copied()).into(),
        _ => raw,
    }
}

fn from_typed(p: &TensorProto, dtype: DType, count: usize) -> Result<Bytes, Fault> {
    fn bytes<T: Copy, const N: usize>(values: &[T], f: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|&v| f(v)).collect()
    }
    let complex = 1 + usize::from(dtype.class() == infc_ir::dtype::Class::Complex);
    let (got, field, out) = match dtype {
        DType::F32 | DType::C64 => (p.float_data.len(), "float_data", bytes(&p.float_data, f32::to_le_bytes)),
        DType::F64 | DType::C128 => (p.double_data.len(), "double_data", bytes(&p.double_data, f64::to_le_bytes)),
        DType::I64 => (p.int64_data.len(), "int64_data", bytes(&p.int64_data, i64::to_le_bytes)),
        DType::U64 => (p.uint64_data.len(), "uint64_data", bytes(&p.uint64_data, u64::to_le_bytes)),
        DType::U32 => (p.uint64_data.len(), "uint64_data", bytes(&p.uint64_data, |v| (v as u32).to_le_bytes())),
        DType::Bool => (p.int32_data.len(), "int32_data", bytes(&p.int32_data, |v| [u8::from(v != 0)])),
        d if matches!(d.bits(), 2 | 4) => {
            check_count(p.int32_data.len(), packed_len(d, count).unwrap_or(0), "int32_data (packed)")?;
            return Ok(unpack(d, count, p.int32_data.iter().map(|&v| v as u8)).into());
        }
        d => match d.bytes() {
            1 => (p.int32_data.len(), "int32_data", bytes(&p.int32_data, |v| [v as u8])),
            2 => (p.int32_data.len(), "int32_data", bytes(&p.int32_data, |v| (v as u16).to_le_bytes())),
            _ => (p.int32_data.len(), "int32_data", bytes(&p.int32_data, i32::to_le_bytes)),
        },
    };
    check_count(got, count * complex, field)?;
    Ok(out.into())
}

/// A sparse tensor, made dense.
pub fn sparse(p: &SparseTensorProto, files: &mut Files) -> Result<Tensor, Fault> {
    let (Some(values), Some(indices)) = (&p.values, &p.indices) else {
        return Err(fault!("a sparse tensor needs values and indices"));
    };
    let (values, indices) = (tensor(values, files)?, tensor(indices, files)?);
    let (dims, total) = dims(&p.dims)?;
    if indices.dtype != DType::I64 || values.dtype == DType::String || values.dims.len() != 1 {
        return Err(fault!("a sparse tensor needs 1-D numeric values and i64 indices"));
    }
    let flat: Vec<i64> = match indices.dims[..] {
        [n] if n == values.len() => indices.to_ints(),
        [n, rank] if n == values.len() && rank == dims.len() => {
            let tuples = indices.to_ints();
            let inside = tuples.chunks(rank.max(1)).all(|t| t.iter().zip(&dims).all(|(&i, &d)| (0..d as i64).contains(&i)));
            if !inside {
                return Err(fault!("sparse indices are outside {dims:?}"));
            }
            let linear = |t: &[i64]| t.iter().zip(&dims).fold(0, |a, (&i, &d)| a * d as i64 + i);
            tuples.chunks(rank.max(1)).map(linear).collect()
        }
        _ => return Err(fault!("sparse indices {:?} do not fit {} values of {dims:?}", indices.dims, values.len())),
    };
    let width = values.dtype.bytes();
    if total.checked_mul(width).is_none_or(|n| n > 1 << 34) {
        return Err(fault!("a sparse tensor of dims {dims:?} is too large to be made dense"));
    }
    let mut out = vec![0u8; total * width];
    for (k, &i) in flat.iter().enumerate() {
        let at = usize::try_from(i).ok().filter(|&i| i < total).ok_or_else(|| fault!("sparse index {i} is outside {dims:?}"))?;
        out[at * width..(at + 1) * width].copy_from_slice(&values.bytes()[k * width..(k + 1) * width]);
    }
    Ok(Tensor::from_bytes(values.dtype, dims, out))
}

/// A tensor as a proto with raw data; elements below a byte are packed.
pub fn to_proto(name: &str, t: &Tensor) -> TensorProto {
    let mut p = TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(t.dtype.onnx()),
        dims: t.dims.iter().map(|&d| d as i64).collect(),
        ..TensorProto::default()
    };
    match &t.data {
        Data::Strings(s) => p.string_data = s.to_vec(),
        Data::Bytes(b) => {
            p.raw_data = Some(match t.dtype.bits() {
                bits @ (2 | 4) => {
                    let mask = (1u8 << bits) - 1;
                    let pack = |c: &[u8]| c.iter().enumerate().fold(0, |a, (k, &v)| a | (v & mask) << (bits * k as u32));
                    b.chunks(8 / bits as usize).map(pack).collect::<Vec<u8>>().into()
                }
                _ => b.clone(),
            })
        }
    }
    p
}

/// Reads a serialised `TensorProto`: its name and elements.
pub fn read_tensor_proto(bytes: impl Into<Bytes>) -> Result<(String, Tensor), Fault> {
    let p = TensorProto::decode(bytes.into()).map_err(|e| fault!("not a TensorProto: {e}"))?;
    Ok((p.name.clone().unwrap_or_default(), tensor(&p, &mut Files::default())?))
}

/// Serialises a tensor as a `TensorProto`.
pub fn write_tensor_proto(name: &str, t: &Tensor) -> Vec<u8> {
    to_proto(name, t).encode_to_vec()
}
