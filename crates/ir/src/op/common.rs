//! What the operator families share: dtype checks, broadcast reads, pointwise steps, facts of small integer tensors.

use super::*;
use crate::compute::Compute;
use crate::scalar::{Binary, Scalar, Unary};

/// Which dtypes an operand may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accept {
    /// Everything with a fixed width.
    Plain,
    /// Floats and integers.
    Number,
    /// Floats.
    Float,
    /// Integers.
    Int,
    /// Bool.
    Bool,
    /// Floats, integers and bool.
    NumberOrBool,
}

/// The type of operand `i`, if its dtype is accepted.
pub(super) fn accept<'a>(cx: &Ctx<'a>, i: usize, what: Accept) -> Result<&'a TensorType, Fault> {
    let t = cx.tensor(i)?;
    let d = t.dtype;
    let (good, need) = match what {
        Accept::Plain => (d != DType::String, "any dtype but string"),
        Accept::Number => (d.is_float() || d.is_int(), "a float or integer dtype"),
        Accept::Float => (d.is_float(), "a float dtype"),
        Accept::Int => (d.is_int(), "an integer dtype"),
        Accept::Bool => (d == DType::Bool, "bool"),
        Accept::NumberOrBool => (d.is_float() || d.is_int() || d == DType::Bool, "a numeric dtype or bool"),
    };
    if good { Ok(t) } else { Err(fault!("operand {i} is {t}; it needs {need}")) }
}

/// The dtype that all present operands have.
pub(super) fn same_dtype(cx: &Ctx) -> Result<DType, Fault> {
    let first = cx.dtype(0)?;
    for i in 1..cx.inputs.len() {
        if cx.has(i) && cx.dtype(i)? != first {
            return Err(fault!("operands 0 and {i} differ in dtype: {} and {}", cx.tensor(0)?, cx.tensor(i)?));
        }
    }
    Ok(first)
}

/// An error unless operand `i` has rank `rank`.
pub(super) fn expect_rank(cx: &Ctx, i: usize, rank: usize) -> Result<(), Fault> {
    let t = cx.tensor(i)?;
    if t.rank() == rank { Ok(()) } else { Err(fault!("operand {i} is {t}; it needs rank {rank}")) }
}

/// An error if two dims are certainly different.
pub(super) fn expect_dim(what: &str, got: Expr, need: Expr) -> Result<(), Fault> {
    match (got - need).known() {
        Some(d) if d != 0 => Err(fault!("{what} is {got}, but must be {need}")),
        Some(_) => Ok(()),
        None => {
            sizes::must_equal(got, need, &|| format!("{what} ({got}) must be {need}"));
            Ok(())
        }
    }
}

/// The broadcast of the dims of all present operands.
pub(super) fn broadcast_all(cx: &Ctx) -> Result<Vec<Expr>, Fault> {
    let mut shapes = vec![];
    for i in 0..cx.inputs.len() {
        if cx.has(i) {
            shapes.push(cx.dims(i)?);
        }
    }
    broadcast(&shapes)
}

/// Operand `i`, broadcast to `out` with axes `axes`, in its own dtype.
pub(super) fn read_raw(cx: &Ctx, i: usize, out: &[Expr], axes: &[Expr]) -> Result<Scalar, Fault> {
    let t = cx.tensor(i)?;
    Ok(Scalar::read_at(t.dtype, i, &broadcast_index(&t.dims, out, axes)))
}

/// As [`read_raw`], in the dtype that is computed in.
pub(super) fn read_wide(cx: &Ctx, i: usize, out: &[Expr], axes: &[Expr]) -> Result<Scalar, Fault> {
    let s = read_raw(cx, i, out, axes)?;
    Ok(s.cast(s.dtype().accumulator()))
}

/// The axis variables of a compute with `n` of them.
pub(super) fn axes(n: usize) -> Vec<Expr> {
    (0..n).map(Expr::var).collect()
}

/// One elementwise step: `f` gets the present operands, broadcast and widened; its result is rounded to the result's dtype.
pub(super) fn pointwise(cx: &Ctx, outs: &[Type], f: impl FnOnce(&[Scalar]) -> Scalar) -> Result<Meaning, Fault> {
    let out = Ctx::out(outs, 0)?;
    let axes = axes(out.rank());
    let mut reads = vec![];
    for i in 0..cx.inputs.len() {
        if cx.has(i) {
            reads.push(read_wide(cx, i, &out.dims, &axes)?);
        }
    }
    let value = f(&reads).cast(out.dtype);
    Ok(Meaning::one(cx.inputs.len(), Step::Compute(Compute { dims: out.dims.clone(), reduction: None, value })))
}

/// The dtype of a TensorProto number given as an attribute.
pub(super) fn dtype_attr(name: &str, number: i64) -> Result<DType, Fault> {
    i32::try_from(number)
        .ok()
        .and_then(DType::from_onnx)
        .ok_or_else(|| fault!("attribute '{name}' is {number}, which is no dtype of ONNX"))
}

/// True if operand `i` is there but its elements are known only at run time. What depends on them then has new dims; such a node
/// runs where values are at hand (the interpreter), and its meaning cannot be told before.
pub(super) fn is_data(cx: &Ctx, i: usize) -> bool {
    cx.has(i) && cx.known(i).is_none() && cx.inputs[i].as_ref().is_none_or(|f| f.ints.is_none())
}

/// Elements of the operands as expressions, broadcast to a result of rank 0 or 1, one list per result element.
pub(super) fn broadcast_ints(cx: &Ctx) -> Option<Vec<Vec<Expr>>> {
    let ints: Vec<&Vec<Expr>> = cx.inputs.iter().map(|f| f.as_ref()?.ints.as_ref()).collect::<Option<_>>()?;
    let n = if ints.iter().any(|v| v.is_empty()) { 0 } else { ints.iter().map(|v| v.len()).max()? };
    let good = ints.iter().all(|v| v.len() == 1 || v.len() == n);
    good.then(|| (0..n).map(|i| ints.iter().map(|v| if v.len() == 1 { v[0] } else { v[i] }).collect()).collect())
}

/// Applies `f` to the broadcast elements of all operands; `None` if one of them is not known as an expression.
pub(super) fn map_ints(cx: &Ctx, f: impl Fn(&[Expr]) -> Option<Expr>) -> Option<Vec<Expr>> {
    broadcast_ints(cx)?.iter().map(|e| f(e)).collect()
}

/// An element of integer arithmetic: by numbers, which wrap, where all are known; else by expressions, which saturate.
pub(super) fn wrapped<const N: usize>(
    e: [Expr; N],
    numbers: impl Fn([i64; N]) -> i64,
    expressions: impl Fn([Expr; N]) -> Expr,
) -> Expr {
    let known = e.map(Expr::known);
    match known.iter().all(Option::is_some) {
        true => Expr::int(numbers(known.map(Option::unwrap_or_default))),
        false => expressions(e),
    }
}

/// Is `a < b` for certain, or certainly not?
pub(super) fn less(a: Expr, b: Expr) -> Option<bool> {
    if let (Some(a), Some(b)) = (a.known(), b.known()) {
        return Some(a < b);
    }
    let r = (a - b).range(&crate::expr::Ranges::default());
    if r.hi < 0 {
        Some(true)
    } else if r.lo >= 0 {
        Some(false)
    } else {
        None
    }
}

/// Are two expressions equal for certain, or certainly not?
pub(super) fn equal(a: Expr, b: Expr) -> Option<bool> {
    if let (Some(a), Some(b)) = (a.known(), b.known()) {
        return Some(a == b);
    }
    let r = (a - b).range(&crate::expr::Ranges::default());
    if r.lo == 0 && r.hi == 0 {
        Some(true)
    } else if r.lo > 0 || r.hi < 0 {
        Some(false)
    } else {
        None
    }
}

/// A constant of the dtype of `x`.
pub(super) fn num(x: Scalar, value: f64) -> Scalar {
    Scalar::number(x.dtype(), value)
}

/// A one-operand operator.
pub(super) fn un(op: Unary, x: Scalar) -> Scalar {
    Scalar::unary(op, x)
}

/// A two-operand operator.
pub(super) fn bin(op: Binary, x: Scalar, y: Scalar) -> Scalar {
    Scalar::binary(op, x, y)
}

/// Adds a Cast, unless `x` has that dtype.
pub(super) fn cast_to(b: &mut Builder, x: Value, to: DType) -> Result<Value, Fault> {
    if b.tensor(x)?.dtype == to {
        return Ok(x);
    }
    b.op(Cast { to: i64::from(to.onnx()), saturate: 1, round_mode: "up".to_owned() }, &[x])
}

/// Adds a Reshape to constant dims (0 copies a dim, -1 takes the rest).
pub(super) fn reshape(b: &mut Builder, x: Value, shape: &[i64]) -> Result<Value, Fault> {
    let shape = b.ints(shape);
    b.op(Reshape { allowzero: false }, &[x, shape])
}

/// Adds dims as an integer vector.
pub(super) fn sizes_of(b: &mut Builder, dims: &[Expr]) -> Result<Value, Fault> {
    b.op(DimVector { exprs: dims.to_vec(), dtype: i64::from(DType::I64.onnx()), scalar: false }, &[])
}

/// The value with these dims, which inference has noted that it must have.
pub(super) fn with_dims(b: &mut Builder, v: Value, dims: &[Expr]) -> Result<Value, Fault> {
    if b.dims(v)? == dims {
        return Ok(v);
    }
    let dims = sizes_of(b, dims)?;
    b.op(Reshape { allowzero: true }, &[v, dims])
}

macro_rules! reduce_helpers {
    ($($name:ident $op:ident)*) => { $(
        /// Adds the reduction over `axes`, which stay with extent 1.
        pub(super) fn $name(b: &mut Builder, x: Value, axes: &[i64]) -> Result<Value, Fault> {
            let axes = b.ints(axes);
            b.op($op { keepdims: true, noop_with_empty_axes: true }, &[x, axes])
        }
    )* };
}
reduce_helpers! { reduce_max ReduceMax reduce_mean ReduceMean reduce_sum ReduceSum }

/// Short ways to apply an operator in tests.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub use std::slice::from_ref;

    /// An f32 tensor.
    pub fn f32s(dims: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_vec(dims.to_vec(), values.to_vec())
    }
    /// Result 0 of `op` on tensors, as numbers, with its dims.
    pub fn run(op: impl Into<Op>, inputs: &[Tensor]) -> (Vec<usize>, Vec<f64>) {
        let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
        let out = crate::interp::eval_op(&op.into(), &inputs, 1).unwrap().remove(0);
        (out.dims.clone(), (0..out.len()).map(|i| out.float(i)).collect())
    }
    /// Checks result 0 of `op`, to 6 digits.
    pub fn check(op: impl Into<Op>, inputs: &[Tensor], dims: &[usize], want: &[f64]) {
        let op = op.into();
        let (got_dims, got) = run(op.clone(), inputs);
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6 * b.abs().max(1.0) || a.is_nan() && b.is_nan() || a == b;
        assert!(
            got_dims == dims && got.iter().zip(want).all(close),
            "{}: {got_dims:?} {got:?}, not {dims:?} {want:?}",
            op.name()
        );
    }
    /// Fact of result 0 on facts.
    pub fn fact_of(op: impl Into<Op>, inputs: &[Fact]) -> Result<Fact, Fault> {
        let facts: Vec<_> = inputs.iter().cloned().map(Some).collect();
        Ok(op.into().infer(&Ctx { inputs: &facts, regions: &[], outputs: 1 })?.remove(0))
    }
    /// Checks the type of result 0 on operands of the types `inputs`, all in the text form.
    pub fn check_type(op: impl Into<Op>, inputs: &[(DType, &[&str])], want: &str) {
        let dims = |d: &[&str]| d.iter().map(|s| s.parse().unwrap()).collect::<Vec<Expr>>();
        let facts: Vec<Fact> = inputs.iter().map(|(t, d)| Fact::tensor(*t, dims(d))).collect();
        let got = fact_of(op, &facts).map_or_else(|f| f.0, |f| f.ty.to_string());
        assert_eq!(got, want);
    }
    /// The scalar that a one-step operator reduces.
    pub fn body(op: impl Into<Op>, inputs: &[(DType, &[&str])]) -> String {
        let op = op.into();
        let dims = |d: &[&str]| d.iter().map(|s| s.parse().unwrap()).collect::<Vec<Expr>>();
        let facts: Vec<_> = inputs.iter().map(|(t, d)| Some(Fact::tensor(*t, dims(d)))).collect();
        let cx = Ctx { inputs: &facts, regions: &[], outputs: 1 };
        let outs: Vec<Type> = op.infer(&cx).unwrap().into_iter().map(|f| f.ty).collect();
        let Meaning::Steps { steps, .. } = op.meaning(&cx, &outs).unwrap() else { panic!("{} is no list of steps", op.name()) };
        let Step::Compute(c) = &steps[0] else { panic!("{} is no compute", op.name()) };
        c.reduction.as_ref().map_or(c.value, |r| r.body).to_string()
    }
}
