//! The functions of NVIDIA's driver that the runtime calls, over the PTX interpreter, so that tests run the runtime's own code without
//! a GPU: `INFC_CUDA_DRIVER` names this library.
//!
//! Work waits in its stream until somebody waits for the stream, so that a missing wait shows. Environment variables make the
//! device worse: `INFC_FAKE_CUDA_DEVICES` (their number), `INFC_FAKE_CUDA_CAPABILITY` (`8.0`), `INFC_FAKE_CUDA_MEMORY` (bytes), `INFC_FAKE_CUDA_REGISTERS` (0: memory of others cannot be registered). With
//! `INFC_FAKE_CUDA_LOG` each call of the driver is a line in this file.

#![allow(missing_docs, reason = "they are those of `cuda.h`")]
#![allow(non_snake_case, reason = "names of the driver's functions")]
#![allow(clippy::missing_safety_doc, reason = "every function is called as `cuda.h` says, which has the conditions")]

use infc_ptxvm::{Grid, Kernel, Memory, Module, TensorMap, launch};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io::Write;
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::time::Instant;

const SUCCESS: c_int = 0;
const INVALID_VALUE: c_int = 1;
const OUT_OF_MEMORY: c_int = 2;
const NO_DEVICE: c_int = 100;
const INVALID_PTX: c_int = 218;
const NOT_FOUND: c_int = 500;
const NOT_READY: c_int = 600;
const ILLEGAL_ADDRESS: c_int = 700;
const NOT_PERMITTED: c_int = 800;

/// A piece of work in a stream.
#[derive(Clone)]
enum Work {
    ToDevice { to: u64, from: usize, bytes: usize },
    ToHost { to: usize, from: u64, bytes: usize },
    OnDevice { to: u64, from: u64, bytes: usize },
    Mark { event: u64 },
    Launch { kernel: u64, grid: Grid, parameters: Vec<u8> },
}

#[derive(Default)]
struct Stream {
    queue: Vec<Work>,
    /// Work that is recorded instead of queued.
    capture: Option<Vec<Work>>,
}

#[derive(Default)]
struct State {
    memory: Memory,
    modules: HashMap<u64, Module>,
    /// Module and name of each kernel.
    kernels: HashMap<u64, Kernel>,
    /// The most shared memory that a launch may give a kernel, where that was said.
    most_shared: HashMap<u64, c_uint>,
    streams: HashMap<u64, Stream>,
    graphs: HashMap<u64, Vec<Work>>,
    /// When each event was.
    events: HashMap<u64, Option<Instant>>,
    pinned: HashMap<usize, Vec<u64>>,
    /// Memory of others that was registered, with its bytes.
    registered: HashMap<usize, usize>,
    next: u64,
    /// What went wrong last, for `cuGetErrorString`.
    fault: Option<CString>,
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(|e| e.into_inner())
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn log(call: &str) {
    if let Ok(path) = std::env::var("INFC_FAKE_CUDA_LOG")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = writeln!(file, "{call}");
    }
}

impl State {
    fn handle(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
    fn queue(&mut self, stream: *mut c_void, work: Work) -> c_int {
        match self.streams.get_mut(&(stream as u64)) {
            None => INVALID_VALUE,
            Some(Stream { capture: Some(list), .. }) => {
                list.push(work);
                SUCCESS
            }
            Some(s) => {
                s.queue.push(work);
                SUCCESS
            }
        }
    }
    /// Does a copy that is queued use host memory of this range?
    fn in_use(&self, start: usize, bytes: usize) -> bool {
        self.streams.values().flat_map(|s| &s.queue).any(|work| match *work {
            Work::ToDevice { from: at, bytes: n, .. } | Work::ToHost { to: at, bytes: n, .. } => {
                at < start + bytes && start < at + n
            }
            _ => false,
        })
    }
    fn fail(&mut self, what: String) -> c_int {
        eprintln!("fake driver: {what}");
        self.fault = CString::new(what).ok();
        ILLEGAL_ADDRESS
    }
    /// # Safety
    /// Host memory of copies is alive, as callers of the driver promise.
    unsafe fn run(&mut self, work: Work) -> c_int {
        match work {
            Work::ToDevice { to, from, bytes } => {
                // Safety: by the caller.
                let source = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) };
                match self.memory.get_mut(to, bytes) {
                    Some(place) => place.copy_from_slice(source),
                    None => return self.fail(format!("a copy of {bytes} bytes to {to:#x}, which is no memory")),
                }
            }
            Work::ToHost { to, from, bytes } => match self.memory.get(from, bytes) {
                // Safety: by the caller.
                Some(source) => unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) }.copy_from_slice(source),
                None => return self.fail(format!("a copy of {bytes} bytes from {from:#x}, which is no memory")),
            },
            Work::OnDevice { to, from, bytes } => {
                let Some(source) = self.memory.get(from, bytes).map(<[u8]>::to_vec) else {
                    return self.fail(format!("a copy of {bytes} bytes from {from:#x}, which is no memory"));
                };
                match self.memory.get_mut(to, bytes) {
                    Some(place) => place.copy_from_slice(&source),
                    None => return self.fail(format!("a copy of {bytes} bytes to {to:#x}, which is no memory")),
                }
            }
            Work::Mark { event } => match self.events.get_mut(&event) {
                Some(time) => *time = Some(Instant::now()),
                None => return INVALID_VALUE,
            },
            Work::Launch { kernel, grid, parameters } => {
                let State { kernels, memory, .. } = self;
                if let Err(fault) = launch(&kernels[&kernel], grid, &parameters, memory) {
                    return self.fail(fault.to_string());
                }
            }
        }
        SUCCESS
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(_: c_uint) -> c_int {
    log("init");
    if setting("INFC_FAKE_CUDA_DEVICES", 1) == 0 { NO_DEVICE } else { SUCCESS }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(out: *mut c_int) -> c_int {
    // Safety: by the caller.
    unsafe { *out = 12040 };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(out: *mut c_int) -> c_int {
    // Safety: by the caller.
    unsafe { *out = setting("INFC_FAKE_CUDA_DEVICES", 1) as c_int };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(out: *mut c_int, number: c_int) -> c_int {
    // Safety: by the caller.
    unsafe { *out = number };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(out: *mut c_char, len: c_int, _: c_int) -> c_int {
    let name = c"Interpreter of PTX".to_bytes_with_nul();
    if (len as usize) < name.len() {
        return INVALID_VALUE;
    }
    // Safety: by the caller there is room for `len` characters.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr().cast(), out, name.len()) };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(out: *mut c_int, which: c_int, _: c_int) -> c_int {
    let capability = std::env::var("INFC_FAKE_CUDA_CAPABILITY").unwrap_or_else(|_| "9.0".to_owned());
    let (major, minor) = capability.split_once('.').unwrap_or(("9", "0"));
    let value = match which {
        16 => 4,
        75 => major.parse().unwrap_or(9),
        76 => minor.parse().unwrap_or(0),
        _ => return INVALID_VALUE,
    };
    // Safety: by the caller.
    unsafe { *out = value };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(out: *mut *mut c_void, _: c_int) -> c_int {
    // Safety: by the caller.
    unsafe { *out = std::ptr::dangling_mut() };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(_: *mut c_void) -> c_int {
    SUCCESS
}
fn total() -> u64 {
    setting("INFC_FAKE_CUDA_MEMORY", 8 << 30)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, all: *mut usize) -> c_int {
    let used = state().memory.used();
    // Safety: by the caller.
    unsafe {
        *free = total().saturating_sub(used) as usize;
        *all = total() as usize;
    }
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(out: *mut u64, bytes: usize) -> c_int {
    log("alloc");
    let mut s = state();
    if bytes == 0 {
        return INVALID_VALUE;
    }
    if s.memory.used() + bytes as u64 > total() {
        return OUT_OF_MEMORY;
    }
    // Safety: by the caller. Fresh memory holds anything.
    unsafe { *out = s.memory.insert(vec![0xa5; bytes]) };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(at: u64) -> c_int {
    log("free");
    if state().memory.remove(at).is_some() { SUCCESS } else { INVALID_VALUE }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(out: *mut *mut c_void, bytes: usize) -> c_int {
    log("alloc_host");
    let mut memory = vec![0xa5a5_a5a5_a5a5_a5a5u64; bytes.div_ceil(8)];
    let start = memory.as_mut_ptr();
    state().pinned.insert(start as usize, memory);
    // Safety: by the caller.
    unsafe { *out = start.cast() };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(at: *mut c_void) -> c_int {
    log("free_host");
    let mut s = state();
    match s.pinned.remove(&(at as usize)) {
        Some(memory) if s.in_use(at as usize, memory.len() * 8) => {
            s.fail("memory of the host is freed while a copy uses it".into())
        }
        Some(_) => SUCCESS,
        None => INVALID_VALUE,
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostRegister_v2(at: *mut c_void, bytes: usize, _: c_uint) -> c_int {
    log("host_register");
    let (mut s, at) = (state(), at as usize);
    if setting("INFC_FAKE_CUDA_REGISTERS", 1) == 0 {
        return NOT_PERMITTED;
    }
    if s.registered.iter().any(|(&start, &n)| start < at + bytes && at < start + n) {
        s.fail("memory of the host is registered twice".into());
        return INVALID_VALUE;
    }
    s.registered.insert(at, bytes);
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostUnregister(at: *mut c_void) -> c_int {
    log("host_unregister");
    let mut s = state();
    match s.registered.remove(&(at as usize)) {
        Some(bytes) if s.in_use(at as usize, bytes) => s.fail("memory of the host is unregistered while a copy uses it".into()),
        Some(_) => SUCCESS,
        None => INVALID_VALUE,
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: *mut c_void) -> c_int {
    log("to_device");
    state().queue(stream, Work::ToDevice { to, from: from as usize, bytes })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: *mut c_void) -> c_int {
    log("to_host");
    state().queue(stream, Work::ToHost { to: to as usize, from, bytes })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: *mut c_void) -> c_int {
    log("on_device");
    state().queue(stream, Work::OnDevice { to, from, bytes })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    out: *mut *mut c_void,
    image: *const c_void,
    count: c_uint,
    options: *mut c_int,
    values: *mut *mut c_void,
) -> c_int {
    log("module_load");
    // Safety: by the caller the image is a string.
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
    match Module::parse(&text) {
        Ok(module) => {
            let mut s = state();
            let handle = s.handle();
            s.modules.insert(handle, module);
            // Safety: by the caller.
            unsafe { *out = handle as *mut c_void };
            SUCCESS
        }
        Err(fault) => {
            // Option 5 is a buffer for the error, 6 its size.
            let find = |which| {
                // Safety: by the caller there are `count` options and values.
                (0..count as usize).find(|&i| unsafe { *options.add(i) } == which).map(|i| unsafe { *values.add(i) })
            };
            if let (Some(buffer), Some(size)) = (find(5), find(6)) {
                let message = fault.to_string();
                let len = message.len().min(size as usize);
                // Safety: by the caller.
                unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), buffer.cast(), len) };
            }
            INVALID_PTX
        }
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: *mut c_void) -> c_int {
    log("module_unload");
    if state().modules.remove(&(module as u64)).is_some() { SUCCESS } else { INVALID_VALUE }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(out: *mut *mut c_void, module: *mut c_void, name: *const c_char) -> c_int {
    // Safety: by the caller.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let mut s = state();
    let Some(kernel) = s.modules.get(&(module as u64)).and_then(|m| m.kernel(&name)).cloned() else { return NOT_FOUND };
    let handle = s.handle();
    s.kernels.insert(handle, kernel);
    // Safety: by the caller.
    unsafe { *out = handle as *mut c_void };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: *mut c_void, attribute: c_int, value: c_int) -> c_int {
    log("function_attribute");
    let mut s = state();
    // Attribute 8 is the most shared memory that a launch may give; a block of compute capability 9.0 has 227 KB.
    if !s.kernels.contains_key(&(function as u64)) || attribute != 8 || !(0..=227 << 10).contains(&value) {
        return INVALID_VALUE;
    }
    s.most_shared.insert(function as u64, value as c_uint);
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: *mut c_void,
    parameters: *mut *mut c_void,
    _: *mut *mut c_void,
) -> c_int {
    log("launch");
    let mut s = state();
    let Some(kernel) = s.kernels.get(&(function as u64)) else { return INVALID_VALUE };
    if shared > s.most_shared.get(&(function as u64)).copied().unwrap_or(48 << 10) {
        return INVALID_VALUE;
    }
    let mut bytes = vec![0u8; kernel.parameters_len()];
    for (i, (size, offset)) in kernel.parameter_bytes().zip(kernel.parameter_offsets()).enumerate() {
        // Safety: by the caller each parameter has as many bytes as the kernel declares.
        unsafe { std::ptr::copy_nonoverlapping((*parameters.add(i)).cast(), bytes.as_mut_ptr().add(offset), size) };
    }
    let grid = Grid { blocks: [grid_x, grid_y, grid_z], threads: [block_x, block_y, block_z], shared: shared as usize };
    s.queue(stream, Work::Launch { kernel: function as u64, grid, parameters: bytes })
}
/// The map in a form of our own, which the interpreter reads. Only what the runtime asks for: the swizzle of 128 bytes, zeros outside.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    out: *mut c_void,
    dtype: c_int,
    rank: c_uint,
    address: *mut c_void,
    sizes: *const u64,
    strides: *const u64,
    parts: *const c_uint,
    steps: *const c_uint,
    interleave: c_int,
    swizzle: c_int,
    _: c_int,
    fill: c_int,
) -> c_int {
    log("tensor_map");
    let width = match dtype {
        0 => 1,
        1 | 6 | 9 => 2,
        2 | 3 | 7 | 10..=12 => 4,
        4 | 5 | 8 => 8,
        _ => return INVALID_VALUE,
    };
    if (interleave, swizzle, fill) != (0, 3, 0) || !(1..=5).contains(&rank) || out as usize % 64 != 0 {
        return INVALID_VALUE;
    }
    let (mut axes, mut plain) = (vec![], true);
    for k in 0..rank as usize {
        // Safety: by the caller there are `rank` sizes, extents of boxes and steps, and one stride less.
        unsafe {
            let stride = if k == 0 { width as u64 } else { *strides.add(k - 1) };
            axes.push((*sizes.add(k), stride, *parts.add(k)));
            plain &= *steps.add(k) == 1;
        }
    }
    match (TensorMap { width, address: address as u64, axes }).encode() {
        Ok(map) if plain => {
            // Safety: by the caller a map has 128 bytes.
            unsafe { std::ptr::copy_nonoverlapping(map.as_ptr(), out.cast(), map.len()) };
            SUCCESS
        }
        Ok(_) => INVALID_VALUE,
        Err(what) => {
            eprintln!("fake driver: {what}");
            INVALID_VALUE
        }
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(out: *mut *mut c_void, _: c_uint) -> c_int {
    let mut s = state();
    let handle = s.handle();
    s.streams.insert(handle, Stream::default());
    // Safety: by the caller.
    unsafe { *out = handle as *mut c_void };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> c_int {
    if state().streams.remove(&(stream as u64)).is_some() { SUCCESS } else { INVALID_VALUE }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> c_int {
    log("wait");
    let mut s = state();
    let Some(st) = s.streams.get_mut(&(stream as u64)) else { return INVALID_VALUE };
    for work in std::mem::take(&mut st.queue) {
        // Safety: by the callers that queued it.
        let status = unsafe { s.run(work) };
        if status != SUCCESS {
            return status;
        }
    }
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: *mut c_void, _: c_uint) -> c_int {
    log("capture");
    match state().streams.get_mut(&(stream as u64)) {
        Some(s) if s.capture.is_none() => {
            s.capture = Some(vec![]);
            SUCCESS
        }
        _ => INVALID_VALUE,
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: *mut c_void, out: *mut *mut c_void) -> c_int {
    let mut s = state();
    let Some(work) = s.streams.get_mut(&(stream as u64)).and_then(|s| s.capture.take()) else { return INVALID_VALUE };
    let handle = s.handle();
    s.graphs.insert(handle, work);
    // Safety: by the caller.
    unsafe { *out = handle as *mut c_void };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(out: *mut *mut c_void, graph: *mut c_void, _: u64) -> c_int {
    let mut s = state();
    let Some(work) = s.graphs.get(&(graph as u64)).cloned() else { return INVALID_VALUE };
    let handle = s.handle();
    s.graphs.insert(handle, work);
    // Safety: by the caller.
    unsafe { *out = handle as *mut c_void };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(graph: *mut c_void, stream: *mut c_void) -> c_int {
    log("graph_launch");
    let mut s = state();
    let Some(work) = s.graphs.get(&(graph as u64)).cloned() else { return INVALID_VALUE };
    work.into_iter().map(|w| s.queue(stream, w)).find(|&status| status != SUCCESS).unwrap_or(SUCCESS)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(graph: *mut c_void) -> c_int {
    if state().graphs.remove(&(graph as u64)).is_some() { SUCCESS } else { INVALID_VALUE }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: *mut c_void) -> c_int {
    if state().graphs.remove(&(graph as u64)).is_some() { SUCCESS } else { INVALID_VALUE }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(out: *mut *mut c_void, flags: c_uint) -> c_int {
    log("event");
    let mut s = state();
    let handle = s.handle();
    s.events.insert(handle, None);
    // Safety: by the caller.
    unsafe { *out = handle as *mut c_void };
    if flags == 0 { SUCCESS } else { INVALID_VALUE }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> c_int {
    log("event_destroy");
    if state().events.remove(&(event as u64)).is_some() { SUCCESS } else { INVALID_VALUE }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecordWithFlags(event: *mut c_void, stream: *mut c_void, flags: c_uint) -> c_int {
    let mut s = state();
    // Flag 1, without which nothing is recorded in a graph, is for captures alone.
    let capturing = s.streams.get(&(stream as u64)).is_some_and(|s| s.capture.is_some());
    if flags != c_uint::from(capturing) {
        return INVALID_VALUE;
    }
    s.queue(stream, Work::Mark { event: event as u64 })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(out: *mut f32, start: *mut c_void, end: *mut c_void) -> c_int {
    let s = state();
    match [start, end].map(|e| s.events.get(&(e as u64)).copied().flatten()) {
        [Some(start), Some(end)] => {
            // Safety: by the caller.
            unsafe { *out = end.duration_since(start).as_secs_f32() * 1e3 };
            SUCCESS
        }
        _ => NOT_READY,
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(status: c_int, out: *mut *const c_char) -> c_int {
    let name = match status {
        SUCCESS => c"CUDA_SUCCESS",
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        NOT_READY => c"CUDA_ERROR_NOT_READY",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        NOT_PERMITTED => c"CUDA_ERROR_NOT_PERMITTED",
        _ => return INVALID_VALUE,
    };
    // Safety: by the caller.
    unsafe { *out = name.as_ptr() };
    SUCCESS
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(status: c_int, out: *mut *const c_char) -> c_int {
    let text = match status {
        OUT_OF_MEMORY => c"out of memory",
        NO_DEVICE => c"no CUDA-capable device is detected",
        INVALID_PTX => c"a PTX JIT compilation failed",
        NOT_FOUND => c"named symbol not found",
        ILLEGAL_ADDRESS => c"an illegal memory access was encountered",
        _ => c"",
    };
    let s = state();
    let text = match &s.fault {
        // The strings of faults live on: a test ends soon.
        Some(f) if status == ILLEGAL_ADDRESS => Box::leak(f.clone().into_boxed_c_str()),
        _ => text,
    };
    // Safety: by the caller.
    unsafe { *out = text.as_ptr() };
    SUCCESS
}
