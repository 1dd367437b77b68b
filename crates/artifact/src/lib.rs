//! The `.infc` container, the program of steps and buffers, and the kernel ABI: plain data shared by compiler and runtime.
//!
//! `no_std` with `alloc`; knows no graph and no code generator.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod abi;
pub mod container;
pub mod decode;
pub mod dtype;
pub mod encode;
pub mod hash;
pub mod memory;
pub mod parse;
pub mod program;
mod size;
mod text;
pub mod validate;
