//! Products as lists of factors: `0.5 * x * (1 + e)` in whatever order and grouping it was written.

use crate::rewrite::Site;
use infc_ir::graph::Node;
use infc_ir::{Op, Value};

/// A product: a number times values.
pub struct Product {
    /// The constants, multiplied.
    pub factor: f64,
    /// The other factors, a value as often as it is a factor.
    pub values: Vec<Value>,
    /// The nodes that the product is made of.
    pub nodes: Vec<Node>,
}

/// The product that `v` is; `v` itself if it is none. Looks through nodes that nothing else uses (the first may have any uses).
pub fn product(site: &Site, v: Value) -> Product {
    let mut p = Product { factor: 1.0, values: vec![], nodes: vec![] };
    collect(site, v, true, 1, &mut p);
    p
}

fn collect(site: &Site, v: Value, first: bool, times: usize, p: &mut Product) {
    if let Some(c) = site.scalar(v) {
        p.factor *= c.powi(times as i32);
        return;
    }
    let n = site.producer(v).filter(|_| first || site.used_once(v));
    let leaf = |p: &mut Product| p.values.extend(std::iter::repeat_n(v, times));
    let Some(n) = n else { return leaf(p) };
    let data = site.graph.node(n);
    let (a, b) = (data.inputs.first().copied().flatten(), data.inputs.get(1).copied().flatten());
    match (&data.op, a, b) {
        (Op::Mul(_), Some(a), Some(b)) if a == b => {
            p.nodes.push(n);
            // A square: the operand has two uses, both here.
            let inner = site.uses(a) == 2 && times == 1;
            if inner && site.producer(a).is_some_and(|n| matches!(site.graph.node(n).op, Op::Mul(_))) {
                collect(site, a, true, 2, p);
            } else {
                p.values.extend(std::iter::repeat_n(a, 2 * times));
            }
        }
        (Op::Mul(_), Some(a), Some(b)) => {
            p.nodes.push(n);
            collect(site, a, false, times, p);
            collect(site, b, false, times, p);
        }
        (Op::Div(_), Some(a), Some(b)) if site.scalar(b).is_some_and(|c| c != 0.0) => {
            p.nodes.push(n);
            p.factor /= site.scalar(b).expect("just seen").powi(times as i32);
            collect(site, a, false, times, p);
        }
        (Op::Pow(_), Some(a), Some(b)) if site.scalar(b).is_some_and(|c| c == 2.0 || c == 3.0) => {
            p.nodes.push(n);
            let exponent = site.scalar(b).expect("just seen") as usize;
            collect(site, a, false, times * exponent, p);
        }
        _ => leaf(p),
    }
}

/// The operands of a sum `constant + v`, in either order.
pub fn plus_constant(site: &Site, v: Value) -> Option<(Node, f64, Value)> {
    let (n, data) = site.inner(v)?;
    let Op::Add(_) = data.op else { return None };
    let (a, b) = (data.operand(0)?, data.operand(1)?);
    match (site.scalar(a), site.scalar(b)) {
        (Some(c), None) => Some((n, c, b)),
        (None, Some(c)) => Some((n, c, a)),
        _ => None,
    }
}
