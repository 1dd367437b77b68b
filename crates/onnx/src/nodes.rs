//! Nodes: names to values, attributes to an operator, older versions to the newest, types by inference.

use crate::attrs;
use crate::import::{Importer, Named, domain};
use crate::proto::{
    AttributeProto, GraphProto, NodeProto, attribute_proto::AttributeType, tensor_shape_proto::dimension, type_proto,
};
use crate::schema;
use crate::versions::{self, Raise};
use infc_ir::fault::distance;
use infc_ir::graph::SourceNode;
use infc_ir::op::{self, Attr, Attrs};
use infc_ir::{DType, Expr, Fault, Op, Region, Tensor, Type, Value, fault};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Why a node was not imported.
pub enum Stop {
    /// A problem, to be told.
    Fault(Fault, &'static str),
    /// Something it depends on has a problem.
    Unknown,
}

impl From<Fault> for Stop {
    fn from(f: Fault) -> Stop {
        Stop::Fault(f, "")
    }
}

/// A node's attributes: plain ones and graphs.
pub struct Parts {
    /// Without graphs.
    pub attrs: Attrs,
    /// Graphs by name.
    pub graphs: Vec<(String, GraphProto)>,
}

impl<'m> Importer<'m> {
    /// The nodes of a graph or function, in an order in which values are defined before they are used.
    pub fn nodes(&mut self, nodes: &[NodeProto]) {
        for i in self.order(nodes) {
            self.node(&nodes[i]);
        }
    }

    /// Execution order. Files must have it already; those that have not are sorted, and a cycle is a problem.
    fn order(&mut self, nodes: &[NodeProto]) -> Vec<usize> {
        let mut maker: HashMap<&str, usize> = HashMap::new();
        for (i, n) in nodes.iter().enumerate() {
            n.output.iter().filter(|o| !o.is_empty()).for_each(|o| _ = maker.entry(o).or_insert(i));
        }
        let needs: Vec<BTreeSet<usize>> = nodes
            .iter()
            .map(|n| {
                let mut names = HashSet::new();
                free_names(n, &mut names);
                let defined = &self.scopes[self.scopes.len() - 1].names;
                names.iter().filter(|n| !defined.contains_key(**n)).filter_map(|n| maker.get(n).copied()).collect()
            })
            .collect();
        if needs.iter().enumerate().all(|(i, d)| d.iter().all(|&d| d < i)) {
            return (0..nodes.len()).collect();
        }
        let mut open: Vec<usize> = needs.iter().map(BTreeSet::len).collect();
        let mut users: Vec<Vec<usize>> = vec![vec![]; nodes.len()];
        needs.iter().enumerate().for_each(|(i, d)| d.iter().for_each(|&d| users[d].push(i)));
        let mut ready: BTreeSet<usize> = (0..nodes.len()).filter(|&i| open[i] == 0).collect();
        let mut order = vec![];
        while let Some(i) = ready.pop_first() {
            order.push(i);
            for &u in &users[i] {
                open[u] -= 1;
                if open[u] == 0 {
                    ready.insert(u);
                }
            }
        }
        if order.len() < nodes.len() {
            let stuck = (0..nodes.len()).filter(|&i| open[i] > 0);
            let names: Vec<String> = stuck.clone().take(5).map(|i| self.describe(&nodes[i])).collect();
            let rest = nodes.len() - order.len();
            let more = if rest > 5 { format!(" and {} more", rest - 5) } else { String::new() };
            let help = "one of them must not use what the others make of its own output; export the model again";
            self.problem("graph", format!("nodes depend on each other in a cycle: {}{more}", names.join(", ")), help);
            for o in stuck.flat_map(|i| nodes[i].output.clone()).filter(|o| !o.is_empty()) {
                self.scope().names.insert(o, Named::Unknown);
            }
        }
        order
    }

    /// `Conv 'layer1.0.conv1' (opset 13)`.
    pub fn describe(&mut self, n: &NodeProto) -> String {
        let d = domain(n.domain());
        let op = if d.is_empty() { n.op_type().to_owned() } else { format!("{d}:{}", n.op_type()) };
        let version = self.opsets.get(d).map_or_else(|| "?".to_owned(), ToString::to_string);
        format!("{op} '{}{}' (opset {version})", self.scope().prefix, node_name(n))
    }

    fn node(&mut self, n: &NodeProto) {
        let results = match self.import_node(n) {
            Ok(values) => values,
            Err(Stop::Unknown) => vec![],
            Err(Stop::Fault(f, help)) => {
                let at = self.describe(n);
                let help = if help.is_empty() { self.rule(n) } else { help.to_owned() };
                self.problem(at, f.0, help);
                vec![]
            }
        };
        for (i, name) in n.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let at = self.describe(n);
            let named = results.get(i).map_or(Named::Unknown, |&v| Named::Value(v));
            if let Named::Value(v) = named {
                self.check_declared(name, v, &at);
            }
            self.bind(name, named, &at);
        }
    }

    /// What ONNX says of a node's operator, at the operator set that the model imports.
    fn rule(&self, n: &NodeProto) -> String {
        let (d, name) = (domain(n.domain()), n.op_type());
        let version = self.opsets.get(d).copied().unwrap_or(0);
        let schema = schema::of(d, name, version).or_else(|| schema::history(d, name).first());
        schema.map_or(String::new(), |s| s.rule(d, name))
    }

    /// Names a value if it has no name yet.
    pub fn name_value(&mut self, v: Value, name: &str) {
        let full = format!("{}{name}", self.scope().prefix);
        let data = &mut self.graph.values[v.index()];
        if data.name.is_empty() {
            data.name = full;
        }
    }

    fn check_declared(&mut self, name: &str, v: Value, at: &str) {
        let scope = &self.scopes[self.scopes.len() - 1];
        let Some(declared) = scope.declared.get(name).and_then(|d| d.r#type.as_ref()) else { return };
        let (got, told) = (self.graph.ty(v), declared.value.as_ref());
        let message = match (got, told) {
            (Type::Tensor(t), Some(type_proto::Value::TensorType(d))) => match DType::from_onnx(d.elem_type.unwrap_or(0)) {
                Some(d) if d != t.dtype => format!("result '{name}' is {}, but is declared as {d}", t.dtype),
                _ => return,
            },
            (Type::Sequence(_), Some(type_proto::Value::SequenceType(_)))
            | (Type::Optional(_), Some(type_proto::Value::OptionalType(_)))
            | (Type::Map(..), Some(type_proto::Value::MapType(_)))
            | (_, None) => return,
            (Type::Any(_) | Type::Nothing(_), Some(type_proto::Value::TensorType(_))) => return,
            (got, Some(_)) => format!("result '{name}' is {got}, but is declared as another kind of value"),
        };
        self.problem(at, message, "");
    }

    /// The values of the operands.
    fn operands(&mut self, n: &NodeProto) -> Result<Vec<Option<Value>>, Stop> {
        let (mut inputs, mut unknown, mut undefined) = (vec![], false, vec![]);
        for name in &n.input {
            inputs.push(match name.as_str() {
                "" => None,
                name => match self.lookup(name) {
                    Some(Named::Value(v)) => Some(v),
                    Some(Named::Absent) => None,
                    Some(Named::Unknown) => {
                        unknown = true;
                        None
                    }
                    None => {
                        undefined.push(format!("'{name}'"));
                        None
                    }
                },
            });
        }
        if !undefined.is_empty() {
            let help = "operands must be inputs, initializers or results of earlier nodes";
            return Err(Stop::Fault(fault!("operand {} is not defined", undefined.join(", ")), help));
        }
        while let Some(None) = inputs.last() {
            inputs.pop();
        }
        if unknown { Err(Stop::Unknown) } else { Ok(inputs) }
    }

    /// The attributes, with references to a function's attributes resolved.
    pub fn parts(&mut self, n: &NodeProto) -> Result<Parts, Stop> {
        let mut parts = Parts { attrs: Attrs::default(), graphs: vec![] };
        for a in self.resolved(n) {
            match attrs::kind(&a)? {
                AttributeType::Graph => {
                    let g = a.g.clone().ok_or_else(|| fault!("attribute '{}' has no graph", a.name()))?;
                    parts.graphs.push((a.name().to_owned(), g));
                }
                AttributeType::TypeProto => {
                    let tp = a.tp.clone().unwrap_or_default();
                    let dim = |d: &dimension::Value, _| match d {
                        dimension::Value::DimValue(n) => Ok(Expr::int(*n)),
                        dimension::Value::DimParam(name) => Ok(Expr::sym(name)),
                    };
                    let ty = crate::types::from_proto(&tp, &format!("{}.type", node_name(n)), &mut { dim });
                    parts.attrs.set(a.name(), Attr::Str(ty?.to_string()));
                }
                _ => {
                    let value = attrs::from_proto(&a, &mut self.files)?;
                    parts.attrs.set(a.name(), value);
                }
            }
        }
        Ok(parts)
    }

    /// The attribute protos with their references replaced; those that refer to an absent attribute are left out.
    pub fn resolved(&self, n: &NodeProto) -> Vec<AttributeProto> {
        let resolve = |a: &AttributeProto| match a.ref_attr_name() {
            "" => Some(a.clone()),
            bound => self.bindings.get(bound).map(|b| AttributeProto { name: a.name.clone(), ..b.clone() }),
        };
        n.attribute.iter().filter_map(resolve).collect()
    }

    fn import_node(&mut self, n: &NodeProto) -> Result<Vec<Value>, Stop> {
        let (d, name) = (domain(n.domain()).to_owned(), n.op_type().to_owned());
        let key = (d, name, n.overload().to_owned());
        if self.functions.contains_key(&key) {
            let inputs = self.operands(n)?;
            return self.call(&key, n, inputs);
        }
        let (d, name, _) = key;
        let Some(&version) = self.opsets.get(&d) else {
            return Err(Stop::Fault(unknown_operator(&d, &name, Some("the model imports no operator set of this domain")), ""));
        };
        if (d.as_str(), name.as_str()) == versions::CONSTANT {
            return Ok(vec![self.constant_node(n)?]);
        }
        if (d.as_str(), name.as_str()) == versions::FLEX_ATTENTION {
            let (inputs, parts) = (self.operands(n)?, self.parts(n)?);
            return self.flex_attention(n, &inputs, parts);
        }
        if (d.as_str(), name.as_str()) == versions::GRADIENT {
            let (inputs, parts) = (self.operands(n)?, self.parts(n)?);
            return self.gradient(n, &inputs, parts);
        }
        if !versions::known(&d, &name) {
            return Err(Stop::Fault(unknown_operator(&d, &name, None), "`infc ops` lists the supported operators"));
        }
        versions::check(&d, &name, version)?;
        let inputs = self.operands(n)?;
        let types: Vec<Option<&Type>> = inputs.iter().map(|v| v.map(|v| self.graph.ty(v))).collect();
        schema::check_dtypes(&d, &name, version, &types)?;
        let parts = self.parts(n)?;
        let (given, names): (Vec<bool>, Vec<&str>) =
            (inputs.iter().map(Option::is_some).collect(), parts.attrs.0.iter().map(|(n, _)| n.as_str()).collect());
        schema::check_form(&d, &name, &given, n.output.len(), &names)?;
        if !parts.graphs.is_empty() {
            return self.control(n, version, inputs, parts);
        }
        self.apply(n, &d, version, inputs, parts.attrs, vec![])
    }

    /// Adds the nodes that `f` makes, in the name of `n`, which is an operator of this domain and name.
    pub fn emit<T>(
        &mut self,
        n: &NodeProto,
        (d, name): (&str, &str),
        f: impl FnOnce(&mut Raise) -> Result<T, Fault>,
    ) -> Result<T, Stop> {
        let full = format!("{}{}", self.scope().prefix, node_name(n));
        let version = self.opsets.get(d).copied().unwrap_or(1);
        let source = SourceNode { name: full, op: format!("{d}:{name}"), opset: version };
        let origin = BTreeSet::from([self.graph.add_source(source)]);
        let builder = op::Builder::new(&mut self.graph, origin);
        let mut raise = Raise::new(builder, d, name, version, vec![], Attrs::default(), n.output.len());
        let made = f(&mut raise)?;
        let nodes = raise.builder.nodes;
        let region = self.scope().region;
        self.graph.regions[region.index()].nodes.extend(nodes);
        Ok(made)
    }

    /// A `Constant` node: whichever form its value has.
    fn constant_node(&mut self, n: &NodeProto) -> Result<Value, Stop> {
        let parts = self.parts(n)?;
        let [(form, value)] = &parts.attrs.0[..] else {
            return Err(fault!("needs exactly one value attribute, got {}", parts.attrs.0.len()).into());
        };
        let text = |s: &String| bytes::Bytes::from(s.clone().into_bytes());
        let tensor = match (form.as_str(), value) {
            ("value" | "sparse_value", Attr::Tensor(t)) => t.clone(),
            ("value_int", Attr::Int(v)) => Tensor::from_vec([], vec![*v]),
            ("value_float", Attr::Float(v)) => Tensor::from_vec([], vec![*v]),
            ("value_string", Attr::Str(s)) => Tensor::from_strings([], [text(s)]),
            ("value_ints", Attr::Ints(v)) => Tensor::from_ints(v),
            ("value_floats", Attr::Floats(v)) => Tensor::from_vec([v.len()], v.clone()),
            ("value_strings", Attr::Strs(v)) => Tensor::from_strings([v.len()], v.iter().map(text)),
            _ => return Err(fault!("attribute '{form}' does not hold a constant").into()),
        };
        let name = n.output.first().map_or("", String::as_str);
        let full = format!("{}{name}", self.scope().prefix);
        Ok(self.graph.add_constant(tensor, full))
    }

    /// Raises a node to the newest version of its operator, infers and adds it.
    pub fn apply(
        &mut self,
        n: &NodeProto,
        d: &str,
        version: i64,
        inputs: Vec<Option<Value>>,
        attrs: Attrs,
        regions: Vec<Region>,
    ) -> Result<Vec<Value>, Stop> {
        let prefix = self.scope().prefix.clone();
        let op = if d.is_empty() { n.op_type().to_owned() } else { format!("{d}:{}", n.op_type()) };
        let source = SourceNode { name: format!("{prefix}{}", node_name(n)), op, opset: version };
        let origin = BTreeSet::from([self.graph.add_source(source)]);
        let name = if n.name().is_empty() { String::new() } else { format!("{prefix}{}", n.name()) };
        let builder = op::Builder::new(&mut self.graph, origin.clone());
        let mut raise = Raise::new(builder, d, n.op_type(), version, inputs, attrs, n.output.len());
        versions::raise(&mut raise)?;
        let Raise { builder, domain, op, inputs, mut attrs, outputs, results, .. } = raise;
        let nodes = builder.nodes;
        let mut values = results.clone().unwrap_or_default();
        let mut made = nodes;
        if results.is_none() {
            let op = Op::from_attrs(&domain, &op, &mut attrs).ok_or_else(|| unknown_operator(&domain, &op, None))??;
            if let Some((left, _)) = attrs.0.first() {
                return Err(fault!("attribute '{left}' is not known; this operator does not have it at this version").into());
            }
            let facts = op::infer(&self.graph, &op, &inputs, &regions, outputs)?;
            let node = self.graph.make_node(op, inputs, regions, facts, name.clone(), origin);
            values = self.graph.node(node).outputs.clone();
            made.push(node);
        } else if let Some((left, _)) = attrs.0.first().filter(|_| d == "com.microsoft") {
            return Err(fault!("attribute '{left}' has no form here").into());
        } else if let Some(last) = made.last() {
            self.graph.nodes[last.index()].name = name;
        }
        let region = self.scope().region;
        self.graph.regions[region.index()].nodes.extend(made);
        for (v, name) in values.iter().zip(&n.output) {
            self.name_value(*v, name);
        }
        Ok(values)
    }
}

/// The name of a node, or of its first result.
pub fn node_name(n: &NodeProto) -> &str {
    if n.name().is_empty() { n.output.iter().find(|o| !o.is_empty()).map_or("", String::as_str) } else { n.name() }
}

/// Names that a node takes from around it: its operands, and what its bodies do not define themselves.
pub fn free_names<'a>(n: &'a NodeProto, names: &mut HashSet<&'a str>) {
    names.extend(n.input.iter().map(String::as_str).filter(|i| !i.is_empty()));
    for g in n.attribute.iter().filter_map(|a| a.g.as_ref()) {
        let mut inner = HashSet::new();
        g.node.iter().for_each(|n| free_names(n, &mut inner));
        inner.extend(g.output.iter().map(|o| o.name()));
        let own = g.initializer.iter().map(|t| t.name()).chain(g.input.iter().map(|i| i.name()));
        let own: HashSet<&str> = own.chain(g.node.iter().flat_map(|n| n.output.iter().map(String::as_str))).collect();
        names.extend(inner.difference(&own));
    }
}

/// "Is not known", with the names that come nearest.
fn unknown_operator(domain: &str, name: &str, why: Option<&str>) -> Fault {
    let shown = |d: &str, n: &str| if d.is_empty() { n.to_owned() } else { format!("{d}:{n}") };
    let lower = name.to_lowercase();
    let mut near: Vec<(usize, String)> = crate::supported()
        .iter()
        .map(|o| (distance(&lower, &o.name.to_lowercase()), shown(o.domain, o.name)))
        .filter(|(d, _)| *d <= 1 + name.len() / 3)
        .collect();
    near.sort();
    let near: Vec<String> = near.into_iter().take(3).map(|(_, n)| n).collect();
    let near = if near.is_empty() { String::new() } else { format!("; nearest: {}", near.join(", ")) };
    let why = why.map_or(String::new(), |w| format!(" ({w})"));
    fault!("operator {} is not known{why}{near}", shown(domain, name))
}
