//! To quantised values and back.

use super::super::shape::attr_dtype;
use super::*;

impl DequantizeLinear {
    fn out_dtype(&self, cx: &Ctx) -> Result<DType, Fault> {
        match self.output_dtype {
            0 => cx.dtype(1),
            number => attr_dtype(number, "output_dtype"),
        }
    }
}

impl OpDef for DequantizeLinear {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = cx.tensor(0)?;
        check_scales(cx, x, 1, 2, self.axis, self.block_size)?;
        if cx.has(2) && cx.dtype(2)? != x.dtype {
            return Err(fault!("the zero point is {}, the data {x}: their dtypes must be equal", cx.tensor(2)?));
        }
        let dtype = self.out_dtype(cx)?;
        if dtype.is_float() { Ok(vec![Fact::tensor(dtype, x.dims.clone())]) } else { Err(fault!("cannot dequantise to {dtype}")) }
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let axes = axes_of(x);
        let wide = out.dtype.accumulator();
        let scale = per_block(cx, 1, x, &axes, self.axis, self.block_size)?;
        let stored = Scalar::read_at(x.dtype, 0, &axes);
        let difference = match cx.has(2) {
            false => stored,
            true => {
                let zero = per_block(cx, 2, x, &axes, self.axis, self.block_size)?;
                let exact = if x.dtype.is_float() { wide } else { DType::I32 };
                stored.cast(exact) - zero.cast(exact)
            }
        };
        Ok(elementwise(cx, &out.dims, (difference.cast(wide) * scale.cast(wide)).cast(out.dtype)))
    }
}

impl QuantizeLinear {
    fn out_dtype(&self, cx: &Ctx) -> Result<DType, Fault> {
        match (cx.has(2), self.output_dtype) {
            (true, _) => cx.dtype(2),
            (false, 0) => Ok(DType::U8),
            (false, number) => attr_dtype(number, "output_dtype"),
        }
    }
    /// The dtype to which the quotient `x / scale` is rounded.
    fn precision(&self, cx: &Ctx) -> Result<DType, Fault> {
        let dtype = if self.precision == 0 { cx.dtype(1)? } else { attr_dtype(self.precision, "precision")? };
        Ok(if matches!(dtype, DType::F16 | DType::BF16 | DType::F64) { dtype } else { DType::F32 })
    }
}

impl OpDef for QuantizeLinear {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = cx.tensor(0)?;
        check_scales(cx, x, 1, 2, self.axis, self.block_size)?;
        self.precision(cx)?;
        let dtype = self.out_dtype(cx)?;
        let small = dtype.bits() <= 16 && (dtype.is_int() || dtype.is_float());
        if small { Ok(vec![Fact::tensor(dtype, x.dims.clone())]) } else { Err(fault!("cannot quantise to {dtype}")) }
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let axes = axes_of(x);
        let precision = self.precision(cx)?;
        let wide = precision.accumulator();
        let scale = per_block(cx, 1, x, &axes, self.axis, self.block_size)?;
        let zero = cx.has(2).then(|| per_block(cx, 2, x, &axes, self.axis, self.block_size)).transpose()?;
        let quotient = (Scalar::read_at(x.dtype, 0, &axes).cast(wide) / scale.cast(wide)).cast(precision).cast(wide);
        let value = match out.dtype.is_float() {
            true => to_float8(zero.map_or(quotient, |z| quotient + z.cast(wide)), out.dtype, self.saturate != 0),
            false => saturated(quotient, zero, out.dtype),
        };
        Ok(elementwise(cx, &out.dims, value))
    }
}

/// Conversion to a small float; without `saturate`, what is too large becomes infinite or NaN.
fn to_float8(x: Scalar, dtype: DType, saturate: bool) -> Scalar {
    super::super::elementwise::convert(x, dtype, saturate, "up")
}

impl OpDef for DynamicQuantizeLinear {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = cx.tensor(0)?;
        if x.dtype != DType::F32 {
            return Err(fault!("operand 0 is {x}, it must be f32"));
        }
        Ok(vec![Fact::tensor(DType::U8, x.dims.clone()), Fact::tensor(DType::F32, []), Fact::tensor(DType::U8, [])])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let x = cx.tensor(0)?;
        let f = |v: f64| Scalar::float(DType::F32, v);
        let element = |axes: &[Expr]| Scalar::read_at(DType::F32, 0, axes);
        let [low, high, scale] = [1, 2, 3].map(|step| Scalar::read(DType::F32, step, []));
        let zero = Scalar::read(DType::U8, 4, []);
        // The range always includes 0.
        let extreme = |kind| {
            Compute::reduce(
                &[],
                &x.dims,
                kind,
                |_, axes| element(axes),
                |_, acc| match kind {
                    Reducer::Min => acc.min(f(0.0)),
                    _ => acc.max(f(0.0)),
                },
            )
        };
        let width = (high - low) / f(255.0);
        let steps = [
            extreme(Reducer::Min),
            extreme(Reducer::Max),
            Compute::map(&[], |_| Scalar::select(width.eq_to(f(0.0)), f(1.0), width)),
            Compute::map(&[], |_| saturated(f(0.0) - low / scale, None, DType::U8)),
            Compute::map(&x.dims, |axes| saturated(element(axes) / scale, Some(zero), DType::U8)),
        ];
        Ok(Meaning::Steps { steps: steps.map(Step::Compute).into(), outputs: vec![5, 3, 4] })
    }
}
