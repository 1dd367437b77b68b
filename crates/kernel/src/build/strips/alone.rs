//! Queries that are taken one by one, as in decoding: lanes lie along the depth of the scores and then along keys.

use super::{Keys, Parts, TOGETHER, along, base, f32, larger, name, vector, weight};
use crate::build::{Cx, for_each};
use crate::loops::{LoopKind, Space, Stmt};
use infc_ir::scalar::Scalar;
use infc_ir::{DType, Expr};

impl Parts<'_> {
    /// The queries of a strip one by one.
    pub(super) fn alone(&self, cx: &mut Cx) -> Vec<Stmt> {
        let p = self.p;
        let lanes = self.lanes;
        let i = cx.var("query");
        let number = self.first + i;
        let axes = self.at_query(number);
        let query = cx.scratch("query", DType::F32, &self.depth, Space::Tile);
        let score = cx.scratch("score", DType::F32, &[p.keys.next_multiple_of(lanes.max(TOGETHER))], Space::Tile);
        let [most, sum] = ["most", "sum"].map(|name| cx.scratch(name, DType::F32, &[1], Space::Tile));
        let result = cx.scratch("result", DType::F32, &[self.columns], Space::Tile);
        let zero = Expr::int(0);
        let mut body = [query, score, most, sum, result].map(|buffer| Stmt::Alloc { buffer }).to_vec();
        body.extend(along(cx, self.depth[0], lanes, &mut |cx, d| vec![cx.put(query, &[d], self.query_at(&axes, &[d]))]));
        body.extend([cx.put(most, &[zero], f32(f64::NEG_INFINITY)), cx.put(sum, &[zero], f32(0.0))]);
        body.extend(along(cx, self.columns, lanes, &mut |cx, c| vec![cx.put(result, &[c], f32(0.0))]));
        let all = self.reach(number);
        body.extend(self.each_tile(cx, all, &mut |cx, keys| {
            let mut round = self.dots(cx, keys, query, score);
            let [scale, high, total] = ["scale", "high", "total"].map(|name| {
                let dims: &[usize] = if name == "scale" { &[1] } else { &[lanes] };
                cx.scratch(name, DType::F32, dims, Space::Reg)
            });
            round.extend([scale, high, total].map(|buffer| Stmt::Alloc { buffer }));
            // Scores in the place of sums, and the largest; -inf beyond the last key.
            round.push(vector(cx, lanes, &|cx, l| vec![cx.put(high, &[l], f32(f64::NEG_INFINITY))]));
            let blocks = keys.count.div_ceil(Expr::from(lanes));
            let block = cx.var("block");
            let scored = |cx: &mut Cx, masked: bool| {
                vector(cx, lanes, &|cx, l| {
                    let k = block * lanes as i64 + l;
                    let key = keys.first + if masked { k.min(keys.count - 1) } else { k };
                    let x = self.score(axes.clone(), key, cx.at(score, &[k]));
                    let there = Scalar::index(k).lt(Scalar::index(keys.count));
                    let x = if masked { Scalar::select(there, x, f32(f64::NEG_INFINITY)) } else { x };
                    let mut all = vec![];
                    let x = name(cx, x, &mut all);
                    all.push(cx.put(score, &[k], x));
                    all.push(cx.put(high, &[l], larger(cx.at(high, &[l]), x)));
                    all
                })
            };
            let full = scored(cx, false);
            let step = if keys.count.known().is_some_and(|n| n % lanes as i64 == 0) {
                full
            } else {
                let tail = scored(cx, true);
                let cond = Scalar::index(block * lanes as i64 + lanes as i64).le(Scalar::index(keys.count));
                Stmt::If { cond, then: vec![full], otherwise: vec![tail] }
            };
            round.push(for_each(block, blocks, LoopKind::Serial, vec![step]));
            round.extend(halves(cx, high, lanes, &larger));
            let largest = name(cx, larger(cx.at(most, &[zero]), cx.at(high, &[zero])), &mut round);
            let low = name(cx, base(largest), &mut round);
            let change = {
                let x = weight(cx, cx.at(most, &[zero]) - low);
                name(cx, x, &mut round)
            };
            round.extend([cx.put(scale, &[zero], change), cx.put(most, &[zero], largest)]);
            round.push(vector(cx, lanes, &|cx, l| vec![cx.put(total, &[l], f32(0.0))]));
            let block = cx.var("block");
            let weights = vector(cx, lanes, &|cx, l| {
                let k = block * lanes as i64 + l;
                let mut all = vec![];
                let weight = {
                    let x = weight(cx, cx.at(score, &[k]) - low);
                    name(cx, x, &mut all)
                };
                all.push(cx.put(score, &[k], weight));
                all.push(cx.put(total, &[l], cx.at(total, &[l]) + weight));
                all
            });
            round.push(for_each(block, blocks, LoopKind::Serial, vec![weights]));
            round.extend(halves(cx, total, lanes, &|a, b| a + b));
            let now = cx.at(sum, &[zero]) * cx.at(scale, &[zero]) + cx.at(total, &[zero]);
            round.push(cx.put(sum, &[zero], now));
            // The product with the values, as many columns as registers hold.
            let most_columns = 8 * lanes;
            let mut from = 0;
            while from < self.columns {
                let width = most_columns.min(self.columns - from);
                let acc = cx.scratch("acc", DType::F32, &[width], Space::Reg);
                round.push(Stmt::Alloc { buffer: acc });
                round.push(vector(cx, width, &|cx, c| {
                    vec![cx.put(acc, &[c], cx.at(result, &[c + from as i64]) * cx.at(scale, &[zero]))]
                }));
                let k = cx.var("key");
                let step = vector(cx, width, &|cx, c| {
                    let (a, b) = (cx.at(score, &[k]), self.value_itself(keys, k, c + from as i64));
                    vec![cx.put(acc, &[c], (self.single.step)(cx.at(acc, &[c]), &[a], &[b]))]
                });
                round.push(for_each(k, keys.count, LoopKind::Serial, vec![step]));
                round.push(vector(cx, width, &|cx, c| vec![cx.put(result, &[c + from as i64], cx.at(acc, &[c]))]));
                from += width;
            }
            round
        }));
        body.extend(along(cx, self.columns, lanes, &mut |cx, c| {
            vec![self.finish(cx, number, c, cx.at(result, &[c]), cx.at(sum, &[zero]))]
        }));
        vec![for_each(i, self.left(), LoopKind::Serial, body)]
    }

    /// Sums of products of one query with a tile's keys: lanes along the depth, joined at the end, some keys together.
    fn dots(&self, cx: &mut Cx, keys: Keys, query: u32, score: u32) -> Vec<Stmt> {
        let depth = self.depth[0];
        let lanes = (0..=self.lanes.ilog2()).rev().map(|p| 1usize << p).find(|&l| l <= depth).expect("a depth");
        let acc = cx.scratch("acc", DType::F32, &[TOGETHER, lanes], Space::Reg);
        let tile = cx.var("keys");
        let exact = keys.count.known().is_some_and(|n| n % TOGETHER as i64 == 0);
        let key = |j: Expr| {
            let k = tile * TOGETHER as i64 + j;
            if exact { k } else { k.min(keys.count - 1) }
        };
        let each = |cx: &mut Cx, width: usize, make: &dyn Fn(&mut Cx, Expr, Expr) -> Vec<Stmt>| {
            let (j, l) = (cx.var("key"), cx.var("lane"));
            let body = make(cx, j, l);
            let kind = if width > 1 { LoopKind::Vector } else { LoopKind::Unroll };
            for_each(j, Expr::from(TOGETHER), LoopKind::Unroll, vec![for_each(l, Expr::from(width), kind, body)])
        };
        let mut body = vec![Stmt::Alloc { buffer: acc }];
        body.push(each(cx, lanes, &|cx, j, l| vec![cx.put(acc, &[j, l], f32(0.0))]));
        let block = cx.var("block");
        let add = |cx: &mut Cx, j: Expr, l: Expr, d: Expr| {
            let (a, b) = (cx.at(query, &[d]), self.key_itself(keys, key(j), &[d]));
            vec![cx.put(acc, &[j, l], (self.single.step)(cx.at(acc, &[j, l]), &[a], &[b]))]
        };
        let blocks = depth / lanes;
        let step = each(cx, lanes, &|cx, j, l| add(cx, j, l, block * lanes as i64 + l));
        let kind = if blocks <= 8 { LoopKind::Unroll } else { LoopKind::Serial };
        body.push(for_each(block, Expr::from(blocks), kind, vec![step]));
        let rest = depth % lanes;
        if rest > 0 {
            body.push(each(cx, rest, &|cx, j, l| add(cx, j, l, l + (blocks * lanes) as i64)));
        }
        let mut half = lanes / 2;
        while half > 0 {
            body.push(each(cx, half, &|cx, j, l| {
                vec![cx.put(acc, &[j, l], cx.at(acc, &[j, l]) + cx.at(acc, &[j, l + half as i64]))]
            }));
            half /= 2;
        }
        let j = cx.var("key");
        let store = cx.put(score, &[tile * TOGETHER as i64 + j], cx.at(acc, &[j, Expr::int(0)]));
        body.push(for_each(j, Expr::from(TOGETHER), LoopKind::Unroll, vec![store]));
        vec![for_each(tile, keys.count.div_ceil(Expr::from(TOGETHER)), LoopKind::Serial, body)]
    }
}

/// Joins the lanes of a buffer into the first one.
fn halves(cx: &mut Cx, buffer: u32, lanes: usize, join: &dyn Fn(Scalar, Scalar) -> Scalar) -> Vec<Stmt> {
    let mut all = vec![];
    let mut half = lanes / 2;
    while half > 0 {
        all.push(vector(cx, half, &|cx, l| {
            vec![cx.put(buffer, &[l], join(cx.at(buffer, &[l]), cx.at(buffer, &[l + half as i64])))]
        }));
        half /= 2;
    }
    all
}
