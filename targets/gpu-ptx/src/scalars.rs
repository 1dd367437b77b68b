//! Values of scalar and index expressions in registers.

use crate::asm::{Class, Val};
use crate::emit::{Emit, Key, Place, Var};
use crate::layout::Layout;
use crate::ops;
use infc_ir::expr::Node;
use infc_ir::scalar::Kind;
use infc_ir::{DType, Expr, Fault, Scalar, eval, fault};

impl Emit<'_> {
    pub(crate) fn recall(&self, key: Key) -> Option<Val> {
        self.known.iter().rev().find_map(|m| m.get(&key).copied())
    }
    pub(crate) fn remember(&mut self, key: Key, v: Val) {
        self.known.last_mut().expect("a list is open").insert(key, v);
    }

    /// Does it read memory?
    fn reads_memory(&mut self, s: Scalar) -> bool {
        if let Some(&r) = self.reads.get(&s) {
            return r;
        }
        let r = matches!(s.kind(), Kind::Read { .. }) || s.operands().into_iter().any(|o| self.reads_memory(o));
        self.reads.insert(s, r);
        r
    }

    /// The value of a scalar.
    pub(crate) fn scalar(&mut self, s: Scalar) -> Result<Val, Fault> {
        match s.kind() {
            Kind::Const(bits) => return ops::constant(&mut self.a, s.dtype(), *bits),
            Kind::Index(e) => return self.expr(*e),
            Kind::Local(n) => return self.locals.get(n).copied().ok_or_else(|| fault!("local t{n} has no value")),
            _ => {}
        }
        if !self.reads_memory(s) {
            if let Some(v) = self.recall(Key::Scalar(s)) {
                return Ok(v);
            }
            let v = self.compute(s)?;
            self.remember(Key::Scalar(s), v);
            return Ok(v);
        }
        let key = (s, self.guard);
        if let Some(&v) = self.read.get(&key) {
            return Ok(v);
        }
        let v = self.compute(s)?;
        self.read.insert(key, v);
        Ok(v)
    }

    fn compute(&mut self, s: Scalar) -> Result<Val, Fault> {
        match s.kind() {
            Kind::Const(_) | Kind::Index(_) | Kind::Local(_) => self.scalar(s),
            Kind::Read { source, index, guard } => self.load(*source as usize, index, *guard, s.dtype()),
            Kind::Unary(op, x) => {
                let v = self.scalar(*x)?;
                ops::unary(&mut self.a, *op, x.dtype(), v)
            }
            Kind::Binary(op, x, y) => {
                // Most are tests whether an index is inside.
                if op.is_comparison()
                    && let (Some(i), Some(j)) = (self.small_index(*x), self.small_index(*y))
                {
                    let (a, b) = (self.small(i)?, self.small(j)?);
                    return ops::binary(&mut self.a, *op, DType::I32, a, b);
                }
                let (a, b) = (self.scalar(*x)?, self.scalar(*y)?);
                ops::binary(&mut self.a, *op, x.dtype(), a, b)
            }
            Kind::Fma(x, y, z) => {
                let (a, b, c) = (self.scalar(*x)?, self.scalar(*y)?, self.scalar(*z)?);
                ops::fma(&mut self.a, s.dtype(), a, b, c)
            }
            Kind::Select(c, x, y) => {
                let (c, a, b) = (self.scalar(*c)?, self.scalar(*x)?, self.scalar(*y)?);
                ops::select(&mut self.a, s.dtype(), c, a, b)
            }
            Kind::Cast(x) => {
                if let Some(i) = self.small_index(*x) {
                    let v = self.small(i)?;
                    return ops::cast(&mut self.a, DType::I32, s.dtype(), v);
                }
                let v = self.scalar(*x)?;
                ops::cast(&mut self.a, x.dtype(), s.dtype(), v)
            }
            Kind::Bitcast(x) => {
                let v = self.scalar(*x)?;
                ops::bitcast(&mut self.a, x.dtype(), s.dtype(), v)
            }
        }
    }

    /// An element. Where the guard does not hold, no memory is touched; neither is it in the index's own reads.
    fn load(&mut self, buffer: usize, index: &[Scalar], guard: Option<(Scalar, Scalar)>, dtype: DType) -> Result<Val, Fault> {
        let declared = self.kernel.buffers[buffer].dtype;
        if declared != dtype {
            return Err(fault!("buffer '{}' is {declared}, it is read as {dtype}", self.kernel.buffers[buffer].name));
        }
        let outer = self.guard;
        let mut fallback = None;
        if let Some((cond, value)) = guard {
            let cond = self.scalar(cond)?;
            fallback = Some((cond, value));
            self.guard = Some(match outer {
                None => cond,
                Some(o) => self.a.row("and", "pred", &[o, cond])?,
            });
        }
        let value = self.element(buffer, index, dtype, fallback.and_then(|(_, f)| constant_bits(f)));
        self.guard = outer;
        let value = value?;
        match fallback {
            Some((cond, f)) if constant_bits(f).is_none() || matches!(self.places[buffer], Place::Registers(_)) => {
                let f = self.scalar(f)?;
                ops::select(&mut self.a, dtype, cond, value, f)
            }
            _ => Ok(value),
        }
    }

    /// The element, under the guard; `otherwise` are its bits in memory where that does not hold.
    fn element(&mut self, buffer: usize, index: &[Scalar], dtype: DType, otherwise: Option<u64>) -> Result<Val, Fault> {
        if let Place::Registers(_) = self.places[buffer] {
            let v = self.register(buffer, index)?;
            if self.layouts[buffer] == Layout::Lane {
                return self.from_lane(v, index[index.len() - 1]);
            }
            return Ok(self.a.copied(v));
        }
        if !self.ahead.is_empty()
            && let Some(offset) = self.offset(buffer, index)
            && let Some(&raw) = self.ahead.get(&(buffer as u32, offset))
        {
            return ops::from_memory(&mut self.a, dtype, raw);
        }
        let (space, address) = self.address(buffer, index)?;
        let ty = ops::memory_type(dtype)?;
        let raw = self.a.fresh(if dtype.bytes() == 8 { Class::Q } else { Class::R });
        match self.guard {
            None => self.a.line(format_args!("ld.{space}.{ty} {raw}, {address}")),
            Some(g) => {
                let start = self.a.constant(raw.class, otherwise.unwrap_or(0));
                self.a.copy(raw, start);
                self.a.line(format_args!("@{g} ld.{space}.{ty} {raw}, {address}"));
            }
        }
        ops::from_memory(&mut self.a, dtype, raw)
    }

    /// The index expression that a scalar is, if 32 bits are enough for it.
    fn small_index(&self, s: Scalar) -> Option<Expr> {
        let e = match s.kind() {
            Kind::Index(e) => self.resolve(*e),
            Kind::Const(_) if s.dtype() == DType::I64 && !self.is_tight() => Expr::int(s.as_int()?),
            _ => return None,
        };
        self.is_small(e).then_some(e)
    }

    /// Do signed 32 bits hold the value and that of each part? Then [`Emit::small`] computes it with half the registers.
    pub(crate) fn is_small(&self, e: Expr) -> bool {
        let r = e.range(&self.ranges);
        let fits = |c: i64| i32::try_from(c).is_ok();
        if !fits(r.lo) || !fits(r.hi) {
            return false;
        }
        match e.node() {
            Node::Const(_) | Node::Var(_) | Node::Sym(_) => true,
            Node::Sum { terms, constant } => fits(*constant) && terms.iter().all(|(t, c)| fits(*c) && self.is_small(*t)),
            Node::Product(factors) => factors.iter().all(|f| self.is_small(*f)),
            // Division of numbers that are not negative, by ones that are not 0.
            Node::Div(a, b) | Node::Mod(a, b) => {
                a.range(&self.ranges).lo >= 0 && b.range(&self.ranges).lo > 0 && self.is_small(*a) && self.is_small(*b)
            }
            Node::Min(a, b) | Node::Max(a, b) => self.is_small(*a) && self.is_small(*b),
        }
    }

    /// The value of an index expression for which [`Emit::is_small`] holds, in 32 bits. Sums may leave them on the way and come back.
    pub(crate) fn small(&mut self, e: Expr) -> Result<Val, Fault> {
        let e = self.resolve(e);
        if let Node::Const(c) = e.node() {
            return Ok(self.a.r(*c as i32 as u32));
        }
        if let Node::Var(v) = e.node()
            && let Some(Var::Reg(r)) = self.vars.get(v)
            && r.class == Class::R
        {
            return Ok(*r);
        }
        if let Some(v) = self.recall(Key::Small(e)) {
            return Ok(v);
        }
        let v = match e.node() {
            Node::Const(_) | Node::Var(_) | Node::Sym(_) => {
                let v = self.leaf(e)?;
                self.a.row("to_32", "u64", &[v])?
            }
            Node::Sum { terms, constant } => {
                let mut acc = (*constant != 0 || terms.is_empty()).then(|| self.a.r(*constant as i32 as u32));
                for &(t, c) in terms {
                    let mut v = self.small(t)?;
                    if c != 1 {
                        let c = self.a.r(c as i32 as u32);
                        v = self.a.row("mul", "s32", &[v, c])?;
                    }
                    acc = Some(match acc {
                        None => v,
                        Some(x) => self.a.row("add", "s32", &[x, v])?,
                    });
                }
                acc.ok_or_else(|| fault!("a sum of nothing"))?
            }
            Node::Product(factors) => {
                let mut acc = self.small(factors[0])?;
                for &f in &factors[1..] {
                    let f = self.small(f)?;
                    acc = self.a.row("mul", "s32", &[acc, f])?;
                }
                acc
            }
            Node::Div(a, b) | Node::Mod(a, b) => {
                let quotient = matches!(e.node(), Node::Div(..));
                let x = self.small(*a)?;
                match b.known() {
                    // `ptxas` sees no constant in a register.
                    Some(n) if !self.is_tight() => self.by_constant(x, quotient, n),
                    _ => {
                        let y = self.small(*b)?;
                        self.a.row(if quotient { "quotient" } else { "remainder" }, "u32", &[x, y])?
                    }
                }
            }
            Node::Min(a, b) => {
                let (a, b) = (self.small(*a)?, self.small(*b)?);
                self.a.row("min", "s32", &[a, b])?
            }
            Node::Max(a, b) => {
                let (a, b) = (self.small(*a)?, self.small(*b)?);
                self.a.row("max", "s32", &[a, b])?
            }
        };
        self.remember(Key::Small(e), v);
        Ok(v)
    }

    /// Have threads all registers that `ptxas` leaves them for sums of their own? With shorter arithmetic of indices it orders instructions in another way, and spills.
    fn is_tight(&self) -> bool {
        self.layouts.contains(&Layout::Thread)
    }

    /// Quotient or remainder of a number that is not negative by a constant, in 32 bits.
    fn by_constant(&mut self, x: Val, quotient: bool, n: i64) -> Val {
        let d = self.a.fresh(Class::R);
        match (quotient, n > 0 && n & (n - 1) == 0) {
            (true, true) => self.a.line(format_args!("shr.u32 {d}, {x}, {}", n.trailing_zeros())),
            (false, true) => self.a.line(format_args!("and.b32 {d}, {x}, {}", n - 1)),
            (true, false) => self.a.line(format_args!("div.u32 {d}, {x}, {n}")),
            (false, false) => self.a.line(format_args!("rem.u32 {d}, {x}, {n}")),
        }
        d
    }

    /// The low 32 bits of an index expression.
    pub(crate) fn low(&mut self, e: Expr) -> Result<Val, Fault> {
        let e = self.resolve(e);
        if self.is_small(e) {
            return self.small(e);
        }
        let v = self.expr(e)?;
        self.a.row("to_32", "u64", &[v])
    }

    /// Is it a variable in a register of 64 bits?
    fn is_wide_variable(&self, e: Expr) -> bool {
        matches!(e.node(), Node::Var(v) if !matches!(self.vars.get(v), Some(Var::Reg(r)) if r.class == Class::R))
    }

    /// The 64-bit value of a symbol or variable that has one.
    fn leaf(&mut self, e: Expr) -> Result<Val, Fault> {
        match e.node() {
            Node::Sym(s) => self.symbols.get(s).copied().ok_or_else(|| fault!("the symbol {s} has no value")),
            Node::Var(v) => match self.vars.get(v) {
                Some(Var::Reg(r)) if r.class == Class::R => Err(fault!("the variable i{v} has 32 bits")),
                Some(Var::Reg(r)) => Ok(*r),
                Some(Var::Const(c)) => Ok(self.a.q(*c)),
                Some(Var::Expr(e)) => Err(fault!("the variable i{v} is {e}, which is not resolved")),
                None => Err(fault!("the variable i{v} has no value")),
            },
            _ => Err(fault!("{e} is no symbol and no variable")),
        }
    }

    /// The value of an index expression, 64 bits.
    pub(crate) fn expr(&mut self, e: Expr) -> Result<Val, Fault> {
        let e = self.resolve(e);
        if let Node::Const(c) = e.node() {
            return Ok(self.a.q(*c));
        }
        if let Some(v) = self.recall(Key::Expr(e)) {
            return Ok(v);
        }
        if self.is_small(e) && !matches!(e.node(), Node::Sym(_)) && !self.is_wide_variable(e) {
            let v = self.small(e)?;
            let ty = if e.range(&self.ranges).lo < 0 { "s32" } else { "u32" };
            let v = self.a.row("to_64", ty, &[v])?;
            self.remember(Key::Expr(e), v);
            return Ok(v);
        }
        if matches!(e.node(), Node::Sym(_) | Node::Var(_)) {
            return self.leaf(e);
        }
        let wild = e.is_wild();
        let (add, mul) = if wild { ("add_sat", "mul_sat") } else { ("add", "mul") };
        let v = match e.node() {
            Node::Const(_) | Node::Sym(_) | Node::Var(_) => unreachable!("handled above"),
            Node::Sum { terms, constant } => {
                let mut acc: Option<Val> = None;
                for &(t, c) in terms {
                    let mut v = self.expr(t)?;
                    if c != 1 {
                        let c = self.a.q(c);
                        v = self.a.row(mul, "s64", &[v, c])?;
                    }
                    acc = Some(match acc {
                        None => v,
                        Some(x) => self.a.row(add, "s64", &[x, v])?,
                    });
                }
                let c = self.a.q(*constant);
                match acc {
                    None => c,
                    Some(v) if *constant == 0 => v,
                    Some(v) => self.a.row(add, "s64", &[v, c])?,
                }
            }
            Node::Product(factors) => {
                let mut acc = self.expr(factors[0])?;
                for &f in &factors[1..] {
                    let f = self.expr(f)?;
                    acc = self.a.row(mul, "s64", &[acc, f])?;
                }
                acc
            }
            Node::Div(a, b) => self.divide("quotient", *a, *b)?,
            Node::Mod(a, b) => self.divide("remainder", *a, *b)?,
            Node::Min(a, b) => {
                let (a, b) = (self.expr(*a)?, self.expr(*b)?);
                self.a.row("min", "s64", &[a, b])?
            }
            Node::Max(a, b) => {
                let (a, b) = (self.expr(*a)?, self.expr(*b)?);
                self.a.row("max", "s64", &[a, b])?
            }
        };
        self.remember(Key::Expr(e), v);
        Ok(v)
    }

    /// Division towards minus infinity; by zero 0.
    fn divide(&mut self, op: &str, a: Expr, b: Expr) -> Result<Val, Fault> {
        let (x, y) = (self.expr(a)?, self.expr(b)?);
        let (ra, rb) = (a.range(&self.ranges), b.range(&self.ranges));
        if ra.lo >= 0 && rb.lo > 0 {
            let small = ra.hi < 1 << 31 && rb.hi < 1 << 31;
            return self.a.row(&format!("{op}{}", if small { "32" } else { "" }), "s64", &[x, y]);
        }
        let op = if op == "quotient" { "floordiv" } else { "mod" };
        self.a.row(op, "s64", &[x, y])
    }
}

/// The bits in memory of a constant.
pub(crate) fn constant_bits(s: Scalar) -> Option<u64> {
    match s.kind() {
        Kind::Const(bits) => {
            let bits = eval::to_memory(s.dtype(), *bits);
            // As a load extends them.
            let signed = s.dtype().is_signed() && s.dtype().bytes() < 4;
            Some(if signed { eval::from_memory(s.dtype(), bits) & 0xffff_ffff } else { bits })
        }
        _ => None,
    }
}
