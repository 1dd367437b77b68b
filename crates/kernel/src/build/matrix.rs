//! Contractions in tiles of the core's matrix unit (AMX): `tiles` of up to 16 rows and 16 columns of sums stay in the unit's registers, and each step
//! multiplies a tile of rows with a tile of columns, up to 64 bytes along k at once.
//!
//! It starts from the plan of [`contract`]: the same axes, the same panels of constant columns. A tile of rows is read where it lies, so its rows
//! must be evenly spaced: *lines* are the longest runs of rows that are, and a tile never leaves its line. Where the rows of a tile do not
//! divide the line, the last tile begins earlier, and the rows that the one before has already are not stored again. Short lines with a gap between them (rows of a
//! small picture with a border) are one line where that makes fewer tiles: what lies in the gaps is multiplied too, and not stored. An instruction takes as long for few rows as
//! for 16. Sums go to scratch, and what follows them runs on vectors as everywhere.
//!
//! All rows of a task pass a panel of columns before the next one comes. Where L1 holds the weights of all columns of a task, it is the other way round: what is read and written beside the products (residuals, results)
//! then lies together, and not a line here and there.
//!
//! Where k is long and no row is read again for another tap, all rows pass a part of a panel that stays in L1 before the next part comes, and sums wait in memory (as
//! Goto and van de Geijn have it, "Anatomy of High-Performance Matrix Multiplication", 2008). Rows are then loaded by instructions that leave L1 alone.
//!
//! What follows the sums of a group runs beside the products of the next one, some rows in each step along k, if these are some steps: vectors and tiles have units of their own, but no core looks further ahead than some
//! hundred instructions.

use super::contract::{self, Factor, factors, few_tasks, pack_index};
use super::{Cx, Operand, for_each, pack};
use crate::loops::{Buffer, LoopKind, Space, Stmt};
use crate::plan::{Brgemm, Matrix, Panels, guess};
use crate::rows::{self, Row, Sums};
use crate::target::{LINE, TargetDesc};
use crate::zero_point::byte_read;
use infc_ir::compute::Compute;
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor};

/// Rows of a tile, and its columns of sums.
pub const TILE: usize = 16;
/// Bytes of a tile's row.
const ROW_BYTES: usize = 64;
/// Registers for tiles.
const REGISTERS: usize = 8;
/// Cycles that a tile takes to be loaded: 8 from L1 by Intel's optimisation manual, but the rows of a tile or its columns come from L2 (Granite Rapids: 85 to 92 cycles for a step of
/// 2 x 2 tiles with both in L2, 60 with both in L1).
const LOAD: f64 = 22.0;
/// Cycles from a tile of sums to the result, for each of its rows: the way through scratch, and some arithmetic. A guess.
const FINISH: f64 = 4.0;

/// Bytes of a panel from which on something is fetched ahead, and of one from which on that is what comes so many steps later.
const PAGE: usize = 4096;
const LARGE: usize = 256 << 10;
const STEPS: usize = 4;
/// Cycles of a slow VDPBF16PS for one of those that its row says: half a one in a cycle.
const SLOW: f64 = 4.0;
/// The most groups of tiles of a task.
const MOST_GROUPS: usize = 8;

/// Steps along k below which sums are finished before the next group begins: the next one's products take less time than that. (Granite Rapids, bf16: with one
/// step it is as long the other way round, with seven 15 % longer.)
const FEW_STEPS: i64 = 3;

/// Rows from which on tiles are considered for weights that L2 does not hold.
const FEWEST: i64 = 4;
/// Cycles that a kernel takes to have the unit, and to leave it.
const CONFIGURED: f64 = 200.0;

/// How the rows of the first factor lie.
struct Lines {
    /// Evenly spaced rows of a line, and elements from one to the next.
    line: Expr,
    stride: i64,
    /// Number of lines.
    count: Expr,
    /// Rows from the start of one piece of the line to that of the next, and rows of a piece; what lies between is no row.
    gap: Option<(i64, i64)>,
    /// Neighbours along k, over how many of the last axes of k.
    run: i64,
    run_axes: usize,
}

/// The elements that members of a group along k have, so that it fills 32 bits.
fn group(dtype: DType) -> usize {
    4 / dtype.bytes()
}

/// A factor that lies in memory as it is multiplied.
fn plain(f: &Factor) -> bool {
    match f.scalar.kind() {
        Kind::Cast(x) => *x == f.read && (matches!(x.dtype(), DType::BF16 | DType::F16) || byte_read(*x).is_some()),
        _ => false,
    }
}

fn lines(c: &Compute, a: &Factor, operand: &Operand, m: &[usize]) -> Option<Lines> {
    let axes = &c.reduction.as_ref()?.axes;
    let rank = c.dims.len();
    let index: Vec<Scalar> = a.index.iter().map(|&e| Scalar::index(e)).collect();
    let offset = operand.offset(&index)?;
    let vars: Vec<Expr> = (0..rank + axes.len()).map(Expr::var).collect();
    // How far the next value of a variable is.
    let step = |v: usize| {
        let mut next = vars.clone();
        next[v] = next[v] + 1;
        offset.subst(&next) - offset
    };
    // Neighbours along k: the last axis, and those before it that go on where it ends.
    let (mut run, mut run_axes) = (1i64, 0);
    for (k, extent) in axes.iter().enumerate().rev() {
        let extent = extent.known()?;
        if extent != 1 && !step(rank + k).is(run) {
            break;
        }
        (run, run_axes) = (run.checked_mul(extent)?, run_axes + 1);
    }
    // Every step along k is the same everywhere, as those along rows are.
    for k in 0..axes.len() {
        step(rank + k).known()?;
    }
    let Some((&last, outer)) = m.split_last() else {
        return Some(Lines { line: Expr::int(1), stride: 0, count: Expr::int(1), gap: None, run, run_axes });
    };
    let stride = if c.dims[last].is(1) { 0 } else { step(last).known()? };
    let (mut line, mut stride) = (c.dims[last], stride);
    let (mut rest, mut gap) = (outer.len(), None);
    for (k, &axis) in outer.iter().enumerate().rev() {
        if c.dims[axis].is(1) {
            rest = k;
            continue;
        }
        let by = step(axis);
        let enough = line.known().is_some_and(|l| full(l) >= 0.7);
        if line.is(1) {
            (line, stride) = (c.dims[axis], by.known()?);
        } else if by == line * stride && (c.dims[axis].known().is_some() || !enough) {
            line = line * c.dims[axis];
        } else if let Some((pitch, piece, count)) = gapped(line, stride, by, c.dims[axis]) {
            (line, gap) = (Expr::int((count - 1) * pitch + piece), Some((pitch, piece)));
            rest = k;
            break;
        } else {
            break;
        }
        rest = k;
    }
    let count = Expr::product(outer[..rest].iter().map(|&x| c.dims[x]));
    Some(Lines { line, stride, count, gap, run, run_axes })
}

/// Distance of pieces in rows, rows of a piece, and pieces, if lines that lie so make fewer tiles as one line with gaps.
fn gapped(line: Expr, stride: i64, by: Expr, count: Expr) -> Option<(i64, i64, i64)> {
    let (piece, by, count) = (line.known()?, by.known()?, count.known()?);
    let pitch = by.checked_div(stride).filter(|p| p * stride == by && *p > piece && piece > 0)?;
    let tiles = |rows: i64| (rows as u64).div_ceil(TILE as u64) as i64;
    let whole = (count - 1).checked_mul(pitch)?.checked_add(piece)?;
    (count > 1 && tiles(whole) < count * tiles(piece)).then_some((pitch, piece, count))
}

/// Rows and columns of a task: as many rows as leave L2 room for panels, since each panel comes from further away for each block of rows. Tasks that are wanted for several threads are made
/// by cutting what is read again at less cost, then the other.
fn blocks(
    (rows, columns, depth, batch): (i64, i64, i64, i64),
    row: i64,
    (mr, nr): (usize, usize),
    bytes: i64,
    l2_bytes: i64,
) -> (usize, usize) {
    let up = |n: i64, to: usize| (n.max(1) as usize).next_multiple_of(to);
    let mut mc = up((l2_bytes / 2 / row.max(1)).max(mr as i64), mr).min(up(rows, mr)).min(mr * MOST_GROUPS);
    let mut nc = up(columns, nr);
    let work = batch * rows * columns * depth;
    // Blocks of rows read the weights again, blocks of columns the rows.
    let by_rows = depth * columns * bytes < rows * row;
    let few = |mc: usize, nc: usize| few_tasks((rows, columns, batch), mc, nc);
    for cut_rows in [by_rows, !by_rows] {
        while work > 1 << 20 && few(mc, nc) && if cut_rows { mc >= 4 * mr } else { nc >= 2 * nr } {
            if cut_rows { mc = up(mc as i64 / 2, mr) } else { nc = up(nc as i64 / 2, nr) }
        }
    }
    (mc, nc)
}

/// Rows of each tile of a line of so many rows: as few tiles as there can be, all alike.
fn rows_of(line: i64) -> i64 {
    let tiles = (line + TILE as i64 - 1) / TILE as i64;
    (line + tiles - 1) / tiles.max(1)
}

/// The share of the rows of full tiles that a line of so many rows fills.
fn full(line: i64) -> f64 {
    let tiles = (line + TILE as i64 - 1) / TILE as i64;
    line as f64 / (tiles.max(1) * TILE as i64) as f64
}

/// The plan of a contraction that [`contract`] has planned as `p`; `None` if tiles cannot take it, or are slower.
pub fn plan(c: &Compute, operands: &[Operand], p: &Brgemm, target: &TargetDesc) -> Option<Matrix> {
    let (plan, cycles) = fitting(c, operands, p, target)?;
    let depth: i64 = c.reduction.as_ref()?.axes.iter().map(|&e| guess(e)).product();
    // Few rows wait for the weights to come from memory, whatever multiplies them; those that L2 holds do not (steps of a recurrent net).
    let weights = depth * guess(c.dims[p.n]) * factors(c)?[1 - p.broadcast].read.dtype().bytes() as i64;
    let many = guess_rows(c, p) >= FEWEST || weights <= target.l2_bytes as i64 / 2;
    (many && cycles + CONFIGURED < vector_cycles(p, guess_rows(c, p), guess(c.dims[p.n]), depth, target)).then_some(plan)
}

/// The plan in tiles, if there is one, and its cycles.
pub fn fitting(c: &Compute, operands: &[Operand], p: &Brgemm, target: &TargetDesc) -> Option<(Matrix, f64)> {
    let alone =
        |f: &[Factor; 2]| pack_index(&f[1 - p.broadcast], p.n, c, c.reduction.as_ref().map_or(0, |r| r.axes.len())).is_some();
    if !target.tiles() || p.panels != Panels::Packed || !factors(c).is_some_and(|f| alone(&f)) {
        return None;
    }
    let f = factors(c)?;
    let (a, b) = (&f[p.broadcast], &f[1 - p.broadcast]);
    let operand = &operands[a.source];
    // Rows lie flat in this nest, whoever reads them.
    let twice = reads_of(c.value, a.source).iter().any(|i| operand.offset(i).is_none());
    if !plain(a) || !plain(b) || operand.constant.is_some() || operand.buffer.dims.len() < 2 || twice || a.source == b.source {
        return None;
    }
    let l = lines(c, a, operand, &p.m)?;
    let (dtype, bytes) = (c.reduction.as_ref()?.body.dtype(), a.read.dtype().bytes());
    // The longest step that divides the run of neighbours.
    let most = (ROW_BYTES / bytes).min(l.run.max(1) as usize);
    let members = group(a.read.dtype());
    let products = (1..=most).rev().find(|&d| d % members == 0 && l.run % d as i64 == 0)?;
    let last = c.reduction.as_ref()?.axes.last()?.known()?;
    let sums = Sums { dtype, broadcast: a.dtype(), vector: b.dtype(), groups: products, small: false };
    let row = rows::named(rows::choose(&sums, target).name).filter(|r| r.name.starts_with("amx_"))?;
    let rows = match l.line.known() {
        Some(line) => rows_of(line).max(1),
        // Rows that no line is known to have need a way for fewer of them.
        None if l.count.is(1) && last % members as i64 == 0 => TILE as i64,
        None => return None,
    };
    let depth: i64 = c.reduction.as_ref()?.axes.iter().map(|e| e.known()).product::<Option<i64>>()?;
    let columns = guess(c.dims[p.n]);
    let tiles = row_tiles(&l, rows);
    let steps = depth / products as i64;
    let cycles = |shape: [usize; 2]| tile_cycles((tiles, columns, steps), rows, shape, row);
    let shapes = [[2, 2], [3, 1], [1, 3], [2, 1], [1, 2], [1, 1]];
    debug_assert!(shapes.iter().all(|[d, a]| d * a + d + a <= REGISTERS));
    let best = shapes.into_iter().min_by(|x, y| cycles(*x).total_cmp(&cycles(*y)))?;
    let [down, across] = best;
    let (mr, nr) = (down * rows as usize, across * TILE);
    let whole = Expr::product(operand.buffer.dims.iter().copied()).known();
    let shared = whole.map_or(depth, |all| depth.min(all / guess_rows(c, p).max(1)).max(1));
    let batch: i64 = (0..c.dims.len()).filter(|a| *a != p.n && !p.m.contains(a)).map(|a| guess(c.dims[a])).product();
    let size = (tiles * rows, columns, depth, batch);
    let weights = |nc: usize| depth * nc as i64 * bytes as i64;
    let (mc, nc) = blocks(size, shared * bytes as i64, (mr, nr), bytes as i64, target.l2_bytes as i64);
    let rows_first = nc > nr && weights(nc) <= target.l1_bytes as i64 * 3 / 4;
    let plan = Matrix {
        broadcast: p.broadcast,
        n: p.n,
        m: p.m.clone(),
        rows: rows as usize,
        products,
        tiles: best,
        groups: mc / mr,
        nc,
        rows_first,
        pass: pass(l.run_axes == c.reduction.as_ref()?.axes.len() && !rows_first && mc / mr >= FEWEST_GROUPS, steps),
        row: row.name,
    };
    Some((plan, cycles(best)))
}

/// The most and the fewest steps of a pass, groups of rows from which on there are passes, and the fewest and the most steps in all. (Granite Rapids, loops in C for 128 to 1024 rows: passes of 12 to 16
/// steps take 10 to 25 % less than none, those of 8 up to 10 % more than those. Products of 197 rows: 24 steps 12 % less, 96 steps 9 % more.)
const PASS: i64 = 16;
const SHORTEST_PASS: i64 = 10;
const FEWEST_GROUPS: usize = 3;
const LONG: std::ops::RangeInclusive<i64> = 24..=48;

/// Steps of a pass, if passes are `possible` and there are so many steps in all.
fn pass(possible: bool, steps: i64) -> Option<usize> {
    let whole = (SHORTEST_PASS..=PASS).rev().find(|n| steps % n == 0);
    whole.filter(|_| possible && LONG.contains(&steps)).map(|n| n as usize)
}

/// Tiles of so many rows, in all lines.
fn row_tiles(l: &Lines, rows: i64) -> i64 {
    guess(l.count) * ((guess(l.line) + rows - 1) / rows)
}

/// Cycles of so many tiles of rows with all columns, in such groups.
fn tile_cycles((tiles, columns, steps): (i64, i64, i64), rows: i64, [down, across]: [usize; 2], row: &Row) -> f64 {
    let groups = (tiles as f64 / down as f64).ceil() * ((columns as f64 / TILE as f64).ceil() / across as f64).ceil();
    let products = (down * across) as f64 / row.per_cycle;
    let step = products.max((down + across) as f64 * LOAD).max(row.latency);
    groups * (steps as f64 * step + (down * across) as f64 * rows as f64 * FINISH)
}

/// Cycles of the plan by the same account: all of its tasks, with what follows the sums as [`FINISH`] has it.
pub fn cycles(c: &Compute, operands: &[Operand], p: &Matrix) -> Option<f64> {
    let f = factors(c)?;
    let a = &f[p.broadcast];
    let l = lines(c, a, &operands[a.source], &p.m)?;
    let rows = p.rows as i64;
    let depth: i64 = c.reduction.as_ref()?.axes.iter().map(|e| e.known()).product::<Option<i64>>()?;
    let tiles = row_tiles(&l, rows);
    let batch: i64 = (0..c.dims.len()).filter(|a| *a != p.n && !p.m.contains(a)).map(|a| guess(c.dims[a])).product();
    let row = rows::named(p.row).expect("a plan names a row of the table");
    Some(batch as f64 * tile_cycles((tiles, guess(c.dims[p.n]), depth / p.products as i64), rows, p.tiles, row))
}

fn guess_rows(c: &Compute, p: &Brgemm) -> i64 {
    p.m.iter().map(|&x| guess(c.dims[x])).product()
}

/// Cycles of the plan on vectors, counted in the same way.
fn vector_cycles(p: &Brgemm, rows: i64, columns: i64, depth: i64, target: &TargetDesc) -> f64 {
    let row: &Row = rows::named(p.row).expect("a plan names a row of the table");
    let lanes = target.lanes(4).min(p.nr);
    let vectors = (p.nr / lanes).max(1);
    let slow = if row.name == "bf16_dot" && target.slow_bf16_dot { SLOW } else { 1.0 };
    let steps = (p.mr * vectors) as f64 / row.per_cycle * slow;
    let step = steps.max((p.mr + vectors) as f64 / 2.0).max(row.latency) + 1.0;
    let tiles = (rows as f64 / p.mr as f64).ceil() * (columns as f64 / p.nr as f64).ceil();
    tiles * (depth as f64 / row.depth as f64 * step + (p.mr * vectors) as f64 * 2.0)
}

/// The indices of all reads of a source.
fn reads_of(s: Scalar, source: usize) -> Vec<Vec<Scalar>> {
    let mut found = vec![];
    s.visit(&mut |n| {
        if let Kind::Read { source: of, index, .. } = n.kind()
            && *of as usize == source
        {
            found.push(index.clone());
        }
    });
    found
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, p: &Matrix) {
    let f = factors(c).expect("a contraction is a product of two reads");
    let (a, b) = (&f[p.broadcast], &f[1 - p.broadcast]);
    let l = lines(c, a, cx.operand(a.source), &p.m).expect("checked by the plan");
    let columns = c.dims[p.n];
    let (rows, [down, across]) = (p.rows as i64, p.tiles);
    let per_line = l.line.div_ceil(Expr::int(rows));
    let tiles = l.count * per_line;
    let groups = tiles.div_ceil(Expr::from(down));
    let blocks = [groups.div_ceil(Expr::from(p.groups)), columns.div_ceil(Expr::from(p.nc))];
    let (axes, [m_block, n_block]) = contract::grid(cx, c, (&p.m, p.n), blocks);

    // The panels are those of vectors.
    let nr = across * TILE;
    let depth: Vec<usize> =
        c.reduction.as_ref().expect("it reduces").axes.iter().map(|e| e.known().expect("checked") as usize).collect();
    let index = pack_index(b, p.n, c, depth.len()).expect("checked by the plan");
    let tensor = cx.operand(b.source).constant.clone().expect("checked by the plan");
    let n = columns.known().expect("checked by the plan") as usize;
    let packed = pack::panels(&tensor, &index, n, &depth, nr).expect("a constant read in bounds");
    let members = group(b.read.dtype());
    // Groups may go on from one axis to the next where the rows do.
    let packed = match depth.last().is_some_and(|d| d % members == 0) {
        true => packed,
        false => {
            let mut dims = packed.dims[..1 + depth.len() - l.run_axes].to_vec();
            dims.extend([l.run as usize, nr]);
            Tensor::from_bytes(packed.dtype, dims, packed.bytes().to_vec())
        }
    };
    cx.pack(b.source, pack::grouped(&packed, members));

    let nest = |m_tile: Expr, n_tile: Expr, pass: Expr| {
        let n0 = n_block * p.nc as i64 + n_tile * nr as i64;
        let first = (m_block * p.groups as i64 + m_tile) * down as i64;
        Nest { c, p, a, b, l: &l, axes: axes.clone(), tiles, per_line, columns, first, m_tile, n0, pass }
    };
    let sums_dtype = c.reduction.as_ref().expect("it reduces").body.dtype();
    let acc = cx.scratch("acc", sums_dtype, &[down, across, p.rows, TILE], Space::Reg);
    let waiting = if p.pass.is_some() { p.groups } else { 1 };
    let sums = cx.scratch("sums", sums_dtype, &[waiting, down * p.rows, nr], Space::Tile);
    let each_row = |cx: &mut Cx, nest: &Nest, there: Scalar| -> Vec<Stmt> {
        let tile = |t: usize| {
            let row = cx.var("row");
            let finish = nest.finish(cx, sums, (Expr::from(t), row), there);
            for_each(row, Expr::from(p.rows), LoopKind::Serial, finish)
        };
        (0..down).map(tile).collect()
    };
    // Groups of rows, and panels of columns; the last ones of a block may lie beyond the product.
    let (outer, inner) = if p.rows_first { (p.groups, p.nc / nr) } else { (p.nc / nr, p.groups) };
    let order = |x: Expr, y: Expr, pass: Expr| if p.rows_first { nest(x, y, pass) } else { nest(y, x, pass) };
    let mut body = vec![Stmt::Alloc { buffer: acc }];
    let (x, y) = (cx.var("outer"), cx.var("inner"));
    let zero = Expr::int(0);
    let now = order(x, y, zero);
    let steps = now.steps();
    let passes = p.pass.map_or(1, |n| steps / n as i64);
    let numbered = |number: Expr| {
        let (round, y) = (number.div(Expr::from(inner)), number.rem(Expr::from(inner)));
        order(round.div(Expr::int(passes)), y, round.rem(Expr::int(passes)))
    };
    let mut all = if steps < FEW_STEPS {
        let next = numbered(x * inner as i64 + y + 1);
        body.extend(now.group(cx, acc, sums, &next, &|_, _| vec![]));
        body.extend(each_row(cx, &now, Scalar::int(DType::Bool, 1)));
        let body = when(now.is_there(), body, vec![]);
        vec![for_each(x, Expr::from(outer), LoopKind::Serial, vec![for_each(y, Expr::from(inner), LoopKind::Serial, body)])]
    } else {
        // One more finishes what the one before has left.
        let (group, count) = (cx.var("group"), (outer * inner) as i64 * passes);
        let (now, before, index) = (numbered(group), numbered(group - 1), Scalar::index);
        let done = Scalar::binary(Binary::Eq, index(before.pass), index(Expr::int(passes - 1)));
        let was_there = index(Expr::int(1)).le(index(group)).and(before.is_there());
        let was_there = if passes == 1 { was_there } else { was_there.and(done) };
        body.extend(now.group(cx, acc, sums, &now, &|cx, row| before.finish(cx, sums, row, was_there)));
        let is_there = index(group).lt(index(Expr::int(count))).and(now.is_there());
        let rest = each_row(cx, &before, was_there);
        vec![for_each(group, Expr::int(count + 1), LoopKind::Serial, when(is_there, body, rest))]
    };
    if l.line.known().is_none() {
        // Fewer rows than a tile has: on vectors, from the same panels.
        let short = contract::short(cx, c, p, &f, axes, n_block);
        let cond = Scalar::index(Expr::int(rows)).le(Scalar::index(l.line));
        all = vec![Stmt::If { cond, then: all, otherwise: short }];
    }
    cx.body.push(Stmt::Alloc { buffer: sums });
    cx.body.extend(all);
    cx.flatten(a.source);
    cx.flatten(b.source);
}

/// A branch, if it is one.
fn when(cond: Scalar, then: Vec<Stmt>, otherwise: Vec<Stmt>) -> Vec<Stmt> {
    if cond.as_int() == Some(1) { then } else { vec![Stmt::If { cond, then, otherwise }] }
}

/// Is it no tensor that L2 holds until it is read?
fn large(b: &Buffer, target: &TargetDesc) -> bool {
    let elements = Expr::product(b.dims.iter().copied()).known();
    elements.is_some_and(|n| n * b.dtype.bytes() as i64 > target.l2_bytes as i64 / 2)
}

/// What the parts of the nest share.
struct Nest<'a> {
    c: &'a Compute,
    p: &'a Matrix,
    a: &'a Factor,
    b: &'a Factor,
    l: &'a Lines,
    axes: Vec<Expr>,
    /// Tiles of rows, in all and in a line.
    tiles: Expr,
    per_line: Expr,
    columns: Expr,
    /// Number of the first tile, and the first column.
    first: Expr,
    /// Number of the group among those of the task.
    m_tile: Expr,
    n0: Expr,
    /// Number of the pass.
    pass: Expr,
}

impl Nest<'_> {
    fn sums(&self) -> DType {
        self.c.reduction.as_ref().expect("it reduces").body.dtype()
    }

    /// Which of the sums in memory are the group's.
    fn slot(&self) -> Expr {
        if self.p.pass.is_some() { self.m_tile } else { Expr::int(0) }
    }

    /// Steps along k of each sum.
    fn steps(&self) -> i64 {
        let axes = &self.c.reduction.as_ref().expect("it reduces").axes;
        let before: i64 = axes[..axes.len() - self.l.run_axes].iter().map(|e| e.known().expect("checked by the plan")).product();
        before * (self.l.run / self.p.products as i64)
    }

    /// Does the group lie in the product? Those before the last block do in any case.
    fn is_there(&self) -> Scalar {
        let inside = |start: Expr, extent: Expr, block: usize| match extent.known() {
            Some(n) if n % block as i64 == 0 => Scalar::int(DType::Bool, 1),
            _ => Scalar::index(start).lt(Scalar::index(extent)),
        };
        inside(self.first, self.tiles, self.p.groups * self.p.tiles[0]).and(inside(self.n0, self.columns, self.p.nc))
    }

    /// Number of tile `t`, which may be beyond the last one, and that of the one that is read in its place.
    fn number(&self, t: Expr) -> [Expr; 2] {
        let number = self.first + t;
        let whole = self.tiles.known().is_some_and(|n| n % self.p.tiles[0] as i64 == 0);
        [number, if whole { number } else { number.min(self.tiles - 1) }]
    }

    /// Number of a tile's line, the place of its first row in it, and how many of its first rows another tile has too.
    fn rows(&self, tile: Expr) -> (Expr, Expr, Expr) {
        let (rows, line) = (Expr::from(self.p.rows), self.l.line);
        let one = self.l.count.is(1);
        let (number, within) = if one { (Expr::int(0), tile) } else { (tile.div(self.per_line), tile.rem(self.per_line)) };
        let begin = within * rows;
        let whole = line.div_exact(rows).is_some();
        let start = if whole { begin } else { begin.min(line - rows) };
        (number, start, begin - start)
    }

    /// Number of the row at a place of a line, counted without gaps, and whether it is one.
    fn row_at(&self, number: Expr, place: Expr) -> (Expr, Scalar) {
        match self.l.gap {
            None => (number * self.l.line + place, Scalar::int(DType::Bool, 1)),
            Some((pitch, piece)) => {
                let rows = (self.l.line + (pitch - piece)).div(Expr::int(pitch)) * piece;
                let (y, x) = (place.div(Expr::int(pitch)), place.rem(Expr::int(pitch)));
                (number * rows + y * piece + x, Scalar::index(x).lt(Scalar::index(Expr::int(piece))))
            }
        }
    }

    /// Values of all axes in row `flat` and column `n`.
    fn at(&self, flat: Expr, n: Expr) -> Vec<Expr> {
        let mut axes = self.axes.clone();
        let dims: Vec<Expr> = self.p.m.iter().map(|&x| self.c.dims[x]).collect();
        for (&x, v) in self.p.m.iter().zip(Expr::delinearise(flat, &dims)) {
            axes[x] = v;
        }
        axes[self.p.n] = n;
        axes
    }

    /// All tiles of a group: their sums, and in the steps along k what `beside` makes of each row (of a tile) of those that are in memory before these come there, and fetching of what the group `ends`
    /// reads.
    fn group(
        &self,
        cx: &mut Cx,
        acc: u32,
        sums: u32,
        ends: &Nest,
        beside: &dyn Fn(&mut Cx, (Expr, Expr)) -> Vec<Stmt>,
    ) -> Vec<Stmt> {
        let (p, dtype) = (self.p, self.sums());
        let [down, across] = p.tiles;
        let all: Vec<(usize, usize)> = (0..down).flat_map(|t| (0..across).map(move |u| (t, u))).collect();
        let element = |t: usize, u: usize, i: Expr, j: Expr| [Expr::from(t), Expr::from(u), i, j];
        let each = |cx: &mut Cx, body: &dyn Fn(&mut Cx, Expr, Expr) -> Stmt| {
            let (i, j) = (cx.var("m"), cx.var("n"));
            let inner = vec![body(cx, i, j)];
            let columns = vec![for_each(j, Expr::from(TILE), LoopKind::Serial, inner)];
            for_each(i, Expr::from(p.rows), LoopKind::Matrix, columns)
        };
        // Where sums are in memory.
        let place = |t: usize, u: usize, i: Expr, j: Expr| [self.slot(), i + (t * p.rows) as i64, j + (u * TILE) as i64];
        let begin = |cx: &mut Cx, value: &dyn Fn(&Cx, [Expr; 3]) -> Scalar| -> Vec<Stmt> {
            let tile =
                |&(t, u): &(usize, usize)| each(cx, &|cx, i, j| cx.put(acc, &element(t, u, i, j), value(cx, place(t, u, i, j))));
            all.iter().map(tile).collect()
        };
        let mut out = begin(cx, &|_, _| Scalar::number(dtype, 0.0));
        if p.pass.is_some() {
            let go_on = begin(cx, &|cx, at| cx.at(sums, &at));
            let cond = Scalar::index(self.pass).lt(Scalar::index(Expr::int(1)));
            out = vec![Stmt::If { cond, then: out, otherwise: go_on }];
        }
        // Along k: the axes before the run of neighbours, then steps in it.
        let axes = &self.c.reduction.as_ref().expect("it reduces").axes;
        let before = axes.len() - self.l.run_axes;
        let steps = p.pass.map_or(self.l.run / p.products as i64, |n| n as i64);
        let outer = cx.vars(&["k"], before);
        let own = cx.var("k");
        let step = self.pass * steps + own;
        let row = rows::named(p.row).expect("a plan names a row of the table");
        let mut body = self.ahead(&outer, step);
        for &(t, u) in &all {
            body.push(each(cx, &|cx, i, j| {
                let (left, right) = self.factors(cx, (t, u), (&outer, step), (i, j));
                let next = (row.step)(cx.at(acc, &element(t, u, i, j)), &left, &right);
                cx.put(acc, &element(t, u, i, j), next)
            }));
        }
        // As many rows in each step as all need, and none in the last ones.
        let (whole, rows) = (p.pass.map_or(self.steps(), |n| n as i64), (down * p.rows) as i64);
        let number = outer.iter().zip(axes).fold(Expr::int(0), |flat, (&v, &e)| flat * e + v) * steps + own;
        let share = (rows + whole - 1) / whole;
        let r = cx.var("row");
        let row = number * share + r;
        let at = if down == 1 { (Expr::int(0), row) } else { (row.div(Expr::from(p.rows)), row.rem(Expr::from(p.rows))) };
        let mut some = ends.ends(cx, at);
        some.extend(beside(cx, at));
        if !some.is_empty() {
            if share * whole != rows {
                let cond = Scalar::index(row).lt(Scalar::index(Expr::int(rows)));
                some = vec![Stmt::If { cond, then: some, otherwise: vec![] }];
            }
            body.push(for_each(r, Expr::int(share), LoopKind::Serial, some));
        }
        let mut k = for_each(own, Expr::int(steps), LoopKind::Serial, body);
        for (&v, &e) in outer.iter().zip(axes).rev() {
            k = for_each(v, e, LoopKind::Serial, vec![k]);
        }
        out.push(k);
        for &(t, u) in &all {
            out.push(each(cx, &|cx, i, j| cx.put(sums, &place(t, u, i, j), cx.at(acc, &element(t, u, i, j)))));
        }
        out
    }

    /// What is fetched in each step of k. Of small panels that several groups read, a part of the one that comes next, so that all groups of the task together fetch it. Of others, which come from
    /// further away again in each group, what comes some steps later. (Granite Rapids, bf16: the first way takes 8 % less than none and 10 % less than the second for bert_base_s128; the
    /// second one takes 7 to 25 % less than the first for the head of gpt2_s64 and the last convolutions of resnet50.)
    fn ahead(&self, outer: &[Expr], step: Expr) -> Vec<Stmt> {
        let p = self.p;
        let bytes = self.b.read.dtype().bytes();
        let nr = p.tiles[1] * TILE;
        let axes = &self.c.reduction.as_ref().expect("it reduces").axes;
        let depth: usize = axes.iter().map(|e| e.known().expect("checked by the plan") as usize).product();
        let (panel, all, line) = (depth * nr * bytes, (p.products * nr * bytes).div_ceil(LINE as usize), LINE / bytes as i64);
        if panel <= PAGE || p.groups == 1 || p.rows_first {
            return vec![];
        }
        let flat =
            outer.iter().zip(axes).fold(Expr::int(0), |flat, (&v, &e)| flat * e + v) * self.l.run + step * p.products as i64;
        let number = self.n0.div(Expr::from(nr));
        let (first, count) = if p.groups <= 2 || panel > LARGE {
            (number * (depth * nr) as i64 + (flat + (STEPS * p.products) as i64) * nr as i64, all)
        } else {
            let each = all.div_ceil(p.groups);
            let next = (number + 1).min(self.columns.div_ceil(Expr::from(nr)) - 1);
            let part = self.m_tile.min(Expr::from(all.div_ceil(each) - 1));
            (next * (depth * nr) as i64 + flat * nr as i64 + part * (each as i64 * line), each)
        };
        let fetch =
            |k: usize| Stmt::Prefetch { buffer: self.b.source as u32, index: vec![Scalar::index(first + k as i64 * line)] };
        (0..count).map(fetch).collect()
    }

    /// What the end of a row (of a tile) of the group reads beside the sums, a line of the cache at a time, where it is too large for L2 (residuals of large maps): it comes while sums are made. (Granite
    /// Rapids, residuals of 1.6 MiB: 212 to 180 us. Those that L2 holds gain nothing, and results lose.)
    fn ends(&self, cx: &Cx, (t, i): (Expr, Expr)) -> Vec<Stmt> {
        let nr = (self.p.tiles[1] * TILE) as i64;
        let (number, start, _) = self.rows(self.number(t)[1]);
        let flat = self.row_at(number, start + i).0;
        let mut all = vec![];
        for (source, index) in contract::touched(self.c, &self.p.m, self.p.n, cx) {
            let buffer = &cx.operand(source as usize).buffer;
            if source != cx.out() && large(buffer, cx.target) {
                let line = (LINE / buffer.dtype.bytes() as i64).max(1);
                all.extend((0..(nr + line - 1) / line).map(|k| {
                    let axes = self.at(flat, self.n0 + k * line);
                    Stmt::Prefetch { buffer: source, index: index.iter().map(|e| Scalar::index(e.subst(&axes))).collect() }
                }));
            }
        }
        all
    }

    /// All factors of one step of a sum: in row `i` of tile `t`, and in column `j` of tile `u`. Both lie flat.
    fn factors(
        &self,
        cx: &Cx,
        (t, u): (usize, usize),
        (outer, step): (&[Expr], Expr),
        (i, j): (Expr, Expr),
    ) -> (Vec<Scalar>, Vec<Scalar>) {
        let p = self.p;
        let (number, start, _) = self.rows(self.number(Expr::from(t))[1]);
        let mut at = self.at(self.row_at(number, Expr::int(0)).0, self.n0);
        at.extend(outer);
        at.extend(vec![Expr::int(0); self.l.run_axes]);
        let index: Vec<Scalar> = self.a.index.iter().map(|e| Scalar::index(e.subst(&at))).collect();
        let begin = cx.operand(self.a.source).offset(&index).expect("checked by the plan");
        let row = begin + (start + i) * self.l.stride + step * p.products as i64;
        // The panel: groups of members along k for each column.
        let nr = (p.tiles[1] * TILE) as i64;
        let members = group(self.b.read.dtype()) as i64;
        let axes = &self.c.reduction.as_ref().expect("it reduces").axes;
        let depth: i64 = axes.iter().map(|e| e.known().expect("checked by the plan")).product();
        let flat =
            outer.iter().zip(axes).fold(Expr::int(0), |flat, (&v, &e)| flat * e + v) * self.l.run + step * p.products as i64;
        let panel = self.n0.div(Expr::int(nr)) * (depth * nr) + flat * nr + (j + (u * TILE) as i64) * members;
        let wide = |f: &Factor, at: Expr| {
            let read = Scalar::read_at(f.read.dtype(), f.source, &[at]);
            f.scalar.rewrite(&mut |n| if n == f.read { read } else { n })
        };
        let left = (0..p.products as i64).map(|k| wide(self.a, row + k));
        let right = (0..p.products as i64).map(|k| wide(self.b, panel + (k / members * nr * members + k % members)));
        (left.collect(), right.collect())
    }

    /// From sums to results, in a row of a tile of the group, if that is `there`.
    fn finish(&self, cx: &mut Cx, sums: u32, at: (Expr, Expr), there: Scalar) -> Vec<Stmt> {
        let nr = (self.p.tiles[1] * TILE) as i64;
        if self.columns.known().is_some_and(|n| n % nr == 0) {
            return self.finished(cx, sums, at, there, false);
        }
        let cond = Scalar::index(self.n0 + nr).le(Scalar::index(self.columns));
        let (then, otherwise) = (self.finished(cx, sums, at, there, false), self.finished(cx, sums, at, there, true));
        vec![Stmt::If { cond, then, otherwise }]
    }

    /// The same; `tail`: the last columns are missing.
    fn finished(&self, cx: &mut Cx, sums: u32, (t, i): (Expr, Expr), there: Scalar, tail: bool) -> Vec<Stmt> {
        let nr = (self.p.tiles[1] * TILE) as i64;
        let [number, tile] = self.number(t);
        let (line, start, again) = self.rows(tile);
        let v = cx.var("n");
        let (flat, is_row) = self.row_at(line, start + i);
        let axes = self.at(flat, self.n0 + v);
        let sum = cx.at(sums, &[self.slot(), t * Expr::from(self.p.rows) + i, v]);
        let value = super::elementwise::with_accumulator(self.c.value.subst(&axes), sum);
        let mut store = vec![cx.store_out(&axes, value)];
        if tail {
            let cond = Scalar::index(self.n0 + v).lt(Scalar::index(self.columns));
            store = vec![Stmt::If { cond, then: store, otherwise: vec![] }];
        }
        let all = vec![for_each(v, Expr::int(nr), LoopKind::Vector, store)];
        let fresh = if again.is(0) { Scalar::int(DType::Bool, 1) } else { Scalar::index(again).le(Scalar::index(i)) };
        let there = if number == tile { there } else { there.and(Scalar::index(number).lt(Scalar::index(self.tiles))) };
        let cond = there.and(fresh).and(is_row);
        when(cond, all, vec![])
    }
}
