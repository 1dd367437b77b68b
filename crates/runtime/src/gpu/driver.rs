//! NVIDIA's driver: the functions of its library that we call, found by name in a library that is opened when a model needs it.
//!
//! Nothing of CUDA is needed to build this, nor to run models for CPUs. `INFC_CUDA_DRIVER` names another library than `libcuda.so.1`
//! (Windows: `nvcuda.dll`).

use super::library::Library;
use crate::error::{Error, ErrorKind};
use alloc::format;
use alloc::string::{String, ToString};
use core::cell::Cell;
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ffi::CString;
use std::sync::OnceLock;

/// The driver's library, where the environment names no other one.
const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

/// What a function of the driver gives: 0 is success.
type Status = c_int;
/// An address in device memory.
pub(crate) type Address = u64;
/// A pointer to something of the driver's.
pub(crate) type Handle = *mut c_void;

/// `cuTensorMapEncodeTiled`: map, dtype, axes, address, extents, strides, extents of boxes, steps, interleave, swizzle, promotion in L2, fill.
type EncodeMap = unsafe extern "C" fn(
    *mut MapBytes,
    c_int,
    c_uint,
    *mut c_void,
    *const u64,
    *const u64,
    *const c_uint,
    *const c_uint,
    c_int,
    c_int,
    c_int,
    c_int,
) -> Status;

/// A tensor map, as kernels take it.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct MapBytes([u8; 128]);

/// The most axes of a tensor map.
pub(crate) const MOST_AXES: usize = 5;

/// What a tensor map says of its tensor; each list begins with the axis of neighbours, which has no stride.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// The number of the dtype in `cuda.h`.
    pub(crate) dtype: c_int,
    /// Number of axes.
    pub(crate) rank: usize,
    /// Extents.
    pub(crate) sizes: [u64; MOST_AXES],
    /// Distances in bytes, from the second axis on.
    pub(crate) strides: [u64; MOST_AXES],
    /// Extents of boxes.
    pub(crate) parts: [c_uint; MOST_AXES],
}

macro_rules! functions {
    ($($field:ident $name:literal ($($argument:ty),*);)*) => {
        /// The functions, as `cuda.h` declares them.
        pub(crate) struct Driver {
            $($field: unsafe extern "C" fn($($argument),*) -> Status,)*
            /// Not in drivers before CUDA 12.
            encode_map: Option<EncodeMap>,
        }

        impl Driver {
            fn open(library: &str) -> Result<Driver, String> {
                let library = Library::open(library)?;
                Ok(Driver { $($field: {
                    let name = CStr::from_bytes_with_nul(concat!($name, "\0").as_bytes()).expect("it ends with a zero");
                    let found = library.find(name);
                    if found.is_null() {
                        return Err(format!("it has no function {}: it is too old", $name));
                    }
                    // Safety: `cuda.h` declares the function with these arguments.
                    unsafe { core::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> Status>(found) }
                },)*
                encode_map: {
                    let found = library.find(c"cuTensorMapEncodeTiled");
                    // Safety: as above.
                    (!found.is_null()).then(|| unsafe { core::mem::transmute::<*mut c_void, EncodeMap>(found) })
                } })
            }
        }
    };
}

functions! {
    init "cuInit" (c_uint);
    version "cuDriverGetVersion" (*mut c_int);
    device_count "cuDeviceGetCount" (*mut c_int);
    device_get "cuDeviceGet" (*mut c_int, c_int);
    device_name "cuDeviceGetName" (*mut c_char, c_int, c_int);
    device_attribute "cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    context_retain "cuDevicePrimaryCtxRetain" (*mut Handle, c_int);
    context_set "cuCtxSetCurrent" (Handle);
    memory_info "cuMemGetInfo_v2" (*mut usize, *mut usize);
    memory_alloc "cuMemAlloc_v2" (*mut Address, usize);
    memory_free "cuMemFree_v2" (Address);
    host_alloc "cuMemAllocHost_v2" (*mut Handle, usize);
    host_free "cuMemFreeHost" (Handle);
    host_register "cuMemHostRegister_v2" (Handle, usize, c_uint);
    host_unregister "cuMemHostUnregister" (Handle);
    to_device "cuMemcpyHtoDAsync_v2" (Address, *const c_void, usize, Handle);
    to_host "cuMemcpyDtoHAsync_v2" (*mut c_void, Address, usize, Handle);
    on_device "cuMemcpyDtoDAsync_v2" (Address, Address, usize, Handle);
    module_load "cuModuleLoadDataEx" (*mut Handle, *const c_void, c_uint, *mut c_int, *mut *mut c_void);
    module_unload "cuModuleUnload" (Handle);
    module_function "cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    function_attribute "cuFuncSetAttribute" (Handle, c_int, c_int);
    launch_kernel "cuLaunchKernel" (Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
    stream_create "cuStreamCreate" (*mut Handle, c_uint);
    stream_destroy "cuStreamDestroy_v2" (Handle);
    stream_wait "cuStreamSynchronize" (Handle);
    capture_begin "cuStreamBeginCapture_v2" (Handle, c_uint);
    capture_end "cuStreamEndCapture" (Handle, *mut Handle);
    graph_instantiate "cuGraphInstantiateWithFlags" (*mut Handle, Handle, u64);
    graph_launch "cuGraphLaunch" (Handle, Handle);
    graph_exec_destroy "cuGraphExecDestroy" (Handle);
    graph_destroy "cuGraphDestroy" (Handle);
    event_create "cuEventCreate" (*mut Handle, c_uint);
    event_destroy "cuEventDestroy_v2" (Handle);
    event_record "cuEventRecordWithFlags" (Handle, Handle, c_uint);
    event_elapsed "cuEventElapsedTime" (*mut f32, Handle, Handle);
    error_name "cuGetErrorName" (Status, *mut *const c_char);
    error_string "cuGetErrorString" (Status, *mut *const c_char);
}

/// Attributes of devices, by their numbers in `cuda.h`.
const MULTIPROCESSORS: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// The attribute of a function that is the most shared memory a launch may give; without it that is 48 KB.
const MOST_DYNAMIC_SHARED: c_int = 8;

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: Status = 2;
/// Options of `cuModuleLoadDataEx`: a buffer for what the assembler complains of, and its size.
const ERROR_LOG: c_int = 5;
const ERROR_LOG_BYTES: c_int = 6;

/// A device that models can run on, with its context.
pub(crate) struct Device {
    driver: Driver,
    context: Handle,
    /// Its name.
    pub(crate) name: String,
    /// Compute capability.
    pub(crate) capability: (i32, i32),
    /// Multiprocessors.
    pub(crate) processors: u32,
}

// Safety: the driver's functions may be called from any thread; each call sets the context before.
unsafe impl Send for Device {}
// Safety: as above.
unsafe impl Sync for Device {}

/// The device that models run on: the first one. (`CUDA_VISIBLE_DEVICES` chooses which that is.)
pub(crate) fn device() -> Result<&'static Device, Error> {
    static DEVICE: OnceLock<Result<Device, Error>> = OnceLock::new();
    DEVICE.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn machine(text: String) -> Error {
    Error::new(ErrorKind::Machine, text)
}

fn open() -> Result<Device, Error> {
    let library = std::env::var("INFC_CUDA_DRIVER").unwrap_or_else(|_| LIBRARY.to_string());
    let driver = Driver::open(&library).map_err(|e| {
        machine(format!("the artifact needs an NVIDIA GPU, and there is no driver for one: {library}: {e}; install the driver, or compile for this CPU"))
    })?;
    let mut device = Device { driver, context: core::ptr::null_mut(), name: String::new(), capability: (0, 0), processors: 0 };
    let no_device = |e: Error| machine(format!("the artifact needs an NVIDIA GPU, and the driver finds none: {e}"));
    // Safety: `cuInit` takes a number that must be 0.
    device.check("cuInit", unsafe { (device.driver.init)(0) }).map_err(no_device)?;
    let (mut count, mut number) = (0, 0);
    // Safety: the pointers lead to variables of the declared types.
    device.check("cuDeviceGetCount", unsafe { (device.driver.device_count)(&mut count) })?;
    if count == 0 {
        return Err(machine("the artifact needs an NVIDIA GPU, and the driver finds none".into()));
    }
    // Safety: as above.
    device.check("cuDeviceGet", unsafe { (device.driver.device_get)(&mut number, 0) })?;
    let mut name = [0 as c_char; 128];
    // Safety: the driver writes at most so many characters, with a zero at the end.
    device.check("cuDeviceGetName", unsafe { (device.driver.device_name)(name.as_mut_ptr(), 127, number) })?;
    // Safety: the last character is still a zero.
    device.name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let attribute = |which: c_int| {
        let mut value = 0;
        // Safety: the pointer leads to a variable of the declared type.
        device.check("cuDeviceGetAttribute", unsafe { (device.driver.device_attribute)(&mut value, which, number) })?;
        Ok::<i32, Error>(value)
    };
    let (major, minor, processors) = (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?, attribute(MULTIPROCESSORS)?);
    device.capability = (major, minor);
    device.processors = processors.max(1) as u32;
    let mut context = core::ptr::null_mut();
    // Safety: as above.
    device.check("cuDevicePrimaryCtxRetain", unsafe { (device.driver.context_retain)(&mut context, number) })?;
    device.context = context;
    Ok(device)
}

impl Device {
    /// An error with the driver's own words, unless the status is success.
    fn check(&self, call: &str, status: Status) -> Result<(), Error> {
        if status == 0 {
            return Ok(());
        }
        let say = |f: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
            let mut text: *const c_char = core::ptr::null();
            // Safety: gives a string that lives as long as the driver, or null.
            let known = unsafe { f(status, &mut text) } == 0 && !text.is_null();
            // Safety: as above.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = say(self.driver.error_name).unwrap_or_else(|| format!("error {status}"));
        let text = say(self.driver.error_string).unwrap_or_default();
        let kind = if status == OUT_OF_MEMORY { ErrorKind::Memory } else { ErrorKind::Run };
        Err(Error::new(kind, format!("{call}: {name}: {text}")))
    }

    /// Makes its context that of this thread.
    pub(crate) fn enter(&self) -> Result<(), Error> {
        // Safety: the context is retained for good.
        self.check("cuCtxSetCurrent", unsafe { (self.driver.context_set)(self.context) })
    }
    /// The driver's version: 12040 is 12.4.
    pub(crate) fn version(&self) -> i32 {
        let mut version = 0;
        // Safety: the pointer leads to a variable of the declared type.
        let status = unsafe { (self.driver.version)(&mut version) };
        if status == 0 { version } else { 0 }
    }
    /// Bytes of memory that are free.
    pub(crate) fn free_bytes(&self) -> Result<u64, Error> {
        let (mut free, mut total) = (0usize, 0usize);
        // Safety: as above.
        self.check("cuMemGetInfo", unsafe { (self.driver.memory_info)(&mut free, &mut total) })?;
        Ok(free as u64)
    }
    /// Loads PTX text that ends with a zero.
    pub(crate) fn load(&'static self, text: &[u8]) -> Result<Module, Error> {
        let mut handle = core::ptr::null_mut();
        let mut log = [0u8; 4096];
        let mut options = [ERROR_LOG, ERROR_LOG_BYTES];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), (log.len() - 1) as *mut c_void];
        // Safety: text and log live during the call, the options are pairs of numbers and values.
        let status =
            unsafe { (self.driver.module_load)(&mut handle, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr()) };
        self.check("cuModuleLoadDataEx", status).map_err(|e| {
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches('\0').trim();
            let version = self.version();
            let driver = format!("the driver (CUDA {}.{}) on '{}'", version / 1000, version % 1000 / 10, self.name);
            machine(format!("{driver} does not take the artifact's code: {e}{}{log}", if log.is_empty() { "" } else { ": " }))
        })?;
        Ok(Module { device: self, handle })
    }
    /// Zeroed or not, this is memory of the device.
    pub(crate) fn alloc(&'static self, bytes: u64) -> Result<Mem, Error> {
        let mut address = 0;
        if bytes > 0 {
            // Safety: the pointer leads to a variable of the declared type.
            self.check("cuMemAlloc", unsafe { (self.driver.memory_alloc)(&mut address, bytes as usize) })?;
        }
        Ok(Mem { device: self, address, bytes })
    }
    /// Memory of this computer that the device reaches directly.
    pub(crate) fn pinned(&'static self, bytes: usize) -> Result<Pinned, Error> {
        let mut start = core::ptr::null_mut();
        if bytes > 0 {
            // Safety: as above.
            self.check("cuMemAllocHost", unsafe { (self.driver.host_alloc)(&mut start, bytes) })?;
        }
        Ok(Pinned { device: self, start: start.cast(), bytes })
    }
    /// Has the device reach memory of this computer directly; `None` if the driver does not take it.
    ///
    /// # Safety
    /// The memory is whole pages, and lives until what this gives is dropped.
    pub(crate) unsafe fn register(&'static self, start: *mut u8, bytes: usize) -> Option<Registered> {
        self.enter().ok()?;
        // Safety: by the caller.
        let status = unsafe { (self.driver.host_register)(start.cast(), bytes, 0) };
        (status == 0).then(|| Registered { device: self, start })
    }
    /// A moment of a stream, not yet there.
    pub(crate) fn event(&'static self) -> Result<Event, Error> {
        let mut handle = core::ptr::null_mut();
        // Safety: as above; 0 asks for one that tells times.
        self.check("cuEventCreate", unsafe { (self.driver.event_create)(&mut handle, 0) })?;
        Ok(Event { device: self, handle })
    }
    /// Has the driver tensor maps?
    pub(crate) fn has_maps(&self) -> bool {
        self.driver.encode_map.is_some()
    }
    /// The map of a tensor at an address. One that is no multiple of 16 bytes has none: the kernel sees that, and takes no map.
    pub(crate) fn map(&self, map: &Map, address: Address) -> Result<MapBytes, Error> {
        const SWIZZLE_128: c_int = 3;
        const PROMOTE_256: c_int = 3;
        let mut out = MapBytes([0; 128]);
        let Some(encode) = self.driver.encode_map.filter(|_| address % 16 == 0) else { return Ok(out) };
        let steps = [1 as c_uint; MOST_AXES];
        // Safety: the lists have `rank` elements or more; the driver reads no memory of the device.
        let status = unsafe {
            encode(
                &mut out,
                map.dtype,
                map.rank as c_uint,
                address as *mut c_void,
                map.sizes.as_ptr(),
                map.strides.as_ptr(),
                map.parts.as_ptr(),
                steps.as_ptr(),
                0,
                SWIZZLE_128,
                PROMOTE_256,
                0,
            )
        };
        self.check("cuTensorMapEncodeTiled", status)?;
        Ok(out)
    }
    /// A queue of work.
    pub(crate) fn stream(&'static self) -> Result<Stream, Error> {
        const NON_BLOCKING: c_uint = 1;
        let mut handle = core::ptr::null_mut();
        // Safety: as above.
        self.check("cuStreamCreate", unsafe { (self.driver.stream_create)(&mut handle, NON_BLOCKING) })?;
        Ok(Stream { device: self, handle, capturing: Cell::new(false) })
    }
}

/// Loaded code.
pub(crate) struct Module {
    device: &'static Device,
    handle: Handle,
}

// Safety: handles may be used from any thread.
unsafe impl Send for Module {}
// Safety: as above.
unsafe impl Sync for Module {}

impl Module {
    /// The kernel of that name.
    pub(crate) fn function(&self, name: &str) -> Result<Handle, Error> {
        let mut handle = core::ptr::null_mut();
        let text = CString::new(name).map_err(|e| machine(e.to_string()))?;
        // Safety: the module is loaded, the name ends with a zero.
        self.device.check("cuModuleGetFunction", unsafe {
            (self.device.driver.module_function)(&mut handle, self.handle, text.as_ptr())
        })?;
        Ok(handle)
    }
}

impl Module {
    /// Lets launches of a kernel of this module give it so many bytes of shared memory.
    pub(crate) fn allow_shared(&self, function: Handle, bytes: u32) -> Result<(), Error> {
        // Safety: a function of the module, which is loaded.
        self.device.check("cuFuncSetAttribute", unsafe {
            (self.device.driver.function_attribute)(function, MOST_DYNAMIC_SHARED, bytes as c_int)
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // Safety: nobody uses it any more.
        unsafe { (self.device.driver.module_unload)(self.handle) };
    }
}

/// Memory of the device.
pub(crate) struct Mem {
    device: &'static Device,
    /// Where it begins.
    pub(crate) address: Address,
    /// Its size.
    pub(crate) bytes: u64,
}

impl Drop for Mem {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let _ = self.device.enter();
            // Safety: made by `alloc`, and nobody uses it any more: a session waits for its stream before it ends.
            unsafe { (self.device.driver.memory_free)(self.address) };
        }
    }
}

/// Memory of this computer that the device reaches directly.
pub(crate) struct Pinned {
    device: &'static Device,
    start: *mut u8,
    bytes: usize,
}

// Safety: it owns its memory.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Its size.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
    /// Where it begins.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let _ = self.device.enter();
            // Safety: made by `pinned`.
            unsafe { (self.device.driver.host_free)(self.start.cast()) };
        }
    }
}

/// Memory of somebody else on this computer that the device reaches directly.
pub(crate) struct Registered {
    device: &'static Device,
    start: *mut u8,
}

// Safety: a number for the driver, which may be called from any thread.
unsafe impl Send for Registered {}
// Safety: as above.
unsafe impl Sync for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // Safety: it is registered, and no copy is under way: runs wait for theirs, also those that fail.
        unsafe { (self.device.driver.host_unregister)(self.start.cast()) };
    }
}

/// A queue of work.
pub(crate) struct Stream {
    device: &'static Device,
    handle: Handle,
    /// Work is captured, not queued.
    capturing: Cell<bool>,
}

// Safety: handles may be used from any thread; a session uses its own alone.
unsafe impl Send for Stream {}

impl Stream {
    /// Copies to the device, some time.
    ///
    /// # Safety
    /// `from` has so many bytes and stays as it is until the stream has been waited for.
    pub(crate) unsafe fn to_device(&self, to: Address, from: *const u8, bytes: usize) -> Result<(), Error> {
        // Safety: by the caller.
        self.device.check("cuMemcpyHtoDAsync", unsafe { (self.device.driver.to_device)(to, from.cast(), bytes, self.handle) })
    }
    /// Copies from the device, some time.
    ///
    /// # Safety
    /// `to` has so many bytes and is left alone until the stream has been waited for.
    pub(crate) unsafe fn to_host(&self, to: *mut u8, from: Address, bytes: usize) -> Result<(), Error> {
        // Safety: by the caller.
        self.device.check("cuMemcpyDtoHAsync", unsafe { (self.device.driver.to_host)(to.cast(), from, bytes, self.handle) })
    }
    /// Copies on the device, some time.
    pub(crate) fn on_device(&self, to: Address, from: Address, bytes: usize) -> Result<(), Error> {
        // Safety: addresses of the device, which checks them.
        self.device.check("cuMemcpyDtoDAsync", unsafe { (self.device.driver.on_device)(to, from, bytes, self.handle) })
    }
    /// Runs a kernel, some time, with so many threads and bytes of shared memory in a block.
    pub(crate) fn launch(
        &self,
        function: Handle,
        blocks: u32,
        (threads, shared): (u32, u32),
        parameters: &mut [u64],
        maps: &mut [MapBytes],
    ) -> Result<(), Error> {
        let mut pointers: [*mut c_void; MOST_PARAMETERS] = [core::ptr::null_mut(); MOST_PARAMETERS];
        let count = parameters.len() + maps.len();
        if count > MOST_PARAMETERS {
            return Err(machine(format!("a kernel with {count} parameters; a GPU takes {MOST_PARAMETERS}")));
        }
        let all = parameters.iter_mut().map(|p| core::ptr::from_mut(p).cast());
        let all = all.chain(maps.iter_mut().map(|m| core::ptr::from_mut(m).cast()));
        pointers.iter_mut().zip(all).for_each(|(to, p)| *to = p);
        let none = core::ptr::null_mut();
        // Safety: the driver copies the parameters, of which there are as many as the kernel has, before it returns.
        let status = unsafe {
            (self.device.driver.launch_kernel)(
                function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                shared,
                self.handle,
                pointers.as_mut_ptr(),
                none,
            )
        };
        self.device.check("cuLaunchKernel", status)
    }
    /// Notes the time when the work so far is done; as a part of a graph, in each of its runs.
    pub(crate) fn mark(&self, event: &Event) -> Result<(), Error> {
        const EXTERNAL: c_uint = 1;
        let flags = if self.capturing.get() { EXTERNAL } else { 0 };
        // Safety: both exist.
        let status = unsafe { (self.device.driver.event_record)(event.handle, self.handle, flags) };
        self.device.check("cuEventRecordWithFlags", status)
    }
    /// Waits until all work is done.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        // Safety: the stream exists.
        self.device.check("cuStreamSynchronize", unsafe { (self.device.driver.stream_wait)(self.handle) })
    }
    /// The work that `record` queues, as a graph that can be run again and again.
    pub(crate) fn capture(&self, record: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        const RELAXED: c_uint = 2;
        // Safety: the stream exists and captures nothing yet.
        self.device.check("cuStreamBeginCapture", unsafe { (self.device.driver.capture_begin)(self.handle, RELAXED) })?;
        self.capturing.set(true);
        let recorded = record();
        self.capturing.set(false);
        let (mut graph, mut handle) = (core::ptr::null_mut(), core::ptr::null_mut());
        // Safety: as above; the capture must end whatever happened.
        let ended = unsafe { (self.device.driver.capture_end)(self.handle, &mut graph) };
        recorded?;
        self.device.check("cuStreamEndCapture", ended)?;
        // Safety: the graph was just made, and is not needed once it is instantiated.
        let made = unsafe { (self.device.driver.graph_instantiate)(&mut handle, graph, 0) };
        // Safety: as above.
        unsafe { (self.device.driver.graph_destroy)(graph) };
        self.device.check("cuGraphInstantiate", made)?;
        Ok(Graph { device: self.device, handle })
    }
    /// Runs a graph, some time.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<(), Error> {
        // Safety: both exist.
        self.device.check("cuGraphLaunch", unsafe { (self.device.driver.graph_launch)(graph.handle, self.handle) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // Safety: it exists; work in it is waited for, since memory that it uses is freed next.
        unsafe {
            (self.device.driver.stream_wait)(self.handle);
            (self.device.driver.stream_destroy)(self.handle);
        }
    }
}

/// A moment of a stream.
pub(crate) struct Event {
    device: &'static Device,
    handle: Handle,
}

// Safety: handles may be used from any thread; a session uses its own alone.
unsafe impl Send for Event {}

impl Event {
    /// Milliseconds from the other one until this; both are there.
    pub(crate) fn since(&self, start: &Event) -> Result<f32, Error> {
        let mut time = 0.0;
        // Safety: both exist, the pointer leads to a variable of the declared type.
        let status = unsafe { (self.device.driver.event_elapsed)(&mut time, start.handle, self.handle) };
        self.device.check("cuEventElapsedTime", status)?;
        Ok(time)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // Safety: it exists; graphs that note it are not run any more.
        unsafe { (self.device.driver.event_destroy)(self.handle) };
    }
}

/// The most parameters of a kernel: 4,096 bytes.
const MOST_PARAMETERS: usize = 512;

/// Captured work.
pub(crate) struct Graph {
    device: &'static Device,
    handle: Handle,
}

// Safety: handles may be used from any thread; a session uses its own alone.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.device.enter();
        // Safety: it exists and is not running: a session waits for its stream before.
        unsafe { (self.device.driver.graph_exec_destroy)(self.handle) };
    }
}
