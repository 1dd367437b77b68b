//! How much a run of a model takes: arithmetic operations of the lowered program, for inputs of given sizes.

use infc_artifact::program::{Size, Step, SymbolSource};
use infc_ir::expr::Node;
use infc_ir::interp::Item;
use infc_kernel::program::{Launch, Lowered};

/// Operations of a run on these inputs. Both branches of an If count; a size that only data tells counts as 1.
pub fn operations(lowered: &Lowered, inputs: &[Item]) -> f64 {
    let program = &lowered.program;
    let dim = |input: u32, axis: u32| inputs.get(input as usize)?.as_tensor()?.dims.get(axis as usize).map(|&d| d as i64);
    let value = |source| match source {
        SymbolSource::Input { input, axis } => dim(input, axis).unwrap_or(1),
        SymbolSource::Step => 1,
    };
    let symbols: Vec<(&str, i64)> = program.symbols.iter().map(|s| (s.name.as_str(), value(s.source))).collect();
    total(&program.steps, &mut lowered.launches.iter(), &symbols)
}

fn total(steps: &[Step], launches: &mut std::slice::Iter<Launch>, symbols: &[(&str, i64)]) -> f64 {
    let named = |e: infc_ir::Expr| match e.node() {
        Node::Sym(s) => Some(symbols.iter().find(|(name, _)| name == s).map_or(1, |s| s.1)),
        _ => None,
    };
    let values: Vec<i64> = symbols.iter().map(|s| s.1).collect();
    let size = |s: &Size| s.eval(&values).unwrap_or(1).max(0) as f64;
    let mut sum = 0.0;
    for step in steps {
        sum += match step {
            Step::Launch { .. } | Step::HostLaunch { .. } => {
                launches.next().and_then(|l| l.operations.eval(&named)).unwrap_or(0).max(0) as f64
            }
            Step::If { then, otherwise, .. } => total(then, launches, symbols) + total(otherwise, launches, symbols),
            Step::Loop { count, body, .. } => size(count) * total(body, launches, symbols),
            Step::Copy { .. }
            | Step::Bind { .. }
            | Step::Require { .. }
            | Step::Host { .. }
            | Step::ToHost { .. }
            | Step::ToDevice { .. } => 0.0,
        };
    }
    sum
}
