//! Numbers that kernels know: operands of one constant element become part of the computation if they are 0 or 1, or bounds.
//!
//! A scale of 1 is then no division, a zero point of 0 no subtraction. The smaller or larger of something and a bound that is known is one or two instructions; otherwise
//! NaN and the sign of zero take seven (14 of the 24 in what follows a product of mobilenet_v2). Other numbers stay operands, so that layers that differ in them alone share
//! a kernel. Class: exact (`x / 1`, `x * 1`, and for integers `x + 0` and `x - 0`, are `x`).

use crate::work::{Item, Memory, Task, Work};
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Tensor};

/// Puts them into the steps of the work list.
pub fn fold(work: &mut Work) {
    let mut items = std::mem::take(&mut work.items);
    walk(work, &mut items);
    work.items = items;
}

fn walk(work: &Work, items: &mut [Item]) {
    for item in items {
        match item {
            Item::Task(task) => fold_task(work, task),
            Item::If { then, otherwise, .. } => {
                walk(work, then);
                walk(work, otherwise);
            }
            Item::Loop { body, .. } => walk(work, body),
            Item::Bind { .. } | Item::Require { .. } | Item::Host { .. } => {}
        }
    }
}

fn fold_task(work: &Work, task: &mut Task) {
    let numbers: Vec<Option<Scalar>> = task
        .sources
        .iter()
        .map(|&id| match &work.tensor(id).memory {
            Memory::Constant(t) => number(t),
            _ => None,
        })
        .collect();
    if numbers.iter().all(Option::is_none) {
        return;
    }
    let bound = |s: Scalar| match s.kind() {
        Kind::Read { source, guard: None, .. } => numbers[*source as usize].unwrap_or(s),
        _ => s,
    };
    task.step = task.step.map(&mut |s| {
        s.rewrite(&mut |n| match n.kind() {
            Kind::Read { source, guard: None, .. } => numbers[*source as usize].filter(|&x| simple(x)).unwrap_or(n),
            Kind::Binary(op @ (Binary::Min | Binary::Max), a, b) => Scalar::binary(*op, bound(*a), bound(*b)),
            Kind::Binary(op, a, b) => match op {
                Binary::Mul | Binary::Div if is(*b, 1.0) => *a,
                Binary::Mul if is(*a, 1.0) => *b,
                Binary::Add | Binary::Sub if n.dtype().is_int() && is(*b, 0.0) => *a,
                Binary::Add if n.dtype().is_int() && is(*a, 0.0) => *b,
                _ => n,
            },
            _ => n,
        })
    });
    task.prune();
}

/// The number that a tensor is, if it is one and an f64 holds it.
fn number(t: &Tensor) -> Option<Scalar> {
    let plain = t.len() == 1 && (t.dtype.is_int() || matches!(t.dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64));
    if !plain {
        return None;
    }
    let value = t.float(0);
    let exact = !value.is_nan() && (!t.dtype.is_int() || value.abs() < (1i64 << 53) as f64);
    exact.then(|| Scalar::number(t.dtype, value))
}

/// Is it 0 or 1, and positive?
fn simple(s: Scalar) -> bool {
    is(s, 0.0) || is(s, 1.0)
}

fn is(s: Scalar, value: f64) -> bool {
    matches!(s.kind(), Kind::Const(_)) && s == Scalar::number(s.dtype(), value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::Id;
    use infc_ir::compute::{Compute, Step};
    use infc_ir::{Expr, TensorType};

    /// What a step of an input's element and a constant becomes: its value, its sources, and those of before.
    fn folded(value: &dyn Fn(Scalar, Scalar) -> Scalar, constant: f32) -> (String, Vec<Id>, Vec<Id>) {
        let mut work = Work::default();
        let dims = [Expr::int(4)];
        let x = work.add(TensorType::new(DType::F32, dims), Memory::Input(0), "x");
        let number = work.add(TensorType::new(DType::F32, []), Memory::Constant(Tensor::from_vec([], vec![constant])), "number");
        let out = work.add(TensorType::new(DType::F32, dims), Memory::Temp, "y");
        let read = |s: usize, at: &[Expr]| Scalar::read_at(DType::F32, s, at);
        let step = Step::Compute(Compute::map(&dims, |axes| value(read(0, axes), read(1, &[]))));
        work.items.push(Item::Task(Task { step, sources: vec![x, number], out, name: String::new(), node: String::new() }));
        fold(&mut work);
        let Item::Task(task) = &work.items[0] else { unreachable!("one task") };
        let Step::Compute(c) = &task.step else { unreachable!("a compute") };
        (c.value.to_string(), task.sources.clone(), vec![x, number])
    }

    #[test]
    fn divisions_by_one_go_and_other_numbers_stay() {
        let folded = |value: f32| folded(&|x, scale| x / scale + scale, value);
        let text = |value: f32| folded(value).0;
        assert_eq!(folded(1.0).1, vec![Id(0)]);
        assert!(!text(1.0).contains("div") && text(1.0).contains("add"), "{}", text(1.0));
        // A sum of floats with zero is not always the same float.
        assert!(text(0.0).contains("add"), "{}", text(0.0));
        let (_, sources, all) = folded(2.0);
        assert_eq!(sources, all);
    }

    #[test]
    fn bounds_are_known() {
        let sources = |op: Binary, bound: f32| folded(&|x, bound| Scalar::binary(op, x, bound), bound).1.len();
        assert_eq!((sources(Binary::Min, 6.0), sources(Binary::Max, -0.0), sources(Binary::Min, f32::INFINITY)), (1, 1, 1));
        // Nothing is smaller or larger than NaN, and a factor is no bound.
        assert_eq!((sources(Binary::Min, f32::NAN), sources(Binary::Mul, 6.0)), (2, 2));
    }
}
