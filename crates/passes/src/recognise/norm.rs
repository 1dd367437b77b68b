//! Normalisations written out.
//!
//! The core `d / sqrt(mean(d^2) + eps)` becomes a normalisation with scale 1; a multiplication and an addition after it become its
//! scale and bias by rules of their own. So does the normalisation of groups of channels that is written as one of instances between
//! two reshapes.

use crate::rewrite::{Replacement, Site};
use infc_ir::graph::Node;
use infc_ir::op::{GroupNormalization, LayerNormalization, RMSNormalization};
use infc_ir::{DType, Op, Tensor, Value};

pub(super) fn rule(site: &mut Site) -> Replacement {
    if let Some(values) = scale(site)? {
        return Ok(Some(values));
    }
    if let Some(values) = bias(site)? {
        return Ok(Some(values));
    }
    if let Some(values) = spread(site)? {
        return Ok(Some(values));
    }
    for rule in [groups, of_groups] {
        if let Some(values) = rule(site)? {
            return Ok(Some(values));
        }
    }
    core(site)
}

/// The operand of `v ^ exponent` for a root: sqrt, or a power of 0.5 or -0.5.
fn root(site: &Site, v: Value, exponent: f64) -> Option<(Value, Node)> {
    let (n, data) = site.inner(v)?;
    match &data.op {
        Op::Sqrt(_) if exponent > 0.0 => Some((data.operand(0)?, n)),
        Op::Pow(_) if site.scalar(data.operand(1)?) == Some(exponent) => Some((data.operand(0)?, n)),
        _ => None,
    }
}

/// The operand of `1 / sqrt(v)` in its exported forms.
fn inverse_root(site: &Site, v: Value) -> Option<(Value, Vec<Node>)> {
    if let Some((v, n)) = root(site, v, -0.5) {
        return Some((v, vec![n]));
    }
    let (n, data) = site.inner(v)?;
    let inner = match &data.op {
        Op::Reciprocal(_) => data.operand(0)?,
        Op::Div(_) if site.scalar(data.operand(0)?) == Some(1.0) => data.operand(1)?,
        _ => return None,
    };
    root(site, inner, 0.5).map(|(v, m)| (v, vec![n, m]))
}

/// `d / sqrt(v)`: numerator, operand of the root, and nodes.
fn over_root(site: &Site) -> Option<(Value, Value, Vec<Node>)> {
    let (a, b) = (site.input(0)?, site.input(1)?);
    match site.op() {
        Op::Div(_) => root(site, b, 0.5).map(|(v, n)| (a, v, vec![n])),
        Op::Mul(_) => [(a, b), (b, a)].into_iter().find_map(|(d, r)| {
            let (v, nodes) = inverse_root(site, r)?;
            Some((d, v, nodes))
        }),
        _ => None,
    }
}

/// x g + (bias - mean(x) g) with g = scale / sqrt(variance + eps), as Keras writes it: LayerNormalization.
fn spread(site: &mut Site) -> Replacement {
    let Some((op, inputs, nodes)) = find_spread(site) else { return Ok(None) };
    nodes.into_iter().for_each(|n| site.absorb(n));
    site.replace(op, &inputs)
}

fn find_spread(site: &Site) -> Option<(LayerNormalization, [Value; 3], Vec<Node>)> {
    let Op::Add(_) = site.op() else { return None };
    let product = |v: Value| {
        let (n, data) = site.inner(v)?;
        if matches!(data.op, Op::Mul(_)) { Some((n, data.operand(0)?, data.operand(1)?)) } else { None }
    };
    let (a, b) = (site.input(0)?, site.input(1)?);
    let ((first, p, q), (sub, data)) = [(a, b), (b, a)].into_iter().find_map(|(m, s)| {
        let (n, data) = site.inner(s)?;
        Some((product(m)?, matches!(data.op, Op::Sub(_)).then_some((n, data))?))
    })?;
    let bias = data.operand(0)?;
    let (second, r, s) = product(data.operand(1)?)?;
    // The factor that both products have is g.
    let (x, mean, g) = [(p, q), (q, p)].into_iter().find_map(|(x, g)| {
        let mean = if r == g {
            s
        } else if s == g {
            r
        } else {
            return None;
        };
        (site.uses(g) == 2).then_some((x, mean, g))
    })?;
    let n = site.producer(g)?;
    let data = site.graph.node(n);
    let (Op::Mul(_), c, d) = (&data.op, data.operand(0)?, data.operand(1)?) else { return None };
    let (scale, (v, roots)) = [(c, d), (d, c)].into_iter().find_map(|(k, r)| Some((k, inverse_root(site, r)?)))?;
    let (sum, epsilon, variance) = super::product::plus_constant(site, v)?;
    let (m, squared, axes) = site.mean(variance).filter(|_| site.used_once(variance))?;
    let (square, of) = square(site, squared)?;
    let (mean_node, mean_of, mean_axes) = site.mean(mean)?;
    let centred = site.graph.node(site.producer(of)?);
    let is_centred = matches!(centred.op, Op::Sub(_)) && centred.operand(0) == Some(x) && centred.operand(1) == Some(mean);
    if !is_centred || mean_of != x || mean_axes != axes || epsilon < 0.0 {
        return None;
    }
    let ty = site.graph.ty(x).as_tensor()?;
    let first_axis = trailing(&axes, ty.rank())?;
    let fits = |v: Value| {
        let t = site.graph.ty(v).as_tensor();
        site.graph.constant(v).is_some() && t.is_some_and(|t| t.dims[..] == ty.dims[first_axis..])
    };
    if !fits(scale) || !fits(bias) {
        return None;
    }
    let mut nodes = vec![first, sub, second, n, sum, m, square, mean_node];
    nodes.extend(roots);
    Some((LayerNormalization { axis: first_axis as i64, epsilon: epsilon as f32, stash_type: 1 }, [x, scale, bias], nodes))
}

/// The operand of a square.
fn square(site: &Site, v: Value) -> Option<(Node, Value)> {
    let (n, data) = site.inner(v)?;
    match &data.op {
        Op::Mul(_) if data.operand(0) == data.operand(1) => Some((n, data.operand(0)?)),
        Op::Pow(_) if site.scalar(data.operand(1)?) == Some(2.0) => Some((n, data.operand(0)?)),
        _ => None,
    }
}

/// The first of the trailing axes, if `axes` are those.
fn trailing(axes: &[usize], rank: usize) -> Option<usize> {
    let first = *axes.first()?;
    (rank.checked_sub(first) == Some(axes.len()) && axes.windows(2).all(|w| w[1] == w[0] + 1)).then_some(first)
}

fn core(site: &mut Site) -> Replacement {
    let Some((op, x, scale, nodes)) = find(site) else { return Ok(None) };
    nodes.into_iter().for_each(|n| site.absorb(n));
    site.build(|b| {
        let scale = b.constant(scale);
        b.op(op, &[x, scale])
    })
    .map(|v| Some(vec![v]))
}

fn find(site: &Site) -> Option<(Op, Value, Tensor, Vec<Node>)> {
    let (d, v, mut nodes) = over_root(site)?;
    let (sum, epsilon, mean) = super::product::plus_constant(site, v)?;
    let (variance, squared, axes) = site.mean(mean).filter(|_| site.used_once(mean))?;
    let (n, of) = square(site, squared)?;
    nodes.extend([sum, variance, n]);
    let ty = site.graph.ty(d).as_tensor()?;
    let first = trailing(&axes, ty.rank())?;
    let dims = infc_ir::TensorType::new(ty.dtype, ty.dims[first..].to_vec()).known_dims()?;
    if !matches!(ty.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
        || epsilon < 0.0
        || dims.iter().product::<usize>() > 1 << 20
    {
        return None;
    }
    let count = dims.iter().product();
    let ones = Tensor::from_values(ty.dtype, dims, std::iter::repeat_n(1f64.to_bits(), count));
    let (axis, epsilon) = (first as i64, epsilon as f32);
    // The centred value may be computed once or twice.
    let centred = |v: Value| {
        let n = site.producer(v)?;
        let data = site.graph.node(n);
        let (Op::Sub(_), x) = (&data.op, data.operand(0)?) else { return None };
        let (m, of, axes) = site.mean(data.operand(1)?)?;
        (of == x).then_some((x, axes, [n, m]))
    };
    if let (Some((x, mean_axes, from)), Some((same, _, again))) = (centred(d), centred(of))
        && x == same
        && mean_axes == axes
        && (d == of || site.used_once(d))
    {
        nodes.extend(from.iter().chain(&again));
        return Some((LayerNormalization { axis, epsilon, stash_type: 1 }.into(), x, ones, nodes));
    }
    (d == of).then(|| (RMSNormalization { axis, epsilon, stash_type: 1 }.into(), d, ones, nodes))
}

/// A normalisation with scale 1 (and no bias), times a tensor of the normalised dims: with that scale.
fn scale(site: &mut Site) -> Replacement {
    let Some((n, c)) = after(site, |op| matches!(op, Op::Mul(_))) else { return Ok(None) };
    let data = site.graph.node(n);
    let unit = data.operand(1).and_then(|v| site.scalar(v)) == Some(1.0) && data.inputs.len() == 2;
    if !unit || data.outputs.len() != 1 {
        return Ok(None);
    }
    let (op, x) = (data.op.clone(), data.operand(0).expect("has data"));
    site.absorb(n);
    site.replace(op, &[x, c])
}

/// A layer normalisation without bias, plus a tensor of the normalised dims: with that bias.
fn bias(site: &mut Site) -> Replacement {
    let Some((n, c)) = after(site, |op| matches!(op, Op::Add(_))) else { return Ok(None) };
    let data = site.graph.node(n);
    if !matches!(data.op, Op::LayerNormalization(_)) || data.inputs.len() != 2 || data.outputs.len() != 1 {
        return Ok(None);
    }
    let (op, x, scale) = (data.op.clone(), data.operand(0).expect("has data"), data.operand(1).expect("has a scale"));
    site.absorb(n);
    site.replace(op, &[x, scale, c])
}

/// The normalisation before this node, and the node's other operand, a constant of the normalised dims.
fn after(site: &Site, is: impl Fn(&Op) -> bool) -> Option<(Node, Value)> {
    if !is(site.op()) {
        return None;
    }
    let (a, b) = (site.input(0)?, site.input(1)?);
    [(a, b), (b, a)].into_iter().find_map(|(v, c)| {
        let (n, data) = site.inner(v)?;
        let axis = match &data.op {
            Op::LayerNormalization(op) => op.axis,
            Op::RMSNormalization(op) => op.axis,
            _ => return None,
        };
        let ty = site.graph.ty(data.operand(0)?).as_tensor()?;
        let first = if axis < 0 { axis + ty.rank() as i64 } else { axis } as usize;
        let dims = &site.graph.ty(c).as_tensor()?.dims;
        (site.graph.constant(c).is_some() && dims[..] == ty.dims[first..]).then_some((n, c))
    })
}

/// InstanceNormalization of `[N, groups, rest]` between a reshape from `[N, C, ...]` and one back: GroupNormalization, whose scale and bias are those of the groups.
fn groups(site: &mut Site) -> Replacement {
    let Some((op, x, of_groups, nodes)) = find_groups(site) else { return Ok(None) };
    nodes.into_iter().for_each(|n| site.absorb(n));
    site.build(|b| {
        let [scale, bias] = of_groups.map(|t| b.constant(t));
        b.op(op, &[x, scale, bias])
    })
    .map(|v| Some(vec![v]))
}

fn find_groups(site: &Site) -> Option<(GroupNormalization, Value, [Tensor; 2], Vec<Node>)> {
    let Op::Reshape(_) = site.op() else { return None };
    let (norm, data) = site.inner(site.input(0)?)?;
    let Op::InstanceNormalization(op) = &data.op else { return None };
    let (cut, shaped) = site.inner(data.operand(0)?)?;
    let Op::Reshape(_) = &shaped.op else { return None };
    let x = shaped.operand(0)?;
    let (ty, grouped) = (site.graph.ty(x).as_tensor()?, site.graph.ty(data.operand(0)?).as_tensor()?);
    let back = site.graph.ty(site.output()).as_tensor()?;
    if ty.rank() < 3 || back.dims != ty.dims || grouped.rank() != 3 || grouped.dims[0] != ty.dims[0] {
        return None;
    }
    let (channels, groups) = (ty.dims[1].known()?, grouped.dims[1].known()?);
    if groups < 1 || channels < 1 || channels % groups != 0 {
        return None;
    }
    // A group's number for each of its channels.
    let each = (channels / groups) as usize;
    let spread = |v: Value| {
        let t = site.graph.constant(v)?;
        let all = (0..groups as usize * each).map(|c| t.float(c / each).to_bits());
        Some(Tensor::from_values(t.dtype, [channels as usize], all))
    };
    let stash_type = i64::from(ty.dtype.accumulator().onnx());
    let op = GroupNormalization { epsilon: op.epsilon, num_groups: groups, stash_type };
    Some((op, x, [spread(data.operand(1)?)?, spread(data.operand(2)?)?], vec![norm, cut]))
}

/// A group normalisation with scale 1 and bias 0, times or plus a constant for each channel.
fn of_groups(site: &mut Site) -> Replacement {
    let Some((op, inputs, n)) = find_of_groups(site) else { return Ok(None) };
    site.absorb(n);
    let (x, scale, bias) = inputs;
    site.build(|b| {
        let [scale, bias] = [scale, bias].map(|t| b.constant(t));
        b.op(op, &[x, scale, bias])
    })
    .map(|v| Some(vec![v]))
}

fn find_of_groups(site: &Site) -> Option<(GroupNormalization, (Value, Tensor, Tensor), Node)> {
    let times = match site.op() {
        Op::Mul(_) => true,
        Op::Add(_) => false,
        _ => return None,
    };
    let (a, b) = (site.input(0)?, site.input(1)?);
    let (n, data, c) = [(a, b), (b, a)].into_iter().find_map(|(v, c)| {
        let (n, data) = site.inner(v)?;
        matches!(data.op, Op::GroupNormalization(_)).then_some((n, data, c))
    })?;
    let Op::GroupNormalization(op) = &data.op else { return None };
    let (x, scale, bias) = (data.operand(0)?, data.operand(1)?, data.operand(2)?);
    let plain = site.scalar(bias) == Some(0.0) && (!times || site.scalar(scale) == Some(1.0));
    let (ty, constant) = (site.graph.ty(x).as_tensor()?, site.graph.constant(c)?);
    let missing = ty.rank().checked_sub(constant.dims.len())?;
    let channels = ty.dims[1].known()? as usize;
    let of = |axis: usize| if axis < missing { 1 } else { constant.dims[axis - missing] };
    let by_channel = (0..ty.rank()).all(|axis| of(axis) == if axis == 1 { channels } else { 1 });
    if !plain || !by_channel || constant.dtype != ty.dtype {
        return None;
    }
    let all = Tensor::from_values(constant.dtype, [channels], (0..channels).map(|i| constant.float(i).to_bits()));
    let (scale, bias) = (site.graph.constant(scale)?.clone(), site.graph.constant(bias)?.clone());
    let (scale, bias) = if times { (all, bias) } else { (scale, all) };
    Some((op.clone(), (x, scale, bias), n))
}
