//! Runs the steps of a program on a device: memory, copies, launches in a stream. Steps in a row that only queue work are captured once as a
//! graph and replayed; steps that need a value, and those of the host, stand between graphs, and wait for the stream.

use super::Loaded;
use super::driver::{Address, Graph, MapBytes, Mem, Pinned, Stream};
use crate::error::{Error, fail};
use crate::exec::Exec;
use crate::model::Model;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use infc_artifact::program::{Buffer, Message, Place, Program, Sides, Size, Step, SymbolSource, View, each_step};

/// Blocks for each multiprocessor, of kernels whose threads take several tasks.
const BLOCKS_EACH: u32 = 16;
/// Bytes of shared memory of a multiprocessor that has kernels which ask for much.
const SHARED_EACH: u32 = 227 << 10;

/// What a session has on the device.
pub(crate) struct Gpu {
    /// First, so that it is waited for before anything else goes.
    stream: Stream,
    /// Parts of the outermost list that only queue work.
    segments: Vec<Segment>,
    /// The symbols that graphs were captured for; those that steps set do not matter.
    captured: Vec<i64>,
    loaded: Arc<Loaded>,
    arena: Mem,
    /// Memory of inputs, outputs, states and buffers that grow, by buffer.
    own: Vec<Option<Mem>>,
    scratch: Mem,
    error: Mem,
    staging: Pinned,
    /// Memory of the host for values inside the model that its steps use.
    mirror: Pinned,
    parts: Vec<Part>,
    /// Which side touches which buffers.
    sides: Sides,
    /// Where each buffer begins.
    bases: Vec<Address>,
    /// Work was queued and not waited for.
    pending: bool,
    parameters: Vec<u64>,
    maps: Vec<MapBytes>,
}

/// Steps of the outermost list that only queue work, and whose sizes are known before the first one: captured once as a graph, and replayed.
/// Steps that need a value, and those of the host, lie between two of them.
struct Segment {
    steps: Range<usize>,
    /// Number of the first step.
    number: usize,
    graph: Option<Graph>,
}

/// A buffer inside the model with its place in the memory of the host.
struct Part {
    buffer: usize,
    life: (u32, u32),
    /// Bytes that it was placed with.
    bytes: u64,
    at: u64,
}

impl Gpu {
    /// Bytes of memory of the device that nobody uses.
    pub(crate) fn free_bytes(&self) -> Result<u64, Error> {
        self.loaded.device.enter()?;
        self.loaded.device.free_bytes()
    }

    pub(crate) fn new(loaded: Arc<Loaded>, model: &Model) -> Result<Gpu, Error> {
        let (device, program) = (loaded.device, &model.program);
        device.enter()?;
        let most = u64::from(device.processors * BLOCKS_EACH);
        let scratch = loaded.functions.iter().map(|f| f.scratch * u64::from(f.threads) * most).max().unwrap_or(0);
        let free = device.free_bytes()?;
        if scratch > free {
            fail!(Memory, "the kernels need {scratch} bytes of scratch memory on the device, '{}' has {free} free", device.name);
        }
        let sides = program.sides();
        Ok(Gpu {
            stream: device.stream()?,
            segments: segments(model),
            captured: Vec::new(),
            arena: device.alloc(0)?,
            own: program.buffers.iter().map(|_| None).collect(),
            scratch: device.alloc(scratch)?,
            error: device.alloc(4)?,
            staging: device.pinned(8)?,
            mirror: device.pinned(0)?,
            parts: parts(program, &sides),
            sides,
            bases: alloc::vec![0; program.buffers.len()],
            pending: false,
            parameters: Vec::new(),
            maps: Vec::new(),
            loaded,
        })
    }

    /// Runs the program: inputs and states are in the host's memory before, outputs and states after.
    pub(crate) fn run(&mut self, exec: &mut Exec<'_>) -> Result<(), Error> {
        self.loaded.device.enter()?;
        // What a run that failed has left.
        self.settle()?;
        exec.begin()?;
        let program = &exec.model.program;
        let told = |s: usize| program.symbols[s].source != SymbolSource::Step;
        let symbols = &exec.plan.symbols;
        if self.captured.len() != symbols.len() || (0..symbols.len()).any(|s| told(s) && self.captured[s] != symbols[s]) {
            self.captured.clone_from(symbols);
            self.forget_graphs();
        }
        self.place(exec)?;
        self.place_on_host(exec)?;
        self.upload(exec)?;
        let model = exec.model;
        if exec.frame.times.is_some() {
            self.stream.zero(self.error.address, 4)?;
            self.list(exec, &model.program.steps, 0)?;
        } else {
            self.whole(exec)?;
        }
        self.download(exec)?;
        self.check(exec)
    }

    /// The outermost list: segments as graphs, other steps one by one.
    fn whole(&mut self, exec: &mut Exec<'_>) -> Result<(), Error> {
        let model = exec.model;
        if self.segments.first().is_none_or(|s| s.steps.start > 0) {
            self.stream.zero(self.error.address, 4)?;
        }
        let (mut at, mut number, mut next) = (0, 0, 0);
        while let Some(step) = model.program.steps.get(at) {
            if self.segments.get(next).is_none_or(|s| s.steps.start != at) {
                self.step(exec, step, number)?;
                (at, number) = (at + 1, model.steps[number].end);
                continue;
            }
            self.segment(exec, next)?;
            let segment = &self.segments[next];
            number = segment.number + segment.steps.len();
            (at, next) = (segment.steps.end, next + 1);
        }
        Ok(())
    }

    /// Replays the graph of a segment, which is captured when it is needed first.
    fn segment(&mut self, exec: &Exec<'_>, which: usize) -> Result<(), Error> {
        let Gpu { stream, segments, loaded, bases, scratch, error, parameters, maps, .. } = self;
        let segment = &mut segments[which];
        if segment.graph.is_none() {
            let mut queue = Queue { stream, loaded, bases, scratch: scratch.address, error: error.address, parameters, maps };
            segment.graph = Some(stream.capture(|| {
                if segment.steps.start == 0 {
                    queue.stream.zero(queue.error, 4)?;
                }
                let steps = &exec.model.program.steps[segment.steps.clone()];
                steps.iter().enumerate().try_for_each(|(k, s)| queue.plain(exec, s, segment.number + k))
            })?);
        }
        if let Some(graph) = &segment.graph {
            stream.replay(graph)?;
        }
        self.pending = true;
        Ok(())
    }

    fn forget_graphs(&mut self) {
        self.segments.iter_mut().for_each(|s| s.graph = None);
    }

    /// Waits for what was queued.
    fn settle(&mut self) -> Result<(), Error> {
        if core::mem::take(&mut self.pending) { self.stream.wait() } else { Ok(()) }
    }

    /// Gives values inside the model that steps of the host use their memory there. It is laid out again only for other sizes.
    fn place_on_host(&mut self, exec: &mut Exec<'_>) -> Result<(), Error> {
        let size = |b: usize| if exec.plan.growable.contains(&b) { 0 } else { exec.plan.sizes[b] };
        if self.parts.iter().any(|p| p.bytes != size(p.buffer)) {
            let sizes: Vec<u64> = self.parts.iter().map(|p| size(p.buffer)).collect();
            let lives: Vec<(u32, u32)> = self.parts.iter().map(|p| p.life).collect();
            let Some((offsets, total)) = infc_artifact::memory::place(&sizes, &lives) else {
                fail!(Memory, "these shapes need more memory than there can be")
            };
            for ((part, bytes), at) in self.parts.iter_mut().zip(sizes).zip(offsets) {
                (part.bytes, part.at) = (bytes, at);
            }
            if total > self.mirror.len() as u64 {
                self.mirror = self.loaded.device.pinned(0)?;
                self.mirror = self.loaded.device.pinned(total as usize)?;
            }
            self.forget_graphs();
        }
        for part in &self.parts {
            if part.bytes > 0 {
                exec.frame.bases[part.buffer] = self.mirror.start().wrapping_add(part.at as usize);
            } else if !exec.plan.growable.contains(&part.buffer) {
                // Nothing is ever there, but a pointer to nothing is one too.
                exec.frame.bases[part.buffer] = core::ptr::without_provenance_mut(infc_artifact::abi::ALIGN);
            }
        }
        Ok(())
    }

    /// Memory for all buffers; what is missing is told before any is taken.
    fn place(&mut self, exec: &Exec<'_>) -> Result<(), Error> {
        let device = self.loaded.device;
        let program = &exec.model.program;
        let grows = |b: usize| exec.plan.growable.contains(&b);
        let mut need = exec.plan.arena.saturating_sub(self.arena.bytes);
        for (b, buffer) in program.buffers.iter().enumerate() {
            if self.sides.device[b] && matches!(buffer.place, Place::Input(_) | Place::Output(_) | Place::State(_)) {
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
                // Of the host alone.
                _ if !self.sides.device[b] => 0,
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
                self.segments.iter_mut().for_each(|s| s.graph = None);
            }
        }
        Ok(())
    }

    /// Buffers that come from the host and go back there.
    fn transfers(&self, exec: &Exec<'_>, back: bool) -> impl Iterator<Item = (usize, usize)> {
        let program = &exec.model.program;
        let wanted: Vec<(usize, usize)> = (program.buffers.iter().enumerate())
            .filter(|(i, _)| self.sides.device[*i])
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
        self.stage(self.transfers(exec, false).map(|t| t.1.next_multiple_of(64)).sum::<usize>().max(8))?;
        let mut at = 0;
        for (b, size) in self.transfers(exec, false) {
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
        self.settle()?;
        self.stage(self.transfers(exec, true).map(|t| t.1.next_multiple_of(64)).sum::<usize>().max(8))?;
        let mut at = 0;
        for (b, size) in self.transfers(exec, true) {
            // Safety: as in `upload`.
            unsafe { self.stream.to_host(self.staging.start().add(at), self.bases[b], size)? };
            at += size.next_multiple_of(64);
        }
        self.stream.wait()?;
        at = 0;
        for (b, size) in self.transfers(exec, true) {
            // Safety: as in `upload`; the copies are done.
            unsafe { core::ptr::copy_nonoverlapping(self.staging.start().add(at), exec.frame.bases[b], size) };
            at += size.next_multiple_of(64);
        }
        Ok(())
    }

    /// Bytes of a buffer, now.
    fn read(&mut self, exec: &Exec<'_>, number: usize, view: &View, out: &mut [u8]) -> Result<(), Error> {
        if !self.sides.device[view.buffer as usize] {
            let from = exec.address(number, view, out.len())?;
            // Safety: the address was checked for as many bytes of the host's memory.
            unsafe { core::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
            return Ok(());
        }
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
            let start = exec.frame.times.is_some().then(std::time::Instant::now);
            self.step(exec, step, number)?;
            if let Some(start) = start {
                self.settle()?;
                if let Some(times) = &mut exec.frame.times {
                    times[number].calls += 1;
                    times[number].nanoseconds += start.elapsed().as_nanos() as u64;
                }
            }
            number = exec.model.steps[number].end;
        }
        Ok(())
    }

    fn step(&mut self, exec: &mut Exec<'_>, step: &Step, number: usize) -> Result<(), Error> {
        match step {
            Step::Launch { .. } | Step::Copy { .. } | Step::Require { .. } => {
                self.pending = true;
                let Gpu { stream, loaded, bases, scratch, error, parameters, maps, .. } = self;
                Queue { stream, loaded, bases, scratch: scratch.address, error: error.address, parameters, maps }
                    .plain(exec, step, number)
            }
            Step::ToHost { buffer } => self.copy(exec, *buffer as usize, true),
            Step::ToDevice { buffer } => self.copy(exec, *buffer as usize, false),
            Step::HostLaunch { kernel, .. } => {
                self.settle()?;
                let done = exec.host_launch(*kernel, step, number);
                self.blame(exec, done)
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
                self.settle()?;
                let done = exec.host(number, inputs, outputs, *code);
                self.blame(exec, done)
            }
            #[cfg(not(feature = "host"))]
            Step::Host { .. } => fail!(Run, "step {number} runs on the host: refused when the model was loaded"),
        }
    }

    /// Copies a buffer from one side to the other.
    fn copy(&mut self, exec: &Exec<'_>, b: usize, to_host: bool) -> Result<(), Error> {
        let (bytes, there, host) = (exec.plan.sizes[b] as usize, self.bases[b], exec.frame.bases[b]);
        if bytes == 0 {
            return Ok(());
        }
        if there == 0 || host.is_null() {
            fail!(Run, "buffer {b} is copied between the GPU and the host, and one of them has no memory for it");
        }
        if self.parts.iter().any(|p| p.buffer == b && p.bytes > 0) {
            self.pending = true;
            // Safety: both have as many bytes. The host's are a part of the mirror, which steps of the host use after a wait alone.
            return unsafe { queue_copy(&self.stream, there, host, bytes, to_host) };
        }
        // Memory of the session or of the caller goes by way of the staging memory.
        self.settle()?;
        self.stage(bytes)?;
        let staging = self.staging.start();
        // Safety: all three have as many bytes, and the copy is waited for.
        unsafe {
            if !to_host {
                core::ptr::copy_nonoverlapping(host, staging, bytes);
            }
            queue_copy(&self.stream, there, staging, bytes, to_host)?;
            self.stream.wait()?;
            if to_host {
                core::ptr::copy_nonoverlapping(staging, host, bytes);
            }
        }
        Ok(())
    }

    /// What went wrong in a step of the host: the reason may be a kernel before it.
    fn blame(&mut self, exec: &Exec<'_>, done: Result<(), Error>) -> Result<(), Error> {
        if done.is_err() {
            self.check(exec)?;
        }
        done
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
            if !self.sides.device[b] {
                continue;
            }
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

/// Puts a copy between the device and the host into a stream.
///
/// # Safety
/// `host` has so many bytes; they are left alone until the stream has been waited for.
unsafe fn queue_copy(stream: &Stream, there: Address, host: *mut u8, bytes: usize, to_host: bool) -> Result<(), Error> {
    // Safety: by the caller.
    unsafe { if to_host { stream.to_host(host, there, bytes) } else { stream.to_device(there, host, bytes) } }
}

/// The parts of the outermost list that can be captured.
fn segments(model: &Model) -> Vec<Segment> {
    let mut out: Vec<Segment> = Vec::new();
    let mut number = 0;
    for (k, step) in model.program.steps.iter().enumerate() {
        let inner = |b: u32| matches!(model.program.buffers[b as usize].place, Place::Arena { .. });
        let queued = match step {
            Step::Launch { .. } | Step::Copy { .. } | Step::Require { .. } => true,
            Step::ToHost { buffer } | Step::ToDevice { buffer } => inner(*buffer),
            Step::Bind { .. } | Step::If { .. } | Step::Loop { .. } | Step::Host { .. } | Step::HostLaunch { .. } => false,
        };
        if queued && model.steps[number].fixed {
            match out.last_mut() {
                Some(last) if last.steps.end == k => last.steps.end = k + 1,
                _ => out.push(Segment { steps: k..k + 1, number, graph: None }),
            }
        }
        number = model.steps[number].end;
    }
    out
}

/// The buffers inside the model that the host needs memory for; where they lie is found when shapes are known.
fn parts(program: &Program, sides: &Sides) -> Vec<Part> {
    let mut read = alloc::vec![false; program.buffers.len()];
    each_step(&program.steps, &mut |step| match step {
        Step::Bind { from: view, .. } | Step::If { cond: view, .. } | Step::Loop { cond: Some(view), .. } => {
            read[view.buffer as usize] = true;
        }
        _ => {}
    });
    let here = |b: usize| sides.host[b] || sides.copied[b] || read[b] && !sides.device[b];
    let part = |(b, buffer): (usize, &Buffer)| match buffer.place {
        Place::Arena { first, last, .. } if here(b) => Some(Part { buffer: b, life: (first, last), bytes: u64::MAX, at: 0 }),
        _ => None,
    };
    program.buffers.iter().enumerate().filter_map(part).collect()
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
            Step::ToHost { buffer } | Step::ToDevice { buffer } => {
                let b = *buffer as usize;
                let (bytes, there, host) = (exec.plan.sizes[b] as usize, self.bases[b], exec.frame.bases[b]);
                if bytes == 0 {
                    return Ok(());
                }
                if there == 0 || host.is_null() {
                    fail!(Run, "step {number}: buffer {b} has no memory on one of both sides");
                }
                // Safety: as in `Gpu::copy`; only buffers of the mirror are copied here.
                unsafe { queue_copy(self.stream, there, host, bytes, matches!(step, Step::ToHost { .. })) }
            }
            Step::Bind { .. } | Step::If { .. } | Step::Loop { .. } | Step::Host { .. } | Step::HostLaunch { .. } => Ok(()),
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
