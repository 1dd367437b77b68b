//! Runs the steps of a program on a device: memory, copies, launches in a stream. Steps in a row that only queue work are captured once as a
//! graph and replayed; steps that need a value, and those of the host, stand between graphs, and wait for the stream. A run without such steps
//! is one graph, with the copies of its inputs and outputs in it, and one wait.

use super::Loaded;
use super::driver::{Address, Event, Graph, MapBytes, Mem, Pinned, Stream};
use crate::error::{Error, fail};
use crate::exec::Exec;
use crate::memory::{Aligned, LARGE};
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
    /// Inputs, states, the word for errors and outputs, and where each of them lies: in `at_device` and in `staging` alike.
    ports: Ports,
    at_device: Mem,
    staging: Pinned,
    /// Memory of buffers that grow, by buffer.
    own: Vec<Option<Mem>>,
    scratch: Mem,
    /// Memory of the host for values that are asked for amid a run, and for outputs that grow.
    aside: Pinned,
    /// Memory of the host for values inside the model that its steps use.
    mirror: Pinned,
    parts: Vec<Part>,
    /// Which side touches which buffers.
    sides: Sides,
    /// Where each buffer begins.
    bases: Vec<Address>,
    /// Which large ports lie in memory of the session that the device reaches directly.
    pinned: Vec<bool>,
    /// Work was queued and not waited for.
    pending: bool,
    /// The moments between which steps run, if their time is asked for, and the time of the last run in milliseconds.
    timer: Option<[Event; 2]>,
    device_time: Option<f32>,
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

/// What a run brings and takes, in this order: large inputs and states, inputs, states, the word for errors, outputs, large outputs. Up go inputs,
/// states and a zero as the word; down come states, the word and outputs. So each way is one copy, and nobody has to clear the word. Each large one
/// has a copy of its own, from or to the session's memory where the device reaches that directly.
#[derive(Default)]
struct Ports {
    list: Vec<Port>,
    /// Bytes before the first input, the first state, the word, behind the last output, and of all; without large ones but for all.
    inputs_at: usize,
    states_at: usize,
    error_at: usize,
    end: usize,
    total: usize,
}

/// An input, a state or an output, with its place. One that grows has no bytes here.
struct Port {
    buffer: usize,
    at: usize,
    bytes: usize,
    /// It is an input or a state; it is an output or a state.
    up: bool,
    down: bool,
}

impl Port {
    /// Has it a copy of its own?
    fn large(&self) -> bool {
        self.bytes >= LARGE
    }
}

/// Each port begins at a multiple of this, as memory of the driver does.
const PORT_ALIGN: usize = 256;
/// Bytes of the word in which a kernel leaves its error.
const WORD: usize = 4;

impl Ports {
    fn new(program: &Program, sides: &Sides) -> Ports {
        let port = |(buffer, b): (usize, &Buffer)| {
            let (up, down) = match b.place {
                Place::Input(_) => (true, false),
                Place::State(_) => (true, true),
                Place::Output(_) => (false, true),
                Place::Constant(_) | Place::Arena { .. } => return None,
            };
            sides.device[buffer].then_some(Port { buffer, at: 0, bytes: 0, up, down })
        };
        Ports { list: program.buffers.iter().enumerate().filter_map(port).collect(), ..Ports::default() }
    }

    /// Gives each its place; `None` if there can be no such memory, else whether anything lies elsewhere than before.
    fn lay_out(&mut self, size: impl Fn(usize) -> u64) -> Option<bool> {
        if self.total > 0 && self.list.iter().all(|p| p.bytes as u64 == size(p.buffer)) {
            return Some(false);
        }
        for port in &mut self.list {
            port.bytes = usize::try_from(size(port.buffer)).ok()?;
        }
        let mut end = 0usize;
        let mut place = |wanted: fn(&Port) -> bool, end: &mut usize| {
            for port in self.list.iter_mut().filter(|p| wanted(p)) {
                port.at = *end;
                *end = end.checked_add(port.bytes)?.checked_next_multiple_of(PORT_ALIGN)?;
            }
            Some(())
        };
        place(|p| p.large() && p.up, &mut end)?;
        self.inputs_at = end;
        place(|p| !p.large() && !p.down, &mut end)?;
        self.states_at = end;
        place(|p| !p.large() && p.up && p.down, &mut end)?;
        self.error_at = end;
        end = end.checked_add(PORT_ALIGN)?;
        place(|p| !p.large() && !p.up, &mut end)?;
        self.end = end;
        place(|p| p.large() && !p.up, &mut end)?;
        self.total = end;
        Some(true)
    }

    /// Bytes that belong to no port among those that come back by one copy.
    fn gaps(&self) -> Vec<Range<usize>> {
        let behind = |p: &Port| p.at + p.bytes..(p.at + p.bytes).next_multiple_of(PORT_ALIGN);
        let ports = self.list.iter().filter(|p| p.down && !p.large()).map(behind);
        let word = self.error_at + WORD..self.error_at + PORT_ALIGN;
        ports.chain([word]).filter(|gap| !gap.is_empty()).collect()
    }

    /// Where the port lies that is this buffer.
    fn at(&self, buffer: usize) -> usize {
        self.list.iter().find(|p| p.buffer == buffer).map_or(0, |p| p.at)
    }
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

    /// From now on the device takes the time of the steps of each run, or no longer.
    pub(crate) fn time(&mut self, on: bool) -> Result<(), Error> {
        self.loaded.device.enter()?;
        self.settle()?;
        self.forget_graphs();
        (self.device_time, self.timer) = (None, None);
        if on {
            self.timer = Some([self.loaded.device.event()?, self.loaded.device.event()?]);
        }
        Ok(())
    }

    /// Milliseconds that the steps of the last run took on the device, if they were taken.
    pub(crate) fn device_time(&self) -> Option<f32> {
        self.device_time
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
            ports: Ports::new(program, &sides),
            at_device: device.alloc(0)?,
            staging: device.pinned(0)?,
            own: program.buffers.iter().map(|_| None).collect(),
            scratch: device.alloc(scratch)?,
            aside: device.pinned(8)?,
            mirror: device.pinned(0)?,
            parts: parts(program, &sides),
            sides,
            bases: alloc::vec![0; program.buffers.len()],
            pinned: alloc::vec![false; program.buffers.len()],
            pending: false,
            timer: None,
            device_time: None,
            parameters: Vec::new(),
            maps: Vec::new(),
            loaded,
        })
    }

    /// Says in which memory of the session a port of so many bytes lies in this run, if it does.
    pub(crate) fn pin(&mut self, buffer: usize, bytes: u64, memory: Option<&mut Aligned>) {
        let large = self.sides.device[buffer] && bytes >= LARGE as u64;
        let device = self.loaded.device;
        self.pinned[buffer] = large
            && memory.is_some_and(|m| {
                // Safety: only blocks of whole pages ask, and they keep what they get until they go.
                m.pin(|start, bytes| unsafe { device.register(start, bytes) })
            });
    }

    /// Runs the program: inputs and states are in the host's memory before, outputs and states after.
    pub(crate) fn run(&mut self, exec: &mut Exec<'_>) -> Result<(), Error> {
        let done = self.run_once(exec);
        if done.is_err() {
            // No copy may go on in memory of the session. What is wrong was told.
            let _ = self.settle();
        }
        done
    }

    fn run_once(&mut self, exec: &mut Exec<'_>) -> Result<(), Error> {
        self.loaded.device.enter()?;
        exec.begin()?;
        self.device_time = None;
        let program = &exec.model.program;
        let told = |s: usize| program.symbols[s].source != SymbolSource::Step;
        let symbols = &exec.plan.symbols;
        if self.captured.len() != symbols.len() || (0..symbols.len()).any(|s| told(s) && self.captured[s] != symbols[s]) {
            self.captured.clone_from(symbols);
            self.forget_graphs();
        }
        self.place(exec)?;
        self.place_on_host(exec)?;
        self.begin_upload(exec)?;
        let model = exec.model;
        if exec.frame.times.is_some() {
            self.queue_upload()?;
            // So that its time is not that of the first step.
            self.settle()?;
            self.list(exec, &model.program.steps, 0)?;
            self.queue_download()?;
            return self.take_outputs(exec);
        }
        self.whole(exec)?;
        self.take_outputs(exec)?;
        self.device_time = self.timer.as_ref().map(|[start, end]| end.since(start)).transpose()?;
        Ok(())
    }

    /// The outermost list, with the copies before and after it: segments as graphs, other steps one by one.
    fn whole(&mut self, exec: &mut Exec<'_>) -> Result<(), Error> {
        let model = exec.model;
        let all = model.program.steps.len();
        if self.segments.first().is_none_or(|s| s.steps.start > 0) {
            self.queue_upload()?;
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
        if self.segments.last().is_none_or(|s| s.steps.end < all) {
            self.queue_download()?;
        }
        Ok(())
    }

    /// Replays the graph of a segment, which is captured when it is needed first. The copies from and to staging memory are parts of
    /// the first and the last one, where no other steps stand before or behind.
    fn segment(&mut self, exec: &Exec<'_>, which: usize) -> Result<(), Error> {
        if self.segments[which].graph.is_none() {
            let Range { start, end } = self.segments[which].steps;
            let (number, error) = (self.segments[which].number, self.error());
            let Gpu { stream, loaded, bases, scratch, parameters, maps, ports, at_device, staging, timer, .. } = self;
            let mut queue = Queue { stream, loaded, bases, scratch: scratch.address, error, parameters, maps };
            let graph = stream.capture(|| {
                if start == 0 {
                    upload(stream, ports, at_device, staging, timer.as_ref())?;
                }
                let steps = &exec.model.program.steps;
                steps[start..end].iter().enumerate().try_for_each(|(k, s)| queue.plain(exec, s, number + k))?;
                if end == steps.len() {
                    download(stream, ports, at_device, staging, timer.as_ref())?;
                }
                Ok(())
            })?;
            self.segments[which].graph = Some(graph);
        }
        self.pending = true;
        if let Some(graph) = &self.segments[which].graph {
            self.stream.replay(graph)?;
        }
        Ok(())
    }

    /// The address of the word in which a kernel leaves its error.
    fn error(&self) -> Address {
        self.at_device.address + self.ports.error_at as u64
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
            self.forget_graphs();
            if total > self.mirror.len() as u64 {
                // Until there is memory nothing has a place.
                self.parts.iter_mut().for_each(|p| p.bytes = u64::MAX);
                self.mirror = self.loaded.device.pinned(0)?;
                self.mirror = self.loaded.device.pinned(total as usize)?;
            }
            for ((part, bytes), at) in self.parts.iter_mut().zip(sizes).zip(offsets) {
                (part.bytes, part.at) = (bytes, at);
            }
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
        let mut anew = false;
        match self.ports.lay_out(|b| if grows(b) { 0 } else { exec.plan.sizes[b] }) {
            Some(false) => {}
            Some(true) => {
                anew = true;
                self.forget_graphs();
            }
            None => {
                self.ports.total = 0;
                fail!(Memory, "these shapes need more memory than there can be")
            }
        }
        let ports = self.ports.total as u64;
        let mut need = exec.plan.arena.saturating_sub(self.arena.bytes);
        need = need.saturating_add(ports.saturating_sub(self.at_device.bytes));
        for (b, buffer) in program.buffers.iter().enumerate() {
            if grows(b) && self.sides.device[b] && matches!(buffer.place, Place::Output(_)) {
                let have = self.own[b].as_ref().map_or(0, |m| m.bytes);
                need = need.saturating_add(exec.plan.sizes[b].saturating_sub(have));
            }
        }
        if need > 0 {
            let free = device.free_bytes()?;
            if need > free {
                let (total, arena) = (need.saturating_add(self.arena.bytes + self.at_device.bytes), exec.plan.arena);
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
        // Nothing is under way, and graphs that know the old addresses go first.
        if ports > self.at_device.bytes {
            self.forget_graphs();
            self.at_device = device.alloc(0)?;
            self.at_device = device.alloc(ports)?;
        }
        if self.ports.total > self.staging.len() {
            self.forget_graphs();
            self.staging = device.pinned(0)?;
            self.staging = device.pinned(self.ports.total)?;
            // Safety: it has so many bytes. What lies between the ports goes to the device too.
            unsafe { self.staging.start().write_bytes(0, self.ports.total) };
        }
        // What lies between the ports comes back with them: it has been written too.
        for gap in if anew { self.ports.gaps() } else { Vec::new() } {
            // Safety: both memories have all ports; what lies between them is left alone.
            unsafe {
                self.stream.to_device(
                    self.at_device.address + gap.start as u64,
                    self.staging.start().add(gap.start),
                    gap.len(),
                )?
            };
        }
        for (b, buffer) in program.buffers.iter().enumerate() {
            let size = exec.plan.sizes[b];
            let base = match buffer.place {
                Place::Constant(offset) => self.loaded.constants.address + offset,
                Place::Arena { .. } if !grows(b) => self.arena.address + exec.plan.offsets[b],
                // Of the host alone.
                _ if !self.sides.device[b] => 0,
                _ if !grows(b) => self.at_device.address + self.ports.at(b) as u64,
                _ => {
                    if self.own[b].as_ref().is_none_or(|m| m.bytes < size) {
                        self.own[b] = None;
                        self.own[b] = Some(device.alloc(size)?);
                    }
                    self.own[b].as_ref().map_or(0, |m| m.address)
                }
            };
            if self.bases[b] != base {
                self.bases[b] = base;
                self.forget_graphs();
            }
        }
        Ok(())
    }

    /// Puts inputs and states into staging memory, and a zero for the word of errors; queues the copies of large ones. Nothing is under way before.
    fn begin_upload(&mut self, exec: &Exec<'_>) -> Result<(), Error> {
        for port in self.ports.list.iter().filter(|p| p.up && p.bytes > 0) {
            let (from, to) = (exec.frame.bases[port.buffer], self.host_side(exec, port));
            if from.is_null() {
                continue;
            }
            if from != to {
                // Safety: the session gave the buffer memory of this size; staging memory was laid out for it.
                unsafe { core::ptr::copy_nonoverlapping(from, to, port.bytes) };
            }
            if port.large() {
                self.pending = true;
                // Safety: as above. Nobody touches this memory before the run ends, when the stream was waited for.
                unsafe { self.stream.to_device(self.bases[port.buffer], to, port.bytes)? };
            }
        }
        // Safety: as above.
        unsafe { self.staging.start().add(self.ports.error_at).write_bytes(0, WORD) };
        Ok(())
    }

    fn queue_upload(&mut self) -> Result<(), Error> {
        self.pending = true;
        upload(&self.stream, &self.ports, &self.at_device, &self.staging, self.timer.as_ref())
    }

    fn queue_download(&mut self) -> Result<(), Error> {
        self.pending = true;
        download(&self.stream, &self.ports, &self.at_device, &self.staging, self.timer.as_ref())
    }

    /// Where a port lies in the memory of the host that the device reaches: its place in staging memory, or the session's.
    fn host_side(&self, exec: &Exec<'_>, port: &Port) -> *mut u8 {
        if port.large() && self.pinned[port.buffer] {
            return exec.frame.bases[port.buffer];
        }
        self.staging.start().wrapping_add(port.at)
    }

    /// Queues the copies of large outputs and of those that grow, waits for everything, and gives outputs and states to the session unless a kernel has left an error.
    fn take_outputs(&mut self, exec: &Exec<'_>) -> Result<(), Error> {
        let grown = |b: &usize| {
            let output = matches!(exec.model.program.buffers[*b].place, Place::Output(_));
            output && self.sides.device[*b] && exec.plan.sizes[*b] > 0 && !exec.frame.bases[*b].is_null()
        };
        let grown: Vec<(usize, usize)> =
            exec.plan.growable.iter().copied().filter(grown).map(|b| (b, exec.plan.sizes[b] as usize)).collect();
        for port in self.ports.list.iter().filter(|p| p.down && p.large()) {
            if !exec.frame.bases[port.buffer].is_null() {
                self.pending = true;
                // Safety: both sides have so many bytes; they are waited for.
                unsafe { self.stream.to_host(self.host_side(exec, port), self.bases[port.buffer], port.bytes)? };
            }
        }
        let mut at = 0;
        if !grown.is_empty() {
            self.make_room_aside(grown.iter().map(|g| g.1.next_multiple_of(64)).sum())?;
            self.pending = true;
        }
        for &(b, size) in &grown {
            // Safety: there is room for all of them together; they are waited for.
            unsafe { self.stream.to_host(self.aside.start().add(at), self.bases[b], size)? };
            at += size.next_multiple_of(64);
        }
        self.settle()?;
        let mut raw = [0u8; WORD];
        // Safety: the word lies in staging memory, and copies are done.
        unsafe { core::ptr::copy_nonoverlapping(self.staging.start().add(self.ports.error_at), raw.as_mut_ptr(), WORD) };
        told(exec, raw)?;
        for port in self.ports.list.iter().filter(|p| p.down && p.bytes > 0) {
            let (from, to) = (self.host_side(exec, port), exec.frame.bases[port.buffer]);
            if !to.is_null() && from != to {
                // Safety: the session gave the buffer memory of this size; copies are done.
                unsafe { core::ptr::copy_nonoverlapping(from, to, port.bytes) };
            }
        }
        at = 0;
        for &(b, size) in &grown {
            // Safety: as above.
            unsafe { core::ptr::copy_nonoverlapping(self.aside.start().add(at), exec.frame.bases[b], size) };
            at += size.next_multiple_of(64);
        }
        Ok(())
    }

    /// Memory of the host for copies that are waited for. It is replaced only when nothing is under way.
    fn make_room_aside(&mut self, bytes: usize) -> Result<(), Error> {
        if self.aside.len() < bytes {
            self.settle()?;
            self.aside = self.loaded.device.pinned(0)?;
            self.aside = self.loaded.device.pinned(bytes)?;
        }
        Ok(())
    }

    /// Copies from the device to the memory aside, now.
    fn bring(&mut self, from: Address, bytes: usize) -> Result<(), Error> {
        self.make_room_aside(bytes)?;
        self.pending = true;
        // Safety: it has as many bytes; the copy is waited for.
        unsafe { self.stream.to_host(self.aside.start(), from, bytes) }?;
        self.settle()
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
        self.bring(from, out.len())?;
        // Safety: it was brought there.
        unsafe { core::ptr::copy_nonoverlapping(self.aside.start(), out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// The error that a kernel has left so far.
    fn check(&mut self, exec: &Exec<'_>) -> Result<(), Error> {
        let mut raw = [0u8; WORD];
        self.bring(self.error(), WORD)?;
        // Safety: it was brought there.
        unsafe { core::ptr::copy_nonoverlapping(self.aside.start(), raw.as_mut_ptr(), WORD) };
        told(exec, raw)
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
                let error = self.error();
                let Gpu { stream, loaded, bases, scratch, parameters, maps, .. } = self;
                Queue { stream, loaded, bases, scratch: scratch.address, error, parameters, maps }.plain(exec, step, number)
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
        // Memory of the session or of the caller goes by way of the memory aside.
        if to_host {
            self.bring(there, bytes)?;
            // Safety: both have as many bytes.
            unsafe { core::ptr::copy_nonoverlapping(self.aside.start(), host, bytes) };
            return Ok(());
        }
        self.make_room_aside(bytes)?;
        self.pending = true;
        // Safety: all three have as many bytes. Each copy from the memory aside, and to it, was waited for, and so is this one.
        unsafe {
            core::ptr::copy_nonoverlapping(host, self.aside.start(), bytes);
            self.stream.to_device(there, self.aside.start(), bytes)?;
        }
        self.settle()
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
                    self.pending = true;
                    self.stream.on_device(larger.address, old.address, old.bytes as usize)?;
                    self.settle()?;
                }
                self.bases[b] = larger.address;
                self.own[b] = Some(larger);
            }
        }
        Ok(())
    }
}

/// Puts the copy of inputs, states and the word for errors into a stream, behind those of large ones. Steps come behind it: time is taken from there on.
fn upload(stream: &Stream, ports: &Ports, device: &Mem, staging: &Pinned, timer: Option<&[Event; 2]>) -> Result<(), Error> {
    let (at, end) = (ports.inputs_at, ports.error_at + WORD);
    // Safety: both were laid out for the ports; whoever changes staging memory waits for the stream before.
    unsafe { stream.to_device(device.address + at as u64, staging.start().add(at), end - at) }?;
    timer.map_or(Ok(()), |[start, _]| stream.mark(start))
}

/// Puts the copy of states, the word for errors and outputs into a stream, behind the steps.
fn download(stream: &Stream, ports: &Ports, device: &Mem, staging: &Pinned, timer: Option<&[Event; 2]>) -> Result<(), Error> {
    timer.map_or(Ok(()), |[_, end]| stream.mark(end))?;
    let at = ports.states_at;
    // Safety: as in `upload`.
    unsafe { stream.to_host(staging.start().add(at), device.address + at as u64, ports.end - at) }
}

/// What a word for errors says.
fn told(exec: &Exec<'_>, word: [u8; WORD]) -> Result<(), Error> {
    match u32::from_le_bytes(word) {
        0 => Ok(()),
        code => match exec.model.program.messages.get(code as usize - 1) {
            Some(Message { node, text }) => fail!(Run, "{node}: {text}"),
            None => fail!(Run, "a kernel failed with unknown code {}", code - 1),
        },
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
        // Whole clusters.
        let cluster = u64::from(f.cluster);
        let blocks = (wanted.min(most) / cluster).max(1) * cluster;
        self.stream.launch(f.handle, blocks as u32, (f.threads, f.shared), self.parameters, self.maps)
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
