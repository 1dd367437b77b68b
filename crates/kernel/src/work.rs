//! The work list: a decomposed graph as tensors and steps in order, with control flow as nested blocks.
//!
//! This is where operators end: every node has become steps (what to compute), aliases (the same memory under other
//! dims) or control flow. Grouping, placement and builders work on this form and know no operator, with one exception: `Concat` is
//! split into one step for each operand, writing into a range of the result.

mod data;
mod host;
mod routine;
mod scan;

pub use host::{Arg, Slot, SlotMemory};

use crate::build::narrow::Narrow;
use crate::loops::Buffer;
use infc_host::Routine;
use infc_ir::compute::{Compute, Step};
use infc_ir::graph::{Def, Graph, Node, Region, Requirement, Value};
use infc_ir::op::{Ctx, Meaning, signature, sizes};
use infc_ir::{DType, Expr, Op, Problem, Problems, Scalar, Tensor, TensorType, Type};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A tensor of the work list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u32);

impl Id {
    /// Position in [`Work::tensors`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a tensor's memory comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Memory {
    /// Model input of that number.
    Input(u32),
    /// Known data.
    Constant(Tensor),
    /// Made by a step.
    Temp,
    /// The same bytes as another tensor, row-major, from `offset` elements on.
    Alias {
        /// The other tensor.
        of: Id,
        /// Distance from its start in elements; may use loop counters.
        offset: Expr,
    },
    /// A box in another tensor of the same rank, beginning at `start`, with the other's strides.
    Window {
        /// The other tensor.
        of: Id,
        /// First index along each axis.
        start: Vec<Expr>,
    },
}

/// A tensor with all that is decided about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// Dtype and logical dims.
    pub ty: TensorType,
    /// Where its memory comes from.
    pub memory: Memory,
    /// Physical order of the axes, outermost first.
    pub order: Vec<usize>,
    /// Elements of border kept before and after each axis, filled with `fill`; empty without a border.
    pub halo: Vec<(i64, i64)>,
    /// The border's value.
    pub fill: Option<Scalar>,
    /// Elements behind each row along the innermost axis that nobody reads or writes.
    pub gap: i64,
    /// f32 whose elements are rounded to tf32 by the steps that make them.
    pub tf32: bool,
    /// For people.
    pub name: String,
}

impl Data {
    /// The dims of what is in memory: with the border.
    pub fn physical_dims(&self) -> Vec<Expr> {
        let dims = self.ty.dims.iter().enumerate();
        dims.map(|(a, &d)| self.halo.get(a).map_or(d, |&(lo, hi)| d + lo + hi)).collect()
    }
    /// The dims by which elements are counted in memory: with the border, and the gap between rows.
    pub fn memory_dims(&self) -> Vec<Expr> {
        let mut dims = self.physical_dims();
        if let Some(&inner) = self.order.last() {
            dims[inner] = dims[inner] + self.gap;
        }
        dims
    }
}

/// One step with its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// What is computed; source `k` is `sources[k]`.
    pub step: Step,
    /// Tensors read.
    pub sources: Vec<Id>,
    /// The tensor made.
    pub out: Id,
    /// For people: operators in it.
    pub name: String,
    /// The node in the model's words, for run-time errors.
    pub node: String,
}

impl Task {
    /// Drops tensors that the step does not read, and numbers the others anew.
    pub fn prune(&mut self) {
        let used = self.step.sources();
        let position = |s: u32| used.iter().position(|&u| u == s).expect("listed") as u32;
        self.step = self.step.map_sources(&position);
        self.sources = used.iter().map(|&s| self.sources[s as usize]).collect();
    }
}

/// An element of a block.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A computation.
    Task(Task),
    /// One of two blocks, by a bool scalar.
    If {
        /// The condition.
        cond: Id,
        /// Where it holds.
        then: Vec<Item>,
        /// Where not.
        otherwise: Vec<Item>,
    },
    /// A block repeated.
    Loop {
        /// The symbol that counts.
        counter: Expr,
        /// How often at most.
        count: Expr,
        /// Looked at before each round.
        cond: Option<Id>,
        /// What is repeated.
        body: Vec<Item>,
        /// Rounds touch nothing of each other, but for tensors that each writes before it reads them.
        apart: bool,
    },
    /// Sets a symbol from an integer scalar tensor.
    Bind {
        /// The symbol.
        symbol: Expr,
        /// The scalar (`i64`).
        from: Id,
        /// The most it can be, if that is known before.
        bound: Option<Expr>,
    },
    /// An error of the model at run time unless two sizes are equal.
    Require {
        /// One size.
        left: Expr,
        /// The other one.
        right: Expr,
        /// 1 is fine for either.
        or_one: bool,
        /// The node in the model's words.
        node: String,
        /// What is wrong where they differ.
        text: String,
    },
    /// A call of a host routine.
    Host {
        /// Which one.
        routine: infc_host::Routine,
        /// Operands; `None` is one that is left out.
        inputs: Vec<Option<Arg>>,
        /// Results.
        outputs: Vec<Arg>,
        /// The node in the model's words.
        node: String,
    },
}

/// A model as work.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// All tensors.
    pub tensors: Vec<Data>,
    /// What runs, in order.
    pub items: Vec<Item>,
    /// Model inputs.
    pub inputs: Vec<(String, Arg)>,
    /// Model outputs.
    pub outputs: Vec<(String, Arg)>,
    /// Places for values of the host.
    pub slots: Vec<Slot>,
    /// Tensors that host steps read or make: row-major, each in memory of its own.
    pub shared: Vec<Id>,
    /// Conditions on the sizes of the inputs.
    pub requires: Vec<Requirement>,
    /// Tensors whose steps shall run on the host beside a device.
    pub on_host: HashSet<Id>,
    /// Tensors that are stored a second time by the steps that make them, rounded, in tensors that lie as they do.
    pub twice: HashMap<Id, Id>,
    /// Constants that products read narrow.
    pub narrow: HashMap<Id, Arc<Narrow>>,
}

impl Work {
    /// Model outputs that are tensors.
    pub fn output_tensors(&self) -> impl Iterator<Item = Id> + '_ {
        self.outputs.iter().filter_map(|(_, out)| if let Arg::Tensor(id) = out { Some(*id) } else { None })
    }
    /// The data of a tensor.
    pub fn tensor(&self, id: Id) -> &Data {
        &self.tensors[id.index()]
    }
    /// Distance in elements between neighbours along each axis of a tensor.
    pub fn strides(&self, id: Id) -> Vec<Expr> {
        let data = self.tensor(id);
        match &data.memory {
            Memory::Constant(_) | Memory::Alias { .. } => Buffer::row_major(&data.ty.dims),
            Memory::Input(_) | Memory::Temp => Buffer::strides_in_order(&data.memory_dims(), &data.order),
            Memory::Window { of, .. } => self.strides(*of),
        }
    }
    /// Adds a tensor in row-major order.
    pub fn add(&mut self, ty: TensorType, memory: Memory, name: impl Into<String>) -> Id {
        let order = (0..ty.rank()).collect();
        self.tensors.push(Data { ty, memory, order, halo: vec![], fill: None, gap: 0, tf32: false, name: name.into() });
        Id(self.tensors.len() as u32 - 1)
    }
    /// The tensor that `id` is a window of, or itself.
    pub fn whole(&self, mut id: Id) -> Id {
        while let Memory::Window { of, .. } = self.tensor(id).memory {
            id = of;
        }
        id
    }
    /// The tensor whose memory `id` lives in: aliases and windows followed to their end.
    pub fn root(&self, id: Id) -> Id {
        match &self.tensor(id).memory {
            Memory::Alias { of, .. } | Memory::Window { of, .. } => self.root(*of),
            Memory::Input(_) | Memory::Constant(_) | Memory::Temp => id,
        }
    }
}

/// The work of a graph in which every node means steps, an alias or control flow.
pub fn from_graph(graph: &Graph) -> Result<Work, Problems> {
    let mut cx = Lower {
        graph,
        work: Work::default(),
        map: HashMap::new(),
        slots: HashMap::new(),
        bound: HashSet::new(),
        given: sizes::input_symbols(graph),
        depth: 0,
        loops: 0,
        problems: vec![],
    };
    for (i, &v) in graph.inputs().iter().enumerate() {
        let name = graph.value(v).name.clone();
        let ty = graph.ty(v);
        cx.know(ty.as_tensor().map_or(&[], |t| &t.dims));
        let arg = match host::flat(ty) {
            Some(t) => Arg::Tensor(cx.work.add(t.clone(), Memory::Input(i as u32), &name)),
            None => Arg::Slot(cx.slot(ty.clone(), SlotMemory::Input(i as u32))),
        };
        cx.stands_for(v, arg);
        cx.work.inputs.push((name, arg));
    }
    cx.work.requires = graph.requires.clone();
    let items = cx.region(Graph::MAIN);
    cx.work.items = items;
    for (i, &v) in graph.outputs().iter().enumerate() {
        let name = graph.value(v).name.clone();
        match cx.arg(v) {
            Some(Arg::Tensor(id)) => {
                let id = cx.own_output(id, &name);
                cx.work.outputs.push((name, Arg::Tensor(id)));
            }
            Some(from @ Arg::Slot(_)) => {
                let out = Arg::Slot(cx.slot(graph.ty(v).clone(), SlotMemory::Output(i as u32)));
                let mut items = std::mem::take(&mut cx.work.items);
                let made = match graph.value(v).def {
                    Def::Output(n, _) => graph.describe(n),
                    Def::Param(..) | Def::Constant(_) => format!("output '{name}'"),
                };
                let mut at = host::At { describe: &made, items: &mut items };
                cx.call(infc_host::Routine::Identity, vec![Some(from)], vec![out], &mut at);
                cx.work.items = items;
                cx.work.outputs.push((name, out));
            }
            None if cx.problems.is_empty() => cx.problem(format!("output '{name}'"), "has no value".to_owned()),
            None => {}
        }
    }
    if cx.problems.is_empty() { Ok(cx.work) } else { Err(Problems(cx.problems)) }
}

struct Lower<'a> {
    graph: &'a Graph,
    work: Work,
    map: HashMap<Value, Id>,
    /// Slots of values that are no tensors in memory.
    slots: HashMap<Value, u32>,
    /// Symbols that have a value here.
    bound: HashSet<&'static str>,
    /// Those that the inputs tell.
    given: HashSet<&'static str>,
    /// How many bodies are around what is lowered.
    depth: usize,
    loops: usize,
    problems: Vec<Problem>,
}

/// The compute that copies source 0.
pub fn copy_of(ty: &TensorType) -> Step {
    Step::Compute(Compute::map(&ty.dims, |axes| Scalar::read_at(ty.dtype, 0, axes)))
}

impl Lower<'_> {
    fn problem(&mut self, at: String, message: String) {
        self.problems.push(Problem { at, message, help: String::new() });
    }

    /// The tensor of a value; constants come into being when first asked for.
    fn get(&mut self, v: Value) -> Option<Id> {
        if let Some(&id) = self.map.get(&v) {
            return Some(id);
        }
        let data = self.graph.value(v);
        let Def::Constant(t) = &data.def else { return None };
        let ty = host::flat(&data.ty)?.clone();
        let id = self.work.add(ty, Memory::Constant(t.clone()), &data.name);
        self.map.insert(v, id);
        Some(id)
    }

    /// A model output needs memory of its own: copies what is an input, a constant, an alias or another output.
    fn own_output(&mut self, id: Id, name: &str) -> Id {
        let taken = self.work.output_tensors().any(|o| self.work.root(o) == self.work.root(id));
        if matches!(self.work.tensor(id).memory, Memory::Temp) && !taken {
            return id;
        }
        let mut items = std::mem::take(&mut self.work.items);
        let out = self.copy(id, name, "output", &mut items);
        self.work.items = items;
        out
    }

    fn copy(&mut self, id: Id, name: &str, node: &str, items: &mut Vec<Item>) -> Id {
        let ty = self.work.tensor(id).ty.clone();
        let out = self.work.add(ty, Memory::Temp, name);
        self.copy_into(id, out, node, items);
        out
    }

    fn copy_into(&mut self, id: Id, out: Id, node: &str, items: &mut Vec<Item>) {
        let step = copy_of(&self.work.tensor(id).ty);
        items.push(Item::Task(Task { step, sources: vec![id], out, name: "copy".into(), node: node.to_owned() }));
    }

    fn region(&mut self, region: Region) -> Vec<Item> {
        let mut items = vec![];
        let (outside, body) = (self.bound.clone(), region != Graph::MAIN);
        self.depth += usize::from(body);
        for &n in &self.graph.region(region).nodes {
            if let Err(message) = self.node(n, &mut items) {
                self.problem(self.graph.describe(n), message);
            }
        }
        self.depth -= usize::from(body);
        if body {
            self.bound = outside;
        }
        items
    }

    fn node(&mut self, n: Node, items: &mut Vec<Item>) -> Result<(), String> {
        let graph = self.graph;
        let node = graph.node(n);
        let mut facts: Vec<_> = node.inputs.iter().map(|v| v.map(|v| graph.fact(v))).collect();
        let regions: Vec<_> = node.regions.iter().map(|&r| signature(graph, r)).collect();
        let types: Vec<Type> = node.outputs.iter().map(|&v| graph.ty(v).clone()).collect();
        let describe = graph.describe(n);
        let cx = Ctx { inputs: &facts, regions: &regions, outputs: node.outputs.len() };
        let mut meaning = node.op.meaning(&cx, &types);
        if !matches!(meaning, Ok(Meaning::Routine(_) | Meaning::Control | Meaning::Host)) {
            let followed = self.data(n);
            let told = self.told(n, &followed, &regions);
            if meaning.is_err() || !self.unknown(&types).is_empty() || told.conditions() {
                self.sizes(n, &told, &types, &describe, items)?;
                facts = followed;
                let cx = Ctx { inputs: &facts, regions: &regions, outputs: node.outputs.len() };
                meaning = node.op.meaning(&cx, &types);
            }
        }
        let meaning = meaning.map_err(|f| f.0)?;
        self.requirements(n, items);
        let strings = types.iter().any(|t| t.as_tensor().is_some_and(|t| t.dtype == DType::String));
        if let Op::Concat(op) = &node.op {
            if strings {
                return self.join_strings(n, op.axis, &mut host::At { describe: &describe, items });
            }
            return self.concat(n, op.axis, &describe, items);
        }
        match meaning {
            Meaning::Alias(k) if host::flat(&types[0]).is_none() => {
                let from = node.inputs.get(k).copied().flatten().ok_or("its operand is missing")?;
                self.same_value(from, node.outputs[0], &mut host::At { describe: &describe, items })
            }
            Meaning::Alias(k) => {
                let of = node.inputs.get(k).copied().flatten().and_then(|v| self.get(v)).ok_or("its operand is no tensor")?;
                let ty = tensor_type(&types[0])?;
                let name = graph.value(node.outputs[0]).name.clone();
                let id = match &self.work.tensor(of).memory {
                    Memory::Constant(t) if ty.known_dims().is_some() => {
                        let t = t.reshape(ty.known_dims().expect("checked"));
                        self.work.add(ty, Memory::Constant(t), name)
                    }
                    _ => self.work.add(ty, Memory::Alias { of, offset: Expr::int(0) }, name),
                };
                self.map.insert(node.outputs[0], id);
                Ok(())
            }
            Meaning::Steps { steps, outputs } => {
                self.check_indices(n, &steps, &facts, &describe, items)?;
                // Operands that no step reads (a shape that inference has used up) need no tensor.
                let mut sources: Vec<Option<Id>> = node.inputs.iter().map(|v| v.and_then(|v| self.get(v))).collect();
                let mut known = vec![];
                let mut at = host::At { describe: &describe, items };
                let table = if strings { Some(self.as_places(n, &mut sources, &mut at)?) } else { None };
                for (k, step) in steps.into_iter().enumerate() {
                    let step = self.with_data(n, step, &mut known, &describe, items)?;
                    let step = table.iter().fold(step, |step, (_, total)| Self::on_places(step, *total));
                    let used = step.sources();
                    let ids: Option<Vec<Id>> = used.iter().map(|&s| sources.get(s as usize).copied().flatten()).collect();
                    let ids = ids.ok_or("reads an operand that is no tensor")?;
                    let position = |s: u32| used.iter().position(|&u| u == s).expect("listed") as u32;
                    let ty = TensorType::new(step.dtype(), step.dims().iter().copied());
                    let result = outputs.iter().position(|&o| o as usize == node.inputs.len() + k);
                    let name = result.map_or(String::new(), |r| graph.value(node.outputs[r]).name.clone());
                    let out = self.work.add(ty, Memory::Temp, name);
                    let step = step.map_sources(&position);
                    let task = Task { step, sources: ids, out, name: node.op.name().to_owned(), node: describe.clone() };
                    items.push(Item::Task(task));
                    sources.push(Some(out));
                }
                for (&v, &o) in node.outputs.iter().zip(&outputs) {
                    let id = sources.get(o as usize).copied().flatten().ok_or("a result is no tensor")?;
                    match &table {
                        Some((table, _)) if host::flat(graph.ty(v)).is_none() => {
                            self.picked_strings(id, table, v, &mut host::At { describe: &describe, items })?;
                        }
                        _ => drop(self.map.insert(v, id)),
                    }
                }
                Ok(())
            }
            Meaning::Control => self.control(n, &describe, items),
            Meaning::Decompose(_) => Err("was not decomposed before lowering: run the `decompose` pass".into()),
            Meaning::Routine(r) => self.routine(n, r, &describe, items),
            Meaning::Host => self.host(n, &mut host::At { describe: &describe, items }),
        }
    }

    fn concat(&mut self, n: Node, axis: i64, describe: &str, items: &mut Vec<Item>) -> Result<(), String> {
        let node = self.graph.node(n);
        let ty = tensor_type(self.graph.ty(node.outputs[0]))?;
        let axis = infc_ir::op::normal_axis(axis, ty.rank()).map_err(|f| f.0)?;
        let out = self.work.add(ty.clone(), Memory::Temp, &self.graph.value(node.outputs[0]).name);
        let mut start = Expr::int(0);
        for v in node.inputs.iter().flatten() {
            let id = self.get(*v).ok_or("its operand is no tensor")?;
            let part = self.work.tensor(id).ty.clone();
            let mut from = vec![Expr::int(0); ty.rank()];
            from[axis] = start;
            start = start + part.dims[axis];
            if part.dims[axis].is(0) {
                continue;
            }
            let window = self.work.add(part, Memory::Window { of: out, start: from }, "");
            let step = copy_of(&self.work.tensor(id).ty);
            let task = Task { step, sources: vec![id], out: window, name: "Concat".into(), node: describe.to_owned() };
            items.push(Item::Task(task));
        }
        self.map.insert(node.outputs[0], out);
        Ok(())
    }

    fn control(&mut self, n: Node, describe: &str, items: &mut Vec<Item>) -> Result<(), String> {
        let graph = self.graph;
        let node = graph.node(n);
        let operand = |cx: &mut Self, k: usize| {
            node.inputs.get(k).copied().flatten().and_then(|v| cx.get(v)).ok_or(format!("operand {k} is no tensor"))
        };
        match &node.op {
            Op::If(_) => {
                let cond = operand(self, 0)?;
                let outs: Vec<Arg> = node.outputs.iter().map(|&v| self.out_of_body(v)).collect();
                let mut blocks = vec![];
                for &r in &node.regions {
                    for (k, &p) in graph.region(r).params.iter().enumerate() {
                        let v = node.inputs.get(1 + k).copied().flatten();
                        let arg = v.and_then(|v| self.arg(v)).ok_or(format!("operand {} has no value", 1 + k))?;
                        self.stands_for(p, arg);
                    }
                    let before = self.problems.len();
                    let mut block = self.region(r);
                    if self.problems.len() > before {
                        // What is wrong inside is told already.
                        return Ok(());
                    }
                    self.branch_sizes(n, r, describe, &mut block)?;
                    for (&v, &out) in graph.region(r).results.iter().zip(&outs) {
                        self.put(v, out, &mut host::At { describe, items: &mut block })?;
                    }
                    blocks.push(block);
                }
                let [then, otherwise] = <[_; 2]>::try_from(blocks).map_err(|_| "If has two bodies")?;
                items.push(Item::If { cond, then, otherwise });
                for &v in &node.outputs {
                    self.know(graph.ty(v).as_tensor().map_or(&[], |t| &t.dims));
                }
                Ok(())
            }
            Op::Loop(op) => self.repeat(n, op.captures, describe, items),
            Op::Scan(op) => self.scan(n, op, describe, items),
            Op::SequenceMap(op) => self.sequence_map(n, op, &mut host::At { describe, items }),
            other => Err(format!("{} is no control flow that compiled code knows", other.name())),
        }
    }

    /// Memory for the results of a node but these.
    fn outputs_except(&mut self, n: Node, others: &[usize]) -> Result<Vec<Option<Id>>, String> {
        let node = self.graph.node(n);
        let mut outs = vec![];
        for (k, &v) in node.outputs.iter().enumerate() {
            if others.contains(&k) {
                outs.push(None);
                continue;
            }
            let ty = host::flat(self.graph.ty(v)).cloned();
            let ty = ty.ok_or_else(|| format!("stacks results of type {}; it can stack tensors of numbers", self.graph.ty(v)))?;
            let id = self.work.add(ty, Memory::Temp, &self.graph.value(v).name);
            self.map.insert(v, id);
            outs.push(Some(id));
        }
        Ok(outs)
    }

    /// A result that becomes the carried tensor `out` of the next round. Where that has another shape then it is copied aside first, into memory
    /// with sizes of its own, since all carried tensors change theirs at once: `moved` gets what changes.
    #[allow(clippy::too_many_arguments, reason = "each is another thing")]
    fn aside(
        &mut self,
        n: Node,
        result: Id,
        out: Id,
        param: TensorType,
        own: &[Expr],
        moved: &mut Vec<(TensorType, TensorType)>,
        describe: &str,
        body: &mut Vec<Item>,
    ) -> Result<Id, String> {
        let (is, was) = (self.work.tensor(result).ty.clone(), self.work.tensor(out).ty.clone());
        if !Self::changes(own, &[&was, &param], &is) {
            return Ok(result);
        }
        let mut sizes = vec![];
        let mut kept = |d: Expr| {
            if d.known().is_some() {
                return d;
            }
            let name = format!("%moved{}.{}", self.loops, sizes.len());
            sizes.push((Expr::sym(&name), Scalar::index(d)));
            Expr::sym(&name)
        };
        let own_sizes = TensorType::new(is.dtype, is.dims.iter().map(|&d| kept(d)).collect::<Vec<_>>());
        self.loops += 1;
        if !sizes.is_empty() {
            self.set_sizes(n, &sizes, describe, body)?;
        }
        let copy = self.work.add(own_sizes.clone(), Memory::Temp, "");
        self.copy_into(result, copy, describe, body);
        moved.extend([(was.clone(), own_sizes.clone()), (param, own_sizes)]);
        Ok(self.seen_as(copy, was))
    }

    /// Before the first round a stack of results has the size 0, where only a round tells it. Sizes of carried values, which it may share, are set
    /// after this; so are those that a step of the body sets, for which they are not known here.
    fn empty(&mut self, n: Node, stack: Id, own: &[Expr], describe: &str, items: &mut Vec<Item>) -> Result<(), String> {
        let ty = self.work.tensor(stack).ty.clone();
        let empty = TensorType::new(ty.dtype, vec![Expr::int(0); ty.rank()]);
        let before = self.bound.clone();
        self.resize(n, own, &[(&ty, &empty)], describe, items)?;
        self.bound = before;
        Ok(())
    }

    /// Sets sizes of carried tensors, all at once.
    fn resize_all(
        &mut self,
        n: Node,
        own: &[Expr],
        moved: &[(TensorType, TensorType)],
        describe: &str,
        items: &mut Vec<Item>,
    ) -> Result<(), String> {
        self.resize(n, own, &moved.iter().map(|(to, from)| (to, from)).collect::<Vec<_>>(), describe, items)
    }

    fn counter(&mut self) -> Expr {
        self.loops += 1;
        Expr::sym(&format!("%loop{}", self.loops - 1))
    }

    /// Copies the results of a round into the carried tensors; by way of temporaries, as a result may be another one's carried tensor.
    fn carry(&mut self, results: &[Id], carried: &[Id], describe: &str, body: &mut Vec<Item>) {
        let clash = results.iter().any(|&r| carried.iter().any(|&c| self.work.root(r) == c));
        let results: Vec<Id> = match clash {
            true => results.iter().map(|&r| self.copy(r, "", describe, body)).collect(),
            false => results.to_vec(),
        };
        for (&r, &c) in results.iter().zip(carried) {
            self.copy_into(r, c, describe, body);
        }
    }

    fn repeat(&mut self, n: Node, captures: i64, describe: &str, items: &mut Vec<Item>) -> Result<(), String> {
        let graph = self.graph;
        let node = graph.node(n);
        let region = graph.region(node.regions[0]);
        let types = node.outputs.iter().chain(&region.params[2..]).map(|&v| graph.ty(v).clone());
        let own = self.unknown(&types.collect::<Vec<_>>());
        // Results: condition, carried values, scan outputs. Parameters: counter, condition, carried values, captured values.
        let carried = usize::try_from(node.inputs.len() as i64 - 2 - captures).map_err(|_| "it has too few operands")?;
        let on_host = self.carried_on_host(n, carried);
        let texts: Vec<usize> = (carried..node.outputs.len())
            .filter(|&k| graph.ty(node.outputs[k]).as_tensor().is_some_and(|t| t.dtype == DType::String))
            .collect();
        let outs = self.outputs_except(n, &[&on_host[..], &texts].concat())?;
        let counter = self.counter();
        let count = match node.inputs.first().copied().flatten() {
            None => Expr::int(i64::MAX),
            Some(v) => match graph.fact(v).ints.as_deref() {
                Some([e]) => *e,
                _ => {
                    let from = self.get(v).ok_or("the trip count is no tensor")?;
                    let symbol = Expr::sym(&format!("{counter}.count").replace('"', ""));
                    items.push(Item::Bind { symbol, from, bound: None });
                    symbol
                }
            },
        };
        let index_ty = tensor_type(graph.ty(region.params[0]))?;
        let index = self.work.add(index_ty.clone(), Memory::Temp, "");
        let bool_ty = tensor_type(graph.ty(region.params[1]))?;
        let initial = match node.inputs.get(1).copied().flatten() {
            Some(v) => self.get(v).ok_or("the condition is no tensor")?,
            None => self.work.add(bool_ty.clone(), Memory::Constant(Tensor::from_bools([], &[true])), ""),
        };
        let cond = self.work.add(bool_ty, Memory::Temp, "");
        self.copy_into(initial, cond, describe, items);
        self.map.insert(region.params[0], index);
        self.map.insert(region.params[1], cond);
        let states = self.start_on_host(n, &on_host, &mut host::At { describe, items })?;
        // Scan outputs grow round by round, where their number is not known before.
        let stacks: Vec<(usize, Id)> = (carried..).zip(&outs[carried..]).filter_map(|(k, o)| Some((k, (*o)?))).collect();
        for &(_, stack) in &stacks {
            self.empty(n, stack, &own, describe, items)?;
        }
        for (k, out) in outs.iter().enumerate().take(carried) {
            let Some(out) = *out else { continue };
            let from =
                node.inputs.get(2 + k).copied().flatten().and_then(|v| self.get(v)).ok_or("a carried value is no tensor")?;
            let (param, given) = (tensor_type(graph.ty(region.params[2 + k]))?, self.work.tensor(from).ty.clone());
            self.resize(n, &own, &[(&self.work.tensor(out).ty.clone(), &given), (&param, &given)], describe, items)?;
            self.copy_into(from, out, describe, items);
            self.know(&param.dims);
            let id = if param == self.work.tensor(out).ty { out } else { self.seen_as(out, param) };
            self.map.insert(region.params[2 + k], id);
        }
        let mut lists = vec![];
        for &k in &texts {
            lists.push((k, self.no_strings(region.results[1 + k], 0, &mut host::At { describe, items })?));
        }
        for k in 2 + carried..region.params.len() {
            let from = node.inputs.get(k).copied().flatten().and_then(|v| self.arg(v)).ok_or("a captured value is missing")?;
            self.stands_for(region.params[k], from);
        }
        let step = Step::Compute(Compute::map(&index_ty.dims, |_| Scalar::index(counter)));
        let mut body =
            vec![Item::Task(Task { step, sources: vec![], out: index, name: "counter".into(), node: describe.to_owned() })];
        let before = self.problems.len();
        body.extend(self.region(node.regions[0]));
        if self.problems.len() > before {
            // What is wrong inside is told already.
            return Ok(());
        }
        let ids: Vec<Option<Id>> = region.results.iter().map(|&v| self.get(v)).collect();
        let id_of = |k: usize| ids.get(k).copied().flatten().ok_or("a result of the body is no tensor");
        for &(k, list) in &lists {
            self.more_strings(list, region.results[1 + k], 0, false, &mut host::At { describe, items: &mut body })?;
        }
        for &(k, stack) in &stacks {
            let id = id_of(1 + k)?;
            let ty = self.work.tensor(id).ty.clone();
            let offset = counter * Expr::product(ty.dims.iter().copied());
            let grown = TensorType::new(ty.dtype, [counter + 1].into_iter().chain(ty.dims.iter().copied()));
            self.resize(n, &own, &[(&self.work.tensor(stack).ty.clone(), &grown)], describe, &mut body)?;
            let slice = self.work.add(ty, Memory::Alias { of: stack, offset }, "");
            self.copy_into(id, slice, describe, &mut body);
        }
        self.next_on_host(n, &states, &mut host::At { describe, items: &mut body })?;
        let (mut results, mut state, mut moved) = (vec![id_of(0)?], vec![cond], vec![]);
        for (k, out) in outs.iter().enumerate().take(carried) {
            let Some(out) = *out else { continue };
            let param = tensor_type(graph.ty(region.params[2 + k]))?;
            results.push(self.aside(n, id_of(1 + k)?, out, param, &own, &mut moved, describe, &mut body)?);
            state.push(out);
        }
        self.resize_all(n, &own, &moved, describe, &mut body)?;
        self.carry(&results, &state, describe, &mut body);
        outs.iter().flatten().for_each(|&o| self.know(&self.work.tensor(o).ty.dims.clone()));
        items.push(Item::Loop { counter, count, cond: Some(cond), body, apart: false });
        for (k, list) in lists {
            self.call_for(Routine::Identity, vec![Some(list)], &[node.outputs[k]], &mut host::At { describe, items })?;
        }
        self.end_on_host(n, &states, &mut host::At { describe, items })
    }
}

fn tensor_type(ty: &Type) -> Result<TensorType, String> {
    ty.as_tensor().cloned().ok_or(format!("a result has type {ty}; compiled code makes only tensors"))
}
