//! Rows of the broadcast factor, copied: data that does not lie in groups of neighbours along k is brought into them by each task.
//!
//! Data that lies channels first has the neighbours of a row far apart. A row of the table that takes several products at once wants them side by
//! side, so a task copies its rows, `[k.., row, member]`: whole lines of the last m axis, along which the data lies side by side, or as
//! many rows as the task has where there is one axis only. What the last lines lack is copied from before them.

use super::{Factor, member};
use crate::build::{Cx, Operand, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::Brgemm;
use crate::rows;
use infc_ir::Expr;
use infc_ir::compute::Compute;
use infc_ir::scalar::Scalar;

/// Rows of the shortest line that is worth it.
const SHORTEST: i64 = 8;

/// What tasks of some rows copy: so many lines of so many rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines {
    width: i64,
    count: i64,
}

impl Lines {
    /// Those of a task of `mc` rows on axes of these extents; `None` if a line has more rows than the task.
    pub(super) fn of(extents: &[i64], mc: usize) -> Option<Lines> {
        let (&last, outer) = extents.split_last()?;
        let mc = mc as i64;
        if outer.is_empty() {
            return Some(Lines { width: mc.min(last), count: 1 });
        }
        let touched = if mc % last == 0 { mc / last } else { (mc + last - 2) / last + 1 };
        (last <= mc).then_some(Lines { width: last, count: touched.min(outer.iter().product()) })
    }

    /// Rows of all lines.
    pub(super) fn rows(self) -> i64 {
        self.width * self.count
    }
}

/// Extents of the m axes, if the rows of the factor can be copied: they lie side by side along the last one.
pub(super) fn extents(c: &Compute, a: &Factor, m: &[usize], operand: &Operand) -> Option<Vec<i64>> {
    let index: Vec<Scalar> = a.index.iter().map(|&e| Scalar::index(e)).collect();
    let extents: Vec<i64> = m.iter().map(|&axis| c.dims[axis].known()).collect::<Option<_>>()?;
    let (step, _) = operand.offset(&index)?.affine_in(*m.last()? as u32)?;
    (step == 1 && *extents.last()? >= SHORTEST).then_some(extents)
}

/// The rows of a task, in scratch.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    buffer: u32,
    group: i64,
    lines: Lines,
    /// The first row that is copied.
    first: Expr,
}

impl Rows {
    /// Scratch for the rows of a task of the plan that begins at row `block`.
    pub(super) fn new(cx: &mut Cx, (c, p, a): (&Compute, &Brgemm, &Factor), block: Expr) -> Rows {
        let group = rows::named(p.row).expect("a plan names a row of the table").depth;
        let extents: Vec<i64> = p.m.iter().map(|&x| c.dims[x].known().expect("checked by the plan")).collect();
        let lines = Lines::of(&extents, p.mc).expect("checked by the plan");
        let depth = &c.reduction.as_ref().expect("a contraction reduces").axes;
        let mut dims: Vec<usize> = depth.iter().map(|e| e.known().expect("checked by the plan") as usize).collect();
        if let Some(last) = dims.last_mut() {
            *last /= group;
        }
        dims.extend([lines.rows() as usize, group]);
        let all: i64 = extents.iter().product();
        let start = if extents.len() > 1 { block.div(Expr::int(lines.width)) * lines.width } else { block };
        let first = start.min(Expr::int(all - lines.rows()));
        Rows { buffer: cx.scratch("rows", a.read.dtype(), &dims, Space::Tile), group: group as i64, lines, first }
    }

    /// Copies them, in vectors of at most `lanes`; the last one of a line begins early. `axes` are the values of batch axes.
    pub(super) fn fill(&self, cx: &mut Cx, (c, p, a): (&Compute, &Brgemm, &Factor), axes: &[Expr], lanes: usize) -> Vec<Stmt> {
        let depth = &c.reduction.as_ref().expect("a contraction reduces").axes;
        let m_dims: Vec<Expr> = p.m.iter().map(|&x| c.dims[x]).collect();
        let k = cx.vars(&["k"], depth.len());
        let (line, block, lane) = (cx.var("line"), cx.var("block"), cx.var("lane"));
        let width = self.lines.width;
        let lanes = (1i64 << width.max(1).ilog2()).min(lanes as i64);
        let along = (block * lanes).min(Expr::int(width - lanes)) + lane;
        let start = self.first + line * width;
        let stores = (0..self.group).map(|j| {
            let mut at = axes.to_vec();
            for (&x, v) in p.m.iter().zip(Expr::delinearise(start, &m_dims)) {
                at[x] = v;
            }
            if let Some(&x) = p.m.last() {
                at[x] = if m_dims.len() > 1 { along } else { start + along };
            }
            at.extend(member(&k, self.group, j));
            let index: Vec<Scalar> = a.index.iter().map(|e| Scalar::index(e.subst(&at))).collect();
            let place: Vec<Expr> = k.iter().copied().chain([line * width + along, Expr::int(j)]).collect();
            cx.put(self.buffer, &place, Scalar::read(a.read.dtype(), a.source, index))
        });
        let mut nest = for_each(lane, Expr::int(lanes), LoopKind::Vector, stores.collect());
        nest = for_each(block, Expr::int((width + lanes - 1) / lanes), LoopKind::Serial, vec![nest]);
        nest = for_each(line, Expr::int(self.lines.count), LoopKind::Serial, vec![nest]);
        for (at, (&v, &e)) in k.iter().zip(depth).enumerate().rev() {
            let extent = if at + 1 == k.len() { e.div(Expr::int(self.group)) } else { e };
            nest = for_each(v, extent, LoopKind::Serial, vec![nest]);
        }
        vec![Stmt::Alloc { buffer: self.buffer }, nest]
    }

    /// Member `j` of the group at `k` of row `row`.
    pub(super) fn at(&self, cx: &Cx, k: &[Expr], row: Expr, j: i64) -> Scalar {
        cx.at(self.buffer, &k.iter().copied().chain([row - self.first, Expr::int(j)]).collect::<Vec<_>>())
    }
}
