//! The text of one kernel while it grows: registers, labels, constants, and instructions by their rows.

use crate::rows;
use infc_ir::{Fault, fault};
use std::collections::HashMap;
use std::fmt::{Arguments, Write};

/// What a register holds. All but predicates are untyped bits; instructions say what they take them for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A predicate.
    P,
    /// 16 bits.
    H,
    /// 32 bits.
    R,
    /// 64 bits.
    Q,
}

/// All classes, with prefix and type of their registers.
const CLASSES: [(Class, &str, &str); 4] =
    [(Class::P, "%p", "pred"), (Class::H, "%h", "b16"), (Class::R, "%r", "b32"), (Class::Q, "%q", "b64")];

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Val {
    /// What it holds.
    pub class: Class,
    number: u32,
}

impl std::fmt::Display for Val {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", CLASSES[self.class as usize].1, self.number)
    }
}

/// A kernel's text.
#[derive(Default)]
pub struct Asm {
    body: String,
    /// Constants, at the beginning of the kernel.
    prologue: String,
    /// Declarations of memory.
    declarations: String,
    counts: [u32; 4],
    labels: u32,
    constants: HashMap<(Class, u64), Val>,
}

impl Asm {
    /// A new register.
    pub fn fresh(&mut self, class: Class) -> Val {
        let n = &mut self.counts[class as usize];
        *n += 1;
        Val { class, number: *n - 1 }
    }
    /// A new label.
    pub fn label(&mut self) -> String {
        self.labels += 1;
        format!("L{}", self.labels)
    }
    /// An instruction.
    pub fn line(&mut self, text: Arguments) {
        let _ = writeln!(self.body, "\t{text};");
    }
    /// A label's place.
    pub fn place(&mut self, label: &str) {
        let _ = writeln!(self.body, "{label}:");
    }
    /// A declaration of memory.
    pub fn declare(&mut self, text: Arguments) {
        let _ = writeln!(self.declarations, "\t{text};");
    }
    /// A register that holds a constant.
    pub fn constant(&mut self, class: Class, bits: u64) -> Val {
        if let Some(&v) = self.constants.get(&(class, bits)) {
            return v;
        }
        let v = self.fresh(class);
        let _ = match class {
            Class::P => writeln!(self.prologue, "\tsetp.ne.u32 {v}, {}, 0;", bits & 1),
            Class::H => writeln!(self.prologue, "\tmov.b16 {v}, {};", bits & 0xffff),
            Class::R => writeln!(self.prologue, "\tmov.b32 {v}, {:#x};", bits & 0xffff_ffff),
            Class::Q => writeln!(self.prologue, "\tmov.b64 {v}, {bits:#x};"),
        };
        self.constants.insert((class, bits), v);
        v
    }
    /// A 32-bit constant.
    pub fn r(&mut self, bits: u32) -> Val {
        self.constant(Class::R, u64::from(bits))
    }
    /// A 64-bit constant.
    pub fn q(&mut self, value: i64) -> Val {
        self.constant(Class::Q, value as u64)
    }
    /// `to = from`, for registers that change.
    pub fn copy(&mut self, to: Val, from: Val) {
        let ty = CLASSES[to.class as usize].2;
        self.line(format_args!("mov.{ty} {to}, {from}"));
    }
    /// A new register with the value of another one.
    pub fn copied(&mut self, from: Val) -> Val {
        let to = self.fresh(from.class);
        self.copy(to, from);
        to
    }
    /// The result of the row `op.ty` on these operands.
    pub fn row(&mut self, op: &str, ty: &str, operands: &[Val]) -> Result<Val, Fault> {
        let row = rows::find(op, ty).ok_or_else(|| fault!("there is no instruction row '{op}.{ty}'"))?;
        let own = rows::class(ty);
        let result = self.fresh(row.out.unwrap_or(own));
        let mut temporaries: HashMap<String, String> = HashMap::new();
        let mut text = String::new();
        for statement in row.text.split(';').map(str::trim).filter(|s| !s.is_empty()) {
            let mut rest = statement;
            text.clear();
            while let Some(at) = rest.find('$') {
                text += &rest[..at];
                let name: String = rest[at + 1..].chars().take(1).collect();
                let digits: String = rest[at + 2..].chars().take_while(char::is_ascii_digit).collect();
                rest = &rest[at + 2 + digits.len()..];
                match (name.as_str(), digits.is_empty()) {
                    ("d", true) => _ = write!(text, "{result}"),
                    ("a", true) => _ = write!(text, "{}", operands[0]),
                    ("b", true) => _ = write!(text, "{}", operands[1]),
                    ("c", true) => _ = write!(text, "{}", operands[2]),
                    ("t", true) => text += ty,
                    ("u", true) => text += if own == Class::Q { "u64" } else { "u32" },
                    ("w", true) => text += if own == Class::Q { "b64" } else { "b32" },
                    (n, _) => {
                        let key = format!("{n}{digits}");
                        if !temporaries.contains_key(&key) {
                            let made = match n {
                                "L" => self.label(),
                                "p" => self.fresh(Class::P).to_string(),
                                "h" => self.fresh(Class::H).to_string(),
                                "r" => self.fresh(Class::R).to_string(),
                                "q" => self.fresh(Class::Q).to_string(),
                                "x" => self.fresh(own).to_string(),
                                _ => return Err(fault!("the row '{op}.{ty}' has an unknown place '${key}'")),
                            };
                            temporaries.insert(key.clone(), made);
                        }
                        text += &temporaries[&key];
                    }
                }
            }
            text += rest;
            if text.ends_with(':') {
                let _ = writeln!(self.body, "{text}");
            } else {
                let _ = writeln!(self.body, "\t{text};");
            }
        }
        Ok(result)
    }
    /// Declarations, constants and instructions.
    pub fn finish(self) -> String {
        let mut text = String::new();
        for (class, prefix, ty) in CLASSES {
            let count = self.counts[class as usize];
            if count > 0 {
                let _ = writeln!(text, "\t.reg .{ty} {prefix}<{count}>;");
            }
        }
        text + &self.declarations + &self.prologue + &self.body
    }
}
