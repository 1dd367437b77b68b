//! Random cases of operators whose work is the host's: strings, sequences, optionals, maps, coded images; and of what moves or compares
//! strings natively. The interpreter against the graph after all passes and against compiled code.

use crate::elementwise::rows;
use crate::kit::{Agree, Fill, LINKS, Random, SMALL, compare};
use infc::Options;
use infc::engine::prepare;
use infc_ir::graph::{Graph, SourceNode};
use infc_ir::interp::{self, Item, Key};
use infc_ir::op::{Attr, Attrs, Builder, OPS, Op};
use infc_ir::{DType, Expr, Fault, Tensor, Type, Value, text};
use std::collections::BTreeSet;

/// A graph of one operator (and perhaps one behind it), with its inputs.
struct Case {
    graph: Graph,
    inputs: Vec<Item>,
    /// What the first result has to be, where a case knows.
    expected: Option<Item>,
}

/// An operator with the function that makes its cases.
type Row = (&'static str, fn(&mut Random) -> Case);

fn made(name: &str, attrs: &[(&str, Attr)]) -> Op {
    let domains = OPS.iter().filter(|o| o.name == name).map(|o| o.domain);
    let mut attrs = Attrs(attrs.iter().map(|(n, a)| ((*n).to_owned(), a.clone())).collect());
    let domain = domains.into_iter().next().expect("in the table");
    let op = Op::from_attrs(domain, name, &mut attrs).expect("in the table").expect("attributes fit");
    assert!(attrs.0.is_empty(), "{name}: attributes are left over");
    op
}

/// A graph that `build` makes of values of these types.
fn whole(inputs: Vec<(Type, Item)>, build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, Fault>) -> Case {
    let mut g = Graph::new("case");
    let source = g.add_source(SourceNode { name: "node".into(), op: "Op".into(), opset: 28 });
    let params: Vec<Value> =
        inputs.iter().enumerate().map(|(k, (ty, _))| g.add_param(Graph::MAIN, ty.clone(), format!("x{k}"))).collect();
    let mut b = Builder::new(&mut g, BTreeSet::from([source]));
    let results = build(&mut b, &params).expect("is accepted");
    let nodes = b.nodes;
    for (k, v) in results.iter().enumerate() {
        g.values[v.index()].name = format!("y{k}");
    }
    (g.regions[0].nodes, g.regions[0].results) = (nodes, results);
    Case { graph: g, inputs: inputs.into_iter().map(|i| i.1).collect(), expected: None }
}

/// One operator.
fn one(name: &str, attrs: &[(&str, Attr)], inputs: Vec<(Type, Item)>, results: usize) -> Case {
    let op = made(name, attrs);
    whole(inputs, |b, v| b.node(op, &v.iter().copied().map(Some).collect::<Vec<_>>(), vec![], results))
}

/// A tensor as an input, with known dims or a symbol for each size.
fn input(r: &mut Random, t: Tensor) -> (Type, Item) {
    let symbolic = r.chance(50);
    let dim = |&d: &usize| if symbolic { Expr::sym(&format!("n{d}")) } else { Expr::from(d) };
    (Type::tensor(t.dtype, t.dims.iter().map(dim)), Item::Tensor(t))
}

fn scalar(v: i64) -> (Type, Item) {
    (Type::tensor(DType::I64, []), Item::Tensor(Tensor::from_vec([], vec![v])))
}

const WORDS: &[&str] =
    &["", "a", "A", "ab", "aB", "the", "The", "a,b", ",,a", "a b", " ", "  b  c ", "é", "Ünï", "ß", "東京", "zz", "1", "a.b.c"];

fn words(r: &mut Random, dims: &[usize]) -> Tensor {
    let n: usize = dims.iter().product();
    Tensor::from_strings(dims, (0..n).map(|_| r.pick(WORDS).as_bytes().to_vec().into()))
}

fn some(r: &mut Random, from: usize) -> Vec<String> {
    (0..r.size(from, 5)).map(|_| r.pick(WORDS).to_owned()).collect()
}

/// Different words.
fn vocabulary(r: &mut Random) -> Vec<String> {
    let mut all: Vec<String> = WORDS.iter().map(|w| (*w).to_owned()).collect();
    r.shuffle(&mut all);
    all.truncate(r.size(1, 6));
    all
}

/// Numbers that have a text, some with NaN and infinities.
fn numbers(r: &mut Random, dims: &[usize]) -> Tensor {
    let dtype = r.pick(&[DType::F32, DType::F64, DType::I64, DType::I32, DType::U8, DType::F16, DType::Bool]);
    r.tensor(dtype, dims, Fill::Any)
}

/// Text of numbers, in the forms that are read.
fn numerals(r: &mut Random, dims: &[usize]) -> Tensor {
    let all = ["0", "-1", "7", "3.5", "-2.25", "1e3", "1E-2", "INF", "-inf", "NaN", " 12 "];
    let n: usize = dims.iter().product();
    Tensor::from_strings(dims, (0..n).map(|_| r.pick(&all).as_bytes().to_vec().into()))
}

/// A tensor of what sequences hold.
fn element(r: &mut Random, dtype: DType, dims: &[usize]) -> Tensor {
    if dtype == DType::String { words(r, dims) } else { r.tensor(dtype, dims, Fill::Any) }
}

/// A sequence whose elements differ along `axis`, which is open in its type (all equal: sometimes known).
fn sequence(r: &mut Random, dims: &[usize], axis: Option<usize>, least: usize) -> (Type, Item) {
    let dtype = r.pick(&[DType::F32, DType::F32, DType::I64, DType::Bool, DType::String]);
    let n = r.size(least, 4);
    let mut items = vec![];
    for _ in 0..n {
        let mut own = dims.to_vec();
        if let Some(a) = axis {
            own[a] = r.size(0, 4);
        }
        items.push(Item::Tensor(element(r, dtype, &own)));
    }
    let symbolic = r.chance(50);
    let dim = |(i, &d): (usize, &usize)| match symbolic || axis == Some(i) || d == 0 {
        true => Expr::sym(&format!("s{i}")),
        false => Expr::from(d),
    };
    let ty = Type::tensor(dtype, dims.iter().enumerate().map(dim));
    (Type::Sequence(Box::new(ty)), Item::Sequence(items))
}

fn length(item: &Item) -> i64 {
    if let Item::Sequence(items) = item { items.len() as i64 } else { 0 }
}

/// A position in a sequence, from either end; now and then one that is outside.
fn place(r: &mut Random, n: i64, more: i64) -> (Type, Item) {
    let outside = if r.chance(10) { 1 } else { 0 };
    scalar(r.within(-n - outside, (n - 1 + more + outside).max(-n - outside)))
}

fn dictionary(r: &mut Random) -> (Type, Item) {
    let value = r.pick(&[DType::F32, DType::I64]);
    let text = r.chance(50);
    let value_of = |r: &mut Random| Item::Tensor(r.tensor(value, &[], Fill::Within(-9, 9)));
    let entries: Vec<(Key, Item)> = if text {
        vocabulary(r).into_iter().map(|w| (Key::Text(w.into_bytes().into()), value_of(r))).collect()
    } else {
        let mut keys: Vec<i64> = (0..8).filter(|_| r.chance(50)).collect();
        r.shuffle(&mut keys);
        keys.into_iter().map(|k| (Key::Int(k), value_of(r))).collect()
    };
    let key = if text { DType::String } else { DType::I64 };
    (Type::Map(key, Box::new(Type::tensor(value, []))), Item::Map(entries))
}

/// The file of an image, and its pixels as red, green, blue.
fn picture(r: &mut Random) -> (Vec<u8>, [usize; 2], Vec<u8>) {
    let (h, w) = (r.size(1, 9), r.size(1, 9));
    let pixels: Vec<u8> = (0..h * w * 3).map(|_| r.next() as u8).collect();
    if r.chance(50) {
        // PNM, plain bytes.
        return ([format!("P6\n{w} {h}\n255\n").as_bytes(), &pixels].concat(), [h, w], pixels);
    }
    // BMP of 24 bits: rows from below, blue first, each filled up to four bytes.
    let row = (3 * w).div_ceil(4) * 4;
    let mut file = b"BM".to_vec();
    let mut word = |v: usize| file.extend((v as u32).to_le_bytes());
    [54 + row * h, 0, 54, 40, w, h, 1 | 24 << 16, 0, row * h, 0, 0, 0, 0].into_iter().for_each(&mut word);
    for line in pixels.chunks(3 * w).rev() {
        let mut bytes: Vec<u8> = line.chunks(3).flat_map(|p| [p[2], p[1], p[0]]).collect();
        bytes.resize(row, 0);
        file.extend(bytes);
    }
    (file, [h, w], pixels)
}

fn strings(texts: Vec<String>) -> Attr {
    Attr::Strs(texts)
}

/// Rows of the table that is behind LabelEncoder: keys and values of any of its kinds.
fn label_encoder(r: &mut Random) -> Case {
    let dims = r.dims(0..=3);
    let keys = vocabulary(r);
    let ints: Vec<i64> = (0..keys.len() as i64).map(|k| 3 * k - 4).collect();
    match r.size(0, 2) {
        0 => {
            let x = words(r, &dims);
            let x = input(r, x);
            let values = ints.iter().map(|&i| i as f32).collect();
            one("LabelEncoder", &[("keys_strings", strings(keys)), ("values_floats", Attr::Floats(values))], vec![x], 1)
        }
        1 => {
            let x = words(r, &dims);
            let x = input(r, x);
            one("LabelEncoder", &[("keys_strings", strings(keys)), ("values_int64s", Attr::Ints(ints))], vec![x], 1)
        }
        _ => {
            let x = r.tensor(DType::I64, &dims, Fill::Within(-4, 9));
            let x = input(r, x);
            one("LabelEncoder", &[("keys_int64s", Attr::Ints(ints)), ("values_strings", strings(keys))], vec![x], 1)
        }
    }
}

fn n_grams(r: &mut Random) -> Case {
    let text = r.chance(50);
    let dims = if r.chance(50) { vec![r.size(1, 12)] } else { vec![r.size(1, 3), r.size(1, 9)] };
    // Unigrams, then bigrams.
    let (single, double) = (r.size(1, 4), r.size(1, 4));
    let pool = single + 2 * double;
    let total = single + double;
    let mut places: Vec<i64> = (0..total as i64).collect();
    r.shuffle(&mut places);
    let weights: Vec<f32> = (0..total).map(|_| r.within(1, 4) as f32).collect();
    let least = r.within(1, 2);
    let mut attrs = vec![
        ("mode", Attr::Str(r.pick(&["TF", "IDF", "TFIDF"]).to_owned())),
        ("min_gram_length", Attr::Int(least)),
        ("max_gram_length", Attr::Int(2)),
        ("max_skip_count", Attr::Int(r.within(0, 2))),
        ("ngram_counts", Attr::Ints(vec![0, single as i64])),
        ("ngram_indexes", Attr::Ints(places)),
        ("weights", Attr::Floats(weights)),
    ];
    let few = ["a", "b", "c", "d"];
    let x = if text {
        attrs.push(("pool_strings", strings((0..pool).map(|_| r.pick(&few).to_owned()).collect())));
        let n: usize = dims.iter().product();
        Tensor::from_strings(dims, (0..n).map(|_| r.pick(&few).as_bytes().to_vec().into()))
    } else {
        attrs.push(("pool_int64s", Attr::Ints((0..pool).map(|_| r.within(0, 3)).collect())));
        r.tensor(DType::I64, &dims, Fill::Within(0, 3))
    };
    let x = input(r, x);
    one("TfIdfVectorizer", &attrs, vec![x], 1)
}

const TEXT: &[Row] = rows! {
    "CastMap" => |r| {
        let m = dictionary(r);
        let to = r.pick(&["TO_FLOAT", "TO_INT64", "TO_STRING"]).to_owned();
        let sparse = matches!(m.0, Type::Map(DType::I64, _)) && r.chance(50);
        let form = if sparse { "SPARSE" } else { "DENSE" };
        one("CastMap", &[("cast_to", Attr::Str(to)), ("map_form", Attr::Str(form.into())), ("max_map", Attr::Int(r.within(8, 10)))], vec![m], 1)
    };
    "CategoryMapper" => |r| {
        let (dims, keys) = (r.dims(0..=3), vocabulary(r));
        let ints = (0..keys.len() as i64).map(|k| 2 * k + 1).collect();
        let x = if r.chance(50) { words(r, &dims) } else { r.tensor(DType::I64, &dims, Fill::Within(0, 9)) };
        let x = input(r, x);
        one("CategoryMapper", &[("cats_strings", strings(keys)), ("cats_int64s", Attr::Ints(ints))], vec![x], 1)
    };
    "DictVectorizer" => |r| {
        let m = dictionary(r);
        let words = match m.0 {
            Type::Map(DType::String, _) => ("string_vocabulary", strings(vocabulary(r))),
            _ => ("int64_vocabulary", Attr::Ints((0..r.within(1, 8)).collect())),
        };
        one("DictVectorizer", &[words], vec![m], 1)
    };
    "ImageDecoder" => |r| {
        let (file, [h, w], rgb) = picture(r);
        let bgr = r.chance(50);
        let pixels: Vec<u8> = if bgr { rgb.chunks(3).flat_map(|p| [p[2], p[1], p[0]]).collect() } else { rgb };
        let x = input(r, Tensor::from_vec([file.len()], file));
        let case = one("ImageDecoder", &[("pixel_format", Attr::Str(if bgr { "BGR" } else { "RGB" }.into()))], vec![x], 1);
        Case { expected: Some(Item::Tensor(Tensor::from_vec([h, w, 3], pixels))), ..case }
    };
    "LabelEncoder" => |r| label_encoder(r);
    "RegexFullMatch" => |r| {
        let dims = r.dims(0..=3);
        let pattern = r.pick(&["a+", "[aA].*", "", ".*b.*", "(a|the)+", "[^,]*", "\\s*", "."]).to_owned();
        let x = words(r, &dims);
        let x = input(r, x);
        one("RegexFullMatch", &[("pattern", Attr::Str(pattern))], vec![x], 1)
    };
    "StringConcat" => |r| {
        let dims = r.broadcast(2);
        let [a, b] = [0, 1].map(|k| { let t = words(r, &dims[k]); (Type::tensor(DType::String, dims[k].iter().map(|&d| Expr::from(d))), Item::Tensor(t)) });
        one("StringConcat", &[], vec![a, b], 1)
    };
    "StringNormalizer" => |r| {
        let dims = if r.chance(50) { vec![r.size(1, 7)] } else { vec![1, r.size(1, 7)] };
        let (case, sensitive, stop) = (r.pick(&["NONE", "LOWER", "UPPER"]).to_owned(), r.within(0, 1), some(r, 0));
        let x = words(r, &dims);
        let x = input(r, x);
        one("StringNormalizer", &[("case_change_action", Attr::Str(case)), ("is_case_sensitive", Attr::Int(sensitive)), ("stopwords", strings(stop))], vec![x], 1)
    };
    "StringSplit" => |r| {
        let dims = r.dims(0..=3);
        let mut attrs = vec![];
        if r.chance(60) { attrs.push(("delimiter", Attr::Str(r.pick(&[",", " ", "", ".", "a"]).to_owned()))); }
        if r.chance(40) { attrs.push(("maxsplit", Attr::Int(r.within(0, 3)))); }
        let x = words(r, &dims);
        let x = input(r, x);
        one("StringSplit", &attrs, vec![x], 2)
    };
    "TfIdfVectorizer" => |r| n_grams(r);
    "ZipMap" => |r| {
        let (n, labels) = (r.size(1, 4), vocabulary(r));
        let x = r.tensor(DType::F32, &[n, labels.len()], Fill::Any);
        let x = input(r, x);
        let ints = (0..labels.len() as i64).map(|k| 5 - k).collect();
        let labels = if r.chance(50) { ("classlabels_strings", strings(labels)) } else { ("classlabels_int64s", Attr::Ints(ints)) };
        one("ZipMap", &[labels], vec![x], 1)
    };
};

/// An element that is open in one dim, and something native after it where there is one.
fn and_neg(b: &mut Builder, v: Value) -> Result<Vec<Value>, Fault> {
    match b.tensor(v) {
        Ok(t) if t.dtype == DType::F32 => Ok(vec![v, b.op(made("Neg", &[]), &[v])?]),
        _ => Ok(vec![v]),
    }
}

const CONTAINER: &[Row] = rows! {
    "ConcatFromSequence" => |r| {
        let rank = r.size(1, 3);
        let dims: Vec<usize> = (0..rank).map(|_| r.size(1, 3)).collect();
        let new = r.chance(50);
        let axis = if new { r.within(-(rank as i64) - 1, rank as i64) } else { r.axis(rank) };
        let along = axis.rem_euclid(rank as i64) as usize;
        let s = sequence(r, &dims, if new { None } else { Some(along) }, 1);
        one("ConcatFromSequence", &[("axis", Attr::Int(axis)), ("new_axis", Attr::Int(new.into()))], vec![s], 1)
    };
    "Optional" => |r| { let dims = r.dims(0..=3); let x = numbers(r, &dims); let x = input(r, x); one("Optional", &[], vec![x], 1) };
    "OptionalGetElement" => |r| {
        let x = r.tensor(DType::F32, &[2, 3], Fill::Any);
        let (ty, item) = input(r, x);
        let full = r.chance(80);
        let o = (Type::Optional(Box::new(ty)), Item::Optional(full.then(|| Box::new(item))));
        whole(vec![o], |b, v| { let x = b.op(made("OptionalGetElement", &[]), &[v[0]])?; and_neg(b, x) })
    };
    "OptionalHasElement" => |r| {
        let (ty, item) = if r.chance(50) { sequence(r, &[2], Some(0), 0) } else { let t = words(r, &[2]); input(r, t) };
        let full = r.chance(50);
        one("OptionalHasElement", &[], vec![(Type::Optional(Box::new(ty)), Item::Optional(full.then(|| Box::new(item))))], 1)
    };
    "SequenceAt" => |r| {
        let s = sequence(r, &[3, 2], Some(0), 1);
        let at = place(r, length(&s.1), 0);
        whole(vec![s, at], |b, v| { let x = b.op(made("SequenceAt", &[]), v)?; and_neg(b, x) })
    };
    "SequenceConstruct" => |r| {
        let dims = r.dims(0..=3);
        let dtype = r.pick(&[DType::F32, DType::I32, DType::String]);
        let n = r.size(1, 4);
        let parts = (0..n).map(|_| { let t = element(r, dtype, &dims); input(r, t) }).collect();
        one("SequenceConstruct", &[], parts, 1)
    };
    "SequenceEmpty" => |r| {
        let dtype = r.pick(&[DType::F32, DType::I64, DType::String]);
        let t = element(r, dtype, &[2]);
        let x = input(r, t);
        let op = made("SequenceEmpty", &[("dtype", Attr::Int(dtype.onnx().into()))]);
        whole(vec![x], |b, v| { let e = b.op(op, &[])?; Ok(vec![e, b.op(made("SequenceInsert", &[]), &[e, v[0]])?]) })
    };
    "SequenceErase" => |r| {
        let s = sequence(r, &[2, 3], Some(1), 1);
        let mut inputs = vec![s];
        if r.chance(70) { let n = length(&inputs[0].1); inputs.push(place(r, n, 0)); }
        one("SequenceErase", &[], inputs, 1)
    };
    "SequenceInsert" => |r| {
        let s = sequence(r, &[2, 3], Some(1), 0);
        let dtype = if let Type::Sequence(t) = &s.0 { t.dtype().expect("a tensor") } else { unreachable!("a sequence") };
        let (n, width) = (length(&s.1), r.size(0, 3));
        let t = element(r, dtype, &[2, width]);
        let x = input(r, t);
        let mut inputs = vec![s, x];
        if r.chance(70) { inputs.push(place(r, n, 1)); }
        one("SequenceInsert", &[], inputs, 1)
    };
    "SequenceLength" => |r| { let s = sequence(r, &[2], Some(0), 0); one("SequenceLength", &[], vec![s], 1) };
    "SequenceMap" => |r| {
        let n = r.size(0, 4);
        let items: Vec<Item> = (0..n).map(|_| { let d = r.size(0, 4); Item::Tensor(r.tensor(DType::F32, &[d], SMALL)) }).collect();
        let list = Type::tensor(DType::F32, [Expr::sym("n")]);
        let x = r.tensor(DType::F32, &[], SMALL);
        let name = r.pick(&["Add", "Mul", "Max"]);
        let inputs = vec![(Type::Sequence(Box::new(list.clone())), Item::Sequence(items)), (Type::tensor(DType::F32, []), Item::Tensor(x))];
        whole(inputs, |b, v| {
            let body = b.region("body", &[list, Type::tensor(DType::F32, [])], |b, p| Ok(vec![b.op(made(name, &[]), p)?]))?;
            b.node(made("SequenceMap", &[]), &[Some(v[0]), Some(v[1])], vec![body], 1)
        })
    };
    "SplitToSequence" => |r| {
        let rank = r.size(1, 3);
        let dims: Vec<usize> = (0..rank).map(|_| r.size(1, 4)).collect();
        let axis = r.axis(rank);
        let dtype = r.pick(&[DType::F32, DType::I64, DType::String]);
        let extent = dims[axis.rem_euclid(rank as i64) as usize] as i64;
        let t = element(r, dtype, &dims);
        let mut inputs = vec![input(r, t)];
        match r.size(0, 2) {
            0 => {}
            1 => inputs.push(scalar(r.within(1, extent))),
            _ => {
                let first = r.within(0, extent);
                inputs.push((Type::tensor(DType::I64, [Expr::int(2)]), Item::Tensor(Tensor::from_ints(&[first, extent - first]))));
            }
        }
        one("SplitToSequence", &[("axis", Attr::Int(axis)), ("keepdims", Attr::Int(r.within(0, 1)))], inputs, 1)
    };
};

/// Operators of other families on strings.
const STRINGS: &[Row] = rows! {
    "Cast" => |r| {
        let dims = r.dims(0..=3);
        let (x, to) = match r.chance(50) {
            true => (numerals(r, &dims), r.pick(&[DType::F32, DType::F64, DType::F16])),
            false => (numbers(r, &dims), DType::String),
        };
        let x = input(r, x);
        one("Cast", &[("to", Attr::Int(to.onnx().into()))], vec![x], 1)
    };
    "Compress" => |r| {
        let n = r.size(1, 6);
        let t = words(r, &[n, 2]);
        let mask: Vec<bool> = (0..n).map(|_| r.chance(50)).collect();
        let inputs = vec![input(r, t), (Type::tensor(DType::Bool, [Expr::from(n)]), Item::Tensor(Tensor::from_bools([n], &mask)))];
        one("Compress", &[("axis", Attr::Int(r.pick(&[0, -2])))], inputs, 1)
    };
    "Concat" => |r| {
        let dims = r.dims(1..=3);
        let inputs = (0..2).map(|_| (Type::tensor(DType::String, dims.iter().map(|&d| Expr::from(d))), Item::Tensor(words(r, &dims)))).collect();
        let axis = r.axis(dims.len());
        one("Concat", &[("axis", Attr::Int(axis))], inputs, 1)
    };
    "Equal" => |r| {
        let dims = r.broadcast(2);
        let inputs = (0..2).map(|k| (Type::tensor(DType::String, dims[k].iter().map(|&d| Expr::from(d))), Item::Tensor(words(r, &dims[k])))).collect();
        one("Equal", &[], inputs, 1)
    };
    "Gather" => |r| {
        let dims: Vec<usize> = r.dims(1..=3).into_iter().map(|d| d.max(1)).collect();
        let (axis, t) = (r.axis(dims.len()), words(r, &dims));
        let extent = dims[axis.rem_euclid(dims.len() as i64) as usize] as i64;
        let last = extent - i64::from(!r.chance(8));
        let index = r.tensor(DType::I64, &[3], Fill::Within(-extent, last));
        let inputs = vec![input(r, t), (Type::tensor(DType::I64, [Expr::int(3)]), Item::Tensor(index))];
        one("Gather", &[("axis", Attr::Int(axis))], inputs, 1)
    };
    "Loop" => |r| {
        // A string that grows, and all of them stacked. A dim that is written as 0 is an unknown one to the importer.
        let dims: Vec<usize> = r.dims(0..=2).into_iter().map(|d| d.max(1)).collect();
        let known = |dims: &[usize]| Type::tensor(DType::String, dims.iter().map(|&d| Expr::from(d)));
        let (x, y, trips) = (words(r, &dims), words(r, &dims), r.within(0, 4));
        let inputs = vec![scalar(trips), (known(&dims), Item::Tensor(x)), (known(&dims), Item::Tensor(y))];
        let ty = known(&dims);
        whole(inputs, |b, v| {
            let params = [Type::tensor(DType::I64, []), Type::tensor(DType::Bool, []), ty.clone(), ty];
            let body = b.region("body", &params, |b, p| {
                let (goes_on, longer) = (b.op(made("Identity", &[]), &[p[1]])?, b.op(made("StringConcat", &[]), &[p[2], p[3]])?);
                let shown = b.op(made("StringConcat", &[]), &[p[3], longer])?;
                Ok(vec![goes_on, longer, shown])
            })?;
            b.node(made("Loop", &[("captures", Attr::Int(1))]), &[Some(v[0]), None, Some(v[1]), Some(v[2])], vec![body], 2)
        })
    };
    "Scan" => |r| {
        let (n, rest) = (r.size(1, 4), r.dims(0..=2).into_iter().map(|d| d.max(1)).collect::<Vec<_>>());
        let axis = r.size(0, rest.len());
        let mut dims = rest.clone();
        dims.insert(axis, n);
        let known = |dims: &[usize]| Type::tensor(DType::String, dims.iter().map(|&d| Expr::from(d)));
        let (state, x) = (words(r, &rest), words(r, &dims));
        let counts = r.tensor(DType::F32, &dims, SMALL);
        let numbers = Type::tensor(DType::F32, dims.iter().map(|&d| Expr::from(d)));
        let slice = Type::tensor(DType::F32, rest.iter().map(|&d| Expr::from(d)));
        let inputs = vec![(known(&rest), Item::Tensor(state)), (known(&dims), Item::Tensor(x)), (numbers, Item::Tensor(counts))];
        let (back, out) = ([r.within(0, 1), r.within(0, 1)], [r.within(0, 1), r.within(0, 1)]);
        let places = [r.within(0, rest.len() as i64), r.within(0, rest.len() as i64)];
        let ty = known(&rest);
        let attrs = [
            ("num_scan_inputs", Attr::Int(2)),
            ("scan_input_axes", Attr::Ints(vec![axis as i64; 2])),
            ("scan_input_directions", Attr::Ints(back.to_vec())),
            ("scan_output_directions", Attr::Ints(out.to_vec())),
            ("scan_output_axes", Attr::Ints(places.to_vec())),
        ];
        whole(inputs, |b, v| {
            let body = b.region("body", &[ty.clone(), ty, slice], |b, p| {
                let longer = b.op(made("StringConcat", &[]), &[p[0], p[1]])?;
                let shown = b.op(made("StringConcat", &[]), &[p[1], longer])?;
                Ok(vec![longer, shown, b.op(made("Neg", &[]), &[p[2]])?])
            })?;
            b.node(made("Scan", &attrs), &v.iter().copied().map(Some).collect::<Vec<_>>(), vec![body], 3)
        })
    };
    "Transpose" => |r| {
        let dims = r.dims(1..=3);
        let mut perm: Vec<i64> = (0..dims.len() as i64).collect();
        r.shuffle(&mut perm);
        let t = words(r, &dims);
        let x = input(r, t);
        one("Transpose", &[("perm", Attr::Ints(perm))], vec![x], 1)
    };
    "Unique" => |r| {
        let dims: Vec<usize> = if r.chance(60) { r.dims(0..=2) } else { r.dims(1..=3) };
        let few = ["b", "a", "", "ab", "é"];
        let n: usize = dims.iter().product();
        let t = Tensor::from_strings(dims.clone(), (0..n).map(|_| r.pick(&few).as_bytes().to_vec().into()));
        let mut attrs = vec![("sorted", Attr::Int(r.within(0, 1)))];
        if !dims.is_empty() && r.chance(60) { attrs.push(("axis", Attr::Int(r.axis(dims.len())))); }
        let x = input(r, t);
        one("Unique", &attrs, vec![x], 4)
    };
    "Where" => |r| {
        let dims = r.broadcast(3);
        let n: usize = dims[0].iter().product();
        let flags: Vec<bool> = (0..n).map(|_| r.chance(50)).collect();
        let known = |dims: &[usize], d: DType| Type::tensor(d, dims.iter().map(|&d| Expr::from(d)));
        let cond = (known(&dims[0], DType::Bool), Item::Tensor(Tensor::from_bools(dims[0].clone(), &flags)));
        let [a, b] = [1, 2].map(|k| (known(&dims[k], DType::String), Item::Tensor(words(r, &dims[k]))));
        one("Where", &[], vec![cond, a, b], 1)
    };
};

/// Equal, and of the same kind; any NaN is a NaN.
fn same(got: &Item, want: &Item) -> Result<(), String> {
    match (got, want) {
        (Item::Tensor(g), Item::Tensor(w)) => compare(g, w, Agree::Exact),
        (Item::Sequence(g), Item::Sequence(w)) if g.len() == w.len() => g.iter().zip(w).try_for_each(|(g, w)| same(g, w)),
        (Item::Optional(Some(g)), Item::Optional(Some(w))) => same(g, w),
        (Item::Optional(None), Item::Optional(None)) => Ok(()),
        (Item::Map(g), Item::Map(w)) if g.len() == w.len() => g.iter().zip(w).try_for_each(|((a, g), (b, w))| match a == b {
            true => same(g, w),
            false => Err(format!("key {a:?} instead of {b:?}")),
        }),
        _ => Err(format!("{got:?} instead of {want:?}")),
    }
}

fn check(case: &Case, options: &Options) -> Result<(), String> {
    let bytes = infc_onnx::export(&case.graph).map_err(|p| format!("export: {p}"))?;
    let graph = infc_onnx::import_bytes(bytes.into(), None).map_err(|p| format!("import: {p}"))?;
    let want = interp::run(&graph, &case.inputs);
    if let (Some(e), Ok(w)) = (&case.expected, &want) {
        same(&w[0], e).map_err(|e| format!("the interpreter: {e}"))?;
    }
    for &backend in LINKS {
        let name = backend.name();
        let mut engine = prepare(graph.clone(), backend, options).map_err(|p| format!("{name} does not compile: {p}"))?;
        // Twice: nothing of the first run is left.
        let _ = engine.run(&case.inputs);
        match (engine.run(&case.inputs), &want) {
            (Err(_), Err(_)) => {}
            (Err(e), Ok(_)) => return Err(format!("{name} fails: {e}")),
            (Ok(_), Err(e)) => return Err(format!("{name} runs, the interpreter says {e}")),
            (Ok(got), Ok(want)) => {
                for (k, (g, w)) in got.iter().zip(want).enumerate() {
                    same(g, w).map_err(|e| format!("{name}, result {k}: {e}"))?;
                }
            }
        }
    }
    Ok(())
}

/// The rows of a family (all its operators, if the table has it).
fn family(name: &str, rows: &[Row]) {
    let here: BTreeSet<&str> = rows.iter().map(|(n, _)| *n).collect();
    let missing: Vec<_> = OPS.iter().filter(|o| o.family == name && !here.contains(o.name)).map(|o| o.name).collect();
    assert!(missing.is_empty(), "operators of {name} without random cases: {missing:?}");
    let options = Options::native().expect("a known machine");
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(0).max(6 * rows.len());
    let only = std::env::var("INFC_CASE").ok();
    let mut failures = vec![];
    for i in 0..cases {
        let (op, make) = rows[i % rows.len()];
        let id = format!("{name}_{op}_{i}");
        if only.as_ref().is_some_and(|o| *o != id) {
            continue;
        }
        let case = make(&mut Random((i as u64 + 1).wrapping_mul(0x1234_5678_9abc_def1)));
        if let Err(e) = check(&case, &options) {
            failures.push(format!("--- {id}: {e}\n{}\n{:?}", text::print(&case.graph), case.inputs));
        }
    }
    assert!(failures.is_empty(), "{} of {cases} cases fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn texts_maps_and_images() {
    family("text", TEXT);
}

#[test]
fn containers() {
    family("container", CONTAINER);
}

#[test]
fn strings_elsewhere() {
    family("strings", STRINGS);
}
