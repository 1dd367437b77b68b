//! A model as a module of WebAssembly, run by Node.js through the script that belongs to it: what `infc verify --backend wasm` runs.
//!
//! As C code, dims that the model leaves open stay parameters, bounded by the first shapes; larger ones are compiled anew.

use crate::c_engine::bounds;
use crate::compile::Options;
use crate::engine::{Backend, Engine, options_of};
use crate::loops_engine::{bind, check_inputs};
use crate::native::{self, Weights};
use crate::remote::{Elsewhere, Remote};
use infc_ir::Problems;
use infc_ir::interp::Item;
use infc_kernel::bounded;
use infc_kernel::program::Lowered;
use infc_kernel::target::TargetDesc;
use infc_runtime::worker::HELLO;
use std::sync::{Arc, OnceLock};

const WORKER: &str = include_str!("native/web/worker.mjs");

/// Memory for a model whose sizes only data tells: outputs are poisoned before each run.
const MEMORY: u64 = 1 << 26;

/// The environment may name Node.js.
const VARIABLE: &str = "NODE";

/// A program that is compiled when its first inputs come.
pub struct WebEngine {
    lowered: Lowered,
    target: TargetDesc,
    /// The model, and the dims that it is bounded by.
    ready: Option<(Vec<i64>, Remote)>,
}

/// Node.js with the worker, one for all models.
fn node() -> Result<Arc<Elsewhere>, Problems> {
    static NODE: OnceLock<Result<Arc<Elsewhere>, Problems>> = OnceLock::new();
    let start = || {
        let program = std::env::var(VARIABLE).unwrap_or_else(|_| "node".to_owned());
        let command = [program.as_str(), "--input-type=module", "--eval", WORKER, HELLO];
        let help =
            format!("install Node.js, version 17 or later (Debian, Ubuntu: apt-get install nodejs), or name it in {VARIABLE}");
        Elsewhere::with(command.map(str::to_owned).to_vec(), format!("Node.js ('{program}')"), help)
    };
    NODE.get_or_init(start).clone()
}

impl WebEngine {
    /// Ready to run.
    pub fn new(lowered: Lowered, options: &Options) -> WebEngine {
        let target = options_of(Backend::Wasm, options).target;
        WebEngine { lowered, target, ready: None }
    }

    /// Compiles for dims up to these.
    fn compile(&self, dims: &[i64]) -> Result<Remote, Problems> {
        let layout = bounded::layout(&self.lowered.program, &bounds(&self.lowered.program, dims, MEMORY)?)?;
        let web = native::module(&self.lowered, &layout, &self.target, "model", "model", Weights::Inside)?;
        let mut message = vec![];
        for length in [web.dtypes.len(), web.script.len()] {
            message.extend((length as u64).to_le_bytes());
        }
        message.extend(&web.dtypes);
        message.extend(web.script.bytes());
        message.extend(&web.wasm);
        node()?.load(&message)
    }
}

impl Engine for WebEngine {
    fn run(&mut self, inputs: &[Item]) -> Result<Vec<Item>, Problems> {
        let program = &self.lowered.program;
        check_inputs(program, inputs)?;
        let symbols = bind(program, inputs)?;
        let dims: Vec<i64> = bounded::given(program).map(|s| symbols[s]).collect();
        let fits = |most: &[i64]| dims.iter().zip(most).all(|(n, most)| n <= most);
        if !self.ready.as_ref().is_some_and(|(most, _)| fits(most)) {
            self.ready = None;
            self.ready = Some((dims.clone(), self.compile(&dims)?));
        }
        let is_state = |i: &usize| program.states.iter().any(|s| s.1 as usize == *i);
        let given: Vec<Item> = (0..inputs.len()).filter(|i| !is_state(i)).map(|i| inputs[i].clone()).collect();
        self.ready.as_mut().expect("it was just made").1.run(&given)
    }
}
