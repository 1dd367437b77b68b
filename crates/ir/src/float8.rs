//! The 8- and 4-bit float formats of ONNX: bits to `f64` and back, rounding to nearest even.
//!
//! Formats as in the ONNX documentation ("Float stored in 8 bits", "Float stored in 4 bits"): `e4m3fn` and `e5m2` (IEEE-like,
//! `fn` without infinities), the `fnuz` variants (no negative zero, one NaN at 0x80, bias one higher), `e8m0` (a power of
//! two, no sign) and `e2m1`.

use crate::dtype::DType;

struct Format {
    exponent: u32,
    mantissa: u32,
    bias: i32,
    unsigned_zero: bool, // fnuz: 0x80 is NaN, no infinities, no negative zero
    infinities: bool,
    nan: bool,
}

fn format(dtype: DType) -> Format {
    let f = |exponent, mantissa, bias, unsigned_zero, infinities, nan| Format {
        exponent,
        mantissa,
        bias,
        unsigned_zero,
        infinities,
        nan,
    };
    match dtype {
        DType::F8E4M3FN => f(4, 3, 7, false, false, true),
        DType::F8E4M3FNUZ => f(4, 3, 8, true, false, true),
        DType::F8E5M2 => f(5, 2, 15, false, true, true),
        DType::F8E5M2FNUZ => f(5, 2, 16, true, false, true),
        DType::F4E2M1 => f(2, 1, 1, false, false, false),
        _ => unreachable!("{dtype} is not a small float"),
    }
}

/// A format with sign and mantissa, as those need it who pack and unpack it with integer arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Small {
    /// Bits of the mantissa.
    pub mantissa: u32,
    /// Bits of exponent and mantissa, without the sign.
    pub bits: u32,
    /// Bias of the exponent.
    pub bias: i32,
    /// NaN is the code of the negative zero, which there is not.
    pub fnuz: bool,
    /// The largest exponent means infinity and NaN.
    pub infinities: bool,
    /// The largest finite value.
    pub largest: f64,
    /// Code of NaN, without the sign; of the largest value where there is no NaN.
    pub nan: u32,
}

impl Small {
    /// The format of a dtype: one of the four 8-bit ones with a mantissa, or `e2m1`.
    pub fn of(dtype: DType) -> Small {
        let f = format(dtype);
        let bits = f.exponent + f.mantissa;
        let (all, sign) = ((1u32 << bits) - 1, 1u32 << bits);
        let largest = match (f.infinities, f.nan && !f.unsigned_zero) {
            (true, _) => (((1u32 << f.exponent) - 1) << f.mantissa) - 1,
            (false, true) => all - 1,
            (false, false) => all,
        };
        Small {
            mantissa: f.mantissa,
            bits,
            bias: f.bias,
            fnuz: f.unsigned_zero,
            infinities: f.infinities,
            largest: decode(dtype, largest as u8),
            nan: if f.unsigned_zero { sign } else { all },
        }
    }
}

/// The value of the bits `raw` of a small float `dtype`.
pub fn decode(dtype: DType, raw: u8) -> f64 {
    if dtype == DType::F8E8M0 {
        return if raw == 0xff { f64::NAN } else { libm::exp2(f64::from(raw) - 127.0) };
    }
    let f = format(dtype);
    let bits = f.exponent + f.mantissa;
    let negative = raw >> bits & 1 == 1;
    let magnitude = raw & ((1 << bits) - 1);
    if f.unsigned_zero && negative && magnitude == 0 {
        return f64::NAN;
    }
    let e = i32::from(magnitude >> f.mantissa);
    let m = f64::from(magnitude & ((1 << f.mantissa) - 1)) / f64::from(1 << f.mantissa);
    let top = (1 << f.exponent) - 1;
    let value = if f.infinities && e == top {
        if m == 0.0 { f64::INFINITY } else { f64::NAN }
    } else if f.nan && !f.unsigned_zero && !f.infinities && magnitude == (1 << bits) - 1 {
        f64::NAN
    } else if e == 0 {
        m * libm::exp2(f64::from(1 - f.bias))
    } else {
        (1.0 + m) * libm::exp2(f64::from(e - f.bias))
    };
    if negative { -value } else { value }
}

/// The bits of `value` in the small float `dtype` (NaN in f4e2m1: the largest value). Too large values become the largest finite one if `saturate`, else infinity,
/// or NaN where the format has no infinity.
pub fn encode(dtype: DType, value: f64, saturate: bool) -> u8 {
    if dtype == DType::F8E8M0 {
        if value.is_nan() || value < 0.0 {
            return 0xff;
        }
        let e = libm::log2(value).round_ties_even() + 127.0;
        return if e > 254.0 { if saturate { 254 } else { 255 } } else { e.max(0.0) as u8 };
    }
    let f = format(dtype);
    let bits = f.exponent + f.mantissa;
    let sign = if value.is_sign_negative() { 1u8 << bits } else { 0 };
    let all = ((1u32 << bits) - 1) as u8;
    let nan = if f.unsigned_zero {
        0x80
    } else if f.infinities {
        sign | (all & !(1 << (f.mantissa - 1))) | 1 << (f.mantissa - 1)
    } else {
        sign | all
    };
    if value.is_nan() {
        return if f.nan { nan } else { all };
    }
    let largest = match (f.infinities, f.nan, f.unsigned_zero) {
        (true, ..) => all - (1 << f.mantissa), // below the infinity
        (false, true, false) => all - 1,       // below the NaN
        _ => all,
    };
    let overflow = if saturate || !f.nan {
        sign | largest
    } else if f.infinities {
        sign | (largest + 1)
    } else {
        nan
    };
    let a = value.abs();
    if a.is_infinite() {
        return overflow;
    }
    // Units in the last place at this magnitude; the nearest multiple, ties to even.
    let lowest = 1 - f.bias;
    let e = if a == 0.0 { lowest } else { libm::ilogb(a).max(lowest) };
    let ulp = libm::exp2(f64::from(e - f.mantissa as i32));
    let units = (a / ulp).round_ties_even() as u32;
    let code = (((e - lowest) as u32) << f.mantissa) + units; // subnormals: e == lowest, units < 2^m; normals carry the hidden bit
    if code > u32::from(largest) {
        return overflow;
    }
    let code = code as u8;
    if code == 0 && f.unsigned_zero { 0 } else { sign | code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_for_integer_arithmetic() {
        let s =
            |bits, mantissa, bias, fnuz, infinities, largest, nan| Small { mantissa, bits, bias, fnuz, infinities, largest, nan };
        assert_eq!(Small::of(DType::F8E4M3FN), s(7, 3, 7, false, false, 448.0, 0x7f));
        assert_eq!(Small::of(DType::F8E4M3FNUZ), s(7, 3, 8, true, false, 240.0, 0x80));
        assert_eq!(Small::of(DType::F8E5M2), s(7, 2, 15, false, true, 57344.0, 0x7f));
        assert_eq!(Small::of(DType::F8E5M2FNUZ), s(7, 2, 16, true, false, 57344.0, 0x80));
        assert_eq!(Small::of(DType::F4E2M1), s(3, 1, 1, false, false, 6.0, 0x7));
    }

    #[test]
    fn every_code_survives_decode_and_encode() {
        for d in [DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ, DType::F4E2M1, DType::F8E8M0] {
            for raw in 0..=((1u32 << d.bits()) - 1) as u8 {
                let v = decode(d, raw);
                if !v.is_nan() {
                    assert_eq!(encode(d, v, false), raw, "{d} {raw:#x} {v}");
                } else {
                    assert!(decode(d, encode(d, v, false)).is_nan());
                }
            }
        }
        assert_eq!(decode(DType::F8E4M3FN, encode(DType::F8E4M3FN, 1e9, true)), 448.0);
        assert_eq!(decode(DType::F8E5M2, encode(DType::F8E5M2, 1e9, false)), f64::INFINITY);
    }
}
