//! What operators take for granted of sizes that only a run can tell: operands that must agree, dims that must be 1.
//!
//! Inference accepts whatever may be right. Where it would be wrong for some sizes it says so here, and the importer keeps that
//! with the graph ([`Graph::requires`]), for the runs to check before anything is computed.

use crate::expr::{Expr, Node as ExprNode};
use crate::graph::{Graph, Node, Requirement};
use std::cell::RefCell;
use std::collections::HashSet;

thread_local! {
    /// Where conditions are noted; `None` where nobody asks.
    static NOTED: RefCell<Option<Vec<Requirement>>> = const { RefCell::new(None) };
}

/// Notes that two sizes must be equal.
pub(crate) fn must_equal(left: Expr, right: Expr, text: &dyn Fn() -> String) {
    note(left, right, [false, false], text);
}

/// Notes that two sizes are equal in the types that inference gives; others are right too, but give other ranks.
pub(super) fn taken_equal(left: Expr, right: Expr, text: &dyn Fn() -> String) {
    note(left, right, [false, true], text);
}

/// Notes that two sizes must be equal, or one of them 1.
pub(super) fn must_broadcast(left: Expr, right: Expr, text: &dyn Fn() -> String) {
    note(left, right, [true, false], text);
}

fn note(left: Expr, right: Expr, [or_one, assumed]: [bool; 2], text: &dyn Fn() -> String) {
    if left == right || left.known().is_some() && right.known().is_some() {
        return; // inference itself decides it
    }
    NOTED.with_borrow_mut(|noted| {
        if let Some(noted) = noted {
            noted.push(Requirement { left, right, or_one, at: String::new(), text: text(), assumed });
        }
    });
}

/// The symbols that runs know before they compute anything: dims of the inputs that are nothing but a symbol.
pub fn input_symbols(graph: &Graph) -> HashSet<&'static str> {
    let dims = graph.inputs().iter().filter_map(|&v| graph.ty(v).as_tensor()).flat_map(|t| &t.dims);
    dims.filter_map(|d| if let ExprNode::Sym(s) = d.node() { Some(*s) } else { None }).collect()
}

/// What `f` takes for granted of sizes, beside what it gives.
pub fn noted<T>(f: impl FnOnce() -> T) -> (T, Vec<Requirement>) {
    let outer = NOTED.replace(Some(vec![]));
    let got = f();
    (got, NOTED.replace(outer).unwrap_or_default())
}

/// What one node takes for granted of the sizes of its operands.
pub fn of_node(graph: &Graph, n: Node) -> Vec<Requirement> {
    let node = graph.node(n);
    let (inferred, noted) = noted(|| super::infer(graph, &node.op, &node.inputs, &node.regions, node.outputs.len()));
    let at = |r| Requirement { at: graph.describe(n), ..r };
    if inferred.is_ok() { noted.into_iter().map(at).collect() } else { vec![] }
}

/// What the nodes of the model take for granted of the sizes of its inputs. Bodies are left out: whether they run is open.
pub fn requirements(graph: &Graph) -> Vec<Requirement> {
    let mut found = vec![];
    for &n in &graph.region(Graph::MAIN).nodes {
        found.extend(of_node(graph, n));
    }
    let known = input_symbols(graph);
    let checkable = |e: Expr| {
        let mut all = true;
        e.leaves(&mut |leaf| all &= matches!(leaf.node(), ExprNode::Sym(s) if known.contains(s)));
        all
    };
    let mut seen = HashSet::new();
    found.retain(|r| checkable(r.left) && checkable(r.right) && seen.insert((r.left, r.right, r.or_one, r.assumed)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text;

    fn check(inputs: &str, node: &str, expected: &[&str]) {
        let text = format!("graph \"g\" {{ source 0 \"s\" \"Op\" 1 region ({inputs}) {{ {node} from [0] yield %9 }} }}");
        let graph = text::parse(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let got: Vec<String> = requirements(&graph).iter().map(Requirement::to_string).collect();
        assert_eq!(got, expected, "{node}");
    }

    #[test]
    fn conditions_of_operators() {
        let two = "%0: f32[n, 4] \"x\", %1: f32[m, 4] \"y\"";
        check(two, "%9: f32[max(m, n), 4] = Add(%0, %1)", &["n broadcasts with m"]);
        check(two, "%9: f32[n, 4] = Relu(%0)", &[]);
        check(two, "%9: f32[n, 8] = Concat(%0, %1) {axis = 1}", &["n == m"]);
        check("%0: f32[n, 4] \"x\", %1: f32[3, 4] \"y\"", "%9: f32[3, 4] = Mul(%0, %1)", &["n broadcasts with 3"]);
        let pool = "MaxPool(%0) {kernel_shape = [3], pads = [1, 0]}";
        check("%0: f32[1, 2, n] \"x\"", &format!("%9: f32[1, 2, n - 1] = {pool}"), &["min(0, n - 2) == 0"]);
        let windows = "%9: i32[1, 4, n - 2] = ConvInteger(%0, %1)";
        check("%0: u8[1, 2, n] \"x\", %1: u8[4, 2, 3] \"y\"", windows, &["min(0, n - 3) == 0"]);
        check("%0: f32[2, k] \"x\", %1: f32[8, 4] \"y\"", "%9: f32[2, 4] = MatMul(%0, %1)", &["8 == k"]);
    }
}
