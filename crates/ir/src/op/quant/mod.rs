//! Quantised arithmetic: `real = (stored - zero point) * scale`.
//!
//! Contractions of quantised tensors stay integer: products of `x - zero point` accumulate exactly in i32, then one rounding,
//! `saturate(rint(f32(acc) * m) + zero point)` with `m = f32(sx sw / sy)`. Other operators on quantised tensors are the float
//! operator between a dequantisation and a quantisation.

use super::shape::read_scalar;
use super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Binary, Scalar, Unary};

mod integer;
mod linear;
mod microsoft;
mod qonnx;

gaps! {}

/// The element of operand `i` where operand `x` has its element `axes`: `i` is one value, one per index of `axis`, or one per
/// block of elements along `axis`.
fn per_block(cx: &Ctx, i: usize, x: &TensorType, axes: &[Expr], axis: i64, block: i64) -> Result<Scalar, Fault> {
    let t = cx.tensor(i)?;
    if t.dims.iter().all(|d| d.is(1)) && t.rank() <= 1 {
        return Ok(read_scalar(t, i));
    }
    let axis = normal_axis(axis, x.rank())?;
    let (extent, parts) = (x.dims[axis], t.dims[axis.min(t.rank() - 1)]);
    if t.rank() == 1 && block == 0 {
        return match extent.known().zip(parts.known()) {
            Some((a, b)) if a != b => Err(fault!("operand {i} is {t}, but axis {axis} of {x} has {a} elements")),
            _ => Ok(Scalar::read_at(t.dtype, i, &axes[axis..=axis])),
        };
    }
    if t.rank() != x.rank() {
        return Err(fault!("operand {i} is {t}: for {x} it must be one value, a vector, or of rank {}", x.rank()));
    }
    let block = match (block, extent.known(), parts.known()) {
        (1.., ..) => block,
        (_, Some(e), Some(p)) if p > 0 => (e + p - 1) / p,
        _ => return Err(fault!("operand {i} is {t}: blocks of {x} need attribute 'block_size'")),
    };
    let index: Vec<Expr> = axes.iter().enumerate().map(|(a, &v)| if a == axis { v.div(block.into()) } else { v }).collect();
    Ok(Scalar::read_at(t.dtype, i, &index))
}

/// Checks that operands `scale` and `zero` fit to operand `x`, an operand whose elements are scaled.
fn check_scales(cx: &Ctx, x: &TensorType, scale: usize, zero: usize, axis: i64, block: i64) -> Result<(), Fault> {
    let axes: Vec<Expr> = (0..x.rank()).map(Expr::var).collect();
    if !cx.dtype(scale)?.is_float() {
        return Err(fault!("the scale is {}, it must be a float", cx.tensor(scale)?));
    }
    per_block(cx, scale, x, &axes, axis, block)?;
    if cx.has(zero) {
        per_block(cx, zero, x, &axes, axis, block)?;
    }
    Ok(())
}

/// `v` rounded half to even, plus the zero point, limited to the range of the integer `dtype`.
fn saturated(v: Scalar, zero: Option<Scalar>, dtype: DType) -> Scalar {
    let wide = v.dtype();
    let (lo, hi) = dtype.int_range().unwrap_or((0, 0));
    let rounded = Scalar::unary(Unary::Round, v);
    let moved = zero.map_or(rounded, |z| rounded + z.cast(wide));
    moved.max(Scalar::float(wide, lo as f64)).min(Scalar::float(wide, hi as f64)).cast(dtype)
}

fn axes_of(t: &TensorType) -> Vec<Expr> {
    (0..t.rank()).map(Expr::var).collect()
}

/// One elementwise step over `dims`.
fn elementwise(cx: &Ctx, dims: &[Expr], value: Scalar) -> Meaning {
    Meaning::one(cx.inputs.len(), Step::Compute(Compute { dims: dims.to_vec(), reduction: None, value }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::eval_op;

    fn run(op: impl Into<Op>, inputs: &[Tensor]) -> Vec<Tensor> {
        let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
        eval_op(&op.into(), &inputs, 1).unwrap()
    }

    fn one<T: crate::tensor::Element>(v: T) -> Tensor {
        Tensor::from_vec([], vec![v])
    }

    #[test]
    fn quantise_rounds_to_even_and_saturates() {
        let x = Tensor::from_vec([6], vec![0.0f32, 1.0, 3.0, 1000.0, -254.0, -1000.0]);
        let op = QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 };
        let y = run(op, &[x, one(2.0f32), one(128u8)]);
        assert_eq!(y[0].to_vec::<u8>(), [128, 128, 130, 255, 1, 0]);
    }

    #[test]
    fn dequantise_by_block() {
        let x = Tensor::from_vec([2, 4], vec![1i8, 2, 3, 4, 5, 6, 7, 8]);
        let scale = Tensor::from_vec([2, 2], vec![1.0f32, 10.0, 100.0, 1000.0]);
        let y = run(DequantizeLinear { axis: 1, block_size: 2, output_dtype: 0 }, &[x, scale]);
        assert_eq!(y[0].to_vec::<f32>(), [1.0, 2.0, 30.0, 40.0, 500.0, 600.0, 7000.0, 8000.0]);
    }

    #[test]
    fn quantised_convolution_is_the_rounded_integer_one() {
        // 1x1x3 data, kernel 2 with one column of padding in front, where x - zero point is 0.
        let x = Tensor::from_vec([1, 1, 3], vec![12u8, 14, 16]);
        let w = Tensor::from_vec([1, 1, 2], vec![1i8, 3]);
        let conv = QLinearConv {
            auto_pad: "NOTSET".into(),
            dilations: vec![],
            group: 1,
            kernel_shape: vec![],
            pads: vec![1, 0],
            strides: vec![],
        };
        let s = |v: f32| one(v);
        let y = run(conv, &[x, s(0.5), one(10u8), w, s(1.0), one(0i8), s(2.0), one(1u8), Tensor::from_vec([1], vec![4i32])]);
        // (0 + 6, 2 + 12, 4 + 18) + 4, times 0.25, rounded to even, plus 1
        assert_eq!(y[0].to_vec::<u8>(), [3, 5, 7]);
    }

    #[test]
    fn range_of_the_data_sets_scale_and_zero_point() {
        let x = Tensor::from_vec([4], vec![-1.0f32, 0.0, 1.0, 4.1]);
        let y = eval_op(&DynamicQuantizeLinear {}.into(), &[Some(x)], 3).unwrap();
        assert_eq!(y[0].to_vec::<u8>(), [0, 50, 100, 255]);
        assert_eq!((y[1].to_vec::<f32>(), y[2].to_vec::<u8>()), (vec![5.1f32 / 255.0], vec![50]));
    }
}
