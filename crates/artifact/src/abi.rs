//! Kernel ABI, version 1: how the runtime calls compiled code.
//!
//! ```c
//! uint64_t kernel(void *const *buffers, const int64_t *extents, void *scratch, int64_t begin, int64_t end);
//! ```
//!
//! `buffers` holds one pointer for each global buffer of the kernel, `extents` the value of each of its symbols, `scratch` is memory
//! for this call alone, aligned to 64 bytes; the tasks `begin..end` run in order. Buffers of one call never overlap, unless they
//! are only read. The result is 0, or `code + 1` of the first failed check.

/// The version of this ABI, stored in every artifact.
pub const VERSION: u32 = 1;

/// Alignment of scratch and of arena buffers.
pub const ALIGN: usize = 64;
