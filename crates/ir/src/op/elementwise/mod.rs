//! Elementwise operators: arithmetic, comparison, logic, activations, casts.
//!
//! Nearly all are one line of a table: name, accepted dtypes, scalar body. Bodies see operands broadcast to the result and
//! widened to the dtype that is computed in (f32 for the narrow floats); the result is rounded once.

use super::common::*;
use super::*;
use crate::scalar::{Binary as B, Scalar, Unary as U};

mod activation;
mod cast;

pub(super) use cast::convert;

gaps! {}

// ---- one operand ----

/// Rows `Name accepts |op, x| body;`: one operand, result of the same type.
macro_rules! unary {
    ($($name:ident $what:ident |$op:ident, $x:ident| $body:expr;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                accept(cx, 0, Accept::$what)?;
                Ok(vec![Fact::of(cx.fact(0)?.ty.clone())])
            }
            fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
                let $op = self;
                let _ = $op;
                pointwise(cx, outs, |v| { let $x = v[0]; $body })
            }
        }
    )* };
}
pub(super) use unary;

unary! {
    Acos Float |_o, x| un(U::Acos, x);
    Acosh Float |_o, x| un(U::Acosh, x);
    Asin Float |_o, x| un(U::Asin, x);
    Asinh Float |_o, x| un(U::Asinh, x);
    Atan Float |_o, x| un(U::Atan, x);
    Atanh Float |_o, x| un(U::Atanh, x);
    BitwiseNot Int |_o, x| un(U::Not, x);
    Ceil Number |_o, x| un(U::Ceil, x);
    Cos Float |_o, x| un(U::Cos, x);
    Cosh Float |_o, x| un(U::Cosh, x);
    Erf Number |_o, x| un(U::Erf, x);
    Exp Float |_o, x| un(U::Exp, x);
    Floor Number |_o, x| un(U::Floor, x);
    Log Float |_o, x| un(U::Log, x);
    Reciprocal Float |_o, x| num(x, 1.0) / x;
    Round Float |_o, x| un(U::Round, x);
    Sin Float |_o, x| un(U::Sin, x);
    Sinh Float |_o, x| un(U::Sinh, x);
    Sqrt Float |_o, x| un(U::Sqrt, x);
    Tan Float |_o, x| un(U::Tan, x);
    Tanh Float |_o, x| un(U::Tanh, x);
}

/// As `unary!`, with the element of a small integer tensor as an expression: `Name accepts |x| body, ints |e| expression;`.
macro_rules! unary_ints {
    ($($name:ident $what:ident |$x:ident| $body:expr, ints |$e:ident| $int:expr;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                accept(cx, 0, Accept::$what)?;
                let ints = map_ints(cx, |v| { let $e = v[0]; $int });
                Ok(vec![Fact::of(cx.fact(0)?.ty.clone()).with_ints(ints)])
            }
            fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
                pointwise(cx, outs, |v| { let $x = v[0]; $body })
            }
        }
    )* };
}

unary_ints! {
    Abs Number |x| un(U::Abs, x), ints |e| Some(wrapped([e], |[e]| e.wrapping_abs(), |[e]| e.max(-e)));
    Neg Number |x| -x, ints |e| Some(wrapped([e], |[e]| e.wrapping_neg(), |[e]| -e));
    Not Bool |x| un(U::Not, x), ints |e| Some(Expr::int(1) - e);
    Sign Number |x| un(U::Sign, x), ints |e| Some(e.max(Expr::int(-1)).min(Expr::int(1)));
}

impl OpDef for Identity {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        Ok(vec![cx.fact(0)?.clone()])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Alias(0))
    }
}

/// Questions about floats: `Name |op, x| body;`.
macro_rules! questions {
    ($($name:ident |$op:ident, $x:ident| $body:expr;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                Ok(vec![Fact::tensor(DType::Bool, accept(cx, 0, Accept::Float)?.dims.clone())])
            }
            fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
                let $op = self;
                pointwise(cx, outs, |v| { let _ = $op; let $x = v[0]; $body })
            }
        }
    )* };
}

questions! {
    IsNaN |_o, x| un(U::IsNan, x);
    IsInf |o, x| match (o.detect_negative != 0, o.detect_positive != 0) {
        (true, true) => un(U::IsInf, x),
        (true, false) => un(U::IsInf, x).and(x.lt(num(x, 0.0))),
        (false, true) => un(U::IsInf, x).and(num(x, 0.0).lt(x)),
        (false, false) => Scalar::int(DType::Bool, 0),
    };
}

// ---- two operands ----

fn binary_fact(cx: &Ctx, what: Accept) -> Result<Fact, Fault> {
    accept(cx, 0, what)?;
    accept(cx, 1, what)?;
    Ok(Fact::tensor(same_dtype(cx)?, broadcast_all(cx)?))
}

/// Rows `Name accepts |op, x, y| body, ints |a, b| expression;`: two operands of one dtype, with broadcasting. `expression`
/// is the element of a small integer tensor, if it can be told.
macro_rules! binary {
    ($($name:ident $what:ident |$op:ident, $x:ident, $y:ident| $body:expr, ints |$a:ident, $b:ident| $int:expr;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                let fact = binary_fact(cx, Accept::$what)?;
                let $op = self;
                let ints = map_ints(cx, |v| { let _ = $op; let ($a, $b) = (v[0], v[1]); $int });
                Ok(vec![fact.with_ints(ints)])
            }
            fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
                let $op = self;
                pointwise(cx, outs, |v| { let _ = $op; let ($x, $y) = (v[0], v[1]); $body })
            }
        }
    )* };
}

binary! {
    Add Number |_o, x, y| x + y, ints |a, b| Some(wrapped([a, b], |[a, b]| a.wrapping_add(b), |[a, b]| a + b));
    Sub Number |_o, x, y| x - y, ints |a, b| Some(wrapped([a, b], |[a, b]| a.wrapping_sub(b), |[a, b]| a - b));
    Mul Number |_o, x, y| x * y, ints |a, b| Some(wrapped([a, b], |[a, b]| a.wrapping_mul(b), |[a, b]| a * b));
    Div Number |_o, x, y| x / y, ints |a, b| int_div(a, b);
    Mod Number |o, x, y| bin(if o.fmod { B::Rem } else { B::Mod }, x, y), ints |a, b| int_mod(o.fmod, a, b);
    And Bool |_o, x, y| x.and(y), ints |a, b| Some(a * b);
    Or Bool |_o, x, y| bin(B::Or, x, y), ints |a, b| Some(a.max(b));
    Xor Bool |_o, x, y| bin(B::Xor, x, y), ints |a, b| Some((a - b) * (a - b));
    BitwiseAnd Int |_o, x, y| x.and(y), ints |_a, _b| None;
    BitwiseOr Int |_o, x, y| bin(B::Or, x, y), ints |_a, _b| None;
    BitwiseXor Int |_o, x, y| bin(B::Xor, x, y), ints |_a, _b| None;
}

/// Division that rounds towards zero, by floor divisions: of what is not negative it is one, else the parts on both sides of zero.
fn int_div(a: Expr, b: Expr) -> Option<Expr> {
    match (a.known(), b.known()) {
        (_, Some(0)) => None,
        (Some(a), Some(b)) => Some(Expr::int(a.wrapping_div(b))),
        _ if less(b, Expr::int(0)) != Some(false) => a.div_exact(b),
        _ if less(a, Expr::int(0)) == Some(false) => Some(a.div(b)),
        _ => a.div_exact(b).or_else(|| Some(a.div(b).max(Expr::int(0)) - (-a).div(b).max(Expr::int(0)))),
    }
}

fn int_mod(fmod: bool, a: Expr, b: Expr) -> Option<Expr> {
    match (a.known(), b.known()) {
        (_, Some(0)) => None,
        (Some(a), Some(b)) if fmod => Some(Expr::int(a.wrapping_rem(b))),
        _ if fmod && (less(a, Expr::int(0)) != Some(false) || less(b, Expr::int(0)) != Some(false)) => None,
        _ => Some(a.rem(b)),
    }
}

/// Comparisons: `Name accepts |x, y| body, |a, b| answer;`, where `answer` decides about expressions if it can.
macro_rules! compare {
    ($($name:ident $what:ident |$x:ident, $y:ident| $body:expr, |$a:ident, $b:ident| $answer:expr;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                if !(stringify!($name) == "Equal" && cx.dtype(0)? == DType::String) {
                    accept(cx, 0, Accept::$what)?;
                }
                same_dtype(cx)?;
                let ints = map_ints(cx, |v| { let ($a, $b) = (v[0], v[1]); $answer.map(|x: bool| Expr::int(x.into())) });
                Ok(vec![Fact::tensor(DType::Bool, broadcast_all(cx)?).with_ints(ints)])
            }
            fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
                if cx.dtype(0)? == DType::String {
                    return Ok(Meaning::Host);
                }
                pointwise(cx, outs, |v| { let ($x, $y) = (v[0], v[1]); $body })
            }
        }
    )* };
}

compare! {
    Equal NumberOrBool |x, y| x.eq_to(y), |a, b| equal(a, b);
    Less Number |x, y| x.lt(y), |a, b| less(a, b);
    LessOrEqual Number |x, y| x.le(y), |a, b| less(b, a).map(|v| !v);
    Greater Number |x, y| bin(B::Gt, x, y), |a, b| less(b, a);
    GreaterOrEqual Number |x, y| bin(B::Ge, x, y), |a, b| less(a, b).map(|v| !v);
}

impl OpDef for BitShift {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        match self.direction.as_str() {
            "LEFT" | "RIGHT" => Ok(vec![binary_fact(cx, Accept::Int)?]),
            d => Err(fault!("attribute 'direction' is '{d}'; LEFT or RIGHT is needed")),
        }
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let op = if self.direction == "LEFT" { B::Shl } else { B::Shr };
        pointwise(cx, outs, |v| bin(op, v[0], v[1]))
    }
}

impl OpDef for Pow {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let base = accept(cx, 0, Accept::Number)?;
        accept(cx, 1, Accept::Number)?;
        Ok(vec![Fact::tensor(base.dtype, broadcast_all(cx)?)])
    }
    /// Integers with an integer exponent stay exact; an integer base with a float exponent is computed in f64.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let exponent =
            cx.known(1).filter(|t| t.len() == 1 && t.dims.len() <= cx.dims(0).map_or(0, <[_]>::len)).map(|t| t.float(0));
        pointwise(cx, outs, |v| {
            let (x, y) = (v[0], v[1]);
            match exponent {
                Some(1.0) => return x,
                Some(2.0) => return x * x,
                Some(3.0) => return x * x * x,
                _ => {}
            }
            let common = match (x.dtype().is_float(), y.dtype().is_float()) {
                (true, _) if y.dtype() == DType::F64 || y.dtype().is_int() && y.dtype().bits() > 16 => DType::F64,
                (true, _) => x.dtype(),
                (false, true) => DType::F64,
                (false, false) => DType::I64,
            };
            bin(B::Pow, x.cast(common), y.cast(common))
        })
    }
}

// ---- any number of operands ----

macro_rules! variadic {
    ($($name:ident $what:ident |$v:ident| $body:expr, ints |$e:ident| $int:expr;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                for i in 0..cx.inputs.len() {
                    accept(cx, i, Accept::$what)?;
                }
                let ints = map_ints(cx, |$e| $int);
                Ok(vec![Fact::tensor(same_dtype(cx)?, broadcast_all(cx)?).with_ints(ints)])
            }
            fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
                pointwise(cx, outs, |$v| $body)
            }
        }
    )* };
}

fn join<T: Copy>(v: &[T], f: impl Fn(T, T) -> T) -> Option<T> {
    v.iter().copied().reduce(f)
}

variadic! {
    Max Number |v| join(v, Scalar::max).expect("arity"), ints |e| join(e, Expr::max);
    Min Number |v| join(v, Scalar::min).expect("arity"), ints |e| join(e, Expr::min);
    Sum Float |v| join(v, |a, b| a + b).expect("arity"), ints |_e| None;
    Mean Float |v| join(v, |a, b| a + b).map(|s| s / num(s, v.len() as f64)).expect("arity"), ints |_e| None;
}

// ---- choices ----

impl OpDef for Where {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        accept(cx, 0, Accept::Bool)?;
        if cx.dtype(1)? != cx.dtype(2)? {
            return Err(fault!("operands 1 and 2 differ in dtype: {} and {}", cx.tensor(1)?, cx.tensor(2)?));
        }
        let ints = map_ints(cx, |v| match v[0].known() {
            Some(c) => Some(if c != 0 { v[1] } else { v[2] }),
            None => (v[1] == v[2]).then_some(v[1]),
        });
        Ok(vec![Fact::tensor(cx.dtype(1)?, broadcast_all(cx)?).with_ints(ints)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        pointwise(cx, outs, |v| Scalar::select(v[0], v[1], v[2]))
    }
}

impl OpDef for Clip {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Number)?;
        for i in [1, 2] {
            if cx.has(i) && !(cx.dims(i)?.is_empty() || cx.dims(i)?.iter().all(|d| d.is(1))) {
                return Err(fault!("operand {i} is {}; a scalar is needed", cx.tensor(i)?));
            }
        }
        same_dtype(cx)?;
        Ok(vec![Fact::of(x.clone())])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        pointwise_with_scalars(cx, outs, |v| {
            let low = v[1].map_or(v[0].expect("checked"), |low| v[0].expect("checked").max(low));
            v[2].map_or(low, |high| low.min(high))
        })
    }
}

/// A pointwise step over operand 0 whose other operands hold one element each; absent operands are `None`.
fn pointwise_with_scalars(cx: &Ctx, outs: &[Type], f: impl FnOnce(&[Option<Scalar>]) -> Scalar) -> Result<Meaning, Fault> {
    let out = Ctx::out(outs, 0)?;
    let mut v = vec![Some(read_wide(cx, 0, &out.dims, &axes(out.rank()))?)];
    for i in 1..3 {
        v.push(match cx.has(i) {
            true => {
                let t = cx.tensor(i)?;
                Some(Scalar::read_at(t.dtype, i, &vec![Expr::int(0); t.rank()]).cast(t.dtype.accumulator()))
            }
            false => None,
        });
    }
    let value = f(&v).cast(out.dtype);
    Ok(Meaning::one(cx.inputs.len(), Step::Compute(crate::compute::Compute { dims: out.dims.clone(), reduction: None, value })))
}

#[cfg(test)]
mod tests {
    use super::super::common::testing::*;
    use super::*;

    fn ints(dtype: DType, values: &[&str]) -> Fact {
        let e: Vec<Expr> = values.iter().map(|s| s.parse().unwrap()).collect();
        Fact::tensor(dtype, [Expr::from(e.len())]).with_ints(Some(e))
    }

    #[test]
    fn values() {
        let x = f32s(&[2, 2], &[-1.5, 0.0, 2.5, f32::NAN]);
        check(Relu {}, from_ref(&x), &[2, 2], &[0.0, 0.0, 2.5, f64::NAN]);
        check(Round {}, from_ref(&x), &[2, 2], &[-2.0, 0.0, 2.0, f64::NAN]);
        check(Add {}, &[x.clone(), f32s(&[1], &[1.0])], &[2, 2], &[-0.5, 1.0, 3.5, f64::NAN]);
        check(Pow {}, &[f32s(&[2], &[2.0, 3.0]), Tensor::from_ints(&[5, 3])], &[2], &[32.0, 27.0]);
        check(Clip {}, &[x, f32s(&[], &[-1.0]), f32s(&[], &[1.0])], &[2, 2], &[-1.0, 0.0, 1.0, f64::NAN]);
        check(Shrink { bias: 0.5, lambd: 1.5 }, &[Tensor::from_ints(&[8, 1, -8])], &[3], &[7.0, 0.0, -7.0]);
        check(Gelu { approximate: "none".into() }, &[f32s(&[2], &[1.0, -1.0])], &[2], &[0.8413447, -0.1586553]);
        check(PRelu {}, &[f32s(&[2, 2], &[-1.0, -2.0, 3.0, -4.0]), f32s(&[2], &[0.5, 0.25])], &[2, 2], &[-0.5, -0.5, 3.0, -1.0]);
    }

    #[test]
    fn integer_division_and_remainder() {
        let (a, b) = (Tensor::from_ints(&[-7, 7, 7]), Tensor::from_ints(&[2, -2, 0]));
        check(Div {}, &[a.clone(), b.clone()], &[3], &[-3.0, -3.0, 0.0]);
        check(Mod { fmod: false }, &[a.clone(), b.clone()], &[3], &[1.0, -1.0, 0.0]);
        check(Mod { fmod: true }, &[a, b], &[3], &[-1.0, 1.0, 0.0]);
    }

    /// Integers wrap, also where inference knows them; numbers of u64 beyond those of i64 are no expressions.
    #[test]
    fn known_integers_wrap() {
        let most = Fact::constant(Tensor::from_ints(&[i64::MAX]));
        let one = Fact::constant(Tensor::from_ints(&[1]));
        let known = |op: Op, operands: &[Fact]| fact_of(op, operands).unwrap().known.map(|t| t.to_ints());
        assert_eq!(known(Add {}.into(), &[most.clone(), one.clone()]), Some(vec![i64::MIN]));
        assert_eq!(known(Mul {}.into(), &[most.clone(), most.clone()]), Some(vec![1]));
        assert_eq!(
            known(Sub {}.into(), &[ints(DType::I64, &["0"]), ints(DType::I64, &["-9223372036854775808"])]),
            Some(vec![i64::MIN])
        );
        let large = Fact::constant(Tensor::from_vec([1], vec![u64::MAX]));
        assert_eq!(large.ints, None);
        assert_eq!(fact_of(Div {}, &[large.clone(), Fact::constant(Tensor::from_vec([1], vec![2u64]))]).unwrap().ints, None);
        // Whether this is below 0 depends on n, and then it is a large number.
        let n = Fact::tensor(DType::U32, [1.into()]).with_ints(Some(vec![Expr::sym("n")]));
        assert_eq!(fact_of(Sub {}, &[n, Fact::constant(Tensor::from_vec([1], vec![3u32]))]).unwrap().ints, None);
    }

    #[test]
    fn casts() {
        let to = |d: DType| Cast { to: i64::from(d.onnx()), saturate: 0, round_mode: "nearest".into() };
        check(to(DType::I32), &[f32s(&[2], &[-1.9, 1e20])], &[2], &[-1.0, 2147483647.0]);
        check(to(DType::Bool), &[f32s(&[2], &[0.0, 0.1])], &[2], &[0.0, 1.0]);
        check(to(DType::F8E5M2), &[f32s(&[2], &[1e9, 3.0])], &[2], &[f64::INFINITY, 3.0]);
        check(to(DType::F8E4M3FN), &[f32s(&[3], &[463.0, 464.0, -1e9])], &[3], &[448.0, 448.0, f64::NAN]);
        check(to(DType::F8E8M0), &[f32s(&[3], &[1.49, 1.5, 0.24])], &[3], &[1.0, 2.0, 0.25]);
    }

    #[test]
    fn shape_arithmetic() {
        let cases: &[(Op, &[&[&str]], &[&str])] = &[
            (Add {}.into(), &[&["n", "3"], &["1"]], &["n + 1", "4"]),
            (Mul {}.into(), &[&["n"], &["2", "h"]], &["2*n", "h*n"]),
            (Div {}.into(), &[&["4*n", "h"], &["2"]], &["2*n", "div(h, 2)"]),
            (Max {}.into(), &[&["n", "0"], &["0"]], &["n", "0"]),
            (Neg {}.into(), &[&["n"]], &["-n"]),
        ];
        for (op, operands, want) in cases {
            let facts: Vec<Fact> = operands.iter().map(|v| ints(DType::I64, v)).collect();
            let got = fact_of(op.clone(), &facts).unwrap().ints.unwrap();
            assert_eq!(got, want.iter().map(|s| s.parse().unwrap()).collect::<Vec<Expr>>(), "{}", op.name());
        }
    }

    /// Sizes are divided by rounding down, sums that may be below 0 towards zero, as ONNX says.
    #[test]
    fn division_of_sizes_rounds_towards_zero() {
        for (a, b) in
            [("n - 1", "4"), ("3*n - 7", "2"), ("5 - n", "3"), ("8*n - 24", "8"), ("n - m", "5"), ("n - 3", "m"), ("n", "m")]
        {
            let (a, b): (Expr, Expr) = (a.parse().unwrap(), b.parse().unwrap());
            let quotient = int_div(a, b).unwrap();
            for (n, m) in (0..24).flat_map(|n| (1..8).map(move |m| (n, m))) {
                let at = |e: Expr| e.eval(&|s| Some(if s == Expr::sym("n") { n } else { m })).unwrap();
                assert_eq!(at(quotient), at(a) / at(b), "{a} by {b} where n = {n}, m = {m}");
            }
        }
        assert_eq!(int_div("n - 1".parse().unwrap(), Expr::int(2)), "max(0, div(n - 1, 2))".parse().ok());
        assert_eq!(int_div("n".parse().unwrap(), "m - 3".parse().unwrap()), None);
    }

    #[test]
    fn decidable_comparisons() {
        let n = ints(DType::I64, &["n", "5"]);
        let equal = fact_of(Equal {}, &[n.clone(), ints(DType::I64, &["-1", "5"])]).unwrap();
        assert_eq!(equal.known.clone().unwrap().to_ints(), [0, 1]);
        let chosen = fact_of(Where {}, &[equal, ints(DType::I64, &["1"]), n]).unwrap();
        assert_eq!(chosen.ints.unwrap(), [Expr::sym("n"), Expr::int(1)]);
        let open = fact_of(Less {}, &[ints(DType::I64, &["n"]), ints(DType::I64, &["5"])]).unwrap();
        assert_eq!((open.known, open.ints), (None, None));
    }

    #[test]
    fn types() {
        use DType::{Bool, F32, I64};
        check_type(Add {}, &[(F32, &["n", "1"]), (F32, &["3"])], "f32[n, 3]");
        check_type(Less {}, &[(I64, &["n"]), (I64, &["n"])], "bool[n]");
        check_type(Add {}, &[(F32, &["2"]), (F32, &["3"])], "shapes [[2], [3]] do not broadcast: 2 against 3");
        check_type(Add {}, &[(F32, &["2"]), (I64, &["2"])], "operands 0 and 1 differ in dtype: f32[2] and i64[2]");
        check_type(Sqrt {}, &[(I64, &["2"])], "operand 0 is i64[2]; it needs a float dtype");
        check_type(Not {}, &[(F32, &["2"])], "operand 0 is f32[2]; it needs bool");
        check_type(Where {}, &[(Bool, &["n"]), (F32, &[]), (F32, &["1"])], "f32[n]");
    }
}
