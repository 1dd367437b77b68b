//! Tensors with data: constants of a graph and values in the interpreter.
//!
//! Elements lie row-major, little-endian, without alignment: the bytes may be a slice of a mapped model file, shared and
//! never copied.

use crate::dtype::DType;
use crate::eval;
use bytes::Bytes;
use std::sync::Arc;

/// The elements of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Data {
    /// Fixed-width elements, `dtype.bytes()` each.
    Bytes(Bytes),
    /// Elements of dtype `string`.
    Strings(Arc<[Bytes]>),
}

/// A dense tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Dims.
    pub dims: Vec<usize>,
    /// Elements, row-major.
    pub data: Data,
}

/// A Rust type that is the memory form of a dtype.
pub trait Element: bytemuck::Pod {
    /// Its dtype.
    const DTYPE: DType;
}
macro_rules! elements { ($($t:ty => $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* } }
elements! { f32 => F32, f64 => F64, i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32, u64 => U64,
half::f16 => F16, half::bf16 => BF16 }

/// Number of elements of `dims`; the largest number there is where they are more.
pub fn count(dims: &[usize]) -> usize {
    if dims.contains(&0) { 0 } else { dims.iter().fold(1, |n: usize, &d| n.saturating_mul(d)) }
}

impl Tensor {
    /// From raw little-endian bytes; the length must fit.
    pub fn from_bytes(dtype: DType, dims: impl Into<Vec<usize>>, bytes: impl Into<Bytes>) -> Tensor {
        let (dims, bytes) = (dims.into(), bytes.into());
        assert_eq!(bytes.len(), count(&dims) * dtype.bytes(), "{dtype}{dims:?} does not take {} bytes", bytes.len());
        Tensor { dtype, dims, data: Data::Bytes(bytes) }
    }
    /// From elements.
    pub fn from_vec<T: Element>(dims: impl Into<Vec<usize>>, values: Vec<T>) -> Tensor {
        Tensor::from_bytes(T::DTYPE, dims, bytemuck::cast_slice(&values).to_vec())
    }
    /// From bools.
    pub fn from_bools(dims: impl Into<Vec<usize>>, values: &[bool]) -> Tensor {
        Tensor::from_bytes(DType::Bool, dims, values.iter().map(|&b| u8::from(b)).collect::<Vec<u8>>())
    }
    /// A 1-D `i64` tensor, or a scalar.
    pub fn from_ints(values: &[i64]) -> Tensor {
        Tensor::from_vec([values.len()], values.to_vec())
    }
    /// From strings.
    pub fn from_strings(dims: impl Into<Vec<usize>>, values: impl IntoIterator<Item = Bytes>) -> Tensor {
        let (dims, values): (Vec<usize>, Arc<[Bytes]>) = (dims.into(), values.into_iter().collect());
        assert_eq!(values.len(), count(&dims), "string tensor {dims:?} with {} elements", values.len());
        Tensor { dtype: DType::String, dims, data: Data::Strings(values) }
    }
    /// From values in the 64-bit form of [`crate::eval`].
    pub fn from_values(dtype: DType, dims: impl Into<Vec<usize>>, values: impl IntoIterator<Item = u64>) -> Tensor {
        let width = dtype.bytes();
        let values = values.into_iter();
        let mut bytes = Vec::with_capacity(values.size_hint().0 * width);
        for v in values {
            bytes.extend_from_slice(&eval::to_memory(dtype, v).to_le_bytes()[..width]);
        }
        Tensor::from_bytes(dtype, dims, bytes)
    }
    /// All zeros (or false).
    pub fn zeros(dtype: DType, dims: impl Into<Vec<usize>>) -> Tensor {
        let dims = dims.into();
        let bytes = vec![0; count(&dims) * dtype.bytes()];
        Tensor::from_bytes(dtype, dims, bytes)
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        count(&self.dims)
    }
    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The raw bytes; empty for strings.
    pub fn bytes(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match &self.data {
            Data::Bytes(b) => b,
            Data::Strings(_) => &NONE,
        }
    }
    /// The strings; empty for other dtypes.
    pub fn strings(&self) -> &[Bytes] {
        match &self.data {
            Data::Bytes(_) => &[],
            Data::Strings(s) => s,
        }
    }
    /// A copy of the elements as `T`; panics on another dtype (check `dtype` first).
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        assert_eq!(self.dtype, T::DTYPE);
        bytemuck::pod_collect_to_vec(self.bytes())
    }
    /// Element `i` in the 64-bit form of [`crate::eval`].
    pub fn value(&self, i: usize) -> u64 {
        let width = self.dtype.bytes();
        let mut raw = [0u8; 8];
        raw[..width].copy_from_slice(&self.bytes()[i * width..(i + 1) * width]);
        eval::from_memory(self.dtype, u64::from_le_bytes(raw))
    }
    /// Element `i` as `f64`.
    pub fn float(&self, i: usize) -> f64 {
        f64::from_bits(eval::cast(self.dtype, DType::F64, self.value(i)))
    }
    /// All elements of an integer or bool tensor.
    pub fn to_ints(&self) -> Vec<i64> {
        (0..self.len()).map(|i| eval::cast(self.dtype, DType::I64, self.value(i)) as i64).collect()
    }
    /// The same bytes with other dims (of equal count).
    pub fn reshape(&self, dims: impl Into<Vec<usize>>) -> Tensor {
        let dims = dims.into();
        assert_eq!(count(&dims), self.len(), "reshape changes the element count");
        Tensor { dims, ..self.clone() }
    }
}
