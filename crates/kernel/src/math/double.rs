//! The f64 functions; the rarer f32 functions are these, rounded.

use super::coefficients::*;
use super::{Cx, abs, copysign, shl, shr, sqrt};
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Scalar};

const LOG2_E: f64 = std::f64::consts::LOG2_E;
/// The upper 32 bits of ln 2, so that products with exponents are exact, and the rest.
const LN2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
/// Adding this leaves the integer nearest to a small number in the low bits.
const MAGIC: f64 = 6_755_399_441_055_744.0;
const MAGIC_BITS: i64 = 0x4338_0000_0000_0000;
/// pi/2 in parts: 25 bits and the rest (f32), 33 bits, 33 bits and the rest (f64).
const QUARTER_F32: [f64; 2] = [1.570_796_310_901_641_8, 1.589_325_477_352_819_6e-8];
const QUARTER_F64: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];
const PI_2: [f64; 2] = [std::f64::consts::FRAC_PI_2, 6.123_233_995_736_766e-17];
const PI: [f64; 2] = [std::f64::consts::PI, 1.224_646_799_147_353_2e-16];

fn c(v: f64) -> Scalar {
    Scalar::float(DType::F64, v)
}

fn int(v: i64) -> Scalar {
    Scalar::int(DType::I64, v)
}

fn bits(x: Scalar) -> Scalar {
    x.bitcast(DType::I64)
}

fn float(x: Scalar) -> Scalar {
    x.bitcast(DType::F64)
}

/// `2^n` for an integer n in the range of normal exponents.
fn power(n: Scalar) -> Scalar {
    float(shl(n + int(1023), 52))
}

fn floor(x: Scalar) -> Scalar {
    Scalar::unary(Unary::Floor, x)
}

fn not(x: Scalar) -> Scalar {
    Scalar::unary(Unary::Not, x)
}

impl Cx {
    /// `x = n ln 2 + r`: n as an integer, and r.
    fn split(self, x: Scalar) -> (Scalar, Scalar) {
        let t = self.madd(x, c(LOG2_E), c(MAGIC));
        let n = t - c(MAGIC);
        let r = self.nmadd(n, c(LN2[0]), x);
        (bits(t) - int(MAGIC_BITS), self.nmadd(n, c(LN2[1]), r))
    }

    /// `e^(x + low) 2^shift` for a small shift; `low` is far below x.
    fn exp_scaled(self, x: Scalar, low: Scalar, shift: i64) -> Scalar {
        let (n, r) = self.split(x.max(c(-747.0)).min(c(711.0)));
        let r = r + low;
        let q = self.poly(r, &EXP_F64);
        let p = self.madd(r * r, q, r) + c(1.0);
        let n = n + int(shift);
        let half = shr(n, 1);
        p * power(half) * power(n - half)
    }

    pub(super) fn exp(self, x: Scalar) -> Scalar {
        self.exp_scaled(x, c(0.0), 0)
    }

    pub(super) fn sigmoid(self, x: Scalar) -> Scalar {
        let e = self.exp(-abs(x));
        Scalar::select(x.lt(c(0.0)), e, c(1.0)) / (e + c(1.0))
    }

    pub(super) fn expm1(self, x: Scalar) -> Scalar {
        let (n, r) = self.split(x.max(c(-40.0)).min(c(710.0)));
        let q = self.poly(r, &EXP_F64);
        let p = self.madd(r * r, q, r);
        // 2 (2^(n-1) p + (2^(n-1) - 1/2)): 2^n itself may be too large.
        let scale = power(n - int(1));
        let y = self.madd(scale, p, scale - c(0.5));
        // Below half a unit of the last place of 1 the result is x; subnormal ones would be lost in the scale.
        Scalar::select(abs(x).lt(c(1.1e-16)), x, y + y)
    }

    pub(super) fn tanh(self, x: Scalar) -> Scalar {
        // With t = e^(2|x|) - 1: t / (t + 2), or 1 - 2 / (t + 2).
        let a = abs(x);
        let small = a.lt(c(0.55));
        let t = self.expm1((a + a).min(c(80.0)));
        let q = Scalar::select(small, t, c(2.0)) / (t + c(2.0));
        copysign(Scalar::select(small, q, c(1.0) - q), x)
    }

    /// Beyond 1: half the exponential, and a quarter of its inverse, which is half of e^-x.
    fn half_exp(self, x: Scalar) -> (Scalar, Scalar) {
        let e = self.exp_scaled(x, c(0.0), -1);
        (e, c(0.25) / e)
    }

    pub(super) fn cosh(self, x: Scalar) -> Scalar {
        let (e, inverse) = self.half_exp(abs(x));
        e + inverse
    }

    pub(super) fn sinh(self, x: Scalar) -> Scalar {
        let a = abs(x);
        let (e, inverse) = self.half_exp(a);
        let t = self.expm1(a.min(c(1.0)));
        let small = (t + t / (t + c(1.0))) * c(0.5);
        copysign(Scalar::select(a.lt(c(1.0)), small, e - inverse), x)
    }

    /// `x = 2^e (1 + f)` with `1 + f` from sqrt(1/2) to sqrt(2), for positive finite x: e as f64, and f.
    fn exponent(self, x: Scalar) -> (Scalar, Scalar) {
        let tiny = x.lt(c(f64::MIN_POSITIVE));
        let x = Scalar::select(tiny, x * c(18_014_398_509_481_984.0), x);
        let e = shr(bits(x) - int(0x3fe6_a09e_667f_3bcd), 52);
        let m = float(bits(x) - shl(e, 52));
        let e = e - Scalar::select(tiny, int(54), int(0));
        // Small integers to f64 without a 64-bit conversion.
        (float(e + int(MAGIC_BITS)) - c(MAGIC), m - c(1.0))
    }

    /// `e ln 2 + ln(1 + f) + low`.
    fn log_parts(self, e: Scalar, f: Scalar, low: Scalar) -> Scalar {
        let s = f / (f + c(2.0));
        let z = s * s;
        let r = z * self.poly(z, &LOG_F64);
        let half = f * f * c(0.5);
        let low = self.madd(e, c(LN2[1]), low);
        let tail = half - self.madd(s, half + r, low);
        self.madd(e, c(LN2[0]), f - tail)
    }

    pub(super) fn log(self, x: Scalar) -> Scalar {
        let (e, f) = self.exponent(x);
        log_limits(x, self.log_parts(e, f, c(0.0)))
    }

    pub(super) fn log1p(self, x: Scalar) -> Scalar {
        let u = x + c(1.0);
        // What the sum lost, relative to it.
        let lost = Scalar::select(u.lt(c(2.0)), x - (u - c(1.0)), c(1.0) - (u - x));
        let (e, f) = self.exponent(u);
        let near = e.eq_to(c(0.0));
        let low = Scalar::select(near, c(0.0), lost / u);
        let y = log_limits(u, self.log_parts(e, Scalar::select(near, x, f), low));
        Scalar::select(x.eq_to(c(0.0)), x, y)
    }

    pub(super) fn asinh(self, x: Scalar) -> Scalar {
        let a = abs(x);
        let large = c(268_435_456.0).lt(a);
        let z = a * a;
        let near = a + z / (sqrt(z + c(1.0)) + c(1.0));
        let y = self.log1p(Scalar::select(large, a - c(1.0), near)) + Scalar::select(large, c(std::f64::consts::LN_2), c(0.0));
        copysign(abs(y), x)
    }

    pub(super) fn acosh(self, x: Scalar) -> Scalar {
        let large = c(268_435_456.0).lt(x);
        let u = x - c(1.0);
        let near = u + sqrt(u * (u + c(2.0)));
        let y = self.log1p(Scalar::select(large, u, near)) + Scalar::select(large, c(std::f64::consts::LN_2), c(0.0));
        Scalar::select(x.lt(c(1.0)), c(f64::NAN), y)
    }

    pub(super) fn atanh(self, x: Scalar) -> Scalar {
        let a = abs(x);
        let t = a + a;
        let y = self.log1p(t + t * a / (c(1.0) - a)) * c(0.5);
        copysign(Scalar::select(a.le(c(1.0)), y, c(f64::NAN)), x)
    }

    /// The remainder of x by pi/2 and the low part it lost, and the quotient, of which two bits matter. `precise`: for f64.
    pub(super) fn quarter(self, x: Scalar, precise: bool) -> (Scalar, Scalar, Scalar) {
        let t = self.madd(x, c(std::f64::consts::FRAC_2_PI), c(MAGIC));
        let n = t - c(MAGIC);
        let limited = |r: Scalar| r.max(c(-0.8)).min(c(0.8)); // matters where x is too large for the reduction
        if !precise {
            let r = self.nmadd(n, c(QUARTER_F32[0]), x);
            return (bits(t), limited(self.nmadd(n, c(QUARTER_F32[1]), r)), c(0.0));
        }
        let r = x - n * c(QUARTER_F64[0]);
        let w = n * c(QUARTER_F64[1]);
        let r1 = r - w;
        let lost = (r - r1) - w;
        let w = n * c(QUARTER_F64[2]) - lost;
        let r2 = r1 - w;
        (bits(t), limited(r2), (r1 - r2) - w)
    }

    pub(super) fn sin_core(self, r: Scalar, p: &[f64]) -> Scalar {
        let z = r * r;
        self.madd(r * z, self.poly(z, p), r)
    }

    pub(super) fn cos_core(self, r: Scalar, p: &[f64]) -> Scalar {
        let z = r * r;
        let half = z * c(0.5);
        let w = c(1.0) - half;
        w + self.madd(z * z, self.poly(z, p), (c(1.0) - w) - half)
    }

    /// Sine and cosine of the remainder, corrected by what it lost.
    fn sin_cos(self, x: Scalar) -> (Scalar, Scalar, Scalar) {
        let (quadrant, r, low) = self.quarter(x, true);
        let (s, co) = (self.sin_core(r, &SIN), self.cos_core(r, &COS));
        (quadrant, self.madd(low, co, s), self.nmadd(low, s, co))
    }

    /// The sine at `quadrant` pi/2 plus an angle, from the sine and cosine of the angle.
    pub(super) fn by_quadrant(self, quadrant: Scalar, s: Scalar, co: Scalar) -> Scalar {
        let odd = quadrant.and(int(1)).eq_to(int(1));
        let v = Scalar::select(odd, co, s);
        float(Scalar::binary(Binary::Xor, bits(v), shl(quadrant.and(int(2)), 62)))
    }

    pub(super) fn sin(self, x: Scalar) -> Scalar {
        let (quadrant, s, co) = self.sin_cos(x);
        Scalar::select(x.eq_to(c(0.0)), x, self.by_quadrant(quadrant, s, co))
    }

    pub(super) fn cos(self, x: Scalar) -> Scalar {
        let (quadrant, s, co) = self.sin_cos(x);
        self.by_quadrant(quadrant + int(1), s, co)
    }

    pub(super) fn tan(self, x: Scalar) -> Scalar {
        let (quadrant, s, co) = self.sin_cos(x);
        let odd = quadrant.and(int(1)).eq_to(int(1));
        let y = Scalar::select(odd, co, s) / Scalar::select(odd, -s, co);
        Scalar::select(x.eq_to(c(0.0)), x, y)
    }

    /// `atan` of a value from 0 on, in two parts.
    fn atan_parts(self, a: Scalar) -> (Scalar, Scalar) {
        // atan a = atan b + atan((a - b) / (1 + a b)) with b = 0, 1/2, 1, 3/2, infinity: the remainder is at most 7/16.
        let steps = [
            (0.4375, 0.5, [0.463_647_609_000_806_1, 2.269_877_745_296_168_7e-17]),
            (0.6875, 1.0, [std::f64::consts::FRAC_PI_4, 3.061_616_997_868_383e-17]),
            (1.1875, 1.5, [0.982_793_723_247_329, 1.390_331_103_123_099_8e-17]),
        ];
        let (mut above, mut below) = (a, c(1.0));
        let (mut high, mut low) = (c(0.0), c(0.0));
        for (from, b, angle) in steps {
            let here = c(from).le(a);
            above = Scalar::select(here, a - c(b), above);
            below = Scalar::select(here, self.madd(a, c(b), c(1.0)), below);
            high = Scalar::select(here, c(angle[0]), high);
            low = Scalar::select(here, c(angle[1]), low);
        }
        let far = c(2.4375).le(a);
        above = Scalar::select(far, c(-1.0), above);
        below = Scalar::select(far, a, below);
        high = Scalar::select(far, c(PI_2[0]), high);
        low = Scalar::select(far, c(PI_2[1]), low);
        let t = above / below;
        let z = t * t;
        (high, t + self.madd(t * z, self.poly(z, &ATAN), low))
    }

    pub(super) fn atan(self, x: Scalar) -> Scalar {
        let (high, low) = self.atan_parts(abs(x));
        copysign(abs(high + low), x)
    }

    pub(super) fn atan2(self, y: Scalar, x: Scalar) -> Scalar {
        let (ax, ay) = (abs(x), abs(y));
        // The quotient is 1 for two infinities and 0 for two zeros.
        let equal = ax.eq_to(ay);
        let q = Scalar::select(equal, Scalar::select(ax.eq_to(c(0.0)), c(0.0), c(1.0)), ay / ax);
        let (high, low) = self.atan_parts(q);
        let left = bits(x).lt(int(0));
        let angle = Scalar::select(left, c(PI[0]) - ((high - c(PI[1])) + low), high + low);
        let nan = Scalar::unary(Unary::IsNan, x + y).and(not(Scalar::unary(Unary::IsInf, x).and(Scalar::unary(Unary::IsInf, y))));
        copysign(Scalar::select(nan, c(f64::NAN), abs(angle)), y)
    }

    /// `asin` of a from 0 to 1: the smaller side, and whether it is the angle from pi/2, halved.
    fn asin_parts(self, a: Scalar) -> (Scalar, Scalar) {
        let far = c(0.5).lt(a);
        let z = Scalar::select(far, (c(1.0) - a) * c(0.5), a * a);
        let s = Scalar::select(far, sqrt(z), a);
        (far, self.madd(s * z, self.poly(z, &ASIN), s))
    }

    pub(super) fn asin(self, x: Scalar) -> Scalar {
        let (far, p) = self.asin_parts(abs(x));
        let y = Scalar::select(far, c(PI_2[0]) - (p + p - c(PI_2[1])), p);
        copysign(abs(y), x)
    }

    pub(super) fn acos(self, x: Scalar) -> Scalar {
        let (far, p) = self.asin_parts(abs(x));
        let left = x.lt(c(0.0));
        let twice = p + p;
        let outer = Scalar::select(left, c(PI[0]) - (twice - c(PI[1])), twice);
        let signed = Scalar::select(left, -p, p);
        Scalar::select(far, outer, c(PI_2[0]) - (signed - c(PI_2[1])))
    }

    pub(super) fn erf(self, x: Scalar) -> Scalar {
        let t = abs(x);
        let small = self.madd(x, self.poly(x * x, &ERF_F64), x);
        let far = t.min(c(6.0));
        let w = (far - c(2.0)) / (far + c(2.0));
        let large = c(1.0) - self.exp(-(far * far)) * self.poly(w, &ERFCX_F64);
        Scalar::select(t.le(c(1.0)), small, copysign(large, x))
    }

    /// `a * b` exactly, as two numbers.
    fn product(self, a: Scalar, b: Scalar) -> (Scalar, Scalar) {
        let p = a * b;
        if self.fma {
            return (p, Scalar::fma(a, b, -p));
        }
        let upper = |x: Scalar| float(bits(x).and(int(-1 << 27)));
        let (ah, bh) = (upper(a), upper(b));
        let (al, bl) = (a - ah, b - bh);
        (p, ((ah * bh - p) + ah * bl + al * bh) + al * bl)
    }

    /// The logarithm of a positive finite x, as two numbers.
    fn log_exact(self, x: Scalar) -> (Scalar, Scalar) {
        let (e, f) = self.exponent(x);
        let d = f + c(2.0);
        let d_low = f - (d - c(2.0));
        let s = f / d;
        let (sd, sd_low) = self.product(s, d);
        let s_low = ((f - sd) - sd_low - s * d_low) / d;
        let z = s * s;
        let low = self.madd(s * z, self.poly(z, &LOG_F64), s_low + s_low);
        // e ln 2 + 2 s, largest first.
        let a = e * c(LN2[0]);
        let b = s + s;
        let sum = a + b;
        let rest = Scalar::select(e.eq_to(c(0.0)), c(0.0), (a - sum) + b);
        let low = self.madd(e, c(LN2[1]), rest + low);
        let high = sum + low;
        (high, (sum - high) + low)
    }

    pub(super) fn pow(self, x: Scalar, y: Scalar) -> Scalar {
        let a = abs(x);
        let (l, l_low) = self.log_exact(a);
        let (p, p_low) = self.product(l, y);
        let low = self.madd(l_low, y, p_low);
        let inside = abs(p).lt(c(747.0)).and(c(0.0).lt(a)).and(a.lt(c(f64::INFINITY)));
        let plain = y * self.log(a); // right at the limits of a and y
        let core = self.exp_scaled(Scalar::select(inside, p, plain), Scalar::select(inside, low, c(0.0)), 0);
        pow_limits(x, y, core)
    }

    /// Power of f32 values, exact enough to round to f32.
    pub(super) fn pow_of_f32(self, x: Scalar, y: Scalar) -> Scalar {
        pow_limits(x, y, self.exp(y * self.log(abs(x))))
    }
}

/// The signs and special cases of a power whose magnitude is `core`.
fn pow_limits(x: Scalar, y: Scalar, core: Scalar) -> Scalar {
    let one = c(1.0);
    let whole = floor(y).eq_to(y);
    let half = y * c(0.5);
    let odd = whole.and(not(floor(half).eq_to(half)));
    let core = Scalar::select(abs(x).eq_to(one), one, core); // (+-1)^(+-inf)
    let negative = bits(x).lt(int(0));
    let signed = Scalar::select(negative.and(odd), -core, core);
    let minus_infinity = x.eq_to(c(f64::NEG_INFINITY));
    let undefined = x.lt(c(0.0)).and(not(whole)).and(not(minus_infinity));
    let r = Scalar::select(undefined, c(f64::NAN), signed);
    Scalar::select(y.eq_to(c(0.0)).or(x.eq_to(one)), one, r)
}

/// The logarithm `y` of x corrected at 0, below it, at infinity and NaN.
fn log_limits(x: Scalar, y: Scalar) -> Scalar {
    let y = Scalar::select(x.lt(c(f64::INFINITY)), y, x);
    let below = Scalar::select(x.eq_to(c(0.0)), c(f64::NEG_INFINITY), c(f64::NAN));
    Scalar::select(c(0.0).lt(x), y, below)
}
