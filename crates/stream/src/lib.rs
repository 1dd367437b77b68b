//! The streaming integer graph for FPGA and ASIC: actors that pass beats of integers through FIFOs.
//!
//! It knows no hardware language: `targets/c` prints a [`Design`] as HLS C++.

#![forbid(unsafe_code)]

pub mod convert;
pub mod design;
pub mod estimate;
pub mod fifo;
pub mod fixed;
pub mod fold;
pub mod golden;
pub mod machine;
pub mod prepare;
pub mod report;
pub mod requant;
pub mod schedule;
pub mod sim;

pub use convert::convert;
pub use design::{Actor, ActorId, Design, Format, Kind, Port, Stream, StreamId};
pub use fold::{Folded, Goal, fold};
pub use machine::Machine;
pub use prepare::{InputFormat, Options, prepare};
pub use report::Report;
