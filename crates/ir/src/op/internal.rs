//! Operators that only the importer and passes make.

use super::common::*;
use super::*;
use crate::compute::Compute;
use crate::scalar::Scalar;

/// This family's operators without an implementation.
pub const GAPS: &[&str] = &[];

/// The elements are known as expressions; the step chooses among them by index.
impl OpDef for DimVector {
    fn infer(&self, _: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dtype = dtype_attr("dtype", self.dtype)?;
        if !dtype.is_int() && dtype != DType::Bool {
            return Err(fault!("dims are integers, not {dtype}"));
        }
        if self.scalar && self.exprs.len() != 1 {
            return Err(fault!("a scalar has one element, not {}", self.exprs.len()));
        }
        let dims = if self.scalar { vec![] } else { vec![Expr::from(self.exprs.len())] };
        Ok(vec![Fact::tensor(dtype, dims).with_ints(Some(self.exprs.clone()))])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let out = Ctx::out(outs, 0)?;
        let compute = Compute::map(&out.dims, |axes| {
            let mut values = self.exprs.iter().map(|&e| Scalar::index(e)).enumerate();
            let first = values.next().map_or(Scalar::index(0), |(_, v)| v);
            let chosen = values.fold(first, |acc, (k, v)| Scalar::select(Scalar::index(axes[0]).eq_to(Scalar::index(k)), v, acc));
            chosen.cast(out.dtype)
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(compute)))
    }
}

impl OpDef for Expect {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = accept(cx, 1, Accept::Int)?;
        if !t.dims.iter().all(|d| d.is(1)) {
            return Err(fault!("operand 1 is {t}, one integer is needed"));
        }
        if let Some([e]) = cx.fact(1)?.ints.as_deref() {
            if e.known().is_some_and(|n| n != self.value) {
                return Err(fault!("{}", self.text));
            }
            sizes::must_equal(*e, self.value.into(), &|| self.text.clone());
        }
        Ok(vec![cx.fact(0)?.clone()])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Alias(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_expressions() {
        let op =
            |exprs: &[&str]| DimVector { exprs: exprs.iter().map(|s| s.parse().unwrap()).collect(), dtype: 7, scalar: false };
        let cx = Ctx { inputs: &[], regions: &[], outputs: 1 };
        assert_eq!(op(&["n", "2*n"]).infer(&cx).unwrap()[0].ints.as_ref().unwrap()[1].to_string(), "2*n");
        assert_eq!(crate::interp::eval_op(&op(&["3", "5", "7"]).into(), &[], 1).unwrap(), [Tensor::from_ints(&[3, 5, 7])]);
    }
}
