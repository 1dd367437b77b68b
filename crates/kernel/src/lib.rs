//! From graph to loop nests: grouping, placement, plans, builders, loop IR, memory, intrinsic rows, and the `Backend` trait.
//!
//! Knows no instruction set and no file format: what differs between targets is data ([`target::TargetDesc`]) or an
//! intrinsic row.

#![forbid(unsafe_code)]

pub mod attention;
pub mod backend;
pub mod bands;
pub mod batch;
pub mod bounded;
pub mod build;
pub mod byte_blocks;
pub mod byte_groups;
pub mod chain;
pub mod copies;
pub mod cost;
pub mod fuse;
mod gathered;
pub mod known;
mod largest;
mod lookups;
pub mod loops;
pub mod math;
pub mod narrow;
pub mod place;
pub mod plan;
pub mod program;
pub mod recognised;
pub mod rounded;
pub mod rows;
mod siblings;
pub mod split;
pub mod target;
pub mod tf32;
pub mod tuning;
pub mod work;
pub mod zero_point;
