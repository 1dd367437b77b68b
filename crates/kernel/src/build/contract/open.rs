//! Plans beside that of a product whose rows a run counts: for so few that they make one tile, and for what is left of them behind the last whole one.

use super::taps::in_line;
use crate::build::{Cx, stored};
use crate::plan::{Brgemm, Panels};
use crate::rows;
use crate::target::TargetDesc;
use infc_ir::Expr;
use infc_ir::compute::Compute;

/// Plans for so few rows that they make one tile, the one with most rows first, where the number of rows is open and weights are narrow: the table is that of
/// the panels, and widened in the loop over k. Where all rows do so, for a single row.
pub(super) fn few_rows(p: &Brgemm, rows: Expr, target: &TargetDesc) -> Vec<Brgemm> {
    let Some(stored) = p.stored.filter(|_| rows.known().is_none()) else { return vec![] };
    let ([of_vector, others], vectors) = (stored.registers(), p.nr.div_ceil(target.lanes(4).max(1)));
    let fits = |mr: &usize| (mr + of_vector) * vectors + others <= target.vector_registers as usize;
    let most = (2..=stored::FEW).rev().find(|mr| fits(mr) && p.panels == Panels::Scratch);
    let with = |mr: usize| Brgemm { mr, mc: mr, panels: Panels::Packed, along: None, ..p.clone() };
    let half = most.map(|mr| mr / 2).filter(|&mr| mr > 1);
    most.into_iter().chain(half).chain([1]).map(with).collect()
}

/// Rows of a tile that are so few that tiles for what is left of them would gain little.
const MOST_LEFT: usize = 4;

/// Plans for the rows behind the last whole tile.
pub(super) struct Rest {
    /// Low tiles, which are as low as keeps the units busy.
    pub(super) low: Brgemm,
    /// A tile twice as high, where two low ones would read a panel that L2 does not hold twice; then one of each is enough.
    pub(super) high: Option<Brgemm>,
}

/// These plans, where a run tells how many rows there are. `None` where no rows are left.
pub(super) fn rest_of_rows(cx: &Cx, c: &Compute, p: &Brgemm, m_dims: &[Expr], panels: Option<i64>) -> Option<Rest> {
    let row = rows::named(p.row).expect("a plan names a row of the table");
    let lanes = row.lanes(cx.target, c.reduction.as_ref()?.body.dtype().bytes()).clamp(1, p.nr);
    let vectors = p.nr.div_ceil(lanes) as f64;
    let line = m_dims.last().and_then(|d| d.known());
    let open = m_dims.iter().any(|d| d.known().is_none()) && !in_line(p.mr as i64, line);
    let plain = p.kc.is_none() && p.along.is_none() && !p.copied && cx.target.block_threads == 0;
    if !open || !plain || p.mr <= MOST_LEFT {
        return None;
    }
    let busy = ((row.latency * row.per_cycle / vectors).ceil() as usize).clamp(1, p.mr / 2);
    let once = panels.is_none_or(|bytes| bytes > cx.target.l2_bytes as i64 / 2);
    let low = if once { busy.max((p.mr - 1).div_ceil(3)) } else { busy };
    let high = once.then(|| (2 * low).min(p.mr));
    // A tile of the rest begins anywhere in a line.
    let fits = |mr: usize| p.mr.is_multiple_of(mr) || !in_line(mr as i64, line);
    let with = |mr: usize| Brgemm { mr, ..p.clone() };
    (fits(low) && high.is_none_or(fits)).then(|| Rest { low: with(low), high: high.map(with) })
}
