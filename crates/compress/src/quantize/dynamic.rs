//! Dynamic int8: matrix products on integers with the range of their operand from each run. Other layers get 8-bit weights.

use super::qdq::{self, Plan};
use super::weights;
use super::{Form, Quantised, Settings};
use crate::layers::{Kind, Layer, layers};
use infc_ir::graph::{Graph, Node, Value};
use infc_ir::op::{Add, Builder, Cast, DynamicQuantizeLinear, MatMulInteger, Mul};
use infc_ir::{DType, Fault, Op, Problems, Tensor};
use std::collections::HashMap;

/// Quantises all layers that `settings` wants.
pub fn quantize(g: &Graph, settings: &Settings) -> Result<Quantised, Problems> {
    let mut out = g.clone();
    let mut plan = Plan::default();
    let mut forms = vec![];
    let mut products: HashMap<Node, (Layer, Tensor, Tensor)> = HashMap::new();
    let mut kept = vec![];
    for l in layers(g) {
        if !settings.wants(&l) {
            kept.push((l.name, "is not asked for".to_owned()));
            continue;
        }
        for &(slot, axis) in &l.weights {
            let (t, grid) = (l.weight(g, slot), l.grid(g, (slot, axis)));
            let w = t.to_vec::<f32>();
            let s = weights::round(&w, grid, weights::group(l.kind), (127, false), &|_| 0.0, None);
            let form = if product(g, &l) { "dynamic int8" } else { "int8 weights" };
            let op = g.node(l.node).op.name().to_owned();
            forms.push(Form { layer: l.name.clone(), op, form: form.to_owned(), weights: (w, s.real()) });
            let stored = qdq::Weights::of(&s, &t.dims, axis);
            if product(g, &l) {
                products.insert(l.node, (l.clone(), stored.data, stored.scale));
            } else {
                plan.weights.insert((l.node, slot), stored);
            }
        }
    }
    qdq::insert(&mut out, &plan)?;
    rewrite(&mut out, &products)?;
    Ok(Quantised { graph: out, forms, kept, reference: g.clone(), notes: vec![] })
}

/// Is it a matrix product that has a form on integers?
fn product(g: &Graph, l: &Layer) -> bool {
    match &g.node(l.node).op {
        Op::MatMul(_) => l.kind == Kind::MatMul,
        Op::Gemm(op) => op.transA == 0 && op.alpha == 1.0 && op.beta == 1.0,
        _ => false,
    }
}

fn rewrite(g: &mut Graph, products: &HashMap<Node, (Layer, Tensor, Tensor)>) -> Result<(), Problems> {
    let mut quantised: HashMap<Value, [Value; 3]> = HashMap::new();
    let mut nodes = vec![];
    for n in g.region(Graph::MAIN).nodes.clone() {
        let Some((l, w, scale)) = products.get(&n) else {
            nodes.push(n);
            continue;
        };
        let result = build(g, l, w, scale, &mut quantised, &mut nodes);
        let y = result.map_err(|f| Problems::one(g.describe(n), f.0, ""))?;
        // The result takes the place and the name of the product's.
        let old = g.node(n).outputs[0];
        g.values[y.index()].name = std::mem::take(&mut g.values[old.index()].name);
        g.replace_uses(&|v| if v == old { y } else { v });
    }
    g.regions[Graph::MAIN.index()].nodes = nodes;
    Ok(())
}

fn build(
    g: &mut Graph,
    l: &Layer,
    w: &Tensor,
    scale: &Tensor,
    quantised: &mut HashMap<Value, [Value; 3]>,
    nodes: &mut Vec<Node>,
) -> Result<Value, Fault> {
    let data = g.node(l.node).clone();
    let x = data.operand(0).expect("has an operand");
    let w = match &data.op {
        Op::Gemm(op) if op.transB != 0 => {
            let transpose = infc_ir::op::Transpose { perm: vec![1, 0] };
            infc_ir::interp::eval_op(&transpose.into(), &[Some(w.clone())], 1)?.remove(0)
        }
        _ => w.clone(),
    };
    let mut b = Builder::new(g, data.origin.clone());
    let [q, step, zero] = match quantised.get(&x) {
        Some(v) => *v,
        None => {
            let v = b.node(DynamicQuantizeLinear {}, &[Some(x)], vec![], 3)?;
            quantised.insert(x, [v[0], v[1], v[2]]);
            [v[0], v[1], v[2]]
        }
    };
    let (w, scale) = (b.constant(w), b.constant(scale.clone()));
    let acc = b.op(MatMulInteger {}, &[q, w, zero])?;
    let acc = b.op(Cast { round_mode: "up".into(), saturate: 1, to: i64::from(DType::F32.onnx()) }, &[acc])?;
    let factor = b.op(Mul {}, &[scale, step])?;
    let mut y = b.op(Mul {}, &[acc, factor])?;
    if let Some(bias) = data.operand(2) {
        y = b.op(Add {}, &[y, bias])?;
    }
    nodes.append(&mut b.nodes);
    Ok(y)
}
