//! One kernel as an `.entry`: tasks, loops and statements. What is computed in them is the business of `scalars`.

use crate::asm::{Asm, Class, Val};
use crate::ops;
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::Kind;
use infc_ir::{Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Access, Kernel, LoopKind, Space, Stmt};
use std::collections::{HashMap, HashSet};

/// A printed kernel.
pub struct Entry {
    /// Its text.
    pub text: String,
    /// Bytes of global memory that each thread needs for itself.
    pub scratch: u64,
    /// Threads of a block, if a task is for a whole block.
    pub block: Option<u32>,
}

/// A loop variable.
#[derive(Clone, Copy)]
pub(crate) enum Var {
    Const(i64),
    Reg(Val),
}

/// Where a buffer lies.
#[derive(Clone)]
pub(crate) enum Place {
    /// Not there yet.
    None,
    /// In memory of this space, from the address in a register on.
    Memory(&'static str, Val),
    /// In registers, one for each element.
    Registers(Vec<Val>),
}

/// What a value that was computed is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Scalar(Scalar),
    Expr(Expr),
}

/// The state of emitting a kernel.
pub(crate) struct Emit<'a> {
    pub a: Asm,
    pub kernel: &'a Kernel,
    pub vars: HashMap<u32, Var>,
    pub ranges: Ranges,
    pub symbols: HashMap<&'static str, Val>,
    pub locals: HashMap<u32, Val>,
    pub places: Vec<Place>,
    /// Values that do not read memory, of each open list of statements.
    pub known: Vec<HashMap<Key, Val>>,
    /// Values that read memory, in the current statement, under the predicate that guards them.
    pub read: HashMap<(Scalar, Option<Val>), Val>,
    /// Does a scalar read memory?
    pub reads: HashMap<Scalar, bool>,
    /// The predicate under which reads happen.
    pub guard: Option<Val>,
    /// Buffers whose elements have registers.
    in_registers: HashSet<u32>,
    error: Val,
    scratch_base: Val,
    scratch: u64,
    end: String,
}

/// The most elements of a buffer in registers.
const MOST_REGISTERS: i64 = 128;
/// The most bytes of a buffer in local memory; larger ones lie in global scratch memory.
const MOST_LOCAL: u64 = 1 << 12;
/// The most iterations of a loop that is written out.
const MOST_UNROLLED: i64 = 128;

/// Prints a kernel as entry `name`.
pub fn entry(kernel: &Kernel, name: &str) -> Result<Entry, Fault> {
    let mut a = Asm::default();
    let (error, scratch_base) = (a.fresh(Class::Q), a.fresh(Class::Q));
    let mut e = Emit {
        a,
        kernel,
        vars: HashMap::new(),
        ranges: Ranges::default(),
        symbols: HashMap::new(),
        locals: HashMap::new(),
        places: vec![Place::None; kernel.buffers.len()],
        known: vec![HashMap::new()],
        read: HashMap::new(),
        reads: HashMap::new(),
        guard: None,
        in_registers: HashSet::new(),
        error,
        scratch_base,
        scratch: 0,
        end: "END".into(),
    };
    let parameters = e.parameters(name);
    e.choose_registers();
    e.tasks()?;
    let Emit { a, scratch, .. } = e;
    let list = parameters.join(",\n\t");
    Ok(Entry { text: format!(".visible .entry {name}(\n\t{list}\n)\n{{\n{}\tret;\n}}\n", a.finish()), scratch, block: None })
}

/// Is the loop written out?
fn unrolled(kind: LoopKind, extent: Expr) -> bool {
    extent.known().is_some_and(|n| n <= 1 || kind == LoopKind::Unroll && n <= MOST_UNROLLED)
}

impl Emit<'_> {
    /// Names of the parameters: buffers, symbols, tasks, error slot, scratch memory. Loads them.
    fn parameters(&mut self, name: &str) -> Vec<String> {
        let mut list = vec![];
        let mut load = |a: &mut Asm, to: Val| {
            let p = format!("{name}_{}", list.len());
            a.line(format_args!("ld.param.b64 {to}, [{p}]"));
            list.push(format!(".param .u64 {p}"));
        };
        let kernel = self.kernel;
        for k in 0..kernel.buffers.iter().filter(|b| b.space == Space::Global).count() {
            let base = self.a.fresh(Class::Q);
            load(&mut self.a, base);
            self.places[k] = Place::Memory("global", base);
        }
        for &symbol in &kernel.symbols {
            let v = self.a.fresh(Class::Q);
            load(&mut self.a, v);
            self.symbols.insert(symbol, v);
        }
        let tasks = self.a.fresh(Class::Q);
        for v in [tasks, self.error, self.scratch_base] {
            load(&mut self.a, v);
        }
        self.vars.insert(u32::MAX, Var::Reg(tasks));
        list
    }

    /// Buffers that are small and only indexed by numbers that are known here.
    fn choose_registers(&mut self) {
        fn fixed(index: &[Scalar], known: &HashSet<u32>) -> bool {
            index.iter().all(|i| {
                i.as_index().is_some_and(|e| {
                    let mut all = true;
                    e.leaves(&mut |l| all &= matches!(l.node(), Node::Var(v) if known.contains(v)));
                    all
                })
            })
        }
        fn see(s: Scalar, known: &HashSet<u32>, not: &mut HashSet<u32>) {
            s.visit(&mut |n| {
                if let Kind::Read { source, index, .. } = n.kind()
                    && !fixed(index, known)
                {
                    not.insert(*source);
                }
            });
        }
        fn walk(body: &[Stmt], known: &mut HashSet<u32>, not: &mut HashSet<u32>) {
            for s in body {
                match s {
                    Stmt::For { var, extent, kind, body } => {
                        let new = unrolled(*kind, *extent) && known.insert(*var);
                        walk(body, known, not);
                        if new {
                            known.remove(var);
                        }
                    }
                    Stmt::While { cond, body } => {
                        see(*cond, known, not);
                        walk(body, known, not);
                    }
                    Stmt::Let { value, .. } => see(*value, known, not),
                    Stmt::Store { buffer, index, value } => {
                        if !fixed(index, known) {
                            not.insert(*buffer);
                        }
                        index.iter().chain([value]).for_each(|&s| see(s, known, not));
                    }
                    Stmt::If { cond, then, otherwise } => {
                        see(*cond, known, not);
                        walk(then, known, not);
                        walk(otherwise, known, not);
                    }
                    Stmt::Check { cond, .. } => see(*cond, known, not),
                    Stmt::Alloc { .. } | Stmt::Prefetch { .. } => {}
                }
            }
        }
        let mut not = HashSet::new();
        walk(&self.kernel.body, &mut HashSet::new(), &mut not);
        for (k, b) in self.kernel.buffers.iter().enumerate() {
            let small = b.span().known().is_some_and(|n| n <= MOST_REGISTERS);
            if matches!(b.space, Space::Reg | Space::Tile) && small && !not.contains(&(k as u32)) {
                self.in_registers.insert(k as u32);
            }
        }
    }

    /// Each thread takes tasks as far apart as there are threads.
    fn tasks(&mut self) -> Result<(), Fault> {
        let a = &mut self.a;
        let [block, width, thread, grid, step] = std::array::from_fn(|_| a.fresh(Class::R));
        let [first, task, stride] = std::array::from_fn(|_| a.fresh(Class::Q));
        a.line(format_args!("mov.u32 {block}, %ctaid.x"));
        a.line(format_args!("mov.u32 {width}, %ntid.x"));
        a.line(format_args!("mov.u32 {thread}, %tid.x"));
        a.line(format_args!("mov.u32 {grid}, %nctaid.x"));
        a.line(format_args!("mul.wide.u32 {first}, {block}, {width}"));
        a.line(format_args!("cvt.u64.u32 {task}, {thread}"));
        a.line(format_args!("add.s64 {task}, {task}, {first}"));
        a.line(format_args!("mul.lo.u32 {step}, {grid}, {width}"));
        a.line(format_args!("cvt.u64.u32 {stride}, {step}"));
        let own = a.copied(task);
        let Some(Var::Reg(tasks)) = self.vars.remove(&u32::MAX) else {
            return Err(fault!("the number of tasks has no register"));
        };
        let kernel = self.kernel;
        self.ranges.extent(kernel.task, kernel.tasks);
        self.vars.insert(kernel.task, Var::Reg(task));
        if uses_scratch(kernel, &self.in_registers) {
            let size = scratch_bytes(kernel, &self.in_registers)?;
            let (base, bytes) = (self.scratch_base, self.a.q(size as i64));
            let offset = self.a.row("mul", "s64", &[own, bytes])?;
            self.scratch_base = self.a.row("add", "s64", &[base, offset])?;
        }
        for k in 0..kernel.buffers.len() as u32 {
            if kernel.buffers[k as usize].space != Space::Global {
                self.alloc(k)?;
            }
        }
        let head = self.a.label();
        let over = self.a.fresh(Class::P);
        self.a.place(&head);
        self.a.line(format_args!("setp.ge.s64 {over}, {task}, {tasks}"));
        let end = self.end.clone();
        self.a.line(format_args!("@{over} bra {end}"));
        self.list(&kernel.body)?;
        self.a.line(format_args!("add.s64 {task}, {task}, {stride}"));
        self.a.line(format_args!("bra {head}"));
        self.a.place(&end);
        Ok(())
    }

    /// A list of statements; values computed in it are not known after it.
    fn list(&mut self, list: &[Stmt]) -> Result<(), Fault> {
        self.known.push(HashMap::new());
        for s in list {
            self.read.clear();
            self.statement(s)?;
        }
        self.known.pop();
        self.read.clear();
        Ok(())
    }

    fn statement(&mut self, s: &Stmt) -> Result<(), Fault> {
        match s {
            Stmt::For { var, extent, kind, body } => self.looped(*var, *extent, *kind, body),
            Stmt::While { cond, body } => {
                let (head, end) = (self.a.label(), self.a.label());
                self.a.place(&head);
                self.known.push(HashMap::new());
                let cond = self.scalar(*cond)?;
                self.a.line(format_args!("@!{cond} bra {end}"));
                self.list(body)?;
                self.known.pop();
                self.a.line(format_args!("bra {head}"));
                self.a.place(&end);
                Ok(())
            }
            Stmt::Let { local, value } => {
                let v = self.scalar(*value)?;
                self.locals.insert(*local, v);
                Ok(())
            }
            Stmt::Store { buffer, index, value } => self.store(*buffer as usize, index, *value),
            Stmt::Prefetch { .. } => Ok(()),
            // Its memory is there from the start.
            Stmt::Alloc { .. } => Ok(()),
            Stmt::If { cond, then, otherwise } => self.branch(*cond, then, otherwise),
            Stmt::Check { cond, code } => {
                let cond = self.scalar(*cond)?;
                let (fine, old, error) = (self.a.label(), self.a.fresh(Class::R), self.error);
                self.a.line(format_args!("@{cond} bra {fine}"));
                self.a.line(format_args!("atom.global.cas.b32 {old}, [{error}], 0, {}", code + 1));
                self.a.line(format_args!("ret"));
                self.a.place(&fine);
                Ok(())
            }
        }
    }

    fn looped(&mut self, var: u32, extent: Expr, kind: LoopKind, body: &[Stmt]) -> Result<(), Fault> {
        let extent = self.resolve(extent);
        if unrolled(kind, extent) {
            self.ranges.extent(var, extent);
            for i in 0..extent.known().unwrap_or(0) {
                self.vars.insert(var, Var::Const(i));
                self.list(body)?;
            }
            self.vars.remove(&var);
            return Ok(());
        }
        let end_value = self.expr(extent)?;
        let zero = self.a.q(0);
        let counter = self.a.copied(zero);
        let (head, end, over) = (self.a.label(), self.a.label(), self.a.fresh(Class::P));
        self.a.place(&head);
        self.a.line(format_args!("setp.ge.s64 {over}, {counter}, {end_value}"));
        self.a.line(format_args!("@{over} bra {end}"));
        self.ranges.extent(var, extent);
        self.vars.insert(var, Var::Reg(counter));
        self.list(body)?;
        self.vars.remove(&var);
        self.a.line(format_args!("add.s64 {counter}, {counter}, 1"));
        self.a.line(format_args!("bra {head}"));
        self.a.place(&end);
        Ok(())
    }

    fn branch(&mut self, cond: Scalar, then: &[Stmt], otherwise: &[Stmt]) -> Result<(), Fault> {
        if let Some(known) = self.simplified(cond).as_int() {
            return self.list(if known != 0 { then } else { otherwise });
        }
        let cond = self.scalar(cond)?;
        let (other, end) = (self.a.label(), self.a.label());
        self.a.line(format_args!("@!{cond} bra {other}"));
        self.list(then)?;
        if !otherwise.is_empty() {
            self.a.line(format_args!("bra {end}"));
        }
        self.a.place(&other);
        if !otherwise.is_empty() {
            self.list(otherwise)?;
            self.a.place(&end);
        }
        Ok(())
    }

    /// Memory for a buffer of the kernel's own.
    fn alloc(&mut self, buffer: u32) -> Result<(), Fault> {
        let b = &self.kernel.buffers[buffer as usize];
        let count = b.span().known().ok_or_else(|| fault!("buffer '{}' has no constant size", b.name))?.max(1) as u64;
        let bytes = count * b.dtype.bytes() as u64;
        self.places[buffer as usize] = match b.space {
            Space::Reg | Space::Tile if self.in_registers.contains(&buffer) => {
                let class = ops::class(b.dtype)?;
                Place::Registers((0..count).map(|_| self.a.fresh(class)).collect())
            }
            Space::Reg | Space::Tile if bytes <= MOST_LOCAL => {
                let base = self.a.fresh(Class::Q);
                self.a.declare(format_args!(".local .align 16 .b8 local{buffer}[{bytes}]"));
                self.a.line(format_args!("mov.u64 {base}, local{buffer}"));
                Place::Memory("local", base)
            }
            Space::Reg | Space::Tile => {
                let at = self.a.q(self.scratch as i64);
                let base = self.a.row("add", "s64", &[self.scratch_base, at])?;
                self.scratch += bytes.next_multiple_of(64);
                Place::Memory("global", base)
            }
            Space::Shared | Space::Global => return Err(fault!("buffer '{}' cannot be allocated by a thread", b.name)),
        };
        Ok(())
    }

    fn store(&mut self, buffer: usize, index: &[Scalar], value: Scalar) -> Result<(), Fault> {
        let b = &self.kernel.buffers[buffer];
        if b.space == Space::Global && b.access == Access::Read {
            return Err(fault!("a store to buffer '{}', which is only read", b.name));
        }
        let v = self.scalar(value)?;
        if let Place::Registers(_) = &self.places[buffer] {
            let to = self.register(buffer, index)?;
            self.a.copy(to, v);
            return Ok(());
        }
        let raw = ops::to_memory(&mut self.a, b.dtype, v)?;
        let (space, address) = self.address(buffer, index)?;
        let ty = ops::memory_type(b.dtype)?;
        let ty = ty.replace('s', "u");
        self.a.line(format_args!("st.{space}.{ty} {address}, {raw}"));
        Ok(())
    }

    /// The register of an element.
    pub(crate) fn register(&mut self, buffer: usize, index: &[Scalar]) -> Result<Val, Fault> {
        let b = &self.kernel.buffers[buffer];
        let mut at = Expr::int(0);
        for (i, &stride) in index.iter().zip(&b.strides) {
            let e = i.as_index().ok_or_else(|| fault!("an index of buffer '{}' comes from data", b.name))?;
            at = at + self.resolve(e) * stride;
        }
        let Place::Registers(list) = &self.places[buffer] else {
            return Err(fault!("buffer '{}' is used before its memory", b.name));
        };
        let at = at.known().and_then(|k| list.get(usize::try_from(k).ok()?));
        at.copied().ok_or_else(|| fault!("an index of buffer '{}' is outside", b.name))
    }

    /// Space and address of an element.
    pub(crate) fn address(&mut self, buffer: usize, index: &[Scalar]) -> Result<(&'static str, String), Fault> {
        let b = &self.kernel.buffers[buffer];
        let Place::Memory(space, base) = self.places[buffer].clone() else {
            return Err(fault!("buffer '{}' is used before its memory", b.name));
        };
        let (mut offset, mut data) = (Expr::int(0), None::<Val>);
        for (&i, &stride) in index.iter().zip(&b.strides) {
            match i.as_index() {
                Some(e) => offset = offset + e * stride,
                None => {
                    let v = self.scalar(i)?;
                    let stride = self.expr(stride)?;
                    let v = self.a.row("mul", "s64", &[v, stride])?;
                    data = Some(match data {
                        None => v,
                        Some(d) => self.a.row("add", "s64", &[d, v])?,
                    });
                }
            }
        }
        let width = b.dtype.bytes() as i64;
        let offset = self.resolve(offset).simplify(&self.ranges) * width;
        let (_, constant) = offset.linear();
        let constant = if constant.abs() < 1 << 20 { constant } else { 0 };
        let rest = offset - constant;
        let mut address = base;
        if !rest.is(0) {
            let v = self.expr(rest)?;
            address = self.a.row("add", "s64", &[address, v])?;
        }
        if let Some(d) = data {
            let width = self.a.q(width);
            let v = self.a.row("mul", "s64", &[d, width])?;
            address = self.a.row("add", "s64", &[address, v])?;
        }
        let text = if constant == 0 { format!("[{address}]") } else { format!("[{address}{constant:+}]") };
        Ok((space, text))
    }

    /// The same with numbers for variables that are known.
    pub(crate) fn resolve(&self, e: Expr) -> Expr {
        e.map(&|l| match l.node() {
            Node::Var(v) => match self.vars.get(v) {
                Some(Var::Const(c)) => Expr::int(*c),
                _ => l,
            },
            _ => l,
        })
    }

    pub(crate) fn simplified(&self, s: Scalar) -> Scalar {
        let s = s.map_index(&|e| self.resolve(e));
        infc_ir::compute::simplify_scalar(s, &self.ranges)
    }
}

/// Bytes of global scratch memory of one thread.
fn scratch_bytes(kernel: &Kernel, in_registers: &HashSet<u32>) -> Result<u64, Fault> {
    let mut total = 0;
    for (k, b) in kernel.buffers.iter().enumerate() {
        if !matches!(b.space, Space::Reg | Space::Tile) || in_registers.contains(&(k as u32)) {
            continue;
        }
        let count = b.span().known().ok_or_else(|| fault!("buffer '{}' has no constant size", b.name))?.max(1) as u64;
        let bytes = count * b.dtype.bytes() as u64;
        if bytes > MOST_LOCAL {
            total += bytes.next_multiple_of(64);
        }
    }
    Ok(total)
}

fn uses_scratch(kernel: &Kernel, in_registers: &HashSet<u32>) -> bool {
    scratch_bytes(kernel, in_registers).is_ok_and(|n| n > 0)
}
