//! Reductions, running reductions, softmax; contractions; losses and transforms.

use crate::elementwise::rows;
use crate::kit::*;
use infc_ir::{DType, Tensor};

/// A reduction over axes: absent, empty or some; integers are small so that sums are exact.
fn over_axes(name: &'static str, r: &mut Random, fill: Fill, floats: bool) -> Case {
    let dtype = if floats || r.chance(60) { r.float() } else { r.pick(&[DType::I32, DType::I64, DType::U32, DType::U64]) };
    let dims = r.dims(0..=4);
    let case =
        op(name).int("keepdims", r.within(0, 1)).int("noop_with_empty_axes", r.within(0, 1)).of(r.tensor(dtype, &dims, fill));
    match r.size(0, 4) {
        0 => case,
        _ => {
            let axes = r.some_axes(dims.len());
            case.known(Tensor::from_ints(&axes))
        }
    }
}

fn arg(name: &'static str, r: &mut Random) -> Case {
    let (dtype, mut dims) = (r.number(), r.dims(1..=4));
    let axis = r.axis(dims.len());
    let at = axis.rem_euclid(dims.len() as i64) as usize;
    dims[at] = dims[at].max(1); // of nothing there is no largest
    let fill = if r.chance(50) { Fill::Any } else { SMALL };
    let case = op(name).int("axis", axis).int("keepdims", r.within(0, 1)).int("select_last_index", r.within(0, 1));
    case.of(r.tensor(dtype, &dims, fill))
}

fn running(name: &'static str, r: &mut Random, fill: Fill) -> Case {
    let dtype = r.pick(&[DType::F32, DType::F64, DType::I32, DType::I64]);
    let dims = r.dims(1..=4);
    let axis = Tensor::from_vec([], vec![r.axis(dims.len())]);
    let case = op(name).int("exclusive", r.within(0, 1)).int("reverse", r.within(0, 1));
    case.of(r.tensor(dtype, &dims, fill)).known(axis)
}

fn soft(name: &'static str, r: &mut Random) -> Case {
    let (dtype, dims) = (r.float(), r.dims(1..=4));
    let fill = if r.chance(25) { Fill::Any } else { Fill::Real(-20.0, 20.0) };
    op(name).int("axis", r.axis(dims.len())).of(r.tensor(dtype, &dims, fill)).scaled(16.0)
}

pub const REDUCE: &[Row] = rows! {
    "ArgMax" => |r| arg("ArgMax", r);
    "ArgMin" => |r| arg("ArgMin", r);
    "CumProd" => |r| running("CumProd", r, Fill::Within(-1, 1));
    "CumSum" => |r| running("CumSum", r, SMALL);
    "Hardmax" => |r| { let c = soft("Hardmax", r); c.agree(Agree::Exact) };
    "LogSoftmax" => |r| soft("LogSoftmax", r);
    "ReduceL1" => |r| over_axes("ReduceL1", r, SMALL, false);
    "ReduceL2" => |r| over_axes("ReduceL2", r, SMALL, true).ulps(2.0);
    "ReduceLogSum" => |r| over_axes("ReduceLogSum", r, Fill::Within(0, 4), true).ulps(4.0);
    "ReduceLogSumExp" => |r| over_axes("ReduceLogSumExp", r, Fill::Real(-30.0, 30.0), true).scaled(16.0);
    "ReduceMax" => |r| over_axes("ReduceMax", r, Fill::Any, false);
    "ReduceMean" => |r| over_axes("ReduceMean", r, SMALL, true).ulps(2.0);
    "ReduceMin" => |r| over_axes("ReduceMin", r, Fill::Any, false);
    "ReduceProd" => |r| over_axes("ReduceProd", r, Fill::Within(-1, 1), false);
    "ReduceSum" => |r| over_axes("ReduceSum", r, SMALL, false);
    "ReduceSumSquare" => |r| over_axes("ReduceSumSquare", r, SMALL, false);
    "Softmax" => |r| soft("Softmax", r);
};

#[test]
fn reduce() {
    family("reduce", REDUCE);
}

// ---- contractions ----

fn matmul(r: &mut Random) -> Case {
    let dtype = if r.chance(70) { r.float() } else { r.pick(&[DType::I32, DType::I64, DType::U32, DType::U64]) };
    let (m, n, k) = (r.dim(), r.size(1, 40), if r.chance(30) { r.size(10, 70) } else { r.dim() });
    let batch = r.broadcast(2);
    let (mut a, mut b): (Vec<usize>, Vec<usize>) = (batch[0].iter().take(2).copied().collect(), vec![]);
    // Batch dims broadcast: at most two, the same or 1.
    for &d in &a {
        b.push(if r.chance(30) { 1 } else { d });
    }
    b.drain(..r.size(0, b.len()));
    match r.size(0, 5) {
        0 => a = vec![k],
        _ => a.extend([m, k]),
    }
    match r.size(0, 5) {
        0 => b = vec![k],
        _ => b.extend([k, n]),
    }
    op("MatMul").of(r.tensor(dtype, &a, SMALL)).of(r.tensor(dtype, &b, SMALL))
}

fn gemm(r: &mut Random) -> Case {
    let dtype = r.float();
    let (m, n, k) = (r.dim(), r.size(1, 40), r.size(1, 40));
    let (ta, tb) = (r.within(0, 1), r.within(0, 1));
    let a = if ta == 1 { [k, m] } else { [m, k] };
    let b = if tb == 1 { [n, k] } else { [k, n] };
    let case = op("Gemm")
        .int("transA", ta)
        .int("transB", tb)
        .float("alpha", r.pick(&[1.0, 2.0, 0.5]))
        .float("beta", r.pick(&[1.0, 0.0, -2.0]));
    let case = case.of(r.tensor(dtype, &a, SMALL)).of(r.tensor(dtype, &b, SMALL));
    if r.chance(30) {
        return case;
    }
    let c = r.broadcast_to(&[m, n]);
    case.of(r.tensor(dtype, &c, SMALL))
}

/// Equations with the dims of their operands.
const EQUATIONS: &[(&str, &[&[usize]])] = &[
    ("ij,jk->ik", &[&[3, 17], &[17, 5]]),
    ("bij,bjk->bik", &[&[2, 3, 4], &[2, 4, 5]]),
    ("i,i->", &[&[9], &[9]]),
    ("ii->i", &[&[4, 4]]),
    ("ij->ji", &[&[3, 4]]),
    ("...ij,...jk->...ik", &[&[2, 3, 4], &[2, 4, 5]]),
    ("bhqd,bhkd->bhqk", &[&[1, 2, 3, 8], &[1, 2, 5, 8]]),
    ("a,b,c->abc", &[&[2], &[3], &[4]]),
    ("ij", &[&[3, 0]]),
];

fn einsum(r: &mut Random) -> Case {
    let (equation, sizes) = r.pick(EQUATIONS);
    let dtype = r.pick(&[DType::F32, DType::F64, DType::I32]);
    sizes.iter().fold(op("Einsum").str("equation", equation), |case, dims| case.of(r.tensor(dtype, dims, SMALL)))
}

fn attention(r: &mut Random) -> Case {
    let dtype = r.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16]);
    let (b, kv, group, q, k, d) =
        (r.size(1, 2), r.size(1, 2), r.size(1, 2), r.size(1, 6), r.size(1, 9), r.pick(&[2usize, 4, 8, 16]));
    let v = r.pick(&[d, d, 3]);
    let causal = r.within(0, 1);
    let case = op("Attention").int("is_causal", causal).float("softcap", r.pick(&[0.0, 0.0, 2.0]));
    let unit = Fill::Real(-1.0, 1.0);
    let case = case.of(r.tensor(dtype, &[b, kv * group, q, d], unit)).of(r.tensor(dtype, &[b, kv, k, d], unit));
    let case = case.of(r.tensor(dtype, &[b, kv, k, v], unit)).scaled(32.0);
    match r.size(0, 2) {
        0 => case,
        1 => {
            let mask = r.broadcast_to(&[b, kv * group, q, k]);
            let mask = if mask.len() < 2 { vec![q, k] } else { mask };
            case.of(r.tensor(dtype, &mask, unit))
        }
        _ => case.of(r.tensor(DType::Bool, &[q, k], Fill::Within(1, 1))),
    }
}

fn linear_attention(r: &mut Random) -> Case {
    let (b, t, h, d) = (r.size(1, 2), r.size(1, 5), r.size(1, 2), r.pick(&[2usize, 4]));
    let rule = r.pick(&["linear", "gated", "delta", "gated_delta"]);
    let unit = Fill::Real(-0.5, 0.5);
    let mut case =
        op("LinearAttention").int("q_num_heads", h as i64).int("kv_num_heads", h as i64).str("update_rule", rule).results(2);
    for _ in 0..3 {
        case = case.of(r.tensor(DType::F32, &[b, t, h * d], unit));
    }
    case = case.of(r.tensor(DType::F32, &[b, h, d, d], unit));
    case = if rule.starts_with("gated") { case.of(r.tensor(DType::F32, &[b, t, h], Fill::Real(-1.0, 0.0))) } else { case.none() };
    case = if rule.ends_with("delta") { case.of(r.tensor(DType::F32, &[b, t, h], Fill::Real(0.0, 1.0))) } else { case };
    case.scaled(32.0)
}

fn rotary(r: &mut Random) -> Case {
    let (b, h, t, d) = (r.size(1, 2), r.size(1, 3), r.size(1, 5), r.pick(&[2usize, 4, 8]));
    let dtype = r.pick(&[DType::F32, DType::F16]);
    let unit = Fill::Real(-1.0, 1.0);
    let case = op("RotaryEmbedding").int("interleaved", r.within(0, 1)).scaled(8.0);
    let (case, x) = if r.chance(50) { (case, vec![b, h, t, d]) } else { (case.int("num_heads", h as i64), vec![b, t, h * d]) };
    let case = case.of(r.tensor(dtype, &x, unit));
    if r.chance(50) {
        return case.of(r.tensor(dtype, &[b, t, d / 2], unit)).of(r.tensor(dtype, &[b, t, d / 2], unit));
    }
    case.of(r.tensor(dtype, &[7, d / 2], unit)).of(r.tensor(dtype, &[7, d / 2], unit)).of(r.tensor(
        DType::I64,
        &[b, t],
        Fill::Within(0, 6),
    ))
}

pub const CONTRACT: &[Row] = rows! {
    "Attention" => |r| attention(r);
    "Det" => |r| {
        let (batch, n, dtype) = (r.dims(0..=2), r.size(1, 4), r.pick(&[DType::F32, DType::F64]));
        let dims: Vec<usize> = batch.into_iter().chain([n, n]).collect();
        op("Det").of(r.tensor(dtype, &dims, SMALL)).scaled(64.0)
    };
    "Einsum" => |r| einsum(r);
    "Gemm" => |r| gemm(r);
    "LinearAttention" => |r| linear_attention(r);
    "MatMul" => |r| matmul(r);
    "RotaryEmbedding" => |r| rotary(r);
};

#[test]
fn contract() {
    family("contract", CONTRACT);
}

// ---- losses, transforms ----

fn loss(name: &'static str, r: &mut Random) -> Case {
    let (n, c) = (r.size(1, 4), r.size(1, 5));
    let space = r.dims(0..=2).into_iter().map(|d| d.max(1));
    let space: Vec<usize> = space.collect();
    let scores: Vec<usize> = [n, c].into_iter().chain(space.clone()).collect();
    let target: Vec<usize> = [n].into_iter().chain(space).collect();
    let index = r.pick(&[DType::I32, DType::I64]);
    let case = op(name).str("reduction", r.pick(&["none", "mean", "sum"])).scaled(16.0);
    let case = if r.chance(40) { case.int("ignore_index", r.within(0, c as i64 - 1)) } else { case };
    let case =
        case.of(r.tensor(DType::F32, &scores, Fill::Real(-3.0, 3.0))).of(r.tensor(index, &target, Fill::Within(0, c as i64 - 1)));
    if r.chance(50) { case.of(r.tensor(DType::F32, &[c], Fill::Real(0.1, 2.0))) } else { case }
}

pub const LOSS: &[Row] = rows! {
    "NegativeLogLikelihoodLoss" => |r| loss("NegativeLogLikelihoodLoss", r);
    "SoftmaxCrossEntropyLoss" => |r| { let n = r.size(1, 2); loss("SoftmaxCrossEntropyLoss", r).results(n) };
};

#[test]
fn losses() {
    family("loss", LOSS);
}

fn window(name: &'static str, r: &mut Random) -> Case {
    let dtype = r.pick(&[DType::F32, DType::F64, DType::F16, DType::I32]);
    let case = op(name).int("periodic", r.within(0, 1)).int("output_datatype", dtype.onnx().into());
    let n = Tensor::from_vec([], vec![r.within(1, 20)]);
    (if r.chance(50) { case.of(n) } else { case.known(n) }).scaled(8.0)
}

pub const SIGNAL: &[Row] = rows! {
    "BlackmanWindow" => |r| window("BlackmanWindow", r);
    "DFT" => |r| {
        let (parts, inverse) = (r.size(1, 2), r.within(0, 1));
        let mut dims = r.dims(1..=3);
        dims.iter_mut().for_each(|d| *d = (*d).clamp(1, 12));
        let axis = r.within(0, dims.len() as i64 - 1);
        let axis = if r.chance(50) { axis } else { axis - dims.len() as i64 - 1 };
        dims.push(parts);
        let onesided = if parts == 1 && inverse == 0 { r.within(0, 1) } else { 0 };
        let dtype = r.pick(&[DType::F32, DType::F64]);
        let case = op("DFT").int("inverse", inverse).int("onesided", onesided).of(r.tensor(dtype, &dims, SMALL));
        let case = if r.chance(40) { case.known(Tensor::from_vec([], vec![r.within(1, 12)])) } else { case.none() };
        case.known(Tensor::from_vec([], vec![axis])).scaled(64.0)
    };
    "HammingWindow" => |r| window("HammingWindow", r);
    "HannWindow" => |r| window("HannWindow", r);
    "MelWeightMatrix" => |r| {
        let number = |v: i64| Tensor::from_vec([], vec![v]);
        let real = |v: f32| Tensor::from_vec([], vec![v]);
        let case = op("MelWeightMatrix").known(number(r.within(1, 9))).known(number(r.within(8, 64))).known(number(8192));
        case.known(real(r.within(0, 100) as f32)).known(real(r.within(2000, 4096) as f32)).scaled(8.0)
    };
    "STFT" => |r| {
        let (n, length, frame, step) = (r.size(1, 2), r.size(16, 40), r.size(4, 12), r.within(1, 6));
        let case = op("STFT").int("onesided", r.within(0, 1)).of(r.tensor(DType::F32, &[n, length, 1], SMALL));
        let case = case.known(Tensor::from_vec([], vec![step]));
        match r.size(0, 1) {
            0 => case.none().known(Tensor::from_vec([], vec![frame as i64])).scaled(64.0),
            _ => case.of(r.tensor(DType::F32, &[frame], SMALL)).scaled(64.0),
        }
    };
};

#[test]
fn signal() {
    family("signal", SIGNAL);
}
