//! Scalar bodies: what is computed for one element. The same language at compute level and in loops.
//!
//! A [`Scalar`] is hash-consed and `Copy`, so common subexpressions are shared by construction. Every operation is total: the table
//! of edge cases (division by zero, casts of NaN, shifts beyond the width, NaN in min and max) is in `docs/ir.md`, and
//! [`crate::eval`] is its executable form. Floating-point operations round to their dtype; there is no implicit contraction. The
//! text form is in [`crate::text::scalar`].

use crate::dtype::DType;
use crate::expr::Expr;
use crate::intern::Interner;
use std::hash::{Hash, Hasher};

/// A hash-consed scalar expression with a dtype.
#[derive(Clone, Copy)]
pub struct Scalar(&'static Node);

/// A node of a scalar expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The dtype of its value.
    pub dtype: DType,
    /// What it computes.
    pub kind: Kind,
}

/// The operations of scalar bodies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A constant: for float dtypes the bits of an `f64` holding the (already rounded) value, else the integer, sign-extended.
    Const(u64),
    /// The value of an index expression, as `i64`.
    Index(Expr),
    /// An element of source (in a compute: operand; in a loop nest: buffer) `source`. The index must be in bounds unless
    /// `guard` is there: then the element is read only where `guard.0` holds, and the value is `guard.1` elsewhere.
    Read {
        /// Operand or buffer number.
        source: u32,
        /// One `i64` scalar per dimension.
        index: Vec<Scalar>,
        /// Condition and value in its absence.
        guard: Option<(Scalar, Scalar)>,
    },
    /// A named value: the accumulator of a reduction (number 0) in a compute, a `Let` in a loop nest.
    Local(u32),
    /// One operand.
    Unary(Unary, Scalar),
    /// Two operands of one dtype.
    Binary(Binary, Scalar, Scalar),
    /// `a * b + c` with one rounding.
    Fma(Scalar, Scalar, Scalar),
    /// `if .0 { .1 } else { .2 }`; both arms are defined, so either may be evaluated.
    Select(Scalar, Scalar, Scalar),
    /// Conversion of the value to `dtype` (see `docs/ir.md` for out-of-range and NaN).
    Cast(Scalar),
    /// The same bits seen as another dtype of the same width.
    Bitcast(Scalar),
}

macro_rules! operators {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }
        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            /// Its name in the text forms.
            pub const fn name(self) -> &'static str { match self { $($name::$variant => $text,)* } }
            /// The operator of that name.
            pub fn parse(text: &str) -> Option<$name> { match text { $($text => Some($name::$variant),)* _ => None } }
        }
    };
}

operators! {
    /// Operators with one operand. The result has the operand's dtype, but for `IsNan` and `IsInf` (bool).
    Unary {
        /// Minus; integers wrap.
        Neg "neg",
        /// Absolute value; the least integer wraps to itself.
        Abs "abs",
        /// -1, 0 or 1 by sign; NaN stays NaN.
        Sign "sign",
        /// Logical not of bool, bitwise not of integers.
        Not "not",
        /// Round towards minus infinity.
        Floor "floor",
        /// Round towards infinity.
        Ceil "ceil",
        /// Round towards zero.
        Trunc "trunc",
        /// Round to nearest, ties to even.
        Round "round",
        /// Square root.
        Sqrt "sqrt",
        /// e^x.
        Exp "exp",
        /// Natural logarithm.
        Log "log",
        /// Sine (radians).
        Sin "sin",
        /// Cosine.
        Cos "cos",
        /// Tangent.
        Tan "tan",
        /// Inverse sine.
        Asin "asin",
        /// Inverse cosine.
        Acos "acos",
        /// Inverse tangent.
        Atan "atan",
        /// Hyperbolic sine.
        Sinh "sinh",
        /// Hyperbolic cosine.
        Cosh "cosh",
        /// Hyperbolic tangent.
        Tanh "tanh",
        /// Inverse hyperbolic sine.
        Asinh "asinh",
        /// Inverse hyperbolic cosine.
        Acosh "acosh",
        /// Inverse hyperbolic tangent.
        Atanh "atanh",
        /// Error function.
        Erf "erf",
        /// 1 / (1 + e^-x).
        Sigmoid "sigmoid",
        /// ln(1 + x).
        Log1p "log1p",
        /// e^x - 1.
        Expm1 "expm1",
        /// Is it NaN?
        IsNan "isnan",
        /// Is it infinite?
        IsInf "isinf",
    }
}

operators! {
    /// Operators with two operands of one dtype. Comparisons give bool.
    Binary {
        /// Sum; integers wrap.
        Add "add",
        /// Difference; integers wrap.
        Sub "sub",
        /// Product; integers wrap.
        Mul "mul",
        /// Quotient; integers truncate, by zero gives 0, MIN / -1 wraps.
        Div "div",
        /// Remainder with the sign of the dividend (C `fmod`); integer by zero gives 0.
        Rem "rem",
        /// Remainder with the sign of the divisor (Python `%`); integer by zero gives 0.
        Mod "mod",
        /// The smaller; NaN if either is NaN; -0 < +0.
        Min "min",
        /// The larger; NaN if either is NaN; -0 < +0.
        Max "max",
        /// Power; on integers by repeated multiplication, negative exponents truncate towards zero.
        Pow "pow",
        /// Angle of the point (second, first).
        Atan2 "atan2",
        /// Bitwise (bool: logical) and.
        And "and",
        /// Bitwise or.
        Or "or",
        /// Bitwise exclusive or.
        Xor "xor",
        /// Shift left; by the width or more gives 0.
        Shl "shl",
        /// Shift right (arithmetic if signed); by the width or more gives 0 or -1.
        Shr "shr",
        /// Equal (NaN is not).
        Eq "eq",
        /// Not equal.
        Ne "ne",
        /// Less.
        Lt "lt",
        /// Less or equal.
        Le "le",
        /// Greater.
        Gt "gt",
        /// Greater or equal.
        Ge "ge",
    }
}

impl Binary {
    /// True for the operators whose result is bool.
    pub const fn is_comparison(self) -> bool {
        matches!(self, Binary::Eq | Binary::Ne | Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge)
    }
}

static NODES: Interner<Node> = Interner::new();

impl PartialEq for Scalar {
    fn eq(&self, other: &Scalar) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}
impl Eq for Scalar {}
impl Hash for Scalar {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::from_ref(self.0).hash(state);
    }
}
impl std::fmt::Debug for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Scalar {
    /// The node with this kind and dtype, as it is: no folding. (The text parsers and [`Scalar::rebuild`] use it.)
    pub fn raw(dtype: DType, kind: Kind) -> Scalar {
        Scalar(NODES.intern(Node { dtype, kind }))
    }
    /// Its dtype.
    pub fn dtype(self) -> DType {
        self.0.dtype
    }
    /// What it computes.
    pub fn kind(self) -> &'static Kind {
        &self.0.kind
    }
    /// A number that identifies the node in this process (for memo tables).
    pub fn id(self) -> usize {
        std::ptr::from_ref(self.0) as usize
    }

    /// A float constant, rounded to `dtype`.
    pub fn float(dtype: DType, value: f64) -> Scalar {
        debug_assert!(dtype.is_float());
        Scalar::raw(dtype, Kind::Const(crate::eval::round_float(dtype, value).to_bits()))
    }
    /// An integer or bool constant, wrapped to `dtype`.
    pub fn int(dtype: DType, value: i64) -> Scalar {
        Scalar::raw(dtype, Kind::Const(crate::eval::wrap_int(dtype, value) as u64))
    }
    /// A constant of any numeric dtype from a small number: `1`, `-0.5`, ... Integers take the truncated value.
    pub fn number(dtype: DType, value: f64) -> Scalar {
        if dtype.is_float() { Scalar::float(dtype, value) } else { Scalar::int(dtype, value as i64) }
    }
    /// The value of an index expression (`i64`).
    pub fn index(e: impl Into<Expr>) -> Scalar {
        let e = e.into();
        match e.known() {
            Some(c) => Scalar::int(DType::I64, c),
            None => Scalar::raw(DType::I64, Kind::Index(e)),
        }
    }
    /// The element of `source` at `index`.
    pub fn read(dtype: DType, source: usize, index: impl IntoIterator<Item = Scalar>) -> Scalar {
        Scalar::raw(dtype, Kind::Read { source: source as u32, index: index.into_iter().collect(), guard: None })
    }
    /// The element of `source` at integer expressions.
    pub fn read_at(dtype: DType, source: usize, index: &[Expr]) -> Scalar {
        Scalar::read(dtype, source, index.iter().map(|&e| Scalar::index(e)))
    }
    /// The element of `source` at `index` where `cond`, else `fallback`.
    pub fn read_if(source: usize, index: impl IntoIterator<Item = Scalar>, cond: Scalar, fallback: Scalar) -> Scalar {
        let guard = match cond.0.kind {
            Kind::Const(0) => return fallback,
            Kind::Const(_) => None,
            _ => Some((cond, fallback)),
        };
        Scalar::raw(fallback.dtype(), Kind::Read { source: source as u32, index: index.into_iter().collect(), guard })
    }
    /// A `Let` or accumulator.
    pub fn local(dtype: DType, number: u32) -> Scalar {
        Scalar::raw(dtype, Kind::Local(number))
    }
    /// One-operand operator; folds constants.
    pub fn unary(op: Unary, a: Scalar) -> Scalar {
        let dtype = if matches!(op, Unary::IsNan | Unary::IsInf) { DType::Bool } else { a.dtype() };
        crate::eval::fold(Scalar::raw(dtype, Kind::Unary(op, a)))
    }
    /// Two-operand operator; folds constants. Both operands have one dtype.
    pub fn binary(op: Binary, a: Scalar, b: Scalar) -> Scalar {
        assert_eq!(a.dtype(), b.dtype(), "operands of {} differ in dtype: {a}, {b}", op.name());
        let dtype = if op.is_comparison() { DType::Bool } else { a.dtype() };
        // Index arithmetic stays in one Expr where it can, so that the simplifier sees all of it.
        if dtype == DType::I64
            && let (Some(x), Some(y)) = (a.as_index(), b.as_index())
        {
            match op {
                Binary::Add => return Scalar::index(x + y),
                Binary::Sub => return Scalar::index(x - y),
                Binary::Mul => return Scalar::index(x * y),
                Binary::Min => return Scalar::index(x.min(y)),
                Binary::Max => return Scalar::index(x.max(y)),
                _ => {}
            }
        }
        // true and false are neutral in conditions.
        if dtype == DType::Bool {
            match (op, &a.0.kind, &b.0.kind) {
                (Binary::And, Kind::Const(1), _) | (Binary::Or, Kind::Const(0), _) => return b,
                (Binary::And, _, Kind::Const(1)) | (Binary::Or, _, Kind::Const(0)) => return a,
                (Binary::And, Kind::Const(0), _) | (Binary::Or, Kind::Const(1), _) => return a,
                (Binary::And, _, Kind::Const(0)) | (Binary::Or, _, Kind::Const(1)) => return b,
                _ => {}
            }
        }
        crate::eval::fold(Scalar::raw(dtype, Kind::Binary(op, a, b)))
    }
    /// `a * b + c`, rounded once.
    pub fn fma(a: Scalar, b: Scalar, c: Scalar) -> Scalar {
        assert!(a.dtype() == b.dtype() && b.dtype() == c.dtype(), "operands of fma differ in dtype");
        crate::eval::fold(Scalar::raw(a.dtype(), Kind::Fma(a, b, c)))
    }
    /// `if cond { a } else { b }`.
    pub fn select(cond: Scalar, a: Scalar, b: Scalar) -> Scalar {
        assert_eq!(a.dtype(), b.dtype(), "arms of select differ in dtype");
        assert_eq!(cond.dtype(), DType::Bool, "condition of select is not bool");
        match cond.0.kind {
            Kind::Const(0) => b,
            Kind::Const(_) => a,
            _ if a == b => a,
            _ => Scalar::raw(a.dtype(), Kind::Select(cond, a, b)),
        }
    }
    /// Conversion to `dtype`.
    pub fn cast(self, dtype: DType) -> Scalar {
        if self.dtype() == dtype { self } else { crate::eval::fold(Scalar::raw(dtype, Kind::Cast(self))) }
    }
    /// The same bits as `dtype`.
    pub fn bitcast(self, dtype: DType) -> Scalar {
        assert_eq!(self.dtype().bytes(), dtype.bytes(), "bitcast changes the width");
        if self.dtype() == dtype { self } else { crate::eval::fold(Scalar::raw(dtype, Kind::Bitcast(self))) }
    }
    /// The index expression it is, for `Index` and `i64` constants.
    pub fn as_index(self) -> Option<Expr> {
        match self.0.kind {
            Kind::Index(e) => Some(e),
            Kind::Const(c) if self.dtype() == DType::I64 => Some(Expr::int(c as i64)),
            _ => None,
        }
    }
    /// The float value of a float constant.
    pub fn as_float(self) -> Option<f64> {
        match self.0.kind {
            Kind::Const(c) if self.dtype().is_float() => Some(f64::from_bits(c)),
            _ => None,
        }
    }
    /// The value of an integer or bool constant.
    pub fn as_int(self) -> Option<i64> {
        match self.0.kind {
            Kind::Const(c) if !self.dtype().is_float() => Some(c as i64),
            _ => None,
        }
    }

    /// Its direct operands (index and guard of a read included).
    pub fn operands(self) -> Vec<Scalar> {
        match &self.0.kind {
            Kind::Const(_) | Kind::Index(_) | Kind::Local(_) => vec![],
            Kind::Read { index, guard, .. } => {
                let mut all = index.clone();
                if let Some((c, f)) = guard {
                    all.extend([*c, *f]);
                }
                all
            }
            Kind::Unary(_, a) | Kind::Cast(a) | Kind::Bitcast(a) => vec![*a],
            Kind::Binary(_, a, b) => vec![*a, *b],
            Kind::Fma(a, b, c) | Kind::Select(a, b, c) => vec![*a, *b, *c],
        }
    }

    /// The same node over other operands (in the order of [`Scalar::operands`]); folds again.
    pub fn rebuild(self, operands: &[Scalar]) -> Scalar {
        match (&self.0.kind, operands) {
            (Kind::Const(_) | Kind::Index(_) | Kind::Local(_), _) => self,
            (Kind::Read { source, index, guard }, all) => {
                let (index, rest) = all.split_at(index.len());
                match guard {
                    Some(_) => Scalar::read_if(*source as usize, index.iter().copied(), rest[0], rest[1]),
                    None => Scalar::read(self.dtype(), *source as usize, index.iter().copied()),
                }
            }
            (Kind::Unary(op, _), [a]) => Scalar::unary(*op, *a),
            (Kind::Binary(op, ..), [a, b]) => Scalar::binary(*op, *a, *b),
            (Kind::Fma(..), [a, b, c]) => Scalar::fma(*a, *b, *c),
            (Kind::Select(..), [a, b, c]) => Scalar::select(*a, *b, *c),
            (Kind::Cast(_), [a]) => a.cast(self.dtype()),
            (Kind::Bitcast(_), [a]) => a.bitcast(self.dtype()),
            _ => unreachable!("operand count of {self}"),
        }
    }

    /// Rewrites bottom-up: `f` gets every node after its operands were rewritten, once: where these make a node simpler, so that it becomes one of them or a part of one, that is
    /// not rewritten again. Shared nodes are visited once.
    pub fn rewrite(self, f: &mut dyn FnMut(Scalar) -> Scalar) -> Scalar {
        fn go(s: Scalar, memo: &mut std::collections::HashMap<Scalar, Scalar>, f: &mut dyn FnMut(Scalar) -> Scalar) -> Scalar {
            if let Some(&done) = memo.get(&s) {
                return done;
            }
            let operands = s.operands();
            let new: Vec<_> = operands.iter().map(|&o| go(o, memo, f)).collect();
            let out = if new == operands {
                f(s)
            } else {
                let built = s.rebuild(&new);
                let is_part = built.operands() != new && new.iter().any(|o| o.contains(built));
                if is_part { built } else { f(built) }
            };
            memo.insert(s, out);
            out
        }
        go(self, &mut std::collections::HashMap::new(), f)
    }

    /// Rewrites every index expression in it.
    pub fn map_index(self, f: &dyn Fn(Expr) -> Expr) -> Scalar {
        self.rewrite(&mut |s| match s.0.kind {
            Kind::Index(e) => Scalar::index(f(e)),
            _ => s,
        })
    }

    /// Replaces axis variable `i` by `values[i]`.
    pub fn subst(self, values: &[Expr]) -> Scalar {
        self.map_index(&|e| e.subst(values))
    }

    /// Is it `part`, or does that stand somewhere in it?
    fn contains(self, part: Scalar) -> bool {
        let mut found = false;
        self.visit(&mut |n| found |= n == part);
        found
    }

    /// Calls `see` once on every distinct node, operands first.
    pub fn visit(self, see: &mut dyn FnMut(Scalar)) {
        fn go(s: Scalar, seen: &mut std::collections::HashSet<Scalar>, see: &mut dyn FnMut(Scalar)) {
            if seen.insert(s) {
                s.operands().into_iter().for_each(|o| go(o, seen, see));
                see(s);
            }
        }
        go(self, &mut std::collections::HashSet::new(), see);
    }
}

/// Short ways to write bodies.
impl std::ops::Add for Scalar {
    type Output = Scalar;
    fn add(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Add, self, o)
    }
}
impl std::ops::Sub for Scalar {
    type Output = Scalar;
    fn sub(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Sub, self, o)
    }
}
impl std::ops::Mul for Scalar {
    type Output = Scalar;
    fn mul(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Mul, self, o)
    }
}
impl std::ops::Div for Scalar {
    type Output = Scalar;
    fn div(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Div, self, o)
    }
}
impl std::ops::Neg for Scalar {
    type Output = Scalar;
    fn neg(self) -> Scalar {
        Scalar::unary(Unary::Neg, self)
    }
}
impl Scalar {
    /// Minimum.
    pub fn min(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Min, self, o)
    }
    /// Maximum.
    pub fn max(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Max, self, o)
    }
    /// Less than.
    pub fn lt(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Lt, self, o)
    }
    /// Less or equal.
    pub fn le(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Le, self, o)
    }
    /// Equal.
    pub fn eq_to(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Eq, self, o)
    }
    /// Logical or bitwise and.
    pub fn and(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::And, self, o)
    }
    /// Logical or bitwise or.
    pub fn or(self, o: Scalar) -> Scalar {
        Scalar::binary(Binary::Or, self, o)
    }
    /// `lo <= self < hi` for an index.
    pub fn within(self, lo: impl Into<Expr>, hi: impl Into<Expr>) -> Scalar {
        Scalar::index(lo).le(self).and(self.lt(Scalar::index(hi)))
    }
    /// True for a constant `true`.
    pub fn always() -> Scalar {
        Scalar::int(DType::Bool, 1)
    }
}
