//! Types of values, and facts: what is known about a value before it is computed.

use crate::dtype::DType;
use crate::expr::Expr;
use crate::tensor::Tensor;
use std::fmt;

/// A dense tensor: dtype and dims (symbolic, known or both). The rank is always known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dims.
    pub dims: Vec<Expr>,
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A dense tensor.
    Tensor(TensorType),
    /// A list of values of one type.
    Sequence(Box<Type>),
    /// A value or nothing.
    Optional(Box<Type>),
    /// A dictionary with integer or string keys.
    Map(DType, Box<Type>),
    /// A tensor of any rank: an element of a container whose elements differ in rank, or are declared without dims.
    Any(DType),
    /// The element type of a sequence that nothing has been put into yet.
    Nothing(DType),
}

/// What is known about a value: its type, its elements if constant, and for small integer tensors its elements as expressions.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Its type.
    pub ty: Type,
    /// Its elements, if known now.
    pub known: Option<Tensor>,
    /// For integer (and bool: 0 and 1) tensors of rank 0 or 1: each element as an expression of symbols.
    pub ints: Option<Vec<Expr>>,
}

impl TensorType {
    /// From dtype and dims.
    pub fn new(dtype: DType, dims: impl IntoIterator<Item = Expr>) -> TensorType {
        TensorType { dtype, dims: dims.into_iter().collect() }
    }
    /// Number of dims.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }
    /// The dims as numbers, if all are known.
    pub fn known_dims(&self) -> Option<Vec<usize>> {
        self.dims.iter().map(|d| d.known().and_then(|v| usize::try_from(v).ok())).collect()
    }
}

impl Type {
    /// A tensor type.
    pub fn tensor(dtype: DType, dims: impl IntoIterator<Item = Expr>) -> Type {
        Type::Tensor(TensorType::new(dtype, dims))
    }
    /// The tensor type it is, if it is one.
    pub fn as_tensor(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(t) => Some(t),
            Type::Sequence(_) | Type::Optional(_) | Type::Map(..) | Type::Any(_) | Type::Nothing(_) => None,
        }
    }
    /// The dtype, if it is a tensor type, of known rank or not.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            Type::Tensor(t) => Some(t.dtype),
            Type::Any(d) | Type::Nothing(d) => Some(*d),
            Type::Sequence(_) | Type::Optional(_) | Type::Map(..) => None,
        }
    }
    /// Calls `see` on every dim in it.
    pub fn each_dim(&self, see: &mut dyn FnMut(Expr)) {
        match self {
            Type::Tensor(t) => t.dims.iter().for_each(|&d| see(d)),
            Type::Sequence(t) | Type::Optional(t) | Type::Map(_, t) => t.each_dim(see),
            Type::Any(_) | Type::Nothing(_) => {}
        }
    }
    /// The same type with other dims.
    pub fn map_dims(&self, f: &dyn Fn(Expr) -> Expr) -> Type {
        match self {
            Type::Tensor(t) => Type::tensor(t.dtype, t.dims.iter().map(|&d| f(d))),
            Type::Sequence(t) => Type::Sequence(Box::new(t.map_dims(f))),
            Type::Optional(t) => Type::Optional(Box::new(t.map_dims(f))),
            Type::Map(k, t) => Type::Map(*k, Box::new(t.map_dims(f))),
            Type::Any(_) | Type::Nothing(_) => self.clone(),
        }
    }
    /// The type of values that are of this type or of type `other`; `None` if there is none. Where two dims differ, `fresh` gives
    /// the common one, from axis and both. Elements of containers may differ in rank, and a value counts as an optional with one.
    pub fn join(&self, other: &Type, fresh: &mut dyn FnMut(usize, Expr, Expr) -> Expr) -> Option<Type> {
        let boxed = |a: &Type, b: &Type, fresh: &mut dyn FnMut(usize, Expr, Expr) -> Expr| {
            let any = || a.dtype().filter(|d| a.as_tensor().is_some() && b.as_tensor().is_some_and(|b| b.dtype == *d));
            a.join(b, fresh).or_else(|| any().map(Type::Any)).map(Box::new)
        };
        Some(match (self, other) {
            (Type::Tensor(a), Type::Tensor(b)) if a.dtype == b.dtype && a.rank() == b.rank() => {
                let dims = a.dims.iter().zip(&b.dims).enumerate();
                Type::tensor(a.dtype, dims.map(|(k, (&p, &q))| if p == q { p } else { fresh(k, p, q) }).collect::<Vec<_>>())
            }
            (Type::Nothing(d), t) | (t, Type::Nothing(d)) if t.dtype() == Some(*d) => t.clone(),
            (Type::Any(d), t) | (t, Type::Any(d)) if t.dtype() == Some(*d) => Type::Any(*d),
            (Type::Sequence(a), Type::Sequence(b)) => Type::Sequence(boxed(a, b, fresh)?),
            (Type::Optional(a), Type::Optional(b)) => Type::Optional(boxed(a, b, fresh)?),
            (Type::Optional(a), b) | (b, Type::Optional(a)) => Type::Optional(boxed(a, b, fresh)?),
            (Type::Map(k, a), Type::Map(l, b)) if k == l => Type::Map(*k, boxed(a, b, fresh)?),
            _ => return None,
        })
    }
}

impl Fact {
    /// Only the type is known.
    pub fn of(ty: impl Into<Type>) -> Fact {
        Fact { ty: ty.into(), known: None, ints: None }
    }
    /// A tensor of which only dtype and dims are known.
    pub fn tensor(dtype: DType, dims: impl IntoIterator<Item = Expr>) -> Fact {
        Fact::of(Type::tensor(dtype, dims))
    }
    /// A known tensor; its elements become `ints` too if it is a small integer or bool tensor of rank 0 or 1, and expressions have them.
    pub fn constant(t: Tensor) -> Fact {
        let ty = Type::tensor(t.dtype, t.dims.iter().map(|&d| Expr::from(d)));
        let small = (t.dtype.is_int() || t.dtype == DType::Bool) && t.dims.len() <= 1 && t.len() <= 1024;
        let ints = small.then(|| t.to_ints()).filter(|v| t.dtype != DType::U64 || v.iter().all(|&v| v >= 0));
        let ints = ints.map(|v| v.into_iter().map(Expr::int).collect());
        Fact { ty, known: Some(t), ints }
    }
    /// With known elements as expressions; those that are all constants become a known tensor too.
    pub fn with_ints(self, ints: Option<Vec<Expr>>) -> Fact {
        let Some(ints) = ints else { return self };
        let Type::Tensor(t) = &self.ty else { return self };
        if !(t.dtype.is_int() || t.dtype == DType::Bool) || t.dims.len() > 1 {
            return self;
        }
        if let Some(values) = ints.iter().map(|e| e.known()).collect::<Option<Vec<i64>>>() {
            let dims: Vec<usize> = if t.dims.is_empty() { vec![] } else { vec![values.len()] };
            let wrapped = values.iter().map(|&v| crate::eval::wrap_int(t.dtype, v) as u64);
            return Fact::constant(Tensor::from_values(t.dtype, dims, wrapped));
        }
        Fact { ints: Some(ints), ..self }
    }
}

impl From<TensorType> for Type {
    fn from(t: TensorType) -> Type {
        Type::Tensor(t)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.dims.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// Text form: `f32[batch, 3]`, `seq(f32[])`, `optional(...)`, `map(i64, f32[])`, `any(f32)`, `nothing(f32)`.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor(t) => write!(f, "{t}"),
            Type::Sequence(t) => write!(f, "seq({t})"),
            Type::Optional(t) => write!(f, "optional({t})"),
            Type::Map(k, v) => write!(f, "map({k}, {v})"),
            Type::Any(d) => write!(f, "any({d})"),
            Type::Nothing(d) => write!(f, "nothing({d})"),
        }
    }
}
