//! The largest of numbers that lie in 16 bits, over windows (pooling of what `--math bf16` has stored, or of tensors in f16): compared as integers, and so neither widened nor looked at for NaN one
//! by one.
//!
//! Bits of a float are in the order of its numbers from +0 upwards, and the other way round below. With the lower bits of negative numbers turned over they are in order as signed
//! integers, NaN at both ends; less the bits of the NaN at the lower end all NaN are at the upper one, where they win as the reducer has it, and -infinity is the least integer, with which
//! it begins. Class: exact (which of several NaN wins is open). (Granite Rapids, 3 x 3 over 112 x 112 x 64 in bf16: 170 to 70 us.)

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
    let r = c.reduction.as_ref().filter(|r| r.kind == Reducer::Max)?;
    let narrow = match r.body.kind() {
        Kind::Cast(narrow) if r.body.dtype() == DType::F32 => *narrow,
        _ => r.body,
    };
    let lower = lower(narrow.dtype())?;
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
    let number = turned(Scalar::raw(DType::I16, Kind::Local(0)) + lower).bitcast(narrow.dtype());
    let found = number.cast(r.body.dtype());
    Some(Compute {
        dims: c.dims.clone(),
        reduction: Some(Reduction { body: turned(narrow.bitcast(DType::I16)) - lower, ..r.clone() }),
        value: c.value.rewrite(&mut |n| match n.kind() {
            Kind::Local(0) if n.dtype() == r.body.dtype() => found,
            // Widened for nothing.
            Kind::Cast(x) if *x == found && n.dtype() == number.dtype() => number,
            _ => n,
        }),
    })
}

/// How many NaN have each sign. Less that many, those at the lower end wrap around to the upper one.
fn lower(dtype: DType) -> Option<Scalar> {
    match dtype {
        DType::BF16 => Some(Scalar::int(DType::I16, 0x7f)),
        DType::F16 => Some(Scalar::int(DType::I16, 0x3ff)),
        _ => None,
    }
}

/// Turns the lower bits of negative numbers over, and back.
fn turned(x: Scalar) -> Scalar {
    let number = |value: i64| Scalar::int(DType::I16, value);
    let sign = Scalar::binary(Binary::Shr, x, number(15));
    Scalar::binary(Binary::Xor, x, Scalar::binary(Binary::And, sign, number(0x7fff)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn integers_are_in_the_order_of_the_numbers_with_nan_last() {
        let value = |s: Scalar| s.as_int().expect("constants are folded");
        for dtype in [DType::BF16, DType::F16] {
            let lower = lower(dtype).unwrap();
            let float =
                |bits: u16| if dtype == DType::BF16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() };
            let all = (0..=u16::MAX).map(|bits| {
                let x = Scalar::int(DType::I16, i64::from(bits as i16));
                let integer = turned(x) - lower;
                assert_eq!(value(turned(integer + lower)), i64::from(bits as i16));
                (value(integer), bits)
            });
            let mut all: Vec<(i64, u16)> = all.collect();
            all.sort_unstable();
            assert_eq!((all[0].0, float(all[0].1)), (i64::from(i16::MIN), f32::NEG_INFINITY), "{dtype:?}");
            for pair in all.windows(2) {
                let [a, b] = [float(pair[0].1), float(pair[1].1)];
                let zeros = a == 0.0 && b == 0.0 && [a, b].map(f32::is_sign_negative) == [true, false];
                assert!(b.is_nan() || a < b || zeros, "{dtype:?}: {a} before {b}");
            }
        }
    }

    #[test]
    fn what_is_wider_and_what_is_no_largest_of_a_window_stays() {
        let step = |dtype: DType, kind: Reducer, stride: i64| {
            let body = Scalar::read_at(dtype, 0, &[Expr::var(0) * stride + Expr::var(1)]);
            let body = if dtype == DType::BF16 { body.cast(DType::F32) } else { body };
            let value = Scalar::raw(body.dtype(), Kind::Local(0));
            Compute { dims: vec![Expr::int(4)], reduction: Some(Reduction { axes: vec![Expr::int(3)], kind, body }), value }
        };
        let dtypes = |c: Option<Compute>| c.map(|c| (c.reduction.unwrap().body.dtype(), c.value.dtype()));
        assert_eq!(dtypes(compared(&step(DType::BF16, Reducer::Max, 2))), Some((DType::I16, DType::F32)));
        assert_eq!(dtypes(compared(&step(DType::F16, Reducer::Max, 2))), Some((DType::I16, DType::F16)));
        assert_eq!(dtypes(compared(&step(DType::F32, Reducer::Max, 2))), None);
        assert_eq!(dtypes(compared(&step(DType::BF16, Reducer::Sum, 2))), None);
        // No window: the same elements for all results.
        assert_eq!(dtypes(compared(&step(DType::BF16, Reducer::Max, 0))), None);
    }
}
