//! Sequences whose parts are known: what is taken out of them, or made of them, is made of the parts.

use crate::rewrite::{Replacement, Site};
use infc_ir::op::{Concat, Unsqueeze, normal_axis};
use infc_ir::{Op, Tensor, Value};

/// The parts of no longer sequences are looked for.
const LONGEST: usize = 4096;

pub fn rule(site: &mut Site) -> Replacement {
    let op = site.op().clone();
    if !matches!(op, Op::SequenceAt(_) | Op::SequenceLength(_) | Op::ConcatFromSequence(_)) {
        return Ok(None);
    }
    let Some(parts) = site.input(0).and_then(|v| parts(site, v)) else { return Ok(None) };
    match op {
        // at(construct(x0, x1, ...), k) => xk. Only within bounds: else it is an error when it is run.
        Op::SequenceAt(_) => {
            let at = site.constant(1).and_then(|t| position(t, parts.len())).and_then(|k| parts.get(k).copied());
            Ok(at.map(|v| taken(site, v)))
        }
        // length(construct(x0, x1, ...)) => their number.
        Op::SequenceLength(_) => {
            let length = Tensor::from_vec([], vec![parts.len() as i64]);
            Ok(Some(vec![site.graph.add_constant(length, "")]))
        }
        // concat(construct(x0, x1, ...)) => concat(x0, x1, ...), with a new axis in each if they are stacked. Parts that do not go
        // together are an error when it is run.
        Op::ConcatFromSequence(op) if !parts.is_empty() => {
            let made = site.build(|b| {
                let rank = b.tensor(parts[0])?.rank();
                let axis = normal_axis(op.axis, rank + usize::from(op.new_axis != 0))? as i64;
                let mut parts = parts;
                if op.new_axis != 0 {
                    let axes = b.ints(&[axis]);
                    for part in &mut parts {
                        *part = b.op(Unsqueeze {}, &[*part, axes])?;
                    }
                }
                if parts.len() == 1 { Ok(parts[0]) } else { b.op(Concat { axis }, &parts) }
            });
            Ok(made.ok().map(|v| taken(site, v)))
        }
        _ => Ok(None),
    }
}

fn taken(site: &mut Site, v: Value) -> Vec<Value> {
    site.take_sizes(&[v]);
    vec![v]
}

/// The place that a constant tells, counted from the end if it is negative.
fn position(t: &Tensor, length: usize) -> Option<usize> {
    if t.len() != 1 || t.dtype.int_range().is_none() {
        return None;
    }
    let (at, length) = (t.to_ints()[0], length as i64);
    usize::try_from(if at < 0 { at + length } else { at }).ok().filter(|&k| k as i64 <= length)
}

/// The tensors that a sequence is made of, by way of nodes that make it, put one in or take one out.
fn parts(site: &Site, v: Value) -> Option<Vec<Value>> {
    let mut chain = vec![];
    let mut at = v;
    let mut parts = loop {
        let node = site.graph.node(site.producer(at)?);
        match &node.op {
            Op::SequenceEmpty(_) => break vec![],
            Op::SequenceConstruct(_) => break node.inputs.iter().copied().collect::<Option<Vec<_>>>()?,
            Op::SequenceInsert(_) | Op::SequenceErase(_) if chain.len() < LONGEST => {
                chain.push(node);
                at = node.operand(0)?;
            }
            _ => return None,
        }
    };
    for node in chain.into_iter().rev() {
        let insert = matches!(node.op, Op::SequenceInsert(_));
        let place = node.operand(if insert { 2 } else { 1 });
        let place = match place {
            Some(p) => position(site.graph.constant(p)?, parts.len())?,
            None if insert => parts.len(),
            None => parts.len().checked_sub(1)?,
        };
        if insert {
            parts.insert(place, node.operand(1)?);
        } else if place < parts.len() {
            parts.remove(place);
        } else {
            return None;
        }
    }
    parts.iter().all(|&v| site.graph.ty(v).as_tensor().is_some()).then_some(parts)
}
