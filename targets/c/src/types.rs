//! C types of dtypes, in memory and as values, and constants of them.

use infc_ir::dtype::Class;
use infc_ir::{DType, Fault, fault};

/// The type of elements in memory.
pub fn memory(dtype: DType) -> Result<&'static str, Fault> {
    Ok(match dtype {
        DType::F32 => "float",
        DType::F64 => "double",
        DType::C64 | DType::C128 | DType::String => return Err(fault!("C code has no arithmetic on {dtype}")),
        d => match (d.is_signed(), d.bytes()) {
            (true, 1) => "int8_t",
            (true, 2) => "int16_t",
            (true, 4) => "int32_t",
            (true, _) => "int64_t",
            (false, 1) => "uint8_t",
            (false, 2) => "uint16_t",
            (false, 4) => "uint32_t",
            (false, _) => "uint64_t",
        },
    })
}

/// The type of values: narrow floats travel as `float`, bools as `int`.
pub fn value(dtype: DType) -> Result<&'static str, Fault> {
    match dtype.class() {
        Class::Bool => Ok("int"),
        Class::Float if dtype != DType::F64 => Ok("float"),
        _ => memory(dtype),
    }
}

/// The unsigned type in which integers of `dtype` wrap without undefined behaviour.
pub fn wrapping(dtype: DType) -> &'static str {
    if dtype.bytes() == 8 { "uint64_t" } else { "uint32_t" }
}

/// A float that has fewer bits than `float` and travels as one.
pub fn is_narrow(dtype: DType) -> bool {
    dtype.is_float() && !matches!(dtype, DType::F32 | DType::F64)
}

/// A constant: `bits` as `infc_ir::eval` holds them. True if it begins with a sign.
pub fn constant(dtype: DType, bits: u64) -> (String, bool) {
    let text = match dtype.class() {
        Class::Float => float(dtype, f64::from_bits(bits)),
        Class::Unsigned if dtype.bytes() == 8 && bits > u64::from(u32::MAX) => format!("UINT64_C({bits})"),
        // Narrower ones are promoted to `int`, as the constant is.
        Class::Unsigned if dtype.bytes() < 4 => bits.to_string(),
        Class::Unsigned => format!("{bits}u"),
        _ => integer(bits as i64),
    };
    let sign = text.starts_with('-');
    (text, sign)
}

/// A signed number that fits `int64_t`.
pub fn integer(v: i64) -> String {
    match v {
        i64::MIN => "INT64_MIN".to_owned(),
        v if v == i64::from(i32::MIN) => "INT32_MIN".to_owned(),
        v if i32::try_from(v).is_ok() => v.to_string(),
        v if v < 0 => format!("-INT64_C({})", -v),
        v => format!("INT64_C({v})"),
    }
}

/// A float constant that a C compiler reads back as the same value.
pub fn float(dtype: DType, v: f64) -> String {
    match v {
        v if v.is_nan() => "NAN".to_owned(),
        v if v.is_infinite() => if v < 0.0 { "-INFINITY" } else { "INFINITY" }.to_owned(),
        v if dtype == DType::F64 => format!("{v:?}"),
        v => format!("{:?}f", v as f32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_read_back_as_they_are() {
        let f = |d, v: f64| constant(d, v.to_bits()).0;
        assert_eq!(f(DType::F32, f64::from(0.1f32)), "0.1f");
        assert_eq!(f(DType::F64, 1e300), "1e300");
        assert_eq!(constant(DType::F32, (-0.0f64).to_bits()), ("-0.0f".to_owned(), true));
        assert_eq!(f(DType::F16, f64::NEG_INFINITY), "-INFINITY");
        let i = |d, v: i64| constant(d, v as u64).0;
        assert_eq!(i(DType::I64, i64::MIN), "INT64_MIN");
        assert_eq!(i(DType::I64, -5_000_000_000), "-INT64_C(5000000000)");
        assert_eq!(i(DType::I32, -1), "-1");
        assert_eq!(i(DType::U64, -1), "UINT64_C(18446744073709551615)");
        assert_eq!(i(DType::U32, 7), "7u");
        assert_eq!(i(DType::U8, 255), "255");
    }
}
