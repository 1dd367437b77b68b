//! Plans: which ones are chosen, other sizes of them, what is told of their work, and the keys under which they are stored.

mod kit;

use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::{DType, Expr, Tensor};
use infc_kernel::build::{self, Operand};
use infc_kernel::plan::{self, Plan};
use infc_kernel::target::TargetDesc;
use kit::*;

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
fn few_tiles_fetch_what_they_come_to() {
    // Hints in a step of k, of a product of so many rows (0: a run tells how many) by so many products a sum, in tiles of 8 x 48.
    let hints = |rows: usize, [depth, columns]: [usize; 2], mr: usize| {
        let mc = if mr == 1 { 1 } else { 128 };
        let tensors = [
            small(&[rows.max(1), depth], 1),
            small(&[depth, columns], 2),
            small(&[columns], 3),
            small(&[rows.max(1), columns], 4),
        ];
        let mut operands: Vec<Operand> =
            tensors.iter().enumerate().map(|(i, t)| operand(t, &plain(t.dims.len()), i == 1)).collect();
        let mut step = matmul(rows.max(1), depth, columns, false);
        if rows == 0 {
            let Step::Compute(c) = &mut step else { unreachable!() };
            c.dims[0] = Expr::sym("rows");
            [0, 3].iter().for_each(|&o| operands[o].buffer.dims[0] = Expr::sym("rows"));
        }
        let (panels, row) = (plan::Panels::Packed, "fma");
        let p = plan::Brgemm {
            broadcast: 0,
            n: 1,
            m: vec![0],
            mr,
            nr: 48,
            mc,
            nc: columns,
            kc: None,
            panels,
            copied: false,
            along: None,
            stored: None,
            row,
        };
        let nest = build::build("test", &step, &Plan::Brgemm(p), &operands, &target(64, 32, true));
        nest.kernel.to_string().matches("prefetch b1").count()
    };
    let lines = 48 * 4 / 64;
    assert_eq!([8, 16, 24, 56].map(|rows| hints(rows, [384, 960], 8)), [lines; 4], "lines that the tile itself reads");
    assert_eq!([64, 128].map(|rows| hints(rows, [384, 960], 8)), [1; 2], "a part of the next panel");
    // Half of L1 holds no 8 rows of 1024 products.
    assert_eq!([16, 24, 56].map(|rows| hints(rows, [1024, 960], 8)), [lines, 1, 1]);
    assert_eq!(hints(1, [384, 960], 1), 0, "steps of three products reach far by themselves");
    assert_eq!(hints(8, [16, 9600], 8), 0, "a panel that is a page is not fetched");
    // What L2 holds may be there from the round before.
    assert_eq!([8, 24].map(|rows| hints(rows, [384, 96], 8)), [1; 2]);
    assert_eq!(hints(1, [384, 96], 1), 0);
    assert_eq!(hints(0, [384, 96], 8), 2, "a tile of 8 rows, and tiles of 4");
    // A tile of 8 rows, one that is cut off, and one of 4, each for itself or for the next panel, as the run tells.
    assert_eq!(hints(0, [384, 960], 8), 3 * lines);
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
