//! What `infc ops` says of operators holds: dtypes that it lists are accepted, and operators run the way it says.

use crate::kit::{Case, Operand, Random, Row, build};
use crate::{control, conv, elementwise, index, ml, norm, quant, reduce, rnn, shape};
use infc_ir::op::{self, Ctx, Meaning, Road, road};
use infc_ir::{DType, Tensor, Type, eval};
use infc_onnx::{schema, supported};

/// The rows of all families.
fn rows() -> Vec<Row> {
    let all: [&[Row]; 18] = [
        elementwise::FUNCTIONS,
        elementwise::ONE,
        elementwise::MANY,
        reduce::REDUCE,
        reduce::CONTRACT,
        reduce::LOSS,
        reduce::SIGNAL,
        conv::CONV,
        conv::POOL,
        shape::SHAPE,
        index::INDEX,
        index::SORT,
        norm::NORM,
        norm::RANDOM,
        quant::QUANT,
        rnn::RNN,
        control::CONTROL,
        ml::ML,
    ];
    all.concat()
}

/// The case with every operand that is bound to the dtype of operand 0 in another dtype.
fn as_dtype(case: Case, to: DType) -> Case {
    let schema = schema::history(case.domain, case.name).last();
    let variable = |i: usize| schema.and_then(|s| s.input(i)?.variable);
    let bound = |i: usize| i == 0 || variable(i).is_some() && variable(i) == variable(0);
    let convert = |(i, o): (usize, Option<Operand>)| {
        let mut o = o?;
        if bound(i) && o.tensor.dtype != to {
            let t = &o.tensor;
            let values: Vec<u64> = (0..t.len()).map(|_| eval::cast(DType::I8, to, 1)).collect();
            o.tensor = match to {
                DType::C64 | DType::C128 => Tensor::zeros(to, t.dims.clone()),
                _ => Tensor::from_values(to, t.dims.clone(), values),
            };
        }
        Some(o)
    };
    let case = Case { operands: case.operands.into_iter().enumerate().map(convert).collect(), ..case };
    // The dtype of the result is of the same width.
    if case.name == "BitCast" { case.int("to", to.onnx().into()) } else { case }
}

#[test]
fn listed_dtypes_are_accepted() {
    let (all, mut failures) = (supported(), vec![]);
    for (name, make) in rows() {
        let domain = make(&mut Random(5)).domain;
        let entry = all.iter().find(|s| (s.domain, s.name) == (domain, name)).expect("is listed");
        // Strings are the host's, which has no cases here.
        for &dtype in entry.dtypes.iter().filter(|&&d| d != DType::String) {
            // Of some dtypes only some attributes are possible: one of a few cases has to do.
            let made = (0..24).map(|k| build(&as_dtype(make(&mut Random(k)), dtype), 0));
            if let Some(Err(e)) = made.reduce(|found, next| found.or(next)) {
                failures.push(format!("{name} of {dtype}: {e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} are listed and not accepted:\n{}", failures.len(), failures.join("\n"));
}

/// What the operator of a case becomes.
fn becomes(case: &Case) -> Option<Road> {
    let graph = build(case, 0).expect("is accepted").graph;
    let nodes = &graph.region(infc_ir::Graph::MAIN).nodes;
    let node = nodes.iter().map(|&n| graph.node(n)).find(|n| n.op.name() == case.name).expect("is there");
    let facts: Vec<_> = node.inputs.iter().map(|v| v.map(|v| op::fact(&graph, v))).collect();
    let regions: Vec<_> = node.regions.iter().map(|&r| op::signature(&graph, r)).collect();
    let outs: Vec<Type> = node.outputs.iter().map(|&v| graph.ty(v).clone()).collect();
    let cx = Ctx { inputs: &facts, regions: &regions, outputs: outs.len() };
    // None where it depends on operands that are data here.
    Some(match node.op.meaning(&cx, &outs).ok()? {
        Meaning::Steps { .. } | Meaning::Routine(_) => Road::Native,
        Meaning::Alias(_) => Road::View,
        Meaning::Decompose(_) => Road::Decomposed,
        Meaning::Control => Road::Control,
        Meaning::Host => Road::Host,
    })
}

#[test]
fn operators_run_as_listed() {
    for (name, make) in rows() {
        let domain = make(&mut Random(5)).domain;
        let row = op::OPS.iter().find(|o| (o.domain, o.name) == (domain, name)).expect("in the table");
        let ways: Vec<Road> = (0..12).filter_map(|k| becomes(&make(&mut Random(k)))).collect();
        assert!(ways.contains(&road(row)), "{name} is listed as {}, it is {ways:?}", road(row));
        assert!(!ways.contains(&Road::Host), "{name} needs the host");
    }
}
