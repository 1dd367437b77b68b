//! Memory that sessions own: zeroed, aligned for compiled code, growing only when shapes grow.

use crate::error::{Error, fail};
use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::ptr::NonNull;
use infc_artifact::abi::ALIGN;

/// A block of bytes aligned to [`ALIGN`].
pub(crate) struct Aligned {
    start: NonNull<u8>,
    bytes: usize,
    /// Whether a GPU reaches it directly. It goes before the block does.
    #[cfg(feature = "gpu")]
    pin: Pin,
    /// What holds a large block.
    #[cfg(feature = "std")]
    map: Option<memmap2::MmapMut>,
}

/// Whether a GPU reaches a block directly.
#[cfg(feature = "gpu")]
#[derive(Default)]
enum Pin {
    /// Nobody has asked.
    #[default]
    Not,
    /// The driver does not take it.
    Refused,
    /// Until this is dropped.
    Held(#[allow(dead_code, reason = "for its drop")] crate::gpu::Registered),
}

/// Blocks from here on are pages of their own, which the operating system gives as zeros.
#[cfg(feature = "std")]
pub(crate) const LARGE: usize = 128 << 10;
/// Up to here all pages are taken at once, which is several times faster than one by one as they are touched. Larger blocks may be
/// bounds that a run does not reach.
#[cfg(all(feature = "std", target_os = "linux"))]
const AT_ONCE: usize = 64 << 20;
/// Bytes of a large page, on most systems.
#[cfg(feature = "std")]
const LARGE_PAGE: usize = 2 << 20;

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
        Aligned {
            start: NonNull::from(&NOTHING).cast(),
            bytes: 0,
            #[cfg(feature = "gpu")]
            pin: Pin::Not,
            #[cfg(feature = "std")]
            map: None,
        }
    }
}

impl Aligned {
    /// Zeroed memory.
    pub(crate) fn zeroed(bytes: u64) -> Result<Aligned, Error> {
        if bytes == 0 {
            return Ok(Aligned::default());
        }
        #[cfg(feature = "std")]
        if let Some(large) = usize::try_from(bytes).ok().filter(|&b| b >= LARGE) {
            return Aligned::pages(large);
        }
        let layout = usize::try_from(bytes).ok().and_then(|b| Layout::from_size_align(b, ALIGN).ok());
        // Safety: the layout has a size that is not zero.
        let start = layout.and_then(|l| NonNull::new(unsafe { alloc_zeroed(l) }));
        match (start, layout) {
            (Some(start), Some(layout)) => Ok(Aligned {
                start,
                bytes: layout.size(),
                #[cfg(feature = "gpu")]
                pin: Pin::Not,
                #[cfg(feature = "std")]
                map: None,
            }),
            _ => fail!(Memory, "out of memory: {bytes} bytes are needed"),
        }
    }
    #[cfg(feature = "std")]
    fn pages(bytes: usize) -> Result<Aligned, Error> {
        // It begins at a large page, so that as much of it as can be lies in such pages; of what is mapped before and behind it nothing is touched.
        let spare = if bytes >= LARGE_PAGE { LARGE_PAGE } else { 0 };
        let map = bytes.checked_add(spare).and_then(|all| memmap2::MmapMut::map_anon(all).ok());
        let skip = map.as_ref().filter(|_| spare > 0).map_or(0, |map| (map.as_ptr() as usize).wrapping_neg() % LARGE_PAGE);
        #[cfg(target_os = "linux")]
        if let Some(map) = &map {
            // Both are hints, which older systems do not take.
            let _ = map.advise_range(memmap2::Advice::HugePage, skip, bytes);
            if bytes <= AT_ONCE {
                let _ = map.advise_range(memmap2::Advice::PopulateWrite, skip, bytes);
            }
        }
        match map.and_then(|mut map| Some((NonNull::new(map.get_mut(skip..)?.as_mut_ptr())?, map))) {
            Some((start, map)) => Ok(Aligned {
                start,
                bytes,
                #[cfg(feature = "gpu")]
                pin: Pin::Not,
                map: Some(map),
            }),
            None => fail!(Memory, "out of memory: {bytes} bytes are needed"),
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
    /// Has a GPU reach it directly, if it is large and the driver takes it, which `register` is asked once. Says whether it does.
    #[cfg(feature = "gpu")]
    pub(crate) fn pin(&mut self, register: impl FnOnce(*mut u8, usize) -> Option<crate::gpu::Registered>) -> bool {
        // Blocks that are not mapped share their pages with others.
        if self.map.is_none() {
            return false;
        }
        if matches!(self.pin, Pin::Not) {
            self.pin = register(self.start.as_ptr(), self.bytes).map_or(Pin::Refused, Pin::Held);
        }
        matches!(self.pin, Pin::Held(_))
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
        #[cfg(feature = "std")]
        if self.map.is_some() {
            return;
        }
        if self.bytes > 0 {
            // Safety: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), Layout::from_size_align_unchecked(self.bytes, ALIGN)) }
        }
    }
}
