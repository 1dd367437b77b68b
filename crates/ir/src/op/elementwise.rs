//! Elementwise operators: arithmetic, comparison, logic, activations, casts.

use super::*;

gaps! {
    Abs, Acos, Acosh, Add, And, Asin, Asinh, Atan,
    Atanh, BitCast, BitShift, BitwiseAnd, BitwiseNot, BitwiseOr, BitwiseXor, Cast,
    CastLike, Ceil, Celu, Clip, Cos, Cosh, Div, Elu,
    Equal, Erf, Exp, Floor, Gelu, Greater, GreaterOrEqual, HardSigmoid,
    HardSwish, Identity, IsInf, IsNaN, LeakyRelu, Less, LessOrEqual, Log,
    Max, Mean, Min, Mish, Mod, Mul, Neg, Not,
    Or, PRelu, Pow, Reciprocal, Relu, Round, Selu, Shrink,
    Sigmoid, Sign, Sin, Sinh, Softplus, Softsign, Sqrt, Sub,
    Sum, SwiGLU, Swish, Tan, Tanh, ThresholdedRelu, Where, Xor
}
