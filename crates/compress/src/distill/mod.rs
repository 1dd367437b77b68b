//! Export for distillation: a teacher that shows its features and softened outputs, a student made from it by structured pruning,
//! PyTorch modules of both, and a description of what to compare.
//!
//! The student begins with the teacher's weights, fitted to its outputs where there is data. Where a feature of the student has fewer
//! channels, an adapter (a linear map over channels, trained with the rest) leads it to the teacher's; it begins by putting each
//! channel where it came from. Losses follow Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015), and Romero
//! et al., "FitNets" (2015).

pub mod torch;

use crate::prune::apply::Kept;
use crate::prune::axes::Axis;
use crate::prune::layer::layers;
use crate::prune::size::Size;
use crate::prune::{self, Options, Pruned};
use crate::{Data, Executor};
use infc_ir::graph::{Def, Graph, Value};
use infc_ir::op::{Builder, Conv, Div, MatMul, Softmax};
use infc_ir::{DType, Problems, Tensor};
use serde::Serialize;

/// What to export.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The student's share of the teacher's multiply-accumulates.
    pub ratio: f64,
    /// How many features to compare.
    pub features: usize,
    /// By what outputs are divided before the softmax.
    pub temperature: f64,
    /// How channels are chosen and fitted; its `sparsity` follows from the ratio.
    pub prune: Options,
}

/// What is exported.
pub struct Distillation {
    /// The original, with features and soft targets as further outputs.
    pub teacher: Graph,
    /// The student, with adapted features as further outputs.
    pub student: Graph,
    /// `student.py`.
    pub module: String,
    /// `teacher.py`.
    pub teacher_module: String,
    /// `distill.json`.
    pub description: String,
    /// Size of the teacher.
    pub before: Size,
    /// Size of the student.
    pub after: Size,
    /// What pruning left as it is, and why.
    pub notes: Vec<String>,
}

#[derive(Serialize)]
struct Description {
    model: String,
    ratio: f64,
    teacher: Side,
    student: Side,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    temperature: f64,
    pairs: Vec<Pair>,
    losses: Vec<Loss>,
    trainable: Vec<String>,
    batch_norm_statistics: Vec<String>,
}

#[derive(Serialize)]
struct Side {
    file: &'static str,
    macs: f64,
    parameters: usize,
}

#[derive(Serialize)]
struct Port {
    name: String,
    dtype: String,
    dims: Vec<String>,
}

#[derive(Serialize)]
struct Pair {
    teacher: String,
    student: String,
    node: String,
    adapter: Option<String>,
    teacher_channels: i64,
    student_channels: i64,
}

#[derive(Serialize)]
struct Loss {
    kind: &'static str,
    doc: &'static str,
    teacher: Option<String>,
    student: String,
    weight: f64,
    /// The share of the training after which it counts no more: its weight falls evenly to 0 until then. `null`: it stays.
    until: Option<f64>,
}

/// Makes teacher, student, module and description.
pub fn distill(
    graph: &Graph,
    settings: &Settings,
    data: Option<&Data>,
    executor: &dyn Executor,
) -> Result<Distillation, Problems> {
    if !(settings.ratio > 0.0 && settings.ratio < 1.0) {
        let help = "0.25 makes a student of a quarter of the multiply-accumulates";
        return Err(Problems::one("distill", format!("ratio {} is no share above 0 and below 1", settings.ratio), help));
    }
    if !(settings.temperature > 0.0 && settings.temperature.is_finite()) {
        return Err(Problems::one("distill", format!("temperature {} is not above 0", settings.temperature), "1 to 8 is usual"));
    }
    let options = Options { sparsity: 1.0 - settings.ratio, kind: prune::Kind::Channel, ..settings.prune };
    let original = prune::prepare(graph)?;
    let pruned = prune::prune(graph, &options, data, executor)?;
    let Pruned { graph: mut student, before, after, mut notes, fitted, kept, .. } = pruned;
    notes.extend(fitted);
    let mut teacher = original.clone();
    let mut pairs = vec![];
    let chosen = features(&original, settings.features);
    for (k, &v) in chosen.iter().enumerate() {
        pairs.push(pair(&mut teacher, &mut student, v, k, &kept)?);
    }
    let mut losses = vec![];
    for &v in original.outputs() {
        let name = original.value(v).name.clone();
        let float = original.ty(v).as_tensor().is_some_and(|t| t.dtype.is_float() && !t.dims.is_empty());
        if float {
            let soft = soft_target(&mut teacher, v, settings.temperature)?;
            losses.push(Loss {
                kind: "kl",
                doc: "temperature^2 * KL(teacher || softmax(student / temperature)), mean over the batch",
                teacher: Some(soft),
                student: name.clone(),
                weight: 0.7,
                until: None,
            });
            losses.push(Loss {
                kind: "cross_entropy",
                doc: "cross entropy with the labels, where there are any",
                teacher: None,
                student: name,
                weight: 0.3,
                until: None,
            });
        }
    }
    for p in &pairs {
        losses.push(Loss {
            kind: "relative_mse",
            doc: "mean squared difference over the variance of the teacher's feature",
            teacher: Some(p.teacher.clone()),
            student: p.student.clone(),
            weight: 1.0 / pairs.len() as f64,
            until: Some(1.0),
        });
    }
    prune::name_constants(&mut student);
    prune::name_constants(&mut teacher);
    let (module, teacher_module) = (torch::module(&student, "Student")?, torch::module(&teacher, "Teacher")?);
    let roles = torch::roles(&student);
    let named = |set: &std::collections::BTreeSet<Value>| set.iter().map(|&v| student.value(v).name.clone()).collect();
    let description = Description {
        model: graph.name.clone(),
        ratio: settings.ratio,
        teacher: Side { file: "teacher.onnx", macs: before.macs, parameters: before.parameters },
        student: Side { file: "student.onnx", macs: after.macs, parameters: after.parameters },
        inputs: ports(&original, original.inputs()),
        outputs: ports(&original, original.outputs()),
        temperature: settings.temperature,
        pairs,
        losses,
        trainable: named(&roles.trainable),
        batch_norm_statistics: named(&roles.statistics),
    };
    let description = serde_json::to_string_pretty(&description).expect("a record of numbers and text");
    Ok(Distillation { teacher, student, module, teacher_module, description, before, after, notes })
}

fn ports(g: &Graph, values: &[Value]) -> Vec<Port> {
    let port = |&v: &Value| {
        let ty = g.ty(v).as_tensor();
        Port {
            name: g.value(v).name.clone(),
            dtype: ty.map_or_else(|| g.ty(v).to_string(), |t| t.dtype.to_string()),
            dims: ty.map_or(vec![], |t| t.dims.iter().map(ToString::to_string).collect()),
        }
    };
    values.iter().map(port).collect()
}

/// Values between layers to compare, evenly spread over the depth: what layers read, of known channels.
fn features(g: &Graph, most: usize) -> Vec<Value> {
    let mut all: Vec<Value> = vec![];
    for l in layers(g) {
        let ty = g.ty(l.data).as_tensor();
        let computed = matches!(g.value(l.data).def, Def::Output(..)) && !g.outputs().contains(&l.data);
        let float =
            ty.is_some_and(|t| t.dtype == DType::F32 && t.dims.len() >= 2 && channel_axis(t.dims.len(), &l) < t.dims.len());
        let known = ty.is_some_and(|t| t.dims[channel_axis(t.dims.len(), &l)].known().is_some_and(|n| n > 1));
        if computed && float && known && !all.contains(&l.data) {
            all.push(l.data);
        }
    }
    let n = all.len();
    let most = most.min(n);
    // The last one of each of as many equal parts.
    (1..=most).map(|k| all[(k * n).div_ceil(most) - 1]).collect()
}

fn channel_axis(rank: usize, l: &prune::layer::Layer) -> usize {
    match l.kind {
        prune::layer::Kind::Conv { .. } => 1,
        prune::layer::Kind::Matrix { .. } => rank - 1,
    }
}

/// Makes a value an output of both sides, with an adapter in the student where sizes differ.
fn pair(teacher: &mut Graph, student: &mut Graph, v: Value, k: usize, kept: &Kept) -> Result<Pair, Problems> {
    let l = layers(teacher).into_iter().find(|l| l.data == v).expect("features are what layers read");
    let rank = teacher.ty(v).as_tensor().map_or(0, |t| t.dims.len());
    let axis = channel_axis(rank, &l);
    let channels = |g: &Graph| g.ty(v).as_tensor().and_then(|t| t.dims[axis].known()).unwrap_or(0);
    let (many, few) = (channels(teacher), channels(student));
    let node = prune::layer::producer(teacher, v).map_or(String::new(), |n| teacher.describe(n));
    let seen = format!("feature.{k}");
    expose(teacher, v, &seen)?;
    let name = format!("adapted.{k}");
    let adapter = format!("adapter.{k}.weight");
    if many == few {
        expose(student, v, &name)?;
        return Ok(Pair { teacher: seen, student: name, node, adapter: None, teacher_channels: many, student_channels: few });
    }
    let (many_n, few_n) = (many as usize, few as usize);
    let all: Vec<usize> = (0..few_n).collect();
    let keep = kept.get(&Axis { value: v, axis }).unwrap_or(&all);
    let conv = matches!(l.kind, prune::layer::Kind::Conv { .. });
    let mut w = vec![0f32; many_n * few_n];
    for (from, &to) in keep.iter().enumerate() {
        w[if conv { to * few_n + from } else { from * many_n + to }] = 1.0;
    }
    let dims = match conv {
        true => [vec![many_n, few_n], vec![1; rank - 2]].concat(),
        false => vec![few_n, many_n],
    };
    let w = student.add_constant(Tensor::from_vec(dims, w), adapter.clone());
    let op: infc_ir::Op = match conv {
        true => {
            Conv { auto_pad: "NOTSET".into(), dilations: vec![], group: 1, kernel_shape: vec![], pads: vec![], strides: vec![] }
                .into()
        }
        false => MatMul {}.into(),
    };
    let origin = producer_origin(student, v);
    let mut b = Builder::new(student, origin);
    let y = b.op(op, &[v, w]).map_err(|f| Problems::one(name.clone(), f.0, "this is a bug of the export"))?;
    let nodes = b.nodes;
    student.regions[0].nodes.extend(nodes);
    student.values[y.index()].name.clone_from(&name);
    student.regions[0].results.push(y);
    Ok(Pair { teacher: seen, student: name, node, adapter: Some(adapter), teacher_channels: many, student_channels: few })
}

fn producer_origin(g: &Graph, v: Value) -> std::collections::BTreeSet<infc_ir::graph::Source> {
    prune::layer::producer(g, v).map_or_else(Default::default, |n| g.node(n).origin.clone())
}

/// A value as one more output, under a name of its own.
fn expose(g: &mut Graph, v: Value, name: &str) -> Result<(), Problems> {
    let origin = producer_origin(g, v);
    let mut b = Builder::new(g, origin);
    let y = b.op(infc_ir::op::Identity {}, &[v]).map_err(|f| Problems::one(name, f.0, "this is a bug of the export"))?;
    let nodes = b.nodes;
    g.regions[0].nodes.extend(nodes);
    g.values[y.index()].name = name.to_owned();
    g.regions[0].results.push(y);
    Ok(())
}

/// `softmax(output / temperature)` over the last axis as one more output.
fn soft_target(g: &mut Graph, v: Value, temperature: f64) -> Result<String, Problems> {
    let name = format!("soft.{}", g.value(v).name);
    let dtype = g.ty(v).dtype().unwrap_or(DType::F32);
    let origin = producer_origin(g, v);
    let mut b = Builder::new(g, origin);
    let t = b.number(dtype, temperature);
    let scaled = b.op(Div {}, &[v, t]);
    let soft = scaled.and_then(|s| b.op(Softmax { axis: -1 }, &[s]));
    let soft = soft.map_err(|f| Problems::one(name.clone(), f.0, "the output has to be a tensor of scores"))?;
    let nodes = b.nodes;
    g.regions[0].nodes.extend(nodes);
    g.values[soft.index()].name.clone_from(&name);
    g.regions[0].results.push(soft);
    Ok(name)
}
