//! Weights alone in few bits: 8-bit integers, 4-bit integers in groups, f16, bf16, 8-bit floats. Sums are taken in f32.

use super::params::usable;
use super::qdq::{self, Weights};
use super::reconstruct::Gram;
use super::weights;
use super::{Form, Knowledge, Quantised, Rounding, Scheme, Settings, statics};
use crate::layers::{Kind, Layer, layers};
use infc_ir::graph::{Graph, Node};
use infc_ir::interp::eval_op;
use infc_ir::op::{Builder, Cast, QuantizeLinear};
use infc_ir::{DType, Fault, Problems, Tensor};
use std::collections::HashMap;

/// What takes the place of an operand.
enum Operand {
    Scaled(Weights),
    Cast(Tensor),
}

/// Stores the weights of all layers that `settings` wants.
pub fn quantize(
    g: &Graph,
    settings: &Settings,
    knowledge: &Knowledge,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Quantised, Problems> {
    let (mut chosen, mut kept) = (vec![], vec![]);
    for l in layers(g) {
        match settings.wants(&l) {
            true => chosen.push(l),
            false => kept.push((l.name, "is not asked for".to_owned())),
        }
    }
    let grams = match (settings.rounding.unwrap_or(Rounding::Reconstruct), knowledge) {
        (Rounding::Reconstruct, Knowledge::Data(data, executor)) => {
            statics::grams(g, &chosen, data, *executor, &mut |i| progress("reconstruction", i, data.len()))?
        }
        _ => HashMap::new(),
    };
    let (mut forms, mut operands) = (vec![], HashMap::new());
    for (i, l) in chosen.iter().enumerate() {
        for &(slot, axis) in &l.weights {
            let (made, real, form) = store(g, l, (slot, axis), settings, grams.get(&l.node).map(Vec::as_slice))
                .map_err(|f| Problems::one(g.describe(l.node), f.0, ""))?;
            let (op, w) = (g.node(l.node).op.name().to_owned(), l.weight(g, slot).to_vec::<f32>());
            forms.push(Form { layer: l.name.clone(), op, form, weights: (w, real) });
            operands.insert((l.node, slot), made);
        }
        progress("rounding", i + 1, chosen.len());
    }
    let mut graph = g.clone();
    insert(&mut graph, &operands)?;
    Ok(Quantised { graph, forms, kept, reference: g.clone(), notes: vec![] })
}

/// What takes the place of a weight tensor, the numbers that it stands for, and its name.
fn store(
    g: &Graph,
    l: &Layer,
    (slot, axis): (usize, usize),
    settings: &Settings,
    grams: Option<&[Gram]>,
) -> Result<(Operand, Vec<f32>, String), Fault> {
    let (t, grid) = (l.weight(g, slot), l.grid(g, (slot, axis)));
    let w = t.to_vec::<f32>();
    match settings.scheme {
        Scheme::Float(dtype @ (DType::F16 | DType::BF16)) => {
            let small = eval_op(&cast(dtype), &[Some(t.clone())], 1)?.remove(0);
            let back = eval_op(&cast(DType::F32), &[Some(small.clone())], 1)?.remove(0);
            Ok((Operand::Cast(small), back.to_vec(), format!("{dtype} weights")))
        }
        Scheme::Float(dtype) => float8(t, axis, dtype).map(|(w, real)| (Operand::Scaled(w), real, format!("{dtype} weights"))),
        Scheme::Int4Weights => {
            // Groups run along the sum, which is one axis of a matrix; windows of convolutions have one scale a channel.
            let matrix = matches!(l.kind, Kind::MatMul | Kind::Gemm | Kind::Table);
            let group = if matrix { settings.group } else { usize::MAX };
            // Tables are most of a file, and their errors do not add up over a sum.
            let zeros = matrix && l.kind != Kind::Table;
            let s = weights::round(&w, grid, group, (7, zeros), &|_| 0.0, grams);
            let real = s.real();
            Ok((Operand::Scaled(Weights::of(&s, &t.dims, axis)), real, format!("int4 weights by {}", s.scales.group)))
        }
        _ => {
            let s = weights::round(&w, grid, weights::group(l.kind), (127, false), &|_| 0.0, grams);
            let real = s.real();
            Ok((Operand::Scaled(Weights::of(&s, &t.dims, axis)), real, "int8 weights".to_owned()))
        }
    }
}

fn cast(dtype: DType) -> infc_ir::Op {
    Cast { round_mode: "up".into(), saturate: 1, to: i64::from(dtype.onnx()) }.into()
}

/// 8-bit floats with a scale for each index of `axis`, such that the largest weight is the largest finite number.
fn float8(t: &Tensor, axis: usize, dtype: DType) -> Result<(Weights, Vec<f32>), Fault> {
    let most = match dtype {
        DType::F8E4M3FN => 448.0,
        DType::F8E5M2 => 57344.0,
        d => return Err(infc_ir::fault!("{d} weights are not supported: f16, bf16, f8e4m3fn and f8e5m2 are")),
    };
    let (w, grid) = (t.to_vec::<f32>(), crate::layers::Grid::new(&t.dims, axis));
    let scale = |c: usize| usable((0..grid.depth()).map(|k| w[grid.at(c, k)].abs()).fold(0.0f32, f32::max) / most);
    let scale = Tensor::from_vec([grid.channels], (0..grid.channels).map(scale).collect::<Vec<f32>>());
    let quantise =
        QuantizeLinear { axis: axis as i64, block_size: 0, output_dtype: i64::from(dtype.onnx()), precision: 0, saturate: 1 };
    let data = eval_op(&quantise.into(), &[Some(t.clone()), Some(scale.clone())], 1)?.remove(0);
    let back = infc_ir::op::DequantizeLinear { axis: axis as i64, block_size: 0, output_dtype: 0 };
    let real = eval_op(&back.into(), &[Some(data.clone()), Some(scale.clone())], 1)?.remove(0).to_vec::<f32>();
    Ok((Weights { data, scale, zero: None, axis, block: 0 }, real))
}

fn insert(g: &mut Graph, operands: &HashMap<(Node, usize), Operand>) -> Result<(), Problems> {
    let mut nodes = vec![];
    for n in g.region(Graph::MAIN).nodes.clone() {
        for slot in 0..g.node(n).inputs.len() {
            let Some(form) = operands.get(&(n, slot)) else { continue };
            let name = g.node(n).operand(slot).map_or(String::new(), |v| g.value(v).name.clone());
            let made = match form {
                Operand::Scaled(w) => qdq::stored_weights(g, n, w, &name, &mut nodes),
                Operand::Cast(t) => widened(g, n, t, &name, &mut nodes),
            };
            let v = made.map_err(|f| Problems::one(g.describe(n), f.0, ""))?;
            g.nodes[n.index()].inputs[slot] = Some(v);
        }
        nodes.push(n);
    }
    g.regions[Graph::MAIN.index()].nodes = nodes;
    Ok(())
}

/// Weights in a narrower float, cast to f32.
fn widened(g: &mut Graph, n: Node, t: &Tensor, name: &str, nodes: &mut Vec<Node>) -> Result<infc_ir::Value, Fault> {
    let origin = g.node(n).origin.clone();
    let mut b = Builder::new(g, origin);
    let v = b.constant(t.clone());
    let wide = b.op(cast(DType::F32), &[v])?;
    nodes.append(&mut b.nodes);
    g.values[v.index()].name = name.to_owned();
    Ok(wide)
}
