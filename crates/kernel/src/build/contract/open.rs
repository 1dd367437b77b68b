//! Plans beside that of a product whose rows a run counts: for so few that they make one tile, and for what is left of them behind the last whole one.

use super::taps::in_line;
use crate::build::{Cx, stored};
use crate::plan::{Brgemm, Panels};
use crate::rows;
use crate::target::TargetDesc;
use infc_ir::Expr;
use infc_ir::compute::Compute;

/// Plans for so few rows that they make one tile, the one with most rows first, where the number of rows is open and weights are narrow: the table is that of
/// the panels, and widened in the loop over k.
pub(super) fn few_rows(p: &Brgemm, rows: Expr, target: &TargetDesc) -> Vec<Brgemm> {
    let Some(stored) = p.stored.filter(|_| p.panels == Panels::Scratch && rows.known().is_none()) else { return vec![] };
    let ([of_vector, others], vectors) = (stored.registers(), p.nr.div_ceil(target.lanes(4).max(1)));
    let fits = |mr: &usize| (mr + of_vector) * vectors + others <= target.vector_registers as usize;
    let most = (2..=stored::FEW).rev().find(fits);
    let with = |mr: usize| Brgemm { mr, mc: mr, panels: Panels::Packed, along: None, ..p.clone() };
    most.into_iter().chain([1]).map(with).collect()
}

/// Rows of a tile that are so few that tiles for what is left of them would gain little.
const MOST_LEFT: usize = 4;

/// The plans for the rows behind the last whole tile, where a run tells how many there are: low tiles, which are as low as keeps the units busy, and tiles twice as high, since
/// two low ones would read the panel twice. One of each is enough. `None` where no rows are left.
pub(super) fn rest_of_rows(cx: &Cx, c: &Compute, p: &Brgemm, m_dims: &[Expr]) -> Option<[Brgemm; 2]> {
    let row = rows::named(p.row).expect("a plan names a row of the table");
    let lanes = row.lanes(cx.target, c.reduction.as_ref()?.body.dtype().bytes()).clamp(1, p.nr);
    let vectors = p.nr.div_ceil(lanes) as f64;
    let most = p.mr - 1; // rows that may be left
    let low = ((row.latency * row.per_cycle / vectors).ceil() as usize).min(p.mr / 2).max(most.div_ceil(3));
    let line = m_dims.last().and_then(|d| d.known());
    let open = m_dims.iter().any(|d| d.known().is_none()) && !in_line(p.mr as i64, line);
    let plain = p.kc.is_none() && p.along.is_none() && !p.copied && cx.target.block_threads == 0;
    // A tile of the rest begins anywhere in a line.
    let tiles = [(2 * low).min(p.mr), low];
    let fits = p.mr > MOST_LEFT && tiles.iter().all(|&mr| p.mr.is_multiple_of(mr) || !in_line(mr as i64, line));
    (open && plain && fits).then(|| tiles.map(|mr| Brgemm { mr, ..p.clone() }))
}
