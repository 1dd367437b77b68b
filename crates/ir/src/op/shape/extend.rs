//! Elements repeated, or set into a larger (or smaller) frame.

use super::*;

/// Each of a repeated vector's elements, if the result is small.
fn repeated(cx: &Ctx, dims: &[Expr]) -> Option<Vec<Expr>> {
    let ints = cx.fact(0).ok()?.ints.as_ref()?;
    Some(ints.iter().copied().cycle().take(if ints.is_empty() { 0 } else { small(dims)? }).collect())
}

impl OpDef for Expand {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        if depends_on_data(cx, 1) {
            let dims = cx.dims(0)?;
            let rank = length(cx, 1)?.max(dims.len());
            // What is known not to be 1 cannot become anything else.
            let kept =
                |k: usize| dims.get((k + dims.len()).checked_sub(rank)?).copied().filter(|d| d.known().is_some_and(|n| n != 1));
            return Ok(vec![Fact::tensor(cx.dtype(0)?, (0..rank).map(|k| kept(k).unwrap_or(new_dim("Expand", k))))]);
        }
        let dims = broadcast(&[cx.dims(0)?, &cx.ints(1)?])?;
        let ints = repeated(cx, &dims);
        Ok(moved(cx.dtype(0)?, dims, ints))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (dims, out) = (cx.dims(0)?, Ctx::out(outs, 0)?);
        read_moved(cx, outs, |axes| broadcast_index(dims, &out.dims, axes))
    }
}

impl OpDef for Tile {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        if depends_on_data(cx, 1) {
            return Ok(any_dims("Tile", cx.dtype(0)?, cx.dims(0)?.len()));
        }
        let (dims, repeats) = (cx.dims(0)?, cx.ints(1)?);
        if dims.len() != repeats.len() {
            return Err(fault!("repeats {repeats:?} do not fit the dims {dims:?}"));
        }
        let dims: Vec<Expr> = dims.iter().zip(repeats).map(|(&d, r)| d * r).collect();
        let ints = repeated(cx, &dims);
        Ok(moved(cx.dtype(0)?, dims, ints))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (dims, repeats) = (cx.dims(0)?, cx.ints(1)?);
        read_moved(cx, outs, |axes| {
            axes.iter().zip(dims).zip(repeats).map(|((&i, &d), r)| if r.is(1) { i } else { i.rem(d) }).collect()
        })
    }
}

/// One operand axis within its frame: `before` elements are added in front (or cut off, if negative).
struct Frame {
    dim: Expr,
    before: Expr,
    after: Expr,
}

fn frames(cx: &Ctx) -> Result<Vec<Frame>, Fault> {
    let (dims, pads) = (cx.dims(0)?, cx.ints(1)?);
    let axes = match cx.has(3) {
        true => Named::operand(cx, 3, dims.len())?,
        false => Named::new(&(0..dims.len()).map(Expr::from).collect::<Vec<_>>(), dims.len())?,
    };
    if pads.len() != 2 * axes.len() {
        return Err(fault!("pads {pads:?} must have two entries for each of {} axes", axes.len()));
    }
    let (before, after) = pads.split_at(axes.len());
    let frame = |(a, &dim): (usize, &Expr)| {
        let frame = Frame { dim, before: axes.pick(a, before, 0.into()), after: axes.pick(a, after, 0.into()) };
        let text = || format!("the pads of axis {a} must not take more elements than there are");
        sizes::must_equal(frame.len().min(0.into()), 0.into(), &text);
        frame
    };
    Ok(dims.iter().enumerate().map(frame).collect())
}

impl Frame {
    fn len(&self) -> Expr {
        self.dim + self.before + self.after
    }
    fn plain(&self) -> bool {
        self.before.is(0) && self.after.is(0)
    }
    /// The operand's index for result index `i`, for the modes that repeat its elements. What is cut off is cut off first.
    fn index(&self, mode: &str, i: Expr) -> Result<Expr, Fault> {
        let zero = Expr::int(0);
        let (cut, cut_after) = ((-self.before).max(zero), (-self.after).max(zero));
        let (before, after) = (self.before.max(zero), self.after.max(zero));
        let (d, i) = (self.dim - cut - cut_after, i - before);
        let last = d - 1;
        let env = not_empty(&[self.dim, self.before, self.after]);
        let short = [before, after].iter().all(|&p| (p - last).range(&env).hi <= 0);
        let within = match mode {
            _ if before.is(0) && after.is(0) => i,
            "edge" => i.max(zero).min(last),
            "wrap" => i.rem(d),
            // Mirrored once at each border, or again and again.
            "reflect" => {
                let a = if short { i.max(-i) } else { i.rem(last * 2) };
                a.min(last * 2 - a)
            }
            _ => return Err(fault!("mode '{mode}' is none of constant, edge, reflect, wrap")),
        };
        Ok(within + cut)
    }
}

impl OpDef for Pad {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        if depends_on_data(cx, 1) || depends_on_data(cx, 3) {
            let known = if cx.has(3) { cx.known_ints(3) } else { Ok((0..t.rank() as i64).collect()) };
            let axes = known.unwrap_or((0..t.rank() as i64).collect());
            return any_at(cx, "Pad", &axes.into_iter().map(|a| normal_axis(a, t.rank())).collect::<Result<Vec<_>, _>>()?);
        }
        let frames = frames(cx)?;
        if let Some(f) = frames.iter().find(|f| f.len().known().is_some_and(|n| n < 0)) {
            return Err(fault!("pads {}, {} take more than the {} elements there are", f.before, f.after, f.dim));
        }
        if self.mode != "constant" {
            for f in &frames {
                Frame { dim: 2.into(), before: 1.into(), after: 1.into() }.index(&self.mode, 0.into())?;
                if f.dim.is(0) && !f.plain() {
                    return Err(fault!("an empty axis of {t} cannot be padded in mode '{}'", self.mode));
                }
            }
        } else if cx.has(2) && (cx.dtype(2)? != t.dtype || small(cx.dims(2)?) != Some(1)) {
            return Err(fault!("the padding value is {}, it must be one {}", cx.tensor(2)?, t.dtype));
        }
        Ok(moved(t.dtype, frames.iter().map(Frame::len).collect(), None))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let frames = frames(cx)?;
        let out = Ctx::out(outs, 0)?;
        if self.mode != "constant" {
            let axes: Vec<Expr> = (0..out.rank()).map(Expr::var).collect();
            let index = frames.iter().zip(axes).map(|(f, i)| f.index(&self.mode, i)).collect::<Result<Vec<_>, _>>()?;
            return read_moved(cx, outs, |_| index);
        }
        let value = if cx.has(2) { read_scalar(cx.tensor(2)?, 2) } else { Scalar::number(out.dtype, 0.0) };
        Ok(Meaning::one(cx.inputs.len(), framed(out, &frames, value)))
    }
}

/// Operand 0 within `frames`, `value` around it.
fn framed(out: &TensorType, frames: &[Frame], value: Scalar) -> Step {
    Step::Compute(Compute::map(&out.dims, |axes| {
        let index: Vec<Expr> = axes.iter().zip(frames).map(|(&i, f)| i - f.before).collect();
        let inside = index.iter().zip(frames).filter(|(_, f)| !f.plain());
        let cond = inside.fold(Scalar::always(), |c, (&i, f)| c.and(Scalar::index(i).within(0, f.dim)));
        Scalar::read_if(0, index.into_iter().map(Scalar::index), cond, value)
    }))
}

impl CenterCropPad {
    fn frames(&self, cx: &Ctx) -> Result<Vec<Frame>, Fault> {
        let (dims, target) = (cx.dims(0)?, cx.ints(1)?);
        let axes = if self.axes.is_empty() { (0..dims.len() as i64).collect() } else { self.axes.clone() };
        if axes.len() != target.len() {
            return Err(fault!("the shape {target:?} does not fit {} axes", axes.len()));
        }
        let mut out: Vec<Frame> = dims.iter().map(|&dim| Frame { dim, before: 0.into(), after: 0.into() }).collect();
        for (&a, &t) in axes.iter().zip(&target) {
            let f = &mut out[normal_axis(a, dims.len())?];
            // Padding and cropping both round the front part down.
            f.before = (t - f.dim).max(0.into()).div(2.into()) - (f.dim - t).max(0.into()).div(2.into());
            f.after = t - f.dim - f.before;
        }
        Ok(out)
    }
}

impl OpDef for CenterCropPad {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        if depends_on_data(cx, 1) {
            let rank = cx.dims(0)?.len();
            let axes = if self.axes.is_empty() { (0..rank as i64).collect() } else { self.axes.clone() };
            return any_at(cx, "CenterCropPad", &axes.into_iter().map(|a| normal_axis(a, rank)).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(moved(cx.dtype(0)?, self.frames(cx)?.iter().map(Frame::len).collect(), None))
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let out = Ctx::out(outs, 0)?;
        Ok(Meaning::one(cx.inputs.len(), framed(out, &self.frames(cx)?, Scalar::number(out.dtype, 0.0))))
    }
}
