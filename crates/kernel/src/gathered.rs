//! Rows of a product side by side, where tiles of a matrix unit would be half empty: the last maps of a network for pictures whose convolution leaves out every second pixel.
//!
//! A tile takes rows that lie evenly spaced. Seven pixels of a line, then a line that is left out, make seven tiles of seven rows; the same 49 rows side by side make four. A step before
//! the product copies what each row reads, once for each tap, where the tiles that are saved cost more than the copy, by the account of [`crate::build::matrix`]. Elsewhere convolutions
//! read their input where it lies. Runs when the order of tensors in memory is decided. Class: exact.

use crate::build::{Operand, contract, product_cycles};
use crate::fuse::is_contraction;
use crate::loops::{Access, Buffer, Space};
use crate::plan::Plan;
use crate::program::{declare, prepare};
use crate::target::{LINE, TargetDesc};
use crate::work::{Item, Memory, Task, Work};
use infc_ir::compute::{Compute, Reduction, Step};
use infc_ir::scalar::Scalar;
use infc_ir::{Expr, TensorType};

/// Bytes that are copied in a cycle, from L2 to L2, there and back counted once. (Granite Rapids: 440 KiB in 20 us.)
const COPIED: f64 = 7.0;
/// How many times the copy must be saved: it takes memory, and the account is none of what comes from beyond L2.
const WORTH: f64 = 2.0;

/// Puts such copies before products, in all blocks of the work list.
pub fn rows(work: &mut Work, target: &TargetDesc) {
    if target.tiles() {
        let mut items = std::mem::take(&mut work.items);
        walk(work, target, &mut items);
        work.items = items;
    }
}

fn walk(work: &mut Work, target: &TargetDesc, items: &mut Vec<Item>) {
    let mut out = Vec::with_capacity(items.len());
    for mut item in std::mem::take(items) {
        match &mut item {
            Item::Task(task) => {
                if let Some(found) = gathered(work, task, target) {
                    let [copy, product] = found.tasks(work, task, target);
                    out.push(Item::Task(copy));
                    *task = product;
                }
            }
            Item::If { then, otherwise, .. } => {
                walk(work, target, then);
                walk(work, target, otherwise);
            }
            Item::Loop { body, .. } => walk(work, target, body),
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
        out.push(item);
    }
    *items = out;
}

/// A product whose rows are copied.
struct Gathered {
    /// Type of the copy, and the element that each of its own is, of the source that is read.
    ty: TensorType,
    element: Scalar,
    source: usize,
    /// The product that reads the copy as the source behind its others.
    product: Compute,
}

fn gathered(work: &Work, task: &Task, target: &TargetDesc) -> Option<Gathered> {
    let Step::Compute(c) = &task.step else { return None };
    if !is_contraction(c) {
        return None;
    }
    let mut operands: Vec<Operand> = task.sources.iter().map(|&s| declare(work, s, Access::Read)).collect();
    operands.push(declare(work, task.out, Access::Write));
    let (Step::Compute(c), now, plan) = prepare(task.step.clone(), operands.clone(), target) else { return None };
    let Plan::Matrix(p) = &plan else { return None };
    let before = product_cycles(&c, &now, &plan, target)?;
    let [f0, f1] = contract::factors(&c)?;
    let a = if p.broadcast == 0 { f0 } else { f1 };
    let (rank, reduction) = (c.dims.len(), c.reduction.clone()?);
    // The copy has an axis for each of the product's that moves the rows, and one for each along k.
    let moves: Vec<usize> = (0..rank).filter(|&x| a.index.iter().any(|e| e.uses_var(x as u32))).collect();
    if moves.contains(&p.n) {
        return None;
    }
    let along: Vec<usize> = moves.iter().copied().chain(rank..rank + reduction.axes.len()).collect();
    let dims: Vec<Expr> = moves.iter().map(|&x| c.dims[x]).chain(reduction.axes.iter().copied()).collect();
    let mut own = vec![Expr::int(0); rank + reduction.axes.len()];
    for (place, &axis) in along.iter().enumerate() {
        own[axis] = Expr::var(place);
    }
    let dtype = a.read.dtype();
    let index: Vec<Expr> = a.index.iter().map(|e| e.subst(&own)).collect();
    let at: Vec<Expr> = along.iter().map(|&axis| Expr::var(axis)).collect();
    let copied = Scalar::read_at(dtype, task.sources.len(), &at);
    let body = reduction.body.rewrite(&mut |n| if n == a.read { copied } else { n });
    let product = Compute { dims: c.dims.clone(), reduction: Some(Reduction { body, ..reduction }), value: c.value };
    let bytes = Expr::product(dims.iter().copied()).known()? * dtype.bytes() as i64;
    let buffer = Buffer {
        name: String::new(),
        dtype,
        strides: Buffer::row_major(&dims),
        dims: dims.clone(),
        space: Space::Global,
        access: Access::Read,
    };
    operands.insert(
        task.sources.len(),
        Operand { buffer, shift: vec![0; dims.len()], zeros: vec![], constant: None, tf32: false, narrow: None },
    );
    let (Step::Compute(c), now, plan) = prepare(Step::Compute(product.clone()), operands, target) else { return None };
    let after = product_cycles(&c, &now, &plan, target).filter(|_| matches!(plan, Plan::Matrix(_)))?;
    let saved = before - after;
    (saved > WORTH * bytes as f64 / COPIED).then(|| Gathered {
        ty: TensorType::new(dtype, dims),
        element: Scalar::read_at(dtype, 0, &index),
        source: a.source,
        product,
    })
}

impl Gathered {
    /// The copy, and the product behind it.
    fn tasks(self, work: &mut Work, task: &Task, target: &TargetDesc) -> [Task; 2] {
        let (inner, bytes) = (self.ty.dims.last().and_then(|d| d.known()), self.ty.dtype.bytes() as i64);
        let one = self.product.reduction.as_ref().is_some_and(|r| r.axes.len() == 1);
        let copy = work.add(self.ty.clone(), Memory::Temp, "rows");
        if one && inner.is_some_and(|n| target.rows_collide(n * bytes)) {
            work.tensors[copy.index()].gap = LINE / bytes;
        }
        let element = Compute { dims: self.ty.dims, reduction: None, value: self.element };
        let first = Task {
            step: Step::Compute(element),
            sources: vec![task.sources[self.source]],
            out: copy,
            name: "rows".into(),
            node: task.node.clone(),
        };
        let mut second = Task { step: Step::Compute(self.product), ..task.clone() };
        second.sources.push(copy);
        second.prune();
        [first, second]
    }
}
