// Runs emitted code in this process, or where it is for another architecture in an emulator. The tests that all backends for CPUs share include it.

use infc_cpu_llvm::{Llvm, machines, supported};
use infc_ir::{DType, Expr, Tensor};
use infc_kernel::backend::{Backend, Code};
use infc_kernel::build::Operand;
use infc_kernel::loops::{Access, Buffer, Kernel, Space};
use infc_kernel::target::TargetDesc;
use infc_test_kernels::emulate;
#[allow(unused_imports, reason = "each test file uses a part")]
pub use infc_test_kernels::{buffer, each, floats, kernel, memory, same, show, store, to_floats, values};

/// The backend under test.
pub type Machine = Llvm;

/// Can this computer run the machine's code, if instructions that it lacks are executed when they trap, and other architectures are emulated?
pub fn runs(machine: &TargetDesc) -> bool {
    if emulate::covers(&machine.arch) {
        return true;
    }
    infc_trapvm::install();
    let features = machine.features.iter().filter(|f| !infc_trapvm::covers(f)).cloned().collect();
    supported(&TargetDesc { features, ..machine.clone() })
}

/// The machines that this computer runs so.
pub fn hosts() -> Vec<Llvm> {
    machines().into_iter().filter(runs).map(Llvm::new).collect()
}

/// Those of this computer's own architecture.
pub fn here() -> Vec<Llvm> {
    hosts().into_iter().filter(|l| !emulate::covers(&l.target().arch)).collect()
}

/// Runs kernel `index` of the code for all its tasks.
pub fn call(llvm: &Llvm, code: &Code, index: usize, buffers: &mut [Vec<u8>], extents: &[i64], tasks: i64) -> u64 {
    let target = llvm.target();
    if emulate::covers(&target.arch) {
        return emulate::call(target, code, index, buffers, extents, tasks);
    }
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
    call(llvm, &code, 0, buffers, extents, kernel.tasks.eval(&leaf).unwrap())
}

/// A tensor of f32 that lies row-major, as a builder sees it.
pub fn operand(dims: &[usize], constant: Option<Tensor>) -> Operand {
    let dims: Vec<Expr> = dims.iter().map(|&d| Expr::from(d)).collect();
    let strides = Buffer::row_major(&dims);
    Operand {
        shift: vec![0; dims.len()],
        buffer: Buffer { name: String::new(), dtype: DType::F32, dims, strides, space: Space::Global, access: Access::Read },
        zeros: vec![],
        constant,
        tf32: false,
        narrow: None,
    }
}
