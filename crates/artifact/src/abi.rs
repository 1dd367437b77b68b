//! Kernel ABI, version 1: how the runtime calls compiled code.
//!
//! ```c
//! uint64_t kernel(void *const *buffers, const int64_t *extents, void *scratch, int64_t begin, int64_t end);
//! ```
//!
//! The convention is that of Linux on every operating system (System V's on x86-64), code keeps off what another one has a use of its own for (the memory below the stack pointer, register
//! x18 of 64-bit Arm), and touches frames of more than a page page by page: an artifact runs on all of them.
//!
//! `buffers` holds one pointer for each global buffer of the kernel, `extents` the value of each of its symbols, `scratch` is memory
//! for this call alone, aligned to 64 bytes; the tasks `begin..end` run in order. Buffers of one call never overlap, unless they
//! are only read. The result is 0, or `code + 1` of the first failed check.

/// The version of this ABI, stored in every artifact.
pub const VERSION: u32 = 1;

/// Alignment of scratch and of arena buffers.
pub const ALIGN: usize = 64;

/// What the constants of an artifact are aligned to as a whole.
pub const CONSTANTS_ALIGN: usize = 512;

/// Constants of more bytes are taken to be read from memory in each run.
const LARGE: usize = 1 << 20;

/// Bytes of a large constant before a multiple of [`CONSTANTS_ALIGN`].
const BEFORE: usize = 128;

/// Where a constant of so many bytes lies if those before it end at `end`: at a multiple of [`ALIGN`], and a large one so many bytes before a multiple of [`CONSTANTS_ALIGN`]. Panels of weights for one row
/// are read 512 bytes a step, and at this distance from pages a core fetches them best. (Granite Rapids, a token of a decoder of 536 MB in f32: 28 ms, at the other seven places 31 to 35;
/// a loop of those reads alone: 18 to 20 GB/s and 15.)
pub fn place_constant(end: usize, bytes: usize) -> usize {
    match bytes > LARGE {
        true => (end + BEFORE).next_multiple_of(CONSTANTS_ALIGN) - BEFORE,
        false => end.next_multiple_of(ALIGN),
    }
}
