//! The dots builder: contractions with few columns, as convolutions to one or three channels and matrices of data by a vector. Vectors run along k, where neighbours lie side by
//! side in both factors; all columns of a few neighbouring rows are computed together, and lanes are joined at the end.

use super::contract::{Factor, factors};
use super::elementwise::with_accumulator;
use super::{Cx, Operand, accumulate, for_each, pack};
use crate::loops::{LoopKind, Space, Stmt};
use crate::plan::{Dots, guess, neighbours};
use crate::target::TargetDesc;
use infc_ir::Expr;
use infc_ir::compute::Compute;
use infc_ir::scalar::{Kind, Scalar};

/// Most columns: with more, vectors of columns waste few lanes.
const FEW: i64 = 4;

/// The shortest sums of products of data.
const LONG: i64 = 16;

/// Elements' work that makes a task worth the trouble.
const TASK_WORK: i64 = 1 << 17;

/// The plan, if there are few columns, many rows, and k is contiguous.
pub fn plan(c: &Compute, operands: &[Operand], target: &TargetDesc) -> Option<Dots> {
    let r = c.reduction.as_ref().filter(|r| r.body.dtype().is_float())?;
    let f = factors(c)?;
    let rank = c.dims.len();
    let last = (rank + r.axes.len() - 1) as u32;
    let offset = |f: &Factor| {
        let index: Vec<Scalar> = f.index.iter().map(|&e| Scalar::index(e)).collect();
        Some(operands[f.source].offset(&index)?.affine_in(last)?.0)
    };
    let uses = |k: usize, axis: usize| f[k].index.iter().any(|e| e.uses_var(axis as u32));
    let wide: Vec<usize> = (0..rank).filter(|&a| !c.dims[a].is(1)).collect();
    let own = |k: usize| wide.iter().copied().filter(|&a| uses(k, a) && !uses(1 - k, a)).collect::<Vec<usize>>();
    let constant = |k: usize| operands[f[k].source].constant.is_some();
    let depth = r.axes.last()?.known().filter(|&e| e >= 4)?;
    // k side by side in the data; in constant weights one dim follows it alone, so that they can be packed so.
    let follows = |k: usize, step: i64| f[k].index.iter().filter(|e| e.affine_in(last).is_some_and(|(k, _)| k == step)).count();
    let shared = wide.iter().any(|&a| uses(0, a) && uses(1, a));
    let fits = |&k: &usize| {
        let columns = own(k);
        let weights = match constant(k) {
            true => !shared && follows(k, 1) == 1 && follows(k, 0) + 1 == f[k].index.len(),
            false => depth >= LONG && offset(&f[k]) == Some(1) && !own(1 - k).is_empty(),
        };
        let count = columns.first().map_or(Some(1), |&a| c.dims[a].known());
        weights
            && !constant(1 - k)
            && columns.len() <= 1
            && count.is_some_and(|n| (1..=FEW).contains(&n))
            && offset(&f[1 - k]) == Some(1)
    };
    let weights = (0..2).filter(fits).min_by_key(|&k| !constant(k))?;
    let columns = own(weights);
    let count = columns.first().map_or(Some(1), |&a| c.dims[a].known())?;
    let rows: Vec<usize> = wide.iter().copied().filter(|a| !columns.contains(a)).collect();
    let all: i64 = rows.iter().map(|&a| guess(c.dims[a])).product();
    if all < 4 * FEW * FEW || r.axes.iter().any(|e| e.known().is_none()) {
        return None;
    }
    // Rows of one element of the batch.
    let rows: Vec<usize> = rows.into_iter().filter(|&a| !uses(weights, a)).collect();
    let out = &operands[operands.len() - 1];
    let along = *rows.iter().min_by_key(|&&a| out.buffer.strides[a].known().unwrap_or(i64::MAX))?;
    let most = most_rows(count, target);
    let wanted: Vec<i64> = (most.min(4)..=most).rev().collect();
    let jam = neighbours(guess(c.dims[along]), &wanted);
    let most_lanes = target.lanes(r.body.dtype().bytes()) as i64;
    let lanes = (0..=8).map(|p| 1i64 << p).take_while(|&l| l <= most_lanes && l <= depth).last()?;
    if lanes < 4 {
        return None;
    }
    let work: i64 = r.axes.iter().map(|e| e.known().unwrap_or(1)).product::<i64>() * count * jam as i64;
    let tiles = (all + jam as i64 - 1) / jam as i64;
    let chunk = (TASK_WORK / work.max(1)).clamp(1, 4096).min(tiles.max(1)) as usize;
    Some(Dots { every: columns.first().copied(), along, jam, lanes: lanes as usize, chunk })
}

/// Most neighbours of a tile of so many columns whose sums stay in registers.
pub fn most_rows(columns: i64, target: &TargetDesc) -> i64 {
    let registers = i64::from(target.vector_registers);
    ((registers - 1 - columns) / (columns + 1)).clamp(1, 8)
}

/// Builds the nest.
pub fn build(cx: &mut Cx, c: &Compute, plan: &Dots) {
    let rank = c.dims.len();
    let last = rank + c.reduction.as_ref().expect("a contraction reduces").axes.len() - 1;
    let c = &pack::constants_along(cx, c, last);
    let r = c.reduction.as_ref().expect("packing keeps the reduction");
    let (jam, lanes) = (plan.jam, plan.lanes);
    let columns = plan.every.map_or(1, |a| c.dims[a].known().expect("checked by the plan") as usize);
    let extent = c.dims[plan.along];
    let whole = extent.known().is_some_and(|e| e % jam as i64 == 0);
    let mut grid = c.dims.clone();
    grid[plan.along] = extent.div_ceil(Expr::from(jam));
    if let Some(a) = plan.every {
        grid[a] = Expr::int(1);
    }
    let chunk = cx.chunked(&grid, plan.chunk);
    let place = |row: Expr, column: Expr| {
        let mut axes = chunk.values.clone();
        let position = axes[plan.along] * jam as i64 + row;
        axes[plan.along] = if whole { position } else { position.min(extent - 1) };
        if let Some(a) = plan.every {
            axes[a] = column;
        }
        (position, axes)
    };
    let dtype = r.body.dtype();
    let acc = cx.scratch("acc", dtype, &[jam, columns, lanes], Space::Reg);
    // For each row and column of the tile.
    let each = |cx: &mut Cx, make: &dyn Fn(&mut Cx, Expr, Expr) -> Vec<Stmt>| {
        let (row, column) = (cx.var("row"), cx.var("column"));
        let body = make(cx, row, column);
        let inner = for_each(column, Expr::from(columns), LoopKind::Unroll, body);
        for_each(row, Expr::from(jam), LoopKind::Unroll, vec![inner])
    };
    let clear = each(cx, &|cx, row, column| {
        let lane = cx.var("lane");
        let zero = cx.put(acc, &[row, column, lane], r.kind.identity(dtype));
        vec![for_each(lane, Expr::from(lanes), LoopKind::Vector, vec![zero])]
    });
    let outer = cx.vars(&["k"], r.axes.len() - 1);
    let block = cx.var("block");
    let depth = *r.axes.last().expect("a reduction has axes");
    let update = |cx: &mut Cx, masked: bool| {
        each(cx, &|cx, row, column| {
            let lane = cx.var("lane");
            let position = block * lanes as i64 + lane;
            let (_, axes) = place(row, column);
            let all: Vec<Expr> = axes.iter().chain(&outer).copied().chain([position]).collect();
            let next = accumulate(r.kind, cx.at(acc, &[row, column, lane]), r.body.subst(&all), cx.target.fma);
            let mut body = vec![cx.put(acc, &[row, column, lane], next)];
            if masked {
                let cond = Scalar::index(position).lt(Scalar::index(depth));
                body = vec![Stmt::If { cond, then: body, otherwise: vec![] }];
            }
            vec![for_each(lane, Expr::from(lanes), LoopKind::Vector, body)]
        })
    };
    let full = update(cx, false);
    let step = if depth.known().is_some_and(|e| e % lanes as i64 == 0) {
        full
    } else {
        let tail = update(cx, true);
        let fits = Scalar::index(block * lanes as i64 + lanes as i64).le(Scalar::index(depth));
        Stmt::If { cond: fits, then: vec![full], otherwise: vec![tail] }
    };
    let mut sum = for_each(block, depth.div_ceil(Expr::from(lanes)), LoopKind::Serial, vec![step]);
    for (&v, &e) in outer.iter().zip(&r.axes).rev() {
        sum = for_each(v, e, LoopKind::Serial, vec![sum]);
    }
    let finish = each(cx, &|cx, row, column| {
        let mut body = vec![];
        let mut half = lanes / 2;
        while half > 0 {
            let lane = cx.var("lane");
            let (near, far) = (cx.at(acc, &[row, column, lane]), cx.at(acc, &[row, column, lane + half as i64]));
            let joined = cx.put(acc, &[row, column, lane], accumulate(r.kind, near, far, false));
            body.push(for_each(lane, Expr::from(half), if half > 1 { LoopKind::Vector } else { LoopKind::Unroll }, vec![joined]));
            half /= 2;
        }
        let (position, axes) = place(row, column);
        let total = cx.at(acc, &[row, column, Expr::int(0)]);
        let store = cx.store_out(&axes, with_accumulator(c.value.subst(&axes), total));
        match whole {
            true => body.push(store),
            false => {
                let cond = Scalar::index(position).lt(Scalar::index(extent));
                body.push(Stmt::If { cond, then: vec![store], otherwise: vec![] });
            }
        }
        body
    });
    debug_assert!(matches!(r.body.kind(), Kind::Binary(..)));
    cx.body = chunk.wrap(vec![Stmt::Alloc { buffer: acc }, clear, sum, finish]);
}
