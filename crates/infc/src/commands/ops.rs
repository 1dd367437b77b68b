//! `infc ops`: the operators that models may use.

use crate::say;
use crate::term::{Exit, Result, Style};
use infc_ir::op::{MANY, OpInfo, Road, road};
use infc_onnx::{Supported, supported};

/// List the operators of all domains: operator sets, how they run, dtypes, what each does
///
/// How: native (loops of its own), view (no work), decomposed (other operators, all native), control (bodies are compiled), host (a routine
/// of the host: strings, sequences, optionals, maps, images), raised (an older or foreign form that becomes other operators when it is read),
/// missing. Dtypes are those of the first operand.
#[derive(clap::Args)]
pub struct Args {
    /// Only operators whose name contains this, in any case.
    name: Option<String>,
    /// Only those that are not supported yet.
    #[arg(long)]
    gaps: bool,
    /// One JSON array.
    #[arg(long)]
    json: bool,
}

/// Prints them.
pub fn run(args: &Args) -> Result {
    let matches = |s: &Supported| {
        let name = args.name.as_ref().is_none_or(|n| s.name.to_lowercase().contains(&n.to_lowercase()));
        name && (!args.gaps || how(s) == "missing")
    };
    let rows: Vec<Supported> = supported().into_iter().filter(matches).collect();
    if args.json {
        let json: Vec<_> = rows.iter().map(as_json).collect();
        say!("{}", serde_json::Value::from(json));
        return Ok(Exit::Ok);
    }
    let style = Style::stdout();
    let width = rows.iter().map(|s| full_name(s).len()).max().unwrap_or(0);
    for s in &rows {
        let how = format!("{:10}", how(s));
        let how = if how.starts_with("missing") { style.red(&how) } else { style.green(&how) };
        let (first, last) = s.opsets;
        say!(
            "{:width$}  {how}  {:>5}  {:7}  {}  {}",
            full_name(s),
            format!("{first}-{last}"),
            operands(s.row),
            s.doc,
            style.dim(&dtypes(s))
        );
    }
    let done = rows.iter().filter(|s| how(s) != "missing").count();
    match (&args.name, args.gaps) {
        (None, true) if rows.is_empty() => say!("no operator is missing"),
        (Some(name), true) if rows.is_empty() => say!("no operator with '{name}' in its name is missing"),
        (Some(name), false) if rows.is_empty() => say!("no operator has '{name}' in its name"),
        _ => say!("{done} of {} operators are supported", rows.len()),
    }
    Ok(Exit::Ok)
}

/// How it runs.
fn how(s: &Supported) -> String {
    s.row.map_or("raised".to_owned(), |row| road(row).to_string())
}

fn full_name(s: &Supported) -> String {
    if s.domain.is_empty() { s.name.to_owned() } else { format!("{}:{}", s.domain, s.name) }
}

fn dtypes(s: &Supported) -> String {
    let names: Vec<&str> = s.dtypes.iter().map(|d| d.name()).chain(s.containers.iter().copied()).collect();
    names.join(" ")
}

/// `2-3>1`: operands and results.
fn operands(row: Option<&OpInfo>) -> String {
    let Some(o) = row else { return String::new() };
    let range = |(least, most): (usize, usize)| match most {
        MANY => format!("{least}+"),
        _ if least == most => least.to_string(),
        _ => format!("{least}-{most}"),
    };
    format!("{}>{}", range(o.inputs), range(o.outputs))
}

fn as_json(s: &Supported) -> serde_json::Value {
    let most = |n: usize| if n == MANY { serde_json::Value::Null } else { n.into() };
    let dtypes: Vec<&str> = s.dtypes.iter().map(|d| d.name()).collect();
    let mut json = serde_json::json!({
        "domain": s.domain, "name": s.name, "opsets": [s.opsets.0, s.opsets.1], "versions": s.versions, "dtypes": dtypes,
        "containers": s.containers, "attributes": s.attributes, "how": how(s),
        "supported": s.row.is_none_or(|o| road(o) != Road::Missing), "doc": s.doc,
    });
    if let (Some(o), Some(json)) = (s.row, json.as_object_mut()) {
        json.insert("since".to_owned(), o.since.into());
        json.insert("family".to_owned(), o.family.into());
        json.insert("inputs".to_owned(), serde_json::json!([o.inputs.0, most(o.inputs.1)]));
        json.insert("outputs".to_owned(), serde_json::json!([o.outputs.0, most(o.outputs.1)]));
        json.insert("regions".to_owned(), serde_json::json!(o.regions));
    }
    json
}
