//! Random kernels for the tests of this level: they pass the verifier, but may leave buffers at run time.

use super::{Access, Axes, Boxes, Buffer, Kernel, LoopKind, Space, Stmt};
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Expr, Scalar};
use proptest::prelude::*;

/// Extents of the buffers: x and y are `[n, 4]`, with n = 3 in tests; z is `i64[5]`; t a tile of 6, r of 2 x 4 i64.
fn buffers() -> Vec<Buffer> {
    let n = Expr::sym("n");
    let buffer = |name: &str, dtype, dims: &[Expr], strides: &[i64], space, access| Buffer {
        name: name.into(),
        dtype,
        dims: dims.to_vec(),
        strides: strides.iter().map(|&s| Expr::int(s)).collect(),
        space,
        access,
    };
    let four = Expr::int(4);
    vec![
        buffer("x", DType::F32, &[n, four], &[5, 1], Space::Global, Access::Read),
        buffer("y", DType::F32, &[n, four], &[4, 1], Space::Global, Access::ReadWrite),
        buffer("z", DType::I64, &[Expr::int(5)], &[1], Space::Global, Access::Read),
        buffer("t", DType::F32, &[Expr::int(6)], &[1], Space::Tile, Access::ReadWrite),
        buffer("r", DType::I64, &[Expr::int(2), four], &[1, 2], Space::Reg, Access::ReadWrite),
    ]
}

fn any_index() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![(-1i64..4).prop_map(Expr::int), (0usize..4).prop_map(Expr::var), Just(Expr::sym("n"))];
    leaf.prop_recursive(2, 6, 2, |inner| {
        (inner.clone(), inner, 0..6).prop_map(|(a, b, k)| match k {
            0 | 1 => a + b,
            2 => a - b,
            3 => a * b,
            4 => a.div(Expr::int(2)),
            _ => a.min(b),
        })
    })
}

/// An index of buffer `b`: mostly inside.
fn any_place(b: usize) -> impl Strategy<Value = Vec<Scalar>> {
    let dims = buffers()[b].dims.clone();
    prop::collection::vec((any_index(), 0..12), dims.len()).prop_map(move |all| {
        let inside = |((e, how), &d): ((Expr, i32), &Expr)| match how {
            0 => Scalar::index(e),
            k if k < 7 => Scalar::index(e.rem(d)),
            _ => Scalar::index(e.max(Expr::int(0)).min(d - 1)),
        };
        all.into_iter().zip(&dims).map(inside).collect()
    })
}

fn any_read(source: usize) -> BoxedStrategy<Scalar> {
    let dtype = buffers()[source].dtype;
    let dims = buffers()[source].dims.clone();
    (any_place(source), any::<bool>())
        .prop_map(move |(at, guarded)| {
            let inside = at.iter().zip(&dims).fold(Scalar::always(), |c, (&i, &d)| c.and(i.within(0, d)));
            if guarded {
                Scalar::read_if(source, at, inside, Scalar::number(dtype, 2.0))
            } else {
                Scalar::read(dtype, source, at)
            }
        })
        .boxed()
}

fn any_f32() -> impl Strategy<Value = Scalar> {
    let leaf = prop_oneof![
        any_read(0),
        any_read(1),
        any_read(3),
        any_read(2).prop_map(|s| s.cast(DType::F32)),
        any_index().prop_map(|e| Scalar::index(e).cast(DType::F32)),
        (-4i32..4).prop_map(|v| Scalar::float(DType::F32, f64::from(v) / 2.0)),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        (inner.clone(), inner.clone(), inner, 0..8).prop_map(|(a, b, c, k)| match k {
            0 | 1 => a + b,
            2 => a * b,
            3 => Scalar::fma(a, b, c),
            4 => Scalar::select(a.lt(b), b, c),
            5 => Scalar::unary(Unary::Neg, a),
            6 => a.max(b),
            _ => Scalar::binary(Binary::Sub, a, b),
        })
    })
}

fn any_stmt() -> impl Strategy<Value = Stmt> {
    let cond = || (any_index(), any_index()).prop_map(|(a, b)| Scalar::binary(Binary::Lt, Scalar::index(a), Scalar::index(b)));
    let leaf = prop_oneof![
        (any_place(1), any_f32()).prop_map(|(index, value)| Stmt::Store { buffer: 1, index, value }),
        (any_place(1), any_f32()).prop_map(|(index, value)| Stmt::Store { buffer: 1, index, value }),
        (any_place(3), any_f32()).prop_map(|(index, value)| Stmt::Store { buffer: 3, index, value }),
        (any_place(4), any_index()).prop_map(|(index, e)| Stmt::Store { buffer: 4, index, value: Scalar::index(e) }),
        any_index().prop_map(|e| Stmt::Prefetch { buffer: 0, index: vec![Scalar::index(e); 2] }),
        any_f32().prop_map(|value| Stmt::Let { local: 0, value }),
        cond().prop_map(|cond| Stmt::Check { cond: Scalar::unary(Unary::Not, cond), code: 7 }),
    ];
    leaf.prop_recursive(3, 16, 4, move |inner| {
        let body = prop::collection::vec(inner, 0..4);
        let kinds = prop::sample::select(vec![
            LoopKind::Serial,
            LoopKind::Vector,
            LoopKind::Unroll,
            LoopKind::Parallel,
            LoopKind::Thread,
            LoopKind::Warp,
            LoopKind::Matrix,
        ]);
        prop_oneof![
            (body.clone(), kinds, 0i64..6).prop_map(|(body, kind, n)| {
                let extent = if n == 0 && kind == LoopKind::Serial { Expr::sym("n") } else { Expr::int(n) };
                Stmt::For { var: 0, extent, kind, body }
            }),
            (body.clone(), body, cond()).prop_map(|(then, otherwise, cond)| Stmt::If { cond, then, otherwise }),
        ]
    })
}

/// Numbers variables and locals: variable k in the raw text is the k-th loop around, or the number k; each local is used after it
/// is made, in the same list.
struct Numbers {
    vars: u32,
    locals: u32,
}

impl Numbers {
    fn body(&mut self, body: Vec<Stmt>, around: &[u32]) -> Vec<Stmt> {
        let bind = |s: Scalar| {
            let values: Vec<Expr> = (0..4).map(|k| around.get(k).map_or(Expr::from(k), |&v| Expr::var(v as usize))).collect();
            s.subst(&values)
        };
        let mut named: Option<Scalar> = None;
        let mut out = vec![];
        for s in body {
            out.push(match s {
                Stmt::For { extent, kind, body, .. } => {
                    self.vars += 1;
                    let var = self.vars;
                    Stmt::For { var, extent, kind, body: self.body(body, &[around, &[var]].concat()) }
                }
                Stmt::If { cond, then, otherwise } => {
                    Stmt::If { cond: bind(cond), then: self.body(then, around), otherwise: self.body(otherwise, around) }
                }
                Stmt::Let { value, .. } => {
                    let value = bind(value);
                    named = Some(Scalar::local(value.dtype(), self.locals));
                    self.locals += 1;
                    Stmt::Let { local: self.locals - 1, value }
                }
                Stmt::Store { buffer, index, value } => {
                    let mut value = bind(value);
                    if let Some(t) = named.filter(|t| t.dtype() == value.dtype()) {
                        value = value + t;
                    }
                    Stmt::Store { buffer, index: index.into_iter().map(bind).collect(), value }
                }
                Stmt::Prefetch { buffer, index } => Stmt::Prefetch { buffer, index: index.into_iter().map(bind).collect() },
                Stmt::Check { cond, code } => Stmt::Check { cond: bind(cond), code },
                Stmt::While { .. } | Stmt::Alloc { .. } => unreachable!("not made"),
            });
        }
        out
    }
}

/// A random kernel over five buffers and the symbol n, with two tasks.
pub fn any_kernel() -> impl Strategy<Value = Kernel> {
    prop::collection::vec(any_stmt(), 1..5).prop_map(|body| {
        let body = Numbers { vars: 0, locals: 0 }.body(body, &[0]);
        let alloc = [3, 4].map(|buffer| Stmt::Alloc { buffer });
        let body = alloc.into_iter().chain(body).collect();
        Kernel {
            name: "any".into(),
            buffers: buffers(),
            symbols: vec!["n"],
            tasks: Expr::int(2),
            task: 0,
            body,
            axes: Axes::default(),
            boxes: Boxes::default(),
        }
    })
}
