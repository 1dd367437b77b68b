//! One kernel as an `.entry`: tasks, loops and statements. What is computed in them is the business of `scalars`.

use crate::Map;
use crate::asm::{Asm, Class, Val};
use crate::group::{CLUSTER, Ring, Role};
use crate::layout::{self, Layout, Mode};
use crate::ops;
use crate::pipeline::Pipeline;
use crate::wide::SHARED_ROW;
use infc_ir::expr::{Node, Ranges};
use infc_ir::{Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Access, Kernel, LoopKind, Space, Stmt};
use std::collections::{HashMap, HashSet};

/// A printed kernel.
pub struct Entry {
    /// Its text.
    pub text: String,
    /// Bytes of global memory that each thread needs for itself.
    pub scratch: u64,
    /// Who takes a task.
    pub block: Block,
    /// Bytes of shared memory that the launch gives it.
    pub shared: u64,
    /// Its matrix instructions take bytes with and without sign.
    pub mixed: bool,
    /// Tensor maps that it takes behind its other parameters.
    pub maps: Vec<Map>,
    /// Blocks of a cluster.
    pub cluster: u32,
}

/// Who takes a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// A thread.
    Threads,
    /// The threads of a warp together.
    Warps(u32),
    /// A block of so many threads.
    Block(u32),
}

/// A loop variable.
#[derive(Clone, Copy)]
pub(crate) enum Var {
    Const(i64),
    Reg(Val),
    /// Follows from other variables: of lanes.
    Expr(Expr),
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
    /// In 64 bits.
    Expr(Expr),
    /// In 32 bits.
    Small(Expr),
    /// Such an offset in a swizzled tile.
    Swizzled(Expr),
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
    /// Who takes a task.
    pub mode: Mode,
    /// How the elements of each buffer are shared out.
    pub layouts: Vec<Layout>,
    /// Row, column and number of the element of a matrix tile that is being computed.
    pub fragment: Option<(u32, u32, usize)>,
    /// Parts of matrix tiles in registers, by buffer and place.
    pub parts: HashMap<(u32, Expr, bool), Vec<Val>>,
    /// Shared buffers read and written since the last barrier.
    pub touched: [HashSet<u32>; 2],
    /// Elements of parameters that were read several at once, by their offset.
    pub ahead: HashMap<(u32, Expr), Val>,
    /// Where elements are put instead of memory, to be stored several at once.
    pub behind: Option<Vec<Val>>,
    /// Copies into shared memory may be under way.
    pub copying: bool,
    /// Buffers' first elements are at multiples of 16 bytes, where this holds.
    pub aligned: HashMap<u32, Val>,
    /// Lanes, threads or warps of an open loop do different things.
    pub side_by_side: bool,
    /// A condition that may differ between them is open.
    pub divergent: bool,
    /// The slots of the tiles of warpgroups, and what this code's threads do with them.
    pub ring: Option<Ring>,
    /// The slots of tiles that all threads of a block fill and multiply.
    pub pipeline: Option<Pipeline>,
    /// Parameters that are at multiples of 16 bytes for certain.
    pub certain: HashSet<u32>,
    /// Tiles are made of what was read into registers a multiplication before.
    pub widens: bool,
    /// Shared memory is that of the launch: it is more than a block has without being asked.
    launch_shares: bool,
    pub role: Option<Role>,
    /// The mbarrier that says that the slot at hand is full.
    pub full: Option<Val>,
    /// Loops over lanes are no copies of 16 bytes.
    pub by_elements: bool,
    /// Tiles are told of some time after they were asked for.
    pub late: bool,
    /// Matrix instructions of warpgroups take bytes with and without sign.
    pub mixed: bool,
    /// Tensor maps that the kernel takes behind its other parameters, whose names begin with this.
    pub maps: Vec<Map>,
    /// Two blocks are a cluster.
    pub cluster: bool,
    name: &'a str,
    shared: u64,
    /// Holds in the first lane of a warp.
    pub first_lane: Option<Val>,
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

/// The most lanes of a vector loop that is written out.
const MOST_LANES: i64 = 16;

/// Shared memory that every GPU has for a block without being asked.
const SHARED: u64 = 48 << 10;

/// Prints a kernel as entry `name`, whose blocks may have so many bytes of shared memory.
pub fn entry<'a>(kernel: &'a Kernel, name: &'a str, most_shared: u64) -> Result<Entry, Fault> {
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
        mode: layout::mode(kernel)?,
        layouts: layout::layouts(kernel),
        fragment: None,
        parts: HashMap::new(),
        touched: [HashSet::new(), HashSet::new()],
        ahead: HashMap::new(),
        behind: None,
        copying: false,
        aligned: HashMap::new(),
        side_by_side: false,
        divergent: false,
        ring: None,
        pipeline: Pipeline::of(kernel, most_shared),
        certain: HashSet::new(),
        widens: false,
        launch_shares: false,
        role: None,
        full: None,
        by_elements: false,
        late: false,
        mixed: false,
        maps: vec![],
        cluster: false,
        name,
        shared: 0,
        first_lane: None,
        error,
        scratch_base,
        scratch: 0,
        end: "END".into(),
    };
    let shared: u64 = (0..kernel.buffers.len() as u32).filter_map(|k| e.shared_bytes(k)).sum();
    if shared > most_shared && layout::ring(kernel).is_none() {
        return Err(fault!("{shared} bytes of shared memory, a block has {most_shared} at most"));
    }
    e.launch_shares = shared > SHARED;
    let mut parameters = e.parameters(name);
    e.choose_registers();
    e.tasks()?;
    // Sums of a thread's own beside indices of 64 bits.
    let by_threads = e.layouts.contains(&Layout::Thread) && e.pipeline.is_some();
    let long = !e.is_small(kernel.tasks) && e.layouts.contains(&Layout::Thread);
    parameters.extend((0..e.maps.len()).map(|k| format!(".param .align 64 .b8 {}[128]", e.map_name(k))));
    let Emit { a, scratch, mode, shared, mixed, maps, cluster, widens, .. } = e;
    let cluster = if cluster { CLUSTER as u32 } else { 1 };
    let list = parameters.join(",\n\t");
    let body = a.finish();
    let (block, limit) = match mode {
        Mode::Threads => (Block::Threads, String::new()),
        Mode::Warps => {
            // Those that are alone in their block may have many registers: what a row needs is under way at once.
            let n = crate::threads_of_warps(kernel);
            (Block::Warps(n), if n == 32 { ".reqntid 32\n.minnctapersm 8\n".into() } else { String::new() })
        }
        Mode::Block(n) if body.contains("mma.sync") => {
            // Of so few that each has a multiprocessor for itself, one.
            let alone = kernel.tasks.known().is_some_and(|t| t <= MULTIPROCESSORS);
            let least = if alone { 1 } else { blocks_at_once(n, MATRIX_REGISTERS) };
            (Block::Block(n), format!(".reqntid {n}\n.minnctapersm {least}\n"))
        }
        Mode::Block(n) if long && !body.contains("wgmma") => {
            (Block::Block(n), format!(".reqntid {n}\n.minnctapersm {}\n", blocks_at_once(n, LONG_REGISTERS)))
        }
        Mode::Block(n) if by_threads && widens && !body.contains("wgmma") => {
            (Block::Block(n), format!(".reqntid {n}\n.minnctapersm {}\n", blocks_at_once(n, LONG_REGISTERS)))
        }
        // Of larger ones it makes what is best by itself.
        Mode::Block(n) if by_threads && n < 256 && !body.contains("wgmma") => {
            (Block::Block(n), format!(".reqntid {n}\n.minnctapersm {}\n", blocks_at_once(n, THREAD_REGISTERS)))
        }
        Mode::Block(n) if cluster > 1 => {
            (Block::Block(n), format!(".reqntid {n}\n.explicitcluster\n.reqnctapercluster {cluster}\n"))
        }
        Mode::Block(n) => (Block::Block(n), format!(".reqntid {n}\n")),
    };
    let text = format!(".visible .entry {name}(\n\t{list}\n)\n{limit}{{\n{body}\tret;\n}}\n");
    Ok(Entry { text, scratch, block, shared, mixed, maps, cluster })
}

/// Multiprocessors of the largest machine.
const MULTIPROCESSORS: i64 = 132;
/// Registers of a multiprocessor, and those that a thread takes: of a product by matrix instructions, of one by threads, and of one by threads whose number of tasks only
/// the run tells, so that indices have 64 bits, or that widens its factors.
const REGISTERS: f64 = 65536.0;
const MATRIX_REGISTERS: f64 = 168.0;
const THREAD_REGISTERS: f64 = 100.0;
const LONG_REGISTERS: f64 = 128.0;

/// How many blocks of so many threads a multiprocessor should hold at least. Without a word, `ptxas` aims at more, and spills for it.
fn blocks_at_once(threads: u32, own: f64) -> u32 {
    (REGISTERS / (f64::from(threads) * own)).round().max(1.0) as u32
}

/// Is the loop written out?
fn unrolled(kind: LoopKind, extent: Expr) -> bool {
    extent
        .known()
        .is_some_and(|n| n <= 1 || kind == LoopKind::Unroll && n <= MOST_UNROLLED || kind == LoopKind::Vector && n <= MOST_LANES)
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

    /// The parameter that is a tensor map.
    pub(crate) fn map_name(&self, number: usize) -> String {
        format!("{}_map{number}", self.name)
    }

    /// Buffers that are small and only indexed by numbers that are known here.
    fn choose_registers(&mut self) {
        let not = layout::indexed_by_unknowns(self.kernel, &self.layouts, &unrolled);
        for (k, b) in self.kernel.buffers.iter().enumerate() {
            let small = self.layouts[k].own_elements(b).is_some_and(|n| n <= MOST_REGISTERS);
            if matches!(b.space, Space::Reg | Space::Tile) && small && !not.contains(&(k as u32)) {
                self.in_registers.insert(k as u32);
            }
        }
    }

    /// Each thread, warp or block takes tasks as far apart as there are of them.
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
        match self.mode {
            Mode::Threads => {}
            Mode::Warps => {
                a.line(format_args!("shr.u64 {task}, {task}, 5"));
                a.line(format_args!("shr.u64 {stride}, {stride}, 5"));
            }
            Mode::Block(_) => {
                a.line(format_args!("cvt.u64.u32 {task}, {block}"));
                a.line(format_args!("cvt.u64.u32 {stride}, {grid}"));
            }
        }
        if self.mode != Mode::Threads {
            self.lanes(thread);
        }
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
        if self.mode != Mode::Warps && layout::has_lanes(&kernel.body) {
            self.alignment();
        }
        if let Some(ring) = layout::ring(kernel) {
            self.shared = self.roles(ring, [task, tasks, stride])?;
            return Ok(());
        }
        let head = self.a.label();
        let over = self.a.fresh(Class::P);
        self.a.place(&head);
        self.a.line(format_args!("setp.ge.s64 {over}, {task}, {tasks}"));
        let end = self.end.clone();
        self.a.line(format_args!("@{over} bra {end}"));
        self.narrow_task(task)?;
        self.list(&kernel.body)?;
        self.barrier();
        self.a.line(format_args!("add.s64 {task}, {task}, {stride}"));
        self.a.line(format_args!("bra {head}"));
        self.a.place(&end);
        Ok(())
    }

    /// The number of the task in 32 bits, if these hold all of them.
    pub(crate) fn narrow_task(&mut self, task: Val) -> Result<(), Fault> {
        if self.is_small(self.kernel.tasks) {
            let low = self.a.row("to_32", "u64", &[task])?;
            self.vars.insert(self.kernel.task, Var::Reg(low));
        }
        Ok(())
    }

    /// The type of a loop's counter, which gets as far as the extent, with extent and 0 in it.
    pub(crate) fn extent(&mut self, extent: Expr) -> Result<(&'static str, Val, Val), Fault> {
        Ok(match self.is_small(extent) {
            true => ("s32", self.small(extent)?, self.a.r(0)),
            false => ("s64", self.expr(extent)?, self.a.q(0)),
        })
    }

    /// A list of statements; values computed in it are not known after it.
    pub(crate) fn list(&mut self, list: &[Stmt]) -> Result<(), Fault> {
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
        if layout::is_side_by_side(self.mode, kind, extent) && !self.side_by_side {
            return self.together(var, extent, kind, body);
        }
        if self.ring.as_ref().is_some_and(|r| r.loops.var == var) {
            return self.ring_loop(var, extent, body);
        }
        if let Some(pipeline) = self.pipeline.clone().filter(|p| p.loops.var == var) {
            return self.pipelined(&pipeline, extent, body);
        }
        if kind == LoopKind::Matrix {
            return self.matrix(var, body);
        }
        if kind == LoopKind::Vector
            && self.mode == Mode::Threads
            && let Some(wide) = self.wide_accesses(var, extent, body)
        {
            return self.wide(var, extent, &wide, body);
        }
        if kind == LoopKind::Vector
            && self.side_by_side
            && !self.by_elements
            && let Some(copy) = self.wide_copy(var, extent, body)
        {
            return self.copy(var, extent, &copy, body);
        }
        if kind == LoopKind::Vector
            && self.side_by_side
            && !self.by_elements
            && let Some(tile) = self.wide_tile(var, extent, body)
        {
            return self.compute_tile(var, extent, &tile, body);
        }
        if kind == LoopKind::Vector
            && self.side_by_side
            && !(self.by_elements && self.pipeline.is_none())
            && let Some(load) = self.wide_load(var, extent, body)
        {
            return self.load_wide(var, extent, &load);
        }
        if kind == LoopKind::Vector && self.side_by_side && self.is_wide_store(var, extent, body) {
            return self.store_wide(var, extent, body);
        }
        if kind == LoopKind::Vector && self.by_elements && extent.known().is_some_and(|n| n > 1) && !self.fills_registers(body) {
            return self.by_lanes(var, extent, body);
        }
        if unrolled(kind, extent) {
            self.ranges.extent(var, extent);
            let count = extent.known().unwrap_or(0);
            let rows = if kind == LoopKind::Unroll && self.side_by_side { self.shared_rows(var, count, body) } else { vec![] };
            for i in 0..count {
                if i % SHARED_ROW == 0 {
                    self.read_shared_rows(var, i, &rows)?;
                }
                self.vars.insert(var, Var::Const(i));
                self.list(body)?;
            }
            if !rows.is_empty() {
                self.ahead.clear();
            }
            self.vars.remove(&var);
            return Ok(());
        }
        // What is shared between rounds: each begins and ends with nothing open.
        let shares = !self.side_by_side && matches!(self.mode, Mode::Block(_)) && layout::has_side_by_side(self.mode, body);
        if shares {
            self.barrier();
        }
        let parts = std::mem::take(&mut self.parts);
        let (ty, end_value, zero) = self.extent(extent)?;
        let counter = self.a.copied(zero);
        let (head, end, over) = (self.a.label(), self.a.label(), self.a.fresh(Class::P));
        self.a.place(&head);
        // Where nothing is waited for there is nothing to overlap; `ptxas` would write out all stores of nested loops, and spill.
        if !layout::reads(body) {
            self.a.line(format_args!(".pragma \"nounroll\""));
        }
        self.a.line(format_args!("setp.ge.{ty} {over}, {counter}, {end_value}"));
        self.a.line(format_args!("@{over} bra {end}"));
        self.ranges.extent(var, extent);
        self.vars.insert(var, Var::Reg(counter));
        self.list(body)?;
        if shares {
            self.barrier();
        }
        self.parts = parts;
        self.vars.remove(&var);
        self.a.line(format_args!("add.{ty} {counter}, {counter}, 1"));
        self.a.line(format_args!("bra {head}"));
        self.a.place(&end);
        Ok(())
    }

    fn branch(&mut self, cond: Scalar, then: &[Stmt], otherwise: &[Stmt]) -> Result<(), Fault> {
        if let Some(known) = self.simplified(cond).as_int() {
            return self.list(if known != 0 { then } else { otherwise });
        }
        if matches!(self.mode, Mode::Block(_)) && [then, otherwise].iter().any(|l| layout::has_side_by_side(self.mode, l)) {
            return Err(fault!("loops over threads stand under the condition {cond}"));
        }
        let outer = (self.divergent, std::mem::take(&mut self.parts));
        self.divergent |= self.side_by_side;
        let done = self.under(cond, then, otherwise);
        (self.divergent, self.parts) = outer;
        done
    }

    fn under(&mut self, cond: Scalar, then: &[Stmt], otherwise: &[Stmt]) -> Result<(), Fault> {
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
        let layout = self.layouts[buffer as usize];
        self.places[buffer as usize] = match b.space {
            Space::Reg | Space::Tile if self.in_registers.contains(&buffer) => {
                let class = ops::class(b.dtype)?;
                let own = layout.own_elements(b).unwrap_or(0);
                Place::Registers((0..own).map(|_| self.a.fresh(class)).collect())
            }
            // Each thread would have the elements of all.
            Space::Reg | Space::Tile if self.mode != Mode::Threads => {
                return Err(fault!("buffer '{}' fits no registers of the threads that share a task", b.name));
            }
            // They have slots.
            Space::Shared if layout::ring(self.kernel).is_some() => Place::None,
            Space::Shared if matches!(self.mode, Mode::Block(_)) => {
                let bytes = self.shared_bytes(buffer).unwrap_or(bytes);
                let base = self.a.fresh(Class::R);
                if self.launch_shares {
                    self.a.line(format_args!("mov.u32 {base}, ring"));
                    self.a.line(format_args!("add.u32 {base}, {base}, {}", self.shared));
                    self.shared += bytes;
                    self.places[buffer as usize] = Place::Memory("shared", base);
                    return Ok(());
                }
                self.a.declare(format_args!(".shared .align 16 .b8 shared{buffer}[{bytes}]"));
                self.a.line(format_args!("mov.u32 {base}, shared{buffer}"));
                Place::Memory("shared", base)
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

    /// Bytes of a buffer in shared memory, with all its slots.
    fn shared_bytes(&self, buffer: u32) -> Option<u64> {
        let b = &self.kernel.buffers[buffer as usize];
        let own = b.span().known().filter(|_| b.space == Space::Shared)?.max(1) as u64 * b.dtype.bytes() as u64;
        let slots = self.pipeline.as_ref().and_then(|p| Some(p.slots * p.bytes.get(&buffer)?));
        Some(slots.unwrap_or(own).next_multiple_of(16))
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
        if matches!(self.mode, Mode::Block(_)) && !self.side_by_side {
            return Err(fault!("a store to buffer '{}' outside of the loops over threads", b.name));
        }
        let raw = ops::to_memory(&mut self.a, b.dtype, v)?;
        if let Some(list) = &mut self.behind {
            list.push(raw);
            return Ok(());
        }
        let (space, address) = self.address(buffer, index)?;
        let ty = ops::memory_type(b.dtype)?;
        let ty = ty.replace('s', "u");
        match self.first_lane {
            // The lanes have all the same.
            Some(first) if !self.side_by_side => self.a.line(format_args!("@{first} st.{space}.{ty} {address}, {raw}")),
            _ => self.a.line(format_args!("st.{space}.{ty} {address}, {raw}")),
        }
        Ok(())
    }

    /// The register of an element, or the own one of a lane.
    pub(crate) fn register(&mut self, buffer: usize, index: &[Scalar]) -> Result<Val, Fault> {
        let b = &self.kernel.buffers[buffer];
        let (layout, rank) = (self.layouts[buffer], index.len());
        let mut at = Expr::int(0);
        for axis in layout.kept(rank) {
            let e = index[axis].as_index().ok_or_else(|| fault!("an index of buffer '{}' comes from data", b.name))?;
            at = at + self.resolve(e) * b.strides[axis];
        }
        let mut at = at.known().map(|k| k / layout.shared_out(b));
        if layout == Layout::Fragment {
            let tile = |k: usize| index[rank - 2 + k].as_index();
            let (row, column, element) =
                self.fragment.ok_or_else(|| fault!("buffer '{}' is used outside of a matrix loop", b.name))?;
            if tile(0) != Some(Expr::var(row as usize)) || tile(1) != Some(Expr::var(column as usize)) {
                return Err(fault!("an element of buffer '{}' that another lane has", b.name));
            }
            at = at.zip(layout::fragment(b)).map(|(k, own)| own * k + element as i64);
        }
        let Place::Registers(list) = &self.places[buffer] else {
            return Err(fault!("buffer '{}' is used before its memory", b.name));
        };
        at.and_then(|k| list.get(usize::try_from(k).ok()?))
            .copied()
            .ok_or_else(|| fault!("an index of buffer '{}' is outside", b.name))
    }

    /// All registers of the tile of a matrix instruction.
    pub(crate) fn tile(&mut self, buffer: usize, index: &[Scalar], (row, column): (u32, u32)) -> Result<Vec<Val>, Fault> {
        let own = layout::fragment(&self.kernel.buffers[buffer]).unwrap_or(0);
        (0..own as usize)
            .map(|e| {
                self.fragment = Some((row, column, e));
                self.register(buffer, index)
            })
            .collect()
    }

    /// Ends what is open between the threads of a block.
    pub(crate) fn barrier(&mut self) {
        if std::mem::take(&mut self.copying) {
            self.a.line(format_args!("cp.async.wait_all"));
        }
        if self.touched.iter().any(|t| !t.is_empty()) {
            self.a.line(format_args!("bar.sync 0"));
            self.touched = [HashSet::new(), HashSet::new()];
        }
    }

    /// Are the parameters aligned to 16 bytes? Nothing says so before.
    fn alignment(&mut self) {
        for (k, b) in self.kernel.buffers.iter().enumerate() {
            if let (Space::Global, Place::Memory(_, base)) = (b.space, &self.places[k]) {
                let (low, aligned) = (self.a.fresh(Class::Q), self.a.fresh(Class::P));
                self.a.line(format_args!("and.b64 {low}, {base}, 15"));
                self.a.line(format_args!("setp.eq.u64 {aligned}, {low}, 0"));
                self.aligned.insert(k as u32, aligned);
            }
        }
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
        if self.is_swizzled(buffer) {
            if data.is_some() {
                return Err(fault!("an index of buffer '{}' comes from data", b.name));
            }
            return Ok((space, self.swizzled(base, offset)?));
        }
        let (_, constant) = offset.linear();
        let constant = if constant.abs() < 1 << 20 { constant } else { 0 };
        let rest = offset - constant;
        if base.class == Class::R {
            // Memory of a block has addresses of 32 bits, which must not pass 0 on the way.
            let (rest, constant) = if rest.range(&self.ranges).lo < 0 { (offset, 0) } else { (rest, constant) };
            let mut address = base;
            if !rest.is(0) {
                let v = self.low(rest)?;
                address = self.a.row("add", "u32", &[address, v])?;
            }
            if let Some(d) = data {
                let (v, width) = (self.a.row("to_32", "u64", &[d])?, self.a.r(width as u32));
                let v = self.a.row("mul", "u32", &[v, width])?;
                address = self.a.row("add", "u32", &[address, v])?;
            }
            let text = if constant == 0 { format!("[{address}]") } else { format!("[{address}+{constant}]") };
            return Ok((space, text));
        }
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
        let text = if constant == 0 { format!("[{address}]") } else { format!("[{address}+{constant}]") };
        Ok((space, text))
    }

    /// The same with numbers for variables that are known.
    pub(crate) fn resolve(&self, e: Expr) -> Expr {
        e.map(&|l| match l.node() {
            Node::Var(v) => match self.vars.get(v) {
                Some(Var::Const(c)) => Expr::int(*c),
                Some(Var::Expr(e)) => *e,
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
