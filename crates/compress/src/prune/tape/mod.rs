//! A graph as a list of differentiable steps over f32 buffers, for inputs of fixed dims: its outputs, and by reverse accumulation the gradient
//! of a loss of the outputs by the weights of its layers.
//!
//! What a step reads where is worked out once. Windows of convolutions and pooling come from [`Layer::read`], broadcasts and movements
//! from the operator itself, run on the numbers of the elements. Steps that depend on no input are run once.

mod forward;
mod record;
mod reverse;

use super::layer::{Bias, Layer, layers};
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::{Op, Problem, Problems};
use std::collections::BTreeSet;

/// Operators that are followed, for people.
const KNOWN: &str = "Conv, Gemm and MatMul with constant weights, BatchNormalization, Add, Sub, Mul, Relu, LeakyRelu, Clip, Sigmoid, Tanh, MaxPool, \
                     AveragePool, GlobalAveragePool, ReduceMean, Concat, Split, Slice, Transpose and reshapes";
/// Stands for an element of the padding.
const OUTSIDE: u32 = u32::MAX;
/// The most elements of a value: their numbers have to be exact in f32.
const MOST: usize = 1 << 24;

/// A function of one element.
#[derive(Clone, Copy, Debug)]
enum Unary {
    /// `x`, and this times `x` below 0.
    Leaky(f32),
    Clip(f32, f32),
    Sigmoid,
    Tanh,
}

#[derive(Clone, Copy, Debug)]
enum Binary {
    Add,
    Sub,
    Mul,
}

#[derive(Debug)]
enum Step {
    /// Groups of matrices `[m, k]` times columns `[k, p]`, gathered from `x`, scattered to `y`.
    Product {
        x: usize,
        w: usize,
        bias: Option<usize>,
        y: usize,
        size: [usize; 4],
        columns: Vec<u32>,
        places: Vec<u32>,
    },
    /// A factor and a shift for each channel.
    Channels {
        x: usize,
        y: usize,
        factor: Vec<f32>,
        shift: Vec<f32>,
        inner: usize,
    },
    Unary {
        x: usize,
        y: usize,
        f: Unary,
    },
    Binary {
        f: Binary,
        of: [usize; 2],
        y: usize,
        at: [Vec<u32>; 2],
    },
    /// Elements of others.
    Move {
        from: Vec<(usize, u32)>,
        y: usize,
    },
    /// The first largest of each window.
    Largest {
        x: usize,
        y: usize,
        windows: Vec<u32>,
        taps: usize,
    },
    /// The sum of each window, times a factor.
    Sums {
        x: usize,
        y: usize,
        windows: Vec<u32>,
        taps: usize,
        factor: Vec<f32>,
    },
}

/// The steps.
pub(crate) struct Tape {
    steps: Vec<Step>,
    /// Elements of each slot.
    sizes: Vec<usize>,
    /// Slots of the inputs; `None` where an input is not of f32 or not used.
    inputs: Vec<Option<usize>>,
    /// Slots of the outputs; `None` where an output is not of f32.
    pub outputs: Vec<Option<usize>>,
    /// Slots of constants, with their values where they are not to be fitted.
    constants: Vec<(usize, Option<Vec<f32>>)>,
    /// Slots of what is fitted, in the order of [`Parameters`].
    pub fitted: Vec<usize>,
    /// The slot that each parameter's sums go to: how large these are says how large a step is.
    pub results: Vec<usize>,
    /// Whether a slot depends on what is fitted.
    needs: Vec<bool>,
}

/// Weights and biases that can be fitted: of layers whose weights no other shares.
pub(crate) struct Parameters {
    list: Vec<(Layer, bool)>,
}

impl Parameters {
    /// Those of a graph.
    pub fn of(g: &Graph) -> Parameters {
        let mut list = vec![];
        for l in layers(g).into_iter().filter(|l| !super::channel::shared(g, l)) {
            let has_bias = match l.bias {
                Bias::Operand => g.node(l.node).operand(2).is_some(),
                Bias::Added(..) => true,
                Bias::None => false,
            };
            list.push((l.clone(), false));
            if has_bias && bias_value(g, &l).is_some_and(|v| g.use_counts()[v.index()] == 1) {
                list.push((l, true));
            }
        }
        Parameters { list }
    }
    /// Their values.
    pub fn read(&self, g: &Graph) -> Vec<Vec<f32>> {
        let one = |(l, bias): &(Layer, bool)| match bias {
            true => l.bias_values(g),
            false => (0..l.groups).flat_map(|j| l.matrix(g, j)).collect(),
        };
        self.list.iter().map(one).collect()
    }
    /// Which of them are biases.
    pub fn biases(&self) -> Vec<bool> {
        self.list.iter().map(|x| x.1).collect()
    }
    /// Puts values into the graph.
    pub fn write(&self, g: &mut Graph, values: &[Vec<f32>]) {
        for ((l, bias), values) in self.list.iter().zip(values) {
            if *bias {
                l.set_bias(g, values.clone());
            } else {
                let each = values.len() / l.groups;
                let tensor = l.weights(g, &values.chunks(each).map(<[f32]>::to_vec).collect::<Vec<_>>());
                g.values[l.weight.index()].def = Def::Constant(tensor);
            }
        }
    }
    fn find(&self, node: Node, bias: bool) -> Option<usize> {
        self.list.iter().position(|(l, b)| l.node == node && *b == bias)
    }
}

fn bias_value(g: &Graph, l: &Layer) -> Option<Value> {
    match l.bias {
        Bias::Operand => g.node(l.node).operand(2),
        Bias::Added(node, k) => g.node(node).operand(k),
        Bias::None => None,
    }
}

/// The buffers of one run.
#[derive(Default)]
pub(crate) struct Buffers {
    values: Vec<Vec<f32>>,
    gradients: Vec<Vec<f32>>,
    columns: Vec<f32>,
    sums: Vec<f32>,
    back: Vec<f32>,
}

impl Buffers {
    /// What the last run gave in a slot.
    pub fn value(&self, slot: usize) -> &[f32] {
        &self.values[slot]
    }
    /// The sums of gradients of a slot.
    pub fn gradient(&self, slot: usize) -> &[f32] {
        &self.gradients[slot]
    }
    /// Sets those of all that is fitted to 0.
    pub fn clear(&mut self, tape: &Tape) {
        tape.fitted.iter().for_each(|&s| self.gradients[s].fill(0.0));
    }
}

impl Tape {
    /// Slots with the constants that are not fitted.
    pub fn constants(&self) -> Vec<Vec<f32>> {
        let mut out = vec![vec![]; self.sizes.len()];
        for (slot, values) in &self.constants {
            out[*slot].clone_from(values.as_ref().unwrap_or(&vec![]));
        }
        out
    }
    /// Buffers for runs.
    pub fn buffers(&self) -> Buffers {
        let empty = |of: &dyn Fn(usize) -> bool| {
            (0..self.sizes.len()).map(|s| vec![0.0; if of(s) { self.sizes[s] } else { 0 }]).collect()
        };
        let constant: BTreeSet<usize> = self.constants.iter().map(|c| c.0).collect();
        Buffers { values: empty(&|s| !constant.contains(&s)), gradients: empty(&|s| self.needs[s]), ..Buffers::default() }
    }
}

/// An error that names all nodes whose operator is not followed.
pub(crate) fn follows(g: &Graph) -> Result<(), Problems> {
    let layers: BTreeSet<Node> = layers(g).into_iter().map(|l| l.node).collect();
    let mut live: BTreeSet<Value> = g.inputs().iter().copied().collect();
    let mut problems = vec![];
    for &n in &super::cut(g, g.outputs()).region(Graph::MAIN).nodes {
        let node = g.node(n);
        if !node.inputs.iter().flatten().any(|v| live.contains(v)) || matches!(node.op, Op::Shape(_) | Op::Size(_)) {
            continue;
        }
        live.extend(&node.outputs);
        let known = match &node.op {
            Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_) => layers.contains(&n),
            Op::BatchNormalization(op) => !op.training_mode,
            Op::MaxPool(_) => node.outputs.len() == 1,
            Op::Add(_)
            | Op::Sub(_)
            | Op::Mul(_)
            | Op::Relu(_)
            | Op::LeakyRelu(_)
            | Op::Clip(_)
            | Op::Sigmoid(_)
            | Op::Tanh(_) => true,
            Op::AveragePool(_) | Op::GlobalAveragePool(_) | Op::ReduceMean(_) => true,
            op => moves(op),
        };
        if !known {
            let help = if problems.is_empty() { format!("the fit of the outputs follows {KNOWN}") } else { String::new() };
            problems.push(Problem { at: g.describe(n), message: "is an operator without a derivative here".into(), help });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

fn moves(op: &Op) -> bool {
    matches!(
        op,
        Op::Concat(_)
            | Op::Split(_)
            | Op::Slice(_)
            | Op::Transpose(_)
            | Op::Reshape(_)
            | Op::Flatten(_)
            | Op::Squeeze(_)
            | Op::Unsqueeze(_)
    ) || matches!(op, Op::Identity(_) | Op::Expand(_))
}

impl Step {
    /// The slot that it fills.
    fn result(&self) -> usize {
        match self {
            Step::Product { y, .. }
            | Step::Channels { y, .. }
            | Step::Unary { y, .. }
            | Step::Binary { y, .. }
            | Step::Move { y, .. }
            | Step::Largest { y, .. }
            | Step::Sums { y, .. } => *y,
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/nets/mod.rs"]
mod nets;

#[cfg(test)]
mod tests;
