//! Element types: every ONNX tensor dtype, its width, class and ONNX number.
//!
//! In the IR every element takes whole bytes: `i4`, `u4`, `i2`, `u2` and `f4e2m1` values lie one to a byte. Packing them is a
//! physical storage choice of the kernel level, not a property of the type.

use std::fmt;
use std::str::FromStr;

/// The class of a dtype: which arithmetic its values take part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// IEEE-like floating point, including the 8- and 4-bit formats.
    Float,
    /// Two's complement integers.
    Signed,
    /// Unsigned integers.
    Unsigned,
    /// `true` or `false`, one byte, 1 or 0.
    Bool,
    /// A pair of floats (real, imaginary).
    Complex,
    /// UTF-8 text; has no fixed width.
    Text,
}

macro_rules! dtypes {
    ($($variant:ident $name:literal $onnx:literal $bytes:literal $bits:literal $class:ident;)*) => {
        /// The dtype of a tensor's elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DType { $(#[doc = concat!("`", $name, "`")] $variant,)* }

        impl DType {
            /// All dtypes, in ONNX's order of kinds.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];
            /// The name in the text form, e.g. `f32`.
            pub const fn name(self) -> &'static str { match self { $(DType::$variant => $name,)* } }
            /// The number of `TensorProto.DataType` in `onnx.proto`.
            pub const fn onnx(self) -> i32 { match self { $(DType::$variant => $onnx,)* } }
            /// The dtype of a `TensorProto.DataType` number.
            pub const fn from_onnx(number: i32) -> Option<DType> { match number { $($onnx => Some(DType::$variant),)* _ => None } }
            /// Bytes of one element in memory (0 for text).
            pub const fn bytes(self) -> usize { match self { $(DType::$variant => $bytes,)* } }
            /// Bits that carry information (4 for `i4`).
            pub const fn bits(self) -> u32 { match self { $(DType::$variant => $bits,)* } }
            /// Its class.
            pub const fn class(self) -> Class { match self { $(DType::$variant => Class::$class,)* } }
        }
    };
}

dtypes! {
    F32 "f32" 1 4 32 Float;
    U8 "u8" 2 1 8 Unsigned;
    I8 "i8" 3 1 8 Signed;
    U16 "u16" 4 2 16 Unsigned;
    I16 "i16" 5 2 16 Signed;
    I32 "i32" 6 4 32 Signed;
    I64 "i64" 7 8 64 Signed;
    String "string" 8 0 0 Text;
    Bool "bool" 9 1 1 Bool;
    F16 "f16" 10 2 16 Float;
    F64 "f64" 11 8 64 Float;
    U32 "u32" 12 4 32 Unsigned;
    U64 "u64" 13 8 64 Unsigned;
    C64 "c64" 14 8 64 Complex;
    C128 "c128" 15 16 128 Complex;
    BF16 "bf16" 16 2 16 Float;
    F8E4M3FN "f8e4m3fn" 17 1 8 Float;
    F8E4M3FNUZ "f8e4m3fnuz" 18 1 8 Float;
    F8E5M2 "f8e5m2" 19 1 8 Float;
    F8E5M2FNUZ "f8e5m2fnuz" 20 1 8 Float;
    U4 "u4" 21 1 4 Unsigned;
    I4 "i4" 22 1 4 Signed;
    F4E2M1 "f4e2m1" 23 1 4 Float;
    F8E8M0 "f8e8m0" 24 1 8 Float;
    U2 "u2" 25 1 2 Unsigned;
    I2 "i2" 26 1 2 Signed;
}

impl DType {
    /// True for every floating-point format.
    pub const fn is_float(self) -> bool {
        matches!(self.class(), Class::Float)
    }
    /// True for signed and unsigned integers (not bool).
    pub const fn is_int(self) -> bool {
        matches!(self.class(), Class::Signed | Class::Unsigned)
    }
    /// True for signed integers.
    pub const fn is_signed(self) -> bool {
        matches!(self.class(), Class::Signed)
    }
    /// Smallest and largest value of an integer dtype (bool: 0 and 1).
    pub fn int_range(self) -> Option<(i128, i128)> {
        let bits = self.bits();
        match self.class() {
            Class::Signed => Some((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)),
            Class::Unsigned => Some((0, (1i128 << bits) - 1)),
            Class::Bool => Some((0, 1)),
            Class::Float | Class::Complex | Class::Text => None,
        }
    }
    /// The dtype in which sums of this one are taken: f32 for the narrow floats, itself otherwise.
    pub const fn accumulator(self) -> DType {
        match self {
            DType::F64 => DType::F64,
            d if d.is_float() => DType::F32,
            d => d,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = String;
    fn from_str(s: &str) -> Result<DType, String> {
        DType::ALL.iter().copied().find(|d| d.name() == s).ok_or_else(|| format!("unknown dtype '{s}'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_onnx_numbers_round_trip() {
        for &d in DType::ALL {
            assert_eq!(d.name().parse::<DType>().unwrap(), d);
            assert_eq!(DType::from_onnx(d.onnx()), Some(d));
        }
    }
}
