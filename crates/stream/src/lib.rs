//! The streaming integer graph for FPGA and ASIC: actors that pass beats of integers through FIFOs.
//!
//! It knows no hardware language: `targets/c` prints a [`Design`] as HLS C++.

#![forbid(unsafe_code)]

pub mod design;
pub mod machine;
pub mod report;

pub use design::{Actor, ActorId, Design, Format, Kind, Port, Stream, StreamId};
pub use machine::Machine;
pub use report::Report;
