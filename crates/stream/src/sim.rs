//! Cycle simulation: real data through finite FIFOs, beat by beat.
//!
//! Each actor runs its iterations (one a cycle if it can), each with the data of its beats. A result comes out of an actor's pipeline after
//! its latency; a full FIFO holds the pipeline. Sources and sinks may stall at random. A cycle in which nothing can move, though frames
//! are not finished, is a deadlock.

use crate::design::*;
use crate::estimate::latency;
use crate::schedule::{Reads, Schedule, Step};
use std::collections::VecDeque;

/// What disturbs a simulation.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    /// Seed of the random numbers.
    pub seed: u64,
    /// Of 256 cycles, so many in which an input has no beat.
    pub source: u8,
    /// Of 256 cycles, so many in which an output takes no beat.
    pub sink: u8,
}

impl Pressure {
    /// Inputs and outputs are always ready.
    pub const NONE: Pressure = Pressure { seed: 1, source: 0, sink: 0 };
}

/// What a simulation found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// For each frame, for each output, the elements.
    pub frames: Vec<Vec<Vec<i64>>>,
    /// Cycles until the last beat of each frame.
    pub ends: Vec<u64>,
    /// For each stream, the most beats that its FIFO held.
    pub high: Vec<usize>,
}

impl Run {
    /// Cycles between the last two frames; all cycles, if there is one only.
    pub fn interval(&self) -> u64 {
        match self.ends[..] {
            [.., a, b] => b - a,
            [a] => a,
            [] => 0,
        }
    }
}

/// Everything waits for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// The cycle.
    pub cycle: u64,
    /// Streams whose FIFO is full, by name.
    pub full: Vec<String>,
    /// Streams that an actor waits for, by name.
    pub empty: Vec<String>,
}

impl std::fmt::Display for Deadlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "deadlock in cycle {}: full are {:?}, empty are {:?}", self.cycle, self.full, self.empty)
    }
}

struct Fifo {
    lanes: usize,
    depth: usize,
    /// Elements that can be read.
    data: VecDeque<i64>,
    /// When each beat in the writer's pipeline comes out, and its elements.
    ready: VecDeque<u64>,
    pipe: VecDeque<i64>,
    high: usize,
}

impl Fifo {
    fn beats(&self) -> usize {
        self.data.len() / self.lanes
    }
    /// The next beat leaves the pipeline, if it is time and there is space.
    fn advance(&mut self, now: u64) -> bool {
        if self.ready.front().is_none_or(|&t| t > now) || self.beats() >= self.depth {
            return false;
        }
        self.ready.pop_front();
        self.data.extend(self.pipe.drain(..self.lanes));
        self.high = self.high.max(self.beats());
        true
    }
    /// The pipeline cannot take more.
    fn stuck(&self, now: u64) -> bool {
        self.ready.front().is_some_and(|&t| t <= now)
    }
}

struct Process {
    schedule: Schedule,
    at: usize,
    frames: usize,
    latency: u64,
    memory: Memory,
}

/// What an actor keeps between iterations.
#[derive(Default)]
struct Memory {
    /// Stored elements: a line buffer, a vector, blocks.
    stored: Vec<i64>,
    /// Accumulators.
    acc: Vec<i64>,
    /// Elements read since the frame (or the block) began.
    taken: usize,
    /// Beats written since the frame began.
    given: usize,
    /// Offsets, for [`Kind::Rearrange`].
    offsets: Vec<usize>,
}

/// Simulates `frames` (inputs of each), one directly after the other.
pub fn run(design: &Design, frames: &[Vec<Vec<i64>>], pressure: Pressure) -> Result<Run, Box<Deadlock>> {
    let mut fifos: Vec<Fifo> = design
        .streams
        .iter()
        .map(|s| Fifo { lanes: s.lanes, depth: s.depth, data: [].into(), ready: [].into(), pipe: [].into(), high: 0 })
        .collect();
    let mut processes: Vec<Process> = design
        .actors
        .iter()
        .map(|a| {
            let (schedule, latency) = (Schedule::of(design, a), latency(design, a));
            Process { schedule, at: 0, frames: 0, latency, memory: memory(design, a) }
        })
        .collect();
    let mut outputs = vec![vec![vec![]; design.outputs.len()]; frames.len()];
    let mut ends = vec![0; frames.len()];
    let mut random = pressure.seed.max(1);
    let (mut now, mut idle) = (0u64, 0u64);
    let mut out = vec![];
    let mut read: Vec<i64> = vec![];
    // A wait for a pipeline or a random stall is no deadlock.
    let patience = 4096 + processes.iter().map(|p| p.latency).max().unwrap_or(0);
    while processes.iter().any(|p| p.frames < frames.len()) {
        let mut moved = false;
        for f in &mut fifos {
            moved |= f.advance(now);
        }
        // Consumers first: a beat that leaves makes space for one that comes in the next cycle.
        for (i, a) in design.actors.iter().enumerate().rev() {
            let p = &mut processes[i];
            if p.frames == frames.len() {
                continue;
            }
            let stall = match a.kind {
                Kind::Source(_) => pressure.source,
                Kind::Sink(_) => pressure.sink,
                _ => 0,
            };
            if stall > 0 && (next(&mut random) as u8) < stall {
                continue;
            }
            let step = p.schedule.at(p.at);
            let which = match step.read {
                Reads::No => 0..0,
                Reads::One(k) => k..k + 1,
                Reads::All => 0..a.inputs.len(),
            };
            if which.clone().any(|k| fifos[a.inputs[k].index()].data.is_empty()) {
                continue;
            }
            // A fork has no pipeline: it needs space in all FIFOs at once.
            let fork = matches!(a.kind, Kind::Fork);
            let blocked = |f: &Fifo| if fork { f.beats() >= f.depth } else { f.stuck(now) };
            if a.outputs.iter().any(|s| blocked(&fifos[s.index()])) {
                continue;
            }
            read.clear();
            for k in which.clone() {
                let f = &mut fifos[a.inputs[k].index()];
                read.extend(f.data.drain(..f.lanes));
            }
            out.clear();
            let frame = p.frames;
            match &a.kind {
                Kind::Source(k) => {
                    let lanes = design.output(a, 0).lanes;
                    out.extend(&frames[frame][*k][p.at * lanes..(p.at + 1) * lanes]);
                }
                Kind::Sink(k) => outputs[frame][*k].extend(&read),
                kind => fire(design, a, kind, p, step, &read, &mut out),
            }
            moved = true;
            if step.write {
                for s in &a.outputs {
                    let f = &mut fifos[s.index()];
                    if fork {
                        f.data.extend(&out);
                        f.high = f.high.max(f.beats());
                    } else {
                        f.pipe.extend(&out);
                        f.ready.push_back(now + p.latency);
                    }
                }
            }
            p.at += 1;
            if p.at == p.schedule.iterations {
                p.at = 0;
                p.frames += 1;
                (p.memory.taken, p.memory.given) = (0, 0);
                if let Kind::Sink(_) = a.kind {
                    ends[frame] = ends[frame].max(now);
                }
            }
        }
        idle = if moved { 0 } else { idle + 1 };
        if idle > patience {
            return Err(Box::new(deadlock(design, &fifos, &processes, frames.len(), now - idle)));
        }
        now += 1;
    }
    Ok(Run { frames: outputs, ends, high: fifos.iter().map(|f| f.high).collect() })
}

fn deadlock(design: &Design, fifos: &[Fifo], processes: &[Process], frames: usize, cycle: u64) -> Deadlock {
    let full = design.streams.iter().zip(fifos).filter(|(_, f)| f.beats() >= f.depth).map(|(s, _)| s.name.clone()).collect();
    let mut empty = vec![];
    for (a, p) in design.actors.iter().zip(processes).filter(|(_, p)| p.frames < frames) {
        let which = match p.schedule.at(p.at).read {
            Reads::No => 0..0,
            Reads::One(k) => k..k + 1,
            Reads::All => 0..a.inputs.len(),
        };
        let waits = which.map(|k| a.inputs[k]).filter(|s| fifos[s.index()].data.is_empty());
        empty.extend(waits.map(|s| design.stream(s).name.clone()));
    }
    Deadlock { cycle, full, empty }
}

/// xorshift64.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 32
}

fn memory(d: &Design, a: &Actor) -> Memory {
    let mut m = Memory::default();
    match &a.kind {
        Kind::Window(w) => {
            let [_, width, c] = d.input(a, 0).shape;
            m.stored = vec![0; w.rows * width * c];
        }
        Kind::Mvu(mvu) => (m.stored, m.acc) = (vec![0; mvu.cols], vec![0; mvu.pe]),
        Kind::Depthwise(dw) => m.acc = vec![0; dw.pe],
        Kind::Pool(p) => m.acc = vec![0; p.pe],
        Kind::GlobalPool(p) => m.acc = vec![0; p.channels],
        Kind::Softmax(s) => m.stored = vec![0; s.channels],
        Kind::Rearrange(r) => (m.stored, m.offsets) = (vec![0; 2 * r.block], nest(&r.loops)),
        Kind::Source(_) | Kind::Sink(_) | Kind::Pad(_) | Kind::Binary(_) | Kind::Requantise(_) | Kind::Lookup(_) => {}
        Kind::Concat(_) | Kind::Slice(_) | Kind::Fork | Kind::Width => {}
    }
    m
}

/// One iteration on data: `read` is what was read, `out` gets the beat to write.
fn fire(d: &Design, a: &Actor, kind: &Kind, p: &mut Process, step: Step, read: &[i64], out: &mut Vec<i64>) {
    let m = &mut p.memory;
    let i = p.at;
    match kind {
        Kind::Source(_) | Kind::Sink(_) => {}
        Kind::Fork | Kind::Concat(_) | Kind::Slice(_) => out.extend(read),
        Kind::Pad(pad) => match read.is_empty() {
            true => out.resize(d.output(a, 0).lanes, pad.value),
            false => out.extend(read),
        },
        Kind::Window(w) => window(w, d.input(a, 0), m, step, read, out),
        Kind::Mvu(mvu) => matrix(mvu, m, i, read, out),
        Kind::Depthwise(dw) => {
            let (tap, fold) = (i % dw.taps, i / dw.taps % (dw.channels / dw.pe));
            for lane in 0..dw.pe {
                let c = fold * dw.pe + lane;
                let start = if tap == 0 { dw.bias[c] } else { m.acc[lane] };
                m.acc[lane] = start + read[lane] * i64::from(dw.weights[c * dw.taps + tap]);
            }
            if step.write {
                out.extend((0..dw.pe).map(|lane| finish(&dw.requant, fold * dw.pe + lane, m.acc[lane])));
            }
        }
        Kind::Pool(pool) => {
            let (tap, fold) = (i % pool.taps, i / pool.taps % (pool.channels / pool.pe));
            (0..pool.pe).for_each(|lane| m.acc[lane] = pooled(pool, tap == 0, m.acc[lane], read[lane]));
            if step.write {
                out.extend((0..pool.pe).map(|lane| finish(&pool.requant, fold * pool.pe + lane, m.acc[lane])));
            }
        }
        Kind::GlobalPool(pool) => {
            let folds = pool.channels / pool.pe;
            let fold = i % folds;
            for lane in 0..pool.pe {
                let c = fold * pool.pe + lane;
                m.acc[c] = pooled(pool, i < folds, m.acc[c], read[lane]);
                if step.write {
                    out.push(finish(&pool.requant, c, m.acc[c]));
                }
            }
        }
        Kind::Binary(b) => {
            let formats = [0, 1].map(|k| d.input(a, k).format);
            let (left, right) = read.split_at(read.len() / 2);
            out.extend(left.iter().zip(right).map(|(&x, &y)| b.apply(formats, x, y, Requant::apply)));
        }
        Kind::Requantise(r) => {
            let s = d.input(a, 0);
            out.extend(read.iter().enumerate().map(|(lane, &v)| r.apply((i * s.lanes + lane) % s.shape[2], v)));
        }
        Kind::Lookup(l) => {
            let least = d.input(a, 0).format.min();
            out.extend(read.iter().map(|&v| l.table[(v - least) as usize]));
        }
        Kind::Softmax(s) => {
            let lanes = d.input(a, 0).lanes;
            let n = s.channels / lanes;
            let at = i % n * lanes;
            if !read.is_empty() {
                m.stored[at..at + lanes].copy_from_slice(read);
            }
            if step.write {
                out.extend(&s.apply(&m.stored)[at..at + lanes]);
            }
        }
        Kind::Width => {
            m.stored.extend(read);
            if step.write {
                out.extend(m.stored.drain(..d.output(a, 0).lanes));
            }
        }
        Kind::Rearrange(r) => {
            let lanes = d.input(a, 0).lanes;
            if step.write {
                let at = m.given * lanes;
                let (block, k) = (at / m.offsets.len(), at % m.offsets.len());
                let base = block % 2 * r.block;
                out.extend(m.offsets[k..k + lanes].iter().map(|&o| m.stored[base + o]));
                m.given += 1;
            }
            let at = m.taken % (2 * r.block);
            m.stored[at..at + read.len()].copy_from_slice(read);
            m.taken += read.len();
        }
    }
}

fn finish(requant: &Option<Requant>, channel: usize, acc: i64) -> i64 {
    requant.as_ref().map_or(acc, |r| r.apply(channel, acc))
}

fn pooled(p: &Pool, first: bool, acc: i64, x: i64) -> i64 {
    match (p.op, first) {
        (PoolOp::Max, true) => x,
        (PoolOp::Max, false) => acc.max(x),
        (PoolOp::Sum, true) => p.bias + x,
        (PoolOp::Sum, false) => acc + x,
    }
}

/// Writes from the line buffer, then stores what was read.
fn window(w: &Window, s: &Stream, m: &mut Memory, step: Step, read: &[i64], out: &mut Vec<i64>) {
    let [height, width, c] = s.shape;
    if step.write {
        let share = c / w.groups / s.lanes;
        let [_, columns] = w.result(height, width);
        let mut k = m.given;
        let mut take = |n: usize| {
            let part = k % n;
            k /= n;
            part
        };
        let (beat, kx, ky, group, x) = (take(share), take(w.kernel[1]), take(w.kernel[0]), take(w.groups), take(columns));
        let y = k;
        let row = (y * w.stride[0] + ky * w.dilation[0]) % w.rows;
        let at = (row * width + x * w.stride[1] + kx * w.dilation[1]) * c + (group * share + beat) * s.lanes;
        out.extend(&m.stored[at..at + s.lanes]);
        m.given += 1;
    }
    let at = m.taken % m.stored.len();
    m.stored[at..at + read.len()].copy_from_slice(read);
    m.taken += read.len();
}

fn matrix(mvu: &Mvu, m: &mut Memory, i: usize, read: &[i64], out: &mut Vec<i64>) {
    let (outer, inner) = (mvu.rows / mvu.pe, mvu.cols / mvu.simd);
    let (s, n) = (i % inner, i / inner % outer);
    let group = i / (inner * outer) % mvu.groups;
    let from = s * mvu.simd;
    if n == 0 {
        m.stored[from..from + mvu.simd].copy_from_slice(read);
    }
    for lane in 0..mvu.pe {
        let channel = group * mvu.rows + n * mvu.pe + lane;
        let weights = &mvu.weights[channel * mvu.cols + from..][..mvu.simd];
        let sum: i64 = weights.iter().zip(&m.stored[from..]).map(|(&w, &x)| i64::from(w) * x).sum();
        m.acc[lane] = if s == 0 { mvu.bias[channel] } else { m.acc[lane] } + sum;
        if s == inner - 1 {
            out.push(finish(&mvu.requant, channel, m.acc[lane]));
        }
    }
}
