//! Plans: how a step becomes a loop nest, as pure data.
//!
//! [`choose`] looks at the step, the strides of its operands and the machine, and picks a kind with its sizes. A builder
//! turns step and plan into a nest; any legal plan of a step gives the same values (up to the order of float sums).

use crate::attention::Way;
use crate::build::network::Network;
use crate::build::stored::Stored;
use crate::build::tile::MMA;
use crate::build::turned::Turned;
use crate::build::updates::Updates;
use crate::build::{
    Operand, byte_blocks, contract, dots, elementwise, gemv, matrix, network, sort, sparse, tile, turned, updates, winograd,
};
use crate::fuse::is_contraction;
use crate::target::TargetDesc;
use infc_ir::DType;
use infc_ir::Expr;
use infc_ir::compute::{Compute, Reducer, Sort, Step};
use infc_ir::expr::Ranges;
use infc_ir::scalar::{Kind, Scalar};
use std::fmt;

/// How one step is computed.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// A contraction in register tiles.
    Brgemm(Brgemm),
    /// A convolution by minimal filtering.
    Winograd(Winograd),
    /// A contraction in tiles of the core's matrix unit.
    Matrix(Matrix),
    /// A contraction of few rows with a constant that is mostly 0.
    Sparse(Sparse),
    /// A product of bytes in blocks along k with scales of their own.
    ByteBlocks(ByteBlocks),
    /// A contraction of few columns.
    Dots(Dots),
    /// Every element on its own, vectors along one output axis.
    Elementwise(Elementwise),
    /// Squares of what lies along another axis than the result.
    Turned(Turned),
    /// A reduction with vectors along its last axis.
    RowReduce(RowReduce),
    /// A contraction in tiles of blocks of threads, through memory that they share.
    Tile(Tile),
    /// A contraction of few rows with a narrow constant matrix, whose columns blocks of threads take.
    Gemv(Gemv),
    /// So many steps on the same rows, one after another, a row to a warp.
    Chain(usize),
    /// Attention with all its steps, in tiles of blocks of threads, in parts of its keys or in strips of queries.
    Attention(Way),
    /// Every element on its own, each a task: for machines whose tasks are threads.
    Threads(Threads),
    /// Updates one after another.
    Scatter,
    /// Updates by many threads, into a base that is there.
    Updates(Updates),
    /// A running reduction, one line after another.
    Prefix,
    /// A heap for each line.
    Sort {
        /// Do the keys lie in it, beside the indices?
        packed: bool,
    },
    /// Lines in shared memory, each by a block of threads.
    Network(Network),
    /// Positions one after another.
    Filter,
    /// So many candidates side by side, or one after another.
    Choice(usize),
}

/// Sizes of a tiled contraction. Axes m are those of the first factor, n of the second; all other parallel axes are batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Brgemm {
    /// The factor (0 or 1) that is broadcast; the other one is read in vectors along n.
    pub broadcast: usize,
    /// The output axis that is n.
    pub n: usize,
    /// Output axes that together are m, outermost first.
    pub m: Vec<usize>,
    /// Rows of a register tile.
    pub mr: usize,
    /// Columns of a register tile.
    pub nr: usize,
    /// Rows of a task.
    pub mc: usize,
    /// Columns of a task.
    pub nc: usize,
    /// What of k a panel has at a time, if not all of it.
    pub kc: Option<Kc>,
    /// How the vector factor is brought into panels.
    pub panels: Panels,
    /// Does each task copy its rows of the broadcast factor, with neighbours along k side by side?
    pub copied: bool,
    /// Rows whose results come into scratch memory first, where results lie along rows (`build::contract`).
    pub along: Option<usize>,
    /// The narrow form in which a constant vector factor lies, if it does.
    pub stored: Option<Stored>,
    /// The row of [`crate::rows::ROWS`] that adds the products up.
    pub row: &'static str,
}

/// Sizes of a convolution by minimal filtering (`build::winograd`), on the axes of a [`Brgemm`] with packed panels; rows are tiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Winograd {
    /// Results of a tile along each axis of the window: 2 or 4.
    pub outputs: usize,
    /// The factor (0 or 1) that is the picture.
    pub broadcast: usize,
    /// The output axis that is n.
    pub n: usize,
    /// Output axes that together are m, outermost first.
    pub m: Vec<usize>,
    /// Those of them that tiles have `outputs` of, one or two.
    pub lines: Vec<usize>,
    /// The reduction axes of the window, in the order of `lines`.
    pub taps: Vec<usize>,
    /// The reduction axis of channels.
    pub channels: usize,
    /// Rows of a register tile.
    pub mr: usize,
    /// Columns of a register tile.
    pub nr: usize,
    /// Rows of a task.
    pub mc: usize,
    /// Columns of a task.
    pub nc: usize,
    /// The row of [`crate::rows::ROWS`] that adds the products up.
    pub row: &'static str,
}

/// Blocks along k: all rows of a task pass one before the next one comes, and their sums wait in scratch memory. A block has one value of each reduction axis
/// before `axis`, `size` neighbours along that, and all values of those behind it; the order of the products of a sum stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kc {
    /// The reduction axis.
    pub axis: usize,
    /// Its values in a block, a divisor of its extent.
    pub size: i64,
}

/// Sizes of a product of bytes in blocks along k.
#[derive(Clone, Debug, PartialEq)]
pub struct ByteBlocks {
    /// The output axis that is n.
    pub n: usize,
    /// Output axes that together are m, outermost first.
    pub m: Vec<usize>,
    /// Rows of a register tile.
    pub mr: usize,
    /// Columns of a register tile.
    pub nr: usize,
    /// Rows of a task.
    pub mc: usize,
    /// Columns of a task.
    pub nc: usize,
    /// How the weights are stored.
    pub stored: Stored,
}

/// Sizes of a contraction in tiles of the core's matrix unit, on the axes of a [`Brgemm`] with packed panels.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// The factor (0 or 1) that has the rows.
    pub broadcast: usize,
    /// The output axis that is n.
    pub n: usize,
    /// Output axes that together are m, outermost first.
    pub m: Vec<usize>,
    /// Rows of a tile.
    pub rows: usize,
    /// Products along k of one instruction.
    pub products: usize,
    /// Tiles of rows and of columns whose sums are made together.
    pub tiles: [usize; 2],
    /// Groups of so many tiles of rows in a task.
    pub groups: usize,
    /// Columns of a task.
    pub nc: usize,
    /// Each group of rows passes all columns of the task before the next one comes; otherwise each panel of columns passes all rows.
    pub rows_first: bool,
    /// Steps along k of a pass over the rows, after which sums wait in memory; `None` if one pass takes all.
    pub pass: Option<usize>,
    /// The row of [`crate::rows::ROWS`] that adds the products up.
    pub row: &'static str,
}

/// How the vector factor of a contraction lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panels {
    /// Packed at compile time: it is constant.
    Packed,
    /// Read where it lies: n is contiguous.
    InPlace,
    /// Packed into scratch by each task.
    Scratch,
}

/// A contraction over what is not 0 of a constant factor.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    /// The factor (0 or 1) that is constant.
    pub vector: usize,
    /// The output axis that is n.
    pub n: usize,
    /// Columns of a tile.
    pub lanes: usize,
    /// Tiles of a task.
    pub window: usize,
    /// How the weights are stored.
    pub form: Form,
    /// Bytes of them, tables included.
    pub bytes: usize,
}

/// How the weights of a sparse contraction are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One position along k for all columns of a tile.
    Blocks,
    /// Positions of each column.
    Gather,
    /// Positions of each column within a window of so many neighbours along k, which lies in registers.
    Lookup(usize),
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Blocks => f.write_str("Blocks"),
            Form::Gather => f.write_str("Gather"),
            Form::Lookup(width) => write!(f, "Lookup{width}"),
        }
    }
}

/// Sizes of a contraction with vectors along k.
#[derive(Clone, Debug, PartialEq)]
pub struct Dots {
    /// The output axis of the columns, all of which a tile takes; `None` if there is one column.
    pub every: Option<usize>,
    /// The output axis along which neighbours are computed together, and how many.
    pub along: usize,
    /// Neighbours of a tile.
    pub jam: usize,
    /// Lanes of a vector along the last axis of k.
    pub lanes: usize,
    /// Tiles of a task.
    pub chunk: usize,
}

/// Sizes of an elementwise nest.
#[derive(Clone, Debug, PartialEq)]
pub struct Elementwise {
    /// Output axes from outermost to innermost; the last one is vectorised.
    pub order: Vec<usize>,
    /// Lanes of a vector.
    pub lanes: usize,
    /// Positions along the last but one axis that are computed together: those of reductions share what they read; others are all that the axis
    /// has, and lie side by side.
    pub jam: usize,
    /// Values of the flattened outer axes that a task takes.
    pub chunk: usize,
    /// The reduction axis whose products are added up four at a time, by the row `byte_dot`.
    pub taps: Option<usize>,
}

/// Sizes of a row reduction.
#[derive(Clone, Debug, PartialEq)]
pub struct RowReduce {
    /// Lanes of a vector along the last reduction axis.
    pub lanes: usize,
    /// Rows of a task.
    pub chunk: usize,
}

/// Slots of each shared tile of a contraction in tiles that a block has where there is memory for them: one is used while the others are filled.
pub const SLOTS: usize = 4;

/// Sizes of a contraction in tiles of blocks of threads. Rows are the axes of one factor alone, columns those of the other; both are
/// flattened, all other parallel axes are batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// The factor (0 or 1) that has the rows.
    pub rows_of: usize,
    /// Output axes that are rows, outermost first.
    pub m: Vec<usize>,
    /// Output axes that are columns, outermost first.
    pub n: Vec<usize>,
    /// Rows, columns and products of the tile that a block has in shared memory.
    pub block: [usize; 3],
    /// Warps along rows and columns; threads along them where no matrix instruction is used.
    pub grid: [usize; 2],
    /// The factor that lies narrow, and is widened on its way into shared memory, with its form.
    pub stored: Option<(usize, Stored)>,
    /// It is for more rows than so many, if others are for fewer.
    pub above: Option<usize>,
    /// The row of [`crate::rows::ROWS`] that adds the products up.
    pub row: &'static str,
}

/// Sizes of a contraction of few rows with a narrow constant matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemv {
    /// The factor (0 or 1) that is the matrix.
    pub which: usize,
    /// The output axis of its columns.
    pub n: usize,
    /// Output axes that together are rows, outermost first.
    pub m: Vec<usize>,
    /// Rows, or the most of them where their number is open.
    pub rows: usize,
    /// Where it is open: it is for more rows than so many.
    pub above: Option<usize>,
    /// Columns of a thread.
    pub columns: usize,
    /// Threads that share a column.
    pub groups: usize,
    /// How the matrix is stored.
    pub stored: Stored,
}

impl Tile {
    /// Rows and columns of a matrix instruction's tile, as a warp has it. That of a warpgroup has all columns of the block.
    pub fn tile(&self) -> [usize; 2] {
        if self.row.starts_with("wgmma") { [MMA[0], self.block[1]] } else { MMA }
    }
    /// The sums that threads have, in registers: warp or thread, then what it has for itself.
    pub fn own(&self) -> Vec<usize> {
        let ([m, n, _], [down, across], [rows, columns]) = (self.block, self.grid, self.tile());
        match self.row.contains("mma_") {
            true => vec![down * across, m / down / rows, n / across / columns, rows, columns],
            false => vec![down * across, m / down, n / across],
        }
    }
}

/// One element to a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Threads {
    /// Output axes from outermost to innermost; neighbours along the last one are neighbouring tasks.
    pub order: Vec<usize>,
    /// Neighbours along the last axis that a task computes, which lie side by side in the result.
    pub wide: usize,
}

/// Elements' work that makes a task worth the trouble.
pub(crate) const TASK_WORK: i64 = 1 << 15;

/// The plan of a step. `operands` are its sources and, last, its result.
pub fn choose(step: &Step, operands: &[Operand], target: &TargetDesc) -> Plan {
    let heap = |s: &Sort| Plan::Sort { packed: sort::packs(s) };
    match step {
        Step::Scatter(s) if target.block_threads > 0 => Plan::Updates(updates::plan(s, operands)),
        Step::Scatter(_) => Plan::Scatter,
        Step::Prefix(_) => Plan::Prefix,
        Step::Sort(s) if target.block_threads > 0 => network::plan(s).map_or(heap(s), Plan::Network),
        Step::Sort(s) => heap(s),
        Step::Filter(_) => Plan::Filter,
        Step::Choice(_) if target.block_threads > 0 => Plan::Choice(1),
        Step::Choice(_) => Plan::Choice(target.lanes(DType::I32.bytes())),
        Step::Compute(c) if target.block_threads > 0 => {
            if is_contraction(c)
                && let Some(plan) = gemv::plan(c, operands)
            {
                return Plan::Gemv(plan);
            }
            if is_contraction(c)
                && let Some(plan) = tile::plan(c, operands, target)
            {
                return Plan::Tile(plan);
            }
            match row_reduce(c, operands, crate::loops::WARP as usize) {
                Some(plan) => Plan::RowReduce(RowReduce { chunk: 1, ..plan }),
                None => Plan::Threads(threads(c, operands)),
            }
        }
        Step::Compute(c) => {
            if let Some(plan) = byte_blocks::plan(c, operands, target) {
                return Plan::ByteBlocks(plan);
            }
            if is_contraction(c)
                && let Some(plan) = sparse::plan(c, operands, target)
            {
                return Plan::Sparse(plan);
            }
            if is_contraction(c)
                && let Some(plan) = dots::plan(c, operands, target)
            {
                return Plan::Dots(plan);
            }
            if is_contraction(c)
                && let Some(plan) = contract::plan(c, operands, target)
            {
                if let Some(plan) = winograd::plan(c, operands, &plan, target) {
                    return Plan::Winograd(plan);
                }
                return match matrix::plan(c, operands, &plan, target) {
                    Some(plan) => Plan::Matrix(plan),
                    None => Plan::Brgemm(plan),
                };
            }
            if let Some(plan) = row_reduce(c, operands, target.lanes(widest(c))) {
                return Plan::RowReduce(plan);
            }
            match turned::plan(c, operands, target) {
                Some(plan) => Plan::Turned(plan),
                None => Plan::Elementwise(elementwise(c, operands, target)),
            }
        }
    }
}

/// The value of an extent, or a guess for a symbolic one.
pub fn guess(e: Expr) -> i64 {
    e.known().unwrap_or(32)
}

/// Elements from which on there are threads enough though each takes several.
const MANY: i64 = 1 << 16;

fn threads(c: &Compute, operands: &[Operand]) -> Threads {
    let order = in_memory_order(c, operands);
    let out = &operands[operands.len() - 1];
    // As many as 16 bytes of the widest elements hold.
    let bytes = operands.iter().map(|o| o.buffer.dtype.bytes()).max().unwrap_or(1);
    let wide = if bytes > 4 { 2 } else { 4 };
    let all: Option<i64> = c.dims.iter().map(|d| d.known()).product();
    let fits = order.last().is_some_and(|&a| out.buffer.strides[a].is(1) && c.dims[a].known().is_some_and(|n| n % wide == 0));
    let wide = if c.reduction.is_none() && fits && all.is_some_and(|n| n >= MANY) { wide as usize } else { 1 };
    Threads { order, wide }
}

/// Output axes, outermost first: by falling stride; unit axes first of all.
pub(crate) fn in_memory_order(c: &Compute, operands: &[Operand]) -> Vec<usize> {
    let out = &operands[operands.len() - 1];
    let mut order: Vec<usize> = (0..c.dims.len()).collect();
    order.sort_by_key(|&a| (if c.dims[a].is(1) { 0 } else { 1 }, std::cmp::Reverse(stride_rank(out, a)), a));
    order
}

fn elementwise(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Elementwise {
    let mut order = in_memory_order(c, operands);
    let widest = widest(c);
    let lanes = target.lanes(widest);
    if let Some(k) = long_axis(c, &order, operands, lanes) {
        let axis = order.remove(k);
        order.push(axis);
    }
    if let Some(better) = along_data(c, &order, operands) {
        order = better;
    }
    // A short last axis takes narrower vectors.
    let last = order.last().map_or(1, |&a| guess(c.dims[a]));
    let lanes = (1..=lanes).rev().filter(|l| l.is_power_of_two()).find(|&l| l as i64 <= last.max(1)).unwrap_or(1);
    // Windows (depthwise convolution, pooling) share weights between neighbours; a few chains hide the latency.
    let windowed = c
        .reduction
        .as_ref()
        .is_some_and(|r| r.kind.combine().is_some() && r.axes.iter().all(|e| e.known().is_some_and(|e| e <= WINDOW)));
    let next = order.len().checked_sub(2).map_or(1, |k| guess(c.dims[order[k]]));
    // Neighbours share more of what wide windows read, and what has to be widened before it is used; all that they read, weights and sums shall stay in registers.
    let most = (i64::from(target.vector_registers) - 4) / 2;
    let wide =
        c.reduction.as_ref().is_some_and(|r| r.axes.last().and_then(|e| e.known()).is_some_and(|e| e >= 5) || widens(r.body));
    let wanted: Vec<i64> =
        if wide { [8, 7, 6, 5, 4] } else { [4, 7, 5, 6, 8] }.into_iter().filter(|&j| j <= most.max(4)).collect();
    let jam = match side_by_side(c, &order, operands, lanes) {
        Some(all) => all,
        None if windowed => neighbours(next, &wanted),
        None if lanes >= 4 && looks_up(c, &order) => (2..=8).rev().find(|j| next % j == 0).unwrap_or(1) as usize,
        None => 1,
    };
    let inner: i64 = if jam > 1 { next } else { 1 }
        * last.max(1)
        * c.reduction.as_ref().map_or(1, |r| r.axes.iter().map(|&e| guess(e).max(1)).product());
    let chunk = (TASK_WORK / inner.max(1)).clamp(1, 4096) as usize;
    let skip = if jam > 1 { 2 } else { 1 };
    let outer: Option<i64> = order.iter().rev().skip(skip).map(|&a| c.dims[a].known()).product();
    let chunk = outer.map_or(chunk, |o| chunk.min(o.max(1) as usize));
    let taps = if jam > 1 && lanes >= 4 { elementwise::taps(c, operands, *order.last().expect("an axis"), target) } else { None };
    Elementwise { order, lanes, jam, chunk, taps }
}

/// Longest axis of what is a window, whose neighbours are computed together.
const WINDOW: i64 = 128;

/// Does it widen 16 bits that it reads?
fn widens(s: Scalar) -> bool {
    let mut found = false;
    s.visit(&mut |n| {
        if let Kind::Cast(x) = n.kind() {
            found |= matches!(x.dtype(), DType::BF16 | DType::F16) && matches!(x.kind(), Kind::Read { .. });
        }
    });
    found
}

/// How many neighbours of a line are computed together: the first of `wanted` that divides the line, else what leaves the least to compute
/// twice.
pub fn neighbours(line: i64, wanted: &[i64]) -> usize {
    let most = wanted.iter().copied().max().unwrap_or(1);
    let few = most.min(4);
    let whole = wanted.iter().copied().find(|j| line % j == 0);
    let least = (few..=most).rev().min_by_key(|j| (line + j - 1) / j * j);
    if line <= few { line.max(1) as usize } else { whole.or(least).unwrap_or(1) as usize }
}

/// Where the last axis of the result is too short for vectors, as that of a picture's channels: the place in `order` of a long axis along which all
/// is read side by side or stays. Its elements are stored one by one.
fn long_axis(c: &Compute, order: &[usize], operands: &[Operand], lanes: usize) -> Option<usize> {
    let long = |a: usize| guess(c.dims[a]) >= lanes as i64;
    if c.reduction.is_some() || order.last().is_none_or(|&a| guess(c.dims[a]) > lanes as i64 / 2) {
        return None;
    }
    (0..order.len() - 1).rev().find(|&k| {
        let axis = order[k] as u32;
        let mut good = long(order[k]);
        c.value.visit(&mut |n| {
            if let Kind::Read { source, index, .. } = n.kind() {
                let step = operands[*source as usize].offset(index).and_then(|o| o.affine_in(axis));
                good &= matches!(step, Some((0 | 1, _)));
            }
        });
        good
    })
}

/// Another order for windows over data that does not lie as the result does, as data with channels first where results have them last: vectors along an
/// axis on which fewer of the accesses of an element are apart, with the axis before it for neighbours that share what they read.
fn along_data(c: &Compute, order: &[usize], operands: &[Operand]) -> Option<Vec<usize>> {
    let r = c.reduction.as_ref().filter(|r| r.kind.combine().is_some())?;
    let taps: i64 = r.axes.iter().map(|e| e.known()).product::<Option<i64>>()?;
    let [.., next, last] = order else { return None };
    let mut guarded = false;
    // Quarters of an access for each lane: constants are packed, and steps of a few elements are a few loads and shuffles.
    let mut apart = |axis: usize| {
        let mut sum = if operands[operands.len() - 1].buffer.strides[axis].is(1) { 0 } else { 4 };
        for (s, times) in [(r.body, taps), (c.value, 1)] {
            s.visit(&mut |n| {
                let Kind::Read { source, index, guard } = n.kind() else { return };
                guarded |= guard.is_some();
                let operand = &operands[*source as usize];
                let step = operand.offset(index).and_then(|o| o.affine_in(axis as u32)).map(|s| s.0);
                sum += match step {
                    _ if operand.constant.is_some() => 0,
                    Some(0 | 1) => 0,
                    Some(2..=4) => times,
                    _ => 4 * times,
                };
            });
        }
        sum
    };
    let (now, better) = (apart(*last), apart(*next));
    let long = c.dims[*next].known().is_some_and(|n| n >= 8);
    if guarded || !long || order.len() < 3 || now <= 2 * better {
        return None;
    }
    let mut new = order.to_vec();
    new.pop();
    new.insert(order.len() - 3, *last);
    Some(new)
}

/// Elements of the last but one axis, if they lie side by side in the result and those of the last axis are as far apart as a few of them: then what would
/// be stored one by one is stored in words.
fn side_by_side(c: &Compute, order: &[usize], operands: &[Operand], lanes: usize) -> Option<usize> {
    let [.., next, last] = order else { return None };
    let strides = &operands[operands.len() - 1].buffer.strides;
    let (count, step) = (c.dims[*next].known()?, strides[*last].known()?);
    let few = (2..=4).contains(&count) && (count..=4).contains(&step);
    (c.reduction.is_none() && lanes >= 4 && few && strides[*next].is(1)).then_some(count as usize)
}

/// Does it read where data tells, at places that are the same for neighbours of the last but one axis, as samples of all channels of a picture? What tells the place is computed once for them.
fn looks_up(c: &Compute, order: &[usize]) -> bool {
    let [.., next, _] = order else { return false };
    let mut found = false;
    c.value.visit(&mut |n| {
        let Kind::Read { index, .. } = n.kind() else { return };
        let told = |i: &&Scalar| i.as_index().is_none();
        let uses = |s: &Scalar| {
            let mut uses = false;
            s.visit(&mut |n| uses |= n.as_index().is_some_and(|e| e.uses_var(*next as u32)));
            uses
        };
        found |= index.iter().any(|i| i.as_index().is_some_and(|e| e.uses_var(*next as u32)))
            && index.iter().filter(told).count() > 0
            && !index.iter().filter(told).any(uses);
    });
    c.reduction.is_none() && found && c.dims[*next].known().is_some()
}

/// The widest element in the computation, which decides how many lanes fit a register.
pub(crate) fn widest(c: &Compute) -> usize {
    let mut bytes = 1;
    for s in Step::Compute(c.clone()).scalars() {
        s.visit(&mut |n| {
            if !matches!(n.kind(), Kind::Index(_)) && n.as_index().is_none() {
                bytes = bytes.max(n.dtype().bytes());
            }
        });
    }
    bytes
}

/// An axis's stride as a number to sort by; symbolic strides are large.
fn stride_rank(o: &Operand, axis: usize) -> i64 {
    let strides = &o.buffer.strides;
    strides[axis].known().unwrap_or_else(|| {
        // More symbolic factors, larger stride.
        let dims =
            o.buffer.dims.iter().zip(strides).filter(|&(_, &s)| strides[axis] != s && s.div_exact(strides[axis]).is_none());
        (1 << 40) + dims.count() as i64
    })
}

/// A reduction whose last axis is contiguous in what it reads, while the result's innermost axis is not.
fn row_reduce(c: &Compute, operands: &[Operand], lanes: usize) -> Option<RowReduce> {
    let r = c.reduction.as_ref()?;
    if matches!(r.kind, Reducer::ArgMax { .. } | Reducer::ArgMin { .. }) {
        return None;
    }
    let extent = *r.axes.last()?;
    let last = (c.dims.len() + r.axes.len() - 1) as u32;
    if lanes < 2 || extent.known().is_some_and(|e| e < lanes as i64) {
        return None;
    }
    let (mut contiguous, mut bad, mut outer_contiguous) = (false, false, false);
    let out = &operands[operands.len() - 1];
    let inner = (0..c.dims.len()).filter(|&a| out.buffer.strides[a].is(1) && !c.dims[a].is(1)).last();
    r.body.visit(&mut |n| {
        if let Kind::Read { source, index, .. } = n.kind() {
            let offset = operands[*source as usize].offset(index);
            match offset.and_then(|o| o.affine_in(last)) {
                Some((1, _)) => contiguous = true,
                Some((0, _)) => {}
                _ => bad = true,
            }
            // What is the same for a whole row, as a mean of it, is read once for it.
            let moves = |o: Expr| (c.dims.len()..=last as usize).any(|k| o.uses_var(k as u32));
            if let (Some(a), Some(o)) = (inner, offset.filter(|&o| moves(o))) {
                outer_contiguous |= matches!(o.affine_in(a as u32), Some((1, _)));
            }
        }
    });
    if !contiguous || bad || outer_contiguous {
        return None;
    }
    let row: i64 = r.axes.iter().map(|&e| guess(e).max(1)).product();
    let rows = Expr::product(c.dims.iter().copied()).range(&Ranges::default()).hi.max(1);
    let chunk = (TASK_WORK / row.max(1)).clamp(1, 1024).min(rows) as usize;
    Some(RowReduce { lanes, chunk })
}

/// Text form, as `infc inspect` shows it.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plan::Brgemm(b) => {
                write!(
                    f,
                    "brgemm mr={} nr={} mc={} nc={} m={:?} n={} broadcast={} panels={:?} row={}",
                    b.mr, b.nr, b.mc, b.nc, b.m, b.n, b.broadcast, b.panels, b.row
                )?;
                f.write_str(if b.copied { " rows=Scratch" } else { "" })?;
                b.along.map_or(Ok(()), |rows| write!(f, " results=Scratch of {rows}"))?;
                b.kc.map_or(Ok(()), |kc| write!(f, " kc={} of axis {}", kc.size, kc.axis))?;
                b.stored.map_or(Ok(()), |s| write!(f, " stored={s}"))
            }
            Plan::Winograd(w) => {
                write!(
                    f,
                    "winograd outputs={} axes={} mr={} nr={} mc={} nc={} m={:?} n={} broadcast={} row={}",
                    w.outputs,
                    w.lines.len(),
                    w.mr,
                    w.nr,
                    w.mc,
                    w.nc,
                    w.m,
                    w.n,
                    w.broadcast,
                    w.row
                )
            }
            Plan::Matrix(p) => {
                let [down, across] = p.tiles;
                write!(
                    f,
                    "matrix rows={} products={} tiles={down}x{across} groups={} nc={} m={:?} n={} broadcast={} row={}",
                    p.rows, p.products, p.groups, p.nc, p.m, p.n, p.broadcast, p.row
                )?;
                if p.rows_first {
                    write!(f, " rows first")?;
                }
                p.pass.map_or(Ok(()), |n| write!(f, " pass={n}"))
            }
            Plan::Sparse(s) => {
                write!(
                    f,
                    "sparse form={} lanes={} window={} n={} constant={} bytes={}",
                    s.form, s.lanes, s.window, s.n, s.vector, s.bytes
                )
            }
            Plan::ByteBlocks(b) => {
                write!(f, "byte_blocks mr={} nr={} mc={} nc={} m={:?} n={} stored={}", b.mr, b.nr, b.mc, b.nc, b.m, b.n, b.stored)
            }
            Plan::Dots(d) => {
                write!(f, "dots along={} jam={} lanes={} chunk={}", d.along, d.jam, d.lanes, d.chunk)?;
                d.every.map_or(Ok(()), |a| write!(f, " every={a}"))
            }
            Plan::Elementwise(e) => {
                write!(f, "elementwise order={:?} lanes={} jam={} chunk={}", e.order, e.lanes, e.jam, e.chunk)?;
                e.taps.map_or(Ok(()), |k| write!(f, " taps={k}"))
            }
            Plan::Turned(t) => {
                let [down, across] = t.size;
                write!(
                    f,
                    "turned order={:?} along={} whole={} squares={down}x{across} lanes={} chunk={}",
                    t.order, t.along, t.whole, t.lanes, t.chunk
                )
            }
            Plan::RowReduce(r) => write!(f, "row_reduce lanes={} chunk={}", r.lanes, r.chunk),
            Plan::Tile(t) => {
                let ([m, n, k], [down, across]) = (t.block, t.grid);
                write!(
                    f,
                    "tile m={:?} n={:?} rows_of={} block={m}x{n}x{k} grid={down}x{across} row={}",
                    t.m, t.n, t.rows_of, t.row
                )?;
                t.above.map_or(Ok(()), |n| write!(f, " above={n}"))?;
                t.stored.map_or(Ok(()), |(_, s)| write!(f, " stored={s}"))
            }
            Plan::Gemv(g) => {
                write!(f, "gemv rows={} m={:?} n={} columns={} groups={}", g.rows, g.m, g.n, g.columns, g.groups)?;
                g.above.map_or(Ok(()), |n| write!(f, " above={n}"))?;
                write!(f, " stored={}", g.stored)
            }
            Plan::Attention(way) => write!(f, "{way}"),
            Plan::Chain(steps) => write!(f, "chain steps={steps}"),
            Plan::Threads(t) => write!(f, "threads order={:?} wide={}", t.order, t.wide),
            Plan::Scatter => f.write_str("scatter"),
            Plan::Prefix => f.write_str("prefix"),
            Plan::Updates(u) => write!(f, "updates apart={:?} owners={}", u.apart, u.owners),
            Plan::Sort { packed } => write!(f, "sort packed={packed}"),
            Plan::Network(n) => write!(f, "network size={} kept={}", n.size, n.kept),
            Plan::Filter => f.write_str("filter"),
            Plan::Choice(lanes) => write!(f, "choice lanes={lanes}"),
        }
    }
}
