//! Gradient of `ai.onnx.preview.training`: the derivatives of a value by others, as the nodes that compute them, by reverse accumulation (Griewank and
//! Walther, "Evaluating Derivatives", 2008). The nodes between them must be of the operators that [`pull`] knows.

use crate::import::{Importer, Named};
use crate::nodes::{Parts, Stop};
use crate::proto::NodeProto;
use crate::versions::{GRADIENT, Raise};
use infc_ir::graph::{Graph, Node};
use infc_ir::op::{Attr, AttrValue, Op};
use infc_ir::{DType, Fault, Region, Value, fault};
use std::collections::{HashMap, HashSet};

/// Operators with a derivative here, for people.
const KNOWN: &str = "Abs, Add, Cast, Cos, Div, Exp, Identity, Log, MatMul, Mul, Neg, Pow, Reciprocal, ReduceMean, ReduceSum, Relu, Reshape, Sigmoid, Sin, \
                     Softplus, Sqrt, Squeeze, Sub, Sum, Tanh, Transpose, Unsqueeze, Where";

impl Importer<'_> {
    /// The nodes that a Gradient stands for; gives its results.
    pub fn gradient(&mut self, n: &NodeProto, inputs: &[Option<Value>], mut parts: Parts) -> Result<Vec<Value>, Stop> {
        fn take<T: AttrValue>(parts: &mut Parts, name: &str) -> Result<Option<T>, Fault> {
            parts
                .attrs
                .take(name)
                .map(|a| T::from_attr(a).map_err(|kind| fault!("attribute '{name}' must be {kind}")))
                .transpose()
        }
        let missing = |name: &str| fault!("attribute '{name}' is required");
        let xs: Vec<String> = take(&mut parts, "xs")?.ok_or_else(|| missing("xs"))?;
        let zs: Vec<String> = take(&mut parts, "zs")?.unwrap_or_default();
        let y: String = take(&mut parts, "y")?.ok_or_else(|| missing("y"))?;
        let given: Option<Vec<Value>> = inputs.iter().copied().collect();
        let given = given.filter(|g| g.len() == xs.len() + zs.len());
        let given = given.ok_or_else(|| fault!("has {} operands; one for each of 'xs' and 'zs' is needed", inputs.len()))?;
        if n.output.len() > xs.len() {
            return Err(fault!("has {} results, 'xs' names {} tensors", n.output.len(), xs.len()).into());
        }
        let mut named = vec![];
        for name in xs.iter().chain(&zs).chain([&y]) {
            match self.lookup(name) {
                Some(Named::Value(v)) => named.push(v),
                Some(_) => return Err(Stop::Unknown),
                None => return Err(Stop::Fault(fault!("'{name}' is no tensor of the graph before this node"), "")),
            }
        }
        let (y, told) = named.split_last().expect("y is one of them");
        let region = self.scope().region;
        let results = self.emit(n, GRADIENT, |r| {
            let mut at: HashMap<Value, Value> = told.iter().copied().zip(given).collect();
            let again = between(r.builder.graph, region, told, *y);
            repeat(r, &again, &mut at)?;
            let path = between(r.builder.graph, region, &told[..xs.len()], *y);
            backwards(r, &path, &told[..xs.len()], *y, &at)
        })?;
        for (v, name) in results.iter().zip(&n.output) {
            self.name_value(*v, name);
        }
        Ok(results)
    }
}

/// The nodes of a region by which `y` depends on values, in order.
fn between(g: &Graph, region: Region, from: &[Value], y: Value) -> Vec<Node> {
    let mut moved: HashSet<Value> = from.iter().copied().collect();
    let mut after = vec![];
    for &n in &g.region(region).nodes {
        let data = g.node(n);
        if data.inputs.iter().flatten().any(|v| moved.contains(v)) {
            // What is given is not computed.
            moved.extend(data.outputs.iter().filter(|o| !from.contains(o)));
            after.push(n);
        }
    }
    let mut needed = HashSet::from([y]);
    let mut path = vec![];
    for n in after.into_iter().rev() {
        let data = g.node(n);
        if data.outputs.iter().any(|o| needed.contains(o) && !from.contains(o)) {
            needed.extend(data.inputs.iter().flatten().filter(|v| moved.contains(v)));
            path.push(n);
        }
    }
    path.reverse();
    path
}

/// What the nodes make where other values stand for some: `at` gets their results. Nothing is done twice for values that are the same.
fn repeat(r: &mut Raise, nodes: &[Node], at: &mut HashMap<Value, Value>) -> Result<(), Fault> {
    for &n in nodes {
        let data = r.builder.graph.node(n).clone();
        let inputs: Vec<Option<Value>> = data.inputs.iter().map(|i| i.map(|v| at.get(&v).copied().unwrap_or(v))).collect();
        let made = match inputs == data.inputs {
            true => data.outputs.clone(),
            false if data.regions.is_empty() => r.builder.node(data.op.clone(), &inputs, vec![], data.outputs.len())?,
            false => return Err(fault!("{} lies between, and what has bodies cannot be taken at other values", data.op.name())),
        };
        at.extend(data.outputs.iter().copied().zip(made).filter(|(old, new)| old != new));
    }
    Ok(())
}

/// The derivatives of `y` by `xs`, along a path of nodes.
fn backwards(r: &mut Raise, path: &[Node], xs: &[Value], y: Value, at: &HashMap<Value, Value>) -> Result<Vec<Value>, Fault> {
    let now = |v: Value| at.get(&v).copied().unwrap_or(v);
    let mut moved: HashSet<Value> = xs.iter().copied().collect();
    path.iter().for_each(|&n| moved.extend(&r.builder.graph.node(n).outputs));
    let mut slopes = HashMap::from([(y, filled(r, now(y), 1.0)?)]);
    for &n in path.iter().rev() {
        let data = r.builder.graph.node(n).clone();
        let slope = match data.outputs[..] {
            [out] if !xs.contains(&out) => slopes.get(&out).copied().map(|s| (out, s)),
            [_] => None,
            _ => return Err(unknown(&data.op)),
        };
        let Some((out, slope)) = slope else { continue };
        let inputs: Vec<Option<Value>> = data.inputs.iter().map(|i| i.map(now)).collect();
        for (i, v) in data.inputs.iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?))) {
            if !moved.contains(&v) || !r.builder.tensor(v)?.dtype.is_float() {
                continue;
            }
            let part = pull(r, &data.op, &inputs, now(out), slope, i)?;
            let part = narrowed(r, part, now(v))?;
            let sum = match slopes.get(&v) {
                Some(&other) => r.node("Add", &[], &[other, part])?,
                None => part,
            };
            slopes.insert(v, sum);
        }
    }
    xs.iter().map(|&x| slopes.get(&x).copied().map_or_else(|| filled(r, now(x), 0.0), Ok)).collect()
}

fn unknown(op: &Op) -> Fault {
    fault!("{} lies between, whose derivative is not known; known are those of {KNOWN}", op.name())
}

fn dtype(r: &Raise, v: Value) -> Result<DType, Fault> {
    Ok(r.builder.tensor(v)?.dtype)
}

/// A number in the form of a tensor.
fn filled(r: &mut Raise, like: Value, value: f64) -> Result<Value, Fault> {
    let d = dtype(r, like)?;
    if !d.is_float() {
        return Err(fault!("derivatives are of floats, this is {d}"));
    }
    let (number, shape) = (r.builder.number(d, value), r.node("Shape", &[], &[like])?);
    r.node("Expand", &[], &[number, shape])
}

/// Sums over the axes along which an operand was repeated.
fn narrowed(r: &mut Raise, slope: Value, operand: Value) -> Result<Value, Fault> {
    let (wide, narrow) = (r.builder.dims(slope)?.to_vec(), r.builder.dims(operand)?.to_vec());
    if wide == narrow {
        return Ok(slope);
    }
    let more = wide.len().saturating_sub(narrow.len());
    let repeated = |a: usize| a < more || narrow[a - more].is(1) && !wide[a].is(1);
    let axes: Vec<i64> = (0..wide.len()).filter(|&a| repeated(a)).map(|a| a as i64).collect();
    if (0..wide.len()).any(|a| !repeated(a) && wide[a] != narrow[a - more]) {
        return Err(fault!("whether {narrow:?} was repeated to {wide:?} cannot be told: give the dims sizes"));
    }
    let axes = r.builder.ints(&axes);
    let sum = r.node("ReduceSum", &[], &[slope, axes])?;
    let shape = r.node("Shape", &[], &[operand])?;
    r.node("Reshape", &[("allowzero", Attr::Int(1))], &[sum, shape])
}

/// The last two axes of a matrix exchanged.
fn turned(r: &mut Raise, v: Value) -> Result<Value, Fault> {
    let rank = r.builder.dims(v)?.len() as i64;
    let perm: Vec<i64> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
    r.node("Transpose", &[("perm", Attr::Ints(perm))], &[v])
}

/// What operand `i` of an operator gets of the slope at its result: the slope times the derivative there, before sums over axes along
/// which the operand was repeated.
fn pull(r: &mut Raise, op: &Op, inputs: &[Option<Value>], out: Value, slope: Value, i: usize) -> Result<Value, Fault> {
    let operand = |k: usize| inputs.get(k).copied().flatten().ok_or_else(|| fault!("operand {k} is missing"));
    let x = operand(i)?;
    let d = dtype(r, x)?;
    let node = |r: &mut Raise, name: &str, inputs: &[Value]| r.node(name, &[], inputs);
    let times = |r: &mut Raise, factor: Value| r.node("Mul", &[], &[slope, factor]);
    match (op, i) {
        (Op::Add(_) | Op::Sum(_) | Op::Identity(_), _) | (Op::Sub(_), 0) => Ok(slope),
        (Op::Sub(_), 1) | (Op::Neg(_), 0) => node(r, "Neg", &[slope]),
        (Op::Mul(_), _) => {
            let other = operand(1 - i)?;
            times(r, other)
        }
        (Op::Div(_), 0) => node(r, "Div", &[slope, operand(1)?]),
        (Op::Div(_), 1) => {
            let part = times(r, out)?;
            let part = node(r, "Div", &[part, x])?;
            node(r, "Neg", &[part])
        }
        (Op::Abs(_), 0) => {
            let sign = node(r, "Sign", &[x])?;
            times(r, sign)
        }
        (Op::Exp(_), 0) => times(r, out),
        (Op::Log(_), 0) => node(r, "Div", &[slope, x]),
        (Op::Sqrt(_), 0) => {
            let twice = node(r, "Add", &[out, out])?;
            node(r, "Div", &[slope, twice])
        }
        (Op::Reciprocal(_), 0) => {
            let square = node(r, "Mul", &[out, out])?;
            let part = times(r, square)?;
            node(r, "Neg", &[part])
        }
        (Op::Sin(_), 0) => {
            let cos = node(r, "Cos", &[x])?;
            times(r, cos)
        }
        (Op::Cos(_), 0) => {
            let sin = node(r, "Sin", &[x])?;
            let part = times(r, sin)?;
            node(r, "Neg", &[part])
        }
        (Op::Tanh(_), 0) => {
            let (one, square) = (r.builder.number(d, 1.0), node(r, "Mul", &[out, out])?);
            let factor = node(r, "Sub", &[one, square])?;
            times(r, factor)
        }
        (Op::Sigmoid(_), 0) => {
            let one = r.builder.number(d, 1.0);
            let rest = node(r, "Sub", &[one, out])?;
            let factor = node(r, "Mul", &[out, rest])?;
            times(r, factor)
        }
        (Op::Softplus(_), 0) => {
            let factor = node(r, "Sigmoid", &[x])?;
            times(r, factor)
        }
        (Op::Relu(_), 0) => {
            let zero = r.builder.number(d, 0.0);
            let above = node(r, "Greater", &[x, zero])?;
            node(r, "Where", &[above, slope, zero])
        }
        (Op::Pow(_), 0) => {
            let (e, one) = (operand(1)?, r.builder.number(d, 1.0));
            let e = r.node("Cast", &[("to", Attr::Int(i64::from(d.onnx())))], &[e])?;
            let less = node(r, "Sub", &[e, one])?;
            let power = node(r, "Pow", &[x, less])?;
            let factor = node(r, "Mul", &[e, power])?;
            times(r, factor)
        }
        (Op::Pow(_), 1) => {
            let log = node(r, "Log", &[operand(0)?])?;
            let factor = node(r, "Mul", &[out, log])?;
            let part = times(r, factor)?;
            r.node("Cast", &[("to", Attr::Int(i64::from(d.onnx())))], &[part])
        }
        (Op::Cast(_), 0) => r.node("Cast", &[("to", Attr::Int(i64::from(d.onnx())))], &[slope]),
        (Op::Where(_), 1 | 2) => {
            let (cond, zero) = (operand(0)?, r.builder.number(d, 0.0));
            node(r, "Where", &if i == 1 { [cond, slope, zero] } else { [cond, zero, slope] })
        }
        (Op::MatMul(_), _) => {
            let (a, b) = (operand(0)?, operand(1)?);
            if [a, b].iter().any(|&v| r.builder.dims(v).map_or(0, |d| d.len()) < 2) {
                return Err(fault!("MatMul of a vector lies between; its derivative is known for matrices"));
            }
            let other = turned(r, if i == 0 { b } else { a })?;
            node(r, "MatMul", &if i == 0 { [slope, other] } else { [other, slope] })
        }
        (Op::Transpose(t), 0) => {
            let rank = r.builder.dims(x)?.len();
            let perm: Vec<usize> = match t.perm.is_empty() {
                true => (0..rank).rev().collect(),
                false => t.perm.iter().map(|&p| p as usize).collect(),
            };
            let mut back = vec![0; rank];
            perm.iter().enumerate().for_each(|(to, &from)| back[from] = to as i64);
            r.node("Transpose", &[("perm", Attr::Ints(back))], &[slope])
        }
        (Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_), 0) => {
            let shape = node(r, "Shape", &[x])?;
            r.node("Reshape", &[("allowzero", Attr::Int(1))], &[slope, shape])
        }
        (Op::ReduceSum(_) | Op::ReduceMean(_), 0) => {
            // The result with axes of 1 where it was reduced, whatever it has kept.
            let axes = inputs.get(1).copied().flatten();
            let (keeps, noop) = match op {
                Op::ReduceSum(o) => (o.keepdims, o.noop_with_empty_axes),
                Op::ReduceMean(o) => (o.keepdims, o.noop_with_empty_axes),
                _ => (true, false),
            };
            if axes.is_none() && noop {
                return Ok(slope);
            }
            let rank = r.builder.dims(x)?.len() as i64;
            let whole = match (keeps, axes) {
                (true, _) => slope,
                (false, Some(axes)) => node(r, "Unsqueeze", &[slope, axes])?,
                (false, None) => {
                    let axes = r.builder.ints(&(0..rank).collect::<Vec<_>>());
                    node(r, "Unsqueeze", &[slope, axes])?
                }
            };
            let shape = node(r, "Shape", &[x])?;
            let whole = node(r, "Expand", &[whole, shape])?;
            if matches!(op, Op::ReduceSum(_)) {
                return Ok(whole);
            }
            let (all, left) = (node(r, "Size", &[x])?, node(r, "Size", &[out])?);
            let to = [("to", Attr::Int(i64::from(d.onnx())))];
            let (all, left) = (r.node("Cast", &to, &[all])?, r.node("Cast", &to, &[left])?);
            let part = node(r, "Mul", &[whole, left])?;
            node(r, "Div", &[part, all])
        }
        _ => Err(unknown(op)),
    }
}
