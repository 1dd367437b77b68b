//! TfIdfVectorizer: how often n-grams of a pool occur.

use crate::Fault;
use crate::fault::fault;
use crate::table::keys;
use crate::tensor::{Tensor, filled};
use crate::value::{Inputs, Key, Value, tensor};
use std::collections::HashMap;

/// The most places of a result row.
const WIDEST: i64 = 1 << 24;

/// What a count becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighting {
    /// The count.
    Tf,
    /// The weight, if there is any.
    Idf,
    /// Count times weight.
    TfIdf,
}

/// What ONNX's attributes say.
#[derive(Clone, Debug, PartialEq)]
pub struct TfIdf {
    /// What a count becomes.
    pub mode: Weighting,
    /// Shortest n-grams.
    pub least: usize,
    /// Longest n-grams.
    pub most: usize,
    /// Most elements that are skipped between those of an n-gram.
    pub skips: usize,
    /// Where the n-grams of each length begin in the pool.
    pub starts: Vec<i64>,
    /// The place of each n-gram in a row of the result.
    pub places: Vec<i64>,
    /// All n-grams, one after the other.
    pub pool: Tensor,
    /// A weight for each n-gram; none: 1.
    pub weights: Vec<f32>,
}

impl TfIdf {
    /// Checks what `run` relies on; an error in ONNX's words.
    pub fn check(&self) -> Result<(), Fault> {
        if self.least < 1 || self.most < self.least || self.most > 1 << 16 || self.skips > 1 << 16 {
            return Err(fault!("n-grams of {} to {} elements with {} skips are not possible", self.least, self.most, self.skips));
        }
        if self.places.iter().any(|p| !(0..WIDEST).contains(p)) {
            return Err(fault!("ngram_indexes {:?} are not all from 0 to {WIDEST}", self.places));
        }
        if !self.weights.is_empty() && self.weights.len() != self.places.len() {
            return Err(fault!("{} weights for {} n-grams", self.weights.len(), self.places.len()));
        }
        Ok(())
    }

    /// Length of a result row.
    pub fn width(&self) -> usize {
        self.places.iter().map(|&p| p as usize + 1).max().unwrap_or(0)
    }

    /// n-grams by their elements; number k among all has its place in `places`.
    fn grams<'a>(&self, pool: &'a [Key]) -> Result<HashMap<&'a [Key], usize>, Fault> {
        let (mut grams, mut number) = (HashMap::new(), 0);
        for (i, &start) in self.starts.iter().enumerate() {
            let end = self.starts.get(i + 1).map_or(pool.len(), |&e| e.max(0) as usize);
            let part = pool.get(start.max(0) as usize..end).ok_or_else(|| fault!("ngram_counts do not fit the pool"))?;
            for gram in part.chunks_exact(i + 1) {
                grams.insert(gram, number);
                number += 1;
            }
        }
        Ok(grams)
    }

    pub(crate) fn run(&self, inputs: Inputs) -> Result<Value, Fault> {
        let t = tensor(inputs, 0)?;
        let pool = keys(&self.pool)?;
        let grams = self.grams(&pool)?;
        let width = self.width();
        let (rows, columns) = match t.dims() {
            [n] => (1, *n),
            [rows, columns] => (*rows, *columns),
            _ => return Err(fault!("operand 0 is {t}, rank 1 or 2 is needed")),
        };
        let elements = keys(t)?;
        let mut out = filled(rows.saturating_mul(width), 0.0f32)?;
        for row in 0..rows {
            let (text, counts) = (&elements[row * columns..(row + 1) * columns], &mut out[row * width..(row + 1) * width]);
            self.row(text, &grams, counts)?;
        }
        let dims = if t.dims().len() == 2 { vec![rows, width] } else { vec![width] };
        Ok(Tensor::from_floats(dims, &out)?.into())
    }

    fn row(&self, text: &[Key], grams: &HashMap<&[Key], usize>, counts: &mut [f32]) -> Result<(), Fault> {
        for skip in 0..=self.skips {
            for n in self.least..=self.most {
                // Skips make no difference to single elements.
                if n == 1 && skip > 0 {
                    continue;
                }
                let reach = (n - 1) * (skip + 1);
                for start in 0..text.len().saturating_sub(reach) {
                    let gram: Vec<Key> = (0..n).map(|k| text[start + k * (skip + 1)].clone()).collect();
                    let Some(&k) = grams.get(&gram[..]) else { continue };
                    let place = self.places.get(k).ok_or_else(|| fault!("ngram_indexes do not fit the pool"))?;
                    let cell = &mut counts[*place as usize];
                    let weight = self.weights.get(k).copied().unwrap_or(1.0);
                    match self.mode {
                        Weighting::Tf => *cell += 1.0,
                        Weighting::Idf => *cell = weight,
                        Weighting::TfIdf => *cell += weight,
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> TfIdf {
        TfIdf {
            mode: Weighting::Tf,
            least: 2,
            most: 2,
            skips: 5,
            starts: vec![0, 4],
            places: vec![0, 1, 2, 3, 4, 5, 6],
            pool: Tensor::from_ints(vec![10], &[2, 3, 5, 4, 5, 6, 7, 8, 6, 7]).unwrap(),
            weights: vec![],
        }
    }

    #[test]
    fn bigrams_with_skips_are_counted() {
        let x: Value = Tensor::from_ints(vec![12], &[1, 1, 3, 3, 3, 7, 8, 6, 7, 5, 6, 8]).unwrap().into();
        let made = sample().run(&[Some(&x)]).unwrap();
        assert_eq!(made.as_tensor().unwrap().floats().unwrap(), [0.0, 0.0, 0.0, 0.0, 1.0, 3.0, 1.0]);
    }

    #[test]
    fn attributes_that_do_not_fit_are_errors() {
        assert!(TfIdf { places: vec![-1], ..sample() }.check().is_err());
        assert!(TfIdf { least: 0, ..sample() }.check().is_err());
        let x: Value = Tensor::from_ints(vec![2], &[7, 8]).unwrap().into();
        assert_eq!(TfIdf { starts: vec![0, 99], ..sample() }.run(&[Some(&x)]).unwrap_err().0, "ngram_counts do not fit the pool");
        assert_eq!(TfIdf { places: vec![0], ..sample() }.run(&[Some(&x)]).unwrap_err().0, "ngram_indexes do not fit the pool");
    }
}
