//! Bodies of If, Loop, Scan and SequenceMap: graphs to regions that see nothing of the outside (the convention is in
//! `infc_ir::op::control`).

use crate::import::{Importer, Named, Scope};
use crate::nodes::{Parts, Stop, node_name};
use crate::proto::{GraphProto, NodeProto};
use crate::versions;
use infc_ir::graph::{Def, Requirement, SourceNode};
use infc_ir::op::{self, Attr};
use infc_ir::{DType, Expr, Fault, Graph, Op, Region, TensorType, Type, Value, fault};
use std::collections::{BTreeSet, HashSet};

/// Ranks that are tried for elements of sequences of which nothing is known: 0 to 5.
const RANKS: usize = 6;

/// So many such sequences of one Loop are tried.
const MOST_OPEN: usize = 2;

/// A body with what it captures, as values of the scope around it.
pub struct Body {
    /// The body.
    pub region: Region,
    /// Operands after the declared ones.
    pub captured: Vec<Value>,
}

impl<'m> Importer<'m> {
    /// A node with bodies.
    pub fn control(&mut self, n: &NodeProto, version: i64, inputs: Vec<Option<Value>>, parts: Parts) -> Result<Vec<Value>, Stop> {
        match (n.domain(), n.op_type()) {
            ("" | "ai.onnx", "If") => self.branches(n, version, inputs, parts),
            ("" | "ai.onnx", "Loop" | "Scan" | "SequenceMap") => self.repeated(n, version, inputs, parts),
            _ => Err(fault!("attribute '{}' is a graph, which this operator cannot have", parts.graphs[0].0).into()),
        }
    }

    fn branches(
        &mut self,
        n: &NodeProto,
        version: i64,
        inputs: Vec<Option<Value>>,
        mut parts: Parts,
    ) -> Result<Vec<Value>, Stop> {
        let mut graph = |name: &str| match parts.graphs.iter().position(|(n, _)| n == name) {
            Some(i) => Ok(parts.graphs.swap_remove(i).1),
            None => Err(fault!("attribute '{name}' is required")),
        };
        let (then, other) = (graph("then_branch")?, graph("else_branch")?);
        let cond = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
        let known = self.known_condition(cond);
        // A branch that is never taken may be wrong (exporters leave such behind): its problems are put aside.
        let (mark, choices) = (self.problems.len(), self.undecided.len());
        let first = self.body(&then, &[], &[]);
        let then_problems = self.problems.split_off(mark);
        let seen = first.as_ref().map_or(vec![], |b| b.captured.clone());
        let second = self.body(&other, &[], &seen);
        let else_problems = self.problems.split_off(mark);
        let choices = choices..self.undecided.len();
        let equal = |a: &Body, b: &Body| {
            let types = |r: Region| self.graph.region(r).results.iter().map(|&v| self.graph.ty(v).clone()).collect::<Vec<_>>();
            types(a.region) == types(b.region)
        };
        let inline = match (known, &first, &second) {
            (Some(taken), None, _) | (Some(taken), _, None) => Some(taken),
            (Some(taken), Some(a), Some(b)) if !equal(a, b) || !choices.is_empty() => Some(taken),
            (None, None, _) | (None, _, None) => {
                self.problems.extend(then_problems);
                self.problems.extend(else_problems);
                return Err(Stop::Unknown);
            }
            (_, Some(_), Some(_)) => None,
        };
        if let Some(taken) = inline {
            // What was chosen in bodies that go away makes no difference.
            self.stale.extend(choices);
            return self.inline(if taken { &then } else { &other });
        }
        let (Some(first), Some(second)) = (first, second) else { unreachable!("both are there") };
        for &v in &second.captured[first.captured.len()..] {
            let ty = self.graph.ty(v).clone();
            let name = self.graph.value(v).name.clone();
            self.graph.add_param(first.region, ty, name);
        }
        let operands = std::iter::once(Some(cond)).chain(second.captured.iter().copied().map(Some)).collect();
        let regions = vec![first.region, second.region];
        let differ = self.types_differ(first.region, second.region);
        let taken = match (known, differ) {
            (_, false) => return self.apply(n, "", version, operands, parts.attrs, regions),
            (Some(taken), true) => taken,
            (None, true) => {
                let at = self.describe(n);
                let open = self.truth(cond, 16).is_none();
                if open && let Some(lifted) = self.lift([first.region, second.region], &at) {
                    let values = self.apply(n, "", version, operands, parts.attrs, regions)?;
                    self.lifted(&values, &lifted, &at);
                    return Ok(values);
                }
                self.choose(n, cond)?.ok_or(Stop::Unknown)? // the next attempt knows more
            }
        };
        self.stale.extend(choices);
        let results = self.inline(if taken { &then } else { &other })?;
        if self.expected.iter().any(|e| e.0 == cond) { self.expect(n, version, results, cond, taken) } else { Ok(results) }
    }

    /// Results of a branch that is taken whatever the condition is: an error at run time unless it is as expected.
    fn expect(&mut self, n: &NodeProto, version: i64, results: Vec<Value>, cond: Value, taken: bool) -> Result<Vec<Value>, Stop> {
        let source = SourceNode { name: node_name(n).to_owned(), op: n.op_type().to_owned(), opset: version };
        let origin = BTreeSet::from([self.graph.add_source(source)]);
        let mut b = op::Builder::new(&mut self.graph, origin);
        let number = b.op(op::Cast { round_mode: "up".into(), saturate: 1, to: DType::I64.onnx().into() }, &[cond])?;
        let text = format!("its condition is {}, but the rest of the model fits the other branch only", !taken);
        let expect = op::Expect { text, value: i64::from(taken) };
        let results = results.into_iter().map(|v| b.op(expect.clone(), &[v, number])).collect::<Result<Vec<_>, _>>()?;
        let made = b.nodes;
        let region = self.scope().region;
        self.graph.regions[region.index()].nodes.extend(made);
        Ok(results)
    }

    /// The branch of an If that only the rest of the model decides; `None` if this attempt has no choice for it.
    fn choose(&mut self, n: &NodeProto, cond: Value) -> Result<Option<bool>, Stop> {
        // What follows from sizes is required before a run; in a body, which may not run, it is checked there like data.
        let main = self.scope().region == Graph::MAIN;
        let (condition, one) = (if main { self.truth(cond, 16) } else { None }, Expr::int(1));
        let same = self.requires.iter().find(|r| Some(r.left) == condition).map(|r| r.right == one);
        if let Some(same) = same.or_else(|| Some(self.expected.iter().find(|e| e.0 == cond)?.1)) {
            return Ok(Some(same));
        }
        let at = self.describe(n);
        self.undecided.push(at.clone());
        let Some(&taken) = self.choices.get(self.undecided.len() - 1) else { return Ok(None) };
        let text = format!(
            "its condition is {} for these sizes, but the rest of the model fits the other branch only",
            if taken { "false" } else { "true" }
        );
        match condition {
            None => self.expected.push((cond, taken)),
            Some(left) => {
                let right = if taken { one } else { Expr::int(0) };
                self.requires.push(Requirement { left, right, or_one: false, at, text, assumed: false });
            }
        }
        Ok(Some(taken))
    }

    /// A condition that follows from sizes, as a number that is 1 where it holds and else 0.
    fn truth(&self, v: Value, depth: usize) -> Option<Expr> {
        let (zero, one) = (Expr::int(0), Expr::int(1));
        let size = |v: Value| op::fact(&self.graph, v).ints.filter(|i| i.len() == 1).map(|i| i[0]);
        let nonzero = |e: Expr| e.max(zero - e).min(one);
        let Def::Output(n, _) = self.graph.value(v).def else { return size(v).map(nonzero) };
        let node = self.graph.node(n);
        let operand = |k: usize| node.inputs.get(k).copied().flatten();
        let deeper = |k: usize| self.truth(operand(k)?, depth.checked_sub(1)?);
        let sizes = || Some((size(operand(0)?)?, size(operand(1)?)?));
        let less = |a: Expr, b: Expr| (b - a).max(zero).min(one);
        match &node.op {
            Op::Equal(_) => sizes().map(|(a, b)| one - nonzero(a - b)),
            Op::Less(_) => sizes().map(|(a, b)| less(a, b)),
            Op::Greater(_) => sizes().map(|(a, b)| less(b, a)),
            Op::LessOrEqual(_) => sizes().map(|(a, b)| one - less(b, a)),
            Op::GreaterOrEqual(_) => sizes().map(|(a, b)| one - less(a, b)),
            Op::Not(_) => Some(one - deeper(0)?),
            Op::And(_) => Some(deeper(0)?.min(deeper(1)?)),
            Op::Or(_) => Some(deeper(0)?.max(deeper(1)?)),
            Op::Cast(_) | Op::Identity(_) | Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => {
                size(v).map(nonzero).or_else(|| deeper(0))
            }
            _ => size(v).map(nonzero),
        }
    }

    /// Do the results of two branches differ in more than their dims?
    fn types_differ(&self, a: Region, b: Region) -> bool {
        let (a, b) = (&self.graph.region(a).results, &self.graph.region(b).results);
        a.len() == b.len() && a.iter().zip(b).any(|(&a, &b)| self.graph.ty(a).join(self.graph.ty(b), &mut |_, x, _| x).is_none())
    }

    /// The value of a condition, if it is known now.
    fn known_condition(&self, cond: Value) -> Option<bool> {
        let fact = op::fact(&self.graph, cond);
        let known = fact.known.filter(|t| t.dtype != DType::String && t.len() == 1).map(|t| t.to_ints()[0] != 0);
        known.or_else(|| Some(self.truth(cond, 16)?.known()? != 0))
    }

    /// The nodes of a branch put where its If stands.
    fn inline(&mut self, g: &GraphProto) -> Result<Vec<Value>, Stop> {
        let region = self.scope().region;
        let mut scope = Scope::new(region, false);
        scope.prefix = self.scope().prefix.clone();
        self.scopes.push(scope);
        let results = self.contents(g);
        self.scopes.pop();
        results.ok_or(Stop::Unknown)
    }

    fn repeated(
        &mut self,
        n: &NodeProto,
        version: i64,
        mut inputs: Vec<Option<Value>>,
        parts: Parts,
    ) -> Result<Vec<Value>, Stop> {
        let [(name, g)] = &parts.graphs[..] else {
            return Err(fault!("has {} bodies, one is needed", parts.graphs.len()).into());
        };
        if name != "body" {
            return Err(fault!("attribute '{name}' is a graph, which this operator cannot have").into());
        }
        let mut attrs = parts.attrs;
        if n.op_type() == "Scan" && version < 9 {
            return self.scan_8(n, &inputs, attrs, g);
        }
        let mut declared = g.input.len();
        if n.op_type() == "Loop" && inputs.len() < declared {
            inputs.resize(declared, None); // max_trip_count and cond may be left out
        }
        declared = declared.min(inputs.len());
        let operand = |i: usize| inputs.get(i).copied().flatten().map(|v| self.graph.ty(v).clone());
        let types: Vec<Option<Type>> = (0..inputs.len()).map(operand).collect();
        let params = body_params(n.op_type(), &attrs, &types)?;
        if params.len() != g.input.len() {
            return Err(fault!("has {} operands, its body takes {}", inputs.len(), g.input.len()).into());
        }
        let body = match n.op_type() {
            "Loop" => self.body_of_loop(g, &params),
            _ => self.body(g, &params, &[]),
        };
        let body = body.ok_or(Stop::Unknown)?;
        inputs.truncate(declared);
        inputs.extend(body.captured.iter().copied().map(Some));
        if !body.captured.is_empty() {
            attrs.set("captures", Attr::Int(body.captured.len() as i64));
        }
        let results = self.graph.region(body.region).results.len();
        let carried = match n.op_type() {
            "Loop" => declared - 2,
            "Scan" => match attrs.get("num_scan_inputs") {
                Some(Attr::Int(m)) => declared.saturating_sub(usize::try_from(*m).unwrap_or(0)),
                _ => return Err(fault!("attribute 'num_scan_inputs' is required").into()),
            },
            _ => 0,
        };
        let lead = usize::from(n.op_type() == "Loop");
        if results < carried + lead {
            return Err(fault!("its body has {results} results, at least {} are needed", carried + lead).into());
        }
        if n.op_type() != "SequenceMap" {
            let first = if n.op_type() == "Loop" { 2 } else { 0 };
            self.settle(node_name(n), body.region, first, lead, carried)?;
        }
        self.apply(n, "", version, inputs, attrs, vec![body.region])
    }

    /// A body whose carried sequences may be empty at the start. Nothing says of what rank their elements are then but the body itself: where it
    /// reads some, it is tried with one rank after the other, and right is the one of what it puts in.
    fn body_of_loop(&mut self, g: &GraphProto, params: &[Type]) -> Option<Body> {
        let empty = |t: &Type| match t {
            Type::Sequence(e) if matches!(**e, Type::Nothing(_)) => e.dtype(),
            _ => None,
        };
        let open: Vec<(usize, DType)> = (0..params.len()).filter_map(|k| Some((k, empty(&params[k])?))).collect();
        let (mark, choices) = (self.problems.len(), self.undecided.len());
        let body = self.body(g, params, &[]);
        if body.is_some() || !(1..=MOST_OPEN).contains(&open.len()) {
            return body;
        }
        let told = self.problems.split_off(mark);
        for way in 0..RANKS.pow(open.len() as u32) {
            // What was chosen on ways that led nowhere makes no difference.
            self.stale.extend(choices..self.undecided.len());
            let mut params = params.to_vec();
            for (place, &(k, dtype)) in open.iter().enumerate() {
                let dims = (0..way / RANKS.pow(place as u32) % RANKS)
                    .map(|axis| self.fresh_symbol(&format!("_{}.{axis}", g.input[k].name())));
                params[k] = Type::Sequence(Box::new(Type::tensor(dtype, dims.collect::<Vec<_>>())));
            }
            let body = self.body(g, &params, &[]);
            self.problems.truncate(mark);
            let fits = |b: &Body| {
                // Of a Loop, results are the condition and what is carried; parameters are the turn, the condition and what is carried.
                let fits = |k: usize| {
                    let result = self.graph.ty(*self.graph.region(b.region).results.get(k - 1)?);
                    params[k].join(result, &mut |_, a, _| a)
                };
                let of_one_rank = |t| matches!(t, Type::Sequence(e) if matches!(*e, Type::Tensor(_)));
                open.iter().all(|&(k, _)| fits(k).is_some_and(of_one_rank))
            };
            if body.as_ref().is_some_and(fits) {
                return body;
            }
        }
        self.stale.extend(choices..self.undecided.len());
        self.problems.extend(told);
        None
    }

    /// Carried values may change their dims from turn to turn: those dims of the parameters become symbols, until the types
    /// that come out fit those that go in.
    pub fn settle(&mut self, name: &str, region: Region, first: usize, lead: usize, carried: usize) -> Result<(), Stop> {
        let mut fresh: HashSet<Expr> = HashSet::new();
        loop {
            let mut changed = false;
            for k in 0..carried {
                let (param, result) = (self.graph.region(region).params[first + k], self.graph.region(region).results[lead + k]);
                let (now, next) = (self.graph.ty(param).clone(), self.graph.ty(result).clone());
                let what = format!(
                    "{name}.{}",
                    if self.graph.value(param).name.is_empty() { k.to_string() } else { self.graph.value(param).name.clone() }
                );
                let wider = self.generalise(&now, &next, &what, &mut fresh)?;
                if wider != now {
                    self.graph.values[param.index()].ty = wider;
                    changed = true;
                }
            }
            if !changed {
                return Ok(());
            }
            retype(&mut self.graph, region)?;
        }
    }

    /// `now` with symbols where `next` differs.
    fn generalise(&mut self, now: &Type, next: &Type, what: &str, fresh: &mut HashSet<Expr>) -> Result<Type, Fault> {
        let mut symbol = |axis: usize, a: Expr, _: Expr| {
            if fresh.contains(&a) {
                return a;
            }
            // Like the names of all dims that only data tells.
            let symbol = self.fresh_symbol(&format!("_{what}.{axis}"));
            fresh.insert(symbol);
            symbol
        };
        let ty = now.join(next, &mut symbol);
        ty.ok_or_else(|| fault!("carried value '{what}' is {now} at the start and {next} after a turn"))
    }

    /// A body as a region of its own. `seen` are values that another body of the node has captured already.
    pub fn body(&mut self, g: &GraphProto, params: &[Type], seen: &[Value]) -> Option<Body> {
        let region = self.graph.add_region(g.name());
        let prefix = self.scope().prefix.clone();
        let mut scope = Scope::new(region, true);
        scope.prefix = prefix.clone();
        self.scopes.push(scope);
        for (input, ty) in g.input.iter().zip(params) {
            let v = self.graph.add_param(region, ty.clone(), format!("{prefix}{}", input.name()));
            self.bind(input.name(), Named::Value(v), &format!("body '{}'", g.name()));
        }
        let level = self.scopes.len() - 1;
        for &v in seen {
            self.capture(level, v);
        }
        let results = self.contents(g);
        let scope = self.scopes.pop()?;
        self.graph.regions[region.index()].results = results?;
        Some(Body { region, captured: scope.captures.into_iter().map(|(outer, _)| outer).collect() })
    }

    /// Constants, nodes and results of a body, in the scope that is current.
    pub fn contents(&mut self, g: &GraphProto) -> Option<Vec<Value>> {
        let mark = self.problems.len();
        self.constants(g);
        self.declare(g);
        self.nodes(&g.node);
        let mut results = Some(vec![]);
        for o in &g.output {
            match self.lookup(o.name()) {
                Some(Named::Value(v)) => results.iter_mut().for_each(|r| r.push(v)),
                Some(Named::Unknown) => results = None,
                Some(Named::Absent) | None => {
                    self.problem(format!("body '{}'", g.name()), format!("its result '{}' is not computed", o.name()), "");
                    results = None;
                }
            }
        }
        if self.problems.len() > mark { None } else { results }
    }
}

/// Types of the parameters of a body for operands of the given types.
fn body_params(op: &str, attrs: &op::Attrs, operands: &[Option<Type>]) -> Result<Vec<Type>, Fault> {
    let needed = |i: usize| operands[i].clone().ok_or_else(|| fault!("operand {i} is missing"));
    match op {
        "Loop" => {
            let lead = [Type::tensor(DType::I64, []), Type::tensor(DType::Bool, [])];
            let carried: Result<Vec<Type>, Fault> = (2..operands.len()).map(needed).collect();
            Ok(lead.into_iter().chain(carried?).collect())
        }
        "Scan" => {
            let Some(Attr::Int(m)) = attrs.get("num_scan_inputs") else {
                return Err(fault!("attribute 'num_scan_inputs' is required"));
            };
            let m = usize::try_from(*m).ok().filter(|&m| m <= operands.len());
            let states = operands.len() - m.ok_or_else(|| fault!("attribute 'num_scan_inputs' exceeds the operands"))?;
            let axes = match attrs.get("scan_input_axes") {
                Some(Attr::Ints(a)) => a.clone(),
                _ => vec![],
            };
            let slice = |i: usize| match needed(i)? {
                Type::Tensor(t) if i >= states => {
                    let axis = op::normal_axis(axes.get(i - states).copied().unwrap_or(0), t.rank())?;
                    let dims = t.dims.iter().enumerate().filter(|(k, _)| *k != axis).map(|(_, d)| *d);
                    Ok(Type::Tensor(TensorType::new(t.dtype, dims)))
                }
                ty if i >= states => Err(fault!("operand {i} is {ty}, a tensor is needed")),
                ty => Ok(ty),
            };
            (0..operands.len()).map(slice).collect()
        }
        _ => {
            let element = |i: usize| {
                Ok(match needed(i)? {
                    Type::Sequence(t) => *t,
                    ty => ty,
                })
            };
            (0..operands.len()).map(element).collect()
        }
    }
}

/// Infers the types of a region again, after those of its parameters have changed.
pub fn retype(graph: &mut Graph, region: Region) -> Result<(), Fault> {
    for n in graph.region(region).nodes.clone() {
        let node = graph.node(n).clone();
        let types: Vec<Option<Type>> = node.inputs.iter().map(|v| v.map(|v| graph.ty(v).clone())).collect();
        for (r, &inner) in node.regions.iter().enumerate() {
            let params = graph.region(inner).params.clone();
            let captures = params.len() - declared_params(&node.op, &params, node.inputs.len());
            let declared = types.len() - captures;
            let mut next = match &node.op {
                Op::If(_) => vec![],
                op => body_params(op.name(), &op.attrs(), &types[..declared])?,
            };
            next.extend(types[declared..].iter().flatten().cloned());
            let carried = matches!(node.op, Op::Loop(_) | Op::Scan(_));
            for (&p, ty) in params.iter().zip(next) {
                // What was generalised stays so.
                let now = graph.ty(p).clone();
                graph.values[p.index()].ty = if carried { keep_symbols(&now, &ty) } else { ty };
            }
            retype(graph, inner).map_err(|e| fault!("{} (body {r} of {})", e.0, graph.describe(n)))?;
        }
        let facts = op::infer(graph, &node.op, &node.inputs, &node.regions, node.outputs.len());
        let facts = facts.map_err(|e| fault!("{}: {e}", graph.describe(n)))?;
        for (v, f) in node.outputs.iter().zip(facts) {
            versions::set_fact(graph, *v, f);
        }
    }
    Ok(())
}

/// Number of parameters that are not captured values.
pub fn declared_params(op: &Op, params: &[Value], operands: usize) -> usize {
    match op {
        Op::If(_) => params.len() - (operands - 1),
        Op::Loop(l) => params.len() - l.captures as usize,
        Op::Scan(s) => params.len() - s.captures as usize,
        Op::SequenceMap(s) => params.len() - s.captures as usize,
        _ => params.len(),
    }
}

fn keep_symbols(now: &Type, next: &Type) -> Type {
    match (now, next) {
        (Type::Tensor(a), Type::Tensor(b)) if a.rank() == b.rank() => {
            let dims = a.dims.iter().zip(&b.dims).map(|(&a, &b)| if a.known().is_none() { a } else { b });
            Type::tensor(b.dtype, dims.collect::<Vec<_>>())
        }
        (Type::Any(_), _) => now.clone(),
        (Type::Sequence(a), Type::Sequence(b)) => Type::Sequence(Box::new(keep_symbols(a, b))),
        (Type::Optional(a), Type::Optional(b)) => Type::Optional(Box::new(keep_symbols(a, b))),
        (Type::Optional(a), b) => Type::Optional(Box::new(keep_symbols(a, b))),
        _ => next.clone(),
    }
}
