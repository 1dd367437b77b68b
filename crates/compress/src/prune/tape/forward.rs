//! The steps of a tape, one after the other.

use super::{Binary, Buffers, OUTSIDE, Step, Tape, Unary};
use infc_ir::Tensor;

impl Tape {
    /// Runs the steps. `constants` has a list for each slot of a constant, those that are fitted included.
    pub fn run(&self, inputs: &[Tensor], constants: &[Vec<f32>], b: &mut Buffers) {
        for (slot, t) in self.inputs.iter().zip(inputs) {
            slot.iter().for_each(|&s| b.values[s] = t.to_vec());
        }
        for step in &self.steps {
            self.forward(step, constants, b);
        }
    }
    fn forward(&self, step: &Step, constants: &[Vec<f32>], b: &mut Buffers) {
        let slot = step.result();
        let mut out = std::mem::take(&mut b.values[slot]);
        let get = |s: usize| if constants[s].is_empty() { &b.values[s] } else { &constants[s] };
        match step {
            Step::Product { x, w, bias, size: [groups, m, k, p], columns, places, .. } => {
                let (w, bias) = (&constants[*w], bias.map(|s| &constants[s]));
                b.columns.clear();
                let x = if constants[*x].is_empty() { &b.values[*x] } else { &constants[*x] };
                b.columns.extend(columns.iter().map(|&i| if i == OUTSIDE { 0.0 } else { x[i as usize] }));
                b.sums.resize(*p, 0.0);
                for row in 0..groups * m {
                    b.sums.fill(bias.map_or(0.0, |v| v[row]));
                    let j = row / m;
                    add_rows(&mut b.sums, |i| w[row * k + i], *k, &b.columns[j * k * p..(j + 1) * k * p]);
                    places[row * p..(row + 1) * p].iter().zip(&b.sums).for_each(|(&i, &v)| out[i as usize] = v);
                }
            }
            Step::Channels { x, factor, shift, inner, .. } => {
                let channels = factor.len();
                for (i, (y, x)) in out.chunks_mut((*inner).max(1)).zip(get(*x).chunks((*inner).max(1))).enumerate() {
                    let (f, s) = (factor[i % channels], shift[i % channels]);
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = f * x + s);
                }
            }
            Step::Unary { x, f, .. } => {
                let x = get(*x);
                match *f {
                    Unary::Leaky(a) => out.iter_mut().zip(x).for_each(|(y, &x)| *y = if x < 0.0 { a * x } else { x }),
                    Unary::Clip(low, high) => out.iter_mut().zip(x).for_each(|(y, &x)| *y = x.max(low).min(high)),
                    Unary::Sigmoid => out.iter_mut().zip(x).for_each(|(y, &x)| *y = 1.0 / (1.0 + (-x).exp())),
                    Unary::Tanh => out.iter_mut().zip(x).for_each(|(y, &x)| *y = x.tanh()),
                }
            }
            Step::Binary { f, of, at, .. } => {
                let (a, c) = (get(of[0]), get(of[1]));
                for (i, y) in out.iter_mut().enumerate() {
                    let (a, c) = (a[at[0][i] as usize], c[at[1][i] as usize]);
                    *y = match f {
                        Binary::Add => a + c,
                        Binary::Sub => a - c,
                        Binary::Mul => a * c,
                    };
                }
            }
            Step::Move { from, .. } => out.iter_mut().zip(from).for_each(|(y, &(s, i))| *y = get(s)[i as usize]),
            Step::Largest { x, windows, taps, .. } => {
                let x = get(*x);
                out.iter_mut().zip(windows.chunks(*taps)).for_each(|(y, w)| *y = x[largest(x, w)]);
            }
            Step::Sums { x, windows, taps, factor, .. } => {
                let x = get(*x);
                for ((y, w), f) in out.iter_mut().zip(windows.chunks((*taps).max(1))).zip(factor) {
                    *y = f * w.iter().filter(|&&i| i != OUTSIDE).map(|&i| x[i as usize]).sum::<f32>();
                }
            }
        }
        b.values[slot] = out;
    }
}

/// `y[i] += sum of w[k] x_k[i]` for rows `x_k` of `rows`.
pub(super) fn add_rows(y: &mut [f32], weights: impl Fn(usize) -> f32, count: usize, rows: &[f32]) {
    let p = y.len();
    let mut k = 0;
    while k + 4 <= count {
        let w = [weights(k), weights(k + 1), weights(k + 2), weights(k + 3)];
        let (a, rest) = rows[k * p..(k + 4) * p].split_at(p);
        let (b, rest) = rest.split_at(p);
        let (c, d) = rest.split_at(p);
        for i in 0..p {
            y[i] += w[0] * a[i] + w[1] * b[i] + w[2] * c[i] + w[3] * d[i];
        }
        k += 4;
    }
    for k in k..count {
        let w = weights(k);
        y.iter_mut().zip(&rows[k * p..(k + 1) * p]).for_each(|(y, x)| *y += w * x);
    }
}

/// The sum of products, in sixteen parts.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut parts = [0f32; 16];
    let (whole, rest) = a.as_chunks::<16>();
    let (other, tail) = b.as_chunks::<16>();
    for (x, y) in whole.iter().zip(other) {
        (0..16).for_each(|i| parts[i] += x[i] * y[i]);
    }
    parts.iter().sum::<f32>() + rest.iter().zip(tail).map(|(x, y)| x * y).sum::<f32>()
}
/// The first largest element of a window.
pub(super) fn largest(x: &[f32], window: &[u32]) -> usize {
    let inside = window.iter().filter(|&&i| i != OUTSIDE).map(|&i| i as usize);
    inside.reduce(|a, b| if x[b] > x[a] { b } else { a }).unwrap_or(0)
}
