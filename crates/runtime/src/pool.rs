//! Worker threads: the tasks of a launch, or the rounds of a loop, in contiguous parts, one for each thread.
//!
//! Which thread runs a task changes no result, since tasks are independent. During a run workers wait busily for the next launch: to wake one takes
//! longer than most launches. They offer their core to others after some microseconds, and park in the end; between runs they park after these microseconds.

use crate::error::{Error, fail};
use crate::exec::{FloatMode, Work};
use crate::memory::Aligned;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::Mutex;
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// What a worker waits on, alone in its cache lines.
#[repr(align(128))]
#[derive(Default)]
struct Slot {
    /// Counts the launches that the worker takes part in.
    turn: AtomicU32,
    sleeps: AtomicBool,
    /// What its part of the last launch returned.
    status: AtomicU64,
}

struct Shared {
    slots: Vec<Slot>,
    job: UnsafeCell<Option<(Work, usize)>>,
    /// Workers that have not finished the current launch; at first, those that have not started.
    pending: AtomicUsize,
    /// The thread that launches, and whether it is parked.
    caller: Mutex<Thread>,
    caller_sleeps: AtomicBool,
    stop: AtomicBool,
    /// Is there a run?
    running: AtomicBool,
    spin: Duration,
}

/// From here on a thread that waits offers its core to others.
const ALONE: Duration = Duration::from_micros(20);

// Safety: `job` is written only while no worker has a turn (`pending` is 0), and read only by workers that were given one after.
unsafe impl Sync for Shared {}
// Safety: as above; what the pointers in a job lead to outlives the launch.
unsafe impl Send for Shared {}

impl Shared {
    /// The caller waits for all workers.
    fn wait(&self) {
        if !spin(|| self.spin, || self.pending.load(SeqCst) == 0) {
            self.caller_sleeps.store(true, SeqCst);
            while self.pending.load(SeqCst) != 0 {
                thread::park();
            }
            self.caller_sleeps.store(false, SeqCst);
        }
    }
    /// A worker has done its part.
    fn done(&self) {
        if self.pending.fetch_sub(1, SeqCst) == 1 && self.caller_sleeps.load(SeqCst) {
            self.caller.lock().unwrap_or_else(|e| e.into_inner()).unpark();
        }
    }
}

/// A session's worker threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    caller: thread::ThreadId,
}

impl Pool {
    /// A pool in which `threads` threads run, one of them the caller.
    pub(crate) fn new(threads: usize, spin: Duration, scratch: u64) -> Result<Pool, Error> {
        let shared = Arc::new(Shared {
            slots: (1..threads).map(|_| Slot::default()).collect(),
            job: UnsafeCell::new(None),
            pending: AtomicUsize::new(threads - 1),
            caller: Mutex::new(thread::current()),
            caller_sleeps: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            running: AtomicBool::new(false),
            spin,
        });
        let mut pool = Pool { shared, workers: Vec::new(), caller: thread::current().id() };
        for number in 1..threads {
            let shared = pool.shared.clone();
            let scratch = Aligned::zeroed(scratch)?;
            match thread::Builder::new().name(alloc::format!("infc-{number}")).spawn(move || work(&shared, number, &scratch)) {
                Ok(worker) => pool.workers.push(worker),
                Err(e) => fail!(Memory, "worker thread {number} cannot be started: {e}"),
            }
        }
        // A thread asks for memory while it starts: not in the time of a run.
        pool.shared.wait();
        Ok(pool)
    }

    /// A run begins: tells the pool which thread launches.
    pub(crate) fn enter(&mut self) {
        self.shared.running.store(true, SeqCst);
        let current = thread::current();
        if self.caller != current.id() {
            self.caller = current.id();
            *self.shared.caller.lock().unwrap_or_else(|e| e.into_inner()) = current;
        }
    }

    /// The run is over.
    pub(crate) fn leave(&mut self) {
        self.shared.running.store(false, SeqCst);
    }

    /// Runs all tasks of a launch, or all rounds of a loop; 0 or `code + 1` of the first failed check in their order.
    pub(crate) fn run(&mut self, job: &Work, scratch: *mut u8) -> u64 {
        let shared = &*self.shared;
        let parts = usize::try_from(job.count()).unwrap_or(usize::MAX).min(self.workers.len() + 1);
        // Safety: no worker has a turn, since every launch waits for all that were given one.
        unsafe { *shared.job.get() = Some((*job, parts)) };
        shared.pending.store(parts - 1, SeqCst);
        for (slot, worker) in shared.slots.iter().zip(&self.workers).take(parts - 1) {
            slot.turn.fetch_add(1, SeqCst);
            if slot.sleeps.load(SeqCst) {
                worker.thread().unpark();
            }
        }
        let (begin, end) = part(job.count(), 0, parts);
        // Safety: the launch is resolved, and the scratch is the caller's.
        let own = unsafe { job.run(0, scratch, begin, end) };
        shared.wait();
        // Parts are in the order of tasks, so that the first failure is the same for any number of threads.
        let statuses = shared.slots[..parts - 1].iter().map(|s| s.status.load(SeqCst));
        core::iter::once(own).chain(statuses).find(|&s| s != 0).unwrap_or(0)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for (slot, worker) in self.shared.slots.iter().zip(&self.workers) {
            slot.turn.fetch_add(1, SeqCst);
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            // A worker does not panic; if it did, there is nothing to do about it here.
            let _ = worker.join();
        }
    }
}

/// The tasks of part `i` of `parts`.
fn part(tasks: i64, i: usize, parts: usize) -> (i64, i64) {
    let cut = |i: usize| (i128::from(tasks) * i as i128 / parts as i128) as i64;
    (cut(i), cut(i + 1))
}

/// Waits busily, but not longer than `limit`; whether `done` came true.
fn spin(limit: impl Fn() -> Duration, done: impl Fn() -> bool) -> bool {
    if done() {
        return true;
    }
    if limit().is_zero() {
        return false;
    }
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if done() {
                return true;
            }
            core::hint::spin_loop();
        }
        let waited = start.elapsed();
        if waited >= limit() {
            return false;
        }
        if waited >= ALONE {
            thread::yield_now();
        }
    }
}

fn work(shared: &Shared, number: usize, scratch: &Aligned) {
    let _mode = FloatMode::default();
    let slot = &shared.slots[number - 1];
    let mut seen = 0;
    shared.done();
    loop {
        let limit = || if shared.running.load(SeqCst) { shared.spin } else { shared.spin.min(ALONE) };
        if !spin(limit, || slot.turn.load(SeqCst) != seen) {
            slot.sleeps.store(true, SeqCst);
            while slot.turn.load(SeqCst) == seen {
                thread::park();
            }
            slot.sleeps.store(false, SeqCst);
        }
        seen = slot.turn.load(SeqCst);
        if shared.stop.load(SeqCst) {
            return;
        }
        // Safety: this worker has a turn, so that the caller wrote the job before and leaves it until `pending` is 0.
        if let Some((job, parts)) = unsafe { *shared.job.get() } {
            let (begin, end) = part(job.count(), number, parts);
            // Safety: the launch is resolved, and the scratch is this worker's own.
            slot.status.store(unsafe { job.run(number, scratch.pointer(), begin, end) }, SeqCst);
        }
        shared.done();
    }
}
