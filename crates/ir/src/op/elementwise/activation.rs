//! Activation functions.

use super::super::common::*;
use super::super::*;
use super::unary;
use crate::scalar::{Scalar, Unary as U};

/// `if x < 0 { below } else { x }`.
fn below_zero(x: Scalar, below: Scalar) -> Scalar {
    Scalar::select(x.lt(num(x, 0.0)), below, x)
}

/// An attribute as a constant of the dtype of `x`.
fn attr(x: Scalar, value: f32) -> Scalar {
    num(x, f64::from(value))
}

/// ln(1 + e^x) without overflow: max(x, 0) + ln(1 + e^-|x|).
fn softplus(x: Scalar) -> Scalar {
    x.max(num(x, 0.0)) + un(U::Log1p, un(U::Exp, -un(U::Abs, x)))
}

/// max(0, min(1, a x + b)).
fn hard_sigmoid(x: Scalar, a: Scalar, b: Scalar) -> Scalar {
    (a * x + b).min(num(x, 1.0)).max(num(x, 0.0))
}

/// x sigmoid(alpha x).
fn swish(x: Scalar, alpha: f32) -> Scalar {
    x * un(U::Sigmoid, if alpha == 1.0 { x } else { attr(x, alpha) * x })
}

unary! {
    Celu Float |o, x| x.max(num(x, 0.0)) + num(x, 0.0).min(attr(x, o.alpha) * un(U::Expm1, x / attr(x, o.alpha)));
    Elu Float |o, x| below_zero(x, attr(x, o.alpha) * un(U::Expm1, x));
    HardSigmoid Float |o, x| hard_sigmoid(x, attr(x, o.alpha), attr(x, o.beta));
    HardSwish Float |_o, x| x * hard_sigmoid(x, num(x, 1.0 / 6.0), num(x, 0.5));
    LeakyRelu Float |o, x| below_zero(x, attr(x, o.alpha) * x);
    Mish Float |_o, x| x * un(U::Tanh, softplus(x));
    Relu Number |_o, x| x.max(num(x, 0.0));
    Selu Float |o, x| attr(x, o.gamma) * below_zero(x, attr(x, o.alpha) * un(U::Expm1, x));
    Shrink Number |o, x| {
        // Integers may be moved by half ones.
        let x = if x.dtype().is_int() { x.cast(DType::F64) } else { x };
        let (lambd, bias) = (attr(x, o.lambd), attr(x, o.bias));
        let above = Scalar::select(lambd.lt(x), x - bias, num(x, 0.0));
        Scalar::select(x.lt(num(x, f64::from(-o.lambd))), x + bias, above)
    };
    Sigmoid Float |_o, x| un(U::Sigmoid, x);
    Softplus Float |_o, x| softplus(x);
    Softsign Float |_o, x| x / (num(x, 1.0) + un(U::Abs, x));
    Swish Float |o, x| swish(x, o.alpha);
    ThresholdedRelu Float |o, x| Scalar::select(attr(x, o.alpha).lt(x), x, num(x, 0.0));
}

impl OpDef for Gelu {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        match self.approximate.as_str() {
            "none" | "tanh" => Ok(vec![Fact::of(accept(cx, 0, Accept::Float)?.clone())]),
            a => Err(fault!("attribute 'approximate' is '{a}'; none or tanh is needed")),
        }
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        pointwise(cx, outs, |v| {
            let x = v[0];
            let inner = if self.approximate == "tanh" {
                // sqrt(2 / pi) (x + 0.044715 x^3)
                let c = num(x, (2.0 / std::f64::consts::PI).sqrt());
                un(U::Tanh, c * (x + num(x, 0.044715) * (x * x * x)))
            } else {
                un(U::Erf, x * num(x, std::f64::consts::FRAC_1_SQRT_2))
            };
            num(x, 0.5) * x * (num(x, 1.0) + inner)
        })
    }
}

impl OpDef for SwiGLU {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (a, b) = (accept(cx, 0, Accept::Float)?, cx.tensor(1)?);
        same_dtype(cx)?;
        if a.rank() != b.rank() {
            return Err(fault!("operands {a} and {b} must have the same shape"));
        }
        for (&x, &y) in a.dims.iter().zip(&b.dims) {
            expect_dim("a dim of operand 1", y, x)?;
        }
        Ok(vec![Fact::of(a.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        pointwise(cx, outs, |v| swish(v[0], self.alpha) * v[1])
    }
}

impl OpDef for PRelu {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Number)?;
        same_dtype(cx)?;
        if broadcast_all(cx)?.len() != x.rank() {
            return Err(fault!("slope {} does not broadcast to {x}", cx.tensor(1)?));
        }
        for (&s, &d) in cx.dims(1)?.iter().rev().zip(x.dims.iter().rev()) {
            if !s.is(1) {
                expect_dim("a dim of the slope", s, d)?;
            }
        }
        Ok(vec![Fact::of(x.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        pointwise(cx, outs, |v| below_zero(v[0], v[1] * v[0]))
    }
}
