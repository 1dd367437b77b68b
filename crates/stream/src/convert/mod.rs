//! From a graph to a streaming design, with one lane everywhere.
//!
//! It starts from the graph after [`crate::prepare`]: after the pass `integer` and before composite operators are expanded, so that a convolution is
//! one node (`QLinearConv`) with its multipliers, and data movement is one node. A walk over the nodes gives each value that is integers a
//! [`Flow`]: the actor that makes it, and the order in which its elements come. Real numbers have none: what lies between
//! DequantizeLinear and QuantizeLinear becomes a table, a sum of two streams or a softmax when the QuantizeLinear is met (`cone`).
//! Transpositions and reshapes only change what is known of the order; elements are reordered where an operator needs another one.
//! Everything that cannot stream is collected and told at once.

mod cone;
mod contract;
pub mod layout;
mod movement;
mod pool;
mod refuse;
mod wire;

use crate::design::*;
use crate::requant::requantise;
use infc_ir::graph::{Def, Graph, Node};
use infc_ir::{DType, Fault, Op, Problem, Problems, Value, fault};
use layout::Loops;
use std::collections::{HashMap, HashSet};

/// A value that streams.
#[derive(Clone, Debug)]
struct Flow {
    /// The actor that makes it.
    actor: usize,
    /// Dims of the tensor.
    dims: Vec<usize>,
    /// The order of its elements: places in the row-major tensor.
    order: Loops,
    /// Least and greatest element that can occur.
    range: [i64; 2],
    format: Format,
    scale: Option<f32>,
    zero: i64,
}

impl Flow {
    fn elements(&self) -> usize {
        self.dims.iter().product()
    }
    fn ordered(&self, order: &[(usize, usize)]) -> bool {
        layout::joined(&self.order) == layout::joined(order)
    }
}

/// From an actor to an input of another.
struct Edge {
    from: usize,
    to: usize,
    slot: usize,
    shape: [usize; 3],
    format: Format,
    scale: Option<f32>,
    zero: i64,
}

struct Converter<'a> {
    graph: &'a Graph,
    uses: Vec<u32>,
    actors: Vec<Actor>,
    edges: Vec<Edge>,
    flows: HashMap<Value, Flow>,
    /// Values that nothing can be said of, because a problem was told already.
    failed: HashSet<Value>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    problems: Vec<Problem>,
    names: HashSet<String>,
}

/// Converts a graph; all operators that cannot stream are listed.
pub fn convert(graph: &Graph) -> Result<Design, Problems> {
    let mut c = Converter {
        graph,
        uses: graph.use_counts(),
        actors: vec![],
        edges: vec![],
        flows: HashMap::new(),
        failed: HashSet::new(),
        inputs: vec![],
        outputs: vec![],
        problems: vec![],
        names: HashSet::new(),
    };
    c.shapes();
    if !c.problems.is_empty() {
        return Err(Problems(c.problems));
    }
    c.sources();
    for &n in &graph.region(Graph::MAIN).nodes {
        if let Err(problem) = c.node(n) {
            c.failed.extend(&graph.node(n).outputs);
            c.problems.extend(problem);
        }
    }
    c.sinks();
    if !c.problems.is_empty() {
        return Err(Problems(c.problems));
    }
    c.prune();
    if !c.problems.is_empty() {
        return Err(Problems(c.problems));
    }
    c.requantisers();
    Ok(c.wire())
}

/// `Err(None)`: the cause was told already.
type Outcome<T> = Result<T, Option<Problem>>;

impl Converter<'_> {
    /// The node of the model that says most of what a node does: no quantiser and no activation, if there is another.
    fn source_node(&self, n: Node) -> Option<&infc_ir::graph::SourceNode> {
        let all = self.graph.node(n).origin.iter().map(|s| &self.graph.sources[s.index()]);
        let rank = |op: &str| match op.rsplit(':').next().unwrap_or(op) {
            "Conv" | "Gemm" | "MatMul" | "QLinearConv" | "QLinearMatMul" | "MatMulInteger" => 0,
            "QuantizeLinear" | "DequantizeLinear" | "Quant" | "BipolarQuant" => 3,
            "Relu" | "Clip" | "BatchNormalization" | "Transpose" | "Reshape" | "Flatten" => 2,
            _ => 1,
        };
        all.min_by_key(|s| rank(&s.op))
    }

    /// A node in the model's words.
    fn describe(&self, n: Node) -> String {
        match self.source_node(n) {
            Some(s) => format!("{} '{}' (opset {})", s.op, s.name, s.opset),
            None => self.graph.describe(n),
        }
    }

    /// What is wrong with a node.
    fn problem(&self, n: Node, message: impl Into<String>, help: impl Into<String>) -> Option<Problem> {
        Some(Problem { at: self.describe(n), message: message.into(), help: help.into() })
    }

    fn fault(&self, n: Node, f: Fault) -> Option<Problem> {
        self.problem(n, f.0, "")
    }

    /// Every dim must be a number, and batches come frame by frame.
    fn shapes(&mut self) {
        let g = self.graph;
        for (kind, &v) in g.inputs().iter().map(|v| ("input", v)).chain(g.outputs().iter().map(|v| ("output", v))) {
            let (at, ty) = (format!("{kind} '{}'", g.value(v).name), g.ty(v));
            let Some(t) = ty.as_tensor() else {
                let message = format!("is {ty}; only tensors stream");
                self.problems.push(Problem { at, message, help: "compile for a CPU target".into() });
                continue;
            };
            let open: Vec<String> = t.dims.iter().filter(|d| d.known().is_none()).map(|d| d.to_string()).collect();
            if !open.is_empty() {
                let message = format!("is {t}: hardware has one size, but {} is open", open.join(", "));
                self.problems.push(Problem { at, message, help: "give every symbolic dim its size (--dim NAME=SIZE)".into() });
            } else if t.dims.len() > 1 && !t.dims[0].is(1) || t.dims.iter().any(|d| d.is(0)) {
                let message = format!("is {t}: a stream carries one item of the batch after the other");
                let help = "export the model with a batch of 1 or a symbolic one; the design then takes any number of frames";
                self.problems.push(Problem { at, message, help: help.into() });
            }
        }
    }

    fn dims(&self, v: Value) -> Option<Vec<usize>> {
        self.graph.ty(v).as_tensor()?.known_dims()
    }

    fn dtype(&self, v: Value) -> DType {
        self.graph.ty(v).dtype().unwrap_or(DType::F32)
    }

    fn producer(&self, v: Value) -> Option<Node> {
        match self.graph.value(v).def {
            Def::Output(n, _) => Some(n),
            Def::Param(..) | Def::Constant(_) => None,
        }
    }

    fn operand(&self, n: Node, i: usize) -> Outcome<Value> {
        self.graph.node(n).operand(i).ok_or_else(|| self.problem(n, format!("operand {i} is missing"), ""))
    }

    /// A constant operand.
    fn constant(&self, n: Node, i: usize, what: &str) -> Outcome<&infc_ir::Tensor> {
        let v = self.operand(n, i)?;
        let help = "weights, scales and zero points must be constants of the model";
        self.graph.constant(v).ok_or_else(|| self.problem(n, format!("its {what} is computed at run time"), help))
    }

    /// The stream of an operand.
    fn flow(&self, n: Node, v: Value) -> Outcome<Flow> {
        if self.failed.contains(&v) {
            return Err(None);
        }
        if let Some(flow) = self.flows.get(&v) {
            return Ok(flow.clone());
        }
        let ty = self.graph.ty(v);
        let message = format!("its operand is {ty}, not a stream of integers");
        Err(self.problem(n, message, "quantise the model: every operator needs QuantizeLinear and DequantizeLinear around it"))
    }

    /// An identifier from the model's names.
    fn name(&mut self, base: &str, suffix: &str) -> String {
        let clean: String = base.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
        let clean = clean.trim_matches('_');
        let first = if clean.starts_with(|c: char| c.is_ascii_digit()) || clean.is_empty() { "n" } else { "" };
        let name = if suffix.is_empty() { format!("{first}{clean}") } else { format!("{first}{clean}_{suffix}") };
        let mut unique = (1..).map(|i| if i == 1 { name.clone() } else { format!("{name}_{i}") });
        let name = unique.find(|n| !self.names.contains(n)).expect("one is free");
        self.names.insert(name.clone());
        name
    }

    /// Adds an actor that reads `inputs`, each seen as height, width, channels.
    fn actor(&mut self, n: Node, suffix: &str, kind: Kind, inputs: &[(&Flow, [usize; 3])]) -> usize {
        let base = self.source_node(n).map_or(String::new(), |s| s.name.clone());
        let name = self.name(&base, suffix);
        self.add(name, self.describe(n), kind, inputs)
    }

    fn add(&mut self, name: String, origin: String, kind: Kind, inputs: &[(&Flow, [usize; 3])]) -> usize {
        let to = self.actors.len();
        self.actors.push(Actor { name, origin, kind, inputs: vec![], outputs: vec![] });
        for (slot, &(flow, shape)) in inputs.iter().enumerate() {
            let &Flow { actor, format, scale, zero, .. } = flow;
            self.edges.push(Edge { from: actor, to, slot, shape, format, scale, zero });
        }
        to
    }

    /// One source a model input that is integers; real ones get theirs from their QuantizeLinear.
    fn sources(&mut self) {
        for (i, &v) in self.graph.inputs().iter().enumerate() {
            let (dtype, dims) = (self.dtype(v), self.dims(v).unwrap_or_default());
            let name = self.graph.value(v).name.clone();
            let order = self.input_order(v, &dims);
            let port = Port { name, dims, dtype, stream: StreamId(u32::MAX), order, scale: None, zero: 0, limits: [0, 0] };
            self.inputs.push(port);
            if let Some((lo, hi)) = dtype.int_range().filter(|_| dtype.bits() <= 32 && dtype != DType::Bool) {
                let flow = self.source(i, [lo as i64, hi as i64]);
                self.flows.insert(v, flow);
            }
        }
    }

    /// The stream of model input `i`.
    fn source(&mut self, i: usize, range: [i64; 2]) -> Flow {
        let port = &mut self.inputs[i];
        port.limits = range;
        let port = port.clone();
        let name = self.name(&port.name, "");
        let actor = self.add(name, format!("input '{}'", port.name), Kind::Source(i), &[]);
        let format = Format::of(range[0], range[1]);
        Flow { actor, dims: port.dims, order: port.order, range, format, scale: port.scale, zero: port.zero }
    }

    /// Pixel by pixel, unless the model itself moves the channels of its input.
    fn input_order(&self, v: Value, dims: &[usize]) -> Loops {
        let users = |v: Value| {
            let nodes = &self.graph.region(Graph::MAIN).nodes;
            nodes.iter().map(|&n| self.graph.node(n)).filter(move |n| n.inputs.contains(&Some(v)))
        };
        let behind = |v: Value| {
            users(v).flat_map(|n| if matches!(n.op, Op::QuantizeLinear(_)) { users(n.outputs[0]).collect() } else { vec![n] })
        };
        let moved = behind(v).all(|n| matches!(n.op, Op::Transpose(_)));
        if dims.len() < 4 || moved { layout::row_major(dims) } else { layout::channels_last(dims) }
    }

    fn node(&mut self, n: Node) -> Outcome<()> {
        let node = self.graph.node(n).clone();
        if node.inputs.iter().flatten().any(|v| self.failed.contains(v)) {
            return Err(None);
        }
        match &node.op {
            Op::QLinearConv(op) => self.convolution(n, op),
            Op::QLinearMatMul(_) => self.matrix_node(n),
            Op::QuantizeLinear(_) => self.quantiser(n),
            Op::MaxPool(op) if self.flows.contains_key(&self.operand(n, 0)?) => self.max_pool(n, op),
            Op::Concat(op) if node.inputs.iter().flatten().any(|v| self.flows.contains_key(v)) => self.concat(n, op.axis),
            op if cone::is_movement(op) && self.flows.contains_key(&self.operand(n, 0)?) => self.movement(n),
            op if cone::is_elementwise(op) => match self.dtype(node.outputs[0]) {
                // Real numbers, and accumulators, wait for the quantiser.
                t if t.is_float() || t.bits() > 8 || t == DType::Bool => Ok(()),
                _ => self.table(n),
            },
            Op::DequantizeLinear(_) | Op::Softmax(_) | Op::MatMulInteger(_) | Op::GlobalMaxPool(_) => Ok(()),
            op => {
                let (reason, help) = refuse::why(op);
                Err(self.problem(n, format!("cannot stream: {reason}"), help))
            }
        }
    }

    /// Hardware for all requantisations, now that all limits are known.
    fn requantisers(&mut self) {
        for a in &mut self.actors {
            if let Some(r) = requant_of(&mut a.kind)
                && let Some(law) = r.law.clone()
            {
                *r = requantise(r.out, r.min, r.max, law, std::mem::take(&mut r.range));
            }
        }
    }
}

/// The requantisation at the end of an actor.
fn requant_of(kind: &mut Kind) -> Option<&mut Requant> {
    match kind {
        Kind::Mvu(m) => m.requant.as_mut(),
        Kind::Depthwise(d) => d.requant.as_mut(),
        Kind::Pool(p) | Kind::GlobalPool(p) => p.requant.as_mut(),
        Kind::Requantise(r) => Some(r),
        Kind::Binary(Binary::Add { requant, .. }) => requant.as_mut(),
        Kind::Binary(Binary::Mul { requant, .. }) => Some(requant),
        Kind::Binary(Binary::Table { .. }) | Kind::Source(_) | Kind::Sink(_) | Kind::Pad(_) | Kind::Window(_) => None,
        Kind::Lookup(_) | Kind::Softmax(_) | Kind::Concat(_) | Kind::Slice(_) | Kind::Fork | Kind::Width | Kind::Rearrange(_) => {
            None
        }
    }
}

/// A requantisation whose hardware is made later.
fn pending(dtype: DType, law: Law, range: Vec<[i64; 2]>) -> Result<Requant, Fault> {
    let (lo, hi) = dtype.int_range().ok_or_else(|| fault!("is quantised to {dtype}; integers are needed"))?;
    if law.m.iter().any(|m| !m.is_normal() || *m <= 0.0) {
        return Err(fault!("its scales give the multipliers {:?}: they must be positive, normal numbers", law.m));
    }
    let (min, max) = (lo as i64, hi as i64);
    let out = Format { signed: dtype.is_signed(), bits: dtype.bits() };
    Ok(Requant { out, min, max, form: RequantForm::Thresholds(vec![]), law: Some(law), range })
}
