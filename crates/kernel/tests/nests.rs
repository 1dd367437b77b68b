//! Every built nest equals its step: the loop interpreter on the nest against the row interpreter on the step.
//!
//! Data are small integers, for which sums are exact in any order, so that an index error cannot hide in a tolerance.

use infc_ir::compute::{Choice, Compute, Filter, Prefix, Reducer, Scatter, Sort, Step};
use infc_ir::scalar::{Binary, Scalar, Unary};
use infc_ir::{DType, Expr, Tensor};
use infc_kernel::build::{self, Operand};
use infc_kernel::fuse::is_contraction;
use infc_kernel::loops::verify::verify;
use infc_kernel::loops::{Access, Buffer, Space, interp, text};
use infc_kernel::plan::{self, Plan};
use infc_kernel::target::TargetDesc;
use proptest::prelude::*;

fn target(vector_bytes: u32, vector_registers: u32, fma: bool) -> TargetDesc {
    TargetDesc {
        name: "test".into(),
        backend: "loops".into(),
        doc: String::new(),
        arch: "x86_64".into(),
        features: vec![],
        vector_bytes,
        vector_registers,
        joined_registers: false,
        broadcast_registers: 0,
        fma,
        byte_dot: false,
        byte_dot_signed: false,
        byte_pairs: false,
        bf16_dot: false,
        slow_bf16_dot: false,
        panel_ahead: 0,
        l2_bytes_per_cycle: 32,
        f16_fma: false,
        tile_bf16: false,
        tile_f16: false,
        tile_bytes: false,
        lookup: 0,
        math_calls: false,
        block_threads: 0,
        warpgroups: false,
        warpgroup_tiles: 0,
        shared_bytes: 48 << 10,
        math: infc_kernel::target::Math::F32,
        small: false,
        widens_f16: false,
        l1_bytes: 32 << 10,
        l1_way_bytes: 0,
        l3_rate: 16,
        plugin: None,
        l2_bytes: 512 << 10,
        l3_bytes: 4 << 20,
    }
}

/// A tensor of small integers in a physical layout: axis order and border.
#[derive(Clone, Debug)]
struct Layout {
    order: Vec<usize>,
    halo: Vec<(i64, i64)>,
}

fn plain(rank: usize) -> Layout {
    Layout { order: (0..rank).collect(), halo: vec![(0, 0); rank] }
}

fn small(dims: &[usize], seed: u64) -> Tensor {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let n = dims.iter().product::<usize>();
    let values = (0..n).map(|_| {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s % 9) as f32 - 4.0
    });
    Tensor::from_vec(dims, values.collect())
}

fn operand(t: &Tensor, layout: &Layout, constant: bool) -> Operand {
    let physical: Vec<Expr> = t.dims.iter().zip(&layout.halo).map(|(&d, h)| Expr::from(d as i64 + h.0 + h.1)).collect();
    let strides = Buffer::strides_in_order(&physical, &layout.order);
    Operand {
        buffer: Buffer {
            name: String::new(),
            dtype: t.dtype,
            dims: physical,
            strides,
            space: Space::Global,
            access: Access::Read,
        },
        shift: layout.halo.iter().map(|h| h.0).collect(),
        zeros: layout.halo.iter().map(|h| h.1).collect(),
        constant: constant.then(|| t.clone()),
        tf32: false,
    }
}

/// Byte offset of each element of a tensor in its layout, and the size of the memory.
fn offsets(dims: &[usize], o: &Operand, width: usize) -> (Vec<usize>, usize) {
    let number = |e: Expr| e.known().expect("known dims") as usize;
    let strides: Vec<usize> = o.buffer.strides.iter().map(|&s| number(s)).collect();
    let n: usize = dims.iter().product();
    let at = (0..n).map(|mut k| {
        let mut offset = 0;
        for a in (0..dims.len()).rev() {
            offset += (k % dims[a] + o.shift[a] as usize) * strides[a];
            k /= dims[a];
        }
        offset * width
    });
    (at.collect(), o.buffer.dims.iter().map(|&d| number(d)).product::<usize>() * width)
}

fn to_memory(t: &Tensor, o: &Operand) -> Vec<u8> {
    let w = t.dtype.bytes();
    let (at, size) = offsets(&t.dims, o, w);
    let mut memory = vec![0u8; size];
    for (k, &a) in at.iter().enumerate() {
        memory[a..a + w].copy_from_slice(&t.bytes()[k * w..(k + 1) * w]);
    }
    memory
}

/// Builds and runs the nest of `step`; compares with the step.
fn check(step: &Step, sources: &[Tensor], layouts: &[Layout], constant: &[bool], target: &TargetDesc, plan: Option<Plan>) {
    let want = infc_ir::interp::run_step(step, &sources.iter().cloned().map(Some).collect::<Vec<_>>()).expect("the step runs");
    if plan.is_none() {
        // As threads of a GPU.
        let gpu = TargetDesc { block_threads: 128, ..self::target(1, 64, true) };
        check_against(step, sources, layouts, constant, &gpu, None, &want);
    }
    check_against(step, sources, layouts, constant, target, plan, &want);
}

/// As [`check`], for steps that read their border, which the row interpreter does not know.
fn check_against(
    step: &Step,
    sources: &[Tensor],
    layouts: &[Layout],
    constant: &[bool],
    target: &TargetDesc,
    plan: Option<Plan>,
    want: &Tensor,
) {
    let mut operands: Vec<Operand> = sources.iter().zip(layouts).zip(constant).map(|((t, l), &c)| operand(t, l, c)).collect();
    operands.push(operand(want, layouts.last().expect("one for the result"), false));
    let layouts_of = operands.clone();
    let (step, operands) = match step {
        Step::Compute(c) if plan.is_none() && !is_contraction(c) => {
            let (c, operands) = build::collapse::collapse(c.clone(), operands);
            (Step::Compute(c), operands)
        }
        other => (other.clone(), operands),
    };
    let plan = plan.unwrap_or_else(|| plan::choose(&step, &operands, target));
    for parts in in_parts(&step, &plan) {
        check_against(&step, sources, layouts, constant, target, Some(parts), want);
    }
    let (at, got) = run_plan(&step, &operands, &plan, sources, &layouts_of, want, target);
    let w = want.dtype.bytes();
    // What follows the chosen positions is undefined; the interpreter says -1 there.
    let open = matches!(step, Step::Filter(_) | Step::Choice(_));
    for (k, &a) in at.iter().enumerate().filter(|&(k, _)| !open || want.to_ints()[k] >= 0) {
        assert_eq!(&got[a..a + w], &want.bytes()[k * w..(k + 1) * w], "element {k} of {:?}; plan {plan}", want.dims);
    }
}

/// The plans of a product that take k in two blocks or more, if `plan` is one that takes it whole.
fn in_parts(step: &Step, plan: &Plan) -> Vec<Plan> {
    let (Step::Compute(Compute { reduction: Some(r), .. }), Plan::Brgemm(p)) = (step, plan) else { return vec![] };
    let row = infc_kernel::rows::named(p.row).expect("a plan names a row");
    if p.kc.is_some() || p.panels != plan::Panels::Packed || p.stored.is_some() || p.copied || row.block > 1 {
        return vec![];
    }
    let extents: Vec<i64> = r.axes.iter().map(|e| e.known().expect("known dims")).collect();
    let mut all = vec![];
    for (axis, &extent) in extents.iter().enumerate() {
        let whole = |size: i64| axis + 1 < extents.len() || size % row.depth as i64 == 0;
        let sizes = (1..=extent).filter(|&size| extent % size == 0 && whole(size) && (axis > 0 || size < extent));
        all.extend(sizes.map(|size| Plan::Brgemm(plan::Brgemm { kc: Some(plan::Kc { axis, size }), ..p.clone() })));
    }
    all
}

/// Runs the nest of a plan: where the elements of the result are, and its memory. `layouts_of` are the operands as the data lies.
fn run_plan(
    step: &Step,
    operands: &[Operand],
    plan: &Plan,
    sources: &[Tensor],
    layouts_of: &[Operand],
    want: &Tensor,
    target: &TargetDesc,
) -> (Vec<usize>, Vec<u8>) {
    let nest = build::build("test", step, plan, operands, target);
    let mut buffers: Vec<Vec<u8>> = nest
        .sources
        .iter()
        .map(|&s| match nest.packed.iter().find(|p| p.source == s) {
            Some(p) => p.tensor.bytes().to_vec(),
            None => to_memory(&sources[s], &layouts_of[s]),
        })
        .collect();
    let out = &layouts_of[layouts_of.len() - 1];
    let w = want.dtype.bytes();
    let (at, size) = offsets(&want.dims, out, w);
    buffers.push(match (&step, &plan) {
        // They come into a base that is there.
        (Step::Scatter(s), Plan::Updates(_)) => {
            let base = Step::Compute(Compute { dims: s.dims.clone(), reduction: None, value: s.base });
            let base = infc_ir::interp::run_step(&base, &sources.iter().cloned().map(Some).collect::<Vec<_>>());
            to_memory(&base.expect("the base runs"), out)
        }
        _ => vec![0xa5; size],
    });
    verify(&nest.kernel).unwrap_or_else(|e| panic!("{e}\nplan {plan}\n{}", nest.kernel));
    assert_eq!(text::parse(&nest.kernel.to_string()).as_ref(), Ok(&nest.kernel));
    interp::run(&nest.kernel, &[], &mut buffers).unwrap_or_else(|e| panic!("{e:?}\nplan {plan}"));
    (at, buffers.pop().expect("the result"))
}

/// Convolutions by minimal filtering: of pictures and of lines, in any layout, with odd ends, borders and other work behind the sums.
#[test]
fn minimal_filtering_gives_sums_of_windows() {
    use infc_kernel::build::winograd;
    let cases = [
        // Pictures, columns, channels, extents of the result, window.
        (1, 16, 16, [8, 8], [3, 3]),
        (2, 21, 19, [5, 7], [3, 3]),
        (1, 40, 8, [1, 9], [3, 3]),
        (3, 16, 33, [6, 1], [3, 1]),
        (2, 9, 16, [3, 13], [1, 3]),
    ];
    for (k, &(batch, columns, channels, [h, w], [kh, kw])) in cases.iter().enumerate() {
        let step = Compute::reduce(
            &e(&[batch, columns, h, w]),
            &e(&[channels, kh, kw]),
            Reducer::Sum,
            |o, r| {
                read(0, &[o[0], r[0], o[2] + r[1] - (kh / 2) as i64, o[3] + r[2] - (kw / 2) as i64])
                    * read(1, &[o[1], r[0], r[1], r[2]])
            },
            |o, acc| Scalar::binary(Binary::Max, acc + read(2, &[o[1]]), Scalar::float(DType::F32, -20.0)) + read(3, o),
        );
        let tensors = [
            small(&[batch, channels, h, w], 7 + k as u64),
            small(&[columns, channels, kh, kw], 11),
            small(&[columns], 5),
            small(&[batch, columns, h, w], 3),
        ];
        let border = vec![(0, 0), (0, 0), ((kh / 2) as i64, (kh / 2) as i64), ((kw / 2) as i64, (kw / 2) as i64)];
        let last = vec![0, 2, 3, 1];
        for result_first in [false, true] {
            let plain_or_last = if result_first { plain(4) } else { Layout { order: last.clone(), ..plain(4) } };
            let layouts = [
                Layout { order: last.clone(), halo: border.clone() },
                plain(4),
                plain(1),
                Layout { order: last.clone(), ..plain(4) },
                plain_or_last,
            ];
            for target in [target(64, 32, true), target(32, 16, false), target(16, 32, true)] {
                let mut operands: Vec<Operand> =
                    tensors.iter().zip(&layouts).enumerate().map(|(i, (t, l))| operand(t, l, i == 1)).collect();
                let result = Tensor::zeros(DType::F32, [batch, columns, h, w]);
                operands.push(operand(&result, &layouts[4], false));
                let layouts_of = operands.clone();
                let c = build::contract::in_memory_order(step.clone(), &operands);
                let contraction = build::contract::plan(&c, &operands, &target).expect("a contraction");
                let c = Step::Compute(c);
                let Step::Compute(inner) = &c else { unreachable!("a compute") };
                let want = reference(&tensors, [kh, kw]);
                for outputs in winograd::OUTPUTS {
                    let (_, chosen) =
                        winograd::plan_of(inner, &operands, &contraction, outputs, &target).expect("a convolution of this kind");
                    let small_blocks =
                        plan::Winograd { mr: 2, nr: target.lanes(4), mc: 4, nc: target.lanes(4), ..chosen.clone() };
                    for p in [chosen, small_blocks].map(Plan::Winograd) {
                        let (at, got) = run_plan(&c, &operands, &p, &tensors, &layouts_of, &result, &target);
                        for (i, &a) in at.iter().enumerate() {
                            let got = f64::from(f32::from_le_bytes(got[a..a + 4].try_into().expect("four bytes")));
                            // Small integers in quarters are exact; points that are no integers are not.
                            let most = if outputs == 2 { 0.0 } else { 2e-5 * 16.0 * (channels * kh * kw) as f64 };
                            assert!((got - want[i]).abs() <= most, "element {i}: {got}, not {}; plan {p}", want[i]);
                        }
                    }
                }
            }
        }
    }
}

/// Convolutions with a border of zeros, a bias, a lower limit and something that is added, one by one.
fn reference(tensors: &[Tensor], [kh, kw]: [usize; 2]) -> Vec<f64> {
    let [x, weights, bias, added] = tensors else { unreachable!("four tensors") };
    let ([batch, channels, h, w], columns) = ([x.dims[0], x.dims[1], x.dims[2], x.dims[3]], weights.dims[0]);
    let mut all = vec![];
    for place in 0..batch * columns * h * w {
        let (b, n, y, z) = (place / (columns * h * w), place / (h * w) % columns, place / w % h, place % w);
        let mut sum = 0.0;
        for tap in 0..channels * kh * kw {
            let (c, i, j) = (tap / (kh * kw), tap / kw % kh, tap % kw);
            let (Some(y), Some(z)) = ((y + i).checked_sub(kh / 2), (z + j).checked_sub(kw / 2)) else { continue };
            if y < h && z < w {
                sum += x.float(((b * channels + c) * h + y) * w + z) * weights.float(n * channels * kh * kw + tap);
            }
        }
        all.push((sum + bias.float(n)).max(-20.0) + added.float(place));
    }
    all
}

/// Minimal filtering is taken where it is allowed and gains, and by nothing that is no such convolution.
#[test]
fn minimal_filtering_is_for_windows_of_three() {
    use infc_kernel::target::Math;
    let chosen = |math: Math, channels: usize, size: usize, [k, step, apart]: [usize; 3]| {
        let place = move |o: Expr, r: Expr| o * step as i64 + r * apart as i64;
        let c = Compute::reduce(
            &e(&[1, 64, size, size]),
            &e(&[channels, k, k]),
            Reducer::Sum,
            |o, r| read(0, &[o[0], r[0], place(o[2], r[1]), place(o[3], r[2])]) * read(1, &[o[1], r[0], r[1], r[2]]),
            |_, acc| acc,
        );
        let side = (size - 1) * step + (k - 1) * apart + 1;
        let tensors = [small(&[1, channels, side, side], 1), small(&[64, channels, k, k], 2), small(&[1, 64, size, size], 3)];
        let last = Layout { order: vec![0, 2, 3, 1], ..plain(4) };
        let layouts = [last.clone(), plain(4), last];
        let operands: Vec<Operand> = tensors.iter().zip(&layouts).enumerate().map(|(i, (t, l))| operand(t, l, i == 1)).collect();
        let step = Step::Compute(build::contract::in_memory_order(c.simplify(), &operands));
        plan::choose(&step, &operands, &TargetDesc { math, ..target(64, 32, true) })
    };
    let outputs = |plan: Plan| if let Plan::Winograd(p) = plan { Some(p.outputs) } else { None };
    assert_eq!(outputs(chosen(Math::Winograd, 64, 56, [3, 1, 1])), Some(4));
    assert_eq!(outputs(chosen(Math::Winograd, 512, 6, [3, 1, 1])), Some(2), "few places have better use of small tiles");
    assert_eq!(outputs(chosen(Math::F32, 64, 56, [3, 1, 1])), None, "nobody asked for it");
    assert_eq!(outputs(chosen(Math::Winograd, 3, 56, [3, 1, 1])), None, "three channels");
    for shape in [[3, 2, 1], [3, 1, 2], [5, 1, 1], [1, 1, 1], [2, 1, 1]] {
        assert_eq!(outputs(chosen(Math::Winograd, 64, 28, shape)), None, "{shape:?}");
    }
}

/// The plan for one row of 768 by 3072 weights of which those stay for which `stays`, on a machine whose lookups take so many registers.
fn plan_of_layer(lookup: u32, stays: impl Fn(usize, usize) -> bool) -> Plan {
    let (k, n) = (768, 3072);
    let w: Vec<f32> = (0..k * n).map(|i| if stays(i / n, i % n) { 1.0 } else { 0.0 }).collect();
    let tensors = [small(&[1, k], 1), Tensor::from_vec([k, n], w), small(&[n], 2), small(&[1, n], 3)];
    let operands: Vec<Operand> = tensors.iter().enumerate().map(|(i, t)| operand(t, &plain(t.dims.len()), i == 1)).collect();
    plan::choose(&matmul(1, k, n, false), &operands, &TargetDesc { lookup, ..target(64, 32, true) })
}

#[test]
fn few_columns_are_dots() {
    let conv = |co: usize, ci: usize| {
        let c = Compute::reduce(
            &e(&[1, co, 8, 8]),
            &e(&[3, 3, ci]),
            Reducer::Sum,
            |o, r| read(0, &[o[0], r[2], o[2] + r[0], o[3] + r[1]]) * read(1, &[o[1], r[2], r[0], r[1]]),
            |_, acc| acc,
        );
        let channels_last = Layout { order: vec![0, 2, 3, 1], ..plain(4) };
        let x = operand(&small(&[1, ci, 10, 10], 1), &channels_last, false);
        let operands =
            [x, operand(&small(&[co, ci, 3, 3], 2), &plain(4), true), operand(&small(&[1, co, 8, 8], 3), &plain(4), false)];
        plan::choose(&Step::Compute(c.simplify()), &operands, &target(32, 16, true))
    };
    assert!(matches!(conv(1, 8), Plan::Dots(p) if p.every.is_none() && p.jam >= 4 && p.lanes == 8));
    assert!(matches!(conv(3, 8), Plan::Dots(p) if p.every == Some(1)));
    assert!(matches!(conv(16, 8), Plan::Brgemm(_)));
    assert!(!matches!(conv(1, 2), Plan::Dots(_)));
}

#[test]
fn sparse_plans_are_for_what_gains() {
    let dense = 768 * 3072 * 4;
    let hash =
        |r: usize, c: usize| (r.wrapping_mul(0x9e37_79b9) ^ c.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0xc2b2_ae35) >> 16 & 0xffff;
    let bytes = |plan: &Plan, form: plan::Form| match plan {
        Plan::Sparse(s) if s.form == form => s.bytes,
        other => panic!("{other}"),
    };
    assert!(bytes(&plan_of_layer(0, |r, c| hash(r, c) % 20 == 0), plan::Form::Gather) < dense / 8);
    assert!(bytes(&plan_of_layer(2, |r, c| hash(r, c) % 10 == 0), plan::Form::Lookup(64)) < dense / 5);
    // What was measured to be the fastest width for the share of weights that stay.
    for (tenths, width) in [(1, 64), (2, 64), (3, 64), (5, 32)] {
        let plan = plan_of_layer(2, |r, c| hash(r, c) % 10 < tenths);
        assert!(matches!(&plan, Plan::Sparse(s) if s.form == plan::Form::Lookup(width)), "{tenths} tenths: {plan}");
    }
    let two_of_four = |r: usize, c: usize| (r + c / 3) % 4 < 2;
    assert!(matches!(plan_of_layer(0, two_of_four), Plan::Brgemm(_)), "two of four gain nothing by gathers");
    assert!(bytes(&plan_of_layer(2, two_of_four), plan::Form::Lookup(32)) < dense * 7 / 10);
    for lookup in [0, 2] {
        assert!(bytes(&plan_of_layer(lookup, |r, c| hash(r, c / 16) % 10 == 0), plan::Form::Blocks) < dense / 8);
        assert!(matches!(plan_of_layer(lookup, |_, _| true), Plan::Brgemm(_)));
        assert!(matches!(plan_of_layer(lookup, |r, c| hash(r, c) % 8 > 2), Plan::Brgemm(_)), "three of eight gain nothing");
    }
}

fn e(dims: &[usize]) -> Vec<Expr> {
    dims.iter().map(|&d| Expr::from(d)).collect()
}

fn read(source: usize, index: &[Expr]) -> Scalar {
    Scalar::read_at(DType::F32, source, index)
}

fn matmul(m: usize, k: usize, n: usize, relu: bool) -> Step {
    let zero = Scalar::float(DType::F32, 0.0);
    let c = Compute::reduce(
        &e(&[m, n]),
        &e(&[k]),
        Reducer::Sum,
        |o, r| read(0, &[o[0], r[0]]) * read(1, &[r[0], o[1]]),
        |o, acc| if relu { (acc + read(2, &[o[1]])).max(zero) } else { acc + read(2, &[o[1]]) },
    );
    Step::Compute(c.simplify())
}

/// Numbers whose sums depend on their order.
fn rough(dims: &[usize], seed: u64) -> Tensor {
    let n = dims.iter().product::<usize>() as u64;
    let value = |i: u64| {
        let x = (i + 1).wrapping_mul(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        ((x >> 40) as f32 - (1u64 << 23) as f32) / (1u64 << 20) as f32
    };
    Tensor::from_vec(dims, (0..n).map(value).collect())
}

/// A convolution with channels last over a border of zeros; `own` channels each have their own weights (depthwise).
fn window(co: usize, ci: usize, (h, w): (usize, usize), dilation: i64, own: bool) -> (Step, Vec<Tensor>, Vec<Layout>) {
    let wide = 2 * dilation; // of the border on both sides together
    let c = Compute::reduce(
        &e(&[1, co, h, w]),
        &e(&if own { vec![3, 3] } else { vec![3, 3, ci] }),
        Reducer::Sum,
        |o, r| {
            let (y, x) = (o[2] + r[0] * dilation - dilation, o[3] + r[1] * dilation - dilation);
            match own {
                true => read(0, &[o[0], o[1], y, x]) * read(1, &[o[1], r[0], r[1]]),
                false => read(0, &[o[0], r[2], y, x]) * read(1, &[o[1], r[0], r[1], r[2]]),
            }
        },
        |o, acc| acc + read(2, &[o[1]]),
    );
    let weights = if own { vec![co, 3, 3] } else { vec![co, 3, 3, ci] };
    let tensors = vec![rough(&[1, ci, h, w], 3), rough(&weights, 5), rough(&[co], 7)];
    let last = vec![0, 2, 3, 1];
    let x = Layout { order: last.clone(), halo: vec![(0, 0), (0, 0), (wide / 2, wide / 2), (wide / 2, wide / 2)] };
    let rank = weights.len();
    (Step::Compute(c.simplify()), tensors, vec![x, plain(rank), plain(1), Layout { order: last, ..plain(4) }])
}

/// All sizes that may be chosen for a step keep all bits of its results, and there are some; what is none is told.
#[test]
fn other_sizes_keep_all_bits() {
    use infc_kernel::tuning::{Room, Sizes};
    let product = |m, k, n| {
        let tensors = vec![rough(&[m, k], 1), rough(&[k, n], 2), rough(&[n], 4)];
        (matmul(m, k, n, true), tensors, vec![plain(2), plain(2), plain(1), plain(2)])
    };
    let cases = [
        ("brgemm", product(37, 19, 40), true),
        ("brgemm", product(49, 7, 24), true),
        ("brgemm", product(20, 9, 33), false),
        ("brgemm", window(24, 5, (9, 9), 1, false), true),
        ("brgemm", window(40, 3, (7, 7), 6, false), true),
        ("elementwise", window(20, 20, (9, 14), 1, true), true),
        ("dots", window(2, 8, (8, 8), 1, false), true),
    ];
    for (kind, (step, tensors, layouts), constant) in cases {
        for target in [target(64, 32, true), target(32, 16, true), target(16, 16, false)] {
            let Step::Compute(c) = &step else { unreachable!("a product") };
            let dims: Vec<usize> = c.dims.iter().map(|d| d.known().expect("known") as usize).collect();
            let want = Tensor::zeros(DType::F32, dims);
            let mut operands: Vec<Operand> =
                tensors.iter().zip(&layouts).enumerate().map(|(i, (t, l))| operand(t, l, i == 1 && constant)).collect();
            operands.push(operand(&want, layouts.last().expect("one for the result"), false));
            let step = Step::Compute(build::contract::in_memory_order(c.clone(), &operands));
            let analytic = plan::choose(&step, &operands, &target);
            let run = |plan: &Plan| {
                // The border is memory of zeros around the data.
                let (at, got) = run_plan(&step, &operands, plan, &tensors, &operands, &want, &target);
                at.into_iter().map(|a| f32::from_le_bytes(got[a..a + 4].try_into().expect("four bytes"))).collect::<Vec<_>>()
            };
            let want = run(&analytic);
            let room = Room::of(&step, &operands, &target, &analytic).unwrap_or_else(|| panic!("{analytic} has no sizes"));
            let sizes = Sizes::of(&analytic).expect("it has");
            assert_eq!(sizes.kind(), kind, "{analytic}");
            assert_eq!(room.take(&sizes).as_ref(), Ok(&analytic), "its own sizes make the plan itself");
            let others = room.others(&analytic);
            assert!(others.len() >= 3 && !others.contains(&sizes), "{analytic}: {others:?}");
            // And around another plan.
            let second = room.take(&others[0]).expect("legal");
            for sizes in others.iter().chain(&room.others(&second)) {
                assert_eq!(sizes.to_string().parse().as_ref(), Ok(sizes));
                let got = run(&room.take(sizes).expect("candidates are legal"));
                let differ = got.iter().zip(&want).position(|(g, w)| g.to_bits() != w.to_bits());
                assert_eq!(differ, None, "{sizes} and {analytic}: {:?}", differ.map(|k| (got[k], want[k])));
            }
            let wrong = match kind {
                "brgemm" => [
                    "brgemm mr=0 nr=16 mc=16 nc=16",
                    "brgemm mr=4 nr=6 mc=4 nc=6",
                    "brgemm mr=2 nr=16 mc=5 nc=16",
                    "dots jam=2 chunk=1",
                ],
                "elementwise" => [
                    "elementwise lanes=5 jam=2 chunk=1",
                    "elementwise lanes=4 jam=1 chunk=1",
                    "elementwise lanes=4 jam=2 chunk=0",
                    "brgemm mr=1 nr=16 mc=1 nc=16",
                ],
                _ => ["dots jam=0 chunk=1", "dots jam=9 chunk=1", "dots jam=1 chunk=5000", "elementwise lanes=4 jam=2 chunk=1"],
            };
            for text in wrong {
                let sizes: Sizes = text.parse().expect("well-formed");
                assert!(room.take(&sizes).is_err(), "{text}");
            }
        }
    }
    for text in [
        "",
        "brgemm",
        "brgemm mr=1 nr=2 mc=3",
        "brgemm nr=1 mr=2 mc=3 nc=4",
        "brgemm mr=1 nr=2 mc=3 nc=4 x=5",
        "dots jam=-1 chunk=1",
    ] {
        assert!(text.parse::<Sizes>().is_err(), "{text}");
    }
}

/// Arithmetic that is done: without the taps that tiles leave out, and without weights that are 0 and not stored.
#[test]
fn operations_are_those_that_are_done() {
    use infc_kernel::cost;
    use infc_kernel::tuning::Room;
    let machine = target(64, 32, true);
    // 7 x 7 places, taps 6 apart: in a line one place meets the tap before it, one the tap behind it. Nine of 21 lines of taps meet data.
    let (step, tensors, layouts) = window(40, 3, (7, 7), 6, false);
    let mut operands: Vec<Operand> = tensors.iter().zip(&layouts).enumerate().map(|(i, (t, l))| operand(t, l, i == 1)).collect();
    operands.push(operand(&Tensor::zeros(DType::F32, [1, 40, 7, 7]), &layouts[3], false));
    let Step::Compute(c) = &step else { unreachable!("a convolution") };
    let step = Step::Compute(build::contract::in_memory_order(c.clone(), &operands));
    let analytic = plan::choose(&step, &operands, &machine);
    let room = Room::of(&step, &operands, &machine, &analytic).expect("a convolution has sizes");
    let all = cost::operations(&step);
    let (points, products) = (40 * 49, 27);
    assert_eq!(all.known(), Some(points * (2 * products + 1)));
    for (mr, lines, places) in [(7, 9, 21), (1, 9, 9), (2, 21, 21)] {
        let plan = room.take(&format!("brgemm mr={mr} nr=16 mc={mr} nc=48").parse().expect("well-formed")).expect("legal");
        let done = cost::done(all, &step, &plan, &operands, &machine).known().expect("known");
        let met = 40 * 3 * 2 * lines * places; // multiply-adds with data, by 40 x 3 channels
        // Tiles of two rows cross lines: they leave out what is left of the taps of both.
        let exact = done == met + points;
        assert!(
            if mr == 2 { done < all.known().expect("known") && done > 40 * 3 * 2 * 81 } else { exact },
            "mr={mr}: {done}, {met}"
        );
    }
    // One weight in four.
    let w = Tensor::from_vec([64, 64], (0..4096).map(|i| if i % 4 == 0 { 1.0f32 } else { 0.0 }).collect());
    let tensors = [small(&[2, 64], 1), w, small(&[64], 2), small(&[2, 64], 3)];
    let operands: Vec<Operand> = tensors.iter().enumerate().map(|(i, t)| operand(t, &plain(t.dims.len()), i == 1)).collect();
    let step = matmul(2, 64, 64, false);
    let all = cost::operations(&step);
    let sparse = plan::Sparse { vector: 1, n: 1, lanes: 16, window: 16, form: plan::Form::Gather, bytes: 0 };
    assert_eq!(cost::done(all, &step, &Plan::Sparse(sparse), &operands, &machine).known(), Some(2 * 64 * (2 * 16 + 1)));
    let dense = plan::choose(&matmul(2, 64, 64, false), &operands[..], &target(16, 16, false));
    assert!(!matches!(dense, Plan::Brgemm(_)) || cost::done(all, &step, &dense, &operands, &machine) == all);
}

/// Two steps have the same key only if their plans follow from the same.
#[test]
fn keys_tell_steps_apart() {
    use infc_kernel::tuning::Room;
    let machine = target(64, 32, true);
    let key = |m: usize, n: usize, relu: bool, order: &[usize], constant: bool, values: u64| {
        let step = matmul(m, 9, n, relu);
        let tensors = [rough(&[m, 9], values), rough(&[9, n], values), rough(&[n], values), rough(&[m, n], values)];
        let layouts = [plain(2), plain(2), plain(1), Layout { order: order.to_vec(), ..plain(2) }];
        let operands: Vec<Operand> =
            tensors.iter().zip(&layouts).enumerate().map(|(i, (t, l))| operand(t, l, i == 1 && constant)).collect();
        let plan = plan::choose(&step, &operands, &machine);
        Room::of(&step, &operands, &machine, &plan).expect("a product has sizes").key(&operands)
    };
    let first = key(30, 20, true, &[0, 1], true, 1);
    assert_eq!(first, key(30, 20, true, &[0, 1], true, 2), "data makes no difference");
    let others = [
        key(31, 20, true, &[0, 1], true, 1),
        key(30, 24, true, &[0, 1], true, 1),
        key(30, 20, false, &[0, 1], true, 1),
        key(30, 20, true, &[1, 0], true, 1),
        key(30, 20, true, &[0, 1], false, 1),
    ];
    assert!(others.iter().all(|k| *k != first && k.len() == 16), "{first} {others:?}");
}

/// Random plans of each builder; `PROPTEST_CASES` asks for another number.
const CASES: u32 = 100;

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { default } else { ProptestConfig { cases: CASES, ..default } }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn matrix_products(m in 1usize..20, k in 1usize..9, n in 1usize..40, c in any::<bool>(), t in any::<bool>(), wide in any::<bool>(), seed: u64) {
        let target = if wide { target(64, 32, true) } else { target(32, 16, true) };
        let order = |t: bool| if t { vec![1, 0] } else { vec![0, 1] };
        let b = Layout { order: order(t), ..plain(2) };
        let tensors = [small(&[m, k], seed), small(&[k, n], seed + 1), small(&[n], seed + 2)];
        let step = matmul(m, k, n, true);
        check(&step, &tensors, &[plain(2), b, plain(1), plain(2)], &[false, c, true], &target, None);
    }

    #[test]
    fn any_tile_of_a_product(m in 1usize..14, n in 1usize..30, mr in 1usize..7, nv in 1usize..4, mb in 1usize..4, nb in 1usize..3, seed: u64) {
        let target = target(16, 16, false);
        let tensors = [small(&[m, 5], seed), small(&[5, n], seed + 1), small(&[n], seed + 2)];
        let nr = 4 * nv;
        let all = [plan::Panels::Packed, plan::Panels::InPlace, plan::Panels::Scratch];
        for (panels, row) in all.into_iter().flat_map(|p| infc_kernel::rows::ROWS.iter().filter(|r| r.depth == 1).map(move |r| (p, r.name))) {
            let p = plan::Brgemm { broadcast: 0, n: 1, m: vec![0], mr, nr, mc: mr * mb, nc: nr * nb, kc: None, panels, copied: false, stored: None, row };
            let n_axis_exists = n > 1 && m > 1;
            if n_axis_exists {
                check(&matmul(m, 5, n, false), &tensors, &[plain(2), plain(2), plain(1), plain(2)], &[false, true, false], &target, Some(Plan::Brgemm(p)));
            }
        }
    }

    #[test]
    fn sparse_products(m in 1usize..5, k in 1usize..150, n in 1usize..400, kind in 0usize..6, transposed in any::<bool>(), seed: u64) {
        let mut w = small(&[k, n], seed + 1).to_vec::<f32>();
        for (i, v) in w.iter_mut().enumerate() {
            let (row, column) = (i / n, i % n);
            let gone = match kind {
                0 => (row * 31 + column * 17 + seed as usize % 7) % 10 != 0, // one in ten, anywhere
                1 => (row * 7 + column / 8) % 9 != 0,                        // blocks
                2 => column % 5 != 0 || row > 3,                             // columns of very different lengths
                3 => true,                                                   // nothing left
                4 => (row + column) % 4 < 2,                                 // two of four
                _ => column % 37 != 0 && (row != k - 1 || column % 3 != 0),   // whole columns, and the last row
            };
            if gone {
                *v = 0.0;
            }
        }
        let tensors = [small(&[m, k], seed), Tensor::from_vec([k, n], w), small(&[n], seed + 2)];
        let order = if transposed { vec![1, 0] } else { vec![0, 1] };
        let layouts = [Layout { order, ..plain(2) }, plain(2), plain(1), plain(2)];
        let machines = [(64, 0), (64, 1), (64, 2), (32, 1), (32, 2), (16, 0)];
        for target in machines.map(|(bytes, lookup)| TargetDesc { lookup, ..target(bytes, 32, bytes > 16) }) {
            check(&matmul(m, k, n, true), &tensors, &layouts, &[false, true, true], &target, None);
            // Whatever the plan would choose.
            let lanes = target.lanes(4);
            for form in [plan::Form::Blocks, plan::Form::Gather, plan::Form::Lookup(lanes), plan::Form::Lookup(4 * lanes)] {
                let p = plan::Sparse { vector: 1, n: 1, lanes, window: 16, form, bytes: 0 };
                if m > 1 && n > 1 && k > 1 && n * k >= 1 << 10 && kind != 4 {
                    check(&matmul(m, k, n, true), &tensors, &layouts, &[false, true, true], &target, Some(Plan::Sparse(p)));
                }
            }
        }
    }

    #[test]
    fn narrow_weights(m in 1usize..12, k in 1usize..9, n in 33usize..90, bits in 0usize..4, block in any::<bool>(), shift in any::<bool>(), seed: u64) {
        // Scales are powers of two, so that sums are exact in any order.
        let (depth, levels) = (32 * k, [2i64, 4, 8, 0][bits]);
        let numbers = small(&[depth, n], seed + 1).to_ints();
        let w = numbers.iter().enumerate().map(|(i, &v)| {
            let (row, column) = (i / n, i % n);
            let scale = [1.0f32, 0.5, 4.0][(column + if block { row / 16 } else { 0 }) % 3];
            match levels {
                0 => v as f32 * 17.0, // a bf16
                bits => {
                    let half = 1 << (bits - 1);
                    // Each block has its least and greatest number.
                    let v = [-half, half - 1].get(row % 16).copied().unwrap_or((v * 29).rem_euclid(2 * half) - half);
                    (v - if shift { column as i64 % 2 } else { 0 }) as f32 * scale
                }
            }
        });
        let tensors = [small(&[m, depth], seed), Tensor::from_vec([depth, n], w.collect()), small(&[n], seed + 2)];
        let layouts = [plain(2), plain(2), plain(1), plain(2)];
        for (bytes, registers, fma) in [(64, 32, true), (32, 16, true), (16, 16, false), (4, 16, false)] {
            let target = TargetDesc { small: true, ..target(bytes, registers, fma) };
            let mut operands: Vec<Operand> = tensors.iter().zip(&layouts).map(|(t, l)| operand(t, l, true)).collect();
            operands[0].constant = None;
            operands.push(operand(&small(&[m, n], 0), &plain(2), false));
            let plan = plan::choose(&matmul(m, depth, n, true), &operands, &target);
            let named = plan.to_string();
            let form = match levels { 0 => "stored=".to_owned(), bits => format!("stored=u{bits}{}", if block && k > 0 { "/16" } else { "" }) };
            prop_assert!(named.contains(&form) && (levels == 0 || shift == named.ends_with("+zeros")), "{named}, not {form}");
            check(&matmul(m, depth, n, true), &tensors, &layouts, &[false, true, true], &target, Some(plan));
        }
    }

    #[test]
    fn dot_products_of_bytes(m in 1usize..20, k in 1usize..9, n in 1usize..40, c in 1usize..3, swap in any::<bool>(), seed: u64) {
        let target = TargetDesc { byte_dot: true, ..target(64, 32, true) };
        let bytes = |dims: &[usize], seed: u64| small(dims, seed).to_ints();
        let x: Vec<u8> = bytes(&[m, c, 4 * k], seed).iter().map(|&v| (v * 31 + 128) as u8).collect();
        let w: Vec<i8> = bytes(&[c, 4 * k, n], seed + 1).iter().map(|&v| (v * 31) as i8).collect();
        let tensors = [Tensor::from_vec([m, c, 4 * k], x), Tensor::from_vec([c, 4 * k, n], w)];
        let step = Compute::reduce(
            &e(&[m, n]),
            &e(&[c, 4 * k]),
            Reducer::Sum,
            |o, r| {
                let x = Scalar::read_at(DType::U8, 0, &[o[0], r[0], r[1]]).cast(DType::I32);
                let w = Scalar::read_at(DType::I8, 1, &[r[0], r[1], o[1]]).cast(DType::I32);
                if swap { w * x } else { x * w }
            },
            |_, acc| acc,
        );
        let layouts = [plain(3), plain(3), plain(2)];
        check(&Step::Compute(step.simplify()), &tensors, &layouts, &[false, true], &target, None);
    }

    #[test]
    fn dot_products_of_bf16(m in 1usize..20, k in 1usize..9, n in 1usize..40, c in 1usize..3, swap in any::<bool>(), seed: u64) {
        let target = TargetDesc { bf16_dot: true, math: infc_kernel::target::Math::Bf16, ..target(64, 32, true) };
        let short = |dims: &[usize], seed: u64| {
            let values = small(dims, seed);
            Tensor::from_values(DType::BF16, dims, (0..values.len()).map(|i| values.float(i).to_bits()))
        };
        let tensors = [short(&[m, c, k], seed), short(&[c, k, n], seed + 1)];
        let step = Compute::reduce(
            &e(&[m, n]),
            &e(&[c, k]),
            Reducer::Sum,
            |o, r| {
                let x = Scalar::read_at(DType::BF16, 0, &[o[0], r[0], r[1]]).cast(DType::F32);
                let w = Scalar::read_at(DType::BF16, 1, &[r[0], r[1], o[1]]).cast(DType::F32);
                if swap { w * x } else { x * w }
            },
            |_, acc| acc,
        );
        let (layouts, step) = ([plain(3), plain(3), plain(2)], Step::Compute(step.simplify()));
        let mut operands: Vec<Operand> = (0..2).map(|i| operand(&tensors[i], &layouts[i], i == 1)).collect();
        operands.push(operand(&Tensor::zeros(DType::F32, [m, n]), &layouts[2], false));
        if let (true, Plan::Brgemm(p)) = (n > 1, plan::choose(&step, &operands, &target)) {
            prop_assert_eq!(p.row, if k % 2 == 0 { "bf16_dot" } else { "fma" });
        }
        check(&step, &tensors, &layouts, &[false, true], &target, None);
    }

    #[test]
    fn windows_of_bytes(c in 2usize..20, h in 1usize..5, w in 1usize..6, kh in 1usize..9, kw in 1usize..4, stride in 1usize..3, flip: bool, seed: u64) {
        let (rows, columns) = ((h - 1) * stride + kh, (w - 1) * stride + kw);
        let bytes = |dims: &[usize], dtype: DType, seed| {
            let values = small(dims, seed);
            Tensor::from_values(dtype, dims, (0..values.len()).map(|i| (values.float(i) * 31.0) as i64 as u64 & 255))
        };
        let data = if flip { DType::I8 } else { DType::U8 };
        let tensors = [bytes(&[1, c, rows, columns], data, seed), bytes(&[c, 1, kh, kw], DType::I8, seed ^ 5)];
        let step = Compute::reduce(
            &e(&[1, c, h, w]),
            &e(&[kh, kw]),
            Reducer::Sum,
            |o, r| {
                let x = Scalar::read_at(data, 0, &[o[0], o[1], o[2] * stride as i64 + r[0], o[3] * stride as i64 + r[1]]);
                let x = if flip { Scalar::binary(Binary::Xor, x.bitcast(DType::U8), Scalar::int(DType::U8, 128)) } else { x };
                x.cast(DType::I32) * Scalar::read_at(DType::I8, 1, &[o[1], Expr::int(0), r[0], r[1]]).cast(DType::I32)
            },
            |_, acc| acc,
        );
        let last = Layout { order: vec![0, 2, 3, 1], halo: vec![(0, 0); 4] };
        let layouts = [last.clone(), plain(4), last];
        let mut target = target(32, 16, true);
        target.byte_dot = true;
        let step = Step::Compute(step.simplify());
        let operands = [operand(&tensors[0], &layouts[0], false), operand(&tensors[1], &layouts[1], true), operand(&Tensor::zeros(DType::I32, [1, c, h, w]), &layouts[2], false)];
        // As soon as neighbours share a tile and vectors are whole, the instruction for bytes is used.
        if let Plan::Elementwise(p) = plan::choose(&step, &operands, &target) {
            let fits = (2..=8).contains(&kh) || (2..=8).contains(&kw);
            prop_assert_eq!(p.taps.is_some(), p.jam > 1 && p.lanes >= 4 && fits, "{:?}", p);
        }
        check(&step, &tensors, &layouts, &[false, true], &target, None);
    }

    #[test]
    fn any_elementwise_plan(
        dims in prop::collection::vec(1usize..7, 1..4), k in 1usize..4, swap in any::<prop::sample::Index>(), lanes in 0u32..5,
        jam in 1usize..5, chunk in 1usize..9, reduces in any::<bool>(), seed: u64,
    ) {
        let rank = dims.len();
        let mut order: Vec<usize> = (0..rank).collect();
        order.swap(swap.index(rank), rank - 1);
        let shape: Vec<usize> = dims.iter().copied().chain([k]).collect();
        let step = if reduces {
            let at = |o: &[Expr], r: &[Expr]| read(0, &o.iter().chain(r).copied().collect::<Vec<_>>());
            Compute::reduce(&e(&dims), &e(&[k]), Reducer::Sum, at, |_, acc| acc)
        } else {
            Compute::map(&e(&dims), |o| read(0, &o.iter().copied().chain([Expr::int(0)]).collect::<Vec<_>>()))
        };
        let jam = if reduces { jam } else { 1 };
        let p = plan::Elementwise { order, lanes: 1 << lanes, jam, chunk, taps: None };
        let layouts = [plain(rank + 1), plain(rank)];
        check(&Step::Compute(step.simplify()), &[small(&shape, seed)], &layouts, &[false], &target(32, 16, true), Some(Plan::Elementwise(p)));
    }

    #[test]
    fn any_row_reduction_plan(a in 1usize..7, b in 1usize..30, c in 1usize..4, lanes in 1u32..5, chunk in 1usize..9, max in any::<bool>(), seed: u64) {
        let kind = if max { Reducer::Max } else { Reducer::Sum };
        let step = Compute::reduce(&e(&[a]), &e(&[c, b]), kind, |o, r| read(0, &[o[0], r[0], r[1]]), |_, acc| acc);
        let p = plan::RowReduce { lanes: 1 << lanes, chunk };
        check(&Step::Compute(step.simplify()), &[small(&[a, c, b], seed)], &[plain(3), plain(1)], &[false], &target(32, 16, true), Some(Plan::RowReduce(p)));
    }

    #[test]
    fn any_dots_plan(
        co in 1usize..5, ci in 1usize..21, (h, w) in (1usize..4, 1usize..12), k in 1usize..4, s in 1usize..3, jam in 1usize..9, lanes in 0u32..4,
        chunk in 1usize..9, last in any::<bool>(), seed: u64,
    ) {
        let (x, y) = ([1, ci, h * s + k - 1, w * s + k - 1], [1, co, h, w]);
        let c = Compute::reduce(
            &e(&y),
            &e(&[k, k, ci]),
            Reducer::Sum,
            |o, r| read(0, &[o[0], r[2], o[2] * s + r[0], o[3] * s + r[1]]) * read(1, &[o[1], r[2], r[0], r[1]]),
            |o, acc| acc + read(2, &[o[1]]),
        );
        let channels_last = Layout { order: vec![0, 2, 3, 1], ..plain(4) };
        let layouts = [channels_last.clone(), plain(4), plain(1), if last { channels_last } else { plain(4) }];
        let tensors = [small(&x, seed), small(&[co, ci, k, k], seed + 1), small(&[co], seed + 2)];
        let p = plan::Dots { every: (co > 1).then_some(1), along: 3, jam, lanes: 1 << lanes, chunk };
        check(&Step::Compute(c.simplify()), &tensors, &layouts, &[false, true, true], &target(32, 16, true), Some(Plan::Dots(p)));
    }

    #[test]
    fn convolutions(ci in 1usize..5, co in 1usize..18, h in 3usize..8, w in 3usize..8, k in 1usize..4, s in 1usize..3, d in 1usize..8, last in any::<bool>(), seed: u64) {
        let target = target(32, 16, true);
        // Far apart, many taps meet the border only.
        let p = k / 2 * d;
        prop_assume!(h.min(w) + 2 * p > d * (k - 1));
        let (oh, ow) = ((h + 2 * p - d * (k - 1) - 1) / s + 1, (w + 2 * p - d * (k - 1) - 1) / s + 1);
        let c = Compute::reduce(
            &e(&[2, co, oh, ow]),
            &e(&[ci, k, k]),
            Reducer::Sum,
            |o, r| read(0, &[o[0], r[0], o[2] * s + r[1] * d - p, o[3] * s + r[2] * d - p]) * read(1, &[o[1], r[0], r[1], r[2]]),
            |_, acc| acc,
        );
        // The interpreter needs the guard that the border makes superfluous.
        let padded = Compute {
            reduction: c.reduction.clone().map(|mut r| {
                r.body = r.body.rewrite(&mut |n| match n.kind() {
                    infc_ir::scalar::Kind::Read { source: 0, index, .. } => {
                        let inside = index[2].within(0, h as i64).and(index[3].within(0, w as i64));
                        Scalar::read_if(0, index.iter().copied(), inside, Scalar::float(DType::F32, 0.0))
                    }
                    _ => n,
                });
                r
            }),
            ..c.clone()
        };
        let order = if last { vec![0, 2, 3, 1] } else { vec![0, 1, 2, 3] };
        let border = p as i64;
        let x = Layout { order: order.clone(), halo: vec![(0, 0), (0, 0), (border, border), (border, border)] };
        let y = Layout { order, ..plain(4) };
        let tensors = [small(&[2, ci, h, w], seed), small(&[co, ci, k, k], seed + 1)];
        let want = infc_ir::interp::run_step(&Step::Compute(padded.clone()), &tensors.clone().map(Some)).unwrap();
        check_against(&Step::Compute(c.simplify()), &tensors, &[x.clone(), plain(4), y.clone()], &[false, true], &target, None, &want);
        let guarded = Layout { halo: vec![(0, 0); 4], ..x };
        check_against(&Step::Compute(padded.simplify()), &tensors, &[guarded, plain(4), y], &[false, true], &target, None, &want);
    }

    #[test]
    fn reductions_and_elementwise(a in 1usize..6, b in 1usize..40, kind in 0usize..6, inner in any::<bool>(), seed: u64) {
        let target = target(32, 16, true);
        let kind = [Reducer::Sum, Reducer::Max, Reducer::Min, Reducer::ArgMax { last: false }, Reducer::ArgMax { last: true }, Reducer::ArgMin { last: false }][kind];
        let x = small(&[a, b], seed);
        let (outer, reduced) = if inner { (a, b) } else { (b, a) };
        let c = Compute::reduce(&e(&[outer]), &e(&[reduced]), kind, |o, r| if inner { read(0, &[o[0], r[0]]) } else { read(0, &[r[0], o[0]]) }, |_, acc| acc);
        check(&Step::Compute(c.simplify()), std::slice::from_ref(&x), &[plain(2), plain(1)], &[false], &target, None);
        let t = Compute::map(&e(&[b, a]), |i| read(0, &[i[1], i[0]]) * Scalar::float(DType::F32, 2.0));
        check(&Step::Compute(t.simplify()), std::slice::from_ref(&x), &[plain(2), plain(2)], &[false], &target, None);
        check(&Step::Compute(t.simplify()), std::slice::from_ref(&x), &[plain(2), plain(2)], &[true], &target, None);
    }

    #[test]
    fn depthwise(c in 1usize..20, h in 1usize..6, w in 1usize..9, last in any::<bool>(), seed: u64) {
        let target = target(32, 16, true);
        let order = if last { vec![0, 2, 3, 1] } else { vec![0, 1, 2, 3] };
        let x = Layout { order, ..plain(4) };
        let step = Compute::reduce(
            &e(&[1, c, h, w]),
            &e(&[2, 2]),
            Reducer::Sum,
            |o, r| read(0, &[o[0], o[1], o[2] + r[0], o[3] + r[1]]) * read(1, &[o[1], Expr::int(0), r[0], r[1]]),
            |o, acc| acc + read(2, &[o[1]]),
        );
        let tensors = [small(&[1, c, h + 1, w + 1], seed), small(&[c, 1, 2, 2], seed + 1), small(&[c], seed + 2)];
        check(&Step::Compute(step.simplify()), &tensors, &[x.clone(), plain(4), plain(1), x], &[false, true, true], &target, None);
    }

    #[test]
    fn merged_axes(dims in prop::collection::vec(1usize..5, 3..5), bias in 0usize..3, last in any::<bool>(), seed: u64) {
        let rank = dims.len();
        let order: Vec<usize> = if last { (0..1).chain(2..rank).chain([1]).collect() } else { (0..rank).collect() };
        let x = Layout { order, ..plain(rank) };
        let step = Compute::map(&e(&dims), |i| read(0, i) + read(1, &[i[bias]]));
        check(&Step::Compute(step.simplify()), &[small(&dims, seed), small(&dims[bias..=bias], seed + 1)], &[x.clone(), plain(1), x], &[false, true], &target(32, 16, true), None);
    }

    #[test]
    fn turned_tensors(a in 8usize..40, n in 1usize..3, b in 8usize..40, bytes in 2u32..7, kind in 0usize..5, halo in any::<bool>(), last in any::<bool>(), seed: u64) {
        let target = target(1 << bytes, 32, true);
        let dtype = [DType::F32, DType::U8, DType::F64, DType::F16, DType::I64][kind];
        let data = |dims: &[usize], seed: u64| {
            let values = small(dims, seed);
            let bits = (0..values.len()).map(|i| if dtype.is_float() { values.float(i).to_bits() } else { (values.float(i) + 4.0) as u64 });
            Tensor::from_values(dtype, dims, bits)
        };
        // x as it lies along b, y turned, a vector for each neighbour of the result, and a sum of all in the order of memory `last` or the other one.
        let sources = [data(&[a, n, b], seed), data(&[n, b, a], seed + 1), data(&[a], seed + 2), data(&[b, n, a], seed + 3)];
        let c = Compute::map(&e(&[n, b, a]), |i| {
            let read = |source: usize, at: &[Expr]| Scalar::read_at(dtype, source, at);
            read(0, &[i[2], i[0], i[1]]) * read(2, &[i[2]]) + read(1, i) + read(3, &[i[1], i[0], i[2]])
        });
        let border = if halo { vec![(1, 2), (0, 0), (2, 1)] } else { vec![(0, 0); 3] };
        let order = if last { vec![0, 2, 1] } else { vec![0, 1, 2] };
        let layouts = [plain(3), plain(3), plain(1), plain(3), Layout { order, halo: border }];
        let step = Step::Compute(c.simplify());
        for constant in [[false; 4], [false, false, true, false], [false, true, false, true]] {
            check(&step, &sources, &layouts, &constant, &target, None);
        }
    }

    #[test]
    fn scatter_and_prefix(n in 1usize..9, m in 1usize..5, reverse in any::<bool>(), exclusive in any::<bool>(), seed: u64) {
        let target = target(16, 16, false);
        let x = small(&[n, m], seed);
        let p = Prefix {
            dims: e(&[n, m]), axis: 0, reverse, exclusive, combine: Binary::Add, init: Scalar::float(DType::F32, 0.0),
            body: read(0, &[Expr::var(0), Expr::var(1)]),
        };
        check(&Step::Prefix(p), std::slice::from_ref(&x), &[plain(2), plain(2)], &[false], &target, None);
        let at = Tensor::from_vec([m], (0..m).map(|k| ((k * 7 + 3) % n) as i64).collect());
        let s = Scatter {
            dims: e(&[n, m]), base: Scalar::unary(Unary::Neg, read(0, &[Expr::var(0), Expr::var(1)])), updates: e(&[m]),
            index: vec![Scalar::read_at(DType::I64, 1, &[Expr::var(0)]), Scalar::index(Expr::var(0))],
            value: read(0, &[Expr::int(0), Expr::var(0)]), combine: exclusive.then_some(Binary::Add),
        };
        check(&Step::Scatter(s), &[x, at], &[plain(2), plain(1), plain(2)], &[false, false], &target, None);
    }

    #[test]
    fn sorting(a in 1usize..4, n in 0usize..20, b in 1usize..4, k in 0usize..20, descending in any::<bool>(), slices in any::<bool>(), keys in 0..5, seed: u64) {
        let x = small(&[a, n, b], seed);
        let key = |v: [usize; 3]| {
            let x = read(0, &v.map(Expr::var));
            let special = |least: f32, value: f64, x: Scalar| {
                Scalar::select(x.lt(Scalar::float(DType::F32, least.into())), Scalar::float(DType::F32, value), x)
            };
            let x = special(-3.0, f64::NAN, special(-2.0, f64::NEG_INFINITY, special(-1.0, -0.0, x)));
            match keys {
                0 => x,
                1 => x.cast(DType::F64),
                2 => read(0, &v.map(Expr::var)).cast(DType::I8),
                3 => Scalar::int(DType::I32, i64::from(i32::MIN)) + read(0, &v.map(Expr::var)).cast(DType::I32),
                _ => Scalar::int(DType::U32, 5) + read(0, &v.map(Expr::var)).cast(DType::U32),
            }
        };
        let (dims, axis, parts, key) = match slices {
            false => (e(&[a, k.min(n), b]), 1, vec![], key([0, 1, 2])),
            true => (e(&[k.min(n)]), 0, e(&[a, b]), key([1, 0, 2])),
        };
        let out = plain(dims.len());
        let s = Sort { dims, axis, extent: Expr::from(n), parts, key, descending };
        check(&Step::Sort(s), &[x], &[plain(3), out], &[false], &target(16, 16, false), None);
    }

    #[test]
    fn selection(a in 1usize..4, n in 1usize..70, most in -1i64..20, bytes in 2u32..7, seed: u64) {
        let target = target(1 << bytes, 16, false);
        let sources = [small(&[a, n], seed), small(&[n], seed + 1)];
        let positive = Scalar::float(DType::F32, 0.0).lt(read(0, &[Expr::var(0), Expr::var(1)]));
        let f = Filter::new(&e(&[a, n]), |_| positive);
        check(&Step::Filter(f), &sources[..1], &[plain(2), plain(1)], &[false], &target, None);
        let bound = read(0, &[Expr::var(0), Expr::int(0)]).cast(DType::I64) * Scalar::index(4);
        let bounded = Filter::new(&e(&[a, n]), |_| Scalar::index(Expr::var(1)).lt(bound));
        check(&Step::Filter(bounded), &sources[..1], &[plain(2), plain(1)], &[false], &target, None);
        let at = |v: usize| read(1, &[Expr::var(v)]);
        // One part of the candidate, one of the taken one, one of their line, and an index of both.
        let apart = Scalar::index(Expr::var(1) - Expr::var(2)).lt(Scalar::index(Expr::var(0) + 25));
        let near = (at(1) * at(1) - at(2).max(Scalar::float(DType::F32, 0.0))).le(Scalar::float(DType::F32, 1.0));
        let clash = near.and(apart).and(read(0, &[Expr::var(0), Expr::int(0)]).lt(at(1)));
        let key = read(0, &[Expr::var(0), Expr::var(1)]) * at(1);
        let key = Scalar::select(key.lt(Scalar::float(DType::F32, -9.0)), Scalar::float(DType::F32, f64::NAN), key);
        let c = Choice { dims: e(&[a, n + 1]), most: Scalar::index(most), key, cond: positive, clash };
        check(&Step::Choice(c), &sources, &[plain(2), plain(1), plain(2)], &[false, false], &target, None);
    }
}

#[test]
fn what_lies_along_another_axis_is_turned() {
    let chosen = |read: &dyn Fn(&[Expr]) -> Scalar, dims: [usize; 2]| {
        let [a, b] = dims;
        let c = Compute::map(&e(&[b, a]), |i| read(i));
        let operands = [operand(&small(&[a, b], 1), &plain(2), false), operand(&small(&[b, a], 1), &plain(2), false)];
        plan::choose(&Step::Compute(c.simplify()), &operands, &target(64, 32, true))
    };
    let across = |i: &[Expr]| read(0, &[i[1], i[0]]);
    assert!(matches!(chosen(&across, [100, 40]), Plan::Turned(p) if p.size == [16, 32] && p.whole == 0));
    assert!(matches!(chosen(&across, [12, 400]), Plan::Turned(p) if p.size == [8, 64] && p.whole == 1));
    assert!(matches!(chosen(&across, [3, 400]), Plan::Elementwise(_)));
    let both = |i: &[Expr]| read(0, &[i[1], i[0]]) + read(0, &[i[1], Expr::int(0)]);
    assert!(!matches!(chosen(&both, [100, 40]), Plan::Turned(_)), "one lies along neither axis");
}

#[test]
fn a_reduction_without_axes() {
    let scalar = Tensor::from_vec([], vec![3.0f32]);
    for dims in [vec![], vec![3]] {
        let c = Compute::reduce(&e(&dims), &[], Reducer::Sum, |_, _| read(0, &[]), |_, acc| acc + acc);
        let layouts = [plain(0), plain(dims.len())];
        check(&Step::Compute(c.simplify()), std::slice::from_ref(&scalar), &layouts, &[false], &target(32, 16, true), None);
    }
}
