//! The builder of chains ([`crate::chain`]): a warp takes a row, and goes through the steps one after another. Elements are dealt out to its lanes, element
//! `j` to lane `j mod 32`; what a row is reduced to is in all lanes.

use super::elementwise::with_accumulator;
use super::row_reduce::join;
use super::{Cx, accumulate, for_each};
use crate::loops::{LoopKind, Space, Stmt, WARP};
use infc_ir::Expr;
use infc_ir::compute::Compute;
use infc_ir::scalar::{Kind, Scalar};

/// Elements of the longest rows.
pub const LONGEST: i64 = 4096;
/// The same of rows whose elements later steps read: each lane has 32 of them in registers.
pub const KEPT: i64 = 1024;

/// A step of a chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What is computed. Sources from [`MADE`] on are what steps of the chain made.
    pub compute: Compute,
    /// It reduces rows.
    pub reduces: bool,
    /// Which of the results it is stored as, if it is.
    pub stored: Option<usize>,
    /// A later step reads it.
    pub read: bool,
}

/// Sources from this number on are the steps of the chain, in order.
pub const MADE: u32 = 1 << 16;

/// Where what a step made is.
#[derive(Clone, Copy)]
enum Made {
    /// Nowhere: nobody of the chain reads it.
    Nothing,
    /// One value.
    Row(u32),
    /// Elements, by block of 32 and lane.
    Elements(u32),
}

/// All steps for each row.
pub fn build(cx: &mut Cx, steps: &[Step]) {
    let rows = |step: &Step| step.compute.dims[..step.compute.dims.len() - 1].to_vec();
    // The steps have the same rows but for axes of one element.
    let many: Vec<Expr> = rows(&steps[0]).into_iter().filter(|d| !d.is(1)).collect();
    let chunk = cx.chunked(&many, 1);
    let mut made: Vec<Made> = vec![];
    let mut body = vec![];
    for step in steps {
        let length = match step.reduces {
            true => step.compute.reduction.as_ref().expect("it reduces").axes[0],
            false => *step.compute.dims.last().expect("it has axes"),
        };
        let length = length.known().expect("rows of chains have a known length");
        let blocks = (length as u64).div_ceil(WARP as u64) as usize;
        // Elements that are stored wait in registers for all others of the row: what is read for one of them could be what a store before changes, as far as
        // anybody knows who orders the instructions.
        let waits = step.stored.is_some() && !step.reduces && length <= KEPT;
        let own = match (step.read || waits, step.reduces) {
            (false, _) => Made::Nothing,
            (true, true) => Made::Row(cx.scratch("row", step.compute.value.dtype(), &[1], Space::Reg)),
            (true, false) => Made::Elements(cx.scratch("kept", step.compute.value.dtype(), &[blocks, WARP as usize], Space::Reg)),
        };
        if let Made::Row(buffer) | Made::Elements(buffer) = own {
            body.push(Stmt::Alloc { buffer });
        }
        let keeps = matches!(own, Made::Elements(_)) || reads_elements(step, &made);
        let mut values = chunk.values.iter();
        let own_rows = rows(step).into_iter().map(|d| match d.is(1) {
            true => Expr::int(0),
            false => *values.next().expect("as many rows"),
        });
        let round = Round { made: &made, rows: &own_rows.collect::<Vec<_>>(), length, blocks, keeps };
        if step.reduces {
            reduce(cx, step, &round, own, &mut body);
        } else {
            map(cx, step, &round, own, &mut body);
        }
        made.push(own);
    }
    cx.body = chunk.wrap(body);
}

/// What a step finds.
struct Round<'a> {
    made: &'a [Made],
    rows: &'a [Expr],
    length: i64,
    blocks: usize,
    /// Elements are in registers, so loops over blocks are written out.
    keeps: bool,
}

impl Round<'_> {
    /// A loop over the blocks of a row.
    fn each(&self, cx: &mut Cx, make: &mut dyn FnMut(&mut Cx, Expr, Expr) -> Vec<Stmt>) -> Stmt {
        let (block, lane) = (cx.var("block"), cx.var("lane"));
        let mut body = make(cx, block, lane);
        if self.length % WARP > 0 {
            let inside = Scalar::index(block * WARP + lane).lt(Scalar::index(self.length));
            body = vec![Stmt::If { cond: inside, then: body, otherwise: vec![] }];
        }
        let lanes = for_each(lane, Expr::int(WARP), LoopKind::Vector, body);
        let kind = if self.keeps { LoopKind::Unroll } else { LoopKind::Serial };
        for_each(block, Expr::from(self.blocks), kind, vec![lanes])
    }

    /// A scalar with what the chain made in the place of its tensors.
    fn resolve(&self, cx: &Cx, s: Scalar, block: Expr, lane: Expr) -> Scalar {
        s.rewrite(&mut |n| match n.kind() {
            Kind::Read { source, .. } if *source >= MADE => match self.made[(*source - MADE) as usize] {
                Made::Row(buffer) => cx.at(buffer, &[Expr::int(0)]),
                Made::Elements(buffer) => cx.at(buffer, &[block, lane]),
                Made::Nothing => unreachable!("a step that is read has a place"),
            },
            _ => n,
        })
    }
}

fn reads_elements(step: &Step, made: &[Made]) -> bool {
    let mut found = false;
    for s in infc_ir::compute::Step::Compute(step.compute.clone()).scalars() {
        s.visit(&mut |n| {
            if let Kind::Read { source, .. } = n.kind()
                && *source >= MADE
            {
                found |= matches!(made[(*source - MADE) as usize], Made::Elements(_));
            }
        });
    }
    found
}

/// As the plan `row_reduce` does it, and what comes of it in all lanes.
fn reduce(cx: &mut Cx, step: &Step, round: &Round, own: Made, body: &mut Vec<Stmt>) {
    let c = &step.compute;
    let r = c.reduction.as_ref().expect("it reduces");
    let acc = cx.scratch("acc", r.body.dtype(), &[WARP as usize], Space::Reg);
    let lane = cx.var("lane");
    let clear = vec![cx.put(acc, &[lane], r.kind.identity(r.body.dtype()))];
    body.extend([Stmt::Alloc { buffer: acc }, for_each(lane, Expr::int(WARP), LoopKind::Vector, clear)]);
    let at: Vec<Expr> = round.rows.iter().copied().chain([Expr::int(0)]).collect();
    body.push(round.each(cx, &mut |cx, block, lane| {
        let all: Vec<Expr> = at.iter().copied().chain([block * WARP + lane]).collect();
        let value = round.resolve(cx, r.body.subst(&all), block, lane);
        let next = accumulate(r.kind, cx.at(acc, &[lane]), value, cx.target.fma);
        vec![cx.put(acc, &[lane], next)]
    }));
    body.extend(join(cx, r.kind, acc, WARP as usize));
    let value = with_accumulator(c.value.subst(&at), cx.at(acc, &[Expr::int(0)]));
    let value = round.resolve(cx, value, Expr::int(0), Expr::int(0));
    let local = cx.local();
    body.push(Stmt::Let { local, value });
    let value = Scalar::local(value.dtype(), local);
    if let Made::Row(buffer) = own {
        body.push(cx.put(buffer, &[Expr::int(0)], value));
    }
    if let Some(which) = step.stored {
        body.push(cx.store_result(which, &at, value));
    }
}

/// As the plan `threads` does it, a lane for each element.
fn map(cx: &mut Cx, step: &Step, round: &Round, own: Made, body: &mut Vec<Stmt>) {
    let c = &step.compute;
    let acc = c.reduction.as_ref().map(|r| {
        let acc = cx.scratch("acc", r.body.dtype(), &[WARP as usize], Space::Reg);
        body.push(Stmt::Alloc { buffer: acc });
        acc
    });
    body.push(round.each(cx, &mut |cx, block, lane| {
        let at: Vec<Expr> = round.rows.iter().copied().chain([block * WARP + lane]).collect();
        let mut out = vec![];
        let mut value = c.value.subst(&at);
        if let (Some(r), Some(acc)) = (&c.reduction, acc) {
            let inner = cx.vars(&["k"], r.axes.len());
            let all: Vec<Expr> = at.iter().chain(&inner).copied().collect();
            let term = round.resolve(cx, r.body.subst(&all), block, lane);
            let next = accumulate(r.kind, cx.at(acc, &[lane]), term, cx.target.fma);
            let mut sum = vec![cx.put(acc, &[lane], next)];
            for (&v, &e) in inner.iter().zip(&r.axes).rev() {
                sum = vec![for_each(v, e, LoopKind::Unroll, sum)];
            }
            out.push(cx.put(acc, &[lane], r.kind.identity(r.body.dtype())));
            out.extend(sum);
            value = with_accumulator(value, cx.at(acc, &[lane]));
        }
        let value = round.resolve(cx, value, block, lane);
        let local = cx.local();
        out.push(Stmt::Let { local, value });
        let value = Scalar::local(value.dtype(), local);
        if let Made::Elements(buffer) = own {
            out.push(cx.put(buffer, &[block, lane], value));
        }
        if let (Some(which), Made::Nothing) = (step.stored, own) {
            out.push(cx.store_result(which, &at, value));
        }
        out
    }));
    if let (Some(which), Made::Elements(buffer)) = (step.stored, own) {
        body.push(round.each(cx, &mut |cx, block, lane| {
            let at: Vec<Expr> = round.rows.iter().copied().chain([block * WARP + lane]).collect();
            vec![cx.store_result(which, &at, cx.at(buffer, &[block, lane]))]
        }));
    }
}
