//! The verifier, and with it the specification of the graph IR.
//!
//! A graph is valid if:
//!
//! **Arenas.** Every id in use lies in its arena. Region 0 is the model. Every other live region belongs to one node, every live node
//! stands once in one region, and no region contains itself. Entries that nothing reaches from region 0 are dead and are not looked
//! at; so are nodes in no region.
//!
//! **SSA.** A value has one definition, and definition and value know each other: output `k` of a node is `Def::Output(node, k)`,
//! parameter `k` of a region `Def::Param(region, k)`. A constant's type is that of its tensor, and the tensor has as many bytes as its
//! dims say.
//!
//! **Order and isolation.** An operand of a node is a constant, a parameter of the region it stands in, or an output of an earlier
//! node of that region. The same holds for a region's results at its end. A region sees nothing else: what it needs from the
//! outside is an operand of its node and a parameter of the region.
//!
//! **Operators.** A node has as many operands, results and regions as its row of the table allows (captured values follow the declared
//! operands), and its operator accepts the facts of its operands: inference gives no error.
//!
//! **Types.** The type of a result is the one that inference gives for the operands, or a better one: dtype and rank are the same,
//! and no dim is certainly another one. Types contain no loop variables, only symbols. `ints` has one element for each element of the
//! tensor, which has rank 0 or 1.
//!
//! **Control flow.** The bodies of a node take the values that `op::control` says, and give the results that it says.
//!
//! **Provenance.** Every live node has an origin that is not empty, and its sources exist.
//!
//! A step is valid ([`step`]) if every scalar in it is well-typed, reads as many dims as its source has, mentions only axes that it
//! has, and sees the accumulator only where there is one.

use crate::compute::{Compute, Reducer, Step};
use crate::dtype::{Class, DType};
use crate::expr::{Expr, Node as ExprNode};
use crate::fault;
use crate::fault::{Fault, Problem, Problems};
use crate::graph::{Def, Graph, Node, Region, Value};
use crate::op::{self, Op};
use crate::scalar::{Binary, Kind, Scalar, Unary};
use crate::types::{TensorType, Type};
use std::collections::HashSet;

/// Checks a graph; the error lists everything that is wrong.
pub fn verify(g: &Graph) -> Result<(), Problems> {
    let mut v = Verifier { g, problems: vec![], regions: HashSet::new(), nodes: HashSet::new() };
    if g.regions.is_empty() {
        v.problem("the graph", "has no main region");
    } else {
        v.region(Graph::MAIN, &format!("model '{}'", g.name));
    }
    if v.problems.is_empty() { Ok(()) } else { Err(Problems(v.problems)) }
}

/// Bytes of a tensor that no machine addresses: beyond them sizes could not be computed with.
const MOST_BYTES: u128 = 1 << 47;

/// Tells tensors whose known dims alone make more elements than can be addressed.
pub fn addressable(g: &Graph) -> Result<(), Problems> {
    let mut problems = vec![];
    let mut look = |at: &dyn Fn() -> String, v: Value| {
        let Some(ty) = g.ty(v).as_tensor() else { return };
        let known = ty.dims.iter().filter_map(|d| d.known()).map(|n| n.max(0) as u128);
        let elements = if known.clone().any(|n| n == 0) { 0 } else { known.fold(1u128, |all, n| all.saturating_mul(n)) };
        if elements.saturating_mul(ty.dtype.bytes().max(1) as u128) > MOST_BYTES {
            let message = format!("{ty} has more elements than can be addressed");
            problems.push(Problem { at: at(), message, help: "give it smaller dims".to_owned() });
        }
    };
    for r in g.live_regions() {
        let region = g.region(r);
        region.params.iter().for_each(|&v| look(&|| format!("input '{}'", g.value(v).name), v));
        for &n in &region.nodes {
            g.node(n).outputs.iter().for_each(|&v| look(&|| g.describe(n), v));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

struct Verifier<'a> {
    g: &'a Graph,
    problems: Vec<Problem>,
    regions: HashSet<Region>,
    nodes: HashSet<Node>,
}

impl Verifier<'_> {
    fn problem(&mut self, at: &str, message: impl Into<String>) {
        self.problems.push(Problem { at: at.to_owned(), message: message.into(), help: String::new() });
    }

    fn region(&mut self, r: Region, at: &str) {
        let g = self.g;
        let Some(region) = g.regions.get(r.index()) else {
            return self.problem(at, format!("region {} does not exist", r.0));
        };
        if !self.regions.insert(r) {
            return self.problem(at, format!("region {} belongs to more than one node", r.0));
        }
        let mut visible = HashSet::new();
        for (i, &v) in region.params.iter().enumerate() {
            self.definition(v, &Def::Param(r, i as u32), at);
            visible.insert(v);
        }
        for &n in &region.nodes {
            if n.index() >= g.nodes.len() {
                self.problem(at, format!("node {} does not exist", n.0));
                continue;
            }
            if !self.nodes.insert(n) {
                self.problem(at, format!("node {} ({}) stands in more than one place", n.0, g.describe(n)));
                continue;
            }
            self.node(n, &visible);
            visible.extend(&g.node(n).outputs);
        }
        for (i, &v) in region.results.iter().enumerate() {
            self.operand(v, &visible, at, &format!("result {i}"));
        }
    }

    fn definition(&mut self, v: Value, def: &Def, at: &str) {
        let Some(data) = self.g.values.get(v.index()) else {
            return self.problem(at, format!("value {} does not exist", v.0));
        };
        if data.def != *def {
            let found = match &data.def {
                Def::Constant(_) => "a constant".to_owned(),
                other => format!("{other:?}"),
            };
            self.problem(at, format!("value {} is {found}, but stands where {def:?} belongs", v.0));
        }
        let mut variable = false;
        data.ty.each_dim(&mut |d| d.leaves(&mut |l| variable |= matches!(l.node(), ExprNode::Var(_))));
        if variable {
            self.problem(at, format!("the type {} of value {} has a loop variable in it", data.ty, v.0));
        }
        if let Some(ints) = &data.ints {
            let fits = data.ty.as_tensor().is_some_and(|t| match t.dims[..] {
                [] => ints.len() == 1,
                [n] => n.known().is_none_or(|n| n == ints.len() as i64),
                _ => false,
            });
            if !fits {
                self.problem(at, format!("value {} of type {} cannot have the {} elements {ints:?}", v.0, data.ty, ints.len()));
            }
        }
    }

    fn operand(&mut self, v: Value, visible: &HashSet<Value>, at: &str, what: &str) {
        let Some(data) = self.g.values.get(v.index()) else {
            return self.problem(at, format!("{what} is value {}, which does not exist", v.0));
        };
        match &data.def {
            Def::Constant(t) => {
                let ty = Type::tensor(t.dtype, t.dims.iter().map(|&d| Expr::from(d)));
                let bytes = t.bytes().len() == t.len() * t.dtype.bytes() && t.strings().len() % t.len().max(1) == 0;
                if data.ty != ty || !bytes {
                    self.problem(at, format!("{what} is a constant of type {} that holds {ty}", data.ty));
                }
            }
            Def::Param(..) | Def::Output(..) if !visible.contains(&v) => {
                self.problem(at, format!("{what} is value {} ('{}'), which is not computed before, or not here", v.0, data.name));
            }
            Def::Param(..) | Def::Output(..) => {}
        }
    }

    fn node(&mut self, n: Node, visible: &HashSet<Value>) {
        let g = self.g;
        let node = g.node(n);
        let exist = |v: &&Value| v.index() < g.values.len();
        let sources = node.origin.iter().all(|s| s.index() < g.sources.len());
        let at = if sources { g.describe(n) } else { format!("{} '{}'", node.op.name(), node.name) };
        if node.origin.is_empty() || !sources {
            self.problem(&at, if sources { "has no origin" } else { "has an origin that does not exist" });
        }
        for (i, v) in node.inputs.iter().enumerate() {
            if let Some(v) = v {
                self.operand(*v, visible, &at, &format!("operand {i}"));
            }
        }
        for (i, &v) in node.outputs.iter().enumerate() {
            self.definition(v, &Def::Output(n, i as u32), &at);
        }
        let before = self.problems.len();
        for &r in &node.regions {
            self.region(r, &at);
        }
        let info = node.op.info();
        if node.regions.len() != info.regions.len() {
            self.problem(&at, format!("has {} regions, {} are needed", node.regions.len(), info.regions.len()));
        }
        if !op::arity(info.outputs).contains(&node.outputs.len()) {
            self.problem(
                &at,
                format!("has {} results, {} to {} are allowed", node.outputs.len(), info.outputs.0, info.outputs.1),
            );
        }
        let all_exist = node.inputs.iter().flatten().all(|v| exist(&v)) && node.outputs.iter().all(|v| exist(&v));
        if self.problems.len() == before && all_exist {
            self.control(n, &at);
            self.types(n, &at);
        }
    }

    /// Results agree with inference.
    fn types(&mut self, n: Node, at: &str) {
        let node = self.g.node(n);
        let facts = match op::infer(self.g, &node.op, &node.inputs, &node.regions, node.outputs.len()) {
            Ok(facts) => facts,
            Err(f) => return self.problem(at, f.0),
        };
        for (k, (&v, f)) in node.outputs.iter().zip(&facts).enumerate() {
            if !agree(self.g.ty(v), &f.ty) {
                self.problem(at, format!("result {k} has type {}, but its operands say {}", self.g.ty(v), f.ty));
            }
        }
    }

    /// Bodies take and give what their node passes and expects.
    fn control(&mut self, n: Node, at: &str) {
        let node = self.g.node(n);
        let (skip, lead) = match node.op {
            Op::If(_) => (1, 0),
            Op::Loop(_) => (0, 1),
            Op::Scan(_) | Op::SequenceMap(_) => (0, 0),
            _ => return,
        };
        let params = node.inputs.len().saturating_sub(skip);
        for &r in &node.regions {
            let region = self.g.region(r);
            if region.params.len() != params {
                self.problem(at, format!("passes {params} values to a body that takes {}", region.params.len()));
            }
            let results = region.results.len();
            if results < lead || results - lead < node.outputs.len() {
                self.problem(at, format!("has {} results, but a body with {results}", node.outputs.len()));
            }
        }
    }
}

/// True unless two types are certainly different.
fn agree(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Tensor(a), Type::Tensor(b)) => {
            let same = |(&x, &y): (&Expr, &Expr)| (x - y).known().is_none_or(|d| d == 0);
            a.dtype == b.dtype && a.rank() == b.rank() && a.dims.iter().zip(&b.dims).all(same)
        }
        (Type::Sequence(a), Type::Sequence(b)) | (Type::Optional(a), Type::Optional(b)) => agree(a, b),
        (Type::Map(k, a), Type::Map(l, b)) => k == l && agree(a, b),
        (Type::Optional(a), b) => agree(a, b),
        (Type::Any(_) | Type::Nothing(_), _) | (_, Type::Any(_) | Type::Nothing(_)) => a.dtype() == b.dtype(),
        _ => false,
    }
}

/// Checks a step. `sources` are the types of what it reads, by number; one that is absent is never read.
pub fn step(s: &Step, sources: &[Option<TensorType>]) -> Result<(), Fault> {
    let check = |what: &str, s: Scalar, axes: usize, local: Option<DType>| {
        scalar(s, sources, axes, local).map_err(|f| fault!("{what}: {}", f.0))
    };
    let same = |what: &str, a: DType, b: DType| if a == b { Ok(()) } else { Err(fault!("{what} is {a}, not {b}")) };
    match s {
        Step::Compute(Compute { dims, reduction, value }) => {
            let mut local = None;
            if let Some(r) = reduction {
                check("reduction", r.body, dims.len() + r.axes.len(), None)?;
                if matches!(r.kind, Reducer::ArgMax { .. } | Reducer::ArgMin { .. }) && r.axes.len() != 1 {
                    return Err(fault!("{} goes along one axis, not {}", r.kind.name(), r.axes.len()));
                }
                local = Some(r.kind.result(r.body.dtype()));
            }
            check("value", *value, dims.len(), local)
        }
        Step::Scatter(s) => {
            check("base", s.base, s.dims.len(), None)?;
            check("value", s.value, s.updates.len(), None)?;
            s.index.iter().try_for_each(|&i| {
                same("index", i.dtype(), DType::I64)?;
                check("index", i, s.updates.len(), None)
            })?;
            if s.index.len() != s.dims.len() {
                return Err(fault!("{} indices write to {} dims", s.index.len(), s.dims.len()));
            }
            same("value", s.value.dtype(), s.base.dtype())
        }
        Step::Prefix(p) => {
            check("body", p.body, p.dims.len(), None)?;
            check("init", p.init, 0, None)?;
            if p.axis >= p.dims.len() {
                return Err(fault!("axis {} of {} dims", p.axis, p.dims.len()));
            }
            same("init", p.init.dtype(), p.body.dtype())
        }
        Step::Sort(s) => {
            check("key", s.key, s.dims.len() + s.parts.len(), None)?;
            if s.axis >= s.dims.len() { Err(fault!("axis {} of {} dims", s.axis, s.dims.len())) } else { Ok(()) }
        }
        Step::Filter(f) => {
            check("condition", f.cond, f.over.len(), None)?;
            same("condition", f.cond.dtype(), DType::Bool)
        }
        Step::Choice(c) => {
            let rank = c.dims.len();
            check("most", c.most, rank.saturating_sub(1), None)?;
            check("key", c.key, rank, None)?;
            check("condition", c.cond, rank, None)?;
            check("clash", c.clash, rank + 1, None)?;
            same("most", c.most.dtype(), DType::I64)?;
            same("key", c.key.dtype(), DType::F32)?;
            [c.cond, c.clash].iter().try_for_each(|s| same("condition", s.dtype(), DType::Bool))
        }
    }
}

/// Checks a scalar: dtypes of operands, number of indices of reads, axes below `axes`, `Local(0)` of dtype `local`.
pub fn scalar(s: Scalar, sources: &[Option<TensorType>], axes: usize, local: Option<DType>) -> Result<(), Fault> {
    let mut found = Ok(());
    s.visit(&mut |n| {
        if found.is_ok() {
            found = node(n, sources, axes, local);
        }
    });
    found
}

fn node(s: Scalar, sources: &[Option<TensorType>], axes: usize, local: Option<DType>) -> Result<(), Fault> {
    let d = s.dtype();
    let need = |good: bool, what: &str| if good { Ok(()) } else { Err(fault!("{s}: {what}")) };
    match s.kind() {
        Kind::Const(_) => need(d != DType::String, "strings have no scalar form"),
        Kind::Index(e) => {
            let mut good = true;
            e.leaves(&mut |l| good &= !matches!(l.node(), ExprNode::Var(v) if *v as usize >= axes));
            need(d == DType::I64, "an index is i64")?;
            need(good, "there is no such axis")
        }
        Kind::Read { source, index, guard } => {
            let Some(Some(t)) = sources.get(*source as usize) else { return Err(fault!("{s}: there is no such source")) };
            need(t.dtype == d, "the source has another dtype")?;
            need(t.rank() == index.len(), "the source has another rank")?;
            need(index.iter().all(|i| i.dtype() == DType::I64), "an index is i64")?;
            let guarded = guard.is_none_or(|(c, v)| c.dtype() == DType::Bool && v.dtype() == d);
            need(guarded, "a guard is a bool and a value of the read's dtype")
        }
        Kind::Local(n) => need(*n == 0 && local == Some(d), "there is no such accumulator here"),
        Kind::Unary(op, a) => {
            let test = matches!(op, Unary::IsNan | Unary::IsInf);
            need(d == if test { DType::Bool } else { a.dtype() }, "the result has another dtype")?;
            need(!(matches!(op, Unary::Not) && a.dtype().is_float()), "not takes bool or integers")?;
            need(is_number(a.dtype()), "the operand is no number")
        }
        Kind::Binary(op, a, b) => {
            need(a.dtype() == b.dtype(), "operands differ in dtype")?;
            need(d == if op.is_comparison() { DType::Bool } else { a.dtype() }, "the result has another dtype")?;
            let bitwise = matches!(op, Binary::And | Binary::Or | Binary::Xor | Binary::Shl | Binary::Shr);
            need(!(bitwise && a.dtype().is_float()), "bitwise operators take bool or integers")?;
            need(is_number(a.dtype()), "the operands are no numbers")
        }
        Kind::Fma(a, b, c) => need([a, b, c].iter().all(|x| x.dtype() == d), "operands differ in dtype"),
        Kind::Select(c, a, b) => {
            need(c.dtype() == DType::Bool && a.dtype() == d && b.dtype() == d, "select takes a bool and two values of its dtype")
        }
        Kind::Cast(a) => need(is_number(d) && is_number(a.dtype()), "only numbers can be cast"),
        Kind::Bitcast(a) => need(a.dtype().bytes() == d.bytes(), "a bitcast keeps the width"),
    }
}

fn is_number(d: DType) -> bool {
    !matches!(d.class(), Class::Complex | Class::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages for a graph with one region of this text; sources and constants are there.
    fn check(body: &str) -> Vec<String> {
        let text = format!(
            "graph \"t\" {{\n source 0 \"s\" \"Op\" 1\n const %0: f32[] = {{1.0}}\n const %1: bool[] = {{true}}\n{body}\n}}"
        );
        let g = crate::text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        verify(&g).err().map(|p| p.0.into_iter().map(|p| p.message).collect()).unwrap_or_default()
    }

    #[test]
    fn valid_graphs_pass() {
        let good =
            "region (%2: f32[n]) { %3: f32[n] = Add(%2, %0) from [0]  %4: i64[1] is [n] = Shape(%3) from [0] yield %3, %4, %0 }";
        assert_eq!(check(good), Vec::<String>::new());
        let refined = "region (%2: f32[n]) { %3: f32[4] = Neg(%2) from [0] yield %3 }";
        assert_eq!(check(refined), Vec::<String>::new());
    }

    #[test]
    fn violations_are_listed() {
        for (body, message) in [
            ("region (%2: f32[n]) { %3: f32[n] = Neg(%2) yield %3 }", "has no origin"),
            (
                "region (%2: f32[n]) { %3: f16[n] = Neg(%2) from [0] yield %3 }",
                "result 0 has type f16[n], but its operands say f32[n]",
            ),
            ("region (%2: f32[n]) { %3: f32[n + 1] = Neg(%2) from [0] yield %3 }", "result 0 has type f32[n + 1]"),
            ("region (%2: f32[i0]) { yield %2 }", "the type f32[i0] of value 2 has a loop variable in it"),
            ("region (%2: i64[3] is [1]) { yield %2 }", "value 2 of type i64[3] cannot have the 1 elements [1]"),
            ("region (%2: f32[n]) { %3: f32[n] = Add(%2) from [0] yield %3 }", "takes 2 to 2 operands, got 1"),
            ("region (%2: f32[n]) { %3: f32[n] = If(%1) from [0] yield %3 }", "has 0 regions, 2 are needed"),
            (
                "region (%2: f32[n]) { %3: f32[n] = If(%1) from [0] region () { yield %2 } region () { yield %0 } yield %3 }",
                "result 0 is value 2 (''), which is not computed before, or not here",
            ),
        ] {
            let messages = check(body);
            assert!(messages.iter().any(|m| m.starts_with(message)), "{body}: {messages:?}");
        }
    }

    #[test]
    fn arenas_are_checked() {
        let mut g = crate::text::parse(
            "graph \"\" { source 0 \"\" \"\" 1 region (%0: f32[]) { %1: f32[] = Neg(%0) from [0] yield %1 } }",
        )
        .unwrap();
        verify(&g).unwrap();
        g.regions[0].nodes.push(Node(0));
        g.regions[0].nodes.push(Node(7));
        g.regions[0].results.push(Value(9));
        g.values[0].def = Def::Param(Graph::MAIN, 3);
        assert_eq!(verify(&g).unwrap_err().0.len(), 4);
    }

    #[test]
    fn steps_are_checked() {
        let sources = [Some(TensorType::new(DType::F32, [Expr::sym("n")])), None];
        for (text, good) in [
            ("compute[n] = b0:f32[i0]", true),
            ("compute[n] = b0:f32[i1]", false),
            ("compute[n] = b0:f16[i0]", false),
            ("compute[n] = b0:f32[i0, i0]", false),
            ("compute[n] = b1:f32[i0]", false),
            ("compute[n] = t0:f32", false),
            ("compute[] reduce sum[n] b0:f32[i0] = t0:f32", true),
            ("compute[] reduce sum[n] b0:f32[i0] = t0:i64", false),
            ("compute[] reduce argmax[n] b0:f32[i0] = t0:i64", true),
            ("compute[] reduce argmax[n, 2] b0:f32[i0] = t0:i64", false),
            ("compute[n] = and(b0:f32[i0], b0:f32[i0])", false),
            ("scatter[n] from 0.0:f32 over [n] at [(i0)] add b0:f32[i0]", true),
            ("scatter[n] from 0:i8 over [n] at [(i0)] add b0:f32[i0]", false),
            ("scatter[n, n] from 0.0:f32 over [n] at [(i0)] add b0:f32[i0]", false),
            ("prefix[n] axis 0 add from 0.0:f32 of b0:f32[i0]", true),
            ("prefix[n] axis 1 add from 0.0:f32 of b0:f32[i0]", false),
        ] {
            assert_eq!(step(&text.parse().unwrap(), &sources).is_ok(), good, "{text}");
        }
    }
}
