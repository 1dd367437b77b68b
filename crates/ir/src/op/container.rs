//! Sequences and optionals: work for the host.
//!
//! The elements of a sequence may differ in their dims. Its type has the dims that all are known to share; the others are new
//! symbols, which stand for "any".

use super::*;

gaps! {}

/// The element type of the sequence in operand `i`.
fn element<'a>(cx: &Ctx<'a>, i: usize) -> Result<&'a Type, Fault> {
    match &cx.fact(i)?.ty {
        Type::Sequence(t) => Ok(t),
        other => Err(fault!("operand {i} is {other}, a sequence is needed")),
    }
}

/// The type of one element: elements may differ in dims of which only a symbol is known, so that each gets symbols of its own.
fn taken(ty: &Type, op: &str) -> Type {
    let Type::Tensor(t) = ty else { return ty.clone() };
    let dims = t.dims.iter().enumerate().map(|(k, &d)| if d.known().is_some() { d } else { new_dim(op, k) });
    Type::tensor(t.dtype, dims.collect::<Vec<_>>())
}

/// A type for both `a` and `b` as elements of a sequence.
fn joined(a: &Type, b: &Type, op: &str) -> Result<Type, Fault> {
    let mut count = 0;
    let mut fresh = |_, _, _| {
        count += 1;
        new_dim(op, count - 1)
    };
    let list = |t: &Type| Type::Sequence(Box::new(t.clone()));
    match list(a).join(&list(b), &mut fresh) {
        Some(Type::Sequence(ty)) => Ok(*ty),
        _ => Err(fault!("elements of types {a} and {b} cannot be in one sequence")),
    }
}

fn sequence(of: Type) -> Vec<Fact> {
    vec![Fact::of(Type::Sequence(Box::new(of)))]
}

macro_rules! host_ops {
    ($($(#[$doc:meta])* $name:ident |$op:ident, $cx:ident| $infer:expr;)*) => { $(
        $(#[$doc])*
        impl OpDef for $name {
            fn infer(&self, $cx: &Ctx) -> Result<Vec<Fact>, Fault> {
                let $op = self;
                $infer
            }
            fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
                Ok(Meaning::Host)
            }
        }
    )* };
}

host_ops! {
    SequenceConstruct |_op, cx| {
        let mut ty = cx.fact(0)?.ty.clone();
        for i in 1..cx.inputs.len() {
            ty = joined(&ty, &cx.fact(i)?.ty, "SequenceConstruct")?;
        }
        Ok(sequence(ty))
    };
    SequenceEmpty |op, _cx| {
        Ok(sequence(Type::Nothing(op.dtype.map_or(Ok(DType::F32), |d| common::dtype_attr("dtype", d))?)))
    };
    SequenceInsert |_op, cx| {
        let (old, new) = (element(cx, 0)?, &cx.fact(1)?.ty);
        Ok(sequence(joined(new, old, "SequenceInsert")?))
    };
    SequenceErase |_op, cx| Ok(sequence(element(cx, 0)?.clone()));
    SequenceAt |_op, cx| Ok(vec![Fact::of(taken(element(cx, 0)?, "SequenceAt"))]);
    SequenceLength |_op, cx| element(cx, 0).map(|_| vec![Fact::tensor(DType::I64, [])]);
    ConcatFromSequence |op, cx| {
        let t = element(cx, 0)?.as_tensor().ok_or_else(|| fault!("the elements of {} are no tensors of one rank", cx.inputs[0].as_ref().map_or(String::new(), |f| f.ty.to_string())))?;
        let joined = new_dim("ConcatFromSequence", t.rank());
        let Type::Tensor(TensorType { mut dims, .. }) = taken(&Type::Tensor(t.clone()), "ConcatFromSequence") else { unreachable!("a tensor") };
        let axis = normal_axis(op.axis, dims.len() + op.new_axis as usize)?;
        match op.new_axis {
            0 => dims[axis] = joined,
            _ => dims.insert(axis, joined),
        }
        Ok(vec![Fact::tensor(t.dtype, dims)])
    };
    SplitToSequence |op, cx| {
        let t = cx.tensor(0)?;
        let axis = normal_axis(op.axis, t.rank())?;
        let mut dims = t.dims.clone();
        let ints = if cx.has(1) { cx.fact(1)?.ints.clone() } else { Some(vec![Expr::int(1)]) };
        let one_size = |v: &Vec<Expr>| v.iter().all(|&e| e == v[0]) && (v.len() > 1 || t.dims[axis].rem(v[0]).is(0));
        match ints.filter(|v| !v.is_empty() && one_size(v)) {
            Some(v) => dims[axis] = v[0],
            None => dims[axis] = new_dim("SplitToSequence", 0),
        }
        if !cx.has(1) && !op.keepdims {
            dims.remove(axis);
        }
        Ok(sequence(Type::tensor(t.dtype, dims)))
    };
    Optional |op, cx| match (cx.inputs, &op.r#type) {
        ([Some(f)], None) => Ok(vec![Fact::of(Type::Optional(Box::new(f.ty.clone())))]),
        ([] | [None], Some(ty)) => Ok(vec![Fact::of(Type::Optional(Box::new(ty.clone())))]),
        ([Some(_)], Some(_)) => Err(fault!("has both an operand and the attribute 'type'; one of them is needed")),
        _ => Err(fault!("has neither an operand nor the attribute 'type'")),
    };
    OptionalHasElement |_op, _cx| Ok(vec![Fact::tensor(DType::Bool, [])]);
    OptionalGetElement |_op, cx| match &cx.fact(0)?.ty {
        Type::Optional(t) => Ok(vec![Fact::of(taken(t, "OptionalGetElement"))]),
        other => Ok(vec![Fact::of(other.clone())]),
    };
}

/// Operands that are sequences are taken element by element, tensors go to every call.
impl OpDef for SequenceMap {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        element(cx, 0)?;
        let body = cx.regions.first().ok_or_else(|| fault!("the body is missing"))?;
        if body.params.len() != cx.inputs.len() {
            return Err(fault!("the body takes {} values, {} are passed", body.params.len(), cx.inputs.len()));
        }
        Ok(body.results.iter().flat_map(|f| sequence(f.ty.clone())).collect())
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Control)
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::testing::*;
    use super::*;

    #[test]
    fn elements_of_a_sequence() {
        let fact = |t: &str| Fact::of(t.parse::<Type>().unwrap());
        let insert =
            |list: &str, x: &str| fact_of(SequenceInsert {}, &[fact(list), fact(x)]).map_or_else(|f| f.0, |f| f.ty.to_string());
        assert_eq!(fact_of(SequenceEmpty { dtype: Some(1) }, &[]).unwrap().ty.to_string(), "seq(nothing(f32))");
        assert_eq!(insert("seq(nothing(f32))", "f32[n, 3]"), "seq(f32[n, 3])");
        assert_eq!(insert("seq(f32[n, 3])", "f32[n, 3]"), "seq(f32[n, 3])");
        assert_eq!(insert("seq(f32[3])", "f32[]"), "seq(any(f32))");
        assert_eq!(insert("seq(any(f32))", "f32[3]"), "seq(any(f32))");
        assert_eq!(insert("seq(f32[3])", "i64[3]"), "elements of types i64[3] and f32[3] cannot be in one sequence");
        assert_eq!(insert("f32[3]", "f32[3]"), "operand 0 is f32[3], a sequence is needed");
    }

    #[test]
    fn an_optional_has_a_type() {
        let empty = |ty: Option<&str>| {
            let op = Optional { r#type: ty.map(|t| t.parse().unwrap()) };
            fact_of(op, &[]).map_or_else(|f| f.0, |f| f.ty.to_string())
        };
        assert_eq!(empty(Some("seq(f32[5])")), "optional(seq(f32[5]))");
        assert_eq!(empty(None), "has neither an operand nor the attribute 'type'");
    }
}
