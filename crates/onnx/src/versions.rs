//! Older operator versions, raised to the newest form in the operator table that means the same.
use infc_ir::graph::Value;
use infc_ir::op::{Attrs, Builder, OPS};
use infc_ir::{Fact, Fault, Graph};

/// A node on its way to the newest version.
pub struct Raise<'a> {
    /// Makes the nodes and constants that a step needs before (or instead of) the node.
    pub builder: Builder<'a>,
    /// Domain of the operator.
    pub domain: String,
    /// The operator.
    pub op: String,
    /// The operator set version that the model imports.
    pub version: i64,
    /// Operands.
    pub inputs: Vec<Option<Value>>,
    /// Attributes.
    pub attrs: Attrs,
    /// Number of results.
    pub outputs: usize,
    /// Results, if a step has made nodes that replace the node.
    pub results: Option<Vec<Value>>,
}

impl<'a> Raise<'a> {
    /// A node as it is in the model.
    pub fn new(
        builder: Builder<'a>,
        domain: &str,
        op: &str,
        version: i64,
        inputs: Vec<Option<Value>>,
        attrs: Attrs,
        outputs: usize,
    ) -> Raise<'a> {
        let (domain, op) = (domain.to_owned(), op.to_owned());
        Raise { builder, domain, op, version, inputs, attrs, outputs, results: None }
    }
}

/// Is there such an operator, in the table or as an older form of one?
pub fn known(domain: &str, op: &str) -> bool {
    OPS.iter().any(|o| o.domain == domain && o.name == op)
}

/// Is the operator there at this version?
pub fn check(_domain: &str, _op: &str, _version: i64) -> Result<(), Fault> {
    Ok(())
}

/// Applies the steps between the node's version and the newest.
pub fn raise(_node: &mut Raise) -> Result<(), Fault> {
    Ok(())
}

/// Sets what is known of a value.
pub fn set_fact(graph: &mut Graph, v: Value, f: Fact) {
    let data = &mut graph.values[v.index()];
    (data.ty, data.ints) = (f.ty, f.ints);
}
