//! Kernels compiled for the interpreter: straight-line code over slots, index arithmetic moved out of the loops it does not need.
//!
//! A slot holds one 64-bit value in the form of [`infc_ir::eval`], or one for each lane of the vector loop around (`wide`). An index
//! expression is computed at the start of each iteration of the innermost loop whose variable it uses: it is pure and total.

use super::{Memory, Stop, check_dtype};
use crate::loops::{Kernel, LoopKind, Stmt};
use infc_ir::eager::eager;
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind, Unary};
use infc_ir::{DType, Expr, Scalar};
use std::collections::HashMap;

/// Where a value is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub at: usize,
    pub wide: bool,
}

/// An operation and where its result goes.
pub struct Ins {
    pub to: Place,
    pub op: Op,
}

/// Operations, on values of the dtype that is given.
pub enum Op {
    Affine(Box<[(Place, i64)]>, i64),
    Product(Place, Place),
    FloorDiv(Place, Place),
    FloorMod(Place, Place),
    Unary(Unary, DType, Place),
    Binary(Binary, DType, Place, Place),
    Fma(DType, Place, Place, Place),
    Select(Place, Place, Place),
    Cast(DType, DType, Place),
    Bitcast(DType, DType, Place),
    Copy(Place),
    Load(Box<Access>, Option<(Place, Place)>),
}

/// An element of a buffer for each lane: `start + lane * step`.
pub struct Access {
    pub buffer: u32,
    pub dtype: DType,
    pub start: Place,
    pub step: i64,
    /// Indices that are not certain to be inside: value, step by lane, extent.
    pub checks: Box<[(Place, i64, i64)]>,
    /// The index, for messages.
    pub index: Box<[Scalar]>,
}

/// Compiled statements.
pub enum Code {
    Run(Vec<Ins>),
    Loop {
        var: Place,
        extent: Place,
        start: Vec<Ins>,
        body: Vec<Code>,
    },
    /// All lanes together.
    Lanes {
        count: usize,
        start: Vec<Ins>,
        body: Vec<Code>,
    },
    While {
        before: Vec<Ins>,
        cond: Place,
        body: Vec<Code>,
    },
    Store {
        before: Vec<Ins>,
        access: Access,
        value: Place,
    },
    If {
        before: Vec<Ins>,
        cond: Place,
        then: Vec<Code>,
        otherwise: Vec<Code>,
    },
    Check {
        before: Vec<Ins>,
        cond: Place,
        code: u32,
    },
    Alloc(u32),
}

/// A compiled kernel. `task` is where the task number goes.
pub struct Program {
    pub slots: usize,
    pub constants: Vec<(usize, u64)>,
    /// Lane variables: where their columns are and how many lanes they have.
    pub columns: Vec<(usize, usize)>,
    /// All variables, for messages.
    pub vars: HashMap<u32, Place>,
    pub task: Place,
    pub start: Vec<Ins>,
    pub body: Vec<Code>,
}

/// A loop under compilation.
struct Scope {
    var: u32,
    slot: Place,
    lanes: Option<usize>,
    start: Vec<Ins>,
    exprs: HashMap<Expr, Place>,
}

struct Compiler<'a, 'k> {
    memory: &'a Memory<'k>,
    scopes: Vec<Scope>,
    env: Ranges,
    locals: HashMap<u32, Place>,
    constants: HashMap<u64, usize>,
    columns: Vec<(usize, usize)>,
    vars: HashMap<u32, Place>,
    slots: usize,
    /// The code of the statement under compilation, and what it has computed.
    now: Vec<Ins>,
    done: HashMap<Scalar, Place>,
}

/// Compiles a kernel without symbols.
pub fn compile(kernel: &Kernel, tasks: i64, memory: &Memory) -> Result<Program, Stop> {
    let mut c = Compiler {
        memory,
        scopes: vec![],
        env: Ranges::default(),
        locals: HashMap::new(),
        constants: HashMap::new(),
        columns: vec![],
        vars: HashMap::new(),
        slots: 0,
        now: vec![],
        done: HashMap::new(),
    };
    c.env.extent(kernel.task, Expr::int(tasks));
    c.open(kernel.task, None);
    let body = c.body(&kernel.body)?;
    let scope = c.scopes.pop().expect("opened above");
    let constants = c.constants.iter().map(|(&v, &at)| (at, v)).collect();
    Ok(Program { slots: c.slots, constants, columns: c.columns, vars: c.vars, task: scope.slot, start: scope.start, body })
}

impl Compiler<'_, '_> {
    fn open(&mut self, var: u32, lanes: Option<usize>) {
        let slot = Place { at: self.slots, wide: lanes.is_some() };
        self.slots += lanes.unwrap_or(1);
        self.columns.extend(lanes.map(|n| (slot.at, n)));
        self.vars.insert(var, slot);
        self.scopes.push(Scope { var, slot, lanes, start: vec![], exprs: HashMap::new() });
    }

    fn lanes(&self) -> Option<usize> {
        self.scopes.iter().find_map(|s| s.lanes)
    }

    fn slot(&mut self, wide: bool) -> Place {
        let at = self.slots;
        self.slots += if wide { self.lanes().unwrap_or(1) } else { 1 };
        Place { at, wide }
    }

    fn constant(&mut self, value: u64) -> Place {
        if let Some(&at) = self.constants.get(&value) {
            return Place { at, wide: false };
        }
        let place = self.slot(false);
        self.constants.insert(value, place.at);
        place
    }

    /// The loop that an expression belongs to: the innermost whose variable it uses.
    fn depth(&self, e: Expr) -> Result<usize, Stop> {
        let mut depth = 0;
        let mut unknown = None;
        e.leaves(&mut |l| {
            let scope = self.scopes.iter().rposition(|s| matches!(l.node(), Node::Var(v) if *v == s.var));
            match scope {
                Some(d) => depth = depth.max(d),
                None => unknown = Some(l),
            }
        });
        match unknown {
            Some(l) => Err(Stop::Internal(format!("{e} uses {l}, which has no value here"))),
            None => Ok(depth),
        }
    }

    fn expr(&mut self, e: Expr) -> Result<Place, Stop> {
        if let Node::Const(c) = e.node() {
            return Ok(self.constant(*c as u64));
        }
        let depth = self.depth(e)?;
        if matches!(e.node(), Node::Var(_)) {
            return Ok(self.scopes[depth].slot);
        }
        if let Some(&p) = self.scopes[depth].exprs.get(&e) {
            return Ok(p);
        }
        let op = match e.node() {
            Node::Sum { terms, constant } => self.sum(terms, *constant, depth)?,
            Node::Product(f) => {
                let first = self.expr(f[0])?;
                let rest = f[1..].iter().fold(Expr::int(1), |a, &b| a * b);
                Op::Product(first, self.expr(rest)?)
            }
            Node::Div(a, b) => Op::FloorDiv(self.expr(*a)?, self.expr(*b)?),
            Node::Mod(a, b) => Op::FloorMod(self.expr(*a)?, self.expr(*b)?),
            Node::Min(a, b) => Op::Binary(Binary::Min, DType::I64, self.expr(*a)?, self.expr(*b)?),
            Node::Max(a, b) => Op::Binary(Binary::Max, DType::I64, self.expr(*a)?, self.expr(*b)?),
            Node::Const(_) | Node::Sym(_) | Node::Var(_) => unreachable!("done above"),
        };
        let to = self.slot(wide(&op));
        let scope = &mut self.scopes[depth];
        scope.start.push(Ins { to, op });
        scope.exprs.insert(e, to);
        Ok(to)
    }

    /// A sum whose terms of outer loops are computed there.
    fn sum(&mut self, terms: &[(Expr, i64)], constant: i64, depth: usize) -> Result<Op, Stop> {
        let (mut here, mut outside) = (vec![], Expr::int(constant));
        let mut others = 0;
        for &(t, c) in terms {
            if self.depth(t)? == depth {
                here.push((self.expr(t)?, c));
            } else {
                outside = outside + t * c;
                others += 1;
            }
        }
        if others == 0 {
            return Ok(Op::Affine(here.into(), constant));
        }
        let outside = self.expr(outside)?;
        here.push((outside, 1));
        Ok(Op::Affine(here.into(), 0))
    }

    fn scalar(&mut self, s: Scalar) -> Result<Place, Stop> {
        if let Some(&p) = self.done.get(&s) {
            return Ok(p);
        }
        let d = s.dtype();
        let op = match s.kind() {
            Kind::Const(c) => return Ok(self.constant(*c)),
            Kind::Index(e) => return self.expr(*e),
            Kind::Local(n) => {
                let known = self.locals.get(n).copied();
                return known.ok_or_else(|| Stop::Internal(format!("local t{n} has no value")));
            }
            Kind::Unary(op, a) => Op::Unary(*op, a.dtype(), self.scalar(*a)?),
            Kind::Binary(op, a, b) => Op::Binary(*op, a.dtype(), self.scalar(*a)?, self.scalar(*b)?),
            Kind::Fma(a, b, c) => Op::Fma(d, self.scalar(*a)?, self.scalar(*b)?, self.scalar(*c)?),
            Kind::Select(a, b, c) => Op::Select(self.scalar(*a)?, self.scalar(*b)?, self.scalar(*c)?),
            Kind::Cast(a) => Op::Cast(a.dtype(), d, self.scalar(*a)?),
            Kind::Bitcast(a) => Op::Bitcast(a.dtype(), d, self.scalar(*a)?),
            Kind::Read { source, index, guard } => {
                let guard = match guard {
                    Some((cond, fallback)) => Some((self.scalar(*cond)?, self.scalar(*fallback)?)),
                    None => None,
                };
                Op::Load(Box::new(self.access(*source, index, d)?), guard)
            }
        };
        let to = self.slot(wide(&op));
        self.now.push(Ins { to, op });
        self.done.insert(s, to);
        Ok(to)
    }

    fn access(&mut self, buffer: u32, index: &[Scalar], dtype: DType) -> Result<Access, Stop> {
        check_dtype(buffer, self.memory.buffer(buffer)?, dtype)?;
        let shape = &self.memory.shapes[buffer as usize];
        if shape.dims.len() != index.len() {
            return Err(Stop::Internal(format!("b{buffer} has {} dims, it is accessed at {index:?}", shape.dims.len())));
        }
        let lane = self.scopes.iter().find(|s| s.lanes.is_some()).map(|s| s.var);
        let exprs: Option<Vec<Expr>> = index.iter().map(|i| i.as_index()).collect();
        let by_lane = |e: Expr| match lane {
            Some(lane) => e.affine_in(lane),
            None => Some((0, e)),
        };
        let at = exprs.as_ref().map(|all| all.iter().zip(&shape.strides).fold(Expr::int(0), |acc, (&e, &s)| acc + e * s));
        let mut checks = vec![];
        for (&i, &dim) in index.iter().zip(&shape.dims) {
            let range = i.as_index().map(|e| e.range(&self.env));
            if range.is_some_and(|r| r.lo >= 0 && r.hi < dim) {
                continue;
            }
            match i.as_index().and_then(by_lane) {
                Some((step, rest)) => checks.push((self.expr(rest)?, step, dim)),
                None => checks.push((self.scalar(i)?, 0, dim)),
            }
        }
        let (step, start) = match at.and_then(by_lane) {
            Some((step, rest)) => (step, self.expr(rest)?),
            None => {
                let places: Vec<Place> = index.iter().map(|&i| self.scalar(i)).collect::<Result<_, _>>()?;
                let op = Op::Affine(places.into_iter().zip(shape.strides.iter().copied()).collect(), 0);
                let to = self.slot(wide(&op));
                self.now.push(Ins { to, op });
                (0, to)
            }
        };
        Ok(Access { buffer, dtype, start, step, checks: checks.into(), index: index.into() })
    }

    fn statement(&mut self, s: &Stmt, out: &mut Vec<Code>) -> Result<(), Stop> {
        self.done.clear();
        match s {
            Stmt::For { var, extent, kind, body } => {
                let known = extent.known().filter(|_| *kind == LoopKind::Vector && self.lanes().is_none());
                let lanes = known.map(|n| n.max(0) as usize).filter(|&n| n > 1);
                let place = self.expr(*extent)?;
                if place.wide {
                    return Err(Stop::Internal(format!("the extent {extent} differs between lanes")));
                }
                self.env.extent(*var, *extent);
                self.open(*var, lanes);
                let body = self.body(body)?;
                let Scope { slot: var, start, .. } = self.scopes.pop().expect("opened above");
                match lanes {
                    Some(count) => out.push(Code::Lanes { count, start, body }),
                    None => out.push(Code::Loop { var, extent: place, start, body }),
                }
            }
            Stmt::While { cond, body } => {
                let (before, cond) = self.apart(*cond)?;
                out.push(Code::While { before, cond, body: self.body(body)? });
            }
            Stmt::Let { local, value } => {
                let (mut before, value) = self.apart(*value)?;
                // A slot of its own: the value may be that of a loop variable.
                let to = self.slot(value.wide);
                before.push(Ins { to, op: Op::Copy(value) });
                self.locals.insert(*local, to);
                out.push(Code::Run(before));
            }
            Stmt::Store { buffer, index, value } => {
                let value = self.scalar(eager(*value))?;
                let index: Vec<Scalar> = index.iter().map(|&i| eager(i)).collect();
                let dtype = self.memory.buffer(*buffer)?.dtype;
                let access = self.access(*buffer, &index, dtype)?;
                out.push(Code::Store { before: std::mem::take(&mut self.now), access, value });
            }
            Stmt::Prefetch { .. } => {}
            Stmt::Alloc { buffer } => out.push(Code::Alloc(*buffer)),
            Stmt::If { cond, then, otherwise } => {
                let (before, cond) = self.apart(*cond)?;
                let (then, otherwise) = (self.body(then)?, self.body(otherwise)?);
                out.push(Code::If { before, cond, then, otherwise });
            }
            Stmt::Check { cond, code } => {
                let (before, cond) = self.apart(*cond)?;
                out.push(Code::Check { before, cond, code: *code });
            }
        }
        Ok(())
    }

    fn apart(&mut self, s: Scalar) -> Result<(Vec<Ins>, Place), Stop> {
        let place = self.scalar(eager(s))?;
        Ok((std::mem::take(&mut self.now), place))
    }

    fn body(&mut self, body: &[Stmt]) -> Result<Vec<Code>, Stop> {
        let mut out = vec![];
        body.iter().try_for_each(|s| self.statement(s, &mut out))?;
        Ok(out)
    }
}

/// Does the result differ between lanes?
fn wide(op: &Op) -> bool {
    match op {
        Op::Affine(terms, _) => terms.iter().any(|(p, _)| p.wide),
        Op::Product(a, b) | Op::FloorDiv(a, b) | Op::FloorMod(a, b) | Op::Binary(_, _, a, b) => a.wide || b.wide,
        Op::Unary(_, _, a) | Op::Cast(_, _, a) | Op::Bitcast(_, _, a) | Op::Copy(a) => a.wide,
        Op::Fma(_, a, b, c) | Op::Select(a, b, c) => a.wide || b.wide || c.wide,
        Op::Load(access, guard) => access.start.wide || access.step != 0 || guard.is_some_and(|(c, f)| c.wide || f.wide),
    }
}
