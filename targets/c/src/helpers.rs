//! Functions that printed code calls: what has no short form in C, each defined where it is used and only there.
//!
//! All of them are total. Integers wrap in unsigned arithmetic, since overflow of signed integers is undefined in C.

use crate::narrow;
use crate::types::{self, memory, wrapping};
use infc_ir::DType;
use infc_kernel::target::TargetDesc;
use std::collections::HashSet;

/// What printed code may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Nothing of `<math.h>`: its exact functions are functions of the code itself (`libm`).
    pub own_math: bool,
    /// Indices, extents and loop counters are `int32_t` wherever their values are certain to fit.
    pub narrow_index: bool,
    /// Bytes of a vector, where vector loops are written with the vector types of GCC and Clang; 0 where they are not.
    pub vector_bytes: usize,
}

impl Style {
    /// What a machine has: the rest is for users to choose.
    pub fn of(target: &TargetDesc) -> Style {
        let vectors = target.features.iter().any(|f| f == "vector-types");
        Style { vector_bytes: if vectors { target.vector_bytes as usize } else { 0 }, ..Style::default() }
    }
}

/// The functions used so far, each after those that it calls.
#[derive(Clone, Debug, Default)]
pub struct Helpers {
    /// What the code may use.
    pub style: Style,
    names: HashSet<String>,
    texts: Vec<String>,
}

impl Helpers {
    /// Is it defined, or about to be?
    pub fn begin(&mut self, name: &str) -> bool {
        self.names.insert(name.to_owned())
    }
    /// Adds the definition of what [`Helpers::begin`] announced.
    pub fn define(&mut self, text: impl Into<String>) {
        self.texts.push(text.into());
    }
    /// None yet, for code of this style.
    pub fn new(style: Style) -> Helpers {
        Helpers { style, ..Helpers::default() }
    }
    /// An exact function of `<math.h>`: `fabs floor ceil trunc rint sqrt fmod`, or what stands for it.
    pub fn library(&mut self, name: &str, dtype: DType) -> String {
        let double = dtype == DType::F64;
        match self.style.own_math {
            false if double => name.to_owned(),
            false => format!("{name}f"),
            true => self.need(format!("{name}_{}", if double { "f64" } else { "f32" }), |h, own| {
                let d = if double { DType::F64 } else { DType::F32 };
                let (to, from) = (h.bits(d, true), h.bits(d, false));
                let base = crate::libm::calls(name).map(|b| h.library(b, d));
                crate::libm::function(name, double, own, &to, &from, base.as_deref().unwrap_or_default())
            }),
        }
    }
    /// All definitions.
    pub fn text(&self) -> String {
        self.texts.join("\n")
    }

    /// The function of that name, defined by `make` if it is new.
    pub fn need(&mut self, name: String, make: impl FnOnce(&mut Helpers, &str) -> String) -> String {
        if self.begin(&name) {
            let text = make(self, &name);
            self.define(text);
        }
        name
    }

    /// `f32_to_bits` and the like.
    pub fn bits(&mut self, dtype: DType, to: bool) -> String {
        let (float, int) = if dtype == DType::F64 { ("double", "uint64_t") } else { ("float", "uint32_t") };
        let (way, from, into) = if to { ("to", float, int) } else { ("from", int, float) };
        self.need(format!("{}_{way}_bits", dtype.name()), |_, name| {
            format!("static inline {into} {name}({from} x) {{\n    {into} y;\n    memcpy(&y, &x, sizeof y);\n    return y;\n}}\n")
        })
    }

    /// Arithmetic of integers that wraps: `add sub mul neg abs`.
    pub fn wraps(&mut self, op: &str, dtype: DType) -> String {
        self.need(format!("{op}_{}", dtype.name()), |h, name| {
            let (t, u) = (mem(dtype), wrapping(dtype));
            let value = match op {
                "add" => format!("({u})a + ({u})b"),
                "sub" => format!("({u})a - ({u})b"),
                "mul" => format!("({u})a * ({u})b"),
                "abs" => format!("a < 0 ? 0u - ({u})a : ({u})a"),
                _ => format!("0u - ({u})a"),
            };
            let value = h.wrapped(dtype, &value);
            let second = if matches!(op, "neg" | "abs") { String::new() } else { format!(", {t} b") };
            format!("static inline {t} {name}({t} a{second}) {{ return {value}; }}\n")
        })
    }

    /// The low bits of an integer expression as a value of `dtype`.
    pub fn wrapped(&mut self, dtype: DType, text: &str) -> String {
        let bits = dtype.bits();
        let t = mem(dtype);
        if bits as usize == 8 * dtype.bytes() {
            return format!("({t})({text})");
        }
        let mask = (1u32 << bits) - 1;
        if !dtype.is_signed() {
            return format!("({t})(({text}) & {mask}u)");
        }
        let name = self.need(format!("wrap_{}", dtype.name()), |_, name| {
            let half = 1u32 << (bits - 1);
            format!("static inline {t} {name}(uint32_t x) {{ return ({t})((int)(x & {}u) - (int)(x & {half}u)); }}\n", half - 1)
        });
        format!("{name}((uint32_t)({text}))")
    }

    /// Division and remainders of integers: `div rem mod`; by zero 0.
    pub fn division(&mut self, op: &str, dtype: DType) -> String {
        self.need(format!("{op}_{}", dtype.name()), |h, name| {
            let t = mem(dtype);
            if !dtype.is_signed() {
                let op = if op == "div" { "/" } else { "%" };
                return format!("static inline {t} {name}({t} a, {t} b) {{ return b == 0 ? 0 : ({t})(a {op} b); }}\n");
            }
            let least = h.wrapped(dtype, &format!("0u - ({})a", wrapping(dtype)));
            match op {
                "div" => {
                    let quotient = h.wrapped(dtype, "a / b");
                    format!("static inline {t} {name}({t} a, {t} b) {{ return b == 0 ? 0 : b == -1 ? {least} : {quotient}; }}\n")
                }
                "rem" => format!("static inline {t} {name}({t} a, {t} b) {{ return b == 0 || b == -1 ? 0 : ({t})(a % b); }}\n"),
                _ => {
                    let rem = h.division("rem", dtype);
                    format!(
                        "static inline {t} {name}({t} a, {t} b) {{\n    {t} r = {rem}(a, b);\n    \
                         return r != 0 && (r < 0) != (b < 0) ? ({t})(r + b) : r;\n}}\n"
                    )
                }
            }
        })
    }

    /// Shifts: by the width or more, or by less than 0, what is left is 0 or the sign.
    pub fn shift(&mut self, left: bool, dtype: DType) -> String {
        let op = if left { "shl" } else { "shr" };
        self.need(format!("{op}_{}", dtype.name()), |h, name| {
            let (t, u, bits) = (mem(dtype), wrapping(dtype), dtype.bits());
            let inside = if dtype.is_signed() { format!("b >= 0 && b < {bits}") } else { format!("b < {bits}u") };
            let value = match (left, dtype.is_signed()) {
                (true, _) => format!("{inside} ? {} : 0", h.wrapped(dtype, &format!("({u})a << b"))),
                (false, false) => format!("{inside} ? ({t})(a >> b) : 0"),
                (false, true) => format!("{inside} ? ({t})(a < 0 ? ~(~a >> b) : a >> b) : ({t})(a < 0 ? -1 : 0)"),
            };
            format!("static inline {t} {name}({t} a, {t} b) {{ return {value}; }}\n")
        })
    }

    /// Powers of integers.
    pub fn int_pow(&mut self, dtype: DType) -> String {
        self.need(format!("pow_{}", dtype.name()), |h, name| {
            let t = mem(dtype);
            let negative = if dtype.is_signed() {
                "    if (exponent < 0) return base == 1 ? 1 : base != -1 ? 0 : exponent % 2 == 0 ? 1 : -1;\n"
            } else {
                ""
            };
            let result = h.wrapped(dtype, "result");
            format!(
                "static {t} {name}({t} base, {t} exponent) {{\n    uint64_t result = 1, square = (uint64_t)base, rest = (uint64_t)exponent;\n\
                 {negative}    for (; rest > 0; rest >>= 1) {{\n        if (rest & 1) result *= square;\n        square *= square;\n    }}\n    \
                 return {result};\n}}\n"
            )
        })
    }

    /// `min max sign` of integers.
    pub fn int_pick(&mut self, op: &str, dtype: DType) -> String {
        self.need(format!("{op}_{}", dtype.name()), |_, name| {
            let t = mem(dtype);
            match op {
                "sign" if dtype.is_signed() => {
                    format!("static inline {t} {name}({t} a) {{ return ({t})((a > 0) - (a < 0)); }}\n")
                }
                "sign" => format!("static inline {t} {name}({t} a) {{ return a > 0 ? 1 : 0; }}\n"),
                _ => {
                    let cmp = if op == "min" { '<' } else { '>' };
                    format!("static inline {t} {name}({t} a, {t} b) {{ return a {cmp} b ? a : b; }}\n")
                }
            }
        })
    }

    /// Floats: `min max at_least at_most sign isnan isinf mod fma`, of `float` or `double`.
    pub fn float(&mut self, op: &str, double: bool) -> String {
        let d = if double { DType::F64 } else { DType::F32 };
        self.need(format!("{op}_{}", d.name()), |h, name| {
            let t = mem(d);
            let fabs = if op == "isinf" { h.library("fabs", d) } else { String::new() };
            let fmod = if op == "mod" { h.library("fmod", d) } else { String::new() };
            match op {
                // NaN wins; of the zeros the one with the right sign, which addition finds.
                "max" => format!(
                    "static inline {t} {name}({t} a, {t} b) {{\n    if (a != a || b != b) return NAN;\n    \
                     return a > b ? a : b > a ? b : a != 0 ? a : a + b;\n}}\n"
                ),
                "min" => format!(
                    "static inline {t} {name}({t} a, {t} b) {{\n    if (a != a || b != b) return NAN;\n    \
                     return a < b ? a : b < a ? b : a != 0 ? a : -(-a - b);\n}}\n"
                ),
                "at_least" => format!(
                    "/* The larger; `limit` is a number and not -0. */\n\
                     static inline {t} {name}({t} x, {t} limit) {{ return x > limit || x != x ? x : limit; }}\n"
                ),
                "at_most" => format!(
                    "/* The smaller; `limit` is a number and not +0. */\n\
                     static inline {t} {name}({t} x, {t} limit) {{ return x < limit || x != x ? x : limit; }}\n"
                ),
                "sign" => format!("static inline {t} {name}({t} x) {{ return x > 0 ? 1 : x < 0 ? -1 : x; }}\n"),
                "isnan" => format!("static inline int {name}({t} x) {{ return x != x; }}\n"),
                "isinf" => format!("static inline int {name}({t} x) {{ return {fabs}(x) == INFINITY; }}\n"),
                "mod" => format!(
                    "static inline {t} {name}({t} x, {t} y) {{\n    {t} r = {fmod}(x, y);\n    \
                     return r != 0 && (r < 0) != (y < 0) ? r + y : r;\n}}\n"
                ),
                _ => {
                    let (to, from) = (h.bits(DType::F64, true), h.bits(DType::F64, false));
                    let text = if double { crate::libm::FMA } else { FMA };
                    text.replace("NAME", name).replace("TO_BITS", &to).replace("FROM_BITS", &from)
                }
            }
        })
    }

    /// From float to integer: truncates, saturates, NaN gives 0.
    pub fn to_int(&mut self, double: bool, to: DType) -> String {
        let from = if double { DType::F64 } else { DType::F32 };
        self.need(format!("{}_from_{}", to.name(), from.name()), |_, name| {
            let (t, f) = (mem(to), mem(from));
            let (lo, hi) = to.int_range().expect("an integer");
            let number = |v: i128| types::float(from, v as f64);
            let limit = |v: i128| match to.is_signed() {
                true => types::integer(v as i64),
                false => types::constant(to, v as u64).0,
            };
            format!(
                "static inline {t} {name}({f} x) {{\n    if (!(x > {})) return x != x ? 0 : {};\n    if (x >= {}) return {};\n    \
                 return ({t})x;\n}}\n",
                number(lo),
                limit(lo),
                number(hi + 1),
                limit(hi)
            )
        })
    }

    /// A double as float, rounded to odd: a later rounding to fewer bits is then as good as rounding once.
    pub fn odd(&mut self) -> String {
        self.need("odd_f32".to_owned(), |h, name| {
            let (to, from) = (h.bits(DType::F32, true), h.bits(DType::F32, false));
            let fabs = h.library("fabs", DType::F64);
            format!(
                "/* Rounded to odd, so that rounding the result again is as good as rounding once. */\n\
                 static inline float {name}(double x) {{\n    float y = (float)x;\n    if (y == x || x != x) return y;\n    \
                 return {from}(({to}(y) - ({fabs}((double)y) > {fabs}(x))) | 1u);\n}}\n"
            )
        })
    }

    /// `pack`, `unpack` or `round` of a narrow float.
    pub fn narrow(&mut self, op: &str, dtype: DType) -> String {
        self.need(format!("{op}_{}", dtype.name()), |h, name| {
            let (to, from) = (h.bits(DType::F32, true), h.bits(DType::F32, false));
            let fabs = if op == "unpack" { String::new() } else { h.library("fabs", DType::F32) };
            match op {
                "unpack" => narrow::unpack(dtype, name, &from),
                "nearest" => narrow::nearest(dtype, name, &to, &fabs),
                // Infinities are stored as such; only conversions saturate.
                "pack" if dtype == DType::F8E5M2 => {
                    let nearest = h.narrow("nearest", dtype);
                    format!(
                        "static inline uint8_t {name}(float x) {{ return (uint8_t)({nearest}(x) + ({fabs}(x) == INFINITY)); }}\n"
                    )
                }
                "pack" => {
                    let nearest = h.narrow("nearest", dtype);
                    format!("static inline {} {name}(float x) {{ return {nearest}(x); }}\n", mem(dtype))
                }
                _ => {
                    let (nearest, unpack) = (h.narrow("nearest", dtype), h.narrow("unpack", dtype));
                    format!("static inline float {name}(float x) {{ return {unpack}({nearest}(x)); }}\n")
                }
            }
        })
    }

    /// The macro before loops that are to be written out: what depends on their variable then moves out of the loops inside.
    pub fn unroll(&mut self) {
        self.need("UNROLL".to_owned(), |_, _| {
            "#if defined(__GNUC__) && __GNUC__ >= 8 && !defined(__clang__)\n#define PRAGMA(text) _Pragma(#text)\n\
             #define UNROLL(n) PRAGMA(GCC unroll n)\n#else\n#define UNROLL(n)\n#endif\n"
                .to_owned()
        });
    }

    /// `floor_div` or `floor_mod` of narrow indices.
    pub fn index_i32(&mut self, name: &str) -> String {
        self.need(format!("{name}_i32"), |_, own| {
            let text = if name == "floor_div" { FLOOR_DIV } else { FLOOR_MOD };
            text.replace("uint64_t", "uint32_t").replace("int64_t", "int32_t").replace(name, own)
        })
    }

    /// Index arithmetic: `floor_div floor_mod add_sat mul_sat`.
    pub fn index(&mut self, name: &str) -> String {
        self.need(name.to_owned(), |_, _| {
            let text = match name {
                "floor_div" => FLOOR_DIV,
                "floor_mod" => FLOOR_MOD,
                "add_sat" => ADD_SAT,
                _ => MUL_SAT,
            };
            text.to_owned()
        })
    }
}

fn mem(dtype: DType) -> &'static str {
    memory(dtype).expect("helpers are of dtypes that C has")
}

const FLOOR_DIV: &str = "/* Towards minus infinity; by zero 0. */
static inline int64_t floor_div(int64_t a, int64_t b) {
    if (b == 0) return 0;
    if (b == -1) return (int64_t)(0 - (uint64_t)a);
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
";

const FLOOR_MOD: &str = "/* The remainder of division towards minus infinity; by zero 0. */
static inline int64_t floor_mod(int64_t a, int64_t b) {
    int64_t r = b == 0 || b == -1 ? 0 : a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
";

const ADD_SAT: &str = "static inline int64_t add_sat(int64_t a, int64_t b) {
    if (b > 0 && a > INT64_MAX - b) return INT64_MAX;
    if (b < 0 && a < INT64_MIN - b) return INT64_MIN;
    return a + b;
}
";

const MUL_SAT: &str = "static inline int64_t mul_sat(int64_t a, int64_t b) {
    uint64_t x = a < 0 ? 0 - (uint64_t)a : (uint64_t)a, y = b < 0 ? 0 - (uint64_t)b : (uint64_t)b;
    int negative = (a < 0) != (b < 0);
    uint64_t most = (uint64_t)INT64_MAX + (negative ? 1 : 0);
    if (x != 0 && y > most / x) return negative ? INT64_MIN : INT64_MAX;
    return negative ? (int64_t)(0 - x * y) : (int64_t)(x * y);
}
";

/// The product is exact in double; the error of the sum decides how it is rounded to odd.
const FMA: &str = "static inline float NAME(float x, float y, float z) {
    double p = (double)x * (double)y, c = z, s = p + c;
    double b = s - p, error = (p - (s - b)) + (c - b);
    uint64_t bits = TO_BITS(s);
    if ((error > 0 || error < 0) && (bits & 1) == 0) bits += (error > 0) != (s > 0) ? UINT64_MAX : 1;
    return (float)FROM_BITS(bits);
}
";
