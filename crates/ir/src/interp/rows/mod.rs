//! The fast engine: steps computed by rows of lanes along one axis. Equal to `walk` bit for bit: sums keep their order.
//!
//! For each body the axis with the cheapest memory accesses becomes the lane axis: an axis of the result, or for a reduction also
//! its innermost axis. Adjacent axes that are one axis to all reads are joined first. A sum of products of two f32 reads has a loop
//! of its own (`product`).

mod exec;
mod nest;
mod product;
mod tape;
#[cfg(test)]
mod tests;

use super::walk::{self, offset, outside};
use super::{concrete, opaque};
use crate::compute::{Compute, Prefix, Scatter, Step, simplify_scalar};
use crate::dtype::DType;
use crate::eager::eager;
use crate::eval;
use crate::expr::{Expr, Ranges};
use crate::fault;
use crate::fault::Fault;
use crate::scalar::{Kind, Scalar};
use crate::tensor::{Tensor, count};
use bytes::Bytes;
use exec::Col;
use std::borrow::Cow;
use std::ops::Range;

/// Runs a step.
pub fn run(step: &Step, sources: &[Option<Tensor>]) -> Result<Tensor, Fault> {
    let numbers = sources.iter().flatten().all(|t| !opaque(t.dtype)) && !opaque(step.dtype());
    if !numbers {
        return walk::run(step, sources);
    }
    match step {
        Step::Compute(c) => compute(c, sources),
        Step::Scatter(s) => scatter(s, sources),
        Step::Prefix(p) => prefix(p, sources),
        Step::Sort(_) | Step::Filter(_) | Step::Choice(_) => walk::run(step, sources),
    }
}

/// A source, ready to be read in rows.
pub struct Source<'a> {
    pub dtype: DType,
    pub dims: Vec<i64>,
    pub strides: Vec<i64>,
    bytes: Cow<'a, Bytes>,
    /// The elements, for f32.
    pub floats: Cow<'a, [f32]>,
}

impl<'a> Source<'a> {
    fn new(t: &'a Tensor) -> Source<'a> {
        let dims: Vec<i64> = t.dims.iter().map(|&d| d as i64).collect();
        let mut strides = vec![1; dims.len()];
        for i in (1..dims.len()).rev() {
            strides[i - 1] = strides[i] * dims[i];
        }
        let floats = match (t.dtype, bytemuck::try_cast_slice(t.bytes())) {
            (DType::F32, Ok(aligned)) => Cow::Borrowed(aligned),
            (DType::F32, Err(_)) => Cow::Owned(t.to_vec()),
            _ => Cow::Borrowed(&[][..]),
        };
        Source { dtype: t.dtype, dims, strides, bytes: Cow::Borrowed(t.bytes()), floats }
    }
    fn show(&self) -> String {
        format!("{}{:?}", self.dtype, self.dims)
    }
    fn outside(&self, number: usize, at: &[i64]) -> Fault {
        fault!("index {at:?} is outside operand {number}, which is {}", self.show())
    }
    fn offset(&self, index: &[i64]) -> Option<i64> {
        let mut at = 0;
        for ((&i, &d), &s) in index.iter().zip(&self.dims).zip(&self.strides) {
            if !(0..d).contains(&i) {
                return None;
            }
            at += i * s;
        }
        Some(at)
    }
    fn value(&self, at: i64) -> Option<u64> {
        let (at, width) = (usize::try_from(at).ok()?, self.dtype.bytes());
        let element = self.bytes.get(at * width..(at + 1) * width)?;
        let mut raw = [0u8; 8];
        raw[..width].copy_from_slice(element);
        Some(eval::from_memory(self.dtype, u64::from_le_bytes(raw)))
    }

    /// Loads elements `at`, `at + stride`, ... into `lanes`; false if one is outside.
    fn load(&self, at: i64, stride: i64, dst: &mut Col, lanes: Range<usize>) -> bool {
        if lanes.is_empty() {
            return true;
        }
        let elements = (self.bytes.len() / self.dtype.bytes()) as i64;
        let last = at + (lanes.len() as i64 - 1) * stride;
        if !(0..elements).contains(&at) || !(0..elements).contains(&last) {
            return false;
        }
        let width = self.dtype.bytes();
        let place = |j: usize| (at + j as i64 * stride) as usize;
        match dst {
            Col::F32(d) => match stride {
                1 => d[lanes.clone()].copy_from_slice(&self.floats[at as usize..at as usize + lanes.len()]),
                _ => d[lanes].iter_mut().enumerate().for_each(|(j, d)| *d = self.floats[place(j)]),
            },
            Col::F64(d) => d[lanes].iter_mut().enumerate().for_each(|(j, d)| {
                let p = place(j) * width;
                let mut raw = [0u8; 8];
                raw[..width].copy_from_slice(&self.bytes[p..p + width]);
                *d = f64::from_bits(eval::from_memory(self.dtype, u64::from_le_bytes(raw)));
            }),
            Col::I64(d) => {
                let b = &self.bytes[..];
                let d = d[lanes].iter_mut().enumerate();
                match self.dtype {
                    DType::U8 => d.for_each(|(j, d)| *d = i64::from(b[place(j)])),
                    DType::I8 => d.for_each(|(j, d)| *d = i64::from(b[place(j)] as i8)),
                    DType::I32 => d.for_each(|(j, d)| *d = i64::from(i32::from_le_bytes(four(b, place(j))))),
                    DType::I64 => d.for_each(|(j, d)| *d = i64::from_le_bytes(eight(b, place(j)))),
                    other => d.for_each(|(j, d)| {
                        let p = place(j) * width;
                        let mut raw = [0u8; 8];
                        raw[..width].copy_from_slice(&b[p..p + width]);
                        *d = eval::from_memory(other, u64::from_le_bytes(raw)) as i64;
                    }),
                }
            }
        }
        true
    }
}

fn four(b: &[u8], i: usize) -> [u8; 4] {
    b[4 * i..4 * i + 4].try_into().expect("four bytes")
}

fn eight(b: &[u8], i: usize) -> [u8; 8] {
    b[8 * i..8 * i + 8].try_into().expect("eight bytes")
}

/// A body with numbers for extents, index expressions simplified, guards complete.
struct Body {
    dims: Vec<usize>,
    /// Extents of reduction axes; empty without a reduction.
    inner: Vec<usize>,
    scalar: Scalar,
}

impl Body {
    fn new(dims: &[usize], inner: &[usize], scalar: Scalar, sources: &[Option<Tensor>]) -> Body {
        let mut body = Body { dims: dims.to_vec(), inner: inner.to_vec(), scalar };
        let env = body.env();
        body.scalar = eager(simplify_scalar(scalar, &env));
        body.linear_reads(sources);
        body.join_axes();
        body
    }
    fn extents(&self) -> Vec<usize> {
        [&self.dims[..], &self.inner].concat()
    }
    fn env(&self) -> Ranges {
        Ranges::of_axes(&self.extents().into_iter().map(Expr::from).collect::<Vec<_>>())
    }

    /// Reads that are certain to be inside read the flat source: number `source + n` where there are `n` sources.
    fn linear_reads(&mut self, sources: &[Option<Tensor>]) {
        let env = self.env();
        self.scalar = self.scalar.rewrite(&mut |s| {
            let Kind::Read { source, index, guard: None } = s.kind() else { return s };
            let (Some(Some(t)), Some(at)) =
                (sources.get(*source as usize), index.iter().map(|i| i.as_index()).collect::<Option<Vec<Expr>>>())
            else {
                return s;
            };
            let inside = |(e, &d): (&Expr, &usize)| {
                let r = e.range(&env);
                r.lo >= 0 && r.hi < d as i64
            };
            if at.len() != t.dims.len() || !at.iter().zip(&t.dims).all(inside) {
                return s;
            }
            let dims: Vec<Expr> = t.dims.iter().map(|&d| Expr::from(d)).collect();
            let flat = Expr::linearise(&at, &dims).simplify(&env);
            Scalar::read_at(s.dtype(), *source as usize + sources.len(), &[flat])
        });
    }

    /// Joins axes `a` and `a + 1` where every index expression steps by `extent(a + 1)` times as much along the first.
    fn join_axes(&mut self) {
        let rank = self.dims.len();
        let mut exprs = vec![];
        self.scalar.visit(&mut |s| exprs.extend(s.as_index()));
        for a in (0..(rank + self.inner.len()).saturating_sub(1)).rev() {
            if a + 1 == rank {
                continue;
            }
            let (first, second) = (self.extents()[a], self.extents()[a + 1]);
            let steps = |e: &Expr| Some((e.affine_in(a as u32)?.0, e.affine_in(a as u32 + 1)?.0));
            let joins = first != 1 && exprs.iter().all(|e| steps(e).is_some_and(|(p, q)| p == q * second as i64));
            if !joins {
                continue;
            }
            // The first axis goes to zero, the second runs over both. Extents of 1 stay, so that the numbers of axes do.
            let to_zero = |e: Expr| e.map(&|l| if l == Expr::var(a) { Expr::int(0) } else { l });
            self.scalar = self.scalar.map_index(&to_zero);
            exprs.iter_mut().for_each(|e| *e = to_zero(*e));
            let mut put = |axis: usize, extent: usize| match axis.checked_sub(rank) {
                None => self.dims[axis] = extent,
                Some(i) => self.inner[i] = extent,
            };
            put(a, 1);
            put(a + 1, first * second);
        }
    }
}

fn prepared<'a>(sources: &'a [Option<Tensor>], body: Scalar) -> Vec<Option<Source<'a>>> {
    let mut used = vec![false; 2 * sources.len()];
    body.visit(&mut |s| {
        if let Kind::Read { source, .. } = s.kind()
            && let Some(u) = used.get_mut(*source as usize)
        {
            *u = true;
        }
    });
    let flat = |s: Source<'a>| {
        let n = s.dims.iter().product();
        Source { dims: vec![n], strides: vec![1], ..s }
    };
    let direct = sources.iter().zip(&used).map(|(t, &u)| t.as_ref().filter(|_| u).map(Source::new));
    let flats = sources.iter().zip(&used[sources.len()..]).map(|(t, &u)| t.as_ref().filter(|_| u).map(Source::new).map(flat));
    direct.chain(flats).collect()
}

/// An error where memory does not hold a tensor: data may ask for any size.
fn room(dtype: DType, dims: &[usize]) -> Result<(), Fault> {
    const SMALL: usize = 1 << 30;
    let bytes = dims.iter().try_fold(dtype.bytes(), |n, &d| n.checked_mul(d));
    let fits = |&n: &usize| n < SMALL || Vec::<u8>::new().try_reserve_exact(n).is_ok();
    bytes.filter(fits).map(|_| ()).ok_or_else(|| fault!("a result {dtype}{dims:?} does not fit in memory"))
}

/// Every element of `body` over `dims`.
fn map(dims: &[usize], scalar: Scalar, sources: &[Option<Tensor>]) -> Result<Tensor, Fault> {
    if dims.contains(&0) {
        return Ok(Tensor::zeros(scalar.dtype(), dims));
    }
    room(scalar.dtype(), dims)?;
    let body = Body::new(dims, &[], scalar, sources);
    let bytes = nest::map(&body, &prepared(sources, body.scalar))?;
    Ok(Tensor::from_bytes(scalar.dtype(), dims, bytes))
}

fn compute(c: &Compute, sources: &[Option<Tensor>]) -> Result<Tensor, Fault> {
    let dims = concrete(&c.dims)?;
    let Some(r) = &c.reduction else { return map(&dims, c.value, sources) };
    let extents = concrete(&r.axes)?;
    let acc_dtype = r.kind.result(r.body.dtype());
    let acc = if count(&dims) == 0 {
        Tensor::zeros(acc_dtype, &dims[..])
    } else {
        room(acc_dtype, &dims)?;
        let body = Body::new(&dims, &extents, r.body, sources);
        let bytes = nest::reduce(&body, r.kind, &prepared(sources, body.scalar))?;
        Tensor::from_bytes(acc_dtype, &dims[..], bytes)
    };
    if matches!(c.value.kind(), Kind::Local(0)) {
        return Ok(acc);
    }
    // What follows the reduction reads the accumulators as one more source.
    let place: Vec<Expr> = (0..dims.len()).map(Expr::var).collect();
    let read = Scalar::read_at(acc_dtype, sources.len(), &place);
    let value = c.value.rewrite(&mut |s| if matches!(s.kind(), Kind::Local(0)) { read } else { s });
    let all: Vec<Option<Tensor>> = sources.iter().cloned().chain([Some(acc)]).collect();
    map(&dims, value, &all)
}

fn scatter(s: &Scatter, sources: &[Option<Tensor>]) -> Result<Tensor, Fault> {
    let (dims, updates) = (concrete(&s.dims)?, concrete(&s.updates)?);
    let dtype = s.base.dtype();
    let base = map(&dims, s.base, sources)?;
    let index: Vec<Tensor> = s.index.iter().map(|&i| map(&updates, i, sources)).collect::<Result<_, _>>()?;
    let values = map(&updates, s.value, sources)?;
    let width = dtype.bytes();
    let mut out = base.bytes().to_vec();
    let mut at = vec![0i64; index.len()];
    for u in 0..values.len() {
        at.iter_mut().zip(&index).for_each(|(at, t)| *at = t.value(u) as i64);
        let place = offset(&dims, &at).ok_or_else(|| {
            let mut update = vec![];
            let mut rest = u;
            for &d in updates.iter().rev() {
                update.insert(0, (rest % d) as i64);
                rest /= d;
            }
            outside(&update, &at, &dims)
        })?;
        let slot = &mut out[place * width..(place + 1) * width];
        match s.combine {
            None => slot.copy_from_slice(&values.bytes()[u * width..(u + 1) * width]),
            Some(op) => {
                let mut raw = [0u8; 8];
                raw[..width].copy_from_slice(slot);
                let old = eval::from_memory(dtype, u64::from_le_bytes(raw));
                let new = eval::to_memory(dtype, eval::binary(op, dtype, old, values.value(u)));
                slot.copy_from_slice(&new.to_le_bytes()[..width]);
            }
        }
    }
    Ok(Tensor::from_bytes(dtype, dims, out))
}

fn prefix(p: &Prefix, sources: &[Option<Tensor>]) -> Result<Tensor, Fault> {
    let dims = concrete(&p.dims)?;
    let dtype = p.body.dtype();
    let mut starts = dims.clone();
    starts[p.axis] = 1;
    let at_start: Vec<Expr> = (0..dims.len()).map(|i| if i == p.axis { Expr::int(0) } else { Expr::var(i) }).collect();
    let first = map(&starts, p.init.subst(&at_start), sources)?;
    let values = map(&dims, p.body, sources)?;
    let (outer, length, inner) = (count(&dims[..p.axis]), dims[p.axis], count(&dims[p.axis + 1..]));
    let mut out = vec![0u64; values.len()];
    for o in 0..outer {
        for i in 0..inner {
            let mut acc = if length == 0 { 0 } else { first.value(o * inner + i) };
            for k in 0..length {
                let k = if p.reverse { length - 1 - k } else { k };
                let at = (o * length + k) * inner + i;
                let next = eval::binary(p.combine, dtype, acc, values.value(at));
                out[at] = if p.exclusive { acc } else { next };
                acc = next;
            }
        }
    }
    Ok(Tensor::from_values(dtype, dims, out))
}
