//! `infc inspect`: what is in an artifact or a model.

use super::compile::{import, readable};
use super::model;
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use infc::compile::{Manifest, symbols};
use infc_artifact::container::{ContainerError, Kind, Reader};
use infc_artifact::decode::decode;
use infc_artifact::program::{Port, Program, Size, Step};
use infc_ir::{Graph, Problems, Value};
use prost::Message;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Say what is in an artifact or a model
#[derive(clap::Args)]
pub struct Args {
    /// An artifact (.infc) or an ONNX file.
    file: PathBuf,
    /// Read all weights of an artifact and compare them with their digest.
    #[arg(long)]
    check: bool,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints it.
pub fn run(args: &Args) -> Result {
    readable(&args.file)?;
    if !model::is_artifact(&args.file)? {
        if args.check {
            return Err(Failure::usage("--check is for artifacts", "`infc verify` checks models"));
        }
        return inspect_model(&import(&args.file)?, args);
    }
    let bytes = std::fs::read(&args.file).map_err(|e| Failure::io(&args.file, &e))?;
    let reader = Reader::open(&bytes).map_err(|e| container_problem(&args.file, &e))?;
    let checked = args.check.then(|| reader.check_constants());
    print_artifact(&reader, args)?;
    match checked {
        Some(Err(e)) => Err(Failure { exit: Exit::Failed, problems: container_problem(&args.file, &e) }),
        Some(Ok(())) => {
            if !args.json {
                say!("all digests match");
            }
            Ok(Exit::Ok)
        }
        None => Ok(Exit::Ok),
    }
}

fn container_problem(path: &Path, e: &ContainerError) -> Problems {
    Problems::one(path.display().to_string(), e.to_string(), "compile the model again, or get the file again")
}

/// What one variant is made of.
struct Variant {
    requirements: String,
    code: u64,
    program: Program,
}

fn print_artifact(reader: &Reader, args: &Args) -> std::result::Result<(), Failure> {
    let fail = |e: ContainerError| container_problem(&args.file, &e);
    let section = |kind, variant| reader.section(kind, variant).map_err(fail);
    let manifest = Manifest::decode(reader.bytes(section(Kind::Manifest, 0)?))
        .map_err(|e| Problems::one(args.file.display().to_string(), format!("the manifest is damaged: {e}"), ""))?;
    let constants = section(Kind::Constants, 0)?.length;
    let mut variants = vec![];
    for (i, r) in reader.requirements().iter().enumerate() {
        let program = decode(reader.bytes(section(Kind::Program, i as u32)?))
            .map_err(|e| Problems::one(args.file.display().to_string(), format!("the program is damaged: {e}"), ""))?;
        let code = section(Kind::Code, i as u32)?.length;
        variants.push(Variant { requirements: format!("{} {}", r.arch, r.features.join(" ")), code, program });
    }
    if args.json {
        let json = variants.iter().map(variant_json).collect::<Vec<_>>();
        say!(
            "{}",
            serde_json::json!({
                "model": manifest.model, "compiler": manifest.compiler, "target": manifest.target, "dims": manifest.dims,
                "states": manifest.states, "threads": manifest.threads, "passes": manifest.passes, "constant_bytes": constants, "variants": json,
            })
        );
        return Ok(());
    }
    say!("model '{}', compiled by infc {} for {}", manifest.model, manifest.compiler, manifest.target);
    if let Some(threads) = manifest.threads {
        say!("threads: {}", if threads == 0 { "one for each CPU".to_owned() } else { threads.to_string() });
    }
    if !manifest.dims.is_empty() {
        say!("dims: {}", manifest.dims.join(", "));
    }
    say!("constants: {}", term::bytes(constants));
    for v in &variants {
        let arena = v.program.arena.map_or("depends on the shapes".to_owned(), term::bytes);
        say!("needs: {}", v.requirements);
        say!(
            "code: {}, {} kernels, {} steps; memory: {arena}",
            term::bytes(v.code),
            v.program.kernels.len(),
            steps(&v.program.steps)
        );
        let host = v.program.host_nodes();
        if !host.is_empty() {
            say!("on the host: {}", host.join(", "));
        }
        for (what, ports) in [("input", &v.program.inputs), ("output", &v.program.outputs)] {
            for p in ports {
                say!("{what} '{}': {}", p.name, port_type(p, &v.program));
            }
        }
        for &(output, input) in &v.program.states {
            let (output, input) = (&v.program.outputs[output as usize].name, &v.program.inputs[input as usize].name);
            say!("state: output '{output}' is input '{input}' of the next run");
        }
    }
    Ok(())
}

fn variant_json(v: &Variant) -> serde_json::Value {
    let ports = |ports: &[Port]| {
        ports.iter().map(|p| serde_json::json!({"name": p.name, "type": port_type(p, &v.program)})).collect::<Vec<_>>()
    };
    let kernels: Vec<_> = v.program.kernels.iter().map(|k| &k.name).collect();
    serde_json::json!({
        "requirements": v.requirements, "code_bytes": v.code, "arena_bytes": v.program.arena, "steps": steps(&v.program.steps),
        "kernels": kernels, "host": v.program.host_nodes(), "inputs": ports(&v.program.inputs), "outputs": ports(&v.program.outputs),
    })
}

fn steps(steps: &[Step]) -> usize {
    infc_artifact::validate::count_steps(steps)
}

fn port_type(p: &Port, program: &Program) -> String {
    if p.dtype == 0 {
        return program.slots.get(p.buffer as usize).map_or("?".to_owned(), |slot| slot.ty.to_string());
    }
    let names: Vec<&str> = program.symbols.iter().map(|s| s.name.as_str()).collect();
    let dims: Vec<String> = p.dims.iter().map(|d: &Size| d.text(&names)).collect();
    format!("{}[{}]", infc_artifact::dtype::name(p.dtype).unwrap_or("?"), dims.join(", "))
}

fn inspect_model(graph: &Graph, args: &Args) -> Result {
    let mut ops: BTreeMap<String, usize> = BTreeMap::new();
    for node in graph.live_regions().iter().flat_map(|&r| &graph.region(r).nodes).map(|&n| graph.node(n)) {
        let info = node.op.info();
        let name = if info.domain.is_empty() { info.name.to_owned() } else { format!("{}:{}", info.domain, info.name) };
        *ops.entry(name).or_default() += 1;
    }
    let constants: usize = graph
        .values
        .iter()
        .filter_map(|v| match &v.def {
            infc_ir::graph::Def::Constant(t) => Some(t.bytes().len()),
            _ => None,
        })
        .sum();
    let opsets: Vec<String> =
        graph.opsets.iter().map(|(d, v)| format!("{} {v}", if d.is_empty() { "ai.onnx" } else { d })).collect();
    let ports =
        |values: &[Value]| values.iter().map(|&v| (graph.value(v).name.clone(), graph.ty(v).to_string())).collect::<Vec<_>>();
    let (inputs, outputs) = (ports(graph.inputs()), ports(graph.outputs()));
    if args.json {
        let json = |ports: &[(String, String)]| {
            ports.iter().map(|(name, ty)| serde_json::json!({"name": name, "type": ty})).collect::<Vec<_>>()
        };
        say!(
            "{}",
            serde_json::json!({
                "model": graph.name, "ir_version": graph.ir_version, "opsets": opsets, "symbols": symbols(graph),
                "constant_bytes": constants, "operators": ops, "inputs": json(&inputs), "outputs": json(&outputs),
            })
        );
        return Ok(Exit::Ok);
    }
    say!("model '{}', IR version {}, opsets: {}", graph.name, graph.ir_version, opsets.join(", "));
    say!("constants: {}", term::bytes(constants as u64));
    for (what, ports) in [("input", inputs), ("output", outputs)] {
        ports.iter().for_each(|(name, ty)| say!("{what} '{name}': {ty}"));
    }
    let listed: Vec<String> = ops.iter().map(|(name, n)| format!("{n} {name}")).collect();
    say!("{} nodes: {}", ops.values().sum::<usize>(), listed.join(", "));
    Ok(Exit::Ok)
}
