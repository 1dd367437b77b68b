//! The sizes of a contraction's plan: register tiles and blocks with the fewest cycles by what the machine description says, and others that may be tried.

use super::along::{self, Along};
use super::copied::{self, Lines};
use super::taps::{Tap, share, taps};
use super::{Factor, LONG, batch_index, factors, pack_index};
use crate::build::{Operand, stored};
use crate::plan::{Brgemm, Kc, Panels, guess};
use crate::rows::{self, Row, Sums};
use crate::target::TargetDesc;
use crate::zero_point::byte_read;
use infc_ir::compute::Compute;
use infc_ir::scalar::{Kind, Scalar};
use infc_ir::{DType, Expr};

/// The plan of a contraction; `None` if it has no n axis or its vector factor cannot be brought into panels.
pub fn plan(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<Brgemm> {
    Frame::of(c, operands, target, None).map(|frame| frame.plan())
}

/// What is fixed of a contraction's plan, and what its sizes depend on.
pub struct Frame {
    broadcast: usize,
    n: usize,
    m: Vec<usize>,
    panels: Panels,
    /// Extents of the m axes, if tasks copy their rows of the broadcast factor.
    copied: Option<Vec<i64>>,
    /// How results lie along rows, if they do.
    along: Option<Along>,
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
    /// Does a run tell how many rows there are?
    open: bool,
    /// Extents along k.
    k: Vec<i64>,
    /// Lanes of a vector of sums, and their bytes.
    lanes: usize,
    bytes: i64,
    /// Vector registers.
    registers: usize,
    /// Does one instruction work on several of them?
    joined: bool,
    /// Are all elements of the broadcast factor of a step in them at once?
    eager: bool,
    /// Most rows of a tile that have lines of L1 of their own, beside the other factor's.
    most: usize,
    /// Bytes of a row of the broadcast factor.
    row_bytes: i64,
    /// Are rows of the broadcast factor windows that overlap, over more than L2 holds, and vectors of 64 bytes? Steps of narrower ones are too short for
    /// tiles that are lower (5 % slower).
    windows: bool,
    /// Of windows, whose rows have addresses of their own where they lie in several lines: elements of a line, and rounds of the loops over k around the innermost one.
    crossed: Option<(i64, f64)>,
    /// Bytes of an element of the other factor.
    vector_bytes: i64,
    l1_bytes: i64,
    l2_bytes: i64,
    l3_bytes: i64,
    /// Bytes a cycle of a panel that come from L2.
    near: f64,
    /// May a tile's columns end at half a vector, as a matter of course?
    halves: bool,
    taps: Vec<Tap>,
    lines: Vec<i64>,
}

/// The share of L2 that a block along k of a panel has. Measured with 2 MiB of L2, 784 rows by 512 columns: over 18,432 products 148 ms without blocks, 77 in blocks of an eighth or a
/// quarter; over 4,608 products 24.0 ms without, 19.5 in quarters, 18.7 in eighths; below two fifths of L2 (3,072 products in 48 or 64 columns) nothing is gained.
const NEAR: i64 = 8;

/// Products along k that make it worth to load and store sums.
const LEAST_KC: i64 = 128;

/// Rows that texts and batches have, where a run tells how many: tiles are as high as suits all of them.
const OPEN_ROWS: [f64; 5] = [8.0, 16.0, 32.0, 64.0, 128.0];

/// Most rows of a tile.
pub(in crate::build) const MOST_ROWS: usize = 14;

/// Most vectors of a row of a tile.
pub(in crate::build) const MOST_VECTORS: usize = 8;

/// What half a vector costs of a whole one: half of it where units are half as wide, all of it where they are not.
const HALF: f64 = 0.7;

/// Products of a sum beside which its store by itself is little.
const MANY: i64 = 32;

/// Bytes of the widest panel that is copied for a task.
const MOST_COPIED: i64 = 1 << 19;

/// Cycles to copy a vector of groups from rows: as many reads as a group has members, that are widened, shifted and joined, and a store.
const COPIED: f64 = 6.0;

/// Bytes a cycle of a panel that come from beyond L2.
const FAR: f64 = 16.0;

/// The same where they are more than the last level of cache holds for a core. (Granite Rapids: 784 rows by 512 columns over 18432 products, 172 ms in tiles of 8 x 48, whose panels take 3.5 MB, 157 in those of 7 x 16.)
const FARTHEST: f64 = 7.0;

/// Cycles until the first line of a row of results is there to be written, from memory; the lines behind it come by themselves. Measured where nine
/// products make a result and 75 MB are written: 50 cycles a row of a tile, whether it has 2, 4 or 8 lines.
const BEGIN: f64 = 50.0;

/// Cycles of a step of k for each row beyond some, where rows of windows come from beyond L2: what the machine fetches ahead by itself are a few lines of
/// accesses at once. Measured for windows of 3 x 3 over 128 and 64 channels: tiles of 14 x 32 take 30.5 cycles for 28, of 6 x 64 25.2 for 24, of 4 x 64 16.4 for 16.
const BEHIND: f64 = 0.22;
const FOLLOWED: f64 = 3.0;

/// Cycles of a row of a tile of windows whose rows lie in several lines, for its address; and of each row beyond so many in each round of the loops around the innermost one, since its
/// address is in memory. Measured for windows of 3 x 3 over 3 channels of 256 x 256 pixels (Zen 5, tiles of 32 columns): of 14 rows 490 to 910 cycles instead of 378, of 13 rows 500 to
/// 650 instead of 351, of 6 rows 191 instead of 162, of 8, which divide a line, 226 instead of 216.
const ADDRESS: f64 = 4.0;
const ADDRESSES: usize = 10;
const SPILLED: f64 = 6.0;

impl Frame {
    /// `None` if the contraction has no n axis or its vector factor cannot be brought into panels. `planned`: its plan, if there is one, which knows how its weights are stored.
    pub fn of(c: &Compute, operands: &[Operand], target: &TargetDesc, planned: Option<&Brgemm>) -> Option<Frame> {
        let r = c.reduction.as_ref()?;
        let f = factors(c)?;
        let uses = |k: usize, axis: usize| f[k].index.iter().any(|e| e.uses_var(axis as u32));
        let out = &operands[operands.len() - 1];
        let of = |k: usize| (0..c.dims.len()).filter(move |&a| uses(k, a) && !uses(1 - k, a)).collect::<Vec<_>>();
        let only = [of(0), of(1)];
        // n: the contiguous axis of the result if just one factor has it; else the widest axis of a constant factor, else of any.
        let contiguous = (0..c.dims.len()).find(|&a| out.buffer.strides[a].is(1) && !c.dims[a].is(1));
        // A depthwise convolution has its contiguous axis in both factors: vectors run over it, elementwise. So they do where tiles would have few rows or columns.
        let wide = |k: usize, least: usize| only[k].iter().map(|&a| guess(c.dims[a])).product::<i64>() >= least as i64;
        let lanes = target.lanes(r.body.dtype().bytes()).max(1);
        let tiles = (wide(0, lanes) && wide(1, 4)) || (wide(1, lanes) && wide(0, 4));
        if contiguous.is_some_and(|a| uses(0, a) && uses(1, a)) && !tiles {
            return None;
        }
        let side_of = |a: usize| (0..2).find(|&k| only[k].contains(&a));
        let widest = |k: usize| only[k].iter().copied().max_by_key(|&a| guess(c.dims[a]));
        let constant = |k: usize| operands[f[k].source].constant.is_some();
        let depth: Option<i64> = r.axes.iter().map(|e| e.known()).product();
        let bytes = r.body.dtype().bytes();
        let panels = |vector: usize, n: usize| {
            let b = &f[vector];
            let known = constant(vector) && depth.is_some() && c.dims[n].known().is_some();
            if known && pack_index(b, n, c, r.axes.len()).is_some() {
                return Some(Panels::Packed);
            }
            let index: Vec<Scalar> = b.index.iter().map(|&e| Scalar::index(e)).collect();
            match operands[b.source].offset(&index)?.affine_in(n as u32)? {
                (1, _) => Some(Panels::InPlace),
                // Weights of groups.
                _ if known && batch_index(b, n, c, r.axes.len()).is_some() => Some(Panels::Packed),
                _ if depth.is_some_and(|d| d * (8 * lanes * bytes) as i64 <= MOST_COPIED) => Some(Panels::Scratch),
                _ => None,
            }
        };
        let mut sides: Vec<usize> = vec![0, 1];
        sides.sort_by_key(|&k| !constant(k));
        // Where the contiguous side cannot be brought into panels, the result's columns are stored one by one; so they are where pairs of bf16
        // want the constant side in panels.
        let short = Sums { dtype: r.body.dtype(), broadcast: f[0].dtype(), vector: f[1].dtype(), groups: 2, small: false };
        let pairs = rows::choose(&short, target).name == "bf16_dot";
        let ways = contiguous.and_then(|a| Some((side_of(a)?, a))).filter(|w| !pairs || constant(w.0)).into_iter();
        let mut ways = ways.chain(sides.into_iter().filter_map(|k| Some((k, widest(k)?))));
        let (mut vector, mut n, mut panels_of) = ways.find_map(|(k, n)| Some((k, n, panels(k, n)?)))?;
        // The row for a factor that is copied into panels, which takes groups as they are filled.
        let copied = |vector: usize| {
            let other = &f[1 - vector];
            let groups = if is_plain(&f[vector]) { groups(c, other, &operands[other.source]) } else { 1 };
            let (broadcast, vector) = (other.dtype(), f[vector].dtype());
            rows::choose(&Sums { dtype: r.body.dtype(), broadcast, vector, groups, small: false }, target)
        };
        // Packing the contiguous side in each run moves its elements, or groups of them, once for each product that they take part in; storing
        // columns one by one moves each result once.
        let extent = |k: usize| only[k].iter().map(|&a| guess(c.dims[a])).product::<i64>();
        // Few columns side by side leave lanes of vectors empty.
        let narrow = guess(c.dims[n]) < lanes as i64 && depth.is_some_and(|d| d >= MANY);
        let most = if narrow { i64::MAX } else { depth.unwrap_or(0) / copied(vector).depth as i64 };
        if panels_of == Panels::Scratch
            && let other = 1 - vector
            && (lanes as i64 / 2..most).contains(&extent(other))
            && let Some(by) = widest(other)
            && panels(other, by) == Some(Panels::Packed)
        {
            (vector, n, panels_of) = (other, by, Panels::Packed);
        }
        let broadcast = 1 - vector;
        // Vectors that lie in place are copied where that lets a step take several products, and rows enough gain by it.
        if panels_of == Panels::InPlace && depth.is_some_and(|d| d * (8 * lanes * bytes) as i64 <= MOST_COPIED) {
            let grouped = copied(vector);
            let single = rows::named("mul_add").expect("the last row of the table");
            let gain = grouped.depth as f64 / single.per_cycle - 1.0 / grouped.per_cycle;
            if grouped.depth > 1 && extent(broadcast) as f64 * gain > COPIED {
                panels_of = Panels::Scratch;
            }
        }
        let mut m: Vec<usize> = only[broadcast].clone();
        m.sort_by_key(|&a| (std::cmp::Reverse(out.buffer.strides[a].known().unwrap_or(i64::MAX)), a));
        let along = along::of(c, out, n, &m, target).map(|(runs, along)| {
            m = runs;
            along
        });
        let rows: i64 = m.iter().map(|&a| guess(c.dims[a])).product();
        // A panel of few products for a single row takes longer than they do.
        if m.is_empty() && panels_of == Panels::Scratch && depth.is_some_and(|d| d < MANY) {
            return None;
        }
        let taps = taps(c, (broadcast, &m), &f, operands);
        // Blocks of neighbours along k are the same for every tile.
        let cut = taps.iter().any(|t| t.k + 1 == r.axes.len());
        let mut sums = Sums {
            dtype: r.body.dtype(),
            broadcast: f[broadcast].dtype(),
            vector: f[vector].dtype(),
            groups: match panels_of {
                // Panels that are copied take groups as they are filled.
                Panels::Scratch if cut || !is_plain(&f[vector]) => 1,
                Panels::Packed | Panels::Scratch => groups(c, &f[broadcast], &operands[f[broadcast].source]),
                Panels::InPlace => 1,
            },
            small: panels_of == Panels::Packed && !cut && is_small(&f[vector], &operands[f[vector].source], target),
        };
        // Rows that do not lie in groups are copied where that lets a step take several products.
        let whole_groups = || r.axes.iter().rev().enumerate().all(|(k, e)| e.known().is_some_and(|e| k > 0 || e % 4 == 0));
        let wanted = panels_of == Panels::Packed && sums.dtype == DType::I32 && sums.groups == 1 && whole_groups();
        let copied = if wanted && [0, 1].iter().all(|&k| is_plain(&f[k])) {
            let fits = |extents: &Vec<i64>| {
                let least = FEWEST_ROWS.max(*extents.last()?) + MOST_ROWS as i64;
                Some(depth? * Lines::of(extents, least as usize)?.rows() <= MOST_COPIED)
            };
            let grouped = rows::choose(&Sums { groups: 4, ..sums }, target).depth > 1;
            let extents = copied::extents(c, &f[broadcast], &m, &operands[f[broadcast].source]).filter(|_| grouped);
            extents.filter(|e| fits(e) == Some(true))
        } else {
            None
        };
        if copied.is_some() {
            sums.groups = 4;
        }
        let row_of_sums = rows::choose(&sums, target);
        let lanes = row_of_sums.lanes(target, bytes);
        let narrow = panels_of == Panels::Packed && row_of_sums.depth == 1 && taps.is_empty();
        let open = m.iter().any(|&a| c.dims[a].known().is_none());
        let stored = || {
            let found = narrow_factor(c, n, &f[vector], &operands[f[vector].source], None)?.stored;
            let weights = depth? * guess(c.dims[n]);
            let rows = (!open).then_some(rows);
            stored::gains(found, weights as usize, rows, row_of_sums.per_cycle, target).then_some(found)
        };
        let stored = match planned {
            Some(plan) => plan.stored,
            None if narrow => stored(),
            None => None,
        };
        // Weights that are widened in the loop take registers of their own.
        let dear = stored.is_some_and(|s| !s.cheap(target));
        let panels = if dear && (open || !stored::few(rows)) { Panels::Scratch } else { panels_of };
        let widened = stored.filter(|_| panels == Panels::Packed).map_or(row_of_sums.registers_on(target, 0), |s| s.registers());
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
        let collide =
            copied.is_none() && ways > 1 && step_of_rows().is_some_and(|s| target.rows_collide(s * a.dtype.bytes() as i64));
        let most = if collide { ways - 1 } else { MOST_ROWS };
        let depth = depth.unwrap_or(64).max(1);
        // Rows of a convolution overlap: what a row takes of the operand is less than the depth.
        let whole = Expr::product(a.dims.iter().copied()).known().map(|all| all / rows.max(1));
        let shared = whole.or_else(step_of_rows).unwrap_or(depth);
        let row_bytes = depth.min(shared.max(1)) * bytes as i64;
        let all = a.dims.iter().map(|&d| guess(d)).product::<i64>() * a.dtype.bytes() as i64;
        let windows = shared < depth && all > target.l2_bytes as i64 && target.l2_bytes > 0 && target.vector_bytes >= 64;
        let around = r.axes.iter().rev().skip(1).map(|&e| guess(e)).product::<i64>() as f64;
        let crossed = (shared < depth && m.len() > 1).then(|| (lines.last().copied().unwrap_or(1), around));
        let batch = (0..c.dims.len()).filter(|a| *a != n && !m.contains(a)).map(|a| guess(c.dims[a])).product();
        let registers = target.vector_registers as usize;
        let [l1_bytes, l2_bytes, l3_bytes] = [target.l1_bytes, target.l2_bytes, target.l3_bytes].map(|bytes| bytes as i64);
        let vector_bytes = f[vector].dtype().bytes() as i64;
        // Units for vectors of 32 bytes take those of 64 in two halves; half a vector of 32 bytes gains nothing anywhere.
        let halves = lanes >= 8 && target.vector_bytes >= 64 && row_of_sums.block == 1;
        let bytes = bytes as i64;
        let row = row_of_sums;
        Some(Frame {
            broadcast,
            n,
            m,
            panels,
            copied,
            along,
            stored,
            row,
            widened,
            rows,
            columns,
            depth,
            batch,
            open,
            k: r.axes.iter().map(|&e| e.known().unwrap_or(0)).collect(),
            lanes,
            bytes,
            registers,
            joined: target.joined_registers,
            eager: target.eager_broadcast,
            most,
            row_bytes,
            windows,
            crossed,
            vector_bytes,
            l1_bytes,
            l2_bytes,
            l3_bytes,
            near: f64::from(target.l2_bytes_per_cycle),
            halves,
            taps,
            lines,
        })
    }

    /// The plan of the fewest cycles.
    pub fn plan(&self) -> Brgemm {
        let [mr, nr] = fewest(&self.tiles()).unwrap_or([1, self.lanes]);
        let (mc, nc) = self.blocks(mr, nr);
        self.with([mr, nr, mc, nc])
    }

    /// Do tasks of so many rows have whole lines to copy, that scratch may hold?
    fn copies(&self, mc: usize) -> bool {
        let Some(extents) = &self.copied else { return true };
        Lines::of(extents, mc).is_some_and(|l| l.rows() * self.depth <= MOST_COPIED)
    }

    /// The plan with these sizes: mr, nr, mc, nc.
    pub fn with(&self, [mr, nr, mc, nc]: [usize; 4]) -> Brgemm {
        let Frame { broadcast, n, panels, stored, .. } = *self;
        let copied = self.copied.is_some();
        let kc = self.kc(mr, nr).filter(|_| mr < mc);
        let along = self.along.and_then(|along| along.rows([mr, nr], mc));
        Brgemm { broadcast, n, m: self.m.clone(), mr, nr, mc, nc, kc, panels, copied, along, stored, row: self.row.name }
    }

    /// Blocks along k, if panels of so many columns take more of L2 than leaves room for the rows of a task: the largest ones of which L2 holds [`NEAR`].
    fn kc(&self, mr: usize, nr: usize) -> Option<Kc> {
        let step = nr as i64 * self.vector_bytes;
        let plain = self.rows > mr as i64
            && self.panels == Panels::Packed
            && self.stored.is_none()
            && self.copied.is_none()
            && self.row.block == 1;
        if !plain || self.l2_bytes == 0 || self.depth * step <= self.l2_bytes * 2 / 5 {
            return None;
        }
        let most = self.l2_bytes / NEAR / step;
        for (axis, &extent) in self.k.iter().enumerate() {
            let behind: i64 = self.k[axis + 1..].iter().product();
            let last = axis + 1 == self.k.len();
            let fits = |&size: &i64| size * behind <= most && extent % size == 0 && (!last || size % self.row.depth as i64 == 0);
            if let Some(size) = (1..=extent).rev().find(fits) {
                return (size * behind >= LEAST_KC).then_some(Kc { axis, size });
            }
        }
        None
    }

    /// Products of a block along k.
    fn products(&self, kc: Kc) -> i64 {
        kc.size * self.k[kc.axis + 1..].iter().product::<i64>()
    }

    /// The share of the products along k that tiles of so many rows take; they leave out those with the border.
    pub fn share(&self, mr: usize) -> f64 {
        share(&self.taps, &self.m, &self.lines, mr as i64)
    }

    /// Does a tile fit the registers?
    fn fits(&self, mr: usize, nr: usize) -> bool {
        let vectors = nr.div_ceil(self.lanes);
        let elements = if self.eager { mr + 1 } else { 0 };
        mr * vectors + self.widened[0] * vectors + self.widened[1].max(elements) <= self.registers
    }

    /// Register tiles with their cycles over the whole product, by what the row says of its steps, two loads a cycle, what comes of a panel from the
    /// caches beyond L1, rows of results that begin in memory, and a cycle for each round of the k loop. Widths are whole vectors, or those that
    /// end at half of one where that takes no more vectors for all columns than the best of the others.
    fn tiles(&self) -> Vec<([usize; 2], f64)> {
        let shares: Vec<f64> = (1..=self.most).map(|mr| self.share(mr)).collect();
        let half = half(self.lanes);
        let tall = |nr: usize| (1..=self.most).map(move |mr| [mr, nr]);
        // Where registers are joined, a tile's row of 1, 2 or 4 vectors is one instruction, and one of 3 or 5 is as many. By LLVM's model of the SpacemiT X60, which executes in order,
        // 28 multiply-adds take 38 cycles in a tile of 14 x 2 vectors, 25 take 63 in one of 5 x 5.
        let joins = |nr: usize| !self.joined || nr.div_ceil(self.lanes).is_power_of_two();
        // Wider than all columns is only longer.
        let wide = |nr: usize| nr > up(self.columns, if nr.is_multiple_of(self.lanes) { self.lanes } else { half });
        let legal = |&[mr, nr]: &[usize; 2]| self.fits(mr, nr) && mr as i64 <= self.rows.max(1) && joins(nr) && !wide(nr);
        let counted = |t: [usize; 2]| (t, self.cycles(t, &shares));
        let whole = (1..=MOST_VECTORS).map(|v| v * self.lanes);
        let mut tiles: Vec<([usize; 2], f64)> = whole.flat_map(tall).filter(legal).map(counted).collect();
        let vectors = |nr: usize| (up(self.columns, nr) / nr) * nr.div_ceil(self.lanes);
        if let Some([_, best]) = fewest(&tiles).filter(|_| self.halves) {
            let halves = (0..MOST_VECTORS).map(|v| v * self.lanes + half).filter(|&nr| vectors(nr) <= vectors(best));
            tiles.extend(halves.flat_map(tall).filter(legal).map(counted));
        }
        tiles
    }

    /// Cycles of the whole product in such tiles; `shares` are those of the k loop, by rows of a tile.
    fn cycles(&self, [mr, nr]: [usize; 2], shares: &[f64]) -> f64 {
        let (rows, columns) = (self.rows.max(1) as f64, self.columns.max(1) as f64);
        let tiles = |rows: f64| (rows / mr as f64).ceil() * (columns / nr as f64).ceil();
        let tiles = match self.open {
            true => OPEN_ROWS.iter().map(|&some| tiles(some) * rows / some).sum::<f64>() / OPEN_ROWS.len() as f64,
            false => tiles(rows),
        };
        let vectors = nr.div_ceil(self.lanes);
        let computed = (nr / self.lanes) as f64 + if nr % self.lanes == 0 { 0.0 } else { HALF };
        let steps = mr as f64 * (computed / self.row.per_cycle + self.row.broadcast);
        let loads = (mr + vectors) as f64 / 2.0;
        // Neighbouring tiles leave out the same of it.
        let panel = (self.depth as f64 * shares[mr - 1]) as i64 * nr as i64 * self.vector_bytes;
        // All panels are read again for each block of rows.
        let held = self.depth * self.columns * self.vector_bytes <= self.l3_bytes;
        let rate = match panel <= self.l2_bytes * 3 / 4 {
            true => self.near,
            false if held => FAR,
            false => FARTHEST,
        };
        // Where there is but one tile of rows, each panel is read once, and nothing is to be gained.
        let near = panel <= self.l1_bytes / 2 || self.l2_bytes == 0 || mr as i64 >= self.rows;
        let step = (nr as i64 * self.vector_bytes * self.row.depth as i64) as f64;
        let stream = match self.kc(mr, nr) {
            _ if near => 0.0,
            // It comes from far once for all rows of a task.
            Some(_) => step / self.near + step / rate * mr as f64 / self.blocks(mr, nr).0 as f64,
            None => step / rate,
        };
        // Results that L2 does not hold, and that no long sum leaves time to fetch: each row of a tile begins anew.
        let rounds = self.depth as f64 / self.row.depth as f64;
        let far = self.rows * self.columns * self.batch * self.bytes > self.l2_bytes && self.l2_bytes > 0;
        let begin = if far && (mr * vectors) as f64 * rounds < LONG as f64 { mr as f64 * BEGIN / rounds } else { 0.0 };
        let addresses = match self.crossed {
            Some((line, around)) if line % mr as i64 != 0 => {
                (mr as f64 * ADDRESS + mr.saturating_sub(ADDRESSES) as f64 * SPILLED * around) / rounds
            }
            _ => 0.0,
        };
        let round = if self.windows { 0.1 + BEHIND * (mr as f64 - FOLLOWED).max(0.0) } else { 1.0 };
        tiles * (steps.max(loads).max(stream).max(self.row.latency) + round + begin + addresses) * shares[mr - 1]
    }

    /// Tasks of blocks of so many rows and columns.
    fn tasks(&self, mc: usize, nc: usize) -> i64 {
        tasks((self.rows, self.columns, self.batch), mc, nc)
    }

    /// Rows and columns of a task.
    fn blocks(&self, mr: usize, nr: usize) -> (usize, usize) {
        let size = (self.rows, self.columns, self.depth, self.batch);
        let (mut mc, nc) = match self.kc(mr, nr) {
            // The sums of a row lie in L2 too.
            Some(kc) => {
                let row = self.row_bytes + nr as i64 * self.bytes;
                blocks(size, (self.products(kc), row), (mr, nr), self.bytes, self.l2_bytes)
            }
            None => blocks(size, (self.depth, self.row_bytes), (mr, nr), self.bytes, self.l2_bytes),
        };
        if !self.copies(mc) {
            // As few rows as have a line.
            let line = self.copied.as_ref().and_then(|e| e.last()).map_or(FEWEST_ROWS, |&line| line.max(FEWEST_ROWS));
            mc = up(line, mr).min(up(self.rows, mr));
        }
        if let Some(along) = self.along {
            mc = along.block([mr, nr], mc);
        } else if self.open && self.copied.is_none() {
            // A block that holds rows of a power of two, at most an eighth more than fit: 128 rows are no block of 120 and one of 8, which would read all panels again.
            let held = mc * 8 / 7;
            mc = up(if held > 0 { 1 << held.ilog2() } else { 1 }, mr);
        }
        (mc, nc)
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
            () if !self.copies(mc) => Err(format!("mc={mc} rows are not copied")),
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

/// The narrow form of a constant factor, if it has one. `known`: what was found before.
pub(super) fn narrow_factor(
    c: &Compute,
    n: usize,
    b: &Factor,
    operand: &Operand,
    known: Option<stored::Stored>,
) -> Option<stored::Found> {
    let r = c.reduction.as_ref()?;
    let depth: Vec<usize> = r.axes.iter().map(|e| usize::try_from(e.known()?).ok()).collect::<Option<_>>()?;
    let columns = usize::try_from(c.dims[n].known()?).ok()?;
    if b.scalar != b.read {
        return None;
    }
    let (tensor, index) = (operand.constant.as_ref()?, pack_index(b, n, c, r.axes.len())?);
    match known {
        Some(stored) => stored::in_form(tensor, &index, columns, &depth, stored),
        None => stored::find(tensor, &index, columns, &depth, true),
    }
}

/// Is every number of a factor of f16 small enough for sums in f16?
fn is_small(b: &Factor, operand: &Operand, target: &TargetDesc) -> bool {
    let wanted = target.f16_fma && b.dtype() == DType::F16 && matches!(b.scalar.kind(), Kind::Cast(x) if *x == b.read);
    wanted && operand.constant.as_ref().is_some_and(|t| (0..t.len()).all(|i| t.float(i).abs() <= rows::SMALL))
}

/// Is a factor what is read, widened, but for its top bit?
fn is_plain(f: &Factor) -> bool {
    matches!(f.scalar.kind(), Kind::Cast(byte) if byte_read(*byte).is_some_and(|(read, _)| read == f.read))
}

/// Neighbours along k that the broadcast factor has side by side, four at most, or two; 1 if that is not so for all of k.
fn groups(c: &Compute, a: &Factor, operand: &Operand) -> usize {
    let axes = &c.reduction.as_ref().expect("a contraction reduces").axes;
    let index: Vec<Scalar> = a.index.iter().map(|&e| Scalar::index(e)).collect();
    let last = (c.dims.len() + axes.len() - 1) as u32;
    let side_by_side = operand.offset(&index).and_then(|o| o.affine_in(last)).is_some_and(|(step, _)| step == 1);
    let whole = |group: &i64| axes.last().and_then(|e| e.known()).is_some_and(|e| e % group == 0);
    if is_plain(a) && side_by_side { [4, 2].into_iter().find(whole).unwrap_or(1) as usize } else { 1 }
}

/// The first one of the register tiles with the fewest cycles.
fn fewest(tiles: &[([usize; 2], f64)]) -> Option<[usize; 2]> {
    let mut best = None;
    for &(tile, cycles) in tiles {
        if best.is_none_or(|(_, least)| cycles < least * 0.999) {
            best = Some((tile, cycles));
        }
    }
    best.map(|b| b.0)
}

/// Cycles of one round of the k loop, over all tiles.
pub(in crate::build) fn rounds((rows, columns): (i64, i64), (mr, nr): (usize, usize), vectors: usize, row: &Row) -> f64 {
    let tiles = (rows.max(1) as f64 / mr as f64).ceil() * (columns.max(1) as f64 / nr as f64).ceil();
    let steps = mr as f64 * (vectors as f64 / row.per_cycle + row.broadcast);
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
    let lanes = row.lanes(target, r.body.dtype().bytes()).clamp(1, p.nr);
    rounds((extent(&p.m), guess(c.dims[p.n])), (p.mr, p.nr), p.nr / lanes, row) * depth * extent(&batch) as f64
}

/// Tasks of blocks of `mc` rows and `nc` columns of a product of so many rows and columns and a batch.
fn tasks((rows, columns, batch): (i64, i64, i64), mc: usize, nc: usize) -> i64 {
    let of = |extent: i64, block: usize| (extent.max(1) as usize).div_ceil(block) as i64;
    batch * of(rows, mc) * of(columns, nc)
}

/// Are these fewer tasks than large products should have?
pub(in crate::build) fn few_tasks(size: (i64, i64, i64), mc: usize, nc: usize) -> bool {
    tasks(size, mc, nc) < MANY_TASKS
}

/// Rows and columns of a task. The loop over columns is the outer one: a panel of b, or so many `products` of it, stays in L2 while all rows of the task pass, so
/// the more rows a task has, the less often b comes from memory, unless all of b is short; a's block (`row` bytes a row) shall stay in L2 beside it, unless that leaves
/// too few rows. Large products have at least eight tasks.
pub(in crate::build) fn blocks(
    (rows, columns, depth, batch): (i64, i64, i64, i64),
    (products, row): (i64, i64),
    (mr, nr): (usize, usize),
    bytes: i64,
    l2_bytes: i64,
) -> (usize, usize) {
    let room = l2_bytes * 3 / 4 - products * nr as i64 * bytes;
    let mut mc = up((room / row.max(1)).max(FEWEST_ROWS), mr).min(up(rows, mr));
    let mut nc = up(columns, nr);
    // Where all panels stay in L2 anyway, what is read and written comes and goes row by row.
    if depth * columns * bytes <= l2_bytes / 4 && rows * (columns * bytes + row) > l2_bytes {
        mc = mc.min(up(FEWEST_ROWS, mr));
    }
    let work = batch * rows * columns * depth;
    let few = |mc: usize, nc: usize| few_tasks((rows, columns, batch), mc, nc);
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
