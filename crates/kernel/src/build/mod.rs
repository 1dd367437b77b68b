//! Builders: a step and its plan become a loop nest.
//!
//! Each kind of plan has one builder. All take the step over logical axes and the operands with their physical layout, and give a
//! [`Kernel`] whose global buffers are the operands that are read, in order, then the result.

pub mod attention;
pub mod border;
mod boxed;
pub mod byte_blocks;
pub mod chain;
pub mod collapse;
pub mod contract;
pub mod decode;
pub mod dots;
pub mod elementwise;
pub mod gemv;
pub mod groups;
pub mod heap;
pub mod matrix;
pub mod narrow;
pub mod network;
mod online;
pub mod pack;
pub mod row_reduce;
pub mod select;
pub mod serial;
pub mod sort;
pub mod sparse;
pub mod stored;
pub mod strips;
pub mod threads;
pub mod tile;
pub mod turned;
pub mod updates;
pub mod winograd;

use crate::attention::{Attention, Way};
use crate::loops::{Access, Axes, BoxCopy, Boxes, Buffer, Kernel, LoopKind, Space, Stmt};
use crate::plan::Plan;
use crate::target::TargetDesc;
use infc_ir::compute::{Compute, Reducer, Step, simplify_scalar};
use infc_ir::expr::{Node, Ranges};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A tensor as a kernel sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    /// Physical dims (border included) and strides.
    pub buffer: Buffer,
    /// Added to a logical index to get the physical one: the width of the border in front.
    pub shift: Vec<i64>,
    /// The width of the border behind each axis if the border is of zeros; empty if it is of something else, or if there is none.
    pub zeros: Vec<i64>,
    /// Its data, if constant.
    pub constant: Option<Tensor>,
    /// f32 whose elements were rounded to tf32 when they were stored.
    pub tf32: bool,
    /// It, stored narrow, if it is a constant matrix that can be.
    pub narrow: Option<Arc<narrow::Narrow>>,
}

impl Operand {
    /// The physical offset of a logical index in elements, where it is an index expression.
    pub fn offset(&self, index: &[Scalar]) -> Option<Expr> {
        let mut offset = Expr::int(0);
        for ((i, &stride), &shift) in index.iter().zip(&self.buffer.strides).zip(&self.shift) {
            offset = offset + (i.as_index()? + shift) * stride;
        }
        Some(offset)
    }
}

/// A constant that a builder has brought into the order that its kernel wants; it replaces a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// The source it replaces.
    pub source: usize,
    /// The packed data.
    pub tensor: Tensor,
}

/// What a builder makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Nest {
    /// The kernel; its global buffers are `sources` (with packed constants in their place), then the result, perhaps once more in another dtype.
    pub kernel: Kernel,
    /// Which source each global buffer before the result is.
    pub sources: Vec<usize>,
    /// Constants in a new order.
    pub packed: Vec<Packed>,
}

impl Nest {
    /// Stores each element of the result a second time, rounded to `dtype`, in a buffer behind the result's that lies as that does.
    pub fn store_twice(&mut self, dtype: DType) {
        self.store_result_twice(0, dtype);
    }

    /// The same for the buffer that is `which` behind those that are read.
    pub fn store_result_twice(&mut self, which: usize, dtype: DType) {
        let (k, out) = (&mut self.kernel, self.sources.len() + which);
        let number = (0..k.buffers.len() as u32).map(|b| (b, b + u32::from(b as usize > out))).collect();
        renumber(&mut k.body, &number);
        for copy in k.boxes.0.values_mut() {
            (copy.from, copy.to) = (number[&copy.from], number[&copy.to]);
        }
        let again = Buffer { name: "rounded".into(), dtype, access: Access::Write, ..k.buffers[out].clone() };
        k.buffers.insert(out + 1, again);
        let mut local = 0;
        next_local(&k.body, &mut local);
        store_again(&mut k.body, out as u32, dtype, &mut local);
    }
}

/// The first number that no local has, and none before.
fn next_local(body: &[Stmt], next: &mut u32) {
    for s in body {
        match s {
            Stmt::For { body, .. } | Stmt::While { body, .. } => next_local(body, next),
            Stmt::If { then, otherwise, .. } => {
                next_local(then, next);
                next_local(otherwise, next);
            }
            Stmt::Let { local, .. } => *next = (*next).max(local + 1),
            Stmt::Store { .. } | Stmt::Prefetch { .. } | Stmt::Alloc { .. } | Stmt::Check { .. } => {}
        }
    }
}

/// Behind each store into buffer `out` one into the next buffer, of the same value in another dtype.
fn store_again(body: &mut Vec<Stmt>, out: u32, dtype: DType, local: &mut u32) {
    let mut made = Vec::with_capacity(body.len());
    for mut s in std::mem::take(body) {
        match &mut s {
            Stmt::For { body, .. } | Stmt::While { body, .. } => store_again(body, out, dtype, local),
            Stmt::If { then, otherwise, .. } => {
                store_again(then, out, dtype, local);
                store_again(otherwise, out, dtype, local);
            }
            Stmt::Store { buffer, index, value } if *buffer == out => {
                let once = Scalar::local(value.dtype(), *local);
                made.push(Stmt::Let { local: *local, value: *value });
                made.push(Stmt::Store { buffer: out, index: index.clone(), value: once });
                (*buffer, *value) = (out + 1, once.cast(dtype));
                *local += 1;
            }
            Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Prefetch { .. } | Stmt::Alloc { .. } | Stmt::Check { .. } => {}
        }
        made.push(s);
    }
    *body = made;
}

/// Builds the nest of a step by its plan. `operands` are the step's sources, then its result.
pub fn build(name: &str, step: &Step, plan: &Plan, operands: &[Operand], target: &TargetDesc) -> Nest {
    let mut cx = Cx::new(operands, target);
    match (step, plan) {
        (Step::Compute(c), Plan::Brgemm(p)) => contract::build(&mut cx, c, p),
        (Step::Compute(c), Plan::Winograd(p)) => winograd::build(&mut cx, c, p),
        (Step::Compute(c), Plan::Matrix(p)) => matrix::build(&mut cx, c, p),
        (Step::Compute(c), Plan::Sparse(p)) => sparse::build(&mut cx, c, p),
        (Step::Compute(c), Plan::ByteBlocks(p)) => byte_blocks::build(&mut cx, c, p),
        (Step::Compute(c), Plan::Dots(p)) => dots::build(&mut cx, c, p),
        (Step::Compute(c), Plan::Elementwise(p)) => elementwise::build(&mut cx, c, p),
        (Step::Compute(c), Plan::Turned(p)) => turned::build(&mut cx, c, p),
        (Step::Compute(c), Plan::RowReduce(p)) => row_reduce::build(&mut cx, c, p),
        (Step::Compute(c), Plan::Tile(p)) => tile::build(&mut cx, c, p),
        (Step::Compute(c), Plan::Gemv(p)) => gemv::build(&mut cx, c, p),
        (Step::Compute(c), Plan::Threads(p)) => threads::build(&mut cx, c, p),
        (Step::Scatter(s), Plan::Updates(p)) => updates::build(&mut cx, s, p),
        (Step::Sort(s), Plan::Network(p)) => network::build(&mut cx, s, p),
        (Step::Scatter(s), Plan::Scatter) => serial::scatter(&mut cx, s),
        (Step::Prefix(p), Plan::Prefix) => serial::prefix(&mut cx, p),
        (Step::Sort(s), Plan::Sort { packed }) => sort::build(&mut cx, s, *packed),
        (Step::Filter(f), Plan::Filter) => select::filter(&mut cx, f),
        (Step::Choice(c), Plan::Choice(lanes)) => select::choice(&mut cx, c, *lanes),
        _ => unreachable!("plan {plan} is not for this step"),
    }
    cx.finish(name)
}

/// Cycles of the sums of a product by its plan's own account; `None` for steps and plans that have none.
pub(crate) fn product_cycles(c: &Compute, operands: &[Operand], plan: &Plan, target: &TargetDesc) -> Option<f64> {
    match plan {
        Plan::Brgemm(p) => Some(contract::cycles(c, p, target)),
        Plan::Winograd(p) => winograd::cycles(c, p, target),
        Plan::Matrix(p) => matrix::cycles(c, operands, p),
        _ => None,
    }
}

/// Builds the nest of an attention, or of one of its two kernels. `operands` are its sources, then its result.
pub fn build_attention(name: &str, a: &Attention, way: &Way, operands: &[Operand], target: &TargetDesc) -> Nest {
    let mut cx = Cx::new(operands, target);
    match way {
        Way::Tiles(p) => attention::build(&mut cx, a, p),
        Way::Strips(p) => strips::build(&mut cx, a, p),
        Way::Parts(p) => decode::build(&mut cx, a, p),
        Way::Join(p) => decode::build_join(&mut cx, a, p),
    }
    cx.finish(name)
}

/// Builds the nest of a chain. `operands` are its sources, then its `results`.
pub fn build_chain(name: &str, steps: &[chain::Step], operands: &[Operand], results: usize, target: &TargetDesc) -> Nest {
    let mut cx = Cx::new(operands, target);
    cx.results = results;
    chain::build(&mut cx, steps);
    cx.finish(name)
}

/// The state of a builder.
pub struct Cx<'a> {
    operands: &'a [Operand],
    /// How many of the operands, the last ones, are results.
    results: usize,
    /// The machine.
    pub target: &'a TargetDesc,
    buffers: Vec<Buffer>,
    shifts: Vec<Vec<i64>>,
    packed: Vec<Packed>,
    vars: u32,
    axes: BTreeMap<u32, &'static str>,
    /// Loops over threads that copy boxes.
    boxes: BTreeMap<u32, BoxCopy>,
    locals: u32,
    /// Number of tasks.
    pub tasks: Expr,
    /// The task's variable.
    pub task: Expr,
    /// The nest.
    pub body: Vec<Stmt>,
    ranges: Ranges,
}

impl<'a> Cx<'a> {
    fn new(operands: &'a [Operand], target: &'a TargetDesc) -> Cx<'a> {
        let mut cx = Cx {
            operands,
            results: 1,
            target,
            buffers: operands.iter().map(|o| o.buffer.clone()).collect(),
            shifts: operands.iter().map(|o| o.shift.clone()).collect(),
            packed: vec![],
            vars: 0,
            axes: BTreeMap::new(),
            boxes: BTreeMap::new(),
            locals: 0,
            tasks: Expr::int(1),
            task: Expr::int(0),
            body: vec![],
            ranges: Ranges::default(),
        };
        cx.task = cx.var("task");
        cx
    }
    /// A new loop variable; people know it by this name.
    pub fn var(&mut self, name: &'static str) -> Expr {
        self.axes.insert(self.vars, name);
        self.vars += 1;
        Expr::var(self.vars as usize - 1)
    }
    /// A loop over threads that does nothing but this copy.
    fn boxed(&mut self, thread: Expr, copy: BoxCopy) {
        if let Node::Var(v) = thread.node() {
            self.boxes.insert(*v, copy);
        }
    }
    /// New loop variables for as many axes.
    pub fn vars(&mut self, names: &[&'static str], axes: usize) -> Vec<Expr> {
        (0..axes).map(|k| self.var(names[k.min(names.len() - 1)])).collect()
    }
    /// A new local number.
    pub fn local(&mut self) -> u32 {
        self.locals += 1;
        self.locals - 1
    }
    /// A new buffer of the kernel's own.
    pub fn scratch(&mut self, name: &str, dtype: DType, dims: &[usize], space: Space) -> u32 {
        let dims: Vec<Expr> = dims.iter().map(|&d| Expr::from(d)).collect();
        let strides = Buffer::row_major(&dims);
        self.buffers.push(Buffer { name: name.into(), dtype, dims, strides, space, access: Access::ReadWrite });
        self.shifts.push(vec![]);
        self.buffers.len() as u32 - 1
    }
    /// The number of the result's buffer, or of the first one.
    pub fn out(&self) -> u32 {
        (self.operands.len() - self.results) as u32
    }
    /// A source or the result.
    pub fn operand(&self, k: usize) -> &Operand {
        &self.operands[k]
    }
    /// Puts packed data in the place of a constant source, which the kernel then reads with an index of its own.
    pub fn pack(&mut self, source: usize, tensor: Tensor) {
        let dims: Vec<Expr> = tensor.dims.iter().map(|&d| Expr::from(d)).collect();
        let buffer = &mut self.buffers[source];
        buffer.dtype = tensor.dtype;
        buffer.strides = Buffer::row_major(&dims);
        buffer.dims = dims;
        self.shifts[source] = vec![0; tensor.dims.len()];
        self.packed.push(Packed { source, tensor });
    }
    /// Makes all of the nest read or write an operand as one dim of all its elements. What has one index has done so before.
    pub fn flatten(&mut self, source: usize) {
        let (buffer, shift) = (&self.buffers[source], &self.shifts[source]);
        let (strides, span) = (buffer.strides.clone(), buffer.span());
        let flat = |index: &[Scalar]| {
            let moved = index.iter().zip(shift).map(|(i, &by)| i.as_index().expect("an index of loops") + by);
            Scalar::index(moved.zip(&strides).fold(Expr::int(0), |sum, (i, &stride)| sum + i * stride))
        };
        let many = strides.len() > 1;
        let fix = |s: Scalar| {
            s.rewrite(&mut |n| match n.kind() {
                Kind::Read { source: of, index, guard } if *of as usize == source && many && index.len() > 1 => {
                    Scalar::raw(n.dtype(), Kind::Read { source: *of, index: vec![flat(index)], guard: *guard })
                }
                _ => n,
            })
        };
        rewrite(&mut self.body, &fix, &|buffer, index| {
            if buffer as usize == source && many && index.len() > 1 {
                *index = vec![flat(index)];
            }
        });
        let buffer = &mut self.buffers[source];
        (buffer.dims, buffer.strides) = (vec![span], vec![Expr::int(1)]);
        self.shifts[source] = vec![0];
    }
    /// A constant in a new order, made of the one in which it is now.
    pub fn group_constant(&mut self, source: usize, make: impl FnOnce(&Tensor) -> Tensor) {
        let now = match self.packed.iter().position(|p| p.source == source) {
            Some(at) => self.packed.remove(at).tensor,
            None => self.operands[source].constant.clone().expect("a constant"),
        };
        self.pack(source, make(&now));
    }
    /// A store into the result at logical `index`.
    pub fn store_out(&self, index: &[Expr], value: Scalar) -> Stmt {
        self.store_result(0, index, value)
    }
    /// The same of several results.
    pub fn store_result(&self, which: usize, index: &[Expr], value: Scalar) -> Stmt {
        Stmt::Store { buffer: self.out() + which as u32, index: index.iter().map(|&e| Scalar::index(e)).collect(), value }
    }
    /// An element of a buffer of the kernel's own.
    pub fn at(&self, buffer: u32, index: &[Expr]) -> Scalar {
        Scalar::read_at(self.buffers[buffer as usize].dtype, buffer as usize, index)
    }
    /// A store into a buffer of the kernel's own.
    pub fn put(&self, buffer: u32, index: &[Expr], value: Scalar) -> Stmt {
        Stmt::Store { buffer, index: index.iter().map(|&e| Scalar::index(e)).collect(), value }
    }

    /// Shifts indices into borders, clamps indices that come from data, simplifies, and puts the kernel together.
    fn finish(mut self, name: &str) -> Nest {
        let mut body = std::mem::take(&mut self.body);
        self.ranges.extent(0, self.tasks);
        let mut ranges = self.ranges.clone();
        physical(&mut body, &self.buffers, &self.shifts, &mut ranges, self.target);
        let (out, own) = (self.out() as usize, self.operands.len());
        let mut used = BTreeSet::new();
        each_scalar(&body, &mut |s| {
            s.visit(&mut |n| {
                if let Kind::Read { source, .. } = n.kind() {
                    used.insert(*source as usize);
                }
            });
        });
        let reads_out: Vec<bool> = (out..own).map(|k| used.remove(&k)).collect();
        let sources: Vec<usize> = used.iter().copied().filter(|&s| s < out).collect();
        // Global buffers first: the sources that are read, the results, then the kernel's own.
        let order: Vec<usize> = sources.iter().copied().chain(out..self.buffers.len()).collect();
        let number: HashMap<u32, u32> = order.iter().enumerate().map(|(new, &old)| (old as u32, new as u32)).collect();
        renumber(&mut body, &number);
        let mut buffers: Vec<Buffer> = order.iter().map(|&k| self.buffers[k].clone()).collect();
        for (k, b) in buffers.iter_mut().enumerate().take(sources.len() + reads_out.len()) {
            let result = k.checked_sub(sources.len());
            b.name = match result {
                None => format!("in{k}"),
                Some(0) => "out".into(),
                Some(n) => format!("out{n}"),
            };
            b.access = match result.map(|n| reads_out[n]) {
                None => Access::Read,
                Some(false) => Access::Write,
                Some(true) => Access::ReadWrite,
            };
        }
        let mut boxes = Boxes(self.boxes);
        for copy in boxes.0.values_mut() {
            (copy.from, copy.to) = (number[&copy.from], number[&copy.to]);
        }
        let symbols = symbols(&body, &buffers, self.tasks);
        let task = match self.task.node() {
            Node::Var(v) => *v,
            _ => 0,
        };
        let kernel =
            Kernel { name: name.to_owned(), buffers, symbols, tasks: self.tasks, task, body, axes: Axes(self.axes), boxes };
        let packed = self.packed.into_iter().filter(|p| sources.contains(&p.source)).collect();
        Nest { kernel, sources, packed }
    }
}

/// A loop; an extent of 1 needs none (`body` must then not depend on the variable).
pub fn for_each(var: Expr, extent: Expr, kind: LoopKind, body: Vec<Stmt>) -> Stmt {
    let Node::Var(v) = var.node() else { unreachable!("a loop runs over a variable") };
    Stmt::For { var: *v, extent, kind, body }
}

/// `acc = combine(acc, value)` for a reducer with one operator; a product of floats is fused into a sum if the machine can.
pub fn accumulate(kind: Reducer, acc: Scalar, value: Scalar, fma: bool) -> Scalar {
    if kind == Reducer::Sum
        && fma
        && value.dtype().is_float()
        && let Kind::Binary(Binary::Mul, a, b) = value.kind()
    {
        return Scalar::fma(*a, *b, acc);
    }
    Scalar::binary(kind.combine().expect("a reducer with an operator"), acc, value)
}

fn each_scalar(body: &[Stmt], see: &mut dyn FnMut(Scalar)) {
    for s in body {
        match s {
            Stmt::For { body, .. } => each_scalar(body, see),
            Stmt::While { cond, body } => {
                see(*cond);
                each_scalar(body, see);
            }
            Stmt::Let { value, .. } => see(*value),
            Stmt::Store { index, value, .. } => {
                index.iter().for_each(|&i| see(i));
                see(*value);
            }
            Stmt::Prefetch { index, .. } => index.iter().for_each(|&i| see(i)),
            Stmt::Alloc { .. } => {}
            Stmt::If { cond, then, otherwise } => {
                see(*cond);
                each_scalar(then, see);
                each_scalar(otherwise, see);
            }
            Stmt::Check { cond, .. } => see(*cond),
        }
    }
}

/// Rewrites every scalar, and the index of what is fetched ahead.
fn rewrite(body: &mut [Stmt], fix: &dyn Fn(Scalar) -> Scalar, placed: &dyn Fn(u32, &mut Vec<Scalar>)) {
    for s in body {
        match s {
            Stmt::For { body, .. } => rewrite(body, fix, placed),
            Stmt::While { cond, body } => {
                *cond = fix(*cond);
                rewrite(body, fix, placed);
            }
            Stmt::Let { value, .. } => *value = fix(*value),
            Stmt::Store { buffer, index, value } => {
                index.iter_mut().for_each(|i| *i = fix(*i));
                placed(*buffer, index);
                *value = fix(*value);
            }
            Stmt::Prefetch { buffer, index } => placed(*buffer, index),
            Stmt::Alloc { .. } => {}
            Stmt::If { cond, then, otherwise } => {
                *cond = fix(*cond);
                rewrite(then, fix, placed);
                rewrite(otherwise, fix, placed);
            }
            Stmt::Check { cond, .. } => *cond = fix(*cond),
        }
    }
}

/// Turns logical indices into physical ones and simplifies with the ranges of the loops around.
fn physical(body: &mut [Stmt], buffers: &[Buffer], shifts: &[Vec<i64>], ranges: &mut Ranges, target: &TargetDesc) {
    let fix = |s: Scalar, ranges: &Ranges| {
        let s = s.rewrite(&mut |n| match n.kind() {
            Kind::Read { source, index, guard } => {
                let index = shifted(index, &buffers[*source as usize], &shifts[*source as usize]);
                Scalar::raw(n.dtype(), Kind::Read { source: *source, index, guard: *guard })
            }
            _ => n,
        });
        let s = simplify_scalar(s, ranges);
        if target.math_calls { s } else { crate::math::lower(s, target.fma) }
    };
    for s in body {
        match s {
            Stmt::For { var, extent, body, .. } => {
                ranges.extent(*var, *extent);
                physical(body, buffers, shifts, ranges, target);
            }
            Stmt::While { cond, body } => {
                *cond = fix(*cond, ranges);
                physical(body, buffers, shifts, ranges, target);
            }
            Stmt::Let { value, .. } => *value = fix(*value, ranges),
            Stmt::Store { buffer, index, value } => {
                let at: Vec<Scalar> = index.iter().map(|&i| fix(i, ranges)).collect();
                *index = shifted(&at, &buffers[*buffer as usize], &shifts[*buffer as usize]);
                index.iter_mut().for_each(|i| *i = simplify_scalar(*i, ranges));
                *value = fix(*value, ranges);
            }
            Stmt::Prefetch { buffer, index } => {
                *index = shifted(index, &buffers[*buffer as usize], &shifts[*buffer as usize]);
                index.iter_mut().for_each(|i| *i = fix(*i, ranges));
            }
            Stmt::Alloc { .. } => {}
            Stmt::If { cond, then, otherwise } => {
                *cond = fix(*cond, ranges);
                physical(then, buffers, shifts, ranges, target);
                physical(otherwise, buffers, shifts, ranges, target);
            }
            Stmt::Check { cond, .. } => *cond = fix(*cond, ranges),
        }
    }
}

/// The physical index. An index that comes from data is limited to the tensor, so that no read or write leaves it.
fn shifted(index: &[Scalar], buffer: &Buffer, shift: &[i64]) -> Vec<Scalar> {
    index
        .iter()
        .enumerate()
        .map(|(axis, &i)| {
            let by = shift.get(axis).copied().unwrap_or(0);
            match i.as_index() {
                Some(e) => Scalar::index(e + by),
                None if by == 0 && limited(i, buffer.dims[axis]) => i,
                None => {
                    let last = Scalar::index(buffer.dims[axis] - 1);
                    let i = if by == 0 { i } else { i + Scalar::index(by) };
                    i.min(last).max(Scalar::index(0))
                }
            }
        })
        .collect()
}

/// True for an unsigned number that a builder has limited to below a known extent itself, in its own width.
fn limited(index: Scalar, extent: Expr) -> bool {
    let Kind::Cast(narrow) = index.kind() else { return false };
    let Kind::Binary(Binary::Min | Binary::And, _, most) = narrow.kind() else { return false };
    match (most.kind(), extent.known()) {
        (Kind::Const(c), Some(n)) => narrow.dtype() == DType::U32 && i64::try_from(*c).is_ok_and(|c| c < n),
        _ => false,
    }
}

fn renumber(body: &mut [Stmt], number: &HashMap<u32, u32>) {
    let fix = |s: Scalar| {
        s.rewrite(&mut |n| match n.kind() {
            Kind::Read { source, index, guard } => {
                Scalar::raw(n.dtype(), Kind::Read { source: number[source], index: index.clone(), guard: *guard })
            }
            _ => n,
        })
    };
    for s in body {
        match s {
            Stmt::For { body, .. } => renumber(body, number),
            Stmt::While { cond, body } => {
                *cond = fix(*cond);
                renumber(body, number);
            }
            Stmt::Let { value, .. } => *value = fix(*value),
            Stmt::Store { buffer, index, value } => {
                *buffer = number[buffer];
                index.iter_mut().for_each(|i| *i = fix(*i));
                *value = fix(*value);
            }
            Stmt::Prefetch { buffer, index } => {
                *buffer = number[buffer];
                index.iter_mut().for_each(|i| *i = fix(*i));
            }
            Stmt::Alloc { buffer } => *buffer = number[buffer],
            Stmt::If { cond, then, otherwise } => {
                *cond = fix(*cond);
                renumber(then, number);
                renumber(otherwise, number);
            }
            Stmt::Check { cond, .. } => *cond = fix(*cond),
        }
    }
}

/// The symbols of a kernel, sorted by name.
fn symbols(body: &[Stmt], buffers: &[Buffer], tasks: Expr) -> Vec<&'static str> {
    let mut found: BTreeSet<&'static str> = BTreeSet::new();
    let mut see = |e: Expr| {
        e.leaves(&mut |l| {
            if let Node::Sym(s) = l.node() {
                found.insert(s);
            }
        });
    };
    see(tasks);
    buffers.iter().for_each(|b| b.dims.iter().chain(&b.strides).for_each(|&e| see(e)));
    fn extents(body: &[Stmt], see: &mut dyn FnMut(Expr)) {
        for s in body {
            match s {
                Stmt::For { extent, body, .. } => {
                    see(*extent);
                    extents(body, see);
                }
                Stmt::While { body, .. } => extents(body, see),
                Stmt::If { then, otherwise, .. } => {
                    extents(then, see);
                    extents(otherwise, see);
                }
                Stmt::Let { .. } | Stmt::Store { .. } | Stmt::Prefetch { .. } | Stmt::Alloc { .. } | Stmt::Check { .. } => {}
            }
        }
    }
    extents(body, &mut see);
    each_scalar(body, &mut |s| {
        s.visit(&mut |n| {
            if let Kind::Index(e) = n.kind() {
                see(*e);
            }
        });
    });
    found.into_iter().collect()
}

/// Loops over `chunk` values of the flattened `axes` from the task on; gives the axes' values and a wrapper for the body.
pub struct Chunk {
    /// Value of each axis.
    pub values: Vec<Expr>,
    /// Variables and extents of the loops, outermost first.
    loops: Vec<(Expr, Expr)>,
    /// What must hold for a value to be there, if that is not certain.
    inside: Option<Scalar>,
}

impl Cx<'_> {
    /// Splits the flattened axes of `dims` into tasks of `chunk` values each.
    pub fn chunked(&mut self, dims: &[Expr], chunk: usize) -> Chunk {
        let total = Expr::product(dims.iter().copied());
        let size = Expr::from(chunk);
        self.tasks = total.div_ceil(size);
        let first = self.task * size;
        let row = self.var("row");
        let one_by_one = chunk == 1 || total.known().is_some() || self.target.block_threads > 0;
        if one_by_one {
            let flat = first + row;
            let inside = total.div_exact(size).is_none().then(|| Scalar::index(flat).lt(Scalar::index(total)));
            return Chunk { values: Expr::delinearise(flat, dims), loops: vec![(row, size)], inside };
        }
        let (outer, inner) = dims.split_at(dims.iter().rposition(|d| d.known().is_none()).unwrap_or(0));
        if outer.iter().all(|d| d.is(1)) {
            let loops = vec![(row, (total - first).min(size))];
            return Chunk { values: Expr::delinearise(first + row, dims), loops, inside: None };
        }
        // Divisions by what is no constant are slow: one for each run of values along the axes from the last such one on.
        let end = (first + chunk as i64).min(total);
        let run = self.var("run");
        let all = Expr::product(inner.iter().copied());
        let before = first.div(all);
        let at = before + run;
        let begin = (first - at * all).max(Expr::int(0));
        let mut values = Expr::delinearise(at, outer);
        values.extend(Expr::delinearise(begin + row, inner));
        let runs = (end - 1).div(all) - before + 1;
        let loops = vec![(run, runs), (row, all.min(end - at * all) - begin)];
        Chunk { values, loops, inside: None }
    }
}

impl Chunk {
    /// The loops over the chunk around `body`.
    pub fn wrap(&self, body: Vec<Stmt>) -> Vec<Stmt> {
        let body = match self.inside {
            None => body,
            Some(cond) => vec![Stmt::If { cond, then: body, otherwise: vec![] }],
        };
        let around = |body: Vec<Stmt>, &(v, extent): &(Expr, Expr)| vec![for_each(v, extent, LoopKind::Serial, body)];
        self.loops.iter().rev().fold(body, around)
    }
}
