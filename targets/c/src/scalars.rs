//! What a statement computes, as C expressions. A node that occurs more than once gets a name, and so does one whose text is long;
//! index arithmetic likewise. Reads keep their guards, as `cond ? x[i] : otherwise`.

use crate::helpers::Helpers;
use crate::index;
use crate::lanes::Vector;
use crate::names::Scope;
use crate::ops;
use crate::place::{self, Shape};
use crate::text::Text;
use crate::types;
use infc_ir::compute::simplify_scalar;
use infc_ir::eager::eager;
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::loops::Kernel;
use infc_kernel::math::{self, is_transcendental};
use std::collections::{HashMap, HashSet};

/// Encloses the name in a line that declares it.
const MARK: char = '\u{1}';

/// Texts longer than this get a name.
pub const LONG: usize = 90;

/// A buffer in scope.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its variable.
    pub name: String,
    /// How its elements are named.
    pub shape: Shape,
    /// It is a pointer or an array; else it has one element and is a plain variable.
    pub pointer: bool,
}

/// Prints statements into lines.
pub struct Writer<'a, 'h> {
    /// The kernel; none in functions of mathematics.
    pub kernel: Option<&'a Kernel>,
    /// Functions called so far.
    pub helpers: &'h mut Helpers,
    /// The lines.
    pub lines: Vec<String>,
    /// Depth of the next line.
    pub depth: usize,
    /// Names in use.
    pub scope: Scope,
    /// Names of loop variables.
    pub variables: HashMap<u32, String>,
    /// Loop variables that stand for something else.
    pub values: HashMap<u32, Expr>,
    /// Names of symbols.
    pub symbols: HashMap<&'static str, String>,
    /// Names of `Let`s.
    pub locals: HashMap<u32, Text>,
    /// The buffers.
    pub places: Vec<Option<Place>>,
    /// Ranges of loop variables.
    pub ranges: Ranges,
    /// What vectors need, inside a vector loop.
    pub vector: Vector,
    pub(crate) uses: HashMap<Scalar, usize>,
    pub(crate) done: HashMap<Scalar, Text>,
    pub(crate) parts: HashMap<Expr, Text>,
}

impl<'a, 'h> Writer<'a, 'h> {
    /// Ready for a function.
    pub fn new(kernel: Option<&'a Kernel>, helpers: &'h mut Helpers) -> Writer<'a, 'h> {
        Writer {
            kernel,
            helpers,
            lines: vec![],
            depth: 1,
            scope: Scope::default(),
            variables: HashMap::new(),
            values: HashMap::new(),
            symbols: HashMap::new(),
            locals: HashMap::new(),
            places: vec![None; kernel.map_or(0, |k| k.buffers.len())],
            ranges: Ranges::default(),
            vector: Vector::default(),
            uses: HashMap::new(),
            done: HashMap::new(),
            parts: HashMap::new(),
        }
    }

    /// Adds a line.
    pub fn line(&mut self, text: String) {
        self.lines.push("    ".repeat(self.depth) + &text);
    }

    /// Adds a line that declares `name`; it is left out if nothing uses the name.
    pub fn declare(&mut self, name: &str, text: String) {
        self.lines.push(format!("{MARK}{name}{MARK}{}{text}", "    ".repeat(self.depth)));
    }

    /// The lines, without declarations of what nothing uses.
    pub fn finish(&mut self) -> String {
        let lines = std::mem::take(&mut self.lines);
        let mut lines: Vec<(Option<String>, String)> = (lines.into_iter())
            .map(|l| match l.strip_prefix(MARK).and_then(|l| l.split_once(MARK)) {
                Some((name, text)) => (Some(name.to_owned()), text.to_owned()),
                None => (None, l),
            })
            .collect();
        // What a line that goes has used may be of no more use either: from the end, uses come before declarations.
        let mut at = lines.len();
        while at > 0 {
            at -= 1;
            let unused = lines[at].0.as_ref().is_some_and(|name| !is_used(name, &lines[at..]));
            if unused {
                lines.remove(at);
            }
        }
        joined(lines)
    }

    /// Constants put in, and simplified.
    pub fn resolve(&self, e: Expr) -> Expr {
        e.map(&|leaf| match leaf.node() {
            Node::Var(v) => self.values.get(v).copied().unwrap_or(leaf),
            _ => leaf,
        })
        .simplify(&self.ranges)
    }

    /// A scalar ready to be printed.
    pub fn prepare(&self, s: Scalar) -> Scalar {
        let s = s.map_index(&|e| self.resolve(e));
        eager(ops::normal(simplify_scalar(s, &self.ranges)))
    }

    /// Forgets what the last statement has computed.
    pub fn begin(&mut self) {
        self.uses.clear();
        self.done.clear();
        self.parts.clear();
        self.vector.begin();
    }

    /// Begins a statement that computes these.
    pub fn statement<const N: usize>(&mut self, scalars: [Scalar; N]) -> [Scalar; N] {
        let scalars = scalars.map(|s| self.prepare(s));
        self.count(&scalars, &[]);
        scalars
    }

    /// Begins a store.
    pub fn store(&mut self, buffer: usize, index: &[Scalar], value: Scalar) -> (Scalar, Vec<Scalar>) {
        let value = self.prepare(value);
        let index: Vec<Scalar> = index.iter().map(|&i| self.prepare(i)).collect();
        self.count(&[value], &[(buffer, &index)]);
        (value, index)
    }

    /// Begins an access; gives its prepared index.
    pub fn access(&mut self, buffer: usize, index: &[Scalar]) -> Vec<Scalar> {
        let index: Vec<Scalar> = index.iter().map(|&i| self.prepare(i)).collect();
        self.count(&[], &[(buffer, &index)]);
        index
    }

    /// Counts how often nodes occur, and names index arithmetic that occurs more than once.
    fn count(&mut self, roots: &[Scalar], stores: &[(usize, &[Scalar])]) {
        self.begin();
        let mut seen = HashSet::new();
        let mut exprs = Uses::default();
        for &root in roots {
            self.count_node(root, &mut seen, &mut exprs);
        }
        for &(buffer, index) in stores {
            self.count_access(buffer, index, &mut seen, &mut exprs);
        }
        for e in exprs.order {
            if exprs.counts[&e] > 1 && index::is_work(e) {
                let Ok(text) = self.expr(e) else { continue };
                let name = self.scope.fresh("at");
                let ty = self.index_type(e);
                self.declare(&name, format!("const {ty} {name} = {};", text.text));
                self.parts.insert(e, Text::atom(name));
            }
        }
    }

    fn count_node(&mut self, s: Scalar, seen: &mut HashSet<Scalar>, exprs: &mut Uses) {
        *self.uses.entry(s).or_default() += 1;
        if !seen.insert(s) {
            return;
        }
        match s.kind() {
            Kind::Index(e) => exprs.see(*e),
            Kind::Read { source, index, guard } => {
                self.count_access(*source as usize, index, seen, exprs);
                for &o in guard.iter().flat_map(|(c, f)| [c, f]) {
                    self.count_node(o, seen, exprs);
                }
            }
            _ => s.operands().into_iter().for_each(|o| self.count_node(o, seen, exprs)),
        }
    }

    fn count_access(&mut self, buffer: usize, index: &[Scalar], seen: &mut HashSet<Scalar>, exprs: &mut Uses) {
        for i in index.iter().filter(|i| i.as_index().is_none()) {
            self.count_node(*i, seen, exprs);
        }
        match self.flat(buffer, index) {
            Some(offset) => exprs.see(offset),
            None => self.axes(buffer, index).iter().filter_map(|i| i.as_index()).for_each(|e| exprs.see(e)),
        }
    }

    /// The offset in a flat buffer if all indices are expressions.
    fn flat(&self, buffer: usize, index: &[Scalar]) -> Option<Expr> {
        let (Some(Some(Place { shape: Shape::Flat, .. })), Some(kernel)) = (self.places.get(buffer), self.kernel) else {
            return None;
        };
        let index: Vec<Expr> = index.iter().map(|i| i.as_index()).collect::<Option<_>>()?;
        Some(place::offset(&kernel.buffers[buffer], &index).simplify(&self.ranges))
    }

    /// The indices that stand in the text.
    fn axes(&self, buffer: usize, index: &[Scalar]) -> Vec<Scalar> {
        match self.places.get(buffer) {
            Some(Some(Place { shape: Shape::Nested { axes, .. }, .. })) => {
                axes.iter().filter_map(|&a| index.get(a).copied()).collect()
            }
            _ => index.to_vec(),
        }
    }

    /// The type of an index expression's value.
    pub fn index_type(&self, e: Expr) -> &'static str {
        match self.helpers.style.narrow_index && index::is_narrow(e, &self.ranges) {
            true => "int32_t",
            false => "int64_t",
        }
    }

    /// The text of an index expression.
    pub fn expr(&mut self, e: Expr) -> Result<Text, Fault> {
        let e = self.resolve(e);
        let wide = self.helpers.style.narrow_index && index::is_work(e) && !index::is_narrow(e, &self.ranges);
        let Writer { variables, symbols, parts, ranges, helpers, .. } = self;
        // Narrow variables in wide arithmetic.
        let leaf = |name: &String| {
            let name = Text::atom(name);
            if wide { Text::cast("int64_t", &name) } else { name }
        };
        let known = |e: Expr| match e.node() {
            Node::Var(v) => Some(variables.get(v).map(leaf).ok_or_else(|| fault!("i{v} is used outside its loop"))),
            Node::Sym(s) => Some(symbols.get(s).map(leaf).ok_or_else(|| fault!("symbol '{s}' is not in the kernel's list"))),
            _ if wide => parts.get(&e).map(|t| Ok(Text::cast("int64_t", t))),
            _ => parts.get(&e).cloned().map(Ok),
        };
        index::print(e, ranges, helpers, &known)
    }

    /// The element of a buffer.
    pub fn element(&mut self, buffer: usize, index: &[Scalar]) -> Result<Text, Fault> {
        let place = self.places.get(buffer).cloned().flatten();
        let kernel = self.kernel.ok_or_else(|| fault!("buffer {buffer} outside of a kernel"))?;
        let place = place.ok_or_else(|| fault!("buffer '{}' is used before its Alloc", kernel.buffers[buffer].name))?;
        if !place.pointer {
            return Ok(Text::atom(place.name));
        }
        if let Some(offset) = self.flat(buffer, index) {
            let at = self.expr(offset)?;
            return Ok(Text::atom(format!("{}[{}]", place.name, at.text)));
        }
        if place.shape == Shape::Flat {
            let at = self.offset(buffer, index)?;
            return Ok(Text::atom(format!("{}[{}]", place.name, at.text)));
        }
        let axes = self.axes(buffer, index);
        if axes.is_empty() {
            return Ok(Text::atom(format!("{}[0]", place.name)));
        }
        let mut text = place.name;
        for i in axes {
            let at = self.position(i)?;
            text += &format!("[{}]", at.text);
        }
        Ok(Text::atom(text))
    }

    /// The text of an index.
    fn position(&mut self, i: Scalar) -> Result<Text, Fault> {
        match i.as_index() {
            Some(e) => self.expr(e),
            None => self.scalar(i),
        }
    }

    /// The offset in a flat buffer of indices some of which come from data.
    fn offset(&mut self, buffer: usize, index: &[Scalar]) -> Result<Text, Fault> {
        let strides = self.kernel.map(|k| k.buffers[buffer].strides.clone()).unwrap_or_default();
        let mut sum: Option<Text> = None;
        for (&i, s) in index.iter().zip(strides) {
            if s.is(0) || i.as_index().is_some_and(|e| e.is(0)) {
                continue;
            }
            let i = self.position(i)?;
            let term = if s.is(1) { i } else { Text::arithmetic('*', &i, &self.expr(s)?) };
            sum = Some(match sum {
                None => term,
                Some(sum) => Text::arithmetic('+', &sum, &term),
            });
        }
        Ok(sum.unwrap_or(Text::atom("0")))
    }

    /// The text of a prepared scalar.
    pub fn scalar(&mut self, s: Scalar) -> Result<Text, Fault> {
        let text = self.node(s, true)?;
        Ok(text)
    }

    /// The text of an operand.
    pub fn operand(&mut self, s: Scalar) -> Result<Text, Fault> {
        self.node(s, false)
    }

    fn node(&mut self, s: Scalar, root: bool) -> Result<Text, Fault> {
        if let Some(text) = self.done.get(&s) {
            return Ok(text.clone());
        }
        let text = self.compute(s)?;
        let simple = matches!(s.kind(), Kind::Const(_) | Kind::Local(_)) || s.as_index().is_some_and(|e| !index::is_work(e));
        let often = self.uses.get(&s).is_some_and(|&n| n > 1);
        if simple || !(often || !root && text.text.len() > LONG) {
            return Ok(text);
        }
        let name = Text::atom(self.scope.fresh("t"));
        self.declare(&name.text, format!("const {} {} = {};", types::value(s.dtype())?, name.text, text.text));
        self.done.insert(s, name.clone());
        Ok(name)
    }

    fn compute(&mut self, s: Scalar) -> Result<Text, Fault> {
        match s.kind() {
            Kind::Const(bits) => {
                types::value(s.dtype())?;
                Ok(Text::number(types::constant(s.dtype(), *bits)))
            }
            Kind::Index(e) => self.expr(*e),
            Kind::Local(n) if let Some(text) = self.vector.element(*n) => Ok(text),
            Kind::Local(n) => self.locals.get(n).cloned().ok_or_else(|| fault!("t{n} is used before its Let")),
            Kind::Read { source, index, guard } => {
                let element = self.element(*source as usize, index)?;
                let value = ops::from_memory(self.helpers, s.dtype(), element);
                match guard {
                    None => Ok(value),
                    Some((cond, fallback)) => {
                        let (cond, fallback) = (self.operand(*cond)?, self.operand(*fallback)?);
                        Ok(Text::choose(&cond, &value, &fallback))
                    }
                }
            }
            Kind::Unary(op, a) if is_transcendental(*op) => {
                let x = self.operand(*a)?;
                let name = function(self.helpers, op.name(), a.dtype(), 1, &|x| Scalar::unary(*op, x[0]))?;
                Ok(Text::call(&name, &[&x]))
            }
            Kind::Unary(op, a) => {
                let x = self.operand(*a)?;
                ops::unary(self.helpers, *op, a.dtype(), &x)
            }
            Kind::Binary(op, a, b) => self.binary(*op, *a, *b),
            Kind::Fma(a, b, c) => {
                let (x, y, z) = (self.operand(*a)?, self.operand(*b)?, self.operand(*c)?);
                ops::fma(self.helpers, s.dtype(), &x, &y, &z)
            }
            Kind::Select(c, a, b) => {
                let (c, x, y) = (self.operand(*c)?, self.operand(*a)?, self.operand(*b)?);
                Ok(Text::choose(&c, &x, &y))
            }
            Kind::Cast(a) => {
                let x = self.operand(*a)?;
                ops::cast(self.helpers, a.dtype(), s.dtype(), &x)
            }
            Kind::Bitcast(a) => {
                let x = self.operand(*a)?;
                ops::bitcast(self.helpers, a.dtype(), s.dtype(), &x)
            }
        }
    }

    fn binary(&mut self, op: Binary, a: Scalar, b: Scalar) -> Result<Text, Fault> {
        let d = a.dtype();
        if let Some(known) = ops::known_comparison(op, a, b) {
            return Ok(Text::atom(if known { "1" } else { "0" }));
        }
        if matches!(op, Binary::Pow | Binary::Atan2) && d.is_float() {
            let (x, y) = (self.operand(a)?, self.operand(b)?);
            let name = function(self.helpers, op.name(), d, 2, &|x| Scalar::binary(op, x[0], x[1]))?;
            return Ok(Text::call(&name, &[&x, &y]));
        }
        if d.is_float() && matches!(op, Binary::Min | Binary::Max) {
            let (value, limit) = if a.as_float().is_some() { (b, a) } else { (a, b) };
            if let Some(limit) = limit.as_float() {
                let x = self.operand(value)?;
                if let Some(text) = ops::limited(self.helpers, op, d, &x, limit) {
                    return Ok(text);
                }
            }
        }
        let (x, y) = (self.operand(a)?, self.operand(b)?);
        ops::binary(self.helpers, op, d, &x, &y)
    }
}

/// Is the name that the first line declares used in the rest of its block?
fn is_used(name: &str, lines: &[(Option<String>, String)]) -> bool {
    let depth = |l: &str| l.len() - l.trim_start().len();
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let Some(((_, first), rest)) = lines.split_first() else { return false };
    let outside = depth(first);
    let block = rest.iter().map(|(_, l)| l).take_while(|l| l.is_empty() || l.starts_with('#') || depth(l) >= outside);
    block.into_iter().any(|l| l.split(|c| !part(c)).any(|word| word == name))
}

/// The text of lines. A variable whose first value is in the next line is declared with it.
fn joined(lines: Vec<(Option<String>, String)>) -> String {
    let mut out: Vec<String> = vec![];
    let mut open: Option<String> = None;
    for (name, line) in lines {
        let value = open.take().and_then(|n| Some(line.trim_start().strip_prefix(&format!("{n} = "))?.to_owned()));
        match (value, out.last_mut()) {
            (Some(value), Some(last)) => {
                last.truncate(last.len() - 1);
                *last += &format!(" = {value}");
            }
            _ => {
                open = name.filter(|n| line.ends_with(&format!(" {n};")));
                out.push(line);
            }
        }
    }
    out.join("\n")
}

/// How often index expressions occur, parts before what they are in.
#[derive(Default)]
struct Uses {
    counts: HashMap<Expr, usize>,
    order: Vec<Expr>,
}

impl Uses {
    fn see(&mut self, e: Expr) {
        let count = self.counts.entry(e).or_default();
        *count += 1;
        if *count == 1 {
            index::parts(e).into_iter().for_each(|p| self.see(p));
            self.order.push(e);
        }
    }
}

/// The function `exp_f32` and the like, made of arithmetic.
fn function(
    helpers: &mut Helpers,
    op: &str,
    dtype: DType,
    arity: usize,
    body: &dyn Fn(&[Scalar]) -> Scalar,
) -> Result<String, Fault> {
    let name = format!("{op}_{}", dtype.name());
    if !helpers.begin(&name) {
        return Ok(name);
    }
    let arguments: Vec<Scalar> = (0..arity).map(|k| Scalar::local(dtype, k as u32)).collect();
    let ty = types::value(dtype)?;
    let mut w = Writer::new(None, helpers);
    let names: Vec<String> = ["x", "y"][..arity].iter().map(|n| w.scope.fresh(n)).collect();
    for (k, n) in names.iter().enumerate() {
        w.locals.insert(k as u32, Text::atom(n));
    }
    let [value] = w.statement([math::lower(body(&arguments), false)]);
    let text = w.scalar(value)?;
    w.line(format!("return {};", text.text));
    let lines = w.finish();
    let list: Vec<String> = names.iter().map(|n| format!("{ty} {n}")).collect();
    helpers.define(format!("static inline {ty} {name}({}) {{\n{lines}\n}}\n", list.join(", ")));
    Ok(name)
}
