//! From graph to loop nests: grouping, placement, plans, builders, loop IR, memory, intrinsic rows, and the `Backend` trait.
//!
//! Knows no instruction set and no file format: what differs between targets is data ([`target::TargetDesc`]) or an
//! intrinsic row.

#![forbid(unsafe_code)]

pub mod backend;
pub mod loops;
pub mod target;
