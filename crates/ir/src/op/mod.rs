//! The operator table: every operator the compiler knows, declared once, with its attributes and arity.
//!
//! A row names the ONNX domain, operator and the version whose meaning it has (older versions are raised to it by the
//! importer). Each family file below implements [`OpDef`] for its rows: inference first, then meaning, then tests.

use crate::compute::Step;
use crate::dtype::DType;
use crate::expr::Expr;
use crate::fault;
use crate::fault::Fault;
use crate::graph::{Def, Graph, Region, Source, Value};
use crate::scalar::Scalar;
use crate::tensor::Tensor;
use crate::types::{Fact, TensorType, Type};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// Operators that are in the table but have no implementation yet: a clear error, and a listed gap.
macro_rules! gaps {
    ($($name:ident),* $(,)?) => { $(
        impl OpDef for $name {
            fn infer(&self, _: &Ctx) -> Result<Vec<Fact>, Fault> {
                Err(fault!("{} is not supported yet", stringify!($name)))
            }
            fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
                Err(fault!("{} is not supported yet", stringify!($name)))
            }
        }
    )*
        /// The names of this family's operators without an implementation.
        pub const GAPS: &[&str] = &[$(stringify!($name)),*];
    };
}

pub mod attr;
mod axes;
mod common;
mod container;
mod contract;
mod control;
mod conv;
mod elementwise;
mod index;
mod internal;
mod loss;
mod ml;
mod norm;
mod pool;
mod quant;
mod random;
mod reduce;
mod rnn;
mod road;
mod shape;
mod signal;
pub mod sizes;
mod sort;
#[allow(non_snake_case, clippy::redundant_closure_call)] // attribute fields carry ONNX's names; the closure carries `?`
mod table;
mod text;
mod window;

pub use attr::{Attr, AttrValue, Attrs};
pub use road::{Road, road};
pub use table::*;

/// Every operator of the table that has no implementation yet.
pub fn gaps() -> impl Iterator<Item = &'static str> {
    [
        elementwise::GAPS,
        reduce::GAPS,
        contract::GAPS,
        conv::GAPS,
        pool::GAPS,
        shape::GAPS,
        index::GAPS,
        norm::GAPS,
        quant::GAPS,
        random::GAPS,
        control::GAPS,
        sort::GAPS,
        rnn::GAPS,
        signal::GAPS,
        loss::GAPS,
        text::GAPS,
        container::GAPS,
        ml::GAPS,
        internal::GAPS,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// One row of the table, as data.
#[derive(Clone, Copy, Debug)]
pub struct OpInfo {
    /// ONNX domain; `""` is `ai.onnx`, `"infc"` marks operators of our own that passes make.
    pub domain: &'static str,
    /// Operator name.
    pub name: &'static str,
    /// The operator set version that introduced this meaning.
    pub since: i64,
    /// Number of operands, optional ones included.
    pub inputs: (usize, usize),
    /// Number of results.
    pub outputs: (usize, usize),
    /// Names of the attributes that hold regions.
    pub regions: &'static [&'static str],
    /// Names of the other attributes.
    pub attributes: &'static [&'static str],
    /// The family file it stands in.
    pub family: &'static str,
    /// What it does, in a sentence.
    pub doc: &'static str,
}

/// What an operator sees of its node: facts of the operands, types of the regions, how many results are asked for.
#[derive(Clone, Debug)]
pub struct Ctx<'a> {
    /// What is known of the operands.
    pub inputs: &'a [Option<Fact>],
    /// Parameter and result types of the regions.
    pub regions: &'a [Signature],
    /// Number of results the node has.
    pub outputs: usize,
}

/// Types at the border of a region.
#[derive(Clone, Debug, PartialEq)]
pub struct Signature {
    /// Parameters.
    pub params: Vec<Type>,
    /// Results, with what inference knows of them.
    pub results: Vec<Fact>,
}

/// What a node computes.
pub enum Meaning {
    /// Steps in order; a step reads operands (sources `0..inputs.len()`) and earlier steps (the numbers after them).
    /// `outputs[k]` is the source number of result `k`.
    Steps {
        /// The steps.
        steps: Vec<Step>,
        /// Which source is which result.
        outputs: Vec<u32>,
    },
    /// Result 0 has the bytes of operand `.0`, with the dims of its type.
    Alias(usize),
    /// A subgraph of other operators.
    Decompose(Box<dyn Fn(&mut Builder, &[Option<Value>]) -> Result<Vec<Value>, Fault>>),
    /// If, Loop or Scan: the engines know them.
    Control,
    /// An algorithm with loops that the compute form does not express (sorting, selection).
    Routine(Routine),
    /// Work for the host: strings, sequences, optionals, maps, images.
    Host,
}

/// The algorithms of [`Meaning::Routine`]; each has an obvious form in [`crate::interp`] and a loop nest in the kernel level.
/// Operand 0 is the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Routine {
    /// The `k` largest or smallest elements along `axis`, with indices; operand 1 holds `k`. Equal values: lower index first.
    TopK {
        /// Axis, from 0.
        axis: usize,
        /// Largest first.
        largest: bool,
    },
    /// Coordinates of the elements that are not zero, `i64[rank, count]`.
    NonZero,
    /// Elements (or slices along `axis`) where operand 1 is true.
    Compress {
        /// Axis; `None` for the flattened tensor.
        axis: Option<usize>,
    },
    /// Distinct elements or slices; results: values, first index, inverse, counts.
    Unique {
        /// Axis; `None` for the flattened tensor.
        axis: Option<usize>,
        /// Sort the values; else in order of appearance.
        sorted: bool,
    },
    /// ONNX NonMaxSuppression: operands boxes, scores, max per class, IoU threshold, score threshold.
    NonMaxSuppression {
        /// Boxes are given by centre and size.
        center: bool,
    },
}

/// The work of an operator.
pub trait OpDef {
    /// Facts of the results. Checks operands: whatever passes here is accepted by `meaning`.
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault>;
    /// What the node computes, for operands that `infer` has accepted; `outs` are the types of the results.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault>;
    /// The dims of results that follow from elements of operands in a way that integer expressions do not say (a Range of floats).
    fn data_dims(&self, _: &Ctx) -> Result<DataDims, Fault> {
        Ok(DataDims::default())
    }
}

/// Dims as scalars over the operands (source `k` is operand `k`).
#[derive(Clone, Debug, Default)]
pub struct DataDims {
    /// Result, axis, and the extent as an `i64`.
    pub dims: Vec<(usize, usize, Scalar)>,
    /// What must hold of the elements, and the error where it does not.
    pub checks: Vec<(Scalar, String)>,
}

impl<'a> Ctx<'a> {
    /// The fact of operand `i`; an error if it is absent.
    pub fn fact(&self, i: usize) -> Result<&'a Fact, Fault> {
        self.inputs.get(i).and_then(|f| f.as_ref()).ok_or_else(|| fault!("operand {i} is missing"))
    }
    /// True if operand `i` is there.
    pub fn has(&self, i: usize) -> bool {
        self.inputs.get(i).is_some_and(|f| f.is_some())
    }
    /// The tensor type of operand `i`.
    pub fn tensor(&self, i: usize) -> Result<&'a TensorType, Fault> {
        let f = self.fact(i)?;
        f.ty.as_tensor().ok_or_else(|| fault!("operand {i} is {}, a tensor of known rank is needed", f.ty))
    }
    /// The dims of operand `i`.
    pub fn dims(&self, i: usize) -> Result<&'a [Expr], Fault> {
        Ok(&self.tensor(i)?.dims)
    }
    /// The dtype of operand `i`.
    pub fn dtype(&self, i: usize) -> Result<DType, Fault> {
        Ok(self.tensor(i)?.dtype)
    }
    /// The elements of operand `i`, if it is constant.
    pub fn known(&self, i: usize) -> Option<&'a Tensor> {
        self.inputs.get(i)?.as_ref()?.known.as_ref()
    }
    /// The elements of the integer operand `i` as expressions; an error that says what is missing if they depend on data.
    pub fn ints(&self, i: usize) -> Result<Vec<Expr>, Fault> {
        let f = self.fact(i)?;
        f.ints.clone().ok_or_else(|| {
            fault!(
                "operand {i} ({}) must be known at compile time or follow from the input shapes, but it depends on input data",
                f.ty
            )
        })
    }
    /// As [`Ctx::ints`], all constants.
    pub fn known_ints(&self, i: usize) -> Result<Vec<i64>, Fault> {
        let ints = self.ints(i)?;
        let fault = || match ints.iter().any(|e| e.has_datum()) {
            true => fault!(
                "operand {i} ({}) must be constant, but it depends on input data",
                self.inputs[i].as_ref().expect("there").ty
            ),
            false => fault!("operand {i} must be constant, it is {ints:?}"),
        };
        ints.iter().map(|e| e.known().ok_or_else(fault)).collect()
    }
    /// The tensor type of result `k` among `outs`.
    pub fn out(outs: &[Type], k: usize) -> Result<&TensorType, Fault> {
        outs.get(k).and_then(Type::as_tensor).ok_or_else(|| fault!("result {k} is not a tensor"))
    }
}

impl Meaning {
    /// One step, which is the only result. `inputs` is the number of operands of the node.
    pub fn one(inputs: usize, step: Step) -> Meaning {
        Meaning::Steps { steps: vec![step], outputs: vec![inputs as u32] }
    }
    /// A decomposition.
    pub fn decompose(f: impl Fn(&mut Builder, &[Option<Value>]) -> Result<Vec<Value>, Fault> + 'static) -> Meaning {
        Meaning::Decompose(Box::new(f))
    }
}

/// Brings `axis` of a tensor of `rank` into `0..rank`.
pub fn normal_axis(axis: i64, rank: usize) -> Result<usize, Fault> {
    let r = rank as i64;
    if (-r..r).contains(&axis) {
        Ok((if axis < 0 { axis + r } else { axis }) as usize)
    } else {
        Err(fault!("axis {axis} is outside [-{rank}, {rank})"))
    }
}

/// The broadcast of dims by ONNX's multidirectional rule. Two different symbols are taken to be equal or 1; an axis of 1 is as empty
/// as what it is broadcast to.
pub fn broadcast(shapes: &[&[Expr]]) -> Result<Vec<Expr>, Fault> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![Expr::int(1); rank];
    for s in shapes {
        for (o, &d) in out[rank - s.len()..].iter_mut().zip(*s) {
            let joined = match (o.known(), d.known()) {
                (Some(1), _) => d,
                (_, Some(1)) => *o,
                (Some(a), Some(b)) if a != b => return Err(fault!("shapes {shapes:?} do not broadcast: {a} against {b}")),
                (Some(_), _) => *o,
                (_, Some(_)) => d,
                _ => joined(*o, d),
            };
            if !o.is(1) && !d.is(1) && !goes_with(*o, d) {
                sizes::must_broadcast(*o, d, &|| format!("shapes {shapes:?} must broadcast"));
            }
            *o = joined;
        }
    }
    Ok(out)
}

/// Is one size joined from the other, so that they broadcast?
fn goes_with(a: Expr, b: Expr) -> bool {
    let (a, b) = (joined_from(a), joined_from(b));
    a.iter().all(|e| b.contains(e)) || b.iter().all(|e| a.contains(e))
}

/// The dim of a broadcast of two symbolic ones: the larger one, or 0 if one of them is. What is joined twice is the same.
fn joined(a: Expr, b: Expr) -> Expr {
    if a == b {
        return a;
    }
    let all = [joined_from(a), joined_from(b)].concat();
    // n and min(n, 512) are equal, or the latter is 1: otherwise they do not broadcast.
    let part = |e: &Expr| match e.node() {
        crate::expr::Node::Min(x, y) => [(*x, *y), (*y, *x)].into_iter().any(|(x, y)| all.contains(&x) && at_least_one(y)),
        _ => false,
    };
    join_all(&mut all.iter().copied().filter(|e| !part(e)).collect())
}

fn at_least_one(e: Expr) -> bool {
    e.range(&crate::expr::Ranges::default()).lo >= 1
}

fn join_all(sizes: &mut Vec<Expr>) -> Expr {
    sizes.sort_unstable();
    sizes.dedup();
    if let [one] = sizes[..] {
        return one;
    }
    // Only those that no other one makes unnecessary, for one form whatever comes first.
    let of = |sizes: &[Expr], pick: fn(Expr, Expr) -> Expr| {
        let needed = |a: &Expr| !sizes.iter().any(|&b| b != *a && pick(*a, b) == b);
        sizes.iter().copied().filter(needed).reduce(pick).unwrap_or(Expr::int(1))
    };
    of(sizes, Expr::max) * of(&[&sizes[..], &[Expr::int(1)]].concat(), Expr::min)
}

/// The sizes that a dim is joined from: itself if it is not.
fn joined_from(e: Expr) -> Vec<Expr> {
    use crate::expr::Node;
    /// The operands of nested `max`, or of nested `min`.
    fn operands(e: Expr, of_max: bool, out: &mut Vec<Expr>) {
        match e.node() {
            Node::Max(a, b) if of_max => [*a, *b].into_iter().for_each(|e| operands(e, of_max, out)),
            Node::Min(a, b) if !of_max => [*a, *b].into_iter().for_each(|e| operands(e, of_max, out)),
            _ => out.push(e),
        }
    }
    let mut ways = vec![(e, Expr::int(1))];
    if let Node::Product(factors) = e.node()
        && let [x, y] = factors[..]
    {
        ways.extend([(x, y), (y, x)]);
    }
    let of = |(most, least)| {
        let mut sizes = vec![];
        operands(most, true, &mut sizes);
        operands(least, false, &mut sizes);
        sizes.retain(|s| !s.is(1));
        (join_all(&mut sizes) == e).then_some(sizes)
    };
    ways.into_iter().filter_map(of).max_by_key(Vec::len).unwrap_or(vec![e])
}

/// The index of an operand of `dims` that is broadcast to a result with axes `axes`.
pub fn broadcast_index(dims: &[Expr], out_dims: &[Expr], axes: &[Expr]) -> Vec<Expr> {
    let skip = axes.len() - dims.len();
    dims.iter()
        .enumerate()
        .map(|(i, &d)| match d.known() {
            Some(1) => Expr::int(0),
            _ if d == out_dims[skip + i] || out_dims[skip + i].known().is_some() && d.known().is_some() => axes[skip + i],
            _ => axes[skip + i].min(d - 1), // 0 if the symbol turns out to be 1
        })
        .collect()
}

/// Adds nodes to a region, inferring their types.
pub struct Builder<'a> {
    /// The graph built on.
    pub graph: &'a mut Graph,
    /// The nodes made so far, in order; the caller puts them where they belong.
    pub nodes: Vec<crate::graph::Node>,
    /// The origin of what is built.
    pub origin: BTreeSet<Source>,
}

impl<'a> Builder<'a> {
    /// A builder whose nodes stand for `origin`.
    pub fn new(graph: &'a mut Graph, origin: BTreeSet<Source>) -> Builder<'a> {
        Builder { graph, nodes: vec![], origin }
    }
    /// Adds a node with all operands present and `outputs` results.
    pub fn node(
        &mut self,
        op: impl Into<Op>,
        inputs: &[Option<Value>],
        regions: Vec<Region>,
        outputs: usize,
    ) -> Result<Vec<Value>, Fault> {
        let op = op.into();
        let facts = infer(self.graph, &op, inputs, &regions, outputs)?;
        let node = self.graph.make_node(op, inputs.to_vec(), regions, facts, "", self.origin.clone());
        self.nodes.push(node);
        Ok(self.graph.node(node).outputs.clone())
    }
    /// Adds a node with one result.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, Fault> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        Ok(self.node(op, &inputs, vec![], 1)?[0])
    }
    /// Adds a region with parameters of these types; what `build` makes of them becomes its nodes and results. Of the outside
    /// it may use constants only.
    pub fn region(
        &mut self,
        name: &str,
        params: &[Type],
        build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, Fault>,
    ) -> Result<Region, Fault> {
        let region = self.graph.add_region(name);
        let params: Vec<Value> = params.iter().map(|t| self.graph.add_param(region, t.clone(), "")).collect();
        let mut inner = Builder::new(self.graph, self.origin.clone());
        let results = build(&mut inner, &params)?;
        let nodes = inner.nodes;
        let data = &mut self.graph.regions[region.index()];
        (data.nodes, data.results) = (nodes, results);
        Ok(region)
    }
    /// Adds a constant.
    pub fn constant(&mut self, t: Tensor) -> Value {
        self.graph.add_constant(t, "")
    }
    /// A scalar constant of a numeric dtype.
    pub fn number(&mut self, dtype: DType, value: f64) -> Value {
        let bits = crate::eval::cast(DType::F64, dtype, value.to_bits());
        self.constant(Tensor::from_values(dtype, [], [bits]))
    }
    /// A 1-D `i64` constant.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        self.constant(Tensor::from_ints(values))
    }
    /// The tensor type of a value.
    pub fn tensor(&self, v: Value) -> Result<&TensorType, Fault> {
        self.graph.ty(v).as_tensor().ok_or_else(|| fault!("a tensor is needed, not {}", self.graph.ty(v)))
    }
    /// The dims of a tensor value.
    pub fn dims(&self, v: Value) -> Result<Vec<Expr>, Fault> {
        Ok(self.tensor(v)?.dims.clone())
    }
}

/// A dim that only the data tells: a symbol that is new for each node. Inference of an operator numbers its new dims from 0; they are
/// told apart by node when the operator is applied in a graph (see [`infer`]).
pub fn new_dim(op: &str, number: usize) -> Expr {
    Expr::sym(&format!("{NEW}{op}.{number}"))
}

const NEW: &str = "new ";

/// Is there a symbol in it for a dim that only the data tells? (A dim of an input that has such a name passes for one.)
fn told_by_data(e: Expr) -> bool {
    let mut found = e.has_datum();
    e.leaves(&mut |l| found |= matches!(l.node(), crate::expr::Node::Sym(s) if s.starts_with(NEW) || s.starts_with('_')));
    found
}

/// New dims get the name of the operator, its operands and attributes: equal nodes have equal new dims, others different ones.
fn name_new_dims(facts: &mut [Fact], op: &Op, inputs: &[Option<Value>], regions: &[Region]) {
    let is_new = |e: Expr| match e.node() {
        crate::expr::Node::Sym(s) => s.strip_prefix(NEW),
        _ => None,
    };
    let mut any = false;
    let mut look = |e: Expr| e.leaves(&mut |l| any |= is_new(l).is_some());
    for f in &*facts {
        f.ty.each_dim(&mut look);
        f.ints.iter().flatten().for_each(|&e| look(e));
    }
    if !any {
        return;
    }
    // FNV-1a of the attributes: two TopK of one tensor along different axes are different nodes.
    let attrs = format!("{op:?}").bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    let mut suffix = format!("_{attrs:x}");
    inputs.iter().for_each(|v| suffix += &v.map_or("_".to_owned(), |v| format!("_{}", v.0)));
    regions.iter().for_each(|r| suffix += &format!("_r{}", r.0));
    let name = |e: Expr| e.map(&|l| is_new(l).map_or(l, |s| Expr::sym(&format!("_{}{suffix}", s.replace('.', "_")))));
    for f in facts {
        f.ty = f.ty.map_dims(&name);
        f.ints.iter_mut().flatten().for_each(|e| *e = name(*e));
    }
}

/// Facts of the results of an operator applied to values of a graph.
pub fn infer(graph: &Graph, op: &Op, inputs: &[Option<Value>], regions: &[Region], outputs: usize) -> Result<Vec<Fact>, Fault> {
    let facts: Vec<_> = inputs.iter().map(|v| v.map(|v| fact(graph, v))).collect();
    let signatures: Vec<_> = regions.iter().map(|&r| signature(graph, r)).collect();
    let cx = Ctx { inputs: &facts, regions: &signatures, outputs };
    let mut got = op.infer(&cx)?;
    name_new_dims(&mut got, op, inputs, regions);
    if got.len() < outputs {
        return Err(fault!("has {} results, {outputs} are asked for", got.len()));
    }
    Ok(got.into_iter().take(outputs).collect())
}

/// What is known of a value. A small integer tensor that is computed from nothing but constants is known, of whatever rank: exporters
/// write padding and the like as chains of reshapes and slices of constants.
pub fn fact(graph: &Graph, v: Value) -> Fact {
    let fact = graph.fact(v);
    if fact.known.is_some() || fact.ints.is_some() {
        return fact;
    }
    computed(graph, v, 16).map_or(fact, Fact::constant)
}

/// The value of a small integer tensor at the end of a chain of at most `depth` nodes over constants.
fn computed(graph: &Graph, v: Value, depth: usize) -> Option<Tensor> {
    let (node, k) = match &graph.value(v).def {
        Def::Constant(t) => return Some(t.clone()),
        Def::Output(n, k) if depth > 0 => (graph.node(*n), *k as usize),
        Def::Output(..) | Def::Param(..) => return None,
    };
    let ty = graph.ty(v).as_tensor()?;
    let small = ty.known_dims().is_some_and(|d| crate::tensor::count(&d) <= 1024);
    let whole = ty.dtype.is_int() || ty.dtype == DType::Bool;
    if !small || !whole || !node.regions.is_empty() || node.op.info().family == "random" {
        return None;
    }
    let inputs: Option<Vec<_>> = node
        .inputs
        .iter()
        .map(|v| match v {
            Some(v) => computed(graph, *v, depth - 1).map(Some),
            None => Some(None),
        })
        .collect();
    crate::interp::eval_op(&node.op, &inputs?, node.outputs.len()).ok()?.into_iter().nth(k)
}

/// The signature of a region.
pub fn signature(graph: &Graph, r: Region) -> Signature {
    let region = graph.region(r);
    Signature {
        params: region.params.iter().map(|&v| graph.ty(v).clone()).collect(),
        results: region.results.iter().map(|&v| graph.fact(v)).collect(),
    }
}

/// The allowed number of operands or results as a range.
pub fn arity((least, most): (usize, usize)) -> RangeInclusive<usize> {
    least..=most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_of_one_is_as_empty_as_the_other() {
        let e = |t: &str| t.parse::<Expr>().unwrap();
        let of = |dims: &[&str]| {
            let dims: Vec<[Expr; 1]> = dims.iter().map(|d| [e(d)]).collect();
            broadcast(&dims.iter().map(|d| &d[..]).collect::<Vec<_>>()).map(|d| d[0])
        };
        let sizes = |m: i64, n: i64, k: i64| {
            move |l: Expr| [("m", m), ("n", n), ("k", k)].into_iter().find(|(s, _)| l == Expr::sym(s)).map(|x| x.1)
        };
        let two = of(&["m", "n"]).unwrap();
        for (m, n, want) in [(1, 5, 5), (5, 1, 5), (5, 5, 5), (1, 0, 0), (0, 1, 0), (0, 0, 0), (1, 1, 1)] {
            assert_eq!(two.eval(&sizes(m, n, 1)), Some(want), "{m} {n}");
        }
        // What is joined once more stays as it is, in whatever order.
        let three = of(&["m", "n", "k"]).unwrap();
        assert_eq!(of(&["n", "m"]), Ok(two));
        assert_eq!(of(&["k", "n", "1", "m", "n", "k"]), Ok(three));
        assert_eq!(joined(joined(two, e("n")), joined(e("k"), two)), three);
        let longer = of(&["n + 1", "m + 1"]).unwrap();
        assert_eq!(longer, e("max(n + 1, m + 1)"));
        assert_eq!(joined(joined(longer, e("m")), e("n + 1")), joined(e("m"), longer));
        assert_eq!(of(&["n", "min(n, 512)", "m"]), of(&["m", "n"]));
        assert_eq!(of(&["min(n, 512)", "n"]), Ok(e("n")));
        assert!(goes_with(two, e("n")) && !goes_with(two, e("k")) && !goes_with(e("n"), e("min(n, 512)")));
        assert_eq!(of(&["n", "4"]), Ok(e("4")));
        assert!(of(&["3", "4"]).is_err());
    }
}
