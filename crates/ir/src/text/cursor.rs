//! A cursor over text, shared by the parsers of all levels: tokens, lists, and errors with line and column.
//!
//! Blanks, line ends and comments (`//` to the end of the line) may stand between any two tokens.

use crate::dtype::DType;
use crate::expr::{self, Expr};
use crate::fault::Problem;
use std::str::FromStr;

/// A place in a text.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    text: &'a str,
    rest: &'a str,
    depth: u32,
}

/// The deepest nesting a text may have; printers stay far below it.
const MAX_DEPTH: u32 = 500;

impl<'a> Cursor<'a> {
    /// At the start of `text`.
    pub fn new(text: &'a str) -> Cursor<'a> {
        Cursor { text, rest: text, depth: 0 }
    }
    /// At the byte `offset` of `text`.
    pub(super) fn at(text: &'a str, offset: usize) -> Cursor<'a> {
        Cursor { text, rest: &text[offset..], depth: 0 }
    }
    /// Goes on at `rest`, which is a tail of the text.
    pub(super) fn skip_to(&mut self, rest: &'a str) {
        self.rest = rest;
    }
    /// What is left, from the next token on.
    pub fn rest(&mut self) -> &'a str {
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix("//") {
                Some(comment) => self.rest = comment.find('\n').map_or("", |end| &comment[end..]),
                None => return self.rest,
            }
        }
    }
    /// True when only blanks and comments are left.
    pub fn at_end(&mut self) -> bool {
        self.rest().is_empty()
    }
    /// A problem at this place.
    pub fn error(&self, message: impl Into<String>) -> Problem {
        let mut here = self.clone();
        here.rest();
        let before = &self.text[..self.text.len() - here.rest.len()];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        Problem { at: format!("line {line}, column {column}"), message: message.into(), help: String::new() }
    }
    /// "`what` is expected" with what stands there instead.
    pub fn expected(&self, what: &str) -> Problem {
        let mut here = self.clone();
        let found: String = here.rest().chars().take_while(|&c| c != '\n').take(24).collect();
        let found = if found.is_empty() { "the end of the text".to_owned() } else { format!("'{found}'") };
        self.error(format!("{what} is expected, not {found}"))
    }

    /// Takes `token` if it is next. A token that is a word does not match the start of a longer word.
    pub fn eat(&mut self, token: &str) -> bool {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match self.rest().strip_prefix(token) {
            Some(after) if !(token.ends_with(is_word) && after.starts_with(is_word)) => {
                self.rest = after;
                true
            }
            _ => false,
        }
    }
    /// Takes `token`, which must be next.
    pub fn expect(&mut self, token: &str) -> Result<(), Problem> {
        if self.eat(token) { Ok(()) } else { Err(self.expected(&format!("'{token}'"))) }
    }
    /// The longest next run of characters that `keep` accepts; may be empty.
    pub fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let text = self.rest();
        let end = text.find(|c| !keep(c)).unwrap_or(text.len());
        self.rest = &text[end..];
        &text[..end]
    }
    /// The next word: letters, digits and `_`; may be empty.
    pub fn word(&mut self) -> &'a str {
        self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')
    }
    /// A number or another value that `FromStr` reads from digits, letters and `+-.`.
    pub fn number<T: FromStr>(&mut self, what: &str) -> Result<T, Problem> {
        let start = self.clone();
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
        word.parse().map_err(|_| start.expected(what))
    }
    /// A hexadecimal number, `0x1f`.
    pub fn hex(&mut self) -> Result<u64, Problem> {
        let start = self.clone();
        let digits = self.word().strip_prefix("0x").and_then(|d| u64::from_str_radix(d, 16).ok());
        digits.ok_or_else(|| start.expected("a hexadecimal number"))
    }
    /// A dtype.
    pub fn dtype(&mut self) -> Result<DType, Problem> {
        let start = self.clone();
        self.word().parse().map_err(|_| start.expected("a dtype"))
    }
    /// A quoted string.
    pub fn quoted(&mut self) -> Result<String, Problem> {
        let (text, rest) = expr::parse_quoted(self.rest()).ok_or_else(|| self.expected("a quoted string"))?;
        self.rest = rest;
        Ok(text)
    }
    /// An index expression.
    pub fn expr(&mut self) -> Result<Expr, Problem> {
        let (e, rest) = expr::parse(self.rest()).map_err(|e| self.error(e))?;
        self.rest = rest;
        Ok(e)
    }
    /// Items between `open` and `close`, separated by commas.
    pub fn list<T>(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Cursor<'a>) -> Result<T, Problem>,
    ) -> Result<Vec<T>, Problem> {
        self.expect(open)?;
        let mut items = vec![];
        while !self.eat(close) {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }
    /// Index expressions in brackets.
    pub fn exprs(&mut self) -> Result<Vec<Expr>, Problem> {
        self.list("[", "]", Cursor::expr)
    }
    /// Runs `inner` one level deeper; too deep a text is an error, not a stack overflow.
    pub fn nested<T>(&mut self, inner: impl FnOnce(&mut Cursor<'a>) -> Result<T, Problem>) -> Result<T, Problem> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }
}
