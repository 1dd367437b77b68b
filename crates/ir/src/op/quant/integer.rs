//! Contractions of quantised tensors in integers.

use super::*;

/// The index spaces of numpy's `matmul`: result dims, the length of the sum, and the operands' indices.
struct Product {
    dims: Vec<Expr>,
    depth: Expr,
    /// Index of the left operand, given result axes and the position in the sum.
    left: Vec<Expr>,
    right: Vec<Expr>,
    /// Row and column of the result.
    row: Expr,
    column: Expr,
}

fn product(a: &[Expr], b: &[Expr]) -> Result<Product, Fault> {
    if a.is_empty() || b.is_empty() {
        return Err(fault!("{a:?} and {b:?}: a matrix product needs operands of rank 1 or more"));
    }
    // A vector is one row on the left and one column on the right; that dim is not in the result.
    let (is_row, is_column) = (a.len() == 1, b.len() == 1);
    let batch_a = &a[..a.len().saturating_sub(2)];
    let batch_b = &b[..b.len().saturating_sub(2)];
    let depth = a[a.len() - 1];
    let other = b[b.len().saturating_sub(2)];
    if depth.known().zip(other.known()).is_some_and(|(x, y)| x != y) {
        return Err(fault!("{a:?} and {b:?} cannot be multiplied: {depth} columns against {other} rows"));
    }
    let mut dims = broadcast(&[batch_a, batch_b])?;
    let batch = dims.clone();
    let outer: Vec<Expr> = (0..batch.len()).map(Expr::var).collect();
    let mut next = |skip: bool, d: Expr| {
        if skip {
            return Expr::int(0);
        }
        dims.push(d);
        Expr::var(dims.len() - 1)
    };
    let row = next(is_row, a[a.len().saturating_sub(2)]);
    let column = next(is_column, b[b.len() - 1]);
    let k = Expr::var(dims.len());
    let mut left = broadcast_index(batch_a, &batch, &outer);
    left.extend(if is_row { vec![k] } else { vec![row, k] });
    let mut right = broadcast_index(batch_b, &batch, &outer);
    right.extend(if is_column { vec![k] } else { vec![k, column] });
    Ok(Product { dims, depth, left, right, row, column })
}

/// `i32(operand - zero point)`; the zero point is one value, one per `line`, or spread over the operand's own dims.
fn centred(cx: &Ctx, x: usize, zero: usize, index: &[Expr], line: Expr) -> Result<Scalar, Fault> {
    let t = cx.tensor(x)?;
    let element = Scalar::read_at(t.dtype, x, index).cast(DType::I32);
    if !cx.has(zero) {
        return Ok(element);
    }
    let z = cx.tensor(zero)?;
    let at = match z.rank() {
        0 => vec![],
        1 => vec![if z.dims[0].is(1) { Expr::int(0) } else { line }],
        r if r == t.rank() => broadcast_index(&z.dims, &t.dims, index),
        _ => return Err(fault!("the zero point is {z}: for {t} it must be one value, a vector, or of rank {}", t.rank())),
    };
    Ok(element - Scalar::read_at(z.dtype, zero, &at).cast(DType::I32))
}

/// Checks that an operand holds 8-bit integers and that its zero point has the same dtype.
fn check_bytes(cx: &Ctx, x: usize, zero: usize) -> Result<(), Fault> {
    let t = cx.tensor(x)?;
    if !t.dtype.is_int() || t.dtype.bits() > 8 {
        return Err(fault!("operand {x} is {t}, it must be integers of at most 8 bits"));
    }
    if cx.has(zero) && cx.dtype(zero)? != t.dtype {
        return Err(fault!("the zero point of operand {x} ({t}) is {}", cx.tensor(zero)?));
    }
    Ok(())
}

impl OpDef for MatMulInteger {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        check_bytes(cx, 0, 2)?;
        check_bytes(cx, 1, 3)?;
        let p = product(cx.dims(0)?, cx.dims(1)?)?;
        centred(cx, 0, 2, &p.left, p.row)?;
        centred(cx, 1, 3, &p.right, p.column)?;
        Ok(vec![Fact::tensor(DType::I32, p.dims)])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let p = product(cx.dims(0)?, cx.dims(1)?)?;
        let body = centred(cx, 0, 2, &p.left, p.row)? * centred(cx, 1, 3, &p.right, p.column)?;
        let c = Compute::reduce(&p.dims, &[p.depth], Reducer::Sum, |_, _| body, |_, acc| acc);
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

/// The windows of a convolution over one spatial axis.
struct Window {
    stride: i64,
    dilation: i64,
    before: Expr,
    padded: bool,
    out: Expr,
}

impl ConvInteger {
    /// One window per spatial axis, for data dims `x` and kernel extents `kernel`.
    fn windows(&self, x: &[Expr], kernel: &[Expr]) -> Result<Vec<Window>, Fault> {
        let n = x.len();
        let each = |v: &[i64], name: &str| match v.len() {
            0 => Ok(vec![1; n]),
            len if len == n && v.iter().all(|&e| e > 0) => Ok(v.to_vec()),
            _ => Err(fault!("{name} {v:?} do not fit {n} spatial dims")),
        };
        let (strides, dilations) = (each(&self.strides, "strides")?, each(&self.dilations, "dilations")?);
        let pads = match self.pads.len() {
            0 => vec![0; 2 * n],
            len if len == 2 * n => self.pads.clone(),
            _ => return Err(fault!("pads {:?} do not fit {n} spatial dims", self.pads)),
        };
        let same = match &*self.auto_pad {
            "NOTSET" | "VALID" => None,
            "SAME_UPPER" => Some(0),
            "SAME_LOWER" => Some(1),
            mode => return Err(fault!("auto_pad '{mode}' is not known")),
        };
        (0..n)
            .map(|a| {
                let (stride, dilation, d) = (strides[a], dilations[a], x[a]);
                let reach = (kernel[a] - 1) * dilation + 1;
                Ok(match same {
                    Some(odd) => {
                        let out = d.div_ceil(stride.into());
                        let total = ((out - 1) * stride + reach - d).max(0.into());
                        let before = (total + odd).div(2.into());
                        Window { stride, dilation, before, padded: !total.is(0), out }
                    }
                    None => {
                        let (before, after) = if self.auto_pad == "VALID" { (0, 0) } else { (pads[a], pads[a + n]) };
                        let room = d + before + after - reach;
                        let text = || {
                            format!("a window of extent {reach} does not fit into {d} elements with padding {before} and {after}")
                        };
                        if room.known().is_some_and(|r| r < 0) {
                            return Err(fault!("{}", text()));
                        }
                        sizes::must_equal(room.min(0.into()), 0.into(), &text);
                        let out = room.div(stride.into()) + 1;
                        Window { stride, dilation, before: before.into(), padded: before != 0 || after != 0, out }
                    }
                })
            })
            .collect()
    }
    fn check(&self, x: &TensorType, w: &TensorType) -> Result<Vec<Window>, Fault> {
        if x.rank() < 3 || x.rank() != w.rank() {
            return Err(fault!("data {x} and weights {w} must have one rank, 3 or more"));
        }
        if self.group < 1 || [x.dims[1], w.dims[0]].iter().any(|c| c.known().is_some_and(|c| c % self.group != 0)) {
            return Err(fault!("group {} does not divide {} input and {} output channels", self.group, x.dims[1], w.dims[0]));
        }
        if (x.dims[1] - w.dims[1] * self.group).known().is_some_and(|d| d != 0) {
            return Err(fault!("weights {w} do not fit data {x} in {} groups", self.group));
        }
        self.windows(&x.dims[2..], &w.dims[2..])
    }
}

impl OpDef for ConvInteger {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        check_bytes(cx, 0, 2)?;
        check_bytes(cx, 1, 3)?;
        let (x, w) = (cx.tensor(0)?, cx.tensor(1)?);
        let spatial = self.check(x, w)?.into_iter().map(|w| w.out);
        Ok(vec![Fact::tensor(DType::I32, [x.dims[0], w.dims[0]].into_iter().chain(spatial))])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, w, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let windows = self.check(x, w)?;
        let n = windows.len();
        let axes: Vec<Expr> = (0..out.rank() + 1 + n).map(Expr::var).collect();
        let (channel, taps) = (axes[n + 2], &axes[n + 3..]);
        let group = if self.group == 1 { Expr::int(0) } else { axes[1].div(w.dims[0].div(self.group.into())) };
        let mut at = vec![axes[0], group * w.dims[1] + channel];
        let mut inside = Scalar::always();
        for (a, win) in windows.iter().enumerate() {
            let place = axes[2 + a] * win.stride + taps[a] * win.dilation - win.before;
            if win.padded {
                inside = inside.and(Scalar::index(place).within(0, x.dims[2 + a]));
            }
            at.push(place);
        }
        // Outside lies the zero point, so that it counts as 0.
        let zero = if cx.has(2) { read_scalar(cx.tensor(2)?, 2) } else { Scalar::int(x.dtype, 0) };
        let element = Scalar::read_if(0, at.into_iter().map(Scalar::index), inside, zero).cast(DType::I32);
        let kernel: Vec<Expr> = [axes[1], channel].into_iter().chain(taps.iter().copied()).collect();
        let body = (element - zero.cast(DType::I32)) * centred(cx, 1, 3, &kernel, axes[1])?;
        let c = Compute::reduce(&out.dims, &w.dims[1..], Reducer::Sum, |_, _| body, |_, acc| acc);
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

/// `quantise(f32(acc) * m)` with `m = sx * sw / sy`, all scales shaped so that they broadcast.
fn requantise(b: &mut Builder, acc: Value, [sx, sw, sy]: [Value; 3], zero: Value) -> Result<Value, Fault> {
    let cast = |b: &mut Builder, v: Value| match b.tensor(v)?.dtype {
        DType::F32 => Ok(v),
        _ => b.op(Cast { round_mode: "up".into(), saturate: 1, to: DType::F32.onnx().into() }, &[v]),
    };
    let [sx, sw, sy] = [cast(b, sx)?, cast(b, sw)?, cast(b, sy)?];
    let product = b.op(Mul {}, &[sx, sw])?;
    let m = b.op(Div {}, &[product, sy])?;
    let acc = cast(b, acc)?;
    let scaled = b.op(Mul {}, &[acc, m])?;
    let one = b.number(DType::F32, 1.0);
    b.op(QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 }, &[scaled, one, zero])
}

/// Puts `count` dims of extent 1 behind the dims of a vector; one value stays as it is.
fn upright(b: &mut Builder, v: Value, count: usize) -> Result<Value, Fault> {
    let dims = b.dims(v)?;
    if count == 0 || dims.len() != 1 || dims[0].is(1) {
        return Ok(v);
    }
    let axes = b.ints(&(1..=count as i64).collect::<Vec<_>>());
    b.op(Unsqueeze {}, &[v, axes])
}

/// The operands `from..`, all of which must be there.
fn present<const N: usize>(inputs: &[Option<Value>], from: [usize; N]) -> Result<[Value; N], Fault> {
    let found = from.map(|i| inputs.get(i).copied().flatten());
    match found.iter().position(Option::is_none) {
        Some(k) => Err(fault!("operand {} is missing", from[k])),
        None => Ok(found.map(|v| v.expect("checked"))),
    }
}

impl QLinearConv {
    fn integer(&self) -> ConvInteger {
        let QLinearConv { auto_pad, dilations, group, kernel_shape, pads, strides } = self.clone();
        ConvInteger { auto_pad, dilations, group, kernel_shape, pads, strides }
    }
}

/// Facts of the operands `of`.
fn pick(cx: &Ctx, of: &[usize]) -> Vec<Option<Fact>> {
    of.iter().map(|&i| cx.inputs.get(i).cloned().flatten()).collect()
}

impl OpDef for QLinearConv {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let inner = pick(cx, &[0, 3, 2, 5]);
        let acc = self.integer().infer(&Ctx { inputs: &inner, ..*cx })?;
        let dims = acc[0].ty.as_tensor().map(|t| t.dims.clone()).unwrap_or_default();
        Ok(vec![Fact::tensor(cx.dtype(7)?, dims)])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let conv = self.integer();
        Ok(Meaning::decompose(move |b, inputs| {
            let [x, sx, zx, w, sw, zw, sy, zy] = present(inputs, [0, 1, 2, 3, 4, 5, 6, 7])?;
            let mut acc = b.op(conv.clone(), &[x, w, zx, zw])?;
            let spatial = b.dims(x)?.len() - 2;
            if let Some(&Some(bias)) = inputs.get(8) {
                let bias = upright(b, bias, spatial)?;
                acc = b.op(Add {}, &[acc, bias])?;
            }
            let sw = upright(b, sw, spatial)?;
            Ok(vec![requantise(b, acc, [sx, sw, sy], zy)?])
        }))
    }
}

impl OpDef for QLinearMatMul {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let inner = pick(cx, &[0, 3, 2, 5]);
        let acc = MatMulInteger {}.infer(&Ctx { inputs: &inner, ..*cx })?;
        let dims = acc[0].ty.as_tensor().map(|t| t.dims.clone()).unwrap_or_default();
        if !cx.dims(6)?.iter().all(|d| d.is(1)) {
            return Err(fault!("the scale of the result is {}, only one value is supported", cx.tensor(6)?));
        }
        Ok(vec![Fact::tensor(cx.dtype(7)?, dims)])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::decompose(move |b, inputs| {
            let [a, sa, za, w, sw, zw, sy, zy] = present(inputs, [0, 1, 2, 3, 4, 5, 6, 7])?;
            let acc = b.op(MatMulInteger {}, &[a, w, za, zw])?;
            let columns = usize::from(b.dims(w)?.len() > 1);
            let sa = upright(b, sa, columns)?;
            Ok(vec![requantise(b, acc, [sa, sw, sy], zy)?])
        }))
    }
}
