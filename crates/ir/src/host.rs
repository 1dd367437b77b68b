//! Operators whose meaning is work for the host, as routines of `infc-host`; and values of the graph as values of the host and back.
//!
//! Elements are shared, not copied.

use crate::dtype::DType;
use crate::fault;
use crate::fault::Fault;
use crate::interp::Item;
use crate::op::*;
use crate::tensor::{Data, Tensor};
use bytes::Bytes;
use infc_host::{Case, Key, Pattern, Pixels, Routine, TfIdf, Value, Weighting};

impl From<infc_host::Fault> for Fault {
    fn from(f: infc_host::Fault) -> Fault {
        Fault(f.0)
    }
}

/// The routine that does what `op` means for operands of these dtypes (`None`: no tensor), and how many of the operands it takes.
pub fn routine(op: &Op, dtypes: &[Option<DType>]) -> Result<(Routine, usize), Fault> {
    let text = dtypes.first().copied().flatten() == Some(DType::String);
    let made = match op {
        Op::SequenceConstruct(_) => Routine::SequenceConstruct,
        Op::SequenceEmpty(_) => Routine::SequenceEmpty,
        Op::SequenceInsert(_) => Routine::SequenceInsert,
        Op::SequenceErase(_) => Routine::SequenceErase,
        Op::SequenceAt(_) => Routine::SequenceAt,
        Op::SequenceLength(_) => Routine::SequenceLength,
        Op::ConcatFromSequence(op) => Routine::ConcatFromSequence { axis: op.axis, new_axis: op.new_axis != 0 },
        Op::SplitToSequence(op) => Routine::SplitToSequence { axis: op.axis, keepdims: op.keepdims },
        Op::Optional(_) => Routine::Optional,
        Op::OptionalHasElement(_) => Routine::OptionalHasElement,
        Op::OptionalGetElement(_) => Routine::OptionalGetElement,
        Op::StringConcat(_) => Routine::StringConcat,
        Op::Equal(_) if text => Routine::Equal,
        Op::Cast(op) => Routine::Cast { to: dtype(op.to)?.onnx() as u8 },
        Op::CastLike(_) => {
            let to = dtypes.get(1).copied().flatten().ok_or_else(|| fault!("operand 1 is no tensor"))?;
            Routine::Cast { to: to.onnx() as u8 }
        }
        Op::RegexFullMatch(op) => Routine::RegexFullMatch { pattern: op.pattern()? },
        Op::StringNormalizer(op) => {
            Routine::StringNormalizer { case: op.case()?, sensitive: op.is_case_sensitive != 0, stopwords: op.stopwords.clone() }
        }
        Op::StringSplit(op) => {
            Routine::StringSplit { delimiter: op.delimiter.clone(), most: op.maxsplit.map(|n| n.max(0) as usize) }
        }
        Op::TfIdfVectorizer(op) => Routine::TfIdfVectorizer(op.counter()?),
        Op::LabelEncoder(op) => op.table()?.routine()?,
        Op::CategoryMapper(op) => op.table(text)?.routine()?,
        Op::ZipMap(op) => Routine::ZipMap { labels: keys(&op.classlabels_int64s, &op.classlabels_strings) },
        Op::CastMap(op) => {
            let sparse = op.map_form == "SPARSE";
            let width = usize::try_from(op.max_map).map_err(|_| fault!("max_map is {}", op.max_map));
            Routine::CastMap { to: op.dtype()?.onnx() as u8, width: if sparse { Some(width?) } else { None } }
        }
        Op::DictVectorizer(op) => Routine::DictVectorizer { vocabulary: keys(&op.int64_vocabulary, &op.string_vocabulary) },
        Op::ImageDecoder(op) => Routine::ImageDecoder { pixels: op.pixels()? },
        other => return Err(fault!("{} is no work for the host", other.name())),
    };
    let most = made.arity().1.min(dtypes.len());
    Ok((made, most))
}

fn dtype(number: i64) -> Result<DType, Fault> {
    i32::try_from(number).ok().and_then(DType::from_onnx).ok_or_else(|| fault!("{number} is no dtype"))
}

/// Keys from whichever list is not empty.
fn keys(ints: &[i64], texts: &[String]) -> Vec<Key> {
    match texts.is_empty() {
        true => ints.iter().copied().map(Key::Int).collect(),
        false => texts.iter().map(|s| Key::Text(Bytes::from(s.clone()))).collect(),
    }
}

impl RegexFullMatch {
    /// The pattern, compiled.
    pub(crate) fn pattern(&self) -> Result<Pattern, Fault> {
        Ok(Pattern::new(self.pattern.as_deref().unwrap_or(""))?)
    }
}

impl StringNormalizer {
    /// What becomes of the case.
    pub(crate) fn case(&self) -> Result<Case, Fault> {
        match &*self.case_change_action {
            "NONE" => Ok(Case::Keep),
            "LOWER" => Ok(Case::Lower),
            "UPPER" => Ok(Case::Upper),
            other => Err(fault!("case_change_action '{other}' is none of NONE, LOWER, UPPER")),
        }
    }
}

impl ImageDecoder {
    /// What the samples of the result are.
    pub(crate) fn pixels(&self) -> Result<Pixels, Fault> {
        match &*self.pixel_format {
            "RGB" => Ok(Pixels::Rgb),
            "BGR" => Ok(Pixels::Bgr),
            "Grayscale" => Ok(Pixels::Gray),
            other => Err(fault!("pixel_format '{other}' is none of RGB, BGR, Grayscale")),
        }
    }
}

impl TfIdfVectorizer {
    /// What counts n-grams as the attributes say.
    pub(crate) fn counter(&self) -> Result<TfIdf, Fault> {
        let mode = match &*self.mode {
            "TF" => Weighting::Tf,
            "IDF" => Weighting::Idf,
            "TFIDF" => Weighting::TfIdf,
            other => return Err(fault!("mode '{other}' is none of TF, IDF, TFIDF")),
        };
        if self.ngram_counts.is_empty() {
            return Err(fault!("ngram_counts is empty"));
        }
        let pool = match self.pool_strings.is_empty() {
            true => infc_host::Tensor::from_ints(vec![self.pool_int64s.len()], &self.pool_int64s)?,
            false => {
                let strings = self.pool_strings.iter().map(|s| Bytes::from(s.clone()));
                infc_host::Tensor::from_strings(vec![self.pool_strings.len()], strings)?
            }
        };
        let size = |n: i64| usize::try_from(n).unwrap_or(0);
        let made = TfIdf {
            mode,
            least: size(self.min_gram_length),
            most: size(self.max_gram_length),
            skips: size(self.max_skip_count),
            starts: self.ngram_counts.clone(),
            places: self.ngram_indexes.clone(),
            pool,
            weights: self.weights.clone(),
        };
        made.check()?;
        Ok(made)
    }
}

/// A tensor of the host with the same elements.
pub fn to_host_tensor(t: &Tensor) -> Result<infc_host::Tensor, Fault> {
    let data = match &t.data {
        Data::Bytes(b) => infc_host::Data::Bytes(b.clone()),
        Data::Strings(s) => infc_host::Data::Strings(s.clone()),
    };
    Ok(infc_host::Tensor::new(t.dtype.onnx() as u8, t.dims.clone(), data)?)
}

/// A value of the host with the same elements.
pub fn to_host(item: &Item) -> Result<Value, Fault> {
    Ok(match item {
        Item::Tensor(t) => Value::Tensor(to_host_tensor(t)?),
        Item::Sequence(items) => Value::Sequence(items.iter().map(to_host).collect::<Result<_, _>>()?),
        Item::Optional(item) => Value::Optional(item.as_deref().map(to_host).transpose()?.map(Box::new)),
        Item::Map(entries) => {
            let entries = entries.iter().map(|(k, v)| Ok((k.clone(), to_host(v)?)));
            Value::Map(entries.collect::<Result<_, Fault>>()?)
        }
    })
}

/// A value of the graph with the same elements.
pub fn from_host(value: Value) -> Result<Item, Fault> {
    Ok(match value {
        Value::Tensor(t) => {
            let dtype = dtype(t.dtype().into())?;
            let data = match t.data() {
                infc_host::Data::Bytes(b) => Data::Bytes(b.clone()),
                infc_host::Data::Strings(s) => Data::Strings(s.clone()),
            };
            Item::Tensor(Tensor { dtype, dims: t.dims().to_vec(), data })
        }
        Value::Sequence(items) => Item::Sequence(items.into_iter().map(from_host).collect::<Result<_, _>>()?),
        Value::Optional(item) => Item::Optional(item.map(|v| from_host(*v)).transpose()?.map(Box::new)),
        Value::Map(entries) => {
            let entries = entries.into_iter().map(|(k, v)| Ok((k, from_host(v)?)));
            Item::Map(entries.collect::<Result<_, Fault>>()?)
        }
    })
}

/// Applies an operator whose meaning is work for the host.
pub(crate) fn run(op: &Op, inputs: &[Option<Item>]) -> Result<Vec<Item>, Fault> {
    let dtypes: Vec<_> = inputs.iter().map(|i| i.as_ref().and_then(Item::as_tensor).map(|t| t.dtype)).collect();
    let (routine, taken) = routine(op, &dtypes)?;
    let values = inputs[..taken].iter().map(|i| i.as_ref().map(to_host).transpose()).collect::<Result<Vec<_>, _>>()?;
    let values: Vec<Option<&Value>> = values.iter().map(Option::as_ref).collect();
    routine.run(&values)?.into_iter().map(from_host).collect()
}
