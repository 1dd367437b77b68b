//! Compiled code as the executor of `infc-compress`.

use crate::compile::{self, Options};
use crate::engine::{Engine, Native};
use infc_compress::{Executor, Runner};
use infc_ir::interp::Item;
use infc_ir::{Graph, Problems, Tensor};
use infc_runtime::Model;

/// Compiles models and runs them on this computer.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// For what machine, and how. Symbolic dims stay open unless they are given.
    pub options: Options,
}

impl Executor for Compiler {
    fn load(&self, graph: &Graph) -> Result<Box<dyn Runner>, Problems> {
        let artifact = compile::compile(graph.clone(), &self.options)?.artifact.to_bytes();
        let model = Model::from_bytes(&artifact).map_err(|e| Problems::one("the artifact just made", e.to_string(), ""))?;
        let native = Native::new(model, infc_runtime::Options::default())?;
        Ok(Box::new(Running { native, bytes: artifact.len() as u64 }))
    }
    fn name(&self) -> String {
        self.options.target.name.clone()
    }
    fn measures(&self) -> bool {
        true
    }
}

/// A compiled model as a runner.
pub struct Running {
    /// The session.
    pub native: Native,
    /// Bytes of the artifact.
    pub bytes: u64,
}

impl Runner for Running {
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problems> {
        let items: Vec<Item> = inputs.iter().cloned().map(Item::Tensor).collect();
        let tensor = |(i, item): (usize, Item)| match item {
            Item::Tensor(t) => Ok(t),
            _ => Err(Problems::one(
                format!("output {i}"),
                "is no tensor",
                "models with sequences, optionals or maps cannot be compressed",
            )),
        };
        self.native.run(&items)?.into_iter().enumerate().map(tensor).collect()
    }
    fn bytes(&self) -> Option<u64> {
        Some(self.bytes)
    }
}
