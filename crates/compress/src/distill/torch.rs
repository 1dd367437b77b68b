//! A graph as a PyTorch module: parameters named as the initialisers, `forward` with a line a node, loader and saver for ONNX files.

use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::{DType, Op, Problem, Problems, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The module with `@NAME@` where the graph's own parts go.
const TEMPLATE: &str = include_str!("module.py");

/// What the constants of a graph are for training.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    /// Constants that are trained.
    pub trainable: BTreeSet<Value>,
    /// Running means and variances of batch normalisation: follow the data in training.
    pub statistics: BTreeSet<Value>,
}

/// Float constants of more than one element are trained, except the statistics of batch normalisation.
pub fn roles(g: &Graph) -> Roles {
    let mut roles = Roles::default();
    for &n in &g.region(Graph::MAIN).nodes {
        for (k, v) in g.node(n).inputs.iter().enumerate().filter_map(|(k, v)| v.map(|v| (k, v))) {
            let Some(t) = g.constant(v) else { continue };
            if matches!(g.node(n).op, Op::BatchNormalization(_)) && k >= 3 {
                roles.statistics.insert(v);
            } else if t.dtype == DType::F32 && t.len() > 1 {
                roles.trainable.insert(v);
            }
        }
    }
    roles
}

/// The module's source. Errors name every node whose operator has no translation.
pub fn module(g: &Graph, class: &str) -> Result<String, Problems> {
    let roles = roles(g);
    let mut problems = vec![];
    let mut names = Names::new(g);
    let mut lines = vec![];
    for &n in &g.region(Graph::MAIN).nodes {
        match line(g, n, &mut names, &roles) {
            Some(text) => lines.push(text),
            None => problems.push(Problem {
                at: g.describe(n),
                message: format!("{} has no translation to PyTorch in this form", g.node(n).op.name()),
                help: "distil a model without it, or train the student.onnx by other means".to_owned(),
            }),
        }
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let mut init = String::new();
    let mut initialisers = String::new();
    for (i, uses) in g.use_counts().into_iter().enumerate() {
        let v = Value(i as u32);
        let Some(t) = g.constant(v).filter(|t| uses > 0 && t.dtype.is_float()) else { continue };
        let (name, dims) = (names.get(v), dims(t));
        let made = match roles.trainable.contains(&v) {
            true => format!("        self.{name} = nn.Parameter(torch.zeros({dims}))\n"),
            false => format!("        self.register_buffer(\"{name}\", torch.zeros({dims}))\n"),
        };
        init += &made;
        _ = writeln!(initialisers, "    \"{name}\": {:?},", g.value(v).name);
    }
    let fresh = fresh(g, &names, &roles);
    let params: Vec<String> = g.inputs().iter().map(|&v| names.local(v)).collect();
    let results: Vec<String> = g.outputs().iter().map(|&v| format!("{:?}: {}", g.value(v).name, names.operand(g, v))).collect();
    let forward: String = lines.iter().map(|l| format!("        {l}\n")).collect();
    let parts = [
        ("@CLASS@", class),
        ("@INITIALISERS@", &initialisers),
        ("@INIT@", &init),
        ("@RESET@", &fresh),
        ("@PARAMS@", &params.join(", ")),
        ("@FORWARD@", &forward),
        ("@RESULTS@", &results.join(", ")),
    ];
    Ok(parts.iter().fold(TEMPLATE.to_owned(), |text, (mark, part)| text.replace(mark, part)))
}

/// Lines that give every constant that training changes a value to begin with.
fn fresh(g: &Graph, names: &Names, roles: &Roles) -> String {
    let mut lines: BTreeMap<Value, String> = BTreeMap::new();
    for &n in &g.region(Graph::MAIN).nodes {
        let node = g.node(n);
        for (k, v) in node.inputs.iter().enumerate().filter_map(|(k, v)| v.map(|v| (k, v))) {
            if !roles.trainable.contains(&v) && !roles.statistics.contains(&v) {
                continue;
            }
            let name = names.get(v);
            let deep = g.constant(v).is_some_and(|t| t.dims.len() > 1);
            let columns = matches!(&node.op, Op::MatMul(_)) || matches!(&node.op, Op::Gemm(op) if op.transB == 0);
            let scale = k == 1 && matches!(node.op, Op::BatchNormalization(_) | Op::LayerNormalization(_));
            let variance = k == 4 && matches!(node.op, Op::BatchNormalization(_));
            let line = match (deep, &node.op) {
                (true, Op::Gather(_)) => format!("self.{name}.normal_()"),
                (true, _) if columns && k == 1 => format!("nn.init.kaiming_uniform_(self.{name}.T, math.sqrt(5))"),
                (true, _) => format!("nn.init.kaiming_uniform_(self.{name}, math.sqrt(5))"),
                (false, _) if scale || variance => format!("self.{name}.fill_(1.0)"),
                (false, _) => format!("self.{name}.zero_()"),
            };
            lines.insert(v, line);
        }
    }
    let lines: String = lines.values().map(|l| format!("            {l}\n")).collect();
    if lines.is_empty() { "            pass\n".to_owned() } else { lines }
}

fn dims(t: &Tensor) -> String {
    match t.dims.as_slice() {
        [] => "()".to_owned(),
        dims => format!("{dims:?}"),
    }
}

/// Python's names for values.
struct Names {
    of: BTreeMap<Value, String>,
    taken: BTreeSet<String>,
}

impl Names {
    fn new(g: &Graph) -> Names {
        let mut names = Names { of: BTreeMap::new(), taken: BTreeSet::new() };
        for (i, data) in g.values.iter().enumerate() {
            let mut base: String = data.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let prefix = if matches!(data.def, Def::Constant(_)) { "w_" } else { "v_" };
            base = format!("{prefix}{}", if base.is_empty() { i.to_string() } else { base });
            let name = (0..).map(|k| if k == 0 { base.clone() } else { format!("{base}_{k}") });
            let name = name.into_iter().find(|n| !names.taken.contains(n)).expect("endless");
            names.taken.insert(name.clone());
            names.of.insert(Value(i as u32), name);
        }
        names
    }
    fn get(&self, v: Value) -> String {
        self.of[&v].clone()
    }
    fn local(&self, v: Value) -> String {
        self.of[&v].clone()
    }
    /// An operand: a local, an attribute, or a literal for integers.
    fn operand(&self, g: &Graph, v: Value) -> String {
        match g.constant(v) {
            None => self.get(v),
            Some(t) if t.dtype.is_float() => format!("self.{}", self.get(v)),
            Some(t) => format!("torch.tensor({:?}).reshape({})", t.to_ints(), dims(t)),
        }
    }
}

/// The statement of a node; `None` if there is no translation.
fn line(g: &Graph, n: Node, names: &mut Names, roles: &Roles) -> Option<String> {
    let node = g.node(n);
    let x = |k: usize| node.operand(k).map(|v| names.operand(g, v));
    let or_none = |k: usize| x(k).unwrap_or_else(|| "None".to_owned());
    let ints = |k: usize| node.operand(k).map(|v| g.constant(v).map(|t| format!("{:?}", t.to_ints())));
    let list = |k: usize| ints(k).map_or(Some("None".to_owned()), |l| l);
    let yes = |b: bool| if b { "True" } else { "False" };
    let method = |name: &str| Some(format!("{}.{name}()", x(0)?));
    let torch = |name: &str| Some(format!("torch.{name}({})", x(0)?));
    let infix = |op: &str| Some(format!("{} {op} {}", x(0)?, x(1)?));
    let rank = node.operand(0).and_then(|v| g.ty(v).as_tensor()).map_or(0, |t| t.dims.len());
    let value = match &node.op {
        Op::Conv(op) => format!(
            "_conv({}, {}, {}, {:?}, {:?}, {:?}, {:?}, {})",
            x(0)?,
            x(1)?,
            or_none(2),
            op.auto_pad,
            op.pads,
            op.strides,
            op.dilations,
            op.group
        ),
        Op::BatchNormalization(op) if node.outputs.len() == 1 => {
            let statistics = [3, 4].map(|k| node.operand(k).is_some_and(|v| roles.statistics.contains(&v)));
            if statistics != [true; 2] {
                return None;
            }
            format!(
                "F.batch_norm({}, {}, {}, {}, {}, self.training, self.momentum, {:?})",
                x(0)?,
                x(3)?,
                x(4)?,
                x(1)?,
                x(2)?,
                op.epsilon
            )
        }
        Op::LayerNormalization(op) if node.outputs.len() == 1 => {
            format!("_layer_norm({}, {}, {}, {}, {:?})", x(0)?, x(1)?, or_none(2), op.axis, op.epsilon)
        }
        Op::Gemm(op) => {
            let t = |k: usize, t: i64| x(k).map(|v| if t != 0 { format!("{v}.T") } else { v });
            let product = format!("{} @ {}", t(0, op.transA)?, t(1, op.transB)?);
            let product = if op.alpha == 1.0 { product } else { format!("{:?} * ({product})", op.alpha) };
            match x(2) {
                None => product,
                Some(c) if op.beta == 1.0 => format!("{product} + {c}"),
                Some(c) => format!("{product} + {:?} * {c}", op.beta),
            }
        }
        Op::MatMul(_) => infix("@")?,
        Op::Add(_) => infix("+")?,
        Op::Sub(_) => infix("-")?,
        Op::Mul(_) => infix("*")?,
        Op::Div(_) if g.ty(node.outputs[0]).dtype()?.is_float() => infix("/")?,
        Op::Pow(_) => infix("**")?,
        Op::Relu(_) => torch("relu")?,
        Op::Sigmoid(_) => torch("sigmoid")?,
        Op::Tanh(_) => torch("tanh")?,
        Op::Erf(_) => torch("erf")?,
        Op::Exp(_) => torch("exp")?,
        Op::Log(_) => torch("log")?,
        Op::Sqrt(_) => torch("sqrt")?,
        Op::Abs(_) => torch("abs")?,
        Op::Neg(_) => torch("neg")?,
        Op::Reciprocal(_) => torch("reciprocal")?,
        Op::Softplus(_) => format!("F.softplus({})", x(0)?),
        Op::Gelu(op) => format!("F.gelu({}, approximate={:?})", x(0)?, op.approximate),
        Op::HardSwish(_) => format!("F.hardswish({})", x(0)?),
        Op::HardSigmoid(op) => format!("torch.clamp({:?} * {} + {:?}, 0.0, 1.0)", op.alpha, x(0)?, op.beta),
        Op::LeakyRelu(op) => format!("F.leaky_relu({}, {:?})", x(0)?, op.alpha),
        Op::Elu(op) => format!("F.elu({}, {:?})", x(0)?, op.alpha),
        Op::PRelu(_) => format!("torch.where({0} < 0, {0} * {1}, {0})", x(0)?, x(1)?),
        Op::Clip(_) => {
            let bound = |k: usize| node.operand(k).map(|v| g.constant(v).map(|t| format!("{:?}", t.float(0))));
            let bound = |k: usize| bound(k).map_or(Some("None".to_owned()), |b| b);
            match (bound(1)?.as_str(), bound(2)?.as_str()) {
                ("None", "None") => x(0)?,
                (a, b) => format!("torch.clamp({}, {a}, {b})", x(0)?),
            }
        }
        Op::Identity(_) | Op::Dropout(_) if node.outputs.len() == 1 => x(0)?,
        Op::Softmax(op) => format!("torch.softmax({}, {})", x(0)?, op.axis),
        Op::LogSoftmax(op) => format!("torch.log_softmax({}, {})", x(0)?, op.axis),
        Op::MaxPool(op) if node.outputs.len() == 1 => format!(
            "_pool({}, \"max\", {:?}, {:?}, {:?}, {:?}, {:?}, {}, False)",
            x(0)?,
            op.kernel_shape,
            op.auto_pad,
            op.pads,
            op.strides,
            op.dilations,
            yes(op.ceil_mode != 0)
        ),
        Op::AveragePool(op) => format!(
            "_pool({}, \"mean\", {:?}, {:?}, {:?}, {:?}, {:?}, {}, {})",
            x(0)?,
            op.kernel_shape,
            op.auto_pad,
            op.pads,
            op.strides,
            op.dilations,
            yes(op.ceil_mode != 0),
            yes(op.count_include_pad)
        ),
        Op::GlobalAveragePool(_) => format!("{}.mean({:?}, True)", x(0)?, (2..rank).collect::<Vec<_>>()),
        Op::GlobalMaxPool(_) => format!("{}.amax({:?}, True)", x(0)?, (2..rank).collect::<Vec<_>>()),
        Op::ReduceMean(op) if !op.noop_with_empty_axes => {
            format!("_reduce({}, \"mean\", {}, {})", x(0)?, list(1)?, yes(op.keepdims))
        }
        Op::ReduceSum(op) if !op.noop_with_empty_axes => {
            format!("_reduce({}, \"sum\", {}, {})", x(0)?, list(1)?, yes(op.keepdims))
        }
        Op::ReduceMax(op) if !op.noop_with_empty_axes => {
            format!("_reduce({}, \"max\", {}, {})", x(0)?, list(1)?, yes(op.keepdims))
        }
        Op::ReduceMin(op) if !op.noop_with_empty_axes => {
            format!("_reduce({}, \"min\", {}, {})", x(0)?, list(1)?, yes(op.keepdims))
        }
        Op::Flatten(op) => {
            let axis = if op.axis < 0 { op.axis + rank as i64 } else { op.axis };
            format!("{0}.reshape(math.prod({0}.shape[:{axis}]), -1)", x(0)?)
        }
        Op::Reshape(op) if !op.allowzero => match ints(1)? {
            Some(dims) => format!("_reshape({}, {dims})", x(0)?),
            None => format!("_reshape({}, {}.tolist())", x(0)?, x(1)?),
        },
        Op::Transpose(op) => {
            let perm = if op.perm.is_empty() { (0..rank as i64).rev().collect() } else { op.perm.clone() };
            format!("{}.permute({perm:?})", x(0)?)
        }
        Op::Squeeze(_) => match ints(1) {
            Some(axes) => format!(
                "{}.squeeze({})",
                x(0)?,
                axes?.replace(['[', ']'], "").split(',').fold("(".to_owned(), |s, a| s + a + ",") + ")"
            ),
            None => method("squeeze")?,
        },
        Op::Unsqueeze(_) => {
            let axes = g.constant(node.operand(1)?)?.to_ints();
            let full = rank + axes.len();
            let mut axes: Vec<i64> = axes.iter().map(|&a| if a < 0 { a + full as i64 } else { a }).collect();
            axes.sort_unstable();
            axes.iter().fold(x(0)?, |s, a| format!("{s}.unsqueeze({a})"))
        }
        Op::Concat(op) => {
            let parts: Option<Vec<String>> = (0..node.inputs.len()).map(x).collect();
            format!("torch.cat([{}], {})", parts?.join(", "), op.axis)
        }
        Op::Slice(_) => format!("_slice({}, {}, {}, {}, {})", x(0)?, ints(1)??, ints(2)??, list(3)?, list(4)?),
        Op::Split(op) => {
            let size = |v: &Value| g.ty(*v).as_tensor()?.dims[usize::try_from(op.axis).ok()?].known();
            let sizes: Option<Vec<i64>> = node.outputs.iter().map(size).collect();
            format!("torch.split({}, {:?}, {})", x(0)?, sizes?, op.axis)
        }
        Op::Gather(op) => {
            let (axis, r) = (if op.axis < 0 { op.axis + rank as i64 } else { op.axis }, x(1)?);
            format!("{}[{}{r}]", x(0)?, ":, ".repeat(axis as usize))
        }
        Op::Shape(op) => {
            let end = op.end.map_or(String::new(), |e| e.to_string());
            format!("torch.tensor({}.shape[{}:{end}])", x(0)?, op.start)
        }
        Op::Cast(op) => {
            let dtype = match DType::from_onnx(op.to as i32)? {
                DType::F32 => "float32",
                DType::F64 => "float64",
                DType::I64 => "int64",
                DType::I32 => "int32",
                DType::Bool => "bool",
                _ => return None,
            };
            format!("{}.to(torch.{dtype})", x(0)?)
        }
        Op::Where(_) => format!("torch.where({}, {}, {})", x(0)?, x(1)?, x(2)?),
        _ => return None,
    };
    let targets: Vec<String> = node.outputs.iter().map(|&v| names.local(v)).collect();
    Some(format!("{} = {value}", targets.join(", ")))
}
