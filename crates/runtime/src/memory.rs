//! Memory that sessions own: zeroed, aligned for compiled code, growing only when shapes grow.

use crate::error::{Error, fail};
use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::ptr::NonNull;
use infc_artifact::abi::ALIGN;

/// A block of bytes aligned to [`ALIGN`].
pub(crate) struct Aligned {
    start: NonNull<u8>,
    bytes: usize,
}

// Safety: it owns its memory, as a `Vec<u8>` does.
unsafe impl Send for Aligned {}
// Safety: shared references only read.
unsafe impl Sync for Aligned {}

#[repr(align(64))]
struct Nothing;
static NOTHING: Nothing = Nothing;
const _: () = assert!(align_of::<Nothing>() == ALIGN);

impl Default for Aligned {
    fn default() -> Aligned {
        // Never read or written, as it has no bytes; aligned as kernels expect.
        Aligned { start: NonNull::from(&NOTHING).cast(), bytes: 0 }
    }
}

impl Aligned {
    /// Zeroed memory.
    pub(crate) fn zeroed(bytes: u64) -> Result<Aligned, Error> {
        if bytes == 0 {
            return Ok(Aligned::default());
        }
        let layout = usize::try_from(bytes).ok().and_then(|b| Layout::from_size_align(b, ALIGN).ok());
        // Safety: the layout has a size that is not zero.
        let start = layout.and_then(|l| NonNull::new(unsafe { alloc_zeroed(l) }));
        match (start, layout) {
            (Some(start), Some(layout)) => Ok(Aligned { start, bytes: layout.size() }),
            _ => fail!(Memory, "out of memory: {bytes} bytes are needed"),
        }
    }
    /// Makes it at least this large. If it grows, its contents become zeros.
    pub(crate) fn reserve(&mut self, bytes: u64) -> Result<bool, Error> {
        let grows = bytes > self.bytes as u64;
        if grows {
            // The old block goes first, so that the peak is the larger of the two, not the sum.
            *self = Aligned::default();
            *self = Aligned::zeroed(bytes)?;
        }
        Ok(grows)
    }
    /// Makes it at least this large, with room to spare if it was in use; keeps its contents.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Error> {
        if bytes > self.bytes as u64 {
            let mut larger = Aligned::zeroed(bytes.max((self.bytes + self.bytes / 2) as u64))?;
            larger.bytes_mut()[..self.bytes].copy_from_slice(self.bytes());
            *self = larger;
        }
        Ok(())
    }
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    pub(crate) fn bytes(&self) -> &[u8] {
        // Safety: all bytes were initialised when allocated.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // Safety: as above, and the reference is exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // Safety: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), Layout::from_size_align_unchecked(self.bytes, ALIGN)) }
        }
    }
}
