//! The same elements, or some of them, in another order or place.

use super::*;
use crate::expr::Ranges;

impl Transpose {
    /// Operand axis of each result axis.
    fn perm(&self, rank: usize) -> Result<Vec<usize>, Fault> {
        if self.perm.is_empty() {
            return Ok((0..rank).rev().collect());
        }
        // Places are not counted from the end here (ONNX, Transpose).
        let wrong = || fault!("perm {:?} is no permutation of {rank} axes", self.perm);
        let perm = self.perm.iter().map(|&a| usize::try_from(a).map_err(|_| wrong())).collect::<Result<Vec<_>, _>>()?;
        let mut sorted = perm.clone();
        sorted.sort_unstable();
        let all = sorted.into_iter().eq(0..rank);
        if all { Ok(perm) } else { Err(wrong()) }
    }
}

impl OpDef for Transpose {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        let dims = self.perm(t.rank())?.into_iter().map(|a| t.dims[a]).collect();
        Ok(moved(t.dtype, dims, cx.fact(0)?.ints.clone()))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let perm = self.perm(cx.tensor(0)?.rank())?;
        read_moved(cx, outs, |axes| {
            let mut index = axes.to_vec();
            perm.iter().zip(axes).for_each(|(&a, &i)| index[a] = i);
            index
        })
    }
}

/// Where each operand of a concatenation starts, and the whole extent.
fn offsets(cx: &Ctx, axis: usize) -> Result<(Vec<Expr>, Expr), Fault> {
    let (mut starts, mut end) = (vec![], Expr::int(0));
    for i in 0..cx.inputs.len() {
        starts.push(end);
        end = end + cx.dims(i)?[axis];
    }
    Ok((starts, end))
}

impl OpDef for Concat {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let first = cx.tensor(0)?;
        let axis = normal_axis(self.axis, first.rank())?;
        let mut dims = first.dims.clone();
        for i in 1..cx.inputs.len() {
            let t = cx.tensor(i)?;
            if (t.dtype, t.rank()) != (first.dtype, first.rank()) {
                return Err(fault!("operand {i} is {t}, operand 0 is {first}: dtype and rank must be equal"));
            }
            for (a, (d, &o)) in dims.iter_mut().zip(&t.dims).enumerate().filter(|&(a, _)| a != axis) {
                sizes::must_equal(*d, o, &|| format!("dim {a} of operands 0 ({first}) and {i} ({t}) must be equal"));
                match (d.known(), o.known()) {
                    (Some(x), Some(y)) if x != y => {
                        return Err(fault!("operand {i} is {t}, operand 0 is {first}: dim {a} must be equal"));
                    }
                    (None, Some(_)) => *d = o,
                    _ => {}
                }
            }
        }
        dims[axis] = offsets(cx, axis)?.1;
        let ints = cx.inputs.iter().map(|f| f.as_ref()?.ints.clone()).collect::<Option<Vec<_>>>();
        Ok(moved(first.dtype, dims, ints.map(|v| v.concat())))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let out = Ctx::out(outs, 0)?;
        let axis = normal_axis(self.axis, out.rank())?;
        let (starts, end) = offsets(cx, axis)?;
        let c = Compute::map(&out.dims, |axes| {
            let zero = Scalar::number(out.dtype, 0.0);
            starts.iter().enumerate().rfold(zero, |other, (k, &start)| {
                let mut index = axes.to_vec();
                index[axis] = axes[axis] - start;
                let stop = starts.get(k + 1).copied().unwrap_or(end);
                let mine = Scalar::index(axes[axis]).within(start, stop);
                if start == stop { other } else { Scalar::read_if(k, index.into_iter().map(Scalar::index), mine, other) }
            })
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

impl Split {
    /// Axis and extents of the pieces.
    fn pieces(&self, cx: &Ctx) -> Result<(usize, Vec<Expr>), Fault> {
        let dims = cx.dims(0)?;
        let axis = normal_axis(self.axis, dims.len())?;
        let extent = dims[axis];
        if cx.has(1) {
            let pieces = cx.ints(1)?;
            let total = pieces.iter().fold(Expr::int(0), |a, &b| a + b);
            if total.known().zip(extent.known()).is_some_and(|(a, b)| a != b) {
                return Err(fault!("pieces {pieces:?} do not add up to {extent}"));
            }
            sizes::must_equal(total, extent, &|| format!("pieces {pieces:?} must add up to {extent}"));
            return Ok((axis, pieces));
        }
        let count = self.num_outputs.unwrap_or(cx.outputs as i64);
        if count < 1 {
            return Err(fault!("num_outputs {count} is not positive"));
        }
        let n = Expr::int(count);
        if let Some(each) = extent.div_exact(n) {
            return Ok((axis, vec![each; count as usize]));
        }
        // Pieces of the rounded-up size; the last ones are shorter.
        let each = extent.div_ceil(n);
        let start = |k: i64| (each * k).min(extent);
        Ok((axis, (0..count).map(|k| start(k + 1) - start(k)).collect()))
    }
}

impl OpDef for Split {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        if depends_on_data(cx, 1) {
            let axis = normal_axis(self.axis, t.rank())?;
            return (0..length(cx, 1)?)
                .map(|k| {
                    let mut dims = t.dims.clone();
                    dims[axis] = new_dim("Split", k);
                    Ok(Fact::tensor(t.dtype, dims))
                })
                .collect();
        }
        let (axis, pieces) = self.pieces(cx)?;
        // Where a piece begins, as long as the lengths before it are known.
        let mut at = Some(0usize);
        let mut facts = vec![];
        for piece in pieces {
            let mut dims = t.dims.clone();
            dims[axis] = piece;
            let all = cx.fact(0)?.ints.as_ref().filter(|_| t.rank() == 1);
            let end = at.zip(piece.known()).and_then(|(at, n)| at.checked_add(usize::try_from(n).ok()?));
            let ints = all.zip(at.zip(end)).and_then(|(v, (at, end))| v.get(at..end).map(<[Expr]>::to_vec));
            at = end;
            facts.extend(moved(t.dtype, dims, ints));
        }
        Ok(facts)
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (axis, pieces) = self.pieces(cx)?;
        let mut start = Expr::int(0);
        let mut steps = vec![];
        for (k, &piece) in pieces.iter().enumerate().take(outs.len()) {
            let out = Ctx::out(outs, k)?;
            steps.push(Step::Compute(Compute::map(&out.dims, |axes| {
                let mut index = axes.to_vec();
                index[axis] = axes[axis] + start;
                Scalar::read_at(out.dtype, 0, &index)
            })));
            start = start + piece;
        }
        let outputs = (0..steps.len()).map(|k| (cx.inputs.len() + k) as u32).collect();
        Ok(Meaning::Steps { steps, outputs })
    }
}

/// What a Slice takes of one axis: elements `start + step * i` for `i < len`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    start: Expr,
    step: Expr,
    len: Expr,
}

impl Cut {
    /// Python's `start:end:step` on an axis of `dim`. Values beyond 2^31 stand for "to the border".
    fn new(dim: Expr, start: Expr, end: Expr, step: Expr) -> Cut {
        unless_empty(&[dim, start, end], |env| Cut::within(env, dim, start, end, step), |cut| cut.len, &|| {
            format!("a slice of an axis of {dim} from {start} to {end} needs an axis that is not empty")
        })
    }

    fn within(env: &Ranges, dim: Expr, start: Expr, end: Expr, step: Expr) -> Cut {
        // 1 for a step forwards, 0 for one backwards.
        let forwards = step.max(0.into()).min(1.into());
        let (low, high) = (forwards - 1, dim - 1 + forwards);
        let place = |v: Expr, low: Expr| {
            let r = v.range(env);
            let far = i64::from(i32::MAX);
            let from_start = match v.known() {
                Some(c) if c >= far && dim.known().is_none() => high,
                Some(c) if c <= -far && dim.known().is_none() => low,
                _ if r.lo >= 0 => v,
                _ if r.hi < 0 => v + dim,
                _ => v + dim * (-v).min(1.into()).max(0.into()), // of unknown sign: wraps if negative
            };
            from_start.max(low).min(high).simplify(env)
        };
        let (start, end) = (place(start, 0.into()), place(end, low));
        let len = match step.known() {
            Some(s) if s > 0 => (end - start).div_ceil(step),
            Some(_) => (start - end).div_ceil(-step),
            None => ((forwards * 2 - 1) * (end - start)).div_ceil(step.max(-step)),
        };
        Cut { start, step, len: len.max(0.into()).simplify(env) }
    }
}

/// The cut of every axis.
fn cuts(cx: &Ctx) -> Result<Vec<Cut>, Fault> {
    let dims = cx.dims(0)?;
    let (starts, ends) = (cx.ints(1)?, cx.ints(2)?);
    let axes = if cx.has(3) { cx.ints(3)? } else { (0..starts.len() as i64).map(Expr::int).collect() };
    let steps = if cx.has(4) { cx.ints(4)? } else { vec![1.into(); starts.len()] };
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err(fault!("starts {starts:?}, ends {ends:?}, axes {axes:?} and steps {steps:?} differ in length"));
    }
    // No step that matters is as long as this, and arithmetic on it cannot overflow.
    let far = Expr::int(1 << 40);
    let steps: Vec<Expr> = steps.into_iter().map(|s| s.max(-far).min(far)).collect();
    for &s in &steps {
        if s.is(0) {
            return Err(fault!("a step is 0: {steps:?}"));
        }
        sizes::must_equal(s.max(-s).min(1.into()), 1.into(), &|| "no step may be 0".to_owned());
    }
    let axes = Named::new(&axes, dims.len())?;
    let cut = |(a, &dim): (usize, &Expr)| match axes.has(a).is(0) {
        true => Cut { start: 0.into(), step: 1.into(), len: dim },
        false => Cut::new(dim, axes.pick(a, &starts, 0.into()), axes.pick(a, &ends, dim), axes.pick(a, &steps, 1.into())),
    };
    Ok(dims.iter().enumerate().map(cut).collect())
}

impl OpDef for Slice {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        if (1..5).any(|i| depends_on_data(cx, i)) {
            let rank = cx.dims(0)?.len();
            // Without axes, as many as there are starts; where only a run tells how many, all may be cut.
            let count = |i: usize| cx.dims(i).ok()?.first()?.known();
            let first = || Ok((0..count(1).or(count(2)).or(count(4)).unwrap_or(rank as i64)).collect());
            let axes = if cx.has(3) { cx.known_ints(3) } else { first() }.unwrap_or((0..rank as i64).collect());
            return any_at(cx, "Slice", &axes.into_iter().map(|a| normal_axis(a, rank)).collect::<Result<Vec<_>, _>>()?);
        }
        let cuts = cuts(cx)?;
        let dims: Vec<Expr> = cuts.iter().map(|c| c.len).collect();
        let ints = cx.fact(0)?.ints.as_ref().and_then(|v| match cuts[..] {
            [Cut { start, step, .. }] => {
                let (start, step) = (start.known()?, step.known()?);
                (0..small(&dims)? as i64).map(|i| v.get(usize::try_from(start + i * step).ok()?).copied()).collect()
            }
            _ => None,
        });
        Ok(moved(cx.dtype(0)?, dims, ints))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let cuts = cuts(cx)?;
        read_moved(cx, outs, |axes| axes.iter().zip(&cuts).map(|(&i, c)| c.start + i * c.step).collect())
    }
}

/// Block size and the order of block positions in channels, checked: `(b, column-row-depth)`.
fn block(cx: &Ctx, size: i64, mode: &str) -> Result<(i64, bool), Fault> {
    let dims = cx.dims(0)?;
    match (dims.len(), size, mode) {
        (4, 1.., "DCR") => Ok((size, false)),
        (4, 1.., "CRD") => Ok((size, true)),
        (4, 1.., _) => Err(fault!("mode '{mode}' is neither DCR nor CRD")),
        _ => Err(fault!("blocks of {size} of {dims:?}: four dims and a positive block size are needed")),
    }
}

/// `dim / by`, which must be exact where it is known.
fn share(dim: Expr, by: i64, what: &str) -> Result<Expr, Fault> {
    match dim.known() {
        Some(d) if d % by != 0 => Err(fault!("{what} {d} is no multiple of {by}")),
        _ => {
            let text = || format!("{what} ({dim}) must be a multiple of {by}");
            sizes::must_equal(dim.rem(by.into()), Expr::int(0), &text);
            Ok(dim.div(by.into()))
        }
    }
}

impl OpDef for DepthToSpace {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (b, _) = block(cx, self.blocksize, &self.mode)?;
        let d = cx.dims(0)?;
        Ok(moved(cx.dtype(0)?, vec![d[0], share(d[1], b * b, "channel count")?, d[2] * b, d[3] * b], None))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (b, column_first) = block(cx, self.blocksize, &self.mode)?;
        let channels = Ctx::out(outs, 0)?.dims[1];
        let e = Expr::int(b);
        read_moved(cx, outs, |i| {
            let position = i[2].rem(e) * b + i[3].rem(e);
            let c = if column_first { i[1] * (b * b) + position } else { position * channels + i[1] };
            vec![i[0], c, i[2].div(e), i[3].div(e)]
        })
    }
}

impl OpDef for SpaceToDepth {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (b, _) = block(cx, self.blocksize, &self.mode)?;
        let d = cx.dims(0)?;
        Ok(moved(cx.dtype(0)?, vec![d[0], d[1] * (b * b), share(d[2], b, "height")?, share(d[3], b, "width")?], None))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (b, column_first) = block(cx, self.blocksize, &self.mode)?;
        let channels = cx.dims(0)?[1];
        read_moved(cx, outs, |i| {
            let blocks = Expr::int(b * b);
            let (c, position) =
                if column_first { (i[1].div(blocks), i[1].rem(blocks)) } else { (i[1].rem(channels), i[1].div(channels)) };
            vec![i[0], c, i[2] * b + position.div(b.into()), i[3] * b + position.rem(b.into())]
        })
    }
}

impl ReverseSequence {
    fn axes(&self, rank: usize) -> Result<(usize, usize), Fault> {
        let (batch, time) = (normal_axis(self.batch_axis, rank)?, normal_axis(self.time_axis, rank)?);
        if batch == time { Err(fault!("batch_axis and time_axis are both {batch}")) } else { Ok((batch, time)) }
    }
}

impl OpDef for ReverseSequence {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        self.axes(t.rank())?;
        match cx.tensor(1)? {
            TensorType { dtype: DType::I64, dims } if dims.len() == 1 => Ok(vec![Fact::of(t.clone())]),
            lens => Err(fault!("sequence_lens is {lens}, it must be i64 of rank 1")),
        }
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let out = Ctx::out(outs, 0)?;
        let (batch, time) = self.axes(out.rank())?;
        let c = Compute::map(&out.dims, |axes| {
            let len = Scalar::read_at(DType::I64, 1, &[axes[batch]]);
            let t = Scalar::index(axes[time]);
            let mut index: Vec<Scalar> = axes.iter().map(|&a| Scalar::index(a)).collect();
            index[time] = Scalar::select(t.lt(len), len - t - Scalar::index(1), t);
            Scalar::read(out.dtype, 0, index)
        });
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_follow_python() {
        let e = |t: &str| t.parse::<Expr>().unwrap();
        let cases = [
            // dim, start, end, step -> start, len
            ("10", "2", "8", 1, "2", "6"),
            ("10", "-3", "2147483647", 1, "7", "3"),
            ("10", "8", "2", 1, "8", "0"),
            ("10", "0", "10", 3, "0", "4"),
            ("10", "-1", "-11", -1, "9", "10"),
            ("10", "20", "0", -3, "9", "3"),
            ("n", "1", "9223372036854775807", 1, "1", "n - 1"),
            ("n", "0", "-1", 1, "0", "n - 1"),
            ("n", "-1", "-9223372036854775807", -1, "n - 1", "n"),
            ("n", "n - 1", "n", 1, "n - 1", "1"),
            ("n", "0", "10", 1, "0", "min(n, 10)"),
            ("p + s", "p", "2147483647", 1, "p", "s"),
            ("2*n", "0", "2147483647", 2, "0", "n"),
        ];
        for (dim, start, end, step, at, len) in cases {
            let cut = Cut::new(e(dim), e(start), e(end), step.into());
            assert_eq!(cut, Cut { start: e(at), step: step.into(), len: e(len) }, "[{start}:{end}:{step}] of {dim}");
            // The same where the step is data.
            let cut = Cut::new(e(dim), e(start), e(end), Expr::datum("s"));
            let value = |l: Expr| match () {
                () if l == Expr::datum("s") => Expr::int(step),
                () if l == e("n") => Expr::int(7),
                () => l,
            };
            let number = |x: Expr| x.map(&value).eval(&|_| Some(5));
            let known = [e(at), e(len)].map(|x| number(x.map(&|l| if l == e("n") { Expr::int(7) } else { l })));
            assert_eq!([cut.start, cut.len].map(number), known, "[{start}:{end}:{step}] of {dim}");
        }
    }
}
