//! Reads and stores: where an element lies, and whether a vector of them is one load, a broadcast or a gather.
//!
//! The offset of an access is analysed as `step * lane + rest`. Step 0 is one place, step 1 consecutive elements, anything else
//! a list of addresses (`lookup` has short rows that are read so). A guard that holds for all lanes or for none moves the address instead of branching: a read that must
//! not happen reads a constant.

use crate::emit::{Emit, LANE};
use crate::ir::{Elem, Operand, Ty, Val};
use crate::ops::{from_memory, memory_elem};
use infc_ir::expr::Node;
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Access, Space};

/// The addresses of an access.
pub(crate) enum Shape {
    /// One for all lanes.
    One(Val),
    /// Of lane 0, and the distance between lanes in elements.
    Step(Val, i64),
    /// Consecutive elements at a constant place of a `Reg` buffer that holds them all: no mask is needed to touch them, and
    /// without a mask they become registers.
    Inside(Val),
    /// One for each lane.
    Each(Val),
}

/// An index: a part known to the simplifier, and values with their strides.
struct Offset {
    fixed: Expr,
    dynamic: Vec<(Val, Expr)>,
}

impl Emit<'_> {
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
                let v = if negative { self.f.bin("sub", Val::i64(0), v) } else { v };
                out.dynamic.push((v, stride));
                Ok(())
            }
        }
    }

    pub(crate) fn shape(&mut self, buffer: usize, index: &[Scalar]) -> Result<Shape, Fault> {
        let b = &self.kernel.buffers[buffer];
        let base = self.places[buffer].ok_or_else(|| fault!("buffer '{}' is used before its Alloc", b.name))?;
        if index.len() != b.strides.len() {
            return Err(fault!("buffer '{}' has {} dims, its index {}", b.name, b.strides.len(), index.len()));
        }
        let elem = memory_elem(b.dtype)?;
        let mut offset = Offset { fixed: Expr::int(0), dynamic: vec![] };
        for (&s, &stride) in index.iter().zip(&b.strides) {
            self.split(s, stride, false, &mut offset)?;
        }
        let fixed = self.resolve(offset.fixed);
        let mut dynamic: Option<Val> = None;
        for (v, stride) in offset.dynamic {
            let stride = self.resolve(stride);
            let stride = self.uniform_expr(stride)?;
            let part = self.f.bin("mul", v, stride);
            dynamic = Some(match dynamic {
                Some(sum) => self.f.bin("add", sum, part),
                None => part,
            });
        }
        let (step, rest, varying) = match fixed.affine_in(LANE) {
            Some((step, rest)) => (step, rest, None),
            None => {
                let (uniform, varying) = by_lane(fixed);
                (0, uniform, Some(varying))
            }
        };
        let uniform_dynamic = dynamic.filter(|d| d.uniform());
        let base = self.pointer(base, elem, rest, uniform_dynamic)?;
        let mut each = dynamic.filter(|d| !d.uniform());
        if let Some(e) = varying {
            let v = self.expr(e)?;
            each = Some(match each {
                Some(d) => self.f.bin("add", d, v),
                None => v,
            });
        }
        let Some(each) = each else {
            if step == 1 && dynamic.is_none() && b.space == Space::Reg {
                let (span, lanes) = (self.resolve(b.span()).known(), i64::from(self.lanes.unwrap_or(1)));
                if rest.known().zip(span).is_some_and(|(first, span)| first >= 0 && first + lanes <= span) {
                    return Ok(Shape::Inside(base));
                }
            }
            return Ok(if step == 0 { Shape::One(base) } else { Shape::Step(base, step) });
        };
        let lanes = each.ty.lanes;
        let each = match step {
            0 => each,
            _ => {
                let offsets = Val { ty: Ty::new(Elem::I64, lanes), op: Operand::Lanes(0, step) };
                self.f.bin("add", each, offsets)
            }
        };
        Ok(Shape::Each(self.f.gep(base, elem, each)))
    }

    /// `base + elem * (offset + dynamic)`, outermost loops first so that inner loops add little, the constant last so that it becomes
    /// a displacement.
    pub(crate) fn pointer(&mut self, base: Val, elem: Elem, offset: Expr, dynamic: Option<Val>) -> Result<Val, Fault> {
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
            p = self.f.gep(p, elem, v);
        }
        if let Some(d) = dynamic {
            p = self.f.gep(p, elem, d);
        }
        Ok(self.f.gep(p, elem, Val::i64(constant)))
    }

    /// A vector of addresses.
    pub(crate) fn addresses(&mut self, shape: Shape, elem: Elem, lanes: u32) -> Val {
        match shape {
            Shape::One(p) => self.f.splat(p, lanes),
            Shape::Step(p, step) => {
                let small = step.saturating_mul(i64::from(lanes)).abs() < 1 << 30;
                let ty = Ty::new(if small { Elem::I32 } else { Elem::I64 }, lanes);
                self.f.gep(p, elem, Val { ty, op: Operand::Lanes(0, step) })
            }
            Shape::Inside(p) => self.addresses(Shape::Step(p, 1), elem, lanes),
            Shape::Each(p) => p,
        }
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
        if guard.is_none()
            && dtype == self.kernel.buffers[buffer].dtype
            && matches!(shape, Shape::Each(_))
            && let Some(v) = self.lookup(buffer, index)?
        {
            return Ok(v);
        }
        let (lanes, align) = (self.lanes.unwrap_or(1), elem.bits() / 8);
        let raw = match shape {
            Shape::One(p) => {
                let p = self.guarded_address(p, dtype, 1, guard)?;
                self.f.load(Ty::new(elem, 1), p, align)
            }
            Shape::Inside(p) => self.f.load(Ty::new(elem, lanes), p, align),
            Shape::Step(p, 1) => {
                let ty = Ty::new(elem, lanes);
                match guard {
                    Some((c, _)) if !c.uniform() => {
                        let mask = self.masked_by(c);
                        self.masked_load(ty, p, mask, align)
                    }
                    _ => {
                        let p = self.guarded_address(p, dtype, lanes, guard)?;
                        match self.mask {
                            Some(mask) => self.masked_load(ty, p, mask, align),
                            None => self.f.load(ty, p, align),
                        }
                    }
                }
            }
            Shape::Step(p, -1) if self.mask.is_none() && guard.is_none_or(|(c, _)| c.uniform()) => {
                let first = self.f.gep(p, elem, Val::i64(1 - i64::from(lanes)));
                let first = self.guarded_address(first, dtype, lanes, guard)?;
                let v = self.f.load(Ty::new(elem, lanes), first, align);
                self.reversed(v)
            }
            // A few vector loads and shuffles instead of a load for each lane.
            Shape::Step(p, step @ 2..=4) if self.mask.is_none() && guard.is_none() && i64::from(lanes) >= step => {
                self.strided(p, step as u32, elem, lanes)
            }
            shape => {
                let ptrs = self.addresses(shape, elem, lanes);
                let mask = match guard {
                    Some((c, _)) => self.masked_by(c),
                    None => self.mask.unwrap_or(Val::bool(true)),
                };
                let mask = self.f.splat(mask, lanes);
                let ty = Ty::new(elem, lanes);
                let zero = zero_of(ty);
                let align = Val::int(Elem::I32, i64::from(align));
                self.f.intrinsic("llvm.masked.gather", &[ty, ptrs.ty], ty, &[ptrs, align, mask, zero])
            }
        };
        let v = from_memory(&mut self.f, dtype, raw);
        Ok(match guard {
            Some((c, fallback)) => self.f.select(c, v, fallback),
            None => v,
        })
    }

    /// The address to read from: `p`, or that of a constant where no lane wants the read.
    fn guarded_address(&mut self, p: Val, dtype: DType, lanes: u32, guard: Option<(Val, Val)>) -> Result<Val, Fault> {
        let Some((cond, _)) = guard else { return Ok(p) };
        let wanted = if cond.uniform() { cond } else { self.masked_by(cond) };
        let wanted = self.f.any(wanted);
        let zeros = Val { ty: Ty::new(memory_elem(dtype)?, lanes), ..zero_of(Ty::new(memory_elem(dtype)?, 1)) };
        let constant = self.f.global(zeros);
        Ok(self.f.select(wanted, p, constant))
    }

    /// `cond` and the mask of the statement.
    fn masked_by(&mut self, cond: Val) -> Val {
        match self.mask {
            Some(mask) => self.f.bin("and", mask, cond),
            None => cond,
        }
    }

    pub(crate) fn masked_load(&mut self, ty: Ty, p: Val, mask: Val, align: u32) -> Val {
        let pieces = self.pieces(ty);
        let parts: Vec<Val> = (0..ty.lanes / pieces.lanes)
            .map(|i| {
                let (at, mask) = self.piece(p, mask, ty, pieces, i);
                let args = [at, Val::int(Elem::I32, i64::from(align)), mask, zero_of(pieces)];
                self.f.intrinsic("llvm.masked.load", &[pieces, p.ty], pieces, &args)
            })
            .collect();
        self.joined(parts)
    }

    pub(crate) fn masked_store(&mut self, v: Val, p: Val, mask: Val, align: u32) {
        let v = if matches!(v.ty.elem, Elem::I8 | Elem::I16) { self.as_it_is(v) } else { v };
        let pieces = self.pieces(v.ty);
        for i in 0..v.ty.lanes / pieces.lanes {
            let (at, mask) = self.piece(p, mask, v.ty, pieces, i);
            let part = self.lanes_of(v, i * pieces.lanes, pieces.lanes);
            let args = [part, at, Val::int(Elem::I32, i64::from(align)), mask];
            self.f.intrinsic_void("llvm.masked.store", &[pieces, p.ty], &args);
        }
    }

    /// The same integers, but LLVM does not see how they were made. Where it knows that one lane alone is stored, LLVM 22 stores what a narrow integer was truncated from, with all
    /// its bytes, over what lies behind it.
    fn as_it_is(&mut self, v: Val) -> Val {
        let Some(class) = self.vector_class else { return v };
        let most = self.pieces(v.ty);
        let whole = Ty::new(v.ty.elem, most.lanes.max(128 / v.ty.elem.bits()));
        let parts: Vec<Val> = (0..v.ty.lanes / most.lanes)
            .map(|i| {
                let part = self.lanes_of(v, i * most.lanes, most.lanes);
                let wide = self.lanes_of_any(part, whole.lanes);
                let wide = self.f.t(wide);
                let hidden = self.f.inst(whole, format_args!("call {whole} asm \"\", \"={class},0\"({wide})"));
                self.lanes_of(hidden, 0, most.lanes)
            })
            .collect();
        self.joined(parts)
    }

    /// A vector with so many lanes behind which anything is.
    fn lanes_of_any(&mut self, v: Val, count: u32) -> Val {
        if v.ty.lanes == count {
            return v;
        }
        let order: Vec<String> =
            (0..count).map(|k| if k < v.ty.lanes { format!("i32 {k}") } else { "i32 poison".into() }).collect();
        let x = self.f.t(v);
        let ty = Ty::new(v.ty.elem, count);
        self.f.inst(ty, format_args!("shufflevector {x}, {} poison, <{count} x i32> <{}>", v.ty, order.join(", ")))
    }

    /// The part of a vector that one register holds. Masked accesses are cut to it here: where LLVM 22 does it for AVX2, a half whose
    /// mask turns out to be false for all lanes is read without a mask.
    fn pieces(&self, ty: Ty) -> Ty {
        let fit = (self.width as u32 * 32 / ty.elem.bits()).max(1);
        Ty::new(ty.elem, ty.lanes.min(fit))
    }

    /// Address and mask of piece `i` of an access to a vector of type `ty`.
    fn piece(&mut self, p: Val, mask: Val, ty: Ty, pieces: Ty, i: u32) -> (Val, Val) {
        let first = i * pieces.lanes;
        let at = self.f.gep(p, ty.elem, Val::i64(i64::from(first)));
        (at, self.lanes_of(mask, first, pieces.lanes))
    }

    /// Lanes `first` to `first + count` of a vector.
    pub(crate) fn lanes_of(&mut self, v: Val, first: u32, count: u32) -> Val {
        if v.ty.lanes == count {
            return v;
        }
        let order = Val { ty: Ty::new(Elem::I32, count), op: Operand::Lanes(i64::from(first), 1) };
        let (x, order) = (self.f.t(v), self.f.t(order));
        self.f.inst(Ty::new(v.ty.elem, count), format_args!("shufflevector {x}, {} poison, {order}", v.ty))
    }

    /// Vectors one after another, a power of two of them.
    pub(crate) fn joined(&mut self, mut parts: Vec<Val>) -> Val {
        while parts.len() > 1 {
            parts = parts
                .chunks(2)
                .map(|pair| {
                    let ty = Ty::new(pair[0].ty.elem, 2 * pair[0].ty.lanes);
                    let order = Val { ty: ty.with(Elem::I32), op: Operand::Lanes(0, 1) };
                    let (a, b, order) = (self.f.t(pair[0]), self.f.t(pair[1]), self.f.t(order));
                    self.f.inst(ty, format_args!("shufflevector {a}, {b}, {order}"))
                })
                .collect();
        }
        parts[0]
    }

    /// Every `step`th element from `p` on: loads that together touch nothing beyond the last of them.
    fn strided(&mut self, p: Val, step: u32, elem: Elem, lanes: u32) -> Val {
        let ty = Ty::new(elem, lanes);
        let last_load = (step - 1) * (lanes - 1); // ends with the last element wanted
        let mut out = Val { ty, op: Operand::Poison };
        for k in 0..step {
            let first = if k + 1 == step { last_load } else { k * lanes };
            let at = self.f.gep(p, elem, Val::i64(i64::from(first)));
            let part = self.f.load(ty, at, elem.bits() / 8);
            // Lane i wants element step * i; lanes served by an earlier load keep what they have.
            let order: Vec<String> = (0..lanes)
                .map(|i| {
                    let wanted = i * step;
                    let here = wanted >= k * lanes && wanted < first + lanes;
                    format!("i32 {}", if here { lanes + wanted - first } else { i })
                })
                .collect();
            let (old, part) = (self.f.t(out), self.f.t(part));
            out = self.f.inst(ty, format_args!("shufflevector {old}, {part}, <{lanes} x i32> <{}>", order.join(", ")));
        }
        out
    }

    fn reversed(&mut self, v: Val) -> Val {
        let order = Val { ty: v.ty.with(Elem::I32), op: Operand::Lanes(i64::from(v.ty.lanes) - 1, -1) };
        let (x, order) = (self.f.t(v), self.f.t(order));
        self.f.inst(v.ty, format_args!("shufflevector {x}, {} poison, {order}", v.ty))
    }

    /// Brings an element of `buffer` nearer; a hint.
    pub fn prefetch(&mut self, buffer: usize, index: &[Scalar]) -> Result<(), Fault> {
        if let Shape::One(p) = self.shape(buffer, index)? {
            let number = |n| Val { ty: Ty::new(Elem::I32, 1), op: Operand::Int(n) };
            // An address behind the buffer is poison, which a hint may have. For reading, into all levels of the cache, data.
            self.f.intrinsic_void("llvm.prefetch", &[p.ty], &[p, number(0), number(3), number(1)]);
        }
        Ok(())
    }

    /// Writes `v`, as it lies in memory, to `buffer` at `index` in all lanes that take part.
    pub fn store(&mut self, buffer: usize, index: &[Scalar], v: Val) -> Result<(), Fault> {
        let b = &self.kernel.buffers[buffer];
        if b.space == Space::Global && b.access == Access::Read {
            return Err(fault!("a store to buffer '{}', which is only read", b.name));
        }
        let elem = memory_elem(b.dtype)?;
        let (lanes, align) = (self.lanes.unwrap_or(1), elem.bits() / 8);
        let shape = self.shape(buffer, index)?;
        match shape {
            // Under a mask some lane is active, so a uniform value is stored by some lane.
            Shape::One(p) if v.uniform() => self.f.store(v, p, align),
            // The last lane's store is the one that stays.
            Shape::One(p) if self.mask.is_none() => {
                let last = self.f.extract(v, lanes - 1);
                self.f.store(last, p, align);
            }
            Shape::Inside(p) => {
                let mut v = self.f.splat(v, lanes);
                if let Some(mask) = self.mask {
                    let old = self.f.load(v.ty, p, align);
                    v = self.f.select(mask, v, old);
                }
                self.f.store(v, p, align);
            }
            Shape::Step(p, 1) => {
                let v = self.f.splat(v, lanes);
                match self.mask {
                    None => self.f.store(v, p, align),
                    Some(mask) => self.masked_store(v, p, mask, align),
                }
            }
            Shape::Step(p, -1) if self.mask.is_none() => {
                let v = self.f.splat(v, lanes);
                let v = self.reversed(v);
                let first = self.f.gep(p, elem, Val::i64(1 - i64::from(lanes)));
                self.f.store(v, first, align);
            }
            shape => {
                let ptrs = self.addresses(shape, elem, lanes);
                let v = self.f.splat(v, lanes);
                let mask = self.mask.unwrap_or(Val::bool(true));
                let mask = self.f.splat(mask, lanes);
                let args = [v, ptrs, Val::int(Elem::I32, i64::from(align)), mask];
                self.f.intrinsic_void("llvm.masked.scatter", &[v.ty, ptrs.ty], &args);
            }
        }
        Ok(())
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

fn zero_of(ty: Ty) -> Val {
    let op = if ty.elem.is_float() { Operand::Float(0) } else { Operand::Int(0) };
    Val { ty, op }
}
