//! Mathematical functions as arithmetic: bodies of the scalar IR without transcendental operators.
//!
//! [`lower`] replaces `Exp`, `Log`, `Sin` and the rest by range reduction, a polynomial and selects, without branches, so that they
//! vectorise and no backend needs a library. The f32 functions that models use most (`exp`, `log`, `tanh`, `erf`, `sigmoid`,
//! `log1p`, `expm1`) stay in f32; the others go through f64, whose result is then rounded. Narrow floats go through f32, integers
//! through f64, as in `infc_ir::eval`. Limits are those of IEEE: infinities, NaN, both zeros, subnormals.
//!
//! `docs/numerics.md` has the bounds, which tests hold.
//!
//! Beyond its range the argument reduction of sin, cos and tan loses bits; the result stays within [-1, 1] (tan: any value).

#[rustfmt::skip]
mod coefficients;
mod double;
mod single;

use infc_ir::scalar::{Binary, Kind, Unary};
use infc_ir::{DType, Scalar};

/// Replaces the transcendental operators in `s`. `fma`: the machine has fused multiply-add.
pub fn lower(s: Scalar, fma: bool) -> Scalar {
    let cx = Cx { fma };
    s.rewrite(&mut |n| match n.kind() {
        Kind::Unary(op, a) if is_transcendental(*op) => cx.unary(*op, *a),
        Kind::Binary(op @ (Binary::Pow | Binary::Atan2), a, b) if a.dtype().is_float() || *op == Binary::Atan2 => {
            cx.binary(*op, *a, *b)
        }
        _ => n,
    })
}

/// Is it one of the operators that [`lower`] replaces?
pub fn is_transcendental(op: Unary) -> bool {
    use Unary::*;
    match op {
        Exp | Log | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Tanh | Asinh | Acosh | Atanh | Erf | Sigmoid | Log1p
        | Expm1 => true,
        Neg | Abs | Sign | Not | Floor | Ceil | Trunc | Round | Sqrt | IsNan | IsInf => false,
    }
}

/// `e^x` of an f32 that is not positive; 0 instead of results below the smallest normal number.
pub fn exp_flushed(x: Scalar, fma: bool) -> Scalar {
    Cx { fma }.exp_flushed(x)
}

/// How to multiply and add.
#[derive(Clone, Copy)]
struct Cx {
    fma: bool,
}

impl Cx {
    fn unary(self, op: Unary, a: Scalar) -> Scalar {
        match a.dtype() {
            DType::F32 => self.single(op, a),
            DType::F64 => self.double(op, a),
            d if d.is_float() => self.single(op, a.cast(DType::F32)).cast(d),
            d => self.double(op, a.cast(DType::F64)).cast(d),
        }
    }

    fn single(self, op: Unary, a: Scalar) -> Scalar {
        match op {
            Unary::Exp => self.exp_f32(a),
            Unary::Log => self.log_f32(a),
            Unary::Log1p => self.log1p_f32(a),
            Unary::Expm1 => self.expm1_f32(a),
            Unary::Tanh => self.tanh_f32(a),
            Unary::Sigmoid => self.sigmoid_f32(a),
            Unary::Erf => self.erf_f32(a),
            Unary::Sin => self.sin_f32(a),
            Unary::Cos => self.cos_f32(a),
            _ => self.double(op, a.cast(DType::F64)).cast(DType::F32),
        }
    }

    fn double(self, op: Unary, x: Scalar) -> Scalar {
        match op {
            Unary::Exp => self.exp(x),
            Unary::Log => self.log(x),
            Unary::Sin => self.sin(x),
            Unary::Cos => self.cos(x),
            Unary::Tan => self.tan(x),
            Unary::Asin => self.asin(x),
            Unary::Acos => self.acos(x),
            Unary::Atan => self.atan(x),
            Unary::Sinh => self.sinh(x),
            Unary::Cosh => self.cosh(x),
            Unary::Tanh => self.tanh(x),
            Unary::Asinh => self.asinh(x),
            Unary::Acosh => self.acosh(x),
            Unary::Atanh => self.atanh(x),
            Unary::Erf => self.erf(x),
            Unary::Sigmoid => self.sigmoid(x),
            Unary::Log1p => self.log1p(x),
            Unary::Expm1 => self.expm1(x),
            Unary::Neg | Unary::Abs | Unary::Sign | Unary::Not | Unary::Floor | Unary::Ceil | Unary::Trunc | Unary::Round => {
                Scalar::unary(op, x)
            }
            Unary::Sqrt | Unary::IsNan | Unary::IsInf => Scalar::unary(op, x),
        }
    }

    fn binary(self, op: Binary, a: Scalar, b: Scalar) -> Scalar {
        let d = a.dtype();
        if op == Binary::Pow {
            if let Some(power) = self.constant_power(a, b) {
                return power;
            }
            if d == DType::F64 {
                return self.pow(a, b);
            }
        }
        let (x, y) = (a.cast(DType::F64), b.cast(DType::F64));
        match op {
            Binary::Pow => self.pow_of_f32(x, y).cast(DType::F32).cast(d),
            _ if d.is_float() && d != DType::F64 => self.atan2(x, y).cast(DType::F32).cast(d),
            _ => self.atan2(x, y).cast(d),
        }
    }

    /// Powers with small constant exponents.
    fn constant_power(self, x: Scalar, y: Scalar) -> Option<Scalar> {
        let d = x.dtype();
        if !matches!(d, DType::F32 | DType::F64) {
            return None;
        }
        let one = Scalar::float(d, 1.0);
        // pow(-0, 1/2) is +0 and pow(-inf, 1/2) is +inf, unlike sqrt.
        let sqrt = || {
            let root = Scalar::unary(Unary::Sqrt, x + Scalar::float(d, 0.0));
            Scalar::select(x.eq_to(Scalar::float(d, f64::NEG_INFINITY)), Scalar::float(d, f64::INFINITY), root)
        };
        Some(match y.as_float()? {
            0.0 => one,
            1.0 => x,
            2.0 => x * x,
            3.0 => x * x * x,
            -1.0 => one / x,
            0.5 => sqrt(),
            _ => return None,
        })
    }

    /// `a * b + c`, fused where the machine can.
    fn madd(self, a: Scalar, b: Scalar, c: Scalar) -> Scalar {
        if self.fma { Scalar::fma(a, b, c) } else { a * b + c }
    }

    /// `c - a * b`.
    fn nmadd(self, a: Scalar, b: Scalar, c: Scalar) -> Scalar {
        if self.fma { Scalar::fma(-a, b, c) } else { c - a * b }
    }

    /// A polynomial by Horner's rule, constant first.
    fn poly(self, x: Scalar, coefficients: &[f64]) -> Scalar {
        let c = |v: f64| Scalar::float(x.dtype(), v);
        let (&last, rest) = coefficients.split_last().expect("a polynomial has coefficients");
        rest.iter().rev().fold(c(last), |acc, &k| self.madd(acc, x, c(k)))
    }
}

fn abs(x: Scalar) -> Scalar {
    Scalar::unary(Unary::Abs, x)
}

fn sqrt(x: Scalar) -> Scalar {
    Scalar::unary(Unary::Sqrt, x)
}

fn shl(x: Scalar, by: i64) -> Scalar {
    Scalar::binary(Binary::Shl, x, Scalar::int(x.dtype(), by))
}

fn shr(x: Scalar, by: i64) -> Scalar {
    Scalar::binary(Binary::Shr, x, Scalar::int(x.dtype(), by))
}

fn or(x: Scalar, y: Scalar) -> Scalar {
    Scalar::binary(Binary::Or, x, y)
}

/// `magnitude`, which is not negative, with the sign bit of `sign`.
fn copysign(magnitude: Scalar, sign: Scalar) -> Scalar {
    let (d, bits) = match sign.dtype() {
        DType::F64 => (DType::I64, i64::MIN),
        _ => (DType::I32, i64::from(i32::MIN)),
    };
    let bit = sign.bitcast(d).and(Scalar::int(d, bits));
    or(magnitude.bitcast(d), bit).bitcast(sign.dtype())
}
