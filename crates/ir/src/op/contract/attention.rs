//! Scaled dot-product attention and rotary position embedding.
//!
//! Four-dimensional attention is a list of steps (scores, largest, sum, probabilities, result), so that masks, windows and
//! grouped heads are index arithmetic and nothing is copied; three-dimensional operands are reshaped around it.

use super::super::common::*;
use super::super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Binary as B, Scalar, Unary as U};

/// Operands.
const MASK: usize = 3;
const PAST_KEY: usize = 4;
const PAST_VALUE: usize = 5;
const LENGTHS: usize = 6;

/// Sizes of an attention node, four-dimensional or not.
struct Sizes {
    batch: Expr,
    /// Heads of the query, and of key and value.
    heads: Expr,
    kv_heads: Expr,
    queries: Expr,
    /// Keys before this call, and all of them.
    past: Expr,
    keys: Expr,
    size: Expr,
    value_size: Expr,
}

impl Attention {
    fn sizes(&self, cx: &Ctx) -> Result<Sizes, Fault> {
        let (q, k, v) = (accept(cx, 0, Accept::Float)?, accept(cx, 1, Accept::Float)?, accept(cx, 2, Accept::Float)?);
        let past = if cx.has(PAST_KEY) {
            expect_rank(cx, PAST_KEY, 4)?;
            cx.dims(PAST_KEY)?[2]
        } else {
            Expr::int(0)
        };
        let (heads, kv_heads, split) = match (q.rank(), k.rank(), v.rank()) {
            (4, 4, 4) => (q.dims[1], k.dims[1], None),
            (3, 3, 3) => {
                let (Some(h), Some(kv)) = (self.q_num_heads, self.kv_num_heads) else {
                    return Err(fault!("operands of rank 3 need the attributes q_num_heads and kv_num_heads"));
                };
                if h < 1 || kv < 1 {
                    return Err(fault!("q_num_heads is {h}, kv_num_heads is {kv}"));
                }
                (Expr::int(h), Expr::int(kv), Some((h, kv)))
            }
            _ => return Err(fault!("query {q}, key {k} and value {v} must all have rank 3 or 4")),
        };
        let seq = if split.is_some() { 1 } else { 2 };
        let part = |t: &TensorType, n: Option<i64>| n.map_or(t.dims[3.min(t.rank() - 1)], |n| t.dims[2].div(Expr::int(n)));
        let s = Sizes {
            batch: q.dims[0],
            heads,
            kv_heads,
            queries: q.dims[seq],
            past,
            keys: past + k.dims[seq],
            size: part(q, split.map(|s| s.0)),
            value_size: part(v, split.map(|s| s.1)),
        };
        expect_dim("the head size of the key", part(k, split.map(|s| s.1)), s.size)?;
        if heads.rem(kv_heads).known().is_some_and(|r| r != 0) {
            return Err(fault!("{kv_heads} key heads do not divide {heads} query heads"));
        }
        Ok(s)
    }
    fn check(&self, cx: &Ctx) -> Result<(), Fault> {
        if cx.has(PAST_KEY) != cx.has(PAST_VALUE) {
            return Err(fault!("past_key and past_value must be given together"));
        }
        if cx.has(LENGTHS) && cx.has(PAST_KEY) {
            return Err(fault!("nonpad_kv_seqlen cannot be combined with past_key"));
        }
        if self.left_window_size < -1 || self.right_window_size < -1 {
            return Err(fault!("a window size is below -1: {} or {}", self.left_window_size, self.right_window_size));
        }
        if !(0..=3).contains(&self.qk_matmul_output_mode) {
            return Err(fault!("attribute 'qk_matmul_output_mode' is {}; 0 to 3 is needed", self.qk_matmul_output_mode));
        }
        if cx.has(MASK) {
            let m = accept(cx, MASK, Accept::NumberOrBool)?;
            if m.rank() == 0 || m.rank() > 4 || m.dtype.is_int() {
                return Err(fault!("the mask is {m}; bool or float of rank 1 to 4 is needed"));
            }
        }
        self.softmax_dtype(DType::F32).map(drop)
    }
    /// The dtype of the softmax's operand and result; it is computed in that dtype's accumulator.
    fn softmax_dtype(&self, scores: DType) -> Result<DType, Fault> {
        match self.softmax_precision {
            None => Ok(scores),
            Some(p) => match dtype_attr("softmax_precision", p)? {
                d if d.is_float() => Ok(d),
                d => Err(fault!("attribute 'softmax_precision' is {d}, which is no float")),
            },
        }
    }
}

impl OpDef for Attention {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let s = self.sizes(cx)?;
        self.check(cx)?;
        let (q, v) = (cx.tensor(0)?, cx.tensor(2)?);
        let y = if q.rank() == 3 {
            vec![s.batch, s.queries, s.heads * s.value_size]
        } else {
            vec![s.batch, s.heads, s.queries, s.value_size]
        };
        Ok(vec![
            Fact::tensor(q.dtype, y),
            Fact::tensor(cx.dtype(1)?, [s.batch, s.kv_heads, s.keys, s.size]),
            Fact::tensor(v.dtype, [s.batch, s.kv_heads, s.keys, s.value_size]),
            Fact::tensor(q.dtype, [s.batch, s.heads, s.queries, s.keys]),
        ])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        if cx.tensor(0)?.rank() == 3 {
            return Ok(self.unpacked(cx.outputs));
        }
        self.steps(cx)
    }
}

/// `[batch, sequence, heads * size]` to `[batch, heads, sequence, size]`.
pub(super) fn split_heads(b: &mut Builder, x: Value, heads: i64) -> Result<Value, Fault> {
    let x = reshape(b, x, &[0, 0, heads, -1])?;
    b.op(Transpose { perm: vec![0, 2, 1, 3] }, &[x])
}

/// Back again.
pub(super) fn join_heads(b: &mut Builder, x: Value) -> Result<Value, Fault> {
    let x = b.op(Transpose { perm: vec![0, 2, 1, 3] }, &[x])?;
    reshape(b, x, &[0, 0, -1])
}

impl Attention {
    /// Three-dimensional operands: heads taken apart, and put together again in the result.
    fn unpacked(&self, outputs: usize) -> Meaning {
        let inner = Attention { q_num_heads: None, kv_num_heads: None, ..self.clone() };
        let (q_heads, kv_heads) = (self.q_num_heads.unwrap_or(1), self.kv_num_heads.unwrap_or(1));
        Meaning::decompose(move |b, v| {
            let mut operands = v.to_vec();
            for (i, heads) in [q_heads, kv_heads, kv_heads].into_iter().enumerate() {
                operands[i] = Some(split_heads(b, v[i].expect("arity"), heads)?);
            }
            let mut results = b.node(inner.clone(), &operands, vec![], outputs)?;
            results[0] = join_heads(b, results[0])?;
            Ok(results)
        })
    }

    /// Additive mask (if any) and condition under which query `o[2]` may look at key `o[3]`.
    fn mask(&self, cx: &Ctx, s: &Sizes, o: &[Expr]) -> Result<(Option<Scalar>, Scalar), Fault> {
        let (i, j) = (Scalar::index(o[2]), Scalar::index(o[3]));
        let length = || -> Result<Scalar, Fault> { Ok(Scalar::read_at(cx.dtype(LENGTHS)?, LENGTHS, &[o[0]]).cast(DType::I64)) };
        // The position of query i among the keys.
        let at = if cx.has(LENGTHS) { i + length()? - Scalar::index(s.queries) } else { i + Scalar::index(s.past) };
        let mut allowed = Scalar::always();
        if self.is_causal {
            allowed = allowed.and(j.le(at));
        }
        if self.left_window_size >= 0 {
            allowed = allowed.and((at - Scalar::index(self.left_window_size)).le(j));
        }
        if self.right_window_size >= 0 {
            allowed = allowed.and(j.le(at + Scalar::index(self.right_window_size)));
        }
        if cx.has(LENGTHS) {
            allowed = allowed.and(j.lt(length()?));
        }
        if !cx.has(MASK) {
            return Ok((None, allowed));
        }
        // The mask's last dim may be shorter than the keys; what it does not reach is masked.
        let m = cx.tensor(MASK)?;
        let last = m.dims[m.rank() - 1];
        let full = &[s.batch, s.heads, s.queries, s.keys][4 - m.rank()..];
        let mut index = broadcast_index(&m.dims, full, &o[4 - m.rank()..]);
        let reach = index.len() - 1;
        index[reach] = o[3];
        let covered = if last == s.keys { Scalar::always() } else { j.lt(Scalar::index(last)) };
        let read = |fallback: Scalar| Scalar::read_if(MASK, index.iter().map(|&e| Scalar::index(e)), covered, fallback);
        if m.dtype == DType::Bool {
            return Ok((None, allowed.and(read(Scalar::int(DType::Bool, 0)))));
        }
        let bias = read(Scalar::float(m.dtype, f64::NEG_INFINITY)).cast(cx.dtype(0)?.accumulator());
        Ok((Some(bias), allowed))
    }

    fn steps(&self, cx: &Ctx) -> Result<Meaning, Fault> {
        let s = self.sizes(cx)?;
        let (q, k, v) = (cx.tensor(0)?, cx.tensor(1)?, cx.tensor(2)?);
        let wide = q.dtype.accumulator();
        let precision = self.softmax_dtype(q.dtype)?;
        let soft = precision.accumulator();
        let n = cx.inputs.len();
        let mut steps: Vec<Step> = vec![];
        let mut push = |c: Compute| {
            steps.push(Step::Compute(c.simplify()));
            n + steps.len() - 1
        };
        let (mut key, mut value) = (1, 2);
        if cx.has(PAST_KEY) {
            key = push(joined(k, 1, PAST_KEY, &s, s.size));
            value = push(joined(v, 2, PAST_VALUE, &s, s.value_size));
        }
        let group = s.heads.div(s.kv_heads);
        let kv_head = |h: Expr| if s.heads == s.kv_heads { h } else { h.div(group) };
        let scores = [s.batch, s.heads, s.queries, s.keys];
        let scale = match (self.scale, s.size.known()) {
            (Some(scale), _) => Scalar::float(wide, f64::from(scale)),
            (None, Some(d)) => Scalar::float(wide, 1.0 / (d as f64).sqrt()),
            (None, None) => Scalar::float(wide, 1.0) / un(U::Sqrt, Scalar::index(s.size).cast(wide)),
        };
        // Narrow floats are scaled before the product, half on each side, as ONNX's function body does; then all its
        // roundings are the same.
        let narrow = wide != q.dtype;
        let (mut query, mut scaled_key) = (0, key);
        if narrow {
            let half = un(U::Sqrt, scale).cast(q.dtype).cast(wide);
            let mut prescale = |t: &TensorType, source: usize, dims: &[Expr]| {
                push(Compute::map(dims, |o| (Scalar::read_at(t.dtype, source, o).cast(wide) * half).cast(t.dtype)))
            };
            query = prescale(q, 0, &q.dims);
            scaled_key = prescale(k, key, &[s.batch, s.kv_heads, s.keys, s.size]);
        }
        let product = |o: &[Expr], d: &[Expr]| {
            let q = Scalar::read_at(q.dtype, query, &[o[0], o[1], o[2], d[0]]).cast(wide);
            q * Scalar::read_at(k.dtype, scaled_key, &[o[0], kv_head(o[1]), o[3], d[0]]).cast(wide)
        };
        let round = |x: Scalar| x.cast(q.dtype).cast(wide);
        let cap = |x: Scalar| {
            if self.softcap > 0.0 {
                let c = num(x, f64::from(self.softcap));
                c * un(U::Tanh, x / c)
            } else {
                x
            }
        };
        let masked = |o: &[Expr], x: Scalar| {
            let (bias, allowed) = self.mask(cx, &s, o).expect("checked by infer");
            let low = num(x, f64::NEG_INFINITY);
            match bias {
                // A position that the mask rules out counts for nothing, whatever its score is.
                Some(b) => Scalar::select(allowed.and(bin(B::Ne, b, low)), x + b, low),
                None => Scalar::select(allowed, x, low),
            }
        };
        let asked = if cx.outputs > 3 { self.qk_matmul_output_mode } else { 3 };
        // Scores are stored as they are asked for, and masked in a step of their own if that was too early.
        let mut score = push(Compute::reduce(&scores, &[s.size], Reducer::Sum, product, |o, acc| {
            let x = if narrow { round(acc) } else { acc * scale };
            let x = match asked {
                0 => x,
                1 => cap(x),
                _ => masked(o, round(cap(x))),
            };
            x.cast(q.dtype)
        }));
        let mut exposed = score;
        if asked < 2 {
            score = push(Compute::map(&scores, |o| {
                let x = Scalar::read_at(q.dtype, exposed, o).cast(wide);
                masked(o, if asked == 0 { round(cap(x)) } else { x }).cast(q.dtype)
            }));
        }
        let rows = [s.batch, s.heads, s.queries];
        let read = |o: &[Expr], j: Expr| Scalar::read_at(q.dtype, score, &[o[0], o[1], o[2], j]).cast(precision).cast(soft);
        let largest = push(Compute::reduce(&rows, &[s.keys], Reducer::Max, |o, j| read(o, j[0]), |_, acc| acc));
        let power = |o: &[Expr], j: Expr| {
            let m = Scalar::read_at(soft, largest, &o[..3]);
            let safe = Scalar::select(m.eq_to(num(m, f64::NEG_INFINITY)), num(m, 0.0), m);
            un(U::Exp, read(o, j) - safe)
        };
        let sum = push(Compute::reduce(&rows, &[s.keys], Reducer::Sum, |o, j| power(o, j[0]), |_, acc| acc));
        // A row without any key to look at is zero.
        let share = push(Compute::map(&scores, |o| {
            let total = Scalar::read_at(soft, sum, &o[..3]);
            let total = Scalar::select(total.eq_to(num(total, 0.0)), num(total, 1.0), total);
            (power(o, o[3]) / total).cast(precision).cast(q.dtype)
        }));
        let y = push(Compute::reduce(
            &[s.batch, s.heads, s.queries, s.value_size],
            &[s.keys],
            Reducer::Sum,
            |o, j| {
                let p = Scalar::read_at(q.dtype, share, &[o[0], o[1], o[2], j[0]]).cast(wide);
                p * Scalar::read_at(v.dtype, value, &[o[0], kv_head(o[1]), j[0], o[3]]).cast(wide)
            },
            |_, acc| acc.cast(q.dtype),
        ));
        if asked == 3 {
            exposed = share;
        }
        let outputs = [y, key, value, exposed].map(|s| s as u32)[..cx.outputs.max(1)].to_vec();
        Ok(Meaning::Steps { steps, outputs })
    }
}

/// The cache `past` followed by operand `now` along the sequence.
fn joined(t: &TensorType, now: usize, past: usize, s: &Sizes, size: Expr) -> Compute {
    Compute::map(&[s.batch, s.kv_heads, s.keys, size], |o| {
        let cached = Scalar::index(o[2]).lt(Scalar::index(s.past));
        let before = Scalar::read_if(past, o.iter().map(|&e| Scalar::index(e)), cached, Scalar::number(t.dtype, 0.0));
        let at = [o[0], o[1], o[2] - s.past, o[3]].map(Scalar::index);
        Scalar::read_if(now, at, Scalar::index(s.past).le(Scalar::index(o[2])), before)
    })
}

// ---- RotaryEmbedding ----

impl RotaryEmbedding {
    /// Head size and the number of elements of it that are rotated.
    fn sizes(&self, cx: &Ctx) -> Result<(Expr, Expr), Fault> {
        let x = cx.tensor(0)?;
        let size = match (x.rank(), self.num_heads) {
            (4, _) => x.dims[3],
            (3, Some(n)) if n > 0 => x.dims[2].div(Expr::int(n)),
            (3, _) => return Err(fault!("an operand of rank 3 needs the attribute num_heads")),
            _ => return Err(fault!("operand 0 is {x}; rank 3 or 4 is needed")),
        };
        let rotated = if self.rotary_embedding_dim > 0 { Expr::int(self.rotary_embedding_dim) } else { size };
        if rotated.rem(Expr::int(2)).known().is_some_and(|r| r != 0) {
            return Err(fault!("{rotated} elements to rotate are no pairs"));
        }
        Ok((size, rotated))
    }
}

impl OpDef for RotaryEmbedding {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        let (_, rotated) = self.sizes(cx)?;
        let rank = if cx.has(3) { 2 } else { 3 };
        for i in [1, 2] {
            accept(cx, i, Accept::Float)?;
            expect_rank(cx, i, rank)?;
            expect_dim("the last dim of a cache", cx.dims(i)?[rank - 1], rotated.div(Expr::int(2)))?;
        }
        if cx.has(3) {
            expect_rank(cx, 3, 2)?;
            accept(cx, 3, Accept::Int)?;
        }
        Ok(vec![Fact::of(x.clone())])
    }
    /// Element `d` of a head with partner `p`: `cos x[d] - sin x[p]` in the first half (or at even places), else
    /// `cos x[d] + sin x[p]`.
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (size, rotated) = self.sizes(cx)?;
        let x = cx.tensor(0)?;
        let wide = x.dtype.accumulator();
        let (two, half) = (Expr::int(2), rotated.div(Expr::int(2)));
        let c = Compute::map(&x.dims, |o| {
            let packed = x.rank() == 3;
            let d = if packed { o[2].rem(size) } else { o[3] };
            let sequence = if packed { o[1] } else { o[2] };
            let (partner, angle, first) = if self.interleaved != 0 {
                (d + 1 - d.rem(two) * 2, d.div(two), Scalar::index(d.rem(two)).eq_to(Scalar::index(0)))
            } else {
                ((d + half).rem(rotated), d.rem(half), Scalar::index(d).lt(Scalar::index(half)))
            };
            let turns = if rotated == size { Scalar::always() } else { Scalar::index(d).lt(Scalar::index(rotated)) };
            let zero = |t: DType| Scalar::number(t, 0.0);
            let cache = |i: usize| {
                let t = cx.tensor(i).expect("checked by infer");
                let at = match cx.dtype(3) {
                    Ok(ids) => {
                        let id = Scalar::read_at(ids, 3, &[o[0], sequence]).cast(DType::I64);
                        let id = id.min(Scalar::index(t.dims[0] - 1)).max(Scalar::index(0));
                        vec![id, Scalar::index(angle)]
                    }
                    Err(_) => [o[0], sequence, angle].map(Scalar::index).to_vec(),
                };
                Scalar::read_if(i, at, turns, zero(t.dtype)).cast(wide)
            };
            let mut at = o.to_vec();
            let last = at.len() - 1;
            at[last] = if packed { o[2] - d + partner } else { partner };
            let own = Scalar::read_at(x.dtype, 0, o).cast(wide);
            let other = Scalar::read_if(0, at.into_iter().map(Scalar::index), turns, zero(x.dtype)).cast(wide);
            let (cos, sin) = (cache(1), cache(2));
            let turned = Scalar::select(first, cos * own - sin * other, cos * own + sin * other);
            Scalar::select(turns, turned, own).cast(x.dtype)
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c.simplify())))
    }
}
