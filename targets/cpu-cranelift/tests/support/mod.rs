//! Runs emitted code in this process.

#![allow(dead_code, reason = "each test file uses a part")]

use infc_cpu_cranelift::{Cranelift, machines, supported};
use infc_kernel::backend::Code;
#[allow(unused_imports, reason = "each test file uses a part")]
pub use infc_test_kernels::{buffer, each, floats, kernel, memory, same, show, store, to_floats, values};

/// The machines that this computer runs.
pub fn hosts() -> Vec<Cranelift> {
    machines().into_iter().filter(supported).map(Cranelift::new).collect()
}

/// Those that it does not.
pub fn others() -> Vec<Cranelift> {
    machines().into_iter().filter(|m| !supported(m)).map(Cranelift::new).collect()
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
