//! Control flow: If, Loop, Scan.
//!
//! Regions see nothing of the outside. What an ONNX body captures from an outer scope is an operand after the declared
//! ones, and a parameter after the declared ones, in the same order and the same list for all regions of a node:
//! - If: operands `[cond, captured...]`, parameters of both branches `[captured...]`;
//! - Loop: operands `[max_trip_count, cond, carried..., captured...]`, parameters `[iteration, cond, carried..., captured...]`;
//!   the last `captures` operands are the captured ones;
//! - Scan: operands `[state..., scanned..., captured...]`, parameters the same (slices for the scanned); the last `captures`
//!   operands are the captured ones. SequenceMap likewise.
//!
//! Results are ONNX's: captured values are no results. Constants are never captured.

use super::*;

gaps! {
    If, Loop, Scan
}
