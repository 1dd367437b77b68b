//! Normalisations, and random numbers: those are numbered by position, so that interpreter and compiled code draw the same.

use crate::elementwise::rows;
use crate::kit::*;
use infc_ir::{DType, Tensor};

/// Batch, channels and space.
fn image(r: &mut Random) -> Vec<usize> {
    let space = r.dims(1..=3).into_iter().map(|d| d.max(1));
    let space: Vec<usize> = space.collect();
    [r.size(1, 2), r.size(1, 17)].into_iter().chain(space).collect()
}

/// Dims from an axis on.
fn tail(dims: &[usize], axis: i64) -> &[usize] {
    &dims[axis.rem_euclid(dims.len() as i64) as usize..]
}

fn filled(r: &mut Random, ranks: std::ops::RangeInclusive<usize>) -> Vec<usize> {
    r.dims(ranks).into_iter().map(|d| d.max(1)).collect()
}

const WIDE: Fill = Fill::Real(-4.0, 4.0);
/// Deviations and scales.
const POSITIVE: Fill = Fill::Real(0.3, 2.0);

pub const NORM: &[Row] = rows! {
    "BatchNormalization" => |r| {
        let (dims, dtype, training) = (image(r), r.pick(&[DType::F32, DType::F32, DType::F64, DType::F16]), r.chance(30));
        let c = [dims[1]];
        let case = op("BatchNormalization").float("epsilon", 1e-3).int("training_mode", training.into());
        let case = case.results(if training { r.size(1, 3) } else { 1 }).of(r.tensor(dtype, &dims, WIDE));
        let case = case.of(r.tensor(dtype, &c, WIDE)).of(r.tensor(dtype, &c, WIDE)).of(r.tensor(dtype, &c, WIDE));
        case.of(r.tensor(dtype, &c, POSITIVE)).scaled(64.0)
    };
    "GroupNormalization" => |r| {
        let (groups, per) = (r.size(1, 3), r.size(1, 4));
        let mut dims = image(r);
        dims[1] = groups * per;
        let case = op("GroupNormalization").int("num_groups", groups as i64).float("epsilon", 1e-3).of(r.tensor(DType::F32, &dims, WIDE));
        case.of(r.tensor(DType::F32, &[dims[1]], WIDE)).of(r.tensor(DType::F32, &[dims[1]], WIDE)).scaled(64.0)
    };
    "InstanceNormalization" => |r| {
        let dims = image(r);
        let case = op("InstanceNormalization").float("epsilon", 1e-3).of(r.tensor(DType::F32, &dims, WIDE));
        case.of(r.tensor(DType::F32, &[dims[1]], WIDE)).of(r.tensor(DType::F32, &[dims[1]], WIDE)).scaled(64.0)
    };
    "LRN" => |r| {
        let (dims, size) = (image(r), r.within(1, 5));
        op("LRN").int("size", size).float("alpha", 0.1).float("beta", 0.75).of(r.tensor(DType::F32, &dims, WIDE)).scaled(16.0)
    };
    "LayerNormalization" => |r| {
        let (dims, dtype) = (filled(r, 1..=4), r.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16]));
        let axis = r.axis(dims.len());
        let case = op("LayerNormalization").int("axis", axis).float("epsilon", 1e-2).results(r.size(1, 3)).of(r.tensor(dtype, &dims, WIDE));
        let case = case.of(r.tensor(dtype, tail(&dims, axis), WIDE));
        (if r.chance(50) { case.of(r.tensor(dtype, tail(&dims, axis), WIDE)) } else { case }).scaled(64.0)
    };
    "LpNormalization" => |r| {
        let dims = filled(r, 1..=4);
        op("LpNormalization").int("axis", r.axis(dims.len())).int("p", r.within(1, 2)).of(r.tensor(DType::F32, &dims, SMALL)).scaled(8.0)
    };
    "MeanVarianceNormalization" => |r| {
        let dims = [r.size(1, 2), r.size(1, 4), r.size(2, 5), r.size(2, 20)];
        let axes = r.pick(&[vec![0, 2, 3], vec![2, 3], vec![-1], vec![0, 1, 2, 3]]);
        op("MeanVarianceNormalization").ints("axes", &axes).of(r.tensor(DType::F32, &dims, WIDE)).scaled(1024.0)
    };
    "RMSNormalization" => |r| {
        let (dims, dtype) = (filled(r, 1..=4), r.pick(&[DType::F32, DType::F16, DType::BF16]));
        let axis = r.axis(dims.len());
        let case = op("RMSNormalization").int("axis", axis).float("epsilon", 1e-2).of(r.tensor(dtype, &dims, WIDE));
        case.of(r.tensor(dtype, tail(&dims, axis), WIDE)).scaled(32.0)
    };
};

#[test]
fn norm() {
    family("norm", NORM);
}

/// Numbers are drawn in f32, whatever they are stored in.
const DRAWN: &[DType] = &[DType::F32, DType::F16, DType::BF16];

fn shaped(name: &'static str, r: &mut Random) -> Case {
    let (dims, dtype) = (r.dims(0..=3), r.pick(DRAWN));
    let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
    op(name).ints("shape", &dims).int("dtype", dtype.onnx().into()).float("seed", r.within(0, 99) as f32).scaled(8.0)
}

fn like(name: &'static str, r: &mut Random) -> Case {
    let (dims, dtype, own) = (r.dims(0..=3), r.pick(DRAWN), r.pick(DRAWN));
    let case = op(name).float("seed", r.within(0, 99) as f32).of(r.tensor(own, &dims, SMALL)).scaled(8.0);
    if r.chance(50) { case.int("dtype", dtype.onnx().into()) } else { case }
}

pub const RANDOM: &[Row] = rows! {
    "Bernoulli" => |r| {
        let (dims, to) = (r.dims(0..=3), r.number());
        let case = op("Bernoulli").float("seed", 3.0).of(r.tensor(DType::F32, &dims, Fill::Real(0.0, 1.0)));
        if r.chance(50) { case.int("dtype", to.onnx().into()) } else { case }
    };
    "Dropout" => |r| {
        let (dims, dtype, results) = (r.dims(0..=3), r.float(), r.size(1, 2));
        let case = op("Dropout").int("seed", 5).results(results).of(r.tensor(dtype, &dims, SMALL)).ulps(2.0);
        if r.chance(30) {
            return case;
        }
        let case = case.of(Tensor::from_vec([], vec![r.pick(&[0.0f32, 0.25, 0.5, 0.9])]));
        if r.chance(60) { case.of(Tensor::from_bools([], &[r.chance(50)])) } else { case }
    };
    "Multinomial" => |r| {
        let (n, classes, to) = (r.size(1, 3), r.size(1, 5), r.pick(&[DType::I32, DType::I64]));
        let case = op("Multinomial").int("sample_size", r.within(1, 7)).int("dtype", to.onnx().into()).float("seed", 7.0);
        case.of(r.tensor(DType::F32, &[n, classes], Fill::Real(-2.0, 2.0)))
    };
    "RandomNormal" => |r| shaped("RandomNormal", r);
    "RandomNormalLike" => |r| like("RandomNormalLike", r);
    "RandomUniform" => |r| shaped("RandomUniform", r);
    "RandomUniformLike" => |r| like("RandomUniformLike", r);
};

#[test]
fn random() {
    family("random", RANDOM);
}
