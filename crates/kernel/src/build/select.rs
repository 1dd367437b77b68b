//! Builders of selection: positions where a condition holds, and greedy choices. Both begin their result with a count.

use super::Cx;
use super::serial::nest;
use crate::fuse;
use crate::loops::{Space, Stmt};
use infc_ir::compute::{Choice, Filter};
use infc_ir::scalar::{Binary, Scalar};
use infc_ir::{DType, Expr};

/// One task: all positions in order.
pub fn filter(cx: &mut Cx, f: &Filter) {
    let zero = [Expr::int(0)];
    let count = cx.scratch("count", DType::I64, &[1], Space::Reg);
    let axes = cx.vars(&["i", "j"], f.over.len());
    let position = axes.iter().zip(&f.over).fold(Expr::int(0), |sum, (&v, &d)| sum * d + v);
    let next = cx.at(count, &zero) + Scalar::index(1);
    let then =
        vec![Stmt::Store { buffer: cx.out(), index: vec![next], value: Scalar::index(position) }, cx.put(count, &zero, next)];
    let test = vec![Stmt::If { cond: f.cond.subst(&axes), then, otherwise: vec![] }];
    cx.body = vec![Stmt::Alloc { buffer: count }, cx.put(count, &zero, Scalar::index(0))];
    cx.body.extend(nest(&axes, &f.over, test));
    cx.body.push(cx.store_out(&zero, cx.at(count, &zero)));
}

/// A task for each line of candidates.
pub fn choice(cx: &mut Cx, c: &Choice) {
    let zero = [Expr::int(0)];
    let (&last, lines) = c.dims.split_last().expect("a choice has an axis");
    let chunk = cx.chunked(lines, 1);
    let line: Vec<Scalar> = chunk.values.iter().map(|&e| Scalar::index(e)).collect();
    let register = |cx: &mut Cx, name: &str| cx.scratch(name, DType::I64, &[1], Space::Reg);
    let (candidate, count, other) = (register(cx, "candidate"), register(cx, "count"), register(cx, "other"));
    let (now, seen) = (cx.local(), cx.local());
    let local = |n: u32| Scalar::local(DType::I64, n);
    let (one, out) = (Scalar::index(1), cx.out());
    let slot = |n: Scalar| line.iter().copied().chain([n]).collect::<Vec<_>>();
    let with = |s: Scalar, last: &[Scalar]| {
        let index: Vec<Scalar> = line.iter().chain(last).copied().collect();
        fuse::at(s, &index).expect("conditions are read at their axes")
    };
    let taken = Scalar::read(DType::I64, out as usize, slot(cx.at(other, &zero) + one));
    let clash = vec![
        Stmt::Let { local: seen, value: taken },
        // A clash sets `other` beyond the count, which ends the search.
        Stmt::If {
            cond: with(c.clash, &[local(now), local(seen)]),
            then: vec![cx.put(other, &zero, cx.at(count, &zero) + one)],
            otherwise: vec![cx.put(other, &zero, cx.at(other, &zero) + one)],
        },
    ];
    let next = cx.at(count, &zero) + one;
    let take = vec![Stmt::Store { buffer: out, index: slot(next), value: local(now) }, cx.put(count, &zero, next)];
    let fits = vec![
        cx.put(other, &zero, Scalar::index(0)),
        Stmt::While { cond: cx.at(other, &zero).lt(cx.at(count, &zero)), body: clash },
        Stmt::If { cond: cx.at(other, &zero).eq_to(cx.at(count, &zero)), then: take, otherwise: vec![] },
    ];
    let body = vec![
        Stmt::Let { local: now, value: cx.at(candidate, &zero) },
        Stmt::If { cond: with(c.cond, &[local(now)]), then: fits, otherwise: vec![] },
        cx.put(candidate, &zero, local(now) + one),
    ];
    let more = cx.at(candidate, &zero).lt(Scalar::index(last - 1));
    let room = Scalar::binary(Binary::Lt, cx.at(count, &zero), with(c.most, &[]));
    let mut all: Vec<Stmt> = [candidate, count, other].map(|buffer| Stmt::Alloc { buffer }).into();
    all.extend([candidate, count].map(|buffer| cx.put(buffer, &zero, Scalar::index(0))));
    all.push(Stmt::While { cond: more.and(room), body });
    all.push(Stmt::Store { buffer: out, index: slot(Scalar::index(0)), value: cx.at(count, &zero) });
    cx.body = chunk.wrap(all);
}
