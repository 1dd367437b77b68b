//! The border builder: writes the fill value around a tensor that keeps a border for its readers.

use super::{Nest, Operand, for_each};
use crate::loops::{Access, Axes, Boxes, Buffer, Kernel, LoopKind, Stmt};
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
    let tasks = tasked.map_or(Expr::int(1), |t| dims[t]);
    nest(name, buffer, tasks, body)
}

/// The same for a machine whose tasks are threads: each writes one element of the border, in the order of memory in each axis' slabs.
pub fn build_threads(name: &str, out: &Operand, halo: &[(i64, i64)], fill: Scalar) -> Nest {
    let mut buffer = out.buffer.clone();
    buffer.name = "out".into();
    buffer.access = Access::Write;
    let dims = buffer.dims.clone();
    let mut order: Vec<usize> = (0..dims.len()).collect();
    order.sort_by_key(|&a| std::cmp::Reverse(buffer.strides[a].known().unwrap_or(i64::MAX)));
    let task = Expr::var(0usize);
    let (mut tasks, mut body) = (Expr::int(0), vec![]);
    let inside = |a: usize| dims[a] - halo[a].0 - halo[a].1;
    for axis in (0..dims.len()).filter(|&a| halo[a] != (0, 0)) {
        // Both slabs of the axis as one; those of later axes stay inside those of earlier ones.
        let span = |a: usize| match a {
            _ if a == axis => Expr::int(halo[a].0 + halo[a].1),
            _ if a < axis => inside(a),
            _ => dims[a],
        };
        let spans: Vec<Expr> = order.iter().map(|&a| span(a)).collect();
        let size = Expr::product(spans.iter().copied());
        // Where the task is not of this axis, the place is not used.
        let own = if tasks.is(0) { task } else { (task - tasks).max(Expr::int(0)) };
        let mut at = vec![Expr::int(0); dims.len()];
        for (&a, place) in order.iter().zip(Expr::delinearise(own, &spans)) {
            let before = halo[a].0;
            at[a] = match a {
                _ if a == axis && before == 0 => place + inside(a),
                _ if a == axis => place + place.div(Expr::int(before)).min(Expr::int(1)) * inside(a),
                _ if a < axis => place + before,
                _ => place,
            };
        }
        let index = at.iter().map(|&e| Scalar::index(e)).collect();
        let cond = Scalar::index(task).within(tasks, tasks + size);
        body.push(Stmt::If { cond, then: vec![Stmt::Store { buffer: 0, index, value: fill }], otherwise: vec![] });
        tasks = tasks + size;
    }
    nest(name, buffer, tasks, body)
}

fn nest(name: &str, buffer: Buffer, tasks: Expr, body: Vec<Stmt>) -> Nest {
    let mut symbols = std::collections::BTreeSet::new();
    buffer.dims.iter().for_each(|d| {
        d.leaves(&mut |l| {
            if let Node::Sym(s) = l.node() {
                symbols.insert(*s);
            }
        });
    });
    let symbols = symbols.into_iter().collect();
    let name = name.to_owned();
    let kernel =
        Kernel { name, buffers: vec![buffer], symbols, tasks, task: 0, body, axes: Axes::default(), boxes: Boxes::default() };
    Nest { kernel, sources: vec![], packed: vec![] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::{Space, interp};
    use infc_ir::DType;

    #[test]
    fn threads_write_the_same_border() {
        let cases: [(&[i64], &[usize], &[(i64, i64)]); 4] = [
            (&[1, 5, 6, 7], &[0, 1, 2, 3], &[(0, 0), (0, 0), (1, 1), (1, 2)]),
            (&[2, 3, 6, 5], &[0, 2, 3, 1], &[(0, 0), (0, 0), (2, 1), (0, 1)]),
            (&[1, 1, 4], &[0, 1, 2], &[(0, 0), (0, 0), (1, 1)]),
            (&[3, 4], &[1, 0], &[(1, 0), (0, 2)]),
        ];
        for (dims, order, halo) in cases {
            let dims: Vec<Expr> = dims.iter().map(|&d| Expr::int(d)).collect();
            let strides = Buffer::strides_in_order(&dims, order);
            let buffer =
                Buffer { name: String::new(), dtype: DType::F32, dims, strides, space: Space::Global, access: Access::Write };
            let out = Operand {
                buffer,
                shift: halo.iter().map(|h| h.0).collect(),
                zeros: vec![],
                constant: None,
                tf32: false,
                narrow: None,
            };
            let size = Expr::product(out.buffer.dims.iter().copied()).known().expect("sizes are known") as usize * 4;
            let fill = Scalar::float(DType::F32, 0.5);
            let [rows, threads] = [build("b", &out, halo, fill, 4), build_threads("b", &out, halo, fill)].map(|nest| {
                let mut memory = vec![vec![0xa5u8; size]];
                interp::run(&nest.kernel, &[], &mut memory).unwrap_or_else(|e| panic!("{e:?}"));
                memory.remove(0)
            });
            assert_eq!(rows, threads, "{halo:?}");
            assert!(rows.iter().any(|&b| b != 0xa5) && rows.contains(&0xa5), "{halo:?}");
        }
    }
}
