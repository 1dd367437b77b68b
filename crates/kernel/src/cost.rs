//! What a step costs: arithmetic and bytes. For people and for models of time.

use crate::build::{Operand, contract, sparse, winograd};
use crate::plan::Plan;
use crate::target::TargetDesc;
use infc_ir::Expr;
use infc_ir::compute::Step;
use infc_ir::scalar::{Kind, Scalar};

/// A step's arithmetic: operations on floats and integers other than index arithmetic, a multiply-add being two. Selects and casts are not counted.
pub fn operations(step: &Step) -> Expr {
    match step {
        Step::Compute(c) => {
            let points = Expr::product(c.dims.iter().copied());
            let reduced = c.reduction.as_ref().map_or(Expr::int(0), |r| {
                Expr::product(r.axes.iter().copied()) * Expr::int(arithmetic(r.body) + 1) // and the reducer
            });
            points * (reduced + Expr::int(arithmetic(c.value)))
        }
        Step::Scatter(s) => {
            let each = arithmetic(s.value) + i64::from(s.combine.is_some());
            Expr::product(s.updates.iter().copied()) * Expr::int(each)
        }
        Step::Prefix(p) => Expr::product(p.dims.iter().copied()) * Expr::int(arithmetic(p.body) + 1),
        // Each element is compared once at least.
        Step::Sort(s) => {
            let lines = s.dims.iter().enumerate().filter(|&(a, _)| a != s.axis).map(|(_, &d)| d);
            Expr::product(lines) * s.extent * Expr::int(arithmetic(s.key) + 1)
        }
        Step::Filter(f) => Expr::product(f.over.iter().copied()) * Expr::int(arithmetic(f.cond)),
        Step::Choice(c) => Expr::product(c.dims.iter().copied()) * Expr::int(arithmetic(c.cond) + arithmetic(c.clash)),
    }
}

/// Of a step's arithmetic, what its plan does: products with the border that tiles leave out, and those with weights that are 0 and not stored, are not
/// done. Products with zeros of a border that are computed count, rows that are computed twice do not.
pub fn done(operations: Expr, step: &Step, plan: &Plan, operands: &[Operand], target: &TargetDesc) -> Expr {
    let (Step::Compute(c), Some(all)) = (step, operations.known()) else { return operations };
    let Some(r) = &c.reduction else { return operations };
    let share = match plan {
        Plan::Brgemm(p) => contract::Frame::of(c, operands, target, Some(p)).map_or(1.0, |f| f.share(p.mr)),
        Plan::Winograd(p) => winograd::share(c, p),
        Plan::Sparse(p) => sparse::share(c, operands, p),
        _ => 1.0,
    };
    if share >= 1.0 {
        return operations;
    }
    let points = Expr::product(c.dims.iter().chain(&r.axes).copied());
    let products = points.known().map_or(0, |n| n * (arithmetic(r.body) + 1));
    Expr::int(all - (products as f64 * (1.0 - share)).round() as i64)
}

/// Operators in a scalar, common parts counted once.
fn arithmetic(s: Scalar) -> i64 {
    let (mut count, mut seen) = (0, std::collections::HashSet::new());
    tally(s, &mut seen, &mut count);
    count
}

fn tally(s: Scalar, seen: &mut std::collections::HashSet<usize>, count: &mut i64) {
    if s.as_index().is_some() || !seen.insert(s.id()) {
        return;
    }
    match s.kind() {
        Kind::Unary(..) | Kind::Binary(..) => *count += 1,
        Kind::Fma(..) => *count += 2,
        Kind::Read { guard, .. } => {
            if let Some((_, otherwise)) = guard {
                tally(*otherwise, seen, count);
            }
            return; // where it reads is index arithmetic
        }
        _ => {}
    }
    s.operands().into_iter().for_each(|o| tally(o, seen, count));
}

#[cfg(test)]
mod tests {
    use super::*;
    use infc_ir::DType;
    use infc_ir::compute::{Compute, Reducer, Reduction};

    #[test]
    fn a_product_of_matrices_is_two_operations_for_each_triple() {
        let (m, n, k) = (Expr::sym("m"), Expr::int(3), Expr::int(5));
        let read = |s, i: &[usize]| Scalar::read_at(DType::F32, s, &i.iter().map(|&v| Expr::var(v)).collect::<Vec<_>>());
        let body = read(0, &[0, 2]) * read(1, &[2, 1]);
        let reduction = Reduction { axes: vec![k], kind: Reducer::Sum, body };
        let value = Scalar::local(DType::F32, 0);
        let step = Step::Compute(Compute { dims: vec![m, n], reduction: Some(reduction), value });
        assert_eq!(operations(&step), m * Expr::int(30));
    }
}
