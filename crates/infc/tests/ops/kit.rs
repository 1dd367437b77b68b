//! Random cases of single operators, and the check that each takes: interpreter against compiled code, through export, import,
//! passes, lowering, machine code and runtime.
//!
//! A case is operator, attributes and operands; which operands are constants, which dims are symbols, and what stands before and
//! after the operator is chosen here. Cases are numbered, and a number always makes the same case.

use infc::Options;
use infc::engine::{Backend, prepare};
use infc_ir::dtype::Class;
use infc_ir::graph::{Graph, SourceNode};
use infc_ir::interp::{self, Item};
use infc_ir::op::{Attr, Attrs, Builder, OPS, Op};
use infc_ir::{DType, Expr, Tensor, Type, Value, text};
use std::collections::BTreeSet;
use std::path::Path;

/// Reproducible random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// From `low` to `high`, both included.
    pub fn within(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }
    pub fn size(&mut self, low: usize, high: usize) -> usize {
        self.within(low as i64, high as i64) as usize
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.size(0, of.len() - 1)].clone()
    }
    /// From 0 to 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Dims: mostly small, now and then empty or wide enough for vectors with a tail.
    pub fn dims(&mut self, ranks: std::ops::RangeInclusive<usize>) -> Vec<usize> {
        let rank = self.size(*ranks.start(), *ranks.end());
        let wide = self.size(0, 9);
        (0..rank).map(|i| if i == wide { self.size(15, 37) } else { self.dim() }).collect()
    }
    pub fn dim(&mut self) -> usize {
        if self.chance(4) { 0 } else { self.size(1, 5) }
    }
    /// `n` shapes that broadcast with each other.
    pub fn broadcast(&mut self, n: usize) -> Vec<Vec<usize>> {
        let full = self.dims(0..=4);
        let mut one = || {
            let skip = if self.chance(40) { self.size(0, full.len()) } else { 0 };
            full[skip..].iter().map(|&d| if self.chance(25) { 1 } else { d }).collect()
        };
        (0..n).map(|_| one()).collect()
    }
    /// Broadcasts to `full`, one way.
    pub fn broadcast_to(&mut self, full: &[usize]) -> Vec<usize> {
        let skip = if self.chance(40) { self.size(0, full.len()) } else { 0 };
        full[skip..].iter().map(|&d| if self.chance(25) { 1 } else { d }).collect()
    }
    /// An axis of a tensor, counted from the front or from the end.
    pub fn axis(&mut self, rank: usize) -> i64 {
        self.within(-(rank as i64), rank as i64 - 1)
    }
    /// Some of the axes, each once, in any order and from either end.
    pub fn some_axes(&mut self, rank: usize) -> Vec<i64> {
        let mut axes: Vec<i64> = (0..rank as i64).filter(|_| self.chance(50)).collect();
        self.shuffle(&mut axes);
        axes.into_iter().map(|a| if self.chance(50) { a - rank as i64 } else { a }).collect()
    }
    pub fn shuffle<T>(&mut self, v: &mut [T]) {
        for i in (1..v.len()).rev() {
            v.swap(i, self.size(0, i));
        }
    }
    pub fn float(&mut self) -> DType {
        self.pick(&[DType::F32, DType::F32, DType::F32, DType::F64, DType::F16, DType::BF16])
    }
    pub fn int(&mut self) -> DType {
        self.pick(&[DType::I8, DType::I16, DType::I32, DType::I64, DType::U8, DType::U16, DType::U32, DType::U64])
    }
    pub fn number(&mut self) -> DType {
        if self.chance(60) { self.float() } else { self.int() }
    }
    /// Anything that can be copied.
    pub fn plain(&mut self) -> DType {
        if self.chance(15) { self.pick(&[DType::Bool, DType::F8E4M3FN, DType::F8E5M2]) } else { self.number() }
    }
    /// A tensor.
    pub fn tensor(&mut self, dtype: DType, dims: &[usize], fill: Fill) -> Tensor {
        let n: usize = dims.iter().product();
        let values: Vec<u64> = (0..n).map(|_| self.value(dtype, fill)).collect();
        Tensor::from_values(dtype, dims, values)
    }
    fn value(&mut self, dtype: DType, fill: Fill) -> u64 {
        let real = |v: f64| infc_ir::eval::cast(DType::F64, dtype, v.to_bits());
        match fill {
            Fill::Within(low, high) => {
                let v = self.within(low, high);
                if dtype.is_float() { real(v as f64) } else { infc_ir::eval::wrap_int(dtype, v) as u64 }
            }
            Fill::Real(low, high) => real(low + (high - low) * self.unit()),
            Fill::Any if dtype.is_float() => {
                let kind = self.size(0, 9);
                match kind {
                    0..=2 => real(self.pick(EDGES)),
                    3 => {
                        let wide = if dtype == DType::F64 {
                            f64::from_bits(self.next())
                        } else {
                            f32::from_bits(self.next() as u32).into()
                        };
                        real(wide)
                    }
                    _ => real(4.0 * self.unit() - 2.0),
                }
            }
            Fill::Any if dtype == DType::Bool => self.next() % 2,
            Fill::Any => {
                let (low, high) = dtype.int_range().expect("an integer dtype");
                let edges = [low as i64, low as i64 + 1, -1, 0, 1, 2, high as i64 - 1, high as i64];
                let v = match self.size(0, 2) {
                    0 => self.pick(&edges),
                    1 => self.within(-9, 9),
                    _ => self.next() as i64,
                };
                infc_ir::eval::wrap_int(dtype, v) as u64
            }
        }
    }
}

/// What elements are.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Anything: edges, NaN and infinities too.
    Any,
    /// Integers, both ends included: sums of them are exact in any order.
    Within(i64, i64),
    /// Real numbers.
    Real(f64, f64),
}

/// Integers whose sums and products stay exact.
pub const SMALL: Fill = Fill::Within(-3, 3);

const EDGES: &[f64] = &[
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.5,
    -3.5,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    3.4e38,
    -3.4e38,
    1.2e-38,
    1e-45,
    -1e-42,
    65504.0,
    6e-8,
    88.9,
    -104.0,
];

/// How equal results must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Agree {
    /// Bit by bit; any NaN is a NaN.
    Exact,
    /// Within so many units in the last place of the dtype.
    Ulps(f64),
    /// Within so many units in the last place of the largest number in the result (at least 1).
    Scaled(f64),
}

/// An operand.
pub struct Operand {
    pub tensor: Tensor,
    /// Its dims are always known: a list of axes, bounds or sizes, of which only the elements may be data.
    pub fixed: bool,
    /// Known when the model is compiled; else chosen by chance for small ones.
    pub constant: Option<bool>,
}

/// One operator on values.
pub struct Case {
    pub domain: &'static str,
    pub name: &'static str,
    pub attrs: Attrs,
    pub operands: Vec<Option<Operand>>,
    pub results: usize,
    pub agree: Agree,
    /// Bodies of control flow and the like are built by a function instead.
    pub graph: Option<Graph>,
}

pub fn op(name: &'static str) -> Case {
    Case { domain: "", name, attrs: Attrs::default(), operands: vec![], results: 1, agree: Agree::Exact, graph: None }
}

impl Case {
    pub fn domain(mut self, domain: &'static str) -> Case {
        self.domain = domain;
        self
    }
    pub fn set(mut self, name: &str, value: Attr) -> Case {
        self.attrs.set(name, value);
        self
    }
    pub fn int(self, name: &str, value: i64) -> Case {
        self.set(name, Attr::Int(value))
    }
    pub fn ints(self, name: &str, values: &[i64]) -> Case {
        self.set(name, Attr::Ints(values.to_vec()))
    }
    pub fn float(self, name: &str, value: f32) -> Case {
        self.set(name, Attr::Float(value))
    }
    pub fn floats(self, name: &str, values: &[f32]) -> Case {
        self.set(name, Attr::Floats(values.to_vec()))
    }
    pub fn str(self, name: &str, value: &str) -> Case {
        self.set(name, Attr::Str(value.into()))
    }
    /// An operand that may be a constant.
    pub fn of(mut self, tensor: Tensor) -> Case {
        self.operands.push(Some(Operand { tensor, fixed: false, constant: None }));
        self
    }
    /// A list of sizes or the like, which may be data.
    pub fn list(mut self, tensor: Tensor) -> Case {
        self.operands.push(Some(Operand { tensor, fixed: true, constant: None }));
        self
    }
    /// An operand that is never a constant: its dims are those of others, which may be symbols.
    pub fn data(mut self, tensor: Tensor) -> Case {
        self.operands.push(Some(Operand { tensor, fixed: false, constant: Some(false) }));
        self
    }
    /// An operand that must be known at compile time.
    pub fn known(mut self, tensor: Tensor) -> Case {
        self.operands.push(Some(Operand { tensor, fixed: true, constant: Some(true) }));
        self
    }
    /// An operand that is left out.
    pub fn none(mut self) -> Case {
        self.operands.push(None);
        self
    }
    pub fn results(mut self, n: usize) -> Case {
        self.results = n;
        self
    }
    pub fn ulps(mut self, n: f64) -> Case {
        self.agree = Agree::Ulps(n);
        self
    }
    pub fn scaled(mut self, n: f64) -> Case {
        self.agree = Agree::Scaled(n);
        self
    }
    /// Exact, or close where results are rounded differently.
    pub fn agree(mut self, how: Agree) -> Case {
        self.agree = how;
        self
    }
}

/// A case as a model with its inputs.
pub struct Model {
    pub graph: Graph,
    pub inputs: Vec<Tensor>,
}

/// How dims of the inputs are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Dims {
    Known,
    /// Dims of one size are one symbol.
    BySize,
    /// Each dim is its own symbol.
    Own,
}

fn model(case: &Case, random: &mut Random, how: Dims) -> Result<Model, String> {
    let mut g = Graph::new("case");
    let source = g.add_source(SourceNode { name: "node".into(), op: case.name.into(), opset: 28 });
    let (mut values, mut inputs) = (vec![], vec![]);
    let mut before = vec![];
    for (k, operand) in case.operands.iter().enumerate() {
        let Some(operand) = operand else {
            values.push(None);
            continue;
        };
        let constant = operand.constant.unwrap_or_else(|| random.chance(20));
        let turned = random.chance(10);
        let t = &operand.tensor;
        if constant {
            values.push(Some(g.add_constant(t.clone(), format!("c{k}"))));
            continue;
        }
        let dim = |(i, &d): (usize, &usize)| match how {
            _ if operand.fixed => Expr::from(d),
            Dims::Known => Expr::from(d),
            Dims::BySize => Expr::sym(&format!("n{d}")),
            Dims::Own => Expr::sym(&format!("n{k}_{i}")),
        };
        let v = g.add_param(Graph::MAIN, Type::tensor(t.dtype, t.dims.iter().enumerate().map(dim)), format!("x{k}"));
        inputs.push(t.clone());
        values.push(Some(v));
        // Something elementwise before it, which may be fused.
        if turned && operand.constant.is_none() && t.dtype.is_float() && t.dtype.bits() >= 16 {
            let mut b = Builder::new(&mut g, BTreeSet::from([source]));
            let v = b.node(made("Neg"), &[Some(v)], vec![], 1).map_err(|f| f.0)?;
            before.append(&mut b.nodes);
            values[k] = Some(v[0]);
        }
    }
    let after = random.chance(15);
    let mut b = Builder::new(&mut g, BTreeSet::from([source]));
    let mut attrs = case.attrs.clone();
    let made_op = Op::from_attrs(case.domain, case.name, &mut attrs).ok_or("is not in the table")?.map_err(|f| f.0)?;
    if let Some((left, _)) = attrs.0.first() {
        return Err(format!("attribute '{left}' is left over"));
    }
    let mut results = b.node(made_op, &values, vec![], case.results).map_err(|f| f.0)?;
    if after {
        results[0] = follow(&mut b, results[0]).map_err(|f| f.0)?;
    }
    let nodes: Vec<_> = before.into_iter().chain(b.nodes).collect();
    for (k, &v) in results.iter().enumerate() {
        g.values[v.index()].name = format!("y{k}");
    }
    (g.regions[0].nodes, g.regions[0].results) = (nodes, results);
    Ok(Model { graph: g, inputs })
}

fn made(name: &str) -> Op {
    Op::from_attrs("", name, &mut Attrs::default()).expect("in the table").expect("has no attributes")
}

/// Something elementwise after it.
fn follow(b: &mut Builder, v: Value) -> Result<Value, infc_ir::Fault> {
    let Ok(t) = b.tensor(v) else { return Ok(v) };
    let name = match t.dtype {
        DType::Bool => "Not",
        d if d.is_int() && d.bits() >= 8 => "BitwiseNot",
        d if d.is_float() && d.bits() >= 16 => "Abs",
        _ => return Ok(v),
    };
    b.op(made(name), &[v])
}

/// The case of this number as a model that is accepted, with as many symbolic dims as chance and operator want.
pub fn build(case: &Case, seed: u64) -> Result<Model, String> {
    if let Some(graph) = &case.graph {
        let inputs = case.operands.iter().flatten().map(|o| o.tensor.clone()).collect();
        return Ok(Model { graph: graph.clone(), inputs });
    }
    let how = Random(seed ^ 0x55).pick(&[Dims::Known, Dims::Known, Dims::BySize, Dims::Own]);
    let ways = match how {
        Dims::Known => vec![Dims::Known],
        Dims::BySize => vec![Dims::BySize, Dims::Known],
        Dims::Own => vec![Dims::Own, Dims::BySize, Dims::Known],
    };
    let mut last = Err(String::new());
    for how in ways {
        last = model(case, &mut Random(seed ^ 0xaa), how);
        if last.is_ok() {
            return last;
        }
    }
    last
}

/// Exported, and imported from the bytes.
pub fn through_onnx(graph: &Graph) -> Result<(Vec<u8>, Graph), String> {
    let bytes = infc_onnx::export(graph).map_err(|p| format!("export: {p}"))?;
    let again = infc_onnx::import_bytes(bytes.clone().into(), None).map_err(|p| format!("import: {p}"))?;
    Ok((bytes, again))
}

/// Are two results equal, as the case asks for?
pub fn compare(got: &Tensor, want: &Tensor, agree: Agree) -> Result<(), String> {
    if (got.dtype, &got.dims) != (want.dtype, &want.dims) {
        return Err(format!("{}{:?} instead of {}{:?}", got.dtype, got.dims, want.dtype, want.dims));
    }
    if got.dtype.class() == Class::Text {
        return if got.strings() == want.strings() { Ok(()) } else { Err("strings differ".into()) };
    }
    let numeric = want.dtype.class() != Class::Complex;
    if !numeric {
        return if got.bytes() == want.bytes() { Ok(()) } else { Err("complex numbers differ".into()) };
    }
    let floats = want.dtype.is_float();
    let largest =
        if floats { (0..want.len()).map(|i| want.float(i).abs()).filter(|v| v.is_finite()).fold(1.0, f64::max) } else { 0.0 };
    let unit = |scale: f64| {
        let (eps, least) = match want.dtype {
            DType::F64 => (f64::EPSILON, f64::MIN_POSITIVE),
            DType::F16 => (1.0 / 1024.0, 6.1e-5),
            DType::BF16 => (1.0 / 128.0, 1.2e-38),
            DType::F8E4M3FN | DType::F8E4M3FNUZ => (1.0 / 8.0, 1.0 / 64.0),
            DType::F8E5M2 | DType::F8E5M2FNUZ => (1.0 / 4.0, 6.1e-5),
            _ => (f64::from(f32::EPSILON), f64::from(f32::MIN_POSITIVE)),
        };
        eps * scale.max(least)
    };
    for i in 0..want.len() {
        let equal = if floats {
            let (g, w) = (got.float(i), want.float(i));
            let same = g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
            // A result next to the largest number may round to infinity.
            let (gf, wf) = (g.clamp(-f64::MAX, f64::MAX), w.clamp(-f64::MAX, f64::MAX));
            let close = |allowed: f64| g == w || g.is_finite() == w.is_finite() && (gf - wf).abs() <= allowed;
            match agree {
                Agree::Exact => same,
                Agree::Ulps(n) => same || close(n * unit(w.abs())),
                Agree::Scaled(n) => same || close(n * unit(largest)),
            }
        } else {
            got.value(i) == want.value(i)
        };
        if !equal {
            let show = |t: &Tensor| if floats { format!("{:?}", t.float(i)) } else { (t.value(i) as i64).to_string() };
            return Err(format!("element {i} is {} instead of {}", show(got), show(want)));
        }
    }
    Ok(())
}

/// The links that a case runs through beside the interpreter.
pub const LINKS: &[Backend] = &[
    Backend::Passes,
    #[cfg(feature = "llvm")]
    Backend::Llvm,
    #[cfg(feature = "cranelift")]
    Backend::Cranelift,
];

/// One case through the whole road.
pub fn check(model: &Model, agree: Agree, options: &Options) -> Result<(), String> {
    let (_, graph) = through_onnx(&model.graph)?;
    let inputs: Vec<Item> = model.inputs.iter().cloned().map(Item::Tensor).collect();
    let want = interp::run(&graph, &inputs);
    for &backend in LINKS {
        let name = backend.name();
        let got = prepare(graph.clone(), backend, options).map_err(|p| format!("{name} does not compile: {p}"))?.run(&inputs);
        match (&got, &want) {
            (Err(_), Err(_)) => {}
            (Err(e), Ok(_)) => return Err(format!("{name} fails: {e}")),
            (Ok(_), Err(e)) => return Err(format!("{name} runs, the interpreter says {e}")),
            (Ok(got), Ok(want)) => {
                for (k, (g, w)) in got.iter().zip(want).enumerate() {
                    let (Some(g), Some(w)) = (g.as_tensor(), w.as_tensor()) else { return Err("is no tensor".into()) };
                    compare(g, w, agree).map_err(|e| format!("{name}, result {k}: {e}"))?;
                }
            }
        }
    }
    Ok(())
}

/// An operator with the function that makes its cases.
pub type Row = (&'static str, fn(&mut Random) -> Case);

/// The rows of a family; every operator of the table's family is among them.
pub fn family(name: &str, rows: &[Row]) {
    let of_family: BTreeSet<&str> = OPS.iter().filter(|o| o.family == name).map(|o| o.name).collect();
    let here: BTreeSet<&str> = rows.iter().map(|(n, _)| *n).collect();
    let missing: Vec<_> = of_family.difference(&here).collect();
    assert!(missing.is_empty(), "operators of {name} without random cases: {missing:?}");
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(0).max(2 * rows.len());
    let rows = rows.to_vec();
    let family = name.to_owned();
    // Deep expressions are recursive.
    let work = move || run(&family, &rows, cases);
    let thread = std::thread::Builder::new().stack_size(256 << 20).spawn(work).expect("a thread");
    let failures = thread.join().expect("no panic");
    assert!(failures.is_empty(), "{} of {cases} cases fail:\n{}", failures.len(), failures.join("\n"));
}

fn run(family: &str, rows: &[Row], cases: usize) -> Vec<String> {
    let options = Options::native().expect("a known machine");
    let only = std::env::var("INFC_CASE").ok();
    let store = std::env::var_os("INFC_CASES_OUT");
    let mut failures = vec![];
    for i in 0..cases {
        let (name, make) = rows[i % rows.len()];
        let id = format!("{family}_{name}_{i}");
        if only.as_ref().is_some_and(|o| *o != id) {
            continue;
        }
        let seed = (i as u64 + 1).wrapping_mul(0x1234_5678_9abc_def1);
        let attempt = std::panic::catch_unwind(|| {
            let case = accepted(make, seed);
            let model = build(&case, seed).map_err(|e| format!("is not accepted: {e}"))?;
            if let Some(folder) = &store {
                write(&Path::new(folder).join(&id), &model)?;
            }
            check(&model, case.agree, &options).map_err(|e| format!("{e}\n{}", described(&model)))
        });
        match attempt {
            Ok(Ok(())) => {}
            Ok(Err(e)) => failures.push(format!("--- {id}: {e}")),
            Err(_) => failures.push(format!("--- {id}: panics")),
        }
    }
    failures
}

/// The case of this seed, or of the first one after it, whose operands have dtypes that ONNX takes.
fn accepted(make: fn(&mut Random) -> Case, seed: u64) -> Case {
    let good = |case: &Case| {
        let types: Vec<Option<Type>> =
            case.operands.iter().map(|o| o.as_ref().map(|o| Type::tensor(o.tensor.dtype, []))).collect();
        let types: Vec<Option<&Type>> = types.iter().map(Option::as_ref).collect();
        infc_onnx::schema::check_dtypes(case.domain, case.name, 28, &types).is_ok()
    };
    (0..99).map(|k| make(&mut Random(seed + k))).find(good).expect("one of many has dtypes that are taken")
}

fn described(model: &Model) -> String {
    let values = |t: &Tensor| {
        let all = (0..t.len().min(24))
            .map(|i| if t.dtype.is_float() { format!("{:?}", t.float(i)) } else { (t.value(i) as i64).to_string() });
        format!("  {}{:?}: {}", t.dtype, t.dims, all.collect::<Vec<_>>().join(", "))
    };
    let inputs: Vec<String> = model.inputs.iter().map(values).collect();
    format!("{}\n{}", text::print(&model.graph), inputs.join("\n"))
}

/// The case as a folder in ONNX's test layout, for other engines; what the interpreter computes is the expected output.
fn write(folder: &Path, model: &Model) -> Result<(), String> {
    let (bytes, graph) = through_onnx(&model.graph)?;
    let inputs: Vec<Item> = model.inputs.iter().cloned().map(Item::Tensor).collect();
    let Ok(outputs) = interp::run(&graph, &inputs) else { return Ok(()) };
    let set = folder.join("test_data_set_0");
    let io = |r: std::io::Result<()>| r.map_err(|e| e.to_string());
    io(std::fs::create_dir_all(&set))?;
    io(std::fs::write(folder.join("model.onnx"), bytes))?;
    // Others round 16-bit values at other places.
    let narrow = |t: &Tensor| t.dtype.is_float() && t.dtype.bits() <= 16;
    let rtol = if model.inputs.iter().any(narrow) { 2e-2 } else { 1e-3 };
    io(std::fs::write(folder.join("tol.json"), format!("{{\"rtol\": {rtol}, \"atol\": {}}}", rtol / 10.0)))?;
    for (role, items) in [("input", &inputs), ("output", &outputs)] {
        for (k, item) in items.iter().enumerate() {
            if let Some(t) = item.as_tensor() {
                io(std::fs::write(set.join(format!("{role}_{k}.pb")), infc_onnx::write_tensor_proto("", t)))?;
            }
        }
    }
    Ok(())
}
