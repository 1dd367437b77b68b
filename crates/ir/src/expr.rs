//! Integer expressions: symbolic dims and loop indices, hash-consed and kept in a normal form.
//!
//! An [`Expr`] is `Copy`; equal expressions are the same pointer. Constructors normalise: sums are flat, sorted and collected
//! (`2*i0 + batch + 3`), products hold no constants, divisions and remainders by constants pull out exact parts. Division and
//! remainder round towards minus infinity. What needs the ranges of variables is done by [`Expr::simplify`].
//!
//! Overflow: model dims and indices stay far below 2^62; arithmetic saturates rather than wraps.

use crate::intern::Interner;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops;

/// A hash-consed integer expression.
#[derive(Clone, Copy)]
pub struct Expr(&'static Node);

/// What an expression is made of. Built only by the constructors of [`Expr`], which keep the normal form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Node {
    /// A known integer.
    Const(i64),
    /// A model's symbolic dimension, at least 0.
    Sym(&'static str),
    /// An axis of a compute or a loop variable.
    Var(u32),
    /// `constant + sum(coefficient * term)`: terms are sorted, distinct, neither sums nor constants; coefficients are not 0.
    Sum {
        /// The terms and their coefficients.
        terms: Vec<(Expr, i64)>,
        /// The constant part.
        constant: i64,
    },
    /// A product of two or more factors, sorted, none of them constants, sums with one term, or products.
    Product(Vec<Expr>),
    /// Floor division.
    Div(Expr, Expr),
    /// Remainder of floor division (takes the sign of the divisor).
    Mod(Expr, Expr),
    /// The smaller one.
    Min(Expr, Expr),
    /// The larger one.
    Max(Expr, Expr),
}

static NODES: Interner<Node> = Interner::new();
static NAMES: Interner<String> = Interner::new();

impl PartialEq for Expr {
    fn eq(&self, other: &Expr) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}
impl Eq for Expr {}
impl Hash for Expr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::from_ref(self.0).hash(state);
    }
}
impl PartialOrd for Expr {
    fn partial_cmp(&self, other: &Expr) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Expr {
    // Structural, so that the normal form does not depend on the order of interning.
    fn cmp(&self, other: &Expr) -> Ordering {
        if self == other { Ordering::Equal } else { self.0.cmp(other.0) }
    }
}

/// The least and the largest value an expression can take; `MIN`/`MAX` stand for "unknown".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Least value.
    pub lo: i64,
    /// Largest value.
    pub hi: i64,
}

impl Range {
    /// Stands for minus infinity.
    pub const MIN: i64 = i64::MIN / 4;
    /// Stands for infinity.
    pub const MAX: i64 = i64::MAX / 4;
    /// Everything.
    pub const ALL: Range = Range { lo: Range::MIN, hi: Range::MAX };
    /// `lo..=hi`.
    pub fn new(lo: i64, hi: i64) -> Range {
        Range { lo: lo.max(Range::MIN), hi: hi.min(Range::MAX) }
    }
    fn add(self, o: Range) -> Range {
        let pin = |a: i64, b: i64, unknown: i64| if a == unknown || b == unknown { unknown } else { a.saturating_add(b) };
        Range::new(pin(self.lo, o.lo, Range::MIN), pin(self.hi, o.hi, Range::MAX))
    }
    fn mul(self, o: Range) -> Range {
        let p = [(self.lo, o.lo), (self.lo, o.hi), (self.hi, o.lo), (self.hi, o.hi)].map(|(a, b)| a.saturating_mul(b));
        Range::new(*p.iter().min().expect("four"), *p.iter().max().expect("four"))
    }
}

/// The ranges of loop variables, and lower bounds of symbols (0 unless told).
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    /// Inclusive range of each variable; absent means unknown.
    pub vars: HashMap<u32, Range>,
    /// Inclusive range of each symbol; absent means `0..`.
    pub syms: HashMap<&'static str, Range>,
}

impl Ranges {
    /// Ranges of variables `0..dims.len()`, each `0..dim`.
    pub fn of_axes(dims: &[Expr]) -> Ranges {
        let mut r = Ranges::default();
        for (i, &d) in dims.iter().enumerate() {
            r.extent(i as u32, d);
        }
        r
    }
    /// Declares `var` to run over `0..extent`.
    pub fn extent(&mut self, var: u32, extent: Expr) {
        let hi = extent.range(self).hi;
        self.vars.insert(var, Range::new(0, if hi == Range::MAX { hi } else { hi - 1 }));
    }
}

/// How names of [`Expr::datum`] begin.
const DATUM: char = '~';

impl Expr {
    fn of(node: Node) -> Expr {
        Expr(NODES.intern(node))
    }
    /// What it is made of.
    pub fn node(self) -> &'static Node {
        self.0
    }
    /// A constant.
    pub fn int(value: i64) -> Expr {
        Expr::of(Node::Const(value))
    }
    /// A symbolic dimension.
    pub fn sym(name: &str) -> Expr {
        Expr::of(Node::Sym(NAMES.intern(name.to_owned())))
    }
    /// A symbol for a number that comes from data, of any sign (all others are sizes, at least 0).
    pub fn datum(name: &str) -> Expr {
        Expr::sym(&format!("{DATUM}{name}"))
    }
    /// Does a number that comes from data occur in it?
    pub fn has_datum(self) -> bool {
        let mut found = false;
        self.leaves(&mut |l| found |= matches!(l.node(), Node::Sym(s) if s.starts_with(DATUM)));
        found
    }
    /// Does it compute with numbers that come from data, or with constants so large (ends of slices) that sums of them may overflow? Code has arithmetic that saturates for it.
    pub fn is_wild(self) -> bool {
        const LARGE: u64 = 1 << 40;
        fn large(e: Expr) -> bool {
            let big = |c: &i64| c.unsigned_abs() > LARGE;
            match e.node() {
                Node::Const(c) => big(c),
                Node::Sym(_) | Node::Var(_) => false,
                Node::Sum { terms, constant } => big(constant) || terms.iter().any(|(t, c)| big(c) || large(*t)),
                Node::Product(f) => f.iter().any(|&e| large(e)),
                Node::Div(a, b) | Node::Mod(a, b) | Node::Min(a, b) | Node::Max(a, b) => large(*a) || large(*b),
            }
        }
        self.has_datum() || large(self)
    }
    /// Does a variable occur in it?
    pub fn has_var(self) -> bool {
        let mut found = false;
        self.leaves(&mut |l| found |= matches!(l.node(), Node::Var(_)));
        found
    }
    /// A loop variable or compute axis.
    pub fn var(index: usize) -> Expr {
        Expr::of(Node::Var(u32::try_from(index).expect("fewer than 2^32 loop variables")))
    }
    /// Its value, where it is a constant.
    pub fn known(self) -> Option<i64> {
        match self.0 {
            Node::Const(c) => Some(*c),
            _ => None,
        }
    }
    /// True for the constant `value`.
    pub fn is(self, value: i64) -> bool {
        self.known() == Some(value)
    }

    fn from_terms(terms: impl IntoIterator<Item = (Expr, i64)>, constant: i64) -> Expr {
        let mut constant = constant;
        let mut flat: Vec<(Expr, i64)> = vec![];
        for (e, c) in terms {
            match e.0 {
                Node::Const(v) => constant = constant.saturating_add(v.saturating_mul(c)),
                Node::Sum { terms, constant: k } => {
                    constant = constant.saturating_add(k.saturating_mul(c));
                    flat.extend(terms.iter().map(|&(t, k)| (t, k.saturating_mul(c))));
                }
                _ => flat.push((e, c)),
            }
        }
        flat.sort_by_key(|&(e, _)| e);
        let mut terms: Vec<(Expr, i64)> = vec![];
        for (e, c) in flat {
            match terms.last_mut() {
                Some(last) if last.0 == e => last.1 = last.1.saturating_add(c),
                _ => terms.push((e, c)),
            }
        }
        terms.retain(|&(_, c)| c != 0);
        if recombine(&mut terms) {
            return Expr::from_terms(terms, constant);
        }
        if terms.is_empty() {
            return Expr::int(constant);
        }
        if constant == 0 && terms.len() == 1 && terms[0].1 == 1 {
            return terms[0].0;
        }
        Expr::of(Node::Sum { terms, constant })
    }

    /// Terms with coefficients, and the constant part.
    pub fn linear(self) -> (Vec<(Expr, i64)>, i64) {
        match self.0 {
            Node::Const(c) => (vec![], *c),
            Node::Sum { terms, constant } => (terms.clone(), *constant),
            _ => (vec![(self, 1)], 0),
        }
    }

    fn factors(self) -> Vec<Expr> {
        match self.0 {
            Node::Product(f) => f.clone(),
            _ => vec![self],
        }
    }

    /// Product of two expressions; a constant distributes over a sum, a sum of several terms stays a factor.
    fn times(self, o: Expr) -> Expr {
        match (self.0, o.0) {
            (Node::Const(a), _) => Expr::from_terms([(o, *a)], 0),
            (_, Node::Const(b)) => Expr::from_terms([(self, *b)], 0),
            (Node::Sum { terms, constant }, _) => {
                Expr::from_terms(terms.iter().map(|&(t, c)| (t.times(o), c)).chain([(o, *constant)]), 0)
            }
            (_, Node::Sum { .. }) => o.times(self),
            _ => {
                let mut f = self.factors();
                f.extend(o.factors());
                f.sort();
                Expr::of(Node::Product(f))
            }
        }
    }

    /// `self / o` if it divides without remainder for every value (taking a symbolic divisor to be non-zero).
    pub fn div_exact(self, o: Expr) -> Option<Expr> {
        if self == o {
            return Some(Expr::int(1));
        }
        match (self.0, o.0) {
            (_, Node::Const(1)) => Some(self),
            (_, Node::Const(0)) => None,
            (Node::Const(a), Node::Const(b)) => (a % b == 0).then(|| Expr::int(a / b)),
            (Node::Const(0), _) => Some(self),
            (Node::Sum { .. }, Node::Sum { terms: d, constant: 0 }) if d.len() == 1 => {
                self.div_exact(Expr::int(d[0].1))?.div_exact(d[0].0)
            }
            (Node::Sum { terms, constant }, Node::Const(b)) => (constant % b == 0 && terms.iter().all(|(_, c)| c % b == 0))
                .then(|| Expr::from_terms(terms.iter().map(|&(t, c)| (t, c / b)), constant / b)),
            // A sum over a sum: exact only when one is a multiple of the other.
            (Node::Sum { terms, constant }, Node::Sum { terms: d, constant: k }) => {
                let ratio = if *k != 0 { constant / k } else { terms.first()?.1 / d.first()?.1.max(1) };
                (Expr::from_terms([(o, ratio)], 0) == self).then(|| Expr::int(ratio))
            }
            (Node::Sum { terms, constant: 0 }, _) => {
                let parts: Option<Vec<_>> = terms.iter().map(|&(t, c)| Some((t.div_exact(o)?, c))).collect();
                Some(Expr::from_terms(parts?, 0))
            }
            (Node::Product(_), Node::Product(ds)) => ds.iter().try_fold(self, |acc, &d| acc.div_exact(d)),
            (Node::Product(fs), _) => {
                let at = fs.iter().position(|&f| f == o)?;
                let rest = fs.iter().enumerate().filter(|&(i, _)| i != at).map(|(_, &f)| f);
                Some(rest.fold(Expr::int(1), |a, b| a * b))
            }
            _ => None,
        }
    }

    /// Floor division. By a known zero: zero (every operation of the IR is total).
    pub fn div(self, o: Expr) -> Expr {
        if o.is(0) {
            return Expr::int(0);
        }
        if let (Some(a), Some(b)) = (self.known(), o.known()) {
            return Expr::int(floor_div(a, b));
        }
        if let Some(e) = self.div_exact(o) {
            return e;
        }
        if let (Node::Sum { terms, constant }, Some(d)) = (self.0, o.known()) {
            // floor((d a + r) / d) = a + floor(r / d)
            let (whole, rest): (Vec<_>, Vec<_>) = terms.iter().partition(|(_, c)| c % d == 0);
            let k = floor_div(*constant, d);
            if d > 0 && (!whole.is_empty() || k != 0) {
                let rest = Expr::from_terms(rest, constant - k * d);
                let whole = Expr::from_terms(whole.into_iter().map(|(e, c)| (e, c / d)), k);
                return whole + rest.div(o);
            }
        }
        // floor(floor(a / b) / c) = floor(a / (b c)) for positive constants
        if let (Node::Div(a, b), Some(d)) = (self.0, o.known())
            && let Some(b) = b.known()
            && b > 0
            && d > 0
        {
            return a.div(Expr::int(b.saturating_mul(d)));
        }
        Expr::of(Node::Div(self, o))
    }

    /// Ceiling division.
    pub fn div_ceil(self, o: Expr) -> Expr {
        -((-self).div(o))
    }

    /// Remainder of floor division. By a known zero: zero.
    pub fn rem(self, o: Expr) -> Expr {
        if o.is(0) || o.is(1) {
            return Expr::int(0);
        }
        if let (Some(a), Some(b)) = (self.known(), o.known()) {
            return Expr::int(floor_mod(a, b));
        }
        if self.div_exact(o).is_some() {
            return Expr::int(0);
        }
        if let (Node::Sum { terms, constant }, Some(d)) = (self.0, o.known())
            && d > 0
        {
            let kept: Vec<_> = terms.iter().filter(|(_, c)| c % d != 0).copied().collect();
            let k = constant.rem_euclid(d);
            if kept.len() != terms.len() || k != *constant {
                return Expr::from_terms(kept, k).rem(o);
            }
        }
        Expr::of(Node::Mod(self, o))
    }

    /// The smaller of two.
    pub fn min(self, o: Expr) -> Expr {
        match (self.known(), o.known()) {
            _ if self == o => self,
            (Some(a), Some(b)) => Expr::int(a.min(b)),
            _ => match (self - o).range(&Ranges::default()) {
                r if r.hi <= 0 => self,
                r if r.lo >= 0 => o,
                _ => Expr::of(Node::Min(self.le_first(o).0, self.le_first(o).1)),
            },
        }
    }

    /// The larger of two.
    pub fn max(self, o: Expr) -> Expr {
        match (self.known(), o.known()) {
            _ if self == o => self,
            (Some(a), Some(b)) => Expr::int(a.max(b)),
            _ => match (self - o).range(&Ranges::default()) {
                r if r.hi <= 0 => o,
                r if r.lo >= 0 => self,
                _ => Expr::of(Node::Max(self.le_first(o).0, self.le_first(o).1)),
            },
        }
    }

    fn le_first(self, o: Expr) -> (Expr, Expr) {
        if self <= o { (self, o) } else { (o, self) }
    }

    /// The range of values, given the ranges of the leaves.
    pub fn range(self, env: &Ranges) -> Range {
        match self.0 {
            Node::Const(c) => Range::new(*c, *c),
            Node::Sym(s) if s.starts_with(DATUM) => Range::ALL,
            Node::Sym(s) => env.syms.get(s).copied().unwrap_or(Range { lo: 0, hi: Range::MAX }),
            Node::Var(v) => env.vars.get(v).copied().unwrap_or(Range::ALL),
            Node::Sum { terms, constant } => {
                terms.iter().fold(Range::new(*constant, *constant), |r, (t, c)| r.add(t.range(env).mul(Range::new(*c, *c))))
            }
            Node::Product(f) => f.iter().fold(Range::new(1, 1), |r, e| r.mul(e.range(env))),
            Node::Div(a, b) => match (a.range(env), b.range(env)) {
                (a, b) if b.lo > 0 => {
                    let lo = if a.lo == Range::MIN { a.lo } else { floor_div(a.lo, if a.lo < 0 { b.lo } else { b.hi }) };
                    let hi = if a.hi == Range::MAX { a.hi } else { floor_div(a.hi, if a.hi < 0 { b.hi } else { b.lo }) };
                    Range::new(lo, hi)
                }
                (a, b) if b.lo == 0 && a.lo >= 0 => Range::new(0, a.hi),
                _ => Range::ALL,
            },
            Node::Mod(a, b) => match (a.range(env), b.range(env)) {
                (a, b) if b.lo > 0 && a.lo >= 0 && a.hi < b.lo => a,
                (_, b) if b.lo >= 0 => Range::new(0, if b.hi == Range::MAX { b.hi } else { (b.hi - 1).max(0) }),
                _ => Range::ALL,
            },
            Node::Min(a, b) => {
                let (a, b) = (a.range(env), b.range(env));
                Range { lo: a.lo.min(b.lo), hi: a.hi.min(b.hi) }
            }
            Node::Max(a, b) => {
                let (a, b) = (a.range(env), b.range(env));
                Range { lo: a.lo.max(b.lo), hi: a.hi.max(b.hi) }
            }
        }
    }

    /// Rewrites leaves (`Sym`, `Var`) by `leaf` and normalises again. `leaf` gets only leaves.
    pub fn map(self, leaf: &dyn Fn(Expr) -> Expr) -> Expr {
        match self.0 {
            Node::Const(_) => self,
            Node::Sym(_) | Node::Var(_) => leaf(self),
            Node::Sum { terms, constant } => Expr::from_terms(terms.iter().map(|&(t, c)| (t.map(leaf), c)), *constant),
            Node::Product(f) => f.iter().fold(Expr::int(1), |a, b| a * b.map(leaf)),
            Node::Div(a, b) => a.map(leaf).div(b.map(leaf)),
            Node::Mod(a, b) => a.map(leaf).rem(b.map(leaf)),
            Node::Min(a, b) => a.map(leaf).min(b.map(leaf)),
            Node::Max(a, b) => a.map(leaf).max(b.map(leaf)),
        }
    }

    /// Replaces variable `i` by `values[i]` (variables beyond the list stay).
    pub fn subst(self, values: &[Expr]) -> Expr {
        self.map(&|leaf| match leaf.0 {
            Node::Var(v) => values.get(*v as usize).copied().unwrap_or(leaf),
            _ => leaf,
        })
    }

    /// Simplifies with the ranges of the leaves: divisions, remainders, minima and maxima whose outcome is certain.
    pub fn simplify(self, env: &Ranges) -> Expr {
        match self.0 {
            Node::Const(_) | Node::Sym(_) => self,
            Node::Var(_) => match self.range(env) {
                r if r.lo == r.hi => Expr::int(r.lo),
                _ => self,
            },
            Node::Sum { terms, constant } => Expr::from_terms(terms.iter().map(|&(t, c)| (t.simplify(env), c)), *constant),
            Node::Product(f) => f.iter().fold(Expr::int(1), |a, b| a * b.simplify(env)),
            Node::Div(a, b) => {
                let (a, b) = (a.simplify(env), b.simplify(env));
                let (ra, rb) = (a.range(env), b.range(env));
                if rb.lo > 0 && ra.lo >= 0 && ra.hi < rb.lo {
                    return Expr::int(0);
                }
                // (d a + r) / d = a when 0 <= r < d, also for a symbolic divisor d
                if let Node::Sum { terms, constant } = a.0 {
                    let (whole, rest): (Vec<_>, Vec<_>) =
                        terms.iter().partition(|&&(t, c)| Expr::from_terms([(t, c)], 0).div_exact(b).is_some());
                    let rest = Expr::from_terms(rest, *constant);
                    let r = rest.range(env);
                    let below = |r: Range| r.lo >= 0 && (rb.lo > 0 && r.hi < rb.lo || (rest - b).range(env).hi < 0);
                    if !whole.is_empty() && below(r) {
                        let parts = whole.into_iter().map(|(t, c)| (Expr::from_terms([(t, c)], 0).div_exact(b), 1));
                        return Expr::from_terms(parts.map(|(e, c)| (e.expect("checked above"), c)), 0);
                    }
                }
                a.div(b)
            }
            Node::Mod(a, b) => {
                let (a, b) = (a.simplify(env), b.simplify(env));
                let (ra, rb) = (a.range(env), b.range(env));
                if ra.lo >= 0 && (rb.lo > 0 && ra.hi < rb.lo || (a - b).range(env).hi < 0) {
                    return a;
                }
                if let Node::Sum { terms, constant } = a.0 {
                    let kept: Vec<_> =
                        terms.iter().filter(|&&(t, c)| Expr::from_terms([(t, c)], 0).div_exact(b).is_none()).copied().collect();
                    if kept.len() != terms.len() {
                        return Expr::from_terms(kept, *constant).rem(b).simplify(env);
                    }
                }
                a.rem(b)
            }
            Node::Min(a, b) => {
                let (a, b) = (a.simplify(env), b.simplify(env));
                match (a - b).range(env) {
                    r if r.hi <= 0 => a,
                    r if r.lo >= 0 => b,
                    _ => a.min(b),
                }
            }
            Node::Max(a, b) => {
                let (a, b) = (a.simplify(env), b.simplify(env));
                match (a - b).range(env) {
                    r if r.hi <= 0 => b,
                    r if r.lo >= 0 => a,
                    _ => a.max(b),
                }
            }
        }
    }

    /// Its value, given values of the leaves; `None` if `leaf` knows one of them not.
    pub fn eval(self, leaf: &dyn Fn(Expr) -> Option<i64>) -> Option<i64> {
        Some(match self.0 {
            Node::Const(c) => *c,
            Node::Sym(_) | Node::Var(_) => leaf(self)?,
            Node::Sum { terms, constant } => {
                let mut acc = *constant;
                for (t, c) in terms {
                    acc = acc.saturating_add(t.eval(leaf)?.saturating_mul(*c));
                }
                acc
            }
            Node::Product(f) => {
                let mut acc = 1i64;
                for e in f {
                    acc = acc.saturating_mul(e.eval(leaf)?);
                }
                acc
            }
            Node::Div(a, b) => floor_div(a.eval(leaf)?, b.eval(leaf)?),
            Node::Mod(a, b) => {
                let (a, b) = (a.eval(leaf)?, b.eval(leaf)?);
                floor_mod(a, b)
            }
            Node::Min(a, b) => a.eval(leaf)?.min(b.eval(leaf)?),
            Node::Max(a, b) => a.eval(leaf)?.max(b.eval(leaf)?),
        })
    }

    /// Calls `see` on every leaf (`Sym` or `Var`), with repetition.
    pub fn leaves(self, see: &mut dyn FnMut(Expr)) {
        match self.0 {
            Node::Const(_) => {}
            Node::Sym(_) | Node::Var(_) => see(self),
            Node::Sum { terms, .. } => terms.iter().for_each(|(t, _)| t.leaves(see)),
            Node::Product(f) => f.iter().for_each(|e| e.leaves(see)),
            Node::Div(a, b) | Node::Mod(a, b) | Node::Min(a, b) | Node::Max(a, b) => {
                a.leaves(see);
                b.leaves(see);
            }
        }
    }

    /// True if variable `var` occurs.
    pub fn uses_var(self, var: u32) -> bool {
        let mut found = false;
        self.leaves(&mut |e| found |= matches!(e.0, Node::Var(v) if *v == var));
        found
    }

    /// `self = coefficient * var + rest` with a constant coefficient and a rest free of `var`; `None` if it is not of that form.
    pub fn affine_in(self, var: u32) -> Option<(i64, Expr)> {
        let (terms, constant) = self.linear();
        let mut coefficient = 0;
        let mut rest = vec![];
        for (t, c) in terms {
            match t.0 {
                Node::Var(v) if *v == var => coefficient = c,
                _ if t.uses_var(var) => return None,
                _ => rest.push((t, c)),
            }
        }
        Some((coefficient, Expr::from_terms(rest, constant)))
    }

    /// The product of dims.
    pub fn product(dims: impl IntoIterator<Item = Expr>) -> Expr {
        dims.into_iter().fold(Expr::int(1), |a, b| a * b)
    }

    /// The row-major linear index of `index` in a tensor of `dims`.
    pub fn linearise(index: &[Expr], dims: &[Expr]) -> Expr {
        index.iter().zip(dims).fold(Expr::int(0), |acc, (&i, &d)| acc * d + i)
    }

    /// The index in a tensor of `dims` of a row-major linear index.
    pub fn delinearise(linear: Expr, dims: &[Expr]) -> Vec<Expr> {
        let mut out = vec![];
        let mut rest = linear;
        for (axis, &d) in dims.iter().enumerate().rev() {
            if axis == 0 {
                out.push(rest);
            } else {
                out.push(rest.rem(d));
                rest = rest.div(d);
            }
        }
        out.reverse();
        out
    }
}

/// `c d (x div d) + c (x mod d)` is `c x`: joins one such pair of terms, for a constant or symbolic `d`.
fn recombine(terms: &mut Vec<(Expr, i64)>) -> bool {
    for m in 0..terms.len() {
        let Node::Mod(x, d) = terms[m].0.0 else { continue };
        let whole = Expr::from_terms([(Expr::of(Node::Div(*x, *d)).times(*d), terms[m].1)], 0);
        let (Node::Sum { .. } | Node::Div(..) | Node::Product(_)) = whole.0 else { continue };
        let (parts, 0) = whole.linear() else { continue };
        let [(part, coefficient)] = parts.as_slice() else { continue };
        if let Some(q) = terms.iter().position(|&(t, c)| t == *part && c == *coefficient) {
            terms[m] = (*x, terms[m].1);
            terms.remove(q);
            return true;
        }
    }
    // The same with a common factor: c f (x mod d) beside c f d (x div d).
    for m in 0..terms.len() {
        let Node::Product(factors) = terms[m].0.0 else { continue };
        for (at, factor) in factors.iter().enumerate() {
            let Node::Mod(x, d) = factor.0 else { continue };
            let rest: Vec<Expr> = factors.iter().enumerate().filter(|&(i, _)| i != at).map(|(_, &f)| f).collect();
            let others = rest.iter().fold(Expr::int(1), |a, &b| a.times(b));
            let whole = Expr::from_terms([(Expr::of(Node::Div(*x, *d)).times(*d).times(others), terms[m].1)], 0);
            let (parts, _) = whole.linear();
            let [(part, coefficient)] = parts.as_slice() else { continue };
            if let Some(q) = terms.iter().position(|&(t, c)| t == *part && c == *coefficient) {
                terms[m] = (x.times(others), terms[m].1);
                terms.remove(q);
                return true;
            }
        }
    }
    false
}

/// Division rounding towards minus infinity; by zero it gives zero.
pub fn floor_div(a: i64, b: i64) -> i64 {
    if b == 0 {
        return 0;
    }
    let q = a.wrapping_div(b);
    if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q }
}

/// The remainder of it, with the sign of `b`; 0 by zero.
fn floor_mod(a: i64, b: i64) -> i64 {
    if b == 0 {
        return 0;
    }
    let r = a.wrapping_rem(b);
    if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
}

impl From<i64> for Expr {
    fn from(v: i64) -> Expr {
        Expr::int(v)
    }
}
impl From<i32> for Expr {
    fn from(v: i32) -> Expr {
        Expr::int(i64::from(v))
    }
}
impl From<usize> for Expr {
    fn from(v: usize) -> Expr {
        Expr::int(v as i64)
    }
}
impl<T: Into<Expr>> ops::Add<T> for Expr {
    type Output = Expr;
    fn add(self, o: T) -> Expr {
        Expr::from_terms([(self, 1), (o.into(), 1)], 0)
    }
}
impl<T: Into<Expr>> ops::Sub<T> for Expr {
    type Output = Expr;
    fn sub(self, o: T) -> Expr {
        Expr::from_terms([(self, 1), (o.into(), -1)], 0)
    }
}
impl<T: Into<Expr>> ops::Mul<T> for Expr {
    type Output = Expr;
    fn mul(self, o: T) -> Expr {
        self.times(o.into())
    }
}
impl ops::Neg for Expr {
    type Output = Expr;
    fn neg(self) -> Expr {
        Expr::from_terms([(self, -1)], 0)
    }
}

impl fmt::Debug for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// True if a symbol's name can be printed bare: an identifier that cannot be taken for a variable or a function.
fn bare(name: &str) -> bool {
    let mut chars = name.chars();
    let ident =
        chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    let variable = name.strip_prefix('i').is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
    ident && !variable && !matches!(name, "min" | "max" | "div" | "mod")
}

/// Text form: `2*i0 + batch - 3`, `div(a, b)`, `mod(a, b)`, `min(a, b)`, `max(a, b)`; a symbol that is no identifier is quoted.
impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Node::Const(c) => write!(f, "{c}"),
            Node::Sym(s) if bare(s) => f.write_str(s),
            Node::Sym(s) => write!(f, "{s:?}"),
            Node::Var(v) => write!(f, "i{v}"),
            Node::Sum { terms, constant } => {
                for (i, (t, c)) in terms.iter().enumerate() {
                    let sign = if *c < 0 { "-" } else { "+" };
                    match (i, *c < 0) {
                        (0, true) => f.write_str("-")?,
                        (0, false) => {}
                        _ => write!(f, " {sign} ")?,
                    }
                    if c.unsigned_abs() != 1 {
                        write!(f, "{}*", c.unsigned_abs())?;
                    }
                    write!(f, "{t}")?;
                }
                match constant.cmp(&0) {
                    Ordering::Less => write!(f, " - {}", constant.unsigned_abs()),
                    Ordering::Equal => Ok(()),
                    Ordering::Greater => write!(f, " + {constant}"),
                }
            }
            Node::Product(factors) => {
                for (i, e) in factors.iter().enumerate() {
                    let sep = if i > 0 { "*" } else { "" };
                    match e.0 {
                        Node::Sum { .. } => write!(f, "{sep}({e})")?,
                        _ => write!(f, "{sep}{e}")?,
                    }
                }
                Ok(())
            }
            Node::Div(a, b) => write!(f, "div({a}, {b})"),
            Node::Mod(a, b) => write!(f, "mod({a}, {b})"),
            Node::Min(a, b) => write!(f, "min({a}, {b})"),
            Node::Max(a, b) => write!(f, "max({a}, {b})"),
        }
    }
}

/// Parses the text form from the start of `text`; gives the expression and what is left.
pub fn parse(text: &str) -> Result<(Expr, &str), String> {
    parse_sum(text, 0)
}

fn parse_sum(text: &str, depth: u32) -> Result<(Expr, &str), String> {
    if depth > 200 {
        return Err("an index expression is nested deeper than 200 levels".to_owned());
    }
    let (mut sum, mut rest) = match text.trim_start().strip_prefix('-') {
        // The least integer has no positive counterpart.
        Some(r) if r.starts_with("9223372036854775808") => (Expr::int(i64::MIN), &r[19..]),
        Some(r) => parse_product(r, depth).map(|(e, r)| (-e, r))?,
        None => parse_product(text, depth)?,
    };
    loop {
        let t = rest.trim_start();
        let (negative, after) = match (t.strip_prefix('+'), t.strip_prefix('-')) {
            (Some(r), _) => (false, r),
            (_, Some(r)) => (true, r),
            _ => return Ok((sum, rest)),
        };
        let (e, r) = parse_product(after, depth)?;
        sum = if negative { sum - e } else { sum + e };
        rest = r;
    }
}

fn parse_product(text: &str, depth: u32) -> Result<(Expr, &str), String> {
    let (mut product, mut rest) = parse_atom(text, depth)?;
    while let Some(r) = rest.trim_start().strip_prefix('*') {
        let (e, r) = parse_atom(r, depth)?;
        (product, rest) = (product * e, r);
    }
    Ok((product, rest))
}

fn parse_atom(text: &str, depth: u32) -> Result<(Expr, &str), String> {
    let t = text.trim_start();
    let expected = || format!("an index expression is expected at '{}'", t.chars().take(20).collect::<String>());
    if let Some(r) = t.strip_prefix('(') {
        let (e, r) = parse_sum(r, depth + 1)?;
        return Ok((e, r.trim_start().strip_prefix(')').ok_or_else(expected)?));
    }
    if t.starts_with('"') {
        let (name, rest) = parse_quoted(t).ok_or_else(expected)?;
        return Ok((Expr::sym(&name), rest));
    }
    let end = t.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(t.len());
    let (word, rest) = t.split_at(end);
    if word.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok((Expr::int(word.parse().map_err(|_| expected())?), rest));
    }
    if matches!(word, "min" | "max" | "div" | "mod") && rest.trim_start().starts_with('(') {
        let r = rest.trim_start().strip_prefix('(').ok_or_else(expected)?;
        let (a, r) = parse_sum(r, depth + 1)?;
        let (b, r) = parse_sum(r.trim_start().strip_prefix(',').ok_or_else(expected)?, depth + 1)?;
        let r = r.trim_start().strip_prefix(')').ok_or_else(expected)?;
        let e = match word {
            "min" => a.min(b),
            "max" => a.max(b),
            "div" => a.div(b),
            _ => a.rem(b),
        };
        return Ok((e, r));
    }
    if let Some(v) = word.strip_prefix('i').and_then(|d| d.parse::<u32>().ok()) {
        return Ok((Expr::var(v as usize), rest));
    }
    if word.is_empty() { Err(expected()) } else { Ok((Expr::sym(word), rest)) }
}

/// Parses a Rust-like quoted string (as `{:?}` prints it) from the start of `text`.
pub fn parse_quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    chars.next().filter(|&(_, c)| c == '"')?;
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[i + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                '0' => out.push('\0'),
                'u' => {
                    let hex: String = chars.by_ref().map(|(_, c)| c).skip(1).take_while(|&c| c != '}').collect();
                    out.push(char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?);
                }
                c => out.push(c),
            },
            c => out.push(c),
        }
    }
    None
}

impl std::str::FromStr for Expr {
    type Err = String;
    fn from_str(text: &str) -> Result<Expr, String> {
        match parse(text)? {
            (e, rest) if rest.trim().is_empty() => Ok(e),
            (_, rest) => Err(format!("unexpected '{rest}' after an index expression")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn normal_form() {
        let (b, i) = (Expr::sym("batch"), Expr::var(0));
        assert_eq!((b + i * 2 + 3 - b).to_string(), "2*i0 + 3");
        assert_eq!((b * 64 * i).div(b * 64), i);
        assert_eq!((i * 4 + 7).div(Expr::int(4)), i + 1 + (Expr::int(3)).div(Expr::int(4)));
        assert_eq!((b * 12).div(b), Expr::int(12));
        assert_eq!(Expr::sym("i0").to_string(), "\"i0\"");
    }

    #[test]
    fn reshape_index_maps_fold() {
        let dims = [Expr::sym("n"), Expr::int(4), Expr::int(8)];
        let index = [Expr::var(0), Expr::var(1), Expr::var(2)];
        let linear = Expr::linearise(&index, &dims);
        let env = Ranges::of_axes(&dims);
        let back: Vec<_> = Expr::delinearise(linear, &dims).into_iter().map(|e| e.simplify(&env)).collect();
        assert_eq!(back, index);
    }

    fn any_expr() -> impl Strategy<Value = Expr> {
        let leaf = prop_oneof![(-9i64..10).prop_map(Expr::int), (0usize..3).prop_map(Expr::var), Just(Expr::sym("n"))];
        leaf.prop_recursive(4, 24, 2, |inner| {
            (inner.clone(), inner, 0..7).prop_map(|(a, b, k)| match k {
                0 => a + b,
                1 => a - b,
                2 => a * b,
                3 => a.div(b.max(1.into())), // a zero divisor is outside the contract of symbolic division
                4 => a.rem(b.max(1.into())),
                5 => a.min(b),
                _ => a.max(b),
            })
        })
    }

    proptest! {
        #[test]
        fn text_round_trips(e in any_expr()) {
            prop_assert_eq!(e.to_string().parse::<Expr>(), Ok(e));
        }

        #[test]
        fn simplify_keeps_the_value(e in any_expr(), v in prop::array::uniform4(0i64..7)) {
            let mut env = Ranges::default();
            (0..3).for_each(|i| env.extent(i, Expr::int(7)));
            let leaf = |l: Expr| match l.node() { Node::Var(i) => Some(v[*i as usize]), _ => Some(v[3] + 1) };
            let want = e.eval(&leaf);
            prop_assert_eq!(e.simplify(&env).eval(&leaf), want);
            let r = e.range(&env);
            prop_assert!(r.lo <= want.unwrap() && want.unwrap() <= r.hi, "{} not in {:?}", want.unwrap(), r);
        }
    }
}
