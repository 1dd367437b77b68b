//! Work for the host: strings, sequences, optionals, dictionaries. Plain code over [`Item`]s, one function per operator.

use super::{Item, Key, eval_op};
use crate::dtype::DType;
use crate::fault;
use crate::fault::Fault;
use crate::op::*;
use crate::tensor::{Tensor, count};
use bytes::Bytes;
use std::collections::HashMap;

/// Applies an operator whose meaning is `Host`.
pub(super) fn run(op: &Op, inputs: &[Option<Item>]) -> Result<Vec<Item>, Fault> {
    let one = |item: Item| Ok(vec![item]);
    match op {
        Op::SequenceConstruct(_) => one(Item::Sequence(inputs.iter().flatten().cloned().collect())),
        Op::SequenceEmpty(_) => one(Item::Sequence(vec![])),
        Op::SequenceInsert(_) => {
            let mut items = sequence(inputs, 0)?.to_vec();
            let at = if inputs.get(2).is_some_and(Option::is_some) { position(inputs, 2, items.len() + 1)? } else { items.len() };
            items.insert(at, item(inputs, 1)?.clone());
            one(Item::Sequence(items))
        }
        Op::SequenceErase(_) => {
            let mut items = sequence(inputs, 0)?.to_vec();
            let last = items.len().checked_sub(1).ok_or_else(|| fault!("the sequence is empty"))?;
            let at = if inputs.get(1).is_some_and(Option::is_some) { position(inputs, 1, items.len())? } else { last };
            items.remove(at);
            one(Item::Sequence(items))
        }
        Op::SequenceAt(_) => {
            let items = sequence(inputs, 0)?;
            one(items[position(inputs, 1, items.len())?].clone())
        }
        Op::SequenceLength(_) => one(Tensor::from_vec([], vec![sequence(inputs, 0)?.len() as i64]).into()),
        Op::ConcatFromSequence(op) => one(concat(op, inputs)?.into()),
        Op::SplitToSequence(op) => one(split(op, inputs)?),
        Op::Optional(_) => one(Item::Optional(inputs.first().cloned().flatten().map(Box::new))),
        Op::OptionalHasElement(_) => {
            let has = !matches!(inputs.first(), None | Some(None | Some(Item::Optional(None))));
            one(Tensor::from_bools([], &[has]).into())
        }
        Op::OptionalGetElement(_) => match item(inputs, 0)? {
            Item::Optional(Some(item)) => one((**item).clone()),
            Item::Optional(None) => Err(fault!("the optional is empty")),
            other => one(other.clone()),
        },
        Op::StringConcat(_) => one(zip(inputs, |a, b| [&a[..], &b[..]].concat().into(), texts)?),
        Op::Equal(_) => one(zip(inputs, |a, b| a == b, |dims, v| Tensor::from_bools(dims, &v))?),
        Op::Cast(op) => one(cast(tensor(inputs, 0)?, dtype(op.to)?)?.into()),
        Op::CastLike(_) => one(cast(tensor(inputs, 0)?, tensor(inputs, 1)?.dtype)?.into()),
        Op::RegexFullMatch(op) => {
            let (regex, t) = (op.regex()?, tensor(inputs, 0)?);
            let found = t.strings().iter().map(|s| Ok(regex.is_match(utf8(s)?))).collect::<Result<Vec<bool>, Fault>>()?;
            one(Tensor::from_bools(t.dims.clone(), &found).into())
        }
        Op::StringNormalizer(op) => one(normalise(op, tensor(inputs, 0)?)?.into()),
        Op::StringSplit(op) => Ok(split_text(op, tensor(inputs, 0)?)?.map(Item::Tensor).into()),
        Op::TfIdfVectorizer(op) => one(tf_idf(op, tensor(inputs, 0)?)?.into()),
        Op::LabelEncoder(op) => {
            let table = op.table()?;
            one(look_up(tensor(inputs, 0)?, &table.keys, &table.values)?.into())
        }
        Op::CategoryMapper(op) => {
            let table = op.table(true)?;
            one(look_up(tensor(inputs, 0)?, &table.keys, &table.values)?.into())
        }
        Op::ZipMap(op) => one(zip_map(op, tensor(inputs, 0)?)?),
        Op::CastMap(op) => one(cast_map(op, map(inputs)?)?.into()),
        Op::DictVectorizer(op) => one(dict_vector(op, map(inputs)?)?.into()),
        other => Err(fault!("{} is work for the host that the interpreter does not do", other.name())),
    }
}

fn item(inputs: &[Option<Item>], i: usize) -> Result<&Item, Fault> {
    inputs.get(i).and_then(Option::as_ref).ok_or_else(|| fault!("operand {i} is missing"))
}

fn tensor(inputs: &[Option<Item>], i: usize) -> Result<&Tensor, Fault> {
    let item = item(inputs, i)?;
    item.as_tensor().ok_or_else(|| fault!("operand {i} is {}, a tensor is needed", item.kind()))
}

fn sequence(inputs: &[Option<Item>], i: usize) -> Result<&[Item], Fault> {
    match item(inputs, i)? {
        Item::Sequence(items) => Ok(items),
        other => Err(fault!("operand {i} is {}, a sequence is needed", other.kind())),
    }
}

fn map(inputs: &[Option<Item>]) -> Result<&[(Key, Item)], Fault> {
    match item(inputs, 0)? {
        Item::Map(entries) => Ok(entries),
        other => Err(fault!("operand 0 is {}, a map is needed", other.kind())),
    }
}

/// The position in operand `i`, from the end if negative, below `limit`.
fn position(inputs: &[Option<Item>], i: usize, limit: usize) -> Result<usize, Fault> {
    let t = tensor(inputs, i)?;
    if t.len() != 1 || !t.dtype.is_int() {
        return Err(fault!("operand {i} is {}{:?}, one integer is needed", t.dtype, t.dims));
    }
    let p = t.to_ints()[0];
    // A sequence of n elements has n + 1 places for a new one; -1 is before the last element.
    let elements = if i == 2 { limit as i64 - 1 } else { limit as i64 };
    let at = if p < 0 { p + elements } else { p };
    usize::try_from(at).ok().filter(|&at| at < limit).ok_or_else(|| fault!("position {p} is outside the sequence of {elements}"))
}

fn dtype(number: i64) -> Result<DType, Fault> {
    i32::try_from(number).ok().and_then(DType::from_onnx).ok_or_else(|| fault!("{number} is no dtype"))
}

fn texts(dims: Vec<usize>, values: Vec<Bytes>) -> Tensor {
    Tensor::from_strings(dims, values)
}

/// UTF-8 of a string element.
fn utf8(b: &Bytes) -> Result<&str, Fault> {
    std::str::from_utf8(b).map_err(|_| fault!("a string is no UTF-8"))
}

fn vector(values: &[i64]) -> Option<Tensor> {
    Some(Tensor::from_ints(values))
}

fn first(made: Vec<Tensor>) -> Result<Tensor, Fault> {
    made.into_iter().next().ok_or_else(|| fault!("has no result"))
}

fn concat(op: &ConcatFromSequence, inputs: &[Option<Item>]) -> Result<Tensor, Fault> {
    let mut parts = vec![];
    for item in sequence(inputs, 0)? {
        let t = item.as_tensor().ok_or_else(|| fault!("an element of the sequence is {}", item.kind()))?;
        parts.push(Some(match op.new_axis {
            0 => t.clone(),
            _ => first(eval_op(&Unsqueeze {}.into(), &[Some(t.clone()), vector(&[op.axis])], 1)?)?,
        }));
    }
    first(eval_op(&Concat { axis: op.axis }.into(), &parts, 1)?)
}

fn split(op: &SplitToSequence, inputs: &[Option<Item>]) -> Result<Item, Fault> {
    let t = tensor(inputs, 0)?;
    let axis = normal_axis(op.axis, t.dims.len())?;
    let extent = t.dims[axis];
    let sizes: Vec<usize> = match inputs.get(1).and_then(Option::as_ref) {
        None => vec![1; extent],
        Some(_) => {
            let s = tensor(inputs, 1)?;
            let given = s.to_ints().into_iter().map(|n| usize::try_from(n).map_err(|_| fault!("a piece of {n}")));
            let given = given.collect::<Result<Vec<_>, _>>()?;
            match given[..] {
                [each] if each >= 1 && s.dims.is_empty() => (0..extent).step_by(each).map(|at| each.min(extent - at)).collect(),
                _ => given,
            }
        }
    };
    let (mut items, mut start) = (vec![], 0);
    for n in sizes {
        if start + n > extent {
            return Err(fault!("the pieces are longer than the {extent} elements"));
        }
        let [from, to, axes] = [start, start + n, axis].map(|v| vector(&[v as i64]));
        let mut piece = first(eval_op(&Slice {}.into(), &[Some(t.clone()), from, to, axes], 1)?)?;
        if !op.keepdims && inputs.len() < 2 {
            piece = first(eval_op(&Squeeze {}.into(), &[Some(piece), vector(&[axis as i64])], 1)?)?;
        }
        items.push(Item::Tensor(piece));
        start += n;
    }
    Ok(Item::Sequence(items))
}

/// `f` of broadcast pairs of strings.
fn zip<T>(
    inputs: &[Option<Item>],
    f: impl Fn(&Bytes, &Bytes) -> T,
    make: impl FnOnce(Vec<usize>, Vec<T>) -> Tensor,
) -> Result<Item, Fault> {
    let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let rank = a.dims.len().max(b.dims.len());
    let dim = |t: &Tensor, axis: usize| (axis + t.dims.len()).checked_sub(rank).map_or(1, |i| t.dims[i]);
    let dims: Vec<usize> = (0..rank).map(|i| if dim(a, i) == 1 { dim(b, i) } else { dim(a, i) }).collect();
    if (0..rank).any(|i| [dim(a, i), dim(b, i)].iter().any(|&d| d != 1 && d != dims[i])) {
        return Err(fault!("shapes {:?} and {:?} do not broadcast", a.dims, b.dims));
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
    let made = (0..count(&dims)).map(|at| f(&a.strings()[offset(a, at)], &b.strings()[offset(b, at)])).collect();
    Ok(Item::Tensor(make(dims, made)))
}

/// Numbers from their text, and text from numbers (floats in the shortest form that gives them back).
fn cast(t: &Tensor, to: DType) -> Result<Tensor, Fault> {
    if to == DType::String {
        let text = |i: usize| match t.dtype {
            d if d.is_float() => match t.float(i) {
                v if v.is_nan() => "NaN".to_owned(),
                v if v.is_infinite() => if v > 0.0 { "INF" } else { "-INF" }.to_owned(),
                v if d == DType::F64 => format!("{v}"),
                v => format!("{}", v as f32),
            },
            DType::U64 => format!("{}", t.value(i)),
            _ => format!("{}", t.value(i) as i64),
        };
        return Ok(texts(t.dims.clone(), (0..t.len()).map(|i| Bytes::from(text(i).into_bytes())).collect()));
    }
    let mut values = vec![];
    for s in t.strings() {
        let s = utf8(s)?.trim();
        let number: f64 = s.parse().map_err(|_| fault!("'{s}' is no number"))?;
        values.push(match s.parse::<i64>() {
            Ok(v) if !to.is_float() => crate::eval::cast(DType::I64, to, v as u64),
            _ => crate::eval::cast(DType::F64, to, number.to_bits()),
        });
    }
    Ok(Tensor::from_values(to, t.dims.clone(), values))
}

fn normalise(op: &StringNormalizer, t: &Tensor) -> Result<Tensor, Fault> {
    let folded = |s: &str| if op.is_case_sensitive != 0 { s.to_owned() } else { s.to_lowercase() };
    let stop: Vec<String> = op.stopwords.iter().map(|s| folded(s)).collect();
    let mut kept = vec![];
    for s in t.strings() {
        let s = utf8(s)?;
        if stop.contains(&folded(s)) {
            continue;
        }
        kept.push(Bytes::from(match &*op.case_change_action {
            "LOWER" => s.to_lowercase(),
            "UPPER" => s.to_uppercase(),
            _ => s.to_owned(),
        }));
    }
    if kept.is_empty() {
        kept.push(Bytes::new());
    }
    let mut dims = t.dims.clone();
    match dims.last_mut() {
        Some(last) if t.dims.len() == 1 || t.dims[0] == 1 => *last = kept.len(),
        _ => return Err(fault!("strings of dims {:?} cannot be normalised, one row is needed", t.dims)),
    }
    Ok(texts(dims, kept))
}

fn split_text(op: &StringSplit, t: &Tensor) -> Result<[Tensor; 2], Fault> {
    let most = op.maxsplit.map_or(usize::MAX, |n| n.max(0) as usize);
    let mut rows: Vec<Vec<&str>> = vec![];
    for s in t.strings() {
        let s = utf8(s)?;
        rows.push(match op.delimiter.as_deref().filter(|d| !d.is_empty()) {
            Some(d) => s.splitn(most.saturating_add(1), d).collect(),
            None => split_blank(s, most),
        });
    }
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let padded = rows.iter().flat_map(|r| r.iter().copied().chain(vec![""; width - r.len()]));
    let parts = padded.map(|s| Bytes::from(s.to_owned())).collect();
    let dims = t.dims.iter().copied().chain([width]).collect();
    let counts = Tensor::from_vec(t.dims.clone(), rows.iter().map(|r| r.len() as i64).collect());
    Ok([texts(dims, parts), counts])
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

/// Elements as keys: strings, or the integers they are.
fn keys(t: &Tensor) -> Vec<Key> {
    match t.dtype {
        DType::String => t.strings().iter().cloned().map(Key::Text).collect(),
        _ => t.to_ints().into_iter().map(Key::Int).collect(),
    }
}

/// The value of each element's first equal key, or the last value.
fn look_up(t: &Tensor, table: &Tensor, values: &Tensor) -> Result<Tensor, Fault> {
    let mut places = HashMap::new();
    for (i, k) in keys(table).into_iter().enumerate() {
        places.entry(k).or_insert(i as i64);
    }
    let index = keys(t).iter().map(|k| places.get(k).copied().unwrap_or(table.len() as i64)).collect();
    let index = Tensor::from_vec(t.dims.clone(), index);
    first(eval_op(&Gather { axis: 0 }.into(), &[Some(values.clone()), Some(index)], 1)?)
}

fn tf_idf(op: &TfIdfVectorizer, t: &Tensor) -> Result<Tensor, Fault> {
    let pool: Vec<Key> = match op.pool_strings.is_empty() {
        true => op.pool_int64s.iter().copied().map(Key::Int).collect(),
        false => op.pool_strings.iter().map(|s| Key::Text(Bytes::from(s.clone()))).collect(),
    };
    // n-grams by their elements; number k among all has its place in ngram_indexes.
    let (mut grams, mut number) = (HashMap::new(), 0);
    for (i, &start) in op.ngram_counts.iter().enumerate() {
        let end = op.ngram_counts.get(i + 1).map_or(pool.len(), |&e| e.max(0) as usize);
        let part = pool.get(start.max(0) as usize..end).ok_or_else(|| fault!("ngram_counts do not fit the pool"))?;
        for gram in part.chunks_exact(i + 1) {
            grams.insert(gram, number);
            number += 1;
        }
    }
    let width = op.width()?;
    let (rows, columns) = if t.dims.len() == 2 { (t.dims[0], t.dims[1]) } else { (1, t.len()) };
    let elements = keys(t);
    let mut out = vec![0.0f32; rows * width];
    for row in 0..rows {
        let (text, counts) = (&elements[row * columns..(row + 1) * columns], &mut out[row * width..(row + 1) * width]);
        for skip in 0..=op.max_skip_count.max(0) as usize {
            for n in op.min_gram_length as usize..=op.max_gram_length as usize {
                // Skips make no difference to single elements.
                let reach = (n - 1) * (skip + 1);
                for start in 0..if n == 1 && skip > 0 { 0 } else { columns.saturating_sub(reach) } {
                    let gram: Vec<Key> = (0..n).map(|k| text[start + k * (skip + 1)].clone()).collect();
                    let Some(&k) = grams.get(&gram[..]) else { continue };
                    let place = op.ngram_indexes.get(k).ok_or_else(|| fault!("ngram_indexes do not fit the pool"))?;
                    let cell = &mut counts[*place as usize];
                    let weight = op.weights.get(k).copied().unwrap_or(1.0);
                    match &*op.mode {
                        "TF" => *cell += 1.0,
                        "IDF" => *cell = weight,
                        _ => *cell += weight,
                    }
                }
            }
        }
    }
    let dims = if t.dims.len() == 2 { vec![rows, width] } else { vec![width] };
    Ok(Tensor::from_vec(dims, out))
}

fn zip_map(op: &ZipMap, t: &Tensor) -> Result<Item, Fault> {
    let labels: Vec<Key> = match op.classlabels_strings.is_empty() {
        true => op.classlabels_int64s.iter().copied().map(Key::Int).collect(),
        false => op.classlabels_strings.iter().map(|s| Key::Text(Bytes::from(s.clone()))).collect(),
    };
    let width = t.dims.last().copied().unwrap_or(0);
    if width != labels.len() {
        return Err(fault!("{width} scores for {} class labels", labels.len()));
    }
    let value = |i: usize| Item::Tensor(Tensor::from_values(t.dtype, [], [t.value(i)]));
    let row = |r: usize| Item::Map(labels.iter().enumerate().map(|(k, l)| (l.clone(), value(r * width + k))).collect());
    Ok(Item::Sequence((0..t.len() / width.max(1)).map(row).collect()))
}

/// A one-element tensor of a dictionary's value.
fn entry(item: &Item) -> Result<&Tensor, Fault> {
    item.as_tensor().filter(|t| t.len() == 1).ok_or_else(|| fault!("a value of the map is {}", item.kind()))
}

fn cast_map(op: &CastMap, entries: &[(Key, Item)]) -> Result<Tensor, Fault> {
    let to = match &*op.cast_to {
        "TO_FLOAT" => DType::F32,
        "TO_INT64" => DType::I64,
        _ => DType::String,
    };
    let mut sorted: Vec<(i64, Tensor)> = vec![];
    for (k, v) in entries {
        let Key::Int(k) = k else { return Err(fault!("a key of the map is a string")) };
        let v = entry(v)?.reshape([1]);
        let text = v.dtype == DType::String || to == DType::String;
        let from = v.dtype;
        let cast = if text && from != to {
            cast(&v, to)?
        } else if from == to {
            v
        } else {
            plain_cast(&v, to)
        };
        sorted.push((*k, cast));
    }
    sorted.sort_by_key(|e| e.0);
    let none = if to == DType::String { texts(vec![1], vec![Bytes::new()]) } else { Tensor::zeros(to, [1]) };
    let parts: Vec<Option<Tensor>> = match &*op.map_form {
        "SPARSE" => {
            let at = |k: i64| sorted.iter().find(|e| e.0 == k).map_or(&none, |e| &e.1);
            (0..op.max_map).map(|k| Some(at(k).clone())).collect()
        }
        _ => sorted.into_iter().map(|e| Some(e.1)).collect(),
    };
    let joined = first(eval_op(&Concat { axis: 0 }.into(), &parts, 1)?)?;
    let width = joined.len();
    Ok(joined.reshape([1, width]))
}

fn plain_cast(t: &Tensor, to: DType) -> Tensor {
    Tensor::from_values(to, t.dims.clone(), (0..t.len()).map(|i| crate::eval::cast(t.dtype, to, t.value(i))))
}

fn dict_vector(op: &DictVectorizer, entries: &[(Key, Item)]) -> Result<Tensor, Fault> {
    let vocabulary: Vec<Key> = match op.string_vocabulary.is_empty() {
        true => op.int64_vocabulary.iter().copied().map(Key::Int).collect(),
        false => op.string_vocabulary.iter().map(|s| Key::Text(Bytes::from(s.clone()))).collect(),
    };
    let dtype = entries.first().map(|e| entry(&e.1)).transpose()?.map_or(DType::F32, |t| t.dtype);
    let mut parts = vec![];
    for word in &vocabulary {
        parts.push(Some(match entries.iter().find(|e| e.0 == *word) {
            Some((_, v)) => entry(v)?.reshape([1]),
            None if dtype == DType::String => texts(vec![1], vec![Bytes::new()]),
            None => Tensor::zeros(dtype, [1]),
        }));
    }
    Ok(first(eval_op(&Concat { axis: 0 }.into(), &parts, 1)?)?.reshape([1, vocabulary.len()]))
}
