//! Pooling over sliding windows, and in `resize` and `sample` resampling.

use super::common::*;
use super::window::*;
use super::*;
use crate::compute::{Compute, Reducer, Scatter};
use crate::scalar::{Binary as B, Scalar, Unary as U};

mod resize;
pub(super) mod sample;

gaps! {}

/// The windows of a pooling operator over operand 0.
fn windows(cx: &Ctx, kernel: &[i64], attrs: WindowAttrs) -> Result<Windows, Fault> {
    let x = cx.tensor(0)?;
    if x.rank() < 3 {
        return Err(fault!("operand 0 is {x}; it needs rank 3 or more"));
    }
    Windows::new(&x.dims[2..], &kernel_dims(kernel, None)?, attrs)
}

/// The window attributes of a pooling operator.
macro_rules! attrs {
    ($op:expr) => {
        WindowAttrs {
            auto_pad: &$op.auto_pad,
            dilations: &$op.dilations,
            pads: &$op.pads,
            strides: &$op.strides,
            ceil: $op.ceil_mode != 0,
        }
    };
}

/// Dims of the result.
fn pooled(cx: &Ctx, windows: &Windows) -> Result<Vec<Expr>, Fault> {
    Ok(cx.dims(0)?[..2].iter().chain(&windows.out).copied().collect())
}

/// One pooling step: `body(x)` of the taps combined by `kind` (`outside` in place of the padding), then `finish(axes, sum)`.
fn pool_step(
    x: &TensorType,
    out: &TensorType,
    windows: &Windows,
    kind: Reducer,
    outside: Scalar,
    body: impl Fn(Scalar) -> Scalar,
    finish: impl FnOnce(&[Expr], Scalar) -> Scalar,
) -> Step {
    let c = Compute::reduce(
        &out.dims,
        &windows.kernel,
        kind,
        |o, taps| {
            let (position, inside) = windows.at(&o[2..], taps);
            let at = o[..2].iter().copied().chain(position).map(Scalar::index);
            body(Scalar::read_if(0, at, inside, outside).cast(x.dtype.accumulator()))
        },
        |o, acc| finish(&o[2..], acc).cast(out.dtype),
    );
    Step::Compute(c.simplify())
}

// ---- MaxPool ----

impl OpDef for MaxPool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Number)?;
        let dims = pooled(cx, &windows(cx, &self.kernel_shape, attrs!(self))?)?;
        Ok(vec![Fact::tensor(x.dtype, dims.clone()), Fact::tensor(DType::I64, dims)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let win = windows(cx, &self.kernel_shape, attrs!(self))?;
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let lowest = Reducer::Max.identity(x.dtype);
        let largest = pool_step(x, out, &win, Reducer::Max, lowest, |v| v, |_, acc| acc);
        if cx.outputs < 2 {
            return Ok(Meaning::one(1, largest));
        }
        let indices = Step::Compute(self.indices(x, out, &win));
        Ok(Meaning::Steps { steps: vec![largest, indices], outputs: vec![1, 2] })
    }
}

impl MaxPool {
    /// The position of the first largest tap in the flattened input (spatial dims reversed for column-major order).
    fn indices(&self, x: &TensorType, out: &TensorType, win: &Windows) -> Compute {
        // Wider than the dtype, so that the padding is below every element.
        let wide = if x.dtype.is_float() { x.dtype.accumulator() } else { DType::I64 };
        let lowest = Reducer::Max.identity(wide);
        let taps = |t: Expr| Expr::delinearise(t, &win.kernel);
        let body = |o: &[Expr], t: &[Expr]| {
            let (position, inside) = win.at(&o[2..], &taps(t[0]));
            let at = o[..2].iter().copied().chain(position).map(Scalar::index);
            let v = Scalar::read_if(0, at, inside, Scalar::number(x.dtype, 0.0)).cast(wide);
            Scalar::select(inside, v, lowest)
        };
        let finish = |o: &[Expr], tap: Scalar| {
            // The tap's number is data from here on: its parts by integer division.
            let mut rest = tap;
            let mut parts = vec![];
            for (i, &k) in win.kernel.iter().enumerate().rev() {
                let k = Scalar::index(k);
                parts.push(if i == 0 { rest } else { bin(B::Rem, rest, k) });
                rest = rest / k;
            }
            parts.reverse();
            let start = win.start(&o[2..]);
            let position: Vec<Scalar> =
                (0..parts.len()).map(|i| Scalar::index(start[i]) + parts[i] * Scalar::index(win.dilations[i])).collect();
            let mut linear = Scalar::index(o[0] * x.dims[1] + o[1]);
            let order: Vec<usize> =
                if self.storage_order == 0 { (0..parts.len()).collect() } else { (0..parts.len()).rev().collect() };
            for i in order {
                linear = linear * Scalar::index(x.dims[2 + i]) + position[i];
            }
            linear
        };
        let extent = Expr::product(win.kernel.iter().copied());
        Compute::reduce(&out.dims, &[extent], Reducer::ArgMax { last: false }, body, finish).simplify()
    }
}

// ---- AveragePool and LpPool ----

impl OpDef for AveragePool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        Ok(vec![Fact::tensor(x.dtype, pooled(cx, &windows(cx, &self.kernel_shape, attrs!(self))?)?)])
    }
    /// The sum over the number of taps inside the input (or, with `count_include_pad`, inside its padding).
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let win = windows(cx, &self.kernel_shape, attrs!(self))?;
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let count = |o: &[Expr]| {
            if win.unpadded() { Expr::product(win.kernel.iter().copied()) } else { win.count(o, self.count_include_pad) }
        };
        let zero = Scalar::number(x.dtype, 0.0);
        let step = pool_step(x, out, &win, Reducer::Sum, zero, |v| v, |o, acc| acc / Scalar::index(count(o)).cast(acc.dtype()));
        Ok(Meaning::one(1, step))
    }
}

/// |x|^p.
fn power(x: Scalar, p: i64) -> Scalar {
    match p {
        1 => un(U::Abs, x),
        2 => x * x,
        _ => bin(B::Pow, un(U::Abs, x), num(x, p as f64)),
    }
}

/// The p-th root of a sum.
fn root(sum: Scalar, p: i64) -> Scalar {
    match p {
        1 => sum,
        2 => un(U::Sqrt, sum),
        _ => bin(B::Pow, sum, num(sum, 1.0 / p as f64)),
    }
}

fn check_p(p: i64) -> Result<(), Fault> {
    if p < 1 { Err(fault!("attribute 'p' is {p}; a positive number is needed")) } else { Ok(()) }
}

impl OpDef for LpPool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        check_p(self.p)?;
        Ok(vec![Fact::tensor(x.dtype, pooled(cx, &windows(cx, &self.kernel_shape, attrs!(self))?)?)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let win = windows(cx, &self.kernel_shape, attrs!(self))?;
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let zero = Scalar::number(x.dtype, 0.0);
        let step = pool_step(x, out, &win, Reducer::Sum, zero, |v| power(v, self.p), |_, acc| root(acc, self.p));
        Ok(Meaning::one(1, step))
    }
}

// ---- pooling over everything ----

fn global_fact(cx: &Ctx) -> Result<Vec<Fact>, Fault> {
    let x = accept(cx, 0, Accept::Float)?;
    if x.rank() < 2 {
        return Err(fault!("operand 0 is {x}; it needs rank 2 or more"));
    }
    Ok(vec![Fact::tensor(x.dtype, x.dims.iter().enumerate().map(|(i, &d)| if i < 2 { d } else { Expr::int(1) }))])
}

fn global_step(
    cx: &Ctx,
    outs: &[Type],
    kind: Reducer,
    body: impl Fn(Scalar) -> Scalar,
    finish: impl FnOnce(Scalar, Expr) -> Scalar,
) -> Result<Meaning, Fault> {
    let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
    let space = &x.dims[2..];
    let c = Compute::reduce(
        &out.dims,
        space,
        kind,
        |o, r| body(Scalar::read_at(x.dtype, 0, &[&o[..2], r].concat()).cast(x.dtype.accumulator())),
        |_, acc| finish(acc, Expr::product(space.iter().copied())).cast(out.dtype),
    );
    Ok(Meaning::one(1, Step::Compute(c)))
}

impl OpDef for GlobalAveragePool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        global_fact(cx)
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        global_step(cx, outs, Reducer::Sum, |v| v, |acc, count| acc / Scalar::index(count).cast(acc.dtype()))
    }
}

impl OpDef for GlobalMaxPool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        global_fact(cx)
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        global_step(cx, outs, Reducer::Max, |v| v, |acc, _| acc)
    }
}

impl OpDef for GlobalLpPool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        check_p(self.p)?;
        global_fact(cx)
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        global_step(cx, outs, Reducer::Sum, |v| power(v, self.p), |acc, _| root(acc, self.p))
    }
}

// ---- MaxUnpool ----

impl MaxUnpool {
    /// Dims of the tensor that was pooled, by the windows alone.
    fn pooled_from(&self, cx: &Ctx) -> Result<Vec<Expr>, Fault> {
        let x = cx.tensor(0)?;
        let n = x.rank().saturating_sub(2);
        if n == 0 || self.kernel_shape.len() != n {
            return Err(fault!("operand 0 is {x}; kernel_shape {:?} does not fit", self.kernel_shape));
        }
        let strides = per_axis("strides", &self.strides, n, 1)?;
        let (begin, end) = split_pads(&self.pads, n)?;
        let mut dims = x.dims[..2].to_vec();
        dims.extend((0..n).map(|i| (x.dims[2 + i] - 1) * strides[i] - begin[i] - end[i] + self.kernel_shape[i]));
        Ok(dims)
    }
}

impl OpDef for MaxUnpool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        if cx.dtype(1)? != DType::I64 || cx.tensor(1)?.rank() != x.rank() {
            return Err(fault!("operand 1 is {}; i64 indices for each element of {x} are needed", cx.tensor(1)?));
        }
        let from = self.pooled_from(cx)?;
        let dims = match (is_data(cx, 2), cx.has(2)) {
            (true, _) => (0..x.rank()).map(|i| new_dim("MaxUnpool", i)).collect(),
            (false, true) => cx.ints(2)?,
            (false, false) => from,
        };
        if dims.len() != x.rank() {
            return Err(fault!("output_shape {dims:?} has not the rank of {x}"));
        }
        Ok(vec![Fact::tensor(x.dtype, dims)])
    }
    /// Indices count in the tensor that was pooled; a larger result has it in its first corner.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let from = self.pooled_from(cx)?;
        let at = axes(x.rank());
        let mut rest = Scalar::read_at(DType::I64, 1, &at);
        let mut index = vec![];
        for (i, &d) in from.iter().enumerate().rev() {
            let d = Scalar::index(d);
            index.push(if i == 0 { rest } else { bin(B::Rem, rest, d) });
            rest = rest / d;
        }
        index.reverse();
        let step = Step::Scatter(Scatter {
            dims: out.dims.clone(),
            base: Scalar::number(x.dtype, 0.0),
            updates: x.dims.clone(),
            index,
            value: Scalar::read_at(x.dtype, 0, &at),
            combine: None,
        });
        Ok(Meaning::one(cx.inputs.len(), step))
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::testing::*;
    use super::*;

    fn average(pads: &[i64], ceil_mode: i64, count_include_pad: bool) -> AveragePool {
        AveragePool {
            auto_pad: "NOTSET".into(),
            ceil_mode,
            count_include_pad,
            dilations: vec![],
            kernel_shape: vec![2],
            pads: pads.to_vec(),
            strides: vec![2],
        }
    }

    fn max(storage_order: i64) -> MaxPool {
        MaxPool {
            auto_pad: "NOTSET".into(),
            ceil_mode: 0,
            dilations: vec![],
            kernel_shape: vec![2, 2],
            pads: vec![],
            storage_order,
            strides: vec![],
        }
    }

    #[test]
    fn averages() {
        let x = f32s(&[1, 1, 5], &[2.0, 4.0, 6.0, 8.0, 10.0]);
        check(average(&[], 0, false), from_ref(&x), &[1, 1, 2], &[3.0, 7.0]);
        check(average(&[], 1, false), from_ref(&x), &[1, 1, 3], &[3.0, 7.0, 10.0]);
        check(average(&[1, 0], 0, false), from_ref(&x), &[1, 1, 3], &[2.0, 5.0, 9.0]);
        check(average(&[1, 0], 0, true), from_ref(&x), &[1, 1, 3], &[1.0, 5.0, 9.0]);
        check(GlobalAveragePool {}, &[x], &[1, 1, 1], &[6.0]);
    }

    #[test]
    fn maxima_with_positions() {
        let x = f32s(&[1, 1, 3, 3], &[1.0, 2.0, 3.0, 9.0, 5.0, 6.0, 7.0, 8.0, 4.0]);
        for (order, want) in [(0, [3, 5, 3, 7]), (1, [1, 7, 1, 5])] {
            let results = crate::interp::eval_op(&max(order).into(), &[Some(x.clone())], 2).unwrap();
            assert_eq!(results[0].to_vec::<f32>(), [9.0, 6.0, 9.0, 8.0]);
            assert_eq!(results[1].to_vec::<i64>(), want);
        }
    }

    #[test]
    fn types() {
        let x: (DType, &[&str]) = (DType::F32, &["n", "8", "h", "9"]);
        check_type(max(0), &[x], "f32[n, 8, h - 1, 8]");
        check_type(max(0), &[(DType::F32, &["n", "8", "h"])], "the kernel has 2 dims for 1 spatial axes");
    }
}
