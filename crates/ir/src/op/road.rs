//! How operators run in compiled code, for listings. The meaning decides; a test holds this table to it.

use super::OpInfo;
use std::fmt;

/// What becomes of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// Loop nests of its own (fused with others where that pays).
    Native,
    /// No work: the same bytes with other dims.
    View,
    /// Other operators, which run natively.
    Decomposed,
    /// Bodies are compiled; steps of the program branch and repeat.
    Control,
    /// A routine of the host: strings, sequences, optionals, maps, images.
    Host,
    /// No implementation yet.
    Missing,
}

impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Road::Native => "native",
            Road::View => "view",
            Road::Decomposed => "decomposed",
            Road::Control => "control",
            Road::Host => "host",
            Road::Missing => "missing",
        })
    }
}

const VIEWS: &[&str] = &["Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];

const DECOMPOSED: &[&str] = &[
    "GRU",
    "GroupNormalization",
    "InstanceNormalization",
    "LSTM",
    "LayerNormalization",
    "LinearAttention",
    "LinearClassifier",
    "LinearRegressor",
    "LogSoftmax",
    "MeanVarianceNormalization",
    "Normalizer",
    "OneHotEncoder",
    "QLinearAdd",
    "QLinearAveragePool",
    "QLinearConcat",
    "QLinearConv",
    "QLinearGlobalAveragePool",
    "QLinearLeakyRelu",
    "QLinearMatMul",
    "QLinearMul",
    "QLinearSigmoid",
    "QLinearSoftmax",
    "QLinearWhere",
    "RMSNormalization",
    "RNN",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "Softmax",
    "SoftmaxCrossEntropyLoss",
    "TreeEnsemble",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
];

/// How tensors of numbers take their way through an operator; those of strings are the host's in every operator that computes.
pub fn road(op: &OpInfo) -> Road {
    match op {
        _ if super::gaps().any(|name| name == op.name) => Road::Missing,
        _ if matches!(op.family, "text" | "container") => Road::Host,
        _ if op.family == "control" => Road::Control,
        _ if VIEWS.contains(&op.name) => Road::View,
        _ if DECOMPOSED.contains(&op.name) => Road::Decomposed,
        _ => Road::Native,
    }
}
