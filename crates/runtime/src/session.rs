//! A session: memory, threads and state to run a model, again and again.

use crate::error::{Error, ErrorKind, fail};
use crate::exec::{Exec, Frame, Grown};
use crate::memory::Aligned;
use crate::model::{Dim, Model, PortInfo};
use crate::plan::Plan;
use crate::tensor::{DType, TensorRef};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
#[cfg(feature = "std")]
use infc_artifact::program::MAX_THREADS;
use infc_artifact::program::{Place, Program, SizeOp, SymbolSource};

/// How a session runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads that run tasks, the calling one among them; 0 is one for each CPU, at most 1024. `None` is what the artifact says, which is one
    /// unless it was compiled for more. Results do not depend on it: more threads than CPUs take turns.
    pub threads: Option<usize>,
    /// How long threads wait busily for the next launch of a run or for each other before they sleep, in microseconds; after 20 they offer their
    /// core to others. Between runs they sleep.
    pub spin_us: u32,
    /// Measure the time of each step. On a GPU each step is then waited for, which takes some microseconds.
    pub profile: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { threads: None, spin_us: 1000, profile: false }
    }
}

/// An input or output by number or name.
#[derive(Clone, Copy, Debug)]
pub enum PortId<'a> {
    /// Its number.
    Index(usize),
    /// Its name.
    Name(&'a str),
}

impl From<usize> for PortId<'_> {
    fn from(i: usize) -> Self {
        PortId::Index(i)
    }
}

impl<'a> From<&'a str> for PortId<'a> {
    fn from(name: &'a str) -> Self {
        PortId::Name(name)
    }
}

/// The time that a step took, over all runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StepTime {
    /// How often it ran.
    pub calls: u64,
    /// Time in it and in the steps inside it.
    pub nanoseconds: u64,
}

/// Memory that a session uses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Memory {
    /// The arena for values inside the model.
    pub arena: u64,
    /// Scratch memory of kernels, over all threads.
    pub scratch: u64,
    /// Inputs, outputs and state that the session holds.
    pub held: u64,
    /// Constants of the model, shared by all sessions and, when mapped from a file, by all processes.
    pub constants: u64,
}

/// A tensor that the session holds: an input that was set, or an output.
#[derive(Default)]
struct Held {
    memory: Aligned,
    dims: Vec<i64>,
    /// It has a value.
    set: bool,
    /// An input that was set since the last run. An output that is in memory of the caller.
    mark: bool,
}

/// Where an input is for one run.
#[derive(Clone, Copy)]
struct Given {
    start: *const u8,
    bytes: usize,
}

/// Memory, threads and state to run a model. Not shared between threads; make one for each.
pub struct Session {
    model: Arc<Model>,
    inputs: Vec<Held>,
    outputs: Vec<Held>,
    states: Vec<(Aligned, u64)>,
    arena: Aligned,
    plan: Plan,
    pub(crate) frame: Frame,
    given: Vec<Given>,
    symbols: Vec<i64>,
    resolved: bool,
    threads: usize,
}

// Safety: `given` holds pointers only during a run.
unsafe impl Send for Session {}

impl Session {
    /// Makes a session. Memory for values inside the model is taken at the first run, when shapes are known.
    pub fn new(model: Arc<Model>, options: Options) -> Result<Session, Error> {
        let program = &model.program;
        let held = |n: usize| (0..n).map(|_| Held::default()).collect::<Vec<_>>();
        let states =
            program.buffers.iter().filter_map(|b| if let Place::State(n) = b.place { Some(n as usize + 1) } else { None });
        let states = (0..states.max().unwrap_or(0)).map(|_| (Aligned::default(), 0)).collect();
        let mut frame = Frame::new(&model)?;
        let threads = start_threads(&mut frame, &model, &options)?;
        #[cfg(feature = "gpu")]
        if let Some(loaded) = &model.gpu {
            frame.gpu = Some(crate::gpu::Gpu::new(loaded.clone(), &model)?);
        }
        frame.times = options.profile.then(|| alloc::vec![StepTime::default(); model.steps.len()]);
        Ok(Session {
            inputs: held(program.inputs.len()),
            outputs: held(program.outputs.len()),
            states,
            arena: Aligned::default(),
            plan: Plan::default(),
            frame,
            given: Vec::new(),
            symbols: Vec::new(),
            resolved: false,
            threads,
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Threads that run tasks.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Copies an input into the session, where it stays for all further runs. One with state is replaced by the output of the next run.
    pub fn set_input<'a>(&mut self, port: impl Into<PortId<'a>>, value: TensorRef<'_>) -> Result<(), Error> {
        let i = self.input_number(port.into())?;
        self.input_memory(i, value.dtype, value.dims, Some(value.bytes.len()))?[..].copy_from_slice(value.bytes);
        Ok(())
    }

    /// The memory of an input of these dims, to be written in place instead of [`Session::set_input`].
    pub fn input_mut<'a>(&mut self, port: impl Into<PortId<'a>>, dims: &[i64]) -> Result<&mut [u8], Error> {
        let i = self.input_number(port.into())?;
        self.input_memory(i, self.model.inputs()[i].dtype, dims, None)
    }

    fn input_memory(&mut self, i: usize, dtype: DType, dims: &[i64], given: Option<usize>) -> Result<&mut [u8], Error> {
        let bytes = check_tensor(&self.model, i, dtype, dims, given)?;
        if let Some(output) = self.model.inputs()[i].state {
            // The output of the last run was this memory.
            self.outputs[output].set = false;
        }
        let held = &mut self.inputs[i];
        held.memory.reserve(bytes as u64)?;
        held.dims.clear();
        held.dims.extend_from_slice(dims);
        (held.set, held.mark) = (true, true);
        Ok(&mut held.memory.bytes_mut()[..bytes])
    }

    /// Forgets the state of all inputs that have it: the next run starts from zeros, or from what is set.
    pub fn reset(&mut self) {
        for &(output, input) in &self.model.program.states {
            self.inputs[input as usize].set = false;
            self.outputs[output as usize].set = false;
        }
        for (memory, _) in &mut self.states {
            memory.bytes_mut().fill(0);
        }
    }

    /// Runs the model on the inputs that were set.
    pub fn run(&mut self) -> Result<(), Error> {
        self.run_with(&[], &mut [])
    }

    /// Runs the model with memory of the caller: these inputs are read where they are, for this run, and these outputs are
    /// written where they shall be. The others are the session's. Memory must be aligned for its elements.
    pub fn run_with(&mut self, inputs: &[(usize, TensorRef<'_>)], outputs: &mut [(usize, &mut [u8])]) -> Result<(), Error> {
        for (i, value) in inputs {
            if *i >= self.inputs.len() {
                fail!(Input, "there is no input {i}; the model has {}", self.inputs.len());
            }
            check_tensor(&self.model, *i, value.dtype, value.dims, Some(value.bytes.len()))?;
            check_align(value.bytes.as_ptr(), value.dtype, "input", &self.model.inputs()[*i].name)?;
        }
        for (i, memory) in outputs.iter() {
            let Some(port) = self.model.outputs().get(*i) else {
                fail!(Output, "there is no output {i}; the model has {}", self.outputs.len());
            };
            if port.host.is_some() {
                fail!(Output, "output {i} '{}' is {port}, which has no memory to be given: read it with `value`", port.name);
            }
            check_align(memory.as_ptr(), port.dtype, "output", &port.name)?;
        }
        self.bind(inputs)?;
        self.check_dims(inputs)?;
        self.outputs.iter_mut().for_each(|o| o.set = false);
        let rebound = self.plan.bind(&self.model.program, &self.symbols)?;
        self.resolved &= !rebound;
        if rebound {
            self.frame.grown.iter_mut().for_each(|g| *g = Grown::No);
        }
        self.place(inputs, outputs)?;
        #[cfg(feature = "host")]
        crate::host::forget(&self.model.program, &mut self.frame.slots, false);
        let mut exec = Exec { model: &self.model, plan: &mut self.plan, frame: &mut self.frame };
        #[cfg(feature = "std")]
        if let Some(pool) = &mut exec.frame.pool {
            pool.enter();
        }
        let result = match take_gpu(exec.frame) {
            #[cfg(feature = "gpu")]
            Some(mut gpu) => {
                let result = gpu.run(&mut exec);
                exec.frame.gpu = Some(gpu);
                result
            }
            _ => {
                if !self.resolved {
                    exec.resolve()?;
                    self.resolved = true;
                }
                exec.run()
            }
        };
        #[cfg(feature = "std")]
        if let Some(pool) = &mut self.frame.pool {
            pool.leave();
        }
        for &b in &self.plan.growable {
            if let (Place::Output(i), Grown::Own(memory)) = (&self.model.program.buffers[b].place, &mut self.frame.grown[b]) {
                self.outputs[*i as usize].memory = core::mem::take(memory);
            }
        }
        #[cfg(feature = "host")]
        crate::host::forget(&self.model.program, &mut self.frame.slots, true);
        result?;
        self.finish(outputs)
    }

    /// An output of the last run. Its memory is the session's until the next run.
    pub fn output<'a>(&self, port: impl Into<PortId<'a>>) -> Result<TensorRef<'_>, Error> {
        let i = self.output_number(port.into())?;
        let (port, held) = (&self.model.outputs()[i], &self.outputs[i]);
        if !held.set {
            fail!(Output, "output {i} '{}' has no value: run the model first", port.name);
        }
        if port.host.is_some() {
            fail!(Output, "output {i} '{}' is {port}, which has no memory: read it with `value`", port.name);
        }
        let bytes = TensorRef::bytes_of(port.dtype, &held.dims).unwrap_or(0);
        let memory = match (&self.model.program.buffers[self.model.program.outputs[i].buffer as usize].place, port.state) {
            (Place::State(n), _) => &self.states[*n as usize].0,
            (_, Some(input)) => &self.inputs[input].memory,
            _ if held.mark => fail!(Output, "output {i} '{}' is in the memory that was given for it", port.name),
            _ => &held.memory,
        };
        // At least this large: `finish` has checked it.
        Ok(TensorRef { dtype: port.dtype, dims: &held.dims, bytes: &memory.bytes()[..bytes] })
    }

    /// The dims of an output of the last run, also if it was written to memory of the caller.
    pub fn output_dims<'a>(&self, port: impl Into<PortId<'a>>) -> Result<&[i64], Error> {
        let i = self.output_number(port.into())?;
        Ok(&self.outputs[i].dims)
    }

    /// Memory in use.
    pub fn memory(&self) -> Memory {
        let held = self.inputs.iter().chain(&self.outputs).map(|h| h.memory.len() as u64);
        let states = self.states.iter().map(|s| s.0.len() as u64);
        let grown = self.frame.grown.iter().map(|g| if let Grown::Own(memory) = g { memory.len() as u64 } else { 0 });
        Memory {
            arena: self.arena.len() as u64 + grown.sum::<u64>() + rooms_bytes(&self.frame),
            scratch: self.model.scratch * self.threads as u64,
            held: held.chain(states).sum(),
            constants: self.model.constants_bytes(),
        }
    }

    /// Bytes of memory of the GPU that nobody uses; `None` for a model that runs on the CPU.
    pub fn device_free(&self) -> Result<Option<u64>, Error> {
        device_free(&self.frame)
    }

    /// From now on a GPU takes the time of each run itself, for [`Session::device_time`], or no longer. Other models have no such time.
    pub fn time_device(&mut self, on: bool) -> Result<(), Error> {
        time_device(&mut self.frame, on)
    }

    /// Milliseconds that the steps of the last run took on the GPU, from behind the copy of the inputs to before that of the outputs, if
    /// [`Session::time_device`] asked for it. What the host does between steps is in it, where it does something there.
    pub fn device_time(&self) -> Option<f32> {
        device_time(&self.frame)
    }

    /// The time of each step, numbered in depth-first order, if [`Options::profile`] asked for it.
    pub fn times(&self) -> &[StepTime] {
        self.frame.times.as_deref().unwrap_or(&[])
    }

    pub(crate) fn input_number(&self, port: PortId<'_>) -> Result<usize, Error> {
        find(port, self.model.inputs()).ok_or_else(|| missing(ErrorKind::Input, "input", port, self.model.inputs()))
    }

    pub(crate) fn output_number(&self, port: PortId<'_>) -> Result<usize, Error> {
        find(port, self.model.outputs()).ok_or_else(|| missing(ErrorKind::Output, "output", port, self.model.outputs()))
    }

    /// An input that is a value of the host has been set; these are its dims, if it is a tensor.
    #[cfg(feature = "host")]
    pub(crate) fn hold_host_input(&mut self, i: usize, dims: Vec<i64>) {
        let held = &mut self.inputs[i];
        (held.dims, held.set, held.mark) = (dims, true, true);
    }

    /// Has the last run made this output?
    #[cfg(feature = "host")]
    pub(crate) fn has_output(&self, i: usize) -> bool {
        self.outputs[i].set
    }

    /// The values of symbols for this run; gives zeros to inputs whose state starts.
    fn bind(&mut self, inputs: &[(usize, TensorRef<'_>)]) -> Result<(), Error> {
        let program = &self.model.program;
        self.symbols.clear();
        for (s, symbol) in program.symbols.iter().enumerate() {
            let value = match symbol.source {
                SymbolSource::Step => 0,
                SymbolSource::Input { input, axis } => match dims_of(&self.inputs, inputs, input as usize) {
                    Some(dims) => dims[axis as usize],
                    // An input that starts as zeros: another one may tell.
                    None => told(program, &self.inputs, inputs, s as u32).unwrap_or(UNKNOWN),
                },
            };
            self.symbols.push(value);
        }
        for i in 0..self.inputs.len() {
            if dims_of(&self.inputs, inputs, i).is_some() {
                continue;
            }
            let (port, info) = (&program.inputs[i], &self.model.inputs()[i]);
            if info.state.is_none() {
                fail!(Input, "input {i} '{}' has no value: set it ({info}) before the run", info.name);
            }
            if let Some(s) = port.dims.iter().flat_map(|d| d.symbols()).find(|&s| self.symbols[s as usize] == UNKNOWN) {
                let symbol = &program.symbols[s as usize].name;
                fail!(
                    Input,
                    "input {i} '{}' ({info}) cannot start as zeros, since nothing tells '{symbol}': set it before the first run",
                    info.name
                );
            }
            let held = &mut self.inputs[i];
            held.dims.clear();
            held.dims.extend(port.dims.iter().map(|d| d.eval(&self.symbols).unwrap_or(0)));
            let bytes = TensorRef::bytes_of(info.dtype, &held.dims);
            let Some(bytes) = bytes else { fail!(Input, "input {i} '{}' cannot be {:?}", info.name, held.dims) };
            if !held.memory.reserve(bytes as u64)? {
                held.memory.bytes_mut().fill(0);
            }
            (held.set, held.mark) = (true, true);
        }
        Ok(())
    }

    /// All inputs have the dims that their ports and the symbols say.
    fn check_dims(&mut self, inputs: &[(usize, TensorRef<'_>)]) -> Result<(), Error> {
        for (i, port) in self.model.program.inputs.iter().enumerate() {
            let dims = dims_of(&self.inputs, inputs, i).unwrap_or(&[]);
            for (axis, (dim, &given)) in port.dims.iter().zip(dims).enumerate() {
                let expected = dim.known().or_else(|| dim.eval(&self.symbols)).unwrap_or(0);
                if expected != given {
                    let info = &self.model.inputs()[i];
                    let why = match &info.dims[axis] {
                        Dim::Fixed(_) => String::new(),
                        other => alloc::format!(" ({other})"),
                    };
                    fail!(
                        Input,
                        "input {i} '{}': expected {info}, given {}{dims:?}: dim {axis} is {given}, not {expected}{why}",
                        info.name,
                        info.dtype
                    );
                }
            }
        }
        Ok(())
    }

    /// Gives every buffer its memory for this run.
    fn place(&mut self, inputs: &[(usize, TensorRef<'_>)], outputs: &mut [(usize, &mut [u8])]) -> Result<(), Error> {
        let model = &*self.model;
        let program = &model.program;
        // A GPU has its own arena, and memory for what steps of the host use of it.
        let on_host = !has_gpu(&self.frame);
        self.arena.reserve(if on_host { self.plan.arena } else { 0 })?;
        self.given.clear();
        for (i, held) in self.inputs.iter().enumerate() {
            let caller = inputs.iter().find(|(n, _)| *n == i);
            self.given.push(match caller {
                Some((_, value)) => Given { start: value.bytes.as_ptr(), bytes: value.bytes.len() },
                None => Given { start: held.memory.pointer(), bytes: held.memory.len() },
            });
        }
        for i in 0..self.plan.growable.len() {
            let b = self.plan.growable[i];
            let memory = match program.buffers[b].place {
                Place::Output(i) => match outputs.iter_mut().find(|(n, _)| *n == i as usize) {
                    Some((_, memory)) => Grown::Caller(memory.as_mut_ptr(), memory.len()),
                    None => Grown::Own(core::mem::take(&mut self.outputs[i as usize].memory)),
                },
                _ => match core::mem::take(&mut self.frame.grown[b]) {
                    Grown::Own(memory) => Grown::Own(memory),
                    Grown::No | Grown::Caller(..) => Grown::Own(Aligned::default()),
                },
            };
            self.frame.grown[b] = memory;
        }
        for (b, buffer) in program.buffers.iter().enumerate() {
            if !matches!(self.frame.grown[b], Grown::No) {
                continue;
            }
            let size = self.plan.sizes[b];
            let base = match buffer.place {
                Place::Input(i) => {
                    let given = self.given[i as usize];
                    if size > given.bytes as u64 {
                        fail!(
                            Input,
                            "input {i} '{}' has {} bytes, the model reads {size}",
                            model.inputs()[i as usize].name,
                            given.bytes
                        );
                    }
                    // Never written: no step writes to an input.
                    given.start.cast_mut()
                }
                Place::Output(i) => match outputs.iter_mut().find(|(n, _)| *n == i as usize) {
                    Some((_, memory)) if size > memory.len() as u64 => {
                        let name = &model.outputs()[i as usize].name;
                        fail!(Output, "output {i} '{name}' needs {size} bytes, {} were given", memory.len());
                    }
                    Some((_, memory)) => memory.as_mut_ptr(),
                    None => {
                        let held = &mut self.outputs[i as usize];
                        let room = held.memory.len() as u64;
                        // A state that grows with each run is not moved each time.
                        let spare = if model.outputs()[i as usize].state.is_some() { room / 2 } else { 0 };
                        held.memory.reserve(if size > room { size.max(room + spare) } else { size })?;
                        held.memory.pointer()
                    }
                },
                // `validate` checked that it lies in the constants.
                Place::Constant(offset) => model.constants.wrapping_add(offset as usize).cast_mut(),
                Place::Arena { .. } if !on_host => core::ptr::null_mut(),
                // Safety: inside the arena, by `validate` or by `place`.
                Place::Arena { .. } => unsafe { self.arena.pointer().add(self.plan.offsets[b] as usize) },
                Place::State(n) => state_memory(&mut self.states[n as usize], size)?,
            };
            if self.frame.bases[b] != base {
                self.frame.bases[b] = base;
                self.resolved = false;
            }
        }
        #[cfg(feature = "gpu")]
        if let Some(gpu) = &mut self.frame.gpu {
            // The session's own memory; that of callers is theirs.
            for (b, buffer) in program.buffers.iter().enumerate() {
                let memory = match buffer.place {
                    Place::Input(i) if inputs.iter().all(|(n, _)| *n != i as usize) => Some(&mut self.inputs[i as usize].memory),
                    Place::Output(i) if outputs.iter().all(|(n, _)| *n != i as usize) => {
                        Some(&mut self.outputs[i as usize].memory)
                    }
                    _ => None,
                };
                gpu.pin(b, self.plan.sizes[b], memory);
            }
        }
        self.load_states(inputs);
        Ok(())
    }

    /// Inputs that live in state memory and were set are copied there.
    fn load_states(&mut self, inputs: &[(usize, TensorRef<'_>)]) {
        for (i, port) in self.model.program.inputs.iter().enumerate() {
            if port.is_host() {
                continue;
            }
            let Place::State(n) = self.model.program.buffers[port.buffer as usize].place else { continue };
            let value = match inputs.iter().find(|(k, _)| *k == i) {
                Some((_, value)) => value.bytes,
                None => self.inputs[i].memory.bytes(),
            };
            let given = inputs.iter().any(|(k, _)| *k == i) || self.inputs[i].mark;
            let state = &mut self.states[n as usize].0;
            let bytes = value.len().min(state.len());
            if given {
                state.bytes_mut()[..bytes].copy_from_slice(&value[..bytes]);
            }
        }
        self.inputs.iter_mut().for_each(|held| held.mark = false);
    }

    /// After the steps: dims of outputs, and state for the next run.
    fn finish(&mut self, outputs: &mut [(usize, &mut [u8])]) -> Result<(), Error> {
        let program = &self.model.program;
        for (i, port) in program.outputs.iter().enumerate() {
            let held = &mut self.outputs[i];
            if port.is_host() {
                #[cfg(feature = "host")]
                {
                    let value = self.frame.slots[port.buffer as usize].as_ref();
                    let dims = value.and_then(|v| v.as_tensor()).map_or(&[][..], |t| t.dims());
                    (held.dims, held.set) = (dims.iter().map(|&d| d as i64).collect(), value.is_some());
                }
                continue;
            }
            held.dims.clear();
            held.dims.extend(port.dims.iter().map(|d| d.eval(&self.plan.symbols).unwrap_or(-1)));
            let bytes = TensorRef::bytes_of(DType(port.dtype), &held.dims);
            let room = self.plan.sizes[port.buffer as usize];
            let Some(bytes) = bytes.filter(|&b| b as u64 <= room) else {
                fail!(
                    Run,
                    "output {i} '{}' would be {:?}, which is more than the {room} bytes made for it",
                    port.name,
                    held.dims
                );
            };
            held.set = true;
            held.mark = outputs.iter().any(|(n, _)| *n == i);
            let Some(input) = self.model.outputs()[i].state else { continue };
            let next = &mut self.inputs[input];
            next.dims.clear();
            next.dims.extend_from_slice(&held.dims);
            next.set = true;
            if matches!(program.buffers[port.buffer as usize].place, Place::State(_)) {
                continue;
            }
            match outputs.iter().find(|(n, _)| *n == i) {
                Some((_, memory)) => {
                    next.memory.reserve(bytes as u64)?;
                    next.memory.bytes_mut()[..bytes].copy_from_slice(&memory[..bytes]);
                }
                None => core::mem::swap(&mut next.memory, &mut held.memory),
            }
        }
        Ok(())
    }
}

/// What a session has on a GPU.
#[cfg(feature = "gpu")]
fn take_gpu(frame: &mut Frame) -> Option<crate::gpu::Gpu> {
    frame.gpu.take()
}

#[cfg(feature = "gpu")]
fn device_free(frame: &Frame) -> Result<Option<u64>, Error> {
    frame.gpu.as_ref().map(crate::gpu::Gpu::free_bytes).transpose()
}

#[cfg(feature = "gpu")]
fn time_device(frame: &mut Frame, on: bool) -> Result<(), Error> {
    frame.gpu.as_mut().map_or(Ok(()), |gpu| gpu.time(on))
}

#[cfg(feature = "gpu")]
fn device_time(frame: &Frame) -> Option<f32> {
    frame.gpu.as_ref().and_then(crate::gpu::Gpu::device_time)
}

#[cfg(feature = "gpu")]
fn has_gpu(frame: &Frame) -> bool {
    frame.gpu.is_some()
}

/// Without feature `gpu`, nothing.
#[cfg(not(feature = "gpu"))]
fn take_gpu(_: &mut Frame) -> Option<core::convert::Infallible> {
    None
}

#[cfg(not(feature = "gpu"))]
fn device_free(_: &Frame) -> Result<Option<u64>, Error> {
    Ok(None)
}

#[cfg(not(feature = "gpu"))]
fn time_device(_: &mut Frame, _: bool) -> Result<(), Error> {
    Ok(())
}

#[cfg(not(feature = "gpu"))]
fn device_time(_: &Frame) -> Option<f32> {
    None
}

#[cfg(not(feature = "gpu"))]
fn has_gpu(_: &Frame) -> bool {
    false
}

/// The value of a symbol that no input has told yet.
const UNKNOWN: i64 = -1;

/// The dims of an input in this run, if it has a value.
fn dims_of<'a>(held: &'a [Held], inputs: &'a [(usize, TensorRef<'_>)], i: usize) -> Option<&'a [i64]> {
    match inputs.iter().find(|(n, _)| *n == i) {
        Some((_, value)) => Some(value.dims),
        None => held[i].set.then_some(&held[i].dims[..]),
    }
}

/// The value of a symbol from any input that has it as a dim of its own.
fn told(program: &Program, held: &[Held], inputs: &[(usize, TensorRef<'_>)], symbol: u32) -> Option<i64> {
    program.inputs.iter().enumerate().find_map(|(i, port)| {
        let axis = port.dims.iter().position(|d| d.0 == [SizeOp::Symbol(symbol)])?;
        dims_of(held, inputs, i).map(|dims| dims[axis])
    })
}

/// State memory of this size; zeros if the size changed.
fn state_memory(state: &mut (Aligned, u64), size: u64) -> Result<*mut u8, Error> {
    if state.1 != size {
        if !state.0.reserve(size)? {
            state.0.bytes_mut().fill(0);
        }
        state.1 = size;
    }
    Ok(state.0.pointer())
}

fn find(port: PortId<'_>, ports: &[PortInfo]) -> Option<usize> {
    match port {
        PortId::Index(i) => (i < ports.len()).then_some(i),
        PortId::Name(name) => ports.iter().position(|p| p.name == name),
    }
}

fn missing(kind: ErrorKind, what: &str, port: PortId<'_>, ports: &[PortInfo]) -> Error {
    let names: Vec<String> = ports.iter().map(|p| alloc::format!("'{}'", p.name)).collect();
    let asked = match port {
        PortId::Index(i) => alloc::format!("{i}"),
        PortId::Name(name) => alloc::format!("'{name}'"),
    };
    Error::new(kind, alloc::format!("there is no {what} {asked}; the model has {}", names.join(", ")))
}

/// Bytes of a tensor for an input, if its dtype, rank and length are right.
fn check_tensor(model: &Model, i: usize, dtype: DType, dims: &[i64], given: Option<usize>) -> Result<usize, Error> {
    let port = &model.inputs()[i];
    if port.host.is_some() {
        fail!(Input, "input {i} '{}': expected {port}, given {dtype}{dims:?}: set it with `set_value`", port.name);
    }
    if dtype != port.dtype || dims.len() != port.dims.len() {
        fail!(Input, "input {i} '{}': expected {port}, given {dtype}{dims:?}", port.name);
    }
    let Some(bytes) = TensorRef::bytes_of(dtype, dims) else {
        fail!(Input, "input {i} '{}': {dims:?} is no shape", port.name);
    };
    if given.is_some_and(|g| g != bytes) {
        fail!(Input, "input {i} '{}': {dtype}{dims:?} takes {bytes} bytes, given {}", port.name, given.unwrap_or(0));
    }
    Ok(bytes)
}

fn check_align(start: *const u8, dtype: DType, kind: &str, name: &str) -> Result<(), Error> {
    if start.align_offset(dtype.align()) != 0 {
        fail!(Input, "the memory given for {kind} '{name}' is not aligned to {} bytes, as {dtype} needs", dtype.align());
    }
    Ok(())
}

/// Bytes of the arena that threads have copies of.
#[cfg(feature = "std")]
fn rooms_bytes(frame: &Frame) -> u64 {
    crate::rounds::bytes(&frame.rooms)
}

#[cfg(not(feature = "std"))]
fn rooms_bytes(_: &Frame) -> u64 {
    0
}

/// Starts worker threads; the number of threads that run tasks.
#[cfg(feature = "std")]
fn start_threads(frame: &mut Frame, model: &Model, options: &Options) -> Result<usize, Error> {
    let compiled = model.program.threads.map_or(1, |n| n as usize);
    if let Some(n) = options.threads.filter(|&n| n > MAX_THREADS as usize) {
        fail!(Usage, "{n} threads were asked for; a session takes at most {MAX_THREADS}, and 0 is one for each CPU");
    }
    let threads = match options.threads.unwrap_or(compiled) {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    if threads > 1 {
        let spin = core::time::Duration::from_micros(options.spin_us.into());
        frame.pool = Some(crate::pool::Pool::new(threads, spin, model.scratch)?);
        frame.rooms = crate::rounds::rooms(model, threads);
    }
    Ok(threads)
}

/// Without the standard library there is one thread.
#[cfg(not(feature = "std"))]
fn start_threads(_: &mut Frame, _: &Model, _: &Options) -> Result<usize, Error> {
    Ok(1)
}
