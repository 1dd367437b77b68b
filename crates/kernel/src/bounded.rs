//! Memory of fixed size for a program whose sizes are bounded: the ranges of its symbols, the most bytes of each buffer, and where those
//! of the arena lie.

use infc_artifact::memory;
use infc_artifact::program::{Place, Port, Program, Size, Step, SymbolSource};
use infc_ir::{Problem, Problems};
use std::collections::{BTreeMap, BTreeSet};

/// The largest values of symbols by name, both of the model's dims and of sizes that only data tells.
pub type Bounds = BTreeMap<String, i64>;

/// A symbol that may reach this has no bound.
const UNBOUNDED: i64 = 1 << 40;

/// The most memory that anything may take.
const MOST: i64 = 1 << 46;

/// How often bounds that depend on each other are gone through.
const ROUNDS: usize = 8;

/// Sizes and places.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Least and largest value of each symbol.
    pub ranges: Vec<(i64, i64)>,
    /// The most bytes of each buffer.
    pub bytes: Vec<u64>,
    /// Place of each buffer in the arena (0 for others).
    pub offsets: Vec<u64>,
    /// Bytes of the arena.
    pub arena: u64,
    /// What bounds sizes that only data tells, beside the model itself: a run checks them.
    pub bounds: Bounds,
}

impl Layout {
    /// The slots of the inputs that are state, each with its first byte, and the bytes of all.
    pub fn state(&self, program: &Program) -> (Vec<(usize, u64)>, u64) {
        let (mut slots, mut bytes) = (vec![], 0);
        for &(_, input) in &program.states {
            slots.push((input as usize, bytes));
            bytes += self.bytes[program.inputs[input as usize].buffer as usize].next_multiple_of(64);
        }
        (slots, bytes)
    }

    /// The most elements of a port.
    pub fn most(&self, port: &Port) -> i64 {
        most(port, &self.ranges)
    }
}

/// The most elements of a port, by the ranges of symbols.
pub fn most(port: &Port, ranges: &[(i64, i64)]) -> i64 {
    port.dims.iter().map(|d| d.range(ranges).map_or(0, |r| r.1.max(0))).fold(1, i64::saturating_mul)
}

/// The symbols that a run is given, in the order of its parameters.
pub fn given(program: &Program) -> impl Iterator<Item = usize> {
    program.symbols.iter().enumerate().filter(|(_, s)| matches!(s.source, SymbolSource::Input { .. })).map(|(i, _)| i)
}

/// Does the size of a port change from run to run?
pub fn changes(port: &Port) -> bool {
    port.dims.iter().any(|d| d.eval(&[]).is_none())
}

/// The least and largest values of all symbols over a run.
pub fn ranges(program: &Program, bounds: &Bounds) -> Vec<(i64, i64)> {
    let bound = |s: usize| bounds.get(&program.symbols[s].name).copied();
    let mut ranges: Vec<(i64, i64)> = (program.symbols.iter().enumerate())
        .map(|(s, symbol)| match symbol.source {
            SymbolSource::Input { .. } => (0, bound(s).unwrap_or(i64::MAX)),
            SymbolSource::Step => (0, 0),
        })
        .collect();
    for _ in 0..ROUNDS {
        if !widen(&program.steps, &bound, &mut ranges) {
            return ranges;
        }
    }
    // Bounds that depend on each other in a circle: none.
    for (s, symbol) in program.symbols.iter().enumerate().filter(|(_, s)| s.source == SymbolSource::Step) {
        ranges[s].1 = bounds.get(&symbol.name).copied().unwrap_or(i64::MAX);
    }
    ranges
}

fn high(size: &Size, ranges: &[(i64, i64)]) -> i64 {
    size.range(ranges).map_or(i64::MAX, |r| r.1)
}

fn widen(steps: &[Step], bound: &dyn Fn(usize) -> Option<i64>, ranges: &mut [(i64, i64)]) -> bool {
    let mut changed = false;
    for step in steps {
        let (symbol, top) = match step {
            Step::Bind { symbol, bound, .. } => (*symbol as usize, high(bound, ranges)),
            Step::Loop { counter, count, body, .. } => {
                changed |= widen(body, bound, ranges);
                (*counter as usize, high(count, ranges).saturating_sub(1))
            }
            Step::If { then, otherwise, .. } => {
                changed |= widen(then, bound, ranges);
                changed |= widen(otherwise, bound, ranges);
                continue;
            }
            Step::Launch { .. }
            | Step::Copy { .. }
            | Step::Require { .. }
            | Step::Host { .. }
            | Step::HostLaunch { .. }
            | Step::ToHost { .. }
            | Step::ToDevice { .. } => continue,
        };
        let top = bound(symbol).map_or(top, |b| top.min(b));
        changed |= top > ranges[symbol].1;
        ranges[symbol].1 = top.max(ranges[symbol].1);
    }
    changed
}

/// The symbols without a bound that memory depends on.
pub fn unbounded(program: &Program, bounds: &Bounds) -> Vec<usize> {
    let ranges = ranges(program, bounds);
    let mut found = BTreeSet::new();
    for b in &program.buffers {
        found.extend(b.bytes.symbols().map(|s| s as usize).filter(|&s| ranges[s].1 >= UNBOUNDED));
    }
    // What bounds others comes first: a symbol whose bound depends on another one may have it then.
    let inputs: Vec<usize> =
        found.iter().copied().filter(|&s| matches!(program.symbols[s].source, SymbolSource::Input { .. })).collect();
    if inputs.is_empty() { found.into_iter().collect() } else { inputs }
}

/// Lays out the memory. An error names what has no bound.
pub fn layout(program: &Program, bounds: &Bounds) -> Result<Layout, Problems> {
    known(program, bounds)?;
    let open = unbounded(program, bounds);
    if !open.is_empty() {
        return Err(Problems(open.into_iter().map(|s| no_bound(program, s)).collect()));
    }
    let ranges = ranges(program, bounds);
    let mut bytes = vec![];
    for b in &program.buffers {
        let most = high(&b.bytes, &ranges);
        if most > MOST {
            let message = "a value of it may take more memory than there can be";
            return Err(Problems::one("the model", message, "give smaller bounds: --dim NAME<=SIZE"));
        }
        bytes.push(most.max(0) as u64);
    }
    let (mut at, mut sizes, mut lives) = (vec![], vec![], vec![]);
    for (k, b) in program.buffers.iter().enumerate() {
        if let Place::Arena { first, last, .. } = b.place {
            // A buffer that grows in loops keeps what it holds.
            let grows = b.bytes.symbols().any(|s| program.symbols[s as usize].source == SymbolSource::Step);
            at.push(k);
            // What is always empty has a place of its own too: no two parameters of a function are one address.
            sizes.push(bytes[k].max(1));
            lives.push(if grows { (0, u32::MAX) } else { (first.min(last), last) });
        }
    }
    let Some((places, arena)) = memory::place(&sizes, &lives).filter(|(_, total)| *total <= MOST as u64) else {
        let message = "its intermediate results do not fit the address space";
        return Err(Problems::one("the model", message, "give smaller bounds: --dim NAME<=SIZE"));
    };
    let mut offsets = vec![0; program.buffers.len()];
    for (k, place) in at.into_iter().zip(places) {
        offsets[k] = place;
    }
    Ok(Layout { ranges, bytes, offsets, arena, bounds: bounds.clone() })
}

/// Bounds must be of symbols that there are.
fn known(program: &Program, bounds: &Bounds) -> Result<(), Problems> {
    let names: Vec<&str> = program.symbols.iter().map(|s| s.name.as_str()).collect();
    // Names that begin so are the compiler's own.
    let said: Vec<&str> = names.iter().copied().filter(|n| !n.starts_with('%')).collect();
    let wrong = bounds.keys().filter(|b| !names.contains(&b.as_str())).map(|b| Problem {
        at: format!("bound '{b}'"),
        message: "the model has no such dim".to_owned(),
        help: if said.is_empty() { "it has none".to_owned() } else { format!("it has {}", said.join(", ")) },
    });
    let wrong: Vec<Problem> = wrong.collect();
    if wrong.is_empty() { Ok(()) } else { Err(Problems(wrong)) }
}

fn no_bound(program: &Program, s: usize) -> Problem {
    let symbol = &program.symbols[s];
    let what = match symbol.source {
        SymbolSource::Input { input, axis } => format!("dim {axis} of input '{}'", program.inputs[input as usize].name),
        SymbolSource::Step => "a size that only the run itself tells".to_owned(),
    };
    Problem {
        at: format!("dim '{}'", symbol.name),
        message: format!("memory is of fixed size here, but nothing bounds this one: {what}"),
        help: match symbol.source {
            SymbolSource::Input { .. } => format!("add --dim '{0}<=SIZE', or --dim {0}=SIZE", symbol.name),
            SymbolSource::Step => format!("add --dim '{}<=SIZE'; a run that needs more ends with an error", symbol.name),
        },
    }
}
