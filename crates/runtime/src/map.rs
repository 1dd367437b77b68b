//! Memory from the operating system: files mapped for reading, code mapped to run. Nothing is ever writable and executable.

use crate::error::{Error, fail};
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::fs::File;
use std::path::Path;

/// A file, mapped read-only.
pub(crate) fn file(path: &Path) -> Result<(File, Mmap), Error> {
    let opened = File::open(path).and_then(|file| {
        // Safety: the file must not be changed while it is mapped, as `Model::open` documents.
        let map = unsafe { Mmap::map(&file) }?;
        // Only parts are read: a huge page around each would be counted as memory of this process. A hint, which older systems do not take.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::NoHugePage);
        Ok((file, map))
    });
    match opened {
        Ok(pair) => Ok(pair),
        Err(e) => fail!(Io, "{}: {e}", path.display()),
    }
}

/// A range of a file, mapped read-only.
pub(crate) fn constants_of_file(file: &File, offset: u64, bytes: usize) -> Result<Option<Mmap>, Error> {
    if bytes == 0 {
        return Ok(None);
    }
    // Safety: as above.
    match unsafe { MmapOptions::new().offset(offset).len(bytes).map(file) } {
        Ok(map) => Ok(Some(map)),
        Err(e) => fail!(Memory, "{bytes} bytes of constants cannot be mapped: {e}"),
    }
}

/// A range of a file, mapped read-execute. Its pages come from the file; they are never writable.
pub(crate) fn code_of_file(file: &File, offset: u64, bytes: usize) -> Result<Option<Mmap>, Error> {
    if bytes == 0 {
        return Ok(None);
    }
    // Safety: as above.
    match unsafe { MmapOptions::new().offset(offset).len(bytes).map_exec(file) } {
        Ok(map) => Ok(Some(map)),
        Err(e) => fail!(Memory, "code cannot be mapped executable: {e} (is the file on a file system mounted noexec?)"),
    }
}

/// Code from memory: written to fresh pages, which then become read-execute.
pub(crate) fn code_of_bytes(bytes: &[u8]) -> Result<Option<Mmap>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let map = MmapMut::map_anon(bytes.len()).and_then(|mut map| {
        map.copy_from_slice(bytes);
        map.make_exec()
    });
    match map {
        Ok(map) => Ok(Some(map)),
        Err(e) => fail!(Memory, "code cannot be made executable: {e}"),
    }
}
