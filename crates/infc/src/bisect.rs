//! Where the chain parts: the first node, pass or kernel at which two links give different values.
//!
//! ```text
//! stored outputs ~ interp ~ pass after pass ~ loops ~ machine code
//! ```
//!
//! Each link is taken as right if what comes out of it is. Passes are halved by number and then by rewrite; the lowered program
//! by cutting the graph after a node; kernels are replayed one by one, with what the loop interpreter has in memory.

use crate::c_engine::CEngine;
use crate::compare::{self, Tolerance};
use crate::compile::Options;
use crate::engine::{Backend, Engine};
use crate::loops_engine::Loops;
use infc_ir::graph::{Def, Graph, Node, Value};
use infc_ir::interp::{self, Item};
use infc_ir::{Problems, Type};
use infc_kernel::backend::Code;
use infc_kernel::loops::Kernel;
use infc_kernel::program::{self, Lowered};
use std::collections::HashMap;
use std::fmt;
use {
    crate::engine::loaded,
    crate::loops_engine::Launch,
    crate::replay,
    std::time::{Duration, Instant},
};

/// The stages that are looked at, as functions, so that tests can put a fault in one.
pub struct Chain<'a> {
    /// Passes, target and dims.
    pub options: &'a Options,
    /// From an optimised graph to loops.
    pub lower: &'a dyn Fn(&Graph) -> Result<Lowered, Problems>,
    /// From loops to machine code.
    pub emit: &'a dyn Fn(&[Kernel]) -> Result<Code, Problems>,
    /// What difference is allowed.
    pub allowed: Tolerance,
}

/// Where two links part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The two links.
    pub links: (&'static str, &'static str),
    /// The node, pass or kernel.
    pub place: String,
    /// The values that differ.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {} part at {}: {}", self.links.0, self.links.1, self.place, self.detail)
    }
}

/// How long the loop interpreter may look for a kernel.
const PATIENCE: Duration = Duration::from_secs(60);

/// [`find_with`] the stages of the compiler.
pub fn find(
    graph: &Graph,
    inputs: &[Item],
    stored: Option<&[Item]>,
    backend: Backend,
    options: &Options,
    allowed: Tolerance,
) -> Result<Option<Finding>, Problems> {
    let options = &crate::engine::options_of(backend, options);
    let lower = |g: &Graph| program::lower(g, &options.target, &vec![]);
    let emit = |kernels: &[Kernel]| crate::target::backend(&options.target)?.emit(kernels);
    find_with(graph, inputs, stored, backend, &Chain { options, lower: &lower, emit: &emit, allowed })
}

/// The first place where the chain up to `backend` parts, for these inputs; `None` if it does not.
pub fn find_with(
    graph: &Graph,
    inputs: &[Item],
    stored: Option<&[Item]>,
    backend: Backend,
    chain: &Chain,
) -> Result<Option<Finding>, Problems> {
    let reference = interp::run(graph, inputs)?;
    if let Some(stored) = stored
        && let Some((k, detail)) = differ(graph, &reference, stored, chain.allowed)
    {
        let v = graph.outputs()[k];
        let maker = if let Def::Output(n, _) = graph.value(v).def { graph.describe(n) } else { "the model itself".to_owned() };
        let place = format!("output '{}', made by {maker}", graph.value(v).name);
        return Ok(Some(Finding { links: ("stored", "interp"), place, detail }));
    }
    if backend == Backend::Interp {
        return Ok(None);
    }
    let passes = Passes { graph, inputs, reference: &reference, chain };
    if let Some(found) = passes.find()? {
        return Ok(Some(found));
    }
    let optimised = passes.run(passes.count(), None)?.0;
    match backend {
        Backend::Interp | Backend::Passes => Ok(None),
        last => Cuts::new(&optimised, inputs, chain, last)?.find(),
    }
}

/// The first output that differs, and how.
fn differ(graph: &Graph, got: &[Item], want: &[Item], allowed: Tolerance) -> Option<(usize, String)> {
    let kinds = compare::output_kinds(graph);
    got.iter().zip(want).enumerate().find_map(|(k, (got, want))| {
        let name = &graph.value(graph.outputs()[k]).name;
        Some((k, compare::compare(name, got, want, kinds[k], allowed).fault?))
    })
}

/// The least number in `right + 1..=wrong` that is wrong, if all before it are right.
fn first_wrong(mut right: usize, mut wrong: usize, mut is_wrong: impl FnMut(usize) -> bool) -> usize {
    while wrong - right > 1 {
        let middle = right + (wrong - right) / 2;
        if is_wrong(middle) { wrong = middle } else { right = middle }
    }
    wrong
}

struct Passes<'a> {
    graph: &'a Graph,
    inputs: &'a [Item],
    reference: &'a [Item],
    chain: &'a Chain<'a>,
}

impl Passes<'_> {
    fn count(&self) -> usize {
        self.chain.options.passes.pipeline.len()
    }

    /// The graph after the first `count` passes and at most `limit` rewrites; the number of rewrites.
    fn run(&self, count: usize, limit: Option<usize>) -> Result<(Graph, usize), Problems> {
        let options = self.chain.options;
        let mut passes = infc_passes::Options { bind: options.dims.clone(), rewrite_limit: limit, ..options.passes.clone() };
        passes.pipeline.truncate(count);
        let mut graph = self.graph.clone();
        let report = infc_passes::run(&mut graph, &passes)?;
        Ok((graph, report.rewrites()))
    }

    /// What is wrong with the outputs after so many passes and rewrites.
    fn fault(&self, count: usize, limit: Option<usize>) -> Option<String> {
        let outputs = self.run(count, limit).and_then(|(graph, _)| interp::run(&graph, self.inputs));
        match outputs {
            Ok(got) => differ(self.graph, &got, self.reference, self.chain.allowed).map(|d| d.1),
            Err(problems) => Some(problems.to_string()),
        }
    }

    fn find(&self) -> Result<Option<Finding>, Problems> {
        let all = self.count();
        let Some(detail) = self.fault(all, None) else { return Ok(None) };
        let count = first_wrong(0, all, |k| self.fault(k, None).is_some());
        let name = &self.chain.options.passes.pipeline[count - 1];
        let mut place = format!("pass '{name}' (number {count} of {all})");
        let rewrites = self.run(count, None).map_or(0, |r| r.1);
        if rewrites > 0 && self.fault(count, Some(0)).is_none() && self.fault(count, Some(rewrites)).is_some() {
            let rewrite = first_wrong(0, rewrites, |k| self.fault(count, Some(k)).is_some());
            let (before, after) = (self.run(count, Some(rewrite - 1))?.0, self.run(count, Some(rewrite))?.0);
            place += &format!(", rewrite {rewrite} of all passes together: {}", touched(&before, &after));
        }
        Ok(Some(Finding { links: ("interp", "passes"), place, detail }))
    }
}

/// The node that a rewrite made or changed, else the one that it removed.
fn touched(before: &Graph, after: &Graph) -> String {
    let live = |g: &Graph| g.live_regions().into_iter().flat_map(|r| g.region(r).nodes.clone()).collect::<Vec<Node>>();
    let same = |n: Node| before.nodes.get(n.index()) == after.nodes.get(n.index());
    let (old, new) = (live(before), live(after));
    let changed = new.iter().find(|&&n| !same(n) || !old.contains(&n)).map(|&n| after.describe(n));
    let removed = || old.iter().find(|n| !new.contains(n)).map(|&n| format!("{}, which it removes", before.describe(n)));
    changed.or_else(removed).unwrap_or_else(|| "no node of its own".to_owned())
}

/// An optimised graph, cut after its nodes one by one.
struct Cuts<'a> {
    graph: &'a Graph,
    inputs: &'a [Item],
    chain: &'a Chain<'a>,
    /// The last link: the loop interpreter, machine code or C.
    last: Backend,
    /// The nodes whose results are tensors, with what the interpreter gives.
    nodes: Vec<(Node, Vec<Item>)>,
    outputs: Vec<Item>,
}

impl<'a> Cuts<'a> {
    fn new(graph: &'a Graph, inputs: &'a [Item], chain: &'a Chain<'a>, last: Backend) -> Result<Cuts<'a>, Problems> {
        let mut seen: HashMap<Node, Vec<Item>> = HashMap::new();
        let outputs = interp::run_with(graph, inputs, &mut |n, items| drop(seen.insert(n, items.to_vec())))?;
        let tensors = |n: &Node| graph.node(*n).outputs.iter().all(|&v| matches!(graph.ty(v), Type::Tensor(_)));
        let main = graph.region(Graph::MAIN).nodes.iter().copied().filter(tensors);
        let nodes = main.filter_map(|n| Some((n, seen.remove(&n)?))).collect();
        Ok(Cuts { graph, inputs, chain, last, nodes, outputs })
    }

    /// The graph that ends after the first `count` nodes, with what it should give; the whole graph if that is more than there are.
    fn cut(&self, count: usize) -> Result<(Graph, &[Item]), Problems> {
        let Some((node, want)) = self.nodes.get(count - 1) else { return Ok((self.graph.clone(), &self.outputs)) };
        let mut graph = self.graph.clone();
        let results: Vec<Value> = graph.node(*node).outputs.clone();
        for (k, v) in results.iter().enumerate() {
            let name = format!("result {k} of {}", self.graph.describe(*node));
            graph.values[v.index()].name = name;
        }
        graph.regions[Graph::MAIN.index()].results = results;
        let dce = infc_passes::Options { pipeline: vec!["dce".to_owned()], ..infc_passes::Options::default() };
        infc_passes::run(&mut graph, &dce)?;
        Ok((graph, want))
    }

    fn fault(&self, count: usize) -> Option<String> {
        self.fault_of(count, self.last)
    }

    /// What is wrong with a cut as this link runs it.
    fn fault_of(&self, count: usize, link: Backend) -> Option<String> {
        let outcome = self.cut(count).and_then(|(graph, want)| {
            let lowered = (self.chain.lower)(&graph)?;
            let got = match link {
                Backend::Interp | Backend::Passes | Backend::Loops => Loops::new(lowered).run(self.inputs)?,
                #[cfg(feature = "llvm")]
                Backend::Llvm => native(lowered, self.chain)?.run(self.inputs)?,
                #[cfg(feature = "cranelift")]
                Backend::Cranelift => native(lowered, self.chain)?.run(self.inputs)?,
                Backend::Plugin => native(lowered, self.chain)?.run(self.inputs)?,
                Backend::C => CEngine::new(lowered, &self.chain.options.target).run(self.inputs)?,
                #[cfg(feature = "llvm")]
                Backend::Wasm => crate::web_engine::WebEngine::new(lowered, self.chain.options).run(self.inputs)?,
                #[cfg(feature = "ptx")]
                Backend::Ptx | Backend::Gpu => {
                    crate::ptx_engine::prepare(lowered, &self.chain.options.target)?.run(self.inputs)?
                }
            };
            Ok(differ(&graph, &got, want, self.chain.allowed).map(|d| d.1))
        });
        outcome.unwrap_or_else(|problems| Some(problems.to_string()))
    }

    fn find(&self) -> Result<Option<Finding>, Problems> {
        let all = self.nodes.len() + 1;
        let Some(whole) = self.fault(all) else { return Ok(None) };
        let count = first_wrong(0, all, |k| self.fault(k).is_some());
        let node = match self.nodes.get(count - 1) {
            Some((node, _)) => self.graph.describe(*node),
            None => "the whole model (each node by itself is right)".to_owned(),
        };
        let detail = self.fault(count).unwrap_or(whole);
        let (links, kernel) = match self.last {
            Backend::Interp | Backend::Passes | Backend::Loops => (("passes", "loops"), String::new()),
            #[cfg(feature = "llvm")]
            Backend::Llvm => self.kernel(count).unwrap_or_else(|problems| (("passes", "llvm"), format!(" ({problems})"))),
            #[cfg(feature = "cranelift")]
            Backend::Cranelift => {
                self.kernel(count).unwrap_or_else(|problems| (("passes", "cranelift"), format!(" ({problems})")))
            }
            Backend::Plugin => self.kernel(count).unwrap_or_else(|problems| (("passes", "plugin"), format!(" ({problems})"))),
            Backend::C if self.fault_of(count, Backend::Loops).is_some() => (("passes", "loops"), String::new()),
            Backend::C => (("loops", "c"), String::new()),
            #[cfg(feature = "llvm")]
            Backend::Wasm if self.fault_of(count, Backend::Loops).is_some() => (("passes", "loops"), String::new()),
            #[cfg(feature = "llvm")]
            Backend::Wasm => (("loops", "wasm"), String::new()),
            #[cfg(feature = "ptx")]
            Backend::Ptx | Backend::Gpu if self.fault_of(count, Backend::Loops).is_some() => (("passes", "loops"), String::new()),
            #[cfg(feature = "ptx")]
            Backend::Ptx | Backend::Gpu => (("loops", "ptx"), String::new()),
        };
        Ok(Some(Finding { links, place: format!("{node}{kernel}"), detail }))
    }

    /// Whose fault a wrong cut is: that of the loops, or that of the machine code of one kernel.
    fn kernel(&self, count: usize) -> Result<((&'static str, &'static str), String), Problems> {
        let link = self.last.name();
        let (graph, want) = self.cut(count)?;
        let mut lowered = (self.chain.lower)(&graph)?;
        let code = (self.chain.emit)(&lowered.kernels)?;
        replay::place(&mut lowered.program, &code);
        let (program, kernels) = (lowered.program.clone(), lowered.kernels.clone());
        let start = Instant::now();
        let mut found = None;
        let mut late = false;
        let run = Loops::new(lowered).watched(self.inputs, &mut |launch: &Launch| {
            late = start.elapsed() > PATIENCE;
            if late || found.is_some() {
                return Ok(false);
            }
            let kernel = &kernels[launch.kernel as usize];
            let native = replay::launch(launch, &program, &code, self.chain.options)?;
            found = native.iter().find_map(|(buffer, got)| {
                let after = launch.after.iter().find(|(b, _)| b == buffer).map(|(_, bytes)| &bytes[..])?;
                let fault = replay::differ(kernel, launch, *buffer, got, after, self.chain.allowed)?;
                Some(format!(", in kernel '{}': {fault}", kernel.name))
            });
            Ok(true)
        });
        Ok(match (found, run) {
            (Some(kernel), _) => (("loops", link), kernel),
            (None, _) if late => (("passes", link), String::new()),
            (None, Err(problems)) => (("passes", "loops"), format!(" ({problems})")),
            (None, Ok(got)) if differ(&graph, &got, want, self.chain.allowed).is_some() => (("passes", "loops"), String::new()),
            (None, Ok(_)) => (("loops", link), ", between kernels".to_owned()),
        })
    }
}

fn native(mut lowered: Lowered, chain: &Chain) -> Result<Box<dyn Engine>, Problems> {
    let code = (chain.emit)(&lowered.kernels)?;
    replay::place(&mut lowered.program, &code);
    loaded(&replay::artifact(&lowered.program, &code, &lowered.constants.to_vec(), chain.options), chain.options)
}
