//! Softmax written out.

use crate::rewrite::{Replacement, Site};
use infc_ir::Op;
use infc_ir::op::Softmax;

/// e / sum(e) with e = exp(x - max(x)), all along one axis: Softmax. (Without the maximum it is another function where e^x overflows.)
pub(super) fn rule(site: &mut Site) -> Replacement {
    let Some((op, x, nodes)) = find(site) else { return Ok(None) };
    nodes.into_iter().for_each(|n| site.absorb(n));
    site.replace(op, &[x])
}

fn find(site: &Site) -> Option<(Softmax, infc_ir::Value, Vec<infc_ir::Node>)> {
    let Op::Div(_) = site.op() else { return None };
    let (e, total) = (site.input(0)?, site.input(1)?);
    let (sum, data) = site.inner(total)?;
    let Op::ReduceSum(op) = &data.op else { return None };
    let axes = site.reduced(sum, op.keepdims)?;
    let exp = site.producer(e).filter(|_| site.uses(e) == 2 && data.operand(0) == Some(e))?;
    let Op::Exp(_) = site.graph.node(exp).op else { return None };
    let (sub, data) = site.inner(site.graph.node(exp).operand(0)?)?;
    let Op::Sub(_) = data.op else { return None };
    let x = data.operand(0)?;
    let (max, data) = site.inner(data.operand(1)?)?;
    let Op::ReduceMax(op) = &data.op else { return None };
    let same = data.operand(0) == Some(x) && site.reduced(max, op.keepdims)? == axes && axes.len() == 1;
    same.then(|| (Softmax { axis: axes[0] as i64 }, x, vec![sum, exp, sub, max]))
}
