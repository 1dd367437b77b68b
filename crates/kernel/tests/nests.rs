//! Every built nest equals its step: the loop interpreter on the nest against the row interpreter on the step.
//!
//! Data are small integers, for which sums are exact in any order, so that an index error cannot hide in a tolerance.

mod kit;

use infc_ir::compute::{Choice, Compute, Filter, Prefix, Reducer, Scatter, Sort, Step};
use infc_ir::scalar::{Binary, Scalar, Unary};
use infc_ir::{DType, Expr, Tensor};
use infc_kernel::build::Operand;
use infc_kernel::loops::Buffer;
use infc_kernel::plan::{self, Plan};
use infc_kernel::target::TargetDesc;
use kit::*;
use proptest::prelude::*;

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
            let p = plan::Brgemm { broadcast: 0, n: 1, m: vec![0], mr, nr, mc: mr * mb, nc: nr * nb, kc: None, panels, copied: false, along: None, stored: None, row };
            let n_axis_exists = n > 1 && m > 1;
            if n_axis_exists {
                check(&matmul(m, 5, n, false), &tensors, &[plain(2), plain(2), plain(1), plain(2)], &[false, true, false], &target, Some(Plan::Brgemm(p)));
            }
        }
    }

    #[test]
    fn tiles_of_products_with_open_rows(a in 0i64..4, b in 0i64..12, n in 2usize..30, mr in 1usize..15, nv in 1usize..4, mb in 1usize..4, nb in 1usize..3, line in 0i64..9, seed: u64) {
        // Rows of two axes, of which a run tells both or the first.
        let (nr, row) = (4 * nv, "mul_add");
        // A panel that L2 does not hold is read once for what is left of the rows.
        let target = TargetDesc { l2_bytes: if seed % 2 == 0 { 64 } else { 512 << 10 }, ..target(16, 32, false) };
        for panels in [plan::Panels::Packed, plan::Panels::InPlace, plan::Panels::Scratch] {
            let p = plan::Brgemm { broadcast: 0, n: 2, m: vec![0, 1], mr, nr, mc: mr * mb, nc: nr * nb, kc: None, panels, copied: false, along: None, stored: None, row };
            let second = |s: &[Expr]| if line > 0 { Expr::int(line) } else { s[1] };
            let make = |s: &[Expr]| {
                let sum = Compute::reduce(&[s[0], second(s), Expr::from(n)], &e(&[5]), Reducer::Sum, |o, r| read(0, &[o[0], o[1], r[0]]) * read(1, &[r[0], o[2]]), |o, acc| acc + read(2, o));
                Step::Compute(sum.simplify())
            };
            let dims = |s: &[Expr]| {
                let n = Expr::from(n);
                vec![vec![s[0], second(s), Expr::int(5)], vec![Expr::int(5), n], vec![s[0], second(s), n], vec![s[0], second(s), n]]
            };
            check_open(&[("a", a), ("b", b)], &make, &dims, (seed, &[false, true, false]), &target, Some(Plan::Brgemm(p)));
        }
    }

    #[test]
    fn elementwise_plans_with_open_sizes(a in 0i64..4, b in 0i64..7, c in 1usize..4, d in 1usize..9, swap in 0usize..4, lanes in 0u32..4, chunk in 1usize..12, which in 0usize..4, seed: u64) {
        // Two of four axes are open; what is read lies in another order.
        let place = [[0, 1], [0, 2], [1, 2], [0, 3]][which];
        let axes = |s: &[Expr]| {
            let mut all = vec![];
            let mut known = [Expr::from(c), Expr::from(d)].into_iter();
            for k in 0..4 {
                all.push(if k == place[0] { s[0] } else if k == place[1] { s[1] } else { known.next().expect("two") });
            }
            all
        };
        let mut order = vec![0, 1, 2, 3];
        order.swap(swap, 3);
        let p = plan::Elementwise { order, lanes: 1 << lanes, jam: 1, chunk, taps: None };
        let make = |s: &[Expr]| {
            let map = Compute::map(&axes(s), |o| read(0, &[o[2], o[0], o[3], o[1]]) + read(1, &[o[1], o[3]]));
            Step::Compute(map.simplify())
        };
        let dims = |s: &[Expr]| {
            let x = axes(s);
            vec![vec![x[2], x[0], x[3], x[1]], vec![x[1], x[3]], x]
        };
        check_open(&[("a", a), ("b", b)], &make, &dims, (seed, &[]), &target(32, 16, true), Some(Plan::Elementwise(p)));
    }

    #[test]
    fn row_reductions_with_open_sizes(a in 0i64..5, b in 0i64..7, k in 1usize..30, lanes in 1u32..5, chunk in 1usize..12, seed: u64) {
        let p = plan::RowReduce { lanes: 1 << lanes, chunk };
        let make = |s: &[Expr]| {
            let c = Compute::reduce(&[s[0], Expr::int(3), s[1]], &e(&[k]), Reducer::Sum, |o, r| read(0, &[o[0], o[2], o[1], r[0]]), |_, acc| acc);
            Step::Compute(c.simplify())
        };
        let dims = |s: &[Expr]| vec![vec![s[0], s[1], Expr::int(3), Expr::from(k)], vec![s[0], Expr::int(3), s[1]]];
        check_open(&[("a", a), ("b", b)], &make, &dims, (seed, &[]), &target(32, 16, true), Some(Plan::RowReduce(p)));
    }

    #[test]
    fn turned_tensors_of_open_sizes(a in 0i64..40, b in 0i64..40, n in 0i64..3, bytes in 3u32..7, kind in 0usize..3, seed: u64) {
        // Steps of neighbours are products of sizes.
        let make = |s: &[Expr]| Step::Compute(Compute::map(&[s[2], s[1], s[0]], |i| match kind {
            0 => read(0, &[i[0], i[2], i[1]]),
            1 => read(0, &[i[0], i[2], i[1]]) + read(1, i),
            _ => read(0, &[i[2], i[0], i[1]]) * read(1, i),
        }).simplify());
        let dims = |s: &[Expr]| {
            let x = if kind == 2 { vec![s[0], s[2], s[1]] } else { vec![s[2], s[0], s[1]] };
            vec![x, vec![s[2], s[1], s[0]], vec![s[2], s[1], s[0]]]
        };
        check_open(&[("a", a), ("b", b), ("n", n)], &make, &dims, (seed, &[]), &target(1 << bytes, 32, true), None);
    }

    #[test]
    fn results_along_rows(m in 2usize..30, n in 2usize..30, mr in 1usize..7, nv in 1usize..4, parts in 1usize..4, tiles in 1usize..4, nb in 1usize..3, cut in any::<bool>(), seed: u64) {
        let target = target(16, 16, false);
        let tensors = [small(&[m, 6], seed), small(&[6, n], seed + 1), small(&[n], seed + 2)];
        let (nr, row) = (4 * nv, "mul_add");
        let kc = cut.then_some(plan::Kc { axis: 0, size: 3 });
        let p = plan::Brgemm { broadcast: 0, n: 1, m: vec![0], mr, nr, mc: mr * tiles * parts, nc: nr * nb, kc, panels: plan::Panels::Packed, copied: false, along: Some(mr * tiles), stored: None, row };
        let turned = Layout { order: vec![1, 0], ..plain(2) };
        check(&matmul(m, 6, n, false), &tensors, &[plain(2), plain(2), plain(1), turned], &[false, true, false], &target, Some(Plan::Brgemm(p)));
    }

    #[test]
    fn products_of_pictures_along_rows(images in 1usize..4, h in 1usize..9, w in 1usize..9, wide in any::<bool>(), seed: u64) {
        // Two ways of one line, so that columns crowd it, and the plan is the one that the target wants: over several pictures where their elements are whole vectors, else (from 32 on) by picture.
        let target = TargetDesc { l1_bytes: 128, l1_way_bytes: 64, ..target(16, 16, false) };
        let w = if wide { 4 * w } else { w };
        let tensors = [small(&[images, h, w, 5], seed), small(&[5, 24], seed + 1), small(&[24], seed + 2)];
        let c = Compute::reduce(
            &e(&[images, 24, h, w]),
            &e(&[5]),
            Reducer::Sum,
            |o, r| read(0, &[o[0], o[2], o[3], r[0]]) * read(1, &[r[0], o[1]]),
            |o, acc| acc + read(2, &[o[1]]),
        );
        let step = Step::Compute(c.simplify());
        check(&step, &tensors, &[plain(4), plain(2), plain(1), plain(4)], &[false, true, true], &target, None);
    }

    #[test]
    fn samples_of_all_channels(images in 1usize..3, channels in 1usize..19, h in 1usize..6, w in 1usize..9, seed: u64) {
        // What data tells of the place is the same for all channels; pictures of h x w samples are lines of one axis.
        let tensors = [small(&[images, channels, 7], seed), small(&[images, h, w], seed + 1)];
        let at = |o: &[Expr], more: f64| (Scalar::unary(Unary::Abs, read(1, &[o[0], o[2], o[3]])) + Scalar::float(DType::F32, more)).cast(DType::I64);
        let (first, last) = (Scalar::index(0), Scalar::index(6));
        let sample = |o: &[Expr], more: f64| {
            Scalar::read(DType::F32, 0, [Scalar::index(o[0]), Scalar::index(o[1]), at(o, more).max(first).min(last)])
        };
        let c = Compute::map(&e(&[images, channels, h, w]), |o| sample(o, 0.0) + sample(o, 1.0) * read(1, &[o[0], o[2], o[3]]));
        let step = Step::Compute(c.simplify());
        check(&step, &tensors, &[plain(3), plain(3), plain(4)], &[false; 2], &target(64, 32, true), None);
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
    // A step that a run tells is far.
    let open = [Expr::sym("a"), Expr::sym("b"), Expr::int(16)];
    let c = Compute::map(&[open[1], open[0], open[2]], |i| read(0, &[i[0], i[2], i[1]]));
    let lie = |dims: &[Expr]| {
        let mut o = operand(&small(&[2, 2, 2], 1), &plain(3), false);
        (o.buffer.strides, o.buffer.dims) = (Buffer::strides_in_order(dims, &[0, 1, 2]), dims.to_vec());
        o
    };
    let operands = [lie(&[open[1], open[2], open[0]]), lie(&[open[1], open[0], open[2]])];
    assert!(matches!(plan::choose(&Step::Compute(c.simplify()), &operands, &target(64, 32, true)), Plan::Turned(_)));
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
