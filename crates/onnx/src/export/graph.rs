//! Regions to `GraphProto`: nodes, constants, and captured values as references to outer names.

use super::names::Names;
use crate::bodies::declared_params;
use crate::proto::{AttributeProto, GraphProto, NodeProto, ValueInfoProto, attribute_proto::AttributeType};
use crate::{attrs, tensor, types};
use infc_ir::graph::{Def, Node};
use infc_ir::op::{Attr, Op, Optional};
use infc_ir::{Graph, Problem, Region, Value};
use std::collections::HashSet;

/// The graph of the model.
pub fn main(graph: &Graph, names: &mut Names, problems: &mut Vec<Problem>) -> GraphProto {
    let main = region(graph, Graph::MAIN, graph.inputs().len(), names, problems);
    GraphProto { name: Some(graph.name.clone()), ..main }
}

fn info(graph: &Graph, v: Value, name: String) -> ValueInfoProto {
    let inputs = graph.inputs().iter().filter_map(|&v| graph.ty(v).as_tensor());
    let symbols = inputs.flat_map(|t| t.dims.iter().flat_map(|&d| types::symbols_of(d))).collect();
    ValueInfoProto { name: Some(name), r#type: Some(types::to_proto(graph.ty(v), &symbols)), ..ValueInfoProto::default() }
}

/// A region whose first `declared` parameters are inputs; the others are seen from outside.
fn region(graph: &Graph, r: Region, declared: usize, names: &mut Names, problems: &mut Vec<Problem>) -> GraphProto {
    let data = graph.region(r);
    let mut g = GraphProto { name: Some(data.name.clone()), ..GraphProto::default() };
    g.input = data.params[..declared].iter().map(|&v| info(graph, v, names.get(v))).collect();
    let mut after = vec![];
    let mut seen = HashSet::new();
    let mut as_nodes = HashSet::new();
    for &v in &data.results {
        let first = seen.insert(v);
        let name = match &graph.value(v).def {
            // Only what a body computes itself can be its result.
            Def::Constant(t) => {
                let home = names.constants.get(&r).is_some_and(|c| c.contains(&v));
                let name = if home && first { names.get(v) } else { names.fresh(&names.get(v)) };
                if home && first {
                    as_nodes.insert(v);
                }
                let value = attrs::to_proto("value", &Attr::Tensor(t.clone()));
                g.node.push(node_proto("Constant", "", &name, vec![], vec![name.clone()], vec![value]));
                name
            }
            Def::Param(home, i) if first && *home == r && (*i as usize) < declared => names.get(v),
            Def::Output(..) if first => names.get(v),
            Def::Param(..) | Def::Output(..) => {
                let name = names.fresh(&format!("{}_copy", names.get(v)));
                after.push(node_proto("Identity", "", &name, vec![names.get(v)], vec![name.clone()], vec![]));
                name
            }
        };
        g.output.push(info(graph, v, name));
    }
    let constants = names.constants.get(&r).cloned().unwrap_or_default();
    for v in constants.into_iter().filter(|v| !as_nodes.contains(v)) {
        if let Def::Constant(t) = &graph.value(v).def {
            g.initializer.push(tensor::to_proto(&names.get(v), t));
        }
    }
    for &n in &data.nodes {
        g.node.push(node(graph, n, names, problems));
    }
    g.node.extend(after);
    g
}

fn node_proto(
    op: &str,
    domain: &str,
    name: &str,
    input: Vec<String>,
    output: Vec<String>,
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    let domain = if domain.is_empty() { None } else { Some(domain.to_owned()) };
    let name = if name.is_empty() { None } else { Some(name.to_owned()) };
    NodeProto { op_type: Some(op.to_owned()), domain, name, input, output, attribute, ..NodeProto::default() }
}

fn node(graph: &Graph, n: Node, names: &mut Names, problems: &mut Vec<Problem>) -> NodeProto {
    let data = graph.node(n);
    let info = data.op.info();
    let captures = data.regions.first().map_or(0, |&r| {
        let params = &graph.region(r).params;
        params.len() - declared_params(&data.op, params, data.inputs.len())
    });
    let operands = &data.inputs[..data.inputs.len() - captures];
    let mut input: Vec<String> = operands.iter().map(|v| v.map(|v| names.get(v)).unwrap_or_default()).collect();
    while input.last().is_some_and(String::is_empty) {
        input.pop();
    }
    let mut output: Vec<String> = data.outputs.iter().map(|&v| names.get(v)).collect();
    while output.len() > info.outputs.0 && output.last().is_some_and(String::is_empty) {
        output.pop();
    }
    let mut attribute: Vec<AttributeProto> = vec![];
    for (name, value) in &data.op.attrs().0 {
        if let (Op::Optional(Optional { r#type: Some(ty) }), "type") = (&data.op, name.as_str()) {
            let (tp, kind) = (Some(types::to_proto(ty, &HashSet::new())), Some(AttributeType::TypeProto as i32));
            attribute.push(AttributeProto { name: Some(name.clone()), tp, r#type: kind, ..AttributeProto::default() });
        } else if name != "captures" || info.regions.is_empty() {
            attribute.push(attrs::to_proto(name, value));
        }
    }
    for (&r, name) in data.regions.iter().zip(info.regions) {
        let declared = declared_params(&data.op, &graph.region(r).params, data.inputs.len());
        let g = region(graph, r, declared, names, problems);
        let kind = Some(AttributeType::Graph as i32);
        attribute.push(AttributeProto { name: Some((*name).to_owned()), g: Some(g), r#type: kind, ..AttributeProto::default() });
    }
    if let Op::Expect(_) = data.op {
        // What an importer expects of the model is no operator of ONNX.
        return node_proto("Identity", "", &data.name, input[..1].to_vec(), output, vec![]);
    }
    node_proto(info.name, info.domain, &data.name, input, output, attribute)
}
