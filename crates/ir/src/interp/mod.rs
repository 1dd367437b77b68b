//! The graph interpreter: runs a [`Graph`] on values, node by node, straight from [`Meaning`]. The oracle's side of every comparison.
//!
//! For each node it builds facts from the actual values (so that every shape is a number), asks the operator for its results
//! and meaning, and executes that: steps (see `rows`, and `walk`, its slow twin), views, decompositions (a temporary graph over the
//! values), control flow, routines. It knows no target and no loops.

mod control;
mod routine;
mod rows;
mod walk;

use crate::compute::Step;
use crate::dtype::DType;
use crate::expr::{Expr, Node as ExprNode};
use crate::fault;
use crate::fault::{Fault, Problem, Problems};
use crate::graph::{Def, Graph, Node, Region, Requirement, Value};
use crate::op::{Builder, Ctx, DimVector, Meaning, Op};
use crate::tensor::Tensor;
use crate::types::{Fact, TensorType, Type};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// A value at run time.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A dense tensor.
    Tensor(Tensor),
    /// A list.
    Sequence(Vec<Item>),
    /// A value or nothing.
    Optional(Option<Box<Item>>),
    /// A dictionary, in the order of insertion.
    Map(Vec<(Key, Item)>),
}

pub use infc_host::Key;

impl Item {
    /// The tensor it is, if it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Item::Tensor(t) => Some(t),
            Item::Sequence(_) | Item::Optional(_) | Item::Map(_) => None,
        }
    }
    fn kind(&self) -> String {
        match self {
            Item::Tensor(t) => format!("{}{:?}", t.dtype, t.dims),
            Item::Sequence(s) => format!("a sequence of {}", s.len()),
            Item::Optional(_) => "an optional".to_owned(),
            Item::Map(m) => format!("a map of {}", m.len()),
        }
    }
}

impl From<Tensor> for Item {
    fn from(t: Tensor) -> Item {
        Item::Tensor(t)
    }
}

/// Sees every node of the graph (those in regions at every iteration, those of decompositions not) with its results.
pub type Observer<'a> = &'a mut dyn FnMut(Node, &[Item]);

/// Runs a model. Operands are checked against the types of its inputs: dtype, rank, known dims, and one value for each symbol.
pub fn run(graph: &Graph, inputs: &[Item]) -> Result<Vec<Item>, Problems> {
    run_with(graph, inputs, &mut |_, _| {})
}

/// As [`run`], with tensors.
pub fn run_tensors(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problems> {
    let items: Vec<Item> = inputs.iter().cloned().map(Item::Tensor).collect();
    let mut out = vec![];
    for (i, item) in run(graph, &items)?.into_iter().enumerate() {
        match item {
            Item::Tensor(t) => out.push(t),
            other => {
                let name = &graph.value(graph.outputs()[i]).name;
                let message = format!("is {}, a tensor is needed", other.kind());
                return Err(Problems::one(format!("output '{name}'"), message, "ask for its items instead"));
            }
        }
    }
    Ok(out)
}

/// As [`run`]; `observer` sees every node's results.
pub fn run_with(graph: &Graph, inputs: &[Item], observer: Observer) -> Result<Vec<Item>, Problems> {
    let symbols = check_inputs(graph, inputs)?;
    let mut machine = Machine { graph, observer, plans: HashMap::new(), symbols };
    machine.region(Graph::MAIN, inputs.to_vec())
}

/// Applies one operator to tensors (constant folding). Control flow and host work are errors.
pub fn eval_op(op: &Op, inputs: &[Option<Tensor>], outputs: usize) -> Result<Vec<Tensor>, Fault> {
    let items: Vec<Option<Item>> = inputs.iter().cloned().map(|t| t.map(Item::Tensor)).collect();
    let tensors = apply(op, &items, &[], outputs)?.into_iter().map(|item| match item {
        Item::Tensor(t) => Ok(t),
        other => Err(fault!("gives {}, no tensor", other.kind())),
    });
    tensors.collect()
}

/// Checks the inputs; gives the values of symbols.
fn check_inputs(graph: &Graph, inputs: &[Item]) -> Result<HashMap<&'static str, i64>, Problems> {
    let params = graph.inputs();
    if params.len() != inputs.len() {
        let names: Vec<_> = params.iter().map(|&v| graph.value(v).name.as_str()).collect();
        let message = format!("the model has {} inputs, {} are given", params.len(), inputs.len());
        return Err(Problems::one(format!("model '{}'", graph.name), message, format!("its inputs are {}", names.join(", "))));
    }
    let mut symbols = HashMap::new();
    let mut problems = vec![];
    for (&v, item) in params.iter().zip(inputs) {
        if let Err(f) = check_item(graph.ty(v), item, &mut symbols) {
            let help = format!("its type is {}", graph.ty(v));
            problems.push(Problem { at: format!("input '{}'", graph.value(v).name), message: f.0, help });
        }
    }
    let broken = |r: &&Requirement| r.holds(&|s| symbols.get(s).copied()) == Some(false);
    // What types take for granted does not matter here: every operator is inferred again for the sizes of the run.
    problems.extend(graph.requires.iter().filter(|r| !r.assumed).filter(broken).map(Requirement::problem));
    if problems.is_empty() { Ok(symbols) } else { Err(Problems(problems)) }
}

fn check_item(ty: &Type, item: &Item, symbols: &mut HashMap<&'static str, i64>) -> Result<(), Fault> {
    match (ty, item) {
        (Type::Tensor(want), Item::Tensor(t)) => check_tensor(want, t, symbols),
        // Elements of a sequence may differ in their dims.
        (Type::Sequence(of), Item::Sequence(items)) => items.iter().try_for_each(|i| check_item(of, i, &mut HashMap::new())),
        (Type::Optional(of), Item::Optional(Some(item))) => check_item(of, item, symbols),
        (Type::Optional(_), Item::Optional(None)) => Ok(()),
        (Type::Map(_, of), Item::Map(entries)) => entries.iter().try_for_each(|(_, i)| check_item(of, i, &mut HashMap::new())),
        (Type::Any(d), Item::Tensor(t)) if *d == t.dtype => Ok(()),
        (ty, item) => Err(fault!("{ty} is needed, {} is given", item.kind())),
    }
}

/// Checks dtype, rank and dims of a tensor against a type, binding the symbols that stand alone.
fn check_tensor(want: &TensorType, t: &Tensor, symbols: &mut HashMap<&'static str, i64>) -> Result<(), Fault> {
    if want.dtype != t.dtype || want.dims.len() != t.dims.len() {
        return Err(fault!("{want} is needed, {}{:?} is given", t.dtype, t.dims));
    }
    for (axis, (d, &got)) in want.dims.iter().zip(&t.dims).enumerate() {
        let got = got as i64;
        match d.node() {
            ExprNode::Sym(s) => {
                let bound = *symbols.entry(s).or_insert(got);
                if bound != got {
                    return Err(fault!("dim {axis} is {got}, but '{s}' is {bound} elsewhere"));
                }
            }
            _ => match d.eval(&|e| match e.node() {
                ExprNode::Sym(s) => symbols.get(s).copied(),
                _ => None,
            }) {
                Some(n) if n != got => return Err(fault!("dim {axis} is {got}, it must be {n} ({d})")),
                _ => {} // an expression of symbols that are not bound yet
            },
        }
    }
    Ok(())
}

/// What a region needs at run time, made once: which values have their last use at each node.
struct RegionPlan {
    dead_after: Vec<Vec<Value>>,
}

struct Machine<'a> {
    graph: &'a Graph,
    observer: Observer<'a>,
    plans: HashMap<Region, Rc<RegionPlan>>,
    /// Values of the symbols in the dims of the inputs.
    symbols: HashMap<&'static str, i64>,
}

impl Machine<'_> {
    fn plan(&mut self, region: Region) -> Rc<RegionPlan> {
        if let Some(plan) = self.plans.get(&region) {
            return plan.clone();
        }
        let data = self.graph.region(region);
        let mut kept: BTreeSet<Value> = data.results.iter().copied().collect();
        let mut dead_after = vec![vec![]; data.nodes.len()];
        for (at, &n) in data.nodes.iter().enumerate().rev() {
            let node = self.graph.node(n);
            for &v in node.inputs.iter().flatten().chain(&node.outputs) {
                if kept.insert(v) {
                    dead_after[at].push(v);
                }
            }
        }
        let plan = Rc::new(RegionPlan { dead_after });
        self.plans.insert(region, plan.clone());
        plan
    }

    /// Runs a region on its arguments.
    fn region(&mut self, region: Region, args: Vec<Item>) -> Result<Vec<Item>, Problems> {
        let graph = self.graph;
        let data = graph.region(region);
        if data.params.len() != args.len() {
            let message = format!("takes {} values, {} are given", data.params.len(), args.len());
            return Err(Problems::one(format!("body '{}'", data.name), message, ""));
        }
        let plan = self.plan(region);
        let mut env: HashMap<Value, Item> = data.params.iter().copied().zip(args).collect();
        for (at, &n) in data.nodes.iter().enumerate() {
            let node = graph.node(n);
            let inputs: Vec<Option<Item>> = node.inputs.iter().map(|v| v.map(|v| lookup(graph, &env, v))).collect();
            let results = match &node.op {
                Op::If(_) => self.run_if(n, inputs)?,
                Op::Loop(op) => self.run_loop(n, op, inputs)?,
                Op::Scan(op) => self.run_scan(n, op, inputs)?,
                Op::SequenceMap(op) => self.run_sequence_map(n, op, inputs)?,
                Op::DimVector(op) => {
                    let number = |e: Expr| match e.node() {
                        ExprNode::Sym(s) => self.symbols.get(s).map_or(e, |&n| Expr::int(n)),
                        _ => e,
                    };
                    let exprs = op.exprs.iter().map(|e| e.map(&number)).collect();
                    apply(&DimVector { exprs, ..op.clone() }.into(), &[], &[], 1).map_err(|f| self.problem(n, f))?
                }
                op => {
                    let types: Vec<Option<&Type>> = node.inputs.iter().map(|v| v.map(|v| graph.ty(v))).collect();
                    apply(op, &inputs, &types, node.outputs.len()).map_err(|f| self.problem(n, f))?
                }
            };
            (self.observer)(n, &results);
            env.extend(node.outputs.iter().copied().zip(results));
            plan.dead_after[at].iter().for_each(|v| {
                env.remove(v);
            });
        }
        Ok(data.results.iter().map(|&v| lookup(graph, &env, v)).collect())
    }

    fn problem(&self, n: Node, fault: Fault) -> Problems {
        Problems::one(self.graph.describe(n), fault.0, "")
    }
}

fn lookup(graph: &Graph, env: &HashMap<Value, Item>, v: Value) -> Item {
    match &graph.value(v).def {
        Def::Constant(t) => Item::Tensor(t.clone()),
        Def::Param(..) | Def::Output(..) => env
            .get(&v)
            .unwrap_or_else(|| panic!("value %{} is used before it is computed: rejected by the verifier", v.0))
            .clone(),
    }
}

/// The fact of an actual value. `ty` is its static type, for values that are no tensors.
fn fact_of(item: &Item, ty: Option<&Type>) -> Result<Fact, Fault> {
    match (item, ty) {
        (Item::Tensor(t), _) => Ok(Fact::constant(t.clone())),
        (_, Some(ty)) => Ok(Fact::of(ty.clone())),
        (other, None) => Err(fault!("operand is {}, a tensor is needed", other.kind())),
    }
}

/// Applies an operator that has no regions to values. `types` are static types of the operands, where there are any.
fn apply(op: &Op, inputs: &[Option<Item>], types: &[Option<&Type>], outputs: usize) -> Result<Vec<Item>, Fault> {
    let mut facts = vec![];
    for (i, item) in inputs.iter().enumerate() {
        facts.push(item.as_ref().map(|item| fact_of(item, types.get(i).copied().flatten())).transpose()?);
    }
    let cx = Ctx { inputs: &facts, regions: &[], outputs };
    let outs = op.infer(&cx)?;
    if outs.len() < outputs {
        return Err(fault!("has {} results, {outputs} are asked for", outs.len()));
    }
    let outs: Vec<Type> = outs.into_iter().take(outputs).map(|f| f.ty).collect();
    let results: Vec<Item> = match op.meaning(&cx, &outs)? {
        Meaning::Steps { steps, outputs } => {
            let results = run_steps(&steps, &outputs, tensors(inputs)?)?;
            check_results(&outs, &results)?;
            results.into_iter().map(Item::Tensor).collect()
        }
        Meaning::Alias(operand) => vec![alias(&inputs[operand], &outs[0])?],
        Meaning::Decompose(build) => decompose(&*build, inputs)?,
        Meaning::Routine(routine) => {
            let results = routine::run(routine, &tensors(inputs)?, outputs)?;
            results.into_iter().map(Item::Tensor).collect()
        }
        Meaning::Control => return Err(fault!("a body is needed to run it")),
        Meaning::Host => crate::host::run(op, inputs)?,
    };
    if results.len() < outputs {
        return Err(fault!("has {} results, {outputs} are asked for", results.len()));
    }
    Ok(results.into_iter().take(outputs).collect())
}

fn tensors(inputs: &[Option<Item>]) -> Result<Vec<Option<Tensor>>, Fault> {
    let tensor = |(i, item): (usize, &Option<Item>)| match item {
        None => Ok(None),
        Some(Item::Tensor(t)) => Ok(Some(t.clone())),
        Some(other) => Err(fault!("operand {i} is {}, a tensor is needed", other.kind())),
    };
    inputs.iter().enumerate().map(tensor).collect()
}

/// The dims as numbers; every symbol must be gone.
fn concrete(dims: &[Expr]) -> Result<Vec<usize>, Fault> {
    let known = |d: &Expr| d.known().and_then(|n| usize::try_from(n).ok());
    dims.iter().map(|d| known(d).ok_or_else(|| fault!("dim {d} is not known at run time"))).collect()
}

/// Results must have the types that inference said; anything else is a bug of the operator.
fn check_results(outs: &[Type], results: &[Tensor]) -> Result<(), Fault> {
    for (k, (ty, t)) in outs.iter().zip(results).enumerate() {
        let Type::Tensor(want) = ty else { return Err(fault!("result {k} is a tensor, but inference said {ty}")) };
        let dims_fit = want.dims.iter().zip(&t.dims).all(|(d, &got)| d.known().is_none_or(|n| n == got as i64));
        if want.dtype != t.dtype || want.dims.len() != t.dims.len() || !dims_fit {
            return Err(fault!("internal error: result {k} is {}{:?}, but inference said {want}", t.dtype, t.dims));
        }
    }
    Ok(())
}

fn alias(operand: &Option<Item>, ty: &Type) -> Result<Item, Fault> {
    let (Some(Item::Tensor(t)), Type::Tensor(want)) = (operand, ty) else {
        return operand.clone().ok_or_else(|| fault!("operand of a view is missing"));
    };
    let dims = concrete(&want.dims)?;
    if want.dtype.bytes() != t.dtype.bytes() || crate::tensor::count(&dims) != t.len() {
        return Err(fault!("internal error: {}{:?} cannot be seen as {want}", t.dtype, t.dims));
    }
    Ok(Item::Tensor(Tensor { dtype: want.dtype, dims, data: t.data.clone() }))
}

/// Builds the decomposition over the operands as constants, and runs it.
fn decompose(
    build: &dyn Fn(&mut Builder, &[Option<Value>]) -> Result<Vec<Value>, Fault>,
    inputs: &[Option<Item>],
) -> Result<Vec<Item>, Fault> {
    let mut graph = Graph::new("");
    let operands: Vec<Option<Value>> = tensors(inputs)?.into_iter().map(|t| t.map(|t| graph.add_constant(t, ""))).collect();
    let mut builder = Builder::new(&mut graph, BTreeSet::new());
    let results = build(&mut builder, &operands)?;
    let nodes = std::mem::take(&mut builder.nodes);
    let main = &mut graph.regions[Graph::MAIN.index()];
    (main.nodes, main.results) = (nodes, results);
    let mut machine = Machine { graph: &graph, observer: &mut |_, _| {}, plans: HashMap::new(), symbols: HashMap::new() };
    machine.region(Graph::MAIN, vec![]).map_err(|p| fault!("{}", p.0.iter().map(inner).collect::<Vec<_>>().join("; ")))
}

// The place inside a decomposition has no name of its own: only its operator says something.
fn inner(p: &Problem) -> String {
    format!("in its {}: {}", p.at.split_whitespace().next().unwrap_or("body"), p.message)
}

/// Runs the steps of a node and picks its results.
fn run_steps(steps: &[Step], outputs: &[u32], mut sources: Vec<Option<Tensor>>) -> Result<Vec<Tensor>, Fault> {
    for step in steps {
        let made = run_step(step, &sources)?;
        sources.push(Some(made));
    }
    let pick = |&n: &u32| {
        let found = sources.get(n as usize).cloned().flatten();
        found.ok_or_else(|| fault!("internal error: result is source {n}, which does not exist"))
    };
    outputs.iter().map(pick).collect()
}

/// Runs one step on its sources.
pub fn run_step(step: &Step, sources: &[Option<Tensor>]) -> Result<Tensor, Fault> {
    rows::run(step, sources)
}

/// True if the values of a dtype have no 64-bit form of their own: they are moved around as numbers of a table.
fn opaque(dtype: DType) -> bool {
    matches!(dtype, DType::String | DType::C128)
}
