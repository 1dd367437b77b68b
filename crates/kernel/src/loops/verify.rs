//! The verifier of kernels. This text is the specification of the loop IR; each rule is checked here unless it says otherwise.
//!
//! **Buffers.** Those in `Global` come first; they are the parameters. A buffer has as many strides as dims. Dims and strides of
//! `Tile`, `Reg` and `Shared` buffers are constants, not negative. No buffer holds strings or complex numbers.
//!
//! **Symbols.** Every symbol in an expression is listed in `symbols`, once.
//!
//! **Variables.** The task variable and the loop variables are distinct. A variable is used only in the body of its loop (the
//! task's everywhere but in `tasks`, dims and strides, which use only symbols).
//!
//! **Locals.** A `Let` defines a number once; it is used after the `Let`, in the same list of statements or in lists inside of it,
//! with the dtype of its value.
//!
//! **Alloc.** A buffer that is no parameter is accessed after its `Alloc`, in the same list or in lists inside of it; it is
//! allocated at one place. Its contents are undefined until stored (not checked; the interpreter poisons them). In a vector loop
//! all lanes have one buffer, and each uses elements of its own (not checked).
//!
//! **Accesses.** A read or store names a buffer, with one `i64` index per dim and the buffer's dtype. A `Read` buffer is not stored to, a
//! `Write` buffer not read. Indices lie inside the dims and inside the memory (checked at run time by the interpreter; here, an index
//! that is outside for certain is an error). A guarded read touches memory only where its guard holds, and its index and its
//! fallback rely on that guard.
//!
//! **Loops.** Extents of `Vector` and `Unroll` loops are constants. Inside a vector loop, extents and the conditions of `While` do
//! not depend on its variable, and no iteration depends on another one: running the lanes together, statement by statement,
//! and running them one after another give the same (not checked). Iterations of `Parallel` loops and tasks touch no element that another
//! one stores (not checked).
//!
//! **Scalars.** Conditions are `bool`. Operands of an operator have one dtype; bitwise operators and shifts are for integers and
//! bool, `neg`, `abs` and the real functions for numbers.

use super::{Access, Kernel, LoopKind, Space, Stmt};
use infc_ir::dtype::Class;
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind, Unary};
use infc_ir::{DType, Expr, Problem, Problems, Scalar};
use std::collections::{HashMap, HashSet};

/// Checks a kernel against the rules above; gives all that is wrong.
pub fn verify(kernel: &Kernel) -> Result<(), Problems> {
    let mut v = Verifier {
        kernel,
        problems: vec![],
        env: Ranges::default(),
        vars: HashSet::from([kernel.task]),
        seen_vars: HashSet::from([kernel.task]),
        lanes: HashSet::new(),
        locals: HashMap::new(),
        seen_locals: HashSet::new(),
        allocated: HashSet::new(),
        seen_allocs: HashSet::new(),
        done: HashSet::new(),
    };
    v.declarations();
    v.env.extent(kernel.task, kernel.tasks);
    v.body(&kernel.body);
    if v.problems.is_empty() { Ok(()) } else { Err(Problems(v.problems)) }
}

struct Verifier<'a> {
    kernel: &'a Kernel,
    problems: Vec<Problem>,
    env: Ranges,
    /// Variables of the loops around, and all that were ever declared.
    vars: HashSet<u32>,
    seen_vars: HashSet<u32>,
    /// Variables of the vector loops around, and locals that depend on them.
    lanes: HashSet<u32>,
    /// Locals in scope: dtype, and whether they differ between lanes.
    locals: HashMap<u32, (DType, bool)>,
    seen_locals: HashSet<u32>,
    allocated: HashSet<u32>,
    seen_allocs: HashSet<u32>,
    /// Scalars of the current statement that were checked.
    done: HashSet<Scalar>,
}

impl Verifier<'_> {
    fn problem(&mut self, message: String) {
        let at = format!("kernel '{}'", self.kernel.name);
        self.problems.push(Problem { at, message, help: String::new() });
    }

    fn declarations(&mut self) {
        let k = self.kernel;
        let mut names = HashSet::new();
        for s in &k.symbols {
            if !names.insert(s) {
                self.problem(format!("symbol '{s}' is listed twice"));
            }
        }
        self.only_symbols("the number of tasks", k.tasks);
        let mut past_globals = false;
        for (n, b) in k.buffers.iter().enumerate() {
            let what = format!("buffer '{}' (b{n})", b.name);
            if b.space == Space::Global && past_globals {
                self.problem(format!("{what} is a parameter, but stands after buffers that are none"));
            }
            past_globals |= b.space != Space::Global;
            if b.strides.len() != b.dims.len() {
                self.problem(format!("{what} has {} dims and {} strides", b.dims.len(), b.strides.len()));
            }
            if matches!(b.dtype.class(), Class::Text | Class::Complex) {
                self.problem(format!("{what} is {}, which kernels do not know", b.dtype));
            }
            for &e in b.dims.iter().chain(&b.strides) {
                match b.space {
                    Space::Global => self.only_symbols(&what, e),
                    Space::Tile | Space::Reg | Space::Shared if e.known().is_none_or(|n| n < 0) => {
                        self.problem(format!("{what} has the dim or stride {e}, a constant is needed"));
                    }
                    Space::Tile | Space::Reg | Space::Shared => {}
                }
            }
        }
    }

    fn only_symbols(&mut self, what: &str, e: Expr) {
        let mut bad = None;
        e.leaves(&mut |l| match l.node() {
            Node::Sym(s) if self.kernel.symbols.contains(s) => {}
            _ => bad = Some(l),
        });
        if let Some(l) = bad {
            self.problem(format!("{what} uses {l} in {e}, which is no symbol of the kernel"));
        }
    }

    /// Checks the leaves of an expression; true if it differs between lanes.
    fn expr(&mut self, e: Expr) -> bool {
        let (mut bad, mut varies) = (None, false);
        e.leaves(&mut |l| match l.node() {
            Node::Sym(s) if self.kernel.symbols.contains(s) => {}
            Node::Var(v) if self.vars.contains(v) => varies |= self.lanes.contains(v),
            _ => bad = Some(l),
        });
        if let Some(l) = bad {
            self.problem(format!("{e} uses {l}, which has no value here"));
        }
        varies
    }

    /// Checks a scalar; true if it differs between lanes.
    fn scalar(&mut self, s: Scalar) -> bool {
        let mut order = vec![];
        s.visit(&mut |n| order.push(n));
        let mut varies: HashMap<Scalar, bool> = HashMap::new();
        for n in order {
            let below = n.operands().iter().any(|o| varies[o]);
            let here = match n.kind() {
                Kind::Index(e) => self.expr(*e),
                Kind::Local(t) => match self.locals.get(t) {
                    Some(&(d, lanes)) if d == n.dtype() => lanes,
                    Some((d, _)) => {
                        let message = format!("t{t} is {d}, it is used as {}", n.dtype());
                        self.problem(message);
                        false
                    }
                    None => {
                        self.problem(format!("t{t} is used where it has no value"));
                        false
                    }
                },
                _ => false,
            };
            if self.done.insert(n) {
                self.node(n);
            }
            varies.insert(n, below || here);
        }
        varies[&s]
    }

    fn node(&mut self, n: Scalar) {
        let same = |all: &[Scalar]| all.iter().all(|a| a.dtype() == all[0].dtype());
        let good = match n.kind() {
            Kind::Const(_) | Kind::Index(_) | Kind::Local(_) | Kind::Cast(_) => true,
            Kind::Read { source, index, guard } => {
                self.access(*source, index, n.dtype(), false);
                guard.is_none_or(|(c, f)| c.dtype() == DType::Bool && f.dtype() == n.dtype())
            }
            Kind::Unary(op, a) => match op {
                Unary::Not => !a.dtype().is_float(),
                Unary::IsNan | Unary::IsInf => n.dtype() == DType::Bool,
                _ => a.dtype() == n.dtype() && a.dtype() != DType::Bool,
            },
            Kind::Binary(op, a, b) => {
                let bits = matches!(op, Binary::And | Binary::Or | Binary::Xor | Binary::Shl | Binary::Shr);
                let result = if op.is_comparison() { DType::Bool } else { a.dtype() };
                same(&[*a, *b]) && n.dtype() == result && !(bits && a.dtype().is_float())
            }
            Kind::Fma(a, b, c) => same(&[*a, *b, *c, n]),
            Kind::Select(c, a, b) => c.dtype() == DType::Bool && same(&[*a, *b, n]),
            Kind::Bitcast(a) => a.dtype().bytes() == n.dtype().bytes(),
        };
        if !good {
            self.problem(format!("dtypes do not fit in {n}"));
        }
    }

    fn access(&mut self, buffer: u32, index: &[Scalar], dtype: DType, store: bool) {
        let Some(b) = self.kernel.buffers.get(buffer as usize) else {
            return self.problem(format!("buffer b{buffer} does not exist"));
        };
        let what = format!("buffer '{}' (b{buffer})", b.name);
        if b.space != Space::Global && !self.allocated.contains(&buffer) {
            self.problem(format!("{what} is accessed where it is not allocated"));
        }
        if b.dtype != dtype {
            self.problem(format!("{what} is {}, it is accessed as {dtype}", b.dtype));
        }
        match b.access {
            Access::Read if store => self.problem(format!("{what} is only read, but stored to")),
            Access::Write if !store => self.problem(format!("{what} is only written, but read")),
            Access::Read | Access::Write | Access::ReadWrite => {}
        }
        if index.len() != b.dims.len() || index.iter().any(|i| i.dtype() != DType::I64) {
            return self.problem(format!("{what} has {} dims, it is accessed at {index:?}", b.dims.len()));
        }
        if store {
            for (i, &d) in index.iter().zip(&b.dims) {
                let Some(e) = i.as_index() else { continue };
                if e.range(&self.env).hi < 0 || (e - d).range(&self.env).lo >= 0 {
                    self.problem(format!("index {e} is outside {what} for certain, whose dim is {d}"));
                }
            }
        }
    }

    fn condition(&mut self, what: &str, cond: Scalar) -> bool {
        if cond.dtype() != DType::Bool {
            self.problem(format!("the condition of {what} is {}: {cond}", cond.dtype()));
        }
        self.scalar(cond)
    }

    fn body(&mut self, body: &[Stmt]) {
        let (locals, allocated) = (self.locals.clone(), self.allocated.clone());
        body.iter().for_each(|s| self.statement(s));
        (self.locals, self.allocated) = (locals, allocated);
    }

    fn statement(&mut self, s: &Stmt) {
        self.done.clear();
        match s {
            Stmt::For { var, extent, kind, body } => {
                if self.expr(*extent) {
                    self.problem(format!("the extent {extent} of i{var} differs between lanes"));
                }
                if !matches!(kind, LoopKind::Serial | LoopKind::Parallel) && extent.known().is_none() {
                    self.problem(format!("the extent {extent} of i{var} is not constant, as a {kind:?} loop needs"));
                }
                if !self.seen_vars.insert(*var) {
                    self.problem(format!("i{var} is the variable of two loops"));
                }
                self.env.extent(*var, *extent);
                self.vars.insert(*var);
                if *kind == LoopKind::Vector {
                    self.lanes.insert(*var);
                }
                self.body(body);
                self.vars.remove(var);
                self.lanes.remove(var);
            }
            Stmt::While { cond, body } => {
                if self.condition("a while loop", *cond) {
                    self.problem(format!("the condition {cond} of a while loop differs between lanes"));
                }
                self.body(body);
            }
            Stmt::Let { local, value } => {
                let varies = self.scalar(*value);
                if !self.seen_locals.insert(*local) {
                    self.problem(format!("t{local} is defined twice"));
                }
                self.locals.insert(*local, (value.dtype(), varies));
            }
            Stmt::Store { buffer, index, value } => {
                index.iter().chain([value]).for_each(|&s| {
                    self.scalar(s);
                });
                self.access(*buffer, index, value.dtype(), true);
            }
            Stmt::Prefetch { buffer, index } => self.prefetch(*buffer, index),
            Stmt::Alloc { buffer } => self.alloc(*buffer),
            Stmt::If { cond, then, otherwise } => {
                self.condition("an if", *cond);
                self.body(then);
                self.body(otherwise);
            }
            Stmt::Check { cond, .. } => {
                self.condition("a check", *cond);
            }
        }
    }

    fn prefetch(&mut self, buffer: u32, index: &[Scalar]) {
        index.iter().for_each(|&i| {
            self.scalar(i);
        });
        match self.kernel.buffers.get(buffer as usize) {
            Some(b) if b.space != Space::Global => self.problem(format!("b{buffer} is fetched ahead but no parameter")),
            Some(b) if b.dims.len() != index.len() => {
                self.problem(format!("a prefetch of b{buffer} has {} indices for {} dims", index.len(), b.dims.len()));
            }
            Some(_) => {}
            None => self.problem(format!("buffer b{buffer} does not exist")),
        }
    }

    fn alloc(&mut self, buffer: u32) {
        let Some(b) = self.kernel.buffers.get(buffer as usize) else {
            return self.problem(format!("buffer b{buffer} does not exist"));
        };
        let what = format!("buffer '{}' (b{buffer})", b.name);
        if b.space == Space::Global {
            self.problem(format!("{what} is a parameter and cannot be allocated"));
        }
        if !self.seen_allocs.insert(buffer) {
            self.problem(format!("{what} is allocated at two places"));
        }
        self.allocated.insert(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::super::arbitrary::any_kernel;
    use super::super::text::parse;
    use super::*;
    use proptest::prelude::*;

    /// What is wrong with a kernel of these statements, over parameters x (read), y (write) and tile t.
    fn check(body: &str, message: &str) {
        let text = format!(
            "kernel \"k\" (n) tasks n as i0 {{ b0 \"x\": f32[n, 4] strides [4, 1] global read b1 \"y\": f32[n, 4] strides [4, 1] global write \
             b2 \"t\": f32[8] strides [1] tile read_write {body} }}"
        );
        let k = parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let got = verify(&k).map_or_else(|p| p.to_string(), |()| String::new());
        assert!(if message.is_empty() { got.is_empty() } else { got.contains(message) }, "{got:?}\n{message}");
    }

    #[test]
    fn rules() {
        check("alloc b2 for i1 in 4 vector { let t0 = b0:f32[i0, i1] b2[i1] = t0:f32 b1[i0, i1] = b2:f32[i1] }", "");
        for (body, message) in [
            ("b1[i0, i1] = 0.0:f32", "i1 uses i1, which has no value here"),
            ("b1[m, 0] = 0.0:f32", "m uses m, which has no value here"),
            ("for i1 in 2 { } for i1 in 2 { }", "i1 is the variable of two loops"),
            ("b1[i0, 0] = t0:f32", "t0 is used where it has no value"),
            ("let t0 = 0:i8 b1[i0, 0] = t0:f32", "t0 is i8, it is used as f32"),
            ("for i1 in 2 { let t0 = 0:i8 } let t1 = t0:i8", "t0 is used where it has no value"),
            ("let t0 = 0:i8 let t0 = 0:i8", "t0 is defined twice"),
            ("b2[0] = 0.0:f32", "buffer 't' (b2) is accessed where it is not allocated"),
            ("for i1 in 2 { alloc b2 } b2[0] = 0.0:f32", "is accessed where it is not allocated"),
            ("alloc b2 alloc b2", "is allocated at two places"),
            ("alloc b0", "is a parameter and cannot be allocated"),
            ("b0[i0, 0] = 0.0:f32", "buffer 'x' (b0) is only read, but stored to"),
            ("let t0 = b1:f32[i0, 0]", "buffer 'y' (b1) is only written, but read"),
            ("b1[i0] = 0.0:f32", "has 2 dims, it is accessed at"),
            ("b1[i0, 0] = 0.0:f64", "is f32, it is accessed as f64"),
            ("b1[i0, 4] = 0.0:f32", "index 4 is outside buffer 'y' (b1) for certain"),
            ("b9[0] = 0.0:f32", "buffer b9 does not exist"),
            ("for i1 in n vector { }", "the extent n of i1 is not constant"),
            ("for i1 in 2 vector { for i2 in i1 { } }", "the extent i1 of i2 differs between lanes"),
            ("for i1 in 2 vector { let t0 = lt((i1), 1:i64) while t0:bool { } }", "differs between lanes"),
            ("let t0 = and(1.0:f32, 2.0:f32)", "dtypes do not fit in and(1.0:f32, 2.0:f32)"),
        ] {
            check(body, message);
        }
    }

    proptest! {
        #[test]
        fn random_kernels_pass(k in any_kernel()) {
            let problems = verify(&k).err().map(|p| p.to_string()).filter(|p| !p.contains("for certain"));
            prop_assert_eq!(problems, None, "{}", k);
        }
    }
}
