//! Names and widths of the element types that cross the border of a model, by their ONNX number.

use crate::program::DTypeCode;

/// `(number, name, bytes)` of every element type; text has no width.
pub const DTYPES: [(DTypeCode, &str, u8); 26] = [
    (1, "f32", 4),
    (2, "u8", 1),
    (3, "i8", 1),
    (4, "u16", 2),
    (5, "i16", 2),
    (6, "i32", 4),
    (7, "i64", 8),
    (8, "string", 0),
    (9, "bool", 1),
    (10, "f16", 2),
    (11, "f64", 8),
    (12, "u32", 4),
    (13, "u64", 8),
    (14, "c64", 8),
    (15, "c128", 16),
    (16, "bf16", 2),
    (17, "f8e4m3fn", 1),
    (18, "f8e4m3fnuz", 1),
    (19, "f8e5m2", 1),
    (20, "f8e5m2fnuz", 1),
    (21, "u4", 1),
    (22, "i4", 1),
    (23, "f4e2m1", 1),
    (24, "f8e8m0", 1),
    (25, "u2", 1),
    (26, "i2", 1),
];

/// The name of an element type: `f32`.
pub fn name(code: DTypeCode) -> Option<&'static str> {
    DTYPES.iter().find(|d| d.0 == code).map(|d| d.1)
}

/// Bytes of one element in memory; sub-byte types take one, text none.
pub fn bytes(code: DTypeCode) -> Option<u8> {
    DTYPES.iter().find(|d| d.0 == code).map(|d| d.2)
}

/// Alignment that memory with such elements needs.
pub fn align(element: u8) -> usize {
    usize::from(element).clamp(1, 8)
}
