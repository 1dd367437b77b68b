//! Runs emitted code in this process, and builds small kernels.

#![allow(dead_code, reason = "each test file uses a part")]

use infc_cpu_llvm::{Llvm, machines, supported};
use infc_ir::{DType, Expr, Scalar, eval};
use infc_kernel::backend::{Backend, Code};
use infc_kernel::loops::{Access, Buffer, Kernel, LoopKind, Space, Stmt};

/// The variable that holds the task number in test kernels.
pub const TASK: u32 = 1000;

/// The machines that this computer runs.
pub fn hosts() -> Vec<Llvm> {
    machines().into_iter().filter(supported).map(Llvm::new).collect()
}

/// Runs kernel `index` of the code for all its tasks.
pub fn call(code: &Code, index: usize, buffers: &mut [Vec<u8>], extents: &[i64], tasks: i64) -> u64 {
    let mut map = memmap2::MmapMut::map_anon(code.image.len()).unwrap();
    map.copy_from_slice(&code.image);
    let map = map.make_exec().unwrap();
    let pointers: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr()).collect();
    let mut scratch = vec![0u8; code.scratch[index] as usize + 64];
    let aligned = scratch.as_mut_ptr().wrapping_add(scratch.as_ptr().align_offset(64));
    type Entry = unsafe extern "C" fn(*const *mut u8, *const i64, *mut u8, i64, i64) -> u64;
    // Safety: the offset is that of a function of the kernel ABI in an executable mapping that outlives the call; the buffers are as
    // large as the kernel's (the test's duty).
    unsafe {
        let entry: Entry = std::mem::transmute(map.as_ptr().add(code.entries[index] as usize));
        entry(pointers.as_ptr(), extents.as_ptr(), aligned, 0, tasks)
    }
}

/// Emits one kernel and runs it.
pub fn run(llvm: &Llvm, kernel: &Kernel, buffers: &mut [Vec<u8>], extents: &[i64]) -> u64 {
    let code = llvm.emit(std::slice::from_ref(kernel)).unwrap_or_else(|e| panic!("{e}"));
    let symbols = &kernel.symbols;
    let leaf = |e: Expr| match e.node() {
        infc_ir::expr::Node::Sym(s) => symbols.iter().position(|x| x == s).map(|i| extents[i]),
        _ => None,
    };
    call(&code, 0, buffers, extents, kernel.tasks.eval(&leaf).unwrap())
}

/// A buffer with row-major strides.
pub fn buffer(name: &str, dtype: DType, dims: &[Expr], space: Space, access: Access) -> Buffer {
    Buffer { name: name.into(), dtype, dims: dims.to_vec(), strides: Buffer::row_major(dims), space, access }
}

/// A kernel of one task.
pub fn kernel(buffers: Vec<Buffer>, symbols: &[&'static str], body: Vec<Stmt>) -> Kernel {
    Kernel { name: "test".into(), buffers, symbols: symbols.to_vec(), tasks: Expr::int(1), task: TASK, body }
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
