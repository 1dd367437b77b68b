//! Runs the operations of a tape: one value for a row, or a column of lanes. Equal to [`crate::eval`] bit for bit.

use super::Source;
use super::tape::{Access, Guard, Kept, Op, Read, Reg, Tape, kept};
use crate::dtype::DType;
use crate::eval;
use crate::expr::floor_div;
use crate::fault;
use crate::fault::Fault;
use crate::scalar::{Binary, Unary};
use std::ops::Range;

/// A column of values, by how their dtype is kept.
#[derive(Clone, Debug)]
pub enum Col {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
}

impl Col {
    pub fn new(dtype: DType, n: usize) -> Col {
        match kept(dtype) {
            Kept::F32 => Col::F32(vec![0.0; n]),
            Kept::F64 => Col::F64(vec![0.0; n]),
            Kept::I64 => Col::I64(vec![0; n]),
        }
    }
    fn fit(&mut self, n: usize) {
        match self {
            Col::F32(v) => v.resize(n, 0.0),
            Col::F64(v) => v.resize(n, 0.0),
            Col::I64(v) => v.resize(n, 0),
        }
    }
    /// Lane `j` in the 64-bit form of `eval`.
    pub fn get(&self, j: usize) -> u64 {
        match self {
            Col::F32(v) => f64::from(v[j]).to_bits(),
            Col::F64(v) => v[j].to_bits(),
            Col::I64(v) => v[j] as u64,
        }
    }
    pub fn set(&mut self, j: usize, value: u64) {
        match self {
            Col::F32(v) => v[j] = f64::from_bits(value) as f32,
            Col::F64(v) => v[j] = f64::from_bits(value),
            Col::I64(v) => v[j] = value as i64,
        }
    }
    fn fill(&mut self, lanes: Range<usize>, value: u64) {
        match self {
            Col::F32(v) => v[lanes].fill(f64::from_bits(value) as f32),
            Col::F64(v) => v[lanes].fill(f64::from_bits(value)),
            Col::I64(v) => v[lanes].fill(value as i64),
        }
    }
}

/// An operand: one value, or one for each lane.
#[derive(Clone, Copy)]
pub enum Lanes<'a, T> {
    One(T),
    Each(&'a [T]),
}

impl<T: Copy> Lanes<'_, T> {
    #[inline(always)]
    fn at(self, j: usize) -> T {
        match self {
            Lanes::One(v) => v,
            Lanes::Each(v) => v[j],
        }
    }
}

#[inline(always)]
fn map1<T: Copy, U>(dst: &mut [U], a: Lanes<T>, f: impl Fn(T) -> U) {
    match a {
        Lanes::Each(a) => dst.iter_mut().zip(a).for_each(|(d, &x)| *d = f(x)),
        Lanes::One(x) => dst.iter_mut().for_each(|d| *d = f(x)),
    }
}

#[inline(always)]
fn map2<T: Copy, U>(dst: &mut [U], a: Lanes<T>, b: Lanes<T>, f: impl Fn(T, T) -> U) {
    match (a, b) {
        (Lanes::Each(a), Lanes::Each(b)) => dst.iter_mut().zip(a.iter().zip(b)).for_each(|(d, (&x, &y))| *d = f(x, y)),
        (Lanes::Each(a), Lanes::One(y)) => dst.iter_mut().zip(a).for_each(|(d, &x)| *d = f(x, y)),
        (Lanes::One(x), Lanes::Each(b)) => dst.iter_mut().zip(b).for_each(|(d, &y)| *d = f(x, y)),
        (Lanes::One(x), Lanes::One(y)) => dst.iter_mut().for_each(|d| *d = f(x, y)),
    }
}

/// The state of a row of lanes: values of variables, of uniform operations, and columns.
pub struct Rows<'a> {
    pub tape: &'a Tape,
    pub sources: &'a [Option<Source<'a>>],
    /// Number of lanes, and the lane axis' value in the first.
    pub n: usize,
    pub first: i64,
    /// Values of the loop variables.
    pub vars: Vec<i64>,
    vals: Vec<u64>,
    cols: Vec<Col>,
}

impl<'a> Rows<'a> {
    pub fn new(tape: &'a Tape, sources: &'a [Option<Source<'a>>], vars: usize) -> Rows<'a> {
        let vals = vec![0; tape.nodes.len()];
        let cols = tape.nodes.iter().map(|n| Col::new(n.dtype, 0)).collect();
        Rows { tape, sources, n: 0, first: 0, vars: vec![0; vars], vals, cols }
    }

    /// The value of an operation in lane `j`.
    pub fn get(&self, r: Reg, j: usize) -> u64 {
        if self.tape.nodes[r].varies { self.cols[r].get(j) } else { self.vals[r] }
    }
    pub fn f32s(&self, r: Reg) -> Lanes<'_, f32> {
        match &self.cols[r] {
            Col::F32(v) if self.tape.nodes[r].varies => Lanes::Each(&v[..self.n]),
            _ => Lanes::One(f64::from_bits(self.vals[r]) as f32),
        }
    }
    pub fn f64s(&self, r: Reg) -> Lanes<'_, f64> {
        match &self.cols[r] {
            Col::F64(v) if self.tape.nodes[r].varies => Lanes::Each(&v[..self.n]),
            _ => Lanes::One(f64::from_bits(self.vals[r])),
        }
    }
    pub fn i64s(&self, r: Reg) -> Lanes<'_, i64> {
        match &self.cols[r] {
            Col::I64(v) if self.tape.nodes[r].varies => Lanes::Each(&v[..self.n]),
            _ => Lanes::One(self.vals[r] as i64),
        }
    }
    fn int(&self, r: Reg) -> i64 {
        self.vals[r] as i64
    }

    /// Runs one operation.
    pub fn run(&mut self, r: Reg) -> Result<(), Fault> {
        if !self.tape.nodes[r].varies {
            self.vals[r] = self.uniform(r)?;
            return Ok(());
        }
        let mut dst = std::mem::replace(&mut self.cols[r], Col::I64(vec![]));
        dst.fit(self.n);
        let done = self.column(r, &mut dst);
        self.cols[r] = dst;
        done
    }

    /// A value by `eval`, the operands' values given by `get`.
    fn total(&self, r: Reg, get: &dyn Fn(Reg) -> u64) -> u64 {
        let node = &self.tape.nodes[r];
        let dtype = |r: Reg| self.tape.nodes[r].dtype;
        let int = |r: Reg| get(r) as i64;
        match &node.op {
            Op::Const(c) => *c,
            Op::Var(v) => self.vars[*v as usize] as u64,
            Op::Affine { terms, constant } => {
                terms.iter().fold(*constant, |acc, &(t, c)| acc.saturating_add(int(t).saturating_mul(c))) as u64
            }
            Op::Product(factors) => factors.iter().fold(1i64, |acc, &f| acc.saturating_mul(int(f))) as u64,
            Op::FloorDiv(a, b) => floor_div(int(*a), int(*b)) as u64,
            Op::FloorMod(a, b) => floor_mod(int(*a), int(*b)) as u64,
            Op::Unary(op, a) => eval::unary(*op, dtype(*a), get(*a)),
            Op::Binary(op, a, b) => eval::binary(*op, dtype(*a), get(*a), get(*b)),
            Op::Fma(a, b, c) => eval::fma(node.dtype, get(*a), get(*b), get(*c)),
            Op::Select(c, a, b) => get(if get(*c) != 0 { *a } else { *b }),
            Op::Cast(a) => eval::cast(dtype(*a), node.dtype, get(*a)),
            Op::Bitcast(a) => eval::from_memory(node.dtype, eval::to_memory(dtype(*a), get(*a))),
            Op::Read(_) => unreachable!("reads are done apart"),
        }
    }

    fn uniform(&self, r: Reg) -> Result<u64, Fault> {
        let Op::Read(read) = &self.tape.nodes[r].op else {
            return Ok(self.total(r, &|o| self.vals[o]));
        };
        if let Some(g) = &read.guard
            && g.uniform.iter().any(|&c| self.vals[c] == 0)
        {
            return Ok(self.vals[g.fallback]);
        }
        let source = self.source(read);
        match &read.access {
            Access::Row { start, .. } => {
                self.check(read, 0..self.n.max(1))?;
                source.value(self.int(*start)).ok_or_else(|| self.outside(read, 0))
            }
            Access::Scattered(index) => {
                let at: Vec<i64> = index.iter().map(|&i| self.int(i)).collect();
                source.offset(&at).and_then(|at| source.value(at)).ok_or_else(|| source.outside(read.source, &at))
            }
        }
    }

    fn source(&self, read: &Read) -> &Source<'a> {
        self.sources[read.source].as_ref().expect("checked when the tape was made")
    }

    /// The lanes where the guard's spans hold; none if a uniform condition does not.
    pub fn span(&self, guard: Option<&Guard>) -> Range<usize> {
        let Some(g) = guard else { return 0..self.n };
        if g.uniform.iter().any(|&c| self.vals[c] == 0) {
            return 0..0;
        }
        let (mut lo, mut hi) = (0i64, self.n as i64);
        for &(step, rest) in &g.spans {
            // step * (first + j) + rest >= 0
            let rest = self.int(rest) + step * self.first;
            if step > 0 {
                lo = lo.max(-floor_div(rest, step));
            } else {
                hi = hi.min(floor_div(rest, -step) + 1);
            }
        }
        if lo < hi { lo as usize..hi as usize } else { 0..0 }
    }

    /// Checks the indices of a row that are not certain to be inside.
    pub fn check(&self, read: &Read, lanes: Range<usize>) -> Result<(), Fault> {
        let Access::Row { checks, .. } = &read.access else { return Ok(()) };
        if lanes.is_empty() {
            return Ok(());
        }
        for c in checks {
            for j in [lanes.start, lanes.end - 1] {
                let at = self.int(c.rest) + c.step * (self.first + j as i64);
                if !(0..c.dim).contains(&at) {
                    return Err(self.outside(read, j));
                }
            }
        }
        Ok(())
    }

    #[cold]
    fn outside(&self, read: &Read, j: usize) -> Fault {
        let Access::Row { checks, .. } = &read.access else { unreachable!("rows only") };
        let at: Vec<i64> = checks.iter().map(|c| self.int(c.rest) + c.step * (self.first + j as i64)).collect();
        let source = self.source(read);
        fault!(
            "index {at:?} (of the axes that are not certain to be inside) is outside operand {}, which is {}",
            read.source,
            source.show()
        )
    }

    /// The address of lane 0 and the stride.
    pub fn address(&self, start: Reg, stride: i64) -> i64 {
        self.int(start) + self.first * stride
    }

    fn column(&self, r: Reg, dst: &mut Col) -> Result<(), Fault> {
        let node = &self.tape.nodes[r];
        let dtype = node.dtype;
        let from = |r: Reg| self.tape.nodes[r].dtype;
        match (&node.op, dst) {
            (Op::Read(read), dst) => return self.read(read, dst),
            (Op::Var(_), Col::I64(d)) => d.iter_mut().enumerate().for_each(|(j, d)| *d = self.first + j as i64),
            (Op::Affine { terms, constant }, Col::I64(d)) => self.affine(terms, *constant, d),
            (Op::FloorDiv(a, b), Col::I64(d)) => map2(d, self.i64s(*a), self.i64s(*b), floor_div),
            (Op::FloorMod(a, b), Col::I64(d)) => map2(d, self.i64s(*a), self.i64s(*b), floor_mod),
            (Op::Unary(op, a), Col::F32(d)) => unary32(*op, d, self.f32s(*a)),
            (Op::Binary(op, a, b), Col::F32(d)) => binary32(*op, d, self.f32s(*a), self.f32s(*b)),
            (Op::Binary(op, a, b), Col::F64(d)) => binary64(*op, dtype, d, self.f64s(*a), self.f64s(*b)),
            (Op::Binary(op, a, b), Col::I64(d)) => {
                let done = match kept(from(*a)) {
                    Kept::F32 => compare(*op, d, self.f32s(*a), self.f32s(*b)),
                    Kept::F64 => compare(*op, d, self.f64s(*a), self.f64s(*b)),
                    Kept::I64 => binary_int(*op, from(*a), d, self.i64s(*a), self.i64s(*b)),
                };
                if !done {
                    map2(d, self.i64s(*a), self.i64s(*b), |x, y| eval::binary(*op, from(*a), x as u64, y as u64) as i64);
                }
            }
            (Op::Cast(a), dst) => self.cast(*a, from(*a), dtype, dst),
            (Op::Select(c, a, b), dst) => self.select(*c, *a, *b, dst),
            (_, dst) => (0..self.n).for_each(|j| dst.set(j, self.total(r, &|o| self.get(o, j)))),
        }
        Ok(())
    }

    fn affine(&self, terms: &[(Reg, i64)], constant: i64, d: &mut [i64]) {
        let base = terms.iter().filter(|&&(t, _)| !self.tape.nodes[t].varies);
        let base = base.fold(constant, |acc, &(t, c)| acc.saturating_add(self.int(t).saturating_mul(c)));
        d.fill(base);
        for &(t, c) in terms.iter().filter(|&&(t, _)| self.tape.nodes[t].varies) {
            if let Lanes::Each(v) = self.i64s(t) {
                d.iter_mut().zip(v).for_each(|(d, &x)| *d = d.saturating_add(x.saturating_mul(c)));
            }
        }
    }

    fn select(&self, c: Reg, a: Reg, b: Reg, dst: &mut Col) {
        let c = self.i64s(c);
        match dst {
            Col::F32(d) => choose(d, c, self.f32s(a), self.f32s(b)),
            Col::F64(d) => choose(d, c, self.f64s(a), self.f64s(b)),
            Col::I64(d) => choose(d, c, self.i64s(a), self.i64s(b)),
        }
    }

    fn cast(&self, a: Reg, from: DType, to: DType, dst: &mut Col) {
        let general = |x: u64| eval::cast(from, to, x);
        match (kept(from), dst) {
            (Kept::F32, Col::F64(d)) if to == DType::F64 => map1(d, self.f32s(a), f64::from),
            (Kept::F64, Col::F32(d)) => map1(d, self.f64s(a), |x| x as f32),
            (Kept::I64, Col::F32(d)) if from != DType::U64 => map1(d, self.i64s(a), |x| x as f32),
            (Kept::I64, Col::I64(d)) => map1(d, self.i64s(a), |x| eval::wrap_int(to, x)),
            (Kept::F32, Col::I64(d)) => map1(d, self.f32s(a), |x| general(f64::from(x).to_bits()) as i64),
            (Kept::F64, Col::I64(d)) => map1(d, self.f64s(a), |x| general(x.to_bits()) as i64),
            (_, dst) => (0..self.n).for_each(|j| dst.set(j, general(self.get(a, j)))),
        }
    }

    fn read(&self, read: &Read, dst: &mut Col) -> Result<(), Fault> {
        let source = self.source(read);
        let lanes = self.span(read.guard.as_ref());
        if let Some(g) = &read.guard {
            for part in [0..lanes.start, lanes.end..self.n] {
                match self.tape.nodes[g.fallback].varies {
                    false => dst.fill(part, self.vals[g.fallback]),
                    true => part.for_each(|j| dst.set(j, self.get(g.fallback, j))),
                }
            }
        }
        let masks: &[Reg] = read.guard.as_ref().map_or(&[], |g| &g.masks);
        match &read.access {
            Access::Row { start, stride, .. } if masks.is_empty() => {
                self.check(read, lanes.clone())?;
                let at = self.address(*start, *stride) + lanes.start as i64 * stride;
                if !source.load(at, *stride, dst, lanes) {
                    return Err(self.outside(read, 0));
                }
            }
            access => {
                let mut at = vec![];
                for j in lanes {
                    if masks.iter().any(|&m| self.get(m, j) == 0) {
                        let g = read.guard.as_ref().expect("it has masks");
                        dst.set(j, self.get(g.fallback, j));
                        continue;
                    }
                    let place = match access {
                        Access::Row { start, stride, .. } => {
                            self.check(read, j..j + 1)?;
                            Some(self.address(*start, *stride) + j as i64 * stride)
                        }
                        Access::Scattered(index) => {
                            at.clear();
                            at.extend(index.iter().map(|&i| self.get(i, j) as i64));
                            source.offset(&at)
                        }
                    };
                    let value = place.and_then(|p| source.value(p));
                    dst.set(j, value.ok_or_else(|| source.outside(read.source, &at))?);
                }
            }
        }
        Ok(())
    }
}

fn choose<T: Copy>(dst: &mut [T], c: Lanes<i64>, a: Lanes<T>, b: Lanes<T>) {
    dst.iter_mut().enumerate().for_each(|(j, d)| *d = if c.at(j) != 0 { a.at(j) } else { b.at(j) });
}

fn floor_mod(a: i64, b: i64) -> i64 {
    if b == 0 { 0 } else { a - floor_div(a, b) * b }
}

/// The f32 operators that are the same in f32 as in f64 rounded once are done in f32.
fn unary32(op: Unary, d: &mut [f32], a: Lanes<f32>) {
    match op {
        Unary::Neg => map1(d, a, |x| -x),
        Unary::Abs => map1(d, a, f32::abs),
        Unary::Sqrt => map1(d, a, f32::sqrt),
        Unary::Floor => map1(d, a, f32::floor),
        Unary::Ceil => map1(d, a, f32::ceil),
        Unary::Trunc => map1(d, a, f32::trunc),
        Unary::Round => map1(d, a, f32::round_ties_even),
        op => map1(d, a, |x| f64::from_bits(eval::unary(op, DType::F32, f64::from(x).to_bits())) as f32),
    }
}

pub fn min32(x: f32, y: f32) -> f32 {
    if x.is_nan() || y.is_nan() {
        f32::NAN
    } else if x < y || x == y && x.is_sign_negative() {
        x
    } else {
        y
    }
}

pub fn max32(x: f32, y: f32) -> f32 {
    if x.is_nan() || y.is_nan() {
        f32::NAN
    } else if x > y || x == y && !x.is_sign_negative() {
        x
    } else {
        y
    }
}

fn binary32(op: Binary, d: &mut [f32], a: Lanes<f32>, b: Lanes<f32>) {
    match op {
        Binary::Add => map2(d, a, b, |x, y| x + y),
        Binary::Sub => map2(d, a, b, |x, y| x - y),
        Binary::Mul => map2(d, a, b, |x, y| x * y),
        Binary::Div => map2(d, a, b, |x, y| x / y),
        Binary::Min => map2(d, a, b, min32),
        Binary::Max => map2(d, a, b, max32),
        op => map2(d, a, b, |x, y| {
            let bits = eval::binary(op, DType::F32, f64::from(x).to_bits(), f64::from(y).to_bits());
            f64::from_bits(bits) as f32
        }),
    }
}

fn binary64(op: Binary, dtype: DType, d: &mut [f64], a: Lanes<f64>, b: Lanes<f64>) {
    let round = |x: f64| eval::round_float(dtype, x);
    match (op, dtype) {
        (Binary::Add, DType::F64) => map2(d, a, b, |x, y| x + y),
        (Binary::Sub, DType::F64) => map2(d, a, b, |x, y| x - y),
        (Binary::Mul, DType::F64) => map2(d, a, b, |x, y| x * y),
        (Binary::Add, _) => map2(d, a, b, |x, y| round(x + y)),
        (Binary::Mul, _) => map2(d, a, b, |x, y| round(x * y)),
        _ => map2(d, a, b, |x, y| f64::from_bits(eval::binary(op, dtype, x.to_bits(), y.to_bits()))),
    }
}

fn compare<T: Copy + PartialOrd>(op: Binary, d: &mut [i64], a: Lanes<T>, b: Lanes<T>) -> bool {
    match op {
        Binary::Eq => map2(d, a, b, |x, y| i64::from(x == y)),
        Binary::Ne => map2(d, a, b, |x, y| i64::from(x != y)),
        Binary::Lt => map2(d, a, b, |x, y| i64::from(x < y)),
        Binary::Le => map2(d, a, b, |x, y| i64::from(x <= y)),
        Binary::Gt => map2(d, a, b, |x, y| i64::from(x > y)),
        Binary::Ge => map2(d, a, b, |x, y| i64::from(x >= y)),
        _ => return false,
    }
    true
}

fn binary_int(op: Binary, dtype: DType, d: &mut [i64], a: Lanes<i64>, b: Lanes<i64>) -> bool {
    let wrap = |x: i64| eval::wrap_int(dtype, x);
    if op.is_comparison() && dtype != DType::U64 {
        return compare(op, d, a, b);
    }
    match op {
        Binary::Add => map2(d, a, b, |x, y| wrap(x.wrapping_add(y))),
        Binary::Sub => map2(d, a, b, |x, y| wrap(x.wrapping_sub(y))),
        Binary::Mul => map2(d, a, b, |x, y| wrap(x.wrapping_mul(y))),
        Binary::And => map2(d, a, b, |x, y| x & y),
        Binary::Or => map2(d, a, b, |x, y| x | y),
        Binary::Xor => map2(d, a, b, |x, y| x ^ y),
        Binary::Min if dtype != DType::U64 => map2(d, a, b, i64::min),
        Binary::Max if dtype != DType::U64 => map2(d, a, b, i64::max),
        _ => return false,
    }
    true
}
