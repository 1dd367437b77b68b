//! The border builder: writes the fill value around a tensor that keeps a border for its readers.

use super::{Nest, Operand, for_each};
use crate::loops::{Access, Axes, Kernel, LoopKind, Stmt};
use infc_ir::Expr;
use infc_ir::expr::Node;
use infc_ir::scalar::Scalar;

/// A row in vectors: where each piece begins, how many vectors it has, and how wide they are; whole ones, then smaller powers of two.
fn pieces(row: i64, lanes: i64) -> Vec<(i64, i64, i64)> {
    let (mut first, mut wide, mut out) = (0, lanes.max(1), vec![]);
    while first < row {
        let count = (row - first) / wide;
        if count > 0 {
            out.push((first, count, wide));
            first += count * wide;
        }
        wide = (wide / 2).max(1);
    }
    out
}

/// For each axis two slabs, before and after the inside; slabs of later axes stay inside those of earlier ones. Neighbours in memory are
/// written in vectors of up to `lanes`. A task is a value of the outermost axis, as it is for what reads and writes the inside: so each thread
/// writes the border of its own rows.
pub fn build(name: &str, out: &Operand, halo: &[(i64, i64)], fill: Scalar, lanes: usize) -> Nest {
    let mut buffer = out.buffer.clone();
    buffer.name = "out".into();
    buffer.access = Access::Write;
    let dims = buffer.dims.clone();
    let mut vars = 1;
    let mut body = vec![];
    // Loops run in the order of falling strides, so that the innermost one is contiguous.
    let mut order: Vec<usize> = (0..dims.len()).collect();
    order.sort_by_key(|&a| std::cmp::Reverse(buffer.strides[a].known().unwrap_or(i64::MAX)));
    let tasked = order.iter().copied().find(|&a| !dims[a].is(1));
    let task = Expr::var(0usize);
    for axis in 0..dims.len() {
        let (before, after) = halo[axis];
        let inside = dims[axis] - before - after;
        for (start, extent) in [(Expr::int(0), before), (inside + before, after)] {
            if extent == 0 {
                continue;
            }
            // Axes already done are limited to their inside.
            let spans: Vec<(Expr, Expr)> = (0..dims.len())
                .map(|a| match a {
                    _ if a == axis => (start, Expr::int(extent)),
                    _ if a < axis => (Expr::int(halo[a].0), dims[a] - halo[a].0 - halo[a].1),
                    _ => (Expr::int(0), dims[a]),
                })
                .collect();
            let mut axes: Vec<Expr> = (0..dims.len()).map(|a| Expr::var(vars + a)).collect();
            vars += dims.len();
            if let Some(t) = tasked {
                axes[t] = task - spans[t].0;
            }
            let inner = order.last().copied().filter(|&a| buffer.strides[a].is(1));
            let row = inner.filter(|&a| Some(a) != tasked).and_then(|a| spans[a].1.known());
            let pieces = match row {
                Some(row) => pieces(row, lanes as i64),
                None => vec![],
            };
            let mut nest = vec![];
            for &(first, count, wide) in &pieces {
                let (block, lane) = (Expr::var(vars), Expr::var(vars + 1));
                vars += 2;
                let at = block * wide + lane + first;
                let place = |a: usize| if Some(a) == inner { at + spans[a].0 } else { axes[a] + spans[a].0 };
                let index = (0..dims.len()).map(|a| Scalar::index(place(a))).collect();
                let store = vec![Stmt::Store { buffer: 0, index, value: fill }];
                let kind = if wide > 1 { LoopKind::Vector } else { LoopKind::Serial };
                nest.push(for_each(
                    block,
                    Expr::int(count),
                    LoopKind::Serial,
                    vec![for_each(lane, Expr::int(wide), kind, store)],
                ));
            }
            let mut outer = order.clone();
            if row.is_some() {
                outer.pop();
            } else {
                let index = axes.iter().zip(&spans).map(|(&v, &(s, _))| Scalar::index(v + s)).collect();
                nest.push(Stmt::Store { buffer: 0, index, value: fill });
            }
            for &a in outer.iter().rev().filter(|&&a| Some(a) != tasked) {
                nest = vec![for_each(axes[a], spans[a].1, LoopKind::Serial, nest)];
            }
            if let Some((first, extent)) =
                tasked.map(|t| spans[t]).filter(|s| !(s.0.is(0) && Some(s.1) == tasked.map(|t| dims[t])))
            {
                let cond = Scalar::index(task).within(first, first + extent);
                nest = vec![Stmt::If { cond, then: nest, otherwise: vec![] }];
            }
            body.extend(nest);
        }
    }
    let mut symbols = std::collections::BTreeSet::new();
    dims.iter().for_each(|d| {
        d.leaves(&mut |l| {
            if let Node::Sym(s) = l.node() {
                symbols.insert(*s);
            }
        });
    });
    let symbols = symbols.into_iter().collect();
    let kernel = Kernel {
        name: name.to_owned(),
        buffers: vec![buffer],
        symbols,
        tasks: tasked.map_or(Expr::int(1), |t| dims[t]),
        task: 0,
        body,
        axes: Axes::default(),
    };
    Nest { kernel, sources: vec![], packed: vec![] }
}
