//! Axes that lie behind one another in every operand become one axis, so that vectors do not stop at the end of a short one.

use super::Operand;
use infc_ir::Expr;
use infc_ir::compute::{Compute, Reduction, Step};
use infc_ir::expr::Node;
use infc_ir::scalar::{Kind, Scalar};
use std::collections::HashMap;

/// Merges pairs of output axes until none is left that can be merged.
pub fn collapse(mut c: Compute, mut operands: Vec<Operand>) -> (Compute, Vec<Operand>) {
    while let Some(next) = once(&c, &operands) {
        (c, operands) = next;
    }
    (c, operands)
}

fn once(c: &Compute, operands: &[Operand]) -> Option<(Compute, Vec<Operand>)> {
    let out = operands.last()?;
    let rank = c.dims.len();
    for outer in 0..rank {
        for inner in 0..rank {
            let adjacent = outer != inner
                && !c.dims[outer].is(1)
                && !c.dims[inner].is(1)
                && out.shift[outer] == 0
                && out.shift[inner] == 0
                && out.buffer.dims[inner] == c.dims[inner]
                && out.buffer.strides[outer] == out.buffer.strides[inner] * c.dims[inner];
            if adjacent && let Some(places) = agree(c, operands, outer as u32, inner as u32) {
                return Some(merge(c, operands, outer, inner, &places));
            }
        }
    }
    None
}

/// For each source that uses the axes: at which dims. `None` if one of them uses them in another way.
fn agree(c: &Compute, operands: &[Operand], outer: u32, inner: u32) -> Option<HashMap<u32, (usize, usize)>> {
    let mut places: HashMap<u32, Option<(usize, usize)>> = HashMap::new();
    let mut ok = true;
    let uses = |s: Scalar| s.as_index().is_some_and(|e| e.uses_var(outer) || e.uses_var(inner));
    // Index expressions may stand in reads only; every mention is counted against those that reads explain.
    for s in Step::Compute(c.clone()).scalars() {
        let (mut mentions, mut explained) = (std::collections::HashSet::new(), std::collections::HashSet::new());
        let mut others: Vec<Scalar> = vec![s];
        s.visit(&mut |n| {
            if uses(n) {
                mentions.insert(n);
            }
            let Kind::Read { source, index, guard } = n.kind() else {
                others.extend(n.operands());
                return;
            };
            others.extend(guard.iter().flat_map(|(c, f)| [*c, *f]));
            let place = match_axes(index, &operands[*source as usize], outer, inner, c.dims[inner as usize]);
            match place {
                Some(p) => {
                    ok &= places.get(source).is_none_or(|old| *old == p);
                    places.insert(*source, p);
                    index.iter().filter(|&&i| uses(i)).for_each(|&i| {
                        explained.insert(i);
                    });
                }
                None => ok = false,
            }
        });
        ok &= mentions == explained && !others.iter().any(|&o| uses(o));
    }
    ok.then(|| places.into_iter().filter_map(|(s, p)| Some((s, p?))).collect())
}

/// `Some(None)`: the axes are not used. `Some(Some((p, q)))`: dim `p` is the outer axis and dim `q` the inner one, densely.
#[allow(clippy::option_option)] // three outcomes: unused, used densely, used otherwise
fn match_axes(index: &[Scalar], o: &Operand, outer: u32, inner: u32, extent: Expr) -> Option<Option<(usize, usize)>> {
    let (mut p, mut q) = (None, None);
    for (k, i) in index.iter().enumerate() {
        // What data tells is made of reads, which are looked at by themselves.
        let Some(e) = i.as_index() else { continue };
        match e.node() {
            Node::Var(v) if *v == outer && p.is_none() => p = Some(k),
            Node::Var(v) if *v == inner && q.is_none() => q = Some(k),
            _ if e.uses_var(outer) || e.uses_var(inner) => return None,
            _ => {}
        }
    }
    match (p, q) {
        (None, None) => Some(None),
        (Some(p), Some(q)) => {
            let dense = o.buffer.dims[q] == extent
                && o.shift[p] == 0
                && o.shift[q] == 0
                && o.buffer.strides[p] == o.buffer.strides[q] * extent;
            dense.then_some(Some((p, q)))
        }
        _ => None,
    }
}

fn merge(
    c: &Compute,
    operands: &[Operand],
    outer: usize,
    inner: usize,
    places: &HashMap<u32, (usize, usize)>,
) -> (Compute, Vec<Operand>) {
    let rank = c.dims.len();
    // The merged axis takes the place of the inner one; the outer one goes.
    let map: Vec<Expr> = (0..rank + c.reduction.as_ref().map_or(0, |r| r.axes.len()))
        .map(|a| if a == outer { Expr::int(0) } else { Expr::var(a - usize::from(a > outer)) })
        .collect();
    let fix = |s: Scalar| {
        let s = s.rewrite(&mut |n| match n.kind() {
            Kind::Read { source, index, guard } => match places.get(source) {
                Some(&(p, _)) if index.len() == operands[*source as usize].buffer.dims.len() => {
                    let mut index = index.clone();
                    index.remove(p);
                    Scalar::raw(n.dtype(), Kind::Read { source: *source, index, guard: *guard })
                }
                _ => n,
            },
            _ => n,
        });
        s.subst(&map)
    };
    let mut dims = c.dims.clone();
    dims[inner] = dims[outer] * dims[inner];
    dims.remove(outer);
    let reduction = c.reduction.as_ref().map(|r| Reduction { axes: r.axes.clone(), kind: r.kind, body: fix(r.body) });
    let merged = Compute { dims, reduction, value: fix(c.value) };
    let last = operands.len() - 1;
    let operands = operands
        .iter()
        .enumerate()
        .map(|(k, o)| match places.get(&(k as u32)) {
            _ if k == last => joined(o, outer, inner),
            Some(&(p, q)) => joined(o, p, q),
            None => o.clone(),
        })
        .collect();
    (merged, operands)
}

/// The operand with dims `p` and `q` as one dim in the place of `q`.
fn joined(o: &Operand, p: usize, q: usize) -> Operand {
    let mut o = o.clone();
    let size = o.buffer.dims[p] * o.buffer.dims[q];
    o.buffer.dims[q] = size;
    o.buffer.dims.remove(p);
    o.buffer.strides.remove(p);
    o.shift.remove(p);
    if !o.zeros.is_empty() {
        o.zeros.remove(p);
    }
    if let Some(t) = &o.constant {
        // Dense and row-major, so neighbours in memory: a reshape, if the dims are neighbours too.
        o.constant = (p + 1 == q).then(|| {
            let dims: Vec<usize> = o.buffer.dims.iter().map(|d| d.known().unwrap_or(0) as usize).collect();
            t.reshape(dims)
        });
    }
    o
}
