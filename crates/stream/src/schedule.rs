//! Iterations of actors: which beats each reads and writes. One description for cycles, FIFO depths and the cycle simulation.

use crate::design::*;

/// What one iteration reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which inputs it reads a beat of.
    pub read: Reads,
    /// Whether it writes a beat to each output.
    pub write: bool,
}

/// Inputs that an iteration reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// None.
    No,
    /// One of them.
    One(usize),
    /// All of them.
    All,
}

/// The iterations of an actor for one frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    plan: Plan,
    /// How many.
    pub iterations: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Plan {
    /// Each iteration reads all inputs and writes all outputs.
    Through,
    /// Reads where the pixel is inside: rows and columns with the border, beats a pixel.
    Pad { border: [usize; 4], height: usize, width: usize, beats: usize },
    /// See [`Window`]: beats before the first result, of a turn (written, read), turns.
    Window { before: usize, written: usize, read: usize, turn: usize, turns: usize },
    /// Reads in the first of `outer` turns of `inner`, writes at the end of each turn.
    Matrix { outer: usize, inner: usize },
    /// Reads always, writes in the last of `taps`.
    Reduce { taps: usize },
    /// Reads always, writes from an iteration on.
    Late { from: usize },
    /// Reads in the first of `times`, writes always.
    Split { times: usize },
    /// `n` that read, `n` that think, `n` that write.
    Softmax { n: usize },
    /// Ends of the inputs' turns, in beats.
    Concat { ends: Vec<usize> },
    /// Writes within a range of each period.
    Slice { period: usize, begin: usize, end: usize },
    /// See [`Rearrange`]: beats of a block (read, written), blocks.
    Blocks { read: usize, written: usize, blocks: usize },
}

impl Schedule {
    /// The iterations of an actor.
    pub fn of(d: &Design, a: &Actor) -> Schedule {
        let through = |s: &Stream| Schedule { plan: Plan::Through, iterations: s.beats() };
        match &a.kind {
            Kind::Source(_) => through(d.output(a, 0)),
            Kind::Sink(_) | Kind::Fork | Kind::Binary(_) | Kind::Requantise(_) | Kind::Lookup(_) => through(d.input(a, 0)),
            Kind::Pad(p) => {
                let s = d.input(a, 0);
                let [top, left, bottom, right] = p.border;
                let (height, width) = (s.shape[0] + top + bottom, s.shape[1] + left + right);
                let beats = s.shape[2] / s.lanes;
                Schedule { plan: Plan::Pad { border: p.border, height, width, beats }, iterations: height * width * beats }
            }
            Kind::Window(w) => window(w, d.input(a, 0)),
            Kind::Mvu(m) => {
                let (outer, inner) = (m.rows / m.pe, m.cols / m.simd);
                let vectors = d.input(a, 0).elements() / m.cols;
                Schedule { plan: Plan::Matrix { outer, inner }, iterations: vectors * outer * inner }
            }
            Kind::Depthwise(Depthwise { taps, .. }) | Kind::Pool(Pool { taps, .. }) => {
                Schedule { plan: Plan::Reduce { taps: *taps }, iterations: d.input(a, 0).beats() }
            }
            Kind::GlobalPool(p) => {
                let beats = d.input(a, 0).beats();
                Schedule { plan: Plan::Late { from: beats - p.channels / p.pe }, iterations: beats }
            }
            Kind::Width => {
                let (from, to) = (d.input(a, 0), d.output(a, 0));
                match from.lanes > to.lanes {
                    true => Schedule { plan: Plan::Split { times: from.lanes / to.lanes }, iterations: to.beats() },
                    false => Schedule { plan: Plan::Reduce { taps: to.lanes / from.lanes }, iterations: from.beats() },
                }
            }
            Kind::Softmax(s) => {
                let x = d.input(a, 0);
                Schedule { plan: Plan::Softmax { n: s.channels / x.lanes }, iterations: 3 * x.beats() }
            }
            Kind::Concat(c) => {
                let lanes = d.input(a, 0).lanes;
                let ends: Vec<usize> = c
                    .chunks
                    .iter()
                    .scan(0, |at, n| {
                        *at += n / lanes;
                        Some(*at)
                    })
                    .collect();
                let turn = ends.last().copied().unwrap_or(0);
                Schedule { plan: Plan::Concat { ends }, iterations: c.repeats * turn }
            }
            Kind::Slice(s) => {
                let x = d.input(a, 0);
                let [period, begin, end] = [s.period, s.begin, s.begin + s.count].map(|n| n / x.lanes);
                Schedule { plan: Plan::Slice { period, begin, end }, iterations: x.beats() }
            }
            Kind::Rearrange(r) => {
                let x = d.input(a, 0);
                let written: usize = r.loops.iter().map(|l| l.0).product::<usize>() / x.lanes;
                let (read, blocks) = (r.block / x.lanes, x.elements() / r.block);
                let iterations = read + (blocks - 1) * read.max(written) + written;
                Schedule { plan: Plan::Blocks { read, written, blocks }, iterations }
            }
        }
    }

    /// Iteration `i`.
    pub fn at(&self, i: usize) -> Step {
        let step = |reads: bool, write: bool| Step { read: if reads { Reads::One(0) } else { Reads::No }, write };
        match &self.plan {
            Plan::Through => Step { read: Reads::All, write: true },
            Plan::Pad { border: [top, left, bottom, right], height, width, beats } => {
                let (y, x) = (i / beats / width, i / beats % width);
                step(y >= *top && y + bottom < *height && x >= *left && x + right < *width, true)
            }
            &Plan::Window { before, written, read, turn, turns } => {
                let Some(at) = i.checked_sub(before) else { return step(true, false) };
                let last = (turns - 1) * turn;
                match at {
                    _ if at < last => step(at % turn < read, at % turn < written),
                    _ if at < last + written => step(false, true),
                    _ => step(true, false),
                }
            }
            Plan::Matrix { outer, inner } => step(i / inner % outer == 0, i % inner == inner - 1),
            Plan::Reduce { taps } => step(true, i % taps == taps - 1),
            Plan::Late { from } => step(true, i >= *from),
            Plan::Split { times } => step(i % times == 0, true),
            Plan::Softmax { n } => step(i / n % 3 == 0, i / n % 3 == 2),
            Plan::Concat { ends } => {
                let turn = ends.last().copied().unwrap_or(1);
                Step { read: Reads::One(ends.partition_point(|&e| e <= i % turn)), write: true }
            }
            Plan::Slice { period, begin, end } => step(true, (*begin..*end).contains(&(i % period))),
            &Plan::Blocks { read, written, blocks } => {
                let Some(at) = i.checked_sub(read) else { return step(true, false) };
                let turn = read.max(written);
                match at < (blocks - 1) * turn {
                    true => step(at % turn < read, at % turn < written),
                    false => step(false, true),
                }
            }
        }
    }

    /// Calls `see` for each iteration that reads or writes, in order, with its number.
    pub fn events(&self, see: &mut dyn FnMut(usize, Step)) {
        if let Plan::Matrix { outer, inner } = self.plan {
            // Most iterations of a matrix do neither.
            for vector in (0..self.iterations).step_by(outer * inner) {
                (0..inner).for_each(|s| see(vector + s, Step { read: Reads::One(0), write: s == inner - 1 }));
                (1..outer).for_each(|n| see(vector + n * inner + inner - 1, Step { read: Reads::No, write: true }));
            }
            return;
        }
        for i in 0..self.iterations {
            let step = self.at(i);
            if step.write || step.read != Reads::No {
                see(i, step);
            }
        }
    }

    /// Iterations before the first that writes.
    pub fn fill(&self) -> usize {
        match &self.plan {
            Plan::Through | Plan::Pad { .. } | Plan::Split { .. } | Plan::Concat { .. } => 0,
            Plan::Window { before, .. } => *before,
            Plan::Matrix { inner, .. } => inner - 1,
            Plan::Reduce { taps } => taps - 1,
            Plan::Late { from } => *from,
            Plan::Softmax { n } => 2 * n,
            Plan::Slice { begin, .. } => *begin,
            Plan::Blocks { read, .. } => *read,
        }
    }
}

fn window(w: &Window, s: &Stream) -> Schedule {
    let [height, width, c] = s.shape;
    let [turns, columns] = w.result(height, width);
    let row = width * c / s.lanes;
    let before = w.reach()[0] * row;
    let written = columns * w.kernel[0] * w.kernel[1] * c / s.lanes;
    let read = w.stride[0] * row;
    let turn = written.max(read);
    let dropped = height * row - before - (turns - 1) * read;
    let iterations = before + (turns - 1) * turn + written + dropped;
    Schedule { plan: Plan::Window { before, written, read, turn, turns }, iterations }
}
