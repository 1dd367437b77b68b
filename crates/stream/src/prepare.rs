//! The graph that conversion starts from: passes to integer operators, with dims and formats of inputs given.

use infc_ir::graph::Graph;
use infc_ir::op::{Builder, DequantizeLinear, QuantizeLinear};
use infc_ir::{DType, Expr, Problem, Problems, Tensor};

/// How a model input of real numbers is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InputFormat {
    /// Two's complement.
    pub signed: bool,
    /// 2 to 8.
    pub bits: u32,
    /// What one step is.
    pub scale: f32,
}

/// What a user may say of a model.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Sizes of symbolic dims. A symbolic first dim of all inputs is the batch, frame by frame, without being named here.
    pub dims: Vec<(String, i64)>,
    /// Formats of inputs that the model does not quantise itself.
    pub inputs: Vec<(String, InputFormat)>,
    /// Every scale must be a power of two, so that no design multiplies to requantise.
    pub power_of_two: bool,
}

/// Runs the passes.
pub fn prepare(mut graph: Graph, options: &Options) -> Result<Graph, Problems> {
    quantise_inputs(&mut graph, &options.inputs)?;
    if options.power_of_two {
        powers(&graph)?;
    }
    let mut bind = options.dims.clone();
    bind.extend(batch(&graph).filter(|b| bind.iter().all(|(n, _)| n != b)).map(|b| (b, 1)));
    let pipeline = infc_passes::streaming().into_iter().map(str::to_owned).collect();
    infc_passes::run(&mut graph, &infc_passes::Options { pipeline, bind, ..infc_passes::Options::default() })?;
    Ok(graph)
}

/// The symbol that is the first dim of every input.
pub(crate) fn batch(g: &Graph) -> Option<String> {
    let first = |v: &infc_ir::Value| match g.ty(*v).as_tensor()?.dims.first()?.node() {
        infc_ir::expr::Node::Sym(s) => Some(s.to_owned()),
        _ => None,
    };
    let names: Option<Vec<String>> = g.inputs().iter().map(first).map(|s| s.map(|s| s.to_string())).collect();
    let names = names?;
    names.first().filter(|n| names.iter().all(|m| m == *n)).cloned()
}

/// QuantizeLinear and DequantizeLinear behind inputs.
fn quantise_inputs(g: &mut Graph, formats: &[(String, InputFormat)]) -> Result<(), Problems> {
    let mut problems = vec![];
    for (name, f) in formats {
        let at = format!("input format '{name}'");
        let Some(&input) = g.inputs().iter().find(|&&v| g.value(v).name == *name) else {
            let names: Vec<_> = g.inputs().iter().map(|&v| g.value(v).name.clone()).collect();
            let help = format!("the model's inputs are {}", names.join(", "));
            problems.push(Problem { at, message: "there is no such input".into(), help });
            continue;
        };
        if !(2..=8).contains(&f.bits) || !f.scale.is_normal() || f.scale <= 0.0 {
            let message = format!("{} bits with a scale of {}", f.bits, f.scale);
            problems.push(Problem { at, message, help: "2 to 8 bits and a positive scale are supported".into() });
            continue;
        }
        if g.ty(input).dtype() != Some(DType::F32) {
            let message = format!("the input is {}", g.ty(input));
            problems.push(Problem { at, message, help: "only inputs of f32 need a format".into() });
            continue;
        }
        insert(g, input, *f).map_err(|f| Problems::one(&at, f.0, ""))?;
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// `DQ(Q(min(max(x, lo), hi)))` in place of `x`.
fn insert(g: &mut Graph, x: infc_ir::Value, f: InputFormat) -> Result<(), infc_ir::Fault> {
    let users: Vec<_> = g.region(Graph::MAIN).nodes.clone();
    let origin =
        users.iter().find(|&&n| g.node(n).inputs.contains(&Some(x))).map(|&n| g.node(n).origin.clone()).unwrap_or_default();
    if origin.is_empty() {
        return Ok(());
    }
    let (dtype, low) = if f.signed { (DType::I8, -(1i64 << (f.bits - 1))) } else { (DType::U8, 0) };
    let high = low + (1i64 << f.bits) - 1;
    let mut b = Builder::new(g, origin);
    let real = |q: i64| Tensor::from_vec([], vec![q as f32 * f.scale]);
    let mut v = x;
    if f.bits < 8 {
        let limits = [b.constant(real(low)), b.constant(real(high))];
        v = b.op(infc_ir::op::Clip {}, &[x, limits[0], limits[1]])?;
    }
    let (s, z) = (b.constant(Tensor::from_vec([], vec![f.scale])), b.constant(Tensor::zeros(dtype, [])));
    let q = b.op(QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 }, &[v, s, z])?;
    let real = b.op(DequantizeLinear { axis: 1, block_size: 0, output_dtype: 0 }, &[q, s, z])?;
    let nodes = std::mem::take(&mut b.nodes);
    for n in users {
        g.nodes[n.index()].inputs.iter_mut().filter(|i| **i == Some(x)).for_each(|i| *i = Some(real));
    }
    g.regions[Graph::MAIN.index()].nodes.splice(0..0, nodes);
    Ok(())
}

/// Every scale of the model must be a power of two.
fn powers(g: &Graph) -> Result<(), Problems> {
    use infc_ir::Op;
    let mut problems = vec![];
    for &n in &g.region(Graph::MAIN).nodes {
        let data = g.node(n);
        let scales: &[usize] = match data.op {
            Op::QuantizeLinear(_) | Op::DequantizeLinear(_) | Op::Quant(_) | Op::BipolarQuant(_) => &[1],
            Op::QLinearConv(_) | Op::QLinearMatMul(_) => &[1, 4, 6],
            _ => continue,
        };
        let values = scales.iter().filter_map(|&i| g.constant(data.operand(i)?)).flat_map(|t| (0..t.len()).map(|i| t.float(i)));
        let odd: Vec<f64> = values.filter(|s| s.log2().fract() != 0.0).collect();
        if let Some(first) = odd.first() {
            let message = format!("{} non-integer scales (the first is {first}) where the mode needs powers of two", odd.len());
            let help = "quantise with scales 2^n, let formats be chosen from the float model, or leave the mode out";
            problems.push(Problem { at: g.describe(n), message, help: help.into() });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// The symbols that are left open.
pub fn open_dims(g: &Graph) -> Vec<Expr> {
    let dims = g.inputs().iter().filter_map(|&v| g.ty(v).as_tensor());
    dims.flat_map(|t| t.dims.iter().copied()).filter(|d| d.known().is_none()).collect()
}
