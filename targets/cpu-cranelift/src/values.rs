//! What values of emitted code are: types, constants, and lists of Cranelift's values. `function` has what is done with them.

use cranelift_codegen::ir::Value;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{self, Type};

/// The type of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    I1,
    I8,
    I16,
    I32,
    I64,
    F32,
    F64,
}

impl Elem {
    pub fn bits(self) -> u32 {
        match self {
            Elem::I1 => 1,
            Elem::I8 => 8,
            Elem::I16 => 16,
            Elem::I32 | Elem::F32 => 32,
            Elem::I64 | Elem::F64 => 64,
        }
    }
    pub fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F64)
    }
    /// Of a value that is the same in all lanes. Bools are bytes, 0 or 1.
    pub fn scalar(self) -> Type {
        match self {
            Elem::I1 | Elem::I8 => types::I8,
            Elem::I16 => types::I16,
            Elem::I32 => types::I32,
            Elem::I64 => types::I64,
            Elem::F32 => types::F32,
            Elem::F64 => types::F64,
        }
    }
    /// Of a piece. (Masks have no such type.)
    pub fn vector(self) -> Type {
        match self {
            Elem::I1 => unreachable!("a mask has the width of what made it"),
            Elem::I8 => types::I8X16,
            Elem::I16 => types::I16X8,
            Elem::I32 => types::I32X4,
            Elem::I64 => types::I64X2,
            Elem::F32 => types::F32X4,
            Elem::F64 => types::F64X2,
        }
    }
    /// The integers of so many bits.
    pub fn int(bits: u32) -> Elem {
        match bits {
            8 => Elem::I8,
            16 => Elem::I16,
            32 => Elem::I32,
            _ => Elem::I64,
        }
    }
}

/// An element and a number of lanes; one lane is the same value in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ty {
    pub elem: Elem,
    pub lanes: u32,
}

impl Ty {
    pub fn new(elem: Elem, lanes: u32) -> Ty {
        Ty { elem, lanes }
    }
    pub fn with(self, elem: Elem) -> Ty {
        Ty { elem, ..self }
    }
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The same integer in all lanes, sign-extended; bools are 0 and 1.
    Int(i64),
    /// The same float in all lanes: the bits of an `f64`.
    Float(u64),
    /// Integers `first + step * lane`.
    Lanes(i64, i64),
    /// A value that all lanes share.
    One(Value),
    /// A list of pieces, by number.
    Many(u32),
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Val {
    pub ty: Ty,
    pub op: Operand,
}

impl Val {
    pub fn int(elem: Elem, value: i64) -> Val {
        Val { ty: Ty::new(elem, 1), op: Operand::Int(narrow(elem, value)) }
    }
    pub fn i64(value: i64) -> Val {
        Val::int(Elem::I64, value)
    }
    pub fn bool(value: bool) -> Val {
        Val { ty: Ty::new(Elem::I1, 1), op: Operand::Int(i64::from(value)) }
    }
    pub fn float(elem: Elem, value: f64) -> Val {
        Val { ty: Ty::new(elem, 1), op: Operand::Float(value.to_bits()) }
    }
    pub fn one(elem: Elem, value: Value) -> Val {
        Val { ty: Ty::new(elem, 1), op: Operand::One(value) }
    }
    /// The integer that it is in all lanes, if it is a constant.
    pub fn known(self) -> Option<i64> {
        match self.op {
            Operand::Int(i) => Some(i),
            _ => None,
        }
    }
    /// The same for floats.
    pub fn known_float(self) -> Option<f64> {
        match self.op {
            Operand::Float(bits) => Some(f64::from_bits(bits)),
            _ => None,
        }
    }
    pub fn uniform(self) -> bool {
        self.ty.lanes == 1
    }
}

/// Operations on two operands of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bin {
    Add,
    Sub,
    Mul,
    /// The upper half of the product of unsigned numbers.
    UMulHi,
    SDiv,
    UDiv,
    SRem,
    URem,
    And,
    Or,
    Xor,
    Shl,
    LShr,
    AShr,
    SMin,
    SMax,
    UMin,
    UMax,
    FAdd,
    FSub,
    FMul,
    FDiv,
    /// NaN if either is; -0 < +0.
    FMin,
    FMax,
}

/// Operations on one float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Un {
    Neg,
    Abs,
    Floor,
    Ceil,
    Trunc,
    Nearest,
    Sqrt,
}

/// Conversions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cast {
    Trunc,
    Zext,
    Sext,
    FpTrunc,
    FpExt,
    Bitcast,
    SiToFp,
    UiToFp,
    /// Saturates; NaN gives 0.
    FpToSi,
    FpToUi,
    /// Of what is known to be within the range.
    FpToSiWithin,
}

/// The low bits of an integer, sign-extended.
pub fn narrow(elem: Elem, value: i64) -> i64 {
    if elem == Elem::I1 {
        return value & 1;
    }
    let unused = 64 - elem.bits();
    value << unused >> unused
}

/// Constants of the operations that conditions and indices are made of.
pub fn fold(op: Bin, x: i64, y: i64) -> Option<i64> {
    Some(match op {
        Bin::Add => x.wrapping_add(y),
        Bin::Sub => x.wrapping_sub(y),
        Bin::Mul => x.wrapping_mul(y),
        Bin::And => x & y,
        Bin::Or => x | y,
        Bin::Xor => x ^ y,
        Bin::SMin => x.min(y),
        Bin::SMax => x.max(y),
        _ => return None,
    })
}

/// The same comparison of signed numbers.
pub fn signed(cc: IntCC) -> IntCC {
    match cc {
        IntCC::UnsignedLessThan => IntCC::SignedLessThan,
        IntCC::UnsignedLessThanOrEqual => IntCC::SignedLessThanOrEqual,
        IntCC::UnsignedGreaterThan => IntCC::SignedGreaterThan,
        IntCC::UnsignedGreaterThanOrEqual => IntCC::SignedGreaterThanOrEqual,
        same => same,
    }
}

/// Both are sign-extended, which keeps the order of unsigned numbers too.
pub fn compare(cc: IntCC, x: i64, y: i64) -> bool {
    let (a, b) = (x as u64, y as u64);
    match cc {
        IntCC::Equal => x == y,
        IntCC::NotEqual => x != y,
        IntCC::SignedLessThan => x < y,
        IntCC::SignedLessThanOrEqual => x <= y,
        IntCC::SignedGreaterThan => x > y,
        IntCC::SignedGreaterThanOrEqual => x >= y,
        IntCC::UnsignedLessThan => a < b,
        IntCC::UnsignedLessThanOrEqual => a <= b,
        IntCC::UnsignedGreaterThan => a > b,
        IntCC::UnsignedGreaterThanOrEqual => a >= b,
    }
}
