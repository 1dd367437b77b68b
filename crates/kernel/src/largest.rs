//! The largest and the smallest of numbers that lie in 16 bits (pooling of what `--math bf16` has stored, or of tensors in f16): compared as integers, and so neither
//! widened nor looked at for NaN one by one.
//!
//! Bits of a float are in the order of its numbers as they are from +0 upwards, and the other way round below. With the lower bits of negative numbers turned over they are in order as signed
//! integers, NaN at both ends; less (or more) the bits of the NaN at one end they are all at the other, where they win as the reducer has it, and an infinity is the integer that loses
//! against all. Class: exact (which of several NaN wins is open).

use crate::target::TargetDesc;
use crate::work::{Item, Task, Work};
use infc_ir::compute::{Compute, Reducer, Reduction, Step};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr};
use std::ops::Range;

/// Rewrites such reductions over windows in all blocks of the work list. GPUs widen for nothing beside what memory takes.
pub fn integers(work: &mut Work, target: &TargetDesc) {
    if target.block_threads == 0 {
        walk(&mut work.items);
    }
}

fn walk(items: &mut [Item]) {
    for item in items {
        match item {
            Item::Task(Task { step: Step::Compute(c), .. }) => {
                if let Some(new) = compared(c) {
                    *c = new;
                }
            }
            Item::If { then, otherwise, .. } => {
                walk(then);
                walk(otherwise);
            }
            Item::Loop { body, .. } => walk(body),
            Item::Task(_) | Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

/// The step with integers, if it is such a reduction.
fn compared(c: &Compute) -> Option<Compute> {
    let r = c.reduction.as_ref().filter(|r| matches!(r.kind, Reducer::Max | Reducer::Min))?;
    let order = match r.body.kind() {
        Kind::Cast(narrow) if r.body.dtype() == DType::F32 => Order::of(narrow.dtype(), r.kind).map(|o| (o, *narrow)),
        _ => Order::of(r.body.dtype(), r.kind).map(|o| (o, r.body)),
    };
    let (order, narrow) = order?;
    // An index of a window moves with the result and along the reduction. Whole rows wait for memory, and are known as they are elsewhere (softmax).
    let rank = c.dims.len();
    let uses = |e: Expr, of: Range<usize>| of.into_iter().any(|v| e.uses_var(v as u32));
    let mut window = false;
    narrow.visit(&mut |n| {
        if let Kind::Read { index, .. } = n.kind() {
            let mut all = index.iter().filter_map(|i| i.as_index());
            window |= all.any(|e| uses(e, 0..rank) && uses(e, rank..rank + r.axes.len()));
        }
    });
    if !window {
        return None;
    }
    let number = order.number(Scalar::raw(DType::I16, Kind::Local(0)), narrow.dtype());
    let found = number.cast(r.body.dtype());
    Some(Compute {
        dims: c.dims.clone(),
        reduction: Some(Reduction { body: order.integer(narrow), ..r.clone() }),
        value: c.value.rewrite(&mut |n| match n.kind() {
            Kind::Local(0) if n.dtype() == r.body.dtype() => found,
            // Widened for nothing.
            Kind::Cast(x) if *x == found && n.dtype() == number.dtype() => number,
            _ => n,
        }),
    })
}

/// How floats of 16 bits are in order as integers.
struct Order {
    /// What is taken off: bits of the last NaN, without its sign, that come before -infinity (from +infinity on, if the smallest is wanted).
    nan: i64,
}

impl Order {
    fn of(dtype: DType, kind: Reducer) -> Option<Order> {
        let nan = match dtype {
            DType::BF16 => 0x7f,
            DType::F16 => 0x3ff,
            _ => return None,
        };
        Some(Order { nan: if kind == Reducer::Max { nan } else { -nan } })
    }

    /// Turns the lower bits of negative numbers over, and back.
    fn turned(x: Scalar) -> Scalar {
        let all = |value: i64| Scalar::int(DType::I16, value);
        let sign = Scalar::binary(Binary::Shr, x, all(15));
        Scalar::binary(Binary::Xor, x, Scalar::binary(Binary::And, sign, all(0x7fff)))
    }

    fn integer(&self, x: Scalar) -> Scalar {
        Order::turned(x.bitcast(DType::I16)) - Scalar::int(DType::I16, self.nan)
    }

    fn number(&self, x: Scalar, dtype: DType) -> Scalar {
        Order::turned(x + Scalar::int(DType::I16, self.nan)).bitcast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// The integer of these bits, by the rules of the scalars themselves.
    fn value(s: Scalar) -> i64 {
        s.as_int().expect("constants are folded")
    }

    #[test]
    fn integers_are_in_the_order_of_the_numbers_with_nan_first() {
        for (dtype, kind) in [DType::BF16, DType::F16].into_iter().flat_map(|d| [(d, Reducer::Max), (d, Reducer::Min)]) {
            let order = Order::of(dtype, kind).unwrap();
            let float = |bits: u16| if dtype == DType::BF16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() };
            let sign = if kind == Reducer::Max { 1 } else { -1 };
            // What wins has the larger number.
            let mut all: Vec<(i64, u16)> = (0..=u16::MAX)
                .map(|bits| {
                    let x = Scalar::int(DType::I16, i64::from(bits as i16));
                    let integer = Order::turned(x) - Scalar::int(DType::I16, order.nan);
                    assert_eq!(value(Order::turned(integer + Scalar::int(DType::I16, order.nan))), i64::from(bits as i16));
                    (sign * value(integer), bits)
                })
                .collect();
            all.sort_unstable();
            let loser = if kind == Reducer::Max { f32::NEG_INFINITY } else { f32::INFINITY };
            assert_eq!(float(all[0].1), loser, "{dtype:?} {kind:?}");
            assert_eq!(all[0].0 * sign, if kind == Reducer::Max { -32768 } else { 32767 });
            for pair in all.windows(2) {
                let [a, b] = [float(pair[0].1), float(pair[1].1)];
                let zeros = a == 0.0 && b == 0.0 && [a, b].map(|x| x.is_sign_negative() == (kind == Reducer::Max)) == [true, false];
                let less = if kind == Reducer::Max { a < b } else { a > b };
                assert!(b.is_nan() || less || zeros, "{dtype:?} {kind:?}: {a} before {b}");
            }
        }
    }

    #[test]
    fn what_is_wider_and_what_is_no_reduction_of_the_kind_stays() {
        let step = |dtype: DType, kind: Reducer, stride: i64| {
            let body = Scalar::read_at(dtype, 0, &[Expr::var(0) * stride + Expr::var(1)]);
            let body = if dtype == DType::BF16 { body.cast(DType::F32) } else { body };
            let value = Scalar::raw(body.dtype(), Kind::Local(0));
            Compute { dims: vec![Expr::int(4)], reduction: Some(Reduction { axes: vec![Expr::int(3)], kind, body }), value }
        };
        let dtype = |c: Option<Compute>| c.map(|c| (c.reduction.unwrap().body.dtype(), c.value.dtype()));
        assert_eq!(dtype(compared(&step(DType::BF16, Reducer::Max, 2))), Some((DType::I16, DType::F32)));
        assert_eq!(dtype(compared(&step(DType::F16, Reducer::Min, 2))), Some((DType::I16, DType::F16)));
        assert_eq!(dtype(compared(&step(DType::F32, Reducer::Max, 2))), None);
        assert_eq!(dtype(compared(&step(DType::BF16, Reducer::Sum, 2))), None);
        // No window: the same elements for all results.
        assert_eq!(dtype(compared(&step(DType::BF16, Reducer::Max, 0))), None);
    }
}
