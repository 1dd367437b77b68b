//! Sequences and optionals.

use crate::Fault;
use crate::fault::fault;
use crate::tensor::{Tensor, normal_axis};
use crate::value::{Inputs, Value, operand, optional, sequence, tensor};

/// The position in operand `i`, which may count from the end of `elements`, below `limit`.
fn position(inputs: Inputs, i: usize, elements: usize, limit: usize) -> Result<usize, Fault> {
    let t = tensor(inputs, i)?;
    let [p] = t.ints()?[..] else { return Err(fault!("operand {i} is {t}, one integer is needed")) };
    let at = if p < 0 { p + elements as i64 } else { p };
    let at = usize::try_from(at).ok().filter(|&at| at < limit);
    at.ok_or_else(|| fault!("position {p} is outside the sequence of {elements}"))
}

/// The list of all operands.
pub fn construct(inputs: Inputs) -> Result<Value, Fault> {
    Ok(Value::Sequence(inputs.iter().flatten().map(|v| v.inner()).collect::<Result<_, _>>()?))
}

/// A new element at a position, or at the end. -1 is before the last element.
pub fn insert(inputs: Inputs) -> Result<Value, Fault> {
    let mut items = sequence(inputs, 0)?.to_vec();
    let n = items.len();
    let at = if optional(inputs, 2).is_some() { position(inputs, 2, n, n + 1)? } else { n };
    items.insert(at, operand(inputs, 1)?.inner()?);
    Ok(Value::Sequence(items))
}

/// Without the element at a position, or the last.
pub fn erase(inputs: Inputs) -> Result<Value, Fault> {
    let mut items = sequence(inputs, 0)?.to_vec();
    let n = items.len();
    let last = n.checked_sub(1).ok_or_else(|| fault!("the sequence is empty"))?;
    let at = if optional(inputs, 1).is_some() { position(inputs, 1, n, n)? } else { last };
    items.remove(at);
    Ok(Value::Sequence(items))
}

/// The element at a position.
pub fn at(inputs: Inputs) -> Result<Value, Fault> {
    let items = sequence(inputs, 0)?;
    Ok(items[position(inputs, 1, items.len(), items.len())?].clone())
}

/// How many elements there are.
pub fn length(inputs: Inputs) -> Result<Value, Fault> {
    Ok(Tensor::from_ints(vec![], &[sequence(inputs, 0)?.len() as i64])?.into())
}

/// All elements in one tensor, along an axis or a new one.
pub fn concat(axis: i64, new_axis: bool, inputs: Inputs) -> Result<Value, Fault> {
    let mut parts = vec![];
    for v in sequence(inputs, 0)? {
        let t = v.as_tensor().ok_or_else(|| fault!("an element of the sequence is {v}"))?;
        parts.push(t.clone());
    }
    join(parts, axis, new_axis)
}

/// Tensors joined along an axis or a new one.
pub fn join(mut parts: Vec<Tensor>, axis: i64, new_axis: bool) -> Result<Value, Fault> {
    let Some(first) = parts.first() else { return Err(fault!("the sequence is empty, so there is nothing to join")) };
    let axis = normal_axis(axis, first.dims().len() + usize::from(new_axis))?;
    if new_axis {
        for t in &mut parts {
            let mut dims = t.dims().to_vec();
            dims.insert(axis.min(dims.len()), 1);
            *t = t.reshape(dims)?;
        }
    }
    Ok(Tensor::concat(&parts, axis)?.into())
}

/// A tensor in pieces along an axis: of the sizes given, of one size, or of 1.
pub fn split(axis: i64, keepdims: bool, inputs: Inputs) -> Result<Value, Fault> {
    let t = tensor(inputs, 0)?;
    let axis = normal_axis(axis, t.dims().len())?;
    let extent = t.dims()[axis];
    let given = if optional(inputs, 1).is_some() { Some(tensor(inputs, 1)?) } else { None };
    let sizes: Vec<usize> = match given {
        None => vec![1; extent],
        Some(s) => {
            let sizes = s.ints()?.into_iter().map(|n| usize::try_from(n).map_err(|_| fault!("a piece of {n} is asked for")));
            let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
            match sizes[..] {
                [0] if s.dims().is_empty() => return Err(fault!("pieces of 0 are asked for")),
                [each] if s.dims().is_empty() => (0..extent).step_by(each).map(|at| each.min(extent - at)).collect(),
                _ => sizes,
            }
        }
    };
    let total = sizes.iter().try_fold(0usize, |n, &s| n.checked_add(s));
    if total != Some(extent) {
        return Err(fault!("the pieces do not add up to the {extent} elements"));
    }
    let (mut items, mut start) = (vec![], 0);
    for n in sizes {
        let mut piece = t.slice(axis, start, n)?;
        if !keepdims && given.is_none() {
            let mut dims = piece.dims().to_vec();
            dims.remove(axis);
            piece = piece.reshape(dims)?;
        }
        items.push(Value::Tensor(piece));
        start += n;
    }
    Ok(Value::Sequence(items))
}

/// An optional with the operand, or with nothing.
pub fn wrap(inputs: Inputs) -> Result<Value, Fault> {
    Ok(Value::Optional(optional(inputs, 0).map(Value::inner).transpose()?.map(Box::new)))
}

/// Is there a value? A value that is no optional is one.
pub fn has_element(inputs: Inputs) -> Result<Value, Fault> {
    let has = !matches!(optional(inputs, 0), None | Some(Value::Optional(None)));
    Ok(Tensor::from_bools(vec![], &[has])?.into())
}

/// The value of an optional, or a value that is none.
pub fn get_element(inputs: Inputs) -> Result<Value, Fault> {
    match operand(inputs, 0)? {
        Value::Optional(Some(v)) => Ok((**v).clone()),
        Value::Optional(None) => Err(fault!("the optional is empty")),
        other => Ok(other.clone()),
    }
}

/// The dims of a tensor, as `i64`.
pub fn shape(inputs: Inputs) -> Result<Value, Fault> {
    let dims: Vec<i64> = tensor(inputs, 0)?.dims().iter().map(|&d| d as i64).collect();
    Ok(Tensor::from_ints(vec![dims.len()], &dims)?.into())
}

/// Elements of all tensors after the first, taken as one row, at the places that the first one says.
pub fn pick(inputs: Inputs) -> Result<Value, Fault> {
    let places = tensor(inputs, 0)?;
    let parts: Vec<Tensor> =
        (1..inputs.len()).map(|i| tensor(inputs, i)?.reshape(vec![tensor(inputs, i)?.len()])).collect::<Result<_, _>>()?;
    let all = Tensor::concat(&parts, 0)?;
    let at = places.ints()?.into_iter().map(|p| {
        usize::try_from(p).ok().filter(|&p| p < all.len()).ok_or_else(|| fault!("place {p} is outside of {} elements", all.len()))
    });
    let at = at.collect::<Result<Vec<_>, _>>()?;
    Ok(all.pick(places.dims().to_vec(), at.into_iter())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routine::Routine;

    fn ints(values: &[i64]) -> Value {
        Tensor::from_ints(vec![values.len()], values).unwrap().into()
    }
    fn scalar(value: i64) -> Value {
        Tensor::from_ints(vec![], &[value]).unwrap().into()
    }
    fn run(routine: Routine, inputs: &[Value]) -> Result<Value, String> {
        let inputs: Vec<Option<&Value>> = inputs.iter().map(Some).collect();
        routine.run(&inputs).map(|mut v| v.remove(0)).map_err(|f| f.0)
    }
    fn list(items: &[&[i64]]) -> Value {
        Value::Sequence(items.iter().map(|i| ints(i)).collect())
    }

    #[test]
    fn positions_count_from_both_ends() {
        let l = list(&[&[1], &[2], &[3]]);
        let at = |p: i64| run(Routine::SequenceAt, &[l.clone(), scalar(p)]);
        assert_eq!(at(-3), Ok(ints(&[1])));
        assert_eq!(at(3).unwrap_err(), "position 3 is outside the sequence of 3");
        assert_eq!(at(i64::MIN).unwrap_err(), format!("position {} is outside the sequence of 3", i64::MIN));
        let insert = |p: i64| run(Routine::SequenceInsert, &[list(&[&[1], &[2]]), ints(&[9]), scalar(p)]);
        assert_eq!(insert(2), Ok(list(&[&[1], &[2], &[9]])));
        assert_eq!(insert(-1), Ok(list(&[&[1], &[9], &[2]])));
        assert!(insert(3).is_err());
        assert_eq!(run(Routine::SequenceErase, std::slice::from_ref(&l)), Ok(list(&[&[1], &[2]])));
        assert_eq!(run(Routine::SequenceErase, &[list(&[])]).unwrap_err(), "the sequence is empty");
        assert_eq!(run(Routine::SequenceLength, &[l]), Ok(scalar(3)));
    }

    #[test]
    fn pieces_and_joins_are_inverse() {
        let t: Value = Tensor::from_ints(vec![2, 3], &[1, 2, 3, 4, 5, 6]).unwrap().into();
        let pieces = run(Routine::SplitToSequence { axis: -1, keepdims: true }, &[t.clone(), scalar(2)]).unwrap();
        let Value::Sequence(items) = &pieces else { panic!("{pieces}") };
        assert_eq!(items.iter().map(|i| i.to_string()).collect::<Vec<_>>(), ["i64[2, 2]", "i64[2, 1]"]);
        assert_eq!(run(Routine::ConcatFromSequence { axis: 1, new_axis: false }, &[pieces]), Ok(t.clone()));
        let rows = run(Routine::SplitToSequence { axis: 0, keepdims: false }, std::slice::from_ref(&t)).unwrap();
        assert_eq!(run(Routine::ConcatFromSequence { axis: 0, new_axis: true }, &[rows]), Ok(t.clone()));
        let split = |sizes: Value| run(Routine::SplitToSequence { axis: 1, keepdims: true }, &[t.clone(), sizes]).unwrap_err();
        assert_eq!(split(ints(&[2, 2])), "the pieces do not add up to the 3 elements");
        assert_eq!(split(scalar(0)), "pieces of 0 are asked for");
        assert_eq!(split(scalar(-1)), "a piece of -1 is asked for");
        let mixed = Value::Sequence(vec![ints(&[1]), t]);
        let join = run(Routine::ConcatFromSequence { axis: 0, new_axis: false }, &[mixed]);
        assert_eq!(join.unwrap_err(), "i64[1] and i64[2, 3] cannot be joined along axis 0");
    }

    #[test]
    fn optionals_have_a_value_or_not() {
        let none = Value::Optional(None);
        assert_eq!(run(Routine::OptionalGetElement, std::slice::from_ref(&none)).unwrap_err(), "the optional is empty");
        let some = run(Routine::Optional, &[ints(&[1])]).unwrap();
        assert_eq!(run(Routine::OptionalGetElement, std::slice::from_ref(&some)), Ok(ints(&[1])));
        // Wrapping again and again ends.
        let mut deep = some.clone();
        let error = (0..100).find_map(|_| run(Routine::Optional, std::slice::from_ref(&deep)).map(|v| deep = v).err());
        assert_eq!(error.unwrap(), "a value nests too deeply");
        let has =
            |v: &[Value]| run(Routine::OptionalHasElement, v).unwrap() == Tensor::from_bools(vec![], &[true]).unwrap().into();
        assert_eq!([has(&[]), has(&[none]), has(&[some]), has(&[ints(&[])])], [false, false, true, true]);
    }

    #[test]
    fn elements_are_picked_from_all_operands() {
        let made = run(Routine::Pick, &[ints(&[3, 0]), ints(&[7, 8]), list(&[]).clone()]);
        assert!(made.unwrap_err().contains("a tensor is needed"));
        assert_eq!(run(Routine::Pick, &[ints(&[3, 0]), ints(&[7, 8]), ints(&[9, 10])]), Ok(ints(&[10, 7])));
        assert_eq!(run(Routine::Pick, &[ints(&[2]), ints(&[7, 8])]).unwrap_err(), "place 2 is outside of 2 elements");
    }
}
