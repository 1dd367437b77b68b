//! From a graph to a program: the road through work list, fusion, placement, plans and builders, down to steps and buffers.

use crate::attention::Attentions;
use crate::build::chain::MADE;
use crate::build::{self, Nest, Operand};
use crate::chain::Chains;
use crate::loops::{Access, Buffer, Kernel, Space};
use crate::plan::{self, Plan};
use crate::target::TargetDesc;
use crate::tuning::{Choices, Room, Sizes, Tunable};
use crate::work::{Arg, Id, Item, Memory, SlotMemory, Task, Work};
use crate::{
    attention, bands, batch, chain, copies, copies::Side, cost, fuse, gathered, known, largest, lookups, place, rounded,
    siblings, split, work, zero_point,
};
use infc_artifact::abi::ALIGN;
use infc_artifact::memory;
use infc_artifact::program::{
    self as art, HostType, HostValue, Place, Program, Size, SizeOp, SlotPlace, Step, SymbolSource, View,
};
use infc_ir::compute::{self, Step::Compute};
use infc_ir::expr::Node;
use infc_ir::graph::Graph;
use infc_ir::{DType, Expr, Problem, Problems, Scalar, Tensor, Type};
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

/// A program whose kernels are loop nests; code is not made yet.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// Steps, buffers and ports; kernels have neither entry nor scratch yet.
    pub program: Program,
    /// Unique kernels, in the order of `program.kernels`.
    pub kernels: Vec<Kernel>,
    /// The plan of each kernel, for people (`None` for borders).
    pub plans: Vec<Option<Plan>>,
    /// Bytes of all constants, at the offsets that the program names.
    pub constants: Vec<u8>,
    /// What each launch is for, in the order of the steps, those inside branches and loops where they stand.
    pub launches: Vec<Launch>,
    /// Steps whose plans may have other sizes, if [`Choices::list`] asks for them or there are choices.
    pub tunables: Vec<Tunable>,
    /// Kernels for the CPU beside the device, in the order of `program.host_kernels`, and their plans.
    pub host_kernels: Vec<Kernel>,
    /// The plans of these.
    pub host_plans: Vec<Option<Plan>>,
    /// The target has memory of its own: the program says what is copied between that and the host's.
    pub device: bool,
}

/// The CPU beside a device, for steps that do not run there.
#[derive(Clone, Copy)]
pub struct HostSide<'a> {
    /// What it is.
    pub target: &'a TargetDesc,
    /// Nodes, or operators, whose steps shall run on it.
    pub named: &'a [String],
    /// Why a kernel has no code for the device, if it has none.
    pub refuses: &'a dyn Fn(&Kernel) -> Option<String>,
}

/// What a launch is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The node in the model's words, empty for a border.
    pub node: String,
    /// Arithmetic operations, see [`cost::operations`].
    pub operations: Expr,
    /// Bytes of all it reads and writes, each counted once.
    pub bytes: Expr,
    /// Which of [`Lowered::tunables`] it is.
    pub tunable: Option<usize>,
}

/// Names of outputs and inputs that carry state from run to run.
pub type States = Vec<(String, String)>;

/// Lowers a decomposed graph for a target.
pub fn lower(graph: &Graph, target: &TargetDesc, states: &States) -> Result<Lowered, Problems> {
    lower_with(graph, target, states, &Choices::default())
}

/// As [`lower`], with sizes of plans that were chosen before.
pub fn lower_with(graph: &Graph, target: &TargetDesc, states: &States, choices: &Choices) -> Result<Lowered, Problems> {
    lower_beside(graph, target, None, states, choices)
}

/// As [`lower_with`], for a device with a CPU beside it.
pub fn lower_beside(
    graph: &Graph,
    target: &TargetDesc,
    host: Option<HostSide<'_>>,
    states: &States,
    choices: &Choices,
) -> Result<Lowered, Problems> {
    if !target.takes(target.math) {
        let message = format!("it has no instructions for products in {}", target.math.name());
        return Err(Problems::one(
            format!("target '{}'", target.name),
            message,
            "leave out the precision, or name another machine",
        ));
    }
    let mut work = work::from_graph(graph)?;
    if let Some(host) = &host {
        let nodes = named_nodes(graph, host.named)?;
        let mut items = std::mem::take(&mut work.items);
        mark(&mut items, &nodes, &mut work.on_host);
        work.items = items;
    }
    known::fold(&mut work);
    zero_point::lift(&mut work, target);
    rounded::round(&mut work, target);
    fuse::simplify(&mut work);
    fuse::fuse(&mut work);
    largest::integers(&mut work, target);
    lookups::narrow(&mut work);
    place::place(&mut work, target);
    gathered::rows(&mut work, target);
    let mut attentions = attention::take(&mut work, target);
    siblings::merge(&mut work, target, &attentions);
    split::split(&mut work, target, &attentions);
    batch::loops(&mut work, target, &attentions);
    bands::loops(&mut work, target, &attentions);
    if !choices.staged {
        rounded::tiles::store(&mut work, target, &mut attentions);
    }
    let chains = chain::take(&mut work, target, &attentions);
    emit(work, (&attentions, &chains), (target, host), states, choices)
}

/// Descriptions of the nodes that have one of these names, are of one of these operators, or come from such nodes of the model.
fn named_nodes(graph: &Graph, names: &[String]) -> Result<HashSet<String>, Problems> {
    let (mut found, mut missing) = (HashSet::new(), vec![]);
    let nodes: Vec<_> = graph.live_regions().iter().flat_map(|&r| graph.region(r).nodes.clone()).collect();
    for name in names {
        let same = |text: &str| text == name || text.rsplit(':').next() == Some(name);
        let is = |n: &&infc_ir::graph::Node| {
            let node = graph.node(**n);
            let sources = node.origin.iter().map(|s| &graph.sources[s.index()]);
            node.name == *name || same(node.op.name()) || sources.into_iter().any(|s| s.name == *name || same(&s.op))
        };
        let before = found.len();
        let mut any = false;
        for n in nodes.iter().filter(is) {
            any = true;
            found.insert(graph.describe(*n));
        }
        if !any && found.len() == before {
            let mut ops: Vec<&str> = nodes.iter().map(|&n| graph.node(n).op.name()).collect();
            ops.sort_unstable();
            ops.dedup();
            let message = "no node of the optimised model has this name or operator, or comes from one that has".to_owned();
            let help = format!("its operators are {}; `infc compile --emit ir` prints all nodes", ops.join(", "));
            missing.push(Problem { at: format!("node '{name}' for the host"), message, help });
        }
    }
    if missing.is_empty() { Ok(found) } else { Err(Problems(missing)) }
}

/// The tensors that steps of these nodes make.
fn mark(items: &mut [Item], nodes: &HashSet<String>, out: &mut HashSet<Id>) {
    for item in items {
        match item {
            Item::Task(task) if nodes.contains(&task.node) => drop(out.insert(task.out)),
            Item::If { then, otherwise, .. } => {
                mark(then, nodes, out);
                mark(otherwise, nodes, out);
            }
            Item::Loop { body, .. } => mark(body, nodes, out),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

fn emit(
    mut work: Work,
    (attentions, chains): (&Attentions, &Chains),
    (target, host): (&TargetDesc, Option<HostSide<'_>>),
    states: &States,
    choices: &Choices,
) -> Result<Lowered, Problems> {
    let items = std::mem::take(&mut work.items);
    let mut cx = Emit {
        work: &work,
        attentions,
        chains,
        target,
        host,
        why: None,
        choices,
        out: Lowered {
            program: Program::default(),
            kernels: vec![],
            plans: vec![],
            constants: vec![],
            launches: vec![],
            tunables: vec![],
            host_kernels: vec![],
            host_plans: vec![],
            device: target.block_threads > 0,
        },
        buffers: HashMap::new(),
        symbols: HashMap::new(),
        unique: HashMap::new(),
        constants: vec![],
        equal: HashMap::new(),
        bordered: HashSet::new(),
        loops: vec![],
        whole: HashSet::new(),
        position: 0,
        problems: vec![],
    };
    cx.inputs();
    let mut steps = cx.requirements();
    steps.extend(cx.block(&items));
    cx.check_symbols(&steps);
    cx.out.program.steps = steps;
    cx.outputs();
    cx.states(states);
    cx.lay_out_constants();
    cx.widen_over_loops();
    if cx.out.device {
        cx.loops = copies::insert(&mut cx.out.program, &cx.out.kernels, &cx.out.host_kernels, &cx.whole);
        cx.widen_over_loops();
    }
    cx.arena();
    if cx.problems.is_empty() { Ok(cx.out) } else { Err(Problems(cx.problems)) }
}

struct Emit<'a> {
    work: &'a Work,
    attentions: &'a Attentions,
    chains: &'a Chains,
    /// The machine that the step being made is for.
    target: &'a TargetDesc,
    host: Option<HostSide<'a>>,
    /// Why this step runs on the host beside the device, if it does.
    why: Option<String>,
    choices: &'a Choices,
    out: Lowered,
    /// Program buffer of each root tensor.
    buffers: HashMap<Id, u32>,
    symbols: HashMap<&'static str, u32>,
    /// Kernels by their text without the name.
    unique: HashMap<(bool, String), u32>,
    /// Constants with their buffers, and where they are in this list by a hash of the content.
    constants: Vec<(u32, Tensor)>,
    equal: HashMap<(u64, usize), Vec<usize>>,
    /// Tensors whose border has been written.
    bordered: HashSet<Id>,
    /// First and last step of each loop, inner loops first.
    loops: Vec<(u32, u32)>,
    /// Launches that write all of the buffer that they write to.
    whole: HashSet<u32>,
    /// Number of the step being made.
    position: u32,
    problems: Vec<Problem>,
}

/// A tensor as a kernel sees it.
pub(crate) fn declare(work: &Work, id: Id, access: Access) -> Operand {
    let data = work.tensor(id);
    let (dims, shift) = match data.halo.is_empty() {
        true => (data.ty.dims.clone(), vec![0; data.ty.rank()]),
        false => (data.physical_dims(), data.halo.iter().map(|h| h.0).collect()),
    };
    let constant = match &data.memory {
        Memory::Constant(t) => Some(t.clone()),
        _ => None,
    };
    let (name, dtype, strides) = (data.name.clone(), data.ty.dtype, work.strides(id));
    let buffer = Buffer { name, dtype, dims, strides, space: Space::Global, access };
    let is_zero = data.fill.is_some_and(|f| f.as_float() == Some(0.0) || f.as_int() == Some(0));
    let zeros = if is_zero { data.halo.iter().map(|h| h.1).collect() } else { vec![] };
    Operand { buffer, shift, zeros, constant, tf32: data.tf32 }
}

/// The step as its builder takes it, with its operands (the result is the last), and its plan.
pub(crate) fn prepare(
    step: infc_ir::compute::Step,
    operands: Vec<Operand>,
    target: &TargetDesc,
) -> (infc_ir::compute::Step, Vec<Operand>, Plan) {
    let (step, operands) = match step {
        Compute(c) if !fuse::is_contraction(&c) => {
            let (c, operands) = build::collapse::collapse(c, operands);
            (Compute(c), operands)
        }
        Compute(c) => (Compute(build::contract::in_memory_order(c, &operands)), operands),
        other => (other, operands),
    };
    let plan = plan::choose(&step, &operands, target);
    (step, operands, plan)
}

/// A type in the artifact's terms.
fn host_type(ty: &Type) -> HostType {
    let code = |d: &DType| d.onnx() as u8;
    match ty {
        Type::Tensor(t) => {
            HostType::Tensor(code(&t.dtype), t.dims.iter().map(|d| d.known().and_then(|n| u64::try_from(n).ok())).collect())
        }
        Type::Any(d) | Type::Nothing(d) => HostType::Any(code(d)),
        Type::Sequence(of) => HostType::Sequence(Box::new(host_type(of))),
        Type::Optional(of) => HostType::Optional(Box::new(host_type(of))),
        Type::Map(key, of) => HostType::Map(code(key), Box::new(host_type(of))),
    }
}

/// The kernels of a task: one, but for a scatter where tasks are threads. What updates are put into is a step of its own there: all threads have
/// to be done with it.
fn parts(task: &Task, target: &TargetDesc) -> Vec<Task> {
    let compute::Step::Scatter(s) = &task.step else { return vec![task.clone()] };
    if target.block_threads == 0 {
        return vec![task.clone()];
    }
    let base = Compute(compute::Compute { dims: s.dims.clone(), reduction: None, value: s.base });
    let nothing = Scalar::number(s.base.dtype(), 0.0);
    let updates = compute::Step::Scatter(compute::Scatter { base: nothing, ..s.clone() });
    [base, updates].map(|step| Task { step, ..task.clone() }).into()
}

/// Does a symbol stand in it?
fn mentions(e: Expr, symbol: Expr) -> bool {
    let mut found = false;
    e.leaves(&mut |leaf| found |= leaf == symbol);
    found
}

/// Bytes of the elements of all that a task reads and writes, borders not counted.
fn bytes(work: &Work, task: &Task) -> Expr {
    let one = |id: Id| {
        let ty = &work.tensor(id).ty;
        Expr::product(ty.dims.iter().copied()) * Expr::from(ty.dtype.bytes())
    };
    task.sources
        .iter()
        .copied()
        .chain([task.out])
        .chain(work.twice.get(&task.out).copied())
        .map(one)
        .fold(Expr::int(0), |a, b| a + b)
}

impl Emit<'_> {
    fn problem(&mut self, at: &str, message: impl Into<String>, help: &str) {
        self.problems.push(Problem { at: at.to_owned(), message: message.into(), help: help.to_owned() });
    }

    /// The postfix form of an expression; unknown symbols become symbols that a step sets.
    fn size(&mut self, e: Expr) -> Size {
        let mut code = vec![];
        self.postfix(e, &mut code);
        Size(code)
    }

    fn postfix(&mut self, e: Expr, code: &mut Vec<SizeOp>) {
        match e.node() {
            Node::Const(c) => code.push(SizeOp::Const(*c)),
            Node::Sym(s) => {
                let n = self.symbol(s, SymbolSource::Step);
                code.push(SizeOp::Symbol(n));
            }
            Node::Var(_) => unreachable!("a loop variable in a size"),
            Node::Sum { terms, constant } => {
                code.push(SizeOp::Const(*constant));
                for &(t, c) in terms {
                    self.postfix(t, code);
                    if c != 1 {
                        code.extend([SizeOp::Const(c), SizeOp::Mul]);
                    }
                    code.push(SizeOp::Add);
                }
            }
            Node::Product(factors) => {
                for (k, &f) in factors.iter().enumerate() {
                    self.postfix(f, code);
                    if k > 0 {
                        code.push(SizeOp::Mul);
                    }
                }
            }
            Node::Div(a, b) => self.postfix_two(*a, *b, SizeOp::Div, code),
            Node::Mod(a, b) => self.postfix_two(*a, *b, SizeOp::Mod, code),
            Node::Min(a, b) => self.postfix_two(*a, *b, SizeOp::Min, code),
            Node::Max(a, b) => self.postfix_two(*a, *b, SizeOp::Max, code),
        }
    }

    fn postfix_two(&mut self, a: Expr, b: Expr, op: SizeOp, code: &mut Vec<SizeOp>) {
        self.postfix(a, code);
        self.postfix(b, code);
        code.push(op);
    }

    fn symbol(&mut self, name: &'static str, source: SymbolSource) -> u32 {
        let next = self.symbols.len() as u32;
        let symbols = &mut self.out.program.symbols;
        *self.symbols.entry(name).or_insert_with(|| {
            symbols.push(art::Symbol { name: name.to_owned(), source });
            next
        })
    }

    fn inputs(&mut self) {
        let work = self.work;
        self.slots();
        for (i, (_, arg)) in work.inputs.iter().enumerate() {
            for (axis, d) in self.port_dims(*arg).iter().enumerate() {
                if let Node::Sym(s) = d.node() {
                    self.symbol(s, SymbolSource::Input { input: i as u32, axis: axis as u32 });
                }
            }
        }
        for (i, (name, arg)) in work.inputs.iter().enumerate() {
            if let Arg::Tensor(id) = arg {
                self.add_buffer(*id, Place::Input(i as u32));
            }
            let port = self.port(name, *arg);
            self.out.program.inputs.push(port);
        }
        for (i, (_, arg)) in work.outputs.iter().enumerate() {
            if let Arg::Tensor(id) = arg {
                self.add_buffer(*id, Place::Output(i as u32));
            }
        }
    }

    /// The checks of the inputs' sizes, before all else.
    fn requirements(&mut self) -> Vec<Step> {
        let work = self.work;
        let mut steps = vec![];
        for r in &work.requires {
            let (left, right) = (self.size(r.left), self.size(r.right));
            let text = if r.assumed { format!("{}; {}", r.text, r.problem().help) } else { r.text.clone() };
            let code = self.message(&r.at, &text);
            steps.push(Step::Require { left, right, or_one: r.or_one, code });
            self.position += 1;
        }
        steps
    }

    fn outputs(&mut self) {
        let work = self.work;
        for (name, arg) in &work.outputs {
            let port = self.port(name, *arg);
            self.out.program.outputs.push(port);
        }
    }

    fn states(&mut self, states: &States) {
        for (output, input) in states {
            let o = self.work.outputs.iter().position(|(n, _)| n == output);
            let i = self.work.inputs.iter().position(|(n, _)| n == input);
            match (o, i) {
                (Some(o), Some(i)) => {
                    let at = format!("state {output}={input}");
                    match (self.work.outputs[o].1, self.work.inputs[i].1) {
                        (Arg::Tensor(a), Arg::Tensor(b)) => {
                            let (a, b) = (&self.work.tensor(a).ty, &self.work.tensor(b).ty);
                            if a != b {
                                let message = format!("{a} and {b} differ");
                                self.problem(&at, message, "state needs an output of the input's type");
                            }
                        }
                        _ => self.problem(&at, "is no tensor of numbers", "keep it in the caller and set it before each run"),
                    }
                    self.out.program.states.push((o as u32, i as u32));
                }
                _ => self.problem(
                    &format!("state {output}={input}"),
                    "the model has no such output and input",
                    "write OUT=IN with the model's own names; `infc inspect` lists them",
                ),
            }
        }
    }

    /// Dims of an input or output; none if it is no tensor.
    fn port_dims(&self, arg: Arg) -> Vec<Expr> {
        match arg {
            Arg::Tensor(id) => self.work.tensor(id).ty.dims.clone(),
            Arg::Slot(slot) => self.work.slots[slot as usize].ty.as_tensor().map_or(vec![], |t| t.dims.clone()),
        }
    }

    fn port(&mut self, name: &str, arg: Arg) -> art::Port {
        let dims = self.port_dims(arg).iter().map(|&d| self.size(d)).collect();
        let (dtype, element, buffer) = match arg {
            Arg::Tensor(id) => {
                let dtype = self.work.tensor(id).ty.dtype;
                (dtype.onnx() as u8, dtype.bytes() as u8, self.buffers[&id])
            }
            Arg::Slot(slot) => {
                let text = self.work.slots[slot as usize].ty.as_tensor().map(|t| t.dtype.onnx() as u8);
                (text.unwrap_or(0), 0, slot)
            }
        };
        art::Port { name: name.to_owned(), dtype, element, dims, buffer }
    }

    /// The places for values of the host; constants get their bytes at the end.
    fn slots(&mut self) {
        for slot in &self.work.slots {
            let place = match slot.memory {
                SlotMemory::Input(i) => SlotPlace::Input(i),
                SlotMemory::Output(i) => SlotPlace::Output(i),
                SlotMemory::Constant(_) => SlotPlace::Constant { offset: 0, bytes: 0 },
                SlotMemory::Temp => SlotPlace::Temp,
            };
            self.out.program.slots.push(art::Slot { ty: host_type(&slot.ty), place });
        }
    }

    fn host_value(&mut self, arg: Arg, access: Access) -> HostValue {
        match arg {
            Arg::Slot(slot) => HostValue::Slot(slot),
            Arg::Tensor(id) => {
                let (_, buffer, offset) = self.operand(id, access);
                let ty = self.work.tensor(id).ty.clone();
                let dims = ty.dims.iter().map(|&d| self.size(d)).collect();
                HostValue::Tensor { dtype: ty.dtype.onnx() as u8, dims, view: View { buffer, offset: self.size(offset) } }
            }
        }
    }

    fn add_buffer(&mut self, id: Id, place: Place) -> u32 {
        let data = self.work.tensor(id);
        let bytes = Expr::product(data.memory_dims()) * Expr::from(data.ty.dtype.bytes());
        let bytes = self.size(bytes);
        self.out.program.buffers.push(art::Buffer { bytes, place });
        let n = self.out.program.buffers.len() as u32 - 1;
        self.buffers.insert(id, n);
        n
    }

    /// The buffer of a constant; equal bytes share one.
    fn constant(&mut self, t: &Tensor) -> u32 {
        let bytes = t.bytes();
        let mut hasher = std::hash::DefaultHasher::new();
        bytes.hash(&mut hasher);
        let same = self.equal.entry((hasher.finish(), bytes.len())).or_default();
        if let Some(&i) = same.iter().find(|&&i| self.constants[i].1.bytes() == bytes) {
            return self.constants[i].0;
        }
        let n = self.out.program.buffers.len() as u32;
        same.push(self.constants.len());
        self.constants.push((n, t.clone()));
        self.out.program.buffers.push(art::Buffer { bytes: Size::constant(0), place: Place::Constant(0) });
        n
    }

    /// Lays out the constants that are read as they are; those that only exist in a packed form are left out.
    fn lay_out_constants(&mut self) {
        let mut used: HashSet<u32> = self.out.program.outputs.iter().map(|p| p.buffer).collect();
        art::each_view(&self.out.program.steps, &mut |v| {
            used.insert(v.buffer);
        });
        let data = &mut self.out.constants;
        for (b, t) in self.constants.iter().filter(|(b, _)| used.contains(b)) {
            data.resize(data.len().next_multiple_of(ALIGN), 0);
            let size = Size::constant(t.bytes().len() as i64);
            self.out.program.buffers[*b as usize] = art::Buffer { bytes: size, place: Place::Constant(data.len() as u64) };
            data.extend_from_slice(t.bytes());
        }
        for (slot, made) in self.work.slots.iter().zip(&mut self.out.program.slots) {
            if let SlotMemory::Constant(value) = &slot.memory {
                let value = value.encode();
                made.place = SlotPlace::Constant { offset: data.len() as u64, bytes: value.len() as u64 };
                data.extend(value);
            }
        }
    }

    /// Notes that the step being made touches a buffer.
    fn touch(&mut self, buffer: u32) {
        let now = self.position;
        if let Place::Arena { first, last, .. } = &mut self.out.program.buffers[buffer as usize].place {
            *first = (*first).min(now);
            *last = (*last).max(now);
        }
    }

    /// Where a tensor lies: its buffer, and the offset in elements of its first element (of its border, if it has one).
    fn locate(&mut self, id: Id) -> (u32, Expr) {
        let work = self.work;
        let data = work.tensor(id);
        match &data.memory {
            Memory::Constant(t) => (self.constant(t), Expr::int(0)),
            Memory::Input(_) | Memory::Temp => {
                let buffer = match self.buffers.get(&id) {
                    Some(&b) => b,
                    None => self.add_buffer(id, Place::Arena { first: u32::MAX, last: 0, offset: None }),
                };
                (buffer, Expr::int(0))
            }
            Memory::Alias { of, offset } => {
                let (buffer, base) = self.locate(*of);
                (buffer, base + *offset)
            }
            Memory::Window { of, start } => {
                let (buffer, base) = self.locate(*of);
                let before = |id: Id, a: usize| work.tensor(id).halo.get(a).map_or(0, |h| h.0);
                let places = start.iter().zip(work.strides(id)).enumerate();
                let at = places.fold(base, |at, (a, (&s, stride))| at + (s + before(*of, a) - before(id, a)) * stride);
                (buffer, at)
            }
        }
    }

    fn operand(&mut self, id: Id, access: Access) -> (Operand, u32, Expr) {
        let (buffer, offset) = self.locate(id);
        self.touch(buffer);
        (declare(self.work, id, access), buffer, offset * Expr::from(self.work.tensor(id).ty.dtype.bytes()))
    }

    fn block(&mut self, items: &[Item]) -> Vec<Step> {
        let mut steps = vec![];
        for item in items {
            match item {
                Item::Task(task) => self.task(task, &mut steps),
                Item::If { cond, then, otherwise } => {
                    let cond = self.view(*cond);
                    self.position += 1;
                    let then = self.block(then);
                    let otherwise = self.block(otherwise);
                    steps.push(Step::If { cond, then, otherwise });
                }
                Item::Loop { counter, count, cond, body, apart } => {
                    let cond = cond.map(|c| self.view(c));
                    let count = self.size(*count);
                    self.borders_of_slices(body, *counter, &mut steps);
                    let Node::Sym(name) = counter.node() else { unreachable!("a counter is a symbol") };
                    let counter = self.symbol(name, SymbolSource::Step);
                    let start = self.position;
                    self.position += 1;
                    let body = self.block(body);
                    self.loops.push((start, self.position - 1));
                    steps.push(Step::Loop { counter, count, cond, body, apart: *apart });
                }
                Item::Bind { symbol, from, bound } => {
                    let Node::Sym(name) = symbol.node() else { unreachable!("only symbols are bound") };
                    let symbol = self.symbol(name, SymbolSource::Step);
                    let from = self.view(*from);
                    let bound = bound.map_or(Size::constant(i64::MAX), |b| self.size(b));
                    steps.push(Step::Bind { symbol, from, bound });
                    self.position += 1;
                }
                Item::Host { routine, inputs, outputs, node } => {
                    let inputs = inputs.iter().map(|a| a.map(|a| self.host_value(a, Access::Read))).collect();
                    let outputs = outputs.iter().map(|&a| self.host_value(a, Access::Write)).collect();
                    let code = self.message(node, "a host routine fails");
                    let (routine, attributes) = (routine.name().to_owned(), routine.attributes());
                    steps.push(Step::Host { routine, attributes, inputs, outputs, code });
                    self.position += 1;
                }
                Item::Require { left, right, or_one, node, text } => {
                    let (left, right) = (self.size(*left), self.size(*right));
                    let code = self.message(node, text);
                    steps.push(Step::Require { left, right, or_one: *or_one, code });
                    self.position += 1;
                }
            }
        }
        steps
    }

    /// Every symbol that the inputs do not tell is set by a step.
    fn check_symbols(&mut self, steps: &[Step]) {
        fn set(steps: &[Step], out: &mut HashSet<u32>) {
            for s in steps {
                match s {
                    Step::Bind { symbol, .. } => drop(out.insert(*symbol)),
                    Step::If { then, otherwise, .. } => {
                        set(then, out);
                        set(otherwise, out);
                    }
                    Step::Loop { counter, body, .. } => {
                        out.insert(*counter);
                        set(body, out);
                    }
                    Step::Launch { .. }
                    | Step::Copy { .. }
                    | Step::Require { .. }
                    | Step::Host { .. }
                    | Step::HostLaunch { .. }
                    | Step::ToHost { .. }
                    | Step::ToDevice { .. } => {}
                }
            }
        }
        let mut known = HashSet::new();
        set(steps, &mut known);
        for (k, s) in self.out.program.symbols.clone().iter().enumerate() {
            if s.source == SymbolSource::Step && !known.contains(&(k as u32)) {
                let help = "give the model fixed dims with --dim, or simplify what computes this size";
                self.problem(
                    "the model",
                    format!("the size '{}' depends on data in a way that compiled code does not follow yet", s.name),
                    help,
                );
            }
        }
    }

    /// The number of a message; equal ones are one.
    fn message(&mut self, node: &str, text: &str) -> u32 {
        let message = art::Message { node: node.to_owned(), text: text.to_owned() };
        let all = &mut self.out.program.messages;
        let at = all.iter().position(|m| *m == message).unwrap_or_else(|| {
            all.push(message);
            all.len() - 1
        });
        at as u32
    }

    fn view(&mut self, id: Id) -> View {
        let (_, buffer, offset) = self.operand(id, Access::Read);
        View { buffer, offset: self.size(offset) }
    }

    fn task(&mut self, task: &Task, steps: &mut Vec<Step>) {
        if let Some(links) = self.chains.get(&task.out) {
            let refused = |t: &Task| self.host.is_some_and(|host| self.refusal(t, &host).is_some());
            if !links.iter().map(|l| &l.task).chain([task]).any(refused) {
                self.chain(links, task, steps);
                return;
            }
            // Each for itself, where it can.
            links.iter().for_each(|l| self.task(&l.task, steps));
        }
        let device = self.target;
        if let Some(host) = self.host {
            self.why = self.why_on_host(task, &host);
            if self.why.is_some() {
                self.target = host.target;
            }
        }
        self.border(task.out, steps);
        if let Some(&rounded) = self.work.twice.get(&task.out) {
            self.border(rounded, steps);
        }
        for part in parts(task, self.target) {
            self.single(&part, steps);
        }
        (self.target, self.why) = (device, None);
    }

    /// Why the steps of a task run on the host, if they do: they were named, or they have no code for the device.
    fn why_on_host(&self, task: &Task, host: &HostSide<'_>) -> Option<String> {
        if self.work.on_host.contains(&task.out) {
            return Some("asked for".to_owned());
        }
        if self.attentions.contains_key(&task.out) {
            return None;
        }
        self.refusal(task, host)
    }

    /// Why the device cannot have the steps of a task, if it cannot.
    fn refusal(&self, task: &Task, host: &HostSide<'_>) -> Option<String> {
        parts(task, self.target).into_iter().find_map(|mut part| {
            part.prune();
            let mut operands: Vec<Operand> = part.sources.iter().map(|&s| declare(self.work, s, Access::Read)).collect();
            operands.push(declare(self.work, part.out, Access::Write));
            let (step, operands, plan) = prepare(part.step, operands, self.target);
            let mut nest = build::build(&part.name, &step, &plan, &operands, self.target);
            if let Some(&rounded) = self.work.twice.get(&part.out) {
                nest.store_twice(self.work.tensor(rounded).ty.dtype);
            }
            (host.refuses)(&nest.kernel).map(|why| format!("no code for the device: {why}"))
        })
    }

    fn single(&mut self, task: &Task, steps: &mut Vec<Step>) {
        let mut task = task.clone();
        let attention = self.attentions.get(&task.out);
        match attention {
            Some((a, _)) => task.sources.clone_from(&a.sources),
            None => task.prune(),
        }
        let made = self.work.tensor(task.out);
        if made.memory == Memory::Temp && made.halo.is_empty() && matches!(task.step, Compute(_)) {
            self.whole.insert(self.position);
        }
        let mut operands = vec![];
        let mut places = vec![];
        for &s in &task.sources {
            let (operand, buffer, offset) = self.operand(s, Access::Read);
            operands.push(operand);
            places.push((buffer, offset));
        }
        let (operand, buffer, offset) = self.operand(task.out, Access::Write);
        operands.push(operand);
        places.push((buffer, offset));
        if places[..places.len() - 1].iter().any(|p| p.0 == buffer && !self.apart(&task)) {
            self.problem(&task.node, "reads and writes the same memory in one kernel", "this is a defect of the compiler");
            return;
        }
        if let Some((a, way)) = attention {
            let bytes = bytes(self.work, &task);
            let note = Launch { node: task.node.clone(), operations: a.operations, bytes, tunable: None };
            let nest = build::build_attention(way.name(), a, way, &operands, self.target);
            let nest = self.twice(nest, task.out, &mut places);
            self.launch(nest, Some(Plan::Attention(way.clone())), note, &places, steps);
            return;
        }
        let (operations, bytes) = (cost::operations(&task.step), bytes(self.work, &task));
        let (step, operands, plan) = prepare(task.step, operands, self.target);
        let (plan, tunable) = self.tuned((&task.node, &task.name), &step, &operands, plan);
        let operations = cost::done(operations, &step, &plan, &operands, self.target);
        let note = Launch { node: task.node.clone(), operations, bytes, tunable };
        let nest = build::build(&task.name, &step, &plan, &operands, self.target);
        let nest = self.twice(nest, task.out, &mut places);
        self.launch(nest, Some(plan), note, &places, steps);
    }

    /// The kernel of a chain.
    fn chain(&mut self, links: &[chain::Link], last: &Task, steps: &mut Vec<Step>) {
        let work = self.work;
        let all: Vec<(&Task, bool)> = links.iter().map(|l| (&l.task, l.stored)).chain([(last, true)]).collect();
        let made = |id: &Id| all.iter().position(|(t, _)| chain::is_view(work, *id, t.out));
        let mut sources: Vec<Id> = vec![];
        let mut read = vec![false; all.len()];
        let (mut members, mut results) = (vec![], vec![]);
        for (task, stored) in &all {
            let Compute(c) = &task.step else { unreachable!("chains are of computes") };
            let reduces = c.reduction.is_some() && c.dims.last().is_some_and(|d| d.is(1));
            let own: Vec<u32> = (task.sources.iter())
                .map(|s| match made(s) {
                    Some(k) => {
                        read[k] = true;
                        MADE + k as u32
                    }
                    None => sources.iter().position(|x| x == s).unwrap_or_else(|| {
                        sources.push(*s);
                        sources.len() - 1
                    }) as u32,
                })
                .collect();
            let Compute(compute) = task.step.map_sources(&|s| own[s as usize]) else { unreachable!("as before") };
            let which = stored.then(|| {
                results.push(task.out);
                results.len() - 1
            });
            members.push(build::chain::Step { compute, reduces, stored: which, read: false });
        }
        members.iter_mut().zip(read).for_each(|(m, read)| m.read = read);
        for &id in &results {
            self.border(id, steps);
            if let Some(&rounded) = work.twice.get(&id) {
                self.border(rounded, steps);
            }
        }
        let whole = |id: &Id| matches!(work.tensor(*id), made if made.memory == Memory::Temp && made.halo.is_empty());
        if results.iter().all(whole) {
            self.whole.insert(self.position);
        }
        let (mut operands, mut places) = (vec![], vec![]);
        for (id, access) in sources.iter().map(|&s| (s, Access::Read)).chain(results.iter().map(|&r| (r, Access::Write))) {
            let (operand, buffer, offset) = self.operand(id, access);
            operands.push(operand);
            places.push((buffer, offset));
        }
        let name = all.iter().map(|(t, _)| t.name.as_str()).collect::<Vec<_>>().join("+");
        let mut nest = build::build_chain(&name, &members, &operands, results.len(), self.target);
        let (mut twice, mut written) = (0, places.split_off(sources.len()));
        for (k, id) in results.iter().enumerate() {
            if let Some(&rounded) = work.twice.get(id) {
                let (operand, buffer, offset) = self.operand(rounded, Access::Write);
                nest.store_result_twice(k + twice, operand.buffer.dtype);
                twice += 1;
                written.insert(k + twice, (buffer, offset));
            }
        }
        places.extend(written);
        let moved = |id: Id| {
            let ty = &work.tensor(id).ty;
            Expr::product(ty.dims.iter().copied()) * Expr::from(ty.dtype.bytes())
        };
        let touched = sources.iter().chain(&results).chain(results.iter().filter_map(|r| work.twice.get(r)));
        let bytes = touched.map(|&id| moved(id)).fold(Expr::int(0), |a, b| a + b);
        let operations = all.iter().map(|(t, _)| cost::operations(&t.step)).fold(Expr::int(0), |a, b| a + b);
        let note = Launch { node: last.node.clone(), operations, bytes, tunable: None };
        self.launch(nest, Some(Plan::Chain(all.len())), note, &places, steps);
    }

    /// The nest with what stores the result a second time, if that is wanted, and the place of that behind the others.
    fn twice(&mut self, mut nest: Nest, out: Id, places: &mut Vec<(u32, Expr)>) -> Nest {
        if let Some(&rounded) = self.work.twice.get(&out) {
            let (operand, buffer, offset) = self.operand(rounded, Access::Write);
            nest.store_twice(operand.buffer.dtype);
            places.push((buffer, offset));
        }
        nest
    }

    /// The plan with the sizes that were chosen for the step, and which one of the steps with such a choice it is.
    fn tuned(
        &mut self,
        (node, name): (&str, &str),
        step: &infc_ir::compute::Step,
        operands: &[Operand],
        analytic: Plan,
    ) -> (Plan, Option<usize>) {
        if !self.choices.list && self.choices.sizes.is_empty() || self.why.is_some() {
            return (analytic, None);
        }
        let Some(room) = Room::of(step, operands, self.target, &analytic) else { return (analytic, None) };
        let key = room.key(operands);
        let plan = match self.choices.sizes.get(&key).map(|sizes| (sizes, room.take(sizes))) {
            None => analytic.clone(),
            Some((_, Ok(plan))) => plan,
            Some((sizes, Err(why))) => {
                let help = "take the step out of the tuning file, or time it again with --tune";
                let message = format!("the plan '{sizes}' that the tuning file has for its step {key} is not legal: {why}");
                self.problem(node, message, help);
                return (analytic, None);
            }
        };
        let known = self.out.tunables.iter().position(|t| t.key == key);
        let number = known.unwrap_or_else(|| {
            let sizes = |plan: &Plan| Sizes::of(plan).expect("a plan with room has sizes");
            let others = if self.choices.list { room.others(&plan) } else { vec![] };
            let (sizes, analytic) = (sizes(&plan), sizes(&analytic));
            self.out.tunables.push(Tunable { key, what: room.what(name, operands), sizes, analytic, others });
            self.out.tunables.len() - 1
        });
        (plan, Some(number))
    }

    /// Before the first write to a tensor with a border (or to a window of it): the border.
    fn border(&mut self, out: Id, steps: &mut Vec<Step>) {
        let whole = self.work.whole(out);
        let data = self.work.tensor(whole);
        let Some(fill) = data.fill.filter(|_| data.halo.iter().any(|h| *h != (0, 0))) else { return };
        if self.bordered.insert(whole) {
            let (out, buffer, offset) = self.operand(whole, Access::Write);
            let halo = &self.work.tensor(whole).halo;
            let nest = match self.target.block_threads > 0 {
                true => build::border::build_threads("border", &out, halo, fill),
                false => build::border::build("border", &out, halo, fill, self.target.lanes(out.buffer.dtype.bytes())),
            };
            let note = Launch { node: String::new(), operations: Expr::int(0), bytes: Expr::int(0), tunable: None };
            self.launch(nest, None, note, &[(buffer, offset)], steps);
        }
    }

    /// The borders of tensors that a loop writes slice by slice: once, before it.
    fn borders_of_slices(&mut self, body: &[Item], counter: Expr, steps: &mut Vec<Step>) {
        for item in body {
            if let Item::Task(task) = item
                && let Memory::Window { start, .. } = &self.work.tensor(task.out).memory
                && start.iter().any(|s| mentions(*s, counter))
            {
                self.border(task.out, steps);
            }
        }
    }

    /// True if the task reads and writes different windows or slices of one buffer.
    fn apart(&self, task: &Task) -> bool {
        task.sources.iter().all(|&s| s != task.out)
    }

    /// `places`: those of the sources that the nest numbers, then those of what it writes.
    fn launch(&mut self, nest: Nest, plan: Option<Plan>, note: Launch, places: &[(u32, Expr)], steps: &mut Vec<Step>) {
        let mut buffers = vec![];
        for &s in &nest.sources {
            let view = match nest.packed.iter().find(|p| p.source == s) {
                Some(p) => View { buffer: self.constant(&p.tensor), offset: Size::constant(0) },
                None => View { buffer: places[s].0, offset: self.size(places[s].1) },
            };
            buffers.push(view);
        }
        let written = nest.kernel.buffers.iter().filter(|b| b.space == Space::Global).count() - buffers.len();
        for &(buffer, offset) in &places[places.len() - written..] {
            buffers.push(View { buffer, offset: self.size(offset) });
        }
        let extents = nest.kernel.symbols.iter().map(|s| self.size(Expr::sym(s))).collect();
        let tasks = self.size(nest.kernel.tasks);
        let side = if self.why.is_some() { Side::Host } else { Side::Device };
        let key = (side == Side::Host, format!("{:?}", Kernel { name: String::new(), ..nest.kernel.clone() }));
        let kernel = match self.unique.get(&key) {
            Some(&k) => k,
            None => {
                let Lowered { program, kernels, plans, host_kernels, host_plans, .. } = &mut self.out;
                let (declared, kernels, plans) = match side {
                    Side::Device => (&mut program.kernels, kernels, plans),
                    Side::Host => (&mut program.host_kernels, host_kernels, host_plans),
                };
                let k = kernels.len() as u32;
                declared.push(art::Kernel { name: nest.kernel.name.clone(), entry: 0, scratch: 0 });
                kernels.push(nest.kernel);
                plans.push(plan);
                self.unique.insert(key, k);
                k
            }
        };
        steps.push(match self.why.clone() {
            None => Step::Launch { kernel, buffers, extents, tasks },
            Some(why) => {
                let code = self.message(&note.node, &why);
                Step::HostLaunch { kernel, buffers, extents, tasks, code }
            }
        });
        self.out.launches.push(note);
        self.position += 1;
    }

    /// What crosses the border of a loop lives through all its rounds.
    fn widen_over_loops(&mut self) {
        for &(start, end) in &self.loops {
            for b in &mut self.out.program.buffers {
                if let Place::Arena { first, last, .. } = &mut b.place {
                    if (start..=end).contains(first) && *last > end {
                        *first = start;
                    }
                    if *first < start && (start..=end).contains(last) {
                        *last = end;
                    }
                }
            }
        }
    }

    /// Places the arena if all sizes are known, and says whose size is not.
    fn arena(&mut self) {
        let mut at = vec![];
        let (mut sizes, mut lives) = (vec![], vec![]);
        for (k, b) in self.out.program.buffers.iter_mut().enumerate() {
            if let Place::Arena { first, last, .. } = &mut b.place {
                *first = (*first).min(*last);
                let Some(bytes) = b.bytes.known() else { return };
                at.push(k);
                sizes.push(bytes.max(0) as u64);
                lives.push((*first, *last));
            }
        }
        let Some((offsets, total)) = memory::place(&sizes, &lives) else {
            self.problem("the model", "its intermediate results do not fit the address space", "give smaller dims with --dim");
            return;
        };
        for (&k, o) in at.iter().zip(offsets) {
            if let Place::Arena { offset, .. } = &mut self.out.program.buffers[k].place {
                *offset = Some(o);
            }
        }
        self.out.program.arena = Some(total);
    }
}
