//! Printing graphs.

use super::compact::Numbering;
use super::data;
use crate::graph::{Def, Graph, Node, Region, Source, Value};
use crate::op::Attr;
use crate::tensor::Tensor;

use std::collections::BTreeSet;
use std::fmt::{self, Write};

/// How to print.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Show large constants by a hash, for reading: the text does not parse.
    pub elide: bool,
}

/// The exact text.
pub fn print(g: &Graph) -> String {
    print_with(g, Options::default())
}

/// The text as `options` say.
pub fn print_with(g: &Graph, options: Options) -> String {
    let mut p = Printer { g, numbers: Numbering::of(g), options, blobs: vec![], out: String::new() };
    p.graph().expect("writing to a string does not fail");
    p.out
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self))
    }
}

struct Printer<'a> {
    g: &'a Graph,
    numbers: Numbering,
    options: Options,
    blobs: Vec<Tensor>,
    out: String,
}

impl Printer<'_> {
    fn graph(&mut self) -> fmt::Result {
        let g = self.g;
        writeln!(self.out, "graph {:?} {{", g.name)?;
        writeln!(self.out, "  ir_version {}", g.ir_version)?;
        for (domain, version) in &g.opsets {
            writeln!(self.out, "  opset {domain:?} {version}")?;
        }
        for (key, value) in &g.metadata {
            writeln!(self.out, "  metadata {key:?} = {value:?}")?;
        }
        for r in &g.requires {
            let word = if r.assumed { "assume" } else { "require" };
            writeln!(self.out, "  {word} {r} {:?} {:?}", r.at, r.text)?;
        }
        for (i, s) in g.sources.iter().enumerate() {
            writeln!(self.out, "  source {i} {:?} {:?} {}", s.name, s.op, s.opset)?;
        }
        for v in self.numbers.constants.clone() {
            self.out.push_str("  const ");
            self.definition(v)?;
            self.out.push_str(" = ");
            if let Some(t) = g.constant(v) {
                self.tensor(t)?;
            }
            self.out.push('\n');
        }
        self.out.push_str("  ");
        self.region(Graph::MAIN, 1, &mut BTreeSet::new())?;
        self.out.push_str("}\n");
        for (i, t) in std::mem::take(&mut self.blobs).iter().enumerate() {
            writeln!(self.out, "blob {i} \"{}\"", data::encode(t.bytes()))?;
        }
        Ok(())
    }

    fn value(&mut self, v: Value) -> fmt::Result {
        match self.numbers.values.get(&v) {
            Some(n) => write!(self.out, "%{n}"),
            None => write!(self.out, "%dead{}", v.0),
        }
    }

    fn definition(&mut self, v: Value) -> fmt::Result {
        self.value(v)?;
        let d = self.g.value(v);
        write!(self.out, ": {}", d.ty)?;
        if !d.name.is_empty() {
            write!(self.out, " {:?}", d.name)?;
        }
        match (&d.ints, &d.def) {
            (Some(ints), Def::Param(..) | Def::Output(..)) => {
                self.out.push_str(" is [");
                for (i, e) in ints.iter().enumerate() {
                    write!(self.out, "{}{e}", if i > 0 { ", " } else { "" })?;
                }
                self.out.push(']');
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn region(&mut self, r: Region, depth: usize, seen: &mut BTreeSet<Region>) -> fmt::Result {
        self.out.push_str("region ");
        if !seen.insert(r) {
            return writeln!(self.out, "shared{}", r.0);
        }
        let region = self.g.region(r);
        if !region.name.is_empty() {
            write!(self.out, "{:?} ", region.name)?;
        }
        self.out.push('(');
        for (i, &v) in region.params.iter().enumerate() {
            self.out.push_str(if i > 0 { ", " } else { "" });
            self.definition(v)?;
        }
        self.out.push_str(") {\n");
        for &n in &region.nodes {
            self.indent(depth + 1);
            self.node(n, depth + 1, seen)?;
        }
        self.indent(depth + 1);
        self.out.push_str("yield");
        for (i, &v) in region.results.iter().enumerate() {
            self.out.push_str(if i > 0 { ", " } else { " " });
            self.value(v)?;
        }
        self.out.push('\n');
        self.indent(depth);
        self.out.push_str("}\n");
        Ok(())
    }

    fn indent(&mut self, depth: usize) {
        self.out.extend(std::iter::repeat_n("  ", depth));
    }

    fn node(&mut self, n: Node, depth: usize, seen: &mut BTreeSet<Region>) -> fmt::Result {
        let node = self.g.node(n);
        for (i, &v) in node.outputs.iter().enumerate() {
            self.out.push_str(if i > 0 { ", " } else { "" });
            self.definition(v)?;
        }
        let info = node.op.info();
        self.out.push_str(if node.outputs.is_empty() { "= " } else { " = " });
        if !info.domain.is_empty() {
            write!(self.out, "{}:", info.domain)?;
        }
        write!(self.out, "{}(", info.name)?;
        for (i, v) in node.inputs.iter().enumerate() {
            self.out.push_str(if i > 0 { ", " } else { "" });
            match v {
                Some(v) => self.value(*v)?,
                None => self.out.push('_'),
            }
        }
        self.out.push(')');
        let attrs = node.op.attrs();
        for (i, (name, value)) in attrs.0.iter().enumerate() {
            write!(self.out, "{}{name} = ", if i > 0 { ", " } else { " {" })?;
            self.attribute(value)?;
        }
        self.out.push_str(if attrs.0.is_empty() { "" } else { "}" });
        if !node.name.is_empty() {
            write!(self.out, " @{:?}", node.name)?;
        }
        self.origin(&node.origin)?;
        self.out.push('\n');
        for &r in &node.regions {
            self.indent(depth + 1);
            self.region(r, depth + 1, seen)?;
        }
        Ok(())
    }

    fn origin(&mut self, origin: &BTreeSet<Source>) -> fmt::Result {
        for (i, s) in origin.iter().enumerate() {
            write!(self.out, "{}{}", if i > 0 { ", " } else { " from [" }, s.0)?;
        }
        self.out.push_str(if origin.is_empty() { "" } else { "]" });
        Ok(())
    }

    fn attribute(&mut self, a: &Attr) -> fmt::Result {
        match a {
            Attr::Int(v) => write!(self.out, "{v}"),
            Attr::Float(v) => self.float(*v),
            Attr::Str(s) => write!(self.out, "{s:?}"),
            Attr::Ints(v) => write!(self.out, "{v:?}"),
            Attr::Floats(v) => {
                self.out.push_str(if v.is_empty() { "floats[" } else { "[" });
                for (i, &x) in v.iter().enumerate() {
                    self.out.push_str(if i > 0 { ", " } else { "" });
                    self.float(x)?;
                }
                self.out.push(']');
                Ok(())
            }
            Attr::Strs(v) if v.is_empty() => write!(self.out, "strings[]"),
            Attr::Strs(v) => write!(self.out, "{v:?}"),
            Attr::Tensor(t) => {
                write!(self.out, "tensor {}{:?} ", t.dtype, t.dims)?;
                self.tensor(t)
            }
        }
    }

    fn float(&mut self, v: f32) -> fmt::Result {
        if v.is_nan() { write!(self.out, "nan({:#x})", v.to_bits()) } else { write!(self.out, "{v:?}") }
    }

    fn tensor(&mut self, t: &Tensor) -> fmt::Result {
        let hide = self.options.elide && !data::is_small(t);
        match data::inline(t) {
            Some(text) if !hide => self.out.push_str(&text),
            _ if hide => write!(self.out, "#{:016x}", data::short_hash(t))?,
            _ => {
                write!(self.out, "blob {}", self.blobs.len())?;
                self.blobs.push(t.clone());
            }
        }
        Ok(())
    }
}
