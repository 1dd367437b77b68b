//! The compiler as a library: the road from a model to an artifact, and the checks along it.
//!
//! The only crate that knows all the others.

#![forbid(unsafe_code)]

pub mod beside;
pub mod bisect;
pub mod c_engine;
pub mod cases;
pub mod compare;
pub mod compile;
pub mod effort;
pub mod engine;
pub mod executor;
pub mod fpga;
pub mod gaps;
pub mod inputs;
pub mod loops_engine;
pub mod machine;
pub mod native;
pub mod outputs;
#[cfg(feature = "ptx")]
pub mod ptx_engine;
pub mod remote;
pub mod replay;
pub mod target;
pub mod tune;
pub mod verify;
#[cfg(feature = "llvm")]
pub mod web_engine;

pub use compile::{Compiled, Options, compile, compile_file};
pub use infc_compress::npy;
