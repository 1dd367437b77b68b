//! `infc inspect`: what is in an artifact or a model.

use super::compile::{import, readable};
use super::model;
use crate::say;
use crate::term::{self, Exit, Failure, Result};
use infc::compile::{Manifest, symbols};
use infc_artifact::container::{ContainerError, Kind, Reader, Requirements};
use infc_artifact::decode::decode;
use infc_artifact::program::{Port, Program, Size, Step};
use infc_ir::{Graph, Problems, Value};
use infc_runtime::variant;
use prost::Message;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Say what is in an artifact or a model
#[derive(clap::Args)]
pub struct Args {
    /// An artifact (.infc) or an ONNX file.
    file: PathBuf,
    /// Read all weights of an artifact and compare them with their digest, and check the programs of all variants.
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
    let constants = || reader.check_constants().map_err(|e| container_problem(&args.file, &e));
    let checked = args.check.then(|| constants().and_then(|()| check_programs(&reader, args)));
    print_artifact(&reader, args)?;
    match checked {
        Some(Err(problems)) => Err(Failure { exit: Exit::Failed, problems }),
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
    name: String,
    requirements: String,
    /// It is the one that this computer would run.
    chosen: bool,
    /// Why this computer cannot run it.
    refused: Option<String>,
    code: u64,
    /// Bytes of code for the CPU beside a device.
    host_code: u64,
    program_bytes: u64,
    /// Bytes of the constants that it uses, and of those that no other variant does.
    constants: (u64, u64),
    program: Program,
}

/// All variants, as this computer sees them.
fn variants(reader: &Reader, args: &Args) -> std::result::Result<Vec<Variant>, Problems> {
    let fail = |e: ContainerError| container_problem(&args.file, &e);
    let chosen = variant::choose(reader.requirements(), None).ok();
    let mut out = vec![];
    for (i, r) in reader.requirements().iter().enumerate() {
        let section = reader.section(Kind::Program, i as u32).map_err(fail)?;
        let program = decode(reader.bytes(section))
            .map_err(|e| Problems::one(args.file.display().to_string(), format!("the program is damaged: {e}"), ""))?;
        out.push(Variant {
            name: r.name.clone(),
            requirements: needs(r),
            chosen: chosen == Some(i),
            refused: variant::check(r).err().map(|e| e.to_string()),
            code: reader.section(Kind::Code, i as u32).map_err(fail)?.length,
            host_code: reader.find(Kind::HostCode, i as u32).map_or(0, |s| s.length),
            program_bytes: section.length,
            constants: (0, 0),
            program,
        });
    }
    let uses: Vec<Vec<(u64, u64)>> = out.iter().map(|v| v.program.constants()).collect();
    let all = covered(uses.concat());
    for (i, v) in out.iter_mut().enumerate() {
        let others = uses.iter().enumerate().filter(|(k, _)| *k != i).flat_map(|(_, u)| u.clone()).collect();
        v.constants = (covered(uses[i].clone()), all - covered(others));
    }
    Ok(out)
}

/// The bytes that ranges of offset and length cover together.
fn covered(mut ranges: Vec<(u64, u64)>) -> u64 {
    ranges.sort_unstable();
    let (mut end, mut sum) = (0u64, 0u64);
    for (offset, bytes) in ranges {
        let to = offset.saturating_add(bytes);
        sum += to.saturating_sub(end.max(offset));
        end = end.max(to);
    }
    sum
}

/// The programs of all variants are well-formed; loading looks at the one that it runs alone.
fn check_programs(reader: &Reader, args: &Args) -> std::result::Result<(), Problems> {
    let constants = reader.find(Kind::Constants, 0).map_or(0, |s| s.length);
    for v in variants(reader, args)? {
        let at = |e| format!("the program of variant '{}' is malformed: {e}", v.name);
        let file = args.file.display().to_string();
        v.program
            .validate_beside(v.code, v.host_code, constants)
            .map_err(|e| Problems::one(file, at(e), "compile the model again, or get the file again"))?;
    }
    Ok(())
}

fn print_artifact(reader: &Reader, args: &Args) -> std::result::Result<(), Failure> {
    let fail = |e: ContainerError| container_problem(&args.file, &e);
    let section = |kind, variant| reader.section(kind, variant).map_err(fail);
    let manifest = Manifest::decode(reader.bytes(section(Kind::Manifest, 0)?))
        .map_err(|e| Problems::one(args.file.display().to_string(), format!("the manifest is damaged: {e}"), ""))?;
    let constants = section(Kind::Constants, 0)?.length;
    let variants = variants(reader, args)?;
    if args.json {
        let json = variants.iter().map(variant_json).collect::<Vec<_>>();
        say!(
            "{}",
            serde_json::json!({
                "model": manifest.model, "compiler": manifest.compiler, "generator": manifest.generator, "target": manifest.target, "dims": manifest.dims,
                "states": manifest.states, "threads": manifest.threads, "math": manifest.math, "passes": manifest.passes, "constant_bytes": constants, "variants": json,
            })
        );
        return Ok(());
    }
    let with = manifest.generator.as_ref().map_or(String::new(), |g| format!(" with {g}"));
    say!("model '{}', compiled by infc {}{with} for {}", manifest.model, manifest.compiler, manifest.target);
    if let Some(threads) = manifest.threads {
        say!("threads: {}", if threads == 0 { "one for each CPU".to_owned() } else { threads.to_string() });
    }
    if let Some(math) = &manifest.math {
        match math.as_str() {
            "winograd" => say!("products of f32: convolutions with windows of 3 by minimal filtering"),
            _ => say!("products of f32: factors rounded to {math}"),
        }
    }
    if !manifest.dims.is_empty() {
        say!("dims: {}", manifest.dims.join(", "));
    }
    say!("constants: {}", term::bytes(constants));
    for (i, v) in variants.iter().enumerate() {
        let arena = v.program.arena.map_or("depends on the shapes".to_owned(), term::bytes);
        let here = match &v.refused {
            _ if v.chosen => "runs here".to_owned(),
            None => "could run here".to_owned(),
            Some(why) => format!("cannot run here: {why}"),
        };
        say!("variant '{}': {here}", v.name);
        say!("needs: {}", v.requirements);
        say!(
            "code: {}, {} kernels, {} steps; memory: {arena}",
            term::bytes(v.code),
            v.program.kernels.len(),
            steps(&v.program.steps)
        );
        if variants.len() > 1 {
            let (uses, alone) = v.constants;
            say!(
                "in the file: {}; uses {} of the constants, {} of them alone",
                term::bytes(v.code + v.host_code + v.program_bytes + alone),
                term::bytes(uses),
                term::bytes(alone)
            );
        }
        if v.host_code > 0 {
            say!("code for the CPU beside the GPU: {}, {} kernels", term::bytes(v.host_code), v.program.host_kernels.len());
        }
        let (host, lines) = (v.program.host_nodes(), infc::beside::lines(&v.program));
        lines.iter().for_each(|line| say!("{line}"));
        if !host.is_empty() && lines.is_empty() {
            say!("on the host: {}", host.join(", "));
        }
        if i > 0 && interface(v) == interface(&variants[0]) {
            continue;
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

/// Architecture and features, in words.
fn needs(r: &Requirements) -> String {
    let one = |r: &Requirements| format!("{} {}", r.arch, r.features.join(" ")).trim_end().to_owned();
    match &r.host {
        None => format!("{} {}", r.arch, r.features.join(" ")),
        Some(host) => format!("{}, and beside it {} ({})", one(r), one(host), host.name),
    }
}

/// What a program takes and gives, which is the same for all variants of a model.
fn interface(v: &Variant) -> (Vec<(&str, String)>, &[(u32, u32)]) {
    let ports = v.program.inputs.iter().chain(&v.program.outputs);
    (ports.map(|p| (p.name.as_str(), port_type(p, &v.program))).collect(), &v.program.states)
}

fn variant_json(v: &Variant) -> serde_json::Value {
    let ports = |ports: &[Port]| {
        ports.iter().map(|p| serde_json::json!({"name": p.name, "type": port_type(p, &v.program)})).collect::<Vec<_>>()
    };
    let kernels: Vec<_> = v.program.kernels.iter().map(|k| &k.name).collect();
    serde_json::json!({
        "name": v.name, "chosen": v.chosen, "refused": v.refused, "program_bytes": v.program_bytes, "constant_bytes": v.constants.0,
        "own_constant_bytes": v.constants.1, "requirements": v.requirements, "code_bytes": v.code, "arena_bytes": v.program.arena, "steps": steps(&v.program.steps),
        "kernels": kernels, "host": v.program.host_nodes(), "host_code_bytes": v.host_code, "host_steps": infc::beside::lines(&v.program), "inputs": ports(&v.program.inputs), "outputs": ports(&v.program.outputs),
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
