//! Scalar operations as C expressions: total, the same result as [`infc_ir::eval`].

use crate::helpers::Helpers;
use crate::text::{Level, Text};
use crate::types::{constant, is_narrow, memory};
use infc_ir::dtype::Class;
use infc_ir::scalar::{Binary, Kind, Scalar, Unary};
use infc_ir::{DType, Fault, fault};
use infc_kernel::math::is_transcendental;

/// A value as it lies in memory.
pub fn to_memory(h: &mut Helpers, dtype: DType, v: Text) -> Text {
    if is_narrow(dtype) { Text::call(&h.narrow("pack", dtype), &[&v]) } else { v }
}

/// The value of what lies in memory.
pub fn from_memory(h: &mut Helpers, dtype: DType, v: Text) -> Text {
    match dtype {
        DType::Bool => Text::infix("!=", &v, &Text::atom("0")),
        d if is_narrow(d) => Text::call(&h.narrow("unpack", d), &[&v]),
        d if d.is_int() && d.bits() as usize != 8 * d.bytes() => wrapped(h, d, v.text),
        _ => v,
    }
}

/// Rounds the result of a `float` operation on a narrow dtype.
fn finish(h: &mut Helpers, dtype: DType, v: Text) -> Text {
    if is_narrow(dtype) { Text::call(&h.narrow("round", dtype), &[&v]) } else { v }
}

/// Exponents for which a power is a few multiplications or a root.
const SHORT_POWERS: [f64; 6] = [0.0, 1.0, 2.0, 3.0, -1.0, 0.5];

/// The same with operators that have no form in C taken apart: functions of narrow floats and of integers go through wider floats.
pub fn normal(s: Scalar) -> Scalar {
    s.rewrite(&mut |n| match n.kind() {
        Kind::Unary(op, a) if is_transcendental(*op) || *op == Unary::Sqrt && !a.dtype().is_float() => {
            let d = a.dtype();
            match d {
                DType::F32 | DType::F64 => n,
                _ => Scalar::unary(*op, a.cast(if d.is_float() { DType::F32 } else { DType::F64 })).cast(d),
            }
        }
        Kind::Binary(op @ (Binary::Pow | Binary::Atan2), a, b) if a.dtype().is_float() || *op == Binary::Atan2 => {
            let d = a.dtype();
            match d {
                // Constant exponents have forms of their own.
                DType::F32 | DType::F64 if b.as_float().is_some_and(|y| SHORT_POWERS.contains(&y)) => {
                    infc_kernel::math::lower(n, false)
                }
                DType::F32 | DType::F64 => n,
                _ => {
                    let wide = if d.is_float() { DType::F32 } else { DType::F64 };
                    Scalar::binary(*op, a.cast(wide), b.cast(wide)).cast(d)
                }
            }
        }
        _ => n,
    })
}

/// One operand.
pub fn unary(h: &mut Helpers, op: Unary, dtype: DType, x: &Text) -> Result<Text, Fault> {
    match dtype.class() {
        Class::Float => unary_float(h, op, dtype, x),
        Class::Bool => Ok(match op {
            Unary::Not => Text::not(x),
            Unary::IsNan | Unary::IsInf => Text::atom("0"),
            _ => x.clone(),
        }),
        Class::Signed | Class::Unsigned => Ok(unary_int(h, op, dtype, x)),
        Class::Complex | Class::Text => Err(fault!("C code has no arithmetic on {dtype}")),
    }
}

fn unary_float(h: &mut Helpers, op: Unary, dtype: DType, x: &Text) -> Result<Text, Fault> {
    let double = dtype == DType::F64;
    let r = match op {
        Unary::Neg => Text::minus(x),
        Unary::Abs => Text::call(&h.library("fabs", dtype), &[x]),
        Unary::Sign => Text::call(&h.float("sign", double), &[x]),
        Unary::Not => Text::infix("==", x, &Text::atom("0")),
        Unary::Floor => Text::call(&h.library("floor", dtype), &[x]),
        Unary::Ceil => Text::call(&h.library("ceil", dtype), &[x]),
        Unary::Trunc => Text::call(&h.library("trunc", dtype), &[x]),
        Unary::Round => Text::call(&h.library("rint", dtype), &[x]),
        Unary::Sqrt => Text::call(&h.library("sqrt", dtype), &[x]),
        Unary::IsNan => return Ok(Text::call(&h.float("isnan", double), &[x])),
        Unary::IsInf => return Ok(Text::call(&h.float("isinf", double), &[x])),
        _ => return Err(fault!("'{}' of {dtype} has no form in C", op.name())),
    };
    Ok(finish(h, dtype, r))
}

fn unary_int(h: &mut Helpers, op: Unary, dtype: DType, x: &Text) -> Text {
    match op {
        Unary::Neg => Text::call(&h.wraps("neg", dtype), &[x]),
        Unary::Abs if dtype.is_signed() => Text::call(&h.wraps("abs", dtype), &[x]),
        Unary::Sign => Text::call(&h.int_pick("sign", dtype), &[x]),
        Unary::Not => wrapped(h, dtype, format!("~{}", x.operand())),
        Unary::IsNan | Unary::IsInf => Text::atom("0"),
        _ => x.clone(),
    }
}

/// An integer expression, perhaps promoted to a wider type, as a value of `dtype`.
fn wrapped(h: &mut Helpers, dtype: DType, text: String) -> Text {
    let text = h.wrapped(dtype, &text);
    let level = if text.starts_with('(') { Level::Unary } else { Level::Atom };
    Text::new(level, text)
}

/// Two operands of `dtype`.
pub fn binary(h: &mut Helpers, op: Binary, dtype: DType, a: &Text, b: &Text) -> Result<Text, Fault> {
    match dtype.class() {
        Class::Bool => binary_bool(op, a, b),
        Class::Float => binary_float(h, op, dtype, a, b),
        Class::Signed | Class::Unsigned => binary_int(h, op, dtype, a, b),
        Class::Complex | Class::Text => Err(fault!("C code has no arithmetic on {dtype}")),
    }
}

fn binary_bool(op: Binary, a: &Text, b: &Text) -> Result<Text, Fault> {
    // Operands of `&&` and `||` that are not comparisons of their own need parentheses only where the other operator is inside.
    let join = |op: &str, a: &Text, b: &Text| {
        let other = if op == "&&" { " || " } else { " && " };
        let side = |t: &Text| match t.level {
            Level::Other if !t.text.contains(other) => t.text.clone(),
            _ => t.operand(),
        };
        Text::new(Level::Other, format!("{} {op} {}", side(a), side(b)))
    };
    let equal = |op: &str| Text::new(Level::Other, format!("{} {op} {}", a.operand(), b.operand()));
    Ok(match op {
        Binary::Add | Binary::Or | Binary::Max => join("||", a, b),
        Binary::Sub | Binary::Xor | Binary::Ne => equal("!="),
        Binary::Mul | Binary::And | Binary::Min | Binary::Div => join("&&", a, b),
        Binary::Rem | Binary::Mod => Text::atom("0"),
        Binary::Eq => equal("=="),
        Binary::Gt | Binary::Shl | Binary::Shr => join("&&", a, &Text::not(b)),
        Binary::Lt => join("&&", &Text::not(a), b),
        Binary::Ge | Binary::Pow => join("||", a, &Text::not(b)),
        Binary::Le => join("||", &Text::not(a), b),
        Binary::Atan2 => return Err(fault!("'atan2' on bool")),
    })
}

/// The operator of a comparison.
pub fn comparison(op: Binary) -> Option<&'static str> {
    Some(match op {
        Binary::Eq => "==",
        Binary::Ne => "!=",
        Binary::Lt => "<",
        Binary::Le => "<=",
        Binary::Gt => ">",
        Binary::Ge => ">=",
        _ => return None,
    })
}

fn binary_float(h: &mut Helpers, op: Binary, dtype: DType, a: &Text, b: &Text) -> Result<Text, Fault> {
    if let Some(op) = comparison(op) {
        return Ok(Text::infix(op, a, b));
    }
    let double = dtype == DType::F64;
    let r = match op {
        Binary::Add => Text::arithmetic('+', a, b),
        Binary::Sub => Text::arithmetic('-', a, b),
        Binary::Mul => Text::arithmetic('*', a, b),
        Binary::Div => Text::arithmetic('/', a, b),
        Binary::Min => Text::call(&h.float("min", double), &[a, b]),
        Binary::Max => Text::call(&h.float("max", double), &[a, b]),
        Binary::Rem => Text::call(&h.library("fmod", dtype), &[a, b]),
        Binary::Mod => Text::call(&h.float("mod", double), &[a, b]),
        _ => return Err(fault!("'{}' of {dtype} has no form in C", op.name())),
    };
    Ok(finish(h, dtype, r))
}

/// Minimum or maximum of a float and a constant that is a number, where a comparison does.
pub fn limited(h: &mut Helpers, op: Binary, dtype: DType, x: &Text, limit: f64) -> Option<Text> {
    let name = match op {
        Binary::Max if !(limit == 0.0 && limit.is_sign_negative()) => "at_least",
        Binary::Min if !(limit == 0.0 && limit.is_sign_positive()) => "at_most",
        _ => return None,
    };
    if limit.is_nan() {
        return None;
    }
    let c = Text::number(constant(dtype, limit.to_bits()));
    Some(Text::call(&h.float(name, dtype == DType::F64), &[x, &c]))
}

fn binary_int(h: &mut Helpers, op: Binary, dtype: DType, a: &Text, b: &Text) -> Result<Text, Fault> {
    if let Some(op) = comparison(op) {
        return Ok(Text::infix(op, a, b));
    }
    // What is narrower than `int` is promoted to it and does not overflow; u32 and u64 wrap by themselves.
    let natural = dtype.bytes() < 4 || dtype.bits() >= 32 && !dtype.is_signed();
    let arithmetic = |h: &mut Helpers, name: &str, op: char| match natural && !(op == '*' && dtype == DType::U16) {
        true if dtype.bytes() >= 4 => Text::arithmetic(op, a, b),
        true => {
            let value = Text::arithmetic(op, a, b);
            wrapped(h, dtype, value.text)
        }
        false => Text::call(&h.wraps(name, dtype), &[a, b]),
    };
    Ok(match op {
        Binary::Add => arithmetic(h, "add", '+'),
        Binary::Sub => arithmetic(h, "sub", '-'),
        Binary::Mul => arithmetic(h, "mul", '*'),
        Binary::Div => Text::call(&h.division("div", dtype), &[a, b]),
        Binary::Rem => Text::call(&h.division("rem", dtype), &[a, b]),
        Binary::Mod => Text::call(&h.division("mod", dtype), &[a, b]),
        Binary::Min => Text::call(&h.int_pick("min", dtype), &[a, b]),
        Binary::Max => Text::call(&h.int_pick("max", dtype), &[a, b]),
        // The bits of values stay those of a value.
        Binary::And | Binary::Or | Binary::Xor => {
            let op = match op {
                Binary::And => '&',
                Binary::Or => '|',
                _ => '^',
            };
            let text = format!("{} {op} {}", a.operand(), b.operand());
            match dtype.bytes() < 4 {
                true => Text::cast(memory(dtype)?, &Text::new(Level::Other, text)),
                false => Text::new(Level::Other, text),
            }
        }
        Binary::Shl => Text::call(&h.shift(true, dtype), &[a, b]),
        Binary::Shr => Text::call(&h.shift(false, dtype), &[a, b]),
        Binary::Pow => Text::call(&h.int_pow(dtype), &[a, b]),
        _ => return Err(fault!("'{}' of {dtype} has no form in C", op.name())),
    })
}

/// A comparison of an integer with a constant at the end of its range: always or never true, which compilers complain about.
pub fn decided(op: Binary, dtype: DType, limit: i64) -> Option<bool> {
    let (lo, hi) = dtype.int_range()?;
    let limit = if dtype.is_signed() { i128::from(limit) } else { i128::from(limit as u64) };
    match op {
        Binary::Lt if limit <= lo => Some(false),
        Binary::Ge if limit <= lo => Some(true),
        Binary::Le if limit >= hi => Some(true),
        Binary::Gt if limit >= hi => Some(false),
        _ => None,
    }
}

/// The same of two operands, one of which may be a constant.
pub fn known_comparison(op: Binary, a: Scalar, b: Scalar) -> Option<bool> {
    let flipped = match op {
        Binary::Lt => Binary::Gt,
        Binary::Le => Binary::Ge,
        Binary::Gt => Binary::Lt,
        Binary::Ge => Binary::Le,
        other => other,
    };
    let d = a.dtype();
    let known = match (a.as_int(), b.as_int()) {
        (_, Some(limit)) => decided(op, d, limit),
        (Some(limit), _) => decided(flipped, d, limit),
        _ => None,
    };
    known.filter(|_| d.is_int())
}

/// `a * b + c` with one rounding.
pub fn fma(h: &mut Helpers, dtype: DType, a: &Text, b: &Text, c: &Text) -> Result<Text, Fault> {
    if !dtype.is_float() {
        let product = binary(h, Binary::Mul, dtype, a, b)?;
        return binary(h, Binary::Add, dtype, &product, c);
    }
    if is_narrow(dtype) {
        // The product of narrow values is exact in double, so this is one rounding to double and one to the dtype, as eval does it.
        let [a, b, c] = [a, b, c].map(|v| Text::cast("double", v));
        let sum = Text::arithmetic('+', &Text::arithmetic('*', &a, &b), &c);
        let odd = Text::call(&h.odd(), &[&sum]);
        return Ok(finish(h, dtype, odd));
    }
    match dtype {
        DType::F64 if !h.style.own_math => Ok(Text::call("fma", &[a, b, c])),
        d => Ok(Text::call(&h.float("fma", d == DType::F64), &[a, b, c])),
    }
}

/// Conversion of a value.
pub fn cast(h: &mut Helpers, from: DType, to: DType, v: &Text) -> Result<Text, Fault> {
    if from == to {
        return Ok(v.clone());
    }
    let zero = Text::atom("0");
    Ok(match (from.is_float(), to.is_float()) {
        (true, true) => match to {
            DType::F64 => Text::cast("double", v),
            DType::F32 if from == DType::F64 => Text::cast("float", v),
            DType::F32 => v.clone(),
            _ if from == DType::F64 => {
                let odd = Text::call(&h.odd(), &[v]);
                finish(h, to, odd)
            }
            _ => finish(h, to, v.clone()),
        },
        (false, true) => match to {
            DType::F32 => Text::cast("float", v),
            DType::F64 => Text::cast("double", v),
            _ => {
                let odd = Text::call(&h.odd(), &[&Text::cast("double", v)]);
                finish(h, to, odd)
            }
        },
        (_, false) if to == DType::Bool => Text::infix("!=", v, &zero),
        (true, false) => Text::call(&h.to_int(from == DType::F64, to), &[v]),
        (false, false) => {
            // From a type of no more bits and no sign that would be lost, nothing wraps.
            let (from_range, to_range) = (from.int_range(), to.int_range());
            match (from_range, to_range) {
                (Some(f), Some(t)) if f.0 >= t.0 && f.1 <= t.1 => Text::cast(memory(to)?, v),
                _ if to.is_int() && to.bits() as usize != 8 * to.bytes() => wrapped(h, to, Text::cast("uint32_t", v).text),
                _ => Text::cast(memory(to)?, v),
            }
        }
    })
}

/// The same bits as another dtype of the same width.
pub fn bitcast(h: &mut Helpers, from: DType, to: DType, v: &Text) -> Result<Text, Fault> {
    let raw = match from {
        DType::F32 | DType::F64 => Text::call(&h.bits(from, true), &[v]),
        d => to_memory(h, d, v.clone()),
    };
    match to {
        DType::F32 | DType::F64 => {
            let bits = if to == DType::F64 { "uint64_t" } else { "uint32_t" };
            let raw = if from.is_signed() { Text::cast(bits, &raw) } else { raw };
            Ok(Text::call(&h.bits(to, false), &[&raw]))
        }
        _ => {
            let raw = Text::cast(memory(to)?, &raw);
            Ok(from_memory(h, to, raw))
        }
    }
}
