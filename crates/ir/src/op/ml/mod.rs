//! Classical machine learning (`ai.onnx.ml`).

use super::common::cast_to as cast;
use super::*;
use crate::compute::Compute;
use crate::scalar::{Binary, Scalar, Unary};

mod features;
mod linear;
mod tree;

gaps! {}

/// What is done to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PostTransform {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl PostTransform {
    fn parse(name: &str) -> Result<PostTransform, Fault> {
        Ok(match name {
            "NONE" => PostTransform::None,
            "SOFTMAX" => PostTransform::Softmax,
            "LOGISTIC" => PostTransform::Logistic,
            "SOFTMAX_ZERO" => PostTransform::SoftmaxZero,
            "PROBIT" => PostTransform::Probit,
            _ => return Err(fault!("post_transform '{name}' is not known")),
        })
    }

    /// Scores `[N, count]` transformed. ONNX Runtime leaves a single score as it is, but for PROBIT.
    fn apply_scores(self, b: &mut Builder, scores: Value, count: usize) -> Result<Value, Fault> {
        if count == 1 && self != PostTransform::Probit { Ok(scores) } else { self.apply(b, scores) }
    }

    /// Scores `[N, C]` transformed.
    fn apply(self, b: &mut Builder, scores: Value) -> Result<Value, Fault> {
        match self {
            PostTransform::None => Ok(scores),
            PostTransform::Softmax => b.op(Softmax { axis: 1 }, &[scores]),
            PostTransform::Logistic => b.op(Sigmoid {}, &[scores]),
            PostTransform::SoftmaxZero => softmax_zero(b, scores),
            PostTransform::Probit => probit(b, scores),
        }
    }
}

/// Softmax of the scores that are not zero; the others stay zero.
fn softmax_zero(b: &mut Builder, scores: Value) -> Result<Value, Fault> {
    let dtype = b.tensor(scores)?.dtype;
    let axes = b.ints(&[1]);
    let keep = |b: &mut Builder, v: Value, max: bool| match max {
        true => b.op(ReduceMax { keepdims: true, noop_with_empty_axes: false }, &[v, axes]),
        false => b.op(ReduceSum { keepdims: true, noop_with_empty_axes: false }, &[v, axes]),
    };
    let most = keep(b, scores, true)?;
    let moved = b.op(Sub {}, &[scores, most])?;
    let grown = b.op(Exp {}, &[moved])?;
    let (size, tiny) = (b.op(Abs {}, &[scores])?, b.number(dtype, 1e-7));
    let counts = b.op(Greater {}, &[size, tiny])?;
    // Scores that are zero but for rounding keep their size against the others.
    let back = b.op(Neg {}, &[most])?;
    let back = b.op(Exp {}, &[back])?;
    let rest = b.op(Mul {}, &[scores, back])?;
    let zero = b.number(dtype, 0.0);
    let parts = b.op(Where {}, &[counts, grown, zero])?;
    let sum = keep(b, parts, false)?;
    let value = b.op(Where {}, &[counts, grown, rest])?;
    b.op(Div {}, &[value, sum])
}

/// The quantile of the normal distribution, by the approximation that ONNX Runtime uses.
fn probit(b: &mut Builder, scores: Value) -> Result<Value, Fault> {
    let dtype = b.tensor(scores)?.dtype;
    let n = |b: &mut Builder, v: f64| b.number(dtype, v);
    let (one, two, zero) = (n(b, 1.0), n(b, 2.0), n(b, 0.0));
    let x = b.op(Mul {}, &[scores, two])?;
    let x = b.op(Sub {}, &[x, one])?;
    let square = b.op(Mul {}, &[x, x])?;
    let inside = b.op(Sub {}, &[one, square])?;
    let log = b.op(Log {}, &[inside])?;
    #[allow(clippy::approx_constant)] // the constant of ONNX Runtime's formula, whose results are the reference
    let (half, shift, steep) = (n(b, 0.5), n(b, 2.0 / (3.14159 * 0.147)), n(b, 1.0 / 0.147));
    let v = b.op(Mul {}, &[log, half])?;
    let v = b.op(Add {}, &[v, shift])?;
    let w = b.op(Mul {}, &[log, steep])?;
    let v2 = b.op(Mul {}, &[v, v])?;
    let root = b.op(Sub {}, &[v2, w])?;
    let root = b.op(Sqrt {}, &[root])?;
    let root = b.op(Sub {}, &[root, v])?;
    let root = b.op(Sqrt {}, &[root])?;
    let scale = n(b, std::f64::consts::SQRT_2);
    let size = b.op(Mul {}, &[root, scale])?;
    let (negative, minus) = (b.op(Less {}, &[x, zero])?, b.op(Neg {}, &[size])?);
    b.op(Where {}, &[negative, minus, size])
}

/// Class labels: integers or strings.
#[derive(Clone, Debug, PartialEq)]
struct Labels(Tensor);

impl Labels {
    fn new(ints: &[i64], strings: &[String]) -> Result<Labels, Fault> {
        match (ints.is_empty(), strings.is_empty()) {
            (false, true) => Ok(Labels(Tensor::from_ints(ints))),
            (true, false) => {
                let texts = strings.iter().map(|s| bytes::Bytes::from(s.clone().into_bytes()));
                Ok(Labels(Tensor::from_strings([strings.len()], texts)))
            }
            _ => Err(fault!("one list of class labels must be given, either integers or strings")),
        }
    }
    fn count(&self) -> usize {
        self.0.len()
    }
    /// The label of each index.
    fn pick(&self, b: &mut Builder, index: Value) -> Result<Value, Fault> {
        let table = b.constant(self.0.clone());
        b.op(Gather { axis: 0 }, &[table, index])
    }
}

/// Checks that operand 0 is a numeric matrix (or one row); gives `[N, F]`.
fn rows(cx: &Ctx) -> Result<[Expr; 2], Fault> {
    let t = cx.tensor(0)?;
    let numeric = t.dtype.is_float() || t.dtype.is_int();
    match t.dims[..] {
        [n, f] if numeric => Ok([n, f]),
        _ => Err(fault!("operand 0 is {t}, it must be a numeric matrix [N, F]")),
    }
}
