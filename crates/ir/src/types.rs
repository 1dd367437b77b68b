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
            Type::Sequence(_) | Type::Optional(_) | Type::Map(..) => None,
        }
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
    /// A known tensor; its elements become `ints` too if it is a small integer or bool tensor of rank 0 or 1.
    pub fn constant(t: Tensor) -> Fact {
        let ty = Type::tensor(t.dtype, t.dims.iter().map(|&d| Expr::from(d)));
        let small = (t.dtype.is_int() || t.dtype == DType::Bool) && t.dims.len() <= 1 && t.len() <= 1024;
        let ints = small.then(|| t.to_ints().into_iter().map(Expr::int).collect());
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

/// Text form: `f32[batch, 3]`, `seq(f32[])`, `optional(...)`, `map(i64, f32[])`.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor(t) => write!(f, "{t}"),
            Type::Sequence(t) => write!(f, "seq({t})"),
            Type::Optional(t) => write!(f, "optional({t})"),
            Type::Map(k, v) => write!(f, "map({k}, {v})"),
        }
    }
}
