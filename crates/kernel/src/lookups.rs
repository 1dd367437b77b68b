//! Constants whose rows are looked up lie as narrow as their values are: tables of embeddings.
//!
//! A table of f32 whose numbers are all f16, bf16 or 8-bit floats is stored as that, and each read is cast. Integers of 4 and 2 bits, which have a byte
//! each, share bytes: the parts of a row, as many as fit, lie over each other, so that neighbours in a row are neighbours in memory still. Only rows
//! that data chooses, and that are read along, are treated so: a run reads few of them, and each is widened where it is read. Knows no operator: it looks
//! at computes only. Class: exact.

use crate::build::stored::{self, FLOATS};
use crate::work::{Arg, Id, Item, Memory, Task, Work};
use infc_ir::compute::Step;
use infc_ir::expr::Node;
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor, TensorType};
use std::collections::HashMap;

/// Shorter rows and smaller tables stay as they are.
const ROW: usize = 16;
const LEAST: usize = 1024;

/// How a table is stored instead.
#[derive(Clone, Copy)]
enum Form {
    /// Each number by itself, of that dtype.
    Float(DType),
    /// So many integers of a row in each byte, over rows of so many bytes.
    Parts { each: usize, bytes: usize },
}

/// Stores all tables that are only looked up as narrow as they can be.
pub fn narrow(work: &mut Work) {
    let mut items = std::mem::take(&mut work.items);
    let mut good: HashMap<Id, bool> = HashMap::new();
    note(work, &items, &mut good);
    for data in &work.tensors {
        if let Memory::Alias { of, .. } | Memory::Window { of, .. } = data.memory {
            good.insert(of, false);
        }
    }
    for id in work.output_tensors().chain(work.shared.iter().copied()) {
        good.insert(id, false);
    }
    let mut tables: Vec<Id> = good.into_iter().filter_map(|(id, good)| good.then_some(id)).collect();
    tables.sort();
    let mut stored: HashMap<Id, (Id, Form)> = HashMap::new();
    for id in tables {
        let Memory::Constant(t) = &work.tensor(id).memory else { continue };
        let Some((t, form)) = narrower(t) else { continue };
        let (ty, name) = (TensorType::new(t.dtype, t.dims.iter().map(|&d| Expr::from(d))), work.tensor(id).name.clone());
        stored.insert(id, (work.add(ty, Memory::Constant(t), name), form));
    }
    if !stored.is_empty() {
        replace(&mut items, &stored);
    }
    work.items = items;
}

/// Which tensors are looked up by all that read them.
fn note(work: &Work, items: &[Item], good: &mut HashMap<Id, bool>) {
    for item in items {
        let mut other = |id: Id| _ = good.insert(id, false);
        match item {
            Item::Task(task) => {
                for s in task.step.scalars() {
                    s.visit(&mut |n| {
                        let Kind::Read { source, .. } = n.kind() else { return };
                        let id = task.sources[*source as usize];
                        if matches!(work.tensor(id).memory, Memory::Constant(_)) {
                            let row = is_row(n) && matches!(task.step, Step::Compute(_));
                            good.entry(id).and_modify(|g| *g &= row).or_insert(row);
                        }
                    });
                }
            }
            Item::If { cond, then, otherwise } => {
                other(*cond);
                note(work, then, good);
                note(work, otherwise, good);
            }
            Item::Loop { cond, body, .. } => {
                cond.iter().for_each(|&id| other(id));
                note(work, body, good);
            }
            Item::Bind { from, .. } => other(*from),
            Item::Host { inputs, outputs, .. } => {
                for arg in inputs.iter().flatten().chain(outputs) {
                    if let Arg::Tensor(id) = arg {
                        other(*id);
                    }
                }
            }
            Item::Require { .. } => {}
        }
    }
}

/// Is it an element of a row that data chooses, read along that row?
fn is_row(read: Scalar) -> bool {
    let Kind::Read { index, guard: None, .. } = read.kind() else { return false };
    let Some((last, rows)) = index.split_last() else { return false };
    let along = last.as_index().is_some_and(|e| {
        let mut steps = false;
        e.leaves(&mut |leaf| {
            if let Node::Var(v) = leaf.node() {
                steps |= e.affine_in(*v).is_some_and(|(step, _)| step == 1);
            }
        });
        steps
    });
    along && rows.iter().any(|i| i.as_index().is_none())
}

/// The table in fewer bytes, if there is a way.
fn narrower(t: &Tensor) -> Option<(Tensor, Form)> {
    let row = *t.dims.last()?;
    if row < ROW || t.len() < LEAST {
        return None;
    }
    if t.dtype == DType::F32 {
        let values = t.to_vec::<f32>();
        let dtype = FLOATS.into_iter().find(|&d| values.iter().all(|&v| stored::plain(v, d).is_some()))?;
        return Some((stored::as_floats(&values, t.dims.clone(), dtype), Form::Float(dtype)));
    }
    let bits = t.dtype.bits() as usize;
    if !t.dtype.is_int() || t.dtype.bytes() != 1 || bits >= 8 || t.dtype == DType::Bool {
        return None;
    }
    let (each, mask) = (8 / bits, (1u8 << bits) - 1);
    let bytes = row.div_ceil(each);
    let mut out = vec![0u8; t.len() / row * bytes];
    for (from, to) in t.bytes().chunks_exact(row).zip(out.chunks_exact_mut(bytes)) {
        for (k, v) in from.iter().enumerate() {
            to[k % bytes] |= (v & mask) << (k / bytes * bits);
        }
    }
    let mut dims = t.dims.clone();
    *dims.last_mut()? = bytes;
    Some((Tensor::from_bytes(DType::U8, dims, out), Form::Parts { each, bytes }))
}

fn replace(items: &mut [Item], stored: &HashMap<Id, (Id, Form)>) {
    for item in items {
        match item {
            Item::Task(task) if task.sources.iter().any(|id| stored.contains_key(id)) => replace_in(task, stored),
            Item::If { then, otherwise, .. } => {
                replace(then, stored);
                replace(otherwise, stored);
            }
            Item::Loop { body, .. } => replace(body, stored),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

/// The task with reads of narrow tables, widened.
fn replace_in(task: &mut Task, stored: &HashMap<Id, (Id, Form)>) {
    let forms: Vec<Option<Form>> = task.sources.iter().map(|id| stored.get(id).map(|s| s.1)).collect();
    task.step = task.step.map(&mut |s| {
        s.rewrite(&mut |n| match n.kind() {
            Kind::Read { source, index, guard: None } => match forms[*source as usize] {
                Some(form) => widened(n.dtype(), *source as usize, index, form),
                None => n,
            },
            _ => n,
        })
    });
    for id in &mut task.sources {
        if let Some(&(narrow, _)) = stored.get(id) {
            *id = narrow;
        }
    }
}

/// The number at `index` of a narrow table.
fn widened(dtype: DType, source: usize, index: &[Scalar], form: Form) -> Scalar {
    match form {
        Form::Float(narrow) => Scalar::read(narrow, source, index.iter().copied()).cast(dtype),
        Form::Parts { each, bytes } => {
            let (last, rows) = index.split_last().expect("a row has an axis");
            let (at, bytes) = (last.as_index().expect("checked before"), Expr::from(bytes));
            let byte = Scalar::read(DType::U8, source, rows.iter().copied().chain([Scalar::index(at.rem(bytes))]));
            let part = Scalar::index(at.div(bytes) * (8 / each) as i64).cast(DType::U8);
            // A cast keeps the low bits.
            Scalar::binary(Binary::Shr, byte, part).cast(dtype)
        }
    }
}
