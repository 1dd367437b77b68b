//! Reads and stores: where an element lies, and whether a vector of them is one load, a broadcast or a load for each lane.
//!
//! The offset of an access is analysed as `step * lane + rest`. Step 0 is one place, step 1 consecutive elements, anything else
//! an address for each lane. A read or store that must not happen goes to an address of the function's own, whose contents nobody looks at:
//! there are no branches but one, around the lanes of an access to neighbours where all of them take part. Buffers in registers are the business of
//! `registers`.

use crate::emit::{Emit, LANE, Scope};
use crate::ops::{from_memory, memory_elem};
use crate::registers::Place;
use crate::values::{Bin, Elem, Operand, Ty, Val};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};
use infc_ir::expr::Node;
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Access, Space};

/// An address and bytes behind it.
#[derive(Clone, Copy)]
pub(crate) struct At {
    base: Value,
    offset: i32,
    /// A load from there does no harm wherever its address is known, and so may be moved.
    movable: bool,
}

/// The addresses of an access.
pub(crate) enum Shape {
    /// One for all lanes.
    One(At),
    /// Of lane 0, and the distance between lanes in elements.
    Step(At, i64),
    /// Elements of a buffer in registers: that of lane 0, and the distance between lanes.
    Register(i64, i64),
    /// The index of each lane, in elements.
    Each(At, Val),
}

/// An index: a part known to the simplifier, and values with their strides.
struct Offset {
    fixed: Expr,
    dynamic: Vec<(Val, Expr)>,
}

impl Emit<'_, '_> {
    fn split(&mut self, s: Scalar, stride: Expr, negative: bool, out: &mut Offset) -> Result<(), Fault> {
        let known = s.as_index().or_else(|| match s.kind() {
            Kind::Local(n) => self.indices.get(n).copied(),
            _ => None,
        });
        if let Some(e) = known {
            out.fixed = if negative { out.fixed - e * stride } else { out.fixed + e * stride };
            return Ok(());
        }
        match s.kind() {
            Kind::Binary(op @ (Binary::Add | Binary::Sub), a, b) if s.dtype() == DType::I64 => {
                self.split(*a, stride, negative, out)?;
                self.split(*b, stride, negative != (*op == Binary::Sub), out)
            }
            _ => {
                let v = self.scalar(s)?;
                let v = if negative { self.f.bin(Bin::Sub, Val::i64(0), v) } else { v };
                out.dynamic.push((v, stride));
                Ok(())
            }
        }
    }

    pub(crate) fn shape(&mut self, buffer: usize, index: &[Scalar]) -> Result<Shape, Fault> {
        let b = &self.kernel.buffers[buffer];
        if index.len() != b.strides.len() {
            return Err(fault!("buffer '{}' has {} dims, its index {}", b.name, b.strides.len(), index.len()));
        }
        let elem = memory_elem(b.dtype)?;
        let mut offset = Offset { fixed: Expr::int(0), dynamic: vec![] };
        for (&s, &stride) in index.iter().zip(&b.strides) {
            self.split(s, stride, false, &mut offset)?;
        }
        let fixed = self.resolve(offset.fixed);
        let (step, rest, varying) = match fixed.affine_in(LANE) {
            Some((step, rest)) => (step, rest, None),
            None => {
                let (uniform, varying) = by_lane(fixed);
                (0, uniform, Some(varying))
            }
        };
        if b.space == Space::Reg {
            let lanes = if step == 0 { 1 } else { self.lanes.unwrap_or(1) };
            let (last, span) = (step * i64::from(lanes - 1), self.resolve(b.span()).known().unwrap_or(0));
            let inside = |first: &i64| *first >= 0 && *first < span && (0..span).contains(&(first + last));
            let constant = rest.known().filter(inside).filter(|_| varying.is_none() && offset.dynamic.is_empty());
            self.uses[buffer].see(constant.map(|first| (first, step, lanes)));
            if let (Some(first), Some(Place::Registers(_))) = (constant, &self.places[buffer]) {
                return Ok(Shape::Register(first, step));
            }
        }
        let base = match &self.places[buffer] {
            Some(Place::Memory(base)) => *base,
            Some(Place::Registers(_)) => return Err(fault!("buffer '{}' in registers has an index that is no constant", b.name)),
            None => return Err(fault!("buffer '{}' is used before its Alloc", b.name)),
        };
        let mut dynamic: Option<Val> = None;
        for (v, stride) in offset.dynamic {
            let stride = self.resolve(stride);
            let stride = self.uniform_expr(stride)?;
            let part = self.f.bin(Bin::Mul, v, stride);
            dynamic = Some(match dynamic {
                Some(sum) => self.f.bin(Bin::Add, sum, part),
                None => part,
            });
        }
        let movable = dynamic.is_none() && varying.is_none() && self.movable(buffer, rest);
        let at = self.pointer(base, elem, rest, dynamic.filter(|d| d.uniform()))?;
        let base = At { movable, ..at };
        let mut each = dynamic.filter(|d| !d.uniform());
        if let Some(e) = varying {
            let v = self.expr(e)?;
            each = Some(match each {
                Some(d) => self.f.bin(Bin::Add, d, v),
                None => v,
            });
        }
        let Some(each) = each else { return Ok(if step == 0 { Shape::One(base) } else { Shape::Step(base, step) }) };
        let each = match step {
            0 => each,
            _ => {
                let offsets = Val { ty: Ty::new(Elem::I64, each.ty.lanes), op: Operand::Lanes(0, step) };
                self.f.bin(Bin::Add, each, offsets)
            }
        };
        Ok(Shape::Each(base, each))
    }

    /// Whether a load from a place of a buffer that is only read may be moved to where its address is known. Cranelift takes it out of loops in which the
    /// address does not change: there must be no branch within these, for the place exists only where the load does happen.
    fn movable(&self, buffer: usize, offset: Expr) -> bool {
        let b = &self.kernel.buffers[buffer];
        let fixed = |scope: &&Scope| match scope {
            Scope::Loop(var) => !offset.uses_var(*var),
            Scope::Branch => true,
        };
        let within = self.scopes.iter().rev().take_while(fixed);
        b.space == Space::Global && b.access == Access::Read && within.into_iter().all(|s| *s != Scope::Branch)
    }

    /// `base + elem * (offset + dynamic)`, outermost loops first so that inner loops add little; the constant becomes a displacement.
    fn pointer(&mut self, base: Value, elem: Elem, offset: Expr, dynamic: Option<Val>) -> Result<At, Fault> {
        let (terms, constant) = offset.linear();
        let mut by_depth: Vec<(usize, Expr)> = vec![];
        for (t, c) in terms {
            let mut depth = 0;
            t.leaves(&mut |leaf| {
                if let Node::Var(v) = leaf.node() {
                    depth = depth.max(self.loops.iter().position(|l| l == v).map_or(0, |p| p + 1));
                }
            });
            match by_depth.iter_mut().find(|(d, _)| *d == depth) {
                Some((_, sum)) => *sum = *sum + t * c,
                None => by_depth.push((depth, t * c)),
            }
        }
        by_depth.sort_by_key(|&(d, _)| d);
        let mut p = base;
        for (_, e) in by_depth {
            let v = self.uniform_expr(e)?;
            p = self.moved(p, elem, v);
        }
        if let Some(d) = dynamic {
            p = self.moved(p, elem, d);
        }
        let bytes = constant.wrapping_mul(i64::from(elem.bits() / 8));
        Ok(match i32::try_from(bytes).ok().filter(|b| b.abs() < 1 << 30) {
            Some(offset) => At { base: p, offset, movable: false },
            None => At { base: self.moved(p, elem, Val::i64(constant)), offset: 0, movable: false },
        })
    }

    /// The address so many elements behind `p`.
    fn moved(&mut self, p: Value, elem: Elem, elements: Val) -> Value {
        if elements.known() == Some(0) {
            return p;
        }
        let bytes = self.f.bin(Bin::Shl, elements, Val::i64(i64::from((elem.bits() / 8).trailing_zeros())));
        let bytes = self.f.value(bytes);
        self.f.b.ins().iadd(p, bytes)
    }

    /// The address of each lane.
    fn addresses(&mut self, shape: Shape, elem: Elem, lanes: u32) -> Vec<At> {
        let bytes = i64::from(elem.bits() / 8);
        match shape {
            Shape::One(at) => vec![at; lanes as usize],
            Shape::Step(at, step) => (0..i64::from(lanes))
                .map(|lane| {
                    let behind = lane.wrapping_mul(step).wrapping_mul(bytes);
                    match i32::try_from(behind).ok().and_then(|b| at.offset.checked_add(b)) {
                        Some(offset) => At { offset, ..at },
                        None => At { base: self.moved(at.base, elem, Val::i64(lane.wrapping_mul(step))), ..at },
                    }
                })
                .collect(),
            Shape::Each(at, index) => {
                let lanes = self.f.lanes(index);
                lanes.into_iter().map(|i| At { base: self.moved(at.base, elem, Val::one(Elem::I64, i)), ..at }).collect()
            }
            Shape::Register(..) => unreachable!("registers have no address"),
        }
    }

    /// How a buffer's memory is accessed.
    fn flags(&self, buffer: usize) -> MemFlagsData {
        let b = &self.kernel.buffers[buffer];
        let flags = MemFlagsData::new().with_notrap().with_alias_region(Some(self.regions[buffer]));
        if b.space == Space::Global && b.access == Access::Read { flags.with_readonly() } else { flags }
    }

    fn load_flags(&self, buffer: usize, at: At) -> MemFlagsData {
        let flags = self.flags(buffer);
        if at.movable { flags.with_can_move() } else { flags }
    }

    /// `at` where the condition holds, else an address behind which are some bytes that nobody looks at.
    fn or_nowhere(&mut self, at: At, wanted: Val, bytes: u32, store: bool) -> At {
        match wanted.known() {
            Some(k) if k != 0 => at,
            _ => {
                let nowhere = self.nowhere(bytes, store);
                let wanted = self.f.value(wanted);
                let p = self.f.b.ins().iadd_imm_s(at.base, i64::from(at.offset));
                At { base: self.f.b.ins().select(wanted, p, nowhere), offset: 0, movable: at.movable }
            }
        }
    }

    pub(crate) fn load_at(&mut self, buffer: usize, ty: Ty, at: At) -> Val {
        let flags = self.load_flags(buffer, at);
        self.f.load(ty, flags, at.base, at.offset)
    }

    /// An element for each lane, of those lanes that take part.
    fn gather(&mut self, buffer: usize, elem: Elem, at: Vec<At>, mask: Option<Val>) -> Vec<Value> {
        let wanted = mask.map(|m| self.f.lanes(m));
        at.into_iter()
            .enumerate()
            .map(|(lane, at)| {
                let at = match &wanted {
                    Some(wanted) => self.or_nowhere(at, Val::one(Elem::I1, wanted[lane]), elem.bits() / 8, false),
                    None => at,
                };
                let flags = self.load_flags(buffer, at);
                self.f.b.ins().load(elem.scalar(), flags, at.base, at.offset)
            })
            .collect()
    }

    /// Neighbours, of those lanes that take part.
    pub(crate) fn masked_load(&mut self, buffer: usize, ty: Ty, at: At, mask: Val) -> Val {
        let all = self.f.all(mask);
        if all.known().is_some_and(|k| k != 0) {
            return self.load_at(buffer, ty, at);
        }
        let (whole, some, exit) = (self.f.block(), self.f.block(), self.f.block());
        self.f.branch(all, whole, some);
        self.f.begin(whole);
        let v = self.load_at(buffer, ty, At { movable: false, ..at });
        let pieces = self.f.pieces(v);
        let params = pieces.iter().map(|_| self.f.b.append_block_param(exit, ty.elem.vector())).collect();
        self.f.jump(exit, &pieces);
        self.f.begin(some);
        let each = self.addresses(Shape::Step(At { movable: false, ..at }, 1), ty.elem, ty.lanes);
        let lanes = self.gather(buffer, ty.elem, each, Some(mask));
        let v = self.f.build(ty.elem, &lanes);
        let pieces = self.f.pieces(v);
        self.f.jump(exit, &pieces);
        self.f.begin(exit);
        self.f.many(ty, params)
    }

    /// The element of `buffer` at `index`, or the fallback where the guard does not hold.
    pub fn read(&mut self, buffer: usize, index: &[Scalar], guard: Option<(Scalar, Scalar)>) -> Result<Val, Fault> {
        self.read_as(self.kernel.buffers[buffer].dtype, buffer, index, guard)
    }

    /// The same bits as they are in `dtype`, which has the buffer's width; so is the guard's value.
    pub fn read_as(
        &mut self,
        dtype: DType,
        buffer: usize,
        index: &[Scalar],
        guard: Option<(Scalar, Scalar)>,
    ) -> Result<Val, Fault> {
        let elem = memory_elem(dtype)?;
        let guard = match guard {
            None => None,
            Some((c, fallback)) => {
                let cond = self.scalar(c)?;
                match cond.known() {
                    Some(0) => return self.scalar(fallback),
                    Some(_) => None,
                    None => Some((cond, self.scalar(fallback)?)),
                }
            }
        };
        let shape = self.shape(buffer, index)?;
        let lanes = self.lanes.unwrap_or(1);
        let ty = Ty::new(elem, lanes);
        // Whom the read is for: all lanes together, or some of them.
        let (together, mut mask) = match guard {
            Some((c, _)) if c.uniform() => (c, self.mask),
            Some((c, _)) => (Val::bool(true), Some(self.masked_by(c))),
            None => (Val::bool(true), self.mask),
        };
        mask = mask.filter(|m| m.known() != Some(1));
        let raw = match shape {
            Shape::Register(first, step) => self.register_read(buffer, first, step, elem)?,
            Shape::One(at) => {
                // Under a mask without a guard some lane takes part, and the place may be read.
                let wanted = match guard {
                    Some((c, _)) if c.uniform() => c,
                    Some((c, _)) => {
                        let c = self.masked_by(c);
                        self.f.any(c)
                    }
                    None => Val::bool(true),
                };
                let at = self.or_nowhere(at, wanted, elem.bits() / 8, false);
                self.load_at(buffer, Ty::new(elem, 1), at)
            }
            Shape::Step(at, step @ (1 | -1)) if step == 1 || mask.is_none() => {
                let bytes = elem.bits() / 8;
                let first = if step == 1 { at } else { At { offset: at.offset - ((lanes - 1) * bytes) as i32, ..at } };
                match mask {
                    Some(mask) => {
                        let all = self.f.splat(together, lanes);
                        let mask = self.f.bin(Bin::And, mask, all);
                        self.masked_load(buffer, ty, first, mask)
                    }
                    None => {
                        let first = self.or_nowhere(first, together, bytes * lanes, false);
                        let v = self.load_at(buffer, ty, first);
                        if step == 1 { v } else { self.f.reversed(v) }
                    }
                }
            }
            shape => {
                let mut at = self.addresses(shape, elem, lanes);
                if together.known().is_none() {
                    at = at.into_iter().map(|at| self.or_nowhere(at, together, elem.bits() / 8, false)).collect();
                }
                let v = self.gather(buffer, elem, at, mask);
                self.f.build(elem, &v)
            }
        };
        let v = from_memory(&mut self.f, dtype, raw);
        Ok(match guard {
            Some((c, fallback)) => self.f.select(c, v, fallback),
            None => v,
        })
    }

    /// `cond` and the mask of the statement.
    fn masked_by(&mut self, cond: Val) -> Val {
        match self.mask {
            Some(mask) => self.f.bin(Bin::And, mask, cond),
            None => cond,
        }
    }

    /// Brings an element of `buffer` nearer; a hint, for which Cranelift has no instruction.
    pub fn prefetch(&mut self, _: usize, _: &[Scalar]) -> Result<(), Fault> {
        Ok(())
    }

    /// Writes `v`, as it lies in memory, to `buffer` at `index` in all lanes that take part.
    pub fn store(&mut self, buffer: usize, index: &[Scalar], v: Val) -> Result<(), Fault> {
        let b = &self.kernel.buffers[buffer];
        if b.space == Space::Global && b.access == Access::Read {
            return Err(fault!("a store to buffer '{}', which is only read", b.name));
        }
        let lanes = self.lanes.unwrap_or(1);
        let shape = self.shape(buffer, index)?;
        let flags = self.flags(buffer);
        let elem = v.ty.elem;
        match shape {
            Shape::Register(first, step) => return self.register_write(buffer, first, step, v),
            // Under a mask some lane is active, so a uniform value is stored by some lane.
            Shape::One(at) if v.uniform() => self.f.store(flags, v, at.base, at.offset),
            // The last lane's store is the one that stays.
            Shape::One(at) if self.mask.is_none() => {
                let last = self.f.extract(v, lanes - 1);
                self.f.store(flags, last, at.base, at.offset);
            }
            Shape::Step(at, 1) => {
                let v = self.f.splat(v, lanes);
                let all = match self.mask {
                    Some(mask) => self.f.all(mask),
                    None => Val::bool(true),
                };
                if all.known() == Some(1) {
                    self.f.store(flags, v, at.base, at.offset);
                    return Ok(());
                }
                let (whole, some, exit) = (self.f.block(), self.f.block(), self.f.block());
                self.f.branch(all, whole, some);
                self.f.begin(whole);
                self.f.store(flags, v, at.base, at.offset);
                self.f.jump(exit, &[]);
                self.f.begin(some);
                let each = self.addresses(Shape::Step(at, 1), elem, lanes);
                self.scatter(buffer, v, each);
                self.f.jump(exit, &[]);
                self.f.begin(exit);
            }
            Shape::Step(at, -1) if self.mask.is_none() => {
                let v = self.f.splat(v, lanes);
                let v = self.f.reversed(v);
                self.f.store(flags, v, at.base, at.offset - ((lanes - 1) * elem.bits() / 8) as i32);
            }
            shape => {
                let at = self.addresses(shape, elem, lanes);
                let v = self.f.splat(v, lanes);
                self.scatter(buffer, v, at);
            }
        }
        Ok(())
    }

    /// One store for each lane that takes part, in their order.
    fn scatter(&mut self, buffer: usize, v: Val, at: Vec<At>) {
        let flags = self.flags(buffer);
        let wanted = self.mask.map(|m| self.f.lanes(m));
        let values = self.f.lanes(v);
        for (lane, (x, at)) in values.into_iter().zip(at).enumerate() {
            let at = match &wanted {
                Some(wanted) => self.or_nowhere(at, Val::one(Elem::I1, wanted[lane]), v.ty.elem.bits() / 8, true),
                None => at,
            };
            self.f.b.ins().store(flags, x, at.base, at.offset);
        }
    }

    /// The address of some bytes of the function's own, into which everything may be written, or others from which it may be read: the CPU would wait with a
    /// read for a write of fewer bytes.
    fn nowhere(&mut self, bytes: u32, store: bool) -> Value {
        let slot = self.nowhere_slot(bytes, store);
        self.f.b.ins().stack_addr(types::I64, slot, 0)
    }

    /// Remembers a `Let` that is an index expression, so that addresses made of it can be analysed.
    pub fn remember_index(&mut self, local: u32, value: Scalar) {
        match value.as_index() {
            Some(e) => {
                let e = self.resolve(e);
                self.indices.insert(local, e);
            }
            None => {
                self.indices.remove(&local);
            }
        }
    }
}

/// The terms of `e` without and with the lane variable.
fn by_lane(e: Expr) -> (Expr, Expr) {
    let (terms, constant) = e.linear();
    terms.into_iter().fold((Expr::int(constant), Expr::int(0)), |(uniform, varying), (t, c)| {
        if t.uses_var(LANE) { (uniform, varying + t * c) } else { (uniform + t * c, varying) }
    })
}
