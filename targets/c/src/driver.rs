//! The function that runs a model: the steps of its program as C that calls the kernels.
//!
//! It does what the runtime does for an artifact (`infc-runtime`, `exec.rs`), with memory of the caller and without an allocator. Each
//! size is a constant or an expression over dims that the caller gives, loop counters and values that a step reads; all are bounded.

use crate::header::{Interface, Member, given, members};
use crate::helpers::Helpers;
use crate::kernel::{Function, Parameter};
use crate::names::{self, Scope};
use crate::sizes::{self, compared};
use crate::text::{Level, Text};
use crate::types::integer;
use infc_artifact::program::{Place, Program, Size, Step, SymbolSource, View};
use infc_ir::{Fault, fault};
use infc_kernel::bounded::{Layout, changes};

/// The status of a dim that is out of bounds is -2, that of memory that is not aligned -1.
const UNALIGNED: &str = "the arena, the state or the weights are not aligned";
const OUT_OF_BOUNDS: &str = "a dim is below 0 or more than there is memory for";

/// What the driver is made from.
pub struct Job<'a> {
    /// The program.
    pub program: &'a Program,
    /// Its memory.
    pub layout: &'a Layout,
    /// The printed kernels.
    pub functions: &'a [Function],
    /// The node of each launch.
    pub nodes: Vec<&'a str>,
    /// Names of the constants as arrays, by buffer; without, they are in `weights`.
    pub constants: &'a [Option<String>],
    /// Alignment of the caller's memory.
    pub align: u64,
}

/// A printed driver.
pub struct Driver {
    /// Definitions of functions.
    pub text: String,
    /// What a status of 1 + its index means.
    pub messages: Vec<String>,
}

/// Prints the driver.
pub fn driver(job: &Job, interface: &Interface, h: &mut Helpers) -> Result<Driver, Fault> {
    let program = job.program;
    let (slots, state_bytes) = job.layout.state(program);
    let mut scope = Scope::default();
    interface.dims.iter().for_each(|d| _ = scope.fresh(&d.name));
    let symbols = (program.symbols.iter().enumerate())
        .map(|(s, symbol)| match interface.dims.iter().find(|d| d.symbol == s) {
            Some(d) => d.name.clone(),
            None => scope.fresh(&symbol.name),
        })
        .collect();
    let mut d = Emit {
        job,
        h,
        slots,
        inputs: members(given(program)),
        outputs: members(program.outputs.iter()),
        scratch: job.layout.arena.next_multiple_of(64),
        messages: program.messages.iter().map(|m| format!("{}: {}", m.node, m.text)).collect(),
        lines: vec![],
        depth: 1,
        launches: 0,
        symbols,
    };
    d.list(&program.steps)?;
    d.finish()?;
    let body = std::mem::take(&mut d.lines).join("\n");
    d.begin(&body, interface);
    let begin = std::mem::take(&mut d.lines).join("\n");
    let messages = d.messages;
    let mut text = format!("{} {{\n{begin}\n{body}\n    return 0;\n}}\n", interface.run());
    if !program.states.is_empty() {
        let name = interface.name;
        text += &format!("\nvoid {name}_reset(void *state) {{\n    memset(state, 0, {state_bytes});\n}}\n");
    }
    text += &message(interface.name, !interface.dims.is_empty(), &messages);
    Ok(Driver { text, messages })
}

/// `NAME_message`: from a status to its text.
fn message(name: &str, dims: bool, messages: &[String]) -> String {
    let mut text = format!("\nconst char *{name}_message(int32_t status) {{\n");
    if !messages.is_empty() {
        let list: Vec<String> = messages.iter().map(|m| format!("        {}", names::literal(m))).collect();
        text += &format!("    static const char *const texts[] = {{\n{}\n    }};\n", list.join(",\n"));
        text += &format!("    if (status > 0 && status <= {}) return texts[status - 1];\n", messages.len());
    }
    text += &format!("    if (status == -1) return {};\n", names::literal(UNALIGNED));
    if dims {
        text += &format!("    if (status == -2) return {};\n", names::literal(OUT_OF_BOUNDS));
    }
    text + "    return status == 0 ? \"done\" : \"no such status\";\n}\n"
}

struct Emit<'a, 'h> {
    job: &'a Job<'a>,
    h: &'h mut Helpers,
    slots: Vec<(usize, u64)>,
    inputs: Vec<Member<'a>>,
    outputs: Vec<Member<'a>>,
    scratch: u64,
    messages: Vec<String>,
    lines: Vec<String>,
    depth: usize,
    launches: usize,
    symbols: Vec<String>,
}

/// Is the identifier in the text?
fn mentions(text: &str, name: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|word| word == name)
}

impl Emit<'_, '_> {
    fn line(&mut self, text: impl AsRef<str>) {
        self.lines.push("    ".repeat(self.depth) + text.as_ref());
    }

    /// What stands before the steps: names of memory, checks of what the caller gives, symbols.
    fn begin(&mut self, body: &str, interface: &Interface) {
        let align = self.job.align;
        let has_state = !self.slots.is_empty();
        let mut given = vec!["arena"];
        given.extend(interface.weights_bytes.map(|_| "weights"));
        given.extend(has_state.then_some("state"));
        if mentions(body, "memory") {
            self.line("unsigned char *const memory = (unsigned char *)arena;");
        }
        for (s, symbol) in self.job.program.symbols.iter().enumerate() {
            if symbol.source == SymbolSource::Step && mentions(body, &self.symbols[s].clone()) {
                self.line(format!("int64_t {} = 0;", self.symbols[s]));
            }
        }
        if mentions(body, "status") {
            self.line("int32_t status;");
        }
        for name in ["inputs", "outputs"] {
            if !mentions(body, name) {
                self.line(format!("(void){name};"));
            }
        }
        let all: Vec<String> = given.iter().map(|n| format!("(uintptr_t){n}")).collect();
        let all = if all.len() == 1 { all[0].clone() } else { format!("({})", all.join(" | ")) };
        self.line(format!("if ({all} % {align} != 0) return -1;"));
        for d in &interface.dims {
            self.line(format!("if ({0} < 0 || {0} > {1}) return -2;", d.name, integer(d.most)));
        }
    }

    /// Dims of outputs, and outputs that are the state of the next run.
    fn finish(&mut self) -> Result<(), Fault> {
        for k in 0..self.outputs.len() {
            let (port, name) = (self.outputs[k].port, self.outputs[k].name.clone());
            if !changes(port) {
                continue;
            }
            self.line(format!("if (outputs->{name}_dims != NULL) {{"));
            self.depth += 1;
            for (axis, dim) in port.dims.iter().enumerate() {
                let value = self.size(dim)?;
                self.line(format!("outputs->{name}_dims[{axis}] = {};", value.text));
            }
            self.depth -= 1;
            self.line("}");
        }
        for &(output, input) in &self.job.program.states {
            let slot = self.slots.iter().find(|s| s.0 == input as usize).map_or(0, |s| s.1);
            let bytes = self.size(&self.job.program.buffers[self.job.program.inputs[input as usize].buffer as usize].bytes)?;
            let at = if slot == 0 { "state".to_owned() } else { format!("(unsigned char *)state + {slot}") };
            self.copy(&at, &format!("outputs->{}", self.outputs[output as usize].name), &bytes);
        }
        Ok(())
    }

    fn copy(&mut self, to: &str, from: &str, bytes: &Text) {
        match bytes.text.parse::<i64>() {
            Ok(n) if n <= 0 => {}
            Ok(n) => self.line(format!("memcpy({to}, {from}, {n});")),
            // Memory of no bytes may be NULL.
            Err(_) => self.line(format!("if ({} > 0) memcpy({to}, {from}, (size_t){});", compared(bytes), bytes.operand())),
        }
    }

    fn list(&mut self, steps: &[Step]) -> Result<(), Fault> {
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn block(&mut self, steps: &[Step]) -> Result<(), Fault> {
        self.depth += 1;
        self.list(steps)?;
        self.depth -= 1;
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), Fault> {
        match step {
            Step::Launch { kernel, buffers, extents, .. } => self.launch(*kernel as usize, buffers, extents)?,
            Step::Copy { from, to, bytes } => {
                let most = bytes.range(&self.job.layout.ranges);
                let (from, to) = (self.address(from, most)?, self.address(to, most)?);
                let bytes = self.size(bytes)?;
                self.copy(&to, &from, &bytes);
            }
            Step::Bind { symbol, from, bound } => self.bind(*symbol as usize, from, bound)?,
            Step::Require { left, right, or_one, code } => {
                let (a, b) = (self.size(left)?, self.size(right)?);
                let (a, b) = (compared(&a), compared(&b));
                let one = if *or_one { format!(" && {a} != 1 && {b} != 1") } else { String::new() };
                match (a.parse::<i64>(), b.parse::<i64>()) {
                    (Ok(x), Ok(y)) if x == y || *or_one && (x == 1 || y == 1) => {}
                    _ => self.line(format!("if ({a} != {b}{one}) return {};", code + 1)),
                }
            }
            Step::Host { .. } => return Err(fault!("a step runs on the host, which C code does not have")),
            Step::HostLaunch { .. } | Step::ToHost { .. } | Step::ToDevice { .. } => {
                return Err(fault!("a step runs beside a device, which C code does not have"));
            }
            Step::If { cond, then, otherwise } => {
                let flag = self.flag(cond)?;
                self.line(format!("if ({flag}) {{"));
                self.block(then)?;
                if !otherwise.is_empty() {
                    self.line("} else {");
                    self.block(otherwise)?;
                }
                self.line("}");
            }
            Step::Loop { counter, count, cond, body, .. } => {
                let counter = *counter as usize;
                let name = self.symbols[counter].clone();
                let count = self.size(count)?;
                let more = match cond {
                    None => String::new(),
                    Some(cond) => format!(" && {}", self.flag(cond)?),
                };
                self.line(format!("for ({name} = 0; {name} < {}{more}; {name}++) {{", compared(&count)));
                if let Some(&most) = self.job.layout.bounds.get(&self.job.program.symbols[counter].name) {
                    self.depth += 1;
                    let code = self.code(format!("the size '{}' is out of its range", self.job.program.symbols[counter].name));
                    self.line(format!("if ({name} > {}) return {code};", integer(most)));
                    self.depth -= 1;
                }
                self.block(body)?;
                self.line("}");
            }
        }
        Ok(())
    }

    fn bind(&mut self, symbol: usize, from: &View, bound: &Size) -> Result<(), Fault> {
        let at = self.address(from, Some((8, 8)))?;
        let bound = self.size(bound)?;
        let (name, model) = (self.symbols[symbol].clone(), self.job.program.symbols[symbol].name.clone());
        let code = self.code(format!("the size '{model}' is out of its range"));
        self.line(format!("memcpy(&{name}, {at}, 8);"));
        let mut limits = vec![format!("{name} < 0")];
        if bound.text != "INT64_MAX" && !bound.text.contains(&i64::MAX.to_string()) {
            limits.push(format!("{name} > {}", compared(&bound)));
        }
        limits.extend(self.job.layout.bounds.get(&model).map(|most| format!("{name} > {}", integer(*most))));
        self.line(format!("if ({}) return {code};", limits.join(" || ")));
        Ok(())
    }

    fn launch(&mut self, kernel: usize, buffers: &[View], extents: &[Size]) -> Result<(), Fault> {
        let function = self.job.functions.get(kernel).ok_or_else(|| fault!("kernel {kernel} does not exist"))?;
        let node = self.job.nodes.get(self.launches).copied().unwrap_or_default();
        self.launches += 1;
        let mut arguments = vec![];
        for (view, parameter) in buffers.iter().zip(&function.parameters) {
            arguments.push(self.argument(view, parameter)?);
        }
        for extent in extents {
            arguments.push(self.size(extent)?.text);
        }
        if function.scratch > 0 {
            arguments.push(format!("memory + {}", self.scratch));
        }
        if !node.is_empty() {
            self.line(format!("/* {} */", names::comment(node)));
        }
        let call = format!("{}({})", function.name, arguments.join(", "));
        match function.checks {
            false => self.line(format!("{call};")),
            true => {
                self.line(format!("status = {call};"));
                self.line("if (status != 0) return status;");
            }
        }
        Ok(())
    }

    /// A view as an argument of a kernel.
    fn argument(&mut self, view: &View, p: &Parameter) -> Result<String, Fault> {
        let zero = view.offset.eval(&[]) == Some(0);
        if let (true, Some((name, element))) = (zero, self.typed(view.buffer))
            && p.plain == Some(element)
        {
            return Ok(name);
        }
        let at = self.address(view, Some((0, 0)))?;
        Ok(match self.job.program.buffers[view.buffer as usize].place {
            Place::Arena { .. } if zero => format!("({})({at})", p.cast),
            _ => format!("({})({at})", p.cast),
        })
    }

    /// The name and element type of a buffer that is declared as an array of elements.
    fn typed(&self, buffer: u32) -> Option<(String, &'static str)> {
        match self.job.program.buffers[buffer as usize].place {
            Place::Input(i) if !self.slots.iter().any(|s| s.0 == i as usize) => {
                let m = self.input(i as usize)?;
                Some((format!("inputs->{}", m.name), m.c_type))
            }
            Place::Output(i) => self.outputs.get(i as usize).map(|m| (format!("outputs->{}", m.name), m.c_type)),
            _ => None,
        }
    }

    /// The member of an input that is no state.
    fn input(&self, number: usize) -> Option<&Member<'_>> {
        let before = self.slots.iter().filter(|s| s.0 < number).count();
        self.inputs.get(number - before)
    }

    /// The code of a message of the driver's own.
    fn code(&mut self, message: String) -> usize {
        match self.messages.iter().position(|m| *m == message) {
            Some(at) => at + 1,
            None => {
                self.messages.push(message);
                self.messages.len()
            }
        }
    }

    /// A byte as a condition.
    fn flag(&mut self, view: &View) -> Result<String, Fault> {
        let at = self.address(view, Some((1, 1)))?;
        Ok(format!("*(const unsigned char *)({at}) != 0"))
    }

    /// The address of bytes of a buffer (least and most of them); checked unless it is certain to lie inside.
    fn address(&mut self, view: &View, bytes: Option<(i64, i64)>) -> Result<String, Fault> {
        let (buffer, layout) = (view.buffer as usize, self.job.layout);
        let (base, start) = match &self.job.program.buffers[buffer].place {
            Place::Input(i) => match self.slots.iter().find(|s| s.0 == *i as usize) {
                Some(&(_, slot)) => ("(const unsigned char *)state".to_owned(), slot),
                None => {
                    let m = self.input(*i as usize).ok_or_else(|| fault!("input {i} does not exist"))?;
                    (format!("inputs->{}", m.name), 0)
                }
            },
            Place::Output(i) => (
                format!("outputs->{}", self.outputs.get(*i as usize).ok_or_else(|| fault!("output {i} does not exist"))?.name),
                0,
            ),
            Place::Constant(offset) => match &self.job.constants[buffer] {
                Some(name) => (name.clone(), 0),
                None => ("(const unsigned char *)weights".to_owned(), *offset),
            },
            Place::Arena { .. } => ("memory".to_owned(), layout.offsets[buffer]),
            Place::State(_) => return Err(fault!("buffer {buffer} is kept by a session, which C code has not")),
        };
        let (size, bytes) = (layout.bytes[buffer] as i64, bytes.unwrap_or((0, i64::MAX)));
        let range = view.offset.range(&layout.ranges).unwrap_or((i64::MIN, i64::MAX));
        let inside = range.0 >= 0 && range.1 <= size && bytes.0 >= 0 && bytes.1 <= size - range.1;
        let offset = self.size(&view.offset)?;
        if !inside && offset.text.parse::<i64>().is_err() {
            let code = self.code("a step leaves the memory of a value".to_owned());
            let most = (size - bytes.1.min(size)).max(0);
            self.line(format!("if ({0} < 0 || {0} > {most}) return {code};", compared(&offset)));
        }
        let typed = matches!(self.job.program.buffers[buffer].place, Place::Input(_) | Place::Output(_) | Place::Constant(_));
        let moves = start > 0 || offset.text != "0";
        let base = match typed && moves && !base.starts_with('(') {
            true => format!(
                "({}unsigned char *){base}",
                if matches!(self.job.program.buffers[buffer].place, Place::Output(_)) { "" } else { "const " }
            ),
            false => base,
        };
        let mut text = base;
        if start > 0 {
            text += &format!(" + {start}");
        }
        if offset.text != "0" {
            text += &format!(" + {}", offset.at(Level::Product));
        }
        Ok(text)
    }

    /// The value of a size.
    fn size(&mut self, size: &Size) -> Result<Text, Fault> {
        sizes::print(size, &self.symbols, &self.job.layout.ranges, self.h)
    }
}
