//! The closed list of routines: names, operands, attributes as bytes, and what each does.

use crate::Fault;
use crate::fault::fault;
use crate::image::{self, Pixels};
use crate::list;
use crate::map;
use crate::strings::{self, Case, NUMBERS};
use crate::table::{Table, keys};
use crate::tensor::{Tensor, dtype};
use crate::tfidf::{TfIdf, Weighting};
use crate::value::{Inputs, Key, Value, operand, tensor};
use bytes::Bytes;

/// A routine with its attributes, checked. Those that are no ONNX operator move values (`Identity`, `Shape`, `Pick`, `Join`), or
/// stand for strings in native code (`Rank`).
#[derive(Clone, Debug, PartialEq)]
pub enum Routine {
    /// The operand.
    Identity,
    /// The dims of a tensor, as `i64`.
    Shape,
    /// Elements of tensors at the places that operand 0 says: how strings are moved.
    Pick,
    /// The place of each string in the order of all different ones, by bytes: how strings are compared.
    Rank,
    /// Tensors joined along an axis.
    Join {
        /// The axis.
        axis: i64,
    },
    /// A list of the operands.
    SequenceConstruct,
    /// An empty list.
    SequenceEmpty,
    /// A list with one more element.
    SequenceInsert,
    /// A list with one element less.
    SequenceErase,
    /// An element of a list.
    SequenceAt,
    /// The length of a list.
    SequenceLength,
    /// The tensors of a list as one.
    ConcatFromSequence {
        /// Along this axis.
        axis: i64,
        /// Which is a new one.
        new_axis: bool,
    },
    /// A tensor as a list of pieces.
    SplitToSequence {
        /// Along this axis.
        axis: i64,
        /// Which stays in the pieces, if no sizes are given.
        keepdims: bool,
    },
    /// A value or nothing.
    Optional,
    /// Is there a value?
    OptionalHasElement,
    /// The value.
    OptionalGetElement,
    /// Strings joined.
    StringConcat,
    /// Strings compared.
    Equal,
    /// Strings to numbers, or numbers to strings.
    Cast {
        /// The dtype of the result.
        to: u8,
    },
    /// Does a pattern match the whole string?
    RegexFullMatch {
        /// The pattern.
        pattern: Pattern,
    },
    /// Strings without stop words, in one case.
    StringNormalizer {
        /// The case.
        case: Case,
        /// Are stop words compared with their case?
        sensitive: bool,
        /// Stop words.
        stopwords: Vec<String>,
    },
    /// Strings in parts.
    StringSplit {
        /// Between parts; none: white space.
        delimiter: Option<String>,
        /// Most splits.
        most: Option<usize>,
    },
    /// n-grams counted.
    TfIdfVectorizer(TfIdf),
    /// Strings or integers looked up: LabelEncoder and CategoryMapper.
    Table(Table),
    /// Rows as dictionaries.
    ZipMap {
        /// Their keys.
        labels: Vec<Key>,
    },
    /// A dictionary as a row.
    CastMap {
        /// Of this dtype.
        to: u8,
        /// Keys are places in a row of this width.
        width: Option<usize>,
    },
    /// The values of known words in a dictionary.
    DictVectorizer {
        /// The words.
        vocabulary: Vec<Key>,
    },
    /// The bytes of a coded image as pixels.
    ImageDecoder {
        /// What its samples are.
        pixels: Pixels,
    },
}

/// A pattern, compiled.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: regex_lite::Regex,
}

impl Pattern {
    /// Compiles a pattern; the error says what is wrong with it.
    pub fn new(text: &str) -> Result<Pattern, Fault> {
        Ok(Pattern { text: text.to_owned(), regex: strings::pattern(text)? })
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

/// Named attributes, as tensors.
#[derive(Default)]
struct Attributes(Vec<(Key, Value)>);

fn vector(values: &[i64]) -> Result<Value, Fault> {
    Ok(Tensor::from_ints(vec![values.len()], values)?.into())
}

fn texts(values: &[String]) -> Result<Value, Fault> {
    let strings = values.iter().map(|s| Bytes::copy_from_slice(s.as_bytes()));
    Ok(Tensor::from_strings(vec![values.len()], strings)?.into())
}

/// Keys as a tensor: all integers, or all strings.
fn key_tensor(keys: &[Key]) -> Result<Tensor, Fault> {
    let ints = keys.iter().map_while(|k| if let Key::Int(i) = k { Some(*i) } else { None }).collect::<Vec<_>>();
    if ints.len() == keys.len() {
        return Tensor::from_ints(vec![keys.len()], &ints);
    }
    Tensor::from_strings(vec![keys.len()], keys.iter().map(|k| if let Key::Text(t) = k { t.clone() } else { Bytes::new() }))
}

impl Attributes {
    fn put(&mut self, name: &str, value: Result<Value, Fault>) {
        if let Ok(value) = value {
            self.0.push((Key::Text(Bytes::copy_from_slice(name.as_bytes())), value));
        }
    }
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| matches!(k, Key::Text(t) if t == name.as_bytes())).map(|(_, v)| v)
    }
    fn tensor(&self, name: &str) -> Result<&Tensor, Fault> {
        let found = self.get(name).and_then(Value::as_tensor);
        found.ok_or_else(|| fault!("the attribute '{name}' is missing"))
    }
    fn ints(&self, name: &str) -> Result<Vec<i64>, Fault> {
        self.tensor(name)?.ints()
    }
    fn int(&self, name: &str) -> Result<i64, Fault> {
        match self.ints(name)?[..] {
            [v] => Ok(v),
            _ => Err(fault!("the attribute '{name}' is no integer")),
        }
    }
    fn size(&self, name: &str) -> Result<usize, Fault> {
        let v = self.int(name)?;
        usize::try_from(v).map_err(|_| fault!("the attribute '{name}' is negative: {v}"))
    }
    fn dtype(&self, name: &str) -> Result<u8, Fault> {
        let v = self.int(name)?;
        u8::try_from(v).ok().filter(|&d| dtype::width(d).is_some()).ok_or_else(|| fault!("there is no dtype {v}"))
    }
    fn texts(&self, name: &str) -> Result<Vec<String>, Fault> {
        let strings = self.tensor(name)?.texts()?;
        strings.iter().map(|s| crate::value::utf8(s).map(str::to_owned)).collect()
    }
    fn text(&self, name: &str) -> Result<String, Fault> {
        match &mut self.texts(name)?[..] {
            [t] => Ok(std::mem::take(t)),
            _ => Err(fault!("the attribute '{name}' is no string")),
        }
    }
}

impl Routine {
    /// What a table of keys and values does; the last value is for other keys.
    pub fn table(keys: Tensor, values: Tensor) -> Result<Routine, Fault> {
        Table::new(keys, values).map(Routine::Table)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Routine::Identity => "Identity",
            Routine::Shape => "Shape",
            Routine::Pick => "Pick",
            Routine::Rank => "Rank",
            Routine::Join { .. } => "Join",
            Routine::SequenceConstruct => "SequenceConstruct",
            Routine::SequenceEmpty => "SequenceEmpty",
            Routine::SequenceInsert => "SequenceInsert",
            Routine::SequenceErase => "SequenceErase",
            Routine::SequenceAt => "SequenceAt",
            Routine::SequenceLength => "SequenceLength",
            Routine::ConcatFromSequence { .. } => "ConcatFromSequence",
            Routine::SplitToSequence { .. } => "SplitToSequence",
            Routine::Optional => "Optional",
            Routine::OptionalHasElement => "OptionalHasElement",
            Routine::OptionalGetElement => "OptionalGetElement",
            Routine::StringConcat => "StringConcat",
            Routine::Equal => "Equal",
            Routine::Cast { .. } => "Cast",
            Routine::RegexFullMatch { .. } => "RegexFullMatch",
            Routine::StringNormalizer { .. } => "StringNormalizer",
            Routine::StringSplit { .. } => "StringSplit",
            Routine::TfIdfVectorizer(_) => "TfIdfVectorizer",
            Routine::Table(_) => "Table",
            Routine::ZipMap { .. } => "ZipMap",
            Routine::CastMap { .. } => "CastMap",
            Routine::DictVectorizer { .. } => "DictVectorizer",
            Routine::ImageDecoder { .. } => "ImageDecoder",
        }
    }

    /// Least and most operands, and results.
    pub fn arity(&self) -> (usize, usize, usize) {
        match self {
            Routine::Pick => (2, usize::MAX, 1),
            Routine::Join { .. } | Routine::SequenceConstruct => (1, usize::MAX, 1),
            Routine::SequenceEmpty => (0, 0, 1),
            Routine::SequenceInsert => (2, 3, 1),
            Routine::SequenceErase | Routine::SplitToSequence { .. } => (1, 2, 1),
            Routine::SequenceAt | Routine::StringConcat | Routine::Equal => (2, 2, 1),
            Routine::Optional | Routine::OptionalHasElement => (0, 1, 1),
            Routine::StringSplit { .. } => (1, 1, 2),
            _ => (1, 1, 1),
        }
    }

    /// Its attributes as bytes, for [`Routine::decode`].
    pub fn attributes(&self) -> Vec<u8> {
        let mut out = Attributes::default();
        let flag = |b: bool| vector(&[i64::from(b)]);
        match self {
            Routine::Join { axis } => out.put("axis", vector(&[*axis])),
            Routine::ConcatFromSequence { axis, new_axis } => {
                out.put("axis", vector(&[*axis]));
                out.put("new_axis", flag(*new_axis));
            }
            Routine::SplitToSequence { axis, keepdims } => {
                out.put("axis", vector(&[*axis]));
                out.put("keepdims", flag(*keepdims));
            }
            Routine::Cast { to } => out.put("to", vector(&[i64::from(*to)])),
            Routine::RegexFullMatch { pattern } => out.put("pattern", texts(std::slice::from_ref(&pattern.text))),
            Routine::StringNormalizer { case, sensitive, stopwords } => {
                out.put("case", vector(&[*case as i64]));
                out.put("sensitive", flag(*sensitive));
                out.put("stopwords", texts(stopwords));
            }
            Routine::StringSplit { delimiter, most } => {
                delimiter.iter().for_each(|d| out.put("delimiter", texts(std::slice::from_ref(d))));
                most.iter().for_each(|&n| out.put("most", vector(&[i64::try_from(n).unwrap_or(i64::MAX)])));
            }
            Routine::TfIdfVectorizer(t) => {
                out.put("mode", vector(&[t.mode as i64]));
                out.put("lengths", vector(&[t.least as i64, t.most as i64, t.skips as i64]));
                out.put("starts", vector(&t.starts));
                out.put("places", vector(&t.places));
                out.put("pool", Ok(t.pool.clone().into()));
                out.put("weights", Tensor::from_floats(vec![t.weights.len()], &t.weights).map(Value::Tensor));
            }
            Routine::Table(t) => {
                out.put("keys", Ok(t.keys().clone().into()));
                out.put("values", Ok(t.values().clone().into()));
            }
            Routine::ZipMap { labels } => out.put("labels", key_tensor(labels).map(Value::Tensor)),
            Routine::CastMap { to, width } => {
                out.put("to", vector(&[i64::from(*to)]));
                width.iter().for_each(|&w| out.put("width", vector(&[w as i64])));
            }
            Routine::DictVectorizer { vocabulary } => out.put("vocabulary", key_tensor(vocabulary).map(Value::Tensor)),
            Routine::ImageDecoder { pixels } => out.put("pixels", vector(&[*pixels as i64])),
            _ => return vec![],
        }
        Value::Map(out.0).encode()
    }

    /// The routine of a name with these attributes. Takes any bytes: a routine that can run, or an error.
    pub fn decode(name: &str, attributes: &[u8]) -> Result<Routine, Fault> {
        let from = match attributes {
            [] => Attributes::default(),
            bytes => match Value::decode(bytes)? {
                Value::Map(entries) => Attributes(entries),
                other => return Err(fault!("the attributes are {other}")),
            },
        };
        let keys_of = |name: &str| keys(from.tensor(name)?);
        Ok(match name {
            "Identity" => Routine::Identity,
            "Shape" => Routine::Shape,
            "Pick" => Routine::Pick,
            "Rank" => Routine::Rank,
            "Join" => Routine::Join { axis: from.int("axis")? },
            "SequenceConstruct" => Routine::SequenceConstruct,
            "SequenceEmpty" => Routine::SequenceEmpty,
            "SequenceInsert" => Routine::SequenceInsert,
            "SequenceErase" => Routine::SequenceErase,
            "SequenceAt" => Routine::SequenceAt,
            "SequenceLength" => Routine::SequenceLength,
            "ConcatFromSequence" => Routine::ConcatFromSequence { axis: from.int("axis")?, new_axis: from.int("new_axis")? != 0 },
            "SplitToSequence" => Routine::SplitToSequence { axis: from.int("axis")?, keepdims: from.int("keepdims")? != 0 },
            "Optional" => Routine::Optional,
            "OptionalHasElement" => Routine::OptionalHasElement,
            "OptionalGetElement" => Routine::OptionalGetElement,
            "StringConcat" => Routine::StringConcat,
            "Equal" => Routine::Equal,
            "Cast" => match from.dtype("to")? {
                to if to == dtype::STRING || NUMBERS.contains(&to) => Routine::Cast { to },
                other => return Err(fault!("strings are not converted to {}", dtype::name(other))),
            },
            "RegexFullMatch" => Routine::RegexFullMatch { pattern: Pattern::new(&from.text("pattern")?)? },
            "StringNormalizer" => Routine::StringNormalizer {
                case: match from.int("case")? {
                    0 => Case::Keep,
                    1 => Case::Lower,
                    2 => Case::Upper,
                    other => return Err(fault!("there is no case {other}")),
                },
                sensitive: from.int("sensitive")? != 0,
                stopwords: from.texts("stopwords")?,
            },
            "StringSplit" => Routine::StringSplit {
                delimiter: from.get("delimiter").map(|_| from.text("delimiter")).transpose()?,
                most: from.get("most").map(|_| from.size("most")).transpose()?,
            },
            "TfIdfVectorizer" => Routine::TfIdfVectorizer(tf_idf(&from)?),
            "Table" => Routine::table(from.tensor("keys")?.clone(), from.tensor("values")?.clone())?,
            "ZipMap" => Routine::ZipMap { labels: keys_of("labels")? },
            "CastMap" => Routine::CastMap {
                to: match from.dtype("to")? {
                    to @ (dtype::F32 | dtype::I64 | dtype::STRING) => to,
                    other => return Err(fault!("a map does not become {}", dtype::name(other))),
                },
                width: from.get("width").map(|_| from.size("width")).transpose()?,
            },
            "DictVectorizer" => Routine::DictVectorizer { vocabulary: keys_of("vocabulary")? },
            "ImageDecoder" => Routine::ImageDecoder {
                pixels: match from.int("pixels")? {
                    0 => Pixels::Rgb,
                    1 => Pixels::Bgr,
                    2 => Pixels::Gray,
                    other => return Err(fault!("there is no pixel format {other}")),
                },
            },
            other => return Err(fault!("there is no host routine '{other}'")),
        })
    }

    /// What it makes of its operands.
    pub fn run(&self, inputs: Inputs) -> Result<Vec<Value>, Fault> {
        let one = |value: Result<Value, Fault>| Ok(vec![value?]);
        match self {
            Routine::Identity => one(operand(inputs, 0).cloned()),
            Routine::Shape => one(list::shape(inputs)),
            Routine::Pick => one(list::pick(inputs)),
            Routine::Rank => one(strings::rank(inputs)),
            Routine::Join { axis } => {
                let parts = (0..inputs.len()).map(|i| tensor(inputs, i).cloned()).collect::<Result<_, _>>()?;
                one(list::join(parts, *axis, false))
            }
            Routine::SequenceConstruct => one(list::construct(inputs)),
            Routine::SequenceEmpty => one(Ok(Value::Sequence(vec![]))),
            Routine::SequenceInsert => one(list::insert(inputs)),
            Routine::SequenceErase => one(list::erase(inputs)),
            Routine::SequenceAt => one(list::at(inputs)),
            Routine::SequenceLength => one(list::length(inputs)),
            Routine::ConcatFromSequence { axis, new_axis } => one(list::concat(*axis, *new_axis, inputs)),
            Routine::SplitToSequence { axis, keepdims } => one(list::split(*axis, *keepdims, inputs)),
            Routine::Optional => one(list::wrap(inputs)),
            Routine::OptionalHasElement => one(list::has_element(inputs)),
            Routine::OptionalGetElement => one(list::get_element(inputs)),
            Routine::StringConcat => one(strings::concat(inputs)),
            Routine::Equal => one(strings::equal(inputs)),
            Routine::Cast { to } => one(strings::cast(*to, inputs)),
            Routine::RegexFullMatch { pattern } => one(strings::full_match(&pattern.regex, inputs)),
            Routine::StringNormalizer { case, sensitive, stopwords } => {
                one(strings::normalise(*case, *sensitive, stopwords, inputs))
            }
            Routine::StringSplit { delimiter, most } => Ok(strings::split(delimiter.as_deref(), *most, inputs)?.into()),
            Routine::TfIdfVectorizer(t) => one(t.run(inputs)),
            Routine::Table(t) => one(t.look_up(inputs)),
            Routine::ZipMap { labels } => one(map::zip(labels, inputs)),
            Routine::CastMap { to, width } => one(map::cast_map(*to, *width, inputs)),
            Routine::DictVectorizer { vocabulary } => one(map::vector(vocabulary, inputs)),
            Routine::ImageDecoder { pixels } => one(image::decode(*pixels, inputs)),
        }
    }
}

fn tf_idf(from: &Attributes) -> Result<TfIdf, Fault> {
    let lengths = from.ints("lengths")?;
    let [least, most, skips] = lengths[..] else { return Err(fault!("the attribute 'lengths' is {lengths:?}")) };
    let size = |n: i64| usize::try_from(n).unwrap_or(0);
    let made = TfIdf {
        mode: match from.int("mode")? {
            0 => Weighting::Tf,
            1 => Weighting::Idf,
            2 => Weighting::TfIdf,
            other => return Err(fault!("there is no weighting {other}")),
        },
        least: size(least),
        most: size(most),
        skips: size(skips),
        starts: from.ints("starts")?,
        places: from.ints("places")?,
        pool: from.tensor("pool")?.clone(),
        weights: from.tensor("weights")?.floats()?.into_iter().map(|w| w as f32).collect(),
    };
    made.check()?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// One of each kind, with attributes away from their defaults.
    fn samples() -> Vec<Routine> {
        let strings = |n: usize| Tensor::zeros(dtype::STRING, n).unwrap();
        vec![
            Routine::Identity,
            Routine::Shape,
            Routine::Pick,
            Routine::Rank,
            Routine::Join { axis: -1 },
            Routine::SequenceConstruct,
            Routine::SequenceEmpty,
            Routine::SequenceInsert,
            Routine::SequenceErase,
            Routine::SequenceAt,
            Routine::SequenceLength,
            Routine::ConcatFromSequence { axis: 1, new_axis: true },
            Routine::SplitToSequence { axis: -2, keepdims: false },
            Routine::Optional,
            Routine::OptionalHasElement,
            Routine::OptionalGetElement,
            Routine::StringConcat,
            Routine::Equal,
            Routine::Cast { to: dtype::STRING },
            Routine::RegexFullMatch { pattern: Pattern::new("a+").unwrap() },
            Routine::StringNormalizer { case: Case::Upper, sensitive: true, stopwords: vec!["the".to_owned()] },
            Routine::StringSplit { delimiter: Some(",".to_owned()), most: Some(3) },
            Routine::TfIdfVectorizer(TfIdf {
                mode: Weighting::TfIdf,
                least: 1,
                most: 2,
                skips: 3,
                starts: vec![0, 1],
                places: vec![1, 0],
                pool: Tensor::from_ints(vec![3], &[5, 6, 7]).unwrap(),
                weights: vec![0.5, 2.0],
            }),
            Routine::table(strings(1), Tensor::from_floats(vec![2], &[1.0, -1.0]).unwrap()).unwrap(),
            Routine::ZipMap { labels: vec![Key::Int(3), Key::Int(-1)] },
            Routine::CastMap { to: dtype::I64, width: Some(7) },
            Routine::DictVectorizer { vocabulary: vec![Key::Text(Bytes::from_static(b"a"))] },
            Routine::ImageDecoder { pixels: Pixels::Gray },
        ]
    }

    #[test]
    fn routines_round_trip_with_their_attributes() {
        for r in samples() {
            assert_eq!(Routine::decode(r.name(), &r.attributes()).unwrap(), r, "{}", r.name());
        }
        assert_eq!(Routine::decode("Cast", &[]).unwrap_err().0, "the attribute 'to' is missing");
        assert_eq!(Routine::decode("Sort", &[]).unwrap_err().0, "there is no host routine 'Sort'");
    }

    fn value() -> impl Strategy<Value = Value> {
        let tensor = prop_oneof![
            vec(-3i64..9, 0..5).prop_map(|v| Tensor::from_ints(vec![v.len()], &v).unwrap()),
            (-3i64..9).prop_map(|v| Tensor::from_ints(vec![], &[v]).unwrap()),
            vec("[a-c ]{0,3}", 0..5)
                .prop_map(|v| Tensor::from_strings(vec![1, v.len()], v.into_iter().map(Bytes::from)).unwrap()),
            vec(any::<f32>(), 0..5).prop_map(|v| Tensor::from_floats(vec![v.len(), 1], &v).unwrap()),
            vec(any::<u8>(), 0..5).prop_map(|v| Tensor::from_bytes(dtype::U8, vec![v.len()], v).unwrap()),
        ]
        .prop_map(Value::Tensor);
        tensor.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..3).prop_map(Value::Sequence),
                prop::option::of(inner.clone()).prop_map(|v| Value::Optional(v.map(Box::new))),
                vec((any::<i64>().prop_map(Key::Int), inner), 0..3).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        /// Whatever the operands are: results, or a fault.
        #[test]
        fn no_operand_is_a_crash(which in 0..samples().len(), inputs in vec(prop::option::of(value()), 0..4)) {
            let routine = &samples()[which];
            let inputs: Vec<Option<&Value>> = inputs.iter().map(Option::as_ref).collect();
            if let Ok(made) = routine.run(&inputs) {
                prop_assert_eq!(made.len(), routine.arity().2);
            }
        }

        /// Nor are attributes that somebody has changed.
        #[test]
        fn damaged_attributes_are_no_crash(which in 0..samples().len(), at in any::<prop::sample::Index>(), byte in any::<u8>(), inputs in vec(value(), 0..4)) {
            let routine = &samples()[which];
            let mut bytes = routine.attributes();
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let inputs: Vec<Option<&Value>> = inputs.iter().map(Some).collect();
            if let Ok(routine) = Routine::decode(routine.name(), &bytes) {
                let _ = routine.run(&inputs);
            }
        }
    }
}
