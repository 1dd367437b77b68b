//! Quantised arithmetic.

use super::*;

gaps! {
    ConvInteger, DequantizeLinear, DynamicQuantizeLinear, MatMulInteger, QLinearConv, QLinearMatMul, QuantizeLinear, QLinearAdd,
    QLinearMul, QLinearSigmoid, QLinearLeakyRelu, QLinearConcat, QLinearSoftmax, QLinearAveragePool, QLinearGlobalAveragePool, Quant
}
