//! One kernel as Cranelift's IR: statements, loops and masks.
//!
//! A vector loop is emitted once, with values of `extent` lanes: a scalar expression is *uniform* (one value for all lanes) or
//! *varying* (pieces, see `function`). A condition that varies becomes a mask, with a branch around code that no lane wants; so code
//! under a mask may read uniform places. A kernel is one function, that of the ABI. Addresses are the business of `access`, integer expressions of
//! `index`, buffers in registers of `registers`.

use crate::function::Fun;
use crate::ops;
use crate::registers::{Place, Uses};
use crate::values::{Bin, Cast, Elem, Operand, Ty, Val};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types;
use cranelift_codegen::ir::{
    AbiParam, AliasRegion, AliasRegionData, BlockArg, Function, InstBuilder, MemFlagsData, Signature, StackSlot, StackSlotData,
    StackSlotKind, UserExternalName, UserFuncName, Value,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Kernel, LoopKind, Space, Stmt};
use infc_kernel::recognised::{Quantised, clamped};
use infc_kernel::target::TargetDesc;
use std::borrow::Cow;
use std::collections::HashMap;

/// One kernel, not compiled yet.
pub struct Written {
    /// The function of the ABI.
    pub function: Function,
    /// Bytes of scratch of one task.
    pub scratch: u64,
}

/// The namespace of kernels among the functions that code names.
const NAMESPACE: u32 = 0;

/// What a loop variable is.
#[derive(Clone, Copy)]
pub(crate) enum Var {
    /// A constant: an unrolled loop.
    Const(i64),
    /// A value: a serial loop.
    Value(Val),
    /// The lane number plus a constant: a vector loop.
    Lane(i64),
    /// Another variable plus a constant: one of several iterations that are written out.
    Step(u32, i64),
}

/// What an instruction stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// A loop over a variable, which runs at least once where it is entered.
    Loop(u32),
    /// What does not run always.
    Branch,
}

/// The variable that stands for the lane number in resolved expressions.
pub(crate) const LANE: u32 = u32::MAX;

/// The one that stands for the first of several iterations that are written out.
const FIRST: u32 = u32::MAX - 1;

/// Iterations of a loop over the products of a tile that are written out: together they have so many products of vectors at most. The results of an iteration are moved to
/// where those of the one before were, which costs more than the loop itself.
const WRITTEN: i64 = 64;

/// The state of emitting one kernel.
pub(crate) struct Emit<'a, 'f> {
    pub f: Fun<'f>,
    pub kernel: &'a Kernel,
    pub vars: HashMap<u32, Var>,
    pub ranges: Ranges,
    pub locals: HashMap<u32, Val>,
    pub symbols: HashMap<&'static str, Val>,
    /// Where each buffer is.
    pub places: Vec<Option<Place>>,
    /// How `Reg` buffers are accessed.
    pub uses: Vec<Uses>,
    /// What was seen when the kernel was written the first time.
    seen: Option<&'a [Uses]>,
    /// What tells the accesses to one buffer from those to another: no two overlap.
    pub regions: Vec<AliasRegion>,
    /// Values within the current statement.
    pub memo: HashMap<Scalar, Val>,
    /// Lanes of the vector loop that is open.
    pub lanes: Option<u32>,
    /// Lanes of 32 bits in a register.
    width: i64,
    /// Products of bytes are added up four at a time.
    byte_dot: bool,
    /// They are added as pairs of 16 bits.
    pub byte_pairs: bool,
    /// Lanes that take part, if not all do.
    pub mask: Option<Val>,
    /// Lets that are index expressions.
    pub indices: HashMap<u32, Expr>,
    /// Variables of the open loops, outermost first.
    pub loops: Vec<u32>,
    /// The loops and branches that are open, outermost first.
    pub scopes: Vec<Scope>,
    /// Stack memory of `Reg` buffers.
    stack: HashMap<usize, StackSlot>,
    /// Where tiles lie in the scratch memory, which has so many bytes.
    tiles: HashMap<usize, u64>,
    scratch: u64,
    /// Parameters of the function.
    scratch_base: Value,
    begin: Value,
    end: Value,
    /// Memory for reads and stores that must not happen, and its size.
    nowhere: [Option<(StackSlot, u32)>; 2],
}

/// Writes kernel number `number` for the machine.
pub fn kernel(kernel: &Kernel, number: usize, target: &TargetDesc, config: TargetFrontendConfig) -> Result<Written, Fault> {
    let registers = kernel.buffers.iter().any(|b| b.space == Space::Reg);
    let seen = if registers { Some(written(kernel, number, target, config, None)?.1) } else { None };
    Ok(written(kernel, number, target, config, seen.as_deref())?.0)
}

fn written(
    kernel: &Kernel,
    number: usize,
    target: &TargetDesc,
    config: TargetFrontendConfig,
    seen: Option<&[Uses]>,
) -> Result<(Written, Vec<Uses>), Fault> {
    let mut signature = Signature::new(CallConv::SystemV);
    signature.params = vec![AbiParam::new(types::I64); 5];
    signature.returns = vec![AbiParam::new(types::I64)];
    let name = UserFuncName::User(UserExternalName::new(NAMESPACE, number as u32));
    let mut function = Function::with_name_signature(name, signature);
    let mut context = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut function, &mut context);
    let regions = (0..kernel.buffers.len() as u32)
        .map(|i| {
            let description = Cow::Owned(kernel.buffers[i as usize].name.clone());
            b.func.dfg.alias_regions.insert(AliasRegionData { user_id: i, description })
        })
        .collect();
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    b.seal_block(entry);
    let params = b.block_params(entry).to_vec();
    let mut e = Emit {
        f: Fun::new(b, target.fma, target.arch != "x86_64"),
        kernel,
        vars: HashMap::new(),
        ranges: Ranges::default(),
        locals: HashMap::new(),
        symbols: HashMap::new(),
        places: vec![None; kernel.buffers.len()],
        uses: vec![Uses::default(); kernel.buffers.len()],
        seen,
        regions,
        memo: HashMap::new(),
        lanes: None,
        width: target.lanes(4) as i64,
        byte_dot: target.groups_bytes(),
        byte_pairs: !target.byte_dot && target.byte_pairs,
        mask: None,
        indices: HashMap::new(),
        loops: vec![],
        scopes: vec![],
        stack: HashMap::new(),
        tiles: HashMap::new(),
        scratch: 0,
        scratch_base: params[2],
        begin: params[3],
        end: params[4],
        nowhere: [None; 2],
    };
    e.parameters(params[0], params[1]);
    e.tasks()?;
    let Emit { f, scratch, uses, nowhere, .. } = e;
    f.b.finalize(config);
    for (slot, bytes) in nowhere.into_iter().flatten() {
        function.sized_stack_slots[slot].size = bytes;
    }
    Ok((Written { function, scratch: scratch.next_multiple_of(64) }, uses))
}

impl Emit<'_, '_> {
    /// Loads what the pointers of the ABI lead to.
    fn parameters(&mut self, buffers: Value, extents: Value) {
        let flags = MemFlagsData::new().with_notrap().with_readonly();
        for i in self.kernel.buffers.iter().enumerate().take_while(|(_, b)| b.space == Space::Global).map(|(i, _)| i) {
            let base = self.f.b.ins().load(types::I64, flags, buffers, 8 * i as i32);
            self.places[i] = Some(Place::Memory(base));
        }
        for (i, &symbol) in self.kernel.symbols.iter().enumerate() {
            let value = self.f.b.ins().load(types::I64, flags, extents, 8 * i as i32);
            self.symbols.insert(symbol, Val::one(Elem::I64, value));
        }
    }

    /// The loop over tasks around the body.
    fn tasks(&mut self) -> Result<(), Fault> {
        let (begin, end) = (Val::one(Elem::I64, self.begin), Val::one(Elem::I64, self.end));
        self.ranges.extent(self.kernel.task, self.kernel.tasks);
        self.repeat(self.kernel.task, (begin, end, 1), |e| e.statements(&e.kernel.body))?;
        self.returned(0);
        Ok(())
    }

    fn returned(&mut self, status: i64) {
        let status = self.f.b.ins().iconst(types::I64, status);
        self.f.b.ins().return_(&[status]);
    }

    /// `for var in (begin..end).step_by(step)`, whose range is known already. Returns the first value that is not below the end.
    fn repeat(
        &mut self,
        var: u32,
        (begin, end, step): (Val, Val, i64),
        run: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<Val, Fault> {
        let (head, before, exit) = (self.f.block(), self.f.block(), self.f.block());
        let i = self.f.b.append_block_param(head, types::I64);
        let after = self.f.b.append_block_param(exit, types::I64);
        let first = self.f.value(begin);
        let some = self.f.icmp(IntCC::SignedLessThan, begin, end);
        let none: [BlockArg; 0] = [];
        match some.known() {
            Some(k) if k != 0 => self.f.jump(before, &[]),
            _ => {
                let some = self.f.value(some);
                self.f.b.ins().brif(some, before, &none, exit, &[BlockArg::Value(first)]);
            }
        }
        self.f.begin(before);
        self.f.jump(head, &[first]);
        self.f.b.switch_to_block(head);
        self.vars.insert(var, Var::Value(Val::one(Elem::I64, i)));
        self.loops.push(var);
        self.scopes.push(Scope::Loop(var));
        self.order_registers();
        run(self)?;
        self.scopes.pop();
        self.loops.pop();
        self.vars.remove(&var);
        let next = self.f.b.ins().iadd_imm_s(i, step);
        let end = self.f.value(end);
        let more = self.f.b.ins().icmp(IntCC::SignedLessThan, next, end);
        let again = [BlockArg::Value(next)];
        self.f.b.ins().brif(more, head, &again, exit, &again);
        self.f.b.seal_block(head);
        self.f.begin(exit);
        Ok(Val::one(Elem::I64, after))
    }

    fn statements(&mut self, list: &[Stmt]) -> Result<(), Fault> {
        let open = self.scopes.len();
        for s in list {
            self.memo.clear();
            self.statement(s)?;
            // What comes after a check may not come before it.
            if matches!(s, Stmt::Check { .. }) {
                self.scopes.push(Scope::Branch);
            }
        }
        self.scopes.truncate(open);
        Ok(())
    }

    /// Statements that do not run always.
    fn sometimes(&mut self, list: &[Stmt]) -> Result<(), Fault> {
        self.scopes.push(Scope::Branch);
        let done = self.statements(list);
        self.scopes.pop();
        done
    }

    fn statement(&mut self, s: &Stmt) -> Result<(), Fault> {
        match s {
            Stmt::For { var, extent, kind, body } => self.looped(*var, *extent, *kind, body),
            Stmt::While { cond, body } => self.while_loop(*cond, body),
            Stmt::Let { local, value } => {
                let v = self.scalar(*value)?;
                self.locals.insert(*local, v);
                self.remember_index(*local, *value);
                Ok(())
            }
            Stmt::Store { buffer, index, value } => {
                let v = self.bits(*buffer as usize, *value)?;
                self.store(*buffer as usize, index, v)
            }
            Stmt::Prefetch { buffer, index } => self.prefetch(*buffer as usize, index),
            Stmt::Alloc { buffer } => self.alloc(*buffer as usize),
            Stmt::If { cond, then, otherwise } => self.branch(*cond, then, otherwise),
            Stmt::Check { cond, code } => self.check(*cond, *code),
        }
    }

    /// A value as it lies in the memory of a buffer.
    fn bits(&mut self, buffer: usize, value: Scalar) -> Result<Val, Fault> {
        if let Kind::Bitcast(bits) = value.kind()
            && value.dtype().bytes() == 2
            && bits.dtype().is_int()
        {
            return self.scalar(*bits);
        }
        let v = self.scalar(value)?;
        Ok(ops::to_memory(&mut self.f, self.kernel.buffers[buffer].dtype, v))
    }

    fn looped(&mut self, var: u32, extent: Expr, kind: LoopKind, body: &[Stmt]) -> Result<(), Fault> {
        let extent = self.resolve(extent);
        if let Some(n) = extent.known()
            && n <= 1
        {
            return if n == 1 { self.with_var(var, extent, Var::Const(0), |e| e.statements(body)) } else { Ok(()) };
        }
        let constant = || extent.known().ok_or_else(|| fault!("the extent of i{var} is not constant: {extent}"));
        match kind {
            LoopKind::Unroll => {
                for i in 0..constant()? {
                    self.with_var(var, extent, Var::Const(i), |e| e.statements(body))?;
                }
                Ok(())
            }
            LoopKind::Vector if self.lanes.is_none() => self.vector(var, constant()?, body),
            // A vector loop inside another one: its lanes one after another.
            LoopKind::Serial | LoopKind::Parallel | LoopKind::Vector => self.serial(var, extent, body),
            // What a GPU does side by side.
            LoopKind::Thread | LoopKind::Warp | LoopKind::Matrix => self.serial(var, extent, body),
        }
    }

    /// A vector loop; an extent that is no power of two in pieces, since registers are.
    fn vector(&mut self, var: u32, extent: i64, body: &[Stmt]) -> Result<(), Fault> {
        let mut at = 0;
        while at < extent {
            let left = extent - at;
            let piece = if extent.count_ones() == 1 { extent } else { self.width.min(1 << left.ilog2()) };
            if piece == 1 {
                self.with_var(var, Expr::int(1), Var::Const(at), |e| e.statements(body))?;
            } else {
                self.lanes = Some(u32::try_from(piece).map_err(|_| fault!("a vector loop of {extent} lanes"))?);
                self.ranges.extent(LANE, Expr::int(piece));
                let done = self.with_var(var, Expr::int(extent), Var::Lane(at), |e| e.statements(body));
                self.lanes = None;
                done?;
            }
            at += piece;
        }
        Ok(())
    }

    fn with_var(
        &mut self,
        var: u32,
        extent: Expr,
        value: Var,
        run: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        self.vars.insert(var, value);
        self.ranges.extent(var, extent);
        self.loops.push(var);
        run(self)?;
        self.loops.pop();
        self.vars.remove(&var);
        Ok(())
    }

    fn serial(&mut self, var: u32, extent: Expr, body: &[Stmt]) -> Result<(), Fault> {
        let n = self.uniform_expr(extent)?;
        let together = match self.products(body, 1) {
            Some(products) if products > 0 => [4, 2].into_iter().find(|k| products * k <= WRITTEN).unwrap_or(1),
            _ => 1,
        };
        let mut done = Val::i64(0);
        if together > 1 && extent.known().is_none_or(|n| n >= 2 * together) {
            self.ranges.extent(FIRST, extent - (together - 1));
            let end = self.f.bin(Bin::Sub, n, Val::i64(together - 1));
            let next = self.repeat(FIRST, (done, end, together), |e| {
                for k in 0..together {
                    e.with_var(var, extent, Var::Step(FIRST, k), |e| e.statements(body))?;
                }
                Ok(())
            })?;
            if extent.known().is_some_and(|n| n % together == 0) {
                return Ok(());
            }
            done = match extent.known() {
                Some(n) => Val::i64(n / together * together),
                None => next,
            };
        }
        self.ranges.extent(var, extent);
        self.repeat(var, (done, n, 1), |e| e.statements(body)).map(|_| ())
    }

    /// How many values for buffers in registers these statements make, if that is all that they do. The innermost loop of a product is such a list.
    fn products(&self, list: &[Stmt], times: i64) -> Option<i64> {
        let mut sum = 0;
        for s in list {
            sum += match s {
                Stmt::For { kind: LoopKind::Unroll, extent, body, .. } => self.products(body, times * extent.known()?)?,
                Stmt::For { kind: LoopKind::Vector, extent, body, .. } if self.lanes.is_none() => {
                    self.products(body, times * ((extent.known()? + self.width - 1) / self.width))?
                }
                Stmt::Store { buffer, .. } if matches!(self.places[*buffer as usize], Some(Place::Registers(_))) => times,
                Stmt::Let { .. } | Stmt::Prefetch { .. } => 0,
                _ => return None,
            };
        }
        Some(sum)
    }

    fn while_loop(&mut self, cond: Scalar, body: &[Stmt]) -> Result<(), Fault> {
        let (head, inside, exit) = (self.f.block(), self.f.block(), self.f.block());
        self.f.jump(head, &[]);
        self.f.b.switch_to_block(head);
        self.memo.clear();
        let c = self.scalar(cond)?;
        if !c.uniform() {
            return Err(fault!("the condition of a while loop differs between lanes: {cond}"));
        }
        self.f.branch(c, inside, exit);
        self.f.begin(inside);
        self.sometimes(body)?;
        self.f.jump(head, &[]);
        self.f.b.seal_block(head);
        self.f.begin(exit);
        Ok(())
    }

    fn branch(&mut self, cond: Scalar, then: &[Stmt], otherwise: &[Stmt]) -> Result<(), Fault> {
        let c = self.scalar(cond)?;
        match c.known() {
            Some(0) => return self.statements(otherwise),
            Some(_) => return self.statements(then),
            None => {}
        }
        if c.uniform() {
            let (yes, no, exit) = (self.f.block(), self.f.block(), self.f.block());
            self.f.branch(c, yes, no);
            for (block, body) in [(yes, then), (no, otherwise)] {
                self.f.begin(block);
                self.sometimes(body)?;
                self.f.jump(exit, &[]);
            }
            self.f.begin(exit);
            return Ok(());
        }
        let outer = self.mask;
        let not = self.f.not(c);
        for (side, body) in [(c, then), (not, otherwise)] {
            if body.is_empty() {
                continue;
            }
            let mask = match outer {
                Some(m) => self.f.bin(Bin::And, m, side),
                None => side,
            };
            let any = self.f.any(mask);
            let (inside, exit) = (self.f.block(), self.f.block());
            self.f.branch(any, inside, exit);
            self.f.begin(inside);
            self.mask = Some(mask);
            let done = self.sometimes(body);
            self.mask = outer;
            done?;
            self.f.jump(exit, &[]);
            self.f.begin(exit);
        }
        Ok(())
    }

    fn check(&mut self, cond: Scalar, code: u32) -> Result<(), Fault> {
        let c = self.scalar(cond)?;
        let mut bad = self.f.not(c);
        if let Some(mask) = self.mask {
            bad = self.f.bin(Bin::And, bad, mask);
        }
        let any = self.f.any(bad);
        if any.known() == Some(0) {
            return Ok(());
        }
        let (fail, good) = (self.f.block(), self.f.block());
        self.f.branch(any, fail, good);
        self.f.begin(fail);
        self.f.b.set_cold_block(fail);
        self.returned(i64::from(code) + 1);
        self.f.begin(good);
        Ok(())
    }

    fn alloc(&mut self, buffer: usize) -> Result<(), Fault> {
        let b = &self.kernel.buffers[buffer];
        let span = self.resolve(b.span()).known();
        let span = span.ok_or_else(|| fault!("buffer '{}' has no constant size", b.name))?;
        let elem = ops::memory_elem(b.dtype)?;
        let bytes = span.max(1) as u64 * u64::from(elem.bits() / 8);
        let each = self.seen.and_then(|seen| seen[buffer].each(elem, span));
        let place = match (b.space, self.places[buffer].clone()) {
            // An unrolled copy of the same Alloc: the contents are undefined.
            (Space::Reg, Some(Place::Registers(registers))) => {
                self.define(&registers, elem);
                Place::Registers(registers)
            }
            (Space::Reg, None) if let Some(each) = each => Place::Registers(self.registers(buffer, elem, span, each)),
            (Space::Reg, _) => {
                let bytes = u32::try_from(bytes).map_err(|_| fault!("buffer '{}' is too large", b.name))?;
                let slot = self.stack.get(&buffer).copied().unwrap_or_else(|| {
                    self.f.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4))
                });
                self.stack.insert(buffer, slot);
                Place::Memory(self.f.b.ins().stack_addr(types::I64, slot, 0))
            }
            (Space::Tile, _) => {
                let at = self.tiles.get(&buffer).copied().unwrap_or_else(|| {
                    let at = self.scratch.next_multiple_of(64);
                    self.scratch = at + bytes;
                    at
                });
                self.tiles.insert(buffer, at);
                Place::Memory(self.f.b.ins().iadd_imm_s(self.scratch_base, at as i64))
            }
            (Space::Global | Space::Shared, _) => return Err(fault!("buffer '{}' cannot be allocated on a CPU", b.name)),
        };
        self.places[buffer] = Some(place);
        Ok(())
    }

    /// The value of a scalar; uniform unless it depends on the lane.
    pub fn scalar(&mut self, s: Scalar) -> Result<Val, Fault> {
        if let Some(&v) = self.memo.get(&s) {
            return Ok(v);
        }
        let v = match s.kind() {
            Kind::Const(bits) => ops::constant(s.dtype(), *bits)?,
            Kind::Index(e) => {
                let e = self.resolve(*e);
                self.expr(e)?
            }
            Kind::Read { source, index, guard } => self.read(*source as usize, index, *guard)?,
            Kind::Local(n) => *self.locals.get(n).ok_or_else(|| fault!("t{n} is used before its Let"))?,
            Kind::Unary(op, a) => {
                let x = self.scalar(*a)?;
                ops::unary(&mut self.f, *op, a.dtype(), x)?
            }
            Kind::Binary(op, a, b) => match self.index_comparison(*op, *a, *b)? {
                Some(v) => v,
                None => {
                    let add = self.byte_dot && *op == Binary::Add && s.dtype() == DType::I32;
                    match if add { self.dot(s)? } else { None } {
                        Some(v) => v,
                        None => {
                            let (x, y) = (self.scalar(*a)?, self.scalar(*b)?);
                            ops::binary(&mut self.f, *op, a.dtype(), x, y)?
                        }
                    }
                }
            },
            Kind::Fma(a, b, c) => {
                let (x, y, z) = (self.scalar(*a)?, self.scalar(*b)?, self.scalar(*c)?);
                ops::fma(&mut self.f, s.dtype(), x, y, z)?
            }
            Kind::Select(c, a, b) => {
                let c = self.scalar(*c)?;
                match c.known() {
                    Some(0) => self.scalar(*b)?,
                    Some(_) => self.scalar(*a)?,
                    None => {
                        let (x, y) = (self.scalar(*a)?, self.scalar(*b)?);
                        self.f.select(c, x, y)
                    }
                }
            }
            Kind::Cast(a) if let Some(q) = Quantised::of(*a, s.dtype()) => self.quantise(&q, s.dtype())?,
            Kind::Cast(a) if let Some(q) = Quantised::back(*a, s.dtype()) => self.quantise_and_back(&q)?,
            Kind::Cast(a) if let Some((x, hi)) = clamped(*a, s.dtype()) => {
                let x = self.scalar(x)?;
                ops::clamped_to_int(&mut self.f, s.dtype(), x, hi)?
            }
            Kind::Cast(a) => {
                let x = self.scalar(*a)?;
                ops::cast(&mut self.f, a.dtype(), s.dtype(), x)?
            }
            Kind::Bitcast(a) => match a.kind() {
                // Not widened and rounded again.
                Kind::Read { source, index, guard } if a.dtype().bytes() == 2 && s.dtype().is_int() => {
                    let guard = guard.map(|(c, x)| (c, x.bitcast(s.dtype())));
                    self.read_as(s.dtype(), *source as usize, index, guard)?
                }
                _ => {
                    let x = self.scalar(*a)?;
                    ops::bitcast(&mut self.f, a.dtype(), s.dtype(), x)?
                }
            },
        };
        self.memo.insert(s, v);
        Ok(v)
    }

    /// A comparison of index expressions: decided by ranges, or of the difference, with lanes compared in 32 bits.
    fn index_comparison(&mut self, op: Binary, a: Scalar, b: Scalar) -> Result<Option<Val>, Fault> {
        let (Some(x), Some(y), true) = (a.as_index(), b.as_index(), op.is_comparison()) else { return Ok(None) };
        let (x, y) = (self.resolve(x), self.resolve(y));
        let folded = infc_ir::compute::simplify_scalar(Scalar::binary(op, Scalar::index(x), Scalar::index(y)), &self.ranges);
        if let Kind::Const(bits) = folded.kind() {
            return Ok(Some(Val::bool(*bits != 0)));
        }
        let Some(lanes) = self.lanes else { return Ok(None) };
        let Some((step, rest)) = (x - y).affine_in(LANE) else { return Ok(None) };
        // step * lane + rest OP 0, that is step * lane OP -rest, for lanes well within 32 bits.
        if step == 0 || step.saturating_mul(i64::from(lanes)).abs() > 1 << 30 {
            return Ok(None);
        }
        let limit = self.uniform_expr(Expr::int(0) - rest)?;
        let bound = 1i64 << 30;
        let limit = self.f.bin(Bin::SMin, limit, Val::i64(bound + 1));
        let limit = self.f.bin(Bin::SMax, limit, Val::i64(-bound - 1));
        let limit = self.f.cast(Cast::Trunc, limit, Elem::I32);
        let left = Val { ty: Ty::new(Elem::I32, lanes), op: Operand::Lanes(0, step) };
        ops::binary(&mut self.f, op, DType::I32, left, limit).map(Some)
    }

    /// Loop variables that are constants put in, and simplified.
    pub fn resolve(&self, e: Expr) -> Expr {
        e.map(&|leaf| match leaf.node() {
            Node::Var(v) => match self.vars.get(v) {
                Some(Var::Const(c)) => Expr::int(*c),
                Some(Var::Lane(first)) => Expr::var(LANE as usize) + *first,
                Some(Var::Step(first, more)) => Expr::var(*first as usize) + *more,
                _ => leaf,
            },
            _ => leaf,
        })
        .simplify(&self.ranges)
    }

    /// Memory of the stack for reads or stores that must not happen.
    pub fn nowhere_slot(&mut self, bytes: u32, store: bool) -> StackSlot {
        let at = usize::from(store);
        let (slot, size) = self.nowhere[at].unwrap_or_else(|| {
            let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4);
            (self.f.b.create_sized_stack_slot(data), bytes)
        });
        self.nowhere[at] = Some((slot, size.max(bytes)));
        slot
    }
}
