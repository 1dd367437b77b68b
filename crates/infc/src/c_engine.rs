//! A lowered program as C code, compiled by the system's C compiler for the shapes that it meets: what `infc verify --backend c` runs.
//!
//! Dims that the model leaves open stay parameters, bounded by the first shapes; larger ones are compiled anew. Sizes that only data
//! tells get the largest bound with which all memory stays small.

use crate::engine::Engine;
use crate::loops_engine::{bind, check_inputs};
use infc_artifact::program::Program;
use infc_c::load::{FLAGS, Model};
use infc_c::{Options, Style, Weights};
use infc_ir::interp::Item;
use infc_ir::{DType, Problems, Tensor};
use infc_kernel::bounded::{self, Bounds, given as given_symbols};
use infc_kernel::program::Lowered;
use infc_kernel::target::TargetDesc;

/// Weights of more bytes than this are no arrays in the source: compilers are slow at reading them.
const LARGE: usize = 1 << 20;

/// Memory for a model whose sizes only data tells.
const MEMORY: u64 = 1 << 30;

/// The largest bound for such a size.
const MOST: i64 = 1 << 12;

/// A program as C code.
pub struct CEngine {
    lowered: Lowered,
    style: Style,
    /// The model, and the dims that it is bounded by.
    ready: Option<(Vec<i64>, Model)>,
}

impl CEngine {
    /// Ready to run; the C compiler is called for the first inputs.
    pub fn new(lowered: Lowered, target: &TargetDesc) -> CEngine {
        CEngine { lowered, style: Style::of(target), ready: None }
    }

    /// Compiles for dims up to these.
    fn compile(&self, dims: &[i64]) -> Result<Model, Problems> {
        let program = &self.lowered.program;
        let bounds = bounds(program, dims, MEMORY)?;
        let weights = if self.lowered.constants.len() > LARGE { Weights::Apart } else { Weights::Arrays };
        let options =
            Options { name: "model".to_owned(), model: "model".to_owned(), weights, openmp: false, style: self.style, bounds };
        let flags = std::env::var("CFLAGS").unwrap_or_default();
        Model::new(infc_c::source(&self.lowered, &options)?, &format!("{FLAGS} -O1 {flags}"))
    }
}

/// Bounds for a program: these dims, and for sizes that only data tells the largest power of two with which all values take no more than `memory` bytes.
pub(crate) fn bounds(program: &Program, dims: &[i64], memory: u64) -> Result<Bounds, Problems> {
    let mut bounds: Bounds = given_symbols(program).zip(dims).map(|(s, &n)| (program.symbols[s].name.clone(), n)).collect();
    bound_the_rest(program, &mut bounds, memory)?;
    Ok(bounds)
}

fn bound_the_rest(program: &Program, bounds: &mut Bounds, memory: u64) -> Result<(), Problems> {
    let open = bounded::unbounded(program, bounds);
    if open.is_empty() {
        return Ok(());
    }
    let mut most = MOST;
    loop {
        bounds.extend(open.iter().map(|&s| (program.symbols[s].name.clone(), most)));
        let small = bounded::layout(program, bounds).is_ok_and(|l| l.bytes.iter().sum::<u64>() <= memory);
        if small || most == 1 {
            return bounded::layout(program, bounds).map(drop);
        }
        most /= 2;
    }
}

impl Engine for CEngine {
    fn run(&mut self, inputs: &[Item]) -> Result<Vec<Item>, Problems> {
        let program = &self.lowered.program;
        check_inputs(program, inputs)?;
        let symbols = bind(program, inputs)?;
        // Models with values of the host were refused: they are all tensors.
        let inputs: Vec<&Tensor> = inputs.iter().filter_map(Item::as_tensor).collect();
        let dims: Vec<i64> = given_symbols(program).map(|s| symbols[s]).collect();
        let fits = |most: &[i64]| dims.iter().zip(most).all(|(n, most)| n <= most);
        if !self.ready.as_ref().is_some_and(|(most, _)| fits(most)) {
            self.ready = Some((dims.clone(), self.compile(&dims)?));
        }
        let (_, model) = self.ready.as_mut().expect("compiled above");
        let is_state = |i: usize| program.states.iter().any(|s| s.1 as usize == i);
        let given: Vec<&[u8]> = inputs.iter().enumerate().filter(|(i, _)| !is_state(*i)).map(|(_, t)| &t.bytes()[..]).collect();
        let (outputs, sizes) = model.run(&given, &dims)?;
        let mut out = vec![];
        for ((port, mut bytes), sizes) in program.outputs.iter().zip(outputs).zip(sizes) {
            let fixed: Option<Vec<i64>> = port.dims.iter().map(|d| d.eval(&[])).collect();
            let dims: Vec<usize> = fixed.unwrap_or(sizes).into_iter().map(|d| d.max(0) as usize).collect();
            bytes.truncate(dims.iter().product::<usize>() * port.element as usize);
            let dtype = DType::from_onnx(i32::from(port.dtype)).ok_or_else(|| {
                Problems::one(format!("output '{}'", port.name), "has an unknown dtype", "please report this model")
            })?;
            out.push(Item::Tensor(Tensor::from_bytes(dtype, dims, bytes)));
        }
        Ok(out)
    }
}
