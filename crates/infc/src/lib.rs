//! The compiler as a library: the road from a model to an artifact, and the checks along it.
//!
//! The only crate that knows all the others.

#![forbid(unsafe_code)]

pub mod compare;
pub mod npy;
