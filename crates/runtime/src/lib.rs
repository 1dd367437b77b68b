//! Loads and runs what infc compiled.
//!
//! ```no_run
//! use infc_runtime::{Model, Options, Session, TensorRef};
//! # fn main() -> Result<(), infc_runtime::Error> {
//! let model = Model::open("model.infc")?;
//! let mut session = Session::new(model, Options::default())?;
//! session.set_input("x", TensorRef::of(&[1, 4], &[1.0f32, 2.0, 3.0, 4.0]))?;
//! session.run()?;
//! println!("{:?}", session.output(0)?.values::<f32>()?);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Model`] is immutable and shared; each [`Session`] has its own memory, threads and state, and runs without allocating
//! once it has seen its shapes. Nothing here knows a graph or a compiler.
//!
//! With feature `host`, models may have strings, sequences, optionals, maps and coded images: [`Session::set_value`], [`Session::value`].
//!
//! With feature `gpu`, models compiled for NVIDIA GPUs run there, through the driver's library, which is opened when it is needed.
//!
//! Without feature `std` this is a `no_std` crate with `alloc`: one thread, and code that the caller made executable.

#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

#[cfg(feature = "capi")]
pub mod capi;
pub mod cpu;
mod error;
mod exec;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(feature = "host")]
mod host;
#[cfg(feature = "std")]
mod map;
mod memory;
mod model;
mod plan;
#[cfg(feature = "std")]
mod pool;
#[cfg(feature = "std")]
mod rounds;
mod session;
mod tensor;
pub mod variant;
#[cfg(feature = "host")]
pub mod worker;

pub use error::{Error, ErrorKind};
#[cfg(feature = "host")]
pub use infc_host::{Data, Key, Tensor, Value};
pub use model::{Dim, Model, PortInfo};
pub use session::{Memory, Options, PortId, Session, StepTime};
pub use tensor::{DType, Element, TensorRef};

/// The version of this runtime.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
