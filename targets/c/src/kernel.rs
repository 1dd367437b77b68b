//! One kernel as a C function: declarations, loops and statements. What is computed in them is the business of `scalars`.

use crate::helpers::Helpers;
use crate::lanes::{FIRST, LANE, Vector};
use crate::place::{self, Shape};
use crate::scalars::{Place, Writer};
use crate::text::{Level, Text};
use crate::types::memory;
use infc_ir::expr::Range;
use infc_ir::scalar::Kind;
use infc_ir::{Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Access, Buffer, Kernel, LoopKind, Space, Stmt};
use std::collections::{HashMap, HashSet};

/// A printed kernel.
pub struct Function {
    /// Its name.
    pub name: String,
    /// Its definition.
    pub text: String,
    /// One for each global buffer.
    pub parameters: Vec<Parameter>,
    /// It gives a status: 0 or 1 + the code of a check that failed.
    pub checks: bool,
    /// Bytes of memory that it needs beside its buffers, its last parameter if there are any.
    pub scratch: u64,
}

/// A buffer parameter.
pub struct Parameter {
    /// Its type, as in a cast.
    pub cast: String,
    /// It is a plain pointer to elements of this type.
    pub plain: Option<&'static str>,
}

/// Alignment of scratch buffers.
const ALIGN: u64 = 64;

/// Prints a kernel as function `name`. With `openmp` its tasks run on several threads, if the compiler is told so. `extents` are the ranges
/// of the kernel's symbols, as far as they are known.
pub fn function(
    kernel: &Kernel,
    name: &str,
    openmp: bool,
    extents: &[Option<(i64, i64)>],
    helpers: &mut Helpers,
) -> Result<Function, Fault> {
    let mut parameters = vec![];
    let mut w = Writer::new(Some(kernel), helpers);
    let mut list = vec![];
    for (k, b) in kernel.buffers.iter().enumerate().take_while(|(_, b)| b.space == Space::Global) {
        let (parameter, declaration) = parameter(b, k, &mut w)?;
        parameters.push(parameter);
        list.push(declaration);
    }
    for (k, &symbol) in kernel.symbols.iter().enumerate() {
        let name = w.scope.fresh(symbol);
        if w.helpers.style.narrow_index
            && let Some(&(least, most)) = extents.get(k).and_then(Option::as_ref)
            && least >= 0
        {
            w.ranges.syms.insert(symbol, Range::new(least, most));
        }
        let ty = w.index_type(Expr::sym(symbol));
        list.push(format!("{ty} {name}"));
        w.symbols.insert(symbol, name);
    }
    let checks = has_check(&kernel.body);
    let mut printer = Printer { w, scratch: 0, openmp: openmp && !checks, used: used(&kernel.body) };
    printer.tasks()?;
    let (scratch, body) = (printer.scratch, printer.w.finish());
    if scratch > 0 {
        list.push("unsigned char *restrict scratch".to_owned());
    }
    let result = if checks { "int32_t" } else { "void" };
    let mut text = header(result, name, &list);
    for unused in list.iter().filter_map(|d| parameter_name(d)).filter(|n| !mentions(&body, n)) {
        text += &format!("    (void){unused};\n");
    }
    text += &body;
    text += if checks { "\n    return 0;\n}\n" } else { "\n}\n" };
    Ok(Function { name: name.to_owned(), text, parameters, checks, scratch })
}

/// `static void name(...) {`, in lines that are not too long.
fn header(result: &str, name: &str, list: &[String]) -> String {
    let list: &[String] = if list.is_empty() { &["void".to_owned()] } else { list };
    let start = format!("static {result} {name}(");
    let pad = " ".repeat(start.len().min(40));
    let mut text = start;
    let mut width = text.len();
    for (i, p) in list.iter().enumerate() {
        let last = i + 1 == list.len();
        if i > 0 && width + p.len() > 110 {
            text.truncate(text.trim_end().len());
            text += &format!("\n{pad}");
            width = pad.len();
        }
        text += p;
        text += if last { ") {\n" } else { ", " };
        width += p.len() + 2;
    }
    text
}

/// The name in a declaration of a parameter.
fn parameter_name(declaration: &str) -> Option<&str> {
    let start = declaration.split(')').next()?;
    start.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).find(|s| !s.is_empty() && *s != "void")
}

/// Does the identifier occur in the text?
fn mentions(text: &str, name: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    text.match_indices(name).any(|(at, _)| !part(text[..at].chars().next_back()) && !part(text[at + name.len()..].chars().next()))
}

fn parameter(b: &Buffer, number: usize, w: &mut Writer) -> Result<(Parameter, String), Fault> {
    let element = memory(b.dtype)?;
    let name = w.scope.fresh(&b.name);
    let constant = b.access == Access::Read;
    let qualifier = if constant { "const " } else { "" };
    let shape = place::shape(b);
    let inner = match &shape {
        Shape::Nested { inner, .. } => inner.clone(),
        Shape::Flat => vec![],
    };
    let (cast, declaration) = match inner.is_empty() {
        true => (format!("{qualifier}{element} *"), format!("{qualifier}{element} *restrict {name}")),
        false => {
            let sizes = place::brackets(&inner);
            (format!("{qualifier}{element} (*){sizes}"), format!("{qualifier}{element} (*restrict {name}){sizes}"))
        }
    };
    let plain = inner.is_empty().then_some(element);
    w.places[number] = Some(Place { name, shape, pointer: true });
    Ok((Parameter { cast, plain }, declaration))
}

fn has_check(body: &[Stmt]) -> bool {
    body.iter().any(|s| match s {
        Stmt::For { body, .. } | Stmt::While { body, .. } => has_check(body),
        Stmt::If { then, otherwise, .. } => has_check(then) || has_check(otherwise),
        Stmt::Check { .. } => true,
        Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Alloc { .. } | Stmt::Prefetch { .. } => false,
    })
}

/// Bytes of the widest number that a vector loop computes with, but for its index arithmetic.
fn widest(body: &[Stmt], kernel: &Kernel) -> usize {
    fn width(d: infc_ir::DType) -> usize {
        if d.is_float() { d.bytes().max(4) } else { d.bytes() }
    }
    fn value(s: Scalar) -> usize {
        let (mut seen, mut open, mut most) = (HashSet::new(), vec![s], 1);
        while let Some(s) = open.pop() {
            if !seen.insert(s) {
                continue;
            }
            match s.kind() {
                Kind::Index(_) | Kind::Const(_) => continue,
                Kind::Read { guard, .. } => open.extend(guard.map(|g| g.1)),
                _ => open.extend(s.operands()),
            }
            most = most.max(width(s.dtype()));
        }
        most
    }
    let of = |s: &Stmt| match s {
        Stmt::For { body, .. } | Stmt::While { body, .. } => widest(body, kernel),
        Stmt::If { then, otherwise, .. } => widest(then, kernel).max(widest(otherwise, kernel)),
        Stmt::Let { value: v, .. } => value(crate::ops::normal(*v)),
        Stmt::Store { buffer, value: v, .. } => value(crate::ops::normal(*v)).max(width(kernel.buffers[*buffer as usize].dtype)),
        Stmt::Check { .. } | Stmt::Alloc { .. } | Stmt::Prefetch { .. } => 1,
    };
    body.iter().map(of).max().unwrap_or(1)
}

/// What is read anywhere.
#[derive(Default)]
struct Used {
    locals: HashSet<u32>,
    buffers: HashSet<u32>,
    /// Buffers of the kernel's own that are stored to under a condition. Compilers cannot see that what is read was stored.
    masked: HashSet<u32>,
    /// How many conditions stand around each `Alloc`.
    allocated: HashMap<u32, usize>,
}

fn used(body: &[Stmt]) -> Used {
    fn see(s: Scalar, out: &mut Used) {
        s.visit(&mut |n| match n.kind() {
            Kind::Local(l) => _ = out.locals.insert(*l),
            Kind::Read { source, .. } => _ = out.buffers.insert(*source),
            _ => {}
        });
    }
    fn walk(body: &[Stmt], depth: usize, out: &mut Used) {
        for s in body {
            match s {
                Stmt::For { body, .. } => walk(body, depth, out),
                Stmt::While { cond, body } => {
                    see(*cond, out);
                    walk(body, depth, out);
                }
                Stmt::If { cond, then, otherwise } => {
                    see(*cond, out);
                    walk(then, depth + 1, out);
                    walk(otherwise, depth + 1, out);
                }
                Stmt::Let { value, .. } => see(*value, out),
                Stmt::Store { buffer, index, value } => {
                    index.iter().chain([value]).for_each(|&s| see(s, out));
                    if out.allocated.get(buffer).is_some_and(|&outside| outside < depth) {
                        out.masked.insert(*buffer);
                    }
                }
                Stmt::Check { cond, .. } => see(*cond, out),
                Stmt::Alloc { buffer } => _ = out.allocated.insert(*buffer, depth),
                Stmt::Prefetch { .. } => {}
            }
        }
    }
    let mut out = Used::default();
    walk(body, 0, &mut out);
    out
}

struct Printer<'a, 'h> {
    w: Writer<'a, 'h>,
    scratch: u64,
    openmp: bool,
    used: Used,
}

impl Printer<'_, '_> {
    fn tasks(&mut self) -> Result<(), Fault> {
        let kernel = self.w.kernel.expect("a kernel is printed");
        let name = kernel.axes.0.get(&kernel.task).copied().unwrap_or("task");
        if self.openmp && !kernel.tasks.is(1) {
            self.w.lines.extend(["#ifdef _OPENMP", "#pragma omp parallel for", "#endif"].map(str::to_owned));
        }
        self.looped(kernel.task, kernel.tasks, name, false, |p| p.list(&kernel.body))
    }

    /// `for (name = 0; name < extent; name++)`, or only the body where that runs once.
    fn looped(
        &mut self,
        var: u32,
        extent: Expr,
        name: &str,
        unroll: bool,
        body: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let w = &mut self.w;
        let extent = w.resolve(extent);
        match extent.known() {
            Some(n) if n <= 0 => return Ok(()),
            Some(1) => {
                w.values.insert(var, Expr::int(0));
                return body(self);
            }
            _ => {}
        }
        w.begin();
        let end = w.expr(extent)?;
        let outside = w.scope.clone();
        let name = w.scope.fresh(name);
        if let Some(n) = extent.known().filter(|_| unroll) {
            w.helpers.unroll();
            w.line(format!("UNROLL({n})"));
        }
        let ty = w.index_type(extent);
        w.line(format!("for ({ty} {name} = 0; {name} < {}; {name}++) {{", end.at(Level::Sum)));
        w.variables.insert(var, name);
        // In a loop that does not run where a size is 0, the size is at least 1.
        let symbols = w.ranges.syms.clone();
        for &s in w.symbols.keys() {
            let without = extent.map(&|leaf| if leaf == Expr::sym(s) { Expr::int(0) } else { leaf });
            if Expr::sym(s).range(&w.ranges).lo == 0 && without.simplify(&w.ranges).known().is_some_and(|n| n <= 0) {
                let most = Expr::sym(s).range(&w.ranges).hi;
                w.ranges.syms.insert(s, Range::new(1, most.max(1)));
            }
        }
        w.ranges.extent(var, extent);
        w.depth += 1;
        body(self)?;
        let w = &mut self.w;
        w.depth -= 1;
        w.ranges.syms = symbols;
        w.line("}".to_owned());
        w.variables.remove(&var);
        w.scope = outside;
        Ok(())
    }

    /// A vector loop, in pieces as long as vectors are; what is left over, and loops that are too short, element by element.
    fn vectors(&mut self, var: u32, extent: i64, name: &str, body: &[Stmt]) -> Result<(), Fault> {
        let kernel = self.w.kernel.expect("a kernel is printed");
        let most = self.w.helpers.style.vector_bytes / widest(body, kernel);
        let lanes = if extent < 2 { 1 } else { most.min(1 << extent.ilog2()) as i64 };
        if lanes < 2 || lanes.count_ones() != 1 {
            return self.looped(var, Expr::int(extent), name, false, |p| p.list(body));
        }
        let whole = extent / lanes;
        self.w.vector.lanes = lanes as usize;
        self.w.ranges.extent(LANE, Expr::int(lanes));
        let outside = self.w.scope.clone();
        let first = match whole {
            1 => Expr::int(0),
            _ => {
                let w = &mut self.w;
                let counter = w.scope.fresh(name);
                w.helpers.unroll();
                w.line(format!("UNROLL({whole})"));
                let ty = w.index_type(Expr::int(extent));
                w.line(format!("for ({ty} {counter} = 0; {counter} < {}; {counter} += {lanes}) {{", whole * lanes));
                w.variables.insert(FIRST, counter);
                w.ranges.extent(FIRST, Expr::int((whole - 1) * lanes + 1));
                w.depth += 1;
                Expr::var(FIRST as usize)
            }
        };
        self.w.values.insert(var, first + Expr::var(LANE as usize));
        self.list(body)?;
        self.w.values.remove(&var);
        self.w.vector = Vector::default();
        if whole > 1 {
            self.w.depth -= 1;
            self.w.line("}".to_owned());
            self.w.variables.remove(&FIRST);
            self.w.scope = outside;
        }
        for left in whole * lanes..extent {
            self.w.values.insert(var, Expr::int(left));
            self.list(body)?;
            self.w.values.remove(&var);
        }
        Ok(())
    }

    /// A statement inside a vector loop for one lane after the other.
    fn one_by_one(&mut self, s: &Stmt) -> Result<(), Fault> {
        let lanes = Expr::int(self.w.vector.lanes as i64);
        let outside = self.w.scope.clone();
        let name = self.w.scope.fresh("lane");
        let ty = self.w.index_type(lanes);
        self.w.line(format!("for ({ty} {name} = 0; {name} < {lanes}; {name}++) {{"));
        self.w.variables.insert(LANE, name.clone());
        self.w.depth += 1;
        let at = self.w.lane(&name);
        let done = self.statement(s);
        self.w.leave_lane(at);
        done?;
        self.w.depth -= 1;
        self.w.line("}".to_owned());
        self.w.variables.remove(&LANE);
        self.w.scope = outside;
        Ok(())
    }

    fn list(&mut self, list: &[Stmt]) -> Result<(), Fault> {
        list.iter().try_for_each(|s| self.statement(s))
    }

    /// A list in braces that stand already.
    fn block(&mut self, list: &[Stmt]) -> Result<(), Fault> {
        let outside = self.w.scope.clone();
        self.w.depth += 1;
        self.list(list)?;
        self.w.depth -= 1;
        self.w.scope = outside;
        Ok(())
    }

    fn statement(&mut self, s: &Stmt) -> Result<(), Fault> {
        match s {
            Stmt::For { var, extent, kind, body } => {
                let kernel = self.w.kernel.expect("a kernel is printed");
                let name = kernel.axes.0.get(var).copied().unwrap_or("i");
                if !matches!(kind, LoopKind::Serial | LoopKind::Parallel) && extent.known().is_none() {
                    return Err(fault!("the extent of i{var} is not constant: {extent}"));
                }
                if *kind == LoopKind::Vector && self.w.helpers.style.vector_bytes > 0 && self.w.vector.lanes == 0 {
                    return self.vectors(*var, extent.known().unwrap_or(0), name, body);
                }
                self.looped(*var, *extent, name, *kind == LoopKind::Unroll, |p| p.list(body))
            }
            Stmt::While { cond, body } => self.while_loop(*cond, body),
            Stmt::Let { local, value } => {
                if !self.used.locals.contains(local) {
                    return Ok(());
                }
                let [value] = self.w.statement([*value]);
                if self.w.varies(value) {
                    return self.w.lanes_let(*local, value);
                }
                let text = self.w.scalar(value)?;
                let name = self.w.scope.fresh("v");
                let ty = crate::types::value(value.dtype())?;
                self.w.declare(&name, format!("const {ty} {name} = {};", text.text));
                self.w.locals.insert(*local, Text::atom(name));
                Ok(())
            }
            Stmt::Store { buffer, index, value } => self.store(*buffer as usize, index, *value),
            Stmt::Prefetch { .. } => Ok(()),
            Stmt::Alloc { buffer } => self.alloc(*buffer as usize),
            Stmt::If { cond, then, otherwise } => self.branch(*cond, then, otherwise),
            Stmt::Check { cond, code } => {
                let [cond] = self.w.statement([*cond]);
                if self.w.varies(cond) {
                    return self.one_by_one(s);
                }
                match cond.as_int() {
                    Some(0) => self.w.line(format!("return {};", code + 1)),
                    Some(_) => {}
                    None => {
                        let cond = self.w.scalar(cond)?;
                        self.w.line(format!("if ({}) return {};", Text::not(&cond).text, code + 1));
                    }
                }
                Ok(())
            }
        }
    }

    fn store(&mut self, buffer: usize, index: &[Scalar], value: Scalar) -> Result<(), Fault> {
        let b = &self.w.kernel.expect("a kernel is printed").buffers[buffer];
        if b.space == Space::Global && b.access == Access::Read {
            return Err(fault!("a store to buffer '{}', which is only read", b.name));
        }
        if b.space != Space::Global && !self.used.buffers.contains(&(buffer as u32)) {
            return Ok(());
        }
        let (value, index) = self.w.store(buffer, index, value);
        if self.w.varies(value) || index.iter().any(|&i| self.w.varies(i)) {
            return self.w.lanes_store(buffer, &index, value);
        }
        let text = self.w.scalar(value)?;
        let text = crate::ops::to_memory(self.w.helpers, b.dtype, text);
        let element = self.w.element(buffer, &index)?;
        // `x = x + y` reads better as `x += y`, and is the same if y is one term: sums are taken from the left.
        let line = match text.text.strip_prefix(&format!("{} + ", element.text)) {
            Some(rest) if text.level == Level::Sum && is_one_product(rest) => format!("{} += {rest};", element.text),
            _ => format!("{} = {};", element.text, text.text),
        };
        self.w.line(line);
        Ok(())
    }

    fn while_loop(&mut self, cond: Scalar, body: &[Stmt]) -> Result<(), Fault> {
        let head = self.w.lines.len();
        self.w.depth += 1;
        let [cond] = self.w.statement([cond]);
        let text = self.w.scalar(cond)?;
        self.w.depth -= 1;
        let before = self.w.lines.split_off(head);
        if before.is_empty() {
            self.w.line(format!("while ({}) {{", text.text));
        } else {
            self.w.line("for (;;) {".to_owned());
            self.w.lines.extend(before);
            self.w.depth += 1;
            self.w.line(format!("if ({}) break;", Text::not(&text).text));
            self.w.depth -= 1;
        }
        self.block(body)?;
        self.w.line("}".to_owned());
        Ok(())
    }

    fn branch(&mut self, cond: Scalar, then: &[Stmt], otherwise: &[Stmt]) -> Result<(), Fault> {
        let [cond] = self.w.statement([cond]);
        if let Some(known) = cond.as_int() {
            return self.list(if known != 0 { then } else { otherwise });
        }
        if self.w.varies(cond) {
            let whole = Stmt::If { cond, then: then.to_vec(), otherwise: otherwise.to_vec() };
            let Some(all) = self.w.for_all(cond)? else { return self.one_by_one(&whole) };
            self.w.line(format!("if ({}) {{", all.text));
            self.block(then)?;
            self.w.line("} else {".to_owned());
            self.w.depth += 1;
            self.one_by_one(&whole)?;
            self.w.depth -= 1;
            self.w.line("}".to_owned());
            return Ok(());
        }
        let text = self.w.scalar(cond)?;
        self.w.line(format!("if ({}) {{", text.text));
        self.block(then)?;
        if !otherwise.is_empty() {
            self.w.line("} else {".to_owned());
            self.block(otherwise)?;
        }
        self.w.line("}".to_owned());
        Ok(())
    }

    fn alloc(&mut self, buffer: usize) -> Result<(), Fault> {
        let b = &self.w.kernel.expect("a kernel is printed").buffers[buffer];
        let element = memory(b.dtype)?;
        let shape = place::shape(b);
        let sizes = place::sizes(b, &shape).ok_or_else(|| fault!("buffer '{}' has no constant size", b.name))?;
        let name = self.w.scope.fresh(&b.name);
        let pointer = match b.space {
            Space::Tile if !self.openmp => {
                let at = self.scratch.next_multiple_of(ALIGN);
                self.scratch = at + sizes.iter().product::<i64>().unsigned_abs() * b.dtype.bytes() as u64;
                let inner = place::brackets(&sizes[1.min(sizes.len())..]);
                let place = if at == 0 { "scratch".to_owned() } else { format!("(scratch + {at})") };
                let declaration = match inner.as_str() {
                    "" => format!("{element} *{name} = ({element} *){place};"),
                    _ => format!("{element} (*{name}){inner} = ({element} (*){inner}){place};"),
                };
                self.w.declare(&name, declaration);
                true
            }
            Space::Reg | Space::Tile => {
                let start = match (self.used.masked.contains(&(buffer as u32)), sizes.is_empty()) {
                    (false, _) => "",
                    (true, true) => " = 0",
                    (true, false) => " = {0}",
                };
                self.w.declare(&name, format!("{element} {name}{}{start};", place::brackets(&sizes)));
                !sizes.is_empty()
            }
            Space::Global | Space::Shared => return Err(fault!("buffer '{}' cannot be allocated in C", b.name)),
        };
        self.w.places[buffer] = Some(Place { name, shape, pointer });
        Ok(())
    }
}

/// Is it factors joined by `*` alone, outside of parentheses and brackets?
fn is_one_product(text: &str) -> bool {
    let mut depth = 0i32;
    let bytes = text.as_bytes();
    for i in 0..bytes.len() {
        match bytes[i] {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b' ' if depth == 0
                && i + 1 < bytes.len()
                && !matches!(bytes[i + 1], b'*' | b'/')
                && !matches!(bytes[i - 1], b'*' | b'/') =>
            {
                return false;
            }
            _ => {}
        }
    }
    true
}
