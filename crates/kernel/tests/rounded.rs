//! Products of f32 in fewer bits: what is rounded, and that nothing else changes.

use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::interp::run_step;
use infc_ir::{DType, Expr, Scalar, Tensor, TensorType};
use infc_kernel::rounded::round;
use infc_kernel::target::{Math, TargetDesc};
use infc_kernel::work::{Id, Item, Memory, Task, Work};
use proptest::prelude::*;

fn machine(math: Math, bf16_dot: bool) -> TargetDesc {
    let text = format!(
        "name = \"t\"\nbackend = \"b\"\ndoc = \"\"\narch = \"x86_64\"\nfeatures = []\nvector_bytes = 64\nvector_registers = 32\n\
         fma = true\nbf16_dot = {bf16_dot}\nmath = \"{}\"\nl1_bytes = 32768\nl2_bytes = 524288\nl3_bytes = 2097152\n",
        math.name()
    );
    TargetDesc::from_toml(&text).expect("a machine file")
}

/// A machine for products of f16, in tiles or in blocks.
fn halves(tiles: bool) -> TargetDesc {
    TargetDesc { f16_fma: true, tile_f16: tiles, ..machine(Math::F16, false) }
}

/// The obvious rounding to f16: of all its numbers the nearest, the even one of two.
fn halved(v: f64) -> f64 {
    let all = |bits: u16| if bits == 0x7c00 { 65536.0 } else { half::f16::from_bits(bits).to_f64() };
    let (mut low, mut high) = (0u16, 0x7c00u16);
    if v.is_nan() {
        return v;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if all(middle) <= v.abs() { low = middle } else { high = middle }
    }
    let (below, above) = (v.abs() - all(low), all(high) - v.abs());
    let nearest = if below < above || below == above && low % 2 == 0 { low } else { high };
    let size = if nearest == 0x7c00 { f64::INFINITY } else { all(nearest) };
    size.copysign(v)
}

/// A work list of one step; the sources that are `true` are constant.
fn work_of(step: &Step, sources: &[(Tensor, bool)], out: &[usize]) -> (Work, Vec<Id>) {
    let mut work = Work::default();
    let dims = |dims: &[usize]| dims.iter().map(|&d| Expr::from(d)).collect::<Vec<_>>();
    let mut ids = vec![];
    for (k, (t, constant)) in sources.iter().enumerate() {
        let memory = if *constant { Memory::Constant(t.clone()) } else { Memory::Input(k as u32) };
        ids.push(work.add(TensorType::new(t.dtype, dims(&t.dims)), memory, ""));
    }
    let out = work.add(TensorType::new(DType::F32, dims(out)), Memory::Temp, "");
    let (name, node) = (String::new(), String::new());
    work.items.push(Item::Task(Task { step: step.clone(), sources: ids.clone(), out, name, node }));
    (work, ids)
}

/// Runs all steps; the value of the last one's result.
fn run(work: &Work, ids: &[Id], sources: &[(Tensor, bool)]) -> Tensor {
    let mut values: Vec<(Id, Tensor)> = ids.iter().copied().zip(sources.iter().map(|s| s.0.clone())).collect();
    for item in &work.items {
        let Item::Task(task) = item else { unreachable!("only steps") };
        let value = |id: Id| match &work.tensor(id).memory {
            Memory::Constant(t) => Some(t.clone()),
            _ => values.iter().find(|v| v.0 == id).map(|v| v.1.clone()),
        };
        let operands: Vec<Option<Tensor>> = task.sources.iter().map(|&id| value(id)).collect();
        let made = run_step(&task.step, &operands).expect("the step runs");
        values.push((task.out, made));
    }
    values.pop().expect("a result").1
}

/// The obvious rounding of an f32: to the nearest of the two neighbours in bf16, ties to the even one; subnormal numbers are zeros.
fn rounded(v: f32) -> f32 {
    if v.is_nan() || v.is_infinite() {
        return v;
    }
    if v.abs() < f32::MIN_POSITIVE {
        return 0.0f32.copysign(v);
    }
    let low = f32::from_bits(v.to_bits() & 0xffff_0000);
    let high = f32::from_bits((v.to_bits() & 0xffff_0000) + 0x1_0000);
    let high_value = if high.is_infinite() { 2f64.powi(128) } else { f64::from(high.abs()) };
    let (below, above) = (f64::from(v.abs()) - f64::from(low.abs()), high_value - f64::from(v.abs()));
    let even = low.to_bits() >> 16 & 1 == 0;
    if below < above || below == above && even { low } else { high }
}

fn rounded_tensor(t: &Tensor) -> Tensor {
    Tensor::from_vec(t.dims.clone(), t.to_vec::<f32>().into_iter().map(rounded).collect())
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let (a, b) = (a.to_vec::<f32>(), b.to_vec::<f32>());
    a.len() == b.len() && a.iter().zip(&b).all(|(x, y)| x == y || x.is_nan() && y.is_nan())
}

/// Dtypes that the products of the last step read.
fn factors(work: &Work) -> Vec<DType> {
    let Some(Item::Task(task)) = work.items.last() else { unreachable!("a step") };
    task.sources.iter().map(|&id| work.tensor(id).ty.dtype).collect()
}

/// Extents of the last step's reduction.
fn depth(work: &Work) -> Vec<i64> {
    let Some(Item::Task(Task { step: Step::Compute(c), .. })) = work.items.last() else { unreachable!("a step") };
    c.reduction.as_ref().expect("a sum").axes.iter().map(|e| e.known().expect("known")).collect()
}

fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        12 => -4.0f32..4.0,
        2 => any::<f32>(),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-40, f32::MAX, 0.0, -0.0, 257.0 / 256.0, 259.0 / 256.0]),
    ]
}

fn tensor(dims: &[usize], numbers: &[f32]) -> Tensor {
    let n = dims.iter().product();
    Tensor::from_vec(dims, numbers.iter().copied().cycle().take(n).collect())
}

proptest! {
    #[test]
    fn products_are_those_of_rounded_factors(
        m in 1usize..4, k in 1usize..8, n in 1usize..5, swap: bool, xs in prop::collection::vec(number(), 40), ws in prop::collection::vec(number(), 40),
    ) {
        let sources = [(tensor(&[m, k], &xs), false), (tensor(&[k, n], &ws), true)];
        let read = |source: usize, at: &[Expr]| Scalar::read_at(DType::F32, source, at);
        let step = Step::Compute(Compute::reduce(&[m, n].map(Expr::from), &[Expr::from(k)], Reducer::Sum, |o, r| {
            let (x, w) = (read(0, &[o[0], r[0]]), read(1, &[r[0], o[1]]));
            if swap { w * x } else { x * w }
        }, |_, acc| acc + acc));
        let (mut work, ids) = work_of(&step, &sources, &[m, n]);
        round(&mut work, &machine(Math::Bf16, true));
        let exact: Vec<Option<Tensor>> = sources.iter().map(|s| Some(rounded_tensor(&s.0))).collect();
        if k < 2 {
            prop_assert_eq!(factors(&work), [DType::F32, DType::F32]);
        } else {
            prop_assert!(same(&run(&work, &ids, &sources), &run_step(&step, &exact).expect("runs")));
            prop_assert_eq!(factors(&work), [DType::BF16, DType::BF16]);
            prop_assert_eq!(depth(&work), [k.next_multiple_of(2) as i64]);
        }
    }

    /// x, the largest of two neighbours y, a convolution of y, and x + y behind it: y is stored rounded alone, and x since y is its maximum. Behind a product of matrices y stays f32 for others.
    #[test]
    fn what_a_convolution_has_rounded_is_read_so_by_others_behind_it(
        m in 1usize..4, k in 2usize..8, n in 1usize..5, picture: bool, xs in prop::collection::vec(number(), 60), ws in prop::collection::vec(number(), 40),
    ) {
        let [rows, depth, columns, one] = [m, k, n, 1].map(Expr::from);
        let mut work = Work::default();
        let f32s = |dims: &[Expr]| TensorType::new(DType::F32, dims.to_vec());
        let sources = [(tensor(&[m, k, 2], &xs), false), (tensor(&[n, k, 1], &ws), true)];
        let input = work.add(f32s(&[rows, depth, Expr::int(2)]), Memory::Input(0), "");
        let weights = work.add(f32s(&[columns, depth, one]), Memory::Constant(sources[1].0.clone()), "");
        let mut temp = |dims: &[Expr]| work.add(f32s(dims), Memory::Temp, "");
        let (x, y, r) = (temp(&[rows, depth, Expr::int(2)]), temp(&[rows, depth, one]), temp(&[rows, depth, one]));
        let z = temp(&if picture { vec![rows, columns, one] } else { vec![rows, columns] });
        let read = |source: usize, at: &[Expr]| Scalar::read_at(DType::F32, source, at);
        let product = match picture {
            true => Compute::reduce(&[rows, columns, one], &[depth, one], Reducer::Sum, |o, r| read(0, &[o[0], r[0], o[2] + r[1]]) * read(1, &[o[1], r[0], r[1]]), |_, acc| acc),
            false => Compute::reduce(&[rows, columns], &[depth], Reducer::Sum, |o, r| read(0, &[o[0], r[0], Expr::int(0)]) * read(1, &[o[1], r[0], Expr::int(0)]), |_, acc| acc),
        };
        let largest = Compute::reduce(&[rows, depth, one], &[Expr::int(2)], Reducer::Max, |o, r| read(0, &[o[0], o[1], o[2] + r[0]]), |_, acc| acc);
        let steps = [
            (Compute::map(&[rows, depth, Expr::int(2)], |o| read(0, o)), vec![input], x),
            (largest, vec![x], y),
            (product, vec![y, weights], z),
            (Compute::map(&[rows, depth, one], |o| read(0, o) + read(1, o)), vec![x, y], r),
        ];
        for (step, sources, out) in steps {
            let (name, node) = (String::new(), String::new());
            work.items.push(Item::Task(Task { step: Step::Compute(step), sources, out, name, node }));
        }
        round(&mut work, &machine(Math::Bf16, true));
        // The steps that round them, and the sum where it reads f32.
        let reads = |id: Id| work.items.iter().filter(|i| matches!(i, Item::Task(t) if t.sources.contains(&id))).count();
        prop_assert_eq!([reads(x), reads(y)], if picture { [1, 1] } else { [2, 2] });
        let got = run(&work, &[input, weights], &sources);
        let whole = sources[0].0.to_vec::<f32>();
        let short: Vec<f32> = whole.iter().copied().map(rounded).collect();
        let larger = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) };
        // The maximum is one of rounded numbers in any case.
        let x = if picture { &short } else { &whole };
        let want = (0..m * k).map(|e| x[2 * e] + larger(short[2 * e], short[2 * e + 1])).collect();
        prop_assert!(same(&got, &Tensor::from_vec([m, k, 1], want)));
    }

    #[test]
    fn convolutions_pad_channels_and_keep_their_border(
        c in 1usize..6, m in 2usize..5, size in 3usize..6, taps in 1usize..4, stride in 1usize..3, xs in prop::collection::vec(number(), 60),
        ws in prop::collection::vec(number(), 60),
    ) {
        let out = (size + 1 - taps.min(2)) / stride + 1;
        let sources = [(tensor(&[1, c, size, size], &xs), false), (tensor(&[m, c, taps, taps], &ws), true)];
        let step = Step::Compute(Compute::reduce(&[1, m, out, out].map(Expr::from), &[c, taps, taps].map(Expr::from), Reducer::Sum, |o, r| {
            let at = [o[2] * stride as i64 + r[1] - 1, o[3] * stride as i64 + r[2] - 1];
            let inside = Scalar::index(at[0]).within(0, size as i64).and(Scalar::index(at[1]).within(0, size as i64));
            let index = [o[0], r[0], at[0], at[1]].map(Scalar::index);
            let x = Scalar::read_if(0, index, inside, Scalar::float(DType::F32, 0.0));
            x * Scalar::read_at(DType::F32, 1, &[o[1], r[0], r[1], r[2]])
        }, |_, acc| acc).simplify());
        let (mut work, ids) = work_of(&step, &sources, &[1, m, out, out]);
        round(&mut work, &machine(Math::Bf16, true));
        let exact: Vec<Option<Tensor>> = sources.iter().map(|s| Some(rounded_tensor(&s.0))).collect();
        if factors(&work) == [DType::BF16, DType::BF16] {
            prop_assert!(same(&run(&work, &ids, &sources), &run_step(&step, &exact).expect("runs")));
            prop_assert!(c == 1 || depth(&work)[0] % 2 == 0);
        } else {
            prop_assert!(c == 1 && taps % 2 == 1);
        }
    }
}

/// `sum x * w` over k; `swap`: the other way round.
fn matrix_product([m, k, n]: [usize; 3], dtype: DType, swap: bool) -> Step {
    let read = |source: usize, at: &[Expr]| Scalar::read_at(dtype, source, at).cast(DType::F32);
    Step::Compute(Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let (x, w) = (read(0, &[o[0], r[0]]), read(1, &[r[0], o[1]]));
            if swap { w * x } else { x * w }
        },
        |_, acc| acc,
    ))
}

proptest! {
    #[test]
    fn products_for_tiles_are_those_of_factors_in_f16(
        m in 1usize..4, k in 1usize..8, n in 1usize..5, swap: bool, xs in prop::collection::vec(number(), 40), ws in prop::collection::vec(number(), 40),
    ) {
        let sources = [(tensor(&[m, k], &xs), false), (tensor(&[k, n], &ws), true)];
        let step = matrix_product([m, k, n], DType::F32, swap);
        let (mut work, ids) = work_of(&step, &sources, &[m, n]);
        round(&mut work, &halves(true));
        let exact = |t: &Tensor| Tensor::from_vec(t.dims.clone(), t.to_vec::<f32>().into_iter().map(|v| halved(f64::from(v)) as f32).collect::<Vec<f32>>());
        let exact: Vec<Option<Tensor>> = sources.iter().map(|s| Some(exact(&s.0))).collect();
        if k < 2 {
            prop_assert_eq!(factors(&work), [DType::F32, DType::F32]);
        } else {
            prop_assert!(same(&run(&work, &ids, &sources), &run_step(&step, &exact).expect("runs")));
            prop_assert_eq!(factors(&work), [DType::F16, DType::F16]);
            prop_assert_eq!(depth(&work), [k.next_multiple_of(2) as i64]);
        }
    }

    /// Each column of weights is as large as sums in f16 allow, and the sum is brought back; so it is for weights that are f16 from the beginning.
    #[test]
    fn columns_for_blocks_are_scaled(
        m in 1usize..4, k in 6usize..20, n in 1usize..5, swap: bool, short: bool, size in -40i32..40,
        xs in prop::collection::vec(number(), 80), ws in prop::collection::vec(-4f32..4.0, 100), special in prop::option::weighted(0.1, prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::MAX, 1e-44])),
    ) {
        let mut ws: Vec<f32> = ws.iter().enumerate().map(|(i, &w)| if i % 7 == 3 { 0.0 } else { w * (size as f32 / 4.0 * (i % 3) as f32).exp2() }).collect();
        if let Some(v) = special {
            ws[n] = v;
        }
        let as_short = |t: Tensor| match short {
            true => Tensor::from_vec(t.dims.clone(), t.to_vec::<f32>().into_iter().map(half::f16::from_f32).collect::<Vec<_>>()),
            false => t,
        };
        let dtype = if short { DType::F16 } else { DType::F32 };
        let sources = [(as_short(tensor(&[m, k], &xs)), false), (as_short(tensor(&[k, n], &ws)), true)];
        let step = matrix_product([m, k, n], dtype, swap);
        let (mut work, ids) = work_of(&step, &sources, &[m, n]);
        round(&mut work, &halves(false));
        let (x, w) = (&sources[0].0, &sources[1].0);
        let column = |j: usize| (0..k).map(move |q| w.float(q * n + j).abs());
        let largest: Vec<f64> = (0..n).map(|j| column(j).fold(0.0, f64::max)).collect();
        let reason = (0..n).all(|j| column(j).all(f64::is_finite)) && largest.iter().all(|&v| v == 0.0 || (1e-29..1e29).contains(&v));
        if k < 8 || !reason {
            prop_assert!(factors(&work).iter().all(|&d| d == dtype) && work.items.len() == 1);
            return Ok(());
        }
        let Some(Item::Task(task)) = work.items.last() else { unreachable!("a step") };
        let scaled = task.sources.iter().find_map(|&id| match &work.tensor(id).memory {
            Memory::Constant(t) if t.dtype == DType::F16 && t.dims == [k, n] => Some(t.clone()),
            _ => None,
        });
        let scaled = scaled.expect("weights in f16");
        let made = run(&work, &ids, &sources).to_vec::<f32>();
        for j in 0..n {
            // The power of two that brings the largest one to (2^-6, 2^-5].
            let mut scale = 1.0;
            while largest[j] != 0.0 && largest[j] * scale > 1.0 / 32.0 {
                scale /= 2.0;
            }
            while largest[j] != 0.0 && largest[j] * scale <= 1.0 / 64.0 {
                scale *= 2.0;
            }
            for q in 0..k {
                prop_assert_eq!(scaled.float(q * n + j), halved(w.float(q * n + j) * scale));
            }
            for i in 0..m {
                let sum = (0..k).fold(0f32, |sum, q| sum + (halved(x.float(i * k + q)) * scaled.float(q * n + j)) as f32);
                let (got, want) = (made[i * n + j], sum * (1.0 / scale) as f32);
                prop_assert!(got == want || got.is_nan() && want.is_nan(), "{got:e} instead of {want:e}");
            }
        }
    }
}

#[test]
fn what_the_row_cannot_take_stays_as_it_is() {
    let read = |source: usize, at: &[Expr]| Scalar::read_at(DType::F32, source, at);
    let product = |x: &[usize], body: &dyn Fn(&[Expr], &[Expr]) -> Scalar| {
        let step = Step::Compute(Compute::reduce(&[3, 4].map(Expr::from), &[Expr::from(6)], Reducer::Sum, body, |_, acc| acc));
        (step, tensor(x, &[0.5, 1.5, -2.0]))
    };
    let rounds = |(step, x): &(Step, Tensor), constant: bool, machine: &TargetDesc| {
        let (mut work, _) = work_of(step, &[(x.clone(), false), (tensor(&[6, 4], &[0.25, 3.0]), constant)], &[3, 4]);
        round(&mut work, machine);
        factors(&work).contains(&DType::BF16)
    };
    let plain = product(&[3, 6], &|o, r| read(0, &[o[0], r[0]]) * read(1, &[r[0], o[1]]));
    let across = product(&[6, 3], &|o, r| read(0, &[r[0], o[0]]) * read(1, &[r[0], o[1]]));
    let depthwise = product(&[4, 6], &|o, r| read(0, &[o[1], r[0]]) * read(1, &[r[0], o[1]]));
    let able = machine(Math::Bf16, true);
    assert!(rounds(&plain, true, &able));
    assert!(!rounds(&plain, false, &able) && !rounds(&across, true, &able) && !rounds(&depthwise, true, &able));
    assert!(!rounds(&plain, true, &machine(Math::F32, true)));
    assert!(!machine(Math::Bf16, false).takes(Math::Bf16) && able.takes(Math::Bf16) && !able.takes(Math::F16));
    assert!([true, false].map(halves).iter().all(|t| t.takes(Math::F16) && !t.takes(Math::Bf16) && !t.takes(Math::Tf32)));
}
