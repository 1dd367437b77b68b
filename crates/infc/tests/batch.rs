//! Loops over the batch outside of layers: where they are found and where not, and that nothing depends on them: the same bits with and
//! without, on every machine, with any number of threads, and from every kind of code.

#![cfg(feature = "llvm")]

mod tool;

use infc::engine::{Backend, Engine, Native, prepare};
use infc::{Options, compile, target};
use infc_artifact::program::Step;
use infc_ir::interp::Item;
use infc_ir::{Graph, Tensor};
use infc_kernel::target::TargetDesc;
use infc_onnx::proto::{NodeProto, TensorProto};
use infc_runtime::{Model, variant};
use tool::kit::*;

fn numbers(dims: &[usize], seed: u32) -> Tensor {
    let n: usize = dims.iter().product();
    let value = |i: usize| ((i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    Tensor::from_vec(dims, (0..n).map(value).collect::<Vec<f32>>())
}

/// A machine with caches so small that loops pay for the tests' models.
fn small(machine: TargetDesc) -> TargetDesc {
    TargetDesc { l2_bytes: 16 << 10, l3_bytes: 1 << 20, ..machine }
}

/// One that holds all in its caches.
fn large(machine: TargetDesc) -> TargetDesc {
    TargetDesc { l2_bytes: 1 << 40, l3_bytes: 1 << 40, ..machine }
}

fn native() -> TargetDesc {
    target::find("native").expect("this computer")
}

/// A graph under construction: `v0` is the input, each node makes the next value.
struct Net {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    dims: Vec<Vec<usize>>,
}

impl Net {
    fn new(dims: &[usize]) -> Net {
        Net { nodes: vec![], weights: vec![], dims: vec![dims.to_vec()] }
    }
    fn last(&self) -> usize {
        self.dims.len() - 1
    }
    fn weight(&mut self, dims: &[usize]) -> String {
        let name = format!("w{}", self.weights.len());
        self.weights.push(constant(&name, &numbers(dims, 91 * self.weights.len() as u32 + 7)));
        name
    }
    fn index(&mut self, values: Vec<i64>) -> String {
        let name = format!("w{}", self.weights.len());
        self.weights.push(constant(&name, &Tensor::from_vec([values.len()], values)));
        name
    }
    /// Adds `call`, in which `@` is the last value, with a result of these dims.
    fn add(&mut self, call: &str, attributes: &[infc_onnx::proto::AttributeProto], dims: Vec<usize>) -> usize {
        let call = call.replace('@', &format!("v{}", self.last()));
        self.nodes.push(node(&format!("v{} = {call}", self.dims.len()), attributes));
        self.dims.push(dims);
        self.last()
    }
    fn conv(&mut self, channels: usize, kernel: usize, groups: usize, stride: usize) {
        let d = self.dims[self.last()].clone();
        let w = self.weight(&[channels, d[1] / groups, kernel, kernel]);
        let b = self.weight(&[channels]);
        let (pad, stride_i) = (kernel as i64 / 2, stride as i64);
        let attributes = [ints("pads", &[pad; 4]), ints("strides", &[stride_i; 2]), int("group", groups as i64)];
        let after = |x: usize| (x + 2 * (kernel / 2) - kernel) / stride + 1;
        self.add(&format!("Conv(@, {w}, {b})"), &attributes, vec![d[0], channels, after(d[2]), after(d[3])]);
    }
    fn same(&mut self, call: &str, attributes: &[infc_onnx::proto::AttributeProto]) -> usize {
        let dims = self.dims[self.last()].clone();
        self.add(call, attributes, dims)
    }
    fn graph_of(&self, batch: &str) -> Graph {
        let text = |d: &[usize]| d.iter().map(|d| format!(", {d}")).collect::<String>();
        let input = format!("v0 f32[{batch}{}]", text(&self.dims[0][1..]));
        let last = self.last();
        let rank = self.dims[last].len();
        let output = format!("v{last} f32[{}]", vec!["?"; rank].join(", "));
        let g = graph(&[&input], self.nodes.clone(), &[&output], self.weights.clone());
        import(&model(18, g)).unwrap_or_else(|e| panic!("{e}"))
    }
    fn graph(&self) -> Graph {
        self.graph_of(&self.dims[0][0].to_string())
    }
    fn input(&self) -> Item {
        Item::Tensor(numbers(&self.dims[0], 3))
    }
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

/// Rounds and launches of each loop over the batch.
fn loops_of(graph: &Graph, machine: TargetDesc) -> Vec<(i64, usize)> {
    fn walk(steps: &[Step], out: &mut Vec<(i64, usize)>) {
        for step in steps {
            match step {
                Step::Loop { count, body, apart: true, cond: None, .. } => out.push((count.known().unwrap_or(-1), body.len())),
                Step::Loop { body, .. } => walk(body, out),
                Step::If { then, otherwise, .. } => {
                    walk(then, out);
                    walk(otherwise, out);
                }
                Step::Launch { .. }
                | Step::Copy { .. }
                | Step::Bind { .. }
                | Step::Require { .. }
                | Step::Host { .. }
                | Step::HostLaunch { .. }
                | Step::ToHost { .. }
                | Step::ToDevice { .. } => {}
            }
        }
    }
    let lowered = compile::lower(graph.clone(), &Options::for_target(machine)).unwrap_or_else(|e| panic!("{e}"));
    lowered.program.validate(u64::MAX, lowered.constants.len() as u64).unwrap_or_else(|e| panic!("{e}"));
    let mut out = vec![];
    walk(&lowered.program.steps, &mut out);
    out
}

fn bits(items: &[Item]) -> Vec<(Vec<usize>, Vec<u8>)> {
    items.iter().filter_map(Item::as_tensor).map(|t| (t.dims.clone(), t.bytes().to_vec())).collect()
}

fn run(graph: &Graph, backend: Backend, machine: TargetDesc, input: &Item) -> Vec<(Vec<usize>, Vec<u8>)> {
    let mut engine = prepare(graph.clone(), backend, &Options::for_target(machine)).unwrap_or_else(|e| panic!("{e}"));
    bits(&engine.run(std::slice::from_ref(input)).unwrap_or_else(|e| panic!("{} {e}", backend.name())))
}

/// From the bytes of an artifact, twice in one session.
fn run_threads(graph: &Graph, machine: TargetDesc, input: &Item, threads: usize) -> Vec<(Vec<usize>, Vec<u8>)> {
    let compiled = infc::compile(graph.clone(), &Options::for_target(machine)).unwrap_or_else(|e| panic!("{e}"));
    let options = infc_runtime::Options { threads: Some(threads), profile: true, ..infc_runtime::Options::default() };
    let mut engine = Native::new(Model::from_bytes(&compiled.artifact).expect("loads"), options).expect("a session");
    let mut out = || bits(&engine.run(std::slice::from_ref(input)).unwrap_or_else(|e| panic!("{e}")));
    let first = out();
    assert_eq!(first, out(), "the second run differs");
    let calls: Vec<u64> = engine.session().times().iter().map(|t| t.calls).collect();
    assert!(calls.iter().all(|&c| c > 0 && c % 2 == 0), "all steps ran in both runs: {calls:?}");
    first
}

#[test]
fn a_network_runs_picture_by_picture_where_that_pays() {
    let graph = network(8).graph();
    assert_eq!(loops_of(&graph, large(native())), []);
    let loops = loops_of(&graph, small(native()));
    let launches: usize = loops.iter().map(|l| l.1).sum();
    assert!(launches >= 8 && loops.iter().all(|l| 8 % l.0 == 0 && l.0 > 1), "{loops:?}");
    // One picture, or a batch that is known at run time only: as it is.
    assert_eq!(loops_of(&network(1).graph(), small(native())), []);
    assert_eq!(loops_of(&network(8).graph_of("n"), small(native())), []);
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
    for machine in target::machines().into_iter().filter(|m| m.backend == "llvm") {
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

/// Numbers that follow from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % n as u64) as usize
    }
}

#[test]
fn random_networks_give_the_same_bits_with_and_without_loops() {
    let (cases, mut looped) = (24u64, 0u64);
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
    }
    assert!(looped >= cases / 2, "only {looped} of {cases} networks have a loop");
}
