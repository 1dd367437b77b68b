//! Why an operator cannot stream, and what to use instead.

use infc_ir::Op;

/// The reason and the nearest alternative.
pub(super) fn why(op: &Op) -> (String, &'static str) {
    let named = |reason: &str| reason.to_owned();
    match op {
        Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_) => (
            named("it works on real numbers, or its operands have scales that integers cannot follow"),
            "quantise its operands to at most 8 bits and put QuantizeLinear behind it (QDQ or QONNX), or let formats be chosen (fixed-point selection)",
        ),
        Op::ConvInteger(_) => (named("its accumulators are used as they are"), "put a requantisation behind it: QLinearConv"),
        Op::ConvTranspose(_) => {
            (named("its windows overlap in the result"), "use Resize (nearest) or DepthToSpace, and a convolution")
        }
        Op::Resize(_) => (named("it interpolates"), "use mode nearest with whole factors"),
        Op::AveragePool(_) | Op::GlobalAveragePool(_) | Op::ReduceMean(_) => (
            named("it works on real numbers, or its windows count a different number of elements at the border"),
            "quantise before and behind it; for AveragePool use count_include_pad = 1 or no padding",
        ),
        Op::DynamicQuantizeLinear(_) => (
            named("its scale depends on the whole tensor of each run"),
            "use static quantisation: QuantizeLinear with a constant scale",
        ),
        Op::BatchNormalization(_) => {
            (named("no convolution or matrix product takes its factors"), "place it right behind a convolution or matrix product")
        }
        Op::LayerNormalization(_) | Op::InstanceNormalization(_) | Op::GroupNormalization(_) | Op::RMSNormalization(_) => (
            named("it needs the mean of the tensor before its first result"),
            "train with BatchNormalization, which becomes weights",
        ),
        Op::Attention(_) => {
            (named("both operands of its products are data"), "use convolutions or matrix products with constant weights")
        }
        Op::Quant(_) | Op::BipolarQuant(_) | Op::Trunc(_) => (
            named("quantisers of data need one scale, whole bits from 1 to 8 (2 to 8 with a sign) and rounding half to even"),
            "use Quant with one scale, zero point 0 and at most 8 bits",
        ),
        Op::If(_) | Op::Loop(_) | Op::Scan(_) => {
            (named("hardware has one flow of data"), "unroll the loop or choose the branch at export")
        }
        other => match other.info().family {
            "rnn" => (named("it carries state from step to step"), "use convolutions over time (a temporal convolution network)"),
            "sort" => (named("its result depends on an order of the data"), "do it on the host, behind the design"),
            "text" | "container" | "ml" => (named("it is work for a host"), "do it on the host, before or behind the design"),
            "random" => (named("it draws random numbers"), "remove it for inference"),
            family => {
                (format!("operators of the family '{family}' have no actor"), "do it on the host, before or behind the design")
            }
        },
    }
}
