//! What a model is and means: dtypes, symbolic dims, the graph, the operator table, text form, verifier and interpreter.
//!
//! A leaf crate: it knows no file format, no pass and no target.

#![forbid(unsafe_code)]

pub mod compute;
pub mod dtype;
pub mod eager;
pub mod eval;
pub mod expr;
pub mod fault;
pub mod float8;
pub mod graph;
pub mod host;
mod intern;
pub mod interp;
pub mod op;
pub mod scalar;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;

pub use dtype::DType;
pub use expr::Expr;
pub use fault::{Fault, Problem, Problems};
pub use graph::{Graph, Node, Region, Value};
pub use op::Op;
pub use scalar::Scalar;
pub use tensor::Tensor;
pub use types::{Fact, TensorType, Type};
