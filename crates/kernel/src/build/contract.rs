//! The contraction builder: matrix products and convolutions in register tiles, without im2col.
//!
//! `out[m, n] = finish(sum over k of a[m, k] * b[k, n])`. A tile of `mr` rows and `nr` columns of sums stays in registers; each step
//! along k reads `nr` neighbouring elements of b as vectors and broadcasts `mr` elements of a. Rows may lie anywhere: m is a
//! set of output axes, flattened, and the address of each row follows from the index map, which is all there is to a convolution.
//! Rows beyond the last are computed as the last one and not stored (those of a number that a run tells in lower tiles, `open.rs`); columns beyond the last are masked.

mod ahead;
mod along;
mod copied;
mod open;
mod sizes;
mod taps;

pub(crate) use self::sizes::cycles;
pub use self::sizes::{Frame, plan};

use self::copied::Rows;
use self::open::{Rest, few_rows, rest_of_rows};
use self::sizes::narrow_factor;
pub(super) use self::sizes::{MOST_ROWS, MOST_VECTORS, blocks, few_tasks, rounds};
use self::taps::{Tap, in_line, taps};
use super::elementwise::with_accumulator;
use super::stored::{self, Table};
use super::{Cx, Operand, for_each, matrix, pack};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::{Brgemm, Kc, Matrix, Panels, guess};
use crate::rows::{self, Row, Sums};
use crate::target::LINE;
use crate::zero_point::byte_read;
use infc_ir::compute::{Compute, Reducer};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor};

/// A factor of the product: the scalar, and the one read in it.
pub(crate) struct Factor {
    pub(crate) scalar: Scalar,
    pub(crate) read: Scalar,
    pub(crate) source: usize,
    pub(crate) index: Vec<Expr>,
}

impl Factor {
    /// Its dtype before it is widened.
    pub(super) fn dtype(&self) -> DType {
        match self.scalar.kind() {
            Kind::Cast(narrow) if byte_read(*narrow).is_some() => narrow.dtype(),
            _ => self.read.dtype(),
        }
    }
}

pub(crate) fn factors(c: &Compute) -> Option<[Factor; 2]> {
    let r = c.reduction.as_ref()?;
    let Kind::Binary(Binary::Mul, a, b) = r.body.kind() else { return None };
    Some([factor(*a)?, factor(*b)?])
}

/// A factor, if one read in it moves.
pub(crate) fn factor(s: Scalar) -> Option<Factor> {
    let reads = crate::fuse::moving_reads(s);
    let [read] = reads.as_slice() else { return None };
    let Kind::Read { source, index, guard: None } = read.kind() else { return None };
    let index = index.iter().map(|i| i.as_index()).collect::<Option<Vec<_>>>()?;
    Some(Factor { scalar: s, read: *read, source: *source as usize, index })
}

/// The same contraction with its reduction axes in the order in which the factor that is no constant lies in memory: neighbours
/// follow each other, and a line of the cache is left for good once it is read. Sums of floats change their order.
pub fn in_memory_order(mut c: Compute, operands: &[Operand]) -> Compute {
    let (Some(f), Some(r)) = (factors(&c), &mut c.reduction) else { return c };
    let rank = c.dims.len();
    let stride = |k: usize| {
        let of = |f: &Factor| {
            let index: Vec<Scalar> = f.index.iter().map(|&e| Scalar::index(e)).collect();
            let offset = operands[f.source].offset(&index)?;
            Some(offset.affine_in((rank + k) as u32)?.0.abs())
        };
        let moving = f.iter().filter(|f| operands[f.source].constant.is_none());
        moving.map(|f| of(f).unwrap_or(i64::MAX)).max().unwrap_or(0)
    };
    let mut order: Vec<usize> = (0..r.axes.len()).collect();
    // Axes of one element go first: the last one is that of neighbours.
    order.sort_by_key(|&k| std::cmp::Reverse(if r.axes[k].is(1) { i64::MAX } else { stride(k) }));
    let mut map: Vec<Expr> = (0..rank + order.len()).map(Expr::var).collect();
    for (new, &old) in order.iter().enumerate() {
        map[rank + old] = Expr::var(rank + new);
    }
    r.axes = order.iter().map(|&k| r.axes[k]).collect();
    r.body = r.body.subst(&map);
    c
}

/// Steps of a tile's sums from which on there is time to fetch something.
const LONG: i64 = 1024;

/// Bytes of a page: what the machine fetches ahead by itself ends there.
pub(super) const PAGE: i64 = 4096;

/// The index of a constant factor in terms of n (variable 0) and k (variables 1..), if it depends on nothing else.
pub(super) fn pack_index(b: &Factor, n: usize, c: &Compute, reduced: usize) -> Option<Vec<Expr>> {
    batch_index(b, n, c, reduced).filter(|(batch, _)| batch.is_empty()).map(|(_, index)| index)
}

/// The same for a factor that depends on other output axes too, as the weights of groups do: these axes with their extents, and the index with their values behind those of k.
fn batch_index(b: &Factor, n: usize, c: &Compute, reduced: usize) -> Option<(Vec<(usize, usize)>, Vec<Expr>)> {
    let rank = c.dims.len();
    let axes = (0..rank).filter(|&a| a != n && !c.dims[a].is(1) && b.index.iter().any(|e| e.uses_var(a as u32)));
    let axes =
        axes.map(|a| Some((a, usize::try_from(c.dims[a].known()?).ok().filter(|&n| n > 0)?))).collect::<Option<Vec<_>>>()?;
    let place = |a: usize| axes.iter().position(|x| x.0 == a);
    let map: Vec<Expr> = (0..rank + reduced)
        .map(|a| match a {
            _ if a == n => Expr::var(0),
            _ if a >= rank => Expr::var(1 + a - rank),
            _ => place(a).map_or(Expr::int(0), |k| Expr::var(1 + reduced + k)),
        })
        .collect();
    let index = b.index.iter().map(|e| e.subst(&map)).collect();
    Some((axes, index))
}

/// The panels of a constant factor, those of each element of its batch behind one another.
fn packed_panels(t: &Tensor, (batch, index): (&[(usize, usize)], &[Expr]), n: usize, k: &[usize], nr: usize) -> Option<Tensor> {
    let count: usize = batch.iter().map(|b| b.1).product();
    let mut all: Vec<u8> = vec![];
    let mut dims = vec![];
    for number in 0..count {
        let mut rest = number;
        let mut values: Vec<Expr> = vec![];
        for &(_, size) in batch.iter().rev() {
            values.push(Expr::from(rest % size));
            rest /= size;
        }
        values.reverse();
        let map: Vec<Expr> = (0..=k.len()).map(Expr::var).chain(values).collect();
        let index: Vec<Expr> = index.iter().map(|e| e.subst(&map)).collect();
        let panels = pack::panels(t, &index, n, k, nr)?;
        all.extend_from_slice(panels.bytes());
        dims = panels.dims;
    }
    *dims.first_mut()? *= count;
    Some(Tensor::from_bytes(t.dtype, dims, all))
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, p: &Brgemm) {
    let table = table(cx, c, p);
    let c = &p.stored.map_or_else(|| c.clone(), |s| stored::cut(c, s));
    let r = c.reduction.as_ref().expect("a contraction reduces");
    let f = factors(c).expect("a contraction is a product of two reads");
    let (a, b) = (&f[p.broadcast], &f[1 - p.broadcast]);
    let m_dims: Vec<Expr> = p.m.iter().map(|&x| c.dims[x]).collect();
    let (rows, columns) = (Expr::product(m_dims.iter().copied()), c.dims[p.n]);
    let nr = p.nr as i64;
    let blocks = [rows.div_ceil(Expr::from(p.mc)), columns.div_ceil(Expr::from(p.nc))];
    let (axes, [m_block, n_block]) = grid(cx, c, (&p.m, p.n), blocks);
    let n_tile = cx.var("n_tile");
    let m_block = m_block * p.mc as i64;
    let n0 = n_block * p.nc as i64 + n_tile * nr;
    let source = vector_source(cx, c, p, b, table);
    let taps = taps(c, (p.broadcast, &p.m), &f, cx.operands);
    let members = rows::named(p.row).expect("a plan names a row of the table").depth as i64;
    let tile = Expr::int(0);
    let copied = p.copied.then(|| Rows::new(cx, (c, p, a), m_block));
    if let Some(rows) = &copied {
        let lanes = cx.target.lanes(r.body.dtype().bytes());
        let fill = rows.fill(cx, (c, p, a), &axes, lanes);
        cx.body.extend(fill);
    }
    let few = few_rows(p, rows, cx.target);
    let rest = rest_of_rows(cx, c, p, &m_dims, panels_bytes(c, p.n, b));
    let scratch = match source {
        Source::Scratch(panel, _) => Some(panel),
        _ => None,
    };
    let mut nest = Tile {
        c,
        p,
        a,
        b,
        axes,
        m_dims,
        rows,
        columns,
        m_block,
        m0: m_block,
        m_tile: tile,
        n0,
        part: None,
        taps,
        source,
        copied,
        members,
        rest: rest.as_ref(),
        whole: false,
        runs: p
            .along
            .and_then(|_| along::of(c, cx.operand(cx.out() as usize), p.n, &p.m, cx.target))
            .map_or(0, |(_, along)| along.first),
        results: None,
    };
    let mut all = scratch.map(|panel| Stmt::Alloc { buffer: panel }).into_iter().collect::<Vec<_>>();
    all.push(nest.columns(cx, n_tile));
    for plan in &few {
        let n_tile = cx.var("n_tile");
        (nest.p, nest.rest) = (plan, None);
        nest.n0 = n_block * p.nc as i64 + n_tile * nr;
        nest.source = table.map_or(Source::InPlace, Source::Narrow);
        let then = vec![nest.columns(cx, n_tile)];
        all = vec![Stmt::If { cond: Scalar::index(rows).le(Scalar::index(Expr::from(plan.mr))), then, otherwise: all }];
    }
    cx.body.extend(all);
    if p.along.is_some() {
        cx.flatten(cx.out() as usize);
    }
    debug_assert_eq!(r.kind, Reducer::Sum);
}

/// Bytes of all columns of the vector factor of one element of the batch, if they are known.
fn panels_bytes(c: &Compute, n: usize, b: &Factor) -> Option<i64> {
    let depth = c.reduction.as_ref()?.axes.iter().map(|e| e.known()).product::<Option<i64>>()?;
    Some(c.dims[n].known()? * depth * b.read.dtype().bytes() as i64)
}

/// Makes a task of each block of rows and columns of each element of the batch: the values of the batch axes (0 for the others), and
/// the task's block.
pub(super) fn grid(cx: &mut Cx, c: &Compute, (m, n): (&[usize], usize), blocks: [Expr; 2]) -> (Vec<Expr>, [Expr; 2]) {
    let rank = c.dims.len();
    let batch: Vec<usize> = (0..rank).filter(|x| *x != n && !m.contains(x)).collect();
    let grid: Vec<Expr> = batch.iter().map(|&x| c.dims[x]).chain(blocks).collect();
    cx.tasks = Expr::product(grid.iter().copied());
    let place = Expr::delinearise(cx.task, &grid);
    let mut axes = vec![Expr::int(0); rank];
    batch.iter().zip(&place).for_each(|(&x, &v)| axes[x] = v);
    (axes, [place[batch.len()], place[batch.len() + 1]])
}

/// The nest of a task of the plan `p` for tiles, on vectors: for fewer rows than a tile has. The panels are those of the tiles, `axes` have the
/// values of batch axes.
pub(super) fn short(cx: &mut Cx, c: &Compute, p: &Matrix, f: &[Factor; 2], axes: Vec<Expr>, n_block: Expr) -> Vec<Stmt> {
    let (a, b) = (&f[p.broadcast], &f[1 - p.broadcast]);
    let members = 4 / b.read.dtype().bytes();
    let sums = c.reduction.as_ref().expect("a contraction reduces").body.dtype();
    let row =
        rows::choose(&Sums { dtype: sums, broadcast: a.dtype(), vector: b.dtype(), groups: members, small: false }, cx.target)
            .name;
    let (mr, nr) = (SHORT, p.tiles[1] * matrix::TILE);
    let plan = Brgemm {
        broadcast: p.broadcast,
        n: p.n,
        m: p.m.clone(),
        mr,
        nr,
        mc: p.rows.next_multiple_of(mr),
        nc: p.nc,
        kc: None,
        panels: Panels::Packed,
        copied: false,
        along: None,
        stored: None,
        row,
    };
    let m_dims: Vec<Expr> = p.m.iter().map(|&x| c.dims[x]).collect();
    let (rows, columns, zero) = (Expr::product(m_dims.iter().copied()), c.dims[p.n], Expr::int(0));
    let n_tile = cx.var("n_tile");
    let n0 = n_block * p.nc as i64 + n_tile * nr as i64;
    let (taps, source, copied) = (vec![], Source::Packed(b.source), None);
    let mut nest = Tile {
        c,
        p: &plan,
        a,
        b,
        axes,
        m_dims,
        rows,
        columns,
        m_block: zero,
        m0: zero,
        m_tile: zero,
        n0,
        part: None,
        taps,
        source,
        copied,
        members: members as i64,
        rest: None,
        whole: false,
        runs: 0,
        results: None,
    };
    vec![nest.columns(cx, n_tile)]
}

/// Rows of the register tile of [`short`].
const SHORT: usize = 8;

/// `body` where `start` is below `extent`, which needs no test if blocks of `block` divide the extent.
pub(super) fn inside(start: Expr, extent: Expr, block: usize, body: Vec<Stmt>) -> Vec<Stmt> {
    if extent.known().is_some_and(|x| x % block as i64 == 0) {
        return body;
    }
    vec![Stmt::If { cond: Scalar::index(start).lt(Scalar::index(extent)), then: body, otherwise: vec![] }]
}

/// Where the vectors of b come from.
enum Source {
    Packed(usize),
    InPlace,
    /// Widened where they are used.
    Narrow(Table),
    /// Copied, or widened from a table.
    Scratch(u32, Option<Table>),
}

/// The narrow weights of the plan.
fn table(cx: &mut Cx, c: &Compute, p: &Brgemm) -> Option<Table> {
    let stored = p.stored?;
    let f = factors(c).expect("a contraction is a product of two reads");
    let b = &f[1 - p.broadcast];
    let found = narrow_factor(c, p.n, b, cx.operand(b.source), Some(stored)).expect("checked by the plan");
    Some(Table::pack(cx, b.source, &found, p.nr))
}

fn vector_source(cx: &mut Cx, c: &Compute, p: &Brgemm, b: &Factor, table: Option<Table>) -> Source {
    let r = c.reduction.as_ref().expect("a contraction reduces");
    let depth: Vec<usize> = r.axes.iter().map(|e| e.known().unwrap_or(0) as usize).collect();
    match p.panels {
        Panels::InPlace => Source::InPlace,
        Panels::Scratch => {
            // Neighbours along k lie side by side for each column, as the row takes them.
            let group = rows::named(p.row).expect("a plan names a row of the table").depth;
            let mut dims = depth;
            if let Some(last) = dims.last_mut() {
                *last /= group;
            }
            dims.push(p.nr);
            dims.extend((group > 1).then_some(group));
            Source::Scratch(cx.scratch("panel", b.read.dtype(), &dims, Space::Tile), table)
        }
        Panels::Packed => {
            if let Some(table) = table {
                return Source::Narrow(table);
            }
            let (batch, index) = batch_index(b, p.n, c, r.axes.len()).expect("checked by the plan");
            let tensor = cx.operand(b.source).constant.clone().expect("checked by the plan");
            let n = c.dims[p.n].known().expect("checked by the plan") as usize;
            let packed = packed_panels(&tensor, (&batch, &index), n, &depth, p.nr).expect("a constant read in bounds");
            let group = rows::named(p.row).expect("a plan names a row of the table").depth;
            cx.pack(b.source, if group == 1 { packed } else { pack::grouped(&packed, group) });
            Source::Packed(b.source)
        }
    }
}

/// What the parts of the nest share.
struct Tile<'a> {
    c: &'a Compute,
    p: &'a Brgemm,
    a: &'a Factor,
    b: &'a Factor,
    axes: Vec<Expr>,
    m_dims: Vec<Expr>,
    rows: Expr,
    columns: Expr,
    /// First row of the task, and of the tile.
    m_block: Expr,
    m0: Expr,
    /// Number of the row tile in the task.
    m_tile: Expr,
    n0: Expr,
    /// The block along k, and its number.
    part: Option<(Kc, Expr)>,
    /// Axes of k along which a tile may meet zeros only.
    taps: Vec<Tap>,
    source: Source,
    /// The rows of the task, if it copies them.
    copied: Option<Rows>,
    /// Neighbours along k that lie side by side in panels, packed or copied.
    members: i64,
    /// The plans for what is left of the rows behind the last whole tile.
    rest: Option<&'a Rest>,
    /// Are all rows of the tile certain to be there?
    whole: bool,
    /// The axis of m with which runs of results begin that lie beside each other, where they lie along rows.
    runs: usize,
    /// Scratch memory for results that lie along rows, and the place of the tile's first row in it.
    results: Option<(u32, Expr)>,
}

/// The place along k of member `j` of the group at `k`.
fn member(k: &[Expr], group: i64, j: i64) -> Vec<Expr> {
    let mut at = k.to_vec();
    if let Some(last) = at.last_mut().filter(|_| group > 1) {
        *last = *last * group + j;
    }
    at
}

/// What is read, before it is widened.
fn as_read(s: Scalar) -> Scalar {
    match s.kind() {
        Kind::Cast(x) => *x,
        _ => s,
    }
}

/// What the end of a contraction reads and writes beside the sums, rows `m` and neighbours along `n`: buffers with their indices, the result last.
pub(super) fn touched(c: &Compute, m: &[usize], n: usize, cx: &Cx) -> Vec<(u32, Vec<Expr>)> {
    let mut all: Vec<(u32, Vec<Expr>)> = vec![];
    c.value.visit(&mut |s| {
        if let Kind::Read { source, index, .. } = s.kind()
            && let Some(index) = index.iter().map(|i| i.as_index()).collect::<Option<Vec<_>>>()
            && index.iter().any(|e| m.iter().any(|&x| e.uses_var(x as u32)))
            && index.iter().any(|e| e.uses_var(n as u32))
        {
            all.push((*source, index));
        }
    });
    all.push((cx.out(), (0..c.dims.len()).map(Expr::var).collect()));
    all.retain(|(buffer, index)| {
        let operand = cx.operand(*buffer as usize);
        let index: Vec<Scalar> = index.iter().map(|&e| Scalar::index(e)).collect();
        let step = operand.offset(&index).and_then(|o| o.affine_in(n as u32)).map(|s| s.0);
        operand.constant.is_none() && step == Some(1)
    });
    all
}

impl Tile<'_> {
    /// The number of the panel of packed columns, and of the first and the last one of this element of the batch.
    fn panel(&self) -> [Expr; 3] {
        let count = self.columns.div_ceil(Expr::from(self.p.nr));
        let batch = batch_index(self.b, self.p.n, self.c, self.k_axes().len()).map_or(vec![], |b| b.0);
        let element = batch.iter().fold(Expr::int(0), |flat, &(axis, size)| flat * size as i64 + self.axes[axis]);
        let first = element * count;
        [first + self.n0.div(Expr::from(self.p.nr)), first, first + count - 1]
    }

    fn k_axes(&self) -> &[Expr] {
        &self.c.reduction.as_ref().expect("a contraction reduces").axes
    }

    /// All column tiles of the task.
    fn columns(&mut self, cx: &mut Cx, n_tile: Expr) -> Stmt {
        let nr = self.p.nr as i64;
        let body = if self.columns.known().is_some_and(|x| x % nr == 0) {
            self.column(cx, false)
        } else {
            let cond = Scalar::index(self.n0 + nr).le(Scalar::index(self.columns));
            let (then, otherwise) = (self.column(cx, false), self.column(cx, true));
            vec![Stmt::If { cond, then, otherwise }]
        };
        let body = inside(self.n0, self.columns, self.p.nc, body);
        for_each(n_tile, Expr::from(self.p.nc / self.p.nr), LoopKind::Serial, body)
    }

    /// All row tiles of one column tile. `tail`: the last columns are missing.
    fn column(&mut self, cx: &mut Cx, tail: bool) -> Vec<Stmt> {
        let mut body = vec![];
        if let Source::Scratch(panel, table) = self.source {
            body.push(match table {
                Some(table) => self.widen_panel(cx, panel, table),
                None => self.fill_panel(cx, panel, tail),
            });
        }
        if let Some(kc) = self.p.kc {
            body.extend(self.column_in_parts(cx, kc, tail));
            return body;
        }
        body.extend(self.finished(cx, tail, &|this, cx| this.tile(cx, tail)));
        body
    }

    /// What `body` makes of a row tile, for all of the task.
    fn pass(&mut self, cx: &mut Cx, body: &dyn Fn(&Self, &mut Cx) -> Vec<Stmt>) -> Stmt {
        let m_tile = cx.var("m_tile");
        (self.m_tile, self.m0) = (m_tile, self.m_block + m_tile * self.p.mr as i64);
        let (plan, m0) = (self.p, self.m0);
        let tile = match self.rest {
            None => body(self, cx),
            Some(Rest { low, high }) => {
                self.whole = true;
                let then = body(self, cx);
                self.whole = false;
                let otherwise = match high {
                    None => {
                        let part = cx.var("m_part");
                        (self.p, self.m0) = (low, m0 + part * low.mr as i64);
                        let parts = (self.rows - m0).div_ceil(Expr::from(low.mr));
                        vec![for_each(part, parts, LoopKind::Serial, body(self, cx))]
                    }
                    Some(high) => {
                        // A high tile where a low one does not do, and a low one for what is left.
                        let tile = |this: &mut Self, cx: &mut Cx, plan, first: Expr, from: Expr| {
                            (this.p, this.m0) = (plan, first);
                            let cond = Scalar::index(from).lt(Scalar::index(this.rows));
                            Stmt::If { cond, then: body(this, cx), otherwise: vec![] }
                        };
                        let behind = (self.rows - m0 - 1).div(Expr::from(low.mr)).min(Expr::int(1)) * high.mr as i64;
                        let first = m0 + behind;
                        vec![tile(self, cx, high, m0, m0 + low.mr as i64), tile(self, cx, low, first, first)]
                    }
                };
                (self.p, self.m0) = (plan, m0);
                let cond = Scalar::index(m0 + plan.mr as i64).le(Scalar::index(self.rows));
                vec![Stmt::If { cond, then, otherwise }]
            }
        };
        for_each(m_tile, Expr::from(plan.mc / plan.mr), LoopKind::Serial, inside(m0, self.rows, plan.mc, tile))
    }

    /// The same for what stores results.
    fn finished(&mut self, cx: &mut Cx, tail: bool, body: &dyn Fn(&Self, &mut Cx) -> Vec<Stmt>) -> Vec<Stmt> {
        match self.p.along {
            Some(rows) => self.pass_along(cx, rows, tail, body),
            None => vec![self.pass(cx, body)],
        }
    }

    /// The same with a block along k at a time, whose part of the panel stays near while all row tiles pass.
    fn column_in_parts(&mut self, cx: &mut Cx, kc: Kc, tail: bool) -> Vec<Stmt> {
        let dtype = self.c.reduction.as_ref().expect("a contraction reduces").body.dtype();
        let row = rows::named(self.p.row).expect("a plan names a row of the table");
        let tiles = self.p.mc / self.p.mr;
        let sums = cx.scratch("sums", dtype, &[tiles, self.p.mr, self.p.nr], Space::Tile);
        let start = self.pass(cx, &|this, cx| {
            vec![this.each(cx, 0, |cx, i, v| cx.put(sums, &[this.m_tile, i, v], this.start(dtype, tail, i, v)))]
        });
        let block = cx.var("k_block");
        let before = self.parts(kc);
        self.part = Some((kc, block));
        let add = self.pass(cx, &|this, cx| {
            let acc = cx.scratch("acc", dtype, &[this.p.mr, this.p.nr], Space::Reg);
            let load = this.each(cx, 0, |cx, i, v| cx.put(acc, &[i, v], cx.at(sums, &[this.m_tile, i, v])));
            let sum = this.steps(cx, row, acc, tail);
            let save = this.each(cx, 0, |cx, i, v| cx.put(sums, &[this.m_tile, i, v], cx.at(acc, &[i, v])));
            [vec![Stmt::Alloc { buffer: acc }, load], sum, vec![save]].concat()
        });
        self.part = None;
        let finish =
            self.finished(cx, tail, &|this, cx| vec![this.finish(cx, tail, &|cx, i, v| cx.at(sums, &[this.m_tile, i, v]))]);
        [vec![Stmt::Alloc { buffer: sums }, start, for_each(block, before, LoopKind::Serial, vec![add])], finish].concat()
    }

    /// Number of blocks along k.
    fn parts(&self, kc: Kc) -> Expr {
        let axes = self.k_axes();
        Expr::product(axes[..kc.axis].iter().copied()) * axes[kc.axis].div(Expr::from(kc.size))
    }

    /// Number of row `i` of the tile; a row beyond the last stands for the last.
    fn row_number(&self, i: Expr) -> Expr {
        let whole = self.rows.known().is_some_and(|x| x % self.p.mr as i64 == 0);
        if whole || self.whole { self.m0 + i } else { (self.m0 + i).min(self.rows - 1) }
    }

    /// Axis values of row `i` of the tile.
    fn row(&self, i: Expr) -> Vec<Expr> {
        let mut axes = self.axes.clone();
        // Rows in one line are steps from the first one: their addresses are one and constants.
        let line = in_line(self.p.mr as i64, self.m_dims.last().and_then(|d| d.known()));
        let number = if line { self.m0 } else { self.row_number(i) };
        for (&x, v) in self.p.m.iter().zip(Expr::delinearise(number, &self.m_dims)) {
            axes[x] = v;
        }
        if let Some(&x) = self.p.m.last().filter(|_| line) {
            axes[x] = axes[x] + i;
        }
        axes
    }

    /// Axis values of the tile's first and last row, each axis by itself.
    fn corners(&self) -> [Vec<Expr>; 2] {
        let (mut first, mut last) = (self.axes.clone(), self.axes.clone());
        let mr = self.p.mr as i64;
        let end = (self.m0 + (mr - 1)).min(self.rows - 1);
        if in_line(mr, self.m_dims.last().and_then(|d| d.known())) {
            // A tile lies in one line.
            for (&x, v) in self.p.m.iter().zip(Expr::delinearise(self.m0, &self.m_dims)) {
                (first[x], last[x]) = (v, v);
            }
            if let Some(&x) = self.p.m.last() {
                last[x] = last[x] + (mr - 1);
            }
        } else {
            for (i, &x) in self.p.m.iter().enumerate() {
                (first[x], last[x]) = (Expr::int(0), self.m_dims[i] - 1);
            }
            if let Some(&x) = self.p.m.first() {
                let line = Expr::product(self.m_dims[1..].iter().copied());
                (first[x], last[x]) = (self.m0.div(line), end.div(line));
            }
        }
        [first, last]
    }

    /// First value and number of values of each k axis: all, but for taps that meet zeros only.
    fn k_ranges(&self) -> Vec<(Expr, Expr)> {
        let mut ranges: Vec<(Expr, Expr)> = self.k_axes().iter().map(|&e| (Expr::int(0), e)).collect();
        let [first, last] = self.corners();
        for tap in &self.taps {
            let (low, high) = (tap.rest.subst(&first), tap.rest.subst(&last));
            let step = Expr::int(tap.step);
            let begin = (Expr::int(tap.step - 1) - high).div(step).max(Expr::int(0));
            let end = (Expr::int(tap.size - 1) - low).div(step) + 1;
            let (_, all) = ranges[tap.k];
            ranges[tap.k] = (begin, (end.min(all) - begin).max(Expr::int(0)));
        }
        let Some((kc, block)) = self.part else { return ranges };
        let mut dims = self.k_axes()[..=kc.axis].to_vec();
        dims[kc.axis] = dims[kc.axis].div(Expr::from(kc.size));
        for (k, at) in Expr::delinearise(block, &dims).into_iter().enumerate() {
            let size = if k == kc.axis { kc.size } else { 1 };
            let first = at * size;
            ranges[k] = if self.taps.iter().any(|tap| tap.k == k) {
                let (begin, count) = ranges[k];
                let low = begin.max(first);
                (low, ((begin + count).min(first + size) - low).max(Expr::int(0)))
            } else {
                (first, Expr::int(size))
            };
        }
        ranges
    }

    fn b_at(&self, k: &[Expr], n: Expr, tail: bool) -> Scalar {
        let mut axes = self.axes.clone();
        axes[self.p.n] = n;
        axes.extend(k);
        let index: Vec<Scalar> = self.b.index.iter().map(|e| Scalar::index(e.subst(&axes))).collect();
        if tail {
            let zero = Scalar::number(self.b.read.dtype(), 0.0);
            return Scalar::read_if(self.b.source, index, Scalar::index(n).lt(Scalar::index(self.columns)), zero);
        }
        Scalar::read(self.b.read.dtype(), self.b.source, index)
    }

    fn fill_panel(&self, cx: &mut Cx, panel: u32, tail: bool) -> Stmt {
        let k = cx.vars(&["k"], self.k_axes().len());
        let (lane, group) = (cx.var("n"), self.members);
        if let Some(lanes) = self.turns(cx).filter(|_| !tail) {
            return self.fill_turned(cx, panel, lanes, k);
        }
        let stores = (0..group).map(|j| {
            let mut at: Vec<Expr> = k.iter().copied().chain([lane]).collect();
            at.extend((group > 1).then_some(Expr::int(j)));
            cx.put(panel, &at, self.b_at(&member(&k, group, j), self.n0 + lane, tail))
        });
        let mut nest = for_each(lane, Expr::from(self.p.nr), LoopKind::Vector, stores.collect());
        for (&v, &e) in k.iter().zip(&self.words(group as usize)).rev() {
            nest = for_each(v, e, LoopKind::Serial, vec![nest]);
        }
        nest
    }

    /// Lanes of the squares in which a panel is filled, where neighbours along k lie side by side and columns far apart.
    fn turns(&self, cx: &Cx) -> Option<usize> {
        let dtype = self.b.read.dtype();
        let lanes = cx.target.lanes(dtype.bytes());
        let index: Vec<Scalar> = self.b.index.iter().map(|&e| Scalar::index(e)).collect();
        let offset = cx.operand(self.b.source).offset(&index)?;
        let last = (self.axes.len() + self.k_axes().len() - 1) as u32;
        let apart = offset.affine_in(self.p.n as u32)?.0 >= lanes as i64 && offset.affine_in(last)?.0 == 1;
        let fits = self.members == 1 && dtype.bytes() == 4 && lanes >= 4 && self.p.nr % lanes == 0;
        (apart && fits && self.k_axes().last()?.known()? >= lanes as i64).then_some(lanes)
    }

    /// The panel in squares of as many neighbours along k as columns, which a backend may turn in registers; what is left along k one by one.
    fn fill_turned(&self, cx: &mut Cx, panel: u32, lanes: usize, k: Vec<Expr>) -> Stmt {
        let (&last, outer) = k.split_last().expect("a contraction has an axis");
        let depth = self.k_axes().last().and_then(|e| e.known()).expect("checked by turns");
        let part = cx.var("n_part");
        let put = |cx: &mut Cx, at: Expr| {
            let lane = cx.var("n");
            let k: Vec<Expr> = outer.iter().copied().chain([at]).collect();
            let column = part * lanes as i64 + lane;
            let to: Vec<Expr> = k.iter().copied().chain([column]).collect();
            let store = cx.put(panel, &to, self.b_at(&k, self.n0 + column, false));
            for_each(lane, Expr::from(lanes), LoopKind::Vector, vec![store])
        };
        let (whole, rest) = (depth / lanes as i64, depth % lanes as i64);
        let round = cx.var("round");
        let vector = put(cx, last * lanes as i64 + round);
        let rounds = for_each(round, Expr::from(lanes), LoopKind::Unroll, vec![vector]);
        let mut body = vec![for_each(last, Expr::int(whole), LoopKind::Serial, vec![rounds])];
        if rest > 0 {
            let round = cx.var("round");
            let vector = put(cx, round + whole * lanes as i64);
            body.push(for_each(round, Expr::int(rest), LoopKind::Serial, vec![vector]));
        }
        let mut nest = for_each(part, Expr::from(self.p.nr / lanes), LoopKind::Serial, body);
        for (&v, &e) in outer.iter().zip(self.k_axes()).rev() {
            nest = for_each(v, e, LoopKind::Serial, vec![nest]);
        }
        nest
    }

    /// All weights of a panel, of a table of narrow ones.
    fn widen_panel(&self, cx: &mut Cx, panel: u32, table: Table) -> Stmt {
        let k = cx.vars(&["k"], self.k_axes().len());
        let lane = cx.var("n");
        let members = table.stored.members();
        let tile = self.n0.div(Expr::from(self.p.nr));
        let stores = (0..members).map(|j| {
            let mut at = member(&k, members as i64, j as i64);
            at.push(lane);
            cx.put(panel, &at, table.weight(tile, &k, self.k_axes(), lane, j, cx.target.fma))
        });
        let mut nest = for_each(lane, Expr::from(self.p.nr), LoopKind::Vector, stores.collect());
        for (&v, &e) in k.iter().zip(&self.words(members)).rev() {
            nest = for_each(v, e, LoopKind::Serial, vec![nest]);
        }
        nest
    }

    /// Extents of the k axes where `group` neighbours are one step.
    fn words(&self, group: usize) -> Vec<Expr> {
        let mut extents = self.k_axes().to_vec();
        if let Some(last) = extents.last_mut().filter(|_| group > 1) {
            *last = last.div(Expr::from(group));
        }
        extents
    }

    /// What the end of the tile reads and writes beside the sums, a line of the cache at a time: it comes while the sums are made.
    fn ends(&self, cx: &mut Cx) -> Vec<Stmt> {
        let (mr, nr) = (Expr::from(self.p.mr), self.p.nr as i64);
        let group = rows::named(self.p.row).map_or(1, |row| row.depth as i64);
        let depth: i64 = self.k_axes().iter().map(|&e| guess(e)).product();
        let vectors = self.p.nr / cx.target.lanes(self.c.reduction.as_ref().map_or(4, |r| r.body.dtype().bytes())).max(1);
        if self.p.mr as i64 * vectors as i64 * (depth / group) < LONG {
            return vec![];
        }
        let mut all = vec![];
        for (buffer, index) in touched(self.c, &self.p.m, self.p.n, cx) {
            let i = cx.var("m");
            let line = (LINE / cx.operand(buffer as usize).buffer.dtype.bytes() as i64).max(1);
            let lines = (0..(nr + line - 1) / line).map(|k| {
                let mut axes = self.row(i);
                axes[self.p.n] = self.n0 + k * line;
                Stmt::Prefetch { buffer, index: index.iter().map(|e| Scalar::index(e.subst(&axes))).collect() }
            });
            all.push(for_each(i, mr, LoopKind::Unroll, lines.collect()));
        }
        all
    }

    /// The broadcast factor in row `i` and the vector factor in column `v`, member `j` of a group along k.
    fn factors_at(&self, cx: &Cx, k: &[Expr], (i, v): (Expr, Expr), (j, group): (i64, i64), tail: bool) -> (Scalar, Scalar) {
        let member = member(k, group, j);
        let with = |s: Scalar, old: Scalar, new: Scalar| s.rewrite(&mut |n| if n == old { new } else { n });
        let broadcast = match &self.copied {
            Some(rows) => with(self.a.scalar, self.a.read, rows.at(cx, k, self.row_number(i), j)),
            None => self.a.scalar.subst(&self.row(i).into_iter().chain(member.iter().copied()).collect::<Vec<_>>()),
        };
        let read = match self.source {
            Source::InPlace => self.b_at(&member, self.n0 + v, tail),
            Source::Scratch(panel, _) if self.members > 1 => {
                cx.at(panel, &k.iter().copied().chain([v, Expr::int(j)]).collect::<Vec<_>>())
            }
            Source::Scratch(panel, _) => cx.at(panel, &member.iter().copied().chain([v]).collect::<Vec<_>>()),
            Source::Narrow(table) => {
                table.weight(self.n0.div(Expr::from(self.p.nr)), k, self.k_axes(), v, j as usize, cx.target.fma)
            }
            Source::Packed(source) => {
                // The steps of a row are whole groups, or members of one.
                let (mut along, members) = (k.to_vec(), Expr::int(self.members));
                let mut one = Expr::int(j);
                if let Some(last) = along.last_mut().filter(|_| group != self.members) {
                    (*last, one) = (last.div(members), last.rem(members));
                }
                let [tile, ..] = self.panel();
                let mut at: Vec<Expr> = [tile].into_iter().chain(along).chain([v]).collect();
                at.extend((self.members > 1).then_some(one));
                Scalar::read_at(self.b.read.dtype(), source, &at)
            }
        };
        (broadcast, with(self.b.scalar, self.b.read, read))
    }

    /// The value that is stored, and what the sums start from: what is added to a sum of integers, one for each column, in place of 0.
    fn started(&self, dtype: DType, tail: bool) -> (Scalar, Option<Scalar>) {
        let value = self.c.value;
        let sum = |s: Scalar| matches!(s.kind(), Kind::Local(_));
        let mut added: Vec<(Scalar, Scalar)> = vec![];
        let mut uses = 0;
        value.visit(&mut |n| {
            uses += n.operands().iter().filter(|&&o| sum(o)).count();
            if let Kind::Binary(Binary::Add, a, b) = n.kind() {
                let other = if sum(*a) { *b } else { *a };
                added.extend((sum(*a) != sum(*b)).then_some((n, other)));
            }
        });
        let [(whole, other)] = added[..] else { return (value, None) };
        let by_column = match other.kind() {
            Kind::Read { index, guard: None, .. } => {
                index.iter().all(|i| i.as_index().is_some_and(|e| !self.p.m.iter().any(|&x| e.uses_var(x as u32))))
            }
            _ => false,
        };
        if tail || uses != 1 || !dtype.is_int() || !by_column {
            return (value, None);
        }
        let acc = *whole.operands().iter().find(|&&o| sum(o)).expect("one of the two");
        (value.rewrite(&mut |n| if n == whole { acc } else { n }), Some(other))
    }

    /// One register tile: clear, accumulate over k, finish and store.
    fn tile(&self, cx: &mut Cx, tail: bool) -> Vec<Stmt> {
        let dtype = self.c.reduction.as_ref().expect("a contraction reduces").body.dtype();
        let row = rows::named(self.p.row).expect("a plan names a row of the table");
        // Sums that blocks are added to are used once a block: they leave the registers to those of the blocks.
        let space = if row.block > 1 { Space::Tile } else { Space::Reg };
        let acc = cx.scratch("acc", dtype, &[self.p.mr, self.p.nr], space);
        let clear = self.each(cx, 0, |cx, i, v| cx.put(acc, &[i, v], self.start(dtype, tail, i, v)));
        let sum = if row.block > 1 { self.blocks(cx, row, acc, tail) } else { self.steps(cx, row, acc, tail) };
        let finish = self.finish(cx, tail, &|cx, i, v| cx.at(acc, &[i, v]));
        let ends = if tail { vec![] } else { self.ends(cx) };
        [vec![Stmt::Alloc { buffer: acc }], ends, vec![clear], sum, vec![finish]].concat()
    }

    /// What the sum in row `i` and column `v` of the tile starts from.
    fn start(&self, dtype: DType, tail: bool, i: Expr, v: Expr) -> Scalar {
        self.started(dtype, tail).1.map_or(Scalar::number(dtype, 0.0), |s| {
            let mut axes = self.row(i);
            axes[self.p.n] = self.n0 + v;
            s.subst(&axes)
        })
    }

    /// Stores what becomes of the tile's sums.
    fn finish(&self, cx: &mut Cx, tail: bool, sum: &dyn Fn(&Cx, Expr, Expr) -> Scalar) -> Stmt {
        let (i, v) = (cx.var("m"), cx.var("n"));
        let mut axes = self.row(i);
        axes[self.p.n] = self.n0 + v;
        let of_sum = sum(cx, i, v);
        let (value, _) = self.started(of_sum.dtype(), tail);
        let value = with_accumulator(value.subst(&axes), of_sum);
        let mut store = match self.results {
            Some((block, first)) => vec![cx.put(block, &[first + i, v], value)],
            None => vec![cx.store_out(&axes, value)],
        };
        if tail {
            let cond = Scalar::index(self.n0 + v).lt(Scalar::index(self.columns));
            store = vec![Stmt::If { cond, then: store, otherwise: vec![] }];
        }
        let vectors = vec![for_each(v, Expr::from(self.p.nr), LoopKind::Vector, store)];
        let rows = if self.whole { vectors } else { inside(self.m0 + i, self.rows, self.p.mr, vectors) };
        for_each(i, Expr::from(self.p.mr), LoopKind::Unroll, rows)
    }

    /// What `body` makes of a row and a column of the tile, for each of its sums: rows unrolled, columns in vectors of `lanes`, or in one where that is 0.
    fn each(&self, cx: &mut Cx, lanes: usize, body: impl FnOnce(&mut Cx, Expr, Expr) -> Stmt) -> Stmt {
        let (i, v) = (cx.var("m"), cx.var("n"));
        let (mr, nr) = (Expr::from(self.p.mr), self.p.nr);
        let columns = if lanes == 0 || nr <= lanes || nr % lanes != 0 {
            for_each(v, Expr::from(nr), LoopKind::Vector, vec![body(cx, i, v)])
        } else {
            let part = cx.var("n");
            let inner = vec![body(cx, i, part * lanes as i64 + v)];
            let inner = for_each(v, Expr::from(lanes), LoopKind::Vector, inner);
            for_each(part, Expr::from(nr / lanes), LoopKind::Unroll, vec![inner])
        };
        for_each(i, mr, LoopKind::Unroll, vec![columns])
    }

    /// The loops over k, with a step of the row for each sum in them.
    fn steps(&self, cx: &mut Cx, row: &Row, acc: u32, tail: bool) -> Vec<Stmt> {
        let steps = cx.vars(&["k"], self.k_axes().len());
        let ranges = self.k_ranges();
        let group = match self.source {
            Source::Narrow(table) => table.stored.members() as i64,
            _ => row.depth as i64,
        };
        let mut first: Vec<Expr> = ranges.iter().map(|r| r.0).collect();
        if let Some(last) = first.last_mut().filter(|_| group > 1) {
            *last = last.div(Expr::int(group));
        }
        let k: Vec<Expr> = steps.iter().zip(first).map(|(&v, first)| first + v).collect();
        let sum_of_step = self.each(cx, 0, |cx, i, v| {
            let (left, right): (Vec<Scalar>, Vec<Scalar>) =
                (0..group).map(|j| self.factors_at(cx, &k, (i, v), (j, group), tail)).unzip();
            let (x, y) = if self.p.broadcast == 0 || row.depth > 1 { (left, right) } else { (right, left) };
            let steps_of = x.chunks(row.depth).zip(y.chunks(row.depth));
            let next = steps_of.fold(cx.at(acc, &[i, v]), |sum, (x, y)| (row.step)(sum, x, y));
            cx.put(acc, &[i, v], next)
        });
        let mut sum = if tail || group != self.members { vec![] } else { self.ahead(cx, group, &k) };
        sum.push(sum_of_step);
        let mut extents: Vec<Expr> = ranges.into_iter().map(|r| r.1).collect();
        if let Some(last) = extents.last_mut().filter(|_| group > 1) {
            *last = last.div(Expr::int(group));
        }
        for (&var, &e) in steps.iter().zip(&extents).rev() {
            sum = vec![for_each(var, e, LoopKind::Serial, sum)];
        }
        sum
    }

    /// The loops over k of a row with blocks: the last axis in blocks of neighbours, whose sums are made in the factors' own dtype, widened and added.
    fn blocks(&self, cx: &mut Cx, row: &Row, acc: u32, tail: bool) -> Vec<Stmt> {
        let dtype = self.b.read.dtype();
        let (last, outer) = self.k_axes().split_last().expect("a contraction has an axis");
        let ranges = self.k_ranges();
        let vars = cx.vars(&["k"], outer.len());
        let before: Vec<Expr> = vars.iter().zip(&ranges).map(|(&v, r)| r.0 + v).collect();
        let lanes = row.lanes(cx.target, self.c.reduction.as_ref().map_or(4, |r| r.body.dtype().bytes()));
        let block = |cx: &mut Cx, first: Expr, count: Expr| {
            let part = cx.scratch("part", dtype, &[self.p.mr, self.p.nr], Space::Reg);
            let clear = self.each(cx, lanes, |cx, i, v| cx.put(part, &[i, v], Scalar::number(dtype, 0.0)));
            let step = cx.var("k");
            let k: Vec<Expr> = before.iter().copied().chain([first + step]).collect();
            let sum = self.each(cx, lanes, |cx, i, v| {
                let (x, y) = self.factors_at(cx, &k, (i, v), (0, 1), tail);
                let next = (row.step)(cx.at(part, &[i, v]), &[as_read(x)], &[as_read(y)]);
                cx.put(part, &[i, v], next)
            });
            let mut body = if tail { vec![] } else { self.ahead(cx, 1, &k) };
            body.push(sum);
            let add = self.each(cx, lanes, |cx, i, v| {
                let sum = cx.at(acc, &[i, v]);
                let wide = cx.at(part, &[i, v]).cast(sum.dtype());
                cx.put(acc, &[i, v], sum + wide)
            });
            vec![Stmt::Alloc { buffer: part }, clear, for_each(step, count, LoopKind::Serial, body), add]
        };
        let size = Expr::from(row.block);
        let (whole, rest) = (last.div(size), last.rem(size));
        let number = cx.var("k");
        let body = block(cx, number * size, size);
        let mut sum = vec![for_each(number, whole, LoopKind::Serial, body)];
        if !rest.is(0) {
            sum.extend(block(cx, whole * size, rest));
        }
        for (&var, r) in vars.iter().zip(&ranges).rev() {
            sum = vec![for_each(var, r.1, LoopKind::Serial, sum)];
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::{Access, Buffer};
    use infc_ir::compute::Reduction;

    #[test]
    fn reduction_axes_follow_memory() {
        // x[c, h, w] with channels last, weights w[m, c, k, l]: the sum over c, k, l becomes one over k, l, c.
        let (x, y) = (DType::F32, Expr::var);
        let operand = |dims: &[i64], order: &[usize]| {
            let dims: Vec<Expr> = dims.iter().map(|&d| Expr::int(d)).collect();
            let strides = Buffer::strides_in_order(&dims, order);
            let shift = vec![0; dims.len()];
            let buffer = Buffer { name: "b".into(), dtype: x, dims, strides, space: Space::Global, access: Access::Read };
            Operand { buffer, shift, zeros: vec![], constant: None, tf32: false, narrow: None }
        };
        let mut operands = vec![operand(&[8, 6, 6], &[1, 2, 0]), operand(&[4, 8, 3, 3], &[]), operand(&[4, 4, 4], &[1, 2, 0])];
        operands[1].constant = Some(infc_ir::Tensor::zeros(x, [4, 8, 3, 3]));
        let body = Scalar::read_at(x, 0, &[y(3), y(1) + y(4), y(2) + y(5)]) * Scalar::read_at(x, 1, &[y(0), y(3), y(4), y(5)]);
        let axes = [8, 3, 3].map(Expr::int).to_vec();
        let reduction = Some(Reduction { axes, kind: Reducer::Sum, body });
        let c = Compute { dims: [4, 4, 4].map(Expr::int).to_vec(), reduction, value: Scalar::local(x, 0) };
        let r = in_memory_order(c, &operands).reduction.expect("still reduces");
        assert_eq!(r.axes, [3, 3, 8].map(Expr::int));
        let want = Scalar::read_at(x, 0, &[y(5), y(1) + y(3), y(2) + y(4)]) * Scalar::read_at(x, 1, &[y(0), y(5), y(3), y(4)]);
        assert_eq!(r.body, want);
    }
}
