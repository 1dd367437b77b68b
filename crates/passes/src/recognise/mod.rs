//! Recognition: what exporters write as several operators becomes the one operator that it is.
//!
//! `norm` finds layer and RMS normalisation, `activation` GELU, SiLU, hard sigmoid and hard swish, `softmax` softmax, `attention`
//! scaled dot-product attention. Each rule is anchored at the last node of its pattern and asks that nothing else uses what is
//! inside, so that nothing is computed twice. Class: reassociated (the one operator may round less often).

mod activation;
mod attention;
mod norm;
mod product;
mod softmax;

use crate::rewrite::{Context, Site, each_node};
use infc_ir::graph::{Graph, Node, NodeData};
use infc_ir::{Op, Problems, Value};

/// Runs the pass; counts rewrites.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    let small = each_node(g, cx, "recognise", &mut |site| {
        for rule in [norm::rule, softmax::rule, activation::rule] {
            if let Some(values) = rule(site)? {
                return Ok(Some(values));
            }
        }
        Ok(None)
    })?;
    // Attention contains a softmax: it comes when those are found.
    Ok(small + each_node(g, cx, "recognise", &mut attention::rule)?)
}

impl Site<'_> {
    /// The node that makes `v`, which nothing else uses.
    pub fn inner(&self, v: Value) -> Option<(Node, &NodeData)> {
        let n = self.producer(v).filter(|_| self.used_once(v))?;
        Some((n, self.graph.node(n)))
    }
    /// The value of a constant of one element, or of equal elements.
    pub fn scalar(&self, v: Value) -> Option<f64> {
        let t = self.graph.constant(v).filter(|t| !t.is_empty() && (t.dtype.is_float() || t.dtype.is_int()))?;
        let first = t.float(0);
        (1..t.len()).all(|i| t.float(i) == first).then_some(first)
    }
    /// The axes of a reduction that keeps them, from 0 and sorted; `None` if they are not known.
    pub fn reduced(&self, n: Node, keepdims: bool) -> Option<Vec<usize>> {
        let data = self.graph.node(n);
        let rank = self.graph.ty(data.operand(0)?).as_tensor()?.rank();
        if !keepdims {
            return None;
        }
        let mut axes: Vec<usize> = match data.inputs.get(1).copied().flatten() {
            None => (0..rank).collect(),
            Some(v) => {
                let ints: Option<Vec<i64>> = self.graph.fact(v).ints?.iter().map(|e| e.known()).collect();
                ints?.iter().map(|&a| if a < 0 { a + rank as i64 } else { a } as usize).collect()
            }
        };
        axes.sort_unstable();
        (!axes.is_empty()).then_some(axes)
    }
    /// Operand and axes of a mean over kept axes.
    pub fn mean(&self, v: Value) -> Option<(Node, Value, Vec<usize>)> {
        let n = self.producer(v)?;
        let Op::ReduceMean(op) = &self.graph.node(n).op else { return None };
        Some((n, self.graph.node(n).operand(0)?, self.reduced(n, op.keepdims)?))
    }
}

/// True if `a` is `b` up to the last digits that exporters print.
pub fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * b.abs()
}
