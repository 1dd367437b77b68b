//! Constants brought into the order in which a kernel reads them, at compile time.

use super::Cx;
use infc_ir::compute::{Compute, Step};
use infc_ir::scalar::{Kind, Scalar};
use infc_ir::{DType, Expr, Tensor, eval};
use std::collections::HashMap;

/// Constants that are read along axis `inner` with a stride: packed so that this axis is contiguous.
pub fn constants_along(cx: &mut Cx, c: &Compute, inner: usize) -> Compute {
    let mut wanted: HashMap<u32, Option<usize>> = HashMap::new();
    for s in Step::Compute(c.clone()).scalars() {
        s.visit(&mut |n| {
            let Kind::Read { source, index, .. } = n.kind() else { return };
            let axis = axis_along(index, inner as u32);
            wanted.entry(*source).and_modify(|a| *a = a.filter(|&x| Some(x) == axis)).or_insert(axis);
        });
    }
    let mut moved: HashMap<u32, usize> = HashMap::new();
    for (source, axis) in wanted {
        let operand = cx.operand(source as usize);
        let (Some(axis), Some(tensor)) = (axis, operand.constant.clone()) else { continue };
        if axis + 1 == tensor.dims.len() {
            continue;
        }
        cx.pack(source as usize, axis_last(&tensor, axis));
        moved.insert(source, axis);
    }
    if moved.is_empty() {
        return c.clone();
    }
    let step = Step::Compute(c.clone()).map(&mut |s| {
        s.rewrite(&mut |n| match n.kind() {
            Kind::Read { source, index, guard } if moved.contains_key(source) => {
                let mut index = index.clone();
                let last = index.remove(moved[source]);
                index.push(last);
                Scalar::raw(n.dtype(), Kind::Read { source: *source, index, guard: *guard })
            }
            _ => n,
        })
    });
    let Step::Compute(c) = step else { unreachable!("map keeps the kind of step") };
    c
}

/// The one dim whose index moves by 1 with variable `var`, if no other moves with it.
fn axis_along(index: &[Scalar], var: u32) -> Option<usize> {
    let mut axis = None;
    for (k, i) in index.iter().enumerate() {
        match i.as_index()?.affine_in(var)? {
            (0, _) => {}
            (1, _) if axis.is_none() => axis = Some(k),
            _ => return None,
        }
    }
    axis
}

/// The tensor with `axis` moved to the end.
fn axis_last(t: &Tensor, axis: usize) -> Tensor {
    let (rows, cols) = (t.dims[axis], t.dims[axis + 1..].iter().product::<usize>());
    let outer: usize = t.dims[..axis].iter().product();
    let width = t.dtype.bytes();
    let (from, mut to) = (t.bytes(), vec![0; t.bytes().len()]);
    for o in 0..outer {
        for r in 0..rows {
            for c in 0..cols {
                let (a, b) = (((o * rows + r) * cols + c) * width, ((o * cols + c) * rows + r) * width);
                to[b..b + width].copy_from_slice(&from[a..a + width]);
            }
        }
    }
    let mut dims = t.dims.clone();
    let d = dims.remove(axis);
    dims.push(d);
    Tensor::from_bytes(t.dtype, dims, to)
}

/// Panels of a constant factor: `out[tile, k..., j] = t[index(tile * nr + j, k...)]`, zeros beyond `n`.
///
/// `index` holds, for each dim of `t`, an expression of variable 0 (the n axis) and variables `1..` (the k axes).
/// `None` if an index leaves the tensor.
pub fn panels(t: &Tensor, index: &[Expr], n: usize, k: &[usize], nr: usize) -> Option<Tensor> {
    let tiles = n.div_ceil(nr);
    let depth: usize = k.iter().product();
    let width = t.dtype.bytes();
    let mut to = vec![0u8; tiles * depth * nr * width];
    let from = t.bytes();
    let strides: Vec<i64> = (0..t.dims.len()).map(|a| t.dims[a + 1..].iter().product::<usize>() as i64).collect();
    let offset = index.iter().zip(&strides).fold(Expr::int(0), |acc, (&e, &s)| acc + e * s);
    // Packing is linear in nearly every model; then two strides describe it.
    let (by_n, rest) = offset.affine_in(0)?;
    let mut counter = vec![0usize; k.len()];
    let mut bases = Vec::with_capacity(depth);
    for _ in 0..depth {
        bases.push(rest.eval(&|l| match l.node() {
            infc_ir::expr::Node::Var(v) if *v > 0 => counter.get(*v as usize - 1).map(|&c| c as i64),
            _ => None,
        })?);
        for (c, &e) in counter.iter_mut().zip(k).rev() {
            *c += 1;
            if *c < e {
                break;
            }
            *c = 0;
        }
    }
    if let (Some(low), Some(high)) = (bases.iter().min(), bases.iter().max())
        && n > 0
    {
        let far = by_n * (n as i64 - 1);
        let [first, last] = [usize::try_from(low + far.min(0)).ok()?, usize::try_from(high + far.max(0)).ok()?];
        if first > last || (last + 1) * width > from.len() {
            return None;
        }
    }
    let from_of = |d: usize, j: usize| (bases[d] + by_n * j as i64) as usize;
    let sizes = [depth, n, nr];
    match width {
        1 => copy::<1>(&mut to, from, sizes, from_of),
        2 => copy::<2>(&mut to, from, sizes, from_of),
        4 => copy::<4>(&mut to, from, sizes, from_of),
        8 => copy::<8>(&mut to, from, sizes, from_of),
        _ => copy::<16>(&mut to, from, sizes, from_of),
    }
    let dims: Vec<usize> = [tiles].iter().chain(k).chain([&nr]).copied().collect();
    Some(Tensor::from_bytes(t.dtype, dims, to))
}

/// Copies elements of `WIDTH` bytes into tiles of `nr` columns, in squares whose lines all stay in L1: one of both is transposed. Threads share the tiles of large ones.
fn copy<const WIDTH: usize>(
    to: &mut [u8],
    from: &[u8],
    [depth, n, nr]: [usize; 3],
    from_of: impl Fn(usize, usize) -> usize + Sync,
) {
    const SQUARE: usize = 64;
    let (to, from) = (to.as_chunks_mut::<WIDTH>().0, from.as_chunks::<WIDTH>().0);
    let part = |to: &mut [[u8; WIDTH]], first: usize, last: usize| {
        for d0 in (0..depth).step_by(SQUARE) {
            for j0 in (first..last).step_by(SQUARE) {
                for d in d0..depth.min(d0 + SQUARE) {
                    for j in j0..last.min(j0 + SQUARE) {
                        to[((j - first) / nr * depth + d) * nr + j % nr] = from[from_of(d, j)];
                    }
                }
            }
        }
    };
    let threads = threads(depth * n);
    if threads < 2 {
        return part(to, 0, n);
    }
    let tiles = n.div_ceil(nr).div_ceil(threads);
    std::thread::scope(|scope| {
        for (k, to) in to.chunks_mut((tiles * depth * nr).max(1)).enumerate() {
            let (part, first) = (&part, k * tiles * nr);
            scope.spawn(move || part(to, first, n.min(first + tiles * nr)));
        }
    });
}

/// Threads that are worth their start for work on so many elements of a constant, which are independent of each other.
pub(super) fn threads(elements: usize) -> usize {
    const EACH: usize = 1 << 18;
    std::thread::available_parallelism().map_or(1, usize::from).min(elements / EACH)
}

/// Tiles of a constant factor as matrix instructions want them: `[tile along lines, tile along products, line, product]`, for each element of a batch (the
/// first dim has the batch too). Those of warpgroups are `swizzled`: a line has 128 bytes, and its pieces of 16 bytes are where shared memory has them, piece `p` of line `l` at
/// place `p xor l mod 8`. Zeros beyond the ends, up to a multiple of `whole` products.
///
/// `index` holds, for each dim of `t`, an expression of the axes of the batch, of lines and of products, whose sizes are given. `None` if it is not linear, or
/// leaves the tensor.
pub fn tiles(
    t: &Tensor,
    index: &[Expr],
    [batch, lines, products]: [&[usize]; 3],
    [bl, bk, whole]: [usize; 3],
    dtype: DType,
    swizzled: bool,
) -> Option<Tensor> {
    let mut offset = Expr::int(0);
    for (k, &e) in index.iter().enumerate() {
        offset = offset + e * t.dims[k + 1..].iter().product::<usize>() as i64;
    }
    let mut steps = vec![];
    for v in 0..batch.len() + lines.len() + products.len() {
        let (step, rest) = offset.affine_in(v as u32)?;
        steps.push(step);
        offset = rest;
    }
    let start = offset.known()?;
    // Offsets of all positions of some axes, flattened.
    let offsets = |sizes: &[usize], steps: &[i64]| {
        let mut all = vec![0i64];
        for (&size, &step) in sizes.iter().zip(steps) {
            all = all.iter().flat_map(|&o| (0..size as i64).map(move |k| o + k * step)).collect();
        }
        all
    };
    let (of_batch, steps) = steps.split_at(batch.len());
    let (of_lines, of_products) = steps.split_at(lines.len());
    let (by_batch, by_line, by_product) = (offsets(batch, of_batch), offsets(lines, of_lines), offsets(products, of_products));
    let (from, to) = (t.dtype.bytes(), dtype.bytes());
    let tiles = [by_line.len().div_ceil(bl), by_product.len().next_multiple_of(whole) / bk];
    let mut out = vec![0u8; by_batch.len() * tiles[0] * tiles[1] * bl * bk * to];
    for (b, &ob) in by_batch.iter().enumerate() {
        for (l, &ol) in by_line.iter().enumerate() {
            for (k, &ok) in by_product.iter().enumerate() {
                let at = usize::try_from(start + ob + ol + ok).ok()? * from;
                let raw = t.bytes().get(at..at + from)?;
                let byte = k % bk * to;
                let place = if swizzled { ((byte / 16) ^ (l % bl % 8)) * 16 + byte % 16 } else { byte };
                let place = (((b * tiles[0] + l / bl) * tiles[1] + k / bk) * bl + l % bl) * bk * to + place;
                if t.dtype == dtype {
                    out[place..place + to].copy_from_slice(raw);
                } else {
                    let value = raw.iter().rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
                    let value = f64::from_bits(eval::from_memory(t.dtype, value));
                    let value = eval::to_memory(dtype, eval::round_float(dtype, value).to_bits());
                    out[place..place + to].copy_from_slice(&value.to_le_bytes()[..to]);
                }
            }
        }
    }
    Some(Tensor::from_bytes(dtype, vec![by_batch.len() * tiles[0], tiles[1], bl, bk], out))
}

/// Panels whose last but one dim (along k) is cut into groups: `[..., k, nr]` becomes `[..., k / group, nr, group]`.
pub fn grouped(panels: &Tensor, group: usize) -> Tensor {
    let rank = panels.dims.len();
    let (k, nr, width) = (panels.dims[rank - 2], panels.dims[rank - 1], panels.dtype.bytes());
    let (from, mut to) = (panels.bytes(), vec![0u8; panels.bytes().len()]);
    for (number, block) in to.chunks_exact_mut((group * nr * width).max(1)).enumerate() {
        let base = number * group * nr;
        for column in 0..nr {
            for j in 0..group {
                let (place, at) = ((column * group + j) * width, (base + j * nr + column) * width);
                block[place..place + width].copy_from_slice(&from[at..at + width]);
            }
        }
    }
    let mut dims = panels.dims[..rank - 2].to_vec();
    dims.extend([k / group, nr, group]);
    Tensor::from_bytes(panels.dtype, dims, to)
}

/// Groups of `group` neighbours along `dim` as a new last dim, with zeros where there are no more: `out[.., q, .., j] = t[.., group * q + j, ..]`.
pub fn taps(t: &Tensor, dim: usize, group: usize) -> Tensor {
    let (width, count) = (t.dtype.bytes(), t.dims[dim]);
    let inner: usize = t.dims[dim + 1..].iter().product();
    let blocks = count.div_ceil(group);
    let mut dims = t.dims.clone();
    dims[dim] = blocks;
    dims.push(group);
    let mut to = vec![0u8; dims.iter().product::<usize>() * width];
    for (number, element) in t.bytes().chunks_exact(width.max(1)).enumerate() {
        let (outer, k, i) = (number / (count * inner), number / inner % count, number % inner);
        let at = (((outer * blocks + k / group) * inner + i) * group + k % group) * width;
        to[at..at + width].copy_from_slice(element);
    }
    Tensor::from_bytes(t.dtype, dims, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_warpgroups_have_each_element_at_its_place() {
        // A convolution's weights: lines are the first axis, products the other ones, in another order than they lie.
        let dims = [70usize, 3, 2, 5];
        let t = Tensor::from_vec(dims.to_vec(), (0..70 * 30).map(|k| k as f32).collect());
        let index = [Expr::var(0), Expr::var(3), Expr::var(1), Expr::var(2)];
        let (lines, products) = ([70usize], [2usize, 5, 3]);
        for (dtype, bk) in [(DType::F32, 32usize), (DType::F16, 64)] {
            let tiles = tiles(&t, &index, [&[], &lines, &products], [64, bk, bk], dtype, true).expect("it is linear");
            assert_eq!((tiles.dims.clone(), tiles.dtype), (vec![2, 1, 64, bk], dtype));
            let width = dtype.bytes();
            for line in 0..128 {
                for k in 0..bk {
                    let (y, x, c) = (k / 15, k / 3 % 5, k % 3);
                    let want = if line < 70 && k < 30 { (((line * 3 + c) * 2 + y) * 5 + x) as f64 } else { 0.0 };
                    let (piece, rest) = (k * width / 16, k * width % 16);
                    let at = line * 128 + (piece ^ (line % 8)) * 16 + rest;
                    let raw = tiles.bytes()[at..at + width].iter().rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
                    let want = eval::round_float(dtype, want);
                    assert_eq!(f64::from_bits(eval::from_memory(dtype, raw)), want, "line {line}, product {k} in {dtype}");
                }
            }
        }
        // Neither outside nor in another way than linearly.
        assert!(tiles(&t, &index, [&[], &[71], &products], [64, 64, 64], DType::F32, true).is_none());
        let folded = [Expr::var(0).div(Expr::int(2)), Expr::var(3), Expr::var(1), Expr::var(2)];
        assert!(tiles(&t, &folded, [&[], &lines, &products], [64, 64, 64], DType::F32, true).is_none());
    }

    #[test]
    fn tiles_of_warps_lie_one_after_another_for_each_part() {
        // The parts of a sum over channels: channel `3 * part + c`.
        let t = Tensor::from_vec(vec![20usize, 6, 4], (0..20 * 24).map(|k| k as f32).collect());
        let index = [Expr::var(1), Expr::var(0) * 3 + Expr::var(3), Expr::var(2)];
        let made = tiles(&t, &index, [&[2], &[20], &[4, 3]], [16, 8, 8], DType::F16, false).expect("it is linear");
        assert_eq!(made.dims, [2 * 2, 2, 16, 8]);
        // Filled up to whole pairs of tiles.
        let pairs = tiles(&t, &index, [&[2], &[20], &[4, 2]], [16, 8, 16], DType::F16, false).expect("it is linear");
        assert_eq!(pairs.dims, [2 * 2, 2, 16, 8]);
        assert!((0..pairs.len()).all(|i| i / 128 % 2 == 0 || pairs.float(i) == 0.0));
        for (i, got) in (0..made.len()).map(|i| (i, made.float(i))) {
            let (tile, k) = (i / 128, i / 128 % 2 * 8 + i % 8);
            let (part, line) = (tile / 4, tile / 2 % 2 * 16 + i / 8 % 16);
            let want = if line < 20 && k < 12 { ((line * 6 + 3 * part + k % 3) * 4 + k / 3) as f64 } else { 0.0 };
            assert_eq!(got, want, "part {part}, line {line}, product {k}");
        }
    }
}
