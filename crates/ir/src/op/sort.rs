//! Sorting and selection: results whose size depends on data, and those of which only the order does.

use super::common::*;
use super::*;

/// This family's operators without an implementation.
pub const GAPS: &[&str] = &[];

/// The k largest (or smallest) along `axis`; equal values in order of index, NaN above all numbers. Always sorted.
impl OpDef for TopK {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = accept(cx, 0, Accept::Number)?;
        let axis = normal_axis(self.axis, t.rank())?;
        if !cx.dtype(1)?.is_int() || cx.dims(1)?.iter().any(|d| d.known().is_some_and(|n| n != 1)) {
            return Err(fault!("k is {}, one integer is needed", cx.tensor(1)?));
        }
        let k = match cx.ints(1) {
            Ok(k) if k.len() == 1 => k[0],
            _ => new_dim("TopK", 0),
        };
        if less(t.dims[axis], k) == Some(true) || less(k, Expr::int(0)) == Some(true) {
            return Err(fault!("k is {k}, but axis {axis} of {t} has {} elements", t.dims[axis]));
        }
        let mut dims = t.dims.clone();
        dims[axis] = k;
        Ok(vec![Fact::tensor(t.dtype, dims.clone()), Fact::tensor(DType::I64, dims)])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let axis = normal_axis(self.axis, cx.tensor(0)?.rank())?;
        Ok(Meaning::Routine(Routine::TopK { axis, largest: self.largest != 0 }))
    }
}

/// `i64[rank, count]`; a scalar has no coordinates.
impl OpDef for NonZero {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let rank = cx.tensor(0)?.rank();
        Ok(vec![Fact::tensor(DType::I64, [Expr::from(rank), new_dim("NonZero", 0)])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Routine(Routine::NonZero))
    }
}

fn optional_axis(axis: Option<i64>, t: &TensorType) -> Result<Option<usize>, Fault> {
    axis.map(|a| normal_axis(a, t.rank())).transpose()
}

/// Dims with axis `axis` replaced, or one dim for the flattened tensor.
fn resized(t: &TensorType, axis: Option<usize>, d: Expr) -> Vec<Expr> {
    let Some(axis) = axis else { return vec![d] };
    let mut dims = t.dims.clone();
    dims[axis] = d;
    dims
}

/// Slices along `axis` (or elements) where the condition holds; it may be shorter than the axis.
impl OpDef for Compress {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        let axis = optional_axis(self.axis, t)?;
        let condition = accept(cx, 1, Accept::Bool)?;
        expect_rank(cx, 1, 1)?;
        let extent = axis.map_or_else(|| Expr::product(t.dims.iter().copied()), |a| t.dims[a]);
        if less(extent, condition.dims[0]) == Some(true) {
            return Err(fault!("the condition has {} elements, more than the {extent} it chooses from", condition.dims[0]));
        }
        let length = condition.dims[0];
        sizes::must_equal(length.max(extent), extent, &|| {
            format!("the condition ({length} elements) must not be longer than the {extent} it chooses from")
        });
        let count = cx.known(1).map_or_else(|| new_dim("Compress", 0), |c| Expr::from(c.to_ints().iter().sum::<i64>()));
        Ok(vec![Fact::tensor(t.dtype, resized(t, axis, count))])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Routine(Routine::Compress { axis: optional_axis(self.axis, cx.tensor(0)?)? }))
    }
}

/// Results: values, first index of each, index in the values of each element, counts.
impl OpDef for Unique {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        let axis = optional_axis(self.axis, t)?;
        let count = new_dim("Unique", 0);
        let extent = axis.map_or_else(|| Expr::product(t.dims.iter().copied()), |a| t.dims[a]);
        let list = |n: Expr| Fact::tensor(DType::I64, [n]);
        Ok(vec![Fact::tensor(t.dtype, resized(t, axis, count)), list(count), list(extent), list(count)])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let axis = optional_axis(self.axis, cx.tensor(0)?)?;
        Ok(Meaning::Routine(Routine::Unique { axis, sorted: self.sorted != 0 }))
    }
}

/// `i64[count, 3]`: batch, class and box of those kept.
impl OpDef for NonMaxSuppression {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        for (i, what) in ["boxes", "scores"].into_iter().enumerate() {
            if cx.dtype(i)? != DType::F32 || cx.tensor(i)?.rank() != 3 {
                return Err(fault!("{what} are {}, f32 of rank 3 is needed", cx.tensor(i)?));
            }
        }
        expect_dim("the last dim of boxes", cx.dims(0)?[2], Expr::int(4))?;
        expect_dim("the number of scores", cx.dims(1)?[2], cx.dims(0)?[1])?;
        for i in 2..cx.inputs.len() {
            let want = if i == 2 { DType::I64 } else { DType::F32 };
            if cx.has(i) && cx.dtype(i)? != want {
                return Err(fault!("operand {i} is {}, one {want} is needed", cx.tensor(i)?));
            }
        }
        Ok(vec![Fact::tensor(DType::I64, [new_dim("NonMaxSuppression", 0), Expr::int(3)])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Routine(Routine::NonMaxSuppression { center: self.center_point_box }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::eval_op;

    fn run(op: impl Into<Op>, inputs: &[Tensor], outputs: usize) -> Vec<Tensor> {
        eval_op(&op.into(), &inputs.iter().cloned().map(Some).collect::<Vec<_>>(), outputs).unwrap()
    }
    fn f32s<const R: usize>(dims: [usize; R], v: &[f32]) -> Tensor {
        Tensor::from_vec(dims, v.to_vec())
    }

    #[test]
    fn top_k_takes_the_lower_index_of_equal_values() {
        let x = f32s([2, 3], &[1., 3., 3., 2., 2., 1.]);
        let got = run(TopK { axis: 1, largest: 1, sorted: 1 }, &[x, Tensor::from_ints(&[2])], 2);
        assert_eq!(got, [f32s([2, 2], &[3., 3., 2., 2.]), Tensor::from_vec([2, 2], vec![1i64, 2, 0, 1])]);
    }

    #[test]
    fn selection_by_data() {
        let x = f32s([2, 2], &[1., 0., 0., 5.]);
        assert_eq!(run(NonZero {}, std::slice::from_ref(&x), 1), [Tensor::from_vec([2, 2], vec![0i64, 1, 0, 1])]);
        let mask = Tensor::from_bools([2], &[false, true]);
        assert_eq!(run(Compress { axis: Some(1) }, &[x.clone(), mask], 1), [f32s([2, 1], &[0., 5.])]);
        let got = run(Unique { axis: None, sorted: 0 }, &[x], 4);
        let ints = |v: &[i64]| Tensor::from_ints(v);
        assert_eq!(got, [f32s([3], &[1., 0., 5.]), ints(&[0, 1, 3]), ints(&[0, 1, 1, 2]), ints(&[1, 2, 1])]);
    }

    #[test]
    fn overlapping_boxes_go() {
        let boxes = f32s([1, 3, 4], &[0., 0., 1., 1., 0., 0.1, 1., 1.1, 0., 10., 1., 11.]);
        let scores = f32s([1, 1, 3], &[0.9, 0.95, 0.5]);
        let rest = [Tensor::from_ints(&[3]), f32s([1], &[0.5]), f32s([1], &[0.0])];
        let got = run(NonMaxSuppression { center_point_box: false }, &[&[boxes, scores][..], &rest].concat(), 1);
        assert_eq!(got, [Tensor::from_vec([2, 3], vec![0i64, 0, 1, 0, 0, 2])]);
    }
}
