//! The graph: arenas of values, nodes and regions in SSA form, addressed by `u32` ids.
//!
//! Invariants (checked by [`crate::verify`], which is the specification):
//! - A region's nodes stand in execution order; an operand is a constant, a parameter of the same region, or an output of an
//!   earlier node of the same region. Regions see nothing else of the outside: captured values are passed as operands.
//! - Constants belong to no region and may be used in any.
//! - Every value has a type; every node has a non-empty origin (the source nodes that it stands for).

use crate::expr::{Expr, Node as ExprNode};
use crate::fault::Problem;
use crate::op::Op;
use crate::tensor::Tensor;
use crate::types::{Fact, Type};
use std::collections::BTreeSet;
use std::fmt;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);
        impl $name {
            /// Position in its arena.
            pub fn index(self) -> usize { self.0 as usize }
        }
    )* };
}

ids! {
    /// A value: a constant, a parameter of a region, or an output of a node.
    Value
    /// A node: one application of an operator.
    Node
    /// A region: a list of nodes with parameters and results.
    Region
    /// A node of the model as it was read, for `origin`.
    Source
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// Known at compile time.
    Constant(Tensor),
    /// Parameter number `.1` of a region.
    Param(Region, u32),
    /// Output number `.1` of a node.
    Output(Node, u32),
}

/// All about a value.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueData {
    /// Its type.
    pub ty: Type,
    /// The model's name for it; empty if it has none. Passes never look at it.
    pub name: String,
    /// Where it comes from.
    pub def: Def,
    /// For small integer tensors: the elements as expressions of symbols, if inference found them.
    pub ints: Option<Vec<Expr>>,
}

/// All about a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeData {
    /// The operator with its attributes.
    pub op: Op,
    /// Operands; `None` for an optional one that is absent.
    pub inputs: Vec<Option<Value>>,
    /// Results. Trailing optional outputs may be left out; unused ones in between are ordinary values.
    pub outputs: Vec<Value>,
    /// The bodies of a control-flow operator, in the order of the op table.
    pub regions: Vec<Region>,
    /// The model's name for it, may be empty.
    pub name: String,
    /// The source nodes it stands for.
    pub origin: BTreeSet<Source>,
}

impl NodeData {
    /// Operand `i`; `None` if it is absent or left out at the end.
    pub fn operand(&self, i: usize) -> Option<Value> {
        self.inputs.get(i).copied().flatten()
    }
}

/// All about a region.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RegionData {
    /// Parameters (of the main region: the model's inputs).
    pub params: Vec<Value>,
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// Results.
    pub results: Vec<Value>,
    /// The body's name in the model.
    pub name: String,
}

/// A node of the model as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceNode {
    /// Its name, or a made-up one from its first output.
    pub name: String,
    /// `Conv`, `com.microsoft:QLinearAdd`, ...
    pub op: String,
    /// The operator set version it was written for.
    pub opset: i64,
}

/// A condition on the sizes of the inputs that nothing known at compile time decides. Runs check it before they compute anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// A size.
    pub left: Expr,
    /// What it must be equal to.
    pub right: Expr,
    /// It holds too if one of them is 1.
    pub or_one: bool,
    /// The node that needs it, in the model's words.
    pub at: String,
    /// Why.
    pub text: String,
    /// Sizes for which it does not hold are right too, but give values of other ranks than the types in the graph say.
    pub assumed: bool,
}

impl Requirement {
    /// Does it hold? `None` if that is open for these sizes.
    pub fn holds(&self, size: &dyn Fn(&str) -> Option<i64>) -> Option<bool> {
        let leaf = |e: Expr| if let ExprNode::Sym(s) = e.node() { size(s) } else { None };
        let (a, b) = (self.left.eval(&leaf)?, self.right.eval(&leaf)?);
        Some(a == b || self.or_one && (a == 1 || b == 1))
    }
    /// What to say where it does not hold.
    pub fn problem(&self) -> Problem {
        let help = match self.assumed {
            true => "compile the model for these sizes: give symbolic dims their values (--dim)",
            false => "give inputs of other sizes",
        };
        Problem { at: self.at.clone(), message: self.text.clone(), help: help.to_owned() }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.left, if self.or_one { "broadcasts with" } else { "==" }, self.right)
    }
}

/// A model.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// The model's name.
    pub name: String,
    /// Values by id.
    pub values: Vec<ValueData>,
    /// Nodes by id. A node that is in no region is dead.
    pub nodes: Vec<NodeData>,
    /// Regions by id; region 0 is the model itself.
    pub regions: Vec<RegionData>,
    /// Source nodes by id.
    pub sources: Vec<SourceNode>,
    /// Operator sets the model imports: domain and version.
    pub opsets: Vec<(String, i64)>,
    /// `metadata_props` and the like of the model, key and value.
    pub metadata: Vec<(String, String)>,
    /// Conditions on the sizes of the inputs.
    pub requires: Vec<Requirement>,
    /// IR version of the file it came from.
    pub ir_version: i64,
}

impl Graph {
    /// The region that is the model.
    pub const MAIN: Region = Region(0);

    /// An empty model.
    pub fn new(name: impl Into<String>) -> Graph {
        Graph {
            name: name.into(),
            values: vec![],
            nodes: vec![],
            regions: vec![RegionData::default()],
            sources: vec![],
            opsets: vec![],
            metadata: vec![],
            requires: vec![],
            ir_version: 13,
        }
    }

    /// The data of a value.
    pub fn value(&self, v: Value) -> &ValueData {
        &self.values[v.index()]
    }
    /// The data of a node.
    pub fn node(&self, n: Node) -> &NodeData {
        &self.nodes[n.index()]
    }
    /// The data of a region.
    pub fn region(&self, r: Region) -> &RegionData {
        &self.regions[r.index()]
    }
    /// The type of a value.
    pub fn ty(&self, v: Value) -> &Type {
        &self.value(v).ty
    }
    /// The tensor, if `v` is a constant.
    pub fn constant(&self, v: Value) -> Option<&Tensor> {
        match &self.value(v).def {
            Def::Constant(t) => Some(t),
            Def::Param(..) | Def::Output(..) => None,
        }
    }
    /// What is known of a value.
    pub fn fact(&self, v: Value) -> Fact {
        let d = self.value(v);
        match &d.def {
            Def::Constant(t) => Fact::constant(t.clone()),
            Def::Param(..) | Def::Output(..) => Fact { ty: d.ty.clone(), known: None, ints: d.ints.clone() },
        }
    }

    fn add_value(&mut self, data: ValueData) -> Value {
        self.values.push(data);
        Value(self.values.len() as u32 - 1)
    }
    /// Adds a constant.
    pub fn add_constant(&mut self, tensor: Tensor, name: impl Into<String>) -> Value {
        let Fact { ty, ints, .. } = Fact::constant(tensor.clone());
        self.add_value(ValueData { ty, name: name.into(), def: Def::Constant(tensor), ints })
    }
    /// Adds a parameter to a region.
    pub fn add_param(&mut self, region: Region, ty: Type, name: impl Into<String>) -> Value {
        let index = self.region(region).params.len() as u32;
        let v = self.add_value(ValueData { ty, name: name.into(), def: Def::Param(region, index), ints: None });
        self.regions[region.index()].params.push(v);
        v
    }
    /// Adds an empty region.
    pub fn add_region(&mut self, name: impl Into<String>) -> Region {
        self.regions.push(RegionData { name: name.into(), ..RegionData::default() });
        Region(self.regions.len() as u32 - 1)
    }
    /// Adds a source node.
    pub fn add_source(&mut self, source: SourceNode) -> Source {
        self.sources.push(source);
        Source(self.sources.len() as u32 - 1)
    }
    /// Makes a node with outputs of the given facts; it is in no region yet.
    pub fn make_node(
        &mut self,
        op: Op,
        inputs: Vec<Option<Value>>,
        regions: Vec<Region>,
        facts: Vec<Fact>,
        name: impl Into<String>,
        origin: BTreeSet<Source>,
    ) -> Node {
        let node = Node(self.nodes.len() as u32);
        let mut outputs = vec![];
        for (i, f) in facts.into_iter().enumerate() {
            let def = Def::Output(node, i as u32);
            outputs.push(self.add_value(ValueData { ty: f.ty, name: String::new(), def, ints: f.ints }));
        }
        self.nodes.push(NodeData { op, inputs, outputs, regions, name: name.into(), origin });
        node
    }

    /// The model's inputs.
    pub fn inputs(&self) -> &[Value] {
        &self.region(Graph::MAIN).params
    }
    /// The model's outputs.
    pub fn outputs(&self) -> &[Value] {
        &self.region(Graph::MAIN).results
    }

    /// Regions reachable from the model, outermost first.
    pub fn live_regions(&self) -> Vec<Region> {
        let mut out = vec![Graph::MAIN];
        let mut at = 0;
        while at < out.len() {
            for &n in &self.region(out[at]).nodes {
                out.extend(&self.node(n).regions);
            }
            at += 1;
        }
        out
    }

    /// How often each value is used: as an operand of a live node or as a result of a live region.
    pub fn use_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.values.len()];
        for r in self.live_regions() {
            let region = self.region(r);
            for &n in &region.nodes {
                self.node(n).inputs.iter().flatten().for_each(|v| counts[v.index()] += 1);
            }
            region.results.iter().for_each(|v| counts[v.index()] += 1);
        }
        counts
    }

    /// Replaces uses of values by others, everywhere: `with[v]` is the replacement of `v` (itself where nothing changes).
    /// Chains are followed.
    pub fn replace_uses(&mut self, with: &dyn Fn(Value) -> Value) {
        let find = |mut v: Value| {
            loop {
                let next = with(v);
                if next == v {
                    return v;
                }
                v = next;
            }
        };
        for n in &mut self.nodes {
            n.inputs.iter_mut().flatten().for_each(|v| *v = find(*v));
        }
        for r in &mut self.regions {
            r.results.iter_mut().for_each(|v| *v = find(*v));
        }
    }

    /// A short description of a node for messages: `Conv 'layer1.0.conv1'`.
    pub fn describe(&self, n: Node) -> String {
        let node = self.node(n);
        match node.origin.iter().next().map(|s| &self.sources[s.index()]) {
            Some(s) if node.name.is_empty() => format!("{} of '{}' ({}, opset {})", node.op.name(), s.name, s.op, s.opset),
            Some(s) => format!("{} '{}' (opset {})", node.op.name(), node.name, s.opset),
            None => format!("{} '{}'", node.op.name(), node.name),
        }
    }
}
