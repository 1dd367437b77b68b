//! Tuning: sizes of plans that were timed on a machine, and the file that keeps them.
//!
//! All steps are timed at once, where they stand: the model is compiled with one candidate for each step, and its runs are timed step by step,
//! so that caches are as in the model. A few such builds and one with the sizes of now run in turns; of each step the lower quartile of its
//! times counts. Who wins by [`MARGIN`] is looked around again, and in the end new sizes must win against the analytic ones twice, in
//! memory taken anew: what comes from memory depends on the pages that a build happens to have.

use crate::compile::{self, Compiled, Options};
use crate::engine::{Engine, Native};
use crate::{compare, inputs};
use infc_artifact::program::{Program, Step};
use infc_ir::interp::Item;
use infc_ir::{DType, Graph, Problem, Problems};
use infc_kernel::program::{self, Lowered};
use infc_kernel::target::TargetDesc;
use infc_kernel::tuning::{Choices, Sizes, Tunable};
use infc_runtime::Model;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The version of the file's format.
const FORMAT: i64 = 1;

/// The share of the time that another plan must save to be taken.
pub const MARGIN: f64 = 0.02;

/// How often sizes are looked for around the best ones of before.
const PASSES: usize = 2;

/// Most candidates of a step in a pass.
const CANDIDATES: usize = 20;

/// How often the new sizes must win in the end.
const CONFIRM: usize = 2;

/// Builds that are timed beside the one with the sizes of now.
const BESIDE: usize = 3;

/// What was measured on a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Version of the format.
    format: i64,
    /// Version of the compiler.
    infc: String,
    /// Name of the machine that code is made for.
    pub target: String,
    /// The name of the CPU on which it was measured.
    pub cpu: String,
    /// What was timed, sorted.
    #[serde(default, rename = "step", skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Timed>,
}

/// A step that was timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// What it is, for people.
    pub what: String,
    /// The key by which planning finds it.
    pub key: String,
    /// The sizes to take.
    pub plan: String,
    /// Those that the cost model takes.
    pub analytic: String,
    /// Time of a launch with the sizes of the cost model, in microseconds.
    pub analytic_us: f64,
    /// Time of a launch with the sizes to take, in microseconds.
    pub best_us: f64,
}

impl Tuning {
    /// Nothing measured yet.
    pub fn new(target: &str, cpu: &str) -> Tuning {
        let infc = env!("CARGO_PKG_VERSION").to_owned();
        Tuning { format: FORMAT, infc, target: target.to_owned(), cpu: cpu.to_owned(), steps: vec![] }
    }

    /// Reads a file's text; `at` is its name. All that is wrong with it is told at once.
    pub fn parse(text: &str, at: &str) -> Result<Tuning, Problems> {
        const AGAIN: &str = "delete it, and make a new one with `infc compile --tune FILE`";
        let wrong = |message: String, help: &str| Problems::one(at, message, help);
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| wrong(format!("is no tuning file: {e}"), AGAIN))?;
        match table.get("format") {
            Some(toml::Value::Integer(FORMAT)) => {}
            Some(other) => return Err(wrong(format!("has format {other}, this version of infc reads {FORMAT}"), AGAIN)),
            None => return Err(wrong("is no tuning file: it has no line 'format = 1'".to_owned(), AGAIN)),
        }
        let mut tuning: Tuning = table.try_into().map_err(|e| wrong(format!("is no tuning file: {e}"), AGAIN))?;
        let mut problems = vec![];
        let mut seen = BTreeMap::new();
        for (number, step) in tuning.steps.iter().enumerate() {
            let mut tell = |message: String, help: &str| {
                let at = format!("{at}: step {} ({})", number + 1, step.key);
                problems.push(Problem { at, message, help: help.to_owned() });
            };
            for (name, text) in [("plan", &step.plan), ("analytic", &step.analytic)] {
                if let Err(why) = text.parse::<Sizes>() {
                    tell(format!("{name}: {why}"), "take the step out of the file, then time it again with --tune");
                }
            }
            if let Some(first) = seen.insert(&step.key, number) {
                tell(format!("has the key of step {}", first + 1), "take one of the two out");
            }
        }
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        tuning.sort();
        Ok(tuning)
    }

    /// Is it of this version and for this machine?
    pub fn check(&self, at: &str, target: &TargetDesc) -> Result<(), Problems> {
        let mut problems = vec![];
        let mut tell = |message: String, help: String| problems.push(Problem { at: at.to_owned(), message, help });
        let version = env!("CARGO_PKG_VERSION");
        if self.infc != version {
            let message = format!("was measured with infc {}, this is {version}, whose plans may be others", self.infc);
            tell(message, "measure again: name a new file with --tune".to_owned());
        }
        if self.target != target.name {
            let message = format!("was measured for {}, and code is to be made for {}", self.target, target.name);
            tell(
                message,
                format!("add --cpu {}, or measure for {} into a file of its own with --tune", self.target, target.name),
            );
        }
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }

    /// Its text: the same for the same content.
    pub fn to_toml(&self) -> String {
        let head = "# Sizes of plans, measured by `infc compile --tune`; `--tuning` reads them.\n";
        head.to_owned() + &toml::to_string(self).expect("plain data")
    }

    /// What planning takes from it.
    pub fn choices(&self) -> Choices {
        let sizes = self.steps.iter().filter_map(|s| Some((s.key.clone(), s.plan.parse().ok()?)));
        Choices { sizes: sizes.collect(), ..Choices::default() }
    }

    fn sort(&mut self) {
        self.steps.sort_by(|a, b| (&a.what, &a.key).cmp(&(&b.what, &b.key)));
    }
}

/// Takes the time of builds of one model.
pub trait Timer {
    /// Nanoseconds in a run of each launch, in the order of [`Lowered::launches`], for each of the builds.
    fn time(&mut self, builds: Vec<Compiled>) -> Result<Vec<Vec<f64>>, Problems>;
}

/// What tuning did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Steps that have a choice of sizes.
    pub tunable: usize,
    /// Steps that were timed, in the order of the model.
    pub timed: Vec<Line>,
    /// Builds that were compiled and timed.
    pub builds: usize,
    /// Time of all launches of a run, with the sizes of before and of now, in microseconds. 0 where nothing was timed.
    pub before_us: f64,
    /// See `before_us`.
    pub after_us: f64,
}

/// A step that was timed, for a table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The step.
    #[serde(flatten)]
    pub step: Timed,
    /// Its launches in a run.
    pub launches: usize,
    /// Candidates that were timed.
    pub candidates: usize,
}

/// How many steps of a model have a choice, and of how many of them `tuning` has nothing. An error if what it has does not fit them.
pub fn missing(graph: &Graph, options: &Options, tuning: &Tuning) -> Result<(usize, usize), Problems> {
    let choices = Choices { list: true, ..tuning.choices() };
    let all = program::lower_with(graph, &options.target, &options.states, &choices)?.tunables;
    let missing = all.iter().filter(|t| !choices.sizes.contains_key(&t.key)).count();
    Ok((all.len(), missing))
}

/// Times the steps that `tuning` has nothing of, and puts the best sizes of them there. `graph` is what [`compile::optimise`] makes with the same
/// options. `progress` is told what is done of how much.
pub fn measure(
    graph: &Graph,
    options: &Options,
    tuning: &mut Tuning,
    timer: &mut dyn Timer,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Summary, Problems> {
    let lower = |choices: &Choices| program::lower_with(graph, &options.target, &options.states, choices);
    let mut now = Choices { list: true, ..tuning.choices() };
    let first = lower(&now)?;
    let launches = launches_of(&first);
    let missing: Vec<usize> = (0..first.tunables.len()).filter(|&t| !now.sizes.contains_key(&first.tunables[t].key)).collect();
    let mut summary = Summary { tunable: first.tunables.len(), ..Summary::default() };
    if missing.is_empty() {
        return Ok(summary);
    }
    let before = now.clone();
    let of = |times: &[f64], t: usize| launches[t].iter().map(|&l| times[l]).sum::<f64>();
    let mut tried: Vec<Vec<Sizes>> = first.tunables.iter().map(|t| vec![t.sizes.clone()]).collect();
    let build = |choices: &Choices| compile::compile_optimised(graph, &Options { choices: choices.clone(), ..options.clone() });
    let mut tunables = first.tunables;
    for _ in 0..PASSES {
        let new = |t: usize| {
            let all = tunables[t].others.iter().filter(|s| !tried[t].contains(s));
            if missing.contains(&t) { all.take(CANDIDATES).cloned().collect() } else { vec![] }
        };
        let candidates: Vec<Vec<Sizes>> = (0..tunables.len()).map(new).collect();
        let rounds = candidates.iter().map(Vec::len).max().unwrap_or(0);
        // For each step the best candidate and its time as a share of that of now.
        let mut best: Vec<Option<(Sizes, f64)>> = vec![None; tunables.len()];
        for start in (0..rounds).step_by(BESIDE) {
            progress(start, rounds);
            let with = |round: usize| {
                let mut choices = now.clone();
                let chosen = tunables.iter().zip(&candidates).filter_map(|(t, c)| Some((t.key.clone(), c.get(round)?.clone())));
                choices.sizes.extend(chosen);
                choices
            };
            let batch: Vec<usize> = (start..rounds.min(start + BESIDE)).collect();
            let all = std::iter::once(now.clone()).chain(batch.iter().map(|&round| with(round)));
            let builds = all.map(|choices| build(&choices)).collect::<Result<Vec<_>, _>>()?;
            summary.builds += builds.len();
            let times = timer.time(builds)?;
            for (&round, times_of_round) in batch.iter().zip(&times[1..]) {
                for (t, candidates) in candidates.iter().enumerate() {
                    let (Some(sizes), base) = (candidates.get(round), of(&times[0], t)) else { continue };
                    let share = of(times_of_round, t) / base;
                    if base > 0.0 && best[t].as_ref().is_none_or(|b| share < b.1) {
                        best[t] = Some((sizes.clone(), share));
                    }
                }
            }
        }
        tried.iter_mut().zip(candidates).for_each(|(tried, new)| tried.extend(new));
        let mut changed = false;
        for (t, best) in tunables.iter().zip(best) {
            if let Some((sizes, share)) = best
                && share < 1.0 - MARGIN
            {
                now.sizes.insert(t.key.clone(), sizes);
                changed = true;
            }
        }
        if !changed {
            break;
        }
        tunables = lower(&now)?.tunables;
    }
    // Against each other, each in memory of its own and of another build before.
    let mut times: Vec<[Vec<f64>; 2]> = vec![];
    for _ in 0..CONFIRM {
        let builds = vec![build(&before)?, build(&now)?];
        summary.builds += builds.len();
        let mut both = timer.time(builds)?.into_iter();
        times.push([both.next().unwrap_or_default(), both.next().unwrap_or_default()]);
    }
    for &t in &missing {
        let Tunable { key, what, sizes, analytic, .. } = &tunables[t];
        let count = launches[t].len().max(1) as f64;
        let all: Vec<[f64; 2]> = times.iter().map(|both| [0, 1].map(|k| of(&both[k], t) / count / 1e3)).collect();
        let wins = sizes != analytic && all.iter().all(|[old, new]| *new < old * (1.0 - MARGIN));
        let [old, new] = [0, 1].map(|k| all.iter().map(|both| both[k]).fold(f64::INFINITY, f64::min));
        let (plan, best_us) = if wins { (sizes, new) } else { (analytic, old) };
        let [analytic_us, best_us] = [old, best_us].map(|us| (us * 100.0).round() / 100.0);
        let (plan, analytic) = (plan.to_string(), analytic.to_string());
        let step = Timed { what: what.clone(), key: key.clone(), plan, analytic, analytic_us, best_us };
        tuning.steps.push(step.clone());
        summary.timed.push(Line { step, launches: launches[t].len(), candidates: tried[t].len() - 1 });
    }
    tuning.sort();
    let whole = |k: usize| times.iter().map(|both| both[k].iter().sum::<f64>() / 1e3).fold(f64::INFINITY, f64::min);
    (summary.before_us, summary.after_us) = (whole(0), whole(1));
    Ok(summary)
}

/// The launches of each tunable step.
fn launches_of(lowered: &Lowered) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]; lowered.tunables.len()];
    for (number, launch) in lowered.launches.iter().enumerate() {
        if let Some(t) = launch.tunable {
            all[t].push(number);
        }
    }
    all
}

/// The numbers of the launches among all steps, in depth-first order, as the runtime counts them.
pub fn launch_numbers(program: &Program) -> Vec<usize> {
    fn visit(steps: &[Step], number: &mut usize, out: &mut Vec<usize>) {
        for step in steps {
            if let Step::Launch { .. } = step {
                out.push(*number);
            }
            *number += 1;
            match step {
                Step::If { then, otherwise, .. } => [then, otherwise].into_iter().for_each(|s| visit(s, number, out)),
                Step::Loop { body, .. } => visit(body, number, out),
                _ => {}
            }
        }
    }
    let mut out = vec![];
    visit(&program.steps, &mut 0, &mut out);
    out
}

/// Steps without sizes have no plans for certain sizes.
pub fn sizes_are_known(graph: &Graph) -> Result<(), Problems> {
    let open = compile::symbols(graph);
    if open.is_empty() {
        return Ok(());
    }
    let help: Vec<String> = open.iter().map(|name| format!("--dim {name}=SIZE")).collect();
    let message = format!("plans are timed for certain sizes, and {} dims have none: {}", open.len(), open.join(", "));
    Err(Problems::one("the model", message, format!("add {}", help.join(" "))))
}

/// Runs the builds in the runtime, by one thread, on seeded random inputs.
pub struct Stopwatch {
    inputs: Vec<Item>,
    /// Which outputs must be the same for all builds.
    fixed: Vec<bool>,
    /// Time for each build of a comparison.
    pub each: Duration,
}

/// Turns of each build at least.
const TURNS: usize = 5;

/// Runs of a turn that count; one before them finds caches as another build left them, and does not.
const RUNS: usize = 2;

/// A run that takes so long finds nothing of the one before it in caches anyway: one to a turn, which counts.
const LONG: Duration = Duration::from_millis(20);

impl Stopwatch {
    /// For a model whose inputs have known sizes.
    pub fn new(graph: &Graph) -> Result<Stopwatch, Problems> {
        sizes_are_known(graph)?;
        let make =
            |&v: &infc_ir::Value| inputs::make(&inputs::Source::Random(0), &graph.value(v).name, graph.ty(v), &BTreeMap::new());
        let inputs = graph.inputs().iter().map(make).collect::<Result<Vec<_>, _>>()?;
        let fixed = compare::output_kinds(graph).into_iter().map(|k| k != compare::Kind::Random).collect();
        Ok(Stopwatch { inputs, fixed, each: Duration::from_millis(250) })
    }
}

impl Timer for Stopwatch {
    fn time(&mut self, builds: Vec<Compiled>) -> Result<Vec<Vec<f64>>, Problems> {
        let mut sessions = vec![];
        let mut outputs: Option<Vec<Item>> = None;
        let mut longest = Duration::ZERO;
        for build in builds {
            let numbers = launch_numbers(&build.lowered.program);
            let model = Model::from_bytes(&build.artifact.to_bytes())
                .map_err(|e| Problems::one("the artifact just made", e.to_string(), ""))?;
            let options = infc_runtime::Options { threads: Some(1), profile: true, ..infc_runtime::Options::default() };
            let mut native = Native::new(model, options)?;
            let got = native.run(&self.inputs)?;
            let start = Instant::now();
            native.run_set()?;
            longest = longest.max(start.elapsed());
            let want = outputs.get_or_insert_with(|| got.clone());
            if let Some(k) = (0..got.len()).find(|&k| self.fixed.get(k) != Some(&false) && !same(&got[k], &want[k])) {
                let plans: Vec<String> = build.lowered.tunables.iter().map(|t| t.sizes.to_string()).collect();
                let message =
                    format!("output {k} differs from that with the plans of before, with the plans {}", plans.join("; "));
                return Err(Problems::one("the model", message, "this is a defect of the compiler; compile without --tune"));
            }
            let samples: Vec<Vec<f64>> = vec![vec![]; numbers.len()];
            sessions.push((native, numbers, samples));
        }
        let (begin, time) = (Instant::now(), self.each * sessions.len() as u32);
        let long = longest > LONG;
        let mut turns = 0;
        while turns < TURNS || begin.elapsed() < time {
            for (native, numbers, samples) in &mut sessions {
                if !long {
                    native.run_set()?;
                }
                for _ in 0..if long { 1 } else { RUNS } {
                    let before: Vec<u64> = native.session().times().iter().map(|t| t.nanoseconds).collect();
                    native.run_set()?;
                    let times = native.session().times();
                    for (samples, &step) in samples.iter_mut().zip(&*numbers) {
                        samples.push((times[step].nanoseconds - before[step]) as f64);
                    }
                }
            }
            turns += 1;
        }
        let quartile = |mut samples: Vec<f64>| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() / 4]
        };
        Ok(sessions.into_iter().map(|(_, _, samples)| samples.into_iter().map(quartile).collect()).collect())
    }
}

/// The same bits, but for the sign of zeros and what NaN it is.
fn same(a: &Item, b: &Item) -> bool {
    match (a.as_tensor(), b.as_tensor()) {
        (Some(a), Some(b)) if a.dtype == DType::F32 && b.dtype == DType::F32 => {
            let equal = |(x, y): (&f32, &f32)| x == y || x.is_nan() && y.is_nan();
            a.dims == b.dims && a.to_vec::<f32>().iter().zip(&b.to_vec::<f32>()).all(equal)
        }
        (Some(a), Some(b)) => a.dtype == b.dtype && a.dims == b.dims && a.bytes() == b.bytes(),
        _ => true,
    }
}
