//! Reductions over axes, running reductions, softmax.

use super::axes::{Named, same};
use super::common::*;
use super::*;
use crate::compute::{Compute, Prefix, Reducer};
use crate::scalar::{Binary as B, Scalar, Unary as U};

gaps! {}

// ---- reductions over axes ----

/// Which axes are reduced, and how indices of operand and result belong together.
pub(super) struct Reduced {
    /// Operand dims.
    dims: Vec<Expr>,
    /// For each axis: 1 if it is reduced, else 0. An expression of the elements of operand 1 if those are data.
    gone: Vec<Expr>,
    keepdims: bool,
    /// Rank of the result.
    left: usize,
}

impl Reduced {
    /// From normalised axes.
    pub(super) fn new(dims: &[Expr], axes: &[usize], keepdims: bool) -> Reduced {
        let gone: Vec<Expr> = (0..dims.len()).map(|i| Expr::int(i64::from(axes.contains(&i)))).collect();
        let left = if keepdims { dims.len() } else { gone.iter().filter(|g| g.is(0)).count() };
        Reduced { dims: dims.to_vec(), gone, keepdims, left }
    }
    /// From axes that only the data tells.
    fn open(dims: &[Expr], axes: &Named, keepdims: bool) -> Reduced {
        let rank = dims.len();
        let gone = (0..rank).map(|i| axes.has(i)).collect();
        Reduced { dims: dims.to_vec(), gone, keepdims, left: if keepdims { rank } else { rank.saturating_sub(axes.len()) } }
    }
    /// 1 if operand axis `axis` is the result's axis `j`, else 0.
    fn becomes(&self, axis: usize, j: usize) -> Expr {
        let kept = |i: usize| Expr::int(1) - self.gone[i];
        let place = (0..axis).fold(Expr::int(0), |n, i| n + kept(i));
        if self.keepdims { Expr::int(i64::from(axis == j)) } else { kept(axis) * same(place, j.into()) }
    }
    /// Dims of the result.
    pub(super) fn out(&self) -> Vec<Expr> {
        let extent = |i: usize| if self.keepdims { self.dims[i] - self.gone[i] * (self.dims[i] - 1) } else { self.dims[i] };
        let dim = |j: usize| (0..self.dims.len()).fold(Expr::int(0), |sum, i| sum + self.becomes(i, j) * extent(i));
        (0..self.left).map(dim).collect()
    }
    /// Extents of the reduction axes: those of all axes that may be reduced.
    pub(super) fn extents(&self) -> Vec<Expr> {
        self.dims.iter().zip(&self.gone).filter(|(_, gone)| !gone.is(0)).map(|(&d, _)| d).collect()
    }
    /// Number of elements that each result is made of.
    pub(super) fn count(&self) -> Expr {
        Expr::product(self.dims.iter().zip(&self.gone).map(|(&d, &gone)| if gone.is(1) { d } else { gone * (d - 1) + 1 }))
    }
    /// Index of the operand at result axes `outer` and reduction axes `inner`.
    pub(super) fn index(&self, outer: &[Expr], inner: &[Expr]) -> Vec<Expr> {
        let mut inner = inner.iter();
        let mut at = |i: usize| {
            let taken = (0..self.left).fold(Expr::int(0), |sum, j| sum + self.becomes(i, j) * outer[j]);
            match self.gone[i] {
                g if g.is(0) => taken,
                g if g.is(1) => *inner.next().expect("one variable for each reduced axis"),
                g => taken + g * *inner.next().expect("one variable for each axis that may be reduced"),
            }
        };
        (0..self.dims.len()).map(&mut at).collect()
    }
    /// Where axes are data, one that is not reduced counts at the first position of its reduction axis only.
    fn counts(&self, inner: &[Expr]) -> Scalar {
        let open = self.gone.iter().filter(|g| !g.is(0)).zip(inner).filter(|(g, _)| !g.is(1));
        open.fold(Scalar::always(), |all, (&g, &i)| all.and(Scalar::index((Expr::int(1) - g) * i).eq_to(Scalar::index(0))))
    }
}

impl Reduced {
    /// `body` of the operand's element in dtype `wide`; what does not count is the identity of `kind`.
    fn element(
        &self,
        t: &TensorType,
        wide: DType,
        outer: &[Expr],
        inner: &[Expr],
        kind: Reducer,
        body: &dyn Fn(Scalar) -> Scalar,
    ) -> Scalar {
        let counts = self.counts(inner);
        let index = self.index(outer, inner).into_iter().map(Scalar::index);
        let x = Scalar::read_if(0, index, counts, Scalar::number(t.dtype, 0.0)).cast(wide);
        let value = body(x);
        Scalar::select(counts, value, kind.identity(value.dtype()))
    }
}

/// The axes from operand 1; all if there are none and that is no no-op.
fn reduced(cx: &Ctx, keepdims: bool, noop: bool) -> Result<Reduced, Fault> {
    let dims = cx.dims(0)?;
    let given = if cx.has(1) { cx.ints(1)? } else { vec![] };
    let named = Named::new(&given, dims.len())?;
    Ok(match named.known() {
        Some(axes) if axes.is_empty() && !noop => Reduced::new(dims, &(0..dims.len()).collect::<Vec<_>>(), keepdims),
        Some(axes) => Reduced::new(dims, &axes, keepdims),
        None => Reduced::open(dims, &named, keepdims),
    })
}

/// Dims of the result when the axes are data: all new, as many as can be counted.
fn open_dims(cx: &Ctx, op: &str, keepdims: bool, noop: bool) -> Result<Vec<Expr>, Fault> {
    let rank = cx.dims(0)?.len();
    let axes = cx.dims(1)?.first().and_then(|d| d.known());
    let left = match (keepdims, axes) {
        (true, _) => rank,
        (false, Some(0)) => {
            if noop {
                rank
            } else {
                0
            }
        }
        (false, Some(n)) => rank.saturating_sub(n as usize),
        (false, None) => {
            return Err(fault!(
                "operand 1 ({}) must be known at compile time: the rank of the result depends on it",
                cx.tensor(1)?
            ));
        }
    };
    Ok((0..left).map(|i| new_dim(op, i)).collect())
}

/// One reduction step: `body(x)` combined by `kind`, then `finish(accumulator, count)`; `x` has dtype `wide`.
fn reduce_step(
    t: &TensorType,
    r: &Reduced,
    out: &[Expr],
    wide: DType,
    kind: Reducer,
    body: impl Fn(Scalar) -> Scalar,
    finish: impl Fn(Scalar, Scalar) -> Scalar,
) -> Step {
    let count = Scalar::index(r.count());
    Step::Compute(Compute::reduce(
        out,
        &r.extents(),
        kind,
        |outer, inner| r.element(t, wide, outer, inner, kind, &body),
        |_, acc| finish(acc, count).cast(t.dtype),
    ))
}

/// Rows `Name accepts reducer |x| body, |acc, count| finish, ints |elements| expression;`.
macro_rules! reductions {
    ($($name:ident $what:ident $kind:ident |$x:ident| $body:expr, |$acc:ident, $n:ident| $finish:expr, ints |$e:ident| $int:expr;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                let t = accept(cx, 0, Accept::$what)?;
                if is_data(cx, 1) {
                    let dims = open_dims(cx, stringify!($name), self.keepdims, self.noop_with_empty_axes)?;
                    return Ok(vec![Fact::tensor(t.dtype, dims)]);
                }
                let r = reduced(cx, self.keepdims, self.noop_with_empty_axes)?;
                // Of a small integer vector, reduced to one element.
                let $e = cx.fact(0)?.ints.as_deref().filter(|_| t.rank() == 1 && r.gone[0].is(1));
                let ints: Option<Expr> = $int;
                Ok(vec![Fact::tensor(t.dtype, r.out()).with_ints(ints.map(|e| vec![e]))])
            }
            fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
                let r = reduced(cx, self.keepdims, self.noop_with_empty_axes)?;
                let (t, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
                let wide = arithmetic(stringify!($name), t.dtype);
                let step = reduce_step(t, &r, &out.dims, wide, Reducer::$kind, |$x| $body, |$acc, $n| { let _ = $n; $finish });
                Ok(Meaning::one(cx.inputs.len(), step))
            }
        }
    )* };
}

/// The dtype a reduction computes in: roots and logarithms of integers in f64, bool as u8.
fn arithmetic(name: &str, dtype: DType) -> DType {
    match name {
        "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" if dtype.is_int() => DType::F64,
        _ if dtype == DType::Bool => DType::U8,
        _ => dtype.accumulator(),
    }
}

fn sum_ints(e: &[Expr]) -> Expr {
    e.iter().fold(Expr::int(0), |a, &b| int_add(a, b))
}

reductions! {
    ReduceL1 Number Sum |x| un(U::Abs, x), |acc, n| acc, ints |_e| None;
    ReduceL2 Number Sum |x| x * x, |acc, n| un(U::Sqrt, acc), ints |_e| None;
    ReduceLogSum Number Sum |x| x, |acc, n| un(U::Log, acc), ints |_e| None;
    ReduceMax NumberOrBool Max |x| x, |acc, n| acc, ints |e| e.and_then(|e| e.iter().copied().reduce(Expr::max));
    ReduceMean Number Sum |x| x, |acc, n| acc / n.cast(acc.dtype()), ints |_e| None;
    ReduceMin NumberOrBool Min |x| x, |acc, n| acc, ints |e| e.and_then(|e| e.iter().copied().reduce(Expr::min));
    ReduceProd Number Prod |x| x, |acc, n| acc, ints |e| e.map(|e| e.iter().fold(Expr::int(1), |a, &b| int_mul(a, b)));
    ReduceSum Number Sum |x| x, |acc, n| acc, ints |e| e.map(sum_ints);
    ReduceSumSquare Number Sum |x| x * x, |acc, n| acc, ints |_e| None;
}

impl OpDef for ReduceLogSumExp {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = accept(cx, 0, Accept::Number)?;
        let dims = match is_data(cx, 1) {
            true => open_dims(cx, "ReduceLogSumExp", self.keepdims, self.noop_with_empty_axes)?,
            false => reduced(cx, self.keepdims, self.noop_with_empty_axes)?.out(),
        };
        Ok(vec![Fact::tensor(t.dtype, dims)])
    }
    /// m + ln(sum(e^(x - m))) with m the largest element (0 where that is infinite).
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let r = reduced(cx, self.keepdims, self.noop_with_empty_axes)?;
        let (t, n) = (cx.tensor(0)?, cx.inputs.len());
        let wide = arithmetic("ReduceLogSumExp", t.dtype);
        let (out, extents) = (&Ctx::out(outs, 0)?.dims, r.extents());
        let largest = Compute::reduce(
            out,
            &extents,
            Reducer::Max,
            |o, i| r.element(t, wide, o, i, Reducer::Max, &|x| x),
            |_, acc| Scalar::select(un(U::IsInf, acc), num(acc, 0.0), acc),
        );
        let m = |o: &[Expr]| Scalar::read_at(wide, n, o);
        let sum = Compute::reduce(
            out,
            &extents,
            Reducer::Sum,
            |o, i| r.element(t, wide, o, i, Reducer::Sum, &|x| un(U::Exp, x - m(o))),
            |o, acc| (un(U::Log, acc) + m(o)).cast(t.dtype),
        );
        Ok(Meaning::Steps { steps: vec![Step::Compute(largest), Step::Compute(sum)], outputs: vec![n as u32 + 1] })
    }
}

// ---- positions ----

macro_rules! positions {
    ($($name:ident $kind:ident;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                let t = accept(cx, 0, Accept::Number)?;
                let axis = normal_axis(self.axis, t.rank())?;
                Ok(vec![Fact::tensor(DType::I64, Reduced::new(&t.dims, &[axis], self.keepdims).out())])
            }
            fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
                let t = cx.tensor(0)?;
                let r = Reduced::new(&t.dims, &[normal_axis(self.axis, t.rank())?], self.keepdims);
                let c = Compute::reduce(
                    &r.out(),
                    &r.extents(),
                    Reducer::$kind { last: self.select_last_index },
                    |o, i| Scalar::read_at(t.dtype, 0, &r.index(o, i)).cast(t.dtype.accumulator()),
                    |_, acc| acc,
                );
                Ok(Meaning::one(1, Step::Compute(c)))
            }
        }
    )* };
}

positions! {
    ArgMax ArgMax;
    ArgMin ArgMin;
}

impl OpDef for Hardmax {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = accept(cx, 0, Accept::Float)?;
        normal_axis(self.axis, t.rank())?;
        Ok(vec![Fact::of(t.clone())])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let t = cx.tensor(0)?;
        let axis = normal_axis(self.axis, t.rank())?;
        let r = Reduced::new(&t.dims, &[axis], true);
        let largest = Compute::reduce(
            &r.out(),
            &r.extents(),
            Reducer::ArgMax { last: false },
            |o, i| Scalar::read_at(t.dtype, 0, &r.index(o, i)).cast(t.dtype.accumulator()),
            |_, acc| acc,
        );
        let hot = Compute::map(&t.dims, |v| {
            let at: Vec<Expr> = v.iter().enumerate().map(|(i, &e)| if i == axis { Expr::int(0) } else { e }).collect();
            Scalar::read_at(DType::I64, 1, &at).eq_to(Scalar::index(v[axis])).cast(t.dtype)
        });
        Ok(Meaning::Steps { steps: vec![Step::Compute(largest), Step::Compute(hot)], outputs: vec![2] })
    }
}

// ---- running reductions ----

fn running(cx: &Ctx, exclusive: bool, reverse: bool, combine: B) -> Result<Meaning, Fault> {
    let t = cx.tensor(0)?;
    let wide = t.dtype.accumulator();
    let init = Scalar::number(wide, if combine == B::Mul { 1.0 } else { 0.0 });
    let body = Scalar::read_at(t.dtype, 0, &axes(t.rank())).cast(wide);
    let along = |axis: usize| Step::Prefix(Prefix { dims: t.dims.clone(), axis, reverse, exclusive, combine, init, body });
    let axis = running_axis(cx)?;
    // Where the axis is data, all of them are gone along, and the right one is taken.
    let choices: Vec<usize> = match axis.known() {
        Some(axis) => vec![normal_axis(axis, t.rank())?],
        None => (0..t.rank()).collect(),
    };
    let mut steps: Vec<Step> = choices.iter().map(|&a| along(a)).collect();
    if wide != t.dtype || choices.len() > 1 {
        steps.push(Step::Compute(Compute::map(&t.dims, |v| {
            let made = (0..choices.len()).map(|k| Scalar::read_at(wide, 2 + k, v));
            let is = |k: usize| same(axis, k.into()) + same(axis + t.rank() as i64, k.into());
            let pick = |(k, last): (usize, Scalar), x: Scalar| {
                (k + 1, Scalar::select(Scalar::index(is(k)).eq_to(Scalar::index(1)), x, last))
            };
            let first = made.clone().next().expect("at least one axis");
            made.fold((0, first), pick).1.cast(t.dtype)
        })));
    }
    let last = 1 + steps.len() as u32;
    Ok(Meaning::Steps { steps, outputs: vec![last] })
}

/// The axis that operand 1 holds, in range if it is known.
fn running_axis(cx: &Ctx) -> Result<Expr, Fault> {
    match (&cx.ints(1)?[..], cx.tensor(0)?.rank()) {
        (&[axis], rank @ 1..) => Named::new(&[axis], rank).map(|_| axis),
        _ => Err(fault!("operand 1 is {} for {}; one axis is needed", cx.tensor(1)?, cx.tensor(0)?)),
    }
}

macro_rules! running {
    ($($name:ident $combine:ident |$e:ident, $total:ident| $next:expr, $first:literal;)*) => { $(
        impl OpDef for $name {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                let t = accept(cx, 0, Accept::Number)?;
                if is_data(cx, 1) {
                    return Ok(vec![Fact::of(t.clone())]);
                }
                running_axis(cx)?;
                let ints = cx.fact(0)?.ints.as_ref().filter(|_| t.rank() == 1).map(|ints| {
                    let mut $total = Expr::int($first);
                    let mut step = |&$e: &Expr| {
                        let before = $total;
                        $total = $next;
                        if self.exclusive { before } else { $total }
                    };
                    if self.reverse {
                        let mut out: Vec<_> = ints.iter().rev().map(&mut step).collect();
                        out.reverse();
                        out
                    } else {
                        ints.iter().map(&mut step).collect()
                    }
                });
                Ok(vec![Fact::of(t.clone()).with_ints(ints)])
            }
            fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
                running(cx, self.exclusive, self.reverse, B::$combine)
            }
        }
    )* };
}

running! {
    CumSum Add |e, total| int_add(total, e), 0;
    CumProd Mul |e, total| int_mul(total, e), 1;
}

// ---- softmax ----

/// x less its largest element along `axis`, in f32 or f64: what both softmaxes start from.
fn shifted(b: &mut Builder, x: Value, axis: i64) -> Result<Value, Fault> {
    let wide = b.tensor(x)?.dtype.accumulator();
    let x = cast_to(b, x, wide)?;
    let m = reduce_max(b, x, &[axis])?;
    b.op(Sub {}, &[x, m])
}

fn softmax_fact(cx: &Ctx, axis: i64) -> Result<Vec<Fact>, Fault> {
    let t = accept(cx, 0, Accept::Float)?;
    normal_axis(axis, t.rank())?;
    Ok(vec![Fact::of(t.clone())])
}

impl OpDef for Softmax {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        softmax_fact(cx, self.axis)
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (axis, dtype) = (self.axis, cx.dtype(0)?);
        Ok(Meaning::decompose(move |b, v| {
            let x = v[0].expect("arity");
            let shifted = shifted(b, x, axis)?;
            let e = b.op(Exp {}, &[shifted])?;
            let sum = reduce_sum(b, e, &[axis])?;
            let y = b.op(Div {}, &[e, sum])?;
            Ok(vec![cast_to(b, y, dtype)?])
        }))
    }
}

impl OpDef for LogSoftmax {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        softmax_fact(cx, self.axis)
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (axis, dtype) = (self.axis, cx.dtype(0)?);
        Ok(Meaning::decompose(move |b, v| {
            let x = v[0].expect("arity");
            let shifted = shifted(b, x, axis)?;
            let e = b.op(Exp {}, &[shifted])?;
            let sum = reduce_sum(b, e, &[axis])?;
            let log = b.op(Log {}, &[sum])?;
            let y = b.op(Sub {}, &[shifted, log])?;
            Ok(vec![cast_to(b, y, dtype)?])
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::testing::*;
    use super::*;

    fn x() -> Tensor {
        f32s(&[2, 3], &[1.0, 5.0, 3.0, 4.0, -2.0, 6.0])
    }

    #[test]
    fn values() {
        let last = Tensor::from_ints(&[-1]);
        let (keepdims, noop_with_empty_axes) = (false, false);
        check(ReduceSum { keepdims, noop_with_empty_axes }, &[x(), last.clone()], &[2], &[9.0, 8.0]);
        check(ReduceMean { keepdims: true, noop_with_empty_axes }, &[x(), last.clone()], &[2, 1], &[3.0, 8.0 / 3.0]);
        check(ReduceMax { keepdims, noop_with_empty_axes }, &[x()], &[], &[6.0]);
        check(ReduceL2 { keepdims, noop_with_empty_axes }, &[f32s(&[2], &[3.0, -4.0])], &[], &[5.0]);
        check(ReduceSumSquare { keepdims, noop_with_empty_axes: true }, &[f32s(&[2], &[3.0, -4.0])], &[2], &[9.0, 16.0]);
        let large = f32s(&[2], &[1000.0, 1000.0]);
        check(ReduceLogSumExp { keepdims, noop_with_empty_axes }, from_ref(&large), &[], &[1000.6931]);
        check(Softmax { axis: -1 }, from_ref(&large), &[2], &[0.5, 0.5]);
        check(LogSoftmax { axis: 0 }, &[large], &[2], &[-std::f64::consts::LN_2; 2]);
        check(Hardmax { axis: 1 }, &[x()], &[2, 3], &[0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        check(ArgMax { axis: 1, keepdims: false, select_last_index: false }, &[x()], &[2], &[1.0, 2.0]);
        check(ArgMin { axis: 0, keepdims: true, select_last_index: false }, &[x()], &[1, 3], &[0.0, 1.0, 0.0]);
        let sums = CumSum { exclusive: true, reverse: true };
        check(sums, &[f32s(&[3], &[1.0, 2.0, 3.0]), Tensor::from_vec([], vec![0i64])], &[3], &[5.0, 3.0, 0.0]);
    }

    /// An axis named twice is no axis more: it is refused, where the axes are known and where they are data.
    #[test]
    fn an_axis_named_twice_is_refused() {
        let (keepdims, noop_with_empty_axes) = (false, false);
        let x = Fact::of(TensorType { dtype: DType::F32, dims: vec![Expr::int(2), Expr::int(3)] });
        let axes = Fact::tensor(DType::I64, [Expr::int(2)]).with_ints(Some(vec![Expr::int(1), Expr::int(-1)]));
        let fault = fact_of(ReduceSum { keepdims, noop_with_empty_axes }, &[x, axes]).unwrap_err();
        assert!(fault.to_string().contains("name one axis twice"), "{fault}");
    }

    #[test]
    fn empty_reductions_give_the_identity() {
        let none = f32s(&[0, 2], &[]);
        let axes = Tensor::from_ints(&[0]);
        let (keepdims, noop_with_empty_axes) = (false, false);
        check(ReduceSum { keepdims, noop_with_empty_axes }, &[none.clone(), axes.clone()], &[2], &[0.0; 2]);
        check(ReduceMin { keepdims, noop_with_empty_axes }, &[none, axes], &[2], &[f64::INFINITY; 2]);
    }

    #[test]
    fn a_shape_reduces_to_its_size() {
        let shape = Fact::tensor(DType::I64, [Expr::int(2)]).with_ints(Some(vec![Expr::sym("n"), Expr::int(4)]));
        let size = fact_of(ReduceProd { keepdims: false, noop_with_empty_axes: false }, &[shape]).unwrap();
        assert_eq!(size.ints, Some(vec![Expr::sym("n") * 4]));
    }

    /// The axis as a variable: everything about the result is an expression of them that is right for each value.
    #[test]
    fn axes_that_are_data() {
        let dims = [2, 3, 5].map(Expr::int);
        for (keepdims, axis) in [(true, 1), (false, 1), (false, -1), (true, -3)] {
            let open = Reduced::open(&dims, &Named::new(&[Expr::var(9)], 3).unwrap(), keepdims);
            let known = Reduced::new(&dims, &[normal_axis(axis, 3).unwrap()], keepdims);
            let at = |e: Expr| e.map(&|l| if l == Expr::var(9) { Expr::int(axis) } else { l });
            assert_eq!(open.out().into_iter().map(at).collect::<Vec<_>>(), known.out(), "axis {axis}");
            assert_eq!((at(open.count()), open.extents()), (known.count(), dims.to_vec()));
            let outer: Vec<Expr> = (0..known.out().len()).map(Expr::var).collect();
            let inner = [Expr::sym("x"), Expr::sym("y"), Expr::sym("z")];
            let chosen = [inner[normal_axis(axis, 3).unwrap()]];
            // A kept dimension is indexed by `outer` alone; a reduced one has extent 1 there, index 0.
            let zero = |e: Expr| {
                let gone = Expr::var(normal_axis(axis, 3).unwrap());
                if keepdims { e.map(&|l| if l == gone { Expr::int(0) } else { l }) } else { e }
            };
            let got: Vec<Expr> = open.index(&outer, &inner).into_iter().map(|e| zero(at(e))).collect();
            assert_eq!(got, known.index(&outer, &chosen), "axis {axis}");
        }
    }
}
