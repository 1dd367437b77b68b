//! What a strip brings into scratch memory first, so that its queries lie side by side: the queries, and what scores read beside them, masks and the like. Where it lies along the other axis
//! it is turned, in whole squares that a backend may turn in registers, else element by element.

use super::{Keys, Parts, along};
use crate::build::{Cx, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use infc_ir::scalar::{Kind, Scalar};
use infc_ir::{DType, Expr};

impl Parts<'_> {
    /// Brings the queries into scratch memory, side by side. Words are made along the depth before, of a query after the other.
    pub(super) fn transpose(&self, cx: &mut Cx, query: u32) -> Vec<Stmt> {
        let q = cx.var("query");
        let axes = self.at_query(self.query_number(q));
        let steps = self.steps();
        let (&last, outer) = steps.split_last().expect("scores are sums of products");
        let outer_vars = cx.vars(&["d"], outer.len());
        let together = [8, 4, 2, 1].into_iter().find(|t| last % t == 0).expect("1 divides all");
        let (block, part) = (cx.var("block"), cx.var("d"));
        let step = block * together as i64 + part;
        let at = |step: Expr| outer_vars.iter().copied().chain([step]).collect::<Vec<Expr>>();
        let (mut all, mut nest, value) = if self.pairs() {
            let line = cx.scratch("line", DType::U32, &[last], Space::Tile);
            let words = along(cx, last, self.lanes, &mut |cx, d| {
                vec![cx.put(line, &[d], self.along_depth(&at(d), &|depth| self.query_at(&axes, depth)))]
            });
            (vec![Stmt::Alloc { buffer: line }], words, cx.at(line, &[step]))
        } else {
            (vec![], vec![], self.query_at(&axes, &at(step)))
        };
        let place: Vec<Expr> = at(step).into_iter().chain([q]).collect();
        let put = cx.put(query, &place, value);
        let parts = for_each(part, Expr::from(together), LoopKind::Unroll, vec![put]);
        nest.push(for_each(block, Expr::from(last / together), LoopKind::Serial, vec![parts]));
        for (&v, &e) in outer_vars.iter().zip(outer).rev() {
            nest = vec![for_each(v, Expr::from(e), LoopKind::Serial, nest)];
        }
        all.push(for_each(q, Expr::from(self.p.queries), LoopKind::Serial, nest));
        if !self.turns_queries(cx) {
            return all;
        }
        let (part, block, round, lane) = (cx.var("query_part"), cx.var("block"), cx.var("d"), cx.var("query"));
        let (d, q) = (block * self.lanes as i64 + round, part * self.lanes as i64 + lane);
        let put = cx.put(query, &[d, q], self.query_at(&self.at_query(self.first + q), &[d]));
        let rounds = self.square((round, lane), put);
        let blocks = for_each(block, Expr::from(last / self.lanes), LoopKind::Serial, vec![rounds]);
        let then = vec![for_each(part, Expr::from(self.p.queries / self.lanes), LoopKind::Serial, vec![blocks])];
        let cond = Scalar::index(self.first + self.p.queries as i64).le(Scalar::index(self.rows));
        vec![Stmt::If { cond, then, otherwise: all }]
    }

    /// May a backend turn the queries of a strip in registers, in whole squares?
    fn turns_queries(&self, cx: &Cx) -> bool {
        let factor = &self.query;
        let index: Vec<Scalar> = factor.index.iter().map(|&e| Scalar::index(e)).collect();
        let offset = cx.operand(factor.source).offset(&index).and_then(|o| o.affine_in(self.rank as u32 + 1));
        let lie = offset.is_some_and(|(step, _)| step == 1) && factor.read.dtype() == DType::F32 && self.p.m.len() == 1;
        let whole =
            self.lanes >= 4 && self.p.queries.is_multiple_of(self.lanes) && self.depth.iter().all(|d| d % self.lanes == 0);
        lie && whole && self.depth.len() == 1 && !self.pairs()
    }

    /// A square of as many rounds as lanes.
    fn square(&self, (round, lane): (Expr, Expr), put: Stmt) -> Stmt {
        let vector = for_each(lane, Expr::from(self.lanes), LoopKind::Vector, vec![put]);
        for_each(round, Expr::from(self.lanes), LoopKind::Unroll, vec![vector])
    }

    /// What a score reads for each query (lanes would gather it), for each key or for all.
    pub(super) fn reads_of_queries(&self, each_key: bool) -> Vec<Scalar> {
        let own = |e: Expr| self.p.m.iter().any(|&x| e.uses_var(x as u32));
        let mut all = vec![];
        self.a.score.visit(&mut |n| {
            if let Kind::Read { .. } = n.kind() {
                let (mut some, mut key) = (false, false);
                n.visit(&mut |j| {
                    if let Kind::Index(e) = j.kind() {
                        some |= own(*e);
                        key |= e.uses_var(self.rank as u32);
                    }
                });
                all.extend((some && key == each_key && !all.contains(&n)).then_some(n));
            }
        });
        all
    }

    /// Squares along keys that a tile needs of what lies along keys for each of the queries, if a backend may turn them in registers.
    fn squares_of(&self, cx: &Cx, read: Scalar) -> Option<usize> {
        let Kind::Read { source, index, guard: None } = read.kind() else { return None };
        let operand = cx.operand(*source as usize);
        let along = operand.offset(index)?.affine_in(self.rank as u32)?.0 == 1;
        let plain = operand.buffer.dtype == read.dtype() && read.dtype().bytes() == 4 && self.p.m.len() == 1;
        let whole = self.lanes >= 4 && self.p.queries.is_multiple_of(self.lanes);
        (along && plain && whole).then(|| self.p.rows.div_ceil(self.lanes))
    }

    /// Brings such a read into scratch memory, keys from `start` on, in so many squares along keys.
    fn turn(&self, cx: &mut Cx, (read, buffer): (Scalar, u32), start: Expr, count: usize) -> Vec<Stmt> {
        let lanes = self.lanes as i64;
        let squares = (0..count as i64).map(|square| {
            let (part, key, lane) = (cx.var("query_part"), cx.var("key"), cx.var("query"));
            let query = part * lanes + lane;
            let at = key + square * lanes;
            let mut axes = self.at_query(self.first + query);
            axes[self.rank] = start + at;
            let put = cx.put(buffer, &[at, query], read.subst(&axes));
            let square = self.square((key, lane), put);
            for_each(part, Expr::from(self.p.queries / self.lanes), LoopKind::Serial, vec![square])
        });
        squares.collect()
    }

    /// Brings what a tile of scores reads for each of its queries and keys into scratch memory; gives the reads with where they are. `key` is the place of a key of the tile.
    pub(super) fn masks(
        &self,
        cx: &mut Cx,
        keys: Keys,
        (tile, key): (Expr, &dyn Fn(Expr) -> Expr),
        body: &mut Vec<Stmt>,
    ) -> Vec<(Scalar, u32)> {
        let (strip, mr) = (self.p.queries, self.p.rows);
        let mut staged = vec![];
        for read in self.reads_of_queries(true) {
            let squares = self.squares_of(cx, read);
            let buffer = cx.scratch("mask", read.dtype(), &[squares.map_or(mr, |n| n * self.lanes), strip], Space::Tile);
            // They lie along keys: a query after the other brings what the tile reads.
            let (q, i) = (cx.var("query"), cx.var("key"));
            let mut axes = self.at_query(self.query_number(q));
            axes[self.rank] = keys.first + key(i);
            let put = cx.put(buffer, &[i, q], read.subst(&axes));
            let line = for_each(i, Expr::from(mr), LoopKind::Unroll, vec![put]);
            let lines = for_each(q, Expr::from(strip), LoopKind::Serial, vec![line]);
            body.push(Stmt::Alloc { buffer });
            body.push(match squares {
                None => lines,
                Some(count) => {
                    let start = keys.first + tile * mr as i64;
                    let fits = |end: Expr, extent: Expr| Scalar::index(end).le(Scalar::index(extent));
                    let cond = fits(start + (count * self.lanes) as i64, self.a.keys);
                    let cond = cond.and(fits(self.first + strip as i64, self.rows));
                    Stmt::If { cond, then: self.turn(cx, (read, buffer), start, count), otherwise: vec![lines] }
                }
            });
            staged.push((read, buffer));
        }
        staged
    }
}
