//! How this crate runs models: an [`Executor`] makes a graph ready, a [`Runner`] runs it. Taps, the inner values that calibration and
//! comparison look at, are ordinary outputs of the graph.

use infc_ir::graph::{Def, Graph, Value};
use infc_ir::{Problems, Tensor, interp};
use std::time::Duration;

/// Makes models ready to run.
pub trait Executor {
    /// Makes a graph ready.
    fn load(&self, graph: &Graph) -> Result<Box<dyn Runner>, Problems>;
    /// The machine that it runs on, for reports.
    fn name(&self) -> String;
    /// True if times of its runs say something of the target.
    fn measures(&self) -> bool;
    /// Told that `done` of `of` parts of a stage of something long are done.
    fn progress(&self, _stage: &str, _done: usize, _of: usize) {}
}

/// A model made ready.
pub trait Runner {
    /// Inputs and outputs in the order of the graph.
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problems>;
    /// Bytes of its compiled form, if there is one.
    fn bytes(&self) -> Option<u64> {
        None
    }
    /// The least time of a run on these inputs, of at least five runs and for `budget` of time: what else the machine does only adds to it.
    fn time(&mut self, inputs: &[Tensor], budget: Duration) -> Result<Duration, Problems> {
        self.run(inputs)?;
        let (begin, mut times) = (std::time::Instant::now(), vec![]);
        while times.len() < 5 || begin.elapsed() < budget && times.len() < 10_000 {
            let start = std::time::Instant::now();
            self.run(inputs)?;
            times.push(start.elapsed());
        }
        Ok(times.into_iter().min().unwrap_or_default())
    }
}

/// Runs graphs with the interpreter: slow, and what everything else is checked against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interpreter;

impl Executor for Interpreter {
    fn load(&self, graph: &Graph) -> Result<Box<dyn Runner>, Problems> {
        Ok(Box::new(Interpreted(graph.clone())))
    }
    fn name(&self) -> String {
        "interpreter".to_owned()
    }
    fn measures(&self) -> bool {
        false
    }
}

struct Interpreted(Graph);

impl Runner for Interpreted {
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problems> {
        interp::run_tensors(&self.0, inputs)
    }
}

/// The graph with the values of `taps` as further outputs, and for each tap the number of its output. Constants and inputs are no
/// taps: they are known already.
pub fn tapped(graph: &Graph, taps: &[Value]) -> (Graph, Vec<usize>) {
    let mut g = graph.clone();
    let mut at = vec![];
    for &v in taps {
        assert!(matches!(g.value(v).def, Def::Output(..)), "only what a node computes is tapped");
        let results = &mut g.regions[Graph::MAIN.index()].results;
        match results.iter().position(|&r| r == v) {
            Some(k) => at.push(k),
            None => {
                results.push(v);
                at.push(results.len() - 1);
                if g.value(v).name.is_empty() {
                    g.values[v.index()].name = format!("infc.tap.{}", v.0);
                }
            }
        }
    }
    (g, at)
}
