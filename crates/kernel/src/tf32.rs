//! Numbers of tf32: f32 rounded to 10 bits of mantissa, ties away from zero, as GPUs convert it (PTX ISA, `cvt.rna.tf32.f32`). They lie in memory as f32.

use infc_ir::scalar::{Binary, Scalar};
use infc_ir::{DType, Tensor};

/// f32 rounded to 10 bits of mantissa, ties away from zero, as the machine's conversion does it.
pub fn round(x: Scalar) -> Scalar {
    let int = |v: i64| Scalar::int(DType::U32, v);
    let bits = x.bitcast(DType::U32);
    let rounded = Scalar::binary(Binary::And, bits + int(0x1000), int(0xffff_e000));
    Scalar::select(x.eq_to(x), rounded.bitcast(DType::F32), x)
}

/// A number rounded so.
pub fn number(x: f32) -> f32 {
    if x.is_nan() { x } else { f32::from_bits(x.to_bits().wrapping_add(0x1000) & 0xffff_e000) }
}

/// Each element of a constant rounded so.
pub fn tensor(t: &Tensor) -> Tensor {
    Tensor::from_vec(t.dims.clone(), t.to_vec::<f32>().into_iter().map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use infc_ir::eval;

    #[test]
    fn numbers_and_scalars_are_rounded_alike() {
        let unit = f32::EPSILON;
        let cases = [
            (1.0 + 0x1000 as f32 * unit, 1.0 + 0x2000 as f32 * unit), // a tie goes away from zero
            (-1.0 - 0x1000 as f32 * unit, -1.0 - 0x2000 as f32 * unit),
            (1.0 + 0xfff as f32 * unit, 1.0),
            (2.0 - unit, 2.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (-0.0, -0.0),
            (f32::from_bits(0x1000), f32::from_bits(0x2000)), // subnormal ones too
            (f32::from_bits(0xfff), 0.0),
        ];
        let nan = f32::from_bits(0x7fff_ffff);
        for (x, want) in cases.into_iter().chain([(nan, nan)]) {
            assert_eq!(number(x).to_bits(), want.to_bits(), "{x}");
            let s = round(Scalar::local(DType::F32, 0));
            let got = f64::from_bits(eval::scalar(s, &|_| None, &mut |_, _, _| 0, &|_| f64::from(x).to_bits()));
            assert!(got == f64::from(want) || x.is_nan() && got.is_nan(), "{x}: {got} instead of {want}");
            assert!(x.is_nan() || number(number(x)) == number(x));
        }
    }
}
