//! Rules of arithmetic.

use super::all_are;
use crate::rewrite::{Replacement, Site};
use infc_ir::op::{Cast, Mul, Sqrt};
use infc_ir::tensor::Tensor;
use infc_ir::{DType, Op, Value};

pub(super) fn rule(site: &mut Site) -> Replacement {
    if let Some(v) = neutral(site).or_else(|| twice(site)).or_else(|| inference(site)).or_else(|| chosen(site)) {
        return Ok(Some(vec![v]));
    }
    match site.op() {
        Op::Div(_) => divide(site),
        Op::Pow(_) => power(site),
        Op::Cast(op) => {
            let op = op.clone();
            casts(site, op)
        }
        _ => Ok(None),
    }
}

/// x * 1, x / 1, x + -0.0, x - 0.0, x ^ 1, and on integers x + 0: x. (x + 0.0 is not x: -0.0 becomes 0.0.) x && true, x || false: x.
fn neutral(site: &Site) -> Option<Value> {
    let float = site.graph.ty(site.input(0)?).as_tensor()?.dtype.is_float();
    let zero = if float { -0.0 } else { 0.0 };
    let (value, commutes) = match site.op() {
        Op::Mul(_) | Op::And(_) => (1.0, true),
        Op::Div(_) | Op::Pow(_) => (1.0, false),
        Op::Add(_) => (zero, true),
        Op::Or(_) => (0.0, true),
        Op::Sub(_) => (0.0, false),
        _ => return None,
    };
    let kept = |x: usize, c: usize| {
        let neutral = site.constant(c).is_some_and(|t| all_are(t, value));
        site.input(x).filter(|&v| neutral && site.same_type(v, site.output()))
    };
    kept(0, 1).or_else(|| if commutes { kept(1, 0) } else { None })
}

/// Not(Not x), Neg(Neg x): x. Relu(Relu x), Abs(Abs x), Sign.., Floor(Floor x), ...: the inner one.
fn twice(site: &Site) -> Option<Value> {
    let x = site.input(0)?;
    let inner = site.graph.node(site.producer(x)?);
    if inner.op != *site.op() {
        return None;
    }
    match site.op() {
        Op::Not(_) | Op::Neg(_) | Op::BitwiseNot(_) => inner.operand(0),
        Op::Relu(_) | Op::Abs(_) | Op::Sign(_) | Op::Floor(_) | Op::Ceil(_) | Op::Round(_) => Some(x),
        _ => None,
    }
}

/// Dropout outside training: its operand.
fn inference(site: &Site) -> Option<Value> {
    let Op::Dropout(_) = site.op() else { return None };
    let training = site.input(2).is_some() && !site.constant(2).is_some_and(|t| all_are(t, 0.0));
    let alone = site.data().outputs.len() == 1;
    (!training && alone).then(|| site.input(0))?
}

/// Where with a constant condition that is the same everywhere: the operand chosen.
fn chosen(site: &Site) -> Option<Value> {
    let Op::Where(_) = site.op() else { return None };
    let cond = site.constant(0)?;
    let v = match cond {
        c if c.is_empty() => return None,
        c if all_are(c, 1.0) => site.input(1)?,
        c if all_are(c, 0.0) => site.input(2)?,
        _ => return None,
    };
    site.same_type(v, site.output()).then_some(v)
}

/// x / 2^k: x * 2^-k, which is the same real number before rounding.
fn divide(site: &mut Site) -> Replacement {
    let Some(t) = site.constant(1) else { return Ok(None) };
    let power = |x: f64| {
        let inverse = 1.0 / x;
        x.is_normal() && x.to_bits() << 12 == 0 && infc_ir::eval::round_float(t.dtype, inverse) == inverse && inverse.is_normal()
    };
    if !matches!(t.dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16) || !(0..t.len()).all(|i| power(t.float(i))) {
        return Ok(None);
    }
    let inverse = Tensor::from_values(t.dtype, t.dims.clone(), (0..t.len()).map(|i| (1.0 / t.float(i)).to_bits()));
    let Some(x) = site.input(0) else { return Ok(None) };
    site.build(|b| {
        let c = b.constant(inverse);
        b.op(Mul {}, &[x, c])
    })
    .map(|v| Some(vec![v]))
}

/// x ^ 2: x * x, for dtypes that are computed in a wider one. x ^ 0.5: sqrt x, for x >= +0 (they differ at -0 and -inf).
fn power(site: &mut Site) -> Replacement {
    let (Some(x), Some(t)) = (site.input(0), site.constant(1)) else { return Ok(None) };
    let (square, root) = (all_are(t, 2.0), all_are(t, 0.5));
    let dtype = site.graph.ty(x).as_tensor().map(|t| t.dtype);
    let same = site.same_type(x, site.output());
    match dtype {
        Some(DType::F32 | DType::F16 | DType::BF16) if square && same => site.replace(Mul {}, &[x, x]),
        Some(d) if d.is_int() && square && same => site.replace(Mul {}, &[x, x]),
        Some(DType::F32 | DType::F16 | DType::BF16) if root && same && not_negative(site, x, 4) => site.replace(Sqrt {}, &[x]),
        _ => Ok(None),
    }
}

/// True if no element of `v` can be negative or -0.
fn not_negative(site: &Site, v: Value, depth: usize) -> bool {
    if let Some(t) = site.graph.constant(v) {
        return (0..t.len()).all(|i| t.float(i).is_sign_positive());
    }
    let (Some(n), true) = (site.producer(v), depth > 0) else { return false };
    let node = site.graph.node(n);
    let operand = |i: usize| node.inputs.get(i).copied().flatten();
    let holds = |i: usize| operand(i).is_some_and(|x| not_negative(site, x, depth - 1));
    match &node.op {
        Op::Abs(_) | Op::Exp(_) | Op::Sigmoid(_) | Op::ReduceSumSquare(_) | Op::Softmax(_) => true,
        Op::Mul(_) if operand(0) == operand(1) => true,
        Op::Mul(_) | Op::Add(_) | Op::Max(_) => (0..node.inputs.len()).all(holds),
        Op::Sqrt(_) | Op::ReduceMean(_) | Op::ReduceSum(_) | Op::ReduceMax(_) | Op::Reshape(_) | Op::Transpose(_) => holds(0),
        _ => false,
    }
}

/// Cast(Cast(x, wide), to): Cast(x, to), if `wide` holds every value of x exactly.
fn casts(site: &mut Site, op: Cast) -> Replacement {
    let Some(inner) = site.input(0).and_then(|v| site.producer(v)) else { return Ok(None) };
    let node = site.graph.node(inner);
    let (Op::Cast(_), Some(x)) = (&node.op, node.operand(0)) else { return Ok(None) };
    let dtype = |v: Value| site.graph.ty(v).as_tensor().map(|t| t.dtype);
    let (Some(from), Some(wide)) = (dtype(x), dtype(node.outputs[0])) else { return Ok(None) };
    // The text of a number depends on its dtype: 0.1 is another one in f32 than in f64.
    let to_text = op.to == i64::from(DType::String.onnx());
    if to_text || !holds_exactly(wide, from) {
        return Ok(None);
    }
    site.absorb(inner);
    site.replace(op, &[x])
}

/// True if every value of `from` is a value of `wide`.
fn holds_exactly(wide: DType, from: DType) -> bool {
    let digits = |d: DType| match d {
        DType::F64 => 53,
        DType::F32 => 24,
        DType::F16 => 11,
        DType::BF16 => 8,
        _ => 0,
    };
    match (wide.int_range(), from.int_range()) {
        (Some((lo, hi)), Some((least, most))) => wide != DType::Bool && lo <= least && most <= hi,
        (None, Some((least, most))) => {
            // f16 reaches 65504 only.
            let range = if wide == DType::F16 { 1i128 << 11 } else { 1i128 << digits(wide) };
            -range <= least && most <= range
        }
        (None, None) => {
            let wider = digits(wide) >= digits(from) && digits(from) > 0;
            wide == from || wider && !matches!((wide, from), (DType::F16, DType::BF16))
        }
        (Some(_), None) => false,
    }
}
