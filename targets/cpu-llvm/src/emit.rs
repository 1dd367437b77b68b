//! One kernel as LLVM assembly: statements, loops and masks.
//!
//! A vector loop is emitted once, with values of `extent` lanes: a scalar expression is *uniform* (one LLVM value for all lanes) or
//! *varying* (a vector). A condition that varies becomes a mask, with a branch around code that no lane wants; so code
//! under a mask may read uniform places. Every kernel is two functions: the body, whose parameters are the buffers (`noalias`), and
//! the entry of the ABI, which loads them. Addresses are the business of `access`, integer expressions of `index`.

use crate::arch::Arch;
use crate::helpers::Helper;
use crate::ir::{Elem, Fun, Label, Operand, Ty, Val};
use crate::matrix::Tiles;
use crate::ops;
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Access, Kernel, LoopKind, Space, Stmt};
use infc_kernel::recognised::{Quantised, clamped};
use infc_kernel::target::TargetDesc;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

/// The text of one kernel.
pub struct Text {
    /// Function definitions.
    pub functions: String,
    /// Intrinsics it declares.
    pub declarations: BTreeSet<String>,
    /// Helper functions it calls.
    pub helpers: BTreeSet<Helper>,
    /// Constants in memory.
    pub globals: BTreeSet<String>,
    /// Bytes of scratch of one task.
    pub scratch: u64,
}

/// What a loop variable is.
#[derive(Clone, Copy)]
pub(crate) enum Var {
    /// A constant: an unrolled loop.
    Const(i64),
    /// A value: a serial loop.
    Value(Val),
    /// The lane number plus a constant: a vector loop.
    Lane(i64),
}

/// The variable that stands for the lane number in resolved expressions.
pub(crate) const LANE: u32 = u32::MAX;

/// The state of emitting one kernel.
pub(crate) struct Emit<'a> {
    /// What inline assembly calls the vector registers, where it is needed.
    pub vector_class: Option<&'static str>,
    pub f: Fun,
    pub kernel: &'a Kernel,
    pub vars: HashMap<u32, Var>,
    pub ranges: Ranges,
    pub locals: HashMap<u32, Val>,
    pub symbols: HashMap<&'static str, Val>,
    /// Address of each buffer's first element.
    pub places: Vec<Option<Val>>,
    /// Values within the current statement.
    pub memo: HashMap<Scalar, Val>,
    /// Lanes of the vector loop that is open.
    pub lanes: Option<u32>,
    /// Lanes of 32 bits in a register.
    pub width: i64,
    /// Dot products of bytes are an instruction.
    byte_dot: bool,
    /// Those of unsigned with signed bytes are; those of signed bytes are.
    pub byte_dots: (bool, bool),
    /// They are added as pairs of 16 bits.
    pub byte_pairs: bool,
    /// Dot products of bf16 are an instruction, and so is rounding to it.
    bf16_dot: bool,
    /// Registers that one instruction picks elements from.
    pub tables: u32,
    /// Lanes that take part, if not all do.
    pub mask: Option<Val>,
    /// Lets that are index expressions.
    pub indices: HashMap<u32, Expr>,
    /// Variables of the open loops, outermost first.
    pub loops: Vec<u32>,
    /// Offset in the scratch memory of each tile; they are parameters of the body.
    scratches: Vec<u64>,
    scratch: u64,
    /// Tiles of matrix loops, if the machine has them.
    pub tiles: Tiles,
    matrix: bool,
}

const PTR: Ty = Ty { elem: Elem::Ptr, lanes: 1 };
const I64: Ty = Ty { elem: Elem::I64, lanes: 1 };

/// Prints kernel number `number` for the machine.
pub fn kernel(kernel: &Kernel, number: usize, target: &TargetDesc) -> Result<Text, Fault> {
    let arch = Arch::of(target)?;
    let mut f = Fun::new(arch);
    f.fma = target.fma;
    f.f16c = arch.converts_halves(target);
    f.f16_fma = target.f16_fma;
    let mut e = Emit {
        vector_class: arch.vector_class(),
        f,
        kernel,
        vars: HashMap::new(),
        ranges: Ranges::default(),
        locals: HashMap::new(),
        symbols: HashMap::new(),
        places: vec![None; kernel.buffers.len()],
        memo: HashMap::new(),
        lanes: None,
        width: target.lanes(4) as i64,
        byte_dot: target.groups_bytes(),
        byte_dots: (target.byte_dot, target.byte_dot_signed),
        byte_pairs: !target.byte_dot && target.byte_pairs,
        bf16_dot: target.bf16_dot,
        tables: target.lookup,
        mask: None,
        indices: HashMap::new(),
        loops: vec![],
        scratches: vec![],
        scratch: 0,
        tiles: Tiles::default(),
        matrix: target.tiles(),
    };
    if e.matrix {
        e.tiles = Tiles::of(kernel);
    }
    let parameters = e.parameters()?;
    e.tasks()?;
    let Emit { f, scratch, scratches, tiles, .. } = e;
    let (mut declarations, helpers, mut globals) = (f.declarations.clone(), f.helpers.clone(), f.globals.clone());
    let config = tiles.config().map(|bytes| {
        let bytes: Vec<String> = bytes.iter().map(|b| format!("i8 {b}")).collect();
        let name = format!("@tiles.{number}");
        globals.insert(format!("{name} = private unnamed_addr constant [64 x i8] [{}], align 64", bytes.join(", ")));
        declarations.insert("declare void @llvm.x86.ldtilecfg(ptr)".to_owned());
        declarations.insert("declare void @llvm.x86.tilerelease()".to_owned());
        name
    });
    let mut functions = String::new();
    let mut list: String = parameters.iter().map(|(attributes, name)| format!("ptr {attributes} {name}, ")).collect();
    for i in 0..scratches.len() {
        let _ = write!(list, "ptr noalias align 64 %tile{i}, ");
    }
    list += "ptr noalias readonly align 8 %extents, i64 %begin, i64 %end";
    let _ = writeln!(functions, "define internal i64 @body.{number}({list}) #0 {{\n{}}}", f.finish());
    let _ = writeln!(functions, "{}", entry(number, arch, parameters.len(), &scratches, config.as_deref()));
    Ok(Text { functions, declarations, helpers, globals, scratch: scratch.next_multiple_of(64) })
}

/// The function of the ABI: loads the buffer pointers, and the configuration of tiles if there are any, and calls the body.
fn entry(number: usize, arch: Arch, buffers: usize, scratches: &[u64], config: Option<&str>) -> String {
    let mut text = format!("define i64 @kernel.{number}(ptr %buffers, ptr %extents, ptr %scratch, i64 %begin, i64 %end) #0 {{\n");
    let mut arguments = String::new();
    for i in 0..buffers {
        let _ = writeln!(text, "  %a{i} = getelementptr inbounds ptr, ptr %buffers, i64 {i}");
        let _ = writeln!(text, "  %p{i} = load ptr, ptr %a{i}, align {}", arch.pointer_bytes());
        let _ = write!(arguments, "ptr %p{i}, ");
    }
    for (i, at) in scratches.iter().enumerate() {
        let _ = writeln!(text, "  %s{i} = getelementptr inbounds i8, ptr %scratch, i64 {at}");
        let _ = write!(arguments, "ptr %s{i}, ");
    }
    if let Some(config) = config {
        let _ = writeln!(text, "  call void @llvm.x86.ldtilecfg(ptr {config})");
    }
    let _ = writeln!(text, "  %r = call i64 @body.{number}({arguments}ptr %extents, i64 %begin, i64 %end)");
    if config.is_some() {
        text += "  call void @llvm.x86.tilerelease()\n";
    }
    text + "  ret i64 %r\n}"
}

impl Emit<'_> {
    /// Attributes and names of the buffer parameters; loads the symbols.
    fn parameters(&mut self) -> Result<Vec<(String, String)>, Fault> {
        let mut out = vec![];
        for (i, b) in self.kernel.buffers.iter().enumerate().take_while(|(_, b)| b.space == Space::Global) {
            let align = b.dtype.bytes().clamp(1, 8) as u32;
            let access = match b.access {
                Access::Read => "readonly ",
                Access::Write | Access::ReadWrite => "",
            };
            let name = format!("%b{i}");
            let base = self.f.named(PTR, &name);
            self.places[i] = Some(base);
            out.push((format!("noalias {access}align {align}"), name));
        }
        let extents = self.f.named(PTR, "%extents");
        for (i, &symbol) in self.kernel.symbols.iter().enumerate() {
            let at = self.f.gep(extents, Elem::I64, Val::i64(i as i64));
            let value = self.f.load(I64, at, 8);
            self.symbols.insert(symbol, value);
        }
        Ok(out)
    }

    /// The loop over tasks around the body.
    fn tasks(&mut self) -> Result<(), Fault> {
        let (begin, end) = (self.f.named(I64, "%begin"), self.f.named(I64, "%end"));
        let (head, latch, exit) = (self.f.label(), self.f.label(), self.f.label());
        let some = self.f.cmp("icmp slt", begin, end);
        let before = self.f.here();
        self.f.br_if(some, head, exit);
        self.f.start(head);
        let next = "%task.next".to_string();
        let task = self.f.phi(I64, &[("%begin".into(), before), (next, latch)]);
        self.vars.insert(self.kernel.task, Var::Value(task));
        self.loops.push(self.kernel.task);
        self.ranges.extent(self.kernel.task, self.kernel.tasks);
        self.statements(&self.kernel.body)?;
        self.f.br(latch);
        self.f.start(latch);
        let t = self.f.o(task);
        self.f.line(format_args!("%task.next = add nuw nsw i64 {t}, 1"));
        self.f.line("%task.more = icmp slt i64 %task.next, %end");
        let more = self.f.named(Ty::new(Elem::I1, 1), "%task.more");
        self.f.br_if(more, head, exit);
        self.f.start(exit);
        self.f.ret(Val::i64(0));
        Ok(())
    }

    fn statements(&mut self, list: &[Stmt]) -> Result<(), Fault> {
        self.tiles.forget();
        let mut rest = list;
        while let Some((s, after)) = rest.split_first() {
            self.memo.clear();
            if !matches!(s, Stmt::For { kind: LoopKind::Matrix, .. }) {
                self.tiles.forget();
            }
            let together = self.interleaved(rest)?;
            if together == 0 {
                self.statement(s)?;
            }
            rest = rest.get(together..).filter(|_| together > 0).unwrap_or(after);
        }
        self.tiles.forget();
        Ok(())
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
    pub(crate) fn bits(&mut self, buffer: usize, value: Scalar) -> Result<Val, Fault> {
        if self.bf16_dot
            && let Some(bits) = self.rounded(value)?
        {
            return Ok(bits);
        }
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
        if self.matrix && kind == LoopKind::Matrix {
            let rows = extent.known().ok_or_else(|| fault!("the extent of i{var} is not constant: {extent}"))?;
            return self.matrix(var, rows, body);
        }
        if let Some(n) = extent.known()
            && n <= 1
        {
            return if n == 1 { self.with_var(var, extent, Var::Const(0), |e| e.statements(body)) } else { Ok(()) };
        }
        let constant = || extent.known().ok_or_else(|| fault!("the extent of i{var} is not constant: {extent}"));
        match kind {
            LoopKind::Unroll => {
                if self.turned(var, constant()?, body)? {
                    return Ok(());
                }
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

    pub(crate) fn with_var(
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
        let (head, latch, exit) = (self.f.label(), self.f.label(), self.f.label());
        let some = self.f.cmp("icmp sgt", n, Val::i64(0));
        let before = match some.known() {
            Some(_) => {
                let here = self.f.here();
                self.f.br(head);
                here
            }
            None => {
                let here = self.f.here();
                self.f.br_if(some, head, exit);
                here
            }
        };
        self.f.start(head);
        // Names by label: a variable may run in several loops (unrolled copies of one).
        let next = format!("%next.{latch}");
        let i = self.f.phi(I64, &[("0".into(), before), (next.clone(), latch)]);
        self.with_var(var, extent, Var::Value(i), |e| e.statements(body))?;
        self.f.br(latch);
        self.f.start(latch);
        let i = self.f.o(i);
        self.f.line(format_args!("{next} = add nuw nsw i64 {i}, 1"));
        let next = self.f.named(I64, &next);
        let more = self.f.cmp("icmp slt", next, n);
        self.f.br_if(more, head, exit);
        self.f.start(exit);
        Ok(())
    }

    fn while_loop(&mut self, cond: Scalar, body: &[Stmt]) -> Result<(), Fault> {
        let (head, inside, exit) = (self.f.label(), self.f.label(), self.f.label());
        self.f.br(head);
        self.f.start(head);
        self.memo.clear();
        let c = self.scalar(cond)?;
        if !c.uniform() {
            return Err(fault!("the condition of a while loop differs between lanes: {cond}"));
        }
        self.f.br_if(c, inside, exit);
        self.f.start(inside);
        self.statements(body)?;
        self.f.br(head);
        self.f.start(exit);
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
            let (yes, no, exit) = (self.f.label(), self.f.label(), self.f.label());
            self.f.br_if(c, yes, no);
            for (label, body) in [(yes, then), (no, otherwise)] {
                self.f.start(label);
                self.statements(body)?;
                self.f.br(exit);
            }
            self.f.start(exit);
            return Ok(());
        }
        let outer = self.mask;
        let not = self.f.not(c);
        for (side, body) in [(c, then), (not, otherwise)] {
            if body.is_empty() {
                continue;
            }
            let mask = match outer {
                Some(m) => self.f.bin("and", m, side),
                None => side,
            };
            let any = self.f.any(mask);
            let (inside, exit): (Label, Label) = (self.f.label(), self.f.label());
            self.f.br_if(any, inside, exit);
            self.f.start(inside);
            self.mask = Some(mask);
            let done = self.statements(body);
            self.mask = outer;
            done?;
            self.f.br(exit);
            self.f.start(exit);
        }
        Ok(())
    }

    fn check(&mut self, cond: Scalar, code: u32) -> Result<(), Fault> {
        let c = self.scalar(cond)?;
        let mut bad = self.f.not(c);
        if let Some(mask) = self.mask {
            bad = self.f.bin("and", bad, mask);
        }
        let any = self.f.any(bad);
        if any.known() == Some(0) {
            return Ok(());
        }
        let (fail, good) = (self.f.label(), self.f.label());
        self.f.br_if(any, fail, good);
        self.f.start(fail);
        self.f.ret(Val::i64(i64::from(code) + 1));
        self.f.start(good);
        Ok(())
    }

    fn alloc(&mut self, buffer: usize) -> Result<(), Fault> {
        if self.tiles.holds(buffer) {
            return Ok(());
        }
        let b = &self.kernel.buffers[buffer];
        let span = self.resolve(b.span()).known();
        let span = span.ok_or_else(|| fault!("buffer '{}' has no constant size", b.name))?;
        let bytes = span.max(1) as u64 * u64::from(ops::memory_elem(b.dtype)?.bits() / 8);
        let base = match (b.space, self.places[buffer]) {
            // An unrolled copy of the same Alloc: the contents are undefined.
            (Space::Reg | Space::Tile, Some(base)) => base,
            (Space::Reg, _) => self.f.alloca(bytes, 64),
            (Space::Tile, _) => {
                let at = self.scratch.next_multiple_of(64);
                self.scratch = at + bytes;
                self.scratches.push(at);
                self.f.named(PTR, &format!("%tile{}", self.scratches.len() - 1))
            }
            (Space::Global | Space::Shared, _) => return Err(fault!("buffer '{}' cannot be allocated on a CPU", b.name)),
        };
        self.places[buffer] = Some(base);
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
                None if self.byte_dot && *op == Binary::Add && s.dtype() == DType::I32 => match self.dot(s)? {
                    Some(v) => v,
                    None => {
                        let (x, y) = (self.scalar(*a)?, self.scalar(*b)?);
                        ops::binary(&mut self.f, *op, a.dtype(), x, y)?
                    }
                },
                None => {
                    let (x, y) = (self.scalar(*a)?, self.scalar(*b)?);
                    ops::binary(&mut self.f, *op, a.dtype(), x, y)?
                }
            },
            Kind::Fma(a, b, c) => {
                let (x, y, z) = (self.scalar(*a)?, self.scalar(*b)?, self.scalar(*c)?);
                ops::fma(&mut self.f, s.dtype(), x, y, z)?
            }
            Kind::Select(c, a, b) => {
                if self.bf16_dot
                    && let Some(v) = self.pair(s)?
                {
                    self.memo.insert(s, v);
                    return Ok(v);
                }
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
            Kind::Cast(a) if let Some(v) = self.nibble(*a, s.dtype())? => v,
            Kind::Cast(a) => {
                let x = self.scalar(*a)?;
                ops::cast(&mut self.f, a.dtype(), s.dtype(), x)?
            }
            Kind::Bitcast(a) => {
                if self.bf16_dot
                    && s.dtype() == DType::U16
                    && let Some(bits) = self.rounded(*a)?
                {
                    self.memo.insert(s, bits);
                    return Ok(bits);
                }
                match a.kind() {
                    // Not widened and rounded again.
                    Kind::Read { source, index, guard } if a.dtype().bytes() == 2 && s.dtype().is_int() => {
                        let guard = guard.map(|(c, x)| (c, x.bitcast(s.dtype())));
                        self.read_as(s.dtype(), *source as usize, index, guard)?
                    }
                    _ => {
                        let x = self.scalar(*a)?;
                        ops::bitcast(&mut self.f, a.dtype(), s.dtype(), x)?
                    }
                }
            }
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
        let limit = self.f.same("llvm.smin", [limit, Val::i64(bound + 1)]);
        let limit = self.f.same("llvm.smax", [limit, Val::i64(-bound - 1)]);
        let limit = self.f.cast("trunc", limit, Elem::I32);
        let left = Val { ty: Ty::new(Elem::I32, lanes), op: Operand::Lanes(0, step) };
        ops::binary(&mut self.f, op, DType::I32, left, limit).map(Some)
    }

    /// Loop variables that are constants put in, and simplified.
    pub fn resolve(&self, e: Expr) -> Expr {
        e.map(&|leaf| match leaf.node() {
            Node::Var(v) => match self.vars.get(v) {
                Some(Var::Const(c)) => Expr::int(*c),
                Some(Var::Lane(first)) => Expr::var(LANE as usize) + *first,
                _ => leaf,
            },
            _ => leaf,
        })
        .simplify(&self.ranges)
    }
}
