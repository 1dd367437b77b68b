//! The f32 functions that stay in f32.

use super::coefficients::*;
use super::{Cx, abs, copysign, shl, shr};
use infc_ir::{DType, Scalar};

const LOG2_E: f64 = std::f64::consts::LOG2_E;
/// The upper bits of ln 2, so few that products with exponents are exact, and the rest.
const LN2: [f64; 2] = [0.693_145_751_953_125, 1.428_606_820_309_417_2e-6];
/// Adding this leaves the integer nearest to a small number in the low bits.
const MAGIC: f64 = 12_582_912.0;

fn c(v: f64) -> Scalar {
    Scalar::float(DType::F32, v)
}

fn int(v: i64) -> Scalar {
    Scalar::int(DType::I32, v)
}

fn bits(x: Scalar) -> Scalar {
    x.bitcast(DType::I32)
}

fn float(x: Scalar) -> Scalar {
    x.bitcast(DType::F32)
}

/// `2^n` for an integer n in the range of normal exponents.
fn power(n: Scalar) -> Scalar {
    float(shl(n + int(127), 23))
}

impl Cx {
    /// `x = n ln 2 + r`: n as an integer, and r.
    fn split_f32(self, x: Scalar) -> (Scalar, Scalar) {
        let t = self.madd(x, c(LOG2_E), c(MAGIC));
        let n = t - c(MAGIC);
        let r = self.nmadd(n, c(LN2[0]), x);
        (bits(t) - int(0x4b40_0000), self.nmadd(n, c(LN2[1]), r))
    }

    fn exp_reduced(self, r: Scalar) -> Scalar {
        let q = self.poly(r, &EXP_F32);
        self.madd(r * r, q, r) + c(1.0)
    }

    pub(super) fn exp_f32(self, x: Scalar) -> Scalar {
        // Beyond these the result is 0 or infinity; in between the scale is two factors, so that subnormals round once.
        let (n, r) = self.split_f32(x.max(c(-104.0)).min(c(89.0)));
        let half = shr(n, 1);
        self.exp_reduced(r) * power(half) * power(n - half)
    }

    /// `e^x` for x not positive; 0 where it is no normal number.
    pub(super) fn exp_flushed(self, x: Scalar) -> Scalar {
        let least = c(f64::from(f32::MIN_POSITIVE).ln());
        let (n, r) = self.split_f32(x.max(least));
        Scalar::select(x.lt(least), c(0.0), self.exp_reduced(r) * power(n))
    }

    /// `e^x` for x not positive, with results below the normal range as exact as they need to be in sums with 1.
    fn exp_negative(self, x: Scalar) -> Scalar {
        let (n, r) = self.split_f32(x.max(c(-104.0)));
        let half = shr(n, 1);
        self.exp_reduced(r) * power(half) * power(n - half)
    }

    pub(super) fn sigmoid_f32(self, x: Scalar) -> Scalar {
        // With e = e^-|x|: 1 / (1 + e) or e / (1 + e).
        let e = self.exp_negative(-abs(x));
        Scalar::select(x.lt(c(0.0)), e, c(1.0)) / (e + c(1.0))
    }

    /// `e^x - 1` for x from -18 to 89.
    fn expm1_clamped(self, x: Scalar) -> Scalar {
        let (n, r) = self.split_f32(x);
        let q = self.poly(r, &EXPM1_F32);
        let p = self.madd(r * r, q, r);
        // 2 (2^(n-1) p + (2^(n-1) - 1/2)): 2^n itself may be too large.
        let scale = power(n - int(1));
        let y = self.madd(scale, p, scale - c(0.5));
        y + y
    }

    pub(super) fn expm1_f32(self, x: Scalar) -> Scalar {
        let y = self.expm1_clamped(x.max(c(-18.0)).min(c(89.0)));
        // Below half a unit of the last place of 1 the result is x; subnormal ones would be lost in the scale.
        Scalar::select(abs(x).lt(c(5.9e-8)), x, y)
    }

    pub(super) fn tanh_f32(self, x: Scalar) -> Scalar {
        // With t = e^(2|x|) - 1: t / (t + 2), or 1 - 2 / (t + 2).
        let a = abs(x);
        let small = a.lt(c(0.55));
        let t = self.expm1_clamped((a + a).min(c(40.0)));
        let q = Scalar::select(small, t, c(2.0)) / (t + c(2.0));
        copysign(Scalar::select(small, q, c(1.0) - q), x)
    }

    /// `x = 2^e (1 + f)` with `1 + f` from sqrt(1/2) to sqrt(2), for normal positive x: e as f32, and f.
    fn exponent_f32(self, x: Scalar) -> (Scalar, Scalar) {
        let e = shr(bits(x) - int(0x3f35_04f3), 23);
        let m = float(bits(x) - shl(e, 23));
        (e.cast(DType::F32), m - c(1.0))
    }

    /// `e ln 2 + ln(1 + f) + low`.
    fn log_parts_f32(self, e: Scalar, f: Scalar, low: Scalar) -> Scalar {
        let f2 = f * f;
        let y = self.poly(f, &LOG_F32) * (f2 * f);
        let y = self.madd(e, c(LN2[1]), y) + low;
        let y = self.madd(f2, c(-0.5), y);
        self.madd(e, c(LN2[0]), f + y)
    }

    pub(super) fn log_f32(self, x: Scalar) -> Scalar {
        let tiny = x.lt(c(f64::from(f32::MIN_POSITIVE)));
        let (e, f) = self.exponent_f32(Scalar::select(tiny, x * c(8_388_608.0), x));
        let e = Scalar::select(tiny, e - c(23.0), e);
        log_limits(x, self.log_parts_f32(e, f, c(0.0)))
    }

    pub(super) fn log1p_f32(self, x: Scalar) -> Scalar {
        let u = x + c(1.0);
        // What the sum lost, relative to it.
        let lost = Scalar::select(u.lt(c(2.0)), x - (u - c(1.0)), c(1.0) - (u - x));
        let (e, f) = self.exponent_f32(u);
        let near = e.eq_to(c(0.0));
        let low = Scalar::select(near, c(0.0), lost / u);
        let y = log_limits(u, self.log_parts_f32(e, Scalar::select(near, x, f), low));
        Scalar::select(x.eq_to(c(0.0)), x, y)
    }

    pub(super) fn erf_f32(self, x: Scalar) -> Scalar {
        let t = abs(x);
        let small = self.madd(x, self.poly(x * x, &ERF_F32), x);
        // erfc(t) = e^-(t + t p(t)); from 3.95 on the result is 1.
        let far = t.min(c(3.95));
        let g = self.madd(far, self.poly(far, &ERFC_LOG_F32), far);
        let large = c(1.0) - self.exp_moderate(-g);
        Scalar::select(t.le(c(0.93)), small, copysign(large, x))
    }

    /// `e^x` where the result is a normal number.
    fn exp_moderate(self, x: Scalar) -> Scalar {
        let (n, r) = self.split_f32(x);
        self.exp_reduced(r) * power(n)
    }

    /// Sine and cosine of the remainder of x by pi/2, in f64 with an error small for f32, and the quadrant.
    fn sin_cos_f32(self, x: Scalar) -> (Scalar, Scalar, Scalar) {
        let (quadrant, r, _) = self.quarter(x.cast(DType::F64), false);
        let (s, co) = (self.sin_core(r, &SIN_F32), self.cos_core(r, &COS_F32));
        (quadrant, s, co)
    }

    pub(super) fn sin_f32(self, x: Scalar) -> Scalar {
        let (quadrant, s, co) = self.sin_cos_f32(x);
        let y = self.by_quadrant(quadrant, s, co).cast(DType::F32);
        Scalar::select(x.eq_to(c(0.0)), x, y)
    }

    pub(super) fn cos_f32(self, x: Scalar) -> Scalar {
        let (quadrant, s, co) = self.sin_cos_f32(x);
        self.by_quadrant(quadrant + Scalar::int(DType::I64, 1), s, co).cast(DType::F32)
    }
}

/// The logarithm `y` of x corrected at 0, below it, at infinity and NaN.
fn log_limits(x: Scalar, y: Scalar) -> Scalar {
    let y = Scalar::select(x.lt(c(f64::INFINITY)), y, x);
    let below = Scalar::select(x.eq_to(c(0.0)), c(f64::NEG_INFINITY), c(f64::NAN));
    Scalar::select(c(0.0).lt(x), y, below)
}
