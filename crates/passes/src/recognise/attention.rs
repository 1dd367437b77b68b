//! Scaled dot-product attention written out.

use super::product::product;
use crate::rewrite::{Replacement, Site};
use infc_ir::graph::Node;
use infc_ir::op::{Attention, Transpose, broadcast};
use infc_ir::{DType, Op, Value};

/// softmax(scale * q k^T + mask) v over the last two of four dims: Attention. `k` may be transposed by itself or together with a
/// permutation of heads.
pub(super) fn rule(site: &mut Site) -> Replacement {
    let Some(found) = find(site) else { return Ok(None) };
    found.nodes.iter().for_each(|&n| site.absorb(n));
    site.build(|b| {
        let k = match found.perm {
            Some(perm) => b.op(Transpose { perm }, &[found.k])?,
            None => found.k,
        };
        let op = Attention {
            is_causal: false,
            kv_num_heads: None,
            left_window_size: -1,
            q_num_heads: None,
            qk_matmul_output_mode: 0,
            right_window_size: -1,
            scale: Some(found.scale as f32),
            softcap: 0.0,
            softmax_precision: None,
        };
        let mut inputs = vec![Some(found.q), Some(k), Some(found.v)];
        inputs.extend(found.mask.map(Some));
        Ok(b.node(op, &inputs, vec![], 1)?[0])
    })
    .map(|v| Some(vec![v]))
}

struct Found {
    q: Value,
    k: Value,
    /// How `k` is to be permuted.
    perm: Option<Vec<i64>>,
    v: Value,
    mask: Option<Value>,
    scale: f64,
    nodes: Vec<Node>,
}

fn find(site: &Site) -> Option<Found> {
    let Op::MatMul(_) = site.op() else { return None };
    let (weights, v) = (site.input(0)?, site.input(1)?);
    let rank4 = |v: Value| site.graph.ty(v).as_tensor().is_some_and(|t| t.rank() == 4 && t.dtype == DType::F32);
    let (softmax, data) = site.inner(weights)?;
    let Op::Softmax(op) = &data.op else { return None };
    if !rank4(weights) || !rank4(v) || !matches!(op.axis, -1 | 3) {
        return None;
    }
    let mut nodes = vec![softmax];
    let mut scores = data.operand(0)?;
    let mut mask = None;
    if let Some((n, data)) = site.inner(scores)
        && let Op::Add(_) = data.op
    {
        let (a, b) = (data.operand(0)?, data.operand(1)?);
        let is_product = |v: Value| !product_of_two(site, v).2.is_empty();
        let (s, m) = if is_product(a) { (a, b) } else { (b, a) };
        let (dims, all) = (&site.graph.ty(m).as_tensor()?.dims, &site.graph.ty(s).as_tensor()?.dims);
        if dims.len() < 2 || broadcast(&[dims, all]).ok()? != *all || site.graph.ty(m).as_tensor()?.dtype != DType::F32 {
            return None;
        }
        nodes.push(n);
        (scores, mask) = (s, Some(m));
    }
    let (mut scale, matmul, parts) = product_of_two(site, scores);
    nodes.extend(&parts);
    let n = matmul.filter(|_| !parts.is_empty())?;
    let data = site.graph.node(n);
    // Factors may stand before the product, at either side.
    let (q, k) = (product(site, data.operand(0)?), product(site, data.operand(1)?));
    let ([q_value], [k_value]) = (&q.values[..], &k.values[..]) else { return None };
    scale *= q.factor * k.factor;
    let simple = |p: &super::product::Product, v: Value| if p.factor == 1.0 { v } else { p.values[0] };
    let (q_value, k_value) = (simple(&q, *q_value), simple(&k, *k_value));
    if !site.used_once(data.operand(0)?) && q.factor != 1.0 || !rank4(q_value) || !rank4(k_value) {
        return None;
    }
    // The operator has one batch, and as many heads of keys as of values: those of the queries, or one for all of them. MatMul broadcasts each by itself.
    let outer = |v: Value| site.graph.ty(v).as_tensor().map(|t| [t.dims[0], t.dims[1]]);
    let ([batch, heads], of_keys, of_values) = (outer(q_value)?, outer(k_value)?, outer(v)?);
    if of_keys != of_values || of_keys[0] != batch || of_keys[1] != heads && !of_keys[1].is(1) {
        return None;
    }
    nodes.extend(q.nodes.iter().chain(&k.nodes));
    let (t, data) = site.inner(k_value).or_else(|| site.producer(k_value).map(|n| (n, site.graph.node(n))))?;
    let Op::Transpose(op) = &data.op else { return None };
    let perm = crate::canon::permutation(op, 4);
    nodes.push(t);
    // What is wanted is the permutation with its last two places exchanged.
    let wanted: Vec<i64> = [0, 1, 3, 2].iter().map(|&i: &usize| perm[i] as i64).collect();
    let plain = wanted.iter().enumerate().all(|(i, &p)| p == i as i64);
    Some(Found { q: q_value, k: data.operand(0)?, perm: (!plain).then_some(wanted), v, mask, scale, nodes })
}

/// A product of constants and one matrix product: the factor, the matrix product, and the nodes.
fn product_of_two(site: &Site, v: Value) -> (f64, Option<Node>, Vec<Node>) {
    let p = product(site, v);
    let matmul = match p.values[..] {
        [one] => site.inner(one).filter(|(_, d)| matches!(d.op, Op::MatMul(_))).map(|(n, _)| n),
        _ => None,
    };
    let mut nodes = p.nodes;
    match matmul {
        Some(n) => nodes.push(n),
        None => nodes.clear(),
    }
    (p.factor, matmul, nodes)
}
