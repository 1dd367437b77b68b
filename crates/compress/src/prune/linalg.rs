//! Dense symmetric systems in f64: Gram matrices of features, Cholesky factors, inverses, least squares.

/// A square matrix, row-major.
#[derive(Clone, Debug)]
pub struct Square {
    /// Rows and columns.
    pub n: usize,
    /// Elements.
    pub at: Vec<f64>,
}

impl Square {
    /// All zeros.
    pub fn zeros(n: usize) -> Square {
        Square { n, at: vec![0.0; n * n] }
    }
    /// Ones on the diagonal.
    pub fn identity(n: usize) -> Square {
        let mut m = Square::zeros(n);
        (0..n).for_each(|i| m.at[i * n + i] = 1.0);
        m
    }
    /// One row.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.at[i * self.n..(i + 1) * self.n]
    }
    /// The rows and columns of `keep`.
    pub fn select(&self, keep: &[usize]) -> Square {
        let at = keep.iter().flat_map(|&i| keep.iter().map(move |&j| self.at[i * self.n + j])).collect();
        Square { n: keep.len(), at }
    }
    /// Adds to the diagonal `share` of its mean, and at least enough to make a matrix of zeros regular.
    pub fn damp(&mut self, share: f64) {
        let mean = (0..self.n).map(|i| self.at[i * self.n + i]).sum::<f64>() / self.n.max(1) as f64;
        let add = if mean > 0.0 { share * mean } else { 1.0 };
        (0..self.n).for_each(|i| self.at[i * self.n + i] += add);
    }
    /// The lower factor `L` with `L L^T` equal to it; `None` if it is not positive definite.
    pub fn cholesky(&self) -> Option<Square> {
        let n = self.n;
        let mut l = Square::zeros(n);
        for i in 0..n {
            for j in 0..=i {
                let dot: f64 = l.row(i)[..j].iter().zip(&l.row(j)[..j]).map(|(a, b)| a * b).sum();
                let rest = self.at[i * n + j] - dot;
                l.at[i * n + j] = if i != j {
                    rest / l.at[j * n + j]
                } else if rest > 0.0 && rest.is_finite() {
                    rest.sqrt()
                } else {
                    return None;
                };
            }
        }
        Some(l)
    }
    /// With `self` a lower factor: solves `L L^T x = b` in place.
    pub fn solve_factored(&self, b: &mut [f64]) {
        let n = self.n;
        for i in 0..n {
            let dot: f64 = self.row(i)[..i].iter().zip(&b[..i]).map(|(a, x)| a * x).sum();
            b[i] = (b[i] - dot) / self.at[i * n + i];
        }
        for i in (0..n).rev() {
            b[i] /= self.at[i * n + i];
            let x = b[i];
            for (b, a) in b[..i].iter_mut().zip(self.row(i)) {
                *b -= a * x;
            }
        }
    }
    /// The inverse of a positive definite matrix.
    pub fn inverse(&self) -> Option<Square> {
        let (n, l) = (self.n, self.cholesky()?);
        let mut out = Square::identity(n);
        for i in 0..n {
            l.solve_factored(&mut out.at[i * n..(i + 1) * n]); // symmetric: rows are columns
        }
        Some(out)
    }
}

/// Sums over samples that least squares needs: `x x^T` and `y x^T`, with a last feature that is 1.
#[derive(Clone, Debug)]
pub struct Gram {
    /// `x x^T`, features and the constant.
    pub xx: Square,
    /// `y x^T`, one row a target.
    pub yx: Vec<f64>,
    /// Sums of squares of the targets.
    pub yy: Vec<f64>,
    /// Number of targets.
    pub targets: usize,
    /// Number of rows added.
    pub rows: usize,
}

impl Gram {
    /// For `features` features, the constant not counted, and `targets` targets.
    pub fn new(features: usize, targets: usize) -> Gram {
        Gram {
            xx: Square::zeros(features + 1),
            yx: vec![0.0; targets * (features + 1)],
            yy: vec![0.0; targets],
            targets,
            rows: 0,
        }
    }
    /// Adds rows: `x` is `[rows, features]`, `y` is `[rows, targets]` (empty if there are no targets).
    pub fn add(&mut self, x: &[f32], y: &[f32]) {
        let (n, f) = (self.xx.n, self.xx.n - 1);
        let rows = x.len().checked_div(f).unwrap_or_else(|| y.len() / self.targets.max(1));
        // Blocks of rows in f32, so that sums of many rows do not lose digits.
        for from in (0..rows).step_by(256) {
            let to = (from + 256).min(rows);
            let block: Vec<f32> = (from..to).flat_map(|r| x[r * f..(r + 1) * f].iter().copied().chain([1.0])).collect();
            accumulate(&block, &block, n, n, true, &mut self.xx.at);
            if self.targets > 0 {
                accumulate(&y[from * self.targets..to * self.targets], &block, self.targets, n, false, &mut self.yx);
            }
        }
        for row in y.chunks(self.targets.max(1)) {
            self.yy.iter_mut().zip(row).for_each(|(s, y)| *s += f64::from(*y).powi(2));
        }
        self.rows += rows;
    }
    /// The sums for other targets of the same rows `x`.
    pub fn retarget(&mut self, x: &[f32], y: &[f32]) {
        let xx = std::mem::replace(&mut self.xx, Square::zeros(0));
        let (n, f) = (xx.n, xx.n - 1);
        self.yx.fill(0.0);
        self.yy.fill(0.0);
        for (x, y) in x.chunks(256 * f.max(1)).zip(y.chunks(256 * self.targets.max(1))) {
            let block: Vec<f32> = x.chunks(f.max(1)).flat_map(|r| r.iter().copied().chain([1.0])).collect();
            accumulate(y, &block, self.targets, n, false, &mut self.yx);
            for row in y.chunks(self.targets.max(1)) {
                self.yy.iter_mut().zip(row).for_each(|(s, y)| *s += f64::from(*y).powi(2));
            }
        }
        self.xx = xx;
    }
    /// Completes the lower triangle; call once after the last rows.
    pub fn finish(&mut self) {
        let n = self.xx.n;
        for i in 0..n {
            for j in 0..i {
                self.xx.at[i * n + j] = self.xx.at[j * n + i];
            }
        }
    }
    /// The weights `[targets, features + 1]` (the last is the constant) of the kept features that fit the targets best; weights
    /// of others are 0. Ridge regression towards `prior`, with a weight of `damping` times the mean of the diagonal.
    pub fn fit(&self, keep: &[usize], damping: f64, prior: &[f64], intercept: bool) -> Option<Vec<f64>> {
        let n = self.xx.n;
        let mut keep = keep.to_vec();
        if intercept {
            keep.push(n - 1);
        }
        let mut h = self.xx.select(&keep);
        let mean = (0..h.n).map(|i| h.at[i * h.n + i]).sum::<f64>() / h.n.max(1) as f64;
        let lambda = if mean > 0.0 { damping * mean } else { 1.0 };
        (0..h.n).for_each(|i| h.at[i * h.n + i] += lambda);
        let l = h.cholesky()?;
        let mut out = vec![0.0; self.targets * n];
        for t in 0..self.targets {
            let mut b: Vec<f64> = keep.iter().map(|&k| self.yx[t * n + k] + lambda * prior[t * n + k]).collect();
            l.solve_factored(&mut b);
            keep.iter().zip(b).for_each(|(&k, w)| out[t * n + k] = w);
        }
        Some(out)
    }
}

/// `out[i][j] += sum_r a[r][i] b[r][j]`; only `j >= i` if `upper`.
fn accumulate(a: &[f32], b: &[f32], n: usize, m: usize, upper: bool, out: &mut [f64]) {
    let rows = b.len() / m.max(1);
    let mut sum = vec![0.0f32; m];
    for i in 0..n {
        let first = if upper { i } else { 0 };
        let sum = &mut sum[first..];
        sum.fill(0.0);
        let mut r = 0;
        while r + 4 <= rows {
            let w = [0, 1, 2, 3].map(|k| a[(r + k) * n + i]);
            if w != [0.0; 4] {
                let [p, q, s, t] = [0, 1, 2, 3].map(|k| &b[(r + k) * m + first..(r + k + 1) * m]);
                for ((((o, p), q), s), t) in sum.iter_mut().zip(p).zip(q).zip(s).zip(t) {
                    *o += w[0] * p + w[1] * q + w[2] * s + w[3] * t;
                }
            }
            r += 4;
        }
        for r in r..rows {
            let w = a[r * n + i];
            sum.iter_mut().zip(&b[r * m + first..(r + 1) * m]).for_each(|(o, x)| *o += w * x);
        }
        out[i * m + first..(i + 1) * m].iter_mut().zip(sum).for_each(|(o, s)| *o += f64::from(*s));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverse_times_matrix_is_one() {
        let mut m = Square { n: 3, at: vec![4.0, 1.0, 0.5, 1.0, 3.0, -1.0, 0.5, -1.0, 2.0] };
        let inverse = m.inverse().unwrap();
        for i in 0..3 {
            for j in 0..3 {
                let dot: f64 = (0..3).map(|k| m.at[i * 3 + k] * inverse.at[k * 3 + j]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
        m.at[0] = -4.0;
        assert!(m.inverse().is_none());
    }

    #[test]
    fn least_squares_finds_the_line() {
        // y = 2 a - b + 3, seen through 300 rows.
        let mut gram = Gram::new(2, 1);
        let x: Vec<f32> = (0..600).map(|i| ((i * 37) % 17) as f32 - 8.0).collect();
        let y: Vec<f32> = x.chunks(2).map(|p| 2.0 * p[0] - p[1] + 3.0).collect();
        gram.add(&x, &y);
        gram.finish();
        let w = gram.fit(&[0, 1], 0.0, &[0.0; 3], true).unwrap();
        assert!(w.iter().zip([2.0, -1.0, 3.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{w:?}");
        // Without b, the best line through what is left; the weight of b is 0.
        assert_eq!(gram.fit(&[0], 0.0, &[0.0; 3], true).unwrap()[1], 0.0);
    }
}
