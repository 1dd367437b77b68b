//! Dictionaries.

use crate::Fault;
use crate::fault::fault;
use crate::strings::{cast, print};
use crate::tensor::{Tensor, dtype};
use crate::value::{Inputs, Key, Value, entries, tensor};

/// A dictionary from labels to scores for each row.
pub fn zip(labels: &[Key], inputs: Inputs) -> Result<Value, Fault> {
    let t = tensor(inputs, 0)?;
    let width = t.dims().last().copied().unwrap_or(0);
    if width != labels.len() || width == 0 {
        return Err(fault!("{width} scores for {} class labels", labels.len()));
    }
    let flat = t.reshape(vec![t.len()])?;
    let value = |i: usize| Ok(Value::Tensor(flat.slice(0, i, 1)?.reshape(vec![])?));
    let row = |r: usize| {
        let entries = labels.iter().enumerate().map(|(k, l)| Ok((l.clone(), value(r * width + k)?)));
        Ok(Value::Map(entries.collect::<Result<_, Fault>>()?))
    };
    Ok(Value::Sequence((0..t.len() / width).map(row).collect::<Result<_, Fault>>()?))
}

/// A vector with the one element that a dictionary's value is.
fn entry(value: &Value) -> Result<Tensor, Fault> {
    match value.as_tensor().filter(|t| t.len() == 1) {
        Some(t) => t.reshape(vec![1]),
        None => Err(fault!("a value of the map is {value}, one number or string is needed")),
    }
}

/// One number or string as another.
fn converted(t: Tensor, to: u8) -> Result<Tensor, Fault> {
    match (t.dtype(), to) {
        (from, _) if from == to => Ok(t),
        (dtype::STRING, _) => match cast(to, &[Some(&t.into())])? {
            Value::Tensor(t) => Ok(t),
            other => Err(fault!("{other} is no number")),
        },
        (_, dtype::STRING) => print(&t),
        (_, dtype::F32) => Tensor::from_floats(vec![1], &[t.floats()?[0] as f32]),
        (dtype::F32 | dtype::F64, _) => Tensor::from_ints(vec![1], &[t.floats()?[0] as i64]),
        _ => Tensor::from_ints(vec![1], &[t.ints()?[0]]),
    }
}

/// The most places of a row.
const WIDEST: usize = 1 << 24;

/// The values of a dictionary in the order of their keys. With `width`, keys are places in a row of that width.
pub fn cast_map(to: u8, width: Option<usize>, inputs: Inputs) -> Result<Value, Fault> {
    let mut sorted: Vec<(i64, Tensor)> = vec![];
    for (k, v) in entries(inputs, 0)? {
        let Key::Int(k) = k else { return Err(fault!("a key of the map is a string, integers are needed")) };
        sorted.push((*k, converted(entry(v)?, to)?));
    }
    sorted.sort_by_key(|e| e.0);
    if width.is_some_and(|w| w > WIDEST) {
        return Err(fault!("a row of {} places; at most {WIDEST} are supported", width.unwrap_or(0)));
    }
    let row = match width {
        None if sorted.is_empty() => Tensor::zeros(to, 0)?,
        None => Tensor::concat(&sorted.into_iter().map(|e| e.1).collect::<Vec<_>>(), 0)?,
        Some(width) => {
            let mut parts = vec![];
            let mut at = 0;
            for (k, t) in sorted {
                let place = usize::try_from(k).map_err(|_| fault!("key {k} of the map is negative"))?;
                // Of equal keys the first counts; the row ends before those that are larger.
                if (at..width).contains(&place) {
                    parts.extend([Tensor::zeros(to, place - at)?, t]);
                    at = place + 1;
                }
            }
            parts.push(Tensor::zeros(to, width - at)?);
            Tensor::concat(&parts, 0)?
        }
    };
    Ok(row.reshape(vec![1, row.len()])?.into())
}

/// The values of the words of a vocabulary; 0 or nothing for those that are missing.
pub fn vector(vocabulary: &[Key], inputs: Inputs) -> Result<Value, Fault> {
    let entries = entries(inputs, 0)?;
    let kind = entries.first().map(|e| entry(&e.1)).transpose()?.map_or(dtype::F32, |t| t.dtype());
    let mut parts = vec![Tensor::zeros(kind, 0)?];
    for word in vocabulary {
        parts.push(match entries.iter().find(|e| e.0 == *word) {
            Some((_, v)) => entry(v)?,
            None => Tensor::zeros(kind, 1)?,
        });
    }
    Ok(Tensor::concat(&parts, 0)?.reshape(vec![1, vocabulary.len()])?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn number(v: f32) -> Value {
        Tensor::from_floats(vec![], &[v]).unwrap().into()
    }

    #[test]
    fn rows_become_dictionaries() {
        let labels = [Key::Int(4), Key::Int(2)];
        let scores: Value = Tensor::from_floats(vec![1, 2], &[0.5, 0.25]).unwrap().into();
        let made = zip(&labels, &[Some(&scores)]).unwrap();
        let map = Value::Map(vec![(Key::Int(4), number(0.5)), (Key::Int(2), number(0.25))]);
        assert_eq!(made, Value::Sequence(vec![map.clone()]));
        assert!(zip(&labels[..1], &[Some(&scores)]).unwrap_err().0.contains("2 scores for 1 class labels"));
        let dense = cast_map(dtype::F32, None, &[Some(&map)]).unwrap();
        assert_eq!(dense.as_tensor().unwrap().floats().unwrap(), [0.25, 0.5]);
        let sparse = cast_map(dtype::STRING, Some(6), &[Some(&map)]).unwrap();
        assert_eq!(sparse.as_tensor().unwrap().strings(), ["", "", "0.25", "", "0.5", ""].map(Bytes::from));
        let short = cast_map(dtype::I64, Some(3), &[Some(&map)]).unwrap();
        assert_eq!(short.as_tensor().unwrap().ints().unwrap(), [0, 0, 0]);
        let negative = Value::Map(vec![(Key::Int(-1), number(1.0))]);
        assert_eq!(cast_map(dtype::I64, Some(3), &[Some(&negative)]).unwrap_err().0, "key -1 of the map is negative");
        let words = vector(&[Key::Int(9), Key::Int(2)], &[Some(&map)]).unwrap();
        assert_eq!(words.as_tensor().unwrap().floats().unwrap(), [0.0, 0.25]);
    }
}
