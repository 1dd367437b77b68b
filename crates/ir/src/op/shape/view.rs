//! The same elements under other dims, and the dims themselves as data.

use super::*;

/// The other dims of a view.
fn view(cx: &Ctx, dims: Vec<Expr>) -> Result<Vec<Fact>, Fault> {
    Ok(moved(cx.dtype(0)?, dims, cx.fact(0)?.ints.clone()))
}

/// Dims for a Reshape of `data` to `target`, where -1 takes what is left.
fn reshape_dims(data: &[Expr], target: &[Expr], allowzero: bool) -> Result<Vec<Expr>, Fault> {
    if target.iter().any(|t| t.has_datum()) {
        return Ok(reshape_by_data(data, target, allowzero));
    }
    let mut dims = vec![];
    for (k, &t) in target.iter().enumerate() {
        dims.push(match t.known() {
            Some(0) if !allowzero => *data
                .get(k)
                .ok_or_else(|| fault!("dim {k} of the target {target:?} is 0, but the data {data:?} has no dim {k}"))?,
            Some(n) if n < -1 => return Err(fault!("dim {k} of the target {target:?} is negative")),
            _ => t,
        });
    }
    let free: Vec<usize> = (0..dims.len()).filter(|&k| target[k].is(-1)).collect();
    match free[..] {
        [] => {}
        [k] => {
            // Equal dims cancel first: products of sums are multiplied out and would be hard to divide.
            let mut rest = data.to_vec();
            let mut others = vec![];
            for d in dims.iter().enumerate().filter(|&(i, _)| i != k).map(|(_, &d)| d) {
                match rest.iter().position(|&r| r == d && !r.is(0)) {
                    Some(at) => drop(rest.remove(at)),
                    None => others.push(d),
                }
            }
            let (total, divisor) = (Expr::product(rest), Expr::product(others));
            let exact = total.known().zip(divisor.known()).is_none_or(|(t, d)| d != 0 && t % d == 0);
            if !exact {
                return Err(fault!(
                    "data {data:?} cannot be reshaped to {target:?}: {total} elements are no multiple of {divisor}"
                ));
            }
            dims[k] = total.div(divisor);
            let text = || format!("{total} elements must be a multiple of {divisor}, to reshape {data:?} to {target:?}");
            sizes::must_equal(dims[k] * divisor, total, &text);
        }
        _ => return Err(fault!("the target {target:?} has more than one -1")),
    }
    let (from, to) = (Expr::product(data.iter().copied()), Expr::product(dims.iter().copied()));
    match (from.known(), to.known()) {
        (Some(a), Some(b)) if a != b => {
            Err(fault!("data {data:?} of {a} elements cannot be reshaped to {target:?} of {b} elements"))
        }
        _ => {
            if free.is_empty() {
                sizes::must_equal(from, to, &|| format!("{data:?} must have as many elements as {target:?}"));
            }
            Ok(dims)
        }
    }
}

/// As [`reshape_dims`], where it depends on data which dims are 0 or -1.
fn reshape_by_data(data: &[Expr], target: &[Expr], allowzero: bool) -> Vec<Expr> {
    let (zero, one) = (Expr::int(0), Expr::int(1));
    // 1 where the dim is -1, and 1 where it is 0.
    let free = |t: Expr| (-t).max(zero);
    let none = |t: Expr| (one - t).max(zero) - free(t) * 2;
    let kept = |k: usize, t: Expr| match data.get(k) {
        Some(&d) if !allowzero => t.max(zero) + none(t) * d,
        _ => t.max(zero),
    };
    let kept: Vec<Expr> = target.iter().enumerate().map(|(k, &t)| kept(k, t)).collect();
    let others = Expr::product(kept.iter().zip(target).map(|(&d, &t)| d + free(t)));
    let rest = Expr::product(data.iter().copied()).div(others);
    kept.iter().zip(target).map(|(&d, &t)| d + free(t) * rest).collect()
}

impl OpDef for Reshape {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        if depends_on_data(cx, 1) {
            return Ok(any_dims("Reshape", cx.dtype(0)?, length(cx, 1)?));
        }
        view(cx, reshape_dims(cx.dims(0)?, &cx.ints(1)?, self.allowzero)?)
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Alias(0))
    }
}

impl OpDef for Flatten {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dims = cx.dims(0)?;
        let axis = match usize::try_from(self.axis) {
            Ok(a) if a == dims.len() => a,
            _ => normal_axis(self.axis, dims.len())?,
        };
        let (rows, columns) = dims.split_at(axis);
        view(cx, vec![Expr::product(rows.iter().copied()), Expr::product(columns.iter().copied())])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Alias(0))
    }
}

impl OpDef for Squeeze {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dims = cx.dims(0)?;
        if depends_on_data(cx, 1) {
            return Ok(any_dims("Squeeze", cx.dtype(0)?, dims.len().saturating_sub(length(cx, 1)?)));
        }
        let one = Expr::int(1);
        let axes = match cx.has(1) {
            true => Named::operand(cx, 1, dims.len())?,
            false => Named::new(&(0..dims.len()).filter(|&a| dims[a].is(1)).map(Expr::from).collect::<Vec<_>>(), dims.len())?,
        };
        if let Some(a) = (0..dims.len()).find(|&a| axes.has(a).is(1) && dims[a].known().is_some_and(|d| d != 1)) {
            return Err(fault!("dim {a} of {dims:?} is not 1, it cannot be taken out"));
        }
        for (a, &d) in dims.iter().enumerate() {
            let has = axes.has(a);
            if has.is(1) {
                sizes::must_equal(d, one, &|| format!("dim {a} is taken out, so it must be 1"));
            } else if !has.is(0) {
                // 1 in place of the dim where it is kept.
                sizes::must_equal(has * (d - one) + one, one, &|| format!("dim {a} is taken out, so it must be 1"));
            } else if !cx.has(1) {
                let text = || format!("dim {a} is kept, so it must not be 1");
                sizes::taken_equal(d.min(Expr::int(2)).rem(Expr::int(2)), Expr::int(0), &text);
            }
        }
        let dim = |j: usize| (0..dims.len()).fold(Expr::int(0), |sum, a| sum + axes.moves(a, j) * dims[a]);
        view(cx, (0..dims.len().saturating_sub(axes.len())).map(dim).collect())
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Alias(0))
    }
}

impl OpDef for Unsqueeze {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dims = cx.dims(0)?;
        if depends_on_data(cx, 1) {
            return Ok(any_dims("Unsqueeze", cx.dtype(0)?, dims.len() + length(cx, 1)?));
        }
        let rank = dims.len() + cx.ints(1)?.len();
        let axes = Named::operand(cx, 1, rank)?;
        let old = |a: usize| dims.iter().enumerate().fold(Expr::int(0), |sum, (j, &d)| sum + axes.moves(a, j) * d);
        view(cx, (0..rank).map(|a| axes.has(a) + old(a)).collect())
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Alias(0))
    }
}

impl Shape {
    fn range(&self, rank: usize) -> std::ops::Range<usize> {
        let r = rank as i64;
        let limit = |v: i64| (if v < 0 { v + r } else { v }).clamp(0, r) as usize;
        let (start, end) = (limit(self.start), limit(self.end.unwrap_or(r)));
        start..end.max(start)
    }
}

impl OpDef for Shape {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dims = cx.dims(0)?;
        let part = &dims[self.range(dims.len())];
        Ok(moved(DType::I64, vec![part.len().into()], Some(part.to_vec())))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let dims = cx.dims(0)?;
        Ok(Meaning::one(cx.inputs.len(), spelled_out(Ctx::out(outs, 0)?, &dims[self.range(dims.len())])))
    }
}

impl OpDef for Size {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        Ok(moved(DType::I64, vec![], Some(vec![Expr::product(cx.dims(0)?.iter().copied())])))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let size = Expr::product(cx.dims(0)?.iter().copied());
        Ok(Meaning::one(cx.inputs.len(), spelled_out(Ctx::out(outs, 0)?, &[size])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exprs(texts: &str) -> Vec<Expr> {
        texts.split_whitespace().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn reshape_targets() {
        let cases = [
            ("2 3 4", "4 -1", false, "4 6"),
            ("2 3 4", "0 -1", false, "2 12"),
            ("2 0 4", "0 4 2", true, "0 4 2"),
            ("n 12 64", "n 12 8 -1", false, "n 12 8 8"),
            ("n 12 64", "0 -1 64", false, "n 12 64"),
            ("n s 384", "-1 384", false, "n*s 384"),
            ("n div(h,2) 64", "n -1 32", false, "n 2*div(h,2) 32"),
        ];
        for (data, target, allowzero, want) in cases {
            assert_eq!(reshape_dims(&exprs(data), &exprs(target), allowzero), Ok(exprs(want)), "{data} to {target}");
        }
        // The same rules where data tells the target.
        for (data, target, allowzero, want) in cases {
            let (data, target) = (exprs(data), exprs(target));
            let leaf = |e: Expr| if e == Expr::datum("t") { Expr::int(0) } else { e };
            let known: Vec<Expr> = target.iter().map(|&t| t + Expr::datum("t")).collect();
            let got = reshape_dims(&data, &known, allowzero).unwrap();
            let number = |e: &Expr| e.map(&leaf).eval(&|_| Some(12)).unwrap();
            assert_eq!(got.iter().map(number).collect::<Vec<_>>(), exprs(want).iter().map(number).collect::<Vec<_>>());
        }
        for (data, target) in [("2 3", "4 -1"), ("2 3", "-1 -1"), ("2 3", "7"), ("2", "2 0"), ("2", "-2")] {
            assert!(reshape_dims(&exprs(data), &exprs(target), false).is_err(), "{data} to {target}");
        }
    }
}
