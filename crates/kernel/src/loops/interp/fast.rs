//! Runs compiled kernels.

use super::compile::{Access, Code, Ins, Op, Place, Program, compile};
use super::{Memory, Stop};
use crate::loops::Kernel;
use infc_ir::expr::{Node, floor_div};
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, eval};

/// Runs all tasks.
pub(super) fn run(kernel: &Kernel, memory: &mut Memory) -> Result<(), Stop> {
    let tasks = kernel.tasks.known();
    let tasks = tasks.ok_or_else(|| Stop::Internal(format!("the number of tasks, {}, has no value", kernel.tasks)))?;
    let program = compile(kernel, tasks, memory)?;
    let mut m = Machine { program: &program, memory, values: vec![0; program.slots], lanes: 1, mask: None };
    program.constants.iter().for_each(|&(at, v)| m.values[at] = v);
    for &(at, n) in &program.columns {
        (0..n).for_each(|j| m.values[at + j] = j as u64);
    }
    for task in 0..tasks {
        m.values[program.task.at] = task as u64;
        m.all(&program.start)?;
        m.body(&program.body)?;
    }
    Ok(())
}

struct Machine<'a, 'k> {
    program: &'a Program,
    memory: &'a mut Memory<'k>,
    values: Vec<u64>,
    lanes: usize,
    /// The active lanes, where not all are.
    mask: Option<Vec<bool>>,
}

impl Machine<'_, '_> {
    fn body(&mut self, body: &[Code]) -> Result<(), Stop> {
        body.iter().try_for_each(|c| self.code(c))
    }

    fn all(&mut self, code: &[Ins]) -> Result<(), Stop> {
        code.iter().try_for_each(|i| self.ins(i))
    }

    fn code(&mut self, code: &Code) -> Result<(), Stop> {
        match code {
            Code::Run(ins) => self.all(ins),
            Code::Loop { var, extent, start, body } => {
                for i in 0..self.int(*extent) {
                    self.values[var.at] = i as u64;
                    self.all(start)?;
                    self.body(body)?;
                }
                Ok(())
            }
            Code::Lanes { count, start, body } => {
                self.lanes = *count;
                let done = self.all(start).and_then(|()| self.body(body));
                self.lanes = 1;
                done
            }
            Code::While { before, cond, body } => loop {
                self.all(before)?;
                match self.split(*cond) {
                    (None, true) => self.body(body)?,
                    (None, false) => return Ok(()),
                    (Some(_), _) => return Err(Stop::Internal("the condition of a while loop differs between lanes".into())),
                }
            },
            Code::Store { before, access, value } => {
                self.all(before)?;
                self.store(access, *value)
            }
            Code::If { before, cond, then, otherwise } => {
                self.all(before)?;
                match self.split(*cond) {
                    (None, true) => self.body(then),
                    (None, false) => self.body(otherwise),
                    (Some(yes), _) => {
                        let outer = self.mask.take();
                        let active = |j: usize| outer.as_ref().is_none_or(|m| m[j]);
                        let no = yes.iter().enumerate().map(|(j, y)| !y && active(j)).collect();
                        self.mask = Some(yes);
                        let mut done = self.body(then);
                        if done.is_ok() {
                            self.mask = Some(no);
                            done = self.body(otherwise);
                        }
                        self.mask = outer;
                        done
                    }
                }
            }
            Code::Check { before, cond, code } => {
                self.all(before)?;
                if self.split(*cond) == (None, true) { Ok(()) } else { Err(Stop::Check(*code)) }
            }
            Code::Alloc(buffer) => self.memory.alloc(*buffer),
        }
    }

    fn get(&self, p: Place, j: usize) -> u64 {
        self.values[if p.wide { p.at + j } else { p.at }]
    }
    fn int(&self, p: Place) -> i64 {
        self.values[p.at] as i64
    }
    fn active(&self, j: usize) -> bool {
        self.mask.as_ref().is_none_or(|m| m[j])
    }

    /// Whether a condition holds in all active lanes, or in which it does.
    fn split(&self, cond: Place) -> (Option<Vec<bool>>, bool) {
        if !cond.wide {
            return (None, self.values[cond.at] != 0);
        }
        let yes: Vec<bool> = (0..self.lanes).map(|j| self.active(j) && self.get(cond, j) != 0).collect();
        if !yes.contains(&true) {
            return (None, false);
        }
        let all = yes.iter().enumerate().all(|(j, &y)| y || !self.active(j));
        if all { (None, true) } else { (Some(yes), false) }
    }

    #[inline(always)]
    fn map(&mut self, to: Place, f: impl Fn(&Self, usize) -> u64) {
        let n = if to.wide { self.lanes } else { 1 };
        for j in 0..n {
            self.values[to.at + j] = f(self, j);
        }
    }

    #[inline(always)]
    fn map2(&mut self, to: Place, a: Place, b: Place, f: impl Fn(u64, u64) -> u64) {
        self.map(to, |m, j| f(m.get(a, j), m.get(b, j)));
    }

    #[inline(always)]
    fn f32s(&mut self, to: Place, a: Place, b: Place, f: impl Fn(f32, f32) -> f32) {
        // An f32 travels as an f64: exact both ways.
        self.map2(to, a, b, |x, y| f64::from(f(f64::from_bits(x) as f32, f64::from_bits(y) as f32)).to_bits());
    }

    fn ins(&mut self, ins: &Ins) -> Result<(), Stop> {
        let to = ins.to;
        match &ins.op {
            Op::Affine(terms, constant) => self.map(to, |m, j| {
                terms.iter().fold(*constant, |acc, &(p, c)| acc.saturating_add((m.get(p, j) as i64).saturating_mul(c))) as u64
            }),
            Op::Product(a, b) => self.map2(to, *a, *b, |x, y| (x as i64).saturating_mul(y as i64) as u64),
            Op::FloorDiv(a, b) => self.map2(to, *a, *b, |x, y| floor_div(x as i64, y as i64) as u64),
            Op::FloorMod(a, b) => self.map2(to, *a, *b, |x, y| {
                let (x, y) = (x as i64, y as i64);
                (if y == 0 { 0 } else { x - floor_div(x, y) * y }) as u64
            }),
            Op::Unary(op, d, a) => self.unary(*op, *d, to, *a),
            Op::Binary(op, d, a, b) => self.binary(*op, *d, to, *a, *b),
            Op::Fma(DType::F32, a, b, c) => self.map(to, |m, j| {
                let [x, y, z] = [*a, *b, *c].map(|p| f64::from_bits(m.get(p, j)) as f32);
                f64::from(x.mul_add(y, z)).to_bits()
            }),
            Op::Fma(d, a, b, c) => self.map(to, |m, j| eval::fma(*d, m.get(*a, j), m.get(*b, j), m.get(*c, j))),
            Op::Select(c, a, b) => self.map(to, |m, j| if m.get(*c, j) != 0 { m.get(*a, j) } else { m.get(*b, j) }),
            Op::Cast(from, d, a) => self.map(to, |m, j| eval::cast(*from, *d, m.get(*a, j))),
            Op::Bitcast(from, d, a) => self.map(to, |m, j| eval::from_memory(*d, eval::to_memory(*from, m.get(*a, j)))),
            Op::Copy(a) => self.map(to, |m, j| m.get(*a, j)),
            Op::Load(access, guard) => return self.load(to, access, *guard),
        }
        Ok(())
    }

    fn unary(&mut self, op: Unary, d: DType, to: Place, a: Place) {
        self.map(to, |m, j| eval::unary(op, d, m.get(a, j)));
    }

    fn binary(&mut self, op: Binary, d: DType, to: Place, a: Place, b: Place) {
        match (op, d) {
            (Binary::Add, DType::F32) => self.f32s(to, a, b, |x, y| x + y),
            (Binary::Sub, DType::F32) => self.f32s(to, a, b, |x, y| x - y),
            (Binary::Mul, DType::F32) => self.f32s(to, a, b, |x, y| x * y),
            (Binary::Div, DType::F32) => self.f32s(to, a, b, |x, y| x / y),
            (Binary::Add, DType::I64) => self.map2(to, a, b, u64::wrapping_add),
            (Binary::Sub, DType::I64) => self.map2(to, a, b, u64::wrapping_sub),
            (Binary::Mul, DType::I64) => self.map2(to, a, b, u64::wrapping_mul),
            (Binary::Lt, DType::I64) => self.map2(to, a, b, |x, y| u64::from((x as i64) < y as i64)),
            (Binary::Le, DType::I64) => self.map2(to, a, b, |x, y| u64::from(x as i64 <= y as i64)),
            (Binary::And, DType::Bool) => self.map2(to, a, b, |x, y| x & y),
            (op, d) => self.map2(to, a, b, |x, y| eval::binary(op, d, x, y)),
        }
    }

    /// The byte of an element in lane `j`.
    #[inline(always)]
    fn place(&self, access: &Access, j: usize) -> Result<usize, Stop> {
        for &(rest, step, dim) in &access.checks {
            let at = (self.get(rest, j) as i64).wrapping_add(step.wrapping_mul(j as i64));
            if !(0..dim).contains(&at) {
                return Err(self.outside(access, j));
            }
        }
        let width = access.dtype.bytes();
        let at = (self.get(access.start, j) as i64).wrapping_add(access.step.wrapping_mul(j as i64));
        let byte = (at as usize).wrapping_mul(width);
        if at < 0 || byte.saturating_add(width) > self.memory.bytes[access.buffer as usize].len() {
            return Err(self.outside(access, j));
        }
        Ok(byte)
    }

    #[cold]
    fn outside(&self, access: &Access, j: usize) -> Stop {
        let var = |l: infc_ir::Expr| match l.node() {
            Node::Var(v) => self.program.vars.get(v).map(|&p| self.get(p, j) as i64),
            _ => None,
        };
        let index: Option<Vec<i64>> = access.index.iter().map(|i| i.as_index()?.eval(&var)).collect();
        match index {
            Some(index) => self.memory.outside(access.buffer, &index),
            None => {
                let name = &self.memory.buffers[access.buffer as usize].name;
                Stop::Internal(format!("index {:?} is outside buffer '{name}' (b{})", access.index, access.buffer))
            }
        }
    }

    fn load(&mut self, to: Place, access: &Access, guard: Option<(Place, Place)>) -> Result<(), Stop> {
        let n = if to.wide { self.lanes } else { 1 };
        for j in 0..n {
            let value = match guard {
                // A lane that is not active has no value.
                _ if to.wide && !self.active(j) => 0,
                Some((cond, fallback)) if self.get(cond, j) == 0 => self.get(fallback, j),
                _ => {
                    let at = self.place(access, j)?;
                    let bytes = &self.memory.bytes[access.buffer as usize];
                    if access.dtype == DType::F32 {
                        let raw: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
                        f64::from(f32::from_le_bytes(raw)).to_bits()
                    } else {
                        let width = access.dtype.bytes();
                        let mut raw = [0u8; 8];
                        raw[..width].copy_from_slice(&bytes[at..at + width]);
                        eval::from_memory(access.dtype, u64::from_le_bytes(raw))
                    }
                }
            };
            self.values[to.at + j] = value;
        }
        Ok(())
    }

    fn store(&mut self, access: &Access, value: Place) -> Result<(), Stop> {
        let width = access.dtype.bytes();
        for j in 0..self.lanes {
            if !self.active(j) {
                continue;
            }
            let at = self.place(access, j)?;
            let raw = eval::to_memory(access.dtype, self.get(value, j)).to_le_bytes();
            self.memory.bytes[access.buffer as usize][at..at + width].copy_from_slice(&raw[..width]);
        }
        Ok(())
    }
}
