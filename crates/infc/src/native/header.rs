//! The C header of an object file: functions, typed inputs and outputs, sizes, and what each status means.

use super::{count, dims, given};
use infc_artifact::dtype;
use infc_artifact::program::{Port, Program};
use infc_kernel::backend::Object;
use infc_kernel::target::TargetDesc;
use std::fmt::Write;

/// Words that are no names of members in C or C++.
const KEYWORDS: &str = "alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const const_cast \
    consteval constexpr constinit continue co_await co_return co_yield decltype default delete do double dynamic_cast else enum explicit \
    export extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq \
    private protected public register reinterpret_cast requires restrict return short signed sizeof static static_assert static_cast \
    struct switch template this thread_local throw true try typedef typeid typename typeof union unsigned using virtual void volatile \
    wchar_t while xor xor_eq linux unix";

/// A name as an identifier of C: other characters become `_`, and it begins with a letter.
pub fn identifier(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    // Two underscores in a row are reserved in C++.
    let parts: Vec<&str> = plain.split('_').filter(|p| !p.is_empty()).collect();
    match parts.join("_") {
        text if text.is_empty() => "model".to_owned(),
        text if text.starts_with(|c: char| c.is_ascii_digit()) => format!("model_{text}"),
        text => text,
    }
}

/// A port as a member of a struct.
struct Member<'a> {
    port: &'a Port,
    name: String,
    /// Type of the elements, and what has to be said of it.
    c_type: &'static str,
    note: &'static str,
}

fn members<'a>(ports: impl Iterator<Item = &'a Port>) -> Vec<Member<'a>> {
    let mut out: Vec<Member<'a>> = vec![];
    for port in ports {
        let plain = identifier(&port.name);
        let plain = if KEYWORDS.split_whitespace().any(|k| k == plain) { format!("{plain}_value") } else { plain };
        let taken = |name: &str| out.iter().any(|m| m.name.eq_ignore_ascii_case(name));
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

/// Any text inside a C comment.
fn comment(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() || c == '\\' { ' ' } else { c }).collect();
    plain.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
}

/// `f32[1, 3, 224, 224]`.
fn type_text(port: &Port) -> String {
    let dims: Vec<String> = dims(port).iter().map(i64::to_string).collect();
    format!("{}[{}]", dtype::name(port.dtype).unwrap_or("?"), dims.join(", "))
}

/// The header of the object of a program; `name` is the prefix of its functions, `model` the name of the model.
pub fn header(program: &Program, object: &Object, name: &str, model: &str, target: &TargetDesc) -> String {
    let upper = name.to_uppercase();
    let inputs = members(given(program));
    let outputs = members(program.outputs.iter());
    let mut h = String::new();
    let mut line = |text: &str| {
        h += text;
        h.push('\n');
    };
    line(&format!("/* {name}.h: the model '{}', compiled by infc {}.", comment(model), env!("CARGO_PKG_VERSION")));
    line(" *");
    line(&format!(" * For {}: {} with {}.", comment(&target.name), target.arch, target.features.join(", ")));
    line(" * Takes no memory by itself, keeps nothing outside of what it is given, needs memcpy, memmove and memset of the C");
    line(" * library. Any number of threads may run it at once, each with its own arena and outputs. */");
    line(&format!("#ifndef {upper}_H\n#define {upper}_H\n\n#include <stddef.h>\n#include <stdint.h>\n"));
    line("#ifdef __cplusplus\nextern \"C\" {\n#endif\n");
    line("/* Memory for a run: its alignment, and bytes for values inside the model. What it holds does not matter. */");
    line(&format!("#define {upper}_ALIGN 64\n#define {upper}_ARENA_BYTES {}", object.arena_bytes));
    if !program.states.is_empty() {
        line("/* Bytes that are kept from run to run, aligned too; made ready by the function for resetting. */");
        line(&format!("#define {upper}_STATE_BYTES {}", object.state_bytes));
    }
    for (kind, word, members) in [("IN", "Input", &inputs), ("OUT", "Output", &outputs)] {
        for m in members {
            let prefix = format!("{upper}_{kind}_{}", m.name.to_uppercase());
            let bytes = count(m.port) * i64::from(m.port.element);
            line(&format!("\n/* {word} '{}': {}, row-major{} */", comment(&m.port.name), type_text(m.port), m.note));
            line(&format!("#define {prefix}_TYPE {}\n#define {prefix}_RANK {}", m.c_type, m.port.dims.len()));
            if !m.port.dims.is_empty() {
                let dims: Vec<String> = dims(m.port).iter().map(i64::to_string).collect();
                line(&format!("#define {prefix}_DIMS {{{}}}", dims.join(", ")));
            }
            line(&format!("#define {prefix}_COUNT {}\n#define {prefix}_BYTES {bytes}", count(m.port)));
        }
    }
    for (kind, members, constant) in [("inputs", &inputs, "const "), ("outputs", &outputs, "")] {
        line(&format!(
            "\n/* The {kind}, aligned for their elements{}. */",
            if kind == "outputs" { "; none overlaps another one or an input" } else { "" }
        ));
        line("typedef struct {");
        for m in members {
            line(&format!("    {constant}{} *{}; /* {} */", m.c_type, m.name, type_text(m.port)));
        }
        if members.is_empty() {
            line("    const void *none; /* never read */");
        }
        line(&format!("}} {name}_{kind};"));
    }
    functions(&mut h, program, object, name);
    h
}

fn functions(h: &mut String, program: &Program, object: &Object, name: &str) {
    let upper = name.to_uppercase();
    let state = if program.states.is_empty() { "" } else { "void *state, " };
    if !program.states.is_empty() {
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
    let _ = write!(
        h,
        "\n/* Runs the model. `arena` has {upper}_ARENA_BYTES bytes{}. Gives 0, else one of these, and the outputs mean nothing{}:\n \
         *  -1  memory is not aligned to {upper}_ALIGN bytes\n",
        if state.is_empty() { String::new() } else { format!(", `state` {upper}_STATE_BYTES") },
        if state.is_empty() { "" } else { ", the state is what it was" },
    );
    for (i, message) in object.messages.iter().enumerate() {
        let _ = writeln!(h, " *  {:2}  {}", i + 1, comment(message));
    }
    let _ = write!(
        h,
        " */\nint32_t {name}_run(const {name}_inputs *inputs, const {name}_outputs *outputs, {state}void *arena);\n\n\
         /* What a status means. */\nconst char *{name}_message(int32_t status);\n\n#ifdef __cplusplus\n}}\n#endif\n\n#endif\n"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_identifiers() {
        for (name, expected) in [
            ("digits", "digits"),
            ("input.1", "input_1"),
            ("__a--b__", "a_b"),
            ("3d net", "model_3d_net"),
            ("", "model"),
            ("\u{e9}t\u{e9}", "t"),
            ("\u{6a21}\u{578b}", "model"),
        ] {
            assert_eq!(identifier(name), expected, "{name}");
        }
    }

    #[test]
    fn members_differ_and_are_no_keywords() {
        let port = |name: &str| Port { name: name.into(), dtype: 1, element: 4, dims: vec![], buffer: 0 };
        let ports = ["x", "x.", "X", "int", "x_2"].map(port);
        let names: Vec<String> = members(ports.iter()).into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["x", "x_2", "X_3", "int_value", "x_2_2"]);
    }

    #[test]
    fn comments_do_not_end_early() {
        assert_eq!(comment("a */ b\n/* c ??/ \\"), "a * / b / * c ? ?/  ");
    }
}
