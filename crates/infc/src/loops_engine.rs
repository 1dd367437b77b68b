//! Runs a lowered program step by step with the loop interpreter: the link of the chain between the graph and machine code.
//!
//! A slow, plain twin of the runtime's executor, on purpose without any of its code: each buffer is a byte vector of its own,
//! poisoned before a run, and every launch gets copies where two of its views share a buffer.

use crate::engine::Engine;
use infc_artifact::program::{HostValue, Message, Place, Program, Size, Slot, SlotPlace, Step, SymbolSource, View};
use infc_host::{Routine, Value};
use infc_ir::interp::Item;
use infc_ir::{DType, Problem, Problems, Tensor, host};
use infc_kernel::loops::interp::{self, Stop};
use infc_kernel::loops::{Access, Kernel};
use infc_kernel::program::Lowered;

/// A buffer that may need more bytes than this is one whose size only the run itself tells.
const UNBOUNDED: usize = 1 << 40;

/// What runs the tasks of a kernel: number, kernel, its extents, number of tasks, bytes of its buffers.
pub type Runner = Box<dyn Fn(u32, &Kernel, &[i64], i64, &mut [Vec<u8>]) -> Result<(), Stop>>;

/// A program whose kernels are loop nests.
pub struct Loops {
    lowered: Lowered,
    runner: Runner,
    /// Buffers kept from run to run.
    states: Vec<Vec<u8>>,
}

impl Loops {
    /// Ready to run.
    pub fn new(lowered: Lowered) -> Loops {
        Loops::with(lowered, Box::new(|_, kernel, extents, _, buffers| interp::run(kernel, extents, buffers)))
    }
    /// The same with kernels run by something else than the interpreter.
    pub fn with(lowered: Lowered, runner: Runner) -> Loops {
        Loops { lowered, runner, states: vec![] }
    }
}

/// One launch as it happened.
pub struct Launch {
    /// The kernel.
    pub kernel: u32,
    /// Buffer and first byte of each of its parameters.
    pub views: Vec<(u32, i64)>,
    /// Its extents.
    pub extents: Vec<i64>,
    /// How many tasks ran.
    pub tasks: i64,
    /// The buffers that it may write.
    pub written: Vec<u32>,
    /// Its buffers and their bytes, before.
    pub before: Vec<(u32, Vec<u8>)>,
    /// The same afterwards.
    pub after: Vec<(u32, Vec<u8>)>,
}

/// Sees launches; false ends the watching.
pub type Watch<'a> = &'a mut dyn FnMut(&Launch) -> Result<bool, Problems>;

impl Engine for Loops {
    fn run(&mut self, inputs: &[Item]) -> Result<Vec<Item>, Problems> {
        self.run_with(inputs, None)
    }
    fn host_nodes(&self) -> Vec<String> {
        self.lowered.program.host_nodes().into_iter().map(str::to_owned).collect()
    }
}

impl Loops {
    /// As `run`; `watch` sees each launch until it says false.
    pub fn watched(&mut self, inputs: &[Item], watch: Watch) -> Result<Vec<Item>, Problems> {
        self.run_with(inputs, Some(watch))
    }

    /// The values that slots begin with.
    fn slots(&self, inputs: &[Item]) -> Result<Vec<Option<Value>>, Problems> {
        let value = |slot: &Slot| match slot.place {
            SlotPlace::Input(i) => host::to_host(&inputs[i as usize]).map(Some).map_err(|f| internal(f.0)),
            SlotPlace::Constant { offset, bytes } => {
                let bytes = self.lowered.constants.bytes(offset, bytes as usize);
                Value::decode(bytes).map(Some).map_err(|f| internal(f.0))
            }
            SlotPlace::Output(_) | SlotPlace::Temp => Ok(None),
        };
        self.lowered.program.slots.iter().map(value).collect()
    }

    fn run_with(&mut self, inputs: &[Item], watch: Option<Watch>) -> Result<Vec<Item>, Problems> {
        let program = &self.lowered.program;
        check_inputs(program, inputs)?;
        let symbols = bind(program, inputs)?;
        let slots = self.slots(inputs)?;
        let ranges = ranges(program, &symbols)?;
        let sides = program.sides();
        // The side that scalars and outputs are read on.
        let side_of: Vec<usize> = sides.device.iter().map(|&device| usize::from(self.lowered.device && !device)).collect();
        let (mut memory, mut growable) = (vec![], vec![]);
        for (i, buffer) in program.buffers.iter().enumerate() {
            let mut bytes = buffer.bytes.range(&ranges).map_or(0, |r| r.1).max(0) as usize;
            if bytes > UNBOUNDED && matches!(buffer.place, Place::Output(_) | Place::Arena { .. }) {
                growable.push(i);
                bytes = 0;
            }
            memory.push(match buffer.place {
                Place::Input(i) => inputs[i as usize].as_tensor().map_or(vec![], |t| t.bytes().to_vec()),
                Place::Constant(at) => self.lowered.constants.bytes(at, bytes).to_vec(),
                Place::State(n) => match self.states.get(n as usize) {
                    Some(kept) if kept.len() == bytes => kept.clone(),
                    _ => vec![0; bytes],
                },
                Place::Output(_) | Place::Arena { .. } => vec![0xa5; bytes],
            });
        }
        // A device has memory of its own, where nothing of the host's is seen unless it is copied.
        let memory = if self.lowered.device { vec![memory.clone(), memory] } else { vec![memory] };
        let (lowered, runner) = (&self.lowered, &self.runner);
        let mut run = Run { program, lowered, runner, symbols, memory, side_of: &side_of, growable, slots, watch };
        run.list(&program.steps)?;
        let outputs = run.outputs()?;
        let mut memory = run.memory;
        for (b, buffer) in program.buffers.iter().enumerate() {
            if let Place::State(n) = buffer.place {
                let bytes = std::mem::take(&mut memory[side_of[b]][b]);
                self.states.resize(self.states.len().max(n as usize + 1), vec![]);
                self.states[n as usize] = bytes;
            }
        }
        Ok(outputs)
    }
}

/// The inputs must have the right kinds, dtypes and ranks.
pub(crate) fn check_inputs(program: &Program, inputs: &[Item]) -> Result<(), Problems> {
    if inputs.len() != program.inputs.len() {
        let message = format!("the model has {} inputs, {} are given", program.inputs.len(), inputs.len());
        return Err(Problems::one("inputs", message, "give one value for each input"));
    }
    let mut problems = vec![];
    for (item, port) in inputs.iter().zip(&program.inputs) {
        match item {
            Item::Tensor(t) if t.dtype.onnx() == i32::from(port.dtype) && t.dims.len() == port.dims.len() => {}
            // Values of the host are checked by the routines that take them.
            _ if port.dtype == 0 => {}
            Item::Tensor(t) => {
                let message = format!("{}{:?} has the wrong dtype or rank", t.dtype, t.dims);
                problems.push(Problem { at: format!("input '{}'", port.name), message, help: String::new() });
            }
            Item::Sequence(_) | Item::Optional(_) | Item::Map(_) => {
                let message = "is no tensor, which is needed".to_owned();
                problems.push(Problem { at: format!("input '{}'", port.name), message, help: String::new() });
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// Values of the symbols; those that steps set are 0. All dims of the inputs must agree with them.
pub(crate) fn bind(program: &Program, inputs: &[Item]) -> Result<Vec<i64>, Problems> {
    let dims = |item: &Item| item.as_tensor().map_or(vec![], |t| t.dims.clone());
    let symbols: Vec<i64> = (program.symbols.iter())
        .map(|s| match s.source {
            SymbolSource::Input { input, axis } => dims(&inputs[input as usize])[axis as usize] as i64,
            SymbolSource::Step => 0,
        })
        .collect();
    for (port, item) in program.inputs.iter().zip(inputs) {
        for (axis, (dim, &got)) in port.dims.iter().zip(&dims(item)).enumerate() {
            if let Some(want) = dim.eval(&symbols)
                && want != got as i64
            {
                let message = format!("dim {axis} is {got}, it must be {want}");
                return Err(Problems::one(format!("input '{}'", port.name), message, "change the shape of the input"));
            }
        }
    }
    Ok(symbols)
}

/// Least and largest values of the symbols over the whole run.
fn ranges(program: &Program, symbols: &[i64]) -> Result<Vec<(i64, i64)>, Problems> {
    fn widen(steps: &[Step], ranges: &mut [(i64, i64)]) -> bool {
        let high = |size: &Size, ranges: &[(i64, i64)]| size.range(ranges).map_or(0, |r| r.1);
        let mut changed = false;
        for step in steps {
            let (symbol, top) = match step {
                Step::Bind { symbol, bound, .. } => (*symbol, high(bound, ranges)),
                Step::Loop { counter, count, body, .. } => {
                    changed |= widen(body, ranges);
                    (*counter, high(count, ranges) - 1)
                }
                Step::If { then, otherwise, .. } => {
                    changed |= widen(then, ranges) | widen(otherwise, ranges);
                    continue;
                }
                Step::Launch { .. }
                | Step::Copy { .. }
                | Step::Require { .. }
                | Step::Host { .. }
                | Step::HostLaunch { .. }
                | Step::ToHost { .. }
                | Step::ToDevice { .. } => continue,
            };
            let range = &mut ranges[symbol as usize];
            changed |= top > range.1;
            range.1 = top.max(range.1);
        }
        changed
    }
    let mut ranges: Vec<(i64, i64)> = symbols.iter().map(|&s| (s, s)).collect();
    for _ in 0..=program.symbols.len() {
        if !widen(&program.steps, &mut ranges) {
            return Ok(ranges);
        }
    }
    Err(internal("the bounds of symbols depend on each other in a circle"))
}

fn internal(what: impl Into<String>) -> Problems {
    Problems::one("internal error in the lowered program", what, "please report this model")
}

/// Where a launch runs.
#[derive(Clone, Copy)]
enum Where {
    /// As all launches of the program do.
    Target,
    /// On the CPU beside the device, by the loop interpreter.
    Host,
}

struct Run<'a, 'w> {
    program: &'a Program,
    lowered: &'a Lowered,
    runner: &'a Runner,
    symbols: Vec<i64>,
    /// The bytes of each buffer, on the side that launches run on and, for a device, on that of the host.
    memory: Vec<Vec<Vec<u8>>>,
    side_of: &'a [usize],
    /// Buffers that get their size when a step sets a symbol.
    growable: Vec<usize>,
    /// Values of the host.
    slots: Vec<Option<Value>>,
    watch: Option<Watch<'w>>,
}

impl Run<'_, '_> {
    fn list(&mut self, steps: &[Step]) -> Result<(), Problems> {
        steps.iter().try_for_each(|s| self.step(s))
    }

    fn step(&mut self, step: &Step) -> Result<(), Problems> {
        match step {
            Step::Launch { kernel, buffers, extents, tasks } => match self.watch.take() {
                None => self.launch(Where::Target, *kernel, buffers, extents, tasks),
                Some(watch) => {
                    let mut launch = self.describe(*kernel, buffers, extents, tasks)?;
                    self.launch(Where::Target, *kernel, buffers, extents, tasks)?;
                    launch.after = launch.before.iter().map(|&(b, _)| (b, self.memory[0][b as usize].clone())).collect();
                    if watch(&launch)? {
                        self.watch = Some(watch);
                    }
                    Ok(())
                }
            },
            Step::Copy { from, to, bytes } => {
                let bytes = self.value(bytes)?;
                let data = self.read(0, from, bytes)?.to_vec();
                let at = self.offset(0, to, bytes)?;
                self.memory[0][to.buffer as usize][at..at + bytes].copy_from_slice(&data);
                Ok(())
            }
            Step::HostLaunch { kernel, buffers, extents, tasks, .. } => {
                self.launch(Where::Host, *kernel, buffers, extents, tasks)
            }
            Step::ToHost { buffer } | Step::ToDevice { buffer } => {
                let (b, to_host) = (*buffer as usize, matches!(step, Step::ToHost { .. }));
                let [device, host] = &mut self.memory[..] else { return Err(internal("a copy beside a CPU")) };
                if to_host {
                    host[b].clone_from(&device[b])
                } else {
                    device[b].clone_from(&host[b])
                }
                Ok(())
            }
            Step::Bind { symbol, from, bound } => {
                let raw = self.scalar(from, 8)?.try_into().expect("8 bytes");
                let (value, bound) = (i64::from_le_bytes(raw), self.size(bound)?);
                if !(0..=bound).contains(&value) {
                    let name = &self.program.symbols[*symbol as usize].name;
                    return Err(Problems::one(format!("size '{name}'"), format!("is {value}, which is not in 0..={bound}"), ""));
                }
                self.set(*symbol, value)
            }
            Step::Require { left, right, or_one, code } => {
                let (a, b) = (self.size(left)?, self.size(right)?);
                if a == b || (*or_one && (a == 1 || b == 1)) {
                    Ok(())
                } else {
                    Err(self.failed(*code, &format!(" ({a} and {b})")))
                }
            }
            Step::Host { routine, attributes, inputs, outputs, code } => {
                let routine = Routine::decode(routine, attributes).map_err(|f| internal(f.0))?;
                self.host(&routine, inputs, outputs, *code)
            }
            Step::If { cond, then, otherwise } => match self.scalar(cond, 1)? {
                [0] => self.list(otherwise),
                _ => self.list(then),
            },
            Step::Loop { counter, count, cond, body, apart } => {
                let count = self.size(count)?;
                for round in 0..count {
                    // Where any order is as good, another one than machine code takes.
                    let round = if *apart { count - 1 - round } else { round };
                    if let Some(cond) = cond
                        && self.scalar(cond, 1)? == [0]
                    {
                        break;
                    }
                    self.set(*counter, round)?;
                    self.list(body)?;
                }
                Ok(())
            }
        }
    }

    /// A call of a host routine.
    fn host(
        &mut self,
        routine: &Routine,
        inputs: &[Option<HostValue>],
        outputs: &[HostValue],
        code: u32,
    ) -> Result<(), Problems> {
        let (mut operands, side) = (vec![], self.memory.len() - 1);
        for value in inputs {
            operands.push(match value {
                None => None,
                Some(HostValue::Slot(s)) => {
                    Some(self.slots[*s as usize].clone().ok_or_else(|| internal(format!("slot {s} has no value")))?)
                }
                Some(HostValue::Tensor { dtype, dims, view }) => {
                    let dims = dims.iter().map(|d| self.value(d)).collect::<Result<Vec<_>, _>>()?;
                    let width = infc_host::dtype::width(*dtype).unwrap_or(0);
                    let bytes = self.read(side, view, dims.iter().product::<usize>() * width)?.to_vec();
                    let tensor = infc_host::Tensor::from_bytes(*dtype, dims, bytes).map_err(|f| internal(f.0))?;
                    Some(Value::Tensor(tensor))
                }
            });
        }
        let operands: Vec<Option<&Value>> = operands.iter().map(Option::as_ref).collect();
        let node = &self.program.messages[code as usize].node;
        let made = routine.run(&operands).map_err(|f| Problems::one(node, f.0, ""))?;
        for (value, made) in outputs.iter().zip(made) {
            match value {
                HostValue::Slot(s) => self.slots[*s as usize] = Some(made),
                HostValue::Tensor { dtype, dims, view } => {
                    let dims = dims.iter().map(|d| self.value(d)).collect::<Result<Vec<_>, _>>()?;
                    let tensor = made.as_tensor().filter(|t| t.dtype() == *dtype && t.dims() == dims);
                    let tensor = tensor.ok_or_else(|| Problems::one(node, format!("its result is {made}, not {dims:?}"), ""))?;
                    let bytes = tensor.bytes();
                    let at = self.offset(side, view, bytes.len())?;
                    self.memory[side][view.buffer as usize][at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        Ok(())
    }

    /// A launch that is about to happen.
    fn describe(&self, number: u32, views: &[View], extents: &[Size], tasks: &Size) -> Result<Launch, Problems> {
        let kernel = &self.lowered.kernels[number as usize];
        let mut buffers: Vec<u32> = views.iter().map(|v| v.buffer).collect();
        buffers.sort_unstable();
        buffers.dedup();
        let written = views.iter().zip(&kernel.buffers).filter(|(_, b)| b.access != Access::Read).map(|(v, _)| v.buffer);
        Ok(Launch {
            kernel: number,
            views: views.iter().map(|v| Ok((v.buffer, self.size(&v.offset)?))).collect::<Result<_, _>>()?,
            extents: extents.iter().map(|e| self.size(e)).collect::<Result<_, _>>()?,
            tasks: self.size(tasks)?,
            written: written.collect(),
            before: buffers.iter().map(|&b| (b, self.memory[0][b as usize].clone())).collect(),
            after: vec![],
        })
    }

    fn set(&mut self, symbol: u32, value: i64) -> Result<(), Problems> {
        self.symbols[symbol as usize] = value;
        for i in 0..self.growable.len() {
            let (buffer, bytes) = (self.growable[i], &self.program.buffers[self.growable[i]].bytes);
            if bytes.symbols().any(|s| s == symbol) {
                let bytes = self.value(bytes)?;
                self.memory.iter_mut().for_each(|side| side[buffer].resize(bytes, 0xa5));
            }
        }
        Ok(())
    }

    /// Runs a kernel on copies of its views. Only bytes that it changed are written back, so views of one buffer do not mix.
    fn launch(&mut self, place: Where, number: u32, views: &[View], extents: &[Size], tasks: &Size) -> Result<(), Problems> {
        let (kernels, side) = match place {
            Where::Target => (&self.lowered.kernels, 0),
            Where::Host => (&self.lowered.host_kernels, self.memory.len() - 1),
        };
        let kernel = &kernels[number as usize];
        let tasks = self.size(tasks)?;
        let extents = extents.iter().map(|e| self.size(e)).collect::<Result<Vec<_>, _>>()?;
        let mut buffers = vec![];
        for view in views {
            let at = self.offset(side, view, 0)?;
            buffers.push(self.memory[side][view.buffer as usize][at..].to_vec());
        }
        let before: Vec<Option<Vec<u8>>> =
            kernel.buffers.iter().zip(&buffers).map(|(b, bytes)| (b.access != Access::Read).then(|| bytes.clone())).collect();
        let done = match place {
            Where::Target => (self.runner)(number, kernel, &extents, tasks, &mut buffers),
            Where::Host => interp::run(kernel, &extents, &mut buffers),
        };
        done.map_err(|stop| match stop {
            Stop::Check(code) => self.failed(code, ""),
            Stop::Internal(what) => internal(format!("kernel '{}': {what}", kernel.name)),
        })?;
        for ((view, before), after) in views.iter().zip(before).zip(buffers) {
            let Some(before) = before else { continue };
            let at = self.offset(side, view, 0)?;
            let place = &mut self.memory[side][view.buffer as usize][at..];
            for ((place, before), after) in place.iter_mut().zip(before).zip(after) {
                if before != after {
                    *place = after;
                }
            }
        }
        Ok(())
    }

    fn outputs(&self) -> Result<Vec<Item>, Problems> {
        let mut out = vec![];
        for port in &self.program.outputs {
            if port.is_host() {
                let value = self.slots[port.buffer as usize].clone();
                let value = value.ok_or_else(|| internal(format!("output '{}' has no value", port.name)))?;
                out.push(host::from_host(value).map_err(|f| internal(f.0))?);
                continue;
            }
            let dims = port.dims.iter().map(|d| self.value(d)).collect::<Result<Vec<_>, _>>()?;
            let dtype = DType::from_onnx(i32::from(port.dtype)).ok_or_else(|| internal("an output has an unknown dtype"))?;
            let bytes = dims.iter().product::<usize>() * dtype.bytes();
            let view = View { buffer: port.buffer, offset: Size::constant(0) };
            out.push(Item::Tensor(Tensor::from_bytes(dtype, dims, self.scalar(&view, bytes)?.to_vec())));
        }
        Ok(out)
    }

    fn failed(&self, code: u32, more: &str) -> Problems {
        match self.program.messages.get(code as usize) {
            Some(Message { node, text }) => Problems::one(node, format!("{text}{more}"), ""),
            None => internal(format!("unknown check {code} failed")),
        }
    }

    fn size(&self, size: &Size) -> Result<i64, Problems> {
        size.eval(&self.symbols).ok_or_else(|| internal("a size cannot be computed"))
    }

    fn value(&self, size: &Size) -> Result<usize, Problems> {
        usize::try_from(self.size(size)?).map_err(|_| internal("a size is negative"))
    }

    fn offset(&self, side: usize, view: &View, bytes: usize) -> Result<usize, Problems> {
        let (at, len) = (self.value(&view.offset)?, self.memory[side][view.buffer as usize].len());
        if bytes == 0 {
            return Ok(at.min(len)); // parts of what is empty begin anywhere
        }
        if at.checked_add(bytes).is_none_or(|end| end > len) {
            return Err(internal(format!("bytes {at}..+{bytes} of buffer {}, which has {len}", view.buffer)));
        }
        Ok(at)
    }

    fn read(&self, side: usize, view: &View, bytes: usize) -> Result<&[u8], Problems> {
        let at = self.offset(side, view, bytes)?;
        Ok(&self.memory[side][view.buffer as usize][at..at + bytes])
    }

    /// Bytes of a buffer on the side that has it.
    fn scalar(&self, view: &View, bytes: usize) -> Result<&[u8], Problems> {
        self.read(self.side_of[view.buffer as usize], view, bytes)
    }
}
