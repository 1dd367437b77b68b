//! Online softmax (after Milakov and Gimelshein 2018, and Dao et al. 2022): the statistics of rows of scores whose keys come tile by tile through shared
//! memory. Weights are relative to the largest score so far; what was summed up before is scaled where a tile brings a larger one.

use super::{Cx, for_each};
use crate::attention::Attention;
use crate::loops::{LoopKind, Stmt};
use infc_ir::scalar::{Scalar, Unary};
use infc_ir::{DType, Expr};

/// Rows of scores and their statistics, in shared memory.
pub(super) struct Online {
    /// Rows, and keys of a tile.
    pub rows: usize,
    pub keys: usize,
    /// Threads that share a row, and those of the block.
    pub parts: usize,
    pub threads: usize,
    /// Scores by row and key, and the weights that they become; these may be the same buffer.
    pub score: u32,
    pub weight: u32,
    /// Largest score and sum of the weights so far, and what the sums before the tile are multiplied with; by row.
    pub most: u32,
    pub sum: u32,
    pub scale: u32,
    /// The same of each thread, by row and part.
    pub mosts: u32,
    pub sums: u32,
}

pub(super) fn number(x: f64) -> Scalar {
    Scalar::float(DType::F32, x)
}

impl Online {
    /// Nothing so far.
    pub fn start(&self, cx: &mut Cx) -> Stmt {
        self.rows_of(cx, &|cx, row, part, _| {
            let clear = vec![cx.put(self.most, &[row], number(f64::NEG_INFINITY)), cx.put(self.sum, &[row], number(0.0))];
            vec![first_part(part, clear)]
        })
    }

    /// Takes the scores of a tile in: the weights, as they are kept, and the statistics with them.
    pub fn update(&self, cx: &mut Cx, kept: &dyn Fn(Scalar) -> Scalar) -> [Stmt; 3] {
        // Each thread has some of a row's keys: their largest score, then their weights.
        let each = self.keys / self.parts;
        let of_part = |part: Expr, i: usize| part + (i * self.parts) as i64;
        let mosts = self.rows_of(cx, &|cx, row, part, _| {
            let all = (0..each).map(|i| cx.at(self.score, &[row, of_part(part, i)]));
            let largest = all.reduce(Scalar::max).expect("a part has keys");
            vec![cx.put(self.mosts, &[row, part], largest)]
        });
        let largest = |cx: &Cx, row: Expr| {
            (0..self.parts).fold(cx.at(self.most, &[row]), |m, k| m.max(cx.at(self.mosts, &[row, Expr::from(k)])))
        };
        let weights = self.rows_of(cx, &|cx, row, part, body| {
            let now = name(cx, largest(cx, row), body);
            let from = name(cx, origin(now), body);
            let exp = |x: Scalar| Scalar::unary(Unary::Exp, x - from);
            let mut total: Option<Scalar> = None;
            for i in 0..each {
                let at = of_part(part, i);
                let e = name(cx, exp(cx.at(self.score, &[row, at])), body);
                body.push(cx.put(self.weight, &[row, at], kept(e)));
                total = Some(match total {
                    None => e,
                    Some(sum) => name(cx, sum + e, body),
                });
            }
            let change = cx.put(self.scale, &[row], exp(cx.at(self.most, &[row])));
            vec![cx.put(self.sums, &[row, part], total.expect("a part has keys")), first_part(part, vec![change])]
        });
        let sums = self.rows_of(cx, &|cx, row, part, _| {
            let before = cx.at(self.sum, &[row]) * cx.at(self.scale, &[row]);
            let total = (0..self.parts).fold(before, |t, k| t + cx.at(self.sums, &[row, Expr::from(k)]));
            vec![first_part(part, vec![cx.put(self.sum, &[row], total), cx.put(self.most, &[row], largest(cx, row))])]
        });
        [mosts, weights, sums]
    }

    /// A loop over all threads, of which some share a row: its row and part, and what comes before the last statements.
    fn rows_of(&self, cx: &mut Cx, make: &dyn Fn(&mut Cx, Expr, Expr, &mut Vec<Stmt>) -> Vec<Stmt>) -> Stmt {
        let thread = cx.var("thread");
        let parts = Expr::from(self.parts);
        let mut body = vec![];
        let last = make(cx, thread.div(parts), thread.rem(parts), &mut body);
        body.extend(last);
        if self.rows * self.parts < self.threads {
            let cond = Scalar::index(thread).lt(Scalar::index(self.rows * self.parts));
            body = vec![Stmt::If { cond, then: body, otherwise: vec![] }];
        }
        for_each(thread, Expr::from(self.threads), LoopKind::Thread, body)
    }
}

/// What weights are relative to, by the largest score. Without any key there is nothing to be relative to.
pub(super) fn origin(largest: Scalar) -> Scalar {
    Scalar::select(largest.eq_to(number(f64::NEG_INFINITY)), number(0.0), largest)
}

/// The sum of weighted values divided by that of weights. Without any key the sum over them is 0, as that of the steps.
pub(super) fn quotient(a: &Attention, sum: Scalar, total: Scalar) -> Scalar {
    let nothing = match (a.empty_is_zero, a.keys.known()) {
        (true, _) => Some(total.eq_to(number(0.0))),
        (false, None) => Some(Scalar::index(a.keys).lt(Scalar::index(1))),
        (false, Some(_)) => None,
    };
    let value = sum / nothing.map_or(total, |nothing| Scalar::select(nothing, number(1.0), total));
    if a.nan_is_zero { Scalar::select(Scalar::unary(Unary::IsNan, total), number(0.0), value) } else { value }
}

fn first_part(part: Expr, then: Vec<Stmt>) -> Stmt {
    Stmt::If { cond: Scalar::index(part).lt(Scalar::index(1)), then, otherwise: vec![] }
}

/// Names a value.
pub(super) fn name(cx: &mut Cx, value: Scalar, body: &mut Vec<Stmt>) -> Scalar {
    let local = cx.local();
    body.push(Stmt::Let { local, value });
    Scalar::local(value.dtype(), local)
}
