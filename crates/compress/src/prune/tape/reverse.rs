//! The steps of a tape backwards: gradients.

use super::forward::{add_rows, dot, largest};
use super::{Binary, Buffers, OUTSIDE, Step, Tape, Unary};

impl Tape {
    /// After a run: adds the gradient by all that is fitted, for the gradient by the outputs that `seed` puts into zeros.
    pub fn back(&self, constants: &[Vec<f32>], b: &mut Buffers, seed: &mut dyn FnMut(usize, &[f32], &mut [f32])) {
        let mut fitted = vec![false; self.sizes.len()];
        self.fitted.iter().for_each(|&s| fitted[s] = true);
        (0..self.sizes.len()).filter(|&s| !fitted[s]).for_each(|s| b.gradients[s].fill(0.0));
        for (k, slot) in self.outputs.iter().enumerate() {
            if let Some(s) = slot.filter(|&s| self.needs[s]) {
                seed(k, &b.values[s], &mut b.gradients[s]);
            }
        }
        for step in self.steps.iter().rev().filter(|s| self.needs[s.result()]) {
            self.reverse(step, constants, b);
        }
    }
    fn reverse(&self, step: &Step, constants: &[Vec<f32>], b: &mut Buffers) {
        let slot = step.result();
        let dy = std::mem::take(&mut b.gradients[slot]);
        let (values, gradients) = (&b.values, &mut b.gradients);
        let get = |s: usize| if constants[s].is_empty() { &values[s] } else { &constants[s] };
        match step {
            Step::Product { x, w, bias, size: [groups, m, k, p], columns, places, .. } => {
                let from = get(*x);
                b.columns.clear();
                b.columns.extend(columns.iter().map(|&i| if i == OUTSIDE { 0.0 } else { from[i as usize] }));
                b.sums.clear();
                b.sums.extend(places.iter().map(|&i| dy[i as usize]));
                if let Some(bias) = bias.filter(|&s| self.needs[s]) {
                    let to = gradients[bias].iter_mut().zip(b.sums.chunks((*p).max(1)));
                    to.for_each(|(d, row)| *d += row.iter().sum::<f32>());
                }
                if self.needs[*w] {
                    for (row, d) in gradients[*w].chunks_mut(*k).enumerate() {
                        let (j, sums) = (row / m, &b.sums[row * p..(row + 1) * p]);
                        d.iter_mut()
                            .enumerate()
                            .for_each(|(i, d)| *d += dot(sums, &b.columns[(j * k + i) * p..(j * k + i + 1) * p]));
                    }
                }
                if self.needs[*x] {
                    let (w, to) = (&constants[*w], &mut gradients[*x]);
                    b.back.resize(*p, 0.0);
                    for j in 0..*groups {
                        for i in 0..*k {
                            b.back.fill(0.0);
                            add_rows(&mut b.back, |o| w[(j * m + o) * k + i], *m, &b.sums[j * m * p..(j + 1) * m * p]);
                            let at = &columns[(j * k + i) * p..(j * k + i + 1) * p];
                            at.iter().zip(&b.back).filter(|x| *x.0 != OUTSIDE).for_each(|(&i, v)| to[i as usize] += v);
                        }
                    }
                }
            }
            Step::Channels { x, factor, inner, .. } => {
                let channels = factor.len();
                for (i, (d, dy)) in gradients[*x].chunks_mut((*inner).max(1)).zip(dy.chunks((*inner).max(1))).enumerate() {
                    d.iter_mut().zip(dy).for_each(|(d, y)| *d += factor[i % channels] * y);
                }
            }
            Step::Unary { x, f, y } => {
                let (from, result) = (get(*x), &values[*y]);
                for (i, d) in gradients[*x].iter_mut().enumerate() {
                    *d += dy[i]
                        * match *f {
                            Unary::Leaky(a) => {
                                if from[i] > 0.0 {
                                    1.0
                                } else {
                                    a
                                }
                            }
                            Unary::Clip(low, high) => {
                                if from[i] > low && from[i] < high {
                                    1.0
                                } else {
                                    0.0
                                }
                            }
                            Unary::Sigmoid => result[i] * (1.0 - result[i]),
                            Unary::Tanh => 1.0 - result[i] * result[i],
                        };
                }
            }
            Step::Binary { f, of, at, .. } => {
                for k in (0..2).filter(|&k| self.needs[of[k]]) {
                    let other = get(of[1 - k]);
                    for (i, dy) in dy.iter().enumerate() {
                        let factor = match (f, k) {
                            (Binary::Add, _) | (Binary::Sub, 0) => 1.0,
                            (Binary::Sub, _) => -1.0,
                            (Binary::Mul, _) => other[at[1 - k][i] as usize],
                        };
                        gradients[of[k]][at[k][i] as usize] += factor * dy;
                    }
                }
            }
            Step::Move { from, .. } => {
                for (&(s, i), dy) in from.iter().zip(&dy).filter(|x| self.needs[x.0.0]) {
                    gradients[s][i as usize] += dy;
                }
            }
            Step::Largest { x, windows, taps, .. } => {
                let from = get(*x);
                windows.chunks(*taps).zip(&dy).for_each(|(w, dy)| gradients[*x][largest(from, w)] += dy);
            }
            Step::Sums { x, windows, taps, factor, .. } => {
                for ((w, f), dy) in windows.chunks((*taps).max(1)).zip(factor).zip(&dy) {
                    w.iter().filter(|&&i| i != OUTSIDE).for_each(|&i| gradients[*x][i as usize] += f * dy);
                }
            }
        }
        b.gradients[slot] = dy;
    }
}
