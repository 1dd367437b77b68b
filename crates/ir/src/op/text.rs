//! Strings, dictionaries, coded images, and tables that map one to another. What touches strings or dictionaries is work for the host.

use super::*;

gaps! {}

/// The bytes of a file become height x width x samples.
impl OpDef for ImageDecoder {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let depth = if self.pixels()? == infc_host::Pixels::Gray { 1 } else { 3 };
        match cx.tensor(0)? {
            t if t.dtype == DType::U8 && t.rank() == 1 => {
                let sizes = [new_dim("ImageDecoder", 0), new_dim("ImageDecoder", 1), Expr::int(depth)];
                Ok(vec![Fact::tensor(DType::U8, sizes)])
            }
            t => Err(fault!("operand 0 is {t}, the bytes of an image (u8 of rank 1) are needed")),
        }
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Host)
    }
}

fn strings<'a>(cx: &Ctx<'a>, i: usize) -> Result<&'a TensorType, Fault> {
    match cx.tensor(i)? {
        t if t.dtype == DType::String => Ok(t),
        t => Err(fault!("operand {i} is {t}, strings are needed")),
    }
}

impl OpDef for StringConcat {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        Ok(vec![Fact::tensor(DType::String, broadcast(&[&strings(cx, 0)?.dims, &strings(cx, 1)?.dims])?)])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Host)
    }
}

impl OpDef for RegexFullMatch {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        self.pattern()?;
        Ok(vec![Fact::tensor(DType::Bool, strings(cx, 0)?.dims.clone())])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Host)
    }
}

impl OpDef for StringNormalizer {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        self.case()?;
        let mut dims = strings(cx, 0)?.dims.clone();
        match dims.len() {
            1 | 2 if self.stopwords.is_empty() => {}
            n @ (1 | 2) => dims[n - 1] = new_dim("StringNormalizer", 0),
            _ => return Err(fault!("operand 0 is {}, rank 1 or 2 is needed", cx.tensor(0)?)),
        }
        Ok(vec![Fact::tensor(DType::String, dims)])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Host)
    }
}

impl OpDef for StringSplit {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let dims = &strings(cx, 0)?.dims;
        let parts = dims.iter().copied().chain([new_dim("StringSplit", 0)]);
        Ok(vec![Fact::tensor(DType::String, parts), Fact::tensor(DType::I64, dims.clone())])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Host)
    }
}

impl OpDef for TfIdfVectorizer {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let t = cx.tensor(0)?;
        let width = Expr::from(self.counter()?.width());
        match t.dims[..] {
            [_] => Ok(vec![Fact::tensor(DType::F32, [width])]),
            [n, _] => Ok(vec![Fact::tensor(DType::F32, [n, width])]),
            _ => Err(fault!("operand 0 is {t}, rank 1 or 2 is needed")),
        }
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Host)
    }
}

/// Key dtype and value dtype of the dictionary in operand 0.
fn map_types(cx: &Ctx) -> Result<(DType, DType), Fault> {
    match &cx.fact(0)?.ty {
        Type::Map(k, v) => v.as_tensor().map(|v| (*k, v.dtype)).ok_or_else(|| fault!("the values of the map are no numbers")),
        other => Err(fault!("operand 0 is {other}, a map is needed")),
    }
}

impl CastMap {
    /// The dtype of the result.
    pub(crate) fn dtype(&self) -> Result<DType, Fault> {
        match &*self.cast_to {
            "TO_FLOAT" => Ok(DType::F32),
            "TO_INT64" => Ok(DType::I64),
            "TO_STRING" => Ok(DType::String),
            other => Err(fault!("cast_to '{other}' is none of TO_FLOAT, TO_INT64, TO_STRING")),
        }
    }
}

impl OpDef for CastMap {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        map_types(cx)?;
        let dtype = self.dtype()?;
        let width = if self.map_form == "SPARSE" { Expr::int(self.max_map) } else { new_dim("CastMap", 0) };
        Ok(vec![Fact::tensor(dtype, [1.into(), width])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Host)
    }
}

impl OpDef for DictVectorizer {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let (_, value) = map_types(cx)?;
        let width = self.int64_vocabulary.len().max(self.string_vocabulary.len());
        Ok(vec![Fact::tensor(value, [1.into(), width.into()])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Host)
    }
}

impl OpDef for ZipMap {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let key = match (self.classlabels_int64s.len(), self.classlabels_strings.len()) {
            (1.., 0) => DType::I64,
            (0, 1..) => DType::String,
            _ => return Err(fault!("one list of class labels must be given, either integers or strings")),
        };
        let t = cx.tensor(0)?;
        if t.dtype != DType::F32 || !matches!(t.rank(), 1 | 2) {
            return Err(fault!("operand 0 is {t}, f32 of rank 1 or 2 is needed"));
        }
        let map = Type::Map(key, Box::new(Type::tensor(DType::F32, [])));
        Ok(vec![Fact::of(Type::Sequence(Box::new(map)))])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(Meaning::Host)
    }
}

/// A table from keys to values; one value more stands for keys that are not in it.
pub(crate) struct Table {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

fn text(list: &[String]) -> Tensor {
    Tensor::from_strings([list.len()], list.iter().map(|s| bytes::Bytes::from(s.clone().into_bytes())))
}

/// A list and one more value at its end.
fn with_default(values: &Tensor, default: &Tensor) -> Result<Tensor, Fault> {
    if values.dtype != default.dtype || default.len() != 1 {
        return Err(fault!("the default is {}{:?}, one {} is needed", default.dtype, default.dims, values.dtype));
    }
    let dims = [values.len() + 1];
    if values.dtype == DType::String {
        return Ok(Tensor::from_strings(dims, values.strings().iter().chain(default.strings()).cloned()));
    }
    Ok(Tensor::from_bytes(values.dtype, dims, [&values.bytes()[..], &default.bytes()[..]].concat()))
}

impl Table {
    fn new(keys: Tensor, values: Tensor, default: Tensor) -> Result<Table, Fault> {
        if keys.len() != values.len() || keys.dims.len() != 1 || values.dims.len() != 1 {
            return Err(fault!("{} keys for {} values", keys.len(), values.len()));
        }
        Ok(Table { values: with_default(&values, &default)?, keys })
    }

    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        match cx.tensor(0)? {
            t if t.dtype == self.keys.dtype => Ok(vec![Fact::tensor(self.values.dtype, t.dims.clone())]),
            t => Err(fault!("operand 0 is {t}, the keys are {}", self.keys.dtype)),
        }
    }

    /// The routine that looks up strings.
    pub(crate) fn routine(&self) -> Result<infc_host::Routine, Fault> {
        Ok(infc_host::Routine::table(crate::host::to_host_tensor(&self.keys)?, crate::host::to_host_tensor(&self.values)?)?)
    }

    /// The first key that is equal says where the value stands. NaN is equal to NaN.
    fn meaning(self) -> Meaning {
        if self.keys.dtype == DType::String {
            return Meaning::Host;
        }
        Meaning::decompose(move |b, inputs| {
            let x = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
            let axes = b.ints(&[-1]);
            let x = b.op(Unsqueeze {}, &[x, axes])?;
            let keys = b.constant(self.keys.clone());
            let mut same = b.op(Equal {}, &[x, keys])?;
            if self.keys.dtype.is_float() {
                let (nan, key_nan) = (b.op(IsNaN {}, &[x])?, b.op(IsNaN {}, &[keys])?);
                let both = b.op(And {}, &[nan, key_nan])?;
                same = b.op(Or {}, &[same, both])?;
            }
            let same = common::cast_to(b, same, DType::I32)?;
            let first = b.op(ArgMax { axis: -1, keepdims: false, select_last_index: false }, &[same])?;
            let any = b.op(ReduceMax { keepdims: false, noop_with_empty_axes: false }, &[same, axes])?;
            let found = common::cast_to(b, any, DType::Bool)?;
            let last = b.constant(Tensor::from_vec([], vec![self.keys.len() as i64]));
            let place = b.op(Where {}, &[found, first, last])?;
            let values = b.constant(self.values.clone());
            Ok(vec![b.op(Gather { axis: 0 }, &[values, place])?])
        })
    }
}

impl LabelEncoder {
    pub(crate) fn table(&self) -> Result<Table, Fault> {
        let pick = |tensor: &Option<Tensor>, texts: &[String], ints: &[i64], floats: &[f32]| {
            Some(match (tensor, texts.len(), ints.len(), floats.len()) {
                (Some(t), ..) => t.clone(),
                (_, 1.., ..) => text(texts),
                (_, _, 1.., _) => Tensor::from_ints(ints),
                (_, _, _, 1..) => Tensor::from_vec([floats.len()], floats.to_vec()),
                _ => return None,
            })
        };
        let keys = pick(&self.keys_tensor, &self.keys_strings, &self.keys_int64s, &self.keys_floats);
        let values = pick(&self.values_tensor, &self.values_strings, &self.values_int64s, &self.values_floats);
        let (Some(keys), Some(values)) = (keys, values) else { return Err(fault!("keys or values are missing")) };
        let default = match (&self.default_tensor, values.dtype) {
            (Some(t), _) => t.clone(),
            (None, DType::String) => text(std::slice::from_ref(&self.default_string)),
            (None, DType::I64) => Tensor::from_ints(&[self.default_int64]),
            (None, DType::F32) => Tensor::from_vec([1], vec![self.default_float]),
            (None, d) => Tensor::zeros(d, [1]),
        };
        Table::new(keys, values, default)
    }
}

impl OpDef for LabelEncoder {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        self.table()?.infer(cx)
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(self.table()?.meaning())
    }
}

impl CategoryMapper {
    /// The table for operands of strings, or of integers.
    pub(crate) fn table(&self, from_text: bool) -> Result<Table, Fault> {
        let (texts, ints) = (text(&self.cats_strings), Tensor::from_ints(&self.cats_int64s));
        match from_text {
            true => Table::new(texts, ints, Tensor::from_ints(&[self.default_int64])),
            false => Table::new(ints, texts, text(std::slice::from_ref(&self.default_string))),
        }
    }
}

impl OpDef for CategoryMapper {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        self.table(cx.dtype(0)? == DType::String)?.infer(cx)
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        Ok(self.table(cx.dtype(0)? == DType::String)?.meaning())
    }
}

#[cfg(test)]
mod tests {
    use super::super::common::testing::*;
    use super::*;

    fn words(list: &[&str]) -> Tensor {
        Tensor::from_strings([list.len()], list.iter().map(|s| bytes::Bytes::copy_from_slice(s.as_bytes())))
    }
    fn matches(pattern: &str, list: &[&str]) -> Result<Vec<i64>, String> {
        let op = RegexFullMatch { pattern: Some(pattern.to_owned()) }.into();
        crate::interp::eval_op(&op, &[Some(words(list))], 1).map(|t| t[0].to_ints()).map_err(|f| f.0)
    }

    #[test]
    fn the_whole_string_must_match() {
        assert_eq!(matches("a|b+", &["a", "bb", "ab", ""]).unwrap(), [1, 1, 0, 0]);
        assert!(matches("(", &["a"]).unwrap_err().contains("pattern '(' is not supported"));
    }

    #[test]
    fn splits_are_padded_with_empty_strings() {
        let op = |delimiter: Option<&str>, maxsplit| StringSplit { delimiter: delimiter.map(str::to_owned), maxsplit }.into();
        let run = |op: Op, text: &[&str]| crate::interp::eval_op(&op, &[Some(words(text))], 2).unwrap();
        let made = run(op(Some(","), None), &["a,b,", "c"]);
        assert_eq!((&made[0].dims[..], made[0].strings()), (&[2, 3][..], words(&["a", "b", "", "c", "", ""]).strings()));
        assert_eq!(made[1].to_ints(), [3, 1]);
        assert_eq!(run(op(None, Some(1)), &["  a b  c "])[0].strings(), words(&["a", "b  c"]).strings());
    }

    #[test]
    fn a_table_has_a_default() {
        let op = CategoryMapper {
            cats_int64s: vec![7, 8],
            cats_strings: vec!["x".into(), "y".into()],
            default_int64: -1,
            default_string: "none".into(),
        };
        let made = crate::interp::eval_op(&op.clone().into(), &[Some(words(&["y", "z"]))], 1).unwrap();
        assert_eq!(made[0].to_ints(), [8, -1]);
        check_type(op, &[(DType::F32, &["n"])], "operand 0 is f32[n], the keys are i64");
    }
}
