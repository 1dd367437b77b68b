//! Weights to stored integers, layer by layer, and what that does to the mean of their results.

use super::params::Scales;
use super::reconstruct::{self, Gram};
use crate::layers::{Grid, Kind, Layer};
use infc_ir::graph::Graph;

/// Stored weights of one operand.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The weights as a matrix.
    pub grid: Grid,
    /// In the order of the tensor.
    pub values: Vec<i64>,
    /// Their scales.
    pub scales: Scales,
}

impl Stored {
    /// The numbers that they stand for, in the order of the tensor.
    pub fn real(&self) -> Vec<f32> {
        let depth = self.grid.depth();
        let mut out = vec![0.0; self.values.len()];
        for c in 0..self.grid.channels {
            for k in 0..depth {
                let at = self.grid.at(c, k);
                out[at] = Scales::real(self.values[at], self.scales.step(depth, c, k));
            }
        }
        out
    }
}

/// Terms that share a scale, with 8 bits: all of a channel; of tables, whose rows have few but far outliers, some.
pub fn group(kind: Kind) -> usize {
    if kind == Kind::Table { 64 } else { usize::MAX }
}

/// Rounds the weights of a slot to integers up to `most`, with zero points or without: by reconstruction if there are Gram matrices of what they are multiplied with, else to nearest.
pub fn round(
    w: &[f32],
    grid: Grid,
    group: usize,
    (most, zeros): (i64, bool),
    least_scale: &dyn Fn(usize) -> f32,
    grams: Option<&[Gram]>,
) -> Stored {
    let depth = grid.depth();
    let mut scales = match grams {
        Some(g) => {
            let per_group = (grid.channels / g.len()).max(1);
            let importance = |c: usize, k: usize| g[(c / per_group).min(g.len() - 1)].diagonal(k);
            Scales::fit(w, grid, group, most, zeros, Some(&importance))
        }
        None => Scales::fit(w, grid, group, most, zeros, None),
    };
    let per_channel = depth.div_ceil(scales.group).max(1);
    for (i, s) in scales.values.iter_mut().enumerate() {
        *s = s.max(least_scale(i / per_channel));
    }
    let values = match grams {
        Some(g) => reconstruct::round(w, grid, &scales, g),
        None => {
            let mut values = vec![0; w.len()];
            for c in 0..grid.channels {
                for k in 0..depth {
                    let at = grid.at(c, k);
                    values[at] = scales.store(w[at], scales.step(depth, c, k));
                }
            }
            values
        }
    };
    Stored { grid, values, scales }
}

/// What the mean of each output channel loses: `sum_k (w - w') mean(x_k)`, for the means of the input channels.
pub fn lost_mean(g: &Graph, layer: &Layer, w: &[f32], stored: &Stored, mean: &[f32]) -> Vec<f64> {
    let (grid, real) = (stored.grid, stored.real());
    (0..grid.channels)
        .map(|c| {
            let term = |k: usize| {
                let at = grid.at(c, k);
                let x = mean.get(layer.input_channel(g, c, k)).copied().unwrap_or(0.0);
                f64::from(w[at] - real[at]) * f64::from(x)
            };
            (0..grid.depth()).map(term).sum()
        })
        .collect()
}
