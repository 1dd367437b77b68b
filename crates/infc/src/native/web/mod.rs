//! A model as a module of WebAssembly, with the JavaScript that loads it and its types for TypeScript.

use crate::compile::{self, Options, Report};
use infc_artifact::dtype;
use infc_artifact::program::{Port, Program, Size, SizeOp};
use infc_c::header::given;
use infc_cpu_llvm::{Arch, Llvm, Weights};
use infc_ir::{Graph, Problems};
use infc_kernel::backend::Object;
use infc_kernel::bounded::{self, Layout, changes};
use infc_kernel::program::Lowered;
use infc_kernel::target::TargetDesc;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Instant;

/// What every model's JavaScript has.
const GLUE: &str = include_str!("glue.mjs");

/// Is code for this machine a module of WebAssembly?
pub fn is_web(target: &TargetDesc) -> bool {
    target.backend == "llvm" && target.arch == Arch::Wasm.name()
}

/// A model as files for JavaScript.
#[derive(Clone, Debug)]
pub struct Web {
    /// The module, NAME.wasm.
    pub wasm: Vec<u8>,
    /// What loads it, NAME.mjs.
    pub script: String,
    /// Its types, NAME.d.mts.
    pub types: String,
    /// The weights where they are apart, NAME.bin.
    pub weights: Option<Vec<u8>>,
    /// ONNX's numbers of the inputs' and the outputs' dtypes.
    pub dtypes: Vec<u8>,
    /// Numbers about it.
    pub report: Report,
}

/// Compiles an imported model to a module of WebAssembly, whose files are called `name`.
pub fn web(graph: Graph, options: &Options, name: &str, weights: Weights) -> Result<Web, Problems> {
    let mut report = Report { target: options.target.name.clone(), ..Report::default() };
    let model = graph.name.clone();
    let (lowered, layout) = super::bounded(graph, options, "a module of WebAssembly", false, &mut report)?;
    let start = Instant::now();
    let mut web = module(&lowered, &layout, &options.target, name, &model, weights)?;
    report.stages.push(("code", start.elapsed()));
    web.report.stages = report.stages;
    Ok(web)
}

/// A program in memory laid out so as a module; `model` is what the model is called.
pub fn module(
    lowered: &Lowered,
    layout: &Layout,
    target: &TargetDesc,
    name: &str,
    model: &str,
    weights: Weights,
) -> Result<Web, Problems> {
    let program = &lowered.program;
    let constants = lowered.constants.to_vec();
    let module = Llvm::new(target.clone()).emit_module(program, layout, &lowered.kernels, &constants, weights)?;
    let report = Report {
        target: target.name.clone(),
        kernels: lowered.kernels.len(),
        launches: compile::launches(&program.steps),
        code_bytes: module.code_bytes,
        constant_bytes: constants.len() as u64,
        arena_bytes: Some(module.arena_bytes),
        ..Report::default()
    };
    let weights = (weights == Weights::Apart).then_some(constants);
    let ports = Ports::of(program, layout);
    let script = script(&ports, &module, name, model, target, weights.as_ref().map_or(0, Vec::len));
    let types = types(&ports, model, weights.is_some());
    let dtypes = given(program).chain(&program.outputs).map(|p| p.dtype).collect();
    Ok(Web { wasm: module.bytes, script, types, weights, dtypes, report })
}

/// What a model takes and gives.
struct Ports<'a> {
    program: &'a Program,
    layout: &'a Layout,
    /// Names of the program's symbols.
    symbols: Vec<&'a str>,
}

impl<'a> Ports<'a> {
    fn of(program: &'a Program, layout: &'a Layout) -> Ports<'a> {
        Ports { program, layout, symbols: program.symbols.iter().map(|s| s.name.as_str()).collect() }
    }
    fn inputs(&self) -> Vec<&'a Port> {
        given(self.program).collect()
    }
    fn outputs(&self) -> Vec<&'a Port> {
        self.program.outputs.iter().collect()
    }
    /// A number, or an expression over names.
    fn dims(&self, port: &Port) -> Vec<Value> {
        port.dims.iter().map(|d| d.eval(&[]).map_or_else(|| json!(d.text(&self.symbols)), |n| json!(n))).collect()
    }
    /// What the script knows of a port, as JavaScript.
    fn script(&self, port: &Port) -> String {
        let dtype = dtype::name(port.dtype).unwrap_or("?");
        let bytes = self.layout.most(port) * i64::from(port.element);
        let (array, parts) = array(dtype);
        let factors = port.dims.iter().map(|d| self.formula(d));
        let count = [parts.to_string()].into_iter().chain(factors).collect::<Vec<_>>().join(" * ");
        format!(
            "{{ name: {}, dtype: \"{dtype}\", dims: {}, bytes: {bytes}, array: \"{array}\", parts: {parts}, changes: {}, count: (d) => {count} }}",
            json!(port.name),
            json!(self.dims(port)),
            changes(port)
        )
    }
    /// A size as JavaScript over `d`, the dims by name.
    fn formula(&self, size: &Size) -> String {
        let mut stack: Vec<String> = vec![];
        for op in &size.0 {
            let text = match op {
                SizeOp::Const(n) => n.to_string(),
                SizeOp::Symbol(s) => format!("d[{}]", json!(self.symbols[*s as usize])),
                op => {
                    let (b, a) = (stack.pop().unwrap_or_default(), stack.pop().unwrap_or_default());
                    match op {
                        SizeOp::Add => format!("({a} + {b})"),
                        SizeOp::Mul => format!("({a} * {b})"),
                        SizeOp::Div => format!("({b} === 0 ? 0 : Math.floor({a} / {b}))"),
                        SizeOp::Mod => format!("({b} === 0 ? 0 : {a} - {b} * Math.floor({a} / {b}))"),
                        SizeOp::Min => format!("Math.min({a}, {b})"),
                        _ => format!("Math.max({a}, {b})"),
                    }
                }
            };
            stack.push(text);
        }
        stack.pop().unwrap_or_default()
    }
}

/// A text within a comment of one line.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().replace("*/", "* /")
}

fn script(ports: &Ports<'_>, module: &Object, name: &str, model: &str, target: &TargetDesc, weights: usize) -> String {
    let mut text = format!(
        "// The model '{}', compiled by infc {} for {}: loads {name}.wasm, which needs nothing else.\n\
         // import {{ load }} from \"./{name}.mjs\"; const model = await load(); const outputs = model.run({{ INPUT: numbers }});\n\n",
        comment(model),
        env!("CARGO_PKG_VERSION"),
        target.name
    );
    text += "const MODEL = {\n";
    let mut line = |key: &str, value: Value| {
        let _ = writeln!(text, "  {key}: {value},");
    };
    line("name", json!(model));
    line("align", json!(infc_artifact::abi::ALIGN));
    line("arena", json!(module.arena_bytes));
    line("state", json!(module.state_bytes));
    line("weights", json!(weights));
    let dims = bounded::given(ports.program).map(|s| json!({ "name": ports.symbols[s], "most": ports.layout.ranges[s].1 }));
    line("dims", dims.collect());
    for (key, list) in [("inputs", ports.inputs()), ("outputs", ports.outputs())] {
        let lines: Vec<String> = list.iter().map(|p| format!("\n    {},", ports.script(p))).collect();
        let _ = writeln!(text, "  {key}: [{}{}],", lines.concat(), if lines.is_empty() { "" } else { "\n  " });
    }
    text += "};\n\n";
    // Written out, since bundlers look for it.
    let url = |ending: &str| format!("new URL({}, import.meta.url)", json!(format!("./{name}.{ending}")));
    let apart = if weights > 0 { url("bin") } else { "undefined".to_owned() };
    let _ = writeln!(text, "const codeFile = () => {};\n\nconst weightsFile = () => {apart};\n", url("wasm"));
    text + GLUE
}

/// The array of JavaScript that holds elements of a dtype, and how many of its numbers an element is. Halves are the bits of a number; integers of fewer than 8 bits have a byte of their own.
fn array(dtype: &str) -> (&'static str, i64) {
    match dtype {
        "f32" => ("Float32Array", 1),
        "f64" => ("Float64Array", 1),
        "c64" => ("Float32Array", 2),
        "c128" => ("Float64Array", 2),
        "f16" | "bf16" | "u16" => ("Uint16Array", 1),
        "i8" | "i4" | "i2" => ("Int8Array", 1),
        "i16" => ("Int16Array", 1),
        "i32" => ("Int32Array", 1),
        "i64" => ("BigInt64Array", 1),
        "u32" => ("Uint32Array", 1),
        "u64" => ("BigUint64Array", 1),
        _ => ("Uint8Array", 1),
    }
}

fn types(ports: &Ports<'_>, model: &str, apart: bool) -> String {
    let mut text = format!("/** The model '{}', compiled by infc {}. */\n", comment(model), env!("CARGO_PKG_VERSION"));
    for (name, doc, list) in [("Inputs", "takes", ports.inputs()), ("Outputs", "gives", ports.outputs())] {
        let _ = writeln!(text, "\n/** What it {doc}, row-major. */\nexport interface {name} {{");
        for p in list {
            let dtype = dtype::name(p.dtype).unwrap_or("?");
            let dims: Vec<String> = ports.dims(p).iter().map(|d| d.as_str().map_or_else(|| d.to_string(), comment)).collect();
            let _ = writeln!(text, "  /** {dtype}[{}] */\n  {}: {};", dims.join(", "), json!(p.name), array(dtype).0);
        }
        text += "}\n";
    }
    text += "\n/** Dims that are open: a run takes them, or finds them out by the number of elements of an input that has no other one. */\nexport interface Dims {\n";
    for s in bounded::given(ports.program) {
        let _ = writeln!(text, "  /** At most {}. */\n  {}?: number;", ports.layout.ranges[s].1, json!(ports.symbols[s]));
    }
    text += "}\n";
    text += "\n/** An input or output. */\nexport interface Port {\n  name: string;\n  dtype: string;\n  dims: (number | string)[];\n}\n\
             \n/** What it takes and gives. */\nexport const info: { name: string; inputs: Port[]; outputs: Port[]; dims: { name: string; most: number }[] };\n\
             \n/** A run that failed. */\nexport class ModelError extends Error {}\n\
             \n/** Where bytes come from: a URL, a response of `fetch`, or themselves. */\n\
             export type Source = URL | string | Response | ArrayBuffer | Uint8Array | Promise<Response>;\n\
             \n/** Values for an input. */\ntype Given<T> = T extends BigInt64Array | BigUint64Array ? T | bigint[] : T | number[];\n\
             \n/** The model with its memory. */\nexport class Model {\n\
             \x20 /** The inputs' memory, which `execute` takes. */\n  readonly inputs: Readonly<Inputs>;\n\
             \x20 /** The outputs' memory, which the last run has written. */\n  readonly outputs: Readonly<Outputs>;\n\
             \x20 /** Runs on these inputs, those of the run before where they are left out, and gives copies of the outputs. */\n\
             \x20 run(inputs?: { [K in keyof Inputs]?: Given<Inputs[K]> }, dims?: Dims): Outputs;\n\
             \x20 /** Runs on what is in `inputs` and writes `outputs`; nothing is copied. */\n  execute(dims?: Dims): void;\n\
             \x20 /** The dims of the outputs, after a run. */\n  readonly dims: { [K in keyof Outputs]: number[] };\n\
             \x20 /** Starts over: what one run keeps for the next is zeros again. */\n  reset(): void;\n}\n\n";
    let weights = if apart { "; weights?: Source" } else { "" };
    let _ = writeln!(
        text,
        "/** Loads the model, from the file{} beside the script if nothing is said. */\n\
         export function load(from?: {{ module?: Source | WebAssembly.Module{weights} }}): Promise<Model>;",
        if apart { "s" } else { "" }
    );
    text
}
