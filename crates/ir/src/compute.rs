//! The compute form: *what* one tensor's elements are, with no order of evaluation.
//!
//! A [`Compute`] has parallel axes (its output dims, variables `i0..`) and, if it reduces, reduction axes (the next
//! variables). Its sources are numbered: the operands of the node first, then the results of earlier steps of the same node.

use crate::dtype::DType;
use crate::expr::{Expr, Ranges};
use crate::scalar::{Binary, Kind, Scalar};

/// How values of a reduction are combined. Empty reductions give the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reducer {
    /// Sum; identity 0.
    Sum,
    /// Product; identity 1.
    Prod,
    /// Minimum, NaN wins; identity +inf or the largest integer.
    Min,
    /// Maximum, NaN wins; identity -inf or the smallest integer.
    Max,
    /// Index (`i64`) along the single reduction axis of the largest value; of equal ones the first, or the last if `last`.
    /// A NaN counts as the largest.
    ArgMax {
        /// Take the last of equal values.
        last: bool,
    },
    /// As `ArgMax`, of the smallest value. A NaN counts as the smallest.
    ArgMin {
        /// Take the last of equal values.
        last: bool,
    },
}

/// A reduction over `axes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reduction {
    /// Extents of the reduction axes; axis `j` is variable `rank + j`.
    pub axes: Vec<Expr>,
    /// How values combine.
    pub kind: Reducer,
    /// The value combined, in the accumulator's dtype.
    pub body: Scalar,
}

/// One tensor, element by element: `out[i0, i1, ...] = value`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Compute {
    /// Output dims; axis `i` is variable `i`.
    pub dims: Vec<Expr>,
    /// The reduction whose result `value` sees as `Local(0)`.
    pub reduction: Option<Reduction>,
    /// The element, in terms of reads, axis variables `0..dims.len()` and `Local(0)`.
    pub value: Scalar,
}

/// Starts from `base`, then for all updates in row-major order: `out[index] = value`, or `combine(out[index], value)`.
/// An update whose index lies outside the output is an error of the model at run time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scatter {
    /// Output dims.
    pub dims: Vec<Expr>,
    /// Initial element, over axes `0..dims.len()`.
    pub base: Scalar,
    /// Extents of the update space, variables `0..updates.len()`.
    pub updates: Vec<Expr>,
    /// Where an update goes, one `i64` scalar per output dim.
    pub index: Vec<Scalar>,
    /// The updating value.
    pub value: Scalar,
    /// How it joins what is there; `None` overwrites.
    pub combine: Option<Binary>,
}

/// A running reduction along one axis (CumSum): `out[.., k, ..] = body[.., first, ..] + ... + body[.., k, ..]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// Output dims; `body` is over these axes.
    pub dims: Vec<Expr>,
    /// The axis that runs.
    pub axis: usize,
    /// From the end to the start.
    pub reverse: bool,
    /// Leave the element itself out.
    pub exclusive: bool,
    /// `Add` or `Mul` (or another associative operator).
    pub combine: Binary,
    /// The first value carried.
    pub init: Scalar,
    /// The value at each position.
    pub body: Scalar,
}

/// The order of elements along an axis: `out[.., n, ..]` is the index (`i64`) of the n-th of `extent` elements by `key`; of equal
/// ones the lower index comes first. A NaN is larger than all numbers and equal to other NaNs; zeros are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sort {
    /// Output dims; `dims[axis]` is how many are asked for, at most `extent`.
    pub dims: Vec<Expr>,
    /// The axis sorted along.
    pub axis: usize,
    /// How many elements there are.
    pub extent: Expr,
    /// Extents of the axes of a compound key, compared in row-major order; empty for a key of one value.
    pub parts: Vec<Expr>,
    /// The key of the element that axis variable `axis` numbers, over the axes and (the next variables) its parts.
    pub key: Scalar,
    /// Largest first.
    pub descending: bool,
}

/// Where a condition holds: `out[0]` is the number of such positions, `out[1..]` they are, as row-major positions (`i64`) in rising
/// order; what follows is undefined.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Output dims: one, the product of `over` plus 1.
    pub dims: Vec<Expr>,
    /// Extents of the positions, variables `0..over.len()`.
    pub over: Vec<Expr>,
    /// The condition.
    pub cond: Scalar,
}

/// A greedy choice along the last axis: of the candidates `0..n`, those for which `cond` holds in falling order of `key` (NaN first, equal
/// ones by their number), each taken if fewer than `most` are taken and it clashes with none taken before. `out[.., 0]` is how many,
/// `out[.., 1..]` which (`i64`); what follows is undefined.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Output dims; the last one is the number of candidates plus 1.
    pub dims: Vec<Expr>,
    /// The most that are taken, `i64`, over all axes but the last.
    pub most: Scalar,
    /// What orders the candidates, `f32`, over all axes.
    pub key: Scalar,
    /// May the candidate (the last axis variable) be taken?
    pub cond: Scalar,
    /// Does the candidate clash with the earlier one that variable `dims.len()` numbers?
    pub clash: Scalar,
}

/// One step of a node's meaning; each makes one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Independent elements.
    Compute(Compute),
    /// Writes at computed places.
    Scatter(Scatter),
    /// A running reduction.
    Prefix(Prefix),
    /// Sorting.
    Sort(Sort),
    /// Selection.
    Filter(Filter),
    /// Greedy selection.
    Choice(Choice),
}

impl Step {
    /// Dims of the tensor it makes.
    pub fn dims(&self) -> &[Expr] {
        match self {
            Step::Compute(c) => &c.dims,
            Step::Scatter(s) => &s.dims,
            Step::Prefix(p) => &p.dims,
            Step::Sort(s) => &s.dims,
            Step::Filter(f) => &f.dims,
            Step::Choice(c) => &c.dims,
        }
    }
    /// Dtype of the tensor it makes.
    pub fn dtype(&self) -> DType {
        match self {
            Step::Compute(c) => c.value.dtype(),
            Step::Scatter(s) => s.base.dtype(),
            Step::Prefix(p) => p.body.dtype(),
            Step::Sort(_) | Step::Filter(_) | Step::Choice(_) => DType::I64,
        }
    }
    /// The scalars in it.
    pub fn scalars(&self) -> Vec<Scalar> {
        match self {
            Step::Compute(c) => c.reduction.iter().map(|r| r.body).chain([c.value]).collect(),
            Step::Scatter(s) => s.index.iter().copied().chain([s.base, s.value]).collect(),
            Step::Prefix(p) => vec![p.init, p.body],
            Step::Sort(s) => vec![s.key],
            Step::Filter(f) => vec![f.cond],
            Step::Choice(c) => vec![c.most, c.key, c.cond, c.clash],
        }
    }
    /// Rewrites every scalar in it.
    pub fn map(&self, f: &mut dyn FnMut(Scalar) -> Scalar) -> Step {
        match self {
            Step::Compute(c) => Step::Compute(Compute {
                dims: c.dims.clone(),
                reduction: c.reduction.as_ref().map(|r| Reduction { axes: r.axes.clone(), kind: r.kind, body: f(r.body) }),
                value: f(c.value),
            }),
            Step::Scatter(s) => Step::Scatter(Scatter {
                base: f(s.base),
                index: s.index.iter().map(|&i| f(i)).collect(),
                value: f(s.value),
                ..s.clone()
            }),
            Step::Prefix(p) => Step::Prefix(Prefix { init: f(p.init), body: f(p.body), ..p.clone() }),
            Step::Sort(s) => Step::Sort(Sort { key: f(s.key), ..s.clone() }),
            Step::Filter(s) => Step::Filter(Filter { cond: f(s.cond), ..s.clone() }),
            Step::Choice(c) => {
                Step::Choice(Choice { most: f(c.most), key: f(c.key), cond: f(c.cond), clash: f(c.clash), dims: c.dims.clone() })
            }
        }
    }
    /// Rewrites source numbers.
    pub fn map_sources(&self, f: &dyn Fn(u32) -> u32) -> Step {
        self.map(&mut |s| {
            s.rewrite(&mut |n| match n.kind() {
                Kind::Read { source, index, guard } => {
                    Scalar::raw(n.dtype(), Kind::Read { source: f(*source), index: index.clone(), guard: *guard })
                }
                _ => n,
            })
        })
    }
    /// The sources it reads, sorted, each once.
    pub fn sources(&self) -> Vec<u32> {
        let mut all = vec![];
        for s in self.scalars() {
            s.visit(&mut |n| {
                if let Kind::Read { source, .. } = n.kind() {
                    all.push(*source);
                }
            });
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Filter {
    /// Positions in `over` where `cond(axes)` holds.
    pub fn new(over: &[Expr], cond: impl FnOnce(&[Expr]) -> Scalar) -> Filter {
        let axes: Vec<Expr> = (0..over.len()).map(Expr::var).collect();
        Filter { dims: vec![Expr::product(over.iter().copied()) + 1], over: over.to_vec(), cond: cond(&axes) }
    }
}

impl Compute {
    /// An elementwise compute: `value(axes)` for each element.
    pub fn map(dims: &[Expr], value: impl FnOnce(&[Expr]) -> Scalar) -> Compute {
        let axes: Vec<Expr> = (0..dims.len()).map(Expr::var).collect();
        Compute { dims: dims.to_vec(), reduction: None, value: value(&axes) }
    }

    /// A reduction: `body(axes, reduction axes)` combined by `kind`, then `finish(accumulator)`.
    pub fn reduce(
        dims: &[Expr],
        extents: &[Expr],
        kind: Reducer,
        body: impl FnOnce(&[Expr], &[Expr]) -> Scalar,
        finish: impl FnOnce(&[Expr], Scalar) -> Scalar,
    ) -> Compute {
        let axes: Vec<Expr> = (0..dims.len() + extents.len()).map(Expr::var).collect();
        let (outer, inner) = axes.split_at(dims.len());
        let body = body(outer, inner);
        let acc = Scalar::local(kind.result(body.dtype()), 0);
        let value = finish(outer, acc);
        Compute { dims: dims.to_vec(), reduction: Some(Reduction { axes: extents.to_vec(), kind, body }), value }
    }

    /// Ranges of all its axes.
    pub fn ranges(&self) -> Ranges {
        let reduce = self.reduction.iter().flat_map(|r| r.axes.iter());
        Ranges::of_axes(&self.dims.iter().chain(reduce).copied().collect::<Vec<_>>())
    }

    /// All its index expressions simplified with the ranges of its axes.
    pub fn simplify(&self) -> Compute {
        let env = self.ranges();
        let Step::Compute(c) = Step::Compute(self.clone()).map(&mut |s| simplify_scalar(s, &env)) else { unreachable!() };
        c
    }
}

/// Index expressions simplified, and comparisons of them decided where the ranges allow it.
pub fn simplify_scalar(s: Scalar, env: &Ranges) -> Scalar {
    s.rewrite(&mut |n| match n.kind() {
        Kind::Index(e) => Scalar::index(e.simplify(env)),
        Kind::Binary(op, a, b) if op.is_comparison() => match (a.as_index(), b.as_index()) {
            (Some(x), Some(y)) => {
                let r = (x - y).simplify(env).range(env);
                let known = |yes: bool, no: bool| yes.then_some(true).or(no.then_some(false));
                let decided = match op {
                    Binary::Lt => known(r.hi < 0, r.lo >= 0),
                    Binary::Le => known(r.hi <= 0, r.lo > 0),
                    Binary::Gt => known(r.lo > 0, r.hi <= 0),
                    Binary::Ge => known(r.lo >= 0, r.hi < 0),
                    Binary::Eq => known(r.lo == 0 && r.hi == 0, r.lo > 0 || r.hi < 0),
                    Binary::Ne => known(r.lo > 0 || r.hi < 0, r.lo == 0 && r.hi == 0),
                    _ => None,
                };
                decided.map_or(n, |v| Scalar::int(DType::Bool, i64::from(v)))
            }
            _ => n,
        },
        _ => n,
    })
}

impl Reducer {
    /// Dtype of the result for values of `dtype`.
    pub fn result(self, dtype: DType) -> DType {
        match self {
            Reducer::ArgMax { .. } | Reducer::ArgMin { .. } => DType::I64,
            Reducer::Sum | Reducer::Prod | Reducer::Min | Reducer::Max => dtype,
        }
    }
    /// The neutral value of `dtype` (for `ArgMax` and `ArgMin`: of the values compared).
    pub fn identity(self, dtype: DType) -> Scalar {
        let extreme = |low: bool| match dtype.int_range() {
            Some((lo, hi)) => Scalar::int(dtype, (if low { lo } else { hi }) as i64),
            None => Scalar::float(dtype, if low { f64::NEG_INFINITY } else { f64::INFINITY }),
        };
        match self {
            Reducer::Sum => Scalar::number(dtype, 0.0),
            Reducer::Prod => Scalar::number(dtype, 1.0),
            Reducer::Min | Reducer::ArgMin { .. } => extreme(false),
            Reducer::Max | Reducer::ArgMax { .. } => extreme(true),
        }
    }
    /// The operator that combines two values, for the reducers that are one.
    pub fn combine(self) -> Option<Binary> {
        match self {
            Reducer::Sum => Some(Binary::Add),
            Reducer::Prod => Some(Binary::Mul),
            Reducer::Min => Some(Binary::Min),
            Reducer::Max => Some(Binary::Max),
            Reducer::ArgMax { .. } | Reducer::ArgMin { .. } => None,
        }
    }
    /// Its name in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Reducer::Sum => "sum",
            Reducer::Prod => "prod",
            Reducer::Min => "min",
            Reducer::Max => "max",
            Reducer::ArgMax { last: false } => "argmax",
            Reducer::ArgMax { last: true } => "argmax_last",
            Reducer::ArgMin { last: false } => "argmin",
            Reducer::ArgMin { last: true } => "argmin_last",
        }
    }
    /// The reducer of that name.
    pub fn parse(name: &str) -> Option<Reducer> {
        use Reducer::*;
        let all =
            [Sum, Prod, Min, Max, ArgMax { last: false }, ArgMax { last: true }, ArgMin { last: false }, ArgMin { last: true }];
        all.into_iter().find(|r| r.name() == name)
    }
}
