//! Loops over bands of rows: where they are found and where not, and that nothing depends on them: the same bits as whole layers give, on every
//! machine, with any number of threads, and from every kind of code.

#![cfg(feature = "llvm")]

mod tool;

use infc::engine::Backend;
use infc::{Options, compile, target};
use infc_ir::Graph;
use infc_kernel::target::TargetDesc;
use infc_runtime::variant;
use tool::kit::*;
use tool::net::{Net, Random, large, loops, machines_of_llvm, native, run, run_threads, small};

/// Rounds and launches of each loop over bands.
fn bands(graph: &Graph, machine: TargetDesc) -> Vec<(i64, usize)> {
    loops(graph, machine, "%band")
}

/// A convolution with any window, stride, dilation and padding; without effect if the map is too small for it.
fn window(net: &mut Net, channels: usize, [kernel, stride, dilation, pad]: [usize; 4], groups: usize) {
    let d = net.dims[net.last()].clone();
    let reach = dilation * (kernel - 1) + 1;
    let after = |x: usize| (x + 2 * pad).checked_sub(reach).map(|x| x / stride + 1);
    let (Some(high), Some(wide)) = (after(d[2]), after(d[3])) else { return };
    let w = net.weight(&[channels, d[1] / groups, kernel, kernel]);
    let b = net.weight(&[channels]);
    let [stride, dilation, pad] = [stride, dilation, pad].map(|x| x as i64);
    let attributes =
        [ints("pads", &[pad; 4]), ints("strides", &[stride; 2]), ints("dilations", &[dilation; 2]), int("group", groups as i64)];
    net.add(&format!("Conv(@, {w}, {b})"), &attributes, vec![d[0], channels, high, wide]);
}

/// Inverted residual blocks: products to more channels, windows of single channels, products to fewer.
fn network(batch: usize, size: usize) -> Net {
    let mut net = Net::new(&[batch, 3, size, size]);
    net.conv(16, 3, 1, 2);
    let start = net.same("Relu(@)", &[]);
    for stride in [1, 2] {
        net.conv(64, 1, 1, 1);
        net.same("Relu(@)", &[]);
        net.conv(64, 3, 64, stride);
        net.same("Clip(@)", &[]);
        net.conv(16, 1, 1, 1);
        if stride == 1 {
            net.same(&format!("Add(@, v{start})"), &[]);
        }
    }
    net.add("GlobalAveragePool(@)", &[], vec![batch, 16, 1, 1]);
    net
}

#[test]
fn blocks_run_in_bands_where_that_pays() {
    let graph = network(1, 96).graph();
    assert_eq!(bands(&graph, large(native())), []);
    let found = bands(&graph, small(native()));
    assert!(found.iter().map(|l| l.1).sum::<usize>() >= 3 && found.iter().all(|l| l.0 > 1), "{found:?}");
    // Pictures whose number is known at run time only: as they are.
    assert_eq!(bands(&network(1, 96).graph_of("n"), small(native())), []);
}

#[test]
fn memory_shrinks_to_that_of_bands() {
    let arena = |machine| {
        let lowered = compile::lower(network(1, 96).graph(), &Options::for_target(machine)).expect("lowers");
        lowered.program.arena.expect("known sizes")
    };
    let (looped, whole) = (arena(small(native())), arena(large(native())));
    assert!(looped * 2 < whole, "{looped} of {whole} bytes");
}

#[test]
fn bits_are_the_same_on_every_machine_and_with_any_number_of_threads() {
    let net = network(1, 70);
    let (graph, input) = (net.graph(), net.input());
    let mut machines = 0;
    for machine in machines_of_llvm() {
        if variant::check(&target::requirements(&machine)).is_err() {
            continue;
        }
        machines += 1;
        let name = machine.name.clone();
        assert!(!bands(&graph, small(machine.clone())).is_empty(), "{name}");
        let whole = run_threads(&graph, large(machine.clone()), &input, 1);
        for threads in [1, 2, 3, 5] {
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
    let net = network(1, 50);
    let (graph, input) = (net.graph(), net.input());
    // Without vectors arithmetic takes longer than what moves on any such machine; here it takes no time.
    let slow = |machine| TargetDesc { l3_rate: 0, ..small(machine) };
    for machine in infc_c::machines() {
        let name = machine.name.clone();
        assert!(!bands(&graph, slow(machine.clone())).is_empty(), "{name}");
        let whole = run(&graph, Backend::C, large(machine.clone()), &input);
        assert!(run(&graph, Backend::C, slow(machine), &input) == whole, "{name}");
    }
}

#[test]
fn random_windows_give_the_same_bits_in_bands() {
    let (cases, mut looped) = (24u64, 0u64);
    for seed in 0..cases {
        let mut random = Random(seed + 1000);
        let size = [19, 26, 33, 40, 57][random.below(5)];
        // Batches that loops over the batch do not take apart, too.
        let mut net = Net::new(&[[1, 1, 1, 2][random.below(4)], 8, size, size + random.below(4)]);
        for _ in 0..2 + random.below(3) {
            let (from, before) = (net.last(), net.dims[net.last()].clone());
            if random.below(4) > 0 {
                window(&mut net, [24, 32, 40][random.below(3)], [1, 1, 1, 0], 1);
                net.same(["Relu(@)", "Sigmoid(@)", "Abs(@)"][random.below(3)], &[]);
            }
            let channels = net.dims[net.last()][1];
            let kernel = [1, 3, 3, 5][random.below(4)];
            let shape = [kernel, 1 + random.below(2), 1 + random.below(2), random.below(kernel + 1)];
            window(&mut net, channels, shape, channels);
            net.same(["Relu(@)", "Clip(@)"][random.below(2)], &[]);
            window(&mut net, before[1], [1, 1, 1, 0], 1);
            if net.dims[net.last()] == before {
                net.same(&format!("Add(@, v{from})"), &[]);
            }
            // Something else that has rows, or mixes them.
            let d = net.dims[net.last()].clone();
            match random.below(6) {
                0 => {
                    net.add(&format!("Concat(@, v{})", net.last()), &[int("axis", 1)], vec![d[0], 2 * d[1], d[2], d[3]]);
                }
                1 => drop(net.same("MaxPool(@)", &[ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])])),
                2 => drop(net.same("Softmax(@)", &[int("axis", 2)])),
                _ => {}
            }
        }
        let (graph, input) = (net.graph(), net.input());
        let machine = TargetDesc { l3_bytes: 16 << 20, ..small(native()) };
        looped += u64::from(!bands(&graph, machine.clone()).is_empty());
        let whole = run(&graph, Backend::Llvm, large(native()), &input);
        for threads in [1, 2] {
            let got = run_threads(&graph, machine.clone(), &input, threads);
            assert!(got == whole, "network {seed}, {threads} threads");
        }
    }
    assert!(looped >= cases / 3, "only {looped} of {cases} networks have a loop");
}
