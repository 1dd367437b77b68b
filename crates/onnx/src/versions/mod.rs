//! Older operator versions, and operators of other domains with the same meaning, raised to the newest form in the operator table.
//!
//! [`STEPS`] is the whole story: a node walks through the rows of its operator in order, each row bringing it one form further.
//! Versions whose difference is only in the accepted dtypes need no row.

mod contrib;
mod contrib_attention;
mod contrib_lstm;
mod contrib_quant;
mod steps;
mod training;

use infc_ir::graph::Value;
use infc_ir::op::{Attr, AttrValue, Attrs, Builder, OPS, Op};
use infc_ir::{DType, Expr, Fact, Fault, Graph, Tensor, TensorType, fault};

/// A node on its way to the newest version.
pub struct Raise<'a> {
    /// Makes the nodes and constants that a step needs before (or instead of) the node.
    pub builder: Builder<'a>,
    /// Domain of the operator.
    pub domain: String,
    /// The operator.
    pub op: String,
    /// The operator set version that the model imports.
    pub version: i64,
    /// Operands.
    pub inputs: Vec<Option<Value>>,
    /// Attributes.
    pub attrs: Attrs,
    /// Number of results.
    pub outputs: usize,
    /// Results, if a step has made nodes that replace the node.
    pub results: Option<Vec<Value>>,
}

/// One form further.
pub struct Step {
    /// Domain.
    pub domain: &'static str,
    /// Operators it is for.
    pub ops: &'static [&'static str],
    /// Versions below this one need it.
    pub below: i64,
    /// What it does.
    pub what: &'static str,
    /// Does it.
    pub apply: fn(&mut Raise) -> Result<(), Fault>,
}

pub use steps::NARROW;

/// Domain and name of what is no node here, but a value.
pub const CONSTANT: (&str, &str) = ("", "Constant");

/// Domain and name of attention with graphs in it (see [`crate::flex`]).
pub const FLEX_ATTENTION: (&str, &str) = ("ai.onnx.preview", "FlexAttention");

/// Domain and name of the derivative of a value (see [`crate::gradient`]).
pub const GRADIENT: (&str, &str) = ("ai.onnx.preview.training", "Gradient");

/// Operators that neither the operator table nor [`STEPS`](all) has, with what becomes of them.
pub const OTHERS: &[((&str, &str), &str)] = &[
    (CONSTANT, "becomes a constant"),
    (FLEX_ATTENTION, "becomes products, its graphs and a Softmax"),
    (GRADIENT, "becomes the nodes that compute the derivatives"),
];

/// All versions.
pub const ALWAYS: i64 = i64::MAX;

/// All rows, oldest form first for each operator.
pub fn all() -> impl Iterator<Item = &'static Step> {
    contrib::STEPS.iter().chain(training::STEPS).chain(steps::STEPS)
}

/// Operators of the default domain by the operator set that introduced them, where that is newer than 7.
const INTRODUCED: &[(i64, &str)] = &[
    (8, "Expand Scan"),
    (
        9,
        "Acosh Asinh Atanh Cosh Erf IsNaN Shrink Sign Sinh Where MaxUnpool ConstantOfShape EyeLike OneHot MeanVarianceNormalization",
    ),
    (9, "Compress NonZero TfIdfVectorizer Scatter"),
    (10, "IsInf Mod ThresholdedRelu Resize RoiAlign ReverseSequence ConvInteger DequantizeLinear MatMulInteger QLinearConv"),
    (10, "QLinearMatMul QuantizeLinear NonMaxSuppression StringNormalizer"),
    (11, "BitShift Round CumSum Det Range GatherElements GatherND ScatterElements ScatterND DynamicQuantizeLinear Unique"),
    (
        11,
        "ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence",
    ),
    (12, "Celu GreaterOrEqual LessOrEqual Einsum NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss"),
    (14, "HardSwish Trilu"),
    (15, "CastLike Bernoulli Optional OptionalGetElement OptionalHasElement"),
    (16, "GridSample"),
    // LayerNormalization (17) is missing here: ONNX Runtime writes it into files of any operator set.
    (17, "BlackmanWindow DFT HammingWindow HannWindow MelWeightMatrix STFT SequenceMap"),
    (18, "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Mish Col2Im CenterCropPad GroupNormalization"),
    (19, "DeformConv"),
    (20, "Gelu AffineGrid ImageDecoder RegexFullMatch StringConcat StringSplit"),
    (23, "Attention RotaryEmbedding RMSNormalization"),
    (24, "Swish TensorScatter"),
    (26, "BitCast CumProd"),
    (27, "LinearAttention CausalConvWithState"),
    (28, "SwiGLU"),
];

/// The operator set that introduced an operator of the default domain, as far as it matters (1 for everything up to 7).
pub fn introduced(op: &str) -> i64 {
    INTRODUCED.iter().find(|(_, ops)| ops.split(' ').any(|o| o == op)).map_or(1, |(v, _)| *v)
}

/// Operators taken out of the default domain, with the version that did so.
const REMOVED: &[(&str, i64, &str)] = &[("Upsample", 10, "Resize"), ("Scatter", 11, "ScatterElements")];

/// The operator set that took an operator out of the default domain.
pub fn removed(op: &str) -> Option<i64> {
    REMOVED.iter().find(|(name, ..)| *name == op).map(|(_, v, _)| *v)
}

/// Is there such an operator, in the table or as an older form of one?
pub fn known(domain: &str, op: &str) -> bool {
    let row = OPS.iter().any(|o| o.domain == domain && o.name == op && domain != "infc");
    row || all().any(|s| s.domain == domain && s.ops.contains(&op)) || OTHERS.iter().any(|(name, _)| *name == (domain, op))
}

/// Is the operator there at this version?
pub fn check(domain: &str, op: &str, version: i64) -> Result<(), Fault> {
    if !domain.is_empty() {
        return Ok(());
    }
    let since = introduced(op);
    if version < since {
        return Err(fault!("came with operator set {since}, the model imports {version}: export with {since} or newer"));
    }
    match REMOVED.iter().find(|(name, v, _)| *name == op && version >= *v) {
        Some((_, v, instead)) => Err(fault!("was replaced by {instead} in operator set {v}, the model imports {version}")),
        None => Ok(()),
    }
}

/// Applies the steps between the node's version and the newest.
pub fn raise(node: &mut Raise) -> Result<(), Fault> {
    for step in all() {
        if node.results.is_none()
            && step.domain == node.domain
            && node.version < step.below
            && step.ops.contains(&node.op.as_str())
        {
            (step.apply)(node).map_err(|f| fault!("{f} ({})", step.what))?;
        }
    }
    Ok(())
}

/// Sets what is known of a value.
pub fn set_fact(graph: &mut Graph, v: Value, f: Fact) {
    let data = &mut graph.values[v.index()];
    (data.ty, data.ints) = (f.ty, f.ints);
}

impl<'a> Raise<'a> {
    /// A node as it is in the model.
    pub fn new(
        builder: Builder<'a>,
        domain: &str,
        op: &str,
        version: i64,
        inputs: Vec<Option<Value>>,
        attrs: Attrs,
        outputs: usize,
    ) -> Raise<'a> {
        let (domain, op) = (domain.to_owned(), op.to_owned());
        Raise { builder, domain, op, version, inputs, attrs, outputs, results: None }
    }

    /// Operand `i`; an error if it is absent.
    fn input(&self, i: usize) -> Result<Value, Fault> {
        self.inputs.get(i).copied().flatten().ok_or_else(|| fault!("operand {i} is missing"))
    }
    /// Operand `i` if it is there.
    fn optional(&self, i: usize) -> Option<Value> {
        self.inputs.get(i).copied().flatten()
    }
    /// The tensor type of operand `i`.
    fn tensor(&self, i: usize) -> Result<TensorType, Fault> {
        self.builder.tensor(self.input(i)?).cloned()
    }
    /// Sets operand `i`; those before it that are not there become absent ones.
    fn set_input(&mut self, i: usize, v: Option<Value>) {
        if self.inputs.len() <= i {
            self.inputs.resize(i + 1, None);
        }
        self.inputs[i] = v;
    }
    /// Takes an attribute out.
    fn take<T: AttrValue>(&mut self, name: &str) -> Result<Option<T>, Fault> {
        let attr = self.attrs.take(name);
        attr.map(|a| T::from_attr(a).map_err(|kind| fault!("attribute '{name}' must be {kind}"))).transpose()
    }
    /// Takes an integer list out and makes it operand `i`; leaves the operand absent without the attribute.
    fn ints_to_input(&mut self, name: &str, i: usize) -> Result<(), Fault> {
        if let Some(values) = self.take::<Vec<i64>>(name)? {
            let v = self.builder.ints(&values);
            self.set_input(i, Some(v));
        }
        Ok(())
    }
    /// Takes a float out and makes it a scalar of `dtype` as operand `i`; leaves the operand absent without the attribute.
    fn float_to_input(&mut self, name: &str, dtype: DType, i: usize) -> Result<(), Fault> {
        if let Some(value) = self.take::<f32>(name)? {
            let v = self.builder.number(dtype, f64::from(value));
            self.set_input(i, Some(v));
        }
        Ok(())
    }
    /// Sets an attribute unless the node has it.
    fn default(&mut self, name: &str, value: Attr) {
        if self.attrs.get(name).is_none() {
            self.attrs.set(name, value);
        }
    }
    /// The node becomes another operator of the default domain.
    fn rename(&mut self, op: &str) {
        self.domain = String::new();
        self.op = op.to_owned();
    }
    /// Adds a node of the default domain with one result.
    pub fn node(&mut self, op: &str, attrs: &[(&str, Attr)], inputs: &[Value]) -> Result<Value, Fault> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        Ok(self.node_with(op, attrs, &inputs, 1)?[0])
    }
    /// Adds a node of the default domain.
    fn node_with(
        &mut self,
        op: &str,
        attrs: &[(&str, Attr)],
        inputs: &[Option<Value>],
        outputs: usize,
    ) -> Result<Vec<Value>, Fault> {
        let mut attrs = Attrs(attrs.iter().map(|(n, a)| ((*n).to_owned(), a.clone())).collect());
        let made = Op::from_attrs("", op, &mut attrs).ok_or_else(|| fault!("{op} is not in the table"))??;
        self.builder.node(made, inputs, vec![], outputs)
    }
    /// The dims of `v` as an operand of Reshape.
    fn shape_of(&mut self, v: Value) -> Result<Value, Fault> {
        let dims = self.builder.dims(v)?;
        match dims.iter().map(|d| d.known()).collect::<Option<Vec<i64>>>() {
            Some(known) => Ok(self.builder.ints(&known)),
            None => self.node("Shape", &[], &[v]),
        }
    }
    /// `v` with known dims `dims`; constants are reshaped on the spot.
    fn reshape(&mut self, v: Value, dims: &[i64]) -> Result<Value, Fault> {
        if let Some(t) = self.builder.graph.constant(v) {
            let sizes: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
            if let Some(sizes) = sizes.filter(|s| s.iter().product::<usize>() == t.len()) {
                let (t, name) = (t.reshape(sizes), format!("{}.reshaped", self.builder.graph.value(v).name));
                return Ok(self.builder.graph.add_constant(t, name));
            }
        }
        let shape = self.builder.ints(dims);
        self.node("Reshape", &[], &[v, shape])
    }
    /// The constant that operand `i` is, if it is one.
    fn constant(&self, i: usize) -> Option<&Tensor> {
        self.builder.graph.constant(self.optional(i)?)
    }
}

/// A dim that must be a number.
fn known_dim(d: Expr, what: &str) -> Result<i64, Fault> {
    d.known().ok_or_else(|| fault!("{what} must be known, it is {d}"))
}
