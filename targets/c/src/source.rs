//! The files of a model: C source, header, and weights if they are apart.

use crate::driver::{self, Job};
use crate::header::{self, Dim, Interface, given, members};
use crate::helpers::{Helpers, Style};
use crate::kernel::{self, Function};
use crate::names::comment;
use crate::problem;
use crate::types::{constant, memory};
use infc_artifact::program::{Place, Program, Size, Step, View, each_view};
use infc_ir::{DType, Fault, Problem, Problems, eval, fault};
use infc_kernel::bounded::{self, Bounds, changes};
use infc_kernel::loops::Kernel;
use infc_kernel::program::Lowered;
use std::fmt::Write;

/// Where the weights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Into the source file, as arrays.
    Arrays,
    /// Into a file of their own, whose bytes the caller gives to each run.
    Apart,
}

/// How a model is printed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Prefix of its functions, an identifier of C.
    pub name: String,
    /// Name of the model, for people.
    pub model: String,
    /// Where the weights go.
    pub weights: Weights,
    /// Tasks run on several threads if the compiler has OpenMP.
    pub openmp: bool,
    /// What the code may use.
    pub style: Style,
    /// The largest values of dims.
    pub bounds: Bounds,
}

/// A printed model.
#[derive(Clone, Debug)]
pub struct Source {
    /// Prefix of its functions.
    pub name: String,
    /// `NAME.c`.
    pub c: String,
    /// `NAME.h`.
    pub h: String,
    /// `NAME.bin`, if the weights are apart.
    pub weights: Option<Vec<u8>>,
    /// A C file with a function that calls the model with arrays of pointers, for those who do not know its types (`load`).
    pub call: String,
    /// Dims that a run is given, in the order of its parameters.
    pub dims: Vec<Dim>,
    /// Number of the program's symbols.
    pub symbols: usize,
    /// Bytes of the inputs that are no state.
    pub input_bytes: Vec<Size>,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bytes of state.
    pub state_bytes: u64,
    /// The most bytes of each output.
    pub output_bytes: Vec<u64>,
    /// The rank of each output.
    pub output_ranks: Vec<usize>,
    /// What a status of 1 + its index means.
    pub messages: Vec<String>,
}

/// Alignment of arena, state and weights: that of the widest element.
pub const ALIGN: u64 = 8;

/// Prints a lowered program.
pub fn source(lowered: &Lowered, options: &Options) -> Result<Source, Problems> {
    let program = &lowered.program;
    no_host(program)?;
    let layout = bounded::layout(program, &options.bounds)?;
    let mut helpers = Helpers::new(options.style);
    let mut functions = vec![];
    let extents = extents(program, &layout.ranges, &lowered.kernels);
    for (k, kernel) in lowered.kernels.iter().enumerate() {
        let name = format!("k{k}_{}", crate::names::identifier(&kernel.name).to_lowercase());
        let function = kernel::function(kernel, &name, options.openmp, &extents[k], &mut helpers);
        functions.push(function.map_err(|e| problem(format!("kernel '{}'", kernel.name), &e))?);
    }
    let name = &options.name;
    let fail = |e: Fault| problem(format!("C code '{name}'"), &e);
    let (arrays, constants) = match options.weights {
        Weights::Arrays => weights(program, &lowered.kernels, &lowered.constants.to_vec()).map_err(fail)?,
        Weights::Apart => (String::new(), vec![None; program.buffers.len()]),
    };
    let scratch = functions.iter().map(|f| f.scratch).max().unwrap_or(0);
    let (_, state_bytes) = layout.state(program);
    let mut interface = Interface {
        name,
        model: &options.model,
        program,
        ranges: &layout.ranges,
        about: about(options),
        align: ALIGN,
        arena_bytes: if scratch > 0 { layout.arena.next_multiple_of(64) + scratch } else { layout.arena },
        state_bytes,
        weights_bytes: (options.weights == Weights::Apart).then_some(lowered.constants.len() as u64),
        dims: header::dims(program, &layout.ranges),
        messages: &[],
    };
    let job = Job {
        program,
        layout: &layout,
        functions: &functions,
        nodes: lowered.launches.iter().map(|l| l.node.as_str()).collect(),
        constants: &constants,
        align: ALIGN,
    };
    let driver = driver::driver(&job, &interface, &mut helpers).map_err(fail)?;
    interface.messages = &driver.messages;
    let mut c = format!("/* The model '{}', compiled by infc {}. */\n", comment(&options.model), env!("CARGO_PKG_VERSION"));
    let _ = writeln!(c, "#include \"{name}.h\"\n");
    c += &preamble(options.style);
    c += &helpers.text();
    for (f, kernel) in functions.iter().zip(&lowered.kernels) {
        let _ = write!(c, "\n/* {} */\n{}", comment(&kernel.name), f.text);
    }
    c += &arrays;
    let _ = write!(c, "\n{}", driver.text);
    Ok(Source {
        name: name.clone(),
        c,
        h: interface.header(),
        call: call(&interface),
        symbols: program.symbols.len(),
        input_bytes: given(program).map(|p| program.buffers[p.buffer as usize].bytes.clone()).collect(),
        output_ranks: program.outputs.iter().map(|p| p.dims.len()).collect(),
        weights: (options.weights == Weights::Apart).then(|| lowered.constants.to_vec()),
        dims: interface.dims.clone(),
        arena_bytes: interface.arena_bytes,
        state_bytes,
        output_bytes: program.outputs.iter().map(|p| layout.bytes[p.buffer as usize]).collect(),
        messages: driver.messages.clone(),
    })
}

/// The file `call.c`.
fn call(i: &Interface) -> String {
    let name = i.name;
    let mut c = format!(
        "#include \"{name}.h\"\n\nint32_t infc_call(const void *const *in, void *const *out, int64_t *const *sizes, const int64_t *dims,\n\
         {pad}const void *weights, void *state, void *arena);\n\
         int32_t infc_call(const void *const *in, void *const *out, int64_t *const *sizes, const int64_t *dims,\n\
         {pad}const void *weights, void *state, void *arena) {{\n    \
         {name}_inputs inputs;\n    {name}_outputs outputs;\n    (void)in, (void)out, (void)sizes, (void)dims, (void)weights, (void)state;\n",
        pad = " ".repeat(18)
    );
    let inputs = members(given(i.program));
    let outputs = members(i.program.outputs.iter());
    for (k, m) in inputs.iter().enumerate() {
        let _ = writeln!(c, "    inputs.{} = (const {} *)in[{k}];", m.name, m.c_type);
    }
    for (k, m) in outputs.iter().enumerate() {
        let _ = writeln!(c, "    outputs.{} = ({} *)out[{k}];", m.name, m.c_type);
        if changes(m.port) {
            let _ = writeln!(c, "    outputs.{}_dims = sizes[{k}];", m.name);
        }
    }
    for (list, member) in [("inputs", inputs.is_empty()), ("outputs", outputs.is_empty())] {
        if member {
            let _ = writeln!(c, "    {list}.none = 0;");
        }
    }
    let mut arguments = vec!["&inputs".to_owned(), "&outputs".to_owned()];
    arguments.extend((0..i.dims.len()).map(|k| format!("dims[{k}]")));
    arguments.extend(i.weights_bytes.map(|_| "weights".to_owned()));
    if !i.program.states.is_empty() {
        arguments.push("state".to_owned());
    }
    let _ = write!(c, "    return {name}_run({}, arena);\n}}\n", arguments.join(", "));
    c
}

/// Refuses what only a host can do, with all nodes and ports that need one.
fn no_host(program: &Program) -> Result<(), Problems> {
    fn nodes(steps: &[Step], program: &Program, out: &mut Vec<String>) {
        for step in steps {
            match step {
                Step::Host { code, routine, .. } => {
                    out.push(program.messages.get(*code as usize).map_or_else(|| routine.clone(), |m| m.node.clone()));
                }
                Step::If { then, otherwise, .. } => {
                    nodes(then, program, out);
                    nodes(otherwise, program, out);
                }
                Step::Loop { body, .. } => nodes(body, program, out),
                Step::Launch { .. } | Step::Copy { .. } | Step::Bind { .. } | Step::Require { .. } => {}
                // Only programs for a device have these.
                Step::HostLaunch { .. } | Step::ToHost { .. } | Step::ToDevice { .. } => {}
            }
        }
    }
    let mut places = vec![];
    nodes(&program.steps, program, &mut places);
    let ports = [("input", &program.inputs), ("output", &program.outputs)];
    for (kind, list) in ports {
        places.extend(list.iter().filter(|p| p.is_host()).map(|p| format!("{kind} '{}'", p.name)));
    }
    places.dedup();
    if places.is_empty() {
        return Ok(());
    }
    let one = |at| Problem {
        at,
        message: "works on strings, sequences or other values of a host, which C code does not have".to_owned(),
        help: "leave this part to the program around the model, or make an artifact with --emit infc".to_owned(),
    };
    Err(Problems(places.into_iter().map(one).collect()))
}

/// What the header says of the code.
fn about(options: &Options) -> Vec<String> {
    let mut lines = vec![
        "C99: compile with -std=c99 -ffp-contract=off, and without -ffast-math, for the same results everywhere.".to_owned(),
        "Takes no memory by itself, keeps nothing outside of what it is given, and needs of the C library only memcpy and memset"
            .to_owned(),
        match options.style.own_math {
            false => {
                "and exact functions of math.h (sqrtf, floorf and the like). Any number of threads may run it at once, each with"
            }
            true => "(nothing of math.h). Any number of threads may run it at once, each with",
        }
        .to_owned(),
        "its own arena and outputs.".to_owned(),
    ];
    if options.openmp {
        lines.push("With -fopenmp, large kernels run on several threads.".to_owned());
    }
    lines
}

/// Includes, and what the compiler must not do.
fn preamble(style: Style) -> String {
    let (math, limits) = match style.own_math {
        false => ("#include <math.h>\n", ""),
        true => ("", LIMITS),
    };
    let vectors = if style.vector_bytes > 0 { VECTORS } else { "" };
    format!(
        "{math}#include <string.h>\n\n\
     #if defined(__FAST_MATH__) || defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16\n\
     #error \"floats must be computed as they are: no -ffast-math, no -mfpmath=387\"\n#endif\n\
     #if defined(__clang__) || !defined(__GNUC__)\n#pragma STDC FP_CONTRACT OFF\n#endif\n\n{vectors}{limits}"
    )
}

/// What vector types need: a compiler that has them. Vectors wider than the machine's are arguments of functions of this file alone.
const VECTORS: &str = "#if !defined(__clang__) && (!defined(__GNUC__) || __GNUC__ < 9)\n\
                       #error \"vector types need GCC 9 or Clang: the target c99 goes without\"\n#endif\n\
                       #pragma GCC diagnostic ignored \"-Wpsabi\"\n\n";

/// What `<math.h>` defines beside functions.
const LIMITS: &str = "#ifdef __GNUC__\n#define INFINITY __builtin_inff()\n#define NAN __builtin_nanf(\"\")\n#else\n\
                      #define INFINITY ((float)(1e300 * 1e300))\n#define NAN (INFINITY * 0.0f)\n#endif\n\n";

/// The kernel and the views of all launches.
fn each_launch(steps: &[Step], see: &mut dyn FnMut(usize, &[View])) {
    for step in steps {
        match step {
            Step::Launch { kernel, buffers, .. } => see(*kernel as usize, buffers),
            Step::If { then, otherwise, .. } => {
                each_launch(then, see);
                each_launch(otherwise, see);
            }
            Step::Loop { body, .. } => each_launch(body, see),
            Step::Copy { .. }
            | Step::Bind { .. }
            | Step::Require { .. }
            | Step::Host { .. }
            | Step::HostLaunch { .. }
            | Step::ToHost { .. }
            | Step::ToDevice { .. } => {}
        }
    }
}

/// The range of each symbol of each kernel, over all its launches.
fn extents(program: &Program, ranges: &[(i64, i64)], kernels: &[Kernel]) -> Vec<Vec<Option<(i64, i64)>>> {
    let mut all: Vec<Vec<Option<(i64, i64)>>> =
        kernels.iter().map(|k| vec![Some((i64::MAX, i64::MIN)); k.symbols.len()]).collect();
    fn walk(steps: &[Step], ranges: &[(i64, i64)], all: &mut [Vec<Option<(i64, i64)>>]) {
        for step in steps {
            match step {
                Step::Launch { kernel, extents, .. } => {
                    let Some(known) = all.get_mut(*kernel as usize) else { continue };
                    for (known, extent) in known.iter_mut().zip(extents) {
                        let one = extent.range(ranges);
                        *known = known.zip(one).map(|(a, b)| (a.0.min(b.0), a.1.max(b.1)));
                    }
                }
                Step::If { then, otherwise, .. } => {
                    walk(then, ranges, all);
                    walk(otherwise, ranges, all);
                }
                Step::Loop { body, .. } => walk(body, ranges, all),
                Step::Copy { .. }
                | Step::Bind { .. }
                | Step::Require { .. }
                | Step::Host { .. }
                | Step::HostLaunch { .. }
                | Step::ToHost { .. }
                | Step::ToDevice { .. } => {}
            }
        }
    }
    walk(&program.steps, ranges, &mut all);
    all
}

/// The constants as arrays, and the name of each by its buffer.
fn weights(program: &Program, kernels: &[Kernel], bytes: &[u8]) -> Result<(String, Vec<Option<String>>), Fault> {
    let mut dtypes = vec![None; program.buffers.len()];
    each_launch(&program.steps, &mut |kernel, views| {
        for (view, b) in views.iter().zip(&kernels[kernel].buffers) {
            dtypes[view.buffer as usize].get_or_insert(b.dtype);
        }
    });
    let mut used = vec![false; program.buffers.len()];
    each_view(&program.steps, &mut |view| used[view.buffer as usize] = true);
    let (mut text, mut names) = (String::new(), vec![None; program.buffers.len()]);
    let mut count = 0;
    for (b, buffer) in program.buffers.iter().enumerate().filter(|(b, _)| used[*b]) {
        let Place::Constant(at) = buffer.place else { continue };
        let size = buffer.bytes.eval(&[]).and_then(|n| usize::try_from(n).ok());
        let end = size.and_then(|n| (at as usize).checked_add(n)).filter(|&end| end <= bytes.len());
        let end = end.ok_or_else(|| fault!("constant {b} lies outside of the constants"))?;
        let name = format!("w{count}");
        count += 1;
        text += &array(&name, dtypes[b].unwrap_or(DType::U8), &bytes[at as usize..end])?;
        names[b] = Some(name);
    }
    Ok((text, names))
}

/// `static const float w0[4] = {...};`
fn array(name: &str, dtype: DType, bytes: &[u8]) -> Result<String, Fault> {
    let element = memory(dtype)?;
    let width = dtype.bytes();
    // As in memory: narrow floats and bools are their bits.
    let seen = match dtype {
        DType::F32 | DType::F64 => dtype,
        d if d.is_int() => d,
        _ => {
            if width == 2 {
                DType::U16
            } else {
                DType::U8
            }
        }
    };
    let number = |chunk: &[u8]| {
        let raw = chunk.iter().rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b));
        constant(seen, eval::from_memory(seen, raw)).0
    };
    let count = (bytes.len() / width).max(1);
    let mut text = format!("\nstatic const {element} {name}[{count}] = {{");
    let mut column = usize::MAX;
    for (i, chunk) in bytes.chunks_exact(width).enumerate() {
        let item = number(chunk);
        if column.saturating_add(item.len()) > 110 {
            text += "\n    ";
            column = 4;
        } else if i > 0 {
            text.push(' ');
        }
        column += item.len() + 2;
        text += &item;
        text.push(',');
    }
    if bytes.len() < width {
        text += "\n    0,";
    }
    text += "\n};\n";
    Ok(text)
}

/// Kernels by themselves, each with an entry that takes arrays.
pub fn kernels(list: &[Kernel], prefix: &str, style: Style) -> Result<String, Problems> {
    let mut helpers = Helpers::new(style);
    let mut functions: Vec<Function> = vec![];
    for (k, kernel) in list.iter().enumerate() {
        let name = format!("k{k}_{}", crate::names::identifier(&kernel.name).to_lowercase());
        let function = kernel::function(kernel, &name, false, &[], &mut helpers);
        functions.push(function.map_err(|e| problem(format!("kernel '{}'", kernel.name), &e))?);
    }
    let mut c = format!("#include <stdint.h>\n{}{}", preamble(style), helpers.text());
    for (k, (f, kernel)) in functions.iter().zip(list).enumerate() {
        let _ = write!(c, "\n/* {} */\n{}", comment(&kernel.name), f.text);
        let arguments = f.parameters.iter().enumerate().map(|(i, p)| format!("({})buffers[{i}]", p.cast));
        let extents = (0..kernel.symbols.len()).map(|i| format!("extents[{i}]"));
        let scratch = (f.scratch > 0).then(|| "(unsigned char *)scratch".to_owned());
        let arguments: Vec<String> = arguments.chain(extents).chain(scratch).collect();
        let call = format!("{}({})", f.name, arguments.join(", "));
        let body = if f.checks { format!("    return (uint64_t){call};\n") } else { format!("    {call};\n    return 0;\n") };
        let parameters = "void *const *buffers, const int64_t *extents, void *scratch";
        let _ = write!(
            c,
            "\nuint64_t {prefix}{k}({parameters});\nuint64_t {prefix}{k}({parameters}) {{\n    (void)buffers, (void)extents, (void)scratch;\n{body}}}\n"
        );
    }
    Ok(c)
}

/// Bytes of scratch that the entries of [`kernels`] need at most.
pub fn scratch(list: &[Kernel]) -> u64 {
    list.iter()
        .filter_map(|k| kernel::function(k, "k", false, &[], &mut Helpers::default()).ok())
        .map(|f| f.scratch)
        .max()
        .unwrap_or(0)
}
