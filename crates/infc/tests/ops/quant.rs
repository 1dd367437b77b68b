//! Quantised operators. Scales are powers of two, so that no result lies where the rounding of a quotient decides.

use crate::elementwise::rows;
use crate::kit::*;
use infc_ir::{DType, Tensor};

const MS: &str = "com.microsoft";
const BYTES: &[DType] = &[DType::I8, DType::U8];

fn scale(r: &mut Random) -> Tensor {
    Tensor::from_vec([], vec![r.pick(&[0.25f32, 0.5, 1.0, 2.0])])
}

fn scales(r: &mut Random, dims: &[usize]) -> Tensor {
    let n = dims.iter().product();
    Tensor::from_vec(dims, (0..n).map(|_| r.pick(&[0.25f32, 0.5, 1.0, 2.0])).collect::<Vec<_>>())
}

fn bytes(r: &mut Random, dtype: DType, dims: &[usize]) -> Tensor {
    r.tensor(dtype, dims, Fill::Any)
}

/// A zero point near the middle.
fn zero(r: &mut Random, dtype: DType, dims: &[usize]) -> Tensor {
    let middle = if dtype == DType::U8 { 128 } else { 0 };
    r.tensor(dtype, dims, Fill::Within(middle - 3, middle + 3))
}

/// Data, scale and zero point.
fn scaled(case: Case, r: &mut Random, dtype: DType, dims: &[usize]) -> Case {
    case.of(bytes(r, dtype, dims)).of(scale(r)).of(zero(r, dtype, &[]))
}

fn matrices(r: &mut Random) -> ([usize; 2], [usize; 2]) {
    let k = r.size(1, 70);
    ([r.dim(), k], [k, r.size(1, 20)])
}

/// Dims of scales of `dims` along an axis: one, a vector, or blocks.
fn granularity(r: &mut Random, case: Case, dims: &[usize]) -> (Case, Vec<usize>) {
    let axis = r.axis(dims.len());
    let at = axis.rem_euclid(dims.len() as i64) as usize;
    match r.size(0, 2) {
        0 => (case, vec![]),
        1 => (case.int("axis", axis), vec![dims[at]]),
        _ => {
            let block = r.size(1, 3);
            let mut parts = dims.to_vec();
            parts[at] = dims[at].div_ceil(block);
            (case.int("axis", axis).int("block_size", block as i64), parts)
        }
    }
}

fn quantize(r: &mut Random) -> Case {
    let dims: Vec<usize> = r.dims(1..=4).into_iter().map(|d| d.max(1)).collect();
    let from = r.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16]);
    let to = r.pick(&[DType::I8, DType::U8, DType::I16, DType::U16, DType::I4, DType::U4, DType::F8E4M3FN, DType::F8E5M2]);
    let (case, parts) = granularity(r, op("QuantizeLinear"), &dims);
    // Halves: ties must go to the even number.
    let x = r.tensor(DType::F32, &dims, Fill::Within(-400, 400));
    let x = Tensor::from_values(
        from,
        dims.clone(),
        (0..x.len()).map(|i| infc_ir::eval::round_float(from, x.float(i) / 2.0).to_bits()),
    );
    let case = case.of(x).of(scales(r, &parts));
    if to.is_float() {
        return case.of(r.tensor(to, &parts, Fill::Within(0, 0)));
    }
    case.of(r.tensor(to, &parts, Fill::Within(0, 3)))
}

fn dequantize(r: &mut Random) -> Case {
    let dims: Vec<usize> = r.dims(1..=4).into_iter().map(|d| d.max(1)).collect();
    let from =
        r.pick(&[DType::I8, DType::U8, DType::I16, DType::U16, DType::I32, DType::I4, DType::U4, DType::F8E4M3FN, DType::F8E5M2]);
    let (case, parts) = granularity(r, op("DequantizeLinear"), &dims);
    let fill = if from.is_float() { SMALL } else { Fill::Within(-100, 100) };
    let case = case.of(r.tensor(from, &dims, fill)).of(scales(r, &parts));
    if from == DType::I32 || r.chance(30) {
        return case;
    }
    let fill = if from.is_float() { Fill::Within(0, 0) } else { Fill::Within(0, 3) };
    case.of(r.tensor(from, &parts, fill))
}

/// Dims, weights and window of an integer convolution.
fn convolution(r: &mut Random, case: Case) -> (Case, Vec<usize>, Vec<usize>) {
    let (groups, cin, cout, k) = (r.pick(&[1, 1, 2]), r.size(1, 17), r.size(1, 5), r.size(1, 3));
    let (n, h, w) = (r.size(1, 2), k + r.size(0, 4), k + r.size(0, 4));
    let pads: Vec<i64> = (0..4).map(|_| r.within(0, k as i64 - 1)).collect();
    let case = case.int("group", groups as i64).ints("pads", &pads).ints("strides", &[r.within(1, 2), r.within(1, 2)]);
    (case, vec![n, cin * groups, h, w], vec![cout * groups, cin, k, k])
}

fn elementwise(name: &'static str, r: &mut Random) -> Case {
    let (dtype, shapes) = (r.pick(BYTES), r.broadcast(2));
    let case = scaled(op(name).domain(MS), r, dtype, &shapes[0]);
    scaled(case, r, dtype, &shapes[1]).of(scale(r)).of(zero(r, dtype, &[]))
}

fn activation(name: &'static str, r: &mut Random) -> Case {
    let (dtype, dims) = (r.pick(BYTES), r.dims(0..=4));
    let case = scaled(op(name).domain(MS), r, dtype, &dims);
    let out = Tensor::from_vec([], vec![if name == "QLinearLeakyRelu" { 0.5f32 } else { 1.0 / 256.0 }]);
    case.of(out).of(zero(r, dtype, &[]))
}

pub const QUANT: &[Row] = rows! {
    "ConvInteger" => |r| {
        let (case, x, w) = convolution(r, op("ConvInteger"));
        let (a, b) = (r.pick(BYTES), r.pick(BYTES));
        let case = case.of(bytes(r, a, &x)).of(bytes(r, b, &w));
        if r.chance(70) { case.of(zero(r, a, &[])).of(zero(r, b, &[])) } else { case }
    };
    "DequantizeLinear" => |r| dequantize(r);
    "DynamicQuantizeLinear" => |r| {
        let dims: Vec<usize> = r.dims(1..=4).into_iter().map(|d| d.max(1)).collect();
        op("DynamicQuantizeLinear").results(3).of(r.tensor(DType::F32, &dims, Fill::Real(-3.0, 5.0)))
    };
    "MatMulInteger" => |r| {
        let ((x, w), a, b) = (matrices(r), r.pick(BYTES), r.pick(BYTES));
        let case = op("MatMulInteger").of(bytes(r, a, &x)).of(bytes(r, b, &w));
        match r.size(0, 2) {
            0 => case,
            1 => case.of(zero(r, a, &[])).of(zero(r, b, &[])),
            _ => case.of(zero(r, a, &[])).of(zero(r, b, &[w[1]])),
        }
    };
    "QLinearConv" => |r| {
        let (case, x, w) = convolution(r, op("QLinearConv"));
        let (a, b, parts) = (r.pick(BYTES), r.pick(BYTES), if r.chance(50) { vec![w[0]] } else { vec![] });
        let case = scaled(case, r, a, &x).of(bytes(r, b, &w)).of(scales(r, &parts)).of(r.tensor(b, &parts, Fill::Within(0, 3)));
        let case = case.of(Tensor::from_vec([], vec![64.0f32])).of(zero(r, a, &[]));
        if r.chance(50) { case.of(r.tensor(DType::I32, &[w[0]], Fill::Within(-1000, 1000))) } else { case }
    };
    "QLinearMatMul" => |r| {
        let ((x, w), a, b) = (matrices(r), r.pick(BYTES), r.pick(BYTES));
        let case = scaled(scaled(op("QLinearMatMul"), r, a, &x), r, b, &w);
        case.of(Tensor::from_vec([], vec![64.0f32])).of(zero(r, a, &[]))
    };
    "QuantizeLinear" => |r| quantize(r);
    "QLinearAdd" => |r| elementwise("QLinearAdd", r);
    "QLinearMul" => |r| elementwise("QLinearMul", r);
    "QLinearWhere" => |r| {
        let (dtype, shapes) = (r.pick(BYTES), r.broadcast(3));
        let n: usize = shapes[0].iter().product();
        let flags: Vec<bool> = (0..n).map(|_| r.chance(50)).collect();
        let case = op("QLinearWhere").domain(MS).of(Tensor::from_bools(shapes[0].clone(), &flags));
        let case = scaled(scaled(case, r, dtype, &shapes[1]), r, dtype, &shapes[2]);
        case.of(scale(r)).of(zero(r, dtype, &[]))
    };
    "QLinearSigmoid" => |r| activation("QLinearSigmoid", r);
    "QLinearLeakyRelu" => |r| activation("QLinearLeakyRelu", r).float("alpha", 0.25);
    "QLinearConcat" => |r| {
        let (dtype, mut dims) = (r.pick(BYTES), r.dims(1..=3));
        let axis = r.axis(dims.len());
        let at = axis.rem_euclid(dims.len() as i64) as usize;
        let mut case = op("QLinearConcat").domain(MS).int("axis", axis).of(scale(r)).of(zero(r, dtype, &[]));
        for _ in 0..r.size(1, 3) {
            dims[at] = r.dim();
            case = scaled(case, r, dtype, &dims);
        }
        case
    };
    "QLinearSoftmax" => |r| {
        let (dtype, dims) = (r.pick(BYTES), r.dims(1..=3));
        let case = op("QLinearSoftmax").domain(MS).int("axis", r.axis(dims.len())).int("opset", 13);
        scaled(case, r, dtype, &dims).of(Tensor::from_vec([], vec![1.0f32 / 256.0])).of(zero(r, dtype, &[]))
    };
    "QLinearAveragePool" => |r| {
        let (dtype, dims) = (r.pick(BYTES), [r.size(1, 2), r.size(1, 5), r.size(3, 6), r.size(3, 6)]);
        let case = op("QLinearAveragePool").domain(MS).ints("kernel_shape", &[2, 2]).ints("strides", &[r.within(1, 2), r.within(1, 2)]);
        scaled(case, r, dtype, &dims).of(scale(r)).of(zero(r, dtype, &[]))
    };
    "QLinearGlobalAveragePool" => |r| {
        let (dtype, dims) = (r.pick(BYTES), [r.size(1, 2), r.size(1, 5), r.pick(&[1, 2, 4]), r.pick(&[1, 2, 4])]);
        let case = op("QLinearGlobalAveragePool").domain(MS).int("channels_last", 0);
        scaled(case, r, dtype, &dims).of(scale(r)).of(zero(r, dtype, &[]))
    };
    "BipolarQuant" => |r| {
        let dims = r.dims(0..=4);
        op("BipolarQuant").domain("qonnx.custom_op.general").of(r.tensor(DType::F32, &dims, Fill::Any)).of(scale(r))
    };
    "Trunc" => |r| {
        let (dims, mode) = (r.dims(0..=4), r.pick(&["ROUND", "CEIL", "FLOOR"]));
        let number = |v: f32| Tensor::from_vec([], vec![v]);
        let case = op("Trunc").domain("qonnx.custom_op.general").str("rounding_mode", mode);
        let case = case.of(r.tensor(DType::F32, &dims, Fill::Within(-100, 100))).of(scale(r)).of(number(0.0));
        case.of(number(8.0)).of(number(r.within(2, 8) as f32)).ulps(2.0)
    };
    "Quant" => |r| {
        let (dims, narrow, signed) = (r.dims(0..=4), r.within(0, 1), r.within(0, 1));
        let mode = r.pick(&["ROUND", "CEIL", "FLOOR", "ROUND_TO_ZERO"]);
        let case = op("Quant").domain("qonnx.custom_op.general").int("signed", signed).int("narrow", narrow).str("rounding_mode", mode);
        let case = case.of(r.tensor(DType::F32, &dims, Fill::Within(-40, 40))).of(scale(r));
        case.of(Tensor::from_vec([], vec![0f32])).of(Tensor::from_vec([], vec![r.within(2, 8) as f32]))
    };
};

#[test]
fn quant() {
    family("quant", QUANT);
}
