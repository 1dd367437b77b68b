//! Attention in one kernel for GPUs: a block of threads has some queries, and takes tile after tile of keys and values through shared memory. Scores of a tile are
//! computed as in [`super::tile`], weights are relative to the largest score so far; where a tile brings a larger one, what was summed up
//! before is scaled (online softmax, after Milakov and Gimelshein 2018, and Dao et al. 2022).
//!
//! A row whose scores are all -inf has a sum of weights of 0, and gives 0 or NaN, as its steps do.

use super::contract::{Factor, factor, factors};
use super::online::{Online, number, quotient};
use super::tile::{
    MANY_TILES, MMA, Parts, across_pad, factor_dtype, is_exact, is_rounded, k_is_contiguous, shared_dtype, within,
};
use super::{Cx, for_each};
use crate::attention::Attention;
use crate::loops::{LoopKind, Space, Stmt, WARP};
use crate::plan::{Tile, guess};
use crate::rows::{self, Sums};
use crate::target::{Math, TargetDesc};
use crate::tf32;
use infc_ir::compute::{Compute, Reducer, Reduction};
use infc_ir::scalar::Scalar;
use infc_ir::{DType, Expr};
use std::fmt;

/// Sizes of attention in one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Flash {
    /// Output axes that are queries, outermost first.
    pub m: Vec<usize>,
    /// Output axes that are columns of the values, outermost first.
    pub n: Vec<usize>,
    /// Queries and keys of a tile.
    pub block: [usize; 2],
    /// Products of a query with a key, with what fills up tiles.
    pub depth: usize,
    /// The same for columns of the values.
    pub columns: usize,
    /// Warps along queries and along keys; threads where no matrix instruction is used.
    pub grid: [usize; 2],
    /// The row of [`crate::rows::ROWS`] that adds products up.
    pub row: &'static str,
}

/// Tiles of queries and keys, the best first.
const BLOCKS: [[usize; 2]; 5] = [[64, 64], [64, 32], [32, 64], [32, 32], [32, 16]];
/// Blocks from which on tiles of 64 queries are taken: three of four multiprocessors have one.
const ENOUGH_BLOCKS: i64 = 100;
/// The fewest queries for which tiles are worth while.
const QUERIES: i64 = 16;

/// Which axes are what.
pub(super) struct Shape {
    pub m: Vec<usize>,
    pub n: Vec<usize>,
    /// The sums of products that scores are made of, and of weights with values (of which only the values are read).
    pub scores: Compute,
    pub sums: Compute,
    /// Which factor of the scores is the query.
    pub query: usize,
}

pub(super) fn shape(a: &Attention) -> Option<Shape> {
    let rank = a.dims.len();
    let dims: Vec<Expr> = a.dims.iter().copied().chain([a.keys]).collect();
    let reduction = Some(Reduction { axes: a.depth.clone(), kind: Reducer::Sum, body: a.product });
    let scores = Compute { dims, reduction, value: Scalar::local(a.product.dtype(), 0) };
    // The product with weights; only its values are read.
    let reduction = Some(Reduction { axes: vec![a.keys], kind: Reducer::Sum, body: a.values * a.values });
    let sums = Compute { dims: a.dims.clone(), reduction, value: a.value };
    let f = factors(&scores)?;
    let v = factor(a.values)?;
    let uses = |f: &Factor, axis: usize| f.index.iter().any(|e| e.uses_var(axis as u32));
    let query = (0..2).find(|&k| !uses(&f[k], rank) && uses(&f[1 - k], rank))?;
    let own = |f: &dyn Fn(usize) -> bool| (0..rank).filter(|&x| f(x) && !a.dims[x].is(1)).collect::<Vec<usize>>();
    let m = own(&|x| uses(&f[query], x) && !uses(&f[1 - query], x) && !uses(&v, x));
    let n = own(&|x| uses(&v, x) && !uses(&f[0], x) && !uses(&f[1], x));
    Some(Shape { m, n, scores, sums, query })
}

/// The plan, if there are queries enough and all fits shared memory.
pub fn plan(a: &Attention, target: &TargetDesc) -> Option<Flash> {
    let s = shape(a)?;
    let f = factors(&s.scores)?;
    let v = factor(a.values)?;
    if a.product.dtype() != DType::F32 || a.values.dtype() != DType::F32 || a.score.dtype() != DType::F32 {
        return None;
    }
    let sums = |x: DType, y: DType| Sums { dtype: DType::F32, broadcast: x, vector: y, groups: 1, small: false };
    // Tiles are those of warps.
    let target = &TargetDesc { warpgroups: false, ..target.clone() };
    let row = rows::choose(&sums(factor_dtype(&f[s.query]), factor_dtype(&f[1 - s.query])), target);
    let second = rows::choose(&sums(a.weights, factor_dtype(&v)), target);
    if row.name != second.name {
        return None;
    }
    let size = |axes: &[usize]| axes.iter().map(|&x| a.dims[x].known()).product::<Option<i64>>();
    let queries: i64 = s.m.iter().map(|&x| guess(a.dims[x])).product();
    let depth: Option<i64> = a.depth.iter().map(|e| e.known()).product();
    let (depth, columns) = (usize::try_from(depth?).ok()?, usize::try_from(size(&s.n)?).ok()?);
    if queries < QUERIES || depth == 0 || columns == 0 {
        return None;
    }
    let matrix = row.name.starts_with("mma");
    let batch: i64 = (0..a.dims.len()).filter(|x| !s.m.contains(x) && !s.n.contains(x)).map(|x| guess(a.dims[x])).product();
    let tiles = |block: usize| batch * (queries as u64).div_ceil(block as u64) as i64;
    let known = a.dims.iter().all(|d| d.known().is_some());
    let mut fitting = BLOCKS.into_iter().filter_map(|block| {
        // Each thread copies the same number of 16 bytes.
        let whole = 16.max(1024 / block[1]);
        let (depth, columns) = (depth.next_multiple_of(whole), columns.next_multiple_of(whole));
        // Where a multiprocessor has one block at most, twice as many warps hide more of each other's waiting, as in tiles of products.
        let across = 2 * 64 / block[0];
        let more = known && tiles(block[0]) <= MANY_TILES && [block[1], columns].iter().all(|n| n % (MMA[1] * across) == 0);
        let grid = match matrix {
            true => [block[0] / MMA[0], if more { across } else { across / 2 }],
            false => [16, 16],
        };
        let flash = Flash { m: s.m.clone(), n: s.n.clone(), block, depth, columns, grid, row: row.name };
        (flash.shared_bytes() as u64 <= target.shared_bytes).then_some(flash)
    });
    // Fewer queries than a tile has are no reason for a large one, nor are few tiles.
    let large = tiles(64) >= ENOUGH_BLOCKS;
    fitting.find(|p| p.block[0] as i64 <= if large { queries.max(32) } else { 32 })
}

/// As [`super::tile::rounded`], of both factors of the scores and of the values.
pub fn rounded(a: &Attention, p: &Flash, math: Math) -> [Option<i64>; 3] {
    let Some(s) = shape(a) else { return [None; 3] };
    let (Some([x, y]), Some(v)) = (factors(&s.scores), factor(a.values)) else { return [None; 3] };
    let size = |axes: &[usize]| axes.iter().map(|&x| guess(a.dims[x])).product::<i64>();
    let batch: Vec<usize> = (0..a.dims.len()).filter(|x| !p.m.contains(x) && !p.n.contains(x)).collect();
    let (batch, queries, columns) = (size(&batch), size(&p.m), size(&p.n));
    let depth: i64 = a.depth.iter().map(|&e| guess(e)).product();
    let again = guess(a.keys) * (queries as u64).div_ceil(p.block[0] as u64) as i64;
    let of_score = |k: usize| batch * depth * if k == s.query { queries } else { again };
    let all = [(x, of_score(0)), (y, of_score(1)), (v, batch * columns * again)];
    all.map(|(f, elements)| is_rounded(&f, p.row, math).then_some(elements))
}

impl Flash {
    fn matrix(&self) -> bool {
        self.row.starts_with("mma")
    }
    fn threads(&self) -> usize {
        self.grid[0] * self.grid[1] * if self.matrix() { WARP as usize } else { 1 }
    }
    /// Threads that share a row.
    fn parts(&self) -> usize {
        self.threads() / self.block[0]
    }
    fn weights(&self) -> DType {
        match self.row {
            "mma_f16" => DType::F16,
            "mma_bf16" => DType::BF16,
            _ => DType::F32,
        }
    }
    /// The tiles of both products.
    fn tiles(&self, rank: usize) -> [Tile; 2] {
        let [queries, keys] = self.block;
        let tile = |n: Vec<usize>, block| Tile {
            rows_of: 0,
            m: self.m.clone(),
            n,
            block,
            grid: self.grid,
            stored: None,
            above: None,
            row: self.row,
        };
        [tile(vec![rank], [queries, keys, self.depth]), tile(self.n.clone(), [queries, self.columns, keys])]
    }
    /// No less than what [`build`] allocates.
    fn shared_bytes(&self) -> usize {
        let [queries, keys] = self.block;
        let bytes = self.weights().bytes();
        let pad = 16 / bytes;
        // Products side by side, or lines.
        let either = |lines: usize, k: usize| (lines * (k + pad)).max(k * (lines + across_pad(self.weights(), self.matrix())));
        let factors = queries * (self.depth + pad) + either(keys, self.depth) + either(self.columns, keys);
        let weights = queries * (keys + pad);
        let scores = queries * (keys + 1);
        (factors + weights) * bytes + 4 * (scores + queries * (3 + 2 * self.parts()))
    }
}

impl fmt::Display for Flash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([queries, keys], [down, across]) = (self.block, self.grid);
        let (m, n, row) = (&self.m, &self.n, self.row);
        write!(
            f,
            "attention m={m:?} n={n:?} block={queries}x{keys} depth={} columns={} grid={down}x{across} row={row}",
            self.depth, self.columns
        )
    }
}

/// Builds the nest.
pub fn build(cx: &mut Cx, a: &Attention, p: &Flash) {
    let s = shape(a).expect("a plan was made of it");
    let both = factors(&s.scores).expect("scores are sums of products");
    let v = factor(a.values).expect("values are read");
    let rank = a.dims.len();
    let flat = |axes: &[usize]| Expr::product(axes.iter().map(|&x| a.dims[x]));
    let (rows, columns) = (flat(&p.m), flat(&p.n));
    let batch: Vec<usize> = (0..rank).filter(|x| !p.m.contains(x) && !p.n.contains(x)).collect();
    let mut grid: Vec<Expr> = batch.iter().map(|&x| a.dims[x]).collect();
    grid.push(rows.div_ceil(Expr::from(p.block[0])));
    cx.tasks = Expr::product(grid.iter().copied());
    let place = Expr::delinearise(cx.task, &grid);
    let mut axes = vec![Expr::int(0); rank + 1];
    batch.iter().zip(&place).for_each(|(&x, &v)| axes[x] = v);
    let first = place[batch.len()] * p.block[0] as i64;
    let tile = cx.var("key_tile");
    let tiles = p.tiles(rank);
    let matrix = p.matrix();
    let pad = |d: DType| 16 / d.bytes();
    let of_score = [&both[s.query], &both[1 - s.query]];
    let of_sum = [&v, &v];
    // Threads read four products of 32 bits at once, as in tiles.
    let k_last = [(&s.scores, of_score[1]), (&s.sums, &v)].map(|(c, f)| {
        let fours = shared_dtype(f, p.row).bytes() == 4;
        [true, (matrix || fours) && k_is_contiguous(cx, c, f)]
    });
    let mut tensor = |name: &'static str, dtype: DType, lines: usize, k: usize, k_last: bool| {
        let dims = if k_last { [lines, k + pad(dtype)] } else { [k, lines + across_pad(dtype, matrix)] };
        cx.scratch(name, dtype, &dims, Space::Shared)
    };
    let [queries, keys] = p.block;
    let query = tensor("query", shared_dtype(of_score[0], p.row), queries, p.depth, true);
    let key = tensor("key", shared_dtype(of_score[1], p.row), keys, p.depth, k_last[0][1]);
    let value = tensor("value", shared_dtype(&v, p.row), p.columns, keys, k_last[1][1]);
    let weight = tensor("weight", p.weights(), queries, keys, true);
    // An odd length of rows puts neighbouring rows into different banks.
    let score = cx.scratch("score", DType::F32, &[queries, keys + 1], Space::Shared);
    let [most, sum, scale] = ["most", "sum", "scale"].map(|name| cx.scratch(name, DType::F32, &[queries], Space::Shared));
    let [mosts, sums] = ["mosts", "sums"].map(|name| cx.scratch(name, DType::F32, &[queries, p.parts()], Space::Shared));
    let acc = tiles.each_ref().map(|t| cx.scratch("acc", DType::F32, &t.own(), Space::Reg));
    let threads = p.threads();
    let key_line = (&tiles[0].n[..], a.keys, tile * keys as i64);
    let query_line = (&p.m[..], rows, first);
    let depth = Expr::product(a.depth.iter().copied());
    // Weights are kept as the instruction takes them.
    let exact = [of_score.map(|f| is_exact(cx, f)), [true, is_exact(cx, &v)]];
    let of = |t: usize, f, lines, depth, shared| Parts {
        c: [&s.scores, &s.sums][t],
        p: &tiles[t],
        f,
        axes: axes[..rank + 1 - t].to_vec(),
        lines,
        depth,
        threads,
        shared,
        k_last: k_last[t],
        packed: [false; 2],
        exact: exact[t],
        widened: [None, None],
        acc: acc[t],
    };
    let scores = of(0, of_score, [query_line, key_line], depth, [query, key]);
    let result = of(1, of_sum, [query_line, (&p.n[..], columns, Expr::int(0))], a.keys, [weight, value]);

    let own = [query, key, value, weight, score, most, sum, scale, mosts, sums, acc[0], acc[1]];
    cx.body = own.map(|buffer| Stmt::Alloc { buffer }).to_vec();
    let online = Online { rows: queries, keys, parts: p.parts(), threads, score, weight, most, sum, scale, mosts, sums };
    let start = online.start(cx);
    let clear = result.each_element(cx, &|cx, at, _| vec![cx.put(acc[1], at, number(0.0))]);
    let load = scores.stage(cx, 0, Expr::int(0));
    cx.body.extend([start, clear, load]);

    let mut round = vec![scores.stage(cx, 1, Expr::int(0)), result.stage(cx, 1, tile)];
    round.push(scores.each_element(cx, &|cx, at, _| vec![cx.put(acc[0], at, number(0.0))]));
    round.push(if matrix { scores.multiply_tiles(cx) } else { scores.multiply(cx) });
    round.push(scores.each_element(cx, &|cx, at, [line, column]| {
        let (row, key) = (first + line, tile * keys as i64 + column);
        let mut all = axes.clone();
        let dims: Vec<Expr> = p.m.iter().map(|&x| a.dims[x]).collect();
        p.m.iter().zip(Expr::delinearise(row, &dims)).for_each(|(&x, v)| all[x] = v);
        all[rank] = key;
        let inside = within(row, rows, queries as i64).and(within(key, a.keys, keys as i64));
        let value = super::elementwise::with_accumulator(a.score.subst(&all), cx.at(acc[0], at));
        let store = |value| cx.put(score, &[line, column], value);
        let then = vec![store(value)];
        match inside.as_int() {
            Some(_) => then,
            None => vec![Stmt::If { cond: inside, then, otherwise: vec![store(number(f64::NEG_INFINITY))] }],
        }
    }));
    let kept = |e: Scalar| if p.row == "mma_tf32" { tf32::round(e) } else { e.cast(p.weights()) };
    round.extend(online.update(cx, &kept));
    round.push(result.each_element(cx, &|cx, at, [line, _]| vec![cx.put(acc[1], at, cx.at(acc[1], at) * cx.at(scale, &[line]))]));
    round.push(if matrix { result.multiply_tiles(cx) } else { result.multiply(cx) });
    cx.body.push(for_each(tile, a.keys.div_ceil(Expr::from(keys)), LoopKind::Serial, round));
    let finish = result
        .each_element(cx, &|cx, at, place| result.finish(cx, quotient(a, cx.at(acc[1], at), cx.at(sum, &[place[0]])), place));
    cx.body.push(finish);
}
