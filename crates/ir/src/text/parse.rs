//! Parsing graphs.

use super::cursor::Cursor;
use super::data;
use crate::fault::Problem;
use crate::graph::{Def, Graph, Node, NodeData, Region, Requirement, Source, SourceNode, Value, ValueData};
use crate::op::{Attr, Attrs, Op};
use crate::tensor::Tensor;
use crate::types::{Fact, TensorType, Type};
use std::collections::{BTreeSet, HashMap};

/// Parses a graph. It is well-formed as an arena; [`crate::verify`] checks that it also means something.
pub fn parse(text: &str) -> Result<Graph, Problem> {
    let mut c = Cursor::new(text);
    let blobs = blobs(text)?;
    let mut p = Parser { g: Graph::new(""), values: HashMap::new(), blobs };
    p.graph(&mut c)?;
    while c.eat("blob") {
        c.number::<usize>("a blob number")?;
        c.quoted()?;
    }
    if c.at_end() { Ok(p.g) } else { Err(c.expected("the end of the text")) }
}

impl std::str::FromStr for Graph {
    type Err = Problem;
    fn from_str(text: &str) -> Result<Graph, Problem> {
        parse(text)
    }
}

/// Blobs stand at the end, each on a line of its own, but are needed before: collect them first.
fn blobs(text: &str) -> Result<HashMap<usize, Vec<u8>>, Problem> {
    let mut blobs = HashMap::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with("blob ") {
            let mut c = Cursor::at(text, offset);
            c.expect("blob")?;
            let number = c.number("a blob number")?;
            let start = c.clone();
            let bytes = data::decode(&c.quoted()?).ok_or_else(|| start.error("this is not base64"))?;
            blobs.insert(number, bytes);
        }
        offset += line.len();
    }
    Ok(blobs)
}

struct Parser {
    g: Graph,
    /// The values that may be used, by their number in the text.
    values: HashMap<u32, Value>,
    blobs: HashMap<usize, Vec<u8>>,
}

impl Parser {
    fn graph(&mut self, c: &mut Cursor) -> Result<(), Problem> {
        c.expect("graph")?;
        self.g.name = c.quoted()?;
        c.expect("{")?;
        loop {
            if c.eat("ir_version") {
                self.g.ir_version = c.number("an integer")?;
            } else if c.eat("opset") {
                self.g.opsets.push((c.quoted()?, c.number("a version")?));
            } else if c.eat("metadata") {
                let key = c.quoted()?;
                c.expect("=")?;
                self.g.metadata.push((key, c.quoted()?));
            } else if let Some(assumed) = ["require", "assume"].into_iter().position(|word| c.eat(word)).map(|k| k == 1) {
                let left = c.expr()?;
                let or_one = c.eat("broadcasts");
                c.expect(if or_one { "with" } else { "==" })?;
                let (right, at, text) = (c.expr()?, c.quoted()?, c.quoted()?);
                self.g.requires.push(Requirement { left, right, or_one, at, text, assumed });
            } else if c.eat("source") {
                let start = c.clone();
                if c.number::<usize>("a number")? != self.g.sources.len() {
                    return Err(start.error(format!("sources are numbered in order, {} is next", self.g.sources.len())));
                }
                self.g.sources.push(SourceNode { name: c.quoted()?, op: c.quoted()?, opset: c.number("a version")? });
            } else if c.eat("const") {
                self.constant(c)?;
            } else {
                break;
            }
        }
        c.expect("region")?;
        self.region(c, Graph::MAIN)?;
        c.expect("}")
    }

    fn constant(&mut self, c: &mut Cursor) -> Result<(), Problem> {
        let start = c.clone();
        let (number, data) = definition(c)?;
        let Some(dims) = data.ty.as_tensor().and_then(TensorType::known_dims) else {
            return Err(start.error(format!("a constant has a tensor type with known dims, not {}", data.ty)));
        };
        c.expect("=")?;
        let dtype = data.ty.as_tensor().expect("checked above").dtype;
        let tensor = self.tensor(c, dtype, &dims)?;
        let ints = Fact::constant(tensor.clone()).ints;
        self.define(&start, number, ValueData { def: Def::Constant(tensor), ints, ..data })?;
        Ok(())
    }

    fn tensor(&mut self, c: &mut Cursor, dtype: crate::DType, dims: &[usize]) -> Result<Tensor, Problem> {
        let start = c.clone();
        if c.eat("blob") {
            let number: usize = c.number("a blob number")?;
            let bytes = self.blobs.get(&number).ok_or_else(|| start.error(format!("there is no blob {number}")))?;
            return data::from_blob(dtype, dims, bytes.clone()).map_err(|e| start.error(e));
        }
        if c.eat("#") {
            return Err(start.error("the data of this constant was left out when the text was printed"));
        }
        data::elements(c, dtype, dims)
    }

    fn define(&mut self, at: &Cursor, number: u32, data: ValueData) -> Result<Value, Problem> {
        let v = Value(self.g.values.len() as u32);
        self.g.values.push(data);
        match self.values.insert(number, v) {
            None => Ok(v),
            Some(_) => Err(at.error(format!("%{number} is defined twice"))),
        }
    }

    fn region(&mut self, c: &mut Cursor, r: Region) -> Result<(), Problem> {
        if c.rest().starts_with('"') {
            self.g.regions[r.index()].name = c.quoted()?;
        }
        let params = c.list("(", ")", |c| Ok((c.clone(), definition(c)?)))?;
        for (i, (at, (number, data))) in params.into_iter().enumerate() {
            let v = self.define(&at, number, ValueData { def: Def::Param(r, i as u32), ..data })?;
            self.g.regions[r.index()].params.push(v);
        }
        c.expect("{")?;
        while !c.eat("yield") {
            let n = self.node(c)?;
            self.g.regions[r.index()].nodes.push(n);
        }
        while c.rest().starts_with('%') {
            let v = self.operand(c)?;
            self.g.regions[r.index()].results.push(v);
            if !c.eat(",") {
                break;
            }
        }
        c.expect("}")
    }

    fn operand(&self, c: &mut Cursor) -> Result<Value, Problem> {
        let start = c.clone();
        c.expect("%")?;
        let number = c.number("a value number")?;
        self.values.get(&number).copied().ok_or_else(|| start.error(format!("%{number} is not defined before its use")))
    }

    fn node(&mut self, c: &mut Cursor) -> Result<Node, Problem> {
        let start = c.clone();
        let mut results = vec![];
        while c.rest().starts_with('%') {
            results.push((c.clone(), definition(c)?));
            if !c.eat(",") {
                break;
            }
        }
        if !c.eat("=") {
            return Err(start.expected("a node or 'yield'"));
        }
        let name_at = c.clone();
        let full = c.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':'));
        let (domain, name) = full.rsplit_once(':').unwrap_or(("", full));
        let inputs = c.list("(", ")", |c| if c.eat("_") { Ok(None) } else { self.operand(c).map(Some) })?;
        let mut attrs = Attrs::default();
        if c.rest().starts_with('{') {
            c.list("{", "}", |c| {
                let name = c.word().to_owned();
                c.expect("=")?;
                let value = self.attribute(c)?;
                attrs.set(name, value);
                Ok(())
            })?;
        }
        let op = match Op::from_attrs(domain, name, &mut attrs) {
            Some(op) => op.map_err(|e| name_at.error(e.0))?,
            None => return Err(name_at.error(format!("there is no operator '{full}'"))),
        };
        if let Some((extra, _)) = attrs.0.first() {
            return Err(name_at.error(format!("{full} has no attribute '{extra}'")));
        }
        let name = if c.eat("@") { c.quoted()? } else { String::new() };
        let mut origin = BTreeSet::new();
        if c.eat("from") {
            origin.extend(c.list("[", "]", |c| self.source(c))?);
        }
        let node = Node(self.g.nodes.len() as u32);
        self.g.nodes.push(NodeData { op, inputs, outputs: vec![], regions: vec![], name, origin });
        for (i, (at, (number, data))) in results.into_iter().enumerate() {
            let v = self.define(&at, number, ValueData { def: Def::Output(node, i as u32), ..data })?;
            self.g.nodes[node.index()].outputs.push(v);
        }
        while c.eat("region") {
            let r = self.g.add_region("");
            self.g.nodes[node.index()].regions.push(r);
            c.nested(|c| self.region(c, r))?;
        }
        Ok(node)
    }

    fn source(&self, c: &mut Cursor) -> Result<Source, Problem> {
        let start = c.clone();
        match c.number::<u32>("a source number")? {
            n if (n as usize) < self.g.sources.len() => Ok(Source(n)),
            n => Err(start.error(format!("there is no source {n}"))),
        }
    }

    fn attribute(&mut self, c: &mut Cursor) -> Result<Attr, Problem> {
        let start = c.clone();
        if c.eat("tensor") {
            let dtype = c.dtype()?;
            let dims = c.list("[", "]", |c| c.number("a dim"))?;
            return Ok(Attr::Tensor(self.tensor(c, dtype, &dims)?));
        }
        if c.eat("floats") {
            c.expect("[")?;
            c.expect("]")?;
            return Ok(Attr::Floats(vec![]));
        }
        if c.eat("strings") {
            c.expect("[")?;
            c.expect("]")?;
            return Ok(Attr::Strs(vec![]));
        }
        if !c.rest().starts_with('[') {
            return simple_attribute(c);
        }
        let items = c.list("[", "]", simple_attribute)?;
        let mixed = || start.error("the items of a list are all integers, all floats or all strings");
        Ok(match items.first() {
            None => Attr::Ints(vec![]),
            Some(Attr::Int(_)) => {
                let ints = items.iter().map(|a| if let Attr::Int(v) = a { Some(*v) } else { None });
                Attr::Ints(ints.collect::<Option<_>>().ok_or_else(mixed)?)
            }
            Some(Attr::Float(_)) => {
                let floats = items.iter().map(|a| if let Attr::Float(v) = a { Some(*v) } else { None });
                Attr::Floats(floats.collect::<Option<_>>().ok_or_else(mixed)?)
            }
            Some(_) => {
                let strings = items.into_iter().map(|a| if let Attr::Str(v) = a { Some(v) } else { None });
                Attr::Strs(strings.collect::<Option<_>>().ok_or_else(mixed)?)
            }
        })
    }
}

fn simple_attribute(c: &mut Cursor) -> Result<Attr, Problem> {
    if c.rest().starts_with('"') {
        return c.quoted().map(Attr::Str);
    }
    if c.eat("nan") {
        c.expect("(")?;
        let start = c.clone();
        let bits = u32::try_from(c.hex()?).map_err(|_| start.expected("32 bits"))?;
        c.expect(")")?;
        return Ok(Attr::Float(f32::from_bits(bits)));
    }
    let mut as_int = c.clone();
    if let Ok(v) = as_int.number("an integer") {
        *c = as_int;
        return Ok(Attr::Int(v));
    }
    c.number("an attribute value").map(Attr::Float)
}

/// `%3: f32[n] "name" is [..]`; the place of definition is filled in by the caller.
fn definition(c: &mut Cursor) -> Result<(u32, ValueData), Problem> {
    c.expect("%")?;
    let number = c.number("a value number")?;
    c.expect(":")?;
    let ty = parse_type(c)?;
    let name = if c.rest().starts_with('"') { c.quoted()? } else { String::new() };
    let ints = if c.eat("is") { Some(c.exprs()?) } else { None };
    Ok((number, ValueData { ty, name, def: Def::Param(Graph::MAIN, 0), ints }))
}

/// Parses a type at the cursor.
pub(super) fn parse_type(c: &mut Cursor) -> Result<Type, Problem> {
    c.nested(|c| {
        let inner = |c: &mut Cursor| {
            let t = parse_type(c)?;
            c.expect(")")?;
            Ok(Box::new(t))
        };
        if c.eat("seq") {
            c.expect("(")?;
            return inner(c).map(Type::Sequence);
        }
        if c.eat("optional") {
            c.expect("(")?;
            return inner(c).map(Type::Optional);
        }
        if c.eat("map") {
            c.expect("(")?;
            let key = c.dtype()?;
            c.expect(",")?;
            return inner(c).map(|t| Type::Map(key, t));
        }
        for (word, make) in [("any", Type::Any as fn(crate::DType) -> Type), ("nothing", Type::Nothing)] {
            if c.eat(word) {
                c.expect("(")?;
                let dtype = c.dtype()?;
                c.expect(")")?;
                return Ok(make(dtype));
            }
        }
        let dtype = c.dtype()?;
        Ok(Type::tensor(dtype, c.exprs()?))
    })
}

impl std::str::FromStr for Type {
    type Err = Problem;
    fn from_str(text: &str) -> Result<Type, Problem> {
        let mut c = Cursor::new(text);
        let t = parse_type(&mut c)?;
        if c.at_end() { Ok(t) } else { Err(c.expected("the end of the type")) }
    }
}
