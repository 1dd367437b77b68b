//! Attention of few queries for GPUs, as in decoding: keys are shared out (split-KV, as in FlashDecoding by Dao et al. 2023). A block of threads takes a part of
//! the keys with up to 8 rows - queries, and the heads that share keys - and leaves sums of weighted values, their largest score and the sum of their weights; a second kernel
//! puts the parts together, in order. How many parts follows from shapes alone. With one part, the first kernel ends it.
//!
//! Keys and values are read once, which is all the time that takes; so products are added up in f32 by each thread for itself, whatever the
//! precision of matrix instructions. Eight threads share the product of a row with a key, and threads with the same columns share out a tile's keys.

use super::attention::{Flash, shape};
use super::contract::{Factor, factor, factors};
use super::elementwise::with_accumulator;
use super::online::{Online, name, number, origin, quotient};
use super::tile::{Parts, STORED, k_is_contiguous, shared_dtype, within};
use super::{Cx, accumulate, for_each};
use crate::attention::Attention;
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::{Tile, guess};
use infc_ir::compute::{Reducer, simplify_scalar};
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Scalar, Unary};
use infc_ir::{DType, Expr, TensorType};
use std::fmt;

/// Sizes of attention in parts of the keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Decode {
    /// The axis of heads that share keys and values, and how many do: these are rows, as queries are. It becomes an axis of groups, and one more axis behind
    /// all others is the place in a group.
    pub group: Option<(usize, i64)>,
    /// Axes that are rows, outermost first.
    pub m: Vec<usize>,
    /// Axes that are columns of the values, outermost first.
    pub n: Vec<usize>,
    /// Rows of a block.
    pub rows: usize,
    /// Keys of a tile.
    pub keys: usize,
    /// Products of a query with a key, with what fills up tiles.
    pub depth: usize,
    /// The same for columns of the values.
    pub columns: usize,
    /// Threads along columns; those that are left share out the keys of a tile.
    pub across: usize,
    /// Parts of the keys.
    pub parts: usize,
}

/// Threads of a block, those that share the product of a row with a key, and those that share the statistics of a row.
const THREADS: usize = 128;
const SLICES: usize = 8;
const SHARERS: usize = 8;
/// The most rows of a block, and sums of weighted values that a thread has.
const ROWS: usize = 8;
const SUMS: usize = 64;
/// The most queries.
const QUERIES: i64 = 64;
/// Blocks that fill a GPU, and the most parts where the number of keys is not known.
const BLOCKS: i64 = 264;
const PARTS: i64 = 32;
/// Bytes of shared memory that every GPU has for a block without being asked.
const SHARED: usize = 48 << 10;

/// The attention with an axis of its own, the last one, for the heads that share keys.
fn grouped(a: &Attention, group: Option<(usize, i64)>) -> Attention {
    let Some((x, g)) = group else { return a.clone() };
    let rank = a.dims.len();
    let mut out = a.clone();
    out.dims[x] = a.dims[x].div(Expr::int(g));
    out.dims.push(Expr::int(g));
    let mut map: Vec<Expr> = (0..rank + 1 + a.depth.len()).map(|v| Expr::var(v + usize::from(v >= rank))).collect();
    map[x] = Expr::var(x) * g + Expr::var(rank);
    let all: Vec<Expr> = out.dims.iter().copied().chain([a.keys]).chain(a.depth.iter().copied()).collect();
    let ranges = Ranges::of_axes(&all);
    for s in [&mut out.product, &mut out.score, &mut out.values, &mut out.value] {
        *s = simplify_scalar(s.subst(&map), &ranges);
    }
    out
}

/// The axis of heads that share keys and values, and how many do.
fn shared_heads(a: &Attention) -> Option<(usize, i64)> {
    let s = shape(a)?;
    let f = factors(&s.scores)?;
    let rank = a.dims.len();
    let mut found = vec![];
    for e in f[1 - s.query].index.iter().chain(&factor(a.values)?.index) {
        quotients(*e, &mut found);
    }
    let fits = |x: usize, g: i64| x < rank && g > 1 && a.dims[x].known().is_some_and(|n| n % g == 0);
    found.into_iter().filter(|&(x, g)| fits(x, g)).find(|&group| {
        let a = grouped(a, Some(group));
        let unused = |f: &Factor| f.index.iter().all(|e| !e.uses_var(rank as u32));
        let keys = shape(&a).and_then(|s| Some((factors(&s.scores)?, s.query)));
        keys.is_some_and(|(f, query)| unused(&f[1 - query])) && factor(a.values).is_some_and(|v| unused(&v))
    })
}

/// Variables that are divided by a constant, and by what.
fn quotients(e: Expr, found: &mut Vec<(usize, i64)>) {
    match e.node() {
        Node::Const(_) | Node::Sym(_) | Node::Var(_) => {}
        Node::Sum { terms, .. } => terms.iter().for_each(|(t, _)| quotients(*t, found)),
        Node::Product(all) => all.iter().for_each(|&t| quotients(t, found)),
        Node::Div(a, b) => {
            if let (Node::Var(v), Some(g)) = (a.node(), b.known()) {
                found.push((*v as usize, g));
            }
            quotients(*a, found);
        }
        Node::Mod(a, _) => quotients(*a, found),
        Node::Min(a, b) | Node::Max(a, b) => {
            quotients(*a, found);
            quotients(*b, found);
        }
    }
}

/// The plan, if queries are few, their number is known, and tiles fit shared memory.
pub fn plan(a: &Attention) -> Option<Decode> {
    let queries = shape(a)?.m.iter().map(|&x| a.dims[x].known()).product::<Option<i64>>()?;
    if queries > QUERIES || [a.product, a.values, a.score].iter().any(|s| s.dtype() != DType::F32) {
        return None;
    }
    let group = shared_heads(a);
    let a = &grouped(a, group);
    let s = shape(a)?;
    let size = |axes: &[usize]| axes.iter().map(|&x| a.dims[x].known()).product::<Option<i64>>();
    let all = usize::try_from(size(&s.m)?).ok()?;
    let depth = a.depth.iter().map(|e| e.known()).product::<Option<i64>>()?;
    let (depth, columns) = (usize::try_from(depth).ok()?, usize::try_from(size(&s.n)?).ok()?);
    if all == 0 || depth == 0 || columns == 0 {
        return None;
    }
    let mut rows = all.div_ceil(all.div_ceil(ROWS));
    // Threads along the columns: as many as need little more to fill up, unless each had many.
    let most = columns.next_multiple_of(16).max(columns + columns / 8);
    let fill = |across: &usize| columns.next_multiple_of(*across) <= most;
    let mut across = [THREADS, THREADS / 2, THREADS / 4].into_iter().find(fill).unwrap_or(16);
    let mut wide = columns.next_multiple_of(across);
    if rows * wide / across > SUMS {
        wide = columns.next_multiple_of(THREADS);
        across = THREADS;
        rows = rows.min(SUMS / (wide / across)).max(1);
    }
    let batch: i64 = (0..a.dims.len()).filter(|x| !s.m.contains(x) && !s.n.contains(x)).map(|x| guess(a.dims[x])).product();
    let blocks = (batch * all.div_ceil(rows) as i64).max(1);
    let many = (blocks as u64).saturating_mul((guess(a.keys).max(1) as u64).div_ceil(64)) >= BLOCKS as u64 / 2;
    let fits = |&keys: &usize| {
        let p = Decode {
            group,
            m: s.m.clone(),
            n: s.n.clone(),
            rows,
            keys,
            depth: depth.next_multiple_of(16),
            columns: wide,
            across,
            parts: 1,
        };
        let f = factors(&s.scores)?;
        let dtypes = [shared_dtype(&f[1 - s.query], STORED), shared_dtype(&factor(a.values)?, STORED)];
        (wide / across * rows <= SUMS && p.shared_bytes(dtypes) <= SHARED).then_some(p)
    };
    let sizes = if many || a.keys.known().is_none() { &[64, 32, 16][..] } else { &[32, 16] };
    let mut p = sizes.iter().find_map(fits)?;
    let wanted = (BLOCKS / blocks).max(1);
    let parts = match a.keys.known() {
        None => wanted.min(PARTS),
        Some(keys) => {
            let tiles = keys.max(1).unsigned_abs().div_ceil(p.keys as u64) as i64;
            let each = tiles.unsigned_abs().div_ceil(wanted.min(tiles).unsigned_abs());
            tiles.unsigned_abs().div_ceil(each) as i64
        }
    };
    p.parts = parts as usize;
    Some(p)
}

impl Decode {
    /// No less than what [`build`] allocates; dtypes are those of keys and values.
    fn shared_bytes(&self, dtypes: [DType; 2]) -> usize {
        // Neighbours are products or lines.
        let tile = |d: DType, lines: usize, k: usize| (lines * (k + pad(d))).max(k * (lines + pad(d) / 2)) * d.bytes();
        let factors = tile(dtypes[0], self.keys, self.depth) + tile(dtypes[1], self.columns, self.keys);
        let query = self.rows * (self.depth + pad(DType::F32));
        let scores = self.rows * self.keys * (SLICES + 2);
        let sums = self.rows * (3 + 2 * SHARERS) + THREADS / self.across * self.rows * self.columns;
        factors + 4 * (query + scores + sums) + 16 * 12
    }

    /// The tensor of sums of the parts: batches, parts, rows, and columns with largest score and sum of weights behind them.
    pub fn sums(&self, a: &Attention) -> TensorType {
        let a = grouped(a, self.group);
        let flat = |axes: &[usize]| Expr::product(axes.iter().map(|&x| a.dims[x]));
        let dims = [flat(&self.batch(&a)), Expr::from(self.parts), flat(&self.m), flat(&self.n) + 2];
        TensorType::new(DType::F32, dims)
    }

    /// Do tiles of queries leave most of a GPU idle, while there are keys enough to share out?
    pub fn is_wider(&self, a: &Attention, tiles: &Flash) -> bool {
        let size = |of: &dyn Fn(&usize) -> bool| (0..a.dims.len()).filter(of).map(|x| guess(a.dims[x])).product::<i64>();
        let rows = size(&|x| tiles.m.contains(x)).unsigned_abs().div_ceil(tiles.block[0] as u64);
        let batch = size(&|x| !tiles.m.contains(x) && !tiles.n.contains(x));
        self.parts >= 4 && batch.unsigned_abs().saturating_mul(8 * rows) <= BLOCKS as u64
    }

    fn batch(&self, a: &Attention) -> Vec<usize> {
        (0..a.dims.len()).filter(|x| !self.m.contains(x) && !self.n.contains(x)).collect()
    }

    /// The index of the result, from the axes of the grouped attention.
    fn ungrouped(&self, axes: &[Expr]) -> Vec<Expr> {
        let mut out = axes.to_vec();
        if let Some((x, g)) = self.group {
            let place = out.pop().expect("the place in a group is the last axis");
            out[x] = out[x] * g + place;
        }
        out
    }

    /// Tiles of a part.
    fn tiles_of_part(&self, keys: Expr) -> Expr {
        self.tiles(keys).div_ceil(Expr::from(self.parts))
    }

    fn tiles(&self, keys: Expr) -> Expr {
        keys.div_ceil(Expr::from(self.keys))
    }
}

impl fmt::Display for Decode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Decode { m, n, rows, keys, parts, depth, columns, across, .. } = self;
        write!(f, "decode m={m:?} n={n:?} block={rows}x{keys} parts={parts} depth={depth} columns={columns} across={across}")?;
        self.group.map_or(Ok(()), |(x, g)| write!(f, " shared={x}:{g}"))
    }
}

/// Rows of so many elements more are in different banks, for the threads that share products.
fn pad(d: DType) -> usize {
    32 / d.bytes()
}

/// Builds the nest of the parts, or of all if there is one part.
pub fn build(cx: &mut Cx, a: &Attention, p: &Decode) {
    let a = &grouped(a, p.group);
    let s = shape(a).expect("a plan was made of it");
    let both = factors(&s.scores).expect("scores are sums of products");
    let v = factor(a.values).expect("values are read");
    let rank = a.dims.len();
    let flat = |axes: &[usize]| Expr::product(axes.iter().map(|&x| a.dims[x]));
    let (rows, columns) = (flat(&p.m), flat(&p.n));
    let batch = p.batch(a);
    let batch_dims: Vec<Expr> = batch.iter().map(|&x| a.dims[x]).collect();
    let grid: Vec<Expr> = batch_dims.iter().copied().chain([rows.div_ceil(Expr::from(p.rows)), Expr::from(p.parts)]).collect();
    cx.tasks = Expr::product(grid.iter().copied());
    let place = Expr::delinearise(cx.task, &grid);
    let [part, first] = [place[batch.len() + 1], place[batch.len()] * p.rows as i64];
    let mut axes = vec![Expr::int(0); rank + 1];
    batch.iter().zip(&place).for_each(|(&x, &v)| axes[x] = v);
    let tile = cx.var("key_tile");
    let step = part * p.tiles_of_part(a.keys) + tile;

    let of_score = [&both[s.query], &both[1 - s.query]];
    let k_last = [k_is_contiguous(cx, &s.scores, of_score[1]), k_is_contiguous(cx, &s.sums, &v)];
    let shared = |cx: &mut Cx, name: &str, f: &Factor, lines: usize, k: usize, k_last: bool| {
        let dtype = shared_dtype(f, STORED);
        let dims = if k_last { [lines, k + pad(dtype)] } else { [k, lines + pad(dtype) / 2] };
        cx.scratch(name, dtype, &dims, Space::Shared)
    };
    let query = shared(cx, "query", of_score[0], p.rows, p.depth, true);
    let key = shared(cx, "key", of_score[1], p.keys, p.depth, k_last[0]);
    let value = shared(cx, "value", &v, p.columns, p.keys, k_last[1]);
    let f32s = |cx: &mut Cx, name: &str, dims: &[usize], space| cx.scratch(name, DType::F32, dims, space);
    let slices = f32s(cx, "slices", &[p.rows, p.keys, SLICES + 1], Space::Shared);
    let score = f32s(cx, "score", &[p.rows, p.keys + 1], Space::Shared);
    let [most, sum, scale] = ["most", "sum", "scale"].map(|name| f32s(cx, name, &[p.rows], Space::Shared));
    let [mosts, sums] = ["mosts", "sums"].map(|name| f32s(cx, name, &[p.rows, SHARERS], Space::Shared));
    let (along, own, of_key) = (THREADS / p.across, p.columns / p.across, p.keys * SLICES / THREADS);
    let joined = f32s(cx, "joined", &[along, p.rows, p.columns], Space::Shared);
    let acc = [[p.rows, of_key], [p.rows, own]].map(|[x, y]| f32s(cx, "acc", &[THREADS, x, y], Space::Reg));
    let buffers = [query, key, value, slices, score, most, sum, scale, mosts, sums, joined, acc[0], acc[1]];
    cx.body = buffers.map(|buffer| Stmt::Alloc { buffer }).to_vec();

    let tiles = [(vec![rank], [p.rows, p.keys, p.depth]), (p.n.clone(), [p.rows, p.columns, p.keys])].map(|(n, block)| Tile {
        rows_of: 0,
        m: p.m.clone(),
        n,
        block,
        grid: [1, 1],
        stored: None,
        above: None,
        row: STORED,
    });
    let depth = Expr::product(a.depth.iter().copied());
    let key_line = (&tiles[0].n[..], a.keys, step * p.keys as i64);
    let query_line = (&p.m[..], rows, first);
    let of = |t: usize, f, lines, depth, shared| Parts {
        c: [&s.scores, &s.sums][t],
        p: &tiles[t],
        f,
        axes: axes[..rank + 1 - t].to_vec(),
        lines,
        depth,
        threads: THREADS,
        shared,
        k_last: [true, k_last[t]],
        packed: [false; 2],
        exact: [false; 2],
        widened: [None, None],
        acc: acc[t],
    };
    let scores = of(0, of_score, [query_line, key_line], depth, [query, key]);
    let result = of(1, [&v, &v], [query_line, (&p.n[..], columns, Expr::int(0))], a.keys, [score, value]);
    let online = Online {
        rows: p.rows,
        keys: p.keys,
        parts: SHARERS,
        threads: THREADS,
        score,
        weight: score,
        most,
        sum,
        scale,
        mosts,
        sums,
    };
    let start = online.start(cx);
    let clear = threads(cx, |cx, t, body| {
        each(p.rows, own, |r, c| body.push(cx.put(acc[1], &[t, r, c], number(0.0))));
    });
    let load = scores.stage(cx, 0, Expr::int(0));
    cx.body.extend([start, clear, load]);

    let mut round = vec![scores.stage(cx, 1, Expr::int(0)), result.stage(cx, 1, step)];
    // Each thread has every eighth product of some keys, with all rows.
    let depth_step = p.depth / SLICES;
    round.push(threads(cx, |cx, t, body| {
        let (slice, at) = (t.rem(Expr::from(SLICES)), t.div(Expr::from(SLICES)));
        let key_of = |j: usize| at + (j * (THREADS / SLICES)) as i64;
        each(p.rows, of_key, |r, j| body.push(cx.put(acc[0], &[t, r, j], number(0.0))));
        let k = cx.var("k");
        let product = k * SLICES as i64 + slice;
        let mut inner = vec![];
        let q = list(p.rows, |r| name(cx, cx.at(query, &[Expr::from(r), product]).cast(DType::F32), &mut inner));
        let of_keys = list(of_key, |j| {
            let at = if k_last[0] { [key_of(j), product] } else { [product, key_of(j)] };
            name(cx, element(cx, key, &at, of_score[1]), &mut inner)
        });
        each(p.rows, of_key, |r, j| {
            let at = [t, r, j];
            let (q, k) = (q[index(r)], of_keys[index(j)]);
            let next = accumulate(Reducer::Sum, cx.at(acc[0], &at), q * k, cx.target.fma);
            inner.push(cx.put(acc[0], &at, next));
        });
        let kind = if depth_step <= 16 { LoopKind::Unroll } else { LoopKind::Serial };
        body.push(for_each(k, Expr::from(depth_step), kind, inner));
        each(p.rows, of_key, |r, j| {
            body.push(cx.put(slices, &[r, key_of(index(j)), slice], cx.at(acc[0], &[t, r, j])));
        });
    }));
    round.push(spread(cx, [p.rows, p.keys], |cx, [line, column]| {
        let (row, key) = (first + line, step * p.keys as i64 + column);
        let mut all = axes.clone();
        let dims: Vec<Expr> = p.m.iter().map(|&x| a.dims[x]).collect();
        p.m.iter().zip(Expr::delinearise(row, &dims)).for_each(|(&x, v)| all[x] = v);
        all[rank] = key;
        let inside = within(row, rows, p.rows as i64).and(within(key, a.keys, p.keys as i64));
        let total = list(SLICES, |k| cx.at(slices, &[line, column, Expr::from(k)])).into_iter().reduce(|a, b| a + b);
        let value = with_accumulator(a.score.subst(&all), total.expect("a product has slices"));
        let store = |value| cx.put(score, &[line, column], value);
        let then = vec![store(value)];
        match inside.as_int() {
            Some(_) => then,
            None => vec![Stmt::If { cond: inside, then, otherwise: vec![store(number(f64::NEG_INFINITY))] }],
        }
    }));
    round.extend(online.update(cx, &|e| e));
    round.push(threads(cx, |cx, t, body| {
        let (slice, column) = (t.div(Expr::from(p.across)), t.rem(Expr::from(p.across)));
        let scales = list(p.rows, |r| name(cx, cx.at(scale, &[Expr::from(r)]), body));
        each(p.rows, own, |r, c| {
            let at = [t, r, c];
            body.push(cx.put(acc[1], &at, cx.at(acc[1], &at) * scales[index(r)]));
        });
        let k = cx.var("k");
        let key = k * along as i64 + slice;
        let mut inner = vec![];
        let weights = list(p.rows, |r| name(cx, cx.at(score, &[Expr::from(r), key]), &mut inner));
        let values = list(own, |c| {
            let column = column + (c * p.across) as i64;
            let at = if k_last[1] { [column, key] } else { [key, column] };
            name(cx, element(cx, value, &at, &v), &mut inner)
        });
        each(p.rows, own, |r, c| {
            let at = [t, r, c];
            let (w, v) = (weights[index(r)], values[index(c)]);
            let next = accumulate(Reducer::Sum, cx.at(acc[1], &at), w * v, cx.target.fma);
            inner.push(cx.put(acc[1], &at, next));
        });
        let count = p.keys / along;
        let kind = if count <= 16 { LoopKind::Unroll } else { LoopKind::Serial };
        body.push(for_each(k, Expr::from(count), kind, inner));
    }));
    let each_part = p.tiles_of_part(a.keys);
    let whole = p.tiles(a.keys).known().is_some_and(|n| n % p.parts as i64 == 0);
    let extent = if whole { each_part } else { (p.tiles(a.keys) - part * each_part).min(each_part) };
    cx.body.push(for_each(tile, extent, LoopKind::Serial, round));

    let join = threads(cx, |cx, t, body| {
        let (slice, column) = (t.div(Expr::from(p.across)), t.rem(Expr::from(p.across)));
        each(p.rows, own, |r, c| {
            let at = [slice, r, column + c * p.across as i64];
            body.push(cx.put(joined, &at, cx.at(acc[1], &[t, r, c])));
        });
    });
    cx.body.push(join);
    let number_of = |place: &[Expr]| Expr::linearise(place, &batch_dims);
    let batch_number = number_of(&place[..batch.len()]);
    let known = |e: Expr| e.known().expect("a plan has known columns") as usize;
    let finish = spread(cx, [p.rows, known(columns)], |cx, [line, column]| {
        let row = first + line;
        let total = list(along, |k| cx.at(joined, &[Expr::from(k), line, column])).into_iter().reduce(|a, b| a + b);
        let total = total.expect("some thread has it");
        let store = match p.parts {
            1 => {
                let mut all = axes[..rank].to_vec();
                for (list, at) in [(&p.m, row), (&p.n, column)] {
                    let dims: Vec<Expr> = list.iter().map(|&x| a.dims[x]).collect();
                    list.iter().zip(Expr::delinearise(at, &dims)).for_each(|(&x, v)| all[x] = v);
                }
                let value = quotient(a, total, cx.at(sum, &[line]));
                cx.store_out(&p.ungrouped(&all), with_accumulator(a.value.subst(&all), value))
            }
            _ => cx.store_out(&[batch_number, part, row, column], total),
        };
        only_if(within(row, rows, p.rows as i64), vec![store])
    });
    cx.body.push(finish);
    if p.parts > 1 {
        let statistics = spread(cx, [p.rows, 2], |cx, [line, which]| {
            let row = first + line;
            let value = Scalar::select(Scalar::index(which).lt(Scalar::index(1)), cx.at(most, &[line]), cx.at(sum, &[line]));
            let store = cx.store_out(&[batch_number, part, row, columns + which], value);
            only_if(within(row, rows, p.rows as i64), vec![store])
        });
        cx.body.push(statistics);
    }
}

/// Builds the nest that puts parts together, which are the last source: an element of the result is a task.
pub fn build_join(cx: &mut Cx, a: &Attention, p: &Decode) {
    let sums = cx.out() as usize - 1;
    let grouped = grouped(a, p.group);
    // Neighbouring tasks are neighbours in the result.
    let mut order: Vec<usize> = (0..a.dims.len()).collect();
    let strides = &cx.operand(cx.out() as usize).buffer.strides;
    order.sort_by_key(|&x| (std::cmp::Reverse(strides[x].known().unwrap_or(i64::MAX)), x));
    let dims: Vec<Expr> = order.iter().map(|&x| a.dims[x]).collect();
    let chunk = cx.chunked(&dims, 1);
    let mut axes = vec![Expr::int(0); a.dims.len()];
    order.iter().zip(&chunk.values).for_each(|(&x, &v)| axes[x] = v);
    let mut all = axes.clone();
    if let Some((x, g)) = p.group {
        all[x] = axes[x].div(Expr::int(g));
        all.push(axes[x].rem(Expr::int(g)));
    }
    let flat = |list: &[usize]| {
        let [index, dims] = [&all, &grouped.dims].map(|of| list.iter().map(|&x| of[x]).collect::<Vec<Expr>>());
        (Expr::linearise(&index, &dims), Expr::product(dims))
    };
    let ((batch, _), (row, _), (column, columns)) = (flat(&p.batch(&grouped)), flat(&p.m), flat(&p.n));
    let of = |part: Expr, column: Expr| Scalar::read_at(DType::F32, sums, &[batch, part, row, column]);
    let at = [Expr::int(0)];
    let [most, sum, total] = ["most", "sum", "total"].map(|name| cx.scratch(name, DType::F32, &[1], Space::Reg));
    let start = [(most, f64::NEG_INFINITY), (sum, 0.0), (total, 0.0)].map(|(b, x)| cx.put(b, &at, number(x)));
    let mut body: Vec<Stmt> = [most, sum, total].map(|buffer| Stmt::Alloc { buffer }).into();
    body.extend(start);
    let part = cx.var("part");
    let larger = cx.put(most, &at, cx.at(most, &at).max(of(part, columns)));
    body.push(for_each(part, Expr::from(p.parts), LoopKind::Serial, vec![larger]));
    let from = name(cx, origin(cx.at(most, &at)), &mut body);
    let part = cx.var("part");
    let mut add = vec![];
    let scale = name(cx, Scalar::unary(Unary::Exp, of(part, columns) - from), &mut add);
    for (b, column) in [(sum, columns + 1), (total, column)] {
        add.push(cx.put(b, &at, accumulate(Reducer::Sum, cx.at(b, &at), scale * of(part, column), cx.target.fma)));
    }
    body.push(for_each(part, Expr::from(p.parts), LoopKind::Serial, add));
    let value = quotient(a, cx.at(total, &at), cx.at(sum, &at));
    body.push(cx.store_out(&axes, with_accumulator(a.value.subst(&axes), value)));
    cx.body = chunk.wrap(body);
}

/// An element of a factor, from shared memory.
fn element(cx: &Cx, buffer: u32, at: &[Expr], f: &Factor) -> Scalar {
    cx.at(buffer, at).cast(f.scalar.dtype())
}

/// A loop over all threads.
fn threads(cx: &mut Cx, make: impl FnOnce(&mut Cx, Expr, &mut Vec<Stmt>)) -> Stmt {
    let thread = cx.var("thread");
    let mut body = vec![];
    make(cx, thread, &mut body);
    for_each(thread, Expr::from(THREADS), LoopKind::Thread, body)
}

/// Elements of a matrix, shared out to all threads.
fn spread(cx: &mut Cx, [rows, columns]: [usize; 2], make: impl FnOnce(&mut Cx, [Expr; 2]) -> Vec<Stmt>) -> Stmt {
    let (thread, turn) = (cx.var("thread"), cx.var("turn"));
    let all = rows * columns;
    let flat = turn * THREADS as i64 + thread;
    let mut body = make(cx, [flat.div(Expr::from(columns)), flat.rem(Expr::from(columns))]);
    if all % THREADS > 0 {
        body = only_if(Scalar::index(flat).lt(Scalar::index(all)), body);
    }
    let body = vec![for_each(turn, Expr::from(all.div_ceil(THREADS)), LoopKind::Unroll, body)];
    for_each(thread, Expr::from(THREADS), LoopKind::Thread, body)
}

fn only_if(cond: Scalar, then: Vec<Stmt>) -> Vec<Stmt> {
    match cond.as_int() {
        Some(_) => then,
        None => vec![Stmt::If { cond, then, otherwise: vec![] }],
    }
}

/// Calls `make` for each row and column of a thread's own.
fn each(rows: usize, columns: usize, mut make: impl FnMut(Expr, Expr)) {
    (0..rows).for_each(|r| (0..columns).for_each(|c| make(Expr::from(r), Expr::from(c))));
}

fn list(n: usize, make: impl FnMut(usize) -> Scalar) -> Vec<Scalar> {
    (0..n).map(make).collect()
}

fn index(e: Expr) -> usize {
    e.known().expect("a number") as usize
}
