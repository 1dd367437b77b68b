//! Reads the text form of a [`Program`] (see `text.rs`). Numbers in front of steps, and kernel names in launches, are for people and skipped.

use crate::decode::NESTING;
use crate::dtype;
use crate::program::*;
use crate::text::symbol_names;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// Words that sizes and steps use; no symbol is called by one of them.
pub(crate) const WORDS: &[&str] = &["min", "max", "bytes", "most", "or", "else", "below", "while", "tasks", "step"];

/// Why a text is no program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl core::error::Error for ParseError {}

/// The program that a text describes. It is well-formed only after [`Program::validate`].
pub fn parse(text: &str) -> Result<Program, ParseError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, names: Vec::new(), depth: 0 };
    parser.program()
}

type Parsed<T> = Result<T, ParseError>;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A word, or `$3`.
    Word(String),
    Number(i128),
    Text(String),
    /// `->`, `==`, `..=` or one character.
    Mark(&'static str),
}

const MARKS: &[&str] = &["->", "==", "..=", "=", "+", "*", "/", "%", "(", ")", "[", "]", "{", "}", ",", "@", "#", "&", "?"];

fn tokens(text: &str) -> Parsed<Vec<(usize, Token)>> {
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line_number = i + 1;
        let fail = |what: &str| Err(ParseError { line: line_number, what: what.to_string() });
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let (token, after) = if first == '"' {
                match quoted(&rest[1..]) {
                    Some((text, after)) => (Token::Text(text), after),
                    None => return fail("a text that does not end, or has an unknown escape"),
                }
            } else if first.is_ascii_digit() || first == '-' && rest[1..].starts_with(|c: char| c.is_ascii_digit()) {
                let end = rest[1..].find(|c: char| !c.is_ascii_alphanumeric()).map_or(rest.len(), |n| n + 1);
                let digits = &rest[..end];
                let value = match digits.strip_prefix("0x") {
                    Some(hex) => i128::from_str_radix(hex, 16).ok(),
                    None => digits.parse().ok(),
                };
                let Some(value) = value else { return fail(&format!("'{digits}' is no number")) };
                (Token::Number(value), &rest[end..])
            } else if first.is_ascii_alphabetic() || first == '_' || first == '$' {
                let end = rest[1..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(rest.len(), |n| n + 1);
                (Token::Word(rest[..end].to_string()), &rest[end..])
            } else {
                let Some(mark) = MARKS.iter().find(|m| rest.starts_with(**m)) else {
                    return fail(&format!("unexpected '{first}'"));
                };
                (Token::Mark(mark), &rest[mark.len()..])
            };
            out.push((line_number, token));
            rest = after.trim_start();
        }
    }
    Ok(out)
}

/// The text before the closing quote, as Rust's `{:?}` writes it, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                '0' => out.push('\0'),
                'u' => {
                    let end = at + text[at..].find('}')?;
                    let code = u32::from_str_radix(text.get(at + 3..end)?, 16).ok()?;
                    out.push(char::from_u32(code)?);
                    chars.by_ref().find(|c| c.1 == '}')?;
                }
                c @ ('\\' | '"' | '\'') => out.push(c),
                _ => return None,
            },
            c => out.push(c),
        }
    }
    None
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    /// What sizes call the symbols.
    names: Vec<String>,
    depth: usize,
}

impl Parser {
    fn fail<T>(&self, what: impl Into<String>) -> Parsed<T> {
        let line = self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.0);
        Err(ParseError { line, what: what.into() })
    }
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|t| &t.1)
    }
    /// Goes on if a mark or word comes next.
    fn accept(&mut self, what: &str) -> bool {
        let found = match self.peek() {
            Some(Token::Mark(mark)) => *mark == what,
            Some(Token::Word(word)) => word == what,
            _ => false,
        };
        self.at += usize::from(found);
        found
    }
    fn expect(&mut self, what: &str) -> Parsed<()> {
        if self.accept(what) { Ok(()) } else { self.fail(format!("expected '{what}'")) }
    }
    fn number<T: TryFrom<i128>>(&mut self) -> Parsed<T> {
        let Some(Token::Number(value)) = self.peek() else { return self.fail("expected a number") };
        let Ok(value) = T::try_from(*value) else { return self.fail("the number is out of range") };
        self.at += 1;
        Ok(value)
    }
    fn text(&mut self) -> Parsed<String> {
        let Some(Token::Text(text)) = self.peek() else { return self.fail("expected a text in quotes") };
        let text = text.clone();
        self.at += 1;
        Ok(text)
    }
    fn word(&mut self) -> Parsed<String> {
        let Some(Token::Word(word)) = self.peek() else { return self.fail("expected a word") };
        let word = word.clone();
        self.at += 1;
        Ok(word)
    }
    /// The number that a line of a table starts with, which is the next one.
    fn next_of(&mut self, count: usize) -> Parsed<()> {
        match self.number::<usize>()? {
            n if n == count => Ok(()),
            n => self.fail(format!("number {n} where {count} comes next")),
        }
    }
    /// Items between brackets, with commas.
    fn list<T>(&mut self, open: &str, close: &str, mut each: impl FnMut(&mut Parser) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect(open)?;
        let mut items = Vec::new();
        while !self.accept(close) {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(each(self)?);
        }
        Ok(items)
    }

    fn program(&mut self) -> Parsed<Program> {
        let mut out = Program::default();
        while !self.accept("steps") {
            match self.word()?.as_str() {
                "symbol" => {
                    self.next_of(out.symbols.len())?;
                    let name = self.text()?;
                    self.expect("=")?;
                    let source = match self.accept("step") {
                        true => SymbolSource::Step,
                        false => {
                            self.expect("input")?;
                            let input = self.number()?;
                            self.expect("axis")?;
                            SymbolSource::Input { input, axis: self.number()? }
                        }
                    };
                    out.symbols.push(Symbol { name, source });
                    self.names = symbol_names(&out.symbols);
                }
                "input" => {
                    self.next_of(out.inputs.len())?;
                    out.inputs.push(self.port()?);
                }
                "output" => {
                    self.next_of(out.outputs.len())?;
                    out.outputs.push(self.port()?);
                }
                "state" => {
                    self.expect("output")?;
                    let output = self.number()?;
                    self.expect("->")?;
                    self.expect("input")?;
                    out.states.push((output, self.number()?));
                }
                "buffer" => {
                    self.expect("@")?;
                    self.next_of(out.buffers.len())?;
                    out.buffers.push(self.buffer()?);
                }
                "slot" => {
                    self.expect("&")?;
                    self.next_of(out.slots.len())?;
                    out.slots.push(self.slot()?);
                }
                "arena" => {
                    self.expect("bytes")?;
                    out.arena = Some(self.number()?);
                }
                "threads" => out.threads = Some(self.number()?),
                "kernel" => {
                    self.next_of(out.kernels.len())?;
                    out.kernels.push(self.kernel()?);
                }
                "host_kernel" => {
                    self.next_of(out.host_kernels.len())?;
                    out.host_kernels.push(self.kernel()?);
                }
                "message" => {
                    self.next_of(out.messages.len())?;
                    out.messages.push(Message { node: self.text()?, text: self.text()? });
                }
                other => return self.fail(format!("a line that starts with '{other}'")),
            }
        }
        out.steps = self.steps()?;
        if self.at < self.tokens.len() {
            return self.fail("text after the steps");
        }
        Ok(out)
    }

    fn kernel(&mut self) -> Parsed<Kernel> {
        let name = self.text()?;
        self.expect("entry")?;
        let entry = self.number()?;
        self.expect("scratch")?;
        Ok(Kernel { name, entry, scratch: self.number()? })
    }

    fn port(&mut self) -> Parsed<Port> {
        let name = self.text()?;
        let (dtype, element) = if self.accept("#") {
            let dtype = self.number()?;
            self.expect("/")?;
            (dtype, self.number()?)
        } else {
            let word = self.word()?;
            match dtype::DTYPES.iter().find(|d| d.1 == word) {
                Some(d) => (d.0, d.2),
                None => return self.fail(format!("unknown element type '{word}'")),
            }
        };
        let dims = self.list("[", "]", Parser::size)?;
        self.expect("@")?;
        Ok(Port { name, dtype, element, dims, buffer: self.number()? })
    }

    fn buffer(&mut self) -> Parsed<Buffer> {
        let place = match self.word()?.as_str() {
            "input" => Place::Input(self.number()?),
            "output" => Place::Output(self.number()?),
            "state" => Place::State(self.number()?),
            "constants" => {
                self.expect("at")?;
                Place::Constant(self.number()?)
            }
            "arena" => {
                self.expect("steps")?;
                let first = self.number()?;
                self.expect("..=")?;
                let last = self.number()?;
                let offset = if self.accept("at") { Some(self.number()?) } else { None };
                Place::Arena { first, last, offset }
            }
            other => return self.fail(format!("unknown place '{other}'")),
        };
        self.expect(",")?;
        self.expect("bytes")?;
        Ok(Buffer { bytes: self.size()?, place })
    }

    fn slot(&mut self) -> Parsed<Slot> {
        let ty = self.host_type()?;
        let place = match self.word()?.as_str() {
            "input" => SlotPlace::Input(self.number()?),
            "output" => SlotPlace::Output(self.number()?),
            "constants" => {
                self.expect("at")?;
                let offset = self.number()?;
                self.expect("bytes")?;
                SlotPlace::Constant { offset, bytes: self.number()? }
            }
            "temp" => SlotPlace::Temp,
            other => return self.fail(format!("unknown place '{other}'")),
        };
        Ok(Slot { ty, place })
    }

    fn host_type(&mut self) -> Parsed<HostType> {
        self.depth += 1;
        if self.depth > 4 * Size::DEPTH {
            return self.fail("types nest too deeply");
        }
        let known = |p: &Parser, word: &str| matches!(p.peek(), Some(Token::Word(w)) if w == word);
        let ty = if known(self, "seq") {
            HostType::Sequence(Box::new(self.wrapped()?))
        } else if known(self, "optional") {
            HostType::Optional(Box::new(self.wrapped()?))
        } else if self.accept("any") {
            self.expect("(")?;
            let dtype = self.element()?;
            self.expect(")")?;
            HostType::Any(dtype)
        } else if self.accept("map") {
            self.expect("(")?;
            let key = self.element()?;
            self.expect(",")?;
            let of = self.host_type()?;
            self.expect(")")?;
            HostType::Map(key, Box::new(of))
        } else {
            let dtype = self.element()?;
            HostType::Tensor(dtype, self.list("[", "]", |p| if p.accept("?") { Ok(None) } else { p.number().map(Some) })?)
        };
        self.depth -= 1;
        Ok(ty)
    }
    /// A type in parentheses behind a word.
    fn wrapped(&mut self) -> Parsed<HostType> {
        self.word()?;
        self.expect("(")?;
        let ty = self.host_type()?;
        self.expect(")")?;
        Ok(ty)
    }
    /// An element type by its name, or `#3`.
    fn element(&mut self) -> Parsed<DTypeCode> {
        if self.accept("#") {
            return self.number();
        }
        let word = self.word()?;
        match dtype::DTYPES.iter().find(|d| d.1 == word) {
            Some(d) => Ok(d.0),
            None => self.fail(format!("unknown element type '{word}'")),
        }
    }
    fn host_value(&mut self) -> Parsed<HostValue> {
        if self.accept("&") {
            return Ok(HostValue::Slot(self.number()?));
        }
        let dtype = self.element()?;
        let dims = self.list("[", "]", Parser::size)?;
        Ok(HostValue::Tensor { dtype, dims, view: self.view()? })
    }
    /// Bytes as two hexadecimal digits each, in quotes.
    fn blob(&mut self) -> Parsed<Vec<u8>> {
        let text = self.text()?;
        let byte = |pair: &[u8]| core::str::from_utf8(pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok());
        match text.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>() {
            Some(bytes) if text.len().is_multiple_of(2) => Ok(bytes),
            _ => self.fail("bytes are no pairs of hexadecimal digits"),
        }
    }

    /// `a + b`, where nested operations are in parentheses.
    fn size(&mut self) -> Parsed<Size> {
        let mut ops = Vec::new();
        self.infix(&mut ops)?;
        Ok(Size(ops))
    }
    fn infix(&mut self, out: &mut Vec<SizeOp>) -> Parsed<()> {
        self.operand(out)?;
        let infix = [("+", SizeOp::Add), ("*", SizeOp::Mul), ("/", SizeOp::Div), ("%", SizeOp::Mod)];
        if let Some((_, op)) = infix.into_iter().find(|(mark, _)| self.accept(mark)) {
            self.operand(out)?;
            out.push(op);
        }
        Ok(())
    }
    fn operand(&mut self, out: &mut Vec<SizeOp>) -> Parsed<()> {
        self.depth += 1;
        if self.depth > 4 * Size::DEPTH {
            return self.fail("sizes and steps nest too deeply");
        }
        if self.accept("(") {
            self.infix(out)?;
            self.expect(")")?;
        } else if let Some(Token::Number(_)) = self.peek() {
            out.push(SizeOp::Const(self.number()?));
        } else if let Some(op) = [("min", SizeOp::Min), ("max", SizeOp::Max)].into_iter().find(|(w, _)| self.accept(w)) {
            self.expect("(")?;
            self.infix(out)?;
            self.expect(",")?;
            self.infix(out)?;
            self.expect(")")?;
            out.push(op.1);
        } else {
            out.push(SizeOp::Symbol(self.symbol()?));
        }
        self.depth -= 1;
        Ok(())
    }
    fn symbol(&mut self) -> Parsed<u32> {
        let word = self.word()?;
        let number = match word.strip_prefix('$') {
            Some(digits) => digits.parse().ok(),
            None => self.names.iter().position(|n| *n == word).map(|i| i as u32),
        };
        match number {
            Some(number) => Ok(number),
            None => self.fail(format!("unknown symbol '{word}'")),
        }
    }
    fn view(&mut self) -> Parsed<View> {
        self.expect("@")?;
        let buffer = self.number()?;
        let offset = if self.accept("+") { self.size()? } else { Size::constant(0) };
        Ok(View { buffer, offset })
    }

    /// Steps between braces.
    fn steps(&mut self) -> Parsed<Vec<Step>> {
        self.depth += 1;
        if self.depth > NESTING + 1 {
            return self.fail("steps nest too deeply");
        }
        self.expect("{")?;
        let mut steps = Vec::new();
        while !self.accept("}") {
            if let Some(Token::Number(_)) = self.peek() {
                self.at += 1;
            }
            steps.push(self.step()?);
        }
        self.depth -= 1;
        Ok(steps)
    }
    fn step(&mut self) -> Parsed<Step> {
        Ok(match self.word()?.as_str() {
            "host_launch" => {
                let kernel = self.number()?;
                self.text()?;
                let buffers = self.list("(", ")", Parser::view)?;
                let extents = self.list("[", "]", Parser::size)?;
                self.expect("tasks")?;
                let tasks = self.size()?;
                self.expect("message")?;
                Step::HostLaunch { kernel, buffers, extents, tasks, code: self.number()? }
            }
            kind @ ("to_host" | "to_device") => {
                let to_host = kind == "to_host";
                self.expect("@")?;
                let buffer = self.number()?;
                if to_host { Step::ToHost { buffer } } else { Step::ToDevice { buffer } }
            }
            "launch" => {
                let kernel = self.number()?;
                self.text()?;
                let buffers = self.list("(", ")", Parser::view)?;
                let extents = self.list("[", "]", Parser::size)?;
                self.expect("tasks")?;
                Step::Launch { kernel, buffers, extents, tasks: self.size()? }
            }
            "copy" => {
                let from = self.view()?;
                self.expect("->")?;
                let to = self.view()?;
                self.expect("bytes")?;
                Step::Copy { from, to, bytes: self.size()? }
            }
            "bind" => {
                let symbol = self.symbol()?;
                self.expect("=")?;
                let from = self.view()?;
                self.expect("most")?;
                Step::Bind { symbol, from, bound: self.size()? }
            }
            "require" => {
                let left = self.size()?;
                self.expect("==")?;
                let right = self.size()?;
                let or_one = self.accept("or");
                if or_one {
                    self.expect("one")?;
                }
                self.expect("else")?;
                self.expect("message")?;
                Step::Require { left, right, or_one, code: self.number()? }
            }
            "if" => {
                let (cond, then) = (self.view()?, self.steps()?);
                self.expect("else")?;
                Step::If { cond, then, otherwise: self.steps()? }
            }
            "for" => {
                let counter = self.symbol()?;
                self.expect("below")?;
                let count = self.size()?;
                let cond = if self.accept("while") { Some(self.view()?) } else { None };
                let apart = self.accept("apart");
                Step::Loop { counter, count, cond, body: self.steps()?, apart }
            }
            "host" => {
                let (routine, attributes) = (self.text()?, self.blob()?);
                let inputs = self.list("(", ")", |p| if p.accept("_") { Ok(None) } else { p.host_value().map(Some) })?;
                self.expect("->")?;
                let outputs = self.list("(", ")", Parser::host_value)?;
                self.expect("message")?;
                Step::Host { routine, attributes, inputs, outputs, code: self.number()? }
            }
            other => return self.fail(format!("unknown step '{other}'")),
        })
    }
}
