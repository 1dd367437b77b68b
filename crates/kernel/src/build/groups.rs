//! Grouped convolutions as products: the axis of output channels becomes one of groups and one of channels within a group.
//!
//! Data is read at `m div size`, which no product has. With `m = size * g + n` it is read at `g` and weights at both: a batch of products, one for each group. Groups
//! of few channels stay as they are: they would fill no vector.

use super::Operand;
use infc_ir::Expr;
use infc_ir::compute::{Compute, Reduction};
use infc_ir::expr::Node;
use infc_ir::scalar::{Kind, Scalar};

/// Least channels of a group: half a vector of 64 bytes.
const LEAST: i64 = 8;

/// The step with groups apart, if it has some.
pub fn apart(c: &Compute, operands: &[Operand]) -> Option<(Compute, Vec<Operand>)> {
    let r = c.reduction.as_ref()?;
    let (axis, size) = divided(r.body, c)?;
    let out = operands.last()?;
    if out.shift[axis] != 0 || out.buffer.dims[axis] != c.dims[axis] {
        return None;
    }
    let all = c.dims.len() + r.axes.len();
    let map: Vec<Expr> = (0..all)
        .map(|a| match a {
            a if a < axis => Expr::var(a),
            a if a == axis => Expr::var(a) * size + Expr::var(a + 1),
            a => Expr::var(a + 1),
        })
        .collect();
    let mut dims = c.dims.clone();
    dims[axis] = dims[axis].div(Expr::int(size));
    dims.insert(axis + 1, Expr::int(size));
    let reduction = Some(Reduction { axes: r.axes.clone(), kind: r.kind, body: r.body.subst(&map) });
    let step = Compute { dims: dims.clone(), reduction, value: c.value.subst(&map) }.simplify();
    let mut operands = operands.to_vec();
    let out = operands.last_mut()?;
    let stride = out.buffer.strides[axis];
    out.buffer.dims.splice(axis..=axis, [dims[axis], dims[axis + 1]]);
    out.buffer.strides.splice(axis..=axis, [stride * size, stride]);
    out.shift.insert(axis, 0);
    if !out.zeros.is_empty() {
        out.zeros.insert(axis, 0);
    }
    (divided(step.reduction.as_ref()?.body, &step).is_none()).then_some((step, operands))
}

/// The output axis that is divided where something is read, and by what.
fn divided(body: Scalar, c: &Compute) -> Option<(usize, i64)> {
    let mut found = None;
    body.visit(&mut |s| {
        let Kind::Read { index, .. } = s.kind() else { return };
        for e in index.iter().filter_map(|i| i.as_index()) {
            let terms: Vec<Expr> = match e.node() {
                Node::Sum { terms, .. } => terms.iter().map(|t| t.0).collect(),
                _ => vec![e],
            };
            for term in terms {
                if let Node::Div(of, by) = term.node()
                    && let (Node::Var(axis), Some(size)) = (of.node(), by.known())
                    && let Some(all) = c.dims.get(*axis as usize).and_then(|d| d.known())
                    && (LEAST..all).contains(&size)
                    && all % size == 0
                {
                    found = Some((*axis as usize, size));
                }
            }
        }
    });
    found
}
