//! Losses.

use super::common::*;
use super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Binary as B, Scalar};

gaps! {}

/// Checks scores `[n, c, d...]` (operand 0), targets `[n, d...]` (1) and weights `[c]` (2); gives the loss's dims.
fn loss_dims(cx: &Ctx, reduction: &str) -> Result<Vec<Expr>, Fault> {
    let (x, target) = (accept(cx, 0, Accept::Float)?, accept(cx, 1, Accept::Int)?);
    if x.rank() < 2 || target.rank() + 1 != x.rank() {
        return Err(fault!("scores {x} and targets {target} do not fit: a target for each row of classes is needed"));
    }
    for (i, &d) in target.dims.iter().enumerate() {
        expect_dim("a dim of the targets", d, x.dims[if i == 0 { 0 } else { i + 1 }])?;
    }
    if cx.has(2) {
        expect_rank(cx, 2, 1)?;
        expect_dim("the number of weights", cx.dims(2)?[0], x.dims[1])?;
    }
    match reduction {
        "none" => Ok(target.dims.clone()),
        "mean" | "sum" => Ok(vec![]),
        r => Err(fault!("attribute 'reduction' is '{r}'; none, mean or sum is needed")),
    }
}

impl OpDef for NegativeLogLikelihoodLoss {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dims = loss_dims(cx, &self.reduction)?;
        Ok(vec![Fact::tensor(cx.dtype(0)?, dims)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, target, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let (wide, n) = (x.dtype.accumulator(), cx.inputs.len() as u32);
        // Class and weight (0 where ignored) of the sample at `o`.
        let sample = |o: &[Expr]| {
            let class = Scalar::read_at(target.dtype, 1, o).cast(DType::I64);
            let counts = self.ignore_index.map_or(Scalar::always(), |i| bin(B::Ne, class, Scalar::index(i)));
            // What is ignored need not be a class; anything else outside of them is an error.
            let class = Scalar::select(counts, class, Scalar::index(0));
            let weight = match cx.dtype(2) {
                Ok(d) => Scalar::read(d, 2, [class]).cast(wide),
                Err(_) => Scalar::number(wide, 1.0),
            };
            (class, Scalar::select(counts, weight, num(weight, 0.0)))
        };
        let loss = |o: &[Expr]| {
            let (class, weight) = sample(o);
            let at = [Scalar::index(o[0]), class].into_iter().chain(o[1..].iter().map(|&e| Scalar::index(e)));
            let score = Scalar::read(x.dtype, 0, at).cast(wide);
            // Not a product where ignored: the score may be infinite.
            Scalar::select(weight.eq_to(num(weight, 0.0)), num(weight, 0.0), -(score * weight))
        };
        if self.reduction == "none" {
            return Ok(Meaning::one(n as usize, Step::Compute(Compute::map(&out.dims, |o| loss(o).cast(out.dtype)))));
        }
        let total = |dtype: DType, body: &dyn Fn(&[Expr]) -> Scalar| {
            Compute::reduce(&[], &target.dims, Reducer::Sum, |_, r| body(r), |_, acc| acc.cast(dtype))
        };
        if self.reduction == "sum" {
            return Ok(Meaning::one(n as usize, Step::Compute(total(out.dtype, &loss))));
        }
        let mean = Compute::map(&[], |_| {
            (Scalar::read_at(wide, n as usize, &[]) / Scalar::read_at(wide, n as usize + 1, &[])).cast(out.dtype)
        });
        let steps = [total(wide, &loss), total(wide, &|o| sample(o).1), mean].map(Step::Compute).to_vec();
        Ok(Meaning::Steps { steps, outputs: vec![n + 2] })
    }
}

impl OpDef for SoftmaxCrossEntropyLoss {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dims = loss_dims(cx, &self.reduction)?;
        let x = cx.tensor(0)?;
        Ok(vec![Fact::tensor(x.dtype, dims), Fact::of(x.clone())])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let loss = NegativeLogLikelihoodLoss { ignore_index: self.ignore_index, reduction: self.reduction.clone() };
        Ok(Meaning::decompose(move |b, v| {
            let log = b.op(LogSoftmax { axis: 1 }, &[v[0].expect("arity")])?;
            let operands: Vec<Option<Value>> = [Some(log)].into_iter().chain(v[1..].iter().copied()).collect();
            let loss = b.node(loss.clone(), &operands, vec![], 1)?[0];
            Ok(vec![loss, log])
        }))
    }
}
