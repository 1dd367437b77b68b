//! What follows from the shapes of a run: symbol values, buffer sizes, places in the arena. Kept while the shapes stay.

use crate::error::{Error, fail};
use alloc::vec::Vec;
use infc_artifact::memory::place;
use infc_artifact::program::{Place, Program, Size, Step, SymbolSource};

/// Sizes and places for one set of input dims.
#[derive(Default)]
pub(crate) struct Plan {
    /// Values of the symbols; those of steps change while the program runs.
    pub(crate) symbols: Vec<i64>,
    /// Bytes of each buffer, at most; those of a growable one at this moment.
    pub(crate) sizes: Vec<u64>,
    /// Buffers whose size nothing bounds before the program runs; each has memory of its own, outside of the arena.
    pub(crate) growable: Vec<usize>,
    /// Place of each buffer in the arena (0 for others).
    pub(crate) offsets: Vec<u64>,
    /// Bytes of the arena.
    pub(crate) arena: u64,
    ranges: Vec<(i64, i64)>,
    valid: bool,
}

/// A symbol that may reach this has no bound worth the name: so many elements fit in no memory. (What has no bound stays without one when it is
/// divided.)
const UNBOUNDED: i64 = 1 << 40;

/// How often bounds that depend on each other are gone through.
const ROUNDS: usize = 8;

impl Plan {
    /// Makes the plan for these symbol values (those of steps are 0). False if it already was for them.
    pub(crate) fn bind(&mut self, program: &Program, symbols: &[i64]) -> Result<bool, Error> {
        // Symbols of steps keep their last values here; all others must be the same.
        let of_input = |i: usize| program.symbols[i].source != SymbolSource::Step;
        if self.valid && (0..symbols.len()).all(|i| !of_input(i) || self.symbols[i] == symbols[i]) {
            self.symbols.copy_from_slice(symbols);
            return Ok(false);
        }
        self.valid = false;
        self.symbols.clear();
        self.symbols.extend_from_slice(symbols);
        self.ranges.clear();
        self.ranges.extend(symbols.iter().map(|&v| (v, v)));
        self.bound_steps(program)?;
        self.sizes.clear();
        self.growable.clear();
        for (i, buffer) in program.buffers.iter().enumerate() {
            let may_grow = matches!(buffer.place, Place::Arena { .. } | Place::Output(_));
            if may_grow && buffer.bytes.symbols().any(|s| self.ranges[s as usize].1 >= UNBOUNDED) {
                self.growable.push(i);
                self.sizes.push(0);
            } else {
                self.sizes.push(high(&buffer.bytes, &self.ranges).max(0) as u64);
            }
        }
        self.place(program)?;
        self.valid = true;
        Ok(true)
    }

    /// The ranges of symbols that steps set.
    fn bound_steps(&mut self, program: &Program) -> Result<(), Error> {
        for _ in 0..ROUNDS {
            if !widen(&program.steps, &mut self.ranges) {
                return Ok(());
            }
        }
        fail!(Artifact, "malformed: the bounds of symbols depend on each other in a circle")
    }

    fn place(&mut self, program: &Program) -> Result<(), Error> {
        self.offsets.clear();
        self.offsets.resize(program.buffers.len(), 0);
        if let Some(arena) = program.arena {
            for (buffer, to) in program.buffers.iter().zip(&mut self.offsets) {
                if let Place::Arena { offset: Some(offset), .. } = buffer.place {
                    *to = offset;
                }
            }
            self.arena = arena;
            return Ok(());
        }
        let lives = program.buffers.iter().enumerate().filter_map(|(i, b)| match b.place {
            Place::Arena { first, last, .. } => Some((i, (first, last))),
            Place::Input(_) | Place::Output(_) | Place::Constant(_) | Place::State(_) => None,
        });
        let (ids, lives): (Vec<usize>, Vec<(u32, u32)>) = lives.unzip();
        let sizes: Vec<u64> = ids.iter().map(|&i| self.sizes[i]).collect();
        let Some((offsets, total)) = place(&sizes, &lives) else {
            fail!(Memory, "these shapes need more memory than there can be")
        };
        for (i, offset) in ids.into_iter().zip(offsets) {
            self.offsets[i] = offset;
        }
        self.arena = total;
        Ok(())
    }
}

/// The largest value of a size; `validate` has checked that it is well-formed.
fn high(size: &Size, ranges: &[(i64, i64)]) -> i64 {
    size.range(ranges).map_or(i64::MAX, |r| r.1)
}

/// Widens the ranges of symbols that steps set to hold their bounds; true if any changed.
fn widen(steps: &[Step], ranges: &mut [(i64, i64)]) -> bool {
    let mut changed = false;
    let mut raise = |ranges: &mut [(i64, i64)], symbol: u32, to: i64| {
        let top = &mut ranges[symbol as usize].1;
        changed |= to > *top;
        *top = to.max(*top);
    };
    let mut nested = false;
    for step in steps {
        match step {
            Step::Bind { symbol, bound, .. } => raise(ranges, *symbol, high(bound, ranges)),
            Step::Loop { counter, count, body, .. } => {
                raise(ranges, *counter, high(count, ranges).saturating_sub(1));
                nested |= widen(body, ranges);
            }
            Step::If { then, otherwise, .. } => {
                nested |= widen(then, ranges);
                nested |= widen(otherwise, ranges);
            }
            Step::Launch { .. }
            | Step::Copy { .. }
            | Step::Require { .. }
            | Step::Host { .. }
            | Step::HostLaunch { .. }
            | Step::ToHost { .. }
            | Step::ToDevice { .. } => {}
        }
    }
    changed || nested
}
