//! The C ABI of `include/infc.h`: handles, null checks, and no panic across the border.

use crate::error::fail;
use crate::{DType, Dim, Error, ErrorKind, Model, Options, PortInfo, Session, TensorRef};
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};

/// A model behind a C pointer, with its texts as C has them.
pub struct CModel {
    model: Arc<Model>,
    variant: CString,
    inputs: Vec<CPort>,
    outputs: Vec<CPort>,
}

/// A session behind a C pointer.
pub struct CSession {
    session: Session,
}

/// `INFC_THREADS_OF_ARTIFACT`.
const THREADS_OF_ARTIFACT: u32 = u32::MAX;

/// `infc_options`.
#[repr(C)]
pub struct COptions {
    size: usize,
    threads: u32,
    spin_us: u32,
}

/// `infc_tensor`.
#[repr(C)]
pub struct CTensor {
    dtype: i32,
    rank: u32,
    dims: *const i64,
    data: *const c_void,
    bytes: usize,
}

struct CPort {
    name: CString,
    dtype: i32,
    dims: Vec<(i64, CString)>,
    state: i64,
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Text for C; what follows a zero byte in it is lost.
fn c_text(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or("")).unwrap_or_default()
}

/// Runs a call: its status, with the error's text kept for `infc_last_error`.
fn call(body: impl FnOnce() -> Result<(), Error>) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(body));
    let error = match result {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(_) => Error::new(ErrorKind::Usage, "a bug in the runtime: it panicked"),
    };
    let _ = LAST.try_with(|last| *last.borrow_mut() = c_text(&error.to_string()));
    error.kind() as i32
}

fn misuse(text: &str) -> Error {
    Error::new(ErrorKind::Usage, text)
}

/// What a pointer leads to, unless it is null.
///
/// # Safety
/// It is null, or valid for reads and unchanged during `'a`.
unsafe fn get<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Error> {
    // Safety: by the caller.
    unsafe { pointer.as_ref() }.ok_or_else(|| misuse(&alloc::format!("{name} is null")))
}

/// The same for writing.
///
/// # Safety
/// It is null, or valid for reads and writes and not used elsewhere during `'a`.
unsafe fn get_mut<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, Error> {
    // Safety: by the caller.
    unsafe { pointer.as_mut() }.ok_or_else(|| misuse(&alloc::format!("{name} is null")))
}

/// A list from C; null is one of length 0.
///
/// # Safety
/// It is null, or holds `length` values that stay unchanged during `'a`.
unsafe fn list<'a, T>(pointer: *const T, length: usize, name: &str) -> Result<&'a [T], Error> {
    if length == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() || !pointer.is_aligned() || length > isize::MAX as usize / size_of::<T>() {
        return Err(misuse(&alloc::format!("{name} is null, not aligned, or too long")));
    }
    // Safety: not null, aligned, and by the caller.
    Ok(unsafe { core::slice::from_raw_parts(pointer, length) })
}

/// A text from C.
///
/// # Safety
/// It is null, or ends with a zero byte.
unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Error> {
    if pointer.is_null() {
        return Err(misuse(&alloc::format!("{name} is null")));
    }
    // Safety: not null, and by the caller.
    unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| misuse(&alloc::format!("{name} is not UTF-8")))
}

fn c_ports(ports: &[PortInfo]) -> Vec<CPort> {
    let dim = |d: &Dim| (if let Dim::Fixed(n) = d { *n } else { -1 }, c_text(&d.to_string()));
    let port = |p: &PortInfo| CPort {
        name: c_text(&p.name),
        dtype: p.dtype.0.into(),
        dims: p.dims.iter().map(dim).collect(),
        state: p.state.map_or(-1, |i| i as i64),
    };
    ports.iter().map(port).collect()
}

fn c_model(model: Arc<Model>) -> Result<*mut CModel, Error> {
    // The interface has tensors only, also where the routines are linked.
    let on_host = model.inputs().iter().chain(model.outputs()).find(|p| p.host.is_some());
    if let Some(port) = on_host {
        let nodes = model.program().host_nodes().join(", ");
        fail!(Artifact, "'{}' is {port}, which this interface has no values of; on the host run {nodes}", port.name);
    }
    let (inputs, outputs) = (c_ports(model.inputs()), c_ports(model.outputs()));
    let variant = c_text(&model.requirements().name);
    Ok(Box::into_raw(Box::new(CModel { model, variant, inputs, outputs })))
}

/// The version of the runtime.
#[unsafe(no_mangle)]
pub extern "C" fn infc_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The last error of this thread.
#[unsafe(no_mangle)]
pub extern "C" fn infc_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Loads a file.
///
/// # Safety
/// Pointers are null or what `infc.h` says, in this and all functions below.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_model_open(path: *const c_char, model: *mut *mut CModel) -> i32 {
    call(|| {
        // Safety: by the caller.
        let (path, model) = unsafe { (text(path, "path")?, get_mut(model, "model")?) };
        *model = null_mut();
        *model = c_model(Model::open(path)?)?;
        Ok(())
    })
}

/// Loads the variant of this name.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_model_open_variant(path: *const c_char, variant: *const c_char, model: *mut *mut CModel) -> i32 {
    call(|| {
        // Safety: by the caller.
        let (path, model) = unsafe { (text(path, "path")?, get_mut(model, "model")?) };
        *model = null_mut();
        // Safety: by the caller.
        let variant = if variant.is_null() { None } else { Some(unsafe { text(variant, "variant") }?) };
        *model = c_model(Model::open_variant(path, variant)?)?;
        Ok(())
    })
}

/// The name of the variant that was loaded.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_model_variant(model: *const CModel) -> *const c_char {
    // Safety: by the caller.
    unsafe { ask(model, null(), |m| Some(m.variant.as_ptr())) }
}

/// Loads from memory.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_model_load(bytes: *const c_void, length: usize, model: *mut *mut CModel) -> i32 {
    call(|| {
        // Safety: by the caller.
        let (bytes, model) = unsafe { (list(bytes.cast::<u8>(), length, "bytes")?, get_mut(model, "model")?) };
        *model = null_mut();
        *model = c_model(Model::from_bytes(bytes)?)?;
        Ok(())
    })
}

/// Loads the variant of this name from memory.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_model_load_variant(
    bytes: *const c_void,
    length: usize,
    variant: *const c_char,
    model: *mut *mut CModel,
) -> i32 {
    call(|| {
        // Safety: by the caller.
        let (bytes, model) = unsafe { (list(bytes.cast::<u8>(), length, "bytes")?, get_mut(model, "model")?) };
        *model = null_mut();
        // Safety: by the caller.
        let variant = if variant.is_null() { None } else { Some(unsafe { text(variant, "variant") }?) };
        *model = c_model(Model::from_bytes_variant(bytes, variant)?)?;
        Ok(())
    })
}

/// Frees a model.
///
/// # Safety
/// As above; the model is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_model_close(model: *mut CModel) {
    if !model.is_null() {
        // Safety: made by `c_model`, and given back once.
        drop(unsafe { Box::from_raw(model) });
    }
}

/// A question about a model: what `ask` says, else `missing`.
///
/// # Safety
/// `model` is null or one of ours.
unsafe fn ask<T>(model: *const CModel, missing: T, ask: impl FnOnce(&'static CModel) -> Option<T>) -> T {
    // Safety: by the caller; what is returned lives as long as the model, which C keeps.
    unsafe { model.as_ref() }.and_then(ask).unwrap_or(missing)
}

macro_rules! port_questions {
    ($($ports:ident $count:ident $name:ident $dtype:ident $rank:ident $dim:ident $dim_text:ident $find:ident;)*) => { $(
        /// How many there are.
        ///
        /// # Safety
        /// As above.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $count(model: *const CModel) -> usize {
            // Safety: by the caller, here and below.
            unsafe { ask(model, 0, |m| Some(m.$ports.len())) }
        }
        /// Its name.
        ///
        /// # Safety
        /// As above.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(model: *const CModel, number: usize) -> *const c_char {
            // Safety: by the caller.
            unsafe { ask(model, null(), |m| Some(m.$ports.get(number)?.name.as_ptr())) }
        }
        /// Its element type.
        ///
        /// # Safety
        /// As above.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $dtype(model: *const CModel, number: usize) -> i32 {
            // Safety: by the caller.
            unsafe { ask(model, 0, |m| Some(m.$ports.get(number)?.dtype)) }
        }
        /// Its rank.
        ///
        /// # Safety
        /// As above.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $rank(model: *const CModel, number: usize) -> i32 {
            // Safety: by the caller.
            unsafe { ask(model, -1, |m| i32::try_from(m.$ports.get(number)?.dims.len()).ok()) }
        }
        /// A dim.
        ///
        /// # Safety
        /// As above.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $dim(model: *const CModel, number: usize, axis: usize) -> i64 {
            // Safety: by the caller.
            unsafe { ask(model, -1, |m| Some(m.$ports.get(number)?.dims.get(axis)?.0)) }
        }
        /// A dim as text.
        ///
        /// # Safety
        /// As above.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $dim_text(model: *const CModel, number: usize, axis: usize) -> *const c_char {
            // Safety: by the caller.
            unsafe { ask(model, null(), |m| Some(m.$ports.get(number)?.dims.get(axis)?.1.as_ptr())) }
        }
        /// Its number by its name.
        ///
        /// # Safety
        /// As above.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $find(model: *const CModel, name: *const c_char) -> i64 {
            // Safety: by the caller.
            unsafe {
                let Ok(name) = text(name, "name") else { return -1 };
                ask(model, -1, |m| m.model.$ports().iter().position(|p| p.name == name).map(|i| i as i64))
            }
        }
    )* };
}

port_questions! {
    inputs infc_input_count infc_input_name infc_input_dtype infc_input_rank infc_input_dim infc_input_dim_text infc_find_input;
    outputs infc_output_count infc_output_name infc_output_dtype infc_output_rank infc_output_dim infc_output_dim_text infc_find_output;
}

/// The input that takes an output's value in the next run.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_output_state(model: *const CModel, number: usize) -> i64 {
    // Safety: by the caller.
    unsafe { ask(model, -1, |m| Some(m.outputs.get(number)?.state)) }
}

/// Makes a session.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_session_create(model: *const CModel, options: *const COptions, session: *mut *mut CSession) -> i32 {
    call(|| {
        // Safety: by the caller.
        let (model, session) = unsafe { (get(model, "model")?, get_mut(session, "session")?) };
        *session = null_mut();
        let mut chosen = Options::default();
        // Safety: by the caller.
        if let Some(options) = unsafe { options.as_ref() } {
            if options.size < size_of::<COptions>() {
                return Err(misuse("options.size is not sizeof(infc_options)"));
            }
            let told = options.threads != THREADS_OF_ARTIFACT;
            (chosen.threads, chosen.spin_us) = (told.then_some(options.threads as usize), options.spin_us);
        }
        let made = Session::new(model.model.clone(), chosen)?;
        *session = Box::into_raw(Box::new(CSession { session: made }));
        Ok(())
    })
}

/// Frees a session.
///
/// # Safety
/// As above; the session is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_session_destroy(session: *mut CSession) {
    if !session.is_null() {
        // Safety: made by `infc_session_create`, and given back once.
        drop(unsafe { Box::from_raw(session) });
    }
}

/// Copies an input.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_set_input(
    session: *mut CSession,
    input: usize,
    dtype: i32,
    dims: *const i64,
    rank: usize,
    data: *const c_void,
    bytes: usize,
) -> i32 {
    call(|| {
        // Safety: by the caller.
        let session = unsafe { get_mut(session, "session")? };
        // Safety: by the caller.
        let (dims, bytes) = unsafe { (list(dims, rank, "dims")?, list(data.cast::<u8>(), bytes, "data")?) };
        let dtype = DType(u8::try_from(dtype).unwrap_or(0));
        session.session.set_input(input, TensorRef { dtype, dims, bytes })
    })
}

/// The memory of an input.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_input_memory(
    session: *mut CSession,
    input: usize,
    dims: *const i64,
    rank: usize,
    data: *mut *mut c_void,
    bytes: *mut usize,
) -> i32 {
    call(|| {
        // Safety: by the caller.
        let (session, data, bytes) = unsafe { (get_mut(session, "session")?, get_mut(data, "data")?, get_mut(bytes, "bytes")?) };
        // Safety: by the caller.
        let memory = session.session.input_mut(input, unsafe { list(dims, rank, "dims")? })?;
        (*data, *bytes) = (memory.as_mut_ptr().cast(), memory.len());
        Ok(())
    })
}

/// Runs.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_run(session: *mut CSession) -> i32 {
    // Safety: by the caller.
    call(|| unsafe { get_mut(session, "session") }?.session.run())
}

/// An output.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_get_output(session: *const CSession, output: usize, tensor: *mut CTensor) -> i32 {
    call(|| {
        // Safety: by the caller.
        let (session, tensor) = unsafe { (get(session, "session")?, get_mut(tensor, "tensor")?) };
        let value = session.session.output(output)?;
        *tensor = CTensor {
            dtype: value.dtype.0.into(),
            rank: value.dims.len() as u32,
            dims: value.dims.as_ptr(),
            data: value.bytes.as_ptr().cast(),
            bytes: value.bytes.len(),
        };
        Ok(())
    })
}

/// Forgets state.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_reset(session: *mut CSession) -> i32 {
    call(|| {
        // Safety: by the caller.
        unsafe { get_mut(session, "session") }?.session.reset();
        Ok(())
    })
}

/// Memory in use.
///
/// # Safety
/// As above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn infc_memory(session: *const CSession, session_bytes: *mut u64, constants_bytes: *mut u64) -> i32 {
    call(|| {
        // Safety: by the caller.
        let memory = unsafe { get(session, "session") }?.session.memory();
        // Safety: by the caller.
        if let Some(to) = unsafe { session_bytes.as_mut() } {
            *to = memory.arena + memory.scratch + memory.held;
        }
        // Safety: by the caller.
        if let Some(to) = unsafe { constants_bytes.as_mut() } {
            *to = memory.constants;
        }
        Ok(())
    })
}
