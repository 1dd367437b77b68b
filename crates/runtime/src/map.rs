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

/// A range of a file, to run. Its pages come from the file; they are never writable.
#[cfg(target_os = "linux")]
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

/// A range of a file, to run, as a copy in memory: macOS runs no pages of files that nobody signed, and Windows only those of files that were opened
/// for it.
#[cfg(not(target_os = "linux"))]
pub(crate) fn code_of_file(file: &File, offset: u64, bytes: usize) -> Result<Option<Mmap>, Error> {
    match constants_of_file(file, offset, bytes)? {
        Some(map) => code_of_bytes(&map),
        None => Ok(None),
    }
}

/// Makes sure that instructions are fetched as they were just written: Arm's caches for data and for instructions know nothing of each other. (Arm's
/// reference manual, B2.4.4; lines of either cache are no shorter than CTR_EL0 says.)
#[cfg(target_arch = "aarch64")]
fn fetch_anew(code: &[u8]) {
    let ctr: usize;
    // Safety: reads a register that programs may read.
    unsafe { core::arch::asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    let (data, instructions) = (4usize << (ctr >> 16 & 15), 4usize << (ctr & 15));
    let range = code.as_ptr_range();
    let lines = |size: usize| (range.start as usize & !(size - 1)..range.end as usize).step_by(size);
    for line in lines(data) {
        // Safety: writes a line of memory that is mapped back to it.
        unsafe { core::arch::asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // Safety: waits until that is done.
    unsafe { core::arch::asm!("dsb ish", options(nostack, preserves_flags)) };
    for line in lines(instructions) {
        // Safety: forgets a line of instructions of memory that is mapped.
        unsafe { core::arch::asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    // Safety: waits until that is done, here too.
    unsafe { core::arch::asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// By the kernel, since the instruction for it is for one core alone, and threads move between them.
#[cfg(target_arch = "riscv64")]
fn fetch_anew(code: &[u8]) {
    const SYS_RISCV_FLUSH_ICACHE: libc::c_long = 259;
    let range = code.as_ptr_range();
    // Safety: this system call changes no memory; the range is mapped.
    let done = unsafe { libc::syscall(SYS_RISCV_FLUSH_ICACHE, range.start, range.end, 0) };
    if done != 0 {
        // Safety: has this core fetch instructions anew; where the kernel knows nothing of it, as in an emulator, that is all there is to do.
        unsafe { core::arch::asm!("fence.i", options(nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "aarch64", target_arch = "riscv64")))]
fn fetch_anew(_: &[u8]) {}

/// Code from memory: written to fresh pages, which then become read-execute.
pub(crate) fn code_of_bytes(bytes: &[u8]) -> Result<Option<Mmap>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let map = MmapMut::map_anon(bytes.len()).and_then(|mut map| {
        map.copy_from_slice(bytes);
        let map = map.make_exec()?;
        fetch_anew(&map);
        Ok(map)
    });
    match map {
        Ok(map) => Ok(Some(map)),
        Err(e) => fail!(Memory, "code cannot be made executable: {e}"),
    }
}
