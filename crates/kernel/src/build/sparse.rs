//! Contractions with few rows and a constant factor that is mostly 0: only what is not 0 is stored and multiplied.
//!
//! The constant's columns (axis n) are cut into tiles of as many as a vector has lanes. Three forms:
//!
//! - *Blocks*: for each tile the positions along k where any of its columns is not 0, with a vector of weights for each, filled up to a
//!   multiple of four. A step broadcasts one element of the data. Fits weights that were pruned in blocks.
//! - *Gather*: each lane has positions of its own, 16 bits each; a step gathers as many elements of the data. The columns of a task are
//!   sorted by how many weights they have, so that the lanes of a tile end together. Fits weights pruned one by one.
//! - *Lookup*: as Gather, but lanes wait for each other so that the positions of four steps lie in one window of the data, which is loaded
//!   into registers; an instruction then picks an element for each lane by a position of 8 bits. Windows begin where a vector does, at or
//!   before the first position that any lane still wants; a lane whose next position lies beyond the window adds 0 in that step. Wider windows
//!   make lanes wait less and cost more instructions.
//!
//! All of it is one buffer of 32-bit words, packed at compile time: first row of each tile, column of each lane (gather, lookup), positions
//! (blocks) or windows (lookup), weights. Class: reassociated; products with weights that are 0 are left out, but for those that fill up
//! steps: an infinity or NaN in the data reaches all columns whose weight for it is not 0, and may reach others, as it does in the dense product.

use super::contract::{Factor, factors, pack_index};
use super::elementwise::with_accumulator;
use super::{Cx, Operand, for_each, pack};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::{Form, Sparse};
use crate::target::TargetDesc;
use infc_ir::compute::{Compute, Reducer};
use infc_ir::scalar::{Binary, Scalar};
use infc_ir::{DType, Expr, Tensor};

/// More rows than this are better off with dense tiles.
const MAX_ROWS: i64 = 4;
/// Tiles of a task.
const WINDOW: usize = 16;
/// Bytes a cycle that come from the second level of cache, and from beyond.
const NEAR: f64 = 32.0;
const FAR: f64 = 26.0;
/// Of the shorter one of computing and fetching this share is not hidden behind the longer one.
const BOTH: f64 = 0.15;
/// Cycles for each lane of a gather, and for a step of blocks.
const GATHER: f64 = 1.55;
const STEP: f64 = 1.5;
/// Cycles for a step of lookups, and for each instruction that picks or selects, with 16 lanes and with less.
const PICK: [[f64; 2]; 2] = [[1.1, 0.75], [0.5, 0.5]];
/// Steps that are taken together, each with a sum of its own, since one sum would wait for the last addition. Lookups share a window among
/// them: as many as a word has positions.
const STEPS: usize = 4;
/// Vectors of the widest window.
const WIDEST: usize = 8;

/// The contraction in the terms of this builder.
struct View {
    vector: usize,
    n: usize,
    /// Which reduction axis is k; all others have one element.
    k: usize,
    columns: usize,
    depth: usize,
    /// Elements of all other axes of the result.
    rows: usize,
    panels: Tensor,
}

fn view(c: &Compute, operands: &[Operand], lanes: usize) -> Option<View> {
    let r = c.reduction.as_ref()?;
    let f = factors(c)?;
    let vector = (0..2).find(|&k| operands[f[k].source].constant.is_some())?;
    let plain = |f: &Factor| f.scalar == f.read && f.read.dtype() == DType::F32;
    let (a, b) = (&f[1 - vector], &f[vector]);
    if r.kind != Reducer::Sum || !plain(a) || !plain(b) || operands[a.source].constant.is_some() {
        return None;
    }
    let rank = c.dims.len();
    let mut long = (0..r.axes.len()).filter(|&k| !r.axes[k].is(1));
    let (k, None) = (long.next()?, long.next()) else { return None };
    let at_k = Expr::var(rank + k);
    // The data is read at k itself along one axis.
    if a.index.iter().filter(|e| **e == at_k).count() != 1 || a.index.iter().any(|e| *e != at_k && e.uses_var((rank + k) as u32))
    {
        return None;
    }
    let uses = |f: &Factor, axis: usize| f.index.iter().any(|e| e.uses_var(axis as u32));
    let mut only = (0..rank).filter(|&x| uses(b, x) && !c.dims[x].is(1));
    let (n, None) = (only.next()?, only.next()) else { return None };
    let rows = Expr::product((0..rank).filter(|&x| x != n).map(|x| c.dims[x])).known()?;
    let (columns, depth) = (c.dims[n].known()? as usize, r.axes[k].known()? as usize);
    if uses(a, n) || !(1..=MAX_ROWS).contains(&rows) || depth > 1 << 16 {
        return None;
    }
    let index = pack_index(b, n, c, r.axes.len())?;
    let tensor = operands[b.source].constant.as_ref()?;
    let zeros = tensor.bytes().chunks_exact(4).filter(|v| **v == [0; 4] || **v == [0, 0, 0, 0x80]).count();
    if zeros * 5 < tensor.len() * 2 || tensor.len() < 1 << 10 {
        return None;
    }
    let extents: Vec<usize> = r.axes.iter().map(|e| e.known().unwrap_or(1) as usize).collect();
    let panels = pack::panels(tensor, &index, columns, &extents, lanes)?;
    Some(View { vector, n, k, columns, depth, rows: rows as usize, panels })
}

/// The plan, if it is predicted to be faster than dense tiles by the figures above (measured on AMD's Zen).
pub fn plan(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<Sparse> {
    let lanes = target.lanes(4);
    let v = view(c, operands, lanes).filter(|_| lanes >= 4 && lanes.is_power_of_two())?;
    let (tiles, rows) = (v.columns.div_ceil(lanes), v.rows as f64);
    let rate = |bytes: f64| if bytes <= target.l2_bytes as f64 { NEAR } else { FAR };
    let time = |steps: f64, bytes: f64| {
        let fetch = bytes / rate(bytes);
        steps.max(fetch) + BOTH * steps.min(fetch)
    };
    // Dense tiles take all rows at once, the forms here one after another.
    let dense = time(rows * (tiles * v.depth) as f64, (tiles * v.depth * lanes * 4) as f64);
    let lists = lists(&v, lanes);
    let widths = (1..=WIDEST.ilog2()).filter(|_| target.lookup > 0).map(|p| Form::Lookup(lanes << p));
    let all = [Form::Blocks, Form::Gather].into_iter().chain(widths).map(|form| {
        let packed = packed(&v, &lists, lanes, form);
        let words = packed.words.len();
        let steps = match form {
            Form::Blocks => ((packed.words.len() / lanes - packed.weights) as f64) * STEP,
            Form::Gather => words as f64 / 3.0 * 2.0 * GATHER,
            Form::Lookup(width) => lookups(&v, &packed, lanes, width, target),
        };
        (form, rows * time(steps, (words * 4) as f64), words * 4)
    });
    let best = all.min_by(|a, b| a.1.total_cmp(&b.1))?;
    (best.1 < dense).then_some(Sparse { vector: v.vector, n: v.n, lanes, window: WINDOW, form: best.0, bytes: best.2 })
}

/// The share of the weights that are not 0.
pub fn share(c: &Compute, operands: &[Operand], p: &Sparse) -> f64 {
    let weights = factors(c).and_then(|f| operands[f[p.vector].source].constant.clone());
    weights
        .filter(|t| !t.is_empty())
        .map_or(1.0, |t| t.to_vec::<f32>().iter().filter(|&&v| v != 0.0).count() as f64 / t.len() as f64)
}

/// Cycles of the instructions of lookups.
fn lookups(v: &View, packed: &Words, lanes: usize, width: usize, target: &TargetDesc) -> f64 {
    let steps = (packed.words.len() / packed.width - packed.weights) * STEPS;
    let picks = (width / lanes).div_ceil(target.lookup as usize);
    let [step, pick] = PICK[usize::from(lanes < 16)];
    // Each task copies the data.
    let copies = v.columns.div_ceil(lanes * WINDOW) * v.depth.div_ceil(lanes) * 2;
    steps as f64 * (step + pick * (2 * picks - 1) as f64) + copies as f64
}

/// The weight of column `tile * lanes + lane` at `k`.
fn weight(v: &View, lanes: usize, tile: usize, k: usize, lane: usize) -> f32 {
    let at = ((tile * v.depth + k) * lanes + lane) * 4;
    f32::from_le_bytes(v.panels.bytes()[at..at + 4].try_into().expect("four bytes"))
}

/// For each tile the positions where any column is not 0.
fn blocks(v: &View, lanes: usize) -> Vec<Vec<usize>> {
    let any = |t: usize, k: usize| (0..lanes).any(|l| weight(v, lanes, t, k, l) != 0.0);
    (0..v.columns.div_ceil(lanes)).map(|t| (0..v.depth).filter(|&k| any(t, k)).collect()).collect()
}

/// The columns of each task, those with most weights first: number in the task, and positions and weights that are not 0.
fn lists(v: &View, lanes: usize) -> Vec<Vec<Column>> {
    let tiles = v.columns.div_ceil(lanes);
    let window = |first: usize| {
        let list = |column: usize| {
            let (t, l) = (first + column / lanes, column % lanes);
            let weights = (0..v.depth).map(|k| (k, weight(v, lanes, t, k, l))).filter(|x| x.1 != 0.0).collect();
            Column { number: column as u32, weights }
        };
        let mut columns: Vec<Column> = (0..(tiles - first).min(WINDOW) * lanes).map(list).collect();
        columns.sort_by_key(|c| (std::cmp::Reverse(c.weights.len()), c.number));
        columns
    };
    (0..tiles).step_by(WINDOW).map(window).collect()
}

struct Column {
    number: u32,
    weights: Vec<(usize, f32)>,
}

/// The words, and where their parts begin, in rows of `width` words. The first row of each tile comes first.
struct Words {
    words: Vec<u32>,
    width: usize,
    /// First row of the columns of the lanes (gather, lookup), or of the positions (blocks).
    second: usize,
    /// First row of the windows (lookup).
    windows: usize,
    /// First row of the weights.
    weights: usize,
}

fn packed(v: &View, lists: &[Vec<Column>], lanes: usize, form: Form) -> Words {
    let tiles = v.columns.div_ceil(lanes);
    let width = match form {
        Form::Blocks => lanes,
        Form::Gather => 3 * lanes,
        Form::Lookup(_) => (1 + STEPS) * lanes,
    };
    let second = (tiles + 1).div_ceil(width);
    // First row of each tile, counted in its part; columns or positions; windows; weights.
    let mut parts: [Vec<u32>; 4] = Default::default();
    let [starts, middle, windows, rest] = &mut parts;
    match form {
        Form::Blocks => {
            for (t, list) in blocks(v, lanes).into_iter().enumerate() {
                starts.push(middle.len() as u32);
                for &k in &list {
                    middle.push(k as u32);
                    rest.extend((0..lanes).map(|l| weight(v, lanes, t, k, l).to_bits()));
                }
                middle.resize(middle.len().next_multiple_of(STEPS), 0);
                rest.resize(middle.len() * lanes, 0);
            }
            starts.push(middle.len() as u32);
        }
        Form::Gather | Form::Lookup(_) => {
            for tile in lists.iter().flat_map(|window| window.chunks(lanes)) {
                starts.push((rest.len() / width) as u32);
                middle.extend(tile.iter().map(|c| c.number));
                match form {
                    Form::Lookup(wide) => look_up(tile, wide, windows, rest),
                    _ => gather(tile, rest),
                }
            }
            starts.push((rest.len() / width) as u32);
        }
    }
    // A power of two of the windows to a row, so that shifts find them.
    if !windows.is_empty() {
        let chunks = windows.chunks(STEPS * lanes).flat_map(|c| c.iter().copied().chain(std::iter::repeat_n(0, width - c.len())));
        *windows = chunks.collect();
    }
    let mut words = vec![];
    let firsts = parts.map(|part| {
        let first = words.len() / width;
        words.extend(part);
        words.resize(words.len().next_multiple_of(width), 0);
        first
    });
    debug_assert_eq!(firsts[1], second);
    Words { words, width, second, windows: firsts[2], weights: firsts[3] }
}

/// The steps of a tile, two in a row: positions, and weights of both.
fn gather(tile: &[Column], rest: &mut Vec<u32>) {
    let steps = tile.iter().map(|c| c.weights.len()).max().unwrap_or(0).div_ceil(2);
    let entry = |c: &Column, s: usize| c.weights.get(s).copied().unwrap_or((0, 0.0));
    for s in 0..steps {
        rest.extend(tile.iter().map(|c| entry(c, 2 * s).0 as u32 | (entry(c, 2 * s + 1).0 as u32) << 16));
        rest.extend(tile.iter().map(|c| entry(c, 2 * s).1.to_bits()));
        rest.extend(tile.iter().map(|c| entry(c, 2 * s + 1).1.to_bits()));
    }
}

/// The steps of a tile, four in a row with one window of `wide` elements: positions in it, and the weights of each step. Windows are
/// counted in vectors.
fn look_up(tile: &[Column], wide: usize, windows: &mut Vec<u32>, rest: &mut Vec<u32>) {
    let lanes = tile.len();
    let mut done = vec![0; lanes];
    while let Some(next) = tile.iter().zip(&done).filter_map(|(c, &d)| c.weights.get(d)).map(|w| w.0).min() {
        let first = next / lanes * lanes;
        windows.push((next / lanes) as u32);
        let at = rest.len();
        rest.resize(at + (1 + STEPS) * lanes, 0);
        for (lane, (column, done)) in tile.iter().zip(&mut done).enumerate() {
            let here = column.weights[*done..].iter().take(STEPS).take_while(|w| w.0 < first + wide);
            for (s, &(k, weight)) in here.enumerate() {
                rest[at + lane] |= ((k - first) as u32) << (8 * s);
                rest[at + (1 + s) * lanes + lane] = weight.to_bits();
                *done += 1;
            }
        }
    }
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, p: &Sparse) {
    let v = view(c, cx.operands, p.lanes).expect("checked by the plan");
    let f = factors(c).expect("checked by the plan");
    let (a, b) = (&f[1 - v.vector], &f[v.vector]);
    let words = packed(&v, &lists(&v, p.lanes), p.lanes, p.form);
    let dims = [words.words.len() / words.width, words.width];
    cx.pack(b.source, Tensor::from_vec(dims, words.words.clone()));
    cx.buffers[b.source].dtype = DType::U32;
    let (rank, lanes, window) = (c.dims.len(), p.lanes as i64, p.window as i64);
    let tiles = v.columns.div_ceil(p.lanes) as i64;
    let rows: Vec<usize> = (0..rank).filter(|&x| x != v.n).collect();
    let mut grid: Vec<Expr> = rows.iter().map(|&x| c.dims[x]).collect();
    grid.push(Expr::int(tiles).div_ceil(Expr::int(window)));
    cx.tasks = Expr::product(grid.iter().copied());
    let place = Expr::delinearise(cx.task, &grid);
    let mut axes = vec![Expr::int(0); rank];
    rows.iter().zip(&place).for_each(|(&x, &e)| axes[x] = e);
    let first = place[rows.len()] * window;
    let sums = cx.scratch("sums", DType::F32, &[p.window * p.lanes], Space::Tile);
    let sums_of_lane = if p.form == Form::Gather { 1 } else { STEPS };
    let acc = cx.scratch("acc", DType::F32, &[sums_of_lane, p.lanes], Space::Reg);
    let at = cx.scratch("at", DType::I64, &[1], Space::Reg);
    let (tile, zero) = (cx.var("tile"), [Expr::int(0)]);
    let number = first + tile;
    let table = |e: Expr| {
        let (row, column) = (e.div(Expr::from(words.width)), e.rem(Expr::from(words.width)));
        Scalar::read_at(DType::U32, b.source, &[row, column]).cast(DType::I64)
    };
    let (now, end) = (cx.local(), cx.local());
    let local = |n: u32| Scalar::local(DType::I64, n);
    // The data at a position that comes from a table.
    let data = |k: Scalar| {
        let index =
            a.index.iter().map(|&e| if e == Expr::var(rank + v.k) { k } else { Scalar::index(e.subst(&padded(&axes, c))) });
        Scalar::read(DType::F32, a.source, index.collect::<Vec<_>>())
    };
    let copy = match p.form {
        Form::Lookup(width) => Some(windows(cx, v.depth, lanes, width, &|e| data(Scalar::index(e)))),
        Form::Blocks | Form::Gather => None,
    };
    let word = |row: Scalar, column: Expr| Scalar::read(DType::U32, b.source, [row, Scalar::index(column)]);
    let add = |sum: Scalar, x: Scalar, w: Scalar, fma: bool| match fma {
        true => Scalar::fma(x, w.bitcast(DType::F32), sum),
        false => sum + x * w.bitcast(DType::F32),
    };
    let fma = cx.target.fma;
    let vector = |var: Expr, body: Stmt| for_each(var, Expr::int(lanes), LoopKind::Vector, vec![body]);
    let weights = local(now) + Scalar::index(Expr::from(words.weights));
    let round = |cx: &mut Cx| match p.form {
        Form::Blocks => {
            let shift = Scalar::index(Expr::int(p.lanes.trailing_zeros().into()));
            let row = Scalar::binary(Binary::Shr, local(now), shift) + Scalar::index(Expr::from(words.second));
            let column = Scalar::binary(Binary::And, local(now), Scalar::index(Expr::int(lanes - 1)));
            let mut round = vec![];
            for s in 0..STEPS as i64 {
                let step = cx.var("lane");
                let k = Scalar::read(DType::U32, b.source, [row, column + Scalar::index(Expr::int(s))]).cast(DType::I64);
                let place = [Expr::int(s), step];
                let next = add(cx.at(acc, &place), data(k), word(weights + Scalar::index(Expr::int(s)), step), fma);
                round.push(vector(step, cx.put(acc, &place, next)));
            }
            round
        }
        Form::Gather => {
            let step = cx.var("lane");
            let pair = word(weights, step);
            // Limited before they are widened: a gather by 32-bit positions is twice as fast as one by 64-bit ones.
            let limit = |k: Scalar| k.min(Scalar::number(DType::U32, (v.depth - 1) as f64)).cast(DType::I64);
            let low = limit(Scalar::binary(Binary::And, pair, Scalar::number(DType::U32, 65535.0)));
            let high = limit(Scalar::binary(Binary::Shr, pair, Scalar::number(DType::U32, 16.0)));
            let place = [Expr::int(0), step];
            let one = add(cx.at(acc, &place), data(low), word(weights, step + lanes), fma);
            let next = add(one, data(high), word(weights, step + 2 * lanes), fma);
            vec![vector(step, cx.put(acc, &place, next))]
        }
        Form::Lookup(width) => {
            let base = cx.local();
            let in_row = (STEPS * p.lanes) as i64;
            let shift = Scalar::index(Expr::int(in_row.trailing_zeros().into()));
            let row = Scalar::binary(Binary::Shr, local(now), shift) + Scalar::index(Expr::from(words.windows));
            let column = Scalar::binary(Binary::And, local(now), Scalar::index(Expr::int(in_row - 1)));
            let first = Scalar::read(DType::U32, b.source, [row, column]).cast(DType::I64);
            let mut round = vec![Stmt::Let { local: base, value: first }];
            let windows = copy.as_ref().expect("made for lookups").0;
            for s in 0..STEPS as i64 {
                let step = cx.var("lane");
                let moved = Scalar::binary(Binary::Shr, word(weights, step), Scalar::number(DType::U32, (8 * s) as f64));
                let k = Scalar::binary(Binary::And, moved, Scalar::number(DType::U32, (width - 1) as f64)).cast(DType::I64);
                let x = Scalar::read(DType::F32, windows as usize, [local(base), k]);
                let place = [Expr::int(s), step];
                let next = add(cx.at(acc, &place), x, word(weights, step + lanes * (1 + s)), fma);
                round.push(vector(step, cx.put(acc, &place, next)));
            }
            round
        }
    };
    let mut round = round(cx);
    round.insert(0, Stmt::Let { local: now, value: cx.at(at, &zero) });
    // Blocks count single steps, the others rows.
    let by = if p.form == Form::Blocks { STEPS as i64 } else { 1 };
    round.push(cx.put(at, &zero, local(now) + Scalar::index(Expr::int(by))));
    let keep = cx.var("lane");
    let place_of_lane = match p.form {
        Form::Blocks => Scalar::index(tile * lanes + keep),
        Form::Gather | Form::Lookup(_) => {
            let in_row = (words.width / p.lanes) as i64;
            let column = number.rem(Expr::int(in_row)) * lanes + keep;
            let row = number.div(Expr::int(in_row)) + words.second as i64;
            Scalar::read_at(DType::U32, b.source, &[row, column]).cast(DType::I64)
        }
    };
    let partial = |k: i64| cx.at(acc, &[Expr::int(k), keep]);
    let whole = (1..sums_of_lane as i64).fold(partial(0), |sum, k| sum + partial(k));
    let mut body = vec![Stmt::Alloc { buffer: acc }, Stmt::Alloc { buffer: at }];
    for s in 0..sums_of_lane {
        let clear = cx.var("lane");
        body.push(vector(clear, cx.put(acc, &[Expr::from(s), clear], Scalar::float(DType::F32, 0.0))));
    }
    body.extend([
        cx.put(at, &zero, table(number)),
        Stmt::Let { local: end, value: table(number + 1) },
        Stmt::While { cond: cx.at(at, &zero).lt(local(end)), body: round },
        vector(keep, Stmt::Store { buffer: sums, index: vec![place_of_lane], value: whole }),
    ]);
    let inside = |e: Expr, n: i64, body: Vec<Stmt>| match n % window == 0 {
        true => body,
        false => vec![Stmt::If { cond: Scalar::index(e).lt(Scalar::index(Expr::int(n))), then: body, otherwise: vec![] }],
    };
    let body = inside(number, tiles, body);
    let (out, lane) = (cx.var("tile"), cx.var("lane"));
    let column = (first + out) * lanes + lane;
    axes[v.n] = column;
    let value = with_accumulator(c.value.subst(&axes), cx.at(sums, &[out * lanes + lane]));
    let mut store = cx.store_out(&axes, value);
    if v.columns % p.lanes != 0 {
        let cond = Scalar::index(column).lt(Scalar::index(Expr::from(v.columns)));
        store = Stmt::If { cond, then: vec![store], otherwise: vec![] };
    }
    let finish = inside(first + out, tiles, vec![vector(lane, store)]);
    cx.body = vec![Stmt::Alloc { buffer: sums }];
    cx.body.extend(copy.into_iter().flat_map(|c| c.1));
    cx.body.push(for_each(tile, Expr::int(window), LoopKind::Serial, body));
    cx.body.push(for_each(out, Expr::int(window), LoopKind::Serial, finish));
}

/// A copy of the data whose rows are the windows, one for each vector, overlapping, so that each is there as a whole; and what fills it. Beyond
/// the data it has no values.
fn windows(cx: &mut Cx, depth: usize, lanes: i64, width: usize, data: &dyn Fn(Expr) -> Scalar) -> (u32, Vec<Stmt>) {
    let copy = cx.scratch("windows", DType::F32, &[depth.div_ceil(lanes as usize), width], Space::Tile);
    cx.buffers[copy as usize].strides = vec![Expr::int(lanes), Expr::int(1)];
    let (vector, full) = (cx.var("vector"), depth as i64 / lanes);
    let mut fill = vec![Stmt::Alloc { buffer: copy }];
    let part = |cx: &mut Cx, at: Expr, count: i64| {
        let lane = cx.var("lane");
        let store = cx.put(copy, &[at, lane], data(at * lanes + lane));
        for_each(lane, Expr::int(count), LoopKind::Vector, vec![store])
    };
    if full > 0 {
        let body = part(cx, vector, lanes);
        fill.push(for_each(vector, Expr::int(full), LoopKind::Serial, vec![body]));
    }
    if depth as i64 % lanes > 0 {
        fill.push(part(cx, Expr::int(full), depth as i64 % lanes));
    }
    (copy, fill)
}

/// Values for all variables of the step: the axes, and 0 for those of the reduction.
fn padded(axes: &[Expr], c: &Compute) -> Vec<Expr> {
    let reduced = c.reduction.as_ref().map_or(0, |r| r.axes.len());
    axes.iter().copied().chain(std::iter::repeat_n(Expr::int(0), reduced)).collect()
}
