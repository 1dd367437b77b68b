//! If, Loop and Scan: bodies run as often as ONNX says.

use super::{Item, Machine};
use crate::expr::{Expr, Node as ExprNode};
use crate::fault;
use crate::fault::Fault;
use crate::fault::Problems;
use crate::graph::Node;
use crate::op::{Loop, Scan, SequenceMap, normal_axis};
use crate::tensor::{Data, Tensor, count};
use crate::types::Type;

impl Machine<'_> {
    pub(super) fn run_if(&mut self, n: Node, inputs: Vec<Option<Item>>) -> Result<Vec<Item>, Problems> {
        let mut inputs = inputs.into_iter();
        let cond = inputs.next().flatten();
        let cond = one(cond.as_ref(), "the condition").map_err(|f| self.problem(n, f))?;
        let body = self.graph.node(n).regions[if cond != 0 { 0 } else { 1 }];
        let captured = present(inputs).map_err(|f| self.problem(n, f))?;
        let results = self.region(body, captured)?;
        self.counted(n, results)
    }

    pub(super) fn run_loop(&mut self, n: Node, op: &Loop, inputs: Vec<Option<Item>>) -> Result<Vec<Item>, Problems> {
        let fail = |m: &Self, f: Fault| m.problem(n, f);
        let mut inputs = inputs.into_iter();
        let trips = inputs.next().flatten().map(|t| one(Some(&t), "the trip count")).transpose().map_err(|f| fail(self, f))?;
        let cond = inputs.next().flatten().map(|t| one(Some(&t), "the condition")).transpose().map_err(|f| fail(self, f))?;
        let mut carried = present(inputs).map_err(|f| fail(self, f))?;
        let states = carried.len().checked_sub(op.captures as usize);
        let states = states.ok_or_else(|| fail(self, fault!("has fewer than {} captured operands", op.captures)))?;
        let captured = carried.split_off(states);
        let node = self.graph.node(n);
        let body = node.regions[0];
        let results = self.graph.region(body).results.len();
        let stacks =
            (results.checked_sub(1 + states)).ok_or_else(|| fail(self, fault!("body has {results} results, too few")))?;
        let mut scanned: Vec<Vec<Tensor>> = vec![vec![]; stacks];
        let mut go = cond.unwrap_or(1) != 0;
        let mut trip = 0i64;
        while go && trips.is_none_or(|most| trip < most) {
            let head = [Tensor::from_vec([], vec![trip]), Tensor::from_bools([], &[true])].map(Item::Tensor);
            let args = head.into_iter().chain(carried).chain(captured.iter().cloned()).collect();
            let mut results = self.region(body, args)?.into_iter();
            go = one(results.next().as_ref(), "the condition of the body").map_err(|f| fail(self, f))? != 0;
            carried = results.by_ref().take(states).collect();
            for (stack, item) in scanned.iter_mut().zip(results) {
                stack.push(tensor(item, "a scan output").map_err(|f| fail(self, f))?);
            }
            trip += 1;
        }
        let bodies = self.graph.region(body).results[1 + states..].to_vec();
        for (stack, v) in scanned.into_iter().zip(bodies) {
            let made = match (stack.is_empty(), self.graph.ty(v).as_tensor()) {
                (false, _) => join(stack, 0, false),
                // Without iterations only the type says what an element looks like.
                (true, Some(t)) => Ok(empty(t.dtype, [0].into_iter().chain(self.sizes(&t.dims)).collect())),
                (true, None) => Err(fault!("a scan output is not a tensor")),
            };
            carried.push(Item::Tensor(made.map_err(|f| fail(self, f))?));
        }
        self.counted(n, carried)
    }

    /// Dims as numbers; one that neither is known nor follows from the inputs is empty.
    fn sizes(&self, dims: &[Expr]) -> Vec<usize> {
        let value = |e: Expr| match e.node() {
            ExprNode::Sym(s) => self.symbols.get(s).copied(),
            _ => None,
        };
        dims.iter().map(|d| d.eval(&value).unwrap_or(0).max(0) as usize).collect()
    }

    pub(super) fn run_scan(&mut self, n: Node, op: &Scan, inputs: Vec<Option<Item>>) -> Result<Vec<Item>, Problems> {
        let fail = |m: &Self, f: Fault| m.problem(n, f);
        let body = self.graph.node(n).regions[0];
        let mut carried = present(inputs.into_iter()).map_err(|f| fail(self, f))?;
        let (scans, captures) = (op.num_scan_inputs as usize, op.captures as usize);
        let states = carried.len().checked_sub(scans + captures);
        let states = states.ok_or_else(|| fail(self, fault!("has fewer operands than {scans} scanned, {captures} captured")))?;
        let captured = carried.split_off(states + scans);
        let scanned = carried.split_off(states);
        let mut slices = vec![];
        for (j, item) in scanned.into_iter().enumerate() {
            let t = tensor(item, "a scanned operand").map_err(|f| fail(self, f))?;
            let axis = normal_axis(op.scan_input_axes.get(j).copied().unwrap_or(0), t.dims.len()).map_err(|f| fail(self, f))?;
            slices.push((t, axis, op.scan_input_directions.get(j) == Some(&1)));
        }
        let trips = slices.first().map_or(0, |(t, axis, _)| t.dims[*axis]);
        if slices.iter().any(|(t, axis, _)| t.dims[*axis] != trips) {
            let lengths: Vec<_> = slices.iter().map(|(t, axis, _)| t.dims[*axis]).collect();
            return Err(fail(self, fault!("scanned operands differ in length: {lengths:?}")));
        }
        let results = self.graph.region(body).results.clone();
        let stacks = results.len().checked_sub(states);
        let stacks = stacks.ok_or_else(|| fail(self, fault!("body has {} results, {states} carried", results.len())))?;
        let mut made: Vec<Vec<Tensor>> = vec![vec![]; stacks];
        for trip in 0..trips {
            let parts = slices.iter().map(|(t, axis, back)| slice(t, *axis, if *back { trips - 1 - trip } else { trip }));
            let args = carried.into_iter().chain(parts.map(Item::Tensor)).chain(captured.iter().cloned()).collect();
            let mut results = self.region(body, args)?.into_iter();
            carried = results.by_ref().take(states).collect();
            for (stack, item) in made.iter_mut().zip(results) {
                stack.push(tensor(item, "a scan output").map_err(|f| fail(self, f))?);
            }
        }
        for (j, stack) in made.into_iter().enumerate() {
            let axis = op.scan_output_axes.get(j).copied().unwrap_or(0);
            let back = op.scan_output_directions.get(j) == Some(&1);
            let joined = match (stack.first(), self.graph.ty(results[states + j]).as_tensor()) {
                (Some(t), _) => normal_axis(axis, t.dims.len() + 1).and_then(|axis| join(stack, axis, back)),
                (None, Some(t)) => {
                    let mut dims = self.sizes(&t.dims);
                    normal_axis(axis, dims.len() + 1).map(|axis| {
                        dims.insert(axis, 0);
                        empty(t.dtype, dims)
                    })
                }
                (None, None) => Err(fault!("a scan output is not a tensor")),
            };
            carried.push(Item::Tensor(joined.map_err(|f| fail(self, f))?));
        }
        self.counted(n, carried)
    }

    /// Operands that are sequences run along, the others (and the captured ones) are the same in every call.
    pub(super) fn run_sequence_map(
        &mut self,
        n: Node,
        op: &SequenceMap,
        inputs: Vec<Option<Item>>,
    ) -> Result<Vec<Item>, Problems> {
        let items = present(inputs.into_iter()).map_err(|f| self.problem(n, f))?;
        let own = items.len().saturating_sub(op.captures as usize);
        let Some(Item::Sequence(first)) = items.first() else {
            return Err(self.problem(n, fault!("operand 0 is no sequence")));
        };
        let trips = first.len();
        if items[..own].iter().any(|i| matches!(i, Item::Sequence(s) if s.len() != trips)) {
            return Err(self.problem(n, fault!("the sequences differ in length")));
        }
        let body = self.graph.node(n).regions[0];
        let mut made: Vec<Vec<Item>> = vec![vec![]; self.graph.region(body).results.len()];
        for trip in 0..trips {
            let pick = |(k, item): (usize, &Item)| match item {
                Item::Sequence(s) if k < own => s[trip].clone(),
                other => other.clone(),
            };
            let args = items.iter().enumerate().map(pick).collect();
            for (list, item) in made.iter_mut().zip(self.region(body, args)?) {
                list.push(item);
            }
        }
        self.counted(n, made.into_iter().map(Item::Sequence).collect())
    }

    fn counted(&self, n: Node, results: Vec<Item>) -> Result<Vec<Item>, Problems> {
        let want = self.graph.node(n).outputs.len();
        if results.len() < want {
            return Err(self.problem(n, fault!("body has {} results, {want} are needed", results.len())));
        }
        let outputs = self.graph.node(n).outputs.clone();
        let unwrapped = results.into_iter().zip(outputs).map(|(item, v)| match (item, self.graph.ty(v)) {
            (Item::Optional(Some(item)), ty) if !matches!(ty, Type::Optional(_)) => Ok(*item),
            (Item::Optional(None), ty) if !matches!(ty, Type::Optional(_)) => {
                Err(self.problem(n, fault!("result '{}' is an empty optional: the body never ran", self.graph.value(v).name)))
            }
            (item, _) => Ok(item),
        });
        unwrapped.collect()
    }
}

fn present(items: impl Iterator<Item = Option<Item>>) -> Result<Vec<Item>, Fault> {
    items.map(|item| item.ok_or_else(|| fault!("an operand that the body needs is missing"))).collect()
}

fn tensor(item: Item, what: &str) -> Result<Tensor, Fault> {
    match item {
        Item::Tensor(t) => Ok(t),
        other => Err(fault!("{what} is {}, a tensor is needed", other.kind())),
    }
}

/// The one element of an integer or bool tensor.
fn one(item: Option<&Item>, what: &str) -> Result<i64, Fault> {
    match item {
        Some(Item::Tensor(t)) if t.len() == 1 && t.dtype.int_range().is_some() => Ok(t.to_ints()[0]),
        Some(other) => Err(fault!("{what} is {}, one integer or bool is needed", other.kind())),
        None => Err(fault!("{what} is missing")),
    }
}

fn empty(dtype: crate::DType, dims: Vec<usize>) -> Tensor {
    let dims = if count(&dims) == 0 { dims } else { vec![0] };
    match dtype {
        crate::DType::String => Tensor::from_strings(dims, []),
        _ => Tensor::zeros(dtype, dims),
    }
}

/// The slice at `at` along `axis`, without that axis.
pub(super) fn slice(t: &Tensor, axis: usize, at: usize) -> Tensor {
    let mut dims = t.dims.clone();
    let extent = dims.remove(axis);
    let (outer, inner) = (count(&t.dims[..axis]), count(&t.dims[axis + 1..]));
    let places = (0..outer).map(|o| (o * extent + at) * inner);
    match &t.data {
        Data::Strings(s) => Tensor::from_strings(dims, places.flat_map(|p| s[p..p + inner].iter().cloned())),
        Data::Bytes(b) => {
            let width = t.dtype.bytes();
            if outer == 1 {
                return Tensor::from_bytes(t.dtype, dims, b.slice(at * inner * width..(at + 1) * inner * width));
            }
            let mut bytes = Vec::with_capacity(outer * inner * width);
            places.for_each(|p| bytes.extend_from_slice(&b[p * width..(p + inner) * width]));
            Tensor::from_bytes(t.dtype, dims, bytes)
        }
    }
}

/// Tensors of one shape stacked along a new `axis`, in reverse order if `back`.
fn join(mut parts: Vec<Tensor>, axis: usize, back: bool) -> Result<Tensor, Fault> {
    if back {
        parts.reverse();
    }
    let first = parts[0].clone();
    if let Some(odd) = parts.iter().find(|p| p.dims != first.dims || p.dtype != first.dtype) {
        let (a, b) = ((first.dtype, &first.dims), (odd.dtype, &odd.dims));
        return Err(fault!("a scan output changes between iterations: {}{:?}, then {}{:?}", a.0, a.1, b.0, b.1));
    }
    let mut dims = first.dims.clone();
    dims.insert(axis, parts.len());
    let (outer, inner) = (count(&first.dims[..axis]), count(&first.dims[axis..]));
    let width = first.dtype.bytes();
    if first.dtype == crate::DType::String {
        let order =
            (0..outer).flat_map(|o| parts.iter().flat_map(move |p| p.strings()[o * inner..(o + 1) * inner].iter().cloned()));
        return Ok(Tensor::from_strings(dims, order));
    }
    let mut bytes = Vec::with_capacity(outer * inner * parts.len() * width);
    for o in 0..outer {
        parts.iter().for_each(|p| bytes.extend_from_slice(&p.bytes()[o * inner * width..(o + 1) * inner * width]));
    }
    Ok(Tensor::from_bytes(first.dtype, dims, bytes))
}
