//! Sorting for GPUs: a block of threads takes a line, in shared memory, by a bitonic network (Batcher 1968). Keys lie beside the numbers of their elements, which tell
//! equal keys apart, so the order is that of a stable sort.
//!
//! Where few of many elements are asked for, the line comes piece by piece: the best so far stay in front, the next elements are put behind them, and all are
//! sorted. Longer lines and compound keys have the heap of [`super::sort`].

use super::sort::below;
use super::{Cx, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use infc_ir::compute::Sort;
use infc_ir::scalar::{Scalar, Unary};
use infc_ir::{DType, Expr};

/// Sizes of a sort by a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// Elements in shared memory, a power of two.
    pub size: usize,
    /// Of these, how many stay from piece to piece; 0 if there is one piece.
    pub kept: usize,
}

/// The fewest elements of a line for which a block is worth while, and the most threads of it.
const FEW: i64 = 64;
const THREADS: usize = 512;
/// Bytes of shared memory that every GPU has for a block without being asked.
const SHARED: usize = 48 << 10;
/// Elements of a piece.
const PIECE: usize = 2048;

/// The plan, if lines fit or few elements are asked for.
pub fn plan(s: &Sort) -> Option<Network> {
    if !s.parts.is_empty() || s.dims[s.axis].is(0) {
        return None;
    }
    let most = (SHARED / (s.key.dtype().bytes() + number(s).bytes())) as i64;
    match s.extent.known() {
        Some(n) if n < FEW => None,
        Some(n) if n as u64 <= (most as u64 + 1).next_power_of_two() / 2 => {
            Some(Network { size: (n as usize).next_power_of_two(), kept: 0 })
        }
        _ => {
            let kept = s.dims[s.axis].known().filter(|&k| k <= PIECE as i64 / 2)?;
            Some(Network { size: PIECE, kept: kept as usize })
        }
    }
}

/// The dtype of the numbers of elements in shared memory.
fn number(s: &Sort) -> DType {
    match s.extent.known() {
        Some(n) if n < 1 << 30 => DType::I32,
        _ => DType::I64,
    }
}

impl Network {
    fn threads(&self) -> usize {
        (self.size / 2).min(THREADS)
    }
}

/// A block for each line.
pub fn build(cx: &mut Cx, s: &Sort, p: &Network) {
    let others: Vec<usize> = (0..s.dims.len()).filter(|&a| a != s.axis).collect();
    let dims: Vec<Expr> = others.iter().map(|&a| s.dims[a]).collect();
    cx.tasks = Expr::product(dims.iter().copied());
    let mut axes = vec![Expr::int(0); s.dims.len()];
    others.iter().zip(Expr::delinearise(cx.task, &dims)).for_each(|(&a, v)| axes[a] = v);
    let line = Line {
        s,
        p,
        axes,
        key: cx.scratch("key", s.key.dtype(), &[p.size], Space::Shared),
        element: cx.scratch("element", number(s), &[p.size], Space::Shared),
    };
    let mut body = [line.key, line.element].map(|buffer| Stmt::Alloc { buffer }).to_vec();
    if p.kept == 0 {
        body.push(line.load(cx, 0, Expr::int(0)));
        body.extend(line.sort(cx));
    } else {
        // No elements yet, which come last.
        let nothing = line.places(cx, p.kept, |cx, place| line.absent(cx, place, s.extent + place));
        let piece = cx.var("piece");
        let step = Expr::from(p.size - p.kept);
        let mut round = vec![line.load(cx, p.kept, piece * step)];
        round.extend(line.sort(cx));
        body.extend([nothing, for_each(piece, s.extent.div_ceil(step), LoopKind::Serial, round)]);
    }
    let asked = s.dims[s.axis];
    let count = asked.known().map_or(p.size, |k| k as usize);
    body.push(line.places(cx, count, |cx, place| {
        let mut at = line.axes.clone();
        at[s.axis] = place;
        let store = vec![cx.store_out(&at, cx.at(line.element, &[place]).cast(DType::I64))];
        match asked.known() {
            Some(_) => store,
            None => vec![Stmt::If { cond: Scalar::index(place).lt(Scalar::index(asked)), then: store, otherwise: vec![] }],
        }
    }));
    cx.body = body;
}

/// What the parts of the nest share.
struct Line<'a> {
    s: &'a Sort,
    p: &'a Network,
    /// The line: values of all axes but the one sorted along.
    axes: Vec<Expr>,
    key: u32,
    element: u32,
}

impl Line<'_> {
    /// A loop over the first places, shared out to all threads.
    fn places(&self, cx: &mut Cx, count: usize, make: impl FnOnce(&mut Cx, Expr) -> Vec<Stmt>) -> Stmt {
        let (thread, turn, threads) = (cx.var("thread"), cx.var("turn"), self.p.threads());
        let place = turn * threads as i64 + thread;
        let mut body = make(cx, place);
        if count % threads > 0 {
            body = vec![Stmt::If { cond: Scalar::index(place).lt(Scalar::index(count)), then: body, otherwise: vec![] }];
        }
        let body = vec![for_each(turn, Expr::from(count.div_ceil(threads)), LoopKind::Serial, body)];
        for_each(thread, Expr::from(threads), LoopKind::Thread, body)
    }

    /// A place without an element has a number beyond the last one.
    fn absent(&self, cx: &Cx, place: Expr, number_of: Expr) -> Vec<Stmt> {
        let key = Scalar::number(self.s.key.dtype(), 0.0);
        vec![cx.put(self.key, &[place], key), cx.put(self.element, &[place], Scalar::index(number_of).cast(number(self.s)))]
    }

    /// Puts the elements from `first` on into the places from `from` on.
    fn load(&self, cx: &mut Cx, from: usize, first: Expr) -> Stmt {
        self.places(cx, self.p.size - from, |cx, place| {
            let (element, place) = (first + place, place + from as i64);
            let mut at = self.axes.clone();
            at[self.s.axis] = element;
            let then = vec![
                cx.put(self.key, &[place], self.s.key.subst(&at)),
                cx.put(self.element, &[place], Scalar::index(element).cast(number(self.s))),
            ];
            let inside = Scalar::index(element).lt(Scalar::index(self.s.extent));
            vec![Stmt::If { cond: inside, then, otherwise: self.absent(cx, place, element) }]
        })
    }

    /// The network: runs of two elements, each second one falling, are merged to runs of four, and so on.
    fn sort(&self, cx: &mut Cx) -> Vec<Stmt> {
        let size = self.p.size as i64;
        let runs = std::iter::successors(Some(2), |run| Some(run * 2)).take_while(|&run| run <= size);
        let steps = runs
            .flat_map(|run| std::iter::successors(Some(run / 2), |d| Some(d / 2)).take_while(|&d| d > 0).map(move |d| (run, d)));
        steps.map(|(run, distance)| self.exchange(cx, run, distance)).collect()
    }

    /// Puts all pairs of elements so far apart into the order of their run.
    fn exchange(&self, cx: &mut Cx, run: i64, distance: i64) -> Stmt {
        self.places(cx, self.p.size / 2, |cx, pair| {
            let low = pair.div(Expr::int(distance)) * (2 * distance) + pair.rem(Expr::int(distance));
            let high = low + distance;
            let mut body = vec![];
            let mut named = |cx: &mut Cx, buffer: u32, at: Expr| super::online::name(cx, cx.at(buffer, &[at]), &mut body);
            let [x, y] = [low, high].map(|at| (named(cx, self.key, at), named(cx, self.element, at)));
            let wrong = self.before(y, x);
            let wrong = match run == self.p.size as i64 {
                true => wrong,
                false => {
                    let falling = Scalar::index(low.div(Expr::int(run)).rem(Expr::int(2))).lt(Scalar::index(1));
                    Scalar::select(falling, wrong, Scalar::unary(Unary::Not, wrong))
                }
            };
            let swap = [(low, y), (high, x)].into_iter();
            let swap = swap.flat_map(|(at, (k, e))| [cx.put(self.key, &[at], k), cx.put(self.element, &[at], e)]).collect();
            body.push(Stmt::If { cond: wrong, then: swap, otherwise: vec![] });
            body
        })
    }

    /// Does the first of two elements, of key and number, come before the other one?
    fn before(&self, (x, i): (Scalar, Scalar), (y, j): (Scalar, Scalar)) -> Scalar {
        let less = |x: Scalar, y: Scalar| if self.s.descending { below(y, x) } else { below(x, y) };
        let lower = i.lt(j);
        let extent = Scalar::index(self.s.extent).cast(number(self.s));
        let absent = extent.le(i).or(extent.le(j));
        let by_key = less(x, y).or(Scalar::unary(Unary::Not, less(y, x)).and(lower));
        Scalar::select(absent, lower, by_key)
    }
}
