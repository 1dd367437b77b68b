//! Elementwise operators.

use crate::kit::*;
use infc_ir::DType;

const WHOLE: &[DType] = &[DType::I8, DType::I16, DType::I32, DType::I64, DType::U8, DType::U16, DType::U32, DType::U64];

/// One operand of anything.
fn one(name: &'static str, r: &mut Random, dtype: DType) -> Case {
    let dims = r.dims(0..=4);
    op(name).of(r.tensor(dtype, &dims, Fill::Any))
}

/// `n` operands that broadcast.
fn many(name: &'static str, r: &mut Random, n: usize, dtype: DType, fill: Fill) -> Case {
    let shapes = r.broadcast(n);
    shapes.iter().fold(op(name), |case, dims| case.of(r.tensor(dtype, dims, fill)))
}

/// Rows `"Name" => |r| case;`.
macro_rules! rows {
    ($($name:literal => |$r:ident| $case:expr;)*) => { &[$(($name, |$r: &mut Random| { let _name = $name; $case })),*] };
}
pub(crate) use rows;

/// Functions of one float: interpreter and compiled code both round, from another intermediate.
macro_rules! functions {
    ($($name:literal)*) => { &[$(($name, |r: &mut Random| { let d = r.float(); one($name, r, d).ulps(4.0) })),*] };
}

pub const FUNCTIONS: &[Row] = functions!(
    "Acos" "Acosh" "Asin" "Asinh" "Atan" "Atanh" "Cosh" "Erf" "Exp" "HardSwish" "Log" "Mish" "Reciprocal" "Sigmoid" "Sinh" "Softplus"
    "Softsign" "Sqrt" "Tanh"
);

/// Angles that the reduction by pi/2 takes; beyond its range results are any number.
fn angle(name: &'static str, r: &mut Random) -> Case {
    let (d, dims) = (r.float(), r.dims(0..=4));
    let most = if d == DType::F16 { 6e4 } else { 9e5 };
    op(name).of(r.tensor(d, &dims, Fill::Real(-most, most))).ulps(4.0)
}

pub const ONE: &[Row] = rows! {
    "Abs" => |r| { let d = r.number(); one("Abs", r, d) };
    "BitCast" => |r| {
        let pairs = [(DType::F32, DType::I32), (DType::I32, DType::F32), (DType::F16, DType::U16), (DType::U64, DType::F64),
            (DType::I8, DType::U8), (DType::BF16, DType::F16), (DType::F8E5M2, DType::U8)];
        let (from, to) = r.pick(&pairs);
        // A NaN may change its bits on the way through f32.
        let dims = r.dims(0..=3);
        op("BitCast").int("to", to.onnx().into()).of(r.tensor(from, &dims, Fill::Within(0, 100)))
    };
    "BitwiseNot" => |r| { let d = r.int(); one("BitwiseNot", r, d) };
    "Cast" => |r| { let (d, to) = (r.plain(), r.plain()); cast(r, d, to).int("to", to.onnx().into()) };
    "Ceil" => |r| { let d = r.float(); one("Ceil", r, d) };
    "Celu" => |r| { let d = r.float(); one("Celu", r, d).float("alpha", 0.7).ulps(8.0) };
    "Cos" => |r| angle("Cos", r);
    "Elu" => |r| { let d = r.float(); one("Elu", r, d).float("alpha", 1.3).ulps(8.0) };
    "Floor" => |r| { let d = r.float(); one("Floor", r, d) };
    "Gelu" => |r| { let (d, mode) = (r.float(), r.pick(&["none", "tanh"])); one("Gelu", r, d).str("approximate", mode).scaled(8.0) };
    "HardSigmoid" => |r| { let d = r.float(); one("HardSigmoid", r, d).float("alpha", 0.3).float("beta", 0.4).ulps(2.0) };
    "Identity" => |r| { let d = r.plain(); one("Identity", r, d) };
    "IsInf" => |r| {
        let d = r.float();
        let (plus, minus) = (r.within(0, 1), r.within(0, 1));
        one("IsInf", r, d).int("detect_negative", minus).int("detect_positive", plus)
    };
    "IsNaN" => |r| { let d = r.float(); one("IsNaN", r, d) };
    "LeakyRelu" => |r| { let d = r.float(); one("LeakyRelu", r, d).float("alpha", 0.1) };
    "Neg" => |r| { let d = r.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I8, DType::I32, DType::I64]); one("Neg", r, d) };
    "Not" => |r| one("Not", r, DType::Bool);
    "Relu" => |r| { let d = r.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I8, DType::I32, DType::I64]); one("Relu", r, d) };
    "Round" => |r| { let d = r.float(); one("Round", r, d) };
    "Selu" => |r| { let d = r.float(); one("Selu", r, d).ulps(8.0) };
    "Shrink" => |r| { let d = r.number(); one("Shrink", r, d).float("bias", 0.5).float("lambd", 1.5) };
    "Sign" => |r| { let d = r.number(); one("Sign", r, d) };
    "Sin" => |r| angle("Sin", r);
    "Swish" => |r| { let d = r.float(); one("Swish", r, d).float("alpha", 1.7).ulps(8.0) };
    "Tan" => |r| angle("Tan", r);
    "ThresholdedRelu" => |r| { let d = r.float(); one("ThresholdedRelu", r, d).float("alpha", 0.5) };
};

fn cast(r: &mut Random, from: DType, to: DType) -> Case {
    let dims = r.dims(0..=4);
    // Floats outside of an integer's range have no one meaning in ONNX, but one here.
    let case = op("Cast").of(r.tensor(from, &dims, Fill::Any));
    let saturate = r.within(0, 1);
    if matches!(to, DType::F8E4M3FN | DType::F8E5M2) { case.int("saturate", saturate) } else { case }
}

pub const MANY: &[Row] = rows! {
    "Add" => |r| { let d = r.number(); many("Add", r, 2, d, Fill::Any) };
    "And" => |r| many("And", r, 2, DType::Bool, Fill::Any);
    "BitShift" => |r| {
        let (d, way) = (r.pick(&[DType::U8, DType::U16, DType::U32, DType::U64]), r.pick(&["LEFT", "RIGHT"]));
        let shapes = r.broadcast(2);
        op("BitShift").str("direction", way).of(r.tensor(d, &shapes[0], Fill::Any)).of(r.tensor(d, &shapes[1], Fill::Within(0, 70)))
    };
    "BitwiseAnd" => |r| { let d = r.int(); many("BitwiseAnd", r, 2, d, Fill::Any) };
    "BitwiseOr" => |r| { let d = r.int(); many("BitwiseOr", r, 2, d, Fill::Any) };
    "BitwiseXor" => |r| { let d = r.int(); many("BitwiseXor", r, 2, d, Fill::Any) };
    "CastLike" => |r| {
        let (from, to) = (r.plain(), r.plain());
        let (dims, like) = (r.dims(0..=3), r.dims(0..=2));
        op("CastLike").of(r.tensor(from, &dims, Fill::Any)).of(r.tensor(to, &like, Fill::Any))
    };
    "Clip" => |r| {
        let (d, dims) = (r.number(), r.dims(0..=4));
        let case = op("Clip").of(r.tensor(d, &dims, Fill::Any));
        match r.size(0, 3) {
            0 => case,
            1 => case.of(r.tensor(d, &[], Fill::Any)),
            2 => case.none().of(r.tensor(d, &[], Fill::Any)),
            _ => case.of(r.tensor(d, &[], Fill::Any)).of(r.tensor(d, &[], Fill::Any)),
        }
    };
    "Div" => |r| { let d = r.number(); many("Div", r, 2, d, Fill::Any) };
    "Equal" => |r| { let d = if r.chance(20) { DType::Bool } else { r.number() }; many("Equal", r, 2, d, Fill::Any) };
    "Greater" => |r| { let d = r.number(); many("Greater", r, 2, d, Fill::Any) };
    "GreaterOrEqual" => |r| { let d = r.number(); many("GreaterOrEqual", r, 2, d, Fill::Any) };
    "Less" => |r| { let d = r.number(); many("Less", r, 2, d, Fill::Any) };
    "LessOrEqual" => |r| { let d = r.number(); many("LessOrEqual", r, 2, d, Fill::Any) };
    "Max" => |r| { let (d, n) = (r.number(), r.size(1, 4)); many("Max", r, n, d, Fill::Any) };
    "Mean" => |r| { let (d, n) = (r.float(), r.size(1, 4)); many("Mean", r, n, d, SMALL).ulps(1.0) };
    "Min" => |r| { let (d, n) = (r.number(), r.size(1, 4)); many("Min", r, n, d, Fill::Any) };
    "Mod" => |r| {
        let (whole, d) = if r.chance(50) { (true, r.pick(WHOLE)) } else { (false, r.float()) };
        many("Mod", r, 2, d, Fill::Any).int("fmod", if whole { r.within(0, 1) } else { 1 })
    };
    "Mul" => |r| { let d = r.number(); many("Mul", r, 2, d, Fill::Any) };
    "Or" => |r| many("Or", r, 2, DType::Bool, Fill::Any);
    "PRelu" => |r| {
        let (d, dims) = (r.number(), r.dims(0..=4));
        let slope = r.broadcast_to(&dims);
        op("PRelu").of(r.tensor(d, &dims, Fill::Any)).of(r.tensor(d, &slope, Fill::Any))
    };
    "Pow" => |r| {
        let base = r.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I32, DType::I64]);
        let exponent = if r.chance(50) { base } else { r.number() };
        let shapes = r.broadcast(2);
        let fill = if base.is_float() { Fill::Any } else { Fill::Within(-5, 5) };
        let case = op("Pow").of(r.tensor(base, &shapes[0], fill)).of(r.tensor(exponent, &shapes[1], Fill::Within(-3, 6)));
        if base.is_float() { case.ulps(16.0) } else { case }
    };
    "Sub" => |r| { let d = r.number(); many("Sub", r, 2, d, Fill::Any) };
    "Sum" => |r| { let (d, n) = (r.float(), r.size(1, 4)); many("Sum", r, n, d, SMALL) };
    "SwiGLU" => |r| {
        let (d, dims) = (r.float(), r.dims(0..=4));
        op("SwiGLU").of(r.tensor(d, &dims, Fill::Any)).of(r.tensor(d, &dims, Fill::Any)).ulps(8.0)
    };
    "Where" => |r| {
        let (d, shapes) = (r.plain(), r.broadcast(3));
        let case = op("Where").of(r.tensor(DType::Bool, &shapes[0], Fill::Any));
        case.of(r.tensor(d, &shapes[1], Fill::Any)).of(r.tensor(d, &shapes[2], Fill::Any))
    };
    "Xor" => |r| many("Xor", r, 2, DType::Bool, Fill::Any);
};

#[test]
fn elementwise() {
    family("elementwise", &[FUNCTIONS, ONE, MANY].concat());
}
