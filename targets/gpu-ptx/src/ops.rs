//! Scalar operations by their rows: the same result as [`infc_ir::eval`]. Integers of fewer than 32 bits lie extended in 32-bit
//! registers, narrow floats as f32, rounded after each operation; bools are predicates.

use crate::asm::{Asm, Class, Val};
use crate::narrow::{is_narrow, pack, round, unpack};
use infc_ir::dtype::Class as Kind;
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Fault, fault};

/// The register type of values of a dtype.
pub fn register_type(dtype: DType) -> Result<&'static str, Fault> {
    Ok(match (dtype.class(), dtype.bytes()) {
        (Kind::Bool, _) => "pred",
        (Kind::Float, 8) => "f64",
        (Kind::Float, _) => "f32",
        (Kind::Signed, 8) => "s64",
        (Kind::Unsigned, 8) => "u64",
        (Kind::Signed, _) => "s32",
        (Kind::Unsigned, _) => "u32",
        (Kind::Complex | Kind::Text, _) => return Err(fault!("a GPU has no arithmetic on {dtype}")),
    })
}

/// The class of registers of values of a dtype.
pub fn class(dtype: DType) -> Result<Class, Fault> {
    Ok(crate::rows::class(register_type(dtype)?))
}

/// A constant, as `eval` holds its value.
pub fn constant(a: &mut Asm, dtype: DType, bits: u64) -> Result<Val, Fault> {
    let class = class(dtype)?;
    let bits = match register_type(dtype)? {
        "f32" => u64::from((f64::from_bits(bits) as f32).to_bits()),
        _ => bits,
    };
    Ok(a.constant(class, if class == Class::R { bits & 0xffff_ffff } else { bits }))
}

/// The instruction's type of an access to memory.
pub fn memory_type(dtype: DType) -> Result<&'static str, Fault> {
    register_type(dtype)?;
    Ok(match (dtype.bytes(), dtype.is_signed()) {
        (1, true) => "s8",
        (1, false) => "u8",
        (2, true) => "s16",
        (2, false) => "u16",
        (4, _) => "b32",
        _ => "b64",
    })
}

/// The bits in memory of a value, in a register of integers.
pub fn to_memory(a: &mut Asm, dtype: DType, v: Val) -> Result<Val, Fault> {
    match dtype {
        DType::Bool => a.row("number", "pred", &[v]),
        d if is_narrow(d) => pack(a, d, v),
        _ => Ok(v),
    }
}

/// The value of what was loaded from memory.
pub fn from_memory(a: &mut Asm, dtype: DType, v: Val) -> Result<Val, Fault> {
    match dtype {
        DType::Bool => a.row("nonzero", "u32", &[v]),
        d if is_narrow(d) => unpack(a, d, v),
        d if d.is_int() && d.bits() < 8 => extend(a, d, v),
        _ => Ok(v),
    }
}

/// The low bits of a register as an integer of a dtype.
fn extend(a: &mut Asm, dtype: DType, v: Val) -> Result<Val, Fault> {
    let ty = register_type(dtype)?;
    match dtype.bits() {
        32 | 64 => Ok(v),
        bits => a.row(&format!("extend{bits}"), ty, &[v]),
    }
}

/// Rounds the result of an operation to its dtype.
fn finish(a: &mut Asm, dtype: DType, v: Val) -> Result<Val, Fault> {
    match dtype {
        d if is_narrow(d) => round(a, d, v),
        d if d.is_int() => extend(a, d, v),
        _ => Ok(v),
    }
}

/// One operand.
pub fn unary(a: &mut Asm, op: Unary, dtype: DType, x: Val) -> Result<Val, Fault> {
    let ty = register_type(dtype)?;
    if dtype == DType::Bool {
        return match op {
            Unary::Not => a.row("not", ty, &[x]),
            Unary::IsNan | Unary::IsInf => Ok(a.constant(Class::P, 0)),
            _ => Ok(x),
        };
    }
    if dtype.is_int() {
        return match op {
            Unary::IsNan | Unary::IsInf => Ok(a.constant(Class::P, 0)),
            Unary::Floor | Unary::Ceil | Unary::Trunc | Unary::Round => Ok(x),
            Unary::Abs if !dtype.is_signed() => Ok(x),
            Unary::Neg | Unary::Abs | Unary::Not | Unary::Sign => {
                let r = a.row(op.name(), ty, &[x])?;
                finish(a, dtype, r)
            }
            // Real functions of integers: in f64 and back.
            _ => {
                let real = cast(a, dtype, DType::F64, x)?;
                let r = unary(a, op, DType::F64, real)?;
                cast(a, DType::F64, dtype, r)
            }
        };
    }
    if infc_kernel::math::is_transcendental(op) {
        return Err(fault!("'{}' was not lowered to arithmetic (infc_kernel::math::lower)", op.name()));
    }
    let r = a.row(op.name(), ty, &[x])?;
    if matches!(op, Unary::IsNan | Unary::IsInf) { Ok(r) } else { finish(a, dtype, r) }
}

/// Two operands of one dtype.
pub fn binary(a: &mut Asm, op: Binary, dtype: DType, x: Val, y: Val) -> Result<Val, Fault> {
    let ty = register_type(dtype)?;
    if dtype == DType::Bool {
        let name = match op {
            Binary::Add | Binary::Or | Binary::Max => "or",
            Binary::Sub | Binary::Xor | Binary::Ne => "xor",
            Binary::Mul | Binary::And | Binary::Min | Binary::Div => "and",
            Binary::Rem | Binary::Mod => return Ok(a.constant(Class::P, 0)),
            Binary::Eq => "eq",
            Binary::Gt | Binary::Shl | Binary::Shr => "gt",
            Binary::Lt => "lt",
            Binary::Ge | Binary::Pow => "ge",
            Binary::Le => "le",
            Binary::Atan2 => return Err(fault!("'atan2' on bool")),
        };
        return a.row(name, ty, &[x, y]);
    }
    let r = match (op, ty) {
        (Binary::Rem, "f32") => {
            let (x, y) = (a.row("to_f64", "f32", &[x])?, a.row("to_f64", "f32", &[y])?);
            let r = a.row("rem", "f64", &[x, y])?;
            a.row("to_f32", "f64", &[r])?
        }
        (Binary::Mod, "f32" | "f64") => {
            let r = binary(a, Binary::Rem, if ty == "f64" { DType::F64 } else { DType::F32 }, x, y)?;
            let zero = a.constant(crate::rows::class(ty), 0);
            let some = a.row("ne", ty, &[r, zero])?;
            let (negative, below) = (a.row("lt", ty, &[r, zero])?, a.row("lt", ty, &[y, zero])?);
            let differ = a.row("xor", "pred", &[negative, below])?;
            let move_it = a.row("and", "pred", &[some, differ])?;
            let moved = a.row("add", ty, &[r, y])?;
            a.row("select", ty, &[move_it, moved, r])?
        }
        _ => a.row(op.name(), ty, &[x, y])?,
    };
    if op.is_comparison() { Ok(r) } else { finish(a, dtype, r) }
}

/// `x * y + z` with one rounding.
pub fn fma(a: &mut Asm, dtype: DType, x: Val, y: Val, z: Val) -> Result<Val, Fault> {
    if !dtype.is_float() {
        let product = binary(a, Binary::Mul, dtype, x, y)?;
        return binary(a, Binary::Add, dtype, product, z);
    }
    if is_narrow(dtype) {
        let r = a.row("fma_narrow", "f32", &[x, y, z])?;
        return finish(a, dtype, r);
    }
    a.row("fma", register_type(dtype)?, &[x, y, z])
}

/// `cond ? x : y` of any register type.
pub fn select(a: &mut Asm, dtype: DType, cond: Val, x: Val, y: Val) -> Result<Val, Fault> {
    a.row("select", register_type(dtype)?, &[cond, x, y])
}

/// Conversion of a value.
pub fn cast(a: &mut Asm, from: DType, to: DType, v: Val) -> Result<Val, Fault> {
    if from == to {
        return Ok(v);
    }
    let (ft, tt) = (register_type(from)?, register_type(to)?);
    if to == DType::Bool {
        return a.row("nonzero", ft, &[v]);
    }
    if from == DType::Bool {
        let number = a.row("number", "pred", &[v])?;
        return cast(a, DType::U32, to, number);
    }
    match (from.is_float(), to.is_float()) {
        (true, true) => match (ft, tt) {
            ("f32", "f64") => a.row("to_f64", "f32", &[v]),
            ("f64", "f32") if to == DType::F32 => a.row("to_f32", "f64", &[v]),
            ("f64", "f32") => {
                let odd = a.row("odd_f32", "f64", &[v])?;
                finish(a, to, odd)
            }
            _ => finish(a, to, v),
        },
        (false, true) => match to {
            DType::F32 => a.row("to_f32", ft, &[v]),
            DType::F64 => a.row("to_f64", ft, &[v]),
            _ => {
                let wide = a.row("to_f64", ft, &[v])?;
                let odd = a.row("odd_f32", "f64", &[wide])?;
                finish(a, to, odd)
            }
        },
        (true, false) => match to.bits() {
            64 | 32 => a.row(&format!("to_{tt}"), ft, &[v]),
            _ => {
                let wide = a.row("to_s32", ft, &[v])?;
                let (lo, hi) = to.int_range().expect("an integer");
                let (lo, hi) = (a.r(lo as i32 as u32), a.r(hi as i32 as u32));
                let low = a.row("max", "s32", &[wide, lo])?;
                a.row("min", "s32", &[low, hi])
            }
        },
        (false, false) => {
            let v = match (crate::rows::class(ft), crate::rows::class(tt)) {
                (Class::R, Class::Q) => a.row("to_64", ft, &[v])?,
                (Class::Q, Class::R) => a.row("to_32", ft, &[v])?,
                _ => v,
            };
            extend(a, to, v)
        }
    }
}

/// The same bits as another dtype of the same width.
pub fn bitcast(a: &mut Asm, from: DType, to: DType, v: Val) -> Result<Val, Fault> {
    let mut raw = to_memory(a, from, v)?;
    // Instructions give another NaN than everybody else.
    if let Some(code) = [(DType::F16, 0x7e00), (DType::BF16, 0x7fc0)].iter().find(|c| c.0 == from) {
        let (nan, code) = (a.row("isnan", "f32", &[v])?, a.r(code.1));
        raw = a.row("select", "u32", &[nan, code, raw])?;
    }
    let raw = if to.is_int() { extend(a, to, raw)? } else { raw };
    // A signed integer of fewer bits lies extended: other readers want its own bits alone.
    let raw = match (from.is_signed() && !to.is_int(), from.bytes()) {
        (true, 1) => a.row("extend8", "u32", &[raw])?,
        (true, 2) => a.row("extend16", "u32", &[raw])?,
        _ => raw,
    };
    let raw = if from.is_signed() && to.is_int() && !to.is_signed() && from.bits() < 8 && to.bits() == 8 {
        a.row("extend8", "u32", &[raw])?
    } else {
        raw
    };
    from_memory(a, to, raw)
}
