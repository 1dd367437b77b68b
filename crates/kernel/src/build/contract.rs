//! The contraction builder: matrix products and convolutions in register tiles, without im2col.
//!
//! `out[m, n] = finish(sum over k of a[m, k] * b[k, n])`. A tile of `mr` rows and `nr` columns of sums stays in registers; each step
//! along k reads `nr` neighbouring elements of b as vectors and broadcasts `mr` elements of a. Rows may lie anywhere: m is a
//! set of output axes, flattened, and the address of each row follows from the index map, which is all there is to a convolution.
//! Rows beyond the last are computed again instead of the last one and not stored; columns beyond the last are masked.

use super::elementwise::with_accumulator;
use super::stored::{self, Table};
use super::{Cx, Operand, for_each, matrix, pack};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::{Brgemm, Matrix, Panels, guess};
use crate::rows::{self, Row, Sums};
use crate::target::{LINE, TargetDesc};
use crate::zero_point::byte_read;
use infc_ir::compute::{Compute, Reducer};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr};

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

/// The plan of a contraction; `None` if it has no n axis or its vector factor cannot be brought into panels.
pub fn plan(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<Brgemm> {
    Frame::of(c, operands, target).map(|frame| frame.plan())
}

/// What is fixed of a contraction's plan, and what its sizes depend on.
pub struct Frame {
    broadcast: usize,
    n: usize,
    m: Vec<usize>,
    panels: Panels,
    /// The narrow form of the vector factor.
    stored: Option<stored::Stored>,
    row: &'static Row,
    /// Registers that a step takes beside the sums, as in [`Row::registers`].
    widened: [usize; 2],
    /// Rows, columns and products of each element, and elements of all batch axes.
    rows: i64,
    columns: i64,
    depth: i64,
    batch: i64,
    /// Lanes of a vector of sums, and their bytes.
    lanes: usize,
    bytes: i64,
    /// Vector registers.
    registers: usize,
    /// Most rows of a tile that have lines of L1 of their own, beside the other factor's.
    most: usize,
    /// Bytes of a row of the broadcast factor.
    row_bytes: i64,
    /// Bytes of an element of the other factor.
    vector_bytes: i64,
    l1_bytes: i64,
    l2_bytes: i64,
    /// May a tile's columns end at half a vector, as a matter of course?
    halves: bool,
    taps: Vec<Tap>,
    lines: Vec<i64>,
}

/// Most rows of a tile.
const MOST_ROWS: usize = 14;

/// Most vectors of a row of a tile.
const MOST_VECTORS: usize = 8;

/// What half a vector costs of a whole one: half of it where units are half as wide, all of it where they are not.
const HALF: f64 = 0.7;

/// Bytes a cycle of a panel that come from L2, and from beyond.
const NEAR: f64 = 32.0;
const FAR: f64 = 16.0;

impl Frame {
    /// `None` if the contraction has no n axis or its vector factor cannot be brought into panels.
    pub fn of(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<Frame> {
        let r = c.reduction.as_ref()?;
        let f = factors(c)?;
        let uses = |k: usize, axis: usize| f[k].index.iter().any(|e| e.uses_var(axis as u32));
        let out = &operands[operands.len() - 1];
        let of = |k: usize| (0..c.dims.len()).filter(move |&a| uses(k, a) && !uses(1 - k, a)).collect::<Vec<_>>();
        let only = [of(0), of(1)];
        // n: the contiguous axis of the result if just one factor has it; else the widest axis of a constant factor, else of any.
        let contiguous = (0..c.dims.len()).find(|&a| out.buffer.strides[a].is(1) && !c.dims[a].is(1));
        // A depthwise convolution has its contiguous axis in both factors: vectors run over it, elementwise.
        if contiguous.is_some_and(|a| uses(0, a) && uses(1, a)) {
            return None;
        }
        let side_of = |a: usize| (0..2).find(|&k| only[k].contains(&a));
        let widest = |k: usize| only[k].iter().copied().max_by_key(|&a| guess(c.dims[a]));
        let constant = |k: usize| operands[f[k].source].constant.is_some();
        let depth: Option<i64> = r.axes.iter().map(|e| e.known()).product();
        let bytes = r.body.dtype().bytes();
        let lanes = target.lanes(bytes).max(1);
        let panels = |vector: usize, n: usize| {
            let b = &f[vector];
            if constant(vector) && depth.is_some() && c.dims[n].known().is_some() && pack_index(b, n, c, r.axes.len()).is_some() {
                return Some(Panels::Packed);
            }
            let index: Vec<Scalar> = b.index.iter().map(|&e| Scalar::index(e)).collect();
            match operands[b.source].offset(&index)?.affine_in(n as u32)? {
                (1, _) => Some(Panels::InPlace),
                _ if depth.is_some_and(|d| d * (8 * lanes * bytes) as i64 <= 1 << 19) => Some(Panels::Scratch),
                _ => None,
            }
        };
        let mut sides: Vec<usize> = vec![0, 1];
        sides.sort_by_key(|&k| !constant(k));
        // Where the contiguous side cannot be brought into panels, the result's columns are stored one by one; so they are where pairs of bf16
        // want the constant side in panels.
        let short = Sums { dtype: r.body.dtype(), broadcast: f[0].dtype(), vector: f[1].dtype(), groups: 2 };
        let pairs = rows::choose(&short, target).name == "bf16_dot";
        let ways = contiguous.and_then(|a| Some((side_of(a)?, a))).filter(|w| !pairs || constant(w.0)).into_iter();
        let mut ways = ways.chain(sides.into_iter().filter_map(|k| Some((k, widest(k)?))));
        let (mut vector, mut n, mut panels_of) = ways.find_map(|(k, n)| Some((k, n, panels(k, n)?)))?;
        // Packing the contiguous side in each run moves its elements once for each product that they take part in; storing columns one by
        // one moves each result once.
        let extent = |k: usize| only[k].iter().map(|&a| guess(c.dims[a])).product::<i64>();
        if panels_of == Panels::Scratch
            && let other = 1 - vector
            && (lanes as i64 / 2..depth.unwrap_or(0)).contains(&extent(other))
            && let Some(by) = widest(other)
            && panels(other, by) == Some(Panels::Packed)
        {
            (vector, n, panels_of) = (other, by, Panels::Packed);
        }
        let broadcast = 1 - vector;
        let mut m: Vec<usize> = only[broadcast].clone();
        m.sort_by_key(|&a| (std::cmp::Reverse(out.buffer.strides[a].known().unwrap_or(i64::MAX)), a));
        let rows: i64 = m.iter().map(|&a| guess(c.dims[a])).product();
        let sums = Sums {
            dtype: r.body.dtype(),
            broadcast: f[broadcast].dtype(),
            vector: f[vector].dtype(),
            groups: if panels_of == Panels::Packed { groups(c, &f[broadcast], &operands[f[broadcast].source]) } else { 1 },
        };
        let row_of_sums = rows::choose(&sums, target);
        let taps = taps(c, (broadcast, &m), &f, operands);
        let narrow = panels_of == Panels::Packed && row_of_sums.depth == 1 && taps.is_empty();
        let stored = || {
            let found = narrow_factor(c, n, &f[vector], &operands[f[vector].source])?.stored;
            let weights = depth? * guess(c.dims[n]);
            stored::gains(found, weights as usize, rows, row_of_sums.per_cycle, target).then_some(found)
        };
        let stored = if narrow { stored() } else { None };
        // Weights that are widened in the loop take registers of their own.
        let panels = if stored.is_some() && !stored::few(rows) { Panels::Scratch } else { panels_of };
        let widened = stored.filter(|_| panels == Panels::Packed).map_or(row_of_sums.registers, |s| s.registers());
        let lines: Vec<i64> = m.iter().map(|&a| guess(c.dims[a])).collect();
        let a = &operands[f[broadcast].source].buffer;
        let step_of_rows = || {
            let f = &f[broadcast];
            let index: Vec<Scalar> = f.index.iter().map(|&e| Scalar::index(e)).collect();
            Some(operands[f.source].offset(&index)?.affine_in(*m.last()? as u32)?.0.abs())
        };
        // Few columns take narrower vectors.
        let columns = guess(c.dims[n]);
        let lanes = std::iter::successors(Some(lanes), |l| Some(l / 2))
            .take_while(|&l| l >= 4 && 2 * l as i64 > columns)
            .min()
            .unwrap_or(lanes);
        let ways = target.l1_bytes.checked_div(target.l1_way_bytes).unwrap_or(0) as usize;
        let collide = ways > 1 && step_of_rows().is_some_and(|s| target.rows_collide(s * a.dtype.bytes() as i64));
        let most = if collide { ways - 1 } else { MOST_ROWS };
        let depth = depth.unwrap_or(64).max(1);
        // Rows of a convolution overlap: what a row takes of the operand is less than the depth.
        let whole = Expr::product(a.dims.iter().copied()).known().map(|all| all / rows.max(1));
        let shared = whole.or_else(step_of_rows).unwrap_or(depth);
        let row_bytes = depth.min(shared.max(1)) * bytes as i64;
        let batch = (0..c.dims.len()).filter(|a| *a != n && !m.contains(a)).map(|a| guess(c.dims[a])).product();
        let registers = target.vector_registers as usize;
        let (l1_bytes, l2_bytes) = (target.l1_bytes as i64, target.l2_bytes as i64);
        let vector_bytes = f[vector].dtype().bytes() as i64;
        // Units for vectors of 32 bytes take those of 64 in two halves; half a vector of 32 bytes gains nothing anywhere.
        let halves = lanes >= 8 && target.vector_bytes >= 64;
        let bytes = bytes as i64;
        let row = row_of_sums;
        Some(Frame {
            broadcast,
            n,
            m,
            panels,
            stored,
            row,
            widened,
            rows,
            columns,
            depth,
            batch,
            lanes,
            bytes,
            registers,
            most,
            row_bytes,
            vector_bytes,
            l1_bytes,
            l2_bytes,
            halves,
            taps,
            lines,
        })
    }

    /// The plan of the fewest cycles.
    pub fn plan(&self) -> Brgemm {
        let [mr, nr] = fewest(self.tiles()).unwrap_or([1, self.lanes]);
        let (mc, nc) = self.blocks(mr, nr);
        self.with([mr, nr, mc, nc])
    }

    /// The plan with these sizes: mr, nr, mc, nc.
    pub fn with(&self, [mr, nr, mc, nc]: [usize; 4]) -> Brgemm {
        let Frame { broadcast, n, panels, stored, .. } = *self;
        Brgemm { broadcast, n, m: self.m.clone(), mr, nr, mc, nc, panels, stored, row: self.row.name }
    }

    /// The share of the products along k that tiles of so many rows take; they leave out those with the border.
    pub fn share(&self, mr: usize) -> f64 {
        share(&self.taps, &self.m, &self.lines, mr as i64)
    }

    /// Does a tile fit the registers?
    fn fits(&self, mr: usize, nr: usize) -> bool {
        let vectors = nr.div_ceil(self.lanes);
        mr * vectors + self.widened[0] * vectors + self.widened[1] <= self.registers
    }

    /// Register tiles with their cycles over the whole product, by what the row says of its steps, two loads a cycle, what comes of a panel from the
    /// caches beyond L1, and a cycle for each round of the k loop. Widths are whole vectors, or those that end at half of one where that
    /// takes no more vectors for all columns.
    fn tiles(&self) -> Vec<([usize; 2], f64)> {
        let shares: Vec<f64> = (1..=self.most).map(|mr| self.share(mr)).collect();
        let half = half(self.lanes);
        let vectors = |nr: usize| (up(self.columns, nr) / nr) * nr.div_ceil(self.lanes);
        let least = up(self.columns, self.lanes) / self.lanes;
        let whole = (1..=MOST_VECTORS).map(|v| v * self.lanes);
        let halves = (0..MOST_VECTORS).map(|v| v * self.lanes + half).filter(|&nr| self.halves && vectors(nr) <= least);
        let sizes = whole.chain(halves).flat_map(|nr| (1..=self.most).map(move |mr| [mr, nr]));
        sizes
            .filter(|&[mr, nr]| self.fits(mr, nr) && mr as i64 <= self.rows.max(1))
            .map(|t| (t, self.cycles(t, &shares)))
            .collect()
    }

    /// Cycles of the whole product in such tiles; `shares` are those of the k loop, by rows of a tile.
    fn cycles(&self, [mr, nr]: [usize; 2], shares: &[f64]) -> f64 {
        let (rows, columns) = (self.rows.max(1) as f64, self.columns.max(1) as f64);
        let tiles = (rows / mr as f64).ceil() * (columns / nr as f64).ceil();
        let vectors = nr.div_ceil(self.lanes);
        let computed = (nr / self.lanes) as f64 + if nr % self.lanes == 0 { 0.0 } else { HALF };
        let steps = mr as f64 * computed / self.row.per_cycle;
        let loads = (mr + vectors) as f64 / 2.0;
        // Neighbouring tiles leave out the same of it.
        let panel = (self.depth as f64 * shares[mr - 1]) as i64 * nr as i64 * self.vector_bytes;
        let rate = if panel <= self.l2_bytes * 3 / 4 { NEAR } else { FAR };
        // Where there is but one tile of rows, each panel is read once, and nothing is to be gained.
        let near = panel <= self.l1_bytes / 2 || self.l2_bytes == 0 || mr as i64 >= self.rows;
        let stream = if near { 0.0 } else { (nr as i64 * self.vector_bytes * self.row.depth as i64) as f64 / rate };
        tiles * (steps.max(loads).max(stream).max(self.row.latency) + 1.0) * shares[mr - 1]
    }

    /// Tasks of blocks of so many rows and columns.
    fn tasks(&self, mc: usize, nc: usize) -> i64 {
        tasks((self.rows, self.columns, self.batch), mc, nc)
    }

    /// Rows and columns of a task.
    fn blocks(&self, mr: usize, nr: usize) -> (usize, usize) {
        let size = (self.rows, self.columns, self.depth, self.batch);
        blocks(size, self.row_bytes, (mr, nr), self.bytes, self.l2_bytes)
    }

    /// Why these sizes (mr, nr, mc, nc) make no plan; all that do give the same bits, since each sum is made in the order of k.
    pub fn check(&self, [mr, nr, mc, nc]: [usize; 4]) -> Result<(), String> {
        let (half, most) = (half(self.lanes), MOST_VECTORS * self.lanes);
        let (rows, columns) = (up(self.rows, mr.max(1)), up(self.columns, nr.max(1)));
        match () {
            () if mr == 0 || mr > MOST_ROWS => Err(format!("mr={mr} is not from 1 to {MOST_ROWS}")),
            () if nr == 0 || nr % half != 0 || nr > most => Err(format!("nr={nr} is no multiple of {half} up to {most}")),
            () if !self.fits(mr, nr) => Err(format!("a tile of {mr} x {nr} does not fit the {} registers", self.registers)),
            () if mc == 0 || mc % mr != 0 || mc > rows => Err(format!("mc={mc} is no multiple of mr={mr} up to {rows}")),
            () if nc == 0 || nc % nr != 0 || nc > columns => Err(format!("nc={nc} is no multiple of nr={nr} up to {columns}")),
            () => Ok(()),
        }
    }

    /// Other sizes that may be faster than those of a plan, the likely ones first: other tiles, and other blocks of the plan's own tile. As tasks are
    /// what threads share, they have about as many as the plan.
    pub fn others(&self, p: &Brgemm) -> Vec<[usize; 4]> {
        const TILES: usize = 10;
        let fewest = self.tasks(p.mc, p.nc).min(MANY_TASKS);
        let divides = |mc: usize, nc: usize| self.tasks(mc, nc) >= fewest;
        // Of each width the best heights; widths that end at half a vector too.
        let shares: Vec<f64> = (1..=self.most).map(|mr| self.share(mr)).collect();
        let half = half(self.lanes);
        let widths = (1..=MOST_VECTORS * self.lanes / half).map(|h| h * half);
        let widths = widths.filter(|&nr| nr % self.lanes == 0 || nr <= up(self.columns, half));
        let sizes = widths.flat_map(|nr| (1..=self.most).map(move |mr| [mr, nr]));
        let sizes = sizes.filter(|&[mr, nr]| self.fits(mr, nr) && mr as i64 <= self.rows.max(1));
        let mut tiles: Vec<([usize; 2], f64)> = sizes.map(|tile| (tile, self.cycles(tile, &shares))).collect();
        tiles.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        let mut chosen: Vec<[usize; 2]> = vec![];
        for (tile, _) in tiles {
            let same = chosen.iter().filter(|c| c[1] == tile[1]).count();
            if same < 3 && chosen.len() < TILES {
                chosen.push(tile);
            }
        }
        let mut all: Vec<[usize; 4]> = chosen
            .into_iter()
            .map(|[mr, nr]| {
                let (mc, nc) = self.blocks(mr, nr);
                [mr, nr, mc, nc]
            })
            .collect();
        let (mr, nr) = (p.mr, p.nr);
        let (rows, columns) = (up(self.rows, mr), up(self.columns, nr));
        let (few, half_rows, half_columns) = (up(FEWEST_ROWS, mr), up(p.mc as i64 / 2, mr), up(p.nc as i64 / 2, nr));
        let blocks = [
            (mr, columns),
            (few, columns),
            (rows, nr),
            (half_rows, p.nc),
            (2 * p.mc, p.nc),
            (p.mc, half_columns),
            (p.mc, 2 * p.nc),
            (p.mc, columns),
        ];
        all.extend(blocks.map(|(mc, nc)| [mr, nr, mc.min(rows), nc.min(columns)]));
        let mut others: Vec<[usize; 4]> = vec![];
        for sizes in all {
            let new = sizes != [p.mr, p.nr, p.mc, p.nc] && !others.contains(&sizes);
            if new && divides(sizes[2], sizes[3]) && self.check(sizes).is_ok() {
                others.push(sizes);
            }
        }
        others
    }
}

/// The multiple of `to` at or above a number.
fn up(x: i64, to: usize) -> usize {
    (x.max(1) as usize).div_ceil(to) * to
}

/// The least step of a tile's columns: half a vector, if that is one.
fn half(lanes: usize) -> usize {
    if lanes >= 8 { lanes / 2 } else { lanes }
}

/// The narrow form of a constant factor, if it has one.
fn narrow_factor(c: &Compute, n: usize, b: &Factor, operand: &Operand) -> Option<stored::Found> {
    let r = c.reduction.as_ref()?;
    let depth: Vec<usize> = r.axes.iter().map(|e| usize::try_from(e.known()?).ok()).collect::<Option<_>>()?;
    let columns = usize::try_from(c.dims[n].known()?).ok()?;
    if b.scalar != b.read {
        return None;
    }
    stored::find(operand.constant.as_ref()?, &pack_index(b, n, c, r.axes.len())?, columns, &depth)
}

/// Neighbours along k that the broadcast factor has side by side, four at most, or two; 1 if that is not so for all of k.
fn groups(c: &Compute, a: &Factor, operand: &Operand) -> usize {
    let axes = &c.reduction.as_ref().expect("a contraction reduces").axes;
    let index: Vec<Scalar> = a.index.iter().map(|&e| Scalar::index(e)).collect();
    let last = (c.dims.len() + axes.len() - 1) as u32;
    let plain = matches!(a.scalar.kind(), Kind::Cast(byte) if byte_read(*byte).is_some_and(|(read, _)| read == a.read));
    let side_by_side = operand.offset(&index).and_then(|o| o.affine_in(last)).is_some_and(|(step, _)| step == 1);
    let whole = |group: &i64| axes.last().and_then(|e| e.known()).is_some_and(|e| e % group == 0);
    if plain && side_by_side { [4, 2].into_iter().find(whole).unwrap_or(1) as usize } else { 1 }
}

/// The first one of the register tiles with the fewest cycles.
fn fewest(tiles: Vec<([usize; 2], f64)>) -> Option<[usize; 2]> {
    let mut best = None;
    for (tile, cycles) in tiles {
        if best.is_none_or(|(_, least)| cycles < least * 0.999) {
            best = Some((tile, cycles));
        }
    }
    best.map(|b| b.0)
}

/// Cycles of one round of the k loop, over all tiles.
fn rounds((rows, columns): (i64, i64), (mr, nr): (usize, usize), vectors: usize, row: &Row) -> f64 {
    let tiles = (rows.max(1) as f64 / mr as f64).ceil() * (columns.max(1) as f64 / nr as f64).ceil();
    let steps = (mr * vectors) as f64 / row.per_cycle;
    let loads = (mr + vectors) as f64 / 2.0;
    tiles * (steps.max(loads).max(row.latency) + 1.0)
}

/// Cycles of arithmetic of a planned contraction, for comparing plans.
pub(crate) fn cycles(c: &Compute, p: &Brgemm, target: &TargetDesc) -> f64 {
    let Some(r) = &c.reduction else { return 0.0 };
    let extent = |axes: &[usize]| axes.iter().map(|&a| guess(c.dims[a])).product::<i64>();
    let batch: Vec<usize> = (0..c.dims.len()).filter(|a| *a != p.n && !p.m.contains(a)).collect();
    let row = rows::named(p.row).expect("a plan names a row of the table");
    let depth = r.axes.iter().map(|&e| guess(e)).product::<i64>() as f64 / row.depth as f64;
    let lanes = target.lanes(r.body.dtype().bytes()).clamp(1, p.nr);
    rounds((extent(&p.m), guess(c.dims[p.n])), (p.mr, p.nr), p.nr / lanes, row) * depth * extent(&batch) as f64
}

/// Tasks of blocks of `mc` rows and `nc` columns of a product of so many rows and columns and a batch.
fn tasks((rows, columns, batch): (i64, i64, i64), mc: usize, nc: usize) -> i64 {
    let of = |extent: i64, block: usize| (extent.max(1) as usize).div_ceil(block) as i64;
    batch * of(rows, mc) * of(columns, nc)
}

/// Rows and columns of a task. The loop over columns is the outer one: a panel of b stays in L2 while all rows of the task pass, so
/// the more rows a task has, the less often b comes from memory; a's block (`row` bytes a row) shall stay in L2 beside it, unless that leaves
/// too few rows. Large products have at least eight tasks.
pub(super) fn blocks(
    (rows, columns, depth, batch): (i64, i64, i64, i64),
    row: i64,
    (mr, nr): (usize, usize),
    bytes: i64,
    l2_bytes: i64,
) -> (usize, usize) {
    let room = l2_bytes * 3 / 4 - depth * nr as i64 * bytes;
    let mut mc = up((room / row.max(1)).max(FEWEST_ROWS), mr).min(up(rows, mr));
    let mut nc = up(columns, nr);
    let work = batch * rows * columns * depth;
    let few = |mc: usize, nc: usize| tasks((rows, columns, batch), mc, nc) < MANY_TASKS;
    while work > 1 << 21 && few(mc, nc) && mc as i64 >= 2 * FEWEST_ROWS {
        mc = up(mc as i64 / 2, mr);
    }
    while work > 1 << 19 && few(mc, nc) && nc >= 2 * nr {
        nc = up(nc as i64 / 2, nr);
    }
    (mc, nc)
}

/// As many tasks as large products have at least.
const MANY_TASKS: i64 = 8;

/// Rows that make reading b from memory worth it: two operations a row for each element.
const FEWEST_ROWS: i64 = 48;

/// Steps of a tile's sums from which on there is time to fetch something.
const LONG: i64 = 1024;

/// Bytes of a page.
const PAGE: i64 = 4096;

/// The index of a constant factor in terms of n (variable 0) and k (variables 1..), if it depends on nothing else.
pub(super) fn pack_index(b: &Factor, n: usize, c: &Compute, reduced: usize) -> Option<Vec<Expr>> {
    let rank = c.dims.len();
    let outside = Expr::var(rank + reduced + 1);
    let map: Vec<Expr> = (0..rank + reduced)
        .map(|a| match a {
            _ if a == n => Expr::var(0),
            _ if a >= rank => Expr::var(1 + a - rank),
            _ if c.dims[a].is(1) => Expr::int(0),
            _ => outside,
        })
        .collect();
    let index: Vec<Expr> = b.index.iter().map(|e| e.subst(&map)).collect();
    let free = (rank + reduced + 1) as u32;
    (!index.iter().any(|e| e.uses_var(free))).then_some(index)
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, p: &Brgemm) {
    let table = table(cx, c, p);
    let c = &p.stored.map_or_else(|| c.clone(), |s| stored::cut(c, s));
    let r = c.reduction.as_ref().expect("a contraction reduces");
    let f = factors(c).expect("a contraction is a product of two reads");
    let (a, b) = (&f[p.broadcast], &f[1 - p.broadcast]);
    let rank = c.dims.len();
    let batch: Vec<usize> = (0..rank).filter(|x| *x != p.n && !p.m.contains(x)).collect();
    let m_dims: Vec<Expr> = p.m.iter().map(|&x| c.dims[x]).collect();
    let (rows, columns) = (Expr::product(m_dims.iter().copied()), c.dims[p.n]);
    let nr = p.nr as i64;
    let mut grid: Vec<Expr> = batch.iter().map(|&x| c.dims[x]).collect();
    grid.push(rows.div_ceil(Expr::from(p.mc)));
    grid.push(columns.div_ceil(Expr::from(p.nc)));
    cx.tasks = Expr::product(grid.iter().copied());
    let place = Expr::delinearise(cx.task, &grid);
    let (m_block, n_block) = (place[batch.len()], place[batch.len() + 1]);
    let mut axes = vec![Expr::int(0); rank];
    batch.iter().zip(&place).for_each(|(&x, &v)| axes[x] = v);
    let n_tile = cx.var("n_tile");
    let m_block = m_block * p.mc as i64;
    let n0 = n_block * p.nc as i64 + n_tile * nr;
    let source = vector_source(cx, c, p, b, table);
    let taps = taps(c, (p.broadcast, &p.m), &f, cx.operands);
    let members = rows::named(p.row).expect("a plan names a row of the table").depth as i64;
    let tile = Expr::int(0);
    let mut nest =
        Tile { c, p, a, b, axes, m_dims, rows, columns, m_block, m0: m_block, m_tile: tile, n0, taps, source, members };
    let whole = columns.known().is_some_and(|x| x % nr == 0);
    let body = if whole {
        nest.column(cx, false)
    } else {
        let fits = Scalar::index(n0 + nr).le(Scalar::index(columns));
        let (then, otherwise) = (nest.column(cx, false), nest.column(cx, true));
        vec![Stmt::If { cond: fits, then, otherwise }]
    };
    let body = inside(n0, columns, p.nc, body);
    if let Source::Scratch(panel, _) = nest.source {
        cx.body.push(Stmt::Alloc { buffer: panel });
    }
    cx.body.push(for_each(n_tile, Expr::from(p.nc / p.nr), LoopKind::Serial, body));
    debug_assert_eq!(r.kind, Reducer::Sum);
}

/// The nest of a task of the plan `p` for tiles, on vectors: for fewer rows than a tile has. The panels are those of the tiles, `axes` have the
/// values of batch axes.
pub(super) fn short(cx: &mut Cx, c: &Compute, p: &Matrix, f: &[Factor; 2], axes: Vec<Expr>, n_block: Expr) -> Vec<Stmt> {
    let (a, b) = (&f[p.broadcast], &f[1 - p.broadcast]);
    let members = 4 / b.read.dtype().bytes();
    let sums = c.reduction.as_ref().expect("a contraction reduces").body.dtype();
    let row = rows::choose(&Sums { dtype: sums, broadcast: a.dtype(), vector: b.dtype(), groups: members }, cx.target).name;
    let (mr, nr) = (SHORT, p.tiles[1] * matrix::TILE);
    let plan = Brgemm {
        broadcast: p.broadcast,
        n: p.n,
        m: p.m.clone(),
        mr,
        nr,
        mc: p.rows.next_multiple_of(mr),
        nc: p.nc,
        panels: Panels::Packed,
        stored: None,
        row,
    };
    let m_dims: Vec<Expr> = p.m.iter().map(|&x| c.dims[x]).collect();
    let (rows, columns, zero) = (Expr::product(m_dims.iter().copied()), c.dims[p.n], Expr::int(0));
    let n_tile = cx.var("n_tile");
    let n0 = n_block * p.nc as i64 + n_tile * nr as i64;
    let (taps, source) = (vec![], Source::Packed(b.source));
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
        taps,
        source,
        members: members as i64,
    };
    let body = if columns.known().is_some_and(|x| x % nr as i64 == 0) {
        nest.column(cx, false)
    } else {
        let cond = Scalar::index(n0 + nr as i64).le(Scalar::index(columns));
        let (then, otherwise) = (nest.column(cx, false), nest.column(cx, true));
        vec![Stmt::If { cond, then, otherwise }]
    };
    let body = inside(n0, columns, p.nc, body);
    vec![for_each(n_tile, Expr::from(p.nc / nr), LoopKind::Serial, body)]
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
    p.stored?;
    let f = factors(c).expect("a contraction is a product of two reads");
    let b = &f[1 - p.broadcast];
    let found = narrow_factor(c, p.n, b, cx.operand(b.source)).expect("checked by the plan");
    Some(Table::pack(cx, b.source, &found, p.nr))
}

fn vector_source(cx: &mut Cx, c: &Compute, p: &Brgemm, b: &Factor, table: Option<Table>) -> Source {
    let r = c.reduction.as_ref().expect("a contraction reduces");
    let depth: Vec<usize> = r.axes.iter().map(|e| e.known().unwrap_or(0) as usize).collect();
    match p.panels {
        Panels::InPlace => Source::InPlace,
        Panels::Scratch => {
            let dims: Vec<usize> = depth.iter().copied().chain([p.nr]).collect();
            Source::Scratch(cx.scratch("panel", b.read.dtype(), &dims, Space::Tile), table)
        }
        Panels::Packed => {
            if let Some(table) = table {
                return Source::Narrow(table);
            }
            let index = pack_index(b, p.n, c, r.axes.len()).expect("checked by the plan");
            let tensor = cx.operand(b.source).constant.clone().expect("checked by the plan");
            let n = c.dims[p.n].known().expect("checked by the plan") as usize;
            let packed = pack::panels(&tensor, &index, n, &depth, p.nr).expect("a constant read in bounds");
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
    /// Axes of k along which a tile may meet zeros only.
    taps: Vec<Tap>,
    source: Source,
    /// Neighbours along k that lie side by side in packed panels.
    members: i64,
}

/// A k axis over an axis with a border of zeros: the place there is `step * k + rest`.
struct Tap {
    /// Which of the k axes, and its extent.
    k: usize,
    count: i64,
    step: i64,
    /// `stride * m + offset`, of this axis of the result.
    rest: Expr,
    m: usize,
    stride: i64,
    offset: i64,
    /// Elements between the borders.
    size: i64,
}

impl Tap {
    /// Number of values of k with which some place of the axis of the result meets data.
    fn met(&self, first: i64, last: i64) -> i64 {
        let at = |o: i64, k: i64| o * self.stride + k * self.step + self.offset;
        (0..self.count).filter(|&k| at(last, k) >= 0 && at(first, k) < self.size).count() as i64
    }
}

/// Does a tile of `mr` rows lie in one line of the last m axis?
fn in_line(mr: i64, line: Option<i64>) -> bool {
    line.is_some_and(|d| d % mr == 0)
}

/// The share of the k loop that tiles of `mr` rows take, on the whole; `lines` are the extents of the m axes.
fn share(taps: &[Tap], m: &[usize], lines: &[i64], mr: i64) -> f64 {
    let rows: i64 = lines.iter().product();
    let starts = (0..rows).step_by(mr as usize);
    let all = ((rows.max(1) + mr - 1) / mr) as f64;
    let of = |start: i64| {
        let (mut inner, mut part) = (rows, 1.0);
        for (i, (&axis, &extent)) in m.iter().zip(lines).enumerate() {
            inner /= extent.max(1);
            let end = (start + mr - 1).min(rows - 1);
            let (first, last) = match in_line(mr, lines.last().copied()) {
                true => (start / inner.max(1) % extent, (end / inner.max(1)) % extent),
                false if i == 0 => (start / inner.max(1), end / inner.max(1)),
                false => (0, extent - 1),
            };
            let met = taps.iter().filter(|t| t.m == axis).map(|t| t.met(first, last) as f64 / t.count as f64);
            part *= met.product::<f64>();
        }
        part
    };
    if taps.is_empty() { 1.0 } else { starts.map(of).sum::<f64>() / all }
}

/// Share of the products that must not meet the border, above which leaving them out is not worth its loops.
const WHOLE: f64 = 0.8;

/// The taps of a window that are far apart, as in dilated convolutions: most of the products may be of the border's zeros. A tile leaves out
/// those taps with which none of its rows meets data. Not where a weight is no number: it would make something of zeros.
fn taps(c: &Compute, (broadcast, rows): (usize, &[usize]), f: &[Factor; 2], operands: &[Operand]) -> Vec<Tap> {
    let (a, b) = (&f[broadcast], &f[1 - broadcast]);
    let operand = &operands[a.source];
    let axes = &c.reduction.as_ref().expect("a contraction reduces").axes;
    let rank = c.dims.len();
    let weights =
        operands[b.source].constant.as_ref().filter(|t| t.dtype == DType::F32 && a.scalar == a.read && b.scalar == b.read);
    if operand.zeros.is_empty() || weights.is_none() {
        return vec![];
    }
    let (mut found, mut met) = (vec![], 1.0);
    for (k, extent) in axes.iter().enumerate() {
        let tap = || {
            let axis = a.index.iter().position(|e| e.uses_var((rank + k) as u32))?;
            let (before, behind) = (operand.shift[axis], operand.zeros[axis]);
            let size = operand.buffer.dims[axis].known()? - before - behind;
            let (step, rest) = a.index[axis].affine_in((rank + k) as u32)?;
            let &m = rows.iter().find(|&&m| rest.uses_var(m as u32))?;
            let (stride, offset) = rest.affine_in(m as u32)?;
            let (offset, out, count) = (offset.known()?, c.dims[m].known()?, extent.known()?);
            if step < 1 || stride < 1 || before + behind == 0 || out * count == 0 {
                return None;
            }
            let tap = Tap { k, count, step, rest, m, stride, offset, size };
            let share = (0..out).map(|o| tap.met(o, o)).sum::<i64>() as f64 / (out * count) as f64;
            Some((tap, share))
        };
        if let Some((tap, share)) = tap() {
            found.push(tap);
            met *= share;
        }
    }
    let numbers = || weights.is_some_and(|t| t.to_vec::<f32>().iter().all(|v| v.is_finite()));
    if met < WHOLE && numbers() { found } else { vec![] }
}

impl Tile<'_> {
    fn k_axes(&self) -> &[Expr] {
        &self.c.reduction.as_ref().expect("a contraction reduces").axes
    }

    /// All row tiles of one column tile. `tail`: the last columns are missing.
    fn column(&mut self, cx: &mut Cx, tail: bool) -> Vec<Stmt> {
        let m_tile = cx.var("m_tile");
        self.m_tile = m_tile;
        self.m0 = self.m_block + m_tile * self.p.mr as i64;
        let mut body = vec![];
        if let Source::Scratch(panel, table) = self.source {
            body.push(match table {
                Some(table) => self.widen_panel(cx, panel, table),
                None => self.fill_panel(cx, panel, tail),
            });
        }
        let rows = inside(self.m0, self.rows, self.p.mc, self.tile(cx, tail));
        body.push(for_each(m_tile, Expr::from(self.p.mc / self.p.mr), LoopKind::Serial, rows));
        body
    }

    /// Axis values of row `i` of the tile; a row beyond the last stands for the last.
    fn row(&self, i: Expr) -> Vec<Expr> {
        let whole = self.rows.known().is_some_and(|x| x % self.p.mr as i64 == 0);
        let flat = if whole { self.m0 + i } else { (self.m0 + i).min(self.rows - 1) };
        let mut axes = self.axes.clone();
        for (&x, v) in self.p.m.iter().zip(Expr::delinearise(flat, &self.m_dims)) {
            axes[x] = v;
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
        let lane = cx.var("n");
        let at: Vec<Expr> = k.iter().copied().chain([lane]).collect();
        let store = cx.put(panel, &at, self.b_at(&k, self.n0 + lane, tail));
        let mut nest = for_each(lane, Expr::from(self.p.nr), LoopKind::Vector, vec![store]);
        for (&v, &e) in k.iter().zip(self.k_axes()).rev() {
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
            let mut at = k.clone();
            if let Some(last) = at.last_mut() {
                *last = *last * members as i64 + j as i64;
            }
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

    /// In each step of the k loop, something of the panel that comes next: when its turn comes, all of it is near. Panels are
    /// read from memory once a run, and what the machine fetches ahead by itself ends at a page.
    fn next_panel(&self, group: i64, k: &[Expr]) -> Option<Stmt> {
        let Source::Packed(source) = self.source else { return None };
        let bytes = self.b.read.dtype().bytes();
        let mut dims: Vec<i64> = self.k_axes().iter().map(|e| e.known()).collect::<Option<_>>()?;
        *dims.last_mut()? /= group;
        let (depth, nr, tiles) = (dims.iter().product::<i64>(), self.p.nr as i64 * group, (self.p.mc / self.p.mr) as i64);
        let step = (nr + tiles - 1) / tiles; // elements in each step of k, so that all tiles together fetch a panel
        if depth * nr * bytes as i64 <= PAGE || step * bytes as i64 > LINE {
            return None;
        }
        let flat = k.iter().zip(&dims).fold(Expr::int(0), |flat, (&v, &d)| flat * d + v);
        let tile = self.m_tile.min(Expr::int(nr / step - 1).max(Expr::int(0)));
        let at = tile * (depth * step) + flat * step;
        let columns = Expr::from(self.p.nr);
        let last = self.columns.div_ceil(columns) - 1;
        let innermost = if group == 1 { dims.len() + 1 } else { dims.len() + 2 };
        let mut index = vec![Expr::int(0); innermost + 1];
        (index[0], index[innermost]) = ((self.n0.div(columns) + 1).min(last), at);
        Some(Stmt::Prefetch { buffer: source as u32, index: index.into_iter().map(Scalar::index).collect() })
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
        let mut wanted: Vec<(u32, Vec<Expr>)> = vec![];
        self.c.value.visit(&mut |n| {
            if let Kind::Read { source, index, .. } = n.kind()
                && let Some(index) = index.iter().map(|i| i.as_index()).collect::<Option<Vec<_>>>()
                && index.iter().any(|e| self.p.m.iter().any(|&x| e.uses_var(x as u32)))
                && index.iter().any(|e| e.uses_var(self.p.n as u32))
            {
                wanted.push((*source, index));
            }
        });
        wanted.push((cx.out(), (0..self.c.dims.len()).map(Expr::var).collect()));
        let mut all = vec![];
        for (buffer, index) in wanted {
            let operand = cx.operand(buffer as usize);
            let scalars: Vec<Scalar> = index.iter().map(|&e| Scalar::index(e)).collect();
            let step = operand.offset(&scalars).and_then(|o| o.affine_in(self.p.n as u32)).map(|s| s.0);
            if operand.constant.is_some() || step != Some(1) {
                continue;
            }
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
        let mut member = k.to_vec();
        if let Some(last) = member.last_mut().filter(|_| group > 1) {
            *last = *last * group + j;
        }
        let row: Vec<Expr> = self.row(i).into_iter().chain(member.iter().copied()).collect();
        let read = match self.source {
            Source::InPlace => self.b_at(&member, self.n0 + v, tail),
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
                let tile = self.n0.div(Expr::from(self.p.nr));
                let mut at: Vec<Expr> = [tile].into_iter().chain(along).chain([v]).collect();
                at.extend((self.members > 1).then_some(one));
                Scalar::read_at(self.b.read.dtype(), source, &at)
            }
        };
        (self.a.scalar.subst(&row), self.b.scalar.rewrite(&mut |n| if n == self.b.read { read } else { n }))
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
        let (mr, nr) = (Expr::from(self.p.mr), Expr::from(self.p.nr));
        let dtype = self.c.reduction.as_ref().expect("a contraction reduces").body.dtype();
        let acc = cx.scratch("acc", dtype, &[self.p.mr, self.p.nr], Space::Reg);
        let two = |cx: &mut Cx| (cx.var("m"), cx.var("n"));
        let each =
            |i: Expr, v: Expr, body: Vec<Stmt>| for_each(i, mr, LoopKind::Unroll, vec![for_each(v, nr, LoopKind::Vector, body)]);
        let (i, v) = two(cx);
        let (value, start) = self.started(dtype, tail);
        let start = start.map_or(Scalar::number(dtype, 0.0), |s| {
            let mut axes = self.row(i);
            axes[self.p.n] = self.n0 + v;
            s.subst(&axes)
        });
        let clear = each(i, v, vec![cx.put(acc, &[i, v], start)]);

        let (i, v) = two(cx);
        let steps = cx.vars(&["k"], self.k_axes().len());
        let ranges = self.k_ranges();
        let k: Vec<Expr> = steps.iter().zip(&ranges).map(|(&v, r)| r.0 + v).collect();
        let row = rows::named(self.p.row).expect("a plan names a row of the table");
        let group = match self.source {
            Source::Narrow(table) => table.stored.members() as i64,
            _ => row.depth as i64,
        };
        let (left, right): (Vec<Scalar>, Vec<Scalar>) =
            (0..group).map(|j| self.factors_at(cx, &k, (i, v), (j, group), tail)).unzip();
        let (x, y) = if self.p.broadcast == 0 || row.depth > 1 { (left, right) } else { (right, left) };
        let steps_of = x.chunks(row.depth).zip(y.chunks(row.depth));
        let next = steps_of.fold(cx.at(acc, &[i, v]), |sum, (x, y)| (row.step)(sum, x, y));
        let sum = each(i, v, vec![cx.put(acc, &[i, v], next)]);
        let ahead = self.next_panel(group, &k).filter(|_| !tail && group == self.members);
        let mut sum: Vec<Stmt> = ahead.into_iter().chain([sum]).collect();
        let mut extents: Vec<Expr> = ranges.into_iter().map(|r| r.1).collect();
        if let Some(last) = extents.last_mut().filter(|_| group > 1) {
            *last = last.div(Expr::int(group));
        }
        for (&var, &e) in steps.iter().zip(&extents).rev() {
            sum = vec![for_each(var, e, LoopKind::Serial, sum)];
        }

        let (i, v) = two(cx);
        let mut axes = self.row(i);
        axes[self.p.n] = self.n0 + v;
        let value = with_accumulator(value.subst(&axes), cx.at(acc, &[i, v]));
        let mut store = vec![cx.store_out(&axes, value)];
        if tail {
            let cond = Scalar::index(self.n0 + v).lt(Scalar::index(self.columns));
            store = vec![Stmt::If { cond, then: store, otherwise: vec![] }];
        }
        let vectors = vec![for_each(v, nr, LoopKind::Vector, store)];
        let rows = inside(self.m0 + i, self.rows, self.p.mr, vectors);
        let finish = for_each(i, mr, LoopKind::Unroll, rows);
        let ends = if tail { vec![] } else { self.ends(cx) };
        [vec![Stmt::Alloc { buffer: acc }], ends, vec![clear], sum, vec![finish]].concat()
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
            Operand { buffer, shift, zeros: vec![], constant: None }
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
