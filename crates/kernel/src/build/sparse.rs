//! Contractions with few rows and a constant factor that is mostly 0: only what is not 0 is stored and multiplied.
//!
//! The constant's columns (axis n) are cut into tiles of as many as a vector has lanes. Two forms:
//!
//! - *Blocks*: for each tile the positions along k where any of its columns is not 0, with a vector of weights for each. A step
//!   broadcasts one element of the data. Fits weights that were pruned in blocks.
//! - *Gather*: each lane has positions of its own, 16 bits each; a step gathers as many elements of the data. The columns of a task are
//!   sorted by how many weights they have, so that the lanes of a tile end together. Fits weights pruned one by one.
//!
//! All of it is one buffer of 32-bit words, packed at compile time: first row of each tile, column of each lane (gather), positions,
//! weights. Class: reassociated; products with weights that are 0 are left out, so that an infinity or NaN in the data reaches only the
//! columns that look at it.

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
const FAR: f64 = 24.0;
/// Cycles for each lane of a gather, and for a step of blocks (the latency of its sum).
const GATHER: f64 = 1.55;
const STEP: f64 = 4.0;

/// The contraction in the terms of this builder.
struct View {
    vector: usize,
    n: usize,
    /// Which reduction axis is k; all others have one element.
    k: usize,
    columns: usize,
    depth: usize,
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
    if zeros * 2 < tensor.len() || tensor.len() < 1 << 10 {
        return None;
    }
    let extents: Vec<usize> = r.axes.iter().map(|e| e.known().unwrap_or(1) as usize).collect();
    let panels = pack::panels(tensor, &index, columns, &extents, lanes)?;
    Some(View { vector, n, k, columns, depth, panels })
}

/// The plan, if it is predicted to be faster than dense tiles by the figures above (measured on AMD's Zen).
pub fn plan(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<Sparse> {
    let lanes = target.lanes(4);
    let v = view(c, operands, lanes).filter(|_| lanes >= 4 && lanes.is_power_of_two())?;
    let tiles = v.columns.div_ceil(lanes);
    let rate = |bytes: f64| if bytes <= target.l2_bytes as f64 { NEAR } else { FAR };
    let time = |steps: f64, bytes: f64| steps.max(bytes / rate(bytes));
    let dense = time((tiles * v.depth) as f64, (tiles * v.depth * lanes * 4) as f64);
    let all = [Form::Blocks, Form::Gather].map(|form| {
        let words = packed(&v, lanes, form).words.len();
        let steps = match form {
            Form::Blocks => blocks(&v, lanes).iter().map(Vec::len).sum::<usize>() as f64 * STEP,
            Form::Gather => words as f64 / 3.0 * 2.0 * GATHER,
        };
        (form, time(steps, (words * 4) as f64), words * 4)
    });
    let best = all.into_iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    (best.1 < dense).then_some(Sparse { vector: v.vector, n: v.n, lanes, window: WINDOW, form: best.0, bytes: best.2 })
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

/// The words, and where their parts begin, in rows of `width` words.
struct Words {
    words: Vec<u32>,
    width: usize,
    /// First row of the columns of the lanes (gather), or of the positions (blocks).
    second: usize,
    /// First row of the weights (blocks).
    third: usize,
}

fn packed(v: &View, lanes: usize, form: Form) -> Words {
    let tiles = v.columns.div_ceil(lanes);
    let width = if form == Form::Blocks { lanes } else { 3 * lanes };
    let second = (tiles + 1).div_ceil(width);
    let mut starts = vec![];
    let (mut middle, mut rest): (Vec<u32>, Vec<u32>) = (vec![], vec![]);
    match form {
        Form::Blocks => {
            for (t, list) in blocks(v, lanes).into_iter().enumerate() {
                starts.push(middle.len() as u32);
                for k in list {
                    middle.push(k as u32);
                    rest.extend((0..lanes).map(|l| weight(v, lanes, t, k, l).to_bits()));
                }
            }
            starts.push(middle.len() as u32);
        }
        Form::Gather => {
            let third = (second + (tiles * lanes).div_ceil(width)) as u32;
            for window in (0..tiles).step_by(WINDOW) {
                let end = (window + WINDOW).min(tiles);
                let list = |column: usize| -> Vec<(usize, f32)> {
                    let (t, l) = (window + column / lanes, column % lanes);
                    (0..v.depth).map(|k| (k, weight(v, lanes, t, k, l))).filter(|x| x.1 != 0.0).collect()
                };
                let mut columns: Vec<(usize, Vec<(usize, f32)>)> = (0..(end - window) * lanes).map(|c| (c, list(c))).collect();
                columns.sort_by_key(|(c, l)| (std::cmp::Reverse(l.len()), *c));
                for tile in columns.chunks(lanes) {
                    starts.push(third + (rest.len() / width) as u32);
                    middle.extend(tile.iter().map(|x| x.0 as u32));
                    let steps = tile.iter().map(|x| x.1.len()).max().unwrap_or(0).div_ceil(2);
                    let entry = |lane: usize, s: usize| tile[lane].1.get(s).copied().unwrap_or((0, 0.0));
                    for s in 0..steps {
                        rest.extend((0..lanes).map(|l| entry(l, 2 * s).0 as u32 | (entry(l, 2 * s + 1).0 as u32) << 16));
                        rest.extend((0..lanes).map(|l| entry(l, 2 * s).1.to_bits()));
                        rest.extend((0..lanes).map(|l| entry(l, 2 * s + 1).1.to_bits()));
                    }
                }
            }
            starts.push(third + (rest.len() / width) as u32);
        }
    }
    let mut words = vec![];
    for part in [starts, middle] {
        words.extend(part);
        words.resize(words.len().next_multiple_of(width), 0);
    }
    let third = words.len() / width;
    words.extend(rest);
    Words { words, width, second, third }
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, p: &Sparse) {
    let v = view(c, cx.operands, p.lanes).expect("checked by the plan");
    let f = factors(c).expect("checked by the plan");
    let (a, b) = (&f[1 - v.vector], &f[v.vector]);
    let words = packed(&v, p.lanes, p.form);
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
    let acc = cx.scratch("acc", DType::F32, &[p.lanes], Space::Reg);
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
    let word = |row: Scalar, column: Expr| Scalar::read(DType::U32, b.source, [row, Scalar::index(column)]);
    let add = |sum: Scalar, x: Scalar, w: Scalar, fma: bool| match fma {
        true => Scalar::fma(x, w.bitcast(DType::F32), sum),
        false => sum + x * w.bitcast(DType::F32),
    };
    let fma = cx.target.fma;
    let (clear, step, keep) = (cx.var("lane"), cx.var("lane"), cx.var("lane"));
    let sum = cx.at(acc, &[step]);
    let next = match p.form {
        Form::Blocks => {
            let shift = Scalar::index(Expr::int(p.lanes.trailing_zeros().into()));
            let row = Scalar::binary(Binary::Shr, local(now), shift) + Scalar::index(Expr::from(words.second));
            let column = Scalar::binary(Binary::And, local(now), Scalar::index(Expr::int(lanes - 1)));
            let k = Scalar::read(DType::U32, b.source, [row, column]).cast(DType::I64);
            add(sum, data(k), word(local(now) + Scalar::index(Expr::from(words.third)), step), fma)
        }
        Form::Gather => {
            let pair = word(local(now), step);
            // Limited before they are widened: a gather by 32-bit positions is twice as fast as one by 64-bit ones.
            let limit = |k: Scalar| k.min(Scalar::number(DType::U32, (v.depth - 1) as f64)).cast(DType::I64);
            let low = limit(Scalar::binary(Binary::And, pair, Scalar::number(DType::U32, 65535.0)));
            let high = limit(Scalar::binary(Binary::Shr, pair, Scalar::number(DType::U32, 16.0)));
            let one = add(sum, data(low), word(local(now), step + lanes), fma);
            add(one, data(high), word(local(now), step + 2 * lanes), fma)
        }
    };
    let vector = |var: Expr, body: Stmt| for_each(var, Expr::int(lanes), LoopKind::Vector, vec![body]);
    let round = vec![
        Stmt::Let { local: now, value: cx.at(at, &zero) },
        vector(step, cx.put(acc, &[step], next)),
        cx.put(at, &zero, local(now) + Scalar::index(Expr::int(1))),
    ];
    let place_of_lane = match p.form {
        Form::Blocks => Scalar::index(tile * lanes + keep),
        Form::Gather => {
            let third = number.rem(Expr::int(3)) * lanes + keep;
            let row = number.div(Expr::int(3)) + words.second as i64;
            Scalar::read_at(DType::U32, b.source, &[row, third]).cast(DType::I64)
        }
    };
    let body = vec![
        Stmt::Alloc { buffer: acc },
        Stmt::Alloc { buffer: at },
        vector(clear, cx.put(acc, &[clear], Scalar::float(DType::F32, 0.0))),
        cx.put(at, &zero, table(number)),
        Stmt::Let { local: end, value: table(number + 1) },
        Stmt::While { cond: cx.at(at, &zero).lt(local(end)), body: round },
        vector(keep, Stmt::Store { buffer: sums, index: vec![place_of_lane], value: cx.at(acc, &[keep]) }),
    ];
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
    cx.body = vec![
        Stmt::Alloc { buffer: sums },
        for_each(tile, Expr::int(window), LoopKind::Serial, body),
        for_each(out, Expr::int(window), LoopKind::Serial, finish),
    ];
}

/// Values for all variables of the step: the axes, and 0 for those of the reduction.
fn padded(axes: &[Expr], c: &Compute) -> Vec<Expr> {
    let reduced = c.reduction.as_ref().map_or(0, |r| r.axes.len());
    axes.iter().copied().chain(std::iter::repeat_n(Expr::int(0), reduced)).collect()
}
