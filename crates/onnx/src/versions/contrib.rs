//! Operators of `com.microsoft` (as ONNX Runtime's optimiser and quantiser write them) that an operator of the table, or a few
//! of them, say as well.

use super::*;

const fn step(op: &'static [&'static str], what: &'static str, apply: fn(&mut Raise) -> Result<(), Fault>) -> Step {
    Step { domain: "com.microsoft", ops: op, below: ALWAYS, what, apply }
}

/// See [`super`].
pub const STEPS: &[Step] = &[
    step(&["Gelu", "QuantizeLinear", "DequantizeLinear", "Trilu"], "is the operator of ai.onnx", |r| {
        r.domain = String::new();
        r.version = ALWAYS - 1; // nothing older to raise
        Ok(())
    }),
    step(&["GridSample"], "is GridSample of operator set 16", |r| {
        r.domain = String::new();
        r.version = 16;
        Ok(())
    }),
    step(&["QuickGelu"], "is Swish", |r| {
        r.default("alpha", Attr::Float(1.702));
        r.rename("Swish");
        Ok(())
    }),
    step(&["BiasGelu", "FastGelu"], "is Gelu after an addition", |r| {
        if let Some(bias) = r.optional(1) {
            let sum = r.node("Add", &[], &[r.input(0)?, bias])?;
            r.inputs = vec![Some(sum)];
        }
        if r.op == "FastGelu" {
            r.attrs.set("approximate", Attr::Str("tanh".into()));
        }
        r.rename("Gelu");
        Ok(())
    }),
    step(&["FusedMatMul", "TransposeMatMul"], "is a scaled MatMul of transposed operands", fused_matmul),
    step(&["FusedConv"], "is Conv, an addition and an activation", fused_conv),
    step(&["FusedGemm"], "is Gemm and an activation", fused_gemm),
    step(&["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"], "is a norm of a sum", skip_norm),
    step(&["MatMulIntegerToFloat", "DynamicQuantizeMatMul"], "is MatMulInteger, scaled", scaled_matmul),
    step(&["Attention"], "is a product, a split and Attention of ai.onnx", contrib_attention::attention),
    step(&["MultiHeadAttention"], "is Attention of ai.onnx with its masks", contrib_attention::multi_head),
    step(&["GroupQueryAttention"], "is Attention of ai.onnx over caches that are written", contrib_attention::group_query),
    step(&["RotaryEmbedding"], "is RotaryEmbedding of ai.onnx", contrib_attention::rotary),
    step(&["MatMulNBits"], "is MatMul with weights that are unpacked and scaled", contrib_quant::matmul_nbits),
    step(&["QGemm"], "is MatMulInteger, scaled", contrib_quant::qgemm),
    step(&["NhwcMaxPool"], "is MaxPool between transpositions", contrib_quant::nhwc_max_pool),
    step(&["EmbedLayerNormalization"], "is LayerNormalization of a sum of gathered rows", contrib_quant::embed),
    step(&["DynamicQuantizeLSTM"], "is a Scan over quantised products", contrib_lstm::dynamic_lstm),
];

fn fused_matmul(r: &mut Raise) -> Result<(), Fault> {
    let alpha = r.take::<f32>("alpha")?.unwrap_or(1.0);
    let mut operands = vec![];
    for (i, side) in [(0, "A"), (1, "B")] {
        let (rank, dtype) = (r.tensor(i)?.rank(), r.tensor(i)?.dtype);
        let mut v = r.input(i)?;
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        // The first dim is moved to where the rows are, and the others forwards; then rows and columns change places.
        if r.take::<i64>(&format!("transBatch{side}"))?.unwrap_or(0) != 0 && rank > 2 {
            perm[..rank - 1].rotate_left(1);
        }
        if r.take::<i64>(&format!("trans{side}"))?.unwrap_or(0) != 0 && rank >= 2 {
            perm.swap(rank - 1, rank - 2);
        }
        if !perm.is_sorted() {
            v = r.node("Transpose", &[("perm", Attr::Ints(perm))], &[v])?;
        }
        if i == 0 && alpha != 1.0 {
            let factor = r.builder.number(dtype, f64::from(alpha));
            v = r.node("Mul", &[], &[v, factor])?;
        }
        operands.push(Some(v));
    }
    r.inputs = operands;
    r.rename("MatMul");
    Ok(())
}

/// The activation that a fused operator ends with.
fn activate(r: &mut Raise, v: Value, name: &str, alpha: Option<f32>, beta: Option<f32>) -> Result<Value, Fault> {
    let mut attrs = vec![];
    attrs.extend(alpha.map(|a| ("alpha", Attr::Float(a))));
    attrs.extend(beta.map(|b| ("beta", Attr::Float(b))));
    match name {
        "" => Ok(v),
        "Relu" | "Sigmoid" | "Tanh" => r.node(name, &[], &[v]),
        "LeakyRelu" | "HardSigmoid" | "Elu" => r.node(name, &attrs, &[v]),
        "Clip" => {
            let dtype = r.builder.tensor(v)?.dtype;
            let low = r.builder.number(dtype, alpha.map_or(f64::NEG_INFINITY, f64::from));
            let high = r.builder.number(dtype, beta.map_or(f64::INFINITY, f64::from));
            r.node("Clip", &[], &[v, low, high])
        }
        other => Err(fault!("activation '{other}' is not supported")),
    }
}

fn fused_conv(r: &mut Raise) -> Result<(), Fault> {
    let name = r.take::<String>("activation")?.unwrap_or_default();
    let params = r.take::<Vec<f32>>("activation_params")?.unwrap_or_default();
    let attrs: Vec<(String, Attr)> = std::mem::take(&mut r.attrs.0);
    let attrs: Vec<(&str, Attr)> = attrs.iter().map(|(n, a)| (n.as_str(), a.clone())).collect();
    let inputs = r.inputs.clone();
    let mut v = r.node_with("Conv", &attrs, &inputs[..inputs.len().min(3)], 1)?[0];
    if let Some(z) = r.optional(3) {
        v = r.node("Add", &[], &[v, z])?;
    }
    let v = activate(r, v, &name, params.first().copied(), params.get(1).copied())?;
    r.results = Some(vec![v]);
    Ok(())
}

fn fused_gemm(r: &mut Raise) -> Result<(), Fault> {
    let name = r.take::<String>("activation")?.unwrap_or_default();
    let (alpha, beta) = (r.take::<f32>("activation_alpha")?, r.take::<f32>("activation_beta")?);
    r.take::<f32>("activation_gamma")?;
    let attrs: Vec<(String, Attr)> = std::mem::take(&mut r.attrs.0);
    let attrs: Vec<(&str, Attr)> = attrs.iter().map(|(n, a)| (n.as_str(), a.clone())).collect();
    let inputs = r.inputs.clone();
    let v = r.node_with("Gemm", &attrs, &inputs, 1)?[0];
    let v = activate(r, v, &name, alpha, beta)?;
    r.results = Some(vec![v]);
    Ok(())
}

/// Operands input, skip, gamma, (beta,) bias; results output, mean, deviation, sum.
fn skip_norm(r: &mut Raise) -> Result<(), Fault> {
    let simplified = r.op.contains("Simplified");
    if r.outputs == 2 || r.outputs == 3 {
        return Err(fault!("results 1 and 2 are for training, which is not supported"));
    }
    let epsilon = r.take::<f32>("epsilon")?.unwrap_or(1e-12);
    let mut sum = r.node("Add", &[], &[r.input(0)?, r.input(1)?])?;
    if let Some(bias) = r.optional(if simplified { 3 } else { 4 }) {
        sum = r.node("Add", &[], &[sum, bias])?;
    }
    let attrs = [("axis", Attr::Int(-1)), ("epsilon", Attr::Float(epsilon))];
    let y = if simplified {
        r.node("RMSNormalization", &attrs, &[sum, r.input(2)?])?
    } else {
        let beta = r.optional(3);
        let gamma = r.input(2)?;
        r.node_with("LayerNormalization", &attrs, &[Some(sum), Some(gamma), beta][..2 + usize::from(beta.is_some())], 1)?[0]
    };
    // Nobody can have asked for the two in between without a name.
    r.results = Some(if r.outputs == 4 { vec![y, y, y, sum] } else { vec![y] });
    Ok(())
}

/// `MatMulIntegerToFloat(A, B, a_scale, b_scale, a_zero, b_zero, bias)`; `DynamicQuantizeMatMul(A, B, b_scale, b_zero, bias)`
/// quantises A first.
fn scaled_matmul(r: &mut Raise) -> Result<(), Fault> {
    let b = r.input(1)?;
    let (a, a_scale, b_scale, a_zero, b_zero, bias) = if r.op == "MatMulIntegerToFloat" {
        (r.input(0)?, r.input(2)?, r.input(3)?, r.optional(4), r.optional(5), r.optional(6))
    } else {
        let q = r.node_with("DynamicQuantizeLinear", &[], &[Some(r.input(0)?)], 3)?;
        (q[0], q[1], r.input(2)?, Some(q[2]), r.optional(3), r.optional(4))
    };
    let mut operands = vec![Some(a), Some(b), a_zero, b_zero];
    while let Some(None) = operands.last() {
        operands.pop();
    }
    let product = r.node_with("MatMulInteger", &[], &operands, 1)?[0];
    let to = r.builder.tensor(a_scale)?.dtype;
    let product = r.node("Cast", &[("to", Attr::Int(i64::from(to.onnx())))], &[product])?;
    let scale = r.node("Mul", &[], &[a_scale, b_scale])?;
    let mut v = r.node("Mul", &[], &[product, scale])?;
    if let Some(bias) = bias {
        v = r.node("Add", &[], &[v, bias])?;
    }
    r.results = Some(vec![v]);
    Ok(())
}
