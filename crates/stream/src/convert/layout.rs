//! Orders of elements as loop nests of (extent, distance), outermost first.

use crate::design::nest;

/// A loop nest.
pub type Loops = Vec<(usize, usize)>;

/// Distances of the axes of a row-major tensor.
fn distances(dims: &[usize]) -> Vec<usize> {
    (0..dims.len()).map(|a| dims[a + 1..].iter().product()).collect()
}

/// Elements one after the other.
pub fn row_major(dims: &[usize]) -> Loops {
    dims.iter().copied().zip(distances(dims)).collect()
}

/// Pixel by pixel with channels innermost, of a tensor `[1, c, spatial...]`.
pub fn channels_last(dims: &[usize]) -> Loops {
    let all = row_major(dims);
    all[2..].iter().copied().chain([all[1]]).collect()
}

/// The same order with as few loops as there can be: without extents of 1, neighbours joined where one goes on where the other ends.
pub fn joined(loops: &[(usize, usize)]) -> Loops {
    let mut out: Loops = vec![];
    for &(extent, distance) in loops.iter().filter(|l| l.0 != 1) {
        match out.last_mut() {
            Some(last) if last.1 == extent * distance => *last = (last.0 * extent, distance),
            _ => out.push((extent, distance)),
        }
    }
    out
}

/// The same order with loops that stay within one axis each, as (axis, extent, distance along the axis). `None` if there is none.
pub fn by_axis(loops: &[(usize, usize)], dims: &[usize]) -> Option<Vec<(usize, usize, usize)>> {
    let along = distances(dims);
    let mut out = vec![];
    for &(mut extent, distance) in loops.iter().filter(|l| l.0 != 1) {
        let mut parts = vec![];
        let mut step = distance;
        // The innermost axis that the step moves along; what goes beyond it is a loop over the next one.
        while extent > 1 {
            let axis = (0..dims.len()).rev().find(|&a| dims[a] > 1 && step >= along[a] && step < along[a] * dims[a])?;
            if step % along[axis] != 0 {
                return None;
            }
            let room = dims[axis] * along[axis] / step;
            let here = if extent > room { room } else { extent };
            if extent % here != 0 || extent > here && dims[axis] * along[axis] % step != 0 {
                return None;
            }
            parts.push((axis, here, step / along[axis]));
            (extent, step) = (extent / here, step * here);
        }
        out.extend(parts.into_iter().rev());
    }
    Some(out)
}

/// The order after a transposition: new axis `i` is old axis `perm[i]`.
pub fn transposed(loops: &[(usize, usize)], dims: &[usize], perm: &[usize]) -> Option<Loops> {
    let new_dims: Vec<usize> = perm.iter().map(|&a| dims[a]).collect();
    let along = distances(&new_dims);
    let place = |axis: usize| perm.iter().position(|&a| a == axis).map(|i| along[i]);
    by_axis(loops, dims)?.into_iter().map(|(axis, extent, step)| Some((extent, step * place(axis)?))).collect()
}

/// For each place of the row-major tensor, its position in the order.
pub fn positions(loops: &[(usize, usize)]) -> Vec<usize> {
    let places = nest(loops);
    let mut out = vec![0; places.len()];
    for (i, p) in places.into_iter().enumerate() {
        out[p] = i;
    }
    out
}

/// A list of offsets as its first one and a loop nest; `None` if it is no such list.
pub fn factor(offsets: &[usize]) -> Option<(usize, Loops)> {
    let mut loops = vec![];
    let mut rest: Vec<usize> = offsets.to_vec();
    while rest.len() > 1 {
        let step = rest[1].checked_sub(rest[0])?;
        let run = rest.windows(2).take_while(|w| w[1].checked_sub(w[0]) == Some(step)).count() + 1;
        let fits = |e: usize| {
            rest.len() % e == 0 && rest.chunks(e).all(|block| block.iter().enumerate().all(|(i, &o)| o == block[0] + i * step))
        };
        let extent = (2..=run).rev().find(|&e| rest.len() % e == 0 && fits(e))?;
        loops.push((extent, step));
        rest = rest.chunks(extent).map(|block| block[0]).collect();
    }
    loops.reverse();
    Some((rest.first().copied().unwrap_or(0), loops))
}

/// The smallest blocks that a reordering of `elements` can work on: elements of a block and the order within.
pub fn blocks(elements: usize, loops: &[(usize, usize)]) -> (usize, Loops) {
    let (mut block, mut rest) = (elements, loops.to_vec());
    while let Some(&(extent, distance)) = rest.first() {
        let reach: usize = rest[1..].iter().map(|&(e, d)| (e - 1) * d).sum();
        // Each turn of the outer loop has a block of its own. A turn that repeats (distance 0) does not.
        if distance == 0 || extent * distance != block || reach >= distance {
            break;
        }
        block = distance;
        rest.remove(0);
    }
    (block, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_joined_and_split() {
        let dims = [1, 6, 4, 5];
        let order = channels_last(&dims);
        assert_eq!(order, [(4, 5), (5, 1), (6, 20)]);
        assert_eq!(joined(&order), [(20, 1), (6, 20)]);
        assert_eq!(by_axis(&joined(&order), &dims).unwrap(), [(2, 4, 1), (3, 5, 1), (1, 6, 1)]);
        // To channels last and flattened it is the tensor's own order.
        let moved = transposed(&order, &dims, &[0, 2, 3, 1]).unwrap();
        assert_eq!(joined(&moved), [(120, 1)]);
        assert_eq!(nest(&order).len(), 120);
        assert_eq!(positions(&order)[nest(&order)[17]], 17);
    }

    #[test]
    fn reorderings_are_loops_over_blocks() {
        // Each row twice, each pixel of 3 channels twice; rows of 2 pixels.
        let loops = vec![(4, 6), (2, 0), (2, 3), (2, 0), (3, 1)];
        let (first, found) = factor(&nest(&loops)).unwrap();
        assert_eq!((first, nest(&found)), (0, nest(&loops)));
        assert_eq!(blocks(24, &found), (6, vec![(2, 0), (2, 3), (2, 0), (3, 1)]));
        assert_eq!(factor(&[5, 6, 9, 10]), Some((5, vec![(2, 4), (2, 1)])));
        assert_eq!(factor(&[0, 1, 3]), None);
        assert_eq!(blocks(12, &[(4, 1), (3, 4)]), (12, vec![(4, 1), (3, 4)]));
    }
}
