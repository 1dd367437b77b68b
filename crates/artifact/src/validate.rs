//! Whether a [`Program`] is one that can be run: every index, offset and life is in range.
//!
//! What it cannot know is what machine code does; an artifact is as trusted as an executable.

use crate::abi::ALIGN;
use crate::decode::NESTING;
use crate::dtype;
use crate::program::*;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Why a program cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramError {
    /// Which part: `step 12`, `buffer 3`.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl core::error::Error for ProgramError {}

type Checked = Result<(), ProgramError>;

fn check(good: bool, place: impl FnOnce() -> String, what: impl Into<String>) -> Checked {
    if good { Ok(()) } else { Err(ProgramError { place: place(), what: what.into() }) }
}

/// The number of steps in a list and in the lists of its steps.
pub fn count_steps(steps: &[Step]) -> usize {
    let nested = steps.iter().map(|step| match step {
        Step::If { then, otherwise, .. } => 1 + count_steps(then) + count_steps(otherwise),
        Step::Loop { body, .. } => 1 + count_steps(body),
        Step::Launch { .. }
        | Step::Copy { .. }
        | Step::Bind { .. }
        | Step::Require { .. }
        | Step::Host { .. }
        | Step::HostLaunch { .. }
        | Step::ToHost { .. }
        | Step::ToDevice { .. } => 1,
    });
    nested.sum()
}

impl Program {
    /// Checks everything that can be checked before shapes are known, against the bytes of code and constants that come with it.
    pub fn validate(&self, code: u64, constants: u64) -> Checked {
        self.validate_beside(code, 0, constants)
    }

    /// The same for a program with launches on the CPU beside a device, whose code has `host` bytes.
    pub fn validate_beside(&self, code: u64, host: u64, constants: u64) -> Checked {
        self.check_ports()?;
        self.check_symbols()?;
        self.check_slots(constants)?;
        let few = self.threads.is_none_or(|n| n <= MAX_THREADS);
        check(few, || "threads".into(), format!("at most {MAX_THREADS} can be asked for"))?;
        let steps = count_steps(&self.steps) as u64;
        for (i, buffer) in self.buffers.iter().enumerate() {
            self.check_buffer(i, buffer, constants, steps)?;
        }
        self.check_overlap()?;
        for (kernels, code, what) in [(&self.kernels, code, "kernel"), (&self.host_kernels, host, "kernel of the host")] {
            for (i, kernel) in kernels.iter().enumerate() {
                let good = kernel.entry < code;
                check(
                    good,
                    || format!("{what} {i} '{}'", kernel.name),
                    format!("entry {:#x} is not in {code} bytes of code", kernel.entry),
                )?;
            }
        }
        self.check_steps(&self.steps, &mut 0, 0)
    }

    fn size(&self, size: &Size, place: impl FnOnce() -> String) -> Checked {
        match size.fault(self.symbols.len()) {
            None => Ok(()),
            Some(what) => check(false, place, what),
        }
    }

    fn check_ports(&self) -> Checked {
        for (ports, kind) in [(&self.inputs, "input"), (&self.outputs, "output")] {
            for (i, port) in ports.iter().enumerate() {
                let place = || format!("{kind} {i} '{}'", port.name);
                let bytes = if port.dtype == 0 { Some(0) } else { dtype::bytes(port.dtype) };
                check(bytes.is_some(), place, format!("unknown element type {}", port.dtype))?;
                check(bytes == Some(port.element), place, "elements have no such width")?;
                for dim in &port.dims {
                    self.size(dim, place)?;
                    let early = kind == "output" || dim.symbols().all(|s| self.symbols[s as usize].source != SymbolSource::Step);
                    check(early, place, "a dim is known only while the program runs")?;
                }
                let number = i as u32;
                if port.is_host() {
                    self.check_host_port(port, kind == "input", number, place)?;
                    continue;
                }
                let fits = match self.buffers.get(port.buffer as usize).map(|b| &b.place) {
                    Some(Place::Input(n)) => kind == "input" && *n == number,
                    Some(Place::Output(n)) => kind == "output" && *n == number,
                    Some(Place::State(_)) => true,
                    Some(Place::Constant(_) | Place::Arena { .. }) | None => false,
                };
                check(fits, place, format!("buffer {} is not the memory of this {kind}", port.buffer))?;
            }
        }
        for (i, &(output, input)) in self.states.iter().enumerate() {
            let place = || format!("state {i}");
            let (from, to) = (self.outputs.get(output as usize), self.inputs.get(input as usize));
            let (Some(from), Some(to)) = (from, to) else { return check(false, place, "no such output or input") };
            check(!from.is_host() && !to.is_host(), place, "a value of the host cannot be state")?;
            check(from.dtype == to.dtype, place, format!("'{}' and '{}' differ in element type", from.name, to.name))?;
            let twice = self.states[..i].iter().any(|s| s.0 == output || s.1 == input);
            check(!twice, place, "an output or input is in two states")?;
        }
        Ok(())
    }

    fn check_symbols(&self) -> Checked {
        for symbol in &self.symbols {
            if let SymbolSource::Input { input, axis } = symbol.source {
                let good = self.inputs.get(input as usize).is_some_and(|p| (axis as usize) < p.dims.len());
                check(good, || format!("symbol '{}'", symbol.name), format!("there is no axis {axis} of input {input}"))?;
            }
        }
        Ok(())
    }

    /// The port of a value of the host and its slot belong to each other.
    fn check_host_port(&self, port: &Port, is_input: bool, number: u32, place: impl Fn() -> String) -> Checked {
        let Some(slot) = self.slots.get(port.buffer as usize) else {
            return check(false, place, format!("there is no slot {}", port.buffer));
        };
        let want = if is_input { SlotPlace::Input(number) } else { SlotPlace::Output(number) };
        check(slot.place == want, &place, format!("slot {} is not the place of this port", port.buffer))?;
        let fits = match &slot.ty {
            HostType::Tensor(dtype, dims) => *dtype == port.dtype && dims.len() == port.dims.len(),
            _ => port.dtype == 0 && port.dims.is_empty(),
        };
        check(fits, place, format!("slot {} holds {}, which is another type", port.buffer, slot.ty))
    }

    fn check_slots(&self, constants: u64) -> Checked {
        for (i, slot) in self.slots.iter().enumerate() {
            let place = || format!("slot {i}");
            let mut ty = &slot.ty;
            loop {
                let (dtype, inner) = match ty {
                    HostType::Tensor(dtype, _) | HostType::Any(dtype) => (Some(*dtype), None),
                    HostType::Sequence(of) | HostType::Optional(of) => (None, Some(of)),
                    HostType::Map(key, of) => (Some(*key), Some(of)),
                };
                check(dtype.is_none_or(|d| dtype::bytes(d).is_some()), place, "its type has an unknown element type")?;
                match inner {
                    Some(inner) => ty = inner,
                    None => break,
                }
            }
            let has = |ports: &[Port], n: u32| ports.get(n as usize).is_some_and(|p| p.is_host() && p.buffer as usize == i);
            match slot.place {
                SlotPlace::Input(n) => check(has(&self.inputs, n), place, format!("input {n} is another value"))?,
                SlotPlace::Output(n) => check(has(&self.outputs, n), place, format!("output {n} is another value"))?,
                SlotPlace::Constant { offset, bytes } => {
                    let inside = offset.checked_add(bytes).is_some_and(|end| end <= constants);
                    check(inside, place, format!("it is not in {constants} bytes of constants"))?;
                }
                SlotPlace::Temp => {}
            }
        }
        Ok(())
    }

    /// An operand or result of a host step.
    fn check_host_value(&self, own: u32, value: &HostValue, result: bool) -> Checked {
        let place = || format!("step {own}");
        match value {
            HostValue::Slot(slot) => match self.slots.get(*slot as usize).map(|s| s.place) {
                None => check(false, place, format!("there is no slot {slot}")),
                Some(SlotPlace::Input(_) | SlotPlace::Constant { .. }) => {
                    check(!result, place, format!("it writes slot {slot}, which is only read"))
                }
                Some(SlotPlace::Output(_) | SlotPlace::Temp) => Ok(()),
            },
            HostValue::Tensor { dtype, dims, view } => {
                let width = dtype::bytes(*dtype).filter(|&w| w > 0);
                check(width.is_some(), place, format!("a buffer has no elements of type {dtype}"))?;
                dims.iter().try_for_each(|d| self.size(d, place))?;
                let known = dims.iter().try_fold(i64::from(width.unwrap_or(0)), |n, d| n.checked_mul(d.known()?));
                self.check_view(own, own, view, known.or(Some(0)))?;
                let target = &self.buffers[view.buffer as usize].place;
                let written = result && matches!(target, Place::Constant(_) | Place::Input(_));
                check(!written, place, "it writes into memory that is only read")
            }
        }
    }

    fn check_buffer(&self, i: usize, buffer: &Buffer, constants: u64, steps: u64) -> Checked {
        let place = || format!("buffer {i}");
        self.size(&buffer.bytes, place)?;
        let known = buffer.bytes.known();
        check(known.is_none_or(|b| b >= 0), place, "its size is negative")?;
        match buffer.place {
            Place::Input(n) => {
                let flat = self.inputs.get(n as usize).is_some_and(|p| !p.is_host());
                check(flat, place, format!("there is no input {n} with memory"))
            }
            Place::Output(n) => {
                let flat = self.outputs.get(n as usize).is_some_and(|p| !p.is_host());
                check(flat, place, format!("there is no output {n} with memory"))
            }
            Place::State(n) => check((n as usize) < self.buffers.len(), place, format!("state number {n} is too large")),
            Place::Constant(offset) => {
                let end = known.and_then(|b| offset.checked_add(b as u64));
                check(end.is_some_and(|e| e <= constants), place, format!("it is not in {constants} bytes of constants"))
            }
            Place::Arena { first, last, offset } => {
                check(
                    first <= last && u64::from(last) < steps,
                    place,
                    format!("its life {first}..={last} is not in {steps} steps"),
                )?;
                match (self.arena, offset) {
                    (None, _) => Ok(()),
                    (Some(_), None) => check(false, place, "it has no place in an arena of known size"),
                    (Some(arena), Some(offset)) => {
                        let end = known.and_then(|b| offset.checked_add(b as u64));
                        check(end.is_some_and(|e| e <= arena), place, format!("it is not in {arena} bytes of arena"))?;
                        check(offset.is_multiple_of(ALIGN as u64), place, "its place is not aligned")
                    }
                }
            }
        }
    }

    /// Buffers that were placed at compile time and live at once do not overlap.
    fn check_overlap(&self) -> Checked {
        let mut placed: Vec<(u32, u32, u64, u64, usize)> = Vec::new();
        for (i, buffer) in self.buffers.iter().enumerate() {
            if let (Place::Arena { first, last, offset: Some(offset) }, Some(bytes), Some(_)) =
                (&buffer.place, buffer.bytes.known(), self.arena)
            {
                placed.push((*first, *last, *offset, offset + bytes as u64, i));
            }
        }
        placed.sort_unstable();
        let mut alive: Vec<(u32, u32, u64, u64, usize)> = Vec::new();
        for new in placed {
            alive.retain(|old| old.1 >= new.0);
            if let Some(old) = alive.iter().find(|old| old.2 < new.3 && new.2 < old.3) {
                return check(false, || format!("buffer {}", new.4), format!("it overlaps buffer {} while both live", old.4));
            }
            alive.push(new);
        }
        Ok(())
    }

    fn check_steps(&self, steps: &[Step], number: &mut u32, depth: usize) -> Checked {
        check(depth <= NESTING, || format!("step {number}"), "steps nest too deeply")?;
        for step in steps {
            let own = *number;
            *number += 1;
            let place = || format!("step {own}");
            let view = |view: &View, bytes: Option<i64>, last: u32| self.check_view(own, last, view, bytes);
            match step {
                Step::Launch { kernel, buffers, extents, tasks } => {
                    check((*kernel as usize) < self.kernels.len(), place, format!("there is no kernel {kernel}"))?;
                    buffers.iter().try_for_each(|v| view(v, Some(0), own))?;
                    extents.iter().chain([tasks]).try_for_each(|s| self.size(s, place))?;
                }
                Step::HostLaunch { kernel, buffers, extents, tasks, code } => {
                    let known = (*kernel as usize) < self.host_kernels.len();
                    check(known, place, format!("there is no kernel {kernel} of the host"))?;
                    buffers.iter().try_for_each(|v| view(v, Some(0), own))?;
                    extents.iter().chain([tasks]).try_for_each(|s| self.size(s, place))?;
                    check((*code as usize) < self.messages.len(), place, format!("there is no message {code}"))?;
                }
                Step::ToHost { buffer } | Step::ToDevice { buffer } => {
                    view(&View { buffer: *buffer, offset: Size::constant(0) }, Some(0), own)?;
                    let fixed = matches!(self.buffers[*buffer as usize].place, Place::Constant(_) | Place::Input(_));
                    check(!fixed, place, "it copies memory that is only read, which both sides have")?;
                }
                Step::Copy { from, to, bytes } => {
                    self.size(bytes, place)?;
                    view(from, bytes.known(), own)?;
                    view(to, bytes.known(), own)?;
                    let target = &self.buffers[to.buffer as usize].place;
                    check(
                        !matches!(target, Place::Constant(_) | Place::Input(_)),
                        place,
                        "it copies into memory that is only read",
                    )?;
                    if let (true, Some(a), Some(b), Some(n)) =
                        (from.buffer == to.buffer, from.offset.known(), to.offset.known(), bytes.known())
                    {
                        check(a + n <= b || b + n <= a, place, "it copies between ranges that overlap")?;
                    }
                }
                Step::Bind { symbol, from, bound } => {
                    self.check_set(*symbol, place)?;
                    view(from, Some(8), own)?;
                    self.size(bound, place)?;
                }
                Step::Require { left, right, code, .. } => {
                    self.size(left, place)?;
                    self.size(right, place)?;
                    check((*code as usize) < self.messages.len(), place, format!("there is no message {code}"))?;
                }
                Step::If { cond, then, otherwise } => {
                    view(cond, Some(1), own)?;
                    self.check_steps(then, number, depth + 1)?;
                    self.check_steps(otherwise, number, depth + 1)?;
                }
                Step::Host { inputs, outputs, code, .. } => {
                    inputs.iter().flatten().try_for_each(|v| self.check_host_value(own, v, false))?;
                    outputs.iter().try_for_each(|v| self.check_host_value(own, v, true))?;
                    check((*code as usize) < self.messages.len(), place, format!("there is no message {code}"))?;
                }
                Step::Loop { counter, count, cond, body, apart } => {
                    self.check_set(*counter, place)?;
                    self.size(count, place)?;
                    self.check_steps(body, number, depth + 1)?;
                    let launches = body.iter().all(|s| matches!(s, Step::Launch { .. }));
                    let plain = !apart || cond.is_none() && launches;
                    check(plain, place, "a loop whose rounds are apart has a condition, or other steps than launches")?;
                    // The condition is looked at after each round.
                    cond.iter().try_for_each(|c| view(c, Some(1), *number - 1))?;
                }
            }
        }
        Ok(())
    }

    fn check_set(&self, symbol: u32, place: impl FnOnce() -> String) -> Checked {
        let good = self.symbols.get(symbol as usize).is_some_and(|s| s.source == SymbolSource::Step);
        check(good, place, format!("symbol {symbol} cannot be set by a step"))
    }

    /// A view of `bytes` bytes (unknown: any) used by steps `first..=last`.
    fn check_view(&self, first: u32, last: u32, view: &View, bytes: Option<i64>) -> Checked {
        let place = || format!("step {first}");
        let Some(buffer) = self.buffers.get(view.buffer as usize) else {
            return check(false, place, format!("there is no buffer {}", view.buffer));
        };
        self.size(&view.offset, place)?;
        if let Some(offset) = view.offset.known() {
            let end = offset.checked_add(bytes.unwrap_or(0));
            let inside =
                offset >= 0 && bytes.unwrap_or(0) >= 0 && end.is_some_and(|e| buffer.bytes.known().is_none_or(|b| e <= b));
            check(inside, place, format!("it uses bytes that buffer {} does not have", view.buffer))?;
        }
        match buffer.place {
            Place::Arena { first: from, last: to, .. } => {
                let alive = from <= first && last <= to;
                check(alive, place, format!("it uses buffer {}, which lives only in steps {from}..={to}", view.buffer))
            }
            Place::Input(_) | Place::Output(_) | Place::Constant(_) | Place::State(_) => Ok(()),
        }
    }
}
