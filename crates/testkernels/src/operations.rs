//! Every scalar operation on edge values of every dtype.

use crate::{buffer, each, kernel, memory, same, show, store, values};
use infc_ir::dtype::Class;
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Expr, Scalar, eval};
use infc_kernel::loops::{Access, Kernel, LoopKind, Space, Stmt};

/// Operations on columns of values.
#[derive(Clone, Debug)]
pub struct Case {
    /// What they are.
    pub name: &'static str,
    /// The columns, as `eval` holds their values.
    pub inputs: Vec<(DType, Vec<u64>)>,
    /// Operations over `i0`, reading the columns.
    pub outputs: Vec<Scalar>,
}

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut out = vec![];
    unary_operators(&mut out);
    binary_operators(&mut out);
    minimum_and_maximum_with_constants(&mut out);
    casts(&mut out);
    ties_of_f64_to_narrow_floats_round_once(&mut out);
    fma_rounds_once(&mut out);
    selects(&mut out);
    out
}

impl Case {
    fn new(name: &'static str, inputs: &[(DType, Vec<u64>)], outputs: &[Scalar]) -> Case {
        Case { name, inputs: inputs.to_vec(), outputs: outputs.to_vec() }
    }

    /// Two kernels: with a serial loop, and with a masked vector loop.
    pub fn kernels(&self) -> [Kernel; 2] {
        let (inputs, outputs) = (&self.inputs, &self.outputs);
        let n = inputs[0].1.len();
        let dims = [Expr::int(n as i64)];
        let mut buffers: Vec<_> = inputs.iter().map(|(d, _)| buffer("in", *d, &dims, Space::Global, Access::Read)).collect();
        buffers.extend(outputs.iter().map(|s| buffer("out", s.dtype(), &dims, Space::Global, Access::Write)));
        let stores = |e: Expr| -> Vec<Stmt> {
            let at = |s: Scalar| s.subst(&[e]);
            outputs.iter().enumerate().map(|(o, &s)| store((inputs.len() + o) as u32, &[e], at(s))).collect()
        };
        let (i, lane) = (Expr::var(1), Expr::var(2));
        let serial = vec![each(1, n, LoopKind::Serial, stores(i))];
        let e = i * 8 + lane;
        let masked = Stmt::If { cond: Scalar::index(e).lt(Scalar::index(n)), then: stores(e), otherwise: vec![] };
        let vector = vec![each(1, n.div_ceil(8), LoopKind::Serial, vec![each(2, 8, LoopKind::Vector, vec![masked])])];
        [kernel(buffers.clone(), &[], serial), kernel(buffers, &[], vector)]
    }

    /// The memory that the kernels run on.
    pub fn buffers(&self) -> Vec<Vec<u8>> {
        let n = self.inputs[0].1.len();
        let inputs = self.inputs.iter().map(|(d, v)| memory(*d, v));
        inputs.chain(self.outputs.iter().map(|s| vec![0xcc; n * s.dtype().bytes()])).collect()
    }

    /// The first result that is not what `infc_ir::eval` gives.
    pub fn difference(&self, memories: &[Vec<u8>]) -> Option<String> {
        let inputs = &self.inputs;
        for (o, s) in self.outputs.iter().enumerate() {
            let got = values(s.dtype(), &memories[inputs.len() + o]);
            for row in 0..inputs[0].1.len() {
                let mut read = |source: u32, _: &[i64], _| inputs[source as usize].1[row];
                let want = eval::scalar(*s, &|_| Some(row as i64), &mut read, &|_| 0);
                if !same(s.dtype(), got[row], want) {
                    let operands: Vec<String> = inputs.iter().map(|(d, v)| show(*d, v[row])).collect();
                    let (got, want) = (show(s.dtype(), got[row]), show(s.dtype(), want));
                    return Some(format!("{}: {s} of ({}) is {got}, want {want}", self.name, operands.join(", ")));
                }
            }
        }
        None
    }
}

fn dtypes() -> impl Iterator<Item = DType> {
    DType::ALL.iter().copied().filter(|d| !matches!(d.class(), Class::Complex | Class::Text))
}

/// All but the powers of two, whose rounding is by exponent: only conversions of them are defined.
fn arithmetic() -> impl Iterator<Item = DType> {
    dtypes().filter(|&d| d != DType::F8E8M0)
}

/// Edge values of a dtype, as `eval` holds them.
fn edges(dtype: DType) -> Vec<u64> {
    let mut all: Vec<u64> = match dtype.int_range() {
        None => {
            let inf = f64::INFINITY;
            let plain = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.0, 7.25, -0.3, 1e-3, 127.5, 300.0, -32769.5, 65519.0];
            let extreme = [65504.0, 3e9, 1e19, -1e19, 1e38, 1e-38, 1e-40, 1.4e-45, 3.4e38, 1e308, 5e-324, inf, -inf, f64::NAN];
            plain.iter().chain(&extreme).map(|&v| eval::round_float(dtype, v).to_bits()).collect()
        }
        Some((lo, hi)) => {
            let near = [lo, lo + 1, hi, hi - 1, 0, 1, 2, 3, 5, 7, 8, 31, 32, 63, 64, 100, -1, -2, -3, -7, -100];
            near.iter().map(|&v| eval::wrap_int(dtype, v as i64) as u64).collect()
        }
    };
    all.dedup();
    all
}

fn x(dtype: DType, source: usize) -> Scalar {
    Scalar::read_at(dtype, source, &[Expr::var(0)])
}

fn unary_operators(out: &mut Vec<Case>) {
    use Unary::*;
    let plain = [Neg, Abs, Sign, Not, Floor, Ceil, Trunc, Round, Sqrt, IsNan, IsInf];
    for d in arithmetic() {
        let ops: Vec<Scalar> = plain
            .iter()
            .filter(|&&op| !(op == Sqrt && d.int_range().is_some_and(|(lo, _)| lo < 0) && d.bits() < 8))
            .map(|&op| Scalar::unary(op, x(d, 0)))
            .collect();
        out.push(Case::new("unary_operators", &[(d, edges(d))], &ops));
    }
}

fn binary_operators(out: &mut Vec<Case>) {
    for d in arithmetic() {
        let bitwise = |op: &Binary| matches!(op, Binary::And | Binary::Or | Binary::Xor | Binary::Shl | Binary::Shr);
        let ops: Vec<Scalar> = Binary::ALL
            .iter()
            .filter(|op| !(**op == Binary::Atan2 || d.is_float() && (bitwise(op) || **op == Binary::Pow)))
            .map(|&op| Scalar::binary(op, x(d, 0), x(d, 1)))
            .collect();
        let e = edges(d);
        let pairs: Vec<(u64, u64)> = e.iter().flat_map(|&a| e.iter().map(move |&b| (a, b))).collect();
        out.push(Case::new(
            "binary_operators",
            &[(d, pairs.iter().map(|p| p.0).collect()), (d, pairs.iter().map(|p| p.1).collect())],
            &ops,
        ));
    }
}

fn minimum_and_maximum_with_constants(out: &mut Vec<Case>) {
    for d in [DType::F32, DType::F64, DType::F16] {
        let ops: Vec<Scalar> = [0.0, -0.0, 6.0, -1.0, f64::INFINITY, f64::NAN]
            .iter()
            .flat_map(|&c| [x(d, 0).min(Scalar::float(d, c)), Scalar::float(d, c).max(x(d, 0))])
            .collect();
        out.push(Case::new("minimum_and_maximum_with_constants", &[(d, edges(d))], &ops));
    }
}

fn casts(out: &mut Vec<Case>) {
    for from in dtypes() {
        let mut ops: Vec<Scalar> = dtypes().filter(|&to| to != from).map(|to| x(from, 0).cast(to)).collect();
        ops.extend(dtypes().filter(|to| *to != from && to.bytes() == from.bytes()).map(|to| x(from, 0).bitcast(to)));
        out.push(Case::new("casts", &[(from, edges(from))], &ops));
    }
}

fn ties_of_f64_to_narrow_floats_round_once(out: &mut Vec<Case>) {
    let near = |v: f64| [v, v * (1.0 + 1e-14), v * (1.0 - 1e-14)].map(f64::to_bits);
    let values: Vec<u64> = [1.00048828125, 1.00390625, 65520.0, 2f64.powi(-25), 2f64.powi(-134), 1.0625, 0.5, 2f64.powi(-10)]
        .iter()
        .flat_map(|&v| near(v))
        .collect();
    let ops: Vec<Scalar> = dtypes().filter(|d| d.is_float() && *d != DType::F64).map(|d| x(DType::F64, 0).cast(d)).collect();
    out.push(Case::new("ties_of_f64_to_narrow_floats_round_once", &[(DType::F64, values)], &ops));
}

fn fma_rounds_once(out: &mut Vec<Case>) {
    for d in arithmetic().filter(|&d| d != DType::F64) {
        let e = edges(d);
        let triples: Vec<[u64; 3]> =
            e.iter().flat_map(|&a| e.iter().step_by(2).flat_map(move |&b| [0u64, a, b].map(|c| [a, b, c]))).collect();
        let column = |i: usize| (d, triples.iter().map(|t| t[i]).collect::<Vec<_>>());
        out.push(Case::new("fma_rounds_once", &[column(0), column(1), column(2)], &[Scalar::fma(x(d, 0), x(d, 1), x(d, 2))]));
    }
}

fn selects(out: &mut Vec<Case>) {
    let d = DType::F32;
    let zero = Scalar::float(d, 0.0);
    let ops = [
        Scalar::select(zero.lt(x(d, 0)), x(d, 0), zero),
        Scalar::select(x(d, 0).eq_to(x(d, 1)), x(d, 1) + x(d, 0), x(d, 0) * x(d, 0)),
        Scalar::select(Scalar::select(zero.lt(x(d, 0)), x(d, 0).lt(x(d, 1)), x(d, 1).eq_to(zero)), x(d, 0), x(d, 1) + x(d, 0)),
        Scalar::select(zero.lt(x(d, 0)), Scalar::select(x(d, 0).lt(x(d, 1)), zero, x(d, 1)), x(d, 0)) * x(d, 1),
    ];
    let e = edges(d);
    let reversed: Vec<u64> = e.iter().rev().copied().collect();
    out.push(Case::new("selects", &[(d, e), (d, reversed)], &ops));
}
