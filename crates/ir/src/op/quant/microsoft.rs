//! ONNX Runtime's operators on quantised tensors: the float operator between dequantisation and quantisation.

use super::super::common::{Accept, accept};
use super::*;

/// Dims of the float operator's result for operands with these dims.
fn float_dims(op: impl Into<Op>, operands: &[&[Expr]]) -> Result<Vec<Expr>, Fault> {
    let facts: Vec<_> = operands.iter().map(|&d| Some(Fact::tensor(DType::F32, d.to_vec()))).collect();
    let out = op.into().infer(&Ctx { inputs: &facts, regions: &[], outputs: 1 })?;
    out.into_iter().next().and_then(|f| f.ty.as_tensor().map(|t| t.dims.clone())).ok_or_else(|| fault!("has no result"))
}

/// The fact of a result with the dtype of operand `x`; scales of the triples `(x, scale, zero)` and of the result must be single.
fn quantised(cx: &Ctx, x: usize, scales: &[usize], dims: Vec<Expr>) -> Result<Vec<Fact>, Fault> {
    for &s in scales {
        if cx.dtype(s)? != DType::F32 || !cx.dims(s)?.iter().all(|d| d.is(1)) {
            return Err(fault!("operand {s} is {}, it must be one f32 scale", cx.tensor(s)?));
        }
    }
    Ok(vec![Fact::tensor(cx.dtype(x)?, dims)])
}

/// Dequantises operands `x, x + 1, x + 2`.
fn dequantise(b: &mut Builder, inputs: &[Option<Value>], x: usize) -> Result<Value, Fault> {
    let op = DequantizeLinear { axis: 1, block_size: 0, output_dtype: 0 };
    let at = |i: usize| inputs.get(i).copied().flatten();
    Ok(b.node(op, &[at(x), at(x + 1), at(x + 2)], vec![], 1)?[0])
}

/// Quantises `v` with scale and zero point in operands `scale, scale + 1`; without a zero point to `dtype` around 0.
fn quantise(b: &mut Builder, inputs: &[Option<Value>], v: Value, scale: usize, dtype: DType) -> Result<Vec<Value>, Fault> {
    let op = QuantizeLinear { axis: 1, block_size: 0, output_dtype: dtype.onnx().into(), precision: 0, saturate: 1 };
    let at = |i: usize| inputs.get(i).copied().flatten();
    b.node(op, &[Some(v), at(scale), at(scale + 1)], vec![], 1)
}

macro_rules! binary_ops {
    ($($quantised:ident $float:ident;)*) => { $(
        impl OpDef for $quantised {
            fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                quantised(cx, 0, &[1, 4, 6], broadcast(&[cx.dims(0)?, cx.dims(3)?])?)
            }
            fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
                let dtype = cx.dtype(0)?;
                Ok(Meaning::decompose(move |b, inputs| {
                    let operands = [dequantise(b, inputs, 0)?, dequantise(b, inputs, 3)?];
                    let v = b.op($float {}, &operands)?;
                    quantise(b, inputs, v, 6, dtype)
                }))
            }
        }
    )* };
}
binary_ops! {
    QLinearAdd Add;
    QLinearMul Mul;
}

/// Condition, two triples of data, scale, zero point; scale and zero point of the result.
impl OpDef for QLinearWhere {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        accept(cx, 0, Accept::Bool)?;
        quantised(cx, 1, &[2, 5, 7], broadcast(&[cx.dims(0)?, cx.dims(1)?, cx.dims(4)?])?)
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let dtype = cx.dtype(1)?;
        Ok(Meaning::decompose(move |b, inputs| {
            let cond = inputs[0].ok_or_else(|| fault!("operand 0 is missing"))?;
            let operands = [cond, dequantise(b, inputs, 1)?, dequantise(b, inputs, 4)?];
            let v = b.op(Where {}, &operands)?;
            quantise(b, inputs, v, 7, dtype)
        }))
    }
}

/// `x, scale, zero -> float operator -> scale, zero`.
fn one_operand(cx: &Ctx, float: impl Fn(&mut Builder, Value) -> Result<Value, Fault> + 'static) -> Result<Meaning, Fault> {
    let dtype = cx.dtype(0)?;
    Ok(Meaning::decompose(move |b, inputs| {
        let x = dequantise(b, inputs, 0)?;
        let v = float(b, x)?;
        quantise(b, inputs, v, 3, dtype)
    }))
}

impl OpDef for QLinearSigmoid {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        quantised(cx, 0, &[1, 3], cx.dims(0)?.to_vec())
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        one_operand(cx, |b, x| b.op(Sigmoid {}, &[x]))
    }
}

impl OpDef for QLinearLeakyRelu {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        quantised(cx, 0, &[1, 3], cx.dims(0)?.to_vec())
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let alpha = self.alpha;
        one_operand(cx, move |b, x| b.op(LeakyRelu { alpha }, &[x]))
    }
}

impl OpDef for QLinearSoftmax {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        normal_axis(self.axis, cx.dims(0)?.len())?;
        quantised(cx, 0, &[1, 3], cx.dims(0)?.to_vec())
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let axis = normal_axis(self.axis, cx.dims(0)?.len())? as i64;
        // Before opset 13 a softmax runs over all dims from `axis` on.
        let whole = self.opset < 13;
        one_operand(cx, move |b, x| {
            if !whole {
                return b.op(Softmax { axis }, &[x]);
            }
            let rows = b.op(Flatten { axis }, &[x])?;
            let rows = b.op(Softmax { axis: 1 }, &[rows])?;
            let shape = b.op(Shape { end: None, start: 0 }, &[x])?;
            b.op(Reshape { allowzero: false }, &[rows, shape])
        })
    }
}

/// The permutation that moves channels of `rank` dims from the last place to the second, and its inverse.
fn channel_moves(rank: usize) -> [Vec<i64>; 2] {
    let r = rank as i64;
    let first = [0, r - 1].into_iter().chain(1..r - 1).collect();
    let last = [0].into_iter().chain(2..r).chain([1]).collect();
    [first, last]
}

/// `dims` permuted by `perm`.
fn permuted(dims: &[Expr], perm: &[i64]) -> Vec<Expr> {
    perm.iter().map(|&a| dims[a as usize]).collect()
}

/// Facts of a pooling operator over spatial dims.
fn infer_pool(cx: &Ctx, op: impl Into<Op>, channels_last: bool) -> Result<Vec<Fact>, Fault> {
    let x = cx.dims(0)?;
    if x.len() < 3 {
        return Err(fault!("operand 0 is {}, it must have rank 3 or more", cx.tensor(0)?));
    }
    let [first, last] = channel_moves(x.len());
    let dims = match channels_last {
        false => float_dims(op, &[x])?,
        true => permuted(&float_dims(op, &[&permuted(x, &first)])?, &last),
    };
    quantised(cx, 0, &[1, 3], dims)
}

/// Meaning of a pooling operator over spatial dims.
fn pool(cx: &Ctx, op: impl Into<Op>, channels_last: bool) -> Result<Meaning, Fault> {
    let [first, last] = channel_moves(cx.dims(0)?.len());
    let op = op.into();
    one_operand(cx, move |b, x| {
        if !channels_last {
            return b.op(op.clone(), &[x]);
        }
        let x = b.op(Transpose { perm: first.clone() }, &[x])?;
        let y = b.op(op.clone(), &[x])?;
        b.op(Transpose { perm: last.clone() }, &[y])
    })
}

impl QLinearAveragePool {
    fn float(&self) -> AveragePool {
        let QLinearAveragePool {
            auto_pad,
            ceil_mode,
            channels_last: _,
            count_include_pad,
            dilations,
            kernel_shape,
            pads,
            strides,
        } = self.clone();
        AveragePool { auto_pad, ceil_mode, count_include_pad, dilations, kernel_shape, pads, strides }
    }
}

impl OpDef for QLinearAveragePool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        infer_pool(cx, self.float(), self.channels_last != 0)
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        pool(cx, self.float(), self.channels_last != 0)
    }
}

impl OpDef for QLinearGlobalAveragePool {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        infer_pool(cx, GlobalAveragePool {}, self.channels_last != 0)
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        pool(cx, GlobalAveragePool {}, self.channels_last != 0)
    }
}

impl QLinearConcat {
    /// The positions of the joined operands; each is followed by its scale and zero point.
    fn parts(&self, cx: &Ctx) -> Result<Vec<usize>, Fault> {
        match cx.inputs.len() {
            n if n >= 5 && (n - 2).is_multiple_of(3) => Ok((2..n).step_by(3).collect()),
            n => Err(fault!("{n} operands: after scale and zero point of the result come triples of data, scale, zero point")),
        }
    }
}

impl OpDef for QLinearConcat {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let parts = self.parts(cx)?;
        let dims = parts.iter().map(|&i| cx.dims(i)).collect::<Result<Vec<_>, _>>()?;
        let dims = float_dims(Concat { axis: self.axis }, &dims)?;
        let scales: Vec<usize> = [0].into_iter().chain(parts.iter().map(|i| i + 1)).collect();
        quantised(cx, parts[0], &scales, dims)
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (parts, axis, dtype) = (self.parts(cx)?, self.axis, cx.dtype(2)?);
        Ok(Meaning::decompose(move |b, inputs| {
            let floats = parts.iter().map(|&i| dequantise(b, inputs, i)).collect::<Result<Vec<_>, _>>()?;
            let v = b.op(Concat { axis }, &floats)?;
            quantise(b, inputs, v, 0, dtype)
        }))
    }
}
