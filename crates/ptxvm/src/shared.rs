//! Shared memory of a block, or of the blocks of a cluster one behind the other, and who touched which byte since when.
//!
//! A barrier of the whole block orders everything. Where a kernel has mbarriers, what a thread knows of the others is a clock for each of them: it
//! passes from who arrives at an mbarrier to who finds its phase over. Bulk copies and matrix instructions of warpgroups access
//! shared memory on another path (the asynchronous proxy): they see what threads wrote only behind a fence between both.

use std::collections::HashMap;

/// Nobody yet, or more than one thread.
const NONE: u32 = u32::MAX;
const MANY: u32 = u32::MAX - 1;

#[derive(Clone, Copy)]
struct Mark {
    epoch: u32,
    writer: u32,
    written: u32,
    reader: u32,
    read: u32,
    /// The thread that wrote last and when, unless a bulk copy did.
    generic: (u32, u32),
    /// Copies that are to come.
    pending: u16,
}

/// What a thread knows of each thread, and last of the bulk copies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    /// What it did before is done.
    pub seen: Vec<u32>,
    /// What it wrote before is seen by bulk copies and matrix instructions.
    pub fenced: Vec<u32>,
}

impl Clock {
    fn new(len: usize) -> Clock {
        Clock { seen: vec![0; len], fenced: vec![0; len] }
    }
    /// Learns what another one knows.
    pub fn join(&mut self, other: &Clock) {
        self.seen.iter_mut().zip(&other.seen).for_each(|(a, b)| *a = (*a).max(*b));
        self.fenced.iter_mut().zip(&other.fenced).for_each(|(a, b)| *a = (*a).max(*b));
    }
    /// Knows no more than another one.
    pub fn meet(&mut self, other: &Clock) {
        self.seen.iter_mut().zip(&other.seen).for_each(|(a, b)| *a = (*a).min(*b));
        self.fenced.iter_mut().zip(&other.fenced).for_each(|(a, b)| *a = (*a).min(*b));
    }
}

/// An mbarrier.
struct Barrier {
    /// Arrivals of a phase.
    count: u32,
    /// Arrivals that are missing.
    left: u32,
    /// Bytes that are missing.
    bytes: i64,
    /// Phases that are over.
    phases: u32,
    /// Who made it, and whether other blocks of the cluster were told.
    maker: u32,
    told: bool,
    /// What those who arrived in this phase knew, and those of phases before.
    arrived: Clock,
    over: Clock,
}

/// What a copy reads.
pub(crate) enum Source {
    /// Memory from an address on.
    Plain(u64),
    /// The box of a tensor that begins at these coordinates.
    Box(crate::TensorMap, Vec<i32>),
}

/// A copy that an mbarrier counts.
pub(crate) struct Bulk {
    pub to: usize,
    pub from: Source,
    pub bytes: usize,
    pub barrier: usize,
}

/// Bytes that a matrix instruction reads are looked at together.
pub(crate) const CHUNK: usize = 16;

/// The memory and its marks.
pub(crate) struct Shared {
    pub bytes: Vec<u8>,
    marks: Vec<Mark>,
    /// Counts barriers of the block.
    epoch: u32,
    /// Of each thread and of the bulk copies, where the kernel has mbarriers.
    clocks: Vec<Clock>,
    barriers: HashMap<usize, Barrier>,
    bulk: Vec<Bulk>,
    /// For each chunk and warp: matrix instructions that read it and are not waited for, and when the last of them was.
    readers: HashMap<(u32, u32), (u32, u32)>,
    /// Changes of mbarriers.
    pub events: u64,
    /// Bytes and threads of a block.
    block: [usize; 2],
}

impl Shared {
    pub fn new([len, threads]: [usize; 2], blocks: usize, asynchronous: bool) -> Shared {
        let block = [len, threads];
        let (len, threads) = (len * blocks, threads * blocks);
        let mark = Mark { epoch: 0, writer: NONE, written: 0, reader: NONE, read: 0, generic: (NONE, 0), pending: 0 };
        let mut clocks = if asynchronous { vec![Clock::new(threads + 1); threads + 1] } else { vec![] };
        clocks.iter_mut().enumerate().for_each(|(t, c)| c.seen[t] = 1);
        Shared {
            bytes: vec![0xa5; len],
            marks: vec![mark; len],
            epoch: 0,
            clocks,
            barriers: HashMap::new(),
            bulk: vec![],
            readers: HashMap::new(),
            events: 0,
            block,
        }
    }
    /// All threads of the block met.
    pub fn barrier(&mut self) {
        self.epoch += 1;
        self.events += 1;
        let Some((engine, threads)) = self.clocks.split_last_mut() else { return };
        let mut all = Clock::new(engine.seen.len());
        threads.iter().for_each(|c| all.join(c));
        for (t, c) in threads.iter_mut().enumerate() {
            c.join(&all);
            c.seen[t] += 1;
        }
    }
    fn now(&self, thread: u32) -> u32 {
        self.clocks.get(thread as usize).map_or(0, |c| c.seen[thread as usize])
    }
    /// Does `thread` know that `other` had come so far?
    fn knows(&self, thread: u32, other: u32, when: u32) -> bool {
        self.clocks.get(thread as usize).is_some_and(|c| c.seen.get(other as usize).is_some_and(|&s| s >= when))
    }
    fn who(&self, thread: u32) -> String {
        match thread {
            MANY => "several threads".into(),
            t if t as usize + 1 == self.clocks.len() => "a bulk copy".into(),
            t => format!("thread {t}"),
        }
    }
    /// Notes an access of `thread`; says with whom it races.
    pub fn touch(&mut self, at: usize, len: usize, thread: u32, write: bool) -> Result<(), String> {
        if write {
            self.not_read(at, len, thread)?;
        }
        let now = self.now(thread);
        for k in at..at + len {
            let mut mark = self.marks[k];
            if mark.pending > 0 {
                let kind = if write { "writes" } else { "reads" };
                return Err(format!("thread {thread} {kind} shared byte {k}, which a copy that is not waited for writes"));
            }
            if mark.epoch != self.epoch {
                mark = Mark { epoch: self.epoch, writer: NONE, reader: NONE, ..mark };
            }
            if mark.writer != NONE && mark.writer != thread && !self.knows(thread, mark.writer, mark.written) {
                let kind = if write { "writes" } else { "reads" };
                let who = self.who(mark.writer);
                return Err(format!("thread {thread} {kind} shared byte {k}, which {who} wrote since the last barrier"));
            }
            if write {
                if mark.reader != NONE && mark.reader != thread && !self.knows(thread, mark.reader, mark.read) {
                    let who = self.who(mark.reader);
                    return Err(format!("thread {thread} writes shared byte {k}, which {who} read since the last barrier"));
                }
                (mark.writer, mark.written, mark.reader) = (thread, now, NONE);
                mark.generic = (thread, now);
            } else {
                mark.reader = if mark.reader == NONE || mark.reader == thread { thread } else { MANY };
                mark.read = now;
            }
            self.marks[k] = mark;
        }
        Ok(())
    }
    /// No matrix instruction still reads these bytes, as far as `thread` knows.
    pub fn not_read(&self, at: usize, len: usize, thread: u32) -> Result<(), String> {
        if self.readers.is_empty() {
            return Ok(());
        }
        for chunk in at / CHUNK..(at + len).div_ceil(CHUNK) {
            for warp in 0..(self.clocks.len() as u32).div_ceil(32) {
                let Some(&(open, when)) = self.readers.get(&(chunk as u32, warp)) else { continue };
                if open > 0 || !self.knows(thread, warp * 32, when) {
                    return Err(format!(
                        "thread {thread} writes shared byte {}, which a matrix instruction of warp {warp} may still read",
                        chunk * CHUNK
                    ));
                }
            }
        }
        Ok(())
    }
    /// A copy to these bytes has been asked for, or is done.
    pub fn pend(&mut self, at: usize, len: usize, more: bool) {
        if self.clocks.is_empty() {
            return;
        }
        for mark in &mut self.marks[at..at + len] {
            mark.pending = if more { mark.pending + 1 } else { mark.pending.saturating_sub(1) };
        }
    }
    /// What all threads of a warp know.
    pub fn common(&self, threads: std::ops::Range<u32>) -> Clock {
        let mut all = self.clocks[threads.start as usize].clone();
        threads.for_each(|t| all.meet(&self.clocks[t as usize]));
        all
    }
    /// A matrix instruction of a warp that knows so much reads bytes.
    pub fn read_by_matrix(&self, at: usize, len: usize, clock: &Clock) -> Result<&[u8], String> {
        let Some(bytes) = self.bytes.get(at..at + len) else {
            return Err(format!("a matrix instruction reads {len} bytes at {at} of {} bytes of shared memory", self.bytes.len()));
        };
        for (k, mark) in self.marks[at..at + len].iter().enumerate() {
            let at = at + k;
            if mark.pending > 0 {
                return Err(format!("a matrix instruction reads shared byte {at}, which a copy that is not waited for writes"));
            }
            if mark.epoch == self.epoch && mark.writer != NONE && clock.seen[mark.writer as usize] < mark.written {
                let who = self.who(mark.writer);
                return Err(format!(
                    "a matrix instruction reads shared byte {at}, which {who} wrote without an order between them"
                ));
            }
            let (writer, when) = mark.generic;
            if writer != NONE && clock.fenced[writer as usize] < when {
                return Err(format!(
                    "a matrix instruction reads shared byte {at}, which thread {writer} wrote without fence.proxy.async"
                ));
            }
        }
        Ok(bytes)
    }
    /// A matrix instruction of a warp reads a chunk from now on.
    pub fn reader_begins(&mut self, chunk: u32, warp: u32) {
        self.readers.entry((chunk, warp)).or_insert((0, 0)).0 += 1;
    }
    /// It is done, and all threads of the warp know.
    pub fn reader_ends(&mut self, chunk: u32, warp: u32) {
        let first = warp as usize * 32;
        let now = self.now(warp * 32);
        for clock in self.clocks.iter_mut().skip(first).take(32) {
            clock.seen[first] = clock.seen[first].max(now);
        }
        if let Some(r) = self.readers.get_mut(&(chunk, warp)) {
            *r = (r.0 - 1, now);
        }
    }
    /// `fence.proxy.async` of a thread.
    pub fn fence(&mut self, thread: u32) {
        if let Some(c) = self.clocks.get_mut(thread as usize) {
            let Clock { seen, fenced } = c;
            fenced.iter_mut().zip(&*seen).for_each(|(a, b)| *a = (*a).max(*b));
            seen[thread as usize] += 1;
        }
    }
    /// Makes an mbarrier.
    pub fn init(&mut self, at: usize, count: u32, thread: u32) -> Result<(), String> {
        if at % 8 != 0 || at + 8 > self.bytes.len() || count == 0 || count >= 1 << 20 {
            return Err(format!("an mbarrier of {count} arrivals at {at}"));
        }
        self.touch(at, 8, thread, true)?;
        let clock = Clock::new(self.clocks.len());
        let barrier =
            Barrier { count, left: count, bytes: 0, phases: 0, maker: thread, told: false, arrived: clock.clone(), over: clock };
        self.barriers.insert(at, barrier);
        Ok(())
    }
    /// An mbarrier that `thread` knows of.
    fn known(&mut self, at: usize, thread: u32) -> Result<&mut Barrier, String> {
        let missing = || format!("no mbarrier at {at}");
        let mark = self.marks.get(at).copied().ok_or_else(missing)?;
        if mark.epoch == self.epoch && mark.writer != thread && !self.knows(thread, mark.writer, mark.written) {
            return Err(format!("thread {thread} uses the mbarrier at {at} without knowing that it was made"));
        }
        let far = at / self.block[0].max(1) != thread as usize / self.block[1];
        let barrier = self.barriers.get_mut(&at).ok_or_else(missing)?;
        if far && !barrier.told {
            return Err(format!("thread {thread} uses the mbarrier at {at} of another block without fence.mbarrier_init"));
        }
        Ok(barrier)
    }
    /// Other blocks of the cluster may use the mbarriers that a thread made.
    pub fn tell(&mut self, thread: u32) {
        self.barriers.values_mut().filter(|b| b.maker == thread).for_each(|b| b.told = true);
    }
    fn settle(&mut self, at: usize) {
        let Some(b) = self.barriers.get_mut(&at) else { return };
        if b.left == 0 && b.bytes == 0 {
            b.phases += 1;
            b.left = b.count;
            let arrived = b.arrived.clone();
            b.over.join(&arrived);
            self.events += 1;
        }
    }
    /// A thread arrives, and says how many more bytes are to come.
    pub fn arrive(&mut self, at: usize, bytes: u32, thread: u32) -> Result<(), String> {
        let clock = self.clocks[thread as usize].clone();
        let b = self.known(at, thread)?;
        if b.left == 0 {
            return Err(format!("more arrivals at the mbarrier at {at} than it has"));
        }
        b.left -= 1;
        b.bytes += i64::from(bytes);
        b.arrived.join(&clock);
        self.clocks[thread as usize].seen[thread as usize] += 1;
        self.events += 1;
        self.settle(at);
        Ok(())
    }
    /// Asks for a bulk copy.
    pub fn ask(&mut self, bulk: Bulk, thread: u32) -> Result<(), String> {
        self.known(bulk.barrier, thread)?;
        self.not_read(bulk.to, bulk.bytes, thread)?;
        for k in bulk.to..bulk.to + bulk.bytes {
            let mark = self.marks[k];
            let now = mark.epoch == self.epoch;
            let others = [(mark.writer, mark.written), (mark.reader, mark.read)];
            if mark.pending > 0 || now && others.iter().any(|&(t, when)| t != NONE && t != thread && !self.knows(thread, t, when))
            {
                return Err(format!("a bulk copy writes shared byte {k}, which others still use"));
            }
            let (writer, when) = mark.generic;
            if writer != NONE && self.clocks[thread as usize].fenced[writer as usize] < when {
                return Err(format!("a bulk copy writes shared byte {k}, which thread {writer} wrote without fence.proxy.async"));
            }
        }
        self.pend(bulk.to, bulk.bytes, true);
        self.bulk.push(bulk);
        Ok(())
    }
    /// The copies that an mbarrier counts and that did not come yet.
    pub fn due(&mut self, at: usize) -> Vec<Bulk> {
        let (due, rest) = std::mem::take(&mut self.bulk).into_iter().partition(|b| b.barrier == at);
        self.bulk = rest;
        due
    }
    /// A bulk copy comes.
    pub fn come(&mut self, bulk: &Bulk, bytes: &[u8]) {
        self.pend(bulk.to, bulk.bytes, false);
        self.bytes[bulk.to..bulk.to + bulk.bytes].copy_from_slice(bytes);
        let engine = self.clocks.len() - 1;
        let now = self.clocks[engine].seen[engine];
        for mark in &mut self.marks[bulk.to..bulk.to + bulk.bytes] {
            *mark = Mark { epoch: self.epoch, writer: engine as u32, written: now, reader: NONE, generic: (NONE, 0), ..*mark };
        }
        let clock = self.clocks[engine].clone();
        if let Some(b) = self.barriers.get_mut(&bulk.barrier) {
            b.bytes -= bulk.bytes as i64;
            b.arrived.join(&clock);
        }
        self.clocks[engine].seen[engine] += 1;
        self.events += 1;
        self.settle(bulk.barrier);
    }
    /// Is the phase of this parity over? Who finds so knows what those who arrived knew.
    pub fn over(&mut self, at: usize, parity: u64, thread: u32) -> Result<bool, String> {
        let b = self.known(at, thread)?;
        if u64::from(b.phases & 1) == parity & 1 {
            return Ok(false);
        }
        let over = b.over.clone();
        self.clocks[thread as usize].join(&over);
        self.events += 1;
        Ok(true)
    }
    /// Copies that nobody waited for.
    pub fn left(&self) -> bool {
        !self.bulk.is_empty()
    }
}
