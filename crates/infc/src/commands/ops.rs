//! `infc ops`: the operator table.

use crate::say;
use crate::term::{Exit, Result, Style};
use infc_ir::op::{MANY, OPS, OpInfo, gaps};
use std::collections::HashSet;

/// List the operators, with what each does and which are not supported yet
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
    let missing: HashSet<&str> = gaps().collect();
    let matches = |o: &&OpInfo| {
        let name = args.name.as_ref().is_none_or(|n| o.name.to_lowercase().contains(&n.to_lowercase()));
        name && (!args.gaps || missing.contains(o.name))
    };
    let rows: Vec<&OpInfo> = OPS.iter().filter(matches).collect();
    if args.json {
        let json: Vec<_> = rows.iter().map(|o| as_json(o, !missing.contains(o.name))).collect();
        say!("{}", serde_json::Value::from(json));
        return Ok(Exit::Ok);
    }
    let style = Style::stdout();
    let width = rows.iter().map(|o| full_name(o).len()).max().unwrap_or(0);
    for o in &rows {
        let state = if missing.contains(o.name) { style.red("not yet") } else { style.green("yes    ") };
        say!("{:width$}  {state}  {:>3}  {:7}  {}", full_name(o), o.since, operands(o), o.doc.trim());
    }
    let done = rows.iter().filter(|o| !missing.contains(o.name)).count();
    say!("{done} of {} operators are supported", rows.len());
    Ok(Exit::Ok)
}

fn full_name(o: &OpInfo) -> String {
    if o.domain.is_empty() { o.name.to_owned() } else { format!("{}:{}", o.domain, o.name) }
}

/// `2-3>1`: operands and results.
fn operands(o: &OpInfo) -> String {
    let range = |(least, most): (usize, usize)| match most {
        MANY => format!("{least}+"),
        _ if least == most => least.to_string(),
        _ => format!("{least}-{most}"),
    };
    format!("{}>{}", range(o.inputs), range(o.outputs))
}

fn as_json(o: &OpInfo, supported: bool) -> serde_json::Value {
    let most = |n: usize| if n == MANY { serde_json::Value::Null } else { n.into() };
    serde_json::json!({
        "domain": o.domain, "name": o.name, "since": o.since, "family": o.family, "supported": supported, "doc": o.doc.trim(),
        "inputs": [o.inputs.0, most(o.inputs.1)], "outputs": [o.outputs.0, most(o.outputs.1)],
        "attributes": o.attributes, "regions": o.regions,
    })
}
