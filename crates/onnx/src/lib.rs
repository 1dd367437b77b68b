//! ONNX bytes to and from the graph IR, one to one.
//!
//! Import: `bytes -decode-> ModelProto -names, scopes, bodies-> nodes -versions-> newest form -infer-> Graph`.
//! Constants stay slices of the mapped file. All problems of a model are found in one go. Nothing outside this crate sees
//! protobuf.

#![deny(unsafe_code)]

mod attrs;
mod bodies;
mod data;
mod export;
mod files;
mod flex;
mod functions;
mod gradient;
mod import;
mod lift;
mod nodes;
pub mod proto;
mod scan8;
pub mod schema;
mod supported;
mod tensor;
mod types;
mod versions;
mod wire;

pub use data::{read_test_value, value_name, write_test_value};
pub use export::{export, write, write_with};
pub use import::{import, import_bytes};
pub use supported::{Supported, supported};
pub use tensor::{read_tensor_proto, write_tensor_proto};
