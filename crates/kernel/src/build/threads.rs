//! The builder for machines whose tasks are threads: any compute, one output element to a task. Reductions run inside, in their own
//! order.

use super::Cx;
use super::elementwise::element;
use crate::plan::Threads;
use infc_ir::Expr;
use infc_ir::compute::Compute;

/// The flattened output axes are the tasks.
pub fn build(cx: &mut Cx, c: &Compute, plan: &Threads) {
    let dims: Vec<Expr> = plan.order.iter().map(|&a| c.dims[a]).collect();
    let chunk = cx.chunked(&dims, 1);
    let mut axes = vec![Expr::int(0); c.dims.len()];
    plan.order.iter().zip(&chunk.values).for_each(|(&a, &v)| axes[a] = v);
    let body = element(cx, c, &axes, 1, Expr::int(0));
    cx.body = chunk.wrap(body);
}
