//! What tiles fetch of packed panels before its turn comes.

use super::{PAGE, Source, Tile, panels_bytes};
use crate::build::Cx;
use crate::loops::Stmt;
use crate::target::LINE;
use infc_ir::Expr;
use infc_ir::scalar::Scalar;

/// Tiles of rows from which on each fetches a part of the next panel; fewer fetch what they come to themselves. The first is where half of L1 holds what a tile reads of the other factor.
/// (Zen 5, products of MiniLM: 8 rows 0.93 to 0.73 ms, 24 rows 2.15 to 2.12; 49 rows of 768 products lose 15 % where they fetch for themselves.)
const MANY_TILES: [i64; 2] = [8, 3];

impl Tile<'_> {
    /// A hint for an element of a panel of packed columns, of whose steps of k `group` neighbours are one: of panel `number` the one at this place, in elements from its start.
    fn fetch(&self, source: usize, group: i64, number: Expr, at: Expr) -> Stmt {
        let innermost = self.k_axes().len() + if group == 1 { 1 } else { 2 };
        let mut index = vec![Expr::int(0); innermost + 1];
        (index[0], index[innermost]) = (number, at);
        Stmt::Prefetch { buffer: source as u32, index: index.into_iter().map(Scalar::index).collect() }
    }

    /// Steps of k of a panel, elements of a step, and the number of step `k`; if the extents are known.
    fn panel_steps(&self, group: i64, k: &[Expr]) -> Option<(i64, i64, Expr)> {
        let mut dims: Vec<i64> = self.k_axes().iter().map(|e| e.known()).collect::<Option<_>>()?;
        *dims.last_mut()? /= group;
        let flat = k.iter().zip(&dims).fold(Expr::int(0), |flat, (&v, &d)| flat * d + v);
        Some((dims.iter().product(), self.p.nr as i64 * group, flat))
    }

    /// Hints in a step of k for what comes of the panels, which are read from memory once a run: what the machine fetches ahead by itself ends at a page. Where many tiles of rows pass a
    /// panel, each fetches a part of the next one. Where few do, each fetches what it comes to itself, from as far as half of L1. Where a run tells how many there are, it tells which.
    pub(super) fn ahead(&self, cx: &Cx, group: i64, k: &[Expr]) -> Vec<Stmt> {
        let (&Source::Packed(source), Some((depth, nr, flat))) = (&self.source, self.panel_steps(group, k)) else {
            return vec![];
        };
        let bytes = self.b.read.dtype().bytes() as i64;
        let (panel, line) = (depth * nr, LINE / bytes);
        if panel * bytes <= PAGE {
            return vec![];
        }
        let [number, _, last] = self.panel();
        let of = |rows: usize| rows.div_ceil(self.p.mr) as i64;
        // Elements in each step of k, so that all tiles together fetch a panel, or a block of it; the first one of each tile.
        let parts_of = |tiles: i64, panel: i64| {
            let step = (nr + tiles - 1) / tiles;
            (step, self.m_tile.min(Expr::int(nr / step - 1).max(Expr::int(0))) * (panel / nr * step))
        };
        if let Some((kc, block)) = self.part {
            // The next block, of this panel or of the one behind it.
            let Some(size) = self.parts(kc).known().map(|parts| panel / parts) else { return vec![] };
            let next = ((block + 1) * size).min((last - number + 1) * panel - size);
            let (step, part) = parts_of(of(self.p.mc), size);
            let at = next + part + (flat - block * (size / nr)) * step;
            return (0..(step + line - 1) / line).map(|l| self.fetch(source, group, number, at + l * line)).collect();
        }
        let held = self.p.mr as i64 * depth * group * self.a.read.dtype().bytes() as i64 <= cx.target.l1_bytes as i64 / 2;
        let from = MANY_TILES[usize::from(!held)];
        let small = panels_bytes(self.c, self.p.n, self.b).is_some_and(|all| all <= cx.target.l2_bytes as i64 / 2);
        let (tiles, many) = match self.rows.known() {
            // What L2 holds beside as much may be there from the round before, as weights of recurrent layers are: a line of what comes next a step, or nothing.
            _ if small => (of(self.p.mc), Expr::int(1)),
            Some(rows) => (of(self.p.mc.min(rows as usize)), Expr::from(usize::from(of(rows as usize) >= from))),
            None => (of(self.p.mc).min(from), self.rows.div(Expr::int(from * self.p.mr as i64)).min(Expr::int(1))),
        };
        // Steps of few instructions reach far by themselves.
        if self.p.mr <= 2 && !many.is(1) {
            return vec![];
        }
        let pick = |few: Expr, of_many: Expr| few + many * (of_many - few);
        let (step, part) = parts_of(tiles.max(1), panel);
        if small && step > line {
            return vec![];
        }
        let first = pick(number * panel + cx.target.l1_bytes as i64 / 2 / bytes, (number + 1).min(last) * panel + part);
        let at = first + flat * pick(Expr::int(nr), Expr::int(step));
        let apart = pick(Expr::int(line), Expr::int(if step <= line { 0 } else { line }));
        let lines = (nr + line - 1) / line;
        let next = (0..if many.is(1) { (step + line - 1) / line } else { lines })
            .map(|l| self.fetch(source, group, Expr::int(0), at + apart * l));
        // And this panel, where L1 does not hold it and the machine wants to be told.
        let steps = i64::from(cx.target.panel_ahead);
        let told = steps > 0 && !many.is(0) && panel * bytes > cx.target.l1_bytes as i64 * 2 / 3;
        let here = (0..if told { lines } else { 0 }).map(|l| self.fetch(source, group, number, (flat + steps) * nr + l * line));
        next.chain(here).collect()
    }
}
