//! The contraction builder for GPUs: a block of threads brings tiles of both factors into shared memory and adds their products up in
//! registers, by matrix instructions of its warps or by each thread for itself. How many copies of a tile there are, so that filling and using
//! overlap, is the backend's business.
//!
//! Matrix instructions of warpgroups (`wgmma`) read both factors from shared memory: the tiles are 128 bytes wide, and threads of their own fill them.
//!
//! Rows and columns are flattened axes, and the address of each element follows from the index maps, which is all there is to a
//! convolution. What lies beyond the last row, column or product is 0 in shared memory, and not stored.

mod stage;
mod widen;

use self::stage::{is_copied, lines_are_contiguous, pack_tiles};
use self::widen::Widened;
use super::contract::{Factor, factors};
use super::elementwise::with_accumulator;
use super::gemv::is_within;
use super::{Cx, Operand, accumulate, for_each};
use crate::loops::{LoopKind, Space, Stmt, WARP};
use crate::plan::{SLOTS, Tile, guess};
use crate::rows::{self, Sums};
use crate::target::{Math, TargetDesc};
use crate::tf32;
use infc_ir::compute::Compute;
use infc_ir::scalar::{Kind, Scalar};
use infc_ir::{DType, Expr};

/// Rows and columns of a matrix instruction's tile.
pub const MMA: [usize; 2] = [16, 8];
/// Rows of the tile of a warpgroup's matrix instruction, and bytes of products, or of columns side by side, in a row of its tiles.
const GROUP: usize = 64;
const GROUP_BYTES: usize = 128;
/// Threads that fill the tiles of warpgroups.
const FILLERS: usize = 128;
/// Stands for a row where factors are in shared memory as they lie in memory, and threads add products up in f32.
pub(super) const STORED: &str = "stored";
/// Tiles from which on they are made larger: all multiprocessors of the machine have one.
pub(super) const MANY_TILES: i64 = 132;

/// Are there rows, columns and products enough for tiles?
pub fn fits(rows: i64, columns: i64, depth: i64) -> bool {
    rows >= 16 && columns >= 16 && depth >= 8
}

/// Blocks that a product of so many rows and columns becomes, in tiles of 64 x 64.
pub fn blocks(rows: i64, columns: i64) -> i64 {
    (rows as u64).div_ceil(64) as i64 * (columns as u64).div_ceil(64) as i64
}

/// The plan of a contraction; `None` if it has too few rows, columns or products for tiles.
pub fn plan(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<Tile> {
    let plan = sizes(c, operands, target)?;
    Some(Tile { stored: widen::stored(c, &factors(c)?, operands, &plan), ..plan })
}

/// The same but for how constants are stored.
fn sizes(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<Tile> {
    let r = c.reduction.as_ref()?;
    let f = factors(c)?;
    let uses = |k: usize, axis: usize| f[k].index.iter().any(|e| e.uses_var(axis as u32));
    let out = &operands[operands.len() - 1];
    let only = |k: usize| {
        let mut axes: Vec<usize> = (0..c.dims.len()).filter(|&a| uses(k, a) && !uses(1 - k, a) && !c.dims[a].is(1)).collect();
        axes.sort_by_key(|&a| (std::cmp::Reverse(out.buffer.strides[a].known().unwrap_or(i64::MAX)), a));
        axes
    };
    // Neighbouring columns are neighbours in the result.
    let contiguous = (0..c.dims.len()).find(|&a| out.buffer.strides[a].is(1) && !c.dims[a].is(1));
    let rows_of = usize::from(contiguous.is_some_and(|a| only(0).contains(&a)));
    let (m, n) = (only(rows_of), only(1 - rows_of));
    let size = |axes: &[usize]| axes.iter().map(|&a| guess(c.dims[a])).product::<i64>();
    let depth: i64 = r.axes.iter().map(|&e| guess(e)).product();
    let (rows, columns) = (size(&m), size(&n));
    if !fits(rows, columns, depth) {
        return None;
    }
    let sums = Sums {
        dtype: r.body.dtype(),
        broadcast: factor_dtype(&f[rows_of]),
        vector: factor_dtype(&f[1 - rows_of]),
        groups: 1,
        small: false,
    };
    let row = rows::choose(&sums, target);
    let row = match row.name.starts_with("wgmma") {
        true => {
            // 128 bytes of products.
            let bk = row.depth * GROUP_BYTES / 32;
            let batch: i64 = (0..c.dims.len()).filter(|a| !m.contains(a) && !n.contains(a)).map(|a| guess(c.dims[a])).product();
            let tiles = batch * (rows as u64).div_ceil(128) as i64 * (columns as u64).div_ceil(128) as i64;
            let enough = tiles >= i64::from(target.warpgroup_tiles) && rows >= 2 * GROUP as i64 && columns >= 128;
            if enough && depth >= bk as i64 && !is_part(c, &f, &m, &n) {
                let many = (rows / 128) * (columns / 256) >= MANY_TILES;
                let block = [2 * GROUP, if many { 256 } else { 128 }, bk];
                return Some(Tile { rows_of, m, n, block, grid: [8, 1], stored: None, above: None, row: row.name });
            }
            rows::choose(&sums, &TargetDesc { warpgroups: false, ..target.clone() })
        }
        false => row,
    };
    // Large tiles read less, but there must be enough of them for all multiprocessors.
    let batch: i64 = (0..c.dims.len()).filter(|a| !m.contains(a) && !n.contains(a)).map(|a| guess(c.dims[a])).product();
    let large = rows >= 512 && columns >= 512 && batch * blocks(rows, columns) >= 4 * 64;
    // Where a multiprocessor has one block at most, twice as many warps hide more of each other's waiting; where it has several, each does.
    let few = c.dims.iter().all(|d| d.known().is_some()) && batch * blocks(rows, columns) <= MANY_TILES;
    let long = 4 * row.depth;
    let step = if depth >= long_from(row.depth) as i64 && slots_fit(target) { long } else { 2 * row.depth };
    let (block, grid) = match row.depth {
        1 if c.dims.iter().all(|d| d.known().is_some()) => {
            let bm = by_threads(rows, columns, batch);
            ([bm, 64, 16], [bm / 4, 16])
        }
        1 => ([64, 64, 16], [16, 16]),
        depth if large => ([128, 128, 2 * depth], [2, 4]),
        _ => ([64, 64, step], [2, if few { 4 } else { 2 }]),
    };
    Some(Tile { rows_of, m, n, block, grid, stored: None, above: None, row: row.name })
}

/// Is there memory for all slots of tiles of 64 lines of 128 bytes, with those that keep banks apart? A tile that was asked for comes after the same time whether it is long or
/// short, so that long ones are there sooner; and there are fewer rounds.
fn slots_fit(target: &TargetDesc) -> bool {
    (SLOTS * 2 * 64 * (GROUP_BYTES + WIDEST)) as u64 <= target.shared_bytes
}

/// Rows of the tiles of products by threads: 64, or 32 where the multiprocessor with the most tiles then has less to do. Tiles of 32 read 1.5 times as much for each
/// product, so it must be worth more than a tenth.
fn by_threads(rows: i64, columns: i64, batch: i64) -> usize {
    let most = |bm: i64| {
        let tiles = batch as f64 * (rows as f64 / bm as f64).ceil() * (columns as f64 / 64.0).ceil();
        (tiles / MANY_TILES as f64).ceil() * bm as f64
    };
    if most(32) * 1.1 < most(64) { 32 } else { 64 }
}

/// Of both factors: how many elements all blocks together bring into shared memory, where these are f32 in memory that is rounded on the way, or behind it.
pub fn rounded(c: &Compute, p: &Tile, math: Math) -> [Option<i64>; 2] {
    let (Some(r), Some(f)) = (c.reduction.as_ref(), factors(c)) else { return [None; 2] };
    let size = |axes: &[usize]| axes.iter().map(|&a| guess(c.dims[a])).product::<i64>();
    let batch: Vec<usize> = (0..c.dims.len()).filter(|a| !p.m.contains(a) && !p.n.contains(a)).collect();
    let depth: i64 = r.axes.iter().map(|&e| guess(e)).product();
    let lines = [size(&p.m), size(&p.n)];
    [0, 1].map(|k| {
        let side = usize::from(k != p.rows_of);
        let again = (lines[1 - side] as u64).div_ceil(p.block[1 - side] as u64) as i64;
        let kept = p.stored.is_some_and(|(narrow, _)| narrow == k);
        (!kept && is_rounded(&f[k], p.row, math)).then(|| size(&batch) * lines[side] * depth * again)
    })
}

/// Is it f32 in memory that is nothing but rounded on its way to matrix instructions?
pub(super) fn is_rounded(f: &Factor, row: &str, math: Math) -> bool {
    let takes = match math.narrow() {
        Some(dtype) => shared_dtype(f, row) == dtype,
        None => row.ends_with("mma_tf32"),
    };
    f.scalar == f.read && f.read.dtype() == DType::F32 && takes
}

/// Was a factor rounded to tf32 when it was stored?
pub(super) fn is_exact(cx: &Cx, f: &Factor) -> bool {
    f.scalar == f.read && cx.operand(f.source).tf32
}

/// Is it a part of long sums (see [`crate::split`])? These were made in such a number that tiles of 64 x 64 fill the machine.
fn is_part(c: &Compute, f: &[Factor; 2], m: &[usize], n: &[usize]) -> bool {
    let rank = c.dims.len();
    let axes = c.reduction.as_ref().map_or(0, |r| r.axes.len());
    let cut = |e: &Expr, a: usize| e.uses_var(a as u32) && (rank..rank + axes).any(|k| e.uses_var(k as u32));
    (0..rank).any(|a| !m.contains(&a) && !n.contains(&a) && f.iter().all(|f| f.index.iter().any(|e| cut(e, a))))
}

/// The dtype of a factor as it lies in memory, if the factor is that alone; else that of the factor, before it is widened.
pub(super) fn factor_dtype(f: &Factor) -> DType {
    match f.scalar.kind() {
        _ if is_plain(f) => f.read.dtype(),
        Kind::Cast(narrow) if narrow.dtype().is_float() && narrow.dtype().bytes() < f.scalar.dtype().bytes() => narrow.dtype(),
        _ => f.scalar.dtype(),
    }
}

/// An element of memory, perhaps widened.
fn is_plain(f: &Factor) -> bool {
    f.scalar == f.read || matches!(f.scalar.kind(), Kind::Cast(read) if *read == f.read)
}

/// The dtype of a factor in shared memory.
pub(super) fn shared_dtype(f: &Factor, row: &str) -> DType {
    match row {
        "mma_f16" | "wgmma_f16" => DType::F16,
        "mma_bf16" | "wgmma_bf16" => DType::BF16,
        "mma_i8" | "wgmma_i8" => f.read.dtype(),
        STORED if is_plain(f) => f.read.dtype(),
        _ => f.scalar.dtype(),
    }
}

/// What the parts of the nest share.
pub(super) struct Parts<'a> {
    pub c: &'a Compute,
    pub p: &'a Tile,
    pub f: [&'a Factor; 2],
    pub axes: Vec<Expr>,
    /// Axes and flattened sizes of rows and columns, and the first one of the block.
    pub lines: [(&'a [usize], Expr, Expr); 2],
    pub depth: Expr,
    pub threads: usize,
    /// Shared tiles of both factors.
    pub shared: [u32; 2],
    /// Products are the last axis of the tiles of a factor.
    pub k_last: [bool; 2],
    /// The factor is a constant that lies in tiles as shared memory has them.
    pub packed: [bool; 2],
    /// Elements were rounded to tf32 before they are brought into shared memory.
    pub exact: [bool; 2],
    /// Constants that are widened on the way.
    pub widened: [Option<Widened>; 2],
    pub acc: u32,
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, p: &Tile) {
    let r = c.reduction.as_ref().expect("a contraction reduces");
    let f = factors(c).expect("a contraction is a product of two reads");
    let widened = widen::take(cx, c, &f, p);
    let f = [&f[p.rows_of], &f[1 - p.rows_of]];
    let rank = c.dims.len();
    let batch: Vec<usize> = (0..rank).filter(|x| !p.m.contains(x) && !p.n.contains(x)).collect();
    let flat = |axes: &[usize]| Expr::product(axes.iter().map(|&x| c.dims[x]));
    let (rows, columns) = (flat(&p.m), flat(&p.n));
    // Those of the factor that is no narrow matrix.
    let few = if widened[0].is_some() { columns } else { rows };
    let [bm, bn, bk] = p.block;
    let group = p.row.starts_with("wgmma");
    let matrix = group || p.row.starts_with("mma");
    let mut grid: Vec<Expr> = batch.iter().map(|&x| c.dims[x]).collect();
    let tiles = [rows.div_ceil(Expr::from(bm)), columns.div_ceil(Expr::from(bn))];
    // A band's columns one after another, and in each its rows.
    let high = if matrix { band(tiles.map(|t| t.known()), [bm, bn], group) } else { 1 };
    grid.extend([tiles[0].div_ceil(Expr::int(high)), tiles[1], Expr::int(high)]);
    cx.tasks = Expr::product(grid.iter().copied()) * p.above.map_or(Expr::int(1), |above| is_within(few, above, None));
    let place = Expr::delinearise(cx.task, &grid);
    let mut axes = vec![Expr::int(0); rank];
    batch.iter().zip(&place).for_each(|(&x, &v)| axes[x] = v);
    let [above, column, row] = place[batch.len()..] else { unreachable!("three axes of tiles") };
    let row = above * high + row;
    let lines = [(&p.m[..], rows, row * bm as i64), (&p.n[..], columns, column * bn as i64)];
    let threads = if group { FILLERS } else { p.grid[0] * p.grid[1] * if matrix { WARP as usize } else { 1 } };
    // Rows of 16 bytes more than the tile are in different banks. Bytes are read four products at a time.
    let dtypes = f.map(|f| shared_dtype(f, p.row));
    let pad = |d: DType| 16 / d.bytes();
    // Threads read four products of a row or column of 32 bits at once.
    let fours = !matrix && dtypes[1].bytes() == 4;
    let packed = [0, 1].map(|side| {
        if widened[side].is_some() {
            return false;
        }
        let copied = is_copied(cx, c, f[side], lines[side].0, dtypes[side]);
        let apart = (matrix || fours) && !copied || side == 1 && fours && !k_is_contiguous(cx, c, f[side]);
        (group || apart || p.row == "mma_tf32") && pack_tiles(cx, c, p, f[side], (lines[side].0, p.block[side], dtypes[side]))
    });
    let k_last = [
        true,
        packed[1] || widened[1].is_some() ||
        // Warpgroups take columns side by side of 16 bits alone.
        p.row.ends_with("_i8")
            || (matrix || fours) && k_is_contiguous(cx, c, f[1])
            || group && (dtypes[1].bytes() != 2 || !lines_are_contiguous(cx, f[1], lines[1].0)),
    ];
    let mut shared = [0; 2];
    for side in 0..2 {
        let (lines, pad) = (p.block[side], pad(dtypes[side]));
        let dims = match (group, k_last[side]) {
            (true, true) => vec![lines, bk],
            (true, false) => vec![lines * dtypes[side].bytes() / GROUP_BYTES, bk, GROUP_BYTES / dtypes[side].bytes()],
            (false, true) => vec![lines, bk + pad],
            (false, false) => vec![bk, lines + across_pad(dtypes[side], matrix)],
        };
        shared[side] = cx.scratch(["a", "b"][side], dtypes[side], &dims, Space::Shared);
    }
    let acc = cx.scratch("acc", r.body.dtype(), &p.own(), Space::Reg);
    let depth = Expr::product(r.axes.iter().copied());
    let exact = [0, 1].map(|side| packed[side] || widened[side].is_some() || is_exact(cx, f[side]));
    let parts = Parts { c, p, f, axes, lines, depth, threads, shared, k_last, packed, exact, widened, acc };
    cx.body = shared.into_iter().chain([acc]).map(|buffer| Stmt::Alloc { buffer }).collect();
    let zero = r.kind.identity(r.body.dtype());
    let clear = parts.each_element(cx, &|cx, at, _| vec![cx.put(acc, at, zero)]);
    cx.body.push(clear);
    let k_tile = cx.var("k_tile");
    let mut round = vec![parts.stage(cx, 0, k_tile), parts.stage(cx, 1, k_tile)];
    round.push(if matrix { parts.multiply_tiles(cx) } else { parts.multiply(cx) });
    cx.body.push(for_each(k_tile, depth.div_ceil(Expr::from(bk)), LoopKind::Serial, round));
    let finish = parts.each_element(cx, &|cx, at, place| parts.finish(cx, cx.at(acc, at), place));
    cx.body.push(finish);
}

/// Elements by which rows of lines side by side are longer than these. A matrix instruction's lanes read 8 neighbours of 4 rows of 32 bits at once: 8 more than a multiple of 32 put all
/// of them into different banks.
pub(super) fn across_pad(d: DType, matrix: bool) -> usize {
    if matrix && d.bytes() == 4 { 8 } else { 16 / d.bytes() }
}

/// Are neighbouring products neighbours in memory?
pub(super) fn k_is_contiguous(cx: &Cx, c: &Compute, f: &Factor) -> bool {
    let r = c.reduction.as_ref().expect("a contraction reduces");
    let last = (c.dims.len() + r.axes.len() - 1) as u32;
    contiguous(cx, f, last)
}

/// Are neighbours along an axis neighbours in memory?
fn contiguous(cx: &Cx, f: &Factor, axis: u32) -> bool {
    let index: Vec<Scalar> = f.index.iter().map(|&e| Scalar::index(e)).collect();
    cx.operand(f.source).offset(&index).and_then(|o| o.affine_in(axis)).is_some_and(|(step, _)| step == 1)
}

/// Rows of tiles of a band: tiles that are under way at the same time, one on each multiprocessor, shall read as few lines of both factors as they can, which
/// L2 then keeps. A divisor of the rows of tiles; 1 where all are under way at once, or their number is not known. In `pairs` it is an even one if there is one: two blocks
/// one after another then have the same columns, and can bring them to each other.
fn band([down, across]: [Option<i64>; 2], [bm, bn]: [usize; 2], pairs: bool) -> i64 {
    let (Some(down), Some(across)) = (down, across) else { return 1 };
    let unit = if pairs && down % 2 == 0 { 2 } else { 1 };
    if down.saturating_mul(across) <= MANY_TILES {
        return unit;
    }
    let lines = |high: i64| {
        let bands = (MANY_TILES as u64).div_ceil(high.saturating_mul(across) as u64) as i64;
        high * bands * bm as i64 + (MANY_TILES as u64).div_ceil(high as u64).min(across as u64) as i64 * bn as i64
    };
    (1..=down.min(MANY_TILES)).filter(|h| down % h == 0 && h % unit == 0).min_by_key(|&h| (lines(h), h)).unwrap_or(1)
}

/// From so many products on tiles of `4 * step` are worth while: all slots have one.
fn long_from(step: usize) -> usize {
    SLOTS * 4 * step
}

/// Bytes of the widest copy.
const WIDEST: usize = 16;

impl Parts<'_> {
    /// Loops over all elements of the block's tile: their place among the accumulators, and their row and column in the block.
    pub(super) fn each_element(&self, cx: &mut Cx, make: &dyn Fn(&mut Cx, &[Expr], [Expr; 2]) -> Vec<Stmt>) -> Stmt {
        let [bm, bn, _] = self.p.block;
        let [down, across] = self.p.grid;
        if !self.p.row.contains("mma_") {
            let thread = cx.var("thread");
            let [y, x] = [thread.div(Expr::from(across)), thread.rem(Expr::from(across))];
            let mut body = vec![];
            let own = self.p.own();
            for i in 0..own[1] {
                for j in 0..own[2] {
                    // Neighbouring threads have neighbouring columns.
                    let place = [y * own[1] as i64 + i as i64, x + (j * across) as i64];
                    body.extend(make(cx, &[thread, Expr::from(i), Expr::from(j)], place));
                }
            }
            return for_each(thread, Expr::from(self.threads), LoopKind::Thread, body);
        }
        let [warp, mt, nt, i, j] = ["warp", "m_tile", "n_tile", "row", "column"].map(|name| cx.var(name));
        let place = self.place(warp, mt, nt, i, j);
        let body = make(cx, &[warp, mt, nt, i, j], place);
        let tiles = [bm / down / self.p.tile()[0], bn / across / self.p.tile()[1]];
        let body = vec![for_each(j, Expr::from(self.p.tile()[1]), LoopKind::Serial, body)];
        let body = vec![for_each(i, Expr::from(self.p.tile()[0]), LoopKind::Matrix, body)];
        let body = vec![for_each(nt, Expr::from(tiles[1]), LoopKind::Unroll, body)];
        let body = vec![for_each(mt, Expr::from(tiles[0]), LoopKind::Unroll, body)];
        for_each(warp, Expr::from(down * across), LoopKind::Warp, body)
    }

    /// Row and column in the block.
    fn place(&self, warp: Expr, mt: Expr, nt: Expr, i: Expr, j: Expr) -> [Expr; 2] {
        let [bm, bn, _] = self.p.block;
        let [down, across] = self.p.grid;
        let (y, x) = (warp.div(Expr::from(across)), warp.rem(Expr::from(across)));
        [y * (bm / down) as i64 + mt * self.p.tile()[0] as i64 + i, x * (bn / across) as i64 + nt * self.p.tile()[1] as i64 + j]
    }

    /// Where an element of a shared tile is.
    fn shared_index(&self, side: usize, line: Expr, k: Expr) -> Vec<Expr> {
        match (self.k_last[side], self.p.row.starts_with("wgmma")) {
            (true, _) => vec![line, k],
            (false, false) => vec![k, line],
            (false, true) => {
                let row = Expr::from(GROUP_BYTES / shared_dtype(self.f[side], self.p.row).bytes());
                vec![line.div(row), k, line.rem(row)]
            }
        }
    }

    /// An element of a shared tile.
    fn shared_at(&self, cx: &Cx, side: usize, line: Expr, k: Expr) -> Scalar {
        cx.at(self.shared[side], &self.shared_index(side, line, k))
    }

    /// Products of the shared tiles by matrix instructions.
    pub(super) fn multiply_tiles(&self, cx: &mut Cx) -> Stmt {
        let r = self.c.reduction.as_ref().expect("a contraction reduces");
        let depth = rows::named(self.p.row).expect("a plan names a row of the table").depth;
        let [bm, bn, bk] = self.p.block;
        let [down, across] = self.p.grid;
        let [warp, ks, mt, nt, i, j, k] = ["warp", "k_step", "m_tile", "n_tile", "row", "column", "k"].map(|name| cx.var(name));
        let [line, column] = self.place(warp, mt, nt, i, j);
        let product = ks * depth as i64 + k;
        let dtype = r.body.dtype();
        let factor = |side: usize, line: Expr| {
            let s = self.shared_at(cx, side, line, product);
            if self.p.row == "mma_tf32" && !self.exact[side] && !self.rounds_ahead(side) { tf32::round(s) } else { s.cast(dtype) }
        };
        let (a, b) = (factor(0, line), factor(1, column));
        let at = [warp, mt, nt, i, j];
        let next = accumulate(r.kind, cx.at(self.acc, &at), a * b, true);
        let mut body = vec![cx.put(self.acc, &at, next)];
        body = vec![for_each(k, Expr::from(depth), LoopKind::Serial, body)];
        body = vec![for_each(j, Expr::from(self.p.tile()[1]), LoopKind::Serial, body)];
        body = vec![for_each(i, Expr::from(self.p.tile()[0]), LoopKind::Matrix, body)];
        body = vec![for_each(nt, Expr::from(bn / across / self.p.tile()[1]), LoopKind::Unroll, body)];
        body = vec![for_each(mt, Expr::from(bm / down / self.p.tile()[0]), LoopKind::Unroll, body)];
        body = vec![for_each(ks, Expr::from(bk / depth), LoopKind::Unroll, body)];
        for_each(warp, Expr::from(down * across), LoopKind::Warp, body)
    }

    /// Products of the shared tiles, each thread for its own elements.
    pub(super) fn multiply(&self, cx: &mut Cx) -> Stmt {
        let r = self.c.reduction.as_ref().expect("a contraction reduces");
        let across = self.p.grid[1];
        let (thread, k) = (cx.var("thread"), cx.var("k"));
        let (y, x) = (thread.div(Expr::from(across)), thread.rem(Expr::from(across)));
        let mut body = vec![];
        let name = |cx: &mut Cx, value: Scalar, body: &mut Vec<Stmt>| {
            let local = cx.local();
            body.push(Stmt::Let { local, value });
            Scalar::local(value.dtype(), local)
        };
        let own = self.p.own();
        let a: Vec<Scalar> = (0..own[1])
            .map(|i| {
                let value = self.shared_at(cx, 0, y * own[1] as i64 + i as i64, k);
                name(cx, value, &mut body)
            })
            .collect();
        let b: Vec<Scalar> = (0..own[2])
            .map(|j| {
                let value = self.shared_at(cx, 1, x + (j * across) as i64, k);
                name(cx, value, &mut body)
            })
            .collect();
        for (i, &a) in a.iter().enumerate() {
            for (j, &b) in b.iter().enumerate() {
                let at = [thread, Expr::from(i), Expr::from(j)];
                let next = accumulate(r.kind, cx.at(self.acc, &at), a * b, cx.target.fma);
                body.push(cx.put(self.acc, &at, next));
            }
        }
        let body = vec![for_each(k, Expr::from(self.p.block[2]), LoopKind::Unroll, body)];
        for_each(thread, Expr::from(self.threads), LoopKind::Thread, body)
    }

    /// Stores an element of the result, if it is one, from its sum.
    pub(super) fn finish(&self, cx: &mut Cx, sum: Scalar, place: [Expr; 2]) -> Vec<Stmt> {
        let mut axes = self.axes.clone();
        let mut inside = Scalar::int(DType::Bool, 1);
        for (side, ((list, size, first), offset)) in self.lines.into_iter().zip(place).enumerate() {
            let line = first + offset;
            // Variables are not negative, so this is the first line that it can be.
            let least = line.map(&|leaf| if leaf.has_var() { Expr::int(0) } else { leaf });
            if least.known().zip(size.known()).is_some_and(|(least, size)| least >= size) {
                return vec![];
            }
            let dims: Vec<Expr> = list.iter().map(|&a| self.c.dims[a]).collect();
            list.iter().zip(Expr::delinearise(line, &dims)).for_each(|(&a, v)| axes[a] = v);
            inside = inside.and(within(line, size, self.p.block[side] as i64));
        }
        let value = with_accumulator(self.c.value.subst(&axes), sum);
        let store = cx.store_out(&axes, value);
        if inside.as_int().is_some() {
            vec![store]
        } else {
            vec![Stmt::If { cond: inside, then: vec![store], otherwise: vec![] }]
        }
    }
}

/// `at < size`, which needs no test if blocks divide the size.
pub(super) fn within(at: Expr, size: Expr, block: i64) -> Scalar {
    match size.known() {
        Some(n) if n % block == 0 => Scalar::int(DType::Bool, 1),
        _ => Scalar::index(at).lt(Scalar::index(size)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_as_high_as_lines_are_few() {
        let of = |down, across, block| band([Some(down), Some(across)], block, false);
        // 132 tiles under way: 16 rows of 128 and 9 columns of 256; 8 of 128 and 17 of 128, where there are no more rows.
        assert_eq!(of(64, 32, [128, 256]), 16);
        assert_eq!(of(8, 24, [128, 128]), 8);
        assert_eq!(of(1, 500, [128, 128]), 1);
        // Few columns are as good as a band; so is all at once.
        assert_eq!(of(500, 1, [64, 64]), 1);
        assert_eq!(of(11, 12, [128, 128]), 1);
        assert_eq!(band([None, Some(64)], [128, 128], false), 1);
        // Pairs of rows, where rows are even.
        let pairs = |down, across| band([Some(down), Some(across)], [128, 256], true);
        assert_eq!([pairs(32, 16), pairs(4, 4), pairs(3, 4), pairs(7, 64), pairs(2, 500)], [16, 2, 1, 7, 2]);
        // No other height reads fewer lines, by counting those of each 132 tiles in a row.
        for (down, across) in [(12, 12), (64, 32), (30, 7), (24, 40), (128, 5)] {
            let counted = |high: i64| {
                let place = |t: i64| (t / (high * across) * high + t % high, t % (high * across) / high);
                let wave = |start: i64| {
                    let all: Vec<(i64, i64)> = (start..(start + MANY_TILES).min(down * across)).map(place).collect();
                    let different =
                        |k: &dyn Fn(&(i64, i64)) -> i64| all.iter().map(k).collect::<std::collections::BTreeSet<_>>().len();
                    different(&|p| p.0) + different(&|p| p.1)
                };
                (0..down * across / MANY_TILES).map(|w| wave(w * MANY_TILES)).sum::<usize>() as f64
            };
            let best = (1..=down).filter(|h| down % h == 0).map(counted).fold(f64::INFINITY, f64::min);
            let chosen = counted(of(down, across, [64, 64]));
            assert!(chosen <= best * 1.3 && chosen <= counted(1), "{down} x {across}: {chosen}, the best is {best}");
        }
    }
}
