//! Depths of FIFOs, by analysis.
//!
//! Time is counted in beats of a model input. With FIFOs of any size, beat `j` of a stream can be there when `n(j)` input beats are, and
//! it is read when `c(j) >= n(j)` are: both follow from the iterations of the actors, which depend on no data. Where branches of a [`Kind::Fork`] meet again, the actor
//! that joins them waits for the slower one, and the FIFO of the faster one must hold what came in the meantime. When the fork
//! passes on input beat `t`, what was readable with `t - 1` beats has been read, so the FIFO holds
//! `max over t of (beats with n <= t) - (beats with c < t)`. With that depth no actor that the fork waits for waits for the fork. With
//! one less, a FIFO straight from the fork stops it before the beat that the other branch needs: a deadlock. All other FIFOs pass beats on to actors that
//! read them without waiting for anything else, and can be of any depth.

use crate::design::*;
use crate::schedule::{Reads, Schedule};

/// Beats that every FIFO has at least: one is written while one is read.
pub const LEAST: usize = 2;

/// Sets `bound` and `depth` of each stream.
pub fn size(design: &mut Design) {
    let joins = joins(design);
    let mut bounds = vec![1; design.streams.len()];
    if joins.iter().any(|&j| j) {
        for source in 0..design.inputs.len() {
            for (b, new) in bounds.iter_mut().zip(waiting(design, source, &joins)) {
                *b = (*b).max(new);
            }
        }
    }
    for (s, bound) in design.streams.iter_mut().zip(bounds) {
        s.bound = bound;
        // A branch that meets another one may also run ahead by what its actors hold.
        s.depth = if bound > 1 { bound + LEAST } else { LEAST };
    }
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

/// The bound of each stream into a join, in beats of one model input; 1 elsewhere.
fn waiting(design: &Design, source: usize, joins: &[bool]) -> Vec<usize> {
    // For each stream, when each of its beats can be there. A stream that was read is dropped.
    let mut there: Vec<Vec<u32>> = vec![vec![]; design.streams.len()];
    let mut bounds = vec![1; design.streams.len()];
    for (i, a) in design.actors.iter().enumerate() {
        if let Kind::Source(k) = a.kind {
            let beats = design.output(a, 0).beats() as u32;
            there[a.outputs[0].index()] = if k == source { (1..=beats).collect() } else { vec![0; beats as usize] };
            continue;
        }
        let inputs: Vec<Vec<u32>> = a.inputs.iter().map(|s| std::mem::take(&mut there[s.index()])).collect();
        let mut at = vec![0; inputs.len()];
        let mut read: Vec<Vec<u32>> = vec![vec![]; inputs.len()];
        let mut written = vec![];
        let mut now = 0;
        Schedule::of(design, a).events(&mut |step| {
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
fn held(there: &[u32], read: &[u32]) -> usize {
    let mut most = 1;
    let mut gone = 0;
    for (j, &t) in there.iter().enumerate() {
        // The last beat that comes at this time sees the most.
        if there.get(j + 1) == Some(&t) {
            continue;
        }
        while gone < read.len() && read[gone] < t {
            gone += 1;
        }
        most = most.max(j + 1 - gone);
    }
    most
}
