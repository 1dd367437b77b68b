//! Steps of a program: each task by its plan and builder, on the device or on the host beside it.

use super::{Emit, HostSide, Launch, Lowered, declare, prepare};
use crate::build::chain::MADE;
use crate::build::{self, Nest, Operand, gemv};
use crate::copies::Side;
use crate::loops::{Access, Kernel, Space};
use crate::plan::{Gemv, Plan, Tile};
use crate::target::TargetDesc;
use crate::tuning::{Room, Sizes, Tunable};
use crate::work::{Id, Item, Memory, Task, Work};
use crate::{chain, cost};
use infc_artifact::program::{self as art, Size, Step, SymbolSource, View};
use infc_ir::compute::{self, Step::Compute};
use infc_ir::expr::Node;
use infc_ir::{Expr, Scalar};

impl Emit<'_> {
    pub(super) fn block(&mut self, items: &[Item]) -> Vec<Step> {
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

    /// The number of a message; equal ones are one.
    pub(super) fn message(&mut self, node: &str, text: &str) -> u32 {
        let message = art::Message { node: node.to_owned(), text: text.to_owned() };
        let all = &mut self.out.program.messages;
        let at = all.iter().position(|m| *m == message).unwrap_or_else(|| {
            all.push(message);
            all.len() - 1
        });
        at as u32
    }

    pub(super) fn task(&mut self, task: &Task, steps: &mut Vec<Step>) {
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
    pub(super) fn why_on_host(&self, task: &Task, host: &HostSide<'_>) -> Option<String> {
        if self.work.on_host.contains(&task.out) {
            return Some("asked for".to_owned());
        }
        if self.attentions.contains_key(&task.out) {
            return None;
        }
        self.refusal(task, host)
    }

    /// Why the device cannot have the steps of a task, if it cannot.
    pub(super) fn refusal(&self, task: &Task, host: &HostSide<'_>) -> Option<String> {
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

    pub(super) fn single(&mut self, task: &Task, steps: &mut Vec<Step>) {
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
        for (plan, share) in by_rows(&step, &operands, plan) {
            let nest = build::build(&task.name, &step, &plan, &operands, self.target);
            // Constants that are stored narrower take less.
            let saved = nest.packed.iter().map(|p| {
                let whole = operands[p.source].constant.as_ref().map_or(0, |t| t.bytes().len());
                whole.saturating_sub(p.tensor.bytes().len())
            });
            let bytes = (bytes - Expr::from(saved.sum::<usize>())) * share;
            let note = Launch { node: task.node.clone(), operations: operations * share, bytes, tunable };
            let mut places = places.clone();
            let nest = self.twice(nest, task.out, &mut places);
            self.launch(nest, Some(plan), note, &places, steps);
        }
    }

    /// The kernel of a chain.
    pub(super) fn chain(&mut self, links: &[chain::Link], last: &Task, steps: &mut Vec<Step>) {
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
    pub(super) fn twice(&mut self, mut nest: Nest, out: Id, places: &mut Vec<(u32, Expr)>) -> Nest {
        if let Some(&rounded) = self.work.twice.get(&out) {
            let (operand, buffer, offset) = self.operand(rounded, Access::Write);
            nest.store_twice(operand.buffer.dtype);
            places.push((buffer, offset));
        }
        nest
    }

    /// The plan with the sizes that were chosen for the step, and which one of the steps with such a choice it is.
    pub(super) fn tuned(
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
    pub(super) fn border(&mut self, out: Id, steps: &mut Vec<Step>) {
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
    pub(super) fn borders_of_slices(&mut self, body: &[Item], counter: Expr, steps: &mut Vec<Step>) {
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
    pub(super) fn apart(&self, task: &Task) -> bool {
        task.sources.iter().all(|&s| s != task.out)
    }

    /// `places`: those of the sources that the nest numbers, then those of what it writes.
    pub(super) fn launch(&mut self, nest: Nest, plan: Option<Plan>, note: Launch, places: &[(u32, Expr)], steps: &mut Vec<Step>) {
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

/// The plans of a step: one, or several of which each is for other numbers of rows, where these are open and a narrow matrix is read another way for few. With each stands 1
/// where its number of rows is given, else 0.
fn by_rows(step: &compute::Step, operands: &[Operand], plan: Plan) -> Vec<(Plan, Expr)> {
    let one = Expr::int(1);
    let (Compute(c), Plan::Tile(tile)) = (step, &plan) else { return vec![(plan, one)] };
    let few = if tile.stored.is_some() { gemv::open(c, operands) } else { vec![] };
    let Some(most) = few.last() else { return vec![(plan, one)] };
    let rows = Expr::product(most.m.iter().map(|&a| c.dims[a]));
    let above = Some(most.rows);
    let more = (Plan::Tile(Tile { above, ..tile.clone() }), gemv::is_within(rows, most.rows, None));
    let of = |g: Gemv| {
        let share = gemv::is_within(rows, g.above.unwrap_or(0), Some(g.rows));
        (Plan::Gemv(g), share)
    };
    few.into_iter().map(of).chain([more]).collect()
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
