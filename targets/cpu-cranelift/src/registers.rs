//! Buffers in registers: which `Reg` buffers become variables, and how they are read and written.
//!
//! Cranelift keeps what lies in stack memory there. So a kernel is written twice: the first time every access to a `Reg` buffer is only looked at. Where all
//! of them are at constant places, the buffer is variables the second time: one for each vector if all accesses are whole vectors, one for each
//! element if all are single elements. Any other buffer is memory of the stack.

use crate::emit::Emit;
use crate::values::{Elem, Operand, Ty, Val};
use cranelift_codegen::ir::Value;
use cranelift_frontend::Variable;
use infc_ir::{Fault, fault};

/// Variables of the largest buffer in registers. What is beyond the machine's registers is spilled, but not by much.
const MOST: i64 = 256;

/// Where a buffer lies.
#[derive(Clone, Debug)]
pub enum Place {
    /// Behind an address.
    Memory(Value),
    /// In variables.
    Registers(Registers),
}

/// A buffer in variables.
#[derive(Clone, Debug)]
pub struct Registers {
    variables: Vec<Variable>,
    /// Elements in each.
    each: i64,
    /// Variables of a row.
    columns: usize,
}

/// How a `Reg` buffer is accessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    single: bool,
    other: bool,
    /// What divides the places and the lengths of all accesses to several elements; 0 without any.
    whole: i64,
}

impl Uses {
    /// Notes an access: the element of lane 0, the distance between lanes and their number, where these are constants.
    pub fn see(&mut self, at: Option<(i64, i64, u32)>) {
        match at {
            Some((_, _, 1)) => self.single = true,
            Some((first, 1, lanes)) => self.whole = gcd(gcd(self.whole, first), i64::from(lanes)),
            _ => self.other = true,
        }
    }

    /// Elements of each variable of a buffer of `span` of them, if it can be variables.
    pub fn each(self, elem: Elem, span: i64) -> Option<i64> {
        let vector = i64::from(128 / elem.bits());
        let each = match self {
            Uses { other: true, .. } => return None,
            Uses { whole: 0, .. } => 1,
            Uses { single: false, whole, .. } if whole % vector == 0 => vector,
            Uses { .. } => return None,
        };
        (span / each <= MOST && span % each == 0).then_some(each)
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Emit<'_, '_> {
    /// Variables for a buffer. Its contents are undefined: zeros that nothing uses.
    pub fn registers(&mut self, buffer: usize, elem: Elem, span: i64, each: i64) -> Registers {
        let ty = if each == 1 { elem.scalar() } else { elem.vector() };
        let variables = (0..span / each).map(|_| self.f.b.declare_var(ty)).collect();
        let row = self.kernel.buffers[buffer].dims.last().and_then(|d| d.known()).unwrap_or(1);
        let registers = Registers { variables, each, columns: (row / each).max(1) as usize };
        self.define(&registers, elem);
        registers
    }

    /// At the head of a loop, makes the variables parameters of it in the order in which their values are to be computed, which is
    /// the order that Cranelift takes: the shorter axis varies fastest. So few factors of a tile of products are in registers at a time.
    pub fn order_registers(&mut self) {
        for place in self.places.clone() {
            let Some(Place::Registers(Registers { variables, columns, .. })) = place else { continue };
            let rows = variables.len() / columns;
            let by_column = |i: usize| i % rows * columns + i / rows;
            let by_row = rows >= columns || rows * columns != variables.len();
            for i in 0..variables.len() {
                self.f.b.use_var(variables[if by_row { i } else { by_column(i) }]);
            }
            self.f.shared_first = rows > columns;
        }
    }

    /// Gives all variables of a buffer a value.
    pub fn define(&mut self, registers: &Registers, elem: Elem) {
        let zero = if elem.is_float() { Val::float(elem, 0.0) } else { Val::int(elem, 0) };
        let zero = if registers.each == 1 {
            self.f.value(zero)
        } else {
            let zero = self.f.splat(zero, registers.each as u32);
            self.f.pieces(zero)[0]
        };
        for &v in &registers.variables {
            self.f.b.def_var(v, zero);
        }
    }

    fn of(&self, buffer: usize) -> Result<&Registers, Fault> {
        match &self.places[buffer] {
            Some(Place::Registers(r)) => Ok(r),
            _ => Err(fault!("buffer '{}' is not in registers", self.kernel.buffers[buffer].name)),
        }
    }

    /// The variables of an access.
    fn touched(&self, buffer: usize, first: i64, step: i64) -> Result<Vec<Variable>, Fault> {
        let registers = self.of(buffer)?;
        let lanes = if step == 0 { 1 } else { i64::from(self.lanes.unwrap_or(1)) };
        (first..first + lanes)
            .step_by(registers.each as usize)
            .map(|at| {
                let variable = usize::try_from(at / registers.each).ok().and_then(|i| registers.variables.get(i));
                variable
                    .copied()
                    .ok_or_else(|| fault!("element {at} is outside of buffer '{}'", self.kernel.buffers[buffer].name))
            })
            .collect()
    }

    /// What lies at a constant place.
    pub fn register_read(&mut self, buffer: usize, first: i64, step: i64, elem: Elem) -> Result<Val, Fault> {
        let values: Vec<Value> = self.touched(buffer, first, step)?.into_iter().map(|v| self.f.b.use_var(v)).collect();
        let lanes = if step == 0 { 1 } else { self.lanes.unwrap_or(1) };
        let held = super::ops::memory_elem(self.kernel.buffers[buffer].dtype)?;
        let v = if lanes == 1 { Val::one(held, values[0]) } else { self.f.many(Ty::new(held, lanes), values) };
        // A read of the same bits as another dtype.
        Ok(if held == elem { v } else { self.f.cast(crate::values::Cast::Bitcast, v, elem) })
    }

    /// Writes to a constant place in the lanes that take part.
    pub fn register_write(&mut self, buffer: usize, first: i64, step: i64, v: Val) -> Result<(), Fault> {
        let variables = self.touched(buffer, first, step)?;
        let lanes = self.lanes.unwrap_or(1);
        if step == 0 {
            // Of several lanes the last one's store stays; a uniform value is stored by some lane.
            let old = match self.mask {
                Some(_) if !v.uniform() => Some(self.register_read(buffer, first, 0, v.ty.elem)?),
                _ => None,
            };
            let v = match (old, self.mask) {
                (Some(old), Some(mask)) => (0..lanes).fold(old, |kept, lane| {
                    let (c, x) = (self.f.extract(mask, lane), self.f.extract(v, lane));
                    self.f.select(c, x, kept)
                }),
                _ if v.uniform() => v,
                _ => self.f.extract(v, lanes - 1),
            };
            let value = self.f.value(v);
            self.f.b.def_var(variables[0], value);
            return Ok(());
        }
        let mut v = self.f.splat(v, lanes);
        if let Some(mask) = self.mask {
            let old = self.register_read(buffer, first, step, v.ty.elem)?;
            v = self.f.select(mask, v, old);
        }
        debug_assert!(!matches!(v.op, Operand::One(_)));
        let pieces = self.f.pieces(v);
        for (variable, piece) in variables.into_iter().zip(pieces) {
            self.f.b.def_var(variable, piece);
        }
        Ok(())
    }
}
