//! Strings: joined, compared, parsed, printed, matched, normalised, split.

use crate::Fault;
use crate::fault::fault;
use crate::tensor::{Data, Tensor, dtype, filled};
use crate::value::{Inputs, Value, tensor, utf8};
use bytes::Bytes;
use regex_lite::Regex;

/// What becomes of upper and lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Nothing.
    Keep,
    /// Lower case.
    Lower,
    /// Upper case.
    Upper,
}

/// `f` of broadcast pairs of strings, with their dims.
fn pairs<T>(inputs: Inputs, f: impl Fn(&Bytes, &Bytes) -> T) -> Result<(Vec<usize>, Vec<T>), Fault> {
    let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let (x, y) = (a.texts()?, b.texts()?);
    let rank = a.dims().len().max(b.dims().len());
    let dim = |t: &Tensor, axis: usize| (axis + t.dims().len()).checked_sub(rank).map_or(1, |i| t.dims()[i]);
    let dims: Vec<usize> = (0..rank).map(|i| if dim(a, i) == 1 { dim(b, i) } else { dim(a, i) }).collect();
    if (0..rank).any(|i| [dim(a, i), dim(b, i)].iter().any(|&d| d != 1 && d != dims[i])) {
        return Err(fault!("shapes {:?} and {:?} do not broadcast", a.dims(), b.dims()));
    }
    let offset = |t: &Tensor, mut at: usize| {
        let (mut offset, mut stride) = (0, 1);
        for axis in (0..rank).rev() {
            let i = at % dims[axis];
            at /= dims[axis];
            if dim(t, axis) > 1 {
                offset += i * stride;
            }
            stride *= dim(t, axis);
        }
        offset
    };
    let n = crate::tensor::count(&dims).ok_or_else(|| fault!("too many elements"))?;
    Ok((dims.clone(), (0..n).map(|at| f(&x[offset(a, at)], &y[offset(b, at)])).collect()))
}

/// One string after the other.
pub fn concat(inputs: Inputs) -> Result<Value, Fault> {
    let (dims, made) = pairs(inputs, |a, b| Bytes::from([&a[..], &b[..]].concat()))?;
    Ok(Tensor::from_strings(dims, made)?.into())
}

/// Are they equal?
pub fn equal(inputs: Inputs) -> Result<Value, Fault> {
    let (dims, made) = pairs(inputs, |a, b| a == b)?;
    Ok(Tensor::from_bools(dims, &made)?.into())
}

/// The place of each string among all different ones, in the order of their bytes.
pub fn rank(inputs: Inputs) -> Result<Value, Fault> {
    let t = tensor(inputs, 0)?;
    let mut order: Vec<&Bytes> = t.texts()?.iter().collect();
    order.sort();
    order.dedup();
    let places: Vec<i64> = t.texts()?.iter().map(|s| order.partition_point(|o| *o < s) as i64).collect();
    Ok(Tensor::from_ints(t.dims().to_vec(), &places)?.into())
}

/// Dtypes that strings are converted to and from; the others go through these.
pub const NUMBERS: [u8; 4] = [dtype::F32, dtype::F64, dtype::I64, dtype::U64];

/// Numbers from their text, and text from numbers (floats in the shortest form that gives them back).
pub fn cast(to: u8, inputs: Inputs) -> Result<Value, Fault> {
    let t = tensor(inputs, 0)?;
    let made = match (t.data(), to) {
        (Data::Bytes(_), dtype::STRING) => print(t)?,
        (Data::Strings(s), _) if NUMBERS.contains(&to) => parse(s, to, t.dims())?,
        _ => return Err(fault!("{t} cannot become {}", dtype::name(to))),
    };
    Ok(made.into())
}

/// The text of each number of a tensor.
pub(crate) fn print(t: &Tensor) -> Result<Tensor, Fault> {
    let float = |v: f64| match v {
        v if v.is_nan() => "NaN".to_owned(),
        v if v.is_infinite() => if v > 0.0 { "INF" } else { "-INF" }.to_owned(),
        v if t.dtype() == dtype::F64 => v.to_string(),
        v => (v as f32).to_string(),
    };
    let texts: Vec<String> = match t.dtype() {
        dtype::F32 | dtype::F64 => t.floats()?.into_iter().map(float).collect(),
        dtype::U64 => t.ints()?.into_iter().map(|v| (v as u64).to_string()).collect(),
        _ => t.ints()?.into_iter().map(|v| v.to_string()).collect(),
    };
    Tensor::from_strings(t.dims().to_vec(), texts.into_iter().map(Bytes::from))
}

/// The numbers that strings stand for.
fn parse(strings: &[Bytes], to: u8, dims: &[usize]) -> Result<Tensor, Fault> {
    let mut bytes = vec![];
    for s in strings {
        let s = utf8(s)?.trim();
        let number: f64 = s.parse().map_err(|_| fault!("'{s}' is no number"))?;
        match to {
            dtype::F32 => bytes.extend((number as f32).to_le_bytes()),
            dtype::F64 => bytes.extend(number.to_le_bytes()),
            // A fraction is cut off, what is too large saturates.
            dtype::U64 => bytes.extend(s.parse::<u64>().unwrap_or(number as u64).to_le_bytes()),
            _ => bytes.extend(s.parse::<i64>().unwrap_or(number as i64).to_le_bytes()),
        }
    }
    Tensor::from_bytes(to, dims.to_vec(), bytes)
}

/// A pattern that the whole string must match.
pub fn pattern(text: &str) -> Result<Regex, Fault> {
    Regex::new(&format!("^(?:{text})$")).map_err(|e| fault!("pattern '{text}' is not supported: {e}"))
}

/// Does each string match?
pub fn full_match(regex: &Regex, inputs: Inputs) -> Result<Value, Fault> {
    let t = tensor(inputs, 0)?;
    let found = t.texts()?.iter().map(|s| Ok(regex.is_match(utf8(s)?))).collect::<Result<Vec<bool>, Fault>>()?;
    Ok(Tensor::from_bools(t.dims().to_vec(), &found)?.into())
}

/// One row of strings without stop words, with another case. Nothing left is one empty string.
pub fn normalise(case: Case, sensitive: bool, stopwords: &[String], inputs: Inputs) -> Result<Value, Fault> {
    let t = tensor(inputs, 0)?;
    let folded = |s: &str| if sensitive { s.to_owned() } else { s.to_lowercase() };
    let stop: Vec<String> = stopwords.iter().map(|s| folded(s)).collect();
    let mut kept = vec![];
    for s in t.texts()? {
        let s = utf8(s)?;
        if stop.contains(&folded(s)) {
            continue;
        }
        kept.push(Bytes::from(match case {
            Case::Lower => s.to_lowercase(),
            Case::Upper => s.to_uppercase(),
            Case::Keep => s.to_owned(),
        }));
    }
    if kept.is_empty() {
        kept.push(Bytes::new());
    }
    let dims = match t.dims() {
        [_] => vec![kept.len()],
        [1, _] => vec![1, kept.len()],
        dims => return Err(fault!("strings of dims {dims:?} cannot be normalised, one row is needed")),
    };
    Ok(Tensor::from_strings(dims, kept)?.into())
}

/// Each string in parts, padded with empty strings along a new last axis; and how many parts each has.
pub fn split(delimiter: Option<&str>, most: Option<usize>, inputs: Inputs) -> Result<[Value; 2], Fault> {
    let t = tensor(inputs, 0)?;
    let most = most.unwrap_or(usize::MAX);
    let mut rows: Vec<Vec<&str>> = vec![];
    for s in t.texts()? {
        let s = utf8(s)?;
        rows.push(match delimiter.filter(|d| !d.is_empty()) {
            Some(d) => s.splitn(most.saturating_add(1), d).collect(),
            None => split_blank(s, most),
        });
    }
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut parts = filled(rows.len().saturating_mul(width), Bytes::new())?;
    for (r, row) in rows.iter().enumerate() {
        for (c, part) in row.iter().enumerate() {
            parts[r * width + c] = Bytes::from(part.to_string());
        }
    }
    let dims = t.dims().iter().copied().chain([width]).collect();
    let counts: Vec<i64> = rows.iter().map(|r| r.len() as i64).collect();
    Ok([Tensor::from_strings(dims, parts)?.into(), Tensor::from_ints(t.dims().to_vec(), &counts)?.into()])
}

/// Python's `split()`: at runs of white space, at most `most` times.
fn split_blank(text: &str, most: usize) -> Vec<&str> {
    let (mut parts, mut rest) = (vec![], text.trim_start());
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest.trim_end());
            break;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Value {
        let strings = list.iter().map(|s| Bytes::copy_from_slice(s.as_bytes()));
        Tensor::from_strings(vec![list.len()], strings).unwrap().into()
    }

    #[test]
    fn strings_become_numbers_and_back() {
        let parsed = |list: &[&str], to| cast(to, &[Some(&words(list))]).map(|v| v.as_tensor().unwrap().clone()).map_err(|f| f.0);
        assert_eq!(parsed(&["1.5", " -2 "], dtype::F64).unwrap().floats().unwrap(), [1.5, -2.0]);
        assert_eq!(
            parsed(&["9007199254740993", "2.9", "1e30"], dtype::I64).unwrap().ints().unwrap(),
            [9007199254740993, 2, i64::MAX]
        );
        assert_eq!(parsed(&["x"], dtype::F32).unwrap_err(), "'x' is no number");
        assert_eq!(parsed(&["1"], dtype::U8).unwrap_err(), "string[1] cannot become u8");
        let floats: Value = Tensor::from_floats(vec![4], &[0.1, f32::NAN, f32::NEG_INFINITY, 3.0]).unwrap().into();
        assert_eq!(cast(dtype::STRING, &[Some(&floats)]).unwrap(), words(&["0.1", "NaN", "-INF", "3"]));
    }

    #[test]
    fn pairs_broadcast_or_fail() {
        let column: Value = words(&["a", "b"]).as_tensor().unwrap().reshape(vec![2, 1]).unwrap().into();
        let made = concat(&[Some(&column), Some(&words(&["x", "y"]))]).unwrap();
        assert_eq!(made.as_tensor().unwrap().strings(), words(&["ax", "ay", "bx", "by"]).as_tensor().unwrap().strings());
        let bad = equal(&[Some(&words(&["a", "b"])), Some(&words(&["x", "y", "z"]))]).unwrap_err();
        assert_eq!(bad.0, "shapes [2] and [3] do not broadcast");
    }

    #[test]
    fn stop_words_may_leave_nothing() {
        let list = words(&["Monday", "monday"]);
        let run = |case, sensitive| normalise(case, sensitive, &["monday".to_owned()], &[Some(&list)]).unwrap();
        assert_eq!(run(Case::Upper, true), words(&["MONDAY"]));
        assert_eq!(run(Case::Keep, false), words(&[""]));
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error() {
        let bad: Value = Tensor::from_strings(vec![1], [Bytes::from_static(&[0xff])]).unwrap().into();
        assert_eq!(full_match(&pattern("a").unwrap(), &[Some(&bad)]).unwrap_err().0, "a string is no UTF-8");
        assert!(pattern("(").unwrap_err().0.contains("pattern '(' is not supported"));
    }

    #[test]
    fn blanks_and_delimiters_split() {
        let split = |d: Option<&str>, most, text: &[&str]| super::split(d, most, &[Some(&words(text))]).unwrap();
        let [parts, counts] = split(Some(","), None, &["a,b,", "c"]);
        assert_eq!(parts.to_string(), "string[2, 3]");
        assert_eq!(counts.as_tensor().unwrap().ints().unwrap(), [3, 1]);
        assert_eq!(
            split(None, Some(1), &["  a b  c "])[0].as_tensor().unwrap().strings(),
            words(&["a", "b  c"]).as_tensor().unwrap().strings()
        );
        assert_eq!(split(Some("-"), Some(0), &["a-b"])[0].to_string(), "string[1, 1]");
    }
}
