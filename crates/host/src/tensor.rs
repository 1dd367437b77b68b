//! Tensors of the host: a dtype by its ONNX number, dims, and bytes or strings.

use crate::Fault;
use crate::fault::fault;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Numbers of dtypes, as in ONNX's `TensorProto.DataType`.
pub mod dtype {
    #![allow(missing_docs, reason = "the names say it")]
    pub const F32: u8 = 1;
    pub const U8: u8 = 2;
    pub const I8: u8 = 3;
    pub const U16: u8 = 4;
    pub const I16: u8 = 5;
    pub const I32: u8 = 6;
    pub const I64: u8 = 7;
    pub const STRING: u8 = 8;
    pub const BOOL: u8 = 9;
    pub const F64: u8 = 11;
    pub const U32: u8 = 12;
    pub const U64: u8 = 13;

    /// Names and bytes of one element, by number; strings have no width. Types below 8 bits take a byte.
    const ALL: [(&str, usize); 27] = [
        ("", 0),
        ("f32", 4),
        ("u8", 1),
        ("i8", 1),
        ("u16", 2),
        ("i16", 2),
        ("i32", 4),
        ("i64", 8),
        ("string", 0),
        ("bool", 1),
        ("f16", 2),
        ("f64", 8),
        ("u32", 4),
        ("u64", 8),
        ("c64", 8),
        ("c128", 16),
        ("bf16", 2),
        ("f8e4m3fn", 1),
        ("f8e4m3fnuz", 1),
        ("f8e5m2", 1),
        ("f8e5m2fnuz", 1),
        ("u4", 1),
        ("i4", 1),
        ("f4e2m1", 1),
        ("f8e8m0", 1),
        ("u2", 1),
        ("i2", 1),
    ];

    /// Bytes of one element; `None` if there is no such dtype.
    pub fn width(code: u8) -> Option<usize> {
        ALL.get(usize::from(code)).filter(|d| !d.0.is_empty()).map(|d| d.1)
    }
    /// Its name: `f32`.
    pub fn name(code: u8) -> &'static str {
        ALL.get(usize::from(code)).map_or("unknown", |d| d.0)
    }
}

/// The elements of a tensor, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Fixed-width elements, little endian.
    Bytes(Bytes),
    /// Elements of dtype `string`.
    Strings(Arc<[Bytes]>),
}

/// A dense tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    dtype: u8,
    dims: Vec<usize>,
    data: Data,
}

/// Number of elements of `dims`, if that is a number, whatever dims are left out.
pub(crate) fn count(dims: &[usize]) -> Option<usize> {
    let all = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
    Some(if dims.contains(&0) { 0 } else { all })
}

impl Tensor {
    /// From dtype, dims and data that fit each other.
    pub fn new(dtype: u8, dims: Vec<usize>, data: Data) -> Result<Tensor, Fault> {
        let Some(width) = dtype::width(dtype) else { return Err(fault!("there is no dtype {dtype}")) };
        let fits = match &data {
            Data::Bytes(b) => dtype != dtype::STRING && count(&dims).and_then(|n| n.checked_mul(width)) == Some(b.len()),
            Data::Strings(s) => dtype == dtype::STRING && count(&dims) == Some(s.len()),
        };
        if fits { Ok(Tensor { dtype, dims, data }) } else { Err(fault!("{}{dims:?} has other data", dtype::name(dtype))) }
    }
    /// From raw bytes.
    pub fn from_bytes(dtype: u8, dims: Vec<usize>, bytes: impl Into<Bytes>) -> Result<Tensor, Fault> {
        Tensor::new(dtype, dims, Data::Bytes(bytes.into()))
    }
    /// Strings.
    pub fn from_strings(dims: Vec<usize>, strings: impl IntoIterator<Item = Bytes>) -> Result<Tensor, Fault> {
        Tensor::new(dtype::STRING, dims, Data::Strings(strings.into_iter().collect()))
    }
    /// Integers.
    pub fn from_ints(dims: Vec<usize>, values: &[i64]) -> Result<Tensor, Fault> {
        Tensor::from_bytes(dtype::I64, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }
    /// f32 numbers.
    pub fn from_floats(dims: Vec<usize>, values: &[f32]) -> Result<Tensor, Fault> {
        Tensor::from_bytes(dtype::F32, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }
    /// Bools.
    pub fn from_bools(dims: Vec<usize>, values: &[bool]) -> Result<Tensor, Fault> {
        Tensor::from_bytes(dtype::BOOL, dims, values.iter().map(|&b| u8::from(b)).collect::<Vec<u8>>())
    }
    /// A vector of `n` zeros, or empty strings.
    pub fn zeros(dtype: u8, n: usize) -> Result<Tensor, Fault> {
        match dtype::width(dtype) {
            _ if dtype == dtype::STRING => Tensor::from_strings(vec![n], filled(n, Bytes::new())?),
            width => Tensor::from_bytes(dtype, vec![n], filled(n.saturating_mul(width.unwrap_or(0)), 0u8)?),
        }
    }
    /// Its dtype.
    pub fn dtype(&self) -> u8 {
        self.dtype
    }
    /// Its dims.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }
    /// Its elements.
    pub fn data(&self) -> &Data {
        &self.data
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::Bytes(b) => b.len().checked_div(self.width()).unwrap_or(0),
            Data::Strings(s) => s.len(),
        }
    }
    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of one element; 0 for strings.
    pub(crate) fn width(&self) -> usize {
        dtype::width(self.dtype).unwrap_or(0)
    }
    /// The bytes; none for strings.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Bytes(b) => b,
            Data::Strings(_) => &[],
        }
    }
    /// The strings; none for other dtypes.
    pub fn strings(&self) -> &[Bytes] {
        match &self.data {
            Data::Bytes(_) => &[],
            Data::Strings(s) => s,
        }
    }
    /// The strings, of a tensor of strings.
    pub(crate) fn texts(&self) -> Result<&[Bytes], Fault> {
        match &self.data {
            Data::Strings(s) => Ok(s),
            Data::Bytes(_) => Err(fault!("{self} is given, strings are needed")),
        }
    }
    /// Raw bits of each element, widened.
    fn bits(&self) -> impl Iterator<Item = u64> + '_ {
        self.bytes().chunks_exact(self.width().clamp(1, 8)).map(|c| {
            let mut raw = [0u8; 8];
            raw[..c.len()].copy_from_slice(c);
            u64::from_le_bytes(raw)
        })
    }
    /// The elements of a tensor of integers or bools.
    pub fn ints(&self) -> Result<Vec<i64>, Fault> {
        let widen: fn(u64) -> i64 = match self.dtype {
            dtype::I8 => |b| i64::from(b as i8),
            dtype::I16 => |b| i64::from(b as i16),
            dtype::I32 => |b| i64::from(b as i32),
            dtype::I64 | dtype::U64 | dtype::U8 | dtype::U16 | dtype::U32 | dtype::BOOL => |b| b as i64,
            _ => return Err(fault!("{self} is given, integers are needed")),
        };
        Ok(self.bits().map(widen).collect())
    }
    /// The elements of a tensor of numbers.
    pub fn floats(&self) -> Result<Vec<f64>, Fault> {
        Ok(match self.dtype {
            dtype::F32 => self.bits().map(|b| f64::from(f32::from_bits(b as u32))).collect(),
            dtype::F64 => self.bits().map(f64::from_bits).collect(),
            dtype::U64 => self.bits().map(|b| b as f64).collect(),
            _ => self.ints().map_err(|_| fault!("{self} is given, numbers are needed"))?.into_iter().map(|v| v as f64).collect(),
        })
    }
    /// The same elements with other dims.
    pub fn reshape(&self, dims: Vec<usize>) -> Result<Tensor, Fault> {
        Tensor::new(self.dtype, dims, self.data.clone())
    }
    /// The elements at these places, in a tensor of these dims.
    pub(crate) fn pick(&self, dims: Vec<usize>, places: impl Iterator<Item = usize>) -> Result<Tensor, Fault> {
        let width = self.width();
        let data = match &self.data {
            Data::Strings(s) => Data::Strings(places.map(|p| s[p].clone()).collect()),
            Data::Bytes(b) => Data::Bytes(places.flat_map(|p| b[p * width..(p + 1) * width].iter().copied()).collect()),
        };
        Tensor::new(self.dtype, dims, data)
    }
    /// Elements `start..start + n` along `axis`.
    pub(crate) fn slice(&self, axis: usize, start: usize, n: usize) -> Result<Tensor, Fault> {
        let extent = self.dims[axis];
        if start.checked_add(n).is_none_or(|end| end > extent) {
            return Err(fault!("elements {start}..+{n} of {extent} are asked for"));
        }
        let mut dims = self.dims.clone();
        dims[axis] = n;
        let outer: usize = self.dims[..axis].iter().product();
        let inner: usize = self.dims[axis + 1..].iter().product();
        let (row, width) = (n * inner, self.width());
        if let (1, Data::Bytes(b)) = (outer, &self.data) {
            let at = start * inner * width;
            return Tensor::new(self.dtype, dims, Data::Bytes(b.slice(at..at + row * width)));
        }
        let rows = (0..outer).map(|o| (o * extent + start) * inner);
        let data = match &self.data {
            Data::Strings(s) => Data::Strings(rows.flat_map(|p| s[p..p + row].iter().cloned()).collect()),
            Data::Bytes(b) => {
                let mut out = Vec::with_capacity(outer * row * width);
                rows.for_each(|p| out.extend_from_slice(&b[p * width..(p + row) * width]));
                Data::Bytes(out.into())
            }
        };
        Tensor::new(self.dtype, dims, data)
    }
    /// Tensors one after the other along `axis`.
    pub(crate) fn concat(parts: &[Tensor], axis: usize) -> Result<Tensor, Fault> {
        let Some(first) = parts.first() else { return Err(fault!("there is nothing to join")) };
        let mut dims = first.dims.clone();
        dims[axis] = 0;
        for p in parts {
            let same = p.dtype == first.dtype
                && p.dims.len() == dims.len()
                && p.dims.iter().zip(&dims).enumerate().all(|(k, (a, b))| k == axis || a == b);
            if !same {
                return Err(fault!("{first} and {p} cannot be joined along axis {axis}"));
            }
            dims[axis] = dims[axis].checked_add(p.dims[axis]).ok_or_else(|| fault!("too many elements"))?;
        }
        let outer: usize = dims[..axis].iter().product();
        let row = |p: &Tensor| p.dims[axis..].iter().product::<usize>();
        let order = (0..outer).flat_map(|o| parts.iter().map(move |p| (p, o * row(p)..(o + 1) * row(p))));
        let data = match first.dtype {
            dtype::STRING => Data::Strings(order.flat_map(|(p, r)| p.strings()[r].iter().cloned()).collect()),
            _ => {
                let (mut out, width) = (vec![], first.width());
                order.for_each(|(p, r)| out.extend_from_slice(&p.bytes()[r.start * width..r.end * width]));
                Data::Bytes(out.into())
            }
        };
        Tensor::new(first.dtype, dims, data)
    }
}

/// A vector of `n` equal elements, if there is memory for it.
pub(crate) fn filled<T: Clone>(n: usize, value: T) -> Result<Vec<T>, Fault> {
    let mut out = vec![];
    out.try_reserve_exact(n).map_err(|_| fault!("there is no memory for {n} elements"))?;
    out.resize(n, value);
    Ok(out)
}

/// An axis of `rank` axes, counted from the end if negative.
pub(crate) fn normal_axis(axis: i64, rank: usize) -> Result<usize, Fault> {
    let r = rank as i64;
    let at = if axis < 0 { axis.saturating_add(r) } else { axis };
    if (0..r).contains(&at) { Ok(at as usize) } else { Err(fault!("axis {axis} is not in -{rank}..{rank}")) }
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", dtype::name(self.dtype), self.dims)
    }
}
