//! Quantisation: a model whose weights, and where it pays whose activations, are stored in few bits. What leaves is standard ONNX:
//! QuantizeLinear and DequantizeLinear around the operators (QDQ), or DynamicQuantizeLinear with MatMulInteger.
//!
//! `statics` (with data): statistics, then `smooth` moves outliers of activations into weights, then ranges, then `weights` rounds the
//! weights (`reconstruct`: so that the sums change least), corrects biases, and `qdq` puts the nodes in. `stored` has the forms that
//! need no data.

mod dynamic;
mod params;
mod qdq;
mod reconstruct;
mod settle;
mod smooth;
mod split;
mod statics;
mod stored;
mod switched;
mod transposed;
mod two_bytes;
mod weights;

pub use params::{Affine, Scales};
pub use settle::{Means, settle, wanted};
pub use statics::{Calibration, bias_of, calibrate, quantize as quantize_layers, taps};
pub use switched::switched;

use crate::calibrate::Method;
use crate::executor::Executor;
use crate::layers::{self, Kind, Layer};
use crate::{Data, calibrate::Ranges};
use infc_ir::graph::{Graph, Node};
use infc_ir::{DType, Op, Problem, Problems};
use std::collections::BTreeSet;

/// What is stored how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Weights and activations as 8-bit integers, with ranges from calibration.
    Static,
    /// Weights as 8-bit integers; ranges of activations from each run.
    Dynamic,
    /// Weights only: 8 bits, a scale for each output channel.
    Int8Weights,
    /// Weights only: 4 bits, a scale for each group of weights.
    Int4Weights,
    /// Weights only: f16, bf16, or an 8-bit float with a scale for each output channel.
    Float(DType),
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Each to the nearest.
    Nearest,
    /// So that the layer's sums over the calibration data change least.
    Reconstruct,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is stored how.
    pub scheme: Scheme,
    /// How ranges of activations are made.
    pub method: Method,
    /// Activations as signed integers around 0 instead of unsigned ones with a zero point.
    pub symmetric: bool,
    /// Move outliers of activations into weights.
    pub smooth: bool,
    /// Store activations in two parts where few values are far larger than all others; only with `smooth`.
    pub split: bool,
    /// Correct biases for the mean error of rounded weights.
    pub bias_correction: bool,
    /// How weights are rounded; `None`: by reconstruction where there is data, to nearest else.
    pub rounding: Option<Rounding>,
    /// Weights that share a scale, with 4 bits.
    pub group: usize,
    /// Names of layers that stay as they are; `*` stands for any part of a name.
    pub keep: BTreeSet<String>,
    /// With [`Scheme::Static`]: names of layers of which only the weights are stored; their sums are taken in float.
    pub float_sums: BTreeSet<String>,
    /// With [`Scheme::Static`]: names of layers whose inputs are stored in two bytes, where they can be.
    pub two_bytes: BTreeSet<String>,
    /// Only these layers, if there are any.
    pub only: BTreeSet<String>,
    /// Embedding tables too.
    pub tables: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            scheme: Scheme::Static,
            method: Method::Mse,
            symmetric: false,
            smooth: true,
            split: true,
            bias_correction: true,
            rounding: None,
            group: 16,
            keep: BTreeSet::new(),
            float_sums: BTreeSet::new(),
            two_bytes: BTreeSet::new(),
            only: BTreeSet::new(),
            tables: true,
        }
    }
}

impl Settings {
    /// Is this layer asked for?
    pub fn wants(&self, layer: &Layer) -> bool {
        let chosen = self.only.is_empty() || self.only.contains(&layer.name);
        chosen && !self.keep.iter().any(|k| fits(k, &layer.name)) && (self.tables || layer.kind != Kind::Table)
    }
    /// Are the sums of this layer taken on integers in static quantisation, or are only its weights stored?
    pub fn sums(&self, layer: &Layer) -> bool {
        statics::summed(layer) && !self.float_sums.iter().any(|k| fits(k, &layer.name))
    }
    /// Is the input of this layer to be stored in two bytes?
    pub fn fine(&self, layer: &Layer) -> bool {
        self.two_bytes.iter().any(|k| fits(k, &layer.name))
    }
    /// As words, for reports.
    pub fn words(&self) -> Vec<(String, String)> {
        let scheme = match self.scheme {
            Scheme::Static => "static int8".to_owned(),
            Scheme::Dynamic => "dynamic int8".to_owned(),
            Scheme::Int8Weights => "int8 weights".to_owned(),
            Scheme::Int4Weights => format!("int4 weights, groups of {}", self.group),
            Scheme::Float(d) => format!("{d} weights"),
        };
        let mut out = vec![("scheme".to_owned(), scheme)];
        if self.scheme == Scheme::Static {
            let dtype = if self.symmetric { "signed, symmetric" } else { "unsigned with zero point" };
            out.push(("activations".to_owned(), dtype.to_owned()));
            out.push(("ranges".to_owned(), format!("{:?}", self.method).to_lowercase()));
            let on = |yes: bool| if yes { "on" } else { "off" }.to_owned();
            out.push(("smoothing".to_owned(), on(self.smooth)));
            out.push(("two parts".to_owned(), on(self.smooth && self.split && !self.symmetric && self.method == Method::Mse)));
            out.push(("bias correction".to_owned(), if self.bias_correction { "on" } else { "off" }.to_owned()));
        }
        if let Some(r) = self.rounding {
            out.push(("rounding".to_owned(), format!("{r:?}").to_lowercase()));
        }
        out
    }
}

/// Is `name` the name that `pattern` says, in which `*` stands for anything?
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or("");
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

/// What a layer became.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// The layer's name.
    pub layer: String,
    /// Its operator.
    pub op: String,
    /// How it is stored and computed now.
    pub form: String,
    /// Weights before and after, as the model computes with them.
    pub weights: (Vec<f32>, Vec<f32>),
}

/// A quantised model.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// The model.
    pub graph: Graph,
    /// What became of the layers.
    pub forms: Vec<Form>,
    /// Layers left as they were, and why.
    pub kept: Vec<(String, String)>,
    /// The model before weights and activations were stored, but smoothed: its inner values are what those of `graph` approximate.
    pub reference: Graph,
    /// What else was done.
    pub notes: Vec<String>,
}

/// What is known of the values that activations take.
pub enum Knowledge<'a> {
    /// Nothing: schemes without stored activations.
    Nothing,
    /// Ranges from a file.
    Ranges(&'a Ranges),
    /// Samples to run.
    Data(&'a Data<'a>, &'a dyn Executor),
}

/// A prepared model in the form whose ranges matter for [`Scheme::Static`]: what has no form on integers, but an equal that has, is rewritten.
pub fn for_integers(g: &Graph) -> Result<Graph, Problems> {
    transposed::rewrite(g)
}

/// Quantises a prepared model ([`layers::prepare`]); [`crate::mixed::quantize`] also looks at what is lost.
pub fn quantize(
    g: &Graph,
    settings: &Settings,
    knowledge: &Knowledge,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Quantised, Problems> {
    check(g, settings)?;
    let mut out = match settings.scheme {
        Scheme::Static => {
            let calibration = calibrate(g, settings, knowledge, progress)?;
            let mut out = statics::quantize(&calibration, settings)?;
            if let Knowledge::Data(data, executor) = knowledge
                && let Some(means) = wanted(&calibration, settings, data, *executor)?
            {
                settle(&mut out.graph, &calibration, &means, data, *executor)?;
            }
            out
        }
        Scheme::Dynamic => dynamic::quantize(g, settings)?,
        Scheme::Int8Weights | Scheme::Int4Weights | Scheme::Float(_) => stored::quantize(g, settings, knowledge, progress)?,
    };
    finish(g, &mut out)?;
    Ok(out)
}

/// Lists what is left as it was; nothing quantised at all is an error.
pub(crate) fn finish(g: &Graph, out: &mut Quantised) -> Result<(), Problems> {
    out.kept.extend(other_kept(g, out));
    if out.forms.is_empty() {
        let why: Vec<String> = out.kept.iter().take(8).map(|(n, w)| format!("'{n}': {w}")).collect();
        let help = if why.is_empty() { "it has no layers with constant f32 weights".to_owned() } else { why.join("; ") };
        return Err(Problems::one(format!("model '{}'", g.name), "nothing in it can be quantised this way", help));
    }
    infc_ir::verify::verify(&out.graph)
}

/// Names in the settings must be names of layers.
pub(crate) fn check(g: &Graph, settings: &Settings) -> Result<(), Problems> {
    let known: BTreeSet<String> = layers::layers(g).into_iter().map(|l| l.name).collect();
    let unknown: Vec<&String> = settings
        .keep
        .iter()
        .chain(&settings.only)
        .chain(&settings.float_sums)
        .chain(&settings.two_bytes)
        .filter(|n| !known.iter().any(|k| fits(n, k)))
        .collect();
    let some: Vec<&str> = known.iter().take(12).map(String::as_str).collect();
    let help = format!("layers are {}{}", some.join(", "), if known.len() > 12 { ", ..." } else { "" });
    let problem = |n: &&String| Problem {
        at: format!("layer '{n}'"),
        message: "the model has no layer of this name with constant weights".to_owned(),
        help: help.clone(),
    };
    let problems: Vec<Problem> = unknown.iter().map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// Contractions that are no layers: products of two computed operands, weights in another dtype, layers in bodies.
fn other_kept(g: &Graph, done: &Quantised) -> Vec<(String, String)> {
    let named: BTreeSet<&str> =
        done.forms.iter().map(|f| f.layer.as_str()).chain(done.kept.iter().map(|k| k.0.as_str())).collect();
    let main: BTreeSet<Node> = g.region(Graph::MAIN).nodes.iter().copied().collect();
    let mut out = vec![];
    for r in g.live_regions() {
        for &n in &g.region(r).nodes {
            let contraction = matches!(
                g.node(n).op,
                Op::Conv(_)
                    | Op::ConvTranspose(_)
                    | Op::MatMul(_)
                    | Op::Gemm(_)
                    | Op::LSTM(_)
                    | Op::GRU(_)
                    | Op::RNN(_)
                    | Op::Einsum(_)
            );
            let name = layers::name(g, n);
            if contraction && !named.contains(name.as_str()) {
                let why = match layers::layer(g, n) {
                    _ if !main.contains(&n) => "stands in the body of a control-flow operator",
                    None => "has no constant f32 weights: both operands are computed, or stored otherwise already",
                    Some(_) => "is not asked for",
                };
                out.push((name, why.to_owned()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, want) in [
            ("conv", "conv", true),
            ("conv", "conv1", false),
            ("conv*", "conv1", true),
            ("*_0", "block_1_0", true),
            ("*_0", "block_0_1", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "a1c", false),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, name), want, "{pattern} {name}");
        }
    }
}
