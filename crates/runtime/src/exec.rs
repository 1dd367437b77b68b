//! Runs the steps of a program: no allocation, no lock, every address inside its buffer.

use crate::error::{Error, fail};
use crate::memory::Aligned;
use crate::model::Model;
use crate::plan::Plan;
#[cfg(feature = "std")]
use crate::pool::Pool;
#[cfg(feature = "std")]
use crate::rounds::{self, Room, Rounds};
use crate::session::StepTime;
use alloc::vec::Vec;
use infc_artifact::program::{Kernel, Message, Size, Step, View};

/// A compiled kernel, as `infc_artifact::abi` describes it: called as on Linux, whatever the operating system is.
#[cfg(target_arch = "x86_64")]
pub(crate) type KernelFn = unsafe extern "sysv64" fn(*const *mut u8, *const i64, *mut u8, i64, i64) -> u64;
/// A compiled kernel, as `infc_artifact::abi` describes it; all operating systems call such functions alike.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) type KernelFn = unsafe extern "C" fn(*const *mut u8, *const i64, *mut u8, i64, i64) -> u64;

/// One launch: a kernel and what it is called with.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub(crate) entry: KernelFn,
    pub(crate) buffers: *const *mut u8,
    pub(crate) extents: *const i64,
    #[cfg_attr(not(feature = "std"), allow(dead_code, reason = "for the pool"))]
    pub(crate) tasks: i64,
}

impl Job {
    /// Runs a range of its tasks; 0 or `code + 1` of the first failed check.
    ///
    /// # Safety
    /// The pointers are those of a resolved launch whose memory is alive; `scratch` has the bytes that the kernel asks for and
    /// is used by this call alone.
    pub(crate) unsafe fn run(&self, scratch: *mut u8, begin: i64, end: i64) -> u64 {
        // Safety: by the caller.
        unsafe { (self.entry)(self.buffers, self.extents, scratch, begin, end) }
    }
}

/// What the threads of a pool do together: tasks of a launch, or rounds of a loop.
#[cfg(feature = "std")]
#[derive(Clone, Copy)]
pub(crate) enum Work {
    Tasks(Job),
    Rounds(Rounds),
}

#[cfg(feature = "std")]
impl Work {
    /// How many parts it has at most.
    pub(crate) fn count(&self) -> i64 {
        match self {
            Work::Tasks(job) => job.tasks,
            Work::Rounds(rounds) => rounds.count,
        }
    }
    /// Does some of it on a thread; 0 or `code + 1` of the first failed check.
    ///
    /// # Safety
    /// As [`Job::run`] and [`Rounds::run`] say.
    pub(crate) unsafe fn run(&self, thread: usize, scratch: *mut u8, begin: i64, end: i64) -> u64 {
        // Safety: by the caller.
        unsafe {
            match self {
                Work::Tasks(job) => job.run(scratch, begin, end),
                Work::Rounds(rounds) => rounds.run(thread, scratch, begin, end),
            }
        }
    }
}

/// The place `bytes` bytes of a buffer of `size` bytes at an offset, if they lie in it.
pub(crate) fn place_in(base: *mut u8, size: u64, offset: i64, bytes: usize) -> Option<*mut u8> {
    // A part of what is empty is empty, wherever it lies.
    let offset = if bytes == 0 && size == 0 { 0 } else { offset };
    let end = u64::try_from(offset).ok()?.checked_add(bytes as u64)?;
    // The buffer's memory has `size` bytes.
    (end <= size).then(|| base.wrapping_add(offset as usize))
}

/// The memory of a growable buffer.
#[derive(Default)]
pub(crate) enum Grown {
    /// The buffer does not grow.
    #[default]
    No,
    /// Memory of the session.
    Own(Aligned),
    /// Memory of the caller, with its size: an output that must fit.
    Caller(*mut u8, usize),
}

/// Memory of a session in which launches are prepared.
#[derive(Default)]
pub(crate) struct Frame {
    /// Start of each buffer.
    pub(crate) bases: Vec<*mut u8>,
    /// Buffer pointers of all launches.
    pointers: Vec<*mut u8>,
    /// Extents of all launches.
    extents: Vec<i64>,
    /// Tasks of each step that is a launch.
    tasks: Vec<i64>,
    /// Memory of each buffer that grows while the program runs.
    pub(crate) grown: Vec<Grown>,
    /// Scratch memory of the calling thread.
    pub(crate) scratch: Aligned,
    /// Time of each step, if asked for.
    pub(crate) times: Option<Vec<StepTime>>,
    /// Values of the host.
    #[cfg(feature = "host")]
    pub(crate) slots: Vec<Option<infc_host::Value>>,
    #[cfg(feature = "std")]
    pub(crate) pool: Option<Pool>,
    /// What each thread has for rounds of its own.
    #[cfg(feature = "std")]
    pub(crate) rooms: Vec<Room>,
    /// What the session has on a GPU, if the model is for one.
    #[cfg(feature = "gpu")]
    pub(crate) gpu: Option<crate::gpu::Gpu>,
}

// Safety: the pointers lead to memory of the session or of arguments of the current run; threads of the pool use them only during a launch.
unsafe impl Send for Frame {}

impl Frame {
    pub(crate) fn new(model: &Model) -> Result<Frame, Error> {
        let (pointers, extents) = model.launch_room;
        Ok(Frame {
            bases: alloc::vec![core::ptr::null_mut(); model.program.buffers.len()],
            pointers: alloc::vec![core::ptr::null_mut(); pointers],
            extents: alloc::vec![0; extents],
            tasks: alloc::vec![0; model.steps.len()],
            grown: model.program.buffers.iter().map(|_| Grown::No).collect(),
            scratch: Aligned::zeroed(model.scratch)?,
            #[cfg(feature = "host")]
            slots: crate::host::slots(&model.program),
            ..Frame::default()
        })
    }
}

/// A program about to run, or running.
pub(crate) struct Exec<'a> {
    pub(crate) model: &'a Model,
    pub(crate) plan: &'a mut Plan,
    pub(crate) frame: &'a mut Frame,
}

impl Exec<'_> {
    /// Prepares all launches that do not change while the program runs. Needed when shapes or base addresses changed.
    pub(crate) fn resolve(&mut self) -> Result<(), Error> {
        let model = self.model;
        #[cfg(feature = "std")]
        rounds::reserve(&mut self.frame.rooms, model, self.plan)?;
        self.resolve_list(&model.program.steps, &mut 0)
    }

    fn resolve_list(&mut self, steps: &[Step], number: &mut usize) -> Result<(), Error> {
        for step in steps {
            let own = *number;
            *number += 1;
            match step {
                Step::Launch { .. } if self.model.steps[own].fixed => self.fill(own, step)?,
                Step::If { then, otherwise, .. } => {
                    self.resolve_list(then, number)?;
                    self.resolve_list(otherwise, number)?;
                }
                Step::Loop { body, .. } => self.resolve_list(body, number)?,
                Step::Launch { .. }
                | Step::Copy { .. }
                | Step::Bind { .. }
                | Step::Require { .. }
                | Step::Host { .. }
                | Step::HostLaunch { .. }
                | Step::ToHost { .. }
                | Step::ToDevice { .. } => {}
            }
        }
        Ok(())
    }

    /// Writes pointers, extents and tasks of a launch.
    fn fill(&mut self, number: usize, step: &Step) -> Result<(), Error> {
        let (Step::Launch { buffers, extents, tasks, .. } | Step::HostLaunch { buffers, extents, tasks, .. }) = step else {
            return Ok(());
        };
        let info = self.model.steps[number];
        for (i, view) in buffers.iter().enumerate() {
            self.frame.pointers[info.pointers + i] = self.address(number, view, 0)?;
        }
        for (i, extent) in extents.iter().enumerate() {
            self.frame.extents[info.extents + i] = self.value(extent);
        }
        self.frame.tasks[number] = self.value(tasks);
        Ok(())
    }

    /// Gives buffers that grow their first size.
    pub(crate) fn begin(&mut self) -> Result<(), Error> {
        (0..self.plan.growable.len()).try_for_each(|i| self.grow(self.plan.growable[i]))
    }

    /// The two must be equal, or one of them 1.
    pub(crate) fn require(&self, left: &Size, right: &Size, or_one: bool, code: u32) -> Result<(), Error> {
        let (a, b) = (self.value(left), self.value(right));
        if a == b || or_one && (a == 1 || b == 1) {
            return Ok(());
        }
        let Message { node, text } = &self.model.program.messages[code as usize];
        fail!(Run, "{node}: {text} ({a} and {b})")
    }

    /// Runs the whole program.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        let model = self.model;
        self.begin()?;
        let _mode = FloatMode::default();
        self.list(&model.program.steps, 0)
    }

    /// Gives a symbol its value, and the buffers that depend on it their size.
    pub(crate) fn set(&mut self, symbol: u32, value: i64) -> Result<(), Error> {
        self.plan.symbols[symbol as usize] = value;
        for i in 0..self.plan.growable.len() {
            let buffer = self.plan.growable[i];
            if self.model.program.buffers[buffer].bytes.symbols().any(|s| s == symbol) {
                self.grow(buffer)?;
            }
        }
        Ok(())
    }

    /// Gives a growable buffer the size that it has with the symbols of this moment. What it holds stays.
    fn grow(&mut self, buffer: usize) -> Result<(), Error> {
        let size = self.value(&self.model.program.buffers[buffer].bytes).max(0) as u64;
        self.frame.bases[buffer] = match &mut self.frame.grown[buffer] {
            Grown::Caller(_, room) if size > *room as u64 => {
                fail!(Output, "the memory given for an output has {room} bytes, it needs {size}")
            }
            Grown::Caller(start, _) => *start,
            Grown::Own(memory) => {
                memory.grow(size)?;
                memory.pointer()
            }
            Grown::No => fail!(Run, "buffer {buffer} has no memory to grow in"),
        };
        self.plan.sizes[buffer] = size;
        Ok(())
    }

    /// Runs a list whose first step has this number.
    fn list(&mut self, steps: &[Step], mut number: usize) -> Result<(), Error> {
        for step in steps {
            #[cfg(feature = "std")]
            let start = self.frame.times.is_some().then(std::time::Instant::now);
            self.step(step, number)?;
            #[cfg(feature = "std")]
            if let (Some(start), Some(times)) = (start, &mut self.frame.times) {
                times[number].calls += 1;
                times[number].nanoseconds += start.elapsed().as_nanos() as u64;
            }
            number = self.model.steps[number].end;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, number: usize) -> Result<(), Error> {
        match step {
            Step::Launch { kernel, .. } => {
                if !self.model.steps[number].fixed {
                    self.fill(number, step)?;
                }
                self.launch(&self.model.program.kernels[*kernel as usize], number)
            }
            Step::Copy { from, to, bytes } => {
                let Ok(bytes) = usize::try_from(self.value(bytes)) else { fail!(Run, "step {number}: a copy of negative size") };
                let (from, to) = (self.address(number, from, bytes)?, self.address(number, to, bytes)?);
                // Safety: both ranges lie in their buffers; `copy` allows them to overlap.
                unsafe { core::ptr::copy(from, to, bytes) };
                Ok(())
            }
            Step::Bind { symbol, from, bound } => {
                let at = self.address(number, from, 8)?;
                // Safety: 8 bytes of a buffer; any bits are a number.
                let value = unsafe { at.cast::<i64>().read_unaligned() };
                let bound = self.value(bound);
                if !(0..=bound).contains(&value) {
                    let name = &self.model.program.symbols[*symbol as usize].name;
                    fail!(Run, "step {number}: the size '{name}' is {value}, which is not in 0..={bound}");
                }
                self.set(*symbol, value)
            }
            Step::Require { left, right, or_one, code } => self.require(left, right, *or_one, *code),
            Step::If { cond, then, otherwise } => match self.flag(number, cond)? {
                true => self.list(then, number + 1),
                false => self.list(otherwise, self.model.steps[number].otherwise),
            },
            #[cfg(feature = "std")]
            Step::Loop { counter, count, body, apart: true, .. } if self.spreads(count) => {
                self.spread(number, (*counter, self.value(count)), body)
            }
            Step::Loop { counter, count, cond, body, .. } => {
                for round in 0..self.value(count) {
                    if let Some(cond) = cond
                        && !self.flag(number, cond)?
                    {
                        break;
                    }
                    self.set(*counter, round)?;
                    self.list(body, number + 1)?;
                }
                Ok(())
            }
            #[cfg(feature = "host")]
            Step::Host { inputs, outputs, code, .. } => self.host(number, inputs, outputs, *code),
            Step::HostLaunch { .. } | Step::ToHost { .. } | Step::ToDevice { .. } => {
                fail!(Run, "step {number} runs beside a device: refused when the model was loaded")
            }
            #[cfg(not(feature = "host"))]
            Step::Host { .. } => fail!(Run, "step {number} runs on the host: refused when the model was loaded"),
        }
    }

    /// Are there rounds for all threads? Else they share the tasks of each launch.
    #[cfg(feature = "std")]
    fn spreads(&self, count: &Size) -> bool {
        let threads = self.frame.rooms.len();
        threads > 1 && self.value(count) >= threads as i64
    }

    /// Runs the rounds of a loop on all threads.
    #[cfg(feature = "std")]
    fn spread(&mut self, number: usize, rounds: (u32, i64), body: &[Step]) -> Result<(), Error> {
        let (frame, of_model) = (&mut *self.frame, (self.model, &*self.plan));
        let timed = frame.times.is_some();
        let rounds = Rounds::new(of_model, &mut frame.rooms, &frame.bases, number, rounds, body, timed);
        let scratch = frame.scratch.pointer();
        let Some(pool) = &mut frame.pool else { return Ok(()) };
        let status = pool.run(&Work::Rounds(rounds), scratch);
        if let Some(times) = &mut frame.times {
            rounds::add_times(&frame.rooms, &mut times[number + 1..=number + body.len()]);
        }
        self.check(status, number, None)
    }

    /// The error of a launch of a kernel that returned this, or of a loop.
    fn check(&self, status: u64, number: usize, kernel: Option<&str>) -> Result<(), Error> {
        match status {
            0 => Ok(()),
            #[cfg(feature = "std")]
            rounds::OUTSIDE => fail!(Run, "step {number}: a launch inside uses bytes that a buffer does not have"),
            code => match self.model.program.messages.get((code - 1) as usize) {
                Some(Message { node, text }) => fail!(Run, "{node}: {text}"),
                None => {
                    let kernel = kernel.map_or_else(|| "a kernel in it".into(), |name| alloc::format!("kernel '{name}'"));
                    fail!(Run, "step {number}: {kernel} failed with unknown code {}", code - 1)
                }
            },
        }
    }

    /// A launch beside a device.
    #[cfg(feature = "gpu")]
    pub(crate) fn host_launch(&mut self, kernel: u32, step: &Step, number: usize) -> Result<(), Error> {
        let _mode = FloatMode::default();
        self.fill(number, step)?;
        self.launch(&self.model.program.host_kernels[kernel as usize], number)
    }

    fn launch(&mut self, kernel: &Kernel, number: usize) -> Result<(), Error> {
        let model = self.model;
        let (info, tasks) = (model.steps[number], self.frame.tasks[number]);
        if tasks <= 0 {
            return Ok(());
        }
        // Safety: `validate` checked that the entry is in the code, which is mapped executable; that a function of the kernel ABI
        // lies there is what an artifact is trusted for.
        let entry = unsafe { core::mem::transmute::<*const u8, KernelFn>(model.code.add(kernel.entry as usize)) };
        // Safety: both are at most the length of the vector; the room of each launch was laid out when the model was loaded.
        let (buffers, extents) =
            unsafe { (self.frame.pointers.as_ptr().add(info.pointers), self.frame.extents.as_ptr().add(info.extents)) };
        let job = Job { entry, buffers, extents, tasks };
        let scratch = self.frame.scratch.pointer();
        #[cfg(feature = "std")]
        let status = match &mut self.frame.pool {
            Some(pool) if tasks > 1 => pool.run(&Work::Tasks(job), scratch),
            // Safety: the launch was resolved for memory that lives during this run; scratch is the largest of all kernels.
            _ => unsafe { job.run(scratch, 0, tasks) },
        };
        #[cfg(not(feature = "std"))]
        // Safety: as above.
        let status = unsafe { job.run(scratch, 0, tasks) };
        self.check(status, number, Some(&kernel.name))
    }

    /// A size at this moment. `validate` checked that it is well-formed.
    pub(crate) fn value(&self, size: &Size) -> i64 {
        size.known().or_else(|| size.eval(&self.plan.symbols)).unwrap_or(0)
    }

    /// The address of `bytes` bytes of a buffer.
    pub(crate) fn address(&self, number: usize, view: &View, bytes: usize) -> Result<*mut u8, Error> {
        let (buffer, offset) = (view.buffer as usize, self.value(&view.offset));
        let size = self.plan.sizes[buffer];
        match place_in(self.frame.bases[buffer], size, offset, bytes) {
            Some(at) => Ok(at),
            None => fail!(Run, "step {number}: bytes {offset}..+{bytes} of buffer {buffer}, which has {size}"),
        }
    }

    fn flag(&self, number: usize, view: &View) -> Result<bool, Error> {
        // Safety: one byte of a buffer.
        Ok(unsafe { self.address(number, view, 1)?.read() } != 0)
    }
}

/// The default floating-point environment (round to nearest, no flushing of subnormals) while it lives, so that results do not
/// depend on what the caller's thread has set.
pub(crate) struct FloatMode {
    #[cfg(target_arch = "x86_64")]
    saved: u32,
    #[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
    saved: u64,
}

impl Default for FloatMode {
    fn default() -> FloatMode {
        #[cfg(target_arch = "x86_64")]
        {
            let mut saved = 0u32;
            let default = 0x1f80u32;
            // Safety: the first stores the register to a variable, the second loads a valid value from one.
            unsafe {
                core::arch::asm!("stmxcsr [{}]", in(reg) &mut saved, options(nostack, preserves_flags));
                core::arch::asm!("ldmxcsr [{}]", in(reg) &default, options(nostack, preserves_flags, readonly));
            }
            FloatMode { saved }
        }
        #[cfg(target_arch = "aarch64")]
        {
            let saved: u64;
            // Safety: reads the control register and writes a valid value to it.
            unsafe {
                core::arch::asm!("mrs {}, fpcr", out(reg) saved, options(nomem, nostack, preserves_flags));
                core::arch::asm!("msr fpcr, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags));
            }
            FloatMode { saved }
        }
        #[cfg(target_arch = "riscv64")]
        {
            let saved: u64;
            // Safety: reads the rounding mode and sets it to the nearest.
            unsafe { core::arch::asm!("fsrm {}, zero", out(reg) saved, options(nomem, nostack, preserves_flags)) };
            FloatMode { saved }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
        FloatMode {}
    }
}

impl Drop for FloatMode {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // Safety: loads what was stored before.
        unsafe {
            core::arch::asm!("ldmxcsr [{}]", in(reg) &self.saved, options(nostack, preserves_flags, readonly));
        }
        #[cfg(target_arch = "aarch64")]
        // Safety: writes what was read before.
        unsafe {
            core::arch::asm!("msr fpcr, {}", in(reg) self.saved, options(nomem, nostack, preserves_flags));
        }
        #[cfg(target_arch = "riscv64")]
        // Safety: writes what was read before.
        unsafe {
            core::arch::asm!("fsrm {}", in(reg) self.saved, options(nomem, nostack, preserves_flags));
        }
    }
}
