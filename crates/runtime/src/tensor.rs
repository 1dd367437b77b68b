//! Element types and borrowed tensors: what goes into a session and comes out.

use crate::error::{Error, fail};
use core::fmt;
use infc_artifact::dtype;

/// An element type, by its number in ONNX's `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DType(pub u8);

impl DType {
    /// Its name: `f32`.
    pub fn name(self) -> &'static str {
        dtype::name(self.0).unwrap_or("unknown")
    }
    /// Bytes of one element. Types below 8 bits take a byte.
    pub fn bytes(self) -> usize {
        dtype::bytes(self.0).unwrap_or(0).into()
    }
    /// Alignment of its elements in memory.
    pub fn align(self) -> usize {
        dtype::align(dtype::bytes(self.0).unwrap_or(1))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that is an element type.
///
/// # Safety
/// `DTYPE` has the size of the type, and every bit pattern that the type has no value for is one that models never write.
pub unsafe trait Element: Copy + 'static {
    /// The element type.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($ty:ty = $code:literal)*) => {
        // Safety: plain numbers of the width of the dtype; a bool is written as 0 or 1 by compiled code.
        $(unsafe impl Element for $ty { const DTYPE: DType = DType($code); })*
    };
}

elements! { f32 = 1 u8 = 2 i8 = 3 u16 = 4 i16 = 5 i32 = 6 i64 = 7 f64 = 11 u32 = 12 u64 = 13 }

/// A tensor in somebody else's memory: row-major elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorRef<'a> {
    /// Element type.
    pub dtype: DType,
    /// Dims.
    pub dims: &'a [i64],
    /// Its elements.
    pub bytes: &'a [u8],
}

impl<'a> TensorRef<'a> {
    /// A tensor of these values.
    pub fn of<T: Element>(dims: &'a [i64], values: &'a [T]) -> TensorRef<'a> {
        // Safety: elements are plain numbers without padding.
        let bytes = unsafe { core::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        TensorRef { dtype: T::DTYPE, dims, bytes }
    }
    /// Its values, if they are of this type.
    pub fn values<T: Element>(&self) -> Result<&'a [T], Error> {
        if self.dtype != T::DTYPE {
            fail!(Output, "the tensor is {}, not {}", self.dtype, T::DTYPE);
        }
        if !self.bytes.as_ptr().cast::<T>().is_aligned() {
            fail!(Output, "the tensor's memory is not aligned for {}", self.dtype);
        }
        // Safety: the dtype is T's, the memory is aligned for it, and any bits are a number.
        Ok(unsafe { core::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() / size_of::<T>()) })
    }
    /// Bytes that a tensor needs; `None` if a dim is negative or the product too large.
    pub fn bytes_of(dtype: DType, dims: &[i64]) -> Option<usize> {
        dims.iter().try_fold(dtype.bytes(), |product, &d| product.checked_mul(usize::try_from(d).ok()?))
    }
}

impl fmt::Display for TensorRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.dims)
    }
}
