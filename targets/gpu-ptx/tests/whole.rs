//! Whole graphs through the plans for GPUs and the PTX interpreter, beside the interpreter of graphs: attention in one kernel beside its
//! steps, and long reductions in parts beside whole ones.

use infc_artifact::program::{Place, Step};
use infc_ir::eval;
use infc_ir::{Graph, Tensor};
use infc_kernel::loops::interp;
use infc_kernel::program::{Lowered, lower};
use infc_kernel::target::{Math, TargetDesc};
use infc_ptxvm::{Grid, Memory, Module, launch};

/// Launches of a graph without symbols, one after another, on fewer blocks than there are tasks; by the loop interpreter if `loops`.
fn run(lowered: &Lowered, inputs: &[Tensor], loops: bool) -> Vec<Vec<u8>> {
    let text = infc_gpu_ptx::module(&lowered.kernels, "sm_80").unwrap_or_else(|e| panic!("{e}"));
    let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
    let p = &lowered.program;
    let size = |b: &infc_artifact::program::Buffer| b.bytes.known().expect("a size") as usize;
    let mut memory: Vec<Vec<u8>> = p.buffers.iter().map(|b| vec![0xa5; size(b)]).collect();
    for (m, b) in memory.iter_mut().zip(&p.buffers) {
        match b.place {
            Place::Input(i) => *m = inputs[i as usize].bytes().to_vec(),
            Place::Constant(at) => m.copy_from_slice(&lowered.constants[at as usize..][..size(b)]),
            _ => {}
        }
    }
    for step in &p.steps {
        let Step::Launch { kernel, buffers, extents, tasks } = step else { panic!("{step:?}") };
        assert!(extents.is_empty() && buffers.iter().all(|v| v.offset.known() == Some(0)), "{step:?}");
        let (k, tasks) = (*kernel as usize, tasks.known().expect("a number"));
        let mut own: Vec<Vec<u8>> = buffers.iter().map(|v| memory[v.buffer as usize].clone()).collect();
        if loops {
            interp::run(&lowered.kernels[k], &[], &mut own).unwrap_or_else(|s| panic!("{s}\n{}", lowered.kernels[k]));
        } else {
            let shape = text.shape(k, tasks, 3);
            let mut device = Memory::default();
            let places: Vec<u64> = own.iter_mut().map(|m| device.insert(std::mem::take(m))).collect();
            let (error, scratch) = (device.insert(vec![0; 4]), device.insert(vec![0xa5; shape.scratch as usize]));
            let all = places.iter().copied().chain([tasks as u64, error, scratch]);
            let parameters: Vec<u8> = all.flat_map(u64::to_le_bytes).collect();
            let grid = Grid { blocks: [shape.blocks, 1, 1], threads: [shape.threads, 1, 1], shared: 0 };
            let entry = module.kernel(&format!("k{k}")).expect("an entry for each kernel");
            launch(entry, grid, &parameters, &mut device).unwrap_or_else(|f| panic!("{f}\n{}", lowered.kernels[k]));
            own.iter_mut().zip(&places).for_each(|(m, &p)| *m = device.remove(p).expect("a buffer"));
        }
        buffers.iter().zip(own).for_each(|(v, m)| memory[v.buffer as usize] = m);
    }
    p.outputs.iter().map(|o| memory[o.buffer as usize].clone()).collect()
}

/// Numbers between -2 and 2 with a few bits; those of `holes` (by their place in the tensor) are -inf.
fn random(graph: &Graph, holes: &dyn Fn(usize, &[usize], usize) -> bool) -> Vec<Tensor> {
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let inputs = graph.inputs().iter().enumerate();
    let make = |(n, &v): (usize, &infc_ir::Value)| {
        let ty = graph.ty(v).as_tensor().expect("a tensor");
        let dims: Vec<usize> = ty.dims.iter().map(|d| d.known().expect("a size") as usize).collect();
        let values: Vec<u64> = (0..dims.iter().product())
            .map(|at| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let x = (seed % 257) as f64 / 64.0 - 2.0;
                if holes(n, &dims, at) { f64::NEG_INFINITY.to_bits() } else { eval::round_float(ty.dtype, x).to_bits() }
            })
            .collect();
        Tensor::from_values(ty.dtype, dims, values)
    };
    inputs.map(make).collect()
}

/// Both ways give the same within `limit` of the largest number; all plans are listed.
fn check(text: &str, math: Math, limit: f64, holes: &dyn Fn(usize, &[usize], usize) -> bool) -> Vec<String> {
    let mut graph = infc_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let inputs = random(&graph, holes);
    let want = infc_ir::interp::run_tensors(&graph, &inputs).unwrap_or_else(|e| panic!("{e}"));
    infc_passes::run(&mut graph, &infc_passes::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let target = TargetDesc { math, ..infc_gpu_ptx::default_machine() };
    let lowered = lower(&graph, &target, &vec![]).unwrap_or_else(|e| panic!("{e}"));
    let plans: Vec<String> = lowered.plans.iter().flatten().map(ToString::to_string).collect();
    let got = run(&lowered, &inputs, false);
    assert_eq!(got, run(&lowered, &inputs, false), "the same bits again");
    let by_loops = run(&lowered, &inputs, true);
    for (k, want) in want.iter().enumerate() {
        let width = want.dtype.bytes();
        let number = |raw: &[u8]| {
            f64::from_bits(eval::from_memory(want.dtype, raw.iter().rev().fold(0u64, |a, &b| a << 8 | u64::from(b))))
        };
        let most = (0..want.len()).map(|i| want.float(i)).filter(|x| x.is_finite()).fold(1e-3, |m, x| x.abs().max(m));
        for (who, got) in [("PTX", &got[k]), ("loops", &by_loops[k])] {
            for (i, raw) in got.chunks(width).enumerate() {
                let (x, y) = (number(raw), want.float(i));
                let same = x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= limit * most;
                assert!(same, "{who}: output {k}, element {i}: {x} instead of {y} by {plans:?}\n{text}");
            }
        }
    }
    plans
}

/// Queries, keys, values, a mask, heads, lengths and widths of attention.
struct Shape {
    dtype: &'static str,
    heads: usize,
    queries: usize,
    keys: usize,
    depth: usize,
    columns: usize,
}

fn plain() -> Shape {
    Shape { dtype: "f32", heads: 2, queries: 37, keys: 53, depth: 24, columns: 20 }
}

/// `softmax(q k / 4 + mask) v` as exporters write it; the mask is the fourth input.
fn spelled(s: &Shape, mask: &str) -> String {
    let Shape { dtype, heads, queries, keys, depth, columns } = s;
    format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"s\" \"Mul\" 13 source 2 \"m\" \"Add\" 13 source 3 \"x\" \"Softmax\" 13 \
         source 4 \"o\" \"MatMul\" 13 const %0: {dtype}[] \"scale\" = {{0.25}} \
         region (%1: {dtype}[1, {heads}, {queries}, {depth}] \"q\", %2: {dtype}[1, {heads}, {depth}, {keys}] \"k\", \
         %3: {dtype}[1, {heads}, {keys}, {columns}] \"v\", %4: {dtype}[{mask}] \"mask\") {{ \
         %5: {dtype}[1, {heads}, {queries}, {keys}] = MatMul(%1, %2) from [0] \
         %6: {dtype}[1, {heads}, {queries}, {keys}] = Mul(%5, %0) from [1] \
         %7: {dtype}[1, {heads}, {queries}, {keys}] = Add(%6, %4) from [2] \
         %8: {dtype}[1, {heads}, {queries}, {keys}] = Softmax(%7) {{axis = -1}} from [3] \
         %9: {dtype}[1, {heads}, {queries}, {columns}] \"y\" = MatMul(%8, %3) from [4] yield %9 }} }}"
    )
}

/// The same as the operator, whose keys lie as queries do.
fn operator(s: &Shape, mask: &str) -> String {
    let Shape { dtype, heads, queries, keys, depth, columns } = s;
    format!(
        "graph \"g\" {{ source 0 \"a\" \"Attention\" 23 \
         region (%0: {dtype}[1, {heads}, {queries}, {depth}] \"q\", %1: {dtype}[1, {heads}, {keys}, {depth}] \"k\", \
         %2: {dtype}[1, {heads}, {keys}, {columns}] \"v\", %3: {dtype}[{mask}] \"mask\") {{ \
         %4: {dtype}[1, {heads}, {queries}, {columns}] \"y\" = Attention(%0, %1, %2, %3) {{scale = 0.25}} from [0] yield %4 }} }}"
    )
}

fn none(_: usize, _: &[usize], _: usize) -> bool {
    false
}

/// All steps are one kernel of this plan; what is done to queries and keys before may be others.
#[track_caller]
fn one_kernel(plans: &[String], words: &str) {
    let (last, before) = plans.split_last().expect("a plan");
    assert!(last.contains("attention") && last.contains(words), "{words}: {plans:?}");
    assert!(before.iter().all(|p| p.starts_with("threads")), "{plans:?}");
}

#[test]
fn attention_is_one_kernel_in_each_precision() {
    let s = plain();
    let mask = format!("1, 1, {}, {}", s.queries, s.keys);
    for (math, limit, row) in [
        (Math::F32, 1e-5, "row=fma"),
        (Math::Tf32, 3e-3, "row=mma_tf32"),
        (Math::Bf16, 2e-2, "row=mma_bf16"),
        (Math::F16, 3e-3, "row=mma_f16"),
    ] {
        one_kernel(&check(&spelled(&s, &mask), math, limit, &none), row);
        one_kernel(&check(&operator(&s, &mask), math, limit, &none), row);
    }
    for dtype in ["f16", "bf16"] {
        let s = Shape { dtype, ..plain() };
        one_kernel(&check(&spelled(&s, &mask), Math::F32, 3e-2, &none), &format!("row=mma_{dtype}"));
        one_kernel(&check(&operator(&s, &mask), Math::F32, 3e-2, &none), &format!("row=mma_{dtype}"));
    }
}

#[test]
fn attention_is_for_warps_where_there_are_warpgroups() {
    let s = Shape { dtype: "f16", heads: 2, queries: 256, keys: 256, depth: 64, columns: 128 };
    let mut graph = infc_ir::text::parse(&operator(&s, "256")).unwrap_or_else(|e| panic!("{e}"));
    infc_passes::run(&mut graph, &infc_passes::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let hopper = infc_gpu_ptx::machines().into_iter().find(|m| m.warpgroups).expect("a machine for Hopper GPUs");
    let lowered = lower(&graph, &hopper, &vec![]).unwrap_or_else(|e| panic!("{e}"));
    one_kernel(&lowered.plans.iter().flatten().map(ToString::to_string).collect::<Vec<_>>(), "row=mma_f16");
}

#[test]
fn attention_in_tiles_of_all_sizes() {
    for (heads, queries, keys, depth, columns) in
        [(1, 16, 3, 8, 8), (1, 70, 66, 16, 16), (2, 64, 33, 64, 64), (1, 33, 70, 128, 100)]
    {
        let s = Shape { dtype: "f32", heads, queries, keys, depth, columns };
        for (math, limit) in [(Math::F32, 1e-5), (Math::F16, 3e-3)] {
            let mask = format!("{keys}");
            one_kernel(&check(&operator(&s, &format!("1, 1, 1, {mask}")), math, limit, &none), "block=");
            one_kernel(&check(&spelled(&s, &mask), math, limit, &none), "block=");
        }
    }
}

#[test]
fn rows_without_keys_give_what_the_steps_give() {
    let s = plain();
    let mask = format!("1, 1, {}, {}", s.queries, s.keys);
    // Row 5 has no key, row 6 only the last one, all others those up to their own place: the first tile of some has none.
    let holes = |n: usize, dims: &[usize], at: usize| {
        let (row, key) = (at / dims[dims.len() - 1] % dims[2], at % dims[dims.len() - 1]);
        n == 3 && (row == 5 || row == 6 && key + 1 < 53 || row > 6 && key > row || row < 5 && key < 40)
    };
    for (math, limit) in [(Math::F32, 1e-5), (Math::Bf16, 2e-2)] {
        one_kernel(&check(&spelled(&s, &mask), math, limit, &holes), "attention");
        one_kernel(&check(&operator(&s, &mask), math, limit, &holes), "attention");
    }
    let ending = |at: &str| {
        let text = if at == "spelled" { spelled(&s, &mask) } else { operator(&s, &mask) };
        let graph = infc_ir::text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let want = infc_ir::interp::run_tensors(&graph, &random(&graph, &holes)).unwrap_or_else(|e| panic!("{e}"));
        want[0].float(5 * s.columns)
    };
    assert!(ending("spelled").is_nan() && ending("operator") == 0.0, "a row without keys is what this test is about");
}

#[test]
fn what_others_read_stays_steps() {
    let s = plain();
    // The weights are an output as well.
    let graph = spelled(&s, "1, 1, 37, 53").replace("yield %9", "yield %8, %9");
    let plans = check(&graph, Math::F32, 1e-5, &none);
    assert!(plans.len() > 1 && plans.iter().all(|p| !p.contains("attention")), "{plans:?}");
    // Few queries: no tile.
    let s = Shape { queries: 3, ..plain() };
    assert!(check(&operator(&s, "1, 1, 3, 53"), Math::F32, 1e-5, &none).len() > 1);
}

fn product(m: usize, k: usize, n: usize) -> String {
    format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"r\" \"Relu\" 13 region (%0: f32[{m}, {k}] \"a\", %1: f32[{k}, {n}] \"b\") {{ \
         %2: f32[{m}, {n}] = MatMul(%0, %1) from [0] %3: f32[{m}, {n}] \"y\" = Relu(%2) from [1] yield %3 }} }}"
    )
}

#[test]
fn long_sums_with_few_results_are_taken_in_parts() {
    // In tiles, by threads, by warps: two kernels where there is little to share out, one where there is enough or k is short.
    for (graph, kernels) in [
        (product(40, 1024, 50), 2),
        (product(40, 1021, 50), 1),
        (product(1, 512, 70), 2),
        (product(3, 24, 70), 1),
        (product(300, 64, 300), 1),
    ] {
        for math in [Math::F32, Math::F16] {
            let plans = check(&graph, math, if math == Math::F32 { 1e-5 } else { 3e-3 }, &none);
            assert_eq!(plans.len(), kernels, "{plans:?}\n{graph}");
        }
    }
    let sum = |op: &str, n: usize| {
        format!(
            "graph \"g\" {{ source 0 \"s\" \"{op}\" 18 const %0: i64[1] \"axes\" = {{1}} region (%1: f32[3, {n}] \"x\") {{ \
             %2: f32[3, 1] \"y\" = {op}(%1, %0) from [0] yield %2 }} }}"
        )
    };
    // One sum after another, as the interpreter has it, rounds more often than parts do.
    for op in ["ReduceSum", "ReduceMax", "ReduceMean", "ReduceL2"] {
        assert_eq!(check(&sum(op, 8192), Math::F32, 1e-4, &none).len(), 2, "{op}");
        assert_eq!(check(&sum(op, 700), Math::F32, 1e-5, &none).len(), 1, "{op}");
    }
}
