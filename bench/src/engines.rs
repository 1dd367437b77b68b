//! The engines that are compared, each behind the same four operations: load, run, outputs, what it is.

use anyhow::{Context, Result, anyhow, bail};
use infc_ir::{DType, Tensor};
use infc_runtime::{Model, Options, Session, TensorRef};
use openvino::{Core, DeviceType, ElementType, InferRequest, RwPropertyKey, Shape};
use ort::session::SessionInputValue;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::DynValue;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A model in an engine, with its inputs set.
pub trait Engine {
    /// Runs it once.
    fn run(&mut self) -> Result<()>;
    /// The outputs of the last run, in the model's order.
    fn outputs(&mut self) -> Result<Vec<Tensor>>;
}

/// A model loaded, and how long that took.
pub struct Loaded {
    /// Name of the engine.
    pub name: &'static str,
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// From the file to ready to run.
    pub load: Duration,
}

/// Named inputs of a run.
pub type Inputs = [(String, Tensor)];

// ---- infc ----

struct Infc(Session);

/// An artifact in infc's runtime.
pub fn infc(artifact: &Path, inputs: &Inputs, threads: usize) -> Result<Loaded> {
    let start = Instant::now();
    let mut session = Session::new(Model::open(artifact)?, Options { threads: Some(threads), ..Options::default() })?;
    let load = start.elapsed();
    for (i, (_, t)) in inputs.iter().enumerate() {
        let dims: Vec<i64> = t.dims.iter().map(|&d| d as i64).collect();
        session.set_input(i, TensorRef { dtype: infc_runtime::DType(t.dtype.onnx() as u8), dims: &dims, bytes: t.bytes() })?;
    }
    Ok(Loaded { name: "infc", engine: Box::new(Infc(session)), load })
}

impl Engine for Infc {
    fn run(&mut self) -> Result<()> {
        Ok(self.0.run()?)
    }
    fn outputs(&mut self) -> Result<Vec<Tensor>> {
        let count = self.0.model().outputs().len();
        let output = |i| {
            let t = self.0.output(i)?;
            let dtype = DType::from_onnx(i32::from(t.dtype.0)).context("a dtype of ONNX")?;
            Ok(Tensor::from_bytes(dtype, t.dims.iter().map(|&d| d as usize).collect::<Vec<_>>(), t.bytes.to_vec()))
        };
        (0..count).map(output).collect()
    }
}

// ---- ONNX Runtime ----

struct Ort {
    session: ort::session::Session,
    inputs: Vec<(String, DynValue)>,
    last: Vec<Tensor>,
}

/// ONNX Runtime's library, loaded once.
pub fn ort_environment(library: &Path) -> Result<ort::environment::Environment> {
    Ok(ort::init_from(library)?.with_name("bench").with_telemetry(false).build()?)
}

/// A model in ONNX Runtime: all optimisations, `threads` threads inside operators, none across.
pub fn onnx_runtime(env: &ort::environment::Environment, model: &Path, inputs: &Inputs, threads: usize) -> Result<Loaded> {
    let start = Instant::now();
    let failed = |e: ort::Error<_>| anyhow!("{e}");
    let session = ort::session::Session::builder(env)?
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(failed)?
        .with_intra_threads(threads)
        .map_err(failed)?
        .with_inter_threads(1)
        .map_err(failed)?
        .commit_from_file(model)?;
    let load = start.elapsed();
    let inputs = inputs.iter().map(|(n, t)| Ok((n.clone(), to_ort(t)?))).collect::<Result<_>>()?;
    Ok(Loaded { name: "ONNX Runtime", engine: Box::new(Ort { session, inputs, last: vec![] }), load })
}

fn to_ort(t: &Tensor) -> Result<DynValue> {
    use ort::value::Tensor as Value;
    let shape: Vec<usize> = t.dims.to_vec();
    Ok(match t.dtype {
        DType::F32 => Value::from_array((shape, elements(t, f32::from_ne_bytes)))?.into_dyn(),
        DType::F64 => Value::from_array((shape, elements(t, f64::from_ne_bytes)))?.into_dyn(),
        DType::I64 => Value::from_array((shape, elements(t, i64::from_ne_bytes)))?.into_dyn(),
        DType::I32 => Value::from_array((shape, elements(t, i32::from_ne_bytes)))?.into_dyn(),
        DType::U8 => Value::from_array((shape, t.bytes().to_vec()))?.into_dyn(),
        DType::I8 => Value::from_array((shape, elements(t, i8::from_ne_bytes)))?.into_dyn(),
        DType::Bool => Value::from_array((shape, elements(t, |[b]: [u8; 1]| b != 0)))?.into_dyn(),
        other => bail!("inputs of {other} are not passed to ONNX Runtime"),
    })
}

fn elements<T, const N: usize>(t: &Tensor, read: fn([u8; N]) -> T) -> Vec<T> {
    t.bytes().chunks_exact(N).map(|c| read(c.try_into().expect("chunks of N"))).collect()
}

impl Engine for Ort {
    fn run(&mut self) -> Result<()> {
        let inputs: Vec<(&str, SessionInputValue)> = self.inputs.iter().map(|(n, v)| (n.as_str(), v.into())).collect();
        self.session.run(inputs)?;
        Ok(())
    }
    fn outputs(&mut self) -> Result<Vec<Tensor>> {
        let inputs: Vec<(&str, SessionInputValue)> = self.inputs.iter().map(|(n, v)| (n.as_str(), v.into())).collect();
        let outputs = self.session.run(inputs)?;
        self.last = outputs.iter().map(|(_, v)| from_ort(&v)).collect::<Result<_>>()?;
        Ok(self.last.clone())
    }
}

fn from_ort(v: &ort::value::ValueRef<'_, ort::value::DynValueTypeMarker>) -> Result<Tensor> {
    fn tensor<T: Copy, const N: usize>(dtype: DType, shape: &[i64], data: &[T], bytes: fn(T) -> [u8; N]) -> Tensor {
        let dims: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        Tensor::from_bytes(dtype, dims, data.iter().flat_map(|&x| bytes(x)).collect::<Vec<u8>>())
    }
    if let Ok((s, d)) = v.try_extract_tensor::<f32>() {
        return Ok(tensor(DType::F32, s, d, f32::to_ne_bytes));
    }
    if let Ok((s, d)) = v.try_extract_tensor::<i64>() {
        return Ok(tensor(DType::I64, s, d, i64::to_ne_bytes));
    }
    if let Ok((s, d)) = v.try_extract_tensor::<u8>() {
        return Ok(tensor(DType::U8, s, d, |b| [b]));
    }
    if let Ok((s, d)) = v.try_extract_tensor::<i32>() {
        return Ok(tensor(DType::I32, s, d, i32::to_ne_bytes));
    }
    bail!("outputs of {:?} are not read from ONNX Runtime", v.dtype())
}

// ---- OpenVINO ----

struct OpenVino {
    request: InferRequest,
    outputs: usize,
}

/// A model in OpenVINO on the CPU, for latency, with arithmetic in this precision; else in the one that it takes by itself.
pub fn openvino(library: &Path, model: &Path, inputs: &Inputs, threads: usize, precision: Option<&str>) -> Result<Loaded> {
    openvino_sys::library::load_from(PathBuf::from(library)).map_err(|e| anyhow!(e))?;
    let start = Instant::now();
    let mut core = Core::new()?;
    let threads = threads.to_string();
    let properties = [
        (RwPropertyKey::InferenceNumThreads, threads.as_str()),
        (RwPropertyKey::NumStreams, "1"),
        (RwPropertyKey::HintPerformanceMode, "LATENCY"),
    ];
    core.set_properties(&DeviceType::CPU, properties)?;
    if let Some(precision) = precision {
        core.set_property(&DeviceType::CPU, &RwPropertyKey::HintInferencePrecision, precision)?;
    }
    let graph = core.read_model_from_file(model.to_str().context("a path in UTF-8")?, "")?;
    let mut compiled = core.compile_model(&graph, DeviceType::CPU)?;
    let mut request = compiled.create_infer_request()?;
    let load = start.elapsed();
    for (name, t) in inputs {
        let dims: Vec<i64> = t.dims.iter().map(|&d| d as i64).collect();
        let mut tensor = openvino::Tensor::new(element_type(t.dtype)?, &Shape::new(&dims)?)?;
        tensor.get_raw_data_mut()?.copy_from_slice(t.bytes());
        request.set_tensor(name, &tensor)?;
    }
    let outputs = compiled.get_output_size()?;
    Ok(Loaded { name: "OpenVINO", engine: Box::new(OpenVino { request, outputs }), load })
}

fn element_type(dtype: DType) -> Result<ElementType> {
    Ok(match dtype {
        DType::F32 => ElementType::F32,
        DType::I64 => ElementType::I64,
        DType::I32 => ElementType::I32,
        DType::U8 => ElementType::U8,
        DType::I8 => ElementType::I8,
        DType::Bool => ElementType::Boolean,
        other => bail!("inputs of {other} are not passed to OpenVINO"),
    })
}

impl Engine for OpenVino {
    fn run(&mut self) -> Result<()> {
        Ok(self.request.infer()?)
    }
    fn outputs(&mut self) -> Result<Vec<Tensor>> {
        let output = |i| {
            let t = self.request.get_output_tensor_by_index(i)?;
            let dtype = match t.get_element_type()? {
                ElementType::F32 => DType::F32,
                ElementType::I64 => DType::I64,
                ElementType::I32 => DType::I32,
                ElementType::U8 => DType::U8,
                other => bail!("outputs of {other:?} are not read from OpenVINO"),
            };
            let dims: Vec<usize> = t.get_shape()?.get_dimensions().iter().map(|&d| d as usize).collect();
            Ok(Tensor::from_bytes(dtype, dims, t.get_raw_data()?.to_vec()))
        };
        (0..self.outputs).map(output).collect()
    }
}
