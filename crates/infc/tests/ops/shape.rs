//! Operators that move elements, and sizes.

use crate::elementwise::rows;
use crate::kit::*;
use infc_ir::op::Attr;
use infc_ir::{DType, Tensor};

fn number(v: i64) -> Tensor {
    Tensor::from_vec([], vec![v])
}

fn ints(v: &[usize]) -> Tensor {
    Tensor::from_ints(&v.iter().map(|&d| d as i64).collect::<Vec<_>>())
}

/// A tensor of anything.
fn data(r: &mut Random, dims: &[usize]) -> Tensor {
    let dtype = r.plain();
    r.tensor(dtype, dims, Fill::Any)
}

fn concat(r: &mut Random) -> Case {
    let (dims, dtype) = (r.dims(1..=4), r.plain());
    let axis = r.axis(dims.len());
    let at = axis.rem_euclid(dims.len() as i64) as usize;
    (0..r.size(1, 4)).fold(op("Concat").int("axis", axis), |case, _| {
        let mut dims = dims.clone();
        dims[at] = r.dim();
        case.of(r.tensor(dtype, &dims, Fill::Any))
    })
}

fn pad(r: &mut Random) -> Case {
    let (mode, dtype) = (r.pick(&["constant", "edge", "reflect", "wrap"]), r.number());
    let dims: Vec<usize> = r.dims(1..=4).into_iter().map(|d| if mode == "constant" { d } else { d.max(2) }).collect();
    let axes = if r.chance(40) { Some(r.some_axes(dims.len())) } else { None };
    let padded: Vec<usize> = match &axes {
        Some(axes) => axes.iter().map(|a| a.rem_euclid(dims.len() as i64) as usize).collect(),
        None => (0..dims.len()).collect(),
    };
    let most = |i: usize| if mode == "constant" { 3 } else { dims[padded[i]] as i64 - 1 };
    let least = |i: usize| if mode == "constant" && dims[padded[i]] >= 4 { -2 } else { 0 };
    let pads: Vec<i64> =
        (0..2 * padded.len()).map(|i| r.within(least(i % padded.len()), most(i % padded.len()).min(4))).collect();
    let case = op("Pad").str("mode", mode).of(r.tensor(dtype, &dims, Fill::Any)).known(Tensor::from_ints(&pads));
    let value = r.chance(50).then(|| r.tensor(dtype, &[], Fill::Any));
    let case = match value {
        Some(v) => case.of(v),
        None if axes.is_some() => case.none(),
        None => case,
    };
    match axes {
        Some(axes) => case.known(Tensor::from_ints(&axes)),
        None => case,
    }
}

/// A shape with the same number of elements; one dim may be -1, those in place may be 0.
fn reshape(r: &mut Random) -> Case {
    let dims = r.dims(0..=4);
    let total: usize = dims.iter().product();
    let mut target: Vec<i64> = match r.size(0, 3) {
        0 => dims.iter().rev().map(|&d| d as i64).collect(),
        1 => vec![total as i64],
        2 => vec![1, total as i64, 1],
        _ => {
            let cut = r.size(0, dims.len());
            vec![dims[..cut].iter().product::<usize>() as i64, dims[cut..].iter().product::<usize>() as i64]
        }
    };
    let mut zero = 0;
    if total > 0 && !target.is_empty() && r.chance(40) {
        let at = r.size(0, target.len() - 1);
        target[at] = -1;
    } else if total == 0 {
        zero = 1;
    }
    let x = data(r, &dims);
    let case = op("Reshape").int("allowzero", zero).of(x);
    let shape = Tensor::from_ints(&target);
    if r.chance(70) { case.known(shape) } else { case.list(shape) }
}

fn slice(r: &mut Random) -> Case {
    let dims = r.dims(1..=4);
    let axes = r.some_axes(dims.len());
    let n = axes.len();
    let mut bounds =
        |_: &i64| if r.chance(15) { r.pick(&[i64::MAX, i64::MIN, i64::MAX - 1, -1000, 1000]) } else { r.within(-7, 7) };
    let (starts, ends): (Vec<i64>, Vec<i64>) = axes.iter().map(|a| (bounds(a), bounds(a))).unzip();
    let steps: Vec<i64> = (0..n).map(|_| r.pick(&[1, 1, 1, 2, 3, -1, -2, i64::MAX, -9])).collect();
    let narrow = r.chance(30) && [&starts, &ends, &steps].iter().all(|v| v.iter().all(|&x| i32::try_from(x).is_ok()));
    let vector = |v: &[i64]| {
        if narrow { Tensor::from_vec([n], v.iter().map(|&x| x as i32).collect::<Vec<_>>()) } else { Tensor::from_ints(v) }
    };
    let x = data(r, &dims);
    let case = op("Slice").of(x);
    let runtime = r.chance(30); // bounds may be data
    let bound = |case: Case, t: Tensor| if runtime { case.list(t) } else { case.known(t) };
    bound(bound(case, vector(&starts)), vector(&ends)).known(vector(&axes)).known(vector(&steps))
}

fn split(r: &mut Random) -> Case {
    let mut dims = r.dims(1..=4);
    let axis = r.axis(dims.len());
    let at = axis.rem_euclid(dims.len() as i64) as usize;
    let count = r.size(1, 4);
    let case = op("Split").int("axis", axis).results(count);
    if r.chance(50) {
        // The last piece is what is left.
        dims[at] = if r.chance(50) { count * r.size(1, 3) } else { count * 2 + count.saturating_sub(1).min(1) };
        if dims[at].div_ceil(count) * (count - 1) >= dims[at] {
            dims[at] = 2 * count;
        }
        let x = data(r, &dims);
        return case.int("num_outputs", count as i64).of(x);
    }
    let pieces: Vec<usize> = (0..count).map(|_| r.size(0, 3)).collect();
    dims[at] = pieces.iter().sum();
    let x = data(r, &dims);
    case.of(x).known(ints(&pieces))
}

fn blocks(name: &'static str, r: &mut Random) -> Case {
    let (b, mode) = (r.size(1, 3), r.pick(&["DCR", "CRD"]));
    let dims = if name == "DepthToSpace" {
        [r.size(1, 2), b * b * r.size(1, 3), r.size(1, 3), r.size(1, 3)]
    } else {
        [r.size(1, 2), r.size(1, 3), b * r.size(1, 3), b * r.size(1, 3)]
    };
    let x = data(r, &dims);
    op(name).int("blocksize", b as i64).str("mode", mode).of(x)
}

fn squeeze(r: &mut Random) -> Case {
    let mut dims = r.dims(0..=4);
    let axes = r.some_axes(dims.len());
    axes.iter().for_each(|a| {
        let n = dims.len() as i64;
        dims[a.rem_euclid(n) as usize] = 1;
    });
    let x = data(r, &dims);
    // Without axes, dims that turn out to be 1 at run time would change the rank.
    op("Squeeze").of(x).known(Tensor::from_ints(&axes))
}

fn unsqueeze(r: &mut Random) -> Case {
    let dims = r.dims(0..=3);
    let rank = dims.len() + r.size(0, 2);
    let mut axes: Vec<i64> = (0..rank as i64).collect();
    r.shuffle(&mut axes);
    axes.truncate(rank - dims.len());
    axes.iter_mut().for_each(|a| {
        if r.chance(50) {
            *a -= rank as i64
        }
    });
    let x = data(r, &dims);
    op("Unsqueeze").of(x).known(Tensor::from_ints(&axes))
}

fn range(r: &mut Random) -> Case {
    let dtype = r.pick(&[DType::F32, DType::F64, DType::I32, DType::I64, DType::I16]);
    let delta = r.pick(&[-3i64, -2, -1, 1, 2, 5]);
    let values = [r.within(-9, 9), r.within(-9, 9), delta];
    values.iter().fold(op("Range"), |case, &v| case.of(r.tensor(dtype, &[], Fill::Within(v, v))))
}

pub const SHAPE: &[Row] = rows! {
    "CenterCropPad" => |r| {
        let dims = r.dims(1..=4);
        let axes = r.some_axes(dims.len());
        let target: Vec<usize> = axes.iter().map(|_| r.size(0, 8)).collect();
        let x = data(r, &dims);
        if axes.is_empty() { op("CenterCropPad").of(x).known(ints(&dims)) } else { op("CenterCropPad").ints("axes", &axes).of(x).known(ints(&target)) }
    };
    "Concat" => |r| concat(r);
    "ConstantOfShape" => |r| {
        let (dims, d) = (r.dims(0..=3), r.number());
        let value = r.tensor(d, &[1], Fill::Any);
        let case = op("ConstantOfShape").set("value", Attr::Tensor(value));
        if r.chance(50) { case.known(ints(&dims)) } else { case.list(ints(&dims)) }
    };
    "DepthToSpace" => |r| blocks("DepthToSpace", r);
    "Expand" => |r| {
        let full = r.dims(0..=4);
        let (from, to) = (r.broadcast_to(&full), r.broadcast_to(&full));
        let x = data(r, &from);
        let case = op("Expand").of(x);
        if r.chance(60) { case.known(ints(&to)) } else { case.list(ints(&to)) }
    };
    "EyeLike" => |r| {
        let (d, to, k) = (r.number(), r.number(), r.within(-4, 4));
        let (rows, columns) = (r.dim(), r.dim());
        op("EyeLike").int("k", k).int("dtype", to.onnx().into()).of(r.tensor(d, &[rows, columns], Fill::Any))
    };
    "Flatten" => |r| {
        let dims = r.dims(0..=4);
        let axis = r.within(-(dims.len() as i64), dims.len() as i64);
        let x = data(r, &dims);
        op("Flatten").int("axis", axis).of(x)
    };
    "Pad" => |r| pad(r);
    "Range" => |r| range(r);
    "Reshape" => |r| reshape(r);
    "ReverseSequence" => |r| {
        let (batch, time) = (r.size(1, 4), r.size(1, 6));
        let first = r.within(0, 1);
        let lead = if first == 0 { [batch, time] } else { [time, batch] };
        let dims: Vec<usize> = lead.into_iter().chain(r.dims(0..=2)).collect();
        // Now and then a length that the sequence has not.
        let beyond = i64::from(r.chance(10));
        let lens = r.tensor(DType::I64, &[batch], Fill::Within(1, time as i64 + beyond));
        let x = data(r, &dims);
        op("ReverseSequence").int("batch_axis", first).int("time_axis", 1 - first).of(x).of(lens)
    };
    "Shape" => |r| {
        let dims = r.dims(0..=4);
        let case = op("Shape").int("start", r.within(-5, 5));
        let x = data(r, &dims);
        if r.chance(50) { case.int("end", r.within(-5, 5)).of(x) } else { case.of(x) }
    };
    "Size" => |r| { let dims = r.dims(0..=4); let x = data(r, &dims); op("Size").of(x) };
    "Slice" => |r| slice(r);
    "SpaceToDepth" => |r| blocks("SpaceToDepth", r);
    "Split" => |r| split(r);
    "Squeeze" => |r| squeeze(r);
    "Tile" => |r| {
        let dims = r.dims(0..=4);
        let repeats: Vec<usize> = dims.iter().map(|_| r.size(0, 3)).collect();
        let x = data(r, &dims);
        let case = op("Tile").of(x);
        if r.chance(60) { case.known(ints(&repeats)) } else { case.list(ints(&repeats)) }
    };
    "Transpose" => |r| {
        let dims = r.dims(0..=5);
        let mut perm: Vec<i64> = (0..dims.len() as i64).collect();
        r.shuffle(&mut perm);
        let x = data(r, &dims);
        if r.chance(80) { op("Transpose").ints("perm", &perm).of(x) } else { op("Transpose").of(x) }
    };
    "Trilu" => |r| {
        let (dims, d) = (r.dims(2..=4), r.number());
        let case = op("Trilu").int("upper", r.within(0, 1)).of(r.tensor(d, &dims, Fill::Any));
        if r.chance(70) { case.of(number(r.within(-6, 6))) } else { case }
    };
    "Unsqueeze" => |r| unsqueeze(r);
};

#[test]
fn shape() {
    family("shape", SHAPE);
}
