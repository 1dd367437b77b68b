//! Builders of selection: positions where a condition holds, and greedy choices. Both begin their result with a count.

use super::heap::{self, Heap};
use super::serial::nest;
use super::{Cx, for_each};
use crate::fuse;
use crate::loops::{LoopKind, Space, Stmt};
use infc_ir::compute::{Choice, Filter};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr};
use std::collections::HashMap;

/// One task: all positions in order. Where the condition bounds the last axis by what the others settle, those beyond are not looked at.
pub fn filter(cx: &mut Cx, f: &Filter) {
    let zero = [Expr::int(0)];
    let count = cx.scratch("count", DType::I64, &[1], Space::Reg);
    let axes = cx.vars(&["i", "j"], f.over.len());
    let found = |cx: &Cx, position: Scalar| {
        let next = cx.at(count, &zero) + Scalar::index(1);
        vec![Stmt::Store { buffer: cx.out(), index: vec![next], value: position }, cx.put(count, &zero, next)]
    };
    cx.body = vec![Stmt::Alloc { buffer: count }, cx.put(count, &zero, Scalar::index(0))];
    let row = |axes: &[Expr]| axes.iter().zip(&f.over).fold(Expr::int(0), |sum, (&v, &d)| sum * d + v);
    if let Some(bound) = bound(f) {
        let outer = &axes[..axes.len() - 1];
        let (&extent, around) = f.over.split_last().expect("a bound has an axis");
        let step = cx.scratch("step", DType::I64, &[1], Space::Reg);
        let end = cx.local();
        let at = cx.at(step, &zero);
        let first = Scalar::index(row(outer) * extent);
        let mut body = found(cx, first + at);
        body.push(cx.put(step, &zero, at + Scalar::index(1)));
        let line = vec![
            Stmt::Let { local: end, value: bound.subst(&axes).min(Scalar::index(extent)) },
            cx.put(step, &zero, Scalar::index(0)),
            Stmt::While { cond: at.lt(Scalar::local(DType::I64, end)), body },
        ];
        cx.body.push(Stmt::Alloc { buffer: step });
        cx.body.extend(nest(outer, around, line));
    } else {
        let then = found(cx, Scalar::index(row(&axes)));
        cx.body.extend(nest(&axes, &f.over, vec![Stmt::If { cond: f.cond.subst(&axes), then, otherwise: vec![] }]));
    }
    cx.body.push(cx.store_out(&zero, cx.at(count, &zero)));
}

/// What the last axis stays below, if that is the whole condition and the other axes settle it.
fn bound(f: &Filter) -> Option<Scalar> {
    let last = f.over.len().checked_sub(1)?;
    match f.cond.kind() {
        Kind::Binary(Binary::Lt, i, bound) if i.as_index() == Some(Expr::var(last)) && !uses(*bound, last as u32) => Some(*bound),
        _ => None,
    }
}

/// Does an index in it use the variable?
fn uses(s: Scalar, var: u32) -> bool {
    let mut found = false;
    s.visit(&mut |n| found |= matches!(n.kind(), Kind::Index(e) if e.uses_var(var)));
    found
}

/// A task for each line of candidates, of which so many are looked at side by side.
pub fn choice(cx: &mut Cx, c: &Choice, lanes: usize) {
    match lanes {
        1 => one_by_one(cx, c),
        _ => side_by_side(cx, c, lanes),
    }
}

/// A line of a choice. Its candidates are a heap in the places of the result that the taken ones have not reached: they are taken out of it one by one,
/// as long as any more may be taken.
struct Line<'a> {
    c: &'a Choice,
    /// The values of all axes but the last.
    at: Vec<Scalar>,
    /// How many are taken, in a register.
    count: u32,
    /// How many are in the heap, in a register.
    size: u32,
}

/// Element 0 of a register.
fn of(cx: &Cx, register: u32) -> Scalar {
    cx.at(register, &[Expr::int(0)])
}

fn set(cx: &Cx, register: u32, value: Scalar) -> Stmt {
    cx.put(register, &[Expr::int(0)], value)
}

impl<'a> Line<'a> {
    fn new(cx: &mut Cx, c: &'a Choice, values: &[Expr]) -> Line<'a> {
        let at = values.iter().map(|&e| Scalar::index(e)).collect();
        let mut register = |name: &str| cx.scratch(name, DType::I64, &[1], Space::Reg);
        Line { c, at, count: register("count"), size: register("size") }
    }
    /// Number of candidates.
    fn candidates(&self) -> Expr {
        *self.c.dims.last().expect("a choice has an axis") - 1
    }
    /// Place `n` of its result.
    fn slot(&self, n: Scalar) -> Vec<Scalar> {
        self.at.iter().copied().chain([n]).collect()
    }
    /// The candidate that was taken as number `n`.
    fn taken(&self, cx: &Cx, n: Scalar) -> Scalar {
        Scalar::read(DType::I64, cx.out() as usize, self.slot(n + Scalar::index(1)))
    }
    fn with(&self, s: Scalar, last: &[Scalar]) -> Scalar {
        let index: Vec<Scalar> = self.at.iter().chain(last).copied().collect();
        fuse::at(s, &index).expect("conditions are read at their axes")
    }
    /// May one more be taken?
    fn room(&self, cx: &Cx) -> Scalar {
        Scalar::binary(Binary::Lt, of(cx, self.count), self.with(self.c.most, &[]))
    }
    /// Are there candidates in the heap, and may they be taken?
    fn more(&self, cx: &Cx) -> Scalar {
        Scalar::index(0).lt(of(cx, self.size)).and(self.room(cx))
    }
    fn take(&self, cx: &Cx, candidate: Scalar) -> Vec<Stmt> {
        let next = of(cx, self.count) + Scalar::index(1);
        vec![Stmt::Store { buffer: cx.out(), index: self.slot(next), value: candidate }, set(cx, self.count, next)]
    }
    /// The heap of the candidates for which the condition holds; what makes it.
    fn heap(&self, cx: &mut Cx) -> (Heap, Vec<Stmt>) {
        // It ends at the end of the line.
        let (at, last) = (self.at.clone(), Scalar::index(self.candidates()));
        let slot = move |n: Scalar| at.iter().copied().chain([last - n]).collect::<Vec<Scalar>>();
        let (heap, mut body) = Heap::new(cx, true, slot);
        let root = cx.scratch("root", DType::I64, &[1], Space::Reg);
        body.extend([root, self.count, self.size].map(|buffer| Stmt::Alloc { buffer }));
        body.extend([self.count, self.size].map(|register| set(cx, register, Scalar::index(0))));
        let candidate = cx.var("candidate");
        let (number, size) = (Scalar::index(candidate), of(cx, self.size));
        let packed = heap::pack(self.with(self.c.key, &[number]), number, true);
        let then = vec![heap.set(cx, size, packed), set(cx, self.size, size + Scalar::index(1))];
        let fill = Stmt::If { cond: self.with(self.c.cond, &[number]), then, otherwise: vec![] };
        body.push(for_each(candidate, self.candidates(), LoopKind::Serial, vec![fill]));
        // `root` is one more than the place whose subtree becomes a heap.
        body.push(set(cx, root, Scalar::binary(Binary::Div, size, Scalar::index(2))));
        let top = of(cx, root);
        let mut make = vec![set(cx, root, top - Scalar::index(1))];
        let moved = heap.get(cx, top);
        make.extend(heap.sift(cx, top, moved, size));
        body.push(Stmt::While { cond: Scalar::index(0).lt(top), body: make });
        (heap, body)
    }
    /// Takes the first candidate out of the heap, which has one; its number is `local`.
    fn next(&self, cx: &mut Cx, heap: &Heap, local: u32) -> Vec<Stmt> {
        let (size, root) = (of(cx, self.size), Scalar::index(0));
        let last = cx.local();
        let mut body = vec![
            Stmt::Let { local, value: heap::unpack(heap.get(cx, root)) },
            set(cx, self.size, size - Scalar::index(1)),
            Stmt::Let { local: last, value: heap.get(cx, size) },
        ];
        body.extend(heap.sift(cx, root, Scalar::local(DType::I64, last), size));
        body
    }
    /// Writes how many are taken.
    fn close(&self, cx: &Cx) -> Stmt {
        Stmt::Store { buffer: cx.out(), index: self.slot(Scalar::index(0)), value: of(cx, self.count) }
    }
}

fn one_by_one(cx: &mut Cx, c: &Choice) {
    let (_, lines) = c.dims.split_last().expect("a choice has an axis");
    let chunk = cx.chunked(lines, 1);
    let line = Line::new(cx, c, &chunk.values);
    let (heap, mut all) = line.heap(cx);
    let other = cx.scratch("other", DType::I64, &[1], Space::Reg);
    let (now, seen) = (cx.local(), cx.local());
    let local = |n: u32| Scalar::local(DType::I64, n);
    let (one, at, count) = (Scalar::index(1), of(cx, other), of(cx, line.count));
    let clash = vec![
        Stmt::Let { local: seen, value: line.taken(cx, at) },
        // A clash sets `other` beyond the count, which ends the search.
        Stmt::If {
            cond: line.with(c.clash, &[local(now), local(seen)]),
            then: vec![set(cx, other, count + one)],
            otherwise: vec![set(cx, other, at + one)],
        },
    ];
    let mut body = line.next(cx, &heap, now);
    body.extend([
        set(cx, other, Scalar::index(0)),
        Stmt::While { cond: at.lt(count), body: clash },
        Stmt::If { cond: at.eq_to(count), then: line.take(cx, local(now)), otherwise: vec![] },
    ]);
    all.extend([Stmt::Alloc { buffer: other }, Stmt::While { cond: line.more(cx), body }, line.close(cx)]);
    cx.body = chunk.wrap(all);
}

/// Taken ones that are compared with a block before it is asked whether any candidate of it is left.
const ROUND: i64 = 16;

/// Blocks of candidates, as lanes: all are compared with one that is taken, and with the next, while any of them is left. Then those that are left
/// are taken in order, and what clashes with one of them leaves the block.
fn side_by_side(cx: &mut Cx, c: &Choice, lanes: usize) {
    let (_, lines) = c.dims.split_last().expect("a choice has an axis");
    let rank = c.dims.len() as u32;
    let chunk = cx.chunked(lines, 1);
    let line = Line::new(cx, c, &chunk.values);
    let (heap, mut all) = line.heap(cx);
    let width = Expr::from(lanes);
    let each = |lane: Expr, body: Vec<Stmt>| for_each(lane, width, LoopKind::Vector, body);
    let flag = |n: i64| Scalar::int(DType::I32, n);
    // Numbers of the candidates of the block, those of them that are left, and that as something that has an index.
    let block = cx.scratch("block", DType::I64, &[lanes], Space::Tile);
    let left = cx.scratch("left", DType::I32, &[lanes], Space::Reg);
    let open = cx.scratch("open", DType::I32, &[lanes], Space::Tile);
    let [other, until] = ["other", "until"].map(|name| cx.scratch(name, DType::I64, &[1], Space::Reg));
    let any = cx.scratch("any", DType::I32, &[1], Space::Reg);
    // Whatever of a comparison one of the two sides settles is computed once for it.
    let mut kept: Vec<(Scalar, u32)> = vec![];
    settle(c.clash, rank, &mut HashMap::new(), &mut |part, side| {
        if let Side::Candidate = side {
            kept.push((part, cx.scratch("kept", part.dtype(), &[lanes], Space::Reg)));
        }
        part
    });
    all.extend([block, left, open, other, until, any].map(|buffer| Stmt::Alloc { buffer }));
    all.extend(kept.iter().map(|&(_, buffer)| Stmt::Alloc { buffer }));

    let place = cx.var("place");
    let now = cx.local();
    let mut then = line.next(cx, &heap, now);
    then.extend([cx.put(block, &[place], Scalar::local(DType::I64, now)), cx.put(open, &[place], flag(1))]);
    let otherwise = vec![cx.put(block, &[place], Scalar::index(0)), cx.put(open, &[place], flag(0))];
    let fill = Stmt::If { cond: Scalar::index(0).lt(of(cx, line.size)), then, otherwise };
    let lane = cx.var("lane");
    let mut look = vec![cx.put(left, &[lane], cx.at(open, &[lane]))];
    look.extend(kept.iter().map(|&(value, buffer)| cx.put(buffer, &[lane], line.with(value, &[cx.at(block, &[lane])]))));
    let mut body = vec![for_each(place, width, LoopKind::Serial, vec![fill]), each(lane, look)];

    // Takes out of `from` what clashes with the candidate `seen`.
    let strike = |cx: &mut Cx, from: u32, seen: Scalar| {
        let lane = cx.var("lane");
        let (mut all, mut lanes) = (vec![], vec![]);
        let name = |cx: &mut Cx, into: &mut Vec<Stmt>, value: Scalar| {
            let local = cx.local();
            into.push(Stmt::Let { local, value });
            Scalar::local(value.dtype(), local)
        };
        let seen = name(cx, &mut all, seen);
        let clash = settle(c.clash, rank, &mut HashMap::new(), &mut |part, side| match side {
            Side::Candidate => {
                let (_, buffer) = kept.iter().find(|(s, _)| *s == part).expect("every such part is kept");
                name(cx, &mut lanes, cx.at(*buffer, &[lane]))
            }
            // The axis of candidates does not occur in it.
            Side::Taken => name(cx, &mut all, line.with(part, &[Scalar::index(0), seen])),
            Side::Both => line.with(part, &[cx.at(block, &[lane]), seen]),
        });
        lanes.push(cx.put(from, &[lane], Scalar::select(clash, flag(0), cx.at(from, &[lane]))));
        all.push(each(lane, lanes));
        all
    };
    let ask = |cx: &Cx| {
        let mut all: Vec<Scalar> = (0..lanes).map(|l| cx.at(left, &[Expr::from(l)])).collect();
        while all.len() > 1 {
            let half = all.len() / 2;
            all = (0..half).map(|k| all[k].max(all[k + half])).collect();
        }
        set(cx, any, all[0])
    };
    let (at, count, some) = (of(cx, other), of(cx, line.count), flag(0).lt(of(cx, any)));
    let mut one = strike(cx, left, line.taken(cx, at));
    one.push(set(cx, other, at + Scalar::index(1)));
    let round = vec![
        set(cx, until, (at + Scalar::index(ROUND)).min(count)),
        Stmt::While { cond: at.lt(of(cx, until)), body: one },
        ask(cx),
    ];
    let lane = cx.var("lane");
    let hand_over = each(lane, vec![cx.put(open, &[lane], cx.at(left, &[lane]))]);
    let next = cx.var("next");
    let candidate = cx.at(block, &[next]);
    let mut then = line.take(cx, candidate);
    then.extend(strike(cx, open, candidate));
    let free = flag(0).lt(cx.at(open, &[next])).and(line.room(cx));
    let serial = for_each(next, width, LoopKind::Serial, vec![Stmt::If { cond: free, then, otherwise: vec![] }]);
    body.extend([
        set(cx, other, Scalar::index(0)),
        set(cx, any, flag(1)),
        Stmt::While { cond: at.lt(count).and(some), body: round },
        Stmt::If { cond: some, then: vec![hand_over, serial], otherwise: vec![] },
    ]);
    all.extend([Stmt::While { cond: line.more(cx), body }, line.close(cx)]);
    cx.body = chunk.wrap(all);
}

/// What settles a part of a comparison.
enum Side {
    Candidate,
    /// The taken one, or none of the two.
    Taken,
    /// Both: an index.
    Both,
}

/// A comparison over axes of which `rank` is that of the taken one and the one before that of the candidate, where `replace` gives what stands for each
/// of its largest parts that one side settles.
fn settle(s: Scalar, rank: u32, done: &mut HashMap<Scalar, Scalar>, replace: &mut dyn FnMut(Scalar, Side) -> Scalar) -> Scalar {
    if let Some(&made) = done.get(&s) {
        return made;
    }
    let operands = s.operands();
    let made = match (uses(s, rank - 1), uses(s, rank)) {
        _ if matches!(s.kind(), Kind::Const(_)) => s,
        (true, false) => replace(s, Side::Candidate),
        (true, true) if operands.is_empty() => replace(s, Side::Both),
        (true, true) => s.rebuild(&operands.into_iter().map(|o| settle(o, rank, done, replace)).collect::<Vec<_>>()),
        (false, _) => replace(s, Side::Taken),
    };
    done.insert(s, made);
    made
}
