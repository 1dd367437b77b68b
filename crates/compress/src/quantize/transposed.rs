//! Transposed convolutions as convolutions, which have a form on integers.
//!
//! With stride `s`, the results at positions of one remainder modulo `s` are a convolution with every `s`-th row and column of the kernel
//! (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016). All remainders together are one convolution with
//! `s * s` times the channels, DepthToSpace, and a Slice that takes off the padding. Kernels that `s` does not divide get zeros.

use crate::layers::{Kind, layer};
use infc_ir::graph::{Graph, Node, Value};
use infc_ir::op::{Builder, Conv, DepthToSpace};
use infc_ir::{Fault, Op, Problems, Tensor};
use infc_passes::transposed::Form;

/// Largest stride that is rewritten.
const MAX_STRIDE: i64 = 8;

/// The model with all transposed convolutions of two dims, one group and equal strides rewritten.
pub fn rewrite(g: &Graph) -> Result<Graph, Problems> {
    let mut g = g.clone();
    let mut nodes = vec![];
    for n in g.region(Graph::MAIN).nodes.clone() {
        let op = match &g.node(n).op {
            Op::ConvTranspose(op) if layer(&g, n).is_some_and(|l| l.kind == Kind::ConvTranspose) => op.clone(),
            _ => {
                nodes.push(n);
                continue;
            }
        };
        let dims = g.node(n).operand(1).and_then(|v| g.constant(v)).map(|t| t.dims.clone()).unwrap_or_default();
        let x = g.node(n).operand(0).and_then(|x| g.ty(x).as_tensor()).map(|t| t.dims.clone()).unwrap_or_default();
        let plain = |f: &Form| op.group == 1 && matches!(f.strides[..], [s, t] if s == t && s <= MAX_STRIDE);
        match Form::of(&op, &x, &dims).filter(plain) {
            None => nodes.push(n),
            Some(form) => {
                let y = build(&mut g, n, &form, &dims, &mut nodes).map_err(|f| Problems::one(g.describe(n), f.0, ""))?;
                let old = g.node(n).outputs[0];
                g.values[y.index()].name = std::mem::take(&mut g.values[old.index()].name);
                g.replace_uses(&|v| if v == old { y } else { v });
            }
        }
    }
    g.regions[Graph::MAIN.index()].nodes = nodes;
    Ok(g.compact())
}

fn build(g: &mut Graph, n: Node, f: &Form, dims: &[usize], nodes: &mut Vec<Node>) -> Result<Value, Fault> {
    let data = g.node(n).clone();
    let x = data.operand(0).expect("has an operand");
    let w = g.constant(data.operand(1).expect("has weights")).expect("constant").to_vec::<f32>();
    let (inputs, outputs, s) = (dims[0], dims[1], f.strides[0] as usize);
    let mut kernel = vec![0.0f32; outputs * s * s * inputs * f.taps[0] * f.taps[1]];
    let mut at = 0;
    for (m, ry, rx) in (0..outputs).flat_map(|m| (0..s).flat_map(move |ry| (0..s).map(move |rx| (m, ry, rx)))) {
        for (c, uy, ux) in (0..inputs).flat_map(|c| (0..f.taps[0]).flat_map(move |y| (0..f.taps[1]).map(move |x| (c, y, x)))) {
            let (ky, kx) = ((f.taps[0] - 1 - uy) * s + ry, (f.taps[1] - 1 - ux) * s + rx);
            if ky < dims[2] && kx < dims[3] {
                kernel[at] = w[((c * outputs + m) * dims[2] + ky) * dims[3] + kx];
            }
            at += 1;
        }
    }
    let bias = data.operand(2).and_then(|v| g.constant(v)).map(|t| t.to_vec::<f32>());
    if data.operand(2).is_some() && bias.is_none() {
        return Err(infc_ir::fault!("its bias is computed: only constant ones are supported"));
    }
    let name = data.operand(1).map_or(String::new(), |v| g.value(v).name.clone());
    let mut b = Builder::new(g, data.origin.clone());
    let kernel = b.constant(Tensor::from_vec([outputs * s * s, inputs, f.taps[0], f.taps[1]], kernel));
    let mut operands = vec![Some(x), Some(kernel)];
    if let Some(bias) = bias {
        let spread: Vec<f32> = bias.iter().flat_map(|&v| vec![v; s * s]).collect();
        operands.push(Some(b.constant(Tensor::from_vec([spread.len()], spread))));
    }
    let border = [f.taps[0] as i64 - 1, f.taps[1] as i64 - 1];
    let conv = Conv {
        auto_pad: "NOTSET".into(),
        dilations: vec![],
        group: 1,
        kernel_shape: vec![],
        pads: [border, border].concat(),
        strides: vec![],
    };
    let mut y = b.node(conv, &operands, vec![], 1)?[0];
    let made = b.nodes[0];
    if s > 1 {
        y = b.op(DepthToSpace { blocksize: s as i64, mode: "CRD".into() }, &[y])?;
    }
    y = f.cut(&mut b, y)?;
    nodes.append(&mut b.nodes);
    g.values[kernel.index()].name = name;
    g.nodes[made.index()].name = data.name;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Random;
    use infc_ir::{interp, text};

    #[test]
    fn results_are_those_of_the_transposed_convolution() {
        let mut random = Random(5);
        for (kernel, stride, pads, extra) in [
            (3, 2, [0, 0, 1, 1], 0),
            (4, 2, [1, 1, 1, 1], 0),
            (2, 2, [0; 4], 0),
            (3, 2, [1, 1, 1, 1], 1),
            (3, 1, [1, 1, 1, 1], 0),
            (5, 3, [2, 1, 0, 2], 0),
        ] {
            let mut numbers = |n: usize| (0..n).map(|_| random.unit() as f32 - 0.5).collect::<Vec<f32>>();
            let source = format!(
                "graph \"t\" {{\n  opset \"\" 18\n  source 0 \"up\" \"ConvTranspose\" 18\n  const %0: f32[3, 2, {kernel}, {kernel}] \"w\" = {{{}}}\n  \
                 const %1: f32[2] \"b\" = {{0.5, -0.25}}\n  region (%2: f32[n, 3, 4, 5] \"x\") {{\n    %3: f32[n, 2, {}, {}] \"y\" = ConvTranspose(%2, \
                 %0, %1) {{output_padding = [{extra}, {extra}], pads = {pads:?}, strides = [{stride}, {stride}]}} @\"up\" from [0]\n    yield %3\n  }}\n}}\n",
                numbers(6 * kernel * kernel).iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", "),
                3 * stride + kernel as i64 - pads[0] - pads[2] + extra,
                4 * stride + kernel as i64 - pads[1] - pads[3] + extra,
            );
            let g = text::parse(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
            let rewritten = rewrite(&g).unwrap();
            infc_ir::verify::verify(&rewritten).unwrap();
            assert!(rewritten.region(Graph::MAIN).nodes.iter().all(|&n| !matches!(rewritten.node(n).op, Op::ConvTranspose(_))));
            let x = Tensor::from_vec([2, 3, 4, 5], numbers(120));
            let (a, b) = (
                interp::run_tensors(&g, std::slice::from_ref(&x)).unwrap(),
                interp::run_tensors(&rewritten, std::slice::from_ref(&x)).unwrap(),
            );
            assert_eq!(a[0].dims, b[0].dims, "kernel {kernel}, stride {stride}, pads {pads:?}");
            for i in 0..a[0].len() {
                assert!((a[0].float(i) - b[0].float(i)).abs() < 1e-5, "kernel {kernel}, stride {stride}, pads {pads:?}");
            }
        }
    }
}
