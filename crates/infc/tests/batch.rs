//! Loops over the batch outside of layers: where they are found and where not, and that nothing depends on them: the same bits with and
//! without, on every machine, with any number of threads, and from every kind of code.

#![cfg(feature = "llvm")]

mod tool;

use infc::engine::Backend;
use infc::{Options, compile, target};
use infc_ir::Graph;
use infc_ir::interp::Item;
use infc_kernel::target::TargetDesc;
use infc_runtime::variant;
use tool::kit::*;
use tool::net::{Net, Random, large, loops, machines_of_llvm, native, numbers, run, run_threads, small};

/// Rounds and launches of each loop over the batch.
fn loops_of(graph: &Graph, machine: TargetDesc) -> Vec<(i64, usize)> {
    loops(graph, machine, "%batch")
}

/// An inverted residual block, pooling, a concatenation, and a dense layer at the end.
fn network(batch: usize) -> Net {
    let mut net = Net::new(&[batch, 3, 24, 24]);
    net.conv(16, 3, 1, 2);
    let start = net.same("Relu(@)", &[]);
    net.conv(48, 1, 1, 1);
    net.same("Relu(@)", &[]);
    net.conv(48, 3, 48, 1);
    net.same("Clip(@)", &[]);
    net.conv(16, 1, 1, 1);
    net.same(&format!("Add(@, v{start})"), &[]);
    let half = [ints("kernel_shape", &[3, 3]), ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1])];
    net.add("MaxPool(@)", &half, vec![batch, 16, 6, 6]);
    let from = net.last();
    net.conv(20, 3, 1, 1);
    net.add(&format!("Concat(@, v{from})"), &[int("axis", 1)], vec![batch, 36, 6, 6]);
    net.conv(24, 3, 1, 1);
    net.add("GlobalAveragePool(@)", &[], vec![batch, 24, 1, 1]);
    net.add("Flatten(@)", &[], vec![batch, 24]);
    let w = net.weight(&[24, 10]);
    net.add(&format!("MatMul(@, {w})"), &[], vec![batch, 10]);
    net
}

#[test]
fn a_network_runs_picture_by_picture_where_that_pays() {
    let graph = network(8).graph();
    assert_eq!(loops_of(&graph, large(native())), []);
    let loops = loops_of(&graph, small(native()));
    let launches: usize = loops.iter().map(|l| l.1).sum();
    assert!(launches >= 8 && loops.iter().all(|l| 8 % l.0 == 0 && l.0 > 1), "{loops:?}");
    // One picture: as it is.
    assert_eq!(loops_of(&network(1).graph(), small(native())), []);
}

/// Rounds of a batch that only a run knows (they count as -1 here) take one picture each.
#[test]
fn a_batch_that_a_run_tells_goes_picture_by_picture_too() {
    let open = network(8).graph_of("n");
    // Where caches hold all, no launch goes with another: the rows of a picture, whose number is known, may still fit tiles better than any number of rows do.
    let alone = loops_of(&open, large(native()));
    assert!(alone.iter().all(|l| *l == (-1, 1)), "{alone:?}");
    let loops = loops_of(&open, small(native()));
    let launches: usize = loops.iter().map(|l| l.1).sum();
    assert!(launches >= 8 && loops.iter().all(|l| l.0 == -1), "{loops:?}");
    for batch in [0, 1, 2, 3, 8] {
        let input = Item::Tensor(numbers(&[batch, 3, 24, 24], 11));
        for backend in [Backend::Llvm, Backend::C, Backend::Loops] {
            let machine = if backend == Backend::C { infc_c::machines().remove(0) } else { native() };
            let whole = run(&open, backend, large(machine.clone()), &input);
            assert_eq!(whole[0].0, [batch, 10]);
            assert!(run(&open, backend, small(machine), &input) == whole, "{batch} pictures, {}", backend.name());
        }
    }
    let input = Item::Tensor(numbers(&[5, 3, 24, 24], 12));
    let whole = run_threads(&open, large(native()), &input, 1);
    for threads in [2, 3, 9] {
        assert!(run_threads(&open, small(native()), &input, threads) == whole, "{threads} threads");
    }
}

#[test]
fn memory_shrinks_to_that_of_a_slice() {
    let arena = |machine| {
        let lowered = compile::lower(network(8).graph(), &Options::for_target(machine)).expect("lowers");
        lowered.program.arena.expect("known sizes")
    };
    let (looped, whole) = (arena(small(native())), arena(large(native())));
    assert!(looped * 2 < whole, "{looped} of {whole} bytes");
}

#[test]
fn bits_are_the_same_on_every_machine_and_with_any_number_of_threads() {
    let net = network(8);
    let (graph, input) = (net.graph(), net.input());
    let mut machines = 0;
    for machine in machines_of_llvm() {
        if variant::check(&target::requirements(&machine)).is_err() {
            continue;
        }
        machines += 1;
        let name = machine.name.clone();
        assert!(!loops_of(&graph, small(machine.clone())).is_empty(), "{name}");
        let whole = run_threads(&graph, large(machine.clone()), &input, 1);
        for threads in [1, 2, 3, 5, 9] {
            assert!(run_threads(&graph, small(machine.clone()), &input, threads) == whole, "{name}, {threads} threads");
        }
        if machines == 1 {
            // Its rounds run in the opposite order there.
            assert!(
                run(&graph, Backend::Loops, small(machine.clone()), &input)
                    == run(&graph, Backend::Loops, large(machine), &input)
            );
        }
    }
    assert!(machines > 0);
}

#[test]
fn c_code_gives_the_same_bits() {
    let net = network(4);
    let (graph, input) = (net.graph(), net.input());
    for machine in infc_c::machines() {
        let name = machine.name.clone();
        assert!(!loops_of(&graph, small(machine.clone())).is_empty(), "{name}");
        let whole = run(&graph, Backend::C, large(machine.clone()), &input);
        assert!(run(&graph, Backend::C, small(machine), &input) == whole, "{name}");
    }
}

/// A network with one operator in the middle.
fn around(call: &str, attributes: &[infc_onnx::proto::AttributeProto], weight: Option<Vec<i64>>, dims: &[usize]) -> Graph {
    let mut net = Net::new(&[6, 8, 12, 12]);
    net.conv(32, 1, 1, 1);
    net.same("Relu(@)", &[]);
    let call = match weight {
        Some(values) => call.replace('#', &net.index(values)),
        None => call.to_owned(),
    };
    net.add(&call, attributes, dims.to_vec());
    net.conv(32, 1, 1, 1);
    net.conv(8, 1, 1, 1);
    net.graph()
}

#[test]
fn what_mixes_pictures_is_in_no_loop() {
    let same = [6usize, 32, 12, 12];
    // Launches outside of loops.
    let outside = |graph: &Graph| {
        let lowered = compile::lower(graph.clone(), &Options::for_target(small(native()))).expect("lowers");
        compile::launches(&lowered.program.steps) - loops_of(graph, small(native())).iter().map(|l| l.1).sum::<usize>()
    };
    assert_eq!(outside(&around("Sigmoid(@)", &[], None, &same)), 0);
    assert_eq!(outside(&around("Add(@, v1)", &[], None, &same)), 0);
    let mixing: [(&str, Vec<_>, Option<Vec<i64>>); 4] = [
        ("Softmax(@)", vec![int("axis", 0)], None),
        ("CumSum(@, #)", vec![], Some(vec![0])),
        ("Gather(@, #)", vec![int("axis", 0)], Some(vec![5, 4, 3, 2, 1, 0])),
        ("LpNormalization(@)", vec![int("axis", 0)], None),
    ];
    for (call, attributes, weight) in mixing {
        let with = around(call, &attributes, weight, &same);
        assert!(outside(&with) > 0, "{call}");
        assert!(!loops_of(&with, small(native())).is_empty(), "{call}: what stands around it");
        let input = Item::Tensor(numbers(&[6, 8, 12, 12], 9));
        let whole = run(&with, Backend::Llvm, large(native()), &input);
        assert!(run(&with, Backend::Llvm, small(native()), &input) == whole, "{call}");
    }
}

/// One layer of a random network.
fn layer(net: &mut Net, (kind, a, b): (u8, usize, usize)) {
    let d = net.dims[net.last()].clone();
    let channels = [8, 12, 16, 20, 32][a % 5];
    match kind {
        0 => net.conv(channels, [1, 3][b % 2], 1, 1),
        1 => net.conv(d[1], 3, d[1], 1 + b % 2),
        2 => drop(net.same(["Relu(@)", "Sigmoid(@)", "Abs(@)"][a % 3], &[])),
        // A residual, or another sum with what fits.
        3 => {
            let fits: Vec<usize> = (0..=net.last()).filter(|&v| net.dims[v] == d).collect();
            net.same(&format!("Add(@, v{})", fits[b % fits.len()]), &[]);
        }
        4 => {
            let fits: Vec<usize> = (0..=net.last()).filter(|&v| net.dims[v][2..] == d[2..]).collect();
            let other = fits[b % fits.len()];
            let channels = d[1] + net.dims[other][1];
            net.add(&format!("Concat(@, v{other})"), &[int("axis", 1)], vec![d[0], channels, d[2], d[3]]);
        }
        5 => {
            let attributes = [ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])];
            net.same(["MaxPool(@)", "AveragePool(@)"][a % 2], &attributes);
        }
        // What mixes pictures.
        6 => drop(net.same("Softmax(@)", &[int("axis", 0)])),
        7 => {
            let order = net.index((0..d[0] as i64).rev().collect());
            net.same(&format!("Gather(@, {order})"), &[int("axis", 0)]);
        }
        8 => {
            let axes = net.index(vec![0]);
            let mean = format!("v{}", net.last());
            net.add(&format!("ReduceMean(@, {axes})"), &[], vec![1, d[1], d[2], d[3]]);
            net.add(&format!("Sub({mean}, @)"), &[], d);
        }
        // The same weights for all, of pictures alone, and a softmax over channels.
        9 => drop(net.same("Softmax(@)", &[int("axis", 1)])),
        // Rows of pictures among each other.
        10 => {
            let shape = net.index(vec![d[0] as i64, -1]);
            let back = net.index(d.iter().map(|&d| d as i64).collect());
            net.add(&format!("Reshape(@, {shape})"), &[], vec![d[0], d[1] * d[2] * d[3]]);
            let flat = net.last();
            net.add(&format!("MatMul(mix{flat}, @)"), &[], net.dims[flat].clone());
            net.weights.push(constant(&format!("mix{flat}"), &numbers(&[d[0], d[0]], flat as u32)));
            net.add(&format!("Reshape(@, {back})"), &[], d);
        }
        // Attention within a picture.
        _ => {
            let turned = [d[0], d[1], d[3], d[2]];
            let from = net.last();
            net.add("Transpose(@)", &[ints("perm", &[0, 1, 3, 2])], turned.to_vec());
            net.add(&format!("MatMul(v{from}, @)"), &[], vec![d[0], d[1], d[2], d[2]]);
            let across = vec![d[0], d[1], d[2], d[2]];
            net.add("Softmax(@)", &[int("axis", 3)], across);
            net.add(&format!("MatMul(@, v{from})"), &[], d);
        }
    }
}

#[test]
fn random_networks_give_the_same_bits_with_and_without_loops() {
    let (cases, mut looped, mut open) = (24u64, 0u64, 0u64);
    for seed in 0..cases {
        let mut random = Random(seed);
        let batch = [2, 3, 4, 6, 8][random.below(5)];
        let size = [13, 16, 24][random.below(3)];
        let mut net = Net::new(&[batch, 16, size, size]);
        for _ in 0..3 + random.below(7) {
            let kind = random.below(12) as u8;
            layer(&mut net, (kind, random.below(1 << 20), random.below(1 << 20)));
        }
        let (graph, input) = (net.graph(), net.input());
        let machine = TargetDesc { l3_bytes: 16 << 20, ..small(native()) };
        looped += u64::from(!loops_of(&graph, machine.clone()).is_empty());
        let whole = run(&graph, Backend::Llvm, large(native()), &input);
        for threads in [1, 2] {
            let got = run_threads(&graph, machine.clone(), &input, threads);
            assert!(got == whole, "network {seed}, {threads} threads");
        }
        // The same network for any batch.
        let graph = net.graph_of("n");
        open += u64::from(!loops_of(&graph, machine.clone()).is_empty());
        let whole = run(&graph, Backend::Llvm, large(native()), &input);
        for threads in [1, 2] {
            let got = run_threads(&graph, machine.clone(), &input, threads);
            assert!(got == whole, "network {seed} of any batch, {threads} threads");
        }
    }
    assert!(looped.min(open) >= cases / 2, "only {looped} of {cases} networks have a loop, {open} of those of any batch");
}
