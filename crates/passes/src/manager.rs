//! The pass manager: runs a pipeline with timings, verification, printing, early stop and a limit on rewrites for bisection.

use crate::rewrite::Context;
use infc_ir::graph::Graph;
use infc_ir::{Problem, Problems};
use std::time::{Duration, Instant};

/// How equal results are before and after a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Bit for bit, NaN equal to NaN.
    Exact,
    /// The same operations in the same order; functions like exp may differ in the last bits.
    SameOrder,
    /// The same real number; sums and products are taken in another order or in other factors.
    Reassociated,
    /// Integer arithmetic that is exact up to one rounding per operator, instead of several float roundings.
    OneRounding,
}

/// One pass.
#[derive(Debug)]
pub struct Pass {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub doc: &'static str,
    /// How equal its results are.
    pub class: Class,
    /// Does it; gives the number of rewrites.
    pub run: fn(&mut Graph, &mut Context) -> Result<usize, Problems>,
}

/// All passes.
pub static PASSES: &[Pass] = &[
    Pass {
        name: "shape",
        doc: "Infers all types again, with symbols replaced by the dims that were given",
        class: Class::Exact,
        run: crate::shape::run,
    },
    Pass {
        name: "fold",
        doc: "Computes what is known at compile time: constants, shape arithmetic, branches",
        class: Class::Exact,
        run: crate::fold::run,
    },
    Pass { name: "dce", doc: "Removes what no output needs", class: Class::Exact, run: crate::dce::run },
    Pass { name: "cse", doc: "Computes equal things once", class: Class::Exact, run: crate::cse::run },
    Pass {
        name: "unroll",
        doc: "Writes out loops whose rounds are known, where that makes sizes known",
        class: Class::Exact,
        run: crate::unroll::run,
    },
    Pass {
        name: "canon",
        doc: "Brings arithmetic, views and padding into one form by small exact rules",
        class: Class::Exact,
        run: crate::canon::run,
    },
    Pass {
        name: "recognise",
        doc: "Makes one operator of what exporters wrote as several: normalisations, softmax, activations, attention",
        class: Class::Reassociated,
        run: crate::recognise::run,
    },
    Pass {
        name: "batchnorm",
        doc: "Puts batch normalisation and constants per channel into the weights before them",
        class: Class::Reassociated,
        run: crate::batchnorm::run,
    },
    Pass {
        name: "transposed",
        doc: "Makes convolutions of transposed convolutions with constant weights, one for each remainder of the stride",
        class: Class::Reassociated,
        run: crate::transposed::run,
    },
    Pass {
        name: "taps",
        doc: "Takes rows and columns off kernels that only ever meet padding",
        class: Class::Exact,
        run: crate::taps::run,
    },
    Pass {
        name: "quantisers",
        doc: "Brings quantisers of other forms and places to QuantizeLinear and DequantizeLinear around contractions",
        class: Class::OneRounding,
        run: crate::quantisers::run,
    },
    Pass {
        name: "integer",
        doc: "Lets quantised operators work on the stored integers, with one rounding",
        class: Class::OneRounding,
        run: crate::integer::run,
    },
    Pass {
        name: "integers-only",
        doc: "As 'integer', with all biases rounded to units of the sums, for targets that have nothing but integers",
        class: Class::OneRounding,
        run: crate::integer::run_always,
    },
    Pass {
        name: "decompose",
        doc: "Expands composite operators until every node is steps, a view, control flow, a routine or host work",
        class: Class::Exact,
        run: crate::decompose::run,
    },
];

/// The pass of that name.
pub fn pass(name: &str) -> Option<&'static Pass> {
    PASSES.iter().find(|p| p.name == name)
}

/// The passes that take an imported model to the form that the kernel level wants.
pub fn pipeline() -> Vec<&'static str> {
    vec![
        "shape",
        "fold",
        "cse",
        "dce",
        "unroll",
        "canon",
        "fold",
        "recognise",
        "batchnorm",
        "transposed",
        "taps",
        "integer",
        "fold",
        "dce",
        "decompose",
        "canon",
        "fold",
        "cse",
        "dce",
    ]
}

/// The passes that bring a quantised model to integer operators, for targets that compute in integers only.
pub fn streaming() -> Vec<&'static str> {
    vec![
        "shape",
        "quantisers",
        "fold",
        "cse",
        "dce",
        "canon",
        "fold",
        "recognise",
        "quantisers",
        "batchnorm",
        "quantisers",
        "integers-only",
        "fold",
        "dce",
    ]
}

/// The passes that simplify a model that stays an ONNX model (use with [`Options::portable`]).
pub fn simplify() -> Vec<&'static str> {
    vec!["shape", "fold", "cse", "dce", "canon", "fold", "cse", "dce"]
}

/// What to run and what to watch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of passes, in order; a name may stand in it several times.
    pub pipeline: Vec<String>,
    /// Passes besides those of [`PASSES`] that the pipeline may name.
    pub more: &'static [Pass],
    /// Values of symbolic dims.
    pub bind: Vec<(String, i64)>,
    /// Make only operators that ONNX has, for export.
    pub portable: bool,
    /// Print the graph after passes of these names (`all`: after every pass).
    pub print_after: Vec<String>,
    /// Who prints: gets the name of the pass and the graph.
    pub print: fn(&str, &Graph),
    /// Stop after the first pass of this name.
    pub stop_after: Option<String>,
    /// Do no more than this many rewrites in all passes together (for bisection).
    pub rewrite_limit: Option<usize>,
    /// Verify the graph before the first pass and after each one.
    pub verify: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            pipeline: pipeline().into_iter().map(str::to_owned).collect(),
            more: &[],
            bind: vec![],
            portable: false,
            print_after: vec![],
            print: |name, g| {
                let text = infc_ir::text::print_with(g, infc_ir::text::Options { elide: true });
                eprintln!("// after {name}\n{text}");
            },
            stop_after: None,
            rewrite_limit: None,
            verify: cfg!(debug_assertions),
        }
    }
}

/// What a pass did.
#[derive(Clone, Debug)]
pub struct PassReport {
    /// Its name.
    pub name: &'static str,
    /// How many rewrites it made.
    pub rewrites: usize,
    /// How long it took.
    pub time: Duration,
}

/// What the pipeline did, pass by pass.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In order of execution.
    pub passes: Vec<PassReport>,
}

impl Report {
    /// All rewrites together.
    pub fn rewrites(&self) -> usize {
        self.passes.iter().map(|p| p.rewrites).sum()
    }
}

/// Runs a pipeline. After an error the graph may be half rewritten.
pub fn run(graph: &mut Graph, options: &Options) -> Result<Report, Problems> {
    let mut report = Report::default();
    let mut cx = Context { left: options.rewrite_limit, bind: options.bind.clone(), portable: options.portable };
    if options.verify {
        check(graph, "the importer")?;
    }
    for name in &options.pipeline {
        let Some(pass) = pass(name).or_else(|| options.more.iter().find(|p| p.name == name)) else {
            let known: Vec<_> = PASSES.iter().map(|p| p.name).collect();
            return Err(Problems::one(
                format!("pass '{name}'"),
                "there is no such pass",
                format!("the passes are {}", known.join(", ")),
            ));
        };
        let start = Instant::now();
        let rewrites = (pass.run)(graph, &mut cx)?;
        infc_ir::verify::addressable(graph)?;
        report.passes.push(PassReport { name: pass.name, rewrites, time: start.elapsed() });
        if options.print_after.iter().any(|n| n == name || n == "all") {
            (options.print)(pass.name, graph);
        }
        if options.verify {
            check(graph, &format!("pass '{name}'"))?;
        }
        if options.stop_after.as_ref() == Some(name) {
            break;
        }
    }
    Ok(report)
}

/// A graph that is not valid after a pass is a bug of the pass.
fn check(graph: &Graph, who: &str) -> Result<(), Problems> {
    let at = |p: Problem| Problem { at: format!("internal error after {who}: {}", p.at), ..p };
    infc_ir::verify::verify(graph).map_err(|p| Problems(p.0.into_iter().map(at).collect()))
}
