//! Scalar operations as LLVM instructions: total, no library calls, the same result as [`infc_ir::eval`] in every lane.

use crate::arch::Arch;
use crate::helpers::Helper;
use crate::ir::{Elem, Fun, Val};
use crate::narrow::{is_narrow, odd_f32, pack, round, unpack};
use infc_ir::dtype::Class;
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Fault, fault};

/// The element in which values of `dtype` travel.
pub fn value_elem(dtype: DType) -> Result<Elem, Fault> {
    Ok(match dtype.class() {
        Class::Bool => Elem::I1,
        Class::Float if dtype == DType::F64 => Elem::F64,
        Class::Float => Elem::F32,
        Class::Signed | Class::Unsigned => memory_elem(dtype)?,
        Class::Complex | Class::Text => return Err(fault!("machine code has no arithmetic on {dtype}")),
    })
}

/// The element in which values of `dtype` lie in memory.
pub fn memory_elem(dtype: DType) -> Result<Elem, Fault> {
    Ok(match (dtype, dtype.bytes()) {
        (DType::F32, _) => Elem::F32,
        (DType::F64, _) => Elem::F64,
        (DType::C64 | DType::C128 | DType::String, _) => return Err(fault!("machine code has no memory access of {dtype}")),
        (_, 1) => Elem::I8,
        (_, 2) => Elem::I16,
        (_, 4) => Elem::I32,
        _ => Elem::I64,
    })
}

/// A constant of the scalar language.
pub fn constant(dtype: DType, bits: u64) -> Result<Val, Fault> {
    let elem = value_elem(dtype)?;
    Ok(if elem.is_float() { Val::float(elem, f64::from_bits(bits)) } else { Val::int(elem, bits as i64) })
}

/// A value as it lies in memory.
pub fn to_memory(f: &mut Fun, dtype: DType, v: Val) -> Val {
    match dtype {
        DType::Bool => f.cast("zext", v, Elem::I8),
        d if is_narrow(d) => pack(f, d, v),
        _ => v,
    }
}

/// The value of what lies in memory.
pub fn from_memory(f: &mut Fun, dtype: DType, v: Val) -> Val {
    match dtype {
        DType::Bool => f.cmp("icmp ne", v, Val::int(Elem::I8, 0)),
        d if is_narrow(d) => unpack(f, d, v),
        d => wrap(f, d, v),
    }
}

/// The low bits of a 4- or 2-bit integer, extended over its byte.
fn wrap(f: &mut Fun, dtype: DType, v: Val) -> Val {
    if dtype.bits() as usize == 8 * dtype.bytes() || !dtype.is_int() {
        return v;
    }
    let shift = Val::int(Elem::I8, i64::from(8 - dtype.bits()));
    let up = f.bin("shl", v, shift);
    f.bin(if dtype.is_signed() { "ashr" } else { "lshr" }, up, shift)
}

/// Rounds the result of an f32 operation on a narrow dtype.
fn finish(f: &mut Fun, dtype: DType, v: Val) -> Val {
    if is_narrow(dtype) { round(f, dtype, v) } else { v }
}

fn zero(v: Val) -> Val {
    if v.ty.elem.is_float() { Val::float(v.ty.elem, 0.0) } else { Val::int(v.ty.elem, 0) }
}

/// One operand.
pub fn unary(f: &mut Fun, op: Unary, dtype: DType, x: Val) -> Result<Val, Fault> {
    if !dtype.is_float() {
        return unary_int(f, op, dtype, x);
    }
    let one = Val::float(x.ty.elem, 1.0);
    let r = match op {
        Unary::Neg => {
            let t = f.t(x);
            f.inst(x.ty, format_args!("fneg {t}"))
        }
        Unary::Abs => f.same("llvm.fabs", [x]),
        Unary::Sign => {
            let nonzero = f.cmp("fcmp one", x, zero(x));
            let sign = f.same("llvm.copysign", [one, x]);
            f.select(nonzero, sign, x)
        }
        Unary::Not => {
            let is = f.cmp("fcmp oeq", x, zero(x));
            f.select(is, one, zero(x))
        }
        Unary::Floor => f.same("llvm.floor", [x]),
        Unary::Ceil => f.same("llvm.ceil", [x]),
        Unary::Trunc => f.same("llvm.trunc", [x]),
        // In the mode in which kernels run both are the same; LLVM 19 knows no instruction for the second on RISC-V with Zfa.
        Unary::Round => f.same(if matches!(f.arch, Arch::Riscv | Arch::Wasm) { "llvm.rint" } else { "llvm.roundeven" }, [x]),
        Unary::Sqrt if dtype == DType::F16 && f.f16_fma => {
            let half = f.cast("fptrunc", x, Elem::Half);
            let root = f.same("llvm.sqrt", [half]);
            return Ok(f.cast("fpext", root, Elem::F32));
        }
        Unary::Sqrt => f.same("llvm.sqrt", [x]),
        Unary::IsNan => return Ok(f.cmp("fcmp uno", x, zero(x))),
        Unary::IsInf => {
            let a = f.same("llvm.fabs", [x]);
            return Ok(f.cmp("fcmp oeq", a, Val::float(x.ty.elem, f64::INFINITY)));
        }
        _ => return Err(fault!("'{}' was not lowered to arithmetic (infc_kernel::math::lower)", op.name())),
    };
    Ok(finish(f, dtype, r))
}

fn unary_int(f: &mut Fun, op: Unary, dtype: DType, x: Val) -> Result<Val, Fault> {
    let signed = dtype.is_signed();
    let bool = dtype == DType::Bool;
    let r = match op {
        Unary::Neg | Unary::Abs | Unary::Sign if bool => x,
        Unary::Not if bool => f.not(x),
        Unary::Neg => f.bin("sub", zero(x), x),
        Unary::Not => f.bin("xor", x, Val::int(x.ty.elem, -1)),
        Unary::Abs if signed => {
            let minus = f.bin("sub", zero(x), x);
            f.same("llvm.smax", [x, minus])
        }
        Unary::Abs => x,
        Unary::Sign => {
            let (one, minus) = (Val::int(x.ty.elem, 1), Val::int(x.ty.elem, -1));
            let up = if signed { f.same("llvm.smin", [x, one]) } else { f.same("llvm.umin", [x, one]) };
            if signed { f.same("llvm.smax", [up, minus]) } else { up }
        }
        Unary::Floor | Unary::Ceil | Unary::Trunc | Unary::Round => x,
        Unary::IsNan | Unary::IsInf => Val { ty: x.ty.with(Elem::I1), op: Val::bool(false).op },
        // Real functions of integers: in f64 and back.
        _ => {
            let real = cast(f, dtype, DType::F64, x)?;
            let r = unary(f, op, DType::F64, real)?;
            cast(f, DType::F64, dtype, r)?
        }
    };
    Ok(if matches!(op, Unary::IsNan | Unary::IsInf) { r } else { wrap(f, dtype, r) })
}

/// Two operands of `dtype`.
pub fn binary(f: &mut Fun, op: Binary, dtype: DType, a: Val, b: Val) -> Result<Val, Fault> {
    match dtype {
        DType::Bool => binary_bool(f, op, a, b),
        d if d.is_float() => binary_float(f, op, d, a, b),
        d => binary_int(f, op, d, a, b),
    }
}

fn binary_bool(f: &mut Fun, op: Binary, a: Val, b: Val) -> Result<Val, Fault> {
    Ok(match op {
        Binary::Add | Binary::Or | Binary::Max => f.bin("or", a, b),
        Binary::Sub | Binary::Xor | Binary::Ne => f.bin("xor", a, b),
        Binary::Mul | Binary::And | Binary::Min | Binary::Div => f.bin("and", a, b),
        Binary::Rem | Binary::Mod => f.bin("and", a, Val::bool(false)),
        Binary::Eq => {
            let r = f.bin("xor", a, b);
            f.not(r)
        }
        Binary::Gt | Binary::Shl | Binary::Shr => {
            let not = f.not(b);
            f.bin("and", a, not)
        }
        Binary::Lt => {
            let not = f.not(a);
            f.bin("and", not, b)
        }
        Binary::Ge | Binary::Pow => {
            let not = f.not(b);
            f.bin("or", a, not)
        }
        Binary::Le => {
            let not = f.not(a);
            f.bin("or", not, b)
        }
        Binary::Atan2 => return Err(fault!("'atan2' on bool")),
    })
}

fn binary_float(f: &mut Fun, op: Binary, dtype: DType, a: Val, b: Val) -> Result<Val, Fault> {
    let compare = match op {
        Binary::Eq => Some("fcmp oeq"),
        Binary::Ne => Some("fcmp une"),
        Binary::Lt => Some("fcmp olt"),
        Binary::Le => Some("fcmp ole"),
        Binary::Gt => Some("fcmp ogt"),
        Binary::Ge => Some("fcmp oge"),
        _ => None,
    };
    if let Some(op) = compare {
        return Ok(f.cmp(op, a, b));
    }
    let r = match op {
        Binary::Add => f.bin("fadd", a, b),
        Binary::Sub => f.bin("fsub", a, b),
        Binary::Mul => f.bin("fmul", a, b),
        Binary::Div => f.bin("fdiv", a, b),
        Binary::Min => extreme(f, true, a, b),
        Binary::Max => extreme(f, false, a, b),
        Binary::Rem => fmod(f, a, b),
        Binary::Mod => {
            let r = fmod(f, a, b);
            let nonzero = f.cmp("fcmp one", r, zero(r));
            let (rn, bn) = (f.cmp("fcmp olt", r, zero(r)), f.cmp("fcmp olt", b, zero(b)));
            let differ = f.bin("xor", rn, bn);
            let fix = f.bin("and", nonzero, differ);
            let sum = f.bin("fadd", r, b);
            f.select(fix, sum, r)
        }
        Binary::Pow | Binary::Atan2 => {
            return Err(fault!("'{}' was not lowered to arithmetic (infc_kernel::math::lower)", op.name()));
        }
        _ => return Err(fault!("'{}' on {dtype}", op.name())),
    };
    Ok(finish(f, dtype, r))
}

/// Minimum or maximum: NaN wins, -0 < +0. Arm's FMIN and FMAX are that; on x86 one or two instructions do against a constant.
fn extreme(f: &mut Fun, min: bool, a: Val, b: Val) -> Val {
    if f.arch == Arch::Arm {
        return f.same(if min { "llvm.minimum" } else { "llvm.maximum" }, [a, b]);
    }
    let (x, c) = if a.known_float().is_some() { (b, a) } else { (a, b) };
    // `c < x ? c : x` is one `minps`: x if it is NaN or equal to c. Where c is the zero that must win, one addition repairs it.
    match c.known_float() {
        Some(k) if !(k.is_nan() || k == 0.0 && k.is_sign_negative() && min) => {
            let better = f.cmp(if min { "fcmp olt" } else { "fcmp ogt" }, c, x);
            let r = f.select(better, c, x);
            if !min && k == 0.0 && k.is_sign_positive() { f.bin("fadd", r, c) } else { r }
        }
        _ => f.same(if min { "llvm.minimum" } else { "llvm.maximum" }, [a, b]),
    }
}

/// Calls a two-operand helper for each lane.
fn by_lane(f: &mut Fun, helper: Helper, a: Val, b: Val) -> Val {
    f.helpers.insert(helper);
    let lanes = a.ty.lanes.max(b.ty.lanes);
    let (a, b) = (f.splat(a, lanes), f.splat(b, lanes));
    let mut out = Val { ty: a.ty, op: crate::ir::Operand::Poison };
    for lane in 0..lanes {
        let (x, y) = (f.extract(a, lane), f.extract(b, lane));
        let (tx, ty) = (f.t(x), f.t(y));
        let r = f.inst(x.ty, format_args!("call {} {}({tx}, {ty})", x.ty, helper.symbol()));
        out = if lanes == 1 { r } else { f.insert(out, r, lane) };
    }
    out
}

fn fmod(f: &mut Fun, a: Val, b: Val) -> Val {
    by_lane(f, if a.ty.elem == Elem::F64 { Helper::FmodF64 } else { Helper::FmodF32 }, a, b)
}

fn binary_int(f: &mut Fun, op: Binary, dtype: DType, a: Val, b: Val) -> Result<Val, Fault> {
    let signed = dtype.is_signed();
    let elem = a.ty.elem;
    let pick = |s: &'static str, u: &'static str| if signed { s } else { u };
    let compare = match op {
        Binary::Eq => Some("icmp eq"),
        Binary::Ne => Some("icmp ne"),
        Binary::Lt => Some(pick("icmp slt", "icmp ult")),
        Binary::Le => Some(pick("icmp sle", "icmp ule")),
        Binary::Gt => Some(pick("icmp sgt", "icmp ugt")),
        Binary::Ge => Some(pick("icmp sge", "icmp uge")),
        _ => None,
    };
    if let Some(op) = compare {
        return Ok(f.cmp(op, a, b));
    }
    let r = match op {
        Binary::Add => f.bin("add", a, b),
        Binary::Sub => f.bin("sub", a, b),
        Binary::Mul => f.bin("mul", a, b),
        Binary::Div => divide(f, pick("sdiv", "udiv"), signed, a, b),
        Binary::Rem => divide(f, pick("srem", "urem"), signed, a, b),
        Binary::Mod => {
            let r = divide(f, pick("srem", "urem"), signed, a, b);
            if !signed {
                return Ok(r);
            }
            let nonzero = f.cmp("icmp ne", r, zero(r));
            let signs = f.bin("xor", r, b);
            let differ = f.cmp("icmp slt", signs, zero(r));
            let fix = f.bin("and", nonzero, differ);
            let sum = f.bin("add", r, b);
            // By zero the result is zero: then r is 0 and nothing is added.
            f.select(fix, sum, r)
        }
        Binary::Min => f.same(pick("llvm.smin", "llvm.umin"), [a, b]),
        Binary::Max => f.same(pick("llvm.smax", "llvm.umax"), [a, b]),
        Binary::And => f.bin("and", a, b),
        Binary::Or => f.bin("or", a, b),
        Binary::Xor => f.bin("xor", a, b),
        Binary::Shl | Binary::Shr => shift(f, op, dtype, a, b),
        Binary::Pow => {
            let extend = pick("sext", "zext");
            let (x, y) = (f.cast(extend, a, Elem::I64), f.cast(extend, b, Elem::I64));
            let r = by_lane(f, if signed { Helper::PowSigned } else { Helper::PowUnsigned }, x, y);
            f.cast("trunc", r, elem)
        }
        _ => return Err(fault!("'{}' on {dtype}", op.name())),
    };
    Ok(wrap(f, dtype, r))
}

/// Division or remainder that is defined for all operands: by zero 0; the least by -1 wraps.
fn divide(f: &mut Fun, op: &str, signed: bool, a: Val, b: Val) -> Val {
    let one = Val::int(b.ty.elem, 1);
    let zero_divisor = f.cmp("icmp eq", b, zero(b));
    let mut unsafe_divisor = zero_divisor;
    if signed {
        let least = Val::int(a.ty.elem, i64::MIN >> (64 - a.ty.elem.bits()));
        let (is_least, is_minus) = (f.cmp("icmp eq", a, least), f.cmp("icmp eq", b, Val::int(b.ty.elem, -1)));
        let wraps = f.bin("and", is_least, is_minus);
        unsafe_divisor = f.bin("or", unsafe_divisor, wraps);
    }
    // The least divided by one is what wrapping gives; its remainder is 0 either way.
    let divisor = f.select(unsafe_divisor, one, b);
    let q = f.bin(op, a, divisor);
    f.select(zero_divisor, zero(q), q)
}

fn shift(f: &mut Fun, op: Binary, dtype: DType, a: Val, b: Val) -> Val {
    let signed = dtype.is_signed();
    let width = Val::int(b.ty.elem, i64::from(dtype.bits()));
    let inside = f.cmp("icmp ult", b, width);
    let arithmetic = op == Binary::Shr && signed;
    let beyond = if arithmetic { Val::int(b.ty.elem, i64::from(dtype.bits()) - 1) } else { Val::int(b.ty.elem, 0) };
    let amount = f.select(inside, b, beyond);
    let name = match op {
        Binary::Shl => "shl",
        _ if signed => "ashr",
        _ => "lshr",
    };
    let r = f.bin(name, a, amount);
    if arithmetic { r } else { f.select(inside, r, zero(r)) }
}

/// `a * b + c` with one rounding.
pub fn fma(f: &mut Fun, dtype: DType, a: Val, b: Val, c: Val) -> Result<Val, Fault> {
    if !dtype.is_float() {
        let p = binary(f, Binary::Mul, dtype, a, b)?;
        return binary(f, Binary::Add, dtype, p, c);
    }
    if dtype == DType::F16 && f.f16_fma {
        // The values are those of f16 already. One rounding is what the arithmetic in f64 below comes to: where its sum is inexact, it lies far from every tie.
        let [a, b, c] = [a, b, c].map(|v| f.cast("fptrunc", v, Elem::Half));
        let r = f.same("llvm.fma", [a, b, c]);
        return Ok(f.cast("fpext", r, Elem::F32));
    }
    if is_narrow(dtype) {
        // The product of narrow values is exact in f64, so this is one rounding to f64 and one to the dtype, as eval does it.
        let [a, b, c] = [a, b, c].map(|v| f.cast("fpext", v, Elem::F64));
        let p = f.bin("fmul", a, b);
        let s = f.bin("fadd", p, c);
        let odd = odd_f32(f, s);
        return Ok(round(f, dtype, odd));
    }
    if f.fma {
        return Ok(f.same("llvm.fma", [a, b, c]));
    }
    if dtype == DType::F64 {
        return Err(fault!("fma on f64 needs a machine with fused multiply-add"));
    }
    let [a, b, c] = [a, b, c].map(|v| f.cast("fpext", v, Elem::F64));
    let p = f.bin("fmul", a, b);
    let s = f.bin("fadd", p, c);
    // Two-sum gives the error of the addition; rounding `s` to odd makes the rounding to f32 the only one.
    let bb = f.bin("fsub", s, p);
    let aa = f.bin("fsub", s, bb);
    let (da, db) = (f.bin("fsub", p, aa), f.bin("fsub", c, bb));
    let error = f.bin("fadd", da, db);
    let inexact = f.cmp("fcmp one", error, Val::float(Elem::F64, 0.0));
    let bits = f.cast("bitcast", s, Elem::I64);
    let low = f.bin("and", bits, Val::i64(1));
    let even = f.cmp("icmp eq", low, Val::i64(0));
    let fix = f.bin("and", inexact, even);
    let (up, positive) = (f.cmp("fcmp ogt", error, Val::float(Elem::F64, 0.0)), f.cmp("fcmp ogt", s, Val::float(Elem::F64, 0.0)));
    let away = f.bin("xor", up, positive);
    let step = f.select(away, Val::i64(-1), Val::i64(1));
    let step = f.select(fix, step, Val::i64(0));
    let bits = f.bin("add", bits, step);
    let odd = f.cast("bitcast", bits, Elem::F64);
    Ok(f.cast("fptrunc", odd, Elem::F32))
}

/// Conversion of a value.
pub fn cast(f: &mut Fun, from: DType, to: DType, v: Val) -> Result<Val, Fault> {
    if from == to {
        return Ok(v);
    }
    match (from.is_float(), to.is_float()) {
        (true, true) => Ok(match to {
            DType::F64 => f.cast("fpext", v, Elem::F64),
            DType::F32 if from == DType::F64 => f.cast("fptrunc", v, Elem::F32),
            DType::F32 => v,
            _ if from == DType::F64 => {
                let odd = odd_f32(f, v);
                round(f, to, odd)
            }
            _ => round(f, to, v),
        }),
        (false, true) => from_int(f, from, to, v),
        (true, false) => to_int(f, to, v),
        (false, false) if to == DType::Bool => Ok(f.cmp("icmp ne", v, zero(v))),
        (false, false) => {
            let elem = value_elem(to)?;
            let r = match elem.bits().cmp(&v.ty.elem.bits()) {
                std::cmp::Ordering::Less => f.cast("trunc", v, elem),
                std::cmp::Ordering::Equal => v,
                std::cmp::Ordering::Greater => f.cast(if from.is_signed() { "sext" } else { "zext" }, v, elem),
            };
            Ok(wrap(f, to, r))
        }
    }
}

fn from_int(f: &mut Fun, from: DType, to: DType, v: Val) -> Result<Val, Fault> {
    value_elem(from)?;
    let signed = from.is_signed();
    let (v, signed) = match v.ty.elem {
        Elem::I1 | Elem::I8 | Elem::I16 => (f.cast(if signed { "sext" } else { "zext" }, v, Elem::I32), true),
        _ => (v, signed),
    };
    let op = if signed { "sitofp" } else { "uitofp" };
    Ok(match to {
        DType::F32 | DType::F64 => f.cast(op, v, value_elem(to)?),
        _ => {
            let wide = f.cast(op, v, Elem::F64);
            let odd = odd_f32(f, wide);
            round(f, to, odd)
        }
    })
}

/// Truncates and saturates; NaN gives 0. (LLVM's saturating conversions are few instructions on Arm and RISC-V; for x86 they do one lane at a time.)
fn to_int(f: &mut Fun, to: DType, v: Val) -> Result<Val, Fault> {
    if to == DType::Bool {
        return Ok(f.cmp("fcmp une", v, zero(v)));
    }
    let elem = value_elem(to)?;
    let (lo, hi) = to.int_range().expect("an integer");
    if f.arch.saturates() {
        let (wide, op) = match to.bits() < 32 {
            true => (Elem::I32, "llvm.fptosi.sat"),
            false => (elem, if to.is_signed() { "llvm.fptosi.sat" } else { "llvm.fptoui.sat" }),
        };
        let ty = v.ty.with(wide);
        let r = f.intrinsic(op, &[ty, v.ty], ty, &[v]);
        return Ok(if wide == elem { r } else { clamped_integer(f, r, lo as i64, hi as i64, elem) });
    }
    let float = v.ty.elem;
    let largest = below(float, hi);
    let number = f.cmp("fcmp ord", v, zero(v));
    let x = f.select(number, v, zero(v));
    let (low, high) = (Val::float(float, lo as f64), Val::float(float, largest));
    let under = f.cmp("fcmp ogt", low, x);
    let c = f.select(under, low, x);
    let over = f.cmp("fcmp olt", high, c);
    let c = f.select(over, high, c);
    // Through 32 bits where they hold all values: there is no narrower conversion.
    let (wide, op) = match to.bits() < 32 {
        true => (Elem::I32, "fptosi"),
        false => (elem, if to.is_signed() { "fptosi" } else { "fptoui" }),
    };
    let r = f.cast(op, c, wide);
    let r = f.cast("trunc", r, elem);
    if largest as i128 == hi {
        return Ok(r);
    }
    let beyond = f.cmp("fcmp oge", x, Val::float(float, (hi + 1) as f64));
    Ok(f.select(beyond, Val::int(elem, hi as i64), r))
}

/// `to_int` of `min(max(v, 0), hi)` to unsigned integers of 16 bits at most: NaN becomes 0 by the maximum already.
pub fn clamped_to_int(f: &mut Fun, to: DType, v: Val, hi: f64) -> Result<Val, Fault> {
    if f.arch.saturates() {
        let ty = v.ty.with(Elem::I32);
        let r = f.intrinsic("llvm.fptosi.sat", &[ty, v.ty], ty, &[v]);
        return Ok(clamped_integer(f, r, 0, hi as i64, value_elem(to)?));
    }
    let (zero, hi) = (zero(v), Val::float(v.ty.elem, hi));
    let positive = f.cmp("fcmp ogt", v, zero);
    let v = f.select(positive, v, zero);
    let below = f.cmp("fcmp olt", v, hi);
    let v = f.select(below, v, hi);
    let r = f.cast("fptosi", v, Elem::I32);
    Ok(f.cast("trunc", r, value_elem(to)?))
}

/// An integer limited to what fits the narrower `elem`, as that.
fn clamped_integer(f: &mut Fun, v: Val, lo: i64, hi: i64, elem: Elem) -> Val {
    let (lo, hi) = (Val::int(v.ty.elem, lo), Val::int(v.ty.elem, hi));
    let v = f.same("llvm.smax", [v, lo]);
    let v = f.same("llvm.smin", [v, hi]);
    f.cast("trunc", v, elem)
}

/// The largest float that is at most `hi`, which is one less than a power of two.
fn below(float: Elem, hi: i128) -> f64 {
    let bits = if float == Elem::F64 { 53 } else { 24 };
    let used = 128 - hi.leading_zeros();
    let dropped = used.saturating_sub(bits);
    (hi >> dropped << dropped) as f64
}

/// The same bits as another dtype.
pub fn bitcast(f: &mut Fun, from: DType, to: DType, v: Val) -> Result<Val, Fault> {
    let raw = to_memory(f, from, v);
    let elem = memory_elem(to)?;
    let raw = f.cast("bitcast", raw, elem);
    Ok(from_memory(f, to, raw))
}
