//! Runs the steps of a program on a device: memory, copies, launches in a stream. Programs whose steps are all known before are
//! captured once as a graph and replayed.

use super::Loaded;
use super::driver::{Address, Graph, MapBytes, Mem, Pinned, Stream};
use crate::error::{Error, fail};
use crate::exec::Exec;
use alloc::sync::Arc;
use alloc::vec::Vec;
#[cfg(feature = "host")]
use infc_artifact::program::HostValue;
use infc_artifact::program::{Message, Place, Program, Size, Step, View};

/// Blocks for each multiprocessor, of kernels whose threads take several tasks.
const BLOCKS_EACH: u32 = 16;
/// Bytes of shared memory of a multiprocessor that has kernels which ask for much.
const SHARED_EACH: u32 = 227 << 10;

/// What a session has on the device.
pub(crate) struct Gpu {
    /// First, so that it is waited for before anything else goes.
    stream: Stream,
    graph: Option<Graph>,
    /// The symbols that the graph was captured for.
    captured: Vec<i64>,
    loaded: Arc<Loaded>,
    arena: Mem,
    /// Memory of inputs, outputs, states and buffers that grow, by buffer.
    own: Vec<Option<Mem>>,
    scratch: Mem,
    error: Mem,
    staging: Pinned,
    /// Where each buffer begins.
    bases: Vec<Address>,
    /// Steps need nothing of the host.
    capturable: bool,
    parameters: Vec<u64>,
    maps: Vec<MapBytes>,
}

impl Gpu {
    /// Bytes of memory of the device that nobody uses.
    pub(crate) fn free_bytes(&self) -> Result<u64, Error> {
        self.loaded.device.enter()?;
        self.loaded.device.free_bytes()
    }

    pub(crate) fn new(loaded: Arc<Loaded>, program: &Program) -> Result<Gpu, Error> {
        let device = loaded.device;
        device.enter()?;
        let most = u64::from(device.processors * BLOCKS_EACH);
        let scratch = loaded.functions.iter().map(|f| f.scratch * u64::from(f.threads) * most).max().unwrap_or(0);
        let free = device.free_bytes()?;
        if scratch > free {
            fail!(Memory, "the kernels need {scratch} bytes of scratch memory on the device, '{}' has {free} free", device.name);
        }
        let plain = |s: &Step| matches!(s, Step::Launch { .. } | Step::Copy { .. } | Step::Require { .. });
        Ok(Gpu {
            stream: device.stream()?,
            graph: None,
            captured: Vec::new(),
            arena: device.alloc(0)?,
            own: program.buffers.iter().map(|_| None).collect(),
            scratch: device.alloc(scratch)?,
            error: device.alloc(4)?,
            staging: device.pinned(8)?,
            bases: alloc::vec![0; program.buffers.len()],
            capturable: program.steps.iter().all(plain),
            parameters: Vec::new(),
            maps: Vec::new(),
            loaded,
        })
    }

    /// Runs the program: inputs and states are in the host's memory before, outputs and states after.
    pub(crate) fn run(&mut self, exec: &mut Exec<'_>) -> Result<(), Error> {
        self.loaded.device.enter()?;
        exec.begin()?;
        self.place(exec)?;
        self.upload(exec)?;
        if self.capturable {
            if self.graph.is_none() || self.captured != exec.plan.symbols {
                self.graph = None;
                let Gpu { stream, loaded, arena: _, bases, scratch, error, parameters, maps, .. } = self;
                let mut queue = Queue { stream, loaded, bases, scratch: scratch.address, error: error.address, parameters, maps };
                self.graph = Some(stream.capture(|| {
                    queue.stream.zero(queue.error, 4)?;
                    exec.model.program.steps.iter().enumerate().try_for_each(|(n, s)| queue.plain(exec, s, n))
                })?);
                self.captured.clone_from(&exec.plan.symbols);
            }
            if let Some(graph) = &self.graph {
                self.stream.replay(graph)?;
            }
        } else {
            self.stream.zero(self.error.address, 4)?;
            let model = exec.model;
            self.list(exec, &model.program.steps, 0)?;
        }
        self.download(exec)?;
        self.check(exec)
    }

    /// Memory for all buffers; what is missing is told before any is taken.
    fn place(&mut self, exec: &Exec<'_>) -> Result<(), Error> {
        let device = self.loaded.device;
        let program = &exec.model.program;
        let grows = |b: usize| exec.plan.growable.contains(&b);
        let mut need = exec.plan.arena.saturating_sub(self.arena.bytes);
        for (b, buffer) in program.buffers.iter().enumerate() {
            if matches!(buffer.place, Place::Input(_) | Place::Output(_) | Place::State(_)) {
                let have = self.own[b].as_ref().map_or(0, |m| m.bytes);
                need += exec.plan.sizes[b].saturating_sub(have);
            }
        }
        if need > 0 {
            let free = device.free_bytes()?;
            if need > free {
                let (total, arena) = (need + self.arena.bytes, exec.plan.arena);
                fail!(
                    Memory,
                    "these shapes need {total} bytes of device memory ({arena} for values inside the model) beside {} of weights; \
                     '{}' has {free} free",
                    self.loaded.constants.bytes,
                    device.name
                );
            }
        }
        if exec.plan.arena > self.arena.bytes {
            self.arena = device.alloc(0)?;
            self.arena = device.alloc(exec.plan.arena)?;
        }
        for (b, buffer) in program.buffers.iter().enumerate() {
            let size = exec.plan.sizes[b];
            let base = match buffer.place {
                Place::Constant(offset) => self.loaded.constants.address + offset,
                Place::Arena { .. } if !grows(b) => self.arena.address + exec.plan.offsets[b],
                Place::Input(_) | Place::Output(_) | Place::State(_) | Place::Arena { .. } => {
                    if self.own[b].as_ref().is_none_or(|m| m.bytes < size) {
                        self.own[b] = None;
                        self.own[b] = Some(device.alloc(size)?);
                    }
                    self.own[b].as_ref().map_or(0, |m| m.address)
                }
            };
            if self.bases[b] != base {
                self.bases[b] = base;
                self.graph = None;
            }
        }
        Ok(())
    }

    /// Buffers that come from the host and go back there.
    fn transfers(exec: &Exec<'_>, back: bool) -> impl Iterator<Item = (usize, usize)> {
        let program = &exec.model.program;
        let wanted: Vec<(usize, usize)> = (program.buffers.iter().enumerate())
            .filter(|(_, b)| match b.place {
                Place::State(_) => true,
                Place::Input(_) => !back,
                Place::Output(_) => back,
                Place::Constant(_) | Place::Arena { .. } => false,
            })
            .map(|(b, _)| (b, exec.plan.sizes[b] as usize))
            .filter(|(b, size)| *size > 0 && !exec.frame.bases[*b].is_null())
            .collect();
        wanted.into_iter()
    }

    fn stage(&mut self, bytes: usize) -> Result<(), Error> {
        if self.staging.len() < bytes {
            self.staging = self.loaded.device.pinned(0)?;
            self.staging = self.loaded.device.pinned(bytes)?;
        }
        Ok(())
    }

    fn upload(&mut self, exec: &Exec<'_>) -> Result<(), Error> {
        self.stage(Gpu::transfers(exec, false).map(|t| t.1.next_multiple_of(64)).sum::<usize>().max(8))?;
        let mut at = 0;
        for (b, size) in Gpu::transfers(exec, false) {
            // Safety: the session gave the buffer memory of this size; staging memory is as large as all of them together.
            unsafe {
                let place = self.staging.start().add(at);
                core::ptr::copy_nonoverlapping(exec.frame.bases[b], place, size);
                self.stream.to_device(self.bases[b], place, size)?;
            }
            at += size.next_multiple_of(64);
        }
        // The same memory is used on the way back.
        self.stream.wait()
    }

    fn download(&mut self, exec: &Exec<'_>) -> Result<(), Error> {
        self.stream.wait()?;
        self.stage(Gpu::transfers(exec, true).map(|t| t.1.next_multiple_of(64)).sum::<usize>().max(8))?;
        let mut at = 0;
        for (b, size) in Gpu::transfers(exec, true) {
            // Safety: as in `upload`.
            unsafe { self.stream.to_host(self.staging.start().add(at), self.bases[b], size)? };
            at += size.next_multiple_of(64);
        }
        self.stream.wait()?;
        at = 0;
        for (b, size) in Gpu::transfers(exec, true) {
            // Safety: as in `upload`; the copies are done.
            unsafe { core::ptr::copy_nonoverlapping(self.staging.start().add(at), exec.frame.bases[b], size) };
            at += size.next_multiple_of(64);
        }
        Ok(())
    }

    /// Bytes of a buffer, now.
    fn read(&mut self, exec: &Exec<'_>, number: usize, view: &View, out: &mut [u8]) -> Result<(), Error> {
        let from = address(&self.bases, exec, number, view, out.len())?;
        self.stage(out.len())?;
        // Safety: staging memory has as many bytes; the copy is waited for.
        unsafe { self.stream.to_host(self.staging.start(), from, out.len()) }?;
        self.stream.wait()?;
        // Safety: as above.
        unsafe { core::ptr::copy_nonoverlapping(self.staging.start(), out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// The error that a kernel has left.
    fn check(&mut self, exec: &Exec<'_>) -> Result<(), Error> {
        let mut raw = [0u8; 4];
        // Safety: staging memory has at least 8 bytes; the copy is waited for.
        unsafe { self.stream.to_host(self.staging.start(), self.error.address, 4) }?;
        self.stream.wait()?;
        // Safety: as above.
        unsafe { core::ptr::copy_nonoverlapping(self.staging.start(), raw.as_mut_ptr(), 4) };
        match u32::from_le_bytes(raw) {
            0 => Ok(()),
            code => match exec.model.program.messages.get(code as usize - 1) {
                Some(Message { node, text }) => fail!(Run, "{node}: {text}"),
                None => fail!(Run, "a kernel failed with unknown code {}", code - 1),
            },
        }
    }

    fn list(&mut self, exec: &mut Exec<'_>, steps: &[Step], mut number: usize) -> Result<(), Error> {
        for step in steps {
            self.step(exec, step, number)?;
            number = exec.model.steps[number].end;
        }
        Ok(())
    }

    fn step(&mut self, exec: &mut Exec<'_>, step: &Step, number: usize) -> Result<(), Error> {
        match step {
            Step::Launch { .. } | Step::Copy { .. } | Step::Require { .. } => {
                let Gpu { stream, loaded, bases, scratch, error, parameters, maps, .. } = self;
                Queue { stream, loaded, bases, scratch: scratch.address, error: error.address, parameters, maps }
                    .plain(exec, step, number)
            }
            Step::Bind { symbol, from, bound } => {
                let mut raw = [0u8; 8];
                self.read(exec, number, from, &mut raw)?;
                let (value, bound) = (i64::from_le_bytes(raw), exec.value(bound));
                if !(0..=bound).contains(&value) {
                    // What went wrong in a kernel before is the reason.
                    self.check(exec)?;
                    let name = &exec.model.program.symbols[*symbol as usize].name;
                    fail!(Run, "step {number}: the size '{name}' is {value}, which is not in 0..={bound}");
                }
                self.set(exec, *symbol, value)
            }
            Step::If { cond, then, otherwise } => match self.flag(exec, number, cond)? {
                true => self.list(exec, then, number + 1),
                false => self.list(exec, otherwise, exec.model.steps[number].otherwise),
            },
            Step::Loop { counter, count, cond, body, .. } => {
                for round in 0..exec.value(count) {
                    if let Some(cond) = cond
                        && !self.flag(exec, number, cond)?
                    {
                        break;
                    }
                    self.set(exec, *counter, round)?;
                    self.list(exec, body, number + 1)?;
                }
                Ok(())
            }
            #[cfg(feature = "host")]
            Step::Host { inputs, outputs, code, .. } => {
                for value in inputs.iter().flatten() {
                    self.transfer(exec, number, value, true)?;
                }
                exec.host(number, inputs, outputs, *code)?;
                outputs.iter().try_for_each(|value| self.transfer(exec, number, value, false))
            }
            #[cfg(not(feature = "host"))]
            Step::Host { .. } => fail!(Run, "step {number} runs on the host: refused when the model was loaded"),
        }
    }

    /// An operand of a host routine, to the host's memory or from there.
    #[cfg(feature = "host")]
    fn transfer(&mut self, exec: &Exec<'_>, number: usize, value: &HostValue, to_host: bool) -> Result<(), Error> {
        let HostValue::Tensor { dtype, dims, view } = value else { return Ok(()) };
        let count: i64 = dims.iter().map(|d| exec.value(d).max(0)).product();
        let bytes = count as usize * infc_host::dtype::width(*dtype).unwrap_or(0);
        if bytes == 0 {
            return Ok(());
        }
        let (host, there) = (exec.address(number, view, bytes)?, address(&self.bases, exec, number, view, bytes)?);
        // Safety: the address was checked for as many bytes; the copies are waited for.
        unsafe {
            match to_host {
                true => self.stream.to_host(host, there, bytes)?,
                false => self.stream.to_device(there, host, bytes)?,
            }
        }
        self.stream.wait()
    }

    fn flag(&mut self, exec: &Exec<'_>, number: usize, view: &View) -> Result<bool, Error> {
        let mut raw = [0u8; 1];
        self.read(exec, number, view, &mut raw)?;
        Ok(raw[0] != 0)
    }

    /// Gives a symbol its value; buffers that grow get more memory, and keep what they hold.
    fn set(&mut self, exec: &mut Exec<'_>, symbol: u32, value: i64) -> Result<(), Error> {
        exec.set(symbol, value)?;
        for i in 0..exec.plan.growable.len() {
            let b = exec.plan.growable[i];
            let (size, have) = (exec.plan.sizes[b], self.own[b].as_ref().map_or(0, |m| m.bytes));
            if size > have {
                let larger = self.loaded.device.alloc(size.max(have + have / 2))?;
                if let Some(old) = self.own[b].take().filter(|o| o.bytes > 0) {
                    self.stream.on_device(larger.address, old.address, old.bytes as usize)?;
                    self.stream.wait()?;
                }
                self.bases[b] = larger.address;
                self.own[b] = Some(larger);
            }
        }
        Ok(())
    }
}

/// What is needed to put work into a stream.
struct Queue<'a> {
    stream: &'a Stream,
    loaded: &'a Loaded,
    bases: &'a [Address],
    scratch: Address,
    error: Address,
    parameters: &'a mut Vec<u64>,
    maps: &'a mut Vec<MapBytes>,
}

impl Queue<'_> {
    /// A step that only queues work.
    fn plain(&mut self, exec: &Exec<'_>, step: &Step, number: usize) -> Result<(), Error> {
        match step {
            Step::Launch { kernel, buffers, extents, tasks } => {
                self.launch(exec, number, *kernel as usize, (buffers, extents, tasks))
            }
            Step::Copy { from, to, bytes } => {
                let Ok(bytes) = usize::try_from(exec.value(bytes)) else { fail!(Run, "step {number}: a copy of negative size") };
                if bytes == 0 {
                    return Ok(());
                }
                let from = address(self.bases, exec, number, from, bytes)?;
                self.stream.on_device(address(self.bases, exec, number, to, bytes)?, from, bytes)
            }
            Step::Require { left, right, or_one, code } => exec.require(left, right, *or_one, *code),
            Step::Bind { .. } | Step::If { .. } | Step::Loop { .. } | Step::Host { .. } => Ok(()),
        }
    }

    fn launch(&mut self, exec: &Exec<'_>, number: usize, kernel: usize, call: (&[View], &[Size], &Size)) -> Result<(), Error> {
        let tasks = exec.value(call.2);
        if tasks <= 0 {
            return Ok(());
        }
        let f = &self.loaded.functions[kernel];
        self.parameters.clear();
        for view in call.0 {
            self.parameters.push(address(self.bases, exec, number, view, 0)?);
        }
        self.parameters.extend(call.1.iter().map(|e| exec.value(e) as u64));
        self.parameters.extend([tasks as u64, self.error, self.scratch]);
        self.maps.clear();
        for tensor in &f.maps {
            let Some(view) = call.0.get(tensor.buffer) else {
                fail!(Run, "step {number}: a tensor map of buffer {} of {}", tensor.buffer, call.0.len());
            };
            let end = tensor.offset.saturating_add(tensor.bytes);
            let at = address(self.bases, exec, number, view, usize::try_from(end).unwrap_or(usize::MAX))?;
            self.maps.push(self.loaded.device.map(&tensor.map, at + tensor.offset)?);
        }
        let wanted = (tasks as u64).div_ceil(u64::from(f.threads / f.together));
        // Threads of one block take one task after another where there are very many; scratch memory is made for so many blocks.
        let most = if let Some(fit) = SHARED_EACH.checked_div(f.shared) {
            // So many blocks fit at a time; each goes on to its next task while the one before is being stored.
            u64::from(self.loaded.device.processors) * u64::from(fit.max(1))
        } else if f.together == f.threads && f.scratch == 0 {
            i32::MAX as u64
        } else {
            u64::from(self.loaded.device.processors * BLOCKS_EACH)
        };
        self.stream.launch(f.handle, wanted.min(most) as u32, (f.threads, f.shared), self.parameters, self.maps)
    }
}

/// The device's address of `bytes` bytes of a buffer.
fn address(bases: &[Address], exec: &Exec<'_>, number: usize, view: &View, bytes: usize) -> Result<Address, Error> {
    let (buffer, offset) = (view.buffer as usize, exec.value(&view.offset));
    let size = exec.plan.sizes[buffer];
    let offset = if bytes == 0 && size == 0 { 0 } else { offset };
    let end = u64::try_from(offset).ok().and_then(|o| o.checked_add(bytes as u64));
    if end.is_none_or(|end| end > size) {
        fail!(Run, "step {number}: bytes {offset}..+{bytes} of buffer {buffer}, which has {size}");
    }
    Ok(bases[buffer] + offset as u64)
}
