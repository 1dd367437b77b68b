//! The text form of kernels: printed for people and tests, and read back without loss: `parse(print(k)) == k`.
//!
//! ```text
//! kernel "scale" (n) tasks div(n + 7, 8) as i0 {
//!   b0 "x": f32[n] strides [1] global read
//!   b1 "y": f32[n] strides [1] global write
//!   b2 "acc": f32[8] strides [1] reg read_write
//!   alloc b2
//!   for i1 in 8 vector {
//!     let t0 = mul(b0:f32[8*i0 + i1]?(lt((8*i0 + i1), (n)), 0.0:f32), 2.0:f32)
//!     if lt((8*i0 + i1), (n)) {
//!       b1[8*i0 + i1] = t0:f32
//!     } else {
//!       check eq(t0:f32, 0.0:f32) code 3
//!     }
//!   }
//!   while lt(b0:f32[0], 1.0:f32) {
//!   }
//! }
//! ```
//!
//! Expressions are those of [`infc_ir::expr`] and scalars those of [`infc_ir::text::scalar`]. In an index, `=` marks a scalar.
//! Loops without a kind are serial.

use super::{Access, Axes, Boxes, Buffer, Kernel, LoopKind, Space, Stmt};
use infc_ir::expr::Node;
use infc_ir::text::cursor::Cursor;
use infc_ir::text::scalar;
use infc_ir::{DType, Expr, Problem, Scalar};
use std::fmt;

const SPACES: [(Space, &str); 4] =
    [(Space::Global, "global"), (Space::Tile, "tile"), (Space::Reg, "reg"), (Space::Shared, "shared")];
const ACCESSES: [(Access, &str); 3] = [(Access::Read, "read"), (Access::Write, "write"), (Access::ReadWrite, "read_write")];
const KINDS: [(LoopKind, &str); 7] = [
    (LoopKind::Parallel, "parallel"),
    (LoopKind::Vector, "vector"),
    (LoopKind::Unroll, "unroll"),
    (LoopKind::Serial, "serial"),
    (LoopKind::Thread, "thread"),
    (LoopKind::Warp, "warp"),
    (LoopKind::Matrix, "matrix"),
];

fn name_of<T: PartialEq + Copy>(table: &[(T, &'static str)], value: T) -> &'static str {
    table.iter().find(|(v, _)| *v == value).expect("the table has all").1
}

fn list(items: &[Expr]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(", "))
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbols: Vec<String> = self.symbols.iter().map(|s| Expr::sym(s).to_string()).collect();
        writeln!(f, "kernel {:?} ({}) tasks {} as i{} {{", self.name, symbols.join(", "), self.tasks, self.task)?;
        for (n, b) in self.buffers.iter().enumerate() {
            let (space, access) = (name_of(&SPACES, b.space), name_of(&ACCESSES, b.access));
            writeln!(f, "  b{n} {:?}: {}{} strides {} {space} {access}", b.name, b.dtype, list(&b.dims), list(&b.strides))?;
        }
        write_body(f, &self.body, 1)?;
        writeln!(f, "}}")
    }
}

fn write_body(f: &mut fmt::Formatter<'_>, body: &[Stmt], depth: usize) -> fmt::Result {
    let pad = "  ".repeat(depth);
    for s in body {
        match s {
            Stmt::For { var, extent, kind, body } => {
                let kind = match kind {
                    LoopKind::Serial => String::new(),
                    kind => format!(" {}", name_of(&KINDS, *kind)),
                };
                writeln!(f, "{pad}for i{var} in {extent}{kind} {{")?;
                write_body(f, body, depth + 1)?;
                writeln!(f, "{pad}}}")?;
            }
            Stmt::While { cond, body } => {
                writeln!(f, "{pad}while {cond} {{")?;
                write_body(f, body, depth + 1)?;
                writeln!(f, "{pad}}}")?;
            }
            Stmt::Let { local, value } => writeln!(f, "{pad}let t{local} = {value}")?,
            Stmt::Store { buffer, index, value } => {
                write!(f, "{pad}")?;
                write_element(f, *buffer, index)?;
                writeln!(f, " = {value}")?;
            }
            Stmt::Prefetch { buffer, index } => {
                write!(f, "{pad}prefetch ")?;
                write_element(f, *buffer, index)?;
                writeln!(f)?;
            }
            Stmt::Alloc { buffer } => writeln!(f, "{pad}alloc b{buffer}")?,
            Stmt::If { cond, then, otherwise } => {
                writeln!(f, "{pad}if {cond} {{")?;
                write_body(f, then, depth + 1)?;
                if !otherwise.is_empty() {
                    writeln!(f, "{pad}}} else {{")?;
                    write_body(f, otherwise, depth + 1)?;
                }
                writeln!(f, "{pad}}}")?;
            }
            Stmt::Check { cond, code } => writeln!(f, "{pad}check {cond} code {code}")?,
        }
    }
    Ok(())
}

fn write_element(f: &mut fmt::Formatter<'_>, buffer: u32, index: &[Scalar]) -> fmt::Result {
    write!(f, "b{buffer}[")?;
    for (i, &at) in index.iter().enumerate() {
        f.write_str(if i > 0 { ", " } else { "" })?;
        match at.as_index() {
            Some(e) if Scalar::index(e) == at => write!(f, "{e}")?,
            _ => write!(f, "={at}")?,
        }
    }
    f.write_str("]")
}

/// Reads one kernel; nothing may follow it.
pub fn parse(text: &str) -> Result<Kernel, Problem> {
    let mut kernels = parse_all(text)?;
    match (kernels.pop(), kernels.is_empty()) {
        (Some(k), true) => Ok(k),
        (Some(_), false) => Err(Cursor::new(text).error(format!("{} kernels are here, one is expected", kernels.len() + 1))),
        (None, _) => Err(Cursor::new(text).expected("a kernel")),
    }
}

/// Reads kernels to the end of the text.
pub fn parse_all(text: &str) -> Result<Vec<Kernel>, Problem> {
    let mut c = Cursor::new(text);
    let mut kernels = vec![];
    while !c.at_end() {
        kernels.push(kernel(&mut c)?);
    }
    Ok(kernels)
}

fn kernel(c: &mut Cursor) -> Result<Kernel, Problem> {
    c.expect("kernel")?;
    let name = c.quoted()?;
    let symbols = c.list("(", ")", |c| {
        let start = c.clone();
        match c.expr()?.node() {
            Node::Sym(s) => Ok(*s),
            _ => Err(start.expected("a symbol")),
        }
    })?;
    c.expect("tasks")?;
    let tasks = c.expr()?;
    c.expect("as")?;
    let task = numbered(c, 'i')?;
    c.expect("{")?;
    let mut buffers = vec![];
    while let Some(b) = buffer(c, buffers.len())? {
        buffers.push(b);
    }
    let body = body(c)?;
    Ok(Kernel { name, buffers, symbols, tasks, task, body, axes: Axes::default(), boxes: Boxes::default() })
}

/// A name that is a letter and a number: `i3`, `b0`, `t12`.
fn numbered(c: &mut Cursor, letter: char) -> Result<u32, Problem> {
    let start = c.clone();
    let number = c.word().strip_prefix(letter).and_then(|n| n.parse().ok());
    number.ok_or_else(|| start.expected(&format!("a name like {letter}0")))
}

/// The declaration of buffer `n`, if one follows.
fn buffer(c: &mut Cursor, n: usize) -> Result<Option<Buffer>, Problem> {
    let mut ahead = c.clone();
    if !ahead.word().starts_with('b') || !ahead.rest().starts_with('"') {
        return Ok(None);
    }
    c.expect(&format!("b{n}"))?;
    let name = c.quoted()?;
    c.expect(":")?;
    let dtype: DType = c.dtype()?;
    let dims = c.exprs()?;
    c.expect("strides")?;
    let strides = c.exprs()?;
    let (space, access) = (one_of(c, &SPACES, "a space")?, one_of(c, &ACCESSES, "an access")?);
    Ok(Some(Buffer { name, dtype, dims, strides, space, access }))
}

fn one_of<T: Copy>(c: &mut Cursor, table: &[(T, &str)], what: &str) -> Result<T, Problem> {
    let start = c.clone();
    let word = c.word();
    let names: Vec<&str> = table.iter().map(|(_, n)| *n).collect();
    let found = table.iter().find(|(_, n)| *n == word).map(|(v, _)| *v);
    found.ok_or_else(|| start.expected(&format!("{what} ({})", names.join(", "))))
}

fn body(c: &mut Cursor) -> Result<Vec<Stmt>, Problem> {
    let mut out = vec![];
    while !c.eat("}") {
        out.push(c.nested(statement)?);
    }
    Ok(out)
}

fn block(c: &mut Cursor) -> Result<Vec<Stmt>, Problem> {
    c.expect("{")?;
    body(c)
}

fn statement(c: &mut Cursor) -> Result<Stmt, Problem> {
    if c.eat("for") {
        let var = numbered(c, 'i')?;
        c.expect("in")?;
        let extent = c.expr()?;
        let kind = if c.rest().starts_with('{') { LoopKind::Serial } else { one_of(c, &KINDS, "a kind of loop")? };
        return Ok(Stmt::For { var, extent, kind, body: block(c)? });
    }
    if c.eat("while") {
        return Ok(Stmt::While { cond: condition(c)?, body: block(c)? });
    }
    if c.eat("let") {
        let local = numbered(c, 't')?;
        c.expect("=")?;
        return Ok(Stmt::Let { local, value: scalar::parse(c)? });
    }
    if c.eat("alloc") {
        return Ok(Stmt::Alloc { buffer: numbered(c, 'b')? });
    }
    if c.eat("if") {
        let (cond, then) = (condition(c)?, block(c)?);
        let otherwise = if c.eat("else") { block(c)? } else { vec![] };
        return Ok(Stmt::If { cond, then, otherwise });
    }
    if c.eat("check") {
        let cond = condition(c)?;
        c.expect("code")?;
        return Ok(Stmt::Check { cond, code: c.number("a code")? });
    }
    if c.eat("prefetch") {
        let (buffer, index) = element(c)?;
        return Ok(Stmt::Prefetch { buffer, index });
    }
    let start = c.clone();
    if !c.rest().starts_with('b') {
        return Err(start.expected("a statement"));
    }
    let (buffer, index) = element(c)?;
    c.expect("=")?;
    Ok(Stmt::Store { buffer, index, value: scalar::parse(c)? })
}

/// `b0[i1, 2]`.
fn element(c: &mut Cursor) -> Result<(u32, Vec<Scalar>), Problem> {
    let buffer = numbered(c, 'b')?;
    let index = c.list("[", "]", |c| {
        let start = c.clone();
        let at = if c.eat("=") { scalar::parse(c)? } else { Scalar::index(c.expr()?) };
        if at.dtype() == DType::I64 { Ok(at) } else { Err(start.error(format!("an index is {}, not i64", at.dtype()))) }
    })?;
    Ok((buffer, index))
}

fn condition(c: &mut Cursor) -> Result<Scalar, Problem> {
    let start = c.clone();
    let s = scalar::parse(c)?;
    if s.dtype() == DType::Bool { Ok(s) } else { Err(start.error(format!("a condition is bool, this is {}", s.dtype()))) }
}

#[cfg(test)]
mod tests {
    use super::super::arbitrary::any_kernel;
    use super::*;
    use proptest::prelude::*;

    /// The example of the module's documentation.
    pub(crate) const EXAMPLE: &str = "kernel \"scale\" (n) tasks div(n + 7, 8) as i0 {\n  b0 \"x\": f32[n] strides [1] global read\n  \
        b1 \"y\": f32[n] strides [1] global write\n  b2 \"acc\": f32[8] strides [1] reg read_write\n  alloc b2\n  for i1 in 8 vector {\n    \
        let t0 = mul(b0:f32[8*i0 + i1]?(lt((8*i0 + i1), (n)), 0.0:f32), 2.0:f32)\n    if lt((8*i0 + i1), (n)) {\n      \
        b1[8*i0 + i1] = t0:f32\n    } else {\n      check eq(t0:f32, 0.0:f32) code 3\n    }\n  }\n  \
        while lt(b0:f32[0], 1.0:f32) {\n  }\n}\n";

    #[test]
    fn the_example_round_trips() {
        let k = parse(EXAMPLE).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(k.to_string(), EXAMPLE);
        assert_eq!(k.symbols, ["n"]);
    }

    #[test]
    fn wrong_texts_name_the_place() {
        for (find, put, at) in [
            (
                "vector",
                "wide",
                "line 6, column 15: a kind of loop (parallel, vector, unroll, serial, thread, warp, matrix) is expected",
            ),
            ("reg", "ram", "line 4, column 32: a space (global, tile, reg, shared) is expected"),
            ("check eq(t0:f32, 0.0:f32)", "check t0:f32", "line 11, column 13: a condition is bool, this is f32"),
            ("b1 \"y\"", "b7 \"y\"", "line 3, column 3: 'b1' is expected"),
            ("(n) tasks", "(n + 1) tasks", "line 1, column 17: a symbol is expected"),
            ("alloc", "drop", "line 5, column 3: a statement is expected"),
        ] {
            let text = EXAMPLE.replacen(find, put, 1);
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(at), "{error}");
        }
        for cut in 0..EXAMPLE.len() - 2 {
            assert!(parse(&EXAMPLE[..cut]).is_err());
        }
        assert!(parse(&format!("{}{}", &EXAMPLE[..EXAMPLE.len() - 2], "while true {".repeat(100_000))).is_err());
    }

    proptest! {
        #[test]
        fn text_round_trips(k in any_kernel()) {
            let text = k.to_string();
            prop_assert_eq!(parse(&text).map_err(|e| format!("{e}: {text}")), Ok(k));
        }
    }
}
