//! How tensors lie in memory, end to end: channels-last behind transposes, and rows kept apart that would share lines of L1.

#![cfg(feature = "llvm")]

mod tool;

use infc::engine::{Backend, prepare};
use infc::{Options, compile, target};
use infc_ir::interp::Item;
use infc_ir::{Expr, Graph, Tensor};
use infc_kernel::loops::Space;
use infc_kernel::plan::Plan;
use infc_kernel::target::TargetDesc;
use tool::kit::*;

fn numbers(dims: &[usize], seed: u32) -> Tensor {
    let n: usize = dims.iter().product();
    let value = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    Tensor::from_vec(dims, (0..n).map(value).collect::<Vec<f32>>())
}

fn native(way: u64) -> TargetDesc {
    TargetDesc { l1_way_bytes: way, ..target::find("native").expect("this computer") }
}

fn run(graph: &Graph, backend: Backend, machine: TargetDesc, input: &Tensor) -> Tensor {
    let mut engine = prepare(graph.clone(), backend, &Options::for_target(machine)).unwrap_or_else(|e| panic!("{e}"));
    let outputs = engine.run(&[Item::Tensor(input.clone())]).unwrap_or_else(|e| panic!("{} {e}", backend.name()));
    outputs[0].as_tensor().expect("a tensor").clone()
}

fn close(got: &Tensor, want: &Tensor) {
    let (got, want) = (got.to_vec::<f32>(), want.to_vec::<f32>());
    let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(got.len() == want.len() && worst < 1e-4, "differs by {worst}");
}

/// Two blocks that normalise channels-last and add to a residual channels-first, as in ConvNeXt, then a stride and a concatenation.
fn blocks(channels: usize) -> Graph {
    let c = channels;
    let dims: Vec<(&str, Vec<usize>)> = vec![
        ("w0", vec![c, 3, 2, 2]),
        ("g", vec![c]),
        ("b", vec![c]),
        ("d", vec![c, 1, 3, 3]),
        ("w1", vec![c, 2 * c]),
        ("w2", vec![2 * c, c]),
        ("w3", vec![16, c, 1, 1]),
        ("w4", vec![16, c, 3, 3]),
    ];
    let weights = dims.iter().enumerate().map(|(k, (name, dims))| constant(name, &numbers(dims, 77 * k as u32 + 5))).collect();
    let last = [ints("perm", &[0, 2, 3, 1])];
    let first = [ints("perm", &[0, 3, 1, 2])];
    let nodes = vec![
        node("s = Conv(x, w0)", [ints("strides", &[2, 2])]),
        node("s1 = Transpose(s)", last.clone()),
        node("s2 = LayerNormalization(s1, g, b)", [int("axis", -1)]),
        node("s3 = Transpose(s2)", first.clone()),
        node("c1 = Conv(s3, d)", [ints("pads", &[1, 1, 1, 1]), int("group", c as i64)]),
        node("t1 = Transpose(c1)", last),
        node("m1 = MatMul(t1, w1)", []),
        node("m2 = Relu(m1)", []),
        node("m3 = MatMul(m2, w2)", []),
        node("t2 = Transpose(m3)", first),
        node("r = Add(s3, t2)", []),
        node("p = Conv(r, w3)", [ints("strides", &[2, 2])]),
        node("q = Conv(r, w4)", [ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1])]),
        node("y = Concat(p, q)", [int("axis", 1)]),
    ];
    import(&model(18, graph(&["x f32[1, 3, 12, 20]"], nodes, &["y f32[1, 32, 3, 5]"], weights))).expect("a good model")
}

/// The strides of four axes of all kernels' parameters.
fn strides(graph: &Graph, machine: TargetDesc) -> Vec<Vec<Expr>> {
    let lowered = compile::lower(graph.clone(), &Options::for_target(machine)).expect("lowers");
    let buffers = lowered.kernels.into_iter().flat_map(|k| k.buffers);
    buffers.filter(|b| b.space == Space::Global && b.dims.len() == 4).map(|b| b.strides).collect()
}

#[test]
fn rows_that_compete_for_lines_are_kept_apart() {
    let graph = blocks(16);
    let x = numbers(&[1, 3, 12, 20], 3);
    let want = run(&graph, Backend::Interp, native(0), &x);
    // Rows of 16 channels are 64 bytes: with a way of 64 bytes each row that a contraction reads gets a gap, with 128 those read two by two.
    for (way, gaps) in [(0, false), (64, true), (128, true), (1 << 20, false)] {
        let rows = strides(&graph, native(way));
        let apart = rows.iter().any(|s| s[1].is(1) && s[3].is(32));
        assert_eq!(apart, gaps, "a way of {way} bytes: {rows:?}");
        for backend in [Backend::Loops, Backend::Llvm] {
            close(&run(&graph, backend, native(way), &x), &want);
        }
    }
}

#[test]
fn what_a_product_wrote_row_by_row_stays_channels_last() {
    // No channels-first copy of the residual is kept, so the depthwise convolution and the sum run over channels.
    let rows = strides(&blocks(24), native(0));
    let inner: Vec<_> = rows.iter().filter(|s| !s[1].is(1) && s[2].is(10)).collect();
    assert!(inner.is_empty(), "{inner:?}");
}

/// Convolutions in groups, with padding and without, in one direction and in two: a product for each group where groups are wide enough, and always the same numbers.
#[test]
fn groups_of_channels_are_products() {
    // Channels, channels of the result, groups, window, and whether groups are products.
    for (cin, cout, groups, window, products) in
        [(32, 32, 2, 3, true), (48, 96, 4, 1, true), (24, 24, 3, 3, true), (64, 64, 16, 3, false), (40, 20, 4, 3, false)]
    {
        for flat in [false, true] {
            let space = if flat { vec![23usize] } else { vec![9, 11] };
            let sizes = vec![window; space.len()];
            let dims = |first: [usize; 2], rest: &[usize]| first.iter().chain(rest).copied().collect::<Vec<usize>>();
            let held =
                vec![constant("w", &numbers(&dims([cout, cin / groups], &sizes), 7)), constant("bias", &numbers(&[cout], 9))];
            let pads = vec![window as i64 / 2; 2 * space.len()];
            let nodes = vec![
                node("c = Conv(x, w, bias)", [int("group", groups as i64), ints("pads", &pads)]),
                node("r = Relu(c)", []),
                node("y = Add(r, c)", []),
            ];
            let text = space.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(", ");
            let (from, to) = (format!("x f32[2, {cin}, {text}]"), format!("y f32[2, {cout}, {text}]"));
            let g = import(&model(18, graph(&[&from], nodes, &[&to], held))).expect("a good model");
            let x = numbers(&dims([2, cin], &space), 3);
            let want = run(&g, Backend::Interp, native(4096), &x);
            for name in ["native", "x86-64-v3", "x86-64-v2"] {
                let machine = target::find(name).expect("known");
                let lowered = compile::lower(g.clone(), &Options::for_target(machine.clone())).unwrap_or_else(|e| panic!("{e}"));
                // With rows: positions by channels of a group, or the other way round.
                let product = |p: &Plan| matches!(p, Plan::Brgemm(p) if !p.m.is_empty());
                let planned = lowered.plans.iter().flatten().any(product);
                assert_eq!(planned, products, "{cin} to {cout} in {groups} groups on {name}");
                for backend in [Backend::Loops, Backend::Llvm] {
                    close(&run(&g, backend, machine.clone(), &x), &want);
                }
            }
        }
    }
}

/// A product of matrices for each channel, of what convolutions made: channels lie last for these, and rows for the product.
#[test]
fn products_for_each_channel_read_rows() {
    let weights = vec![
        constant("w", &numbers(&[12, 5, 1, 1], 3)),
        constant("v", &numbers(&[12, 5, 1, 1], 4)),
        constant("u", &numbers(&[7, 12, 1, 1], 5)),
    ];
    // Sizes of the pictures, and whether rows are copied: elements of smaller ones are read a few times only.
    for (size, copied) in [(20usize, true), (8, false)] {
        let nodes = vec![
            node("a = Conv(x, w)", []),
            node("b = Conv(x, v)", []),
            node("p = MatMul(a, b)", []),
            node("q = MatMul(b, p)", []),
            node("r = Add(q, a)", []),
            node("y = Conv(r, u)", []),
        ];
        let g = import(&model(
            18,
            graph(&[&format!("x f32[n, 5, {size}, {size}]")], nodes, &[&format!("y f32[n, 7, {size}, {size}]")], weights.clone()),
        ));
        let g = g.expect("a good model");
        let x = numbers(&[2, 5, size, size], 3);
        let want = run(&g, Backend::Interp, native(4096), &x);
        for machine in ["native", "x86-64-v3", "x86-64-v2"].map(|name| target::find(name).expect("known")) {
            let lowered = compile::lower(g.clone(), &Options::for_target(machine.clone())).unwrap_or_else(|e| panic!("{e}"));
            // One kernel for the copies of a and of b.
            let copies = lowered.kernels.iter().filter(|k| k.name == "rows").count();
            assert_eq!(copies, if copied { 1 } else { 0 }, "{size} on {}", machine.name);
            for backend in [Backend::Loops, Backend::Llvm] {
                close(&run(&g, backend, machine.clone(), &x), &want);
            }
        }
    }
}
