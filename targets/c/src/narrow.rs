//! Narrow floats in C: f16, bf16 and the 8- and 4-bit formats, from their bits to `float` and back. Integer arithmetic only, so that
//! no compiler needs to know them.

use crate::types::memory;
use infc_ir::DType;
use infc_ir::float8::Small;

/// `2^exponent` as a constant.
fn power(exponent: i32) -> String {
    format!("0x1p{exponent}f")
}

/// Shifts the top bits of `a` down by `drop`, to nearest even.
fn round_bits(drop: u32, rebias: u32) -> String {
    let add = rebias.wrapping_add((1 << (drop - 1)) - 1);
    format!("(a + {add:#x}u + (a >> {drop} & 1u)) >> {drop}")
}

/// A function from float to the bits of the nearest value, ties to even; 8- and 4-bit formats saturate.
pub fn nearest(dtype: DType, name: &str, to_bits: &str, fabs: &str) -> String {
    let t = memory(dtype).expect("a float");
    let body = match dtype {
        DType::BF16 => {
            format!("    uint32_t a = {to_bits}(x);\n    return (uint16_t)(x != x ? 0x7fc0u : {});\n", round_bits(16, 0))
        }
        DType::F16 => format!(
            "    uint32_t bits = {to_bits}(x), a = bits & 0x7fffffffu, r;\n    \
             if (a > 0x7f800000u) r = 0x7e00u;\n    else if (a >= 0x47800000u) r = 0x7c00u;\n    \
             else if (a < 0x38800000u) r = {to_bits}({fabs}(x) + 0.5f) - 0x3f000000u;\n    else r = {};\n    \
             return (uint16_t)(r | (bits >> 16 & 0x8000u));\n",
            round_bits(13, (112u32 << 23).wrapping_neg())
        ),
        // Nearest in the exponent: up from sqrt(2). Below 2^-126 the float is subnormal, and 2^-126.5 decides between codes 0 and 1.
        DType::F8E8M0 => format!(
            "    uint32_t bits = {to_bits}(x), code = (bits >> 23) + ((bits & 0x7fffffu) > 0x3504f3u);\n    \
             if (!(x >= 0)) return 255;\n    if (x == 0) return 0;\n    if (bits < 0x800000u) return bits >= 5931642u;\n    \
             return (uint8_t)(code > 254u ? 254u : code);\n"
        ),
        _ => {
            let s = Small::of(dtype);
            let lowest = 1 - s.bias;
            let magic = lowest - s.mantissa as i32 + 23;
            let magic_bits = ((magic + 127) as u32) << 23;
            let zero = if s.fnuz { "    if (code == 0) return 0;\n" } else { "" };
            format!(
                "    uint32_t bits = {to_bits}(x), a = bits & 0x7fffffffu, code;\n    if (a > 0x7f800000u) return {:#x};\n    \
                 if (a > {largest:#x}u) a = {largest:#x}u;\n    if (a < {:#x}u) code = {to_bits}({fabs}(x) + {}) - {magic_bits:#x}u;\n    \
                 else code = {};\n{zero}    return (uint8_t)(code | (bits >> {} & {:#x}u));\n",
                s.nan,
                ((lowest + 127) as u32) << 23,
                power(magic),
                round_bits(23 - s.mantissa, (((127 - s.bias) as u32) << 23).wrapping_neg()),
                31 - s.bits,
                1u32 << s.bits,
                largest = (s.largest as f32).to_bits(),
            )
        }
    };
    format!("static inline {t} {name}(float x) {{\n{body}}}\n")
}

/// A function from bits to float.
pub fn unpack(dtype: DType, name: &str, from_bits: &str) -> String {
    let t = memory(dtype).expect("a float");
    let scaled = |shift: u32, exponent: i32| format!("{from_bits}(a << {shift}) * {}", power(exponent));
    let body = match dtype {
        DType::BF16 => format!("    return {from_bits}((uint32_t)h << 16);\n"),
        DType::F16 => format!(
            "    uint32_t a = h & 0x7fffu;\n    float x = a >= 0x7c00u ? {from_bits}(a << 13 | 0x7f800000u) : {};\n    \
             return h & 0x8000u ? -x : x;\n",
            scaled(13, 112)
        ),
        DType::F8E8M0 => {
            format!("    return h == 255 ? NAN : {from_bits}(h == 0 ? 0x400000u : (uint32_t)h << 23);\n")
        }
        _ => {
            let s = Small::of(dtype);
            let mut special = String::new();
            if s.infinities {
                let top = ((1u32 << (s.bits - s.mantissa)) - 1) << s.mantissa;
                special = format!("    if (a == {top:#x}u) x = INFINITY;\n    if (a > {top:#x}u) return NAN;\n");
            } else if dtype != DType::F4E2M1 {
                let code = if s.fnuz { "h" } else { "a" };
                special = format!("    if ({code} == {:#x}u) return NAN;\n", s.nan);
            }
            format!(
                "    uint32_t a = h & {:#x}u;\n    float x = {};\n{special}    return h & {:#x}u ? -x : x;\n",
                (1u32 << s.bits) - 1,
                scaled(23 - s.mantissa, 127 - s.bias),
                1u32 << s.bits
            )
        }
    };
    format!("static inline float {name}({t} h) {{\n{body}}}\n")
}
