//! Host routines: operators on values that are no flat buffers (strings, sequences, optionals, maps, coded images), as pure functions.
//!
//! This is the one place of their meaning: the interpreter calls it, and so does the runtime for the host steps of an artifact. It is a
//! leaf: it knows no graph, no artifact and no dtype but by its ONNX number.

#![forbid(unsafe_code)]

mod codec;
mod fault;
mod image;
mod jpeg;
mod list;
mod map;
mod routine;
mod strings;
mod table;
mod tensor;
mod tfidf;
mod value;

pub use self::image::Pixels;
pub use fault::Fault;
pub use routine::{Pattern, Routine};
pub use strings::{Case, NUMBERS};
pub use tensor::{Data, Tensor, dtype};
pub use tfidf::{TfIdf, Weighting};
pub use value::{Key, Value};
