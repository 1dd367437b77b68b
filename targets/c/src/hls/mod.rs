//! HLS C++ of a streaming design: a folder with the design as a top function, its weights, a testbench with golden vectors, a Makefile for
//! simulation by g++, a script for the vendor's tool, and the report of estimates.
//!
//! Each actor is a function over streams (`actors`), the top function connects them. The code is C++14 without containers of the standard
//! library, recursion or `new`; types and streams come from one header (`infc_hls.h`), which is the vendor's own under the vendor's tool.

mod actors;
mod code;
mod project;
mod report;
mod requant;

use actors::{Printer, beat, port};
use code::{Code, ap};
use infc_ir::Problems;
use infc_stream::design::{Actor, Design, Kind, Stream};
use infc_stream::{Machine, Report};

/// How inputs and outputs enter the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Streams of beats (AXI streams).
    Stream,
    /// Arrays with all elements at once.
    Parallel,
}

/// What the files are made for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Inputs and outputs.
    pub io: Io,
    /// Clock period in ns.
    pub clock_ns: f64,
    /// The part.
    pub machine: &'a Machine,
}

/// Golden vectors: elements of each stream, by frame, then by input or output.
#[derive(Clone, Debug, Default)]
pub struct Vectors {
    /// `[frame][input][element]`.
    pub inputs: Vec<Vec<Vec<i64>>>,
    /// `[frame][output][element]`, what the golden model gives.
    pub outputs: Vec<Vec<Vec<i64>>>,
}

/// A file of the folder.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path in the folder.
    pub path: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The types header.
pub const TYPES: &str = include_str!("infc_hls.h");

/// All files of a design.
///
/// # Errors
/// `--io parallel` with more elements than the part's tool unrolls.
pub fn project(design: &Design, report: &Report, options: &Options, vectors: &Vectors) -> Result<Vec<File>, Problems> {
    if options.io == Io::Parallel {
        fits_parallel(design, options.machine)?;
    }
    let name = &design.name;
    let (header, source, weights) = sources(design, options.io);
    let mut files = vec![
        text(&format!("{name}.h"), header),
        text(&format!("{name}.cpp"), source),
        text(&format!("{name}_weights.h"), weights),
        text("infc_hls.h", TYPES.to_owned()),
        text("testbench.cpp", project::testbench(design, options.io, vectors)),
        text("Makefile", project::makefile(design)),
        text("build.tcl", project::script(design, options)),
        text("report.json", report::json(report)),
        text("report.html", report::html(report)),
    ];
    files.extend(project::data(design, vectors));
    Ok(files)
}

fn text(path: &str, text: String) -> File {
    File { path: path.to_owned(), bytes: text.into_bytes() }
}

/// Every element is a wire of its own.
fn fits_parallel(design: &Design, machine: &Machine) -> Result<(), Problems> {
    let ports = design.inputs.iter().map(|p| ("input", p)).chain(design.outputs.iter().map(|p| ("output", p)));
    let mut problems = vec![];
    for (kind, p) in ports {
        let n = design.stream(p.stream).elements();
        if n as u64 > machine.max_unroll {
            let message =
                format!("has {n} elements; --io parallel makes a port of each, and tools unroll at most {}", machine.max_unroll);
            problems.extend(Problems::one(format!("{kind} '{}'", p.name), message, "use --io stream").0);
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

/// The header, the source and the weights.
fn sources(design: &Design, io: Io) -> (String, String, String) {
    let name = &design.name;
    let guard = name.to_uppercase();
    let mut p = Printer { design, code: Code::default(), weights: String::new(), arrays: io == Io::Parallel, nearest: false };
    for a in &design.actors {
        p.actor(a);
    }
    let top = signature(design, io);
    let mut header = format!(
        "/* {name}: a streaming design, made by infc {}. */\n#ifndef {guard}_H\n#define {guard}_H\n\n",
        env!("CARGO_PKG_VERSION")
    );
    header += "#include \"infc_hls.h\"\n\n/* What a stream carries: neighbouring elements, the first in the lowest bits. */\n";
    header += "template <typename T, int N>\nstruct beat {\n    T v[N];\n};\n\n";
    for s in &design.streams {
        header += &format!("typedef beat<{}, {}> {};\n", ap(s.format), s.lanes, beat(s));
    }
    header += &format!("\n{top};\n\n#endif\n");
    let mut source = format!(
        "/* {name}: a streaming design, made by infc {}. */\n#include \"{name}.h\"\n#include \"{name}_weights.h\"\n\n",
        env!("CARGO_PKG_VERSION")
    );
    if p.nearest {
        source += NEAREST;
    }
    source += &p.code.text;
    source += &top_function(design, io, &top);
    let weights = format!(
        "/* Constants of {name}. */\n#ifndef {guard}_WEIGHTS_H\n#define {guard}_WEIGHTS_H\n\n#include <cstdint>\n\n{}\n#endif\n",
        p.weights
    );
    (header, source, weights)
}

/// A function that some requantisations call.
const NEAREST: &str = "/* x / 2^s to nearest, ties to even. */
template <typename T>
static T nearest(T x, int s) {
#pragma HLS INLINE
    if (s == 0) return x;
    const T half = T(1) << (s - 1);
    return T(x + half - 1 + ap_uint<1>(x >> s)) >> s;
}

";

/// Names of the ports: `input_x`, `output_y`, unique.
fn ports(design: &Design) -> Vec<(String, &Stream, bool)> {
    let mut scope = crate::names::Scope::default();
    let mut one = |prefix: &str, p: &infc_stream::Port| scope.fresh(&format!("{prefix}_{}", crate::names::identifier(&p.name)));
    let inputs: Vec<_> = design.inputs.iter().map(|p| (one("input", p), design.stream(p.stream), true)).collect();
    let outputs = design.outputs.iter().map(|p| (one("output", p), design.stream(p.stream), false));
    inputs.into_iter().chain(outputs).collect()
}

/// `void name(inputs, outputs)`.
fn signature(design: &Design, io: Io) -> String {
    let list: Vec<String> = ports(design).iter().map(|(name, s, input)| port(s, name, io == Io::Parallel, *input)).collect();
    format!("void {}({})", design.name, list.join(", "))
}

fn top_function(design: &Design, io: Io, signature: &str) -> String {
    let mut c = Code::default();
    let ports = ports(design);
    c.line("/* One frame: all processes run at the same time. */");
    c.open(signature);
    for (name, ..) in &ports {
        match io {
            Io::Stream => c.line(format!("#pragma HLS INTERFACE axis port={name}")),
            Io::Parallel => {
                c.line(format!("#pragma HLS ARRAY_PARTITION variable={name} complete"));
                c.line(format!("#pragma HLS INTERFACE ap_none port={name}"));
            }
        }
    }
    c.line("#pragma HLS DATAFLOW");
    for s in &design.streams {
        c.line(format!("hls::stream<{}> {}(\"{}\");", beat(s), s.name, s.name));
        c.line(format!("#pragma HLS STREAM variable={} depth={}", s.name, s.depth));
        c.line(format!("INFC_DEPTH({}, {});", s.name, s.depth));
    }
    for a in &design.actors {
        c.line(format!("INFC_RUN({0}, {0}({1}));", a.name, arguments(design, a, &ports).join(", ")));
    }
    c.line("INFC_JOIN();");
    c.close(1);
    c.text
}

fn arguments(design: &Design, a: &Actor, ports: &[(String, &Stream, bool)]) -> Vec<String> {
    let mut list: Vec<String> = a.inputs.iter().chain(&a.outputs).map(|&s| design.stream(s).name.clone()).collect();
    match &a.kind {
        Kind::Source(i) => list.insert(0, ports[*i].0.clone()),
        Kind::Sink(i) => list.push(ports[design.inputs.len() + i].0.clone()),
        _ => {}
    }
    list
}
