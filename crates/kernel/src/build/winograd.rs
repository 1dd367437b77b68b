//! Convolutions with windows of 3 along one axis or two by minimal filtering: of a tile of neighbours come `outputs` results along each axis at once, with
//! fewer products than they have by themselves.
//!
//! A window and a tile of `outputs + 2` elements are seen as coefficients of polynomials. Both are evaluated at as many points, the values are multiplied, and
//! the results are interpolated from these: along two axes with 16 products for 4 results (36 by themselves) or 36 for 16 (144), along one with 4 for 2 (6) or 6 for 4
//! (12). Between both ends the sums over channels are products of matrices, one for each point, with tiles as their rows.
//! (S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016.)
//!
//! A task evaluates some tiles with all their channels in scratch memory, then makes the products and the results of so many columns at a time.
//! Sums are other ones than those of the convolution: an infinity or a NaN in a picture spoils all results of its tiles.

use super::contract::{Factor, MOST_ROWS, MOST_VECTORS, PAGE, factors, few_tasks, grid, inside, pack_index, rounds};
use super::elementwise::with_accumulator;
use super::{Cx, Operand, contract, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::{Brgemm, Panels, Winograd, guess};
use crate::rows;
use crate::target::{LINE, Math, TargetDesc};
use infc_ir::compute::Compute;
use infc_ir::scalar::{Kind, Scalar};
use infc_ir::{DType, Expr, Tensor};

/// Elements of a window along an axis.
const WINDOW: usize = 3;

/// Results of a tile along an axis, of the algorithms that there are.
pub const OUTPUTS: [usize; 2] = [2, 4];

/// The matrices of an algorithm for one axis, `points` being `outputs + 2`.
struct Filter {
    /// Of a tile to its values at the points: `points` rows of `points`.
    data: Vec<Vec<f64>>,
    /// Of a window to its values: `points` rows of 3.
    window: Vec<Vec<f64>>,
    /// Of products to results: `outputs` rows of `points`.
    results: Vec<Vec<f64>>,
}

/// Coefficients of the product of `x - root` over some roots, the constant one first.
fn polynomial(roots: impl Iterator<Item = f64>) -> Vec<f64> {
    roots.fold(vec![1.0], |p, root| {
        let below = |k: usize| if k > 0 { p[k - 1] } else { 0.0 };
        (0..=p.len()).map(|k| below(k) - root * p.get(k).copied().unwrap_or(0.0)).collect()
    })
}

impl Filter {
    /// The algorithm at 0, pairs of numbers of both signs, and infinity; with one result that for a window of 1, where there is no axis.
    ///
    /// The pairs are chosen for small errors in f32: in the mean (root of squares) they are 0.7 to 0.9 times those of a plain convolution with 2 results, and 2.0 to 2.6 times
    /// with 4 at these points, for 512 to 16 channels; at the pairs 1 and 2 of the literature they are 4 to 5 times as large.
    fn of(outputs: usize) -> Filter {
        if outputs == 1 {
            let one = || vec![vec![1.0]];
            return Filter { data: one(), window: one(), results: one() };
        }
        let pairs: &[f64] = if outputs == 2 { &[1.0] } else { &[0.6875, 1.375] };
        let finite: Vec<f64> = std::iter::once(0.0).chain(pairs.iter().flat_map(|&p| [p, -p])).collect();
        let points = outputs + WINDOW - 1;
        debug_assert_eq!(finite.len() + 1, points);
        let (mut data, mut window) = (vec![], vec![]);
        for (k, &p) in finite.iter().enumerate() {
            let others = || finite.iter().enumerate().filter(move |o| o.0 != k).map(|o| *o.1);
            let mut row = polynomial(others());
            row.resize(points, 0.0);
            let scale: f64 = others().map(|q| p - q).product();
            data.push(row);
            window.push((0..WINDOW as i32).map(|i| p.powi(i) / scale).collect());
        }
        data.push(polynomial(finite.iter().copied()));
        window.push((0..WINDOW).map(|i| if i + 1 == WINDOW { 1.0 } else { 0.0 }).collect());
        let results = (0..outputs as i32)
            .map(|i| {
                let last = if i as usize + 1 == outputs { 1.0 } else { 0.0 };
                finite.iter().map(|p| p.powi(i)).chain([last]).collect()
            })
            .collect();
        Filter { data, window, results }
    }
}

/// Points along both axes, if there are two.
fn points(outputs: usize, axes: usize) -> [usize; 2] {
    let along = outputs + WINDOW - 1;
    [along, if axes == 2 { along } else { 1 }]
}

/// Arithmetic and accesses of vectors, in cycles, for a vector of channels of a tile on its way in, and for a vector of columns on its way out: counts of the code below, two
/// operations and a store a cycle.
fn cycles_of_ends(outputs: usize, axes: usize) -> [f64; 2] {
    match (outputs, axes) {
        (2, 2) => [40.0, 30.0],
        (_, 2) => [130.0, 105.0],
        (2, _) => [8.0, 8.0],
        _ => [20.0, 18.0],
    }
}

/// Bytes of panels that come in a cycle from beyond L2, and from memory.
const FAR: [f64; 2] = [16.0, 12.0];

/// As many tiles may a task have, whatever L2 holds: panels come from beyond it once for each task.
const FEWEST_TILES: i64 = 24;

/// Most parts of rows and of columns that are tried as tasks.
const MOST_PARTS: usize = 16;

/// Register tiles that take so many times the cycles of the best one are tried with all tasks.
const NEARLY: f64 = 1.1;

/// What minimal filtering has to gain to be worth its larger weights.
const GAIN: f64 = 0.92;

/// The axes that an algorithm runs over.
struct Axes {
    /// Axes of the result, one or two.
    lines: Vec<usize>,
    /// The same of the window, among the axes of the reduction.
    taps: Vec<usize>,
    /// The reduction's axis of channels.
    channels: usize,
}

/// Those of a convolution with windows of 3 along one axis or two, steps of 1, and channels side by side.
fn axes(c: &Compute, a: &Factor, p: &Brgemm, operands: &[Operand]) -> Option<Axes> {
    let rank = c.dims.len();
    let r = c.reduction.as_ref()?;
    let (mut found, mut channels) = (vec![], None);
    for (k, extent) in r.axes.iter().enumerate() {
        let extent = extent.known()?;
        let var = (rank + k) as u32;
        let tap = || {
            let mut uses = a.index.iter().filter(|e| e.uses_var(var));
            let (Some(at), None) = (uses.next(), uses.next()) else { return None };
            let (step, rest) = at.affine_in(var)?;
            let mut moving = (0..rank).filter(|&x| rest.uses_var(x as u32));
            let (Some(x), None) = (moving.next(), moving.next()) else { return None };
            let (stride, offset) = rest.affine_in(x as u32)?;
            let once = a.index.iter().filter(|e| e.uses_var(x as u32)).count() == 1;
            (step == 1 && stride == 1 && offset.known().is_some() && once && p.m.contains(&x)).then_some((x, k))
        };
        match extent {
            1 => {}
            3 if found.len() < 2
                && let Some(tap) = tap() =>
            {
                found.push(tap)
            }
            _ if channels.is_none() => channels = Some(k),
            _ => return None,
        }
    }
    let (lines, taps): (Vec<usize>, Vec<usize>) = found.into_iter().unzip();
    let channels = channels?;
    let index: Vec<Scalar> = a.index.iter().map(|&e| Scalar::index(e)).collect();
    let (step, _) = operands[a.source].offset(&index)?.affine_in((rank + channels) as u32)?;
    let good = step == 1 && !lines.is_empty() && lines.first() != lines.get(1);
    good.then_some(Axes { lines, taps, channels })
}

/// What the time of a plan follows from: tiles, columns, channels, elements of all batch axes, and axes of the window.
#[derive(Clone, Copy)]
struct Size {
    rows: i64,
    columns: i64,
    channels: i64,
    batch: i64,
    axes: usize,
}

impl Size {
    /// Those of a convolution with tiles of so many results along each of `lines`; `None` if columns or channels are not known.
    fn of(c: &Compute, (m, n): (&[usize], usize), lines: &[usize], channels: usize, outputs: usize) -> Option<Size> {
        let size = |x: usize| guess(c.dims[x]);
        let tiles = |&x: &usize| if lines.contains(&x) { (size(x) as usize).div_ceil(outputs) as i64 } else { size(x) };
        let batch = (0..c.dims.len()).filter(|a| *a != n && !m.contains(a)).map(size).product();
        let channels = c.reduction.as_ref()?.axes[channels].known()?;
        Some(Size { rows: m.iter().map(tiles).product(), columns: c.dims[n].known()?, channels, batch, axes: lines.len() })
    }

    /// Cycles to bring panels of so many weights from beyond L2, as often as there are tasks of rows.
    fn stream(self, values: i64, mc: usize, target: &TargetDesc) -> f64 {
        let bytes = 4 * self.channels * self.columns * values;
        let times = (self.rows as f64 / mc as f64).ceil() * self.batch as f64;
        bytes as f64 / FAR[usize::from(bytes > target.l3_bytes as i64)] * times
    }

    /// Cycles of the plan with these sizes.
    fn cycles(self, outputs: usize, [mr, nr, mc, nc]: [usize; 4], row: &rows::Row, target: &TargetDesc) -> f64 {
        let (lanes, points) = (target.lanes(4), points(outputs, self.axes).iter().product::<usize>() as i64);
        let vectors = |n: i64| (n as f64 / lanes as f64).ceil();
        let products =
            rounds((self.rows, self.columns), (mr, nr), nr / lanes, row) * (self.channels * points * self.batch) as f64;
        let [into, out] = cycles_of_ends(outputs, self.axes);
        let blocks = (self.columns as f64 / nc as f64).ceil();
        let ends = (self.rows * self.batch) as f64 * (vectors(self.channels) * into * blocks + vectors(self.columns) * out);
        products.max(self.stream(points, mc, target)) + ends
    }

    /// Sizes for tiles of so many results: those of the fewest cycles whose values of tiles, and of the columns at hand, stay in L2, with enough tasks for threads.
    fn sizes(self, outputs: usize, row: &rows::Row, target: &TargetDesc) -> Option<[usize; 4]> {
        let (lanes, points) = (target.lanes(4), points(outputs, self.axes).iter().product::<usize>() as i64);
        let Size { rows, columns, channels, batch, .. } = self;
        let mut tiles: Vec<(f64, [usize; 2])> = vec![];
        let widths = (1..=MOST_VECTORS).map(|v| v * lanes).filter(|nr| nr - lanes < columns as usize);
        for [mr, nr] in widths.flat_map(|nr| (1..=MOST_ROWS).map(move |mr| [mr, nr])) {
            let [of_vector, others] = row.registers_on(target, mr);
            let registers = (mr + of_vector) * (nr / lanes) + others;
            if registers <= target.vector_registers as usize && mr as i64 <= rows {
                tiles.push((rounds((rows, columns), (mr, nr), nr / lanes, row), [mr, nr]));
            }
        }
        let least = tiles.iter().map(|t| t.0).fold(f64::INFINITY, f64::min);
        let large = batch * rows * columns * channels * points > 1 << 21;
        let mut best: Option<((bool, f64), [usize; 4])> = None;
        for (_, [mr, nr]) in tiles.into_iter().filter(|t| t.0 <= least * NEARLY) {
            let room = target.l2_bytes as i64 * 3 / 4 / (points * 4 * (channels + nr as i64));
            let most = (room.max(FEWEST_TILES) as usize).next_multiple_of(mr);
            let part = |of: i64, parts: usize, step: usize| (of as usize).div_ceil(parts).next_multiple_of(step);
            for (down, across) in (1..=MOST_PARTS).flat_map(|down| (1..=MOST_PARTS).map(move |across| (down, across))) {
                let sizes @ [_, _, mc, nc] = [mr, nr, part(rows, down, mr).min(most), part(columns, across, nr)];
                let few = large && few_tasks((rows, columns, batch), mc, nc);
                let order = (few, self.cycles(outputs, sizes, row, target));
                if best.as_ref().is_none_or(|b| (order.0, order.1) < (b.0.0, b.0.1 * 0.999)) {
                    best = Some((order, sizes));
                }
            }
        }
        best.map(|b| b.1)
    }
}

/// What is fixed of a plan.
struct Frame {
    axes: Axes,
    row: &'static rows::Row,
}

/// `None` if the contraction is no convolution of this kind, by constant windows of f32 that lie as they are.
fn frame(c: &Compute, operands: &[Operand], p: &Brgemm) -> Option<Frame> {
    let r = c.reduction.as_ref().filter(|r| r.body.dtype() == DType::F32)?;
    let f = factors(c)?;
    let (a, b) = (&f[p.broadcast], &f[1 - p.broadcast]);
    let plain = f.iter().all(|f| f.scalar == f.read && f.read.dtype() == DType::F32);
    let row = rows::named(p.row).filter(|row| row.depth == 1 && row.block == 1)?;
    if !plain || p.panels != Panels::Packed || p.stored.is_some() || p.copied {
        return None;
    }
    let (index, constant) = (pack_index(b, p.n, c, r.axes.len())?, operands[b.source].constant.as_ref()?);
    let axes = axes(c, a, p, operands)?;
    let sizes = [c.dims[p.n].known()?, r.axes[axes.channels].known()?];
    Places::of(constant, &index, (axes.channels, &axes.taps), sizes)?;
    Some(Frame { axes, row })
}

/// The plan for tiles of so many results along each axis, with the cycles that it is predicted to take; `None` if it is no convolution of this kind.
pub fn plan_of(c: &Compute, operands: &[Operand], p: &Brgemm, outputs: usize, target: &TargetDesc) -> Option<(f64, Winograd)> {
    let Frame { axes: Axes { lines, taps, channels }, row } = frame(c, operands, p)?;
    let size = Size::of(c, (&p.m, p.n), &lines, channels, outputs)?;
    let sizes @ [mr, nr, mc, nc] = size.sizes(outputs, row, target)?;
    let (broadcast, n, m) = (p.broadcast, p.n, p.m.clone());
    let plan = Winograd { outputs, broadcast, n, m, lines, taps, channels, mr, nr, mc, nc, row: row.name };
    Some((size.cycles(outputs, sizes, row, target), plan))
}

/// The plan, where it is predicted to take less time than that of the contraction and the user allows it.
pub fn plan(c: &Compute, operands: &[Operand], p: &Brgemm, target: &TargetDesc) -> Option<Winograd> {
    if target.math != Math::Winograd {
        return None;
    }
    let Frame { axes: Axes { lines, channels, .. }, .. } = frame(c, operands, p)?;
    let (whole, lanes) = (Size::of(c, (&p.m, p.n), &lines, channels, 1)?, target.lanes(4) as i64);
    if whole.rows < 1 || whole.batch < 1 || whole.channels < lanes || whole.columns < lanes {
        return None;
    }
    let plain = contract::cycles(c, p, target).max(whole.stream(WINDOW.pow(lines.len() as u32) as i64, p.mc, target));
    let plans = OUTPUTS.into_iter().filter_map(|outputs| plan_of(c, operands, p, outputs, target));
    let best = plans.min_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 < plain * GAIN).then_some(best.1)
}

/// Cycles of a planned convolution, for comparing plans.
pub fn cycles(c: &Compute, p: &Winograd, target: &TargetDesc) -> Option<f64> {
    let size = Size::of(c, (&p.m, p.n), &p.lines, p.channels, p.outputs)?;
    Some(size.cycles(p.outputs, [p.mr, p.nr, p.mc, p.nc], rows::named(p.row)?, target))
}

/// Share of the products of a plain convolution that are made.
pub fn share(c: &Compute, p: &Winograd) -> f64 {
    let of = |x: usize| {
        let (size, outputs) = (c.dims[x].known().unwrap_or(1).max(1) as f64, p.outputs as f64);
        (size / outputs).ceil() * (outputs + 2.0) / (size * WINDOW as f64)
    };
    p.lines.iter().map(|&x| of(x)).product()
}

/// Where the weights of windows lie in their tensor: the first one, and steps along columns, channels and both axes of a window, in elements.
struct Places {
    start: i64,
    columns: i64,
    channels: i64,
    taps: [i64; 2],
}

impl Places {
    /// `index` is that of [`pack_index`]; `channels` and `taps` are axes of the reduction. `None` if they are in no such order, or outside of the tensor.
    fn of(t: &Tensor, index: &[Expr], (channels, taps): (usize, &[usize]), sizes: [i64; 2]) -> Option<Places> {
        let strides: Vec<i64> = (0..t.dims.len()).map(|a| t.dims[a + 1..].iter().product::<usize>() as i64).collect();
        let mut offset = index.iter().zip(&strides).fold(Expr::int(0), |sum, (&e, &s)| sum + e * s);
        let mut step = |v: usize| {
            let (step, rest) = offset.affine_in(v as u32)?;
            offset = rest;
            Some(step)
        };
        let (columns, channels) = (step(0)?, step(1 + channels)?);
        let first = step(1 + taps[0])?;
        let taps = [first, taps.get(1).map_or(Some(0), |&k| step(1 + k))?];
        // Axes of one element stay.
        let start = offset.subst(&[Expr::int(0); 16]).known()?;
        let last = WINDOW as i64 - 1;
        let ends = [(columns, sizes[0] - 1), (channels, sizes[1] - 1), (taps[0], last), (taps[1], last)];
        let reach = |sign: i64| ends.iter().map(|&(step, most)| (sign * step).max(0) * most).sum::<i64>();
        let inside = start - reach(-1) >= 0 && start + reach(1) < t.len() as i64;
        inside.then_some(Places { start, columns, channels, taps })
    }
}

/// The values of windows at all points, in panels: `out[tile, point, channel, column]`, zeros beyond the last column.
fn weights(t: &Tensor, places: &Places, nr: usize, [columns, channels]: [usize; 2], filters: &[Filter; 2]) -> Tensor {
    let from: Vec<f32> = t.to_vec();
    let (points, tiles) = (filters.each_ref().map(|f| f.window.len()), columns.div_ceil(nr));
    let mut out = vec![0f32; tiles * points[0] * points[1] * channels * nr];
    for column in 0..columns {
        for channel in 0..channels {
            let at = places.start + places.columns * column as i64 + places.channels * channel as i64;
            let window =
                |i: usize, j: usize| f64::from(from[(at + places.taps[0] * i as i64 + places.taps[1] * j as i64) as usize]);
            for (i, first) in filters[0].window.iter().enumerate() {
                for (j, second) in filters[1].window.iter().enumerate() {
                    let line = |k: usize| second.iter().enumerate().map(|(l, g)| g * window(k, l)).sum::<f64>();
                    let value: f64 = first.iter().enumerate().map(|(k, g)| g * line(k)).sum();
                    let place = ((column / nr * points[0] + i) * points[1] + j) * channels + channel;
                    out[place * nr + column % nr] = value as f32;
                }
            }
        }
    }
    Tensor::from_vec([tiles, points[0] * points[1], channels, nr], out)
}

/// What a task computes with.
struct Nest<'a> {
    c: &'a Compute,
    p: &'a Winograd,
    a: &'a Factor,
    /// Of both axes.
    filters: [Filter; 2],
    /// Values of batch axes.
    axes: Vec<Expr>,
    /// Extents of the m axes, in tiles.
    m_dims: Vec<Expr>,
    rows: Expr,
    columns: Expr,
    channels: i64,
    m_block: Expr,
    lanes: usize,
    /// Values of the tiles at all points, and their products.
    data: u32,
    sums: u32,
    weights: usize,
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, p: &Winograd) {
    let r = c.reduction.as_ref().expect("a contraction reduces");
    let f = factors(c).expect("a contraction is a product of two reads");
    let (a, b) = (&f[p.broadcast], &f[1 - p.broadcast]);
    let filters = [Filter::of(p.outputs), Filter::of(if p.lines.len() == 2 { p.outputs } else { 1 })];
    let points = filters.each_ref().map(|f| f.data.len()).iter().product();
    let known = |e: Expr| e.known().expect("checked by the plan");
    let (columns, channels) = (known(c.dims[p.n]), known(r.axes[p.channels]));
    let index = pack_index(b, p.n, c, r.axes.len()).expect("checked by the plan");
    let constant = cx.operand(b.source).constant.clone().expect("checked by the plan");
    let places = Places::of(&constant, &index, (p.channels, &p.taps), [columns, channels]).expect("checked by the plan");
    cx.pack(b.source, weights(&constant, &places, p.nr, [columns as usize, channels as usize], &filters));
    let tiles = |x: usize| if p.lines.contains(&x) { c.dims[x].div_ceil(Expr::from(p.outputs)) } else { c.dims[x] };
    let m_dims: Vec<Expr> = p.m.iter().map(|&x| tiles(x)).collect();
    let rows = Expr::product(m_dims.iter().copied());
    let blocks = [rows.div_ceil(Expr::from(p.mc)), c.dims[p.n].div_ceil(Expr::from(p.nc))];
    let (axes, [m_block, n_block]) = grid(cx, c, (&p.m, p.n), blocks);
    let lanes = cx.target.lanes(4);
    // Rows that are a multiple of a page apart would share few lines of L1.
    let apart = if channels * 4 % 1024 == 0 { channels + LINE / 4 } else { channels };
    let data = cx.scratch("data", DType::F32, &[points, p.mc, apart as usize], Space::Tile);
    let sums = cx.scratch("sums", DType::F32, &[points, p.mc, p.nr], Space::Tile);
    let (m_block, n_block) = (m_block * p.mc as i64, n_block * p.nc as i64);
    let (columns, weights) = (c.dims[p.n], b.source);
    let nest = Nest { c, p, a, filters, axes, m_dims, rows, columns, channels, m_block, lanes, data, sums, weights };
    let into = nest.tiles(cx, &|this, cx, tile| this.into(cx, tile));
    let n_tile = cx.var("n_tile");
    let n0 = n_block + n_tile * p.nr as i64;
    let products = nest.products(cx, n0);
    let out = nest.tiles(cx, &|this, cx, tile| this.out(cx, tile, n0));
    let body = inside(n0, columns, p.nc, vec![Stmt::Alloc { buffer: sums }, products, out]);
    let all = for_each(n_tile, Expr::from(p.nc / p.nr), LoopKind::Serial, body);
    cx.body.extend([Stmt::Alloc { buffer: data }, into, all]);
}

impl Nest<'_> {
    /// What `body` makes of each tile of the task.
    fn tiles(&self, cx: &mut Cx, body: &dyn Fn(&Self, &mut Cx, Expr) -> Vec<Stmt>) -> Stmt {
        let tile = cx.var("tile");
        let body = inside(self.m_block + tile, self.rows, self.p.mc, body(self, cx, tile));
        for_each(tile, Expr::from(self.p.mc), LoopKind::Serial, body)
    }

    /// Points along both axes.
    fn points(&self) -> [usize; 2] {
        self.filters.each_ref().map(|f| f.data.len())
    }

    /// Axis values of the first result of a tile.
    fn first(&self, tile: Expr) -> Vec<Expr> {
        let mut axes = self.axes.clone();
        for (&x, v) in self.p.m.iter().zip(Expr::delinearise(self.m_block + tile, &self.m_dims)) {
            axes[x] = if self.p.lines.contains(&x) { v * self.p.outputs as i64 } else { v };
        }
        axes
    }

    /// The values of a tile's channels at all points.
    fn into(&self, cx: &mut Cx, tile: Expr) -> Vec<Stmt> {
        let points = self.points();
        let (block, lane) = (cx.var("block"), cx.var("lane"));
        let channel = block * self.lanes as i64 + lane;
        let first = self.first(tile);
        let mut body = vec![];
        // Elements beyond the last that a result needs stand for results that are not stored.
        let at = |x: usize, i: usize| {
            let (place, size) = (first[x] + i as i64, self.c.dims[x]);
            if size.known().is_some_and(|n| n % self.p.outputs as i64 == 0) {
                place
            } else {
                place.min(size + (WINDOW as i64 - 2))
            }
        };
        let rank = self.c.dims.len();
        let reduced = self.c.reduction.as_ref().map_or(0, |r| r.axes.len());
        let mut half: Vec<Vec<Scalar>> = vec![];
        for j in 0..points[1] {
            let column: Vec<Scalar> = (0..points[0])
                .map(|i| {
                    let mut axes = first.clone();
                    self.p.lines.iter().zip([i, j]).for_each(|(&x, by)| axes[x] = at(x, by));
                    axes.resize(rank + reduced, Expr::int(0));
                    axes[rank + self.p.channels] = channel;
                    named(cx, &mut body, self.a.read.subst(&axes))
                })
                .collect();
            half.push(product(cx, &mut body, &self.filters[0].data, &column));
        }
        for i in 0..points[0] {
            let line: Vec<Scalar> = half.iter().map(|column| column[i]).collect();
            for (j, value) in product(cx, &mut body, &self.filters[1].data, &line).into_iter().enumerate() {
                body.push(cx.put(self.data, &[Expr::from(i * points[1] + j), tile, channel], value));
            }
        }
        let lanes = self.lanes as i64;
        if self.channels % lanes != 0 {
            let cond = Scalar::index(channel).lt(Scalar::index(self.channels));
            body = vec![Stmt::If { cond, then: body, otherwise: vec![] }];
        }
        let vector = for_each(lane, Expr::from(self.lanes), LoopKind::Vector, body);
        vec![for_each(block, Expr::int((self.channels + lanes - 1) / lanes), LoopKind::Serial, vec![vector])]
    }

    /// The products of all tiles of the task with a panel of columns, at all points.
    fn products(&self, cx: &mut Cx, n0: Expr) -> Stmt {
        let (p, points) = (self.p, self.points().iter().product::<usize>());
        let row = rows::named(p.row).expect("a plan names a row of the table");
        let (point, m_tile, k) = (cx.var("point"), cx.var("m_tile"), cx.var("k"));
        let m0 = m_tile * p.mr as i64;
        let panel = n0.div(Expr::from(p.nr));
        let acc = cx.scratch("acc", DType::F32, &[p.mr, p.nr], Space::Reg);
        let whole = self.rows.known().is_some_and(|n| n % p.mr as i64 == 0);
        // A row beyond the last stands for the last.
        let number = |i: Expr| if whole { m0 + i } else { (m0 + i).min(self.rows - self.m_block - 1) };
        let each = |cx: &mut Cx, body: &dyn Fn(&mut Cx, Expr, Expr) -> Stmt| {
            let (i, v) = (cx.var("m"), cx.var("n"));
            let columns = for_each(v, Expr::from(p.nr), LoopKind::Vector, vec![body(cx, i, v)]);
            for_each(i, Expr::from(p.mr), LoopKind::Unroll, vec![columns])
        };
        let clear = each(cx, &|cx, i, v| cx.put(acc, &[i, v], Scalar::number(DType::F32, 0.0)));
        let step = each(cx, &|cx, i, v| {
            let data = cx.at(self.data, &[point, number(i), k]);
            let weight = Scalar::read_at(DType::F32, self.weights, &[panel, point, k, v]);
            cx.put(acc, &[i, v], (row.step)(cx.at(acc, &[i, v]), &[data], &[weight]))
        });
        let save = each(cx, &|cx, i, v| cx.put(self.sums, &[point, m0 + i, v], cx.at(acc, &[i, v])));
        let mut body = self.ahead(cx, (panel, point, m_tile, k));
        body.push(step);
        let sum = for_each(k, Expr::int(self.channels), LoopKind::Serial, body);
        let tile = inside(self.m_block + m0, self.rows, p.mc, vec![Stmt::Alloc { buffer: acc }, clear, sum, save]);
        let tiles = for_each(m_tile, Expr::from(p.mc / p.mr), LoopKind::Serial, tile);
        for_each(point, Expr::from(points), LoopKind::Serial, vec![tiles])
    }

    /// Hints for what comes: of the panel at the next point, which lies behind this one, all tiles together fetch all; of this one, what comes some steps later, where the
    /// machine wants to be told.
    fn ahead(&self, cx: &Cx, (panel, point, m_tile, k): (Expr, Expr, Expr, Expr)) -> Vec<Stmt> {
        let (nr, tiles) = (self.p.nr as i64, (self.p.mc / self.p.mr) as i64);
        let fetch = |at: Expr| Stmt::Prefetch {
            buffer: self.weights as u32,
            index: [panel, point, Expr::int(0), at].into_iter().map(Scalar::index).collect(),
        };
        let size = self.channels * nr;
        let mut all = vec![];
        let step = (nr + tiles - 1) / tiles;
        if size * 4 > PAGE {
            let at = (m_tile * self.channels + k) * step + size;
            all.extend((0..(step * 4 + LINE - 1) / LINE).map(|line| fetch(at + line * (LINE / 4))));
        }
        let steps = i64::from(cx.target.panel_ahead);
        if steps > 0 && size * 4 > cx.target.l1_bytes as i64 * 2 / 3 {
            all.extend((0..(nr * 4 + LINE - 1) / LINE).map(|line| fetch((k + steps) * nr + line * (LINE / 4))));
        }
        all
    }

    /// The results of a tile.
    fn out(&self, cx: &mut Cx, tile: Expr, n0: Expr) -> Vec<Stmt> {
        let points = self.points();
        let (block, lane) = (cx.var("block"), cx.var("lane"));
        let v = block * self.lanes as i64 + lane;
        let first = self.first(tile);
        let mut body = vec![];
        let mut half = vec![];
        for j in 0..points[1] {
            let column: Vec<Scalar> = (0..points[0])
                .map(|i| {
                    let read = cx.at(self.sums, &[Expr::from(i * points[1] + j), tile, v]);
                    named(cx, &mut body, read)
                })
                .collect();
            half.push(product(cx, &mut body, &self.filters[0].results, &column));
        }
        for i in 0..self.p.outputs {
            let line: Vec<Scalar> = half.iter().map(|column| column[i]).collect();
            for (j, sum) in product(cx, &mut body, &self.filters[1].results, &line).into_iter().enumerate() {
                // A line may be shorter than a tile.
                if self.p.lines.iter().zip([i, j]).any(|(&x, by)| self.c.dims[x].known().is_some_and(|n| n <= by as i64)) {
                    continue;
                }
                let mut axes = first.clone();
                axes[self.p.n] = n0 + v;
                let mut store = vec![];
                for (&x, by) in self.p.lines.iter().zip([i, j]) {
                    axes[x] = axes[x] + by as i64;
                }
                store.push(cx.store_out(&axes, with_accumulator(self.c.value.subst(&axes), sum)));
                for &x in &self.p.lines {
                    store = inside(axes[x], self.c.dims[x], self.p.outputs, store);
                }
                body.extend(store);
            }
        }
        let lanes = self.lanes as i64;
        if self.columns.known().is_none_or(|n| n % lanes != 0) {
            let cond = Scalar::index(n0 + v).lt(Scalar::index(self.columns));
            body = vec![Stmt::If { cond, then: body, otherwise: vec![] }];
        }
        let vector = for_each(lane, Expr::from(self.lanes), LoopKind::Vector, body);
        let vector = inside(n0 + block * lanes, self.columns, self.p.nr, vec![vector]);
        vec![for_each(block, Expr::from(self.p.nr / self.lanes), LoopKind::Serial, vector)]
    }
}

/// A name for a value.
fn named(cx: &mut Cx, body: &mut Vec<Stmt>, value: Scalar) -> Scalar {
    let local = cx.local();
    body.push(Stmt::Let { local, value });
    Scalar::local(value.dtype(), local)
}

/// The sum of some elements with their factors, if any is not 0.
fn combine(factors: &[f64], x: &[Scalar], fma: bool) -> Option<Scalar> {
    let mut terms: Vec<(f64, Scalar)> = factors.iter().copied().zip(x.iter().copied()).filter(|t| t.0 != 0.0).collect();
    // What needs no product comes first, what is added before what is taken away.
    terms.sort_by_key(|t| {
        if t.0 == 1.0 {
            0
        } else if t.0 == -1.0 {
            2
        } else {
            1
        }
    });
    terms.into_iter().fold(None, |sum, (factor, x)| {
        let number = Scalar::float(DType::F32, factor);
        Some(match sum {
            None if factor == 1.0 => x,
            None => number * x,
            Some(sum) if factor == 1.0 => sum + x,
            Some(sum) if factor == -1.0 => sum - x,
            Some(sum) if fma => Scalar::fma(number, x, sum),
            Some(sum) => sum + number * x,
        })
    })
}

/// Is `b` the row `a` with the sign of each second element changed?
fn mirrored(a: &[f64], b: &[f64]) -> bool {
    let part = |odd: usize| a.iter().skip(odd).step_by(2).any(|&x| x != 0.0);
    part(0) && part(1) && a.iter().zip(b).enumerate().all(|(k, (x, y))| if k % 2 == 0 { x == y } else { *x == -y })
}

/// The product of a matrix with a vector. Rows of points of both signs share their even and odd parts, columns of such points their sum and difference.
fn product(cx: &mut Cx, body: &mut Vec<Stmt>, matrix: &[Vec<f64>], x: &[Scalar]) -> Vec<Scalar> {
    let fma = cx.target.fma;
    let (mut matrix, mut x) = (matrix.to_vec(), x.to_vec());
    let column = |m: &[Vec<f64>], k: usize| m.iter().map(|row| row[k]).collect::<Vec<_>>();
    if matrix.len() < x.len() {
        for k in 1..x.len() {
            if mirrored(&column(&matrix, k - 1), &column(&matrix, k)) {
                let [sum, difference] = [x[k - 1] + x[k], x[k - 1] - x[k]].map(|s| named(cx, body, s));
                (x[k - 1], x[k]) = (sum, difference);
                for (i, row) in matrix.iter_mut().enumerate() {
                    (row[k - 1], row[k]) = if i % 2 == 0 { (row[k - 1], 0.0) } else { (0.0, row[k - 1]) };
                }
            }
        }
    }
    let mut results: Vec<Option<Scalar>> = vec![None; matrix.len()];
    for r in 0..matrix.len() {
        if results[r].is_some() {
            continue;
        }
        let other = (r + 1 < matrix.len() && mirrored(&matrix[r], &matrix[r + 1])).then_some(r + 1);
        if let Some(other) = other {
            let part =
                |odd: usize| matrix[r].iter().enumerate().map(|(k, &f)| if k % 2 == odd { f } else { 0.0 }).collect::<Vec<_>>();
            let [even, odd] = [0, 1].map(|odd| {
                let sum = combine(&part(odd), &x, fma).expect("a part that is not 0");
                named(cx, body, sum)
            });
            results[r] = Some(named(cx, body, even + odd));
            results[other] = Some(named(cx, body, even - odd));
        } else {
            let sum = combine(&matrix[r], &x, fma).expect("a row that is not 0");
            results[r] = Some(if matches!(sum.kind(), Kind::Local(_)) { sum } else { named(cx, body, sum) });
        }
    }
    results.into_iter().map(|r| r.expect("all rows are made")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_give_the_sums_of_windows() {
        for outputs in OUTPUTS {
            let f = Filter::of(outputs);
            let x: Vec<f64> = (0..outputs + 2).map(|k| (k * k) as f64 - 3.5).collect();
            let w = [0.5, -2.0, 3.0];
            let apply = |m: &[Vec<f64>], x: &[f64]| -> Vec<f64> {
                m.iter().map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
            };
            let products: Vec<f64> = apply(&f.data, &x).iter().zip(apply(&f.window, &w)).map(|(a, b)| a * b).collect();
            for (i, got) in apply(&f.results, &products).into_iter().enumerate() {
                let want: f64 = (0..3).map(|k| w[k] * x[i + k]).sum();
                assert!((got - want).abs() < 1e-12, "result {i} of {outputs}: {got}, not {want}");
            }
        }
    }
}
