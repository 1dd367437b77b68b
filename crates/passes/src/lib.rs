//! Target-free passes: each turns a graph into a better graph with the same meaning.
//!
//! [`PASSES`] lists them; [`run`] is the manager. A pass is a file with a doc, its rules with their laws, and a [`Class`] that says
//! how equal the results before and after are. Passes know no target, no file format and no names of values.

#![forbid(unsafe_code)]

mod batchnorm;
mod canon;
mod cse;
mod dce;
mod decompose;
mod fold;
mod integer;
mod manager;
mod quantisers;
mod recognise;
mod rewrite;
mod shape;
pub mod taps;
pub mod transposed;
mod unroll;

pub use manager::{Class, Options, PASSES, Pass, PassReport, Report, pass, pipeline, run, simplify, streaming};
pub use rewrite::Context;
pub use shape::bind;
