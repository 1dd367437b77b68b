//! From a graph to a program: the road through work list, fusion, placement, plans and builders, down to steps and buffers.

mod buffers;
mod constants;
mod ports;
mod sizes;
mod steps;

pub use constants::{Constants, key};

use crate::attention::Attentions;
use crate::build::{self, Operand};
use crate::chain::Chains;
use crate::loops::{Access, Buffer, Kernel, Space};
use crate::plan::{self, Plan};
use crate::target::TargetDesc;
use crate::tuning::{Choices, Tunable};
use crate::work::{Id, Item, Memory, Work};
use crate::{
    attention, bands, batch, byte_blocks, chain, copies, fuse, gathered, known, largest, lookups, narrow, place, rounded,
    siblings, split, work, zero_point,
};
use infc_artifact::program::Program;
use infc_ir::compute::Step::Compute;
use infc_ir::graph::Graph;
use infc_ir::{Expr, Problem, Problems, Tensor};
use std::collections::{HashMap, HashSet};

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
    pub constants: Constants,
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
        let message = format!("it takes no products in that way: {}", target.math.name());
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
    byte_blocks::read(&mut work, target);
    rounded::round(&mut work, target);
    fuse::simplify(&mut work);
    fuse::fuse(&mut work);
    largest::integers(&mut work, target);
    lookups::narrow(&mut work);
    place::place(&mut work, target);
    gathered::rows(&mut work, target);
    let mut attentions = attention::take(&mut work, target);
    siblings::merge(&mut work, target, &attentions);
    narrow::find(&mut work, target, &attentions);
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
            constants: Constants::default(),
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
    Operand { buffer, shift, zeros, constant, tf32: data.tf32, narrow: work.narrow.get(&id).cloned() }
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
        Compute(c) => {
            if target.block_threads == 0
                && let Some((c, operands)) = build::groups::apart(&c, &operands)
                && let step = Compute(build::contract::in_memory_order(c, &operands))
                && let plan @ (Plan::Brgemm(_) | Plan::Matrix(_)) = plan::choose(&step, &operands, target)
            {
                return (step, operands, plan);
            }
            (Compute(build::contract::in_memory_order(c, &operands)), operands)
        }
        other => (other, operands),
    };
    let plan = plan::choose(&step, &operands, target);
    (step, operands, plan)
}

impl Emit<'_> {
    fn problem(&mut self, at: &str, message: impl Into<String>, help: &str) {
        self.problems.push(Problem { at: at.to_owned(), message: message.into(), help: help.to_owned() });
    }
}
