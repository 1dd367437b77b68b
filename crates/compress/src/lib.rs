//! Compression: smaller and faster models that still answer the same, with the loss measured.
//!
//! Every step is graph in, graph and report out. Models run through [`Executor`], which the compiler's crate implements with compiled
//! code and tests implement with the interpreter. This crate knows no target and no file format of models.

#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as infc_compress; // the networks of tests name it so

pub mod calibrate;
pub mod compare;
pub mod data;
pub mod distill;
pub mod executor;
pub mod layers;
pub mod measure;
pub mod mixed;
pub mod npy;
pub mod npz;
pub mod prune;
pub mod quantize;
pub mod report;

pub use data::{Data, Sample};
pub use executor::{Executor, Interpreter, Runner};
pub use report::Report;
