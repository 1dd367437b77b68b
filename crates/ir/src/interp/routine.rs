//! The obvious forms of [`Routine`]s: sorting and selection.

use super::walk::each;
use crate::dtype::DType;
use crate::fault;
use crate::fault::Fault;
use crate::op::Routine;
use crate::tensor::{Data, Tensor, count};
use std::cmp::Ordering;

/// Runs a routine; gives all its results (`outputs` of them are asked for).
pub fn run(routine: Routine, inputs: &[Option<Tensor>], outputs: usize) -> Result<Vec<Tensor>, Fault> {
    let operand = |i: usize| inputs.get(i).and_then(|t| t.as_ref()).ok_or_else(|| fault!("operand {i} is missing"));
    match routine {
        Routine::TopK { axis, largest } => top_k(operand(0)?, operand(1)?, axis, largest),
        Routine::NonZero => Ok(vec![non_zero(operand(0)?)]),
        Routine::Compress { axis } => Ok(vec![compress(operand(0)?, operand(1)?, axis)?]),
        Routine::Unique { axis, sorted } => Ok(unique(operand(0)?, axis, sorted).into_iter().take(outputs).collect()),
        Routine::NonMaxSuppression { center } => {
            let number = |i: usize| inputs.get(i).and_then(|t| t.as_ref()).filter(|t| !t.is_empty());
            let most = number(2).map_or(0, |t| t.to_ints()[0]);
            let iou = number(3).map_or(0.0, |t| t.float(0) as f32);
            let least = number(4).map(|t| t.float(0) as f32);
            Ok(vec![non_max_suppression(operand(0)?, operand(1)?, most, iou, least, center)?])
        }
    }
}

/// The order of two elements: numbers by value, NaN above all (and equal to NaN), strings by bytes.
fn value_order(t: &Tensor, i: usize, j: usize) -> Ordering {
    if let Data::Strings(s) = &t.data {
        return s[i].cmp(&s[j]);
    }
    if t.dtype.is_float() {
        let (a, b) = (t.float(i), t.float(j));
        return a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()));
    }
    let (a, b) = (t.value(i), t.value(j));
    if t.dtype.is_signed() { (a as i64).cmp(&(b as i64)) } else { a.cmp(&b) }
}

/// The elements at `places`.
fn pick(t: &Tensor, dims: Vec<usize>, places: impl Iterator<Item = usize>) -> Tensor {
    match &t.data {
        Data::Strings(s) => Tensor::from_strings(dims, places.map(|p| s[p].clone())),
        Data::Bytes(b) => {
            let width = t.dtype.bytes();
            let mut bytes = Vec::with_capacity(count(&dims) * width);
            places.for_each(|p| bytes.extend_from_slice(&b[p * width..(p + 1) * width]));
            Tensor::from_bytes(t.dtype, dims, bytes)
        }
    }
}

/// Extents before, of and after `axis`; the flattened tensor has one slice per element.
fn split(t: &Tensor, axis: Option<usize>) -> (usize, usize, usize) {
    match axis {
        None => (1, t.len(), 1),
        Some(a) => (count(&t.dims[..a]), t.dims[a], count(&t.dims[a + 1..])),
    }
}

/// The slices `kept` along `axis`, in that order.
fn take(t: &Tensor, axis: Option<usize>, kept: &[usize]) -> Tensor {
    let (outer, extent, inner) = split(t, axis);
    let mut dims = t.dims.clone();
    match axis {
        None => dims = vec![kept.len()],
        Some(a) => dims[a] = kept.len(),
    }
    let rows = (0..outer).flat_map(|o| kept.iter().map(move |&k| (o * extent + k) * inner));
    pick(t, dims, rows.flat_map(|row| row..row + inner))
}

fn top_k(t: &Tensor, k: &Tensor, axis: usize, largest: bool) -> Result<Vec<Tensor>, Fault> {
    let (outer, extent, inner) = split(t, Some(axis));
    let k = k.to_ints().first().copied().ok_or_else(|| fault!("k is empty"))?;
    let k = usize::try_from(k).ok().filter(|&k| k <= extent);
    let k = k.ok_or_else(|| fault!("k is not between 0 and {extent}, the extent of axis {axis}"))?;
    let mut dims = t.dims.clone();
    dims[axis] = k;
    let (mut places, mut indices) = (vec![0; count(&dims)], vec![0i64; count(&dims)]);
    for o in 0..outer {
        for i in 0..inner {
            let at = |e: usize| (o * extent + e) * inner + i;
            let mut sorted: Vec<usize> = (0..extent).collect();
            sorted.sort_by(|&a, &b| if largest { value_order(t, at(b), at(a)) } else { value_order(t, at(a), at(b)) });
            for (n, &e) in sorted.iter().take(k).enumerate() {
                places[(o * k + n) * inner + i] = at(e);
                indices[(o * k + n) * inner + i] = e as i64;
            }
        }
    }
    Ok(vec![pick(t, dims.clone(), places.into_iter()), Tensor::from_vec(dims, indices)])
}

fn non_zero(t: &Tensor) -> Tensor {
    let mut found: Vec<Vec<i64>> = vec![];
    let mut at = 0;
    let is_zero = |i: usize| match &t.data {
        Data::Strings(s) => s[i].is_empty(),
        Data::Bytes(_) if t.dtype.is_float() => t.float(i) == 0.0,
        Data::Bytes(b) => b[i * t.dtype.bytes()..(i + 1) * t.dtype.bytes()].iter().all(|&b| b == 0),
    };
    let visited = each(&t.dims, &mut |index| {
        if !is_zero(at) {
            found.push(index.to_vec());
        }
        at += 1;
        Ok(())
    });
    visited.expect("counting does not fail");
    let by_axis = (0..t.dims.len()).flat_map(|axis| found.iter().map(move |index| index[axis]));
    Tensor::from_vec([t.dims.len(), found.len()], by_axis.collect::<Vec<i64>>())
}

fn compress(t: &Tensor, mask: &Tensor, axis: Option<usize>) -> Result<Tensor, Fault> {
    let (_, extent, _) = split(t, axis);
    if mask.len() > extent {
        return Err(fault!("the condition has {} elements, more than the extent {extent}", mask.len()));
    }
    let kept: Vec<usize> = mask.to_ints().into_iter().enumerate().filter(|&(_, m)| m != 0).map(|(i, _)| i).collect();
    Ok(take(t, axis, &kept))
}

fn unique(t: &Tensor, axis: Option<usize>, sorted: bool) -> Vec<Tensor> {
    let (outer, extent, inner) = split(t, axis);
    let compare = |a: usize, b: usize| {
        let places = |e: usize| (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * extent + e) * inner + i));
        places(a).zip(places(b)).map(|(x, y)| value_order(t, x, y)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    };
    let mut all: Vec<usize> = (0..extent).collect();
    all.sort_by(|&a, &b| compare(a, b));
    // Runs of equal slices; the sort is stable, so each run begins with its first appearance.
    let mut runs: Vec<Vec<usize>> = vec![];
    for e in all {
        match runs.last_mut() {
            Some(run) if compare(run[0], e).is_eq() => run.push(e),
            _ => runs.push(vec![e]),
        }
    }
    if !sorted {
        runs.sort_by_key(|run| run[0]);
    }
    let mut inverse = vec![0i64; extent];
    for (n, run) in runs.iter().enumerate() {
        run.iter().for_each(|&e| inverse[e] = n as i64);
    }
    let first: Vec<usize> = runs.iter().map(|run| run[0]).collect();
    let counts: Vec<i64> = runs.iter().map(|run| run.len() as i64).collect();
    let indices: Vec<i64> = first.iter().map(|&e| e as i64).collect();
    vec![take(t, axis, &first), Tensor::from_ints(&indices), Tensor::from_ints(&inverse), Tensor::from_ints(&counts)]
}

/// A box as (y1, x1, y2, x2) with ordered corners.
fn corners(b: &[f32], center: bool) -> [f32; 4] {
    if center {
        let (x, y, w, h) = (b[0], b[1], b[2], b[3]);
        [y - h / 2.0, x - w / 2.0, y + h / 2.0, x + w / 2.0]
    } else {
        [b[0].min(b[2]), b[1].min(b[3]), b[0].max(b[2]), b[1].max(b[3])]
    }
}

/// Do two boxes overlap by more than `threshold` (intersection over union)?
fn overlap(a: [f32; 4], b: [f32; 4], threshold: f32) -> bool {
    let area = |c: [f32; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    let height = a[2].min(b[2]) - a[0].max(b[0]);
    let width = a[3].min(b[3]) - a[1].max(b[1]);
    if height <= 0.0 || width <= 0.0 || area(a) <= 0.0 || area(b) <= 0.0 {
        return false;
    }
    let common = height * width;
    common / (area(a) + area(b) - common) > threshold
}

/// Definition: ONNX NonMaxSuppression 11. Boxes above `least` (if given), best score first, that overlap no chosen one.
fn non_max_suppression(
    boxes: &Tensor,
    scores: &Tensor,
    most: i64,
    iou: f32,
    least: Option<f32>,
    center: bool,
) -> Result<Tensor, Fault> {
    let ([batches, n, 4], [_, classes, _]) = (&boxes.dims[..], &scores.dims[..]) else {
        return Err(fault!(
            "boxes {:?} and scores {:?} must be [batch, boxes, 4] and [batch, class, boxes]",
            boxes.dims,
            scores.dims
        ));
    };
    let (all, score) = (floats(boxes)?, floats(scores)?);
    let mut chosen: Vec<i64> = vec![];
    for batch in 0..*batches {
        for class in 0..*classes {
            let first = (batch * classes + class) * n;
            let of = |i: usize| score[first + i];
            let mut order: Vec<usize> = (0..*n).filter(|&i| least.is_none_or(|l| of(i) > l)).collect();
            order.sort_by(|&a, &b| value_order(scores, first + b, first + a));
            let mut kept: Vec<[f32; 4]> = vec![];
            for i in order {
                if kept.len() as i64 >= most {
                    break;
                }
                let at = (batch * n + i) * 4;
                let c = corners(&all[at..at + 4], center);
                if kept.iter().all(|&k| !overlap(k, c, iou)) {
                    kept.push(c);
                    chosen.extend([batch as i64, class as i64, i as i64]);
                }
            }
        }
    }
    Ok(Tensor::from_vec([chosen.len() / 3, 3], chosen))
}

fn floats(t: &Tensor) -> Result<Vec<f32>, Fault> {
    if t.dtype == DType::F32 { Ok(t.to_vec()) } else { Err(fault!("f32 is needed, not {}", t.dtype)) }
}
