//! How tiles of both factors come into shared memory: copied as they lie, rounded or computed on the way, as a box of a tensor, or from a constant that lies in tiles.

use super::{GROUP_BYTES, Parts, WIDEST, contiguous, is_plain, k_is_contiguous, long_from, shared_dtype, within};
use crate::build::contract::Factor;
use crate::build::{Cx, boxed, for_each, pack};
use crate::loops::{LoopKind, Stmt};
use crate::plan::Tile;
use crate::{rows, tf32};
use infc_ir::compute::{Compute, Step};
use infc_ir::scalar::{Kind, Scalar};
use infc_ir::{DType, Expr};

/// Elements that are read and written at once where something is computed in between.
const COMPUTED: usize = 4;

/// Do neighbours in memory make whole copies of 16 bytes?
pub(super) fn is_copied(cx: &Cx, c: &Compute, f: &Factor, axes: &[usize], dtype: DType) -> bool {
    let r = c.reduction.as_ref().expect("a contraction reduces");
    let whole = |e: Option<Expr>| e.and_then(|e| e.known()).is_some_and(|n| n % (WIDEST / dtype.bytes()) as i64 == 0);
    match k_is_contiguous(cx, c, f) {
        true => whole(r.axes.last().copied()),
        false => lines_are_contiguous(cx, f, axes) && whole(axes.last().map(|&a| c.dims[a])),
    }
}

/// Are neighbouring rows (columns) neighbours in memory?
pub(super) fn lines_are_contiguous(cx: &Cx, f: &Factor, axes: &[usize]) -> bool {
    axes.last().is_some_and(|&a| contiguous(cx, f, a as u32))
}

/// Axes of the batch, by their places in the result, that a factor moves along.
fn batch_of(c: &Compute, p: &Tile, f: &Factor) -> Vec<usize> {
    let moves = |a: &usize| !c.dims[*a].is(1) && f.index.iter().any(|e| e.uses_var(*a as u32));
    (0..c.dims.len()).filter(|a| !p.m.contains(a) && !p.n.contains(a) && moves(a)).collect()
}

/// Brings a constant factor into the tiles that shared memory wants, so that they are copied as they are. Does nothing where it is read elsewhere too.
pub(super) fn pack_tiles(cx: &mut Cx, c: &Compute, p: &Tile, f: &Factor, (axes, lines, dtype): (&[usize], usize, DType)) -> bool {
    let Some(tensor) = cx.operand(f.source).constant.clone() else { return false };
    let r = c.reduction.as_ref().expect("a contraction reduces");
    let mut reads = 0;
    for s in (Step::Compute(c.clone())).scalars() {
        s.visit(&mut |n| reads += usize::from(matches!(n.kind(), Kind::Read { source, .. } if *source as usize == f.source)));
    }
    if reads != 1 || !is_plain(f) || tensor.dtype != f.read.dtype() {
        return false;
    }
    let tensor = if p.row.ends_with("mma_tf32") { tf32::tensor(&tensor) } else { tensor };
    let size = |e: Expr| e.known().and_then(|n| usize::try_from(n).ok());
    let rank = c.dims.len();
    let (batch, group) = (batch_of(c, p, f), p.row.starts_with("wgmma"));
    let all: Vec<usize> = batch.iter().chain(axes).copied().chain(rank..rank + r.axes.len()).collect();
    let map: Vec<Option<usize>> = (0..rank + r.axes.len()).map(|a| all.iter().position(|&x| x == a)).collect();
    // Axes of one element are in neither list, and 0.
    let map: Vec<Expr> = map.into_iter().map(|at| at.map_or(Expr::int(0), Expr::var)).collect();
    let sizes = |list: Vec<Expr>| list.into_iter().map(size).collect::<Option<Vec<usize>>>();
    let of = |axes: &[usize]| sizes(axes.iter().map(|&a| c.dims[a]).collect());
    let (Some(b), Some(m), Some(k)) = (of(&batch), of(axes), sizes(r.axes.clone())) else { return false };
    // Tiles of warpgroups are found without the batch.
    if group && !batch.is_empty() {
        return false;
    }
    let index: Vec<Expr> = f.index.iter().map(|e| e.subst(&map)).collect();
    let depth = k.iter().product::<usize>();
    let [piece, whole] = if group { [p.block[2]; 2] } else { pieces(p, depth) };
    match pack::tiles(&tensor, &index, [&b, &m, &k], [lines, piece, whole], dtype, group) {
        Some(tiles) => {
            cx.pack(f.source, tiles);
            true
        }
        None => false,
    }
}

/// Products of a line of a constant factor's tile for warps, and the multiple of them that it is filled up to: the same on all machines, whatever the depth of their
/// tiles, so that all variants of an artifact share the constant.
fn pieces(p: &Tile, depth: usize) -> [usize; 2] {
    let step = rows::named(p.row).expect("a plan names a row of the table").depth;
    if step == 1 {
        return [p.block[2]; 2];
    }
    [2 * step, if depth >= long_from(step) { 4 * step } else { 2 * step }]
}

impl Parts<'_> {
    /// Brings a tile of a factor into shared memory. Neighbouring threads take neighbours in memory, as many at once as can be copied as
    /// they are.
    pub(in crate::build) fn stage(&self, cx: &mut Cx, side: usize, step: Expr) -> Stmt {
        if let Some(widened) = &self.widened[side] {
            return self.stage_widened(cx, (side, widened), step);
        }
        if self.packed[side] {
            return self.stage_packed(cx, side, step);
        }
        let (f, r) = (self.f[side], self.c.reduction.as_ref().expect("a contraction reduces"));
        let (axes, size, first) = self.lines[side];
        let (lines, bk) = (self.p.block[side] as i64, self.p.block[2] as i64);
        let dims: Vec<Expr> = axes.iter().map(|&a| self.c.dims[a]).collect();
        let dtype = shared_dtype(f, self.p.row);
        let k_moves = k_is_contiguous(cx, self.c, f);
        let line_moves = !k_moves && lines_are_contiguous(cx, f, axes);
        // Neighbours on both sides go together: as they are, or a few that are read, computed and written.
        let as_it_is = is_plain(f) && f.read.dtype() == dtype && (self.p.row != "wgmma_tf32" || self.exact[side]);
        let few = (WIDEST / f.read.dtype().bytes().max(dtype.bytes())).min(COMPUTED);
        let wide = if as_it_is { vec![WIDEST / dtype.bytes(), few] } else { vec![few] };
        // They must not pass the end of an axis.
        let extent = if k_moves { r.axes.last() } else { dims.last() };
        let whole = |wide: &i64| extent.and_then(|e| e.known()).is_some_and(|n| n % wide == 0);
        let neighbours = k_moves && self.k_last[side] || line_moves && !self.k_last[side];
        let wide = wide.into_iter().map(|n| n as i64).find(whole).filter(|_| neighbours).unwrap_or(1);
        let (thread, part, lane) = (cx.var("thread"), cx.var("part"), cx.var("lane"));
        let flat = part * self.threads as i64 + thread;
        let (line, k) = match k_moves {
            true => (flat.div(Expr::int(bk / wide)), flat.rem(Expr::int(bk / wide)) * wide),
            false => (flat.rem(Expr::int(lines / wide)) * wide, flat.div(Expr::int(lines / wide))),
        };
        let place = line;
        let inside = within(first + line, size, lines).and(Scalar::index(step * bk + k).lt(Scalar::index(self.depth)));
        let (line, k) = if k_moves { (line, k + lane) } else { (line + lane, k) };
        let mut all = self.axes.clone();
        axes.iter().zip(Expr::delinearise(first + line, &dims)).for_each(|(&a, v)| all[a] = v);
        all.extend(Expr::delinearise(step * bk + k, &r.axes));
        let read = f.read.subst(&all);
        let guarded = f.scalar.subst(&all).rewrite(&mut |n| match n.kind() {
            Kind::Read { source, index, .. } if n == read => {
                Scalar::read_if(*source as usize, index.iter().copied(), inside, Scalar::number(n.dtype(), 0.0))
            }
            _ => n,
        });
        let value = if is_plain(f) { guarded } else { Scalar::select(inside, guarded, Scalar::number(guarded.dtype(), 0.0)) };
        let value = match (value.kind(), self.p.row) {
            // As it lies in memory.
            (Kind::Cast(read), _) if read.dtype() == dtype => *read,
            _ if self.rounds_ahead(side) => tf32::round(value),
            _ => value.cast(dtype),
        };
        let mut index = self.shared_index(side, line, k);
        if let [block, _, column] = &mut index[..] {
            // The lanes stay in a block.
            let (piece, pieces) =
                (place.div_exact(Expr::int(wide)).unwrap_or(place), (GROUP_BYTES / dtype.bytes()) as i64 / wide);
            (*block, *column) = (piece.div(Expr::int(pieces)), piece.rem(Expr::int(pieces)) * wide + lane);
        }
        let store = cx.put(self.shared[side], &index, value);
        let all = (lines * bk / wide) as usize;
        let count = all.div_ceil(self.threads);
        let mut body = vec![for_each(lane, Expr::int(wide), LoopKind::Vector, vec![store])];
        if all % self.threads > 0 {
            let cond = Scalar::index(flat).lt(Scalar::index(all));
            body = vec![Stmt::If { cond, then: body, otherwise: vec![] }];
        }
        let body = vec![for_each(part, Expr::from(count), LoopKind::Unroll, body)];
        if self.p.row.starts_with("wgmma") && neighbours && as_it_is {
            let wanted = boxed::Wanted {
                lines: (axes, first, lines),
                products: (step * bk, bk),
                batch: &self.axes,
                k_last: self.k_last[side],
                dtype,
                to: self.shared[side],
            };
            if let Some(copy) = boxed::copy(cx, self.c, f, &wanted) {
                cx.boxed(thread, copy);
            }
        }
        for_each(thread, Expr::from(self.threads), LoopKind::Thread, body)
    }

    /// Are elements rounded to tf32 on their way into shared memory: for warpgroups, and where they are computed? Warps round others when they have read them there, so that
    /// these can be copied as they are.
    pub(super) fn rounds_ahead(&self, side: usize) -> bool {
        match self.p.row {
            "wgmma_tf32" => !self.exact[side],
            "mma_tf32" => !self.exact[side] && !is_plain(self.f[side]),
            _ => false,
        }
    }

    /// Brings a tile that lies as shared memory wants it.
    fn stage_packed(&self, cx: &mut Cx, side: usize, step: Expr) -> Stmt {
        let (lines, bk) = (self.p.block[side] as i64, self.p.block[2] as i64);
        let dtype = shared_dtype(self.f[side], self.p.row);
        let wide = (WIDEST / dtype.bytes()) as i64;
        let (thread, part, lane) = (cx.var("thread"), cx.var("part"), cx.var("lane"));
        let flat = part * self.threads as i64 + thread;
        let (line, place) = (flat.div(Expr::int(bk / wide)), flat.rem(Expr::int(bk / wide)));
        if !self.p.row.starts_with("wgmma") {
            return self.stage_rows(cx, side, step, [thread, part, lane], [line, place]);
        }
        // The piece at this place: both numbers of three bits, bit by bit.
        let bit = |e: Expr, b: i64| e.div(Expr::int(b)).rem(Expr::int(2));
        let piece = [1, 2, 4].into_iter().fold(Expr::int(0), |sum, b| sum + (bit(place, b) + bit(line, b)).rem(Expr::int(2)) * b);
        let tile = self.lines[side].2.div(Expr::int(lines));
        let source = self.f[side].source;
        let value = cx.at(source as u32, &[tile, step, line, place * wide + lane]);
        let store = cx.put(self.shared[side], &[line, piece * wide + lane], value);
        let count = (lines * bk / wide) as usize / self.threads;
        let body = vec![for_each(lane, Expr::int(wide), LoopKind::Vector, vec![store])];
        let body = vec![for_each(part, Expr::from(count), LoopKind::Unroll, body)];
        for_each(thread, Expr::from(self.threads), LoopKind::Thread, body)
    }

    /// The same for tiles of warps, whose lines lie one after another, those of each element of the batch behind those of the one before.
    fn stage_rows(
        &self,
        cx: &mut Cx,
        side: usize,
        step: Expr,
        [thread, part, lane]: [Expr; 3],
        [line, place]: [Expr; 2],
    ) -> Stmt {
        let f = self.f[side];
        let (lines, bk) = (self.p.block[side] as i64, self.p.block[2] as i64);
        let wide = (WIDEST / shared_dtype(f, self.p.row).bytes()) as i64;
        let batch = batch_of(self.c, self.p, f);
        let (at, dims): (Vec<Expr>, Vec<Expr>) = batch.iter().map(|&a| (self.axes[a], self.c.dims[a])).unzip();
        let tile = Expr::linearise(&at, &dims) * self.lines[side].1.div_ceil(Expr::int(lines))
            + self.lines[side].2.div(Expr::int(lines));
        let [piece, _] = pieces(self.p, 0).map(|n| n as i64);
        let pieces = Expr::int(piece / wide);
        let number = step * (bk / piece) + place.div(pieces);
        let index = [tile, number, line, place.rem(pieces) * wide + lane].map(Scalar::index);
        let dtype = shared_dtype(f, self.p.row);
        let value = Scalar::raw(dtype, Kind::Read { source: f.source as u32, index: index.to_vec(), guard: None });
        let store = cx.put(self.shared[side], &[line, place * wide + lane], value);
        let all = lines * bk / wide;
        let mut body = vec![for_each(lane, Expr::int(wide), LoopKind::Vector, vec![store])];
        if all % self.threads as i64 > 0 {
            let cond = Scalar::index(part * self.threads as i64 + thread).lt(Scalar::index(all));
            body = vec![Stmt::If { cond, then: body, otherwise: vec![] }];
        }
        let count = Expr::int(all).div_ceil(Expr::from(self.threads));
        let body = vec![for_each(part, count, LoopKind::Unroll, body)];
        for_each(thread, Expr::from(self.threads), LoopKind::Thread, body)
    }
}
