//! Attention in one kernel for CPUs: a task is a strip of queries, as many as the columns of a register tile, and all that it needs stays in L1.
//!
//! Queries lie across lanes: scores of a tile are sums of products of broadcast elements of keys, as they lie in memory, with vectors of queries, which
//! the task transposes once. So the largest score and the sum of weights of each query are a lane, without sums across vectors. Weights take the place of
//! scores; the product with the values broadcasts them, with vectors of values as they lie.
//!
//! Where the scores of a strip with all keys are few enough, they are one tile: the softmax of the steps, but for the division, which comes last.
//! With more keys, weights are relative to the largest score so far, and sums are scaled where a tile brings a larger one (online softmax, after Milakov and
//! Gimelshein 2018, and Dao et al. 2022). Memory is that of a tile either way.
//!
//! Few queries, as in decoding, would leave lanes empty: they are taken one by one, with lanes along the depth of the scores and then along keys.
//!
//! With `--math bf16` on machines that add up pairs fast (the row `bf16_dot`), a strip's queries, keys, weights and values are rounded into words of two neighbours along the
//! sum; weights are summed up before they are rounded. Queries that are taken one by one stay f32.
//!
//! A row whose scores are all -inf has a sum of weights of 0, and gives 0 or NaN, as its steps do.

use super::attention::{Shape, shape};
use super::contract::{Factor, factor, factors};
use super::elementwise::with_accumulator;
use super::online::quotient;
use super::{Cx, for_each};
use crate::attention::{Attention, uncast};
use crate::loops::{LoopKind, Space, Stmt};
use crate::math::exp_flushed;
use crate::plan::guess;
use crate::rows::{self, Row, Sums};
use crate::target::TargetDesc;
use infc_ir::scalar::{Binary, Kind, Scalar, Unary};
use infc_ir::{DType, Expr};
use std::fmt;

mod alone;
mod staged;

/// Sizes of attention in strips.
#[derive(Clone, Debug, PartialEq)]
pub struct Strips {
    /// Output axes that are queries, outermost first.
    pub m: Vec<usize>,
    /// The output axis of columns of the values.
    pub n: usize,
    /// Queries of a strip.
    pub queries: usize,
    /// Keys of a tile.
    pub keys: usize,
    /// A tile has all keys.
    pub whole: bool,
    /// Keys of a register tile of scores, whose columns are the queries of a strip.
    pub rows: usize,
    /// Queries and columns of a register tile of the result.
    pub sums: [usize; 2],
    /// So many queries or fewer are taken one by one.
    pub alone: usize,
    /// Keys and values are brought into scratch memory, as f32 or as words of pairs.
    pub packed: [bool; 2],
    /// The row of [`crate::rows::ROWS`] that adds products up.
    pub row: &'static str,
    /// Where a run tells how many queries there are: strips of one vector, for queries that are no more, over keys that are one tile.
    pub short: Option<Box<Strips>>,
}

impl Strips {
    /// Neighbours along a sum that a step takes.
    fn group(&self) -> usize {
        rows::named(self.row).expect("a plan names a row of the table").depth
    }
}

/// Queries that are fewer than this are taken one by one.
const FEW: i64 = 4;
/// Variables that stand for the place in a register tile of scores.
const STAGED: usize = 64;
/// Cycles that it takes to round a vector of keys or values and to put it into words.
const ROUNDING: f64 = 2.0;
/// Keys that are computed together for a single query.
const TOGETHER: usize = 4;

/// Where the factors of an attention lie: the offset of an element of a tensor, by its number in the list of sources.
pub type Offset<'a> = &'a dyn Fn(usize, &[Expr]) -> Option<Expr>;

/// Cycles of a step along the reduction of a register tile: of the sums, of two loads a cycle, and one for the round.
fn cycles(rows: usize, vectors: usize, row: &Row) -> f64 {
    let steps = (rows * vectors) as f64 / row.per_cycle;
    steps.max((rows + vectors) as f64 / 2.0).max(row.latency) + 1.0
}

/// The row for sums of products of a dtype, so many neighbours in a step.
fn row_of(dtype: DType, groups: usize, target: &TargetDesc) -> &'static Row {
    rows::choose(&Sums { dtype: DType::F32, broadcast: dtype, vector: dtype, groups, small: false }, target)
}

/// The register tile of the result for so many queries of a strip: rows that divide the strip, columns; and cycles for each key.
fn sums(strip: usize, queries: usize, columns: usize, lanes: usize, target: &TargetDesc, row: &Row) -> ([usize; 2], f64) {
    let mut best = ([1, columns.min(lanes)], f64::INFINITY);
    for mr in (1..=strip.min(14)).filter(|mr| strip % mr == 0) {
        let beside = row.registers_on(target, mr);
        for vectors in 1..=8usize {
            if mr * vectors + beside[0] * vectors + beside[1] > target.vector_registers as usize {
                continue;
            }
            let nr = (vectors * lanes).min(columns);
            let rest = (columns % nr).div_ceil(lanes);
            let across = (columns / nr) as f64 * cycles(mr, nr.div_ceil(lanes), row);
            let across = across + if rest > 0 { cycles(mr, rest, row) } else { 0.0 };
            let all = queries.div_ceil(mr) as f64 * across;
            if all < best.1 * 0.999 {
                best = ([mr, nr], all);
            }
        }
    }
    best
}

/// The plan, if the machine and the shapes have one. `offset` says where elements lie.
pub fn plan(a: &Attention, offset: Offset, target: &TargetDesc) -> Option<Strips> {
    let s = shape(a)?;
    let f = factors(&s.scores)?;
    let v = factor(a.values)?;
    let [n] = s.n[..] else { return None };
    if a.product.dtype() != DType::F32 || a.values.dtype() != DType::F32 || a.score.dtype() != DType::F32 {
        return None;
    }
    let rank = a.dims.len() as u32;
    let depth: i64 = a.depth.iter().map(|e| e.known()).product::<Option<i64>>()?;
    let columns = usize::try_from(a.dims[n].known()?).ok()?;
    if depth == 0 || columns == 0 || a.keys.is(0) {
        return None;
    }
    let step = |f: &Factor, var: u32| offset(f.source, &f.index).and_then(|o| o.affine_in(var)).map(|(step, _)| step);
    let key = &f[1 - s.query];
    let side_by_side = a.depth.len() == 1 && step(key, rank + 1) == Some(1) && step(&v, n as u32) == Some(1);
    let packed = [key.scalar != key.read, v.scalar != v.read || step(&v, n as u32) != Some(1)];
    let rows: Expr = Expr::product(s.m.iter().map(|&x| a.dims[x]));
    let lanes = target.lanes(4).max(1);
    let single = side_by_side && lanes >= 4 && depth >= 4;
    let few = rows.known().is_some_and(|r| r < FEW);
    if few && !single {
        // The steps read factors as they lie.
        return None;
    }
    let even = a.depth.last().and_then(|d| d.known()).is_some_and(|d| d % 2 == 0);
    let pairs =
        Some(row_of(DType::BF16, 2, target)).filter(|row| row.name == "bf16_dot" && !target.slow_bf16_dot && even && !few);
    let row = pairs.unwrap_or_else(|| row_of(DType::F32, 1, target));
    let packed = packed.map(|p| (p || pairs.is_some()) && !few);
    let alone = match rows.known() {
        Some(r) if few => r as usize,
        None if single => FEW as usize - 1,
        _ => 0,
    };
    let (queries, keys) = (guess(rows).max(1), a.keys.known().unwrap_or(128).max(1));
    // The strip of the fewest cycles for so many queries, of those of so many vectors: queries, keys of a register tile, and the tile of the result.
    let fewest = |queries: i64, widths: std::ops::RangeInclusive<usize>| {
        let mut best: Option<(f64, usize, usize, [usize; 2])> = None;
        for vectors in widths {
            let nr = vectors * lanes;
            let count = (queries as usize).min(nr);
            let ([mr2, nr2], second) = sums(nr, count, columns, lanes, target, row);
            for mr in 1..=14usize {
                let beside = row.registers_on(target, mr);
                if mr * vectors + beside[0] * vectors + beside[1] > target.vector_registers as usize || mr as i64 > keys {
                    continue;
                }
                let tiles = (keys as f64 / mr as f64).ceil();
                let steps = tiles * depth as f64 * cycles(mr, vectors, row) + keys as f64 * second;
                let rounding =
                    if pairs.is_some() { ROUNDING * keys as f64 * (depth + columns as i64) as f64 / lanes as f64 } else { 0.0 };
                let strip = steps / row.depth as f64 + rounding;
                let all = strip * (queries as f64 / nr as f64).ceil();
                if best.is_none_or(|b| all < b.0 * 0.999) {
                    best = Some((all, nr, mr, [mr2, nr2]));
                }
            }
        }
        best.map(|(_, nr, mr, sums)| (nr, mr, sums))
    };
    let (nr, mr, sums) = fewest(queries, 1..=4)?;
    let up = |x: i64, to: usize| (x.max(1) as usize).div_ceil(to) * to;
    // All scores of a strip may take a quarter of L2; those of a tile, half of L1.
    let (queries, mr) = if few { (alone, TOGETHER) } else { (nr, mr) };
    let bytes = 4 * queries as i64;
    let whole = a.keys.known().is_some_and(|k| k <= target.l2_bytes as i64 / (4 * bytes));
    let keys = if whole { keys as usize } else { up((target.l1_bytes as i64 / (2 * bytes)).max(64), mr) };
    let plan = Strips { m: s.m, n, queries, keys, whole, rows: mr, sums, alone, packed, row: row.name, short: None };
    let short = fewest(lanes as i64, 1..=1).filter(|_| rows.known().is_none() && plan.queries > lanes);
    let short =
        short.map(|(queries, rows, sums)| Box::new(Strips { queries, rows, sums, whole: true, alone: 0, ..plan.clone() }));
    Some(Strips { short, ..plan })
}

impl fmt::Display for Strips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (m, n, row, [sum_rows, sum_columns]) = (&self.m, self.n, self.row, self.sums);
        let form = if self.whole { "whole" } else { "online" };
        write!(f, "attention_strips m={m:?} n={n} queries={} keys={} {form}", self.queries, self.keys)?;
        write!(f, " scores={}x{} sums={sum_rows}x{sum_columns} alone={} row={row}", self.rows, self.queries, self.alone)?;
        for (packed, name) in self.packed.into_iter().zip(["keys", "values"]) {
            if packed {
                write!(f, " packed={name}")?;
            }
        }
        if let Some(p) = &self.short {
            let [sum_rows, sum_columns] = p.sums;
            write!(f, " short={}x{} sums={sum_rows}x{sum_columns}", p.rows, p.queries)?;
        }
        Ok(())
    }
}

/// The last key that a query may look at, where the score says so by the place of query and key alone (`key <= query + n`), and never falls from
/// a query to the next.
fn reach(a: &Attention, m: &[usize]) -> Option<Expr> {
    let [m] = *m else { return None };
    let Kind::Select(cond, _, otherwise) = uncast(a.score).kind() else { return None };
    if otherwise.as_float() != Some(f64::NEG_INFINITY) {
        return None;
    }
    let (mut todo, mut found) = (vec![*cond], None);
    while let Some(c) = todo.pop() {
        let Kind::Binary(op, x, y) = c.kind() else { continue };
        if *op == Binary::And {
            todo.extend([*x, *y]);
            continue;
        }
        let (Some(x), Some(y)) = (x.as_index(), y.as_index()) else { continue };
        // Not beyond: what is largest if the key is.
        let (low, high, most) = match op {
            Binary::Le => (x, y, 0),
            Binary::Lt => (x, y, -1),
            Binary::Ge => (y, x, 0),
            Binary::Gt => (y, x, -1),
            _ => continue,
        };
        // `low - high <= most`, with 1 for the key.
        if let Some((1, rest)) = (low - high).affine_in(a.dims.len() as u32)
            && let Some((step, _)) = rest.affine_in(m as u32)
            && step <= 0
        {
            found = Some(Expr::int(most) - rest);
        }
    }
    found
}

/// What the parts of the nest share.
struct Parts<'a> {
    a: &'a Attention,
    p: &'a Strips,
    row: &'static Row,
    /// The row of queries that are taken one by one.
    single: &'static Row,
    query: Factor,
    key: Factor,
    value: Factor,
    rank: usize,
    lanes: usize,
    columns: usize,
    depth: Vec<usize>,
    /// Axes of the result, those of queries and columns open; then the key, open.
    axes: Vec<Expr>,
    /// All queries, and the first one of the strip.
    rows: Expr,
    first: Expr,
    /// Scratch memory of keys and values, where they are packed.
    key_tile: u32,
    value_tile: u32,
}

/// A tile of keys: the first one, and how many.
#[derive(Clone, Copy)]
struct Keys {
    first: Expr,
    count: Expr,
}

fn f32(x: f64) -> Scalar {
    Scalar::float(DType::F32, x)
}

fn u32(x: u32) -> Scalar {
    Scalar::number(DType::U32, f64::from(x))
}

/// Two numbers, rounded to bf16, in a word; subnormal ones are zeros, as the instruction takes them.
fn word(low: Scalar, high: Scalar) -> Scalar {
    let bits = |x: Scalar| rows::flushed(x).cast(DType::BF16).bitcast(DType::U16).cast(DType::U32);
    Scalar::binary(Binary::Or, bits(low), Scalar::binary(Binary::Shl, bits(high), u32(16)))
}

/// Both numbers of a word.
fn halves_of(word: Scalar) -> [Scalar; 2] {
    let low = Scalar::binary(Binary::Shl, word, u32(16));
    let high = Scalar::binary(Binary::And, word, u32(0xffff_0000));
    [low, high].map(|bits| bits.bitcast(DType::F32))
}

/// The weight of a score, relative to the largest one. What is no normal number any more is 0.
fn weight(cx: &Cx, x: Scalar) -> Scalar {
    if cx.target.math_calls { Scalar::unary(Unary::Exp, x) } else { exp_flushed(x, cx.target.fma) }
}

/// The larger of two scores, `a` where one is NaN: its weight is NaN whatever it is relative to, and so is the sum.
fn larger(a: Scalar, b: Scalar) -> Scalar {
    Scalar::select(a.lt(b), b, a)
}

/// What weights are relative to: the largest score, or 0 where there is no key so far.
fn base(most: Scalar) -> Scalar {
    Scalar::select(most.eq_to(f32(f64::NEG_INFINITY)), f32(0.0), most)
}

/// Builds the nest.
pub fn build(cx: &mut Cx, a: &Attention, p: &Strips) {
    let Shape { scores, query, .. } = shape(a).expect("a plan was made of it");
    let [f0, f1] = factors(&scores).expect("scores are sums of products");
    let (query, key) = if query == 0 { (f0, f1) } else { (f1, f0) };
    let value = factor(a.values).expect("values are read");
    let rank = a.dims.len();
    let rows = Expr::product(p.m.iter().map(|&x| a.dims[x]));
    let batch: Vec<usize> = (0..rank).filter(|x| !p.m.contains(x) && *x != p.n).collect();
    let mut grid: Vec<Expr> = batch.iter().map(|&x| a.dims[x]).collect();
    grid.push(rows.div_ceil(Expr::from(p.queries)));
    cx.tasks = Expr::product(grid.iter().copied());
    let place = Expr::delinearise(cx.task, &grid);
    let mut axes = vec![Expr::int(0); rank + 1];
    batch.iter().zip(&place).for_each(|(&x, &v)| axes[x] = v);
    let known = |e: &Expr| e.known().expect("checked by the plan") as usize;
    let depth: Vec<usize> = a.depth.iter().map(known).collect();
    let columns = known(&a.dims[p.n]);
    let mut parts = Parts {
        a,
        p,
        row: rows::named(p.row).expect("a plan names a row of the table"),
        single: row_of(DType::F32, 1, cx.target),
        query,
        key,
        value,
        rank,
        lanes: cx.target.lanes(4).max(1),
        columns,
        axes,
        rows,
        first: place[batch.len()] * p.queries as i64,
        key_tile: 0,
        value_tile: 0,
        depth,
    };
    if p.packed[0] {
        let dims: Vec<usize> = [p.keys].into_iter().chain(parts.steps()).collect();
        parts.key_tile = cx.scratch("keys", parts.packed(), &dims, Space::Tile);
        cx.body.push(Stmt::Alloc { buffer: parts.key_tile });
    }
    if p.packed[1] {
        parts.value_tile = cx.scratch("values", parts.packed(), &[p.keys.div_ceil(p.group()), columns], Space::Tile);
        cx.body.push(Stmt::Alloc { buffer: parts.value_tile });
    }
    let mut body = if p.alone > 0 && rows.known().is_some() { parts.alone(cx) } else { parts.strip(cx) };
    let few = |n: Expr, most: usize| Scalar::index(n).le(Scalar::index(most as i64));
    if let Some(short) = &p.short {
        parts.p = short;
        let cond = few(rows, short.queries).and(few(a.keys, short.keys));
        body = vec![Stmt::If { cond, then: parts.strip(cx), otherwise: body }];
    }
    if p.alone > 0 && rows.known().is_none() {
        parts.p = p;
        body = vec![Stmt::If { cond: few(rows, p.alone), then: parts.alone(cx), otherwise: body }];
    }
    cx.body.extend(body);
}

impl Parts<'_> {
    /// Are factors rounded, two in a word?
    fn pairs(&self) -> bool {
        self.p.group() == 2
    }

    /// What scratch memory of factors has.
    fn packed(&self) -> DType {
        if self.pairs() { DType::U32 } else { DType::F32 }
    }

    /// Extents of the steps along the depth.
    fn steps(&self) -> Vec<usize> {
        let mut steps = self.depth.clone();
        *steps.last_mut().expect("scores are sums of products") /= self.p.group();
        steps
    }

    /// The sum after a step with a factor that is broadcast and one in vectors, as scratch memory has them.
    fn step(&self, sum: Scalar, a: Scalar, b: Scalar) -> Scalar {
        if self.pairs() {
            return (self.row.step)(sum, &halves_of(a), &halves_of(b));
        }
        (self.row.step)(sum, &[a], &[b])
    }

    /// What `at` gives for each of the neighbours of a step along the depth, as scratch memory has it.
    fn along_depth(&self, step: &[Expr], at: &dyn Fn(&[Expr]) -> Scalar) -> Scalar {
        if !self.pairs() {
            return at(step);
        }
        let [low, high] = [0, 1].map(|j| {
            let mut depth = step.to_vec();
            let last = depth.last_mut().expect("scores are sums of products");
            *last = *last * 2 + j;
            at(&depth)
        });
        word(low, high)
    }

    /// Steps of a tile along its keys.
    fn steps_of_keys(&self, keys: Keys) -> Expr {
        keys.count.div_ceil(Expr::from(self.p.group()))
    }

    /// The second key of a pair that there is, and what stands for what belongs to it: 0 beyond the last one.
    fn second(keys: Keys, k: Expr, at: &dyn Fn(Expr) -> Scalar) -> Scalar {
        if keys.count.known().is_some_and(|n| n % 2 == 0) {
            return at(k);
        }
        let there = Scalar::index(k).lt(Scalar::index(keys.count));
        Scalar::select(there, at(k.min(keys.count - 1)), f32(0.0))
    }

    /// The axes for a query, by its number among all.
    fn at_query(&self, query: Expr) -> Vec<Expr> {
        let dims: Vec<Expr> = self.p.m.iter().map(|&x| self.a.dims[x]).collect();
        let mut axes = self.axes.clone();
        self.p.m.iter().zip(Expr::delinearise(query, &dims)).for_each(|(&x, v)| axes[x] = v);
        axes
    }

    /// Do strips divide the queries?
    fn whole_strips(&self) -> bool {
        self.rows.known().is_some_and(|r| r % self.p.queries as i64 == 0)
    }

    /// Query `i` of the strip; one beyond the last stands for the last.
    fn query_number(&self, i: Expr) -> Expr {
        if self.whole_strips() { self.first + i } else { (self.first + i).min(self.rows - 1) }
    }

    /// Queries of the strip that there are.
    fn left(&self) -> Expr {
        let all = Expr::from(self.p.queries);
        if self.whole_strips() { all } else { (self.rows - self.first).min(all) }
    }

    /// An element of the queries.
    fn query_at(&self, axes: &[Expr], depth: &[Expr]) -> Scalar {
        let all: Vec<Expr> = axes.iter().chain(depth).copied().collect();
        self.query.scalar.subst(&all)
    }

    /// An element of a tile's keys, as it is multiplied.
    fn key_at(&self, cx: &Cx, keys: Keys, k: Expr, depth: &[Expr]) -> Scalar {
        if self.p.packed[0] {
            return cx.at(self.key_tile, &[k].into_iter().chain(depth.iter().copied()).collect::<Vec<_>>());
        }
        self.key_itself(keys, k, depth)
    }

    fn key_itself(&self, keys: Keys, k: Expr, depth: &[Expr]) -> Scalar {
        let mut all = self.axes.clone();
        all[self.rank] = keys.first + k;
        all.extend(depth);
        self.key.scalar.subst(&all)
    }

    fn value_at(&self, cx: &Cx, keys: Keys, k: Expr, column: Expr) -> Scalar {
        if self.p.packed[1] { cx.at(self.value_tile, &[k, column]) } else { self.value_itself(keys, k, column) }
    }

    fn value_itself(&self, keys: Keys, k: Expr, column: Expr) -> Scalar {
        let mut all = self.axes.clone();
        (all[self.p.n], all[self.rank]) = (column, keys.first + k);
        self.value.scalar.subst(&all)
    }

    /// The score of a sum of products.
    fn score(&self, mut axes: Vec<Expr>, key: Expr, sum: Scalar) -> Scalar {
        axes[self.rank] = key;
        with_accumulator(self.a.score.subst(&axes), sum)
    }

    /// The result of a sum over keys.
    fn finish(&self, cx: &Cx, query: Expr, column: Expr, sum: Scalar, total: Scalar) -> Stmt {
        let mut axes = self.at_query(query);
        axes.pop();
        axes[self.p.n] = column;
        cx.store_out(&axes, with_accumulator(self.a.value.subst(&axes), quotient(self.a, sum, total)))
    }

    /// How many keys the queries up to one may look at: those beyond have a score of -inf, by their place alone.
    fn reach(&self, last: Expr) -> Expr {
        match reach(self.a, &self.p.m) {
            Some(most) => {
                let dims: Vec<Expr> = self.at_query(last);
                self.a.keys.min(most.subst(&dims) + 1).max(Expr::int(0))
            }
            None => self.a.keys,
        }
    }

    /// For each tile of so many keys.
    fn each_tile(&self, cx: &mut Cx, all: Expr, make: &mut dyn FnMut(&mut Cx, Keys) -> Vec<Stmt>) -> Vec<Stmt> {
        if self.p.whole {
            return make(cx, Keys { first: Expr::int(0), count: all });
        }
        let tile = cx.var("key_tile");
        let size = Expr::from(self.p.keys);
        let first = tile * self.p.keys as i64;
        let exact = all.known().is_some_and(|k| k % self.p.keys as i64 == 0);
        let count = if exact { size } else { (all - first).min(size) };
        let body = make(cx, Keys { first, count });
        vec![for_each(tile, all.div_ceil(size), LoopKind::Serial, body)]
    }

    /// Brings a tile's keys and values into scratch memory, where that is the plan.
    fn pack(&self, cx: &mut Cx, keys: Keys) -> Vec<Stmt> {
        let mut body = vec![];
        if self.p.packed[0] {
            let (k, steps) = (cx.var("key"), self.steps());
            let (&last, outer) = steps.split_last().expect("scores are sums of products");
            let outer_vars = cx.vars(&["d"], outer.len());
            let mut nest = along(cx, last, self.lanes, &mut |cx, d| {
                let depth: Vec<Expr> = outer_vars.iter().copied().chain([d]).collect();
                let at: Vec<Expr> = [k].into_iter().chain(depth.iter().copied()).collect();
                let value = self.along_depth(&depth, &|depth| self.key_itself(keys, k, depth));
                vec![cx.put(self.key_tile, &at, value)]
            });
            for (&v, &e) in outer_vars.iter().zip(outer).rev() {
                nest = vec![for_each(v, Expr::from(e), LoopKind::Serial, nest)];
            }
            body.push(for_each(k, keys.count, LoopKind::Serial, nest));
        }
        if self.p.packed[1] {
            let k = cx.var("key");
            let nest = along(cx, self.columns, self.lanes, &mut |cx, c| {
                let at = |k: Expr| self.value_itself(keys, k, c);
                let value = if self.pairs() { word(at(k * 2), Self::second(keys, k * 2 + 1, &at)) } else { at(k) };
                vec![cx.put(self.value_tile, &[k, c], value)]
            });
            body.push(for_each(k, self.steps_of_keys(keys), LoopKind::Serial, nest));
        }
        body
    }

    // ---- strips ----

    /// All of a strip.
    fn strip(&self, cx: &mut Cx) -> Vec<Stmt> {
        let p = self.p;
        let strip = p.queries;
        let dims: Vec<usize> = self.steps().into_iter().chain([strip]).collect();
        let query = cx.scratch("query", self.packed(), &dims, Space::Tile);
        let score = cx.scratch("score", DType::F32, &[p.keys.next_multiple_of(p.rows), strip], Space::Tile);
        let sum = cx.scratch("sum", DType::F32, &[strip], Space::Tile);
        let mut body = [query, score, sum].map(|buffer| Stmt::Alloc { buffer }).to_vec();
        let mut weights = score;
        if self.pairs() {
            weights = cx.scratch("weights", DType::U32, &[p.keys.div_ceil(2), strip], Space::Tile);
            body.push(Stmt::Alloc { buffer: weights });
        }
        body.extend(self.transpose(cx, query));
        // What a score reads for a query, whatever the key.
        let mut staged = vec![];
        for read in self.reads_of_queries(false) {
            let buffer = cx.scratch("line", read.dtype(), &[1, strip], Space::Tile);
            let q = cx.var("query");
            let put = cx.put(buffer, &[Expr::int(0), q], read.subst(&self.at_query(self.query_number(q))));
            body.extend([Stmt::Alloc { buffer }, for_each(q, Expr::from(strip), LoopKind::Serial, vec![put])]);
            staged.push((read, buffer));
        }
        let staged = &staged;
        let all = self.reach(self.first + (self.left() - 1));
        if p.whole {
            body.extend(self.each_tile(cx, all, &mut |cx, keys| {
                let mut round = self.pack(cx, keys);
                round.extend(self.weights(cx, keys, (query, score, weights), staged, sum, None));
                round.extend(self.result(cx, keys, weights, &|_, _| f32(0.0), &|cx, i, c, acc| {
                    self.existing(i, self.finish(cx, self.first + i, c, acc, cx.at(sum, &[i])))
                }));
                round
            }));
            return body;
        }
        let [most, scale] = ["most", "scale"].map(|name| cx.scratch(name, DType::F32, &[strip], Space::Tile));
        let result = cx.scratch("result", DType::F32, &[strip, self.columns], Space::Tile);
        body.extend([most, scale, result].map(|buffer| Stmt::Alloc { buffer }));
        body.push(self.lanes_of(cx, &|cx, q| vec![cx.put(most, &[q], f32(f64::NEG_INFINITY)), cx.put(sum, &[q], f32(0.0))]));
        let i = cx.var("query");
        let clear = along(cx, self.columns, self.lanes, &mut |cx, c| vec![cx.put(result, &[i, c], f32(0.0))]);
        body.push(for_each(i, Expr::from(strip), LoopKind::Serial, clear));
        body.extend(self.each_tile(cx, all, &mut |cx, keys| {
            let mut round = self.pack(cx, keys);
            round.extend(self.weights(cx, keys, (query, score, weights), staged, sum, Some((most, scale))));
            let before = |cx: &Cx, at: [Expr; 2]| cx.at(result, &at) * cx.at(scale, &[at[0]]);
            round.extend(self.result(cx, keys, weights, &before, &|cx, i, c, acc| vec![cx.put(result, &[i, c], acc)]));
            round
        }));
        let i = cx.var("query");
        let finish = along(cx, self.columns, self.lanes, &mut |cx, c| {
            vec![self.finish(cx, self.first + i, c, cx.at(result, &[i, c]), cx.at(sum, &[i]))]
        });
        body.push(for_each(i, self.left(), LoopKind::Serial, finish));
        body
    }

    /// A statement for a query that may be beyond the last.
    fn existing(&self, i: Expr, then: Stmt) -> Vec<Stmt> {
        if self.whole_strips() {
            return vec![then];
        }
        let cond = Scalar::index(self.first + i).lt(Scalar::index(self.rows));
        vec![Stmt::If { cond, then: vec![then], otherwise: vec![] }]
    }

    /// A statement for each lane of a strip.
    fn lanes_of(&self, cx: &mut Cx, make: &dyn Fn(&mut Cx, Expr) -> Vec<Stmt>) -> Stmt {
        let q = cx.var("query");
        let body = make(cx, q);
        for_each(q, Expr::from(self.p.queries), LoopKind::Vector, body)
    }

    /// Scores of a tile, and the weights that come to lie in their place or in words, with their sum; `online`: the largest score so far and the scale of earlier sums.
    fn weights(
        &self,
        cx: &mut Cx,
        keys: Keys,
        (query, score, words): (u32, u32, u32),
        staged: &[(Scalar, u32)],
        sum: u32,
        online: Option<(u32, u32)>,
    ) -> Vec<Stmt> {
        let strip = self.p.queries;
        let [high, low, total] = ["high", "low", "total"].map(|name| cx.scratch(name, DType::F32, &[strip], Space::Reg));
        let mut body = [high, low, total].map(|buffer| Stmt::Alloc { buffer }).to_vec();
        body.push(self.lanes_of(cx, &|cx, q| {
            let start = online.map_or(f32(f64::NEG_INFINITY), |(most, _)| cx.at(most, &[q]));
            vec![cx.put(high, &[q], start)]
        }));
        body.extend(self.scores(cx, keys, (query, score, high), staged));
        body.push(self.lanes_of(cx, &|cx, q| {
            let mut all = vec![cx.put(low, &[q], base(cx.at(high, &[q])))];
            match online {
                None => all.push(cx.put(total, &[q], f32(0.0))),
                Some((most, scale)) => {
                    let change = {
                        let x = weight(cx, cx.at(most, &[q]) - cx.at(low, &[q]));
                        name(cx, x, &mut all)
                    };
                    all.push(cx.put(scale, &[q], change));
                    all.push(cx.put(most, &[q], cx.at(high, &[q])));
                    all.push(cx.put(total, &[q], cx.at(sum, &[q]) * change));
                }
            }
            all
        }));
        let k = cx.var("key");
        let weights = self.lanes_of(cx, &|cx, q| {
            let mut all = vec![];
            let at = |k: Expr| weight(cx, cx.at(score, &[k, q]) - cx.at(low, &[q]));
            let weights = if self.pairs() { vec![at(k * 2), Self::second(keys, k * 2 + 1, &at)] } else { vec![at(k)] };
            let mut add = |x: Scalar| {
                let weight = name(cx, x, &mut all);
                all.push(cx.put(total, &[q], cx.at(total, &[q]) + weight));
                weight
            };
            let value = match weights[..] {
                [low, high] => {
                    let low = add(low);
                    word(low, add(high))
                }
                _ => add(weights[0]),
            };
            all.push(cx.put(words, &[k, q], value));
            all
        });
        body.push(for_each(k, self.steps_of_keys(keys), LoopKind::Serial, vec![weights]));
        body.push(self.lanes_of(cx, &|cx, q| vec![cx.put(sum, &[q], cx.at(total, &[q]))]));
        body
    }

    /// Scores of a tile, and the largest of each query.
    fn scores(&self, cx: &mut Cx, keys: Keys, (query, score, high): (u32, u32, u32), lines: &[(Scalar, u32)]) -> Vec<Stmt> {
        let (strip, mr) = (self.p.queries, self.p.rows);
        let acc = cx.scratch("acc", DType::F32, &[mr, strip], Space::Reg);
        let tile = cx.var("tile");
        let exact = keys.count.known().is_some_and(|n| n % mr as i64 == 0);
        // A key beyond the last is the last again.
        let key = |i: Expr| if exact { tile * mr as i64 + i } else { (tile * mr as i64 + i).min(keys.count - 1) };
        let each = |cx: &mut Cx, make: &mut dyn FnMut(&mut Cx, Expr, Expr) -> Vec<Stmt>| {
            let (i, q) = (cx.var("key"), cx.var("query"));
            let body = make(cx, i, q);
            for_each(i, Expr::from(mr), LoopKind::Unroll, vec![for_each(q, Expr::from(strip), LoopKind::Vector, body)])
        };
        let clear = each(cx, &mut |cx, i, q| vec![cx.put(acc, &[i, q], f32(0.0))]);
        let steps = self.steps();
        let depth = cx.vars(&["d"], steps.len());
        let mut sum = each(cx, &mut |cx, i, q| {
            let at: Vec<Expr> = depth.iter().copied().chain([q]).collect();
            let (a, b) = (self.key_at(cx, keys, key(i), &depth), cx.at(query, &at));
            vec![cx.put(acc, &[i, q], self.step(cx.at(acc, &[i, q]), a, b))]
        });
        for (&v, &e) in depth.iter().zip(&steps).rev() {
            sum = for_each(v, Expr::from(e), LoopKind::Serial, vec![sum]);
        }
        let mut body = vec![Stmt::Alloc { buffer: acc }];
        let staged = self.masks(cx, keys, (tile, &key), &mut body);
        let finish = each(cx, &mut |cx, i, q| {
            let mut all = vec![];
            let mut axes = self.at_query(self.first + q);
            axes[self.rank] = keys.first + key(i);
            let at = |all: &[(Scalar, u32)], n: Scalar, row: Expr| {
                all.iter().find(|s| s.0 == n).map(|s| cx.at(s.1, &[row, Expr::var(STAGED + 1)]))
            };
            let x = self
                .a
                .score
                .rewrite(&mut |n| at(&staged, n, Expr::var(STAGED)).or_else(|| at(lines, n, Expr::int(0))).unwrap_or(n));
            axes.resize(STAGED, Expr::int(0));
            axes.extend([i, q]);
            let x = with_accumulator(x.subst(&axes), cx.at(acc, &[i, q]));
            let x = name(cx, x, &mut all);
            all.push(cx.put(score, &[tile * mr as i64 + i, q], x));
            all.push(cx.put(high, &[q], larger(cx.at(high, &[q]), x)));
            all
        });
        body.extend([clear, sum, finish]);
        vec![for_each(tile, keys.count.div_ceil(Expr::from(mr)), LoopKind::Serial, body)]
    }

    /// The product of a tile's weights with its values, from `start` on.
    fn result(
        &self,
        cx: &mut Cx,
        keys: Keys,
        weights: u32,
        start: &dyn Fn(&Cx, [Expr; 2]) -> Scalar,
        end: &dyn Fn(&Cx, Expr, Expr, Scalar) -> Vec<Stmt>,
    ) -> Vec<Stmt> {
        let [mr, nr] = self.p.sums;
        let rest = self.columns % nr;
        let mut all = vec![];
        for (from, width, count) in [(0, nr, self.columns / nr), (self.columns - rest, rest, usize::from(rest > 0))] {
            if width == 0 || count == 0 {
                continue;
            }
            let (block, tile) = (cx.var("columns"), cx.var("queries"));
            let acc = cx.scratch("acc", DType::F32, &[mr, width], Space::Reg);
            let place = |i: Expr, c: Expr| [tile * mr as i64 + i, block * width as i64 + from as i64 + c];
            let each = |cx: &mut Cx, make: &dyn Fn(&mut Cx, [Expr; 2], [Expr; 2]) -> Vec<Stmt>| {
                let (i, c) = (cx.var("query"), cx.var("column"));
                let body = make(cx, [i, c], place(i, c));
                (i, for_each(c, Expr::from(width), LoopKind::Vector, body))
            };
            let unrolled = |(i, body): (Expr, Stmt)| for_each(i, Expr::from(mr), LoopKind::Unroll, vec![body]);
            let clear = each(cx, &|cx, at, place| vec![cx.put(acc, &at, start(cx, place))]);
            let k = cx.var("key");
            let sum = each(cx, &|cx, at, [q, column]| {
                let (a, b) = (cx.at(weights, &[k, q]), self.value_at(cx, keys, k, column));
                vec![cx.put(acc, &at, self.step(cx.at(acc, &at), a, b))]
            });
            let finish = each(cx, &|cx, at, [q, column]| end(cx, q, column, cx.at(acc, &at)));
            let sum = for_each(k, self.steps_of_keys(keys), LoopKind::Serial, vec![unrolled(sum)]);
            let body = vec![Stmt::Alloc { buffer: acc }, unrolled(clear), sum, unrolled(finish)];
            let tiles = for_each(tile, self.left().div_ceil(Expr::from(mr)), LoopKind::Serial, body);
            all.push(for_each(block, Expr::from(count), LoopKind::Serial, vec![tiles]));
        }
        all
    }
}

/// A vector loop.
fn vector(cx: &mut Cx, width: usize, make: &dyn Fn(&mut Cx, Expr) -> Vec<Stmt>) -> Stmt {
    let lane = cx.var("lane");
    let body = make(cx, lane);
    for_each(lane, Expr::from(width), if width > 1 { LoopKind::Vector } else { LoopKind::Unroll }, body)
}

/// A statement for each of `extent` neighbours, in vectors, and what is left over.
fn along(cx: &mut Cx, extent: usize, lanes: usize, make: &mut dyn FnMut(&mut Cx, Expr) -> Vec<Stmt>) -> Vec<Stmt> {
    let (blocks, rest) = (extent / lanes, extent % lanes);
    let kind = |n: usize| if n > 1 { LoopKind::Vector } else { LoopKind::Unroll };
    let mut all = vec![];
    if blocks > 0 {
        let (block, lane) = (cx.var("block"), cx.var("lane"));
        let body = make(cx, block * lanes as i64 + lane);
        let nest = for_each(lane, Expr::from(lanes), kind(lanes), body);
        all.push(for_each(block, Expr::from(blocks), LoopKind::Serial, vec![nest]));
    }
    if rest > 0 {
        let lane = cx.var("lane");
        let body = make(cx, lane + (blocks * lanes) as i64);
        all.push(for_each(lane, Expr::from(rest), kind(rest), body));
    }
    all
}

fn name(cx: &mut Cx, value: Scalar, body: &mut Vec<Stmt>) -> Scalar {
    let local = cx.local();
    body.push(Stmt::Let { local, value });
    Scalar::local(value.dtype(), local)
}
