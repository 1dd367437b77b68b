//! Which parts of a run of steps pay as a loop over the batch: an account of what moves between the caches, in bytes.
//!
//! A tensor that is touched again is found in a near cache if little else was touched in between. How far away it is grows with each
//! doubling of that amount ([`price`]): what fits half of L2 costs nothing. Whole steps touch the tensors of all elements of the batch
//! in between, rounds of a loop those of a few. Against that stand constants, which each round reads again, launches, and products that
//! fill their tiles worse with fewer rows.

use crate::target::TargetDesc;
use crate::work::Id;
use std::collections::HashMap;

/// A tensor that a step touches.
pub(super) struct Touch {
    pub(super) root: Id,
    /// For the whole batch.
    pub(super) bytes: f64,
    /// Each element of the batch has a part of its own.
    pub(super) batched: bool,
    pub(super) written: bool,
    /// How often each element of it is used for one element of the batch, on vectors.
    pub(super) passes: f64,
}

/// A step.
pub(super) struct Member {
    pub(super) touches: Vec<Touch>,
    /// For each size of a group: cycles of arithmetic that the loop costs more; `None` where its sums would change.
    pub(super) more: Vec<Option<f64>>,
}

/// Steps that become a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) first: usize,
    pub(super) end: usize,
    /// Elements of the batch in a round.
    pub(super) group: i64,
}

/// A launch costs as much as so many bytes from twice as far away.
pub(crate) const LAUNCH: f64 = 16384.0;
/// So does a cycle.
const CYCLE: f64 = 32.0;
/// Passes over a constant with which its way from memory takes as long as the arithmetic: with more it hides behind that, soon all of it.
const HIDDEN: f64 = 16.0;
/// Passes over a constant that take a cycle for each of its bytes, where 32 multiply-adds of 4 bytes each (or more of fewer) are done in one.
pub(super) const PASSES: f64 = 128.0;
/// Caches larger than the machine promises count up to so many times its L3.
pub(crate) const BEYOND: f64 = 32.0;
/// The part of what whole steps move that a loop has to save: it is an estimate.
const WORTH: f64 = 1.0 / 16.0;
/// Most steps that are looked at together.
const MOST: usize = 512;

/// How far away a byte is, if so many others were touched since it was: doublings of half of L2.
fn price(bytes: f64, target: &TargetDesc) -> f64 {
    let near = (target.l2_bytes as f64 / 2.0).max(1.0);
    let most = (target.l3_bytes as f64 * BEYOND).max(near);
    (bytes.min(most) / near).log2().max(0.0)
}

/// Two touches of a tensor that follow one another.
struct Pair {
    first: usize,
    /// What whole steps move.
    moves: f64,
    /// What the loop saves of that, for each size of a group.
    saves: Vec<f64>,
}

/// For each step, the pairs that end with it.
fn pairs(members: &[Member], b: i64, groups: &[i64], target: &TargetDesc) -> Vec<Vec<Pair>> {
    let mut last: HashMap<Id, (usize, bool)> = HashMap::new();
    let mut out = vec![];
    for (k, m) in members.iter().enumerate() {
        let mut here = vec![];
        for t in m.touches.iter().filter(|t| t.batched) {
            let Some((first, written)) = last.insert(t.root, (k, t.written)) else { continue };
            // What is written goes there before it comes back.
            let bytes = t.bytes * if written { 2.0 } else { 1.0 };
            let (own, shared) = between(&members[first..=k]);
            let far = |share: f64| price(own * share + shared, target);
            let moves = bytes * far(1.0);
            let saves = groups.iter().map(|&g| moves - bytes * far(g as f64 / b as f64)).collect();
            here.push(Pair { first, moves, saves });
        }
        out.push(here);
    }
    out
}

/// Bytes of what some steps touch: tensors with a part for each element of the batch, and others.
fn between(members: &[Member]) -> (f64, f64) {
    let mut seen: HashMap<Id, (f64, bool)> = HashMap::new();
    for t in members.iter().flat_map(|m| &m.touches) {
        let most = seen.entry(t.root).or_insert((0.0, t.batched));
        most.0 = most.0.max(t.bytes);
    }
    let sum = |batched: bool| seen.values().filter(|v| v.1 == batched).map(|v| v.0).sum();
    (sum(true), sum(false))
}

/// The parts that together save the most.
pub(super) fn parts(members: &[Member], b: i64, groups: &[i64], target: &TargetDesc) -> Vec<Part> {
    let mut out = vec![];
    for (n, some) in members.chunks(MOST).enumerate() {
        let at = n * MOST;
        out.extend(best_parts(some, b, groups, target).into_iter().map(|p| Part { first: p.first + at, end: p.end + at, ..p }));
    }
    out
}

/// What loops save that begin with step `first`, where it is worth while.
fn gains(
    members: &[Member],
    pairs: &[Vec<Pair>],
    (b, groups): (i64, &[i64]),
    target: &TargetDesc,
    first: usize,
) -> Vec<(f64, Part)> {
    let mut out = vec![];
    for (i, &group) in groups.iter().enumerate() {
        let (rounds, share) = ((b / group) as f64, group as f64 / b as f64);
        let (mut moves, mut saves, mut constants, mut again, mut most) = (0.0, 0.0, 0.0, 0.0, 0.0f64);
        for (end, m) in members.iter().enumerate().skip(first) {
            let Some(more) = m.more[i] else { break };
            for p in pairs[end].iter().filter(|p| p.first >= first) {
                moves += p.moves;
                saves += p.saves[i];
            }
            saves -= more * CYCLE + LAUNCH * (rounds - 1.0);
            for t in m.touches.iter().filter(|t| !t.batched) {
                constants += t.bytes;
                again += t.bytes * (HIDDEN / (t.passes * group as f64)).min(1.0).powf(1.5);
            }
            most = most.max(m.touches.iter().filter(|t| t.batched).map(|t| t.bytes * share).sum());
            let gain = saves - (rounds - 1.0) * again * price(constants + most, target);
            if gain > moves * WORTH {
                out.push((gain, Part { first, end: end + 1, group }));
            }
        }
    }
    out
}

/// The parts of these steps that together save the most.
fn best_parts(members: &[Member], b: i64, groups: &[i64], target: &TargetDesc) -> Vec<Part> {
    let pairs = pairs(members, b, groups, target);
    let ways = (0..members.len()).flat_map(|first| gains(members, &pairs, (b, groups), target, first)).collect();
    best(members.len(), ways, |p| (p.first, p.end))
}

/// Of ways to make a loop of some of so many steps, with what each saves, those that do not overlap and together save the most. `ends` gives the
/// first step of a way and the one behind its last.
pub(crate) fn best<P: Copy>(steps: usize, mut ways: Vec<(f64, P)>, ends: impl Fn(&P) -> (usize, usize)) -> Vec<P> {
    // What the best ways up to each step save, and the last of them.
    let mut saved: Vec<(f64, Option<P>)> = vec![(0.0, None)];
    ways.sort_by_key(|w| ends(&w.1).1);
    let mut ways = ways.into_iter().peekable();
    for end in 1..=steps {
        let mut most = (saved[end - 1].0, None);
        while let Some((gain, way)) = ways.next_if(|w| ends(&w.1).1 == end) {
            let all = saved[ends(&way).0].0 + gain;
            if all > most.0 {
                most = (all, Some(way));
            }
        }
        saved.push(most);
    }
    let (mut out, mut end) = (vec![], steps);
    while end > 0 {
        match saved[end].1 {
            Some(way) => {
                out.push(way);
                end = ends(&way).0;
            }
            None => end -= 1,
        }
    }
    out.reverse();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> TargetDesc {
        let text = "name = \"t\"\nbackend = \"b\"\ndoc = \"\"\narch = \"x86_64\"\nfeatures = []\nvector_bytes = 64\nvector_registers = 32\n\
                    fma = true\nl1_bytes = 32768\nl2_bytes = 1048576\nl3_bytes = 2097152\n";
        TargetDesc::from_toml(text).expect("a machine file")
    }

    const MIB: f64 = 1048576.0;

    /// A chain of layers: bytes of what each makes for the whole batch, bytes of its weights, and passes over them for one picture.
    fn chain(layers: &[(f64, f64, f64)]) -> Vec<Member> {
        let made = |k: usize| Id(2 * k as u32);
        let layer = |(k, &(bytes, weights, passes)): (usize, &(f64, f64, f64))| {
            let before = if k == 0 { bytes } else { layers[k - 1].0 };
            let touch = |root, bytes, batched, written| Touch { root, bytes, batched, written, passes };
            let weights = Touch { root: Id(2 * k as u32 + 1), ..touch(made(0), weights, false, false) };
            Member {
                touches: vec![touch(made(k), before, true, false), weights, touch(made(k + 1), bytes, true, true)],
                more: vec![Some(0.0); 3],
            }
        };
        layers.iter().enumerate().map(layer).collect()
    }

    fn found(members: &[Member]) -> Vec<(usize, usize, i64)> {
        parts(members, 8, &[1, 2, 4], &machine()).into_iter().map(|p| (p.first, p.end, p.group)).collect()
    }

    #[test]
    fn large_results_and_small_weights_go_picture_by_picture() {
        let large = (8.0 * MIB, 0.01 * MIB, 4096.0);
        assert_eq!(found(&chain(&[large; 6])), [(0, 6, 1)]);
    }

    #[test]
    fn small_results_and_large_weights_stay_whole() {
        assert_eq!(found(&chain(&[(0.5 * MIB, 8.0 * MIB, 16.0); 6])), []);
    }

    #[test]
    fn a_network_has_both() {
        let layers = [[(8.0 * MIB, 0.01 * MIB, 4096.0); 4], [(0.5 * MIB, 8.0 * MIB, 16.0); 4]].concat();
        let parts = found(&chain(&layers));
        assert!(matches!(parts[..], [(0, 4 | 5, 1)]), "{parts:?}");
    }

    #[test]
    fn what_fits_the_caches_stays_whole() {
        assert_eq!(found(&chain(&[(0.05 * MIB, 0.01 * MIB, 64.0); 6])), []);
    }

    #[test]
    fn a_step_whose_sums_would_change_is_in_no_loop() {
        let mut members = chain(&[(8.0 * MIB, 0.01 * MIB, 4096.0); 7]);
        members[3].more = vec![None; 3];
        assert_eq!(found(&members), [(0, 3, 1), (4, 7, 1)]);
        members[3].more = vec![None, None, Some(0.0)];
        assert!(found(&members).iter().all(|p| p.2 == 4 || p.1 <= 3 || p.0 >= 4), "{:?}", found(&members));
    }

    #[test]
    fn the_best_parts_are_those_of_all() {
        // Every way to choose parts, tried one after another.
        fn most(members: &[Member], first: usize, memo: &mut HashMap<usize, f64>, one: &dyn Fn(usize, usize) -> f64) -> f64 {
            if first == members.len() {
                return 0.0;
            }
            if let Some(&known) = memo.get(&first) {
                return known;
            }
            let skip = most(members, first + 1, memo, one);
            let ways = (first + 1..=members.len()).map(|end| one(first, end) + most(members, end, memo, one));
            let best = ways.fold(skip, f64::max);
            memo.insert(first, best);
            best
        }
        let target = machine();
        let groups = [1, 2, 4];
        for shift in 0..6 {
            let layers: Vec<_> = (0..8)
                .map(|k| {
                    let x = ((k * 7 + shift * 5) % 11) as f64;
                    ((x + 0.5) * MIB, ((k * 3 + shift) % 5) as f64 * 0.4 * MIB, 64.0)
                })
                .collect();
            let members = chain(&layers);
            let pairs = pairs(&members, 8, &groups, &target);
            // What one part saves: that of a search among the steps of it alone, with the part as its only choice.
            let one = |first: usize, end: usize| {
                gains(&members, &pairs, (8, &groups), &target, first)
                    .into_iter()
                    .filter(|g| g.1.end == end)
                    .map(|g| g.0)
                    .fold(0.0, f64::max)
            };
            let want = most(&members, 0, &mut HashMap::new(), &one);
            let got: f64 = parts(&members, 8, &groups, &target)
                .iter()
                .map(|p| {
                    gains(&members, &pairs, (8, &groups), &target, p.first)
                        .into_iter()
                        .find(|g| g.1 == *p)
                        .expect("one of them")
                        .0
                })
                .sum();
            assert!((want - got).abs() <= want * 1e-9, "{want} against {got}");
        }
    }
}
