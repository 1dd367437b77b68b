//! A loop whose rounds are apart from each other, on several threads: each thread runs whole rounds, with memory of its own for what lives
//! inside of the loop alone, so that threads wait for each other once and share next to nothing.
//!
//! Which thread runs a round changes no result. The first thread has its part of the arena; the others have copies of that part.

use crate::error::Error;
use crate::exec::{KernelFn, place_in};
use crate::memory::Aligned;
use crate::model::Model;
use crate::plan::Plan;
use crate::session::StepTime;
use alloc::vec::Vec;
use infc_artifact::program::{Place, Program, Size, Step};
use std::time::Instant;

/// What a thread has for its rounds.
#[derive(Default)]
pub(crate) struct Room {
    /// Start of each buffer.
    bases: Vec<*mut u8>,
    /// Operands and extents of the launch that runs.
    pointers: Vec<*mut u8>,
    extents: Vec<i64>,
    symbols: Vec<i64>,
    /// The buffers inside of a loop.
    memory: Aligned,
    /// Time of the steps inside of the loop that runs; empty if it is not asked for.
    times: Vec<StepTime>,
}

/// What a round returns if a view of its launch lies outside of its buffer.
pub(crate) const OUTSIDE: u64 = u64::MAX;

/// The loop that runs.
#[derive(Clone, Copy)]
pub(crate) struct Rounds {
    model: *const Model,
    plan: *const Plan,
    rooms: *mut Room,
    /// Its steps, and the number of the first.
    body: (*const Step, usize),
    first: usize,
    counter: u32,
    /// How many rounds.
    pub(crate) count: i64,
}

/// Buffers of the arena that only these steps touch, from the first to the one before the last.
fn inside(program: &Program, plan: &Plan, (from, to): (usize, usize)) -> impl Iterator<Item = usize> {
    let own = move |place: &Place| matches!(place, Place::Arena { first, last, .. } if from <= *first as usize && (*last as usize) < to);
    let all = program.buffers.iter().enumerate();
    all.filter(move |(i, b)| own(&b.place) && !plan.growable.contains(i)).map(|(i, _)| i)
}

/// The part of the arena in which the buffers lie that only steps of this range touch.
fn span(program: &Program, plan: &Plan, steps: (usize, usize)) -> (u64, u64) {
    let ends = inside(program, plan, steps).map(|i| (plan.offsets[i], plan.offsets[i] + plan.sizes[i]));
    ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0, 0))
}

/// Calls `see` with the numbers of the first step and of the one after the last of each such loop.
fn each_loop(model: &Model, steps: &[Step], mut number: usize, see: &mut dyn FnMut((usize, usize))) {
    for step in steps {
        let info = model.steps[number];
        match step {
            Step::Loop { apart: true, .. } => see((number + 1, info.end)),
            Step::Loop { body, .. } => each_loop(model, body, number + 1, see),
            Step::If { then, otherwise, .. } => {
                each_loop(model, then, number + 1, see);
                each_loop(model, otherwise, info.otherwise, see);
            }
            Step::Launch { .. }
            | Step::Copy { .. }
            | Step::Bind { .. }
            | Step::Require { .. }
            | Step::Host { .. }
            | Step::HostLaunch { .. }
            | Step::ToHost { .. }
            | Step::ToDevice { .. } => {}
        }
        number = info.end;
    }
}

/// Rooms for `threads` threads; none if the model has no such loop.
pub(crate) fn rooms(model: &Model, threads: usize) -> Vec<Room> {
    let mut found = false;
    each_loop(model, &model.program.steps, 0, &mut |_| found = true);
    let room = |_| Room {
        bases: alloc::vec![core::ptr::null_mut(); model.program.buffers.len()],
        pointers: alloc::vec![core::ptr::null_mut(); model.launch_room.0],
        extents: alloc::vec![0; model.launch_room.1],
        symbols: alloc::vec![0; model.program.symbols.len()],
        ..Room::default()
    };
    if found && threads > 1 { (0..threads).map(room).collect() } else { Vec::new() }
}

/// Makes memory for all loops. Needed when sizes changed.
pub(crate) fn reserve(rooms: &mut [Room], model: &Model, plan: &Plan) -> Result<(), Error> {
    let mut most = 0;
    each_loop(model, &model.program.steps, 0, &mut |steps| {
        let (from, to) = span(&model.program, plan, steps);
        most = most.max(to - from);
    });
    rooms.iter_mut().skip(1).try_for_each(|room| room.memory.reserve(most).map(drop))
}

/// Bytes of that memory.
pub(crate) fn bytes(rooms: &[Room]) -> u64 {
    rooms.iter().map(|r| r.memory.len() as u64).sum()
}

impl Rounds {
    /// The rounds of a loop that begins with step `number`, with all rooms made ready. `bases` are those of the program's buffers.
    pub(crate) fn new(
        (model, plan): (&Model, &Plan),
        rooms: &mut [Room],
        bases: &[*mut u8],
        number: usize,
        (counter, count): (u32, i64),
        body: &[Step],
        timed: bool,
    ) -> Rounds {
        let steps = (number + 1, model.steps[number].end);
        let (low, _) = span(&model.program, plan, steps);
        for (thread, room) in rooms.iter_mut().enumerate() {
            room.symbols.copy_from_slice(&plan.symbols);
            room.bases.copy_from_slice(bases);
            for b in inside(&model.program, plan, steps).filter(|_| thread > 0) {
                // `reserve` made room for all from the first to the last of them.
                room.bases[b] = room.memory.pointer().wrapping_add((plan.offsets[b] - low) as usize);
            }
            room.times.clear();
            room.times.resize(if timed { body.len() } else { 0 }, StepTime::default());
        }
        Rounds { model, plan, rooms: rooms.as_mut_ptr(), body: (body.as_ptr(), body.len()), first: number + 1, counter, count }
    }

    /// Runs some rounds; 0 or `code + 1` of the first failed check.
    ///
    /// # Safety
    /// What [`Rounds::new`] was given is alive, and no other call has this thread's number; `scratch` is this call's alone and has the
    /// bytes that every kernel of the loop asks for.
    pub(crate) unsafe fn run(&self, thread: usize, scratch: *mut u8, begin: i64, end: i64) -> u64 {
        // Safety: by the caller.
        let (model, plan, room, body) = unsafe {
            (&*self.model, &*self.plan, &mut *self.rooms.add(thread), core::slice::from_raw_parts(self.body.0, self.body.1))
        };
        for round in begin..end {
            room.symbols[self.counter as usize] = round;
            for (k, step) in body.iter().enumerate() {
                let start = (!room.times.is_empty()).then(Instant::now);
                // Safety: by the caller.
                let status = unsafe { launch(model, plan, room, self.first + k, step, scratch) };
                if status != 0 {
                    return status;
                }
                if let Some(start) = start {
                    room.times[k].calls += 1;
                    room.times[k].nanoseconds += start.elapsed().as_nanos() as u64;
                }
            }
        }
        0
    }
}

/// Adds the time of all threads to that of the steps; they ran side by side.
pub(crate) fn add_times(rooms: &[Room], times: &mut [StepTime]) {
    let threads = rooms.iter().filter(|r| r.times.iter().any(|t| t.calls > 0)).count().max(1) as u64;
    for (k, time) in times.iter_mut().enumerate() {
        let all = rooms.iter().filter_map(|r| r.times.get(k));
        let (calls, nanoseconds) = all.fold((0, 0), |sum, t| (sum.0 + t.calls, sum.1 + t.nanoseconds));
        time.calls += calls;
        time.nanoseconds += nanoseconds / threads;
    }
}

/// Runs all tasks of a launch on this thread.
///
/// # Safety
/// As [`Rounds::run`] says.
unsafe fn launch(model: &Model, plan: &Plan, room: &mut Room, number: usize, step: &Step, scratch: *mut u8) -> u64 {
    let Step::Launch { kernel, buffers, extents, tasks } = step else { return 0 };
    let info = model.steps[number];
    let value = |size: &Size, symbols: &[i64]| size.known().or_else(|| size.eval(symbols)).unwrap_or(0);
    for (i, view) in buffers.iter().enumerate() {
        let offset = value(&view.offset, &room.symbols);
        let Some(at) = place_in(room.bases[view.buffer as usize], plan.sizes[view.buffer as usize], offset, 0) else {
            return OUTSIDE;
        };
        room.pointers[info.pointers + i] = at;
    }
    for (i, extent) in extents.iter().enumerate() {
        room.extents[info.extents + i] = value(extent, &room.symbols);
    }
    let tasks = value(tasks, &room.symbols);
    if tasks <= 0 {
        return 0;
    }
    let entry = model.program.kernels[*kernel as usize].entry as usize;
    // Safety: as for every launch, `validate` checked the entry; operands lie in their buffers.
    unsafe {
        let entry = core::mem::transmute::<*const u8, KernelFn>(model.code.add(entry));
        let (pointers, extents) = (room.pointers.as_ptr().add(info.pointers), room.extents.as_ptr().add(info.extents));
        entry(pointers, extents, scratch, 0, tasks)
    }
}
