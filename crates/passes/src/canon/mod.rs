//! Canonical forms: small directional rules, each with its law. All are exact: NaN stays NaN, zeros keep their sign.
//!
//! `arith` has the rules of arithmetic, `view` those of data movement, `window` those of padding, `sequence` those of sequences.

mod arith;
mod sequence;
mod view;

mod window;

pub use view::permutation;

use crate::rewrite::{Context, Replacement, Site, each_node};
use crate::shape::bound_symbols;
use infc_ir::graph::Graph;
use infc_ir::{Problems, Tensor, Value};
use std::collections::BTreeSet;

/// Runs the pass; counts rewrites.
pub fn run(g: &mut Graph, cx: &mut Context) -> Result<usize, Problems> {
    // Without symbols no dim is an expression that follows from the inputs.
    let symbols = if cx.portable { BTreeSet::new() } else { bound_symbols(g) };
    each_node(g, cx, "canon", &mut |site| rule(site, &symbols))
}

fn rule(site: &mut Site, symbols: &BTreeSet<&'static str>) -> Replacement {
    if let Some(values) = arith::rule(site)? {
        return Ok(Some(values));
    }
    if let Some(values) = view::rule(site, symbols)? {
        return Ok(Some(values));
    }
    if let Some(values) = window::rule(site)? {
        return Ok(Some(values));
    }
    sequence::rule(site)
}

impl Site<'_> {
    /// The constant that operand `i` is.
    pub fn constant(&self, i: usize) -> Option<&Tensor> {
        self.graph.constant(self.input(i)?)
    }
    /// True if two values have the same type, dims included.
    pub fn same_type(&self, a: Value, b: Value) -> bool {
        self.graph.ty(a) == self.graph.ty(b)
    }
}

/// True if all elements of a numeric tensor are `value` (bit for bit as a float: 0.0 is not -0.0).
pub fn all_are(t: &Tensor, value: f64) -> bool {
    let class = t.dtype.class();
    let number = !matches!(class, infc_ir::dtype::Class::Text | infc_ir::dtype::Class::Complex);
    number && (0..t.len()).all(|i| t.float(i).to_bits() == value.to_bits())
}
