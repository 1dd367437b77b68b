//! A shared library, opened by name for good, and the addresses of its functions.

use alloc::string::String;
use core::ffi::{CStr, c_void};
use std::ffi::CString;

/// An open library.
#[derive(Clone, Copy)]
pub(crate) struct Library(*mut c_void);

impl Library {
    /// Opens it, and with it runs its initialisers; why that failed, in the system's words.
    pub(crate) fn open(name: &str) -> Result<Library, String> {
        let name = CString::new(name).map_err(|e| alloc::format!("{e}"))?;
        let handle = system::open(&name);
        if handle.is_null() { Err(system::reason()) } else { Ok(Library(handle)) }
    }
    /// The address of a function, or null.
    pub(crate) fn find(self, name: &CStr) -> *mut c_void {
        system::find(self.0, name)
    }
}

#[cfg(unix)]
mod system {
    use alloc::string::{String, ToString};
    use core::ffi::{CStr, c_void};

    pub(super) fn open(name: &CStr) -> *mut c_void {
        // Safety: opening a library runs its initialisers, as the user of this machine wants them to run.
        unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) }
    }
    pub(super) fn reason() -> String {
        // Safety: `dlerror` gives a string that lives until the next call in this thread, or null.
        let text = unsafe { libc::dlerror() };
        if text.is_null() {
            return "it cannot be opened".to_string();
        }
        // Safety: as above.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
    pub(super) fn find(library: *mut c_void, name: &CStr) -> *mut c_void {
        // Safety: the library is open for good.
        unsafe { libc::dlsym(library, name.as_ptr()) }
    }
}

#[cfg(windows)]
mod system {
    use alloc::string::{String, ToString};
    use core::ffi::{CStr, c_char, c_void};

    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn LoadLibraryA(name: *const c_char) -> *mut c_void;
        fn GetProcAddress(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }

    pub(super) fn open(name: &CStr) -> *mut c_void {
        // Safety: opening a library runs its initialisers, as the user of this machine wants them to run.
        unsafe { LoadLibraryA(name.as_ptr()) }
    }
    pub(super) fn reason() -> String {
        std::io::Error::last_os_error().to_string()
    }
    pub(super) fn find(library: *mut c_void, name: &CStr) -> *mut c_void {
        // Safety: the library is open for good.
        unsafe { GetProcAddress(library, name.as_ptr()) }
    }
}
