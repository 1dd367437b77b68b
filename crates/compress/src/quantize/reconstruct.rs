//! Rounding by reconstruction: weights are rounded one term of the sum after another, and what is lost is made up for by those still
//! to come, in the sense of least squares over the calibration data (Frantar et al., "GPTQ", 2022, after "Optimal Brain Surgeon").
//!
//! With `G = X'X` of the layer's inputs, the error of a rounded row is `d' G d`. Eliminating terms one by one needs the Cholesky factor
//! of the inverse of `G` only. Terms are taken in order of falling importance; scales, also those of groups, are fixed before.

use super::params::Scales;
use crate::layers::{Grid, Kind, Layer};
use infc_ir::Op;
use infc_ir::graph::Graph;

/// Share of the mean of the diagonal that is added to it: few samples know little of most directions.
const DAMPING: f64 = 0.1;

/// The Gram matrix of what the weights of one group are multiplied with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gram {
    size: usize,
    /// Lower triangle is filled; f64 because thousands of rows add up.
    sums: Vec<f64>,
    /// Rows that were added.
    pub rows: u64,
}

impl Gram {
    /// For sums of `size` terms.
    pub fn new(size: usize) -> Gram {
        Gram { size, sums: vec![0.0; size * size], rows: 0 }
    }
    /// Adds one row of factors.
    pub fn add(&mut self, row: &[f32]) {
        self.rows += 1;
        for (i, &a) in row.iter().enumerate() {
            if a != 0.0 {
                let a = f64::from(a);
                let sums = &mut self.sums[i * self.size..i * self.size + i + 1];
                sums.iter_mut().zip(row).for_each(|(s, &b)| *s += a * f64::from(b));
            }
        }
    }
    /// Mean square of a term.
    pub fn diagonal(&self, k: usize) -> f32 {
        (self.sums[k * self.size + k] / self.rows.max(1) as f64) as f32 + 1e-12
    }

    /// The upper Cholesky factor of the inverse of `G + damping`, with the terms in `order`; `None` if it is not positive.
    fn inverse_factor(&self, order: &[usize], damping: f64) -> Option<Vec<f64>> {
        let n = self.size;
        let entry = |i: usize, j: usize| self.sums[i.max(j) * n + i.min(j)];
        let mean = (0..n).map(|i| entry(i, i)).sum::<f64>() / n as f64;
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                a[i * n + j] = entry(order[i], order[j]);
            }
            a[i * n + i] += damping * mean + 1e-9;
        }
        cholesky(&mut a, n)?;
        let inverse = inverse_of_lower(&a, n);
        // inverse(G) = L^-T L^-1
        let mut h = vec![0.0; n * n];
        for k in 0..n {
            let row = &inverse[k * n..k * n + k + 1];
            for (i, &x) in row.iter().enumerate().filter(|(_, x)| **x != 0.0) {
                h[i * n..i * n + i + 1].iter_mut().zip(row).for_each(|(s, &y)| *s += x * y);
            }
        }
        // The factor U with U'U = inverse(G) is the transpose of the lower factor.
        cholesky(&mut h, n)?;
        let mut upper = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                upper[j * n + i] = h[i * n + j];
            }
        }
        Some(upper)
    }
}

/// The lower Cholesky factor, in place of the lower triangle.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for i in 0..n {
        let (above, row) = a.split_at_mut(i * n);
        for j in 0..=i {
            let other = if j < i { &above[j * n..j * n + j] } else { &[][..] };
            let dot: f64 = match j < i {
                true => other.iter().zip(&row[..j]).map(|(x, y)| x * y).sum(),
                false => row[..i].iter().map(|x| x * x).sum(),
            };
            let v = row[j] - dot;
            row[j] = match j < i {
                true => v / above[j * n + j],
                false if v > 0.0 => v.sqrt(),
                false => return None,
            };
        }
    }
    Some(())
}

/// The inverse of a lower triangular matrix, row by row.
fn inverse_of_lower(l: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        let (above, row) = out.split_at_mut(i * n);
        let pivot = l[i * n + i];
        for k in 0..i {
            let f = l[i * n + k];
            if f != 0.0 {
                row[..k + 1].iter_mut().zip(&above[k * n..k * n + k + 1]).for_each(|(s, x)| *s -= f * x);
            }
        }
        row[..i].iter_mut().for_each(|s| *s /= pivot);
        row[i] = 1.0 / pivot;
    }
    out
}

/// Rounds all weights. `grams` has one matrix, or one for each group of a convolution.
pub fn round(w: &[f32], grid: Grid, scales: &Scales, grams: &[Gram]) -> Vec<i64> {
    let depth = grid.depth();
    let mut values = vec![0; w.len()];
    let per_gram = grid.channels / grams.len();
    for (number, gram) in grams.iter().enumerate() {
        let mut order: Vec<usize> = (0..depth).collect();
        order.sort_by(|&a, &b| gram.diagonal(b).total_cmp(&gram.diagonal(a)));
        let factor = [DAMPING, 1.0].into_iter().find_map(|damping| gram.inverse_factor(&order, damping));
        for c in number * per_gram..(number + 1) * per_gram {
            let mut row: Vec<f64> = order.iter().map(|&k| f64::from(w[grid.at(c, k)])).collect();
            for i in 0..depth {
                let (at, step) = (grid.at(c, order[i]), scales.step(depth, c, order[i]));
                let q = scales.store(row[i] as f32, step);
                values[at] = q;
                // Without a factor (no data reached the layer) this is rounding to nearest.
                if let Some(u) = &factor {
                    let error = (row[i] - f64::from(step.0) * (q - step.1) as f64) / u[i * depth + i];
                    let (rest, us) = (&mut row[i + 1..], &u[i * depth + i + 1..(i + 1) * depth]);
                    rest.iter_mut().zip(us).for_each(|(r, u)| *r -= error * u);
                }
            }
        }
    }
    values
}

/// Adds rows of factors of a tensor `x` to the Gram matrices of a layer, at most `most` of them, evenly spread.
pub fn add_rows(g: &Graph, layer: &Layer, grams: &mut [Gram], dims: &[usize], x: &[f32], most: usize) {
    match (&g.node(layer.node).op, layer.kind) {
        (Op::Conv(op), Kind::Conv) => {
            let w = &layer.weight(g, 1).dims;
            windows(grams, dims, x, w, &op.strides, &op.pads, &op.dilations, most);
        }
        (_, Kind::MatMul | Kind::Gemm) if layer.sum_axis == Some(dims.len() - 1) => {
            let depth = dims[dims.len() - 1];
            let rows = x.len() / depth;
            let step = rows.div_ceil(most).max(1);
            x.chunks_exact(depth).step_by(step).for_each(|row| grams[0].add(row));
        }
        _ => {}
    }
}

/// Rows of a 2-D convolution: the windows of its output positions.
fn windows(
    grams: &mut [Gram],
    dims: &[usize],
    x: &[f32],
    w: &[usize],
    strides: &[i64],
    pads: &[i64],
    dilations: &[i64],
    most: usize,
) {
    if dims.len() != 4 {
        return;
    }
    let at = |v: &[i64], i: usize, none: i64| v.get(i).copied().unwrap_or(none);
    let out = |a: usize| {
        let reach = at(dilations, a, 1) * (w[a + 2] as i64 - 1) + 1;
        ((dims[a + 2] as i64 + at(pads, a, 0) + at(pads, a + 2, 0) - reach) / at(strides, a, 1) + 1).max(0) as usize
    };
    let (height, width) = (out(0), out(1));
    let total = dims[0] * height * width;
    let step = total.div_ceil(most).max(1);
    let mut row = vec![0.0; w[1] * w[2] * w[3]];
    let groups = grams.len();
    for position in (0..total).step_by(step) {
        let (n, oy, ox) = (position / (height * width), position / width % height, position % width);
        for (group, gram) in grams.iter_mut().enumerate() {
            let mut k = 0;
            for c in 0..w[1] {
                let plane = (n * dims[1] + (group * w[1] + c).min(groups * w[1] - 1)) * dims[2] * dims[3];
                for ky in 0..w[2] as i64 {
                    for kx in 0..w[3] as i64 {
                        let y = oy as i64 * at(strides, 0, 1) + ky * at(dilations, 0, 1) - at(pads, 0, 0);
                        let z = ox as i64 * at(strides, 1, 1) + kx * at(dilations, 1, 1) - at(pads, 1, 0);
                        let inside = (0..dims[2] as i64).contains(&y) && (0..dims[3] as i64).contains(&z);
                        row[k] = if inside { x[plane + y as usize * dims[3] + z as usize] } else { 0.0 };
                        k += 1;
                    }
                }
            }
            gram.add(&row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On correlated inputs the sums of rounded weights are nearer than with rounding to nearest.
    #[test]
    fn sums_change_less_than_by_rounding_to_nearest() {
        let mut random = crate::data::Random(3);
        let (depth, channels, rows) = (16, 8, 200);
        let mut gram = Gram::new(depth);
        let mut inputs = vec![];
        for _ in 0..rows {
            let common = random.unit() as f32;
            let row: Vec<f32> = (0..depth).map(|_| common + 0.2 * random.unit() as f32).collect();
            gram.add(&row);
            inputs.push(row);
        }
        let w: Vec<f32> = (0..depth * channels).map(|_| random.unit() as f32 - 0.5).collect();
        let grid = Grid::new(&[depth, channels], 1);
        let scales = Scales::fit(&w, grid, depth, 7, false, None);
        let error = |values: &[i64]| -> f64 {
            let mut sum = 0.0;
            for (c, row) in (0..channels).flat_map(|c| inputs.iter().map(move |r| (c, r))) {
                let term = |k: usize| {
                    let at = grid.at(c, k);
                    f64::from(row[k]) * f64::from(w[at] - values[at] as f32 * scales.of(depth, c, k))
                };
                sum += (0..depth).map(term).sum::<f64>().powi(2);
            }
            sum
        };
        let nearest: Vec<i64> =
            (0..w.len()).map(|i| scales.store(w[i], scales.step(depth, i % channels, i / channels))).collect();
        let (ours, theirs) = (error(&round(&w, grid, &scales, &[gram])), error(&nearest));
        assert!(ours < theirs / 4.0, "{ours} against {theirs}");
    }

    #[test]
    fn factors_multiply_to_the_inverse() {
        let mut gram = Gram::new(3);
        [[1.0, 2.0, 0.5], [0.0, 1.0, -1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 1.0]].iter().for_each(|r| gram.add(r));
        let u = gram.inverse_factor(&[0, 1, 2], 0.0).unwrap();
        for i in 0..3 {
            for j in 0..3 {
                // (U'U) G must be the identity.
                let h = |i: usize, m: usize| (0..3).map(|k| u[k * 3 + i] * u[k * 3 + m]).sum::<f64>();
                let g = |m: usize, j: usize| gram.sums[m.max(j) * 3 + m.min(j)];
                let product: f64 = (0..3).map(|m| h(i, m) * g(m, j)).sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-6, "{i} {j} {product}");
            }
        }
    }
}
