//! Import: a decoded model to a [`Graph`]. Here: the model, its inputs, constants and outputs, and the scopes in which names
//! are looked up. Nodes are in `nodes.rs`, bodies in `bodies.rs`, local functions in `functions.rs`.
//!
//! A node with a problem leaves its results *unknown*; what depends on them is skipped in silence, so that every problem
//! is told once and all of them in one go.
//!
//! Declared types of intermediate values and outputs are checked by kind and dtype. Their dims are not taken over: what
//! inference finds is the truth, and files with stale shapes are common (ONNX Runtime runs them with a warning).

use crate::files::{self, Files};
use crate::proto::{FunctionProto, GraphProto, ModelProto, TensorProto, ValueInfoProto, tensor_shape_proto::dimension};
use crate::{lift, tensor, types, wire};
use bytes::Bytes;
use infc_ir::expr::{Node as ExprNode, parse};
use infc_ir::graph::Requirement;
use infc_ir::{Expr, Fault, Graph, Problem, Problems, Region, Tensor, Type, Value, op};
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

/// The newest operator set of the default domain that is known.
pub const NEWEST_OPSET: i64 = 28;

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub enum Named {
    /// A value.
    Value(Value),
    /// An operand of a function that its caller left out.
    Absent,
    /// The result of a node with a problem.
    Unknown,
}

/// The names of a graph, a body or a function.
pub struct Scope {
    /// Where its nodes go.
    pub region: Region,
    /// Names defined in it, and those of captured values.
    pub names: HashMap<String, Named>,
    /// The scope has a region of its own: what it takes from outside is captured.
    pub own_region: bool,
    /// Names outside are out of sight (a function).
    pub sealed: bool,
    /// Put before the names of values and nodes (the calls of functions they are in).
    pub prefix: String,
    /// Captured values: outside and parameter.
    pub captures: Vec<(Value, Value)>,
    /// Declared dtypes, by name.
    pub declared: HashMap<String, ValueInfoProto>,
}

impl Scope {
    /// An empty scope.
    pub fn new(region: Region, own_region: bool) -> Scope {
        Scope {
            region,
            names: HashMap::new(),
            own_region,
            sealed: false,
            prefix: String::new(),
            captures: vec![],
            declared: HashMap::new(),
        }
    }
}

/// Operator set versions by domain.
pub type Opsets = HashMap<String, i64>;

/// The state of an import.
pub struct Importer<'m> {
    /// What has been built.
    pub graph: Graph,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Scopes, outermost first.
    pub scopes: Vec<Scope>,
    /// The operator sets in force: the model's or a function's.
    pub opsets: Rc<Opsets>,
    /// Values of the attributes of the function that is being inlined.
    pub bindings: Rc<HashMap<String, crate::proto::AttributeProto>>,
    /// Functions of the model.
    pub functions: HashMap<(String, String, String), &'m FunctionProto>,
    /// Functions being inlined, outermost first.
    pub calls: Vec<(String, String, String)>,
    /// External data.
    pub files: Files,
    /// Symbols in use.
    pub symbols: HashSet<String>,
    /// For each If that cannot be decided and whose branches have different types, in order: which branch to take.
    pub choices: Vec<bool>,
    /// Those Ifs, as far as they were met.
    pub undecided: Vec<String>,
    /// Numbers of those in bodies that went away.
    pub stale: HashSet<usize>,
    /// Conditions that are data, with what the choices say they are.
    pub expected: Vec<(Value, bool)>,
    /// What the choices mean for the sizes of the inputs.
    pub requires: Vec<Requirement>,
    /// Results of Ifs that have another rank here than in the model.
    pub lifted: Vec<lift::Lifted>,
}

/// So many ways to take undecided Ifs are tried.
const MOST_WAYS: usize = 256;

/// Imports a model file; its constants stay in the mapped file.
pub fn import(path: &Path) -> Result<Graph, Problems> {
    let at = path.display().to_string();
    let bytes = files::map(path).map_err(|e| Problems::one(&at, format!("cannot be read: {e}"), "give an ONNX file"))?;
    import_bytes(bytes, Some(path.parent().unwrap_or(Path::new(".")))).map_err(|p| {
        Problems(p.0.into_iter().map(|p| if p.at == "model" { Problem { at: at.clone(), ..p } } else { p }).collect())
    })
}

/// Imports a serialised `ModelProto`; `base_dir` is the folder of external data.
pub fn import_bytes(bytes: Bytes, base_dir: Option<&Path>) -> Result<Graph, Problems> {
    let model = ModelProto::decode(bytes.clone()).map_err(|e| {
        let help = "the file is truncated, damaged, or no ONNX model";
        let what = match wire::damage(&bytes) {
            Some((offset, what)) => format!("at offset {offset}: {what}"),
            None => e.to_string(),
        };
        Problems::one("model", format!("is not a valid ONNX protobuf of {} bytes: {what}", bytes.len()), help)
    })?;
    let Some(graph) = &model.graph else {
        return Err(Problems::one("model", "contains no graph", "the file is truncated or no ONNX model"));
    };
    let first = attempt(&model, graph, base_dir, vec![]);
    if first.undecided.is_empty() { outcome(first) } else { decide(&model, graph, base_dir) }
}

fn outcome(importer: Importer) -> Result<Graph, Problems> {
    let Importer { mut graph, problems, requires, .. } = importer;
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    infc_ir::verify::addressable(&graph)?;
    graph.requires = op::sizes::requirements(&graph);
    graph.requires.extend(requires);
    Ok(graph)
}

/// Exporters turn `x.squeeze()` into an If whose branches differ in rank, chosen by a size. Where the size is symbolic (or the condition
/// is data) nothing tells the branch but the rest of the model: the only way to take them all that gives a well-typed model is the one
/// meant. That the conditions come out so for the sizes of a run becomes a requirement of the graph, and for data an `Expect`, so a wrong
/// size or value does not pass unseen.
fn decide(model: &ModelProto, graph: &GraphProto, base_dir: Option<&Path>) -> Result<Graph, Problems> {
    let (mut ways, mut tried, mut good, mut bad) = (vec![vec![false], vec![true]], 0, vec![], None);
    while let Some(choices) = ways.pop() {
        tried += 1;
        if tried > MOST_WAYS {
            break;
        }
        let way = attempt(model, graph, base_dir, choices);
        let open = way.undecided.len() > way.choices.len();
        match (way.problems.is_empty(), open) {
            (true, true) => ways.extend([false, true].map(|c| [&way.choices[..], &[c]].concat())),
            (true, false) if good.iter().any(|g: &Importer| g.chosen() == way.chosen()) => {}
            (true, false) => good.push(way),
            (false, _) => bad = bad.or(Some(way)),
        }
    }
    let at = |i: &Importer| i.undecided.first().cloned().unwrap_or_default();
    let help = "give the inputs fixed sizes";
    match (good.len(), bad) {
        (1, _) if tried <= MOST_WAYS => outcome(good.remove(0)),
        (0, Some(bad)) => outcome(bad),
        _ => {
            let message = "the types of its branches differ, its condition is not known before a run, and the model fits both";
            Err(Problems::one(good.first().map(at).unwrap_or_default(), message, help))
        }
    }
}

fn attempt<'m>(model: &'m ModelProto, graph: &GraphProto, base_dir: Option<&Path>, choices: Vec<bool>) -> Importer<'m> {
    let mut importer = Importer {
        graph: Graph::new(graph.name.clone().unwrap_or_default()),
        problems: vec![],
        scopes: vec![Scope::new(Graph::MAIN, true)],
        opsets: Rc::default(),
        bindings: Rc::default(),
        functions: HashMap::new(),
        calls: vec![],
        files: Files::new(base_dir),
        symbols: HashSet::new(),
        choices,
        undecided: vec![],
        stale: HashSet::new(),
        expected: vec![],
        requires: vec![],
        lifted: vec![],
    };
    importer.model(model);
    importer.main_graph(graph);
    if importer.problems.is_empty() {
        importer.problems = lift::problems(&importer.graph, &importer.lifted);
    }
    importer
}

/// Domains by one name each.
pub fn domain(name: &str) -> &str {
    match name {
        "ai.onnx" => "",
        "onnx.brevitas" | "finn.custom_op.general" => "qonnx.custom_op.general",
        other => other,
    }
}

impl<'m> Importer<'m> {
    /// The choices that make a difference, with their numbers.
    fn chosen(&self) -> Vec<(usize, bool)> {
        self.choices.iter().copied().enumerate().filter(|(k, _)| !self.stale.contains(k)).collect()
    }

    /// Notes a problem.
    pub fn problem(&mut self, at: impl Into<String>, message: impl Into<String>, help: impl Into<String>) {
        self.problems.push(Problem { at: at.into(), message: message.into(), help: help.into() });
    }

    /// The innermost scope.
    pub fn scope(&mut self) -> &mut Scope {
        self.scopes.last_mut().expect("the main scope is never popped")
    }

    /// Operator sets, metadata and functions.
    fn model(&mut self, model: &'m ModelProto) {
        self.graph.ir_version = model.ir_version.unwrap_or(0);
        let sets = model.opset_import.iter().map(|o| (domain(o.domain()).to_owned(), o.version()));
        let mut opsets: Vec<(String, i64)> = sets.collect();
        if opsets.is_empty() && self.graph.ir_version < 3 && self.graph.ir_version > 0 {
            opsets.push((String::new(), 1));
        }
        if opsets.is_empty() {
            self.problem("model", "imports no operator set", "the file is truncated or no ONNX model");
        }
        for (d, version) in &opsets {
            if d.is_empty() && !(1..=NEWEST_OPSET).contains(version) {
                let help = format!("operator sets up to {NEWEST_OPSET} are known");
                self.problem("model", format!("operator set {version} is not supported"), help);
            }
        }
        self.opsets = Rc::new(opsets.iter().cloned().collect());
        self.graph.opsets = opsets;
        let fields = [
            ("producer_name", model.producer_name.clone()),
            ("producer_version", model.producer_version.clone()),
            ("domain", model.domain.clone()),
            ("model_version", model.model_version.filter(|&v| v != 0).map(|v| v.to_string())),
            ("doc_string", model.doc_string.clone()),
            ("graph.doc_string", model.graph.as_ref().and_then(|g| g.doc_string.clone())),
        ];
        let fields = fields.into_iter().filter_map(|(k, v)| Some((format!("onnx:{k}"), v.filter(|v| !v.is_empty())?)));
        let props = model.metadata_props.iter().map(|e| (e.key().to_owned(), e.value().to_owned()));
        self.graph.metadata = fields.chain(props).collect();
        for f in &model.functions {
            let key = (domain(f.domain()).to_owned(), f.name().to_owned(), f.overload().to_owned());
            if self.functions.insert(key, f).is_some() {
                self.problem(format!("function '{}:{}'", f.domain(), f.name()), "is defined twice", "");
            }
        }
    }

    fn main_graph(&mut self, g: &GraphProto) {
        self.constants(g);
        self.inputs(g);
        self.declare(g);
        self.nodes(&g.node);
        for o in &g.output {
            match self.lookup(o.name()) {
                Some(Named::Value(v)) => self.graph.regions[0].results.push(v),
                Some(Named::Unknown) => {}
                Some(Named::Absent) | None => {
                    let help = "the name of an output must be that of an input, an initializer or a node's output";
                    self.problem(format!("output '{}'", o.name()), "is not computed by any node", help);
                }
            }
        }
        if g.output.is_empty() {
            self.problem("model", "has no outputs", "the file is truncated or no ONNX model");
        }
    }

    /// Declared types of the current scope.
    pub fn declare(&mut self, g: &GraphProto) {
        let declared = g.value_info.iter().chain(&g.output).map(|v| (v.name().to_owned(), v.clone())).collect();
        self.scope().declared = declared;
    }

    /// Initializers, dense and sparse.
    pub fn constants(&mut self, g: &GraphProto) {
        for t in &g.initializer {
            let got = tensor::tensor(t, &mut self.files);
            self.constant(t, got);
        }
        for s in &g.sparse_initializer {
            let got = tensor::sparse(s, &mut self.files);
            let unnamed = TensorProto::default();
            self.constant(s.values.as_ref().unwrap_or(&unnamed), got);
        }
    }

    fn constant(&mut self, proto: &TensorProto, got: Result<Tensor, Fault>) {
        let name = proto.name();
        let named = match got {
            Ok(t) => {
                let full = format!("{}{name}", self.scope().prefix);
                Named::Value(self.graph.add_constant(t, full))
            }
            Err(e) => {
                self.problem(format!("initializer '{name}'"), e.0, "");
                Named::Unknown
            }
        };
        if name.is_empty() {
            self.problem("initializer", "has no name", "");
        } else {
            self.bind(name, named, &format!("initializer '{name}'"));
        }
    }

    fn inputs(&mut self, g: &GraphProto) {
        // Symbols that some input declares by themselves: only those make expressions of other dims meaningful.
        let shapes = g.input.iter().filter_map(|i| match i.r#type.as_ref()?.value.as_ref()? {
            crate::proto::type_proto::Value::TensorType(t) => t.shape.as_ref(),
            _ => None,
        });
        let params: HashSet<&str> = shapes
            .flat_map(|s| &s.dim)
            .filter_map(|d| match &d.value {
                Some(dimension::Value::DimParam(p)) => Some(p.as_str()),
                _ => None,
            })
            .collect();
        for input in &g.input {
            let name = input.name();
            if matches!(self.scope().names.get(name), Some(Named::Value(_) | Named::Unknown)) && has_initializer(g, name) {
                continue; // a default value, which we take as the value
            }
            let at = format!("input '{name}'");
            let list = is_list_of_ints(input);
            let read = |d: &dimension::Value, axis: usize| match d {
                dimension::Value::DimValue(0) if list => Ok(Expr::int(0)),
                d => Ok(input_dim(d, axis, name, &params)),
            };
            let declared = input.r#type.as_ref().ok_or_else(|| Fault("no type is declared".into()));
            let named = match declared.and_then(|t| types::from_proto(t, name, &mut { read })) {
                Ok(ty) => {
                    self.note_symbols(&ty);
                    Named::Value(self.graph.add_param(Graph::MAIN, ty, name))
                }
                Err(e) => {
                    self.problem(&at, e.0, "declare dtype and dims of every input; unknown dims may have names");
                    Named::Unknown
                }
            };
            self.bind(name, named, &at);
        }
    }

    fn note_symbols(&mut self, ty: &Type) {
        ty.each_dim(&mut |d| {
            d.leaves(&mut |e| {
                if let ExprNode::Sym(s) = e.node() {
                    self.symbols.insert((*s).to_owned());
                }
            });
        });
    }

    /// A symbol that is not in use yet: `name`, or `name` with a number.
    pub fn fresh_symbol(&mut self, name: &str) -> Expr {
        let free = (0..).map(|k| if k == 0 { name.to_owned() } else { format!("{name}.{k}") });
        let name = free.into_iter().find(|n| !self.symbols.contains(n)).expect("endless");
        let symbol = Expr::sym(&name);
        self.symbols.insert(name);
        symbol
    }

    /// Defines a name in the current scope.
    pub fn bind(&mut self, name: &str, what: Named, at: &str) {
        if self.scope().names.insert(name.to_owned(), what).is_some() {
            self.problem(at, format!("the name '{name}' is defined twice"), "names of values must be unique");
        }
    }

    /// What a name stands for, as seen from the innermost scope; values of outer regions are captured on the way.
    pub fn lookup(&mut self, name: &str) -> Option<Named> {
        let mut level = self.scopes.len() - 1;
        let found = loop {
            if let Some(&n) = self.scopes[level].names.get(name) {
                break n;
            }
            if level == 0 || self.scopes[level].sealed {
                return None;
            }
            level -= 1;
        };
        let Named::Value(mut v) = found else { return Some(found) };
        if self.graph.constant(v).is_none() {
            for inner in level + 1..self.scopes.len() {
                if self.scopes[inner].own_region {
                    v = self.capture(inner, v);
                    self.scopes[inner].names.insert(name.to_owned(), Named::Value(v));
                }
            }
        }
        Some(Named::Value(v))
    }

    /// The parameter of scope `level` that stands for the outer value `v`.
    pub fn capture(&mut self, level: usize, v: Value) -> Value {
        if let Some(&(_, param)) = self.scopes[level].captures.iter().find(|(outer, _)| *outer == v) {
            return param;
        }
        let data = self.graph.value(v);
        let (ty, name) = (data.ty.clone(), data.name.clone());
        let param = self.graph.add_param(self.scopes[level].region, ty, name);
        self.scopes[level].captures.push((v, param));
        param
    }
}

fn has_initializer(g: &GraphProto, name: &str) -> bool {
    let sparse = g.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    g.initializer.iter().chain(sparse).any(|t| t.name() == name)
}

/// Of a list of integers (axes, sizes) length 0 means that it is empty.
fn is_list_of_ints(input: &ValueInfoProto) -> bool {
    let Some(crate::proto::type_proto::Value::TensorType(t)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return false;
    };
    let dtype = infc_ir::DType::from_onnx(t.elem_type.unwrap_or(0));
    dtype.is_some_and(|d| d.is_int()) && t.shape.as_ref().is_some_and(|s| s.dim.len() == 1)
}

/// A declared dim of an input. 0 and negative numbers are how some exporters say "unknown".
fn input_dim(d: &dimension::Value, axis: usize, name: &str, params: &HashSet<&str>) -> Expr {
    match d {
        dimension::Value::DimValue(v) if *v > 0 => Expr::int(*v),
        dimension::Value::DimValue(_) => Expr::sym(&format!("{name}.{axis}")),
        dimension::Value::DimParam(text) if text.len() > 256 => Expr::sym(text), // not worth parsing
        dimension::Value::DimParam(text) => match parse(text) {
            // An expression of dims that are given elsewhere, as in `[n, 2*n]`.
            Ok((e, "")) if !matches!(e.node(), ExprNode::Sym(_)) && bound(e, params) => e,
            _ => Expr::sym(text),
        },
    }
}

fn bound(e: Expr, params: &HashSet<&str>) -> bool {
    let (mut all, mut any) = (true, false);
    e.leaves(&mut |leaf| match leaf.node() {
        ExprNode::Sym(s) => {
            any = true;
            all &= params.contains(s);
        }
        _ => all = false,
    });
    any && all
}
