//! A model as C code.

use crate::compile::{self, Options, Report};
use infc_c::{Source, Style, Weights};
use infc_ir::{Graph, Problems};
use std::time::Instant;

/// A model as C files.
#[derive(Clone, Debug)]
pub struct CCode {
    /// The files.
    pub source: Source,
    /// Numbers about it.
    pub report: Report,
}

/// How C code is to be.
#[derive(Clone, Copy, Debug)]
pub struct Print {
    /// Where the weights go.
    pub weights: Weights,
    /// Tasks on several threads, by OpenMP.
    pub openmp: bool,
    /// What the code may use; the machine says which vectors.
    pub style: Style,
}

impl Default for Print {
    fn default() -> Print {
        Print { weights: Weights::Arrays, openmp: false, style: Style::default() }
    }
}

/// Prints an imported model as C files whose functions are called `NAME_run` and the like. The options name a machine of the C backend.
pub fn c_code(graph: Graph, options: &Options, name: &str, print: Print) -> Result<CCode, Problems> {
    let mut report = Report { target: options.target.name.clone(), ..Report::default() };
    let start = Instant::now();
    let model = graph.name.clone();
    let graph = compile::optimise(graph, options)?;
    report.stages.push(("passes", start.elapsed()));
    let start = Instant::now();
    let lowered = infc_kernel::program::lower(&graph, &options.target, &options.states)?;
    report.stages.push(("lower", start.elapsed()));
    let start = Instant::now();
    let bounds = options.bounds.iter().cloned().collect();
    let Print { weights, openmp, style } = print;
    let style = Style { vector_bytes: Style::of(&options.target).vector_bytes, ..style };
    let source = infc_c::source(&lowered, &infc_c::Options { name: name.to_owned(), model, weights, openmp, style, bounds })?;
    report.stages.push(("code", start.elapsed()));
    report.kernels = lowered.kernels.len();
    report.launches = compile::launches(&lowered.program.steps);
    report.code_bytes = source.c.len() as u64;
    report.constant_bytes = lowered.constants.len() as u64;
    report.arena_bytes = Some(source.arena_bytes);
    Ok(CCode { source, report })
}
