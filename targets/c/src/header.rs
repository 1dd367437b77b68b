//! The C header of a model: functions, typed inputs and outputs, sizes, and what each status means. For C code and for object files.

use crate::names::{Scope, comment, identifier, is_keyword};
use infc_artifact::dtype;
use infc_artifact::program::{Port, Program};
use infc_kernel::bounded::{self, changes};
use std::fmt::Write;

/// What a header tells of a model.
pub struct Interface<'a> {
    /// Prefix of the functions.
    pub name: &'a str,
    /// Name of the model.
    pub model: &'a str,
    /// The program.
    pub program: &'a Program,
    /// Ranges of the program's symbols.
    pub ranges: &'a [(i64, i64)],
    /// What the code is and needs, in lines.
    pub about: Vec<String>,
    /// Alignment of arena, state and weights.
    pub align: u64,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bytes of state.
    pub state_bytes: u64,
    /// Bytes of weights that the caller gives.
    pub weights_bytes: Option<u64>,
    /// Dims that the caller gives.
    pub dims: Vec<Dim>,
    /// What statuses from 1 on mean.
    pub messages: &'a [String],
}

/// A dim that a run is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dim {
    /// Its name in C.
    pub name: String,
    /// Its number among the program's symbols.
    pub symbol: usize,
    /// Its largest value.
    pub most: i64,
}

/// A port as a member of a struct.
pub struct Member<'a> {
    /// The port.
    pub port: &'a Port,
    /// Name of the member.
    pub name: String,
    /// Type of the elements.
    pub c_type: &'static str,
    /// What has to be said of them.
    pub note: &'static str,
}

/// Members for ports: distinct names that are no keywords.
pub fn members<'a>(ports: impl Iterator<Item = &'a Port>) -> Vec<Member<'a>> {
    let mut out: Vec<Member<'a>> = vec![];
    for port in ports {
        let plain = identifier(&port.name);
        let plain = if is_keyword(&plain) { format!("{plain}_value") } else { plain };
        let taken = |name: &str| out.iter().any(|m| m.name.eq_ignore_ascii_case(name) || format!("{}_dims", m.name) == name);
        let name =
            if taken(&plain) { (2..).map(|n| format!("{plain}_{n}")).find(|n| !taken(n)).unwrap_or_default() } else { plain };
        let (c_type, note) = c_type(dtype::name(port.dtype).unwrap_or("?"));
        out.push(Member { port, name, c_type, note });
    }
    out
}

fn c_type(dtype: &str) -> (&'static str, &'static str) {
    match dtype {
        "f32" => ("float", ""),
        "f64" => ("double", ""),
        "i8" => ("int8_t", ""),
        "i16" => ("int16_t", ""),
        "i32" => ("int32_t", ""),
        "i64" => ("int64_t", ""),
        "u8" => ("uint8_t", ""),
        "u16" => ("uint16_t", ""),
        "u32" => ("uint32_t", ""),
        "u64" => ("uint64_t", ""),
        "bool" => ("uint8_t", ", each 0 or 1"),
        "c64" => ("float", ", each a real and an imaginary part"),
        "c128" => ("double", ", each a real and an imaginary part"),
        "f16" | "bf16" => ("uint16_t", ", each the bits of a number"),
        "i4" | "i2" => ("int8_t", ", each a byte of its own"),
        _ => ("uint8_t", ", each a byte of its own"),
    }
}

/// Inputs that the caller gives: those that are no state.
pub fn given(program: &Program) -> impl Iterator<Item = &Port> {
    let is_state = |i: usize| program.states.iter().any(|s| s.1 as usize == i);
    program.inputs.iter().enumerate().filter(move |(i, _)| !is_state(*i)).map(|(_, p)| p)
}

/// The dims that a run is given.
pub fn dims(program: &Program, ranges: &[(i64, i64)]) -> Vec<Dim> {
    let mut scope = Scope::default();
    let named = bounded::given(program).map(|symbol| (symbol, scope.fresh(&program.symbols[symbol].name)));
    named.map(|(symbol, name)| Dim { name, symbol, most: ranges[symbol].1 }).collect()
}

impl Interface<'_> {
    /// `f32[1, 3, 224, 224]`, or `f32[batch, 10]`.
    fn type_text(&self, port: &Port) -> String {
        let names: Vec<String> = (0..self.program.symbols.len())
            .map(|s| self.dims.iter().find(|d| d.symbol == s).map_or(self.program.symbols[s].name.clone(), |d| d.name.clone()))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let dims: Vec<String> = port.dims.iter().map(|d| d.eval(&[]).map_or_else(|| d.text(&names), |n| n.to_string())).collect();
        comment(&format!("{}[{}]", dtype::name(port.dtype).unwrap_or("?"), dims.join(", ")))
    }

    /// The most elements of a port.
    pub fn count(&self, port: &Port) -> i64 {
        bounded::most(port, self.ranges)
    }

    /// The header.
    pub fn header(&self) -> String {
        let (name, upper) = (self.name, self.name.to_uppercase());
        let inputs = members(given(self.program));
        let outputs = members(self.program.outputs.iter());
        let mut h = String::new();
        let mut line = |text: &str| {
            h += text;
            h.push('\n');
        };
        line(&format!("/* {name}.h: the model '{}', compiled by infc {}.", comment(self.model), env!("CARGO_PKG_VERSION")));
        line(" *");
        let about: Vec<String> = self.about.iter().map(|a| format!(" * {}", comment(a))).collect();
        line(&format!("{} */", about.join("\n")));
        line(&format!("#ifndef {upper}_H\n#define {upper}_H\n\n#include <stddef.h>\n#include <stdint.h>\n"));
        line("#ifdef __cplusplus\nextern \"C\" {\n#endif\n");
        line("/* Memory for a run: its alignment, and bytes for values inside the model. What it holds does not matter. */");
        line(&format!("#define {upper}_ALIGN {}\n#define {upper}_ARENA_BYTES {}", self.align, self.arena_bytes));
        if !self.program.states.is_empty() {
            line("/* Bytes that are kept from run to run, aligned too; made ready by the function for resetting. */");
            line(&format!("#define {upper}_STATE_BYTES {}", self.state_bytes));
        }
        if let Some(bytes) = self.weights_bytes {
            line(&format!("/* Bytes of the weights, which are in {name}.bin. */"));
            line(&format!("#define {upper}_WEIGHTS_BYTES {bytes}"));
        }
        for d in &self.dims {
            line(&format!("/* The largest '{}' that there is memory for. */", comment(&self.program.symbols[d.symbol].name)));
            line(&format!("#define {upper}_MOST_{} {}", d.name.to_uppercase(), d.most));
        }
        for (kind, word, members) in [("IN", "Input", &inputs), ("OUT", "Output", &outputs)] {
            for m in members {
                self.port(&mut line, &format!("{upper}_{kind}_{}", m.name.to_uppercase()), word, m);
            }
        }
        for (kind, members, constant) in [("inputs", &inputs, "const "), ("outputs", &outputs, "")] {
            line(&format!(
                "\n/* The {kind}, aligned for their elements{}. */",
                if kind == "outputs" { "; none overlaps another one or an input" } else { "" }
            ));
            line("typedef struct {");
            for m in members {
                line(&format!("    {constant}{} *{}; /* {} */", m.c_type, m.name, self.type_text(m.port)));
                if kind == "outputs" && changes(m.port) {
                    line(&format!(
                        "    int64_t *{}_dims; /* its {} dims are written here, unless this is NULL */",
                        m.name,
                        m.port.dims.len()
                    ));
                }
            }
            if members.is_empty() {
                line("    const void *none; /* never read */");
            }
            line(&format!("}} {name}_{kind};"));
        }
        self.functions(&mut h);
        h
    }

    fn port(&self, line: &mut dyn FnMut(&str), prefix: &str, word: &str, m: &Member) {
        let bytes = self.count(m.port) * i64::from(m.port.element);
        line(&format!("\n/* {word} '{}': {}, row-major{} */", comment(&m.port.name), self.type_text(m.port), m.note));
        line(&format!("#define {prefix}_TYPE {}\n#define {prefix}_RANK {}", m.c_type, m.port.dims.len()));
        let dims: Option<Vec<i64>> = m.port.dims.iter().map(|d| d.eval(&[])).collect();
        match dims {
            Some(dims) if !dims.is_empty() => {
                let dims: Vec<String> = dims.iter().map(i64::to_string).collect();
                line(&format!("#define {prefix}_DIMS {{{}}}", dims.join(", ")));
            }
            Some(_) => {}
            None => line("/* at most */"),
        }
        line(&format!("#define {prefix}_COUNT {}\n#define {prefix}_BYTES {bytes}", self.count(m.port)));
    }

    /// The declaration of the function that runs the model.
    pub fn run(&self) -> String {
        let name = self.name;
        let mut list = vec![format!("const {name}_inputs *inputs"), format!("const {name}_outputs *outputs")];
        list.extend(self.dims.iter().map(|d| format!("int64_t {}", d.name)));
        if self.weights_bytes.is_some() {
            list.push("const void *weights".to_owned());
        }
        if !self.program.states.is_empty() {
            list.push("void *state".to_owned());
        }
        list.push("void *arena".to_owned());
        format!("int32_t {name}_run({})", list.join(", "))
    }

    fn functions(&self, h: &mut String) {
        let (name, upper, program) = (self.name, self.name.to_uppercase(), self.program);
        let has_state = !program.states.is_empty();
        if has_state {
            let pairs: Vec<String> = program
                .states
                .iter()
                .map(|&(o, i)| {
                    let (o, i) = (&program.outputs[o as usize].name, &program.inputs[i as usize].name);
                    format!("output '{}' is input '{}' of the next run", comment(o), comment(i))
                })
                .collect();
            let _ = write!(
                h,
                "\n/* Starts over: the state becomes zeros. To be called before the first run.\n * {}. */\nvoid {name}_reset(void *state);\n",
                pairs.join(";\n * ")
            );
        }
        let state = if has_state { format!(", `state` {upper}_STATE_BYTES") } else { String::new() };
        let weights = self.weights_bytes.map_or(String::new(), |_| format!(", `weights` {upper}_WEIGHTS_BYTES"));
        let kept = if has_state { ", the state is what it was" } else { "" };
        let _ = write!(
            h,
            "\n/* Runs the model. `arena` has {upper}_ARENA_BYTES bytes{state}{weights}. Gives 0, else one of these, and the outputs mean nothing{kept}:\n \
             *  -1  memory is not aligned to {upper}_ALIGN bytes\n",
        );
        if !self.dims.is_empty() {
            let _ = writeln!(h, " *  -2  a dim is below 0 or more than there is memory for");
        }
        for (i, message) in self.messages.iter().enumerate() {
            let _ = writeln!(h, " *  {:2}  {}", i + 1, comment(message));
        }
        let _ = write!(
            h,
            " */\n{};\n\n/* What a status means. */\nconst char *{name}_message(int32_t status);\n\n#ifdef __cplusplus\n}}\n#endif\n\n#endif\n",
            self.run()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_differ_and_are_no_keywords() {
        let port = |name: &str| Port { name: name.into(), dtype: 1, element: 4, dims: vec![], buffer: 0 };
        let ports = ["x", "x.", "X", "int", "x_2"].map(port);
        let names: Vec<String> = members(ports.iter()).into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["x", "x_2", "X_3", "int_value", "x_2_2"]);
    }
}
