//! Loops whose iterations are threads of a block, warps, or lanes of a warp; tiles of matrix instructions; values from other lanes.

use crate::asm::{Class, Val};
use crate::emit::{Emit, Var};
use crate::group::Role;
use crate::layout::{self, Mode};
use infc_ir::expr::Range;
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::loops::{LoopKind, Space, Stmt, WARP};

/// Variables that follow from the thread's number. `ROW` and `HALF`: row and column of the matrix that a lane tells the address of;
/// `GROUP` and `PLACE`: row and first column that it has in a tile of sums (the layouts of the PTX ISA manual).
pub(crate) const THREAD: u32 = u32::MAX - 1;
pub(crate) const WARP_NUMBER: u32 = u32::MAX - 2;
const LANE: u32 = u32::MAX - 3;
const ROW: u32 = u32::MAX - 4;
const HALF: u32 = u32::MAX - 5;
pub(crate) const GROUP: u32 = u32::MAX - 6;
pub(crate) const PLACE: u32 = u32::MAX - 7;
/// The same as `ROW` and `HALF` for matrices of 8 rows.
const ROW8: u32 = u32::MAX - 8;
const HALF8: u32 = u32::MAX - 9;
/// The first warp of the warpgroup.
pub(crate) const FIRST: u32 = u32::MAX - 10;

fn var(v: u32) -> Expr {
    Expr::var(v as usize)
}

/// A matrix instruction.
struct Instruction {
    /// Its name from the shape on.
    name: &'static str,
    /// Products of a step.
    depth: i64,
    /// Factors in a register.
    packed: i64,
}

fn instruction(a: DType, b: DType) -> Option<Instruction> {
    let i = |name, depth, packed| Some(Instruction { name, depth, packed });
    match (a, b) {
        (DType::F16, DType::F16) => i("m16n8k16.row.col.f32.f16.f16.f32", 16, 2),
        (DType::BF16, DType::BF16) => i("m16n8k16.row.col.f32.bf16.bf16.f32", 16, 2),
        (DType::F32, DType::F32) => i("m16n8k8.row.col.f32.tf32.tf32.f32", 8, 1),
        (DType::I8, DType::I8) => i("m16n8k32.row.col.s32.s8.s8.s32", 32, 4),
        (DType::I8, DType::U8) => i("m16n8k32.row.col.s32.s8.u8.s32", 32, 4),
        (DType::U8, DType::I8) => i("m16n8k32.row.col.s32.u8.s8.s32", 32, 4),
        (DType::U8, DType::U8) => i("m16n8k32.row.col.s32.u8.u8.s32", 32, 4),
        _ => None,
    }
}

/// A copy of 16 bytes into shared memory.
pub(crate) struct WideCopy {
    pub to: u32,
    pub to_index: Vec<Scalar>,
    pub from: u32,
    pub from_index: Vec<Scalar>,
    /// Where it does not hold, zeros are written.
    pub inside: Option<Scalar>,
}

/// A factor of a matrix instruction.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// Its buffer and index.
    pub buffer: u32,
    pub index: &'a [Scalar],
    /// What is read is rounded to tf32 here. Without that it was rounded before, which is what the instruction takes.
    pub rounds: bool,
}

/// The element that is read, perhaps widened, or rounded to tf32.
fn operand(s: Scalar) -> Option<Operand<'static>> {
    match s.kind() {
        Kind::Cast(inner) => operand(*inner),
        Kind::Select(same, rounded, whole) if is_rounding(*same, *rounded, *whole) => {
            Some(Operand { rounds: true, ..operand(*whole)? })
        }
        Kind::Read { source, index, guard: None } => Some(Operand { buffer: *source, index, rounds: false }),
        _ => None,
    }
}

/// Is it f32 rounded to 10 bits of mantissa, ties away from zero, and NaN as it is?
fn is_rounding(same: Scalar, rounded: Scalar, whole: Scalar) -> bool {
    let int = |v: i64| Scalar::int(DType::U32, v);
    let bits = Scalar::binary(Binary::And, whole.bitcast(DType::U32) + int(0x1000), int(0xffff_e000));
    same == whole.eq_to(whole) && rounded == bits.bitcast(DType::F32)
}

/// The factors of `sum + a * b`.
fn factors(value: Scalar) -> Option<[Operand<'static>; 2]> {
    match value.kind() {
        Kind::Fma(a, b, _) => Some([operand(*a)?, operand(*b)?]),
        Kind::Binary(Binary::Add, _, product) => match product.kind() {
            Kind::Binary(Binary::Mul, a, b) => Some([operand(*a)?, operand(*b)?]),
            _ => None,
        },
        _ => None,
    }
}

fn uses(o: Operand, v: u32) -> bool {
    o.index.iter().any(|i| i.as_index().is_some_and(|e| e.uses_var(v)))
}

impl Emit<'_> {
    /// What follows from the number of the thread in its block.
    pub(crate) fn lanes(&mut self, thread: Val) {
        let mut derive = |v: u32, most: i64, instructions: &[&str]| {
            let mut now = thread;
            for text in instructions {
                let next = self.a.fresh(Class::R);
                self.a.line(format_args!("{}", text.replace("$d", &next.to_string()).replace("$a", &now.to_string())));
                now = next;
            }
            self.vars.insert(v, Var::Reg(now));
            self.ranges.vars.insert(v, Range::new(0, most));
            now
        };
        derive(THREAD, 1023, &[]);
        derive(WARP_NUMBER, 31, &["shr.u32 $d, $a, 5"]);
        let lane = derive(LANE, WARP - 1, &["and.b32 $d, $a, 31"]);
        derive(ROW, 15, &["and.b32 $d, $a, 15"]);
        derive(HALF, 8, &["and.b32 $d, $a, 16", "shr.u32 $d, $a, 1"]);
        derive(GROUP, 7, &["and.b32 $d, $a, 31", "shr.u32 $d, $a, 2"]);
        derive(PLACE, 3, &["and.b32 $d, $a, 3"]);
        derive(ROW8, 7, &["and.b32 $d, $a, 7"]);
        derive(HALF8, 8, &["and.b32 $d, $a, 8"]);
        if layout::ring(self.kernel).is_some() {
            derive(FIRST, 28, &["shr.u32 $d, $a, 5", "and.b32 $d, $a, 28"]);
        }
        if self.mode == Mode::Warps {
            let first = self.a.fresh(Class::P);
            self.a.line(format_args!("setp.eq.u32 {first}, {lane}, 0"));
            self.first_lane = Some(first);
        }
    }

    /// A loop whose iterations run side by side. A barrier stands before it where it would touch what others still do.
    pub(crate) fn together(&mut self, variable: u32, extent: Expr, kind: LoopKind, body: &[Stmt]) -> Result<(), Fault> {
        match (self.role, kind) {
            (Some(Role::Fills), LoopKind::Thread) | (Some(Role::Multiplies), LoopKind::Warp) => {
                return self.side_by_side(variable, extent, kind, body);
            }
            // The other ones do it.
            (Some(_), _) => return Ok(()),
            (None, _) => {}
        }
        let [reads, writes] = layout::shared(self.kernel, body);
        let [read, written] = &self.touched;
        let conflict = reads.iter().chain(&writes).any(|b| written.contains(b)) || writes.iter().any(|b| read.contains(b));
        if conflict {
            self.barrier();
        }
        self.touched[0].extend(reads);
        self.touched[1].extend(writes);
        self.side_by_side(variable, extent, kind, body)
    }

    /// The body of such a loop.
    pub(crate) fn side_by_side(&mut self, variable: u32, extent: Expr, kind: LoopKind, body: &[Stmt]) -> Result<(), Fault> {
        let number = match kind {
            LoopKind::Thread => THREAD,
            LoopKind::Warp => WARP_NUMBER,
            _ => LANE,
        };
        self.ranges.extent(variable, extent);
        self.ranges.extent(number, extent);
        self.vars.insert(variable, Var::Expr(var(number)));
        self.parts.clear();
        if self.role == Some(Role::Fills)
            && let Some(copy) = self.boxed(variable).cloned()
        {
            self.side_by_side = true;
            let done = self.box_copy(&copy, body);
            self.side_by_side = false;
            self.vars.remove(&variable);
            return done;
        }
        if self.role == Some(Role::Fills)
            && let Some(bulk) = self.bulk(variable, extent, body)
        {
            self.side_by_side = true;
            let done = self.bulk_copy(&bulk, body);
            self.side_by_side = false;
            self.vars.remove(&variable);
            return done;
        }
        if kind == LoopKind::Thread && self.role.is_none() && !self.by_elements && self.copies(variable, extent, body)? {
            self.parts.clear();
            self.vars.remove(&variable);
            return Ok(());
        }
        self.vars.insert(variable, Var::Expr(var(number)));
        self.side_by_side = true;
        let group = self.role.is_some() && layout::multiplies(body);
        if group {
            self.a.line(format_args!("wgmma.fence.sync.aligned"));
        }
        let done = if self.role.is_none() && self.pipeline.is_none() { self.aligned_or_not(body) } else { self.list(body) };
        if group {
            self.a.line(format_args!("wgmma.commit_group.sync.aligned"));
        }
        self.side_by_side = false;
        self.parts.clear();
        self.vars.remove(&variable);
        done
    }

    /// The body of a loop over threads, twice where it reads parameters into registers several elements at once: for those at multiples of 16 bytes, and for all others. One question is
    /// asked before, so that none stands between reads.
    fn aligned_or_not(&mut self, body: &[Stmt]) -> Result<(), Fault> {
        let Some((parameters, aligned)) = self.wide_parameters(body)? else { return self.list(body) };
        let (slow, end) = (self.a.label(), self.a.label());
        self.a.line(format_args!("@!{aligned} bra {slow}"));
        self.certain = parameters;
        let done = self.list(body);
        self.certain.clear();
        done?;
        self.a.line(format_args!("bra {end}"));
        self.a.place(&slow);
        self.by_elements = true;
        let done = self.list(body);
        self.by_elements = false;
        self.a.place(&end);
        done
    }

    /// A tile of sums: the instruction, or each lane's four elements one after another.
    pub(crate) fn matrix(&mut self, row: u32, body: &[Stmt]) -> Result<(), Fault> {
        let [Stmt::For { var: column, extent: columns, body, .. }] = body else {
            return Err(fault!("a matrix loop without a loop over columns"));
        };
        if let [Stmt::For { var: k, extent, body: sum, .. }] = &body[..] {
            let [Stmt::Store { buffer, index, value }] = &sum[..] else {
                return Err(fault!("a matrix loop that is no sum of products"));
            };
            let done = self.multiply((row, *column, *k), [*columns, *extent], (*buffer as usize, index), *value);
            self.fragment = None;
            return done;
        }
        let own = columns.known().ok_or_else(|| fault!("a matrix loop over {columns} columns"))? / 2;
        if self.by_pairs([row, *column], own, body)? { Ok(()) } else { self.by_elements([row, *column], own, body) }
    }

    /// Each of a lane's elements of a tile for itself.
    pub(crate) fn by_elements(&mut self, [row, column]: [u32; 2], own: i64, body: &[Stmt]) -> Result<(), Fault> {
        // 8 columns after another.
        for element in 0..own {
            self.fragment = Some((row, column, element as usize));
            self.vars.insert(row, Var::Expr(var(GROUP) + 8 * (element / 2 % 2)));
            self.vars.insert(column, Var::Expr(var(PLACE) * 2 + 8 * (element / 4) + element % 2));
            self.list(body)?;
        }
        self.fragment = None;
        self.vars.remove(&row);
        self.vars.remove(&column);
        Ok(())
    }

    /// One matrix instruction.
    fn multiply(
        &mut self,
        (i, j, k): (u32, u32, u32),
        [columns, depth]: [Expr; 2],
        sum: (usize, &[Scalar]),
        value: Scalar,
    ) -> Result<(), Fault> {
        let [x, y] = factors(value).ok_or_else(|| fault!("a matrix loop over {value}, which is no sum of products"))?;
        let (a, b) = if uses(x, i) && uses(y, j) { (x, y) } else { (y, x) };
        if !uses(a, i) || !uses(b, j) || uses(a, j) || uses(b, i) {
            return Err(fault!("a matrix loop whose factors are not rows and columns: {value}"));
        }
        if !columns.is(8) {
            return self.multiply_group((i, j, k), [columns, depth], [a, b], sum);
        }
        let dtype = |o: Operand| self.kernel.buffers[o.buffer as usize].dtype;
        let (da, db) = (dtype(a), dtype(b));
        let instruction = instruction(da, db).filter(|i| depth.is(i.depth));
        let instruction =
            instruction.ok_or_else(|| fault!("there is no matrix instruction for {da} and {db} with {depth} products"))?;
        let (fa, fb) = (self.part(a, (i, k), &instruction, true)?, self.part(b, (j, k), &instruction, false)?);
        let d = self.tile(sum.0, sum.1, (i, j))?;
        let list = |v: &[Val]| v.iter().map(Val::to_string).collect::<Vec<_>>().join(", ");
        let (d, fa, fb) = (list(&d), list(&fa), list(&fb));
        self.a.line(format_args!("mma.sync.aligned.{} {{{d}}}, {{{fa}}}, {{{fb}}}, {{{d}}}", instruction.name));
        Ok(())
    }

    /// A lane's part of a factor: `line` is its row (or column) variable, 16 (or 8) of them.
    fn part(&mut self, o: Operand, (line, k): (u32, u32), instruction: &Instruction, rows: bool) -> Result<Vec<Val>, Fault> {
        let buffer = &self.kernel.buffers[o.buffer as usize];
        let mut offset = Expr::int(0);
        for (i, &stride) in o.index.iter().zip(&buffer.strides) {
            let e = i.as_index().ok_or_else(|| fault!("a factor of a matrix instruction at an index from data"))?;
            offset = offset + self.resolve(e) * stride;
        }
        let key = (o.buffer, offset, rows);
        if let Some(part) = self.parts.get(&key) {
            return Ok(part.clone());
        }
        let step = |v: u32| offset.affine_in(v).map(|(step, _)| step);
        let k_last = step(k) == Some(1);
        let at = |this: &mut Self, l: Expr, p: Expr| {
            this.vars.insert(line, Var::Expr(l));
            this.vars.insert(k, Var::Expr(p));
            let address = this.address(o.buffer as usize, o.index);
            this.vars.remove(&line);
            this.vars.remove(&k);
            address.map(|(_, text)| text)
        };
        let (half, bytes) = (instruction.depth / 2, buffer.dtype.bytes() as i64);
        let part = match (instruction.packed, rows) {
            // Matrices of 8 rows of 16 bytes, which is half of the products; a lane tells where one row is.
            (_, true) if k_last && step(line).is_some_and(|s| s * bytes % 16 == 0) => {
                let address = at(self, var(ROW), (var(HALF) * half).div(Expr::int(8)))?;
                self.load_matrix("x4", 4, &address)
            }
            (_, false) if k_last && step(line).is_some_and(|s| s * bytes % 16 == 0) => {
                let address = at(self, var(ROW8), (var(HALF8) * half).div(Expr::int(8)))?;
                self.load_matrix("x2", 2, &address)
            }
            (2, false) if step(line) == Some(1) => {
                let address = at(self, Expr::int(0), var(ROW))?;
                self.load_matrix("x2.trans", 2, &address)
            }
            (packed, _) if packed == 1 || packed == 4 && k_last => {
                let places: &[(i64, i64)] = if rows { &[(0, 0), (8, 0), (0, half), (8, half)] } else { &[(0, 0), (0, half)] };
                let mut part = vec![];
                for &(l, p) in places {
                    let address = at(self, var(GROUP) + l, var(PLACE) * packed + p)?;
                    let v = self.a.fresh(Class::R);
                    self.a.line(format_args!("ld.shared.b32 {v}, {address}"));
                    part.push(v);
                }
                part
            }
            _ => return Err(fault!("a factor of a matrix instruction lies in another order: buffer '{}'", buffer.name)),
        };
        if o.rounds {
            part.iter().for_each(|v| self.a.line(format_args!("cvt.rna.tf32.f32 {v}, {v}")));
        }
        self.parts.insert(key, part.clone());
        Ok(part)
    }

    /// A loop that copies 16 bytes of a parameter as they are into shared memory.
    pub(crate) fn wide_copy(&self, lane: u32, extent: Expr, body: &[Stmt]) -> Option<WideCopy> {
        let [Stmt::Store { buffer: to, index, value }] = body else { return None };
        let Kind::Read { source, index: from, guard } = value.kind() else { return None };
        let buffers = &self.kernel.buffers;
        let (shared, global) = (&buffers[*to as usize], &buffers[*source as usize]);
        let spaces = (shared.space, global.space) == (Space::Shared, Space::Global);
        let n = extent.known()?;
        if !spaces || shared.dtype != global.dtype || n * shared.dtype.bytes() as i64 != 16 {
            return None;
        }
        // Neighbours on both sides, from a multiple of 16 bytes on.
        if !self.neighbours(*to, index, lane, n) || !self.neighbours(*source, from, lane, n) {
            return None;
        }
        let inside = match guard {
            None => None,
            Some((cond, fallback)) => {
                let mut moves = false;
                cond.visit(&mut |n| moves |= n.as_index().is_some_and(|e| e.uses_var(lane)));
                let zero = fallback.as_float() == Some(0.0) || fallback.as_int() == Some(0);
                if moves || !zero {
                    return None;
                }
                Some(*cond)
            }
        };
        Some(WideCopy { to: *to, to_index: index.clone(), from: *source, from_index: from.clone(), inside })
    }

    /// Such a copy, asynchronous where the parameter is aligned; else the loop as it is.
    pub(crate) fn copy(&mut self, lane: u32, extent: Expr, copy: &WideCopy, body: &[Stmt]) -> Result<(), Fault> {
        let aligned = self.aligned.get(&copy.from).copied();
        let aligned = aligned.ok_or_else(|| fault!("the alignment of a parameter was not looked at"))?;
        let inside = copy.inside.map(|c| self.scalar(c)).transpose()?;
        self.vars.insert(lane, Var::Const(0));
        let to = self.address(copy.to as usize, &copy.to_index)?.1;
        let from = self.address(copy.from as usize, &copy.from_index)?.1;
        self.vars.remove(&lane);
        let (slow, end) = (self.a.label(), self.a.label());
        self.a.line(format_args!("@!{aligned} bra {slow}"));
        match inside {
            None => self.a.line(format_args!("cp.async.cg.shared.global {to}, {from}, 16")),
            Some(inside) => {
                // Nothing is read where nothing is, and zeros are written.
                let bytes = self.a.fresh(Class::R);
                self.a.line(format_args!("selp.b32 {bytes}, 16, 0, {inside}"));
                self.a.line(format_args!("cp.async.cg.shared.global {to}, {from}, 16, {bytes}"));
            }
        }
        self.a.line(format_args!("bra {end}"));
        self.a.place(&slow);
        self.copying = true;
        self.by_lanes(lane, extent, body)?;
        self.a.place(&end);
        Ok(())
    }

    fn load_matrix(&mut self, form: &str, count: usize, address: &str) -> Vec<Val> {
        let part: Vec<Val> = (0..count).map(|_| self.a.fresh(Class::R)).collect();
        let list: Vec<String> = part.iter().map(Val::to_string).collect();
        self.a.line(format_args!("ldmatrix.sync.aligned.m8n8.{form}.shared.b16 {{{}}}, {address}", list.join(", ")));
        part
    }

    /// What a lane has in a register: this one, or that of another one.
    pub(crate) fn from_lane(&mut self, own: Val, lane: Scalar) -> Result<Val, Fault> {
        let lane = lane.as_index().ok_or_else(|| fault!("a lane from data"))?;
        let lane = self.resolve(lane);
        if lane == var(LANE) {
            return Ok(self.a.copied(own));
        }
        if self.divergent {
            return Err(fault!("a value of another lane under a condition"));
        }
        let from = self.low(lane)?;
        let shuffle = |this: &mut Self, v: Val| {
            let d = this.a.fresh(Class::R);
            this.a.line(format_args!("shfl.sync.idx.b32 {d}, {v}, {from}, 31, -1"));
            d
        };
        match own.class {
            Class::R => Ok(shuffle(self, own)),
            Class::P => {
                let number = self.a.row("number", "pred", &[own])?;
                let moved = shuffle(self, number);
                self.a.row("nonzero", "u32", &[moved])
            }
            Class::Q => {
                let (low, high) = (self.a.fresh(Class::R), self.a.fresh(Class::R));
                self.a.line(format_args!("mov.b64 {{{low}, {high}}}, {own}"));
                let (low, high) = (shuffle(self, low), shuffle(self, high));
                let d = self.a.fresh(Class::Q);
                self.a.line(format_args!("mov.b64 {d}, {{{low}, {high}}}"));
                Ok(d)
            }
            Class::H => Err(fault!("16 bits of another lane")),
        }
    }
}
