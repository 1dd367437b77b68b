//! Statements of a vector loop, for a few lanes together, with the vector types of `vectors`. What has the same value in all lanes stays a
//! scalar; what has no form as a vector is computed lane by lane.
//!
//! Lane numbers are the variable [`LANE`]: the loop variable is the first lane's plus it.

use crate::ops;
use crate::scalars::{LONG, Writer};
use crate::text::{Level, Text};
use crate::types;
use crate::vectors::{self, Lanes, VecTy};
use infc_ir::scalar::{Binary, Kind};
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::math::{self, is_transcendental};
use std::collections::HashMap;

/// The number of a lane.
pub const LANE: u32 = u32::MAX;

/// The first lane's value of the loop variable.
pub const FIRST: u32 = u32::MAX - 1;

/// What is known of a vector loop.
#[derive(Clone, Debug, Default)]
pub struct Vector {
    /// Its lanes; 0 outside of one.
    pub lanes: usize,
    /// Vectors that have names, by the `Let`.
    pub locals: HashMap<u32, (String, Lanes, DType)>,
    /// The lane that scalars are printed for: a number or a variable.
    at: Option<String>,
    varying: HashMap<Scalar, bool>,
    done: HashMap<Scalar, Lanes>,
}

impl Vector {
    /// Forgets what the last statement has computed.
    pub fn begin(&mut self) {
        self.varying.clear();
        self.done.clear();
    }

    /// The element of a vector, where scalars are printed for one lane.
    pub fn element(&self, local: u32) -> Option<Text> {
        let (at, (name, _, dtype)) = self.at.as_ref().zip(self.locals.get(&local))?;
        Some(match dtype {
            DType::Bool => Text::infix("!=", &Text::atom(format!("{name}[{at}]")), &Text::atom("0")),
            _ => Text::atom(format!("{name}[{at}]")),
        })
    }
}

/// What was known before scalars were printed for one lane.
pub struct Outside {
    uses: HashMap<Scalar, usize>,
    done: HashMap<Scalar, Text>,
    parts: HashMap<Expr, Text>,
    lanes: HashMap<Scalar, Lanes>,
    varying: HashMap<Scalar, bool>,
    at: Option<String>,
}

impl Writer<'_, '_> {
    /// Does a prepared scalar differ between lanes?
    pub fn varies(&mut self, s: Scalar) -> bool {
        if self.vector.lanes == 0 || self.vector.at.is_some() {
            return false;
        }
        if let Some(&known) = self.vector.varying.get(&s) {
            return known;
        }
        let found = match s.kind() {
            Kind::Index(e) => e.uses_var(LANE),
            Kind::Local(n) => self.vector.locals.contains_key(n),
            Kind::Const(_) => false,
            Kind::Read { index, guard, .. } => {
                index.iter().copied().chain(guard.iter().flat_map(|(c, f)| [*c, *f])).any(|o| self.varies(o))
            }
            _ => s.operands().into_iter().any(|o| self.varies(o)),
        };
        self.vector.varying.insert(s, found);
        found
    }

    /// Goes on for one lane, which is called `name`, until [`Writer::leave_lane`].
    pub fn lane(&mut self, name: &str) -> Outside {
        Outside {
            uses: std::mem::take(&mut self.uses),
            done: std::mem::take(&mut self.done),
            parts: std::mem::take(&mut self.parts),
            lanes: std::mem::take(&mut self.vector.done),
            varying: std::mem::take(&mut self.vector.varying),
            at: self.vector.at.replace(name.to_owned()),
        }
    }

    /// Goes on for all lanes.
    pub fn leave_lane(&mut self, outside: Outside) {
        let Outside { uses, done, parts, lanes, varying, at } = outside;
        (self.uses, self.done, self.parts, self.vector.done, self.vector.varying, self.vector.at) =
            (uses, done, parts, lanes, varying, at);
    }

    /// Prints for the lane of this number.
    fn at_lane<R>(&mut self, lane: usize, print: impl FnOnce(&mut Self) -> R) -> R {
        let outside = self.lane(&lane.to_string());
        self.values.insert(LANE, Expr::int(lane as i64));
        let result = print(self);
        self.values.remove(&LANE);
        self.leave_lane(outside);
        result
    }

    /// The text of a scalar for one lane.
    fn lane_scalar(&mut self, s: Scalar, lane: usize) -> Result<Text, Fault> {
        self.at_lane(lane, |w| {
            let [s] = w.statement([s]);
            w.scalar(s)
        })
    }

    /// A condition that holds for all lanes if it holds for the first and the last one, as a text that says so.
    pub fn for_all(&mut self, cond: Scalar) -> Result<Option<Text>, Fault> {
        if !convex(cond) {
            return Ok(None);
        }
        let (first, last) = (self.lane_scalar(cond, 0)?, self.lane_scalar(cond, self.vector.lanes - 1)?);
        Ok(Some(match () {
            () if first.text == last.text || first.text == "1" => last,
            () if last.text == "1" => first,
            () => Text::new(Level::Other, format!("{} && {}", first.operand(), last.operand())),
        }))
    }

    /// The vector of a prepared scalar.
    pub fn lanes(&mut self, s: Scalar) -> Result<Lanes, Fault> {
        self.lanes_node(s, true)
    }

    fn lanes_node(&mut self, s: Scalar, root: bool) -> Result<Lanes, Fault> {
        if let Some(done) = self.vector.done.get(&s) {
            return Ok(done.clone());
        }
        let count = self.vector.lanes;
        if !self.varies(s) {
            let x = self.operand(s)?;
            return Ok(match s.dtype() {
                DType::Bool => {
                    let ones = Text::minus(&Text::new(Level::Other, x.text));
                    self.helpers.splat(VecTy::mask(32, count), &ones)
                }
                d => self.helpers.splat(VecTy::value(d, count), &x),
            });
        }
        let value = self.lanes_of(s)?;
        let often = self.uses.get(&s).is_some_and(|&n| n > 1);
        if matches!(s.kind(), Kind::Local(_)) || !(often || !root && value.text.text.len() > LONG) {
            return Ok(value);
        }
        let name = self.scope.fresh("t");
        let ty = self.helpers.vector_type(value.ty);
        self.declare(&name, format!("const {ty} {name} = {};", value.text.text));
        let named = Lanes { text: Text::atom(name), ty: value.ty };
        self.vector.done.insert(s, named.clone());
        Ok(named)
    }

    /// An operand of an operator that takes a vector and a scalar.
    fn side(&mut self, s: Scalar) -> Result<Lanes, Fault> {
        match s.dtype() {
            DType::F32 | DType::F64 if !self.varies(s) => {
                Ok(Lanes { text: self.operand(s)?, ty: VecTy::value(s.dtype(), self.vector.lanes) })
            }
            _ => self.lanes_node(s, false),
        }
    }

    fn lanes_of(&mut self, s: Scalar) -> Result<Lanes, Fault> {
        match s.kind() {
            Kind::Const(_) => Err(fault!("a constant differs between lanes")),
            Kind::Index(e) => self.lanes_of_index(s, *e),
            Kind::Local(n) => self.vector.locals.get(n).map(|l| l.1.clone()).ok_or_else(|| fault!("t{n} is used before its Let")),
            Kind::Read { source, index, guard } => self.lanes_read(s, *source as usize, index, *guard),
            Kind::Unary(op, a) if is_transcendental(*op) => {
                let x = self.lanes_node(*a, false)?;
                self.lanes_function(op.name(), a.dtype(), &[&x], &|x| Scalar::unary(*op, x[0]))
            }
            Kind::Unary(op, a) => {
                let x = self.lanes_node(*a, false)?;
                vectors::unary(self.helpers, *op, a.dtype(), &x)
            }
            Kind::Binary(op, a, b) => self.lanes_binary(*op, *a, *b),
            Kind::Fma(a, b, c) => {
                let (x, y, z) = (self.lanes_node(*a, false)?, self.lanes_node(*b, false)?, self.lanes_node(*c, false)?);
                vectors::fma(self.helpers, s.dtype(), &x, &y, &z)
            }
            Kind::Select(c, a, b) if !self.varies(*c) => {
                let (c, x, y) = (self.operand(*c)?, self.lanes_node(*a, false)?, self.lanes_node(*b, false)?);
                let bits = x.ty.bits.max(y.ty.bits);
                let (x, y) = match s.dtype() {
                    DType::Bool => (vectors::mask(self.helpers, &x, bits), vectors::mask(self.helpers, &y, bits)),
                    _ => (x, y),
                };
                Ok(Lanes { text: Text::choose(&c, &x.text, &y.text), ty: x.ty })
            }
            Kind::Select(c, a, b) => {
                let (c, x, y) = (self.lanes_node(*c, false)?, self.lanes_node(*a, false)?, self.lanes_node(*b, false)?);
                let (c, x, y) = match s.dtype() {
                    DType::Bool => {
                        let bits = c.ty.bits.max(x.ty.bits).max(y.ty.bits);
                        let [c, x, y] = [c, x, y].map(|m| vectors::mask(self.helpers, &m, bits));
                        (c, x, y)
                    }
                    _ => (vectors::mask(self.helpers, &c, x.ty.bits), x, y),
                };
                Ok(self.helpers.select(&c.text, &x, &y))
            }
            Kind::Cast(a) => {
                let x = self.lanes_node(*a, false)?;
                vectors::cast(self.helpers, a.dtype(), s.dtype(), &x)
            }
            Kind::Bitcast(a) => {
                let x = self.lanes_node(*a, false)?;
                vectors::bitcast(self.helpers, a.dtype(), s.dtype(), &x)
            }
        }
    }

    fn lanes_binary(&mut self, op: Binary, a: Scalar, b: Scalar) -> Result<Lanes, Fault> {
        let d = a.dtype();
        if let Some(known) = ops::known_comparison(op, a, b) {
            let ty = VecTy::mask(32, self.vector.lanes);
            return Ok(self.helpers.splat(ty, &Text::number(((if known { "-1" } else { "0" }).to_owned(), known))));
        }
        if matches!(op, Binary::Pow | Binary::Atan2) && d.is_float() {
            let (x, y) = (self.lanes_node(a, false)?, self.lanes_node(b, false)?);
            return self.lanes_function(op.name(), d, &[&x, &y], &|x| Scalar::binary(op, x[0], x[1]));
        }
        if d.is_float() && matches!(op, Binary::Min | Binary::Max) {
            let (value, limit) = if a.as_float().is_some() { (b, a) } else { (a, b) };
            if let Some(limit) = limit.as_float() {
                let x = self.lanes_node(value, false)?;
                if let Some(r) = vectors::limited(self.helpers, op, d, &x, limit) {
                    return Ok(r);
                }
            }
        }
        if matches!(op, Binary::Shl | Binary::Shr)
            && let Some(by) = b.as_int()
        {
            let x = self.lanes_node(a, false)?;
            if let Some(r) = vectors::shift(self.helpers, op, d, &x, by) {
                return Ok(r);
            }
        }
        let arithmetic = matches!(op, Binary::Add | Binary::Sub | Binary::Mul | Binary::Div);
        let (x, y) = match arithmetic {
            true => (self.side(a)?, self.side(b)?),
            false => (self.lanes_node(a, false)?, self.lanes_node(b, false)?),
        };
        vectors::binary(self.helpers, op, d, &x, &y)
    }

    fn lanes_of_index(&mut self, s: Scalar, e: Expr) -> Result<Lanes, Fault> {
        let count = self.vector.lanes;
        let ty = VecTy { kind: 'i', bits: 64, lanes: count };
        match e.affine_in(LANE) {
            Some((step, rest)) => {
                let rest = self.expr(rest)?;
                let first = self.helpers.splat(ty, &rest);
                let list: Vec<String> = (0..count as i64).map(|k| types::integer(step.saturating_mul(k))).collect();
                let steps = Text::atom(format!("({}){{{}}}", ty.name(), list.join(", ")));
                Ok(Lanes { text: Text::arithmetic('+', &first.text, &steps), ty })
            }
            None => self.one_by_one(s),
        }
    }

    /// The lanes of a scalar, one by one.
    fn one_by_one(&mut self, s: Scalar) -> Result<Lanes, Fault> {
        let count = self.vector.lanes;
        let elements: Vec<Text> = (0..count).map(|k| self.lane_scalar(s, k)).collect::<Result<_, _>>()?;
        vectors::listed(self.helpers, s.dtype(), count, &elements)
    }

    /// Are the elements of all lanes next to each other?
    fn adjacent(&mut self, buffer: usize, index: &[Scalar]) -> bool {
        let is_array = self.places.get(buffer).and_then(Option::as_ref).is_some_and(|p| p.pointer);
        let Some(kernel) = self.kernel.filter(|_| is_array) else { return false };
        let mut offset = Expr::int(0);
        for (&i, &stride) in index.iter().zip(&kernel.buffers[buffer].strides) {
            match i.as_index() {
                Some(e) => offset = offset + e * stride,
                None if self.varies(i) => return false,
                None => {}
            }
        }
        self.resolve(offset).affine_in(LANE).is_some_and(|(step, _)| step == 1)
    }

    /// The address of the first lane's element.
    fn address(&mut self, buffer: usize, index: &[Scalar]) -> Result<Text, Fault> {
        let element = self.at_lane(0, |w| {
            let index = w.access(buffer, index);
            w.element(buffer, &index)
        })?;
        Ok(Text::new(Level::Unary, format!("&{}", element.text)))
    }

    fn lanes_read(
        &mut self,
        s: Scalar,
        buffer: usize,
        index: &[Scalar],
        guard: Option<(Scalar, Scalar)>,
    ) -> Result<Lanes, Fault> {
        if !self.adjacent(buffer, index) {
            return self.one_by_one(s);
        }
        let dtype = s.dtype();
        let all = match guard {
            Some((cond, _)) if self.varies(cond) => match self.for_all(cond)? {
                Some(all) => Some(all),
                None => return self.one_by_one(s),
            },
            Some((cond, _)) => Some(self.operand(cond)?),
            None => None,
        };
        let address = self.address(buffer, index)?;
        let ty = VecTy::memory(dtype, self.vector.lanes);
        let raw = Lanes { text: Text::call(&self.helpers.vector_memory("load", ty), &[&address]), ty };
        let value = vectors::from_memory(self.helpers, dtype, raw)?;
        let (Some(all), Some((cond, fallback))) = (all, guard) else { return Ok(value) };
        let other = if self.varies(cond) { self.one_by_one(s)? } else { self.lanes_node(fallback, false)? };
        let other = match dtype {
            DType::Bool => vectors::mask(self.helpers, &other, value.ty.bits),
            _ => other,
        };
        Ok(Lanes { text: Text::choose(&all, &value.text, &other.text), ty: value.ty })
    }

    /// Stores the vector of a prepared value.
    pub fn lanes_store(&mut self, buffer: usize, index: &[Scalar], value: Scalar) -> Result<(), Fault> {
        let kernel = self.kernel.ok_or_else(|| fault!("buffer {buffer} outside of a kernel"))?;
        let dtype = kernel.buffers[buffer].dtype;
        let x = self.lanes(value)?;
        if self.adjacent(buffer, index) {
            let x = vectors::to_memory(self.helpers, dtype, x)?;
            let address = self.address(buffer, index)?;
            let store = self.helpers.vector_memory("store", x.ty);
            self.line(format!("{store}({}, {});", address.text, x.text.text));
            return Ok(());
        }
        let name = self.scope.fresh("v");
        let ty = self.helpers.vector_type(x.ty);
        self.declare(&name, format!("const {ty} {name} = {};", x.text.text));
        for k in 0..self.vector.lanes {
            let element = self.at_lane(k, |w| {
                let index = w.access(buffer, index);
                w.element(buffer, &index)
            })?;
            let one = Text::atom(format!("{name}[{k}]"));
            let one = if dtype == DType::Bool { Text::infix("!=", &one, &Text::atom("0")) } else { one };
            let one = ops::to_memory(self.helpers, dtype, one);
            self.line(format!("{} = {};", element.text, one.text));
        }
        Ok(())
    }

    /// Names the vector of a `Let`.
    pub fn lanes_let(&mut self, local: u32, value: Scalar) -> Result<(), Fault> {
        let x = self.lanes(value)?;
        let name = self.scope.fresh("v");
        let ty = self.helpers.vector_type(x.ty);
        self.declare(&name, format!("const {ty} {name} = {};", x.text.text));
        let named = Lanes { text: Text::atom(&name), ty: x.ty };
        self.vector.locals.insert(local, (name, named, value.dtype()));
        Ok(())
    }

    /// The function `exp_f32x4` and the like: the arithmetic of the scalar one, on vectors.
    fn lanes_function(
        &mut self,
        op: &str,
        dtype: DType,
        arguments: &[&Lanes],
        body: &dyn Fn(&[Scalar]) -> Scalar,
    ) -> Result<Lanes, Fault> {
        let count = self.vector.lanes;
        let ty = VecTy::value(dtype, count);
        let name = format!("{op}_{}x{count}", dtype.name());
        let texts: Vec<&Text> = arguments.iter().map(|a| &a.text).collect();
        let call = Lanes { text: Text::call(&name, &texts), ty };
        if !self.helpers.begin(&name) {
            return Ok(call);
        }
        let list: Vec<Scalar> = (0..arguments.len()).map(|k| Scalar::local(dtype, k as u32)).collect();
        let v = self.helpers.vector_type(ty);
        let mut w = Writer::new(None, self.helpers);
        w.vector.lanes = count;
        let names: Vec<String> = ["x", "y"][..arguments.len()].iter().map(|n| w.scope.fresh(n)).collect();
        for (k, n) in names.iter().enumerate() {
            w.vector.locals.insert(k as u32, (n.clone(), Lanes { text: Text::atom(n), ty }, dtype));
        }
        let [value] = w.statement([math::lower(body(&list), false)]);
        let text = w.lanes(value)?;
        w.line(format!("return {};", text.text.text));
        let lines = w.finish();
        let list: Vec<String> = names.iter().map(|n| format!("{v} {n}")).collect();
        self.helpers.define(format!("static inline {v} {name}({}) {{\n{lines}\n}}\n", list.join(", ")));
        Ok(call)
    }
}

/// Does a condition that holds for two lanes hold for all between them?
fn convex(cond: Scalar) -> bool {
    match cond.kind() {
        Kind::Const(_) => true,
        Kind::Binary(Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge, a, b) => {
            let affine = |s: &Scalar| s.as_index().is_some_and(|e| e.affine_in(LANE).is_some());
            affine(a) && affine(b)
        }
        Kind::Binary(Binary::And | Binary::Mul | Binary::Min, a, b) if cond.dtype() == DType::Bool => convex(*a) && convex(*b),
        _ => {
            let mut varies = false;
            cond.visit(&mut |n| {
                varies |= match n.kind() {
                    Kind::Index(e) => e.uses_var(LANE),
                    Kind::Local(_) => true,
                    _ => false,
                }
            });
            !varies
        }
    }
}
