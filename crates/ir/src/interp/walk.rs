//! The slow twin: computes every element by [`crate::eval`], one at a time, in row-major order.

use super::{concrete, opaque};
use crate::compute::{Choice, Compute, Filter, Prefix, Reducer, Reduction, Scatter, Sort, Step};
use crate::dtype::DType;
use crate::eval;
use crate::expr::{Expr, Node};
use crate::fault;
use crate::fault::Fault;
use crate::scalar::{Binary, Scalar};
use crate::tensor::{Data, Tensor, count};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::HashMap;

/// Runs a step.
pub fn run(step: &Step, sources: &[Option<Tensor>]) -> Result<Tensor, Fault> {
    let walker = Walker::new(sources);
    match step {
        Step::Compute(c) => walker.compute(c),
        Step::Scatter(s) => walker.scatter(s),
        Step::Prefix(p) => walker.prefix(p),
        Step::Sort(s) => walker.sort(s),
        Step::Filter(f) => walker.filter(f),
        Step::Choice(c) => walker.choice(c),
    }
}

/// Sources, and the first fault met while evaluating (evaluation itself is total).
struct Walker<'a> {
    sources: &'a [Option<Tensor>],
    fault: RefCell<Option<Fault>>,
    opaque: RefCell<Opaque>,
}

/// Elements without a 64-bit form (strings, wide complex numbers), numbered so that equal ones have equal numbers.
#[derive(Default)]
struct Opaque {
    all: Vec<Bytes>,
    numbers: HashMap<Bytes, u64>,
}

impl Opaque {
    fn number(&mut self, element: &Bytes) -> u64 {
        if let Some(&n) = self.numbers.get(element) {
            return n;
        }
        self.all.push(element.clone());
        self.numbers.insert(element.clone(), self.all.len() as u64 - 1);
        self.all.len() as u64 - 1
    }
}

impl Walker<'_> {
    fn new(sources: &[Option<Tensor>]) -> Walker<'_> {
        Walker { sources, fault: RefCell::new(None), opaque: RefCell::new(Opaque::default()) }
    }

    fn read(&self, source: u32, index: &[i64], dtype: DType) -> u64 {
        match self.try_read(source, index, dtype) {
            Ok(v) => v,
            Err(f) => {
                self.fault.borrow_mut().get_or_insert(f);
                0
            }
        }
    }

    fn try_read(&self, source: u32, index: &[i64], dtype: DType) -> Result<u64, Fault> {
        let t = self.sources.get(source as usize).and_then(|t| t.as_ref());
        let t = t.ok_or_else(|| fault!("internal error: read of operand {source}, which is missing"))?;
        if t.dtype != dtype {
            return Err(fault!("internal error: operand {source} is {}, it is read as {dtype}", t.dtype));
        }
        let at = offset(&t.dims, index)
            .ok_or_else(|| fault!("index {index:?} is outside operand {source}, which is {}{:?}", t.dtype, t.dims))?;
        Ok(match &t.data {
            Data::Strings(s) => self.opaque.borrow_mut().number(&s[at]),
            Data::Bytes(b) if opaque(dtype) => {
                let width = dtype.bytes();
                self.opaque.borrow_mut().number(&b.slice(at * width..(at + 1) * width))
            }
            Data::Bytes(_) => t.value(at),
        })
    }

    fn eval(&self, s: Scalar, axes: &[i64], acc: u64) -> Result<u64, Fault> {
        let leaf = |e: Expr| match e.node() {
            Node::Var(v) => Some(axes.get(*v as usize).copied().unwrap_or_else(|| {
                self.fault.borrow_mut().get_or_insert(fault!("internal error: {s} uses axis i{v} of {}", axes.len()));
                0
            })),
            _ => {
                self.fault.borrow_mut().get_or_insert(fault!("symbol {e} has no value at run time"));
                Some(0)
            }
        };
        let value = eval::scalar(s, &leaf, &mut |n, at, d| self.read(n, at, d), &|_| acc);
        match self.fault.borrow_mut().take() {
            Some(f) => Err(f),
            None => Ok(value),
        }
    }

    fn tensor(&self, dtype: DType, dims: Vec<usize>, values: Vec<u64>) -> Tensor {
        let opaque = self.opaque.borrow();
        let element = |&n: &u64| opaque.all.get(n as usize).cloned().unwrap_or_default();
        match dtype {
            DType::String => Tensor::from_strings(dims, values.iter().map(element)),
            DType::C128 => Tensor::from_bytes(dtype, dims, values.iter().flat_map(element).collect::<Vec<u8>>()),
            _ => Tensor::from_values(dtype, dims, values),
        }
    }

    fn compute(&self, c: &Compute) -> Result<Tensor, Fault> {
        let dims = concrete(&c.dims)?;
        let extents = c.reduction.as_ref().map(|r| concrete(&r.axes)).transpose()?;
        let mut values = Vec::with_capacity(count(&dims));
        each(&dims, &mut |axes| {
            let acc = match (&c.reduction, &extents) {
                (Some(r), Some(e)) => self.reduce(r, e, axes)?,
                _ => 0,
            };
            values.push(self.eval(c.value, axes, acc)?);
            Ok(())
        })?;
        Ok(self.tensor(c.value.dtype(), dims, values))
    }

    fn reduce(&self, r: &Reduction, extents: &[usize], axes: &[i64]) -> Result<u64, Fault> {
        let dtype = r.body.dtype();
        let mut acc = Accumulator::new(r.kind, dtype);
        each(extents, &mut |inner| {
            let all = [axes, inner].concat();
            acc.add(self.eval(r.body, &all, 0)?);
            Ok(())
        })?;
        Ok(acc.result())
    }

    fn scatter(&self, s: &Scatter) -> Result<Tensor, Fault> {
        let dims = concrete(&s.dims)?;
        let mut values = Vec::with_capacity(count(&dims));
        each(&dims, &mut |axes| {
            values.push(self.eval(s.base, axes, 0)?);
            Ok(())
        })?;
        let dtype = s.base.dtype();
        each(&concrete(&s.updates)?, &mut |axes| {
            let mut index = vec![];
            for &i in &s.index {
                index.push(self.eval(i, axes, 0)? as i64);
            }
            let at = offset(&dims, &index).ok_or_else(|| outside(axes, &index, &dims))?;
            let value = self.eval(s.value, axes, 0)?;
            values[at] = s.combine.map_or(value, |op| eval::binary(op, dtype, values[at], value));
            Ok(())
        })?;
        Ok(self.tensor(dtype, dims, values))
    }

    fn prefix(&self, p: &Prefix) -> Result<Tensor, Fault> {
        let dims = concrete(&p.dims)?;
        let dtype = p.body.dtype();
        let mut values = vec![0; count(&dims)];
        let mut starts = dims.clone();
        starts[p.axis] = 1;
        let length = dims[p.axis] as i64;
        each(&starts, &mut |start| {
            let mut axes = start.to_vec();
            let mut acc = self.eval(p.init, &axes, 0)?;
            for k in 0..length {
                axes[p.axis] = if p.reverse { length - 1 - k } else { k };
                let next = eval::binary(p.combine, dtype, acc, self.eval(p.body, &axes, 0)?);
                let at = offset(&dims, &axes).expect("an axis within its extent");
                values[at] = if p.exclusive { acc } else { next };
                acc = next;
            }
            Ok(())
        })?;
        Ok(self.tensor(dtype, dims, values))
    }
}

impl Walker<'_> {
    fn sort(&self, s: &Sort) -> Result<Tensor, Fault> {
        let (dims, parts) = (concrete(&s.dims)?, concrete(&s.parts)?);
        let extent = concrete(&[s.extent])?[0];
        let asked = dims[s.axis];
        if asked > extent {
            return Err(fault!("{asked} of {extent} elements are asked for"));
        }
        let mut values = vec![0; count(&dims)];
        let mut lines = dims.clone();
        lines[s.axis] = usize::from(asked > 0);
        each(&lines, &mut |line| {
            let mut axes = line.to_vec();
            let mut keys: Vec<(Vec<u64>, i64)> = vec![];
            for k in 0..extent as i64 {
                axes[s.axis] = k;
                let mut key = vec![];
                each(&parts, &mut |part| {
                    key.push(self.eval(s.key, &[&axes[..], part].concat(), 0)?);
                    Ok(())
                })?;
                keys.push((key, k));
            }
            let order = |a: &[u64], b: &[u64]| {
                let parts = a.iter().zip(b).map(|(&x, &y)| ordering(s.key.dtype(), x, y));
                parts.into_iter().find(|o| o.is_ne()).unwrap_or(std::cmp::Ordering::Equal)
            };
            keys.sort_by(|(a, _), (b, _)| if s.descending { order(b, a) } else { order(a, b) });
            for (n, (_, k)) in keys.into_iter().enumerate().take(asked) {
                axes[s.axis] = n as i64;
                values[offset(&dims, &axes).expect("an axis within its extent")] = k as u64;
            }
            Ok(())
        })?;
        Ok(self.tensor(DType::I64, dims, values))
    }

    fn filter(&self, f: &Filter) -> Result<Tensor, Fault> {
        let (mut at, mut values) = (0, vec![0]);
        each(&concrete(&f.over)?, &mut |axes| {
            if self.eval(f.cond, axes, 0)? != 0 {
                values.push(at);
            }
            at += 1;
            Ok(())
        })?;
        values[0] = values.len() as u64 - 1;
        let dims = concrete(&f.dims)?;
        values.resize(count(&dims), -1i64 as u64);
        Ok(self.tensor(DType::I64, dims, values))
    }

    fn choice(&self, c: &Choice) -> Result<Tensor, Fault> {
        let dims = concrete(&c.dims)?;
        let (&last, lines) = dims.split_last().ok_or_else(|| fault!("a choice needs an axis"))?;
        let mut values = vec![];
        each(lines, &mut |line| {
            let most = self.eval(c.most, line, 0)? as i64;
            let mut candidates = vec![];
            for candidate in 0..last as i64 - 1 {
                let axes = [line, &[candidate]].concat();
                if self.eval(c.cond, &axes, 0)? != 0 {
                    candidates.push((self.eval(c.key, &axes, 0)?, candidate));
                }
            }
            candidates.sort_by(|&(a, _), &(b, _)| ordering(c.key.dtype(), b, a));
            let mut taken: Vec<i64> = vec![];
            for (_, candidate) in candidates {
                let axes = [line, &[candidate]].concat();
                if taken.len() as i64 >= most {
                    break;
                }
                let mut clashes = false;
                for &t in &taken {
                    clashes |= self.eval(c.clash, &[&axes[..], &[t]].concat(), 0)? != 0;
                }
                if !clashes {
                    taken.push(candidate);
                }
            }
            values.push(taken.len() as u64);
            values.extend(taken.iter().map(|&t| t as u64));
            values.resize(values.len().next_multiple_of(last), -1i64 as u64);
            Ok(())
        })?;
        Ok(self.tensor(DType::I64, dims, values))
    }
}

/// The order of two values: numbers by value, NaN above all and equal to NaN.
fn ordering(dtype: DType, a: u64, b: u64) -> std::cmp::Ordering {
    if dtype.is_float() {
        let (a, b) = (f64::from_bits(a), f64::from_bits(b));
        return a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()));
    }
    if dtype.is_signed() { (a as i64).cmp(&(b as i64)) } else { a.cmp(&b) }
}

/// The fault of an update whose place is not in the result.
pub(super) fn outside(update: &[i64], index: &[i64], dims: &[usize]) -> Fault {
    fault!("update {update:?} goes to index {index:?}, which is outside the result of shape {dims:?}")
}

/// A reduction under way, element by element.
#[derive(Clone, Copy)]
pub(super) struct Accumulator {
    kind: Reducer,
    dtype: DType,
    acc: u64,
    best: Option<i64>,
    seen: i64,
}

impl Accumulator {
    pub(super) fn new(kind: Reducer, dtype: DType) -> Accumulator {
        let acc = match kind.identity(dtype).kind() {
            crate::scalar::Kind::Const(c) => *c,
            other => unreachable!("identity is {other:?}"),
        };
        Accumulator { kind, dtype, acc, best: None, seen: 0 }
    }
    pub(super) fn add(&mut self, value: u64) {
        match self.kind {
            Reducer::ArgMax { last } => self.arg(value, Binary::Gt, last),
            Reducer::ArgMin { last } => self.arg(value, Binary::Lt, last),
            Reducer::Sum | Reducer::Prod | Reducer::Min | Reducer::Max => {
                let op = self.kind.combine().expect("an operator");
                self.acc = eval::binary(op, self.dtype, self.acc, value);
            }
        }
        self.seen += 1;
    }
    // A NaN beats every number; of equal values the first stays, or the last comes in.
    fn arg(&mut self, value: u64, better: Binary, last: bool) {
        let nan = |v: u64| self.dtype.is_float() && f64::from_bits(v).is_nan();
        let compare = |op| eval::binary(op, self.dtype, value, self.acc) != 0;
        let takes = match (self.best, nan(value), nan(self.acc)) {
            (None, ..) => true,
            (_, true, true) => last,
            (_, true, false) => true,
            (_, false, true) => false,
            _ => compare(better) || last && compare(Binary::Eq),
        };
        if takes {
            (self.acc, self.best) = (value, Some(self.seen));
        }
    }
    pub(super) fn result(&self) -> u64 {
        match self.kind {
            Reducer::ArgMax { .. } | Reducer::ArgMin { .. } => self.best.unwrap_or(0) as u64,
            Reducer::Sum | Reducer::Prod | Reducer::Min | Reducer::Max => self.acc,
        }
    }
}

/// The row-major position of `index`; `None` if it lies outside.
pub(super) fn offset(dims: &[usize], index: &[i64]) -> Option<usize> {
    if dims.len() != index.len() {
        return None;
    }
    let mut at = 0;
    for (&d, &i) in dims.iter().zip(index) {
        let i = usize::try_from(i).ok().filter(|&i| i < d)?;
        at = at * d + i;
    }
    Some(at)
}

/// Calls `f` for every index of `dims`, row-major.
pub(super) fn each(dims: &[usize], f: &mut dyn FnMut(&[i64]) -> Result<(), Fault>) -> Result<(), Fault> {
    if dims.contains(&0) {
        return Ok(());
    }
    let mut index = vec![0i64; dims.len()];
    loop {
        f(&index)?;
        let mut axis = dims.len();
        loop {
            if axis == 0 {
                return Ok(());
            }
            axis -= 1;
            index[axis] += 1;
            if (index[axis] as usize) < dims[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}
