//! Export: a graph to an ONNX file. An unedited graph leaves as it came (in the newest form of its operators): names, constants,
//! bodies, metadata. Here: the model, files and external data. Graphs are in `graph.rs`, names in `names.rs`, operator set
//! versions in `forms.rs`.

mod forms;
mod graph;
mod names;

use crate::proto::{
    GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataLocation,
};
use infc_ir::op::OpInfo;
use infc_ir::{Graph, Problem, Problems};
use prost::Message;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Files larger than this keep their constants beside them (protobuf ends at 2 GiB).
pub const INLINE_LIMIT: usize = 1_900_000_000;
/// Constants smaller than this stay in the model in any case.
const SMALL: usize = 1024;
/// Alignment of external constants, so that they can be mapped.
const ALIGN: usize = 4096;

/// Serialises a graph as a `ModelProto`.
pub fn export(graph: &Graph) -> Result<Vec<u8>, Problems> {
    let model = model(graph)?;
    let size = model.encoded_len();
    if size > i32::MAX as usize {
        let help = "write it to a file: constants then go to a second file beside it";
        return Err(Problems::one("model", format!("{size} bytes do not fit into one protobuf message"), help));
    }
    Ok(model.encode_to_vec())
}

/// Writes a graph to a file: under a temporary name first, so that a failure leaves nothing half-written. Constants go to
/// `NAME.data` beside it if the file would be too large.
pub fn write(graph: &Graph, path: &Path) -> Result<(), Problems> {
    write_with(graph, path, INLINE_LIMIT)
}

/// As [`write`], with another limit.
pub fn write_with(graph: &Graph, path: &Path, inline_limit: usize) -> Result<(), Problems> {
    let failed = |e: std::io::Error| Problems::one(path.display().to_string(), format!("cannot be written: {e}"), "");
    if fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        // A pipe or a device must not be replaced by a file.
        return fs::write(path, export(graph)?).map_err(failed);
    }
    let mut model = model(graph)?;
    let name = path.file_name().ok_or_else(|| failed(std::io::Error::other("is no file name")))?.to_string_lossy().into_owned();
    let data = path.with_file_name(format!("{name}.data"));
    let external = model.encoded_len() > inline_limit;
    let mut temporaries = Temporaries(vec![]);
    if external {
        let temporary = temporaries.add(&data);
        let mut out = BufWriter::new(File::create(&temporary).map_err(failed)?);
        let mut at = 0;
        if let Some(g) = &mut model.graph {
            move_constants(g, &format!("{name}.data"), &mut out, &mut at).map_err(failed)?;
        }
        out.into_inner().map_err(|e| failed(e.into_error()))?.sync_all().map_err(failed)?;
    }
    let temporary = temporaries.add(path);
    fs::write(&temporary, model.encode_to_vec()).map_err(failed)?;
    if external {
        fs::rename(&temporaries.0[0], &data).map_err(failed)?;
    }
    fs::rename(&temporary, path).map_err(failed)
}

/// Temporary files, removed at the end if they are still there.
struct Temporaries(Vec<PathBuf>);

impl Temporaries {
    fn add(&mut self, path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        self.0.push(temporary.clone());
        temporary
    }
}

impl Drop for Temporaries {
    fn drop(&mut self) {
        for path in &self.0 {
            _ = fs::remove_file(path); // gone already if all went well
        }
    }
}

/// Moves the elements of constants to `out`, bodies included.
fn move_constants(g: &mut GraphProto, file: &str, out: &mut impl Write, at: &mut usize) -> std::io::Result<()> {
    for t in &mut g.initializer {
        move_tensor(t, file, out, at)?;
    }
    let bodies = g.node.iter_mut().flat_map(|n| &mut n.attribute).filter(|a| a.r#type == Some(AttributeType::Graph as i32));
    bodies.filter_map(|a| a.g.as_mut()).try_for_each(|g| move_constants(g, file, out, at))
}

fn move_tensor(t: &mut TensorProto, file: &str, out: &mut impl Write, at: &mut usize) -> std::io::Result<()> {
    let Some(raw) = t.raw_data.take_if(|r| r.len() >= SMALL) else { return Ok(()) };
    let start = at.next_multiple_of(ALIGN);
    out.write_all(&vec![0; start - *at])?;
    out.write_all(&raw)?;
    *at = start + raw.len();
    let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.to_owned()), value: Some(v) };
    t.external_data =
        vec![entry("location", file.to_owned()), entry("offset", start.to_string()), entry("length", raw.len().to_string())];
    t.data_location = Some(DataLocation::External as i32);
    Ok(())
}

fn model(graph: &Graph) -> Result<ModelProto, Problems> {
    let mut problems = vec![];
    let opsets = opsets(graph, &mut problems);
    let mut names = names::assign(graph);
    let g = graph::main(graph, &mut names, &mut problems);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let field = |name: &str| {
        let key = format!("onnx:{name}");
        graph.metadata.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone())
    };
    let props = graph.metadata.iter().filter(|(k, _)| !k.starts_with("onnx:"));
    let set = |(domain, version): &(String, i64)| OperatorSetIdProto { domain: Some(domain.clone()), version: Some(*version) };
    let mut model = ModelProto {
        // Constants that are no inputs came with version 4.
        ir_version: Some(graph.ir_version.max(4).max(forms::ir_version(&opsets))),
        opset_import: opsets.iter().map(set).collect(),
        producer_name: field("producer_name"),
        producer_version: field("producer_version"),
        domain: field("domain"),
        model_version: field("model_version").and_then(|v| v.parse().ok()),
        doc_string: field("doc_string"),
        graph: Some(g),
        metadata_props: props.map(|(k, v)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) }).collect(),
        ..ModelProto::default()
    };
    if let Some(g) = &mut model.graph {
        g.doc_string = field("graph.doc_string");
    }
    Ok(model)
}

/// The operator sets the file needs: the model's own, raised to what the forms of its operators ask for.
fn opsets(graph: &Graph, problems: &mut Vec<Problem>) -> Vec<(String, i64)> {
    let known = |d: &str| d.is_empty() || infc_ir::op::OPS.iter().any(|o| o.domain == d);
    let mut sets: Vec<(String, i64)> = graph.opsets.iter().filter(|(d, _)| known(d)).cloned().collect();
    if !sets.iter().any(|(d, _)| d.is_empty()) {
        sets.insert(0, (String::new(), forms::OLDEST));
    }
    for r in graph.live_regions() {
        for &n in &graph.region(r).nodes {
            let info: &OpInfo = graph.node(n).op.info();
            if info.domain == "infc" {
                let help = "export before the passes that make such operators";
                let message = "is an operator of the compiler, which ONNX does not have";
                problems.push(Problem { at: graph.describe(n), message: message.into(), help: help.into() });
                continue;
            }
            let needed = forms::needed(graph, n);
            match sets.iter_mut().find(|(d, _)| d == info.domain) {
                Some((_, version)) => *version = needed.max(*version),
                None => sets.push((info.domain.to_owned(), needed)),
            }
        }
    }
    sets
}
