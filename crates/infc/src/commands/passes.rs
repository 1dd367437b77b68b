//! `infc passes`: what the pass manager can do.

use crate::say;
use crate::term::{Exit, Result};
use infc_passes::{Class, PASSES, pipeline};

/// List the passes, and the order in which `compile` runs them
#[derive(clap::Args)]
pub struct Args {
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints them.
pub fn run(args: &Args) -> Result {
    let order = pipeline();
    if args.json {
        let passes: Vec<_> =
            PASSES.iter().map(|p| serde_json::json!({"name": p.name, "class": class(p.class), "doc": p.doc})).collect();
        say!("{}", serde_json::json!({ "passes": passes, "pipeline": order }));
        return Ok(Exit::Ok);
    }
    let width = PASSES.iter().map(|p| p.name.len()).max().unwrap_or(0);
    for p in PASSES {
        say!("{:width$}  {:12}  {}", p.name, class(p.class), p.doc);
    }
    say!("pipeline: {}", order.join(" "));
    Ok(Exit::Ok)
}

/// How equal results are before and after.
fn class(class: Class) -> &'static str {
    match class {
        Class::Exact => "exact",
        Class::SameOrder => "same order",
        Class::Reassociated => "reassociated",
        Class::OneRounding => "one rounding",
    }
}
