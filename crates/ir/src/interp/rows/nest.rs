//! The loops around rows: which axis is the lanes, when what is computed, accumulators, and storing results.

use super::exec::{Lanes, Rows, max32, min32};
use super::product::Product;
use super::tape::{self, Kept, Reg, Tape, kept};
use super::{Body, Source};
use crate::compute::Reducer;
use crate::dtype::DType;
use crate::eval;
use crate::fault::Fault;
use crate::interp::walk::Accumulator;
use crate::scalar::{Kind, Scalar};
use std::collections::{HashMap, HashSet};

/// Lanes of one row, where the lane axis may be cut.
const LANES: usize = 512;

/// A counter over extents, the last one fastest.
struct Odometer {
    extents: Vec<usize>,
    at: Vec<usize>,
}

impl Odometer {
    /// Steps; the position of the outermost counter that changed, `None` at the end.
    fn step(&mut self) -> Option<usize> {
        for i in (0..self.at.len()).rev() {
            self.at[i] += 1;
            if self.at[i] < self.extents[i] {
                return Some(i);
            }
            self.at[i] = 0;
        }
        None
    }
}

/// The operations of a tape by the loop that they depend on.
fn by_depth(tape: &Tape, loops: usize, apart: &[Reg]) -> Vec<Vec<Reg>> {
    let mut lists = vec![vec![]; loops + 1];
    for (r, node) in tape.nodes.iter().enumerate() {
        if !apart.contains(&r) {
            lists[node.depth].push(r);
        }
    }
    lists
}

fn run_lists(rows: &mut Rows, lists: &[Vec<Reg>]) -> Result<(), Fault> {
    lists.iter().flatten().try_for_each(|&r| rows.run(r))
}

/// What a row along `axis` costs per lane, roughly in nanoseconds.
fn cost(body: &Body, sources: &[Option<Source>], axis: usize, extent: usize) -> f64 {
    let mut varies: HashMap<Scalar, bool> = HashMap::new();
    body.scalar.visit(&mut |s| {
        let here = matches!(s.kind(), Kind::Index(e) if e.uses_var(axis as u32));
        varies.insert(s, here || s.operands().iter().any(|o| varies[o]));
    });
    let mut c = Cost { lane: axis as u32, sources, varies, seen: HashSet::new(), each: 0.3, row: 60.0 };
    c.add(body.scalar);
    c.each + c.row / extent.min(LANES) as f64
}

struct Cost<'a> {
    lane: u32,
    sources: &'a [Option<Source<'a>>],
    varies: HashMap<Scalar, bool>,
    seen: HashSet<Scalar>,
    /// Per lane, and per row.
    each: f64,
    row: f64,
}

impl Cost<'_> {
    fn add(&mut self, s: Scalar) {
        if !self.seen.insert(s) {
            return;
        }
        match s.kind() {
            Kind::Read { source, index, guard } => {
                self.row += 20.0;
                self.each += self.access(*source as usize, index);
                index.iter().filter(|i| i.as_index().is_none()).for_each(|&i| self.add(i));
                if let Some((cond, fallback)) = guard {
                    // Mostly a span of lanes, found once for the row.
                    self.row += 20.0;
                    self.each += if self.varies[cond] { 0.2 } else { 0.0 };
                    self.add(*fallback);
                }
            }
            Kind::Const(_) | Kind::Local(_) => {}
            _ => {
                self.row += 5.0;
                self.each += if self.varies[&s] { 0.5 } else { 0.0 };
                s.operands().into_iter().for_each(|o| self.add(o));
            }
        }
    }

    fn access(&self, source: usize, index: &[Scalar]) -> f64 {
        let strides = self.sources.get(source).and_then(|s| s.as_ref()).map_or(&[][..], |s| &s.strides);
        let step = |i: &Scalar| match i.as_index().and_then(|e| e.affine_in(self.lane)) {
            Some((step, _)) => Some(step),
            None => (!self.varies[i]).then_some(0),
        };
        let stride = index.iter().zip(strides).map(|(i, s)| Some(step(i)? * s)).sum::<Option<i64>>();
        match stride {
            Some(0) => 0.1,
            Some(1 | -1) => 0.3,
            Some(s) if s.abs() < 8 => 0.6,
            Some(_) => 1.2,
            None => 8.0,
        }
    }
}

/// The lane axis: one of the result's, or the innermost of a reduction.
fn choose_lane(body: &Body, sources: &[Option<Source>]) -> Option<usize> {
    let rank = body.dims.len();
    let extents = body.extents();
    let innermost = (extents.len() > rank).then(|| extents.len() - 1);
    let candidates = (0..rank).chain(innermost).filter(|&a| extents[a] > 1);
    let costs = candidates.map(|a| {
        // Values of one accumulator are added one after another.
        let chain = if a >= rank { 1.0 } else { 0.0 };
        (cost(body, sources, a, extents[a]) + chain, a)
    });
    costs.min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))).map(|(_, a)| a)
}

/// Loops and strides of a nest with the lane axis taken out.
struct Nest {
    lane: Option<usize>,
    /// Result axes that are loops, then reduction axes that are loops.
    outer: Vec<usize>,
    inner: Vec<usize>,
    /// Row-major strides of the result.
    strides: Vec<usize>,
}

impl Nest {
    fn new(body: &Body, lane: Option<usize>) -> Nest {
        let extents = body.extents();
        let rank = body.dims.len();
        let mut strides = vec![1; rank];
        for i in (1..rank).rev() {
            strides[i - 1] = strides[i] * body.dims[i];
        }
        let loops = |range: std::ops::Range<usize>| range.filter(|&a| Some(a) != lane).collect::<Vec<_>>();
        Nest { lane, outer: loops(0..rank), inner: loops(rank..extents.len()), strides }
    }
    fn compile(&self, body: &Body, sources: &[Option<Source>]) -> Result<Tape, Fault> {
        let loops: HashMap<u32, usize> = self.outer.iter().chain(&self.inner).enumerate().map(|(i, &a)| (a as u32, i)).collect();
        tape::compile(body.scalar, self.lane.map(|a| a as u32), &loops, sources, &body.env())
    }
    /// Rows of the lane axis: first lane and count.
    fn chunks(&self, extent: usize, most: usize) -> Vec<(usize, usize)> {
        (0..extent).step_by(most).map(|first| (first, most.min(extent - first))).collect()
    }
}

fn set_vars(rows: &mut Rows, axes: &[usize], at: &Odometer, from: usize) {
    for i in from..axes.len() {
        rows.vars[axes[i]] = at.at[i] as i64;
    }
}

fn odometer(body: &Body, axes: &[usize]) -> Odometer {
    let extents = body.extents();
    Odometer { extents: axes.iter().map(|&a| extents[a]).collect(), at: vec![0; axes.len()] }
}

/// Bytes of all elements.
pub(super) fn map(body: &Body, sources: &[Option<Source>]) -> Result<Vec<u8>, Fault> {
    let nest = Nest::new(body, choose_lane(body, sources));
    let tape = nest.compile(body, sources)?;
    let lists = by_depth(&tape, nest.outer.len(), &[]);
    let dtype = body.scalar.dtype();
    let mut out = vec![0u8; body.dims.iter().product::<usize>() * dtype.bytes()];
    let (extent, stride) = nest.lane.map_or((1, 1), |a| (body.dims[a], nest.strides[a]));
    let mut rows = Rows::new(&tape, sources, body.dims.len());
    for (first, n) in nest.chunks(extent, LANES) {
        (rows.first, rows.n) = (first as i64, n);
        let mut outer = odometer(body, &nest.outer);
        set_vars(&mut rows, &nest.outer, &outer, 0);
        run_lists(&mut rows, &lists)?;
        loop {
            let at: usize = nest.outer.iter().zip(&outer.at).map(|(&a, &i)| i * nest.strides[a]).sum();
            store(&mut out, at + first * stride, stride, dtype, &rows, tape.root);
            let Some(changed) = outer.step() else { break };
            set_vars(&mut rows, &nest.outer, &outer, changed);
            run_lists(&mut rows, &lists[changed + 1..])?;
        }
    }
    Ok(out)
}

fn store(out: &mut [u8], at: usize, stride: usize, dtype: DType, rows: &Rows, root: Reg) {
    match kept(dtype) {
        Kept::F32 => write_row(out, at, stride, rows.n, |j| lane(rows.f32s(root), j).to_le_bytes()),
        Kept::F64 if dtype == DType::F64 => write_row(out, at, stride, rows.n, |j| lane(rows.f64s(root), j).to_le_bytes()),
        Kept::I64 if dtype.bytes() == 1 => write_row(out, at, stride, rows.n, |j| [lane(rows.i64s(root), j) as u8]),
        Kept::I64 if dtype.bytes() == 8 => write_row(out, at, stride, rows.n, |j| lane(rows.i64s(root), j).to_le_bytes()),
        Kept::F64 | Kept::I64 => write_values(out, at, stride, rows.n, dtype, |j| rows.get(root, j)),
    }
}

#[inline(always)]
fn lane<T: Copy>(lanes: Lanes<T>, j: usize) -> T {
    match lanes {
        Lanes::One(v) => v,
        Lanes::Each(v) => v[j],
    }
}

#[inline(always)]
fn write_row<const W: usize>(out: &mut [u8], at: usize, stride: usize, n: usize, value: impl Fn(usize) -> [u8; W]) {
    if stride == 1 {
        out[at * W..(at + n) * W].chunks_exact_mut(W).enumerate().for_each(|(j, o)| o.copy_from_slice(&value(j)));
    } else {
        (0..n).for_each(|j| out[(at + j * stride) * W..][..W].copy_from_slice(&value(j)));
    }
}

fn write_values(out: &mut [u8], at: usize, stride: usize, n: usize, dtype: DType, value: impl Fn(usize) -> u64) {
    let width = dtype.bytes();
    for j in 0..n {
        let raw = eval::to_memory(dtype, value(j)).to_le_bytes();
        out[(at + j * stride) * width..][..width].copy_from_slice(&raw[..width]);
    }
}

/// Accumulators: one for each lane, or a single one that takes the lanes in order.
enum Acc {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    Any(Vec<Accumulator>),
}

impl Acc {
    fn new(kind: Reducer, dtype: DType, n: usize) -> Acc {
        let start = match kind.identity(dtype).kind() {
            Kind::Const(c) => *c,
            other => unreachable!("identity is {other:?}"),
        };
        match (kind, kept(dtype)) {
            (Reducer::ArgMax { .. } | Reducer::ArgMin { .. }, _) => Acc::Any(vec![Accumulator::new(kind, dtype); n]),
            (_, Kept::F32) => Acc::F32(vec![f64::from_bits(start) as f32; n]),
            (_, Kept::F64) => Acc::F64(vec![f64::from_bits(start); n]),
            (_, Kept::I64) => Acc::I64(vec![start as i64; n]),
        }
    }

    fn add(&mut self, kind: Reducer, dtype: DType, rows: &Rows, root: Reg) {
        let n = rows.n;
        match self {
            Acc::F32(acc) => {
                let v = rows.f32s(root);
                match kind {
                    Reducer::Sum => combine(acc, v, n, |x, y| x + y),
                    Reducer::Prod => combine(acc, v, n, |x, y| x * y),
                    Reducer::Min => combine(acc, v, n, min32),
                    _ => combine(acc, v, n, max32),
                }
            }
            Acc::F64(acc) => {
                let op = kind.combine().expect("an operator");
                let v = rows.f64s(root);
                match (kind, dtype) {
                    (Reducer::Sum, DType::F64) => combine(acc, v, n, |x, y| x + y),
                    _ => combine(acc, v, n, |x, y| f64::from_bits(eval::binary(op, dtype, x.to_bits(), y.to_bits()))),
                }
            }
            Acc::I64(acc) => {
                let op = kind.combine().expect("an operator");
                let v = rows.i64s(root);
                match kind {
                    Reducer::Sum => combine(acc, v, n, |x, y| eval::wrap_int(dtype, x.wrapping_add(y))),
                    _ => combine(acc, v, n, |x, y| eval::binary(op, dtype, x as u64, y as u64) as i64),
                }
            }
            Acc::Any(acc) => match &mut acc[..] {
                [one] => (0..n).for_each(|j| one.add(rows.get(root, j))),
                many => many.iter_mut().enumerate().for_each(|(j, a)| a.add(rows.get(root, j))),
            },
        }
    }

    fn store(&self, out: &mut [u8], at: usize, stride: usize, dtype: DType) {
        match self {
            Acc::F32(v) => write_row(out, at, stride, v.len(), |j| v[j].to_le_bytes()),
            Acc::F64(v) => write_values(out, at, stride, v.len(), dtype, |j| v[j].to_bits()),
            Acc::I64(v) => write_values(out, at, stride, v.len(), dtype, |j| v[j] as u64),
            Acc::Any(v) => write_values(out, at, stride, v.len(), dtype, |j| v[j].result()),
        }
    }
}

#[inline(always)]
fn combine<T: Copy>(acc: &mut [T], v: Lanes<T>, n: usize, f: impl Fn(T, T) -> T + Copy) {
    match acc {
        [one] => *one = (0..n).fold(*one, |acc, j| f(acc, lane(v, j))),
        many => match v {
            Lanes::One(x) => many.iter_mut().for_each(|acc| *acc = f(*acc, x)),
            Lanes::Each(v) => many.iter_mut().zip(v).for_each(|(acc, &x)| *acc = f(*acc, x)),
        },
    }
}

/// Bytes of all accumulators after the reduction.
pub(super) fn reduce(body: &Body, kind: Reducer, sources: &[Option<Source>]) -> Result<Vec<u8>, Fault> {
    let lane = choose_lane(body, sources);
    let nest = Nest::new(body, lane);
    let tape = nest.compile(body, sources)?;
    let rank = body.dims.len();
    let dtype = body.scalar.dtype();
    let result = kind.result(dtype);
    let mut out = vec![0u8; body.dims.iter().product::<usize>() * result.bytes()];
    let reduced_lanes = lane.is_some_and(|a| a >= rank);
    let (extent, stride) = match lane {
        Some(a) if a < rank => (body.dims[a], nest.strides[a]),
        _ => (1, 1),
    };
    let product = Product::find(&tape, kind);
    let lists = by_depth(&tape, nest.outer.len() + nest.inner.len(), product.as_ref().map_or(&[], |p| &p.apart));
    let mut rows = Rows::new(&tape, sources, body.extents().len());
    for (first, n) in nest.chunks(extent, LANES) {
        (rows.first, rows.n) = if reduced_lanes { (0, body.extents()[lane.expect("checked")]) } else { (first as i64, n) };
        let accs = if reduced_lanes { 1 } else { n };
        let mut outer = odometer(body, &nest.outer);
        let mut changed = 0;
        set_vars(&mut rows, &nest.outer, &outer, 0);
        run_lists(&mut rows, &lists[..1])?;
        loop {
            run_lists(&mut rows, &lists[changed + 1..nest.outer.len() + 1])?;
            let mut acc = Acc::new(kind, dtype, accs);
            if !body.inner.contains(&0) {
                let mut inner = odometer(body, &nest.inner);
                set_vars(&mut rows, &nest.inner, &inner, 0);
                run_lists(&mut rows, &lists[nest.outer.len() + 1..])?;
                loop {
                    match (&product, &mut acc) {
                        (Some(p), Acc::F32(acc)) => p.add(&rows, acc)?,
                        (_, acc) => acc.add(kind, dtype, &rows, tape.root),
                    }
                    let Some(at) = inner.step() else { break };
                    set_vars(&mut rows, &nest.inner, &inner, at);
                    run_lists(&mut rows, &lists[nest.outer.len() + 1 + at..])?;
                }
            }
            let at: usize = nest.outer.iter().zip(&outer.at).map(|(&a, &i)| i * nest.strides[a]).sum();
            acc.store(&mut out, at + first * stride, stride, result);
            match outer.step() {
                Some(c) => changed = c,
                None => break,
            }
            set_vars(&mut rows, &nest.outer, &outer, changed);
        }
    }
    Ok(out)
}
