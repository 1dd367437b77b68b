//! The builder for machines whose tasks are threads: any compute, one output element to a task, or a few neighbours. Reductions run
//! inside, in their own order.

use super::elementwise::element;
use super::{Cx, for_each};
use crate::loops::LoopKind;
use crate::plan::Threads;
use infc_ir::Expr;
use infc_ir::compute::Compute;

/// The flattened output axes are the tasks.
pub fn build(cx: &mut Cx, c: &Compute, plan: &Threads) {
    let mut dims: Vec<Expr> = plan.order.iter().map(|&a| c.dims[a]).collect();
    let wide = Expr::from(plan.wide);
    if let Some(last) = dims.last_mut().filter(|_| plan.wide > 1) {
        *last = last.div_exact(wide).expect("the plan has looked");
    }
    let chunk = cx.chunked(&dims, 1);
    let mut axes = vec![Expr::int(0); c.dims.len()];
    plan.order.iter().zip(&chunk.values).for_each(|(&a, &v)| axes[a] = v);
    let lane = cx.var("lane");
    if let Some(&last) = plan.order.last().filter(|_| plan.wide > 1) {
        axes[last] = axes[last] * wide + lane;
        let body = element(cx, c, &axes, plan.wide, lane);
        cx.body = chunk.wrap(vec![for_each(lane, wide, LoopKind::Vector, body)]);
    } else {
        let body = element(cx, c, &axes, 1, Expr::int(0));
        cx.body = chunk.wrap(body);
    }
}
