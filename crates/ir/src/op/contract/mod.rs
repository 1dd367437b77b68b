//! Contractions: matrix products, einsum, attention.

use super::common::*;
use super::*;
use crate::compute::{Compute, Reducer};
use crate::scalar::{Scalar, Unary as U};

mod attention;
mod recurrence;

gaps! {}

// ---- MatMul ----

/// Dims of a matrix product and its parts: batch, rows, columns, contraction. Vectors have no rows or columns.
pub(super) struct Product {
    /// Dims of the result.
    pub(super) out: Vec<Expr>,
    batch: usize,
    /// Extent of the contraction.
    pub(super) k: Expr,
    a: Vec<Expr>,
    b: Vec<Expr>,
}

impl Product {
    /// numpy's rules for operands of these dims.
    pub(super) fn new(a: &[Expr], b: &[Expr]) -> Result<Product, Fault> {
        if a.is_empty() || b.is_empty() {
            return Err(fault!("a matrix product takes no scalars: {a:?} and {b:?}"));
        }
        let k = a[a.len() - 1];
        expect_dim("the contracted dim of operand 1", b[b.len().saturating_sub(2)], k)?;
        let mut out = broadcast(&[&a[..a.len().saturating_sub(2)], &b[..b.len().saturating_sub(2)]])?;
        let batch = out.len();
        out.extend(a.iter().rev().nth(1));
        if b.len() > 1 {
            out.push(b[b.len() - 1]);
        }
        Ok(Product { out, batch, k, a: a.to_vec(), b: b.to_vec() })
    }
    /// Index of operand 0 at result axes `o` and contraction `k`.
    pub(super) fn index_a(&self, o: &[Expr], k: Expr) -> Vec<Expr> {
        let mut at = self.batch_index(&self.a, o);
        if self.a.len() > 1 {
            at.push(o[self.batch]);
        }
        at.push(k);
        at
    }
    /// Index of operand 1.
    pub(super) fn index_b(&self, o: &[Expr], k: Expr) -> Vec<Expr> {
        let mut at = self.batch_index(&self.b, o);
        at.push(k);
        if self.b.len() > 1 {
            at.push(o[o.len() - 1]);
        }
        at
    }
    fn batch_index(&self, dims: &[Expr], o: &[Expr]) -> Vec<Expr> {
        broadcast_index(&dims[..dims.len().saturating_sub(2)], &self.out[..self.batch], &o[..self.batch])
    }
}

/// An element of operand `source` in the dtype of sums.
fn factor(t: &TensorType, source: usize, index: &[Expr]) -> Scalar {
    Scalar::read_at(t.dtype, source, index).cast(t.dtype.accumulator())
}

impl OpDef for MatMul {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        accept(cx, 0, Accept::Number)?;
        Ok(vec![Fact::tensor(same_dtype(cx)?, Product::new(cx.dims(0)?, cx.dims(1)?)?.out)])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (a, b, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let p = Product::new(&a.dims, &b.dims)?;
        let body = |o: &[Expr], k: &[Expr]| factor(a, 0, &p.index_a(o, k[0])) * factor(b, 1, &p.index_b(o, k[0]));
        let c = Compute::reduce(&out.dims, &[p.k], Reducer::Sum, body, |_, acc| acc.cast(out.dtype));
        Ok(Meaning::one(2, Step::Compute(c)))
    }
}

// ---- Gemm ----

impl OpDef for Gemm {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        accept(cx, 0, Accept::Number)?;
        expect_rank(cx, 0, 2)?;
        expect_rank(cx, 1, 2)?;
        let dtype = same_dtype(cx)?;
        let pick = |d: &[Expr], transposed: i64| if transposed != 0 { [d[1], d[0]] } else { [d[0], d[1]] };
        let ([m, k], [kb, n]) = (pick(cx.dims(0)?, self.transA), pick(cx.dims(1)?, self.transB));
        expect_dim("the contracted dim of operand 1", kb, k)?;
        if cx.has(2) {
            let c = cx.dims(2)?;
            if c.len() > 2 {
                return Err(fault!("operand 2 is {}; it must broadcast to [{m}, {n}]", cx.tensor(2)?));
            }
            for (&got, need) in c.iter().rev().zip([n, m]).filter(|(d, _)| !d.is(1)) {
                expect_dim("a dim of operand 2", got, need)?;
            }
        }
        Ok(vec![Fact::tensor(dtype, [m, n])])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (a, b, out) = (cx.tensor(0)?, cx.tensor(1)?, Ctx::out(outs, 0)?);
        let k = a.dims[if self.transA != 0 { 0 } else { 1 }];
        let order = |transposed: i64, i: Expr, j: Expr| if transposed != 0 { [j, i] } else { [i, j] };
        let scaled = |x: Scalar, by: f32| if by == 1.0 { x } else { num(x, f64::from(by)) * x };
        let add = match cx.has(2) && self.beta != 0.0 {
            true => Some(read_wide(cx, 2, &out.dims, &axes(2))?),
            false => None,
        };
        let c = Compute::reduce(
            &out.dims,
            &[k],
            Reducer::Sum,
            |o, k| factor(a, 0, &order(self.transA, o[0], k[0])) * factor(b, 1, &order(self.transB, k[0], o[1])),
            |_, acc| {
                let product = scaled(acc, self.alpha);
                add.map_or(product, |c| product + scaled(c, self.beta)).cast(out.dtype)
            },
        );
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

// ---- Einsum ----

/// A parsed equation over operands: dims by label. Labels of an ellipsis are `Wild(i)`, counted from the right.
struct Equation {
    operands: Vec<Vec<Label>>,
    out: Vec<Label>,
    /// Labels that only operands have: summed over.
    summed: Vec<Label>,
    extent: std::collections::BTreeMap<Label, Expr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Wild(usize),
    Letter(char),
}

impl Equation {
    fn new(cx: &Ctx, text: &str) -> Result<Equation, Fault> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = text.split_once("->").map_or((text.as_str(), None), |(l, r)| (l, Some(r)));
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != cx.inputs.len() {
            return Err(fault!("equation '{text}' has {} terms for {} operands", terms.len(), cx.inputs.len()));
        }
        let mut extent = std::collections::BTreeMap::new();
        let (mut operands, mut wild) = (vec![], 0);
        for (i, term) in terms.iter().enumerate() {
            let dims = cx.dims(i)?;
            let named = term.replace("...", "").chars().count();
            let rest = if term.contains("...") { dims.len().checked_sub(named) } else { (dims.len() == named).then_some(0) };
            let rest = rest.ok_or_else(|| fault!("term '{term}' does not fit operand {i}, {}", cx.tensor(i).expect("seen")))?;
            wild = wild.max(rest);
            let labels = labels(term, rest)?;
            for (&l, &d) in labels.iter().zip(dims) {
                let e = extent.entry(l).or_insert(d);
                *e = broadcast(&[&[*e], &[d]]).map_err(|_| fault!("equation '{text}': a label has extents {e} and {d}"))?[0];
            }
            operands.push(labels);
        }
        let used = |l: &Label| operands.iter().flatten().filter(|x| *x == l).count();
        let out = match right {
            Some(r) => labels(r, if r.contains("...") { wild } else { 0 })?,
            // Implicit: the ellipsis, then the labels that occur once, in alphabetical order.
            None => extent.keys().filter(|l| matches!(l, Label::Wild(_)) || used(l) == 1).copied().rev_wild(wild),
        };
        if let Some(l) = out.iter().find(|l| !extent.contains_key(l)) {
            return Err(fault!("equation '{text}': result label {l:?} is in no operand"));
        }
        let summed = extent.keys().filter(|l| !out.contains(l)).copied().collect();
        Ok(Equation { operands, out, summed, extent })
    }
}

/// Puts the labels of an ellipsis first, in their order in the result.
trait RevWild {
    fn rev_wild(self, wild: usize) -> Vec<Label>;
}
impl<I: Iterator<Item = Label>> RevWild for I {
    fn rev_wild(self, wild: usize) -> Vec<Label> {
        let letters: Vec<Label> = self.filter(|l| matches!(l, Label::Letter(_))).collect();
        (0..wild).rev().map(Label::Wild).chain(letters).collect()
    }
}

fn labels(term: &str, wild: usize) -> Result<Vec<Label>, Fault> {
    let letters = |s: &str| -> Result<Vec<Label>, Fault> {
        match s.chars().find(|c| !c.is_ascii_alphabetic()) {
            Some(c) => Err(fault!("'{c}' in an equation is no label")),
            None => Ok(s.chars().map(Label::Letter).collect()),
        }
    };
    match term.split_once("...") {
        None => letters(term),
        Some((before, after)) => {
            let mut all = letters(before)?;
            all.extend((0..wild).rev().map(Label::Wild));
            all.extend(letters(after)?);
            Ok(all)
        }
    }
}

impl OpDef for Einsum {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        accept(cx, 0, Accept::Number)?;
        let e = Equation::new(cx, &self.equation)?;
        Ok(vec![Fact::tensor(same_dtype(cx)?, e.out.iter().map(|l| e.extent[l]))])
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let e = Equation::new(cx, &self.equation)?;
        let out = Ctx::out(outs, 0)?;
        let extents: Vec<Expr> = e.summed.iter().map(|l| e.extent[l]).collect();
        let body = |o: &[Expr], r: &[Expr]| {
            let axis = |l: &Label| match e.out.iter().position(|x| x == l) {
                Some(i) => o[i],
                None => r[e.summed.iter().position(|x| x == l).expect("every label is in the result or summed")],
            };
            let read = |i: usize| {
                let t = cx.inputs[i].as_ref().and_then(|f| f.ty.as_tensor()).expect("checked by infer");
                let full: Vec<Expr> = e.operands[i].iter().map(|l| e.extent[l]).collect();
                let axes: Vec<Expr> = e.operands[i].iter().map(axis).collect();
                factor(t, i, &broadcast_index(&t.dims, &full, &axes))
            };
            (1..cx.inputs.len()).fold(read(0), |p, i| p * read(i))
        };
        let c = if extents.is_empty() {
            Compute::map(&out.dims, |o| body(o, &[]).cast(out.dtype))
        } else {
            Compute::reduce(&out.dims, &extents, Reducer::Sum, body, |_, acc| acc.cast(out.dtype))
        };
        Ok(Meaning::one(cx.inputs.len(), Step::Compute(c)))
    }
}

// ---- Det ----

impl OpDef for Det {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let x = accept(cx, 0, Accept::Float)?;
        let (batch, matrix) = x.dims.split_at(x.rank().saturating_sub(2));
        let [rows, columns] = matrix else { return Err(fault!("operand 0 is {x}; it needs rank 2 or more")) };
        expect_dim("the number of columns", *columns, *rows)?;
        if rows.known().is_none_or(|n| n > 64) {
            return Err(fault!("the matrix of {x} must have a size known at compile time, at most 64"));
        }
        Ok(vec![Fact::tensor(x.dtype, batch.to_vec())])
    }
    /// Elimination with partial pivoting: for each column the row of the pivot, then the smaller matrix with that row's
    /// multiple taken off (the first remaining row moves to the pivot's place), then the product of pivots and signs.
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let (wide, rank) = (x.dtype.accumulator(), out.rank());
        let n = x.dims[rank].known().ok_or_else(|| fault!("the size of {x} is not known"))?;
        let mut steps = vec![];
        let (mut matrix, mut dtype) = (0usize, x.dtype);
        let mut pivots: Vec<(usize, usize, DType)> = vec![]; // matrix, row of its pivot, dtype of the matrix
        for size in (1..=n).rev() {
            let (from, from_dtype) = (matrix, dtype);
            let element = move |o: &[Expr], i: Scalar, j: Scalar| {
                let at = o[..rank].iter().map(|&e| Scalar::index(e)).chain([i, j]);
                Scalar::read(from_dtype, from, at).cast(wide)
            };
            let zero = Scalar::index(0);
            let largest = Compute::reduce(
                &out.dims,
                &[Expr::int(size)],
                Reducer::ArgMax { last: false },
                |o, i| un(U::Abs, element(o, Scalar::index(i[0]), zero)),
                |_, acc| acc,
            );
            steps.push(Step::Compute(largest));
            let row = steps.len();
            pivots.push((from, row, from_dtype));
            let smaller: Vec<Expr> = out.dims.iter().copied().chain([Expr::int(size - 1); 2]).collect();
            let next = Compute::map(&smaller, |o| {
                let pivot_row = Scalar::read_at(DType::I64, row, &o[..rank]);
                let (i, j) = (Scalar::index(o[rank] + 1), Scalar::index(o[rank + 1] + 1));
                let i = Scalar::select(i.eq_to(pivot_row), zero, i);
                let pivot = element(o, pivot_row, zero);
                let safe = Scalar::select(pivot.eq_to(num(pivot, 0.0)), num(pivot, 1.0), pivot);
                element(o, i, j) - element(o, i, zero) / safe * element(o, pivot_row, j)
            });
            if size > 1 {
                steps.push(Step::Compute(next));
                (matrix, dtype) = (steps.len(), wide);
            }
        }
        let product = Compute::map(&out.dims, |o| {
            let one = Scalar::number(wide, 1.0);
            pivots.iter().fold(one, |p, &(from, row, dtype)| {
                let row = Scalar::read_at(DType::I64, row, o);
                let at = o.iter().map(|&e| Scalar::index(e)).chain([row, Scalar::index(0)]);
                let pivot = Scalar::read(dtype, from, at).cast(wide);
                p * Scalar::select(row.eq_to(Scalar::index(0)), pivot, -pivot)
            })
        });
        let c = Compute { value: product.value.cast(out.dtype), ..product };
        steps.push(Step::Compute(c));
        let last = steps.len() as u32;
        Ok(Meaning::Steps { steps, outputs: vec![last] })
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::testing::*;
    use super::*;
    use DType::F32;

    fn gemm(alpha: f32, beta: f32, trans_a: i64, trans_b: i64) -> Gemm {
        Gemm { alpha, beta, transA: trans_a, transB: trans_b }
    }

    #[test]
    fn values() {
        let a = f32s(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let b = f32s(&[2, 2], &[5.0, 6.0, 7.0, 8.0]);
        check(MatMul {}, &[a.clone(), b.clone()], &[2, 2], &[19.0, 22.0, 43.0, 50.0]);
        check(MatMul {}, &[f32s(&[2], &[1.0, 1.0]), b.clone()], &[2], &[12.0, 14.0]);
        check(gemm(0.5, 2.0, 1, 0), &[a.clone(), b.clone(), f32s(&[2], &[1.0, 0.0])], &[2, 2], &[15.0, 15.0, 21.0, 22.0]);
        check(Einsum { equation: "ij,jk->ki".into() }, &[a.clone(), b.clone()], &[2, 2], &[19.0, 43.0, 22.0, 50.0]);
        check(Einsum { equation: "...ii->...i".into() }, from_ref(&a), &[2], &[1.0, 4.0]);
        check(Einsum { equation: "ij".into() }, from_ref(&a), &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        check(Det {}, &[f32s(&[3, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0])], &[], &[-3.0]);
    }

    #[test]
    fn contractions_are_products_of_reads() {
        let m: &[(DType, &[&str])] = &[(F32, &["n", "4"]), (F32, &["4", "8"])];
        assert_eq!(body(MatMul {}, m), "mul(b0:f32[i0, i2], b1:f32[i2, i1])");
        assert_eq!(body(gemm(1.0, 1.0, 0, 0), m), "mul(b0:f32[i0, i2], b1:f32[i2, i1])");
        let batched: &[(DType, &[&str])] = &[(F32, &["n", "1", "s", "4"]), (F32, &["h", "4", "8"])];
        assert_eq!(body(MatMul {}, batched), "mul(b0:f32[i0, 0, i2, i4], b1:f32[i1, i4, i3])");
    }

    #[test]
    fn types() {
        check_type(MatMul {}, &[(F32, &["n", "1", "s", "4"]), (F32, &["h", "4", "8"])], "f32[n, h, s, 8]");
        check_type(MatMul {}, &[(F32, &["2", "3"]), (F32, &["4", "5"])], "the contracted dim of operand 1 is 4, but must be 3");
        check_type(
            Einsum { equation: "bhqd,bhkd->bhqk".into() },
            &[(F32, &["b", "h", "q", "d"]), (F32, &["b", "h", "k", "d"])],
            "f32[b, h, q, k]",
        );
    }
}
