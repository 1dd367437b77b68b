//! Operators that index by data, sorting and selection. Some indices lie outside: interpreter and compiled code must both say so.

use crate::elementwise::rows;
use crate::kit::*;
use infc_ir::{DType, Tensor};

/// Indices into `n` elements, from either end; now and then one of them lies outside.
fn indices(r: &mut Random, dims: &[usize], n: usize) -> Tensor {
    let n = n as i64;
    let bad = if r.chance(8) { 1 } else { 0 };
    let dtype = r.pick(&[DType::I64, DType::I32]);
    r.tensor(dtype, dims, Fill::Within(-n - bad, n - 1 + bad))
}

/// Dims without an empty one.
fn filled(r: &mut Random, ranks: std::ops::RangeInclusive<usize>) -> Vec<usize> {
    r.dims(ranks).into_iter().map(|d| d.max(1)).collect()
}

fn at(axis: i64, rank: usize) -> usize {
    axis.rem_euclid(rank as i64) as usize
}

fn gather_elements(r: &mut Random) -> Case {
    let (dims, dtype) = (filled(r, 1..=4), r.plain());
    let axis = r.axis(dims.len());
    let mut shape: Vec<usize> = dims.iter().map(|&d| r.size(0, d)).collect();
    shape[at(axis, dims.len())] = r.size(0, 4);
    let index = indices(r, &shape, dims[at(axis, dims.len())]);
    op("GatherElements").int("axis", axis).of(r.tensor(dtype, &dims, Fill::Any)).of(index)
}

/// Index tuples of `len` entries into `dims`, as a tensor `lead x len`.
fn tuples(r: &mut Random, lead: &[usize], dims: &[usize]) -> Tensor {
    let n: usize = lead.iter().product();
    let bad = r.chance(8);
    let values: Vec<i64> = (0..n)
        .flat_map(|_| dims.iter().map(|&d| r.within(-(d as i64), d as i64 - 1 + i64::from(bad))).collect::<Vec<_>>())
        .collect();
    let shape: Vec<usize> = lead.iter().copied().chain([dims.len()]).collect();
    Tensor::from_vec(shape, values)
}

fn gather_nd(r: &mut Random) -> Case {
    let (dims, dtype) = (filled(r, 1..=4), r.plain());
    let batch = r.size(0, dims.len() - 1).min(2);
    let len = r.size(1, dims.len() - batch);
    let lead: Vec<usize> = dims[..batch].iter().copied().chain(r.dims(0..=2)).collect();
    let index = tuples(r, &lead, &dims[batch..batch + len]);
    op("GatherND").int("batch_dims", batch as i64).of(r.tensor(dtype, &dims, Fill::Any)).of(index)
}

const REDUCTIONS: &[&str] = &["none", "add", "mul", "max", "min"];

/// With a reduction an element may be hit twice; without, which of two updates stays is open.
fn scatter_elements(r: &mut Random) -> Case {
    let dims = filled(r, 1..=3);
    let (reduction, axis) = (r.pick(REDUCTIONS), r.axis(dims.len()));
    let along = at(axis, dims.len());
    let mut shape: Vec<usize> = dims.iter().map(|&d| r.size(0, d)).collect();
    let dtype = r.pick(&[DType::F32, DType::F64, DType::I32, DType::I64]);
    let index = if reduction == "none" {
        // Each line of the axis gets the same indices, all different.
        let mut order: Vec<i64> = (0..dims[along] as i64).collect();
        r.shuffle(&mut order);
        let inner: usize = shape[along + 1..].iter().product();
        let n: usize = shape.iter().product();
        Tensor::from_vec(shape.clone(), (0..n).map(|i| order[i / inner.max(1) % shape[along]]).collect::<Vec<_>>())
    } else {
        shape[along] = r.size(0, 5);
        indices(r, &shape, dims[along])
    };
    let case = op("ScatterElements").int("axis", axis).str("reduction", reduction);
    case.of(r.tensor(dtype, &dims, SMALL)).of(index).of(r.tensor(dtype, &shape, SMALL))
}

fn scatter_nd(r: &mut Random) -> Case {
    let dims = filled(r, 1..=3);
    let reduction = r.pick(REDUCTIONS);
    let len = r.size(1, dims.len());
    let dtype = r.pick(&[DType::F32, DType::F64, DType::I32, DType::I64]);
    let lead = if reduction == "none" { vec![1] } else { r.dims(1..=2) };
    let index = tuples(r, &lead, &dims[..len]);
    let updates: Vec<usize> = lead.iter().chain(&dims[len..]).copied().collect();
    let case = op("ScatterND").str("reduction", reduction);
    case.of(r.tensor(dtype, &dims, SMALL)).of(index).of(r.tensor(dtype, &updates, SMALL))
}

pub const INDEX: &[Row] = rows! {
    "Gather" => |r| {
        let (dims, dtype) = (filled(r, 1..=4), r.plain());
        let axis = r.axis(dims.len());
        let shape = r.dims(0..=2);
        let index = indices(r, &shape, dims[at(axis, dims.len())]);
        op("Gather").int("axis", axis).of(r.tensor(dtype, &dims, Fill::Any)).of(index)
    };
    "GatherElements" => |r| gather_elements(r);
    "GatherND" => |r| gather_nd(r);
    "OneHot" => |r| {
        let (dims, depth) = (r.dims(0..=3), r.within(1, 6));
        let (dtype, index) = (r.number(), r.pick(&[DType::I64, DType::I32]));
        let axis = r.axis(dims.len() + 1);
        // Indices outside give rows of the off value.
        let case = op("OneHot").int("axis", axis).of(r.tensor(index, &dims, Fill::Within(-depth - 2, depth + 1)));
        case.known(Tensor::from_vec([], vec![depth])).of(r.tensor(dtype, &[2], Fill::Any))
    };
    "ScatterElements" => |r| scatter_elements(r);
    "ScatterND" => |r| scatter_nd(r);
    "TensorScatter" => |r| {
        let (b, h, length, d) = (r.size(1, 2), r.size(1, 2), r.size(3, 6), r.size(1, 3));
        let (mode, t) = (r.pick(&["linear", "circular"]), r.size(1, 3));
        let beyond = i64::from(r.chance(10));
        let most = if mode == "linear" { (length - t) as i64 + beyond } else { length as i64 - 1 };
        let case = op("TensorScatter").str("mode", mode).of(r.tensor(DType::F32, &[b, h, length, d], Fill::Any));
        let case = case.of(r.tensor(DType::F32, &[b, h, t, d], Fill::Any));
        if r.chance(70) { case.of(r.tensor(DType::I64, &[b], Fill::Within(0, most))) } else { case }
    };
};

#[test]
fn index() {
    family("index", INDEX);
}

fn unique(r: &mut Random) -> Case {
    let (dims, dtype) = (filled(r, 1..=3), r.pick(&[DType::F32, DType::I64, DType::I32, DType::F64]));
    let case = op("Unique").int("sorted", r.within(0, 1)).results(4);
    let case = if r.chance(50) { case.int("axis", r.axis(dims.len())) } else { case };
    case.of(r.tensor(dtype, &dims, Fill::Within(0, 3)))
}

fn suppression(r: &mut Random) -> Case {
    let (n, boxes, classes) = (r.size(1, 2), r.size(1, 8), r.size(1, 3));
    let corners: Vec<f32> = (0..n * boxes)
        .flat_map(|_| {
            let (y, x) = (r.within(0, 8) as f32, r.within(0, 8) as f32);
            [y, x, y + r.within(1, 5) as f32, x + r.within(1, 5) as f32]
        })
        .collect();
    let mut scores: Vec<f32> = (0..n * classes * boxes).map(|i| i as f32 / 64.0).collect();
    r.shuffle(&mut scores);
    let number = |v: f32| Tensor::from_vec([1], vec![v]);
    let case = op("NonMaxSuppression").int("center_point_box", r.within(0, 1));
    let case = case.of(Tensor::from_vec([n, boxes, 4], corners)).of(Tensor::from_vec([n, classes, boxes], scores));
    let case = case.of(Tensor::from_ints(&[r.within(0, 5)])).of(number(r.pick(&[0.0, 0.3, 0.5])));
    if r.chance(60) { case.of(number(r.pick(&[0.1, 0.4]))) } else { case }
}

pub const SORT: &[Row] = rows! {
    "Compress" => |r| {
        let (dims, dtype) = (filled(r, 1..=4), r.plain());
        let case = op("Compress");
        let (case, n) = if r.chance(60) {
            let axis = r.axis(dims.len());
            (case.int("axis", axis), dims[at(axis, dims.len())])
        } else {
            (case, dims.iter().product())
        };
        let n = r.size(0, n);
        case.of(r.tensor(dtype, &dims, Fill::Any)).of(r.tensor(DType::Bool, &[n], Fill::Any))
    };
    "NonMaxSuppression" => |r| suppression(r);
    "NonZero" => |r| {
        let (dims, dtype) = (r.dims(1..=4), r.pick(&[DType::F32, DType::I64, DType::Bool, DType::U8]));
        let fill = if dtype == DType::Bool { Fill::Any } else { Fill::Within(0, 2) };
        op("NonZero").of(r.tensor(dtype, &dims, fill))
    };
    "TopK" => |r| {
        let (dims, dtype) = (filled(r, 1..=4), r.number());
        let axis = r.axis(dims.len());
        let beyond = i64::from(r.chance(8));
        let k = Tensor::from_ints(&[r.within(0, dims[at(axis, dims.len())] as i64 + beyond)]);
        let case = op("TopK").int("axis", axis).int("largest", r.within(0, 1)).int("sorted", 1).results(2);
        let fill = if r.chance(60) { SMALL } else { Fill::Any };
        case.of(r.tensor(dtype, &dims, fill)).of(k)
    };
    "Unique" => |r| unique(r);
};

#[test]
fn sort() {
    family("sort", SORT);
}
