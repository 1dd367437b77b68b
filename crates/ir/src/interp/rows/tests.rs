//! Rows equal the walker bit for bit, on random computes and on the shapes of real ones.

use super::*;
use crate::compute::{Reducer, Reduction};
use crate::scalar::{Binary, Unary};
use proptest::prelude::*;

/// Sources of shape [3, 4], [4] and [2, 3, 5].
fn sources() -> Vec<Option<Tensor>> {
    let f =
        |n: usize| -> Vec<f32> { (0..n).map(|i| [1.5, -0.0, 0.1, 3e38, -2.25, f32::NAN, 7.0, f32::INFINITY][i % 8]).collect() };
    vec![
        Some(Tensor::from_vec([3, 4], f(12))),
        Some(Tensor::from_vec([4], vec![2i64, -1, 0, 5])),
        Some(Tensor::from_vec([2, 3, 5], (0..30).map(|i| (i * 37 % 11) as f32 - 4.5).collect::<Vec<f32>>())),
        Some(Tensor::from_vec([6], (0..6u8).map(|i| i * 50).collect::<Vec<u8>>())),
        Some(Tensor::from_vec([5], [0.5f32, -1.0, 65504.0, 1e-8, 3.0].map(half::f16::from_f32).to_vec())),
    ]
}
const DIMS: [&[usize]; 5] = [&[3, 4], &[4], &[2, 3, 5], &[6], &[5]];
const DTYPES: [DType; 5] = [DType::F32, DType::I64, DType::F32, DType::U8, DType::F16];

fn any_index() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![(-2i64..4).prop_map(Expr::int), (0usize..3).prop_map(Expr::var), (0usize..3).prop_map(Expr::var)];
    leaf.prop_recursive(3, 8, 2, |inner| {
        (inner.clone(), inner, 0..7).prop_map(|(a, b, k)| match k {
            0 | 1 => a + b,
            2 => a - b,
            3 => a * b,
            4 => a.div(Expr::int(2)),
            5 => a.rem(Expr::int(3)),
            _ => a.min(b),
        })
    })
}

/// A read of any source as f32: wrapped into its bounds, clamped, or guarded.
fn any_read() -> impl Strategy<Value = Scalar> {
    (0usize..5, prop::collection::vec(any_index(), 3), 0..3, -2.0f64..2.0).prop_map(|(source, index, how, fallback)| {
        let dims = DIMS[source];
        let at = index.iter().zip(dims).map(|(&e, &d)| match how {
            0 => e.rem(Expr::from(d)),
            1 => e.max(Expr::int(0)).min(Expr::from(d) - 1),
            _ => e,
        });
        let at: Vec<Scalar> = at.map(Scalar::index).collect();
        let inside = at.iter().zip(dims).fold(Scalar::always(), |c, (&i, &d)| c.and(i.within(0, Expr::from(d))));
        let value = match how {
            2 => Scalar::read_if(source, at, inside, Scalar::number(DTYPES[source], fallback)),
            _ => Scalar::read(DTYPES[source], source, at),
        };
        value.cast(DType::F32)
    })
}

fn any_scalar() -> impl Strategy<Value = Scalar> {
    let leaf = prop_oneof![
        any_read(),
        any_read(),
        any_index().prop_map(|e| Scalar::index(e).cast(DType::F32)),
        Just(Scalar::float(DType::F32, 0.75))
    ];
    leaf.prop_recursive(4, 12, 3, |inner| {
        (inner.clone(), inner.clone(), inner, 0..16).prop_map(|(a, b, c, k)| match k {
            0 | 1 => a * b,
            2 => a + b,
            3 => a - b,
            4 => a / b,
            5 => a.min(b),
            6 => a.max(b),
            7 => Scalar::select(a.lt(b), b, c),
            8 => Scalar::fma(a, b, c),
            9 => Scalar::unary(Unary::Tanh, a),
            10 => Scalar::unary(Unary::Round, a),
            11 => a.cast(DType::I8).cast(DType::F32),
            12 => (a.cast(DType::F16) * b.cast(DType::F16)).cast(DType::F32),
            13 => Scalar::binary(Binary::Mod, a.cast(DType::I32), b.cast(DType::I32)).cast(DType::F32),
            14 => Scalar::unary(Unary::Sqrt, a),
            // A guard around another read.
            _ => Scalar::read_if(1, [a.cast(DType::I64)], a.cast(DType::I64).within(0, 4), b.cast(DType::I64)).cast(DType::F32),
        })
    })
}

/// Equal bits, or both NaN.
fn same(a: &Tensor, b: &Tensor) -> bool {
    let nan = |t: &Tensor, i: usize| t.dtype.is_float() && t.float(i).is_nan();
    a.dtype == b.dtype && a.dims == b.dims && (0..a.len()).all(|i| a.value(i) == b.value(i) || nan(a, i) && nan(b, i))
}

fn any_reducer() -> impl Strategy<Value = Option<Reducer>> {
    use Reducer::*;
    prop::sample::select(vec![
        None,
        Some(Sum),
        Some(Sum),
        Some(Prod),
        Some(Min),
        Some(Max),
        Some(ArgMax { last: false }),
        Some(ArgMin { last: true }),
    ])
}

fn agree(step: &Step, sources: &[Option<Tensor>]) -> Result<(), TestCaseError> {
    let (fast, slow) = (run(step, sources), walk::run(step, sources));
    match (&fast, &slow) {
        (Ok(a), Ok(b)) => prop_assert!(same(a, b), "{:?}\n{:?}\n{:?}", step, a, b),
        (Err(_), Err(_)) => {}
        _ => prop_assert!(false, "{:?}\n{:?}\n{:?}", step, fast, slow),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn rows_equal_the_walker(
        body in any_scalar(), kind in any_reducer(), shape in prop::array::uniform3(0usize..6), split in 0usize..3
    ) {
        let dims: Vec<Expr> = shape.iter().map(|&d| Expr::from(d)).collect();
        let (outer, inner) = if kind.is_some() { dims.split_at(split) } else { (&dims[..], &[][..]) };
        let reduction = kind.map(|kind| Reduction { axes: inner.to_vec(), kind, body });
        let value = kind.map_or(body, |k| Scalar::local(k.result(DType::F32), 0).cast(DType::F64) / Scalar::float(DType::F64, 3.0));
        agree(&Step::Compute(Compute { dims: outer.to_vec(), reduction, value }), &sources())?;
    }

    #[test]
    fn scatters_and_prefixes_equal_the_walker(body in any_scalar(), at in any_index(), axis in 0usize..2, flags in 0..4) {
        let d = [3, 4].map(Expr::int);
        let two = [0, 1, 0].map(Expr::var); // these have two axes
        let (body, at) = (body.subst(&two), at.subst(&two));
        let index = vec![Scalar::index(at.rem(Expr::int(3))), Scalar::index(Expr::var(1))];
        let base = Scalar::read_at(DType::F32, 0, &[Expr::var(0), Expr::var(1)]);
        let combine = (flags & 1 == 1).then_some(Binary::Add);
        let s = Scatter { dims: d.to_vec(), base, updates: vec![5.into(), 4.into()], index, value: body, combine };
        agree(&Step::Scatter(s), &sources())?;
        let (reverse, exclusive) = (flags & 1 == 1, flags & 2 == 2);
        let init = Scalar::float(DType::F32, 0.0);
        agree(&Step::Prefix(Prefix { dims: d.to_vec(), axis, reverse, exclusive, combine: Binary::Add, init, body }), &sources())?;
    }

    #[test]
    fn convolutions_equal_the_walker(n in 1usize..3, c in 1usize..4, hw in 1usize..9, o in 1usize..5, pad in 0i64..3, stride in 1i64..3) {
        let x: Vec<f32> = (0..n * c * hw * hw).map(|i| (i as f32 * 0.37).sin()).collect();
        let w: Vec<f32> = (0..o * c * 9).map(|i| (i as f32 * 0.11).cos()).collect();
        let all = [Some(Tensor::from_vec([n, c, hw, hw], x)), Some(Tensor::from_vec([o, c, 3, 3], w))];
        let out = ((hw as i64 + 2 * pad - 3).max(0) / stride + 1) as usize;
        let v: Vec<Expr> = (0..7).map(Expr::var).collect();
        let (ih, iw) = (v[2] * stride + v[5] - pad, v[3] * stride + v[6] - pad);
        let inside = Scalar::index(ih).within(0, hw).and(Scalar::index(iw).within(0, hw));
        let read = Scalar::read_if(0, [v[0], v[4], ih, iw].map(Scalar::index), inside, Scalar::float(DType::F32, 0.0));
        let body = read * Scalar::read_at(DType::F32, 1, &[v[1], v[4], v[5], v[6]]);
        let reduction = Some(Reduction { axes: vec![c.into(), 3.into(), 3.into()], kind: Reducer::Sum, body });
        let dims = [n, o, out, out].map(Expr::from).to_vec();
        agree(&Step::Compute(Compute { dims, reduction, value: Scalar::local(DType::F32, 0) }), &all)?;
    }
}

/// Prints the speed of usual contractions: `cargo test -p infc-ir speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let time = |what: &str, flops: usize, c: Compute, all: &[Option<Tensor>]| {
        let start = std::time::Instant::now();
        run(&Step::Compute(c), all).unwrap();
        println!("{what}: {:.0} MFLOP/s", flops as f64 / start.elapsed().as_secs_f64() / 1e6);
    };
    let matmul = |m: usize, n: usize, k: usize, b: [usize; 2]| {
        let all = [Some(Tensor::zeros(DType::F32, [m, k])), Some(Tensor::zeros(DType::F32, b))];
        let c = Compute::reduce(
            &[m.into(), n.into()],
            &[k.into()],
            Reducer::Sum,
            |o, r| {
                let at = if b == [k, n] { [r[0], o[1]] } else { [o[1], r[0]] };
                Scalar::read_at(DType::F32, 0, &[o[0], r[0]]) * Scalar::read_at(DType::F32, 1, &at)
            },
            |_, acc| acc,
        );
        (2 * m * n * k, c, all)
    };
    for (what, m, n, k, turned) in [
        ("matmul 256x256x256", 256, 256, 256, false),
        ("matmul 256x256x256, B turned", 256, 256, 256, true),
        ("gemv 1x1000x2048, B turned", 1, 1000, 2048, true),
        ("matmul 64x8x512", 64, 8, 512, false),
        ("matmul 512x1x512", 512, 1, 512, false),
    ] {
        let (flops, c, all) = matmul(m, n, k, if turned { [n, k] } else { [k, n] });
        time(what, flops, c, &all);
    }
    for (what, c, o, hw, k, stride) in [
        ("conv 3x3 56", 64, 64, 56, 3, 1),
        ("conv 3x3 7", 512, 512, 7, 3, 1),
        ("conv 1x1 28", 128, 256, 28, 1, 1),
        ("conv 7x7/2", 3, 32, 224, 7, 2),
    ] {
        let all = [Some(Tensor::zeros(DType::F32, [1, c, hw, hw])), Some(Tensor::zeros(DType::F32, [o, c, k, k]))];
        let (out, pad) = (hw / stride, (k / 2) as i64);
        let body = |v: &[Expr], r: &[Expr]| {
            let (ih, iw) = (v[2] * (stride as i64) + r[1] - pad, v[3] * (stride as i64) + r[2] - pad);
            let inside = Scalar::index(ih).within(0, hw).and(Scalar::index(iw).within(0, hw));
            let x = Scalar::read_if(0, [v[0], r[0], ih, iw].map(Scalar::index), inside, Scalar::float(DType::F32, 0.0));
            x * Scalar::read_at(DType::F32, 1, &[v[1], r[0], r[1], r[2]])
        };
        let dims = [1, o, out, out].map(Expr::from);
        let compute = Compute::reduce(&dims, &[c, k, k].map(Expr::from), Reducer::Sum, body, |_, acc| acc);
        time(what, 2 * o * out * out * c * k * k, compute, &all);
    }
}
