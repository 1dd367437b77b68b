//! Rules of padding: a Pad before a windowed operator becomes that operator's padding.

use super::all_are;
use crate::rewrite::{Replacement, Site};
use infc_ir::op::{AveragePool, Conv, MaxPool, Pad};
use infc_ir::{Op, Value};

pub(super) fn rule(site: &mut Site) -> Replacement {
    let (Op::Conv(_) | Op::MaxPool(_) | Op::AveragePool(_)) = site.op() else { return Ok(None) };
    let Some(inner) = site.input(0).and_then(|v| site.producer(v)) else { return Ok(None) };
    let Op::Pad(pad) = &site.graph.node(inner).op else { return Ok(None) };
    let Some(added) = spatial(site, inner, pad) else { return Ok(None) };
    let source = site.graph.node(inner).inputs.clone();
    let value = source.get(2).copied().flatten().map(|v| site.graph.constant(v).cloned());
    let is = |wanted: f64, absent: bool| match &value {
        None => absent,
        Some(t) => t.as_ref().is_some_and(|t| all_are(t, wanted)),
    };
    let (zero, least) = (is(0.0, true) || is(-0.0, false), is(f64::NEG_INFINITY, false));
    let sum = |pads: &[i64]| -> Vec<i64> { added.iter().enumerate().map(|(i, a)| a + pads.get(i).unwrap_or(&0)).collect() };
    let given = |auto_pad: &str| matches!(auto_pad, "NOTSET" | "VALID" | "");
    let notset = || "NOTSET".to_owned();
    let op: Op = match site.op().clone() {
        // A product with a padded 0 is a product with the 0 of Conv's own padding.
        Op::Conv(op) if zero && given(&op.auto_pad) => {
            let pads = sum(if op.auto_pad == "VALID" { &[] } else { &op.pads });
            Conv { pads, auto_pad: notset(), ..op }.into()
        }
        // MaxPool's own padding is -inf.
        Op::MaxPool(op) if least && given(&op.auto_pad) && op.ceil_mode == 0 && site.data().outputs.len() == 1 => {
            let pads = sum(if op.auto_pad == "VALID" { &[] } else { &op.pads });
            MaxPool { pads, auto_pad: notset(), ..op }.into()
        }
        // Padded zeros count in the mean, as padding does with `count_include_pad`; both kinds of padding cannot be told apart.
        Op::AveragePool(op) if zero && given(&op.auto_pad) && op.ceil_mode == 0 => {
            let own = if op.auto_pad == "VALID" { vec![] } else { op.pads.clone() };
            if !op.count_include_pad && own.iter().any(|&p| p != 0) {
                return Ok(None);
            }
            AveragePool { pads: sum(&own), count_include_pad: true, auto_pad: notset(), ..op }.into()
        }
        _ => return Ok(None),
    };
    // A window that sees padding only has no maximum and no mean: pools do not take such padding.
    let fits = |kernel: &[i64], pads: &[i64]| pads.iter().enumerate().all(|(i, &p)| p < kernel[i % kernel.len()]);
    let good = match &op {
        Op::MaxPool(op) => fits(&op.kernel_shape, &op.pads),
        Op::AveragePool(op) => fits(&op.kernel_shape, &op.pads),
        _ => true,
    };
    if !good {
        return Ok(None);
    }
    let mut inputs = site.data().inputs.clone();
    inputs[0] = source[0];
    site.absorb(inner);
    site.build(|b| b.node(op, &inputs, vec![], 1)).map(Some)
}

/// The pads of a Pad, begins and ends of the spatial axes only, if it adds constants to those only.
fn spatial(site: &Site, n: infc_ir::Node, pad: &Pad) -> Option<Vec<i64>> {
    let node = site.graph.node(n);
    let ints = |v: Value| site.graph.fact(v).ints?.iter().map(|e| e.known()).collect::<Option<Vec<i64>>>();
    let rank = site.graph.ty(node.operand(0)?).as_tensor()?.rank();
    let pads = ints(node.operand(1)?)?;
    let axes: Vec<i64> = match node.inputs.get(3).copied().flatten() {
        Some(v) => ints(v)?.iter().map(|&a| if a < 0 { a + rank as i64 } else { a }).collect(),
        None => (0..rank as i64).collect(),
    };
    if pad.mode != "constant" || pads.len() != 2 * axes.len() || rank < 3 {
        return None;
    }
    let mut all = vec![0i64; 2 * (rank - 2)];
    for (k, &axis) in axes.iter().enumerate() {
        for (p, offset) in [(pads[k], 0), (pads[k + axes.len()], rank - 2)] {
            match usize::try_from(axis - 2) {
                Ok(spatial) if p >= 0 && spatial + 2 < rank => all[offset + spatial] += p,
                _ if p == 0 => {}
                _ => return None,
            }
        }
    }
    Some(all)
}
