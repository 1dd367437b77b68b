//! Depths of FIFOs, by analysis.
//!
//! Time is counted in beats of the fork that everything on the way to a join has passed last (of each model input, where there is none). With FIFOs of any size,
//! beat `j` of a stream can be there when `n(j)` beats of the fork are, and it is read when `c(j) >= n(j)` are: both follow from the iterations of the actors, which depend on no data. Where branches of a [`Kind::Fork`] meet again, the actor
//! that joins them waits for the slower one, and the FIFO of the faster one must hold what came in the meantime. When the fork
//! passes on beat `t`, what was readable with `t - 1` beats has been read, so the FIFO holds
//! `max over t of (beats with n <= t) - (beats with c < t)`. With that depth no actor that the fork waits for waits for the fork. With
//! one less, a FIFO straight from the fork stops it before the beat that the other branch needs: a deadlock. All other FIFOs pass beats on to actors that
//! read them without waiting for anything else, and can be of any depth.

use crate::design::*;
use crate::schedule::{Reads, Schedule};

/// Beats that every FIFO has at least: one is written while one is read.
pub const LEAST: usize = 2;

/// Sets `bound` and `depth` of each stream: what cannot deadlock.
pub fn size(design: &mut Design) {
    let mut bounds = vec![1; design.streams.len()];
    for (origin, joins) in origins(design, &joins(design)) {
        for (b, new) in bounds.iter_mut().zip(waiting(design, origin, &joins)) {
            *b = (*b).max(new);
        }
    }
    for (s, bound) in design.streams.iter_mut().zip(bounds) {
        s.bound = bound;
        // A branch that meets another one may also run ahead by what its actors hold.
        s.depth = if bound > 1 { bound + LEAST } else { LEAST };
    }
}

/// Whose beats are the time for which joins: the last fork that everything on the way to a join has passed. Without one, each source in turn.
fn origins(design: &Design, joins: &[bool]) -> Vec<(usize, Vec<bool>)> {
    let count = design.actors.len();
    // Actors that every way from a source to an actor leads through.
    let mut through: Vec<Vec<bool>> = vec![];
    let mut out: Vec<(usize, Vec<bool>)> = vec![];
    for (i, a) in design.actors.iter().enumerate() {
        let before: Vec<usize> = a.inputs.iter().map(|&s| design.stream(s).from.index()).collect();
        let mut mine: Vec<bool> = (0..count).map(|k| !before.is_empty() && before.iter().all(|&b| through[b][k])).collect();
        let fork = (0..i).rev().find(|&k| mine[k] && matches!(design.actors[k].kind, Kind::Fork));
        mine[i] = true;
        through.push(mine);
        if !joins[i] {
            continue;
        }
        let sources = (0..i).filter(|&k| matches!(design.actors[k].kind, Kind::Source(_)));
        for origin in fork.map_or_else(|| sources.collect(), |f| vec![f]) {
            let at = out.iter().position(|(o, _)| *o == origin).unwrap_or_else(|| {
                out.push((origin, vec![false; count]));
                out.len() - 1
            });
            out[at].1[i] = true;
        }
    }
    out
}

/// Makes FIFOs so deep that they do not slow the design down, for frames every `interval` cycles.
///
/// An actor that reads in bursts (a matrix-vector unit reads a vector in its first fold, a window its next rows) lets those before it go on meanwhile: its FIFO holds
/// up to one burst. A branch that takes longer, in cycles, lets the faster one run ahead by that time: maybe by several frames, if many folded actors lie on it. Each actor's iterations
/// are put in time (no two in one cycle, none before what it reads) with FIFOs of any size, actor by actor: no cycles are simulated.
pub fn speed(design: &mut Design, interval: u64) {
    let joins = joins(design);
    let mut frames = 3;
    loop {
        let (depths, last) = timed(design, interval, frames);
        // As many frames as are in the design at once, and one more, show what is held in the long run.
        let needed = (last / interval.max(1)) as usize + 2;
        if needed > frames && frames < 64 {
            frames = needed.min(64);
            continue;
        }
        let most: Vec<usize> =
            design.streams.iter().map(|s| if joins[s.to.index()] { usize::MAX } else { burst(design, s) + LEAST }).collect();
        let images: Vec<bool> =
            design.streams.iter().map(|s| matches!(design.actor(s.to).kind, Kind::Pad(_) | Kind::Window(_))).collect();
        for (i, s) in design.streams.iter_mut().enumerate() {
            // While a border or the last rows are written, what comes before must be able to go on, however long the reader is held up.
            let depth = if images[i] { most[i] } else { depths[i].min(most[i]) };
            s.depth = s.depth.max(depth);
        }
        return;
    }
}

/// Beats that a stream's reader takes at once before it does something else.
fn burst(design: &Design, s: &Stream) -> usize {
    match &design.actor(s.to).kind {
        Kind::Mvu(m) => m.cols / m.simd,
        // The rows of one turn, and those that the next frame begins with: the last turn of a frame reads none.
        Kind::Window(w) => (w.reach()[0] + w.stride[0]) * s.shape[1] * s.shape[2] / s.lanes,
        Kind::Softmax(x) => x.channels / s.lanes,
        Kind::Rearrange(r) => r.block / s.lanes,
        Kind::Source(_)
        | Kind::Sink(_)
        | Kind::Pad(_)
        | Kind::Depthwise(_)
        | Kind::Pool(_)
        | Kind::GlobalPool(_)
        | Kind::Binary(_) => 0,
        Kind::Requantise(_) | Kind::Lookup(_) | Kind::Concat(_) | Kind::Slice(_) | Kind::Fork | Kind::Width => 0,
    }
}

/// The most beats that each FIFO holds, and when the first frame is done.
fn timed(design: &Design, interval: u64, frames: usize) -> (Vec<usize>, u64) {
    let mut there: Vec<Vec<u64>> = vec![vec![]; design.streams.len()];
    let mut depths = vec![LEAST; design.streams.len()];
    let mut done = 0;
    for a in &design.actors {
        if let Kind::Source(_) = a.kind {
            let beats = design.output(a, 0).beats() as u64;
            // Frames come as evenly as they leave.
            let all = (0..frames as u64).flat_map(|f| (0..beats).map(move |j| f * interval + j * interval / beats));
            there[a.outputs[0].index()] = all.collect();
            continue;
        }
        let inputs: Vec<Vec<u64>> = a.inputs.iter().map(|s| std::mem::take(&mut there[s.index()])).collect();
        let mut at = vec![0; inputs.len()];
        let mut read: Vec<Vec<u64>> = vec![vec![]; inputs.len()];
        let mut written = vec![];
        let (mut now, mut before) = (0u64, 0usize);
        let schedule = Schedule::of(design, a);
        let latency = crate::estimate::latency(design, a);
        for frame in 0..frames {
            schedule.events(&mut |k, step| {
                let number = frame * schedule.iterations + k;
                now += (number - before) as u64;
                before = number;
                let which = match step.read {
                    Reads::No => 0..0,
                    Reads::One(k) => k..k + 1,
                    Reads::All => 0..inputs.len(),
                };
                for k in which.clone() {
                    now = now.max(inputs[k][at[k]]);
                    at[k] += 1;
                }
                which.for_each(|k| read[k].push(now));
                if step.write {
                    written.push(now + latency);
                }
            });
            if frame == 0 {
                done = done.max(now);
            }
        }
        for (k, s) in a.inputs.iter().enumerate() {
            depths[s.index()] = held(&inputs[k], &read[k]) + LEAST;
        }
        for s in &a.outputs {
            there[s.index()] = written.clone();
        }
    }
    (depths, done)
}

/// For each actor: it joins branches of a fork.
fn joins(design: &Design) -> Vec<bool> {
    // Forks that each stream comes from, with the branch.
    let mut from: Vec<Vec<(usize, usize)>> = vec![vec![]; design.streams.len()];
    let mut joins = vec![false; design.actors.len()];
    for (i, a) in design.actors.iter().enumerate() {
        let mut all: Vec<(usize, usize)> = a.inputs.iter().flat_map(|s| from[s.index()].clone()).collect();
        all.sort_unstable();
        all.dedup();
        joins[i] = a.inputs.len() > 1 && all.windows(2).any(|w| w[0].0 == w[1].0);
        for (branch, s) in a.outputs.iter().enumerate() {
            from[s.index()] = all.clone();
            if a.outputs.len() > 1 {
                from[s.index()].push((i, branch));
            }
        }
    }
    joins
}

/// The bound of each stream into one of `joins`, with time in beats of the actor `origin`; 1 elsewhere.
fn waiting(design: &Design, origin: usize, joins: &[bool]) -> Vec<usize> {
    // Only what lies between the origin and the joins is looked at.
    let mut after = vec![false; design.actors.len()];
    let mut before = joins.to_vec();
    after[origin] = true;
    for (i, a) in design.actors.iter().enumerate() {
        after[i] |= a.inputs.iter().any(|&s| after[design.stream(s).from.index()]);
    }
    for i in (0..design.actors.len()).rev() {
        before[i] |= design.actors[i].outputs.iter().any(|&s| before[design.stream(s).to.index()]);
    }
    // For each stream, when each of its beats can be there. A stream that was read is dropped.
    let mut there: Vec<Vec<u32>> = vec![vec![]; design.streams.len()];
    let mut bounds = vec![1; design.streams.len()];
    for (i, a) in design.actors.iter().enumerate() {
        if !before[i] {
            continue;
        }
        if i == origin || !after[i] {
            for s in &a.outputs {
                let beats = design.stream(*s).beats() as u32;
                there[s.index()] = if i == origin { (1..=beats).collect() } else { vec![0; beats as usize] };
            }
            continue;
        }
        let inputs: Vec<Vec<u32>> = a.inputs.iter().map(|s| std::mem::take(&mut there[s.index()])).collect();
        let mut at = vec![0; inputs.len()];
        let mut read: Vec<Vec<u32>> = vec![vec![]; inputs.len()];
        let mut written = vec![];
        let mut now = 0;
        Schedule::of(design, a).events(&mut |_, step| {
            let which = match step.read {
                Reads::No => 0..0,
                Reads::One(k) => k..k + 1,
                Reads::All => 0..inputs.len(),
            };
            for k in which.clone() {
                now = now.max(inputs[k][at[k]]);
                at[k] += 1;
            }
            if joins[i] {
                which.for_each(|k| read[k].push(now));
            }
            if step.write {
                written.push(now);
            }
        });
        if joins[i] {
            for (k, s) in a.inputs.iter().enumerate() {
                bounds[s.index()] = held(&inputs[k], &read[k]);
            }
        }
        for s in &a.outputs {
            there[s.index()] = written.clone();
        }
    }
    bounds
}

/// The most beats that are there but not read before the same input beat; both lists ascend.
fn held<T: Copy + Ord>(there: &[T], read: &[T]) -> usize {
    let mut most = 1;
    let mut gone = 0;
    for (j, &t) in there.iter().enumerate() {
        // The last beat that comes at this time sees the most.
        if there.get(j + 1).is_some_and(|&next| next == t) {
            continue;
        }
        while gone < read.len() && read[gone] < t {
            gone += 1;
        }
        most = most.max(j + 1 - gone);
    }
    most
}
