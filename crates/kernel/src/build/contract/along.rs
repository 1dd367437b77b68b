//! Results that lie along rows, where a tile's vectors run along columns: rows of tiles come into scratch memory first, and from there into the result as it lies. Without that each
//! element of a vector is a store of its own, into lines of the cache that other tiles fill later; where columns lie a multiple of a page apart, all of them share a few lines of each level.

use super::{MOST_VECTORS, Tile};
use crate::build::{Cx, Operand, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::guess;
use crate::target::TargetDesc;
use infc_ir::Expr;
use infc_ir::compute::Compute;
use infc_ir::scalar::Scalar;

/// The shortest run of results that rows are for themselves taken for.
const SHORT: i64 = 32;

/// Most rows that are in scratch memory.
const MOST: usize = 224;

/// How results lie along rows.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Along {
    /// Lanes of a vector of results.
    lanes: usize,
    /// Columns that share a line of L1, of so many ways, for each step of columns side by side; `None` if that is open.
    crowd: Option<(f64, usize)>,
    /// The first axis of a run, in m.
    pub first: usize,
    /// Multiples of this many rows lie beside each other, if there are rows of several runs.
    pub whole: Option<usize>,
}

/// The axes m for which results lie along rows: all of them where runs of neighbours are whole vectors, else those of a run.
pub(super) fn of(c: &Compute, out: &Operand, n: usize, m: &[usize], target: &TargetDesc) -> Option<(Vec<usize>, Along)> {
    let strides = &out.buffer.strides;
    let bytes = out.buffer.dtype.bytes();
    let lanes = target.lanes(bytes);
    let way = target.l1_way_bytes as i64;
    let crowd = match strides[n].known() {
        Some(_) if way == 0 => return None,
        Some(step) => Some((gcd(step * bytes as i64, way) as f64 / way as f64, (target.l1_bytes as i64 / way) as usize)),
        None => None,
    };
    if crowd.is_some_and(|(share, ways)| ((MOST_VECTORS * lanes) as f64) * share < ways as f64) {
        return None;
    }
    let last = *m.last()?;
    if !strides[last].is(1) || strides[n].is(1) || strides[n].is(0) {
        return None;
    }
    let follows = |i: usize| strides[m[i]] == strides[m[i + 1]] * c.dims[m[i + 1]];
    let first = (0..m.len() - 1).rev().find(|&i| !follows(i) && !c.dims[m[i]].is(1)).map_or(0, |i| i + 1);
    let line = Expr::product(m[first..].iter().map(|&a| c.dims[a]));
    if m[..first].iter().all(|&a| c.dims[a].is(1)) {
        return Some((m.to_vec(), Along { lanes, crowd, first: 0, whole: None }));
    }
    match line.known() {
        Some(line) if line % lanes as i64 == 0 => Some((m.to_vec(), Along { lanes, crowd, first, whole: Some(lanes) })),
        _ => (guess(line) >= SHORT).then(|| (m[first..].to_vec(), Along { lanes, crowd, first: 0, whole: None })),
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

impl Along {
    /// Rows that come into scratch memory together, of tasks of `mc`; `None` if those do not come out whole, or if the lines of `nr` columns have room in L1.
    pub fn rows(self, [mr, nr]: [usize; 2], mc: usize) -> Option<usize> {
        if !self.crowded(nr) {
            return None;
        }
        let lanes = self.lanes;
        let fits = |&t: &usize| mc % t == 0 && t <= MOST && self.whole.is_none_or(|w| t % w == 0);
        let all = (1..=mc / mr).map(|k| k * mr);
        let vectors = all.clone().filter(fits).find(|t| t % lanes == 0);
        vectors.or_else(|| all.rev().find(fits))
    }

    /// Are there more lines of so many columns than L1 has room for? (Zen 5, tiles of 4 x 64 of 3 x 3 products of 64 channels, maps of 64 x 64 and 128 x 128 values: 2.8 and 3.2
    /// times as fast by scratch memory, of 112 x 112 1.2 times; where they have room, by scratch memory 1 % slower.)
    fn crowded(self, nr: usize) -> bool {
        self.crowd.is_none_or(|(share, ways)| nr as f64 * share >= ways as f64)
    }

    /// As many rows of a task, near `mc`, that come out whole.
    pub fn block(self, [mr, nr]: [usize; 2], mc: usize) -> usize {
        let lanes = self.lanes;
        let both = (1..=lanes).map(|k| k * mr).find(|t| t % lanes == 0).expect("a multiple of both");
        match mc {
            _ if both > MOST || !self.crowded(nr) => mc,
            _ if mc >= both => mc / both * both,
            _ if self.whole.is_some() => both,
            _ => mc,
        }
    }
}

impl Tile<'_> {
    /// What `body` makes of a row tile, for all of the task; after each few tiles their results come out of the scratch memory.
    pub(super) fn pass_along(
        &mut self,
        cx: &mut Cx,
        rows: usize,
        tail: bool,
        body: &dyn Fn(&Self, &mut Cx) -> Vec<Stmt>,
    ) -> Vec<Stmt> {
        let (mr, mc, nr) = (self.p.mr, self.p.mc, self.p.nr);
        let dtype = cx.operands[cx.out() as usize].buffer.dtype;
        let block = cx.scratch("results", dtype, &[rows, nr], Space::Tile);
        let (part, m_tile) = (cx.var("m_part"), cx.var("m_tile"));
        let first = self.m_block + part * rows as i64;
        self.m_tile = part * (rows / mr) as i64 + m_tile;
        self.m0 = first + m_tile * mr as i64;
        self.results = Some((block, m_tile * mr as i64));
        let tile = super::inside(self.m0, self.rows, mc, body(self, cx));
        self.results = None;
        let tiles = for_each(m_tile, Expr::from(rows / mr), LoopKind::Serial, tile);
        let lanes = cx.target.lanes(dtype.bytes()).clamp(1, rows.next_power_of_two());
        let chunk = cx.var("m_vector");
        let base = first + chunk * lanes as i64;
        let store = |cx: &mut Cx, v: Expr, whole: bool| {
            let lane = cx.var("lane");
            let at = chunk * lanes as i64 + lane;
            let put = vec![cx.store_out(&self.along(base, lane, v), cx.at(block, &[at, v]))];
            let body = match whole {
                true => put,
                false => {
                    let inside = Scalar::index(at).lt(Scalar::index(Expr::from(rows)));
                    let cond = inside.and(Scalar::index(base + lane).lt(Scalar::index(self.rows)));
                    vec![Stmt::If { cond, then: put, otherwise: vec![] }]
                }
            };
            for_each(lane, Expr::from(lanes), LoopKind::Vector, body)
        };
        // All columns of a vector of rows; whole ones as rounds of as many as a vector has lanes, which a backend may turn in registers.
        let columns = |cx: &mut Cx, whole: bool| {
            let v = cx.var("n");
            if whole && !tail && nr % lanes == 0 && dtype.bytes() == 4 {
                let round = cx.var("round");
                let vector = store(cx, v * lanes as i64 + round, true);
                let rounds = for_each(round, Expr::from(lanes), LoopKind::Unroll, vec![vector]);
                return vec![for_each(v, Expr::from(nr / lanes), LoopKind::Serial, vec![rounds])];
            }
            let mut column = vec![store(cx, v, whole)];
            if tail {
                let cond = Scalar::index(self.n0 + v).lt(Scalar::index(self.columns));
                column = vec![Stmt::If { cond, then: column, otherwise: vec![] }];
            }
            vec![for_each(v, Expr::from(nr), LoopKind::Serial, column)]
        };
        let whole_rows = rows % lanes == 0;
        let vectors = match whole_rows && self.rows.known().is_some_and(|r| r % lanes as i64 == 0) {
            // What does not begin in the result is beyond it.
            true => {
                let body = columns(cx, true);
                super::inside(base, self.rows, mc, body)
            }
            false => {
                let ends = Scalar::index(base + lanes as i64).le(Scalar::index(self.rows));
                let fits = Scalar::index(chunk * lanes as i64 + lanes as i64).le(Scalar::index(Expr::from(rows)));
                let cond = if whole_rows { ends } else { ends.and(fits) };
                vec![Stmt::If { cond, then: columns(cx, true), otherwise: columns(cx, false) }]
            }
        };
        let out = for_each(chunk, Expr::from(rows.div_ceil(lanes)), LoopKind::Serial, vectors);
        let parts = super::inside(first, self.rows, mc, vec![tiles, out]);
        vec![Stmt::Alloc { buffer: block }, for_each(part, Expr::from(mc / rows), LoopKind::Serial, parts)]
    }

    /// Axis values of row `base + lane` and column `v`, as if each run of neighbours were one axis, the last one.
    fn along(&self, base: Expr, lane: Expr, v: Expr) -> Vec<Expr> {
        let mut axes = self.axes.clone();
        axes[self.p.n] = self.n0 + v;
        self.p.m.iter().for_each(|&a| axes[a] = Expr::int(0));
        let last = *self.p.m.last().expect("results lie along it");
        axes[last] = base + lane;
        let outer = self.runs;
        if outer == 0 {
            return axes;
        }
        let line = Expr::product(self.m_dims[outer..].iter().copied());
        for (&a, value) in self.p.m[..outer].iter().zip(Expr::delinearise(base.div(line), &self.m_dims[..outer])) {
            axes[a] = value;
        }
        axes[last] = base.rem(line) + lane;
        axes
    }
}
