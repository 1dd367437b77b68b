//! The loop that matters: a sum of products of two f32 reads along a row, in the order of the definition.

use super::exec::Rows;
use super::tape::{Access, Guard, Op, Read, Reg, Tape};
use crate::compute::Reducer;
use crate::dtype::DType;
use crate::fault;
use crate::fault::Fault;
use crate::scalar::Binary;
use std::ops::Range;

/// A product whose operands need no columns: each is one value for the row, or elements at a stride.
pub struct Product {
    a: Reg,
    b: Reg,
    /// The operations that [`Product::add`] does itself.
    pub apart: Vec<Reg>,
}

/// An operand of the product in a part of the row.
#[derive(Clone, Copy)]
enum Factor<'a> {
    One(f32),
    Strided(&'a [f32], i64, i64),
}

impl Product {
    /// The product that is summed, if `tape` is one.
    pub fn find(tape: &Tape, kind: Reducer) -> Option<Product> {
        let root = &tape.nodes[tape.root];
        let Op::Binary(Binary::Mul, a, b) = root.op else { return None };
        if kind != Reducer::Sum || root.dtype != DType::F32 || !root.varies {
            return None;
        }
        let plain = |r: Reg| match &tape.nodes[r].op {
            _ if !tape.nodes[r].varies => true,
            Op::Read(Read { access: Access::Row { .. }, guard, .. }) => {
                guard.as_ref().is_none_or(|g: &Guard| g.masks.is_empty() && !tape.nodes[g.fallback].varies)
            }
            _ => false,
        };
        if !plain(a) || !plain(b) {
            return None;
        }
        let apart = [tape.root, a, b].into_iter().filter(|&r| tape.nodes[r].varies).collect();
        Some(Product { a, b, apart })
    }

    /// Adds the products of one row to the accumulators: one for each lane, or a single one for all.
    pub fn add(&self, rows: &Rows, acc: &mut [f32]) -> Result<(), Fault> {
        let spans = [self.span(rows, self.a)?, self.span(rows, self.b)?];
        let mut cuts = [0, spans[0].start, spans[0].end, spans[1].start, spans[1].end, rows.n];
        cuts.sort_unstable();
        for w in cuts.windows(2).filter(|w| w[0] < w[1]) {
            let part = w[0]..w[1];
            let a = self.factor(rows, self.a, &spans[0], &part)?;
            let b = self.factor(rows, self.b, &spans[1], &part)?;
            match &mut *acc {
                [one] => *one = chain(*one, a, b, part.len()),
                many => row(&mut many[part], a, b),
            }
        }
        Ok(())
    }

    fn span(&self, rows: &Rows, r: Reg) -> Result<Range<usize>, Fault> {
        match &rows.tape.nodes[r].op {
            Op::Read(read) if rows.tape.nodes[r].varies => {
                let span = rows.span(read.guard.as_ref());
                rows.check(read, span.clone())?;
                Ok(span)
            }
            _ => Ok(0..rows.n),
        }
    }

    fn factor<'r>(&self, rows: &'r Rows, r: Reg, span: &Range<usize>, part: &Range<usize>) -> Result<Factor<'r>, Fault> {
        let node = &rows.tape.nodes[r];
        let one = |r: Reg| Factor::One(f64::from_bits(rows.get(r, 0)) as f32);
        let Op::Read(Read { source, access: Access::Row { start, stride, .. }, guard }) = &node.op else { return Ok(one(r)) };
        if !node.varies {
            return Ok(one(r));
        }
        if let Some(g) = guard
            && !(span.start <= part.start && part.end <= span.end)
        {
            return Ok(one(g.fallback));
        }
        let data = &rows.sources[*source].as_ref().expect("checked when the tape was made").floats;
        let at = rows.address(*start, *stride) + part.start as i64 * stride;
        let last = at + (part.len() as i64 - 1) * stride;
        let inside = 0..data.len() as i64;
        if inside.contains(&at) && inside.contains(&last) {
            Ok(Factor::Strided(data, at, *stride))
        } else {
            Err(fault!("internal error: elements {at} to {last} are outside operand {source}"))
        }
    }
}

/// The `n` elements from `at` on, for a stride of 1.
fn dense(data: &[f32], at: i64, n: usize) -> &[f32] {
    &data[at as usize..at as usize + n]
}

fn row(acc: &mut [f32], a: Factor, b: Factor) {
    use Factor::{One, Strided};
    let n = acc.len();
    match (a, b) {
        (One(x), One(y)) => acc.iter_mut().for_each(|s| *s += x * y),
        (One(x), Strided(d, at, 1)) | (Strided(d, at, 1), One(x)) => {
            acc.iter_mut().zip(dense(d, at, n)).for_each(|(s, &y)| *s += x * y);
        }
        (One(x), Strided(d, at, step)) | (Strided(d, at, step), One(x)) if step > 0 => {
            let values = d[at as usize..].iter().step_by(step as usize);
            acc.iter_mut().zip(values).for_each(|(s, &y)| *s += x * y);
        }
        (Strided(d, at, 1), Strided(e, bt, 1)) => {
            let pairs = dense(d, at, n).iter().zip(dense(e, bt, n));
            acc.iter_mut().zip(pairs).for_each(|(s, (&x, &y))| *s += x * y);
        }
        (a, b) => acc.iter_mut().enumerate().for_each(|(j, s)| *s += a.at(j) * b.at(j)),
    }
}

fn chain(start: f32, a: Factor, b: Factor, n: usize) -> f32 {
    match (a, b) {
        (Factor::Strided(d, at, 1), Factor::Strided(e, bt, 1)) => {
            dense(d, at, n).iter().zip(dense(e, bt, n)).fold(start, |s, (&x, &y)| s + x * y)
        }
        (a, b) => (0..n).fold(start, |s, j| s + a.at(j) * b.at(j)),
    }
}

impl Factor<'_> {
    #[inline(always)]
    fn at(self, j: usize) -> f32 {
        match self {
            Factor::One(v) => v,
            Factor::Strided(d, at, step) => d[(at + j as i64 * step) as usize],
        }
    }
}
