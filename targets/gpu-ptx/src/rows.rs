//! The table of instruction rows: every scalar operation on every kind of register, total as `docs/ir.md` says.
//!
//! In a row's text `$d` is the result, `$a $b $c` are operands, `$t` is the type, `$w` its bits, `$u` the unsigned integer of its width; `$x0` is a temporary of the type's
//! class, `$p0 $h0 $r0 $q0` are ones of predicates and of 16, 32 and 64 bits, `$L0` is a label.

use crate::asm::Class;
use std::collections::HashMap;
use std::sync::LazyLock;

/// One row.
pub struct Row {
    /// What it does.
    pub op: &'static str,
    /// The types it is for.
    pub types: &'static str,
    /// The class of its result, if not that of the type.
    pub out: Option<Class>,
    /// Instructions.
    pub text: &'static str,
}

const fn row(op: &'static str, types: &'static str, text: &'static str) -> Row {
    Row { op, types, out: None, text }
}

const fn to(op: &'static str, types: &'static str, out: Class, text: &'static str) -> Row {
    Row { op, types, out: Some(out), text }
}

const INTS: &str = "s32 u32 s64 u64";
const SIGNED: &str = "s32 s64";
const UNSIGNED: &str = "u32 u64";
const FLOATS: &str = "f32 f64";
use Class::{P, Q, R};

/// All rows.
pub static ROWS: &[Row] = &[
    // Integers.
    row("add", INTS, "add.$t $d, $a, $b"),
    row("sub", INTS, "sub.$t $d, $a, $b"),
    row("mul", INTS, "mul.lo.$t $d, $a, $b"),
    row("min", INTS, "min.$t $d, $a, $b"),
    row("max", INTS, "max.$t $d, $a, $b"),
    row("and", INTS, "and.$w $d, $a, $b"),
    row("or", INTS, "or.$w $d, $a, $b"),
    row("xor", INTS, "xor.$w $d, $a, $b"),
    row("not", INTS, "not.$w $d, $a"),
    row("neg", SIGNED, "neg.$t $d, $a"),
    row("neg", "u32", "neg.s32 $d, $a"),
    row("neg", "u64", "neg.s64 $d, $a"),
    row("abs", SIGNED, "neg.$t $x0, $a; max.$t $d, $a, $x0"),
    row("sign", SIGNED, "min.$t $x0, $a, 1; max.$t $d, $x0, -1"),
    row("sign", UNSIGNED, "min.$t $d, $a, 1"),
    row(
        "div",
        SIGNED,
        "setp.eq.$t $p0, $b, 0; setp.eq.$t $p1, $b, -1; or.pred $p2, $p0, $p1; selp.$w $x0, 1, $b, $p2; div.$t $x1, $a, $x0; \
         neg.$t $x2, $a; selp.$w $x3, $x2, $x1, $p1; selp.$w $d, 0, $x3, $p0",
    ),
    row("div", UNSIGNED, "setp.eq.$t $p0, $b, 0; selp.$w $x0, 1, $b, $p0; div.$t $x1, $a, $x0; selp.$w $d, 0, $x1, $p0"),
    row("rem", SIGNED, "add.$t $x1, $b, 1; setp.le.$u $p0, $x1, 1; selp.$w $x0, 1, $b, $p0; rem.$t $d, $a, $x0"),
    row("rem", UNSIGNED, "setp.eq.$t $p0, $b, 0; selp.$w $x0, 1, $b, $p0; rem.$t $d, $a, $x0"),
    row("mod", UNSIGNED, "setp.eq.$t $p0, $b, 0; selp.$w $x0, 1, $b, $p0; rem.$t $d, $a, $x0"),
    // The remainder moved to the sign of the divisor.
    row(
        "mod",
        SIGNED,
        "add.$t $x1, $b, 1; setp.le.$u $p0, $x1, 1; selp.$w $x0, 1, $b, $p0; rem.$t $x2, $a, $x0; xor.$w $x3, $x2, $b; \
         setp.lt.$t $p1, $x3, 0; setp.ne.$t $p2, $x2, 0; and.pred $p1, $p1, $p2; add.$t $x4, $x2, $b; selp.$w $d, $x4, $x2, $p1",
    ),
    row(
        "floordiv",
        "s64",
        "setp.eq.s64 $p0, $b, 0; setp.eq.s64 $p1, $b, -1; or.pred $p2, $p0, $p1; selp.b64 $x0, 1, $b, $p2; div.s64 $x1, $a, $x0; \
         mul.lo.s64 $x2, $x1, $x0; sub.s64 $x2, $a, $x2; xor.b64 $x3, $x2, $b; setp.lt.s64 $p3, $x3, 0; setp.ne.s64 $p4, $x2, 0; \
         and.pred $p3, $p3, $p4; selp.b64 $x4, -1, 0, $p3; add.s64 $x1, $x1, $x4; neg.s64 $x5, $a; selp.b64 $x1, $x5, $x1, $p1; \
         selp.b64 $d, 0, $x1, $p0",
    ),
    row("quotient", "s64 u32", "div.$t $d, $a, $b"),
    row("remainder", "s64 u32", "rem.$t $d, $a, $b"),
    // Where both fit 32 bits.
    row("quotient32", "s64", "cvt.u32.u64 $r0, $a; cvt.u32.u64 $r1, $b; div.u32 $r2, $r0, $r1; cvt.u64.u32 $d, $r2"),
    row("remainder32", "s64", "cvt.u32.u64 $r0, $a; cvt.u32.u64 $r1, $b; rem.u32 $r2, $r0, $r1; cvt.u64.u32 $d, $r2"),
    row(
        "add_sat",
        "s64",
        "add.s64 $x0, $a, $b; xor.b64 $x1, $a, $x0; xor.b64 $x2, $b, $x0; and.b64 $x1, $x1, $x2; setp.lt.s64 $p0, $x1, 0; \
         shr.s64 $x3, $a, 63; xor.b64 $x3, $x3, 0x7fffffffffffffff; selp.b64 $d, $x3, $x0, $p0",
    ),
    row(
        "mul_sat",
        "s64",
        "mul.lo.s64 $x0, $a, $b; mul.hi.s64 $x1, $a, $b; shr.s64 $x2, $x0, 63; setp.ne.s64 $p0, $x1, $x2; xor.b64 $x3, $a, $b; \
         shr.s64 $x3, $x3, 63; xor.b64 $x3, $x3, 0x7fffffffffffffff; selp.b64 $d, $x3, $x0, $p0",
    ),
    // Shifts by the width or more give 0 or the sign by themselves; negative amounts are large ones.
    row("shl", "s32 u32", "shl.b32 $d, $a, $b"),
    row("shr", "s32 u32", "shr.$t $d, $a, $b"),
    row("shl", "s64 u64", "min.u64 $q0, $b, 64; cvt.u32.u64 $r0, $q0; shl.b64 $d, $a, $r0"),
    row("shr", "s64 u64", "min.u64 $q0, $b, 64; cvt.u32.u64 $r0, $q0; shr.$t $d, $a, $r0"),
    // By squaring; negative exponents: 1, 1 or -1, 0.
    row(
        "pow",
        SIGNED,
        "mov.$w $x0, $a; mov.$w $x1, $b; mov.$w $x2, 1; setp.lt.$t $p0, $b, 0; @$p0 bra $L1; $L0:; setp.eq.$t $p1, $x1, 0; \
         @$p1 bra $L2; and.$w $x3, $x1, 1; setp.ne.$t $p2, $x3, 0; @$p2 mul.lo.$t $x2, $x2, $x0; mul.lo.$t $x0, $x0, $x0; \
         shr.$t $x1, $x1, 1; bra $L0; $L1:; and.$w $x3, $b, 1; setp.ne.$t $p2, $x3, 0; selp.$w $x4, -1, 1, $p2; \
         setp.eq.$t $p1, $a, -1; selp.$w $x2, $x4, 0, $p1; setp.eq.$t $p1, $a, 1; selp.$w $x2, 1, $x2, $p1; $L2:; mov.$w $d, $x2",
    ),
    row(
        "pow",
        UNSIGNED,
        "mov.$w $x0, $a; mov.$w $x1, $b; mov.$w $x2, 1; $L0:; setp.eq.$t $p1, $x1, 0; @$p1 bra $L2; and.$w $x3, $x1, 1; \
         setp.ne.$t $p2, $x3, 0; @$p2 mul.lo.$t $x2, $x2, $x0; mul.lo.$t $x0, $x0, $x0; shr.$t $x1, $x1, 1; bra $L0; $L2:; \
         mov.$w $d, $x2",
    ),
    to("eq", INTS, P, "setp.eq.$t $d, $a, $b"),
    to("ne", INTS, P, "setp.ne.$t $d, $a, $b"),
    to("lt", INTS, P, "setp.lt.$t $d, $a, $b"),
    to("le", INTS, P, "setp.le.$t $d, $a, $b"),
    to("gt", INTS, P, "setp.gt.$t $d, $a, $b"),
    to("ge", INTS, P, "setp.ge.$t $d, $a, $b"),
    row("select", "s32 u32 f32", "selp.b32 $d, $b, $c, $a"),
    row("select", "s64 u64 f64", "selp.b64 $d, $b, $c, $a"),
    // Predicates.
    row("not", "pred", "not.pred $d, $a"),
    row("or", "pred", "or.pred $d, $a, $b"),
    row("and", "pred", "and.pred $d, $a, $b"),
    row("xor", "pred", "xor.pred $d, $a, $b"),
    row("eq", "pred", "xor.pred $p0, $a, $b; not.pred $d, $p0"),
    row("gt", "pred", "not.pred $p0, $b; and.pred $d, $a, $p0"),
    row("lt", "pred", "not.pred $p0, $a; and.pred $d, $p0, $b"),
    row("ge", "pred", "not.pred $p0, $b; or.pred $d, $a, $p0"),
    row("le", "pred", "not.pred $p0, $a; or.pred $d, $p0, $b"),
    row("select", "pred", "and.pred $p0, $a, $b; not.pred $p1, $a; and.pred $p2, $p1, $c; or.pred $d, $p0, $p2"),
    to("number", "pred", R, "selp.b32 $d, 1, 0, $a"),
    // Floats.
    row("add", FLOATS, "add.rn.$t $d, $a, $b"),
    row("sub", FLOATS, "sub.rn.$t $d, $a, $b"),
    row("mul", FLOATS, "mul.rn.$t $d, $a, $b"),
    row("div", FLOATS, "div.rn.$t $d, $a, $b"),
    row("fma", FLOATS, "fma.rn.$t $d, $a, $b, $c"),
    row("neg", FLOATS, "neg.$t $d, $a"),
    row("abs", FLOATS, "abs.$t $d, $a"),
    row("sqrt", FLOATS, "sqrt.rn.$t $d, $a"),
    row("floor", FLOATS, "cvt.rmi.$t.$t $d, $a"),
    row("ceil", FLOATS, "cvt.rpi.$t.$t $d, $a"),
    row("trunc", FLOATS, "cvt.rzi.$t.$t $d, $a"),
    row("round", FLOATS, "cvt.rni.$t.$t $d, $a"),
    row(
        "sign",
        "f32",
        "mov.b32 $r0, 0f3F800000; copysign.f32 $r1, $a, $r0; setp.ne.f32 $p0, $a, 0f00000000; selp.b32 $d, $r1, $a, $p0",
    ),
    row(
        "sign",
        "f64",
        "mov.b64 $q0, 0d3FF0000000000000; copysign.f64 $q1, $a, $q0; setp.ne.f64 $p0, $a, 0d0000000000000000; \
         selp.b64 $d, $q1, $a, $p0",
    ),
    row("not", "f32", "setp.eq.f32 $p0, $a, 0f00000000; selp.b32 $d, 0x3f800000, 0, $p0"),
    row("not", "f64", "setp.eq.f64 $p0, $a, 0d0000000000000000; selp.b64 $d, 0x3ff0000000000000, 0, $p0"),
    to("isnan", FLOATS, P, "setp.nan.$t $d, $a, $a"),
    to("isinf", "f32", P, "abs.f32 $r0, $a; setp.eq.f32 $d, $r0, 0f7F800000"),
    to("isinf", "f64", P, "abs.f64 $q0, $a; setp.eq.f64 $d, $q0, 0d7FF0000000000000"),
    row("min", "f32", "min.NaN.f32 $d, $a, $b"),
    row("max", "f32", "max.NaN.f32 $d, $a, $b"),
    row("min", "f64", "min.f64 $q0, $a, $b; setp.nan.f64 $p0, $a, $b; selp.b64 $d, 0x7ff8000000000000, $q0, $p0"),
    row("max", "f64", "max.f64 $q0, $a, $b; setp.nan.f64 $p0, $a, $b; selp.b64 $d, 0x7ff8000000000000, $q0, $p0"),
    to("eq", FLOATS, P, "setp.eq.$t $d, $a, $b"),
    to("ne", FLOATS, P, "setp.neu.$t $d, $a, $b"),
    to("lt", FLOATS, P, "setp.lt.$t $d, $a, $b"),
    to("le", FLOATS, P, "setp.le.$t $d, $a, $b"),
    to("gt", FLOATS, P, "setp.gt.$t $d, $a, $b"),
    to("ge", FLOATS, P, "setp.ge.$t $d, $a, $b"),
    // Long division of the mantissas, bit by bit; `$q0` and `$q1` are the magnitudes, `$r0` and `$r1` their exponents.
    row(
        "rem",
        "f64",
        "abs.f64 $q0, $a; abs.f64 $q1, $b; mov.b64 $d, $a; \
         setp.ge.f64 $p0, $q0, 0d7FF0000000000000; setp.nan.f64 $p1, $a, $b; or.pred $p0, $p0, $p1; \
         setp.eq.f64 $p1, $q1, 0d0000000000000000; or.pred $p0, $p0, $p1; @$p0 mov.b64 $d, 0x7ff8000000000000; @$p0 bra $L9; \
         setp.lt.f64 $p0, $q0, $q1; @$p0 bra $L9; \
         mov.b32 $r2, 0; mov.b32 $r3, 0; \
         setp.lt.u64 $p0, $q0, 0x0010000000000000; @$p0 mul.rn.f64 $q0, $q0, 0d4350000000000000; @$p0 mov.b32 $r2, 54; \
         setp.lt.u64 $p0, $q1, 0x0010000000000000; @$p0 mul.rn.f64 $q1, $q1, 0d4350000000000000; @$p0 mov.b32 $r3, 54; \
         shr.u64 $q2, $q0, 52; cvt.u32.u64 $r0, $q2; sub.s32 $r0, $r0, $r2; \
         shr.u64 $q2, $q1, 52; cvt.u32.u64 $r1, $q2; sub.s32 $r1, $r1, $r3; \
         and.b64 $q0, $q0, 0x000fffffffffffff; or.b64 $q0, $q0, 0x0010000000000000; \
         and.b64 $q1, $q1, 0x000fffffffffffff; or.b64 $q1, $q1, 0x0010000000000000; \
         $L0:; setp.ge.u64 $p0, $q0, $q1; @$p0 sub.u64 $q0, $q0, $q1; setp.le.s32 $p1, $r0, $r1; @$p1 bra $L1; \
         shl.b64 $q0, $q0, 1; sub.s32 $r0, $r0, 1; bra $L0; $L1:; \
         cvt.rn.f64.u64 $q3, $q0; sub.s32 $r4, $r1, 1075; shr.s32 $r5, $r4, 1; sub.s32 $r4, $r4, $r5; \
         add.s32 $r5, $r5, 1023; add.s32 $r4, $r4, 1023; cvt.u64.u32 $q4, $r5; cvt.u64.u32 $q5, $r4; \
         shl.b64 $q4, $q4, 52; shl.b64 $q5, $q5, 52; mul.rn.f64 $q3, $q3, $q4; mul.rn.f64 $q3, $q3, $q5; \
         copysign.f64 $d, $a, $q3; $L9:",
    ),
    // Conversions, by the type they come from.
    to("to_f64", "f32", Q, "cvt.f64.f32 $d, $a"),
    to("to_f32", "f64", R, "cvt.rn.f32.f64 $d, $a"),
    to("to_f32", INTS, R, "cvt.rn.f32.$t $d, $a"),
    to("to_f64", INTS, Q, "cvt.rn.f64.$t $d, $a"),
    to("to_s32", FLOATS, R, "setp.nan.$t $p0, $a, $a; cvt.rzi.s32.$t $r0, $a; selp.b32 $d, 0, $r0, $p0"),
    to("to_u32", FLOATS, R, "setp.nan.$t $p0, $a, $a; cvt.rzi.u32.$t $r0, $a; selp.b32 $d, 0, $r0, $p0"),
    to("to_s64", FLOATS, Q, "setp.nan.$t $p0, $a, $a; cvt.rzi.s64.$t $q0, $a; selp.b64 $d, 0, $q0, $p0"),
    to("to_u64", FLOATS, Q, "setp.nan.$t $p0, $a, $a; cvt.rzi.u64.$t $q0, $a; selp.b64 $d, 0, $q0, $p0"),
    to("to_64", "s32", Q, "cvt.s64.s32 $d, $a"),
    to("to_64", "u32", Q, "cvt.u64.u32 $d, $a"),
    to("to_32", "s64 u64", R, "cvt.u32.u64 $d, $a"),
    to("nonzero", "f32", P, "setp.neu.f32 $d, $a, 0f00000000"),
    to("nonzero", "f64", P, "setp.neu.f64 $d, $a, 0d0000000000000000"),
    to("nonzero", INTS, P, "setp.ne.$t $d, $a, 0"),
    // The low bits of a narrow integer, extended.
    row("extend8", "s32", "bfe.s32 $d, $a, 0, 8"),
    row("extend8", "u32", "and.b32 $d, $a, 0xff"),
    row("extend16", "s32", "bfe.s32 $d, $a, 0, 16"),
    row("extend16", "u32", "and.b32 $d, $a, 0xffff"),
    row("extend4", "s32", "bfe.s32 $d, $a, 0, 4"),
    row("extend4", "u32", "and.b32 $d, $a, 0xf"),
    row("extend2", "s32", "bfe.s32 $d, $a, 0, 2"),
    row("extend2", "u32", "and.b32 $d, $a, 0x3"),
    // Narrow floats, which are f32 in registers, and their bits.
    row("pack_f16", "f32", "cvt.rn.f16.f32 $h0, $a; cvt.u32.u16 $d, $h0"),
    row("unpack_f16", "f32", "cvt.u16.u32 $h0, $a; cvt.f32.f16 $d, $h0"),
    row("pack_bf16", "f32", "cvt.rn.bf16.f32 $h0, $a; cvt.u32.u16 $d, $h0"),
    // The upper half of a pair is the f32: one instruction. `ptxas` makes two of the one for a single value.
    row("round_bf16", "f32", "mov.b32 $r0, 0; cvt.rn.bf16x2.f32 $d, $a, $r0"),
    row("unpack_bf16", "f32", "shl.b32 $d, $a, 16"),
    // f64 to f32, rounded to odd: a later rounding to fewer bits is then as good as rounding once.
    to(
        "odd_f32",
        "f64",
        R,
        "cvt.rn.f32.f64 $r0, $a; cvt.f64.f32 $q0, $r0; abs.f64 $q1, $a; abs.f64 $q2, $q0; setp.gt.f64 $p0, $q2, $q1; \
         setp.ne.f64 $p1, $q0, $a; selp.b32 $r1, 1, 0, $p0; sub.s32 $r2, $r0, $r1; selp.b32 $r3, 1, 0, $p1; or.b32 $d, $r2, $r3",
    ),
    // A product of halves is exact in f64: the sum rounds once to f64 and once to the dtype.
    to(
        "fma_narrow",
        "f32",
        R,
        "cvt.f64.f32 $q0, $a; cvt.f64.f32 $q1, $b; cvt.f64.f32 $q2, $c; fma.rn.f64 $q3, $q0, $q1, $q2; \
         cvt.rn.f32.f64 $r0, $q3; cvt.f64.f32 $q4, $r0; abs.f64 $q5, $q3; abs.f64 $q6, $q4; setp.gt.f64 $p0, $q6, $q5; \
         setp.ne.f64 $p1, $q4, $q3; selp.b32 $r1, 1, 0, $p0; sub.s32 $r2, $r0, $r1; selp.b32 $r3, 1, 0, $p1; or.b32 $d, $r2, $r3",
    ),
];

static INDEX: LazyLock<HashMap<(&'static str, &'static str), &'static Row>> =
    LazyLock::new(|| ROWS.iter().flat_map(|r| r.types.split(' ').map(move |t| ((r.op, t), r))).collect());

/// The row of an operation on a type.
pub fn find(op: &str, ty: &str) -> Option<&'static Row> {
    INDEX.get(&(op, ty)).copied()
}

/// The class of registers of a type.
pub fn class(ty: &str) -> Class {
    match ty {
        "pred" => P,
        "s64" | "u64" | "f64" | "b64" => Q,
        "b16" => Class::H,
        _ => R,
    }
}
