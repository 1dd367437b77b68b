//! Kernels for the tests of backends, and their memory. Each backend runs the same ones: random loop nests (`nests`) and every
//! scalar operation on edge values of every dtype (`operations`).

pub mod emulate;
pub mod nests;
pub mod operations;

use infc_ir::{DType, Expr, Scalar, eval};
use infc_kernel::loops::{Access, Axes, Boxes, Buffer, Kernel, LoopKind, Space, Stmt};

/// The variable that holds the task number in test kernels.
pub const TASK: u32 = 1000;

/// A buffer with row-major strides.
pub fn buffer(name: &str, dtype: DType, dims: &[Expr], space: Space, access: Access) -> Buffer {
    Buffer { name: name.into(), dtype, dims: dims.to_vec(), strides: Buffer::row_major(dims), space, access }
}

/// A kernel of one task.
pub fn kernel(buffers: Vec<Buffer>, symbols: &[&'static str], body: Vec<Stmt>) -> Kernel {
    Kernel {
        name: "test".into(),
        buffers,
        symbols: symbols.to_vec(),
        tasks: Expr::int(1),
        task: TASK,
        body,
        axes: Axes::default(),
        boxes: Boxes::default(),
    }
}

/// `for var in 0..extent`.
pub fn each(var: u32, extent: impl Into<Expr>, kind: LoopKind, body: Vec<Stmt>) -> Stmt {
    Stmt::For { var, extent: extent.into(), kind, body }
}

/// `buffer[index] = value`.
pub fn store(buffer: u32, index: &[Expr], value: Scalar) -> Stmt {
    Stmt::Store { buffer, index: index.iter().map(|&e| Scalar::index(e)).collect(), value }
}

/// Memory of values given as the 64 bits of `eval`.
pub fn memory(dtype: DType, values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|&v| eval::to_memory(dtype, v).to_le_bytes()[..dtype.bytes()].to_vec()).collect()
}

/// The values in memory, as the 64 bits of `eval`.
pub fn values(dtype: DType, bytes: &[u8]) -> Vec<u64> {
    let raw = |c: &[u8]| c.iter().rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
    bytes.chunks(dtype.bytes()).map(|c| eval::from_memory(dtype, raw(c))).collect()
}

/// f32 values as memory.
pub fn floats(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Memory as f32 values.
pub fn to_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

/// Values that are equal bit by bit, or both NaN.
pub fn same(dtype: DType, a: u64, b: u64) -> bool {
    a == b || dtype.is_float() && f64::from_bits(a).is_nan() && f64::from_bits(b).is_nan()
}

/// Shows a value.
pub fn show(dtype: DType, v: u64) -> String {
    if dtype.is_float() { format!("{:?}", f64::from_bits(v)) } else { (v as i64).to_string() }
}
