//! The text form of a [`Program`], for people and tools. `parse.rs` reads it back: `parse(&program.to_string())` is the program, if its
//! sizes are well-formed.

use crate::dtype;
use crate::program::*;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// How sizes call the symbols of a program: by name if that reads as one, else `$3`.
pub(crate) fn symbol_names(symbols: &[Symbol]) -> Vec<String> {
    let plain = |i: usize, name: &str| {
        let mut chars = name.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !crate::parse::WORDS.contains(&name)
            && symbols.iter().position(|s| s.name == name) == Some(i)
    };
    let name = |(i, s): (usize, &Symbol)| if plain(i, &s.name) { s.name.clone() } else { format!("${i}") };
    symbols.iter().enumerate().map(name).collect()
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = symbol_names(&self.symbols);
        let names: Vec<&str> = names.iter().map(|n| n.as_str()).collect();
        let printer = Printer { program: self, names: &names };
        for (i, symbol) in self.symbols.iter().enumerate() {
            match symbol.source {
                SymbolSource::Input { input, axis } => writeln!(f, "symbol {i} {:?} = input {input} axis {axis}", symbol.name)?,
                SymbolSource::Step => writeln!(f, "symbol {i} {:?} = step", symbol.name)?,
            }
        }
        for (ports, kind) in [(&self.inputs, "input"), (&self.outputs, "output")] {
            for (i, port) in ports.iter().enumerate() {
                let dims: Vec<String> = port.dims.iter().map(|d| d.text(&names)).collect();
                write!(f, "{kind} {i} {:?} ", port.name)?;
                match dtype::DTYPES.iter().find(|d| d.0 == port.dtype && d.2 == port.element) {
                    Some(d) => f.write_str(d.1)?,
                    None => write!(f, "#{}/{}", port.dtype, port.element)?,
                }
                writeln!(f, "[{}] @{}", dims.join(", "), port.buffer)?;
            }
        }
        for &(output, input) in &self.states {
            writeln!(f, "state output {output} -> input {input}")?;
        }
        for (i, buffer) in self.buffers.iter().enumerate() {
            write!(f, "buffer @{i} ")?;
            match buffer.place {
                Place::Input(n) => write!(f, "input {n}")?,
                Place::Output(n) => write!(f, "output {n}")?,
                Place::Constant(offset) => write!(f, "constants at {offset:#x}")?,
                Place::Arena { first, last, offset: Some(at) } => write!(f, "arena steps {first}..={last} at {at:#x}")?,
                Place::Arena { first, last, offset: None } => write!(f, "arena steps {first}..={last}")?,
                Place::State(n) => write!(f, "state {n}")?,
            }
            writeln!(f, ", bytes {}", buffer.bytes.text(&names))?;
        }
        if let Some(bytes) = self.arena {
            writeln!(f, "arena bytes {bytes}")?;
        }
        if let Some(threads) = self.threads {
            writeln!(f, "threads {threads}")?;
        }
        for (i, slot) in self.slots.iter().enumerate() {
            write!(f, "slot &{i} {} ", slot.ty)?;
            match slot.place {
                SlotPlace::Input(n) => writeln!(f, "input {n}")?,
                SlotPlace::Output(n) => writeln!(f, "output {n}")?,
                SlotPlace::Constant { offset, bytes } => writeln!(f, "constants at {offset:#x} bytes {bytes}")?,
                SlotPlace::Temp => writeln!(f, "temp")?,
            }
        }
        for (kernels, word) in [(&self.kernels, "kernel"), (&self.host_kernels, "host_kernel")] {
            for (i, k) in kernels.iter().enumerate() {
                writeln!(f, "{word} {i} {:?} entry {:#x} scratch {}", k.name, k.entry, k.scratch)?;
            }
        }
        for (i, m) in self.messages.iter().enumerate() {
            writeln!(f, "message {i} {:?} {:?}", m.node, m.text)?;
        }
        writeln!(f, "steps {{")?;
        printer.steps(f, &self.steps, &mut 0, 1)?;
        writeln!(f, "}}")
    }
}

/// An element type: its name, or `#3` if it has none.
struct Element(DTypeCode);

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match dtype::name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "#{}", self.0),
        }
    }
}

/// `string[?, 3]`, `any(f32)`, `seq(...)`, `optional(...)`, `map(i64, ...)`.
impl fmt::Display for HostType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostType::Tensor(dtype, dims) => {
                let dims: Vec<String> = dims.iter().map(|d| d.map_or_else(|| "?".into(), |n| format!("{n}"))).collect();
                write!(f, "{}[{}]", Element(*dtype), dims.join(", "))
            }
            HostType::Any(dtype) => write!(f, "any({})", Element(*dtype)),
            HostType::Sequence(of) => write!(f, "seq({of})"),
            HostType::Optional(of) => write!(f, "optional({of})"),
            HostType::Map(key, of) => write!(f, "map({}, {of})", Element(*key)),
        }
    }
}

struct Printer<'a> {
    program: &'a Program,
    names: &'a [&'a str],
}

impl Printer<'_> {
    fn size(&self, size: &Size) -> String {
        size.text(self.names)
    }
    fn view(&self, view: &View) -> String {
        match view.offset.known() {
            Some(0) => format!("@{}", view.buffer),
            _ => format!("@{} + {}", view.buffer, self.size(&view.offset)),
        }
    }
    /// A kernel with its operands.
    fn call(&self, kernels: &[Kernel], kernel: u32, buffers: &[View], extents: &[Size], tasks: &Size) -> String {
        let buffers: Vec<String> = buffers.iter().map(|v| self.view(v)).collect();
        let extents: Vec<String> = extents.iter().map(|s| self.size(s)).collect();
        let name = kernels.get(kernel as usize).map_or("", |k| &k.name);
        let (buffers, extents, tasks) = (buffers.join(", "), extents.join(", "), self.size(tasks));
        format!("{kernel} {name:?} ({buffers}) [{extents}] tasks {tasks}")
    }
    fn host_value(&self, value: &HostValue) -> String {
        match value {
            HostValue::Slot(slot) => format!("&{slot}"),
            HostValue::Tensor { dtype, dims, view } => {
                let dims: Vec<String> = dims.iter().map(|d| self.size(d)).collect();
                format!("{}[{}] {}", Element(*dtype), dims.join(", "), self.view(view))
            }
        }
    }
    fn steps(&self, f: &mut fmt::Formatter<'_>, steps: &[Step], number: &mut u32, depth: usize) -> fmt::Result {
        for step in steps {
            write!(f, "{number:4} {:1$}", "", 2 * depth)?;
            *number += 1;
            self.step(f, step, number, depth)?;
        }
        Ok(())
    }
    fn step(&self, f: &mut fmt::Formatter<'_>, step: &Step, number: &mut u32, depth: usize) -> fmt::Result {
        let close = format!("{:1$}}}", "", 5 + 2 * depth);
        match step {
            Step::Launch { kernel, buffers, extents, tasks } => {
                writeln!(f, "launch {}", self.call(&self.program.kernels, *kernel, buffers, extents, tasks))
            }
            Step::HostLaunch { kernel, buffers, extents, tasks, code } => {
                let call = self.call(&self.program.host_kernels, *kernel, buffers, extents, tasks);
                writeln!(f, "host_launch {call} message {code}")
            }
            Step::ToHost { buffer } => writeln!(f, "to_host @{buffer}"),
            Step::ToDevice { buffer } => writeln!(f, "to_device @{buffer}"),
            Step::Copy { from, to, bytes } => {
                writeln!(f, "copy {} -> {} bytes {}", self.view(from), self.view(to), self.size(bytes))
            }
            Step::Bind { symbol, from, bound } => {
                let symbol = self.size(&Size::symbol(*symbol));
                writeln!(f, "bind {symbol} = {} most {}", self.view(from), self.size(bound))
            }
            Step::Require { left, right, or_one, code } => {
                let one = if *or_one { " or one" } else { "" };
                writeln!(f, "require {} == {}{one} else message {code}", self.size(left), self.size(right))
            }
            Step::If { cond, then, otherwise } => {
                writeln!(f, "if {} {{", self.view(cond))?;
                self.steps(f, then, number, depth + 1)?;
                writeln!(f, "{close} else {{")?;
                self.steps(f, otherwise, number, depth + 1)?;
                writeln!(f, "{close}")
            }
            Step::Loop { counter, count, cond, body, apart } => {
                let how = if *apart { "apart " } else { "" };
                let cond = cond.as_ref().map(|c| format!(" while {}", self.view(c))).unwrap_or_default();
                writeln!(f, "for {} below {}{cond} {how}{{", self.size(&Size::symbol(*counter)), self.size(count))?;
                self.steps(f, body, number, depth + 1)?;
                writeln!(f, "{close}")
            }
            Step::Host { routine, attributes, inputs, outputs, code } => {
                let hex: String = attributes.iter().map(|b| format!("{b:02x}")).collect();
                let inputs: Vec<String> =
                    inputs.iter().map(|v| v.as_ref().map_or_else(|| "_".into(), |v| self.host_value(v))).collect();
                let outputs: Vec<String> = outputs.iter().map(|v| self.host_value(v)).collect();
                let (inputs, outputs) = (inputs.join(", "), outputs.join(", "));
                writeln!(f, "host {routine:?} {hex:?} ({inputs}) -> ({outputs}) message {code}")
            }
        }
    }
}
