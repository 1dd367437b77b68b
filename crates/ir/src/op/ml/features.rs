//! Features prepared for a model: selected, scaled, replaced, joined.

use super::*;

/// A numeric tensor in operand 0.
fn numeric<'a>(cx: &Ctx<'a>) -> Result<&'a TensorType, Fault> {
    match cx.tensor(0)? {
        t if t.dtype.is_float() || t.dtype.is_int() => Ok(t),
        t => Err(fault!("operand 0 is {t}, it must be numeric")),
    }
}

/// A step over the elements of operand 0: `value(element, axes)`.
fn each(cx: &Ctx, value: impl FnOnce(Scalar, &[Expr]) -> Scalar) -> Result<Meaning, Fault> {
    let t = cx.tensor(0)?;
    let c = Compute::map(&t.dims, |axes| value(Scalar::read_at(t.dtype, 0, axes), axes));
    Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
}

/// `list[last axis]` of a list that has one value, or one for each of the columns: a chain of choices.
fn per_column(list: &[Scalar], axes: &[Expr]) -> Scalar {
    let Some((&last, rest)) = list.split_last() else { return Scalar::float(DType::F32, 0.0) };
    let column = axes.last().copied().unwrap_or(Expr::int(0));
    rest.iter().enumerate().rfold(last, |other, (k, &v)| Scalar::select(Scalar::index(column).eq_to(Scalar::index(k)), v, other))
}

/// An error unless a list of `len` values fits the columns of operand 0.
fn check_columns(cx: &Ctx, len: usize, what: &str) -> Result<(), Fault> {
    let columns = numeric(cx)?.dims.last().and_then(|d| d.known());
    match columns {
        _ if len == 1 => Ok(()),
        Some(n) if n != len as i64 => Err(fault!("{what} has {len} values for {n} columns")),
        _ => Ok(()),
    }
}

impl OpDef for ArrayFeatureExtractor {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (x, y) = (cx.tensor(0)?, cx.tensor(1)?);
        if x.rank() == 0 || y.dtype != DType::I64 {
            return Err(fault!("data {x} and indices {y}: data of rank 1 or more and i64 indices are needed"));
        }
        let mut dims = if x.rank() == 1 { vec![Expr::int(1)] } else { x.dims[..x.rank() - 1].to_vec() };
        dims.push(Expr::product(y.dims.iter().copied()));
        Ok(vec![Fact::tensor(x.dtype, dims)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, y, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let c = Compute::map(&out.dims, |axes| {
            let (&column, outer) = axes.split_last().expect("rank 1 or more");
            let outer = if x.rank() == 1 { &[] } else { outer };
            let at = Scalar::read_at(DType::I64, 1, &Expr::delinearise(column, &y.dims));
            Scalar::read(x.dtype, 0, outer.iter().map(|&a| Scalar::index(a)).chain([at]))
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

impl OpDef for Binarizer {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        Ok(vec![Fact::of(numeric(cx)?.clone())])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        each(cx, |x, _| {
            let wide = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
            let above = Scalar::float(wide, self.threshold.into()).lt(x.cast(wide));
            Scalar::select(above, Scalar::number(x.dtype(), 1.0), Scalar::number(x.dtype(), 0.0))
        })
    }
}

impl OpDef for FeatureVectorizer {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        if self.inputdimensions.len() != cx.inputs.len() || self.inputdimensions.iter().any(|&n| n < 0) {
            return Err(fault!("inputdimensions {:?} do not fit {} operands", self.inputdimensions, cx.inputs.len()));
        }
        for i in 0..cx.inputs.len() {
            let t = cx.tensor(i)?;
            if !matches!(t.rank(), 1 | 2) || !(t.dtype.is_float() || t.dtype.is_int()) {
                return Err(fault!("operand {i} is {t}, it must be numeric and of rank 1 or 2"));
            }
        }
        let first = cx.dims(0)?;
        let rows = if first.len() == 2 { first[0] } else { Expr::int(1) };
        Ok(vec![Fact::tensor(DType::F32, [rows, self.inputdimensions.iter().sum::<i64>().into()])])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let out = Ctx::out(outs, 0)?;
        let operands = (0..cx.inputs.len()).map(|i| cx.tensor(i)).collect::<Result<Vec<_>, _>>()?;
        let c = Compute::map(&out.dims, |axes| {
            // Operands shorter than their place are filled up with 0, longer ones are cut.
            let (mut start, mut value) = (0, Scalar::float(DType::F32, 0.0));
            for (i, (t, &n)) in operands.iter().zip(&self.inputdimensions).enumerate() {
                let column = axes[1] - start;
                let width = t.dims[t.rank() - 1].min(n.into());
                let inside = Scalar::index(axes[1]).within(start, width + start);
                let index = if t.rank() == 2 { vec![axes[0], column] } else { vec![column] };
                let element = Scalar::read_if(i, index.into_iter().map(Scalar::index), inside, Scalar::number(t.dtype, 0.0));
                value = Scalar::select(inside, element.cast(DType::F32), value);
                start += n;
            }
            value
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

impl Imputer {
    /// What replaces missing values, as scalars of the operand's dtype.
    fn imputed(&self, dtype: DType) -> Vec<Scalar> {
        match dtype.is_float() {
            true => self.imputed_value_floats.iter().map(|&v| Scalar::float(dtype, v.into())).collect(),
            false => self.imputed_value_int64s.iter().map(|&v| Scalar::int(dtype, v)).collect(),
        }
    }
}

impl OpDef for Imputer {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = numeric(cx)?;
        let imputed = self.imputed(t.dtype);
        if imputed.is_empty() {
            return Err(fault!("no values are given to put in {t}"));
        }
        check_columns(cx, imputed.len(), "imputed_value")?;
        Ok(vec![Fact::of(t.clone())])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        each(cx, |x, axes| {
            let missing = match x.dtype().is_float() {
                true if self.replaced_value_float.is_nan() => Scalar::unary(Unary::IsNan, x),
                true => x.eq_to(Scalar::float(x.dtype(), self.replaced_value_float.into())),
                false => x.eq_to(Scalar::int(x.dtype(), self.replaced_value_int64)),
            };
            Scalar::select(missing, per_column(&self.imputed(x.dtype()), axes), x)
        })
    }
}

impl OpDef for Scaler {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        check_columns(cx, self.offset.len().max(1), "offset")?;
        check_columns(cx, self.scale.len().max(1), "scale")?;
        Ok(vec![Fact::tensor(DType::F32, cx.dims(0)?.to_vec())])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (offset, scale) = (self.offset.clone(), self.scale.clone());
        Ok(Meaning::decompose(move |b, inputs| {
            let x = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
            let mut x = cast(b, x, DType::F32)?;
            if !offset.is_empty() {
                let v = b.constant(Tensor::from_vec([offset.len()], offset.clone()));
                x = b.op(Sub {}, &[x, v])?;
            }
            if !scale.is_empty() {
                let v = b.constant(Tensor::from_vec([scale.len()], scale.clone()));
                x = b.op(Mul {}, &[x, v])?;
            }
            Ok(vec![x])
        }))
    }
}

impl OpDef for Normalizer {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = numeric(cx)?;
        if !matches!(&*self.norm, "MAX" | "L1" | "L2") || !matches!(t.rank(), 1 | 2) {
            return Err(fault!("norm '{}' of {t}: MAX, L1 or L2 of rank 1 or 2 is needed", self.norm));
        }
        Ok(vec![Fact::tensor(DType::F32, t.dims.clone())])
    }
    /// Rows with norm 0 stay as they are.
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let norm = self.norm.clone();
        Ok(Meaning::decompose(move |b, inputs| {
            let x = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
            let x = cast(b, x, DType::F32)?;
            let axes = b.ints(&[-1]);
            let (keepdims, noop_with_empty_axes) = (true, false);
            let size = match &*norm {
                "MAX" => b.op(ReduceMax { keepdims, noop_with_empty_axes }, &[x, axes])?,
                "L1" => b.op(ReduceL1 { keepdims, noop_with_empty_axes }, &[x, axes])?,
                _ => b.op(ReduceL2 { keepdims, noop_with_empty_axes }, &[x, axes])?,
            };
            let (zero, one) = (b.number(DType::F32, 0.0), b.number(DType::F32, 1.0));
            let none = b.op(Equal {}, &[size, zero])?;
            let divisor = b.op(Where {}, &[none, one, size])?;
            Ok(vec![b.op(Div {}, &[x, divisor])?])
        }))
    }
}

impl OneHotEncoder {
    /// The categories, of the operand's kind.
    fn categories(&self, text: bool) -> Result<Tensor, Fault> {
        let given = if text { self.cats_strings.len() } else { self.cats_int64s.len() };
        match (given, text) {
            (0, _) => Err(fault!("no categories of the operand's kind are given")),
            (_, true) => Ok(Labels::new(&[], &self.cats_strings)?.0),
            (_, false) => Ok(Tensor::from_ints(&self.cats_int64s)),
        }
    }
}

impl OpDef for OneHotEncoder {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        let categories = self.categories(t.dtype == DType::String)?;
        Ok(vec![Fact::tensor(DType::F32, t.dims.iter().copied().chain([categories.len().into()]))])
    }
    /// A value that is no category gives all zeros (an error by `zeros` = 0 is not raised).
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let t = cx.tensor(0)?;
        let (categories, text) = (self.categories(t.dtype == DType::String)?, t.dtype == DType::String);
        Ok(Meaning::decompose(move |b, inputs| {
            let x = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
            let x = if text { x } else { cast(b, x, DType::I64)? };
            let axes = b.ints(&[-1]);
            let x = b.op(Unsqueeze {}, &[x, axes])?;
            let categories = b.constant(categories.clone());
            let hot = b.op(Equal {}, &[x, categories])?;
            Ok(vec![cast(b, hot, DType::F32)?])
        }))
    }
}
