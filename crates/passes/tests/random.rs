//! Random graphs through single passes and through the pipeline: outputs stay equal by class, results print and parse.

mod common;

use common::{agree, inputs};
use infc_ir::graph::{Graph, SourceNode};
use infc_ir::op::{self, Attr, Attrs, Builder, Op};
use infc_ir::{DType, Expr, Tensor, Type, Value, interp, text};
use infc_passes::{Class, Options, PASSES, run};
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};

/// Operators that the graphs are made of: name, number of operands, attributes.
const OPERATORS: &[(&str, usize, &[(&str, i64)])] = &[
    ("Add", 2, &[]),
    ("Sub", 2, &[]),
    ("Mul", 2, &[]),
    ("Div", 2, &[]),
    ("Max", 2, &[]),
    ("Relu", 1, &[]),
    ("Neg", 1, &[]),
    ("Abs", 1, &[]),
    ("Sigmoid", 1, &[]),
    ("Erf", 1, &[]),
    ("Identity", 1, &[]),
    ("Softmax", 1, &[("axis", -1)]),
    ("Softmax", 1, &[("axis", 0)]),
    ("Transpose", 1, &[]),
    ("Flatten", 1, &[]),
    ("Flatten", 1, &[("axis", 0)]),
    ("Concat", 2, &[("axis", 0)]),
    ("Concat", 2, &[("axis", -1)]),
    ("MatMul", 2, &[]),
    ("Pow", 2, &[]),
    ("Reshape", 2, &[]),
    ("Expand", 2, &[]),
    ("Unsqueeze", 2, &[]),
    ("Squeeze", 1, &[]),
    ("Shape", 1, &[]),
    ("Gather", 2, &[]),
    ("ReduceMean", 2, &[]),
    ("ReduceSum", 2, &[("keepdims", 0)]),
    ("Cast", 1, &[("to", 1)]),
    ("Cast", 1, &[("to", 7)]),
    ("LayerNormalization", 2, &[]),
    ("Slice", 4, &[]),
    ("Where", 3, &[]),
    ("Less", 2, &[]),
];

fn operator(row: usize) -> (Op, usize) {
    let (name, operands, attrs) = OPERATORS[row % OPERATORS.len()];
    let attrs = attrs.iter().map(|&(n, v)| (n.to_owned(), Attr::Int(v))).collect();
    (Op::from_attrs("", name, &mut Attrs(attrs)).unwrap().unwrap(), operands)
}

/// A graph from a list of choices; nodes that the operators do not accept are left out.
fn build(choices: &[(usize, [usize; 4])]) -> Graph {
    let mut g = Graph::new("random");
    let source = g.add_source(SourceNode { name: "s".into(), op: "Random".into(), opset: 13 });
    let n = Expr::sym("n");
    let mut values = vec![
        g.add_param(Graph::MAIN, Type::tensor(DType::F32, [n, 4.into()]), "x"),
        g.add_param(Graph::MAIN, Type::tensor(DType::F32, [1.into(), 4.into()]), "y"),
        g.add_constant(Tensor::from_vec([4], vec![1.0f32, -2.0, 0.5, 4.0]), ""),
        g.add_constant(Tensor::from_vec([], vec![1.0f32]), ""),
        g.add_constant(Tensor::from_vec([], vec![2.0f32]), ""),
        g.add_constant(Tensor::from_ints(&[-1, 4]), ""),
        g.add_constant(Tensor::from_ints(&[0]), ""),
        g.add_constant(Tensor::from_ints(&[1]), ""),
    ];
    let mut nodes = vec![];
    for (row, picks) in choices {
        let (op, operands) = operator(*row);
        // Later values are picked more often: graphs become deep.
        let inputs: Vec<Option<Value>> = picks[..operands]
            .iter()
            .map(|&p| Some(values[if p % 3 == 0 { p % values.len() } else { values.len() - 1 - p / 3 % values.len().min(4) }]))
            .collect();
        let Ok(facts) = op::infer(&g, &op, &inputs, &[], 1) else { continue };
        let small = facts[0]
            .ty
            .as_tensor()
            .is_some_and(|t| t.rank() <= 4 && t.known_dims().is_none_or(|d| infc_ir::tensor::count(&d) < 4096));
        if !small {
            continue;
        }
        let mut b = Builder::new(&mut g, BTreeSet::from([source]));
        values.extend(b.node(op, &inputs, vec![], 1).unwrap());
        nodes.append(&mut b.nodes);
    }
    for (k, &v) in values.iter().rev().take(3).enumerate() {
        if g.constant(v).is_none() && !g.inputs().contains(&v) {
            g.values[v.index()].name = format!("out{k}");
            g.regions[0].results.push(v);
        }
    }
    g.regions[0].nodes = nodes;
    g
}

fn survives(before: &Graph, pipeline: Vec<String>, class: Class, bind: bool) -> Result<(), String> {
    let given = inputs(before, &mut HashMap::new(), false, 7);
    // Some random programs are wrong at run time (an index out of bounds): nothing is said about them.
    let Ok(want) = interp::run_tensors(before, &given) else { return Ok(()) };
    // The rank of Squeeze without axes, which is of sizes that inference takes as other than 1: others are right too.
    let ranks =
        before.outputs().iter().zip(&want).all(|(&v, w)| before.ty(v).as_tensor().is_some_and(|t| t.rank() == w.dims.len()));
    if !ranks {
        return Ok(());
    }
    let mut after = before.clone();
    let mut options = Options { pipeline, verify: true, ..Options::default() };
    if bind {
        options.bind = vec![("n".into(), 2)];
    }
    match run(&mut after, &options) {
        // An operand that only folding makes constant: a pass on its own may say that it needs it.
        Err(p) if p.to_string().contains("must be known at compile time") => return Ok(()),
        // A dim taken as other than 1, which folding finds to be 1.
        Err(p) if p.to_string().contains("tell it the axes") => return Ok(()),
        result => result.map_err(|p| p.to_string())?,
    };
    let printed = text::print(&after);
    if text::parse(&printed).map_err(|e| e.to_string())? != after.compact() {
        return Err(format!("does not parse to itself:\n{printed}"));
    }
    let got = interp::run_tensors(&after, &given).map_err(|p| format!("{p}\n{printed}"))?;
    for (w, g) in want.iter().zip(&got) {
        agree(class, w, g).map_err(|e| format!("{e}\n{}\nbecame\n{printed}", text::print(before)))?;
    }
    Ok(())
}

fn choices() -> impl Strategy<Value = Vec<(usize, [usize; 4])>> {
    prop::collection::vec((0..OPERATORS.len(), prop::array::uniform4(0usize..1000)), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn passes_keep_the_meaning(choices in choices()) {
        let g = build(&choices);
        for p in PASSES {
            survives(&g, vec![p.name.to_owned()], p.class, false).map_err(|e| TestCaseError::fail(format!("{}: {e}", p.name)))?;
        }
    }

    #[test]
    fn the_pipeline_keeps_the_meaning(choices in choices(), bind in any::<bool>()) {
        let pipeline = infc_passes::pipeline().into_iter().map(str::to_owned).collect();
        survives(&build(&choices), pipeline, Class::Reassociated, bind).map_err(TestCaseError::fail)?;
    }
}
