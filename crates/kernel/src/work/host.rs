//! Work for the host: values that are no flat tensors live in slots, and routines of `infc-host` run between the native steps.
//!
//! Strings are moved natively: a step that only moves them (Reshape, Gather, Concat, Where, ...) runs on their positions, and one routine
//! picks them. A tensor that comes out of a slot tells its dims first: the program sets symbols from them, as it does for all sizes that
//! only data tells.

use super::{Id, Item, Lower, Memory, Task};
use infc_host::{Routine, Value as HostValue};
use infc_ir::compute::{Compute, Step};
use infc_ir::expr::Node as ExprNode;
use infc_ir::graph::{Def, Node, Value};
use infc_ir::op::SequenceMap;
use infc_ir::scalar::{Kind, Scalar};
use infc_ir::{DType, Expr, Tensor, TensorType, Type, host};

/// A place for a value of the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// What is in it.
    pub ty: Type,
    /// Where that comes from.
    pub memory: SlotMemory,
}

/// Where the value of a slot comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum SlotMemory {
    /// Model input of that number.
    Input(u32),
    /// Model output of that number.
    Output(u32),
    /// Known.
    Constant(HostValue),
    /// Made by a step.
    Temp,
}

/// An operand or result that is a tensor in memory, or a value in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A tensor.
    Tensor(Id),
    /// The number of a slot.
    Slot(u32),
}

/// The type of a tensor that lies in memory: all but those of strings.
pub fn flat(ty: &Type) -> Option<&TensorType> {
    ty.as_tensor().filter(|t| t.dtype != DType::String)
}

/// A node under lowering: where its items go, and what they are called.
pub(super) struct At<'a> {
    pub describe: &'a str,
    pub items: &'a mut Vec<Item>,
}

impl Lower<'_> {
    /// A new slot.
    pub(super) fn slot(&mut self, ty: Type, memory: SlotMemory) -> u32 {
        self.work.slots.push(Slot { ty, memory });
        self.work.slots.len() as u32 - 1
    }

    /// A value as an operand of a host step.
    pub(super) fn arg(&mut self, v: Value) -> Option<Arg> {
        if let Some(id) = self.get(v) {
            return Some(Arg::Tensor(id));
        }
        if let Some(&slot) = self.slots.get(&v) {
            return Some(Arg::Slot(slot));
        }
        let Def::Constant(t) = &self.graph.value(v).def else { return None };
        let value = host::to_host_tensor(t).ok()?;
        let slot = self.slot(self.graph.ty(v).clone(), SlotMemory::Constant(value.into()));
        self.slots.insert(v, slot);
        Some(Arg::Slot(slot))
    }

    /// What `v` is from here on.
    pub(super) fn stands_for(&mut self, v: Value, arg: Arg) {
        match arg {
            Arg::Tensor(id) => drop(self.map.insert(v, id)),
            Arg::Slot(slot) => drop(self.slots.insert(v, slot)),
        }
    }

    /// Calls a routine.
    pub(super) fn call(&mut self, routine: Routine, inputs: Vec<Option<Arg>>, outputs: Vec<Arg>, at: &mut At) {
        let tensors = inputs.iter().flatten().chain(&outputs);
        let tensors = tensors.filter_map(|a| if let Arg::Tensor(id) = a { Some(*id) } else { None });
        self.work.shared.extend(tensors);
        at.items.push(Item::Host { routine, inputs, outputs, node: at.describe.to_owned() });
    }

    /// Calls a routine whose results are these values of the graph.
    pub(super) fn call_for(
        &mut self,
        routine: Routine,
        inputs: Vec<Option<Arg>>,
        results: &[Value],
        at: &mut At,
    ) -> Result<(), String> {
        let (mut outputs, mut open) = (vec![], vec![]);
        for &v in results {
            let (ty, name) = (self.graph.ty(v).clone(), self.graph.value(v).name.clone());
            let known = self.unknown(std::slice::from_ref(&ty)).is_empty();
            outputs.push(match flat(&ty) {
                Some(t) if known => Arg::Tensor(self.work.add(t.clone(), Memory::Temp, name)),
                _ => {
                    let slot = self.slot(ty.clone(), SlotMemory::Temp);
                    if ty.as_tensor().is_some() {
                        open.push((v, slot));
                    }
                    Arg::Slot(slot)
                }
            });
        }
        // A routine may have results that nobody asks for.
        let all = routine.arity().2.max(outputs.len());
        let mut made = outputs.clone();
        while made.len() < all {
            made.push(Arg::Slot(self.slot(Type::Any(DType::String), SlotMemory::Temp)));
        }
        self.call(routine, inputs, made, at);
        results.iter().zip(outputs).for_each(|(&v, out)| self.stands_for(v, out));
        for (v, slot) in open {
            self.dims_of(v, slot, at)?;
            if let Some(t) = flat(self.graph.ty(v)).cloned() {
                let id = self.work.add(t, Memory::Temp, &self.graph.value(v).name);
                self.call(Routine::Identity, vec![Some(Arg::Slot(slot))], vec![Arg::Tensor(id)], at);
                self.slots.remove(&v);
                self.map.insert(v, id);
            }
        }
        Ok(())
    }

    /// Sets the symbols that stand for dims of a tensor in a slot.
    fn dims_of(&mut self, v: Value, slot: u32, at: &mut At) -> Result<(), String> {
        let ty = self.graph.ty(v).clone();
        if self.unknown(std::slice::from_ref(&ty)).is_empty() {
            return Ok(());
        }
        let dims = ty.as_tensor().map_or(vec![], |t| t.dims.clone());
        let shape = TensorType::new(DType::I64, [Expr::from(dims.len())]);
        let shape = self.work.add(shape, Memory::Temp, "");
        self.call(Routine::Shape, vec![Some(Arg::Slot(slot))], vec![Arg::Tensor(shape)], at);
        for (axis, &d) in dims.iter().enumerate() {
            let open = matches!(d.node(), ExprNode::Sym(s) if !self.bound.contains(s));
            if open {
                self.bind(d, shape, Expr::from(axis), None, at.items);
            }
        }
        match self.unknown(std::slice::from_ref(&ty))[..] {
            [] => Ok(()),
            [d, ..] => Err(format!("the size {d} of its result depends on data in a way that compiled code does not follow yet")),
        }
    }

    /// A node whose meaning is work for the host.
    pub(super) fn host(&mut self, n: Node, at: &mut At) -> Result<(), String> {
        let node = self.graph.node(n);
        let dtypes: Vec<_> = node.inputs.iter().map(|v| v.and_then(|v| self.graph.ty(v).dtype())).collect();
        let (routine, taken) = host::routine(&node.op, &dtypes).map_err(|f| f.0)?;
        let inputs = node.inputs[..taken].iter().enumerate().map(|(k, v)| match v {
            None => Ok(None),
            Some(v) => self.arg(*v).map(Some).ok_or_else(|| format!("operand {k} has no value")),
        });
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        self.call_for(routine, inputs, &node.outputs, at)
    }

    /// A value with another name, of which only dims may differ.
    pub(super) fn same_value(&mut self, from: Value, to: Value, at: &mut At) -> Result<(), String> {
        let arg = self.arg(from).ok_or("its operand has no value")?;
        match (self.graph.ty(from).as_tensor(), self.graph.ty(to).as_tensor()) {
            (Some(a), Some(b)) if a.dims != b.dims => {
                let places = self.places(&b.dims.clone(), Expr::int(0), at)?;
                self.call_for(Routine::Pick, vec![Some(Arg::Tensor(places)), Some(arg)], &[to], at)
            }
            _ => {
                self.stands_for(to, arg);
                Ok(())
            }
        }
    }

    /// The positions of the elements of a tensor of these dims, counted from `first`.
    fn places(&mut self, dims: &[Expr], first: Expr, at: &mut At) -> Result<Id, String> {
        let step = Step::Compute(Compute::map(dims, |axes| {
            let place = axes.iter().zip(dims).fold(Expr::int(0), |at, (&i, &d)| at * d + i);
            Scalar::index(place + first)
        }));
        self.task(step, &[], "places", at.describe, at.items)
    }

    /// Positions in the place of strings: operands that are strings become tensors of the places of their elements, all counted on.
    /// The table that the places are in, one string more than all of them: the empty one.
    pub(super) fn as_places(
        &mut self,
        n: Node,
        sources: &mut [Option<Id>],
        at: &mut At,
    ) -> Result<(Vec<Option<Arg>>, Expr), String> {
        let (mut table, mut total) = (vec![], Expr::int(0));
        for (source, v) in sources.iter_mut().zip(&self.graph.node(n).inputs) {
            let Some(v) = *v else { continue };
            let Some(t) = self.graph.ty(v).as_tensor().filter(|t| t.dtype == DType::String).cloned() else { continue };
            table.push(Some(self.arg(v).ok_or("an operand has no value")?));
            *source = Some(self.places(&t.dims, total, at)?);
            total = total + Expr::product(t.dims.iter().copied());
        }
        let nothing = host::to_host_tensor(&Tensor::from_strings([1], [Default::default()])).map_err(|f| f.0)?;
        let nothing = self.slot(Type::tensor(DType::String, [Expr::int(1)]), SlotMemory::Constant(nothing.into()));
        table.push(Some(Arg::Slot(nothing)));
        Ok((table, total))
    }

    /// The step with positions in the place of strings.
    pub(super) fn on_places(step: Step, total: Expr) -> Step {
        step.map(&mut |s| {
            s.rewrite(&mut |x| match x.kind() {
                Kind::Read { source, index, guard: None } if x.dtype() == DType::String => {
                    Scalar::read(DType::I64, *source as usize, index.iter().copied())
                }
                Kind::Const(_) if x.dtype() == DType::String => Scalar::index(total),
                _ => x,
            })
        })
    }

    /// A result that is strings, from the places of its elements.
    pub(super) fn picked_strings(&mut self, places: Id, table: &[Option<Arg>], result: Value, at: &mut At) -> Result<(), String> {
        let inputs = [Some(Arg::Tensor(places))].into_iter().chain(table.iter().copied()).collect();
        self.call_for(Routine::Pick, inputs, &[result], at)
    }

    /// Concat of strings.
    pub(super) fn join_strings(&mut self, n: Node, axis: i64, at: &mut At) -> Result<(), String> {
        let node = self.graph.node(n);
        let inputs: Option<Vec<_>> = node.inputs.iter().flatten().map(|&v| self.arg(v).map(Some)).collect();
        self.call_for(Routine::Join { axis }, inputs.ok_or("an operand has no value")?, &node.outputs, at)
    }

    /// A place for the result of a body that is run more than once, or not at all.
    pub(super) fn out_of_body(&mut self, v: Value) -> Arg {
        let ty = self.graph.ty(v).clone();
        let out = match flat(&ty) {
            Some(t) => Arg::Tensor(self.work.add(t.clone(), Memory::Temp, &self.graph.value(v).name)),
            None => Arg::Slot(self.slot(ty, SlotMemory::Temp)),
        };
        self.stands_for(v, out);
        out
    }

    /// Puts a value into the place of a result.
    pub(super) fn put(&mut self, v: Value, out: Arg, at: &mut At) -> Result<(), String> {
        match (self.arg(v).ok_or("a body's result has no value")?, out) {
            (Arg::Tensor(id), Arg::Tensor(out)) => self.copy_into(id, out, at.describe, at.items),
            (Arg::Slot(_), Arg::Tensor(_)) => return Err("a body's result is no tensor of known rank".into()),
            (from, out) => self.call(Routine::Identity, vec![Some(from)], vec![out], at),
        }
        Ok(())
    }

    /// Puts values into slots at once: none of them is overwritten before it is read.
    pub(super) fn put_all(&mut self, from: &[Arg], to: &[u32], at: &mut At) {
        let clash = from.iter().any(|f| matches!(f, Arg::Slot(s) if to.contains(s)));
        let aside: Vec<Arg> = match clash {
            false => from.to_vec(),
            true => {
                let mut aside = vec![];
                for (&f, &slot) in from.iter().zip(to) {
                    let ty = self.work.slots[slot as usize].ty.clone();
                    let temp = Arg::Slot(self.slot(ty, SlotMemory::Temp));
                    self.call(Routine::Identity, vec![Some(f)], vec![temp], at);
                    aside.push(temp);
                }
                aside
            }
        };
        for (&f, &slot) in aside.iter().zip(to) {
            self.call(Routine::Identity, vec![Some(f)], vec![Arg::Slot(slot)], at);
        }
    }

    /// The strings of a tensor of these dims at one place of an axis, which `to` stands for.
    pub(super) fn strings_at(
        &mut self,
        of: Arg,
        dims: &[Expr],
        (axis, place): (usize, Expr),
        to: Value,
        at: &mut At,
    ) -> Result<(), String> {
        let mut rest = dims.to_vec();
        rest.remove(axis);
        let step = Step::Compute(Compute::map(&rest, |axes| {
            let mut index = axes.to_vec();
            index.insert(axis, place);
            Scalar::index(index.iter().zip(dims).fold(Expr::int(0), |at, (&i, &d)| at * d + i))
        }));
        let places = self.task(step, &[], "places", at.describe, at.items)?;
        self.call_for(Routine::Pick, vec![Some(Arg::Tensor(places)), Some(of)], &[to], at)
    }

    /// A slot for strings that are stacked along a new axis, with none in it; `of` is one of them.
    pub(super) fn no_strings(&mut self, of: Value, axis: usize, at: &mut At) -> Result<Arg, String> {
        let ty = self.graph.ty(of).clone();
        if let [d, ..] = self.unknown(std::slice::from_ref(&ty))[..] {
            return Err(format!("stacks strings whose size {d} only the body tells, which compiled code does not do"));
        }
        let mut dims = ty.as_tensor().map_or(vec![], |t| t.dims.clone());
        dims.insert(axis.min(dims.len()), Expr::int(0));
        let places = self.places(&dims, Expr::int(0), at)?;
        let empty = host::to_host_tensor(&Tensor::from_strings([0], [])).map_err(|f| f.0)?;
        let empty = self.slot(Type::tensor(DType::String, [Expr::int(0)]), SlotMemory::Constant(empty.into()));
        let stack = Arg::Slot(self.slot(Type::tensor(DType::String, dims), SlotMemory::Temp));
        self.call(Routine::Pick, vec![Some(Arg::Tensor(places)), Some(Arg::Slot(empty))], vec![stack], at);
        Ok(stack)
    }

    /// Puts strings behind those in a stack, or before them.
    pub(super) fn more_strings(&mut self, stack: Arg, v: Value, axis: usize, before: bool, at: &mut At) -> Result<(), String> {
        let new = self.arg(v).ok_or("a result of the body has no value")?;
        let mut dims = self.graph.ty(v).as_tensor().map_or(vec![], |t| t.dims.clone());
        dims.insert(axis.min(dims.len()), Expr::int(1));
        let places = self.places(&dims, Expr::int(0), at)?;
        let slice = Arg::Slot(self.slot(Type::tensor(DType::String, dims), SlotMemory::Temp));
        self.call(Routine::Pick, vec![Some(Arg::Tensor(places)), Some(new)], vec![slice], at);
        let parts = if before { [slice, stack] } else { [stack, slice] };
        self.call(Routine::Join { axis: axis as i64 }, parts.map(Some).to_vec(), vec![stack], at);
        Ok(())
    }

    /// Which of the carried values of a Loop are values of the host: before, in the body, or after it.
    pub(super) fn carried_on_host(&self, n: Node, carried: usize) -> Vec<usize> {
        let node = self.graph.node(n);
        let region = self.graph.region(node.regions[0]);
        let values = |k: usize| {
            [node.inputs.get(2 + k).copied().flatten(), region.params.get(2 + k).copied(), node.outputs.get(k).copied()]
        };
        (0..carried).filter(|&k| values(k).into_iter().flatten().any(|v| flat(self.graph.ty(v)).is_none())).collect()
    }

    /// Slots with the first values of these carried values, which the body sees; each with its number.
    pub(super) fn start_on_host(&mut self, n: Node, which: &[usize], at: &mut At) -> Result<Vec<(usize, u32)>, String> {
        let (graph, mut states) = (self.graph, vec![]);
        let node = graph.node(n);
        let region = graph.region(node.regions[0]);
        for &k in which {
            let from = node.inputs.get(2 + k).copied().flatten().and_then(|v| self.arg(v)).ok_or("a carried value is missing")?;
            let param = region.params[2 + k];
            let slot = self.slot(graph.ty(param).clone(), SlotMemory::Temp);
            self.call(Routine::Identity, vec![Some(from)], vec![Arg::Slot(slot)], at);
            if flat(graph.ty(param)).is_some() {
                return Err(format!("carries value {k} as {} into its body and as another type out of it", graph.ty(param)));
            }
            self.stands_for(param, Arg::Slot(slot));
            states.push((k, slot));
        }
        Ok(states)
    }

    /// The values of the next round.
    pub(super) fn next_on_host(&mut self, n: Node, states: &[(usize, u32)], at: &mut At) -> Result<(), String> {
        let region = self.graph.region(self.graph.node(n).regions[0]);
        let results = states.iter().map(|&(k, _)| self.arg(region.results[1 + k]).ok_or("a result of the body has no value"));
        let results = results.collect::<Result<Vec<_>, _>>()?;
        self.put_all(&results, &states.iter().map(|s| s.1).collect::<Vec<_>>(), at);
        Ok(())
    }

    /// The values after the last round. Where only the first value was an optional, what the body made of it.
    pub(super) fn end_on_host(&mut self, n: Node, states: &[(usize, u32)], at: &mut At) -> Result<(), String> {
        for &(k, slot) in states {
            let v = self.graph.node(n).outputs[k];
            let unwrap =
                matches!(self.work.slots[slot as usize].ty, Type::Optional(_)) && !matches!(self.graph.ty(v), Type::Optional(_));
            let routine = if unwrap { Routine::OptionalGetElement } else { Routine::Identity };
            self.call_for(routine, vec![Some(Arg::Slot(slot))], &[v], at)?;
        }
        Ok(())
    }

    /// SequenceMap: a loop over the elements, which puts the results of the body into lists.
    pub(super) fn sequence_map(&mut self, n: Node, op: &SequenceMap, at: &mut At) -> Result<(), String> {
        let graph = self.graph;
        let node = graph.node(n);
        let region = graph.region(node.regions[0]);
        let own = usize::try_from(node.inputs.len() as i64 - op.captures).map_err(|_| "it has too few operands")?;
        let mut operands = vec![];
        for (k, v) in node.inputs.iter().enumerate() {
            let v = v.ok_or(format!("operand {k} is missing"))?;
            let list = k < own && matches!(graph.ty(v), Type::Sequence(_));
            operands.push((self.arg(v).ok_or(format!("operand {k} has no value"))?, list));
        }
        let counter = self.counter();
        let mut count = None;
        for (k, &(arg, _)) in operands.iter().enumerate().filter(|o| o.1.1) {
            let length = self.work.add(TensorType::new(DType::I64, []), Memory::Temp, "");
            self.call(Routine::SequenceLength, vec![Some(arg)], vec![Arg::Tensor(length)], at);
            let symbol = Expr::sym(&format!("{counter}.length{k}").replace('"', ""));
            self.bind(symbol, length, Expr::int(0), None, at.items);
            match count {
                None => count = Some(symbol),
                Some(first) => at.items.push(Item::Require {
                    left: first,
                    right: symbol,
                    or_one: false,
                    node: at.describe.to_owned(),
                    text: "the sequences differ in length".to_owned(),
                }),
            }
        }
        let lists: Vec<Arg> = node.outputs.iter().map(|&v| self.out_of_body(v)).collect();
        for &list in &lists {
            self.call(Routine::SequenceEmpty, vec![], vec![list], at);
        }
        let outside = self.bound.clone();
        let mut body = vec![];
        let index = self.work.add(TensorType::new(DType::I64, []), Memory::Temp, "");
        let step = Step::Compute(Compute::map(&[], |_| Scalar::index(counter)));
        let (name, text) = ("counter".to_owned(), at.describe.to_owned());
        body.push(Item::Task(Task { step, sources: vec![], out: index, name, node: text }));
        let mut inner = At { describe: at.describe, items: &mut body };
        for (&p, &(arg, list)) in region.params.iter().zip(&operands) {
            match list {
                true => {
                    let inputs = vec![Some(arg), Some(Arg::Tensor(index))];
                    self.call_for(Routine::SequenceAt, inputs, &[p], &mut inner)?;
                }
                false => self.stands_for(p, arg),
            }
        }
        body.extend(self.region(node.regions[0]));
        let mut inner = At { describe: at.describe, items: &mut body };
        for (&v, &list) in region.results.iter().zip(&lists) {
            let element = self.arg(v).ok_or("a result of the body has no value")?;
            self.call(Routine::SequenceInsert, vec![Some(list), Some(element)], vec![list], &mut inner);
        }
        self.bound = outside;
        at.items.push(Item::Loop { counter, count: count.ok_or("operand 0 is no sequence")?, cond: None, body, apart: false });
        Ok(())
    }
}
