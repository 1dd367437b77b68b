//! The builder for products of few rows with a narrow constant matrix, on machines with many threads: its bytes are read once, and widened in registers.
//!
//! A block of threads takes [`COLUMNS`] columns and all products. A thread takes a few columns that are apart, so that its neighbours read neighbouring bytes ([`super::narrow`]), and every so many
//! of their vectors: it reads a vector of each column at once, then what they are multiplied with, which serves all of its columns. The sums of threads that share a column are added up in shared
//! memory, in two steps, always in the same order.

use super::contract::{Factor, factors};
use super::elementwise::with_accumulator;
use super::narrow::{COLUMNS, Head, Narrow, Taken, WORDS, factor};
use super::{Cx, Operand, accumulate, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::Gemv;
use infc_ir::compute::Compute;
use infc_ir::scalar::Scalar;
use infc_ir::{DType, Expr};

/// The most rows.
pub const MOST: usize = 15;
/// Where the number of rows is open: kernels for one row, and for up to so many.
pub const OPEN: [usize; 2] = [1, 4];
/// Threads of a block, where there are vectors for them; and the fewest.
const THREADS: usize = 256;
const LEAST: usize = 32;
/// Sums of a column's threads that are left after the first step.
const JOINED: usize = 8;
/// Products that are widened together: elements of the other factor that are read at once.
const QUAD: usize = 4;

/// Rows of a product are the axes that the factor which is no matrix has alone.
struct Rows {
    which: usize,
    taken: Taken,
    m: Vec<usize>,
    count: Expr,
}

fn rows<'a>(c: &Compute, f: &[Factor; 2], operands: &'a [Operand]) -> Option<(Rows, &'a Narrow)> {
    let (which, narrow, taken) = factor(c, f, operands)?;
    let whole = c.reduction.as_ref()?.axes.iter().all(|e| e.known().is_some_and(|n| n > 0));
    if !whole || !taken.at_multiple(narrow.stored.per_vector()) || c.dims[taken.n].known().is_none() {
        return None;
    }
    let uses = |k: usize, a: usize| f[k].index.iter().any(|e| e.uses_var(a as u32));
    let m: Vec<usize> = (0..c.dims.len()).filter(|&a| uses(1 - which, a) && !uses(which, a) && !c.dims[a].is(1)).collect();
    let count = Expr::product(m.iter().map(|&a| c.dims[a]));
    Some((Rows { which, taken, m, count }, narrow))
}

/// The plan of a contraction of few rows; `None` if it has more, or an open number of them, or no narrow factor.
pub fn plan(c: &Compute, operands: &[Operand]) -> Option<Gemv> {
    let f = factors(c)?;
    let (rows, narrow) = rows(c, &f, operands)?;
    let count = usize::try_from(rows.count.known()?).ok().filter(|n| (1..=MOST).contains(n))?;
    Some(with_rows(c, &rows, narrow, count, 0))
}

/// Plans for few rows where their number is open, the one with most rows last: each is for more than those before it.
pub fn open(c: &Compute, operands: &[Operand]) -> Vec<Gemv> {
    let Some(f) = factors(c) else { return vec![] };
    let Some((rows, narrow)) = rows(c, &f, operands).filter(|(rows, _)| rows.count.known().is_none()) else { return vec![] };
    let mut above = 0;
    let mut one = |&most: &usize| with_rows(c, &rows, narrow, most, std::mem::replace(&mut above, most));
    OPEN.iter().map(&mut one).collect()
}

fn with_rows(c: &Compute, rows: &Rows, narrow: &Narrow, most: usize, above: usize) -> Gemv {
    let depth: i64 = c.reduction.as_ref().map_or(0, |r| r.axes.iter().filter_map(|e| e.known()).product());
    // Sums of a thread stay in registers beside the words of its columns.
    let columns = if most <= 4 { 4 } else { 2 };
    let beside = COLUMNS / columns;
    let vectors = (depth as usize).div_ceil(narrow.stored.per_vector());
    let groups = vectors.next_power_of_two().clamp(LEAST / beside, THREADS / beside);
    let open = rows.count.known().is_none();
    Gemv {
        which: rows.which,
        n: rows.taken.n,
        m: rows.m.clone(),
        rows: most,
        above: open.then_some(above),
        columns,
        groups,
        stored: narrow.stored,
    }
}

/// 1 if a number is from `above + 1` to `most`, else 0.
pub fn is_within(count: Expr, above: usize, most: Option<usize>) -> Expr {
    let beyond = |n: usize| count.div(Expr::from(n + 1)).min(Expr::int(1));
    most.map_or(beyond(above), |most| beyond(above) * (Expr::int(1) - beyond(most)))
}

/// What the parts of the nest share.
struct Block<'a> {
    c: &'a Compute,
    p: &'a Gemv,
    /// The factor that is no matrix.
    data: &'a Factor,
    source: usize,
    narrow: Narrow,
    /// Values of the batch's axes; the first product, of all of the matrix and of the sum; its number.
    axes: Vec<Expr>,
    start: Expr,
    depth: Expr,
    /// How many rows there are.
    rows: Expr,
    first: Expr,
    threads: usize,
    /// In registers of each thread: sums, words, elements of the other factor.
    acc: u32,
    words: u32,
    quad: u32,
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, p: &Gemv) {
    let f = factors(c).expect("a contraction is a product of two reads");
    let (found, narrow) = rows(c, &f, cx.operands).expect("checked by the plan");
    let (rows, narrow) = (found.count, narrow.clone());
    let rank = c.dims.len();
    let batch: Vec<usize> = (0..rank).filter(|x| *x != p.n && !p.m.contains(x)).collect();
    let tiles = c.dims[p.n].div_ceil(Expr::from(COLUMNS));
    let grid: Vec<Expr> = batch.iter().map(|&x| c.dims[x]).chain([tiles]).collect();
    let within = p.above.map_or(Expr::int(1), |above| is_within(rows, above, Some(p.rows)));
    cx.tasks = Expr::product(grid.iter().copied()) * within;
    let place = Expr::delinearise(cx.task, &grid);
    let mut axes = vec![Expr::int(0); rank];
    batch.iter().zip(&place).for_each(|(&x, &v)| axes[x] = v);
    let first = place[batch.len()] * COLUMNS as i64;
    let source = f[p.which].source;
    cx.pack(source, narrow.words.clone());
    let threads = COLUMNS / p.columns * p.groups;
    let outputs = COLUMNS * p.rows;
    let acc = cx.scratch("acc", DType::F32, &[threads, p.columns, p.rows], Space::Reg);
    let words = cx.scratch("words", DType::U32, &[threads, p.columns, WORDS], Space::Reg);
    let quad = cx.scratch("quad", DType::F32, &[threads, QUAD], Space::Reg);
    let slices = JOINED.min(p.groups);
    let parts = cx.scratch("parts", DType::F32, &[p.groups, outputs], Space::Shared);
    let joined = cx.scratch("joined", DType::F32, &[slices, outputs], Space::Shared);
    cx.body = [acc, words, quad, parts, joined].map(|buffer| Stmt::Alloc { buffer }).to_vec();
    let start = found.taken.start.subst(&axes);
    let depth = Expr::product(c.reduction.as_ref().expect("a contraction reduces").axes.iter().copied());
    let data = &f[1 - p.which];
    let block = Block { c, p, data, source, narrow, axes, start, depth, rows, first, threads, acc, words, quad };
    let sums = block.sums(cx, parts);
    cx.body.push(sums);
    let add = |cx: &Cx, from: u32, places: &mut dyn Iterator<Item = Expr>, o: Expr| {
        let mut all = places.map(|g| cx.at(from, &[g, o]));
        let one = all.next().expect("a part");
        all.fold(one, |sum, part| sum + part)
    };
    let join = block.each(cx, slices * outputs, &|cx, i| {
        let (slice, o) = (i.div(Expr::from(outputs)), i.rem(Expr::from(outputs)));
        let mut places = (0..p.groups / slices).map(|g| slice + (g * slices) as i64);
        let sum = add(cx, parts, &mut places, o);
        vec![cx.put(joined, &[slice, o], sum)]
    });
    cx.body.push(join);
    let finish = block.each(cx, outputs, &|cx, o| {
        let sum = add(cx, joined, &mut (0..slices).map(Expr::from), o);
        block.finish(cx, o, sum)
    });
    cx.body.push(finish);
}

impl Block<'_> {
    /// A loop over so many things, a thread for each.
    fn each(&self, cx: &mut Cx, count: usize, make: &dyn Fn(&mut Cx, Expr) -> Vec<Stmt>) -> Stmt {
        let (thread, part) = (cx.var("thread"), cx.var("part"));
        let i = part * self.threads as i64 + thread;
        let mut body = make(cx, i);
        if !count.is_multiple_of(self.threads) {
            body = vec![Stmt::If { cond: Scalar::index(i).lt(Scalar::index(count)), then: body, otherwise: vec![] }];
        }
        let body = vec![for_each(part, Expr::from(count.div_ceil(self.threads)), LoopKind::Unroll, body)];
        for_each(thread, Expr::from(self.threads), LoopKind::Thread, body)
    }

    /// The sums of each thread, in `parts`.
    fn sums(&self, cx: &mut Cx, parts: u32) -> Stmt {
        let p = self.p;
        let thread = cx.var("thread");
        let beside = (COLUMNS / p.columns) as i64;
        let (group, column) = (thread.div(Expr::int(beside)), thread.rem(Expr::int(beside)));
        let columns: Vec<Expr> = (0..p.columns).map(|c| column + c as i64 * beside).collect();
        let each = |body: &mut Vec<Stmt>, make: &dyn Fn(usize, usize) -> Stmt| {
            (0..p.columns).for_each(|c| (0..p.rows).for_each(|r| body.push(make(c, r))));
        };
        let at = |c: usize, r: usize| [thread, Expr::from(c), Expr::from(r)];
        let mut body = vec![];
        each(&mut body, &|c, r| cx.put(self.acc, &at(c, r), Scalar::float(DType::F32, 0.0)));
        let whole = self.narrow.stored.block == 0;
        let heads = whole.then(|| self.heads(cx, &columns, Expr::int(0), &mut body));
        let step = cx.var("step");
        let vectors = self.depth.div_ceil(Expr::from(self.narrow.stored.per_vector()));
        let vector = step * p.groups as i64 + group;
        let mut round = self.vector(cx, thread, &columns, vector, heads.as_deref());
        if vectors.known().is_none_or(|n| n % p.groups as i64 != 0) {
            let cond = Scalar::index(vector).lt(Scalar::index(vectors));
            round = vec![Stmt::If { cond, then: round, otherwise: vec![] }];
        }
        body.push(for_each(step, vectors.div_ceil(Expr::from(p.groups)), LoopKind::Serial, round));
        each(&mut body, &|c, r| {
            let o = columns[c] + (r * COLUMNS) as i64;
            cx.put(parts, &[group, o], cx.at(self.acc, &at(c, r)))
        });
        for_each(thread, Expr::from(self.threads), LoopKind::Thread, body)
    }

    /// The heads of the block of product `k` in each column.
    fn heads(&self, cx: &mut Cx, columns: &[Expr], k: Expr, body: &mut Vec<Stmt>) -> Vec<Head> {
        let (block, source) = (self.narrow.block_of(k), self.source);
        let mut name = |value: Scalar| {
            let local = cx.local();
            body.push(Stmt::Let { local, value });
            Scalar::local(value.dtype(), local)
        };
        let of = |&c: &Expr| {
            let read = |row: usize| Scalar::read_at(DType::U32, source, &[self.narrow.head_at(self.first + c, block, row)]);
            self.narrow.head(&read, &mut name)
        };
        columns.iter().map(of).collect()
    }

    /// The products of a vector of each column. `heads`: those of whole columns.
    fn vector(&self, cx: &mut Cx, thread: Expr, columns: &[Expr], vector: Expr, heads: Option<&[Head]>) -> Vec<Stmt> {
        let (p, stored) = (self.p, self.narrow.stored);
        let kind = self.c.reduction.as_ref().expect("a contraction reduces").kind;
        let (all, per_word) = (stored.per_vector(), stored.per_word());
        let number = self.start.div(Expr::from(all)) + vector;
        let mut body = vec![];
        for (c, &column) in columns.iter().enumerate() {
            let lane = cx.var("lane");
            let word = Scalar::read_at(DType::U32, self.source, &[self.narrow.word(self.first + column, number, lane)]);
            let read = cx.put(self.words, &[thread, Expr::from(c), lane], word);
            body.push(for_each(lane, Expr::from(WORDS), LoopKind::Vector, vec![read]));
        }
        let block = if stored.block == 0 { all } else { stored.block.min(all) };
        let mut named = vec![];
        for c in 0..p.columns {
            for word in 0..WORDS {
                let (local, value) = (cx.local(), cx.at(self.words, &[thread, Expr::from(c), Expr::from(word)]));
                body.push(Stmt::Let { local, value });
                named.push(Scalar::local(DType::U32, local));
            }
        }
        let mut own = vec![];
        for k in (0..all).step_by(QUAD) {
            if heads.is_none() && k.is_multiple_of(block) {
                own = self.heads(cx, columns, number * all as i64 + k as i64, &mut body);
            }
            let heads = heads.unwrap_or(&own);
            let mut weights = vec![];
            for (c, head) in heads.iter().enumerate() {
                for k in k..k + QUAD {
                    let (local, word) = (cx.local(), named[c * WORDS + k / per_word]);
                    let value = self.narrow.member(word, k % per_word, head);
                    body.push(Stmt::Let { local, value });
                    weights.push(Scalar::local(DType::F32, local));
                }
            }
            for r in 0..p.rows {
                let lane = cx.var("lane");
                let at = vector * all as i64 + k as i64;
                let value = self.element(r, at, lane);
                let read = cx.put(self.quad, &[thread, lane], value);
                body.push(for_each(lane, Expr::from(QUAD), LoopKind::Vector, vec![read]));
                let mut x = vec![];
                for k in 0..QUAD {
                    let (local, value) = (cx.local(), cx.at(self.quad, &[thread, Expr::from(k)]));
                    body.push(Stmt::Let { local, value });
                    x.push(Scalar::local(DType::F32, local));
                }
                for (c, weights) in weights.chunks(QUAD).enumerate() {
                    let at = [thread, Expr::from(c), Expr::from(r)];
                    let products = x.iter().zip(weights).map(|(&x, &w)| x * w);
                    let next = products.fold(cx.at(self.acc, &at), |sum, product| accumulate(kind, sum, product, cx.target.fma));
                    body.push(cx.put(self.acc, &at, next));
                }
            }
        }
        body
    }

    /// The axes of a row.
    fn row(&self, r: Expr) -> Vec<Expr> {
        let mut axes = self.axes.clone();
        let dims: Vec<Expr> = self.p.m.iter().map(|&a| self.c.dims[a]).collect();
        // With one row alone these are no numbers that are needed.
        let places = if self.p.rows == 1 { vec![Expr::int(0); dims.len()] } else { Expr::delinearise(r, &dims) };
        self.p.m.iter().zip(places).for_each(|(&a, v)| axes[a] = v);
        axes
    }

    /// The other factor's element in a row, `lane` products behind product `k` of the sum; 0 beyond the last one.
    fn element(&self, r: usize, k: Expr, lane: Expr) -> Scalar {
        let reduced = &self.c.reduction.as_ref().expect("a contraction reduces").axes;
        // Rows beyond the last are the last one again.
        let row = if self.p.above.is_some() { Expr::from(r).min(self.rows - 1) } else { Expr::from(r) };
        let mut all = self.row(row);
        all.extend(Expr::delinearise(k + lane, reduced));
        let value = self.data.scalar.subst(&all);
        let depth = self.depth.known().unwrap_or(0);
        if depth % self.narrow.stored.per_vector() as i64 == 0 {
            return value;
        }
        let last = if depth % QUAD as i64 == 0 { k } else { k + lane };
        let (inside, read) = (Scalar::index(last).lt(Scalar::index(self.depth)), self.data.read.subst(&all));
        let zero = |s: Scalar| Scalar::number(s.dtype(), 0.0);
        if value == read {
            let infc_ir::scalar::Kind::Read { source, index, .. } = read.kind() else { unreachable!("it is a read") };
            return Scalar::read_if(*source as usize, index.iter().copied(), inside, zero(read));
        }
        let guarded = value.rewrite(&mut |n| match n.kind() {
            infc_ir::scalar::Kind::Read { source, index, .. } if n == read => {
                Scalar::read_if(*source as usize, index.iter().copied(), inside, zero(n))
            }
            _ => n,
        });
        Scalar::select(inside, guarded, zero(guarded))
    }

    /// Stores output `o` of the block, if it is one, from its sum.
    fn finish(&self, cx: &mut Cx, o: Expr, sum: Scalar) -> Vec<Stmt> {
        let columns = Expr::from(COLUMNS);
        let (r, n) = (o.div(columns), self.first + o.rem(columns));
        let mut axes = self.row(r);
        axes[self.p.n] = n;
        let inside = |at: Expr, size: Expr, always: bool| match always {
            true => Scalar::int(DType::Bool, 1),
            false => Scalar::index(at).lt(Scalar::index(size)),
        };
        let of = self.c.dims[self.p.n];
        let cond = inside(n, of, of.known().is_some_and(|n| n % COLUMNS as i64 == 0)).and(inside(
            r,
            self.rows,
            self.p.above.is_none() || self.p.rows == 1,
        ));
        let store = cx.store_out(&axes, with_accumulator(self.c.value.subst(&axes), sum));
        match cond.as_int() {
            Some(_) => vec![store],
            None => vec![Stmt::If { cond, then: vec![store], otherwise: vec![] }],
        }
    }
}
