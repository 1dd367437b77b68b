//! The text form of a [`Program`], for people.

use crate::dtype;
use crate::program::*;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.symbols.iter().map(|s| s.name.as_str()).collect();
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
                let dtype = dtype::name(port.dtype).unwrap_or("?");
                writeln!(f, "{kind} {i} {:?} {dtype}[{}] @{}", port.name, dims.join(", "), port.buffer)?;
            }
        }
        for &(output, input) in &self.states {
            writeln!(f, "state output {output} -> input {input}")?;
        }
        for (i, buffer) in self.buffers.iter().enumerate() {
            write!(f, "buffer @{i} {} bytes, ", buffer.bytes.text(&names))?;
            match buffer.place {
                Place::Input(n) => writeln!(f, "input {n}")?,
                Place::Output(n) => writeln!(f, "output {n}")?,
                Place::Constant(offset) => writeln!(f, "constants at {offset:#x}")?,
                Place::Arena { first, last, offset: Some(at) } => writeln!(f, "arena at {at:#x}, steps {first}..={last}")?,
                Place::Arena { first, last, offset: None } => writeln!(f, "arena, steps {first}..={last}")?,
                Place::State(n) => writeln!(f, "state {n}")?,
            }
        }
        match self.arena {
            Some(bytes) => writeln!(f, "arena {bytes} bytes")?,
            None => writeln!(f, "arena placed when shapes are known")?,
        }
        for (i, k) in self.kernels.iter().enumerate() {
            writeln!(f, "kernel {i} {:?} entry {:#x}, scratch {} bytes", k.name, k.entry, k.scratch)?;
        }
        for (i, m) in self.messages.iter().enumerate() {
            writeln!(f, "message {i} {:?} {:?}", m.node, m.text)?;
        }
        printer.steps(f, &self.steps, &mut 0, 0)
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
            Some(0) => alloc::format!("@{}", view.buffer),
            _ => alloc::format!("@{} + {}", view.buffer, self.size(&view.offset)),
        }
    }
    fn symbol(&self, number: u32) -> &str {
        self.names.get(number as usize).copied().unwrap_or("?")
    }
    fn steps(&self, f: &mut fmt::Formatter<'_>, steps: &[Step], number: &mut u32, depth: usize) -> fmt::Result {
        for step in steps {
            write!(f, "{number:4} {:1$}", "", 2 * depth)?;
            *number += 1;
            match step {
                Step::Launch { kernel, buffers, extents, tasks } => {
                    let buffers: Vec<String> = buffers.iter().map(|v| self.view(v)).collect();
                    let extents: Vec<String> = extents.iter().map(|s| self.size(s)).collect();
                    let name = self.program.kernels.get(*kernel as usize).map_or("?", |k| &k.name);
                    let (buffers, extents, tasks) = (buffers.join(", "), extents.join(", "), self.size(tasks));
                    writeln!(f, "launch {kernel} {name}({buffers}) [{extents}] tasks {tasks}")?;
                }
                Step::Copy { from, to, bytes } => {
                    writeln!(f, "copy {} -> {}, {} bytes", self.view(from), self.view(to), self.size(bytes))?;
                }
                Step::Bind { symbol, from, bound } => {
                    writeln!(f, "bind {} = {} (at most {})", self.symbol(*symbol), self.view(from), self.size(bound))?;
                }
                Step::Require { left, right, or_one, code } => {
                    let one = if *or_one { " or 1" } else { "" };
                    writeln!(f, "require {} == {}{one} else message {code}", self.size(left), self.size(right))?;
                }
                Step::If { cond, then, otherwise } => {
                    writeln!(f, "if {}", self.view(cond))?;
                    self.steps(f, then, number, depth + 1)?;
                    writeln!(f, "     {:1$}else", "", 2 * depth)?;
                    self.steps(f, otherwise, number, depth + 1)?;
                }
                Step::Loop { counter, count, cond, body } => {
                    let cond = cond.as_ref().map(|c| alloc::format!(" while {}", self.view(c))).unwrap_or_default();
                    writeln!(f, "for {} in 0..{}{cond}", self.symbol(*counter), self.size(count))?;
                    self.steps(f, body, number, depth + 1)?;
                }
            }
        }
        Ok(())
    }
}
