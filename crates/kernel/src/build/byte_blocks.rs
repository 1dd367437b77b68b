//! The builder of products of bytes in blocks along k, each with a scale of the row and one of the column.
//!
//! `out[m, n] = finish(sum over b of s[m, b] * t[b, n] * sum over j of q[m, b, j] * u[b, j, n])`: signed bytes `q` with scales `s`, and weights of 8 bits at most, which lie as they do in
//! [`super::stored`] but for the order within a word: its bytes are four neighbours along k, so that what instructions for bytes take is a word with all but some bits cleared.
//! A tile of rows and columns has sums in f32, and beside them those of a block in i32. Where 0 stands for the middle of unsigned weights, sums of a block
//! begin with what that is too much, of which a task makes a table for its rows first.

use super::contract::{Factor, blocks, grid, inside, pack_index};
use super::elementwise::with_accumulator;
use super::stored::{self, Found, Zeros};
use super::{Cx, Operand, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::{ByteBlocks, guess};
use crate::recognised::byte_of;
use crate::target::{LINE, TargetDesc};
use infc_ir::compute::{Compute, Reducer};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor};

/// The factors of a product: signed bytes, their scales and the weights, each a read.
struct Parts {
    whole: Factor,
    scale: Factor,
    weights: Factor,
    n: usize,
    m: Vec<usize>,
    /// Number of blocks, and elements of each.
    k: [usize; 2],
}

fn parts(c: &Compute) -> Option<Parts> {
    let r = c.reduction.as_ref().filter(|r| r.kind == Reducer::Sum && r.body.dtype() == DType::F32)?;
    let (&[count, block], rank) = (r.axes.as_slice(), c.dims.len()) else { return None };
    let k = [usize::try_from(count.known()?).ok()?, usize::try_from(block.known()?).ok()?];
    let Kind::Binary(Binary::Mul, data, weights) = r.body.kind() else { return None };
    let Kind::Binary(Binary::Mul, whole, scale) = data.kind() else { return None };
    let factor = |scalar: Scalar, read: Scalar| match read.kind() {
        Kind::Read { source, index, guard: None } => {
            let index = index.iter().map(|i| i.as_index()).collect::<Option<Vec<_>>>()?;
            Some(Factor { scalar, read, source: *source as usize, index })
        }
        _ => None,
    };
    let bytes = match whole.kind() {
        Kind::Cast(byte) if byte.dtype() == DType::I8 => *byte,
        _ => return None,
    };
    let (whole, scale, weights) = (factor(*whole, bytes)?, factor(*scale, *scale)?, factor(*weights, *weights)?);
    let uses = |f: &Factor, axis: usize| f.index.iter().any(|e| e.uses_var(axis as u32));
    let of_data = |axis: &usize| uses(&whole, *axis) || uses(&scale, *axis);
    let (m, others): (Vec<usize>, Vec<usize>) = (0..rank).partition(of_data);
    let others: Vec<usize> = others.into_iter().filter(|&a| uses(&weights, a)).collect();
    let &[n] = others.as_slice() else { return None };
    let apart = m.iter().all(|&a| !uses(&weights, a)) && !uses(&scale, rank + 1);
    (apart && scale.read.dtype() == DType::F32).then_some(Parts { whole, scale, weights, n, m, k })
}

fn found(c: &Compute, p: &Parts, weights: &Tensor) -> Option<Found> {
    let index = pack_index(&p.weights, p.n, c, 2)?;
    stored::in_blocks(weights, &index, usize::try_from(c.dims[p.n].known()?).ok()?, &p.k)
}

/// The weights of such a product, as integers with a scale for each block, if it is one and they are that. `constant`: the data of a source. Where both factors of an instruction are signed,
/// weights have less than 8 bits.
pub fn weights<'a>(c: &Compute, constant: &dyn Fn(usize) -> Option<&'a Tensor>, target: &TargetDesc) -> Option<Found> {
    let p = parts(c)?;
    let whole = p.k[1].is_multiple_of(LEAST) && p.k[1] <= MOST;
    let most = if target.byte_dot || target.byte_pairs { 8 } else { 7 };
    found(c, &p, constant(p.weights.source)?).filter(|f| whole && f.stored.bits() <= most)
}

/// Least elements of a block, of which each is a multiple: words of the narrowest weights are whole.
const LEAST: usize = 16;

/// Most elements of a block: its sum stays in 32 bits.
const MOST: usize = 1 << 15;

/// Rows of a task where their number is open.
const OPEN_ROWS: usize = 192;

/// The plan, if it is such a product.
pub fn plan(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<ByteBlocks> {
    if !target.groups_bytes() || target.block_threads > 0 {
        return None;
    }
    let p = parts(c)?;
    let last = (c.dims.len() + 1) as u32;
    let index: Vec<Scalar> = p.whole.index.iter().map(|&e| Scalar::index(e)).collect();
    let side_by_side = operands[p.whole.source].offset(&index)?.affine_in(last)?.0 == 1;
    let stored = weights(c, &|source| operands[source].constant.as_ref(), target).filter(|_| side_by_side)?.stored;
    let open = p.m.iter().any(|&a| c.dims[a].known().is_none());
    let rows: i64 = p.m.iter().map(|&a| guess(c.dims[a])).product();
    let columns = guess(c.dims[p.n]);
    let (lanes, registers) = (target.lanes(4).max(1), target.vector_registers as usize);
    // Each sum takes two registers; of the others one is for weights of each vector, and some for what lies between.
    let vectors = if registers >= 32 && columns > lanes as i64 { 2 } else { 1 };
    let most = (registers.saturating_sub(vectors + 4) / (2 * vectors)).max(1) as i64;
    let tiles = (rows.max(1) + most - 1) / most;
    let mr = if open { most } else { (rows.max(1) + tiles - 1) / tiles } as usize;
    let nr = vectors * lanes;
    let [depth, l2] = [(p.k[0] * p.k[1]) as i64, target.l2_bytes as i64];
    let (mut mc, nc) = blocks((rows, columns, depth, 1), (depth, depth), (mr, nr), 1, l2);
    if open {
        let fit = (l2 / 2 / depth.max(1)) as usize;
        mc = OPEN_ROWS.min(fit).max(mc).next_multiple_of(mr);
    }
    Some(ByteBlocks { n: p.n, m: p.m, mr, nr, mc, nc, stored })
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, plan: &ByteBlocks) {
    let p = parts(c).expect("checked by the plan");
    let constant = cx.operand(p.weights.source).constant.clone().expect("checked by the plan");
    let found = found(c, &p, &constant).expect("checked by the plan");
    cx.pack(p.weights.source, found.bytes(plan.nr));
    let m_dims: Vec<Expr> = p.m.iter().map(|&x| c.dims[x]).collect();
    let (rows, columns) = (Expr::product(m_dims.iter().copied()), c.dims[p.n]);
    let counts = [rows.div_ceil(Expr::from(plan.mc)), columns.div_ceil(Expr::from(plan.nc))];
    let (axes, [m_block, n_block]) = grid(cx, c, (&p.m, p.n), counts);
    let m_block = m_block * plan.mc as i64;
    let dtype = if found.stored.zeros == Zeros::Middle { DType::I32 } else { DType::F32 };
    let sums = cx.scratch("sums", dtype, &[plan.mc, p.k[0]], Space::Tile);
    let nest = Nest { c, p: &p, plan, axes, m_dims, rows, columns, m_block, sums };
    let fill = nest.fill(cx);
    cx.body.extend([Stmt::Alloc { buffer: sums }, fill]);
    let mut body = nest.tiles(cx, n_block, plan.mr, plan.mc);
    if rows.known().is_none() && plan.mr > 1 {
        let then = vec![nest.tiles(cx, n_block, 1, 1)];
        body = Stmt::If { cond: Scalar::index(rows).le(Scalar::index(Expr::int(1))), then, otherwise: vec![body] };
    }
    cx.body.push(body);
}

/// What the parts of the nest share.
struct Nest<'a> {
    c: &'a Compute,
    p: &'a Parts,
    plan: &'a ByteBlocks,
    axes: Vec<Expr>,
    m_dims: Vec<Expr>,
    rows: Expr,
    columns: Expr,
    m_block: Expr,
    /// Of each row of the task and each block, what sums begin with, or the sum of its bytes.
    sums: u32,
}

impl Nest<'_> {
    /// Axis values of a row; one beyond the last stands for the last.
    fn row(&self, row: Expr) -> Vec<Expr> {
        let mut axes = self.axes.clone();
        let row = row.min(self.rows - 1);
        for (&x, v) in self.p.m.iter().zip(Expr::delinearise(row, &self.m_dims)) {
            axes[x] = v;
        }
        axes
    }

    fn read(&self, f: &Factor, mut axes: Vec<Expr>, block: Expr, inner: Expr) -> Scalar {
        axes.extend([block, inner]);
        let index: Vec<Expr> = f.index.iter().map(|e| e.subst(&axes)).collect();
        Scalar::read_at(f.read.dtype(), f.source, &index)
    }

    /// The table of the task's rows.
    fn fill(&self, cx: &mut Cx) -> Stmt {
        let [count, size] = self.p.k;
        let lanes =
            (0..=4).map(|p| 1usize << p).take_while(|l| *l <= cx.target.lanes(4) && size.is_multiple_of(*l)).last().unwrap_or(1);
        let acc = cx.scratch("acc", DType::I32, &[lanes], Space::Reg);
        let (row, block, part, lane) = (cx.var("m"), cx.var("block"), cx.var("k"), cx.var("lane"));
        let zero = cx.put(acc, &[lane], Scalar::int(DType::I32, 0));
        let mut body = vec![Stmt::Alloc { buffer: acc }, for_each(lane, Expr::from(lanes), LoopKind::Vector, vec![zero])];
        let lane = cx.var("lane");
        let byte = self.read(&self.p.whole, self.row(self.m_block + row), block, part * lanes as i64 + lane);
        let add = cx.put(acc, &[lane], cx.at(acc, &[lane]) + byte.cast(DType::I32));
        let add = for_each(lane, Expr::from(lanes), LoopKind::Vector, vec![add]);
        body.push(for_each(part, Expr::from(size / lanes), LoopKind::Unroll, vec![add]));
        let mut half = lanes / 2;
        while half > 0 {
            let lane = cx.var("lane");
            let joined = cx.put(acc, &[lane], cx.at(acc, &[lane]) + cx.at(acc, &[lane + half as i64]));
            body.push(for_each(lane, Expr::from(half), if half > 1 { LoopKind::Vector } else { LoopKind::Unroll }, vec![joined]));
            half /= 2;
        }
        let sum = cx.at(acc, &[Expr::int(0)]);
        let value = match self.plan.stored.middle() {
            Some(middle) => sum * Scalar::int(DType::I32, -(middle as i64)),
            None => sum.cast(DType::F32),
        };
        body.push(cx.put(self.sums, &[row, block], value));
        let blocks = for_each(block, Expr::from(count), LoopKind::Serial, body);
        let rows = inside(self.m_block + row, self.rows, self.plan.mc, vec![blocks]);
        for_each(row, Expr::from(self.plan.mc), LoopKind::Serial, rows)
    }

    /// All tiles of the task, of so many rows each.
    fn tiles(&self, cx: &mut Cx, n_block: Expr, mr: usize, mc: usize) -> Stmt {
        let (n_tile, m_tile) = (cx.var("n_tile"), cx.var("m_tile"));
        let nr = self.plan.nr as i64;
        let n0 = n_block * self.plan.nc as i64 + n_tile * nr;
        let first = m_tile * mr as i64;
        let mut column = |tail: bool| {
            let tile = inside(self.m_block + first, self.rows, mc, self.tile(cx, (first, mr), n0, tail));
            for_each(m_tile, Expr::from(mc / mr), LoopKind::Serial, tile)
        };
        let body = if self.columns.known().is_some_and(|x| x % nr == 0) {
            vec![column(false)]
        } else {
            let cond = Scalar::index(n0 + nr).le(Scalar::index(self.columns));
            vec![Stmt::If { cond, then: vec![column(false)], otherwise: vec![column(true)] }]
        };
        let body = inside(n0, self.columns, self.plan.nc, body);
        for_each(n_tile, Expr::from(self.plan.nc / self.plan.nr), LoopKind::Serial, body)
    }

    /// For each of `mr` rows and the columns of a tile.
    fn each(&self, cx: &mut Cx, mr: usize, make: impl FnOnce(&mut Cx, Expr, Expr) -> Vec<Stmt>) -> Stmt {
        let (i, v) = (cx.var("m"), cx.var("n"));
        let body = make(cx, i, v);
        let columns = for_each(v, Expr::from(self.plan.nr), LoopKind::Vector, body);
        for_each(i, Expr::from(mr), LoopKind::Unroll, vec![columns])
    }

    /// A tile: the rows from `first` of the task on, and the columns from `n0` on. `tail`: the last columns are missing.
    fn tile(&self, cx: &mut Cx, (first, mr): (Expr, usize), n0: Expr, tail: bool) -> Vec<Stmt> {
        let (stored, nr, [count, size]) = (self.plan.stored, self.plan.nr, self.p.k);
        let (table, phases) = (self.p.weights.source, 8 / stored.bits());
        let (words, head) = (size / stored.members(), stored.head());
        let number = n0.div(Expr::from(nr));
        let acc = cx.scratch("acc", DType::F32, &[mr, nr], Space::Reg);
        let part = cx.scratch("part", DType::I32, &[mr, nr], Space::Reg);
        let block = cx.var("block");
        let at = |row: Expr, v: Expr| Scalar::read_at(DType::U32, table, &[number, block * (head + words) as i64 + row, v]);
        let clear = self.each(cx, mr, |cx, i, v| vec![cx.put(acc, &[i, v], Scalar::float(DType::F32, 0.0))]);
        let begin = self.each(cx, mr, |cx, i, v| {
            let start =
                if stored.zeros == Zeros::Middle { cx.at(self.sums, &[first + i, block]) } else { Scalar::int(DType::I32, 0) };
            vec![cx.put(part, &[i, v], start)]
        });
        let word = cx.var("word");
        let steps = self.each(cx, mr, |cx, i, v| {
            let axes = self.row(self.m_block + first + i);
            let read = at(word + head as i64, v);
            let number = |n: f64| Scalar::number(DType::U32, n);
            let bits = stored.bits();
            let mask = (0..4).fold(0u32, |mask, t| mask | (0xff >> (8 - bits)) << (8 * t));
            let sum = (0..phases).fold(cx.at(part, &[i, v]), |sum, phase| {
                let moved = if phase == 0 { read } else { Scalar::binary(Binary::Shr, read, number((bits * phase) as f64)) };
                let word_of = if bits == 8 { moved } else { Scalar::binary(Binary::And, moved, number(f64::from(mask))) };
                (0..4).fold(sum, |sum, t| {
                    let k = word * (4 * phases) as i64 + (4 * phase + t) as i64;
                    let byte = self.read(&self.p.whole, axes.clone(), block, k).cast(DType::I32);
                    sum + byte * byte_of(word_of, t)
                })
            });
            vec![cx.put(part, &[i, v], sum)]
        });
        let kind = if words <= MOST_WORDS { LoopKind::Unroll } else { LoopKind::Serial };
        let steps = for_each(word, Expr::from(words), kind, vec![steps]);
        let fma = cx.target.fma;
        let add = self.each(cx, mr, |cx, i, v| {
            let mut sum = cx.at(part, &[i, v]).cast(DType::F32);
            let product = |a: Scalar, b: Scalar, c: Scalar| if fma { Scalar::fma(a, b, c) } else { a * b + c };
            if stored.zeros != Zeros::Middle {
                let zero = at(Expr::int(1), v).bitcast(DType::F32);
                sum = product(Scalar::float(DType::F32, 0.0) - zero, cx.at(self.sums, &[first + i, block]), sum);
            }
            let own = self.read(&self.p.scale, self.row(self.m_block + first + i), block, Expr::int(0));
            let scale = at(Expr::int(0), v).bitcast(DType::F32) * own;
            vec![cx.put(acc, &[i, v], product(sum, scale, cx.at(acc, &[i, v])))]
        });
        let mut body = vec![Stmt::Alloc { buffer: part }];
        if mr == 1 {
            // One row waits for its weights.
            let (elements, line) = (((head + words) * nr) as i64, LINE / 4);
            let ahead = (AHEAD / 4 + elements - 1) / elements;
            body.extend((0..(elements + line - 1) / line).map(|k| Stmt::Prefetch {
                buffer: table as u32,
                index: [number, Expr::int(0), (block + ahead) * elements + k * line].map(Scalar::index).to_vec(),
            }));
        }
        body.extend([begin, steps, add]);
        let sum = for_each(block, Expr::from(count), LoopKind::Serial, body);
        let (i, v) = (cx.var("m"), cx.var("n"));
        let mut axes = self.row(self.m_block + first + i);
        axes[self.p.n] = n0 + v;
        let value = with_accumulator(self.c.value.subst(&axes), cx.at(acc, &[i, v]));
        let mut store = vec![cx.store_out(&axes, value)];
        if tail {
            let cond = Scalar::index(n0 + v).lt(Scalar::index(self.columns));
            store = vec![Stmt::If { cond, then: store, otherwise: vec![] }];
        }
        let vectors = vec![for_each(v, Expr::from(nr), LoopKind::Vector, store)];
        let rows = inside(self.m_block + first + i, self.rows, mr, vectors);
        let finish = for_each(i, Expr::from(mr), LoopKind::Unroll, rows);
        vec![Stmt::Alloc { buffer: acc }, clear, sum, finish]
    }
}

/// How many bytes of the table are fetched before their turn comes. Measured on Granite Rapids, 151 MB of weights of 4 bits for one row: 14.3 ms with nothing fetched ahead,
/// 10.3 with 1.3 or 2.6 kB, 11 to 12 with 2, 4, 8 or 20 kB.
const AHEAD: i64 = 2560;

/// Words of a block whose steps follow each other without a loop.
const MOST_WORDS: usize = 8;
