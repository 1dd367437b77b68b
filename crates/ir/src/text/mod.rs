//! The text form of graphs: printed for people and for tests, and read back without loss.
//!
//! ```text
//! graph "tiny" {
//!   ir_version 8
//!   opset "" 13
//!   metadata "author" = "somebody"
//!   require batch broadcasts with 4 "Add 'sum' (opset 13)" "shapes must broadcast"
//!   source 0 "fc1" "Gemm" 13
//!   const %0: f32[4] "bias" = {0.0, 1.0, -2.5, inf}
//!   const %1: f32[512, 4] "weight" = blob 0
//!   region (%2: f32[batch, 512] "x") {
//!     %3: f32[batch, 4] "y" = Gemm(%2, %1, %0) {transB = 1} @"fc1" from [0]
//!     %4: i64[2] is [batch, 4] = Shape(%3) from [0]
//!     yield %3
//!   }
//! }
//! blob 0 "AAAAAAAAgD8..."
//! ```
//!
//! Values are numbered in the order in which they appear; constants first, by first use. `_` stands for an absent operand, `is`
//! for elements known as expressions. Operators of other domains are written `com.microsoft:QLinearAdd`. The bodies of a
//! control-flow node stand below it. `parse(print(g))` equals [`Graph::compact`] of `g`: dead entries of the arenas are not
//! printed. An elided text shows large constants as hashes and does not parse.

mod compact;
pub mod cursor;
mod data;
mod parse;
mod print;
pub mod scalar;
pub mod step;

pub use parse::parse;
pub use print::{Options, print, print_with};

#[cfg(test)]
mod tests;

#[cfg(doc)]
use crate::graph::Graph;
