//! Putting QuantizeLinear and DequantizeLinear into a model.
//!
//! A value that quantised layers read is stored: quantised once, dequantised for its readers. Where such a value was only moved from
//! another one (MaxPool, Reshape, ...), that one is stored in the same way, so that the movement works on integers, too.

use super::params::{Affine, as_half};
use super::statics::producer;
use super::weights::Stored;
use infc_ir::graph::{Graph, Node, Value};
use infc_ir::op::{Builder, Cast, DequantizeLinear, QuantizeLinear};
use infc_ir::{DType, Fault, Op, Problems, Tensor};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Stored weights, as operands of DequantizeLinear.
#[derive(Clone, Debug)]
pub struct Weights {
    /// What is stored.
    pub data: Tensor,
    /// Scales, in f32 or f16.
    pub scale: Tensor,
    /// Zero points, if any is not 0.
    pub zero: Option<Tensor>,
    /// Axis of the scales.
    pub axis: usize,
    /// Elements along the axis that share a scale; 0 if `scale` has one for each index of it.
    pub block: usize,
}

impl Weights {
    /// Stored weights whose channels are on `axis`: with a scale for each of them, or those of a matrix with one for each block of the
    /// other axis.
    pub fn of(s: &Stored, dims: &[usize], axis: usize) -> Weights {
        let dtype = if s.scales.most == 7 { DType::I4 } else { DType::I8 };
        let data = Tensor::from_values(dtype, dims.to_vec(), s.values.iter().map(|&q| q as u64));
        let depth = s.grid.depth();
        if dims.len() != 2 || s.scales.group >= depth {
            let scale = Tensor::from_vec([s.scales.values.len()], s.scales.values.clone());
            let zero = points(dtype, &[s.scales.values.len()], &s.scales.zeros);
            return Weights { data, scale, zero, axis, block: 0 };
        }
        let (sum, blocks) = (1 - axis, depth.div_ceil(s.scales.group));
        let mut scale_dims = dims.to_vec();
        scale_dims[sum] = blocks;
        let at = |i: usize| {
            let index = [i / scale_dims[1], i % scale_dims[1]];
            index[axis] * blocks + index[sum]
        };
        let order: Vec<usize> = (0..scale_dims.iter().product()).map(at).collect();
        let values: Vec<f32> = order.iter().map(|&i| s.scales.values[i]).collect();
        let zeros: Vec<i64> = order.iter().filter_map(|&i| s.scales.zeros.get(i).copied()).collect();
        // Scales of many small groups are worth storing in half as many bits.
        let half = dtype == DType::I4 && values.iter().all(|&v| as_half(v) == v && half::f16::from_f32(v).is_normal());
        let zero = points(dtype, &scale_dims, &zeros);
        let scale = match half {
            true => Tensor::from_vec(scale_dims, values.into_iter().map(half::f16::from_f32).collect::<Vec<_>>()),
            false => Tensor::from_vec(scale_dims, values),
        };
        Weights { data, scale, zero, axis: sum, block: s.scales.group }
    }
}

/// Zero points as a tensor, if there are any.
fn points(dtype: DType, dims: &[usize], zeros: &[i64]) -> Option<Tensor> {
    (!zeros.is_empty()).then(|| Tensor::from_values(dtype, dims, zeros.iter().map(|&z| z as u64)))
}

/// What goes where.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// How values are stored.
    pub stored: BTreeMap<Value, Affine>,
    /// Layers that read operand 0 as stored.
    pub layers: BTreeSet<Node>,
    /// Stored weights by node and operand.
    pub weights: HashMap<(Node, usize), Weights>,
    /// Layers that read the stored weights of another one.
    pub shared: HashMap<Node, Node>,
    /// Biases, operand 2, as integers with their scales.
    pub biases: HashMap<Node, (Tensor, Tensor)>,
    /// Values that are read as they are, too: they must not come from stored ones.
    pub apart: BTreeSet<Value>,
    /// Steps of the first byte of inputs of layers that read it already.
    pub first_bytes: BTreeMap<Node, f32>,
    /// Nothing but layers reads stored values: movement between them stays as it is.
    pub only_layers: bool,
}

/// The number of data operands of an operator that only moves elements (or takes the largest of them).
fn moved(g: &Graph, n: Node) -> usize {
    let data = g.node(n);
    match &data.op {
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Transpose(_) | Op::Slice(_) => 1,
        Op::Gather(_) if data.operand(1).is_some_and(|v| g.constant(v).is_some()) => 1,
        Op::MaxPool(op) if op.storage_order == 0 && data.outputs.len() == 1 => 1,
        Op::Expand(_) | Op::Tile(_) | Op::DepthToSpace(_) | Op::SpaceToDepth(_) => 1,
        Op::Concat(_) => data.inputs.len(),
        _ => 0,
    }
}

/// The values that `v` is moved from.
fn origins(g: &Graph, v: Value) -> Vec<Value> {
    let Some(n) = producer(g, v) else { return vec![] };
    let data = g.node(n);
    let operands: Vec<Value> = data.inputs.iter().take(moved(g, n)).filter_map(|v| *v).collect();
    let good = operands
        .iter()
        .all(|&v| g.constant(v).is_none() && g.ty(v).as_tensor().is_some_and(|t| t.dtype == DType::F32 && t.rank() > 0));
    if good { operands } else { vec![] }
}

/// Is the value no other one that was only moved?
pub fn is_computed(g: &Graph, v: Value) -> bool {
    origins(g, v).is_empty()
}

/// These values and all that they are moved from.
pub fn sources(g: &Graph, inputs: &BTreeSet<Value>) -> BTreeSet<Value> {
    let (mut all, mut queue) = (inputs.clone(), inputs.iter().copied().collect::<Vec<_>>());
    while let Some(v) = queue.pop() {
        queue.extend(origins(g, v).into_iter().filter(|&u| all.insert(u)));
    }
    all
}

/// How these values, and those that they are moved from, are stored. Ranges of values that are moved into each other are joined; those of
/// a Concat only if that costs none of them more than one bit. Those `apart` are joined with nothing that they are moved from.
pub fn storage(
    g: &Graph,
    inputs: &BTreeSet<Value>,
    apart: &BTreeSet<Value>,
    ranges: &HashMap<Value, (f32, f32)>,
    symmetric: bool,
) -> BTreeMap<Value, Affine> {
    let mut class: BTreeMap<Value, Value> = BTreeMap::new();
    let mut hull: BTreeMap<Value, (f32, f32)> = BTreeMap::new();
    fn find(class: &BTreeMap<Value, Value>, mut v: Value) -> Value {
        while class[&v] != v {
            v = class[&v];
        }
        v
    }
    let mut queue: Vec<Value> = inputs.iter().copied().filter(|v| ranges.contains_key(v)).collect();
    for &v in &queue {
        class.insert(v, v);
        hull.insert(v, ranges[&v]);
    }
    while let Some(v) = queue.pop() {
        let from = origins(g, v);
        if from.is_empty() || apart.contains(&v) || from.iter().any(|u| !ranges.contains_key(u)) {
            continue;
        }
        let own = |u: &Value| class.get(u).map_or(ranges[u], |_| hull[&find(&class, *u)]);
        let joined = from.iter().map(own).fold(hull[&find(&class, v)], |a, b| (a.0.min(b.0), a.1.max(b.1)));
        let narrow = from.iter().map(own).map(|r| r.1 - r.0).fold(f32::INFINITY, f32::min);
        if from.len() > 1 && joined.1 - joined.0 > 2.0 * narrow {
            continue;
        }
        let root = find(&class, v);
        for u in from {
            match class.contains_key(&u) {
                true => {
                    let other = find(&class, u);
                    class.insert(other, root);
                }
                false => {
                    class.insert(u, root);
                    queue.push(u);
                }
            }
        }
        hull.insert(root, joined);
    }
    let members: Vec<Value> = class.keys().copied().collect();
    members
        .into_iter()
        .map(|v| {
            let (low, high) = hull[&find(&class, v)];
            (v, Affine::of(low, high, symmetric))
        })
        .collect()
}

/// Changes the model as planned.
pub fn insert(g: &mut Graph, plan: &Plan) -> Result<(), Problems> {
    let mut seen: HashMap<Value, Value> = HashMap::new();
    let mut nodes = vec![];
    for n in g.region(Graph::MAIN).nodes.clone() {
        let mut made = vec![];
        rewire(g, plan, n, &mut seen, &mut made).map_err(|f| Problems::one(g.describe(n), f.0, ""))?;
        nodes.append(&mut made);
        nodes.push(n);
    }
    g.regions[Graph::MAIN.index()].nodes = nodes;
    Ok(())
}

fn rewire(g: &mut Graph, plan: &Plan, n: Node, seen: &mut HashMap<Value, Value>, made: &mut Vec<Node>) -> Result<(), Fault> {
    let data = g.node(n).clone();
    let moves = !plan.only_layers && data.outputs.first().is_some_and(|y| plan.stored.contains_key(y)) && {
        let from = origins(g, data.outputs[0]);
        let same = |v: &Value| plan.stored.get(v) == plan.stored.get(&data.outputs[0]);
        !from.is_empty() && !plan.apart.contains(&data.outputs[0]) && from.iter().all(same)
    };
    let operands = if plan.layers.contains(&n) {
        1
    } else if moves {
        moved(g, n)
    } else {
        0
    };
    for slot in 0..operands {
        let Some(v) = data.operand(slot) else { continue };
        if let Some(affine) = plan.stored.get(&v) {
            let stored = match seen.get(&v) {
                Some(&d) => d,
                None => {
                    let d = stored_copy(g, n, v, affine, made)?;
                    seen.insert(v, d);
                    d
                }
            };
            g.nodes[n.index()].inputs[slot] = Some(stored);
        }
    }
    for slot in 0..data.inputs.len() {
        if let Some(w) = plan.weights.get(&(n, slot)) {
            let name = data.operand(slot).map_or(String::new(), |v| g.value(v).name.clone());
            let v = stored_weights(g, n, w, &name, made)?;
            g.nodes[n.index()].inputs[slot] = Some(v);
        }
    }
    if let Some(w) = plan.shared.get(&n).and_then(|&first| g.node(first).operand(1)) {
        g.nodes[n.index()].inputs[1] = Some(w);
    }
    if let Some((units, scales)) = plan.biases.get(&n) {
        let name = data.operand(2).map_or(String::new(), |v| g.value(v).name.clone());
        let w = Weights { data: units.clone(), scale: scales.clone(), zero: None, axis: 0, block: 0 };
        let v = stored_weights(g, n, &w, &name, made)?;
        g.nodes[n.index()].inputs.resize(data.inputs.len().max(3), None);
        g.nodes[n.index()].inputs[2] = Some(v);
    }
    Ok(())
}

/// Quantised and dequantised: what readers of the stored value get.
fn stored_copy(g: &mut Graph, n: Node, v: Value, a: &Affine, made: &mut Vec<Node>) -> Result<Value, Fault> {
    let (origin, name) = (g.node(n).origin.clone(), g.value(v).name.clone());
    let mut b = Builder::new(g, origin);
    let (scale, zero) = (b.constant(a.scale_tensor()), b.constant(a.zero_tensor()));
    let quantise = QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 };
    let q = b.op(quantise, &[v, scale, zero])?;
    let d = b.op(DequantizeLinear { axis: 1, block_size: 0, output_dtype: 0 }, &[q, scale, zero])?;
    made.append(&mut b.nodes);
    for (value, kind) in [(scale, "scale"), (zero, "zero_point"), (q, "quantized"), (d, "dequantized")] {
        g.values[value.index()].name = if name.is_empty() { String::new() } else { format!("{name}_{kind}") };
    }
    Ok(d)
}

/// Dequantised weights.
pub fn stored_weights(g: &mut Graph, n: Node, w: &Weights, name: &str, made: &mut Vec<Node>) -> Result<Value, Fault> {
    let origin = g.node(n).origin.clone();
    let mut b = Builder::new(g, origin);
    let (data, scale) = (b.constant(w.data.clone()), b.constant(w.scale.clone()));
    let zero = w.zero.clone().map(|z| b.constant(z));
    let wide = match w.scale.dtype {
        DType::F32 => scale,
        _ => b.op(Cast { round_mode: "up".into(), saturate: 1, to: i64::from(DType::F32.onnx()) }, &[scale])?,
    };
    let op = DequantizeLinear { axis: w.axis as i64, block_size: w.block as i64, output_dtype: 0 };
    let d = b.node(op, &[Some(data), Some(wide), zero][..if zero.is_some() { 3 } else { 2 }], vec![], 1)?[0];
    made.append(&mut b.nodes);
    for (value, kind) in [(data, "quantized"), (scale, "scale"), (d, "dequantized")] {
        g.values[value.index()].name = if name.is_empty() { String::new() } else { format!("{name}_{kind}") };
    }
    Ok(d)
}
