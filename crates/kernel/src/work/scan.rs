//! Scan: a loop over slices. Numbers are read and written where they lie; strings are picked out of a slot, and put behind those in another.

use super::host::{At, SlotMemory, flat};
use super::{Arg, Id, Item, Lower, Memory, Task, tensor_type};
use infc_host::Routine;
use infc_ir::compute::{Compute, Step};
use infc_ir::graph::{Graph, Node, Value};
use infc_ir::op::{self, normal_axis};
use infc_ir::{Expr, Scalar, TensorType};

/// A Scan under lowering.
struct Frame<'a> {
    op: &'a op::Scan,
    node: Node,
    /// Operands of the body: states, what is scanned, captured values.
    operands: Vec<Value>,
    /// Where they are; what is scanned with its axis in front.
    inputs: Vec<Arg>,
    /// Memory of the results, of those that are numbers.
    outs: Vec<Option<Id>>,
    states: usize,
    scans: usize,
    count: Expr,
    counter: Expr,
    /// Symbols that are dims of results or states, and that nothing before it sets.
    own: Vec<Expr>,
}

/// States by their number: those in the memory of results, those in slots.
type FirstStates = (Vec<(usize, Id)>, Vec<(usize, u32)>);

impl Frame<'_> {
    /// The place of this turn's slice `k`.
    fn place(&self, directions: &[i64], k: usize) -> Expr {
        if directions.get(k) == Some(&1) { self.count - 1 - self.counter } else { self.counter }
    }
}

/// The axis of slice `k` in a value.
fn axis_of(graph: &Graph, axes: &[i64], k: usize, of: Value) -> Result<usize, String> {
    let rank = graph.ty(of).as_tensor().map_or(0, TensorType::rank);
    normal_axis(axes.get(k).copied().unwrap_or(0), rank).map_err(|f| f.0)
}

impl Lower<'_> {
    pub(super) fn scan(&mut self, n: Node, op: &op::Scan, describe: &str, items: &mut Vec<Item>) -> Result<(), String> {
        let f = self.frame(n, op, &mut At { describe, items })?;
        let stacks = self.stacks(&f, &mut At { describe, items })?;
        let (carried, kept) = self.first_states(&f, &mut At { describe, items })?;
        let (mut body, region) = (vec![], self.graph.region(self.graph.node(n).regions[0]));
        self.slices(&f, &mut At { describe, items: &mut body })?;
        body.extend(self.region(self.graph.node(n).regions[0]));
        self.stack(&f, &stacks, &mut At { describe, items: &mut body })?;
        let next = kept.iter().map(|&(k, _)| self.arg(region.results[k]).ok_or("a result of the body has no value"));
        let next = next.collect::<Result<Vec<_>, _>>()?;
        self.put_all(&next, &kept.iter().map(|s| s.1).collect::<Vec<_>>(), &mut At { describe, items: &mut body });
        let (mut new, mut moved) = (vec![], vec![]);
        for &(k, out) in &carried {
            let id = self.get(region.results[k]).ok_or("a result is no tensor")?;
            let param = tensor_type(self.graph.ty(region.params[k]))?;
            new.push(self.aside(n, id, out, param, &f.own, &mut moved, describe, &mut body)?);
        }
        self.resize_all(n, &f.own, &moved, describe, &mut body)?;
        self.carry(&new, &carried.iter().map(|c| c.1).collect::<Vec<_>>(), describe, &mut body);
        f.outs.iter().flatten().for_each(|&o| self.know(&self.work.tensor(o).ty.dims.clone()));
        items.push(Item::Loop { counter: f.counter, count: f.count, cond: None, body, apart: false });
        self.last_states(&f, &kept, &stacks, &mut At { describe, items })
    }

    fn frame<'a>(&mut self, n: Node, op: &'a op::Scan, at: &mut At) -> Result<Frame<'a>, String> {
        let graph = self.graph;
        let node = graph.node(n);
        let region = graph.region(node.regions[0]);
        let scans = usize::try_from(op.num_scan_inputs).map_err(|_| "num_scan_inputs is negative")?;
        let operand = |k: usize| node.inputs.get(k).copied().flatten().ok_or(format!("operand {k} is missing"));
        let operands = (0..region.params.len()).map(operand).collect::<Result<Vec<Value>, _>>()?;
        let inputs = operands.iter().enumerate().map(|(k, &v)| self.arg(v).ok_or(format!("operand {k} has no value")));
        let mut inputs = inputs.collect::<Result<Vec<Arg>, _>>()?;
        let types = node.outputs.iter().chain(&region.params[..region.params.len().min(node.outputs.len())]);
        let own = self.unknown(&types.map(|&v| graph.ty(v).clone()).collect::<Vec<_>>());
        let on_host: Vec<usize> = (0..node.outputs.len()).filter(|&k| flat(graph.ty(node.outputs[k])).is_none()).collect();
        let outs = self.outputs_except(n, &on_host)?;
        let results = region.results.len();
        let scan_outputs = (0..=results).find(|&s| self.scan_split(n, results - s, scans)).unwrap_or(0);
        let states = results - scan_outputs;
        let first = *operands.get(states).filter(|_| scans > 0).ok_or("it has no scan input")?;
        let count = tensor_type(graph.ty(first))?.dims[axis_of(graph, &op.scan_input_axes, 0, first)?];
        // What is scanned along another axis than the first is turned before.
        for (k, input) in inputs[states..].iter_mut().enumerate().take(scans) {
            let axis = axis_of(graph, &op.scan_input_axes, k, operands[states + k])?;
            if let Arg::Tensor(id) = input {
                *id = self.axis_first(*id, axis, at.describe, at.items)?;
            }
        }
        Ok(Frame { op, node: n, operands, inputs, outs, states, scans, count, counter: self.counter(), own })
    }

    /// What the slices of results come into, with their axis: in front for numbers, which are turned at the end if it is another one.
    fn stacks(&mut self, f: &Frame, at: &mut At) -> Result<Vec<(usize, Arg)>, String> {
        let node = self.graph.node(f.node);
        let region = self.graph.region(node.regions[0]);
        let mut stacks = vec![];
        for (k, &out) in f.outs[f.states..].iter().enumerate() {
            let axis = axis_of(self.graph, &f.op.scan_output_axes, k, node.outputs[f.states + k])?;
            let stack = match out {
                Some(out) if axis == 0 => Arg::Tensor(out),
                Some(out) => {
                    let mut ty = self.work.tensor(out).ty.clone();
                    ty.dims[..=axis].rotate_right(1);
                    Arg::Tensor(self.work.add(ty, Memory::Temp, ""))
                }
                None => self.no_strings(region.results[f.states + k], axis, at)?,
            };
            if let Arg::Tensor(stack) = stack {
                self.empty(f.node, stack, &f.own, at.describe, at.items)?;
            }
            stacks.push((axis, stack));
        }
        Ok(stacks)
    }

    /// Puts the first states where the body finds them: numbers in the memory of the results, others in slots; each with its number.
    fn first_states(&mut self, f: &Frame, at: &mut At) -> Result<FirstStates, String> {
        let region = self.graph.region(self.graph.node(f.node).regions[0]);
        let (mut carried, mut kept) = (vec![], vec![]);
        for k in 0..f.states {
            match (f.inputs[k], f.outs[k]) {
                (Arg::Tensor(id), Some(out)) => {
                    let (param, given) = (tensor_type(self.graph.ty(region.params[k]))?, self.work.tensor(id).ty.clone());
                    let ty = self.work.tensor(out).ty.clone();
                    self.resize(f.node, &f.own, &[(&ty, &given), (&param, &given)], at.describe, at.items)?;
                    self.copy_into(id, out, at.describe, at.items);
                    self.know(&param.dims);
                    let seen = if param == ty { out } else { self.seen_as(out, param) };
                    self.map.insert(region.params[k], seen);
                    carried.push((k, out));
                }
                (from, _) => {
                    let slot = self.slot(self.graph.ty(region.params[k]).clone(), SlotMemory::Temp);
                    self.call(Routine::Identity, vec![Some(from)], vec![Arg::Slot(slot)], at);
                    self.stands_for(region.params[k], Arg::Slot(slot));
                    kept.push((k, slot));
                }
            }
        }
        Ok((carried, kept))
    }

    /// What the body's other parameters are in this turn.
    fn slices(&mut self, f: &Frame, at: &mut At) -> Result<(), String> {
        let region = self.graph.region(self.graph.node(f.node).regions[0]);
        for (k, &from) in f.inputs[f.states..].iter().enumerate() {
            let (p, place) = (region.params[f.states + k], f.place(&f.op.scan_input_directions, k));
            match from {
                from if k >= f.scans => self.stands_for(p, from),
                Arg::Tensor(of) => {
                    let whole = &self.work.tensor(of).ty;
                    let ty = TensorType::new(whole.dtype, whole.dims[1..].iter().copied());
                    let offset = place * Expr::product(ty.dims.iter().copied());
                    let id = self.work.add(ty, Memory::Alias { of, offset }, "");
                    self.map.insert(p, id);
                }
                Arg::Slot(_) => {
                    let v = f.operands[f.states + k];
                    let axis = axis_of(self.graph, &f.op.scan_input_axes, k, v)?;
                    let dims = tensor_type(self.graph.ty(v))?.dims;
                    self.strings_at(from, &dims, (axis, place), p, at)?;
                }
            }
        }
        Ok(())
    }

    /// Puts this turn's results into the stacks.
    fn stack(&mut self, f: &Frame, stacks: &[(usize, Arg)], at: &mut At) -> Result<(), String> {
        let region = self.graph.region(self.graph.node(f.node).regions[0]);
        for (k, &(axis, stack)) in stacks.iter().enumerate() {
            let v = region.results[f.states + k];
            let Arg::Tensor(out) = stack else {
                let before = f.op.scan_output_directions.get(k) == Some(&1);
                self.more_strings(stack, v, axis, before, at)?;
                continue;
            };
            let id = self.get(v).ok_or("a result is no tensor")?;
            let ty = self.work.tensor(id).ty.clone();
            let all = TensorType::new(ty.dtype, [f.count].into_iter().chain(ty.dims.iter().copied()));
            self.resize(f.node, &f.own, &[(&self.work.tensor(out).ty.clone(), &all)], at.describe, at.items)?;
            let offset = f.place(&f.op.scan_output_directions, k) * Expr::product(ty.dims.iter().copied());
            let slice = self.work.add(ty, Memory::Alias { of: out, offset }, "");
            self.copy_into(id, slice, at.describe, at.items);
        }
        Ok(())
    }

    /// The results after the last turn.
    fn last_states(&mut self, f: &Frame, kept: &[(usize, u32)], stacks: &[(usize, Arg)], at: &mut At) -> Result<(), String> {
        let outputs = &self.graph.node(f.node).outputs;
        for &(k, slot) in kept {
            self.call_for(Routine::Identity, vec![Some(Arg::Slot(slot))], &[outputs[k]], at)?;
        }
        for (k, &(axis, stack)) in stacks.iter().enumerate() {
            match (stack, f.outs[f.states + k]) {
                (Arg::Tensor(stack), Some(out)) if axis > 0 => {
                    let ty = self.work.tensor(out).ty.clone();
                    let step = Step::Compute(Compute::map(&ty.dims, |i| {
                        let mut index = i.to_vec();
                        index[..=axis].rotate_right(1);
                        Scalar::read_at(ty.dtype, 0, &index)
                    }));
                    let (name, node) = ("Transpose".into(), at.describe.to_owned());
                    at.items.push(Item::Task(Task { step, sources: vec![stack], out, name, node }));
                }
                (Arg::Slot(_), _) => self.call_for(Routine::Identity, vec![Some(stack)], &[outputs[f.states + k]], at)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The tensor with `axis` in front of the others.
    fn axis_first(&mut self, id: Id, axis: usize, describe: &str, items: &mut Vec<Item>) -> Result<Id, String> {
        if axis == 0 {
            return Ok(id);
        }
        let ty = self.work.tensor(id).ty.clone();
        let mut dims = ty.dims.clone();
        dims[..=axis].rotate_right(1);
        let step = Step::Compute(Compute::map(&dims, |i| {
            let mut index = i.to_vec();
            index[..=axis].rotate_left(1);
            Scalar::read_at(ty.dtype, 0, &index)
        }));
        self.task(step, &[Some(id)], "Transpose", describe, items)
    }

    /// True if the first `states` results of a Scan are states: their types equal the parameters', the others' have one dim less.
    fn scan_split(&self, n: Node, states: usize, scans: usize) -> bool {
        let node = self.graph.node(n);
        let region = self.graph.region(node.regions[0]);
        states + scans <= region.params.len()
            && (0..region.results.len()).all(|k| {
                let rank = |v: Value| self.graph.ty(v).as_tensor().map(TensorType::rank);
                let (inner, outer) = (rank(region.results[k]), rank(node.outputs[k]));
                if k < states { inner == outer } else { inner.map(|r| r + 1) == outer }
            })
    }
}
