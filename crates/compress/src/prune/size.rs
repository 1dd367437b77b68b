//! How large a model is: multiply-accumulates of a run, parameters, bytes of constants.

use super::axes::Axis;
use infc_ir::expr::Node as ExprNode;
use infc_ir::graph::{Graph, Node, Value};
use infc_ir::{Op, Tensor};
use std::collections::BTreeMap;

/// The size of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Size {
    /// Multiply-accumulates of a run.
    pub macs: f64,
    /// Elements of float constants.
    pub parameters: usize,
    /// Those of them that are not 0.
    pub nonzero: usize,
}

/// Values of the symbols that inputs of these shapes give; others count as 1.
pub fn symbols(g: &Graph, inputs: &[Tensor]) -> BTreeMap<String, i64> {
    let mut out = BTreeMap::new();
    for (&v, t) in g.inputs().iter().zip(inputs) {
        for (d, &n) in g.ty(v).as_tensor().map_or(&[][..], |t| &t.dims).iter().zip(&t.dims) {
            if let ExprNode::Sym(s) = d.node() {
                out.insert((*s).to_owned(), n as i64);
            }
        }
    }
    out
}

/// The extent of an axis, with values for symbols.
pub fn extent(g: &Graph, a: Axis, symbols: &BTreeMap<String, i64>) -> f64 {
    let value = |e: infc_ir::Expr| match e.node() {
        ExprNode::Sym(s) => Some(symbols.get(*s).copied().unwrap_or(1)),
        _ => None,
    };
    let d = g.ty(a.value).as_tensor().and_then(|t| t.dims.get(a.axis)).and_then(|d| d.eval(&value));
    d.map_or(1.0, |n| n.max(0) as f64)
}

/// The axes whose extents, multiplied, are the multiply-accumulates of a node; several products are added.
pub fn factors(g: &Graph, n: Node) -> Vec<Vec<Axis>> {
    let node = g.node(n);
    let axes = |v: Option<Value>| -> Vec<Axis> {
        let Some(value) = v else { return vec![] };
        let rank = g.ty(value).as_tensor().map_or(0, |t| t.dims.len());
        (0..rank).map(|axis| Axis { value, axis }).collect()
    };
    let (x, w, y) = (axes(node.operand(0)), axes(node.operand(1)), axes(node.outputs.first().copied()));
    let tail = |list: &[Axis], from: usize| list.get(from..).unwrap_or_default().to_vec();
    match &node.op {
        Op::Conv(_) => vec![[y, tail(&w, 1)].concat()],
        Op::ConvTranspose(_) => vec![[x, tail(&w, 1)].concat()],
        Op::Gemm(op) => vec![[y, x.get(usize::from(op.transA == 0)).copied().into_iter().collect()].concat()],
        Op::MatMul(_) => vec![[y, tail(&x, x.len().saturating_sub(1))].concat()],
        Op::GRU(_) | Op::LSTM(_) | Op::RNN(_) => {
            let steps = x.get(..2).unwrap_or_default();
            vec![[steps, &w].concat(), [steps, &axes(node.operand(2))].concat()]
        }
        Op::Einsum(op) => {
            let mut seen = BTreeMap::new();
            let left = op.equation.split("->").next().unwrap_or("");
            for (k, term) in left.split(',').enumerate() {
                let labels = term.chars().filter(|c| c.is_alphabetic());
                labels.zip(axes(node.operand(k))).for_each(|(l, a)| _ = seen.insert(l, a));
            }
            vec![seen.into_values().collect()]
        }
        _ => vec![],
    }
}

/// The size of a graph; bodies of control flow are not counted.
pub fn measure(g: &Graph, symbols: &BTreeMap<String, i64>) -> Size {
    let mut size = Size::default();
    for &n in &g.region(Graph::MAIN).nodes {
        for product in factors(g, n) {
            size.macs += product.iter().map(|&a| extent(g, a, symbols)).product::<f64>();
        }
    }
    for (i, uses) in g.use_counts().into_iter().enumerate() {
        let Some(t) = g.constant(Value(i as u32)).filter(|t| uses > 0 && t.dtype.is_float()) else { continue };
        size.parameters += t.len();
        size.nonzero += (0..t.len()).filter(|&i| t.value(i) << 1 != 0).count();
    }
    size
}
