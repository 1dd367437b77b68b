//! Verification of test folders: a backend's outputs against the stored ones, many folders side by side.

use crate::bisect::{self, Finding};
use crate::cases::Case;
use crate::compare::{self, Kind, Outcome, Tolerance};
use crate::compile;
use crate::effort;
use crate::engine::{self, Backend, Engine, Native};
use crate::inputs::{self, Source};
use infc_ir::interp::Item;
use infc_ir::{Graph, Problems, Value};
use infc_runtime::{Model, PortInfo};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once, mpsc};
use std::time::{Duration, Instant};

/// How to verify.
#[derive(Clone, Debug)]
pub struct Options {
    /// What runs the models.
    pub backend: Backend,
    /// Overrides what `tol.json` and the default say.
    pub rtol: Option<f64>,
    /// Overrides what `tol.json` and the default say.
    pub atol: Option<f64>,
    /// Tolerances alone decide: nothing is excused because of quantisers.
    pub strict: bool,
    /// Compile anew for the shapes of each data set, instead of once with symbolic dims.
    pub fixed: bool,
    /// Where outputs differ, look for the first node, pass or kernel where they part.
    pub bisect: bool,
    /// Leave out models whose runs take more than so many million operations.
    pub max_mflop: Option<f64>,
    /// How many models at a time.
    pub jobs: usize,
    /// Values of symbolic dims for made-up inputs; the others are 1.
    pub dims: BTreeMap<String, i64>,
    /// An artifact that runs instead of what a backend makes of the model.
    pub artifact: Option<Arc<Model>>,
    /// How to compile, for the backends that do.
    pub compile: compile::Options,
}

impl Options {
    /// The allowed difference where the case or the default says `own`. In precisions of fewer bits an SQNR is enough, unless tolerances alone are to decide.
    fn allowed(&self, own: Tolerance) -> Tolerance {
        let compiled = !matches!(self.backend, Backend::Interp | Backend::Passes) && !self.strict;
        let sqnr = if compiled { compare::signal_needed(self.compile.target.math) } else { None };
        Tolerance { rtol: self.rtol.unwrap_or(own.rtol), atol: self.atol.unwrap_or(own.atol), sqnr }
    }
}

/// How a model fared.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// All outputs of all data sets are right.
    Passed,
    /// Something is wrong: what, in a line or more.
    Failed(String),
    /// Something is wrong, and the list of gaps says so: its reason.
    Gap(String),
    /// There is nothing to compare with.
    NoOutputs,
    /// A run takes so many million operations, more than asked for.
    TooLarge(f64),
}

/// What verification found about a model.
#[derive(Clone, Debug)]
pub struct Report {
    /// The case's name.
    pub name: String,
    /// How it fared.
    pub verdict: Verdict,
    /// Data sets that were compared.
    pub sets: usize,
    /// The largest difference.
    pub worst: Outcome,
    /// Operators that ran on the host, each once.
    pub host: Vec<String>,
    /// How long it took.
    pub time: Duration,
}

/// Stack of a thread that works on a model: deeply nested expressions are recursive.
const STACK: usize = 256 << 20;

/// Verifies all cases; `done` gets the reports in order, and may judge anew.
pub fn all(cases: &[Case], options: &Options, done: &mut dyn FnMut(&mut Report)) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, cases.len().max(1)) {
            let (send, next) = (send.clone(), &next);
            let work = move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(i) else { return };
                    if send.send((i, one(case, options))).is_err() {
                        return;
                    }
                }
            };
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).expect("the system gives a thread");
        }
        drop(send);
        let mut reports: Vec<Option<Report>> = vec![None; cases.len()];
        let mut told = 0;
        for (i, report) in receive {
            reports[i] = Some(report);
            while let Some(Some(report)) = reports.get_mut(told) {
                done(report);
                told += 1;
            }
        }
        reports.into_iter().flatten().collect()
    })
}

/// Verifies a case. A panic on the way is a failure of this case.
pub fn one(case: &Case, options: &Options) -> Report {
    let start = Instant::now();
    let large = catch_panic(|| too_large(case, options));
    if let Ok(Ok(Some(mflop))) = large {
        let (worst, time) = (Outcome::default(), start.elapsed());
        return Report { name: case.name.clone(), verdict: Verdict::TooLarge(mflop), sets: 0, worst, host: vec![], time };
    }
    let mut host = vec![];
    let (verdict, sets, worst) = match catch_panic(|| check(case, options, &mut host)) {
        Ok(Ok((sets, worst))) => {
            let verdict = match &worst.fault {
                _ if sets == 0 => Verdict::NoOutputs,
                Some(fault) => Verdict::Failed(fault.clone()),
                None => Verdict::Passed,
            };
            (verdict, sets, worst)
        }
        Ok(Err(problems)) => (Verdict::Failed(problems.to_string()), 0, Outcome::default()),
        Err(panic) => (Verdict::Failed(format!("a bug in infc: {panic}")), 0, Outcome::default()),
    };
    Report { name: case.name.clone(), verdict, sets, worst, host, time: start.elapsed() }
}

/// The million operations of a run on the first data set, if that is more than the limit.
fn too_large(case: &Case, options: &Options) -> Result<Option<f64>, Problems> {
    let (Some(most), Some(set)) = (options.max_mflop, case.sets.first()) else { return Ok(None) };
    let graph = compile::import(&case.model)?;
    let inputs = set.read_inputs(&graph)?;
    let mflop = effort::operations(&compile::lower(graph, &options.compile)?, &inputs) / 1e6;
    Ok(Some(mflop).filter(|&m| m > most))
}

/// The operators of nodes as they are described (`Gather 'embed' (opset 18)`), each once.
fn operators(nodes: &[String], out: &mut Vec<String>) {
    for name in nodes.iter().filter_map(|n| n.split_whitespace().next()) {
        if !out.iter().any(|o| o == name) {
            out.push(name.to_owned());
        }
    }
}

/// The number of sets compared, and the worst outcome; tells the operators that run on the host.
fn check(case: &Case, options: &Options, host: &mut Vec<String>) -> Result<(usize, Outcome), Problems> {
    if !case.alone && !case.has_outputs() {
        return Ok((0, Outcome::default()));
    }
    let graph = compile::import(&case.model)?;
    if case.alone {
        return check_alone(&graph, options, host);
    }
    let mut kinds = compare::output_kinds(&graph);
    if options.strict {
        kinds.iter_mut().filter(|k| **k != Kind::Random).for_each(|k| *k = Kind::Plain);
    }
    let allowed = case.tolerance.unwrap_or_default();
    let allowed = options.allowed(allowed);
    let mut engine = if options.fixed { None } else { Some(prepare(&graph, options, &options.compile)?) };
    let (mut sets, mut worst, mut found) = (0, Outcome::default(), None);
    for set in case.sets.iter().filter(|s| !s.outputs.is_empty()) {
        let named = |p: Problems| in_set(p, &set.name);
        let inputs = set.read_inputs(&graph).map_err(named)?;
        if options.fixed {
            let compile = set_options(&graph, &inputs, options);
            engine = Some(prepare(&graph, options, &compile).map_err(named)?);
        }
        let engine = engine.as_mut().expect("made above, or for this set");
        operators(&engine.host_nodes(), host);
        let want = set.read_outputs(&graph).map_err(named)?;
        let find =
            || bisect::find(&graph, &inputs, Some(&want), options.backend, &set_options(&graph, &inputs, options), allowed);
        let got = engine.run(&inputs).map_err(|p| if options.bisect { located(p, find()) } else { p }).map_err(named)?;
        for (i, want) in want.iter().enumerate() {
            let name = &graph.value(graph.outputs()[i]).name;
            let mut outcome = compare::compare(name, &got[i], want, kinds[i], allowed);
            outcome.fault = outcome.fault.map(|f| format!("{}: {f}", set.name));
            worst = worst.worse(outcome);
        }
        if options.bisect && found.is_none() && worst.fault.is_some() {
            found = Some(find());
        }
        sets += 1;
    }
    Ok((sets, explained(worst, found)))
}

/// What runs the model.
fn prepare(graph: &Graph, options: &Options, compile: &compile::Options) -> Result<Box<dyn Engine>, Problems> {
    let Some(model) = &options.artifact else { return engine::prepare(graph.clone(), options.backend, compile) };
    let names = |values: &[Value]| values.iter().map(|&v| graph.value(v).name.clone()).collect::<Vec<_>>();
    let of_artifact = |ports: &[PortInfo]| ports.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let pairs = [
        ("inputs", of_artifact(model.inputs()), names(graph.inputs())),
        ("outputs", of_artifact(model.outputs()), names(graph.outputs())),
    ];
    for (what, have, want) in pairs {
        if have != want {
            let message = format!("its {what} are {}, those of the model {}", have.join(", "), want.join(", "));
            return Err(Problems::one("the artifact", message, "give the artifact that this model was compiled to"));
        }
    }
    Ok(Box::new(Native::new(model.clone(), infc_runtime::Options::default())?))
}

/// How to compile for the shapes of a data set.
fn set_options(graph: &Graph, inputs: &[Item], options: &Options) -> compile::Options {
    let mut compile = options.compile.clone();
    if options.fixed {
        compile.dims = engine::symbols_of(graph, inputs).into_iter().map(|(s, n)| (s.to_owned(), n)).collect();
    }
    compile
}

type Found = Result<Option<Finding>, Problems>;

/// What bisection found, in a line.
fn place(found: Found) -> String {
    match found {
        Ok(Some(finding)) => finding.to_string(),
        Ok(None) => "the links agree when they are run one by one: what is wrong is kept between runs".to_owned(),
        Err(problems) => format!("no place was found: {problems}"),
    }
}

/// Adds to what is wrong what bisection found, for the first inputs with a difference.
fn explained(mut outcome: Outcome, found: Option<Found>) -> Outcome {
    if let (Some(fault), Some(found)) = (&mut outcome.fault, found) {
        *fault += &format!("\n{}", place(found));
    }
    outcome
}

/// Adds what bisection found to why a run stopped.
fn located(mut problems: Problems, found: Found) -> Problems {
    if let Some(last) = problems.0.last_mut() {
        last.message += &format!("\n{}", place(found));
    }
    problems
}

/// How many seeds a model alone is tried with.
const SEEDS: u64 = 3;

/// Compares the backend with the interpreter on made-up inputs.
fn check_alone(graph: &Graph, options: &Options, host: &mut Vec<String>) -> Result<(usize, Outcome), Problems> {
    let kinds = compare::output_kinds(graph);
    let default = Tolerance::default();
    let allowed = options.allowed(default);
    let dims: Vec<(String, i64)> = options.dims.iter().map(|(n, v)| (n.clone(), *v)).collect();
    compile::check_names(graph, &compile::Options { dims: dims.clone(), ..options.compile.clone() })?;
    let compile = compile::Options { dims: if options.fixed { dims } else { vec![] }, ..options.compile.clone() };
    let mut engine = prepare(graph, options, &compile)?;
    operators(&engine.host_nodes(), host);
    let (mut worst, mut found) = (Outcome::default(), None);
    for seed in 0..SEEDS {
        let value = |&v: &Value| inputs::make(&Source::Random(seed), &graph.value(v).name, graph.ty(v), &options.dims);
        let inputs = graph.inputs().iter().map(value).collect::<Result<Vec<_>, _>>()?;
        let want = infc_ir::interp::run(graph, &inputs).map_err(|p| in_set(p, "interpreter"))?;
        let got = engine.run(&inputs)?;
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let mut outcome = compare::compare(&graph.value(graph.outputs()[i]).name, got, want, kinds[i], allowed);
            outcome.fault = outcome.fault.map(|f| format!("inputs of seed {seed}: {f}"));
            worst = worst.worse(outcome);
        }
        if options.bisect && found.is_none() && worst.fault.is_some() {
            found = Some(bisect::find(graph, &inputs, None, options.backend, &compile, allowed));
        }
    }
    Ok((SEEDS as usize, explained(worst, found)))
}

fn in_set(mut problems: Problems, set: &str) -> Problems {
    for p in problems.0.iter_mut().filter(|p| p.at != set) {
        p.at = format!("{set}: {}", p.at);
    }
    problems
}

thread_local! {
    /// Where a panic of this thread is noted instead of printed; `None` where panics are printed as ever.
    static NOTE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `f`; a panic becomes an error with its message and place, and is not printed.
fn catch_panic<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let noted = NOTE.with_borrow_mut(|note| note.as_mut().map(|n| *n = info.to_string().replace('\n', " ")).is_some());
            if !noted {
                before(info);
            }
        }));
    });
    NOTE.set(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(f));
    let note = NOTE.take();
    result.map_err(|_| note.unwrap_or_default())
}
