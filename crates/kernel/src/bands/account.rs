//! Which parts of a run of steps pay as a loop over bands of rows: an account of what moves between the caches and of rows computed twice.
//!
//! A tensor that is touched again is the farther away the more other bytes were touched in between: in doublings of L2 ([`far`]). Whole steps touch
//! all rows in between, rounds of a loop some. What a step moves hides behind its arithmetic, unless it moves much for each cycle of that: windows of
//! single channels do, products hardly ever. Against what is saved stand rows that two rounds need and both compute, tiles that
//! fewer rows fill worse, launches, and constants, which each round reads again.

use super::{Member, Region, Rows, height};
use crate::batch::account::{BEYOND, LAUNCH, best};
use crate::batch::same_sums;
use crate::build;
use crate::cost;
use crate::loops::Access;
use crate::math;
use crate::plan::widest;
use crate::program::{declare, prepare};
use crate::target::TargetDesc;
use crate::work::{Id, Work};
use infc_ir::Expr;
use infc_ir::compute::{Compute, Step};
use std::collections::HashMap;

/// Steps that become a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) first: usize,
    pub(super) end: usize,
    /// Rows of the last result in a round.
    pub(super) rows: i64,
}

/// Rows of a round that are tried.
const TRIED: [i64; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28];
/// Most steps of a part.
const LONGEST: usize = 16;
/// The part of what whole steps move that a loop has to save: it is an estimate.
const WORTH: f64 = 1.0 / 4.0;
/// The part of the arithmetic of whole steps that a loop has to save: so much may be wrong in what fewer rows are thought to take.
const SURE: f64 = 1.0 / 14.0;
/// Half of what a step moves hides behind its arithmetic if it moves as many bytes in a cycle of that as come from L3. What hides behind nothing
/// takes as many cycles as it has so many times the bytes that come from L3 in one, for each doubling of its way. (Measured on Zen 4.)
const BARE: f64 = 6.25;

/// A tensor that a step touches.
struct Touch {
    /// All of it, which may be more than the step touches, and the memory in which it lies.
    whole: Id,
    root: Id,
    bytes: f64,
    /// Each round touches some rows of it.
    rows: bool,
    written: bool,
}

/// Two touches of a tensor that follow one another.
struct Pair {
    first: usize,
    /// Bytes to and fro that hide behind nothing, and how far they go between whole steps.
    bytes: f64,
    far: f64,
}

/// How far away a byte is, if so many others were touched since it was: doublings of L2.
fn far(bytes: f64, target: &TargetDesc) -> f64 {
    let near = (target.l2_bytes as f64).max(1.0);
    let most = (target.l3_bytes as f64 * BEYOND).max(near);
    (bytes.min(most) / near).log2().max(0.0)
}

struct Account<'a> {
    work: &'a Work,
    members: &'a [Member],
    target: &'a TargetDesc,
    touches: Vec<Vec<Touch>>,
    /// The part of what each step moves that does not hide behind its arithmetic.
    bare: Vec<f64>,
    /// For each step, the pairs that end with it.
    pairs: Vec<Vec<Pair>>,
    /// Cycles of a step for so many rows; `None` where its sums would change.
    cycles: HashMap<(usize, i64), Option<f64>>,
}

/// The parts that together save the most.
pub(super) fn parts(work: &Work, members: &[Member], touched: &HashMap<Id, usize>, target: &TargetDesc) -> Vec<Part> {
    let touches: Vec<Vec<Touch>> = members.iter().map(|m| touches(work, m)).collect();
    if far(between(&touches, |_| 1.0), target) == 0.0 {
        return vec![];
    }
    let mut account = Account { work, members, target, touches, bare: vec![], pairs: vec![], cycles: HashMap::new() };
    account.bare = (0..members.len()).map(|k| account.bare(k)).collect();
    account.pairs = account.pairs();
    let mut ways = vec![];
    for first in 0..members.len() {
        for end in first + 2..=members.len().min(first + LONGEST) {
            ways.extend(account.gains(touched, first, end));
        }
    }
    best(members.len(), ways, |p| (p.first, p.end))
}

fn touches(work: &Work, m: &Member) -> Vec<Touch> {
    let used = m.task.step.sources();
    let touch = |id: Id, rows: bool, written: bool| {
        let t = work.tensor(id);
        let elements: i64 = t.ty.dims.iter().map(|d| d.known().unwrap_or(1)).product();
        let bytes = (elements * t.ty.dtype.bytes() as i64) as f64;
        Touch { whole: work.whole(id), root: work.root(id), bytes, rows, written }
    };
    let sources = m.task.sources.iter().zip(&m.spans).enumerate().filter(|(k, _)| used.contains(&(*k as u32)));
    let mut all: Vec<Touch> = sources.map(|(_, (&s, span))| touch(s, span.is_some(), false)).collect();
    all.push(touch(m.task.out, true, true));
    all
}

/// Bytes of all that some steps touch, where they touch this share of each tensor.
fn between(touches: &[Vec<Touch>], share: impl Fn(&Touch) -> f64) -> f64 {
    let mut seen: HashMap<Id, f64> = HashMap::new();
    for t in touches.iter().flatten() {
        let most = seen.entry(t.root).or_default();
        *most = most.max(t.bytes * share(t));
    }
    // In no order of addresses or hashes: sums of whole numbers below 2^53, or close to them, are the same in any.
    let mut all: Vec<f64> = seen.into_values().collect();
    all.sort_by(f64::total_cmp);
    all.iter().sum()
}

impl Account<'_> {
    fn bare(&mut self, k: usize) -> f64 {
        let moved: f64 = self.touches[k].iter().filter(|t| t.rows).map(|t| t.bytes).sum();
        let cycles = height(self.work, self.members[k].task.out).and_then(|all| self.cycles(k, all)).unwrap_or(0.0);
        moved / (moved + f64::from(self.target.l3_rate) * cycles).max(1.0)
    }

    /// What a cycle costs, in bytes from twice as far away.
    fn cycle(&self) -> f64 {
        BARE * f64::from(self.target.l3_rate)
    }

    fn pairs(&self) -> Vec<Vec<Pair>> {
        let mut last: HashMap<Id, (usize, bool)> = HashMap::new();
        let mut out = vec![];
        for (k, all) in self.touches.iter().enumerate() {
            let mut here = vec![];
            for t in all.iter().filter(|t| t.rows) {
                let Some((first, written)) = last.insert(t.root, (k, t.written)) else { continue };
                // What is written goes there before it comes back.
                let bytes = t.bytes * (self.bare[k] + if written { self.bare[first] } else { 0.0 });
                here.push(Pair { first, bytes, far: far(between(&self.touches[first..=k], |_| 1.0), self.target) });
            }
            out.push(here);
        }
        out
    }

    /// What loops of these steps save, where it is worth while.
    fn gains(&mut self, touched: &HashMap<Id, usize>, first: usize, end: usize) -> Vec<(f64, Part)> {
        let inside = |k: usize| self.pairs[k].iter().filter(move |p| p.first >= first && p.far > 0.0);
        let moves: f64 = (first..end).flat_map(inside).map(|p| p.bytes * p.far).sum();
        // A step at one end that shares nothing with the others but what is near would only make the loop longer.
        let starts = (first..end).flat_map(inside).any(|p| p.first == first);
        if moves <= 0.0 || !starts || inside(end - 1).next().is_none() {
            return vec![];
        }
        let (work, members) = (self.work, &self.members[first..end]);
        let cycle = |k: usize| self.cycles(k, height(work, self.members[k].task.out)?);
        let Some(cycles) = (first..end).map(cycle).sum::<Option<f64>>() else { return vec![] };
        let least = (moves * WORTH).max(cycles * self.cycle() * SURE);
        let region = Region::of(work, members, touched);
        let Some(all) = height(work, members[members.len() - 1].task.out) else { return vec![] };
        let mut out = vec![];
        for rows in TRIED.into_iter().filter(|r| 3 * r <= all) {
            let at = all / rows / 2 * rows;
            let Some(round) = region.rows(work, members, (at, at + rows)) else { continue };
            let Some(costs) = self.costs(first, end, &round, all as f64 / rows as f64) else { continue };
            let share = |t: &Touch| match round.get(&t.whole).filter(|_| t.rows) {
                Some(r) => (r.count() as f64 / height(work, t.whole).unwrap_or(1) as f64).min(1.0),
                None => 1.0,
            };
            let near = |k: usize, p: &Pair| far(between(&self.touches[p.first..=k], share), self.target);
            let left: f64 = (first..end)
                .flat_map(|k| inside_of(&self.pairs[k], first).map(move |p| (k, p)))
                .map(|(k, p)| p.bytes * near(k, p))
                .sum();
            let constants = self.touches[first..end].iter().zip(&self.bare[first..end]);
            let constants: f64 = constants.flat_map(|(t, bare)| t.iter().filter(|t| !t.rows).map(move |t| t.bytes * bare)).sum();
            let again =
                constants * (all as f64 / rows as f64 - 1.0) * far(between(&self.touches[first..end], share), self.target);
            let gain = moves - left - costs - again;
            if gain > least {
                out.push((gain, Part { first, end, rows }));
            }
        }
        out
    }

    /// What so many rounds cost more than whole steps; `None` where that is not possible.
    fn costs(&mut self, first: usize, end: usize, round: &HashMap<Id, Rows>, rounds: f64) -> Option<f64> {
        let mut costs = 0.0;
        for k in first..end {
            let out = self.work.whole(self.members[k].task.out);
            let (some, all) = (round[&out].count(), height(self.work, out)?);
            // Tiles of results that are near are thought to take less, which no measurement of bands has shown: they count as those of the whole.
            let whole = self.cycles(k, all)?;
            let more = self.cycles(k, some)?.max(whole * some as f64 / all as f64) * rounds - whole;
            costs += more * self.cycle() + LAUNCH * (rounds - 1.0);
        }
        Some(costs)
    }

    /// Cycles of a step for so many rows.
    fn cycles(&mut self, k: usize, rows: i64) -> Option<f64> {
        if let Some(&known) = self.cycles.get(&(k, rows)) {
            return known;
        }
        let (work, m) = (self.work, &self.members[k]);
        let all = height(work, m.task.out)?;
        let plan = |rows: i64| {
            let Step::Compute(c) = &m.task.step else { unreachable!("checked before") };
            let mut c = c.clone();
            c.dims[super::ROWS] = Expr::int(rows);
            let mut operands: Vec<_> = m.task.sources.iter().map(|&s| declare(work, s, Access::Read)).collect();
            operands.push(declare(work, m.task.out, Access::Write));
            operands.last_mut()?.buffer.dims[super::ROWS] = Expr::int(rows);
            Some(prepare(Step::Compute(c), operands, self.target))
        };
        let known =
            plan(rows).zip(plan(all)).filter(|(some, all)| same_sums(&all.2, &some.2)).map(|((step, operands, plan), _)| {
                // Functions count as the arithmetic that they are.
                let step = step.map(&mut |s| math::lower(s, self.target.fma));
                let Step::Compute(c) = &step else { return 0.0 };
                // Two operations in a cycle.
                let vectors =
                    |operations: Expr| operations.known().unwrap_or(0) as f64 / (2 * self.target.lanes(widest(c))) as f64;
                match build::product_cycles(c, &operands, &plan, self.target) {
                    Some(sums) => {
                        let ends = Step::Compute(Compute { reduction: None, ..c.clone() });
                        sums + vectors(cost::operations(&ends))
                    }
                    None => vectors(cost::operations(&step)),
                }
            });
        self.cycles.insert((k, rows), known);
        known
    }
}

fn inside_of(pairs: &[Pair], first: usize) -> impl Iterator<Item = &Pair> {
    pairs.iter().filter(move |p| p.first >= first)
}
