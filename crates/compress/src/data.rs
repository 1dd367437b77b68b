//! Data for calibration and evaluation: samples of a model's inputs, perhaps with labels, read one at a time.
//!
//! - A folder in ONNX's test layout: `test_data_set_<i>/input_<j>.pb`.
//! - A folder of `.npy` files: named as the model's inputs, rows are samples; or of a model with one input any files, one sample each.
//! - An `.npz` file: arrays named as the model's inputs, rows are samples. For a model with one input the array may be named `inputs`.
//!
//! Array `labels` has the right class of each row, array `scale` a factor for rows of integers that the model takes as floats. Where
//! there is an `attention_mask`, each row is cut to its length, so that samples differ in shape as they do in use.

use crate::{npy, npz};
use infc_ir::dtype::Class;
use infc_ir::expr::Node;
use infc_ir::graph::Graph;
use infc_ir::{DType, Problems, Tensor, TensorType, Type, eval};
use std::fs;
use std::path::{Path, PathBuf};

/// Reads a `.pb` file with a value of a type; the crate that knows the format gives it.
pub type ReadPb<'a> = &'a dyn Fn(&Path, &Type) -> Result<Tensor, Problems>;

/// One set of inputs, in the order of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The inputs.
    pub inputs: Vec<Tensor>,
    /// The right class, where there are labels.
    pub label: Option<i64>,
}

/// Samples for a model.
#[derive(Clone)]
pub struct Data<'a> {
    /// What it was read from, for messages and reports.
    pub source: String,
    inputs: Vec<(String, Type)>,
    kind: Kind<'a>,
    chosen: Vec<usize>,
}

#[derive(Clone)]
enum Kind<'a> {
    /// One list of files a sample.
    Files(Vec<Vec<PathBuf>>, Option<ReadPb<'a>>),
    /// One array an input; rows are samples.
    Rows { arrays: Vec<Tensor>, labels: Option<Tensor>, scale: Option<f64>, mask: Option<Tensor>, batch: usize },
    /// As they are.
    Samples(Vec<Sample>),
}

impl<'a> Data<'a> {
    /// Reads what is at `path` for the inputs of `graph`. Arrays are checked now, samples when they are read.
    pub fn read(path: &Path, graph: &Graph, read_pb: ReadPb<'a>) -> Result<Data<'a>, Problems> {
        let inputs: Vec<(String, Type)> =
            graph.inputs().iter().map(|&v| (graph.value(v).name.clone(), graph.ty(v).clone())).collect();
        let source = path.display().to_string();
        let kind = if path.is_dir() {
            folder(path, &inputs, read_pb)?
        } else {
            let bytes = fs::read(path).map_err(|e| problem(&source, e.to_string(), "check the path"))?;
            let help = "give an .npz file, a folder of .npy files, or a folder with test_data_set_<i>/input_<j>.pb";
            rows(&source, npz::read(&bytes).map_err(|e| problem(&source, e, help))?, &inputs)?
        };
        let count = match &kind {
            Kind::Files(files, _) => files.len(),
            Kind::Rows { arrays, batch, .. } => arrays.first().map_or(0, |a| a.dims[0] / batch),
            Kind::Samples(s) => s.len(),
        };
        if count == 0 {
            return Err(problem(&source, "holds no samples".to_owned(), "some tens of typical inputs are enough to calibrate"));
        }
        Ok(Data { source, inputs, kind, chosen: (0..count).collect() })
    }

    /// Samples that are at hand.
    pub fn of(graph: &Graph, samples: Vec<Sample>) -> Data<'a> {
        let inputs = graph.inputs().iter().map(|&v| (graph.value(v).name.clone(), graph.ty(v).clone())).collect();
        let chosen = (0..samples.len()).collect();
        Data { source: "samples".to_owned(), inputs, kind: Kind::Samples(samples), chosen }
    }

    /// Other samples for the same model.
    pub fn with(&self, samples: Vec<Sample>) -> Data<'static> {
        let chosen = (0..samples.len()).collect();
        Data { source: self.source.clone(), inputs: self.inputs.clone(), kind: Kind::Samples(samples), chosen }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }
    /// True without samples.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }
    /// True if samples have labels.
    pub fn labelled(&self) -> bool {
        match &self.kind {
            Kind::Files(..) => false,
            Kind::Rows { labels, .. } => labels.is_some(),
            Kind::Samples(s) => s.iter().all(|s| s.label.is_some()),
        }
    }
    /// Keeps at most `most` samples: evenly spread over all, or drawn without repetition with a seed.
    pub fn limit(&mut self, most: usize, seed: Option<u64>) {
        let (n, most) = (self.chosen.len(), most.min(self.chosen.len()));
        let Some(seed) = seed else {
            self.chosen = (0..most).map(|i| self.chosen[i * n / most]).collect();
            return;
        };
        let mut random = crate::data::Random(seed);
        for i in 0..most {
            let j = i + (random.bits() % (n - i) as u64) as usize;
            self.chosen.swap(i, j);
        }
        self.chosen.truncate(most);
    }

    /// `count` samples, evenly spread, and all others.
    pub fn parted(&self, count: usize) -> (Data<'a>, Data<'a>) {
        let taken = self.sample_of(count);
        let part = |of: bool| Data {
            chosen: (0..self.len()).filter(|i| taken.contains(i) == of).map(|i| self.chosen[i]).collect(),
            ..self.clone()
        };
        (part(true), part(false))
    }

    /// Numbers of at most `most` samples, evenly spread.
    pub fn sample_of(&self, most: usize) -> Vec<usize> {
        let n = self.len().min(most);
        (0..n).map(|i| i * self.len() / n).collect()
    }

    /// Sample `i`, checked against the types of the inputs.
    pub fn sample(&self, i: usize) -> Result<Sample, Problems> {
        let i = self.chosen[i];
        let at = |name: &str| format!("{}: sample {i}, input '{name}'", self.source);
        let sample = match &self.kind {
            Kind::Samples(samples) => samples[i].clone(),
            Kind::Files(samples, read_pb) => {
                let mut tensors = vec![];
                for (file, (_, ty)) in samples[i].iter().zip(&self.inputs) {
                    tensors.push(match read_pb {
                        Some(read) => read(file, ty)?,
                        None => with_batch(read_npy(file)?, ty),
                    });
                }
                Sample { inputs: tensors, label: None }
            }
            Kind::Rows { arrays, labels, scale, mask, batch } => {
                let length = mask.as_ref().map(|m| row_length(m, i));
                let mut tensors = vec![];
                for (array, (_, ty)) in arrays.iter().zip(&self.inputs) {
                    let cut = length.filter(|_| mask.as_ref().is_some_and(|m| m.dims == array.dims) && cuttable(ty));
                    tensors.push(row(array, i, *batch, cut, ty, *scale));
                }
                Sample { inputs: tensors, label: labels.as_ref().map(|l| l.to_ints()[i]) }
            }
        };
        for (t, (name, ty)) in sample.inputs.iter().zip(&self.inputs) {
            check(t, ty).map_err(|m| problem(&at(name), m, &format!("the model takes {ty}")))?;
        }
        Ok(sample)
    }
}

/// SplitMix64: numbers that depend on the seed only.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn problem(at: &str, message: String, help: &str) -> Problems {
    Problems::one(at, message, help)
}

fn folder<'a>(dir: &Path, inputs: &[(String, Type)], read_pb: ReadPb<'a>) -> Result<Kind<'a>, Problems> {
    let source = dir.display().to_string();
    let list = fs::read_dir(dir).and_then(|d| d.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>());
    let mut entries = list.map_err(|e| problem(&source, e.to_string(), "check the path"))?;
    entries.sort();
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let number = |p: &Path| name(p).strip_prefix("test_data_set_").and_then(|n| n.parse::<usize>().ok());
    let mut sets: Vec<(usize, PathBuf)> = entries.iter().filter_map(|p| Some((number(p)?, p.clone()))).collect();
    if !sets.is_empty() {
        sets.sort();
        let mut samples = vec![];
        for (_, set) in sets {
            let files: Vec<PathBuf> = (0..inputs.len()).map(|j| set.join(format!("input_{j}.pb"))).collect();
            if let Some(missing) = files.iter().find(|f| !f.is_file()) {
                let names: Vec<&str> = inputs.iter().map(|(n, _)| n.as_str()).collect();
                let help = format!("one file for each input of the model: {}", names.join(", "));
                return Err(problem(&missing.display().to_string(), "is missing".to_owned(), &help));
            }
            samples.push(files);
        }
        return Ok(Kind::Files(samples, Some(read_pb)));
    }
    let arrays: Vec<PathBuf> = entries.into_iter().filter(|p| p.extension().is_some_and(|e| e == "npy")).collect();
    let named = |n: &str| arrays.iter().find(|p| p.file_stem().is_some_and(|s| s.to_string_lossy() == n));
    if !inputs.is_empty() && inputs.iter().all(|(n, _)| named(n).is_some()) {
        let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let read = arrays.iter().map(|p| Ok((stem(p), read_npy(p)?))).collect::<Result<Vec<_>, Problems>>()?;
        return rows(&source, read, inputs);
    }
    if inputs.len() == 1 {
        return Ok(Kind::Files(arrays.into_iter().map(|p| vec![p]).collect(), None));
    }
    let names: Vec<String> = inputs.iter().map(|(n, _)| format!("{n}.npy")).collect();
    let help = format!("it needs folders test_data_set_<i>, or the files {}", names.join(", "));
    Err(problem(&source, "has no data for this model".to_owned(), &help))
}

fn read_npy(file: &Path) -> Result<Tensor, Problems> {
    let at = file.display().to_string();
    let bytes = fs::read(file).map_err(|e| problem(&at, e.to_string(), "check the path"))?;
    npy::read(&bytes).map_err(|e| problem(&at, e, "write it with numpy.save"))
}

/// A sample in a file of its own may come without the batch dim.
fn with_batch(t: Tensor, ty: &Type) -> Tensor {
    match ty.as_tensor() {
        Some(want) if want.rank() == t.dims.len() + 1 => {
            let dims = [&[1], &t.dims[..]].concat();
            convert(&t.reshape(dims), want.dtype, None)
        }
        Some(want) => convert(&t, want.dtype, None),
        None => t,
    }
}

fn rows<'a>(source: &str, arrays: Vec<(String, Tensor)>, inputs: &[(String, Type)]) -> Result<Kind<'a>, Problems> {
    let find = |name: &str| arrays.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
    let have: Vec<String> = arrays.iter().map(|(n, t)| format!("{n} {}{:?}", t.dtype, t.dims)).collect();
    let mut of_inputs = vec![];
    let mut batch = 1;
    for (name, ty) in inputs {
        let found = find(name).or_else(|| find("inputs").filter(|_| inputs.len() == 1));
        let array = found.ok_or_else(|| {
            let help = format!("it has {}", have.join(", "));
            problem(source, format!("has no array for input '{name}' ({ty})"), &help)
        })?;
        let Some(want) = ty.as_tensor().filter(|t| t.rank() > 0 && t.rank() == array.dims.len()) else {
            let message = format!("array {name} is {}{:?}: rows of it are no input of type {ty}", array.dtype, array.dims);
            let help = match ty.as_tensor().map(|t| t.rank()).filter(|&r| r > 0) {
                Some(rank) => format!(
                    "it must have {rank} dims, as the input has: the first one counts the samples instead of the batch, the others are those of the input"
                ),
                None => "give a folder in ONNX's test layout: an array cannot have rows of such inputs".to_owned(),
            };
            return Err(problem(source, message, &help));
        };
        batch = want.dims[0].known().map_or(batch, |n| n.max(1) as usize);
        of_inputs.push(array);
    }
    let mut all: Vec<&Tensor> = of_inputs.iter().collect();
    let (labels, mask) = (find("labels"), find("attention_mask").filter(|m| m.dims.len() == 2));
    all.extend(&labels);
    let count = all.first().map_or(0, |t| t.dims.first().copied().unwrap_or(0));
    if all.iter().any(|t| t.dims.first() != Some(&count)) {
        return Err(problem(source, format!("arrays differ in their number of rows: {}", have.join(", ")), ""));
    }
    if labels.as_ref().is_some_and(|l| !l.dtype.is_int() || l.dims.len() != 1) {
        return Err(problem(source, "array labels must have one integer a row".to_owned(), ""));
    }
    let scale = find("scale").filter(|s| s.len() == 1 && s.dtype.is_float()).map(|s| s.float(0));
    Ok(Kind::Rows { arrays: of_inputs, labels: labels.filter(|_| batch == 1), scale, mask, batch })
}

/// Elements of row `i` of a mask up to its last one that is set.
fn row_length(mask: &Tensor, i: usize) -> usize {
    let width = mask.dims[1];
    (0..width).rev().find(|&k| mask.float(i * width + k) != 0.0).map_or(1, |k| k + 1)
}

/// May axis 1 have any size?
fn cuttable(ty: &Type) -> bool {
    ty.as_tensor().is_some_and(|t| t.rank() == 2 && matches!(t.dims[1].node(), Node::Sym(_)))
}

fn row(array: &Tensor, i: usize, batch: usize, cut: Option<usize>, ty: &Type, scale: Option<f64>) -> Tensor {
    let size: usize = array.dims[1..].iter().product::<usize>() * array.dtype.bytes();
    let (from, width) = (i * batch * size, cut.unwrap_or(usize::MAX));
    let mut dims = array.dims.clone();
    dims[0] = batch;
    let mut bytes = array.bytes().slice(from..from + batch * size);
    if cut.is_some() && width < dims[1] {
        dims[1] = width;
        bytes = bytes.slice(..width * array.dtype.bytes());
    }
    let dtype = ty.as_tensor().map_or(array.dtype, |t| t.dtype);
    convert(&Tensor::from_bytes(array.dtype, dims, bytes), dtype, scale)
}

/// Numbers as the model takes them. Floats stay floats: what would lose something is left as it is, for the check to refuse.
fn convert(t: &Tensor, to: DType, scale: Option<f64>) -> Tensor {
    let number = |d: DType| d.is_int() || matches!(d.class(), Class::Float | Class::Bool);
    if !number(t.dtype) || !number(to) || t.dtype == to && scale.is_none() || t.dtype.is_float() && !to.is_float() {
        return t.clone();
    }
    match scale.filter(|_| to.is_float()) {
        // As NumPy has it: the product of two f32.
        Some(k) => {
            let products = (0..t.len()).map(|i| f64::from(t.float(i) as f32 * k as f32));
            Tensor::from_values(to, t.dims.clone(), products.map(|v| eval::cast(DType::F64, to, v.to_bits())))
        }
        None => Tensor::from_values(to, t.dims.clone(), (0..t.len()).map(|i| eval::cast(t.dtype, to, t.value(i)))),
    }
}

/// Does a tensor fit to an input, and are its elements numbers?
fn check(t: &Tensor, ty: &Type) -> Result<(), String> {
    let fits = |want: &TensorType| {
        let dims = want.dims.iter().zip(&t.dims).all(|(d, &n)| d.known().is_none_or(|k| k == n as i64));
        want.dtype == t.dtype && want.rank() == t.dims.len() && dims
    };
    if !ty.as_tensor().is_some_and(fits) {
        return Err(format!("is {}{:?}", t.dtype, t.dims));
    }
    if t.is_empty() {
        return Err(format!("is empty: {}{:?}", t.dtype, t.dims));
    }
    let bad = |i: &usize| t.dtype.is_float() && !t.float(*i).is_finite();
    match (0..t.len()).find(bad) {
        Some(i) => Err(format!("element {i} is {}", t.float(i))),
        None => Ok(()),
    }
}
