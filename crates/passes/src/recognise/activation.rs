//! Activations written as products.

use super::near;
use super::product::{Product, plus_constant, product};
use crate::rewrite::{Replacement, Site};
use infc_ir::op::{Gelu, HardSigmoid, HardSwish, Swish};
use infc_ir::{DType, Op, Value};

pub(super) fn rule(site: &mut Site) -> Replacement {
    if !matches!(site.op(), Op::Mul(_) | Op::Div(_)) {
        return Ok(None);
    }
    let out = site.output();
    let Some(ty) = site.graph.ty(out).as_tensor() else { return Ok(None) };
    if !matches!(ty.dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
        return Ok(None);
    }
    let mut p = product(site, out);
    let Some((op, x)) = gelu(site, &mut p).or_else(|| swish(site, &mut p)).or_else(|| hard(site, &mut p)) else {
        return Ok(None);
    };
    if !site.same_type(x, out) {
        return Ok(None);
    }
    p.nodes.into_iter().for_each(|n| site.absorb(n));
    site.replace(op, &[x])
}

/// The two factors of a product, the one that `inner` accepts second.
fn pair<T>(p: &mut Product, inner: impl Fn(Value) -> Option<T>) -> Option<(Value, T)> {
    let [a, b] = p.values[..] else { return None };
    inner(b).map(|t| (a, t)).or_else(|| inner(a).map(|t| (b, t)))
}

/// x * 0.5 * (1 + erf(x / sqrt 2)), and 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): Gelu.
fn gelu(site: &Site, p: &mut Product) -> Option<(Op, Value)> {
    if !near(p.factor, 0.5) {
        return None;
    }
    let found = pair(p, |v| {
        let (sum, one, f) = plus_constant(site, v)?;
        let (n, data) = site.inner(f)?;
        (one == 1.0).then_some((sum, n, data.op.clone(), data.operand(0)?))
    });
    let (x, (sum, n, op, argument)) = found?;
    p.nodes.extend([sum, n]);
    let inner = product(site, argument);
    let approximate = match op {
        Op::Erf(_) if near(inner.factor, std::f64::consts::FRAC_1_SQRT_2) && inner.values == [x] => {
            p.nodes.extend(inner.nodes);
            "none"
        }
        Op::Tanh(_) if cubic(site, &inner, x, p)? => "tanh",
        _ => return None,
    };
    Some((Gelu { approximate: approximate.into() }.into(), x))
}

/// True for `sqrt(2 / pi) * (x + 0.044715 x^3)`, also as `sqrt(2 / pi) * x * (1 + 0.044715 x^2)`.
fn cubic(site: &Site, inner: &Product, x: Value, p: &mut Product) -> Option<bool> {
    if !near(inner.factor, (2.0 / std::f64::consts::PI).sqrt()) {
        return Some(false);
    }
    p.nodes.extend(&inner.nodes);
    if let [sum] = inner.values[..] {
        let (n, data) = site.inner(sum)?;
        let Op::Add(_) = data.op else { return Some(false) };
        let (a, b) = (data.operand(0)?, data.operand(1)?);
        let cube = product(site, if a == x { b } else { a });
        let good = (a == x || b == x) && near(cube.factor, 0.044715) && cube.values == [x, x, x];
        p.nodes.push(n);
        p.nodes.extend(cube.nodes);
        return Some(good);
    }
    let [a, b] = inner.values[..] else { return Some(false) };
    let (n, one, square) = plus_constant(site, if a == x { b } else { a })?;
    let square = product(site, square);
    p.nodes.push(n);
    p.nodes.extend(square.nodes);
    Some((a == x || b == x) && one == 1.0 && near(square.factor, 0.044715) && square.values == [x, x])
}

/// x * sigmoid(alpha x): Swish.
fn swish(site: &Site, p: &mut Product) -> Option<(Op, Value)> {
    if p.factor != 1.0 {
        return None;
    }
    let (x, (n, argument)) = pair(p, |v| {
        let (n, data) = site.inner(v)?;
        matches!(data.op, Op::Sigmoid(_)).then_some((n, data.operand(0)?))
    })?;
    p.nodes.push(n);
    if argument == x {
        return Some((Swish { alpha: 1.0 }.into(), x));
    }
    let scaled = product(site, argument);
    p.nodes.extend(scaled.nodes);
    (scaled.values == [x]).then(|| (Swish { alpha: scaled.factor as f32 }.into(), x))
}

/// clip(x + 3, 0, 6) / 6: HardSigmoid of slope 1/6. x times that: HardSwish.
fn hard(site: &Site, p: &mut Product) -> Option<(Op, Value)> {
    let clipped = |v: Value| {
        let (n, data) = site.inner(v)?;
        let bound = |i: usize| site.scalar(data.inputs.get(i).copied().flatten()?);
        let Op::Clip(_) = data.op else { return None };
        let (sum, three, x) = plus_constant(site, data.operand(0)?)?;
        (bound(1) == Some(0.0) && bound(2) == Some(6.0) && three == 3.0).then_some((n, sum, x))
    };
    if near(p.factor, 1.0 / 6.0) {
        if let [v] = p.values[..] {
            let (n, sum, x) = clipped(v)?;
            p.nodes.extend([n, sum]);
            return Some((HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 }.into(), x));
        }
        let (x, (n, sum, same)) = pair(p, clipped)?;
        p.nodes.extend([n, sum]);
        return (x == same).then(|| (HardSwish {}.into(), x));
    }
    if p.factor != 1.0 {
        return None;
    }
    let (x, (n, same)) = pair(p, |v| {
        let (n, data) = site.inner(v)?;
        let Op::HardSigmoid(op) = &data.op else { return None };
        (near(f64::from(op.alpha), 1.0 / 6.0) && op.beta == 0.5).then_some((n, data.operand(0)?))
    })?;
    p.nodes.push(n);
    (x == same).then(|| (HardSwish {}.into(), x))
}
